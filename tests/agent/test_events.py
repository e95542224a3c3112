"""What Azure announces for a machine: the node makes way, votes on, approves, and stands again."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import loader
from tests.agent.world import EVENTS, Ran, World, open_world
from tests.web import SILENT, Asked, Page

PERIOD, LOOK = 4, 2
KINDS = ("Freeze", "Reboot", "Redeploy", "Preempt", "Terminate")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, active; node2 takes the role as soon as it is free."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        found.was_active()
        takes_over(found, "node2")
        yield found


@pytest.fixture
def looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The same with two looks a run, a moment after a tick."""
    with open_world(tmp_path / "root", monkeypatch, period=PERIOD, look=LOOK) as found:
        time.sleep((0.02 - time.time()) % PERIOD)  # what systemd's timer does
        found.was_active()
        takes_over(found, "node2")
        yield found


def takes_over(world: World, peer: str) -> None:
    """The peer asks once node1 does not, and serves once that has given its stamps up."""

    def page(_: Asked) -> Page:
        shown, vote = world.shown_to(peer), world.vote_of(peer)
        asks, free = (shown and not shown.candidate, shown and shown.released)
        fields = {"candidate": bool(asks), "active": bool(free), "vote": vote}
        return Page(world.signed(world.marker(peer, **fields)))

    world.says(peer, page)


def cannot_serve(world: World, peer: str) -> None:
    """The peer votes for whoever asks, and is about to go itself: it has seen no majority."""

    def page(_: Asked) -> Page:
        return Page(world.signed(world.marker(peer, quorum_runs=0, vote=world.vote_of(peer))))

    world.says(peer, page)


def makes_way(world: World, ran: Ran, kind: str) -> None:
    reason = f"Node node1 makes way: Azure announces {kind}, set as passive"
    assert (ran.code, world.active) == (0, False)
    assert world.status()["reason"] == reason
    assert f"passive: {reason}" in ran.journal


# ------------------------------------------------ handed over, approved, and over


@pytest.mark.parametrize("kind", KINDS)
def test_before_what_is_announced_the_role_is_handed_over_and_then_it_is_approved(
    world: World, kind: str
) -> None:
    world.announces(kind)
    ran = world.run()
    makes_way(world, ran, kind)
    assert world.approved() == []  # the load balancer has to notice first
    assert world.state()["vote"][0] == "node2"  # it goes on as a voter
    ran = world.run()
    makes_way(world, ran, kind)
    assert world.approved() == [f"the {kind}"]
    assert f"Azure may go on with its {kind}: node2 is active" in ran.journal


def test_it_is_approved_once_and_the_node_stays_passive_until_it_is_over(world: World) -> None:
    world.announces("Freeze")
    for _ in range(3):
        makes_way(world, world.run(), "Freeze")
        shown = world.shown_to("node3")
        assert shown is not None
        assert (shown.candidate, shown.quorum_runs) == (False, 0)
    assert world.approved() == ["the Freeze"]
    world.announces()
    assert "makes way" not in world.run().journal
    shown = world.shown_to("node3")
    assert shown is not None
    assert (shown.candidate, shown.quorum_runs) == (True, 1)


def test_one_that_was_called_off_is_over_as_well(world: World) -> None:
    world.announces("Redeploy")
    world.run()
    world.announces()
    world.run()
    assert world.state()["candidate"]


def test_one_that_has_begun_without_a_word_is_made_way_for_and_needs_no_approval(
    world: World,
) -> None:
    world.announces("Reboot", EventStatus="Started", NotBefore="")
    makes_way(world, world.run(), "Reboot")
    assert world.approved() == []


def test_a_second_one_is_approved_beside_a_first_that_was(world: World) -> None:
    world.announces("Freeze")
    world.run()
    world.run()
    world.announces("Freeze", "Reboot")
    makes_way(world, world.run(), "Freeze, Reboot")
    world.run()
    assert world.approved() == ["the Freeze", "the Reboot"]


