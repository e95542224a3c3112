"""The lab's metadata service is as strict as Azure's: asked over loopback, no root needed."""

import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from itertools import count
from json import dumps, loads
from pathlib import Path
from typing import Any

import pytest

from deploy import Refusal
from deploy.lab import LOAD_BALANCER, events
from deploy.lab.metadata import REQUESTS_PER_SECOND, load_balancer, server
from deploy.plan import plan_of
from deploy.settings import Settings

PLAN = plan_of(Settings(), network="127.0.0.0/24", public_network="198.51.100.0/24")
NODE1, NODE2 = PLAN.nodes[0], PLAN.nodes[1]
VERSION = "api-version=2021-02-01"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where events are announced."""
    return tmp_path / "events.json"


@pytest.fixture
def port(file: Path) -> Iterator[int]:
    with server("127.0.0.1", 0, PLAN, events.ScheduledEvents(file, 0.0)) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
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
    content: str | None = None,
) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5, source_address=(caller, 0))
    headers = {"Metadata": "true"} if headers is None else headers
    connection.request(verb, target, content, headers)
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


@pytest.mark.parametrize(
    ("frontend", "address"), [("public", LOAD_BALANCER), ("internal", "127.0.0.254")]
)
def test_what_is_forwarded_to_a_node_is_told_by_port_in_azures_own_words(
    frontend: str, address: str
) -> None:
    settings = Settings(ports=("443", "udp/5060"), frontend=frontend, http_from=())
    plan = plan_of(settings, network="127.0.0.0/24", public_network="198.51.100.0/24")
    to = {"frontendIpAddress": address, "privateIpAddress": NODE1.private_ip}
    assert load_balancer(plan, plan.nodes[0])["loadbalancer"]["inboundRules"] == [
        {**to, "protocol": "tcp", "frontendPort": 443, "backendPort": 443},
        {**to, "protocol": "udp", "frontendPort": 5060, "backendPort": 5060},
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


# ------------------------------------------------ scheduled events

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"


def told(port: int, caller: str = NODE1.private_ip) -> Any:
    status, found = ask(port, EVENTS, caller=caller)
    assert status == 200
    return found


def approve(port: int, *ids: str, caller: str = NODE1.private_ip) -> int:
    content = dumps({"StartRequests": [{"EventId": each} for each in ids]})
    return ask(port, EVENTS, verb="POST", content=content, caller=caller)[0]


@pytest.mark.parametrize("kind", events.NOTICE_SECONDS)
def test_an_event_is_told_with_the_notice_of_its_kind_until_it_is_over(
    port: int, file: Path, kind: str
) -> None:
    assert told(port) == {"DocumentIncarnation": 1, "Events": []}
    announced = events.announce(file, "node1", kind, events.NOTICE_SECONDS[kind])
    found = told(port)
    assert found["DocumentIncarnation"] == 2
    (event,) = found["Events"]
    assert (event["EventId"], event["EventType"]) == (announced["EventId"], kind)
    assert (event["EventStatus"], event["Resources"]) == ("Scheduled", ["node1"])
    left_seconds = parsedate_to_datetime(event["NotBefore"]).timestamp() - time.time()
    assert left_seconds == pytest.approx(events.NOTICE_SECONDS[kind], abs=5)
    assert told(port) == found
    assert events.withdraw(file, "node1") == 1
    assert told(port) == {"DocumentIncarnation": 3, "Events": []}


def test_an_approved_event_begins_and_says_no_time_any_more(port: int, file: Path) -> None:
    event = events.announce(file, "node1", "Freeze", 900)
    assert approve(port, event["EventId"]) == 200
    found = told(port)["Events"][0]
    assert (found["EventStatus"], found["NotBefore"]) == ("Started", "")
    assert approve(port, event["EventId"]) == 200  # as often as anybody likes


def test_an_event_begins_at_its_time_and_one_without_notice_at_once(port: int, file: Path) -> None:
    events.announce(file, "node1", "Reboot", 0)
    events.announce(file, "node1", "Redeploy", 0.3)
    assert [event["EventStatus"] for event in told(port)["Events"]] == ["Started", "Scheduled"]
    deadline = time.monotonic() + 5
    while told(port)["Events"][1]["EventStatus"] != "Started":
        assert time.monotonic() < deadline
        threading.Event().wait(0.3)  # and no more often than it is allowed


def test_of_two_nodes_at_once_each_is_told_its_own_and_can_approve_no_other(
    port: int, file: Path
) -> None:
    first = events.announce(file, "node1", "Freeze", 900)
    second = events.announce(file, "node2", "Reboot", 900)
    assert [event["EventId"] for event in told(port)["Events"]] == [first["EventId"]]
    assert [event["EventId"] for event in told(port, NODE2.private_ip)["Events"]] == [
        second["EventId"]
    ]
    assert approve(port, second["EventId"]) == 400
    assert approve(port, first["EventId"], second["EventId"]) == 400
    assert told(port)["Events"][0]["EventStatus"] == "Scheduled"
    assert events.withdraw(file, "node1") == 1
    assert told(port, NODE2.private_ip)["Events"]


def test_an_event_that_is_over_can_not_be_approved(port: int, file: Path) -> None:
    event = events.announce(file, "node1", "Freeze", 900)
    events.withdraw(file, "node1")
    assert approve(port, event["EventId"]) == 400


MALFORMED = ["", "{", "[]", "{}", '{"StartRequests": []}', '{"StartRequests": [{}]}']
MALFORMED += ['{"StartRequests": 1}', '{"StartRequests": [{"EventId": 1}]}', '"EventId"']


@pytest.mark.parametrize("content", MALFORMED)
def test_a_malformed_approval_is_400(port: int, content: str) -> None:
    status, found = ask(port, EVENTS, verb="POST", content=content)
    assert (status, "StartRequests" in found["error"]) == (400, True)


@pytest.mark.parametrize("verb", ["GET", "POST"])
@pytest.mark.parametrize(
    ("target", "headers", "says"),
    [
        (EVENTS, {}, "header not specified"),
        (EVENTS, {"Metadata": "true", "X-Forwarded-For": "10.0.0.4"}, "X-Forwarded-For"),
        ("/metadata/scheduledevents", None, "api-version"),
        ("/metadata/scheduledevents?api-version=2021-02-01", None, "api-version"),
        ("/metadata/scheduledevents?api-version=latest", None, "api-version"),
        (f"{EVENTS}&format=json", None, "api-version alone"),
    ],
)
def test_a_bad_request_for_events_is_refused_with_400(
    port: int, verb: str, target: str, headers: dict[str, str] | None, says: str
) -> None:
    content = "{}" if verb == "POST" else None
    status, found = ask(port, target, verb=verb, headers=headers, content=content)
    assert status == 400
    assert says in found["error"]


def test_a_strangers_events_are_404(port: int) -> None:
    assert ask(port, EVENTS, caller="127.0.0.99")[0] == 404
    assert approve(port, "any", caller="127.0.0.99") == 404


def test_the_first_answer_of_all_is_late_and_the_next_ones_are_not(file: Path) -> None:
    late_seconds = 0.5
    with server("127.0.0.1", 0, PLAN, events.ScheduledEvents(file, late_seconds)) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        took = []
        for _ in range(2):
            began = time.monotonic()
            told(service.server_address[1])
            took.append(time.monotonic() - began)
        service.shutdown()
        thread.join()
    assert took[0] >= late_seconds > took[1]


@pytest.mark.parametrize(
    ("kind", "seconds", "says"),
    [("Party", 1, "'Party': use one of Freeze, "), ("Freeze", -1, "not before -1 s: use 0 to ")],
)
def test_what_azure_never_announces_is_refused(
    file: Path, kind: str, seconds: float, says: str
) -> None:
    with pytest.raises(Refusal, match=says):
        events.announce(file, "node1", kind, seconds)
