"""State of another boot or machine, and a machine set back to a snapshot: neither counts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.world import INSTANCE, Ran, World, open_world
from tests.web import SILENT, Page

BOOT, MACHINE = "6a1c0000-boot", "13f5-machine"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, active, by a run that knew of which boot of which machine it is."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        found.paths.boot_id.parent.mkdir(parents=True)
        found.paths.boot_id.write_text(f"{BOOT}\n")
        is_machine(found, MACHINE)
        found.was_active()
        assert (found.run().code, found.active) == (0, True)
        assert found.state()["origin"] == f"{BOOT}\n{MACHINE}"
        yield found


def is_machine(world: World, vm_id: str) -> None:
    """What Azure says of the machine from now on."""
    page = world.cloud.site(world.metadata_host).pages[INSTANCE]
    assert isinstance(page, Page)
    told: Any = json.loads(page.body)
    told["compute"]["vmId"] = vm_id
    world.metadata_says(INSTANCE, Page(json.dumps(told)))


def starts_over(world: World, ran: Ran, epoch: str) -> None:
    """It drops the probe, and votes for nobody: what others vote for it gives it a new lease."""
    state = world.state()
    assert state["epoch"] != epoch
    assert state["vote"] is None
    assert world.status()["holding_seconds"] > 0
    assert ran.said(f"Removing {world.paths.probe}")


def test_the_state_of_another_boot_is_none(world: World) -> None:
    epoch = world.state()["epoch"]
    world.paths.boot_id.write_text("another boot\n")
    starts_over(world, world.run(), epoch)


def test_the_state_of_another_machine_is_none(world: World) -> None:
    epoch = world.state()["epoch"]
    is_machine(world, "a clone")
    starts_over(world, world.run(), epoch)


def test_a_machine_that_azure_does_not_name_for_a_while_stays_what_it_is(world: World) -> None:
    epoch = world.state()["epoch"]
    for vm_id in ("", MACHINE):
        is_machine(world, vm_id)
        world.run()
        assert (world.active, world.state()["epoch"]) == (True, epoch)
    is_machine(world, "a clone")
    starts_over(world, world.run(), epoch)


def test_a_node_whose_agent_came_before_its_name_keeps_its_state(world: World) -> None:
    """The one before knew no name of the machine, and Azure may be slow to say it."""
    world.was_active()
    epoch = world.state()["epoch"]
    said = world.cloud.site(world.metadata_host).pages[INSTANCE]
    world.metadata_says(INSTANCE, SILENT)
    world.run()
    world.metadata_says(INSTANCE, said)
    world.run()
    assert (world.active, world.state()["epoch"]) == (True, epoch)


@pytest.mark.parametrize("newer_milliseconds", [0, 1])
def test_who_reads_of_a_stamp_newer_than_its_own_is_a_snapshot_and_starts_over(
    world: World, newer_milliseconds: int
) -> None:
    epoch = world.state()["epoch"]

    def page(_: Any) -> Page:
        shown = world.shown_to("node3")
        assert shown is not None
        read = {shown.epoch: shown.stamp + newer_milliseconds * (shown.epoch == epoch)}
        return Page(world.signed(world.marker("node3", vote=world.vote_of("node3"), heard=read)))

    world.says("node3", page)
    ran = world.run()
    if not newer_milliseconds:
        assert (world.active, world.state()["epoch"]) == (True, epoch)
        return
    starts_over(world, ran, epoch)
    assert ran.said("Node node1 is a snapshot of itself, its peers know it newer, set as passive")
