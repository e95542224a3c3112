"""An application of the operator's own: how it gets onto booted nodes, and is reached there."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from deploy.lab import LOAD_BALANCER, STATE
from tests.lab.cluster import CHECKOUT, lab
from tests.lab.test_lab_verbs import without_a_lab

NODES = ("node1", "node2", "node3")
UP = ("up", "--nodes", "3", "--period-seconds", "2", "--look-seconds", "2")

SETUP = """#!/bin/sh
# Serves the node's name at two ports; the first try fails, as where packages are not there yet.
set -e
[ -e ../tried ] || { touch ../tried; echo "no such package"; exit 1; }
test "$(wc -c < large)" = 200000
cp app.service /etc/systemd/system/app@.service
mkdir -p /srv/app
hostname > /srv/app/name
systemctl daemon-reload
systemctl enable --now app@443.service app@1433.service
echo "serving"
"""
UNIT = """[Service]
WorkingDirectory=/srv/app
ExecStart=/usr/bin/python3 -m http.server %i
[Install]
WantedBy=multi-user.target
"""

STUBBORN_SETUP = """#!/bin/sh
set -e
cp stubborn.service /etc/systemd/system/
systemctl daemon-reload
systemctl enable stubborn.service
"""
STUBBORN = """[Unit]
PartOf=active.target
[Service]
ExecStart=/bin/sh -c 'trap "" TERM; while :; do date +%%s.%%N >> /srv/beats; sleep 0.1; done'
[Install]
WantedBy=active.target
"""
"""Ignores SIGTERM, and writes the time all the while."""


def wait(what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {seconds:g} s"
        time.sleep(0.2)


def served_at(port: int) -> str:
    """Which node answers at a port of the load balancer; empty for none."""
    connection = HTTPConnection(LOAD_BALANCER, port, timeout=2)
    try:
        connection.request("GET", "/name")
        return connection.getresponse().read().decode().strip()
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()


def status() -> Any:
    """What `status --json` says of the lab."""
    command = [sys.executable, "-m", "deploy", "status", "--json"]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, timeout=30, check=False)
    return json.loads(ran.stdout)


def beats(node: str) -> list[float]:
    """When the stubborn service wrote there, wall clock."""
    path = STATE / "containers" / node / "root/srv/beats"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def is_set_up(node: str) -> bool:
    said = lab("shell", node, "sh", "-c", "test -e /etc/bootstrap/setup.done && echo yes || :")
    return said.strip() == "yes"


@without_a_lab
def test_an_application_gets_onto_the_nodes_is_tried_again_and_is_served_at_its_own_ports(
    tmp_path: Path,
) -> None:
    files = {"setup.sh": SETUP.encode(), "app.service": UNIT.encode(), "large": b"\xff" * 200_000}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    words = [word for name in files for word in ("--setup", str(tmp_path / name))]
    ports = [word for port in ("443", "1433", "udp/5060") for word in ("--ports", port)]
    said = lab(*UP, *ports, *words)
    assert "UDP port 5060 is not forwarded in the lab, only on Azure." in said
    for node in NODES:
        wait(f"{node} set up", lambda node=node: is_set_up(node))  # type: ignore[misc]
        told = lab("shell", node, "journalctl", "-u", "setup.service", "-o", "cat")
        assert "no such package\nsetup.sh has not succeeded: again in 5 s\n" in told
        assert told.count("serving\n") == 1
    for port in (443, 1433):
        wait(f"node1 at {port}", lambda port=port: served_at(port) == "node1")  # type: ignore[misc]
    assert served_at(80) == ""  # the agent's own, which nobody needs to be led to
    view = status()
    assert (view["verdict"], view["active"]) == ("served", "node1")
    assert view["sentence"] == "node1 is active and the load balancer takes port 443."
    lab("off", "node1")
    wait("node2 at 443", lambda: served_at(443) == "node2")
    lab("on", "node1")
    wait("node1 back", lambda: served_at(1433) == "node1")
    again = lab("shell", "node1", "journalctl", "-b", "-u", "setup.service", "-o", "cat")
    assert "serving" not in again  # once is enough, whatever boots


@without_a_lab
def test_an_internal_load_balancer_serves_the_nodes_network_alone() -> None:
    lab(*UP, "--frontend", "internal")
    curl = ("curl", "--silent", "--max-time", "2", "http://10.0.0.254/status.json")
    shell = (sys.executable, "-m", "deploy", "lab", "shell", "node3", *curl)

    def serves() -> str:
        """Which node answers to node3 behind the load balancer."""
        ran = subprocess.run(shell, cwd=CHECKOUT, capture_output=True, timeout=30, check=False)
        return str(json.loads(ran.stdout or "{}").get("node", ""))

    wait("node1 served", lambda: serves() == "node1")
    view = status()
    assert (view["verdict"], view["active"]) == ("unserved", "node1")
    assert "An internal one answers in its network alone: ask from there." in view["sentence"]


@without_a_lab
def test_a_node_that_shuts_down_and_whose_agent_can_not_run_ends_its_service_with_its_lease(
    tmp_path: Path,
) -> None:
    """systemd alone would wait a minute and a half for it to heed SIGTERM."""
    for name, text in (("setup.sh", STUBBORN_SETUP), ("stubborn.service", STUBBORN)):
        (tmp_path / name).write_text(text)
    files = [w for n in ("setup.sh", "stubborn.service") for w in ("--setup", str(tmp_path / n))]
    lab(*UP, "--pause-seconds", "0", "--stop-seconds", "3", *files)
    wait("node1 at work", lambda: len(beats("node1")) > 20)
    lab("shell", "node1", "mv", "/etc/bootstrap/loader.py", "/root/")
    began = time.time()
    lab("shell", "node1", "systemctl", "--no-block", "reboot")
    wait("node2 at work", lambda: len(beats("node2")) > 20)
    assert began + 1 < max(beats("node1")) < min(beats("node2"))
