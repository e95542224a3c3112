"""The fake of Azure refuses what Azure refuses: else tests that pass with it would say little."""

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy.azure.resources import Body, Scope
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.operator import NAME, Operator
from tests.azure.operators import (
    ACCOUNT,
    ADDRESS,
    BALANCER,
    FIREWALL,
    NETWORK,
    NIC,
    SCOPE,
    VM,
    code,
    creation,
    made,
    send,
    wanted,
)


def at(body: Any, *path: str | int) -> Any:
    """A part of a body; `properties` between the parts goes without saying."""
    for step in path:
        body = body[step] if isinstance(step, int) or step in body else body["properties"][step]
    return body


def breaks(*path: str | int, **values: object) -> Callable[[Body], object]:
    """Sets values somewhere in a body."""
    return lambda body: at(body, *path).update(values)


def without(*path: str | int, key: str) -> Callable[[Body], object]:
    """Takes a value away from somewhere in a body."""
    return lambda body: at(body, *path).pop(key)


def twice(key: str, **values: object) -> Callable[[Body], object]:
    """Adds the first member of a list again, under another name and with other values."""

    def add(body: Body) -> None:
        members = body["properties"][key]
        first = copy.deepcopy(members[0])
        members.append({"name": "again", "properties": {**first["properties"], **values}})

    return add


RULE = ("securityRules", 0, "properties")
BALANCING = ("loadBalancingRules", 0, "properties")
FRONTEND = ("frontendIPConfigurations", 0, "properties")
SUBNET = f"{SCOPE.id_of('network', 'network')}/subnets/nodes"
EVERY_PORT = {"protocol": "All", "frontendPort": 0, "backendPort": 0}
PROBE = ("probes", 0, "properties")
CONFIGURATION = ("ipConfigurations", 0, "properties")
PROFILE = ("properties", "osProfile")
KEYS = (*PROFILE, "linuxConfiguration", "ssh", "publicKeys", 0)
NOWHERE = {"id": SCOPE.id_of("public address", "nowhere")}
NO_PROBE = {"id": f"{SCOPE.id_of('load balancer', 'loadBalancer')}/probes/none"}

