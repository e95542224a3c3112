"""Simulate clusters of the production agent: its `looks`, `settle`, `decide` and marker parsing.

Only time, the network and the machine are made up: every GET, write and commit is an event of its
own on a virtual clock, and processes start, end, die and are started again as systemd does it. One
seed drives all, is printed, and replays the run:

    python tests/protocol/simulate.py --hours 20 --seed 7
    python tests/protocol/simulate.py --hours 1000 --period-seconds 20 --look-seconds 2
    python tests/protocol/simulate.py --hours 20 --stop-seconds 10
"""

import argparse
import concurrent.futures
import functools
import heapq
import logging
import random
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

LOADER = Path(__file__).resolve().parents[2] / "agent" / "loader.py"
KEY = bytes(range(32))


class TwoActive(AssertionError):  # noqa: N818 - the sentence that it says
    """Two nodes answered 200 at the same moment: what must never happen."""


class WrongTerm(AssertionError):  # noqa: N818 - the sentence that it says
    """A term came twice, on two nodes, or a smaller one after a greater one."""


@functools.cache
def load_agent(*mutations: tuple[str, str]) -> Any:
    """The agent as a module of its own, with each (found, replaced) text of its source swapped.

    Raises `LookupError` where a text to be replaced is not there exactly once: a mutation that
    mutates nothing would be a test that can't fail.
    """
    source = LOADER.read_text(encoding="utf-8")
    for found, replaced in mutations:
        if source.count(found) != 1:
            raise LookupError(f"{source.count(found)} places to mutate: {found!r}")
        source = source.replace(found, replaced)
    logging.disable()  # what a node would log in a thousand hours
    module = types.ModuleType("simulated_loader")
    exec(compile(source, str(LOADER), "exec"), module.__dict__)  # noqa: S102 - our own file
    module.parse_marker = parser_of(module)  # type: ignore[attr-defined]
    return module


def parser_of(agent: Any) -> Callable[[Any, str, Any], Any]:
    """The agent's parser of pages; a marker that was put on the wire as it is, is taken as it is.

    Signing, writing and parsing pages is half of what a simulation costs: only some do it.
    """
    parse = agent.parse_marker

    def parse_marker(members: Any, sender: str, answer: Any) -> Any:
        if type(answer.body) is agent.Marker:
            return answer.body
        return parse(members, sender, answer)

    return parse_marker


@dataclass(frozen=True)
class Conditions:
    """How rough it is out there."""

    nodes: int = 3
    period_seconds: float = 20
    look_seconds: float = 0  # from one look to the next; 0: one look a run, of the whole period
    pause_seconds: float = 0  # that the protocol absorbs
    host_clock: bool = False  # the machine can read its host's, which goes on while it is paused
    clock_fence: bool = True  # systemd drops the probe when the wall clock is stepped
    tick_spread_seconds: float = 0.3  # the wall clocks of two nodes are so far apart
    drift: float = 0.001  # each boot clock runs within this of real time, rho / 2 each way
    slow_share: float = 0.01  # requests that take up to two seconds
    lost_share: float = 0.002
    fence_late_seconds: float = 0.1  # systemd's accuracy, and the start of rm
    apache_refuses: bool = True  # Apache honours lease_until
    replayed_share: float = 0.0  # answers in whose place an older marker of the peer's comes
    start_up_seconds: tuple[float, float] = (0.15, 0.3)  # Python and its imports
    slow_start_share: float = 0.0  # start-ups that take up to a second and a half
    pages: bool = False  # markers are written as pages, signed and parsed; else handed over
    stop_seconds: float = 0  # a service runs with the role, and is killed after so long; 0: none
    service_starts_seconds: tuple[float, float] = (0.5, 3.0)
    service_stops_seconds: tuple[float, float] = (0.1, 4.0)
    fence_stops: bool = True  # the fence stops the service as well
    stops_are_remembered: bool = True  # what is being stopped counts, wherever it has left


@dataclass(frozen=True)
class Ailment:
    """What is wrong with a machine that is up: asked before each effect of its runs.

    `killed` and `fails` are told the run's number since the ailment began, how many effects the
    run had before, and the effect's name.
    """

    late_periods: tuple[float, float] = (0.0, 0.0)  # runs start so late
    slow_seconds: tuple[float, float] = (0.0, 0.0)  # each effect takes so much longer
    lost_share: float = 0.0  # requests without an answer
    killed: Callable[[int, int, str], bool] = lambda *_: False
    fails: Callable[[int, int, str], bool] = lambda *_: False


WELL = Ailment()


@dataclass(eq=False)
class Node:
    """One machine: its clocks, its disk, its memory, and the run that is under way."""

    name: str
    drift: float
    skew: float  # its wall clock is so far behind
    booted: float = 0.0
    up: bool = True
    frozen: bool = False
    hung: bool = False
    apache: bool = True
    wall_offset: float = 0.0
    slew: float = 0.0  # how much faster its time daemon makes boot and wall clock go
    stopped: bool = False  # its host has paused it: all its clocks stand still
    rates_since: float = 0.0  # real time; before it, the clocks had gained and lost:
    boot_gained: float = 0.0
    raw_gained: float = 0.0
    pauses: list[tuple[float, float]] = field(default_factory=list)  # real end, length
    excused_until: float = float("-inf")  # after more of a pause than what the protocol absorbs
    looks_on: int = 0  # looks that were over since
    due: bool = False  # a tick came while its clock stood still: to it, it is still to come
    stepped: float = float("-inf")  # when its wall clock was
    life: int = 0  # counts boots: events of an earlier one are void
    process: "Process | None" = None  # loader.service's
    run: "Process | None" = None  # the one that holds the lock
    limit_began: float = float("-inf")  # of the time in which loader.service's starts are counted
    starts: int = 0
    doomed: str = ""  # the next process dies in its "start-up", or when it would "exit"
    late_seconds: float = 0.0  # the next process starts so late
    state: Any = None  # what /run holds
    bootup_clock: float = 0.0
    markers: dict[str, Any] = field(default_factory=dict)  # /var/www/html/<peer>.html
    probe: bool = False
    staged: bool = False
    service: str = "stopped"  # in the words of the agent's `Service`
    service_id: int = 0  # counts what has become of it
    broken: bool = False  # its service has failed since it was started
    breaks: bool = False  # each start of its service fails
    lease_until: float = 0.0  # wall clock, for Apache
    joined: bool = True  # its service has, and was not disabled since
    may_start: bool = False  # the agent has asked for its service, and the fence not stopped it
    service_excused_until: float = float("-inf")  # as `excused_until`, and until it has stopped
    fence_id: int = 0
    fence_due: float = 0.0  # on its boot clock
    waiting: list["Event"] = field(default_factory=list)  # held back while frozen
    promised_seconds: float = 0.0  # what the disk says of promises before this boot
    kept: Any = None  # what the disk says of terms: the greatest voted for, None if nothing
    ailment: Ailment = WELL
    ailing_runs: int = 0
    # What the disk keeps of releases, and of the agent that runs.
    newest: Any = None  # the one that the web site would give it
    held: Any = None
    effective: Any = None
    build: str = ""
    previous: str = ""
    good_runs: int = 2  # of its agent, on trial until there were two
    failed_runs: int = 0  # in a row, of one on trial
    failed_builds: set[str] = field(default_factory=set)

    def gained(self, now: float) -> tuple[float, float]:
        """How far the boot clock and the raw one are ahead of clocks that only drift."""
        passed = now - self.rates_since
        if self.stopped:
            return self.boot_gained - passed, self.raw_gained - passed
        return self.boot_gained + self.slew * passed, self.raw_gained

    def set_rates(self, now: float, *, slew: float = 0.0, stopped: bool = False) -> None:
        """From now on the clocks go like this."""
        self.boot_gained, self.raw_gained = self.gained(now)
        self.rates_since, self.slew, self.stopped = now, slew, stopped

    def boot_clock(self, now: float) -> float:
        """Seconds since boot, by this node's own clock; systemd's timers go by it."""
        return (now - self.booted) * (1 + self.drift) + self.gained(now)[0]

    def raw_clock(self, now: float) -> float:
        """The clock that no time daemon slews."""
        return (now - self.booted) * (1 + self.drift) + self.gained(now)[1]

    def wall_clock(self, now: float) -> float:
        """Seconds of the wall clock, as this node reads it."""
        return now + self.wall_offset - self.skew + self.gained(now)[0]

    def wrong_seconds(self, now: float) -> float:
        """How far pauses and slews have moved its wall clock; whole minutes move no tick."""
        return (self.wall_offset + self.gained(now)[0] + 30) % 60 - 30

    def real_delay(self, seconds: float) -> float:
        """How long so many seconds of this node's clock really are, if nobody changes its rate."""
        return seconds / (1 + self.drift + self.slew)


