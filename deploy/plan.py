"""The cluster as data: nodes, zones, addresses, firewall rules, probe, image. No SDK, no I/O.

The lab and Azure apply the same `Plan`; what differs between them is only who makes it.
"""

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from deploy import Refusal

ZONES = 3
"""Availability zones of a region, https://learn.microsoft.com/azure/reliability/availability-zones-overview."""

FIRST_HOST = 4
"""Azure keeps the first four addresses of a subnet (.0 to .3) for itself."""

NODE_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}(?<!-)")
RESERVED_NAMES = frozenset({"index", "probe"})
"""A node's marker is `<name>.html`: these names would overwrite the node's own pages."""


@dataclass(frozen=True)
class FirewallRule:
    """One inbound rule of a node's network security group."""

    name: str
    priority: int
    protocol: str  # "Tcp" or "Icmp"
    port: int | None
    source: str  # an address range, or "Internet"


@dataclass(frozen=True)
class Probe:
    """How the load balancer asks a node whether it is the active one."""

    path: str = "/probe.html"
    port: int = 80
    interval_seconds: int = 5
    threshold: int = 1  # so many equal answers in a row, up or down


@dataclass(frozen=True)
class Node:
    """One virtual machine with its address; `public_ip` is None until somebody assigned one."""

    name: str
    zone: int
    private_ip: str
    public_ip: str | None
    size: str


@dataclass(frozen=True)
class Plan:
    """Everything a cluster is made of, in order of preference of its nodes."""

    name: str
    nodes: tuple[Node, ...]
    network: str = "10.0.0.0/24"
    image: str = "Canonical:ubuntu-24_04-lts:server:latest"
    probe: Probe = Probe()
    firewall: tuple[FirewallRule, ...] = (
        FirewallRule("AllowHttpFromInternet", 100, "Tcp", 80, "Internet"),
        FirewallRule("AllowSshFromOperator", 110, "Tcp", 22, "203.0.113.254/32"),
        FirewallRule("AllowPingFromNetwork", 120, "Icmp", None, "10.0.0.0/24"),
    )


def make_plan(
    count: int = 3,
    *,
    name: str = "active-passive-cluster",
    size: str = "Standard_B2als_v2",
    witness_size: str | None = None,
    network: str = "10.0.0.0/24",
    public_network: str | None = None,
) -> Plan:
    """The plan of `count` nodes, node1 first, spread over the zones.

    `public_network`: where the lab takes the public addresses from (198.51.100.0/24, RFC 5737);
    on Azure they are known only after they were created.
    """
    private = list(ipaddress.ip_network(network))[FIRST_HOST:]
    public = list(ipaddress.ip_network(public_network))[FIRST_HOST:] if public_network else []
    nodes = tuple(
        Node(
            name=f"node{index + 1}",
            zone=index % ZONES + 1,
            private_ip=str(private[index]),
            public_ip=str(public[index]) if public else None,
            size=witness_size or size if index == count - 1 else size,
        )
        for index in range(count)
    )
    return validated(Plan(name=name, nodes=nodes, network=network))


def validated(plan: Plan) -> Plan:
    """The same plan, if a cluster can be made of it.

    Raises `Refusal` with the value that is wrong and what would be right.
    """
    count = len(plan.nodes)
    if count < 3 or count % 2 == 0:
        raise Refusal(f"{count} nodes: a majority needs an odd number of nodes, 3 or more.")
    network = ipaddress.ip_network(plan.network)
    for node in plan.nodes:
        if not NODE_NAME.fullmatch(node.name) or node.name in RESERVED_NAMES:
            raise Refusal(
                f"node name {node.name!r}: use lower-case letters, digits and '-', at most 63,"
                " beginning with a letter, and not 'index' or 'probe'."
            )
        if ipaddress.ip_address(node.private_ip) not in network:
            raise Refusal(f"{node.name}: {node.private_ip} is not inside the network {network}.")
    for what, values in (
        ("name", [node.name for node in plan.nodes]),
        ("private address", [node.private_ip for node in plan.nodes]),
        ("public address", [node.public_ip for node in plan.nodes if node.public_ip]),
    ):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise Refusal(f"two nodes have the {what} {twice.pop()}: each needs its own.")
    if plan.probe.interval_seconds < 5:
        raise Refusal(
            f"probe interval {plan.probe.interval_seconds} s: Azure asks every 5 s at most."
        )
    return plan


def nodes_info(plan: Plan) -> dict[str, dict[str, str]]:
    """What `nodes_info.json` holds for this plan, most preferred node first."""
    nic = (
        "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/"
        f"{plan.name}/providers/Microsoft.Network/networkInterfaces/"
    )
    return {
        node.name: {
            "ip_configuration_name": "default",
            "network_interface_id": f"{nic}{node.name}-nic",
            "private_ip": node.private_ip,
            "public_ip": node.public_ip or "",
        }
        for node in plan.nodes
    }


def plan_from_nodes_info(info: Mapping[str, Mapping[str, str]]) -> Plan:
    """The plan of the nodes that a `nodes_info.json` names, in its order."""
    template = make_plan(3)
    nodes = tuple(
        Node(
            name=name,
            zone=index % ZONES + 1,
            private_ip=entry["private_ip"],
            public_ip=entry["public_ip"],
            size=template.nodes[0].size,
        )
        for index, (name, entry) in enumerate(info.items())
    )
    return validated(Plan(name=template.name, nodes=nodes))


@click.command("plan")
@click.option("--nodes", "count", type=int, default=3, show_default=True, help="An odd number.")
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON.")
def plan_command(count: int, as_json: bool) -> None:
    """Print what `azure up` would create; needs no credentials."""
    plan = make_plan(count)
    if as_json:
        click.echo(json.dumps(asdict(plan), indent=2))
        return
    console = Console()
    nodes = Table("node", "zone", "private address", "size", title=f"Plan of {plan.name}")
    for node in plan.nodes:
        nodes.add_row(node.name, str(node.zone), node.private_ip, node.size)
    console.print(nodes)
    firewall = Table("inbound rule", "priority", "protocol", "port", "from", title="On every node")
    for rule in plan.firewall:
        port = "any" if rule.port is None else str(rule.port)
        firewall.add_row(rule.name, str(rule.priority), rule.protocol, port, rule.source)
    console.print(firewall)
    console.print(
        f"Network {plan.network}; image {plan.image}; load balancer 80 -> 80, probe"
        f" {plan.probe.path} every {plan.probe.interval_seconds} s,"
        f" threshold {plan.probe.threshold}."
    )
