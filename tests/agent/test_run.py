"""Whole runs of the agent: real files under a temporary root, real answers from loopback."""

import calendar
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import loader
from tests.agent.systemd import Systemd
from tests.agent.world import (
    INSTANCE,
    KEY,
    LOAD_BALANCER,
    SOURCE,
    Ran,
    World,
    open_world,
)
from tests.web import CLOSES, SILENT, Asked, Page, open_web

MakeWorld = Callable[..., World]
ACTIVE = "Node node1 reachability reach quorum and is preferred, set as active"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        yield found


@pytest.fixture
def node2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node2, while node1 is active."""
    with open_world(tmp_path / "root", monkeypatch, me="node2") as found:
        found.leads("node1")
        yield found


@pytest.fixture
def slow_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, with the period of 20 s that a cluster has: time enough for any run."""
    with open_world(tmp_path / "root", monkeypatch, period=20) as found:
        yield found


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for the condition; fails when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


# ------------------------------------------------ runs without faults


def test_three_agents_that_see_each_other_make_node1_active(tmp_path: Path) -> None:
    with open_web() as cloud:
        nodes = {f"node{i}": World(tmp_path / f"{i}", cloud, me=f"node{i}") for i in (1, 2, 3)}
        for world in nodes.values():
            for peer in world.peers:
                marker = nodes[peer].paths.html / f"{world.me}.html"
                world.says(peer, file_page(marker))
        votes: list[Any] = []
        for _ in range(20):  # two will do; a busy machine starts them apart
            runs = [world.start() for world in nodes.values()]
            assert [run.wait(10) for run in runs] == [0, 0, 0]
            assert sum(world.active for world in nodes.values()) <= 1
            votes = [world.status()["vote"] for world in nodes.values()]
            if nodes["node1"].active and all(votes):
                break
        assert [name for name, world in nodes.items() if world.active] == ["node1"]
        assert [vote["candidate"] for vote in votes] == ["node1"] * 3


def file_page(path: Path) -> Callable[[Asked], Page]:
    def page(_: Asked) -> Page:
        try:
            return Page(path.read_text())
        except FileNotFoundError:
            return Page("not found", 404)

    return page


def peer_lines(world: World, peer: str) -> list[str]:
    address, marker = world.nodes[peer]["public_ip"], world.paths.html / f"{peer}.html"
    return [
        f"Node Name: {peer} with public IP: {address} is remote, perform connectivity test",
        f"HTTP Connectivity is successful to {address}",
        f"Able to reach {peer}, creating {marker} to let remote know connection from local to"
        " remote works",
        f"Now check if remote can see local by lookup {peer}.html on {world.me}",
        f"Confirmed {address} can see {world.me}",
        f"Both {world.me} and {peer} can see each other, add remote public IP to reachable list",
    ]


def expected_log(world: World, *last: str) -> list[str]:
    """The texts that operators of this design know, from the first line of a run to the last."""
    address = world.nodes[world.me]["public_ip"]
    lines = [
        "File release.json on the web site is unchanged, no need to take it.",
        "Reading instance metadata service",
        f"Local node name: {world.me}",
        f"Local node private IP: {world.nodes[world.me]['private_ip']}",
        "Reading load balancer metadata service",
        "Local node public IP: 198.51.100.4",
        "List of nodes in cluster: ['node1', 'node2', 'node3']",
        "There are total: 3 nodes in the cluster",
        "Require minimum 2 majority nodes to vote who's the active node",
        "Vote for node1 (promise of 27 s)",
    ]
    for name in world.nodes:
        local = f"Node Name: {name} with public IP: {address} is local, skip"
        lines += [local] if name == world.me else peer_lines(world, name)
    return [
        *lines,
        f"All reachable nodes (including local node): "
        f"{[entry['public_ip'] for entry in world.nodes.values()]}",
        "Total reachable nodes 3 is more than or equal to majority nodes 2",
        f"Filtered reachable ordered nodes {list(world.nodes.items())}",
        *last,
    ]


def test_the_log_of_an_active_node_has_the_known_wording_line_by_line(slow_world: World) -> None:
    slow_world.was_active()
    slow_world.goes_by(slow_world.release())
    ran = slow_world.run()
    assert ran.log == [f"INFO - {text}" for text in expected_log(slow_world, ACTIVE)]


def test_the_log_of_a_passive_node_has_the_known_wording_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, me="node2", period=20) as node2:
        node2.leads("node1")
        node2.goes_by(node2.release())
        ran = node2.run()
        last = (
            "Node node2 reachability reach quorum but not preferred, set as passive",
            "probe.html already does not exist",
        )
        assert ran.log == [f"INFO - {text}" for text in expected_log(node2, *last)]


def test_every_line_of_the_log_begins_with_its_time(world: World) -> None:
    world.run()
    lines = world.paths.logfile.read_text().splitlines()
    pattern = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (INFO|WARNING) - .")
    assert [line for line in lines if not pattern.match(line)] == []


def test_the_journal_gets_one_line_a_run_and_a_warning_when_the_role_changes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    assert world.run().journal == f"<4>active: {ACTIVE}"
    assert world.run().journal == f"<6>active: {ACTIVE}"
    world.paths.key.unlink()
    assert world.run().journal.startswith("<4>passive: ")
    assert world.run().journal.startswith("<4>passive: ")
    assert [line for line in world.log() if "Role changed" in line] == [
        "WARNING - Role changed from passive to active",
        "WARNING - Role changed from active to passive",
    ]


def test_a_run_that_gave_up_is_not_warned_of_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way a run ends, what it reported is what the next one compares with."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    world.run()
    world.paths.key.rename(world.paths.key.with_suffix(".kept"))
    assert world.run().journal.startswith("<4>passive: ")
    world.paths.key.with_suffix(".kept").rename(world.paths.key)
    world.leads("node2")
    assert world.run().journal.startswith("<6>passive: ")


def test_a_run_without_faults_and_without_a_web_site_takes_less_than_half_a_second(
    slow_world: World,
) -> None:
    slow_world.run()
    assert min(slow_world.run().seconds for _ in range(10)) < 0.5  # the least disturbed one


def test_the_fence_and_apache_know_the_end_of_the_lease_before_the_probe_appears(
    world: World,
) -> None:
    ran = world.run()
    call, pages = world.calls()[0]
    assert (call, ran.code, world.active) == ("StartTransientUnit", 0, True)
    assert "probe.html" not in pages.split()
    limit = calendar.timegm(time.strptime(world.paths.lease_until.read_text(), "%Y%m%d%H%M%S"))
    lease_seconds = world.times.lease_seconds - world.times.margin_seconds
    assert time.time() < limit <= time.time() + lease_seconds


def test_a_wall_clock_that_is_stepped_ahead_as_the_probe_is_renewed_puts_off_no_limit(
    world: World,
) -> None:
    source, read = world.installed(SOURCE), "offset_seconds = time.time() - self.now()[0]\n"
    assert source.count(read) == 1
    world.paths.loader.write_text(source.replace(read, f"{read[:-1]} + 60\n"))
    world.start().communicate()
    assert world.active
    limit = calendar.timegm(time.strptime(world.paths.lease_until.read_text(), "%Y%m%d%H%M%S"))
    assert limit <= time.time() + world.times.lease_seconds - world.times.margin_seconds


