"""What systemd runs at boot and daemon-reload: nothing that has joined starts without the role."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from agent import loader

CHECKOUT = Path(__file__).parents[2]
SCRIPT = (CHECKOUT / "agent" / "generator.sh").read_text(encoding="utf-8")
ONLY_WITH_THE_ROLE = "[Unit]\nConditionPathExists=/run/bootstrap/starts\n"
WRITER = "[Unit]\nPartOf=active.target\n[Service]\nExecStart=/bin/true\n"


class Node:
    """A node's folders of units, and the one that systemd gives a generator."""

    def __init__(self, root: Path) -> None:
        self.units, self.made = root / "etc/systemd/system", root / "run/systemd/generator"
        for folder in (self.units, self.made):
            folder.mkdir(parents=True)
        assert SCRIPT.count("/etc/systemd/system/") == 1
        self.script = root / "generator"
        self.script.write_text(SCRIPT.replace("/etc/systemd/system", str(self.units)))
        self.script.chmod(0o755)

    def joins(self, unit: str, how: str = "wants") -> None:
        """What `systemctl enable` does."""
        folder = self.units / f"active.target.{how}"
        folder.mkdir(exist_ok=True)
        (folder / unit).symlink_to(f"/etc/systemd/system/{unit}")

    def reloads(self) -> dict[str, str]:
        """What the script makes, called as systemd calls it: each file by its path."""
        folders = [str(self.made), f"{self.made}.early", f"{self.made}.late"]
        ran = subprocess.run(
            [str(self.script), *folders], capture_output=True, text=True, timeout=10, check=True
        )
        assert (ran.stdout, ran.stderr) == ("", "")
        files = [path for path in self.made.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.made)): path.read_text() for path in files}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_where_nothing_joined_nothing_is_made(node: Node) -> None:
    assert node.reloads() == {}
    (node.units / "active.target.wants").mkdir()  # as the last one that left leaves it
    (node.units / "multi-user.target.wants").mkdir()
    (node.units / "multi-user.target.wants/cron.service").symlink_to("/lib/cron.service")
    assert node.reloads() == {}
    assert list(node.made.iterdir()) == []


@pytest.mark.parametrize("how", ["wants", "requires"])
@pytest.mark.parametrize(
    "unit",
    [
        *("writer.service", "srv-billing.mount", "writer@two.service"),
        *(r"srv-my\x2ddisk.mount", r"mail@a\x20b\x5c.service", "one:two.swap"),
    ],
)
def test_each_unit_that_joined_starts_only_where_the_agent_asked_for_a_start(
    node: Node, unit: str, how: str
) -> None:
    node.joins(unit, how)
    assert node.reloads() == {f"{unit}.d/role.conf": ONLY_WITH_THE_ROLE}


@pytest.mark.parametrize("kind", ["timer", "path", "socket"])
def test_so_does_the_service_of_its_name_that_a_timer_a_path_or_a_socket_starts(
    node: Node, kind: str
) -> None:
    node.joins(f"in.sftp.{kind}")
    units = (f"in.sftp.{kind}", "in.sftp.service", "in.sftp@.service")
    assert node.reloads() == {f"{unit}.d/role.conf": ONLY_WITH_THE_ROLE for unit in units}


def test_all_that_joined_get_it_also_what_is_wanted_and_required(node: Node) -> None:
    for unit, how in (("a.service", "wants"), ("a.service", "requires"), ("b.mount", "wants")):
        node.joins(unit, how)
    assert {*node.reloads()} == {"a.service.d/role.conf", "b.mount.d/role.conf"}


def test_run_twice_it_makes_the_same(node: Node) -> None:
    node.joins("writer.service")
    assert node.reloads() == node.reloads() == {"writer.service.d/role.conf": ONLY_WITH_THE_ROLE}


def test_a_file_that_is_no_link_has_not_joined_and_keeps_no_other_from_it(node: Node) -> None:
    node.joins("writer.service")
    (node.units / "active.target.wants/README").write_text("what runs with the role\n")
    assert {*node.reloads()} == {"writer.service.d/role.conf"}


def test_what_it_makes_is_for_all_to_read_whatever_mask_it_is_run_with(node: Node) -> None:
    node.joins("writer.service")
    before = os.umask(0o077)
    try:
        node.reloads()
    finally:
        os.umask(before)
    dropin = node.made / "writer.service.d/role.conf"
    assert (dropin.parent.stat().st_mode & 0o777, dropin.stat().st_mode & 0o777) == (0o755, 0o644)


def test_agent_and_systemd_look_for_it_where_it_is_made() -> None:
    paths = loader.Paths()
    assert f"ConditionPathExists={paths.starts}\n" in ONLY_WITH_THE_ROLE
    assert str(paths.generated) == "/run/systemd/generator"


def test_systemd_heeds_what_it_makes_and_finds_nothing_wrong_with_it(node: Node) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    node.joins("writer.service")
    node.reloads()
    (node.units / "writer.service").write_text(WRITER)
    where = f"{node.made}:{node.units}:{CHECKOUT / 'systemd'}:"
    env = os.environ | {"SYSTEMD_UNIT_PATH": where, "LC_ALL": "C"}

    def verified() -> "subprocess.CompletedProcess[str]":
        command = ["systemd-analyze", "verify", "--man=no", str(node.units / "writer.service")]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=30, env=env
        )

    ran = verified()
    assert (ran.returncode, "writer.service" in ran.stderr) == (0, False), ran.stderr
    dropin = node.made / "writer.service.d/role.conf"
    dropin.write_text(ONLY_WITH_THE_ROLE.replace("Exists", "Exits"))
    assert f"{dropin}:2: Unknown key" in verified().stderr  # so it does read the folder


def test_the_script_is_right_shell_which_systemd_can_run() -> None:
    script = str(CHECKOUT / "agent" / "generator.sh")
    checked = subprocess.run(["sh", "-n", script], capture_output=True, timeout=10, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert SCRIPT.startswith("#!/bin/sh\n")
