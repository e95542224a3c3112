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

from agent import loader
from tests.agent.world import SOURCE, World, open_world

SYSTEMD = Path(__file__).parents[2] / "systemd"


def unit(name: str) -> ConfigParser:
    found = ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[method-assign,assignment] # systemd's names have capitals
    found.read_string((SYSTEMD / name).read_text().replace("\\\n", ""))
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node3 of three, whose agent is the first to be replaced, while node1 is active."""
    with open_world(tmp_path / "root", monkeypatch, me="node3") as found:
        found.leads("node1")
        assert tick(found) == 0
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
    """Publish this agent, and run until it is in place: held, in effect, and its turn.

    Where a machine is busy a run may be too short for its check. Each run ends with `code`.
    """
    world.publish(world.release(agent))
    for _ in range(8):
        assert tick(world) == code
        if world.paths.loader.read_text() == agent:
            return
    pytest.fail("it was not taken in eight runs")


def is_proven(world: World) -> bool:
    """After two good runs."""
    assert [tick(world), world.paths.trial.exists(), tick(world)] == [0, True, 0]
    return not world.paths.trial.exists()


def takes_no_other(world: World) -> bool:
    """Three good runs, time enough to be replaced, and the agent is the same."""
    before = world.paths.loader.read_text()
    return [tick(world) for _ in range(3)] == [0] * 3 and world.paths.loader.read_text() == before


def roll_back(
    world: World, code: int, run: str, result: str = "", *, timer: str = "waiting"
) -> None:
    """What rollback.service does after a run that ended so, as `systemctl show` tells it."""
    shell = unit("rollback.service")["Service"]["ExecStart"].partition("-c '")[2].rstrip("'")
    shell = shell.replace("/run/bootstrap", str(world.paths.run))
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
    "loops for ever": ("while True: pass", "no end in 5 s"),
    "ends with 0": ("sys.exit(0)", "exit code 0, ''"),
    "kills its own process group": ("os.kill(0, 9)", "exit code -9"),
    "prints for ever": ("while True: print('x' * 1000)", "no end in 5 s"),
    "does not heed signals": (
        "import signal; signal.signal(15, signal.SIG_IGN)\nwhile True: pass",
        "no end in 5 s",
    ),
    "needs what is not there": ("import no_such_module", "ModuleNotFoundError"),
}


def check(world: World) -> str:
    """What came of asking for a release, within the time that a self-check may take."""
    until = time.monotonic() + 20
    loader.take_release(loader.new_session(), world.web_site, 0, world.paths, until)
    return str((loader.read_json(world.paths.asked) or {})["refused"])


@pytest.mark.parametrize(("line", "why"), STOPS_AT_IMPORT.values(), ids=STOPS_AT_IMPORT)
def test_an_agent_that_does_not_get_through_its_import_is_not_held(
    world: World, line: str, why: str
) -> None:
    world.publish(world.release(changed(world, "class BadInput(", f"{line}\n\n\nclass BadInput(")))
    assert why in check(world)
    assert loader.read_kept(world.paths).held is None
    assert not world.paths.newer.exists()


SOME_OF_IT = {
    "before main": SOURCE[: SOURCE.index("\ndef main(")],
    "after main": SOURCE[: SOURCE.index('\nif __name__ == "__main__":\n    code')],
    "in the middle of a line": SOURCE[: len(SOURCE) // 2],
    "in the last line": SOURCE[: SOURCE.rindex("sys.exit")],
}


@pytest.mark.parametrize("text", SOME_OF_IT.values(), ids=SOME_OF_IT)
def test_a_part_of_an_agent_is_not_held(world: World, text: str) -> None:
    world.publish(world.release(text))
    assert "fails its self-check" in check(world)
    assert loader.read_kept(world.paths).held is None


FAILS_ON_TRIAL = {
    "raises in main": "raise RuntimeError('boom')",
    "loops for ever": "\n    while True: pass",
    "kills its own process group": "os.kill(0, 9)",
    "ends with another code": "sys.exit(1)",
    "is stopped by the kernel": "os.kill(os.getpid(), 11)",
}


@pytest.mark.parametrize("line", FAILS_ON_TRIAL.values(), ids=FAILS_ON_TRIAL)
def test_an_agent_whose_runs_fail_is_undone_and_not_tried_again(world: World, line: str) -> None:
    before = world.paths.loader.read_text()
    newer = changed(world, IN_THE_RUN, f"    {line.strip()}\n{IN_THE_RUN}")
    takes(world, newer)
    assert world.paths.trial.read_text().split()[0] == hashlib.sha256(newer.encode()).hexdigest()
    for _ in range(3):  # systemd tells of one that crashes when the third one has
        if world.paths.loader.read_text() == newer:
            assert tick(world) != 0
    assert world.paths.loader.read_text() == before
    assert tick(world) == 0
    assert not world.paths.trial.exists()
    assert byte_code_is_of(world, before)
    assert takes_no_other(world)
    told = world.status()["release"]
    assert told["refused"] == f"generation {world.generation}: its loader.py failed on this node"
    assert (told["held"], told["proven"]) == (world.generation, True)
    takes(world, before + "# the remedy\n")
    assert is_proven(world)
    assert world.status()["release"]["refused"] == ""


def test_runs_that_were_stopped_twice_are_not_the_agents_fault(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    for _ in range(2):
        assert tick(world, ended_by=signal.SIGTERM) == -15
    assert world.paths.loader.read_text() == newer
    assert is_proven(world)
    assert not world.paths.trial_failures.exists()


@pytest.mark.parametrize("line", ["sys.exit(2)", "os.kill(os.getpid(), 15)"])
def test_an_agent_whose_every_run_ends_as_if_the_node_were_at_fault_is_undone_after_three(
    world: World, line: str
) -> None:
    before = world.paths.loader.read_text()
    takes(world, changed(world, IN_THE_RUN, f"    {line}\n{IN_THE_RUN}"))
    for _ in range(3):
        assert world.paths.loader.read_text() != before
        assert tick(world) != 0
    assert world.paths.loader.read_text() == before
    assert takes_no_other(world)


DECIDES_NOTHING = {
    "ends": (IN_THE_RUN, "    sys.exit(0)"),
    "asks nobody": ("        with session.request(", "        raise KeyError"),
    "asks for no release": ('    headers = {"If-None-Match": known}', "    raise KeyError"),
}


@pytest.mark.parametrize(("place", "line"), DECIDES_NOTHING.values(), ids=DECIDES_NOTHING)
def test_an_agent_whose_runs_decide_nothing_is_undone_by_the_timer_that_its_taker_started(
    world: World, place: str, line: str
) -> None:
    before = world.paths.loader.read_text()
    newer = changed(world, place, f"{line}\n{place}")
    takes(world, newer)
    assert ("RestartUnit", "rollback.timer") in [call[:2] for call in world.systemd.calls]
    assert [tick(world) for _ in range(3)] == [0] * 3
    assert world.paths.loader.read_text() == newer
    roll_back(world, 0, "a later run", timer="running")
    assert world.paths.loader.read_text() == before
    assert hashlib.sha256(newer.encode()).hexdigest() in world.paths.refused.read_text()
    assert takes_no_other(world)


def test_a_trial_that_had_no_run_at_all_goes_on(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    taker = world.paths.trial.read_text().split()[1]
    roll_back(world, 0, taker, timer="running")  # the operator stopped loader.timer
    assert (world.paths.loader.read_text(), is_proven(world)) == (newer, True)


def test_two_good_runs_count_only_in_a_row(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    assert tick(world) == 0
    assert tick(world, ended_by=signal.SIGTERM) == -15
    assert tick(world) == 0
    assert world.paths.trial.exists()
    shown = world.shown_to("node1")
    assert shown is not None
    assert not shown.proven
    assert tick(world) == 0
    assert not world.paths.trial.exists()
    tick(world)
    shown = world.shown_to("node1")
    assert shown is not None
    assert (shown.proven, shown.generation) == (
        True,
        hashlib.sha256(newer.encode()).hexdigest()[:12],
    )


def byte_code_is_of(world: World, source: str) -> bool:
    """Whether the byte code that is kept is of that source (PEP 552)."""
    import importlib.util  # noqa: PLC0415 - its name is needed here alone

    compiled = Path(importlib.util.cache_from_source(str(world.paths.loader)))
    return compiled.read_bytes()[8:16] == importlib.util.source_hash(source.encode())


def test_a_good_agents_trial_ends_with_its_second_good_run(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    assert is_proven(world)
    assert world.paths.loader.read_text() == newer
    assert byte_code_is_of(world, newer)


def test_bad_input_of_the_node_is_not_held_against_the_agent_on_trial(world: World) -> None:
    newer = world.installed(SOURCE) + "# newer\n"
    takes(world, newer)
    conf = world.paths.conf.read_text()
    world.paths.conf.write_text("[loader]\nperiod_seconds = 7\n")
    assert tick(world) == 2
    world.paths.conf.write_text(conf)
    assert world.paths.loader.read_text() == newer
    assert is_proven(world)


def test_a_run_that_fails_takes_the_remedy_all_the_same(world: World) -> None:
    remedy = world.installed(SOURCE)
    broken = changed(world, IN_THE_RUN, f"    raise RuntimeError('boom')\n{IN_THE_RUN}")
    world.paths.loader.write_text(broken)
    takes(world, remedy, code=1)
    assert is_proven(world)


def test_an_agent_that_was_changed_by_hand_is_put_right(world: World) -> None:
    right = world.paths.loader.read_text()
    world.goes_by(world.release())
    world.paths.loader.write_text(right + "# by hand\n")
    assert tick(world) == 0
    assert world.paths.loader.read_text() == right


def test_where_others_come_first_or_are_missing_an_agent_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, me="node2") as world:
        world.leads("node1")
        newer = world.installed(SOURCE) + "# newer\n"
        world.publish(world.release(newer))
        for _ in range(6):
            assert tick(world) == 0
        assert world.status()["release"]["effective"] == 1
        assert world.paths.loader.read_text() != newer  # node3 runs another one
        build = hashlib.sha256(newer.encode()).hexdigest()[:12]
        world.builds["node3"] = (build, False)
        assert tick(world) == 0
        assert world.paths.loader.read_text() != newer  # it is on trial there
        world.builds["node3"] = (build, True)
        for _ in range(8):  # where a machine is busy, a run may be too short to see that
            assert tick(world) == 0
            if world.paths.loader.read_text() == newer:
                return
        pytest.fail("it was not taken in eight runs")


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
    world.publish(world.release(newer))
    while loader.read_kept(world.paths).effective is None:
        assert tick(world) == 0
    for number in range(90):
        world.paths.loader.write_text(before)
        for path in (world.paths.trial, world.paths.previous):
            path.unlink(missing_ok=True)
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
    world.publish(world.release(before + "# newer\n"))
    while loader.read_kept(world.paths).effective is None:
        assert tick(world) == 0

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
    assert tick(world) == 0


def test_a_rollback_that_died_half_way_is_harmless(world: World) -> None:
    before = world.paths.loader.read_text()
    broken = changed(world, IN_THE_RUN, f"    raise RuntimeError('boom')\n{IN_THE_RUN}")
    takes(world, broken)
    world.paths.previous.replace(world.paths.loader)  # and the power is lost
    takes(world, broken)  # once more, by a good run of the one before
    assert tick(world) != 0
    assert world.paths.loader.read_text() == before
    assert world.paths.refused.read_text().split()[0] == hashlib.sha256(broken.encode()).hexdigest()


def test_the_unit_that_undoes_needs_nothing_of_the_agent() -> None:
    service, loader_unit = unit("rollback.service"), unit("loader.service")
    assert loader_unit["Unit"]["OnFailure"] == "rollback.service"
    assert service["Unit"]["Before"] == "loader.service"
    assert "python" not in service["Service"]["ExecStart"]
    assert service["Service"]["ReadWritePaths"] == "/etc/bootstrap /run/bootstrap"
