"""How the application is reached and comes onto the nodes: what `azure up` sends for it."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy.application import web_names
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.model import Body, Fault
from tests.azure.fake_azure.operator import NAME, Operator
from tests.azure.operators import made, mutations, snapshot

NETWORKS = "networks"
SUBNET = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{NETWORKS}/providers/Microsoft.Network"
    "/virtualNetworks/hub/subnets/web"
)


def network_of_others(operator: Operator, location: str = "westeurope") -> None:
    """A network in a resource group that is somebody else's, with one machine in the subnet."""
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{NETWORKS}"
    state = {"provisioningState": "Succeeded"}
    operator.azure.groups[NETWORKS] = {
        **{"id": group, "name": NETWORKS, "type": "Microsoft.Resources/resourceGroups"},
        **{"location": location, "tags": {}, "properties": state},
    }
    hub = SUBNET.partition("/subnets/")[0]
    web: Body = {"name": "web", "id": SUBNET, "properties": {"addressPrefix": "10.9.1.0/28"}}
    theirs = {"name": "c", "properties": {"privateIPAddress": "10.9.1.4", "subnet": {"id": SUBNET}}}
    for own, kind, properties in (
        (
            hub,
            "virtualNetworks",
            {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}, "subnets": [web]},
        ),
        (
            f"{group}/providers/Microsoft.Network/networkInterfaces/theirs",
            "networkInterfaces",
            {"ipConfigurations": [theirs]},
        ),
    ):
        operator.azure.resources[own.lower()] = {
            **{"id": own, "name": own.rsplit("/", 1)[-1], "type": f"Microsoft.Network/{kind}"},
            **{"location": location, "etag": "1", "properties": {**properties, **state}},
        }


def occupy(operator: Operator, address: str) -> None:
    """One more interface of theirs."""
    theirs = operator.azure.body_of("networkInterfaces", "theirs")
    more = json.loads(json.dumps(theirs).replace("/theirs", f"/at-{address}"))
    (part,) = more["properties"]["ipConfigurations"]
    part["properties"]["privateIPAddress"] = address
    operator.azure.resources[more["id"].lower()] = {**more, "name": f"at-{address}"}


def balancer(operator: Operator) -> Any:
    return operator.azure.body_of("loadBalancers", "loadBalancer")["properties"]


def balancing(operator: Operator) -> dict[str, Any]:
    """The load balancer's rules by name: protocol, ports, idle time-out, reset."""
    keys = ("protocol", "frontendPort", "backendPort", "idleTimeoutInMinutes", "enableTcpReset")
    return {
        rule["name"]: tuple(rule["properties"][key] for key in keys)
        for rule in balancer(operator)["loadBalancingRules"]
    }


def firewall(operator: Operator, node: str = "node1") -> dict[str, Any]:
    """The firewall's rules by name: access, protocol, ports, sources."""
    rules = operator.azure.body_of("networkSecurityGroups", f"{node}-nsg")["properties"]

    def both(told: Body, one: str, many: str) -> list[str]:
        return told.get(many) or [told[one]]

    return {
        rule["name"]: (
            rule["properties"]["access"],
            rule["properties"]["protocol"],
            both(rule["properties"], "destinationPortRange", "destinationPortRanges"),
            both(rule["properties"], "sourceAddressPrefix", "sourceAddressPrefixes"),
        )
        for rule in rules["securityRules"]
    }


def nodes_of(operator: Operator) -> Any:
    return json.loads((operator.state / "nodes_info.json").read_text())


def endpoints(operator: Operator) -> Any:
    return json.loads((operator.state / "endpoints.json").read_text())


def peers_of(operator: Operator) -> list[str]:
    """Every address of a node's, as a firewall has them."""
    kinds = ("public_ip", "private_ip")
    return [f"{node[kind]}/32" for kind in kinds for node in nodes_of(operator).values()]


def custom_data(operator: Operator, name: str = "node1") -> str:
    machine = operator.azure.body_of("virtualMachines", name)
    return base64.b64decode(machine["properties"]["osProfile"]["customData"]).decode()


# ---------------------------------------------------------------- ports


