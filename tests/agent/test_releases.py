"""Releases, as a node takes them: real signatures, a real web server, real files."""

import base64
import hashlib
import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import loader
from tests.agent.world import (
    KEY,
    SOURCE,
    WEB_SITE_HOST,
    World,
    conditional,
    open_world,
    operator,
)
from tests.web import CLOSES, SILENT, Asked, Page


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node3 of three, while node1 is active: its agent is the first to be replaced."""
    with open_world(tmp_path / "root", monkeypatch, me="node3") as found:
        found.leads("node1")
        yield found


def take(world: World) -> dict[str, Any]:
    """Ask for a release once; what came of it."""
    held = loader.read_kept(world.paths).generation
    until = time.monotonic() + 10
    loader.take_release(loader.new_session(), world.web_site, held, world.paths, until)
    found: dict[str, Any] = loader.read_json(world.paths.asked) or {}
    return found


def held(world: World) -> int:
    return loader.read_kept(world.paths).generation


# ------------------------------------------------ kept


def test_a_release_that_an_operator_signed_is_kept_whole(world: World) -> None:
    code = world.paths.loader.read_text() + "# newer\n"
    release = world.release(code, drained=["node2"])
    world.publish(release)
    assert take(world)["refused"] == ""
    folder = world.paths.releases / "1"
    assert json.loads((folder / "release.json").read_text()) == release
    assert (folder / "loader.py").read_text() == code
    kept = loader.read_kept(world.paths)
    assert (kept.generation, kept.effective) == (1, None)
    assert world.paths.loader.read_text() != code  # it is not what runs yet


def test_the_second_time_it_costs_a_304_and_no_process_and_writes_nothing(world: World) -> None:
    world.publish(world.release())
    take(world)
    said = world.programs / "ssh-keygen"
    said.write_text("#!/bin/sh\ntouch called\n")
    said.chmod(0o755)
    before = world.listing()
    take(world)
    assert world.listing() == before
    asked = world.cloud.site(WEB_SITE_HOST).asked_for("/bootstrap/release.json")
    assert [("If-None-Match" in one.headers) for one in asked] == [False, True]


def test_a_web_server_without_etags_costs_no_process_either(world: World) -> None:
    release = json.dumps(world.release()).encode()
    world.publish(release)
    world.site("release.json", Page(release))
    take(world)
    before = world.listing()
    take(world)
    assert world.listing() == before


def test_its_agent_is_not_downloaded_where_it_is_here(world: World) -> None:
    world.publish(world.release())
    take(world)
    asked = [one.path for one in world.cloud.site(WEB_SITE_HOST).asked]
    assert not [path for path in asked if path.endswith("/loader.py")]


def test_what_an_agents_check_leaves_behind_holds_nothing_up(world: World) -> None:
    """A process of a session of its own, which is not killed and keeps the check's output open."""
    line = "__import__('subprocess').Popen(['sleep', '25'], start_new_session=True)"
    world.publish(world.release(changed(world, "class BadInput(", f"{line}\nclass BadInput(")))
    began = time.monotonic()
    assert (take(world)["refused"], held(world)) == ("", 1)
    assert time.monotonic() - began < 20


# ------------------------------------------------ refused


def changed(world: World, before: str, after: str) -> str:
    """Another agent: ours with one place changed."""
    agent = world.paths.loader.read_text()
    assert agent.count(before) == 1
    return agent.replace(before, after)


def unsigned(world: World) -> None:
    world.publish(world.release())
    del world.cloud.site(WEB_SITE_HOST).pages["/bootstrap/releases/2/release.json.sig"]


def other_file(world: World, page: Page) -> None:
    release = world.release(SOURCE + "# newer\n")
    world.publish(release)
    world.site(f"releases/{release['files']['loader.py']['sha256']}/loader.py", page)


def with_settings(world: World, **told: object) -> None:
    release = world.release()
    world.publish(release | {"settings": release["settings"] | told})


def changed_since(world: World) -> None:
    data = json.dumps(world.release()).encode()
    world.publish(data)
    world.site("release.json", Page(data.replace(b'"drained": []', b'"drained": ["node1"]')))


def signed_for(world: World, namespace: str) -> None:
    data = json.dumps(world.release()).encode()
    world.publish(data)
    signature = operator().sign(data, namespace)
    world.site("releases/2/release.json.sig", Page(signature))