@dataclass(eq=False)
class Process:
    """One process of the agent, from its fork to its end, and what is in its memory."""

    node: Node
    began: float
    leaving: bool = False  # `loader.py leave`
    alive: bool = True
    stalled: bool = False  # stopped by a signal
    steps: Any = None  # None until it holds the lock
    effects: int = 0
    clocks: Any = None  # as it read them last
    wall_offset: float = float("inf")  # as at the last poll
    untested: set[str] = field(default_factory=set)  # peers not reached so far
    asked: set[str] = field(default_factory=set)  # of whom an answer is still to be taken in
    late: dict[str, Any] = field(default_factory=dict)  # answers that no poll waited for
    wait_for: frozenset[str] = frozenset()  # by the poll under way
    replies: dict[str, Any] | None = None  # to the poll under way
    poll_id: int = 0  # counts polls
    pause_id: int = 0  # counts its own pauses
    pausing: bool = False
    outcome: Any = None  # of its last look


Event = tuple[Callable[[], None], "Process | None"]

EXIT_SECONDS = (0.02, 0.1)  # from the last look's end to the end of the process
RESTART_SECONDS = 0.1  # systemd's default
KILL_SECONDS = 1.0  # TimeoutStopSec=
START_LIMIT, START_LIMIT_PERIODS = 4, 0.9


