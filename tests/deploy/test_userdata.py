"""The first-boot document and the web site's release, as an operator gets them."""

import hashlib
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import loader
from deploy.__main__ import main
from deploy.checkout import CHECKOUT
from deploy.lab.node import write_seed
from deploy.nodes_info import read_nodes_info
from deploy.settings import SERVICE
from deploy.signing import public_key, signers_text
from deploy.userdata import OWN_WEB_SERVER, UNITS, is_beside, user_data
from tests.agent.world import open_world
from tests.web import Page

NODES = read_nodes_info(CHECKOUT / "nodes_info.json")
KEY = "5e" * 32
STOP_SCRIPT = (CHECKOUT / "agent/stop.sh").read_text()
SETUP = {"setup.sh": b"#!/bin/sh\necho hello\n"}
SIGNERS = signers_text(["ssh-ed25519 AAAA me@home"])
CONF = "/etc/bootstrap/loader.conf"
Run = Callable[..., "tuple[int, str, str]"]


def document(node: str = "node1", **changes: Any) -> str:
    options: dict[str, Any] = {
        **{"nodes_info": NODES, "bootstrap_url": "http://203.0.113.10/bootstrap"},
        **{"cluster_key": KEY, "period_seconds": 20, "look_seconds": 2, "pause_seconds": 5},
        **{"peer_address": "public", "scheduled_events": True, "cluster_port": 80},
        **{"cluster": "lab", "allowed_signers": SIGNERS, "setup": {}, "service": {}},
    }
    return user_data(node, **(options | changes))


def files(text: str) -> dict[str, dict[str, str]]:
    return {file["path"]: file for file in yaml.safe_load(text)["write_files"]}


