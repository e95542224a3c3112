"""Simulate clusters of the production agent: its `settle`, `decide` and marker parsing.

Only time, the network and the machine are made up: every GET, write and commit is an event of its
own on a virtual clock. One seed drives all, is printed, and replays the run:

    python tests/protocol/simulate.py --hours 20 --seed 7
    python tests/protocol/simulate.py --hours 1000 --processes 2
"""

import argparse
import concurrent.futures
import heapq
import logging
import random
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOADER = Path(__file__).resolve().parents[2] / "agent" / "loader.py"
KEY = bytes(range(32))


class TwoActive(AssertionError):  # noqa: N818 - the sentence that it says
    """Two nodes answered 200 at the same moment: what must never happen."""


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
    return module


@dataclass(frozen=True)
class Conditions:
    """How rough it is out there."""

    nodes: int = 3
    period_seconds: float = 20
    tick_spread_seconds: float = 0.3  # nodes start their runs so far apart
    drift: float = 0.001  # each boot clock runs within this of real time, rho / 2 each way
    slow_share: float = 0.01  # requests that take up to two seconds
    lost_share: float = 0.002
    fence_late_seconds: float = 0.1  # systemd's accuracy, and the start of rm
    apache_refuses: bool = True  # Apache honours lease_until
    replayed_share: float = 0.0  # answers in whose place an older marker of the peer's comes


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


@dataclass
class Node:
    """One machine: its clocks, its disk, its memory, and the run that is under way."""

    name: str
    drift: float
    skew: float
    booted: float = 0.0
    up: bool = True
    frozen: bool = False
    hung: bool = False
    apache: bool = True
    wall_offset: float = 0.0
    life: int = 0  # counts boots: events of an earlier one are void
    run_id: int = 0  # counts runs: events of a killed one are void
    steps: Any = None
    state: Any = None  # what /run holds
    bootup_clock: float = 0.0
    markers: dict[str, str] = field(default_factory=dict)  # /var/www/html/<peer>.html
    probe: bool = False
    staged: bool = False
    lease_until: float = 0.0  # wall clock, for Apache
    fence_id: int = 0
    asked: dict[str, int] = field(default_factory=dict)  # peer -> run_id of a request under way
    late: dict[str, Any] = field(default_factory=dict)
    untested: set[str] = field(default_factory=set)  # not reached in this run so far
    poll: Any = None
    waiting: list[Callable[[], None]] = field(default_factory=list)  # held back while frozen
    promised_seconds: float = 0.0  # what the disk says of promises before this boot
    ailment: Ailment = Ailment()
    ailing_runs: int = 0
    effects: int = 0  # of the run under way

    def boot_clock(self, now: float) -> float:
        """Seconds since boot, by this node's own clock."""
        return (now - self.booted) * (1 + self.drift)

    def real_delay(self, seconds: float) -> float:
        """How long so many seconds of this node's clock really are."""
        return seconds / (1 + self.drift)


@dataclass
class Poll:
    """One poll under way."""

    wait_for: set[str]
    replies: dict[str, Any]
    done: bool = False


