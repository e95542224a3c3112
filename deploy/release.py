"""A release: all that the web site tells the nodes, as data; its text, its rules, its changes.

Everything here is pure. `deploy.publish` signs a release and puts it on a web site.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from hashlib import sha256
from typing import Any

from agent.loader import worst_failover_seconds
from deploy import Refusal
from deploy.checkout import part
from deploy.nodes_info import NodesInfo, require_nodes
from deploy.plan import CLUSTER_NAME, Plan
from deploy.settings import Settings, times_of
from deploy.signing import same_key, signers_keys, signers_text

RELEASE_BYTES = 65_536
AGENT_BYTES = 1 << 20
MOST_GENERATIONS = 1_000_000_000
LONGEST_SECONDS = 7 * 24 * 3600
"""Of a preference or a maintenance: what is meant for ever is an order, or a drained node."""

FAILBACK_SECONDS = 24 * 3600
AGENT = "loader.py"
BUILD_DIGITS = 12
"""So many of an agent's SHA-256 tell it from others, in words and in what nodes say."""


# ---- What it says


@dataclass(frozen=True)
class File:
    """What a file must be, by its SHA-256 in hexadecimal digits, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Preference:
    """The node that is preferred to all others until then, in seconds of the wall clock."""

    node: str
    until: int


@dataclass(frozen=True)
class NodeSettings:
    """What all nodes have to agree about; `failback`: "auto", "never", or after so many seconds."""

    period_seconds: int
    look_seconds: int
    pause_seconds: int
    peer_address: str
    scheduled_events: bool
    failback: str | int = "auto"


@dataclass(frozen=True, eq=False)
class Release:
    """What is published, whole. `nodes` are in order of preference; `published` is for people."""

    cluster: str
    generation: int
    published: str
    files: Mapping[str, File]
    nodes: NodesInfo
    settings: NodeSettings
    allowed_signers: str
    drained: tuple[str, ...] = ()
    prefer: Preference | None = None
    maintenance_until: int | None = None  # seconds of the wall clock
    cluster_key: str | None = None  # the new one for who has the old one, `signing.wrapped`

    def __eq__(self, other: object) -> bool:
        """Whether it says the same: two mappings with another order of nodes would be equal."""
        return isinstance(other, Release) and release_text(self) == release_text(other)

    __hash__ = None  # type: ignore[assignment]


def release_text(release: Release) -> bytes:
    """The text of `release.json`: keys sorted, but for the nodes, whose order says something."""
    told = asdict(release)
    plain = {name: json.loads(json.dumps(told[name], sort_keys=True)) for name in sorted(told)}
    return (json.dumps({**plain, "nodes": told["nodes"]}, indent=1) + "\n").encode()


def release_of(data: bytes, where: str) -> Release:
    """The release of such a text; raises `Refusal` for what is none, or breaks a rule."""
    try:
        said = json.loads(data)
        settings, prefer = NodeSettings(**said.pop("settings")), said.pop("prefer")
        release = Release(
            **said
            | {"files": {name: File(**file) for name, file in said["files"].items()}}
            | {"drained": tuple(said["drained"])},
            settings=settings,
            prefer=Preference(**prefer) if prefer else None,
        )
        if {field.name for field in fields(Release)} - {"settings", "prefer"} != said.keys():
            raise ValueError("it lacks a part")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise Refusal(
            f"{where}: no release that this checkout reads ({error}): one of another version?"
        ) from error
    check(release, where)
    return release


def utc_text(seconds: float) -> str:
    """A moment as a release tells it."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def for_everybody(nodes: NodesInfo) -> dict[str, dict[str, str]]:
    """The nodes without their subscription's id: anybody may read the web site, nobody needs it."""
    key = "network_interface_id"
    return {
        name: {**entry, key: re.sub("(?i)^/subscriptions/[^/]*", "", entry[key])}
        for name, entry in nodes.items()
    }


def agent() -> bytes:
    """The agent of this checkout."""
    return part("agent/loader.py").encode()


def files_of(code: bytes) -> dict[str, File]:
    """What a release says of its files."""
    return {AGENT: File(sha256(code).hexdigest(), len(code))}


