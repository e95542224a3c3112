"""The operator's verbs that publish a release, and wait until the nodes go by it."""

import json
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from deploy import Refusal
from deploy.azure.cli import azure_verbs
from deploy.azure.state import State, state_of_cluster
from deploy.checkout import NODES_FILE
from deploy.lab import NAME as LAB_NAME
from deploy.lab import STATE as LAB_STATE
from deploy.nodes_info import read_nodes_info, write_nodes_info
from deploy.operate import View, late, look, looks, read_cluster
from deploy.publish import SITE, Folder, Newest, Publication, Site, found_on, hold, publish
from deploy.release import (
    AGENT,
    BUILD_DIGITS,
    Change,
    Release,
    agent,
    changed_lines,
    drained,
    failing_back,
    failover_seconds,
    first_release,
    maintained,
    of_cluster,
    ordered,
    preferring,
    renewed,
    signed_also_by,
    signed_no_more_by,
    undrained,
    with_cluster_key,
)
from deploy.settings import SETTINGS_FILE, Settings, read_settings, settings_of
from deploy.signing import operators_key, public_key, signers_text, wrapped

NOT_TAKEN = 1
"""Exit code where a node that is reached does not go by the release in time."""

PERIODS, SLACK_SECONDS = 4, 20.0
"""A node asks once a run and is told of its peers at the next look; one whose agent knows of no
releases runs the new one from the run after next."""

SERVED_SECONDS = 12.0
"""The load balancer's probe follows whoever took the role within two of its intervals."""

UNREACHED_LOOKS = 3
Command = TypeVar("Command", bound=Callable[..., Any])


# ---- Options


def duration(text: str) -> int:
    """A length of time like 90s, 30m, 1h or 2d, in seconds."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found:
        raise click.BadParameter(f"{text!r}: use a time like 90s, 30m, 1h or 2d.")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]


def ends_after(seconds: int) -> int:
    """When a time from now is over: not before, though a release has whole seconds alone."""
    return math.ceil(time.time()) + seconds


def time_option(usual: str) -> Callable[[Command], Command]:
    """Give a verb the option that says for how long."""
    return click.option(
        *("--for", "seconds"), type=duration, default=usual, show_default=True, help="How long."
    )


def release_options(command: Command) -> Command:
    """Give a verb the options that say which cluster, signed by whom, and told how."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="What happened, as JSON."),
        key_option,
        click.option(
            "--cluster",
            "folder",
            type=Path,
            default=LAB_STATE,
            show_default=True,
            help="The cluster's state folder.",
        ),
    ):
        command = option(command)
    return command


key_option = click.option(
    "--key",
    default="",
    help="File of the SSH key that signs.  [signing_key in cluster.toml; of a lab its own; else the"
    " first in ~/.ssh]",
)


def key_of(given: str, folder: Path | None) -> Path:
    """The operator's key: as asked for, as in `cluster.toml`, or a usual one."""
    of_file = read_settings(SETTINGS_FILE) if not given and SETTINGS_FILE.exists() else {}
    return operators_key(given or str(of_file.get("signing_key", "")), folder)


# ---- What all of them do


@contextmanager
def site_of(folder: Path) -> Iterator[Site]:
    """The web site of the cluster whose state folder this is: a folder in it, or on Azure."""
    if (folder / SITE).is_dir():
        yield Folder(folder / SITE)
    else:
        with azure_verbs().web_site(State(folder).endpoints()) as site:
            yield site


@dataclass(frozen=True)
class Order:
    """Which cluster, signed by which key, and whether told to people or to programs."""

    folder: Path
    key: str
    as_json: bool

    def say(self, line: str) -> None:
        """Tell people a line, out of the way of JSON."""
        click.echo(line, err=self.as_json)


@dataclass(frozen=True)
class Asked:
    """What a verb changes, and what has to be so in the end, with words for where it is not."""

    change: Change
    is_so: Callable[[View, Release], bool] = lambda _view, _release: True
    if_not: str = ""


