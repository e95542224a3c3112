"""What `azure up`, `plan` and `down` refuse, ask, compare and leave alone."""

import base64
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from agent import loader
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.model import Body, Request
from tests.azure.fake_azure.operator import CHECKOUT, NAME, SSH_KEY, Operator
from tests.azure.operators import made, mutations, snapshot

# ---------------------------------------------------------------- what is refused


def group(operator: Operator, **changed: object) -> Body:
    """A resource group that somebody else made."""
    body = {
        "id": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{NAME}",
        "name": NAME,
        "type": "Microsoft.Resources/resourceGroups",
        "location": "westeurope",
        "tags": {"team": "payroll"},
        "properties": {"provisioningState": "Succeeded"},
        **changed,
    }
    operator.azure.groups[NAME] = body
    return body


def a_resource(operator: Operator, kind: str, name: str, **more: object) -> None:
    """A resource that somebody else put into the group."""
    own = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{NAME}/providers/{kind}/{name}"
    operator.azure.resources[own.lower()] = {
        "id": own,
        "name": name,
        "type": kind,
        "location": "westeurope",
        "properties": {"provisioningState": "Succeeded"},
        **more,
    }


def foreign_group(operator: Operator) -> None:
    group(operator)
    a_resource(operator, "Microsoft.Sql/servers", "payroll-db")


def made_before_looks(operator: Operator) -> None:
    """Its nodes look once a run, and no tag of the group says so."""
    made(operator, "--look-seconds", "20")
    del operator.azure.groups[NAME]["tags"]["look-seconds"]


def made_before_pauses(operator: Operator) -> None:
    """Its nodes absorb what their agent does by itself, and no tag of the group says so."""
    made(operator)
    del operator.azure.groups[NAME]["tags"]["pause-seconds"]


def made_before_ports(operator: Operator) -> None:
    """Its nodes serve markers at port 80, and no tag of the group says so."""
    made(operator)
    del operator.azure.groups[NAME]["tags"]["cluster-port"]


def group_being_deleted(operator: Operator) -> None:
    group(operator, properties={"provisioningState": "Deleting"})


def lost_key(operator: Operator) -> None:
    made(operator)
    (operator.state / "cluster.key").unlink()


def other_key(operator: Operator) -> None:
    made(operator)
    (operator.state / "cluster.key").write_text("ab" * 32 + "\n")


def private_key(operator: Operator) -> None:
    (operator.folder / "id.pub").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")


def ecdsa_key(operator: Operator) -> None:
    (operator.folder / "id.pub").write_text(SSH_KEY.replace("ssh-ed25519", "ecdsa-sha2-nistp256"))


def cut_key(operator: Operator) -> None:
    (operator.folder / "id.pub").write_text(SSH_KEY[:60] + " me@home")


def key_of_another_kind(operator: Operator) -> None:
    (operator.folder / "id.pub").write_text(SSH_KEY.replace("ssh-ed25519", "ssh-rsa"))


def limit(name: str, most: int) -> Callable[[Operator], None]:
    return lambda operator: operator.azure.limits.update({name: most})


def lost_machine_without_room(operator: Operator) -> None:
    made(operator)
    operator.azure.limits["cores"] = 5
    del operator.azure.resources[operator.azure.body_of("virtualMachines", "node2")["id"].lower()]


def no_key_file(operator: Operator) -> None:
    (operator.folder / "id.pub").unlink()


def not_signed_in(operator: Operator) -> None:
    operator.environment["AZURE_CLIENT_SECRET"] = "wrong"  # noqa: S105 - it is wrong


def no_echo(operator: Operator) -> None:
    operator.settings(ssh_from=f"{operator.azure.url}/no-such-service")


def echo_of_ipv6(operator: Operator) -> None:
    operator.azure.own_address = b"2001:db8::7"


def not_allowed(operator: Operator) -> None:
    operator.azure.allowed = ("*/read",)


def setting(**values: object) -> Callable[[Operator], None]:
    return lambda operator: operator.settings(**values)


