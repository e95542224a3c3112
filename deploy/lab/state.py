"""What a running lab is made of, kept in files, and the lock that one command at a time holds."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy import Refusal
from deploy.application import Setup
from deploy.checkout import CHECKOUT
from deploy.files import read_object, write_json, write_whole
from deploy.lab import OPERATOR, PUBLIC_NETWORK, STATE
from deploy.lab.cloud import STATISTICS_PORT, endpoints
from deploy.nodes_info import nodes_info, read_nodes, write_nodes_info
from deploy.plan import Node, Plan, plan_of
from deploy.ports import Port
from deploy.settings import SERVICE, Settings

MACHINE = "/run"
REACHED = ("ports", "frontend", "cluster_port")
"""The settings that say how the application is reached."""

TOOLS = ("ip", "mmdebstrap", "nft", "nsenter", "ssh-keygen", "systemd-nspawn")


@dataclass(frozen=True)
class Lab:
    """What was asked for at `lab up`; it stays so until `lab down`."""

    plan: Plan
    checkout: Path = CHECKOUT
    machines: frozenset[str] = frozenset()  # the nodes that are virtual machines
    setup: Setup = field(default_factory=dict)
    demo: bool = False  # `setup` is the demonstration, and its collector runs

    def node(self, name: str) -> Node:
        """The node of that name; raises `Refusal` with the names there are."""
        for node in self.plan.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.plan.nodes)
        raise Refusal(f"no node {name!r} in this lab: it has {names}.")

    def __str__(self) -> str:
        plan = self.plan
        machines = f" ({', '.join(sorted(self.machines))} as virtual machine)" * bool(self.machines)
        return (
            f"a lab of {len(plan.nodes)} nodes{machines} with a period of {plan.period_seconds} s"
            f", a look every {plan.look_seconds} s and pauses of {plan.pause_seconds} s absorbed"
            f"{', with the demonstration' * self.demo}"
        )


def lab_plan(
    period_seconds: int,
    look_seconds: int,
    pause_seconds: int,
    nodes: tuple[Node, ...] = (),
    *,
    count: int = Settings.nodes,
    **service: Any,
) -> Plan:
    """The defaults with this machine as the operator's; of `nodes`, or `count` new ones.

    `service`: the settings of REACHED and SERVICE that are not as usual.
    """
    if "all" in service.get("ports", ()):
        raise Refusal("ports = all: the lab's load balancer forwards ports that are named alone.")
    clients = {"http_from": ()} if service.get("frontend") == "internal" else {}
    settings = Settings(
        **clients | service,
        nodes=count,
        ssh_from=(f"{OPERATOR}/32",),
        period_seconds=period_seconds,
        look_seconds=look_seconds,
        pause_seconds=pause_seconds,
    )
    plan = plan_of(settings, nodes, public_network=PUBLIC_NETWORK)
    if plan.frontend == "public" and Port("Tcp", STATISTICS_PORT) in plan.ports:
        raise Refusal(
            f"ports = {STATISTICS_PORT}: the lab's load balancer has its statistics there: use"
            " another one in the lab."
        )
    return plan


def service_of(plan: Plan) -> dict[str, Any]:
    """The settings of REACHED and SERVICE, of a lab."""
    return {
        **plan.service,
        "ports": tuple(map(str, plan.ports)),
        "frontend": plan.frontend,
        "cluster_port": plan.probe.port,
    }


def save(lab: Lab) -> None:
    """Keep what the lab is, and make its cluster key. Not yet what says that it is up."""
    settings = {
        **service_of(lab.plan),
        "period_seconds": lab.plan.period_seconds,
        "look_seconds": lab.plan.look_seconds,
        "pause_seconds": lab.plan.pause_seconds,
        "checkout": str(lab.checkout),
        "machines": sorted(lab.machines),
        "setup": [*lab.setup],
        "demo": lab.demo,
    }
    for name, content in lab.setup.items():
        write_whole(STATE / "setup" / name, content)
    write_json(STATE / "settings.json", settings)
    write_nodes_info(STATE / "nodes_info.json", nodes_info(lab.plan))
    if not (STATE / "cluster.key").exists():
        write_whole(STATE / "cluster.key", f"{secrets.token_hex(32)}\n".encode(), mode=0o600)


def save_endpoints(lab: Lab) -> None:
    """Say where the lab's services are: the last file of `lab up`, so it means: the lab is up."""
    write_json(STATE / "endpoints.json", endpoints(lab.plan, demo=lab.demo))


def is_started() -> bool:
    """Whether anything of a lab is there, be it whole or not."""
    return STATE.exists()


def running_lab() -> Lab | None:
    """The lab that is up; None where there is none, or only what a crashed `lab up` left."""
    if not (STATE / "endpoints.json").exists():
        return None
    said = read_object(STATE / "settings.json")
    nodes = read_nodes(STATE / "nodes_info.json")
    try:
        period_seconds = int(said["period_seconds"])
        # A lab from before there were looks: its nodes look once a run.
        look_seconds = int(said.get("look_seconds", period_seconds))
        # One from before pauses were absorbed: its nodes' agent, once it is ours, does as usual.
        pause_seconds = int(said.get("pause_seconds", Settings.pause_seconds))
        service = {name: said[name] for name in (*REACHED, *SERVICE) if name in said}
        lists = {name: tuple(value) for name, value in service.items() if isinstance(value, list)}
        plan = lab_plan(period_seconds, look_seconds, pause_seconds, nodes, **service | lists)
        setup = {name: (STATE / "setup" / name).read_bytes() for name in said.get("setup", ())}
        machines = frozenset(said.get("machines", ()))
        return Lab(plan, Path(said["checkout"]), machines, setup, said.get("demo") is True)
    except (KeyError, TypeError, ValueError) as error:
        raise Refusal(f"{STATE}: not what `lab up` writes: `lab down` removes it.") from error


def require_lab() -> Lab:
    """The lab that is up. Raises `Refusal` where there is none, or without root."""
    require_root()
    lab = running_lab()
    if lab is None:
        raise Refusal("no lab is up: `sudo python -m deploy lab up` makes one.")
    return lab


def require_root() -> None:
    """Raise `Refusal` without root or without the programs that the lab is made with."""
    if os.geteuid() != 0:
        raise Refusal("the lab needs root, for its network and nodes: run it with sudo.")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise Refusal(
            f"{', '.join(missing)} not found: `apt-get install systemd-container mmdebstrap"
            " nftables iproute2 util-linux openssh-client` brings what the lab needs."
        )


@contextmanager
def lock() -> Iterator[None]:
    """Let one command at a time change the lab; raises `Refusal` while another one does.

    The lock is on a folder that every machine has, so `lab down` leaves no lock file behind.
    """
    import fcntl  # noqa: PLC0415 - the other verbs are for any computer

    require_root()
    descriptor = os.open(MACHINE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal("another `lab` command is at work: wait until it ends.") from None
        yield
    finally:
        os.close(descriptor)
