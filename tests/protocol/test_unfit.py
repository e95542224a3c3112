"""Nodes that could not serve: they vote, and somebody else has the role, if anybody could."""

import pytest

from tests.protocol.simulate import Conditions, Simulation, load_agent

AGENT = load_agent()
WHY = "its application is not set up: no such package"
EACH_WAY = pytest.mark.parametrize("look", [2, 20])


def cluster(look: float, *unfit: str) -> Simulation:
    """A cluster that has been there for a while, of which some nodes could not serve."""
    conditions = Conditions(look_seconds=look, slow_share=0, lost_share=0)
    simulation = Simulation(conditions, 1, AGENT)
    simulation.unfit |= dict.fromkeys(unfit, WHY)
    simulation.run_until(8 * conditions.period_seconds + 1)
    return simulation


@EACH_WAY
def test_a_node_that_could_not_serve_votes_and_takes_the_role_once_it_can(look: float) -> None:
    simulation = cluster(look, "node1")
    assert [name for _, name in simulation.elections] == ["node2"]
    shown = simulation.nodes["node1"].markers["node2"]
    assert (shown.unfit, shown.quorum_runs, shown.vote.candidate) == (WHY, 0, "node2")
    simulation.crash("node3")
    simulation.run_for(100)
    assert (simulation.active(), simulation.losses) == (["node2"], [])  # by node1's vote
    simulation.unfit.clear()
    simulation.run_for(100)
    assert [name for _, name in simulation.elections] == ["node2", "node1"]


@EACH_WAY
def test_where_no_node_could_serve_none_is_active(look: float) -> None:
    simulation = cluster(look, "node1", "node2", "node3")
    assert simulation.elections == []


@EACH_WAY
def test_an_active_node_that_can_serve_no_more_hands_over_to_one_that_can(look: float) -> None:
    simulation = cluster(look)
    simulation.unfit |= {"node1": WHY, "node2": WHY}
    simulation.run_for(100)
    assert [name for _, name in simulation.elections] == ["node1", "node3"]
    assert simulation.elections[-1][0] - simulation.losses[-1][0] < (1 if look == 2 else 3)


@EACH_WAY
def test_or_stops_where_the_operator_wants_nobody_rather_than_it(look: float) -> None:
    simulation = cluster(look)
    for name, members in simulation.members.items():
        simulation.members[name] = members._replace(stops_unfit=True)
    simulation.unfit |= {"node1": WHY}
    simulation.run_for(100)
    assert [name for _, name in simulation.elections] == ["node1", "node2"]  # an heir comes first
    assert simulation.elections[-1][0] - simulation.losses[-1][0] < (1 if look == 2 else 3)
    simulation.unfit |= dict.fromkeys(simulation.order, WHY)
    simulation.run_for(100)
    assert simulation.active() == []


@EACH_WAY
def test_an_active_node_that_can_serve_no_more_stays_where_no_other_could(look: float) -> None:
    simulation = cluster(look)
    simulation.unfit |= dict.fromkeys(simulation.order, WHY)
    simulation.run_for(100)
    assert (simulation.active(), simulation.losses) == (["node1"], [])
