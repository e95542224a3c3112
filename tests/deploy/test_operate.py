"""`status` and `watch` against real web servers on 127.0.0.x that stand for the nodes."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy import operate
from deploy.__main__ import main
from deploy.checkout import NODES_FILE
from deploy.nodes_info import read_nodes_info
from deploy.operate import TIMEOUT_SECONDS, View, Writes, changes, looks, read_cluster
from deploy.verbs import status_command, watch_command
from tests.web import NOT_FOUND, Asked, Page, Site, open_web, status_page

NODES = ("node1", "node2", "node3")


def nodes_info(public_ip: str) -> str:
    """The lab's `nodes_info.json` with the nodes at 11, 12 and 13 of a network of loopback's."""
    found = read_nodes_info(NODES_FILE)
    for number, name in enumerate(NODES, 11):
        found[name]["public_ip"] = public_ip.format(number)
    return json.dumps(found)


STATS = """# pxname,svname,status,check_status,check_code
nodes,FRONTEND,OPEN,,
nodes,node1,UP,L7OK,200
nodes,node2,DOWN,L7STS,404
nodes,node3,DOWN,L4TOUT,
nodes,BACKEND,UP,,
"""


@dataclass(frozen=True)
class Sites:
    """Three nodes and a load balancer that answer, and the state folder that names them."""

    state: Path
    nodes: dict[str, Site]
    balancer: Site

    def says(self, node: str, role: str, **fields: Any) -> None:
        """The node writes this status, and has a probe if and only if it is active."""
        pages = self.nodes[node].pages
        pages["/status.json"] = status_page(node, role, **fields)
        pages.pop("/probe.html", None)
        if role == "active":
            pages["/probe.html"] = Page()

    def serve(self, node: str) -> None:
        self.balancer.pages["/status.json"] = status_page(node, "active")

    def status(self, *options: str, columns: int = 120) -> Result:
        return self.run(status_command, *options, columns=columns)

    def view(self) -> Any:
        return json.loads(self.status("--json").output)

    def run(self, command: Any, *options: str, columns: int = 120, **env: str) -> Result:
        arguments = ["--cluster", str(self.state), *options]
        env = {"COLUMNS": str(columns), "FORCE_COLOR": "", "TTY_COMPATIBLE": "", **env}
        return CliRunner().invoke(command, arguments, env=env)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    """node1 is active and served, node2 and node3 are passive; all ran three seconds ago."""
    with open_web() as web:
        balancer = web.site("127.0.0.1")
        nodes = {name: web.site(f"127.0.0.{number}") for number, name in enumerate(NODES, 11)}
        monkeypatch.setattr(operate, "HTTP_PORT", web.port)
        (tmp_path / "nodes_info.json").write_text(nodes_info("127.0.0.{}"))
        urls = {"load_balancer": balancer.url, "load_balancer_stats": f"{balancer.url}/stats;csv"}
        (tmp_path / "endpoints.json").write_text(json.dumps(urls))
        made = Sites(tmp_path, nodes, balancer)
        made.serve("node1")
        for name in NODES:
            made.says(name, "active" if name == "node1" else "passive")
        yield made


# ---- The sentence and the exit code


def test_one_active_node_that_the_load_balancer_serves_is_exit_code_0(cluster: Sites) -> None:
    result = cluster.status()
    assert "node1 is active and the load balancer serves it." in result.output
    assert result.exit_code == 0


def test_an_active_node_that_the_load_balancer_does_not_serve_is_exit_code_3(
    cluster: Sites,
) -> None:
    cluster.serve("node2")
    result = cluster.status()
    assert "node1 is active, but the load balancer serves node2." in result.output
    assert result.exit_code == 3


def test_a_load_balancer_that_answers_503_serves_nobody(cluster: Sites) -> None:
    cluster.balancer.pages["/status.json"] = Page("no server is available", 503)
    result = cluster.status()
    assert "node1 is active, but the load balancer serves nobody (answer 503)." in result.output
    assert result.exit_code == 3


def test_two_nodes_that_answer_200_are_named_in_capitals(cluster: Sites) -> None:
    cluster.says("node2", "active")
    result = cluster.status()
    assert "TWO NODES ANSWER 200: node1, node2." in result.output
    assert result.exit_code == 3


def test_a_second_probe_counts_even_if_its_node_calls_itself_passive(cluster: Sites) -> None:
    cluster.nodes["node3"].pages["/probe.html"] = Page()
    view = cluster.view()
    assert view["sentence"] == "TWO NODES ANSWER 200: node1, node3."
    assert view["nodes"][2]["reason"] == "its probe answers 200, but it says passive"


def test_with_a_majority_and_nobody_active_the_preferred_node_says_why(cluster: Sites) -> None:
    cluster.says("node1", "passive", reason="node3 promised its vote to node2 for 12 s more")
    result = cluster.status()
    sentence = "Nobody is active: node1 says: node3 promised its vote to node2 for 12 s more."
    assert sentence in result.output
    assert result.exit_code == 3


def test_without_a_majority_the_sentence_counts_the_nodes(cluster: Sites) -> None:
    for name in ("node1", "node2"):
        cluster.nodes[name].pages.clear()
    result = cluster.status()
    assert "Nobody is active: 1 of 3 nodes report their role, 2 are needed." in result.output
    assert result.exit_code == 3


# ---- Unknown counts against


def with_pages(**pages: Any) -> Callable[[Sites], None]:
    def change(cluster: Sites) -> None:
        names = {"probe": "/probe.html", "status": "/status.json"}
        cluster.nodes["node1"].pages |= {names[key]: page for key, page in pages.items()}

    return change


LOOKS = {"period_seconds": 20, "look_seconds": 2, "fresh_seconds": 4.8}

UNKNOWN = {
    "it has not looked for as long as its news is fresh": (
        with_pages(status=status_page("node1", "active", age_seconds=7, **LOOKS)),
        "s ago; it then said active: because node1",
    ),
    "it is from before there were looks and has not run for 1.45 periods": (
        with_pages(status=status_page("node1", "active", age_seconds=31, period_seconds=20)),
        "its last look was 3",
    ),
    "it is from before there were looks, and its period is short": (
        with_pages(status=status_page("node1", "active", age_seconds=5, period_seconds=2)),
        "its last look was",
    ),
    "its probe has expired": (
        with_pages(probe=Page("forbidden", 403)),
        "it says active, its probe: answer 403",
    ),
    "its probe redirects": (
        with_pages(probe=Page("", 302, headers={"Location": "/status.json"})),
        "it says active, its probe: answer 302",
    ),
    "its status is missing": (
        with_pages(status=Page("not found", 404)),
        "its probe answers 200, but status.json: answer 404",
    ),
    "its status is garbage": (with_pages(status=Page("<html>")), "cannot be read"),
    "its status is half written": (with_pages(status=Page('{"node": "node1", ')), "cannot be read"),
    "its status is a list": (with_pages(status=Page("[]")), "cannot be read"),
    "its status nests without end": (with_pages(status=Page("[" * 60_000)), "cannot be read"),
    "its status names no time": (
        with_pages(status=Page('{"node": "node1", "role": "active", "reason": "x"}')),
        "cannot be read",
    ),
    "its status has a time without a zone": (
        with_pages(status=status_page("node1", "active", at="2026-11-22T17:00:20")),
        "cannot be read",
    ),
    "its role is another word": (
        with_pages(status=status_page("node1", "leader")),
        "names no role",
    ),
    "its status is huge": (with_pages(status=Page("x" * 10_000_000)), "of more than 64 KB"),
    "another node answers at its address": (
        with_pages(status=status_page("node3", "active")),
        "node3 answers at its address",
    ),
    "its clock was set back after the look": (
        with_pages(status=status_page("node1", "active", age_seconds=-300)),
        "in the future",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_node_is_not_called_active_when(case: str, cluster: Sites) -> None:
    change, words = UNKNOWN[case]
    change(cluster)
    view = cluster.view()
    assert view["nodes"][0]["role"] == "unknown"
    assert words in view["nodes"][0]["reason"]
    assert view["active"] is None
    result = cluster.status()
    assert "ACTIVE" not in result.output
    assert "Nobody is active: " in result.output
    assert result.exit_code == 3


def test_news_of_one_look_a_run_is_fresh_for_longer_than_news_of_several(cluster: Sites) -> None:
    cluster.says("node1", "active", age_seconds=20, period_seconds=20)
    cluster.says("node2", "passive", age_seconds=3, **LOOKS)
    cluster.says("node3", "passive", age_seconds=20, **LOOKS)
    nodes = cluster.view()["nodes"]
    assert [node["role"] for node in nodes] == ["active", "passive", "unknown"]
    assert [node["look_seconds"] for node in nodes] == [None, 2, 2]


def test_a_node_that_sends_a_byte_now_and_then_is_given_up_in_time(cluster: Sites) -> None:
    cluster.nodes["node1"].pages["/status.json"] = Page("{" * 300, pause_seconds=0.2)
    cluster.nodes["node2"].pages["/status.json"] = Page("{" * 300, pause_seconds=0.2)
    started = time.monotonic()
    view = cluster.view()
    assert time.monotonic() - started < TIMEOUT_SECONDS + 1.5  # both at once, and not 60 s
    assert view["nodes"][0]["reason"] == "its probe answers 200, but no answer within 2 s"
    assert view["nodes"][1]["reason"] == "no answer within 2 s"


def test_a_node_where_nothing_listens_refuses_connections(
    cluster: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "HTTP_PORT", 1)
    reasons = [node["reason"] for node in cluster.view()["nodes"]]
    assert reasons == ["refuses connections"] * 3


def test_a_node_whose_clock_is_wrong_by_a_year_may_still_be_active(cluster: Sites) -> None:
    cluster.says("node1", "active", clock_seconds=-31_536_000)
    view = cluster.view()
    assert view["nodes"][0]["role"] == "active"
    assert view["verdict"] == "served"


# ---- What is shown


def test_fields_that_a_node_does_not_write_are_shown_as_dashes(cluster: Sites) -> None:
    node = cluster.view()["nodes"][0]
    assert (node["vote"], node["lease_seconds"], node["version"]) == (None, None, None)
    assert node["generation"] is None
    assert node["zone"] == "1"  # from the plan
    [row] = [line for line in cluster.status().output.splitlines() if "ACTIVE" in line]
    assert re.fullmatch(r" node1 +127\.0\.0\.11 +ACTIVE +- +\d s ago +serves it *", row)


def test_version_and_generation_of_each_agent_stand_in_the_table(cluster: Sites) -> None:
    cluster.says("node1", "active", version="0.2.0", generation="1a2b3c4d5e6f")
    cluster.says("node2", "passive", version="9f8e7d6c5b4a")  # from before there were versions
    nodes = cluster.view()["nodes"]
    assert (nodes[0]["version"], nodes[0]["generation"]) == ("0.2.0", "1a2b3c4d5e6f")
    assert (nodes[1]["version"], nodes[1]["generation"]) == ("9f8e7d6c5b4a", None)
    lines = cluster.status(columns=80).output.splitlines()
    assert [line.split()[2:5] for line in lines if line.startswith(" zone 1")] == [
        ["10.0.0.4", "0.2.0", "1a2b3c4d"]
    ]
    assert [line.split()[2:] for line in lines if line.startswith((" zone 2", " zone 3"))] == [
        ["10.0.0.5", "-", "9f8e7d6c"],
        ["10.0.0.6", "-", "-"],
    ]


def test_votes_and_leases_are_counted_down_from_the_run(cluster: Sites) -> None:
    vote = {"candidate": "node1", "seconds": 26.1}
    cluster.says("node1", "active", age_seconds=10, vote=vote, lease_seconds=25.9)
    cluster.says("node2", "passive", age_seconds=10, vote={"candidate": "node1", "seconds": 9})
    cluster.says("node3", "passive", age_seconds=10, vote=None, holding_seconds=15)
    first, second, third = cluster.view()["nodes"]
    assert first["vote"]["candidate"] == "node1"
    assert 14 <= first["vote"]["seconds"] <= 18
    assert 14 <= first["lease_seconds"] <= 18
    assert second["vote"] is None  # run out since
    assert 3 <= third["holding_seconds"] <= 7
    output = cluster.status().output
    assert "vote node1 1" in output
    assert "lease 1" in output
    assert "no vote" in output


def test_the_load_balancers_checks_stand_beside_each_node(cluster: Sites) -> None:
    cluster.balancer.pages["/stats;csv"] = Page(STATS)
    checks = [node["health_check"] for node in cluster.view()["nodes"]]
    assert checks == ["up", "down (404)", "down (L4TOUT)"]
    output = cluster.status().output
    assert "down (404)" in output
    assert output.count("serves it") == 2  # in node1's row, and in the sentence


def test_the_worst_case_failover_is_said_under_the_table(cluster: Sites) -> None:
    cluster.says("node2", "passive", worst_case_failover_seconds=29.5)
    assert "Worst-case failover 29.5 s." in cluster.status().output


def test_the_term_of_the_active_node_is_said_under_the_table(cluster: Sites) -> None:
    cluster.says("node1", "active", term=1_811_793_600)
    cluster.says("node2", "passive", term=1_811_793_500)
    assert cluster.status().output.count("Term 1811793600.") == 1
    assert [node["term"] for node in cluster.view()["nodes"]][:2] == [1811793600, 1811793500]


def test_where_a_node_has_no_clock_of_its_host_status_says_once_how_pauses_are_noticed(
    cluster: Sites,
) -> None:
    said = "Beyond 5 s pauses are noticed when the clock is stepped."
    for name in NODES:
        cluster.says(name, "passive", pause_seconds=5, host_clock=True)
    assert "pauses" not in cluster.status().output
    for name in ("node1", "node2"):
        cluster.says(name, "passive", pause_seconds=5, host_clock=False)
    assert cluster.status().output.count(said) == 1
    told = [(node["pause_seconds"], node["host_clock"]) for node in cluster.view()["nodes"]]
    assert told == [(5, False), (5, False), (5, True)]


def test_of_an_agent_that_says_nothing_of_pauses_nothing_is_said(cluster: Sites) -> None:
    assert "pauses" not in cluster.status().output
    told = [(node["pause_seconds"], node["host_clock"]) for node in cluster.view()["nodes"]]
    assert told == [(None, None)] * 3


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal_of(columns: int, cluster: Sites) -> None:
    reason = "Node node1 reachability reach quorum and is preferred, set as active"
    vote = {"candidate": "node1", "seconds": 26.1}
    more = {"version": "3f2a90c1d2e4", "pause_seconds": 5, "host_clock": False}
    cluster.says("node1", "active", reason=reason, vote=vote, **more)
    cluster.balancer.pages["/stats;csv"] = Page(STATS)
    lines = cluster.status(columns=columns).output.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= 17  # leaves room for the last changes in a terminal of 24 lines
    assert not [line for line in lines if "…" in line]


def test_a_reason_cannot_send_control_sequences_to_the_terminal(cluster: Sites) -> None:
    cluster.says("node2", "passive", reason="\x1b[2J\x07[red]all is well[/red]\n\x9b1A")
    output = cluster.status().output
    assert "[red]all is well[/red]" in output
    assert not {"\x1b", "\x07", "\x9b"} & set(output)


def test_values_of_the_wrong_kind_are_shown_as_missing(cluster: Sites) -> None:
    fields = {
        "zone": 7, "version": ["x"], "generation": 7, "vote": "node1", "lease_seconds": "long",
        "reachable": 3, "holding_seconds": float("nan"), "period_seconds": -1,
        "look_seconds": True, "fresh_seconds": "long", "pause_seconds": "5", "host_clock": 0,
    }  # fmt: skip
    cluster.says("node1", "active", **fields)
    node = cluster.view()["nodes"][0]
    assert node["role"] == "active"
    names = ("vote", "lease_seconds", "holding_seconds", "version", "generation", "look_seconds")
    assert [node[name] for name in (*names, "pause_seconds", "host_clock")] == [None] * 8
    assert (node["zone"], node["period_seconds"], node["reachable"]) == ("1", 20, None)


# ---- watch


def turns(*pages: Callable[[Asked], Page]) -> Callable[[Asked], Page]:
    """Answers with each page once, and with the last one from then on."""
    left = list(pages)

    def page(asked: Asked) -> Page:
        turn = left.pop(0) if len(left) > 1 else left[0]
        return turn(asked)

    return page


def node1_hands_over_to_node2(cluster: Sites) -> None:
    """node1 is active for two looks, node2 from the third on."""

    def present(_: Asked) -> Page:
        return Page()

    def absent(_: Asked) -> Page:
        return NOT_FOUND

    def roles(node: str, *names: str) -> Callable[[Asked], Page]:
        return turns(*(status_page(node, name) for name in names))

    cluster.nodes["node1"].pages["/status.json"] = roles("node1", "active", "active", "passive")
    cluster.nodes["node1"].pages["/probe.html"] = turns(present, present, absent)
    cluster.nodes["node2"].pages["/status.json"] = roles("node2", "passive", "passive", "active")
    cluster.nodes["node2"].pages["/probe.html"] = turns(absent, absent, present)
    served = [status_page(name, "active") for name in ("node1", "node1", "node2")]
    cluster.balancer.pages["/status.json"] = turns(*served)


def test_watch_in_a_pipe_prints_one_line_for_each_change(cluster: Sites) -> None:
    node1_hands_over_to_node2(cluster)
    result = cluster.run(watch_command, "--seconds", "4")
    assert [line.split(" ", 2)[2] for line in result.output.splitlines()] == [
        "node1: active: because node1",
        "node2: passive: because node2",
        "node3: passive: because node3",
        "node1 is active and the load balancer serves it.",
        "node1: active -> passive: because node1",
        "node2: passive -> active: because node2",
        "node2 is active and the load balancer serves it.",
    ]
    assert result.exit_code == 0


def test_watch_on_a_terminal_keeps_the_last_changes_under_the_table(cluster: Sites) -> None:
    node1_hands_over_to_node2(cluster)
    result = cluster.run(watch_command, "--seconds", "3", FORCE_COLOR="1")
    last = result.output[result.output.rindex("private") :]
    assert last.index("ACTIVE") > last.index("node2")  # it stood in node1's row at first
    assert "node2: passive -> active" in last


def test_a_silent_node_does_not_slow_down_watch(cluster: Sites) -> None:
    cluster.nodes["node3"].pages["/status.json"] = Page("{" * 300, pause_seconds=0.2)
    started = time.monotonic()
    views = list(looks(read_cluster(cluster.state), 3))
    assert [view.nodes[2].role for view in views] == ["unknown"] * 3
    assert time.monotonic() - started < 3 * TIMEOUT_SECONDS - 0.3  # one after another takes that


# ---- What is refused


def deploy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy", *arguments],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_the_commands_exit_code_is_that_of_the_verb(
    cluster: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["deploy", "status", "--cluster", str(cluster.state)])
    assert main() == 0
    cluster.says("node2", "active")
    assert main() == 3


@pytest.mark.parametrize("verb", ["status", "watch"])
def test_a_folder_that_is_not_there_is_refused_in_one_sentence(verb: str, tmp_path: Path) -> None:
    run = deploy(verb, "--cluster", str(tmp_path / "none"))
    sentence = (
        f"deploy: no cluster at {tmp_path / 'none'}: run `lab up` first,"
        " or name its state folder with --cluster.\n"
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", sentence)


def told_of_endpoints(cluster: Sites, **changed: str) -> None:
    """The cluster's endpoints.json, with other values."""
    path = cluster.state / "endpoints.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_nodes_are_asked_at_the_clusters_own_port(cluster: Sites) -> None:
    told_of_endpoints(cluster, cluster_port="1")
    reasons = [node["reason"] for node in cluster.view()["nodes"]]
    assert reasons == ["refuses connections"] * 3


