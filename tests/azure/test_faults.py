"""What goes wrong at Azure or on the way: `up` waits or says so, and the next `up` ends it."""

import base64
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy.azure.state import fingerprint
from tests.azure.fake_azure.model import Fault, Request, is_poll
from tests.azure.fake_azure.operator import NAME, Operator
from tests.azure.operators import an_operator, made, mutations, snapshot

KINDS = ("publicIPAddresses", "loadBalancers", "virtualMachines", "storageAccounts", "$web")

ONE_OF_EACH = (
    "virtualNetworks",
    "networkSecurityGroups/node1",
    "publicIPAddresses/node2",
    "storageAccounts",
    "loadBalancers",
    "networkInterfaces/node3",
    "virtualMachines/node1",
)


def puts(end: str) -> Callable[[Request], bool]:
    """Picks the PUT of one resource, or of a file of the web site."""
    return lambda request: request.method == "PUT" and end in request.path.replace("%24", "$")


def changes(request: Request) -> bool:
    """Picks what changes something."""
    return request.method != "GET" and not request.path.endswith("/token")


class Nth:
    """Picks the nth request of some, at first of those that change something."""

    def __init__(self, number: int, where: Callable[[Request], bool] = changes) -> None:
        self.number, self.where = number, where

    def __call__(self, request: Request) -> bool:
        if not self.where(request):
            return False
        self.number -= 1
        return self.number == 0


@pytest.fixture(scope="module")
def undisturbed(certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    with an_operator(certificate, tmp_path_factory.mktemp("undisturbed")) as operator:
        return snapshot(made(operator))


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (what, kind)
        for what in ("throttled", "unavailable", "cut", "cut after")
        for kind in KINDS
        if (what, kind) != ("throttled", "$web")  # the blob service throttles with 503
    ],
)
def test_up_waits_out_what_passes(
    operator: Operator, undisturbed: Any, what: str, kind: str
) -> None:
    operator.azure.faults.append(Fault(puts(kind), what, times=2))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 0, outcome.output
    assert operator.azure.faults[0].times == 0
    assert snapshot(operator) == undisturbed


def test_up_waits_for_what_azure_makes_of_requests_whose_answers_were_lost(
    operator: Operator, undisturbed: Any
) -> None:
    """The SDK sends them again, and Azure, which is at work on the first ones, refuses that."""
    operator.azure.operation_seconds = 2.0
    operator.azure.faults += [Fault(puts(kind), "cut after") for kind in ONE_OF_EACH]
    made(operator)
    assert {fault.times for fault in operator.azure.faults} == {0}
    assert snapshot(operator) == undisturbed


def test_up_waits_for_changes_whose_answers_were_lost(operator: Operator, undisturbed: Any) -> None:
    made(operator)
    for kind in ONE_OF_EACH[:-1]:  # a machine is never changed in place
        path = next(path for path in operator.azure.resources if kind.lower() in path)
        del operator.azure.resources[path]["tags"]["made-by"]
        operator.azure.faults.append(Fault(puts(kind), "cut after"))
    operator.azure.operation_seconds = 2.0
    made(operator)
    assert {fault.times for fault in operator.azure.faults} == {0}
    assert snapshot(operator) == undisturbed


def test_whatever_azure_calls_it_that_it_is_at_work_is_waited_for(
    operator: Operator, undisturbed: Any
) -> None:
    operator.azure.operation_seconds = 2.0
    codes = {"node1": "OperationNotAllowed", "node2": "Conflict", "node3": "SomethingNew"}
    for node, code in codes.items():
        machine = puts(f"virtualMachines/{node}")
        operator.azure.faults += [
            Fault(machine, "cut after"),
            Fault(Nth(2, machine), "refused", code=code, message="I am still at it."),
        ]
    made(operator)
    assert {fault.times for fault in operator.azure.faults} == {0}
    assert snapshot(operator) == undisturbed


