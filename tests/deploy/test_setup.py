"""The application is set up on a node: the document's own script, run against a folder.

Only `sleep` is a stand-in: it notes for how long it was asked to, and may end the tries.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from deploy.application import Setup, read_setup, web_names
from deploy.checkout import CHECKOUT
from deploy.nodes_info import read_nodes_info
from deploy.userdata import user_data
from tests.web import NOT_FOUND, Page, Site, open_web

SLEEP = """#!/bin/sh
# Ends the tries where it has been asked so often as `most` says.
echo "$1" >> "${0%/*}/slept"
[ "$(wc -l < "${0%/*}/slept")" -lt "$(cat "${0%/*}/most")" ] || kill -TERM "$PPID"
"""
UNIT = (CHECKOUT / "systemd" / "setup.service").read_text(encoding="utf-8")
ENVIRONMENT = dict(re.findall("^Environment=(.+?)=(.*)$", UNIT, re.MULTILINE))
ONCE = b"#!/bin/sh\necho begun\necho once >> ../ran\n"


class Ran(NamedTuple):
    code: int
    output: str
    slept: list[int]


class Node:
    """What cloud-init wrote on a node, in a folder."""

    def __init__(self, root: Path, site: Site) -> None:
        self.etc, self.bin, self.site = root / "bootstrap", root / "bin", site
        for folder in (self.etc, self.bin):
            folder.mkdir()
        (self.bin / "sleep").write_text(SLEEP)
        (self.bin / "sleep").chmod(0o755)

    def boots(self, setup: Setup, *, room: bool = True) -> None:
        """The node gets these files; without room the document has the list of them alone."""
        document = user_data(
            "node1",
            read_nodes_info(CHECKOUT / "nodes_info.json"),
            bootstrap_url=f"{self.site.url}/bootstrap",
            cluster_key="5e" * 32,
            period_seconds=20,
            look_seconds=2,
            pause_seconds=5,
            peer_address="public",
            scheduled_events=True,
            cluster_port=80,
            cluster="lab",
            allowed_signers="",
            setup=setup,
            service={},
        )
        for file in yaml.safe_load(document)["write_files"]:
            path = self.etc / file["path"].removeprefix("/etc/bootstrap/")
            if path.is_relative_to(self.etc) and (room or path.parent == self.etc):
                path.parent.mkdir(exist_ok=True)
                path.write_text(file["content"].replace("/etc/bootstrap", str(self.etc)))
                path.chmod(int(file["permissions"], 8))

    def command(self, most: int) -> "subprocess.Popen[str]":
        """Start what setup.service does, for so many tries at most."""
        (self.bin / "most").write_text(f"{most}")
        (self.bin / "slept").unlink(missing_ok=True)
        return subprocess.Popen(
            ["sh", str(self.etc / "setup.sh")],
            env={
                **{"PATH": f"{self.bin}:{os.environ['PATH']}", "LC_ALL": "C", "NO_PROXY": "*"},
                **ENVIRONMENT,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def runs(self, most: int = 1) -> Ran:
        with self.command(most) as process:
            output, _ = process.communicate(timeout=60)
        noted = self.bin / "slept"
        slept = [int(line) for line in noted.read_text().split()] if noted.exists() else []
        return Ran(process.returncode, output, slept)

    @property
    def failed(self) -> str | None:
        path = self.etc / "setup.failed"
        return path.read_text() if path.exists() else None

    @property
    def is_done(self) -> bool:
        return (self.etc / "setup.done").exists()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with open_web() as web:
        yield Node(tmp_path, web.site("127.0.0.10"))


def test_the_first_file_is_run_once_beside_the_others_and_its_output_is_passed_on(
    node: Node,
) -> None:
    node.boots({"first.sh": b"#!/bin/sh\ncat app.conf && echo x >> ../ran\n", "app.conf": b"hi\n"})
    for output in ("hi\n", ""):
        assert node.runs() == Ran(0, output, [])
        assert (node.is_done, node.failed) == (True, None)
        assert (node.etc / "ran").read_text() == "x\n"


def test_it_is_tried_again_with_growing_pauses_and_the_last_line_of_a_failure_is_kept(
    node: Node,
) -> None:
    node.boots({"setup.sh": b"#!/bin/sh\necho begun\necho no such package >&2\nexit 3\n"})
    ran = node.runs(most=10)
    assert ran.slept == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert ran.output.count("begun\nno such package\n") == 10
    assert "setup.sh has not succeeded: again in 40 s\n" in ran.output
    assert (node.is_done, node.failed) == (False, "no such package\n")


def test_what_failed_and_then_succeeds_leaves_nothing_of_its_failure(node: Node) -> None:
    script = b"#!/bin/sh\necho try >> ../tries\n[ $(wc -l < ../tries) = 3 ] && echo fine\n"
    node.boots({"setup.sh": script})
    ran = node.runs(most=5)
    assert (ran.code, ran.slept, ran.output[-5:]) == (0, [5, 10], "fine\n")
    assert (node.is_done, node.failed) == (True, None)


CHANGES = b"""#!/bin/sh
set -eu
ls
cat app.conf
sed -i 's/@NODE@/node1/' app.conf
sed -i 's/@NODE@/done/' "$0"
touch left
mv app.conf ../app.conf
[ -e ../tried ] || { touch ../tried; echo @NODE@ >&2; exit 1; }
"""


@pytest.mark.parametrize("room", [True, False])
def test_a_script_that_edits_and_moves_its_files_and_fails_finds_them_as_they_came_the_next_time(
    node: Node, *, room: bool
) -> None:
    setup = {"setup.sh": CHANGES, "app.conf": b"name = @NODE@\n"}
    node.boots(setup, room=room)
    node.site.pages |= {f"/{name}": Page(data) for name, data in web_names(setup).items()}
    ran = node.runs(most=5)
    assert (ran.code, ran.slept, node.is_done) == (0, [5], True)
    assert ran.output.count("app.conf\nsetup.sh\nname = @NODE@\n") == 2
    assert (node.etc / "app.conf").read_text() == "name = node1\n"
    assert {path.name: path.read_bytes() for path in (node.etc / "setup").iterdir()} == setup


def test_a_script_knows_roots_home_which_systemd_does_not_say(node: Node) -> None:
    node.boots({"setup.sh": b'#!/bin/sh\nset -eu\necho "$HOME"\n'})
    assert node.runs() == Ran(0, "/root\n", [])


def test_output_is_passed_on_while_the_script_runs_and_a_killed_one_is_run_again(
    node: Node,
) -> None:
    node.boots({"setup.sh": b"#!/bin/sh\necho begun\nread -r _ < ../gate\n"})
    os.mkfifo(node.etc / "gate")
    with node.command(1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"  # it waits at the gate
        os.killpg(process.pid, signal.SIGKILL)
    assert not node.is_done
    node.boots({"setup.sh": ONCE})
    assert node.runs().code == 0
    assert node.is_done


def test_files_for_which_there_was_no_room_come_from_the_web_site(node: Node) -> None:
    setup = {"setup.sh": b"#!/bin/sh\nwc -c < app\n", "app": b"\xff" * 200_000}
    node.boots(setup, room=False)
    assert not (node.etc / "setup").exists()
    node.site.pages |= {f"/{name}": Page(data) for name, data in web_names(setup).items()}
    assert node.runs() == Ran(0, "200000\n", [])
    assert node.is_done


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (NOT_FOUND, "HTTP Error 404"),
        (Page(b"#!/bin/sh\ntouch ../evil\n"), "setup.sh is not what the first-boot document says"),
        (Page(ONCE[:20], promised_bytes=len(ONCE)), "setup.sh is not what"),
    ],
)
def test_what_the_web_site_has_not_whole_and_as_it_should_be_is_not_run(
    node: Node, page: Page, told: str
) -> None:
    node.boots({"setup.sh": ONCE}, room=False)
    (name,) = web_names({"setup.sh": ONCE})
    node.site.pages[f"/{name}"] = page
    ran = node.runs(most=2)
    assert (ran.slept, node.is_done) == ([5, 10], False)
    assert told in (node.failed or "")
    assert not (node.etc / "evil").exists()
    assert not (node.etc / "ran").exists()
    node.site.pages[f"/{name}"] = Page(ONCE)
    assert node.runs().code == 0
    assert (node.etc / "ran").read_text() == "once\n"


def test_a_file_that_power_took_half_of_is_fetched_again(node: Node) -> None:
    setup = {"setup.sh": ONCE}
    node.boots(setup, room=False)
    (name,) = web_names(setup)
    node.site.pages[f"/{name}"] = Page(ONCE)
    (node.etc / "setup").mkdir()
    (node.etc / "setup" / "setup.sh").write_bytes(ONCE[:9])
    assert node.runs().code == 0
    assert node.is_done


def test_the_order_of_the_files_is_the_operators(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("z.sh", "a.conf")]
    for path in paths:
        path.write_bytes(b"#!/bin/sh\n")
    assert [*read_setup(map(str, paths))] == ["z.sh", "a.conf"]


def test_the_script_is_right_shell() -> None:
    script = str(CHECKOUT / "agent" / "setup.sh")
    checked = subprocess.run(["sh", "-n", script], capture_output=True, timeout=10, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
