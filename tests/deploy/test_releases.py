"""The operator's verbs, with a web site in a folder and web servers that stand for the nodes.

The nodes here go by what the web site says at the moment they are asked, as far as a test lets
them; what real ones do with a release is for the agent's own tests.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy import Refusal, operate, releases
from deploy.azure.state import State
from deploy.checkout import part
from deploy.lab import cloud, commands
from deploy.lab.state import Lab, lab_plan
from deploy.nodes_info import read_nodes_info
from deploy.publish import RELEASE, SITE, Folder, found_on, held_release, hold, publish
from deploy.release import Release, drained, failover_seconds, first_release, release_of
from deploy.settings import Settings
from deploy.signing import make_key, operators_key, public_key, signers_text
from deploy.verbs import deploy, status_command
from tests.deploy.test_operate import NODES, Sites, nodes_info
from tests.keys import make_key as make_operators_key
from tests.web import Asked, Page, open_web, status_page

CLUSTER_KEY = "5e" * 32
AGENT = part("agent/loader.py").encode()


@dataclass
class Cluster:
    """A cluster's state folder with its web site, and nodes that take what they find there."""

    sites: Sites
    stays: dict[str, dict[str, Any]] = field(default_factory=dict)  # what a node says instead
    role_stays: bool = False

    @property
    def state(self) -> Path:
        return self.sites.state

    def release(self) -> Release:
        found = Folder(self.state / SITE).read(RELEASE, 1 << 16)
        assert found
        return release_of(found.data, "the web site")

    def active(self) -> str:
        """The most preferred node that may be active."""
        release = self.release()
        preferred = [release.prefer.node] if release.prefer else []
        may = [name for name in [*preferred, *release.nodes] if name not in release.drained]
        return NODES[0] if self.role_stays else may[0]

    def says(self, name: str) -> Callable[[Asked], Page]:
        def page(asked: Asked) -> Page:
            number = self.release().generation
            build = self.release().files["loader.py"].sha256[:12]
            told = {"held": number, "effective": number, "runs": build, "proven": True}
            release: Any = told | {"refused": "", "waits_for": []} | self.stays.get(name, {})
            role = "active" if name == self.active() else "passive"
            return status_page(name, role, release=release)(asked)

        return page

    def behind_the_balancer(self, asked: Asked) -> Page:
        return self.says(self.active())(asked)

    def probe(self, name: str) -> Callable[[Asked], Page]:
        return lambda _: Page() if name == self.active() else Page("no", 404)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(deploy, [*words, "--cluster", str(self.state)])


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """node1 is active and served; all go by the first release."""
    with open_web() as web:
        balancer = web.site("127.0.0.1")
        nodes = {name: web.site(f"127.0.0.{number}") for number, name in enumerate(NODES, 11)}
        monkeypatch.setattr(operate, "HTTP_PORT", web.port)
        monkeypatch.chdir(tmp_path)
        state = tmp_path / "state"
        state.mkdir()
        (state / "nodes_info.json").write_text(nodes_info("127.0.0.{}"))
        (state / "endpoints.json").write_text(json.dumps({"load_balancer": balancer.url}))
        (state / "cluster.key").write_text(f"{CLUSTER_KEY}\n")
        made = Cluster(Sites(state, nodes, balancer))
        for name, site in nodes.items():
            site.pages |= {"/status.json": made.says(name), "/probe.html": made.probe(name)}
        balancer.pages["/status.json"] = made.behind_the_balancer
        first(state)
        yield made


def first(state: Path) -> None:
    """As `lab up` begins: with a key of the lab's own."""
    make_key(state)
    key = operators_key("", state)
    nodes = read_nodes_info(state / "nodes_info.json")
    signers = signers_text([public_key(key)])
    wanted = first_release(Settings(period_seconds=2), nodes, AGENT, signers, cluster="lab")
    published = publish(Folder(state / SITE), None, wanted, key=key, now=time.time(), code=AGENT)
    hold(state, published.after)


# ---- What is asked for, is done, is waited for, is told


def test_an_order_is_published_waited_for_and_told(cluster: Cluster) -> None:
    done = cluster.run("order", "node3", "node1", "node2")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "order: node1 node2 node3 -> node3 node1 node2"
    assert lines[1].startswith(f"signing with {cluster.state / 'operator_key'}: ")
    assert "Release 2 of lab is published." in done.output
    seconds = failover_seconds(cluster.release().settings)
    assert f"Worst-case failover {seconds:.1f} s." in done.output
    assert [line[10:] for line in lines if line.endswith(" goes by it")] == [
        f"{name} goes by it" for name in NODES
    ]
    assert lines[-1] == "node3 is active and the load balancer serves it."
    assert list(cluster.release().nodes) == ["node3", "node1", "node2"]
    assert held_release(cluster.state) == cluster.release()


