"""The cluster as data: nodes, zones, addresses, firewall rules, probe, image. No SDK, no I/O.

The lab and Azure apply the same `Plan`; what differs between them is only who makes it.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deploy import Refusal
from deploy.ports import HTTP_PORT, SSH_PORT, Port, ports_of, reaches
from deploy.settings import INTERNET, Settings, service_of, times_of

ZONES = 3
"""Availability zones of a region, https://learn.microsoft.com/azure/reliability/availability-zones-overview."""

FIRST_HOST = 4
"""Azure keeps the first four addresses of a subnet (.0 to .3) for itself."""

NETWORK = "10.0.0.0/24"

BALANCER = "AzureLoadBalancer"
"""Azure's word for where the probe comes from."""

CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,89}(?<!\.)")
"""A resource group, and a folder of the operator's: less than Azure takes, no brackets."""

REGION = re.compile(r"[a-z][a-z0-9]+")
SIZE = re.compile(r"(Standard|Basic)_[A-Za-z0-9_-]+")

SUBNET_ID = re.compile(
    r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/Microsoft\.Network"
    r"/virtualNetworks/([^/]+)/subnets/([^/]+)",
    re.IGNORECASE,
)
"""Subscription, resource group, network and name of a subnet."""

RULE_NAMES = frozenset(
    {
        *(f"Allow{what}FromInternet" for what in ("Http", "Tcp", "Udp", "All")),
        *(f"Allow{what}FromRanges" for what in ("Http", "Tcp", "Udp", "All")),
        "AllowHttpFromPeers",
        "AllowHttpFromProbe",
        "AllowHttpFromOperator",
        "DenyHttpFromOthers",
        "AllowSshFromOperator",
        "AllowPingFromNetwork",
    }
)
"""Every name that a firewall rule of a plan may have."""

TAG_NAME = re.compile(r"[^<>%&\\?/\x00-\x1f]{1,128}")
OWN_TAGS = frozenset(
    {
        *("cluster-port", "key", "look-seconds", "made-by", "nodes", "pause-seconds"),
        "period-seconds",
    }
)
MOST_TAGS = 50 - len(OWN_TAGS)


@dataclass(frozen=True)
class FirewallRule:
    """One inbound rule of a node's network security group."""

    name: str
    priority: int
    protocol: str  # "Tcp", "Udp", "Icmp", or "*" for all of them
    port: int | None  # None: all of them
    source: str  # an address range, or a tag of Azure's; it takes the ranges of one name together
    access: str = "Allow"  # or "Deny"


@dataclass(frozen=True)
class Probe:
    """How the load balancer asks a node whether it is the active one."""

    path: str = "/probe.html"
    port: int = HTTP_PORT
    interval_seconds: int = 5
    threshold: int = 1  # so many equal answers in a row, up or down


@dataclass(frozen=True)
class Node:
    """One virtual machine with its addresses.

    `public_ip` is None until somebody assigned one, `private_ip` empty until Azure took one of a
    subnet that is not the cluster's own.
    """

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
    network: str  # empty with `subnet`
    subnet: str  # the id of one that is not the cluster's own; else empty
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
    ports: tuple[Port, ...]
    frontend: str  # "public" or "internal"
    idle_minutes: int
    tcp_reset: bool
    setup: tuple[str, ...]  # files of the operator's
    service: Mapping[str, Any]  # what nodes are told of one that runs with the role

    @property
    def balancer_ip(self) -> str:
        """The private address of an internal load balancer; empty where Azure takes one."""
        return str(ipaddress.ip_network(self.network)[-2]) if self.network else ""


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
    network = "" if settings.subnet else network
    ports = ports_of(settings)
    plan = Plan(
        name=settings.name,
        nodes=nodes or new_nodes(settings, network, public_network),
        network=network,
        subnet=settings.subnet,
        image=settings.image,
        probe=Probe(port=settings.cluster_port),
        firewall=firewall(settings, ports, network),
        region=settings.region,
        peer_address=settings.peer_address,
        period_seconds=settings.period_seconds,
        look_seconds=settings.look_seconds,
        pause_seconds=settings.pause_seconds,
        tags=tuple(tag(text) for text in settings.tags),
        scheduled_events=settings.scheduled_events,
        ports=ports,
        frontend=settings.frontend,
        idle_minutes=settings.idle_minutes,
        tcp_reset=settings.tcp_reset,
        setup=settings.setup,
        service=service_of(settings),
    )
    check_cluster(plan)
    check_nodes(plan)
    return plan