def test_without_a_word_about_it_port_80_is_forwarded_and_open_as_ever(operator: Operator) -> None:
    made(operator)
    assert balancing(operator) == {"http": ("Tcp", 80, 80, 4, True)}
    assert set(firewall(operator)) == {
        *("AllowHttpFromInternet", "AllowSshFromOperator", "AllowPingFromNetwork"),
    }
    assert "cluster_port" not in custom_data(operator)


def test_each_port_has_a_rule_of_the_load_balancer_and_is_open_by_its_protocol(
    operator: Operator,
) -> None:
    operator.settings(ports=["443", "1433", "udp/5060"], idle_minutes=30, tcp_reset=False)
    made(operator)
    assert balancing(operator) == {
        "tcp-443": ("Tcp", 443, 443, 30, False),
        "tcp-1433": ("Tcp", 1433, 1433, 30, False),
        "udp-5060": ("Udp", 5060, 5060, 4, False),
    }
    rules = firewall(operator)
    assert rules["AllowTcpFromInternet"] == ("Allow", "Tcp", ["443", "1433"], ["Internet"])
    assert rules["AllowUdpFromInternet"] == ("Allow", "Udp", ["5060"], ["Internet"])
    assert operator.run("plan").code == 0
    assert endpoints(operator)["load_balancer"].startswith("tcp://198.")
    assert endpoints(operator)["load_balancer"].endswith(":443")


def test_of_udp_no_reset_is_asked_for_that_azure_would_forget(operator: Operator) -> None:
    operator.settings(ports="udp/5060")
    made(operator)
    assert balancing(operator)["udp-5060"][0] == "Udp"
    assert operator.run("plan").code == 0
    assert endpoints(operator)["load_balancer"].startswith("udp://")


def test_a_port_that_is_not_asked_for_any_more_is_closed_and_rules_of_others_stay(
    operator: Operator,
) -> None:
    operator.settings(ports=["443", "udp/5060"])
    made(operator)
    theirs = json.loads(json.dumps(balancer(operator)["loadBalancingRules"][0]))
    theirs["name"], theirs["properties"]["frontendPort"] = "theirs", 99
    theirs["properties"]["backendPort"] = 99
    balancer(operator)["loadBalancingRules"].append(theirs)
    operator.settings(ports="8443")
    plan = operator.run("plan")
    assert "loadBalancingRules[tcp-443]: there -> nothing" in plan.output
    made(operator)
    assert set(balancing(operator)) == {"tcp-8443", "theirs"}
    assert firewall(operator)["AllowTcpFromInternet"][2] == ["8443"]
    assert "AllowUdpFromInternet" not in firewall(operator)
    assert operator.run("plan").code == 0


def test_where_the_application_has_other_ports_markers_are_for_peers_operator_and_probe(
    operator: Operator,
) -> None:
    operator.settings(ports="443")
    made(operator)
    rules = firewall(operator)
    assert rules["AllowHttpFromPeers"] == ("Allow", "Tcp", ["80"], peers_of(operator))
    assert rules["AllowHttpFromProbe"] == ("Allow", "Tcp", ["80"], ["AzureLoadBalancer"])
    assert rules["AllowHttpFromOperator"] == ("Allow", "Tcp", ["80"], ["192.0.2.77/32"])
    assert rules["DenyHttpFromOthers"] == ("Deny", "Tcp", ["80"], ["*"])


@pytest.mark.parametrize("peers", ["public", "private"])
def test_a_port_of_the_clusters_own_is_probed_told_to_the_nodes_and_open_to_nobody_else(
    operator: Operator, peers: str
) -> None:
    operator.settings(cluster_port=8080, peer_address=peers)
    made(operator)
    (probe,) = balancer(operator)["probes"]
    assert (probe["properties"]["port"], probe["properties"]["requestPath"]) == (
        8080,
        "/probe.html",
    )
    assert balancing(operator) == {"http": ("Tcp", 80, 80, 4, True)}
    rules = firewall(operator, "node3")
    assert rules["AllowHttpFromInternet"][2:] == (["80"], ["Internet"])
    assert rules["AllowHttpFromPeers"][2:] == (["8080"], peers_of(operator))
    assert rules["AllowHttpFromOperator"][2:] == (["8080"], ["192.0.2.77/32"])
    assert rules["DenyHttpFromOthers"] == ("Deny", "Tcp", ["8080"], ["*"])
    assert "cluster_port = 8080\n" in custom_data(operator)
    assert "Listen 8080" in custom_data(operator)  # a web server of the cluster's own
    assert operator.azure.groups[NAME]["tags"]["cluster-port"] == "8080"
    assert (endpoints(operator)["cluster_port"], operator.run("plan").code) == ("8080", 0)


