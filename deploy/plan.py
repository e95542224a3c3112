"""The cluster as data: nodes, zones, addresses, firewall rules, probe, image. No SDK, no I/O.

The lab and Azure apply the same `Plan`; what differs between them is only who makes it.
"""

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agent.loader import timing, worst_failover_seconds
from deploy import Refusal
from deploy.settings import Settings, settings_of, settings_options

ZONES = 3
"""Availability zones of a region, https://learn.microsoft.com/azure/reliability/availability-zones-overview."""

FIRST_HOST = 4
"""Azure keeps the first four addresses of a subnet (.0 to .3) for itself."""

NODE_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}(?<!-)")
CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,89}(?<!\.)")
"""A resource group, and a folder of the operator's: less than Azure takes, no brackets."""

REGION = re.compile(r"[a-z][a-z0-9]+")
SIZE = re.compile(r"(Standard|Basic)_[A-Za-z0-9_-]+")

RULE_NAMES = frozenset(
    {
        "AllowHttpFromInternet",
        "AllowHttpFromRanges",
        "AllowHttpFromPeers",
        "AllowSshFromOperator",
        "AllowPingFromNetwork",
    }
)
"""Every name that a firewall rule of a plan may have."""

TAG_NAME = re.compile(r"[^<>%&\\?/\x00-\x1f]{1,128}")
OWN_TAGS = frozenset({"key", "made-by", "nodes", "period-seconds"})
MOST_TAGS = 50 - len(OWN_TAGS)

INTERNET = "Internet"
NO_SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
RESERVED_NAMES = frozenset({"index", "probe"})
"""A node's marker is `<name>.html`: these names would overwrite the node's own pages."""


@dataclass(frozen=True)
class FirewallRule:
    """One inbound rule of a node's network security group."""

    name: str
    priority: int
    protocol: str  # "Tcp" or "Icmp"
    port: int | None
    source: str  # an address range, or "Internet"; Azure takes all sources of one name together


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
    region: str = "westeurope"
    peer_address: str = "public"
    period_seconds: int = 20
    tags: tuple[tuple[str, str], ...] = ()  # of every resource, beside our own


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
    subnet = ipaddress.ip_network(network)
    if count > subnet.num_addresses - FIRST_HOST - 1:
        raise Refusal(f"{count} nodes: the network {network} has no room for so many.")
    public = ipaddress.ip_network(public_network) if public_network else None
    nodes = tuple(
        Node(
            name=f"node{index + 1}",
            zone=index % ZONES + 1,
            private_ip=str(subnet[FIRST_HOST + index]),
            public_ip=str(public[FIRST_HOST + index]) if public else None,
            size=witness_size or size if index == count - 1 else size,
        )
        for index in range(count)
    )
    return validated(Plan(name=name, nodes=nodes, network=network))


def plan_of(settings: Settings) -> Plan:
    """The plan that an operator's settings describe; raises `Refusal` as `validated` does."""
    plan = make_plan(
        settings.nodes,
        name=settings.name,
        size=settings.size,
        witness_size=settings.witness_size or None,
    )
    return validated(
        replace(
            plan,
            region=settings.region,
            image=settings.image,
            firewall=firewall(settings.http_from, settings.ssh_from, plan.network),
            peer_address=settings.peer_address,
            period_seconds=settings.period_seconds,
            tags=tuple(tag(text) for text in settings.tags),
        )
    )


def tag(text: str) -> tuple[str, str]:
    """The name and the value of a tag written as KEY=VALUE.

    Raises `Refusal` for what Azure takes for no resource, or what is ours; the limits are those of
    https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources#limitations.
    """
    name, equals, value = text.partition("=")
    taken = name.lower() in OWN_TAGS or name.lower().startswith(("azure", "microsoft", "windows"))
    if not equals or not TAG_NAME.fullmatch(name) or len(value) > 256 or taken:
        raise Refusal(
            f"tag {text!r}: use KEY=VALUE, with a name of at most 128 characters without"
            " <>%&\\?/, not beginning with azure, microsoft or windows, and none of"
            f" {', '.join(sorted(OWN_TAGS))}; a value of at most 256."
        )
    return name, value