@pytest.mark.parametrize("answer", [Page("", 400), Page("", 500), SILENT])
def test_an_approval_that_is_not_heard_is_sent_again_by_the_next_run(
    world: World, answer: Page
) -> None:
    world.announces("Freeze")
    site = world.cloud.site(world.metadata_host)
    document = site.pages[EVENTS]
    assert isinstance(document, Page)
    world.metadata_says(EVENTS, lambda asked: answer if asked.content else document)
    world.run()
    makes_way(world, world.run(), "Freeze")
    assert not world.paths.approved.exists()
    world.metadata_says(EVENTS, document)
    makes_way(world, world.run(), "Freeze")
    makes_way(world, world.run(), "Freeze")
    assert world.approved() == ["the Freeze", "the Freeze"]


def test_a_passive_node_approves_at_once_while_another_is_active(world: World) -> None:
    world.saw_its_peers()
    world.leads("node2")
    world.announces("Preempt")
    makes_way(world, world.run(), "Preempt")
    assert world.approved() == ["the Preempt"]


def test_nothing_is_approved_before_another_node_is_active(world: World) -> None:
    world.saw_its_peers()
    world.votes("node2")  # and does not take over
    world.announces("Freeze")
    makes_way(world, world.run(), "Freeze")
    assert world.approved() == []
    world.leads("node2")
    world.run()
    assert world.approved() == ["the Freeze"]


def test_one_for_the_active_node_as_well_waits_until_that_one_has_made_way(world: World) -> None:
    world.announces("Freeze", Resources=["node1", "Node2"])
    for _ in range(2):
        makes_way(world, world.run(), "Freeze")
    assert world.approved() == []
    world.votes("node2")
    world.leads("node3")
    world.run()
    assert world.approved() == ["the Freeze"]


def test_of_two_that_are_about_to_go_the_later_in_the_order_goes_first(world: World) -> None:
    """Else both would be down at once, and the third alone is no majority."""
    world.saw_its_peers()
    world.leads("node3")
    cannot_serve(world, "node2")
    world.announces("Reboot")
    makes_way(world, world.run(), "Reboot")
    world.page("node2", "/", Page("", 503))
    makes_way(world, world.run(), "Reboot")  # node2 reboots
    assert world.approved() == []
    world.page("node2", "/", Page())
    world.votes("node2")
    for _ in range(2):  # it has to see our marker first
        makes_way(world, world.run(), "Reboot")
    assert world.approved() == ["the Reboot"]


def test_of_two_that_are_about_to_go_the_later_one_does_not_wait_for_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, me="node2") as world:
        world.saw_its_peers()
        world.leads("node3")
        cannot_serve(world, "node1")
        world.announces("Reboot")
        world.run()
        assert world.approved() == ["the Reboot"]


# ------------------------------------------------ nobody else


def test_where_nobody_else_can_be_active_the_node_stays_and_says_so(world: World) -> None:
    for peer in world.peers:
        cannot_serve(world, peer)
    world.announces("Freeze")
    ran = world.run()
    assert (ran.code, world.active) == (0, True)
    assert world.approved() == ["the Freeze"]
    assert "Azure may go on with its Freeze: no other node can be" in ran.journal


def test_one_without_an_end_keeps_no_node_passive_that_is_the_last_one_to_serve(
    world: World,
) -> None:
    world.announces("Terminate")
    makes_way(world, world.run(), "Terminate")
    for peer in world.peers:
        cannot_serve(world, peer)
    ran = world.run()
    assert (ran.code, world.active) == (0, True)
    takes_over(world, "node2")
    makes_way(world, world.run(), "Terminate")


def test_of_two_that_are_about_to_go_the_passive_one_leaves_the_role_to_the_active_one(
    world: World,
) -> None:
    world.saw_its_peers()
    cannot_serve(world, "node3")
    goes = {"candidate": True, "active": True, "quorum_runs": 0}
    world.says("node2", lambda _: Page(world.signed(world.marker("node2", **goes))))
    world.announces("Freeze")
    makes_way(world, world.run(), "Freeze")


def test_without_a_majority_nobody_is_active_and_it_is_approved(world: World) -> None:
    for peer in world.peers:
        world.page(peer, "/", Page("", 503))
    world.saw_its_peers()
    world.announces("Reboot")
    ran = world.run()
    assert (ran.code, world.active) == (0, False)
    assert "does not reach quorum" in world.status()["reason"]
    assert world.approved() == ["the Reboot"]


# ------------------------------------------------ what is no event of this node's


