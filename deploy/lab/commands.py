"""The verbs of `python -m deploy lab`."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deploy import Refusal
from deploy.application import Setup, read_setup, web_names
from deploy.checkout import NODES_FILE
from deploy.lab import (
    BOOTSTRAP_URL,
    CACHE,
    NAME,
    STATE,
    cloud,
    container,
    demo,
    events,
    kernel,
    machine,
    network,
    node,
    process,
    rootfs,
)
from deploy.lab.mounts import remove_tree
from deploy.lab.state import (
    Lab,
    is_started,
    lab_plan,
    lock,
    require_lab,
    running_lab,
    save,
    save_endpoints,
    service_of,
)
from deploy.nodes_info import nodes_info, read_nodes
from deploy.options import service_options
from deploy.plan import Node
from deploy.publish import Folder, found_on, hold, publish
from deploy.release import Release, agent, first_release, of_cluster, renewed
from deploy.settings import USUAL_LOOK, Settings, look_of
from deploy.signing import make_key, operators_key, public_key, signers_text
from deploy.userdata import is_beside, user_data

BOOT_SECONDS = 120.0
EMULATED_BOOT_SECONDS = 300.0  # about forty seconds of a processor, which others may want, too
MOST_SECONDS = 3600
LOG = "/var/log/bootstrap/logfile.log"
console = Console(highlight=False, soft_wrap=True)


@click.group("lab")
def lab_command() -> None:
    """A whole cluster on this machine: booted nodes, their network, a load balancer."""
    if sys.platform != "linux":
        raise Refusal(
            "the lab needs Linux, for its network and nodes: Debian 12, Ubuntu 22.04 or newer."
        )
    os.umask(0o022)  # whatever is made here, users of the nodes' own read it
    # A root shell by `su` lacks what administrators use.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


@lab_command.command("up")
@click.option("--nodes", "count", type=int, help="An odd number [default: nodes_info.json's].")
@click.option(
    "--period-seconds",
    type=int,
    help=f"Of the nodes' timer; divides 60 [default: {Settings.period_seconds}].",
)
@click.option(
    "--look-seconds",
    type=int,
    help=f"Between two looks of a run; divides the period [default: {USUAL_LOOK}].",
)
@click.option(
    "--pause-seconds",
    type=int,
    help="The host may pause a node for so long, and nobody else be active"
    f" [default: {Settings.pause_seconds}].",
)
@click.option(
    "--vm", "machines", metavar="NODE", multiple=True, help="A virtual machine; again for more."
)
@click.option(
    "--ports",
    metavar="PORT",
    multiple=True,
    help="What the load balancer forwards; again for more  [80].",
)
@click.option("--frontend", help="The load balancer's address: public or internal  [public].")
@click.option("--cluster-port", type=int, help="Where markers and probe are served  [80].")
@click.option(
    "--setup",
    metavar="FILE",
    multiple=True,
    help="Run once on each node after the agent is installed; again for files beside it, such as"
    " packages: nodes have no way out to the Internet.",
)
@click.option(
    "--demo",
    "with_demo",
    is_flag=True,
    help="A service that writes ten times a second to this machine: `watch` shows whose arrive.",
)
@service_options
def up(
    count: int | None,
    period_seconds: int | None,
    look_seconds: int | None,
    pause_seconds: int | None,
    machines: tuple[str, ...],
    *,
    setup: tuple[str, ...],
    with_demo: bool,
    **service: Any,
) -> None:
    """Make this machine the cloud, or repair the lab that is up.

    Ends when every node has booted. Run again it starts what is missing and powers on every node,
    also one that `lab off` put off; cuts and hangs stay until `lab heal` and `lab thaw`.
    """
    began = time.monotonic()
    with lock(), stopped_by_terminate(), ExitStack() as unless_it_succeeds:
        times = (period_seconds, look_seconds, pause_seconds)
        lab = wanted_lab(count, *times, machines, setup=setup, with_demo=with_demo, **service)
        if running_lab() is None:
            tear_down()  # what a crashed `lab up` left
            unless_it_succeeds.callback(tear_down)
        bring_up(lab)
        unless_it_succeeds.pop_all()
    console.print(f"Up after {time.monotonic() - began:.1f} s: {lab}.")
    for port in lab.plan.ports:
        if port.protocol == "Udp":
            console.print(f"UDP port {port.number} is not forwarded in the lab, only on Azure.")
    if (url := cloud.endpoints(lab.plan)["load_balancer"]).startswith("http:"):
        inside = f"{sys.executable} -m deploy lab shell {lab.plan.nodes[-1].name} "
        console.print(f"Try: {inside * (lab.plan.frontend == 'internal')}curl -i {url}/")
    for verb in ("status", "watch", "lab off node1", "lab down"):
        console.print(f"     {sys.executable} -m deploy {verb}")


@lab_command.command("down")
def down() -> None:
    """Remove the lab: no namespace, mount, process or file of it stays."""
    with lock():
        what = "The lab is down" if is_started() else "No lab was up"
        tear_down()
    console.print(f"{what}; the root file systems in {CACHE} stay, so that the next `up` is fast.")


@lab_command.command("off")
@click.argument("name", metavar="NODE")
def off(name: str) -> None:
    """Cut the node's power: every process dies at once, its addresses go silent."""
    with changed_lab() as lab:
        node.power_off(lab.node(name))


