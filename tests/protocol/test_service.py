"""A service that runs with the role: never on two nodes at once."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.simulate import (
    Conditions,
    Simulation,
    TwoActive,
    conditions_of,
    load_agent,
    simulate,
)

AGENT = load_agent()
IGNORES_SIGTERM = (1000.0, 1000.0)
STOPS = pytest.mark.parametrize("stops", [(0.1, 4.0), IGNORES_SIGTERM], ids=["stops", "is killed"])


def conditions(look: float = 2, *, stops: tuple[float, float] = (0.1, 4.0)) -> Conditions:
    return Conditions(
        look_seconds=look,
        pause_seconds=5,
        stop_seconds=10,
        service_stops_seconds=stops,
        slow_share=0,
        lost_share=0,
        apache_refuses=False,
    )


def started(rough: Conditions, *, seed: int = 1, agent: object = AGENT) -> Simulation:
    simulation = Simulation(rough, seed, agent)
    simulation.run_until(8 * rough.period_seconds + 1)
    assert simulation.active() == ["node1"]
    assert simulation.nodes["node1"].service == "running"
    return simulation


def services(simulation: Simulation) -> list[str]:
    return [name for name, node in simulation.nodes.items() if node.service != "stopped"]


def is_cut_off(simulation: Simulation) -> None:
    for name in ("node2", "node3"):
        simulation.cut("node1", name)


def hangs_and_is_cut_off(simulation: Simulation) -> None:
    simulation.hang("node1")
    is_cut_off(simulation)


FAULTS: dict[str, Callable[[Simulation], None]] = {
    "power off": lambda simulation: simulation.crash("node1"),
    "cut off": is_cut_off,
    "hangs": lambda simulation: simulation.hang("node1"),
    "hangs, and is cut off": hangs_and_is_cut_off,
    "stopped as planned": lambda simulation: simulation.leave("node1"),
    "unfit": lambda simulation: simulation.unfit.update(node1="its disk is full"),
    "its service fails": lambda simulation: simulation.fail_service("node1"),
}


@STOPS
@pytest.mark.parametrize("look", [2, 20])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_service_moves_and_never_runs_on_two_nodes(
    fault: str, look: float, stops: tuple[float, float]
) -> None:
    for seed in range(1, 4):
        simulation = started(conditions(look, stops=stops), seed=seed)
        FAULTS[fault](simulation)
        simulation.run_for(100)
        (active,) = simulation.active()
        assert active != "node1"
        assert (services(simulation), simulation.nodes[active].service) == ([active], "running")


@pytest.mark.parametrize("look", [2, 20])
def test_a_planned_stop_hands_over_as_soon_as_the_service_has_stopped(look: float) -> None:
    for seed in range(1, 6):
        simulation = started(conditions(look), seed=seed)
        simulation.leave("node1")
        simulation.run_for(60)
        (lost, _), (taken, _) = simulation.losses[-1], simulation.elections[-1]
        # The stop takes 4 s at most, the start 3 s.
        assert taken - lost < 4 + 3 + (1 if look == 2 else 3)


@STOPS
def test_the_probe_comes_once_the_service_is_there_and_it_goes_before_the_service_does(
    stops: tuple[float, float],
) -> None:
    simulation, seen = Simulation(conditions(stops=stops), 1, AGENT), set()
    for _ in range(6000):
        simulation.run_for(0.01)
        seen |= {(node.service, node.probe) for node in simulation.nodes.values()}
        if simulation.active() == ["node1"]:
            simulation.unfit["node1"] = "its disk is full"
    assert seen == {
        *(("stopped", False), ("changing", False), ("running", False)),
        *(("running", True), ("stopping", False)),
    }
    assert [name for _, name in simulation.elections] == ["node1", "node2"]


def test_a_start_that_takes_long_is_waited_for_and_the_role_kept() -> None:
    rough = replace(conditions(), service_starts_seconds=(40, 50))
    simulation = Simulation(rough, 1, AGENT)
    simulation.run_until(15)
    assert services(simulation) == []
    simulation.run_until(45)
    (name,) = services(simulation)
    assert (simulation.active(), simulation.nodes[name].state.active) == ([], True)
    simulation.run_until(100)
    assert (simulation.active(), len(simulation.terms)) == ([name], 1)


@pytest.mark.parametrize(("seconds", "fails"), [((90, 90), False), ((1, 1), True)])
def test_a_service_that_does_not_start_on_a_node_is_started_on_another(
    seconds: tuple[float, float], fails: bool
) -> None:
    simulation = Simulation(replace(conditions(), service_starts_seconds=seconds), 1, AGENT)
    simulation.nodes["node1"].breaks = simulation.nodes["node2"].breaks = fails
    tried: list[str] = []
    for _ in range(4000):
        simulation.run_for(0.05)
        tried += [name for name in services(simulation) if tried[-1:] != [name]]
    assert len(set(tried)) > 1
    assert simulation.active() == (["node3"] if fails else [])


def never_runs(simulation: Simulation) -> None:
    """Each start of node1's service takes for ever, and no unit of it fails."""
    later = simulation._later_becomes

    def afterwards(node: Any, seconds: float, state: str) -> None:
        if not (node.name == "node1" and state == "running"):
            later(node, seconds, state)

    simulation._later_becomes = afterwards  # type: ignore[method-assign]


