"""What operators ask for by releases, on a virtual clock: when it has an effect, and who serves."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.protocol.simulate import Conditions, Faults, Simulation, TwoActive, load_agent

AGENT = load_agent()
PERIOD = 20
OLD, NEW = "0" * 64, "1" * 64
SIGNERS = 'operator namespaces="azure-active-passive-cluster" ssh-ed25519 AAAA\n'
CALM = Conditions(look_seconds=2, slow_share=0, lost_share=0)
ORDERS = ["node1 node2 node3", "node3 node1 node2", "node2 node3 node1", "node3 node2 node1"]
WHEREVER = pytest.mark.parametrize("seed", range(1, 4))


def release(generation: int, order: str = ORDERS[0], *, agent: Any = AGENT, **told: Any) -> Any:
    """A release as a node keeps it; `told` of its own fields, and of `failback`."""
    settings = agent.NodeSettings(PERIOD, 2, 0, "private", True, told.pop("failback", "auto"))
    plain: dict[str, Any] = {
        "cluster": "lab",
        "generation": generation,
        "files": {"loader.py": agent.AgentFile(told.pop("build", OLD), 1)},
        "nodes": {name: {} for name in order.split()},
        "settings": settings,
        "drained": [],
        "prefer": None,
        "maintenance_until": None,
        "allowed_signers": SIGNERS,
        "cluster_key": None,
    }
    return agent.Release(**plain | told)


def started(*, seed: int = 1, agent: Any = AGENT, conditions: Conditions = CALM) -> Simulation:
    """A cluster that goes by release 1, in which node1 has been active for a while."""
    simulation = Simulation(conditions, seed, agent)
    order = " ".join(simulation.order)
    for name, node in simulation.nodes.items():
        node.build = OLD
        simulation.publish(name, release(1, order, agent=agent))
    simulation.run_until(8 * PERIOD + 1)
    assert simulation.active() == ["node1"]
    assert {node.effective.generation for node in simulation.nodes.values()} == {1}
    return simulation


def publish(
    simulation: Simulation, new: Any, *, after: Iterable[float] = itertools.repeat(0.0)
) -> None:
    """Serve a release: to each node so many seconds from now."""
    for name, seconds in zip(simulation.order, after, strict=False):
        when = simulation.now + seconds
        simulation.at(when, lambda name=name: simulation.publish(name, new))  # type: ignore[misc]


def roles(simulation: Simulation) -> list[str]:
    """Who has been active, one after another."""
    return [name for _, name in simulation.elections]


def gaps(simulation: Simulation) -> list[float]:
    """For how long nobody was active, each time that the role went over."""
    taken = [moment for moment, _ in simulation.elections[1:]]
    lost = [moment for moment, _ in simulation.losses]
    return [gained - given for given, gained in zip(lost, taken, strict=True)]


# ------------------------------------------------ the order


@WHEREVER
@pytest.mark.parametrize("after", [(0, 0, 0), (0, 30, 15), (19, 0, 7), (0, 200, 0), (0, 0, 200)])
def test_another_order_has_one_handover_whenever_it_reaches_which_node(
    after: tuple[float, ...], seed: int
) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2, "node3 node1 node2"), after=after)
    simulation.run_for(300)
    assert roles(simulation) == ["node1", "node3"]
    assert max(gaps(simulation)) < 1


@WHEREVER
def test_all_nodes_go_by_a_release_from_the_same_tick_on(seed: int) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2), after=(0, 50, 90))
    moments: dict[str, float] = {}
    while len(moments) < 3:
        simulation.run_for(0.1)
        for name, node in simulation.nodes.items():
            if node.effective.generation == 2:
                moments.setdefault(name, simulation.now // PERIOD)
        assert simulation.now < 600
    assert len(set(moments.values())) == 1


def test_a_release_that_does_not_reach_every_node_that_is_seen_changes_nothing() -> None:
    simulation = started()
    publish(simulation, release(2, "node2 node1 node3"), after=(0, 0))
    simulation.run_for(300)
    assert roles(simulation) == ["node1"]
    assert {node.effective.generation for node in simulation.nodes.values()} == {1}
    simulation.crash("node3")
    simulation.run_for(100)
    assert roles(simulation) == ["node1", "node2"]


@WHEREVER
def test_a_node_that_was_away_catches_up_before_it_becomes_active(seed: int) -> None:
    simulation = started(seed=seed)
    simulation.crash("node1")
    simulation.run_for(30)
    publish(simulation, release(2), after=(180, 0, 0))
    simulation.run_for(100)
    assert simulation.active() == ["node2"]
    assert simulation.nodes["node2"].effective.generation == 2
    simulation.boot("node1")
    simulation.run_for(70)
    assert (simulation.active(), simulation.nodes["node1"].held.generation) == (["node2"], 1)
    simulation.run_for(70)
    assert simulation.active() == ["node1"]
    assert simulation.nodes["node1"].held.generation == 2


def test_where_only_those_that_are_behind_are_left_one_of_them_serves() -> None:
    """The only one that holds the newest is drained by the one in effect."""
    simulation = started()
    publish(simulation, release(2, drained=["node3"]))
    simulation.run_for(100)
    publish(simulation, release(3), after=(10_000, 10_000, 0))
    simulation.run_for(100)
    simulation.crash("node1")
    simulation.run_for(60)
    assert simulation.active() == ["node2"]


@WHEREVER
def test_an_active_node_that_stays_behind_makes_way_to_one_that_is_not(seed: int) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2), after=(10_000, 0, 0))
    simulation.run_for(200)
    assert roles(simulation) == ["node1", "node2"]
    assert max(gaps(simulation)) < 1


# ------------------------------------------------ drained, preferred, kept


@WHEREVER
def test_a_drained_node_gives_up_being_active_and_votes_on(seed: int) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2, drained=["node1"]))
    simulation.run_for(100)
    assert roles(simulation) == ["node1", "node2"]
    simulation.crash("node2")
    simulation.run_for(60)
    assert simulation.active() == ["node3"]  # by the vote of node1
    publish(simulation, release(3))
    simulation.run_for(100)
    assert simulation.active() == ["node1"]


def test_of_a_node_that_was_drained_while_it_was_down_the_role_is_kept_away() -> None:
    simulation = started()
    simulation.crash("node1")
    publish(simulation, release(2, drained=["node1"]))
    simulation.run_for(100)
    simulation.boot("node1")
    simulation.run_for(200)
    assert roles(simulation) == ["node1", "node2"]


@WHEREVER
def test_a_switchover_moves_the_role_at_once_and_back_when_it_ends(seed: int) -> None:
    simulation = started(seed=seed)
    until = int(simulation.now) + 200
    publish(simulation, release(2, prefer=AGENT.Preferred("node3", until)))
    simulation.run_for(100)
    assert roles(simulation) == ["node1", "node3"]
    simulation.run_for(200)
    assert roles(simulation) == ["node1", "node3", "node1"]
    assert max(gaps(simulation)) < 1


@WHEREVER
def test_where_failback_is_never_the_role_stays_until_it_is_lost_or_moved(seed: int) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2, failback="never"))
    simulation.run_for(60)
    simulation.crash("node1")
    simulation.run_for(60)
    simulation.boot("node1")
    simulation.run_for(200)
    assert roles(simulation) == ["node1", "node2"]
    simulation.crash("node2")
    simulation.run_for(60)
    assert roles(simulation) == ["node1", "node2", "node1"]
    until = int(simulation.now) + 100
    prefer = AGENT.Preferred("node3", until)
    publish(simulation, release(3, failback="never", prefer=prefer))
    simulation.run_for(300)
    assert simulation.active() == ["node3"]  # it stays there, too


@WHEREVER
def test_where_failback_takes_its_time_a_preferred_node_waits_for_so_long(seed: int) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2, failback=100))
    simulation.run_for(60)
    simulation.crash("node1")
    simulation.run_for(60)
    simulation.boot("node1")
    booted = simulation.now
    simulation.run_for(300)
    assert roles(simulation) == ["node1", "node2", "node1"]
    assert 100 < simulation.elections[-1][0] - booted < 150


@WHEREVER
def test_in_a_maintenance_the_role_goes_nowhere_but_from_a_node_that_is_lost(seed: int) -> None:
    simulation = started(seed=seed)
    simulation.crash("node1")
    simulation.run_for(60)
    until = int(simulation.now) + 300
    publish(simulation, release(2, maintenance_until=until, build=NEW))
    simulation.run_for(60)
    simulation.boot("node1")
    simulation.run_for(120)
    assert roles(simulation) == ["node1", "node2"]
    simulation.crash("node2")
    simulation.run_for(60)
    assert simulation.active() == ["node1"]
    assert simulation.replaced == []


# ------------------------------------------------ nodes that do not go by the same


def lost(simulation: Simulation, name: str) -> float:
    """For how many seconds in a row nobody is active, in the ten minutes after a node is lost."""
    simulation.crash(name)
    simulation.without = simulation.longest_without = 0
    simulation.run_for(600)
    return simulation.longest_without * PERIOD / 40


@WHEREVER
@pytest.mark.parametrize(
    ("name", "ahead_seconds", "lasts"), [("node2", -3600, 200), ("node1", 86_400, 3600)]
)
def test_a_preference_that_is_over_by_one_clock_and_not_by_another_leaves_somebody_active(
    name: str, ahead_seconds: int, lasts: int, seed: int
) -> None:
    """Node2 is preferred, and one clock is wrong: of the two that are left each is first."""
    simulation = started(seed=seed)
    simulation.nodes[name].wall_offset = ahead_seconds
    simulation.run_for(60)
    until = int(simulation.now) + lasts
    publish(simulation, release(2, prefer=AGENT.Preferred("node2", until)))
    simulation.run_for(400)
    assert lost(simulation, "node3") < 30


@pytest.mark.parametrize("seed", [2, 3])
def test_an_order_that_one_node_can_not_note_leaves_somebody_active(seed: int) -> None:
    """The disk of node2 is full: it goes by the order of before, and all hold the newest."""
    simulation = started(seed=seed)
    publish(simulation, release(2, "node2 node1 node3"))
    simulation.run_for(100)
    publish(simulation, release(3))
    node2 = simulation.nodes["node2"]
    before = node2.effective

    def unnoted() -> None:
        node2.effective = before
        simulation.at(simulation.now + 0.05, unnoted)

    unnoted()
    simulation.run_for(100)
    assert (node2.held.generation, node2.effective.generation) == (3, 2)
    assert lost(simulation, "node3") < 30


@pytest.mark.parametrize("seed", [4, 5, 10])
def test_of_five_two_that_do_not_stand_do_not_hand_the_role_to_and_fro(seed: int) -> None:
    """All others are drained; node1 never takes the newest release, node3 when it is back."""
    conditions = Conditions(nodes=5, look_seconds=2, slow_share=0, lost_share=0)
    simulation, drained = started(seed=seed, conditions=conditions), ["node2", "node4", "node5"]
    order, never = "node4 node5 node2 node3 node1", float("inf")
    publish(simulation, release(2, order, drained=drained))
    simulation.run_for(120)
    simulation.crash("node3")
    simulation.run_for(40)
    publish(simulation, release(3, order, drained=drained), after=(never, 0, 0, 0, 0))
    simulation.run_for(25)
    simulation.boot("node3")
    simulation.run_for(25)
    before, simulation.samples_without = len(simulation.elections), 0
    simulation.run_for(250)
    assert len(simulation.elections) - before <= 1
    assert simulation.samples_without * PERIOD / 40 < 3


# ------------------------------------------------ the agent


@WHEREVER
def test_agents_are_replaced_one_at_a_time_and_the_active_one_last(seed: int) -> None:
    simulation = started(seed=seed)
    publish(simulation, release(2, build=NEW), after=(0, 30, 10))
    simulation.run_for(600)
    moments, names, _ = zip(*simulation.replaced, strict=True)
    assert names == ("node3", "node2", "node1")
    assert all(b - a > 2 * PERIOD for a, b in itertools.pairwise(moments))  # two good runs
    assert roles(simulation) == ["node1", "node2", "node1"]
    assert max(gaps(simulation)) < 1


def test_with_one_look_a_run_the_active_node_makes_way_for_its_new_agent_as_well() -> None:
    simulation = started(conditions=Conditions(slow_share=0, lost_share=0))
    publish(simulation, release(2, build=NEW))
    simulation.run_for(1200)
    assert [name for _, name, _ in simulation.replaced] == ["node3", "node2", "node1"]
    assert roles(simulation) == ["node1", "node2", "node1"]


def test_of_five_the_last_in_the_order_is_the_first_and_one_that_is_gone_waits_for_nobody() -> None:
    conditions = Conditions(nodes=5, look_seconds=2, slow_share=0, lost_share=0)
    simulation = started(conditions=conditions)
    simulation.crash("node4")
    publish(simulation, release(2, " ".join(simulation.order), build=NEW))
    simulation.run_for(600)
    simulation.boot("node4")
    simulation.run_for(200)
    names = [name for _, name, _ in simulation.replaced]
    assert names == ["node5", "node3", "node2", "node1", "node4"]


@WHEREVER
def test_an_agent_that_fails_is_undone_and_goes_no_further(seed: int) -> None:
    simulation = started(seed=seed)
    simulation.useless.add(NEW)
    publish(simulation, release(2, build=NEW))
    simulation.run_for(600)
    assert [name for _, name, _ in simulation.replaced] == ["node3"]
    assert {node.build for node in simulation.nodes.values()} == {OLD}
    assert (roles(simulation), simulation.losses) == (["node1"], [])
    publish(simulation, release(3, build="2" * 64))  # the remedy
    simulation.run_for(600)
    assert {node.build for node in simulation.nodes.values()} == {"2" * 64}


def test_no_agent_is_replaced_while_fewer_than_a_majority_would_be_left() -> None:
    simulation = started()
    simulation.crash("node2")
    publish(simulation, release(2, build=NEW))
    simulation.run_for(300)
    assert simulation.replaced == []
    simulation.boot("node2")
    simulation.run_for(600)
    assert {node.build for node in simulation.nodes.values()} == {NEW}


# ------------------------------------------------ mutations: each rule, broken, must show


def one_handover(agent: Any) -> bool:
    simulation = started(agent=agent)
    new = release(2, "node2 node1 node3", agent=agent)
    publish(simulation, new, after=(0, 0, 150))
    simulation.run_for(100)
    early = roles(simulation) != ["node1"]
    simulation.run_for(200)
    return not early and roles(simulation) == ["node1", "node2"]


def away_while_others_took_one(agent: Any) -> Simulation:
    """Node1 is back, behind and before all others; by the release that it lacks it is drained."""
    simulation = started(agent=agent)
    simulation.crash("node1")
    publish(simulation, release(2, drained=["node1"], agent=agent), after=(160, 0, 0))
    simulation.run_for(100)
    simulation.boot("node1")
    simulation.run_for(30)
    return simulation


def rests_while_behind(agent: Any) -> bool:
    simulation = away_while_others_took_one(agent)
    simulation.crash("node2")
    simulation.run_for(150)
    return roles(simulation) == ["node1", "node2", "node3"]


def rests_until_it_is_in_effect(agent: Any) -> bool:
    simulation = away_while_others_took_one(agent)
    while simulation.nodes["node1"].held.generation < 2:
        simulation.run_for(0.1)
        assert simulation.now < 600
    simulation.run_until((simulation.now // PERIOD + 1) * PERIOD + 3)  # it shows that it holds it
    simulation.crash("node2")
    simulation.run_for(150)
    return roles(simulation) == ["node1", "node2", "node3"]


def replaced_in_turn(agent: Any) -> bool:
    simulation = started(agent=agent)
    publish(simulation, release(2, build=NEW, agent=agent))
    simulation.run_for(500)
    moments, names, _ = zip(*simulation.replaced, strict=True)
    apart = all(b - a > 2 * PERIOD for a, b in itertools.pairwise(moments))
    return apart and names == ("node3", "node2", "node1") and len(simulation.losses) == 2


def the_active_one_last(agent: Any) -> bool:
    simulation = started(agent=agent)
    publish(simulation, release(2, failback="never", agent=agent))
    simulation.run_for(60)
    simulation.crash("node1")
    simulation.run_for(60)
    simulation.boot("node1")
    publish(simulation, release(3, failback="never", build=NEW, agent=agent))
    simulation.run_for(500)
    return [name for _, name, _ in simulation.replaced] == ["node3", "node1", "node2"]


def replaced_with_a_majority_beside(agent: Any) -> bool:
    simulation = started(agent=agent)
    simulation.crash("node2")
    publish(simulation, release(2, build=NEW, agent=agent))
    simulation.run_for(200)
    return simulation.replaced == []


def heir_is_proven_and_not_drained(agent: Any) -> bool:
    simulation = started(agent=agent)
    publish(simulation, release(2, drained=["node1", "node2"], agent=agent))
    simulation.run_for(150)
    return roles(simulation) == ["node1", "node3"] and max(gaps(simulation)) < 1


RULES: dict[str, tuple[Callable[[Any], bool], tuple[str, str]]] = {
    "a release has an effect whatever peers hold": (
        one_handover,
        ("return bool(members.release) and enough and not waited_for(members, markers)",
         "return bool(members.release) and enough"),
    ),
    "who is behind stands": (
        rests_while_behind,
        ("late = state.behind_since_seconds > 0 or not", "late = not"),
    ),
    "who has caught up stands at once": (
        rests_until_it_is_in_effect,
        ("behind = behind or (since > 0 and not members.in_effect)", "pass"),
    ),
    "agents are replaced all at once": (
        replaced_in_turn, ("members.majority and before <= done", "members.majority")
    ),
    "one on trial is proven": (
        replaced_in_turn, ("if m.proven and m.generation ==", "if m.generation ==")
    ),
    "the active one waits for nobody": (
        the_active_one_last, ("if state.active or (n in after and", "if (n in after and")
    ),
    "an agent is replaced though the rest is no majority": (
        replaced_with_a_majority_beside,
        ("members.proven and len(markers) >= members.majority", "members.proven"),
    ),
    "an heir may be drained": (
        heir_is_proven_and_not_drained,
        (" and m.proven and name not in members.drained", " and m.proven"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_shows(rule: str) -> None:
    holds, mutation = RULES[rule]
    assert holds(AGENT)
    assert not holds(load_agent(mutation))


# ------------------------------------------------ chance


class Operators:
    """Releases at random moments, which reach each node at another one."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation, self.random = simulation, simulation.random
        self.generation = 1
        self.on = True

    def publish(self, **told: Any) -> None:
        self.generation += 1
        new = release(self.generation, " ".join(told.pop("order")), **told)
        longest = self.random.choice([1, 1, PERIOD, 10 * PERIOD])
        after = [self.random.uniform(0, longest) for _ in self.simulation.order]
        publish(self.simulation, new, after=after)

    def strike(self) -> None:
        """Whatever an operator may ask for, and again a while later."""
        order, now = list(self.simulation.order), int(self.simulation.now)
        self.random.shuffle(order)
        kinds: list[dict[str, Any]] = [
            {},
            {"drained": order[:1]},
            {"prefer": AGENT.Preferred(order[-1], now + self.random.randint(1, 300))},
            {"failback": self.random.choice(["never", 60])},
            {"maintenance_until": now + 200},
            {"build": self.random.choice([OLD, NEW])},
        ]
        if self.on:
            self.publish(order=order, **self.random.choice(kinds))
        wait = self.random.expovariate(1 / (5 * PERIOD))
        self.simulation.at(self.simulation.now + wait, self.strike)


