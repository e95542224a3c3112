"""Releases of a cluster on Azure: the verbs that publish them, against the fake's storage."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy import Refusal, operate
from deploy.azure.state import fingerprint
from deploy.releases import refuse_other_times
from deploy.settings import Settings
from deploy.signing import why_unverified
from tests.azure.fake_azure.azure import SUBSCRIPTION
from tests.azure.fake_azure.blobs import STORAGE_TOKEN
from tests.azure.fake_azure.model import Fault, Request
from tests.azure.fake_azure.operator import NAME, Operator, Outcome
from tests.azure.operators import SCOPE, an_operator, made, mutations
from tests.azure.test_verbs import web_files
from tests.web import open_web, status_page


def release_told(operator: Operator) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(web_files(operator)["bootstrap/release.json"])
    return told


def on_cluster(operator: Operator, *words: str) -> Outcome:
    """A verb on the operator's cluster, whose made-up machines nobody reaches."""
    outcome = operator.deploy(*words, "--cluster", str(operator.state))
    assert "whether any has taken it, is not known" in outcome.output, outcome.output
    assert outcome.code == 1, outcome.output
    return outcome


def test_up_keeps_what_the_verbs_have_changed_and_brings_what_it_is_asked_for(
    operator: Operator,
) -> None:
    made(operator)
    on_cluster(operator, "order", "node3", "node1", "node2")
    on_cluster(operator, "drain", "node2")
    assert operator.run("plan").code == 0
    operator.settings(peer_address="private")
    plan = operator.run("plan")
    assert "change    release\n          peer_address: public -> private" in plan.output
    made(operator, "--peer-address", "private")
    told = release_told(operator)
    assert list(told["nodes"]) == ["node3", "node1", "node2"]
    assert (told["drained"], told["settings"]["peer_address"]) == (["node2"], "private")
    assert told["generation"] == 4


