"""The lab's network: one namespace is the cloud's fabric, one each is a node's.

As on Azure a node knows its private address alone. The fabric translates its public address, in
both directions and between two nodes as well, and the firewall of the plan (a network security
group: stateful, first match) stands in front of each node. A container lives in its node's
namespace; a virtual machine behind it, as behind a host that forwards what is for it, so each rule
stands where packets come in and where they are forwarded.
"""

import ipaddress
import json

from deploy import Refusal
from deploy.lab import (
    COLLECTOR,
    FABRIC_ADDRESS,
    LOAD_BALANCER,
    METADATA,
    OPERATOR,
    PROBE_SOURCE,
    PUBLIC_NETWORK,
    SERVICE_NETWORK,
    WEB_SITE,
)
from deploy.lab.process import output_of
from deploy.plan import BALANCER, FirewallRule, Node, Plan, peer_rules
from deploy.settings import INTERNET

PREFIX = "aap-"
FABRIC = f"{PREFIX}fabric"
HOST_LINK = f"{PREFIX}host"
BRIDGE = "nodes"
TAP = "machine"
"""Where a virtual machine's network card ends in its node's namespace."""
MACHINE_HOST = "192.0.2.1"
"""The namespace's own address towards its machine: no firewall and no cut is between them."""


def namespace(node: Node) -> str:
    """The name of the node's network namespace."""
    return f"{PREFIX}{node.name}"


def mac_address(node: Node) -> str:
    """The node's hardware address, from Microsoft's range, as its private address has it."""
    return "00:0d:3a:" + ":".join(f"{int(part):02x}" for part in node.private_ip.split(".")[1:])


def namespaces() -> list[str]:
    """The lab's network namespaces that exist."""
    listing = json.loads(output_of(["ip", "-json", "netns", "list"]) or "[]")
    return [entry["name"] for entry in listing if entry["name"].startswith(PREFIX)]


def refuse_taken_routes(plan: Plan) -> None:
    """Raise `Refusal` where this machine itself uses addresses that the lab would take."""
    wanted = [ipaddress.ip_network(text) for text in (PUBLIC_NETWORK, SERVICE_NETWORK)]
    for route in json.loads(output_of(["ip", "-json", "-4", "route", "show"])):
        if route["dst"] == "default" or route.get("dev") == HOST_LINK:
            continue
        taken = [net for net in wanted if net.overlaps(ipaddress.ip_network(route["dst"]))]
        if taken:
            raise Refusal(f"this machine has a route to {route['dst']}: the lab needs {taken[0]}.")
    for node in plan.nodes:
        if ipaddress.ip_address(node.public_ip or "0.0.0.0") not in wanted[0]:
            raise Refusal(f"{node.name}: {node.public_ip} is not in {PUBLIC_NETWORK}, the lab's.")


def make_fabric(plan: Plan) -> None:
    """Make the fabric: the nodes' gateway, the services' addresses, the way to this machine."""
    _ip(f"netns add {FABRIC}")
    _set(FABRIC, 1, "ip_forward")
    # Two nodes talk through the gateway on purpose: no redirect to the direct way.
    _set(FABRIC, 0, "conf/all/send_redirects", "conf/default/send_redirects")
    _set(FABRIC, 0, "conf/all/rp_filter", "conf/default/rp_filter")
    _ip(
        f"link add {HOST_LINK} type veth peer name host netns {FABRIC}",
        f"address add {OPERATOR}/24 dev {HOST_LINK}",
        f"link set {HOST_LINK} up",
        f"route add {PUBLIC_NETWORK} via {FABRIC_ADDRESS} dev {HOST_LINK}",
    )
    services = [f"address add {ip}/32 dev lo" for ip in (METADATA, PROBE_SOURCE)]
    is_internal = plan.frontend == "internal"
    internal = [f"address add {plan.balancer_ip}/32 dev {BRIDGE}"] if is_internal else []
    own = (FABRIC_ADDRESS, WEB_SITE, LOAD_BALANCER, COLLECTOR)
    shown = [f"address add {ip}/24 dev host" for ip in own]
    _ip(
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"address add {gateway(plan)}/{prefix_length(plan)} dev {BRIDGE}",
        *internal,
        f"link set {BRIDGE} up",
        "link set host up",
        *services,
        *shown,
        # Answers to a public address are routed before they are translated back.
        f"route add {PUBLIC_NETWORK} dev {BRIDGE}",
        inside=FABRIC,
    )
    _nft(FABRIC, translation(plan))


