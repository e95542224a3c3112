"""Each fault on real nodes, with a client and the load balancer watching.

The fixture asserts at the end of each that in no sample two nodes answered 200; here stand what is
active in the end, and how long nobody was.
"""

import time
from itertools import combinations

import pytest

from agent.loader import Grant, Marker, Members, format_marker
from deploy.lab import process
from tests.lab.cluster import BootedLab, lab
from tests.lab.test_lab import labs

pytestmark = pytest.mark.lab

FAKETIME = "/etc/faketime.rc"
APACHE_CLOCK = f"""\
[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME_TIMESTAMP_FILE={FAKETIME} FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1
"""
# Under libfaketime 0.9.10 every sleep of Python 3.11 fails: the agent reads the same file itself.
AGENT_CLOCK = """\
[Service]
ExecStart=
ExecStart=/usr/bin/python3 /etc/bootstrap/stepped.py
"""
STEPPED = f"""\
import time
real = time.time
time.time = lambda: real() + float(open("{FAKETIME}").read())
exec(compile(open("/etc/bootstrap/loader.py").read(), "loader.py", "exec"))
"""


at_the_default = labs((3, 20, 2))
with_looks_and_without = labs((3, 20, 2), (3, 2, 2))


def longest_outage_seconds(cluster: BootedLab) -> float:
    """From a crash to the next active node, at worst: the promise, the next look, an election."""
    return cluster.times.promise_seconds + cluster.times.look_seconds + cluster.times.gap_seconds


def looks_later(cluster: BootedLab, looks: int, *names: str) -> None:
    """Wait until so many looks have ended on these nodes."""
    later = time.time() + looks * cluster.look_seconds
    seconds = (looks + 2) * cluster.look_seconds + 5
    cluster.wait(f"{looks} looks later", lambda: cluster.has_looked_since(later, names), seconds)


@at_the_default
@pytest.mark.parametrize("direction", ["both ways", "node1 to node2", "node2 to node1"])
def test_the_link_of_node1_and_node2_is_cut_while_node3_sees_both(
    cluster: BootedLab, direction: str
) -> None:
    began = time.time()
    pair = ("node2", "node1") if direction == "node2 to node1" else ("node1", "node2")
    lab("cut", *pair, *([] if direction == "both ways" else ["--one-way"]))
    looks_later(cluster, 5, *cluster.nodes)
    assert cluster.active() == {"node1"}
    assert cluster.gap_seconds(since=began) < 1


@with_looks_and_without
@pytest.mark.parametrize(("name", "active"), [("node1", "node2"), ("node2", "node1")])
def test_an_isolated_node_is_not_active_and_the_others_have_one(
    cluster: BootedLab, name: str, active: str
) -> None:
    began = time.time()
    cluster.isolate(name)
    looks_later(cluster, 5, *cluster.nodes)
    cluster.settles_on(active)
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    lab("heal")
    cluster.settles_on("node1")


@with_looks_and_without
def test_the_agent_is_killed_again_and_again(cluster: BootedLab) -> None:
    began = time.time()
    cluster.shell("node1", "systemctl", "stop", "--no-block", "loader.timer")
    cluster.shell("node1", "systemctl", "kill", "--signal=KILL", "loader.service")
    cluster.shell("node1", "systemctl", "kill", "--signal=KILL", "handover.service")
    cluster.settles_on("node2")
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    cluster.shell("node1", "systemctl", "start", "loader.timer")
    cluster.settles_on("node1")


@with_looks_and_without
def test_an_agent_stands_still_on_a_node_that_is_cut_off(cluster: BootedLab) -> None:
    began = time.time()
    cluster.hang("node1")
    cluster.isolate("node1")
    cluster.settles_on("node2")
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    lab("heal")
    cluster.thaw("node1")
    cluster.settles_on("node1")


