"""What a cluster is made of on Azure, as request bodies. No SDK, no I/O.

Bodies state only what we decide; what Azure adds to them is left alone. Their shapes are those of
the REST reference, https://learn.microsoft.com/rest/api/azure/.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from deploy import PROJECT, Refusal
from deploy.plan import FirewallRule, Node, Plan, peer_rules, with_addresses
from deploy.ports import Port
from deploy.userdata import DOCUMENT_BYTES

Body = dict[str, Any]

TYPES = {
    "network": "Microsoft.Network/virtualNetworks",
    "firewall": "Microsoft.Network/networkSecurityGroups",
    "public address": "Microsoft.Network/publicIPAddresses",
    "load balancer": "Microsoft.Network/loadBalancers",
    "network interface": "Microsoft.Network/networkInterfaces",
    "storage account": "Microsoft.Storage/storageAccounts",
    "virtual machine": "Microsoft.Compute/virtualMachines",
}
"""What we call a kind of resource, and what Azure does."""

MADE_BY = {"made-by": PROJECT}
"""The tag of everything we create; what lacks it is not ours."""

NETWORK, SUBNET = "network", "nodes"
BALANCER, FRONTEND, POOL, PROBE = "loadBalancer", "frontend", "nodes", "probe"
BALANCER_ADDRESS = "loadBalancerPublicIp"

OLD_PROBE_COUNT = {"name": PROBE, "properties": {"numberOfProbes": 2}}
"""What `probeThreshold` replaced; Azure still wants this times the interval to be 10 s or more."""

ADMIN_NAME = "azureuser"


@dataclass(frozen=True)
class Resource:
    """One resource as it should be.

    `at_creation` is sent once, with the body, because Azure neither shows it again nor takes
    another value; `needs` names the resources that must exist before.
    """

    kind: str
    name: str
    body: Body
    needs: tuple[str, ...] = ()
    at_creation: Mapping[str, Any] = field(default_factory=dict)
    in_place: bool = True  # False: what differs is told, and never changed

    @property
    def key(self) -> str:
        """The resource in the operator's words, e.g. `public address node1PublicIp`."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Scope:
    """The resource group that ids begin with."""

    subscription: str
    group: str

    def id_of(self, kind: str, name: str) -> str:
        """The id of a resource, whether it exists or not."""
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.group}"
            f"/providers/{TYPES[kind]}/{name}"
        )

    def storage_account(self) -> str:
        """A name that no other cluster in the world has, and that this one always gets."""
        digest = hashlib.sha256(f"{self.subscription}/{self.group}".lower().encode()).hexdigest()
        return f"cluster{digest[:17]}"


def resources(plan: Plan, scope: Scope, ssh_key: str) -> list[Resource]:
    """Everything but the resource group and what the web site holds."""
    zones = ("1", "2", "3")
    return [
        *([] if plan.subnet else [network(plan)]),
        *([address(BALANCER_ADDRESS, plan, zones)] if plan.frontend == "public" else []),
        *(address(f"{node.name}PublicIp", plan, zones=(str(node.zone),)) for node in plan.nodes),
        *(node_firewall(plan, node) for node in plan.nodes),
        storage(plan, scope),
        balancer(plan, scope),
        *(interface(plan, scope, node) for node in plan.nodes),
        *(machine(plan, scope, node, ssh_key) for node in plan.nodes),
    ]


def network(plan: Plan) -> Resource:
    """One subnet for the nodes; `defaultOutboundAccess` false: they have addresses of their own."""
    subnet = {
        "name": SUBNET,
        "properties": {"addressPrefix": plan.network, "defaultOutboundAccess": False},
    }
    properties = {"addressSpace": {"addressPrefixes": [plan.network]}, "subnets": [subnet]}
    return Resource("network", NETWORK, body_of(plan, properties))


def address(name: str, plan: Plan, zones: tuple[str, ...]) -> Resource:
    """A static public address in one zone, or in all of them."""
    body = body_of(
        plan, {"publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"}, zones
    )
    return Resource("public address", name, {**body, "sku": {"name": "Standard"}})


def node_firewall(plan: Plan, node: Node) -> Resource:
    """Who may reach a node; needs the addresses of its peers where only they may."""
    rules = (*plan.firewall, *peer_rules(plan))
    asks_peers = bool(peer_rules(with_any_addresses(plan)))
    needs = (f"public address {node.name}PublicIp" for node in plan.nodes) if asks_peers else ()
    return Resource(
        "firewall",
        f"{node.name}-nsg",
        body_of(plan, {"securityRules": security_rules(rules)}),
        tuple(needs),
    )


