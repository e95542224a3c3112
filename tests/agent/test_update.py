"""A new loader.py that is no good, and what is left of it: whole runs in processes of their own.

What systemd does around a run is done here by its units' own words: the time limit, and OnFailure=
with the shell of rollback.service.
"""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.agent.test_run import release
from tests.agent.world import SOURCE, WEB_SITE_HOST, World, open_world

SYSTEMD = Path(__file__).parents[2] / "systemd"


def unit(name: str) -> ConfigParser:
    found = ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[method-assign,assignment] # systemd's names have capitals
    found.read_string((SYSTEMD / name).read_text().replace("\\\n", ""))
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, which has been active for a while."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        found.serve_release(release(found.installed(SOURCE)))
        assert tick(found) == 0
        assert found.active
        yield found


def tick(world: World, ended_by: int = 0) -> int:
    """One run as loader.service has it: exit code, or the signal that ended it, below 0.

    `ended_by`: a signal that comes from outside, before the run has done anything.
    """
    run = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-B", "-m", "loader"],
        cwd=world.paths.etc,
        env=os.environ | {"INVOCATION_ID": run},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    result = ""
    try:
        if ended_by:
            process.send_signal(ended_by)
        process.communicate(timeout=0.95 * world.period)
        code = process.returncode
    except subprocess.TimeoutExpired:
        code, result = -signal.SIGTERM, "timeout"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    trial = world.paths.trial
    if code and trial.exists() and trial.stat().st_size:
        roll_back(world, code, run, result)
    return code


def takes(world: World, agent: str, code: int = 0) -> None:
    """Serve this agent, and run until it is in place: where a machine is busy one run is too short
    for its check. Each run ends with `code`.
    """
    world.serve_release(release(agent))
    for _ in range(5):
        assert tick(world) == code
        if world.paths.loader.read_text() == agent:
            return
    pytest.fail("it was not taken in five runs")


def becomes_active(world: World) -> bool:
    """Good runs only, and within six of them active: who failed leaves the role to others first."""
    return any(tick(world) == 0 and world.active for _ in range(6))


def roll_back(
    world: World, code: int, run: str, result: str = "", *, timer: str = "waiting"
) -> None:
    """What rollback.service does after a run that ended so, as `systemctl show` tells it."""
    shell = unit("rollback.service")["Service"]["ExecStart"].partition("-c '")[2].rstrip("'")
    stub = world.programs / "systemctl"
    ended = "success" if code == 0 else "exit-code" if code > 0 else "signal"
    told = f"Result={result or ended}\\nInvocationID={run}\\nExecMainStatus={abs(code)}\\n"
    stub.write_text(
        f'#!/bin/sh\ncase "$*" in *SubState*) echo SubState={timer};; *) printf "{told}";; esac\n'
    )
    stub.chmod(0o755)
    script = shell.replace("$$", "$")
    subprocess.run(["/bin/sh", "-c", script], cwd=world.paths.etc, check=True, timeout=10)


def changed(world: World, before: str, after: str) -> str:
    """Another agent: ours with one place changed."""
    agent = world.installed(SOURCE)
    assert agent.count(before) == 1
    return agent.replace(before, after)


IN_THE_RUN = "    identity = who_am_i("
STOPS_AT_IMPORT = {
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "loops for ever": ("while True: pass", "did not end in time"),
    "ends with 0": ("sys.exit(0)", "exit code 0, ''"),
    "kills its own process group": ("os.kill(0, 9)", "exit code -9"),
    "prints for ever": ("while True: print('x' * 1000)", "did not end in time"),
    "does not heed signals": (
        "import signal; signal.signal(15, signal.SIG_IGN)\nwhile True: pass",
        "did not end in time",
    ),
    "needs what is not there": ("import no_such_module", "ModuleNotFoundError"),
}


@pytest.mark.parametrize(("line", "why"), STOPS_AT_IMPORT.values(), ids=STOPS_AT_IMPORT)
def test_an_agent_that_does_not_get_through_its_import_is_never_in_place(
    world: World, line: str, why: str
) -> None:
    before = world.paths.loader.read_text()
    world.serve_release(release(changed(world, "class BadInput(", f"{line}\n\n\nclass BadInput(")))
    said = [""]
    for _ in range(5):  # where a machine is busy one run is too short for the check
        assert tick(world) == 0
        assert (world.active, world.paths.loader.read_text()) == (True, before)
        assert not world.paths.trial.exists()
        assert not world.paths.newer.exists()
        said = [line for line in world.log() if "fails its self-check, not taken" in line]
        if why in said[-1]:
            break
    assert why in said[-1]
    assert tick(world) == 0
    assert world.active


