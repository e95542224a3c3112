"""A node that is a real virtual machine beside two containers: a node as they are, and what only it
can show: its clocks stand still while it is paused.
"""

import lzma
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy import Refusal
from deploy.lab import kernel, machine, state
from deploy.lab.commands import wanted_lab
from tests.conftest import NO_LAB
from tests.lab.cluster import BootedLab, lab
from tests.lab.host_clock import host_clock
from tests.lab.pauses import NEVER, paused
from tests.lab.test_lab_verbs import CURL, lab_of, traces

beside_two_containers = pytest.mark.parametrize(
    "machine", [(3, 20, 2, 5, ("node1",))], indirect=True, ids=["node1 a virtual machine, 20/2/5 s"]
)
CLOCKS = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())"


@dataclass(frozen=True)
class Clocks:
    """Node1's and ours, at one moment but for the time that its answer takes; seconds."""

    boot: float
    wall: float
    our_boot: float
    our_wall: float

    def boot_behind_ours(self, later: "Clocks") -> float:
        """By how much its boot clock has fallen behind ours until then."""
        return (later.our_boot - self.our_boot) - (later.boot - self.boot)

    def wall_behind_ours(self, later: "Clocks") -> float:
        return (later.our_wall - self.our_wall) - (later.wall - self.wall)


def clocks(cluster: BootedLab) -> Clocks:
    boot, wall = map(float, cluster.shell("node1", "python3", "-c", CLOCKS).split())
    return Clocks(boot, wall, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def test_a_missing_emulator_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian"})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refusal, match=r"qemu-system-x86_64.* not found: `apt-get install .*"):
        machine.require()


def test_a_module_is_loaded_after_those_that_it_needs(tmp_path: Path) -> None:
    depends = {"ext4": "jbd2,mbcache", "jbd2": "crc-core", "mbcache": "", "crc-core": "built-in"}
    for name, others in depends.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0depends=" + others.encode() + b"\0")
    packed = tmp_path / "mbcache.ko"
    (tmp_path / "mbcache.ko.xz").write_bytes(lzma.compress(packed.read_bytes()))
    packed.unlink()
    modules = {file.name.split(".ko")[0].replace("-", "_"): file for file in tmp_path.iterdir()}
    needed: dict[str, bytes] = {}
    for name in ("ext4", "overlay"):
        kernel.add_module(name, modules, needed)
    assert list(needed) == ["crc_core", "jbd2", "mbcache", "ext4"]
    assert all(content.startswith(b"\x7fELF") for content in needed.values())


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
    cluster.shell("node1", "sh", "-c", "touch /root/kept && sync /root/kept /root")
    cluster.off("node1")  # the plug is pulled: what it has not written to its disk is lost
    lab("shell", "node2", *CURL, "http://10.0.0.4/", code=28)
    assert "node1 is off" in lab("pause", "node1", "1", code=2)
    cluster.settles_on("node2")
    cluster.on("node1")
    cluster.shell("node1", "test", "-e", "/root/kept")
    cluster.settles_on("node1")


@pytest.mark.lab
@beside_two_containers
def test_the_clocks_of_a_paused_machine_stand_still_and_those_of_a_frozen_one_go_on(
    cluster: BootedLab,
) -> None:
    before = clocks(cluster)
    cluster.pause("node1", 3)
    paused = clocks(cluster)
    assert 2.5 < before.boot_behind_ours(paused) < 3.5
    assert 2.5 < before.wall_behind_ours(paused) < 3.5
    cluster.freeze("node1")
    frozen = time.time()
    cluster.wait("frozen for 3 s", lambda: time.time() - frozen > 3)
    cluster.thaw("node1")
    thawed = clocks(cluster)
    assert abs(paused.boot_behind_ours(thawed)) < 0.5
    cluster.pause("node1", 1, "--step-clock-after", "0")
    stepped = clocks(cluster)
    assert abs(stepped.wall - stepped.our_wall) < 0.3
    assert 0.5 < thawed.boot_behind_ours(stepped) < 1.5


@pytest.mark.lab
@beside_two_containers
def test_a_pause_that_the_cluster_absorbs_makes_nobody_second(cluster: BootedLab) -> None:
    """At three moments of a look; emulated, a run may start too late for its role, pause or not."""
    seen = [paused(cluster, into_seconds, 3, NEVER) for into_seconds in (3.5, 4.7, 5.9)]
    assert [pause.beside for pause in seen] == [0, 0, 0]
    cost_nothing = [pause for pause in seen if pause.others == 0]
    assert cost_nothing, seen
    assert all(3 <= pause.nobody < 3 + cluster.look_seconds for pause in cost_nothing), seen


@pytest.mark.lab
@beside_two_containers
def test_a_clock_that_is_stepped_after_a_pause_drops_the_probe_at_once(cluster: BootedLab) -> None:
    seen = paused(cluster, 4.2, 3, "0")
    assert seen.answered_on < 0.2
    assert seen.beside == 0


@pytest.mark.lab
@beside_two_containers
def test_a_machine_that_reads_its_hosts_clock_knows_how_long_it_was_paused_and_ends_its_role(
    watched: BootedLab,
) -> None:
    """It answers beside its successor until it knows: for a look and 0.3 s at most."""
    with host_clock(watched, "node1"):
        seen = paused(watched, 4, 15, NEVER)
        said = lab("logs", "node1")
    noticed = [float(seconds) for seconds in re.findall(r"was paused for (\S+) s", said)]
    assert noticed == [pytest.approx(15, abs=0.3)]
    assert seen.others > 0
    assert seen.beside < watched.look_seconds + 0.3


@pytest.mark.lab
@beside_two_containers
def test_a_container_can_not_be_paused(cluster: BootedLab) -> None:  # noqa: ARG001 - a lab
    assert "`lab up --vm node2` makes a virtual machine" in lab("pause", "node2", "1", code=2)


@pytest.mark.lab
@pytest.mark.parametrize("machine", [NO_LAB], indirect=True, ids=["no lab"])
def test_down_leaves_nothing_of_a_virtual_machine(no_lab: None) -> None:  # noqa: ARG001 - a lab
    lab("up", "--vm", "node3")
    lab("off", "node3")
    lab("down")
    assert traces() == []
