"""What passes between the fake's parts: requests, answers, refusals, operations, faults."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it is Azure's answer
    """What Azure says no to, with its status, its code and its words."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(more.pop("headers", {}))
        self.error = {"code": code, "message": message, **more}  # more: details, additionalInfo

    def answer(self) -> "Answer":
        """The refusal as it goes over the wire."""
        return Answer(self.status, {"error": self.error}, self.headers)


@dataclass(frozen=True)
class Request:
    """One request as it came in; `path` keeps its letter case and its percent signs."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    data: bytes
    names: Mapping[str, str] = field(default_factory=dict)  # from the route's pattern

    @property
    def body(self) -> Body:
        """The JSON body."""
        try:
            body = json.loads(self.data or b"{}")
        except ValueError as error:
            raise Refused(400, "InvalidRequestContent", f"not JSON: {error}") from error
        if not isinstance(body, dict):
            raise Refused(400, "InvalidRequestContent", "the body must be an object")
        return body


@dataclass(frozen=True)
class Answer:
    """A status with a JSON body or bytes, and headers."""

    status: int
    body: Body | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def data(self) -> bytes:
        """The body as it goes over the wire."""
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body).encode()


@dataclass
class Operation:
    """Something Azure works on; `end` runs once, when its time has come."""

    name: str
    done_at: float
    end: Callable[[], None]
    target: str
    namespace: str
    api_version: str
    failure: Body | None = None  # the error that a poll tells
    preempted: bool = False  # a newer operation ends what this one began
    ended: bool = False


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that `where` picks.

    `what`: "throttled", "unavailable", "busy" (409), "retryable" (429), "refused" (with `status`,
    `code`, `message` and `more`), "fails" (the operation that it begins), "preempted" (it fails,
    and the resource succeeds by a newer one), "cut" (the connection, before the request has any
    effect), "cut after", "kill" and "kill after"; or what a proxy answers in Azure's place: "html",
    "html as json", "nothing", "a list" and "an empty object".
    """

    where: Callable[[Request], bool]
    what: str
    times: int = 1
    code: str = "AllocationFailed"
    message: str = "Allocation failed. We do not have sufficient capacity in this zone."
    retry_after: int = 1  # seconds, of "throttled"
    status: int = 409
    more: Body = field(default_factory=dict)  # details, additionalInfo


def is_poll(path: str) -> bool:
    """Whether a path asks how an operation goes."""
    places = ("/operations/", "/operationresults/", "/asyncoperations/")
    return any(place in path.lower() for place in places)


@dataclass(frozen=True)
class Record:
    """A request and how it was answered."""

    request: Request
    status: int
    answer: bytes
    begun: float
    ended: float

    @property
    def is_poll(self) -> bool:
        """Whether it asks how an operation goes."""
        return is_poll(self.request.path)


@dataclass
class Log:
    """Every request, in the order of their ends."""

    records: list[Record] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, record: Record) -> None:
        """Add one."""
        with self.lock:
            self.records.append(record)

    def of(self, *methods: str) -> list[Request]:
        """The requests of some methods."""
        return [record.request for record in self.records if record.request.method in methods]