def test_of_two_operators_on_two_computers_the_second_is_refused_by_storage(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with an_operator(certificate, tmp_path / "one") as one:
        made(one)
        two = Operator(one.azure, tmp_path / "two", certificate[0])
        shutil.copytree(one.state, two.state)
        both_have_read = threading.Barrier(2, timeout=30)

        def neither_writes_before(request: Request) -> None:
            if request.method == "PUT" and request.path.endswith("/2/release.json.sig"):
                both_have_read.wait()

        one.azure.gate = neither_writes_before
        with ThreadPoolExecutor(2) as pool:
            asked = [(one, "node1"), (two, "node3")]
            ends = [
                pool.submit(o.deploy, "drain", name, "--cluster", str(o.state)) for o, name in asked
            ]
            codes = sorted(end.result().code for end in ends)
        said = "\n".join(end.result().output for end in ends)
        assert codes == [1, 2], said  # one published, and nobody is reached; one was refused
        assert "another operator publishes at this moment" in said
        told, files = release_told(one), web_files(one)
        assert told["generation"] == 2
        assert files["bootstrap/releases/2/release.json"] == files["bootstrap/release.json"]
        signature = files["bootstrap/releases/2/release.json.sig"]
        data = files["bootstrap/release.json"]
        assert why_unverified(data, signature, told["allowed_signers"]) == ""


def test_a_new_key_of_the_cluster_is_the_one_that_the_next_up_goes_on_with(
    operator: Operator,
) -> None:
    made(operator)
    before = (operator.state / "cluster.key").read_text()
    outcome = on_cluster(operator, "keys", "rotate")
    key = (operator.state / "cluster.key").read_text()
    assert key != before
    assert key.strip() not in outcome.output
    assert operator.azure.groups[NAME]["tags"]["key"] == fingerprint(key.strip())
    assert operator.run("plan").code == 0
    on_cluster(operator, "drain", "node2")
    made(operator)


def test_a_rotation_that_broke_off_before_azure_knew_of_it_is_run_again(operator: Operator) -> None:
    made(operator)
    operator.azure.faults.append(Fault(puts_the_group, "refused", code="Forbidden", status=403))
    words = ("keys", "rotate", "--cluster", str(operator.state))
    assert operator.deploy(*words).code == 2
    refused = operator.run("up", "--yes")
    assert refused.code == 2
    assert "or run `keys rotate` again if that was interrupted." in refused.output
    on_cluster(operator, "keys", "rotate")
    made(operator)


def puts_the_group(request: Request) -> bool:
    return request.method == "PUT" and request.path.lower().endswith(f"/resourcegroups/{NAME}")


def test_a_key_that_was_rotated_on_one_computer_is_found_by_up_on_another(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with an_operator(certificate, tmp_path / "one") as one:
        made(one)
        two = Operator(one.azure, tmp_path / "two", certificate[0])
        shutil.copytree(one.state, two.state)
        on_cluster(one, "keys", "rotate")
        on_cluster(one, "drain", "node2")
        old, new = (key_of(each) for each in (two, one))
        assert old != new
        made(two)
        assert key_of(two) == new


def key_of(operator: Operator) -> str:
    return (operator.state / "cluster.key").read_text()


def test_a_node_that_was_replaced_by_hand_is_asked_at_its_new_address(operator: Operator) -> None:
    made(operator)
    nodes = json.loads((operator.state / "nodes_info.json").read_text())
    nodes["node2"]["public_ip"] = "198.51.100.77"
    (operator.folder / "nodes.json").write_text(json.dumps(nodes))
    words = ["--nodes-info", str(operator.folder / "nodes.json"), "--json"]
    outcome = operator.deploy("publish", *words)
    assert outcome.code == 0, outcome.output
    assert json.loads((operator.state / "nodes_info.json").read_text()) == nodes
    told = release_told(operator)
    assert told["nodes"]["node2"]["public_ip"] == "198.51.100.77"
    assert SUBSCRIPTION not in json.dumps(told)


def before_releases(operator: Operator) -> None:
    """The web site of a cluster of the version before: an agent and nodes, and nothing signed."""
    files = web_files(operator)
    for name in [name for name in files if "release" in name]:
        del files[name]
    (operator.state / "release.json").unlink()


def test_one_publish_brings_a_cluster_from_before_releases_over(operator: Operator) -> None:
    made(operator)
    wanted = web_files(operator).keys()
    before_releases(operator)
    refused = operator.deploy("drain", "node2", "--cluster", str(operator.state))
    assert "has no release yet: `publish` makes the first one." in refused.output
    outcome = operator.deploy("publish", "--cluster", str(operator.state))
    assert outcome.code == 0, outcome.output
    assert web_files(operator).keys() == wanted
    assert release_told(operator)["cluster"] == NAME
    assert operator.run("plan").code == 0


def test_a_computer_without_a_key_to_sign_with_is_told_before_anything_is_created(
    operator: Operator,
) -> None:
    shutil.rmtree(operator.folder / ".ssh")
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "deploy: operator's key: no file" in outcome.output
    assert mutations(operator.azure) == []


def test_a_release_that_a_stranger_put_on_the_web_site_stops_up(operator: Operator) -> None:
    made(operator)
    files, told = web_files(operator), release_told(operator)
    other = json.dumps({**told, "generation": 2, "drained": ["node1"]}).encode()
    files["bootstrap/release.json"] = files["bootstrap/releases/2/release.json"] = other
    signature = files["bootstrap/releases/1/release.json.sig"]
    files["bootstrap/releases/2/release.json.sig"] = signature
    outcome = operator.run("up", "--yes")
    assert outcome.code == 2
    assert "generation 2: its signature is no operator's" in outcome.output
    assert mutations(operator.azure) == []


def test_nodes_that_run_with_other_times_than_the_settings_say_stop_a_first_release(
    operator: Operator,
) -> None:
    made(operator)
    before_releases(operator)
    nodes = json.loads((operator.state / "nodes_info.json").read_text())
    with open_web() as web:
        site = web.site("127.0.0.11")
        site.pages["/status.json"] = status_page("node1", "passive", look_seconds=20)
        nodes["node1"]["public_ip"] = "127.0.0.11"
        (operator.state / "nodes_info.json").write_text(json.dumps(nodes))
        cluster = replace(operate.read_cluster(operator.state), cluster_port=web.port)
        view = operate.look(cluster)
    with pytest.raises(
        Refusal, match="look_seconds = 2, but node1 runs with 20, and that is fixed"
    ):
        refuse_other_times(view, Settings())
    refuse_other_times(view, Settings(look_seconds=20))


# ---------------------------------------------------------------- what storage refuses

CONDITIONS = {
    "none there, and none wanted": (None, {"If-None-Match": "*"}, 201, ""),
    "one there, and none wanted": ("new", {"If-None-Match": "*"}, 409, "BlobAlreadyExists"),
    "the one that was read": ("new", {"If-Match": "THE TAG"}, 201, ""),
    "another than was read": ("new", {"If-Match": '"0x8D4"'}, 412, "ConditionNotMet"),
    "none there, and one was read": (None, {"If-Match": '"0x8D4"'}, 412, "ConditionNotMet"),
    "both": (
        "new",
        {"If-Match": "THE TAG", "If-None-Match": "*"},
        400,
        "MultipleConditionHeadersNotSupported",
    ),
}


@pytest.mark.parametrize(
    ("there", "headers", "status", "code"), CONDITIONS.values(), ids=CONDITIONS
)
def test_a_condition_of_an_upload_is_answered_as_storage_does(
    there: str | None, headers: dict[str, str], status: int, code: str, standing: Operator
) -> None:
    name = f"a-file-{status}-{there}-{'-'.join(headers)}"
    tag = put(standing, name, {}).headers["ETag"] if there else ""
    wanted = {key: tag if value == "THE TAG" else value for key, value in headers.items()}
    answer = put(standing, name, wanted)
    assert (answer.status_code, answer.headers.get("x-ms-error-code", "")) == (status, code)
    if status == 201:
        assert answer.headers["ETag"] != tag  # each write makes another version, of the same bytes


def put(operator: Operator, name: str, headers: dict[str, str]) -> requests.Response:
    own = {"x-ms-blob-type": "BlockBlob", "x-ms-blob-content-type": "text/plain"}
    return requests.put(
        f"{operator.azure.url}/blob/{SCOPE.storage_account()}/$web/{name}",
        data=b"content",
        headers={**own, "Authorization": f"Bearer {STORAGE_TOKEN}", **headers},
        verify=str(operator.certificate),
        timeout=10,
    )
