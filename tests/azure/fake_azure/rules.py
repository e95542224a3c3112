"""What Azure refuses beyond the shape of a body, a function for each type of resource.

Codes and limits from https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
and the overviews of each service.
"""

import base64
import binascii
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tests.azure.fake_azure.model import Body, Refused

NAMES = {
    "microsoft.network/virtualnetworks": r"[A-Za-z0-9][\w.-]{0,62}\w",
    "microsoft.network/networksecuritygroups": r"[A-Za-z0-9][\w.-]{0,78}\w",
    "microsoft.network/publicipaddresses": r"[A-Za-z0-9][\w.-]{0,78}\w",
    "microsoft.network/loadbalancers": r"[A-Za-z0-9][\w.-]{0,78}\w",
    "microsoft.network/networkinterfaces": r"[A-Za-z0-9][\w.-]{0,78}\w",
    "microsoft.compute/virtualmachines": r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}[A-Za-z0-9]",
    "microsoft.storage/storageaccounts": r"[a-z0-9]{3,24}",
}
ZONES = ("1", "2", "3")
SOURCE_TAGS = ("*", "Internet", "VirtualNetwork", "AzureLoadBalancer")
IMAGES = {("canonical", "ubuntu-24_04-lts", "server"), ("debian", "debian-12", "12-gen2")}
ADMIN_NAMES_TAKEN = {"admin", "administrator", "root", "user", "test", "guest", "azure"}
PLATFORM_ADDRESS = ipaddress.ip_address("168.63.129.16")


def refuse(condition: object, code: str, message: str, status: int = 400) -> None:
    """Refuse if it is so."""
    if condition:
        raise Refused(status, code, message)


def retryable(code: str, message: str, retry_after: float | None = None) -> Refused:
    """What Azure's network says when it is asked too early: its reason is in the details."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    details = [{"code": code, "message": message}]
    return Refused(
        429, "RetryableError", "A retryable error occurred.", details=details, headers=headers
    )


def references(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every id that a body names, with the key under which it does."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "id" and isinstance(inner, str):
                yield path, inner
            else:
                yield from references(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner, path)


Resources = Mapping[str, Body]
Rule = Callable[[str, Body, Resources], None]


def network(own: str, body: Body, resources: Resources) -> None:
    """Prefixes parse, subnets lie inside, nobody takes the platform's address."""
    del own, resources
    spaces = [
        ipaddress.ip_network(p) for p in body["properties"]["addressSpace"]["addressPrefixes"]
    ]
    refuse(any(PLATFORM_ADDRESS in s for s in spaces), "InvalidAddressPrefix", "168.63.129.16")
    for subnet in body["properties"].get("subnets", []):
        check_either(
            subnet["properties"], "addressPrefix", "addressPrefixes", "NetcfgInvalidSubnet"
        )
        prefix = prefix_of(subnet)
        inside = any(prefix.subnet_of(space) for space in spaces)
        refuse(not inside, "NetcfgInvalidSubnet", f"Subnet {subnet['name']} is not in the network.")
        refuse(prefix.prefixlen > 29, "NetcfgInvalidSubnet", "A subnet needs a /29 at least.")


def prefix_of(subnet: Body) -> Any:
    """A subnet's range."""
    properties = subnet["properties"]
    return ipaddress.ip_network(properties.get("addressPrefix") or properties["addressPrefixes"][0])


def firewall(own: str, body: Body, resources: Resources) -> None:
    """Priorities are unique, sources are ranges or tags, one way of naming them."""
    del own, resources
    taken = set()
    for rule in body["properties"].get("securityRules", []):
        properties, name = rule["properties"], rule["name"]
        refuse(not re.fullmatch(r"\w[\w.-]{0,79}", name), "InvalidResourceName", name)
        priority = properties["priority"]
        refuse(not 100 <= priority <= 4096, "SecurityRuleInvalidPriority", f"{name}: {priority}")
        same = (priority, properties["direction"])
        refuse(same in taken, "SecurityRuleConflict", f"{name}: priority {priority} is taken.")
        taken.add(same)
        for key in ("sourceAddressPrefix", "destinationAddressPrefix"):
            check_either(properties, key, f"{key}es", "SecurityRuleInvalidAddressPrefix")
        for key in ("sourcePortRange", "destinationPortRange"):
            check_either(properties, key, f"{key}s", "SecurityRuleInvalidPortRange")
            for ports in properties.get(f"{key}s") or [properties[key]]:
                bad = not is_port_range(ports)
                refuse(bad, "SecurityRuleInvalidPortRange", f"{name}: Value provided: {ports}")
        one, many = properties.get("sourceAddressPrefix"), properties.get("sourceAddressPrefixes")
        for source in many or [one]:
            refuse(
                not is_range(source) and source not in SOURCE_TAGS,
                "SecurityRuleInvalidAddressPrefix",
                f"Security rule {name} has invalid Address prefix. Value provided: {source}",
            )
        check_together(name, many or [])