def test_a_process_that_stands_still_before_it_arms_its_fence_puts_off_none(world: World) -> None:
    source, read = world.installed(SOURCE), "self.now()[0]"
    serve = source.index("    def serve(")
    stood_still = f"[{read}, time.sleep(0.4)][0]"
    source = source[:serve] + source[serve:].replace(read, stood_still, 1)
    world.paths.loader.write_text(source)
    world.start().communicate()
    lease_ms, deadline_ms = map(int, re.findall("[0-9]+", world.fences()[0]))
    ahead_seconds = loader.boot_seconds() - time.monotonic()
    assert deadline_ms / 1000 <= lease_ms / 1000 - ahead_seconds + 0.1


def test_an_active_node_moves_its_fence_forward_and_drops_the_old_one(world: World) -> None:
    world.run()
    world.run()
    assert [call for call, _ in world.calls()] == [
        *("StartTransientUnit", "StartTransientUnit"),
        "StopUnit",
    ]


def test_a_node_whose_systemd_does_not_take_the_fence_does_not_become_active(
    world: World,
) -> None:
    world.systemd.fails()
    ran = world.run()
    assert (ran.code, world.active, world.status()["role"]) == (0, False, "passive")
    assert "can't reach systemd: Connection refused" in ran.journal
    assert not world.paths.staged.exists()
    assert world.status()["reachable"] == ["node1", "node2", "node3"]
    assert not ran.said("HTTP Connectivity failed")


def test_an_active_node_whose_systemd_no_longer_takes_the_fence_has_its_old_lease_alone(
    world: World,
) -> None:
    world.run()
    limit = world.paths.lease_until.read_text()
    world.systemd.fails()
    ran = world.run()
    assert (world.active, world.paths.lease_until.read_text()) == (True, limit)
    assert ran.journal.endswith("Connection refused, is active until its lease ends")
    assert world.state()["finished"] is False


@pytest.mark.parametrize("fault", [Systemd.fails, Systemd.loses_its_answers])
def test_a_fault_of_systemd_that_passes_before_the_fence_is_due_costs_nothing(
    world: World, fault: Callable[[Systemd], None]
) -> None:
    world.run()
    fence = (world.paths.run / "fence").read_text()
    fault(world.systemd)
    process = world.start()
    until(lambda: any(line.endswith("; trying again") for line in world.log()))
    world.systemd.works()
    journal, _ = process.communicate(timeout=10)
    assert journal == f"active: {ACTIVE}\n"
    assert world.active
    assert (world.paths.run / "fence").read_text() > fence  # later, to the millisecond
    assert world.fences() == [(world.paths.run / "fence").read_text()]
    assert not any("Removing" in line for line in world.log())


def test_a_fence_whose_stop_was_refused_is_stopped_later_and_takes_no_other_lease(
    world: World,
) -> None:
    """Else it fires at its own time, and removes the probe of a lease that goes on."""
    world.run()
    key = world.paths.key.read_text()
    world.paths.key.unlink()
    world.systemd.fails()
    world.run()
    assert (world.active, len(world.fences())) == (False, 1)
    world.paths.key.write_text(key)
    world.systemd.works()
    world.run()
    assert world.active
    assert world.fences() == [(world.paths.run / "fence").read_text()]


def test_a_node_that_could_not_serve_frees_its_voters_at_once_and_leaves_the_role_to_others(
    world: World,
) -> None:
    def asks_too(_: Asked) -> Page:
        marker = world.marker("node3", candidate=True, vote=world.vote_of("node3"))
        return Page(world.signed(marker))

    world.says("node3", asks_too)
    world.systemd.fails()
    world.run()
    state, shown = world.state(), world.shown_to("node2")
    assert shown is not None
    assert (shown.released, shown.candidate) == (state["released"], False)
    assert state["grants"] == {}
    assert state["failures"] > 0


def not_seen_by(world: World, peer: str, reader: str, candidate: str, **fields: Any) -> None:
    """The peer has no marker for this node, and shows `reader` its vote for `candidate`."""
    stamp = int(loader.boot_seconds() * 1000)
    vote = loader.Grant(candidate, "an epoch", stamp, world.times.promise_seconds, 1.0)
    if candidate == world.me:
        vote = vote._replace(epoch=world.state()["epoch"], stamp=world.state()["stamp"])
    world.says(peer, Page("not found", 404))
    shown = world.marker(peer, receiver=reader, vote=vote, **fields)
    world.page(peer, f"/{reader}.html", Page(world.signed(shown)))


@pytest.mark.parametrize("candidate", ["node2", "node1"])
def test_a_woken_node_that_nobody_sees_yet_reads_whom_its_voters_voted_for_meanwhile(
    world: World, candidate: str
) -> None:
    world.was_active()
    not_seen_by(world, "node2", "node3", candidate)
    not_seen_by(world, "node3", "node2", candidate)
    world.run()
    assert world.active == (candidate == "node1")  # else its lease ends later, as theirs
    assert world.cloud.site(world.hosts["node2"]).asked_for("/node3.html")


@pytest.mark.parametrize("why", ["forged", "older"])
def test_what_a_peer_shows_others_counts_only_where_it_is_signed_and_no_older(
    world: World, why: str
) -> None:
    world.was_active()
    not_seen_by(world, "node2", "node3", "node2")
    not_seen_by(world, "node3", "node2", "node2", epoch="epoch of node3", stamp=5)
    known_stamp = 6 if why == "older" else 4
    world.change_state(records={"node3": {"epoch of node3": [known_stamp, 0.0, 0.0, 0.0]}})
    if why == "forged":
        forged = world.signed(world.marker("node3", receiver="node2", stamp=5), key=bytes(32))
        world.page("node3", "/node2.html", Page(forged))
    world.run()
    assert world.active  # by its own vote and node3's