@pytest.mark.parametrize("what", ["preempted", "fails"])
def test_what_a_newer_operation_ended_is_looked_at_and_made_again_where_it_failed(
    operator: Operator, undisturbed: Any, what: str
) -> None:
    codes = {"node1": "OperationPreempted", "node2": "Canceled", "node3": "Conflict"}
    operator.azure.faults += [
        Fault(puts(f"virtualMachines/{node}"), what, code=code, message="A newer one goes on.")
        for node, code in codes.items()
    ]
    made(operator)
    assert {fault.times for fault in operator.azure.faults} == {0}
    assert snapshot(operator) == undisturbed


def test_the_switch_of_the_web_site_waits_for_an_account_at_which_azure_is_at_work(
    operator: Operator, undisturbed: Any
) -> None:
    busy = Fault(puts("blobServices"), "refused", times=2, code="StorageAccountOperationInProgress")
    operator.azure.faults.append(busy)
    made(operator)
    assert busy.times == 0
    assert snapshot(operator) == undisturbed


def test_an_interface_that_azure_reserves_for_a_machine_that_is_gone_is_waited_for(
    operator: Operator, undisturbed: Any
) -> None:
    operator.azure.faults.append(
        Fault(
            puts("virtualMachines/node2"),
            "refused",
            times=2,
            status=400,
            code="NicReservedForAnotherVm",
            message="Nic(s) in request is reserved for another Virtual Machine for 180 seconds.",
        )
    )
    made(operator)
    assert snapshot(operator) == undisturbed


@pytest.mark.parametrize("there", [False, True])
def test_a_conflict_that_no_waiting_ends_is_told_at_once(operator: Operator, there: bool) -> None:
    if there:
        made(operator)
        operator.azure.body_of("loadBalancers", "loadBalancer")["tags"].clear()
    operator.azure.faults.append(
        Fault(puts("loadBalancers"), "refused", times=9, code="Conflict", message="Never.")
    )
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "deploy: load balancer loadBalancer: Conflict: Never." in outcome.output
    assert operator.azure.faults[0].times >= 7  # the second, where it seemed to have changed


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_down_takes_a_group_that_is_gone_when_it_asks_again_for_deleted(
    operator: Operator, seconds: float
) -> None:
    made(operator)
    operator.azure.operation_seconds = seconds
    operator.azure.faults.append(Fault(lambda r: r.method == "DELETE", "cut after"))
    outcome = operator.run("down", "--yes")
    assert outcome.code == 0, outcome.output
    assert operator.azure.groups == {}
    assert not operator.state.exists()


def test_down_waits_for_a_deletion_that_somebody_else_began(operator: Operator) -> None:
    made(operator)
    operator.azure.operation_seconds = 2.0
    operator.azure.faults += [
        Fault(lambda r: r.method == "DELETE", "cut after"),
        Fault(
            Nth(2, lambda r: r.method == "DELETE"),
            "refused",
            code="ResourceGroupBeingDeleted",
            message="The resource group is in deprovisioning state.",
        ),
    ]
    outcome = operator.run("down", "--yes")
    assert outcome.code == 0, outcome.output
    assert operator.azure.groups == {}


def test_up_tries_again_what_a_neighbour_kept_busy(operator: Operator, undisturbed: Any) -> None:
    operator.azure.faults.append(Fault(puts("networkInterfaces/node2-nic"), "busy", times=2))
    made(operator)
    assert snapshot(operator) == undisturbed


def test_up_waits_for_the_container_of_a_web_site_that_was_just_switched_on(
    operator: Operator, undisturbed: Any
) -> None:
    operator.azure.web_site_seconds = 3.0
    made(operator)
    assert snapshot(operator) == undisturbed


def test_a_wait_beyond_patience_is_told_and_not_waited(operator: Operator) -> None:
    operator.azure.faults.append(Fault(puts("virtualNetworks"), "throttled", retry_after=3600))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert outcome.seconds < 20
    assert "deploy: network network: TooManyRequests: Too many requests." in outcome.output