def check_either(properties: Body, one: str, many: str, code: str) -> None:
    """A value is stated under one of its two names."""
    values = properties.get(one), properties.get(many)
    refuse(bool(values[0]) == bool(values[1]), code, f"{one} {values[0]}, {many} {values[1]}")


def check_together(name: str, sources: list[str]) -> None:
    """Several sources of one rule are ranges that have no address in common.

    kubernetes-sigs/cloud-provider-azure issue 6775, ansible-collections/azure issue 639.
    """
    for source in sources:
        refuse(
            source in SOURCE_TAGS,
            "SecurityRuleParameterContainsUnsupportedValue",
            f"Security rule parameter SourceAddressPrefixes for rule {name} cannot specify existing"
            " VIRTUALNETWORK, INTERNET, AZURELOADBALANCER, '*' or system tags. Unsupported value"
            f" used: {source}.",
        )
    for one, other in itertools.combinations(map(ipaddress.ip_network, sources), 2):
        refuse(
            one.overlaps(other),
            "OverlappingSubnetsNotPermittedInSecurityRule",
            f"Security rule parameter SourceAddressPrefixes for rule {name} has overlapping subnets"
            f" {one} and {other}.",
        )


def is_range(source: str) -> bool:
    """An address, or a range whose length is a number of bits."""
    try:
        ipaddress.ip_network(source)
    except ValueError:
        return False
    return re.fullmatch(r"[^/]+(/\d+)?", source) is not None


def is_port_range(text: str) -> bool:
    """A port, two with a dash between them, or all of them."""
    return text == "*" or (
        re.fullmatch(r"\d{1,5}(-\d{1,5})?", text) is not None
        and all(int(number) <= 65_535 for number in text.split("-"))
    )


def public_address(own: str, body: Body, resources: Resources) -> None:
    """Standard is static; neither SKU nor zones change later."""
    standard = body.get("sku", {}).get("name") == "Standard"
    dynamic = body["properties"].get("publicIPAllocationMethod") != "Static"
    refuse(standard and dynamic, "StandardSkuPublicIPAddressMustBeStatic", own)
    check_zones(body)
    before = resources.get(own.lower())
    if before:
        changed = any(before.get(key) != body.get(key) for key in ("zones", "sku"))
        refuse(changed, "ResourceAvailabilityZonesCannotBeModified", own)


def check_zones(body: Body) -> None:
    """Zones are those of the region."""
    for zone in body.get("zones", []):
        refuse(zone not in ZONES, "InvalidAvailabilityZone", f"The zone(s) '{zone}' is invalid.")


def load_balancer(own: str, body: Body, resources: Resources) -> None:
    """Same SKU as its address; probes within limits; rules name parts of it, and do not collide."""
    properties = body["properties"]
    frontends = properties.get("frontendIPConfigurations", [])
    for frontend in frontends:
        check_frontend(own, body, frontend, resources)
    parts = [p for key in ("probes", "loadBalancingRules") for p in properties.get(key, [])]
    refuse(
        parts and not frontends,
        "LoadBalancerWithoutFrontendIPCantHaveChildResources",  # azurerm issue 774
        f"Load Balancer {own} does not have Frontend IP Configuration.",
    )
    for probe in properties.get("probes", []):
        values = probe["properties"]
        refuse(values.get("intervalInSeconds", 15) < 5, "LoadBalancerProbeIntervalTooShort", own)
        http = values["protocol"].lower() == "http"
        refuse(http != ("requestPath" in values), "InvalidProbeRequestPath", probe["name"])
    rules = properties.get("loadBalancingRules", [])
    for rule in rules:
        check_pools(rule)
        check_ports_of(rule, frontends, standard=body.get("sku", {}).get("name") == "Standard")
    for one, other in itertools.combinations(rules, 2):
        check_collision(one, other)
    pools = f"{own}/backendaddresspools/".lower()
    nics = (str(body).lower() for key, body in resources.items() if "/networkinterfaces/" in key)
    if any(pools in nic for nic in nics):
        check_count(own, rules)


