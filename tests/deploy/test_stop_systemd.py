"""The script that stops what runs with the role, by a systemd of our own: what is left, and when.

The manager is a user's, in namespaces of its own: it boots nothing, and this machine's has no part.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = (Path(__file__).parents[2] / "agent" / "stop.sh").read_text(encoding="utf-8")
SYSTEMD = Path("/lib/systemd/systemd")
STOP_SECONDS = 2
TARGETS = ("active", "basic", "default", "shutdown", "sockets", "sysinit", "timers")
LOOP = """ExecStart=/bin/sh -c 'trap "" TERM; while :; do touch {root}/runs; sleep 0.05; done'"""
PART = "[Unit]\nPartOf=active.target\n"
# Clients that come as long as there is somebody, and stay: root's path is the first word.
CLIENTS = """import socket, sys, time
links = []
while True:
    links.append(socket.socket(socket.AF_UNIX))
    links[-1].connect_ex(sys.argv[1] + "/socket")
    time.sleep(0.2)
"""
# As pam_systemd does it: the main process moves itself.
IN_A_SESSION = """ExecStart=/bin/sh -c 'mkdir {scope}; echo $$$$ > {scope}/cgroup.procs; \\
(trap "" TERM; while :; do touch {root}/runs; sleep 0.05; done) & wait'
"""
STANDS_STILL = "kill -STOP $manager; (sleep 1; kill -CONT $manager) &"
LEAVES = """rm {root}/units/active.target.wants/alias.service
systemctl daemon-reload
echo 2 alias.service > /run/bootstrap/starts
"""
STANDS_STILL_AS_IT_STOPS = """(
    until systemctl is-active {joined} | grep -q deactivating; do sleep 0.05; done
    kill -STOP $manager
    sleep 3
    kill -CONT $manager
) > /dev/null 2>&1 &"""
# In the mount namespace: no cgroup but ours, and the folder that a user's manager asks for.
BOOT = """set -eu
mount -t proc proc /proc
mount -t tmpfs none /run
mkdir -p /run/systemd/system /run/manager /run/bootstrap
chmod 700 /run/manager
mount -t tmpfs none /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir /sys/fs/cgroup/manager /sys/fs/cgroup/test
echo $$ > /sys/fs/cgroup/manager/cgroup.procs
export XDG_RUNTIME_DIR=/run/manager SYSTEMD_UNIT_PATH=$1/units HOME=$1 PATH=$1/bin:$PATH
/lib/systemd/systemd --user < /dev/null > /dev/null 2>&1 &
manager=$!
echo $$ > /sys/fs/cgroup/test/cgroup.procs
for _ in $(seq 100); do [ ! -S /run/manager/systemd/private ] || break; sleep 0.05; done
systemctl start active.target
$3
for _ in $(seq 100); do [ ! -e $1/runs ] || break; sleep 0.05; done
$2
sh $1/stop.sh
sleep 2  # what still runs shows
"""


def group() -> Path | None:
    """Where a control group of our own may be made; None where it may not, or no systemd is."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found = [place for _, place, kind, *_ in mounts if kind == "cgroup2"]
    if os.geteuid() != 0 or not found or not SYSTEMD.exists() or not shutil.which("unshare"):
        return None
    return Path(found[0], f"stop-test-{os.getpid()}")


