"""The fake of Azure answers as Azure did in recordings: `fake_azure/facts.json` has them."""

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy.azure.resources import Body, Scope
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.operator import NAME, Operator
from tests.azure.fake_azure.server import TOKEN
from tests.azure.operators import (
    ACCOUNT,
    ADDRESS,
    BALANCER,
    FIREWALL,
    NETWORK,
    NIC,
    SCOPE,
    VM,
    an_operator,
    creation,
    send,
    wanted,
)

FACTS: Any = json.loads((Path(__file__).parent / "fake_azure" / "facts.json").read_text())
TOLD = (
    "Azure-AsyncNotification",
    "Azure-AsyncOperation",
    "ETag",
    "Location",
    "Retry-After",
    "X-Ms-Failure-Cause",
)
"""The headers that the facts are about."""

EVERY = (NETWORK, FIREWALL, ADDRESS, BALANCER, NIC, VM, ACCOUNT)
NOWHERE = Scope(SUBSCRIPTION, "no-such-group")
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourcegroups/{NAME}"


def headers(answer: requests.Response) -> list[str]:
    return [name for name in TOLD if name in answer.headers]


def path_of(key: str, scope: Scope = SCOPE) -> str:
    resource = wanted(key)
    return scope.id_of(resource.kind, resource.name)


def state_of(answer: requests.Response) -> Any:
    return answer.json()["properties"]["provisioningState"] if answer.content else None


def put(operator: Operator, key: str, body: Body | None = None) -> dict[str, Any]:
    answer = send(operator, "PUT", path_of(key), body or creation(key))
    return {
        "status": answer.status_code,
        "state": state_of(answer),
        "headers": headers(answer),
    }


def keys(value: Any, path: str = "") -> Iterator[str]:
    """Every key of a body, with the path that leads to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            own = f"{path}.{key}" if path else key
            yield own
            yield from keys(inner, own)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{path}[]")


def listed(groups: dict[str, list[str]]) -> set[str]:
    """The facts' keys, with their paths."""
    return {f"{path}.{name}" if path else name for path, names in groups.items() for name in names}


@pytest.fixture
def standing(standing: Operator) -> Iterator[Operator]:
    """A whole cluster; what a test does to it is undone."""
    azure = standing.azure
    before = copy.deepcopy((azure.groups, azure.resources, azure.accounts))
    yield standing
    azure.operations.clear()
    azure.operation_seconds = 0.0
    azure.groups, azure.resources, azure.accounts = before


@pytest.mark.parametrize("key", EVERY)
def test_a_resource_is_created_and_changed_with_a_recorded_status_state_and_headers(
    standing: Operator, key: str
) -> None:
    operator = standing
    before = operator.azure.resources.pop(path_of(key).lower())
    facts = FACTS["resources"][wanted(key).kind]["puts"]
    assert put(operator, key) in facts
    if key == NIC:
        return  # nobody has recorded how one is changed
    settle(operator, key)
    body = operator.azure.shown(before) if key == VM else creation(key)
    assert put(operator, key, body) in facts


def settle(operator: Operator, key: str) -> None:
    """Wait until the fake has ended what it does to a resource."""
    deadline = time.monotonic() + 10
    while state_of(send(operator, "GET", path_of(key))) != "Succeeded":
        assert time.monotonic() < deadline


@pytest.mark.parametrize("key", EVERY)
def test_a_resource_tells_the_recorded_keys_and_no_others(standing: Operator, key: str) -> None:
    facts = FACTS["resources"][wanted(key).kind]
    answer = send(standing, "GET", path_of(key))
    told = set(keys(answer.json()))
    sent = set(keys(creation(key))) - {"properties.osProfile.customData"}
    assert listed(facts["keys"]) - told == set()
    assert told - listed(facts["keys"]) - listed(facts["unrecorded"]) - sent == set()
    assert headers(answer) == facts["get_headers"]


def test_a_group_and_a_blob_service_tell_the_recorded_keys(standing: Operator) -> None:
    group = send(standing, "GET", GROUP).json()
    assert {key for key in keys(group) if not key.startswith("tags.")} == listed(
        FACTS["group"]["keys"]
    )
    blobs = send(standing, "GET", f"{path_of(ACCOUNT)}/blobServices/default").json()
    more = {"properties.staticWebsite.indexDocument"}  # only where it is switched on
    assert set(keys(blobs)) - more == listed(FACTS["blob service"]["keys"])


@pytest.mark.parametrize("key", [VM, NIC, ADDRESS, FIREWALL, NETWORK, BALANCER, ACCOUNT])
def test_a_deletion_begins_with_the_recorded_status_and_headers(
    standing: Operator, key: str
) -> None:
    own = path_of(key)
    for other in [o for o in standing.azure.resources if o != own.lower() and key != ACCOUNT]:
        del standing.azure.resources[other]  # so that nobody uses it
    answer = send(standing, "DELETE", own)
    facts = FACTS["resources"][wanted(key).kind]["delete"]
    assert {"status": answer.status_code, "headers": headers(answer)} == facts
    assert answer.content == b""


# ---------------------------------------------------------------- how an operation goes


