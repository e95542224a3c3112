"""Looks on a virtual clock: the gap between two runs, processes that die, hang or come twice."""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.protocol.simulate import (
    Ailment,
    Conditions,
    Faults,
    Node,
    Simulation,
    TwoActive,
    conditions_of,
    load_agent,
    simulate,
)

AGENT = load_agent()
PERIOD, LOOK = 20.0, 2.0
SEEDS = range(1, 11)


def calm(**others: Any) -> Conditions:
    """The default pace, and a network without faults of its own."""
    at_rest: dict[str, Any] = {"slow_share": 0, "lost_share": 0}
    return Conditions(period_seconds=PERIOD, look_seconds=LOOK, **{**at_rest, **others})


def started(seed: int, agent: Any = AGENT, **others: Any) -> tuple[Simulation, Node]:
    """A cluster in whose third period node1 is active, and has looked six times in it."""
    simulation = Simulation(calm(**others), seed, agent)
    simulation.run_until(2 * PERIOD + 11.9)
    assert simulation.active() == ["node1"]
    simulation.losses.clear()  # who is first after a boot may be another one
    del simulation.elections[:-1]
    return simulation, simulation.nodes["node1"]


def kept(simulation: Simulation) -> bool:
    """Whether node1 has served all the time."""
    found = simulation.active(), simulation.losses, simulation.refusals
    return found == (["node1"], [], [])


# ------------------------------------------------ the gap between two runs


def losses_at_boundaries(seed: int) -> tuple[int, int]:
    """Of fifty boundaries of a cluster on busy machines: losses, and moments of being refused."""
    rough = calm(nodes=3 if seed % 2 else 5, start_up_seconds=(0.15, 0.6))
    simulation = Simulation(rough, seed, AGENT)
    simulation.run_for(1.5 * PERIOD)
    assert simulation.active() == ["node1"]
    simulation.losses.clear()  # who is first after a boot may be another one
    simulation.run_for(50 * PERIOD)
    assert simulation.active() == ["node1"]
    return len(simulation.losses), len(simulation.refusals)


def test_crossing_a_thousand_boundaries_on_busy_machines_costs_no_role() -> None:
    with concurrent.futures.ProcessPoolExecutor() as pool:
        assert set(pool.map(losses_at_boundaries, range(1, 21))) == {(0, 0)}


@pytest.mark.parametrize("names", [("node1",), ("node2", "node3"), ("node1", "node2", "node3")])
@pytest.mark.parametrize("where", ["exit", "start-up"])
def test_a_process_that_dies_in_the_gap_and_is_started_again_costs_no_role(
    where: str, names: tuple[str, ...]
) -> None:
    for seed in SEEDS:
        simulation, _ = started(seed)
        for name in names:
            simulation.nodes[name].doomed = where
        simulation.run_for(PERIOD)
        assert [simulation.nodes[name].doomed for name in names] == ["" for _ in names]
        assert kept(simulation)


# A run may start so late: its look collects its votes in a round, before the fence of the last one.
TIMES = AGENT.timing(PERIOD, LOOK, 0)
START_UP = 0.2
LATEST = AGENT.tick_spread_seconds(TIMES) + TIMES.gap_seconds - START_UP


def late_by(seconds: float, seed: int, agent: Any = AGENT) -> Simulation:
    """node1's next run starts so late; its last look began at 18 s of its period."""
    simulation, node = started(seed, agent, start_up_seconds=(START_UP, START_UP))
    node.late_seconds = seconds
    simulation.run_for(PERIOD)
    return simulation


def test_a_run_that_starts_late_keeps_the_role_while_its_lease_lasts() -> None:
    for seed in SEEDS:
        assert kept(late_by(1.0, seed))
        assert late_by(LATEST, seed).losses == []
        simulation = late_by(5.5, seed)
        assert simulation.losses[0][1] == "node1"
        assert simulation.elections[1][1] != "node1"


def test_a_gap_that_is_not_counted_costs_the_role_of_a_run_that_starts_late() -> None:
    uncounted = load_agent((f"GAP_SECONDS = {AGENT.GAP_SECONDS}", "GAP_SECONDS = 0.0"))
    assert all(late_by(LATEST, seed, uncounted).losses for seed in SEEDS)


