"""Several looks within one run: the grid, the trace, the connections, and how a run ends.

Whole runs at a period of four seconds, begun where systemd begins them: at a tick.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import loader
from tests.agent.world import World, open_world
from tests.web import CLOSES, SILENT, Asked, Page

PERIOD, LOOK = 4, 2


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, active, a moment before a tick."""
    with open_world(tmp_path / "root", monkeypatch, period=PERIOD, look=LOOK) as found:
        at_phase(-0.3)
        found.was_active()
        at_phase(0.02)
        yield found


@pytest.fixture
def passive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node2, while node1 is active, at a tick."""
    with open_world(tmp_path / "root", monkeypatch, me="node2", period=PERIOD, look=LOOK) as found:
        found.leads("node1")
        found.saw_its_peers()
        found.change_state(candidate=False)
        at_phase(0.02)
        yield found


def at_phase(seconds: float) -> None:
    """Go on so long after a tick: what systemd's timer does, not a wait for something."""
    time.sleep((seconds - time.time()) % PERIOD)


def phases(asked: list[Asked]) -> list[float]:
    """When in the period each of them came."""
    return [one.at % PERIOD for one in asked]


def until(condition: object, process: "subprocess.Popen[str]") -> None:
    """Wait for the condition while the run goes on; fails when it ends before."""
    assert callable(condition)
    while not condition():
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.01)


def looked(world: World, times: int) -> object:
    """Whether so many looks are over."""
    seen: set[str] = set()

    def enough() -> bool:
        if world.paths.status.exists():
            seen.add(world.paths.status.read_text())
        return len(seen) >= times

    return enough


# ------------------------------------------------ when a run looks, and when it ends


def test_a_run_looks_every_two_seconds_of_the_wall_clock_until_shortly_before_the_next_tick(
    world: World,
) -> None:
    ran = world.run()
    assert ran.code == 0
    first_of_a_look = {
        int(phase / LOOK): phase % LOOK
        for phase in reversed(phases(world.cloud.site("127.0.1.2").asked_for("/node1.html")))
    }
    assert sorted(first_of_a_look) == [0, 1]
    assert all(late < 0.2 for look, late in first_of_a_look.items() if look), first_of_a_look
    assert ran.seconds < PERIOD - (world.times.look_seconds - world.times.end_seconds)
    assert world.active
    assert [member for member, _ in world.calls()].count("StartTransientUnit") == 2


T = loader.timing(20, 2, 0)
ENDS = {
    "at the tick": (0.3, 19.1),
    "in the middle": (7.7, 11.7),
    "with time for a short look": (19.3, 0.1),
    "where no look ends before the tick, with the next, in systemd's limit": (19.5, 19.1),
}


@pytest.mark.parametrize(("phase", "left"), ENDS.values(), ids=ENDS)
def test_a_run_is_over_before_the_tick_whenever_it_began(phase: float, left: float) -> None:
    found = loader.run_left_seconds(T, 1_800_000_000 + phase, 0.3)
    assert found == pytest.approx(left)


def test_a_run_of_one_look_ends_so_long_after_it_began() -> None:
    assert loader.run_left_seconds(loader.timing(20, 20, 0), 1_800_000_007.7, 1) == 17 - 1


def test_a_run_that_begins_in_the_middle_looks_at_once_and_ends_before_the_tick(
    world: World,
) -> None:
    at_phase(1.2)
    world.was_active()
    ran = world.run()
    found = phases(world.cloud.site("127.0.1.2").asked_for("/node1.html"))
    assert 1.2 <= min(found) < 1.7
    assert max(found) > 2
    assert ran.seconds < PERIOD - 1.2
    assert world.active


def test_a_run_that_begins_when_the_next_is_due_is_the_next(world: World) -> None:
    at_phase(-0.4)
    world.was_active()
    process = world.start()
    began = time.time()
    assert process.wait(2 * PERIOD) == 0
    assert PERIOD - LOOK < time.time() - began - 0.4 < PERIOD
    assert world.active