def test_a_node_whose_start_comes_to_nothing_leaves_the_role_to_one_that_serves() -> None:
    simulation = Simulation(replace(conditions(), service_starts_seconds=(1, 1)), 1, AGENT)
    never_runs(simulation)
    simulation.run_until(120)
    assert simulation.active() == ["node2"]
    simulation.run_for(300)
    assert (simulation.active(), simulation.losses) == (["node2"], [])
    why = "its service was not there after 60 s"
    assert simulation.nodes["node1"].state.not_started == why
    simulation.crash("node2")
    simulation.run_for(40)
    assert simulation.active() == ["node3"]
    for name in ("node2", "node3"):
        simulation.boot(name)
        simulation.unfit[name] = "its disk is full"
    simulation.run_for(60)
    assert simulation.nodes["node1"].state.active, "nobody else asks: it tries again"


def test_who_is_undrained_is_believed_to_start_its_service_again() -> None:
    simulation = Simulation(replace(conditions(), service_starts_seconds=(1, 1)), 1, AGENT)
    later = simulation._later_becomes
    never_runs(simulation)
    simulation.run_until(120)
    simulation._later_becomes = later  # type: ignore[method-assign]
    simulation.run_for(60)
    assert simulation.active() == ["node2"]
    for drained in (frozenset({"node1"}), frozenset[str]()):
        for name, members in simulation.members.items():
            simulation.members[name] = members._replace(drained=drained)
        simulation.run_for(60)
        assert simulation.active() == (["node2"] if drained else ["node1"])


def test_a_service_that_somebody_starts_on_a_passive_node_is_stopped() -> None:
    simulation = started(conditions())
    simulation._becomes(simulation.nodes["node2"], "running")
    simulation.run_for(2 * simulation.times.look_seconds + 4)
    assert (services(simulation), simulation.losses) == (["node1"], [])


@pytest.mark.parametrize("seed", range(1, 6))
def test_an_agent_that_is_killed_while_it_starts_or_stops_its_service_goes_on(seed: int) -> None:
    simulation = Simulation(conditions(), seed, AGENT)
    killed = set()
    for _ in range(6000):
        simulation.run_for(0.02)
        for name, node in simulation.nodes.items():
            if node.service in ("changing", "stopping") and (name, node.service) not in killed:
                killed.add((name, node.service))
                simulation.kill_agent(name)
        if simulation.active() == ["node1"]:
            simulation.unfit["node1"] = "its disk is full"
    assert {("node1", "changing"), ("node1", "stopping")} <= killed
    (active,) = simulation.active()
    assert (active != "node1", services(simulation)) == (True, [active])