REFUSALS: list[tuple[Callable[[Operator], None], list[str], str]] = [
    (foreign_group, [], "was not made by this command and holds 1 resources (payroll-db"),
    (foreign_group, ["--adopt"], "was not made by this command and holds 1 resources"),
    (group, [], "it is empty: --adopt takes it"),  # type: ignore[list-item]
    (group_being_deleted, [], "is being deleted: try again when it is gone"),
    (made, ["--nodes", "5"], "was made with nodes = 3, not 5"),  # type: ignore[list-item]
    (made, ["--period-seconds", "10"], "with period-seconds = 20, not 10"),  # type: ignore[list-item]
    (made, ["--look-seconds", "5"], "with look-seconds = 2, not 5"),  # type: ignore[list-item]
    (made_before_looks, [], "with look-seconds = 20, not 2: of nodes that differ in it several"),
    (made, ["--pause-seconds", "0"], "with pause-seconds = 5, not 0"),  # type: ignore[list-item]
    (made_before_pauses, ["--pause-seconds", "8"], "with pause-seconds = 5, not 8: of nodes that"),
    (made, ["--cluster-port", "8080"], "with cluster-port = 80, not 8080"),  # type: ignore[list-item]
    (made_before_ports, ["--cluster-port", "81"], "with cluster-port = 80, not 81: of nodes that"),
    (made, ["--region", "northeurope"], "is in westeurope, not in northeurope"),  # type: ignore[list-item]
    (lost_key, [], "cluster.key: missing; copy the file from the computer that made the cluster"),
    (other_key, [], "cluster.key: not the key of this cluster"),
    (private_key, [], "this is a private key; give the .pub beside it"),
    (cut_key, [], "id.pub: it is damaged, its second word is not the base64 of a key"),
    (key_of_another_kind, [], "id.pub: it says ssh-rsa, but holds 'ssh-ed25519'"),
    (limit("cores", 5), [], "the cluster needs 6 more of cores, and this subscription may have 5"),
    (limit("standardBasv2Family", 4), [], "needs 6 more of standardbasv2family"),
    (limit("PublicIPAddresses", 3), [], "needs 4 more of publicipaddresses"),
    (limit("StandardSkuPublicIpAddresses", 3), [], "needs 4 more of standardskupublicipaddresses"),
    (lost_machine_without_room, [], "the cluster needs 2 more of cores, and this subscription"),
    (ecdsa_key, [], "use one line of ssh-ed25519 or ssh-rsa"),
    (no_key_file, [], "make one with `ssh-keygen -t ed25519`"),
    (not_signed_in, [], "service principal the-operator (AZURE_CLIENT_ID) was refused: correct"),
    (no_echo, [], "give the range that may reach SSH, like --ssh-from 203.0.113.7/32"),
    (setting(size="Standard_M8ms"), [], "Standard_M8ms is not available to you in zone 2"),
    (setting(witness_size="Standard_None"), [], "node3: size Standard_None is not available"),
    (setting(colour="red"), [], "unknown setting 'colour'; known are name, region, nodes,"),
    (setting(nodes="3"), [], "nodes = '3': use a whole number"),
    (setting(http_from=80), [], 'http_from = 80: use a list like ["203.0.113.0/24"]'),
    (setting(), ["--nodes", "4"], "4 nodes: a majority needs an odd number of nodes, 3 or more"),
    (setting(), ["--nodes", "255"], "the network 10.0.0.0/24 has no room for so many"),
    (setting(), ["--name", "a/b"], "cluster name 'a/b': use letters, digits"),
    (setting(), ["--name", ".."], "cluster name '..': use letters, digits"),
    (setting(), ["--region", "West Europe"], "use Azure's short name, like westeurope"),
    (setting(), ["--image", "ubuntu"], "use PUBLISHER:OFFER:SKU:VERSION"),
    (setting(), ["--http-from", "10.0.0.1/8"], "http_from: '10.0.0.1/8' is no address range"),
    (setting(http_from=["Internet", "198.51.100.0/24"]), [], "http_from = Internet, 198.51.100.0"),
    (
        setting(ssh_from=["Internet", "198.51.100.0/24"]),
        [],
        "use Internet alone, or ranges without",
    ),
    (setting(ssh_from=["*"]), [], "ssh_from: '*' is no address range"),
    (echo_of_ipv6, [], "ssh_from: '2001:db8::7/32' is no address range"),
    (setting(), ["--period-seconds", "7"], "period_seconds = 7: use a divisor of 60"),
    (setting(), ["--look-seconds", "3"], "look_seconds = 3: use a divisor of period_seconds = 20"),
    (setting(look_seconds="2"), [], "look_seconds = '2': use a whole number"),
    (setting(), ["--pause-seconds", "61"], "pause_seconds = 61: use 0 to 60"),
    (setting(tags={"look-seconds": "2"}), [], "tag 'look-seconds=2': use KEY=VALUE"),
    (setting(tags={"pause-seconds": "5"}), [], "tag 'pause-seconds=5': use KEY=VALUE"),
    (setting(tags={"cluster-port": "80"}), [], "tag 'cluster-port=80': use KEY=VALUE"),
    (setting(), ["--ports", "0"], "ports: '0' is no port: use a number from 1 to 65534"),
    (setting(ports="all"), [], "ports = all: name the ports, or use all with frontend = internal"),
    (setting(idle_minutes=101), [], "idle_minutes = 101: use 4 to 100"),
    (setting(tags={"made-by": "me"}), [], "tag 'made-by=me': use KEY=VALUE"),
    (setting(), ["--tags", "team"], "tag 'team': use KEY=VALUE"),
    (setting(), ["--tags", "a/b=c"], "tag 'a/b=c': use KEY=VALUE"),
    (setting(), ["--tags", "microsoft-x=c"], "not beginning with azure, microsoft or windows"),
    (setting(), ["--tags", f"a={'x' * 257}"], "a value of at most 256"),
    (setting(), ["--tags", "a=1", "--tags", "A=2"], "tags a, a: use each name once"),
    (setting(tags="web"), [], "tags = 'web': use a table of texts like { team = "),
    (setting(), ["--peer-address", "both"], "use public or private"),
    (setting(), ["--subscription", ""], "`az account show --query id -o tsv` prints"),
    (setting(), ["--arm-endpoint", "http://127.0.0.1"], "begins with https://"),
]


