"""Azure's scheduled events for the lab's nodes: announced by a verb, told by the metadata service.

Only told: what Azure would do then, `lab freeze`, `off` and `on` do. Rules:
learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

import json
import time
import uuid
from email.utils import formatdate
from pathlib import Path
from threading import Lock
from typing import Any

from deploy import Refusal
from deploy.files import read_object, write_json
from deploy.lab import STATE

FILE = STATE / "events.json"

NOTICE_SECONDS = {"Freeze": 900, "Reboot": 900, "Redeploy": 600, "Preempt": 30, "Terminate": 300}
"""The kinds, and how long before its time Azure announces one, at least."""

VERSIONS = [
    *("2017-08-01", "2017-11-01", "2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"),
]
ENABLING_SECONDS = 5.0
"""How long the first answer takes, which switches the events of a machine on; Azure: up to 120."""


def announce(file: Path, node: str, kind: str, notice_seconds: float) -> dict[str, Any]:
    """Announce an event of one machine, as Azure does for those that stand alone; the event.

    Without notice, 0 s, it has begun as soon as it is told: a host that failed.
    """
    if kind not in NOTICE_SECONDS:
        raise Refusal(f"{kind!r}: use one of {', '.join(NOTICE_SECONDS)}.")
    if not 0 <= notice_seconds <= 7 * 86400:
        raise Refusal(f"not before {notice_seconds:g} s: use 0 to {7 * 86400}, a week.")
    event = {
        "EventId": str(uuid.uuid4()).upper(),
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [node],
        "NotBefore": time.time() + notice_seconds,
        "Description": "Host server is undergoing maintenance.",
        "EventSource": "Platform",
        "DurationInSeconds": 5 if kind == "Freeze" else -1,
    }
    write_json(file, {"events": [*announced(file), event]})
    return event


def withdraw(file: Path, node: str) -> int:
    """The node's events are over, or called off: nobody can tell which; how many there were."""
    before = announced(file)
    left = [event for event in before if node not in event["Resources"]]
    write_json(file, {"events": left})
    return len(before) - len(left)


def announced(file: Path) -> list[dict[str, Any]]:
    """The events of all nodes, as they were announced."""
    return list(read_object(file)["events"]) if file.exists() else []


def start_requests(content: bytes) -> list[str] | None:
    """The ids that a request wants to have started; None where it is malformed."""
    try:
        ids = [request["EventId"] for request in json.loads(content)["StartRequests"]]
    except (ValueError, KeyError, TypeError):
        return None
    return ids if ids and all(isinstance(each, str) for each in ids) else None


class ScheduledEvents:
    """What each node is told; approvals last as long as the service does."""

    def __init__(self, file: Path, enabling_seconds: float = ENABLING_SECONDS) -> None:
        self._file, self._enabling_seconds = file, enabling_seconds
        self._lock = Lock()
        self._enabled: set[str] = set()
        self._started: set[str] = set()
        self._told: dict[str, tuple[int, list[dict[str, Any]]]] = {}

    def enable(self, node: str) -> None:
        """The first request of a machine is what switches its events on, and is answered late."""
        with self._lock:
            late = node not in self._enabled
            self._enabled.add(node)
        if late:
            time.sleep(self._enabling_seconds)

    def document(self, node: str) -> dict[str, Any]:
        """What the node is told; the incarnation grows when that is something else than before."""
        with self._lock:
            events = [self._as_told(event) for event in announced(self._file)]
            own = [event for event in events if node in event["Resources"]]
            incarnation, before = self._told.get(node, (0, None))
            if own != before:
                incarnation += 1
            self._told[node] = incarnation, own
        return {"DocumentIncarnation": incarnation, "Events": own}

    def _as_told(self, event: dict[str, Any]) -> dict[str, Any]:
        started = event["EventId"] in self._started or time.time() >= event["NotBefore"]
        not_before = "" if started else formatdate(event["NotBefore"], usegmt=True)
        return event | {
            "EventStatus": "Started" if started else "Scheduled",
            "NotBefore": not_before,
        }

    def start(self, node: str, ids: list[str]) -> bool:
        """Have these events begin; whether all of them are known and the node's."""
        with self._lock:
            own = [e["EventId"] for e in announced(self._file) if node in e["Resources"]]
            known = all(each in own for each in ids)
            self._started |= set(ids) if known else set()
        return known
