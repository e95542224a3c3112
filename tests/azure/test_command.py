"""`azure up`, `plan` and `down`, as processes, against a strict fake of Azure on loopback."""

import base64
import json
import stat
import threading
from collections import Counter
from pathlib import Path

import pytest
import requests

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy.signing import public_key, signers_text
from deploy.userdata import user_data
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.model import Request
from tests.azure.fake_azure.operator import NAME, Operator
from tests.azure.operators import decoded, made, mutations, snapshot

# ---------------------------------------------------------------- up


def test_up_creates_the_cluster_of_the_plan(operator: Operator) -> None:
    outcome = operator.run("up", "--yes")
    assert outcome.code == 0, outcome.output
    azure = operator.azure
    assert Counter(body["type"].split("/")[1] for body in azure.resources.values()) == {
        "virtualNetworks": 1,
        "publicIPAddresses": 4,
        "networkSecurityGroups": 3,
        "loadBalancers": 1,
        "networkInterfaces": 3,
        "virtualMachines": 3,
        "disks": 3,  # Azure makes them with the machines
        "storageAccounts": 1,
    }
    probe = azure.body_of("loadBalancers", "loadBalancer")["properties"]["probes"][0]["properties"]
    assert probe["requestPath"] == "/probe.html"
    assert (probe["intervalInSeconds"], probe["probeThreshold"]) == (5, 1)
    assert probe["noHealthyBackendsBehavior"] == "AllProbedDown"
    subnet = azure.body_of("virtualNetworks", "network")["properties"]["subnets"][0]
    assert subnet["properties"]["defaultOutboundAccess"] is False
    zones = [azure.body_of("virtualMachines", f"node{i}")["zones"] for i in (1, 2, 3)]
    assert zones == [["1"], ["2"], ["3"]]
    assert azure.body_of("publicIPAddresses", "loadBalancerPublicIp")["zones"] == ["1", "2", "3"]
    rules = azure.body_of("networkSecurityGroups", "node1-nsg")["properties"]["securityRules"]
    ssh = next(rule["properties"] for rule in rules if rule["name"] == "AllowSshFromOperator")
    assert ssh["sourceAddressPrefix"] == "192.0.2.77/32"


def test_up_leaves_what_status_needs_and_the_web_site_serves_the_agent(operator: Operator) -> None:
    made(operator)
    key_file = operator.state / "cluster.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert len(bytes.fromhex(key_file.read_text())) == 32
    nodes = json.loads((operator.state / "nodes_info.json").read_text())
    assert list(nodes) == ["node1", "node2", "node3"]
    address = operator.azure.body_of("publicIPAddresses", "node2PublicIp")["properties"][
        "ipAddress"
    ]
    assert nodes["node2"] == {
        "ip_configuration_name": "default",
        "network_interface_id": operator.azure.body_of("networkInterfaces", "node2-nic")["id"],
        "private_ip": "10.0.0.5",
        "public_ip": address,
    }
    endpoints = json.loads((operator.state / "endpoints.json").read_text())
    balancer = operator.azure.body_of("publicIPAddresses", "loadBalancerPublicIp")
    assert endpoints["load_balancer"] == f"http://{balancer['properties']['ipAddress']}"
    served = {
        name: requests.get(
            f"{endpoints['web_site']}/bootstrap/{name}", verify=str(operator.certificate), timeout=5
        ).content
        for name in ("loader.py", "nodes_info.json")
    }
    assert served["loader.py"] == Path("agent/loader.py").read_bytes()
    # Anybody may read it: it names the nodes as the operator's file does, but no subscription.
    own = (operator.state / "nodes_info.json").read_text()
    assert f"/subscriptions/{SUBSCRIPTION}/" in own
    assert served["nodes_info.json"].decode() == own.replace(f"/subscriptions/{SUBSCRIPTION}/", "/")


def test_nothing_that_everybody_may_read_names_the_subscription(operator: Operator) -> None:
    made(operator)
    assert SUBSCRIPTION in (operator.state / "nodes_info.json").read_text()
    (account,) = operator.azure.accounts.values()
    files = account.containers["$web"]
    by_up = dict(files)
    files.clear()
    published = operator.deploy("publish")
    assert published.code == 0, published.output
    # A web server's folder, as the lab's is.
    nodes, folder = operator.state / "nodes_info.json", operator.folder / "site"
    operator.deploy("publish", "--to", str(folder), "--nodes-info", str(nodes))
    in_folder = {str(f): f.read_bytes() for f in folder.rglob("[!.]*") if f.is_file()}
    for served in (by_up, files, in_folder):
        assert len(served) >= 7
        for name, data in served.items():
            assert SUBSCRIPTION.encode() not in data, name


def test_a_vm_boots_with_exactly_the_document_that_user_data_prints(operator: Operator) -> None:
    settings = {"peer_address": "private", "pause_seconds": 8, "scheduled_events": False}
    settings |= {"stop_seconds": 20, "unhealthy": "stop"}
    operator.settings(period_seconds=10, look_seconds=5, **settings)
    made(operator)
    nodes = json.loads((operator.state / "nodes_info.json").read_text())
    endpoints = json.loads((operator.state / "endpoints.json").read_text())
    sent = operator.azure.body_of("virtualMachines", "node3")["properties"]["osProfile"][
        "customData"
    ]
    assert base64.b64decode(sent).decode() == user_data(
        "node3",
        nodes,
        bootstrap_url=f"{endpoints['web_site']}/bootstrap",
        cluster_key=(operator.state / "cluster.key").read_text().strip(),
        period_seconds=10,
        look_seconds=5,
        pause_seconds=8,
        peer_address="private",
        scheduled_events=False,
        cluster_port=80,
        cluster=NAME,
        allowed_signers=signers_text([public_key(operator.folder / ".ssh" / "id_ed25519")]),
        setup={},
        service={"stop_seconds": 20, "unhealthy": "stop"},
    )


