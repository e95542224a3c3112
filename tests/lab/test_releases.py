"""Signed releases on real nodes: agents that are no good, orders, the operator's verbs, keys.

The fixture asserts at the end of each scenario that never two nodes answered 200.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.lab import STATE, process
from deploy.lab.network import FABRIC
from deploy.publish import RELEASE, SITE, held_release
from deploy.release import Release
from tests.conftest import NO_LAB
from tests.keys import make_key
from tests.lab.cluster import (
    CHECKOUT,
    BootedLab,
    build_of,
    lab,
    publish_changed,
    publish_loader,
    verb,
    web_site_serves,
)

pytestmark = pytest.mark.lab

AGENT = (CHECKOUT / "agent/loader.py").read_bytes()
CLUSTER = ("--cluster", str(STATE))
NAMES = ("node1", "node2", "node3")
ONE_LOOK = (3, 2, 2, 0)
"""Nodes; seconds from run to run, from look to look, and of a pause: 0, a crash costs the less."""


in_a_lab = pytest.mark.parametrize("machine", [ONE_LOOK], indirect=True, ids=["2/2 s"])


def as_usual(release: Release) -> Release:
    """What a lab begins with."""
    nodes = {name: release.nodes[name] for name in sorted(release.nodes)}
    settings = replace(release.settings, failback="auto")
    usual = replace(release, nodes=nodes, settings=settings, drained=(), prefer=None)
    return replace(usual, maintenance_until=None)


@pytest.fixture
def released(cluster: BootedLab) -> Iterator[BootedLab]:
    """The lab whose nodes all go by the newest release, and run the agent of this checkout."""

    def are_ready() -> bool:
        held = held_release(STATE)
        number = held.generation if held else 0
        return goes_by(cluster, number) == {*NAMES} == cluster.runs(build_of(AGENT))

    cluster.wait("ready", are_ready, 20 * cluster.period_seconds)
    cluster.settles_on("node1")
    yield cluster
    publish_changed(as_usual)


def told(cluster: BootedLab, name: str) -> dict[str, Any]:
    """What a node says of its releases."""
    return dict(cluster.status(name).get("release", {}))


def goes_by(cluster: BootedLab, generation: int) -> set[str]:
    """The nodes that say that this release is in effect."""
    return {name for name in cluster.nodes if told(cluster, name).get("effective") == generation}


def logged(cluster: BootedLab, said: str) -> list[tuple[str, str]]:
    """When which node's log said that, in order: UTC, as the log writes it."""
    return sorted(
        (line[:23].replace(",", "."), name)
        for name in cluster.nodes
        for line in cluster.log(name).splitlines()
        if line.endswith(said)
    )


def taken_by(cluster: BootedLab, generation: int) -> list[str]:
    """The nodes that put the agent of this release in place, one after the other."""
    said = f"File loader.py is replaced by that of release {generation}."
    return [name for _, name in logged(cluster, said)]


def passes(cluster: BootedLab, periods: int) -> None:
    """Wait until every node has looked again after so many periods."""
    later = time.time() + periods * cluster.period_seconds
    cluster.wait(f"{periods} periods later", lambda: cluster.has_looked_since(later, NAMES))


def see_all(cluster: BootedLab) -> bool:
    """Whether every node reached every other one in its last look; one may be late in a look."""
    return all(len(cluster.status(name).get("reachable", "")) == len(NAMES) for name in NAMES)


# ---- Agents


@in_a_lab
def test_a_new_agent_comes_to_passive_nodes_first_and_to_the_active_one_last_by_a_handover(
    released: BootedLab,
) -> None:
    began = time.time()
    content = AGENT + b"\n# another version\n"
    generation = publish_loader(content)
    build = build_of(content)
    released.wait("everywhere", lambda: released.runs(build) == {*NAMES}, 60)
    assert taken_by(released, generation) == ["node3", "node2", "node1"]
    released.settles_on("node1")
    assert released.roles(began) == ["node1", "node2", "node1"]
    assert released.gap_seconds(since=began) < 1


IN_A_RUN = "    identity = who_am_i("
BAD_AGENTS = {
    "raises at import": ("class BadInput(", "if not sys.argv[1:]:\n    raise OSError\n\n\n"),
    "raises in its first request": ("        with session.request(", "        raise KeyError\n"),
    "loops for ever": (IN_A_RUN, "    while True:\n        pass\n"),
    "kills its own process group": (IN_A_RUN, "    os.kill(0, 9)\n"),
    "ends with 0 and decides nothing": (
        "class BadInput(",
        "if not sys.argv[1:]:\n    sys.exit(0)\n\n\n",
    ),
    "says that its node is at fault": (IN_A_RUN, "    raise BadInput('boom')\n"),
    "works on two nodes only": (
        IN_A_RUN,
        "    if socket.gethostname() == 'node2':\n        raise OSError\n",
    ),
}