def test_a_passive_node_asks_for_no_marker_but_its_own(world: World) -> None:
    world.saw_its_peers()
    for peer, reader in (("node2", "node3"), ("node3", "node2")):
        not_seen_by(world, peer, reader, "node2")
    world.run()
    assert not world.cloud.site(world.hosts["node2"]).asked_for("/node3.html")


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("role", ["active", "passive"])
def test_an_apache_that_does_not_refuse_the_probe_of_a_lease_that_is_over_is_told_of(
    world: World, monkeypatch: pytest.MonkeyPatch, role: str, status: int
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    for peer in world.peers if role == "passive" else ():
        world.page(peer, "/", CLOSES)
    world.run()
    assert world.status()["probe_expires"] is True
    world.own_apache(Page("", status))
    ran = world.run()
    assert (world.status()["role"], world.status()["probe_expires"]) == (role, False)
    assert ran.said(f"WARNING - {loader.NO_LIMIT}")
    assert ran.journal.startswith(f"<4>{role}: Node node1 ")
    assert ran.journal.endswith(f"set as {role}. {loader.NO_LIMIT}")


def test_an_apache_that_does_not_answer_its_own_node_is_not_waited_for(world: World) -> None:
    world.own_apache(SILENT)
    ran = world.run()
    assert (world.active, world.status()["probe_expires"]) == (True, None)
    assert not ran.said(loader.NO_LIMIT)
    assert ran.seconds < 0.5 * world.period


# ------------------------------------------------ metadata

BAD_METADATA = {
    "silent": (SILENT, "no answer yet"),
    "closes": (CLOSES, "no connection"),
    "429": (Page("slow down", 429), "status 429"),
    "500": (Page("oops", 500), "status 500"),
    "garbage": (Page("<html>"), "not JSON"),
    "nested": (Page("[" * 60000), "not JSON"),
    "no name": (Page('{"compute": {}, "network": {}}'), "no name or no private address in it"),
}


@pytest.mark.parametrize(("page", "why"), BAD_METADATA.values(), ids=BAD_METADATA)
def test_metadata_that_fails_does_not_demote_a_node_known_for_this_boot(
    world: World, page: Page, why: str
) -> None:
    world.was_active()
    world.metadata_says(INSTANCE, page)
    ran = world.run()
    assert (ran.code, ran.journal, world.active) == (0, f"active: {ACTIVE}", True)
    assert ran.said(f"Instance metadata service: {why}")
    assert ran.said("Using the identity known for this boot")
    assert ran.seconds < 0.95 * world.period


@pytest.mark.parametrize("case", ["silent", "500", "nested", "no name"])
def test_a_node_that_never_learnt_its_name_is_passive_and_says_so_in_time(
    world: World, case: str
) -> None:
    page, why = BAD_METADATA[case]
    world.paths.probe.touch()
    world.metadata_says(INSTANCE, page)
    ran = world.run()
    assert (ran.code, world.active) == (2, False)
    sentence = "the instance metadata service does not say who this node is"
    assert ran.journal == f"passive: {sentence}"
    assert ran.log[-1] == f"ERROR - {sentence}, set as passive" or ran.said(sentence)
    assert ran.said(f"Instance metadata service: {why}")
    assert ran.seconds < 0.95 * world.period


BAD_LOAD_BALANCER = {
    "silent": SILENT,
    "404": Page("", 404),
    "garbage": Page("<html>"),
    "wrong": Page('{"loadbalancer": {"publicIpAddresses": [1]}}'),
}


@pytest.mark.parametrize("page", BAD_LOAD_BALANCER.values(), ids=BAD_LOAD_BALANCER)
def test_load_balancer_metadata_that_fails_only_leaves_the_public_address_unknown(
    world: World, page: Page
) -> None:
    world.metadata_says(LOAD_BALANCER, page)
    ran = world.run()
    assert (ran.code, world.active) == (0, True)
    assert ran.said("Local node public IP: not known, in no pool yet")
    assert ran.seconds < 0.95 * world.period


def test_no_proxy_of_the_environment_is_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert (world.run().code, world.active) == (0, True)


# ------------------------------------------------ peers

BAD_PEERS = {
    "byte by byte": ("/", Page("x" * 5000, pause_seconds=0.05), "no answer"),
    "64 MB": ("/", Page(b"x" * (64 << 20)), None),
    "redirect": ("/", Page("", 302, {"Location": "http://127.0.1.2/"}), "status 302"),
    "500": ("/", Page("", 500), "status 500"),
    "closes": ("/", CLOSES, "no connection"),
    "half": ("/", Page("half", promised_bytes=100), "its answer is not whole"),
    "silent": ("/", SILENT, "no answer"),
    "marker byte by byte": ("/node1.html", Page("x" * 5000, pause_seconds=0.05), "no answer"),
    "marker 64 MB": ("/node1.html", Page(b"x" * (64 << 20)), "its marker is too large"),
    "marker redirect": ("/node1.html", Page("", 301, {"Location": "/"}), "status 301"),
    "marker 500": ("/node1.html", Page("", 500), "status 500"),
    "marker closes": ("/node1.html", CLOSES, "no connection"),
    "marker silent": ("/node1.html", SILENT, "no answer"),
    "no marker": ("/node1.html", Page("", 404), "it has no marker for us (status 404)"),
}


class Crowd(NamedTuple):
    """One run of a node with a majority of honest peers, and a bad one for each case."""

    world: World
    ran: Ran
    bad: dict[str, str]  # case -> the peer that is it


def run_in_a_crowd(
    root: Path, cases: Iterable[str], spoil: Callable[[World, str, str], None]
) -> Iterator[Crowd]:
    """The outcome for node1; `spoil` makes a peer bad in the way that a case names."""
    names = list(cases)
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        open_world(root, monkeypatch, nodes=2 * len(names) + 1) as world,
    ):
        world.saw_its_peers()
        bad = dict(zip(names, reversed(world.peers), strict=False))
        for case, peer in bad.items():
            spoil(world, peer, case)
        yield Crowd(world, world.run(), bad)


@pytest.fixture(scope="module")
def bad_peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    def spoil(world: World, peer: str, case: str) -> None:
        path, page, _ = BAD_PEERS[case]
        world.page(peer, path, page)

    yield from run_in_a_crowd(tmp_path_factory.mktemp("peers") / "root", BAD_PEERS, spoil)


@pytest.mark.parametrize("case", BAD_PEERS)
def test_a_peer_that_misbehaves_does_not_count_and_the_log_says_why(
    bad_peers: Crowd, case: str
) -> None:
    peer, why = bad_peers.bad[case], BAD_PEERS[case][2]
    address = bad_peers.world.nodes[peer]["public_ip"]
    said = [line for line in bad_peers.ran.log if address in line and "WARNING" in line]
    if why is None:  # a large front page is an answer
        assert (peer in bad_peers.world.status()["reachable"], said) == (True, [])
        return
    assert peer not in bad_peers.world.status()["reachable"]
    assert len(said) == 1
    assert why in said[0]


def test_peers_that_misbehave_do_not_hold_up_the_run(bad_peers: Crowd) -> None:
    assert (bad_peers.ran.code, bad_peers.world.active) == (0, True)
    assert bad_peers.ran.seconds < 0.95 * bad_peers.world.period


def test_of_a_large_answer_only_the_beginning_is_read(bad_peers: Crowd) -> None:
    world = bad_peers.world
    for case, path in (("64 MB", "/"), ("marker 64 MB", "/node1.html")):
        assert path in world.cloud.site(world.hosts[bad_peers.bad[case]]).cut_off


def test_a_redirect_is_not_followed(world: World) -> None:
    world.page("node3", "/", Page("", 302, {"Location": f"http://127.0.9.9:{world.cloud.port}/"}))
    world.run()
    assert world.cloud.site("127.0.9.9").asked == []


def test_a_node_that_sees_no_majority_is_passive_within_its_time(world: World) -> None:
    world.was_active()
    for peer in world.peers:
        world.page(peer, "/", SILENT)
        world.says(peer, SILENT)
    process, start = world.start(), time.monotonic()
    journal, _ = process.communicate(timeout=10)
    assert time.monotonic() - start < world.period + 1.0
    assert world.status()["reachable"] == ["node1"]
    until(lambda: bool(journal))


def test_apache_can_read_what_a_run_writes_whoever_started_it(slow_world: World) -> None:
    slow_world.was_active()
    before = os.umask(0o077)
    try:
        process = slow_world.start()
    finally:
        os.umask(before)
    assert process.wait(10) == 0
    for path in (slow_world.paths.probe, slow_world.paths.status, slow_world.paths.lease_until):
        assert path.stat().st_mode & 0o777 == 0o644, path