def make_node(plan: Plan, node: Node, *, machine: bool) -> None:
    """Make the node's namespace: its address, its way to the gateway, its firewall."""
    inside = namespace(node)
    port = f"port{node.private_ip.rpartition('.')[2]}"
    if port in output_of(["ip", "-netns", FABRIC, "-brief", "link", "show"]):
        _ip(f"link delete {port}", inside=FABRIC)
    _ip(
        f"netns add {inside}",
        f"link add eth0 netns {inside} address {mac_address(node)} type veth"
        f" peer name {port} netns {FABRIC}",
    )
    _ip(f"link set {port} master {BRIDGE} up", inside=FABRIC)
    own = _forwarding(plan, node) if machine else _address(plan, node)
    _ip("link set lo up", "link set eth0 up", *own, inside=inside)
    _ip(f"route add default via {gateway(plan)} dev eth0", inside=inside)
    if machine:
        _set(inside, 1, "ip_forward", "conf/eth0/proxy_arp", f"conf/{TAP}/proxy_arp")
        _set(inside, 0, "neigh/eth0/proxy_delay", f"neigh/{TAP}/proxy_delay")
    _nft(inside, firewall(plan))


def remove() -> None:
    """Remove all of it; what is not there is no error."""
    if HOST_LINK in output_of(["ip", "-brief", "link", "show"]):
        _ip(f"link delete {HOST_LINK}")
    for name in namespaces():
        _ip(f"netns delete {name}")


def translation(plan: Plan) -> str:
    """The fabric's nftables rules: public addresses to private ones and back."""
    inwards = ", ".join(f"{node.public_ip} : {node.private_ip}" for node in plan.nodes)
    outwards = ", ".join(f"{node.private_ip} : {node.public_ip}" for node in plan.nodes)
    return f"""
        table ip translation {{
            map inwards {{ type ipv4_addr : ipv4_addr; elements = {{ {inwards} }}; }}
            map outwards {{ type ipv4_addr : ipv4_addr; elements = {{ {outwards} }}; }}
            chain prerouting {{
                type nat hook prerouting priority -100;
                dnat to ip daddr map @inwards
            }}
            chain postrouting {{
                type nat hook postrouting priority 100;
                ct original ip daddr != {plan.network} snat to ip saddr map @outwards
            }}
            chain input {{
                type nat hook input priority 100;
                ip daddr {{ {WEB_SITE}, {LOAD_BALANCER} }} snat to ip saddr map @outwards
            }}
        }}"""


def firewall(plan: Plan) -> str:
    """The plan's rules as nftables rules, between the ones that Azure itself adds.

    Azure's are AllowVNetInBound (65000), AllowAzureLoadBalancerInBound (65001), DenyAllInbound
    (65500): learn.microsoft.com/azure/virtual-network/network-security-groups-overview.
    """
    rules = sorted((*plan.firewall, *peer_rules(plan)), key=lambda rule: rule.priority)
    return f"""
        table inet firewall {{
            chain allowed {{
                ct state established,related accept
                {"; ".join(_verdict(rule) for rule in rules)}
                ip saddr {plan.network} accept comment "AllowVNetInBound"
                ip saddr {PROBE_SOURCE} accept comment "AllowAzureLoadBalancerInBound"
            }}
            chain input {{
                type filter hook input priority 0; policy drop;
                iif lo accept
                jump allowed
            }}
            chain forward {{
                type filter hook forward priority 0; policy drop;
                iifname "{TAP}" accept
                jump allowed
            }}
        }}"""


