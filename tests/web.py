"""A real web server on every address of the loopback, standing for nodes, load balancer and cloud.

Who is asked is told by the address: each has pages of its own, at one port.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Page:
    """One answer. `promised_bytes`: what Content-Length claims; `pause_seconds`: before each byte;
    `clock_seconds`: the server's clock against ours.

    Status 0 closes the connection without a word.
    """

    body: bytes | str = "<!doctype html><h1>a node</h1>"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    promised_bytes: int | None = None
    pause_seconds: float = 0.0
    clock_seconds: float = 0.0


SILENT, CLOSES = Page(status=-1), Page(status=0)
NOT_FOUND = Page("not found", 404)


class Asked(NamedTuple):
    """A request as it came in."""

    path: str  # without the query
    headers: Mapping[str, str]
    connection: int  # the client's port
    at: float  # wall clock
    content: bytes | None = None  # of a POST


@dataclass
class Site:
    """One address: what it answers, and what it was asked; a path not in `pages` is a 404."""

    url: str
    pages: dict[str, Page | Callable[[Asked], Page]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    cut_off: list[str] = field(default_factory=list)  # paths whose body the client did not want

    def asked_for(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]


@dataclass
class Web:
    """The running server."""

    port: int
    sites: dict[str, Site] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def site(self, address: str) -> Site:
        return self.sites.setdefault(address, Site(f"http://{address}:{self.port}"))

    @property
    def asked(self) -> list[Asked]:
        """Whatever anybody asked here."""
        return [asked for site in list(self.sites.values()) for asked in site.asked]


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"  # keeps connections open, as Apache does

    def do_POST(self) -> None:
        self.do_GET(self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self, content: bytes | None = None) -> None:
        self.site = self.server.web.site(self.connection.getsockname()[0])
        path, port = self.path.partition("?")[0], self.client_address[1]
        asked = Asked(path, dict(self.headers), port, time.time(), content)
        self.site.asked.append(asked)
        page = self.site.pages.get(asked.path, NOT_FOUND)
        page = page if isinstance(page, Page) else page(asked)
        if page.status > 0:
            self.answer(page)
            return
        self.close_connection = True
        self.server.web.stopped.wait(0 if page.status == 0 else None)

    def answer(self, page: Page) -> None:
        body = page.body.encode() if isinstance(page.body, str) else page.body
        promised = len(body) if page.promised_bytes is None else page.promised_bytes
        self.close_connection = promised != len(body)
        self.clock_seconds = page.clock_seconds
        self.send_response(page.status)
        headers = {"Content-Length": str(promised), "Content-Type": "text/html"}
        for name, value in (headers | dict(page.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.send_slowly(body, page.pause_seconds) if page.pause_seconds else None
            self.wfile.write(body if not page.pause_seconds else b"")
        except OSError:
            self.site.cut_off.append(self.path)
            self.close_connection = True

    def send_slowly(self, body: bytes, pause_seconds: float) -> None:
        for byte in body:
            if self.server.web.stopped.wait(pause_seconds):
                return
            self.wfile.write(bytes([byte]))

    def date_time_string(self, timestamp: float | None = None) -> str:
        now = time.time() if timestamp is None else timestamp
        return super().date_time_string(int(now + self.clock_seconds))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its parent's name
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("", 0), _Handler)
        self.web = Web(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that goes away is what some of the scenarios are about

    def server_bind(self) -> None:
        # Every address of the loopback, and none but those.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        super().server_bind()


@contextmanager
def open_web() -> Iterator[Web]:
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.web
    finally:
        server.web.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def status_page(
    node: str, role: str, *, age_seconds: float = 3, clock_seconds: float = 0, **fields: object
) -> Callable[[Asked], Page]:
    """A `status.json` that is always `age_seconds` old; a field given as None is left out."""

    def page(_: Asked) -> Page:
        now = datetime.now(timezone.utc) + timedelta(seconds=clock_seconds - age_seconds)
        at = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {"node": node, "role": role, "reason": f"because {node}", "at": at} | fields
        said = {name: value for name, value in said.items() if value is not None}
        return Page(json.dumps(said), clock_seconds=clock_seconds)

    return page