@pytest.mark.parametrize(("prepare", "options", "sentence"), REFUSALS)
def test_up_refuses_with_one_sentence_before_it_touches_anything(
    operator: Operator, prepare: Callable[[Operator], None], options: list[str], sentence: str
) -> None:
    prepare(operator)
    operator.azure.log.records.clear()
    before = operator.azure.snapshot()
    outcome = operator.run("up", "--yes", *options)
    assert outcome.code == 2, outcome.output
    assert sentence in outcome.output
    assert outcome.output.startswith("deploy: ")
    assert len(outcome.output.splitlines()) == 1
    assert mutations(operator.azure) == []
    assert operator.azure.snapshot() == before


def test_what_a_role_does_not_allow_is_told_in_azures_words(operator: Operator) -> None:
    not_allowed(operator)
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "AuthorizationFailed: The client does not have authorization to perform action" in (
        outcome.output
    )


def test_a_fault_of_a_region_is_told_in_azures_words(operator: Operator) -> None:
    outcome = operator.run("up", "--yes", "--region", "atlantis")
    assert outcome.code == 2
    assert (
        "LocationNotAvailableForResourceGroup: The provided location 'atlantis'" in outcome.output
    )


def test_an_empty_group_is_adopted_with_the_tags_it_had(operator: Operator) -> None:
    group(operator)
    made(operator, "--adopt")
    assert operator.azure.groups[NAME]["tags"]["team"] == "payroll"
    assert operator.run("plan").code == 0
    assert operator.run("down", "--yes").code == 0
    assert operator.azure.groups == {}


def settings_of_node(operator: Operator, name: str) -> str:
    """The loader.conf that the machine was made with."""
    sent = operator.azure.body_of("virtualMachines", name)["properties"]["osProfile"]["customData"]
    files = yaml.safe_load(base64.b64decode(sent))["write_files"]
    return next(str(f["content"]) for f in files if f["path"] == "/etc/bootstrap/loader.conf")


def test_a_new_node_of_a_cluster_from_before_looks_looks_once_a_run_as_the_others_do(
    operator: Operator,
) -> None:
    made_before_looks(operator)
    operator.settings(look_seconds=20)
    assert operator.run("plan").code == 0
    del operator.azure.resources[operator.azure.body_of("virtualMachines", "node2")["id"].lower()]
    made(operator)
    assert "\nlook_seconds = 20\n" in settings_of_node(operator, "node2")
    assert settings_of_node(operator, "node2") == settings_of_node(operator, "node1")


def test_a_new_node_of_a_cluster_from_before_pauses_absorbs_what_the_others_agent_does(
    operator: Operator,
) -> None:
    made_before_pauses(operator)
    assert operator.run("plan").code == 0
    del operator.azure.resources[operator.azure.body_of("virtualMachines", "node2")["id"].lower()]
    made(operator)
    usual = loader.Settings().times.pause_seconds
    assert f"\npause_seconds = {usual}\n" in settings_of_node(operator, "node2")


def test_a_cluster_from_before_ports_is_left_as_it_is(operator: Operator) -> None:
    made_before_ports(operator)
    assert operator.run("plan").code == 0


# ---------------------------------------------------------------- plan, and what up changes


def test_plan_changes_nothing_and_tells_by_its_exit_code(operator: Operator) -> None:
    assert operator.run("plan").code == 3
    assert mutations(operator.azure) == []
    assert not operator.state.exists()
    made(operator)
    assert operator.run("plan").code == 0
    assert mutations(operator.azure) == []
    assert operator.run("plan", "--nodes", "2").code == 2


def fresh(operator: Operator) -> Operator:
    """A subscription in which nobody has used anything yet."""
    for name in operator.azure.providers:
        operator.azure.providers[name] = "NotRegistered"
    return operator


@pytest.mark.parametrize("with_group", [False, True])
def test_plan_registers_nothing_in_a_fresh_subscription(
    operator: Operator, *, with_group: bool
) -> None:
    if with_group:
        group(operator)
    outcome = fresh(operator).run("plan", "--adopt")
    assert outcome.code == 3, outcome.output
    assert "register  provider Microsoft.Compute" in outcome.output
    assert "check     sizes and limits" in outcome.output
    assert mutations(operator.azure) == []
    assert set(operator.azure.providers.values()) == {"NotRegistered"}


def test_down_of_an_empty_group_registers_nothing(operator: Operator) -> None:
    group(operator, tags={"made-by": "azure-active-passive-cluster"})
    outcome = fresh(operator).run("down", "--yes")
    assert outcome.code == 0, outcome.output
    assert [request.method for request in mutations(operator.azure)] == ["DELETE"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"size": "Standard_M8ms"}, "Standard_M8ms is not available to you in zone 2"),
        ({"nodes": 11}, "needs 22 more of cores, and this subscription may have 20 more there"),
    ],
)
def test_what_only_a_registered_provider_tells_is_checked_before_anything_is_created(
    operator: Operator, changed: dict[str, object], sentence: str
) -> None:
    operator.settings(**changed)
    outcome = fresh(operator).run("up", "--yes")
    assert outcome.code == 2
    assert f"deploy: sizes and limits: {'node2: size ' if 'size' in changed else ''}" in (
        outcome.output
    )
    assert sentence in outcome.output
    assert {request.path.split("/")[-1] for request in mutations(operator.azure)} == {"register"}
    assert operator.azure.groups == {}