class Simulation:
    """A cluster on a virtual clock. `now` is real time in seconds, known to nobody inside."""

    def __init__(self, conditions: Conditions, seed: int, agent: Any, times: Any = None) -> None:
        self.conditions, self.agent, self.random = conditions, agent, random.Random(seed)
        period = conditions.period_seconds
        look = conditions.look_seconds or period
        stop = conditions.stop_seconds
        self.times = times or agent.timing(period, look, conditions.pause_seconds, stop)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None], Any, int, Any]] = []
        self._count = 0
        self._do = {
            getattr(agent, kind): getattr(self, f"_do_{kind.lower()}")
            for kind in ("Poll", "Save", "Show", "Drop", "Serve", "Start", "Pause", "Outcome")
        }
        self.order = tuple(f"node{index + 1}" for index in range(conditions.nodes))
        spread, half = conditions.tick_spread_seconds, conditions.drift / 2
        self.nodes = {
            name: Node(name, self.random.uniform(-half, half), self.random.uniform(0, spread))
            for name in self.order
        }
        self.members = {
            name: agent.Members(name, self.order, KEY, self.times) for name in self.order
        }
        if stop:
            for name, members in self.members.items():
                self.members[name] = members._replace(service=("writer.service",))
        self.left: set[str] = set()  # their timer is stopped
        self.useless: set[str] = set()  # builds whose processes end before they do anything
        self.replaced: list[tuple[float, str, str]] = []  # when which node began to run what
        self.announced: dict[str, str] = {}  # node -> what Azure announces for it
        self.unfit: dict[str, str] = {}  # node -> why it could not serve
        self.shown: dict[tuple[str, str], list[Any]] = {}  # every marker, where some come again
        self.cuts: set[tuple[str, str]] = set()  # (a, b): a can't open connections to b
        self.elections: list[tuple[float, str]] = []  # when somebody became active, and who
        self.terms: list[tuple[int, str]] = []  # of every time the role was taken, and by whom
        self.checks_terms = True  # else a broken agent may go on until two are active
        self.losses: list[tuple[float, str]] = []
        self.refusals: list[tuple[float, str]] = []  # renewed after Apache refused the probe
        self.double: list[tuple[float, str, str]] = []
        self.excused: list[tuple[float, str, str]] = []  # two, in the look after a long pause
        self.excused_services: list[tuple[float, str, str]] = []
        self.samples = self.samples_without = 0  # while some node could reach a majority
        self.without = self.longest_without = 0  # samples in a row
        self.at(0.5, self._sample)
        for name in self.order:
            self.boot(name, booted=self.random.uniform(-2, 0))
            self._tick_later(name, 0, period)

    # ------------------------------------------------ time

    def at(
        self,
        when: float,
        action: Callable[[], None],
        node: Node | None = None,
        process: Process | None = None,
    ) -> None:
        """Do `action` at real time `when`.

        On a node: void after a crash, held back while it is frozen. Of a process: void after its
        end, held back while it hangs.
        """
        self._count += 1
        life = node.life if node else 0
        event = (max(when, self.now), self._count, action, node, life, process)
        heapq.heappush(self._events, event)

    def _soon(self, process: Process, delay: float, action: Callable[[], None]) -> None:
        self._count += 1
        node = process.node
        event = (self.now + delay, self._count, action, node, node.life, process)
        heapq.heappush(self._events, event)

    def run_until(self, when: float) -> None:
        """Let everything happen that happens until then. Raises `TwoActive` and `WrongTerm`."""
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= when:
            self.now, _, action, node, life, process = pop(events)
            if node is None:
                action()
            elif node.life != life or (process and not process.alive):
                continue
            elif node.frozen or (process and (node.hung or process.stalled)):
                node.waiting.append((action, process))
            else:
                action()
        self.now = when

    def run_for(self, seconds: float) -> None:
        """As `run_until`, from now."""
        self.run_until(self.now + seconds)

    def _tick_later(self, name: str, number: int, period: float) -> None:
        node = self.nodes[name]
        start = number * period + node.skew - node.wrong_seconds(self.now)
        start += self.random.uniform(0.001, 0.02)
        self.at(start, lambda: self._tick(name))
        self.at((number + 1) * period, lambda: self._tick_later(name, number + 1, period))

    def _tick(self, name: str) -> None:
        node = self.nodes[name]
        if node.stopped:
            node.due = True
        elif node.up:
            self.at(self.now, lambda: self._start(node), node)

    def set_period(self, names: Iterable[str], period: float) -> None:
        """Give some nodes another, shorter period: their timers and what their agents read."""
        for name in names:
            times = self.agent.timing(period, period, self.conditions.pause_seconds)
            self.members[name] = self.members[name]._replace(times=times)
            self._tick_later(name, int(self.now / period) + 1, period)

    def _with_service(self, node: Node) -> Any:
        """Its members with what has joined, or was started and has not stopped yet."""
        members, rough = self.members[node.name], self.conditions
        stops = rough.stops_are_remembered and node.service == "stopping"
        if node.joined or not rough.stop_seconds:
            return members
        if not (node.may_start or stops):
            now = members.times
            times = self.agent.timing(now.period_seconds, now.look_seconds, now.pause_seconds, 0)
            members = members._replace(service=(), times=times)
        self.members[node.name] = members
        return members

    # ------------------------------------------------ releases

    def publish(self, name: str, release: Any) -> None:
        """From now on the web site gives a node this release."""
        newest = self.nodes[name].newest
        if newest is None or release.generation > newest.generation:
            self.nodes[name].newest = release

    def _prepare(self, process: Process) -> Any:
        """The members as a run begins with them, and the release that it takes a little later."""
        node, agent = process.node, self.agent
        members, held = self._with_service(node), node.held
        if node.newest is None:
            return members
        members = members._replace(
            release=held.generation if held else 0,
            generation=node.build[:12],
            in_effect=node.held is node.effective,
            proven=node.good_runs >= 2,
        )
        if node.effective:
            period = members.times.period_seconds
            tick = node.wall_clock(self.now) // period * period
            members = agent.asked_of(members, node.effective, tick)
        if members.replacement in node.failed_builds:
            members = members._replace(replacement="")
        self.members[node.name] = members
        self._soon(process, self.random.uniform(0.1, 1.5), lambda: self._take(node))
        return members

    def _take(self, node: Node) -> None:
        if not node.held or node.newest.generation > node.held.generation:
            node.held = node.newest

    def _go_on(self, process: Process) -> None:
        """At the end of a run: what the next one goes by, and which agent it is."""
        node, outcome = process.node, process.outcome
        if node.newest is None or outcome is None or process.leaving:
            return
        members = self.members[node.name]
        known = node.held and node.held.generation == members.release
        if known and self.agent.takes_effect(members, outcome.seen.markers):
            node.effective = node.held
        node.good_runs, node.failed_runs = node.good_runs + 1, 0
        turn = self.agent.may_be_replaced(members, outcome.state, outcome.seen.markers)
        if turn and not outcome.state.active:
            node.previous, node.build, node.good_runs = node.build, members.replacement, 0
            self.replaced.append((self.now, node.name, node.build))

    def _fails(self, process: Process) -> bool:
        """Whether the agent is of no use; after three runs the one before is back."""
        node = process.node
        if node.build not in self.useless:
            return False
        node.failed_runs += 1
        if node.failed_runs >= 3:
            node.failed_builds.add(node.build)
            node.build, node.good_runs, node.failed_runs = node.previous, 2, 0
            node.limit_began = float("-inf")  # as `systemctl reset-failed` does
        self._soon(process, 0.05, lambda: self._ended(process, failed=True))
        return True

    # ------------------------------------------------ what happens to nodes

    def boot(self, name: str, booted: float | None = None) -> None:
        """Power on: bootup removes probe and markers, memory is empty, Apache comes up."""
        node = self.nodes[name]
        node.booted = self.now if booted is None else booted
        node.wall_offset += node.gained(self.now)[0]
        node.rates_since, node.boot_gained, node.raw_gained = self.now, 0.0, 0.0
        node.slew, node.stopped = 0.0, False
        node.up, node.frozen, node.hung, node.apache = True, False, False, True
        node.state = None
        self._end_life(node)
        node.limit_began, node.doomed, node.late_seconds = float("-inf"), "", 0.0
        node.probe = node.staged = False
        node.service, node.may_start, node.fence_due = "stopped", False, 0.0
        node.lease_until = 0.0
        node.markers, node.waiting = {}, []
        node.bootup_clock = node.boot_clock(self.now)
        node.fence_id += 1

    def crash(self, name: str) -> None:
        """Power off: the disk stays as it is, nobody answers."""
        node = self.nodes[name]
        self._note_loss(node)
        node.up, node.service = False, "stopped"
        self._end_life(node)
        node.frozen = node.hung = False

    def _end_life(self, node: Node) -> None:
        node.life += 1
        for process in (node.process, node.run):
            if process:
                process.alive = False
        node.process = node.run = None

    def freeze(self, name: str) -> None:
        """The whole machine stops; its clocks go on."""
        self._note_loss(self.nodes[name])
        self.nodes[name].frozen = True

    def pause(self, name: str, seconds: float, step_after: float | None) -> None:
        """Its host stops the whole machine and its clocks for so long: to it nothing has happened.

        `step_after`: so long after it goes on its wall clock is stepped to be right again.
        """
        node, resumes = self.nodes[name], self.now + seconds
        if not node.up or node.frozen:
            return
        self._note_loss(node)
        slew, node.frozen = node.slew, True
        node.set_rates(self.now, stopped=True)
        later = [
            (when + seconds * (on is node), count, action, on, life, process)
            for when, count, action, on, life, process in self._events
        ]
        self._events[:] = later
        heapq.heapify(self._events)

        def go_on() -> None:
            node.set_rates(self.now, slew=slew)
            node.frozen = False
            if node.due:
                period = self.conditions.period_seconds
                to_the_tick = period - node.wall_clock(self.now) % period
                self.at(self.now + to_the_tick, lambda: self._tick(name))
                node.due = False
            if self.conditions.host_clock and (run := node.run) and run.pausing:
                pause_id, soon = run.pause_id, self.random.uniform(0, 0.25)
                self._soon(run, soon, lambda: self._pause_over(run, pause_id))
            self.note_paused(node, seconds)
            self.note_served(node)
            self.note_writers(node)
            if step_after is not None:
                self.at(self.now + step_after, lambda: self.right_clock(node), node)

        self.at(resumes, lambda: go_on() if node.stopped else None)

    def note_paused(self, node: Node, seconds: float) -> None:
        """A pause is over; what the protocol does not absorb is excused for a while."""
        node.pauses.append((self.now, seconds))
        lately = self.now - self.times.promise_seconds - seconds
        if sum(length for end, length in node.pauses if end > lately) > self.times.pause_seconds:
            node.excused_until, node.looks_on = self.now + self.times.lease_seconds, 0
            node.service_excused_until = node.excused_until

    def right_clock(self, node: Node) -> None:
        """The wall clock is stepped by what it has lost; systemd starts the fence for that."""
        period, before = self.conditions.period_seconds, node.wall_clock(self.now)
        node.wall_offset, node.stepped = -node.gained(self.now)[0], self.now
        if node.wall_clock(self.now) // period > before // period:
            self._tick(node.name)  # a tick that was jumped over comes at once
        if self.conditions.clock_fence:
            late, fence = self.random.uniform(0.02, 0.2), lambda: self._fence(node, node.fence_id)
            self.at(self.now + late, fence, node)
        self.note_served(node)

    def slew(self, name: str, rate: float, seconds: float) -> None:
        """A time daemon makes boot and wall clock go faster by `rate` for so long, or slower."""
        node = self.nodes[name]
        if node.up and not node.stopped:
            node.set_rates(self.now, slew=rate)
            self.at(self.now + seconds, lambda: node.set_rates(self.now), node)

    def hang(self, name: str) -> None:
        """The agent alone stops, and whichever process of it systemd starts."""
        self.nodes[name].hung = True

    def stall(self, name: str) -> None:
        """The process of the agent stops, until its time limit; the next one is well."""
        if process := self.nodes[name].process:
            process.stalled = True

    def thaw(self, name: str) -> None:
        """Frozen, hung or stalled: goes on. What was due meanwhile happens in a moment."""
        node = self.nodes[name]
        if node.stopped:
            return  # only its host can let it go on
        was_frozen, node.frozen, node.hung = node.frozen, False, False
        for process in (node.process, node.run):
            if process:
                process.stalled = False
        waiting, node.waiting = node.waiting, []
        self.random.shuffle(waiting)
        for action, process in waiting:
            self.at(self.now + self.random.uniform(0.0, 0.05), action, node, process)
        if was_frozen and node.up:
            late = node.boot_clock(self.now) > node.fence_due  # a known limit
            if late and (node.may_start or node.service != "stopped"):
                stopped = self.now + 0.2 + self._left_to_stop(node)
                node.service_excused_until = max(node.service_excused_until, stopped)
            self.note_served(node)
            self.note_writers(node)

    def kill_agent(self, name: str, *, restarted: bool = True) -> None:
        """Its process ends, as with SIGKILL; systemd starts the next one at once, or the timer."""
        node = self.nodes[name]
        for process in (node.process, node.run):
            if process and process.alive:
                self._ended(process, failed=restarted)

    def lose_state(self, name: str) -> None:
        """/run/bootstrap/state.json vanishes without a reboot."""
        self.nodes[name].state = None
        self.nodes[name].bootup_clock = float("nan")

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Drop what `a` opens towards `b` (and back)."""
        self.cuts |= {(a, b)} if one_way else {(a, b), (b, a)}

    def heal(self) -> None:
        """Undo all cuts."""
        self.cuts.clear()

    # ------------------------------------------------ who is active

    def served(self, node: Node) -> bool:
        """Whether the node's Apache would answer 200 for the probe now."""
        if not (node.up and node.apache and node.probe) or node.frozen:
            return False
        return not self.conditions.apache_refuses or node.wall_clock(self.now) < node.lease_until

    def active(self) -> list[str]:
        """The nodes that answer 200 now."""
        return [name for name, node in self.nodes.items() if node.probe and self.served(node)]

    def is_well(self, name: str) -> bool:
        """Whether the node is up, answers, and its agent is not stopped."""
        node = self.nodes[name]
        stalled = any(process and process.stalled for process in (node.process, node.run))
        return node.up and node.apache and not (node.frozen or node.hung or stalled)

    def _sample(self) -> None:
        """Count the moments without an active node although a majority was connected."""
        active = self.active()
        well = [name for name in self.order if self.is_well(name)]
        if active or not self.cuts:
            most = len(well)
        else:
            most = max(
                (
                    sum((a, b) not in self.cuts and (b, a) not in self.cuts for b in well)
                    for a in well
                ),
                default=0,
            )
        if most > len(self.order) // 2:
            self.samples += 1
            self.samples_without += not active
            self.without = 0 if active else self.without + 1
            self.longest_without = max(self.longest_without, self.without)
        self.at(self.now + self.conditions.period_seconds / 40, self._sample)

    def note_served(self, node: Node) -> None:
        """Check the rule whenever a node may have begun to answer 200. Raises `TwoActive`."""
        if not self.served(node):
            return
        others = [name for name in self.active() if name != node.name]
        if others:
            excused = max(self.nodes[name].excused_until for name in (node.name, *others))
            if self.now < excused:
                self.excused.append((self.now, node.name, others[0]))
                self.at(excused, lambda: self.note_served(node))
                return
            self.double.append((self.now, node.name, others[0]))
            raise TwoActive(f"{node.name} and {others[0]} are active at {self.now:.3f} s")
        if not self.elections or self.elections[-1][1] != node.name:
            self.elections.append((self.now, node.name))

    def _note_term(self, node: Node) -> None:
        """Check the term of who has just taken the role. Raises `WrongTerm`."""
        term, name = node.state.term, node.name
        if not self.checks_terms:
            return
        told = f"{name} serves with the term {term} at {self.now:.3f} s"
        if twice := {other for known, other in self.terms if known == term} - {name}:
            raise WrongTerm(f"{told}, as {', '.join(twice)} did")
        if not self.served(node) or self.now < node.excused_until:
            return  # it slept through its lease, and whoever compares terms refuses it
        if self.terms and term < max(self.terms)[0]:
            raise WrongTerm(f"{told}, after {max(self.terms)}")
        self.terms.append((term, name))

    def _note_loss(self, node: Node) -> None:
        """Called before the probe goes; Apache may have refused it a little earlier."""
        if node.up and node.apache and node.probe and not node.frozen:
            refused = self.now + node.lease_until - node.wall_clock(self.now)
            when = min(self.now, refused) if self.conditions.apache_refuses else self.now
            self.losses.append((when, node.name))

    # ------------------------------------------------ the agent's processes, as systemd has them

    def start(self, name: str) -> None:
        """Somebody starts the agent by hand: systemd knows nothing of that process."""
        node = self.nodes[name]
        if node.up and not node.frozen:
            self._fork(Process(node, self.now))

    def leave(self, name: str) -> None:
        """A planned stop: the timer's end, the run's, and then `loader.py leave`."""
        node = self.nodes[name]
        self.left.add(name)
        if node.process:
            self._terminate(node.process)
        self._fork(Process(node, self.now, leaving=True))

    def _start(self, node: Node) -> None:
        """By the timer, or again after a failure: never beside one that is alive, nor too often."""
        period = self.members[node.name].times.period_seconds
        if node.process or node.name in self.left:
            return
        if self.now > node.limit_began + START_LIMIT_PERIODS * period:
            node.limit_began, node.starts = self.now, 0
        node.starts += 1
        if node.starts > START_LIMIT:
            return
        node.process = process = Process(node, self.now)
        self.at(self.now + node.real_delay(period), lambda: self._time_limit(process), node)
        self._fork(process)

    def _fork(self, process: Process) -> None:
        node, rough = process.node, self.conditions
        node.ailing_runs += 1
        late = self.random.uniform(*node.ailment.late_periods) * rough.period_seconds
        late, node.late_seconds = late + node.late_seconds, 0.0
        usual = self.random.random() >= rough.slow_start_share
        start_up = self.random.uniform(*(rough.start_up_seconds if usual else (0.6, 1.5)))
        if node.doomed == "start-up":
            node.doomed = ""
            self._soon(process, late + start_up / 2, lambda: self._ended(process, failed=True))
        self._soon(process, late + start_up, lambda: self._lock(process))

    def _lock(self, process: Process) -> None:
        """Its imports are done. One run at a time: another one goes away, a handover waits."""
        node, times = process.node, self.members[process.node.name].times
        if self._fails(process):
            return
        if node.run and process.leaving:
            self._soon(process, 0.1, lambda: self._lock(process))
        elif node.run or (process.leaving and not node.probe):
            self._ended(process, failed=False)
        elif process.leaving:
            node.run = process
            wait = times.look_seconds - node.wall_clock(self.now) % times.look_seconds
            left = min(times.end_seconds, 1.5 * times.look_seconds - wait - times.connect_seconds)
            left += times.stop_seconds
            begins = node.real_delay(wait + 0.002)
            self._soon(process, begins, lambda: self._look(process, lambda now: now + left))
        else:
            node.run = process
            wall, age = node.wall_clock(self.now), self.now - process.began
            self._look(process, lambda now: now + self.agent.run_left_seconds(times, wall, age))

    def _look(self, process: Process, until_of: Callable[[float], float]) -> None:
        """The first look of a run, which the others follow."""
        node, members = process.node, self._prepare(process)
        process.clocks = node.state and node.state.clocks
        moment = self._moment(process)
        if node.state is None:
            epoch = f"{self.random.getrandbits(64):016x}"
            known = node.bootup_clock == node.bootup_clock
            start = node.bootup_clock if known else moment.slow_seconds
            times, promised = members.times, node.promised_seconds
            state = self.agent.first_state(epoch, start, times, promised)
            node.state = state._replace(kept=node.kept or state.kept)
        until = until_of(moment.now_seconds)
        process.untested = set(self.order)

        def makes_way() -> str:
            return self.announced.get(node.name, "")

        def unfit() -> str:
            return self.unfit.get(node.name, "")

        process.steps = self.agent.looks(
            *(members, node.state, moment, until),
            leaving=process.leaving,
            makes_way=makes_way,
            unfit=unfit,
        )
        self._step(process, lambda: next(process.steps))

    def _time_limit(self, process: Process) -> None:
        if process.alive:
            self._terminate(process)

    def _terminate(self, process: Process) -> None:
        """SIGTERM ends it at once, and SIGKILL what does not heed it."""
        self._soon(process, 0.0, lambda: self._kill(process))
        self.at(self.now + KILL_SECONDS, lambda: self._kill(process), process.node)

    def _kill(self, process: Process) -> None:
        if process.alive:
            self._ended(process, failed=True)

    def _ended(self, process: Process, *, failed: bool) -> None:
        """The process is gone; one that failed is started again."""
        node, process.alive = process.node, False
        if node.run is process:
            node.run = None
        if node.process is process:
            node.process = None
            if failed:
                self.at(self.now + RESTART_SECONDS, lambda: self._start(node), node)

    # ------------------------------------------------ one run of the agent

    def _clocks(self, process: Process) -> Any:
        """The two clocks that the agent makes of its readings."""
        boot, raw = process.node.boot_clock(self.now), process.node.raw_clock(self.now)
        process.clocks = self.agent.advance(process.clocks, boot, raw)
        return process.clocks

    def _moment(self, process: Process, value: Any = None) -> Any:
        node, clocks = process.node, self._clocks(process)
        host = self.now - node.raw_clock(self.now) if self.conditions.host_clock else None
        wall = node.wall_clock(self.now)
        times = clocks.fast_seconds, clocks.slow_seconds, wall, host
        return self.agent.Moment(*times, node.probe, value, self._service(node))

    def _service(self, node: Node) -> Any:
        if not self.members[node.name].service:
            return self.agent.Service()
        return self.agent.Service(node.service, "writer.service" if node.broken else "")

    def _proceed(self, process: Process, value: Any = None) -> None:
        moment = self._moment(process, value)
        self._step(process, lambda: process.steps.send(moment))

    def _answer(self, process: Process, value: Any = None, delay: float = 0.0) -> None:
        self._soon(process, delay, lambda: self._proceed(process, value))

    def _step(self, process: Process, proceed: Callable[[], Any]) -> None:
        try:
            effect = proceed()
        except StopIteration:
            self._exit(process)
            return
        node = process.node
        ailment, kind = node.ailment, type(effect)
        if ailment is WELL:
            self._do[kind](process, effect)
            return
        told = (node.ailing_runs, process.effects, kind.__name__)
        process.effects += 1
        if ailment.killed(*told):
            self.kill_agent(node.name)
        elif kind.__name__ in ("Save", "Show", "Serve", "Drop") and ailment.fails(*told):
            self._do_fail(process, kind.__name__)
        else:
            slow = self.random.uniform(*ailment.slow_seconds)
            self._soon(process, slow, lambda: self._do[kind](process, effect))

    def _exit(self, process: Process) -> None:
        """Its last look is over; what was saved stays in the node's state."""
        node, seconds = process.node, self.random.uniform(*EXIT_SECONDS)
        dies, node.doomed = node.doomed == "exit", node.doomed.replace("exit", "")
        self._go_on(process)
        if process.leaving:
            node.state = node.state._replace(finished=True, began_seconds=0.0)
        self._soon(process, seconds, lambda: self._ended(process, failed=dies))

    def _do_fail(self, process: Process, kind: str) -> None:
        node = process.node
        if kind == "Drop":  # it answers whether the probe is gone, and Apache refuses it
            node.lease_until = 0.0
            self._answer(process, not node.probe, delay=self._write_seconds())
            return
        error = OSError(f"{kind} fails")
        throw = lambda: self._step(process, lambda: process.steps.throw(error))  # noqa: E731
        self._soon(process, self._write_seconds(), throw)

    def _write_seconds(self) -> float:
        return 0.0002 + 0.0018 * self.random.random()

    def _do_outcome(self, process: Process, outcome: Any) -> None:
        """Report: status.json, and sometimes a trace."""
        node, process.outcome = process.node, outcome
        node.looks_on += outcome.seen.had_quorum  # else nobody told it what it slept through
        if node.looks_on == 2 and self.now < node.excused_until:  # a whole look since it went on
            node.excused_until = self.now
            stopped = self.now + self.conditions.stop_seconds
            node.service_excused_until = min(node.service_excused_until, stopped)
            self.note_served(node)
        self._answer(process, delay=2 * self._write_seconds())

    def _do_pause(self, process: Process, effect: Any) -> None:
        process.pause_id += 1
        process.pausing, pause_id = True, process.pause_id
        delay = process.node.real_delay(effect.seconds)
        self._soon(process, delay, lambda: self._pause_over(process, pause_id))

    def _pause_over(self, process: Process, pause_id: int) -> None:
        if process.pausing and process.pause_id == pause_id:
            process.pausing = False
            self._proceed(process)

    def _do_save(self, process: Process, effect: Any) -> None:
        def save() -> None:
            process.node.kept = effect.state.kept
            process.node.state = effect.state._replace(clocks=self._clocks(process))
            process.wall_offset = effect.state.wall_offset_seconds or process.wall_offset
            self._proceed(process)

        self._soon(process, 2 * self._write_seconds(), save)

    def _do_show(self, process: Process, effect: Any) -> None:
        delay = 0.0
        for peer, marker in effect.markers.items():
            delay += self._write_seconds()
            self._soon(process, delay, functools.partial(self._write, process, peer, marker))
        self._answer(process, delay=delay + self._write_seconds())

    def _write(self, process: Process, peer: str, marker: Any) -> None:
        node = process.node
        if marker is None:
            node.markers.pop(peer, None)
            return
        if self.conditions.pages:
            marker = self.agent.format_marker(self.members[node.name], marker).encode()
        node.markers[peer] = marker
        if self.conditions.replayed_share:
            self.shown.setdefault((node.name, peer), []).append(marker)

    def _do_drop(self, process: Process, _: Any) -> None:
        node = process.node

        def drop() -> None:
            self._note_loss(node)
            node.probe = node.staged = False
            node.lease_until = 0.0
            if node.service == "stopped":
                node.fence_id += 1
            else:
                self._stop_service(node)
            self._answer(process, True, delay=self._write_seconds())

        self._soon(process, self._write_seconds(), drop)

    def _do_serve(self, process: Process, effect: Any) -> None:
        node = process.node

        def arm() -> None:
            left = effect.until_seconds - self._clocks(process).fast_seconds
            if left <= 0:
                self._answer(process, False)
                return
            node.fence_id += 1
            fence_id = node.fence_id
            late = self.random.uniform(0, self.conditions.fence_late_seconds)
            when = self.now + node.real_delay(left) + late
            node.fence_due = deadline = node.boot_clock(self.now) + left
            fence = functools.partial(self._fence, node, fence_id)
            self.at(when, lambda: self._at_clock(node, deadline, fence), node)
            self._soon(process, self._write_seconds(), stage)

        def stage() -> None:
            wall = node.wall_clock(self.now)
            offset = wall - self._clocks(process).fast_seconds
            if node.probe and wall >= node.lease_until > 0:
                self.refusals.append((self.now, node.name))
                node.lease_until = 0.0
            node.lease_until = float(int(effect.until_seconds + min(offset, process.wall_offset)))
            node.staged = effect.commit or not node.probe
            if not effect.commit:
                there = node.probe or node.staged
                self._answer(process, there, delay=self._write_seconds())
                return
            self._soon(process, self._write_seconds(), commit)

        def commit() -> None:
            if self._clocks(process).fast_seconds >= effect.until_seconds:
                self._answer(process, False)
                return
            self._soon(process, self._write_seconds(), rename)

        def rename() -> None:
            if not node.staged:  # the fence came first: the rename fails
                error = OSError("no staged probe")
                self._step(process, lambda: process.steps.throw(error))
                return
            node.staged, node.probe = False, True
            self.note_served(node)
            self._note_term(node)
            self._answer(process, True, delay=self._write_seconds())

        self._soon(process, self.random.uniform(0.002, 0.03), arm)

    def _do_start(self, process: Process, effect: Any) -> None:
        node = process.node
        assert effect.term == node.state.term

        def ask() -> None:
            node.may_start = True
            if self._clocks(process).fast_seconds >= effect.until_seconds:
                error = OSError("too late to start")
                self._step(process, lambda: process.steps.throw(error))
                return
            self._soon(process, self._write_seconds(), start)

        def start() -> None:
            if node.may_start:  # else the fence came first
                seconds = self.random.uniform(*self.conditions.service_starts_seconds)
                self._becomes(node, "changing")
                self._later_becomes(node, seconds, "failed" if node.breaks else "running")
                self.note_writers(node)
            self._answer(process, delay=self._write_seconds())

        self._soon(process, self._write_seconds(), ask)

    def _becomes(self, node: Node, state: str) -> None:
        node.service, node.service_id = state, node.service_id + 1
        node.broken = state == "failed" or (node.broken and state != "changing")

    def _later_becomes(self, node: Node, seconds: float, state: str) -> None:
        """After so many seconds of the node's clock, unless something else becomes of it."""
        number = node.service_id

        def becomes() -> None:
            if node.service_id == number:
                self._becomes(node, state)

        self._at_clock(node, node.boot_clock(self.now) + seconds, becomes)

    def _stop_service(self, node: Node) -> None:
        """As stop-active.service does: what has not stopped in time is killed a little before."""
        node.may_start = False
        if node.service in ("stopped", "stopping"):
            return
        seconds = self.random.uniform(*self.conditions.service_stops_seconds)
        self._becomes(node, "stopping")
        limit = self._left_to_stop(node) - 0.3
        self._later_becomes(node, min(seconds, max(limit, 0.1)), "stopped")

    def _left_to_stop(self, node: Node) -> float:
        """Of the time for a stop: it counts from the fence, however late that acts."""
        late_seconds = max(0.0, node.boot_clock(self.now) - node.fence_due)
        return max(0.0, self.conditions.stop_seconds - late_seconds)

    def writes(self, node: Node) -> bool:
        """Whether anything of the node's service runs now."""
        return node.service not in ("stopped", "failed") and node.up and not node.frozen

    def note_writers(self, node: Node) -> None:
        """Check the rule when a service starts, or its machine goes on. Raises `TwoActive`."""
        others = [other for other in self.nodes.values() if other is not node]
        for other in others if self.writes(node) else ():
            if self.writes(other):
                excused = max(node.service_excused_until, other.service_excused_until)
                if self.now >= excused:
                    names = f"{node.name} and {other.name}"
                    raise TwoActive(f"{names} are active at {self.now:.3f} s: services")
                self.excused_services.append((self.now, node.name, other.name))
                self.at(excused, lambda: self.note_writers(node))
                return

    def fail_service(self, name: str) -> None:
        """Its process dies."""
        if self.nodes[name].service == "running":
            self._becomes(self.nodes[name], "failed")

    def mend_service(self, name: str) -> None:
        """Somebody found out why it had failed, and told systemd to forget it."""
        if self.nodes[name].service == "failed":
            self._becomes(self.nodes[name], "stopped")
        self.nodes[name].broken = False

    def _at_clock(self, node: Node, deadline: float, action: Callable[[], None]) -> None:
        """A timer's deadline is one of the boot clock, whatever became of its rate."""
        left = deadline - node.boot_clock(self.now)
        if left > 1e-6:
            when = self.now + node.real_delay(left)
            self.at(when, lambda: self._at_clock(node, deadline, action), node)
        else:
            action()

    def _fence(self, node: Node, fence_id: int) -> None:
        if node.fence_id == fence_id:
            self._note_loss(node)
            node.probe = node.staged = False
            if self.conditions.fence_stops:
                self._stop_service(node)

    # ------------------------------------------------ the network

    def _do_poll(self, process: Process, effect: Any) -> None:
        times, name = self.times, process.node.name
        process.poll_id += 1
        poll_id, process.wait_for, process.replies = process.poll_id, effect.wait_for, {}
        late, process.late = process.late, {}
        for peer, reply in late.items():
            self._take_in(process, peer, reply)
        for peer in self.order:
            if peer != name and peer not in process.asked:
                process.asked.add(peer)
                untested = peer in process.untested
                patience = times.connect_seconds if untested else times.timeout_seconds
                self._get(process, peer, patience, page=untested)
        process.wait_for = effect.wait_for & process.asked  # what came late is asked anew
        if not process.wait_for:
            self._poll_over(process, poll_id)
        else:
            timeout = process.node.real_delay(times.timeout_seconds)
            self._soon(process, timeout, lambda: self._poll_over(process, poll_id))

    def _latency(self) -> float:
        kind = self.random.random()
        if kind < self.conditions.slow_share:
            return self.random.uniform(0.05, 2.0)
        return 0.0015 + 0.0285 * self.random.random()

    def _get(self, process: Process, peer: str, patience: float, *, page: bool) -> None:
        """One GET; of the front page at first, then of the marker about us."""
        node, out, back = process.node, self._latency(), self._latency()
        lost_share = max(self.conditions.lost_share, node.ailment.lost_share)
        lost = self.random.random() < lost_share or out + back > patience
        sent, target = self.now, self.nodes[peer]

        def arrive() -> None:
            if not process.alive:
                return  # who asked is gone
            refused, goes_on = None, False
            if lost or (node.name, peer) in self.cuts or not target.up or target.frozen:
                when, answer = sent + node.real_delay(patience), refused
            elif not target.apache:
                when, answer = self.now + back, refused
            else:
                when, answer, goes_on = self.now + back, self._read(target, node), page

            def arrived() -> None:
                if goes_on:
                    self._get(process, peer, self.times.timeout_seconds, page=False)
                else:
                    self._finish(process, peer, answer)

            self.at(when, arrived, node, process)

        self.at(self.now + min(out, patience), arrive)

    def _content(self, target: Node, reader: Node) -> Any:
        """The marker as the reader gets it: now and then one that was recorded before."""
        if self.conditions.replayed_share:
            recorded = self.shown.get((target.name, reader.name), [])
            if recorded and self.random.random() < self.conditions.replayed_share:
                return self.random.choice(recorded)
        return target.markers.get(reader.name)

    def _read(self, target: Node, reader: Node) -> Any:
        content = self._content(target, reader)
        status, body = (404, b"") if content is None else (200, content)
        answer = self.agent.Answer(status, body, {}, True)
        holds = reader.probe or reader.may_start
        beside = self._beside(target, reader) if content is None and holds else None
        return self.agent.Reply(answer, beside)

    def _beside(self, target: Node, reader: Node) -> Any:
        """What a node shows one of those that it sees: whoever is active asks for that as well."""
        for name in self.order:
            if name not in (target.name, reader.name) and name in target.markers:
                return name, self.agent.Answer(200, target.markers[name], {}, True)
        return None

    def _finish(self, process: Process, peer: str, reply: Any) -> None:
        if process.replies is None:
            process.late[peer] = reply
            return
        self._take_in(process, peer, reply)
        process.wait_for -= {peer}
        if not process.wait_for:
            self._poll_over(process, process.poll_id)

    def _take_in(self, process: Process, peer: str, reply: Any) -> None:
        assert process.replies is not None
        process.asked.discard(peer)
        process.replies.pop(peer, None)
        if reply is not None:
            process.untested.discard(peer)
            process.replies[peer] = reply

    def _poll_over(self, process: Process, poll_id: int) -> None:
        if process.poll_id == poll_id and process.replies is not None:
            replies, process.replies = process.replies, None
            self._proceed(process, replies)