REFUSED = [
    (NETWORK, breaks("properties", colour="red"), "InvalidRequestContent"),
    (NETWORK, breaks("properties", addressSpace="10.0.0.0/24"), "InvalidRequestContent"),
    (
        NETWORK,
        breaks("subnets", 0, "properties", addressPrefix="10.1.0.0/24"),
        "NetcfgInvalidSubnet",
    ),
    (NETWORK, breaks(location="atlantis"), "LocationNotAvailableForResourceGroup"),
    (ADDRESS, breaks(zones=["4"]), "InvalidAvailabilityZone"),
    (ADDRESS, breaks(zones="1"), "InvalidRequestContent"),
    (
        ADDRESS,
        breaks("properties", publicIPAllocationMethod="Dynamic"),
        "StandardSkuPublicIPAddressMustBeStatic",
    ),
    (FIREWALL, breaks(*RULE, protocol="Tpc"), "InvalidRequestContent"),
    (FIREWALL, breaks(*RULE, priority=99), "SecurityRuleInvalidPriority"),
    (FIREWALL, breaks(*RULE, priority=110), "SecurityRuleConflict"),
    (FIREWALL, breaks(*RULE, sourceAddressPrefix="everyone"), "SecurityRuleInvalidAddressPrefix"),
    (FIREWALL, without(*RULE, key="direction"), "InvalidRequestContent"),
    (BALANCER, without(*PROBE, key="port"), "InvalidRequestContent"),
    (BALANCER, breaks(*PROBE, port="80"), "InvalidRequestContent"),
    (BALANCER, breaks(*PROBE, intervalInSeconds=4), "LoadBalancerProbeIntervalTooShort"),
    (BALANCER, without(*PROBE, key="requestPath"), "InvalidProbeRequestPath"),
    (
        BALANCER,
        breaks("loadBalancingRules", 0, "properties", probe=NO_PROBE),
        "InvalidResourceReference",
    ),
    (BALANCER, breaks(sku={"name": "Basic"}), "LoadBalancerAndPublicIPAddressSkuMismatch"),
    (FIREWALL, breaks(*RULE, destinationPortRange="http"), "SecurityRuleInvalidPortRange"),
    (FIREWALL, breaks(*RULE, destinationPortRange="65536"), "SecurityRuleInvalidPortRange"),
    (BALANCER, breaks(*BALANCING, frontendPort=65_535), "InvalidLoadBalancingRulePort"),
    (BALANCER, breaks(*BALANCING, backendPort=0), "InvalidLoadBalancingRulePort"),
    (BALANCER, breaks(*BALANCING, protocol="All"), "InvalidLoadBalancingRulePort"),
    (BALANCER, breaks(*BALANCING, **EVERY_PORT), "LoadBalancingRuleHAPortsNotSupported"),
    (BALANCER, breaks(*BALANCING, idleTimeoutInMinutes=3), "LoadBalancingRuleInvalidIdleTimeout"),
    (BALANCER, breaks(*BALANCING, idleTimeoutInMinutes=101), "LoadBalancingRuleInvalidIdleTimeout"),
    (BALANCER, breaks(*BALANCING, enableTcpReset="yes"), "InvalidRequestContent"),
    (
        BALANCER,
        twice("loadBalancingRules", frontendPort=81),
        "RulesUseSameBackendPortProtocolAndPool",
    ),
    (
        BALANCER,
        twice("loadBalancingRules", backendPort=81),
        "RulesUseSameFrontendPortAndProtocol",
    ),
    (
        BALANCER,
        breaks(*FRONTEND, subnet={"id": SUBNET}),
        "FrontendIPConfigHasBothSubnetAndPublicIP",
    ),
    (BALANCER, without(*FRONTEND, key="publicIPAddress"), "FrontendIPConfigHasNoSubnetOrPublicIP"),
    (
        BALANCER,
        breaks("frontendIPConfigurations", 0, zones=["1", "2", "3"]),
        "LoadBalancerFrontendIPConfigCannotHaveZoneWhenReferencingPublicIPAddress",
    ),
    (NIC, breaks(*CONFIGURATION, publicIPAddress=NOWHERE), "InvalidResourceReference"),
    (NIC, breaks(*CONFIGURATION, privateIPAddress="10.9.0.4"), "PrivateIPAddressNotInSubnet"),
    (NIC, breaks(*CONFIGURATION, privateIPAddress="10.0.0.3"), "PrivateIPAddressInReservedRange"),
    (NIC, breaks(*CONFIGURATION, privateIPAddress="10.0.0.6"), "PrivateIPAddressIsAllocated"),
    (
        NIC,
        breaks(*CONFIGURATION, loadBalancerBackendAddressPools={"id": "an object"}),
        "InvalidRequestContent",
    ),
    (VM, breaks(zones=["2"]), "ZonalPublicIPAddressMismatch"),
    (VM, breaks(*PROFILE, adminUsername="root"), "InvalidParameter"),
    (VM, breaks(*PROFILE, computerName="node_1"), "InvalidParameter"),
    (VM, breaks(*PROFILE, customData="not base64"), "InvalidParameter"),
    (
        VM,
        breaks(*PROFILE, customData=base64.b64encode(b"x" * 65_536).decode()),
        "InvalidParameter",
    ),
    (VM, breaks(*KEYS, keyData="ecdsa-sha2-nistp256 AAAA"), "InvalidParameter"),
    (
        VM,
        breaks("properties", "storageProfile", "imageReference", offer="none"),
        "PlatformImageNotFound",
    ),
    (ACCOUNT, breaks(kind="Storage"), "InvalidValuesForRequestParameters"),
    (ACCOUNT, without(key="sku"), "InvalidRequestContent"),
]


@pytest.mark.parametrize(("key", "spoil", "refusal"), REFUSED)
def test_a_body_that_azure_would_refuse_is_refused(
    standing: Operator, key: str, spoil: Callable[[Body], object], refusal: str
) -> None:
    resource = wanted(key)
    own = SCOPE.id_of(resource.kind, resource.name)
    body = creation(key)
    if key == VM:  # only its creation says everything
        standing.azure.resources.pop(own.lower(), None)
    assert send(standing, "PUT", own, body).status_code < 400
    if key == VM:
        standing.azure.resources.pop(own.lower())
    spoil(body)
    assert code(send(standing, "PUT", own, body)) == refusal


def test_an_interface_takes_299_rules_of_its_load_balancer(standing: Operator) -> None:
    own, body = SCOPE.id_of("load balancer", "loadBalancer"), creation(BALANCER)
    for number in range(1000, 1299):
        twice("loadBalancingRules", frontendPort=number, backendPort=number)(body)
    refusal = "IpConfigurationLoadBalancingRuleLimitReached"
    assert code(send(standing, "PUT", own, body)) == refusal
    body["properties"]["loadBalancingRules"].pop()
    assert send(standing, "PUT", own, body).status_code == 200
    assert send(standing, "PUT", own, creation(BALANCER)).status_code == 200


