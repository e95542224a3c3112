"""The cluster as data: nodes, zones, addresses, firewall rules, probe, image. No SDK, no I/O.

The lab and Azure apply the same `Plan`; what differs between them is only who makes it.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from deploy import Refusal
from deploy.settings import INTERNET, Settings, times_of

ZONES = 3
"""Availability zones of a region, https://learn.microsoft.com/azure/reliability/availability-zones-overview."""

FIRST_HOST = 4
"""Azure keeps the first four addresses of a subnet (.0 to .3) for itself."""

NETWORK = "10.0.0.0/24"
HTTP_PORT, SSH_PORT = 80, 22

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
OWN_TAGS = frozenset({"key", "look-seconds", "made-by", "nodes", "pause-seconds", "period-seconds"})
MOST_TAGS = 50 - len(OWN_TAGS)


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
    port: int = HTTP_PORT
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
    network: str
    image: str
    probe: Probe
    firewall: tuple[FirewallRule, ...]
    region: str
    peer_address: str
    period_seconds: int
    look_seconds: int
    pause_seconds: int
    tags: tuple[tuple[str, str], ...]  # of every resource, beside our own
    scheduled_events: bool


def plan_of(
    settings: Settings,
    nodes: tuple[Node, ...] = (),
    *,
    network: str = NETWORK,
    public_network: str | None = None,
) -> Plan:
    """The plan that an operator's settings describe, or that of `nodes` which are there already.

    `public_network`: where the lab takes the public addresses from (198.51.100.0/24, RFC 5737);
    on Azure they are known only after they were created. Raises `Refusal` with the value that is
    wrong and what would be right.
    """
    plan = Plan(
        name=settings.name,
        nodes=nodes or new_nodes(settings, network, public_network),
        network=network,
        image=settings.image,
        probe=Probe(),
        firewall=firewall(settings.http_from, settings.ssh_from, network),
        region=settings.region,
        peer_address=settings.peer_address,
        period_seconds=settings.period_seconds,
        look_seconds=settings.look_seconds,
        pause_seconds=settings.pause_seconds,
        tags=tuple(tag(text) for text in settings.tags),
        scheduled_events=settings.scheduled_events,
    )
    check_cluster(plan)
    check_nodes(plan)
    return plan


def new_nodes(settings: Settings, network: str, public_network: str | None) -> tuple[Node, ...]:
    """As many nodes as asked for, node1 first, spread over the zones."""
    subnet = ipaddress.ip_network(network)
    if settings.nodes > subnet.num_addresses - FIRST_HOST - 1:
        raise Refusal(f"{settings.nodes} nodes: the network {network} has no room for so many.")
    public = ipaddress.ip_network(public_network) if public_network else None
    return tuple(
        Node(
            name=f"node{index + 1}",
            zone=zone_of(index),
            private_ip=str(subnet[FIRST_HOST + index]),
            public_ip=str(public[FIRST_HOST + index]) if public else None,
            size=(index == settings.nodes - 1 and settings.witness_size) or settings.size,
        )
        for index in range(settings.nodes)
    )


def zone_of(index: int) -> int:
    """The zone of a node, by its place in the order of preference."""
    return index % ZONES + 1


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
        *(FirewallRule(http_name, 100, "Tcp", HTTP_PORT, source) for source in http),
        *(FirewallRule("AllowSshFromOperator", 110, "Tcp", SSH_PORT, source) for source in ssh),
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
    if plan.peer_address == "private" or INTERNET in sources(plan, plan.probe.port):
        return ()
    return tuple(
        FirewallRule("AllowHttpFromPeers", 130, "Tcp", plan.probe.port, f"{node.public_ip}/32")
        for node in plan.nodes
        if node.public_ip
    )


def with_public_addresses(plan: Plan, addresses: Mapping[str, str]) -> Plan:
    """The same plan with the public addresses that are known, by the nodes' names."""
    nodes = tuple(replace(node, public_ip=addresses.get(node.name)) for node in plan.nodes)
    return replace(plan, nodes=nodes)


def sources(plan: Plan, port: int) -> tuple[str, ...]:
    """From where a port of the nodes may be reached."""
    return tuple(rule.source for rule in plan.firewall if rule.port == port)


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
        raise Refusal(f"region {plan.region!r}: use Azure's short name, like {Settings.region}.")
    if len(plan.image.split(":")) != 4 or not all(plan.image.split(":")):
        raise Refusal(f"image {plan.image!r}: use PUBLISHER:OFFER:SKU:VERSION.")
    if plan.peer_address not in ("public", "private"):
        raise Refusal(f"peer address {plan.peer_address!r}: use public or private.")
    times_of(plan.period_seconds, plan.look_seconds, plan.pause_seconds)
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
    """Refuse a node that Azure would refuse, or that its network has no place for.

    Names and addresses are ours, or those of a `nodes_info.json` that was read by its rules.
    """
    network = ipaddress.ip_network(plan.network)
    for node in plan.nodes:
        if ipaddress.ip_address(node.private_ip) not in network:
            raise Refusal(f"{node.name}: {node.private_ip} is not inside the network {network}.")
        if not SIZE.fullmatch(node.size):
            raise Refusal(f"{node.name}: size {node.size!r}: use a name like {Settings.size}.")