# ------------------------------------------------ faults


class Faults:
    """Random faults from the simulation's own seed, each undone after a while."""

    def __init__(self, simulation: Simulation, every_seconds: float) -> None:
        self.simulation, self.every_seconds = simulation, every_seconds
        self.random = simulation.random
        self.on = False
        self.kinds = [
            *(self.cut, self.cut_one_way, self.isolate, self.crash, self.reboot, self.hang),
            *(self.kill, self.stop_apache, self.step_clock, self.lose_state, self.ring),
        ]
        if simulation.conditions.apache_refuses:
            self.kinds.append(self.freeze)
        self.kinds += [self.pause, self.pause_several, self.slew]
        if simulation.conditions.stop_seconds:
            self.kinds.append(simulation.fail_service)
        if simulation.times.look_seconds < simulation.times.period_seconds:
            self.kinds += [self.die_at_exit, self.die_in_start_up, self.start_late]
            self.kinds += [self.start_twice, self.kill_for_a_period, self.stall]

    def start(self) -> None:
        """A fault about every `every_seconds`, until `stop`."""
        self.on = True
        self._later()

    def _later(self) -> None:
        wait = self.random.expovariate(1 / self.every_seconds)
        self.simulation.at(self.simulation.now + wait, self._strike)

    def _strike(self) -> None:
        if self.on:
            self.random.choice(self.kinds)(self.random.choice(self.simulation.order))
            self._later()

    def _undo(self, action: Callable[[], None]) -> None:
        times = self.simulation.times
        longest = self.random.choice([0.1, 1, 3])
        unit = self.random.choice([times.period_seconds, times.look_seconds])
        wait = self.random.uniform(0, longest * 2 * unit)
        self.simulation.at(self.simulation.now + wait, action)

    def stop(self) -> None:
        """Everything works again from now on."""
        self.on = False
        simulation = self.simulation
        simulation.heal()
        for name, node in simulation.nodes.items():
            node.apache = True
            node.doomed, node.late_seconds = "", 0.0
            simulation.mend_service(name)
            if node.stopped:
                simulation.note_paused(node, simulation.now - node.rates_since)
            if node.stopped or node.slew:
                node.set_rates(simulation.now)
            if not node.up:
                simulation.boot(name)
            simulation.thaw(name)
            if abs(node.wrong_seconds(simulation.now)) > 0.001:
                right = functools.partial(simulation.right_clock, node)
                simulation.at(simulation.now + 1, right, node)

    def pause(self, name: str) -> None:
        """By its host: all clocks of the machine stand still, and later one of them is righted."""
        longest = self.random.choice([1.0, 5.0, 30.0])
        self._pause(name, self.random.uniform(0, longest))

    def pause_several(self, _: str) -> None:
        """At once, and of different length."""
        for name in self.random.sample(self.simulation.order, 2):
            self._pause(name, self.random.uniform(0, 10))

    def _pause(self, name: str, seconds: float) -> None:
        step_after = self.random.choice([0.0, 1.0, 5.0, None])
        self.simulation.pause(name, seconds, step_after)

    def slew(self, name: str) -> None:
        """A time daemon moves the clocks of one node, or of several, as fast as it may."""
        for slewed in sorted({name, self.random.choice(self.simulation.order)}):
            rate = self.random.choice([-1, 1]) * self.random.choice([0.0834, 0.1])
            self.simulation.slew(slewed, rate, self.random.uniform(0, 30))

    def cut(self, name: str) -> None:
        """Both ways."""
        other = self.random.choice([peer for peer in self.simulation.order if peer != name])
        self.simulation.cut(name, other)
        self._undo(lambda: self._uncut({(name, other), (other, name)}))

    def cut_one_way(self, name: str) -> None:
        """In only, or out only."""
        other = self.random.choice([peer for peer in self.simulation.order if peer != name])
        self.simulation.cut(name, other, one_way=True)
        self._undo(lambda: self._uncut({(name, other)}))

    def isolate(self, name: str) -> None:
        """One node from all others."""
        pairs = {
            pair
            for peer in self.simulation.order
            if peer != name
            for pair in ((name, peer), (peer, name))
        }
        self.simulation.cuts |= pairs
        self._undo(lambda: self._uncut(pairs))

    def ring(self, _: str) -> None:
        """Each node sees its two neighbours alone; with three nodes, one link is cut."""
        order = list(self.simulation.order)
        self.random.shuffle(order)
        count = len(order)
        pairs = {
            (order[i], order[j])
            for i in range(count)
            for j in range(count)
            if i != j and (abs(i - j) not in (1, count - 1) or (count == 3 and {i, j} == {0, 1}))
        }
        self.simulation.cuts |= pairs
        self._undo(lambda: self._uncut(pairs))

    def _uncut(self, pairs: set[tuple[str, str]]) -> None:
        self.simulation.cuts -= pairs

    def crash(self, name: str) -> None:
        """Power off, and on again some time later."""
        if self.simulation.nodes[name].up:
            self.simulation.crash(name)
            self._undo(lambda: self._boot(name))

    def _boot(self, name: str) -> None:
        if not self.simulation.nodes[name].up:
            self.simulation.boot(name)

    def reboot(self, name: str) -> None:
        """Off and on within seconds: what a voter promised is forgotten at once."""
        if self.simulation.nodes[name].up:
            self.simulation.crash(name)
            self.simulation.at(
                self.simulation.now + self.random.uniform(0.5, 5), lambda: self._boot(name)
            )

    def hang(self, name: str) -> None:
        """The agent alone stands still."""
        self.simulation.hang(name)
        self._undo(lambda: self._thaw(name))

    def freeze(self, name: str) -> None:
        """The machine stands still; its clock was not moved in this lease (a known limit)."""
        moved = self.simulation.nodes[name].stepped
        node, period = self.simulation.nodes[name], self.simulation.conditions.period_seconds
        if node.up and not node.frozen and self.simulation.now - moved > 2 * period:
            self.simulation.freeze(name)
            self._undo(lambda: self._thaw(name))

    def _thaw(self, name: str) -> None:
        if self.simulation.nodes[name].up:
            self.simulation.thaw(name)

    def kill(self, name: str) -> None:
        """The run under way is killed, and started again at once."""
        self.simulation.kill_agent(name)

    def kill_for_a_period(self, name: str) -> None:
        """The run under way is killed, and not started again before the next tick."""
        self.simulation.kill_agent(name, restarted=False)

    def die_at_exit(self, name: str) -> None:
        """Killed in the gap, after the last look of the run."""
        self.simulation.nodes[name].doomed = "exit"

    def die_in_start_up(self, name: str) -> None:
        """Killed in the gap, before the first look of the next run."""
        self.simulation.nodes[name].doomed = "start-up"

    def start_late(self, name: str) -> None:
        """The next run starts so late that the gap is longer than it should be."""
        longest = self.random.choice([1, 3])
        late_seconds = self.random.uniform(0, longest * self.simulation.times.look_seconds)
        self.simulation.nodes[name].late_seconds = late_seconds

    def start_twice(self, name: str) -> None:
        """Somebody starts the agent by hand, now, or when the next tick does."""
        period = self.simulation.times.period_seconds
        to_the_tick = period - self.simulation.now % period + self.random.uniform(-0.7, 0.7)
        wait = self.random.choice([0.0, max(0.0, to_the_tick)])
        self.simulation.at(self.simulation.now + wait, lambda: self.simulation.start(name))

    def stall(self, name: str) -> None:
        """The process under way stands still, until its time limit or before."""
        self.simulation.stall(name)
        self._undo(lambda: self._thaw(name))

    def stop_apache(self, name: str) -> None:
        """Nobody gets an answer, the agent goes on."""
        node = self.simulation.nodes[name]
        node.apache = False

        def start() -> None:
            node.apache = True
            self.simulation.note_served(node)

        self._undo(start)

    def step_clock(self, name: str) -> None:
        """The wall clock jumps a minute either way, the boot clock does not."""
        if self.simulation.nodes[name].frozen:
            return  # what a host does to a frozen machine's clock is a known limit
        self.simulation.nodes[name].wall_offset += self.random.choice([-60, 60])
        self.simulation.nodes[name].stepped = self.simulation.now

    def lose_state(self, name: str) -> None:
        """The promises vanish without a reboot, rarely."""
        if self.random.random() < 0.2:
            self.simulation.lose_state(name)


