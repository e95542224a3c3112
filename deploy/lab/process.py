"""Processes of the lab: short ones are waited for, long ones live in a control group each.

A control group (cgroup2) is what makes power-off exact: every process of a node dies at once, and
`lab down` finds them all, also after a crash of `lab up`.
"""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy import PROJECT, Refusal

GROUPS = PROJECT
START_SECONDS = 5.0
KILL_SECONDS = 10.0
POLL_SECONDS = 0.02


def output_of(
    command: Sequence[str], *, text: str | None = None, seconds: float = 20, group: str = ""
) -> str:
    """The standard output of a short command that was given `text` on standard input.

    With a `group`, what it starts can be killed by that name, also after a crash of ours.
    Raises `Refusal` with what the command said, if it fails or takes longer than `seconds`.
    """
    words = " ".join(command)
    if group:
        command = _entering(group, command)
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refusal(f"`{words}` did not end within {seconds:g} s.") from None
    except OSError as error:
        raise Refusal(f"`{words}` can't be run: {error.strerror}.") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        raise Refusal(f"`{words}` failed: {said}")
    return done.stdout


def start(group: str, command: Sequence[str], *, log: Path, folder: Path = Path("/")) -> None:
    """Start a long-running command in a control group of its own; its output goes to `log`.

    When this returns the group has the process, or the process has ended already.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            _entering(group, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not is_running(group) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def tail(log: Path) -> str:
    """The last lines of a log; empty where there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def is_running(group: str) -> bool:
    """Whether any process of the group is alive."""
    events = _groups() / group / "cgroup.events"
    return events.exists() and "populated 1" in events.read_text(encoding="utf-8")


def pids(group: str) -> Iterator[int]:
    """The processes of the group and of the groups below it."""
    for listing in sorted((_groups() / group).rglob("cgroup.procs")):
        with contextlib.suppress(OSError):  # the group has gone meanwhile
            yield from map(int, listing.read_text(encoding="utf-8").split())


def freeze(group: str, frozen: bool) -> None:
    """Stop every process of the group where it stands, or let them go on."""
    (_groups() / group / "cgroup.freeze").write_text("1" if frozen else "0", encoding="ascii")


def kill(group: str) -> None:
    """Kill every process of the group at once, frozen ones too, and remove the group.

    Raises `Refusal` if one of them survives for ten seconds (a stuck disk, for example).
    """
    path = _groups() / group
    if not path.exists():
        return
    (path / "cgroup.kill").write_text("1", encoding="ascii")
    deadline = time.monotonic() + KILL_SECONDS
    while is_running(group):
        if time.monotonic() > deadline:
            raise Refusal(f"processes of {path} survive being killed: see their cgroup.procs.")
        time.sleep(POLL_SECONDS)
    _remove_tree(path)


def kill_all() -> None:
    """Kill every process of the lab and remove its control groups."""
    kill("")
    # On a hybrid host systemd-nspawn mirrors its group in the systemd hierarchy.
    _remove_tree(Path("/sys/fs/cgroup/systemd") / GROUPS)


def _entering(group: str, command: Sequence[str]) -> list[str]:
    path = _groups() / group
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(
            f"{path}: {error.strerror}: the lab needs cgroup2 mounted where root may write."
        ) from error
    # The shell moves itself before it becomes the command: no child can escape the group.
    return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(path), *command]


def _groups() -> Path:
    """The folder of the lab's groups; raises `Refusal` on a machine without cgroup2."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mount) / GROUPS
    raise Refusal("no cgroup2 in /proc/mounts: the lab needs it, and Linux 5.14 or newer.")


def _remove_tree(path: Path) -> None:
    if not path.exists():
        return
    folders = [folder for folder in path.rglob("*") if folder.is_dir()]
    for folder in [*sorted(folders, reverse=True), path]:
        folder.rmdir()