def carry_out(order: Order, asked: Asked) -> None:
    """Publish what was asked for, wait until the nodes go by it, say what happened, and exit."""
    read_cluster(order.folder)
    key = key_of(order.key, order.folder)
    with site_of(order.folder) as site:
        before = found_on(site, order.folder, key)
        if before is None:
            raise Refusal(f"{site.where}: has no release yet: `publish` makes the first one.")
        wanted = asked.change(renewed(before.release, time.time()))
        published = announced(order, site, before, wanted, key=key)
    follow(order, published, asked)


def announced(
    order: Order,
    site: Site,
    before: Newest | None,
    wanted: Release,
    *,
    key: Path,
    code: bytes | None = None,
) -> Publication:
    """Say what the next release brings, publish it, and say what was done."""
    now = time.time()
    if lines := changed_lines(renewed(before.release, now) if before else None, wanted):
        lines += warnings(before.release if before else None, wanted)
        lines.append(f"signing with {key}: it may ask for a passphrase or a touch")
    for line in lines:
        order.say(line)
    published = publish(site, before, wanted, key=key, now=now, code=code)
    release = published.after.release
    for name in published.written:
        order.say(f"published {site.where}/{name}")
    if published.after is before:
        order.say(f"Release {release.generation} of {release.cluster} says so already.")
    else:
        order.say(
            f"Release {release.generation} of {release.cluster} is published. Worst-case failover"
            f" {failover_seconds(release.settings):.1f} s."
        )
    return published


def warnings(before: Release | None, wanted: Release) -> list[str]:
    """What an operator may not have thought of."""
    able = [name for name in wanted.nodes if name not in wanted.drained]
    if len(able) != 1 or (before and before.drained == wanted.drained):
        return []
    return [f"only {able[0]} may become active now: if it is lost, nobody is"]


def follow(order: Order, published: Publication, asked: Asked, *, unreached: int = 1) -> None:
    """Remember a release, wait for the nodes, say what became of it, and exit with a code.

    `unreached`: the exit code where no node is reached from here.
    """
    hold(order.folder, published.after)
    release = published.after.release
    if release.cluster_key and not (order.folder / SITE).is_dir():
        state = State(order.folder)
        azure_verbs().tag_key(state.endpoints(), state.key())
    view = taken(order, release, asked)
    for line in outcome(view, release, asked):
        order.say(line)
    done = is_done(view, release, asked)
    if order.as_json:
        click.echo(json.dumps(told(published, view, done=done), indent=2))
    code = NOT_TAKEN if is_anybody_reached(view) else unreached
    click.get_current_context().exit(0 if done else code)


def is_anybody_reached(view: View) -> bool:
    """Whether any node has told anything of itself."""
    return any(node.is_reached for node in view.nodes)


def is_done(view: View, release: Release, asked: Asked) -> bool:
    """Whether every node that is reached goes by a release, and what was asked for is so."""
    behind = late(view, release.generation)
    return is_anybody_reached(view) and not behind and asked.is_so(view, release)


def taken(order: Order, release: Release, asked: Asked) -> View:
    """The cluster once every node that is reached goes by a release, or when time is up.

    And once the load balancer has followed, or that took too long.
    """
    began, named, console = time.monotonic(), set[str](), Console(stderr=True)
    done_seconds = 0.0
    seconds = PERIODS * release.settings.period_seconds + SLACK_SECONDS
    waiting = f"waiting for the nodes, {seconds:.0f} s at most"
    with console.status(waiting) if console.is_terminal else nullcontext():
        for number, view in enumerate(looks(read_cluster(order.folder), seconds), 1):
            behind = late(view, release.generation)
            for node in (node.node for node in view.nodes if node.is_reached):
                if node not in behind and node not in named:
                    order.say(f"{time.monotonic() - began:6.1f} s  {node} goes by it")
                    named.add(node)
            nobody = number >= UNREACHED_LOOKS and not is_anybody_reached(view)
            if nobody or is_refused(behind, release):
                break
            if is_done(view, release, asked):
                done_seconds = done_seconds or time.monotonic()
                if view.verdict == "served" or time.monotonic() - done_seconds > SERVED_SECONDS:
                    break
    return view