DONE: dict[str, tuple[list[str], str]] = {
    "drain": (["drain", "node1"], "drained: none -> node1"),
    "switchover": (["switchover"], "preferred: none -> node2 until "),
    "switchover to": (["switchover", "--to", "node3", "--for", "2h"], "-> node3 until "),
    "maintenance": (["maintenance", "on"], "maintenance: none -> until "),
    "failback never": (["failback", "never"], "failback: auto -> never"),
    "failback after": (["failback", "after", "90"], "failback: auto -> 90"),
}


@pytest.mark.parametrize(("words", "line"), DONE.values(), ids=DONE)
def test_each_verb_says_what_it_changes_and_all_nodes_go_by_it(
    words: list[str], line: str, cluster: Cluster
) -> None:
    done = cluster.run(*words)
    assert done.exit_code == 0, done.output
    assert line in done.output.splitlines()[0]
    assert cluster.release().generation == 2


def test_what_is_undone_leaves_the_release_as_it_was_but_for_its_number(cluster: Cluster) -> None:
    before = cluster.release()
    for words in (
        ["drain", "node2"],
        ["undrain", "node2"],
        ["maintenance", "on", "--for", "5m"],
        ["maintenance", "off"],
        ["failback", "never"],
        ["failback", "auto"],
    ):
        assert cluster.run(*words).exit_code == 0
    after = cluster.release()
    assert after.generation == 7
    same = Release(**{**vars(after), "generation": 1, "published": before.published})
    assert same == before


def test_for_so_long_is_counted_from_now(cluster: Cluster) -> None:
    for words, seconds in ((["--for", "90s"], 90), (["--for", "2d"], 172_800), ([], 1800)):
        began = time.time()
        cluster.run("maintenance", "on", *words)
        until = cluster.release().maintenance_until
        assert until
        assert began + seconds <= until < time.time() + seconds + 1
        cluster.run("maintenance", "off")


def test_asked_for_again_nothing_is_published_and_the_nodes_are_looked_at(
    cluster: Cluster,
) -> None:
    cluster.run("drain", "node2")
    again = cluster.run("drain", "node2")
    assert again.exit_code == 0
    assert again.output.startswith("Release 2 of lab says so already.\n")
    assert "node3 goes by it" in again.output
    assert cluster.release().generation == 2