def test_a_machine_without_capacity_is_told_and_the_next_up_goes_on(
    operator: Operator, undisturbed: Any
) -> None:
    operator.azure.faults.append(Fault(puts("virtualMachines/node2"), "fails"))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert (
        "deploy: virtual machine node2: AllocationFailed: Allocation failed. We do not have"
        " sufficient capacity in this zone.\n" in outcome.output
    )
    there = next(line for line in outcome.output.splitlines() if line.startswith("There and as"))
    assert "virtual machine node1" in there
    assert "virtual machine node2" not in there
    assert "Run `azure up` again" in outcome.output
    plan = operator.run("plan")
    assert plan.code == 3
    assert "repair    virtual machine node2" in plan.output
    operator.azure.log.records.clear()
    made_again = operator.run("up", "--yes")
    assert made_again.code == 0, made_again.output
    assert len(mutations(operator.azure)) == 1
    assert snapshot(operator) == undisturbed


DETAILS = [
    {"code": "SecurityRuleInvalidPriority", "message": "Priority 99 is out\n of range 100-4096."},
    {"code": "Outer", "message": "Outer.", "details": [{"code": "Inner", "message": "Inmost."}]},
    {"code": "InvalidRequestFormat", "message": "Cannot parse the request."},
]
POLICY = {
    "type": "PolicyViolation",
    "info": {
        "policyAssignmentDisplayName": "Everything has an owner",
        "policyAssignmentParameters": {"tagName": {"value": "CostCenter"}},
        "evaluationDetails": {
            "evaluatedExpressions": [
                {"expression": "tags[CostCenter]", "operator": "Exists", "targetValue": "false"}
            ]
        },
        "policyExemptionIds": [],
    },
}


@pytest.mark.parametrize("what", ["refused", "fails"])
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"details": DETAILS},
            "Outer. Inner: Inmost. InvalidRequestFormat: Cannot parse the request."
            " SecurityRuleInvalidPriority: Priority 99 is out of range 100-4096.",
        ),
        (
            {"details": None, "additionalInfo": [POLICY]},
            "InvalidRequestFormat: Cannot parse the request. PolicyViolation:"
            " policyAssignmentDisplayName = Everything has an owner,"
            " policyAssignmentParameters.tagName.value = CostCenter,"
            " evaluationDetails.evaluatedExpressions.operator = Exists,"
            " evaluationDetails.evaluatedExpressions.targetValue = false,"
            " evaluationDetails.evaluatedExpressions.expression = tags[CostCenter].",
        ),
    ],
)
def test_the_whole_reason_of_a_refusal_is_told_the_shortest_part_first(
    operator: Operator, what: str, more: Any, told: str
) -> None:
    operator.azure.faults.append(
        Fault(
            puts("virtualNetworks"),
            what,
            status=400,
            code="InvalidRequestFormat",
            message="Cannot parse the request.",
            more=more,
        )
    )
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert outcome.output.splitlines()[-1] == f"deploy: network network: {told}"


def test_what_needs_a_failed_resource_is_not_begun_and_the_rest_is_made(
    operator: Operator, undisturbed: Any
) -> None:
    operator.azure.faults.append(
        Fault(puts("loadBalancers"), "fails", code="QuotaExceeded", message="No more of them.")
    )
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "deploy: load balancer loadBalancer: QuotaExceeded: No more of them." in outcome.output
    never = next(line for line in outcome.output.splitlines() if line.startswith("Not begun"))
    assert never.count("network interface") == never.count("virtual machine") == 3
    assert "release" not in never
    made(operator)
    assert snapshot(operator) == undisturbed


def test_no_machine_is_begun_before_the_web_site_serves_its_agent(operator: Operator) -> None:
    operator.azure.faults.append(Fault(puts("storageAccounts"), "fails", message="Not now."))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "virtualMachines" not in "".join(r.path for r in mutations(operator.azure))
    assert operator.azure.body_of("networkInterfaces", "node3-nic")