# ------------------------------------------------ the command


@dataclass(frozen=True)
class Result:
    """What one stretch of simulated time showed."""

    seed: int
    conditions: Conditions
    seconds: float
    successions: int  # a node became active after another one had been
    losses: int
    share_without: float  # of the time in which a majority was connected
    failure: str = ""


PACES = (*4 * ((20, 2),), (20, 20), (2, 2), (10, 5), (60, 2))
"""Periods and looks in seconds, the default most often."""


def conditions_of(seed: int, pace: tuple[float, float] | None = None) -> Conditions:
    """The conditions of a seed: sizes, paces and clocks take turns; or those of one pace."""
    draw = random.Random(seed)
    drawn = draw.choice(PACES)
    period, look = pace or drawn
    return Conditions(
        nodes=draw.choice([3, 5]),
        period_seconds=period,
        look_seconds=look,
        tick_spread_seconds=draw.choice([0.3, 2.0 if look == 20 else 0.6]),
        apache_refuses=draw.choice([True, True, False]),
        fence_late_seconds=draw.choice([0.1, 0.6 if look == 20 else 0.15]),
        start_up_seconds=draw.choice([(0.15, 0.3), (0.15, 0.6)]),
        slow_start_share=draw.choice([0.0, 0.01]),
        pause_seconds=draw.choice([0, 5, 5]),
        host_clock=draw.choice([False, True]),
        pages=draw.random() < 1 / 16,
    )