def test_limits_that_are_just_enough_are_enough_and_do_not_count_twice(operator: Operator) -> None:
    operator.azure.limits |= {"cores": 6, "standardBasv2Family": 6, "PublicIPAddresses": 4}
    operator.azure.limits["StaticPublicIPAddresses"] = -1  # none
    made(operator)
    assert operator.run("plan").code == 0
    del operator.azure.resources[operator.azure.body_of("virtualMachines", "node2")["id"].lower()]
    made(operator)


def test_up_asks_and_no_is_no(operator: Operator) -> None:
    outcome = operator.execute("up", typed="n\n")
    assert outcome.code == 130
    assert "create    virtual machine node3" in outcome.output
    assert mutations(operator.azure) == []
    assert operator.execute("up", typed="y\n").code == 0
    assert len(operator.azure.resources) == 16 + len(disks(operator))


def rules_of(operator: Operator, node: str) -> dict[str, Any]:
    rules = operator.azure.body_of("networkSecurityGroups", f"{node}-nsg")["properties"]
    return {rule["name"]: rule["properties"] for rule in rules["securityRules"]}


THEIRS = {
    "name": "AllowTheirs",
    "properties": {
        "priority": 200,
        "direction": "Inbound",
        "access": "Allow",
        "protocol": "Tcp",
        "sourceAddressPrefix": "Internet",
        "sourcePortRange": "*",
        "destinationAddressPrefix": "*",
        "destinationPortRange": "443",
    },
}


def test_a_rule_that_somebody_adds_while_up_asks_is_kept(operator: Operator) -> None:
    made(operator)
    operator.settings(ssh_from="192.0.2.0/24")

    def somebody_adds_one() -> None:
        firewall = operator.azure.body_of("networkSecurityGroups", "node1-nsg")["properties"]
        firewall["securityRules"].append(THEIRS)

    outcome = operator.answer_late("up", "Go on? [y/N]: ", somebody_adds_one, "y")
    assert outcome.code == 0, outcome.output
    rules = rules_of(operator, "node1")
    assert rules["AllowSshFromOperator"]["sourceAddressPrefix"] == "192.0.2.0/24"
    assert "AllowTheirs" in rules


def test_up_does_nothing_that_was_not_shown_when_it_asked(operator: Operator) -> None:
    made(operator)
    operator.settings(ssh_from="192.0.2.0/24")

    def somebody_deletes_a_machine() -> None:
        lost = operator.azure.body_of("virtualMachines", "node2")["id"].lower()
        del operator.azure.resources[lost]

    outcome = operator.answer_late("up", "Go on? [y/N]: ", somebody_deletes_a_machine, "y")
    assert outcome.code == 2
    assert "changed while you were asked: nothing was done" in outcome.output
    assert mutations(operator.azure) == []


def test_other_sources_change_our_rules_and_leave_those_of_others(operator: Operator) -> None:
    made(operator)
    firewall = operator.azure.body_of("networkSecurityGroups", "node2-nsg")["properties"]
    firewall["securityRules"].append(THEIRS)
    assert operator.run("plan").code == 0
    operator.settings(http_from=["203.0.113.0/24", "198.51.100.0/24"], ssh_from="192.0.2.0/24")
    plan = operator.run("plan")
    assert plan.code == 3
    assert "securityRules[AllowHttpFromInternet]: there -> nothing" in plan.output
    made(operator)
    rules = rules_of(operator, "node2")
    assert set(rules) == {
        "AllowHttpFromRanges",
        "AllowHttpFromPeers",
        "AllowSshFromOperator",
        "AllowPingFromNetwork",
        "AllowTheirs",
    }
    ranges = rules["AllowHttpFromRanges"]["sourceAddressPrefixes"]
    assert ranges == ["203.0.113.0/24", "198.51.100.0/24"]
    assert rules["AllowSshFromOperator"]["sourceAddressPrefix"] == "192.0.2.0/24"
    assert operator.run("plan").code == 0


RANGES: list[tuple[list[str], list[str]]] = [
    (["198.51.100.0/24", "198.51.100.0/24"], ["198.51.100.0/24"]),
    (["198.51.100.7", "198.51.100.0/24"], ["198.51.100.0/24"]),
    (["198.51.100.0/25", "198.51.100.128/25"], ["198.51.100.0/25", "198.51.100.128/25"]),
    (["203.0.113.0/255.255.255.0", "198.51.100.7"], ["203.0.113.0/24", "198.51.100.7/32"]),
    (["203.0.113.0/24", "0.0.0.0/0", "198.51.100.0/24"], ["0.0.0.0/0"]),
    (["192.0.2.0/24", "https://ME"], ["192.0.2.0/24"]),
    (["203.0.113.0/24", "https://ME"], ["203.0.113.0/24", "192.0.2.77/32"]),
    (["https://ME", "192.0.2.77", "https://ME"], ["192.0.2.77/32"]),
]