def test_another_peer_address_cuts_off_no_node_that_has_not_heard_of_it(operator: Operator) -> None:
    """The firewalls change in seconds; the nodes take it with their next run, once it is signed."""
    operator.settings(ports="443")
    made(operator)
    before = firewall(operator)
    operator.settings(ports="443", peer_address="private")
    made(operator)
    assert firewall(operator) == before


# ---------------------------------------------------------------- an internal load balancer


def test_an_internal_load_balancer_has_a_private_address_in_all_zones_and_no_public_one(
    operator: Operator,
) -> None:
    operator.settings(frontend="internal", ports="all", idle_minutes=100)
    outcome = operator.run("up", "--yes")
    assert "answers at http://10.0.0.254/, within its network alone, once" in outcome.output
    assert "curl http" not in outcome.output  # it would time out from here
    (frontend,) = balancer(operator)["frontendIPConfigurations"]
    assert frontend["zones"] == ["1", "2", "3"]
    assert frontend["properties"]["privateIPAddress"] == "10.0.0.254"
    assert "publicIPAddress" not in frontend["properties"]
    assert balancing(operator) == {"all-ports": ("All", 0, 0, 100, True)}
    names = {b["name"] for b in operator.azure.resources.values() if "publicIPAddr" in b["type"]}
    assert names == {"node1PublicIp", "node2PublicIp", "node3PublicIp"}
    assert not any("Internet" in sources for *_, sources in firewall(operator).values())
    assert endpoints(operator)["load_balancer"] == "http://10.0.0.254"
    assert operator.run("plan").code == 0
    assert operator.run("down", "--yes").code == 0
    assert operator.azure.resources == {}


def test_who_else_reaches_an_internal_one_is_said_by_http_from(operator: Operator) -> None:
    operator.settings(frontend="internal", ports="443", http_from=["10.0.0.0/8"])
    made(operator)
    assert firewall(operator)["AllowTcpFromRanges"] == ("Allow", "Tcp", ["443"], ["10.0.0.0/8"])


@pytest.mark.parametrize("ports", ["80", "all"])
def test_whom_an_internal_one_serves_is_no_reason_to_keep_the_operator_from_the_nodes(
    operator: Operator, ports: str
) -> None:
    operator.settings(frontend="internal", ports=ports, http_from=["10.0.0.0/8"])
    made(operator)
    assert firewall(operator)["AllowHttpFromOperator"][2:] == (["80"], ["192.0.2.77/32"])
    assert operator.run("plan").code == 0


def test_clients_of_an_internal_one_may_have_a_range_of_their_own_in_the_clusters_network(
    operator: Operator,
) -> None:
    operator.settings(frontend="internal")
    made(operator)
    network = operator.azure.body_of("virtualNetworks", "network")["properties"]
    network["addressSpace"]["addressPrefixes"].append("10.1.0.0/16")
    clients = {"name": "clients", "properties": {"addressPrefix": "10.1.1.0/24"}}
    network["subnets"].append(clients)
    assert operator.run("plan").code == 0
    operator.settings(frontend="internal", tags={"team": "web"})
    made(operator)
    network = operator.azure.body_of("virtualNetworks", "network")["properties"]
    assert network["addressSpace"]["addressPrefixes"] == ["10.0.0.0/24", "10.1.0.0/16"]
    assert [subnet["name"] for subnet in network["subnets"]] == ["nodes", "clients"]
    network["addressSpace"]["addressPrefixes"] = ["10.1.0.0/16"]
    said = operator.run("plan")
    assert "addressSpace.addressPrefixes: 10.1.0.0/16 -> 10.0.0.0/24" in said.output


@pytest.mark.parametrize(("before", "after"), [("public", "internal"), ("internal", "public")])
def test_a_load_balancer_stays_what_it_is_public_or_internal(
    operator: Operator, before: str, after: str
) -> None:
    operator.settings(frontend=before)
    made(operator)
    operator.settings(frontend=after)
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert f"was made with frontend = {before}, not {after}: ask for" in outcome.output
    assert mutations(operator.azure) == []