def power(node: Node, on: bool) -> None:
    """Let the node's packets through, or none at all: a machine that is off sends no resets."""
    silence = """
            chain input { type filter hook input priority -300; policy drop; }
            chain forward { type filter hook forward priority -300; policy drop; }
            chain output { type filter hook output priority -300; policy drop; }"""
    _replace(namespace(node), "power", "" if on else silence)


def cut(sender: Node, receiver: Node, *, one_way: bool) -> None:
    """Drop what `sender` sends to `receiver`, and back unless `one_way`.

    One way, only what `sender` began is dropped, on connections that stand already too: what it
    answers to `receiver` still arrives, as with a security group of `receiver` that refuses it.
    """
    _drop(sender, receiver, began_only=one_way)
    if not one_way:
        _drop(receiver, sender, began_only=False)


def heal(node: Node) -> None:
    """Undo every cut in front of the node."""
    _replace(namespace(node), "cuts", "")


def _drop(sender: Node, receiver: Node, *, began_only: bool) -> None:
    began = "ct direction original " if began_only else ""
    drop = f"{began}ip saddr {{ {sender.private_ip}, {sender.public_ip} }} drop"
    _nft(
        namespace(receiver),
        f"""
        table inet cuts {{
            chain input {{ type filter hook input priority -150; {drop}; }}
            chain forward {{ type filter hook forward priority -150; {drop}; }}
        }}""",
    )


def _verdict(rule: FirewallRule) -> str:
    whence = {INTERNET: "", "*": "", BALANCER: f"ip saddr {PROBE_SOURCE} "}
    source = whence.get(rule.source, f"ip saddr {rule.source} ")
    what = "meta l4proto icmp" if rule.protocol == "Icmp" else ""
    if rule.port is not None:
        what = f"{rule.protocol.lower()} dport {rule.port}"
    verdict = "accept" if rule.access == "Allow" else "drop"
    return f'{source}{what} {verdict} comment "{rule.name}"'


def gateway(plan: Plan) -> str:
    """The address that the nodes send through."""
    return str(ipaddress.ip_network(plan.network)[1])


def prefix_length(plan: Plan) -> str:
    """How many bits of an address name the nodes' network."""
    return plan.network.split("/")[1]


def _address(plan: Plan, node: Node) -> list[str]:
    return [f"address add {node.private_ip}/{prefix_length(plan)} dev eth0"]


def _forwarding(plan: Plan, node: Node) -> list[str]:
    """As Azure's network does: every question for an address is answered by who forwards to it."""
    return [
        f"tuntap add dev {TAP} mode tap",
        f"address add {MACHINE_HOST}/32 dev {TAP}",
        f"link set {TAP} up",
        f"route add {node.private_ip}/32 dev {TAP}",
        f"route add {plan.network} dev eth0",
    ]


def _ip(*commands: str, inside: str | None = None) -> None:
    where = ["-netns", inside] if inside else []
    output_of(["ip", *where, "-batch", "-"], text="\n".join(commands))


def _set(inside: str, value: int, *settings: str) -> None:
    paths = [f"/proc/sys/net/ipv4/{setting}" for setting in settings]
    output_of(["ip", "netns", "exec", inside, "tee", *paths], text=str(value))


def _nft(inside: str, rules: str) -> None:
    output_of(["ip", "netns", "exec", inside, "nft", "-f", "-"], text=rules)


def _replace(inside: str, table: str, chains: str) -> None:
    # Adding a table that exists is no error, deleting one that does not is.
    made = f"table inet {table} {{\n{chains}\n}}" if chains else ""
    _nft(inside, f"add table inet {table}\ndelete table inet {table}\n{made}")
