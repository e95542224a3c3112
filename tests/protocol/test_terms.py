"""Terms: one for each time that the role is taken, greater than all before, on no second node."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.protocol.simulate import Conditions, Simulation, WrongTerm, load_agent

AGENT = load_agent()
CALM = Conditions(slow_share=0, lost_share=0)
SLOW_SECONDS = 60 * 20_000
"""So slow that a wall clock gives no term; whole minutes, so that all look at one time."""


def started(agent: Any = AGENT, *, cut: tuple[str, ...] = (), slow: bool = False) -> Simulation:
    """A cluster in which node1 has become active, on the day of its clocks or long before."""
    simulation = Simulation(CALM, 1, agent)
    for node in simulation.nodes.values():
        node.wall_offset -= SLOW_SECONDS if slow else 0
    if cut:
        simulation.cut(*cut)
    simulation.run_until(8 * CALM.period_seconds + 1)
    assert simulation.active() == ["node1"]
    assert [name for _, name in simulation.terms] == ["node1"]
    return simulation


def reboot_as_if_long_before(simulation: Simulation, name: str) -> None:
    """Off and on; nothing has set its wall clock since."""
    simulation.crash(name)
    simulation.nodes[name].wall_offset -= SLOW_SECONDS
    simulation.boot(name)


def others_reboot(simulation: Simulation, *with_new_disks: str, clocks_are_right: bool) -> None:
    """node1 is gone for good, and who voted for it knows what its disk and its clock say."""
    simulation.crash("node1")
    for name in ("node2", "node3"):
        if name in with_new_disks:
            simulation.nodes[name].kept = None
        if clocks_are_right:
            simulation.crash(name)
            simulation.boot(name)
        else:
            reboot_as_if_long_before(simulation, name)
    simulation.run_for(150)


def test_who_takes_the_role_after_all_rebooted_has_a_greater_term_whatever_its_clock_says() -> None:
    simulation = started()
    others_reboot(simulation, clocks_are_right=False)
    assert [name for _, name in simulation.terms] == ["node1", "node2"]
    (first, _), (second, _) = simulation.terms
    assert second == first + 1


def test_where_one_voter_has_a_new_disk_the_other_one_knows() -> None:
    simulation = started()
    others_reboot(simulation, "node2", clocks_are_right=False)
    assert [name for _, name in simulation.terms] == ["node1", "node2"]


def test_where_every_voter_has_a_new_disk_right_clocks_keep_terms_growing() -> None:
    simulation = started()
    others_reboot(simulation, "node2", "node3", clocks_are_right=True)
    assert [name for _, name in simulation.terms] == ["node1", "node2"]


def test_kept_where_a_reboot_loses_it_a_term_is_too_small_where_clocks_are_wrong() -> None:
    simulation = started()
    with pytest.raises(WrongTerm, match=r"node2 serves with the term 1 .*, after "):
        others_reboot(simulation, "node2", "node3", clocks_are_right=False)


def test_state_that_is_lost_without_a_reboot_repeats_no_term() -> None:
    simulation = started(slow=True)
    for name in simulation.order:
        simulation.lose_state(name)
    simulation.run_for(150)
    assert simulation.terms == [(1, "node1"), (2, "node1")]


def test_a_tenure_from_before_there_were_terms_goes_on_without_one() -> None:
    simulation = started()
    for name, node in simulation.nodes.items():
        simulation.kill_agent(name)
        vote = node.state.vote._replace(term=None)
        node.kept, node.state = None, node.state._replace(term=0, kept=AGENT.Term(), vote=vote)
    simulation.run_for(120)
    assert (simulation.active(), simulation.losses) == (["node1"], [])
    simulation.crash("node1")
    simulation.run_for(120)
    assert simulation.active() == ["node2"]
    assert simulation.nodes["node2"].state.term > 0


# ------------------------------------------------ what voters refuse, and candidates learn

LEARNS_NOTHING = (
    "known = (state.kept, *(marker.kept for marker in view.markers.values()))",
    "known = (state.kept,)",
)
EQUAL_TERM_VOTED_TWICE = (
    "request.number > state.kept.number",
    "request.number >= state.kept.number",
)


def node2_asked_with_node1s_term(agent: Any) -> Simulation:
    """Both began with 1, without a clock; node2 never saw node1, which is gone by now."""
    simulation = started(agent, cut=("node1", "node2"), slow=True)
    simulation.crash("node1")
    simulation.run_for(150)
    return simulation


def test_who_asked_in_vain_with_the_term_of_another_takes_the_role_with_the_next_one() -> None:
    assert node2_asked_with_node1s_term(AGENT).terms == [(1, "node1"), (2, "node2")]


def test_voters_alone_keep_a_term_from_coming_twice() -> None:
    """A candidate that learns nothing gets no vote; one that votes for it again makes it two."""
    assert node2_asked_with_node1s_term(load_agent(LEARNS_NOTHING)).terms == [(1, "node1")]
    with pytest.raises(WrongTerm, match=r"node2 serves with the term 1 at .*, as node1 did"):
        node2_asked_with_node1s_term(load_agent(LEARNS_NOTHING, EQUAL_TERM_VOTED_TWICE))


def node2_asked_in_vain_and_node3_dies(agent: Any) -> Simulation:
    """For a minute it saw node3 alone, and voted for itself; by now it sees node1 again."""
    simulation = started(agent)
    simulation.cut("node1", "node2")
    simulation.run_for(60)
    assert simulation.nodes["node2"].state.vote.candidate == "node2"
    simulation.heal()
    simulation.run_for(60)
    simulation.crash("node3")
    simulation.run_for(120)
    return simulation


KEEPS_WHAT_IT_ASKED_WITH = (
    "kept = request if claim.term and choice != members.me else state.kept",
    "kept = request if claim.term else state.kept",
)


@pytest.mark.parametrize(
    ("agent", "loses_it"),
    [(lambda: AGENT, False), (lambda: load_agent(KEEPS_WHAT_IT_ASKED_WITH), True)],
    ids=["the agent", "who asks in vain keeps its term"],
)
def test_who_asked_in_vain_votes_for_the_active_node_again(
    agent: Callable[[], Any], loses_it: bool
) -> None:
    simulation = node2_asked_in_vain_and_node3_dies(agent())
    assert simulation.active() == ["node1"]
    assert bool(simulation.losses) == loses_it
