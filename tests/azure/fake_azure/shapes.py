"""What Azure adds to a resource: values that nobody stated, and what points back at it.

The keys are those of recorded answers, see `facts.json`.
"""

import copy
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from tests.azure.fake_azure.model import Body

WHEN = "2024-01-01T00:00:00.0000000Z"

DEFAULT_RULES = (
    ("AllowVnetInBound", "Allow", 65000, "Inbound", "VirtualNetwork", "VirtualNetwork"),
    ("AllowAzureLoadBalancerInBound", "Allow", 65001, "Inbound", "AzureLoadBalancer", "*"),
    ("DenyAllInBound", "Deny", 65500, "Inbound", "*", "*"),
    ("AllowVnetOutBound", "Allow", 65000, "Outbound", "VirtualNetwork", "VirtualNetwork"),
    ("AllowInternetOutBound", "Allow", 65001, "Outbound", "*", "Internet"),
    ("DenyAllOutBound", "Deny", 65500, "Outbound", "*", "*"),
)
"""https://learn.microsoft.com/azure/virtual-network/network-security-groups-overview"""

RANGES: Body = {
    "sourcePortRanges": [],
    "destinationPortRanges": [],
    "sourceAddressPrefixes": [],
    "destinationAddressPrefixes": [],
}

ADDED: Mapping[str, Body] = {
    "virtualnetworks": {
        "enableDdosProtection": False,
        "privateEndpointVNetPolicies": "Disabled",
        "virtualNetworkPeerings": [],
    },
    "networksecuritygroups": {"securityRules": []},
    "publicipaddresses": {
        "publicIPAddressVersion": "IPv4",
        "idleTimeoutInMinutes": 4,
        "ipTags": [],
        "ddosSettings": {"protectionMode": "VirtualNetworkInherited"},
    },
    "loadbalancers": {
        "loadBalancingRules": [],
        "probes": [],
        "backendAddressPools": [],
        "inboundNatRules": [],
        "inboundNatPools": [],
        "outboundRules": [],
    },
    "networkinterfaces": {
        "dnsSettings": {"dnsServers": [], "appliedDnsServers": []},
        "enableAcceleratedNetworking": False,
        "enableIPForwarding": False,
        "disableTcpStateTracking": False,
        "nicType": "Standard",
        "auxiliaryMode": "None",
        "auxiliarySku": "None",
    },
    "virtualmachines": {
        "storageProfile": {
            "osDisk": {"osType": "Linux", "caching": "ReadWrite", "diskSizeGB": 30},
            "dataDisks": [],
        },
        "osProfile": {
            "secrets": [],
            "allowExtensionOperations": True,
            "requireGuestProvisionSignal": True,
            "linuxConfiguration": {
                "provisionVMAgent": True,
                "patchSettings": {"patchMode": "ImageDefault", "assessmentMode": "ImageDefault"},
            },
        },
    },
    "storageaccounts": {
        "accessTier": "Hot",
        "allowCrossTenantDelegationSas": False,
        "allowCrossTenantReplication": False,
        "networkAcls": {
            "bypass": "AzureServices",
            "defaultAction": "Allow",
            "ipRules": [],
            "ipv6Rules": [],
            "virtualNetworkRules": [],
        },
        "encryption": {
            "keySource": "Microsoft.Storage",
            "services": {
                "blob": {"enabled": True, "keyType": "Account"},
                "file": {"enabled": True, "keyType": "Account"},
            },
        },
    },
}
"""Properties that a resource gets where its body does not say otherwise; they can be written."""

ADDED_TO_MEMBERS: Mapping[str, Body] = {
    "subnets": {
        "delegations": [],
        "privateEndpointNetworkPolicies": "Disabled",
        "privateLinkServiceNetworkPolicies": "Enabled",
    },
    "securityRules": RANGES,
    "frontendIPConfigurations": {"privateIPAllocationMethod": "Dynamic"},
    "loadBalancingRules": {
        "enableFloatingIP": False,
        "enableTcpReset": False,
        "idleTimeoutInMinutes": 4,
        "loadDistribution": "Default",
    },
    "ipConfigurations": {
        "privateIPAddressVersion": "IPv4",
        "privateIPAllocationMethod": "Dynamic",
        "primary": True,
    },
}
"""The same for the members of a resource's lists."""


