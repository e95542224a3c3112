"""Clocks that stand still, and clocks that run fast or slow: the rules that make up for both."""

import functools
import statistics
from typing import Any

import pytest

from tests.protocol.simulate import Ailment, Conditions, Simulation, TwoActive, load_agent

AGENT = load_agent()
QUIET = functools.partial(Conditions, lost_share=0.0, slow_share=0.0)
PACES = [(20, 2), (20, 20), (2, 2)]
STEPS = [0.0, 1.0, 5.0, None]
"""So long after the pause the wall clock is stepped; None: never."""


def settled(conditions: Conditions, seed: int, agent: Any = AGENT) -> Simulation:
    """A cluster in which node1 has been active for a while."""
    simulation = Simulation(conditions, seed, agent)
    period = conditions.period_seconds
    simulation.run_for(3 * period + simulation.times.promise_seconds)
    for _ in range(100):
        if simulation.active() == ["node1"]:
            return simulation
        simulation.run_for(period / 10)
    pytest.fail(f"seed {seed}: node1 is not active")


def seconds_with_two(simulation: Simulation, seconds: float) -> float:
    """For how long two nodes answer 200 from now on, looked at each hundredth of a second."""
    found = 0.0
    for _ in range(int(seconds * 100)):
        simulation.run_for(0.01)
        found += 0.01 * (len(simulation.active()) > 1)
    return found


def after_a_pause(
    conditions: Conditions, seconds: float, step_after: float | None, seed: int, agent: Any = AGENT
) -> float:
    """How long two nodes answer 200 after the active one was paused so long, at a random phase."""
    simulation = settled(conditions, seed, agent)
    simulation.run_for(simulation.random.uniform(0, conditions.period_seconds))
    simulation.pause("node1", seconds, step_after)
    simulation.run_for(seconds)
    return seconds_with_two(simulation, 2.5 * simulation.times.promise_seconds)


@pytest.mark.parametrize("step_after", STEPS)
@pytest.mark.parametrize(("period", "look"), PACES)
def test_a_pause_that_is_absorbed_makes_nobody_second_whatever_becomes_of_the_clock(
    period: float, look: float, step_after: float | None
) -> None:
    conditions = QUIET(period_seconds=period, look_seconds=look, pause_seconds=5)
    for seed in range(20):
        assert after_a_pause(conditions, 5.0, step_after, seed) == 0.0, seed


def longest_and_median(
    seconds: float, step_after: float | None, agent: Any = AGENT
) -> tuple[float, float]:
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5)
    found = [after_a_pause(conditions, seconds, step_after, seed, agent) for seed in range(24)]
    return max(found), statistics.median(found)


@pytest.mark.parametrize("seconds", [8.0, 15.0, 30.0])
@pytest.mark.parametrize("step_after", [1.0, None])
def test_who_was_paused_for_longer_is_out_one_look_after_it_goes_on(
    seconds: float, step_after: float | None
) -> None:
    """It looks, and its peers do: the later of the two shows it who was voted for meanwhile."""
    longest, median = longest_and_median(seconds, step_after)
    times = AGENT.timing(20, 2, 5)
    one_look = times.look_seconds + times.gap_seconds + 0.3
    assert longest <= (one_look if step_after is None else step_after + 0.25)
    assert median <= times.look_seconds
    assert seconds == 8.0 or longest > 0.1  # or nobody was ever second


@pytest.mark.parametrize("seconds", [8.0, 15.0, 30.0])
def test_where_the_clock_is_stepped_at_once_nobody_is_second(seconds: float) -> None:
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5)
    for seed in range(20):
        assert after_a_pause(conditions, seconds, 0.0, seed) == 0.0, seed


def paused_while_it_renews(seed: int) -> float:
    """How long two nodes answer 200 after the active one was paused in the midst of `Serve`."""
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5)
    simulation = settled(conditions, seed)
    node = simulation.nodes["node1"]

    def paused(_run: int, _before: int, kind: str) -> bool:
        if kind == "Serve" and not node.pauses and not node.stopped:
            soon = simulation.now + 0.001
            simulation.at(soon, lambda: simulation.pause("node1", 15, step_after=0.0))
        return False

    node.ailment = Ailment(fails=paused)
    found = seconds_with_two(simulation, 25)
    assert node.pauses
    return found


