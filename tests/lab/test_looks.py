"""What a run of several looks must not cost: a role, an operator's time, a log that can be read."""

import calendar
import time

import pytest

from agent.loader import worst_failover_seconds
from tests.lab.cluster import BootedLab, busy_cores, lab
from tests.lab.test_lab import labs

pytestmark = pytest.mark.lab

at_the_default = labs((3, 20, 2))


def main_pid(cluster: BootedLab, name: str) -> str:
    """The process of the node's run; "0" between two."""
    shown = cluster.shell(name, "systemctl", "show", "--property=MainPID", "loader.service")
    return shown.strip().removeprefix("MainPID=")


def age_seconds(cluster: BootedLab, name: str) -> float:
    """How old the node's status.json is; it says its time in whole seconds."""
    at = time.strptime(cluster.status(name)["at"], "%Y-%m-%dT%H:%M:%SZ")
    return time.time() - calendar.timegm(at)


def statuses(cluster: BootedLab, name: str, since: float) -> set[int | None]:
    """All that the node has answered since that moment when asked for its probe."""
    return {sample.status for sample in cluster.sampler.samples[name] if sample.began > since}


@at_the_default
@pytest.mark.parametrize("into_a_look_seconds", [0.3, 1.5])
def test_a_run_that_is_killed_in_the_middle_starts_again_at_once_and_its_node_keeps_the_role(
    cluster: BootedLab, into_a_look_seconds: float
) -> None:
    cluster.wait_until(6 + into_a_look_seconds)
    killed, began = main_pid(cluster, "node1"), time.time()
    cluster.shell("node1", "systemctl", "kill", "--signal=KILL", "loader.service")
    cluster.wait("another run", lambda: main_pid(cluster, "node1") not in ("0", killed), 2)
    cluster.wait_until(1)
    assert statuses(cluster, "node1", since=began) == {200}


@at_the_default
def test_a_run_that_hangs_costs_its_role_and_at_its_time_limit_is_killed_and_started_again(
    cluster: BootedLab,
) -> None:
    cluster.wait_until(3, 11)
    hung, began = main_pid(cluster, "node1"), time.time()
    cluster.shell("node1", "kill", "-STOP", hung)
    cluster.wait("node2 active", lambda: cluster.active() == {"node2"})
    assert cluster.last_200("node1") - began <= cluster.times.lease_seconds
    cluster.wait_until(3)
    assert main_pid(cluster, "node1") not in ("0", hung)
    cluster.settles_on("node1")


@at_the_default
def test_the_active_node_crashes_between_two_runs(cluster: BootedLab) -> None:
    cluster.wait_until(19)
    assert main_pid(cluster, "node1") == "0", "no gap"
    cluster.off("node1")
    crashed = cluster.last_200("node1")
    cluster.settles_on("node2")
    first = cluster.first_200("node2", since=crashed)
    assert first is not None
    assert first - crashed <= worst_failover_seconds(cluster.times)


@at_the_default
def test_from_run_to_run_no_role_is_lost_while_every_core_is_busy(cluster: BootedLab) -> None:
    with busy_cores(120):
        began = time.time()
        for _ in range(3):
            cluster.wait_until(3)
    assert statuses(cluster, "node1", since=began) <= {200, None}
    assert cluster.gap_seconds(since=began) < 1


@at_the_default
def test_a_node_whose_agent_runs_has_booted_and_nothing_is_under_way(cluster: BootedLab) -> None:
    cluster.wait_until(3, 11)
    for name in cluster.nodes:
        assert main_pid(cluster, name) != "0", "no run"
        assert cluster.shell(name, "systemctl", "is-system-running") == "running\n"
        assert cluster.shell(name, "systemctl", "list-jobs") == "No jobs running.\n"


@at_the_default
def test_beside_a_run_a_second_start_and_a_dry_run_answer_at_once(cluster: BootedLab) -> None:
    cluster.wait_until(3, 11)
    running, began = main_pid(cluster, "node1"), time.time()
    cluster.shell("node1", "systemctl", "start", "loader.service")
    said = cluster.shell("node1", "python3", "/etc/bootstrap/loader.py", "--dry-run")
    assert "preferred, set as active" in said
    refused = lab("shell", "node1", "python3", "/etc/bootstrap/loader.py", code=2)
    assert "another run of loader.py is under way" in refused
    assert time.time() - began < 4
    assert main_pid(cluster, "node1") == running
    assert statuses(cluster, "node1", since=began) == {200}


@at_the_default
@pytest.mark.parametrize("command", ["poweroff", "reboot"])
def test_a_node_that_is_told_to_stop_hands_over_first_and_no_look_holds_it_up(
    cluster: BootedLab, command: str
) -> None:
    cluster.wait_until(3, 11)
    began = time.time()
    cluster.shell("node1", "systemctl", "--no-block", command)
    cluster.wait("node2 active", lambda: cluster.active() == {"node2"}, 3 * cluster.look_seconds)
    assert cluster.gap_seconds(since=began) <= 3
    cluster.wait("off", lambda: cluster.sampler.latest("node1").status is None, 5)


@at_the_default
def test_a_quiet_run_writes_one_trace_and_status_json_is_as_fresh_as_a_look(
    cluster: BootedLab,
) -> None:
    cluster.wait_until(19)
    logs = {name: cluster.root(name) / "var/log/bootstrap/logfile.log" for name in cluster.nodes}
    before = {name: len(log.read_text().splitlines()) for name, log in logs.items()}
    ages, until = list[float](), time.time() + cluster.period_seconds

    def a_run_later() -> bool:
        ages.extend(age_seconds(cluster, name) for name in cluster.nodes)
        return time.time() > until

    cluster.wait("a run later", a_run_later)
    for name, log in logs.items():
        lines = log.read_text().splitlines()[before[name] :]
        assert sum("Reading instance metadata" in line for line in lines) == 1, lines
        assert sum("Filtered reachable ordered nodes" in line for line in lines) == 1, lines
    assert max(ages) <= cluster.look_seconds + cluster.times.gap_seconds + 1  # whole seconds
