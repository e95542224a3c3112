"""Stands for systemd's manager on its private socket, where a test can't boot one.

Strict in what it takes (another D-Bus library reads it), and real in what it knows: a timer that
was started is there until it is stopped. It may refuse connections, or do as it is told and say
nothing.
"""

import os
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jeepney.low_level import (  # type: ignore[import-untyped]
    HeaderFields,
    Message,
    Parser,
)
from jeepney.wrappers import (  # type: ignore[import-untyped]
    new_error,
    new_method_return,
)

NAME = "org.freedesktop.systemd1"
TIMER = {
    "Description": "s",
    "AccuracyUSec": "t",
    "RemainAfterElapse": "b",
    "DefaultDependencies": "b",
    "IgnoreOnIsolate": "b",
    "TimersMonotonic": "a(st)",
}


def path_of(unit: str) -> str:
    """The path of a unit's object."""
    escaped = "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


class Systemd:
    """A manager at `path`. `calls`: each method, its first argument, and what `pages` held then."""

    def __init__(self, path: Path, pages: Path) -> None:
        self.path, self.pages = path, pages
        self.calls: list[tuple[str, str, str]] = []
        self.timers: dict[str, int] = {}  # name -> microseconds after the boot
        self.units: dict[str, str] = {}  # joined units and active.target -> ActiveState
        self.spared: set[str] = set()  # units with SendSIGKILL=no
        self.unloaded: dict[str, str] = {}  # unit -> why not: its LoadState
        self.starts = path.parents[1] / "bootstrap/starts"
        self.stops = self.starts.with_name("stops")
        self.starts_as = "active"  # what becomes of joined units
        self.stops_as = "inactive"
        self.stops_in_seconds = 0.0
        self.environment: list[str] = []
        self.started: list[str] = []  # of the joined units
        self.loses_answers = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self.listener: socket.socket | None = None
        self.works()

    def works(self) -> None:
        """Listen, if it does not."""
        self.loses_answers = False
        if self.listener is None:
            self.path.unlink(missing_ok=True)
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(self.path))
            self.listener.listen(16)
            threading.Thread(target=self._serve, args=(self.listener,), daemon=True).start()

    def fails(self) -> None:
        """Refuse connections: the socket is there, and nobody listens."""
        if self.listener is not None:
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None

    def loses_its_answers(self) -> None:
        """Do as it is told, and hang up without a word."""
        self.loses_answers = True

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link, suppress(OSError):
                link.settimeout(5)
                self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        user, said = str(os.geteuid()).encode().hex(), b""
        while not said.endswith(b"\r\nBEGIN\r\n") and (byte := link.recv(1)):
            said += byte
        assert said == f"\0AUTH EXTERNAL {user}\r\nBEGIN\r\n".encode()
        if select.select([link], [], [], 0.01)[0]:
            return  # a call that comes before the OK is one that systemd never looks at
        link.sendall(b"OK 5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e\r\n")
        parser = Parser()
        calls: list[Message] = []
        while not calls and (data := link.recv(65536)):
            calls = parser.feed(data)
        for call in calls:
            answer = self.answer(call)
            if not self.loses_answers:
                link.sendall(answer.serialise(serial=7))

    def answer(self, call: Message) -> Message:
        """What systemd does, and says."""
        fields = call.header.fields
        assert fields[HeaderFields.destination] == NAME, fields
        member, body = fields[HeaderFields.member], call.body
        if member == "Get" and body[1] == "SendSIGKILL":
            (unit,) = {name for name in self.units if path_of(name) == fields[HeaderFields.path]}
            assert body[0] == f"{NAME}.{unit.rpartition('.')[2].capitalize()}", body
            return new_method_return(call, "v", (("b", unit not in self.spared),))
        assert fields[HeaderFields.path] == "/org/freedesktop/systemd1", fields
        if member == "ListUnitsByNames":
            found = [self._unit(name) for name in body[0]]
            return new_method_return(call, "a(ssssssouso)", (found,))
        if member == "SetEnvironment":
            self.environment += body[0]
            return new_method_return(call)
        there = " ".join(page.name for page in self.pages.iterdir())
        self.calls.append((member, body[0], there))
        if member == "Get":
            assert body == (f"{NAME}.Manager", "UserspaceTimestampMonotonic"), body
            assert fields[HeaderFields.interface] == "org.freedesktop.DBus.Properties", fields
            return new_method_return(call, "v", (("t", 0),))
        assert fields[HeaderFields.interface] == f"{NAME}.Manager", fields
        done: dict[str, Callable[..., str]] = {
            "StartTransientUnit": self._start,
            "StopUnit": self._stop,
            "RestartUnit": lambda *_: "",
            "StartUnit": self.start,
        }
        wrong = done[member](*body)
        if wrong:
            return new_error(call, f"{NAME}.UnitError", "s", (wrong,))
        return new_method_return(call, "o", ("/org/freedesktop/systemd1/job/1",))

    def _start(self, name: str, mode: str, properties: list[Any], others: list[Any]) -> str:
        assert (mode, others) == ("fail", []), (mode, others)
        assert {key: kind for key, (kind, _) in properties} == TIMER, properties
        if name in self.timers:
            return f"Unit {name} was already loaded or has a fragment file."
        ((base, after),) = dict(properties)["TimersMonotonic"][1]
        assert base == "OnBootSec", base
        self.timers[name] = after
        return ""

    def _unit(self, name: str) -> tuple[Any, ...]:
        state = self.units.get(name, "inactive")
        loaded = self.unloaded.get(name, "loaded")
        told = (name, "a unit", loaded, state, "", "", path_of(name))
        return (*told, 0, "", "/")

    def start(self, name: str, mode: str = "replace") -> str:
        """At once: what starts `active.target` with what joined it, or what stops both."""
        assert (name in ("start-active.service", "stop-active.service"), mode) == (True, "replace")
        starts, before = name == "start-active.service", self.units
        if not starts and self.stops_in_seconds:
            if "stop-active.service" not in before:  # else it is under way
                self.units = {**before, "stop-active.service": "activating"}
                with suppress(FileNotFoundError):
                    self.starts.replace(self.stops)
                threading.Timer(self.stops_in_seconds, lambda: self._stopped(before)).start()
            return ""
        if starts and not self.starts.exists():  # the unit's condition
            return ""
        if starts:
            self.started += [unit for unit in before if unit != "active.target"]
        self.units = dict.fromkeys(before, self.starts_as if starts else self.stops_as)
        if not starts:
            for path in (self.starts, self.stops):
                path.unlink(missing_ok=True)
            self.units |= {unit: state for unit, state in before.items() if state == "failed"}
        self.units["active.target"] = "active" if starts else "inactive"
        return ""

    def _stopped(self, units: dict[str, str]) -> None:
        self.units = dict.fromkeys(units, self.stops_as)
        self.stops.unlink(missing_ok=True)

    def _stop(self, name: str, mode: str) -> str:
        assert mode == "replace", mode
        return "" if self.timers.pop(name, None) is not None else f"Unit {name} not loaded."