# ------------------------------------------------ processes


def test_a_second_start_by_hand_finds_the_lock_taken_and_goes_away() -> None:
    for seed in SEEDS:
        simulation, node = started(seed)
        run = node.run
        assert run
        simulation.start("node1")
        simulation.run_for(1)
        assert node.run is run
        simulation.run_for(PERIOD)
        assert kept(simulation)


def test_a_start_by_hand_in_the_gap_is_the_run_and_the_timers_goes_away() -> None:
    for seed in SEEDS:
        simulation, node = started(seed)
        simulation.run_until(3 * PERIOD - 0.4)  # no look would end in time, whose clock is behind
        assert node.run is None
        simulation.start("node1")
        simulation.run_until(3 * PERIOD + 1)
        assert node.run
        assert node.process is None
        simulation.run_for(PERIOD)
        assert node.run is node.process is not None
        assert kept(simulation)


@pytest.mark.parametrize("kind", ["Poll", "Save", "Show", "Serve", "Pause"])
@pytest.mark.parametrize("names", [("node1",), ("node2", "node3"), ("node1", "node2", "node3")])
def test_a_process_killed_in_the_middle_of_a_look_is_started_again_and_the_role_kept(
    kind: str, names: tuple[str, ...]
) -> None:
    for seed in SEEDS:
        simulation, _ = started(seed)
        killed: set[str] = set()

        def once(name: str, killed: set[str] = killed) -> Callable[[int, int, str], bool]:
            def kills(_run: int, _before: int, this: str) -> bool:
                first = this == kind and name not in killed
                killed.update({name} if first else ())
                return first

            return kills

        for name in names:
            simulation.nodes[name].ailment = Ailment(killed=once(name))
        simulation.run_for(2 * PERIOD)
        assert killed >= ({"node1"} & set(names) if kind == "Serve" else set(names))
        assert kept(simulation)


def test_a_process_that_is_not_started_again_before_the_next_tick_costs_one_failover() -> None:
    for seed in SEEDS:
        simulation, node = started(seed)
        simulation.kill_agent("node1", restarted=False)
        killed_at = simulation.now
        simulation.run_until(3 * PERIOD - 0.5)
        assert node.process is None
        assert len(simulation.active()) == 1
        (taken_at, taker) = simulation.elections[-1]
        assert taker != "node1"
        assert taken_at - killed_at < AGENT.worst_failover_seconds(simulation.times)
        simulation.run_for(PERIOD)
        assert simulation.active() == ["node1"]


def test_a_process_that_stands_still_loses_the_role_and_is_replaced_at_its_time_limit() -> None:
    for seed in SEEDS:
        simulation, node = started(seed)
        stalled = node.process
        simulation.stall("node1")
        simulation.run_until(3 * PERIOD - 0.5)
        assert node.process is stalled
        assert simulation.active() not in (["node1"], [])
        simulation.run_until(4 * PERIOD)
        assert node.process is not stalled
        assert simulation.active() == ["node1"]


def test_an_agent_that_dies_at_once_is_started_four_times_a_period_at_most() -> None:
    simulation, node = started(1)
    node.ailment = Ailment(killed=lambda _run, _before, _kind: True)
    node.ailing_runs = 0
    simulation.run_until(13 * PERIOD - 1)
    assert 30 <= node.ailing_runs <= 4 * 11
    assert simulation.active() == ["node2"]
    node.ailment = Ailment()
    simulation.run_for(2 * PERIOD)
    assert simulation.active() == ["node1"]


def test_a_handover_begins_with_the_next_look_and_is_over_within_it() -> None:
    """Who is about to leave says so as it begins: its voters do not go before they are free."""
    for seed in SEEDS:
        simulation, _ = started(seed)
        left_at = simulation.now
        simulation.leave("node1")
        simulation.run_for(3 * LOOK)
        (lost_at, loser), (taken_at, taker) = simulation.losses[0], simulation.elections[1]
        assert (loser, taker in ("node2", "node3")) == ("node1", True)
        assert left_at < lost_at < left_at + 1.5 * LOOK
        assert taken_at - lost_at < 1.2