def test_what_programs_read_is_json_alone_on_standard_output(cluster: Cluster) -> None:
    cluster.stays["node3"] = {"held": 1, "effective": 1, "refused": "generation 2: too warm"}
    done = cluster.run("drain", "node1", "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (said["cluster"], said["generation"], said["done"]) == ("lab", 2, False)
    assert said["changes"] == ["drained: none -> node1"]
    assert said["nodes"]["node3"] == {"reached": True, "why_not": "generation 2: too warm"}
    assert said["nodes"]["node2"] == {"reached": True, "why_not": ""}
    assert said["active"] == "node2"


def test_who_runs_another_agent_still_is_told_and_not_waited_for(cluster: Cluster) -> None:
    cluster.stays["node2"] = {"runs": "0123456789ab", "proven": False}
    done = cluster.run("failback", "never")
    assert done.exit_code == 0
    build = cluster.release().files["loader.py"].sha256[:12]
    assert f"node2 runs 0123456789ab and comes to {build} in its turn." in done.output
    assert done.output.count("in its turn") == 1
    assert "node2: its new agent is on trial." in status(cluster)


def test_on_a_terminal_it_shows_that_it_waits_and_for_how_long_at_most(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    done = cluster.run("failback", "never")
    assert done.exit_code == 0
    assert "waiting for the nodes, 28 s at most" in done.output
    monkeypatch.delenv("FORCE_COLOR")
    assert "waiting" not in cluster.run("failback", "auto").output


# ---- Who does not take it


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "PERIODS", 0)
    monkeypatch.setattr(releases, "SLACK_SECONDS", 2.0)


def test_a_node_that_is_down_is_named_and_takes_it_later(cluster: Cluster) -> None:
    cluster.sites.nodes["node3"].pages.clear()
    done = cluster.run("failback", "never")
    assert done.exit_code == 0
    assert "node3 is not reached (status.json: answer 404): it takes it when it returns." in (
        done.output
    )


def test_where_no_node_is_reached_nobody_knows_and_the_exit_code_says_so(
    cluster: Cluster,
) -> None:
    for site in cluster.sites.nodes.values():
        site.pages.clear()
    done = cluster.run("failback", "never")
    assert done.exit_code == 1
    assert "No node is reached from here: whether any has taken it, is not known." in done.output


BEHIND: dict[str, tuple[dict[str, Any] | None, str]] = {
    "it waits for others": (
        {"effective": 1, "waits_for": ["node1"]},
        "it holds release 2, and waits for node1",
    ),
    "it holds the one before": ({"held": 1, "effective": 1}, "it holds release 1"),
    "it holds none": ({"held": 0, "effective": 0}, "it holds no release"),
    "it says what nobody can read": ({"held": "2"}, "its agent knows of no releases yet"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("says", "why"), BEHIND.values(), ids=BEHIND)
def test_who_does_not_take_it_in_time_is_named_with_the_reason(
    says: dict[str, Any], why: str, cluster: Cluster
) -> None:
    cluster.stays["node2"] = says
    done = cluster.run("failback", "never")
    assert done.exit_code == 1
    assert f"node2 does not go by release 2: {why}." in done.output
    assert "node1 goes by it" in done.output


def test_a_node_that_refuses_is_not_waited_for(cluster: Cluster) -> None:
    why = "generation 2: its signature is no operator's"
    cluster.stays["node2"] = {"held": 1, "effective": 1, "refused": why}
    began = time.monotonic()
    done = cluster.run("failback", "never")
    assert done.exit_code == 1
    assert f"node2 does not go by release 2: {why}." in done.output
    assert time.monotonic() - began < 10  # of the 28 s that it may take


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["drain", "node1"], "All nodes that are reached go by it, but no other node is active."),
        (["switchover"], "go by it, but the preferred node is not active."),
        (["order", *reversed(NODES)], "but the first of the order that could serve is not active."),
    ],
)
def test_a_role_that_does_not_move_is_told(words: list[str], why: str, cluster: Cluster) -> None:
    cluster.role_stays = True
    done = cluster.run(*words)
    assert done.exit_code == 1
    assert why in done.output


# ---- What is refused

