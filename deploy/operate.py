"""A cluster as seen from outside: asking, and what the answers mean.

Each node is asked for `/probe.html` and `/status.json`, the load balancer for whom it serves.
Unknown counts against: nobody is called active on old or half news.
"""

import contextlib
import csv
import itertools
import json
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

from deploy import Refusal
from deploy.files import read_object
from deploy.nodes_info import read_nodes
from deploy.plan import Node
from deploy.ports import HTTP_PORT
from deploy.settings import Settings, times_of

TIMEOUT_SECONDS = 2.0
ASKED = ("http", "tcp", "udp")
"""How a load balancer is asked: for whom it serves, for a connection, not at all."""
LIMIT_BYTES = 65_536  # the status of a node with a hundred peers is about 10 KB
ONE_LOOK = times_of(Settings.period_seconds, Settings.period_seconds, 0)
"""For what an agent from before there were looks does not say: of one look a run."""


# ---- Where to ask


@dataclass(frozen=True)
class Watched:
    """The nodes, and the URLs of the load balancer and (where it has one) of its statistics.

    The load balancer's is one of http: where a node's own web server answers behind it, of tcp:
    where an application does, or of udp: where nothing can be asked (`ports.url_of`).
    """

    nodes: tuple[Node, ...]
    load_balancer: str
    load_balancer_stats: str | None
    cluster_port: int
    is_internal: bool
    collector: str | None = None  # of the lab's demonstration: says who writes


def read_cluster(state: Path) -> Watched:
    """The cluster whose state folder holds `nodes_info.json` and `endpoints.json`.

    Raises `Refusal` where there is none, or a file is not what it should be.
    """
    if not state.is_dir():
        raise Refusal(
            f"no cluster at {state}: run `lab up` first, or name its state folder with --cluster."
        )
    endpoints = read_object(state / "endpoints.json")
    nodes = read_nodes(state / "nodes_info.json")
    balancer, stats = endpoints.get("load_balancer"), endpoints.get("load_balancer_stats")
    if not _is_url(balancer, *ASKED) or not (stats is None or _is_url(stats, "http")):
        raise Refusal(
            f"{state / 'endpoints.json'}: load_balancer (and load_balancer_stats, if any) must be"
            " a URL that begins with http://, or with tcp:// or udp:// and has a port."
        )
    port = str(endpoints.get("cluster_port", HTTP_PORT))
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise Refusal(
            f"{state / 'endpoints.json'}: cluster_port {port!r} must be a port, from 1 to 65535."
        )
    internal = endpoints.get("frontend") == "internal"
    collector = endpoints.get("collector")
    if not (collector is None or _is_url(collector, "http")):
        raise Refusal(f"{state / 'endpoints.json'}: collector must be a URL of http://.")
    return Watched(nodes, str(balancer), stats, int(port), internal, collector)


def _is_url(value: object, *schemes: str) -> bool:
    try:
        parts = urlsplit(str(value))
        named = bool(parts.port) if parts.scheme != "http" else parts.port != 0
        return parts.scheme in schemes and bool(parts.hostname) and named
    except ValueError:
        return False


# ---- Asking


@dataclass(frozen=True)
class Fetched:
    """What a GET brought: a code with date and body, or the problem in words."""

    code: int | None = None
    date: str = ""
    body: bytes = b""
    problem: str = ""

    @property
    def words(self) -> str:
        """What came back, for a sentence."""
        return self.problem or f"answer {self.code}"


def get(url: str) -> Fetched:
    """One GET, straight to the server: never longer than TIMEOUT_SECONDS, nor over LIMIT_BYTES.

    The timeout of an HTTP library is one of each read, and a server that sends a byte a second
    outlives it; so a timer hangs up, which also bounds the headers.
    """
    started = time.monotonic()
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.connect()
        with _hung_up_after(connection.sock, started + TIMEOUT_SECONDS - time.monotonic()):
            path = parts._replace(scheme="", netloc="").geturl() or "/"
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read(LIMIT_BYTES + 1)
        answer = Fetched(response.status, response.headers.get("Date", ""), body)
    except ConnectionRefusedError:
        return Fetched(problem="refuses connections")
    except (OSError, HTTPException, UnicodeError) as error:
        words = getattr(error, "strerror", None) or str(error) or repr(error)
        answer = Fetched(problem=f"no proper answer ({printable(words)})")
    finally:
        connection.close()
    if time.monotonic() - started >= TIMEOUT_SECONDS:
        return Fetched(problem=f"no answer within {TIMEOUT_SECONDS:.0f} s")
    if len(answer.body) > LIMIT_BYTES:
        return Fetched(problem=f"an answer of more than {LIMIT_BYTES // 1024} KB")
    return answer