@lab_command.command("on")
@click.argument("name", metavar="NODE")
def on(name: str) -> None:
    """Power the node on again, with the disk it had; ends when it has booted."""
    with changed_lab() as lab:
        node.power_on(lab.node(name))
        wait_for_boot([lab.node(name)])


@lab_command.command("cut")
@click.argument("sender", metavar="A")
@click.argument("receiver", metavar="B")
@click.option("--one-way", is_flag=True, help="Only what A begins; B still reaches A.")
def cut(sender: str, receiver: str, one_way: bool) -> None:
    """Drop every packet between the nodes A and B.

    One way it is as if a security group of B refused A: what A begins towards B is dropped, on
    connections that stand already too; what B begins is answered.
    """
    with changed_lab() as lab:
        network.cut(lab.node(sender), lab.node(receiver), one_way=one_way)


@lab_command.command("heal")
def heal() -> None:
    """Undo all cuts."""
    with changed_lab() as lab:
        for each in lab.plan.nodes:
            network.heal(each)


@lab_command.command("hang")
@click.argument("name", metavar="NODE")
def hang(name: str) -> None:
    """Stop the node's agent like a hung process; Apache and the fence go on."""
    with changed_lab() as lab:
        node.hang_agent(lab.node(name))


@lab_command.command("freeze")
@click.argument("name", metavar="NODE")
def freeze(name: str) -> None:
    """Stop every process of the node where it stands."""
    with changed_lab() as lab:
        node.freeze(lab.node(name))


@lab_command.command("thaw")
@click.argument("name", metavar="NODE")
def thaw(name: str) -> None:
    """Undo `freeze` and `hang`: what was stopped goes on."""
    with changed_lab() as lab:
        node.thaw(lab.node(name))


@lab_command.command("announce")
@click.argument("name", metavar="NODE")
@click.argument("kind", type=click.Choice(list(events.NOTICE_SECONDS)))
@click.option(
    "--not-before",
    "notice_seconds",
    metavar="SECONDS",
    type=float,
    help="From now; 0: it has begun  [as Azure, which gives 30 s to 15 min].",
)
def announce(name: str, kind: str, notice_seconds: float | None) -> None:
    """Announce what Azure would do to the node: a scheduled event.

    It begins when the node has approved it, or at its time. Only told: `freeze`, `off` and `on` do
    it.
    """
    usual_seconds = events.NOTICE_SECONDS[kind]
    with changed_lab() as lab:
        seconds = usual_seconds if notice_seconds is None else notice_seconds
        event = events.announce(events.FILE, lab.node(name).name, kind, seconds)
    console.print(f"{name}: {kind} within {seconds:g} s, as event {event['EventId']}.")


@lab_command.command("withdraw")
@click.argument("name", metavar="NODE")
def withdraw(name: str) -> None:
    """Let the node's scheduled events be over, or called off: Azure does not tell which."""
    with changed_lab() as lab:
        count = events.withdraw(events.FILE, lab.node(name).name)
    console.print(f"{name}: {count} scheduled events are over.")