# ---------------------------------------------------------------- a network of others


def test_nodes_in_a_subnet_of_others_take_addresses_that_azure_has_free(operator: Operator) -> None:
    network_of_others(operator)
    operator.settings(subnet=SUBNET, frontend="internal")
    made(operator)
    (frontend,) = balancer(operator)["frontendIPConfigurations"]
    assert frontend["properties"]["subnet"]["id"] == SUBNET
    taken = [entry["private_ip"] for entry in nodes_of(operator).values()]
    own = frontend["properties"]["privateIPAddress"]
    assert sorted([own, *taken]) == [f"10.9.1.{number}" for number in (5, 6, 7, 8)]
    assert endpoints(operator)["load_balancer"] == f"http://{own}"
    data = yaml.safe_load(custom_data(operator, "node3"))["write_files"]
    told = next(f["content"] for f in data if f["path"].endswith("/nodes_info.json"))
    assert json.loads(told) == nodes_of(operator)
    assert "AllowPingFromNetwork" not in firewall(operator)
    assert operator.run("plan").code == 0


def test_an_address_that_was_made_static_by_hand_stays_so(operator: Operator) -> None:
    network_of_others(operator)
    operator.settings(subnet=SUBNET, frontend="internal")
    made(operator)
    (frontend,) = balancer(operator)["frontendIPConfigurations"]
    nic = operator.azure.body_of("networkInterfaces", "node1-nic")
    pinned = [frontend["properties"], nic["properties"]["ipConfigurations"][0]["properties"]]
    assert [part["privateIPAllocationMethod"] for part in pinned] == ["Dynamic", "Dynamic"]
    for part in pinned:
        part["privateIPAllocationMethod"] = "Static"
    assert operator.run("plan").code == 0
    operator.settings(subnet=SUBNET, frontend="internal", tags={"team": "web"})
    made(operator)
    (frontend,) = balancer(operator)["frontendIPConfigurations"]
    assert frontend["properties"]["privateIPAllocationMethod"] == "Static"


@pytest.mark.parametrize("frontend", ["public", "internal"])
def test_a_network_of_others_is_neither_changed_nor_deleted(
    operator: Operator, frontend: str
) -> None:
    network_of_others(operator)
    before = operator.azure.snapshot()
    operator.settings(subnet=SUBNET, frontend=frontend)
    made(operator)
    assert operator.run("down", "--yes").code == 0
    assert operator.azure.snapshot()["resources"] == before["resources"]
    sent = [r.path for r in mutations(operator.azure)]
    assert not any(NETWORKS in path for path in sent)


def test_a_node_that_is_made_anew_keeps_the_address_that_azure_gave_it(operator: Operator) -> None:
    network_of_others(operator)
    operator.settings(subnet=SUBNET)
    made(operator)
    before = snapshot(operator)
    del operator.azure.resources[operator.azure.body_of("virtualMachines", "node2")["id"].lower()]
    made(operator)
    assert snapshot(operator) == before


@pytest.mark.parametrize(
    ("subnet", "sentence"),
    [
        (SUBNET.replace("/web", "/db"), "/db: there is no such subnet, or you may not see it"),
        (SUBNET.replace("/hub/", "/none/"), "there is no such subnet, or you may not see it"),
        (SUBNET.replace(NETWORKS, "none"), "there is no such subnet, or you may not see it"),
        (
            SUBNET.replace(SUBSCRIPTION, "0" * 8),
            f"use one of the cluster's subscription, {'1' * 8}",
        ),
        (SUBNET.replace(NETWORKS, NAME), "in the cluster's own resource group, which `azure down`"),
        ("web", "subnet = web: use the resource id of a subnet, which `az network vnet subnet"),
    ],
)
def test_a_subnet_that_the_nodes_can_not_be_in_is_refused_before_anything_is_made(
    operator: Operator, subnet: str, sentence: str
) -> None:
    network_of_others(operator)
    operator.settings(subnet=subnet)
    outcome = operator.run("up", "--yes")
    assert (outcome.code, mutations(operator.azure)) == (2, []), outcome.output
    assert sentence in outcome.output
    assert len(outcome.output.splitlines()) == 1