def test_who_is_paused_while_it_renews_takes_no_limit_from_a_clock_that_was_stepped() -> None:
    for seed in range(20):
        assert paused_while_it_renews(seed) == 0.0, seed


def test_voters_that_are_paused_only_vote_for_longer() -> None:
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5)
    for seed in range(20):
        simulation = settled(conditions, seed)
        for name in ("node2", "node3"):
            simulation.pause(name, simulation.random.uniform(0, 30), None)
        simulation.run_for(simulation.random.uniform(0, 30))
        simulation.crash("node1")
        assert seconds_with_two(simulation, 60) == 0.0, seed


# ------------------------------------------------ rates


def slewed(agent: Any, seed: int, rate: float) -> float:
    """Voters fast, the holder slow in every second period, and then cut off from them."""
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=0, apache_refuses=False)
    simulation = settled(conditions, seed, agent)
    for name, towards in (("node1", -rate), ("node2", rate), ("node3", rate)):
        simulation.slew(name, towards, 60)
    simulation.run_for(simulation.random.uniform(0, 20))
    for peer in ("node2", "node3"):
        simulation.cut("node1", peer)
    return seconds_with_two(simulation, 20)


@pytest.mark.parametrize("rate", [0.0834, 0.1])
def test_voters_that_run_fast_and_a_holder_that_runs_slow_are_never_two(rate: float) -> None:
    for seed in range(40):
        assert slewed(AGENT, seed, rate) == 0.0, seed


# ------------------------------------------------ mutations: each rule, broken, must show


def breaks(agent: Any, found: Any) -> bool:
    """Whether a broken agent gives two active nodes for longer than it may."""
    try:
        return any(found(agent, seed) for seed in range(60))
    except TwoActive:
        return True


def test_one_clock_only_is_found() -> None:
    boot_alone = (
        "steps = boot - last.boot_seconds, raw - last.raw_seconds",
        "steps = boot - last.boot_seconds, boot - last.boot_seconds",
    )
    assert breaks(load_agent(boot_alone), lambda agent, seed: slewed(agent, seed, 0.1) > 0)


def cut_off_after_a_pause(agent: Any, seed: int) -> float:
    """How long two nodes answer 200 after the active one goes on and reaches nobody any more."""
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5)
    simulation = settled(conditions, seed, agent)
    simulation.run_for(simulation.random.uniform(0, 20))
    for peer in ("node2", "node3"):
        simulation.cut("node1", peer)
    simulation.pause("node1", 5.0, None)
    simulation.run_for(5.0)
    return seconds_with_two(simulation, 20)


def test_a_lease_that_is_not_shortened_by_the_pause_is_found() -> None:
    longer = (
        "return promise_seconds * (1 - DRIFT) / (1 + DRIFT) - pause_seconds",
        "return promise_seconds * (1 - DRIFT) / (1 + DRIFT)",
    )
    for seed in range(20):
        assert cut_off_after_a_pause(AGENT, seed) == 0.0, seed
    assert breaks(load_agent(longer), lambda agent, seed: cut_off_after_a_pause(agent, seed) > 0)


def test_a_step_of_the_clock_that_starts_no_fence_is_found() -> None:
    """Without Apache's limit, which refuses then by itself."""
    heeds, heedless = (
        QUIET(
            period_seconds=20,
            look_seconds=2,
            pause_seconds=5,
            apache_refuses=False,
            clock_fence=clock_fence,
        )
        for clock_fence in (True, False)
    )
    assert max(after_a_pause(heeds, 15.0, 0.0, seed) for seed in range(20)) <= 0.25
    assert max(after_a_pause(heedless, 15.0, 0.0, seed) for seed in range(20)) > 0.5


DEAF = ("if has_left_me(members, state, name, reply, now):", "if False:")
"""What a peer shows another node, where it shows none to us, is not read."""