def test_a_node_whose_unit_is_of_before_looks_once_a_run(world: World) -> None:
    world.paths.unit.parent.mkdir(parents=True)
    world.paths.unit.write_text("[Service]\nType=oneshot\nTimeoutStartSec=3.8\n")
    ran = world.run()
    assert (ran.code, world.active) == (0, True)
    assert ran.seconds < 2
    assert world.status()["look_seconds"] == PERIOD


# ------------------------------------------------ what is told


def traces(log: list[str]) -> int:
    return sum("All reachable nodes (including local node)" in line for line in log)


def test_looks_in_which_nothing_happened_write_nothing_and_status_json_is_fresh(
    passive: World,
) -> None:
    process = passive.start()
    until(looked(passive, 1), process)
    before = passive.log()
    until(looked(passive, 2), process)
    assert passive.status()["at"] >= loader.utc(time.time() - LOOK)
    out, errors = process.communicate(timeout=PERIOD)
    assert traces(before) == 1
    assert passive.log() == before
    assert (out.count("\n"), errors) == (1, "")


def test_a_look_in_which_a_peer_is_gone_writes_its_trace_at_that_moment(passive: World) -> None:
    process = passive.start()
    until(looked(passive, 1), process)
    gone = time.time()
    passive.says("node3", CLOSES)
    until(lambda: traces(passive.log()) == 2, process)
    assert time.time() - gone < LOOK + 1
    process.communicate(timeout=PERIOD)
    assert traces(passive.log()) == 2
    assert any("HTTP Connectivity failed to 127.0.1.3" in line for line in passive.log())


def test_the_role_that_is_lost_between_two_ticks_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, period=20, look=LOOK) as world:
        while time.time() % 20 > 10:  # a lease of 5 s ends within this run
            at_phase(0.02)
        world.was_active()
        process = world.start()
        until(looked(world, 1), process)
        for peer in world.peers:
            world.says(peer, CLOSES)
        until(lambda: not world.active, process)
        until(lambda: "Role changed from active to passive" in "".join(world.log()), process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PERIOD)
    told = [line.partition(":")[0] for line in out.splitlines()]
    assert told == ["active", "active", "passive"]


# ------------------------------------------------ what a look costs


def test_the_front_page_is_asked_once_a_run_and_one_connection_serves_all_looks(
    passive: World,
) -> None:
    passive.run()
    for peer in passive.peers:
        asked = passive.cloud.site(passive.hosts[peer]).asked
        assert [one.path for one in asked].count("/") == 1
        assert len(asked) > PERIOD / LOOK
        assert len({one.connection for one in asked}) == 1


def test_a_connection_that_a_peer_has_closed_costs_nothing_but_a_new_one(passive: World) -> None:
    site = passive.cloud.site("127.0.1.3")
    said = site.pages["/node2.html"]
    used: set[int] = set()

    def once_a_connection(asked: Asked) -> Page:
        """Each connection answers for one look, and then hangs up on the next request."""
        if asked.connection in used:
            return CLOSES
        used.add(asked.connection)
        return said(asked) if callable(said) else said

    passive.says("node3", once_a_connection)
    ran = passive.run()
    assert 0 <= len(used) - PERIOD / LOOK <= 1  # the first after a boot waits for a second stamp
    assert traces(ran.log) == 1  # node3 was never gone


def test_no_look_after_the_first_starts_a_thread_or_a_process(passive: World) -> None:
    process = passive.start()
    until(looked(passive, 1), process)
    tasks = Path(f"/proc/{process.pid}/task")
    threads = set(tasks.iterdir())
    until(looked(passive, 2), process)
    assert set(tasks.iterdir()) <= threads
    assert not (tasks / str(process.pid) / "children").read_text()
    process.communicate(timeout=PERIOD)


# ------------------------------------------------ paused by its host