def a_run_stands_still_before_it_starts_its_service(*mutations: tuple[str, str]) -> None:
    """For a whole lease, and goes on when the service runs elsewhere; the next tick is far away."""
    rough, agent = replace(conditions(), period_seconds=60), load_agent(*mutations)
    simulation = Simulation(rough, 1, agent)
    start = simulation._do[agent.Start]

    def stand_still(process: Any, effect: Any) -> None:
        if process.node.name == "node1":
            hangs_and_is_cut_off(simulation)
        start(process, effect)

    simulation._do[agent.Start] = stand_still
    while services(simulation) != ["node2"]:
        simulation.run_for(0.05)
        assert simulation.now < 60
    assert simulation.nodes["node1"].hung
    simulation.thaw("node1")
    simulation.run_for(30)
    assert (services(simulation), simulation.active()) == (["node2"], ["node2"])


def test_a_run_that_stands_still_between_lease_and_start_starts_nothing_afterwards() -> None:
    a_run_stands_still_before_it_starts_its_service()
    for_ever = "yield Start(state.term, decision.serve_until_seconds)"
    with pytest.raises(TwoActive):
        a_run_stands_still_before_it_starts_its_service((for_ever, "yield Start(state.term, 1e9)"))


# ------------------------------------------------ clocks that stand still, jump, or go slower

NOT_ABSORBED = ("/ (1 + DRIFT) - pause_seconds", "/ (1 + DRIFT)")
NO_SLOW_FENCE = ("+ SLEW * lease_seconds + stop_seconds", "+ stop_seconds")


def seconds_with_two(simulation: Simulation, seconds: float) -> float:
    """For how long two machines run something of their services from now on."""
    found = 0.0
    for _ in range(int(seconds * 20)):
        simulation.run_for(0.05)
        found += 0.05 * (sum(map(simulation.writes, simulation.nodes.values())) > 1)
    return found


def is_lost_with_its_clocks(
    happens: Callable[[Simulation], None],
    *mutations: tuple[str, str],
    apache_refuses: bool = False,
) -> list[float]:
    """How long two run after node1 hung, cut off, while this happened to its clocks too."""
    rough = replace(conditions(stops=IGNORES_SIGTERM), apache_refuses=apache_refuses)
    rough, found = replace(rough, pause_seconds=5 if happens is is_paused else 0), []
    for seed in range(1, 6):
        simulation = started(rough, agent=load_agent(*mutations), seed=seed)
        simulation.run_for(simulation.random.uniform(0, rough.period_seconds))
        hangs_and_is_cut_off(simulation)
        happens(simulation)
        found.append(seconds_with_two(simulation, 60))
        assert services(simulation) == simulation.active() == ["node2"], seed
        assert bool(simulation.excused_services) == (found[-1] > 0), seed
    return found


def is_paused(simulation: Simulation) -> None:
    simulation.pause("node1", 5, step_after=None)


def is_frozen_until_its_fence_is_due(simulation: Simulation, late_seconds: float = 0) -> None:
    node = simulation.nodes["node1"]
    left = node.real_delay(node.fence_due - node.boot_clock(simulation.now))
    simulation.freeze("node1")
    simulation.at(simulation.now + left + late_seconds, lambda: simulation.thaw("node1"))


def goes_slower(simulation: Simulation) -> None:
    simulation.slew("node1", -AGENT.SLEW, 60)


def jumps(simulation: Simulation) -> None:
    simulation.nodes["node1"].wall_offset -= 60


@pytest.mark.parametrize(
    "happens", [is_paused, is_frozen_until_its_fence_is_due, goes_slower, jumps]
)
def test_whatever_the_protocol_makes_up_for_has_no_service_run_twice(
    happens: Callable[[Simulation], None],
) -> None:
    assert not any(is_lost_with_its_clocks(happens))


