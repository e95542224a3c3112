"""Scenarios on real nodes: each ends with exactly one node active and served, or with none.

The fixture asserts at the end of each that never two nodes answered 200.
"""

import re
import time
from collections.abc import Callable
from datetime import datetime, timezone

import pytest

from deploy.lab import process
from tests.lab.cluster import BootedLab, lab, web_site_serves

pytestmark = pytest.mark.lab


def labs(*shapes: tuple[int, ...]) -> Callable[..., None]:
    """Runs a test on such labs: nodes, seconds from run to run, and from look to look, and those
    of a pause that is absorbed, if not the default's."""
    names = [f"{shape[0]} nodes, {shape[1]}/{shape[2]} s" for shape in shapes]
    return pytest.mark.parametrize("machine", shapes, indirect=True, ids=names)


def first_active_run(cluster: BootedLab, name: str) -> float:
    """When the run began in which the node first decided to be active since it booted.

    By its log; a run writes its decision there after it has acted on it. Wall clock, seconds.
    """
    log = (cluster.root(name) / "var/log/bootstrap/logfile.log").read_text()
    before, decided, _ = log.rpartition("bootup: ")[2].partition("set as active")
    assert decided, "it has not been active"
    began = re.findall(r"^(\S+ \S+),(\d+) - INFO - Reading instance", before, re.MULTILINE)[-1]
    moment = datetime.strptime(began[0], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
    return moment.timestamp() + int(began[1]) / 1000


@labs((3, 2, 2))
def test_cloud_init_finds_nothing_wrong_with_the_document_that_a_node_booted_from(
    cluster: BootedLab,
) -> None:
    document = "/var/lib/cloud/seed/nocloud/user-data"
    said = cluster.shell("node2", "cloud-init", "schema", "--config-file", document)
    assert said.startswith("Valid")
    assert "status: done" in cluster.shell("node2", "cloud-init", "status")


@labs((3, 2, 2))
def test_first_boot_can_be_started_again_and_heals_by_itself_from_a_failure_that_it_names(
    cluster: BootedLab,
) -> None:
    cluster.shell("node3", "rm", "/etc/bootstrap/installed")
    cluster.shell("node3", "systemctl", "start", "install.service")
    cluster.shell("node3", "test", "-e", "/etc/bootstrap/installed")
    fault = cluster.root("node3") / "etc/apache2/conf-enabled/fault.conf"
    fault.write_text("NoSuchDirective on\n")
    try:
        cluster.shell("node3", "rm", "/etc/bootstrap/installed")
        lab("shell", "node3", "systemctl", "start", "install.service", code=1)
        journal = ("journalctl", "--no-pager", "-u", "install.service", "-n", "200")
        cause = "Invalid command 'NoSuchDirective'"
        said = cluster.shell("node3", *journal)
        assert cause in said, said
    finally:
        fault.unlink()
    cluster.wait("healed", (cluster.root("node3") / "etc/bootstrap/installed").exists)
    cluster.settles_on("node1")


@labs((3, 2, 2))
def test_power_lost_in_first_boot_is_made_good_by_the_next_boot(cluster: BootedLab) -> None:
    cluster.off("node3")
    root = cluster.root("node3")
    for path in ("installed", "install.sh", "loader.py", "loader.conf"):
        (root / "etc/bootstrap" / path).unlink(missing_ok=True)
    (root / "etc/systemd/system/install.service").write_text("")
    cluster.on("node3")
    cluster.wait("healed", (root / "etc/bootstrap/installed").exists, 30)
    since = time.time()
    cluster.wait("running", lambda: cluster.has_looked_since(since, ["node3"]), 20)
    cluster.settles_on("node1")


KEY_HUNT = """
key=$(cat /etc/bootstrap/cluster.key)
find / -xdev -type f -perm /o+r -size -4M -exec grep -lF "$key" {} +
find /run /tmp /dev/shm -type f -perm /o+r -exec grep -lF "$key" {} +
true
"""


@labs((3, 2, 2))
def test_the_key_is_in_no_file_that_others_than_root_may_read(cluster: BootedLab) -> None:
    assert cluster.shell("node1", "sh", "-c", KEY_HUNT) == ""
    document = "var/lib/cloud/seed/nocloud/user-data"
    assert all((cluster.root(n) / document).stat().st_mode & 0o777 == 0o600 for n in cluster.nodes)


@labs((3, 2, 2))
def test_the_preferred_node_that_sees_a_majority_is_active_and_nobody_without_one(
    cluster: BootedLab,
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


@labs((3, 2, 2))
def test_a_peer_that_one_node_refuses_is_in_neither_ones_list(cluster: BootedLab) -> None:
    lab("cut", "node2", "node1", "--one-way")
    cluster.wait(
        "out of each other's list",
        lambda: (
            cluster.status("node1").get("reachable") == ["node1", "node3"]
            and cluster.status("node2").get("reachable") == ["node2", "node3"]
        ),
    )
    cluster.settles_on("node1")
    lab("heal")
    cluster.wait("healed", lambda: len(cluster.status("node1").get("reachable", [])) == 3)


@labs((3, 2, 2))
def test_the_probe_of_a_hung_agent_expires_and_the_next_node_takes_over(cluster: BootedLab) -> None:
    began = time.time()
    cluster.hang("node1")
    cluster.settles_on("node2")
    assert cluster.last_200("node1") - began <= cluster.times.lease_seconds
    assert not (cluster.root("node1") / "var/www/html/probe.html").exists(), "no fence fired"
    cluster.thaw("node1")
    cluster.settles_on("node1")


@labs((3, 2, 2))
def test_apache_ends_a_lease_by_itself_when_neither_agent_nor_fence_do(cluster: BootedLab) -> None:
    began = time.time()
    cluster.hang("node1")
    cluster.shell("node1", "systemctl", "stop", "fence@*.timer")
    cluster.settles_on("node2")
    assert cluster.last_200("node1") - began <= cluster.times.lease_seconds
    assert (cluster.root("node1") / "var/www/html/probe.html").exists(), "the fence was there"


@labs((3, 2, 2))
def test_a_node_frozen_past_its_lease_is_not_active_when_it_thaws(cluster: BootedLab) -> None:
    cluster.freeze("node1")
    cluster.settles_on("node2")
    cluster.thaw("node1")
    cluster.settles_on("node1")


@labs((3, 2, 2))
def test_a_node_whose_power_failed_while_active_is_passive_until_it_decides_anew(
    cluster: BootedLab,
) -> None:
    cluster.off("node1")
    failed = time.time()
    assert (cluster.root("node1") / "var/www/html/probe.html").exists(), "the disk says: active"
    cluster.on("node1")
    cluster.settles_on("node1")
    first = cluster.first_200("node1", since=failed)
    assert first is not None
    assert first > first_active_run(cluster, "node1")


@labs((3, 2, 2))
def test_without_web_site_and_metadata_nothing_changes(cluster: BootedLab) -> None:
    began = time.time()
    process.kill("web-site")
    process.kill("metadata")
    assert not web_site_serves()
    later = began + 3 * cluster.period_seconds
    cluster.wait("three runs later", lambda: cluster.has_looked_since(later, cluster.nodes))
    assert cluster.active() == {"node1"}
    assert cluster.gap_seconds(since=began) < 1
    lab("up")
    assert web_site_serves()


@labs((5, 2, 2))
def test_of_five_nodes_two_may_fail(cluster: BootedLab) -> None:
    cluster.off("node1")
    cluster.settles_on("node2")
    cluster.off("node2")
    cluster.settles_on("node3")
    cluster.off("node5")
    cluster.settles_on()
    cluster.on("node1")
    cluster.settles_on("node1")
    cluster.on("node2", "node5")
    cluster.settles_on("node1")


@labs((3, 20, 20, 0))  # a pause that is absorbed comes on top: promises bind for so much longer
def test_with_one_look_a_run_a_crash_and_a_hang_are_over_within_a_period_and_a_half(
    cluster: BootedLab,
) -> None:
    assert cluster.first_active_seconds <= 2 * cluster.period_seconds + 10
    crashed = time.time()
    cluster.off("node1")
    cluster.settles_on("node2")
    assert cluster.gap_seconds(since=crashed) <= 1.5 * cluster.period_seconds
    cluster.on("node1")
    cluster.settles_on("node1")
    hung = time.time()
    cluster.hang("node1")
    cluster.settles_on("node2")
    assert cluster.last_200("node1") - hung <= 1.5 * cluster.period_seconds