# ---- Its rules


def check(release: Release, where: str = "release") -> None:
    """Raise `Refusal` with the first rule that a release breaks by itself."""
    for rule in (check_frame, check_settings, check_nodes, check_operating, check_signers):
        if fault := next(rule(release), None):
            raise Refusal(f"{where}: {fault}")
    if len(release_text(release)) > RELEASE_BYTES:
        raise Refusal(f"{where}: more than {RELEASE_BYTES // 1024} KB: nodes take no larger one.")


def check_frame(release: Release) -> Iterator[str]:
    """Its name, number and files."""
    if not isinstance(release.cluster, str) or not CLUSTER_NAME.fullmatch(release.cluster):
        yield f"cluster {release.cluster!r}: use the name of a resource group, or lab."
    if not is_count(release.generation, MOST_GENERATIONS):
        yield f"generation {release.generation!r}: use a whole number, 1 or more."
    if release.files.keys() != {AGENT}:
        yield f"files {', '.join(release.files)}: a release has {AGENT}, and no other."
    for name, file in release.files.items():
        if not isinstance(file.sha256, str) or not re.fullmatch("[0-9a-f]{64}", file.sha256):
            yield f"{name}: its SHA-256 is no 64 hexadecimal digits."
        if not is_count(file.size, AGENT_BYTES):
            yield f"{name}: {file.size} bytes: nodes take 1 to {AGENT_BYTES}."
    if not isinstance(release.published, str):
        yield f"published {release.published!r}: use a time as text."


def check_settings(release: Release) -> Iterator[str]:
    """What all nodes have to agree about, as a set."""
    told = release.settings
    lengths = (told.period_seconds, told.look_seconds, told.pause_seconds)
    if not all(is_number(length) for length in lengths):
        yield f"period, look and pause {lengths}: use numbers of seconds."
    times_of(*lengths)
    if told.peer_address not in ("public", "private"):
        yield f"peer_address {told.peer_address!r}: use public or private."
    if not isinstance(told.scheduled_events, bool):
        yield f"scheduled_events {told.scheduled_events!r}: use true or false."
    if told.failback not in ("auto", "never") and not is_count(told.failback, FAILBACK_SECONDS):
        yield f"failback {told.failback!r}: use auto, never, or 1 to {FAILBACK_SECONDS} seconds."


def check_nodes(release: Release) -> Iterator[str]:
    """An odd number of them, with names and addresses of their own."""
    require_nodes(release.nodes, "nodes")
    yield from ()


def check_operating(release: Release) -> Iterator[str]:
    """Who is drained or preferred, and until when something is so."""
    names, drained, prefer = [*release.nodes], release.drained, release.prefer
    for name in [*drained, *([prefer.node] if prefer else [])]:
        if name not in names:
            yield f"{name!r} is no node of it: it has {', '.join(names)}."
    if len(set(drained)) < len(drained):
        yield f"drained {', '.join(drained)}: name each node once."
    if set(drained) == set(names):
        yield "all nodes are drained: nobody could be active; leave one out."
    if prefer and prefer.node in drained:
        yield f"{prefer.node} is drained and preferred at once: undrain it first."
    for what, until in ends(release).items():
        if until is not None and not is_count(until, 1 << 40):
            yield f"{what} until {until!r}: use whole seconds of the wall clock."


def check_signers(release: Release) -> Iterator[str]:
    """Who may sign the next one: somebody has to."""
    try:
        signers_keys(release.allowed_signers)
    except (AttributeError, ValueError) as error:
        yield f"{error}: each line is one operator's key, and there is one at least."
    key = release.cluster_key
    if key is not None and not (
        isinstance(key, str) and re.fullmatch("[A-Za-z0-9+/=]{1,400}", key)
    ):
        yield "cluster_key is no base64 of a key."


def check_change(before: Release, after: Release) -> None:
    """Raise `Refusal` where no order of steps leads from one to the other while nodes run."""
    if after.cluster != before.cluster:
        raise Refusal(
            f"cluster {after.cluster}: the web site has releases of {before.cluster}, and its"
            " nodes take no others."
        )
    check_members([*before.nodes], [*after.nodes])
    for name in ("period_seconds", "look_seconds", "pause_seconds"):
        check_fixed(name, before.settings, after.settings)