@at_the_default
@pytest.mark.parametrize("seconds", [1, 10, 45])
def test_a_frozen_machine_thaws_beside_its_successor(cluster: BootedLab, seconds: float) -> None:
    cluster.freeze("node1")
    frozen = time.time()
    cluster.wait("over", lambda: time.time() - frozen > seconds, seconds + 5)
    cluster.thaw("node1")
    cluster.settles_on("node1")


@at_the_default
def test_apache_stops_on_the_active_node(cluster: BootedLab) -> None:
    began = time.time()
    cluster.shell("node1", "systemctl", "stop", "apache2.service")
    cluster.settles_on("node2")
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    cluster.shell("node1", "systemctl", "start", "apache2.service")
    cluster.settles_on("node1")


@with_looks_and_without
def test_the_power_of_all_nodes_fails_and_returns(cluster: BootedLab) -> None:
    cluster.off(*cluster.nodes)
    cluster.settles_on()
    began = time.time()
    cluster.on(*cluster.nodes)
    cluster.settles_on("node1")
    first = cluster.first_200("node1", since=began)
    assert first is not None
    assert first - began < 2 * cluster.period_seconds + 15


@with_looks_and_without
def test_a_planned_reboot_of_the_active_node_hands_over_first(cluster: BootedLab) -> None:
    began = time.time()
    cluster.shell("node1", "systemctl", "stop", "loader.timer")
    cluster.settles_on("node2")
    assert cluster.gap_seconds(since=began) < 2
    cluster.shell("node1", "systemctl", "start", "loader.timer")
    cluster.settles_on("node1")


@at_the_default
@pytest.mark.parametrize("folder", ["/var/www/html", "/run/bootstrap"])
def test_a_disk_is_full_on_the_active_node(cluster: BootedLab, folder: str) -> None:
    began = time.time()
    small = f"cp -a {folder} /root/kept && mount -t tmpfs -o size=64k tmpfs {folder}"
    fill = f"cp -a /root/kept/. {folder}/ && ! cat /dev/zero > {folder}/full"
    cluster.shell("node1", "sh", "-c", f"{small} && {fill}")
    cluster.settles_on("node2")
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    log = (cluster.root("node1") / "var/log/bootstrap/logfile.log").read_text()
    assert "No space left on device" in log
    cluster.shell("node1", "rm", "-r", f"{folder}/full", "/root/kept")
    cluster.off("node1")
    cluster.on("node1")
    cluster.settles_on("node1")


@at_the_default
def test_a_web_application_is_deployed_on_the_active_node(cluster: BootedLab) -> None:
    """Its owner gets the folder, sticky, and all in it; pages it does not have are deleted."""
    began = time.time()
    html = "/var/www/html"
    grab = "setpriv --reuid=www-data --clear-groups flock -n /run/bootstrap/run.lock sleep 60"
    cluster.shell("node1", "sh", "-c", f"({grab}) > /dev/null 2>&1 &")
    cluster.shell("node1", "chown", "-R", "www-data:www-data", html, "/var/log/bootstrap")
    cluster.shell("node1", "chmod", "1555", html)
    looks_later(cluster, 3, *cluster.nodes)
    assert cluster.active() == {"node1"}
    assert cluster.gap_seconds(since=began) < 1
    assert cluster.status("node1")["probe_expires"] is True
    log = cluster.root("node1") / "var/log/bootstrap"
    ours = lambda: {path.owner() for path in (log, log / "logfile.log")} == {"root"}  # noqa: E731
    cluster.wait("the next run has the log", ours, cluster.period_seconds + 5)
    cluster.shell("node1", "find", html, "-name", "*.html", "!", "-name", "index.html", "-delete")
    cluster.shell("node1", "find", html, "-name", "*.json", "-delete")
    looks_later(cluster, 2, *cluster.nodes)
    cluster.settles_on("node1")
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    cluster.shell("node1", "sh", "-c", f"chmod 755 {html}; chown -R root:root {html}")