def connect(url: str) -> Fetched:
    """Whether somebody takes a connection; without a problem: somebody does."""
    parts = urlsplit(url)
    try:
        where = (parts.hostname or "", parts.port or 0)
        socket.create_connection(where, timeout=TIMEOUT_SECONDS).close()
    except ConnectionRefusedError:
        return Fetched(problem="refuses connections")
    except TimeoutError:
        return Fetched(problem=f"no answer within {TIMEOUT_SECONDS:.0f} s")
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or str(error)
        return Fetched(problem=f"no connection ({printable(words)})")
    return Fetched()


def ask_balancer(url: str) -> Fetched:
    """Whom the load balancer serves, as far as that can be asked."""
    if url.startswith("http:"):
        return get(f"{url.rstrip('/')}/status.json")
    return connect(url) if url.startswith("tcp:") else Fetched()


@contextlib.contextmanager
def _hung_up_after(sock: socket.socket, seconds: float) -> Iterator[None]:
    def hang_up() -> None:
        with contextlib.suppress(OSError):  # already closed: it was in time
            sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(max(0.0, seconds), hang_up)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def printable(text: str) -> str:
    """`text` without anything that could move a terminal's cursor, and not endless."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])


# ---- What the answers mean


@dataclass(frozen=True)
class Vote:
    """To whom a node's vote is promised, and for how many seconds more."""

    candidate: str
    seconds: float


@dataclass(frozen=True)
class Holding:
    """How far a node is with the releases: which it holds, which it goes by, which it refused.

    `held` and `effective` are generations, 0 for none; `runs` is the build of its agent, and
    `proven` whether that is on trial no more; `waits_for` are the nodes that hold up what it holds.
    """

    held: int
    effective: int
    runs: str
    proven: bool
    refused: str
    waits_for: tuple[str, ...]


@dataclass(frozen=True)
class NodeView:
    """One node as seen from here; None where it did not say.

    `role` is "active", "passive" or "unknown", and `reason` the node's own words, or why its role
    is not known. Seconds are what remains now; `age_seconds` is the time since its last look.
    """

    node: str
    zone: str
    public_ip: str
    private_ip: str
    role: str
    reason: str
    probe_code: int | None = None
    age_seconds: float | None = None
    period_seconds: float = ONE_LOOK.period_seconds
    look_seconds: float | None = None
    pause_seconds: float | None = None
    host_clock: bool | None = None  # reads a clock that goes on while the host pauses it
    version: str | None = None  # of its agent; its generation, where there is none beside it
    generation: str | None = None
    reachable: tuple[str, ...] | None = None
    vote: Vote | None = None
    lease_seconds: float | None = None
    holding_seconds: float | None = None
    worst_case_failover_seconds: float | None = None
    health_check: str | None = None  # what the load balancer's checks say: "up", "down (404)"
    setup: str | None = None  # why the application is not set up yet
    unfit: str | None = None  # why it could not serve, for that reason or another
    term: int | None = None  # of the tenure of an active node; the greatest a passive one voted for
    release: Holding | None = None  # None of an agent that knows of no releases
    drained: bool | None = None
    prefer: str | None = None
    maintenance_until: float | None = None  # seconds of the wall clock
    failback: str | None = None

    @property
    def is_reached(self) -> bool:
        """Whether it has told anything of itself."""
        return self.age_seconds is not None


@dataclass(frozen=True)
class Writes:
    """Whose lines arrive at the collector of the lab's demonstration.

    `since` is the wall clock, in seconds, of the first line of this term; `refused` the newest of
    an older one, in words. `problem` is why it does not say.
    """

    node: str = ""  # "" for nobody so far
    term: int = 0
    since: float = 0.0
    age_seconds: float = 0.0  # of the last line
    refused: str = ""
    problem: str = ""


@dataclass(frozen=True)
class View:
    """The whole cluster at one moment.

    `verdict`: "served" (exactly one node is active and the load balancer serves it), "unserved"
    (one is active, but is not served), "nobody", or "disagreement" (several answer 200).
    """

    verdict: str
    sentence: str
    active: str | None
    answering_200: tuple[str, ...]
    served: str | None  # the node that answers behind the load balancer
    load_balancer: str
    nodes: tuple[NodeView, ...]
    writes: Writes | None = None  # None where there is no demonstration


