"""What the tests of `deploy azure` share: an operator with a fake, its requests, and snapshots."""

import base64
import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from deploy.azure.compare import merged
from deploy.azure.resources import Body, Resource, Scope, custom_data, resources
from deploy.plan import plan_of
from deploy.settings import Settings
from tests.azure.fake_azure.azure import SUBSCRIPTION, FakeAzure
from tests.azure.fake_azure.model import Request
from tests.azure.fake_azure.operator import NAME, SSH_KEY, Operator
from tests.azure.fake_azure.routes import routes
from tests.azure.fake_azure.server import TOKEN, fake_azure

MUTATIONS = ("PUT", "DELETE", "PATCH", "POST")
SCOPE = Scope(SUBSCRIPTION, NAME)
NETWORK, ADDRESS, FIREWALL = "network network", "public address node1PublicIp", "firewall node1-nsg"
BALANCER, NIC, VM = (
    "load balancer loadBalancer",
    "network interface node1-nic",
    "virtual machine node1",
)
ACCOUNT = f"storage account {SCOPE.storage_account()}"


@contextmanager
def an_operator(certificate: tuple[Path, Path], folder: Path) -> Iterator[Operator]:
    with fake_azure(*certificate) as azure:
        yield Operator(azure, folder, certificate[0])


def made(operator: Operator, *options: str) -> Operator:
    """The cluster is there, and the log forgets how it came."""
    outcome = operator.run("up", "--yes", *options)
    assert outcome.code == 0, outcome.output
    operator.azure.log.records.clear()
    return operator


def mutations(azure: FakeAzure) -> list[Request]:
    """The requests that changed something; sign-in does not."""
    return [r for r in azure.log.of(*MUTATIONS) if not r.path.endswith("/token")]


def snapshot(operator: Operator) -> Any:
    """What exists, with the cluster's key (new in every cluster) replaced by a word."""
    everything = decoded(operator.azure.snapshot())
    everything["files"] = {
        account: {name: without_moment(files) for name, files in containers.items()}
        for account, containers in everything["files"].items()
    }
    text = json.dumps(everything, sort_keys=True, default=bytes.decode)
    key = (operator.state / "cluster.key").read_text().strip()
    tag = operator.azure.groups[NAME]["tags"]["key"]
    port = operator.azure.url.rsplit(":", 1)[1]
    text = text.replace(f":{port}", ":PORT")  # alone its digits may be a part of any name
    return json.loads(text.replace(key, "KEY").replace(tag, "TAG"))


def without_moment(files: dict[str, bytes]) -> dict[str, Any]:
    """What a web site serves, without what is new in each release that says the same.

    A publication that was cut short leaves its number, and the next one takes another.
    """
    kept: dict[str, Any] = {
        name: data for name, data in files.items() if not re.match(r"bootstrap/releases/\d+/", name)
    }
    if "bootstrap/release.json" in kept:
        told = json.loads(kept["bootstrap/release.json"])
        kept["bootstrap/release.json"] = told | {"generation": "N", "published": "THEN"}
        number = f"bootstrap/releases/{told['generation']}/release.json"
        assert files[number] == files["bootstrap/release.json"]
        assert files[f"{number}.sig"] == kept.pop("bootstrap/release.json.sig")
    return kept


def decoded(value: Any) -> Any:
    """Custom data in clear."""
    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner).decode() if key == "customData" else decoded(inner)
            for key, inner in value.items()
        }
    return [decoded(inner) for inner in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- single requests


def wanted(key: str) -> Resource:
    """A resource of the plan, as `up` would create it."""
    plan = plan_of(Settings(name=NAME, ssh_from=("203.0.113.254/32",)))
    return {r.key: r for r in resources(plan, SCOPE, SSH_KEY)}[key]


def creation(key: str) -> Body:
    """The body that creates it."""
    body: Body = merged(wanted(key).at_creation, wanted(key).body)
    if key == VM:
        body = merged(custom_data("#cloud-config"), body)
    return copy.deepcopy(body)


def send(operator: Operator, method: str, path: str, body: object = None, version: str = "") -> Any:
    """A request with the version that the path's operation has."""
    known = (r.api_version for r in routes() if r.method == method and r.path.match(path))
    return requests.request(
        method,
        operator.azure.url + path,
        params={"api-version": version or next(known)},
        json=body,
        headers={"Authorization": f"Bearer {TOKEN}"},
        verify=str(operator.certificate),
        timeout=10,
    )


def code(answer: requests.Response) -> str:
    """Azure's code of a refusal."""
    assert answer.status_code >= 400, answer.text
    return str(answer.json()["error"]["code"])
