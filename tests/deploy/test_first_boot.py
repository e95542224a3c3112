"""First boot dies at each of its commands, and the next start of install.service makes it whole.

The script is the document's own, run against a folder: commands that change a machine are stand-ins
that note what they are asked; every command may be told to fail, or to die with the script.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from agent import loader
from deploy.checkout import CHECKOUT
from deploy.nodes_info import read_nodes_info
from deploy.publish import Folder, publish
from deploy.release import first_release
from deploy.settings import Settings
from deploy.signing import public_key, signers_text
from deploy.userdata import INSTANCE, user_data
from tests.agent.world import KEY, SOURCE, WEB_SITE_HOST, World, open_world
from tests.keys import make_key
from tests.web import Page

COMMANDS = [
    *("dpkg-query", "dpkg", "apt-get", "timeout", "python3", "mkdir", "cp", "mv", "a2enconf"),
    *("grep", "systemctl", "sync", "touch"),
]
COMMAND = r"""#!/bin/sh
# Any command of the script: the real one, or what stands for it. The DIE_AT-th of a run does as HOW
# says: "fails" instead of doing its work, or is "killed" after it, and the script with it.
name=${0##*/}
here=${0%/*}
echo "$name $*" >> "$here/../calls"
number=$(wc -l < "$here/../calls")
if [ "$number $HOW" = "$DIE_AT fails" ]; then exit 1; fi
case "$name $*" in
    dpkg-query*) cat "$here/../packages" ;;
    apt-get*install*) printf 'installed %.0s' 1 2 3 4 5 > "$here/../packages" ;;
    dpkg*|apt-get*|a2enconf*|systemctl*|sync*) ;;
    *) PATH=$REAL_PATH "$name" "$@" ;;
esac
code=$?
if [ "$number $HOW" = "$DIE_AT killed" ]; then kill -KILL 0; fi
exit $code
"""
FORGIVEN = ("dpkg-query", "dpkg --configure", "grep", "timeout 30 python3 -B loader.py")
"""Packages that nobody can tell of are installed, an agent that is not well is fetched, a page that
can't be read is not ours to replace, and what an installation left, apt-get tells.
"""
STAND_IN = 'import sys\nif "--self-check" in sys.argv:\n    print("self-check passed")\n'


class Ran(NamedTuple):
    code: int
    errors: str
    calls: list[str]


class FirstBoot:
    """A machine that is to become node1, in a folder: what cloud-init wrote is there."""

    def __init__(self, world: World, agent: str, cluster_port: int = 80) -> None:
        self.root, self.paths, self.agent = world.root, world.paths, agent
        self.site = world.cloud.site(WEB_SITE_HOST)
        self.key = make_key(self.root / "operator" / "id_ed25519", "me")
        self.publish(agent)
        document = user_data(
            "node1",
            read_nodes_info(CHECKOUT / "nodes_info.json"),
            bootstrap_url=world.web_site,
            cluster_key=KEY,
            period_seconds=20,
            look_seconds=2,
            pause_seconds=5,
            peer_address="public",
            scheduled_events=True,
            cluster_port=cluster_port,
            cluster="lab",
            allowed_signers=signers_text([public_key(self.key)]),
            setup={},
            service={},
        )
        self.files = {f["path"]: f["content"] for f in yaml.safe_load(document)["write_files"]}
        self.front = self.files["/etc/bootstrap/index.html"]
        self.bin = self.root / "stand-ins"
        self.bin.mkdir()
        for name in COMMANDS:
            (self.bin / name).write_text(COMMAND)
            (self.bin / name).chmod(0o755)
        self.clean()

    def clean(self) -> None:
        """As cloud-init leaves it; the packages' installation died half way."""
        for path in (self.paths.loader, self.installed, self.paths.html / "index.html"):
            path.unlink(missing_ok=True)
        for name in ("index.html", "cluster", "allowed_signers"):
            (self.paths.etc / name).write_text(self.files[f"/etc/bootstrap/{name}"])
        (self.root / "packages").write_text("installed half-configured not-installed ")

    def publish(self, agent: str, **changed: Any) -> None:
        """The web site serves this agent, as `key` has signed it."""
        how: dict[str, Any] = {"key": self.key, "cluster": "lab", **changed}
        folder, code = Folder(self.root / "operator" / f"site-{how['key'].name}"), agent.encode()
        nodes, signers = read_nodes_info(CHECKOUT / "nodes_info.json"), [public_key(how["key"])]
        wanted = first_release(
            *(Settings(), nodes, code, signers_text(signers)), cluster=how["cluster"]
        )
        shutil.rmtree(folder.path, ignore_errors=True)
        publish(folder, None, wanted, key=how["key"], now=time.time(), code=code)
        files = (path for path in folder.path.rglob("[!.]*") if path.is_file())
        self.site.pages |= {
            f"/{path.relative_to(folder.path).as_posix()}": Page(path.read_bytes())
            for path in files
        }
        digest = hashlib.sha256(code).hexdigest()
        self.agents = f"/bootstrap/releases/{digest}/loader.py"

    @property
    def installed(self) -> Path:
        return self.paths.etc / "installed"

    def start(self, die_at: int = 0, how: str = "") -> Ran:
        """What install.service does."""
        script = self.files["/etc/bootstrap/install.sh"]
        for path in ("/etc/bootstrap", "/var/"):
            script = script.replace(path, f"{self.root}{path}")
        (self.root / "calls").write_text("")
        real = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        told = {"REAL_PATH": real, "DIE_AT": str(die_at), "HOW": how}
        done = subprocess.run(
            ["sh"],
            input=script,
            env={"PATH": f"{self.bin}:/usr/bin:/bin", "LC_ALL": "C"} | told,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            start_new_session=True,
        )
        return Ran(done.returncode, done.stderr, (self.root / "calls").read_text().splitlines())

    def refuses(self, cause: str) -> None:
        ran = self.start()
        assert (ran.code != 0, self.paths.loader.exists(), self.installed.exists()) == (
            *(True, False, False),
        )
        assert cause in ran.errors

    def assert_nothing_is_half_there(self) -> None:
        front = self.paths.html / "index.html"
        assert not self.paths.loader.exists() or self.paths.loader.read_text() == self.agent
        assert not front.exists() or front.read_text() == self.front

    def assert_whole(self) -> None:
        assert self.paths.loader.read_text() == self.agent
        assert (self.paths.html / "index.html").read_text() == self.front
        assert (self.paths.html / "index.html").stat().st_mode & 0o777 == 0o644
        assert (self.root / "packages").read_text() == 5 * "installed "
        assert self.installed.exists()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with open_world(tmp_path / "root", monkeypatch) as found:
        yield found


@pytest.fixture
def boot(world: World) -> FirstBoot:
    return FirstBoot(world, STAND_IN)


def test_first_boot_installs_what_is_missing_and_says_so_last(boot: FirstBoot) -> None:
    ran = boot.start()
    assert ran.code == 0, ran.errors
    boot.assert_whole()
    assert ran.calls[-1] == "touch installed"
    asked = [call for call in ran.calls if call.startswith("systemctl")]
    assert asked == [
        "systemctl --no-reload enable bootup.service fence-clock.timer"
        " health.path loader.timer rollback.timer",
        "systemctl start bootup.service",
        "systemctl restart apache2.service",
        "systemctl start fence-clock.timer health.path loader.timer handover.service"
        " rollback.timer",
    ]


def test_first_boot_of_a_cluster_with_its_own_web_server_starts_that_and_leaves_port_80_alone(
    world: World,
) -> None:
    usual = world.paths.html
    (usual / "index.html").write_text(APACHES)
    (world.root / INSTANCE.lstrip("/")).mkdir(parents=True)
    world.paths = loader.Paths(str(world.root))
    boot = FirstBoot(world, STAND_IN, cluster_port=8001)
    ran = boot.start()
    assert ran.code == 0, ran.errors
    boot.assert_whole()
    changes = [call for call in ran.calls if call.startswith(("systemctl", "a2"))]
    asked = [call for call in changes if "apache" in call]
    assert asked == [
        "systemctl --no-reload enable apache2@bootstrap.service",
        "systemctl restart apache2@bootstrap.service",
    ]
    assert [path.name for path in usual.iterdir()] == ["index.html"]
    assert (usual / "index.html").read_text() == APACHES


def test_killed_after_any_command_the_next_start_makes_it_whole(boot: FirstBoot) -> None:
    count = len(boot.start().calls)
    assert count > 12
    for number in range(1, count + 1):
        boot.clean()
        assert boot.start(number, "killed").code == -9, number
        boot.assert_nothing_is_half_there()
        ran = boot.start()
        assert ran.code == 0, (number, ran.errors)
        boot.assert_whole()


def test_whatever_fails_once_is_named_last_and_the_next_start_makes_it_whole(
    boot: FirstBoot,
) -> None:
    calls = boot.start().calls
    for number, call in enumerate(calls, 1):
        boot.clean()
        ran = boot.start(number, "fails")
        boot.assert_nothing_is_half_there()
        if not call.startswith(FORGIVEN):
            assert ran.code != 0, call
            assert not boot.installed.exists()
            shown = [line for line in ran.errors.splitlines() if line.startswith("+")][-3:]
            # The shell shows a command's substitution too, and what tells of Apache's failure.
            assert any(call in line for line in shown), (call, ran.errors)
        assert boot.start().code == 0, call
        boot.assert_whole()


def test_started_again_on_a_node_in_service_it_leaves_the_agent_that_is_there(
    boot: FirstBoot,
) -> None:
    boot.start()
    newer = STAND_IN + "# newer\n"
    boot.paths.loader.write_text(newer)
    boot.installed.unlink()
    assert boot.start().code == 0
    assert boot.paths.loader.read_text() == newer


APACHES = "<title>Apache2 Debian Default Page: It works</title>"


def test_the_page_that_apache_came_with_is_replaced(boot: FirstBoot) -> None:
    (boot.paths.html / "index.html").write_text(APACHES)
    assert boot.start().code == 0
    boot.assert_whole()


@pytest.mark.parametrize("again", [False, True])
def test_an_applications_own_front_page_stays(boot: FirstBoot, again: bool) -> None:
    front = boot.paths.html / "index.html"
    if again:
        boot.start()
        boot.installed.unlink()
    front.write_text("<h1>our shop</h1>")
    assert boot.start().code == 0
    assert (front.read_text(), boot.installed.exists()) == ("<h1>our shop</h1>", True)


@pytest.mark.parametrize("name", [".index.html.tmp", "index.html"])
def test_a_link_planted_where_the_page_comes_leads_nowhere(boot: FirstBoot, name: str) -> None:
    (boot.paths.html / name).symlink_to(boot.paths.etc / "planted")
    assert boot.start().code == 0
    assert not (boot.paths.etc / "planted").exists()
    boot.assert_whole()


@pytest.mark.parametrize("name", [".index.html.tmp", "index.html"])
def test_a_folder_planted_where_the_page_comes_stops_nothing(boot: FirstBoot, name: str) -> None:
    (boot.paths.html / name).mkdir()
    assert boot.start().code == 0
    assert boot.installed.exists()
    assert [path.name for path in (boot.paths.html / name).iterdir()] == []


def test_another_installer_at_work_does_not_end_first_boot(boot: FirstBoot) -> None:
    ran = boot.start(2, "fails")
    assert ran.calls[1] == "dpkg --configure -a"
    assert (ran.code, boot.installed.exists()) == (0, True)


WRONG = {
    "half of it": (Page(SOURCE[: len(SOURCE) // 2], promised_bytes=len(SOURCE)), "not whole"),
    "half that claims to be whole": (
        Page(SOURCE[: SOURCE.index("\ndef main(")]),
        "loader.py: not what the release says it is",
    ),
    "a page of somebody else": (
        Page("<!doctype html><h1>Sign in</h1>"),
        "loader.py: not what the release says it is",
    ),
    "an error": (Page("", 503), "503"),
    "nothing": (Page(status=0), "loader.py: "),
}


@pytest.mark.parametrize(("page", "cause"), WRONG.values(), ids=WRONG)
def test_what_is_not_the_agent_of_the_release_is_not_installed_and_the_journal_says_why(
    world: World, page: Page, cause: str
) -> None:
    boot = FirstBoot(world, world.installed(SOURCE))
    boot.site.pages[boot.agents] = page
    boot.refuses(cause)
    boot.publish(boot.agent)
    assert boot.start().code == 0
    boot.assert_whole()


def other_signer(boot: FirstBoot) -> None:
    boot.publish(STAND_IN, key=make_key(boot.root / "operator" / "stranger", "stranger"))


def other_cluster(boot: FirstBoot) -> None:
    boot.publish(STAND_IN, cluster="billing")


def other_text(boot: FirstBoot) -> None:
    told = boot.site.pages["/bootstrap/release.json"]
    assert isinstance(told, Page)
    assert isinstance(told.body, bytes)
    boot.site.pages["/bootstrap/release.json"] = Page(told.body.replace(b"node1", b"node9"))


def no_signature(boot: FirstBoot) -> None:
    del boot.site.pages["/bootstrap/releases/1/release.json.sig"]


def no_release(boot: FirstBoot) -> None:
    boot.site.pages["/bootstrap/release.json"] = Page("<!doctype html><h1>Sign in</h1>")


def broken_agent(boot: FirstBoot) -> None:
    boot.publish("<!doctype html><h1>Sign in</h1>")


def half_an_agent(boot: FirstBoot) -> None:
    boot.publish(SOURCE[: SOURCE.index("\ndef main(")])


REFUSED: dict[str, tuple[Callable[[FirstBoot], None], str]] = {
    "a stranger has signed it": (other_signer, "release.json.sig: its signature is no operator's"),
    "it is another cluster's": (other_cluster, "a release of billing, and this is a node of lab"),
    "it was changed after it was signed": (other_text, "its signature is no operator's"),
    "it has no signature": (no_signature, "releases/1/release.json.sig: HTTP Error 404"),
    "it is a page of somebody else": (no_release, "release.json: "),
    "its agent is none": (broken_agent, "SyntaxError"),
    "its agent does nothing": (half_an_agent, "[  = self-check passed ]"),
}


@pytest.mark.parametrize(("change", "cause"), REFUSED.values(), ids=REFUSED)
def test_a_release_that_is_not_taken_installs_nothing_and_the_journal_says_why(
    boot: FirstBoot, change: Callable[[FirstBoot], None], cause: str
) -> None:
    change(boot)
    boot.refuses(cause)
    boot.publish(boot.agent)
    assert boot.start().code == 0
    boot.assert_whole()


def test_until_it_is_installed_each_boot_writes_the_files_and_starts_again(tmp_path: Path) -> None:
    document = user_data(
        "node1",
        read_nodes_info(CHECKOUT / "nodes_info.json"),
        bootstrap_url="http://203.0.113.10/bootstrap",
        cluster_key=KEY,
        period_seconds=20,
        look_seconds=2,
        pause_seconds=5,
        peer_address="public",
        scheduled_events=True,
        cluster_port=80,
        cluster="lab",
        allowed_signers="",
        setup={},
        service={},
    )
    (command,) = yaml.safe_load(document)["bootcmd"]
    marks = tmp_path / "var/lib/cloud/instance/sem"
    ours = {"config_write_files", "config_runcmd", "config_scripts_user"}
    etc = tmp_path / "etc/bootstrap"

    def boot(*, installed: bool) -> set[str]:
        for name in (*ours, "config_ssh"):
            (marks / name).touch()
        (etc / "installed").touch() if installed else (etc / "installed").unlink(missing_ok=True)
        words = [word.replace("/var", f"{tmp_path}/var") for word in command]
        words = [word.replace("/etc", f"{tmp_path}/etc") for word in words]
        subprocess.run(words, check=True, timeout=10)
        return {path.name for path in marks.iterdir()}

    marks.mkdir(parents=True)
    etc.mkdir(parents=True)
    assert boot(installed=False) == {"config_ssh"}
    assert boot(installed=True) == {*ours, "config_ssh"}
