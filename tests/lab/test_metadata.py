"""The lab's metadata service is as strict as Azure's: asked over loopback, no root needed."""

import threading
from base64 import b64decode
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import count
from json import loads
from typing import Any

import pytest

from deploy.lab.metadata import REQUESTS_PER_SECOND, server
from deploy.plan import plan_of
from deploy.settings import Settings

PLAN = plan_of(Settings(), network="127.0.0.0/24", public_network="198.51.100.0/24")
NODE1, NODE2 = PLAN.nodes[0], PLAN.nodes[1]
VERSION = "api-version=2021-02-01"


@pytest.fixture
def port() -> Iterator[int]:
    with server("127.0.0.1", 0, PLAN) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield service.server_address[1]
        service.shutdown()
        thread.join()


def ask(
    port: int,
    target: str,
    *,
    caller: str = NODE1.private_ip,
    verb: str = "GET",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5, source_address=(caller, 0))
    connection.request(verb, target, headers={"Metadata": "true"} if headers is None else headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, loads(body or "null")


def test_each_node_learns_its_own_name_and_private_address(port: int) -> None:
    for node in (NODE1, NODE2):
        status, found = ask(port, f"/metadata/instance?{VERSION}", caller=node.private_ip)
        address = found["network"]["interface"][0]["ipv4"]["ipAddress"][0]
        assert (status, found["compute"]["name"]) == (200, node.name)
        assert address == {"privateIpAddress": node.private_ip, "publicIpAddress": ""}


def test_an_answer_is_as_large_as_azures_can_be_with_user_data(port: int) -> None:
    _, found = ask(port, f"/metadata/instance?{VERSION}")
    assert len(b64decode(found["compute"]["userData"])) == 64 * 1024


def test_the_public_address_is_the_load_balancers_to_tell(port: int) -> None:
    status, found = ask(port, f"/metadata/loadbalancer?{VERSION}")
    assert status == 200
    assert found["loadbalancer"]["publicIpAddresses"] == [
        {"frontendIpAddress": NODE1.public_ip, "privateIpAddress": NODE1.private_ip}
    ]


def test_every_single_value_of_the_instance_is_a_string(port: int) -> None:
    def values(found: Any) -> Iterator[Any]:
        inner = found.values() if isinstance(found, dict) else found
        for value in inner:
            if isinstance(value, dict | list):
                yield from values(value)
            else:
                yield value

    found = list(values(ask(port, f"/metadata/instance?{VERSION}")[1]))
    assert len(found) > 20
    assert all(isinstance(value, str) for value in found)


@pytest.mark.parametrize(
    ("target", "headers", "says"),
    [
        (f"/metadata/instance?{VERSION}", {}, "header not specified"),
        (f"/metadata/instance?{VERSION}", {"Metadata": "false"}, "header not specified"),
        (
            f"/metadata/instance?{VERSION}",
            {"Metadata": "true", "X-Forwarded-For": "10.0.0.4"},
            "X-Forwarded-For",
        ),
        ("/metadata/instance", None, "api-version"),
        ("/metadata/instance?api-version=2021-13-01", None, "api-version"),
        (f"/metadata/instance?{VERSION}&{VERSION}", None, "twice"),
    ],
)
def test_a_bad_request_is_refused_with_400(
    port: int, target: str, headers: dict[str, str] | None, says: str
) -> None:
    status, found = ask(port, target, headers=headers)
    assert status == 400
    assert says in found["error"]


def test_what_does_not_exist_is_404(port: int) -> None:
    assert ask(port, f"/metadata/identity?{VERSION}")[0] == 404


def test_a_stranger_is_nobodys_node(port: int) -> None:
    assert ask(port, f"/metadata/instance?{VERSION}", caller="127.0.0.99")[0] == 404


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "HEAD"])
def test_another_verb_is_405(port: int, verb: str) -> None:
    assert ask(port, f"/metadata/instance?{VERSION}", verb=verb)[0] == 405


def test_a_node_that_asks_too_often_gets_429_and_its_peer_does_not(port: int) -> None:
    allowed = 0
    for allowed in count():
        if ask(port, "/metadata/versions")[0] == 429 or allowed > 50:
            break
    assert REQUESTS_PER_SECOND <= allowed <= 50
    assert ask(port, "/metadata/versions", caller=NODE2.private_ip)[0] == 200
