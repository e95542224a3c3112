"""A node: a booted system that gets the first-boot document as a virtual machine would."""

import subprocess
import time
from pathlib import Path

from deploy import Refusal
from deploy.lab import container, network, process
from deploy.lab.container import Container
from deploy.plan import Node

HANG = """
systemctl kill --signal=STOP loader.service
mkdir -p /run/systemd/system/loader.service.d
cat > /run/systemd/system/loader.service.d/hang.conf <<'END'
[Service]
TimeoutStartSec=infinity
ExecStartPre=/bin/sh -c 'kill -STOP $$$$'
END
systemctl daemon-reload
"""
"""Later runs stop before they do anything, and no time limit ends them: like a hung process."""

THAW = """
rm -f /run/systemd/system/loader.service.d/hang.conf
systemctl kill --signal=CONT loader.service
systemctl daemon-reload
systemctl kill --signal=CONT loader.service
"""
"""Twice, because a run may have begun, and stopped, before systemd forgot about the hang."""


def box(node: Node) -> Container:
    """The container that is the node."""
    return Container(node.name, network.namespace(node))


def install(node: Node, lower: Path, user_data: str) -> None:
    """Make the node's disk and put the first-boot document where cloud-init looks for it.

    https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
    """
    container.mount(box(node), lower)
    seed = box(node).root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True, exist_ok=True)
    (seed / "meta-data").write_text(f"instance-id: {node.name}\nlocal-hostname: {node.name}\n")
    (seed / "user-data").write_text(user_data)


def power_on(node: Node) -> None:
    """Boot the node from its disk, if it does not run already; does not wait."""
    network.power(node, on=True)
    if not box(node).is_running:
        container.start(box(node), "--boot")


def power_off(node: Node) -> None:
    """Silence the node's addresses first, so that no dying process says goodbye; then kill it."""
    network.power(node, on=False)
    container.stop(box(node))


def wait_until_booted(node: Node, deadline: float) -> None:
    """Wait until systemd and cloud-init have nothing left to do.

    `deadline` on the monotonic clock, in seconds. Raises `Refusal` with the units that failed or
    with the end of the console if it passes.
    """
    state = ""
    while state not in ("running", "degraded"):
        left = deadline - time.monotonic()
        if left <= 0 or not box(node).is_running:
            raise Refusal(f"{node.name} did not finish its boot; its console ends:\n{_tail(node)}")
        state = _inside(node, "systemctl", "is-system-running", "--wait", seconds=left)
        time.sleep(process.POLL_SECONDS)
    if state == "degraded":
        failed = _inside(node, "systemctl", "--failed", "--plain", "--no-legend", seconds=10)
        raise Refusal(f"{node.name} booted, but units failed: {failed}")


def hang_agent(node: Node) -> None:
    """Stop the agent where it stands, and later runs as soon as they start; the rest goes on."""
    _inside(node, "sh", "-c", HANG, seconds=20)


def thaw(node: Node) -> None:
    """Undo `hang_agent` and a frozen control group: what was stopped goes on."""
    process.freeze(node.name, frozen=False)
    _inside(node, "sh", "-c", THAW, seconds=20)


def _inside(node: Node, *command: str, seconds: float) -> str:
    """What a command in the node prints; a failing one prints what it has to say and goes on."""
    try:
        done = subprocess.run(
            container.command_inside(box(node), command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()


def _tail(node: Node) -> str:
    console = box(node).folder / "console.log"
    return "\n".join(console.read_text(errors="replace").splitlines()[-15:])