@pytest.fixture(autouse=True)
def home(home_with_key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whoever publishes has an SSH key."""
    monkeypatch.setenv("HOME", str(home_with_key))
    return home_with_key


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`python -m deploy` with these words: exit code, standard output, standard error."""

    def run_it(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deploy", *words])
        code = main()
        return code, *capsys.readouterr()

    return run_it


# ------------------------------------------------ the first-boot document


def test_the_document_is_a_cloud_config_that_names_the_node() -> None:
    text = document("node2")
    told = yaml.safe_load(text)
    assert text.startswith("#cloud-config\n")
    assert told["hostname"] == "node2"
    assert {type(command) for command in told["runcmd"]} == {list}


def test_the_key_is_for_root_alone_and_in_no_other_file() -> None:
    found = files(document())
    assert found["/etc/bootstrap/cluster.key"]["permissions"] == "0600"
    assert found["/etc/bootstrap/cluster.key"]["content"] == KEY + "\n"
    assert [path for path, file in found.items() if KEY in file["content"]] == [
        "/etc/bootstrap/cluster.key"
    ]


def test_what_others_run_or_may_not_read_has_its_mode_and_all_else_is_plainly_to_be_read() -> None:
    modes = {path: file["permissions"] for path, file in files(document(setup=SETUP)).items()}
    assert {path: mode for path, mode in modes.items() if mode != "0644"} == {
        "/etc/bootstrap/cluster.key": "0600",
        "/etc/bootstrap/setup/setup.sh": "0755",
        "/etc/systemd/system-generators/bootstrap": "0755",  # systemd runs no others
    }


def test_whose_releases_a_node_takes_and_signed_by_whom_is_written_at_first_boot() -> None:
    found = files(document(cluster="billing"))
    assert found["/etc/bootstrap/cluster"]["content"] == "billing\n"
    assert found["/etc/bootstrap/allowed_signers"]["content"] == SIGNERS
    assert found["/etc/bootstrap/allowed_signers"]["permissions"] == "0644"
    assert (
        'packages="apache2 logrotate openssh-client openssl python3-requests"'
        in (found["/etc/bootstrap/install.sh"]["content"])
    )


def test_every_unit_is_there_as_it_is_in_the_repository() -> None:
    found = files(document(setup=SETUP))
    named = {path.name: path.name for path in (CHECKOUT / "systemd").iterdir()}
    named["apache2.conf"] = "apache2.service.d/bootstrap.conf"
    for name, there in named.items():
        content = found[f"/etc/systemd/system/{there}"]["content"]
        assert content == (CHECKOUT / "systemd" / name).read_text()
    assert {*UNITS, "install.service", "setup.service", "apache2.conf"} == named.keys()


def test_a_node_without_an_application_of_its_own_gets_nothing_of_setup() -> None:
    assert [path for path in files(document()) if "setup" in path] == []
    assert "setup" not in str(yaml.safe_load(document())["runcmd"])


def test_the_application_is_set_up_once_the_agent_is_installed_and_at_later_boots_until_then() -> (
    None
):
    text = document(setup=SETUP)
    found = files(text)
    told = found["/etc/systemd/system/install.service.d/setup.conf"]["content"]
    assert told == "[Unit]\nOnSuccess=setup.service\n"
    enable = ["systemctl", "--no-reload", "enable", "install.service", "setup.service"]
    assert enable in yaml.safe_load(text)["runcmd"]
    digest = hashlib.sha256(SETUP["setup.sh"]).hexdigest()
    assert found["/etc/bootstrap/setup.sha256"]["content"] == f"{digest}  setup.sh\n"
    assert "@URL@" not in found["/etc/bootstrap/setup.sh"]["content"]


@pytest.mark.parametrize("size", range(25_000, 34_000, 1_000))
def test_a_document_with_an_application_is_never_longer_than_azure_takes(size: int) -> None:
    setup = {**SETUP, "app": b"\xff" * size}
    text = document(setup=setup)
    assert len(text.encode()) <= 65_535
    assert is_beside(text, setup) is ("/etc/bootstrap/setup/app" not in files(text))


def test_a_document_has_the_application_as_long_as_there_is_room_for_it() -> None:
    small, large = {**SETUP, "app": b"\xff" * 1_000}, {**SETUP, "app": b"\xff" * 40_000}
    assert not is_beside(document(setup=small), small)
    assert is_beside(document(setup=large), large)
    assert not is_beside(document(), {})


def test_a_port_of_the_clusters_own_is_in_the_nodes_settings_and_the_usual_one_is_not(
    run: Run,
) -> None:
    for port, told in ((8080, ["cluster_port = 8080"]), (80, [])):
        code, printed, _ = run("user-data", "node1", "--cluster-port", str(port))
        conf = files(printed)["/etc/bootstrap/loader.conf"]["content"].splitlines()
        assert (code, [line for line in conf if "port" in line]) == (0, told)


def texts(cluster_port: int) -> dict[str, str]:
    """What a node gets, by path; the agent's own settings, which name the port, left out."""
    found = files(document(cluster_port=cluster_port))
    return {path: file["content"] for path, file in found.items() if path != CONF}


def test_a_cluster_with_a_port_of_its_own_leaves_the_usual_apache_and_its_folder_alone() -> None:
    usual, own = texts(80), texts(8001)
    for word, instead in OWN_WEB_SERVER.items():
        assert any(word in text for text in (*usual, *usual.values())), word
        assert not any(instead in text for text in (*usual, *usual.values())), instead
    for word in ("/var/www/html", "apache2.service", "a2enconf", "/etc/apache2/"):
        assert not [path for path, text in own.items() if word in path or word in text], word
    assert own.keys() - usual.keys() == {
        *(f"/etc/apache2-bootstrap/{name}" for name in ("apache2.conf", "bootstrap.conf")),
        "/etc/apache2-bootstrap/envvars",
        "/etc/systemd/system/apache2@bootstrap.service.d/bootstrap.conf",
    }


def test_the_clusters_own_apache_starts_after_bootup_with_the_limit_of_the_usual_one() -> None:
    usual, own = texts(80), texts(8001)
    units = "/etc/systemd/system"
    dropin = own[f"{units}/apache2@bootstrap.service.d/bootstrap.conf"]
    assert dropin == usual[f"{units}/apache2.service.d/bootstrap.conf"]
    assert "\nBefore=apache2@bootstrap.service " in own[f"{units}/bootup.service"]
    limit = usual["/etc/apache2/conf-available/bootstrap.conf"]
    assert own["/etc/apache2-bootstrap/bootstrap.conf"] == limit
    told = own["/etc/apache2-bootstrap/apache2.conf"].splitlines()
    assert [line for line in told if "Listen" in line] == ["Listen 8001"]
    assert told[-1] == "Include bootstrap.conf"


def test_the_agent_reads_settings_nodes_and_key_as_they_are_written(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"peer_address": "private", "scheduled_events": False}
    found = files(document(period_seconds=15, look_seconds=5, pause_seconds=7, **changes))
    for name in ("loader.conf", "cluster.key", "nodes_info.json"):
        (tmp_path / name).write_text(found[f"/etc/bootstrap/{name}"]["content"])
    settings = loader.read_settings(tmp_path / "loader.conf")
    assert settings.times == loader.timing(15, 5, 7)
    assert (settings.peer_address, settings.scheduled_events) == ("private", False)
    assert settings.bootstrap_url == "http://203.0.113.10/bootstrap"
    assert loader.read_key(tmp_path / "cluster.key") == bytes.fromhex(KEY)
    read = loader.parse_nodes_info((tmp_path / "nodes_info.json").read_text())
    assert list(read.items()) == list(NODES.items())


def test_what_is_said_of_a_service_is_read_by_the_agent_and_the_usual_is_not_said(
    tmp_path: Path, run: Run
) -> None:
    told = {"start_seconds": 90, "stop_seconds": 30, "health_seconds": 8, "unhealthy": "stop"}
    words = [w for name, v in told.items() for w in (f"--{name.replace('_', '-')}", str(v))]
    code, printed, _ = run("user-data", "node1", *words, "--unhealthy-after", "3")
    conf = files(printed)["/etc/bootstrap/loader.conf"]["content"]
    (tmp_path / "loader.conf").write_text(conf)
    read = loader.read_settings(tmp_path / "loader.conf")
    assert (code, {name: getattr(read, name) for name in told}) == (0, told)
    assert "unhealthy_after" not in conf
    usual = files(document())["/etc/bootstrap/loader.conf"]["content"]
    assert [name for name in SERVICE if name in usual] == []


def test_the_shell_reads_how_long_a_service_may_take_as_it_is_written(run: Run) -> None:
    (line,) = [line for line in STOP_SCRIPT.splitlines() if line.startswith("seconds=")]
    command = ["sh", "-c", line.replace("/etc/bootstrap/loader.conf", "-") + '; echo "$seconds"']
    for seconds, read in (("10", ""), ("7", "7"), ("60", "60")):
        _, printed, _ = run("user-data", "node1", "--stop-seconds", seconds)
        conf = files(printed)["/etc/bootstrap/loader.conf"]["content"]
        ran = subprocess.run(command, input=conf, capture_output=True, text=True, check=True)
        assert ran.stdout == f"{read}\n"


@pytest.mark.parametrize("size", [1000, 60_000])
def test_the_applications_files_are_in_the_document_or_it_is_said_where_nodes_fetch_them(
    size: int, tmp_path: Path, run: Run
) -> None:
    script, more = tmp_path / "setup.sh", tmp_path / "more"
    script.write_text("#!/bin/sh\n")
    more.write_text("x" * size)
    code, printed, said = run("user-data", "node1", "--setup", str(script), "--setup", str(more))
    found = files(printed)
    digest = hashlib.sha256(more.read_bytes()).hexdigest()
    assert code == 0
    assert f"{digest}  more\n" in found["/etc/bootstrap/setup.sha256"]["content"]
    where = f"http://203.0.113.10/bootstrap/setup/{digest}/more"
    assert ("/etc/bootstrap/setup/more" in found) == (where not in said) == (size == 1000)


def test_the_period_of_the_units_is_the_period_of_the_agent() -> None:
    found = files(document(period_seconds=2))
    timer = found["/etc/systemd/system/loader.timer.d/period.conf"]["content"]
    assert timer == "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/2\n"
    service = found["/etc/systemd/system/loader.service.d/period.conf"]["content"]
    assert service == "[Unit]\nStartLimitIntervalSec=1.8\n[Service]\nRuntimeMaxSec=2\n"


@pytest.mark.parametrize(
    ("options", "period", "look", "pause"),
    [
        ([], 20, 2, 5),
        (["--period-seconds", "15"], 15, 3, 5),
        (["--period-seconds", "5"], 5, 5, 5),
        (["--period-seconds", "10", "--look-seconds", "5"], 10, 5, 5),
        (["--look-seconds", "20"], 20, 20, 5),
        (["--pause-seconds", "0"], 20, 2, 0),
    ],
)
def test_a_nodes_settings_name_period_looks_and_pauses_whatever_was_asked_for(
    options: list[str], period: int, look: int, pause: int, run: Run
) -> None:
    code, printed, _ = run("user-data", "node1", *options)
    conf = files(printed)["/etc/bootstrap/loader.conf"]["content"]
    assert code == 0
    times = f"period_seconds = {period}\nlook_seconds = {look}\npause_seconds = {pause}\n"
    assert conf.startswith(f"[loader]\n{times}")


@pytest.mark.parametrize(
    ("options", "heeded"), [([], "true"), (["--scheduled-events", "false"], "false")]
)
def test_a_nodes_settings_say_whether_it_heeds_what_azure_announces(
    options: list[str], heeded: str, run: Run
) -> None:
    code, printed, _ = run("user-data", "node1", *options)
    conf = files(printed)["/etc/bootstrap/loader.conf"]["content"]
    assert (code, conf.splitlines()[-1]) == (0, f"scheduled_events = {heeded}")


@pytest.mark.parametrize("nodes", [3, 101])
def test_the_document_is_smaller_than_40_kb(nodes: int) -> None:
    entry = NODES["node1"]
    many = {
        f"node{i}": entry | {"public_ip": f"198.51.100.{i}", "private_ip": f"10.0.0.{i}"}
        for i in range(1, nodes + 1)
    }
    size = len(document(nodes_info=many, cluster_port=8001).encode())  # the larger one
    # Azure takes 64 KB of custom data in Base64.
    assert size < 40 * 1024 or nodes == 101


def test_the_first_boot_script_is_right_shell_and_its_python_compiles() -> None:
    script = files(document())["/etc/bootstrap/install.sh"]["content"]
    for text in (script, (CHECKOUT / "agent" / "install.sh").read_text()):
        checked = subprocess.run(
            ["sh", "-n"], input=text, capture_output=True, text=True, timeout=10, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")
    compile(script.partition("<<'END'\n")[2].partition("END\n")[0], "install.sh", "exec")


def test_no_value_is_left_to_be_filled_in() -> None:
    for path, file in files(document()).items():
        assert not re.search("@[A-Z]+@", file["content"]), path


def test_the_document_is_the_same_every_time() -> None:
    assert document() == document()


def test_every_node_gets_the_same_document_but_for_its_name() -> None:
    first, second = document("node1"), document("node2")
    unlike = [
        path
        for path, file in files(first).items()
        if file["content"] != files(second)[path]["content"]
    ]
    assert unlike == ["/etc/bootstrap/index.html"]


def test_the_verb_prints_the_document_and_nothing_else(
    run: Run, home: Path, tmp_path: Path
) -> None:
    key = tmp_path / "cluster.key"
    key.write_text(KEY + "\n")
    mine = home / ".ssh" / "id_ed25519"  # named: a lab that is up here has one of its own
    code, out, err = run("user-data", "node1", "--cluster-key", str(key), "--key", str(mine))
    signers = signers_text([public_key(mine)])
    assert (code, out, err) == (0, document(allowed_signers=signers), "")


def test_without_a_key_the_verb_makes_a_new_one_and_says_so(run: Run) -> None:
    keys = []
    for _ in range(2):
        code, out, err = run("user-data", "node1")
        keys.append(files(out)["/etc/bootstrap/cluster.key"]["content"].strip())
        assert (code, err.startswith("user-data: made a new cluster key")) == (0, True)
    assert keys[0] != keys[1]
    assert {len(bytes.fromhex(key)) for key in keys} == {32}


def test_the_version_is_the_agents_and_a_literal_that_a_build_reads_without_running_it(
    run: Run,
) -> None:
    assert run("--version") == (0, f"{loader.__version__}\n", "")
    told = (CHECKOUT / "pyproject.toml").read_text()
    assert 'version = { attr = "agent.loader.__version__" }' in told
    code = (CHECKOUT / "agent" / "loader.py").read_text()
    assert re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', code, re.M) == [loader.__version__]


REFUSED = {
    "a period that is no divisor": (
        ["user-data", "node1", "--period-seconds", "7"],
        "deploy: period_seconds = 7: use a divisor of 60 between 2 and 60.",
    ),
    "a period of nothing": (
        ["user-data", "node1", "--period-seconds", "0"],
        "deploy: period_seconds = 0: use a divisor of 60 between 2 and 60.",
    ),
    "looks that do not divide the period": (
        ["user-data", "node1", "--look-seconds", "3"],
        "deploy: look_seconds = 3: use a divisor of period_seconds = 20, 2 or more.",
    ),
    "looks of nothing": (
        ["user-data", "node1", "--look-seconds", "0"],
        "deploy: look_seconds = 0: use a divisor of period_seconds = 20, 2 or more.",
    ),
    "looks that are further apart than runs": (
        ["user-data", "node1", "--period-seconds", "10", "--look-seconds", "20"],
        "deploy: look_seconds = 20: use a divisor of period_seconds = 10, 2 or more.",
    ),
    "a plan with looks that do not divide the period": (
        ["plan", "--period-seconds", "15", "--look-seconds", "2"],
        "deploy: look_seconds = 2: use a divisor of period_seconds = 15, 2 or more.",
    ),
    "pauses of more than a minute": (
        ["user-data", "node1", "--pause-seconds", "61"],
        "deploy: pause_seconds = 61: use 0 to 60.",
    ),
    "a plan with pauses of less than nothing": (
        ["plan", "--pause-seconds", "-1"],
        "deploy: pause_seconds = -1: use 0 to 60.",
    ),
    "a service that may take more than a minute to stop": (
        ["user-data", "node1", "--stop-seconds", "61"],
        "deploy: stop_seconds = 61: use a number from 1 to 60.",
    ),
    "pauses of 1 with 400 zeros": (
        ["user-data", "node1", "--pause-seconds", f"1{'0' * 400}"],
        "deploy: period_seconds, look_seconds or pause_seconds is too long a number: use 60 at",
    ),
    "a plan with a period of 1 with 400 zeros": (
        ["plan", "--period-seconds", f"1{'0' * 400}"],
        "deploy: period_seconds, look_seconds or pause_seconds is too long a number: use 60 at",
    ),
    "an application with a name that no file has": (
        ["user-data", "node1", "--setup", "a\0b"],
        "deploy: 'a\\x00b': no file has a name with a NUL in it: leave that out.",
    ),
    "a key with a name that no file has": (
        ["user-data", "node1", "--key", "~a\0b"],
        "deploy: '~a\\x00b': no file has a name with a NUL in it: leave that out.",
    ),
    "an application that is not there": (
        ["user-data", "node1", "--setup", "/nowhere/setup.sh"],
        "deploy: setup: /nowhere/setup.sh: No such file or directory: name a file that is there.",
    ),
    "a cluster's port that is sshd's": (
        ["user-data", "node1", "--cluster-port", "22"],
        "deploy: cluster_port = 22: use a number from 1 to 65534, but none of 19, 21, 22,",
    ),
    "a node that is not there": (
        ["user-data", "node9"],
        "deploy: 'node9' is not in nodes_info.json: it names node1, node2, node3.",
    ),
    "a file that is not there": (
        ["user-data", "node1", "--nodes-info", "/nowhere/nodes.json"],
        "deploy: /nowhere/nodes.json: can't be read: ",
    ),
    "a file that is no list of nodes": (
        ["user-data", "node1", "--nodes-info", str(CHECKOUT / "LICENSE")],
        f"deploy: {CHECKOUT / 'LICENSE'}: not JSON: ",
    ),
    "a key that is not there": (
        ["user-data", "node1", "--cluster-key", "/nowhere/key"],
        "deploy: /nowhere/key: No such file or directory: put the cluster's key there",
    ),
    "a key that is none": (
        ["user-data", "node1", "--cluster-key", str(CHECKOUT / "nodes_info.json")],
        f"deploy: {CHECKOUT / 'nodes_info.json'}: not a key: use 64 hexadecimal digits.",
    ),
    "a folder that can't be made": (
        ["publish", "--to", "/dev/null/site"],
        "deploy: /dev/null/site",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_sentence_with_code_2(
    run: Run, words: list[str], sentence: str
) -> None:
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(sentence)


# ------------------------------------------------ the release


def test_the_labs_copy_of_the_document_is_for_root_alone_also_where_it_was_not(
    tmp_path: Path,
) -> None:
    document = tmp_path / "user-data"
    document.write_text("of a lab before")
    document.chmod(0o644)
    write_seed(tmp_path, "node1", "#cloud-config\n")
    assert stat.S_IMODE(document.stat().st_mode) == 0o600
    assert document.read_text() == "#cloud-config\n"


def test_a_release_that_is_published_is_one_that_an_agent_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    assert run("publish", "--to", str(tmp_path))[0] == 0
    site = tmp_path / "bootstrap"
    with open_world(tmp_path / "node", monkeypatch, period=20, look=2) as world:
        world.settings(pause_seconds=5)
        for path in (world.paths.signers, world.paths.cluster):
            path.unlink()  # as on a node from before releases
        world.paths.loader.write_bytes((site / "loader.py").read_bytes())
        for path in site.rglob("*.*"):
            world.site(str(path.relative_to(site)), Page(path.read_bytes()))
        until = time.monotonic() + 10
        loader.take_release(loader.new_session(), world.web_site, 0, world.paths, until)
        kept = loader.read_kept(world.paths)
        assert (kept.generation, list(kept.held.nodes)) == (1, list(NODES))  # type: ignore[union-attr]
