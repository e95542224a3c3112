"""The script that stops what runs with the role: what it asks of systemd, and in which order."""

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = (Path(__file__).parents[2] / "agent" / "stop.sh").read_text(encoding="utf-8")
SYSTEMCTL = r"""#!/bin/sh
echo "$*" >> "$ROOT/asked"
case $1 in
    show) printf '/system.slice/writer.service\n\n/\n' ;;
    list-units) cat "$ROOT/failed" 2> /dev/null ;;
    stop) [ ! -e "$ROOT/run/bootstrap/starts" ] || echo "not forgotten" >> "$ROOT/asked"
        [ ! -e "$ROOT/hangs" ] || [ -e "$ROOT/killed" ] || sleep 30 ;;
    kill) touch "$ROOT/killed" ;;
esac
"""


class Node:
    """A node's folders, and a systemctl that notes what it is asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.cgroup = root, root / "sys/fs/cgroup/system.slice/writer.service"
        self.cgroup.mkdir(parents=True)
        (self.cgroup / "cgroup.kill").touch()
        self.conf = root / "etc/bootstrap/loader.conf"
        self.conf.parent.mkdir(parents=True)
        (root / "bin").mkdir()
        (root / "bin/systemctl").write_text(SYSTEMCTL)
        (root / "bin/systemctl").chmod(0o755)
        script = SCRIPT
        for folder in ("/etc/systemd/system", "/etc/bootstrap", "/sys/fs/cgroup", "/run/bootstrap"):
            assert folder in script
            script = script.replace(folder, f"{root}{folder}")
        (root / "stop.sh").write_text(script)

    def joins(self, unit: str, how: str = "wants") -> None:
        folder = self.root / f"etc/systemd/system/active.target.{how}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / unit).symlink_to(f"../{unit}")

    def stops(self) -> list[str]:
        """Run the script; what systemd was asked."""
        env = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT": str(self.root)}
        command = ["sh", str(self.root / "stop.sh")]
        ran = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=30, check=True
        )
        assert (ran.stdout, ran.stderr) == ("", "")
        asked = self.root / "asked"
        return asked.read_text().splitlines() if asked.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_where_nothing_joined_nothing_is_asked(node: Node) -> None:
    assert node.stops() == []


def test_the_target_and_every_joined_unit_are_stopped_and_what_is_left_is_killed(
    node: Node,
) -> None:
    node.joins("writer.service")
    node.joins("hook.service", "requires")
    units = "writer.service hook.service"
    assert node.stops() == [
        "stop start-active.service",
        f"show --property=ControlGroup --value {units}",
        f"list-units --all --state=failed --plain --no-legend --full {units}",
        f"stop active.target {units}",
        f"kill --signal=KILL {units}",
        f"stop active.target {units}",
        "reset-failed writer.service",
        "reset-failed hook.service",
    ]
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_what_the_agent_asked_to_start_is_forgotten_before_anything_is_stopped(node: Node) -> None:
    node.joins("writer.service")
    asked_for = node.root / "run/bootstrap/starts"
    asked_for.parent.mkdir(parents=True)
    asked_for.touch()
    asked = node.stops()
    assert asked[0] == "stop start-active.service"
    assert "not forgotten" not in asked
    assert not asked_for.exists()


def test_what_does_not_stop_is_killed_half_a_second_before_its_time_is_over(node: Node) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "hangs").touch()
    began = time.monotonic()
    node.stops()
    seconds = time.monotonic() - began
    assert 1.5 <= seconds < 10
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_a_unit_that_had_failed_by_itself_stays_failed(node: Node) -> None:
    node.joins("writer.service")
    node.joins("hook.service")
    (node.root / "failed").write_text("hook.service loaded failed failed A hook\n")
    asked = node.stops()
    assert "reset-failed writer.service" in asked
    assert "reset-failed hook.service" not in asked
