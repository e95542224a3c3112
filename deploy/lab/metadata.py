"""Azure's instance metadata service for the lab's nodes, as strict as the real one.

It answers by the caller's address. Sources: learn.microsoft.com/azure/virtual-machines/
instance-metadata-service and /azure/load-balancer/howto-load-balancer-imds.
"""

import base64
import json
import sys
import time
import uuid
from collections import defaultdict, deque
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from deploy.lab import LOAD_BALANCER, METADATA
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
USER_DATA = base64.b64encode(bytes(64 << 10)).decode()
"""As large as Azure takes it: who reads less of the answer than Azure may send learns nothing here.

https://learn.microsoft.com/azure/virtual-machines/user-data
"""

Response = tuple[int, dict[str, Any]]
"""Status and body."""


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


def load_balancer(node: Node) -> dict[str, Any]:
    """What /metadata/loadbalancer holds; here ports are numbers."""
    public = {"frontendIpAddress": node.public_ip, "privateIpAddress": node.private_ip}
    rule = {
        "frontendIpAddress": LOAD_BALANCER,
        "protocol": "Tcp",
        "frontendPort": 80,
        "backendPort": 80,
        "privateIpAddress": node.private_ip,
    }
    return {
        "loadbalancer": {
            "publicIpAddresses": [public],
            "inboundRules": [rule],
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
    if path != "/metadata/versions" and dict(query).get("api-version") not in VERSIONS:
        return f"api-version is invalid or was not specified; newest: {VERSIONS[:-4:-1]}"
    return ""


def answer(plan: Plan, caller: str, target: str, headers: Message) -> Response:
    """Status and body for a GET of `target` (path and query) by the address `caller`."""
    url = urlsplit(target)
    path = url.path.rstrip("/")
    wrong = what_is_wrong(path, parse_qsl(url.query, keep_blank_values=True), headers)
    if wrong:
        return 400, {"error": f"Bad request. {wrong}"}
    if path == "/metadata/versions":
        return 200, {"apiVersions": VERSIONS}
    node = next((node for node in plan.nodes if node.private_ip == caller), None)
    if node and path == "/metadata/instance":
        return 200, instance(plan, node)
    if node and path == "/metadata/loadbalancer":
        return 200, load_balancer(node)
    return 404, {"error": "Not found"}


def server(address: str, port: int, plan: Plan) -> ThreadingHTTPServer:
    """The service, listening; `serve_forever` runs it."""
    limit = RateLimit()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds, on a connection that says nothing

        def do_GET(self) -> None:
            caller = self.client_address[0]
            if limit.allows(caller, time.monotonic()):
                self._send(*answer(plan, caller, self.path, self.headers))
            else:
                self._send(429, {"error": "Too many requests"})

        def do_POST(self) -> None:
            self._send(405, {"error": "Method not allowed"})

        do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST  # noqa: N815

        def _send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return ThreadingHTTPServer((address, port), Handler)


def main(nodes_info: Path) -> None:
    """Serve the metadata of the nodes in a `nodes_info.json`, until killed."""
    server(METADATA, 80, plan_of(Settings(), read_nodes(nodes_info))).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