def check_frontend(own: str, body: Body, frontend: Body, resources: Resources) -> None:
    """Either a public address or a place in a subnet; zones are stated of the latter alone.

    hashicorp/terraform-provider-azurerm issues 1622 and 1967, ernestio/ernest issue 480.
    """
    properties, name = frontend["properties"], f"{own}/frontendIPConfigurations/{frontend['name']}"
    public, subnet = properties.get("publicIPAddress"), properties.get("subnet")
    refuse(
        public and subnet,
        "FrontendIPConfigHasBothSubnetAndPublicIP",
        f"Frontend IP Configuration {name} must not reference both a Subnet and a Public IP"
        " Address.",
    )
    refuse(
        not public and not subnet,
        "FrontendIPConfigHasNoSubnetOrPublicIP",
        f"Frontend IP Configuration {name} must reference either a Subnet or a Public IP Address.",
    )
    if subnet:
        check_private(own, properties, resources)
        return
    refuse(
        frontend.get("zones"),
        "LoadBalancerFrontendIPConfigCannotHaveZoneWhenReferencingPublicIPAddress",
        f"{name} has zones specified and is referencing a publicIPAddress. Networking supports"
        " zones only for frontendIpconfigurations which reference a subnet.",
    )
    check_sku(body, resources[public["id"].lower()])
    check_free(own, "publicIPAddress", public["id"], resources)


def check_count(own: str, rules: list[Body]) -> None:
    """No interface has more (MicrosoftDocs/azure-docs issue 47423, which leaves out the code)."""
    refuse(
        len(rules) > 299,
        "IpConfigurationLoadBalancingRuleLimitReached",
        f"IpConfiguration of {own} cannot have more than 299 NAT or load balancing rules combined.",
    )


def check_ports_of(rule: Body, frontends: list[Body], *, standard: bool) -> None:
    """Ports and idle time-out are within their bounds; every port at once is for internal ones.

    Bounds: https://learn.microsoft.com/azure/load-balancer/load-balancer-tcp-idle-timeout and the
    REST reference; HA ports: .../load-balancer-ha-ports-overview. Nobody has recorded the codes,
    but for the message of a public address: "invalid Idle Timeout. The value must be between ..."
    (hashicorp/terraform-provider-azurerm pull request 3579).
    """
    values, name = rule["properties"], rule["name"]
    ports = values["frontendPort"], values.get("backendPort", 0)
    every = values["protocol"].lower() == "all"
    refuse(
        every != (ports == (0, 0)) or (not every and 0 in ports),
        "InvalidLoadBalancingRulePort",
        f"{name}: ports {ports} with protocol {values['protocol']}.",
    )
    refuse(
        ports[0] > 65_534 or ports[1] > 65_535, "InvalidLoadBalancingRulePort", f"{name}: {ports}"
    )
    public = any("publicIPAddress" in frontend["properties"] for frontend in frontends)
    refuse(
        every and (public or not standard),
        "LoadBalancingRuleHAPortsNotSupported",
        f"{name}: HA ports are for internal load balancers of the Standard SKU.",
    )
    refuse(
        not 4 <= values.get("idleTimeoutInMinutes", 4) <= 100,
        "LoadBalancingRuleInvalidIdleTimeout",
        f"{name} has invalid Idle Timeout. The value must be between 4 and 100.",
    )


def check_collision(one: Body, other: Body) -> None:
    """No two rules send to one port of a pool (MicrosoftDocs/azure-docs issues 94673, 117762).

    Nor from one port of a front end: it is unique, as the REST reference has it.
    A rule for every port stands alone on an internal load balancer, as
    https://learn.microsoft.com/azure/load-balancer/load-balancer-ha-ports-overview says.
    """
    both = first, second = one["properties"], other["properties"]
    protocols = {first["protocol"].lower(), second["protocol"].lower()}
    same = first.get("backendPort") == second.get("backendPort") and len(protocols) == 1
    pools = [rule.get("backendAddressPool", {}).get("id", "").lower() for rule in (first, second)]
    refuse(
        pools[0] == pools[1] and (same or "all" in protocols),
        "RulesUseSameBackendPortProtocolAndPool",
        f"Load balancing rules {one['name']} and {other['name']} with floating IP disabled use the"
        f" same protocol {first['protocol']} and backend port {first.get('backendPort')}, and must"
        f" not be used with the same backend address pool {pools[0]}.",
    )
    sent = [(rule["frontendPort"], rule["frontendIPConfiguration"]["id"].lower()) for rule in both]
    refuse(
        sent[0] == sent[1] and len(protocols) == 1,
        "RulesUseSameFrontendPortAndProtocol",  # nobody has recorded this one
        f"{one['name']} and {other['name']} have the same front end, port and protocol.",
    )


