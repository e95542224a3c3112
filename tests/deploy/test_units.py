"""The units in systemd/: right in themselves, hardened, and in step with agent and first boot."""

import os
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from agent import loader
from deploy.settings import Settings
from deploy.userdata import INSTANCE, application, period_dropins, units

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.iterdir() if path.suffix != ".conf")
PERIODS = [2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60]
LOOKS = [(p, look) for p in PERIODS for look in range(2, p + 1) if p % look == 0]
"""Every period with every time between looks that divides it."""

START_SECONDS = loader.GAP_SECONDS
"""From the tick, or from a call of systemd, until the agent is at work."""

LAST_SECONDS = 0.05
"""For the log, status.json and the end of the process, after the last poll."""


def analyze(*words: str) -> "subprocess.CompletedProcess[str]":
    """`systemd-analyze` on this checkout's units; skips where there is none."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    env = os.environ | {"SYSTEMD_UNIT_PATH": f"{SYSTEMD}:", "LC_ALL": "C", "TZ": "UTC"}
    command = ["systemd-analyze", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, env=env)


class Unit(ConfigParser):
    """A unit's text; of a setting given twice the last one counts."""

    def __init__(self, text: str) -> None:
        super().__init__(interpolation=None, strict=False)
        self.optionxform = str  # type: ignore[method-assign,assignment] # systemd's names have capitals
        self.read_string(text)


def unit(name: str) -> Unit:
    return Unit((SYSTEMD / name).read_text())


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_the_unit(name: str, tmp_path: Path) -> None:
    instance = tmp_path / name.replace("@.", "@1000.")
    shutil.copy(SYSTEMD / name, instance)
    verified = analyze("verify", "--man=no", str(instance))
    ours = [line for line in verified.stderr.splitlines() if name.partition(".")[0] in line]
    assert (verified.returncode, ours) == (0, [])


@pytest.mark.parametrize("period", PERIODS)
def test_systemd_finds_nothing_wrong_with_what_a_period_adds_to_the_units(
    period: int, tmp_path: Path
) -> None:
    names = [path.partition(".d/")[0] for path in period_dropins(period)]
    for path, text in period_dropins(period).items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)
    for name in UNITS:
        shutil.copy(SYSTEMD / name, tmp_path)
    verified = analyze("verify", "--man=no", *(str(tmp_path / name) for name in names))
    ours = [line for line in verified.stderr.splitlines() if str(tmp_path) in line]
    assert (verified.returncode, ours) == (0, [])


def test_systemd_finds_nothing_wrong_with_what_an_application_adds_to_the_units(
    tmp_path: Path,
) -> None:
    for name in UNITS:
        shutil.copy(SYSTEMD / name, tmp_path)
    added = application({"setup.sh": b"#!/bin/sh\n"}, "http://203.0.113.10/bootstrap")
    for path, text in added.items():
        if path.startswith("/etc/systemd/system/"):
            unit_file = tmp_path / path.removeprefix("/etc/systemd/system/")
            unit_file.parent.mkdir(exist_ok=True)
            unit_file.write_text(text)
    names = ("install.service", "setup.service")
    verified = analyze("verify", "--man=no", *(str(tmp_path / name) for name in names))
    ours = [line for line in verified.stderr.splitlines() if str(tmp_path) in line]
    assert (verified.returncode, ours) == (0, [])
    dropin = (tmp_path / "install.service.d" / "setup.conf").read_text()
    assert Unit(dropin)["Unit"]["OnSuccess"] == "setup.service"  # there since systemd 249


def test_the_loaders_unit_is_hardened_to_an_exposure_of_3_at_most() -> None:
    path = str(SYSTEMD / "loader.service")
    ran = analyze("security", "--offline=true", "--threshold=30", path)
    assert ran.returncode == 0, ran.stdout.splitlines()[-1]


