"""A root file system in a box: an overlay of it, its own processes, one of the lab's networks.

The nodes are booted in such a box; the web site and the load balancer are one command each in it.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import Refusal
from deploy.lab import STATE, process
from deploy.lab.mounts import mount_overlay, remove_tree
from deploy.lab.network import PREFIX

LEADER_SECONDS = 10.0
NSPAWN_STATE = Path("/run/systemd/nspawn")
NSPAWN = [
    *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--console=pipe"),
    # The node's own: no name server, time zone or journal of this machine in it.
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
]

ENVIRONMENT = [
    *("env", "-i", "HOME=/root", "LANG=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
]
"""Begins a command in a node: nothing of this machine's is in its environment."""


@dataclass(frozen=True)
class Container:
    """One box: `name` is its hostname, its control group and its folder in the lab's state."""

    name: str
    namespace: str  # of the network

    @property
    def folder(self) -> Path:
        """Holds root (the mounted overlay), upper (what was changed in it) and console.log."""
        return STATE / "containers" / self.name

    @property
    def root(self) -> Path:
        """The box's file system as this machine sees it."""
        return self.folder / "root"

    @property
    def is_running(self) -> bool:
        """Whether any process lives in the box."""
        return process.is_running(self.name)


def mount(container: Container, lower: Path) -> None:
    """Make the box's file system available, as it was left or else as `lower` is."""
    mount_overlay(lower, container.folder)


def start(container: Container, *arguments: str) -> None:
    """Start the box: `arguments` end the command line of systemd-nspawn."""
    _remove_leftovers(container)
    command = [
        "env",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
        *NSPAWN,
        f"--directory={container.root}",
        f"--machine={PREFIX}{container.name}",
        f"--hostname={container.name}",
        f"--network-namespace-path=/run/netns/{container.namespace}",
        *arguments,
    ]
    process.start(container.name, command, log=container.folder / "console.log")


def stop(container: Container) -> None:
    """Kill everything in the box at once; its file system stays."""
    process.kill(container.name)
    _remove_leftovers(container)


def stop_all() -> None:
    """Kill everything in every box that there is, also after a crash of `lab up`."""
    process.kill_all()
    for folder in (STATE / "containers").glob("*"):
        _remove_leftovers(Container(folder.name, namespace=""))


def command_inside(container: Container, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in the box as its root.

    Raises `Refusal` if nothing runs in the box.
    """
    namespaces = "--mount --uts --ipc --net --pid --cgroup"
    enter = ["nsenter", f"--target={_leader(container)}", *namespaces.split()]
    return [*enter, *ENVIRONMENT, f"TERM={os.environ.get('TERM', 'dumb')}", *command]


def require_running(container: Container) -> None:
    """Raise `Refusal` if nothing runs in the box."""
    if not container.is_running:
        raise Refusal(f"{container.name} is off: `lab on {container.name}` starts it.")


def _leader(container: Container) -> int:
    """The process that is number 1 inside, as this machine counts it."""
    deadline = time.monotonic() + LEADER_SECONDS
    while time.monotonic() < deadline:
        require_running(container)
        for pid in process.pids(container.name):
            if _is_first_of_its_namespace(pid):
                return pid
        time.sleep(process.POLL_SECONDS)
    raise Refusal(f"{container.name} did not start: see {container.folder / 'console.log'}.")


def _is_first_of_its_namespace(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False  # it ended meanwhile
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
    return len(numbers) == 3 and numbers[-1] == "1"


def _remove_leftovers(container: Container) -> None:
    """What systemd-nspawn leaves when it is killed, and would stumble over when started again."""
    for kind in ("propagate", "unix-export"):
        remove_tree(NSPAWN_STATE / kind / f"{PREFIX}{container.name}")
    if container.root.exists():
        root = container.root.stat()
        (NSPAWN_STATE / f"locks/inode-{root.st_dev}:{root.st_ino}").unlink(missing_ok=True)