def test_a_peer_that_answered_nothing_in_a_whole_run_loses_its_marker(world: World) -> None:
    world.was_active()
    assert world.shown_to("node3") is not None
    world.page("node3", "/", CLOSES)
    world.says("node3", CLOSES)
    ran = world.run()
    assert world.shown_to("node3") is None
    assert ran.said("Not able to reach node3, making sure")


def test_a_peer_that_misses_one_answer_keeps_its_marker(world: World) -> None:
    world.was_active()
    world.votes("node3")
    honest = world.cloud.site(world.hosts["node3"]).pages["/node1.html"]
    missing = iter([True])
    kept = []

    def page(asked: Asked) -> Page:
        assert callable(honest)
        kept.append(world.shown_to("node3") is not None)
        return CLOSES if next(missing, False) else honest(asked)

    world.says("node3", page)
    world.page("node2", "/", CLOSES)  # so that node3's vote is waited for
    world.says("node2", CLOSES)
    ran = world.run()
    assert (world.active, len(kept) > 1, all(kept), ran.code) == (True, True, True, 0)


MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_a_run_with_101_nodes_of_which_50_are_silent_takes_5_s_and_60_mb_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, nodes=101, period=20) as world:
        for peer in world.peers[50:]:
            world.page(peer, "/", SILENT)
            world.says(peer, SILENT)
        start = time.monotonic()
        measured = subprocess.run(
            [sys.executable, "-c", MEASURE, *world.command()],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        seconds = time.monotonic() - start
        assert (measured.stdout.splitlines()[0], world.active) == (f"active: {ACTIVE}", True)
        assert len(world.status()["reachable"]) == 51
        assert seconds < 5
        assert int(measured.stdout.splitlines()[1]) < 60 * 1024


# ------------------------------------------------ markers


def resigned(page: str, **fields: Any) -> str:
    """The marker with other fields, signed again as docs/protocol.md section 3 has it."""
    head, opening, rest = page.partition(loader.MARKER_OPEN)
    told = json.loads(rest.partition("</script>")[0]) | fields
    told.pop("mac")
    text = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    mac = hmac.new(bytes.fromhex("5e" * 32), text, hashlib.sha256).hexdigest()
    return f"{head}{opening}{json.dumps(told | {'mac': mac})}</script>\n"


def bad_marker(world: World, peer: str, case: str) -> str:
    """What the peer serves as its marker, with a vote for node1 in it that must not count."""
    marker = world.marker(peer, vote=world.vote_of(peer))
    pages: dict[str, Callable[[], str]] = {
        "forged": lambda: world.signed(marker, key=b"x" * 32),
        "unsigned": lambda: world.signed(marker).replace('"mac"', '"mac2"'),
        "altered": lambda: world.signed(marker).replace('"quorum_runs": 5', '"quorum_runs": 6'),
        "for node2": lambda: world.signed(marker._replace(receiver="node2")),
        "of node2": lambda: world.signed(marker._replace(sender="node2")),
        "other members": lambda: world.signed(marker, order=(*world.nodes, "node98", "node99")),
        "too large": lambda: world.signed(marker) + " " * 8192,
        "half": lambda: world.signed(marker)[:-200],
        "nested": lambda: loader.MARKER_OPEN + "[" * 8000,
        "a number": lambda: f"{loader.MARKER_OPEN}12</script>",
        "a text for a number": lambda: resigned(world.signed(marker), stamp="12"),
        "a number for a text": lambda: resigned(world.signed(marker), epoch=12),
        "a number for true": lambda: resigned(world.signed(marker), holding=0),
        "true for a number": lambda: resigned(world.signed(marker), stamp=True),
        "a huge number": lambda: resigned(world.signed(marker), released=10**400),
        "no number": lambda: resigned(world.signed(marker), stamp=float("nan")),
        "a list for a vote": lambda: resigned(world.signed(marker), vote=[1]),
        "a text in the vote": lambda: resigned(
            world.signed(marker), vote=marker.vote and marker.vote._asdict() | {"stamp": "12"}
        ),
        "fewer fields": lambda: resigned(world.signed(marker), vote={"candidate": "node1"}),
        "no marker": lambda: "<html><h1>I see node1</h1></html>",
        "heard nothing": lambda: resigned(world.signed(marker), heard={}),
        "heard a text": lambda: resigned(
            world.signed(marker), heard=dict.fromkeys(marker.heard, "12")
        ),
        "heard a huge number": lambda: resigned(
            world.signed(marker), heard=dict.fromkeys(marker.heard, 10**400)
        ),
    }
    return pages[case]()


BAD_MARKERS = {
    "forged": "its marker is not signed with the cluster's key",
    "unsigned": "its marker is not whole",
    "altered": "its marker is not signed with the cluster's key",
    "for node2": "its marker is for another to",
    "of node2": "its marker is for another from",
    "other members": "its marker is for another members",
    "too large": "its marker is too large",
    "half": "its marker is not whole",
    "nested": "its marker is not whole",
    "a number": "its marker is not whole",
    "a text for a number": "its marker is of another version of the agent: stamp is '12'",
    "a number for a text": "its marker is of another version of the agent: epoch is '12'",
    "a number for true": "its marker is of another version of the agent: holding is '0'",
    "true for a number": "its marker is of another version of the agent: stamp is 'True'",
    "a huge number": "its marker is of another version of the agent: released is '1000",
    "no number": "its marker is of another version of the agent: stamp is 'nan'",
    "a list for a vote": "its marker is of another version of the agent: ",
    "a text in the vote": "its marker is of another version of the agent: stamp is '12'",
    "fewer fields": "its marker is of another version of the agent: 'epoch'",
    "no marker": "its page about us is no marker",
    "heard nothing": "its marker is too old",
    "heard a text": "its marker is too old",
    "heard a huge number": "its marker is too old",
}


@pytest.fixture(scope="module")
def bad_markers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    def spoil(world: World, peer: str, case: str) -> None:
        world.says(peer, lambda _: Page(bad_marker(world, peer, case)))

    yield from run_in_a_crowd(tmp_path_factory.mktemp("markers") / "root", BAD_MARKERS, spoil)


@pytest.mark.parametrize(("case", "why"), BAD_MARKERS.items(), ids=BAD_MARKERS)
def test_a_marker_that_is_not_right_counts_as_absent_and_the_log_says_so_once(
    bad_markers: Crowd, case: str, why: str
) -> None:
    world, peer = bad_markers.world, bad_markers.bad[case]
    assert peer not in world.status()["reachable"]
    assert peer not in world.state()["grants"]
    address = world.nodes[peer]["public_ip"]
    said = [line for line in bad_markers.ran.log if address in line and "onfirmed" in line]
    assert len(said) == 1
    assert said[0].startswith(f"WARNING - Not confirmed that {address} can see node1: {why}")


def test_markers_that_are_not_right_do_not_hold_up_the_run(bad_markers: Crowd) -> None:
    assert (bad_markers.ran.code, bad_markers.world.active) == (0, True)
    assert bad_markers.ran.seconds < 0.95 * bad_markers.world.period


def test_a_marker_signed_by_hand_as_the_protocol_says_is_accepted(world: World) -> None:
    """Also one of a later version, which has a field that this one does not know."""

    def page(_: Asked) -> Page:
        return Page(resigned(world.signed(world.marker("node3")), mood="good"))

    world.says("node3", page)
    world.run()
    assert world.status()["reachable"] == ["node1", "node2", "node3"]


@pytest.mark.parametrize("case", ["forged", "for node2"])
def test_votes_that_are_not_right_never_make_a_node_active(world: World, case: str) -> None:
    world.page("node2", "/", CLOSES)
    world.says("node2", CLOSES)
    world.says("node3", lambda _: Page(bad_marker(world, "node3", case)))
    ran = world.run()
    assert (ran.code, world.active, world.status()["role"]) == (0, False, "passive")
    assert ran.journal == "passive: Node node1 reachability does not reach quorum, set as passive"
    assert ran.seconds < world.period


@pytest.mark.parametrize("status", [200, 204, 301, 401, 503])
def test_whatever_answers_the_same_to_everything_at_a_peers_address_counts_as_absent(
    world: World, status: int
) -> None:
    """A catch-all application, a captive portal, a redirect to HTTPS: nobody signed that."""
    for path in ("/", "/node1.html", "/probe.html"):
        world.page("node3", path, Page("<h1>Welcome</h1>", status, {"Location": "https://x/"}))
    ran = world.run()
    assert (ran.code, world.active) == (0, True)
    assert world.status()["reachable"] == ["node1", "node2"]


def test_a_marker_replayed_from_an_earlier_stamp_counts_as_absent(world: World) -> None:
    world.run()
    earlier = world.signed(world.marker("node3"))
    world.run()
    world.says("node3", Page(earlier))
    ran = world.run()
    assert world.status()["reachable"] == ["node1", "node2"]
    assert ran.said("its marker is older than one already seen: replayed")


@pytest.mark.parametrize("stamp", [0, 10**9])
def test_a_marker_of_an_earlier_boot_counts_as_absent_and_hides_nobody(
    world: World, stamp: int
) -> None:
    """It was recorded weeks ago, when node3 had been up for minutes or for days."""
    recorded = world.marker("node3", epoch="an earlier boot", stamp=stamp, heard={"old": 1})
    world.says("node3", Page(world.signed(recorded)))
    ran = world.run()
    assert world.status()["reachable"] == ["node1", "node2"]
    assert ran.said("its marker is too old")
    world.votes("node3")
    world.run()
    assert world.status()["reachable"] == ["node1", "node2", "node3"]


def test_a_peer_whose_agent_is_dead_counts_as_absent_and_the_log_says_the_same(
    world: World,
) -> None:
    world.run()
    world.says("node3", Page(world.signed(world.marker("node3"))))
    world.run()
    assert world.status()["reachable"] == ["node1", "node2", "node3"]
    records = world.state()["records"]
    records["node3"]["epoch of node3"][1] -= world.times.fresh_seconds
    world.change_state(records=records)
    ran = world.run()
    assert world.status()["reachable"] == ["node1", "node2"]
    assert not world.status()["peers"]["node3"]["seen_by"]
    assert ran.said("can see node1: its marker is too old")


# ------------------------------------------------ disks


def in_own_mounts(world: World, prepare: str) -> "subprocess.CompletedProcess[str]":
    """A run with file systems of its own; `prepare` mounts them. Prints the pages at the end."""
    unshare = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs root, or user namespaces, to mount a small file system")
    script = f"""set -e
        full() {{ cp -a "$1" "$1.kept"; mount -t tmpfs -o size=64k tmpfs "$1"
            cp -a "$1.kept/." "$1"; cat /dev/zero > "$1/filler" 2> /dev/null || true; }}
        html={world.paths.html} run={world.paths.run} log={world.paths.logfile.parent}
        {prepare}
        "$@" && code=0 || code=$?
        ls -A "$html"; cat "$run/lease_until"; exit $code"""
    command = [*unshare, "sh", "-c", script, "sh", *world.command()]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)


