"""A release as data: its text, its rules, its changes. No files, no keys, no clock."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deploy import Refusal
from deploy.checkout import NODES_FILE
from deploy.nodes_info import read_nodes_info
from deploy.release import (
    LONGEST_SECONDS,
    Preference,
    Release,
    changed_lines,
    check,
    check_change,
    check_ends,
    drained,
    failing_back,
    first_release,
    maintained,
    of_cluster,
    ordered,
    preferring,
    release_of,
    release_text,
    renewed,
    signed_also_by,
    signed_no_more_by,
    undrained,
)
from deploy.settings import Settings
from deploy.signing import signers_text

NOW = 1_800_000_000.0
MINE, HERS = "ssh-ed25519 AAAAmine me@home", "ssh-ed25519 AAAAhers her@work"
NODES = read_nodes_info(NODES_FILE)
FIRST = first_release(Settings(), NODES, b"agent", signers_text([MINE]), cluster="lab")
NODE9 = {"node9": {**NODES["node1"], "private_ip": "10.0.0.99", "public_ip": "198.51.100.99"}}


def settings(release: Release, **changed: Any) -> Release:
    return replace(release, settings=replace(release.settings, **changed))


# ---- The text


def test_what_is_written_is_read_again() -> None:
    release = replace(
        maintained(drained(FIRST, "node2"), int(NOW) + 60),
        prefer=Preference("node3", int(NOW) + 60),
        cluster_key="QUJD",
    )
    assert release_of(release_text(release), "here") == release


def test_keys_are_sorted_and_the_nodes_stand_in_their_order() -> None:
    text = release_text(ordered(FIRST, ("node3", "node1", "node2")))
    told = json.loads(text)
    assert list(told["nodes"]) == ["node3", "node1", "node2"]
    assert sorted(told) == sorted(told, key=lambda name: text.index(f'\n "{name}"'.encode()))
    assert list(told["settings"]) == sorted(told["settings"])


def test_nobody_reads_the_subscription_in_it() -> None:
    assert all(entry["network_interface_id"].startswith("/subscr") for entry in NODES.values())
    assert b"/subscriptions/" not in release_text(FIRST)


NO_RELEASE = {
    "no JSON": b"{",
    "a list": b"[]",
    "nested without end": b"[" * 30_000,
    "a part too many": release_text(FIRST).replace(b'"drained"', b'"witness": 1, "drained"'),
    "a part too few": release_text(FIRST).replace(b' "published": "",\n', b""),
    "no settings": release_text(FIRST).replace(b'"settings"', b'"setting"'),
}


@pytest.mark.parametrize("data", NO_RELEASE.values(), ids=NO_RELEASE)
def test_what_is_no_release_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(Refusal, match="here: no release that this checkout reads"):
        release_of(data, "here")


# ---- Rules of one release

BROKEN: dict[str, tuple[Callable[[Release], Release], str]] = {
    "a cluster without a name": (
        lambda r: replace(r, cluster="../x"),
        "use the name of a resource",
    ),
    "generation 0": (lambda r: replace(r, generation=0), "use a whole number, 1 or more"),
    "a generation as text": (lambda r: replace(r, generation="7"), "use a whole number"),  # type: ignore[arg-type]
    "no file": (lambda r: replace(r, files={}), "a release has loader.py"),
    "an empty agent": (
        lambda r: replace(r, files={"loader.py": replace(r.files["loader.py"], size=0)}),
        "loader.py: 0 bytes: nodes take 1 to 1048576",
    ),
    "a hash that is none": (
        lambda r: replace(r, files={"loader.py": replace(r.files["loader.py"], sha256="x")}),
        "no 64 hexadecimal digits",
    ),
    "a period that is no divisor": (
        lambda r: settings(r, period_seconds=7),
        "use a divisor of 60 between 2 and 60",
    ),
    "looks that do not divide the period": (
        lambda r: settings(r, look_seconds=3),
        "use a divisor of period_seconds = 20",
    ),
    "pauses as text": (lambda r: settings(r, pause_seconds="5"), "use numbers of seconds"),
    "an address of another kind": (
        lambda r: settings(r, peer_address="both"),
        "use public or private",
    ),
    "events as a number": (lambda r: settings(r, scheduled_events=1), "use true or false"),
    "a failback of its own": (lambda r: settings(r, failback="later"), "use auto, never, or 1 to"),
    "a failback at once": (lambda r: settings(r, failback=0), "use auto, never, or 1 to"),
    "two nodes": (
        lambda r: replace(r, nodes=dict(list(r.nodes.items())[:2])),
        "2 nodes: use an odd number",
    ),
    "two nodes with one address": (
        lambda r: replace(r, nodes={**r.nodes, "node2": r.nodes["node1"]}),
        "node1 and node2 have the same private_ip",
    ),
    "a stranger drained": (lambda r: replace(r, drained=("node9",)), "'node9' is no node of it"),
    "a node drained twice": (
        lambda r: replace(r, drained=("node1", "node1")),
        "name each node once",
    ),
    "all drained": (
        lambda r: replace(r, drained=("node1", "node2", "node3")),
        "nobody could be active; leave one out",
    ),
    "drained and preferred": (
        lambda r: replace(r, drained=("node1",), prefer=Preference("node1", int(NOW))),
        "drained and preferred at once",
    ),
    "an end that is no number": (
        lambda r: replace(r, maintenance_until=1.5),  # type: ignore[arg-type]
        "use whole seconds of the wall clock",
    ),
    "nobody may sign": (lambda r: replace(r, allowed_signers=""), "there is one at least"),
    "a signer for everything": (
        lambda r: replace(r, allowed_signers=f"* {MINE}\n"),
        "each line is one operator's key",
    ),
    "a key that is no base64": (lambda r: replace(r, cluster_key="a b"), "no base64 of a key"),
    "more than nodes take": (
        lambda r: replace(r, allowed_signers=signers_text([f"{MINE} {'x' * 90}"] * 500)),
        "more than 64 KB",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_release_that_breaks_a_rule_is_refused_with_that_rule(
    change: Callable[[Release], Release], sentence: str
) -> None:
    check(FIRST)
    with pytest.raises(Refusal) as refused:
        check(change(FIRST))
    assert sentence in str(refused.value)
    assert str(refused.value).count("\n") == 0


# ---- Rules of a change

FORBIDDEN: dict[str, tuple[Callable[[Release], Release], str]] = {
    "another cluster": (lambda r: replace(r, cluster="other"), "has releases of lab"),
    "another period": (
        lambda r: settings(r, period_seconds=30),
        "period_seconds = 30: this cluster runs with 20",
    ),
    "other looks": (
        lambda r: settings(r, look_seconds=20),
        "worst-case failover is 13.6 s; with look_seconds = 20 it would be 35.8 s",
    ),
    "other pauses": (
        lambda r: settings(r, pause_seconds=0),
        "with pause_seconds = 0 it would be 7.5 s",
    ),
    "more nodes": (
        lambda r: replace(r, nodes={**r.nodes, **NODE9, "node8": {}}),
        "5 nodes instead of 3: the number can't change while they run, because majorities",
    ),
    "another name": (
        lambda r: replace(r, nodes={**dict(list(r.nodes.items())[:2]), **NODE9}),
        "node9 is no node of this cluster (node1, node2, node3): who replaces a node has its name",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_no_order_of_steps_leads_to_is_refused_with_the_reason(
    change: Callable[[Release], Release], sentence: str
) -> None:
    with pytest.raises(Refusal) as refused:
        check_change(FIRST, change(FIRST))
    assert sentence in str(refused.value)


def test_a_node_may_get_other_addresses_and_the_published_order_stays() -> None:
    before = ordered(FIRST, ("node3", "node1", "node2"))
    nodes = {**NODES, "node1": {**NODES["node1"], "public_ip": "198.51.100.77"}}
    after = of_cluster(before, nodes, b"agent")
    check_change(before, after)
    assert list(after.nodes) == ["node3", "node1", "node2"]
    assert changed_lines(before, after) == [
        "node1: 10.0.0.4 198.51.100.4 -> 10.0.0.4 198.51.100.77"
    ]


@pytest.mark.parametrize("seconds", [0, -60, LONGEST_SECONDS + 60])
def test_an_end_that_is_over_or_far_away_is_refused(seconds: int) -> None:
    check_ends(maintained(FIRST, int(NOW) + 60), NOW)
    for release in (
        maintained(FIRST, int(NOW) + seconds),
        preferring(FIRST, "node2", int(NOW) + seconds),
    ):
        with pytest.raises(Refusal, match="use an end within 7 days"):
            check_ends(release, NOW)


# ---- Changes


def test_another_order_of_the_same_nodes_is_another_release() -> None:
    assert ordered(FIRST, ("node3", "node1", "node2")) != FIRST
    assert ordered(ordered(FIRST, ("node3", "node1", "node2")), tuple(FIRST.nodes)) == FIRST


def test_what_is_over_does_not_come_along() -> None:
    over = maintained(preferring(FIRST, "node2", int(NOW)), int(NOW))
    assert renewed(replace(over, cluster_key="QUJD"), NOW) == FIRST
    lasting = maintained(preferring(FIRST, "node2", int(NOW) + 1), int(NOW) + 1)
    assert renewed(lasting, NOW) == lasting


def test_draining_a_preferred_node_ends_its_preference() -> None:
    before = preferring(FIRST, "node2", int(NOW))
    assert drained(before, "node2").prefer is None
    assert drained(before, "node3").prefer == before.prefer
    assert undrained(drained(FIRST, "node2"), "node2") == FIRST


def test_no_node_is_preferred_while_the_role_is_to_stay_or_it_is_drained() -> None:
    with pytest.raises(Refusal, match="`maintenance off` first"):
        preferring(maintained(FIRST, int(NOW)), "node2", int(NOW))
    with pytest.raises(Refusal, match="`undrain node2` first"):
        preferring(drained(FIRST, "node2"), "node2", int(NOW))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: drained(r, "node9"),
        lambda r: undrained(r, "node9"),
        lambda r: preferring(r, "node9", int(NOW)),
    ],
)
def test_a_node_that_is_none_is_refused_with_those_there_are(
    change: Callable[[Release], Release],
) -> None:
    with pytest.raises(Refusal, match="no node 'node9': the cluster has node1, node2, node3"):
        change(FIRST)


@pytest.mark.parametrize("names", ["node1 node2", "node1 node2 node2", "node1 node2 node3 node9"])
def test_an_order_names_each_node_once(names: str) -> None:
    with pytest.raises(Refusal, match="name each node once, the most preferred first"):
        ordered(FIRST, tuple(names.split()))


def test_operators_come_and_go_but_for_the_last_one() -> None:
    both = signed_also_by(FIRST, HERS)
    assert signed_also_by(both, "ssh-ed25519 AAAAhers with another comment") == both
    assert signed_no_more_by(both, HERS) == FIRST
    with pytest.raises(Refusal, match="her@work is no operator: they are me@home"):
        signed_no_more_by(FIRST, HERS)
    with pytest.raises(Refusal, match="the last operator's key"):
        signed_no_more_by(FIRST, MINE)


def test_only_what_differs_is_told() -> None:
    after = failing_back(drained(signed_also_by(FIRST, HERS), "node2"), "never")
    assert changed_lines(FIRST, after) == [
        "failback: auto -> never",
        "drained: none -> node2",
        "operators: me@home -> me@home, her@work",
    ]
    assert changed_lines(FIRST, FIRST) == []
