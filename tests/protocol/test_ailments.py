"""Machines that are up and not well, in simulation: who serves then, and for how long nobody does.

A node that asks for votes and cannot serve must lose its preference, whoever notices; a fault that
passes before the fence is due must cost nothing; and what was recorded must move nobody.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.protocol.simulate import Ailment, Conditions, Simulation, TwoActive, load_agent

AGENT = load_agent()
PERIOD = 20.0
TIMES = AGENT.timing(20, 20, 0)
ROUND = TIMES.timeout_seconds + TIMES.poll_seconds
FENCE_AFTER_TICK = TIMES.lease_seconds - TIMES.margin_seconds - PERIOD  # of the look before
EFFECTS = ("Poll", "Save", "Show", "Serve", "Drop", "Pause")


def calm(nodes: int = 3, replayed_share: float = 0.0) -> Conditions:
    """A network without faults of its own."""
    return Conditions(nodes, slow_share=0, lost_share=0, replayed_share=replayed_share)


def at_effect(number: int) -> Callable[[int, int, str], bool]:
    return lambda _run, before, _kind: before == number


def at_kind(kind: str, every: int = 1) -> Callable[[int, int, str], bool]:
    return lambda run, _before, this: this == kind and run % every == 0


SLOW = (0.05 * PERIOD, 0.15 * PERIOD)
SCHEDULES: dict[str, Ailment] = {
    **{f"killed at effect {n}": Ailment(killed=at_effect(n)) for n in range(16)},
    **{f"killed at {kind}": Ailment(killed=at_kind(kind)) for kind in EFFECTS},
    **{f"every second run killed at {kind}": Ailment(killed=at_kind(kind, 2)) for kind in EFFECTS},
    **{f"{kind} fails": Ailment(fails=at_kind(kind)) for kind in EFFECTS[1:5]},
    **{
        f"{kind} fails in every second run": Ailment(fails=at_kind(kind, 2))
        for kind in EFFECTS[1:5]
    },
    "late": Ailment(late_periods=(0.8, 0.9)),
    "late, slow and one request in ten lost": Ailment(
        late_periods=(0.8, 0.9), slow_seconds=SLOW, lost_share=0.1
    ),
    "half a period late": Ailment(late_periods=(0.3, 0.6)),
    "late by chance": Ailment(late_periods=(0.0, 0.9)),
    "slow": Ailment(slow_seconds=SLOW),
    "very slow": Ailment(slow_seconds=(0.15 * PERIOD, 0.3 * PERIOD)),
    "one request in four lost": Ailment(lost_share=0.25),
}


# Of their looks one in five does not collect its votes in the rounds before the fence, which is
# due the earlier the more a clock may be slewed; and nobody looks again before the next tick.
SHARES_WITHOUT = {"one request in four lost": (PERIOD + ROUND - FENCE_AFTER_TICK) / (5 * PERIOD)}


class Outcome(NamedTuple):
    """Of 30 periods with an ailment: in periods, but for the share."""

    share_without: float
    longest_without: float
    back_after: float  # from the first runs of all that began well until the preferred one's role


def outcome_of(case: tuple[str, int, bool, int]) -> Outcome:
    """One node of three, or two of five, are not well, from the start or while node1 serves."""
    name, count, running, seed = case
    simulation = Simulation(calm(count), seed, AGENT)
    ailing = [simulation.nodes[f"node{number}"] for number in range(1, count // 2 + 1)]
    if running:
        simulation.run_until(8 * PERIOD + 1)
    for node in ailing:
        node.ailment, node.ailing_runs = SCHEDULES[name], 0
    if not running:
        simulation.run_until(2 * PERIOD)  # nobody votes before the hold after boot is over
    simulation.samples = simulation.samples_without = 0
    simulation.without = simulation.longest_without = 0
    simulation.run_for(30 * PERIOD)
    share = simulation.samples_without / simulation.samples
    longest = simulation.longest_without / 40  # samples in a period
    for node in ailing:
        node.ailment, node.ailing_runs = Ailment(), 0
    while not all(node.ailing_runs for node in ailing):  # a run that began ill ends so
        simulation.run_for(PERIOD / 40)
    well_at = simulation.now
    while simulation.active() != ["node1"] and simulation.now < well_at + 12 * PERIOD:
        simulation.run_for(PERIOD / 40)
    return Outcome(share, longest, (simulation.now - well_at) / PERIOD)


@pytest.mark.parametrize("count", [3, 5])
def test_whatever_ails_the_preferred_nodes_a_healthy_majority_has_somebody_who_serves(
    count: int,
) -> None:
    """Nobody for three periods at a stretch and a tenth of the time at most; never two."""
    cases = [(name, count, running, 1) for name in SCHEDULES for running in (True, False)]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        outcomes = dict(zip(cases, pool.map(outcome_of, cases, chunksize=4), strict=True))
    worst = {
        what: max((outcome[index], case) for case, outcome in outcomes.items())
        for index, what in enumerate(Outcome._fields)
    }
    print(worst)
    for case, outcome in outcomes.items():
        assert outcome.share_without <= SHARES_WITHOUT.get(case[0], 0.10), case
    assert worst["longest_without"][0] <= 3
    assert worst["back_after"][0] <= 5


def test_a_voter_whose_vote_came_to_nothing_prefers_the_next_one_until_good_runs_are_shown() -> (
    None
):
    """Whether or not the one that it voted for has noticed."""
    voter = AGENT.Members("node3", ("node1", "node2", "node3"), bytes(32), TIMES)
    state = AGENT.State(epoch="mine", hold_until_seconds=0.0, stamp=1)

    def votes_at(now: float, good_runs: int) -> Any:
        """A run in which node1 and node2 ask, and nobody is active."""
        stamp, replies = int(now * 1000), {}
        for name in voter.peers:
            marker = AGENT.Marker(
                *(name, "node3", f"of {name}", stamp, True, good_runs, False, None, 0, False),
                *(None, {"mine": stamp}, "", ""),
            )
            page = AGENT.format_marker(voter._replace(me=name), marker).encode()
            replies[name] = AGENT.Reply(AGENT.Answer(200, page, {}, whole=True))
        moment = AGENT.Moment(now, now, now, None, probe_there=False, value=replies)
        return AGENT.glance(voter, state._replace(stamp=stamp), moment)[0].state

    state = votes_at(1000.0, 1)
    assert (state.vote.candidate, state.yields_to) == ("node1", None)
    state = votes_at(1020.0, 1)
    assert (state.vote.candidate, state.yields_to) == ("node1", "node2")
    assert votes_at(1028.0, 1).vote.candidate == "node2"
    assert votes_at(1028.0, 2).vote.candidate == "node1"


def test_a_node_whose_runs_begin_too_late_does_not_stand_and_no_such_run_is_a_good_one() -> None:
    simulation = Simulation(calm(), 1, AGENT)
    late = simulation.nodes["node1"]
    late.ailment = SCHEDULES["late"]
    simulation.run_until(2 * PERIOD)
    while simulation.now < 12 * PERIOD:
        simulation.run_for(PERIOD / 40)
        assert not late.state.candidate
        assert late.state.quorum_runs <= 1
    assert simulation.active() == ["node2"]


@pytest.mark.parametrize("look", [2.0, PERIOD])
def test_a_disk_that_the_probe_fills_gives_the_role_to_another_node_once(look: float) -> None:
    """Without the probe there is room to show markers: it must not come back for that."""
    simulation = Simulation(replace(calm(), look_seconds=look), 1, AGENT)
    simulation.run_until(8 * PERIOD)
    assert simulation.active() == ["node1"]
    full = simulation.nodes["node1"]
    full.ailment = Ailment(
        fails=lambda _run, _before, kind: kind == "Show" and (full.probe or full.staged)
    )
    simulation.run_for(3 * PERIOD)
    assert simulation.active() == ["node2"]
    elections = len(simulation.elections)
    simulation.run_for(20 * PERIOD)
    assert len(simulation.elections) == elections
    full.ailment = Ailment()
    simulation.run_for(5 * PERIOD)
    assert simulation.active() == ["node1"]


@pytest.mark.parametrize("kind", ["Save", "Serve", "Show"])
def test_one_failed_call_on_each_node_of_a_cluster_that_starts_costs_no_period(kind: str) -> None:
    simulation = Simulation(calm(), 1, AGENT)
    failed: set[str] = set()

    def once(name: str) -> Callable[[int, int, str], bool]:
        def fails(_run: int, _before: int, this: str) -> bool:
            first = this == kind and name not in failed and simulation.now > 30
            failed.update({name} if first else ())
            return first

        return fails

    for name, node in simulation.nodes.items():
        node.ailment = Ailment(fails=once(name))
    simulation.run_until(60)
    assert "node1" in failed
    assert simulation.elections[0][0] < 42


@pytest.mark.parametrize("period", [2, 20])
def test_a_run_that_fails_on_every_node_at_one_tick_leaves_nobody_for_two_periods_at_most(
    period: float,
) -> None:
    """As with a bad agent that all take at once; a run that fails removes its probe.

    Each time again, while all remember the last one: nobody may be left to wait for.
    """
    simulation = Simulation(Conditions(period_seconds=period, slow_share=0, lost_share=0), 1, AGENT)
    crashes_until = 0.0

    def crashing(name: str) -> Callable[[int, int, str], bool]:
        node = simulation.nodes[name]

        def killed(_run: int, _before: int, _kind: str) -> bool:
            crashes = simulation.now < crashes_until
            node.probe = node.staged = node.probe and not crashes
            return crashes

        return killed

    for name, node in simulation.nodes.items():  # starting Python takes a quarter of a second
        node.ailment = Ailment((0.12, 0.15) if period == 2 else (0, 0), killed=crashing(name))
    simulation.run_until(8 * period - 0.1)
    assert simulation.active() == ["node1"]
    for _ in range(4):
        crashes_until, simulation.longest_without = simulation.now + 0.6 * period, 0
        simulation.run_for(6 * period)
        assert simulation.elections
        assert simulation.active()
        assert 0 < simulation.longest_without / 40 <= 2


# ------------------------------------------------ a fault at the renewal


def renewal_fault(kind: str, seconds: float, seed: int) -> Simulation:
    """`kind` fails on the active node from a tick on for so many seconds."""
    simulation = Simulation(calm(), seed, AGENT)
    simulation.run_until(8 * PERIOD - 1)
    assert simulation.active() == ["node1"]
    simulation.losses.clear()  # who is first after a boot may be another one
    over = simulation.now + 1 + seconds
    simulation.nodes["node1"].ailment = Ailment(
        fails=lambda _run, _before, this: this == kind and simulation.now < over
    )
    simulation.run_for(4 * PERIOD)
    return simulation


@pytest.mark.parametrize("kind", ["Save", "Serve", "Show"])
@pytest.mark.parametrize("seconds", [0.5, 2, FENCE_AFTER_TICK - ROUND])
def test_a_fault_that_passes_before_the_fence_is_due_leaves_no_gap(
    kind: str, seconds: float
) -> None:
    """The fence that is armed runs until 3.7 s after the tick, and the last try takes a round."""
    for seed in range(1, 11):
        simulation = renewal_fault(kind, seconds, seed)
        assert (simulation.active(), simulation.losses) == (["node1"], [])


@pytest.mark.parametrize("kind", ["Save", "Serve", "Show"])
def test_a_fault_that_outlasts_the_lease_ends_it_and_another_serves(kind: str) -> None:
    for seed in range(1, 11):
        simulation = renewal_fault(kind, 1000, seed)
        assert simulation.active() == ["node2"]
        (lost, _), (taken, _) = simulation.losses[0], simulation.elections[-1]
        assert taken - lost < 1.2 * PERIOD


# ------------------------------------------------ markers of the past


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_whatever_old_markers_are_mixed_in_the_node_that_would_be_active_is(share: float) -> None:
    """Of every age, of earlier boots too: who stands between the nodes has recorded them all."""
    for seed in range(1, 6):
        simulation = Simulation(calm(replayed_share=1e-9), seed, AGENT)
        for name in ("node1", "node3", "node2", "node1"):
            simulation.run_for(6 * PERIOD)
            simulation.crash(name)
            simulation.boot(name)
        simulation.run_for(6 * PERIOD)
        object.__setattr__(simulation.conditions, "replayed_share", share)
        simulation.samples = simulation.samples_without = 0
        simulation.run_for(40 * PERIOD)
        assert simulation.samples_without / simulation.samples < 0.05
        simulation.crash("node1")
        simulation.run_for(4 * PERIOD)
        assert simulation.active() == ["node2"]


def answers_with_its_past(agent: Any, seed: int) -> Simulation:
    """node1 is gone; at its address somebody answers with the markers of its boot before."""
    simulation = Simulation(calm(replayed_share=1e-9), seed, agent)
    simulation.run_until(40 * PERIOD)
    recorded = {
        peer: [marker for marker in simulation.shown["node1", peer] if marker.candidate]
        for peer in ("node2", "node3")
    }
    simulation.crash("node1")
    simulation.boot("node1")
    simulation.run_for(6 * PERIOD)
    assert simulation.active() == ["node1"]
    simulation.crash("node1")
    impostor, began, honest = simulation.nodes["node1"], simulation.now, simulation._content
    impostor.up, impostor.hung, impostor.probe = True, True, False

    def content(target: Any, reader: Any) -> Any:
        """Each for a second and a half, oldest first."""
        past = recorded.get(reader.name, []) if target is impostor else []
        number = int((simulation.now - began) / 1.5)
        return past[number] if number < len(past) else honest(target, reader)

    simulation._content = content  # type: ignore[method-assign]
    simulation.run_for(6 * PERIOD)
    return simulation


def test_who_answers_in_a_nodes_place_with_its_markers_of_the_past_moves_nobody() -> None:
    for seed in range(1, 6):
        assert answers_with_its_past(AGENT, seed).active() == ["node2"]


def test_markers_that_need_not_answer_a_request_would_let_the_past_stop_the_cluster() -> None:
    credulous = load_agent((" and heard_seconds(state, marker) >= oldest", ""))
    outcomes = [answers_with_its_past(credulous, seed).active() for seed in range(1, 6)]
    assert [] in outcomes


def test_a_promise_to_one_boot_outlives_a_vote_for_another_that_was_replayed() -> None:
    """Else a replayed marker of the other boot frees a voter while the first one still serves."""
    members = AGENT.Members("node2", ("node1", "node2", "node3"), bytes(32), TIMES)
    now = 1000.0
    state = AGENT.State(epoch="mine", hold_until_seconds=0.0, stamp=999_000)
    for epoch, released in (("now", 0), ("before", 0), ("before", 10**6)):
        marker = AGENT.Marker(
            *("node1", "node2", epoch, 10**6, not released, 5, False, None, released, not released),
            *(None, {"mine": 999_000}, "", ""),
        )
        view = AGENT.View(
            now, now, {"node1": marker}, frozenset(), {"node1": now}, *3 * (False,), now
        )
        state, _ = AGENT.cast_vote(members, state, view)
        now += 1
    assert state.vote.until_seconds == 1000.0 + members.times.promise_seconds
    then = 1000.0 + members.times.promise_seconds
    view = AGENT.View(then, then, {}, frozenset(), {}, *3 * (False,), now)
    assert AGENT.cast_vote(members, state, view)[0].vote is None


# ------------------------------------------------ clocks


def test_a_wall_clock_that_is_slewed_fast_costs_no_role() -> None:
    """chrony moves it by up to 83,333 ppm: 1.7 s from one run to the next."""
    simulation = Simulation(calm(), 1, AGENT)
    simulation.run_until(8 * PERIOD + 1)
    for _ in range(200):
        simulation.run_for(PERIOD / 20)
        simulation.nodes["node1"].wall_offset += 0.0833 * PERIOD / 20
    assert (simulation.active(), simulation.losses) == (["node1"], [])


def voters_reboot_with_a_shorter_period(agent: Any, kept_seconds: float) -> None:
    """They promised themselves for 27 s, are set to a period of 2 s, and reboot."""
    simulation = Simulation(calm(), 1, agent)
    simulation.run_until(8 * PERIOD + 1)
    for peer in ("node2", "node3"):
        simulation.cut("node1", peer)
    simulation.set_period(("node2", "node3"), 2)
    for name in ("node2", "node3"):
        simulation.crash(name)
        simulation.boot(name)
        simulation.nodes[name].promised_seconds = kept_seconds
    simulation.run_for(2 * PERIOD)


def test_a_node_with_another_period_holds_its_vote_for_what_it_promised_before_its_boot() -> None:
    voters_reboot_with_a_shorter_period(AGENT, TIMES.promise_seconds)
    with pytest.raises(TwoActive):
        voters_reboot_with_a_shorter_period(AGENT, 0.0)


def voters_get_a_shorter_period_while_node1_runs(agent: Any, seed: int, period: float) -> None:
    """Their next votes bind for less; node1 is killed before it reads those, and stays away.

    At the longest period there is: its fence is due 11 s after a tick, a vote binds for 4.5 s.
    """
    simulation = Simulation(dataclasses.replace(calm(), period_seconds=60), seed, agent)
    simulation.run_until(10 * 60 - 0.5)
    assert simulation.active() == ["node1"]
    simulation.set_period(("node2", "node3"), period)

    def killed(_run: int, _before: int, kind: str) -> bool:
        simulation.left |= {"node1"} if kind == "Pause" else set()
        return kind == "Pause"

    simulation.nodes["node1"].ailment = Ailment(killed=killed)
    simulation.run_for(3 * 60)


def test_a_vote_that_is_renewed_for_less_binds_for_what_was_promised_before() -> None:
    for seed in range(1, 4):
        for period in (2, 4, 5, 10, 20):
            voters_get_a_shorter_period_while_node1_runs(AGENT, seed, period)
    heedless = load_agent(("until = max(until, vote.until_seconds)", "pass"))
    with pytest.raises(TwoActive):
        for seed in range(1, 9):
            voters_get_a_shorter_period_while_node1_runs(heedless, seed, 2)


@pytest.mark.parametrize(("bound_seconds", "noted"), [(4.0, "4.5"), (24.0, "27")])
def test_a_shorter_promise_is_noted_only_when_no_vote_binds_longer(
    tmp_path: Path, bound_seconds: float, noted: str
) -> None:
    paths, now = AGENT.Paths(str(tmp_path)), 1000.0
    paths.etc.mkdir(parents=True)
    paths.promised.write_text("27")
    vote = AGENT.Vote("node1", "an epoch", 1, now + bound_seconds, 4.5)
    state = AGENT.State(epoch="mine", hold_until_seconds=0.0, vote=vote)
    AGENT.keep_promised(paths, state, AGENT.timing(2, 2, 0), now)
    assert paths.promised.read_text() == noted


# ------------------------------------------------ settings that are not the same on all nodes

RESTS = ("return [] if enough or state.active else brief", "return []")


def with_pauses(pauses: tuple[float, ...], look: float, seed: int, agent: Any = AGENT) -> Any:
    """A cluster, long after its start, of nodes that absorb pauses of different lengths."""
    simulation = Simulation(replace(calm(len(pauses)), look_seconds=look), seed, agent)
    for (name, members), pause in zip(simulation.members.items(), pauses, strict=True):
        times = agent.timing(PERIOD, look, pause)
        simulation.members[name] = members._replace(times=times)
    simulation.run_for(100)
    simulation.without = simulation.longest_without = 0
    return simulation


@pytest.mark.parametrize(
    ("pauses", "look"),
    [((5, 0, 0), 2), ((2, 0, 0), 2), ((10, 10, 0, 5, 0), 2), ((5, 0, 0), 20), ((10, 5, 5), 20)],
)
def test_a_node_for_which_its_voters_promise_too_little_leaves_the_role_to_another(
    pauses: tuple[float, ...], look: float
) -> None:
    simulation = with_pauses(pauses, look, seed=1)
    losses = len(simulation.losses)
    simulation.run_for(300)
    assert simulation.active() not in ([], ["node1"])
    assert (len(simulation.losses), simulation.longest_without) == (losses, 0)


def test_a_node_that_stands_in_spite_of_that_would_keep_everybody_from_serving() -> None:
    simulation = with_pauses((5, 0, 0), 2.0, seed=1, agent=load_agent(RESTS))
    simulation.run_for(300)
    assert (simulation.active(), simulation.longest_without) == ([], 600)  # half seconds


@pytest.mark.parametrize("gone", ["node1", "node2", "node3"])
def test_whoever_is_lost_of_nodes_with_three_settings_another_one_serves(gone: str) -> None:
    for order in itertools.permutations((10.0, 5.0, 0.0)):
        simulation = with_pauses(order, 2.0, seed=1)
        simulation.crash(gone)
        simulation.run_for(60)
        simulation.without = simulation.longest_without = 0
        simulation.run_for(200)
        assert simulation.longest_without <= 1, order


def test_a_node_takes_the_role_back_when_its_voters_have_its_settings() -> None:
    simulation = with_pauses((5, 0, 0), 2.0, seed=1)
    for name in ("node2", "node3"):
        times = AGENT.timing(PERIOD, 2, 5)
        simulation.members[name] = simulation.members[name]._replace(times=times)
    simulation.run_for(60)
    assert simulation.active() == ["node1"]
    assert simulation.longest_without <= 3


@pytest.mark.parametrize(("pauses", "announced"), [((0, 5, 5), "node1"), ((5, 0, 5), "node2")])
def test_such_a_node_is_nobodys_heir(pauses: tuple[float, ...], announced: str) -> None:
    simulation = with_pauses(pauses, 2.0, seed=1)
    simulation.crash("node3")
    simulation.run_for(60)
    assert simulation.active() == [announced]
    simulation.announced[announced] = "Freeze"
    simulation.without = simulation.longest_without = 0
    simulation.run_for(120)
    assert (simulation.active(), simulation.longest_without) == ([announced], 0)