def test_where_the_application_has_the_load_balancers_ports_a_connection_is_what_can_be_asked_for(
    cluster: Sites,
) -> None:
    url = cluster.balancer.url.replace("http:", "tcp:")
    told_of_endpoints(cluster, load_balancer=url)
    result = cluster.status()
    port = url.rpartition(":")[2]
    assert f"node1 is active and the load balancer takes port {port}." in result.output
    assert result.exit_code == 0
    told_of_endpoints(cluster, load_balancer="tcp://127.0.0.1:1")
    result = cluster.status()
    assert "node1 is active, but port 1: refuses connections." in result.output
    assert result.exit_code == 3


def test_a_load_balancer_that_takes_connections_but_finds_its_node_down_does_not_serve_it(
    cluster: Sites,
) -> None:
    told_of_endpoints(cluster, load_balancer=cluster.balancer.url.replace("http:", "tcp:"))
    cluster.balancer.pages["/stats;csv"] = Page(STATS.replace("node1,UP", "node1,DOWN"))
    assert "its check says down" in cluster.status().output
    assert cluster.status().exit_code == 3


def test_whom_udp_is_forwarded_to_is_not_asked_and_nodes_decide(cluster: Sites) -> None:
    told_of_endpoints(cluster, load_balancer="udp://127.0.0.1:1")
    assert "node1 is active; whom UDP is forwarded to, nobody can ask." in cluster.status().output
    cluster.says("node1", "passive")
    assert cluster.status().exit_code == 3


