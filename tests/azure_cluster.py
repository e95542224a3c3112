"""What the tests of `deploy azure` share: an operator with a fake of their own, and snapshots."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fake_azure.azure import FakeAzure
from tests.fake_azure.model import Request
from tests.fake_azure.operator import NAME, Operator
from tests.fake_azure.server import fake_azure

MUTATIONS = ("PUT", "DELETE", "PATCH", "POST")


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
    """The requests that changed something; sign-in and the key's reading do not."""
    return [
        request
        for request in azure.log.of(*MUTATIONS)
        if not request.path.endswith(("/token", "/listKeys"))
    ]


def snapshot(operator: Operator) -> Any:
    """What exists, with the cluster's key (new in every cluster) replaced by a word."""
    text = json.dumps(decoded(operator.azure.snapshot()), sort_keys=True, default=bytes.decode)
    key = (operator.state / "cluster.key").read_text().strip()
    tag = operator.azure.groups[NAME]["tags"]["key"]
    port = operator.azure.url.rsplit(":", 1)[1]
    return json.loads(text.replace(key, "KEY").replace(tag, "TAG").replace(port, "PORT"))


def decoded(value: Any) -> Any:
    """Custom data in clear."""
    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner).decode() if key == "customData" else decoded(inner)
            for key, inner in value.items()
        }
    return [decoded(inner) for inner in value] if isinstance(value, list) else value