@pytest.mark.parametrize(
    ("happens", "mutation"), [(is_paused, NOT_ABSORBED), (goes_slower, NO_SLOW_FENCE)]
)
def test_what_it_does_not_make_up_for_has_a_service_run_twice(
    happens: Callable[[Simulation], None], mutation: tuple[str, str]
) -> None:
    with pytest.raises(TwoActive):
        is_lost_with_its_clocks(happens, mutation)


def test_a_machine_frozen_until_its_lease_ends_has_its_service_killed_by_then() -> None:
    simulation = started(conditions(stops=IGNORES_SIGTERM))
    late_seconds = simulation.times.stop_seconds - 0.5
    late = functools.partial(is_frozen_until_its_fence_is_due, late_seconds=late_seconds)
    assert not any(is_lost_with_its_clocks(late, apache_refuses=True))


def test_a_machine_frozen_for_longer_runs_its_service_for_a_moment_once_it_goes_on() -> None:
    """A known limit: nothing on it runs that could stop it before."""
    late = functools.partial(is_frozen_until_its_fence_is_due, late_seconds=30)
    found = is_lost_with_its_clocks(late, apache_refuses=True)
    assert 0 < max(found) < 0.5


@pytest.mark.parametrize("step_after", [0.0, None])
def test_who_was_paused_for_too_long_stops_its_service_one_look_after_it_goes_on(
    step_after: float | None,
) -> None:
    """A known limit: meanwhile another one took the role, with a greater term."""
    rough, longest = conditions(stops=IGNORES_SIGTERM), 0.0
    for seed in range(1, 6):
        simulation = started(rough, seed=seed)
        simulation.run_for(simulation.random.uniform(0, rough.period_seconds))
        simulation.pause("node1", 40, step_after)
        simulation.run_for(40)
        longest = max(longest, seconds_with_two(simulation, 40))
    times = simulation.times
    one_look = 0.25 if step_after == 0 else times.look_seconds + times.gap_seconds + 0.5
    assert 5 < longest < times.stop_seconds + one_look


# ------------------------------------------------ chance


def test_random_faults_never_have_a_service_on_two_nodes_and_have_one_in_the_end() -> None:
    found = [
        simulate(seed, conditions=replace(conditions_of(seed), stop_seconds=10))
        for seed in range(50, 55)
    ]
    assert [result.failure for result in found if result.failure] == []
    assert sum(result.successions for result in found) > 30


# ------------------------------------------------ each rule, broken, must show

FREED_TOO_SOON = (
    "if members.service and state.active and not state.stopping:",
    "if False:",
)
PROBE_FIRST = (
    'there = state.starting_since_seconds > 0 and moment.service.state == "running"',
    "there = state.starting_since_seconds > 0",
)
NO_LONGER_LEASE = (
    "+ SLEW * lease_seconds + stop_seconds",
    "+ SLEW * lease_seconds",
)


def becomes_unfit(rough: Conditions, *mutations: tuple[str, str]) -> None:
    simulation = started(rough, agent=load_agent(*mutations))
    simulation.unfit["node1"] = "its disk is full"
    simulation.run_for(100)


def is_lost(rough: Conditions, *mutations: tuple[str, str]) -> None:
    for seed in range(1, 6):
        simulation = started(rough, agent=load_agent(*mutations), seed=seed)
        hangs_and_is_cut_off(simulation)
        simulation.run_for(100)


def a_voter_reboots_without_which_there_is_no_majority(*mutations: tuple[str, str]) -> None:
    """node1 steps down for it, while the others of its voters are still bound."""
    rough = replace(conditions(stops=IGNORES_SIGTERM), nodes=5)
    simulation = started(rough, agent=load_agent(*mutations))
    for name in ("node4", "node5"):
        simulation.cut("node1", name)
    simulation.run_for(55)  # shortly before a tick, with which node2 shows that it is another boot
    simulation.crash("node2")
    simulation.boot("node2")
    simulation.run_for(100)
    assert "stopping" not in {node.service for node in simulation.nodes.values()}