def test_a_subnet_of_another_region_is_refused(operator: Operator) -> None:
    network_of_others(operator, "northeurope")
    operator.settings(subnet=SUBNET)
    outcome = operator.run("up", "--yes")
    assert (outcome.code, mutations(operator.azure)) == (2, [])
    assert "it is in northeurope, and the cluster in westeurope: use one of" in outcome.output


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("read", "AuthorizationFailed: The client does not have authorization to perform action"),
        ("subnets/join/action", "LinkedAuthorizationFailed: The client has permission to perform"),
    ],
)
def test_who_may_not_look_at_their_network_or_join_its_subnet_is_told_which_right_that_takes(
    operator: Operator, missing: str, sentence: str
) -> None:
    network_of_others(operator)
    others = ("Microsoft.Compute/*", "Microsoft.Storage/*", "Microsoft.Resources/*")
    kinds = ("locations", "loadBalancers", "networkInterfaces", "publicIPAddresses")
    network = [f"Microsoft.Network/{kind}/*" for kind in (*kinds, "networkSecurityGroups")]
    allowed = {"read", "write", "subnets/join/action"} - {missing}
    of_networks = [f"Microsoft.Network/virtualNetworks/{action}" for action in allowed]
    operator.azure.allowed = (*others, *network, *of_networks)
    operator.settings(subnet=SUBNET)
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert sentence in outcome.output
    assert f"Microsoft.Network/virtualNetworks/{missing}'" in outcome.output
    operator.azure.allowed = ("*",)
    made(operator)


@pytest.mark.parametrize(("frontend", "free"), [("public", 3), ("internal", 4)])
def test_a_subnet_needs_room_for_what_is_still_to_be_made(
    operator: Operator, frontend: str, free: int
) -> None:
    network_of_others(operator)
    operator.settings(subnet=SUBNET, frontend=frontend)
    for index in range(11 - 1 - free + 1):  # of a /28, beside theirs; one too many
        occupy(operator, f"10.9.1.{14 - index}")
    outcome = operator.run("up", "--yes")
    assert (outcome.code, mutations(operator.azure)) == (2, []), outcome.output
    assert f"it has {free - 1} free addresses, and the cluster needs {free} more" in outcome.output
    operator.azure.resources.popitem()
    made(operator)
    assert operator.run("plan").code == 0  # it is full, and nothing more is to be made


@pytest.mark.parametrize("closed", [{"frontend": "internal"}, {"cluster_port": 8080}])
def test_behind_a_nat_gateway_nodes_ask_each_other_by_private_addresses_or_not_at_all(
    operator: Operator, closed: dict[str, Any]
) -> None:
    """Theirs is the source of whatever goes to a public address, and no node lets that in."""
    network_of_others(operator)
    (web,) = operator.azure.body_of("virtualNetworks", "hub")["properties"]["subnets"]
    web["properties"]["natGateway"] = {"id": f"{SUBNET.partition('/virtual')[0]}/natGateways/out"}
    operator.settings(subnet=SUBNET, **closed)
    outcome = operator.run("up", "--yes")
    assert (outcome.code, mutations(operator.azure)) == (2, []), outcome.output
    assert "from its NAT gateway out, not from their own public" in outcome.output
    assert "use peer_address = private" in outcome.output
    operator.settings(subnet=SUBNET, peer_address="private", **closed)
    made(operator)
    assert operator.run("plan").code == 0


def test_a_nat_gateway_is_no_matter_where_everybody_may_ask_the_nodes(operator: Operator) -> None:
    network_of_others(operator)
    (web,) = operator.azure.body_of("virtualNetworks", "hub")["properties"]["subnets"]
    web["properties"]["natGateway"] = {"id": f"{SUBNET.partition('/virtual')[0]}/natGateways/out"}
    operator.settings(subnet=SUBNET)
    made(operator)


def test_an_internal_load_balancer_is_not_moved_either_that_was_made_before_any_interface(
    operator: Operator,
) -> None:
    operator.settings(frontend="internal")
    operator.azure.faults.append(
        Fault(lambda r: "networkInterfaces/" in r.path, "refused", times=99, status=400, code="No")
    )
    assert operator.run("up", "--yes").code == 2
    operator.azure.faults.clear()
    network_of_others(operator)
    before = operator.azure.snapshot()
    operator.settings(frontend="internal", subnet=SUBNET)
    outcome = operator.run("up", "--yes")
    assert (outcome.code, operator.azure.snapshot()) == (2, before), outcome.output
    assert "load balancer loadBalancer is in " in outcome.output