def is_refused(behind: dict[str, str], release: Release) -> bool:
    """Whether whoever has not taken a release never will."""
    mine = f"generation {release.generation}:"
    return bool(behind) and all(why.startswith(mine) for why in behind.values())


def outcome(view: View, release: Release, asked: Asked) -> Iterator[str]:
    """What became of a release, for people."""
    behind = late(view, release.generation)
    for node in view.nodes:
        if not node.is_reached:
            yield f"{node.node} is not reached ({node.reason}): it takes it when it returns."
        elif node.node in behind:
            yield f"{node.node} does not go by release {release.generation}: {behind[node.node]}."
        elif node.release and node.release.runs != (build := build_of(release)):
            yield f"{node.node} runs {node.release.runs} and comes to {build} in its turn."
    if not is_anybody_reached(view):
        yield "No node is reached from here: whether any has taken it, is not known."
    elif not behind and not asked.is_so(view, release):
        yield f"All nodes that are reached go by it, but {asked.if_not}."
    yield view.sentence


def build_of(release: Release) -> str:
    """What a node calls the agent of a release: the beginning of its SHA-256."""
    return release.files[AGENT].sha256[:BUILD_DIGITS]


def told(published: Publication, view: View, *, done: bool) -> dict[str, Any]:
    """What became of a release, for programs."""
    release, before = published.after.release, published.before
    behind = late(view, release.generation)
    return {
        "cluster": release.cluster,
        "generation": release.generation,
        "changes": changed_lines(before.release if before else None, release),
        "done": done,
        "nodes": {
            node.node: {"reached": node.is_reached, "why_not": behind.get(node.node, "")}
            for node in view.nodes
        },
        "active": view.active,
        "sentence": view.sentence,
    }


# ---- publish


@click.command("publish")
@click.option("--to", "directory", type=Path, help="A web server's folder; without: the cluster's.")
@click.option(
    "--cluster",
    "folder",
    type=Path,
    show_default="of the cluster with the default name",
    help="The cluster's state folder.",
)
@click.option("--nodes-info", type=Path, help="Other addresses, and the order, of the nodes.")
@click.option("--config", type=Path, help=f"Settings of a first release.  [{SETTINGS_FILE}]")
@key_option
@click.option("--json", "as_json", is_flag=True, help="What happened, as JSON.")
def publish_command(
    directory: Path | None,
    folder: Path | None,
    nodes_info: Path | None,
    config: Path | None,
    *,
    key: str,
    as_json: bool,
) -> None:
    """Sign the agent of this checkout as a release, publish it, and wait for the nodes.

    The order, drained nodes and whatever else the other verbs have changed stays. A node is
    replaced by its new addresses in --nodes-info. To go back, publish from an older checkout.

    Exit code 0: every node that is reached goes by it; 1: one does not in time; 2: error.
    """
    if directory:
        publish_to_folder(Order(directory, key, as_json), folder, nodes_info, config)
    else:
        folder = folder or state_of_cluster(Settings.name).folder
        publish_to_cluster(Order(folder, key, as_json), nodes_info, config)


def publish_to_folder(
    order: Order, state: Path | None, nodes_info: Path | None, config: Path | None
) -> None:
    """Publish to a folder that any web server serves; nobody knows whose nodes ask there."""
    key, site = key_of(order.key, state), Folder(order.folder)
    try:
        before = found_on(site, state, key)
        nodes = nodes_info or (None if before else NODES_FILE)
        settings = settings_of(config, {})
        wanted = next_release(before, nodes, settings, cluster=settings.name, key=key)
        published = announced(order, site, before, wanted, key=key, code=agent())
        hold(state, published.after)
    except OSError as error:
        raise Refusal(f"{order.folder}: can't be written: {error}.") from error
    if order.as_json:
        release = published.after.release
        click.echo(json.dumps({"cluster": release.cluster, "generation": release.generation}))