def test_an_active_node_whose_disk_is_full_has_its_old_lease_alone_and_says_which_file(
    world: World,
) -> None:
    world.was_active()
    ran = in_own_mounts(world, 'full "$html"')
    reason, *pages = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert reason.startswith("active: Node node1 can't write /")
    assert reason.endswith(".html: No space left on device, is active until its lease ends")
    assert "probe.html" in pages
    shown = world.shown_to("node2")
    assert shown is not None
    assert shown.epoch == world.state()["epoch"]


def test_an_active_node_whose_run_folder_is_full_shows_nothing_that_it_could_not_save(
    world: World,
) -> None:
    world.was_active()
    before = world.shown_to("node2")
    ran = in_own_mounts(world, 'full "$run"')
    assert f"can't write {world.paths.state}: No space left on device" in ran.stdout
    assert world.shown_to("node2") == before
    assert world.calls() == []


@pytest.mark.parametrize("finished", [True, False], ids=["well", "failed before"])
def test_a_vote_whose_term_cant_be_kept_is_shown_to_nobody(node2: World, finished: bool) -> None:
    node2.settings(pause_seconds=30)  # so that the vote before binds, however long a run takes
    node2.leads("node1", term=1000)
    node2.run()
    node2.change_state(finished=finished)
    node2.leads("node1", term=1001)
    etc = node2.paths.etc
    ran = in_own_mounts(node2, f"mount --bind {etc} {etc}; mount -o remount,bind,ro {etc}")
    assert f"can't write {node2.paths.term}: Read-only file system" in ran.stdout
    shown = node2.shown_to("node1")
    assert shown is not None
    assert shown.vote is not None
    assert shown.vote.term == 1000


def test_a_log_on_a_full_disk_loses_lines_and_nothing_else(world: World) -> None:
    world.run()
    ran = in_own_mounts(world, 'full "$log"')
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"active: {ACTIVE}")
    assert "probe.html" in ran.stdout.splitlines()


def test_an_active_node_with_pages_that_are_read_only_is_refused_by_apache(world: World) -> None:
    world.run()
    began = time.time()
    read_only = 'mount --bind "$html" "$html"; mount -o remount,bind,ro "$html"'
    ran = in_own_mounts(world, read_only)
    reason, *rest = ran.stdout.splitlines()
    assert reason.startswith("active: Node node1 can't write /")
    assert reason.endswith("Read-only file system, is active until its lease ends")
    # From then on Apache refuses the probe, though the fence can't remove it either.
    assert rest[-1] <= time.strftime("%Y%m%d%H%M%S", time.gmtime(began + world.times.lease_seconds))


def test_a_passive_node_with_pages_that_are_read_only_stays_passive(world: World) -> None:
    read_only = 'mount --bind "$html" "$html"; mount -o remount,bind,ro "$html"'
    ran = in_own_mounts(world, read_only)
    assert ran.stdout.startswith("passive: Node node1 can't write /")
    assert not world.active


# ------------------------------------------------ others on the same machine


def plant(kind: str, path: Path, target: Path) -> None:
    """Put something of that kind where the agent has a file."""
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link":
        path.symlink_to(target)
    else:
        path.mkdir()
        (path / "kept").write_text("somebody's")