class Simulation:
    """A cluster on a virtual clock. `now` is real time in seconds, known to nobody inside."""

    def __init__(self, conditions: Conditions, seed: int, agent: Any, times: Any = None) -> None:
        self.conditions, self.agent, self.random = conditions, agent, random.Random(seed)
        self.times = times or agent.timing(conditions.period_seconds, conditions.period_seconds, 0)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.order = tuple(f"node{index + 1}" for index in range(conditions.nodes))
        spread, half = conditions.tick_spread_seconds, conditions.drift / 2
        self.nodes = {
            name: Node(name, self.random.uniform(-half, half), self.random.uniform(0, spread))
            for name in self.order
        }
        self.members = {
            name: agent.Members(name, self.order, KEY, self.times) for name in self.order
        }
        self.left: set[str] = set()
        self.leaving: set[str] = set()  # the next run hands over, and is the last
        self.shown: dict[tuple[str, str], list[str]] = {}  # every marker, where some come again
        self.cuts: set[tuple[str, str]] = set()  # (a, b): a can't open connections to b
        self.elections: list[tuple[float, str]] = []  # when somebody became active, and who
        self.losses: list[tuple[float, str]] = []
        self.double: list[tuple[float, str, str]] = []
        self.samples = self.samples_without = 0  # while some node could reach a majority
        self.without = self.longest_without = 0  # samples in a row
        self.at(0.5, self._sample)
        for name in self.order:
            self.boot(name, booted=self.random.uniform(-2, 0))
            self._tick_later(name, 0, conditions.period_seconds)

    # ------------------------------------------------ time

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do `action` at real time `when`."""
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, action))

    def run_until(self, when: float) -> None:
        """Let everything happen that happens until then. Raises `TwoActive`."""
        while self._events and self._events[0][0] <= when:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = when

    def run_for(self, seconds: float) -> None:
        """As `run_until`, from now."""
        self.run_until(self.now + seconds)

    def _at_node(self, node: Node, when: float, action: Callable[[], None], *, agent: bool) -> None:
        """An event on a node: void after a crash or a kill, held back while it is frozen."""
        life, run_id = node.life, node.run_id

        def guarded() -> None:
            if node.life != life or (agent and node.run_id != run_id):
                return
            if node.frozen or (agent and node.hung):
                node.waiting.append(guarded)
            else:
                action()

        self.at(when, guarded)

    def _tick_later(self, name: str, number: int, period: float) -> None:
        start = number * period + self.nodes[name].skew + self.random.uniform(0.05, 0.25)
        self.at(start, lambda: self._tick(name))
        self.at((number + 1) * period, lambda: self._tick_later(name, number + 1, period))

    def set_period(self, names: Iterable[str], period: float) -> None:
        """Give some nodes another, shorter period: their timers and what their agents read."""
        for name in names:
            times = self.agent.timing(period, period, 0)
            self.members[name] = self.members[name]._replace(times=times)
            self._tick_later(name, int(self.now / period) + 1, period)

    # ------------------------------------------------ what happens to nodes

    def boot(self, name: str, booted: float | None = None) -> None:
        """Power on: bootup removes probe and markers, memory is empty, Apache comes up."""
        node = self.nodes[name]
        node.booted = self.now if booted is None else booted
        node.up, node.frozen, node.hung, node.apache = True, False, False, True
        node.life += 1
        node.run_id += 1
        node.steps = node.state = node.poll = None
        node.probe = node.staged = False
        node.lease_until = 0.0
        node.markers, node.asked, node.late, node.waiting = {}, {}, {}, []
        node.bootup_clock = node.boot_clock(self.now)
        node.fence_id += 1

    def crash(self, name: str) -> None:
        """Power off: the disk stays as it is, nobody answers."""
        node = self.nodes[name]
        self._note_loss(node)
        node.up = False
        node.life += 1
        node.run_id += 1
        node.steps = None
        node.frozen = node.hung = False

    def freeze(self, name: str) -> None:
        """The whole machine stops; its clocks go on."""
        self._note_loss(self.nodes[name])
        self.nodes[name].frozen = True

    def hang(self, name: str) -> None:
        """The agent alone stops."""
        self.nodes[name].hung = True

    def thaw(self, name: str) -> None:
        """Frozen or hung: goes on where it was. What was due meanwhile happens in a moment."""
        node = self.nodes[name]
        was_frozen, node.frozen, node.hung = node.frozen, False, False
        waiting, node.waiting = node.waiting, []
        self.random.shuffle(waiting)
        for action in waiting:
            self.at(self.now + self.random.uniform(0.0, 0.05), action)
        if was_frozen and node.up:
            self.note_served(node)

    def kill_agent(self, name: str) -> None:
        """The run under way ends, as with SIGKILL."""
        node = self.nodes[name]
        node.run_id += 1
        node.steps = None
        node.asked = {}

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
        return not self.conditions.apache_refuses or self.now + node.wall_offset < node.lease_until

    def active(self) -> list[str]:
        """The nodes that answer 200 now."""
        return [name for name in self.order if self.served(self.nodes[name])]

    def _sample(self) -> None:
        """Count the moments without an active node although a majority was connected."""
        well = [n for n, node in self.nodes.items() if node.up and node.apache]
        well = [n for n in well if not (self.nodes[n].frozen or self.nodes[n].hung)]
        mutual = {
            name: sum((name, p) not in self.cuts and (p, name) not in self.cuts for p in well)
            for name in well
        }
        if mutual and max(mutual.values()) > len(self.order) // 2:
            self.samples += 1
            self.samples_without += not self.active()
            self.without = 0 if self.active() else self.without + 1
            self.longest_without = max(self.longest_without, self.without)
        self.at(self.now + self.conditions.period_seconds / 40, self._sample)

    def note_served(self, node: Node) -> None:
        """Check the rule whenever a node may have begun to answer 200. Raises `TwoActive`."""
        if not self.served(node):
            return
        others = [name for name in self.active() if name != node.name]
        if others:
            self.double.append((self.now, node.name, others[0]))
            raise TwoActive(f"{node.name} and {others[0]} are active at {self.now:.3f} s")
        if not self.elections or self.elections[-1][1] != node.name:
            self.elections.append((self.now, node.name))

    def _note_loss(self, node: Node) -> None:
        """Called before the probe goes; Apache may have refused it a little earlier."""
        if node.up and node.apache and node.probe and not node.frozen:
            refused = node.lease_until - node.wall_offset
            when = min(self.now, refused) if self.conditions.apache_refuses else self.now
            self.losses.append((when, node.name))

    # ------------------------------------------------ one run of the agent

    def _tick(self, name: str) -> None:
        node = self.nodes[name]
        if not node.up or node.frozen or node.hung or node.steps is not None:
            return
        if name in self.left:
            return
        node.run_id += 1
        node.ailing_runs += 1
        late_seconds = (
            self.random.uniform(*node.ailment.late_periods) * self.conditions.period_seconds
        )
        self._at_node(
            node, self.now + late_seconds, lambda: self._start(node, late_seconds), agent=True
        )

    def _start(self, node: Node, late_seconds: float) -> None:
        """A run, `late_seconds` after the tick: its end counts from there, as systemd's limit."""
        name = node.name
        leaving = name in self.leaving
        self.left |= {name} & self.leaving
        node.asked, node.late, node.effects = {}, {}, 0
        if node.state is None:
            epoch = f"{self.random.getrandbits(64):016x}"
            known = node.bootup_clock == node.bootup_clock
            now = node.boot_clock(self.now)
            start = node.bootup_clock if known else now
            times = self.members[name].times
            node.state = self.agent.first_state(epoch, start, times, node.promised_seconds)
        members, moment = self.members[name], self._moment(node)
        until = moment.boot_seconds + members.times.end_seconds - late_seconds
        node.steps = self.agent.settle(members, node.state, moment, until, leaving=leaving)
        node.untested = set(self.order)
        limit = node.real_delay(0.95 * members.times.period_seconds - late_seconds)
        run_id = node.run_id
        self.at(self.now + limit, lambda: self._time_limit(node, run_id))
        self._step(node, lambda: next(node.steps))

    def _time_limit(self, node: Node, run_id: int) -> None:
        """systemd kills a run at the time limit of its unit, a hung one too."""
        if node.run_id == run_id and node.steps is not None and not node.frozen:
            self.kill_agent(node.name)

    def _moment(self, node: Node, value: Any = None) -> Any:
        clock, wall = node.boot_clock(self.now), self.now + node.wall_offset
        return self.agent.Moment(clock, wall, node.probe, value)

    def _answer(self, node: Node, value: Any = None, delay: float = 0.0) -> None:
        resume = lambda: self._step(node, lambda: node.steps.send(self._moment(node, value)))  # noqa: E731
        self._at_node(node, self.now + delay, resume, agent=True)

    def _step(self, node: Node, proceed: Callable[[], Any]) -> None:
        try:
            effect = proceed()
        except StopIteration:
            node.steps = None  # what it saved stays in node.state
            return
        kind, ailment, node.effects = type(effect).__name__, node.ailment, node.effects + 1
        told = (node.ailing_runs, node.effects - 1, kind)
        if ailment.killed(*told):
            self.kill_agent(node.name)
        elif kind not in ("Poll", "Pause") and ailment.fails(*told):
            self._do_fail(node, kind)
        else:
            slow = self.random.uniform(*ailment.slow_seconds)
            do = getattr(self, f"_do_{kind.lower()}")
            self._at_node(node, self.now + slow, lambda: do(node, effect), agent=True)

    def _do_fail(self, node: Node, kind: str) -> None:
        if kind == "Drop":  # it answers whether the probe is gone, and Apache refuses it
            node.lease_until = 0.0
            self._answer(node, not node.probe, delay=self._write_seconds())
            return
        error = OSError(f"{kind} fails")
        throw = lambda: self._step(node, lambda: node.steps.throw(error))  # noqa: E731
        self._at_node(node, self.now + self._write_seconds(), throw, agent=True)

    def _write_seconds(self) -> float:
        return self.random.uniform(0.0002, 0.002)

    def _do_pause(self, node: Node, effect: Any) -> None:
        self._answer(node, delay=node.real_delay(effect.seconds))

    def _do_save(self, node: Node, effect: Any) -> None:
        def save() -> None:
            node.state = effect.state
            self._answer(node, delay=self._write_seconds())

        self._at_node(node, self.now + self._write_seconds(), save, agent=True)

    def _do_show(self, node: Node, effect: Any) -> None:
        when = self.now
        for peer, marker in effect.markers.items():
            when += self._write_seconds()

            def write(peer: str = peer, marker: Any = marker) -> None:
                if marker is None:
                    node.markers.pop(peer, None)
                else:
                    members = self.members[node.name]
                    node.markers[peer] = self.agent.format_marker(members, marker)
                    if self.conditions.replayed_share:
                        self.shown.setdefault((node.name, peer), []).append(node.markers[peer])

            self._at_node(node, when, write, agent=True)
        self._answer(node, delay=when - self.now + self._write_seconds())

    def _do_drop(self, node: Node, _: Any) -> None:
        def drop() -> None:
            self._note_loss(node)
            node.probe = node.staged = False
            node.lease_until = 0.0
            node.fence_id += 1
            self._answer(node, True, delay=self._write_seconds())

        self._at_node(node, self.now + self._write_seconds(), drop, agent=True)

    def _do_serve(self, node: Node, effect: Any) -> None:
        def arm() -> None:
            left = effect.until_seconds - node.boot_clock(self.now)
            if left <= 0:
                self._answer(node, False)
                return
            node.fence_id += 1
            fence_id = node.fence_id
            late = self.random.uniform(0, self.conditions.fence_late_seconds)
            when = self.now + node.real_delay(left) + late
            self._at_node(node, when, lambda: self._fence(node, fence_id), agent=False)
            self._at_node(node, self.now + self._write_seconds(), stage, agent=True)

        def stage() -> None:
            left = effect.until_seconds - node.boot_clock(self.now)
            node.lease_until = float(int(self.now + node.wall_offset + left))
            if not effect.commit:
                self._answer(node, node.probe, delay=self._write_seconds())
                return
            node.staged = True
            self._at_node(node, self.now + self._write_seconds(), commit, agent=True)

        def commit() -> None:
            if node.boot_clock(self.now) >= effect.until_seconds:
                self._answer(node, False)
                return
            self._at_node(node, self.now + self._write_seconds(), rename, agent=True)

        def rename() -> None:
            if not node.staged:  # the fence came first: the rename fails
                error = OSError("no staged probe")
                self._step(node, lambda: node.steps.throw(error))
                return
            node.staged, node.probe = False, True
            self.note_served(node)
            self._answer(node, True, delay=self._write_seconds())

        self._at_node(node, self.now + self.random.uniform(0.008, 0.03), arm, agent=True)

    def _fence(self, node: Node, fence_id: int) -> None:
        if node.fence_id == fence_id:
            self._note_loss(node)
            node.probe = node.staged = False

    # ------------------------------------------------ the network

    def _do_poll(self, node: Node, effect: Any) -> None:
        poll = Poll(set(effect.wait_for), {})
        node.poll = poll
        poll.replies.update(node.late)
        node.late.clear()
        for peer in self.order:
            if peer != node.name and peer not in node.asked:
                node.asked[peer] = node.run_id
                untested, times = peer in node.untested, self.times
                patience = times.connect_seconds if untested else times.timeout_seconds
                self._get(node, peer, patience, page=untested)
        timeout = node.real_delay(self.times.timeout_seconds)
        self._at_node(node, self.now + timeout, lambda: self._poll_over(node, poll), agent=True)
        self._poll_answered(node, poll)

    def _latency(self) -> float:
        kind = self.random.random()
        if kind < self.conditions.slow_share:
            return self.random.uniform(0.05, 2.0)
        return self.random.uniform(0.0015, 0.03)

    def _get(self, node: Node, peer: str, patience: float, *, page: bool) -> None:
        """One GET; of the front page at first, then of the marker about us."""
        out, back = self._latency(), self._latency()
        lost_share = max(self.conditions.lost_share, node.ailment.lost_share)
        lost = self.random.random() < lost_share or out + back > patience
        sent, target, run_id = self.now, self.nodes[peer], node.run_id

        def arrive() -> None:
            if node.run_id != run_id:
                return  # who asked is gone
            silent = lost or (node.name, peer) in self.cuts or not target.up or target.frozen
            if silent:
                when, answer = sent + node.real_delay(patience), self._refused
            elif not target.apache:
                when, answer = self.now + back, self._refused
            else:
                content = self._content(target, node)
                when, answer = self.now + back, lambda: self._reply_of(content)
            goes_on = page and not silent and target.apache

            def arrived() -> None:
                if goes_on:
                    self._get(node, peer, self.times.timeout_seconds, page=False)
                else:
                    self._finish(node, peer, answer())

            self._at_node(node, when, arrived, agent=True)

        self.at(self.now + min(out, patience), arrive)

    def _content(self, target: Node, reader: Node) -> str | None:
        """The marker as the reader gets it: now and then one that was recorded before."""
        recorded = self.shown.get((target.name, reader.name), [])
        if recorded and self.random.random() < self.conditions.replayed_share:
            return self.random.choice(recorded)
        return target.markers.get(reader.name)

    def _finish(self, node: Node, peer: str, reply: Any) -> None:
        node.asked.pop(peer, None)
        if reply.connected:
            node.untested.discard(peer)
        if node.poll is None or node.poll.done:
            node.late[peer] = reply
        else:
            node.poll.replies[peer] = reply
            self._poll_answered(node, node.poll)

    def _reply_of(self, content: str | None) -> Any:
        answer = self.agent.Answer(
            404 if content is None else 200, (content or "").encode(), {}, True
        )
        return self.agent.Reply(True, answer)

    def _refused(self) -> Any:
        return self.agent.Reply(False, why="no connection")

    def _poll_answered(self, node: Node, poll: Poll) -> None:
        if not poll.done and poll.wait_for <= set(poll.replies):
            self._poll_over(node, poll)

    def _poll_over(self, node: Node, poll: Poll) -> None:
        if poll.done:
            return
        poll.done = True
        self._answer(node, poll.replies)