def check_members(before: list[str], after: list[str]) -> None:
    """Refuse another number of nodes, or other names."""
    if len(after) != len(before):
        raise Refusal(
            f"{len(after)} nodes instead of {len(before)}: the number can't change while they run,"
            " because majorities of two sizes need not overlap. Make a second cluster of"
            f" {len(after)} under another name, lead your clients to it, and remove this one."
        )
    if others := sorted(set(after) - set(before)):
        raise Refusal(
            f"{others[0]} is no node of this cluster ({', '.join(before)}): who replaces a node has"
            " its name, and other addresses."
        )


def check_fixed(name: str, before: NodeSettings, after: NodeSettings) -> None:
    """Refuse another value of what votes that are under way were promised with."""
    old, new = getattr(before, name), getattr(after, name)
    if old != new:
        raise Refusal(
            f"{name} = {new:g}: this cluster runs with {old:g}, and nodes that differ in it could"
            " be active at once or never, so it is fixed. Its worst-case failover is"
            f" {failover_seconds(before):.1f} s; with {name} = {new:g} it would be"
            f" {failover_seconds(after):.1f} s: for that make the cluster anew."
        )


def check_ends(release: Release, now: float) -> None:
    """Refuse a preference or a maintenance that is over, or lasts for longer than is wise."""
    for what, until in ends(release).items():
        if until is not None and not 0 < until - now <= LONGEST_SECONDS + 1:
            raise Refusal(
                f"{what} until {utc_text(until)}: use an end within"
                f" {LONGEST_SECONDS // 86_400} days; for longer change the order, or drain a node."
            )


def ends(release: Release) -> dict[str, int | None]:
    """When what is only so for a while is over."""
    preferred = release.prefer.until if release.prefer else None
    return {"a preference": preferred, "maintenance": release.maintenance_until}


def failover_seconds(settings: NodeSettings) -> float:
    """From a crash of the active node to its successor, at worst."""
    lengths = (settings.period_seconds, settings.look_seconds, settings.pause_seconds)
    return worst_failover_seconds(times_of(*lengths))


def is_count(value: object, most: int) -> bool:
    """Whether it is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def is_number(value: object) -> bool:
    """Whether it is a number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


# ---- The first one


def first_release(
    of: Plan | Settings, nodes: NodesInfo, code: bytes, signers: str, *, cluster: str
) -> Release:
    """The release of a cluster that has none yet; generation and time are given to it later."""
    settings = NodeSettings(
        period_seconds=of.period_seconds,
        look_seconds=of.look_seconds,
        pause_seconds=of.pause_seconds,
        peer_address=of.peer_address,
        scheduled_events=of.scheduled_events,
    )
    return Release(
        cluster=cluster,
        generation=1,
        published="",
        files=files_of(code),
        nodes=for_everybody(nodes),
        settings=settings,
        allowed_signers=signers,
    )


# ---- Its changes

Change = Callable[[Release], Release]
"""What an operator asks for; raises `Refusal` where the release has no place for it."""


def renewed(release: Release, now: float) -> Release:
    """The same without what is over: where the next one begins."""
    prefer, until = release.prefer, release.maintenance_until
    return replace(
        release,
        prefer=prefer if prefer and prefer.until > now else None,
        maintenance_until=until if until and until > now else None,
        cluster_key=None,
    )


def of_cluster(release: Release, nodes: NodesInfo, code: bytes, **settings: Any) -> Release:
    """With the agent of a checkout and the nodes' addresses of now; the published order stays."""
    new = for_everybody(nodes)
    check_members([*release.nodes], [*new])
    return replace(
        release,
        files=files_of(code),
        nodes={name: new[name] for name in release.nodes},
        settings=replace(release.settings, **settings),
    )


def ordered(release: Release, names: tuple[str, ...]) -> Release:
    """With another order of preference."""
    if sorted(names) != sorted(release.nodes):
        raise Refusal(
            f"order {' '.join(names)}: name each node once, the most preferred first:"
            f" {', '.join(release.nodes)}."
        )
    return replace(release, nodes={name: release.nodes[name] for name in names})


