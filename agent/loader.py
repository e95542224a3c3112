#!/usr/bin/env python3
"""One run of the cluster's agent: who is up, who is active, is it me.

systemd starts this file on every node at the same seconds of each minute. One run:

 1. releases: ask the web site for a newer one, and keep it if an operator signed it;
 2. identity: the instance metadata's name and private address, the load balancer's public one;
    and what Azure announces for this machine: before that it makes way for another node;
 3. the nodes in order of preference, by the release in effect (`nodes_info.json` without one),
    and how many are a majority;
 4. every peer at once: does its Apache answer, and what does its marker about us say?
 5. markers: `<peer>.html` here means "we see <peer>", and carries our vote;
 6. decision: with the promised votes of a majority the first node in the order is active;
 7. `probe.html`, which the load balancer asks for, exists on the active node alone.

Steps 4 to 7 repeat until the outcome is settled: a look. A run looks again and again, each time
at the same moment as every other node, and ends before systemd starts the next one. What is
unknown counts against being active.
The rules, and why two nodes are never active: docs/protocol.md, whose sections are named below.

Files of ours: /etc/bootstrap/{loader.*,releases,effective,cluster*,allowed_signers,promise_seconds,
term,__pycache__}, /var/www/html/{status.json,<peer>.html,probe.html} (/var/www/bootstrap/ with a
`cluster_port` but 80), /run/bootstrap (this boot's promises and leases), /var/log/bootstrap.

    loader.py               one run, as the timer starts it
    loader.py --dry-run     print what this node sees and would do; change nothing
    loader.py --self-check  say whether this very file could run here; ask nobody, change nothing
    loader.py --version     print the version
    loader.py bootup        forget the last boot's probe and markers (bootup.service)
    loader.py leave         hand the role over, then stop (handover.service)
"""

import contextlib
import functools
import gc
import hashlib
import hmac
import json
import logging
import os
import queue
import re
import shutil
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, NamedTuple, TextIO, get_args, get_origin

__version__ = "0.2.0"

if __name__ == "__main__":
    gc.disable()  # a process of one period: with `gc.freeze` at its end a tenth of its CPU

import requests

# What requests lets through while a body is read, and what it has inside.
from urllib3.exceptions import HTTPError, ProtocolError

# ------------------------------------------------ files, clocks, systemd

HOST_CLOCK = "/dev/ptp_hyperv"
PAUSE_NOTICED_SECONDS = 0.25


class BadInput(Exception):  # noqa: N818 - it names what is wrong, the caller decides what follows
    """One sentence: the file, the value, and what would be right."""


class Busy(BadInput):
    """Another run is under way: whatever it makes of this node is not for us to undo."""


class Paths:
    """Where everything lies; a test gives a folder of its own as `root`."""

    def __init__(self, root: str = "/") -> None:
        self.etc = Path(root, "etc/bootstrap")
        own = Path(root, "etc/apache2-bootstrap").is_dir()  # a web server of the cluster's own
        self.html = Path(root, "var/www/bootstrap" if own else "var/www/html")
        self.run = Path(root, "run/bootstrap")
        self.logfile = Path(root, "var/log/bootstrap/logfile.log")
        self.loader = self.etc / "loader.py"
        self.newer = self.etc / "loader.tmp.py"  # a release's, while it is checked
        self.previous = self.etc / "loader.previous.py"
        self.trial = self.etc / "loader.trial"  # SHA-256 of a loader.py without two good runs yet
        self.refused = self.etc / "loader.refused"  # of one that failed here (rollback.service)
        self.failed = self.etc / "loader.failed"  # the same by units from before releases
        self.releases = self.etc / "releases"  # GENERATION/{release.json,loader.py}
        self.effective = self.etc / "effective"  # the generation that this node goes by
        self.signers, self.cluster = self.etc / "allowed_signers", self.etc / "cluster"  # its name
        self.nodes_info = self.etc / "nodes_info.json"
        self.key, self.next_keys = self.etc / "cluster.key", self.etc / "cluster.key.next"
        self.conf = self.etc / "loader.conf"
        self.probe = self.html / "probe.html"
        self.staged = self.html / ".probe.html"  # fence.service removes both
        self.status = self.html / "status.json"
        self.lease_until = self.run / "lease_until"
        self.state = self.run / "state.json"
        self.booted = self.run / "booted"
        self.promised = self.etc / "promise_seconds"
        self.term = self.etc / "term"
        self.role, self.identity = self.run / "role", self.run / "identity.json"
        self.announced = self.run / "announced.json"  # kinds of scheduled events,
        self.approved = self.run / "approved.json"  # and ids
        self.asked = self.run / "release.json"  # what came of asking for a release
        self.good_run = self.run / "good_run"  # the mark of the trial that has had one
        self.trial_failures = self.run / "trial_failures"  # a line each (rollback.service)
        self.lock = self.run / "run.lock"
        self.health = self.run / "health"
        self.starts = self.run / "starts"  # stop.sh takes it away: nothing is started after that
        self.stops = self.run / "stops"  # to there, until all of it has stopped
        self.systemd = Path(root, "run/systemd/private")  # its manager's socket, root's alone
        self.generated = Path(root, "run/systemd/generator")  # by /etc/systemd/system-generators
        self.boot_id = Path(root, "proc/sys/kernel/random/boot_id")
        self.unit = Path(root, "etc/systemd/system/loader.service")


def boot_seconds() -> float:
    """The boot clock: goes on in suspend, no step of the wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clocks(NamedTuple):
    """A reading of two clocks, and two made of all readings so far (docs/protocol.md section 2)."""

    boot_seconds: float
    raw_seconds: float
    fast_seconds: float  # leases count on it: since it began neither went faster
    slow_seconds: float  # promises do: neither went slower


def advance(last: Clocks | None, boot: float, raw: float) -> Clocks:
    """The clocks at the next reading; the two that are made begin at the boot clock's."""
    if last is None:
        return Clocks(boot, raw, boot, boot)
    steps = boot - last.boot_seconds, raw - last.raw_seconds
    fast, slow = max(0.0, *steps), max(0.0, min(steps))
    return Clocks(boot, raw, last.fast_seconds + fast, last.slow_seconds + slow)


def read_clocks(last: Clocks | None = None) -> Clocks:
    """The clocks now."""
    return advance(last, boot_seconds(), time.clock_gettime(time.CLOCK_MONOTONIC_RAW))


def host_seconds() -> float | None:
    """The host's clock, which goes on while it pauses this machine; None where there is none."""
    # By its name alone: another PTP clock is a network card's. The number: clock_gettime(2).
    try:
        with Path(HOST_CLOCK).open("rb", buffering=0) as clock:
            return time.clock_gettime((~clock.fileno() << 3) | 3)
    except OSError:
        return None


def process_age_seconds() -> float:
    """How long ago this process began; proc(5), the 22nd field of stat."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return boot_seconds() - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def utc(wall_seconds: float) -> str:
    """A wall-clock time for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall_seconds))


def read_text(path: Path, what_is_right: str) -> str:
    """The file's text; raises `BadInput` with `what_is_right` where it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise BadInput(f"{path}: {why}: {what_is_right}.") from error


def read_mark(path: Path) -> str | None:
    """The file's text, None where it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def read_json(path: Path) -> Any:
    """The JSON of a file of ours, None where there is none or it is not whole."""
    with contextlib.suppress(ValueError):
        return json.loads(read_mark(path) or "")
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, "" when it can't be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def open_plain(path: Path, flags: int) -> int:
    """Open a file, but no link or pipe that others have put there instead. Raises `OSError`."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is not a file")
    return descriptor


def remove(path: Path) -> bool:
    """Remove what has this name, move a folder away; whether there was any. Raises `OSError`."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        path.rename(path.with_name(f".{path.name}.{time.time_ns()}"))
    return True


def sync_folder(folder: Path) -> None:
    """Have the folder's names on the disk as they are now. Raises `OSError`."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_atomic(
    path: Path, content: str | bytes, *, sync: bool = False, mode: int = 0o644
) -> None:
    """The one writer of files: `path` appears whole or not at all. Raises `OSError`.

    `sync`: it is on the disk then, and its name.
    Where others may write to the folder, too: what is staged is a new file, no link is followed.
    """
    staged, new = path.with_name(f".{path.name}.tmp"), os.O_WRONLY | os.O_CREAT | os.O_EXCL
    data = content.encode() if isinstance(content, str) else content
    try:
        try:
            number = os.open(staged, new, mode)
        except FileExistsError:  # of a process that was killed, or somebody else's
            remove(staged)
            number = os.open(staged, new, mode)
        with os.fdopen(number, "wb") as file:
            os.fchmod(file.fileno(), mode)  # Apache reads most, whatever the umask
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        try:
            os.replace(staged, path)  # noqa: PTH105 - a look writes ten files, and pathlib is slow
        except IsADirectoryError:
            remove(path)
            os.replace(staged, path)  # noqa: PTH105 - as above
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            remove(staged)
        error.filename = str(path)  # a write that fails does not say of which file
        raise


# https://dbus.freedesktop.org/doc/dbus-specification.html#message-protocol-marshaling
SYSTEMD = "org.freedesktop.systemd1"
ALIGNED = {"s": 4, "o": 4, "b": 4, "a": 4, "t": 8, "(": 8}
"""Where a value of a type may begin, in bytes; the other types begin anywhere."""
NUMBERS = {"y": "<B", "b": "<I", "t": "<Q"}


def packed(data: bytes, kind: str, value: Any) -> bytes:
    """`data`, and behind it a value of a D-Bus type; a variant and a struct are made of pairs."""
    data += bytes(-len(data) % ALIGNED.get(kind[0], 1))
    if kind in ("s", "o", "g"):
        text: bytes = value.encode() + b"\0"
        return data + struct.pack("<B" if kind == "g" else "<I", len(text) - 1) + text
    if kind in NUMBERS:
        return data + struct.pack(NUMBERS[kind], value)
    if kind == "v":
        return packed(packed(data, "g", value[0]), *value)
    if kind[0] == "(":
        return functools.reduce(lambda done, pair: packed(done, *pair), value, data)
    empty = data + bytes(4) + bytes(-(len(data) + 4) % ALIGNED.get(kind[1], 1))
    whole = functools.reduce(lambda done, each: packed(done, kind[1:], each), value, empty)
    return data + struct.pack("<I", len(whole) - len(empty)) + whole[len(data) + 4 :]


def answer_of_systemd(stream: BinaryIO) -> bytes:
    """The body of its answer. Raises `OSError`, with its sentence where the call failed."""
    for _ in range(100):  # signals to everybody may come before
        head = stream.read(16)
        if len(head) < 16:
            break
        length, _, fields = struct.unpack("<III", head[4:])
        said = stream.read(fields + -fields % 8 + length)[-length or None :]
        # What was asked for may be so already: the answer to an earlier call was lost.
        if head[1] == 3 and b"already loaded" not in said and b"not loaded" not in said:
            raise OSError(said[4:].rstrip(b"\0").decode(errors="replace"))
        if head[1] in (2, 3):  # a method's return, an error
            return said
    raise OSError("it hung up")


def call_systemd(
    paths: Paths,
    member: str,
    *arguments: tuple[str, Any],
    interface: str = f"{SYSTEMD}.Manager",
    of_unit: str = "",
) -> bytes:
    """The answer of systemd's manager, asked on root's own socket. Raises `OSError`, after 2 s."""
    body = b""
    for argument in arguments:
        body = packed(body, *argument)
    place = f"/{SYSTEMD.replace('.', '/')}{of_unit and f'/unit/{of_unit}'}"
    told = ("o", place), ("s", interface), ("s", member), ("s", SYSTEMD)
    fields = [*zip((1, 2, 3, 6), told, strict=True), (8, ("g", "".join(k for k, _ in arguments)))]
    head = b"l\1\0\1" + struct.pack("<II", len(body), 1)
    head = packed(head, "a(yv)", [(("y", code), ("v", field)) for code, field in fields])
    user = str(os.geteuid()).encode().hex().encode()  # no program: it is called at each look
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(2)
            link.connect(str(paths.systemd))
            link.sendall(b"\0AUTH EXTERNAL " + user + b"\r\nBEGIN\r\n")
            stream = link.makefile("rb")
            if not stream.readline().startswith(b"OK"):  # what comes before is not looked at
                raise OSError("it does not know us")
            link.sendall(head + bytes(-len(head) % 8) + body)
            return answer_of_systemd(stream)
    except OSError as error:
        raise OSError(f"can't reach systemd: {error.strerror or error}") from error


TARGET, START, STOP = "active.target", "start-active.service", "stop-active.service"


class Service(NamedTuple):
    """What systemd says of what runs with the role: the units that joined `TARGET`."""

    # "stopped", "changing", "running", "failed", "stopping", "unknown"; "": nothing joined
    state: str = ""
    failed: str = ""  # the first unit that has


def joined_units(paths: Paths) -> tuple[str, ...]:
    """The units that have joined `TARGET`: links that `systemctl enable` makes; or were started."""
    links = paths.unit.parent.glob(f"{TARGET}.[wr]*/*.*")
    # One that has left since may still run. A stop moves the first to the second: in this order.
    told = [read_mark(path) or "" for path in (paths.starts, paths.stops)]
    started = [unit for line in "".join(told).splitlines() for unit in line.split()[1:]]
    return tuple(sorted({*started, *(link.name for link in links)}))


def is_spared(paths: Paths, name: str, kind: str) -> bool:
    """Whether systemd never kills a unit. Raises `OSError`."""
    # https://www.freedesktop.org/wiki/Software/systemd/dbus/: how a unit's path is written
    place = "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):02x}" for c in name)
    asked = ("s", f"{SYSTEMD}.{kind.capitalize()}"), ("s", "SendSIGKILL")
    properties = "org.freedesktop.DBus.Properties"
    said = call_systemd(paths, "Get", *asked, interface=properties, of_unit=place)
    return not int.from_bytes(said[-4:], "little")


def why_outlives(paths: Paths, name: str, by: set[str], joined: tuple[str, ...]) -> str:
    """Why a unit could run without the role: started by something else (`by`), or not killed."""
    kind = name.rpartition(".")[2]
    if others := by - {TARGET, *joined}:
        return f"{name} is started by {min(others)}, too: disable it there"
    gated = paths.starts.exists() or (paths.generated / f"{name}.d/role.conf").exists()
    if TARGET in by and not gated:  # the files are made anew by each daemon-reload
        return f"{name} could be started without the role: run systemctl daemon-reload"
    if kind in ("target", "slice"):
        return f"{name} has joined, and does not stop its units: let them join instead"
    try:
        if kind in ("service", "socket", "mount", "swap") and is_spared(paths, name, kind):
            return f"{name} has SendSIGKILL=no, and could outlive the lease"
    except OSError as error:
        if not paths.starts.exists():  # else it was asked when this node took the role
            return f"whether {name} is killed is not known: {error}"
    return ""


def why_not_killed(paths: Paths, joined: tuple[str, ...]) -> str:
    """Which joined unit could run without the role, and why; "" for none."""
    if joined and not (paths.unit.parent / STOP).exists():  # a node that was made before
        return f"{joined[0]} has joined, and there is no {STOP} for the fence to start"
    by: dict[str, set[str]] = {name: set() for name in joined}
    for link in paths.unit.parent.glob("*.[wr]*/*.*") if joined else ():
        by.get(link.name, set()).add(link.parent.stem)
    whys = (why_outlives(paths, name, starters, joined) for name, starters in by.items())
    return next(filter(None, whys), "")


def units_told(body: bytes) -> list[list[Any]]:
    """The structs of the answer to ListUnitsByNames: strings, but for the number of a job."""
    at, found = 8, []
    while at < len(body):
        at += -at % 8
        fields: list[Any] = []
        for kind in "ssssssouso":
            at += -at % 4
            number, at = int.from_bytes(body[at : at + 4], "little"), at + 4
            fields.append(number if kind == "u" else body[at : at + number].decode())
            at += 0 if kind == "u" else number + 1
        found.append(fields)
    return found


def service_now(paths: Paths, joined: tuple[str, ...]) -> Service:
    """What the units of the role do; "unknown" where systemd does not say."""
    if not joined:
        return Service()
    asked = [*joined, TARGET, START, STOP]
    try:
        told = units_told(call_systemd(paths, "ListUnitsByNames", ("as", asked)))
    except OSError as error:
        logging.warning("%s", error)
        return Service("unknown")
    states = {each[0]: each[3] for each in told}  # an alias has its unit's name here
    busy = {each[0] for each in told if each[7] or each[3].endswith("ing")}
    # One that can't be loaded (a typo, masked, not there) fails nothing: the target only wants it.
    bad = (each[0] for each in told if each[3] == "failed" or each[2] != "loaded")
    broken = next((name for name in bad if name not in (TARGET, STOP)), "")
    if STOP in busy:
        return Service("stopping", broken)
    if busy or paths.stops.exists():  # a stop that was killed has to be begun again
        return Service("changing", broken)
    if "active" not in states.values():
        return Service("stopped", broken)
    # Without the target: who left PartOf= out, was started by hand, or what another unit failed.
    well = states.get(TARGET) == "active" and not broken
    return Service("running" if well else "failed", broken)


def tell_journal(sentence: str, *, warning: bool = False) -> None:
    """One line on standard output; the journal reads its level from the prefix (sd-daemon(3))."""
    prefix = ("<4>" if warning else "<6>") if "JOURNAL_STREAM" in os.environ else ""
    print(f"{prefix}{sentence}", flush=True)


# ------------------------------------------------ settings: what a node is told

DRIFT = 0.001  # rho: bound on the drift of two raw clocks
SLEW = 0.0834  # how much slower the fence's clock may be made to go (chrony: 83,333 ppm)
GAP_SECONDS = 0.75  # G: a run's end, Python's start and imports, if busy (docs/measurements.md)
READY_LOOKS = 2  # K: looks with a majority before a node may take the role from an active one
COMMIT_TRIES = 3  # failures to serve in a row before an elected node frees its voters
FORGIVEN_LOOKS = 10  # good looks in a row before a node's failures count from the first again
LOST = ("its probe was taken away", "its lease ended before it was renewed")  # by a quorum's node


def looks_to_prefer(failures: int) -> int:
    """How many good looks bring a preference back that so many failures have cost: 4 at most."""
    return min(READY_LOOKS + failures - 1, 4) if failures else 0


class Timing(NamedTuple):
    """Every length of time of the protocol, in seconds; made by `timing`, checked by `check`."""

    period_seconds: float  # from one run to the next
    look_seconds: float  # T: from one look to the next, within a run
    gap_seconds: float  # G: how much later the first look of a run may begin
    pause_seconds: float  # P: all clocks of a candidate may stand still for so long
    promise_seconds: float  # D: how long a vote binds the voter
    lease_seconds: float  # L: how long a grant lasts for the candidate, from its stamp
    margin_seconds: float  # F: between the fence and the end of the lease
    poll_seconds: float  # pause between two polls of a look
    stay_seconds: float  # least length of a look that is not calm
    rest_seconds: float  # who failed lately waits so long in a look for somebody else to ask
    end_seconds: float  # longest look that ends a run
    fresh_seconds: float  # a marker that has not changed for so long counts as absent
    timeout_seconds: float  # one request, and how long the first poll waits for an answer
    connect_seconds: float  # the first request to a peer may take so long, but nobody waits
    stop_seconds: float  # what runs with the role may take so long to stop; 0 where nothing does


def lease_of(promise_seconds: float, pause_seconds: float) -> float:
    """L: it ends before a promise of D does, paused for P or not (docs/protocol.md section 5)."""
    return promise_seconds * (1 - DRIFT) / (1 + DRIFT) - pause_seconds


def tick_spread_seconds(times: Timing) -> float:
    """W: how far apart two nodes' looks may be without costing the active node its role."""
    needed_seconds = times.look_seconds + times.gap_seconds + times.timeout_seconds
    return times.lease_seconds - times.margin_seconds - needed_seconds - times.poll_seconds


