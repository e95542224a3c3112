"""The lab itself: what its verbs do to this machine, and that nothing of it stays."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from deploy import Refusal
from deploy.lab import CACHE, STATE, cloud, network, process, state
from deploy.lab.commands import wanted_lab
from deploy.operate import read_cluster
from tests.conftest import NO_LAB
from tests.lab.cluster import CHECKOUT, BootedLab, fetch, lab

three_nodes = pytest.mark.parametrize("machine", [(3, 2, 2)], indirect=True, ids=["3 nodes, 2/2 s"])
nothing = pytest.mark.parametrize("machine", [NO_LAB], indirect=True, ids=["no lab"])
Test = Callable[..., None]


def on_a_lab(test: Test) -> Test:
    marked: Test = pytest.mark.lab(three_nodes(pytest.mark.usefixtures("cluster")(test)))
    return marked


def without_a_lab(test: Test) -> Test:
    marked: Test = pytest.mark.lab(nothing(pytest.mark.usefixtures("no_lab")(test)))
    return marked


CURL = ["curl", "--silent", "-o/dev/null", "--max-time", "1", "--write-out", "%{http_code}"]


def traces() -> list[str]:
    """All that there is of a lab on this machine; that of a container on it is not ours."""

    def lines(*command: str) -> list[str]:
        return process.output_of(command).splitlines()

    groups = [Path("/sys/fs/cgroup", kind, process.GROUPS) for kind in ("", "unified", "systemd")]
    boxes = Path("/run/systemd/nspawn").rglob("aap-*")
    found = [str(path) for path in (STATE.parent, *groups, *boxes) if path.exists()]
    found += [line for line in lines("ip", "netns") if "aap-" in line]
    found += [line for line in lines("ip", "-brief", "link") if "aap-" in line]
    found += [line for line in lines("ip", "route") if "198.51.100" in line or "203.0.113" in line]
    found += [line for line in lines("cat", "/proc/mounts") if "aap-" in line or str(STATE) in line]
    of_a_container = re.compile(f"0::/.+/{process.GROUPS}")
    paths = (str(STATE), str(CACHE))
    for line in lines("ps", "-ww", "-eo", "cgroup:300,args"):
        if any(path in line for path in paths) and not of_a_container.search(line):
            found.append(line)
    return found


def in_a_shell(prepare: str, *words: str) -> list[str]:
    """`lab` as a shell starts it that did `prepare` before."""
    command = [sys.executable, "-m", "deploy", "lab", *words]
    return ["sh", "-c", f'{prepare}; exec "$@"', "sh", *command]


def up_until(step: str, prepare: str = ":") -> "subprocess.Popen[str]":
    """`lab up`, running, once it has printed that this step is done."""
    up = subprocess.Popen(
        in_a_shell(prepare, "up"),
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    )
    output: IO[str] = up.stdout  # type: ignore[assignment]
    for line in output:
        if line.startswith(step):
            return up
    raise AssertionError(f"`lab up` ended before {step!r}")


def test_without_root_the_lab_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refusal, match="run it with sudo"):
        state.require_root()


def test_a_missing_tool_is_named_with_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refusal, match=r"mmdebstrap, nft.*apt-get install systemd-container"):
        state.require_root()


@without_a_lab
def test_down_leaves_nothing_but_the_root_file_system_and_says_so() -> None:
    lab("up", "--demo")
    assert traces(), "what is looked for is there while the lab is up"
    assert str(CACHE) in lab("down")
    assert traces() == []
    assert "No lab was up" in lab("down")


SERVICE: dict[str, Any] = {
    "ports": ("443", "udp/5060"),
    "frontend": "internal",
    "cluster_port": 8080,
    "stop_seconds": 20,
    "unhealthy": "stop",
}


def test_a_lab_that_is_up_keeps_its_ports_and_its_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path / "lab")
    script = tmp_path / "setup.sh"
    script.write_text("#!/bin/sh\n")
    lab = wanted_lab(None, None, None, None, setup=(str(script),), **SERVICE)
    state.save(lab)
    (tmp_path / "lab" / "endpoints.json").write_text("{}")
    assert wanted_lab(None, None, None, None) == lab
    assert wanted_lab(None, None, None, None, setup=(str(script),), **SERVICE) == lab
    assert lab.setup == {"setup.sh": b"#!/bin/sh\n"}
    with pytest.raises(Refusal, match="is up: `lab down` first"):
        wanted_lab(None, None, None, None, ports=("443",))
    script.write_text("#!/bin/sh\necho another\n")
    with pytest.raises(Refusal, match="is up: `lab down` first"):
        wanted_lab(None, None, None, None, setup=(str(script),))
    with pytest.raises(Refusal, match="is up: `lab down` first"):
        wanted_lab(None, None, None, None, with_demo=True)


def test_a_lab_with_the_demonstration_keeps_it_and_takes_no_other_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path / "lab")
    lab = wanted_lab(None, None, None, None, with_demo=True)
    assert "with the demonstration" in str(lab)
    state.save(lab)
    state.save_endpoints(lab)
    assert wanted_lab(None, None, None, None) == lab
    assert read_cluster(tmp_path / "lab").collector == "http://203.0.113.30:7001"
    with pytest.raises(Refusal, match="use it without --setup"):
        wanted_lab(None, None, None, None, setup=("setup.sh",), with_demo=True)


def test_the_labs_load_balancer_takes_each_port_of_tcp_at_its_address_and_asks_the_clusters_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    usual = cloud.balancer(wanted_lab(None, None, None, None).plan)
    assert "bind 203.0.113.20:80\n" in usual
    assert "server node1 10.0.0.4 source 168.63.129.16 check port 80 inter 5000ms" in usual
    ports = ("443", "1433", "udp/5060")
    own = cloud.balancer(wanted_lab(None, None, None, None, ports=ports, cluster_port=8080).plan)
    assert re.findall(r"bind (\S+)", own) == [
        *("203.0.113.20:443", "203.0.113.20:1433", "203.0.113.20:8404"),
    ]
    assert "server node3 10.0.0.6 source 168.63.129.16 check port 8080 inter 5000ms" in own
    inside = cloud.balancer(wanted_lab(None, None, None, None, frontend="internal").plan)
    assert "bind 10.0.0.254:80\n" in inside
    assert "frontend public" not in (
        cloud.balancer(wanted_lab(None, None, None, None, ports=("udp/53",)).plan)
    )


def test_a_lab_says_where_to_ask_as_a_cluster_on_azure_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    told = cloud.endpoints(wanted_lab(None, None, None, None, **SERVICE).plan)
    assert (told["load_balancer"], told["frontend"], told["cluster_port"]) == (
        *("tcp://10.0.0.254:443", "internal", "8080"),
    )


def test_every_port_at_once_is_refused_in_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    with pytest.raises(Refusal, match="forwards ports that are named alone"):
        wanted_lab(None, None, None, None, ports=("all",), frontend="internal")


@pytest.mark.parametrize("port", ["8404", "tcp/8404"])
def test_the_port_of_the_load_balancers_statistics_is_refused_where_they_share_an_address(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    with pytest.raises(Refusal, match="ports = 8404: the lab's load balancer has its statistics"):
        wanted_lab(None, None, None, None, ports=("443", port))
    for elsewhere in ({"ports": (port,), "frontend": "internal"}, {"ports": ("udp/8404",)}):
        binds = cloud.balancer(wanted_lab(None, None, None, None, **elsewhere).plan)
        assert binds.count("203.0.113.20:8404\n") == 1


def test_the_labs_firewall_keeps_clients_from_a_port_of_the_clusters_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    rules = network.firewall(wanted_lab(None, None, None, None, **SERVICE).plan).splitlines()
    own = next(line for line in rules if "tcp dport 8080" in line).strip()
    assert [rule.strip() for rule in own.split(";") if "8080" in rule] == [
        *(
            f'ip saddr {part}.{number}/32 tcp dport 8080 accept comment "AllowHttpFromPeers"'
            for part in ("198.51.100", "10.0.0")
            for number in (4, 5, 6)
        ),
        'ip saddr 168.63.129.16 tcp dport 8080 accept comment "AllowHttpFromProbe"',
        'ip saddr 203.0.113.254/32 tcp dport 8080 accept comment "AllowHttpFromOperator"',
        'tcp dport 8080 drop comment "DenyHttpFromOthers"',
    ]


@without_a_lab
@pytest.mark.parametrize("step", ["Network", "Metadata service"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(step: str, number: int) -> None:
    up = up_until(step)
    up.send_signal(number)
    assert up.wait(timeout=60) == 130
    assert traces() == []


@without_a_lab
def test_an_up_that_nohup_started_goes_on_when_its_terminal_is_closed() -> None:
    up = up_until("Network", "trap '' HUP")
    up.send_signal(signal.SIGHUP)
    assert up.wait(timeout=120) == 0


ROOT_BY_SU = "umask 077; PATH=/usr/bin:/bin; export http_proxy=http://127.0.0.1:9; unset TERM HOME"


@without_a_lab
def test_a_strict_umask_a_short_path_and_a_proxy_make_no_difference_to_a_lab() -> None:
    up = in_a_shell(ROOT_BY_SU, "up", "--period-seconds", "2")
    done = subprocess.run(up, cwd=CHECKOUT, capture_output=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    lab("shell", "node1", "runuser", "-u", "www-data", "--", "cat", "/var/www/html/index.html")
    assert lab("shell", "node1", "stat", "-c", "%a", "/") == "755\n"


ALONE = 'set -- unshare --mount --net sh -c \'{} && exec "$@"\' sh "$@"'
NO_CGROUP = ALONE.format(
    "mount -t tmpfs none /run"
    ' && mount -o remount,bind,ro "$(findmnt -n -o TARGET -t cgroup2 | head -n 1)"'
)
NO_MOUNT = 'set -- setpriv --bounding-set=-sys_admin --inh-caps=-all "$@"; ' + ALONE.format(
    "mount -t tmpfs none /run"
)


@without_a_lab
@pytest.mark.parametrize(
    ("prepare", "says"),
    [(NO_CGROUP, "cgroup2 mounted where root may write"), (NO_MOUNT, "Operation not permitted")],
    ids=["cgroup", "mount"],
)
def test_a_machine_that_refuses_what_a_lab_is_made_of_is_told_in_a_sentence(
    prepare: str, says: str
) -> None:
    up = in_a_shell(prepare, "up")
    done = subprocess.run(up, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("deploy: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert traces() == []


@pytest.mark.parametrize("name", ["settings.json", "nodes_info.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"node1": 1}'])
def test_a_state_that_no_lab_wrote_is_refused(
    name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    (tmp_path / "settings.json").write_text('{"period_seconds": 2, "checkout": "/"}')
    (tmp_path / "nodes_info.json").write_bytes((CHECKOUT / "nodes_info.json").read_bytes())
    (tmp_path / "endpoints.json").write_text("{}")
    assert state.running_lab() is not None
    (tmp_path / name).write_text(content)
    with pytest.raises(Refusal, match=re.escape(str(tmp_path))):
        state.running_lab()


def lab_of(folder: Path, **settings: object) -> None:
    """The files of a lab of this checkout that is up, as `lab up` leaves them."""
    said = {"checkout": str(CHECKOUT), **settings}
    (folder / "settings.json").write_text(json.dumps(said))
    (folder / "nodes_info.json").write_bytes((CHECKOUT / "nodes_info.json").read_bytes())
    (folder / "endpoints.json").write_text("{}")


def test_a_lab_that_is_up_keeps_its_times_whatever_the_defaults_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    lab_of(tmp_path, period_seconds=30, look_seconds=5, pause_seconds=8)
    for asked in ((None, None, None), (30, None, None), (None, 5, None), (30, 5, 8)):
        plan = wanted_lab(None, *asked).plan
        assert (plan.period_seconds, plan.look_seconds, plan.pause_seconds) == (30, 5, 8)
    for others in ((20, None, None), (None, 2, None), (20, 5, 8), (15, None, None), (30, 5, 0)):
        with pytest.raises(Refusal) as refused:
            wanted_lab(None, *others)
        said = str(refused.value)
        assert (
            "a lab of 3 nodes with a period of 30 s, a look every 5 s and pauses of 8 s absorbed"
            in said
        )
        assert said.endswith("is up: `lab down` first.")


def test_a_lab_from_before_there_were_looks_looks_once_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    lab_of(tmp_path, period_seconds=20)
    assert wanted_lab(None, None, None, None).plan.look_seconds == 20
    with pytest.raises(Refusal, match="a period of 20 s, a look every 20 s"):
        wanted_lab(None, None, 2, None)


def test_a_lab_from_before_pauses_absorbs_what_the_agent_does_that_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    lab_of(tmp_path, period_seconds=20, look_seconds=2)
    assert wanted_lab(None, None, None, None).plan.pause_seconds == 5
    with pytest.raises(Refusal, match="a look every 2 s and pauses of 5 s absorbed"):
        wanted_lab(None, None, None, 0)


@pytest.mark.parametrize(
    ("asked", "times"),
    [
        ((None, None, None), (20, 2, 5)),
        ((15, None, None), (15, 3, 5)),
        ((4, 4, 0), (4, 4, 0)),
    ],
)
def test_a_new_lab_has_the_times_asked_for_or_those_of_a_new_cluster(
    asked: tuple[int | None, int | None, int | None],
    times: tuple[int, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "STATE", tmp_path)
    plan = wanted_lab(None, *asked).plan
    assert (plan.period_seconds, plan.look_seconds, plan.pause_seconds) == times


@without_a_lab
@pytest.mark.parametrize("step", ["Network", "Metadata service"])
def test_a_killed_up_is_cleaned_up_by_the_next_down(step: str) -> None:
    up = up_until(step)
    up.kill()
    up.wait(timeout=10)
    assert traces()
    lab("down")
    assert traces() == []


@without_a_lab
def test_a_killed_up_is_no_obstacle_for_another_lab() -> None:
    up = up_until("Metadata service")
    up.kill()
    up.wait(timeout=10)
    lab("up", "--nodes", "5", "--period-seconds", "2")
    assert fetch("198.51.100.8", "/"), "the fifth node answers at its public address"


@without_a_lab
def test_two_commands_do_not_change_the_lab_at_once() -> None:
    up = up_until("Network")
    assert "another `lab` command" in lab("down", code=2)
    assert up.wait(timeout=120) == 0


@without_a_lab
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("up", "--nodes", "4"), "odd number"),
        (("up", "--period-seconds", "7"), "divisor of 60"),
        (("up", "--period-seconds", "0"), "divisor of 60"),
        (("up", "--look-seconds", "3"), "use a divisor of period_seconds = 20, 2 or more"),
        (("up", "--pause-seconds", "61"), "pause_seconds = 61: use 0 to 60"),
        (("up", "--stop-seconds", "61"), "stop_seconds = 61: use a number from 1 to 60"),
        (("off", "node1"), "no lab is up"),
        (("shell", "node1"), "no lab is up"),
    ],
)
def test_what_no_lab_can_do_is_refused(words: tuple[str, ...], says: str) -> None:
    assert says in lab(*words, code=2)
    assert traces() == []


@on_a_lab
def test_up_again_changes_nothing(cluster: BootedLab) -> None:
    groups = (*cluster.nodes, "web-site")
    before = {group: eldest_pids(group) for group in groups}
    lab("up")
    assert before == {group: eldest_pids(group) for group in groups}


def eldest_pids(group: str) -> list[int]:
    """Its three processes that started first: the numbers of later ones may be lower again."""
    started_ticks: dict[int, int] = {}
    for pid in process.pids(group):
        with suppress(OSError):  # it has ended meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
            started_ticks[pid] = int(fields.split()[19])
    return sorted(started_ticks, key=lambda pid: (started_ticks[pid], pid))[:3]


@on_a_lab
def test_up_again_repairs_what_is_missing(cluster: BootedLab) -> None:
    for group in ("load-balancer", "metadata", "web-site", "node2"):
        process.kill(group)
    process.output_of(["ip", "netns", "delete", "aap-node3"])
    lab("up")
    cluster.wait("three nodes in node1's list", lambda: sees_all(cluster))
    cluster.settles_on("node1")


def sees_all(cluster: BootedLab) -> bool:
    return len(cluster.status("node1").get("reachable", [])) == len(cluster.nodes)


@on_a_lab
@pytest.mark.parametrize("words", [("--nodes", "5"), ("--period-seconds", "4")])
def test_another_lab_than_the_one_that_is_up_is_refused(words: tuple[str, ...]) -> None:
    said = lab("up", *words, code=2)
    assert "a lab of 3 nodes with a period of 2 s" in said
    assert "`lab down` first" in said


@on_a_lab
def test_an_unknown_node_is_refused_with_the_names_there_are() -> None:
    assert "it has node1, node2, node3" in lab("off", "node9", code=2)


@on_a_lab
def test_shell_passes_the_exit_code_on_and_logs_prints_the_log() -> None:
    lab("shell", "node1", "sh", "-c", "exit 7", code=7)
    assert lab("shell", "node2", "hostname") == "node2\n"
    assert "Local node name: node3" in lab("logs", "node3")


@on_a_lab
def test_a_node_that_is_off_is_silent_and_sends_no_resets(cluster: BootedLab) -> None:
    cluster.off("node2")
    # 28: the time was up. A reset would be 7, and 56 on a connection that stood.
    lab("shell", "node1", *CURL, "http://198.51.100.5/", code=28)
    lab("shell", "node1", *CURL, "http://10.0.0.5/", code=28)
    assert "node2 is off" in lab("freeze", "node2", code=2)


@on_a_lab
@pytest.mark.parametrize("own", ["198.51.100.4", "10.0.0.4"], ids=["public", "private"])
def test_a_cut_is_for_both_addresses_both_ways_and_for_that_pair_alone(own: str) -> None:
    peer = own[:-1] + "5"
    lab("cut", "node1", "node2")
    lab("shell", "node1", *CURL, f"http://{peer}/", code=28)
    lab("shell", "node2", *CURL, f"http://{own}/", code=28)
    assert lab("shell", "node3", *CURL, f"http://{own}/") == "200"
    lab("heal")
    assert lab("shell", "node1", *CURL, f"http://{peer}/") == "200"


@on_a_lab
def test_a_cut_of_one_way_leaves_the_other_way() -> None:
    lab("cut", "node1", "node2", "--one-way")
    lab("shell", "node1", *CURL, "http://198.51.100.5/", code=28)
    assert lab("shell", "node2", *CURL, "http://198.51.100.4/") == "200"


@on_a_lab
def test_a_node_meets_its_peers_by_their_public_addresses(cluster: BootedLab) -> None:
    lab("shell", "node1", *CURL, "http://198.51.100.5/hairpin")
    asked = (cluster.root("node2") / "var/log/apache2/access.log").read_text()
    callers = [line.split()[0] for line in asked.splitlines() if "/hairpin" in line]
    assert callers == ["198.51.100.4"]


@on_a_lab
def test_the_firewall_of_the_plan_stands_in_front_of_a_node(cluster: BootedLab) -> None:
    server = ("systemd-run", "--quiet", "--unit=other", "python3", "-m", "http.server", "8080")
    lab("shell", "node2", *server)
    inside = ("sh", "-c", f"{' '.join(CURL)} http://10.0.0.5:8080/ || true")
    cluster.wait("reached from inside", lambda: lab("shell", "node1", *inside) == "200")
    lab("shell", "node1", *CURL, "http://198.51.100.5:8080/", code=28)
    lab("shell", "node2", "systemctl", "stop", "other")