def test_ctrl_c_ends_up_at_once_and_the_next_up_goes_on(
    operator: Operator, undisturbed: Any
) -> None:
    operator.azure.operation_seconds = 3.0
    process, output = operator.start("up", "--yes")
    deadline = time.monotonic() + 20
    while len(operator.azure.operations) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    begun = time.monotonic()
    process.join(20)
    assert process.exitcode == 130
    assert time.monotonic() - begun < 1
    assert "Under way at Azure: network network" in output.read_text()
    assert "deploy: stopped at your request." in output.read_text()
    assert "wait for  network network" in operator.run("plan").output
    operator.azure.operation_seconds = 0
    made(operator)
    assert snapshot(operator) == undisturbed


def keys_of_machines(operator: Operator) -> set[str]:
    every = [*operator.azure.resources.values()]
    machines = [body["properties"] for body in every if body["type"].endswith("virtualMachines")]
    sent = [base64.b64decode(machine["osProfile"]["customData"]) for machine in machines]
    files = [file for document in sent for file in yaml.safe_load(document)["write_files"]]
    contents = [file["content"] for file in files if file["path"] == "/etc/bootstrap/cluster.key"]
    return {content.strip() for content in contents}


def key_of(operator: Operator) -> str:
    return (operator.state / "cluster.key").read_text().strip()


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_two_ups_at_the_same_time_make_one_key(operator: Operator, attempt: int) -> None:
    operator.azure.operation_seconds = 0.1 * attempt
    processes = [operator.start("up", "--yes") for _ in range(2)]
    for process, _ in processes:
        process.join(60)
    said = [output.read_text() for _, output in processes]
    assert sorted(process.exitcode for process, _ in processes) == [0, 2], said
    assert sum("another `azure up` or `down` is at work" in text for text in said) == 1
    assert keys_of_machines(operator) == {key_of(operator)}


def test_down_waits_for_no_up_that_is_at_work_and_takes_nothing(operator: Operator) -> None:
    operator.azure.operation_seconds = 1.0
    process, output = operator.start("up", "--yes")
    deadline = time.monotonic() + 20
    while len(operator.azure.operations) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    outcome = operator.run("down", "--yes")
    assert outcome.code == 2
    assert "is at work on this cluster: wait until it ends" in outcome.output
    process.join(60)
    assert process.exitcode == 0, output.read_text()


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_two_computers_that_make_the_same_cluster_make_machines_with_one_key(
    certificate: tuple[Path, Path], tmp_path: Path, seconds: float
) -> None:
    with an_operator(certificate, tmp_path / "one") as one:
        one.azure.operation_seconds = seconds
        two = Operator(one.azure, tmp_path / "two", certificate[0])
        looks = threading.Barrier(2, timeout=30)

        def both_have_looked(request: Request) -> None:
            if request.method == "PUT" and request.path.lower().endswith(f"/{NAME}"):
                looks.wait()  # neither writes its tag before the other has looked

        one.azure.gate = both_have_looked
        processes = [each.start("up", "--yes") for each in (one, two)]
        for process, _ in processes:
            process.join(60)
        said = [output.read_text() for _, output in processes]
        tag = one.azure.groups[NAME]["tags"]["key"]
        winner = next(each for each in (one, two) if tag == fingerprint(key_of(each)))
        assert keys_of_machines(one) <= {key_of(winner)}, said
        if not seconds:  # else a resource that the other one is making may be the first reason
            assert any("perhaps by another `azure up`" in text for text in said), said
        one.azure.operation_seconds = 0
        one.azure.gate = lambda _: None
        made(winner)
        assert keys_of_machines(one) == {key_of(winner)}


def test_after_kill_9_at_any_step_the_next_up_makes_exactly_the_same(
    certificate: tuple[Path, Path], tmp_path: Path, undisturbed: Any
) -> None:
    def killed(number: int, what: str) -> str:
        with an_operator(certificate, tmp_path / f"{what} {number}") as operator:
            operator.azure.operation_seconds = 0.1  # so that something is under way
            operator.azure.faults.append(Fault(Nth(number), what))
            if operator.run("up", "--yes").code == 0:
                return "not killed"
            outcome = operator.run("up", "--yes")
            same = outcome.code == 0 and snapshot(operator) == undisturbed
            return "same" if same else f"{what} at step {number}: {outcome.output}"

    steps = [(number, what) for number in range(1, 29) for what in ("kill", "kill after")]
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda step: killed(*step), steps))
    assert [end for end in ends if end not in ("same", "not killed")] == []
    # A group, 16 resources, the web site's switch, 7 files: each of these was the last one once.
    assert ends.count("same") == 2 * 25