def test_a_lease_that_a_voter_takes_back_frees_nobody_before_the_service_has_stopped() -> None:
    a_voter_reboots_without_which_there_is_no_majority()
    stopped_or_over = (
        'return "" if view.service.state in ("", "stopped") else None',
        'return "" if view.service.state in ("", "stopped") or now >= fence + 12 else None',
    )
    with pytest.raises(TwoActive):
        a_voter_reboots_without_which_there_is_no_majority(stopped_or_over)


def stands_still_until_its_fence_has_fired(*mutations: tuple[str, str]) -> None:
    """Nobody is cut off: what it shows when it goes on, its voters read at once."""
    for seed in range(1, 6):
        rough = conditions(stops=IGNORES_SIGTERM)
        simulation = started(rough, agent=load_agent(*mutations), seed=seed)
        simulation.run_for(simulation.random.uniform(0, 10))
        while not ((run := simulation.nodes["node1"].run) and run.replies is not None):
            simulation.run_for(0.001)  # until it waits for its peers
        simulation.hang("node1")
        while simulation.nodes["node1"].service != "stopping":
            simulation.run_for(0.1)
        simulation.run_for(1)
        simulation.thaw("node1")
        simulation.run_for(60)
        assert services(simulation) == simulation.active() != []


def test_a_run_that_overslept_its_fence_frees_no_vote_before_the_service_has_stopped() -> None:
    stands_still_until_its_fence_has_fired()
    forgets = ("stopping = bool(members.service) and state.active", "stopping = False")
    with pytest.raises(TwoActive):
        stands_still_until_its_fence_has_fired(forgets)


def test_votes_that_are_freed_before_the_service_has_stopped_have_it_run_twice() -> None:
    becomes_unfit(conditions(stops=IGNORES_SIGTERM))
    with pytest.raises(TwoActive):
        becomes_unfit(conditions(stops=IGNORES_SIGTERM), FREED_TOO_SOON)


def is_disabled_as_its_run_fails(rough: Conditions, *mutations: tuple[str, str]) -> None:
    """Nothing of it has joined when the next run begins, and it is still being stopped."""
    simulation = started(rough, agent=load_agent(*mutations))
    node = simulation.nodes["node1"]
    node.joined = node.probe = node.staged = False
    simulation._stop_service(node)  # as `fail_closed` does
    simulation.kill_agent("node1")
    simulation.unfit["node1"] = "its settings are wrong"
    simulation.run_for(60)
    assert services(simulation) == simulation.active() == ["node2"]
    assert not node.state.stopping


def test_a_service_that_is_disabled_and_still_stops_is_remembered_or_runs_twice() -> None:
    is_disabled_as_its_run_fails(conditions(stops=IGNORES_SIGTERM))
    with pytest.raises(TwoActive):
        rough = replace(conditions(stops=IGNORES_SIGTERM), stops_are_remembered=False)
        is_disabled_as_its_run_fails(rough)


def test_a_fence_that_leaves_the_service_alone_has_it_run_twice() -> None:
    is_lost(conditions())
    with pytest.raises(TwoActive):
        is_lost(replace(conditions(), fence_stops=False))


def test_a_fence_that_comes_no_earlier_for_the_service_has_it_run_twice() -> None:
    is_lost(conditions(stops=IGNORES_SIGTERM))
    with pytest.raises(TwoActive):
        is_lost(conditions(stops=IGNORES_SIGTERM), NO_LONGER_LEASE)


def test_a_probe_that_does_not_wait_for_the_service_shows() -> None:
    simulation = Simulation(conditions(), 1, load_agent(PROBE_FIRST))
    seen = set()
    for _ in range(4000):
        simulation.run_for(0.01)
        seen |= {(node.service, node.probe) for node in simulation.nodes.values()}
    assert ("changing", True) in seen