def firewall(
    http_from: Iterable[str], ssh_from: Iterable[str], network: str
) -> tuple[FirewallRule, ...]:
    """Who may reach what on a node, one rule for every source."""
    http, ssh = together("http_from", http_from), together("ssh_from", ssh_from)
    http_name = "AllowHttpFromInternet" if http == (INTERNET,) else "AllowHttpFromRanges"
    return (
        *(FirewallRule(http_name, 100, "Tcp", 80, source) for source in http),
        *(FirewallRule("AllowSshFromOperator", 110, "Tcp", 22, source) for source in ssh),
        FirewallRule("AllowPingFromNetwork", 120, "Icmp", None, network),
    )


def together(setting: str, sources: Iterable[str]) -> tuple[str, ...]:
    """Sources as one rule of Azure takes them: none twice, none within another, written as CIDR.

    Raises `Refusal` for what is no range, and for `Internet` beside ranges. A URL, which is an
    address that is not known yet, stays as it is.
    """
    given = dict.fromkeys(sources)
    if INTERNET in given and len(given) > 1:
        raise Refusal(
            f"{setting} = {', '.join(given)}: use {INTERNET} alone, or ranges without it."
        )
    open_ends = [source for source in given if source == INTERNET or is_url(source)]
    ranges = dict.fromkeys(address_range(setting, s) for s in given if s not in open_ends)
    outer = [r for r in ranges if not any(r != other and r.subnet_of(other) for other in ranges)]
    return (*map(str, outer), *open_ends)


def is_url(source: str) -> bool:
    """Whether somebody else is to be asked for the address."""
    return source.startswith("https://")


def address_range(where: str, source: str) -> ipaddress.IPv4Network:
    """The range that is meant; raises `Refusal` for anything else."""
    try:
        return ipaddress.IPv4Network(source)
    except ValueError as error:
        raise Refusal(
            f"{where}: {source!r} is no address range ({error}):"
            f" use one like 203.0.113.0/24, or {INTERNET}."
        ) from error


def peer_rules(plan: Plan) -> tuple[FirewallRule, ...]:
    """Lets nodes that ask each other's public addresses through where the Internet may not."""
    sources = {rule.source for rule in plan.firewall if rule.port == plan.probe.port}
    if plan.peer_address == "private" or INTERNET in sources:
        return ()
    return tuple(
        FirewallRule("AllowHttpFromPeers", 130, "Tcp", plan.probe.port, f"{node.public_ip}/32")
        for node in plan.nodes
        if node.public_ip
    )


def with_public_addresses(plan: Plan, addresses: Mapping[str, str]) -> Plan:
    """The same plan with the public addresses that are known, by the nodes' names."""
    nodes = tuple(replace(node, public_ip=addresses.get(node.name)) for node in plan.nodes)
    return validated(replace(plan, nodes=nodes))


def validated(plan: Plan) -> Plan:
    """The same plan, if a cluster can be made of it.

    Raises `Refusal` with the value that is wrong and what would be right.
    """
    check_cluster(plan)
    check_nodes(plan)
    for rule in plan.firewall:
        check_source(rule)
    return plan


def check_cluster(plan: Plan) -> None:
    """Refuse what is wrong with the cluster as a whole."""
    count = len(plan.nodes)
    if count < 3 or count % 2 == 0:
        raise Refusal(f"{count} nodes: a majority needs an odd number of nodes, 3 or more.")
    if not CLUSTER_NAME.fullmatch(plan.name):
        raise Refusal(
            f"cluster name {plan.name!r}: use letters, digits, '-', '_' and '.', at most 90,"
            " beginning with a letter or digit and not ending with '.'."
        )
    if not REGION.fullmatch(plan.region):
        raise Refusal(f"region {plan.region!r}: use Azure's short name, like westeurope.")
    if len(plan.image.split(":")) != 4 or not all(plan.image.split(":")):
        raise Refusal(f"image {plan.image!r}: use PUBLISHER:OFFER:SKU:VERSION.")
    if plan.peer_address not in ("public", "private"):
        raise Refusal(f"peer address {plan.peer_address!r}: use public or private.")
    if not 2 <= plan.period_seconds <= 60 or 60 % plan.period_seconds:
        raise Refusal(f"period {plan.period_seconds} s: use a divisor of 60 between 2 and 60.")
    names = [name.lower() for name, _ in plan.tags]
    if len(set(names)) < len(names) or len(names) > MOST_TAGS:
        raise Refusal(
            f"tags {', '.join(names)}: use each name once, whatever its letter case, and"
            f" {MOST_TAGS} at most."
        )
    if plan.probe.interval_seconds < 5:
        raise Refusal(
            f"probe interval {plan.probe.interval_seconds} s: Azure asks every 5 s at most."
        )