def test_a_cluster_is_not_moved_to_another_network(operator: Operator) -> None:
    made(operator)
    network_of_others(operator)
    operator.settings(subnet=SUBNET)
    outcome = operator.run("up", "--yes")
    assert (outcome.code, mutations(operator.azure)) == (2, [])
    assert "network interface node1-nic is in" in outcome.output
    assert "or `azure down` first" in outcome.output


# ---------------------------------------------------------------- the application's files

SCRIPT = b"#!/bin/sh\nset -e\ncp app.bin /usr/local/bin/app\n"


def files_of(operator: Operator, name: str, content: bytes) -> str:
    path: Path = operator.folder / name
    path.write_bytes(content)
    return str(path)


def web_files(operator: Operator) -> dict[str, bytes]:
    (account,) = operator.azure.accounts.values()
    return account.containers["$web"]


def written(document: str) -> dict[str, Any]:
    return {file["path"]: file for file in yaml.safe_load(document)["write_files"]}


def test_small_files_are_in_the_custom_data_alone(operator: Operator) -> None:
    binary = bytes(range(256))
    script, app = files_of(operator, "setup.sh", SCRIPT), files_of(operator, "app.bin", binary)
    operator.settings(setup=[script, app])
    made(operator)
    found = written(custom_data(operator, "node2"))
    first, second = found["/etc/bootstrap/setup/setup.sh"], found["/etc/bootstrap/setup/app.bin"]
    assert (first["content"].encode(), first["permissions"]) == (SCRIPT, "0755")
    assert (second["encoding"], base64.b64decode(second["content"])) == ("b64", binary)
    assert not any("setup" in name for name in web_files(operator))
    assert operator.run("plan").code == 0


def test_files_that_custom_data_has_no_room_for_come_from_the_web_site_known_by_their_hash(
    operator: Operator,
) -> None:
    setup = {"setup.sh": SCRIPT, "app.bin": bytes(range(256)) * 400}
    operator.settings(setup=[files_of(operator, name, data) for name, data in setup.items()])
    plan = operator.run("plan")
    assert plan.code == 3
    assert "upload    setup files\n          bootstrap/setup/" in plan.output
    made(operator)
    served = web_names(setup)
    assert {name: web_files(operator)[name] for name in served} == served
    found = written(custom_data(operator))
    assert "/etc/bootstrap/setup/setup.sh" not in found
    listed = found["/etc/bootstrap/setup.sha256"]["content"].splitlines()
    assert [f"bootstrap/setup/{line.replace('  ', '/')}" for line in listed] == [*served]
    assert operator.run("plan").code == 0
    del web_files(operator)[[*served][1]]
    assert "upload    setup files" in operator.run("plan").output
    made(operator)
    assert [*served][1] in web_files(operator)


def test_no_machine_is_made_before_its_files_are_there(operator: Operator) -> None:
    setup = {"setup.sh": SCRIPT, "app.bin": bytes(range(256)) * 400}
    operator.settings(setup=[files_of(operator, name, data) for name, data in setup.items()])
    uploads = Fault(lambda r: "/setup/" in r.path, "refused", times=99, status=400, code="Never")
    operator.azure.faults.append(uploads)
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "deploy: setup files: Never" in outcome.output
    assert not any("virtualMachines" in r.path for r in mutations(operator.azure))
    operator.azure.faults.clear()
    made(operator)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"setup.sh": b"echo hello\n"},
            "setup.sh: it is run, so begin it with #!, as in #!/bin/sh",
        ),
        ({"set up.sh": SCRIPT}, "set up.sh: use a name of letters, digits,"),
        ({}, "none.sh: No such file or directory: name a file that is there"),
    ],
)
def test_files_that_no_node_could_run_are_refused_before_anything_is_made(
    operator: Operator, files: dict[str, bytes], sentence: str
) -> None:
    paths = [files_of(operator, name, data) for name, data in files.items()]
    operator.settings(setup=paths or [str(operator.folder / "none.sh")])
    outcome = operator.run("up", "--yes")
    assert (outcome.code, mutations(operator.azure)) == (2, []), outcome.output
    assert sentence in outcome.output