def bad_agent(place: str, lines: str) -> bytes:
    """This checkout's agent with these lines before that place; it passes its self-check."""
    text = AGENT.decode()
    assert text.count(place) == 1
    return text.replace(place, lines + place).encode()


def is_undone(cluster: BootedLab, name: str, content: bytes) -> bool:
    """Whether the node runs the agent of before, and will not try that one again."""
    here = "/etc/bootstrap"
    shown = f"cat {here}/loader.refused; test -e {here}/loader.trial && echo on trial; true"
    said = cluster.shell(name, "sh", "-c", shown)
    return said.startswith(build_of(content)) and "on trial" not in said


@in_a_lab
def test_a_bad_agent_is_undone_where_it_was_tried_and_goes_no_further(released: BootedLab) -> None:
    """One after the other: each is a release of its own, and no remedy of the one before."""
    for bad, (place, lines) in BAD_AGENTS.items():
        print(f"an agent that {bad}")
        content, began = bad_agent(place, lines), time.time()
        generation = publish_loader(content)
        tried = ["node3", "node2"] if "two nodes" in bad else ["node3"]
        failed = tried[-1]
        released.wait("undone", lambda: is_undone(released, failed, content), 60)  # noqa: B023
        passes(released, 2)
        assert taken_by(released, generation) == tried
        assert released.runs(build_of(AGENT)) == {*NAMES} - {*tried[:-1]}
        why = f"{failed} refuses generation {generation}: its loader.py failed on this node"
        assert why in verb("status")
        journal = ("journalctl", "-u", "rollback.service", "--since", f"@{began:.0f}", "-o", "cat")
        assert "loader.py failed on trial" in released.shell(failed, *journal)
        assert released.roles(began) == ["node1"]
        assert released.gap_seconds(since=began) < 1, f"an agent that {bad}\n{released.dump()}"


SMALL_DISK = """
systemctl stop loader.timer
cp -a /etc/bootstrap /run/aside
mount -t tmpfs -o size=3m,mode=755 none /etc/bootstrap
cp -a /run/aside/. /etc/bootstrap
systemctl start loader.timer
"""
USUAL_DISK = """
systemctl stop loader.timer
umount --lazy /etc/bootstrap
rm -r /run/aside
systemctl start loader.timer
"""
FILLS = (
    IN_A_RUN,
    "    with open('/etc/bootstrap/filler', 'ab', 0) as filler:\n"
    "        while True:\n            filler.write(bytes(4096))\n",
)


@in_a_lab
def test_an_agent_that_fills_the_disk_is_undone_on_the_disk_that_is_full(
    released: BootedLab,
) -> None:
    released.shell("node3", "sh", "-ec", SMALL_DISK)
    try:
        content, began = bad_agent(*FILLS), time.time()
        publish_loader(content)
        released.wait("undone", lambda: is_undone(released, "node3", content), 60)
        passes(released, 3)
        assert "No space left on device" in released.log("node3")
        full = released.shell("node3", "sh", "-c", "cat /dev/zero >> /etc/bootstrap/filler || true")
        assert "No space left on device" in full
        passes(released, 3)
        assert released.runs(build_of(AGENT)) == {*NAMES}
        assert released.roles(began) == ["node1"]
        assert released.gap_seconds(since=began) < 1
    finally:
        released.shell("node3", "sh", "-ec", USUAL_DISK)


# ---- The operator's verbs


@in_a_lab
def test_the_order_changes_while_it_runs_and_who_was_away_catches_up_before_it_is_active(
    released: BootedLab,
) -> None:
    began = time.time()
    said = verb("order", "node3", "node1", "node2")
    assert "order: node1 node2 node3 -> node3 node1 node2" in said
    assert said.endswith("node3 is active and the load balancer serves it.\n")
    assert released.roles(began) == ["node1", "node3"]
    assert released.gap_seconds(since=began) < 1
    released.off("node2")
    said = verb("order", "node2", "node3", "node1")
    assert "node2 is not reached" in said
    away = time.time()
    released.on("node2")
    released.settles_on("node2")
    number = held_release(STATE).generation  # type: ignore[union-attr]
    caught_up = logged(released, f"Release {number} has an effect from the next run on.")
    first = released.first_200("node2", since=away)
    assert first
    assert "node2" in {name for when, name in caught_up if when < utc_text(first)}
    assert released.roles(away) == ["node3", "node2"]
    assert released.gap_seconds(since=away) < 1
    back = time.time()
    verb("order", *NAMES)
    released.settles_on("node1")
    assert released.roles(back) == ["node2", "node1"]