@pytest.mark.parametrize(("given", "sent"), RANGES)
def test_ranges_are_sent_as_one_rule_takes_them(
    operator: Operator, given: list[str], sent: list[str]
) -> None:
    """Also with what this computer's own address turned out to be; and once, not at every `up`."""
    own = f"{operator.azure.url}/my-address"
    operator.settings(
        http_from=[source for source in given if source != "https://ME"] or ["Internet"],
        ssh_from=[own if source == "https://ME" else source for source in given],
    )
    made(operator)
    ssh = rules_of(operator, "node1")["AllowSshFromOperator"]
    assert (ssh["sourceAddressPrefixes"] or [ssh.get("sourceAddressPrefix")]) == sent
    assert operator.run("plan").code == 0


def test_nodes_behind_closed_http_let_each_others_addresses_through(operator: Operator) -> None:
    operator.settings(http_from="203.0.113.0/24")
    made(operator)
    nodes = json.loads((operator.state / "nodes_info.json").read_text())
    peers = [f"{entry['public_ip']}/32" for entry in nodes.values()]
    assert rules_of(operator, "node1")["AllowHttpFromPeers"]["sourceAddressPrefixes"] == peers
    operator.settings(http_from="203.0.113.0/24", peer_address="private")
    made(operator)
    assert "AllowHttpFromPeers" not in rules_of(operator, "node1")