def check_nodes(plan: Plan) -> None:
    """Refuse a node that Azure would refuse, or two that get in each other's way."""
    network = ipaddress.ip_network(plan.network)
    for node in plan.nodes:
        if not NODE_NAME.fullmatch(node.name) or node.name in RESERVED_NAMES:
            raise Refusal(
                f"node name {node.name!r}: use lower-case letters, digits and '-', at most 63,"
                " beginning with a letter, and not 'index' or 'probe'."
            )
        if ipaddress.ip_address(node.private_ip) not in network:
            raise Refusal(f"{node.name}: {node.private_ip} is not inside the network {network}.")
        if not SIZE.fullmatch(node.size):
            raise Refusal(f"{node.name}: size {node.size!r}: use a name like Standard_B2als_v2.")
    for what, values in (
        ("name", [node.name for node in plan.nodes]),
        ("private address", [node.private_ip for node in plan.nodes]),
        ("public address", [node.public_ip for node in plan.nodes if node.public_ip]),
    ):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise Refusal(f"two nodes have the {what} {twice.pop()}: each needs its own.")


def check_source(rule: FirewallRule) -> None:
    """Refuse a source that is no address range; a URL is an address that is not known yet."""
    if rule.source != INTERNET and not is_url(rule.source):
        address_range(rule.name, rule.source)


def nodes_info(plan: Plan, subscription: str = NO_SUBSCRIPTION) -> dict[str, dict[str, str]]:
    """What `nodes_info.json` holds for this plan, most preferred node first."""
    nic = (
        f"/subscriptions/{subscription}/resourceGroups/"
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
@settings_options
@click.option("--json", "as_json", is_flag=True, help="The whole plan as JSON.")
def plan_command(config: Path | None, *, as_json: bool, **options: Any) -> None:
    """Print what `azure up` would create; needs no credentials."""
    plan = plan_of(settings_of(config, options))
    if as_json:
        click.echo(json.dumps(asdict(plan), indent=2))
        return
    print_plan(plan, Console())


def print_plan(plan: Plan, console: Console) -> None:
    """The plan as two tables and a line."""
    nodes = Table("node", "zone", "private address", "size", title=f"Plan of {plan.name}")
    for node in plan.nodes:
        nodes.add_row(node.name, str(node.zone), node.private_ip, node.size)
    console.print(nodes)
    rules = Table("inbound rule", "priority", "protocol", "port", "from", title="On every node")
    for rule in plan.firewall:
        port = "any" if rule.port is None else str(rule.port)
        source = "your own address" if is_url(rule.source) else rule.source
        rules.add_row(rule.name, str(rule.priority), rule.protocol, port, source)
    console.print(rules)
    longest_seconds = worst_failover_seconds(timing(plan.period_seconds))
    console.print(
        f"Region {plan.region}; network {plan.network}; image {plan.image}; load balancer"
        f" {plan.probe.port} -> {plan.probe.port}, probe {plan.probe.path} every"
        f" {plan.probe.interval_seconds} s, threshold {plan.probe.threshold}; nodes ask each"
        f" other's {plan.peer_address} address every {plan.period_seconds} s."
        f" Worst-case failover {longest_seconds:.1f} s, and then the probe's interval.",
        highlight=False,
    )