def utc_text(seconds: float) -> str:
    """As the log writes it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + f"{seconds % 1:.3f}"[1:]


@in_a_lab
def test_a_drained_node_gives_the_role_away_and_still_votes(released: BootedLab) -> None:
    began = time.time()
    said = verb("drain", "node1")
    assert said.endswith("node2 is active and the load balancer serves it.\n")
    released.off("node3")
    passes_of_two = time.time() + 3 * released.period_seconds
    released.wait("later", lambda: released.has_looked_since(passes_of_two, ["node1", "node2"]))
    assert released.active() == {"node2"}, "node1 does not vote"
    assert "Drained: node1." in verb("status")
    released.on("node3")
    said = verb("undrain", "node1")
    released.settles_on("node1")
    assert released.roles(began) == ["node1", "node2", "node1"]
    assert released.gap_seconds(since=began) < 1


@in_a_lab
def test_a_switchover_is_over_after_its_time_and_the_role_stays_then_where_there_is_no_failback(
    released: BootedLab,
) -> None:
    began = time.time()
    said = verb("switchover", "--to", "node3", "--for", "15s")
    assert said.endswith("node3 is active and the load balancer serves it.\n")
    assert time.time() - began < 15
    assert "Preferred for now: node3." in verb("status")
    released.wait("over", lambda: released.active() == {"node1"}, 40)
    assert time.time() - began >= 15
    verb("failback", "never")
    asked = time.time()
    said = verb("switchover", "--for", "15s")
    assert said.endswith("node2 is active and the load balancer serves it.\n")
    released.wait("over", lambda: time.time() - asked > 15, 20)
    passes(released, 3)
    shown = verb("status")
    assert "Failback: never." in shown
    assert "Preferred" not in shown
    assert released.active() == {"node2"}
    said = verb("failback", "auto")
    released.settles_on("node1")
    assert released.roles(began) == ["node1", "node3", "node1", "node2", "node1"]
    assert released.gap_seconds(since=began) < 1


@in_a_lab
def test_in_a_maintenance_the_role_stays_but_for_a_node_that_is_lost(released: BootedLab) -> None:
    released.off("node1")
    released.settles_on("node2")
    said = verb("maintenance", "on", "--for", "10m")
    assert "node1 is not reached" in said
    kept = time.time()
    released.on("node1")
    released.wait("taken by who was off", lambda: goes_by_newest(released) == {*NAMES})
    passes(released, 3)
    assert released.roles(kept) == ["node2"], "a failback"
    assert "Maintenance until " in verb("status")
    released.off("node2")
    released.settles_on("node1")
    released.on("node2")
    verb("maintenance", "off")
    released.settles_on("node1")


def goes_by_newest(cluster: BootedLab) -> set[str]:
    """The nodes by which the newest release is in effect."""
    held = held_release(STATE)
    return goes_by(cluster, held.generation if held else 0)


@in_a_lab
def test_a_node_that_is_replaced_is_asked_at_its_new_address(
    released: BootedLab, tmp_path: Path
) -> None:
    """The fabric leads a second address to node3: what its peers ask from then on."""
    began, file = time.time(), tmp_path / "nodes_info.json"
    nodes = json.loads((STATE / "nodes_info.json").read_text())
    nodes["node3"]["public_ip"] = "198.51.100.66"
    file.write_text(json.dumps(nodes))
    leads = (
        f"add element ip translation inwards {{ 198.51.100.66 : {nodes['node3']['private_ip']} }}"
    )
    subprocess.run(["ip", "netns", "exec", FABRIC, "nft", leads], check=True, timeout=10)
    said = verb("publish", *CLUSTER, "--nodes-info", str(file))
    assert "node3: 10.0.0.6 198.51.100.6 -> 10.0.0.6 198.51.100.66" in said
    passes(released, 2)
    asked = "Node Name: node3 with public IP: 198.51.100.66 is remote"
    assert all(asked in released.log(name) for name in ("node1", "node2"))
    released.wait("all see all", lambda: see_all(released))
    assert released.roles(began) == ["node1"]
    assert released.gap_seconds(since=began) < 1


# ---- Keys


@in_a_lab
def test_the_clusters_key_is_rotated_with_a_node_that_follows_when_it_returns(
    released: BootedLab,
) -> None:
    def keys() -> set[str]:
        files = [released.root(name) / "etc/bootstrap/cluster.key" for name in NAMES]
        return {file.read_text() for file in (*files, STATE / "cluster.key")}

    (before,) = keys()
    began = time.time()
    released.off("node3")
    said = verb("keys", "rotate")
    assert "cluster's key: none -> a new one" in said
    assert "node3 is not reached" in said
    assert keys() > {before}, "node3 has it already"
    released.on("node3")
    released.wait("the new key everywhere", lambda: len(keys()) == 1, 30)
    assert keys() != {before}
    passes(released, 2)
    released.wait("all see all", lambda: see_all(released))
    assert released.roles(began) == ["node1"]
    assert released.gap_seconds(since=began) < 1


# ---- What nobody signed, and a web site that is gone


@in_a_lab
def test_what_nobody_signed_is_refused_by_every_node_and_by_the_operators_verbs(
    released: BootedLab,
) -> None:
    verb("drain", "node3")
    began, site = time.time(), STATE / SITE / RELEASE
    genuine = site.read_bytes()
    number = json.loads(genuine)["generation"]
    forged = {
        "unsigned": (number + 1, "release.json.sig: status 404"),
        "other content": (number, "this node holds another one of that number"),
        "older": (1, f"older than {number}, which this node holds"),
    }
    try:
        for what, (generation, why) in forged.items():
            other = json.loads(genuine) | {"generation": generation, "drained": ["node2"]}
            site.write_bytes(json.dumps(other).encode())
            said = f"generation {generation}: {why}"
            released.wait(
                f"refused: {what}",
                lambda said=said: all(told(released, n).get("refused") == said for n in NAMES),  # type: ignore[misc]
            )
            assert f"node2 refuses {said}" in " ".join(verb("status").split())
            assert f"generation {generation}" in verb("drain", "node2", code=2)
    finally:
        site.write_bytes(genuine)
    released.wait("well", lambda: not any(told(released, name)["refused"] for name in NAMES))
    assert goes_by(released, number) == {*NAMES}
    assert released.roles(began) == ["node1"]
    assert released.gap_seconds(since=began) < 1


@in_a_lab
def test_without_its_web_site_a_node_that_reboots_goes_on_by_the_release_that_it_holds(
    released: BootedLab,
) -> None:
    verb("order", "node2", "node1", "node3")
    released.settles_on("node2")
    process.kill("web-site")
    try:
        assert not web_site_serves()
        began = time.time()
        released.off("node2")
        released.settles_on("node1")
        released.on("node2")
        released.settles_on("node2")
        passes(released, 3)
        assert released.roles(began) == ["node2", "node1", "node2"]
        assert goes_by_newest(released) == {*NAMES}
    finally:
        lab("up")


# ---- From the version before


BEFORE_RELEASES = "1501c31fa014"
"""The last commit whose nodes know of no releases."""


@pytest.fixture
def lab_of_before(tmp_path: Path) -> Iterator[BootedLab]:
    """A lab that the checkout of that commit has brought up; never two of its nodes were active."""
    checkout = tmp_path / "before"
    checkout.mkdir()
    asked = ["git", "-C", str(CHECKOUT), "archive", BEFORE_RELEASES]
    archive = subprocess.run(asked, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"needs the repository's history: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(checkout)], input=archive.stdout, check=True)
    verb("lab", "up", "--period-seconds", "2", checkout=checkout)
    cluster = BootedLab(3, 2, 2)
    cluster.watch()
    try:
        cluster.settles_on("node1")
        yield cluster
    finally:
        cluster.stop_watching()
    cluster.assert_never_two()


@pytest.mark.usefixtures("no_lab")
@pytest.mark.parametrize("machine", [NO_LAB], indirect=True)
def test_a_cluster_of_the_version_before_goes_over_to_releases_by_one_publish(
    lab_of_before: BootedLab, tmp_path: Path
) -> None:
    cluster, began = lab_of_before, time.time()
    key = make_key(tmp_path / "operator", "me@home")
    config = tmp_path / "cluster.toml"
    signed = (*CLUSTER, "--key", str(key))
    assert "node1 runs with 2, and that is fixed" in verb("publish", *signed, code=2)
    config.write_text("period_seconds = 2\n")
    said = verb("publish", *signed, "--config", str(config))
    assert "Release 1 of lab is published." in said
    assert cluster.runs(build_of(AGENT)) == goes_by(cluster, 1) == {*NAMES}
    assert "\nRelease 1.\n" in verb("status")
    assert cluster.roles(began) == ["node1"]
    assert cluster.gap_seconds(since=began) < 1
    said = verb("drain", "node1", "--key", str(key))
    assert said.endswith("node2 is active and the load balancer serves it.\n")