def test_markers_that_are_not_compared_are_found() -> None:
    blind = ("            grants.pop(voter, None)", "            pass")
    longest_and_median(20.0, None)
    with pytest.raises(TwoActive):  # after a whole look
        longest_and_median(20.0, None, load_agent(blind, DEAF))


def test_who_does_not_see_a_woken_node_at_once_is_found() -> None:
    slow = (
        "    slow: frozenset[str] = frozenset()  # who",
        "    slow = frozenset(members.peers) - frozenset(state.sees)  # who",
    )
    _, median = longest_and_median(20.0, None, load_agent(slow, DEAF))
    _, ours = longest_and_median(20.0, None, load_agent(DEAF))
    assert median > ours + 0.3


def test_what_a_peer_shows_others_is_read_by_a_woken_node_that_it_does_not_see_yet() -> None:
    """So that its own next look is enough: at the same moment no peer has looked since."""
    _, median = longest_and_median(20.0, None, load_agent(DEAF))
    _, ours = longest_and_median(20.0, None)
    assert median > ours + 0.3


def cut_off_and_paused(seed: int, *, host_clock: bool) -> float:
    """How long two answer where no peer can tell the woken one, whose lease looks good."""
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5, host_clock=host_clock)
    simulation = settled(conditions, seed)
    simulation.run_for(simulation.random.uniform(0, 20))
    simulation.pause("node1", 15.0, None)
    for peer in ("node2", "node3"):
        simulation.cut("node1", peer)
    simulation.run_for(15.0)
    return seconds_with_two(simulation, 10)


def test_a_host_clock_tells_a_machine_in_a_moment_that_it_was_paused() -> None:
    told = [cut_off_and_paused(seed, host_clock=True) for seed in range(24)]
    untold = [cut_off_and_paused(seed, host_clock=False) for seed in range(24)]
    assert statistics.median(told) < 0.4  # it looks within a quarter of a second
    assert max(told) < 2 + AGENT.GAP_SECONDS + 0.3  # in the gap between two runs nobody does
    assert statistics.median(untold) > 1.5  # until Apache or the fence


def cut_off_and_paused_with_a_clock_that_fails(agent: Any, seed: int) -> float:
    """The same where the host's clock can't be read for half a second after the pause."""
    conditions = QUIET(period_seconds=20, look_seconds=2, pause_seconds=5, host_clock=True)
    simulation = settled(conditions, seed, agent)
    simulation.run_for(simulation.random.uniform(0, 20))
    simulation.pause("node1", 15.0, None)
    for peer in ("node2", "node3"):
        simulation.cut("node1", peer)
    goes_on, moment_of = simulation.now + 15.0, simulation._moment

    def moment(process: Any, value: Any = None) -> Any:
        found = moment_of(process, value)
        fails = process.node.name == "node1" and goes_on <= simulation.now < goes_on + 0.5
        return found._replace(host_offset_seconds=None) if fails else found

    simulation._moment = moment  # type: ignore[method-assign]
    simulation.run_for(15.0)
    return seconds_with_two(simulation, 10)


def test_a_host_clock_that_fails_for_a_moment_tells_of_the_pause_afterwards() -> None:
    forgets = (
        "host_offset_seconds=host_before if host is None else host",
        "host_offset_seconds=host",
    )
    ours, theirs = (
        max(cut_off_and_paused_with_a_clock_that_fails(agent, seed) for seed in range(12))
        for agent in (AGENT, load_agent(forgets))
    )
    assert ours < 2 + AGENT.GAP_SECONDS + 0.3
    assert theirs > ours + 0.5


def test_who_loses_its_probe_to_a_step_of_the_clock_does_not_say_that_its_lease_ended() -> None:
    simulation = settled(QUIET(period_seconds=20, look_seconds=2), 1)
    simulation.run_for(1)
    node = simulation.nodes["node1"]
    node.wall_offset += 0.3  # too little for the agent itself to notice
    simulation.right_clock(node)
    simulation.run_for(4)
    assert node.state.trouble == "its probe was taken away"