@lab_command.command("pause")
@click.argument("name", metavar="NODE")
@click.argument("seconds", metavar="SECONDS", type=click.FloatRange(0, MOST_SECONDS))
@click.option(
    "--step-clock-after",
    metavar="SECONDS",
    type=click.FloatRange(0, MOST_SECONDS),
    help="Set its wall clock right so long after it goes on; 0: at once [default: never].",
)
def pause(name: str, seconds: float, step_clock_after: float | None) -> None:
    """Let a virtual machine stand still, and its clocks with it, for SECONDS."""
    with changed_lab() as lab, stopped_by_terminate():
        box = node.box(lab.node(name))
        began, ended = machine.pause(box, seconds, step_clock_after)
    moments = [datetime.fromtimestamp(moment, timezone.utc) for moment in (began, ended)]
    first, last = (moment.isoformat(timespec="milliseconds") for moment in moments)
    console.print(f"{name} stood still from {first} to {last}.")


@lab_command.command("shell", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NODE")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the node as root, or a shell; its exit code is passed on."""
    line = node.command_inside(require_lab().node(name), command or ("bash", "--login"))
    os.execvp(line[0], line)  # noqa: S606 - there is no shell to fool


@lab_command.command("logs")
@click.argument("name", metavar="NODE")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
def logs(name: str, follow: bool) -> None:
    """Print the log of the node's agent, /var/log/bootstrap/logfile.log."""
    of = require_lab().node(name)
    tail = ["tail", "--lines=+1", *(["--follow=name", "--retry"] if follow else [])]
    if machine.is_machine(node.box(of)):  # its file system is its own
        line = node.command_inside(of, [*tail, LOG])
    elif (log := node.box(of).root / LOG.lstrip("/")).exists():
        line = [*tail, str(log)]
    else:
        raise Refusal(f"{name} has no log yet: its agent did not run so far.")
    os.execvp(line[0], line)  # noqa: S606


def wanted_lab(
    count: int | None,
    period_seconds: int | None,
    look_seconds: int | None,
    pause_seconds: int | None,
    machines: tuple[str, ...] = (),
    *,
    setup: tuple[str, ...] = (),
    with_demo: bool = False,
    **service: Any,
) -> Lab:
    """The lab to bring up: as asked, else as it is up, else as the checkout has it.

    Raises `Refusal` if another one is up: its nodes have their disks and settings already.
    """
    existing = running_lab()
    period = Settings.period_seconds if period_seconds is None else period_seconds
    look = look_of(period, look_seconds)
    if existing and period_seconds in (None, existing.plan.period_seconds):
        period = existing.plan.period_seconds
        look = existing.plan.look_seconds if look_seconds is None else look_seconds
    if (pause := pause_seconds) is None:
        pause = existing.plan.pause_seconds if existing else Settings.pause_seconds
    given = {name: value for name, value in service.items() if value not in (None, ())}
    asked = (service_of(existing.plan) if existing else {}) | given
    if count is not None:
        plan = lab_plan(period, look, pause, count=count, **asked)
    else:
        nodes = existing.plan.nodes if existing else read_nodes(NODES_FILE)
        plan = lab_plan(period, look, pause, nodes, **asked)
    before = existing or Lab(plan)
    files = application_of(setup, with_demo=with_demo) or before.setup
    machines_kept = frozenset(machines) or before.machines
    lab = Lab(plan, machines=machines_kept, setup=files, demo=with_demo or before.demo)
    for name in lab.machines:
        lab.node(name)
    if existing and existing != lab:
        raise Refusal(f"{existing} from {existing.checkout} is up: `lab down` first.")
    return lab


def application_of(setup: tuple[str, ...], *, with_demo: bool) -> Setup:
    """The files that were asked for, the demonstration's or the operator's; empty for none."""
    if setup and with_demo:
        raise Refusal("--demo sets up an application of its own: use it without --setup.")
    return demo.application() if with_demo else read_setup(setup)


def bring_up(lab: Lab) -> None:
    """Make what is not there: root file system, network, services, nodes; wait for the nodes."""
    network.refuse_taken_routes(lab.plan)
    if lab.machines:
        machine.require()
    lower = rootfs.path()
    if not lower.exists():
        with step(f"Building the root file system ({rootfs.codename()}, once)"):
            rootfs.build()
    if lab.machines and not kernel.path().exists():
        with step("Building what virtual machines boot (once)"):
            kernel.build()
    save(lab)
    with step("Network"):
        make_network(lab)
    with step("Metadata service, web site, load balancer"):
        release = publish_release(lab)
        cloud.start_metadata(lab.checkout, lab.plan)
        if lab.demo:
            cloud.start_collector(lab.checkout)
        cloud.start_web_site(lower)
        cloud.start_load_balancer(lower, lab.plan)
        cloud.wait_until_served(lab.demo)
    with step(f"Boot of {len(lab.plan.nodes)} nodes"):
        boot_nodes(lab, lower, release.allowed_signers)
    save_endpoints(lab)


def publish_release(lab: Lab) -> Release:
    """The agent of the checkout for the lab's nodes, signed with a key that the lab has for it.

    What the operator's verbs have changed since stays: order, drained nodes, and the like.
    """
    make_key(STATE)
    site, key, now = Folder(cloud.SITE), operators_key("", STATE), time.time()
    nodes, before = nodes_info(lab.plan), found_on(site, STATE, key)
    if before:
        wanted = of_cluster(renewed(before.release, now), nodes, agent())
    else:
        signers = signers_text([public_key(key)])
        wanted = first_release(lab.plan, nodes, agent(), signers, cluster=NAME)
    published = publish(site, before, wanted, key=key, now=now, code=agent())
    hold(STATE, published.after)
    return published.after.release


def make_network(lab: Lab) -> None:
    """Make what is not there; what lived in a namespace that is gone starts anew in the new one."""
    plan = lab.plan
    there = network.namespaces()
    if network.FABRIC not in there:
        container.stop_all()
        network.remove()
        there = []
        network.make_fabric(plan)
    for each in plan.nodes:
        if network.namespace(each) not in there:
            process.kill(each.name)
            network.make_node(plan, each, machine=each.name in lab.machines)


def boot_nodes(lab: Lab, lower: Path, allowed_signers: str) -> None:
    """Boot the nodes that do not run, all at the same time, and wait for them."""
    key = (STATE / "cluster.key").read_text(encoding="utf-8").strip()
    for each in lab.plan.nodes:
        document = user_data(
            each.name,
            nodes_info(lab.plan),
            bootstrap_url=BOOTSTRAP_URL,
            cluster_key=key,
            period_seconds=lab.plan.period_seconds,
            look_seconds=lab.plan.look_seconds,
            pause_seconds=lab.plan.pause_seconds,
            peer_address=lab.plan.peer_address,
            scheduled_events=lab.plan.scheduled_events,
            cluster_port=lab.plan.probe.port,
            cluster=NAME,
            allowed_signers=allowed_signers,
            setup=lab.setup,
            service=lab.plan.service,
        )
        if is_beside(document, lab.setup):
            serve_setup(lab)
        if each.name in lab.machines:
            node.install_machine(each, lab.plan, document)
        else:
            node.install(each, lower, document)
        node.power_on(each)
    wait_for_boot(lab.plan.nodes)


def serve_setup(lab: Lab) -> None:
    """Have the web site serve the application's files."""
    for name, content in web_names(lab.setup).items():
        Folder(cloud.SITE).write(name, content)


def wait_for_boot(nodes: Iterable[Node]) -> None:
    """Wait until the nodes have booted; a unit that failed there is worth a line, no refusal."""
    began = time.monotonic()
    for each in nodes:
        emulated = machine.is_machine(node.box(each))
        seconds = EMULATED_BOOT_SECONDS if emulated else BOOT_SECONDS
        if failed := node.wait_until_booted(each, began + seconds):
            console.print(f"{each.name} booted, but a unit failed: {failed}")


def tear_down() -> None:
    """Remove everything of a lab, whole or not; what is not there is no error."""
    container.stop_all()
    network.remove()
    remove_tree(STATE)
    if STATE.parent.exists():
        STATE.parent.rmdir()


@contextmanager
def changed_lab() -> Iterator[Lab]:
    """The lab that is up, while no other command changes it."""
    with lock():
        yield require_lab()


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show that something goes on, for how long, and at its end how long it took."""
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        progress.add_task(what, total=None)
        yield
    console.print(f"{what}: {time.monotonic() - began:.1f} s")


@contextmanager
def stopped_by_terminate() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end us as Ctrl-C does: with what we began cleaned up."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if not is_ignored(number)]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_ignored(number: signal.Signals) -> bool:
    """Whether who started us wants us to go on after this signal, as `nohup` does."""
    return signal.getsignal(number) is signal.SIG_IGN
