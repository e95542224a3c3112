"""The lab as a test sees it: its verbs, its nodes, and a sampler that watches all the time."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from http.client import HTTPConnection
from itertools import groupby
from pathlib import Path
from typing import Any

from agent.loader import Settings as OfNode
from agent.loader import Timing, timing, utc
from deploy.lab import LOAD_BALANCER as LOAD_BALANCER_ADDRESS
from deploy.lab import STATE, WEB_SITE, cloud, process
from deploy.lab.collector import Write, read_writes
from deploy.lab.state import lab_plan
from deploy.publish import SITE, Folder, found_on, hold, publish
from deploy.release import BUILD_DIGITS, Release, files_of, renewed
from deploy.settings import Settings
from deploy.signing import operators_key
from tests.lab.sampler import LOAD_BALANCER, Sampler, longest_gap_seconds, moments_with_two

CHECKOUT = Path(__file__).parents[2]
VERB_SECONDS = 180


def verb(*words: str, code: int = 0, checkout: Path = CHECKOUT) -> str:
    """Run a verb of `python -m deploy`, expect that exit code, and give what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy", *words],
        cwd=checkout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=VERB_SECONDS,
        check=False,
    )
    assert done.returncode == code, f"{' '.join(words)}: {done.returncode}: {done.stdout}"
    return done.stdout


def lab(*words: str, code: int = 0) -> str:
    """Run a verb of `python -m deploy lab`, expect that exit code, and give what it said."""
    return verb("lab", *words, code=code)