def test_a_pause_of_which_the_hosts_clock_tells_ends_the_role_without_waiting_for_the_next_look(
    world: World,
) -> None:
    """The stand-in for the clock: a file with how far it is ahead."""
    clock = world.root / "ptp"
    clock.write_text("0.0")
    source = world.paths.loader.read_text()
    for there, here in (
        ("/dev/ptp_hyperv", str(clock)),
        (
            "time.clock_gettime((~clock.fileno() << 3) | 3)",
            "time.clock_gettime(time.CLOCK_MONOTONIC_RAW) + float(clock.read(9))",
        ),
    ):
        assert source.count(there) == 1
        source = source.replace(there, here)
    world.paths.loader.write_text(source)
    process = world.start()
    until(looked(world, 1), process)
    assert world.status()["host_clock"]
    clock.write_text("10.0")
    told = time.monotonic()
    until(lambda: any("paused for 10.0 s" in line for line in world.log()), process)
    assert time.monotonic() - told < 0.5
    process.communicate(timeout=2 * PERIOD)


# ------------------------------------------------ stopped, handed over, started twice


@pytest.mark.parametrize("looks", [0, 1])
def test_a_run_that_is_stopped_ends_at_once_and_handing_over_after_it_costs_no_preference(
    passive: World, looks: int
) -> None:
    """In its first look, or between two of them."""
    process = passive.start()
    until(looked(passive, looks) if looks else lambda: not passive.state()["finished"], process)
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PERIOD) == -signal.SIGTERM
    assert time.monotonic() - told < 0.2
    assert passive.run("leave").code == 0
    at_phase(0.02)
    passive.run()
    assert passive.state()["failures"] == 0


def test_leaving_takes_one_look_and_a_half_not_a_period(world: World) -> None:
    at_phase(0.5)
    world.was_active()
    ran = world.run("leave")
    assert (ran.code, world.active) == (0, False)
    assert ran.seconds < 1.5 * LOOK + 0.3


def test_a_second_start_and_a_dry_run_answer_at_once_beside_a_run_that_looks(
    world: World,
) -> None:
    process = world.start()
    until(looked(world, 1), process)
    began = time.monotonic()
    second = world.start()
    out, _ = second.communicate(timeout=PERIOD)
    assert (second.returncode, out) == (
        2,
        "another run of loader.py is under way: wait for its end\n",
    )
    dry = world.start("--dry-run")
    out, _ = dry.communicate(timeout=PERIOD)
    assert dry.returncode == 0
    assert "Would vote for node1" in out
    assert time.monotonic() - began < 2
    assert process.wait(2 * PERIOD) == 0
    assert world.active


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGABRT])
def test_a_run_that_is_killed_and_started_again_at_once_keeps_the_role(
    world: World, ended_by: signal.Signals
) -> None:
    process = world.start()
    until(looked(world, 1), process)
    process.send_signal(ended_by)
    process.communicate(timeout=PERIOD)
    again = world.start()
    until(looked(world, 2), again)
    assert world.active
    again.communicate(timeout=2 * PERIOD)
    assert world.active


MEASURE = """\
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("silent", [0, 50])
def test_101_nodes_a_look_takes_2_s_at_most_and_a_run_80_mb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    period = 10
    with open_world(tmp_path / "root", monkeypatch, nodes=101, period=period, look=LOOK) as world:
        for peer in world.peers[100 - silent :]:
            world.page(peer, "/", SILENT)
            world.says(peer, SILENT)
        world.was_active()
        time.sleep((0.02 - time.time()) % period)
        command = [sys.executable, "-c", MEASURE, *world.command()]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        over: set[float] = set()
        while process.poll() is None:
            if world.paths.status.exists():
                over.add(world.paths.status.stat().st_mtime)
            threading.Event().wait(0.01)
        out, _ = process.communicate()
    code, kilobytes = map(int, out.split())
    assert (code, world.active) == (0, True)
    assert len(world.status()["reachable"]) == 101 - silent
    ended_in = [end // LOOK for end in over]
    # Each before the next was due, but for the first, which has Python's start before it.
    assert len(set(ended_in)) >= period / LOOK - 1
    assert kilobytes < 80 * 1024