def test_up_makes_no_request_twice_that_azure_would_answer_the_same(operator: Operator) -> None:
    assert operator.run("up", "--yes").code == 0
    answered = Counter(
        (
            r.request.method,
            r.request.path,
            str(sorted(r.request.query.items())),
            r.request.data,
            r.answer,
        )
        for r in operator.azure.log.records
    )
    twice = {(method, path.lower()) for (method, path, *_), times in answered.items() if times > 1}
    # But for the group: no other `up` took it before it is written, and before each machine.
    assert twice == {("GET", f"/subscriptions/{SUBSCRIPTION}/resourcegroups/{NAME}")}


def test_a_second_up_changes_nothing_within_three_seconds(operator: Operator) -> None:
    made(operator)
    before = snapshot(operator)
    outcomes = [operator.execute("up") for _ in range(3)]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes[0].output
    assert mutations(operator.azure) == []
    assert snapshot(operator) == before
    # A machine that is busy with something else stretches the wall's time: it is either that of
    # the processor, or shorter than three seconds by the time that loading the SDK takes here.
    loading = operator.execute("up", "--subscription", "", "--nodes", "3")
    assert loading.code == 2
    fastest = min(outcome.seconds for outcome in outcomes)
    assert fastest < 3 or fastest - loading.seconds < 1
    assert min(outcome.cpu_seconds for outcome in outcomes) < 3


class Together:
    """Lets requests through once all that need nothing of each other are there; counts failures.

    The storage account waits in the first lot until the last interface is asked for.
    """

    SECONDS = 20
    """Longest wait for the others; in vain where one is only begun when another is done."""

    def __init__(self) -> None:
        self.lots = {"first": threading.Barrier(9), "nics": threading.Barrier(3)}
        self.lots["machines"] = threading.Barrier(3)
        self.interfaces_begun = threading.Event()
        self.passed: list[str] = []
        self.alone: list[str] = []

    def __call__(self, request: Request) -> None:
        kind = request.path.split("/")[-2]
        if request.method != "PUT" or kind not in LOTS:
            return
        try:
            self.lots[LOTS[kind]].wait(self.SECONDS)
            self.passed.append(request.path)
        except threading.BrokenBarrierError:
            self.alone.append(request.path)
        if kind == "networkInterfaces":
            self.interfaces_begun.set()
        if kind == "storageAccounts" and not self.interfaces_begun.wait(self.SECONDS):
            self.alone.append(request.path)


LOTS = {
    "virtualNetworks": "first",
    "networkSecurityGroups": "first",
    "publicIPAddresses": "first",
    "storageAccounts": "first",
    "networkInterfaces": "nics",
    "virtualMachines": "machines",
}
"""What can be made at the same time; a load balancer comes between the first two."""


def test_up_takes_its_longest_chain_and_not_its_sum(operator: Operator) -> None:
    operator.azure.gate = together = Together()
    outcome = operator.run("up", "--yes")
    assert together.alone == []
    assert outcome.code == 0, outcome.output
    assert len(together.passed) == 15


@pytest.mark.parametrize("count", [5, 7])
def test_up_spreads_five_and_seven_nodes_over_the_zones(operator: Operator, count: int) -> None:
    made(operator, "--nodes", str(count))
    machines = [operator.azure.body_of("virtualMachines", f"node{i + 1}") for i in range(count)]
    assert [body["zones"] for body in machines] == [[str(i % 3 + 1)] for i in range(count)]
    nodes = json.loads((operator.state / "nodes_info.json").read_text())
    assert [entry["private_ip"] for entry in nodes.values()] == [
        f"10.0.0.{4 + i}" for i in range(count)
    ]


def test_up_registers_what_a_fresh_subscription_lacks(operator: Operator) -> None:
    for name in operator.azure.providers:
        operator.azure.providers[name] = "NotRegistered"
    made(operator)
    assert set(operator.azure.providers.values()) == {"Registered"}


def test_up_brings_a_lost_vm_back_with_its_name_address_and_place(operator: Operator) -> None:
    made(operator)
    before = snapshot(operator)
    lost = operator.azure.body_of("virtualMachines", "node2")["id"].lower()
    del operator.azure.resources[lost]
    assert operator.run("plan").code == 3
    outcome = operator.run("up", "--yes")
    assert outcome.code == 0, outcome.output
    assert [request.path.split("/")[-1] for request in mutations(operator.azure)] == ["node2"]
    assert snapshot(operator) == before


def test_the_key_is_in_the_custom_data_and_nowhere_else(operator: Operator) -> None:
    outcomes = [operator.run(verb, *more) for verb, *more in (("up", "--yes"), ("up",), ("plan",))]
    key = (operator.state / "cluster.key").read_text().strip()
    assert all(outcome.code == 0 and key not in outcome.output for outcome in outcomes)
    for record in operator.azure.log.records:
        request = record.request
        data = request.data.decode(errors="replace")
        if request.method == "PUT" and "/virtualMachines/" in request.path:
            assert key in json.dumps(decoded(json.loads(data)))
        else:
            assert key not in f"{request.path}{request.query}{request.headers}{data}"
        assert key.encode() not in record.answer