@contextmanager
def busy_cores(bound_seconds: float) -> Iterator[None]:
    """A process for each core of this machine, which the nodes share, that does nothing but run."""
    hog = ["timeout", str(bound_seconds), "sh", "-c", "while :; do :; done"]
    hogs = [subprocess.Popen(hog) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for each in hogs:
            each.terminate()
            each.wait(timeout=10)


@dataclass
class BootedLab:
    """A lab that is up, with `count` nodes."""

    count: int
    period_seconds: int
    look_seconds: int
    pause_seconds: int = Settings.pause_seconds
    machines: tuple[str, ...] = ()  # the nodes that are virtual machines
    demo: bool = False  # with the demonstration, and a collector of its writes
    first_active_seconds: float = 0.0  # from `lab up` to the first answer 200
    _hung: set[str] = field(default_factory=set)
    _sampler: Sampler | None = None

    @property
    def nodes(self) -> dict[str, str]:
        """Node name -> public address, in order of preference."""
        plan = lab_plan(
            self.period_seconds, self.look_seconds, self.pause_seconds, count=self.count
        )
        return {node.name: str(node.public_ip) for node in plan.nodes}

    @property
    def times(self) -> Timing:
        stop_seconds = OfNode().stop_seconds if self.demo else 0
        return timing(self.period_seconds, self.look_seconds, self.pause_seconds, stop_seconds)

    @property
    def patience_seconds(self) -> float:
        """Within so long everything settles, whatever happened: a boot, a tick, then looks."""
        return 15 + self.period_seconds + 5 * self.look_seconds + 4 * self.times.stop_seconds

    @property
    def options(self) -> list[str]:
        """Those of `lab up`."""
        period, look = str(self.period_seconds), str(self.look_seconds)
        machines = [word for name in self.machines for word in ("--vm", name)]
        times = ["--period-seconds", period, "--look-seconds", look]
        times += ["--pause-seconds", str(self.pause_seconds)]
        return ["--nodes", str(self.count), *times, *machines, *(["--demo"] * self.demo)]

    @property
    def sampler(self) -> Sampler:
        assert self._sampler is not None, "no test is running"
        return self._sampler

    def watch(self) -> None:
        self._sampler = Sampler(self.nodes | {LOAD_BALANCER: LOAD_BALANCER_ADDRESS})
        self._sampler.start()

    def stop_watching(self) -> None:
        self.sampler.stop()

    def up(self) -> None:
        """Bring the lab up and wait for the first active node."""
        began = time.time()
        lab("up", *self.options)
        self.watch()
        self.wait("active", lambda: bool(self.active()))
        self.first_active_seconds = time.time() - began
        self.stop_watching()
        if self.machines:  # it boots later than the others, and rests until it has what they hold
            effect_seconds = self.patience_seconds + 4 * self.period_seconds
            self.wait("all going by the first release", self.goes_by_a_release, effect_seconds)

    def goes_by_a_release(self) -> bool:
        """Whether every node does."""
        told = [self.status(name).get("release", {}) for name in self.nodes]
        return all(release.get("effective") for release in told)

    def off(self, *names: str) -> None:
        for name in names:
            lab("off", name)

    def on(self, *names: str) -> None:
        for name in names:
            lab("on", name)

    def hang(self, name: str) -> None:
        self._hung.add(name)
        lab("hang", name)

    def isolate(self, name: str) -> None:
        """Cut it off from its peers; what is no node it still reaches."""
        for peer in self.nodes:
            if peer != name:
                lab("cut", name, peer)

    def freeze(self, name: str) -> None:
        self._hung.add(name)
        lab("freeze", name)

    def thaw(self, name: str) -> None:
        lab("thaw", name)
        self._hung.discard(name)

    def pause(self, name: str, seconds: float, *options: str) -> tuple[float, float]:
        """Let a virtual machine stand still; from when to when, wall clock, seconds."""
        said = lab("pause", name, str(seconds), *options)
        began, ended = map(datetime.fromisoformat, re.findall(r"\d{4}-\S+\d\d:\d\d", said))
        return began.timestamp(), ended.timestamp()

    def restore(self) -> None:
        """Undo whatever a test did, so that the most preferred node is active again."""
        for name in sorted(self._hung):
            self.thaw(name)
        lab("heal")
        lab("up")
        lately = time.time() - 3 * self.look_seconds
        for name in self.nodes:
            if not self.has_looked_since(lately, [name]):
                self.shell(name, "systemctl", "start", "loader.timer")

    def root(self, name: str) -> Path:
        """The node's file system, readable also while it is off."""
        return STATE / "containers" / name / "root"

    def epoch(self, name: str) -> str:
        """The epoch of a node's boot: a secret to nobody, every marker shows it."""
        state = json.loads(self.shell(name, "cat", "/run/bootstrap/state.json"))
        return str(state["epoch"])

    def shell(self, name: str, *command: str) -> str:
        return lab("shell", name, *command)

    def status(self, name: str) -> dict[str, Any]:
        """The node's own view, from its status.json; empty where it does not answer."""
        return dict(json.loads(fetch(self.nodes[name], "/status.json") or "{}"))

    def active(self) -> set[str]:
        """The nodes that answered 200 when asked last."""
        latest = {name: self.sampler.latest(name).status for name in self.nodes}
        return {name for name, status in latest.items() if status == 200}

    def served(self) -> str:
        """The node that the load balancer serves; empty for nobody."""
        return self.sampler.latest(LOAD_BALANCER).active

    def wait(self, what: str, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Poll until the condition holds. Fails with all nodes' logs."""
        seconds = seconds or self.patience_seconds
        deadline = time.time() + seconds
        while not condition():
            assert time.time() < deadline, f"not {what} within {seconds:.1f} s\n{self.dump()}"
            time.sleep(0.05)

    def settles_on(self, *names: str) -> None:
        """Wait until exactly these nodes answer 200 and the load balancer serves that one, and
        until it has been so for a look (four seconds of a long one).
        """
        served = names[0] if names else ""
        hold_seconds = min(self.look_seconds, 4)
        since = [time.time()]

        def settled() -> bool:
            if self.active() != set(names) or self.served() != served:
                since[0] = time.time()
            return time.time() - since[0] >= hold_seconds

        self.wait(f"settled on {served or 'nobody'}", settled, self.patience_seconds)

    def first_200(self, name: str, since: float) -> float | None:
        """When the node's first answer 200 after that moment came, wall clock."""
        found = (s.ended for s in self.sampler.samples[name] if s.status == 200 and s.began > since)
        return next(found, None)

    def last_200(self, name: str) -> float:
        """When the node's last answer 200 was asked for, wall clock."""
        return max(s.began for s in self.sampler.samples[name] if s.status == 200)

    def wait_until(self, into_seconds: float, latest_seconds: float = 0) -> None:
        """Wait until it is so long after a tick; not at all up to that latest moment after it."""
        if into_seconds <= time.time() % self.period_seconds <= latest_seconds:
            return
        left_seconds = (into_seconds - time.time()) % self.period_seconds
        tick = time.time() + left_seconds
        self.wait(f"{into_seconds:g} s after a tick", lambda: time.time() >= tick, left_seconds + 1)

    def has_looked_since(self, moment: float, names: Iterable[str]) -> bool:
        """Whether each of these nodes has ended a look since then."""
        ends = [self.status(name).get("at", "") for name in names]
        return all(end > utc(moment) for end in ends)

    def runs(self, build: str) -> set[str]:
        """The nodes that say that they run this build of the agent."""
        return {name for name in self.nodes if self.status(name).get("generation") == build}

    def roles(self, since: float) -> list[str]:
        """Who was active since that moment, one after the other, by the sampler's answers."""
        answers = sorted(
            (s.ended, s.target) for s in self.sampler.of_nodes(since) if s.status == 200
        )
        return [name for name, _ in groupby(name for _, name in answers)]

    def writes(self, since: float = 0) -> list[Write]:
        """What arrived at the demonstration's collector since that moment, taken or refused."""
        return [write for write in read_writes(cloud.WRITES) if write.arrival > since]

    def gap_seconds(self, since: float) -> float:
        """The longest time since that moment in which no node answered 200."""
        return longest_gap_seconds(self.sampler.of_nodes(since), since, time.time())

    def assert_never_two(self) -> None:
        samples = self.sampler.of_nodes()
        assert len(samples) > 10 * self.count, "the sampler did not sample"
        found = moments_with_two(samples)
        assert not found, "\n".join([*found, self.dump()])

    def dump(self) -> str:
        """What every node and the sampler have to say, for a failing test."""
        parts = [f"active {sorted(self.active())}, served {self.served() or 'nobody'}"]
        for name in self.nodes:
            lines = self.log(name).splitlines()
            parts += [f"---- {name}: {self.sampler.latest(name)}", *lines[-60:]]
        return "\n".join(parts)

    def log(self, name: str) -> str:
        """The node's log; of a virtual machine that does not tell it, what its console says."""
        if name in self.machines:
            with contextlib.suppress(AssertionError):
                return lab("logs", name)
            return process.tail(self.root(name).with_name("console.log"))
        log = self.root(name) / "var/log/bootstrap/logfile.log"
        return log.read_text() if log.exists() else "no log"


def fetch(address: str, path: str) -> str:
    """The body of an answer 200 to a GET from this machine; empty for anything else."""
    connection = HTTPConnection(address, 80, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else ""
    except OSError:
        return ""
    finally:
        connection.close()


def publish_changed(change: Callable[[Release], Release], code: bytes | None = None) -> int:
    """Publish the newest release with a change, as the lab's operator; the number of the newest."""
    key, site = operators_key("", STATE), Folder(STATE / SITE)
    before = found_on(site, STATE, key)
    assert before, "a lab that is up has a release"
    wanted = change(renewed(before.release, time.time()))
    published = publish(site, before, wanted, key=key, now=time.time(), code=code)
    hold(STATE, published.after)
    return published.after.release.generation


def publish_loader(content: bytes) -> int:
    """Publish a release with that loader.py; its number."""
    return publish_changed(lambda release: replace(release, files=files_of(content)), content)


def build_of(content: bytes) -> str:
    """What a node calls that loader.py."""
    return hashlib.sha256(content).hexdigest()[:BUILD_DIGITS]


def web_site_serves() -> bool:
    return bool(fetch(WEB_SITE, "/bootstrap/loader.py"))