def test_the_units_say_what_is_derived_from_the_default_period() -> None:
    for path, text in period_dropins(20).items():
        name = path.partition(".d/")[0]
        dropin = Unit("\n".join(line for line in text.splitlines() if not line.endswith("=")))
        for section in dropin.sections():
            for key, value in dropin[section].items():
                assert unit(name)[section][key] == value, (name, key)


@pytest.mark.parametrize("period", PERIODS)
def test_the_timer_ticks_at_every_multiple_of_the_period(period: int) -> None:
    calendar = period_dropins(period)["loader.timer.d/period.conf"].rpartition("OnCalendar=")[2]
    ticks = 60 // period
    base = "--base-time=2026-01-01 00:00:00"
    ran = analyze("calendar", f"--iterations={ticks}", base, calendar.strip())
    shown = [line.split()[-2] for line in ran.stdout.splitlines() if "UTC" in line]
    seconds = [int(text[-2:]) for text in shown]
    assert (ran.returncode, seconds) == (0, [*range(period, 60, period), 0])


def limits(name: str, period: int) -> dict[str, float]:
    """What a unit says in numbers, with its drop-in for that period."""
    dropin = period_dropins(period).get(f"{name}.d/period.conf", "")
    found = Unit((SYSTEMD / name).read_text() + dropin)
    said = {key: value for part in ("Unit", "Service") for key, value in found[part].items()}
    return {key: float(value) for key, value in said.items() if re.fullmatch(r"[\d.]+", value)}


def longest_look_seconds(times: loader.Timing) -> float:
    """Every wait of the look that ends a run: its last poll begins a pause after it at most."""
    return times.end_seconds + times.poll_seconds + times.timeout_seconds + LAST_SECONDS


def longest_run_seconds(times: loader.Timing, into_seconds: float) -> float:
    """Of a process that begins so long after a tick, which systemd's limit counts from.

    The web site, metadata and the wait for a newer agent end with the run, not after it.
    """
    left_seconds = loader.run_left_seconds(times, into_seconds + START_SECONDS, START_SECONDS)
    end_seconds = START_SECONDS + left_seconds
    return end_seconds + longest_look_seconds(times) - times.end_seconds


@pytest.mark.parametrize(("period", "look"), LOOKS)
def test_the_longest_run_ends_before_the_next_tick_and_before_systemd_ends_it(
    period: int, look: int
) -> None:
    times = loader.timing(period, look, 0)
    limit = limits("loader.service", period)["RuntimeMaxSec"]
    assert longest_look_seconds(times) < look
    assert longest_run_seconds(times, 0) < min(limit, period)


@pytest.mark.parametrize(("period", "look"), [p for p in LOOKS if p[0] > p[1]])
def test_a_run_that_was_started_again_ends_before_systemd_ends_it(period: int, look: int) -> None:
    times = loader.timing(period, look, 0)
    phases = [period * n / 1000 for n in range(1000)]
    longest = max(longest_run_seconds(times, phase) for phase in phases)
    assert longest < limits("loader.service", period)["RuntimeMaxSec"]


@pytest.mark.parametrize("period", PERIODS)
def test_a_run_that_fails_is_started_again_at_once_and_whatever_happened_at_the_next_tick(
    period: int,
) -> None:
    service, said = unit("loader.service")["Service"], limits("loader.service", period)
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2 SIGTERM"
    assert 2 <= said["StartLimitBurst"] <= 5
    assert said["StartLimitIntervalSec"] < period


def test_no_job_is_under_way_while_the_agent_looks() -> None:
    assert unit("loader.service")["Service"]["Type"] == "exec"


def test_a_stop_waits_for_no_run_longer_than_a_second() -> None:
    assert limits("loader.service", Settings.period_seconds)["TimeoutStopSec"] == 1


@pytest.mark.parametrize(("period", "look"), LOOKS)
def test_handing_over_ends_before_systemd_ends_it(period: int, look: int) -> None:
    """It waits for the cluster's next look, and both take one and a half at most, and the stop."""
    times = loader.timing(period, look, 0, loader.MOST["stop_seconds"])
    longest = START_SECONDS + 1.5 * look + longest_look_seconds(times) - times.end_seconds
    longest += times.stop_seconds
    assert longest < limits("handover.service", period)["TimeoutStopSec"]