@at_the_default
@pytest.mark.parametrize("step", ["+300", "-300"])
def test_the_wall_clock_of_the_active_node_is_stepped_by_five_minutes(
    cluster: BootedLab, step: str
) -> None:
    root = cluster.root("node1")
    (root / FAKETIME[1:]).write_text("+0\n")
    (root / "etc/bootstrap/stepped.py").write_text(STEPPED)
    dropins = {"apache2": APACHE_CLOCK, "loader": AGENT_CLOCK}
    for unit, text in dropins.items():
        folder = root / f"etc/systemd/system/{unit}.service.d"
        folder.mkdir(exist_ok=True)
        (folder / "clock.conf").write_text(text)
    cluster.shell("node1", "systemctl", "daemon-reload")
    # A run that began before has the clock of before.
    cluster.shell("node1", "systemctl", "restart", "apache2.service", "loader.service")
    cluster.settles_on("node1")
    began = time.time()
    staged = root / "etc/faketime.tmp"
    staged.write_text(f"{step}\n")
    staged.replace(root / FAKETIME[1:])
    looks_later(cluster, 5, "node2", "node3")
    cluster.settles_on("node1")
    assert cluster.gap_seconds(since=began) < longest_outage_seconds(cluster)
    log = (root / "var/log/bootstrap/logfile.log").read_text()
    assert "wall clock" in log
    for unit in dropins:
        (root / f"etc/systemd/system/{unit}.service.d/clock.conf").unlink()
    cluster.off("node1")
    cluster.on("node1")
    cluster.settles_on("node1")


@at_the_default
def test_web_site_and_metadata_are_gone_for_five_minutes(cluster: BootedLab) -> None:
    began = time.time()
    process.kill("web-site")
    process.kill("metadata")
    looks_later(cluster, 300 // cluster.look_seconds, *cluster.nodes)
    assert cluster.active() == {"node1"}
    assert cluster.gap_seconds(since=began) < 1
    lab("up")


@at_the_default
def test_a_vote_that_a_stranger_forged_counts_for_nothing(cluster: BootedLab) -> None:
    cluster.shell("node3", "systemctl", "stop", "loader.timer", "loader.service")
    epoch = cluster.epoch("node2")
    stranger = Members("node3", tuple(cluster.nodes), bytes(32), cluster.times)
    vote = Grant("node2", epoch, 1 << 60, 3600.0, 3600.0)
    forged = Marker(
        "node3", "node2", "0" * 16, 1, False, 9, False, vote, 0, False, None, {}, "", ""
    )
    html = cluster.root("node3") / "var/www/html"
    for name in ("node1", "node2"):
        (html / f"{name}.html").write_text(format_marker(stranger, forged._replace(receiver=name)))
    cluster.off("node1")
    cluster.settles_on()
    log = cluster.root("node2") / "var/log/bootstrap/logfile.log"
    cluster.wait("refused", lambda: "not signed with the cluster's key" in log.read_text())
    assert cluster.active() == set()
    cluster.shell("node3", "systemctl", "start", "loader.timer")
    cluster.settles_on("node2")
    cluster.on("node1")
    cluster.settles_on("node1")


@labs((5, 20, 2))
def test_a_ring_of_five_has_its_first_node_active(cluster: BootedLab) -> None:
    names = list(cluster.nodes)
    for i, j in combinations(range(5), 2):
        if abs(i - j) not in (1, 4):
            lab("cut", names[i], names[j])
    looks_later(cluster, 5, *names)
    cluster.settles_on("node1")
    lab("heal")


@labs((5, 20, 2))
def test_only_node4_reaches_a_majority(cluster: BootedLab) -> None:
    began = time.time()
    for a, b in combinations(cluster.nodes, 2):
        if "node4" not in (a, b):
            lab("cut", a, b)
    cluster.settles_on("node4")
    assert cluster.gap_seconds(since=began) < 2 * longest_outage_seconds(cluster)
    lab("heal")
    cluster.settles_on("node1")
