"""Python as on Windows, for a `python -m deploy` that has this folder in its PYTHONPATH.

The packages that we use are known to work there and are loaded before; then what only Linux has is
taken away, and a text file that is opened without saying its encoding is an error, since there the
default is not UTF-8.
"""

import importlib
import importlib.abc
import os
import signal
import socket
import sys
import time
import types
import warnings

PACKAGES = (
    *("click", "click._termui_impl", "requests", "responses", "rich.console", "rich.live"),
    *("rich.progress", "rich.table", "rich.traceback", "yaml"),
    *("azure.identity", "azure.mgmt.compute", "azure.mgmt.network", "azure.storage.blob"),
    *("azure.mgmt.resource.resources", "azure.mgmt.storage", "azure.mgmt.storage.models"),
)
LINUX = frozenset(
    "crypt curses fcntl grp pty pwd resource spwd syslog termios tty".split()  # noqa: SIM905
)
ONLY_THERE = {
    os: "chown fchmod fchown fork getegid geteuid getgid getuid killpg lchown mkfifo openpty pread"
    " sched_getaffinity setsid statvfs sysconf uname O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK",
    signal: "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGSTOP SIGUSR1 alarm pthread_sigmask",
    socket: "AF_UNIX",
    time: "CLOCK_BOOTTIME CLOCK_MONOTONIC CLOCK_REALTIME clock_gettime tzset",
}


class NotOnWindows(importlib.abc.MetaPathFinder):
    """Refuses to find what Windows does not have."""

    def find_spec(self, name: str, *_: object) -> None:
        """Nothing, or `ModuleNotFoundError` as of a module that is not there."""
        if name.partition(".")[0] in LINUX:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def windows_locks() -> types.ModuleType:
    """Windows' module for locks, as far as we use it."""
    import fcntl  # noqa: PLC0415 - while it is there

    module = types.ModuleType("msvcrt")
    at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
    vars(module)["LK_NBLCK"] = 2
    vars(module)["locking"] = lambda descriptor, *_: fcntl.flock(descriptor, at_once)
    return module


def become_windows() -> None:
    """Load what we use, then take away what is not there on Windows."""
    for name in PACKAGES:
        importlib.import_module(name)
    sys.modules["msvcrt"] = windows_locks()
    for name in [*sys.modules]:
        if name.partition(".")[0] in LINUX:
            del sys.modules[name]
    sys.meta_path.insert(0, NotOnWindows())
    for module, names in ONLY_THERE.items():
        for name in names.split():
            vars(module).pop(name, None)
    sys.platform = "win32"
    ours = r"(__main__|deploy|agent)\b"
    warnings.filterwarnings("error", category=EncodingWarning, module=ours)


become_windows()
