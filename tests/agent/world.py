"""A node in a folder, and the cloud around it on loopback: peers, metadata, the web site.

One real web server answers for all of them; who is asked is told by the address. A node's files lie
under a temporary root, and systemd is a stand-in on its socket that notes what it was asked.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import loader
from tests.agent.systemd import Systemd
from tests.web import Asked, Page, Web, open_web

CALLS = ("StartTransientUnit", "StartUnit", "StopUnit", "RestartUnit")
SOURCE = Path(loader.__file__).read_text(encoding="utf-8")
KEY = "5e" * 32
PUBLIC_ADDRESS = "198.51.100.4"
WEB_SITE_HOST = "127.0.0.253"
INSTANCE, LOAD_BALANCER = "/metadata/instance", "/metadata/loadbalancer"
EVENTS = "/metadata/scheduledevents"
RUN_SECONDS = 30
PERIOD = 4
"""Seconds. The next shorter one, 2 s, leaves a run 1.4 s, and one in which a node waits until it
stands again a fifth of a second: less than a start of Python takes where a machine is busy."""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.agent.world"])


@functools.cache
def start_forkserver() -> None:
    """Import the agent once, before the first run is timed."""
    process = PROCESSES.Process(target=int)
    process.start()
    process.join(RUN_SECONDS)


class Operator:
    """Somebody with an SSH key of their own, who may sign releases or not."""

    def __init__(self, number: int) -> None:
        self.key = Path(tempfile.mkdtemp(prefix="operator")) / "key"
        words = ("-t", "ed25519", "-N", "", "-C", f"operator {number}", "-f", str(self.key))
        subprocess.run(["ssh-keygen", "-q", *words], check=True, timeout=10)

    @property
    def signers(self) -> str:
        """A file of allowed signers with this one alone."""
        public = self.key.with_suffix(".pub").read_text()
        return f'operator namespaces="{loader.NAMESPACE}" {public}'

    def sign(self, data: bytes, namespace: str = loader.NAMESPACE) -> bytes:
        words = ["ssh-keygen", "-Y", "sign", "-f", str(self.key), "-n", namespace]
        ran = subprocess.run(words, input=data, check=True, capture_output=True, timeout=10)
        return ran.stdout


@functools.cache
def operator(number: int = 1) -> Operator:
    """The operators of all tests, of whom the first may sign."""
    return Operator(number)


def conditional(body: str | bytes) -> Callable[[Asked], Page]:
    """A web site's file, with an ETag and answers to conditional requests."""
    data = body.encode() if isinstance(body, str) else body
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'

    def page(asked: Asked) -> Page:
        if asked.headers.get("If-None-Match") == etag:
            return Page("", 304, {"ETag": etag})
        return Page(data, headers={"ETag": etag})

    return page


class Ran(NamedTuple):
    """What came of one run of the agent."""

    code: int
    journal: str  # standard output, without the line's end
    errors: str  # standard error
    log: list[str]  # "LEVEL - text" of the lines of this run
    seconds: float

    def said(self, text: str) -> bool:
        """Whether a line of the log holds this text."""
        return any(text in line for line in self.log)


def _main(
    root: str, metadata_url: str, env: dict[str, str], said: str, words: tuple[str, ...]
) -> None:
    """What a forked process does: `main`, with its files under `root`."""
    os.environ.clear()
    os.environ.update(env)
    for stream, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{said}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    loader.Paths.__init__.__defaults__ = (root,)
    loader.METADATA = metadata_url
    sys.exit(loader.main(list(words)))


