"""Azure's instance metadata service for the lab's nodes, as strict as the real one.

It answers by the caller's address. Sources: learn.microsoft.com/azure/virtual-machines/
instance-metadata-service and /azure/load-balancer/howto-load-balancer-imds, and those of `events`.
"""

import base64
import contextlib
import json
import sys
import time
import uuid
from collections import defaultdict, deque
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from deploy.lab import METADATA, events
from deploy.lab.cloud import balancer_address
from deploy.lab.events import ScheduledEvents, start_requests
from deploy.lab.network import mac_address
from deploy.nodes_info import NO_SUBSCRIPTION, read_nodes
from deploy.plan import Node, Plan, plan_of
from deploy.settings import Settings

REQUESTS_PER_SECOND = 5
VERSIONS = [
    *("2020-10-01", "2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01"),
    *("2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15"),
    *("2024-03-15", "2024-07-17", "2025-04-07"),
]
EVENTS = "/metadata/scheduledevents"
MOST_BYTES = 64 << 10
USER_DATA = base64.b64encode(bytes(64 << 10)).decode()
"""As large as Azure takes it: who reads less of the answer than Azure may send learns nothing here.

https://learn.microsoft.com/azure/virtual-machines/user-data
"""

Response = tuple[int, dict[str, Any]]
"""Status and body."""

NOT_FOUND: Response = 404, {"error": "Not found"}


class Request(NamedTuple):
    """A GET of `target` (path and query), or with `content` a POST, by the address `caller`."""

    caller: str
    target: str
    headers: Message
    content: bytes | None = None