@pytest.mark.parametrize(("checks", "health_seconds"), [(200, 5), (15, 60)])
def test_a_round_of_many_checks_that_take_nearly_their_whole_time_is_not_ended_by_systemd(
    checks: int, health_seconds: int
) -> None:
    assert (loader.Settings().health_seconds, loader.MOST["health_seconds"]) == (5, 60)
    limit = analyze("timespan", unit("health.service")["Service"]["TimeoutStartSec"]).stdout
    (microseconds,) = re.findall(r"s: ([0-9]+)\n", limit)
    longest_seconds = checks * health_seconds + 1  # the last one may have to be killed
    assert longest_seconds < int(microseconds) / 1e6


def test_handing_over_has_time_for_a_run_by_hand_that_is_under_way() -> None:
    """That is over, and the cluster's next look there, by the next tick."""
    for look in (Settings.look_seconds, Settings.period_seconds):
        times = loader.timing(Settings.period_seconds, look, 0, loader.MOST["stop_seconds"])
        longest = START_SECONDS + times.period_seconds + longest_look_seconds(times)
        longest += times.stop_seconds
        said = limits("handover.service", Settings.period_seconds)
        assert longest < said["TimeoutStopSec"]


def test_who_stops_the_timer_stops_the_run_and_then_hands_over() -> None:
    """Units stop in the opposite order of their start."""
    run, handover = unit("loader.service")["Unit"], unit("handover.service")["Unit"]
    assert run["PartOf"] == handover["PartOf"] == "loader.timer"
    assert "handover.service" in run["After"].split()
    assert "apache2.service" in run["After"].split()
    assert unit("loader.timer")["Unit"]["Wants"] == "handover.service"


def test_the_fence_removes_the_probe_and_the_staged_one_and_nothing_else() -> None:
    paths = loader.Paths()
    command = unit("fence.service")["Service"]["ExecStart"]
    assert command == f"/bin/rm -f {paths.probe} {paths.staged}"


def test_a_node_that_shuts_down_still_has_its_fence() -> None:
    for name in ("fence.service", loader.STOP):
        found = unit(name)
        assert found["Unit"]["DefaultDependencies"] == "no"
        assert found["Service"].get("Slice", "system.slice") == "system.slice"
    assert unit("fence.service")["Service"]["Slice"] == "system.slice"  # for its instances


def test_units_and_agent_go_by_the_same_folder_where_the_cluster_has_its_own_web_server(
    tmp_path: Path,
) -> None:
    (tmp_path / INSTANCE.lstrip("/")).mkdir(parents=True)
    paths = loader.Paths(str(tmp_path))
    found = {Path(path).name: Unit(text) for path, text in units(20, 8001).items()}

    def here(*there: Path) -> str:
        return " ".join(f"/{path.relative_to(tmp_path)}" for path in there)

    for name in ("fence.service", "fence@.service"):
        removed = found[name]["Service"]["ExecStart"].removeprefix("/bin/rm -f ")
        assert removed == here(paths.probe, paths.staged)
    assert found["loader.service"]["Service"]["ReadWritePaths"] == here(paths.etc, paths.html)
    mounts = found["bootup.service"]["Unit"]["RequiresMountsFor"]
    assert mounts == here(paths.etc, paths.html, paths.logfile.parent)
    for name in ("loader.service", "handover.service"):
        assert "apache2@bootstrap.service" in found[name]["Unit"]["After"].split()