@pytest.mark.parametrize("stranger", [False, True], ids=["nobody", "another machine"])
def test_an_internal_load_balancer_that_does_not_serve_is_to_be_asked_from_its_network(
    cluster: Sites, stranger: bool
) -> None:
    """Its address may be that of another machine, where the operator is."""
    cluster.balancer.pages.clear()  # 404
    answers = cluster.balancer.url if stranger else "http://127.0.0.1:1"
    told_of_endpoints(cluster, load_balancer=answers, frontend="internal")
    result = cluster.status()
    assert "An internal one answers in its network alone: ask from there." in " ".join(
        result.output.split()
    )
    assert result.exit_code == 3


def test_whose_writes_arrive_at_the_demonstrations_collector_is_said(cluster: Sites) -> None:
    assert cluster.view()["writes"] is None
    told_of_endpoints(cluster, collector=cluster.balancer.url)
    told = {"node": "node1", "term": 7, "since": 1e9, "age_seconds": 0.05}
    cluster.balancer.pages["/"] = Page(json.dumps(told))
    output = cluster.status().output
    said = "Demonstration: node1 writes since 01:46:40Z, term 7, the last line 0.1 s ago."
    assert said in output
    assert "Refused" not in output
    told["refused"] = "node2 with term 5, 3 s ago"
    cluster.balancer.pages["/"] = Page(json.dumps(told))
    assert "Refused: node2 with term 5, 3 s ago." in cluster.status().output


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (Page("{}"), "nobody has written yet"),
        (Page("[]"), "its collector: no answer that can be read"),
        (Page('{"term": "new"}'), "its collector: no answer that can be read"),
        (NOT_FOUND, "its collector: answer 404"),
    ],
)
def test_a_collector_without_a_writer_or_an_answer_is_said(
    page: Page, words: str, cluster: Sites
) -> None:
    told_of_endpoints(cluster, collector=cluster.balancer.url)
    cluster.balancer.pages["/"] = page
    result = cluster.status()
    assert f"Demonstration: {words}." in result.output
    assert result.exit_code == 0


