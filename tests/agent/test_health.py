"""The operator's health checks: what a round of them finds, and what the agent makes of that."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import loader
from tests.agent.world import World, open_world

SCRIPT = Path(loader.__file__).with_name("health.sh").read_text(encoding="utf-8")


class Node:
    """A node's files, as far as a round of checks reads and writes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = loader.Paths(str(root))
        for folder in (self.paths.etc / "health.d", self.paths.run):
            folder.mkdir(parents=True)
        script = SCRIPT
        for path in ("/etc/bootstrap", "/run/bootstrap"):
            assert path in script
            script = script.replace(path, f"{root}{path}")
        self.script = root / "health.sh"
        self.script.write_text(script)

    def check(self, name: str, script: str) -> None:
        path = self.paths.etc / "health.d" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def rounds(self, count: int = 1) -> str:
        """So many rounds, and what the agent makes of them: "" for healthy."""
        for _ in range(count):
            ran = subprocess.run(
                ["sh", str(self.script)], capture_output=True, text=True, timeout=20, check=True
            )
            assert (ran.stdout, ran.stderr) == ("", "")
        return loader.why_unhealthy(self.paths, loader.read_settings(self.paths.conf))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_three_failures_in_a_row_make_a_node_unhealthy_and_two_successes_healthy_again(
    node: Node,
) -> None:
    node.check("disk", "echo looking; echo the disk is full >&2; exit 3")
    why = "its health check disk says: the disk is full"
    assert [node.rounds() for _ in range(3)] == ["", "", why]
    node.check("disk", "exit 0")
    assert [node.rounds() for _ in range(2)] == [why, ""]


def test_a_success_between_failures_begins_the_count_anew(node: Node) -> None:
    for _ in range(3):
        node.check("disk", "exit 1")
        assert node.rounds(2) == ""
        node.check("disk", "exit 0")
        assert node.rounds() == ""


@pytest.mark.parametrize(
    "text",
    [
        b"unhealthy_after = 1\nhealthy_after = 3\n",
        b"  Unhealthy_After: 1\r\n  healthy_after\t=\t3\r\n",
    ],
    ids=["usual", "as configparser takes it"],
)
def test_the_counts_are_the_operators(node: Node, text: bytes) -> None:
    node.paths.conf.write_bytes(b"[loader]\n" + text)
    assert loader.read_settings(node.paths.conf).healthy_after == 3
    node.check("disk", "exit 7")
    assert node.rounds() == "its health check disk says: exit code 7"
    node.check("disk", "exit 0")
    assert node.rounds(2) == "its health check disk says: exit code 7"
    assert node.rounds() == ""


def test_checks_run_in_the_order_of_their_names_until_one_fails(node: Node) -> None:
    node.paths.conf.write_text("[loader]\nunhealthy_after = 1\n")
    node.check("30-last", "touch last")
    node.check("20-fails", "echo no")
    (node.paths.etc / "health.d" / "10-notes").write_text("not a program: left out")
    assert node.rounds() == ""
    (node.paths.etc / "last").unlink()
    node.check("20-fails", "echo no; exit 1")
    assert node.rounds() == "its health check 20-fails says: no"
    assert not (node.paths.etc / "last").exists()


@pytest.mark.parametrize("name", [".disk", "disk~", "disk.bak", "disk.dpkg-old", "disk.swp"])
def test_a_check_that_was_set_aside_is_none(node: Node, name: str) -> None:
    node.paths.conf.write_text("[loader]\nunhealthy_after = 1\n")
    node.check(name, "exit 1")
    assert loader.why_unhealthy(node.paths, loader.Settings()) == ""
    node.check("other", "exit 0")
    assert node.rounds() == ""


def test_a_check_that_does_not_end_is_ended_and_has_failed(node: Node) -> None:
    node.paths.conf.write_text("[loader]\nhealth_seconds = 1\nunhealthy_after = 1\n")
    node.check("hangs", "trap '' TERM; echo waits; while :; do read -r _ < /dev/zero; done")
    assert node.rounds() == "its health check hangs says: no end in 1 s"


def test_whatever_a_check_says_is_one_plain_line(node: Node) -> None:
    node.paths.conf.write_text("[loader]\nunhealthy_after = 1\n")
    node.check("talks", r"printf 'a\033[31m\0b\n\n'; head -c 100000 /dev/zero; echo; exit 1")
    why = node.rounds()
    assert why.startswith("its health check talks says: ")
    assert why.isprintable()
    assert len(why) < 250


def test_a_full_disk_leaves_what_the_last_round_found(node: Node) -> None:
    node.check("disk", "exit 1")
    node.rounds()
    before = node.paths.health.read_text()
    full = ["sh", "-c", 'trap "" XFSZ; ulimit -f 0; . "$0"', str(node.script)]
    ran = subprocess.run(full, capture_output=True, text=True, timeout=20, check=False)
    assert (ran.returncode != 0, node.paths.health.read_text()) == (True, before)


def test_what_is_not_known_counts_against_a_node_as_long_as_there_are_checks(node: Node) -> None:
    settings = loader.Settings()
    assert loader.why_unhealthy(node.paths, settings) == ""
    node.check("disk", "exit 0")
    assert loader.why_unhealthy(node.paths, settings) == "its health is not known yet"
    node.paths.health.write_text("half a li")
    assert loader.why_unhealthy(node.paths, settings) == "its health is not known yet"
    node.paths.health.write_text(f"{loader.boot_seconds() - 34} 0 5 0\n\n")
    why = "its health checks have told nothing for 33 s"
    assert loader.why_unhealthy(node.paths, settings) == why
    (node.paths.etc / "health.d" / "disk").unlink()
    assert loader.why_unhealthy(node.paths, settings) == ""


# ------------------------------------------------ what the agent does


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Node1 of three, with a check that failed."""
    with open_world(tmp_path / "root", monkeypatch) as found:
        (found.paths.etc / "health.d").mkdir()
        (found.paths.etc / "health.d" / "disk").touch(0o755)
        found.paths.health.write_text(f"{loader.boot_seconds()} 3 0 1\ndisk says: it is full\n")
        yield found


def test_an_unhealthy_node_does_not_stand_and_says_why_to_its_peers_and_in_its_status(
    world: World,
) -> None:
    world.run()
    why = "its health check disk says: it is full"
    shown = world.shown_to("node2")
    assert shown is not None
    assert (world.active, shown.unfit, world.status()["unfit"]) == (False, why, why)


@pytest.mark.parametrize(("unhealthy", "stays"), [("stay", True), ("stop", False)])
def test_an_active_node_without_a_healthy_heir_does_what_the_operator_says(
    world: World, unhealthy: str, stays: bool
) -> None:
    for peer in world.peers:
        world.votes(peer, unfit="its disk is full")
    world.was_active()
    world.settings(unhealthy=unhealthy)
    world.run()
    assert world.active == stays