KINDS = ["a pipe", "a link", "a folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_planted_among_the_pages_no_run_waits_for_it_or_writes_through_it(
    world: World, kind: str
) -> None:
    names = ["node2.html", "status.json", ".probe.html"]
    names += [f".{name}.tmp" for name in names]
    names += ["probe.html"]
    for name in names:
        plant(kind, world.paths.html / name, world.paths.key)
    ran = world.run()
    pages = {path.name: path for path in world.paths.html.iterdir()}
    assert (ran.code, ran.journal, world.active) == (0, f"active: {ACTIVE}", True)
    assert world.paths.key.read_text() == KEY
    ours = {"node2.html", "node3.html", "status.json", "probe.html"}
    assert all(pages[name].is_file() and not pages[name].is_symlink() for name in ours)
    aside = sorted(path for name, path in pages.items() if name not in ours)
    kept = names if kind == "a folder" else []
    assert [(path / "kept").read_text() for path in aside] == ["somebody's"] * len(kept)


def test_pages_that_a_deployment_deletes_are_there_again_in_the_same_run(world: World) -> None:
    world.run()
    honest = world.cloud.site(world.hosts["node2"]).pages["/node1.html"]
    deployments = iter([True])

    def page(asked: Asked) -> Page:
        if next(deployments, False):
            for path in world.paths.html.iterdir():
                path.unlink()
        assert callable(honest)
        return honest(asked)

    world.says("node2", page)
    ran = world.run()
    assert (ran.code, ran.journal, world.active) == (0, f"active: {ACTIVE}", True)
    assert {path.name for path in world.paths.html.iterdir()} == {
        *("node2.html", "node3.html", "probe.html", "status.json"),
    }
    released = world.shown_to("node2")
    assert released is not None
    assert released.released > 0  # gone: its fence may have fired, so it asked anew


@pytest.mark.parametrize("kind", KINDS)
def test_bootup_waits_for_nothing_that_is_planted_among_the_pages(world: World, kind: str) -> None:
    world.run()
    for name in ("probe.html", ".probe.html", "node3.html", "about.html", "status.json"):
        plant(kind, world.paths.html / name, Path("/proc/kmsg"))
    ran = world.run("bootup")
    assert (ran.code, ran.journal) == (0, "")
    left = [path.name for path in world.paths.html.iterdir() if not path.is_dir()]
    assert set(left) <= {"about.html"}
    assert not os.path.lexists(world.paths.probe)


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_that_is_no_file_is_neither_waited_for_nor_followed(
    slow_world: World, kind: str
) -> None:
    slow_world.paths.logfile.parent.mkdir(parents=True)
    plant(kind, slow_world.paths.logfile, slow_world.paths.key)
    process = slow_world.start()
    out, errors = process.communicate(timeout=10)
    assert (process.returncode, out, slow_world.active) == (0, f"active: {ACTIVE}\n", True)
    assert errors.startswith(f"{slow_world.paths.logfile}: not written: ")
    assert "Local node name: node1" in errors
    assert slow_world.paths.key.read_text() == KEY


def nobody_runs(*command: str, folder: Path) -> "subprocess.Popen[bytes]":
    """A command of a user without rights, which can reach `folder`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    return subprocess.Popen(command, user=65534, group=65534, stderr=subprocess.PIPE)


def is_starting(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it neither holds its lock (it sleeps then) nor was refused."""
    if process.poll() is not None:
        return False
    return Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n"


def test_no_other_user_can_lock_a_file_that_a_run_waits_for(world: World) -> None:
    world.run()
    held = []
    for path in sorted(world.paths.run.iterdir()):
        command = ("flock", "--nonblock", "--no-fork", str(path), "sleep", "60")
        held.append(nobody_runs(*command, folder=world.paths.run))
    try:
        until(lambda: not any(is_starting(process) for process in held))
        assert world.run().code == 0
    finally:
        for process in held:
            process.kill()
            process.wait()


def test_pages_and_limit_are_readable_for_apache_whatever_the_umask(slow_world: World) -> None:
    command = ["sh", "-c", 'umask 077; exec "$@"', "sh", *slow_world.command()]
    subprocess.run(command, check=True, capture_output=True, timeout=10)
    paths = slow_world.paths
    for path in (paths.probe, paths.status, paths.html / "node2.html", paths.lease_until):
        assert path.stat().st_mode & 0o777 == 0o644, path


# ------------------------------------------------ verbs


@pytest.mark.parametrize("role", ["active", "passive", "new"])
def test_a_dry_run_prints_what_it_sees_and_would_do_and_changes_nothing(
    world: World, role: str
) -> None:
    if role == "passive":
        world.leads("node2")
    if role != "new":
        world.run()
    before = world.listing()
    process = world.start("--dry-run")
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err, world.listing()) == (0, "", before)
    seen = "can see node1: its marker is too old" if role == "new" else "can see each other"
    assert seen in out
    assert out.splitlines()[-1].endswith("Nothing was changed.")


def test_a_dry_run_without_metadata_says_so_or_uses_what_this_boot_knows(world: World) -> None:
    world.metadata_says(INSTANCE, Page("", 500))
    before = world.listing()
    process = world.start("--dry-run")
    out, err = process.communicate(timeout=10)
    assert (process.returncode, world.listing()) == (2, before)
    assert err == "loader.py: the instance metadata service gives status 500\n"
    world.run()
    world.metadata("node1")
    world.run()
    world.metadata_says(INSTANCE, Page("", 500))
    process = world.start("--dry-run")
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert ACTIVE in out


def test_bootup_removes_the_probe_and_all_markers_and_nothing_else(world: World) -> None:
    world.run()
    html = world.paths.html
    ours = [html / "node2.html", html / "node3.html", world.paths.probe, world.paths.status]
    gone = html / "node9.html"  # the marker of a node that has left the cluster
    gone.write_text((html / "node2.html").read_text())
    world.paths.staged.touch()
    older = html / "node1.html"
    older.write_text("<h1>a marker of an older agent</h1>")
    theirs = {"index.html": "front", "about.html": "us", "nodes.html": "all", "app.js": "1"}
    for name, text in theirs.items():
        (html / name).write_text(text)
    (html / "manual.html").mkdir()
    (html / "lost.html").symlink_to("nowhere")
    ran = world.run("bootup")
    assert (ran.code, ran.journal) == (0, "")
    assert [path.name for path in (*ours, gone, older, world.paths.staged) if path.exists()] == []
    assert {path.name for path in html.iterdir()} == {*theirs, "manual.html", "lost.html"}
    assert {name: (html / name).read_text() for name in theirs} == theirs
    assert not world.paths.lease_until.exists()


def imported_from(world: World) -> "subprocess.CompletedProcess[str]":
    """Start the agent as loader.service does, and have Python tell where its code comes from."""
    command = [sys.executable, "-B", "-v", "-m", "loader", "--help"]
    return subprocess.run(
        command, cwd=world.paths.etc, capture_output=True, text=True, timeout=30, check=True
    )