class RateLimit:
    """At most `REQUESTS_PER_SECOND` requests of one caller in any second."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._recent: dict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=REQUESTS_PER_SECOND)
        )

    def allows(self, caller: str, now: float) -> bool:
        """Count the request, made at `now` (seconds), and say whether it may pass."""
        with self._lock:
            recent = self._recent[caller]
            if len(recent) == REQUESTS_PER_SECOND and now - recent[0] < 1:
                return False
            recent.append(now)
            return True


def instance(plan: Plan, node: Node) -> dict[str, Any]:
    """What /metadata/instance holds: every value a string, "" where there is none."""
    network, prefix = plan.network.split("/")
    return {
        "compute": compute(plan, node),
        "network": {
            "interface": [
                {
                    "ipv4": {
                        # Empty behind a Standard load balancer: there it is the other endpoint's.
                        "ipAddress": [{"privateIpAddress": node.private_ip, "publicIpAddress": ""}],
                        "subnet": [{"address": network, "prefix": prefix}],
                    },
                    "ipv6": {"ipAddress": []},
                    "macAddress": mac_address(node).replace(":", "").upper(),
                }
            ]
        },
    }


def compute(plan: Plan, node: Node) -> dict[str, Any]:
    """What it says of the machine itself."""
    group = f"/subscriptions/{NO_SUBSCRIPTION}/resourceGroups/{plan.name}"
    publisher, offer, sku, version = plan.image.split(":")
    return {
        "azEnvironment": "AzurePublicCloud",
        "location": "lab",
        "name": node.name,
        "offer": offer,
        "osProfile": {
            "adminUsername": "azureuser",
            "computerName": node.name,
            "disablePasswordAuthentication": "true",
        },
        "osType": "Linux",
        "physicalZone": f"lab-az{node.zone}",
        "priority": "",
        "publisher": publisher,
        "resourceGroupName": plan.name,
        "resourceId": f"{group}/providers/Microsoft.Compute/virtualMachines/{node.name}",
        "sku": sku,
        "subscriptionId": NO_SUBSCRIPTION,
        "tags": "",
        "tagsList": [],
        "userData": USER_DATA,
        "version": version,
        "vmId": str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{node.name}.{plan.name}.lab")),
        "vmScaleSetName": "",
        "vmSize": node.size,
        "zone": str(node.zone),
    }


def load_balancer(plan: Plan, node: Node) -> dict[str, Any]:
    """What /metadata/loadbalancer holds; here ports are numbers."""
    public = {"frontendIpAddress": node.public_ip, "privateIpAddress": node.private_ip}
    rules = [
        {
            "frontendIpAddress": balancer_address(plan),
            "protocol": port.protocol.lower(),
            "frontendPort": port.number,
            "backendPort": port.number,
            "privateIpAddress": node.private_ip,
        }
        for port in plan.ports
    ]
    return {
        "loadbalancer": {
            "publicIpAddresses": [public],
            "inboundRules": rules,
            "outboundRules": [],
        }
    }


def what_is_wrong(path: str, query: list[tuple[str, str]], headers: Message) -> str:
    """Why Azure would call it a bad request; empty where it would not."""
    if headers.get("Metadata", "").lower() != "true":
        return "Required metadata header not specified"
    if "X-Forwarded-For" in headers:
        return "X-Forwarded-For header is not allowed"
    if len({name for name, _ in query}) < len(query):
        return "Query parameter given twice"
    versions = events.VERSIONS if path == EVENTS else VERSIONS
    if path != "/metadata/versions" and dict(query).get("api-version") not in versions:
        return f"api-version is invalid or was not specified; newest: {versions[:-4:-1]}"
    if path == EVENTS and len(query) > 1:
        return "api-version alone is documented here"  # what Azure says to others is not known
    return ""


def answer(plan: Plan, scheduled: ScheduledEvents, request: Request) -> Response:
    """Status and body; scheduled events alone take a POST."""
    url = urlsplit(request.target)
    path = url.path.rstrip("/")
    if request.content is not None and path != EVENTS:
        return 405, {"error": "Method not allowed"}
    wrong = what_is_wrong(path, parse_qsl(url.query, keep_blank_values=True), request.headers)
    if wrong:
        return 400, {"error": f"Bad request. {wrong}"}
    if path == "/metadata/versions":
        return 200, {"apiVersions": VERSIONS}
    node = next((node for node in plan.nodes if node.private_ip == request.caller), None)
    if node is None:
        return NOT_FOUND
    if path == EVENTS:
        return scheduled_events(scheduled, node, request.content)
    documents = {
        "/metadata/instance": instance(plan, node),
        "/metadata/loadbalancer": load_balancer(plan, node),
    }
    return (200, documents[path]) if path in documents else NOT_FOUND


def scheduled_events(scheduled: ScheduledEvents, node: Node, content: bytes | None) -> Response:
    """What is announced for the node, or the answer to its approval."""
    if content is None:
        scheduled.enable(node.name)
        return 200, scheduled.document(node.name)
    ids = start_requests(content)
    if ids is None:
        return 400, {"error": 'Bad request. Use {"StartRequests": [{"EventId": "..."}]}'}
    if not scheduled.start(node.name, ids):
        return 400, {"error": "Bad request. An EventId is none of this machine's"}
    return 200, {}


def server(address: str, port: int, plan: Plan, scheduled: ScheduledEvents) -> ThreadingHTTPServer:
    """The service, listening; `serve_forever` runs it."""
    limit = RateLimit()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds, on a connection that says nothing

        def do_GET(self, content: bytes | None = None) -> None:
            caller = self.client_address[0]
            if limit.allows(caller, time.monotonic()):
                request = Request(caller, self.path, self.headers, content)
                self._send(*answer(plan, scheduled, request))
            else:
                self._send(429, {"error": "Too many requests"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if length.isdecimal() and int(length) <= MOST_BYTES:
                self.do_GET(self.rfile.read(int(length)))
            else:
                self._send(400, {"error": "Bad request. Content-Length is missing or too large"})

        def do_PUT(self) -> None:
            self._send(405, {"error": "Method not allowed"})

        do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = do_PUT  # noqa: N815

        def _send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # a run does not wait for a late answer
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

    return ThreadingHTTPServer((address, port), Handler)


def main(nodes_info: Path, frontend: str, *ports: str) -> None:
    """Serve the metadata of the nodes in a `nodes_info.json`, until killed."""
    settings = Settings(frontend=frontend, ports=ports, http_from=())
    plan = plan_of(settings, read_nodes(nodes_info))
    server(METADATA, 80, plan, ScheduledEvents(events.FILE)).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