def completed(own: str, full_type: str, body: Body) -> Body:
    """What is kept of a body: with defaults, and with a rule's pool under both of its names."""
    body = copy.deepcopy(body) | {"id": own, "type": full_type}
    kind = full_type.rsplit("/", 1)[-1].lower()
    properties = filled(body.get("properties", {}), ADDED[kind])
    for key, defaults in ADDED_TO_MEMBERS.items():
        for member in properties.get(key, []):
            member["properties"] = filled(member.get("properties", {}), defaults)
    for rule in properties.get("loadBalancingRules", []):
        both_pools(rule["properties"])
        forget_reset(rule["properties"])
    for key, part in parts_of(properties):
        part["id"] = f"{own}/{key}/{part['name']}"
        part.setdefault("properties", {})
    if kind in ("publicipaddresses", "loadbalancers"):
        body["sku"] = filled(body.get("sku", {}), {"tier": "Regional"})
    return body | {"properties": properties}


def filled(value: Any, defaults: Any) -> Any:
    """A value with what it lacks of the defaults."""
    if not isinstance(value, Mapping) or not isinstance(defaults, Mapping):
        return value
    whole = {key: filled(value[key], defaults.get(key)) for key in value}
    return whole | {key: copy.deepcopy(d) for key, d in defaults.items() if key not in value}


def both_pools(rule: Body) -> None:
    """Whoever states one pool of a rule gets it back as a list, too; the other way as well."""
    pools = rule.get("backendAddressPools") or []
    if "backendAddressPool" in rule and not pools:
        rule["backendAddressPools"] = [dict(rule["backendAddressPool"])]
    elif len(pools) == 1:
        rule["backendAddressPool"] = dict(pools[0])


def forget_reset(rule: Body) -> None:
    """What a rule of UDP says of resets is not kept: kubernetes-sigs/cloud-provider-azure #1087."""
    if rule["protocol"].lower() == "udp":
        rule["enableTcpReset"] = False


def guid(text: str) -> str:
    """A GUID that depends on nothing but a text."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text.lower()))


# ---------------------------------------------------------------- as a GET answers


def shown(body: Body, resources: Mapping[str, Body]) -> Body:
    """A resource as a GET answers it: nobody's custom data, and what only Azure can write."""
    body = copy.deepcopy(body)
    kind = body["type"].rsplit("/", 1)[-1].lower()
    properties = body["properties"]
    if "Microsoft.Network" in body["type"]:
        show_network(body, resources)
    if kind == "networksecuritygroups":
        properties["defaultSecurityRules"] = [*default_rules(body)]
    if kind == "networkinterfaces":
        show_interface(body)
    if kind == "virtualmachines":
        show_machine(body)
    if kind == "storageaccounts":
        show_account(body)
    return body


def show_network(body: Body, resources: Mapping[str, Body]) -> None:
    """Network resources and their parts have etags, and know who points at them."""
    properties = body["properties"]
    properties["resourceGuid"] = guid(body["id"])
    whole = {body["id"].lower(): body}
    for key, part in parts_of(properties):
        part["id"] = f"{body['id']}/{key}/{part['name']}"
        show_part(body, key, part)
        whole[part["id"].lower()] = part
    for target, key, pointer in pointers(resources):
        if target in whole:
            point(whole[target]["properties"], key, pointer)


def show_part(body: Body, key: str, part: Body) -> None:
    """A part of a network resource has a type, an etag and a state of its own."""
    part |= {"etag": body["etag"], "type": f"{body['type']}/{key}"}
    part["properties"]["provisioningState"] = body["properties"]["provisioningState"]
    if key == "loadBalancingRules":
        part["properties"] |= {
            "allowBackendPortConflict": False,
            "enableDestinationServiceEndpoint": False,
        }


def parts_of(properties: Body) -> Iterator[tuple[str, Body]]:
    """The members of a resource's lists that have names, with the list's key."""
    for key, members in properties.items():
        for member in members if isinstance(members, list) else []:
            if isinstance(member, dict) and "name" in member:
                yield key, member


