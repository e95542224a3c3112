"""What Azure announces for machines, on a virtual clock: who makes way, and who is active then."""

import itertools
from typing import Any

import pytest

from tests.protocol.simulate import Conditions, Simulation, load_agent

AGENT = load_agent()
EACH_WAY = pytest.mark.parametrize("look", [2, 20])
WHOEVER_LOOKS_FIRST = pytest.mark.parametrize("seed", range(1, 6))


def started(look: float, *, nodes: int = 3, seed: int = 1, agent: Any = AGENT) -> Simulation:
    """A cluster in which node1 has been active for a while, just after a tick."""
    conditions = Conditions(nodes=nodes, look_seconds=look, slow_share=0, lost_share=0)
    simulation = Simulation(conditions, seed, agent)
    simulation.run_until(8 * conditions.period_seconds + 1)
    assert simulation.active() == ["node1"]
    return simulation


def gaps(simulation: Simulation) -> list[float]:
    """For how long nobody was active, each time that the role went over."""
    taken = [moment for moment, _ in simulation.elections[1:]]
    lost = [moment for moment, _ in simulation.losses]
    return [gained - given for given, gained in zip(lost, taken, strict=True)]


@WHOEVER_LOOKS_FIRST
@EACH_WAY
def test_a_node_makes_way_for_as_long_as_it_is_announced_and_votes_on(
    look: float, seed: int
) -> None:
    simulation = started(look, seed=seed)
    before = len(simulation.elections)
    simulation.announced["node1"] = "Freeze"
    simulation.run_for(200)
    assert [name for _, name in simulation.elections[before:]] == ["node2"]
    simulation.crash("node3")
    losses = len(simulation.losses)
    simulation.run_for(300)
    assert (simulation.active(), len(simulation.losses)) == (["node2"], losses)  # by node1's vote
    del simulation.announced["node1"]
    simulation.run_for(100)
    assert [name for _, name in simulation.elections[before:]] == ["node2", "node1"]
    assert max(gaps(simulation)) < (1 if look == 2 else 3)


@EACH_WAY
def test_the_role_goes_past_a_node_that_is_about_to_go_as_well(look: float) -> None:
    simulation = started(look)
    simulation.announced |= {"node1": "Freeze", "node2": "Reboot"}
    simulation.run_for(200)
    assert [name for _, name in simulation.elections] == ["node1", "node3"]


@EACH_WAY
def test_nobody_hands_the_role_back_to_a_node_that_is_about_to_go(look: float) -> None:
    simulation = started(look)
    simulation.crash("node1")
    simulation.run_for(60)
    assert simulation.active() == ["node2"]
    simulation.announced["node1"] = "Reboot"
    simulation.boot("node1")
    simulation.run_for(200)
    assert [name for _, name in simulation.elections] == ["node1", "node2"]


@WHOEVER_LOOKS_FIRST
@EACH_WAY
def test_where_all_are_about_to_go_one_of_them_serves_on_and_the_role_stays_with_it(
    look: float, seed: int
) -> None:
    simulation = started(look, seed=seed)
    simulation.announced |= dict.fromkeys(simulation.order, "Freeze")
    simulation.run_for(100)
    active, losses = simulation.active(), len(simulation.losses)
    assert len(active) == 1
    assert losses <= 1  # some hear of it while the others still seem to stay
    simulation.run_for(400)
    assert (simulation.active(), len(simulation.losses)) == (active, losses)


@EACH_WAY
@pytest.mark.parametrize("gone", ["node2", "node3"])
def test_one_without_an_end_keeps_nobody_from_serving_who_is_the_last_that_can(
    gone: str, look: float
) -> None:
    simulation = started(look)
    simulation.announced["node1"] = "Terminate"
    (other,) = {"node2", "node3"} - {gone}
    simulation.crash(gone)
    simulation.run_for(100)
    assert simulation.active() == [other]
    simulation.announced[other] = "Terminate"
    simulation.run_for(100)
    assert len(simulation.active()) == 1
    simulation.boot(gone)
    simulation.run_for(100)
    assert simulation.active() == [gone]


@EACH_WAY
def test_in_a_star_its_centre_serves_on_whatever_is_announced_for_it(look: float) -> None:
    """All others see that one alone: nobody else has a majority."""
    simulation = started(look, nodes=5)
    for a, b in itertools.combinations(simulation.order[1:], 2):
        simulation.cut(a, b)
    simulation.run_for(100)
    simulation.announced["node1"] = "Freeze"
    simulation.run_for(200)
    assert simulation.active() == ["node1"]
    assert simulation.losses == []


def test_one_that_comes_and_goes_moves_the_role_with_it_and_no_further() -> None:
    simulation = started(2)
    for _ in range(20):
        simulation.announced["node1"] = "Freeze"
        simulation.run_for(20)
        assert simulation.active() == ["node2"]
        del simulation.announced["node1"]
        simulation.run_for(20)
        assert simulation.active() == ["node1"]
    assert max(gaps(simulation)) < 3


def test_of_a_passive_node_it_costs_nothing() -> None:
    simulation = started(2)
    for _ in range(20):
        simulation.announced["node2"] = "Freeze"
        simulation.run_for(20)
        del simulation.announced["node2"]
        simulation.run_for(20)
    assert simulation.losses == []