def remove(empty: Path) -> None:
    """A control group whose processes have been killed."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return empty.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{empty} is not empty"
            time.sleep(0.05)


class Case(NamedTuple):
    """What runs, and what happens to it before it is stopped: lines of a shell."""

    units: dict[str, str]
    joined: str
    first: str = ""  # before anything of it runs
    meanwhile: str = ""
    alias: str = ""  # of what joined


RESTARTS = PART + "[Service]\nRestart=always\nRestartSec=0\n" + LOOP
CASES = {
    "ignores SIGTERM": Case({"writer.service": PART + "[Service]\n" + LOOP}, "writer.service"),
    "a timer's": Case(
        {
            "job.timer": PART + "[Timer]\nOnActiveSec=10ms\nAccuracySec=10ms\n",
            "job.service": "[Service]\n" + LOOP,
        },
        "job.timer",
    ),
    "one that requires another": Case(
        {
            "disk.service": PART + "[Service]\nExecStart=/bin/sleep 1000\n",
            "writer.service": PART + "Requires=disk.service\nAfter=disk.service\n"
            "[Service]\n" + LOOP,
            "active.target.d/more.conf": "[Unit]\nWants=writer.service\n",
        },
        "disk.service",
    ),
    "systemd stands still": Case(
        {"writer.service": RESTARTS}, "writer.service", meanwhile=STANDS_STILL
    ),
    "systemd stands still, and has escaped its name": Case(
        {"io.service": "[Service]\n" + LOOP}, "io.service", meanwhile=STANDS_STILL_AS_IT_STOPS
    ),
    "systemd stands still, and what has left has another name": Case(
        {"writer.service": "[Service]\n" + LOOP},
        "writer.service",
        meanwhile=LEAVES + STANDS_STILL_AS_IT_STOPS,
        alias="alias.service",
    ),
    "a socket's connections": Case(
        {
            "job.socket": PART + "[Socket]\nAccept=yes\nListenStream={root}/socket\n",
            "job@.service": "[Service]\n" + LOOP,
        },
        "job.socket",
        first="{python} {root}/clients.py {root} &",
        meanwhile="systemctl daemon-reload",
    ),
    "moved into a session": Case(
        {"writer.service": PART + "[Service]\n" + IN_A_SESSION}, "writer.service"
    ),
}


@pytest.mark.skipif(group() is None, reason="needs root, control groups (v2) and systemd")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_nothing_of_it_runs_once_the_time_for_its_stop_is_over(tmp_path: Path, case: Case) -> None:
    told = {
        "root": str(tmp_path),
        "python": sys.executable,
        "joined": case.joined,
        "scope": "/sys/fs/cgroup/manager/session-9.scope",
    }
    for name, text in {**{f"{name}.target": "[Unit]\n" for name in TARGETS}, **case.units}.items():
        (tmp_path / "units" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "units" / name).write_text(text.format(**told))
    if case.alias:
        (tmp_path / "units" / case.alias).symlink_to(case.joined)
    wants = tmp_path / "units/active.target.wants"
    wants.mkdir()
    (wants / (case.alias or case.joined)).symlink_to(f"../{case.alias or case.joined}")
    (tmp_path / "clients.py").write_text(CLIENTS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text('#!/bin/sh\nexec /usr/bin/systemctl --user "$@"\n')
    (tmp_path / "bin/systemctl").chmod(0o755)
    (tmp_path / "loader.conf").write_text(f"stop_seconds = {STOP_SECONDS}\n")
    script = SCRIPT.replace("/etc/systemd/system", f"{tmp_path}/units")
    script = script.replace("/etc/bootstrap", str(tmp_path))
    began = f"date +%s.%N > {tmp_path}/began\n"
    (tmp_path / "stop.sh").write_text(began + script.replace("fs/cgroup ", "fs/cgroup/manager "))
    boot = BOOT.replace("$2", case.meanwhile.format(**told))
    boot = boot.replace("$3", case.first.format(**told))
    (tmp_path / "boot.sh").write_text(boot)
    mine = group()
    assert mine is not None
    mine.mkdir()
    # Half a second is what a stop has to spare: not beside others at the lowest priority (run.sh).
    enter = f"renice -n 0 $$ > /dev/null; echo $$ > {mine}/cgroup.procs; exec unshare "
    enter += "--mount --cgroup --pid --fork --kill-child --propagation private "
    enter += f"sh {tmp_path}/boot.sh {tmp_path}"
    try:
        ran = subprocess.run(
            ["sh", "-c", enter],
            timeout=60,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        assert ran.returncode == 0, ran.stderr
        last_run = (tmp_path / "runs").stat().st_mtime
        assert last_run - float((tmp_path / "began").read_text()) < STOP_SECONDS
    finally:
        (mine / "cgroup.kill").write_text("1")  # all below as well
        groups = [*sorted((each for each in mine.rglob("*") if each.is_dir()), reverse=True), mine]
        for each in groups:
            remove(each)