def test_of_a_look_that_was_stopped_only_markers_that_counted_are_told_of() -> None:
    """Node2 has heard nothing of node1, which sleeps for a minute while it waits for more."""
    members = AGENT.Members("node1", ("node1", "node2", "node3"), b"key", AGENT.timing(20, 2, 0))
    state, now = AGENT.first_state("epoch", 0.0, members.times), 1000.0
    moment = AGENT.Moment(now, now, now, None, probe_there=False)
    others = AGENT.first_state("epoch of node2", 0.0, members.times)
    others = others._replace(sees=("node1",))
    reply = AGENT.made_up(members._replace(me="node2"), others, "node1", moment)
    steps = AGENT.settle(members, state, moment, AGENT.Seen(now, now + 1))
    effect, polls = next(steps), 0
    with pytest.raises(StopIteration) as ended:
        while True:
            polls += isinstance(effect, AGENT.Poll)
            now = 1060.0 if polls > 1 else 1000.0
            replies = {"node2": reply} if isinstance(effect, AGENT.Poll) else None
            effect = steps.send(moment._replace(now_seconds=now, value=replies))
    outcome = ended.value.value
    assert "was stopped for a while" in outcome.reason
    assert outcome.seen.markers == {}


# ------------------------------------------------ the grid of looks


def longest_look(simulation: Simulation, name: str, seconds: float) -> tuple[int, float]:
    """How many looks a node has in so many seconds, and how long the longest is."""
    begins: list[float] = []
    lengths: list[float] = []
    settle = simulation.agent.settle

    def noted(members: Any, *rest: Any, **words: Any) -> Any:
        begins.extend([simulation.now] if members.me == name else [])
        outcome = yield from settle(members, *rest, **words)
        lengths.extend([simulation.now - begins[-1]] if members.me == name else [])
        return outcome

    simulation.agent.settle = noted
    simulation.run_for(seconds)
    simulation.agent.settle = settle
    return len(begins), max(lengths)


@pytest.mark.parametrize("pace", [(20, 2), (10, 5), (60, 20), (60, 30)])
def test_every_look_begins_once_whatever_the_rates_of_the_clocks(pace: tuple[int, int]) -> None:
    """A pause that ends a little early would begin the same look twice."""
    period, look = pace
    for drift in (-0.0005, 0.0005):
        conditions = Conditions(3, period, look, slow_share=0, lost_share=0)
        simulation = Simulation(conditions, 1, AGENT)
        for node in simulation.nodes.values():
            node.drift = drift
        simulation.run_for(2 * period + look / 2)
        looks, _ = longest_look(simulation, "node2", 5 * period)
        assert looks == 5 * period / look
        assert kept(simulation)


def looks_after_a_restart(agent: Any, seed: int) -> tuple[float, bool]:
    """How long node1's longest look is after one that was killed; whether it was never refused."""
    simulation, node = started(seed, agent)
    node.ailment = Ailment(killed=lambda _run, before, kind: before < 3 and kind == "Poll")
    while node.process and node.process.alive:
        simulation.run_for(0.01)
    node.ailment = Ailment()
    simulation.run_for(2 * LOOK)
    _, seconds = longest_look(simulation, "node1", 2 * PERIOD)
    return seconds, kept(simulation)


def test_an_active_node_that_was_late_once_is_not_late_for_good() -> None:
    """Else a voter whose clock is ahead reads its last stamp, takes it for new, and is gone."""
    heedless = load_agent(("record.changed_seconds - record.age_seconds", "record.changed_seconds"))
    for seed in SEEDS:
        seconds, was_kept = looks_after_a_restart(AGENT, seed)
        assert seconds < LOOK / 2
        assert was_kept
    found = [looks_after_a_restart(heedless, seed) for seed in SEEDS]
    assert max(found)[0] > 0.75 * LOOK


# ------------------------------------------------ the bound that is stated


Crash = tuple[int, float, float, float]