def new_nodes(settings: Settings, network: str, public_network: str | None) -> tuple[Node, ...]:
    """As many nodes as asked for, node1 first, spread over the zones."""
    hosts = ipaddress.ip_network(network) if network else None
    taken = FIRST_HOST + 1 + (settings.frontend == "internal")
    if hosts and settings.nodes > hosts.num_addresses - taken:
        raise Refusal(f"{settings.nodes} nodes: the network {network} has no room for so many.")
    public = ipaddress.ip_network(public_network) if public_network else None
    return tuple(
        Node(
            name=f"node{index + 1}",
            zone=zone_of(index),
            private_ip=str(hosts[FIRST_HOST + index]) if hosts else "",
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


def firewall(settings: Settings, ports: tuple[Port, ...], network: str) -> tuple[FirewallRule, ...]:
    """Who may reach what on a node, one rule for every port and source.

    What no rule is about, Azure lets the network and its load balancer reach.
    """
    http = together("http_from", settings.http_from)
    ssh = together("ssh_from", settings.ssh_from)
    return (
        *service_rules(ports, http),
        *(FirewallRule("AllowSshFromOperator", 110, "Tcp", SSH_PORT, source) for source in ssh),
        *([FirewallRule("AllowPingFromNetwork", 120, "Icmp", None, network)] if network else []),
        *own_rules(settings, ports, ssh),
    )


def own_rules(
    settings: Settings, ports: tuple[Port, ...], ssh: tuple[str, ...]
) -> tuple[FirewallRule, ...]:
    """Keeps the application's clients from the cluster's own web server, and `status` not.

    With `peer_rules` nobody is left who may but peers, operator and probe. In a subnet that is not
    the cluster's own, addresses are known too late for that: there its network may, too.
    """
    port = settings.cluster_port
    http = service_rules(ports, settings.http_from)
    # Who reaches an internal load balancer is seldom where the operator is.
    served = settings.frontend == "public" and any(lets_through(rule, port) for rule in http)
    operator = () if served else ssh
    rules = [FirewallRule("AllowHttpFromOperator", 140, "Tcp", port, source) for source in operator]
    if reaches(ports, port) or (settings.subnet and settings.peer_address == "private"):
        return tuple(rules)
    return (
        FirewallRule("AllowHttpFromProbe", 135, "Tcp", port, BALANCER),
        *rules,
        FirewallRule("DenyHttpFromOthers", 150, "Tcp", port, "*", "Deny"),
    )


def service_rules(ports: tuple[Port, ...], http: tuple[str, ...]) -> tuple[FirewallRule, ...]:
    """Lets clients reach what is forwarded, which comes from their own addresses."""
    whence = "FromInternet" if http == (INTERNET,) else "FromRanges"
    rules = []
    for priority, (protocol, sent) in enumerate(
        (("Tcp", "Tcp"), ("Udp", "Udp"), ("All", "*")), start=100
    ):
        numbers = [port.number for port in ports if port.protocol == protocol]
        what = "Http" if (protocol, numbers) == ("Tcp", [HTTP_PORT]) else protocol
        rules += [
            FirewallRule(f"Allow{what}{whence}", priority, sent, number or None, source)
            for number in numbers
            for source in http
        ]
    return tuple(rules)


def lets_through(rule: FirewallRule, port: int) -> bool:
    """Whether it lets somebody reach a TCP port."""
    reached = rule.protocol in ("Tcp", "*") and rule.port in (port, None)
    return reached and rule.access == "Allow"


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
    """Lets nodes through that ask each other, where neither the Internet nor their network may.

    By both addresses where it can: a change of `peer_address` is in the firewalls at once, and on
    the nodes a run later, or never if nobody can sign it.
    """
    port, public = plan.probe.port, plan.peer_address == "public"
    is_closed = any(rule.access == "Deny" for rule in plan.firewall)
    if INTERNET in sources(plan, port) or not (public or is_closed):
        return ()
    private = [node.private_ip for node in plan.nodes] if is_closed and plan.network else []
    return tuple(
        FirewallRule("AllowHttpFromPeers", 130, "Tcp", port, f"{address}/32")
        for address in [*(node.public_ip for node in plan.nodes), *private]
        if address
    )


def with_addresses(
    plan: Plan, public: Mapping[str, str], private: Mapping[str, str] | None = None
) -> Plan:
    """The same plan with the addresses that are known, by the nodes' names."""
    nodes = tuple(
        replace(
            node,
            public_ip=public.get(node.name),
            private_ip=node.private_ip or (private or {}).get(node.name, ""),
        )
        for node in plan.nodes
    )
    return replace(plan, nodes=nodes)


def sources(plan: Plan, port: int) -> tuple[str, ...]:
    """From where a TCP port of the nodes may be reached."""
    return tuple(rule.source for rule in plan.firewall if lets_through(rule, port))


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
    if plan.subnet and not SUBNET_ID.fullmatch(plan.subnet):
        raise Refusal(
            f"subnet = {plan.subnet}: use the resource id of a subnet, which"
            " `az network vnet subnet show --query id -o tsv` prints."
        )
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
    network = ipaddress.ip_network(plan.network) if plan.network else None
    for node in plan.nodes:
        if network and ipaddress.ip_address(node.private_ip) not in network:
            raise Refusal(f"{node.name}: {node.private_ip} is not inside the network {network}.")
        if not SIZE.fullmatch(node.size):
            raise Refusal(f"{node.name}: size {node.size!r}: use a name like {Settings.size}.")