def test_another_node_whose_writes_arrive_is_a_change() -> None:
    def view(**writes: Any) -> View:
        return View("nobody", "", None, (), None, "", (), Writes(**writes))

    one, other = view(node="node1", term=5), view(node="node2", term=7, refused="node1, 0 s ago")
    lines = ["node2: its writes arrive, term 7", "writes are refused: node1, 0 s ago"]
    assert changes(one, other) == lines
    assert changes(other, replace(other, writes=replace(other.writes or Writes(), term=7))) == []


def test_a_node_whose_application_is_not_set_up_says_why(cluster: Sites) -> None:
    cluster.says("node2", "passive", setup="setup.sh has not succeeded: no such package")
    output = cluster.status().output
    assert "node2: setup: setup.sh has not succeeded: no such package" in output
    assert "node1: setup:" not in output


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("endpoints.json", '{"load_balancer": "tcp://203.0.113.20"}', "and has a port"),
        (
            "endpoints.json",
            '{"load_balancer": "http://203.0.113.20", "cluster_port": "http"}',
            "cluster_port 'http' must be a port, from 1 to 65535",
        ),
        ("endpoints.json", None, "cannot read"),
        ("endpoints.json", "{", "is not JSON"),
        ("endpoints.json", "[" * 30_000, "is not JSON"),
        ("endpoints.json", "[]", "must hold a JSON object"),
        ("endpoints.json", "{}", "load_balancer"),
        (
            "endpoints.json",
            '{"load_balancer": "http://203.0.113.20", "collector": "tcp://203.0.113.30:1"}',
            "collector must be a URL of http://",
        ),
        ("endpoints.json", '{"load_balancer": "203.0.113.20"}', "begins with http://"),
        ("endpoints.json", '{"load_balancer": "http://203.0.113.20:port"}', "begins with http://"),
        ("nodes_info.json", nodes_info("n{}"), "node1: public_ip 'n11': use an IPv4 address."),
        ("nodes_info.json", '{"node1": {}}', "node1 needs the text 'ip_configuration_name'."),
        ("nodes_info.json", "{}", "0 nodes: use an odd number, 3 or more."),
    ],
)
def test_a_state_file_is_refused_that(
    name: str, content: str | None, words: str, cluster: Sites
) -> None:
    path = cluster.state / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    run = deploy("status", "--cluster", str(cluster.state))
    assert run.returncode == 2
    assert words in run.stderr
    assert run.stderr.count("\n") == 1
