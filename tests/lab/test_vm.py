"""A node that is a real virtual machine beside two containers: a node as they are, and what only it
can show: its clocks stand still while it is paused.
"""

import time
from pathlib import Path

import pytest

from deploy import Refusal
from deploy.lab import machine, state
from deploy.lab.commands import wanted_lab
from tests.conftest import NO_LAB
from tests.lab.cluster import BootedLab, lab
from tests.lab.test_lab_verbs import CURL, lab_of, traces

beside_two_containers = pytest.mark.parametrize(
    "machine", [(3, 20, 2, 5, ("node1",))], indirect=True, ids=["node1 a virtual machine, 20/2/5 s"]
)
CLOCKS = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())"


def clocks(cluster: BootedLab) -> tuple[float, float]:
    """Node1's boot clock, and its wall clock less ours; the answer takes a moment."""
    boot, wall = map(float, cluster.shell("node1", "python3", "-c", CLOCKS).split())
    return boot, wall - time.time()


def test_a_missing_emulator_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refusal, match=r"qemu-system-x86_64.* not found: `apt-get install .*"):
        machine.require()


def test_a_lab_that_is_up_keeps_its_virtual_machines_and_gets_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    lab_of(tmp_path, period_seconds=20, look_seconds=2, pause_seconds=5, machines=["node1"])
    assert wanted_lab(None, None, None, None).machines == {"node1"}
    assert wanted_lab(None, None, None, None, ("node1",)).machines == {"node1"}
    with pytest.raises(Refusal, match=r"3 nodes \(node1 as virtual machine\).*`lab down` first"):
        wanted_lab(None, None, None, None, ("node2",))


def test_a_virtual_machine_that_is_no_node_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    with pytest.raises(Refusal, match="no node 'node9' in this lab: it has node1, node2, node3"):
        wanted_lab(None, None, None, None, ("node9",))


@pytest.mark.lab
@beside_two_containers
def test_a_virtual_machine_is_a_node_as_a_container_is(cluster: BootedLab) -> None:
    assert cluster.shell("node1", "hostname") == "node1\n"
    assert cluster.shell("node1", "uname", "-r") != cluster.shell("node2", "uname", "-r")
    assert cluster.shell("node1", "cat", "/etc/os-release") == cluster.shell(
        "node2", "cat", "/etc/os-release"
    )
    lab("shell", "node1", "sh", "-c", "exit 7", code=7)
    assert "Local node name: node1" in lab("logs", "node1")
    assert cluster.status("node1")["reachable"] == list(cluster.nodes)


@pytest.mark.lab
@beside_two_containers
def test_a_virtual_machine_is_cut_off_silent_when_off_and_has_its_disk_when_on_again(
    cluster: BootedLab,
) -> None:
    assert lab("shell", "node1", *CURL, "http://10.0.0.5/") == "200"
    assert lab("shell", "node2", *CURL, "http://10.0.0.4/") == "200"
    lab("cut", "node1", "node2", "--one-way")
    lab("shell", "node1", *CURL, "http://10.0.0.5/", code=28)
    assert lab("shell", "node2", *CURL, "http://198.51.100.4/") == "200"
    lab("heal")
    lab("cut", "node2", "node1", "--one-way")
    lab("shell", "node2", *CURL, "http://198.51.100.4/", code=28)
    assert lab("shell", "node1", *CURL, "http://198.51.100.5/") == "200"
    lab("heal")
    cluster.shell("node1", "touch", "/root/kept")
    cluster.off("node1")
    lab("shell", "node2", *CURL, "http://10.0.0.4/", code=28)
    assert "node1 is off" in lab("pause", "node1", "1", code=2)
    cluster.settles_on("node2")
    cluster.on("node1")
    cluster.shell("node1", "test", "-e", "/root/kept")
    cluster.settles_on("node1")


@pytest.mark.lab
@beside_two_containers
def test_the_clocks_of_a_paused_machine_stand_still_and_its_wall_clock_is_set_when_asked(
    cluster: BootedLab,
) -> None:
    began, (boot, behind) = time.monotonic(), clocks(cluster)
    cluster.pause("node1", 3)
    passed, (later, further_behind) = time.monotonic() - began, clocks(cluster)
    stood_still = passed - (later - boot)
    assert 2.5 < stood_still < 3.5
    assert 2.5 < behind - further_behind < 3.5
    cluster.pause("node1", 1, "--step-clock-after", "0")
    _, after = clocks(cluster)
    assert abs(after) < 0.3


@pytest.mark.lab
@beside_two_containers
def test_a_container_can_not_be_paused(cluster: BootedLab) -> None:  # noqa: ARG001 - a lab
    assert "`lab up --vm node2` makes a virtual machine" in lab("pause", "node2", "1", code=2)


@pytest.mark.lab
@pytest.mark.parametrize("machine", [NO_LAB], indirect=True, ids=["no lab"])
def test_down_leaves_nothing_of_a_virtual_machine(no_lab: None) -> None:  # noqa: ARG001 - a lab
    lab("up", "--vm", "node1", "--vm", "node3")
    lab("off", "node3")
    lab("down")
    assert traces() == []