def test_what_somebody_changed_by_hand_is_put_right(operator: Operator) -> None:
    made(operator)
    before = snapshot(operator)
    probe = operator.azure.body_of("loadBalancers", "loadBalancer")["properties"]["probes"][0]
    probe["properties"]["noHealthyBackendsBehavior"] = "AllProbedUp"
    nic = operator.azure.body_of("networkInterfaces", "node3-nic")["properties"]
    nic["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] = []
    plan = operator.run("plan")
    assert "probes[probe].noHealthyBackendsBehavior: AllProbedUp -> AllProbedDown" in plan.output
    assert "loadBalancerBackendAddressPools[nodes]: nothing -> new" in plan.output
    made(operator)
    assert snapshot(operator) == before


def test_a_rule_that_somebody_led_to_another_pool_is_put_right(operator: Operator) -> None:
    made(operator)
    before = snapshot(operator)
    balancer = operator.azure.body_of("loadBalancers", "loadBalancer")
    other = {"id": f"{balancer['id']}/backendAddressPools/theirs"}
    properties = balancer["properties"]
    properties["backendAddressPools"].append({"name": "theirs", "properties": {}, **other})
    rule = properties["loadBalancingRules"][0]["properties"]
    rule |= {"backendAddressPool": other, "backendAddressPools": [other]}
    assert "loadBalancingRules[http].backendAddressPool.id: theirs -> nodes" in (
        operator.run("plan").output
    )
    made(operator)
    properties = operator.azure.body_of("loadBalancers", "loadBalancer")["properties"]
    properties["backendAddressPools"].pop()  # what others added stays
    assert snapshot(operator) == before


@pytest.mark.parametrize(
    ("one", "many", "values"),
    [
        ("destinationPortRange", "destinationPortRanges", ["80", "443"]),
        ("sourcePortRange", "sourcePortRanges", ["1024-65535", "80"]),
        ("destinationAddressPrefix", "destinationAddressPrefixes", ["10.0.0.4", "10.0.0.5"]),
        ("sourceAddressPrefix", "sourceAddressPrefixes", ["192.0.2.0/24", "203.0.113.0/24"]),
    ],
)
def test_a_rule_to_which_somebody_gave_several_values_is_put_right(
    operator: Operator, one: str, many: str, values: list[str]
) -> None:
    made(operator)
    before = snapshot(operator)
    rule = rules_of(operator, "node1")["AllowHttpFromInternet"]
    del rule[one]
    rule[many] = values
    made(operator)
    assert snapshot(operator) == before


def test_a_subnet_to_which_somebody_gave_several_prefixes_is_put_right(operator: Operator) -> None:
    made(operator)
    before = snapshot(operator)
    network = operator.azure.body_of("virtualNetworks", "network")["properties"]
    subnet = network["subnets"][0]["properties"]
    subnet["addressPrefixes"] = [subnet.pop("addressPrefix")]
    made(operator)
    assert snapshot(operator) == before


def test_a_storage_account_that_somebody_changed_is_put_right(operator: Operator) -> None:
    made(operator)
    before = snapshot(operator)
    name = next(iter(operator.azure.accounts))
    account = operator.azure.body_of("storageAccounts", name)["properties"]
    account["minimumTlsVersion"] = "TLS1_0"
    assert "minimumTlsVersion: TLS1_0 -> TLS1_2" in operator.run("plan").output
    made(operator)
    assert snapshot(operator) == before


def test_a_vm_is_never_changed_in_place(operator: Operator) -> None:
    made(operator)
    operator.settings(size="Standard_D2s_v5")
    outcome = operator.run("up")
    assert outcome.code == 0
    assert (
        "virtual machine node1 stays, though it differs: hardwareProfile.vmSize:"
        " Standard_B2als_v2 -> Standard_D2s_v5" in outcome.output
    )
    assert mutations(operator.azure) == []


def test_a_new_agent_is_published_by_the_next_up(operator: Operator) -> None:
    made(operator)
    account = next(iter(operator.azure.accounts.values()))
    account.containers["$web"]["bootstrap/loader.py"] = b"an older agent"
    plan = operator.run("plan")
    assert plan.code == 3
    assert "change    release\n          bootstrap/loader.py" in plan.output
    made(operator)
    agent = (CHECKOUT / "agent" / "loader.py").read_bytes()
    assert account.containers["$web"]["bootstrap/loader.py"] == agent


def test_a_lost_state_folder_is_made_again_from_azure_and_the_key(operator: Operator) -> None:
    made(operator)
    before = (operator.state / "endpoints.json").read_text()
    for name in ("endpoints.json", "nodes_info.json"):
        (operator.state / name).unlink()
    assert operator.run("up").code == 0
    assert (operator.state / "endpoints.json").read_text() == before


# ---------------------------------------------------------------- down


def test_down_deletes_everything_and_forgets_the_cluster(operator: Operator) -> None:
    made(operator)
    outcome = operator.run("down", "--yes")
    assert outcome.code == 0, outcome.output
    assert operator.azure.groups == operator.azure.resources == {}
    assert not operator.state.exists()


def left_behind(operator: Operator) -> list[Path]:
    """What a process that was killed between two of its lines left in the state folder."""
    operator.state.mkdir(parents=True, exist_ok=True)
    parts = [operator.state / f".{name}.4711" for name in ("cluster.key", "endpoints.json")]
    for part in parts:
        part.write_text("half of it")
    return parts


def test_up_removes_what_a_killed_one_left_in_the_state_folder(operator: Operator) -> None:
    parts = left_behind(operator)
    made(operator)
    assert [part for part in parts if part.exists()] == []
    assert sorted(file.name for file in operator.state.iterdir()) == [
        ".lock",
        "cluster.key",
        "endpoints.json",
        "nodes_info.json",
        "release.json",
    ]


def test_down_leaves_nothing_of_the_state_folder_and_every_file_of_the_operators(
    operator: Operator,
) -> None:
    made(operator)
    left_behind(operator)
    assert operator.run("down", "--yes").code == 0
    assert not operator.state.exists()
    made(operator)
    left_behind(operator)
    notes = [operator.state / name for name in ("notes.txt", ".cluster.key", ".notes.1")]
    for note in notes:
        note.write_text("mine")
    assert operator.run("down", "--yes").code == 0
    assert {*operator.state.iterdir()} - {operator.state / ".lock"} == {*notes}


def test_down_asks_for_the_groups_name(operator: Operator) -> None:
    made(operator)
    outcome = operator.execute("down", typed="yes\n")
    assert outcome.code == 2
    assert "that is not the group's name: nothing was deleted" in outcome.output
    assert "node3-nic" in outcome.output
    assert mutations(operator.azure) == []
    assert operator.execute("down", typed=f"{NAME}\n").code == 0
    assert operator.azure.groups == {}


def test_down_refuses_a_group_that_is_not_ours(operator: Operator) -> None:
    foreign_group(operator)
    outcome = operator.run("down", "--yes")
    assert outcome.code == 2
    assert "was not made by `azure up`: nothing was deleted" in outcome.output
    assert mutations(operator.azure) == []


def test_down_refuses_a_group_that_holds_something_of_others(operator: Operator) -> None:
    made(operator)
    a_resource(operator, "Microsoft.Sql/servers", "payroll-db")
    outcome = operator.run("down", "--yes")
    assert outcome.code == 2
    assert "holds payroll-db (Microsoft.Sql/servers), which `azure up` did not make" in (
        outcome.output
    )
    assert mutations(operator.azure) == []


def test_down_takes_the_machines_own_disks_and_extensions_along(operator: Operator) -> None:
    made(operator)
    assert len(disks(operator)) == 3
    machine = operator.azure.body_of("virtualMachines", "node1")["id"].split("/providers/")[1]
    a_resource(operator, f"{machine}/extensions", "Monitor", type=f"{MACHINES}/extensions")
    outcome = operator.run("down", "--yes")
    assert outcome.code == 0, outcome.output
    assert operator.azure.resources == {}


MACHINES = "Microsoft.Compute/virtualMachines"


def disks(operator: Operator) -> list[Body]:
    every = operator.azure.resources.values()
    return [body for body in every if body["type"] == "Microsoft.Compute/disks"]


def attached(operator: Operator) -> Body:
    return {"managedBy": operator.azure.body_of("virtualMachines", "node1")["id"]}


def attached_as_new(operator: Operator) -> Body:
    """As `az vm disk attach --new` makes one: with the tags of the machine."""
    return {**attached(operator), "tags": disks(operator)[0]["tags"]}


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        ("Microsoft.Compute/disks", "billing-data", attached),
        ("Microsoft.Compute/disks", "billing-data", attached_as_new),
        ("Microsoft.Compute/disks", "node1_OsDisk_1_0123456789abcdef", lambda _: {}),
        ("Microsoft.Compute/disks", "node1_disk2", lambda _: {}),
        (f"{MACHINES}/node1-of-others/extensions", "Monitor", lambda _: {}),
        ("Microsoft.Compute/snapshots", "node1_snapshot", attached_as_new),
    ],
)
def test_down_refuses_what_the_operator_put_beside_the_machines(
    operator: Operator, kind: str, name: str, more: Callable[[Operator], Body]
) -> None:
    made(operator)
    a_resource(operator, kind, name, **more(operator))
    outcome = operator.run("down", "--yes")
    assert outcome.code == 2
    assert f"holds {name} ({kind}), which `azure up` did not make" in outcome.output
    assert mutations(operator.azure) == []
    assert operator.state.exists()