def ready_seconds(simulation: Simulation, node: Node) -> float:
    """How long it may take at most until a node looks: at once, or from its next tick on."""
    times = simulation.times
    latest: float = (
        2.0 + KILL_SECONDS
    )  # a slow start-up; before it, what stands still may be killed
    if node.process:  # in its start-up it is as late as any fault makes it
        return latest if node.process.steps else latest + 3.0 * float(times.look_seconds)
    period = simulation.conditions.period_seconds
    to_the_tick = period - simulation.now % period + node.skew
    counted = node.limit_began + START_LIMIT_PERIODS * period
    if node.starts >= START_LIMIT and counted > simulation.now + to_the_tick:
        to_the_tick += period
    return to_the_tick + latest


def unrecovered(simulation: Simulation) -> str:
    """What is wrong after the faults are over, "" where nothing is.

    Somebody must be active within the time that the agent states for a failover, counted from when
    all nodes look; and the most preferred one five looks later, the time in which a node that was
    in trouble is preferred again (`looks_to_prefer`).
    """
    agent, times = simulation.agent, simulation.times
    all_look = simulation.now + max(ready_seconds(simulation, n) for n in simulation.nodes.values())
    starts = simulation.conditions.service_starts_seconds[1] if times.stop_seconds else 0
    anybody_by = all_look + agent.worst_failover_seconds(times) + starts
    preferred_by = anybody_by + 5 * times.look_seconds + times.gap_seconds
    preferred_by += times.stop_seconds + starts  # on another node, and on this one
    anybody = False
    while simulation.active() != ["node1"]:
        anybody = anybody or bool(simulation.active())
        if simulation.now > anybody_by and not anybody:
            return f"nobody active {agent.worst_failover_seconds(times):g} s after all nodes look"
        if simulation.now > preferred_by:
            return f"active after recovery: {simulation.active() or 'nobody'}"
        simulation.run_for(times.look_seconds / 20)
    return ""


