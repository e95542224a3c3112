"""A web server of the cluster's own: nothing that happens at the service's port costs a role."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from deploy.lab import LOAD_BALANCER, STATE
from deploy.lab.state import lab_plan
from tests.lab.cluster import lab
from tests.lab.sampler import Sampler, moments_with_two
from tests.lab.test_lab_verbs import without_a_lab
from tests.lab.test_service import status, wait

PORT = 8001
PLAN = lab_plan(2, 2, 0, count=3)
ADDRESSES = {node.name: str(node.public_ip) for node in PLAN.nodes}
UP = ("up", "--nodes", "3", "--period-seconds", "2", "--look-seconds", "2", "--pause-seconds", "0")

FLOOD = 500
FLOOD_SECONDS = 12
"""So many half-open connections at each node, for so long: Apache itself ends them after 20 s."""

CATCH_ALL = """\
<VirtualHost *:80>
    RedirectMatch permanent ^ https://@NODE@.example/
</VirtualHost>
"""


def led_to(address: str) -> str:
    """Where the service at port 80 sends whoever asks; empty where it does not answer in time."""
    connection = HTTPConnection(address, 80, timeout=2)
    try:
        connection.request("GET", "/probe.html")
        return connection.getresponse().headers.get("Location", "")
    except (OSError, HTTPException):
        return ""
    finally:
        connection.close()


def root(name: str) -> Path:
    """The node's file system, readable also while it is off."""
    return STATE / "containers" / name / "root"


@contextmanager
def files_for(connections: int) -> Iterator[None]:
    """Let this process have so many open beside what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, connections + 1024), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def half_open(address: str, count: int) -> Iterator[None]:
    """So many requests at that address which have begun and do not go on."""
    with contextlib.ExitStack() as at_the_end:
        for _ in range(count):
            connection = socket.create_connection((address, 80), timeout=5)
            at_the_end.enter_context(connection)
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        yield


@contextmanager
def watched() -> Iterator[Sampler]:
    """Every node's probe, asked for at the cluster's own port all the time."""
    sampler = Sampler(ADDRESSES, port=PORT)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def statuses(sampler: Sampler, name: str, since: float) -> set[int | None]:
    """All that the node has answered since that moment when asked for its probe."""
    return {sample.status for sample in list(sampler.samples[name]) if sample.began > since}


def is_active(sampler: Sampler, name: str) -> bool:
    """Whether that node and no other one answers 200."""
    return {each for each in ADDRESSES if sampler.latest(each).status == 200} == {name}


def monotonic(name: str, unit: str, moment: str) -> int:
    """When that came about in the node's boot, microseconds."""
    return int(lab("shell", name, "systemctl", "show", "--value", f"--property={moment}", unit))


def serves_a_redirect_for_everything() -> None:
    """The service of every node from now on."""
    for name, address in ADDRESSES.items():
        site = root(name) / "etc/apache2/sites-available/000-default.conf"
        site.write_text(CATCH_ALL.replace("@NODE@", name))
        lab("shell", name, "systemctl", "reload", "apache2.service")
        wait(f"the service of {name}", lambda at=address: led_to(at) != "")  # type: ignore[misc]


@without_a_lab
def test_what_a_service_does_at_port_80_and_half_open_requests_there_cost_no_role() -> None:
    lab(*UP, "--cluster-port", str(PORT))
    with watched() as sampler:
        wait("node1 active", lambda: is_active(sampler, "node1"))
        quiet = time.time()
        serves_a_redirect_for_everything()
        assert led_to(LOAD_BALANCER) == "https://node1.example/"
        with contextlib.ExitStack() as flood:
            flood.enter_context(files_for(len(ADDRESSES) * FLOOD))
            for address in ADDRESSES.values():
                flood.enter_context(half_open(address, FLOOD))
            began = time.time()
            assert {name: led_to(ip) for name, ip in ADDRESSES.items()} == dict.fromkeys(
                ADDRESSES, ""
            ), "the flood is none: a service answers in it"
            assert (status()["active"], status()["verdict"]) == ("node1", "served")
            time.sleep(max(0.0, began + FLOOD_SECONDS - time.time()))
        lab("shell", "node1", "systemctl", "restart", "apache2.service")
        assert len(sampler.of_nodes(began)) > 20 * FLOOD_SECONDS
        assert statuses(sampler, "node1", since=quiet) == {200}
        for name in ("node2", "node3"):
            assert not {200, None} & statuses(sampler, name, since=quiet)
        for name in ADDRESSES:
            pages = {path.name for path in (root(name) / "var/www/html").iterdir()}
            assert pages == {"index.html"}, "the agent writes to the service's folder"

        lab("off", "node1")
        wait("node2 active", lambda: is_active(sampler, "node2"))
        wait("node2 served", lambda: led_to(LOAD_BALANCER) == "https://node2.example/")
        left = root("node1") / "var/www/bootstrap/probe.html"
        assert left.exists(), "a crash leaves the probe on the disk"
        planted = root("node1") / "var/www/html/probe.html"
        planted.write_text("the service's own")
        slow = root("node1") / "etc/systemd/system/bootup.service.d/slow.conf"
        slow.parent.mkdir()
        slow.write_text("[Service]\nExecStartPre=/bin/sleep 4\n")
        lab("on", "node1")
        wait("node1 active", lambda: is_active(sampler, "node1"))
        removed = monotonic("node1", "bootup.service", "ActiveEnterTimestampMonotonic")
        serves = "apache2@bootstrap.service"
        assert 0 < removed < monotonic("node1", serves, "InactiveExitTimestampMonotonic")
        assert planted.read_text() == "the service's own"
        assert moments_with_two(sampler.of_nodes()) == []