def test_the_byte_code_that_bootup_keeps_is_run_until_the_agent_is_another_one(
    world: World,
) -> None:
    compiled = Path(cache_from_source(str(world.paths.loader)))
    world.run("bootup")
    assert f"code object from '{compiled}'" in imported_from(world).stderr
    before = world.paths.loader.stat()
    other = world.paths.loader.read_text().replace(
        "One run of the cluster's agent", "One row of the cluster's agent"
    )
    world.paths.loader.write_text(other)
    os.utime(world.paths.loader, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert world.paths.loader.stat().st_size == before.st_size
    ran = imported_from(world)
    assert ran.stdout.startswith("One row")
    assert f"code object from '{compiled}'" not in ran.stderr
    world.run("bootup")
    ran = imported_from(world)
    assert ran.stdout.startswith("One row")
    assert f"code object from '{compiled}'" in ran.stderr


def test_byte_code_that_cant_be_kept_is_no_failure(world: World) -> None:
    world.paths.etc.joinpath("__pycache__").touch()
    assert world.run("bootup").code == 0
    assert imported_from(world).stdout.startswith("One run")


def test_after_a_boot_the_first_run_holds_its_vote_from_when_bootup_ran(world: World) -> None:
    world.paths.booted.unlink()
    start = loader.boot_seconds()
    world.run("bootup")
    end = loader.boot_seconds()
    world.run()
    assert start <= world.state()["hold_until_seconds"] - world.times.promise_seconds <= end
    assert world.state()["vote"] is None
    assert ("node1" in world.state()["grants"]) is False


def test_what_was_promised_before_a_boot_is_held_whatever_the_settings_say_now(
    world: World,
) -> None:
    world.settings(period_seconds=20, look_seconds=20)
    world.run()
    assert world.paths.promised.read_text() == "27"
    shutil.rmtree(world.paths.run)
    world.settings()
    world.run("bootup")
    booted = json.loads(world.paths.booted.read_text())[0]
    world.run()
    assert 26 < world.state()["hold_until_seconds"] - booted <= 27.01
    assert world.paths.promised.read_text() == "27"


def test_a_shorter_promise_is_noted_once_no_longer_one_can_be_left(world: World) -> None:
    world.paths.promised.write_text("27")
    world.run()
    assert world.paths.promised.read_text() == "6.5"


@pytest.mark.parametrize("content", ["", "nan", "a word", "1e99", "-3"])
def test_a_note_of_promises_that_is_none_holds_the_vote_for_the_longest_there_are(
    world: World, content: str
) -> None:
    world.paths.booted.write_text(json.dumps(loader.read_clocks()))
    world.paths.promised.write_text(content)
    world.run()
    assert world.status()["holding_seconds"] > 70


def test_the_term_of_a_tenure_is_on_the_disk_before_the_probe_and_outlives_a_boot(
    world: World,
) -> None:
    world.run()
    (term, *whose), probe = json.loads(world.paths.term.read_text()), world.paths.probe.stat()
    assert world.active
    assert (world.status()["term"], whose) == (term, ["node1", world.state()["epoch"]])
    assert abs(time.time() - term) < 60
    assert world.paths.term.stat().st_mtime_ns < probe.st_mtime_ns
    shutil.rmtree(world.paths.run)
    world.paths.run.mkdir()
    world.paths.booted.write_text("[0, 0, 0, 0]")
    world.paths.term.write_text(f'[{term + 1000}, "node3", "an epoch"]')
    world.systemd.timers.clear()
    world.run()
    assert (world.active, world.status()["term"]) == (True, term + 1001)


def test_a_vote_is_for_a_greater_term_than_the_one_on_the_disk_which_it_replaces(
    node2: World,
) -> None:
    node2.paths.term.write_text('[1000, "node3", "an epoch"]')
    node2.leads("node1", term=1000)
    node2.run()
    assert (node2.status()["vote"], node2.status()["term"]) == (None, 1000)
    node2.leads("node1", term=1001)
    node2.run()
    assert node2.status()["vote"]["candidate"] == "node1"
    assert json.loads(node2.paths.term.read_text()) == [1001, "node1", "epoch of node1"]


def test_a_node_whose_application_is_not_set_up_does_not_stand_and_says_why(world: World) -> None:
    etc = world.paths.etc
    (etc / "setup.sha256").write_text(f"{'0' * 64}  setup.sh\n")
    ran = world.run()
    assert (world.active, world.status()["setup"]) == (False, "it has not succeeded yet")
    (etc / "setup.failed").write_text("no such package\n")
    ran = world.run()
    assert (world.active, world.status()["setup"]) == (False, "no such package")
    why = "its application is not set up: no such package"
    assert why in ran.journal
    shown = world.shown_to("node2")
    assert shown is not None
    assert (shown.unfit, shown.candidate) == (why, False)
    (etc / "setup.done").touch()
    world.run()
    assert (world.active, world.status()["setup"]) == (True, "")


def test_markers_and_the_own_probe_are_asked_for_at_the_clusters_port(world: World) -> None:
    for name, entry in world.nodes.items():
        bare = {kind: entry[kind].partition(":")[0] for kind in ("private_ip", "public_ip")}
        world.nodes[name] = entry | bare
    world.paths.nodes_info.write_text(json.dumps(world.nodes))
    world.metadata("node1")
    world.settings(cluster_port=world.cloud.port)
    world.run()
    assert (world.active, world.status()["probe_expires"]) == (True, True)


def test_where_the_cluster_has_its_own_web_server_the_usual_folder_is_the_applications(
    world: World,
) -> None:
    usual = world.paths.html
    theirs = ("index.html", "probe.html", ".probe.html", "node2.html", "status.json")
    for name in theirs:
        (usual / name).write_text("an application's")
    (world.root / "etc/apache2-bootstrap").mkdir()
    world.paths = loader.Paths(str(world.root))
    world.paths.html.mkdir()
    world.run()
    assert (world.active, world.status()["role"]) == (True, "active")
    world.run("bootup")
    assert [path.name for path in world.paths.html.iterdir()] == []
    assert {path.name: path.read_text() for path in usual.iterdir()} == dict.fromkeys(
        theirs, "an application's"
    )


def test_bootup_by_hand_does_not_shorten_a_hold_or_forget_a_promise(world: World) -> None:
    world.was_active()
    before = world.state()
    world.run("bootup")
    assert (world.state(), world.paths.booted.exists()) == (before, False)


def test_leaving_hands_the_role_over_and_ends_when_another_node_is_active(world: World) -> None:
    world.was_active()

    def page(_: Asked) -> Page:
        shown = world.shown_to("node2")
        released = shown is not None and shown.released > 0
        return Page(world.signed(world.marker("node2", candidate=True, active=released)))

    world.says("node2", page)
    ran = world.run("leave")
    assert (ran.code, world.active) == (0, False)
    assert ran.journal == "passive: Node node1 is leaving, set as passive"
    assert ran.seconds < 1.5 * world.period
    assert world.status()["role"] == "passive"


def test_leaving_a_cluster_in_which_nobody_takes_over_is_bounded(world: World) -> None:
    world.was_active()
    ran = world.run("leave")
    assert (ran.code, world.active) == (0, False)
    assert ran.seconds < 2 * world.period


def test_a_passive_node_leaves_at_once(node2: World) -> None:
    node2.run()
    ran = node2.run("leave")
    assert (ran.code, ran.journal, ran.log) == (0, "", [])
    assert ran.seconds < 0.5


@pytest.mark.parametrize("stops", [True, False])
def test_ticks_during_a_planned_stop_are_not_missed(node2: World, stops: bool) -> None:
    node2.run()
    if stops:
        node2.run("leave")
    else:
        node2.change_state(began_seconds=node2.state()["began_seconds"] - 10 * node2.period)
    until(lambda: loader.boot_seconds() > node2.state()["began_seconds"] + 2 * node2.period, 20)
    node2.run()
    assert (node2.state()["failures"], node2.state()["trouble"]) == (
        (0, "") if stops else (1, "its last look did not end well")
    )


def test_a_second_run_at_the_same_time_is_refused_and_touches_nothing(world: World) -> None:
    world.was_active()
    with loader.one_at_a_time(world.paths, 0):
        before = world.paths.state.read_text()
        ran = world.run()
    sentence = "another run of loader.py is under way: wait for its end"
    assert (ran.code, world.active) == (2, True)
    assert sentence in ran.journal
    assert "set as passive" not in "".join(ran.log)
    assert "passive" not in ran.journal
    assert world.paths.state.read_text() == before


@pytest.mark.parametrize("words", [["fly"], ["leave", "now"], ["--help"]])
def test_words_that_are_no_verb_print_how_to_use_it(world: World, words: list[str]) -> None:
    ran = world.run(*words)
    shown = ran.journal if words == ["--help"] else ran.errors
    assert "loader.py --dry-run" in shown
    assert ran.code == (0 if words == ["--help"] else 2)
    assert world.log() == []


def test_the_version_is_told_by_the_command_and_with_the_files_digest_by_the_status(
    world: World,
) -> None:
    ran = world.run("--version")
    assert (ran.code, ran.journal, world.log()) == (0, loader.__version__, [])
    world.run()
    digest = hashlib.sha256(world.paths.loader.read_bytes()).hexdigest()
    told = {key: world.status()[key] for key in ("version", "generation")}
    assert told == {"version": loader.__version__, "generation": digest[:12]}


# ------------------------------------------------ what a run finds of the runs before it

LOST_STATES = {
    "lost": None,
    "half written": lambda text: text[: len(text) // 2],
    "a list": lambda _: "[]",
    "another version": lambda text: text.replace('"epoch"', '"era"', 1),
    "newer version": lambda text: text.replace("{", '{"mood": "good", ', 1),
    "other records": lambda text: text.replace('"records": {}', '"records": {"node9": [1]}'),
}


@pytest.mark.parametrize("change", LOST_STATES.values(), ids=LOST_STATES)
def test_a_state_lost_without_a_reboot_drops_the_probe_and_holds_the_vote_from_now(
    world: World, change: Callable[[str], str] | None
) -> None:
    world.was_active()
    text = world.paths.state.read_text()
    world.paths.state.unlink()
    if change is not None:
        world.paths.state.write_text(change(text))
    start = loader.boot_seconds()
    ran = world.run()
    assert ran.code == 0
    assert f"INFO - Removing {world.paths.probe}" in ran.log
    promise = world.times.promise_seconds
    assert start + promise <= world.state()["hold_until_seconds"]
    assert world.state()["vote"] is None
    assert world.state()["grants"].keys() <= {"node2", "node3"}


def test_a_probe_of_a_node_that_is_not_active_is_removed_before_anybody_is_asked(
    node2: World,
) -> None:
    node2.paths.probe.touch()
    there = []

    def front(_: Asked) -> Page:
        there.append(node2.active)
        return Page()

    node2.page("node1", "/", front)
    ran = node2.run()
    assert (ran.code, node2.active, there) == (0, False, [False])
    assert f"INFO - Removing {node2.paths.probe}" in ran.log


def test_a_probe_whose_lease_is_over_is_removed_before_anybody_is_asked(world: World) -> None:
    world.was_active()
    grants = {"node2": [1, 4.5], "node3": [1, 4.5]}
    world.change_state(grants=grants)
    there = []

    def front(_: Asked) -> Page:
        there.append(world.active)
        return Page()

    world.page("node2", "/", front)
    world.run()
    assert there == [False]


def test_a_wall_clock_that_stepped_makes_an_active_node_start_over(world: World) -> None:
    world.was_active()
    released = world.state()["released"]
    world.change_state(wall_offset_seconds=world.state()["wall_offset_seconds"] - 300)
    ran = world.run()
    assert f"INFO - Removing {world.paths.probe}" in ran.log
    assert world.state()["released"] > released


def stop_before_commit(world: World) -> "subprocess.Popen[str]":
    """A run that has staged its probe and hangs: it waits for a writer of a pipe."""
    world.saw_its_peers()
    world.stands_still("write_atomic(self.paths.lease_until, limit)\n")
    process = world.start()
    until(world.paths.staged.exists)
    assert not world.active
    return process


def test_a_run_killed_between_staging_and_committing_leaves_a_passive_node(world: World) -> None:
    process = stop_before_commit(world)
    process.kill()
    process.communicate()
    assert (world.active, world.state()["active"]) == (False, False)
    ran = world.run()
    assert (ran.code, world.active, world.paths.staged.exists()) == (0, True, False)


def test_a_run_frozen_between_staging_and_committing_cannot_commit_after_the_fence(
    world: World,
) -> None:
    process = stop_before_commit(world)
    fence = loader.boot_seconds() + world.times.lease_seconds
    until(lambda: loader.boot_seconds() >= fence, 10)
    for page in (world.paths.probe, world.paths.staged):
        page.unlink(missing_ok=True)  # what the fence does
    (world.paths.run / "pipe").write_bytes(b"go on")
    journal, _ = process.communicate(timeout=10)
    assert (process.returncode, world.active) == (0, False)
    assert journal.startswith("passive: ")
    assert world.paths.lease_until.read_text() == "0"


def test_a_run_that_slept_past_its_end_says_what_became_of_the_probe(world: World) -> None:
    world.was_active()
    process = world.start()
    honest = world.cloud.site(world.hosts["node2"]).pages["/node1.html"]
    stopped: list[float] = []

    def page(asked: Asked) -> Page:
        if not stopped:
            os.kill(process.pid, signal.SIGSTOP)
            stopped.append(loader.boot_seconds())
        assert callable(honest)
        return honest(asked)

    world.says("node2", page)
    until(lambda: bool(stopped))
    slept = world.times.end_seconds + world.times.timeout_seconds + world.times.poll_seconds
    until(lambda: loader.boot_seconds() > stopped[0] + slept + 0.1)
    os.kill(process.pid, signal.SIGCONT)
    journal, _ = process.communicate(timeout=10)
    role = "active" if world.active else "passive"
    assert journal.startswith(f"{role}: Node node1 was stopped for a while, ")
    assert journal.strip().endswith(f" {role}")
    assert world.status()["role"] == role


# ------------------------------------------------ how the file is run


def test_the_agent_runs_as_text_in_an_interpreter_without_a_file(slow_world: World) -> None:
    run_it = f"exec(open({str(slow_world.paths.loader)!r}).read())"
    ran = subprocess.run(
        [sys.executable, "-"], input=run_it, capture_output=True, text=True, timeout=10, check=True
    )
    assert ran.stdout == f"active: {ACTIVE}\n"
    assert (ran.stderr, slow_world.active) == ("", True)