def node_view(node: Node, probe: Fetched, status: Fetched) -> NodeView:
    """What may be said of a node after these two answers."""
    view = NodeView(
        node=node.name,
        zone=str(node.zone),
        public_ip=node.public_ip or "-",
        private_ip=node.private_ip,
        role="unknown",
        reason=status.words if status.problem else f"status.json: {status.words}",
        probe_code=probe.code,
    )
    if status.code == 200:
        said = _parsed(status)
        view = replace(view, reason=said) if isinstance(said, str) else _said(view, said)
    if view.role == "active" and probe.code != 200:
        return replace(view, role="unknown", reason=f"it says active, its probe: {probe.words}")
    if view.role != "active" and probe.code == 200:
        claim = "it says passive" if view.role == "passive" else view.reason
        return replace(view, role="unknown", reason=f"its probe answers 200, but {claim}")
    return view


def _parsed(status: Fetched) -> dict[str, Any] | str:
    """The content of a `status.json` with its `age_seconds`, or in words what is wrong with it."""
    try:
        said = json.loads(status.body)
        at = datetime.fromisoformat(said["at"].replace("Z", "+00:00"))
        # Both times are the node's own: its clock may be wrong against ours.
        said["age_seconds"] = (parsedate_to_datetime(status.date) - at).total_seconds()
        words = all(isinstance(said[key], str) for key in ("node", "role", "reason"))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return "its status.json (or the date it came with) cannot be read"
    if not words or said["role"] not in {"active", "passive"}:
        return "its status.json names no role"
    return dict(said)


def _said(view: NodeView, said: Mapping[str, Any]) -> NodeView:
    """`view` with what the node said of itself, as far as it is its own and fresh."""
    if said["node"] != view.node:
        return replace(view, reason=f"{printable(said['node'])} answers at its address")
    age = float(said["age_seconds"])
    period = _number(said.get("period_seconds")) or ONE_LOOK.period_seconds
    # Older than this is no news; the agents use the same limit for markers.
    usual_seconds = period * ONE_LOOK.fresh_seconds / ONE_LOOK.period_seconds
    fresh_seconds = _number(said.get("fresh_seconds")) or usual_seconds
    reason = printable(said["reason"])
    view = replace(
        view,
        zone=_word(said.get("zone")) or view.zone,
        age_seconds=max(0.0, age),
        period_seconds=period,
        look_seconds=_number(said.get("look_seconds")),
        pause_seconds=_number(said.get("pause_seconds")),
        host_clock=said["host_clock"] if isinstance(said.get("host_clock"), bool) else None,
        version=_word(said.get("version")),
        generation=_word(said.get("generation")),
        worst_case_failover_seconds=_number(said.get("worst_case_failover_seconds")),
        setup=_word(said.get("setup")),
        unfit=_word(said.get("unfit")),
        term=said["term"] if type(said.get("term")) is int else None,
        release=_holding(said.get("release")),
        drained=said["drained"] if isinstance(said.get("drained"), bool) else None,
        prefer=_word(said.get("prefer")),
        maintenance_until=_moment(said.get("maintenance_until")),
        failback=_word(said.get("failback")) or _seconds_word(said.get("failback")),
    )
    if age < -2:  # Date counts whole seconds, so a little less than nothing is normal
        return replace(view, reason="its last look lies in the future: its clock was set back")
    if age > fresh_seconds:
        last = f"its last look was {age:.0f} s ago; it then said {said['role']}: {reason}"
        return replace(view, reason=last)
    return replace(view, role=said["role"], reason=reason, **_promises(said, max(0.0, age)))


def _promises(said: Mapping[str, Any], age: float) -> dict[str, Any]:
    """Votes and leases are told in seconds from the look on: here is what is left of them."""

    def left(value: object) -> float | None:
        seconds = _number(value)
        return None if seconds is None or seconds <= age else round(seconds - age, 1)

    vote = said["vote"] if isinstance(said.get("vote"), dict) else {}
    candidate, seconds = _word(vote.get("candidate")), left(vote.get("seconds"))
    names = said["reachable"] if isinstance(said.get("reachable"), list) else []
    return {
        "vote": Vote(candidate, seconds) if candidate and seconds else None,
        "lease_seconds": left(said.get("lease_seconds")),
        "holding_seconds": left(said.get("holding_seconds")),
        "reachable": tuple(word for word in map(_word, names) if word) or None,
    }


def _holding(said: object) -> Holding | None:
    """What a node says of its releases; None where it says nothing that can be read."""
    if not isinstance(said, dict):
        return None
    held, effective = _number(said.get("held")), _number(said.get("effective"))
    if held is None or effective is None:
        return None
    names = said["waits_for"] if isinstance(said.get("waits_for"), list) else []
    return Holding(
        held=int(held),
        effective=int(effective),
        runs=_word(said.get("runs")) or "",
        proven=said.get("proven") is True,
        refused=_word(said.get("refused")) or "",
        waits_for=tuple(word for word in map(_word, names) if word),
    )