class World:
    """A booted node `me` of a cluster whose other nodes vote for it, and see it."""

    def __init__(
        self,
        root: Path,
        cloud: Web,
        *,
        me: str = "node1",
        nodes: int = 3,
        period: int = PERIOD,
        look: int = 0,
    ) -> None:
        self.cloud, self.me, self.root, self.period = cloud, me, root, period
        self.look = look or period  # a run of one look ends as soon as that is settled
        self.stop = 0  # seconds that a service may take to stop, where one has joined
        self.paths = loader.Paths(str(root))
        self.metadata_host = f"127.0.2.{me[4:]}"
        self.hosts = {f"node{i}": f"127.0.1.{i}" for i in range(1, nodes + 1)}
        self.nodes = {name: self._entry(name) for name in self.hosts}
        self.programs = root / "bin"  # found before the machine's
        for folder in (self.paths.etc, self.paths.html, self.paths.run, self.programs):
            folder.mkdir(parents=True)
        self.systemd = Systemd(self.paths.systemd, self.paths.html)
        self.paths.nodes_info.write_text(json.dumps(self.nodes))
        self.paths.key.write_text(KEY)
        self.paths.loader.write_text(self.installed(SOURCE))
        self.paths.cluster.write_text("lab\n")
        self.paths.signers.write_text(operator().signers)
        self.keys: tuple[str, ...] = (KEY,)  # the peers sign with the first, and accept all
        self.generation = 0  # of the newest release that was published
        self.peers_hold: int | None = None  # None: the newest
        self.builds: dict[str, tuple[str, bool]] = {}  # peer -> its agent, and whether it is proven
        self.paths.booted.write_text("[0, 0, 0, 0]")  # long ago: the hold after boot is over
        self.settings()
        self.metadata(me)
        self.own_apache(Page("", 403))
        for name in self.peers:
            self.page(name, "/", Page())
            self.votes(name)

    def _entry(self, name: str) -> dict[str, str]:
        return {
            "ip_configuration_name": "default",
            "network_interface_id": f"/networkInterfaces/{name}-nic",
            "private_ip": f"127.0.3.{name[4:]}:{self.cloud.port}",
            "public_ip": f"{self.hosts[name]}:{self.cloud.port}",
        }

    @property
    def peers(self) -> list[str]:
        return [name for name in self.hosts if name != self.me]

    @property
    def times(self) -> loader.Timing:
        return loader.timing(self.period, self.look, 0, self.stop)

    @property
    def web_site(self) -> str:
        return f"http://{WEB_SITE_HOST}:{self.cloud.port}/bootstrap"

    def installed(self, source: str) -> str:
        """The agent as a file of this node: the same source, with this root and this cloud."""
        for there, here in (
            ('root: str = "/"', f"root: str = {str(self.root)!r}"),
            ("http://169.254.169.254/metadata", self.metadata_url),
        ):
            assert source.count(there) == 1, there
            source = source.replace(there, here)
        return source

    @property
    def metadata_url(self) -> str:
        return f"http://{self.metadata_host}:{self.cloud.port}/metadata"

    # -- what the node is told

    def settings(self, **values: object) -> None:
        told = {
            "period_seconds": self.period,
            "look_seconds": self.look,
            "pause_seconds": 0,
        } | values
        text = "".join(f"{key} = {value}\n" for key, value in told.items())
        self.paths.conf.write_text(f"[loader]\n{text}")

    def metadata(self, name: str) -> None:
        """Azure's two documents for this node, as far as the agent reads them."""
        private = self.nodes[name]["private_ip"]
        address = {"privateIpAddress": private, "publicIpAddress": ""}
        instance = {
            "compute": {"name": name, "zone": "1"},
            "network": {"interface": [{"ipv4": {"ipAddress": [address]}}]},
        }
        front = {"frontendIpAddress": PUBLIC_ADDRESS, "privateIpAddress": private}
        balancer = {"loadbalancer": {"publicIpAddresses": [front]}}
        self.metadata_says(INSTANCE, Page(json.dumps(instance)))
        self.metadata_says(LOAD_BALANCER, Page(json.dumps(balancer)))

    def joins(self, unit: str, state: str = "inactive") -> None:
        """A service runs with the role, on every node of the cluster."""
        folder = self.paths.unit.parent / "active.target.wants"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / unit).symlink_to(f"../{unit}")
        (folder.parent / loader.STOP).touch()
        known = self.paths.generated / f"{unit}.d"
        known.mkdir(parents=True)
        (known / "role.conf").touch()
        self.systemd.units |= {unit: state, "active.target": state}
        self.stop = 10

    def own_apache(self, page: Page) -> None:
        """What this node's Apache answers for the probe of a lease that is over."""
        self.cloud.site(f"127.0.3.{self.me[4:]}").pages["/probe.html"] = page

    def announces(self, *kinds: str, **changes: Any) -> None:
        """What Azure announces for this node from now on; `changes` of its own fields."""
        plain = {"Resources": [self.me.upper()], "EventStatus": "Scheduled", "NotBefore": "soon"}
        told = [{"EventId": f"the {kind}", "EventType": kind} | plain | changes for kind in kinds]
        self.metadata_says(EVENTS, Page(json.dumps({"DocumentIncarnation": 2, "Events": told})))

    def approved(self) -> list[str]:
        """The ids that this node has told Azure to go on with, in every request that it heard."""
        asked = self.cloud.site(self.metadata_host).asked_for(EVENTS)
        contents = [json.loads(one.content) for one in asked if one.content]
        return [each["EventId"] for content in contents for each in content["StartRequests"]]

    def metadata_says(self, path: str, page: Page | Callable[[Asked], Page]) -> None:
        self.cloud.site(self.metadata_host).pages[path] = page

    def site(self, name: str, page: Page | Callable[[Asked], Page]) -> None:
        """What the web site has under a name."""
        self.cloud.site(WEB_SITE_HOST).pages[f"/bootstrap/{name}"] = page

    def release(self, agent: str | None = None, **changes: Any) -> dict[str, Any]:
        """The next release: this node's agent and nodes, or others."""
        code = (self.paths.loader.read_text() if agent is None else agent).encode()
        digest = hashlib.sha256(code).hexdigest()
        self.site(f"releases/{digest}/loader.py", Page(code))
        plain = {
            "cluster": "lab",
            "generation": self.generation + 1,
            "published": "2026-11-27T12:00:00Z",
            "files": {"loader.py": {"sha256": digest, "size": len(code)}},
            "nodes": self.nodes,
            "settings": {
                "period_seconds": self.period,
                "look_seconds": self.look,
                "pause_seconds": 0,
                "peer_address": "public",
                "scheduled_events": True,
                "failback": "auto",
            },
            "drained": [],
            "prefer": None,
            "maintenance_until": None,
            "allowed_signers": operator().signers,
            "cluster_key": None,
        }
        return plain | changes

    def publish(
        self, release: dict[str, Any] | bytes, *, by: Operator | None = None, newest: bool = True
    ) -> None:
        """Sign a release and put it on the web site, as the newest or as one that was missed."""
        data = release if isinstance(release, bytes) else json.dumps(release).encode()
        self.generation = generation = json.loads(data)["generation"]
        signature = (by or operator()).sign(data)
        self.site(f"releases/{generation}/release.json.sig", Page(signature))
        self.site(f"releases/{generation}/release.json", Page(data))
        if newest:
            self.site("release.json", conditional(data))
        self.settings(bootstrap_url=self.web_site)

    def goes_by(self, release: dict[str, Any]) -> None:
        """Publish a release; the node has taken it, and goes by it."""
        self.publish(release)
        until = time.monotonic() + RUN_SECONDS
        loader.take_release(loader.new_session(), self.web_site, 0, self.paths, until)
        assert loader.read_kept(self.paths).generation == self.generation
        self.paths.effective.write_text(f"{self.generation}\n")

    # -- what the peers say

    def page(self, peer: str, path: str, page: Page | Callable[[Asked], Page]) -> None:
        self.cloud.site(self.hosts[peer]).pages[path] = page

    def says(self, peer: str, page: Page | Callable[[Asked], Page]) -> None:
        """What the peer's marker about this node is."""
        self.page(peer, f"/{self.me}.html", page)

    def cluster(self, name: str, **changes: Any) -> loader.Members:
        key, *others = (bytes.fromhex(key) for key in self.keys)
        found = loader.Members(name, tuple(self.nodes), key, self.times, other_keys=tuple(others))
        return found._replace(**changes)

    def marker(self, peer: str, **fields: Any) -> loader.Marker:
        """A marker of the peer about this node, written now by one that has read this node's."""
        shown, (build, proven) = self.shown_to(peer), self.builds.get(peer, ("", True))
        plain = loader.Marker(
            sender=peer,
            receiver=self.me,
            epoch=f"epoch of {peer}",
            stamp=int(loader.boot_seconds() * 1000),
            candidate=False,
            quorum_runs=5,
            holding=False,
            vote=None,
            released=0,
            active=False,
            yields_to=None,
            heard={shown.epoch: shown.stamp} if shown else {},
            generation=build,
            at="",
            proven=proven,
            release=self.generation if self.peers_hold is None else self.peers_hold,
        )
        return plain._replace(**fields)

    def signed(self, marker: loader.Marker, **changes: Any) -> str:
        """The marker's page; `changes`: of the cluster in whose name it is signed."""
        return loader.format_marker(self.cluster(marker.sender, **changes), marker)

    def shown_to(self, peer: str) -> loader.Marker | None:
        """The marker that this node has for the peer, as the peer reads it."""
        try:
            body = (self.paths.html / f"{peer}.html").read_bytes()
        except FileNotFoundError:
            return None
        answer = loader.Answer(200, body, {}, whole=True)
        return loader.parse_marker(self.cluster(peer), self.me, answer)

    def vote_of(self, peer: str) -> loader.Grant | None:
        """The peer's vote for whatever this node asks for now."""
        shown = self.shown_to(peer)
        if shown is None or not shown.candidate:
            return None
        promise = self.times.promise_seconds
        return loader.Grant(self.me, shown.epoch, shown.stamp, promise, 1.0, shown.term)

    def votes(self, peer: str, *, unfit: str = "", **changes: Any) -> None:
        """The peer is up, sees this node and grants each of its requests."""

        def page(_: Asked) -> Page:
            marker = self.marker(peer, vote=self.vote_of(peer), unfit=unfit)
            return Page(self.signed(marker, **changes))

        self.says(peer, page)

    def leads(self, peer: str, **fields: Any) -> None:
        """The peer is active, and asks for votes with a new stamp once in a while."""

        def page(_: Asked) -> Page:
            return Page(self.signed(self.marker(peer, candidate=True, active=True, **fields)))

        self.says(peer, page)

    # -- runs

    def run(self, *words: str) -> Ran:
        """One run as `main` does it, in a process forked from one that has imported the agent."""
        start_forkserver()
        said, before, start = self.root / "said", len(self.log()), time.monotonic()
        told = (str(self.root), self.metadata_url, dict(os.environ), str(said), words)
        process = PROCESSES.Process(target=_main, args=told)
        process.start()
        process.join(RUN_SECONDS)
        seconds = time.monotonic() - start
        assert process.exitcode is not None, f"the run goes on after {RUN_SECONDS} s"
        journal, errors = (Path(f"{said}.{stream}").read_text() for stream in ("out", "err"))
        assert "Traceback" not in errors, errors
        return Ran(process.exitcode, journal.strip(), errors, self.log()[before:], seconds)

    def command(self, *words: str) -> list[str]:
        """The command that systemd runs on the node."""
        return [sys.executable, str(self.paths.loader), *words]

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A run in a process of its own."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*words), stdout=pipe, stderr=pipe, text=True)

    def stands_still(self, line: str) -> Path:
        """From now on a run hangs before that line of the agent: it waits for a writer of this."""
        pipe, source = self.paths.run / "pipe", self.installed(SOURCE)
        os.mkfifo(pipe)
        assert source.count(line) == 1
        hangs = f"(Paths().run / 'pipe').read_bytes(); {line}"
        self.paths.loader.write_text(source.replace(line, hangs))
        return pipe

    def was_active(self) -> None:
        """The node's files as a run leaves them that became active a moment ago."""
        now, promise = loader.boot_seconds(), self.times.promise_seconds
        epoch, stamp = "epoch of this boot", int(now * 1000)
        state = loader.State(
            epoch=epoch,
            hold_until_seconds=promise,
            vote=loader.Vote(self.me, epoch, stamp, now + promise, promise),
            granted={self.me: (epoch, stamp)},
            grants=dict.fromkeys(self.nodes, (stamp, promise)),
            stamp=stamp,
            candidate=True,
            active=True,
            quorum_runs=2,
            sees=tuple(self.peers),
            wall_offset_seconds=time.time() - now,
            wall_read_seconds=now,
        )
        moment = loader.Moment(now, now, time.time(), None, probe_there=True)
        for name, marker in loader.markers_of(self.cluster(self.me), state, moment).items():
            assert marker is not None
            page = loader.format_marker(self.cluster(self.me), marker)
            (self.paths.html / f"{name}.html").write_text(page)
        private = self.nodes[self.me]["private_ip"]
        identity = loader.Identity(self.me, private, PUBLIC_ADDRESS, "1")
        self.paths.state.write_text(json.dumps(state._asdict()))
        self.paths.identity.write_text(json.dumps(identity._asdict()))
        self.paths.probe.touch()
        self.paths.role.write_text('"active"')
        self.paths.booted.unlink(missing_ok=True)

    def saw_its_peers(self) -> None:
        """The node's files as a run leaves them that saw every peer, and no vote."""
        self.was_active()
        self.paths.probe.unlink()
        self.paths.role.unlink()
        self.change_state(active=False, grants={}, vote=None)

    # -- what came of it

    def log(self) -> list[str]:
        """The log, each line without its time."""
        if not self.paths.logfile.exists():
            return []
        lines = self.paths.logfile.read_text(encoding="utf-8").splitlines()
        return [line.partition(" - ")[2] for line in lines if " - " in line]

    def calls(self) -> list[tuple[str, str]]:
        """What systemd was asked: a method of its manager, and the node's pages at that moment."""
        return [(member, pages) for member, _, pages in self.systemd.calls if member in CALLS]

    def fences(self) -> list[str]:
        """The timers that systemd has now."""
        return list(self.systemd.timers)

    @property
    def active(self) -> bool:
        return self.paths.probe.exists()

    def status(self) -> Any:
        return json.loads(self.paths.status.read_text())

    def state(self) -> Any:
        return json.loads(self.paths.state.read_text())

    def change_state(self, **fields: Any) -> None:
        self.paths.state.write_text(json.dumps(self.state() | fields))

    def listing(self) -> dict[str, tuple[int, int, int]]:
        """Every file and folder under the root: its size, mode and time of change."""
        paths = sorted(self.root.rglob("*"))
        stats = {str(path): path.lstat() for path in paths if path.parent != self.programs}
        return {name: (st.st_size, st.st_mode, st.st_mtime_ns) for name, st in stats.items()}


@contextmanager
def open_world(root: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[World]:
    """A world whose agent finds its files under `root`, and its programs before the machine's."""
    with open_web() as cloud:
        world = World(root, cloud, **options)
        monkeypatch.setenv("PATH", str(world.programs), prepend=":")
        yield world
        world.systemd.fails()