SOME_OF_IT = {
    "before main": SOURCE[: SOURCE.index("\ndef main(")],
    "after main": SOURCE[: SOURCE.index('\nif __name__ == "__main__":\n    code')],
    "in the middle of a line": SOURCE[: len(SOURCE) // 2],
    "in the last line": SOURCE[: SOURCE.rindex("sys.exit")],
}


@pytest.mark.parametrize("text", SOME_OF_IT.values(), ids=SOME_OF_IT)
def test_a_part_of_an_agent_is_never_in_place(world: World, text: str) -> None:
    before = world.paths.loader.read_text()
    world.serve_release(release(text))
    assert tick(world) == 0
    assert (world.active, world.paths.loader.read_text()) == (True, before)


FAILS_ON_TRIAL = {
    "raises in main": "raise RuntimeError('boom')",
    "loops for ever": "\n    while True: pass",
    "kills its own process group": "os.kill(0, 9)",
    "ends with another code": "sys.exit(1)",
    "is stopped by the kernel": "os.kill(os.getpid(), 11)",
}


@pytest.mark.parametrize("line", FAILS_ON_TRIAL.values(), ids=FAILS_ON_TRIAL)
def test_an_agent_whose_runs_fail_is_undone_at_once_and_refused_the_second_time(
    world: World, line: str
) -> None:
    before = world.paths.loader.read_text()
    newer = changed(world, IN_THE_RUN, f"    {line.strip()}\n{IN_THE_RUN}")
    takes(world, newer)
    assert world.paths.trial.read_text().split()[0] == hashlib.sha256(newer.encode()).hexdigest()
    assert tick(world) != 0
    assert world.paths.loader.read_text() == before
    assert tick(world) == 0
    assert not world.paths.trial.exists()
    assert byte_code_is_of(world, before)
    assert becomes_active(world)
    assert world.paths.loader.read_text() == before
    assert not world.paths.refused.exists()
    an_hour_later(world)
    takes(world, newer)
    assert tick(world) != 0
    assert world.paths.refused.exists()
    an_hour_later(world)
    assert becomes_active(world)
    assert world.paths.loader.read_text() == before
    last = world.cloud.site(WEB_SITE_HOST).asked_for("/bootstrap/loader.py")[-1]
    assert "If-None-Match" in last.headers
    takes(world, before + "# the remedy\n")
    assert tick(world) == 0
    assert (world.active, world.paths.loader.read_text()) == (True, before + "# the remedy\n")


def an_hour_later(world: World) -> None:
    """As far as the agent knows: a file that failed may be tried again."""
    if world.paths.failed.exists():
        os.utime(world.paths.failed, (time.time() - 3601,) * 2)


def test_one_run_that_was_killed_costs_a_good_agent_an_hour_and_no_more(world: World) -> None:
    before, newer = world.paths.loader.read_text(), world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    assert tick(world, ended_by=signal.SIGKILL) == -9
    assert tick(world) == 0
    assert world.paths.loader.read_text() == before
    an_hour_later(world)
    takes(world, newer)
    assert tick(world) == 0
    assert (world.paths.loader.read_text(), world.paths.trial.exists()) == (newer, False)


def test_a_run_that_was_stopped_is_not_the_agents_fault(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    assert tick(world, ended_by=signal.SIGTERM) == -15
    assert world.paths.loader.read_text() == newer
    assert tick(world) == 0
    assert (world.paths.loader.read_text(), world.paths.trial.exists()) == (newer, False)


@pytest.mark.parametrize("line", ["sys.exit(2)", "os.kill(os.getpid(), 15)"])
def test_an_agent_whose_every_run_ends_as_if_the_node_were_at_fault_is_undone_not_refused(
    world: World, line: str
) -> None:
    before = world.paths.loader.read_text()
    newer = changed(world, IN_THE_RUN, f"    {line}\n{IN_THE_RUN}")
    takes(world, newer)
    for _ in range(3):
        assert world.paths.loader.read_text() == newer
        assert tick(world) != 0
    assert world.paths.loader.read_text() == before
    assert becomes_active(world)  # and it is not taken again at once
    assert world.paths.loader.read_text() == before
    assert not world.paths.refused.exists()


def test_an_agent_whose_runs_do_nothing_is_undone_by_the_timer_that_its_taker_started(
    world: World,
) -> None:
    before = world.paths.loader.read_text()
    newer = changed(world, IN_THE_RUN, f"    sys.exit(0)\n{IN_THE_RUN}")
    for _ in range(2):
        world.systemd.calls.clear()
        takes(world, newer)
        assert ("RestartUnit", "rollback.timer") in [call[:2] for call in world.systemd.calls]
        assert tick(world) == 0
        assert world.paths.loader.read_text() == newer
        roll_back(world, 0, "a later run", timer="running")
        assert world.paths.loader.read_text() == before
        an_hour_later(world)
    assert hashlib.sha256(newer.encode()).hexdigest() in world.paths.refused.read_text()
    assert becomes_active(world)


def test_a_trial_that_had_no_run_at_all_is_put_off_and_never_refused(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    for _ in range(2):
        takes(world, newer)
        taker = world.paths.trial.read_text().split()[1]
        roll_back(world, 0, taker, timer="running")  # the operator stopped loader.timer
        assert tick(world) == 0
        an_hour_later(world)
    takes(world, newer)
    assert tick(world) == 0
    assert (world.paths.loader.read_text(), world.paths.refused.exists()) == (newer, False)


def test_an_agent_that_fails_its_check_is_checked_once_an_hour_and_told_of_once(
    world: World,
) -> None:
    broken = changed(world, "class BadInput(", "raise RuntimeError('boom')\nclass BadInput(")
    world.serve_release(release(broken))
    told = [world.run().journal.count("loader.py is not taken") for _ in range(3)]
    assert told == [1, 0, 0]
    last = world.cloud.site(WEB_SITE_HOST).asked_for("/bootstrap/loader.py")[-1]
    assert "If-None-Match" in last.headers
    an_hour_later(world)
    assert "loader.py is not taken" in world.run().journal
    takes(world, world.installed(SOURCE) + "# the remedy\n")


def byte_code_is_of(world: World, source: str) -> bool:
    """Whether the byte code that is kept is of that source (PEP 552)."""
    import importlib.util  # noqa: PLC0415 - its name is needed here alone

    compiled = Path(importlib.util.cache_from_source(str(world.paths.loader)))
    return compiled.read_bytes()[8:16] == importlib.util.source_hash(source.encode())


def test_a_failed_agent_that_is_served_again_after_a_reboot_is_known(world: World) -> None:
    newer = changed(world, IN_THE_RUN, f"    raise RuntimeError('boom')\n{IN_THE_RUN}")
    for _ in range(2):
        takes(world, newer)
        tick(world)
        an_hour_later(world)
    world.paths.release.unlink()  # what a reboot forgets
    assert tick(world) == 0
    assert any("failed on this node before" in line for line in world.log())
    assert world.paths.loader.read_text() != newer


def test_a_good_agents_trial_ends_with_its_first_good_run(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    assert world.paths.trial.exists()
    assert tick(world) == 0
    assert not world.paths.trial.exists()
    assert (world.active, world.paths.loader.read_text()) == (True, newer)
    assert byte_code_is_of(world, newer)


def test_bad_input_of_the_node_is_not_held_against_the_agent_on_trial(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    nodes = world.paths.nodes_info.read_text()
    world.paths.nodes_info.write_text("{}")
    assert tick(world) == 2
    world.paths.nodes_info.write_text(nodes)
    assert world.paths.loader.read_text() == newer
    assert world.paths.trial.read_text()
    assert tick(world) == 0
    assert not world.paths.trial.exists()
    assert becomes_active(world)
    assert world.paths.loader.read_text() == newer


def test_an_agent_that_comes_while_another_is_on_trial_falls_back_to_the_last_good_one(
    world: World,
) -> None:
    before = world.paths.loader.read_text()
    second = changed(world, IN_THE_RUN, f"    raise RuntimeError('boom')\n{IN_THE_RUN}")
    first = second.replace("raise RuntimeError('boom')", "raise BadInput('no such thing')")
    takes(world, first)
    takes(world, second, code=2)
    assert tick(world) == 1
    assert world.paths.loader.read_text() == before
    assert becomes_active(world)


def test_a_run_that_fails_takes_the_remedy_all_the_same(world: World) -> None:
    remedy = world.installed(SOURCE)
    broken = changed(world, IN_THE_RUN, f"    raise RuntimeError('boom')\n{IN_THE_RUN}")
    world.paths.loader.write_text(broken)
    takes(world, remedy, code=1)
    assert not world.active
    assert becomes_active(world)


def test_the_self_check_needs_no_network_and_changes_nothing(world: World) -> None:
    before = world.listing()
    asked = len(world.cloud.asked)
    process = world.start("--self-check")
    assert process.communicate(timeout=10) == ("self-check passed\n", "")
    assert (process.returncode, world.listing(), len(world.cloud.asked)) == (0, before, asked)
    world.paths.key.write_text("short")
    process = world.start("--self-check")
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (2, "")
    assert err == f"loader.py: {world.paths.key}: not a key: use 64 hexadecimal digits.\n"


DIES = """\
import os, sys
sys.path.insert(0, sys.argv[1])
import loader
number, real = int(sys.argv[2]), {}

def dying(name):
    def call(*words, **named):
        global number
        number -= 1
        if number < 0:
            os.kill(os.getpid(), 9)
        return real[name](*words, **named)
    return call

for name in ("link", "replace", "rename", "unlink", "fsync", "open"):
    real[name] = getattr(os, name)
    setattr(os, name, dying(name))
sys.exit(loader.main([]))
"""


def test_power_lost_at_any_step_of_an_update_leaves_an_agent_that_runs(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    before = world.paths.loader.read_text()
    found = set()
    for number in range(60):
        world.paths.loader.write_text(before)
        for path in (world.paths.trial, world.paths.previous, world.paths.release):
            path.unlink(missing_ok=True)
        world.serve_release(release(newer))
        command = [sys.executable, "-B", "-c", DIES, str(world.paths.etc), str(number)]
        ran = subprocess.run(command, capture_output=True, timeout=20, check=False)
        now = world.paths.loader.read_text()
        found.add(now)
        assert now in (before, newer), number
        assert now == before or world.paths.previous.read_text() == before, number
        assert now == before or world.paths.trial.read_text(), number
        if ran.returncode == 0:
            break
    assert found == {before, newer}
    assert tick(world) == 0


@pytest.mark.parametrize("limit", [0, 40, 5000])
def test_a_disk_that_is_full_leaves_the_agent_that_is_here(world: World, limit: int) -> None:
    before = world.paths.loader.read_text()
    world.serve_release(release(before + "# newer\n"))

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [sys.executable, "-B", "-m", "loader"]
    subprocess.run(
        command,
        cwd=world.paths.etc,
        preexec_fn=full,
        timeout=20,
        check=False,
        capture_output=True,
    )
    assert world.paths.loader.read_text() == before
    assert not world.paths.newer.exists()
    assert tick(world) == 0
    assert world.active


def test_a_rollback_that_died_half_way_is_harmless(world: World) -> None:
    before = world.paths.loader.read_text()
    broken = changed(world, IN_THE_RUN, f"    raise RuntimeError('boom')\n{IN_THE_RUN}")
    takes(world, broken)
    world.paths.previous.replace(world.paths.loader)  # and the power is lost
    takes(world, broken)  # once more, by a good run of the one before
    assert tick(world) != 0
    assert world.paths.loader.read_text() == before
    assert world.paths.failed.read_text().split()[0] == hashlib.sha256(broken.encode()).hexdigest()


def test_the_unit_that_undoes_needs_nothing_of_the_agent() -> None:
    service, loader_unit = unit("rollback.service"), unit("loader.service")
    assert loader_unit["Unit"]["OnFailure"] == "rollback.service"
    assert service["Unit"]["Before"] == "loader.service"
    assert "python" not in service["Service"]["ExecStart"]
    assert service["Service"]["ReadWritePaths"] == "/etc/bootstrap"