def check(times: Timing) -> Timing:
    """The same times, if they keep docs/protocol.md section 2. Raises `BadInput` if they don't."""
    period, look, lease = times.period_seconds, times.look_seconds, times.lease_seconds
    missing_seconds = 0.5 - tick_spread_seconds(times)
    if not 2 <= period <= 60 or period % 1 or 60 % period:
        wrong = f"period_seconds = {period:g}: use a divisor of 60 between 2 and 60."
    elif not 2 <= look <= period or look % 1 or period % look:
        wrong = f"look_seconds = {look:g}: use a divisor of period_seconds = {period:g}, 2 or more."
    elif not 0 <= times.pause_seconds <= 60:
        wrong = f"pause_seconds = {times.pause_seconds:g}: use 0 to 60."
    elif lease > lease_of(times.promise_seconds, times.pause_seconds):
        promise = f"a promise of {times.promise_seconds:g} s"
        wrong = f"a lease of {lease:g} s outlives {promise}: two nodes could be active."
    elif missing_seconds > 0:
        late = f"ends before a look every {look:g} s can renew it"
        wrong = f"a lease of {lease:g} s {late}: it needs {missing_seconds:.2f} s more."
    elif times.end_seconds + times.timeout_seconds >= look:
        wrong = f"a look of {times.end_seconds:g} s does not end within {look:g} s."
    else:
        return times
    raise BadInput(wrong)


def timing(
    period_seconds: float, look_seconds: float, pause_seconds: float, stop_seconds: float = 0
) -> Timing:
    """The times of docs/protocol.md section 2, all derived from those that the operator sets."""
    # Where a run is one look, each is as late as the one before: nothing is to be added for it.
    gap_seconds = GAP_SECONDS if look_seconds < period_seconds else 0.0
    promise_seconds = look_seconds + gap_seconds + max(2.5, 0.35 * look_seconds) + pause_seconds
    promise_seconds += stop_seconds / (1 - SLEW)  # so that L - F stays what it is
    lease_seconds = lease_of(promise_seconds, pause_seconds)
    margin_seconds = max(0.2, 0.05 * look_seconds) + SLEW * lease_seconds + stop_seconds
    timeout_seconds = max(0.3, 0.05 * look_seconds)
    poll_seconds = max(0.1, look_seconds / 80)
    round_seconds = timeout_seconds + poll_seconds
    times = Timing(
        *(period_seconds, look_seconds, gap_seconds, pause_seconds),
        *(promise_seconds, lease_seconds, margin_seconds, poll_seconds),
        stay_seconds=max(0.3 * look_seconds, 3 * round_seconds),
        rest_seconds=0.2 * look_seconds,
        end_seconds=min(0.85 * look_seconds, 0.95 * look_seconds - round_seconds - 0.1),
        fresh_seconds=max(1.45 * look_seconds, lease_seconds - margin_seconds),
        timeout_seconds=timeout_seconds,
        connect_seconds=min(3.0, max(0.3, 0.075 * look_seconds)),
        stop_seconds=stop_seconds,
    )
    return check(times)


def usual_look_seconds(period_seconds: float) -> float:
    """2, or the next number that divides a period that is not even."""
    return next((n for n in (2, 3, 5) if period_seconds % n == 0), period_seconds)


def brief_seconds(times: Timing) -> float:
    """How long a run waits for what does not decide: a newer agent, a name that is known."""
    return max(0.1, times.look_seconds / 40)


def worst_failover_seconds(times: Timing) -> float:
    """From the crash of the active node to its successor, at worst, if all look at one time."""
    # The promises to the node that crashed run out D after its last stamp was read. Collecting the
    # votes takes a round of requests, and another if one is lost; if a run ends before, the first
    # look of the next one does it.
    round_seconds = times.timeout_seconds + times.poll_seconds
    freed_seconds = times.promise_seconds + round_seconds
    into_the_look = freed_seconds % times.look_seconds
    if into_the_look + 2 * round_seconds > times.end_seconds:
        freed_seconds += times.look_seconds - into_the_look + times.gap_seconds
    return freed_seconds + 2 * round_seconds


FIXED = ("period_seconds", "look_seconds", "pause_seconds")  # while nodes run


class Settings(NamedTuple):
    """What /etc/bootstrap/loader.conf may say."""

    times: Timing = timing(20, 2, 5)
    peer_address: str = "public"  # or "private": which of a peer's addresses is asked
    bootstrap_url: str = ""  # of the web site's releases; empty: none is taken
    scheduled_events: bool = True  # make way for another node before what Azure announces
    cluster_port: int = 80  # of every node's markers and probe
    health_seconds: int = 5  # that each check of health.d may take
    unhealthy_after: int = 3  # rounds of checks in a row that failed
    healthy_after: int = 2  # that succeeded, after that
    start_seconds: int = 60  # what runs with the role may take so long to start
    stop_seconds: int = 10  # and to stop, before it is killed
    unhealthy: str = "stay"  # or "stop": what an active node does that has no heir


MOST = {
    **{"cluster_port": 65_535, "health_seconds": 60, "unhealthy_after": 100, "healthy_after": 100},
    **{"start_seconds": 3600, "stop_seconds": 60},
}


def count(found: Mapping[str, str], name: str, most: int) -> int:
    """A whole number of the settings. Raises `BadInput`."""
    text = found.get(name, str(Settings._field_defaults[name]))
    if not re.fullmatch("[1-9][0-9]{0,4}", text) or int(text) > most:
        raise BadInput(f"{name} = {text}: use a number from 1 to {most}.")
    return int(text)


def settings_of(sections: Mapping[str, Mapping[str, str]]) -> Settings:
    """The settings that those sections of the file say. Raises `BadInput`."""
    found = sections.get("loader", {})
    names = (*FIXED, *Settings._fields[1:])
    if unknown := [*sorted(set(found) - set(names)), *sorted(set(sections) - {"loader", ""})]:
        takes = f"{', '.join(names[:-1])} and {names[-1]}"
        raise BadInput(f"unknown {unknown[0]!r}: [loader] takes {takes}.")

    def number(name: str, usual: float) -> float:
        try:
            return float(found.get(name, usual))
        except ValueError:
            raise BadInput(f"{name} = {found[name]}: not a number.") from None

    period = number("period_seconds", 20)
    look = number("look_seconds", usual_look_seconds(period))
    times = timing(period, look, number("pause_seconds", 5))
    peer_address = found.get("peer_address", "public")
    if peer_address not in ("public", "private"):
        raise BadInput(f"peer_address = {peer_address}: use public or private.")
    heeded = found.get("scheduled_events", "true")
    if heeded not in ("true", "false"):
        raise BadInput(f"scheduled_events = {heeded}: use true or false.")
    unhealthy = found.get("unhealthy", "stay")
    if unhealthy not in ("stay", "stop"):
        raise BadInput(f"unhealthy = {unhealthy}: use stay or stop.")
    url = found.get("bootstrap_url", "").rstrip("/")
    told: list[Any] = [times, peer_address, url, heeded == "true"]
    told += [count(found, name, most) for name, most in MOST.items()]
    return Settings(*[*told, unhealthy])


def read_settings(path: Path) -> Settings:
    """The settings in the file's one section, `[loader]`; no file: defaults. Raises `BadInput`."""
    import configparser  # noqa: PLC0415 - costs 2 ms, and the file may be missing

    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
        return settings_of(dict(parser))
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError, configparser.Error, BadInput) as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from error


def settings_here(paths: Paths, release: "Release | None") -> Settings:
    """The settings by the release in effect, as this node's unit allows. Raises `BadInput`."""
    settings = read_settings(paths.conf)
    if release:
        told = release.settings
        asked, heeded = told.peer_address, told.scheduled_events
        settings = settings._replace(peer_address=asked, scheduled_events=heeded)
    period, look, pause = (getattr(settings.times, name) for name in FIXED)
    if "Type=oneshot" in (read_mark(paths.unit) or ""):  # of before looks: it would kill them
        look = period
    stop = settings.stop_seconds if joined_units(paths) else 0
    return settings._replace(times=timing(period, look, pause, stop))


NODE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
ADDRESS = re.compile(r"[0-9a-zA-Z.:-]{1,253}")
ENTRY_KEYS = ("ip_configuration_name", "network_interface_id", "private_ip", "public_ip")
Nodes = dict[str, dict[str, str]]  # name -> `ENTRY_KEYS`, in order of preference


def parse_json(text: str | bytes, path: str) -> Any:
    """The JSON of that text, in which no name is there twice. Raises `BadInput`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadInput(f"{path}: {twice!r} is there twice: each name once.")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON: {error}.") from error


def check_nodes(nodes: Any, path: str) -> Nodes:
    """The same nodes, if each entry is right. Raises `BadInput` that says which is not, and why."""
    if not isinstance(nodes, dict):
        raise BadInput(f"{path}: use an object, node name -> addresses, in order of preference.")
    owners: dict[tuple[str, str], str] = {}
    for name, entry in nodes.items():
        if not NODE_NAME.fullmatch(name) or name in ("index", "probe"):
            raise BadInput(f"{path}: {name!r} is no name for a node: letters, digits and '-'.")
        for key in ENTRY_KEYS:
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, str):
                raise BadInput(f"{path}: {name} needs the text {key!r}.")
            if key.endswith("_ip") and not ADDRESS.fullmatch(value):
                raise BadInput(f"{path}: {name} has the {key} {value!r}: not an address.")
            other = owners.setdefault((key, value), name)
            if key.endswith("_ip") and other != name:
                raise BadInput(f"{path}: {other} and {name} have the same {key} {value}.")
    if len(nodes) < 3 or len(nodes) % 2 == 0:
        raise BadInput(f"{path}: {len(nodes)} nodes: use an odd number, 3 or more.")
    return nodes


def parse_nodes_info(text: str, path: str = "nodes_info.json") -> Nodes:
    """The nodes of that text. Raises `BadInput` that says which entry is wrong, and why."""
    return check_nodes(parse_json(text, path), path)


def read_nodes(paths: Paths) -> Nodes:
    """The nodes of this node's own list. Raises `BadInput`."""
    text = read_text(paths.nodes_info, "put the nodes in order of preference there")
    return parse_nodes_info(text, str(paths.nodes_info))


HEX_KEY = re.compile("[0-9a-fA-F]{64}")


def read_key(path: Path) -> bytes:
    """The cluster's key: 32 bytes, written as 64 hexadecimal digits."""
    text = read_text(path, "put the cluster's key there, 64 hexadecimal digits").strip()
    if not HEX_KEY.fullmatch(text):
        raise BadInput(f"{path}: not a key: use 64 hexadecimal digits.")
    return bytes.fromhex(text)


def read_keys(paths: Paths) -> dict[bytes, int]:
    """The cluster's keys, oldest first, and which generation brings each. Raises `BadInput`."""
    lines = re.findall(r"([0-9a-f]{64}) (\d+)\n", read_mark(paths.next_keys) or "")
    later = {bytes.fromhex(key): int(generation) for key, generation in lines}
    return {read_key(paths.key): 0} | later


def write_keys(keys: Mapping[bytes, int], paths: Paths) -> None:
    """The same, on the disk and for root alone: a power cut loses none. Raises `OSError`."""
    first, *later = keys
    if first != read_key(paths.key):
        write_atomic(paths.key, f"{first.hex()}\n", sync=True, mode=0o600)
    text = "".join(f"{key.hex()} {keys[key]}\n" for key in later)
    write_atomic(paths.next_keys, text, sync=True, mode=0o600)


def keys_in_turn(keys: Mapping[bytes, int], generation: int) -> list[bytes]:
    """The key to sign with where that release is in effect, and behind it the others to accept."""
    now = [key for key, since in keys.items() if since <= generation]
    return now[::-1] + [key for key in keys if key not in now]


# ------------------------------------------------ releases: what an operator signed, as data

