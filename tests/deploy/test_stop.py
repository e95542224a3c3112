"""The script that stops what runs with the role: what it asks of systemd, and in which order."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agent import loader

SCRIPT = (Path(__file__).parents[2] / "agent" / "stop.sh").read_text(encoding="utf-8")
LISTED = "list-units --all --plain --no-legend --full"
RUNNING = "active,activating,reloading,deactivating"
SYSTEMCTL = r"""#!/bin/sh
echo "$*" >> "$ROOT/asked"
case $1 in
    show) [ "$5" != stop-active.service ] || exec cat "$ROOT/began"
        case $2 in *Triggers*) cat "$ROOT/follows" 2> /dev/null ;; esac
        [ ! -e "$ROOT/accepts" ] || echo "job@$(grep -c ^show "$ROOT/asked")-4711-1000.service"
        [ ! -e "$ROOT/stands_still" ] || sleep 30 ;;
    list-units)
        case $6 in
            --state=failed)
                cat "$ROOT/failed" 2> /dev/null
                [ ! -e "$ROOT/killed" ] || echo "writer.service loaded failed failed A writer" ;;
            *) [ ! -e "$ROOT/running" ] || cat "$ROOT/running" ;;
        esac ;;
    stop) [ ! -e "$ROOT/run/bootstrap/starts" ] || echo "starts is there" >> "$ROOT/asked"
        cp "$ROOT/run/bootstrap/stops" "$ROOT/remembered" 2> /dev/null
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
        self.starts, self.stops = root / "run/bootstrap/starts", root / "run/bootstrap/stops"
        for path in (self.conf, self.starts):
            path.parent.mkdir(parents=True)
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

    def begins(self) -> "subprocess.Popen[str]":
        """Run the script, in a group of processes of its own."""
        env = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "ROOT": str(self.root)}
        command, pipe = ["sh", str(self.root / "stop.sh")], subprocess.PIPE
        return subprocess.Popen(
            command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def asked(self) -> list[str]:
        asked = self.root / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    def stop(self) -> list[str]:
        """Run the script to its end; what systemd was asked."""
        process = self.begins()
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
        return self.asked()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_where_nothing_joined_nothing_is_asked(node: Node) -> None:
    assert node.stop() == []


def test_the_target_and_every_joined_unit_are_stopped_and_what_is_left_is_killed(
    node: Node,
) -> None:
    node.joins("writer.service")
    node.joins("hook.service", "requires")
    asked = node.stop()
    units = "active.target hook.service writer.service"
    assert asked[0] == "stop start-active.service"
    assert [line for line in asked[1:] if not line.startswith("show ")] == [
        f"{LISTED} --state=failed {units}",
        f"stop {units}",
        f"kill --signal=KILL {units}",
        f"stop {units}",
        f"{LISTED} --state={RUNNING} {units}",
        f"{LISTED} --state=failed {units}",
        "reset-failed writer.service",
    ]
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_what_the_agent_asked_to_start_is_forgotten_before_anything_is_stopped(node: Node) -> None:
    node.joins("writer.service")
    node.starts.touch()
    asked = node.stop()
    assert asked[0] == "stop start-active.service"
    assert "starts is there" not in asked
    assert not node.starts.exists()


def test_what_is_to_stop_is_remembered_until_it_has(node: Node) -> None:
    node.starts.write_text("10 writer.service\n")
    assert "stop active.target writer.service" in node.stop()
    assert (node.root / "remembered").read_text() == "10 writer.service\n"
    assert (node.starts.exists(), node.stops.exists()) == (False, False)


def test_what_has_not_stopped_is_stopped_again_beside_what_was_started_since(node: Node) -> None:
    node.starts.write_text("10 writer.service\n")
    (node.root / "running").write_text("writer.service loaded deactivating final A writer\n")
    node.stop()
    assert node.stops.read_text() == "10 writer.service\n"
    node.starts.write_text("5 other.service\n")
    node.stop()
    assert node.stops.read_text() == "5 other.service\n10 writer.service\n"
    (node.root / "running").unlink()
    node.stop()
    assert not node.stops.exists()
    assert node.asked().count("stop active.target other.service writer.service") > 2


def test_a_stop_that_is_killed_has_forgotten_nothing(node: Node) -> None:
    node.starts.write_text("10 writer.service\n")
    (node.root / "hangs").touch()
    process, deadline = node.begins(), time.monotonic() + 20
    while "stop active.target writer.service" not in node.asked():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert (node.starts.exists(), node.stops.read_text()) == (False, "10 writer.service\n")
    (node.root / "hangs").unlink()
    (node.root / "asked").unlink()
    assert "stop active.target writer.service" in node.stop()
    assert not node.stops.exists()


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
    assert f"stop {units}" in node.stop()
    assert kill.read_text() == (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_what_was_started_is_stopped_in_the_time_that_its_fence_gives_also_when_it_left(
    node: Node,
) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 20\n")
    node.starts.write_text("2 writer.service\n")
    (node.root / "hangs").touch()
    began = time.monotonic()
    assert "stop active.target writer.service" in node.stop()
    assert 1.5 <= time.monotonic() - began < 10


def test_a_time_that_was_made_shorter_since_the_start_is_the_fences_from_the_next_run_on(
    node: Node,
) -> None:
    node.conf.write_text("[loader]\n\tStop_Seconds : 2\n")
    node.starts.write_text("20 writer.service\n")
    (node.root / "hangs").touch()
    began = time.monotonic()
    node.stop()
    assert 1.5 <= time.monotonic() - began < 8  # without that line it would be 9.5 s


@pytest.mark.parametrize(
    "text",
    [
        "stop_seconds = 7\n",
        "stop_seconds=7",
        "stop_seconds: 7\n",
        "Stop_Seconds = 7\r\nlook_seconds = 2\r\n",
        "  stop_seconds = 7\n  look_seconds = 2\n",
        "\tlook_seconds : 2\n\tSTOP_SECONDS\t:\t7  \n",
        "# stop_seconds = 60\n;stop_seconds = 60\nstop_seconds = 7\n",
        "start_seconds = 60\nstop_seconds = 7\n",
        "look_seconds = 2\n",
    ],
)
def test_the_script_reads_its_time_as_the_agent_does(node: Node, text: str) -> None:
    node.conf.write_bytes(b"[loader]\n" + text.encode())
    (line,) = [line for line in SCRIPT.splitlines() if line.startswith("seconds=")]
    line = line.replace("/etc/bootstrap/loader.conf", str(node.conf))
    command = ["sh", "-c", f'{line}; echo "${{seconds:-10}}"']
    ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    assert ran.stdout == f"{loader.read_settings(node.conf).stop_seconds}\n"


def test_the_connections_of_a_socket_are_stopped_by_a_pattern_however_many_come(
    node: Node,
) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 20\n")
    node.joins("job.socket")
    (node.root / "accepts").touch()
    connection = node.cgroup.parent / "system-job.slice/job@1-4711-1000.service"
    connection.mkdir(parents=True)
    (connection / "cgroup.kill").touch()
    began = time.monotonic()
    node.stop()
    first = next(line for line in node.asked() if line.startswith("stop active.target "))
    assert {"job.socket", "job@[0-9]*-*.service"} < set(first.split())
    assert time.monotonic() - began < 10
    assert (connection / "cgroup.kill").read_text() == "1\n"


def test_the_script_ends_where_more_and_more_is_found(node: Node) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 20\n")
    node.joins("writer.service")
    (node.root / "accepts").touch()
    began = time.monotonic()
    node.stop()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("unit", ["io.service", "_writer.service"])
def test_a_name_that_systemd_escapes_for_its_control_group_is_killed_as_well(
    node: Node, unit: str
) -> None:
    node.joins(unit)
    group = node.cgroup.parent / f"_{unit}"
    group.mkdir()
    (group / "cgroup.kill").touch()
    node.stop()
    assert (group / "cgroup.kill").read_text() == "1\n"


def test_a_systemd_that_stands_still_does_not_put_the_kill_off(node: Node) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "stands_still").touch()
    began = time.monotonic()
    node.stop()
    assert time.monotonic() - began < 10
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


def test_what_does_not_stop_is_killed_half_a_second_before_its_time_is_over(node: Node) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "hangs").touch()
    began = time.monotonic()
    node.stop()
    seconds = time.monotonic() - began
    assert 1.5 <= seconds < 10
    assert (node.cgroup / "cgroup.kill").read_text() == "1\n"