# ------------------------------------------------ faults


class Faults:
    """Random faults from the simulation's own seed, each undone after a while."""

    def __init__(self, simulation: Simulation, every_seconds: float) -> None:
        self.simulation, self.every_seconds = simulation, every_seconds
        self.random = simulation.random
        self.stepped: dict[str, float] = {}
        self.on = False
        self.kinds = [
            *(self.cut, self.cut_one_way, self.isolate, self.crash, self.reboot, self.hang),
            *(self.kill, self.stop_apache, self.step_clock, self.lose_state, self.ring),
        ]
        if simulation.conditions.apache_refuses:
            self.kinds.append(self.freeze)

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
        longest = self.random.choice([0.1, 1, 3])
        wait = self.random.uniform(0, longest * 2 * self.simulation.conditions.period_seconds)
        self.simulation.at(self.simulation.now + wait, action)

    def stop(self) -> None:
        """Everything works again from now on."""
        self.on = False
        simulation = self.simulation
        simulation.heal()
        for name, node in simulation.nodes.items():
            node.apache = True
            if not node.up:
                simulation.boot(name)
            simulation.thaw(name)

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
        moved = self.stepped.get(name, float("-inf"))
        node, period = self.simulation.nodes[name], self.simulation.conditions.period_seconds
        if node.up and not node.frozen and self.simulation.now - moved > 2 * period:
            self.simulation.freeze(name)
            self._undo(lambda: self._thaw(name))

    def _thaw(self, name: str) -> None:
        if self.simulation.nodes[name].up:
            self.simulation.thaw(name)

    def kill(self, name: str) -> None:
        """The run under way is killed."""
        self.simulation.kill_agent(name)

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
        self.stepped[name] = self.simulation.now

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