def polled(operator: Operator, url: str, *, ended: bool) -> requests.Response:
    """What an operation's address says, while it lasts or at its end."""
    deadline = time.monotonic() + 10
    while True:
        certificate, token = str(operator.certificate), {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.get(url, headers=token, verify=certificate, timeout=5)
        over = answer.status_code == 200 and "InProgress" not in answer.text
        if over == ended:
            return answer
        assert time.monotonic() < deadline


def begun(operator: Operator, who: str) -> str:
    """Begin an operation of somebody's; returns where to ask how it goes."""
    if who == "a group":
        return str(send(operator, "DELETE", GROUP).headers["Location"])
    key = {"Microsoft.Network": NETWORK, "Microsoft.Compute": VM, "Microsoft.Storage": ACCOUNT}[who]
    operator.azure.resources.pop(path_of(key).lower())
    answer = send(operator, "PUT", path_of(key), creation(key))
    return str(answer.headers.get("Azure-AsyncOperation") or answer.headers["Location"])


@pytest.mark.parametrize("who", sorted({fact["of"] for fact in FACTS["polls"]}))
def test_an_operation_tells_how_it_goes_as_recorded(standing: Operator, who: str) -> None:
    standing.azure.operation_seconds = 0.5
    url = begun(standing, who)
    for fact in (fact for fact in FACTS["polls"] if fact["of"] == who):
        answer = polled(standing, url, ended=fact["ended"])
        assert (answer.status_code, headers(answer)) == (fact["status"], fact["headers"])
        if fact["body"] is None:
            assert answer.content == b""
        elif fact["body"] == "the resource":
            assert answer.json()["id"] == path_of(ACCOUNT)
        else:
            assert fact["body"].items() <= answer.json().items()
            assert sorted(answer.json()) == fact["keys"]


# ---------------------------------------------------------------- refusals


def busy(operator: Operator, key: str) -> None:
    """Azure is at work on a resource, and stays so."""
    operator.azure.resources[path_of(key).lower()]["properties"]["provisioningState"] = "Updating"


def named_too_early(operator: Operator, key: str, named: str) -> Any:
    busy(operator, named)
    return send(operator, "PUT", path_of(key), creation(key))


def balancer_without_its_address(operator: Operator) -> Any:
    body = creation(BALANCER)
    frontend = body["properties"]["frontendIPConfigurations"][0]["properties"]
    frontend["publicIPAddress"]["id"] = SCOPE.id_of("public address", "nowhere")
    return send(operator, "PUT", path_of(BALANCER), body)


def keys_too_early(operator: Operator) -> Any:
    operator.azure.operation_seconds = 5
    operator.azure.resources.clear()
    operator.azure.accounts.clear()
    send(operator, "PUT", path_of(ACCOUNT), creation(ACCOUNT))
    return send(operator, "POST", f"{path_of(ACCOUNT)}/listKeys")


def balancer_address(operator: Operator) -> Any:
    own = SCOPE.id_of("public address", "loadBalancerPublicIp").lower()
    operator.azure.resources[own]["properties"]["provisioningState"] = "Updating"
    return send(operator, "PUT", path_of(BALANCER), creation(BALANCER))


SITUATIONS: dict[str, Callable[[Operator], requests.Response]] = {
    "what is read is in no group": lambda o: send(o, "GET", path_of(NETWORK, NOWHERE)),
    "what is deleted is in no group": lambda o: send(o, "DELETE", path_of(VM, NOWHERE)),
    "what is read is not there": lambda o: send(o, "GET", path_of(NETWORK) + "s"),
    "a blob service without its account": lambda o: send(
        o, "GET", f"{path_of(ACCOUNT)}s/blobServices/default"
    ),
    "a group in no region": lambda o: send(o, "PUT", f"{GROUP}2", {"location": "BadLocation"}),
    "a load balancer names an address that is not there": balancer_without_its_address,
    "a load balancer names an address that is not ready": balancer_address,
    "an interface names a subnet that is not ready": lambda o: named_too_early(o, NIC, NETWORK),
    "a network is changed that is being changed": lambda o: named_too_early(o, NETWORK, NETWORK),
    "an address in use is deleted": lambda o: send(o, "DELETE", path_of(ADDRESS)),
    "a network in use is deleted": lambda o: send(o, "DELETE", path_of(NETWORK)),
    "the keys of an account that is not ready": keys_too_early,
    "an account with a bad name": lambda o: send(
        o, "PUT", SCOPE.id_of("storage account", "Bad-Name"), creation(ACCOUNT)
    ),
    "an account of a kind that does not fit": lambda o: send(
        o, "PUT", path_of(ACCOUNT), creation(ACCOUNT) | {"kind": "Storage"}
    ),
}


def test_every_recorded_refusal_has_its_situation() -> None:
    assert list(FACTS["refusals"]) == list(SITUATIONS)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_refusal_is_worded_as_recorded(standing: Operator, situation: str) -> None:
    answer = SITUATIONS[situation](standing)
    error = answer.json()["error"]
    assert {
        "status": answer.status_code,
        "code": error["code"],
        "details": [detail["code"] for detail in error.get("details", [])],
        "headers": headers(answer),
    } == FACTS["refusals"][situation]
    assert error["message"]


def test_a_group_is_created_changed_and_deleted_as_recorded(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with an_operator(certificate, tmp_path) as operator:
        body = {"location": "westeurope"}
        puts = [send(operator, "PUT", GROUP, body) for _ in range(2)]
        told = [{"status": answer.status_code, "headers": headers(answer)} for answer in puts]
        assert told == FACTS["group"]["puts"]
        deletion = send(operator, "DELETE", GROUP)
        told_last = {"status": deletion.status_code, "headers": headers(deletion)}
        assert told_last == FACTS["group"]["delete"]