def with_any_addresses(plan: Plan) -> Plan:
    """The plan as if every node's public address were known: only its shape matters."""
    return with_addresses(plan, {node.name: "any" for node in plan.nodes})


def security_rules(rules: Iterable[FirewallRule]) -> list[Body]:
    """One Azure rule for all sources of one name."""
    by_name = groupby(rules, key=lambda rule: rule.name)
    return [security_rule([*same_name]) for _, same_name in by_name]


def security_rule(rules: list[FirewallRule]) -> Body:
    """An inbound rule that lets several sources reach several ports."""
    rule = rules[0]
    sources = [*dict.fromkeys(rule.source for rule in rules)]
    ports = [*dict.fromkeys("*" if one.port is None else f"{one.port}" for one in rules)]
    return {
        "name": rule.name,
        "properties": {
            "priority": rule.priority,
            "direction": "Inbound",
            "access": rule.access,
            "protocol": rule.protocol,
            **one_or_many("sourceAddressPrefix", "sourceAddressPrefixes", sources),
            "sourcePortRange": "*",
            "destinationAddressPrefix": "*",
            **one_or_many("destinationPortRange", "destinationPortRanges", ports),
        },
    }


def one_or_many(one: str, many: str, values: list[str]) -> Body:
    """Values under the name that Azure has for so many of them."""
    return {one: values[0]} if len(values) == 1 else {many: values}


def balancer(plan: Plan, scope: Scope) -> Resource:
    """Forwards to the one node whose probe answers, and to nobody when none does."""
    own = scope.id_of("load balancer", BALANCER)
    rules = [{"name": rule_name(p), "properties": balancing_rule(plan, own, p)} for p in plan.ports]
    properties = {
        "frontendIPConfigurations": [frontend(plan, scope)],
        "backendAddressPools": [{"name": POOL}],
        "probes": [{"name": PROBE, "properties": probe(plan)}],
        "loadBalancingRules": rules,
    }
    public, own_network = f"public address {BALANCER_ADDRESS}", f"network {NETWORK}"
    inside = () if plan.subnet else (own_network,)
    return Resource(
        "load balancer",
        BALANCER,
        {**body_of(plan, properties), "sku": {"name": "Standard"}},
        (public,) if plan.frontend == "public" else inside,
        at_creation={"properties": {"probes": [OLD_PROBE_COUNT]}},
    )


def frontend(plan: Plan, scope: Scope) -> Body:
    """Where the load balancer is reached: a public address, or a private one of the subnet.

    The zones of a public one are its address's: Azure refuses them here, and wants them for the
    other (hashicorp/terraform-provider-azurerm issue 1967).
    """
    if plan.frontend == "public":
        public = {"publicIPAddress": {"id": scope.id_of("public address", BALANCER_ADDRESS)}}
        return {"name": FRONTEND, "properties": public}
    private = {"subnet": {"id": subnet_id(plan, scope)}, **private_address(plan.balancer_ip)}
    return {"name": FRONTEND, "zones": ["1", "2", "3"], "properties": private}


def private_address(wanted: str) -> Body:
    """An address of the cluster's own subnet, or nothing said: of another one Azure takes any.

    It keeps that as long as what has it is there; whoever makes it static by hand is left alone.
    """
    return {"privateIPAllocationMethod": "Static", "privateIPAddress": wanted} if wanted else {}


def subnet_id(plan: Plan, scope: Scope) -> str:
    """Where the nodes are."""
    return plan.subnet or f"{scope.id_of('network', NETWORK)}/subnets/{SUBNET}"


def probe(plan: Plan) -> Body:
    """AllProbedUp would send clients to passive nodes while nobody is active."""
    return {
        "protocol": "Http",
        "port": plan.probe.port,
        "requestPath": plan.probe.path,
        "intervalInSeconds": plan.probe.interval_seconds,
        "probeThreshold": plan.probe.threshold,
        "noHealthyBackendsBehavior": "AllProbedDown",
    }


def rule_name(port: Port) -> str:
    """Of a rule of the load balancer; `compare.retired` knows ours by these."""
    if port == Port("Tcp", 80):
        return "http"
    return "all-ports" if port.protocol == "All" else f"{port.protocol}-{port.number}".lower()


