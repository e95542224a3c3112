"""A real web server on a loopback address of its own, standing for a node or a load balancer."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Page:
    """One answer. `slow`: a byte every 0.2 s; `clock_seconds`: the server's clock against ours."""

    body: bytes | str = "ok"
    code: int = 200
    slow: bool = False
    clock_seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Web:
    """A running server; a path that is not in `pages` is a 404."""

    url: str
    port: int
    pages: dict[str, Page | Callable[[], Page]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


@contextmanager
def web(address: str, port: int = 0) -> Iterator[Web]:
    server = ThreadingHTTPServer((address, port), BaseHTTPRequestHandler)
    port = server.server_address[1]
    site = Web(f"http://{address}:{port}", port)
    server.RequestHandlerClass = _handler(site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        site.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(site: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            page = site.pages.get(self.path, Page("not found", 404))
            page = page() if callable(page) else page
            self.clock_seconds = page.clock_seconds
            body = page.body.encode() if isinstance(page.body, str) else page.body
            self.send_response(page.code)
            headers = {"Content-Length": str(len(body)), "Content-Type": "text/html"}
            for name, value in (headers | page.headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.send_slowly(body) if page.slow else self.wfile.write(body)
            except OSError:
                self.close_connection = True  # the client had enough

        def send_slowly(self, body: bytes) -> None:
            for byte in body[:300]:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if site.stopped.wait(0.2):
                    return

        def date_time_string(self, timestamp: float | None = None) -> str:
            now = time.time() if timestamp is None else timestamp
            return super().date_time_string(int(now + self.clock_seconds))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its parent's name
            pass

    return Handler


def status_page(
    node: str, role: str, *, age_seconds: float = 3, clock_seconds: float = 0, **fields: object
) -> Callable[[], Page]:
    """A `status.json` that is always `age_seconds` old; a field given as None is left out."""

    def page() -> Page:
        now = datetime.now(timezone.utc) + timedelta(seconds=clock_seconds - age_seconds)
        at = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {"node": node, "role": role, "reason": f"because {node}", "at": at} | fields
        said = {name: value for name, value in said.items() if value is not None}
        return Page(json.dumps(said), clock_seconds=clock_seconds)

    return page
