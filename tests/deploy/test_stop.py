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
    show) [ "$5" != stop-active.service ] || exec cat "$ROOT/began"
        cat "$ROOT/follows" 2> /dev/null; [ ! -e "$ROOT/stands_still" ] || sleep 30 ;;
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
    asked = node.stops()
    units = "active.target hook.service writer.service"
    assert asked[0] == "stop start-active.service"
    assert [line for line in asked[1:] if not line.startswith("show ")] == [
        f"list-units --all --state=failed --plain --no-legend --full {units}",
        f"stop {units}",
        f"kill --signal=KILL {units}",
        f"stop {units}",
        "reset-failed active.target",
        "reset-failed hook.service",
        "reset-failed writer.service",
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


def test_what_stops_with_a_joined_unit_or_is_triggered_by_it_is_stopped_and_killed_too(
    node: Node,
) -> None:
    node.joins("writer.timer")
    follows = node.root / "follows"
    follows.write_text('"a\\\\x2db.service" writer.service\n\n')  # as `show` writes a backslash
    units = "a\\x2db.service active.target writer.service writer.timer"
    (node.cgroup.parent / "a\\x2db.service").mkdir()
    kill = node.cgroup.parent / "a\\x2db.service/cgroup.kill"
    kill.touch()
    assert f"stop {units}" in node.stops()
    assert kill.read_text() == (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_what_was_started_is_stopped_in_the_time_that_its_fence_gives_also_when_it_left(
    node: Node,
) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 20\n")
    started = node.root / "run/bootstrap/starts"
    started.parent.mkdir(parents=True)
    started.write_text("2 writer.service\n")
    (node.root / "hangs").touch()
    began = time.monotonic()
    assert "stop active.target writer.service" in node.stops()
    assert 1.5 <= time.monotonic() - began < 10


def test_a_systemd_that_stands_still_does_not_put_the_kill_off(node: Node) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "stands_still").touch()
    began = time.monotonic()
    node.stops()
    assert time.monotonic() - began < 10
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_what_does_not_stop_is_killed_half_a_second_before_its_time_is_over(node: Node) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "hangs").touch()
    began = time.monotonic()
    node.stops()
    seconds = time.monotonic() - began
    assert 1.5 <= seconds < 10
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


@pytest.mark.parametrize(
    "armed", ["fence@9-5000.timer", "unsure fence@7-3000.timer fence@9-5000.timer"]
)
def test_a_fence_that_comes_late_leaves_so_much_less(node: Node, armed: str) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 20\n")
    node.joins("writer.service")
    (node.root / "run/bootstrap").mkdir(parents=True)
    (node.root / "run/bootstrap/fence").write_text(armed)
    (node.root / "began").write_text("23000000\n")  # microseconds
    (node.root / "hangs").touch()
    began = time.monotonic()
    node.stops()
    assert 1.5 <= time.monotonic() - began < 10


@pytest.mark.parametrize("began", ["4000000\n", "[not set]\n", ""])
def test_one_that_does_not_or_of_which_nothing_is_known_leaves_all_of_it(
    node: Node, began: str
) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "run/bootstrap").mkdir(parents=True)
    (node.root / "run/bootstrap/fence").write_text("fence@9-5000.timer")
    (node.root / "began").write_text(began)
    (node.root / "hangs").touch()
    waited = time.monotonic()
    node.stops()
    assert time.monotonic() - waited >= 1.5


def test_a_unit_that_had_failed_by_itself_stays_failed(node: Node) -> None:
    node.joins("writer.service")
    node.joins("hook.service")
    (node.root / "failed").write_text("hook.service loaded failed failed A hook\n")
    asked = node.stops()
    assert "reset-failed writer.service" in asked
    assert "reset-failed hook.service" not in asked