def writes_of(told: Fetched) -> Writes:
    """What the collector says of who writes."""
    try:
        said = json.loads(told.body) if told.code == 200 else {"problem": told.words}
        return Writes(
            node=_word(said.get("node")) or "",
            term=int(said.get("term", 0)),
            since=_moment(said.get("since")) or 0.0,
            age_seconds=_number(said.get("age_seconds")) or 0.0,
            refused=_word(said.get("refused")) or "",
            problem=_word(said.get("problem")) or "",
        )
    except (AttributeError, RecursionError, TypeError, ValueError):
        return Writes(problem="no answer that can be read")


def _moment(value: object) -> float | None:
    """Seconds of the wall clock."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e11
    return float(value) if usable else None  # type: ignore[arg-type]


def _seconds_word(value: object) -> str | None:
    seconds = _number(value)
    return None if seconds is None else f"after {seconds:g} s"


def _number(value: object) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
    return float(value) if usable else None  # type: ignore[arg-type]


def _word(value: object) -> str | None:
    return printable(value) if isinstance(value, str) and value else None


def health_checks(stats: Fetched) -> dict[str, str]:
    """Server name -> "up" or "down (why)", from HAProxy's statistics in CSV.

    Columns: https://docs.haproxy.org/2.6/management.html#9.1
    """
    if stats.code != 200:
        return {}
    lines = stats.body.decode("utf-8", "replace").removeprefix("# ").splitlines()
    return {row["svname"]: _health(row) for row in csv.DictReader(lines) if row.get("svname")}


def _health(row: Mapping[str, str | None]) -> str:
    status = row.get("status") or "-"
    if status.startswith("UP"):
        return "up"
    why = row.get("check_code") or row.get("check_status") or status
    return f"down ({printable(why)})"


def cluster_view(cluster: Watched, nodes: tuple[NodeView, ...], balancer: Fetched) -> View:
    """The nodes and the load balancer taken together, with the one sentence that matters."""
    said = _parsed(balancer) if balancer.code == 200 else {}
    served = said.get("node") if isinstance(said, dict) else None
    active = [view.node for view in nodes if view.role == "active"]
    view = View(
        verdict="nobody",
        sentence="",
        active=active[0] if len(active) == 1 else None,
        answering_200=tuple(view.node for view in nodes if view.probe_code == 200),
        served=served if served in [view.node for view in nodes] else None,
        load_balancer=cluster.load_balancer,
        nodes=nodes,
    )
    verdict, sentence = _verdict(view, balancer)
    if verdict == "unserved" and cluster.is_internal:  # or another machine with its address did
        sentence += " An internal one answers in its network alone: ask from there."
    return replace(view, verdict=verdict, sentence=sentence)


def _verdict(view: View, balancer: Fetched) -> tuple[str, str]:
    answering = view.answering_200
    if len(answering) > 1:
        count = {2: "TWO", 3: "THREE"}.get(len(answering), str(len(answering)))
        return "disagreement", f"{count} NODES ANSWER 200: {', '.join(answering)}."
    if view.active is None:
        return "nobody", f"Nobody is active: {_why_nobody(view)}."
    if not view.load_balancer.startswith("http:"):
        return _verdict_of_port(view, balancer)
    if view.served == view.active:
        return "served", f"{view.active} is active and the load balancer serves it."
    instead = f"serves {view.served}" if view.served else f"serves nobody ({balancer.words})"
    return "unserved", f"{view.active} is active, but the load balancer {instead}."


def _verdict_of_port(view: View, balancer: Fetched) -> tuple[str, str]:
    """As far as a port tells that is no web server of ours, and the load balancer's own checks."""
    parts = urlsplit(view.load_balancer)
    active = next(node for node in view.nodes if node.node == view.active)
    health = active.health_check or "up"
    why = balancer.problem or (f"its check says {health}" if health != "up" else "")
    if why:
        return "unserved", f"{view.active} is active, but port {parts.port}: {why}."
    if parts.scheme == "udp":
        return "served", f"{view.active} is active; whom UDP is forwarded to, nobody can ask."
    return "served", f"{view.active} is active and the load balancer takes port {parts.port}."