def publish_to_cluster(order: Order, nodes_info: Path | None, config: Path | None) -> None:
    """Publish to a cluster's web site, and wait for its nodes."""
    state = State(order.folder)
    with site_of(order.folder) as site:
        key = key_of(order.key, order.folder)
        before = found_on(site, order.folder, key)
        nodes = nodes_info or (None if before else state.nodes_file)
        settings, cluster = Settings(), ""
        if before is None:
            settings, is_lab = settings_of(config, {}), (order.folder / SITE).is_dir()
            cluster = LAB_NAME if is_lab else state.endpoints()["resource_group"]
            refuse_other_times(look(read_cluster(order.folder)), settings)
        wanted = next_release(before, nodes, settings, cluster=cluster, key=key)
        published = announced(order, site, before, wanted, key=key, code=agent())
    if nodes_info and not (order.folder / SITE).is_dir():
        write_nodes_info(state.nodes_file, read_nodes_info(nodes_info), folder_mode=0o700)
    follow(order, published, Asked(lambda release: release), unreached=0)


def next_release(
    before: Newest | None, nodes_info: Path | None, settings: Settings, *, cluster: str, key: Path
) -> Release:
    """The agent of the checkout for the nodes of a file, or for those of the newest release."""
    nodes = read_nodes_info(nodes_info) if nodes_info else {}
    if before is None:
        signers = signers_text([public_key(key)])
        return first_release(settings, nodes, agent(), signers, cluster=cluster)
    release = of_cluster(
        renewed(before.release, time.time()), nodes or before.release.nodes, agent()
    )
    return ordered(release, tuple(nodes)) if nodes else release


def refuse_other_times(view: View, settings: Settings) -> None:
    """Refuse a first release with other times than those that the nodes run with."""
    for node in view.nodes:
        for name in ("period_seconds", "look_seconds", "pause_seconds"):
            runs, said = getattr(node, name), getattr(settings, name)
            if node.is_reached and runs is not None and runs != said:
                raise Refusal(
                    f"{name} = {said:g}, but {node.node} runs with {runs:g}, and that is fixed:"
                    f" write {name} = {runs:g} into {SETTINGS_FILE}."
                )


# ---- The order, and who may be active


@click.command("order")
@click.argument("names", metavar="NODE...", nargs=-1, required=True)
@release_options
def order_command(names: tuple[str, ...], folder: Path, key: str, *, as_json: bool) -> None:
    """Make this the order of preference: name every node, the most preferred first."""
    carry_out(Order(folder, key, as_json), moving(lambda release: ordered(release, names)))


def moving(change: Change) -> Asked:
    """A change after which the role goes to whoever is first now, unless a rule keeps it."""
    return Asked(change, leads, "the first of the order that could serve is not active")


def leads(view: View, release: Release) -> bool:
    """Whether the first node that may be active is, where nothing keeps the role elsewhere."""
    if release.prefer or release.maintenance_until or release.settings.failback != "auto":
        return True
    able = {node.node for node in view.nodes if node.role != "unknown"}
    first = [name for name in release.nodes if name in able - {*release.drained}]
    return view.active in first[:1]


@click.command("drain")
@click.argument("name", metavar="NODE")
@release_options
def drain_command(name: str, folder: Path, key: str, *, as_json: bool) -> None:
    """Let NODE give up being active, until `undrain`; it still votes."""
    asked = Asked(
        lambda release: drained(release, name),
        lambda view, _: view.active not in {None, name},
        "no other node is active",
    )
    carry_out(Order(folder, key, as_json), asked)


@click.command("undrain")
@click.argument("name", metavar="NODE")
@release_options
def undrain_command(name: str, folder: Path, key: str, *, as_json: bool) -> None:
    """Let NODE be active again, as its place in the order says."""
    carry_out(Order(folder, key, as_json), moving(lambda release: undrained(release, name)))