@pytest.mark.parametrize("tagged", [False, True])
def test_what_comes_while_down_asks_is_not_deleted(operator: Operator, *, tagged: bool) -> None:
    made(operator)
    address = operator.azure.body_of("publicIPAddresses", "node1PublicIp")
    tags = {"tags": address["tags"]} if tagged else {}

    def somebody_adds_one() -> None:
        a_resource(operator, "Microsoft.Network/publicIPAddresses", "shop", **tags)

    outcome = operator.answer_late("down", "delete all of this: ", somebody_adds_one)
    assert outcome.code == 2
    assert "shop (Microsoft.Network/publicIPAddresses)" in outcome.output
    assert "nothing was deleted" in outcome.output.replace("\n", " ")
    assert mutations(operator.azure) == []


def test_down_keeps_the_key_where_there_is_no_group(operator: Operator) -> None:
    made(operator)
    operator.azure.groups.clear()  # as in another subscription
    outcome = operator.run("down", "--yes")
    assert outcome.code == 0
    assert "nothing to remove" in outcome.output
    assert (operator.state / "cluster.key").exists()


# ---------------------------------------------------------------- permissions


def role(part: str) -> list[str]:
    """The actions of the role in docs/azure.md."""
    text = (CHECKOUT / "docs" / "azure.md").read_text()
    block = next(b for b in re.findall(r"```json\n(.*?)```", text, re.S) if '"Actions"' in b)
    actions: list[str] = json.loads(block)[part]
    return actions


def test_the_documented_role_is_enough_and_nothing_in_it_is_spare(operator: Operator) -> None:
    operator.azure.allowed = tuple(role("Actions"))
    operator.azure.allowed_on_data = tuple(role("DataActions"))
    for name in operator.azure.providers:
        operator.azure.providers[name] = "NotRegistered"
    operator.azure.operation_seconds = 0.2
    for verb in ("up", "plan", "down"):
        outcome = operator.run(verb, *([] if verb == "plan" else ["--yes"]))
        assert outcome.code == 0, outcome.output
    assert sorted(operator.azure.actions_used) == sorted(role("Actions"))
    assert sorted(operator.azure.data_actions_used) == sorted(role("DataActions"))


def test_tags_that_a_policy_demands_are_on_everything(operator: Operator) -> None:
    operator.azure.tags_demanded = ("cost-center", "Owner")
    refused = operator.run("up", "--yes")
    assert refused.code == 2
    assert "RequestDisallowedByPolicy" in refused.output
    operator.settings(tags={"cost-center": "42", "Owner": "web team"})
    made(operator)
    wanted = {"cost-center": "42", "Owner": "web team", "made-by": "azure-active-passive-cluster"}
    everything = [operator.azure.groups[NAME], *operator.azure.resources.values()]
    assert [body["id"] for body in everything if not wanted.items() <= body["tags"].items()] == []
    assert operator.run("plan").code == 0
    assert operator.run("down", "--yes").code == 0
    assert operator.azure.groups == {}


def test_a_tag_that_came_later_is_given_to_all_but_the_machines_and_tags_of_others_stay(
    operator: Operator,
) -> None:
    made(operator)
    operator.azure.groups[NAME]["tags"]["team"] = "payroll"
    before = dict(operator.azure.groups[NAME]["tags"])
    plan = operator.run("plan", "--tags", "owner=web")
    assert plan.code == 3
    assert f"change    resource group {NAME}\n          tags.owner: nothing -> web" in plan.output
    made(operator, "--tags", "owner=web")
    assert operator.azure.groups[NAME]["tags"] == {**before, "owner": "web"}
    address = operator.azure.body_of("publicIPAddresses", "node1PublicIp")
    assert address["tags"]["owner"] == "web"
    again = operator.run("plan", "--tags", "owner=web")
    assert again.code == 0, again.output
    assert "virtual machine node1 stays, though it differs: tags.owner" in again.output


def test_a_subscription_that_forbids_shared_keys_gets_its_cluster(operator: Operator) -> None:
    operator.azure.keys_forbidden = True
    made(operator)
    assert operator.run("plan").code == 0
    account = operator.azure.body_of("storageAccounts", next(iter(operator.azure.accounts)))
    assert account["properties"]["allowSharedKeyAccess"] is False
    assert operator.deploy("publish").code == 0


def test_the_account_is_made_without_shared_keys_and_nobody_asks_for_them(
    operator: Operator,
) -> None:
    outcome = operator.run("up", "--yes")
    assert outcome.code == 0, outcome.output
    records = operator.azure.log.records
    (sent,) = [r.request for r in records if r.request.method == "PUT" and is_account(r.request)]
    assert sent.body["properties"]["allowSharedKeyAccess"] is False
    assert not any(r.request.path.endswith("/listKeys") for r in records)


def is_account(request: Request) -> bool:
    return request.path.split("/")[-2] == "storageAccounts"