def lasting(simulation: Simulation, seconds: float) -> list[str]:
    """Who is active after so long, if nobody was so for no longer than a failover may take."""
    simulation.run_for(PERIOD + AGENT.worst_failover_seconds(simulation.times))
    simulation.without = simulation.longest_without = 0
    simulation.run_for(seconds)
    assert simulation.longest_without * PERIOD / 40 < 2
    return simulation.active()


@pytest.mark.parametrize("seed", range(1, 9))
def test_under_faults_and_releases_never_two_are_active_and_always_one_is_again(seed: int) -> None:
    simulation = started(seed=seed)
    faults, operators = Faults(simulation, every_seconds=12), Operators(simulation)
    operators.strike()
    for _ in range(3):
        faults.start()
        operators.on = True
        simulation.run_for(30 * PERIOD)
        faults.stop()
        operators.on = False
        operators.publish(order=simulation.order)
        assert lasting(simulation, 30 * PERIOD) == ["node1"]
        assert {node.build for node in simulation.nodes.values()} == {OLD}
    assert len(simulation.elections) > 4


def each_its_own(simulation: Simulation) -> None:
    """Every node goes by other orders, drained nodes and preferences than all others."""
    chance = simulation.random
    for name, members in simulation.members.items():
        order = list(simulation.order)
        chance.shuffle(order)
        simulation.members[name] = members._replace(
            order=tuple(order),
            drained=frozenset(chance.sample(order, chance.randint(0, 2))),
            prefer=chance.choice([None, *order]),
            keeps_active=chance.random() < 0.3,
            failback_looks=chance.choice([2, 2, 5]),
            release=chance.randint(1, 3),
        )
    simulation.at(simulation.now + chance.uniform(1, 3 * PERIOD), lambda: each_its_own(simulation))


@pytest.mark.parametrize("nodes", [3, 5])
def test_no_two_are_active_though_every_node_goes_by_its_own_order(nodes: int) -> None:
    elections = 0
    for seed in range(1, 6):
        conditions = Conditions(nodes=nodes, look_seconds=2)
        simulation = Simulation(conditions, seed, AGENT)
        each_its_own(simulation)
        faults = Faults(simulation, every_seconds=12)
        faults.start()
        simulation.run_for(1200)
        elections += len(simulation.elections)
    assert elections > 60


def test_that_would_show_where_a_promise_did_not_bind() -> None:
    broken = load_agent(
        (
            "    state = state._replace(vote=vote)\n    if state.holding(now)",
            "    vote = None\n    state = state._replace(vote=vote)\n    if state.holding(now)",
        )
    )
    with pytest.raises(TwoActive):
        for seed in range(1, 41):
            simulation = Simulation(Conditions(look_seconds=2), seed, broken)
            each_its_own(simulation)
            Faults(simulation, every_seconds=12).start()
            simulation.run_for(1200)