@click.command("switchover")
@click.option("--to", "name", metavar="NODE", help="[the next in the order that may be active]")
@time_option("1h")
@release_options
def switchover_command(
    name: str | None, seconds: int, folder: Path, key: str, *, as_json: bool
) -> None:
    """Prefer another node to all others for a while; then the order counts again."""
    view = look(read_cluster(folder))

    def change(release: Release) -> Release:
        return preferring(release, name or successor(release, view), ends_after(seconds))

    asked = Asked(
        change,
        lambda view, release: view.active == (release.prefer and release.prefer.node),
        "the preferred node is not active",
    )
    carry_out(Order(folder, key, as_json), asked)


def successor(release: Release, view: View) -> str:
    """The most preferred node that is there, not drained, and not active."""
    there = {node.node for node in view.nodes if node.role == "passive"} - {*release.drained}
    name = next((name for name in release.nodes if name in there), None)
    if name is None:
        raise Refusal("no other node is seen that could take the role: `status` says why.")
    return name


@click.group("maintenance")
def maintenance() -> None:
    """Keep the role where it is for a while: nobody takes it from an active node that is well."""


@maintenance.command("on")
@time_option("30m")
@release_options
def maintenance_on(seconds: int, folder: Path, key: str, *, as_json: bool) -> None:
    """No failback, no switchover and no new agent while it lasts.

    An active node that is lost, drained, or announced by Azure, has a successor as ever.
    """
    asked = Asked(lambda release: maintained(release, ends_after(seconds)))
    carry_out(Order(folder, key, as_json), asked)


@maintenance.command("off")
@release_options
def maintenance_off(folder: Path, key: str, *, as_json: bool) -> None:
    """End it before its time."""
    carry_out(Order(folder, key, as_json), Asked(lambda release: maintained(release, None)))


@click.command("failback")
@click.argument("rule", type=click.Choice(["auto", "after", "never"]))
@click.argument("seconds", type=int, required=False)
@release_options
def failback_command(
    rule: str, seconds: int | None, folder: Path, key: str, *, as_json: bool
) -> None:
    """When a more preferred node takes the role back: at once, `after` SECONDS, or never."""
    if (rule == "after") != (seconds is not None):
        raise Refusal("failback: use `auto`, `never`, or `after` with a number of seconds.")
    value = rule if seconds is None else seconds
    carry_out(Order(folder, key, as_json), Asked(lambda release: failing_back(release, value)))


# ---- Keys


@click.group("keys")
def keys() -> None:
    """Who may sign releases, and the key that the nodes sign their markers with."""


@keys.command("add")
@click.argument("file", type=Path)
@release_options
def keys_add(file: Path, folder: Path, key: str, *, as_json: bool) -> None:
    """Let the owner of the public key in FILE sign releases, too."""
    public = public_key(file)
    carry_out(Order(folder, key, as_json), Asked(lambda release: signed_also_by(release, public)))


@keys.command("remove")
@click.argument("file", type=Path)
@release_options
def keys_remove(file: Path, folder: Path, key: str, *, as_json: bool) -> None:
    """Take no more releases that the owner of the public key in FILE signs."""
    public = public_key(file)
    asked = Asked(lambda release: signed_no_more_by(release, public))
    carry_out(Order(folder, key, as_json), asked)


@keys.command("rotate")
@release_options
def keys_rotate(folder: Path, key: str, *, as_json: bool) -> None:
    """Give the nodes a new key for their markers, hidden with the one they have.

    Who knows the old key and can read the web site knows the new one: this is for routine. After a
    leak bring a new key to each node by hand, or make the cluster anew.
    """
    key_file = State(folder).key_file
    if State(folder).key() is None:
        raise Refusal(f"{key_file}: not there: copy it from the computer that has it.")

    def change(release: Release) -> Release:
        return with_cluster_key(release, wrapped(secrets.token_hex(32), key_file))

    carry_out(Order(folder, key, as_json), Asked(change))


COMMANDS = (
    *(publish_command, order_command, drain_command, undrain_command, switchover_command),
    *(maintenance, failback_command, keys),
)