def drained(release: Release, name: str) -> Release:
    """With a node that gives up being active, and still votes."""
    names = {*release.drained, known(release, name)}
    prefer = release.prefer if release.prefer and release.prefer.node != name else None
    return replace(release, drained=tuple(n for n in release.nodes if n in names), prefer=prefer)


def undrained(release: Release, name: str) -> Release:
    """With a node that may be active again."""
    known(release, name)
    return replace(release, drained=tuple(n for n in release.drained if n != name))


def preferring(release: Release, name: str, until: int) -> Release:
    """With a node that is preferred to all others until then."""
    if release.maintenance_until:
        raise Refusal(
            f"maintenance is on until {utc_text(release.maintenance_until)}, and the role stays"
            " where it is: `maintenance off` first."
        )
    if known(release, name) in release.drained:
        raise Refusal(f"{name} is drained: `undrain {name}` first.")
    return replace(release, prefer=Preference(name, until))


def maintained(release: Release, until: int | None) -> Release:
    """With a maintenance until then, or with none."""
    return replace(release, maintenance_until=until)


def failing_back(release: Release, failback: str | int) -> Release:
    """With another rule for when a more preferred node takes the role back."""
    return replace(release, settings=replace(release.settings, failback=failback))


def changed_lines(before: Release | None, after: Release) -> list[str]:
    """What is new, a line for each part, for people; of a first release all that is not usual."""
    old, new = (told(release) if release else {} for release in (before, after))
    return [
        f"{name}: {old[name]} -> {value}" if name in old else f"{name}: {value}"
        for name, value in new.items()
        if value != old.get(name, NOTHING)
    ]


NOTHING = "none"


def told(release: Release) -> dict[str, str]:
    """The parts of a release that operators change, in words."""
    prefer, until = release.prefer, release.maintenance_until
    settings = {name: str(value) for name, value in asdict(release.settings).items()}
    places = {
        name: f"{entry['private_ip']} {entry['public_ip']}" for name, entry in release.nodes.items()
    }
    return {
        "agent": release.files[AGENT].sha256[:BUILD_DIGITS],
        "order": " ".join(release.nodes),
        **dict(sorted(places.items())),
        **settings,
        "drained": " ".join(release.drained) or NOTHING,
        "preferred": f"{prefer.node} until {utc_text(prefer.until)}" if prefer else NOTHING,
        "maintenance": f"until {utc_text(until)}" if until else NOTHING,
        "operators": ", ".join(map(key_words, signers_keys(release.allowed_signers))),
        "cluster's key": "a new one" if release.cluster_key else NOTHING,
    }


def key_words(key: str) -> str:
    """A public key, for people: its comment, or the end of it."""
    kind, data, *comment = key.split(" ", 2)
    return comment[0] if comment else f"{kind} ...{data[-8:]}"


def signed_also_by(release: Release, key: str) -> Release:
    """With one more operator; `key`: a public key, as `signing.public_key` reads it."""
    keys = signers_keys(release.allowed_signers)
    if any(same_key(one, key) for one in keys):
        return release
    return replace(release, allowed_signers=signers_text([*keys, key]))


def signed_no_more_by(release: Release, key: str) -> Release:
    """With one operator less; raises `Refusal` for who is none, or the last one."""
    keys = signers_keys(release.allowed_signers)
    rest = [one for one in keys if not same_key(one, key)]
    if rest == keys:
        raise Refusal(
            f"{key_words(key)} is no operator: they are {', '.join(map(key_words, keys))}."
        )
    if not rest:
        raise Refusal("that is the last operator's key: nobody could sign a release any more.")
    return replace(release, allowed_signers=signers_text(rest))


def with_cluster_key(release: Release, key: str) -> Release:
    """With a new key of the cluster, as `signing.wrapped` hides it."""
    return replace(release, cluster_key=key)


def known(release: Release, name: str) -> str:
    """The name of a node; raises `Refusal` with the names there are."""
    if name not in release.nodes:
        raise Refusal(f"no node {name!r}: the cluster has {', '.join(release.nodes)}.")
    return name