@pytest.mark.parametrize(
    "armed", ["fence@9-5000.timer", "unsure fence@7-3000.timer fence@9-5000.timer"]
)
def test_a_fence_that_comes_late_leaves_so_much_less(node: Node, armed: str) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 20\n")
    node.joins("writer.service")
    (node.root / "run/bootstrap/fence").write_text(armed)
    (node.root / "began").write_text("23000000\n")  # microseconds
    (node.root / "hangs").touch()
    began = time.monotonic()
    node.stop()
    assert 1.5 <= time.monotonic() - began < 10


@pytest.mark.parametrize("began", ["4000000\n", "[not set]\n", ""])
def test_one_that_does_not_or_of_which_nothing_is_known_leaves_all_of_it(
    node: Node, began: str
) -> None:
    node.conf.write_text("[loader]\nstop_seconds = 2\n")
    node.joins("writer.service")
    (node.root / "run/bootstrap/fence").write_text("fence@9-5000.timer")
    (node.root / "began").write_text(began)
    (node.root / "hangs").touch()
    waited = time.monotonic()
    node.stop()
    assert time.monotonic() - waited >= 1.5


def test_a_unit_that_had_failed_by_itself_stays_failed(node: Node) -> None:
    node.joins("writer.service")
    node.joins("hook.service")
    (node.root / "failed").write_text("hook.service loaded failed failed A hook\n")
    asked = node.stop()
    assert "reset-failed writer.service" in asked
    assert "reset-failed hook.service" not in asked