# ---------------------------------------------------------------- who is not Azure

ANSWERS = ("html", "html as json", "nothing", "a list", "an empty object", "nested")


def always(_: Request) -> bool:
    return True


def of_manager(request: Request) -> bool:
    return request.path.startswith("/subscriptions/")


def of_blobs(request: Request) -> bool:
    return request.path.startswith("/blob/")


def looks_in_group(request: Request) -> bool:
    return request.method == "GET" and "/providers/Microsoft.Network/" in request.path


def polls(request: Request) -> bool:
    return is_poll(request.path)


def tells_who_is_not_azure(operator: Operator, output: str) -> bool:
    host = operator.azure.url.removeprefix("https://")
    last = output.splitlines()[-1]
    told = f"{host} does not answer as Azure does" in last and last.endswith(": a proxy?")
    return told and last.startswith("deploy: ") and "Traceback" not in output


@pytest.mark.parametrize("what", ANSWERS)
@pytest.mark.parametrize("verb", ["plan", "up", "down"])
def test_whoever_answers_in_azures_place_is_told_in_one_sentence(
    operator: Operator, verb: str, what: str
) -> None:
    operator.azure.faults.append(Fault(of_manager, what, times=99))
    outcome = operator.run(verb, *([] if verb == "plan" else ["--yes"]))
    assert outcome.code == 2
    assert tells_who_is_not_azure(operator, outcome.output), outcome.output


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (where, what)
        for where in (looks_in_group, puts("virtualNetworks/network"), puts(f"groups/{NAME}"))
        for what in ANSWERS
        if (where, what) != (looks_in_group, "an empty object")  # the SDK takes it as a list
    ],
)
def test_who_answers_one_request_in_azures_place_is_told_in_one_sentence(
    operator: Operator, where: Callable[[Request], bool], what: str
) -> None:
    if where is looks_in_group:
        made(operator)
        operator.settings(ssh_from="192.0.2.0/24")
    operator.azure.faults.append(Fault(where, what, times=99))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert tells_who_is_not_azure(operator, outcome.output), outcome.output


@pytest.mark.parametrize("what", ["html", "html as json", "a list"])
def test_who_answers_a_poll_in_azures_place_is_told_in_one_sentence(
    operator: Operator, what: str
) -> None:
    operator.azure.operation_seconds = 0.5
    operator.azure.faults.append(Fault(polls, what, times=99))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert tells_who_is_not_azure(operator, outcome.output), outcome.output


@pytest.mark.parametrize("what", ["nothing", "an empty object"])
def test_a_poll_without_a_status_is_no_traceback(operator: Operator, what: str) -> None:
    operator.azure.operation_seconds = 0.5
    operator.azure.faults.append(Fault(polls, what, times=99))
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert outcome.output.splitlines()[-1].startswith("deploy: ")
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize("what", ANSWERS)
def test_who_answers_in_the_place_of_storage_is_told_in_one_sentence(
    operator: Operator, what: str
) -> None:
    made(operator)
    operator.azure.faults.append(Fault(of_blobs, what, times=99))
    outcome = operator.deploy("publish")
    assert outcome.code == 2
    assert tells_who_is_not_azure(operator, outcome.output), outcome.output


@pytest.mark.parametrize("what", ANSWERS)
def test_who_answers_in_the_place_of_the_sign_in_is_no_traceback(
    operator: Operator, what: str
) -> None:
    operator.azure.faults.append(Fault(always, what, times=999))
    operator.settings(ssh_from="192.0.2.0/24")
    outcome = operator.run("plan")
    assert outcome.code == 2
    assert outcome.output.splitlines()[-1].startswith("deploy: ")
    assert "Traceback" not in outcome.output
