"""What the agent is told, right and wrong: settings, nodes, key, metadata; and its own form."""

import ast
import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import responses
from responses.matchers import header_matcher

from agent import loader
from agent.loader import BadInput, Identity, Unanswered
from tests.agent.world import World, open_world

CHECKOUT = Path(loader.__file__).parent.parent
SETTINGS = (
    "[loader] takes period_seconds, look_seconds, pause_seconds, peer_address, bootstrap_url,"
    " scheduled_events, cluster_port, health_seconds, unhealthy_after, healthy_after,"
    " start_seconds, stop_seconds and unhealthy."
)
DIVISORS = "use a divisor of 60 between 2 and 60."


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        yield found


# ------------------------------------------------ settings


def test_without_a_file_of_settings_the_defaults_hold(tmp_path: Path) -> None:
    settings = loader.read_settings(tmp_path / "loader.conf")
    assert (settings.times.period_seconds, settings.times.look_seconds) == (20, 2)
    assert settings.peer_address == "public"
    assert settings.bootstrap_url == ""
    assert settings.scheduled_events is True


def test_settings_are_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "loader.conf"
    lines = (
        "[loader]\nperiod_seconds=20\nlook_seconds = 5\npause_seconds=0\npeer_address = private\n"
    )
    lines += "bootstrap_url = http://w/b/%20/\nscheduled_events = false\ncluster_port = 8080\n"
    path.write_text(lines)
    settings = loader.read_settings(path)
    times = loader.timing(20, 5, 0)
    assert settings == loader.Settings(times, "private", "http://w/b/%20", False, 8080)


@pytest.mark.parametrize(
    ("period", "look"), [(2, 2), (3, 3), (4, 2), (5, 5), (15, 3), (20, 2), (60, 2)]
)
def test_looks_are_two_seconds_apart_or_the_next_that_divides_the_period(
    tmp_path: Path, period: int, look: int
) -> None:
    path = tmp_path / "loader.conf"
    path.write_text(f"[loader]\nperiod_seconds = {period}\npause_seconds = 0\n")
    assert loader.read_settings(path).times == loader.timing(period, look, 0)


WRONG_SETTINGS = {
    "unknown setting": ("[loader]\nperiod = 20\n", f"unknown 'period': {SETTINGS}"),
    "unknown section": ("[agent]\nperiod_seconds = 20\n", f"unknown 'agent': {SETTINGS}"),
    "default section": ("[DEFAULT]\nperiod_seconds = 2\n", f"unknown 'DEFAULT': {SETTINGS}"),
    "no section": ("period_seconds = 20\n", "File contains no section headers."),
    "twice": ("[loader]\nperiod_seconds = 20\nperiod_seconds = 2\n", "already exists"),
    "no number": ("[loader]\nperiod_seconds = soon\n", "period_seconds = soon: not a number."),
    "nothing": ("[loader]\nperiod_seconds =\n", "period_seconds = : not a number."),
    "not a divisor": ("[loader]\nperiod_seconds = 7\n", f"period_seconds = 7: {DIVISORS}"),
    "a fraction": ("[loader]\nperiod_seconds = 2.5\n", f"period_seconds = 2.5: {DIVISORS}"),
    "zero": ("[loader]\nperiod_seconds = 0\n", f"period_seconds = 0: {DIVISORS}"),
    "one": ("[loader]\nperiod_seconds = 1\n", f"period_seconds = 1: {DIVISORS}"),
    "negative": ("[loader]\nperiod_seconds = -20\n", f"period_seconds = -20: {DIVISORS}"),
    "too long": ("[loader]\nperiod_seconds = 120\n", f"period_seconds = 120: {DIVISORS}"),
    "not finite": ("[loader]\nperiod_seconds = inf\n", f"period_seconds = inf: {DIVISORS}"),
    "not a value": ("[loader]\nperiod_seconds = nan\n", f"period_seconds = nan: {DIVISORS}"),
    "a look that does not divide": (
        "[loader]\nlook_seconds = 3\n",
        "look_seconds = 3: use a divisor of period_seconds = 20, 2 or more.",
    ),
    "a look longer than the period": (
        "[loader]\nperiod_seconds = 4\nlook_seconds = 20\n",
        "look_seconds = 20: use a divisor of period_seconds = 4, 2 or more.",
    ),
    "too many looks": ("[loader]\nlook_seconds = 1\n", "look_seconds = 1: use a divisor"),
    "no look": ("[loader]\nlook_seconds = 0\n", "look_seconds = 0: use a divisor"),
    "half a look": ("[loader]\nlook_seconds = 2.5\n", "look_seconds = 2.5: use a divisor"),
    "a look without a number": ("[loader]\nlook_seconds = often\n", "look_seconds = often: not"),
    "address": (
        "[loader]\npeer_address = secret\n",
        "peer_address = secret: use public or private.",
    ),
    "events": (
        "[loader]\nscheduled_events = maybe\n",
        "scheduled_events = maybe: use true or false.",
    ),
    "no port": (
        "[loader]\ncluster_port = 65536\n",
        "cluster_port = 65536: use a number from 1 to 65535.",
    ),
    "no number of rounds": (
        "[loader]\nhealthy_after = 0\n",
        "healthy_after = 0: use a number from 1 to 100.",
    ),
    "what the unhealthy do": (
        "[loader]\nunhealthy = run\n",
        "unhealthy = run: use stay or stop.",
    ),
    "not text": (b"[loader]\n\xff = 1\n", "can't decode byte 0xff"),
    "a folder": (None, "Is a directory"),
}