REFUSED: dict[str, tuple[list[str], str]] = {
    "half an order": (["order", "node3", "node1"], "name each node once"),
    "a stranger": (["drain", "node9"], "no node 'node9': the cluster has node1, node2, node3."),
    "a place that is the wrong one": (["switchover", "--to", "x"], "no node 'x'"),
    "a time without end": (["maintenance", "on", "--for", "8d"], "use an end within 7 days"),
    "failback after nothing": (["failback", "after"], "`after` with a number of seconds"),
    "failback never after": (["failback", "never", "5"], "`after` with a number of seconds"),
    "failback after 0 s": (["failback", "after", "0"], "use auto, never, or 1 to 86400 seconds"),
    "no such key": (["drain", "node2", "--key", "nowhere"], "operator's key: no file nowhere"),
    "who is no operator": (["keys", "remove", "her.pub"], "her is no operator: they are"),
    "the last operator": (["keys", "remove", "state/operator_key.pub"], "the last operator's key"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_a_sentence_and_nothing_is_published(
    words: list[str], sentence: str, cluster: Cluster, tmp_path: Path
) -> None:
    make_operators_key(tmp_path / "her", "her")
    done = cluster.run(*words)
    assert isinstance(done.exception, Refusal)
    assert sentence in str(done.exception)
    assert cluster.release().generation == 1


@pytest.mark.parametrize("text", ["1", "h", "-1h", "1h30m", "1.5h", "forever"])
def test_a_time_that_is_none_is_told_with_one_that_is(text: str, cluster: Cluster) -> None:
    done = cluster.run("maintenance", "on", "--for", text)
    assert done.exit_code == 2
    assert "use a time like 90s, 30m, 1h or 2d" in done.output


def test_all_nodes_but_one_may_be_drained(cluster: Cluster) -> None:
    warning = "only node3 may become active now: if it is lost, nobody is"
    for name in ("node1", "node2"):
        drained_one = cluster.run("drain", name)
        assert drained_one.exit_code == 0
        assert (warning in drained_one.output) == (name == "node2")
    assert warning not in cluster.run("failback", "never").output
    done = cluster.run("drain", "node3")
    assert "all nodes are drained: nobody could be active" in str(done.exception)


def test_without_a_first_release_the_verb_that_makes_it_is_named(cluster: Cluster) -> None:
    (cluster.state / SITE / RELEASE).unlink()
    (cluster.state / "release.json").unlink()
    done = cluster.run("drain", "node2")
    assert "has no release yet: `publish` makes the first one." in str(done.exception)


@pytest.mark.parametrize(
    "words",
    [
        "publish",
        "order",
        "drain",
        "undrain",
        "switchover",
        "maintenance",
        "maintenance on",
        "maintenance off",
        "failback",
        "keys",
        "keys add",
        "keys remove",
        "keys rotate",
    ],
)
def test_every_verb_explains_itself(words: str) -> None:
    done = CliRunner().invoke(deploy, [*words.split(), "--help"])
    assert done.exit_code == 0
    options = re.findall(r"^  --[a-z-]+( [A-Z]+)?$", done.output, re.MULTILINE)
    assert options == []  # none without a word about it
    assert len(done.output.split("Options:")[0].splitlines()) >= 3


# ---- Keys


def test_an_operator_is_added_signs_and_is_removed(cluster: Cluster, tmp_path: Path) -> None:
    her = make_operators_key(tmp_path / "her", "her@work")
    added = cluster.run("keys", "add", f"{her}.pub")
    assert added.exit_code == 0
    assert "-> operator of" in added.output
    assert ", her@work" in added.output
    assert cluster.run("drain", "node2", "--key", str(her)).exit_code == 0
    assert cluster.run("keys", "remove", f"{her}.pub").exit_code == 0
    refused = cluster.run("undrain", "node2", "--key", str(her))
    assert "no operator's of this cluster" in str(refused.exception)


def test_the_clusters_key_is_rotated_and_printed_nowhere(cluster: Cluster) -> None:
    done = cluster.run("keys", "rotate")
    assert done.exit_code == 0, done.output
    new = State(cluster.state).key()
    assert new
    assert new != CLUSTER_KEY
    site = (path for path in (cluster.state / SITE).rglob("*") if path.is_file())
    assert all(new.encode() not in path.read_bytes() for path in site)
    assert new not in done.output
    assert "cluster's key: none -> a new one" in done.output
    assert cluster.run("drain", "node2").exit_code == 0
    assert cluster.release().cluster_key is None
    assert State(cluster.state).key() == new


# ---- publish


def test_publishing_keeps_what_the_other_verbs_have_changed(cluster: Cluster) -> None:
    cluster.run("order", "node2", "node3", "node1")
    cluster.run("failback", "never")
    code = cluster.state / SITE / "bootstrap" / "loader.py"
    code.write_bytes(b"somebody else's")
    done = cluster.run("publish")
    assert done.exit_code == 0, done.output
    assert cluster.release().generation == 3
    assert code.read_bytes() == AGENT
    assert list(cluster.release().nodes) == ["node2", "node3", "node1"]


def test_a_node_is_replaced_by_its_new_addresses(cluster: Cluster, tmp_path: Path) -> None:
    nodes = json.loads((cluster.state / "nodes_info.json").read_text())
    nodes["node3"]["private_ip"] = "10.0.0.33"
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    done = cluster.run("publish", "--nodes-info", str(tmp_path / "nodes.json"))
    assert done.exit_code == 0, done.output
    assert "node3: 10.0.0.6 127.0.0.13 -> 10.0.0.33 127.0.0.13" in done.output
    assert cluster.release().nodes["node3"]["private_ip"] == "10.0.0.33"


def test_another_number_of_nodes_is_refused_with_how_to_do_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    nodes = json.loads((cluster.state / "nodes_info.json").read_text())
    for number in (4, 5):
        addresses = {"private_ip": f"10.0.0.{number}9", "public_ip": f"127.0.0.{number}9"}
        nodes[f"node{number}"] = nodes["node1"] | addresses
    (tmp_path / "nodes.json").write_text(json.dumps(nodes))
    done = cluster.run("publish", "--nodes-info", str(tmp_path / "nodes.json"))
    assert "5 nodes instead of 3" in str(done.exception)
    assert "Make a second cluster of 5 under another name" in str(done.exception)


def test_a_lab_from_before_releases_gets_its_first_one_with_the_times_that_it_runs_with(
    cluster: Cluster, tmp_path: Path
) -> None:
    """As `publish` tells; and `lab up` does the same with the times that it knows."""
    published = cluster.state / SITE / RELEASE
    shutil.rmtree(published.parent)
    (cluster.state / "release.json").unlink()

    def says(name: str) -> Callable[[Asked], Page]:
        times = {"period_seconds": 2, "look_seconds": 2, "pause_seconds": 5}
        before, after = status_page(name, "passive", **times), cluster.says(name)

        def page(asked: Asked) -> Page:
            return after(asked) if published.exists() else before(asked)

        return page

    for name, site in cluster.sites.nodes.items():
        site.pages["/status.json"] = says(name)
    done = cluster.run("publish")
    assert "period_seconds = 20, but node1 runs with 2" in str(done.exception)
    (tmp_path / "cluster.toml").write_text("period_seconds = 2\n")
    done = cluster.run("publish")
    assert done.exit_code == 0, done.output
    assert (cluster.release().cluster, cluster.release().generation) == ("lab", 1)


def test_a_key_in_the_settings_is_the_one_that_signs(cluster: Cluster, tmp_path: Path) -> None:
    her = make_operators_key(tmp_path / "hers", "her")
    cluster.run("keys", "add", f"{her}.pub")
    (tmp_path / "cluster.toml").write_text(f'signing_key = "{her}"\n')
    assert f"\nsigning with {her}: " in cluster.run("drain", "node2").output


# ---- The lab's own


def test_a_lab_signs_with_a_key_of_its_own_and_keeps_what_operators_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "lab"
    state.mkdir()
    monkeypatch.setattr(commands, "STATE", state)
    monkeypatch.setattr(cloud, "SITE", state / SITE)
    lab = Lab(lab_plan(20, 2, 5))
    release = commands.publish_release(lab)
    assert (release.cluster, release.generation) == ("lab", 1)
    key = operators_key("", state)
    assert key.stat().st_mode & 0o777 == 0o600
    assert release.allowed_signers == signers_text([public_key(key)])
    site, before = Folder(state / SITE), held_release(state)
    found = found_on(site, state, key)
    assert found
    wanted = drained(found.release, "node2")
    hold(state, publish(site, found, wanted, key=key, now=time.time()).after)
    again = commands.publish_release(lab)
    assert (again.generation, again.drained) == (2, ("node2",))
    assert again.allowed_signers == release.allowed_signers
    assert before == release


# ---- status


def status(cluster: Cluster) -> str:
    return CliRunner().invoke(status_command, ["--cluster", str(cluster.state)]).output


def test_status_says_which_release_is_in_force_and_who_is_behind(cluster: Cluster) -> None:
    cluster.run("drain", "node2")
    assert "Release 2." in status(cluster)
    why = "generation 3: its signature is no operator's"
    cluster.stays = {
        "node1": {"held": 1, "effective": 1},
        "node3": {"effective": 1, "waits_for": ["node1"], "refused": why},
    }
    said = status(cluster)
    assert "node1: release 2: it holds release 1." in said
    assert "node3: release 2: it holds release 2, and waits for node1." in said
    assert f"node3 refuses {why}" in said


def test_status_says_what_operators_have_asked_for(cluster: Cluster) -> None:
    told = {"held": 4, "effective": 4, "runs": "", "proven": True, "refused": "", "waits_for": []}
    asked: dict[str, Any] = {
        "prefer": "node3",
        "maintenance_until": 1_800_000_000,
        "failback": "never",
    }
    for name in NODES:
        page = status_page(name, "passive", release=told, drained=name == "node2", **asked)
        cluster.sites.nodes[name].pages["/status.json"] = page
    said = status(cluster)
    for line in (
        "Drained: node2.",
        "Preferred for now: node3.",
        "Maintenance until 2027-01-15T08:00:00Z: the role stays.",
        "Failback: never.",
    ):
        assert line in said


def test_watch_tells_each_node_that_goes_by_another_release_or_refuses_one(
    cluster: Cluster,
) -> None:
    before = operate.look(operate.read_cluster(cluster.state))
    cluster.stays["node3"] = {"held": 1, "effective": 1, "refused": "generation 2: too warm"}
    cluster.run("failback", "never")
    after = operate.look(operate.read_cluster(cluster.state))
    assert operate.changes(before, after) == [
        "node1: goes by release 2",
        "node2: goes by release 2",
        "node3: refuses generation 2: too warm",
    ]
    assert operate.changes(after, after) == []


def test_status_says_nothing_of_releases_where_no_agent_knows_of_them(cluster: Cluster) -> None:
    for name in NODES:
        cluster.sites.nodes[name].pages["/status.json"] = status_page(name, "passive")
    assert "elease" not in status(cluster)
    (view,) = {
        json.dumps(node["release"])
        for node in json.loads(
            CliRunner().invoke(status_command, ["--cluster", str(cluster.state), "--json"]).output
        )["nodes"]
    }
    assert view == "null"
