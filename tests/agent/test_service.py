"""What runs with the role: a node starts it under its fence, and has nothing of it otherwise."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import loader
from tests.agent.world import INSTANCE, World, open_world
from tests.web import Asked, Page

UNIT = "writer.service"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, on which a service has joined."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        found.joins(UNIT)
        yield found


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for the condition; fails when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def started(world: World) -> list[tuple[str, str]]:
    """What systemd was told to start: a unit, and the node's pages at that moment."""
    calls = world.systemd.calls
    return [(name, pages) for member, name, pages in calls if member == "StartUnit"]


def test_a_service_starts_under_the_fence_and_before_the_probe_and_knows_its_term(
    world: World,
) -> None:
    world.run()
    assert world.active
    ((unit, pages),) = started(world)
    assert (unit, "probe.html" in pages.split()) == ("start-active.service", False)
    assert [member for member, _ in world.calls()][:2] == ["StartTransientUnit", "StartUnit"]
    assert world.systemd.environment == [f"CLUSTER_TERM={world.status()['term']}"]
    assert world.systemd.units[UNIT] == "active"
    assert world.fences() != []


@pytest.mark.parametrize(
    "line",
    [
        'told = [f"CLUSTER_TERM={term}"]\n',
        'call_systemd(self.paths, "StartUnit", ("s", START), ("s", "replace"))\n',
    ],
    ids=["before it asks", "as it asks"],
)
def test_a_run_that_stands_still_before_the_start_starts_nothing_once_its_fence_has_fired(
    world: World, line: str
) -> None:
    pipe = world.stands_still(line)
    process = world.start()
    until(lambda: world.paths.state.exists() and world.state()["active"])
    fence = loader.boot_seconds() + world.times.lease_seconds - world.times.margin_seconds
    until(lambda: loader.boot_seconds() >= fence)
    world.systemd.start("stop-active.service")  # what the fence does
    pipe.write_bytes(b"go on")
    process.communicate(timeout=20)
    assert (process.returncode, world.systemd.started) == (0, [])


def test_a_service_that_fails_to_start_is_stopped_and_the_node_says_which(world: World) -> None:
    world.systemd.starts_as = "failed"
    world.run()
    assert not world.active
    asked = [unit for unit, _ in started(world)]
    assert asked[:2] == ["start-active.service", "stop-active.service"]
    assert world.systemd.units["active.target"] == "inactive"
    assert world.state()["trouble"] == f"its service did not start: {UNIT}"
    assert world.status()["unfit"] == f"its service failed: {UNIT}"


def test_a_service_that_somebody_started_on_a_passive_node_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, me="node2") as node2:
        node2.joins(UNIT)
        node2.leads("node1")
        node2.systemd.units |= {UNIT: "active"}
        ran = node2.run()
        assert [unit for unit, _ in started(node2)] == ["stop-active.service"]
        assert ran.said("WARNING - Stopping what runs with the role")


def test_a_unit_that_is_never_killed_is_refused_by_name(world: World) -> None:
    world.systemd.spared.add(UNIT)
    world.run()
    why = f"{UNIT} has SendSIGKILL=no, and could outlive the lease"
    assert (world.active, world.status()["unfit"], started(world)) == (False, why, [])


def test_a_node_made_before_there_was_anything_to_stop_a_service_does_not_start_it(
    world: World,
) -> None:
    (world.paths.unit.parent / "stop-active.service").unlink()
    world.run()
    why = f"{UNIT} has joined, and there is no stop-active.service for the fence to start"
    assert (world.active, world.status()["unfit"], started(world)) == (False, why, [])


@pytest.mark.parametrize("how", ["wants", "requires"])
def test_a_unit_that_something_else_starts_as_well_is_refused_by_name(
    world: World, how: str
) -> None:
    folder = world.paths.unit.parent / f"multi-user.target.{how}"
    folder.mkdir()
    (folder / UNIT).symlink_to(f"../{UNIT}")
    world.run()
    why = f"{UNIT} is started by multi-user.target, too: disable it there"
    assert (world.active, world.status()["unfit"], started(world)) == (False, why, [])


def test_a_joined_unit_may_be_wanted_by_another_joined_one(world: World) -> None:
    world.joins("1st.service")
    folder = world.paths.unit.parent / "1st.service.wants"
    folder.mkdir()
    (folder / UNIT).symlink_to(f"../{UNIT}")
    world.run()
    assert (world.active, world.status()["unfit"]) == (True, "")


def test_a_unit_that_systemd_would_start_without_the_role_is_refused_by_name(world: World) -> None:
    (world.paths.generated / f"{UNIT}.d/role.conf").unlink()  # the link was made by hand
    world.run()
    why = f"{UNIT} could be started without the role: run systemctl daemon-reload"
    assert (world.active, world.status()["unfit"], started(world)) == (False, why, [])


