"""Scenarios on real nodes: each ends with exactly one node active and served, or none."""

import time

import pytest

from tests.cluster import Cluster

pytestmark = pytest.mark.lab
three_nodes = pytest.mark.parametrize("machine", [(3, 2)], indirect=True, ids=["3 nodes, 2 s"])


@three_nodes
def test_the_first_node_is_active_soon_after_the_lab_is_up(cluster: Cluster) -> None:
    pass


@three_nodes
def test_the_preferred_node_that_sees_a_majority_is_active_and_nobody_without_one(
    cluster: Cluster,
) -> None:
    cluster.off("node1")
    cluster.settles_on("node2")
    cluster.on("node1")
    cluster.settles_on("node1")
    steady = time.time()
    cluster.off("node2")
    cluster.settles_on("node1")
    assert cluster.gap_seconds(since=steady) < 1
    cluster.off("node3")
    cluster.settles_on()
    cluster.on("node2")
    cluster.settles_on("node1")
