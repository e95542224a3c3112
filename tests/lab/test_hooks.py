"""What docs/service.md shows, on booted nodes: its service, and hooks when the role changes."""

import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from agent.loader import timing, worst_failover_seconds
from deploy.lab import LOAD_BALANCER, OPERATOR
from tests.docs.examples import examples, units
from tests.lab.cluster import lab
from tests.lab.test_lab_verbs import without_a_lab
from tests.lab.test_service import UP, status, wait

HOOKS = ("tell.service", "connections.service", "srv-billing.mount")
PROXY = """[Service]
ExecStart=/usr/bin/python3 -m http.server 2222
[Install]
WantedBy=multi-user.target
"""
"""Serves on all nodes, whoever has the role."""

MORE = """
mkdir -p /srv/disk /etc/systemd/system/tell.service.d /etc/systemd/system/srv-billing.mount.d
hostname > /srv/disk/of
printf '[Service]\\nEnvironment=HOOK=http://OPERATOR:PORT/\\n' \
    > /etc/systemd/system/tell.service.d/here.conf
# The lab's nodes have no disk in common.
printf '[Mount]\\nWhat=/srv/disk\\nType=none\\nOptions=bind\\n' \
    > /etc/systemd/system/srv-billing.mount.d/here.conf
mkdir -p /etc/bootstrap/health.d
install -m 755 space.sh /etc/bootstrap/health.d/
cp proxy.service HOOKS /etc/systemd/system/
systemctl daemon-reload
systemctl enable HOOKS
systemctl enable --now proxy.service
"""


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What a web hook on this machine was told, in order; its port comes first."""
    words: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            words.append(self.rfile.read(length).decode())
            self.send_response(204)
            self.end_headers()

    with HTTPServer(("0.0.0.0", 0), Hook) as server:
        words.append(str(server.server_port))
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield words
        server.shutdown()
        thread.join()


def served() -> str:
    """What the service says behind the load balancer; empty where nobody answers."""
    connection = HTTPConnection(LOAD_BALANCER, 8080, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()


def mounted(node: str) -> str:
    """Which disk is mounted there; empty for none."""
    return lab("shell", node, "sh", "-c", "cat /srv/billing/of 2> /dev/null || :").strip()


def files(folder: Path, port: str) -> list[Path]:
    """The document's files and the hooks, the script that installs all of them first."""
    more = MORE.replace("HOOKS", " ".join(HOOKS)).replace("OPERATOR:PORT", f"{OPERATOR}:{port}")
    shown = examples() | {"setup.sh": examples()["setup.sh"] + more, "proxy.service": PROXY}
    names = ("setup.sh", "billing.py", "space.sh", "proxy.service", *units())
    for name in names:
        (folder / name).write_text(shown[name])
    return [folder / name for name in names]


@without_a_lab
def test_the_service_of_the_document_changes_nodes_and_its_hooks_do_what_they_say(
    tmp_path: Path, told: list[str]
) -> None:
    setup = [word for path in files(tmp_path, told[0]) for word in ("--setup", str(path))]
    lab(*UP, "--ports", "8080", "--ports", "2222", "--stop-seconds", "9", *setup)
    wait("node1 served", lambda: served().startswith("node1, term "))
    first, times = served().split()[-1], timing(2, 2, 5, stop_seconds=9)
    told_by_status = {node["worst_case_failover_seconds"] for node in status()["nodes"]}
    assert told_by_status == {round(worst_failover_seconds(times), 1)}
    assert told[1:] == [f"node1 is active, term {first}"]
    assert [mounted(node) for node in ("node1", "node2")] == ["node1", ""]
    with socket.create_connection(("198.51.100.4", 2222), timeout=60) as client:
        lab("shell", "node1", "systemctl", "stop", "loader.timer")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait("node2 served", lambda: served().startswith("node2, term "))
    second = served().split()[-1]
    assert int(second) > int(first)
    assert told[2:] == [f"node1 is passive, term {first}", f"node2 is active, term {second}"]
    assert [mounted(node) for node in ("node1", "node2")] == ["", "node2"]