def check_pools(rule: Body) -> None:
    """A rule's pool has two names, which must agree (Azure/azure-rest-api-specs issue 14430)."""
    one = rule["properties"].get("backendAddressPool", {}).get("id", "").lower()
    many = [pool["id"].lower() for pool in rule["properties"].get("backendAddressPools") or []]
    refuse(
        one and many and [one] != many,
        "LoadBalancingRuleBackendAdressPoolAndBackendAddressPoolsCannotBeSetAtTheSameTime"
        "WithDifferentValue",
        f"BackendAddressPool and BackendAddressPools[] in LoadBalancingRule {rule['name']} cannot"
        " be set at the same time with different value.",
    )


def check_sku(balancer: Body, address: Body) -> None:
    """A Standard load balancer takes no Basic address."""
    skus = {body.get("sku", {}).get("name", "Basic") for body in (balancer, address)}
    refuse(
        len(skus) > 1,
        "LoadBalancerAndPublicIPAddressSkuMismatch",
        f"{balancer.get('name')} and {address['name']} have different SKUs.",
    )


def check_free(own: str, key: str, wanted: str, resources: Resources) -> None:
    """Nobody else has what one resource alone may have."""
    for other, body in resources.items():
        if other != own.lower() and (key, wanted.lower()) in lower(references(body)):
            raise Refused(400, "PublicIPAddressInUse", f"{wanted} is in use by {other}.")


def lower(pairs: Iterator[tuple[str, str]]) -> set[tuple[str, str]]:
    """Ids without their letter case."""
    return {(key, value.lower()) for key, value in pairs}


def interface(own: str, body: Body, resources: Resources) -> None:
    """A free private address inside the subnet, a public one that nobody has."""
    for configuration in body["properties"]["ipConfigurations"]:
        properties = configuration["properties"]
        check_private(own, properties, resources)
        public = properties["publicIPAddress"]["id"]
        check_free(own, "publicIPAddress", public, resources)
        for pool in properties.get("loadBalancerBackendAddressPools", []):
            balancer = resources[pool["id"].lower().partition("/backendaddresspools/")[0]]
            check_count(own, balancer["properties"].get("loadBalancingRules", []))
            check_sku(balancer, resources[public.lower()])


def check_private(own: str, properties: Body, resources: Resources) -> None:
    """A private address that is stated lies in its subnet, and is free; else one is taken."""
    prefix = subnet_prefix(properties, resources)
    properties.setdefault("privateIPAddressVersion", "IPv4")
    static = properties.get("privateIPAllocationMethod") == "Static"
    stated = properties.get("privateIPAddress")
    refuse(static and not stated, "StaticPrivateIPAddressMissing", own)
    if not stated:
        properties["privateIPAddress"] = free_address(own, prefix, resources)
        return
    address = ipaddress.ip_address(stated)
    refuse(address not in prefix, "PrivateIPAddressNotInSubnet", str(address))
    reserved = [*list(prefix)[:4], prefix.broadcast_address]
    refuse(address in reserved, "PrivateIPAddressInReservedRange", str(address))
    refuse(str(address) in taken(own, resources), "PrivateIPAddressIsAllocated", str(address))


def subnet_prefix(properties: Body, resources: Resources) -> Any:
    """The range of the subnet that something is in."""
    network_id, _, name = properties["subnet"]["id"].partition("/subnets/")
    return prefix_of(child(resources[network_id.lower()], "subnets", name))


def free_address(own: str, prefix: Any, resources: Resources) -> str:
    """What Azure takes where nobody says: the one from before, or the first that is free."""
    before = resources.get(own.lower())
    for part in parts_with_addresses(before) if before else ():
        return str(part["properties"]["privateIPAddress"])
    used = taken(own, resources)
    free = next((ip for ip in list(prefix)[4:-1] if str(ip) not in used), None)
    refuse(
        free is None,
        "SubnetIsFull",  # MicrosoftDocs/azure-docs issue 88211
        f"Subnet with address prefix {prefix} does not have enough capacity for 1 IP addresses.",
    )
    return str(free)


def child(body: Body, key: str, name: str) -> Body:
    """A member of a resource's list."""
    members: list[Body] = body["properties"].get(key, [])
    return next(member for member in members if member["name"].lower() == name.lower())


def taken(own: str, resources: Resources) -> set[str]:
    """The private addresses of the other interfaces and load balancers."""
    return {
        part["properties"]["privateIPAddress"]
        for other, body in resources.items()
        if other != own.lower()
        for part in parts_with_addresses(body)
    }