def test_a_daemon_reload_that_is_under_way_keeps_a_node_back_for_no_longer_than_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, period=10, look=2) as world:
        world.joins(UNIT)
        made = world.paths.generated / f"{UNIT}.d/role.conf"
        made.unlink()
        time.sleep(0.02 - time.time() % -10)  # at a tick: looks enough are left
        process = world.start()
        until(lambda: world.paths.status.exists() and "daemon-reload" in world.status()["unfit"])
        made.touch()
        until(lambda: world.status()["unfit"] == "")
        assert process.poll() is None, "in the same run"
        process.communicate(timeout=20)
        assert world.active
        made.unlink()
        assert loader.why_not_killed(world.paths, (UNIT,)) == "", "it has the role"


def test_of_a_node_that_has_the_role_it_was_known_that_its_service_is_killed(world: World) -> None:
    world.run()
    world.systemd.fails()
    assert loader.why_not_killed(world.paths, (UNIT,)) == ""
    world.paths.starts.unlink()
    why = f"whether {UNIT} is killed is not known: can't reach systemd: "
    assert loader.why_not_killed(world.paths, (UNIT,)).startswith(why)


def test_a_unit_that_can_not_be_loaded_has_failed_though_its_target_is_reached(
    world: World,
) -> None:
    world.joins("typo.service")
    world.systemd.unloaded["typo.service"] = "bad-setting"
    world.run()
    assert (world.active, world.status()["unfit"]) == (False, "its service failed: typo.service")


def test_markup_in_what_the_application_says_leaves_markers_whole(world: World) -> None:
    said = "<h1>502</h1><script>again()</script>"
    (world.paths.etc / "setup.sha256").touch()
    (world.paths.etc / "setup.failed").write_text(f"{said}\n")
    world.run()
    shown = world.shown_to("node2")
    assert shown is not None
    assert shown.unfit == f"its application is not set up: {said}"


def test_a_node_whose_timer_was_stopped_forgets_that_its_service_did_not_start(
    world: World,
) -> None:
    world.run()
    world.change_state(not_started="its service was not there after 60 s")
    world.run("leave")
    assert world.state()["not_started"] == ""


def test_a_node_whose_service_starts_asks_for_what_its_voters_show_others(world: World) -> None:
    """As with a probe: its host may have paused it until others had voted anew."""
    world.systemd.starts_as = "activating"
    world.run()
    assert world.paths.starts.exists()
    site = world.cloud.site(world.hosts["node2"])
    assert site.asked_for("/node3.html") == []
    world.says("node2", Page("not found", 404))
    world.run()
    assert site.asked_for("/node3.html")


def test_a_target_can_not_join(world: World) -> None:
    world.joins("app.target")
    world.run()
    why = "app.target has joined, and does not stop its units: let them join instead"
    assert (world.active, world.status()["unfit"], started(world)) == (False, why, [])


def test_a_unit_that_leaves_while_it_runs_is_stopped_with_the_role(world: World) -> None:
    world.run()
    told = world.paths.starts.read_text()
    assert told == f"{world.times.stop_seconds:g} {UNIT}\n"
    (world.paths.unit.parent / "active.target.wants" / UNIT).unlink()
    loader.drop_probe(world.paths)
    assert [unit for unit, _ in started(world)] == ["start-active.service", "stop-active.service"]


def test_a_unit_that_leaves_while_it_runs_binds_the_votes_until_it_has_stopped(
    world: World,
) -> None:
    world.run()
    (world.paths.unit.parent / "active.target.wants" / UNIT).unlink()
    world.systemd.stops_in_seconds = 8  # longer than a run
    before = world.state()["released"]
    loader.drop_probe(world.paths)  # as a run that fails does
    assert (world.paths.starts.exists(), loader.joined_units(world.paths)) == (False, (UNIT,))
    world.run()
    state = world.state()
    assert (state["stopping"], state["released"]) == (True, before)
    until(lambda: world.systemd.units[UNIT] == "inactive")
    world.run()
    assert world.state()["released"] > before
    assert world.active


def test_a_stop_that_was_killed_is_begun_again_for_a_unit_that_has_left(world: World) -> None:
    world.run()
    (world.paths.unit.parent / "active.target.wants" / UNIT).unlink()
    world.paths.starts.replace(world.paths.stops)  # and it was killed after that
    world.paths.probe.unlink()
    world.run()
    asked = [unit for unit, _ in started(world)]
    assert asked[:2] == ["start-active.service", "stop-active.service"]


def test_what_a_service_that_ended_by_itself_left_behind_is_killed(world: World) -> None:
    world.run()
    world.systemd.units = dict.fromkeys(world.systemd.units, "inactive")
    world.run()
    asked = [unit for unit, _ in started(world)]
    assert asked[:2] == ["start-active.service", "stop-active.service"]


def test_a_unit_that_fails_keeps_the_probe_away_while_another_one_runs(world: World) -> None:
    world.joins("other.service")
    world.run()
    world.systemd.units |= {UNIT: "failed", "active.target": "inactive"}  # RequiredBy=active.target
    joined = loader.joined_units(world.paths)
    assert loader.service_now(world.paths, joined) == loader.Service("failed", UNIT)


