"""What `azure up` sends to Azure is what the nodes of a lab have booted from."""

import base64
import json

import pytest

pytest.importorskip("azure.mgmt.network", reason="needs the packages of the extra `azure`")
pytest.importorskip("jsonschema", reason="needs the packages of the extra `test`")

from deploy import signing
from deploy.lab import NAME as LAB_NAME
from deploy.lab import STATE, WEB_SITE
from tests.azure.fake_azure.operator import NAME, Operator
from tests.azure.operators import made
from tests.lab.cluster import BootedLab
from tests.lab.test_lab import labs

pytestmark = pytest.mark.lab


@labs((3, 2, 2))
def test_the_custom_data_that_up_sends_is_the_document_that_booted_the_labs_nodes(
    cluster: BootedLab, operator: Operator
) -> None:
    """Byte for byte, once what only Azure can give is put in its place: ids and addresses."""
    operator.settings(
        period_seconds=cluster.period_seconds, signing_key=str(STATE / signing.OWN_KEY)
    )
    operator.state.mkdir(parents=True)
    (operator.state / "cluster.key").write_text((STATE / "cluster.key").read_text())
    made(operator)
    endpoints = json.loads((operator.state / "endpoints.json").read_text())
    of_azure = json.loads((operator.state / "nodes_info.json").read_text())
    of_lab = json.loads((STATE / "nodes_info.json").read_text())
    given = {endpoints["web_site"]: f"http://{WEB_SITE}"}
    for name, entry in of_azure.items():
        given |= {value: of_lab[name][key] for key, value in entry.items()}
    for name in cluster.nodes:
        machine = operator.azure.body_of("virtualMachines", name)
        sent = base64.b64decode(machine["properties"]["osProfile"]["customData"]).decode()
        for azures, labs_own in given.items():
            sent = sent.replace(azures, labs_own)
        of_cluster = "path: /etc/bootstrap/cluster\n  content: '"
        assert f"{of_cluster}{NAME}\n" in sent
        sent = sent.replace(f"{of_cluster}{NAME}\n", f"{of_cluster}{LAB_NAME}\n")
        seed = cluster.root(name) / "var/lib/cloud/seed/nocloud/user-data"
        assert sent == seed.read_text()
    assert cluster.active() == {"node1"}