DATA_ROLE = (
    "needs the role Storage Blob Data Contributor for the web site's files, which Owner and"
    ' Contributor do not include: `az role assignment create --role "Storage Blob Data'
    f' Contributor" --scope /subscriptions/{SUBSCRIPTION}/resourceGroups/{NAME} --assignee YOU`'
)


def test_up_names_the_role_that_is_missing_for_the_web_site_and_makes_no_machine(
    operator: Operator,
) -> None:
    operator.azure.allowed_on_data = ()  # as an Owner who has no role on data
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "deploy: release: AuthorizationPermissionMismatch: This request is not" in outcome.output
    assert DATA_ROLE in outcome.output
    assert "up to ten minutes" in outcome.output
    assert not any(b["type"] == MACHINES for b in operator.azure.resources.values())
    operator.azure.allowed_on_data = ("*",)
    made(operator)


def test_a_web_site_that_can_not_be_looked_at_is_told_and_the_rest_compared_and_done(
    operator: Operator,
) -> None:
    made(operator)
    operator.azure.allowed_on_data = ()
    operator.settings(ssh_from="192.0.2.0/24")
    plan = operator.run("plan")
    assert plan.code == 3, plan.output
    assert "change    firewall node1-nsg" in plan.output
    assert "upload    release\n          it can't be looked at: Authorization" in plan.output
    assert DATA_ROLE in plan.output
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert DATA_ROLE in outcome.output
    ssh = rules_of(operator, "node1")["AllowSshFromOperator"]
    assert ssh["sourceAddressPrefix"] == "192.0.2.0/24"


def test_a_yes_counts_where_the_web_site_can_not_be_looked_at(operator: Operator) -> None:
    """Storage answers with other words each time; only what would be done has to be the same."""
    made(operator)
    operator.azure.allowed_on_data = ()
    operator.settings(ssh_from="192.0.2.0/24")
    outcome = operator.answer_late("up", "Go on? [y/N]: ", lambda: None, "y")
    assert "changed while you were asked" not in outcome.output
    assert DATA_ROLE in outcome.output
    assert not re.search("RequestId|Time:", outcome.output)
    ssh = rules_of(operator, "node1")["AllowSshFromOperator"]
    assert ssh["sourceAddressPrefix"] == "192.0.2.0/24"


def test_a_yes_counts_where_this_computers_address_changes_with_each_look(
    operator: Operator,
) -> None:
    """As behind a NAT of many addresses: what was shown is what is done."""
    made(operator)
    operator.azure.own_address = b"198.51.100.7"

    def another_address() -> None:
        operator.azure.own_address = b"198.51.100.8"

    outcome = operator.answer_late("up", "Go on? [y/N]: ", another_address, "y")
    assert outcome.code == 0, outcome.output
    ssh = rules_of(operator, "node1")["AllowSshFromOperator"]
    assert ssh["sourceAddressPrefix"] == "198.51.100.7/32"


def test_publish_names_the_role_that_is_missing(operator: Operator) -> None:
    made(operator)
    operator.azure.allowed_on_data = ()
    outcome = operator.deploy("publish")
    assert outcome.code == 2
    assert DATA_ROLE in outcome.output


def test_without_azures_packages_the_command_says_what_to_install(
    operator: Operator, tmp_path: Path
) -> None:
    (tmp_path / "azure").mkdir()
    (tmp_path / "azure" / "__init__.py").write_text("raise ModuleNotFoundError(name='azure.core')")
    operator.environment["PYTHONPATH"] = f"{tmp_path}:{CHECKOUT}"
    outcome = operator.execute("up")
    assert outcome.code == 2
    command = f"{sys.executable} -m pip install -e '{CHECKOUT}[azure]'"
    assert f"azure.core is not installed: run `{command}`.\n" in outcome.output


# ---------------------------------------------------------------- publish


def web_files(operator: Operator) -> dict[str, bytes]:
    (account,) = operator.azure.accounts.values()
    return account.containers["$web"]


def test_publish_uploads_to_the_clusters_web_site_what_differs_and_nothing_twice(
    operator: Operator,
) -> None:
    made(operator)
    files = web_files(operator)
    wanted = dict(files)
    files["bootstrap/loader.py"] = b"print('the agent before')\n"
    first = operator.deploy("publish")
    assert first.code == 0, first.output
    assert re.findall(r"^(\w+) http\S*/(\w+\.\w+)$", first.output, re.MULTILINE) == [
        ("published", "loader.py"),
    ]
    assert files == wanted
    again = operator.deploy("publish", "--cluster", str(operator.state))
    assert f"Release 1 of {NAME} says so already." in again.output
    assert "published" not in again.output
    assert len(mutations(operator.azure)) == 1


def test_publish_without_a_cluster_says_what_to_do(operator: Operator) -> None:
    outcome = operator.deploy("publish")
    assert outcome.code == 2
    assert "run `azure up`, or name a cluster's state folder with --cluster" in outcome.output


def test_publish_tells_in_azures_words_why_it_may_not(operator: Operator) -> None:
    made(operator)
    operator.azure.accounts.clear()
    outcome = operator.deploy("publish")
    assert outcome.code == 2
    assert outcome.output.startswith("deploy: publishing to cluster")