NAMESPACE = "azure-active-passive-cluster"
RELEASE_BYTES, SIGNATURE_BYTES, AGENT_BYTES = 1 << 16, 1 << 14, 1 << 20
MOST_MISSED = 100  # so many releases back are followed by a node that was away
SIGNERS = re.compile(rf'(operator namespaces="{NAMESPACE}" [a-z0-9@.-]+ [\x20-\x7e]+\n)+')
BASE64 = re.compile(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


@functools.cache
def parts_of(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Of `dict[str, int]`, say, `dict` and both others: asked for each field that is read."""
    return get_origin(kind) or kind, get_args(kind)


def typed(kind: Any, value: Any, name: str = "it", *, bounded: bool = True) -> Any:
    """That JSON as a value of `kind`: one of our tuples, with all in it, from an object or a list.

    Fields of a later version are left. Raises `KeyError` for one that is missing and has no usual
    value, `TypeError` for another type, or, where it is `bounded`, a number that no clock shows.
    """
    if kind is Any or (type(value) is kind and kind in (str, bool)):
        return value
    origin, inner = parts_of(kind)
    if origin is UnionType:
        kind = next((each for each in inner if type(value) is parts_of(each)[0]), inner[0])
        origin, inner = parts_of(kind)
    each = functools.partial(typed, name=name, bounded=bounded)
    if hasattr(origin, "_fields") and type(value) in (dict, list):
        names, kinds = origin._fields, origin.__annotations__
        told = value if type(value) is dict else dict(zip(names[: len(value)], value, strict=True))
        known = [n for n in names if n in told or n not in origin._field_defaults]
        return origin(**{n: typed(kinds[n], told[n], n, bounded=bounded) for n in known})
    if inner and origin in (dict, Mapping) and type(value) is dict:
        return {key: each(inner[1], one) for key, one in value.items()}
    if inner and origin in (list, tuple) and type(value) is list:
        kinds = inner[:1] * len(value) if origin is list or inner[-1] is ... else inner
        return origin(each(k, one) for k, one in zip(kinds, value, strict=True))
    number = type(value) in (int, float)
    right = type(value) is origin or (number and origin is float)
    if not right or (number and bounded and not 0 <= value < 1e12):
        raise TypeError(f"{name} is {str(value)[:40]!r}")
    return value


class AgentFile(NamedTuple):
    """Which loader.py a release brings."""

    sha256: str  # in hexadecimal digits
    size: int  # bytes


class NodeSettings(NamedTuple):
    """What all nodes have to agree about."""

    period_seconds: float
    look_seconds: float
    pause_seconds: float
    peer_address: str
    scheduled_events: bool
    failback: str | int  # "auto", "never", or after so many seconds


class Preferred(NamedTuple):
    """Who comes before all others for now."""

    node: str
    until: int  # seconds of the wall clock


class Release(NamedTuple):
    """What an operator has published and signed, whole."""

    cluster: str
    generation: int  # only grows
    files: dict[str, AgentFile]
    nodes: Nodes  # in order of preference
    settings: NodeSettings
    drained: list[str]
    prefer: Preferred | None
    maintenance_until: int | None  # seconds of the wall clock
    allowed_signers: str  # the file of that name: who may sign the next one
    cluster_key: str | None  # the new one, encrypted under the one before, as base64

    @property
    def loader(self) -> AgentFile:
        """The agent that it brings."""
        return self.files["loader.py"]

    @property
    def build(self) -> str:
        """The name of that agent."""
        return self.loader.sha256[:12]

    def maintained(self, wall_seconds: float) -> bool:
        """Whether the role is to stay where it is, and every agent what it is."""
        return self.maintenance_until is not None and wall_seconds < self.maintenance_until


class Kept(NamedTuple):
    """The newest release on this node, and the one that it goes by."""

    held: Release | None = None
    effective: Release | None = None

    @property
    def generation(self) -> int:
        """Which one it holds, 0 for none."""
        return self.held.generation if self.held else 0


def generation_of(data: bytes) -> int:
    """The number of a release of which nothing else is known yet. Raises `BadInput`."""
    found = parse_json(data, "release.json")
    number = found.get("generation") if isinstance(found, dict) else None
    if type(number) is not int or not 0 < number < 1e9:
        raise BadInput("release.json: its generation is no number: use 1 or more.")
    return number


def broken_rule(release: Release) -> str:
    """The first rule that it breaks, "" where it breaks none."""
    told, nodes, drained = release.settings, set(release.nodes), set(release.drained)
    prefer = {release.prefer.node} if release.prefer else set()
    after = told.failback if isinstance(told.failback, int) else 0
    rules = {
        "it asks something of a node that it does not have": drained | prefer <= nodes,
        "all nodes are drained: leave one out": drained < nodes or not nodes,
        "a node is drained and preferred at once": not drained & prefer,
        "its peer_address is no public or private": told.peer_address in ("public", "private"),
        "its failback is no auto, never, or 1 to 86400 seconds": (
            told.failback in ("auto", "never") or 1 <= after <= 86_400
        ),
        "a SHA-256 of it is none": re.fullmatch("[0-9a-f]{64}", release.loader.sha256),
        "its loader.py is empty, or more than 1 MB": 0 < release.loader.size <= AGENT_BYTES,
        "a line of its allowed_signers is none": SIGNERS.fullmatch(release.allowed_signers),
        "its cluster_key is no base64": BASE64.fullmatch(release.cluster_key or ""),
    }
    return next((sentence for sentence, kept in rules.items() if not kept), "")


def parse_release(data: bytes, where: str = "release.json") -> Release:
    """The release of that text, if it breaks no rule by itself. Raises `BadInput`."""
    try:
        release: Release = typed(Release, parse_json(data, where))
        wrong = broken_rule(release)
    except KeyError as missing:
        raise BadInput(f"{where}: it has no {missing.args[0]}.") from missing
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: {error}: not of the type it should be.") from error
    if wrong:
        raise BadInput(f"{where}: {wrong}.")
    check_nodes(release.nodes, where)
    timing(*release.settings[:3])
    return release


def read_kept(paths: Paths) -> Kept:
    """The releases here; one that is not whole is none, and asked for again."""
    found = {}
    for path in paths.releases.glob("*/release.json"):
        with contextlib.suppress(BadInput, OSError):
            release = parse_release(path.read_bytes())
            found[release.generation] = release
    held, noted = found.get(max(found, default=0)), (read_mark(paths.effective) or "").strip()
    return Kept(held, found.get(int(noted), held) if noted.isdecimal() else None)


# ------------------------------------------------ HTTP: the one place that talks it


class Unanswered(Exception):  # noqa: N818 - silence is an observation, not a bug
    """Why there was no usable answer, in words."""


class HungUp(Unanswered):
    """The connection was closed before an answer: one that was kept open may be so at any time."""


class Answer(NamedTuple):
    """An HTTP answer, its body cut at the limit of the request."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    whole: bool


def new_session() -> requests.Session:
    """No proxy and no credentials of the environment: Azure's metadata must be asked directly."""
    session = requests.Session()
    session.trust_env = False
    session.headers.clear()
    session.headers.update({"User-Agent": "azure-active-passive-cluster", "Accept": "*/*"})
    return session


def fetch(
    session: requests.Session,
    url: str,
    *,
    timeout_seconds: float,
    limit_bytes: int = 8192,
    headers: Mapping[str, str] | None = None,
    content: str | None = None,
) -> Answer:
    """GET, or POST of `content`, without following redirects, reading at most `limit_bytes`.

    `timeout_seconds` bounds each wait for the network, not their sum: who may not wait longer
    asks from a thread (`Asker`). Raises `Unanswered`.
    """
    try:
        verb = "GET" if content is None else "POST"
        told: dict[str, Any] = {"headers": headers, "data": content, "timeout": timeout_seconds}
        with session.request(verb, url, allow_redirects=False, stream=True, **told) as response:
            body = response.raw.read(limit_bytes + 1, decode_content=False)
            promised = response.headers.get("Content-Length", str(len(body)))
            if len(body) <= limit_bytes and promised != str(len(body)):
                raise Unanswered("its answer is not whole")  # urllib3 does not mind
            whole = len(body) <= limit_bytes
            return Answer(response.status_code, body[:limit_bytes], response.headers, whole)
    except requests.Timeout as error:
        raise Unanswered(f"no answer within {timeout_seconds:g} s") from error
    except requests.ConnectionError as error:
        hung_up = isinstance(error.args and error.args[0], ProtocolError)
        raise (HungUp if hung_up else Unanswered)("no connection") from error
    except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
        raise Unanswered(f"no proper answer ({type(error).__name__})") from error


Question = Callable[[requests.Session], Any]


class Asker:
    """Asks from threads, of each name one question at a time, on a connection that stays."""

    def __init__(self) -> None:
        self.busy: set[str] = set()  # names of which an answer is still to come
        self._questions: dict[str, queue.SimpleQueue[Question]] = {}
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._kept: dict[str, Any] = {}

    def ask(self, name: str, question: Question) -> None:
        """Start asking."""
        self.busy.add(name)
        if name not in self._questions:
            self._questions[name] = queue.SimpleQueue()
            threading.Thread(target=self._ask, args=(name,), daemon=True).start()
        self._questions[name].put(question)

    def _ask(self, name: str) -> None:
        session = new_session()
        while True:
            question = self._questions[name].get()
            try:
                outcome = question(session)
            except Unanswered as silence:
                outcome = silence
            self._answers.put((name, outcome))

    def next(self, until: float) -> tuple[str, Any] | None:
        """The next answer, or the `Unanswered`; None where none comes until `time.monotonic()`."""
        try:
            name, outcome = self._answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        self.busy.discard(name)
        return name, outcome

    def take(self, name: str, patience_seconds: float) -> Any:
        """The answer to one question, once; None when it is not there by then, or not asked."""
        until = time.monotonic() + patience_seconds
        while name in self.busy and (found := self.next(until)):
            self._kept[found[0]] = found[1]
        return self._kept.pop(name, None)


# ------------------------------------------------ identity: who am I, what is announced for me

METADATA = "http://169.254.169.254/metadata"
INSTANCE = "instance?api-version=2021-02-01&format=json"
LOAD_BALANCER = "loadbalancer?api-version=2020-10-01&format=json"
EVENTS = "scheduledevents?api-version=2020-07-01"
INTERRUPTING = ("Freeze", "Reboot", "Redeploy", "Preempt", "Terminate")


class Identity(NamedTuple):
    """What Azure's metadata service calls this node; `public_ip` is "" when it is in no pool."""

    name: str
    private_ip: str
    public_ip: str = ""
    zone: str = ""
    vm_id: str = ""


def ask_metadata(
    session: requests.Session, document: str, timeout_seconds: float, content: str | None = None
) -> Any:
    """A metadata document's JSON; None for a 404, or if `content` was sent. Raises `Unanswered`."""
    told: dict[str, Any] = {"headers": {"Metadata": "true"}, "content": content}
    told |= {"timeout_seconds": timeout_seconds, "limit_bytes": 1 << 20}
    answer = fetch(session, f"{METADATA}/{document}", **told)
    if answer.status == 404 and content is None:
        return None
    if answer.status != 200:
        raise Unanswered(f"status {answer.status}")
    if not answer.whole:  # userData of 64 KB is 87 KB in base64, and 50 tags are told twice
        raise Unanswered("an answer of more than 1 MB")
    try:
        return None if content else json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise Unanswered("not JSON") from error


def ask_identity(session: requests.Session) -> Identity:
    """Ask both metadata services for name and addresses. Raises `Unanswered`."""
    document = ask_metadata(session, INSTANCE, 2)
    try:
        compute = document["compute"]
        address = document["network"]["interface"][0]["ipv4"]["ipAddress"][0]
        told = (compute["name"], address["privateIpAddress"], address.get("publicIpAddress", ""))
        found = Identity(*map(str, (*told, compute.get("zone", ""), compute.get("vmId", ""))))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unanswered("no name or no private address in it") from error
    if not NODE_NAME.fullmatch(found.name) or not ADDRESS.fullmatch(found.private_ip):
        raise Unanswered(f"a name or an address that is none: {found.name[:80]!r}")
    # A 404 of the load balancer's means "in no pool yet", and any failure of it only leaves the
    # public address unknown: it is shown, not used, so the name does not wait for it for long.
    try:
        document = ask_metadata(session, LOAD_BALANCER, 0.3)
        for pair in document["loadbalancer"]["publicIpAddresses"] if document else ():
            if pair["privateIpAddress"] == found.private_ip:
                return found._replace(public_ip=str(pair["frontendIpAddress"]))
    except (Unanswered, KeyError, TypeError, AttributeError) as error:
        logging.info("Load balancer metadata service: no public IP known: %s", error)
    return found


def known_identity(paths: Paths) -> Identity | None:
    """Who this node was in an earlier run of this boot."""
    with contextlib.suppress(TypeError, KeyError):
        found: Identity = typed(Identity, read_json(paths.identity))
        return found
    return None


def who_am_i(background: Asker, paths: Paths, patience_seconds: float) -> Identity:
    """Who this node is, or was in an earlier run of this boot. Raises `BadInput`: unknown."""
    logging.info("Reading instance metadata service")
    known = known_identity(paths)
    found = background.take("identity", patience_seconds if known else 10 * patience_seconds)
    if not isinstance(found, Identity):
        logging.warning("Instance metadata service: %s", found or "no answer yet")
        if known is None:
            raise BadInput("the instance metadata service does not say who this node is")
        logging.info("Using the identity known for this boot")
        found = known
    elif found != known:
        with contextlib.suppress(OSError):  # asked again at the next run
            write_atomic(paths.identity, json.dumps(found._asdict()))
    logging.info("Local node name: %s", found.name)
    logging.info("Local node private IP: %s", found.private_ip)
    logging.info("Reading load balancer metadata service")
    logging.info("Local node public IP: %s", found.public_ip or "not known, in no pool yet")
    return found


class Event(NamedTuple):
    """What Azure is about to do to machines of ours, or does now."""

    id: str
    kind: str  # one of `INTERRUPTING`
    scheduled: bool  # has not begun: it waits to be approved, or for its time
    nodes: tuple[str, ...]  # in small letters


def ask_events(session: requests.Session) -> tuple[Event, ...]:
    """The scheduled events that will interrupt a machine. Raises `Unanswered`."""
    document = ask_metadata(session, EVENTS, 10)  # the first of all may take two minutes
    try:
        return tuple(
            Event(
                str(told["EventId"]),
                told["EventType"],
                told["EventStatus"] == "Scheduled",
                tuple(name.lower() for name in told["Resources"]),
            )
            for told in (document["Events"] if document else ())
            if told["EventType"] in INTERRUPTING and told.get("DurationInSeconds") != 0
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Unanswered("no scheduled events in it") from error


def approve(session: requests.Session, events: list[Event], why: str, paths: Paths) -> None:
    """Tell Azure that it need not wait: once, if it hears that. In a thread, as it may be slow."""
    known: list[str] = read_json(paths.approved) or []
    ids = [event.id for event in events if event.id not in known]
    kinds = ", ".join(event.kind for event in events)
    if not ids:
        return
    content = json.dumps({"StartRequests": [{"EventId": each} for each in ids]})
    try:
        ask_metadata(session, EVENTS, 2, content)
        write_atomic(paths.approved, json.dumps([*known, *ids][-100:]))
        logging.warning("%s: approved, %s", kinds, why)
        tell_journal(f"Azure may go on with its {kinds}: {why}")
    except (Unanswered, OSError) as error:
        logging.warning("%s: not approved, tried again in the next run: %s", kinds, error)


# ------------------------------------------------ taking releases: verified, checked, kept

CHECK_SECONDS = 5.0
CHECK_PASSED = "self-check passed"
ASKED_AGAIN_SECONDS = 600.0  # whatever was said: perhaps the answer was not the web site's


def ran(
    words: list[str], data: bytes = b"", seconds: float = CHECK_SECONDS, **env: str
) -> tuple[int, str]:
    """How a program ends that is told `data` (64 KB), and the last line that it says.

    A process group of its own: it may kill it. It is read once it has ended: it may print without
    end. Raises `Unanswered` where it can't be started, or does not end in time.
    """
    import signal  # noqa: PLC0415 - once a release
    import subprocess  # noqa: PLC0415 - as above

    pipe, told = subprocess.PIPE, {**os.environ, **env}
    ends: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": subprocess.STDOUT}
    try:
        process: Any = subprocess.Popen(words, env=told, start_new_session=True, **ends)
        with process:
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(data)
            try:
                code = process.wait(seconds)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            os.set_blocking(process.stdout.fileno(), False)  # who is left may keep it open
            said = process.stdout.read(1 << 16) or b""
    except subprocess.TimeoutExpired:
        raise Unanswered(f"no end in {seconds:g} s") from None
    except OSError as error:
        raise Unanswered(f"no help from {words[0]} ({type(error).__name__})") from error
    text = said.decode("utf-8", "replace").strip()
    if code and re.search(r"option -- '?Y", text):
        raise Unanswered(f"no help from {words[0]}: OpenSSH 8.1 or newer is needed")
    return code, text.rpartition("\n")[2]


def check_change(release: Release, held: Release | None, paths: Paths) -> None:
    """Refuse what no order of steps leads to while nodes run. Raises `BadInput`."""
    nodes, times = held.nodes if held else read_nodes(paths), settings_here(paths, None).times
    if set(nodes) != set(release.nodes):
        raise BadInput(
            f"it has the nodes {', '.join(release.nodes)}, not {', '.join(nodes)}: majorities of"
            " other nodes need not overlap, so who replaces a node has its name."
        )
    told = timing(*release.settings[:3])
    for name in FIXED:
        if (new := getattr(told, name)) != (old := getattr(times, name)):
            fixed = f"this node runs with {old:g}, which is fixed while nodes run"
            within, now = worst_failover_seconds(told), worst_failover_seconds(times)
            why = f"{fixed} (failover within {within:.1f} s, not {now:.1f} s)"
            raise BadInput(f"{name} = {new:g}: {why}.")


def keep_new_keys(releases: list[Release], paths: Paths) -> None:
    """Keep the cluster's keys that releases bring, each under one before. Raises as `Site` does."""
    import base64  # noqa: PLC0415 - once a new key

    openssl = ["openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-iter", "100000", "-salt"]
    keys = read_keys(paths)
    for release in (release for release in releases if release.cluster_key):
        wrapped, openers = base64.b64decode(release.cluster_key or ""), [*keys][::-1]
        said = [ran([*openssl, "-pass", "env:KEY"], wrapped, KEY=key.hex()) for key in openers]
        if new := [key for code, key in said if not code and HEX_KEY.fullmatch(key)]:
            keys[bytes.fromhex(new[0])] = releases[-1].generation
            write_keys(keys, paths)
        # One that was missed and is for no key here, others refused; a new machine has the new key.
        elif release is releases[-1] and read_kept(paths).held:
            raise BadInput("its new key of the cluster is not for the one that this node has.")


class Site(NamedTuple):
    """A web site's releases, as a node takes them. Methods raise `BadInput` and `Unanswered`."""

    session: requests.Session
    url: str
    paths: Paths
    until_seconds: float  # of `time.monotonic()`: this run ends then

    def download(self, name: str, limit_bytes: int) -> bytes:
        """A file that is there, and no longer than that."""
        there = f"{self.url}/{name}"
        answer = fetch(self.session, there, timeout_seconds=2, limit_bytes=limit_bytes)
        if answer.status >= 500:
            raise Unanswered(f"status {answer.status}")
        if answer.status != 200 or not answer.whole:
            why = f"status {answer.status}" if answer.whole else f"more than {limit_bytes} bytes"
            raise BadInput(f"{name.rpartition('/')[2]}: {why}.")
        return answer.body

    def verified(self, data: bytes, signers: str) -> Release:
        """The release of that text, which one of `signers` has signed."""
        paths, name = self.paths, f"releases/{generation_of(data)}/release.json.sig"
        signature, believed = paths.run / "release.json.sig", paths.run / "allowed_signers"
        write_atomic(signature, self.download(name, SIGNATURE_BYTES))
        write_atomic(believed, signers)
        words = ["ssh-keygen", "-Y", "verify", "-f", str(believed), "-I", "operator"]
        code, _ = ran([*words, "-n", NAMESPACE, "-s", str(signature)], data)
        if code:
            raise BadInput("its signature is no operator's.")
        release, ours = parse_release(data), (read_mark(paths.cluster) or "").strip()
        if ours and release.cluster != ours:  # an operator may have several
            raise BadInput(f"it is of the cluster {release.cluster}, and this node's {ours}.")
        return release

    def followed(self, data: bytes, kept: Kept) -> list[Release]:
        """The release of that text, verified; before it those that were missed on the way to it."""
        generation, signers = generation_of(data), ""
        if os.path.lexists(self.paths.signers):
            signers = read_text(self.paths.signers, "put a line for each operator there, as UTF-8")
        elif not kept.held:  # on a node that was made before there were any: its first release's
            signers = parse_release(data).allowed_signers
        if kept.held:  # a newer one may have died after it wrote its signers
            signers += f"\n{kept.held.allowed_signers}"
        found: list[Release] = []
        first = max(kept.generation + 1 if kept.held else generation, generation - MOST_MISSED)
        # Each says who signs the next. One that is not there was never published.
        for number in range(first, generation):
            with contextlib.suppress(BadInput, Unanswered):
                missed = self.download(f"releases/{number}/release.json", RELEASE_BYTES)
                if generation_of(missed) == number:
                    found.append(self.verified(missed, signers))
                    signers = found[-1].allowed_signers
        return [*found, self.verified(data, signers)]

    def agent_of(self, release: Release) -> bytes:
        """Its loader.py, from here or the web site, which can run here."""
        file, paths, words = release.loader, self.paths, [sys.executable, "-B"]
        for path in (paths.loader, *paths.releases.glob("*/loader.py")):
            if file_sha256(path) == file.sha256:
                return path.read_bytes()
        code = self.download(f"releases/{file.sha256}/loader.py", file.size)
        if len(code) != file.size or hashlib.sha256(code).hexdigest() != file.sha256:
            raise BadInput("its loader.py is another one than it names, by size or SHA-256.")
        left_seconds = min(CHECK_SECONDS, max(0.0, self.until_seconds - 0.1 - time.monotonic()))
        try:
            write_atomic(paths.newer, code, sync=True)
            ended, said = ran([*words, str(paths.newer), "--self-check"], seconds=left_seconds)
        except Unanswered as silence:
            if left_seconds < CHECK_SECONDS:
                raise
            raise BadInput(f"its loader.py fails its self-check: {silence}.") from silence
        finally:
            paths.newer.unlink(missing_ok=True)
        if (ended, said) != (0, CHECK_PASSED):  # it may end with 0 before any check
            why = f"exit code {ended}, {said[:200]!r}"
            raise BadInput(f"its loader.py fails its self-check: {why}.")
        return code

    def keep(self, data: bytes) -> None:
        """Keep a release, whole and on the disk. Raises `OSError`, too."""
        kept, generation, paths = read_kept(self.paths), generation_of(data), self.paths
        folder = paths.releases / str(generation)
        if generation < kept.generation:
            raise BadInput(f"older than {kept.generation}, which this node holds.")
        if generation == kept.generation:
            if data != (folder / "release.json").read_bytes():
                raise BadInput("this node holds another one of that number.")
            logging.info("File release.json is identical to the one that is held.")
            return
        releases = self.followed(data, kept)
        release = releases[-1]
        check_change(release, kept.held, paths)
        code = self.agent_of(release)
        keep_new_keys(releases, paths)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "loader.py", code, sync=True)
        write_atomic(paths.cluster, f"{release.cluster}\n", sync=True)
        write_atomic(paths.signers, release.allowed_signers, sync=True)
        sync_folder(paths.releases)
        write_atomic(folder / "release.json", data, sync=True)
        logging.warning("Release %d is held.", generation)

    def came_of(self, data: bytes) -> tuple[str, bool]:
        """Keep the release of that text, or say why not; if that is final. Raises `OSError`."""
        number = "?"
        try:
            number = str(generation_of(data))
            self.keep(data)
        except (BadInput, Unanswered) as wrong:  # what was not told is asked again in the next run
            why = str(wrong).rstrip(".")[:300]  # it may quote a stranger
            return f"generation {number}: {why}", isinstance(wrong, BadInput)
        return "", True


def take_release(
    session: requests.Session, url: str, held: int, paths: Paths, until_seconds: float
) -> bool:
    """Ask for a newer release than `held` and keep it: in a thread, no decision waits for it."""
    # An agent from before releases wrote less there.
    last, now = {"refused": "", "at": 0} | (read_json(paths.asked) or {}), time.time()
    lately = 0 <= now - last["at"] < ASKED_AGAIN_SECONDS
    known = last.get("etag") if lately and last.get("held") == held else ""
    headers = {"If-None-Match": known} if known else {}
    try:
        asked, limit_bytes = f"{url}/release.json", RELEASE_BYTES
        answer = fetch(session, asked, timeout_seconds=2, limit_bytes=limit_bytes, headers=headers)
        if answer.status not in (200, 304):
            raise Unanswered(f"status {answer.status}")
        digest = hashlib.sha256(answer.body).hexdigest()
        etag = answer.headers.get("ETag", f'"{digest}"')  # not every web server has them
        if answer.status == 304 or etag == known:
            logging.info("File release.json on the web site is unchanged, no need to take it.")
            return True
        refused, final = Site(session, url, paths, until_seconds).came_of(answer.body)
        told = {"etag": etag if final else "", "refused": refused, "at": now}
        write_atomic(paths.asked, json.dumps(told | {"held": read_kept(paths).generation}))
        if refused and refused != last["refused"]:
            logging.error("Release not taken: %s", refused)
            tell_journal(f"release not taken: {refused}", warning=True)
    except Unanswered as silence:
        logging.warning("Releases: the web site gives %s, the run goes on.", silence)
    except OSError as error:
        logging.error("The release is not kept: %s", error)
    return True


def keep_compiled(paths: Paths) -> None:
    """Leave `loader.py` compiled where `python3 -m loader` looks: a tenth of a run's CPU.

    Checked against a hash of the source at each run (PEP 552), whatever the clock says. Written
    here: Python may leave half a file on a full disk. Where it can't be written, runs compile.
    """
    import importlib.util  # noqa: PLC0415 - once a boot and once an update
    import marshal  # noqa: PLC0415 - as above

    source = paths.loader.read_bytes()
    code = compile(source, str(paths.loader), "exec")
    checked = importlib.util.MAGIC_NUMBER + (3).to_bytes(4, "little")
    content = checked + importlib.util.source_hash(source) + marshal.dumps(code)
    compiled = Path(importlib.util.cache_from_source(str(paths.loader)))
    with contextlib.suppress(OSError):
        compiled.parent.mkdir(exist_ok=True)
        write_atomic(compiled, content, sync=True)


def failed_here(paths: Paths) -> set[str]:
    """SHA-256 of the agents that were on trial here and failed."""
    return {(read_mark(path) or "")[:64] for path in (paths.refused, paths.failed)} - {""}


def replace_loader(release: Release, paths: Paths) -> None:
    """Put a release's agent in place, in steps of which each leaves an agent that runs.

    The one before (on trial, the one before *that*) is kept and the new one marked, on the disk,
    first. The mark names this run, whose failure is not the new one's. Raises `OSError`.
    """
    code = (paths.releases / str(release.generation) / "loader.py").read_bytes()
    digest = release.loader.sha256
    if not read_mark(paths.trial) or not paths.previous.exists():  # a rollback may die half way
        paths.previous.unlink(missing_ok=True)
        os.link(paths.loader, paths.previous)
    this_run = os.environ.get("INVOCATION_ID", "")
    write_atomic(paths.trial, f"{digest} {this_run}\n", sync=True)
    with contextlib.suppress(OSError):  # a node that was made before has no such timer
        call_systemd(paths, "RestartUnit", ("s", "rollback.timer"), ("s", "replace"))
    write_atomic(paths.loader, code, sync=True)
    logging.warning("File loader.py is replaced by that of release %d.", release.generation)


def end_trial(mark: str, good: str | None, paths: Paths) -> None:
    """After the second good run in a row that began with that mark: it ends. Raises `OSError`."""
    if read_mark(paths.trial) != mark:  # by now another one
        return
    paths.trial_failures.unlink(missing_ok=True)
    if mark and good != mark:  # the empty one of a rollback ends with the first
        write_atomic(paths.good_run, mark)
    else:
        paths.trial.unlink()
        keep_compiled(paths)


# ------------------------------------------------ markers: what nodes tell each other

MARKER_OPEN, MARKER_CLOSE = '<script type="application/json" id="marker">', "</script>"


class Term(NamedTuple):
    """A number that only grows, and for whose request it was voted for (docs/protocol.md 5)."""

    number: int = 0
    candidate: str = ""
    epoch: str = ""


class Grant(NamedTuple):
    """A vote as a marker shows it: for which request of which candidate, and for how long."""

    candidate: str
    epoch: str
    stamp: int
    promise_seconds: float
    left_seconds: float  # for people only
    term: int | None = None  # None: of an agent that knows none


class Marker(NamedTuple):
    """What one node tells another, docs/protocol.md section 3."""

    sender: str
    receiver: str
    epoch: str
    stamp: int  # milliseconds on the sender's boot clock: its current request
    candidate: bool
    quorum_runs: int
    holding: bool
    vote: Grant | None
    released: int
    active: bool
    yields_to: str | None
    heard: dict[str, Any]  # epoch -> newest stamp of the receiver's that the sender has read
    generation: str  # the sender's build; its name is older than releases
    at: str
    release: int = 0  # the generation that the sender holds, 0 for none
    proven: bool = True  # no trial of another build is under way there
    goes_by: str | None = None  # what the sender takes for agreed; None: an agent that says nothing
    cluster: str = ""  # which key it is signed with (`common_fields`)
    term: int | None = None  # of its request; None: of an agent that knows none
    kept: Term = Term()  # the greatest that the sender voted for
    unfit: str = ""  # why it could not serve


class Members(NamedTuple):
    """Who takes part, which of them I am, the key, and what the release in effect asks for."""

    me: str
    order: tuple[str, ...]  # of preference
    key: bytes
    times: Timing
    generation: str = ""  # my build: which loader.py this is
    other_keys: tuple[bytes, ...] = ()  # accepted as well, while the cluster goes over to a new one
    release: int = 0  # the generation that I hold, 0 for none
    in_effect: bool = True  # I go by it
    proven: bool = True
    # Preference (docs/protocol.md section 8): safety does not depend on it.
    drained: frozenset[str] = frozenset()  # may not become active
    prefer: str | None = None  # for a while, before all others
    keeps_active: bool = False  # whoever is active comes before the order
    goes_by: str = ""  # the release in effect, and what of it is not over by my clock
    failback_looks: int = READY_LOOKS  # good looks before the order moves the role
    stops_unfit: bool = False  # an active node that could not serve stops also without an heir
    service: tuple[str, ...] = ()  # the units that run with the role
    start_seconds: float = 60
    replacement: str = ""  # SHA-256 of the agent that is to replace mine, when it is my turn

    @property
    def majority(self) -> int:
        """The least number of nodes that any two such numbers must share a node of."""
        return len(self.order) // 2 + 1

    @property
    def peers(self) -> tuple[str, ...]:
        """Everybody else, in order of preference."""
        return tuple(name for name in self.order if name != self.me)


def _mac(key: bytes, text: bytes) -> str:
    return hmac.new(key, text, "sha256").hexdigest()


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def common_fields(members: Members) -> dict[str, str]:
    """A name for the cluster that tells nothing about its key, and a digest of the members."""
    digest = hashlib.sha256("\n".join(sorted(members.order)).encode()).hexdigest()[:16]
    return {"cluster": _mac(members.key, b"cluster")[:16], "members": digest}


def format_marker(members: Members, marker: Marker) -> str:
    """A page that a person can read, with the signed fields as one JSON object in it."""
    fields: dict[str, Any] = {**marker._asdict(), **common_fields(members)}
    fields["from"], fields["to"] = fields.pop("sender"), fields.pop("receiver")
    fields["vote"] = marker.vote and marker.vote._asdict()
    fields["mac"] = _mac(members.key, _canonical(fields))
    votes = f" and votes for {marker.vote.candidate}" if marker.vote else " and votes for nobody"
    text = json.dumps(fields).replace("</", "<\\/")  # what a check said may hold markup
    return (
        f"<!doctype html><title>{marker.sender} sees {marker.receiver}</title>\n"
        f"<p>{marker.sender} sees {marker.receiver}{votes}.</p>\n"
        f"{MARKER_OPEN}{text}{MARKER_CLOSE}\n"
    )


def parse_marker(members: Members, sender: str, answer: Answer) -> Marker:
    """The verified marker of `sender` about us. Raises `BadInput` with why it counts as absent."""
    if answer.status != 200:
        raise BadInput(f"it has no marker for us (status {answer.status})")
    if not answer.whole:
        raise BadInput("its marker is too large")
    text = answer.body.decode("utf-8", "replace")
    _, found, rest = text.partition(MARKER_OPEN)
    if not found:
        raise BadInput("its page about us is no marker")
    try:
        fields = json.loads(rest.partition(MARKER_CLOSE)[0])
        mac = str(fields.pop("mac"))
        keys = (members.key, *members.other_keys)
        signed = [k for k in keys if hmac.compare_digest(_mac(k, _canonical(fields)), mac)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput("its marker is not whole") from error
    if not signed:
        raise BadInput("its marker is not signed with the cluster's key")
    common = common_fields(members._replace(key=signed[0]))
    for name, right in {**common, "from": sender, "to": members.me}.items():
        if fields.get(name) != right:
            raise BadInput(f"its marker is for another {name}")
    try:
        marker: Marker = typed(Marker, fields | {"sender": sender, "receiver": members.me})
    except (TypeError, KeyError, ValueError) as error:
        raise BadInput(f"its marker is of another version of the agent: {error}") from error
    return marker


# ------------------------------------------------ state: what this boot has promised


class Vote(NamedTuple):
    """A promise of this node: it binds until `until_seconds`."""

    candidate: str
    epoch: str
    stamp: int
    until_seconds: float  # on the slow clock
    promise_seconds: float  # D when it was given
    earlier_until_seconds: float = 0.0  # a promise to another boot of the candidate binds as well
    term: int | None = None


class Record(NamedTuple):
    """The newest marker seen of one boot of a peer: to know it, and an older one, again."""

    stamp: int
    changed_seconds: float  # when it was first read
    read_seconds: float = 0.0  # when it was last read
    age_seconds: float = 0.0  # how old it was at most when it was first read


class State(NamedTuple):
    """Promises and leases of this boot, docs/protocol.md section 3.

    Promises and the hold are over on the slow clock, all else is on the fast one.
    Saved before anything that depends on it is shown. Lost at reboot, on purpose.
    """

    epoch: str
    hold_until_seconds: float
    vote: Vote | None = None
    granted: Mapping[str, tuple[str, int]] = {}  # candidate -> epoch and stamp last granted
    released: int = 0
    grants: Mapping[str, tuple[int, float]] = {}  # voter -> newest own stamp granted, its D
    stamp: int = 0
    candidate: bool = False
    active: bool = False
    quorum_runs: int = 0  # looks in a row with a majority; its name is older than they are
    yields_to: str | None = None  # whom this voter would rather vote for
    sees: tuple[str, ...] = ()  # peers that have a marker here
    records: Mapping[str, Mapping[str, Record]] = {}  # peer -> epoch -> its newest marker
    wall_offset_seconds: float | None = None  # wall clock minus boot clock, as last read
    wall_read_seconds: float = 0.0
    host_offset_seconds: float | None = None  # the host's clock minus our raw one, likewise
    clocks: Clocks | None = None  # when it was saved
    origin: str = ""  # of which boot of which machine it is
    term: int = 0  # of this node's request: it asks, and serves, with it until it gives up
    kept: Term = Term()  # the greatest voted for, or served with: on the disk as well
    unfit: str = ""  # why this node could not serve, as of this look
    service_failed: str = ""  # the unit that did: a reason to leave the role to others
    not_started: str = ""  # the same, where no unit failed: how the last start ended
    starting_since_seconds: float = 0.0  # 0 once its service is there, and the probe
    stopping: bool = False  # the probe is gone, its service not: it holds on to its votes
    # Preference (docs/protocol.md section 8): safety does not depend on it.
    began_seconds: float = 0.0  # when the last look did
    finished: bool = True  # False while a look is under way, and after one that was killed
    trouble: str = ""  # what the last failure was
    failures: int = 0  # how often this node asked for votes, or had them, and could not serve
    in_vain: Mapping[str, int] = {}  # candidate -> how often our vote for it came to nothing
    behind_since_seconds: float = 0.0  # since a peer showed a newer one, until I go by it; or 0

    def holding(self, now: float) -> bool:
        """Whether this node may not vote yet."""
        return now < self.hold_until_seconds


def promised_seconds(paths: Paths) -> float:
    """For how long a vote of an earlier boot may bind; the longest there is where it is unclear."""
    longest = timing(60, 60, 60, 60).promise_seconds
    try:
        known = float(paths.promised.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError):
        return longest
    return known if 0 < known < longest else longest


def keep_promised(paths: Paths, state: State, times: Timing, now: float) -> None:
    """Note on the disk, before any vote, for how long one binds. Raises `OSError`."""
    known, promise = promised_seconds(paths), times.promise_seconds
    # A shorter time is noted only when no longer promise can be left.
    bound = state.vote is not None and state.vote.until_seconds > now + promise
    if known < promise or (known > promise and not bound and not state.holding(now)):
        write_atomic(paths.promised, f"{promise:g}", sync=True)


def kept_term(paths: Paths) -> Term:
    """The greatest term voted for in any boot, by the disk."""
    with contextlib.suppress(TypeError, KeyError, ValueError):
        found: Term = typed(Term, read_json(paths.term))
        return found
    return Term()


def first_state(epoch: str, since_seconds: float, times: Timing, promised: float = 0) -> State:
    """A boot's state that has promised nothing since then, on its slow clock: it holds its vote."""
    hold_seconds = max(times.promise_seconds, promised)  # `promised`: by the boot before
    return State(epoch=epoch, hold_until_seconds=since_seconds + hold_seconds)


def load_state(paths: Paths, times: Timing) -> State:
    """The state of this boot; a new one, which holds its vote, where there is none.

    That of another boot or of another machine, as on a restored disk or a clone, is none.
    """
    found, identity = read_json(paths.state), known_identity(paths)
    here = f"{read_mark(paths.boot_id) or ''}{identity.vm_id if identity else ''}"
    with contextlib.suppress(TypeError, KeyError, ValueError):
        state: State = typed(State, found, bounded=False)
        known = max(here, state.origin, key=len)  # a machine that Azure does not name is no other
        ours = known.startswith(here) and known.startswith(state.origin)
        if ours and set(found) <= set(State._fields):  # a later version may promise in other words
            kept = max(state.kept, kept_term(paths))
            return state._replace(clocks=read_clocks(state.clocks), origin=known, kept=kept)
    # The hold counts from when `bootup` ran, or from now where that is unknown: the state was lost
    # without a reboot, and with it what it had promised.
    clocks = read_clocks()
    since_seconds = clocks.slow_seconds
    with contextlib.suppress(TypeError, KeyError, ValueError):
        booted: Clocks = typed(Clocks, read_json(paths.booted), bounded=False)
        now = advance(booted, clocks.boot_seconds, clocks.raw_seconds)
        since_seconds -= now.slow_seconds - booted.slow_seconds
    new = first_state(os.urandom(8).hex(), since_seconds, times, promised_seconds(paths))
    return new._replace(clocks=clocks, origin=here, kept=kept_term(paths))


# ------------------------------------------------ decide: what follows from what was seen; pure


class Moment(NamedTuple):
    """What every effect answers: the time afterwards, whether the probe exists, and its result."""

    now_seconds: float  # on the fast clock: how late it may be, where a lease is to be over
    slow_seconds: float  # how early it may be, where a promise is
    wall_seconds: float
    host_offset_seconds: float | None  # the host's clock minus our raw one, where there is one
    probe_there: bool
    value: Any = None
    service: Service = Service()  # as of the last poll


class Seen(NamedTuple):
    """What one look has learnt so far; the `View` of a poll is made from it."""

    started_seconds: float
    until_seconds: float  # when the look must be over
    leaving: bool = False
    answered: frozenset[str] = frozenset()  # peers whose Apache answered in this look
    markers: Mapping[str, Marker] = {}  # newest valid marker of each peer
    first_stamps: Mapping[str, tuple[str, int]] = {}  # as first seen in this look
    last_stamps: Mapping[str, tuple[str, int]] = {}  # as last seen in the look before
    had_quorum: bool = False
    notes: Mapping[str, str] = {}  # peer -> why its marker counts as absent
    fresh: Mapping[str, Marker] = {}  # those that counted in the last poll
    makes_way: str = ""  # why, where the machine or its agent is to go; if there is an heir
    unfit: str = ""  # why, where what is to be served can't be


class Reply(NamedTuple):
    """What a peer answered in one poll when it was asked for its marker about us."""

    marker: Answer
    beside: tuple[str, Answer] | None = None  # without one for us: another node, and that one's


def newer_records(
    members: Members, known: Mapping[str, Record], marker: Marker, now: float
) -> Mapping[str, Record]:
    """A peer's records after this marker. Raises `BadInput` for one older than another seen."""
    before, age_seconds = known.get(marker.epoch), float("inf")
    if before:
        if marker.stamp < before.stamp:
            raise BadInput("its marker is older than one already seen: replayed")
        if marker.stamp == before.stamp:
            return {**known, marker.epoch: before._replace(read_seconds=now)}
        # A stamp was not there when the one before was last read; and it is no older than that one
        # was, if both clocks went on by as much in between.
        drifted = now - before.changed_seconds - (marker.stamp - before.stamp) / 1000
        age_seconds = max(0.0, min(now - before.read_seconds, before.age_seconds + drifted))
    # Each boot's newest is kept for as long as one of its markers could count as fresh: no replay
    # of another boot makes this node forget it.
    horizon = now - members.times.fresh_seconds
    recent = sorted((r.changed_seconds, e) for e, r in known.items() if r.changed_seconds > horizon)
    kept = {epoch: known[epoch] for _, epoch in recent[-31:]}
    return {**kept, marker.epoch: Record(marker.stamp, now, now, age_seconds)}


def times_in_vain(state: State, marker: Marker, slow: float) -> int:
    """How often in a row our vote bound us until the next look to somebody who never served."""
    times, vote = state.in_vain.get(marker.sender, 0), state.vote
    if marker.active:
        return 0
    bound = vote and vote[:2] == (marker.sender, marker.epoch) and slow < vote.until_seconds
    return times + 1 if vote and bound and marker.released < vote.stamp else times


def votes_for_me(members: Members, state: State, vote: Grant | None) -> bool:
    """Whether this is a vote for this boot of mine."""
    return vote is not None and (vote.candidate, vote.epoch) == (members.me, state.epoch)


def has_left_me(members: Members, state: State, name: str, reply: Reply, now: float) -> bool:
    """Whether a peer that shows us nothing shows another node that it votes for us no more."""
    if reply.beside is None:
        return False
    reader, page = reply.beside
    try:
        marker = parse_marker(members._replace(me=reader), name, page)
        newer_records(members, state.records.get(name, {}), marker, now)
    except BadInput:
        return False
    return not votes_for_me(members, state, marker.vote)


def observe(
    members: Members, state: State, seen: Seen, replies: Mapping[str, Reply], moment: Moment
) -> tuple[State, Seen]:
    """Take in the replies of one poll; who gave none keeps what it last said in this look."""
    now = moment.now_seconds
    markers, records = dict(seen.markers), dict(state.records)
    notes, first, in_vain = dict(seen.notes), dict(seen.first_stamps), dict(state.in_vain)
    grants = dict(state.grants)
    for name, reply in replies.items():
        markers.pop(name, None)
        notes[name] = ""
        try:
            marker = parse_marker(members, name, reply.marker)
            records[name] = newer_records(members, records.get(name, {}), marker, now)
        except BadInput as absent:
            notes[name] = str(absent)
            if has_left_me(members, state, name, reply, now):
                grants.pop(name, None)
            continue
        markers[name] = marker
        if name not in first:
            first[name] = (marker.epoch, marker.stamp)
            in_vain[name] = times_in_vain(state, marker, moment.slow_seconds)
    answered = seen.answered | set(replies)
    sees = tuple(name for name in members.peers if name in answered or name in state.sees)
    seen = seen._replace(answered=answered, markers=markers, first_stamps=first, notes=notes)
    return state._replace(records=records, sees=sees, in_vain=in_vain, grants=grants), seen


class View(NamedTuple):
    """What `decide` knows beside the state: the peers that see us and we them, and the time."""

    now_seconds: float
    slow_seconds: float
    markers: Mapping[str, Marker]  # present, verified, fresh
    # Two different stamps seen within this look; for whom I yielded to, since the one before, so
    # that the active node still reads of it when it looks for the first time.
    live: frozenset[str]
    asked_seconds: Mapping[str, float]  # no earlier than then its stamp was taken
    probe_there: bool
    leaving: bool
    clock_stepped: bool
    started_seconds: float
    late: bool = False  # the look began too late to stand
    makes_way: str = ""  # why this node does: it has an heir
    wall_seconds: float = 0.0
    service: Service = Service()


def is_late(members: Members, seen: Seen) -> bool:
    """Whether so much of the look was over when it began that it is no base for a lease."""
    missed_seconds = members.times.end_seconds - (seen.until_seconds - seen.started_seconds)
    return missed_seconds > tick_spread_seconds(members.times)


def heard_seconds(state: State, marker: Marker) -> float:
    """The newest request of ours that the sender had read, as a moment of our boot clock."""
    stamp = marker.heard.get(state.epoch)
    return stamp / 1000 if type(stamp) is int and 0 <= stamp < 1e12 else float("-inf")


def asked_of(members: Members, release: Release, wall_seconds: float) -> Members:
    """The members as that release has them, at that moment."""
    told, prefer = release.settings, release.prefer
    maintained = release.maintained(wall_seconds)
    preferred = prefer is not None and wall_seconds < prefer.until and not maintained
    seconds = told.failback if isinstance(told.failback, int) else 0
    other = release.build != members.generation
    return members._replace(
        order=tuple(release.nodes),
        drained=frozenset(release.drained),
        prefer=prefer.node if prefer and preferred else None,
        keeps_active=maintained or told.failback == "never",
        failback_looks=max(READY_LOOKS, int(-(-seconds // members.times.look_seconds))),
        goes_by=f"{release.generation} {prefer if preferred else None} {maintained}",
        replacement=release.loader.sha256 if other and not maintained else "",
    )


def waited_for(members: Members, markers: Mapping[str, Marker]) -> list[str]:
    """The peers that hold another release than this node: until none does, it has no effect."""
    seen = [name for name in members.peers if name in markers]
    return [name for name in seen if markers[name].release != members.release]


def takes_effect(members: Members, markers: Mapping[str, Marker]) -> bool:
    """Whether the release that this node holds has an effect from the next run on."""
    enough = len(markers) + 1 >= members.majority
    return bool(members.release) and enough and not waited_for(members, markers)


def may_be_replaced(members: Members, state: State, markers: Mapping[str, Marker]) -> bool:
    """Whether the agent of this node is the next one to be replaced."""
    # Passive nodes are first, in reverse order of preference, and the active one is last; each
    # waits for those before it to be proven, and for a majority without it.
    if not members.replacement:
        return False
    build = members.replacement[:12]
    done = {n for n, m in markers.items() if m.proven and m.generation == build}
    after = members.order[members.order.index(members.me) :]
    before = {n for n, m in markers.items() if state.active or (n in after and not m.active)}
    return members.proven and len(markers) >= members.majority and before <= done


def ahead(members: Members, markers: Mapping[str, Marker]) -> list[str]:
    """The peers that hold a newer release than this node."""
    return [name for name, marker in markers.items() if marker.release > members.release]


def heir_of(members: Members, markers: Mapping[str, Marker]) -> Marker | None:
    """Who is to take over from a node that makes way: the first that has seen a majority lately."""
    # One that is about to go says that it has seen none: nobody hands over to it. Nor to one that
    # is drained, or that would leave the role to others: for an older release, an agent on trial.
    newest = max([members.release, *(marker.release for marker in markers.values())])
    able = {
        name
        for name, m in markers.items()
        if m.active or m.quorum_runs >= READY_LOOKS
        if m.release == newest and m.proven and name not in members.drained and not m.unfit
    }
    order = sorted(members.order, key=lambda name: name != members.prefer)
    return next((markers[name] for name in order if name in able), None)


def unable(state: State) -> str:
    """Why this node could not serve, "" where it could."""
    broken = state.service_failed and f"its service failed: {state.service_failed}"
    return state.unfit or broken or state.not_started


def why_makes_way(
    members: Members, state: State, seen: Seen, markers: Mapping[str, Marker], now: float
) -> str:
    """Why this node is to hand the role over, "" where it may keep it."""
    since, times = state.behind_since_seconds, members.times
    if seen.makes_way:
        return seen.makes_way
    if members.me in members.drained:
        return "makes way: the operator drained it"
    if may_be_replaced(members, state, markers):
        return "makes way: its agent is to be replaced"
    if why := unable(state):
        return f"makes way: {why}"
    # Only after a run that asked for it: others are often a run earlier.
    long = since and now - since > times.period_seconds + 2 * times.look_seconds
    behind = state.active and long and ahead(members, markers)
    return "makes way: others hold a newer release" if behind else ""


def view_of(members: Members, state: State, seen: Seen, moment: Moment, *, stepped: bool) -> View:
    """The view of this moment."""
    now, slow = moment.now_seconds, moment.slow_seconds
    records = {name: state.records[name][m.epoch] for name, m in seen.markers.items()}
    # A marker counts as absent if it has not changed for too long, or does not answer a request of
    # this node's that is as new: so nothing that was recorded before speaks for a peer.
    oldest = now - members.times.fresh_seconds
    fresh = {
        name: marker
        for name, marker in seen.markers.items()
        if records[name].changed_seconds >= oldest and heard_seconds(state, marker) >= oldest
    }
    live = frozenset(
        name
        for name, m in fresh.items()
        if seen.first_stamps[name] != (m.epoch, m.stamp)
        or (name == state.yields_to and seen.last_stamps.get(name) != (m.epoch, m.stamp))
    )
    late, started = is_late(members, seen), seen.started_seconds
    asked = {name: record.changed_seconds - record.age_seconds for name, record in records.items()}
    why = why_makes_way(members, state, seen, fresh, now)
    heir = heir_of(members, fresh) if why else None
    leaving = seen.leaving or (heir is not None and heir.candidate and heir.sender in live)
    there, way = moment.probe_there, why if heir else ""
    told = now, slow, fresh, live, asked, there, leaving, stepped, started, late, way
    return View(*told, moment.wall_seconds, moment.service)


def failed(state: State, why: str) -> State:
    """The state of a node that had votes and could not serve, or whose look never ended."""
    return state._replace(failures=state.failures + 1, trouble=why, quorum_runs=0)


def bound_too_briefly(members: Members, state: State, view: View) -> list[str]:
    """Voters whose promises end before a passive node renews a lease; [] where the rest will do."""
    times = members.times
    least_seconds = times.lease_seconds - tick_spread_seconds(times)
    shown = {name: marker.vote for name, marker in view.markers.items()}
    brief = [
        name
        for name, vote in shown.items()
        if vote and (vote.candidate != members.me or vote.stamp > state.released)
        if lease_of(vote.promise_seconds, times.pause_seconds) < least_seconds
    ]
    enough = 1 + len(shown) - len(brief) >= members.majority
    return [] if enough or state.active else brief


def is_unready(members: Members, state: State) -> bool:
    """Whether this node is behind, its agent on trial, or its service failed or did not start."""
    late = state.behind_since_seconds > 0 or not members.proven
    return late or bool(state.service_failed or state.not_started)


def rests(members: Members, state: State, view: View) -> str:
    """Why this node leaves the role to others, "" if it does not (docs/protocol.md section 8)."""
    times, left = members.times, looks_to_prefer(state.failures) - state.quorum_runs
    if state.active:
        return ""
    if members.me in members.drained or state.unfit:
        return f"does not stand: {state.unfit}" if state.unfit else "is drained"
    if view.late:
        return "began this look too late to stand"
    if brief := bound_too_briefly(members, state, view):
        return f"leaves the role to others: votes of {', '.join(brief)} bind too briefly for it"
    others = any(marker.candidate for marker in view.markers.values())  # who makes way does not ask
    waits = others or view.now_seconds - view.started_seconds < times.rest_seconds
    newer = ", ".join(ahead(members, view.markers))
    why = f"leaves the role to others for {left} good looks more: {state.trouble}"
    if is_unready(members, state) and not state.candidate:  # two of them would give up in turn
        held = f"a newer release is held by {newer}" if newer else "it has just caught up"
        held = held if state.behind_since_seconds else unable(state) or "its agent is on trial"
        why = f"leaves the role to others: {held}"
    elif left <= 0:
        return ""
    return why if waits else ""


def preference(members: Members, state: State, view: View) -> tuple[str, ...]:
    """The order as this node heeds it (docs/protocol.md section 8)."""
    active = {name for name, marker in view.markers.items() if marker.active}
    active |= {members.me} if state.active else set()
    last = {
        name
        for name, marker in view.markers.items()
        if marker.quorum_runs < looks_to_prefer(state.in_vain.get(name, 0)) and name not in active
    }
    stays = active if members.keeps_active else set()
    told = {m.goes_by for m in view.markers.values() if m.release == members.release} - {None}
    if not told <= {members.goes_by}:  # of two orders each may put its own node first, for ever
        members = members._replace(order=tuple(sorted(members.order)), prefer=None)
        stays = active
    return tuple(
        sorted(members.order, key=lambda n: (n in last, n != members.prefer, n not in stays))
    )


class Claim(NamedTuple):
    """Somebody who asks for votes, me included."""

    epoch: str
    stamp: int
    active: bool
    ready: bool  # may take the role from an active node: good looks enough, and a live agent
    term: int | None


def claims(members: Members, state: State, view: View) -> dict[str, Claim]:
    """Who asks for votes now, most preferred first."""
    found = {}
    for name in preference(members, state, view):
        marker = view.markers.get(name)
        needed = READY_LOOKS if name == members.prefer else members.failback_looks
        if marker is not None and marker.candidate:
            ready = marker.quorum_runs >= needed and name in view.live
            found[name] = Claim(marker.epoch, marker.stamp, marker.active, ready, marker.term)
        elif name == members.me and state.candidate:
            ready = state.quorum_runs >= needed
            found[name] = Claim(state.epoch, state.stamp, state.active, ready, state.term or None)
    return found


def higher_candidates(members: Members, state: State, view: View) -> list[str]:
    """Candidates before me; while I am active only those that are ready to take over."""
    order, asking = preference(members, state, view), claims(members, state, view)
    before = order[: order.index(members.me)]
    return [n for n in before if n in asking and (not state.active or asking[n].ready)]


def yielding(members: Members, view: View) -> set[str]:
    """The voters that would rather vote for somebody else than for me."""
    return {name for name, m in view.markers.items() if m.yields_to not in (None, members.me)}


def outvoted(members: Members, state: State, view: View) -> bool:
    """Whether so many of my voters yield to somebody else that the rest is no majority."""
    lost = yielding(members, view) & set(state.grants)
    return bool(lost) and len(state.grants) - len(lost) < members.majority


def is_given_up(members: Members, state: State, view: View, vote: Vote) -> bool:
    """Whether the candidate has given up the very stamp that the vote was for."""
    if vote.candidate == members.me:
        return state.epoch == vote.epoch and state.released >= vote.stamp
    marker = view.markers.get(vote.candidate)
    return marker is not None and marker.epoch == vote.epoch and marker.released >= vote.stamp


def with_term(members: Members, state: State, view: View) -> State:
    """The state of a candidate, its term greater than any that it knows to be another request's.

    The wall clock is for disks that were lost, with the greatest: where it is right, none repeats.
    """
    known = (state.kept, *(marker.kept for marker in view.markers.values()))
    others = [kept.number for kept in known if kept[1:] != (members.me, state.epoch)]
    begins = 0 if state.candidate else int(view.wall_seconds)
    term = max(state.term, 1 + max(others, default=0), begins)
    return state if term == state.term else state._replace(term=term, grants={})


def may_vote(state: State, request: Term) -> bool:
    """Whether no vote of this node's, of any boot, was for as great a term of another request."""
    return request.number > state.kept.number or request == state.kept


def is_refused(state: State, claim: Claim, request: Term) -> bool:
    """Whether a request gets no vote, whoever is preferred."""
    epoch, stamp = state.granted.get(request.candidate, ("", 0))
    if epoch == claim.epoch and stamp >= claim.stamp:
        return True  # granted once: seeing it again extends nothing
    # Who asks with too small a term reads why, and asks with a greater one.
    return claim.term is not None and not may_vote(state, request)


def cast_vote(members: Members, state: State, view: View) -> tuple[State, str | None]:
    """Rule Vote 1 to 3: the state with this node's promise, and whom it would rather vote for."""
    now, vote = view.slow_seconds, state.vote
    if vote is not None and (now >= vote.until_seconds or is_given_up(members, state, view, vote)):
        # Another boot of the candidate gave that up, not the one that was voted for before.
        earlier_until = vote.earlier_until_seconds
        vote = vote._replace(until_seconds=earlier_until) if now < earlier_until else None
    state = state._replace(vote=vote)
    if state.holding(now):
        return state, None
    asking = claims(members, state, view)
    choice = vote.candidate if vote else next(iter(asking), None)
    if choice is None or choice not in asking:
        return state, None
    claim = asking[choice]
    if vote is not None:
        for name, rival in asking.items():
            if name == choice:
                break
            if not claim.active or rival.ready:
                return state, name
    request = Term(claim.term or 0, choice, claim.epoch)
    if is_refused(state, claim, request):
        return state, None
    promise = members.times.promise_seconds
    until, earlier_until = now + promise, 0.0
    if vote is not None:  # a renewal never shortens, whatever the settings say by now
        until = max(until, vote.until_seconds)
        of_other = vote.until_seconds if vote.epoch != claim.epoch else 0.0
        earlier_until = max(vote.earlier_until_seconds, of_other)
    vote = Vote(choice, claim.epoch, claim.stamp, until, promise, earlier_until, claim.term)
    granted = {**state.granted, choice: (claim.epoch, claim.stamp)}
    # Of its own it keeps one that it serves with: who asks in vain can still vote for others.
    kept = request if claim.term and choice != members.me else state.kept
    return state._replace(vote=vote, granted=granted, kept=kept), None


def count_grants(members: Members, state: State, view: View) -> State:
    """Rule Count: the newest stamp of mine that each voter shows granted; none shown, none left."""
    grants, own = dict(state.grants), state.vote
    shown = {name: marker.vote for name, marker in view.markers.items()}
    bound = own and Grant(own[0], own.epoch, own.stamp, own.promise_seconds, 0.0, own.term)
    shown[members.me] = bound
    for voter, vote in shown.items():
        newest = grants.get(voter, (state.released, 0.0))[0]
        if not votes_for_me(members, state, vote):
            grants.pop(voter, None)
        elif vote and newest < vote.stamp <= state.stamp and vote.term in (None, state.term):
            grants[voter] = (vote.stamp, vote.promise_seconds)
    return state._replace(grants=grants)


def lease_end_seconds(members: Members, state: State) -> float:
    """When the lease ends on our boot clock: L after the majority-th newest stamp granted."""
    times = members.times
    ends = sorted(
        stamp / 1000 + min(times.lease_seconds, lease_of(promise, times.pause_seconds))
        for stamp, promise in state.grants.values()
    )
    return ends[-members.majority] if len(ends) >= members.majority else float("-inf")


def give_up(state: State, now: float) -> State:
    """Give up every stamp so far: whoever granted one of them is free once it reads this."""
    stamp = max(state.stamp, int(now * 1000))
    return state._replace(released=state.stamp, grants={}, stamp=stamp, term=state.term + 1)


def is_worse_than_nobody(members: Members, state: State, view: View) -> bool:
    """Whether a node that could not serve is to stop though it has no heir."""
    return members.stops_unfit and bool(unable(state)) and not view.makes_way


class Decision(NamedTuple):
    """What follows from a view: drop or serve the probe, then save, then show `state`."""

    state: State
    drop: bool = False  # remove the probe before the state is saved and shown
    serve_until_seconds: float | None = None  # arm the fence for it, then commit the probe
    has_quorum: bool = False
    settled: bool = False
    reason: str = ""


def is_covered(members: Members, state: State) -> bool:
    """Whether a majority has granted this look's stamp."""
    covered = sum(stamp >= state.stamp for stamp, _ in state.grants.values())
    return covered >= members.majority


def is_content(members: Members, decision: Decision, view: View, active: str) -> bool:
    """Whether a passive node has given the active one what it needs for this tick."""
    state, marker = decision.state, view.markers[active]
    # A stamp of the look before does not do: who was late in it may look after us.
    if view.now_seconds - view.asked_seconds[active] > members.times.look_seconds / 4:
        return False
    if state.yields_to or any(m.yields_to == members.me for m in view.markers.values()):
        return False
    return marker.candidate  # else it is about to leave; what it asks for was granted, if it could


def is_settled(members: Members, decision: Decision, view: View) -> bool:
    """Whether nothing is left to wait for in this look (docs/protocol.md section 4)."""
    state, now = decision.state, view.now_seconds
    others = (name for name in members.order if name in view.markers and view.markers[name].active)
    active = members.me if state.active else next(others, None)
    if active is None or state.starting_since_seconds or state.stopping:
        return False
    if view.makes_way:  # it goes on as a voter
        return not state.active and is_content(members, decision, view, active)
    if view.leaving:
        return True
    idle = members.drained | {name for name, marker in view.markers.items() if marker.unfit}
    idle |= {members.me} if unable(state) else set()
    stand = [n for n in preference(members, state, view) if n not in idle]
    calm = active == next((n for n in stand if n == members.me or n in view.markers), active)
    if not calm and now - view.started_seconds < members.times.stay_seconds:
        return False
    if state.active:
        return is_covered(members, state)
    return is_content(members, decision, view, active)


def reason_of_service(members: Members, state: State, view: View) -> str:
    """What keeps a node that has a lease from serving, or a service from having stopped."""
    if state.stopping:
        return f"Node {members.me} is stopping its service, set as passive"
    seconds = view.now_seconds - state.starting_since_seconds
    starting = f"Node {members.me} is starting its service for {seconds:.0f} s"
    return starting if state.starting_since_seconds else ""


def reason_of(members: Members, decision: Decision, view: View) -> str:
    """Why this node is what it is, in the words that the log has always used, and the votes."""
    state, me, now = decision.state, members.me, view.slow_seconds
    if state.active or decision.serve_until_seconds is not None:
        return f"Node {me} reachability reach quorum and is preferred, set as active"
    if view.makes_way or view.leaving:
        return f"Node {me} {view.makes_way or 'is leaving'}, set as passive"
    if len(view.markers) + 1 < members.majority:
        return f"Node {me} reachability does not reach quorum, set as passive"
    if not state.candidate and (why := rests(members, state, view)):
        return f"Node {me} {why}, set as passive"
    if not state.candidate and decision.has_quorum:
        return f"Node {me} reachability reach quorum but not preferred, set as passive"
    votes = [(n, m.vote.candidate, m.vote.left_seconds) for n, m in view.markers.items() if m.vote]
    if state.vote is not None:
        votes.append((me, state.vote.candidate, state.vote.until_seconds - now))
    promised = [
        f"{voter} promised its vote to {candidate} for {left_seconds:.0f} s more"
        for voter, candidate, left_seconds in votes
        if candidate != me
    ]
    holds = [name for name, m in view.markers.items() if m.holding]
    holds += [me] if state.holding(now) else []
    promised += [f"{name} holds its vote after its boot" for name in holds]
    waits = "; ".join(promised) or "its votes are on the way"
    waits += f" (lately: {state.trouble})" if state.failures else ""
    return f"Node {me} reachability reach quorum, waits for votes, set as passive: {waits}"


def step_aside(members: Members, state: State, now: float) -> State:
    """The probe is gone: give the votes up, or hold on to them until the service has stopped."""
    if members.service and state.active and not state.stopping:
        return state._replace(stopping=True, candidate=False, starting_since_seconds=0.0)
    return give_up(state, now)._replace(active=False, stopping=False, starting_since_seconds=0.0)


def why_too_long(members: Members, state: State, view: View) -> str:
    """Why a start is waited for no longer, "" while it is."""
    started, most_seconds = state.starting_since_seconds, members.start_seconds
    long = started and view.now_seconds - started > most_seconds
    return f"its service was not there after {most_seconds:g} s" if long else ""


def why_not_started(members: Members, state: State, view: View) -> str:
    """Why the service of an active node is not there, and won't be; "" while it may be."""
    started, service = state.starting_since_seconds, view.service
    if service.state in ("stopped", "stopping") or (started and service.state == "failed"):
        why = f"`journalctl -u {START}` may say why" if started else "somebody stopped it"
        did = "did not start" if started else "is not there"
        return f"its service {did}: {service.failed or why}"
    return why_too_long(members, state, view)


def why_ends(
    members: Members, state: State, view: View, fence: float, steps_down: bool
) -> str | None:
    """Why the role ends now, or the stop of its service: a failure or ""; None where it goes on."""
    now = view.now_seconds
    if state.stopping:  # a lease that is over now, for a voter that rebooted, is no proof of a stop
        return "" if view.service.state in ("", "stopped") else None
    if steps_down:
        return ""
    if now >= fence or not (view.probe_there or state.starting_since_seconds):
        return LOST[now >= fence]
    return why_not_started(members, state, view) or None


def may_begin(state: State, own: Term, view: View) -> bool:
    """Whether a node that has the votes for its request may take the role with it."""
    return may_vote(state, own) and view.service.state in ("", "stopped")


def is_out_of_place(state: State, view: View) -> bool:
    """Whether something runs that this node has no role for, and that nobody stops yet."""
    runs = view.service.state not in ("", "stopped", "stopping", "unknown")
    return runs and (state.stopping or not state.active)


def decide(members: Members, state: State, view: View) -> Decision:
    """One step of the protocol, docs/protocol.md section 3: ask, vote, count, act."""
    now, times = view.now_seconds, members.times
    electors = sum(not m.holding for m in view.markers.values())
    electors += not state.holding(view.slow_seconds)
    has_quorum = electors >= members.majority
    higher = higher_candidates(members, state, view)
    gives_in = outvoted(members, state, view) or is_worse_than_nobody(members, state, view)
    steps_down = state.active and (bool(higher) or view.leaving or view.clock_stepped or gives_in)
    kept_back = view.leaving or steps_down or state.stopping or bool(rests(members, state, view))
    renews = state.active and state.candidate and not is_covered(members, state)
    kept_back |= bool(view.makes_way) and not renews
    wants = has_quorum and not higher and not kept_back
    if wants and not state.active:
        state = with_term(members, state, view)
    state, yields_to = cast_vote(members, state._replace(candidate=wants), view)
    state = state._replace(yields_to=yields_to)
    state = count_grants(members, state, view)
    fence = lease_end_seconds(members, state) - times.margin_seconds
    drop, serve, own = False, None, Term(state.term, members.me, state.epoch)
    if state.active and (ends := why_ends(members, state, view, fence, steps_down)) is not None:
        # No unit failed, so nothing else would remember it; and the next start would take the
        # role from who serves. So this node waits for the operator, or until nobody else asks.
        waits = bool(ends) and ends == why_too_long(members, state, view)
        drop, state = True, step_aside(members, state, now)
        state = state._replace(not_started=ends) if waits else state
        if ends and (has_quorum or ends not in LOST):
            state = failed(state, ends)
    elif wants and now < fence and (state.active or may_begin(state, own, view)):
        serve = fence
        state = state if state.active else state._replace(kept=own)
    elif not state.active and state.grants and (not wants or yielding(members, view)):
        state = give_up(state, now)
    if not state.active and serve is None:
        state = state._replace(stamp=max(state.stamp, int(now * 1000)))
    drop = drop or is_out_of_place(state, view)
    decision = Decision(state, drop, serve, has_quorum)
    settled = is_settled(members, decision, view)
    reason = reason_of_service(members, state, view) or reason_of(members, decision, view)
    return decision._replace(settled=settled, reason=reason)


# ------------------------------------------------ settle: one look, as the effects that it needs


class Poll(NamedTuple):
    """Ask every peer for its marker; wait for those of `wait_for`."""

    wait_for: frozenset[str]


class Save(NamedTuple):
    """Write the state where only a reboot loses it."""

    state: State


class Show(NamedTuple):
    """Write the marker of every peer that we see, and remove the others."""

    markers: Mapping[str, Marker | None]


class Drop(NamedTuple):
    """Remove the probe, whatever else fails; the answer is whether it is gone."""


class Serve(NamedTuple):
    """Arm the fence, tell Apache, then commit the probe; the answer is whether it is there."""

    until_seconds: float
    commit: bool


class Start(NamedTuple):
    """Start what runs with the role, under the fence and before the probe."""

    term: int
    until_seconds: float  # the fence


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Effect = Poll | Save | Show | Drop | Serve | Start | Pause


class Outcome(NamedTuple):
    """How a look ended."""

    state: State
    seen: Seen
    reason: str


Steps = Generator[Effect, Moment, Outcome]
Looks = Generator[Effect | Outcome, Moment, None]


def trouble_of(members: Members, error: OSError, then: str) -> str:
    """What could not be done, and what became of the role."""
    path = error.filename
    what = f"can't write {path}: {error.strerror}" if path else str(error)
    return f"Node {members.me} {what}, {then}"


def markers_of(members: Members, state: State, moment: Moment) -> dict[str, Marker | None]:
    """The marker for every peer that this node sees, None for the others."""
    now, vote = moment.slow_seconds, None
    if (own := state.vote) is not None and now < own.until_seconds:
        left = round(own.until_seconds - now, 1)
        vote = Grant(own.candidate, own.epoch, own.stamp, own.promise_seconds, left, own.term)
    both = {name: value for name, value in state._asdict().items() if name in Marker._fields}
    both |= {"generation": members.generation, "release": members.release, "proven": members.proven}
    both |= {"goes_by": members.goes_by, "unfit": unable(state)}
    both["term"] = state.term or None  # it took the role before there were any, and may go on
    both |= {"holding": state.holding(now), "vote": vote, "at": utc(moment.wall_seconds)}
    shown: dict[str, Marker | None] = dict.fromkeys(members.peers)
    for name in set(state.sees) & set(shown):
        heard = {epoch: record.stamp for epoch, record in state.records.get(name, {}).items()}
        shown[name] = Marker(sender=members.me, receiver=name, heard=heard, **both)
    return shown


def note_clocks(state: State, moment: Moment) -> tuple[State, bool]:
    """The state with how far clocks are apart, and whether one jumped since the last poll."""
    offset, now = moment.wall_seconds - moment.now_seconds, moment.now_seconds
    before, host_before = state.wall_offset_seconds, state.host_offset_seconds
    allowed = max(1.0, 0.1 * (now - state.wall_read_seconds))  # a time daemon may slew so much
    stepped = before is not None and abs(offset - before) > allowed
    if stepped:
        logging.warning("The wall clock was stepped by %.0f s", offset - (before or 0))
    host = moment.host_offset_seconds
    if host is not None and host_before is not None:  # it went on while the host paused us
        paused_seconds = host - host_before
        if abs(paused_seconds) > PAUSE_NOTICED_SECONDS:
            logging.warning("This machine was paused for %.1f s", paused_seconds)
            stepped = True
    state = state._replace(wall_offset_seconds=offset, wall_read_seconds=now)
    # Where it can't be read for a while, it tells of a pause afterwards.
    state = state._replace(host_offset_seconds=host_before if host is None else host)
    return state, stepped


def _drop() -> Generator[Effect, Moment, Moment]:
    """Remove the probe. Raises `OSError` where it stays, which ends the look."""
    moment = yield Drop()
    if not moment.value:
        raise OSError("can't remove probe.html")
    return moment


def _begin(
    members: Members, state: State, moment: Moment, *, leaving: bool
) -> Generator[Effect, Moment, tuple[State, Moment]]:
    """Drop a probe that should not be there before anything else, then ask with a new stamp."""
    now, times = moment.now_seconds, members.times
    missed = 0 < state.began_seconds < now - 1.6 * times.look_seconds - times.gap_seconds
    state, stepped = note_clocks(state, moment)
    late = now >= lease_end_seconds(members, state) - times.margin_seconds
    there = moment.probe_there or state.starting_since_seconds > 0
    rightful = state.stopping or (state.active and there and not late and not stepped)
    lost = state.active and not rightful and not stepped and state.quorum_runs > 0
    if (state.active or moment.probe_there) and not rightful:
        yield from _drop()
        if state.active:
            state = step_aside(members, state, now)
    if lost:
        state = failed(state, LOST[late])
    elif missed or not state.finished:
        state = failed(state, "its last look did not end well")
    stands = state.quorum_runs >= looks_to_prefer(state.failures)
    stands = stands and not (is_unready(members, state) or state.unfit)
    state = state._replace(
        stamp=max(state.stamp, int(now * 1000)),
        candidate=state.candidate and (stands or state.active) and not (leaving or state.stopping),
        finished=False,
        began_seconds=now,
    )
    if members.me in members.drained:  # who brings it back has seen to it; as after `leave`
        state = state._replace(not_started="")
    with contextlib.suppress(OSError):  # tried again after the first poll
        yield Save(state)
        moment = yield Show(markers_of(members, state, moment))
    return state, moment


def start_over(members: Members, state: State, moment: Moment) -> Decision:
    """A snapshot of a running machine was restored: what it promised since is forgotten."""
    epoch = hashlib.sha256(f"{state.epoch} {moment.wall_seconds}".encode()).hexdigest()[:16]
    new = first_state(epoch, moment.slow_seconds, members.times)
    new = new._replace(stamp=int(moment.now_seconds * 1000), sees=state.sees, records=state.records)
    why = f"Node {members.me} is a snapshot of itself, its peers know it newer, set as passive"
    logging.warning("%s", why)  # the look goes on, and ends with what came of that
    new = new._replace(origin=state.origin, kept=state.kept)
    return Decision(new, drop=True, reason=why)


def conclude(members: Members, state: State, seen: Seen, moment: Moment) -> tuple[Decision, Seen]:
    """What follows from the replies of one poll."""
    state, seen = observe(members, state, seen, moment.value, moment)
    heard = (heard_seconds(state, marker) for marker in seen.markers.values())
    if any(seconds * 1000 > state.stamp + 0.5 for seconds in heard):  # newer than any we know of
        return start_over(members, state, moment), seen
    state, stepped = note_clocks(state, moment)
    state = state._replace(service_failed=moment.service.failed)
    view = view_of(members, state, seen, moment, stepped=stepped)
    behind, since = bool(ahead(members, view.markers)), state.behind_since_seconds
    behind = behind or (since > 0 and not members.in_effect)
    state = state._replace(behind_since_seconds=(since or view.now_seconds) if behind else 0.0)
    decision = decide(members, state, view)
    if decision.has_quorum and not seen.had_quorum:
        goes = bool(seen.makes_way) or may_be_replaced(members, state, view.markers)
        brief = bound_too_briefly(members, state, view)
        behind = state.behind_since_seconds > 0 and not state.active  # nor does one that rests
        goes = goes or bool(unable(state))
        good = 0 if goes or brief or behind else decision.state.quorum_runs + 1  # 0: nobody's heir
        decision = decision._replace(state=decision.state._replace(quorum_runs=good))
    had_quorum = seen.had_quorum or decision.has_quorum
    return decision, seen._replace(had_quorum=had_quorum, fresh=view.markers)


def turns(members: Members, state: State, moment: Moment) -> tuple[bool, bool]:
    """Whether a node that has a lease starts its service now, and whether it commits its probe."""
    if not members.service:
        return False, not state.active
    there = state.starting_since_seconds > 0 and moment.service.state == "running"
    return not state.active, there


def _apply(
    members: Members, decision: Decision, tries: int
) -> Generator[Effect, Moment, tuple[State, OSError | None]]:
    """Drop, save, serve, show: nothing is shown before it holds. The state, and what failed."""
    state = decision.state
    try:
        if decision.drop:
            yield from _drop()
        moment = yield Save(state)
        if decision.serve_until_seconds is not None:
            starts, commits = turns(members, state, moment)
            moment = yield Serve(decision.serve_until_seconds, commit=commits)
            if state.active and not moment.value:
                raise OSError("came too late to renew its lease")
            if moment.value and (starts or commits):
                since = moment.now_seconds if starts else 0.0
                state = state._replace(active=True, starting_since_seconds=since, not_started="")
                moment = yield Save(state)
                if starts:
                    moment = yield Start(state.term, decision.serve_until_seconds)
        yield Show(markers_of(members, state, moment))
    except OSError as error:
        if not state.active:
            moment = yield from _drop()  # what may be staged
            if decision.serve_until_seconds is not None and tries + 1 >= COMMIT_TRIES:
                # Elected in vain for long enough, it frees its voters at once.
                state = failed(give_up(state, moment.now_seconds), str(error))
                state = state._replace(candidate=False)
        return state, error
    return state, None


def demoted(members: Members, state: State) -> State:
    """The state of a node that has dropped its probe, and has still to say so."""
    stopping = bool(members.service) and state.active
    return state._replace(active=stopping, stopping=stopping, starting_since_seconds=0.0)


def _overslept(members: Members, state: State, seen: Seen, moment: Moment) -> Steps:
    """The look was stopped or frozen: its view is too old to show anything."""
    fence = lease_end_seconds(members, state) - members.times.margin_seconds
    stays = state.active and moment.now_seconds < fence
    if not stays:
        yield Drop()
    then = "stays active" if stays else "set as passive"
    state, seen = state if stays else demoted(members, state), seen._replace(markers=seen.fresh)
    return Outcome(state, seen, f"Node {members.me} was stopped for a while, {then}")


def _rehearse(members: Members, state: State) -> Generator[Effect, Moment, None]:
    """Do all that serving takes but the rename: a node that failed is well only when it can."""
    # For a moment within this second of the wall clock, so that Apache would refuse every probe.
    moment = yield Pause(0)
    left_seconds = 0.9 * (1 - moment.wall_seconds % 1)
    try:
        moment = yield Serve(moment.now_seconds + left_seconds, commit=False)
        yield Show(markers_of(members, state, moment))  # where the probe may fill the disk
    except OSError:
        yield Drop()
        raise
    yield Drop()


def _finish(members: Members, state: State, seen: Seen, reason: str) -> Steps:
    """Peers that answered nothing in the whole look lose their marker."""
    seen = seen._replace(markers=seen.fresh)  # what was too old did not count
    sees = tuple(name for name in members.peers if name in seen.answered)
    last = state._replace(sees=sees)
    try:
        if state.failures and seen.had_quorum and not state.active and state.finished:
            yield from _rehearse(members, state)  # it shows what was saved
        if not seen.had_quorum or is_late(members, seen):
            last = last._replace(quorum_runs=0)
        elif state.quorum_runs > FORGIVEN_LOOKS and not state.starting_since_seconds:
            last = last._replace(failures=0)
        moment = yield Save(last)
        if (last.sees, last.quorum_runs) != (state.sees, state.quorum_runs):
            yield Show(markers_of(members, last, moment))
    except OSError as error:  # to the next look this one never ended
        logging.warning("%s", trouble_of(members, error, "the look ends"))
        last = state._replace(finished=False)
    return Outcome(last, seen, reason)


def _settle(members: Members, state: State, seen: Seen, moment: Moment) -> Steps:
    state = state._replace(unfit=seen.unfit)
    state, moment = yield from _begin(members, state, moment, leaving=seen.leaving)
    times, tries = members.times, 0
    slow: frozenset[str] = frozenset()  # who comes back, or wakes, is seen in the first poll
    while True:
        moment = yield Poll(frozenset(members.peers) - slow)
        asleep_seconds = moment.now_seconds - seen.until_seconds
        if asleep_seconds > times.timeout_seconds + times.poll_seconds:
            return (yield from _overslept(members, state, seen, moment))
        slow = frozenset(members.peers).difference(moment.value)
        decision, seen = conclude(members, state, seen, moment)
        state, trouble = yield from _apply(members, decision, tries)
        tries, reason = (tries + 1 if trouble else 0), decision.reason
        if trouble:  # an active node keeps its probe, which the fence takes in time
            then = "is active until its lease ends" if state.active else "set as passive"
            reason = trouble_of(members, trouble, then)
            if tries == 1:
                logging.warning("%s; trying again", reason)
        if moment.now_seconds >= seen.until_seconds or (decision.settled and not tries):
            state = state._replace(finished=not tries)
            return (yield from _finish(members, state, seen, reason))
        yield Pause(times.poll_seconds)


def settle(members: Members, state: State, start: Moment, seen: Seen) -> Steps:
    """One look, as the effects that it needs done; whoever does them sends back each `Moment`.

    It is over by `seen.until_seconds`, or after one poll where that is past. What can't be done is
    tried again at the next poll (the armed fence ends the lease); but for a probe that stays.
    """
    last_stamps = {
        name: (epoch, record.stamp)
        for name, epochs in state.records.items()
        for epoch, record in list(epochs.items())[-1:]
    }
    try:
        return (yield from _settle(members, state, seen._replace(last_stamps=last_stamps), start))
    except OSError as error:
        yield Drop()
        reason = trouble_of(members, error, "set as passive")
        return Outcome(demoted(members, state), seen, reason)


# ------------------------------------------------ machine: the effects done: files, fence, requests


class Fence:
    """The timer that removes the probe at a moment of the boot clock, whatever becomes of us.

    systemd counts OnBootSec= on the monotonic clock, in a container from its own start; the
    deadline is absolute, so arming it late or twice never lengthens it (systemd.timer(5)).
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._armed = paths.run / "fence"

    def arm(self, until_seconds: float, deadline_seconds: float) -> None:
        """Arm for that moment of `time.monotonic()`; only then drop the fence before.

        Raises `OSError`; the next call ends what was begun: every name is noted before systemd
        may know it, and until it no longer does.
        """
        lease = int(until_seconds * 1000)
        if re.fullmatch(rf"fence@{lease}-[0-9]+\.timer", read_mark(self._armed) or ""):
            return
        microseconds = int(deadline_seconds * 1e6) - self._base_microseconds()
        name = f"fence@{lease}-{int(deadline_seconds * 1000)}.timer"  # starts its fence@.service
        known = self._known()
        write_atomic(self._armed, " ".join(["unsure", *known, name]))
        deadline = (("s", "OnBootSec"), ("t", max(microseconds, 1)))
        properties = (
            ("Description", ("s", "Removes probe.html when the lease ends")),
            ("AccuracyUSec", ("t", 50_000)),
            ("RemainAfterElapse", ("b", False)),
            ("DefaultDependencies", ("b", False)),  # else shutdown and isolate would stop it, and
            ("IgnoreOnIsolate", ("b", True)),  # a service that is slow to stop run without
            ("TimersMonotonic", ("a(st)", [deadline])),
        )
        pairs = [(("s", key), ("v", value)) for key, value in properties]
        unit = (("s", name), ("s", "fail"), ("a(sv)", pairs), ("a(sa(sv))", ()))
        call_systemd(self._paths, "StartTransientUnit", *unit)
        self._stop(other for other in known if other != name)
        write_atomic(self._armed, name)

    def disarm(self) -> None:
        """Drop the fence; a probe that is gone needs none. Raises `OSError`."""
        self._stop(self._known())
        self._armed.unlink(missing_ok=True)

    def _known(self) -> list[str]:
        return re.findall(r"fence@[0-9-]+\.timer", read_mark(self._armed) or "")

    def _stop(self, names: Iterable[str]) -> None:
        for name in names:
            deadline_seconds = int(name[6:-6].rpartition("-")[2]) / 1000
            if deadline_seconds > time.monotonic():  # else it has fired, and its unit is gone
                # "replace": the job that starts it may still be queued, and would stand against us.
                call_systemd(self._paths, "StopUnit", ("s", name), ("s", "replace"))

    def _base_microseconds(self) -> int:
        if not Path("/run/systemd/container").exists():
            return 0
        asked = (("s", f"{SYSTEMD}.Manager"), ("s", "UserspaceTimestampMonotonic"))
        properties = "org.freedesktop.DBus.Properties"
        said = call_systemd(self._paths, "Get", *asked, interface=properties)
        return int.from_bytes(said[-8:], "little")


def drop_probe(paths: Paths) -> bool:
    """Remove the probe, and make Apache refuse it even if that fails; whether it is gone."""
    for path in (paths.probe, paths.staged):
        try:
            if remove(path) and path == paths.probe:
                logging.info("Removing %s", path)
        except OSError as error:
            logging.error("Can't remove %s: %s", path, error.strerror)
    gone = not os.path.lexists(paths.probe)
    try:
        write_atomic(paths.lease_until, "0")
        service = service_now(paths, joined_units(paths))
        # Also where all has ended: what it left behind is killed with that.
        if paths.starts.exists() or service.state not in ("", "stopped", "stopping"):
            logging.warning("Stopping what runs with the role")
            call_systemd(paths, "StartUnit", ("s", STOP), ("s", "replace"))
        elif gone and service.state != "stopping":
            Fence(paths).disarm()
    except OSError as error:
        logging.error("%s", error)
    return gone


def site_of(address: str, port: int) -> str:
    """Where a node's web server answers."""
    return f"http://{address}" + (f":{port}" if port != 80 else "")  # as everybody writes it


class Machine:
    """Does on this node what `settle` asks for."""

    def __init__(self, members: Members, nodes: Nodes, asked: str, paths: Paths, port: int) -> None:
        self.members, self.nodes, self.paths, self.port = members, nodes, paths, port
        self.release: Release | None = None  # in effect
        self.addresses = {name: entry[asked] for name, entry in nodes.items()}
        self.asker = Asker()
        self.fence = Fence(paths)
        self.vote: Vote | None = None
        self.kept = kept_term(paths)
        self.service = Service()  # as of the last poll
        self.wall_offset_seconds = float("inf")  # as at the last poll
        self.clocks = read_clocks()
        self.silent: dict[str, str] = {}  # peer -> why it gave no answer at last
        self.untested = set(members.peers)  # have not passed the connectivity test in this run

    def moment(self, value: Any = None) -> Moment:
        """The time, and whether the probe exists."""
        return Moment(*self.now(), self.paths.probe.exists(), value, self.service)

    def now(self) -> tuple[float, float, float, float | None]:
        """The clocks, as a `Moment` begins."""
        host, self.clocks = host_seconds(), read_clocks(self.clocks)
        apart_seconds = None if host is None else host - self.clocks.raw_seconds
        return self.clocks.fast_seconds, self.clocks.slow_seconds, time.time(), apart_seconds

    def drive(self, steps: Looks) -> Iterable[Outcome]:
        """Do every effect of a run and hand out what came of each look."""
        with contextlib.suppress(StopIteration):
            effect = next(steps)
            while True:
                try:
                    value = (yield effect) if isinstance(effect, Outcome) else self.do(effect)
                except OSError as error:
                    effect = steps.throw(error)
                else:
                    effect = steps.send(self.moment(value))

    def do(self, effect: Effect) -> Any:
        """Do one effect, by the method of its name. Raises `OSError` where it can't be done."""
        return getattr(self, type(effect).__name__.lower())(*effect)

    def drop(self) -> bool:
        """Remove the probe; whether it is gone."""
        return drop_probe(self.paths)

    def pause(self, seconds: float) -> None:
        """Wait; not to the end where the host has paused this machine meanwhile."""
        before, until = self.now()[3], time.monotonic() + seconds
        while (left_seconds := until - time.monotonic()) > 0:
            if before is None:
                time.sleep(left_seconds)
            else:
                time.sleep(min(left_seconds, PAUSE_NOTICED_SECONDS))
                if abs((self.now()[3] or before) - before) > PAUSE_NOTICED_SECONDS:
                    return

    def poll(self, wait_for: frozenset[str]) -> dict[str, Reply]:
        """Ask all peers at once; who is not waited for, or late, may answer in a later poll."""
        replies: dict[str, Reply] = {}
        self.collect(replies, set())  # what came too late for the last poll
        for name in self.members.peers:
            if name not in self.asker.busy:
                self.asker.ask(name, functools.partial(self.question, name))
        self.collect(replies, set(wait_for))
        for name in self.asker.busy:
            self.silent[name] = self.silent.get(name) or "no answer yet"
        self.service = service_now(self.paths, self.members.service)
        return replies

    def collect(self, replies: dict[str, Reply], waiting: set[str]) -> None:
        """Take in the answers that are there, and wait for those of some peers: the last counts."""
        deadline = time.monotonic() + self.members.times.timeout_seconds
        while found := self.asker.next(deadline if waiting else 0.0):
            name, outcome = found
            waiting.discard(name)
            replies.pop(name, None)
            if isinstance(outcome, Unanswered):
                self.silent[name] = str(outcome)
            else:
                self.silent[name], replies[name] = "", outcome
                self.untested.discard(name)

    def question(self, name: str, session: requests.Session) -> Reply:
        """What to ask a peer: its front page until a run saw that, then its marker about us."""
        times, site = self.members.times, site_of(self.addresses[name], self.port)
        if name in self.untested:
            page = fetch(session, f"{site}/", timeout_seconds=times.connect_seconds)
            if page.status != 200:
                raise Unanswered(f"status {page.status}")
        url = f"{site}/{self.members.me}.html"
        try:
            marker = fetch(session, url, timeout_seconds=times.timeout_seconds)
        except HungUp:  # once more, on a new connection
            marker = fetch(session, url, timeout_seconds=times.timeout_seconds)
        if marker.status not in (200, 404):
            raise Unanswered(f"status {marker.status}")
        holds = self.paths.probe.exists() or self.paths.starts.exists()
        unseen = marker.status == 404 and holds
        return Reply(marker, self.beside(session, name) if unseen else None)

    def beside(self, session: requests.Session, name: str) -> tuple[str, Answer] | None:
        """A peer's marker for another node, which tells whom it votes for; one of some nodes'."""
        others = [other for other in self.members.peers if other != name]
        seconds = self.members.times.timeout_seconds
        with contextlib.suppress(Unanswered):
            for other in others[:3]:
                url = f"{site_of(self.addresses[name], self.port)}/{other}.html"
                if (answer := fetch(session, url, timeout_seconds=seconds)).status == 200:
                    return other, answer
        return None

    def save(self, state: State) -> None:
        """Write the state before anything that depends on it is shown."""
        if state.vote and (not self.vote or self.vote.candidate != state.vote.candidate):
            logging.info("Vote for %s (promise of %g s)", state.vote[0], state.vote.promise_seconds)
        self.vote = state.vote
        self.wall_offset_seconds = state.wall_offset_seconds or self.wall_offset_seconds
        if state.kept != self.kept:  # outlives any boot, so before the vote
            write_atomic(self.paths.term, json.dumps(state.kept), sync=True)
            self.kept = state.kept
        write_atomic(self.paths.state, json.dumps(state._replace(clocks=self.clocks)._asdict()))
        self.paths.booted.unlink(missing_ok=True)

    def show(self, markers: Mapping[str, Marker | None]) -> None:
        """Write or remove every peer's marker; raises the first `OSError` after the last."""
        trouble: OSError | None = None
        for name, marker in markers.items():
            path = self.paths.html / f"{name}.html"
            try:
                if marker is None:
                    remove(path)
                else:
                    write_atomic(path, format_marker(self.members, marker))
            except OSError as error:
                trouble = trouble or error
        if trouble:
            raise trouble

    def serve(self, until_seconds: float, commit: bool) -> bool:
        """Set the fence and Apache's limit, then commit the probe; whether it is there."""
        # Systemd's clock first: a process that stands still before the second arms too early.
        deadline_seconds = time.monotonic() + until_seconds - (now := self.now()[0])
        if now >= until_seconds:
            return False
        self.fence.arm(until_seconds, deadline_seconds)
        if commit or not self.paths.probe.exists():
            content = f"<!doctype html><title>{self.members.me} is active</title>\n"
            write_atomic(self.paths.staged, content)
        if commit:
            logging.info("Creating %s", self.paths.probe)
        # The wall clock is read first: if time passes between the two, the limit is too early. So
        # it is after a pause since the last poll, which stepped that clock ahead.
        offset_seconds = time.time() - self.now()[0]
        limit_seconds = min(offset_seconds, self.wall_offset_seconds) + until_seconds
        limit = time.strftime("%Y%m%d%H%M%S", time.gmtime(limit_seconds))
        write_atomic(self.paths.lease_until, limit)
        if not commit:
            return self.paths.probe.exists() or self.paths.staged.exists()
        # The last thing before the rename: a run that stood still until after its fence fired must
        # not stage and commit again.
        if self.now()[0] >= until_seconds:
            return False
        self.paths.staged.replace(self.paths.probe)
        return True

    def start(self, term: int, until_seconds: float) -> None:
        """Start what runs with the role, and tell it the term; never after the fence has fired."""
        logging.info("Starting what runs with the role, term %d", term)
        told = [f"CLUSTER_TERM={term}"]
        call_systemd(self.paths, "SetEnvironment", ("as", told))
        to_stop = [f"{self.members.times.stop_seconds:g}", *self.members.service]
        write_atomic(self.paths.starts, " ".join(to_stop) + "\n")  # for stop.sh
        # As for the probe: a run that stands still from here on finds that stop.sh removed this.
        if self.now()[0] >= until_seconds:
            raise OSError("came too late to start its service")
        call_systemd(self.paths, "StartUnit", ("s", START), ("s", "replace"))


# ------------------------------------------------ report: log, status.json, journal

NO_LIMIT = "Apache would serve probe.html after its lease: apache.conf is overridden or missing"
TOLD_TIMES = (*FIXED, "fresh_seconds")


def probe_expires(session: requests.Session, site: str, times: Timing) -> bool:
    """Whether this Apache would refuse a probe whose lease is over. Raises `Unanswered`."""
    # It takes the query for a lease's end (agent/apache.conf); looking for the file is no refusal.
    over = time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() - 5))
    url = f"{site}/probe.html?{over}"
    return fetch(session, url, timeout_seconds=times.timeout_seconds).status not in (200, 404)


def reachable_nodes(members: Members, outcome: Outcome) -> list[str]:
    """The nodes that see each other both ways, this one included, most preferred first."""
    return [name for name in members.order if name == members.me or name in outcome.seen.markers]


def log_peer(machine: Machine, seen: Seen, name: str, address: str) -> None:
    """What one peer answered in this look."""
    me, page = machine.members.me, machine.paths.html / f"{name}.html"
    told = f"Node Name: {name} with public IP: {address}"
    logging.info("%s is remote, perform connectivity test", told)
    if name not in seen.answered:
        why = machine.silent.get(name, "not asked in this look")
        logging.warning("HTTP Connectivity failed to %s: %s", address, why)
        logging.info("Not able to reach %s, making sure %s does not exist", name, page)
        return
    logging.info("HTTP Connectivity is successful to %s", address)
    known = f"creating {page} to let remote know connection from local to remote works"
    logging.info("Able to reach %s, %s", name, known)
    logging.info("Now check if remote can see local by lookup %s.html on %s", name, me)
    if name in seen.markers:
        logging.info("Confirmed %s can see %s", address, me)
        added = "can see each other, add remote public IP to reachable list"
        logging.info("Both %s and %s %s", me, name, added)
    else:
        why = seen.notes.get(name) or "its marker is too old, or answers none of our requests yet"
        logging.warning("Not confirmed that %s can see %s: %s", address, me, why)


def log_trace(machine: Machine, outcome: Outcome) -> None:
    """The trace of a look, line by line, as operators of this design know it."""
    members, addresses, needed = machine.members, machine.addresses, machine.members.majority
    for name, address in addresses.items():
        if name == members.me:
            logging.info("Node Name: %s with public IP: %s is local, skip", name, address)
        else:
            log_peer(machine, outcome.seen, name, address)
    reachable = reachable_nodes(members, outcome)
    reached = [addresses[name] for name in reachable]
    logging.info("All reachable nodes (including local node): %s", reached)
    count = len(reachable)
    enough = "more than or equal to" if count >= needed else "less than"
    logging.info("Total reachable nodes %d is %s majority nodes %d", count, enough, needed)
    ordered = [(name, dict(machine.nodes[name])) for name in reachable]
    logging.info("Filtered reachable ordered nodes %s", ordered)
    logging.info("%s", outcome.reason)
    if not outcome.state.active and not machine.paths.probe.exists():
        logging.info("probe.html already does not exist")


def status_of_release(machine: Machine, outcome: Outcome, wall_seconds: float) -> dict[str, Any]:
    """Which release this node holds and goes by, and what that asks for now."""
    members, release, paths = machine.members, machine.release, machine.paths
    refused = (read_json(paths.asked) or {}).get("refused", "")
    other = release and not refused and release.build != members.generation
    if release and other and release.loader.sha256 in failed_here(paths):
        refused = f"generation {release.generation}: its loader.py failed on this node"
    maintained = release and release.maintained(wall_seconds)
    return {
        "release": {
            "held": members.release,
            "effective": release.generation if release else 0,
            "runs": members.generation,
            "proven": members.proven,
            "refused": refused,
            "waits_for": waited_for(members, outcome.seen.markers),
        },
        "drained": members.me in members.drained,
        "prefer": members.prefer,
        "maintenance_until": release.maintenance_until if release and maintained else None,
        "failback": release.settings.failback if release else "auto",
    }


def why_not_set_up(paths: Paths) -> str:
    """What keeps the application from being set up (setup.sh), in its last line; "" for nothing."""
    if not (paths.etc / "setup.sha256").exists() or (paths.etc / "setup.done").exists():
        return ""
    return (read_mark(paths.etc / "setup.failed") or "").strip()[:200] or "it has not succeeded yet"


def serves(state: State) -> bool:
    """Whether the probe is there, and with it the role: not while its service starts, or stops."""
    return state.active and not (state.starting_since_seconds or state.stopping)


def status_of(identity: Identity, machine: Machine, outcome: Outcome) -> dict[str, Any]:
    """The view of this node, for pages and tools; every length of time counts from `at`."""
    members, state, seen = machine.members, outcome.state, outcome.seen
    times, now = members.times, machine.moment()
    vote, slow = state.vote, now.slow_seconds
    left = vote.until_seconds - slow if vote else 0.0
    bound = vote and left > 0 and {"candidate": vote.candidate, "seconds": round(left, 1)}
    lease = lease_end_seconds(members, state) - now.now_seconds
    hold = state.hold_until_seconds - slow
    shown = {name: marker.vote for name, marker in seen.markers.items()}
    votes = {name: vote.candidate for name, vote in shown.items() if vote}
    return {
        "node": members.me,
        "zone": identity.zone,
        "role": "active" if serves(state) else "passive",
        "term": state.term if state.active else state.kept.number,
        "reason": outcome.reason,
        "at": utc(now.wall_seconds),
        **{name: round(getattr(times, name), 1) for name in TOLD_TIMES},
        "host_clock": now.host_offset_seconds is not None,
        "version": __version__,
        "generation": members.generation,
        "setup": why_not_set_up(machine.paths),
        "unfit": unable(state),
        "private_ip": identity.private_ip,
        "public_ip": identity.public_ip,
        "needed": members.majority,
        "reachable": reachable_nodes(members, outcome),
        "peers": {
            n: {"sees": n in seen.answered, "seen_by": n in shown, "votes_for": votes.get(n)}
            for n in members.peers
        },
        "vote": bound or None,
        "lease_seconds": round(lease, 1) if state.active else None,
        "holding_seconds": round(hold, 1) if hold > 0 else None,
        "worst_case_failover_seconds": round(worst_failover_seconds(times), 1),
        **status_of_release(machine, outcome, now.wall_seconds),
    }


def tell_role(paths: Paths, role: str, reason: str, *, warning: bool = False) -> None:
    """One line in the journal; a WARNING when the role is not the one reported last."""
    before = read_json(paths.role) or "passive"
    if role != before:
        logging.warning("Role changed from %s to %s", before, role)
        with contextlib.suppress(OSError):
            write_atomic(paths.role, json.dumps(role))
    tell_journal(f"{role}: {reason}", warning=warning or role != before)


def report(machine: Machine, identity: Identity, outcome: Outcome, expires: Any, last: Any) -> Any:
    """status.json, and where it says what `last` does not, trace and journal; what it says now.

    Worth a trace is who is active, who sees whom, who votes for whom, and what is wrong here.
    `expires`: False where Apache sets no limit, None where nobody knows.
    """
    paths, state, seen = machine.paths, outcome.state, outcome.seen
    votes = {name: marker.vote and marker.vote.candidate for name, marker in seen.markers.items()}
    own, unlimited = state.vote and state.vote.candidate, expires is False
    now = (state.active, seen.answered, votes, own, unlimited, unable(state), serves(state))
    if now != last:
        log_trace(machine, outcome)
    status = status_of(identity, machine, outcome)
    status["probe_expires"] = expires if isinstance(expires, bool) else None
    try:
        write_atomic(paths.status, json.dumps(status))
    except OSError as error:
        logging.error("Can't write %s: %s", paths.status, error.strerror)
    if now != last and unlimited:
        logging.warning(NO_LIMIT)
        tell_role(paths, status["role"], f"{outcome.reason}. {NO_LIMIT}", warning=True)
    elif now != last:
        tell_role(paths, status["role"], outcome.reason)
    return now


def start_log(paths: Paths) -> None:
    """Log to the file; where that can't be written, to standard error. A full disk loses lines."""
    logging.raiseExceptions = False
    try:
        paths.logfile.parent.mkdir(parents=True, exist_ok=True)
        opened = open_plain(paths.logfile, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stream: TextIO = os.fdopen(opened, "a", encoding="utf-8")
    except OSError as error:
        stream = sys.stderr
        print(f"{paths.logfile}: not written: {error}", file=stream)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


# ------------------------------------------------ verbs

DRY = ("--dry-run", "--self-check")  # the verbs that change nothing


def prepare(
    identity: Identity, settings: Settings, kept: Kept, paths: Paths
) -> tuple[Machine, State, Moment]:
    """What a run begins with: the cluster, and what this node has promised. Raises `BadInput`."""
    release = kept.effective
    nodes = release.nodes if release else read_nodes(paths)
    logging.info("List of nodes in cluster: %s", list(nodes))
    if identity.name not in nodes:
        raise BadInput(f"{paths.nodes_info}: {identity.name!r}, this node, is not in it: add it.")
    logging.info("There are total: %d nodes in the cluster", len(nodes))
    key, *other_keys = keys_in_turn(read_keys(paths), release.generation if release else 0)
    generation, proven = file_sha256(paths.loader)[:12], not read_mark(paths.trial)
    me, order, in_effect = identity.name, tuple(nodes), kept.held == release
    members = Members(me, order, key, settings.times, generation, tuple(other_keys))
    members = members._replace(release=kept.generation, in_effect=in_effect, proven=proven)
    # As the times have it: what joined since would have no time to stop.
    service = joined_units(paths) if settings.times.stop_seconds else ()
    members = members._replace(service=service, start_seconds=settings.start_seconds)
    members = members._replace(stops_unfit=settings.unhealthy == "stop")
    if release:  # the tick is one moment on all nodes
        period_seconds = settings.times.period_seconds
        members = asked_of(members, release, time.time() // period_seconds * period_seconds)
    if members.replacement in failed_here(paths):
        members = members._replace(replacement="")
    needed = members.majority
    logging.info("Require minimum %d majority nodes to vote who's the active node", needed)
    state = load_state(paths, settings.times)
    # Addresses need no agreement: where they are wrong, none is ever reached.
    places = kept.held.nodes if kept.held else nodes
    asked = f"{settings.peer_address}_ip"
    machine = Machine(members, places, asked, paths, settings.cluster_port)
    machine.clocks, machine.release = read_clocks(state.clocks), release
    return machine, state, machine.moment()


def run_left_seconds(times: Timing, wall_seconds: float, age_seconds: float = 0.0) -> float:
    """How long a run may last, now that it is so old: of one look, `end` in all."""
    # One of several: until as long before the next tick as its last look then ends in time; if
    # there is no time left before that, before the one after it, but within systemd's limit.
    if times.look_seconds == times.period_seconds:
        return times.end_seconds - age_seconds
    longest_seconds = times.period_seconds - times.look_seconds + times.end_seconds
    left_seconds = longest_seconds - wall_seconds % times.period_seconds
    left_seconds = left_seconds if left_seconds > 0 else times.period_seconds
    return min(left_seconds, longest_seconds - age_seconds)


def looks(
    members: Members,
    state: State,
    start: Moment,
    until_seconds: float,
    *,
    leaving: bool = False,
    makes_way: Callable[[], str] = str,
    unfit: Callable[[], str] = str,
) -> Looks:
    """The looks of a run, and what came of each: until that must be over, or has left.

    `makes_way`: asked before each for why this node is to hand the role over, "" for nothing;
    `unfit`: for why it is not even to stand while it has no role.
    The first begins at once, the others at the same moments of the wall clock on every node.
    """
    times = members.times
    look_seconds, several = times.look_seconds, times.look_seconds < times.period_seconds
    longest_seconds = look_seconds - times.timeout_seconds - times.poll_seconds  # the next is due
    early_seconds = look_seconds / 10  # a pause may end so early: chrony slews by up to a twelfth
    while True:
        began_seconds, ends_seconds = start.now_seconds, until_seconds
        into_seconds = (start.wall_seconds + early_seconds) % look_seconds - early_seconds
        if several and not (leaving and members.service):
            ends_seconds = min(until_seconds, began_seconds + longest_seconds - into_seconds)
        ends_seconds = max(began_seconds, ends_seconds)
        way, why = makes_way(), unfit()
        seen = Seen(began_seconds, ends_seconds, leaving, makes_way=way, unfit=why)
        outcome = yield from settle(members, state, start, seen)
        state, now = outcome.state, (yield outcome)
        left_seconds = run_left_seconds(times, now.wall_seconds)
        until_seconds = min(until_seconds, now.now_seconds + left_seconds)
        left_seconds = look_seconds - into_seconds - (now.now_seconds - began_seconds)
        over = now.now_seconds + max(0.0, left_seconds) >= until_seconds
        if leaving or over or not several:
            return
        start = yield Pause(max(0.0, left_seconds) + 0.002)


SET_ASIDE = re.compile(r"~$|\.(bak|old|new|swp|(dpkg|ucf|rpm).*)$")  # as for systemd and health.sh


def why_unhealthy(paths: Paths, settings: Settings) -> str:
    """What a check of the operator's says (health.sh), "" where there is none or all is well."""
    found = (path for path in paths.etc.glob("health.d/[!.]*") if os.access(path, os.X_OK))
    checks = sum(not SET_ASIDE.search(path.name) for path in found)
    if not checks:
        return ""
    told = re.match(r"(\d+\.?\d*) \d+ \d+ ([01])\n(.*)", read_mark(paths.health) or "")
    if not told:
        return "its health is not known yet"
    # As long as the failures take that count, if each check ends with its time.
    known_seconds = settings.unhealthy_after * (checks * settings.health_seconds + 6)
    if boot_seconds() - float(told[1]) > known_seconds:
        return f"its health checks have told nothing for {known_seconds} s"
    return f"its health check {told[3]}" if told[2] == "1" else ""


class Fitness:
    """Whether this node could serve, as its looks ask."""

    def __init__(self, paths: Paths, settings: Settings, joined: tuple[str, ...]) -> None:
        self._paths, self._settings, self._joined = paths, settings, joined
        self._refused = why_not_killed(paths, joined)

    def why_not(self) -> str:
        """Why it could not, "" where it could."""
        paths, settings = self._paths, self._settings
        # Once is enough where all is well. Else a daemon-reload that was under way may be over.
        self._refused = self._refused and why_not_killed(paths, self._joined)
        why = why_not_set_up(paths)
        why = f"its application is not set up: {why}" if why else self._refused
        if not (why or settings.times.stop_seconds) and (joined := joined_units(paths)):
            why = f"{joined[0]} has joined since its run began"  # the next one has the times for it
        return why or why_unhealthy(paths, settings)


class Announced:
    """What Azure announces for this node, and its approval, by what the looks find."""

    def __init__(self, background: Asker, paths: Paths, node: str) -> None:
        self._background, self._paths, self._node = background, paths, node.lower()
        self._events: list[Event] = []
        self._kinds = str(read_json(paths.announced) or "")  # as an earlier run knew

    def why(self, patience_seconds: float = 0.0) -> str:
        """A reason to make way, as far as known: a late answer counts from the next look on."""
        found, known = self._background.take("events", patience_seconds), self._kinds
        if isinstance(found, Unanswered):
            logging.info("Scheduled events: %s", found)
        elif found is not None:
            self._events = [event for event in found if self._node in event.nodes]
            self._kinds = ", ".join(sorted({event.kind for event in self._events}))
        if self._kinds != known:
            with contextlib.suppress(OSError):
                write_atomic(self._paths.announced, json.dumps(self._kinds))
        return f"makes way: Azure announces {self._kinds}" if self._kinds else ""

    def approve(self, members: Members, outcome: Outcome, *, was_active: bool) -> None:
        """Once a run: when another node is active that does not go as well, or none can be.

        Who was active when the run began leaves it to the next one: the load balancer's probe has
        to notice first. Who stays must be a majority, and of several that go each waits for those
        after it, until they are back; or until Azure waits no longer.
        """
        waiting = [event for event in self._events if event.scheduled]
        going = {name for event in waiting for name in event.nodes}
        markers = outcome.seen.markers
        active = [n for n, marker in markers.items() if marker.active and n.lower() not in going]
        before = members.order[: members.order.index(members.me)]
        stay = sum(bool(m.quorum_runs) or n in before for n, m in markers.items() if not m.holding)
        served = active and not was_active and stay >= members.majority
        if waiting and (served or not heir_of(members, markers)):
            why = f"{active[0]} is active" if active else "no other node can be"
            self._events = [event._replace(scheduled=False) for event in self._events]
            self._background.ask("approval", lambda link: approve(link, waiting, why, self._paths))


def go_on(machine: Machine, outcome: Outcome) -> None:
    """At the end of a run: what the next one goes by, signs with, and is. Raises `OSError`."""
    members, markers, paths = machine.members, outcome.seen.markers, machine.paths
    going, keys = machine.release, read_keys(paths)
    shown, ours = {marker.cluster for marker in markers.values()}, common_fields(members)["cluster"]
    older = [*keys].index(members.key) if members.key in keys else 0
    if older and len(markers) == len(members.peers) and shown == {ours}:
        write_keys(dict([*keys.items()][older:]), paths)  # all nodes sign with it, as this one did
    effective = going.generation if going else 0
    if takes_effect(members, markers) and members.release != effective:
        effective = members.release
        write_atomic(paths.effective, f"{effective}\n", sync=True)
        logging.warning("Release %d has an effect from the next run on.", effective)
    elif going and not outcome.state.active and may_be_replaced(members, outcome.state, markers):
        replace_loader(going, paths)
    for folder in paths.releases.glob("*"):  # a peer that takes none may hold many up
        if folder.name.isdecimal() and effective != int(folder.name) < members.release:
            shutil.rmtree(folder)


def take_part(
    background: Asker, paths: Paths, settings: Settings, kept: Kept, until: float, *, leaving: bool
) -> bool:
    """The run itself, to be over at a moment of `time.monotonic()`; whether it saw a majority.

    Raises `BadInput`.
    """
    times = settings.times
    identity = who_am_i(background, paths, brief_seconds(times))
    announced = Announced(background, paths, identity.name)
    announced.why(brief_seconds(times))
    machine, state, start = prepare(identity, settings, kept, paths)
    own = site_of(identity.private_ip, settings.cluster_port)
    background.ask("limit", lambda session: probe_expires(session, own, times))
    keep_promised(paths, state, times, start.slow_seconds)
    expires, last = None, None
    until_seconds = start.now_seconds + until - time.monotonic()
    begins, fitness = machine.moment(), Fitness(paths, settings, machine.members.service)
    steps = looks(
        *(machine.members, state, begins, until_seconds),
        leaving=leaving,
        makes_way=announced.why,
        unfit=fitness.why_not,
    )
    for outcome in machine.drive(steps):
        expires = background.take("limit", 0) if expires is None else expires
        last = report(machine, identity, outcome, expires, last)
        announced.approve(machine.members, outcome, was_active=state.active)
    background.take("approval", brief_seconds(times))  # of a run of one look, which ends now
    try:
        if not leaving:
            go_on(machine, outcome)
    except OSError as error:
        logging.error("What the next run is to go by: %s", error)
    return len(outcome.seen.markers) + 1 >= machine.members.majority


def run(
    paths: Paths, settings: Settings, kept: Kept, left_seconds: float, *, leaving: bool = False
) -> None:
    """One run, in the order of the header, to be over in so long. Raises `BadInput`."""
    mark, good = read_mark(paths.trial), read_mark(paths.good_run)
    url, background, until = settings.bootstrap_url, Asker(), time.monotonic() + left_seconds
    paths.good_run.unlink(missing_ok=True)
    if url:
        held = kept.generation
        background.ask("release", lambda session: take_release(session, url, held, paths, until))
    background.ask("identity", ask_identity)
    if settings.scheduled_events and not leaving:
        background.ask("events", ask_events)
    else:
        paths.announced.unlink(missing_ok=True)
    taken = not url or background.take("release", brief_seconds(settings.times))
    try:
        saw_majority = take_part(background, paths, settings, kept, until, leaving=leaving)
    except Exception:
        drop_probe(paths)  # before a release is waited for, whose agent may be the remedy
        background.take("release", min(CHECK_SECONDS, until - time.monotonic()))
        ours, (newest, going) = {file_sha256(paths.loader), *failed_here(paths)}, read_kept(paths)
        # Of the release in effect the others say whose turn it is, or where it has failed.
        if newest and newest != going and newest.loader.sha256 not in ours:
            with contextlib.suppress(OSError):
                replace_loader(newest, paths)
        raise
    taken = taken or background.take("release", min(CHECK_SECONDS, until - time.monotonic()))
    # Without these it may be the agent that can't ask: it would not take the remedy either.
    if mark is not None and saw_majority and taken:
        with contextlib.suppress(OSError):
            end_trial(mark, good, paths)


def leave(paths: Paths, settings: Settings, kept: Kept) -> None:
    """Hand the role over in a last look, the cluster's next: within one and a half of them."""
    times = settings.times
    if load_state(paths, times).active or paths.probe.exists():
        wait_seconds = times.look_seconds - time.time() % times.look_seconds
        left_seconds = 1.5 * times.look_seconds - wait_seconds - times.connect_seconds
        time.sleep(wait_seconds + 0.002)
        left_seconds = min(times.end_seconds, left_seconds) + times.stop_seconds
        run(paths, settings, kept, left_seconds, leaving=True)
    if state := read_json(paths.state):  # neither a look that was stopped nor those to come failed
        told = {**state, "finished": True, "began_seconds": 0.0, "not_started": ""}
        write_atomic(paths.state, json.dumps(told))


def is_marker(path: Path) -> bool:
    """Whether this agent wrote that page: perhaps for a node that has left since."""
    with contextlib.suppress(OSError), os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
        return MARKER_OPEN.encode() in file.read(8192)
    return False


def bootup(paths: Paths) -> None:
    """Start as a passive node, before Apache does: no probe, no markers, a vote that is held.

    Raises `OSError` when a probe can't be removed: without a lease Apache refuses it all the same.
    """
    paths.run.mkdir(parents=True, exist_ok=True)
    paths.lease_until.unlink(missing_ok=True)
    if not paths.state.exists():
        write_atomic(paths.booted, json.dumps(read_clocks()))
    for path in (paths.probe, paths.staged, paths.status):  # first: others' pages may be many
        remove(path)
    names: set[str] = set()
    with contextlib.suppress(BadInput):
        names = set(read_nodes(paths))
    for path in [*paths.html.glob("*.html")]:
        if path.stem in names or is_marker(path):
            remove(path)
    logging.info("bootup: probe.html and all markers are removed")
    keep_compiled(paths)


def glance(members: Members, state: State, moment: Moment) -> tuple[Decision, Seen]:
    """What a look that began at this moment would make of the replies in it."""
    now = moment.now_seconds
    decision, seen = conclude(members, state, Seen(now, now + members.times.end_seconds), moment)
    return decision, seen._replace(markers=seen.fresh)


def dry_run(paths: Paths, settings: Settings, kept: Kept) -> None:
    """Print what this node sees and would do. Writes nothing. Raises `BadInput`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        identity = ask_identity(new_session())
    except Unanswered as silence:
        if (known := known_identity(paths)) is None:
            raise BadInput(f"the instance metadata service gives {silence}") from silence
        identity = known
    machine, state, _ = prepare(identity, settings, kept, paths)
    now = machine.moment(machine.poll(frozenset(machine.members.peers)))
    decision, seen = glance(machine.members, state, now)
    log_trace(machine, Outcome(decision.state, seen, decision.reason))
    vote = decision.state.vote
    left_seconds = vote.until_seconds - now.slow_seconds if vote else 0
    bound = f"{vote.candidate} for {left_seconds:.0f} s more" if vote else "nobody"
    logging.info("Would vote for %s. Nothing was changed.", bound)


def made_up(sender: Members, state: State, receiver: str, now: Moment) -> Reply:
    """The reply of a node in that state, which nobody sent."""
    marker = markers_of(sender, state, now)[receiver]
    page = format_marker(sender, marker).encode() if marker else b""
    return Reply(Answer(200, page, {}, whole=True))


def self_check(paths: Paths) -> None:
    """Read this node's files, and ask for votes on markers that nobody wrote. Raises `BadInput`."""
    times, release = read_settings(paths.conf).times, read_kept(paths).effective
    nodes = release.nodes if release else read_nodes(paths)
    members = Members(next(iter(nodes)), tuple(nodes), read_key(paths.key), times)
    began, replies = boot_seconds(), {}
    now = Moment(began, began, time.time(), None, probe_there=False)
    state = first_state("self-check", began - 10 * times.promise_seconds, times)
    asks = state._replace(stamp=int(began * 1000), candidate=True, sees=members.peers)
    for name in members.peers:
        peer = members._replace(me=name)
        reply = made_up(members, asks, name, now)
        heard, _ = observe(peer, state, Seen(began, began), {members.me: reply}, now)
        replies[name] = made_up(peer, heard, members.me, now)
    decision, _ = glance(members, asks, now._replace(value=replies))
    if not decision.state.candidate:
        raise BadInput("with every peer there this agent does not ask for votes")
    print(CHECK_PASSED)


def one_at_a_time(paths: Paths, patience_seconds: float) -> Any:
    """The lock of a run, to be kept open until it ends. Raises `Busy` while another runs."""
    import fcntl  # noqa: PLC0415 - `deploy` reads this file too, where there is no Linux

    paths.run.mkdir(parents=True, exist_ok=True)
    # For root alone: whoever can open it can keep it locked, and no run would start.
    lock = os.fdopen(os.open(paths.lock, os.O_WRONLY | os.O_CREAT, 0o600), "w")
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy("another run of loader.py is under way: wait for its end") from None
            time.sleep(0.1)


def perform(verb: str, paths: Paths) -> None:
    """Do one verb. Raises `BadInput`, `OSError`."""
    if verb in ("bootup", "--self-check"):
        return bootup(paths) if verb == "bootup" else self_check(paths)
    kept = read_kept(paths)
    settings = settings_here(paths, kept.held)
    if verb == "--dry-run":
        return dry_run(paths, settings, kept)
    with one_at_a_time(paths, settings.times.period_seconds if verb == "leave" else 0):
        if verb == "leave":
            return leave(paths, settings, kept)
        # Counts from the tick, as systemd's time limit does: on a node that boots, Python and
        # its imports take long enough to be killed for otherwise.
        left_seconds = run_left_seconds(settings.times, time.time(), process_age_seconds())
        return run(paths, settings, kept, left_seconds)


def fail_closed(verb: str, paths: Paths, reason: str, code: int) -> int:
    """Say why, and remove the probe: unknown counts against being active."""
    if verb in DRY:
        print(f"loader.py: {reason}", file=sys.stderr)
        return code
    logging.error("%s, set as passive", reason)
    drop_probe(paths)
    tell_role(paths, "passive", reason, warning=True)
    return code


def main(words: list[str]) -> int:
    """Do what the words say; whatever fails ends with no probe here, a sentence, and a code."""
    verb = words[0] if words else ""
    if words == ["--version"]:
        print(__version__)
        return 0
    if len(words) > 1 or verb not in ("", *DRY, "bootup", "leave"):
        print(__doc__, file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
        return 0 if verb in ("-h", "--help") else 2
    paths = Paths()
    os.umask(0o022)  # Apache reads what is written here
    if verb not in DRY:
        start_log(paths)
    try:
        perform(verb, paths)
    except Busy as busy:
        logging.error("%s", busy)
        tell_journal(str(busy), warning=True)
        return 2
    except BadInput as wrong:
        return fail_closed(verb, paths, str(wrong), 2)
    except Exception as error:  # the one that fails closed
        logging.exception("This run failed")
        return fail_closed(verb, paths, f"this run failed: {type(error).__name__}: {error}", 1)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    gc.freeze()
    if code:
        sys.exit(code)