def seconds_without(case: Crash) -> float:
    """From the crash of the active node at this moment of its period to its successor."""
    seed, period, look, phase = case
    busy = (0.15, 0.6) if look < period else (0.15, 0.3)
    conditions = Conditions(3 if seed % 2 else 5, period, look, start_up_seconds=busy)
    simulation = Simulation(conditions, seed, AGENT)
    calm_periods = -(-5 * look // period) + 1
    simulation.run_until(calm_periods * period + phase)
    assert simulation.active() == ["node1"]
    simulation.crash("node1")
    crashed_at = simulation.now
    simulation.run_for(2 * AGENT.worst_failover_seconds(simulation.times))
    return next(when for when, _ in simulation.elections if when > crashed_at) - crashed_at


def phases(count: int, period: float, first: float = 0.0) -> list[float]:
    """So many moments of a period, from `first` on, well spread."""
    return [first + (period - first) * (0.618034 * number % 1) for number in range(count)]


@pytest.mark.parametrize("pace", [(20, 2), (20, 20), (2, 2), (10, 5)])
def test_whenever_the_active_node_crashes_another_serves_within_the_time_that_is_stated(
    pace: tuple[float, float],
) -> None:
    period, look = pace
    moments = phases(200, period) + (
        phases(100, period + 0.5, period - look) if look < period else []
    )
    cases = [(seed, period, look, phase) for seed, phase in enumerate(moments, 1)]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        found = list(pool.map(seconds_without, cases, chunksize=8))
    bound = AGENT.worst_failover_seconds(AGENT.timing(period, look, 0))
    longest = max(zip(found, cases, strict=True))
    print(f"{pace}: longest {longest}, stated {bound:g}")
    assert 0.6 * bound < longest[0] <= bound


# ------------------------------------------------ mutations


def chance(agent: Any, seed: int) -> None:
    """Faults at the default pace."""
    conditions = conditions_of(seed, (PERIOD, LOOK))
    simulation = Simulation(conditions, seed, agent)
    simulation.checks_terms = agent is AGENT
    faults = Faults(simulation, every_seconds=6 * LOOK)
    simulation.run_for(2 * PERIOD)
    faults.start()
    simulation.run_for(90 * PERIOD)


def node3_votes_is_killed_and_started_again(agent: Any, seed: int) -> None:
    """It votes for node2, dies before its look ends, and then reaches node1 alone, which asks."""
    simulation, _ = started(seed, agent)
    for peer in ("node2", "node3"):
        simulation.cut("node1", peer)
    while simulation.elections[-1][1] != "node2":
        simulation.run_for(0.001)
    simulation.kill_agent("node3")
    simulation.cuts = {("node2", "node3"), ("node3", "node2"), ("node1", "node2")}
    simulation.run_for(PERIOD)
    assert simulation.active() == ["node1"]


MUTATIONS: dict[str, tuple[Callable[[Any, int], None], tuple[str, str]]] = {
    "what a look has promised is not known to the next": (
        chance,
        ("state, now = outcome.state, (yield outcome)", "now = yield outcome"),
    ),
    "shown before it is saved, for the next process to know": (
        node3_votes_is_killed_and_started_again,
        (
            "        moment = yield Save(state)\n        if decision.serve_until",
            "        moment = yield Pause(0.0)\n        if decision.serve_until",
        ),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_of_looks_has_two_nodes_active_and_the_agent_has_not(name: str) -> None:
    scenario, mutation = MUTATIONS[name]
    mutated = load_agent(mutation)
    for seed in range(1, 41):
        try:
            scenario(mutated, seed)
        except TwoActive:
            scenario(AGENT, seed)
            return
    pytest.fail(f"no seed shows that {name} matters")


# ------------------------------------------------ what is made up


def test_markers_that_are_handed_over_do_as_pages_that_are_signed_and_parsed_do() -> None:
    for seed in (1,):
        conditions = conditions_of(seed, (PERIOD, LOOK))
        handed, written = (
            simulate(seed, conditions=dataclasses.replace(conditions, pages=pages))
            for pages in (False, True)
        )
        assert handed == dataclasses.replace(written, conditions=handed.conditions)
        assert handed.successions > 4