def parts_with_addresses(body: Body) -> Iterator[Body]:
    """What of an interface or a load balancer has a private address."""
    for key in ("ipConfigurations", "frontendIPConfigurations"):
        for part in body["properties"].get(key, []):
            if "privateIPAddress" in part["properties"]:
                yield part


def machine(own: str, body: Body, resources: Resources) -> None:
    """Image, administrator, key and data are as Azure takes them; what it was made of stays."""
    check_zones(body)
    properties = body["properties"]
    nics = properties["networkProfile"]["networkInterfaces"]
    for nic in nics:
        check_free(own, "networkInterfaces", nic["id"], resources)
        check_zone_of_address(body, resources[nic["id"].lower()], resources)
    before = resources.get(own.lower())
    if before:
        check_unchanged(body, before)
        return
    image = properties["storageProfile"]["imageReference"]
    known = (image["publisher"].lower(), image["offer"], image["sku"]) in IMAGES
    refuse(not known, "PlatformImageNotFound", f"The platform image '{image}' was not found.", 404)
    check_profile(properties["osProfile"], own.rsplit("/", 1)[-1])


def check_zone_of_address(body: Body, nic: Body, resources: Resources) -> None:
    """A zonal address serves machines of its zone."""
    for configuration in nic["properties"]["ipConfigurations"]:
        address = resources[configuration["properties"]["publicIPAddress"]["id"].lower()]
        fits = set(body.get("zones", [])) <= set(address.get("zones", []))
        refuse(not fits, "ZonalPublicIPAddressMismatch", f"{address['name']}: {address['zones']}")


def check_unchanged(body: Body, before: Body) -> None:
    """What a machine was created with cannot be changed."""
    for key in ("zones", "location"):
        refuse(before.get(key) != body.get(key), "PropertyChangeNotAllowed", key, 409)
    old, new = before["properties"], body["properties"]
    for profile, key in (("storageProfile", "imageReference"), ("osProfile", "customData")):
        value = new.get(profile, {}).get(key)
        changed = value is not None and value != old[profile].get(key)
        refuse(changed, "PropertyChangeNotAllowed", f"Changing '{profile}.{key}'.", 409)


def check_profile(profile: Body, name: str) -> None:
    """The operating system's part."""
    computer = profile["computerName"]
    bad_name = not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", computer) or computer != name
    refuse(bad_name, "InvalidParameter", f"computerName {computer}")
    refuse(profile["adminUsername"] in ADMIN_NAMES_TAKEN, "InvalidParameter", "adminUsername")
    linux = profile["linuxConfiguration"]
    refuse(not linux["disablePasswordAuthentication"], "InvalidParameter", "adminPassword")
    for key in linux["ssh"]["publicKeys"]:
        home = f"/home/{profile['adminUsername']}/.ssh/authorized_keys"
        refuse(key["path"] != home, "InvalidParameter", f"ssh path {key['path']}")
        kind, _, data = key["keyData"].partition(" ")
        bad = not is_ssh_key(kind, data.split(" ")[0])
        refuse(bad, "InvalidParameter", "linuxConfiguration.ssh.publicKeys.keyData is invalid.")
    data = profile.get("customData", "")
    refuse(not is_base64(data), "InvalidParameter", "customData must be Base64.")
    too_long = len(base64.b64decode(data)) > 65_535
    refuse(too_long, "InvalidParameter", "customData is longer than 65535 bytes.")


def is_ssh_key(kind: str, data: str) -> bool:
    """A key of a kind that Azure takes, by what is inside of it; RSA has 2,048 bits at least."""
    if kind not in ("ssh-rsa", "ssh-ed25519") or not is_base64(data):
        return False
    blob = base64.b64decode(data)
    name = len(kind).to_bytes(4, "big") + kind.encode()
    return blob.startswith(name) and (len(blob) == 51 if kind == "ssh-ed25519" else len(blob) > 270)


def is_base64(text: str) -> bool:
    """Strict base64."""
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return bool(text)


def storage_account(own: str, body: Body, resources: Resources) -> None:
    """A web site needs StorageV2; its name stays."""
    del own, resources
    refuse(
        body["kind"] not in ("StorageV2", "BlockBlobStorage"),
        "InvalidValuesForRequestParameters",
        "kind",
    )


RULES: Mapping[str, Rule] = {
    "microsoft.network/virtualnetworks": network,
    "microsoft.network/networksecuritygroups": firewall,
    "microsoft.network/publicipaddresses": public_address,
    "microsoft.network/loadbalancers": load_balancer,
    "microsoft.network/networkinterfaces": interface,
    "microsoft.compute/virtualmachines": machine,
    "microsoft.storage/storageaccounts": storage_account,
}