def pointers(resources: Mapping[str, Body]) -> Iterator[tuple[str, str, str]]:
    """Who is pointed at, under which key it shows that, and by whom."""
    for body in resources.values():
        own, properties = body["id"], body["properties"]
        for frontend in properties.get("frontendIPConfigurations", []):
            named = f"{own}/frontendIPConfigurations/{frontend['name']}"
            yield of(frontend, "publicIPAddress"), "ipConfiguration", named
            yield of(frontend, "subnet"), "ipConfigurations", named  # azure-sdk-for-java #38116
        for rule in properties.get("loadBalancingRules", []):
            named = f"{own}/loadBalancingRules/{rule['name']}"
            for key in ("frontendIPConfiguration", "backendAddressPool", "probe"):
                yield of(rule, key), "loadBalancingRules", named
        for configuration in properties.get("ipConfigurations", []):
            named = f"{own}/ipConfigurations/{configuration['name']}"
            yield of(configuration, "publicIPAddress"), "ipConfiguration", named
            yield of(configuration, "subnet"), "ipConfigurations", named
            for pool in configuration["properties"].get("loadBalancerBackendAddressPools", []):
                yield pool["id"].lower(), "backendIPConfigurations", named
        yield of(body, "networkSecurityGroup"), "networkInterfaces", own
        for nic in properties.get("networkProfile", {}).get("networkInterfaces", []):
            yield nic["id"].lower(), "virtualMachine", own


def of(body: Body, key: str) -> str:
    """The id that a body names under a key, without letter case."""
    return str(body["properties"].get(key, {}).get("id", "")).lower()


def point(properties: Body, key: str, pointer: str) -> None:
    """Show who points here: some may be several."""
    if key in ("ipConfiguration", "virtualMachine"):
        properties[key] = {"id": pointer}
    else:
        properties[key] = [*properties.get(key, []), {"id": pointer}]


def default_rules(body: Body) -> Iterator[Body]:
    """The rules that every firewall ends with."""
    for name, access, priority, direction, source, target in DEFAULT_RULES:
        rule = {
            "provisioningState": body["properties"]["provisioningState"],
            "description": name,
            "protocol": "*",
            "sourcePortRange": "*",
            "destinationPortRange": "*",
            "sourceAddressPrefix": source,
            "destinationAddressPrefix": target,
            "access": access,
            "priority": priority,
            "direction": direction,
            **copy.deepcopy(RANGES),
        }
        own = f"{body['id']}/defaultSecurityRules/{name}"
        part = {"name": name, "id": own, "properties": rule}
        show_part(body, "defaultSecurityRules", part)
        yield part


def show_interface(body: Body) -> None:
    """What an interface tells about itself."""
    body["kind"] = "Regular"
    body["properties"] |= {
        "vnetEncryptionSupported": False,
        "defaultOutboundConnectivityEnabled": False,
        "allowPort25Out": True,
        "hostedWorkloads": [],
        "tapConfigurations": [],
    }
    suffix = {"internalDomainNameSuffix": "example.internal.cloudapp.net"}
    body["properties"]["dnsSettings"] |= suffix


def show_machine(body: Body) -> None:
    """A machine tells no custom data, and which image `latest` was."""
    properties = body["properties"]
    properties["osProfile"].pop("customData", None)
    properties["storageProfile"]["imageReference"]["exactVersion"] = "24.04.202401010"
    properties |= {"vmId": guid(body["id"] + body["etag"]), "timeCreated": WHEN}
    body.pop("etag")


def show_account(body: Body) -> None:
    """A storage account tells when its keys were made, and where it answers."""
    body.pop("etag")
    body["sku"]["tier"] = "Standard"
    properties = body["properties"]
    for service in properties["encryption"]["services"].values():
        service["lastEnabledTime"] = WHEN
    properties |= {
        "creationTime": WHEN,
        "keyCreationTime": {"key1": WHEN, "key2": WHEN},
        "primaryLocation": body["location"],
        "privateEndpointConnections": [],
        "statusOfPrimary": "available",
    }