NOT_OURS: dict[str, Callable[[World], None]] = {
    "another node's": lambda world: world.announces("Freeze", Resources=["node2"]),
    "of a name like ours": lambda world: world.announces("Freeze", Resources=["node10"]),
    "of an unknown kind": lambda world: world.announces("Party"),
    "that interrupts nothing": lambda world: world.announces("Freeze", DurationInSeconds=0),
    "without a list": lambda world: world.metadata_says(EVENTS, Page('{"Events": 1}')),
    "garbled": lambda world: world.metadata_says(EVENTS, Page("<html>")),
    "not there": lambda world: world.metadata_says(EVENTS, Page("", 404)),
    "broken": lambda world: world.metadata_says(EVENTS, Page("", 500)),
    "silent": lambda world: world.metadata_says(EVENTS, SILENT),
    "endless": lambda world: world.metadata_says(EVENTS, Page("x" * 5000, pause_seconds=0.05)),
}


@pytest.mark.parametrize("says", NOT_OURS.values(), ids=NOT_OURS)
def test_anything_else_costs_neither_the_role_nor_time(
    world: World, says: Callable[[World], None]
) -> None:
    says(world)
    ran = world.run()
    assert (ran.code, world.active) == (0, True)
    assert world.approved() == []
    assert ran.seconds < 0.5 * world.period


def test_with_the_setting_off_azure_is_not_asked_and_does_not_wait_for_us(world: World) -> None:
    world.settings(scheduled_events="false")
    world.announces("Freeze")
    assert (world.run().code, world.active) == (0, True)
    assert world.cloud.site(world.metadata_host).asked_for(EVENTS) == []


def test_a_node_that_is_being_stopped_has_no_use_for_it(world: World) -> None:
    world.announces("Freeze")
    ran = world.run("leave")
    assert ran.journal == "passive: Node node1 is leaving, set as passive"
    assert world.cloud.site(world.metadata_host).asked_for(EVENTS) == []


# ------------------------------------------------ known from an earlier run


@pytest.mark.parametrize("answer", [Page("", 429), Page("<html>"), SILENT])
def test_what_an_earlier_run_knew_holds_until_azure_answers(world: World, answer: Page) -> None:
    """Else a node would take the role back whenever the answer is late, and give it up again."""
    world.announces("Freeze")
    makes_way(world, world.run(), "Freeze")
    world.metadata_says(EVENTS, answer)
    world.change_state(quorum_runs=5)  # it would be preferred again
    makes_way(world, world.run(), "Freeze")
    world.announces()
    world.run()
    assert world.state()["candidate"]


def test_with_the_setting_off_what_an_earlier_run_knew_is_forgotten(world: World) -> None:
    world.announces("Freeze")
    makes_way(world, world.run(), "Freeze")
    world.settings(scheduled_events="false")
    world.run()
    assert world.state()["candidate"]


# ------------------------------------------------ several looks


def test_an_answer_that_comes_late_counts_from_the_next_look_on(looking: World) -> None:
    looking.announces("Freeze")
    site = looking.cloud.site(looking.metadata_host)
    document = site.pages[EVENTS]
    assert isinstance(document, Page)
    looks: list[float] = []

    def late(asked: Asked) -> Page:
        if not asked.content:
            while not (looking.paths.status.exists() and looking.status()["role"] == "active"):
                threading.Event().wait(0.01)
            looks.append(time.time())
        return document

    looking.metadata_says(EVENTS, late)
    makes_way(looking, looking.run(), "Freeze")
    assert len(looks) == 1


def test_it_is_asked_for_once_a_run_and_approved_once(looking: World) -> None:
    looking.saw_its_peers()
    looking.leads("node2")
    looking.announces("Freeze")
    ran = looking.run()
    makes_way(looking, ran, "Freeze")
    asked = looking.cloud.site(looking.metadata_host).asked_for(EVENTS)
    assert [bool(one.content) for one in asked] == [False, True]
    assert all(one.headers["Metadata"] == "true" for one in asked)
    content = asked[1].content or b""
    assert json.loads(content) == {"StartRequests": [{"EventId": "the Freeze"}]}


def test_thirty_seconds_are_enough_at_the_default_settings() -> None:
    """Preempt: asked once a run, handed over by the look after, and the probe has to notice."""
    times, probe_seconds = loader.Settings().times, 5
    known_seconds = times.period_seconds + times.gap_seconds
    assert known_seconds + 2 * times.look_seconds + probe_seconds <= 30