def simulate(
    seed: int, mutations: tuple[tuple[str, str], ...] = (), conditions: Conditions | None = None
) -> Result:
    """Three times 30 periods of faults, each with the time to recover afterwards."""
    conditions = conditions or conditions_of(seed)
    simulation = Simulation(conditions, seed, load_agent(*mutations))
    simulation.checks_terms, times = not mutations, simulation.times
    faults = Faults(simulation, every_seconds=0.625 * (times.period_seconds + times.look_seconds))
    failure = ""
    try:
        simulation.run_for(3 * conditions.period_seconds)
        for _ in range(3):
            faults.start()
            simulation.run_for(30 * conditions.period_seconds)
            faults.stop()
            if failure := unrecovered(simulation):
                break
    except (TwoActive, WrongTerm) as error:
        failure = str(error)
    successions = max(0, len(simulation.elections) - 1)
    without = simulation.samples_without / max(1, simulation.samples)
    losses = len(simulation.losses)
    return Result(seed, conditions, simulation.now, successions, losses, without, failure)


def simulate_many(
    seeds: Iterable[int],
    hours: float,
    processes: int,
    conditions_of: Callable[[int], Conditions] = conditions_of,
) -> list[Result]:
    """Simulate seed after seed until so many hours are through."""
    results: list[Result] = []
    total, seeds = 0.0, iter(seeds)
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        while total < hours * 3600:
            drawn = [next(seeds) for _ in range(8 * processes)]
            conditions = [conditions_of(seed) for seed in drawn]
            batch = list(pool.map(simulate, drawn, len(drawn) * [()], conditions))
            results += batch
            total += sum(result.seconds for result in batch)
            if any(result.failure for result in batch):
                break
    return results


