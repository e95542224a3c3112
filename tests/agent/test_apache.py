"""agent/apache.conf in a real Apache, beside what others put into the same one.

Apache runs as a process on loopback, from a temporary folder; no root needed.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from agent import loader
from deploy.userdata import web_server

CONF = Path(loader.__file__).with_name("apache.conf").read_text()
MODULES = Path("/usr/lib/apache2/modules")
LOADED = (
    *("mpm_event", "authz_core", "authz_host", "authz_user", "authn_core", "authn_file"),
    *("auth_basic", "access_compat", "alias", "dir", "rewrite", "proxy", "proxy_http"),
    *("env", "cache", "cache_disk", "status"),
)
SERVER = """
ServerRoot @FOLDER@
PidFile @FOLDER@/pid
ErrorLog @FOLDER@/error.log
Listen 127.0.0.1:@PORT@
User nobody
Group nogroup
<Directory @FOLDER@/html>
    Options FollowSymLinks
    AllowOverride All
    Require all granted
</Directory>
Include @FOLDER@/bootstrap.conf
<VirtualHost *:@PORT@>
    DocumentRoot @FOLDER@/html
@OTHERS@
</VirtualHost>
"""
GRANT = "<Location />\nRequire all granted\n</Location>\n"
OVER, LONG_AFTER = "20200101000000", "99991231235959"


class Apache:
    """A server whose pages and lease are in `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address, self.html = f"127.0.0.1:{port}", folder / "html"
        self.lease_until = folder / "run/bootstrap/lease_until"

    def status(self, target: str) -> int:
        connection = HTTPConnection(self.address, timeout=5)
        try:
            connection.request("GET", target)
            return connection.getresponse().status
        finally:
            connection.close()


@contextmanager
def placed() -> Iterator[tuple[Path, Apache]]:
    """A folder, and the server that is to run from it, at a port that is free."""
    if not shutil.which("apache2") or not MODULES.is_dir():
        pytest.skip("needs apache2-bin")
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        folder.chmod(0o755)
        free.bind(("127.0.0.1", 0))
        server = Apache(folder, free.getsockname()[1])
        free.close()
        for path in (server.html / "app", server.lease_until.parent):
            path.mkdir(parents=True)
        for page in ("index.html", "probe.html", "app.html", "app/probe.html"):
            (server.html / page).write_text("a page")
            os.utime(server.html / page, (1e9, 1e9))  # what is old is cached for long
        yield folder, server


@contextmanager
def apache(others: str = "", htaccess: str = "") -> Iterator[Apache]:
    """Our configuration in a server that has that of `others` too, with a probe that is there."""
    with placed() as (folder, server):
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        if htaccess:
            (server.html / ".htaccess").write_text(htaccess)
        (folder / "bootstrap.conf").write_text(
            CONF.replace("/run/bootstrap", f"{folder}/run/bootstrap")
        )
        modules = (f"LoadModule {it}_module {MODULES}/mod_{it}.so\n" for it in LOADED)
        text = "".join(modules) + SERVER.replace("@OTHERS@", others)
        text = text.replace("@FOLDER@", str(folder))
        text = text.replace("@PORT@", server.address.partition(":")[2])
        (folder / "apache2.conf").write_text(text)
        with running(folder, server):
            yield server


@contextmanager
def own_apache() -> Iterator[Apache]:
    """A web server of the cluster's own as a node has it, with a probe that is there."""
    with placed() as (folder, server):
        here = {
            **{"/etc/apache2-bootstrap": f"{folder}", "/var/www/bootstrap": f"{server.html}"},
            **{"/run/bootstrap": f"{folder}/run/bootstrap", "${APACHE_RUN_DIR}": f"{folder}"},
            "Listen ": "Listen 127.0.0.1:",
        }
        for path, text in web_server(int(server.address.partition(":")[2])).items():
            for usual, instead in here.items():
                text = text.replace(usual, instead)  # noqa: PLW2901
            (folder / Path(path).name).write_text(text)
        with running(folder, server):
            yield server


@contextmanager
def running(folder: Path, server: Apache) -> Iterator[None]:
    command = ["apache2", "-f", str(folder / "apache2.conf"), "-DFOREGROUND"]
    environment = os.environ | {"TZ": "UTC"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 10
        while not answers(server):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "Apache does not answer"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


def answers(server: Apache) -> bool:
    try:
        return bool(server.status("/app.html"))
    except OSError:
        return False


OTHERS = {
    "nobody": "",
    "all paths granted": GRANT,
    "all paths that match granted": GRANT.replace("Location /", 'LocationMatch "^/"').replace(
        "</Location>", "</LocationMatch>"
    ),
    "merged with ours": "<Location />\nAuthMerging Or\nRequire all granted\n</Location>\n",
    "access control of old": "<Location />\nOrder allow,deny\nAllow from all\nSatisfy Any\n"
    "</Location>\n",
    "a password for all": "<Location />\nAuthType Basic\nAuthName us\nAuthBasicProvider file\n"
    "AuthUserFile /dev/null\nRequire valid-user\n</Location>\n",
    "all to one page": "RewriteEngine on\nRewriteRule ^ @FOLDER@/html/app.html [L]\n" + GRANT,
    "into a folder": "RewriteEngine on\nRewriteRule ^/(?!app)(.*)$ /app/$1 [PT]\n" + GRANT,
    "an alias": "Alias /probe.html @FOLDER@/html/app.html\n" + GRANT,
    "a cache": "CacheRoot @FOLDER@/cache\nCacheEnable disk /\n" + GRANT,
    "a service behind it": "Alias /up @FOLDER@/html\nProxyPass /up !\n"
    "ProxyPass / http://127.0.0.1:@PORT@/up/\n<Proxy *>\nRequire all granted\n</Proxy>\n" + GRANT,
}


def assert_the_lease_holds(server: Apache) -> None:
    server.lease_until.write_text(LONG_AFTER)
    assert server.status("/probe.html") == 200
    for late in (OVER, "0", "", "garbage"):
        server.lease_until.write_text(late)
        assert server.status("/probe.html") == 403, late
        assert server.status("/probe.html?x") == 403, late
        assert server.status(f"/probe.html?{LONG_AFTER}") == 403, late
    server.lease_until.unlink()
    assert server.status("/probe.html") == 500


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_the_probe_ends_with_its_lease_whatever_others_configure(others: str) -> None:
    with apache(others) as server:
        assert_the_lease_holds(server)


def test_the_probe_ends_with_its_lease_where_an_application_answers_for_all_paths() -> None:
    with apache(htaccess="RewriteEngine on\nRewriteRule ^ app.html [L]\n", others=GRANT) as server:
        assert_the_lease_holds(server)
        server.lease_until.write_text("0")
        (server.html / "probe.html").unlink()
        assert server.status("/probe.html") == 403


def expires(server: Apache) -> bool:
    times = loader.timing(20, 20, 0)._replace(timeout_seconds=5)
    return loader.probe_expires(loader.new_session(), f"http://{server.address}", times)


@pytest.mark.parametrize("role", ["active", "passive"])
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
def test_the_agent_finds_the_limit_in_force(others: str, role: str) -> None:
    with apache(others) as server:
        server.lease_until.write_text(LONG_AFTER if role == "active" else "0")
        assert expires(server)


@pytest.mark.parametrize("role", ["active", "passive"])
@pytest.mark.parametrize("where", ["the server's files", "a folder's .htaccess"])
def test_the_agent_finds_the_limit_granted_away(where: str, role: str) -> None:
    grant = '<If "true">\nRequire all granted\n</If>\n'
    told = {"others" if where == "the server's files" else "htaccess": grant}
    with apache(**told) as server:
        server.lease_until.write_text(LONG_AFTER if role == "active" else "0")
        if role == "passive":
            (server.html / "probe.html").unlink()
        assert not expires(server)


def test_of_the_hidden_pages_only_those_of_ours_are_refused() -> None:
    theirs = (".well-known/acme-challenge/token", ".well-known/about.html", ".well-known/a.json")
    ours = (".probe.html", "..probe.html.tmp", ".node2.html.tmp", ".status.json.tmp")
    with apache() as server:
        for name in (*theirs, *ours):
            (server.html / name).parent.mkdir(parents=True, exist_ok=True)
            (server.html / name).write_text("a page")
        assert {name: server.status(f"/{name}") for name in theirs} == dict.fromkeys(theirs, 200)
        assert {name: server.status(f"/{name}") for name in ours} == dict.fromkeys(ours, 403)


WORKERS = """
<Location /server-status>
    SetHandler server-status
</Location>
"""


def workers(server: Apache) -> dict[str, str]:
    """Apache's own count of its connections and workers."""
    page = HTTPConnection(server.address, timeout=5)
    page.request("GET", "/server-status?auto", headers={"Connection": "close"})
    lines = page.getresponse().read().decode().splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def look_of(peer: HTTPConnection) -> socket.socket | None:
    """The connection that the peer's request went over, which is still open."""
    peer.request("GET", "/index.html")
    used = peer.sock  # which is None once Apache has said that it closes
    assert peer.getresponse().read() == b"a page"
    return used if peer.sock is used else None


def test_a_hundred_peers_that_keep_their_connections_open_hold_no_worker_of_apaches() -> None:
    """With the event MPM, Debian's; with prefork each connection would be one of 150 workers."""
    with apache(WORKERS) as server:
        peers = [HTTPConnection(server.address, timeout=5) for _ in range(100)]
        opened = [look_of(peer) for peer in peers]
        assert None not in opened
        assert [look_of(peer) for peer in peers] == opened
        told = workers(server)
        for peer in peers:
            peer.close()
    assert int(told["BusyWorkers"]) <= 2  # the one that says this, and one that just answered
    assert int(told["BusyWorkers"]) + int(told["IdleWorkers"]) >= 50


def test_the_clusters_own_server_serves_its_pages_and_ends_the_probe_with_its_lease() -> None:
    with own_apache() as server:
        assert_the_lease_holds(server)
        for name in ("status.json", ".status.json.tmp"):
            (server.html / name).write_text("a page")
        refused = {"/.status.json.tmp": 403, "/app/": 404, "/nothing.html": 404}
        wanted = {"/": 200, "/status.json": 200, **refused}
        assert {target: server.status(target) for target in wanted} == wanted
        page = HTTPConnection(server.address, timeout=5)
        page.request("GET", "/status.json")
        assert page.getresponse().headers["Content-Type"] == "application/json"
        page.close()
        assert expires(server)


def test_the_clusters_own_server_bears_two_hundred_connections_that_stay_open() -> None:
    with own_apache() as server:
        peers = [HTTPConnection(server.address, timeout=5) for _ in range(200)]
        opened = [look_of(peer) for peer in peers]
        assert None not in opened
        assert [look_of(peer) for peer in peers] == opened
        for peer in peers:
            peer.close()


def test_the_clusters_own_server_answers_beside_slow_requests_and_ends_them_soon() -> None:
    with own_apache() as server:
        host, _, port = server.address.partition(":")
        began = time.monotonic()
        slow = [socket.create_connection((host, int(port)), timeout=15) for _ in range(30)]
        for each in slow:
            each.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert server.status("/") == 200
        for each in slow:
            each.recv(1000)  # it says that it waits no longer, or just hangs up
            each.close()
        assert 4 < time.monotonic() - began < 9