def broken(world: World, line: str) -> None:
    code = changed(world, "class BadInput(", f"{line}\nclass BadInput(")
    world.publish(world.release(code))


NEWER = (SOURCE + "# newer\n").encode()
REFUSED: dict[str, tuple[Callable[[World], None], str]] = {
    "no signature": (unsigned, "release.json.sig: status 404"),
    "a stranger's signature": (
        lambda world: world.publish(world.release(), by=operator(2)),
        "its signature is no operator's",
    ),
    "a signature for something else": (
        lambda world: signed_for(world, "file"),
        "its signature is no operator's",
    ),
    "changed since it was signed": (changed_since, "its signature is no operator's"),
    "another cluster's": (
        lambda world: world.publish(world.release(cluster="billing")),
        "it is of the cluster billing, and this node's lab",
    ),
    "older": (
        lambda world: world.publish(world.release(generation=1, published="yesterday")),
        "this node holds another one of that number",
    ),
    "another agent than it names": (
        lambda world: other_file(world, Page(NEWER[::-1])),
        "its loader.py is another one than it names, by size or SHA-256",
    ),
    "less of it": (
        lambda world: other_file(world, Page(NEWER[:-1])),
        "its loader.py is another one than it names, by size or SHA-256",
    ),
    "more of it": (
        lambda world: other_file(world, Page(NEWER + b"#")),
        f"loader.py: more than {len(NEWER)} bytes",
    ),
    "part of it": (
        lambda world: other_file(world, Page(NEWER[:9], promised_bytes=len(NEWER))),
        "its answer is not whole",
    ),
    "none of it": (
        lambda world: other_file(world, Page("", 404)),
        "loader.py: status 404",
    ),
    "another period": (
        lambda world: with_settings(world, period_seconds=20, look_seconds=20),
        "period_seconds = 20: this node runs with 4, which is fixed while nodes run (failover"
        " within 30.8 s, not 8.8 s)",
    ),
    "a pause that nobody promised": (
        lambda world: with_settings(world, pause_seconds=5),
        "pause_seconds = 5: this node runs with 0, which is fixed while nodes run (failover"
        " within 12.8 s, not 8.8 s)",
    ),
    "settings that break a rule": (
        lambda world: with_settings(world, look_seconds=3),
        "look_seconds = 3: use a divisor of period_seconds = 4, 2 or more",
    ),
    "a failback of nobody": (
        lambda world: with_settings(world, failback="soon"),
        "release.json: its failback is no auto, never, or 1 to 86400 seconds",
    ),
    "another number of nodes": (
        lambda world: world.publish(world.release(nodes={"node9": world.nodes["node1"]})),
        "release.json: 1 nodes: use an odd number, 3 or more",
    ),
    "other nodes": (
        lambda world: world.publish(
            world.release(
                nodes={("node9" if n == "node1" else n): e for n, e in world.nodes.items()}
            )
        ),
        "it has the nodes node9, node2, node3, not node1, node2, node3: majorities of other nodes"
        " need not overlap, so who replaces a node has its name",
    ),
    "all drained": (
        lambda world: world.publish(world.release(drained=["node1", "node2", "node3"])),
        "release.json: all nodes are drained: leave one out",
    ),
    "drained, and nobody's": (
        lambda world: world.publish(world.release(drained=["node7"])),
        "release.json: it asks something of a node that it does not have",
    ),
    "drained and preferred": (
        lambda world: world.publish(
            world.release(drained=["node2"], prefer={"node": "node2", "until": 2_000_000_000})
        ),
        "release.json: a node is drained and preferred at once",
    ),
    "signed by nobody from now on": (
        lambda world: world.publish(world.release(allowed_signers="")),
        "release.json: a line of its allowed_signers is none",
    ),
    "signed by anybody for anything from now on": (
        lambda world: world.publish(world.release(allowed_signers="* ssh-ed25519 AAAA\n")),
        "release.json: a line of its allowed_signers is none",
    ),
    "without a part": (
        lambda world: world.publish(
            {name: part for name, part in world.release().items() if name != "drained"}
        ),
        "release.json: it has no drained",
    ),
    "a text where a number belongs": (
        lambda world: world.publish(world.release(maintenance_until="tomorrow")),
        "release.json: maintenance_until is 'tomorrow': not of the type it should be",
    ),
    "an agent that raises at import": (
        lambda world: broken(world, "raise RuntimeError('boom')"),
        "its loader.py fails its self-check: exit code 1, 'RuntimeError: boom'",
    ),
    "an agent that does not compile": (
        lambda world: broken(world, "def ("),
        "its loader.py fails its self-check: exit code 1, 'SyntaxError: invalid syntax'",
    ),
    "a key that is none": (
        lambda world: world.publish(world.release(cluster_key="secret")),
        "release.json: its cluster_key is no base64",
    ),
    "a key that is for another": (
        lambda world: world.publish(world.release(cluster_key="c2FsdA==")),
        "its new key of the cluster is not for the one that this node has",
    ),
}