def main() -> int:
    """Print what was simulated; 1 when a rule was broken, with the seed that shows it again."""
    parser = argparse.ArgumentParser(description="Simulate clusters of the production agent.")
    parser.add_argument("--hours", type=float, default=1.0, help="simulated time in all")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; each adds one")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--period-seconds", type=float, help="with --look-seconds: these alone")
    parser.add_argument("--look-seconds", type=float)
    parser.add_argument(
        "--stop-seconds", type=float, default=0, help="a service runs with the role"
    )
    parser.add_argument("--only", action="store_true", help="this one seed, to replay it")
    asked = parser.parse_args()
    if (asked.period_seconds is None) != (asked.look_seconds is None):
        parser.error("--period-seconds and --look-seconds: both, or none")
    pace = (asked.period_seconds, asked.look_seconds) if asked.look_seconds else None

    def conditions(seed: int) -> Conditions:
        return replace(conditions_of(seed, pace), stop_seconds=asked.stop_seconds)

    began = time.monotonic()
    if asked.only:
        results = [simulate(asked.seed, conditions=conditions(asked.seed))]
    else:
        seeds = iter(range(asked.seed, sys.maxsize))
        results = simulate_many(seeds, asked.hours, asked.processes, conditions)
    hours = sum(result.seconds for result in results) / 3600
    failures = [result for result in results if result.failure]
    print(
        f"seeds {results[0].seed} to {results[-1].seed}: {hours:.1f} simulated hours in"
        f" {time.monotonic() - began:.0f} s;"
        f" {sum(result.successions for result in results)} times another node became active,"
        f" at least {min(result.successions for result in results)} and in the median"
        f" {statistics.median(result.successions for result in results):g} times a seed; nobody"
        f" active in {statistics.mean(result.share_without for result in results):.1%} of the time"
        " in which a majority was connected"
    )
    for result in failures:
        print(f"seed {result.seed}: {result.failure} ({result.conditions})")
        again = f" --period-seconds {pace[0]:g} --look-seconds {pace[1]:g}" if pace else ""
        again += f" --stop-seconds {asked.stop_seconds:g}" if asked.stop_seconds else ""
        print(f"  replay: python tests/protocol/simulate.py --only --seed {result.seed}{again}")
    print("never two active, always one again" if not failures else "FAILED")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