@pytest.mark.parametrize(("content", "why"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_wrong_settings_are_refused_in_a_sentence_that_names_file_and_value(
    tmp_path: Path, content: str | bytes | None, why: str
) -> None:
    path = tmp_path / "loader.conf"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as refused:
        loader.read_settings(path)
    sentence = str(refused.value)
    assert sentence.startswith(f"{path}: ")
    assert why in sentence
    assert "\n" not in sentence


PERIODS = [2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60]


KEPT_UP = [(p, look) for p in PERIODS for look in range(2, p + 1) if p % look == 0]


@pytest.mark.parametrize("stop", [0, 1, 10, 60])
@pytest.mark.parametrize(("period", "look"), KEPT_UP)
def test_all_times_that_a_timer_and_its_looks_can_keep_are_safe_and_can_be_kept_up(
    period: int, look: int, stop: int
) -> None:
    times = loader.timing(period, look, 0, stop)
    assert times.lease_seconds * (1 + loader.DRIFT) <= times.promise_seconds * (1 - loader.DRIFT)
    round_seconds = times.timeout_seconds + times.poll_seconds
    apart_seconds = look + (loader.GAP_SECONDS if look < period else 0)
    assert times.lease_seconds - times.margin_seconds >= apart_seconds + round_seconds + 0.5
    spread_seconds = loader.tick_spread_seconds(times)
    assert times.fresh_seconds > apart_seconds + spread_seconds
    assert times.end_seconds + times.timeout_seconds < look
    assert times.connect_seconds < spread_seconds  # a first request that is lost is made good
    # The fence, and the stop of a service after it, by a clock that goes as slow as it may.
    fence_seconds = times.lease_seconds - times.margin_seconds + stop
    assert fence_seconds / (1 - loader.SLEW) + 0.2 <= times.lease_seconds


def test_a_service_that_has_joined_makes_promises_longer_and_only_there(tmp_path: Path) -> None:
    paths = loader.Paths(str(tmp_path))
    paths.conf.parent.mkdir(parents=True)
    paths.conf.write_text("[loader]\nstop_seconds = 5\n")
    without = loader.timing(20, 20, 5)
    paths.unit.parent.mkdir(parents=True)
    paths.unit.write_text("Type=oneshot\n")
    assert loader.settings_here(paths, None).times == without
    joined = paths.unit.parent / "active.target.wants"
    joined.mkdir()
    assert loader.settings_here(paths, None).times == without
    (joined / "writer.service").symlink_to("nowhere")
    times = loader.settings_here(paths, None).times
    assert times == loader.timing(20, 20, 5, 5)
    assert 5 < times.promise_seconds - without.promise_seconds < 5.5


WRONG_TIMES = {
    "a lease like the promise": ({"lease_seconds": 27.0}, "two nodes could be active"),
    "a short lease": ({"lease_seconds": 22.5}, "it needs 2.50 s more"),
    "a wide margin": ({"margin_seconds": 6.0}, "ends before a look every 20 s can renew it"),
    "a long run": ({"end_seconds": 19.5}, "a look of 19.5 s does not end within 20 s"),
}


@pytest.mark.parametrize(("change", "why"), WRONG_TIMES.values(), ids=WRONG_TIMES)
def test_times_that_break_an_inequality_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        loader.check(loader.timing(20, 20, 0)._replace(**change))


# ------------------------------------------------ nodes_info.json


def entry(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "ip_configuration_name": "default",
        "network_interface_id": "/nic",
        "private_ip": f"10.0.0.{number}",
        "public_ip": f"198.51.100.{number}",
    } | changes


THREE = {f"node{number}": entry(number) for number in (1, 2, 3)}


def without(key: str) -> dict[str, Any]:
    kept = {name: value for name, value in entry(3).items() if name != key}
    return THREE | {"node3": kept}


WRONG_NODES = {
    "nothing": ("", "not JSON: Expecting value"),
    "half": (json.dumps(THREE)[:-30], "not JSON: "),
    "nested": ("[" * 100_000, "not JSON: "),
    "a list": ("[]", "use an object, node name -> addresses, in order of preference."),
    "null": ("null", "use an object, node name -> addresses"),
    "none": ("{}", "0 nodes: use an odd number, 3 or more."),
    "one": ({"node1": entry(1)}, "1 nodes: use an odd number, 3 or more."),
    "two": ({"node1": entry(1), "node2": entry(2)}, "2 nodes: use an odd number, 3 or more."),
    "four": (THREE | {"node4": entry(4)}, "4 nodes: use an odd number, 3 or more."),
    "the same name": (
        json.dumps(THREE).replace("node3", "node1"),
        "'node1' is there twice: each name once.",
    ),
    "a path as name": (THREE | {"../etc": entry(4)}, "'../etc' is no name for a node"),
    "an empty name": (THREE | {"": entry(4)}, "'' is no name for a node"),
    "a hidden name": (THREE | {".a": entry(4)}, "'.a' is no name for a node"),
    "a long name": (THREE | {"n" * 65: entry(4)}, "is no name for a node"),
    "the probe's name": (THREE | {"probe": entry(4)}, "'probe' is no name for a node"),
    "the page's name": (THREE | {"index": entry(4)}, "'index' is no name for a node"),
    "no object": (THREE | {"node3": "10.0.0.3"}, "node3 needs the text 'ip_configuration_name'."),
    "no configuration": (
        without("ip_configuration_name"),
        "node3 needs the text 'ip_configuration_name'.",
    ),
    "no interface": (without("network_interface_id"), "needs the text 'network_interface_id'."),
    "no private address": (without("private_ip"), "node3 needs the text 'private_ip'."),
    "no public address": (without("public_ip"), "node3 needs the text 'public_ip'."),
    "a number": (THREE | {"node3": entry(3, public_ip=7)}, "node3 needs the text 'public_ip'."),
    "an empty address": (
        THREE | {"node3": entry(3, public_ip="")},
        "node3 has the public_ip '': not an address.",
    ),
    "a path as address": (
        THREE | {"node3": entry(3, private_ip="10.0.0.3/x?")},
        "node3 has the private_ip '10.0.0.3/x?': not an address.",
    ),
    "the same private address": (
        THREE | {"node3": entry(3, private_ip="10.0.0.1")},
        "node1 and node3 have the same private_ip 10.0.0.1.",
    ),
    "the same public address": (
        THREE | {"node3": entry(3, public_ip="198.51.100.2")},
        "node2 and node3 have the same public_ip 198.51.100.2.",
    ),
}


@pytest.mark.parametrize(("content", "why"), WRONG_NODES.values(), ids=WRONG_NODES)
def test_a_wrong_list_of_nodes_is_refused_in_a_sentence_that_names_the_entry(
    content: str | dict[str, Any], why: str
) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(BadInput) as refused:
        loader.parse_nodes_info(text, "/etc/bootstrap/nodes_info.json")
    sentence = str(refused.value)
    assert sentence.startswith("/etc/bootstrap/nodes_info.json: ")
    assert why in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_the_order_of_the_entries_is_the_order_of_preference() -> None:
    turned = {name: THREE[name] for name in ("node3", "node1", "node2")}
    assert list(loader.parse_nodes_info(json.dumps(turned))) == ["node3", "node1", "node2"]


@pytest.mark.parametrize(("nodes", "majority"), [(3, 2), (5, 3), (7, 4), (101, 51)])
def test_a_majority_is_more_than_half(nodes: int, majority: int) -> None:
    order = tuple(f"node{number}" for number in range(nodes))
    assert loader.Members("node1", order, b"", loader.timing(20, 20, 0)).majority == majority


# ------------------------------------------------ a whole run on bad input

BAD_FILES = {
    "settings": ("conf", "[loader]\nperiod = 20\n", "loader.conf: unknown 'period'"),
    "nodes": ("nodes_info", "{}", "nodes_info.json: 0 nodes: use an odd number"),
    "missing nodes": (
        "nodes_info",
        None,
        "nodes_info.json: No such file or directory: put the nodes in order of preference there.",
    ),
    "nodes not text": ("nodes_info", b"\xff", "nodes_info.json: not UTF-8: put the nodes"),
    "nodes without me": (
        "nodes_info",
        json.dumps({f"other{number}": entry(number) for number in (1, 2, 3)}),
        "nodes_info.json: 'node1', this node, is not in it: add it.",
    ),
    "missing key": ("key", None, "cluster.key: No such file or directory: put the cluster's key"),
    "short key": ("key", "5e" * 31, "cluster.key: not a key: use 64 hexadecimal digits."),
}


@pytest.mark.parametrize(("file", "content", "why"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_input_takes_the_role_of_an_active_node_and_says_why(
    world: World, file: str, content: str | bytes | None, why: str
) -> None:
    world.was_active()
    path: Path = getattr(world.paths, file)
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ran = world.run()
    assert (ran.code, world.active) == (2, False)
    assert ran.journal.startswith("passive: ")
    assert why in ran.journal
    assert "\n" not in ran.journal
    assert ran.said("INFO - Removing")
    assert ran.said(f"ERROR - {ran.journal.removeprefix('passive: ')}, set as passive")
    assert world.paths.lease_until.read_text() == "0"
    assert ran.seconds < 0.5 * world.period


WRONG_KEYS = {
    "empty": (b"", "not a key: use 64 hexadecimal digits."),
    "short": (b"5e" * 31, "not a key: use 64 hexadecimal digits."),
    "long": (b"5e" * 33, "not a key: use 64 hexadecimal digits."),
    "two lines": (b"5e" * 16 + b"\n" + b"5e" * 16, "not a key: use 64 hexadecimal digits."),
    "not hexadecimal": (b"zz" * 32, "not a key: use 64 hexadecimal digits."),
    "not text": (b"\xff" * 64, "not UTF-8: put the cluster's key there, 64 hexadecimal digits."),
}


@pytest.mark.parametrize(("content", "why"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "cluster.key"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        loader.read_key(path)
    assert str(refused.value) == f"{path}: {why}"


def test_a_key_may_end_with_a_line_break(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.write_text("5E" * 32 + "\n")
    assert loader.read_key(path) == b"^" * 32


# ------------------------------------------------ metadata, at its true address

AZURE = "http://169.254.169.254/metadata"
INSTANCE_URL = f"{AZURE}/instance?api-version=2021-02-01&format=json"
BALANCER_URL = f"{AZURE}/loadbalancer?api-version=2020-10-01&format=json"
NIC = {"ipv4": {"ipAddress": [{"privateIpAddress": "10.0.0.4", "publicIpAddress": ""}]}}
INSTANCE: dict[str, Any] = {
    "compute": {"name": "node1", "zone": "2"},
    "network": {"interface": [NIC]},
}


def balancer(private: str, front: str) -> dict[str, Any]:
    pair = {"privateIpAddress": private, "frontendIpAddress": front}
    return {"loadbalancer": {"publicIpAddresses": [pair]}}


@responses.activate
def test_both_metadata_services_are_asked_as_azure_wants_it() -> None:
    header = [header_matcher({"Metadata": "true"})]
    responses.get(INSTANCE_URL, json=INSTANCE, match=header)
    responses.get(BALANCER_URL, json=balancer("10.0.0.4", "198.51.100.4"), match=header)
    found = loader.ask_identity(loader.new_session())
    assert found == Identity("node1", "10.0.0.4", "198.51.100.4", "2")
    assert all("X-Forwarded-For" not in call.request.headers for call in responses.calls)


@responses.activate
def test_an_answer_as_large_as_azure_can_send_is_read_whole() -> None:
    user_data = base64.b64encode(bytes(64 << 10)).decode()
    tags = [{"name": "n" * 512, "value": "v" * 256}] * 50
    compute = INSTANCE["compute"] | {
        "userData": user_data,
        "tags": ";".join(f"{tag['name']}:{tag['value']}" for tag in tags),
        "tagsList": tags,
    }
    responses.get(INSTANCE_URL, json=INSTANCE | {"compute": compute})
    responses.get(BALANCER_URL, json=balancer("10.0.0.4", "198.51.100.4"))
    assert loader.ask_identity(loader.new_session()).name == "node1"


PUBLIC_ADDRESSES = {
    "another node's": ({"json": balancer("10.0.0.5", "198.51.100.5")}, ""),
    "in no pool": ({"status": 404}, ""),
    "too many requests": ({"status": 429}, ""),
    "broken": ({"status": 500}, ""),
    "garbage": ({"body": "<html>"}, ""),
    "null": ({"body": "null"}, ""),
    "a list": ({"body": "[]"}, ""),
    "no list": ({"body": '{"loadbalancer": {}}'}, ""),
    "no connection": ({"body": ConnectionError("refused")}, ""),
    "right": ({"json": balancer("10.0.0.4", "203.0.113.7")}, "203.0.113.7"),
}


@responses.activate
@pytest.mark.parametrize(("answer", "address"), PUBLIC_ADDRESSES.values(), ids=PUBLIC_ADDRESSES)
def test_a_load_balancer_that_fails_only_leaves_the_public_address_unknown(
    answer: dict[str, Any], address: str
) -> None:
    responses.get(INSTANCE_URL, json=INSTANCE)
    responses.get(BALANCER_URL, **answer)
    found = loader.ask_identity(loader.new_session())
    assert (found.name, found.public_ip) == ("node1", address)


def instance(**compute: Any) -> dict[str, Any]:
    return {"json": INSTANCE | {"compute": compute}}


NO_IDENTITY = {
    "too many requests": ({"status": 429}, "status 429"),
    "broken": ({"status": 500}, "status 500"),
    "moved": ({"status": 302, "headers": {"Location": "http://example.com/"}}, "status 302"),
    "not found": ({"status": 404}, "no name or no private address in it"),
    "garbage": ({"body": "<html>"}, "not JSON"),
    "endless": ({"json": {"userData": "x" * (1 << 20)}}, "an answer of more than 1 MB"),
    "a list": ({"body": "[]"}, "no name or no private address in it"),
    "no name": (instance(zone="1"), "no name or no private address in it"),
    "no interface": ({"json": INSTANCE | {"network": {"interface": []}}}, "no private address"),
    "a path as name": (instance(name="../../etc"), "a name or an address that is none"),
    "a line in the name": (instance(name="node1\nnode2"), "a name or an address that is none"),
}


@responses.activate
@pytest.mark.parametrize(("answer", "why"), NO_IDENTITY.values(), ids=NO_IDENTITY)
def test_instance_metadata_that_names_nobody_says_why(answer: dict[str, Any], why: str) -> None:
    responses.get(INSTANCE_URL, **answer)
    with pytest.raises(Unanswered, match=why):
        loader.ask_identity(loader.new_session())


EVENTS_URL = f"{AZURE}/scheduledevents?api-version=2020-07-01"


def event(**changes: Any) -> dict[str, Any]:
    """An event as Azure tells it; what is given as None is left out."""
    told = {
        "EventId": "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
        "EventStatus": "Scheduled",
        "EventType": "Freeze",
        "ResourceType": "VirtualMachine",
        "Resources": ["Node1", "node2"],
        "NotBefore": "Mon, 23 Nov 2026 22:26:58 GMT",
        "Description": "Host server is undergoing maintenance.",
        "EventSource": "Platform",
        "DurationInSeconds": 5,
    }
    return {key: value for key, value in (told | changes).items() if value is not None}


def events(*told: Any) -> dict[str, Any]:
    return {"json": {"DocumentIncarnation": 2, "Events": told}}


FREEZE = loader.Event(event()["EventId"], "Freeze", True, ("node1", "node2"))
TOLD: dict[str, tuple[dict[str, Any], tuple[loader.Event, ...]]] = {
    "none": (events(), ()),
    "not found": ({"status": 404}, ()),
    "one": (events(event()), (FREEZE,)),
    "begun": (
        events(event(EventStatus="Started", NotBefore="")),
        (FREEZE._replace(scheduled=False),),
    ),
    "without a duration": (events(event(DurationInSeconds=None)), (FREEZE,)),
    "of unknown duration": (events(event(DurationInSeconds=-1)), (FREEZE,)),
    "that interrupts nothing": (events(event(DurationInSeconds=0)), ()),
    "of a kind that nobody knows": (events(event(EventType="Party"), event()), (FREEZE,)),
    "of a kind that is none": (events(event(EventType=["Freeze"])), ()),
    "of no machine": (events(event(Resources=[])), (FREEZE._replace(nodes=()),)),
}


@responses.activate
@pytest.mark.parametrize(("answer", "found"), TOLD.values(), ids=TOLD)
def test_the_scheduled_events_that_interrupt_a_machine_are_read(
    answer: dict[str, Any], found: tuple[loader.Event, ...]
) -> None:
    header = [responses.matchers.header_matcher({"Metadata": "true"})]
    responses.get(EVENTS_URL, match=header, **answer)
    assert loader.ask_events(loader.new_session()) == found


NO_EVENTS = {
    "bad request": ({"status": 400}, "status 400"),
    "gone for a while": ({"status": 410}, "status 410"),
    "too many requests": ({"status": 429}, "status 429"),
    "broken": ({"status": 500}, "status 500"),
    "garbage": ({"body": "<html>"}, "not JSON"),
    "a list": ({"body": "[1]"}, "no scheduled events in it"),
    "no list": ({"json": {"DocumentIncarnation": 1}}, "no scheduled events in it"),
    "not one": ({"json": {"Events": None}}, "no scheduled events in it"),
    "no object": (events("Freeze"), "no scheduled events in it"),
    "without an id": (events(event(EventId=None)), "no scheduled events in it"),
    "without machines": (events(event(Resources=None)), "no scheduled events in it"),
    "of something else": (events(event(Resources=[1])), "no scheduled events in it"),
}


@responses.activate
@pytest.mark.parametrize(("answer", "why"), NO_EVENTS.values(), ids=NO_EVENTS)
def test_an_answer_that_tells_no_scheduled_events_says_why(
    answer: dict[str, Any], why: str
) -> None:
    responses.get(EVENTS_URL, **answer)
    with pytest.raises(Unanswered, match=why):
        loader.ask_events(loader.new_session())


# ------------------------------------------------ markers, for people


def test_a_marker_is_a_page_that_a_person_can_read(world: World) -> None:
    world.run()
    page = (world.paths.html / "node2.html").read_text()
    assert page.startswith("<!doctype html><title>node1 sees node2</title>\n")
    assert "<p>node1 sees node2 and votes for node1.</p>" in page
    assert "5e5e5e5e" not in page


# ------------------------------------------------ the file itself


def test_the_agent_imports_the_standard_library_and_requests_alone() -> None:
    tree = ast.parse((CHECKOUT / "agent" / "loader.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - sys.stdlib_module_names == {"requests", "urllib3"}


def test_nothing_in_the_agents_file_is_used_before_it_is_told() -> None:
    """But for what is used and told within the same function or class."""
    told: set[str] = set()
    early = set()
    body = ast.parse((CHECKOUT / "agent" / "loader.py").read_text()).body
    names = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in body:
        told |= {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        own = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
        own |= {
            each.target.id
            for each in ast.walk(node)
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        early |= {(node.lineno, name) for name in (used & names) - told - own}
    assert names > {"write_atomic", "decide", "settle", "Machine", "main"}
    assert early == set()


@pytest.mark.parametrize("folder", ["agent", "deploy"])
def test_no_function_is_longer_than_40_lines(folder: str) -> None:
    long = []
    for path in (CHECKOUT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.name}:{node.name} {lines}"] if lines > 40 else []
    assert long == []


# ------------------------------------------------ the host's clock


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder", "another device"])
def test_what_is_no_clock_tells_no_time_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    path = tmp_path / "ptp_hyperv"
    if there == "a file":
        path.write_text("garbage")
    elif there == "a folder":
        path.mkdir()
    elif there == "another device":
        path.symlink_to("/dev/null")
    monkeypatch.setattr(loader, "HOST_CLOCK", str(path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [loader.host_seconds() for _ in range(3)] == [None, None, None]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