def test_the_fence_has_what_runs_with_the_role_stopped_where_anything_does() -> None:
    assert unit("fence.service")["Unit"]["Wants"] == loader.STOP
    conditions = (SYSTEMD / loader.STOP).read_text().split("\n")
    for kind in ("wants", "requires"):
        folder = f"/etc/systemd/system/{loader.TARGET}.{kind}"
        assert f"ConditionDirectoryNotEmpty=|{folder}" in conditions
    for name in ("starts", "stops"):  # what left since, also when a stop of it was killed
        assert f"ConditionPathExists=|/run/bootstrap/{name}" in conditions
    assert unit(loader.STOP)["Unit"]["StartLimitIntervalSec"] == "0"
    longest_seconds = loader.MOST["stop_seconds"] + 10
    assert float(unit(loader.STOP)["Service"]["TimeoutStartSec"]) > longest_seconds


def test_the_fence_is_not_refused_while_the_node_shuts_down() -> None:
    fence = unit("fence.service")
    assert fence["Unit"]["DefaultDependencies"] == "no"
    assert fence["Service"]["Slice"] == "system.slice"  # its own would be stopped by then
    assert unit(loader.STOP)["Unit"]["DefaultDependencies"] == "no"


def test_a_boot_stops_what_runs_with_the_role_before_anything_else() -> None:
    assert unit("bootup.service")["Service"]["ExecStartPre"] == "-/bin/sh /etc/bootstrap/stop.sh"


def test_a_step_of_the_wall_clock_starts_the_fence_as_often_as_it_happens() -> None:
    timer = unit("fence-clock.timer")
    assert dict(timer["Timer"]) == {"OnClockChange": "yes", "Unit": "fence.service"}
    assert unit("fence.service")["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_agent_may_read_the_hosts_clock_and_no_other_device() -> None:
    service = unit("loader.service")["Service"]
    assert (service["DevicePolicy"], service["DeviceAllow"]) == ("closed", "char-ptp r")
    assert Path(loader.HOST_CLOCK).name.startswith("ptp")


def test_the_agent_may_write_where_it_has_to_and_nowhere_else() -> None:
    paths, service = loader.Paths(), unit("loader.service")["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"].split() == [str(paths.etc), str(paths.html)]
    assert Path("/run", service["RuntimeDirectory"]) == paths.run
    assert Path("/var/log", service["LogsDirectory"]) == paths.logfile.parent


@pytest.mark.parametrize("name", ["loader.service", "handover.service"])
def test_the_agent_may_write_to_pages_of_others_and_has_no_other_right_of_root(name: str) -> None:
    service = unit(name)["Service"]
    assert service["CapabilityBoundingSet"].split() == ["CAP_DAC_OVERRIDE", "CAP_FOWNER"]
    assert service["NoNewPrivileges"] == "yes"


def test_promises_outlive_the_run_that_made_them() -> None:
    for name in ("loader.service", "bootup.service"):
        assert unit(name)["Service"]["RuntimeDirectoryPreserve"] == "yes"


def test_bootup_comes_before_apache_and_the_timer_and_handing_over_before_apache_stops() -> None:
    before = " ".join(
        line.partition("=")[2]
        for line in (SYSTEMD / "bootup.service").read_text().splitlines()
        if line.startswith("Before=")
    )
    assert {"apache2.service", "loader.timer", "loader.service"} <= set(before.split())
    assert "apache2.service" in unit("handover.service")["Unit"]["After"].split()


def test_a_service_is_started_only_while_what_the_agent_asked_for_was_not_stopped() -> None:
    condition = unit("start-active.service")["Unit"]["ConditionPathExists"]
    assert condition == str(loader.Paths().run / "starts")
    script = (SYSTEMD.parent / "agent" / "stop.sh").read_text()
    assert "run=/run/bootstrap\n" in script
    assert f"mv -f {condition} ".replace("/run/bootstrap", "$run") in script


def test_only_the_timers_and_what_runs_at_boot_are_enabled() -> None:
    assert [name for name in UNITS if unit(name).has_section("Install")] == [
        "bootup.service",
        "fence-clock.timer",
        "health.path",
        "install.service",
        "loader.timer",
        "rollback.timer",
        "setup.service",  # where there is an application to set up
    ]
