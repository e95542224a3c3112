"""The options of a verb that takes settings: one for each, beside `--config`."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from deploy.settings import SERVICE, SETTINGS_FILE, Settings

Command = TypeVar("Command", bound=Callable[..., Any])

HELP = {
    "name": "Name of the cluster and of its resource group.",
    "region": f"Azure region, e.g. {Settings.region}.",
    "nodes": "How many: an odd number, 3 or more.",
    "size": "VM size of every node.",
    "witness_size": "VM size of the last node, if not as the others.",
    "image": "Image as PUBLISHER:OFFER:SKU:VERSION.",
    "ssh_key": "File of the SSH public key; else id_ed25519.pub or id_rsa.pub in ~/.ssh.",
    "http_from": "Address range that may reach HTTP, or Internet; repeat for more.",
    "ssh_from": "Address range that may reach SSH, or the URL of a service that tells your own.",
    "peer_address": "Which address of their peers the nodes ask: public or private.",
    "period_seconds": "Seconds between two runs of the agent, a divisor of 60.",
    "look_seconds": "Seconds between two looks of a run, a divisor of the period; if that is odd,"
    " the default is 3, or else 5.",
    "pause_seconds": "For so many seconds the host may pause a machine, clocks and all, and nobody"
    " else be active meanwhile: 0 to 60. Failover takes so much longer.",
    "tags": "Tag of every resource, as KEY=VALUE; repeat for more.",
    "scheduled_events": "Whether a node makes way before what Azure announces for its machine, and"
    " approves it: true or false.",
    "ports": "What the load balancer forwards to the active node, as NUMBER, tcp/NUMBER or"
    " udp/NUMBER; repeat for more; or all, behind an internal one.",
    "frontend": "The load balancer's address: public, or internal (a private one in the network).",
    "idle_minutes": "A TCP connection that is idle for so long is dropped by the load balancer.",
    "tcp_reset": "Whether the load balancer resets such a connection at both ends: true or false.",
    "cluster_port": "Where the nodes serve markers and probe; another than 80 leaves that one to"
    " the application.",
    "subnet": "Resource id of a subnet that is there, in the same region; it stays as it is.",
    "setup": "File for each node, run once as root after the agent is installed; repeat for files"
    " beside it.",
    "start_seconds": "A service that runs with the role may take so long to start, up to 3600, and"
    " the role waits for it.",
    "stop_seconds": "And so long to stop, up to 60; then it is killed. Failover takes so much"
    " longer where a service has joined.",
    "health_seconds": "Each health check may take so long, up to 60.",
    "unhealthy_after": "After so many failed rounds of checks in a row a node is unhealthy.",
    "healthy_after": "And after so many good ones healthy again.",
    "unhealthy": "What an unhealthy active node does where no other could serve: stay or stop.",
    "signing_key": "File of the SSH key that signs releases, its public half where an agent has the"
    " private one; else id_ed25519, id_ecdsa or id_rsa in ~/.ssh.",
}


def settings_options(command: Command) -> Command:
    """Give a verb `--config` and one option for every setting, passed to it as keywords."""
    for field in reversed(fields(Settings)):
        command = option(field.name)(command)
    return click.option(
        "--config",
        type=Path,
        help=f"File of settings.  [{SETTINGS_FILE}, if it is there]",
    )(command)


def service_options(command: Command) -> Command:
    """Give a verb the options about a service that runs with the role."""
    for name in reversed(SERVICE):
        command = option(name)(command)
    return command


def option(name: str) -> Callable[[Command], Command]:
    """The option of a setting; None, or nothing, where it is not given."""
    default = getattr(Settings, name)
    many = isinstance(default, tuple)
    return click.option(
        f"--{name.replace('_', '-')}",
        type=type("" if many else default),
        multiple=many,
        default=None,
        help=HELP[name] + shown(default),
    )


def shown(default: object) -> str:
    """A default as `--help` prints it."""
    text = ", ".join(default) if isinstance(default, tuple) else str(default)
    text = text.lower() if isinstance(default, bool) else text
    return f"  [{text}]" if text else ""