def internal(body: Body, **values: object) -> Body:
    """The load balancer with a private front end, and what its one rule says otherwise."""
    private = {"subnet": {"id": SUBNET}, "privateIPAllocationMethod": "Static"}
    private["privateIPAddress"] = "10.0.0.250"
    (frontend,) = body["properties"]["frontendIPConfigurations"]
    frontend["properties"] = private
    body["properties"]["loadBalancingRules"][0]["properties"].update(values)
    return body


def test_every_port_is_for_an_internal_standard_load_balancer_and_leaves_none_for_others(
    standing: Operator,
) -> None:
    own = SCOPE.id_of("load balancer", "another")

    def another(**values: object) -> Body:
        text = json.dumps(internal(creation(BALANCER), **values))
        body: Body = json.loads(text.replace("loadBalancers/loadBalancer", "loadBalancers/another"))
        return body

    assert send(standing, "PUT", own, another(**EVERY_PORT)).status_code == 201
    basic = another(**EVERY_PORT) | {"sku": {"name": "Basic"}}
    assert code(send(standing, "PUT", own, basic)) == "LoadBalancingRuleHAPortsNotSupported"
    two = another(**EVERY_PORT)
    twice("loadBalancingRules", protocol="Udp", frontendPort=53, backendPort=53)(two)
    assert code(send(standing, "PUT", own, two)) == "RulesUseSameBackendPortProtocolAndPool"
    taken = another()
    at(taken, *FRONTEND)["privateIPAddress"] = "10.0.0.4"
    assert code(send(standing, "PUT", own, taken)) == "PrivateIPAddressIsAllocated"
    alone = another()
    alone["properties"] |= {"frontendIPConfigurations": [], "loadBalancingRules": []}
    refusal = "LoadBalancerWithoutFrontendIPCantHaveChildResources"
    assert code(send(standing, "PUT", own, alone)) == refusal
    del standing.azure.resources[own.lower()]


def test_what_is_in_use_is_not_deleted(operator: Operator) -> None:
    made(operator)
    for kind, name, refusal in (
        ("network interface", "node1-nic", "NicInUse"),
        ("public address", "node1PublicIp", "PublicIPAddressCannotBeDeleted"),
        ("firewall", "node1-nsg", "InUseNetworkSecurityGroupCannotBeDeleted"),
        ("network", "network", "InUseSubnetCannotBeDeleted"),
        ("load balancer", "loadBalancer", "InUse"),
    ):
        assert code(send(operator, "DELETE", SCOPE.id_of(kind, name))) == refusal
    assert send(operator, "DELETE", SCOPE.id_of("virtual machine", "node1")).status_code == 202


def test_what_is_not_there_not_known_or_not_allowed_is_refused(operator: Operator) -> None:
    made(operator)
    path = SCOPE.id_of("network", "network")
    body = creation(NETWORK)
    assert code(send(operator, "GET", path, version="2020-01-01")) == "InvalidApiVersionParameter"
    assert code(send(operator, "GET", path + "s")) == "ResourceNotFound"
    bad_name = SCOPE.id_of("network", "net!")
    assert code(send(operator, "PUT", bad_name, body)) == "InvalidResourceName"
    elsewhere = Scope(SUBSCRIPTION, "no-group").id_of("network", "network")
    assert code(send(operator, "PUT", elsewhere, body)) == "ResourceGroupNotFound"
    other = Scope("0" * 8, NAME).id_of("network", "network")
    assert code(send(operator, "GET", other)) == "SubscriptionNotFound"
    operator.azure.providers["Microsoft.Network"] = "NotRegistered"
    assert code(send(operator, "PUT", path, body)) == "MissingSubscriptionRegistration"
    answer = requests.get(operator.azure.url + path, verify=str(operator.certificate), timeout=10)
    assert code(answer) == "AuthenticationFailed"


def test_a_machine_keeps_what_it_was_created_with_and_tells_no_custom_data(
    operator: Operator,
) -> None:
    made(operator)
    own = SCOPE.id_of("virtual machine", "node1")
    found = send(operator, "GET", own).json()
    assert "customData" not in found["properties"]["osProfile"]
    assert send(operator, "PUT", own, found).status_code == 200
    assert code(send(operator, "PUT", own, creation(VM))) == "PropertyChangeNotAllowed"


def test_an_upload_that_is_not_signed_with_the_accounts_key_is_refused(operator: Operator) -> None:
    made(operator)
    account = SCOPE.storage_account()
    answer = requests.put(
        f"{operator.azure.url}/blob/{account}/$web/bootstrap/loader.py",
        data=b"evil",
        headers={"x-ms-blob-type": "BlockBlob", "Authorization": f"SharedKey {account}:AAAA"},
        verify=str(operator.certificate),
        timeout=10,
    )
    assert answer.status_code == 403