@pytest.mark.parametrize(("publish", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_said_once_and_changes_nothing(
    world: World,
    publish: Callable[[World], None],
    sentence: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    world.publish(world.release())
    take(world)
    before = [path.read_bytes() for path in sorted(world.paths.etc.rglob("*")) if path.is_file()]
    publish(world)
    refused = take(world)["refused"]
    assert refused == f"generation {world.generation}: {sentence}"
    take(world)
    assert capfd.readouterr().out.count("release not taken") == 1
    now = [path.read_bytes() for path in sorted(world.paths.etc.rglob("*")) if path.is_file()]
    assert now[: len(before)] == before or held(world) == 1
    assert held(world) == 1
    world.publish(world.release())  # the remedy
    assert (take(world)["refused"], held(world)) == ("", world.generation)


def test_a_node_whose_units_know_no_looks_takes_a_release_with_one_look_a_run(
    world: World,
) -> None:
    """Its loader.conf says nothing of looks, and its status that it looks once a run."""
    world.paths.unit.parent.mkdir(parents=True)
    world.paths.unit.write_text("[Service]\nType=oneshot\n")
    world.publish(world.release())
    world.paths.conf.write_text("[loader]\nperiod_seconds = 4\npause_seconds = 0\n")
    assert (take(world)["refused"], held(world)) == ("", 1)


def test_an_older_release_is_refused(world: World) -> None:
    old = world.release()
    world.publish(world.release(generation=5))
    take(world)
    world.publish(old)
    assert take(world)["refused"] == "generation 1: older than 5, which this node holds"
    assert held(world) == 5


NO_RELEASE = {
    "a page for every name": Page("<!doctype html><h1>Sign in</h1>"),
    "a list": Page("[1]"),
    "a number that is none": Page('{"generation": "7"}'),
    "one name twice": Page('{"generation": 7, "generation": 8}'),
    "without end": Page("[" * 100_000),
    "nothing": Page(""),
}


@pytest.mark.parametrize("page", NO_RELEASE.values(), ids=NO_RELEASE)
def test_what_is_no_release_is_refused_before_anything_is_asked_for(
    world: World, page: Page
) -> None:
    world.publish(world.release())
    world.site("release.json", page)
    assert take(world)["refused"].startswith("generation ?: release.json: ")
    assert held(world) == 0


@pytest.mark.parametrize("page", [SILENT, Page("", 404), Page("", 500), Page("", 302)])
def test_a_web_site_that_is_gone_changes_nothing(world: World, page: Page) -> None:
    world.publish(world.release())
    take(world)
    before = loader.read_json(world.paths.asked)
    world.site("release.json", page)
    assert take(world) == before
    assert held(world) == 1


def test_what_was_refused_is_asked_for_again_after_ten_minutes(world: World) -> None:
    """Whoever sat between may have made it wrong, once."""
    data = json.dumps(world.release()).encode()
    world.publish(data)
    right = world.cloud.site(WEB_SITE_HOST).pages["/bootstrap/releases/1/release.json.sig"]
    world.site("releases/1/release.json.sig", Page(operator(2).sign(data)))
    told = take(world)
    world.site("releases/1/release.json.sig", right)
    assert take(world)["refused"] == told["refused"]
    world.paths.asked.write_text(json.dumps(told | {"at": time.time() - 601}))
    assert (take(world)["refused"], held(world)) == ("", 1)


def a_week_later(world: World) -> None:
    told = loader.read_json(world.paths.asked)
    assert told is not None
    week_seconds = 7 * 86_400
    world.paths.asked.write_text(json.dumps(told | {"at": told["at"] - week_seconds}))


def test_a_tag_that_was_falsified_keeps_a_node_from_newer_releases_for_minutes_only(
    world: World,
) -> None:
    """Somebody answered once in the web site's place, with the true release and a tag of all."""
    first = json.dumps(world.release()).encode()
    world.publish(first)
    world.site("release.json", Page(first, headers={"ETag": "*"}))
    take(world)
    assert held(world) == 1
    world.publish(world.release(drained=["node2"]))
    right = conditional(json.dumps(world.release(generation=2, drained=["node2"])).encode())

    def as_servers_do(asked: Asked) -> Page:  # RFC 9110, section 13.1.2
        return Page("", 304) if asked.headers.get("If-None-Match") == "*" else right(asked)

    world.site("release.json", as_servers_do)
    a_week_later(world)
    assert (take(world)["refused"], held(world)) == ("", 2)


def test_what_a_stranger_has_refused_does_not_fill_the_status(world: World) -> None:
    """Without any key: a name of 28,000 bytes that is there twice."""
    name = "\U000e0001" * 7000
    world.settings(bootstrap_url=world.web_site)
    world.site("release.json", Page(f'{{"{name}": 1, "{name}": 1}}'))
    runs_until(world, lambda: bool(status(world)["refused"]))
    assert world.paths.status.stat().st_size < 8192


# ------------------------------------------------ who may sign


def both() -> str:
    return operator().signers + operator(2).signers


def test_a_release_says_who_may_sign_the_next(world: World) -> None:
    world.publish(world.release(allowed_signers=both()))
    take(world)
    world.publish(world.release(allowed_signers=operator(2).signers), by=operator(2))
    take(world)
    assert held(world) == 2
    world.publish(world.release())
    assert "no operator's" in take(world)["refused"]


def test_a_node_that_was_away_follows_who_could_sign_through_what_it_missed(world: World) -> None:
    world.publish(world.release())
    take(world)
    world.publish(world.release(allowed_signers=both()), newest=False)
    world.publish(world.release(allowed_signers=operator(2).signers), newest=False)
    world.generation += 1  # a number that was never published
    world.publish(world.release(allowed_signers=operator(2).signers), by=operator(2))
    assert (take(world)["refused"], held(world)) == ("", 5)
    assert world.paths.signers.read_text() == operator(2).signers


def test_what_was_missed_makes_nobody_an_operator_whom_no_operator_named(world: World) -> None:
    world.publish(world.release())
    take(world)
    world.publish(world.release(allowed_signers=both()), by=operator(2), newest=False)
    world.publish(world.release(allowed_signers=operator(2).signers), by=operator(2))
    assert "no operator's" in take(world)["refused"]
    assert held(world) == 1


def test_what_an_operator_signed_for_another_cluster_says_nothing_here(world: World) -> None:
    world.publish(world.release())
    take(world)
    world.publish(world.release(cluster="billing", allowed_signers=both()), newest=False)
    world.publish(world.release(allowed_signers=both()), by=operator(2))
    assert "no operator's" in take(world)["refused"]


def test_a_node_from_before_releases_believes_the_first_one_and_only_that(world: World) -> None:
    for path in (world.paths.signers, world.paths.cluster):
        path.unlink()
    world.paths.asked.write_text(json.dumps({"etag": '"of loader.py"', "sha256": "0" * 64}))
    world.publish(world.release(cluster="billing"))
    take(world)
    assert (held(world), world.paths.cluster.read_text()) == (1, "billing\n")
    world.publish(
        world.release(cluster="billing", allowed_signers=operator(2).signers), by=operator(2)
    )
    assert "no operator's" in take(world)["refused"]


def test_a_file_of_signers_that_is_no_text_lets_nobody_sign(world: World) -> None:
    """An operator put a key there by hand, with a comment in Latin-1."""
    world.paths.signers.write_bytes(operator().signers.encode() + b"# Jos\xe9\n")
    world.publish(world.release(allowed_signers=operator(2).signers), by=operator(2))
    assert str(world.paths.signers) in take(world)["refused"]
    assert held(world) == 0


def test_power_lost_between_its_signers_and_its_release_leaves_the_ones_of_before(
    world: World,
) -> None:
    """By release 2, which is not whole, the operator who signed it is none any more."""
    world.publish(world.release(allowed_signers=both()))
    take(world)
    world.publish(world.release(allowed_signers=operator(2).signers))
    world.paths.signers.write_text(operator(2).signers)
    assert (take(world)["refused"], held(world)) == ("", 2)
    assert world.paths.signers.read_text() == operator(2).signers


# ------------------------------------------------ the cluster's key


def wrapped(new: str, old: str, folder: Path) -> str:
    """The new key for whoever has the old one, as an operator's computer makes it."""
    file = folder / "old.key"
    file.write_text(f"{old}\n")
    words = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-iter", "100000", "-salt"]
    ran = subprocess.run(
        [*words, "-pass", f"file:{file}"], input=f"{new}\n".encode(), check=True,
        capture_output=True,
    )  # fmt: skip
    return base64.b64encode(ran.stdout).decode()


SECOND, THIRD = "2a" * 32, "3b" * 32


def test_a_new_key_is_kept_beside_the_old_one_for_root_alone(world: World, tmp_path: Path) -> None:
    world.publish(world.release(cluster_key=wrapped(SECOND, KEY, tmp_path)))
    take(world)
    assert world.paths.next_keys.read_text() == f"{SECOND} 1\n"
    assert stat.S_IMODE(world.paths.next_keys.stat().st_mode) == 0o600
    assert world.paths.key.read_text().strip() == KEY
    old, new = bytes.fromhex(KEY), bytes.fromhex(SECOND)
    keys = loader.read_keys(world.paths)
    assert loader.keys_in_turn(keys, 0) == [old, new]
    assert loader.keys_in_turn(keys, 1) == [new, old]


def test_a_second_new_key_before_all_have_the_first_leaves_all_three_accepted(
    world: World, tmp_path: Path
) -> None:
    world.goes_by(world.release(cluster_key=wrapped(SECOND, KEY, tmp_path)))
    world.publish(world.release(cluster_key=wrapped(THIRD, SECOND, tmp_path)))
    take(world)
    keys = [bytes.fromhex(key) for key in (SECOND, KEY, THIRD)]
    going = loader.read_kept(world.paths).effective
    assert going
    assert loader.keys_in_turn(loader.read_keys(world.paths), going.generation) == keys


def test_a_node_that_missed_two_keys_has_the_last(world: World, tmp_path: Path) -> None:
    world.publish(world.release())
    take(world)
    world.publish(world.release(cluster_key=wrapped(SECOND, KEY, tmp_path)), newest=False)
    world.publish(world.release(cluster_key=wrapped(THIRD, SECOND, tmp_path)), newest=False)
    world.publish(world.release())
    take(world)
    assert world.paths.next_keys.read_text() == f"{SECOND} 4\n{THIRD} 4\n"
    assert loader.keys_in_turn(loader.read_keys(world.paths), held(world))[0].hex() == THIRD


def test_a_machine_that_was_made_with_the_new_key_takes_the_release_that_brought_it(
    world: World, tmp_path: Path
) -> None:
    world.publish(world.release(cluster_key=wrapped(KEY, SECOND, tmp_path)))
    assert (take(world)["refused"], held(world)) == ("", 1)
    assert world.paths.key.read_text().strip() == KEY


# ------------------------------------------------ whole runs


def status(world: World) -> Any:
    return world.status()["release"]


def runs_until(world: World, wanted: Callable[[], bool]) -> None:
    """Good runs, until that is so: where a machine is busy one may be too short to take part."""
    for _ in range(8):
        assert world.run().code == 0
        if wanted():
            return
    pytest.fail("not so after eight runs")


def test_a_release_has_an_effect_once_every_peer_that_is_seen_shows_it(world: World) -> None:
    world.peers_hold = 0
    world.publish(world.release(drained=["node3"]))
    runs_until(world, lambda: status(world)["held"] == 1)
    assert status(world)["waits_for"] == ["node1", "node2"]
    world.run()
    assert (status(world)["effective"], world.status()["drained"]) == (0, False)
    world.peers_hold = 1
    world.run()
    assert status(world)["effective"] == 0  # from the next run on
    world.run()
    assert (status(world)["effective"], world.status()["drained"]) == (1, True)
    assert (
        world.status()["reason"] == "Node node3 makes way: the operator drained it, set as passive"
    )
    assert status(world)["waits_for"] == []
    shown = world.shown_to("node1")
    assert shown is not None
    assert (shown.release, shown.proven) == (1, True)


def test_a_refusal_stands_in_the_status_of_every_run(world: World) -> None:
    world.publish(world.release(), by=operator(2))
    runs_until(world, lambda: bool(status(world)["refused"]))
    journal = world.run().journal
    assert status(world)["refused"] == "generation 1: its signature is no operator's"
    assert "not taken" not in journal


def test_the_addresses_and_the_order_are_those_of_the_release_in_effect(world: World) -> None:
    entry = world.nodes["node2"]
    moved = entry | {"public_ip": f"127.0.1.9:{world.cloud.port}"}
    world.cloud.site("127.0.1.9").pages.update(world.cloud.site(world.hosts["node2"]).pages)
    world.publish(
        world.release(
            nodes={"node3": world.nodes["node3"], "node2": moved, "node1": world.nodes["node1"]}
        )
    )
    runs_until(world, lambda: status(world)["effective"] == 1)
    assert world.status()["reachable"] == ["node3", "node2", "node1"]
    assert world.cloud.site("127.0.1.9").asked_for("/node3.html")


def elsewhere(world: World) -> dict[str, Any]:
    """The nodes, with addresses of both peers at which nobody answers."""
    return {
        name: entry | ({} if name == world.me else {"public_ip": f"127.0.9.{name[4:]}:9"})
        for name, entry in world.nodes.items()
    }


def test_the_release_that_puts_every_address_right_is_gone_by_though_nobody_was_seen(
    world: World,
) -> None:
    """Release 1 has a wrong address of each peer, or they were made anew while this one was off."""
    world.goes_by(world.release(nodes=elsewhere(world)))
    world.publish(world.release())
    runs_until(world, lambda: status(world)["effective"] == 2)
    assert world.status()["reachable"] == ["node1", "node2", "node3"]


def test_the_kind_of_address_that_was_wrong_is_put_right_though_nobody_was_seen(
    world: World,
) -> None:
    """Here no peer answers at its private address."""
    settings = world.release()["settings"]
    world.goes_by(world.release(settings=settings | {"peer_address": "private"}))
    world.publish(world.release())
    runs_until(world, lambda: status(world)["effective"] == 2)


def test_an_agent_that_failed_elsewhere_is_not_taken_because_metadata_comes_late(
    world: World,
) -> None:
    """After a reboot this run fails; the agent of the release in effect runs on no other node."""
    before = world.paths.loader.read_text()
    world.goes_by(world.release(before + "# works on no node\n"))
    world.builds = {"node1": ("old", True), "node2": ("old", True)}
    world.cloud.site(world.metadata_host).pages.clear()
    assert world.run().code != 0
    assert world.paths.loader.read_text() == before


def test_a_new_key_takes_the_old_ones_place_once_all_nodes_sign_with_it(
    world: World, tmp_path: Path
) -> None:
    world.keys = (KEY, SECOND)
    world.publish(world.release(cluster_key=wrapped(SECOND, KEY, tmp_path)))
    runs_until(world, lambda: status(world)["effective"] == 1)
    world.run()
    assert world.paths.key.read_text().strip() == KEY  # the peers sign with the old one
    assert status(world)["waits_for"] == []  # and are heard
    world.keys = (SECOND, KEY)
    world.says("node2", Page("", 404))
    world.run()
    assert world.status()["reachable"] == ["node1", "node3"]
    assert world.paths.key.read_text().strip() == KEY  # node2 signs with it when it returns
    world.votes("node2")
    world.run()
    assert world.paths.key.read_text() == f"{SECOND}\n"
    assert world.paths.next_keys.read_text() == ""
    assert stat.S_IMODE(world.paths.key.stat().st_mode) == 0o600
    world.run()
    assert status(world)["waits_for"] == []


def test_releases_before_the_one_in_effect_are_removed(world: World) -> None:
    for _ in range(2):
        world.publish(world.release())
        runs_until(world, lambda: status(world)["effective"] == world.generation)
    assert [path.name for path in world.paths.releases.iterdir()] == ["2"]


def test_releases_that_one_peer_holds_up_do_not_pile_up(world: World) -> None:
    world.goes_by(world.release())
    world.peers_hold = 1
    for _ in range(3):
        world.publish(world.release())
        runs_until(world, lambda: status(world)["held"] == world.generation)
    world.run()
    names = {path.name for path in world.paths.releases.iterdir()}
    assert (names, status(world)["effective"]) == ({"1", "4"}, 1)


def test_an_ssh_keygen_that_knows_no_signatures_is_not_told_as_a_forgery(world: World) -> None:
    world.publish(world.release())
    old = world.programs / "ssh-keygen"
    old.write_text("#!/bin/sh\necho 'unknown option -- Y' >&2\necho usage: >&2\nexit 1\n")
    old.chmod(0o755)
    told = "generation 1: no help from ssh-keygen: OpenSSH 8.1 or newer is needed"
    assert take(world)["refused"] == told


DIES = """\
import os, sys, time
sys.path.insert(0, sys.argv[1])
import loader
number, real = int(sys.argv[2]), {}

def dying(name):
    def call(*words, **named):
        global number
        number -= 1
        if number < 0:
            os.kill(os.getpid(), 9)
        return real[name](*words, **named)
    return call

for name in ("mkdir", "replace", "unlink", "fsync"):
    real[name] = getattr(os, name)
    setattr(os, name, dying(name))
paths = loader.Paths()
loader.take_release(loader.new_session(), sys.argv[3], 0, paths, time.monotonic() + 10)
"""


def test_power_lost_at_any_step_leaves_a_release_that_is_held_whole_or_not_at_all(
    world: World, tmp_path: Path
) -> None:
    world.publish(world.release(cluster_key=wrapped(SECOND, KEY, tmp_path)))
    found = set()
    for number in range(60):
        command = [sys.executable, "-B", "-c", DIES, str(world.paths.etc), str(number)]
        command.append(world.web_site)
        ran = subprocess.run(command, capture_output=True, timeout=20, check=False)
        found.add(held(world))
        if held(world):
            code = (world.paths.releases / "1" / "loader.py").read_bytes()
            kept = loader.read_kept(world.paths).held
            assert kept and hashlib.sha256(code).hexdigest() == kept.loader.sha256
            assert [*loader.read_keys(world.paths).items()][1:] == [(bytes.fromhex(SECOND), 1)]
            break
        assert ran.returncode == -9, ran.stderr
    assert found == {0, 1}


AWKWARD = {
    "500": Page("", 500),
    "redirect": Page("", 302, {"Location": "/elsewhere"}),
    "silent": SILENT,
    "closes": CLOSES,
    "byte by byte": Page("{" * 9999, pause_seconds=0.05),
    "garbage": Page("<!doctype html><h1>It works!</h1>"),
    "half": Page('{"generation": 9}', promised_bytes=99),
    "without end": Page("[" * (1 << 20)),
}


@pytest.mark.parametrize("page", AWKWARD.values(), ids=AWKWARD)
def test_a_web_site_that_fails_leaves_the_agent_and_the_role_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Page
) -> None:
    with open_world(tmp_path / "root", monkeypatch) as world:
        world.goes_by(world.release())
        world.was_active()
        world.site("release.json", page)
        before = world.paths.loader.read_text()
        ran = world.run()
        assert (ran.code, world.active, held(world)) == (0, True, 1)
        assert world.paths.loader.read_text() == before
        assert ran.seconds < 0.95 * world.period
        if page is not SILENT and not page.pause_seconds:  # those may answer after the run's end
            assert [line for line in ran.log if "elease" in line and "INFO" not in line]


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_on_a_full_disk_a_release_is_not_held_and_the_next_run_takes_it(
    world: World, limit: int
) -> None:
    world.publish(world.release(world.paths.loader.read_text() + "# newer\n"))
    command = [sys.executable, "-B", "-c", DIES, str(world.paths.etc), "9999", world.web_site]
    limits = ["prlimit", f"--fsize={limit}"]
    ran = subprocess.run([*limits, *command], capture_output=True, timeout=20, check=False)
    assert b"Traceback" not in ran.stderr
    assert held(world) == 0
    take(world)
    assert held(world) == 1