def conditions_of(seed: int) -> Conditions:
    """The conditions of a seed: sizes, periods and clocks take turns."""
    draw = random.Random(seed)
    period = draw.choice([20, 20, 20, 2])
    return Conditions(
        nodes=draw.choice([3, 5]),
        period_seconds=period,
        tick_spread_seconds=draw.choice([0.3, 2.0 if period == 20 else 0.6]),
        apache_refuses=draw.choice([True, True, False]),
        fence_late_seconds=draw.choice([0.1, 0.6 if period == 20 else 0.15]),
    )


def recovered(simulation: Simulation) -> bool:
    """Whether the most preferred node is active within eight periods of the last fault."""
    for _ in range(32):
        simulation.run_for(simulation.conditions.period_seconds / 4)
        if simulation.active() == ["node1"]:
            return True
    return False


def simulate(
    seed: int, mutations: tuple[tuple[str, str], ...] = (), conditions: Conditions | None = None
) -> Result:
    """Half an hour of faults (three minutes at a period of 2 s), then the time to recover.

    Afterwards exactly the most preferred node must be active.
    """
    conditions = conditions or conditions_of(seed)
    agent = load_agent(*mutations)
    simulation = Simulation(conditions, seed, agent)
    faults = Faults(simulation, every_seconds=1.25 * conditions.period_seconds)
    failure = ""
    try:
        simulation.run_for(3 * conditions.period_seconds)
        for _ in range(3):
            faults.start()
            simulation.run_for(30 * conditions.period_seconds)
            faults.stop()
            if not recovered(simulation):
                failure = f"active after recovery: {simulation.active() or 'nobody'}"
                break
    except TwoActive as error:
        failure = str(error)
    successions = max(0, len(simulation.elections) - 1)
    without = simulation.samples_without / max(1, simulation.samples)
    losses = len(simulation.losses)
    return Result(seed, conditions, simulation.now, successions, losses, without, failure)


def simulate_many(seeds: Iterable[int], hours: float, processes: int) -> list[Result]:
    """Simulate seed after seed until so many hours are through."""
    results: list[Result] = []
    total, seeds = 0.0, iter(seeds)
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        while total < hours * 3600:
            batch = list(pool.map(simulate, [next(seeds) for _ in range(8 * processes)]))
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
    parser.add_argument("--only", action="store_true", help="this one seed, to replay it")
    asked = parser.parse_args()
    began = time.monotonic()
    if asked.only:
        results = [simulate(asked.seed)]
    else:
        seeds = iter(range(asked.seed, sys.maxsize))
        results = simulate_many(seeds, asked.hours, asked.processes)
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
        print(f"  replay: python tests/protocol/simulate.py --only --seed {result.seed}")
    print("never two active, always one again" if not failures else "FAILED")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
