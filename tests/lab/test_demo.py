"""A service that runs with the role, on real nodes: a slow one, and on node2 a stubborn one too.

The judge is the collector: at the end of each test no writes of two nodes overlap, and terms grow.
"""

import time
from collections.abc import Iterator

import pytest

from agent.loader import worst_failover_seconds
from deploy.lab import demo
from tests.lab.cluster import BootedLab, verb
from tests.lab.roles import START_SECONDS, make_slow, settle
from tests.lab.writes import longest_silence_seconds, overlaps, tenures

pytestmark = [
    pytest.mark.lab,
    pytest.mark.parametrize(
        "machine", [(3, 20, 2, 5, (), True)], indirect=True, ids=["3 nodes with a service"]
    ),
]


@pytest.fixture
def serving(cluster: BootedLab) -> Iterator[BootedLab]:
    """The lab with the service, node1 writes; and nobody ever beside another."""
    if not (cluster.root("node2") / "etc/systemd/system/stubborn.service").exists():
        make_slow(cluster, stubborn="node2")
    settle(cluster)
    began = time.time()
    yield cluster
    assert overlaps(cluster.writes(began)) == []


def nodes_since(cluster: BootedLab, moment: float) -> list[str]:
    """Whose writes were taken since then, one tenure after the other."""
    return [name for name, _ in tenures(cluster.writes(moment))]


def stops(cluster: BootedLab, name: str) -> int:
    """How often the node's agent stopped what runs with the role, by its log."""
    return cluster.log(name).count("WARNING - Stopping what runs with the role")


def first_write(cluster: BootedLab, name: str, since: float) -> float:
    return next(write.arrival for write in cluster.writes(since) if write.node == name)


def test_a_planned_switch_waits_for_the_stop_and_the_start_of_a_slow_and_a_stubborn_service(
    serving: BootedLab,
) -> None:
    began = time.time()
    verb("switchover", "--to", "node2")
    settle(serving)
    probed = serving.first_200("node2", since=began)
    assert probed
    assert first_write(serving, "node2", began) < probed
    verb("switchover", "--to", "node1")
    settle(serving)
    assert nodes_since(serving, began) == ["node1", "node2", "node1"]
    assert longest_silence_seconds(serving.writes(), began, time.time()) > START_SECONDS


def test_the_service_of_an_agent_that_stands_still_ends_before_the_next_one_begins(
    serving: BootedLab,
) -> None:
    began = time.time()
    serving.hang("node1")
    serving.settles_on("node2")
    silence_seconds = longest_silence_seconds(serving.writes(), began, time.time())
    assert silence_seconds < worst_failover_seconds(serving.times) + START_SECONDS
    serving.thaw("node1")
    settle(serving)
    assert nodes_since(serving, began) == ["node1", "node2", "node1"]


def test_a_unit_that_failed_moves_the_role_and_says_why(serving: BootedLab) -> None:
    began = time.time()
    serving.shell("node1", "systemctl", "kill", "--signal=KILL", demo.UNIT)
    serving.settles_on("node2")
    silence_seconds = longest_silence_seconds(serving.writes(), began, time.time())
    assert silence_seconds < worst_failover_seconds(serving.times) + START_SECONDS
    assert f"node1: its service failed: {demo.UNIT}" in verb("status")
    serving.shell("node1", "systemctl", "reset-failed", demo.UNIT)
    settle(serving)
    assert nodes_since(serving, began)[-2:] == ["node2", "node1"]


def test_a_service_that_is_restarted_where_the_role_is_keeps_it(serving: BootedLab) -> None:
    began = time.time()
    serving.shell("node1", "systemctl", "restart", demo.UNIT)
    settle(serving)
    assert len(tenures(serving.writes(began))) == 1
    assert nodes_since(serving, began) == ["node1"]
    assert serving.gap_seconds(since=began) < 1
    assert longest_silence_seconds(serving.writes(), began, time.time()) > START_SECONDS


def test_without_the_role_it_is_not_started_by_hand_nor_by_an_upgrade_nor_with_the_target(
    serving: BootedLab,
) -> None:
    began, before = time.time(), stops(serving, "node3")
    for words in (["start", demo.UNIT], ["restart", demo.UNIT], ["start", "active.target"]):
        serving.shell("node3", "systemctl", *words)
        state = ("systemctl", "show", "--property=ActiveState", "--value", demo.UNIT)
        assert serving.shell("node3", *state).split() == ["inactive"]
    serving.wait("the target stopped", lambda: stops(serving, "node3") > before)
    settle(serving)
    assert {write.node for write in serving.writes(began)} == {"node1"}


def test_one_that_was_forced_to_start_on_a_passive_node_is_stopped_with_a_warning(
    cluster: BootedLab,
) -> None:
    settle(cluster)
    began, before = time.time(), stops(cluster, "node3")
    cluster.shell("node3", "touch", "/run/bootstrap/starts")
    cluster.shell("node3", "systemctl", "start", "--no-block", demo.UNIT)
    cluster.wait("stopped", lambda: stops(cluster, "node3") > before)
    state = ("systemctl", "show", "--property=ActiveState", "--value", demo.UNIT, "active.target")
    cluster.wait("gone", lambda: set(cluster.shell("node3", *state).split()) == {"inactive"})
    late = [write for write in cluster.writes(began) if write.node == "node3"]
    assert not any(write.taken for write in late), "it has no term, or an old one"
    settle(cluster)
    assert nodes_since(cluster, began) == ["node1"]