def balancing_rule(plan: Plan, own: str, port: Port) -> Body:
    """`disableOutboundSnat`: nodes leave by addresses of their own.

    Azure heeds what is about idle connections for TCP alone, and answers a rule for UDP without
    its `enableTcpReset` (kubernetes-sigs/cloud-provider-azure issue 1087).
    """
    idle = {"idleTimeoutInMinutes": plan.idle_minutes, "enableTcpReset": plan.tcp_reset}
    return {
        "frontendIPConfiguration": {"id": f"{own}/frontendIPConfigurations/{FRONTEND}"},
        "backendAddressPool": {"id": f"{own}/backendAddressPools/{POOL}"},
        "probe": {"id": f"{own}/probes/{PROBE}"},
        "protocol": port.protocol,
        "frontendPort": port.number,
        "backendPort": port.number,
        **({} if port.protocol == "Udp" else idle),
        **({"disableOutboundSnat": True} if plan.frontend == "public" else {}),
    }


def interface(plan: Plan, scope: Scope, node: Node) -> Resource:
    """Joins a node's address, firewall and subnet; membership of the pool is set here."""
    pool = f"{scope.id_of('load balancer', BALANCER)}/backendAddressPools/{POOL}"
    firewall, public = f"{node.name}-nsg", f"{node.name}PublicIp"
    configuration = {
        "primary": True,
        **private_address(node.private_ip if plan.network else ""),
        "subnet": {"id": subnet_id(plan, scope)},
        "publicIPAddress": {"id": scope.id_of("public address", public)},
        "loadBalancerBackendAddressPools": [{"id": pool}],
    }
    properties = {
        "networkSecurityGroup": {"id": scope.id_of("firewall", firewall)},
        "ipConfigurations": [{"name": "default", "properties": configuration}],
    }
    return Resource(
        "network interface",
        f"{node.name}-nic",
        body_of(plan, properties),
        (
            *(() if plan.subnet else (f"network {NETWORK}",)),
            f"load balancer {BALANCER}",
            f"firewall {firewall}",
            f"public address {public}",
        ),
    )


def storage(plan: Plan, scope: Scope) -> Resource:
    """The web site's account; its keys open nothing: who uploads needs a role on its data."""
    properties = {
        "minimumTlsVersion": "TLS1_2",
        "supportsHttpsTrafficOnly": True,
        "allowBlobPublicAccess": False,
        "allowSharedKeyAccess": False,
    }
    return Resource(
        "storage account",
        scope.storage_account(),
        {**body_of(plan, properties), "kind": "StorageV2", "sku": {"name": "Standard_LRS"}},
    )


def machine(plan: Plan, scope: Scope, node: Node, ssh_key: str) -> Resource:
    """A node. It is never changed in place: that would restart it behind the cluster's back."""
    nic = {"id": scope.id_of("network interface", f"{node.name}-nic")}
    properties = {
        "hardwareProfile": {"vmSize": node.size},
        "storageProfile": {"imageReference": image_reference(plan.image)},
        "networkProfile": {"networkInterfaces": [nic]},
    }
    return Resource(
        "virtual machine",
        node.name,
        body_of(plan, properties, (str(node.zone),)),
        (f"network interface {node.name}-nic",),
        at_creation={"properties": first_boot(node, ssh_key)},
        in_place=False,
    )


def first_boot(node: Node, ssh_key: str) -> Body:
    """What a VM is told once: its disk, its administrator; the disk goes when the VM does."""
    public_key = {"path": f"/home/{ADMIN_NAME}/.ssh/authorized_keys", "keyData": ssh_key}
    return {
        "storageProfile": {
            "osDisk": {
                "createOption": "FromImage",
                "deleteOption": "Delete",
                "managedDisk": {"storageAccountType": "StandardSSD_LRS"},
            }
        },
        "osProfile": {
            "computerName": node.name,
            "adminUsername": ADMIN_NAME,
            "linuxConfiguration": {
                "disablePasswordAuthentication": True,
                "ssh": {"publicKeys": [public_key]},
            },
        },
        "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},
    }


def custom_data(document: str) -> Body:
    """The first-boot document as a VM takes it; raises `Refusal` if it is too long."""
    data = document.encode()
    if len(data) > DOCUMENT_BYTES:
        raise Refusal(
            f"first-boot document of {len(data)} bytes: Azure takes {DOCUMENT_BYTES} at most."
        )
    return {"properties": {"osProfile": {"customData": base64.b64encode(data).decode()}}}


def image_reference(image: str) -> Body:
    """An image as Azure names it."""
    return dict(zip(("publisher", "offer", "sku", "version"), image.split(":"), strict=True))


def body_of(plan: Plan, properties: Body, zones: tuple[str, ...] = ()) -> Body:
    """What every resource has: place, tags, properties."""
    tags = {**dict(plan.tags), **MADE_BY}
    body = {"location": plan.region, "tags": tags, "properties": properties}
    return {**body, "zones": list(zones)} if zones else body