def test_a_service_that_somebody_stops_on_the_active_node_ends_the_role(world: World) -> None:
    world.run()
    world.systemd.units = dict.fromkeys(world.systemd.units, "inactive")
    world.run()
    assert world.state()["trouble"] == "its service is not there: somebody stopped it"


def test_a_planned_stop_waits_for_the_service_and_gives_the_votes_up_then(world: World) -> None:
    world.run()
    world.systemd.stops_in_seconds = 5  # longer than the look itself
    ran = world.run("leave")
    state = world.state()
    assert (ran.code, world.active, state["active"], state["stopping"]) == (0, False, False, False)
    assert state["released"] > 0


def test_an_active_node_whose_run_fails_stops_its_service_and_keeps_its_fence(world: World) -> None:
    world.run()
    fences = world.fences()
    world.systemd.stops_as = "deactivating"
    world.paths.nodes_info.write_text("{")
    ran = world.run()
    assert (ran.code, world.active) == (2, False)
    assert {unit for unit, _ in started(world)} == {"start-active.service", "stop-active.service"}
    assert world.fences() == fences


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ({}, "stopped"),
        ({loader.START: "activating"}, "changing"),
        ({UNIT: "activating"}, "changing"),
        ({UNIT: "active", loader.TARGET: "active"}, "running"),
        ({UNIT: "active", loader.TARGET: "active", "hook.service": "reloading"}, "changing"),
        ({UNIT: "active", loader.TARGET: "active", "hook.service": "failed"}, "failed"),
        ({UNIT: "active", loader.TARGET: "active", loader.STOP: "activating"}, "stopping"),
        ({UNIT: "deactivating"}, "changing"),
        ({UNIT: "active"}, "failed"),
        ({UNIT: "failed"}, "stopped"),
        ({loader.START: "failed"}, "stopped"),
    ],
)
def test_what_systemd_says_of_the_units_is_one_state_of_all(
    world: World, told: dict[str, str], state: str
) -> None:
    world.systemd.units = told
    found = loader.service_now(world.paths, (UNIT, "hook.service"))
    failed = [name for name, each in told.items() if each == "failed"]
    assert (found.state, found.failed) == (state, failed[0] if failed else "")


def test_a_systemd_that_says_nothing_has_stopped_nothing(world: World) -> None:
    world.run()
    world.paths.probe.unlink()
    world.change_state(stopping=True)
    before = world.state()
    world.systemd.fails()
    world.run()
    after = world.state()
    assert (after["stopping"], after["released"]) == (True, before["released"])


def test_a_passive_node_stops_nothing_because_systemd_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch, me="node2") as node2:
        node2.joins(UNIT)
        node2.leads("node1")
        node2.systemd.loses_its_answers()
        ran = node2.run()
        assert not ran.said("Stopping what runs with the role")
        assert started(node2) == []


def test_an_active_node_whose_unit_fails_hands_over_and_says_why(world: World) -> None:
    world.run()
    world.systemd.units[UNIT] = "failed"
    world.run()
    why = f"its service failed: {UNIT}"
    assert world.status()["unfit"] == why
    shown = world.shown_to("node2")
    assert shown is not None
    assert (shown.unfit, shown.quorum_runs) == (why, 0)


def test_a_unit_that_joins_after_the_run_has_its_times_has_the_node_wait_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch) as world:
        instance = world.cloud.site(world.metadata_host).pages[INSTANCE]

        def joins(_: Asked) -> Page:
            world.joins(UNIT)
            assert isinstance(instance, Page)
            return instance

        world.metadata_says(INSTANCE, joins)
        world.run()
        assert (world.active, world.systemd.started) == (False, [])
        assert world.status()["unfit"] == f"{UNIT} has joined since its run began"
        world.metadata_says(INSTANCE, instance)
        world.run()
        assert (world.active, world.systemd.started) == (True, [UNIT])


def test_where_nothing_joined_systemd_is_asked_for_nothing_more_than_the_fence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_world(tmp_path / "root", monkeypatch) as world:
        world.run()
        assert world.active
        assert {member for member, _, _ in world.systemd.calls} <= {"Get", "StartTransientUnit"}
        assert json.loads(world.paths.state.read_text())["starting_since_seconds"] == 0


def test_a_stop_that_was_killed_after_its_units_had_stopped_is_begun_again(world: World) -> None:
    world.run()
    world.paths.starts.replace(world.paths.stops)  # and killed before what was forked away was
    world.systemd.units = dict.fromkeys(world.systemd.units, "inactive")
    world.paths.probe.unlink()
    world.change_state(stopping=True)
    world.run()
    asked = [unit for unit, _ in started(world)]
    assert asked[:2] == ["start-active.service", "stop-active.service"]
    assert not world.paths.stops.exists()
