"""A node: a booted system that gets the first-boot document as a virtual machine would."""

import time
from collections.abc import Sequence
from pathlib import Path

from deploy import Refusal
from deploy.files import write_whole
from deploy.lab import container, machine, network, process
from deploy.lab.container import Container
from deploy.plan import Node, Plan

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
systemctl kill --signal=CONT loader.service || true
"""
"""Twice, because a run may have begun, and stopped, before systemd forgot about the hang."""


SEED = "var/lib/cloud/seed/nocloud"
"""Where cloud-init looks for the first-boot document.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""


def box(node: Node) -> Container:
    """The box that is the node: a container, or a virtual machine."""
    return Container(node.name, network.namespace(node))


def install(node: Node, lower: Path, user_data: str) -> None:
    """Make the node's disk, with the first-boot document in it."""
    container.mount(box(node), lower)
    write_seed(box(node).root / SEED, node.name, user_data)


def install_machine(node: Node, plan: Plan, user_data: str) -> None:
    """Make the node a virtual machine, with the first-boot document; one that is there stays."""
    if not machine.is_machine(box(node)):
        layer = machine.write_layer(box(node), plan, node)
        write_seed(layer / SEED, node.name, user_data)
        machine.make(box(node), node)


def write_seed(seed: Path, name: str, user_data: str) -> None:
    """The files that cloud-init reads; the document holds the cluster's key: for root alone."""
    identity = f"instance-id: {name}\nlocal-hostname: {name}\n"
    write_whole(seed / "meta-data", identity.encode())
    write_whole(seed / "user-data", user_data.encode(), mode=0o600)


def power_on(node: Node) -> None:
    """Boot the node from its disk, if it does not run already; does not wait."""
    network.power(node, on=True)
    if box(node).is_running:
        return
    if machine.is_machine(box(node)):
        machine.start(box(node))
    else:
        # As on any machine: root may close connections, and has a firewall of its own.
        container.start(box(node), "--boot", "--capability=CAP_NET_ADMIN")


def power_off(node: Node) -> None:
    """Silence the node's addresses first, so that no dying process says goodbye; then kill it."""
    network.power(node, on=False)
    container.stop(box(node))


def wait_until_booted(node: Node, deadline: float) -> str:
    """Wait until systemd and cloud-init have nothing left to do; gives the units that failed.

    `deadline` on the monotonic clock, in seconds. Raises `Refusal` with the end of the console if
    it passes.
    """
    state = ""
    while state not in ("running", "degraded"):
        left = deadline - time.monotonic()
        if left <= 0 or not box(node).is_running:
            said = process.tail(box(node).folder / "console.log")
            raise Refusal(f"{node.name} did not finish its boot; its console ends:\n{said}")
        if not machine.is_machine(box(node)) or machine.answers(box(node)):
            # It fails at once as long as there is no D-Bus to ask.
            state = _inside(
                node, f"timeout {left:.1f} systemctl is-system-running --wait || true", left + 5
            )
        time.sleep(process.POLL_SECONDS)
    return _inside(node, "systemctl --failed --plain --no-legend")


def freeze(node: Node) -> None:
    """Stop every process of the node where it stands. Raises `Refusal` for one that is off."""
    container.require_running(box(node))
    process.freeze(node.name, frozen=True)


def hang_agent(node: Node) -> None:
    """Stop the agent where it stands, and later runs as soon as they start; the rest goes on."""
    _inside(node, HANG)


def thaw(node: Node) -> None:
    """Undo `hang_agent` and `freeze`, and a pause that was cut off: what was stopped goes on."""
    container.require_running(box(node))
    process.freeze(node.name, frozen=False)
    if machine.is_machine(box(node)):
        machine.go_on(box(node))
    _inside(node, THAW)


def command_inside(node: Node, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in the node as root; raises `Refusal` if it is off."""
    if machine.is_machine(box(node)):
        return machine.command_inside(box(node), command)
    return container.command_inside(box(node), command)


def _inside(node: Node, script: str, seconds: float = 20) -> str:
    """What a shell script prints that runs in the node. Raises `Refusal` if it fails."""
    return process.output_of(command_inside(node, ("sh", "-c", script)), seconds=seconds).strip()
