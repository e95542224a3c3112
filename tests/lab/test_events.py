"""What Azure announces, on real nodes at the default settings, as clients of the cluster see it.

The fixture asserts at the end of each that never two nodes answered 200.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.lab import METADATA
from deploy.lab.events import NOTICE_SECONDS
from deploy.plan import Probe
from tests.lab.cluster import BootedLab, lab
from tests.lab.sampler import LOAD_BALANCER, Sample
from tests.lab.test_lab import labs
from tests.lab.test_vm import beside_two_containers

pytestmark = pytest.mark.lab

at_the_default_settings = labs((3, 20, 2))
EVENTS = f"http://{METADATA}/metadata/scheduledevents?api-version=2020-07-01"
PAUSE_SECONDS = 10.0


@pytest.fixture
def announcing(cluster: BootedLab) -> Iterator[BootedLab]:
    """The lab, in which nothing is announced any more at the end."""
    yield cluster
    for name in cluster.nodes:
        lab("withdraw", name)


def told(cluster: BootedLab, name: str) -> list[dict[str, Any]]:
    """The events that the node is told. Five requests a second are answered, the agent's too."""
    said = cluster.shell(name, "curl", "--silent", "--header", "Metadata: true", EVENTS)
    return list(json.loads(said)["Events"])


def wait_until_approved(cluster: BootedLab, name: str, kind: str) -> None:
    """Wait for the node's word in its log, and ask whether the event has begun for it."""
    cluster.wait("approved", lambda: f"{kind}: approved" in lab("logs", name))
    assert told(cluster, name)[0]["EventStatus"] == "Started"


def just_after_a_tick(cluster: BootedLab) -> float:
    """The worst moment for news: the run has asked already; the moment when it was."""
    time.sleep((1 - time.time()) % cluster.period_seconds)
    return time.time()


def served(cluster: BootedLab, since: float, until: float) -> list[Sample]:
    """What clients of the load balancer got in that time."""
    samples = list(cluster.sampler.samples[LOAD_BALANCER])
    return [sample for sample in samples if since <= sample.began and sample.ended <= until]


def disturbed(samples: list[Sample]) -> tuple[float, float]:
    """From the first to the last sample without a 200: how long that was, and when it was over.

    Until the probe notices, the load balancer has both nodes and takes them in turn.
    """
    bad = [sample for sample in samples if sample.status != 200]
    assert bad, "no handover was seen"
    return bad[-1].ended - bad[0].began, bad[-1].ended


def handover_seconds(cluster: BootedLab) -> float:
    """A look until somebody has taken over, and the probe that has to notice."""
    return cluster.look_seconds + Probe.interval_seconds


@beside_two_containers
def test_a_freeze_that_was_announced_costs_clients_nothing_but_the_handover(
    announcing: BootedLab,
) -> None:
    """Of a virtual machine, whose clocks stand still in the pause, and are not set afterwards."""
    cluster = announcing
    began = just_after_a_tick(cluster)
    lab("announce", "node1", "Freeze")
    cluster.wait("served by node2", lambda: cluster.served() == "node2")
    wait_until_approved(cluster, "node1", "Freeze")
    approved = time.time()
    _, went_on = cluster.pause("node1", PAUSE_SECONDS)
    seconds, over = disturbed(served(cluster, began, time.time()))
    print(f"approved after {approved - began:.1f} s; disturbed for {seconds:.2f} s")
    assert approved - began < 2 * cluster.period_seconds + cluster.look_seconds
    assert {sample.active for sample in served(cluster, approved, went_on)} == {"node2"}
    assert over < approved
    assert seconds < handover_seconds(cluster)
    lab("withdraw", "node1")
    cluster.settles_on("node1")


@at_the_default_settings
def test_the_thirty_seconds_of_a_preemption_are_enough(announcing: BootedLab) -> None:
    cluster = announcing
    began = just_after_a_tick(cluster)
    lab("announce", "node1", "Preempt")
    gone = began + NOTICE_SECONDS["Preempt"]
    cluster.wait("served by node2", lambda: cluster.served() == "node2", gone - time.time())
    cluster.wait("taken away", lambda: time.time() >= gone)
    cluster.off("node1")
    cluster.wait("a while", lambda: time.time() >= gone + PAUSE_SECONDS)
    seconds, over = disturbed(served(cluster, began, time.time()))
    print(f"handed over, and noticed, after {over - began:.1f} s; disturbed for {seconds:.2f} s")
    assert {sample.active for sample in served(cluster, gone, time.time())} == {"node2"}
    assert over < gone
    assert seconds < handover_seconds(cluster)


@at_the_default_settings
def test_of_two_nodes_at_once_the_third_serves_until_it_is_over(announcing: BootedLab) -> None:
    cluster = announcing
    lab("announce", "node1", "Reboot", "--not-before", "0")
    lab("announce", "node2", "Redeploy")
    cluster.wait("served by node3", lambda: cluster.served() == "node3")
    cluster.settles_on("node3")
    assert "makes way: Azure announces Reboot" in cluster.status("node1")["reason"]
    assert "makes way: Azure announces Redeploy" in cluster.status("node2")["reason"]
    wait_until_approved(cluster, "node2", "Redeploy")
    lab("withdraw", "node1")
    lab("withdraw", "node2")
    cluster.settles_on("node1")