def _why_nobody(view: View) -> str:
    """Said by whom the operator should look at first."""
    for node in view.nodes:
        if node.probe_code == 200:
            return f"{node.node}: {node.reason.rstrip('.')}"
    known = [node for node in view.nodes if node.role != "unknown"]
    needed = len(view.nodes) // 2 + 1
    if len(known) < needed:
        return f"{len(known)} of {len(view.nodes)} nodes report their role, {needed} are needed"
    return f"{known[0].node} says: {known[0].reason.rstrip('.')}"


def look(cluster: Watched) -> View:
    """Ask everybody at the same time; takes a little over TIMEOUT_SECONDS at the most."""
    nodes = cluster.nodes
    sites = [f"http://{node.public_ip}:{cluster.cluster_port}" for node in nodes]
    stats = [cluster.load_balancer_stats] if cluster.load_balancer_stats else []
    with ThreadPoolExecutor(max_workers=2 * len(nodes) + 3) as pool:
        probes = pool.map(get, [f"{site}/probe.html" for site in sites])
        statuses = pool.map(get, [f"{site}/status.json" for site in sites])
        asked = pool.submit(ask_balancer, cluster.load_balancer)
        writes = pool.submit(get, cluster.collector) if cluster.collector else None
        checks, served = [*pool.map(get, stats)], asked.result()
    health = health_checks(*checks) if checks else {}
    views = tuple(
        replace(node_view(node, probe, status), health_check=health.get(node.name))
        for node, probe, status in zip(nodes, probes, statuses, strict=True)
    )
    view = cluster_view(cluster, views, served)
    return replace(view, writes=writes_of(writes.result())) if writes else view


def looks(cluster: Watched, seconds: float | None) -> Iterator[View]:
    """A view every second, in order; waiting for a silent node holds up none of them."""
    started = time.monotonic()
    pending: deque[Any] = deque()
    with ThreadPoolExecutor(max_workers=int(TIMEOUT_SECONDS) + 2) as pool:
        for tick in itertools.count(1):
            pending.append(pool.submit(look, cluster))
            while pending and not wait([pending[0]], _until(started + tick)).not_done:
                yield pending.popleft().result()
            time.sleep(_until(started + tick))
            if seconds is not None and tick >= seconds:
                break
    yield from (late.result() for late in pending)


def _until(moment: float) -> float:
    return max(0.0, moment - time.monotonic())


def late(view: View, generation: int) -> dict[str, str]:
    """The reached nodes that do not go by a release yet, each with why."""
    whys = {node.node: _why_late(node, generation) for node in view.nodes if node.is_reached}
    return {name: why for name, why in whys.items() if why}


def _why_late(node: NodeView, generation: int) -> str:
    """Why a node does not go by a release yet; "" where it does."""
    told = node.release
    if told is None:
        return "its agent knows of no releases yet"
    if told.effective >= generation:
        return ""
    if told.held >= generation:
        others = ", ".join(told.waits_for) or "its next look"
        return f"it holds release {told.held}, and waits for {others}"
    return told.refused or f"it holds release {told.held}" if told.held else "it holds no release"


def changes(before: View | None, after: View) -> list[str]:
    """One line for each node whose role or release changed, and the sentence if that is new."""
    old = {node.node: node.role for node in before.nodes} if before else {}
    lines = [
        f"{node.node}: {old[node.node]} -> {node.role}: {node.reason}"
        if node.node in old
        else f"{node.node}: {node.role}: {node.reason}"
        for node in after.nodes
        if node.role != old.get(node.node)
    ]
    if before:
        lines += _release_changes(before, after)
        lines += _writer_changes(before.writes, after.writes)

    # Reasons count seconds; only another verdict is news.
    def news(view: View) -> tuple[object, ...]:
        return view.verdict, view.active, view.served, view.answering_200

    return lines if before and news(before) == news(after) else [*lines, after.sentence]


def _writer_changes(before: Writes | None, after: Writes | None) -> Iterator[str]:
    """A line when another node's writes arrive, or others are refused."""
    was, now = before or Writes(), after or Writes()
    if now.node and (now.node, now.term) != (was.node, was.term):
        yield f"{now.node}: its writes arrive, term {now.term}"
    if now.refused and not was.refused:
        yield f"writes are refused: {now.refused}"


def _release_changes(before: View, after: View) -> Iterator[str]:
    """One line for each node that goes by another release now, or has refused one."""
    old = {node.node: node.release for node in before.nodes}
    for node in after.nodes:
        was, now = old.get(node.node), node.release
        if not now or now == was:
            continue
        if was is None or now.effective != was.effective:
            yield f"{node.node}: goes by release {now.effective}"
        if now.refused and (was is None or now.refused != was.refused):
            yield f"{node.node}: refuses {now.refused}"
