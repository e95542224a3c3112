"""Settings: a small file, options that win over it, and the plan that they describe."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.loader import BadInput, timing, worst_failover_seconds
from agent.loader import read_settings as agent_settings
from deploy import Refusal
from deploy.checkout import CHECKOUT
from deploy.plan import plan_of
from deploy.ports import url_of
from deploy.settings import Settings, read_settings, settings_of, ssh_public_key
from deploy.verbs import plan_command


def plan_json(*options: str) -> Any:
    result = CliRunner().invoke(plan_command, ["--json", *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_an_option_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('region = "northeurope"\nnodes = 5\n')
    settings = settings_of(file, {"nodes": 7, "region": None, "http_from": ()})
    assert (settings.nodes, settings.region, settings.http_from) == (
        7,
        "northeurope",
        ("Internet",),
    )


def plan_in_words(*options: str) -> str:
    result = CliRunner().invoke(plan_command, [*options])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("text", "options", "period", "look"),
    [
        ("", [], 20, 2),
        ("period_seconds = 15", [], 15, 3),
        ("", ["--period-seconds", "5"], 5, 5),
        ("look_seconds = 20", [], 20, 20),
        ("look_seconds = 4", ["--look-seconds", "5"], 20, 5),
        ("look_seconds = 5", ["--period-seconds", "15"], 15, 5),
    ],
)
def test_who_says_nothing_of_looks_gets_2_s_or_what_divides_an_odd_period(
    tmp_path: Path, text: str, options: list[str], period: int, look: int
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text + "\n")
    plan = plan_json("--config", str(file), *options)
    assert (plan["period_seconds"], plan["look_seconds"]) == (period, look)


def test_the_plan_says_how_often_a_node_looks_and_what_failover_takes_then() -> None:
    for look in (2, 20):
        said = plan_in_words("--look-seconds", str(look))
        assert f"public address every {look} s, in runs of the agent that begin every 20 s." in said
        longest_seconds = worst_failover_seconds(timing(20, look, 5))
        assert f"Worst-case failover {longest_seconds:.1f} s," in said


@pytest.mark.parametrize(
    ("text", "options", "heeded"),
    [
        ("", [], True),
        ("scheduled_events = false", [], False),
        ("", ["--scheduled-events", "false"], False),
        ("scheduled_events = false", ["--scheduled-events", "true"], True),
    ],
)
def test_what_azure_announces_is_heeded_unless_file_or_option_say_otherwise(
    tmp_path: Path, text: str, options: list[str], heeded: bool
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text + "\n")
    words = ("--config", str(file), *options)
    assert plan_json(*words)["scheduled_events"] is heeded
    said = plan_in_words(*words)
    assert f"They {'heed' if heeded else 'do not heed'} Azure's scheduled events." in said


@pytest.mark.parametrize(
    ("text", "options", "pause"),
    [
        ("", [], 5),
        ("pause_seconds = 0", [], 0),
        ("pause_seconds = 30", ["--pause-seconds", "8"], 8),
        ("", ["--pause-seconds", "0"], 0),
    ],
)
def test_the_plan_says_which_pauses_are_absorbed_and_how_much_longer_failover_takes_for_it(
    tmp_path: Path, text: str, options: list[str], pause: int
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text + "\n")
    words = ["--config", str(file), *options]
    said, longest_seconds = plan_in_words(*words), worst_failover_seconds(timing(20, 2, pause))
    serving_seconds = worst_failover_seconds(timing(20, 2, pause, 10))
    assert f"Pauses of a machine are absorbed up to {pause} s." in said
    assert f"stops within 10 s, it begins to start within {serving_seconds:.1f} s," in said
    assert f"Worst-case failover {longest_seconds:.1f} s," in said
    assert plan_json(*words)["pause_seconds"] == pause


def test_the_plan_says_what_a_service_may_take_and_how_much_longer_failover_takes_for_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(
        "start_seconds = 300\nstop_seconds = 30\nhealth_seconds = 7\nunhealthy_after = 4\n"
        'healthy_after = 1\nunhealthy = "stop"\n'
    )
    words = ["--config", str(file), "--stop-seconds", "45"]
    assert plan_json(*words)["service"] == {
        **{"start_seconds": 300, "stop_seconds": 45, "health_seconds": 7},
        **{"unhealthy_after": 4, "healthy_after": 1, "unhealthy": "stop"},
    }
    said = plan_in_words(*words)
    serving_seconds = worst_failover_seconds(timing(20, 2, 5, 45))
    assert (
        f"With a service in active.target that stops within 45 s, it begins to start within"
        f" {serving_seconds:.1f} s, and may take 300 s."
    ) in said
    assert "A health check ends within 7 s; a node is unhealthy after 4 failed rounds" in said
    assert "well after 1 good ones; an active one for which nobody else could serve stops." in said


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("start_seconds", "3601", "use a number from 1 to 3600."),
        ("stop_seconds", "0", "use a number from 1 to 60."),
        ("stop_seconds", "61", "use a number from 1 to 60."),
        ("health_seconds", "-1", "use a number from 1 to 60."),
        ("unhealthy_after", "101", "use a number from 1 to 100."),
        ("healthy_after", "0", "use a number from 1 to 100."),
        ("unhealthy", "rest", "use stay or stop."),
    ],
)
def test_what_a_node_would_refuse_of_a_service_is_refused_in_its_words(
    tmp_path: Path, name: str, value: str, right: str
) -> None:
    file, conf = tmp_path / "cluster.toml", tmp_path / "loader.conf"
    file.write_text(f"{name} = {value if name != 'unhealthy' else repr(value)}\n")
    conf.write_text(f"[loader]\n{name} = {value}\n")
    with pytest.raises(Refusal) as refused:
        plan_of(settings_of(file, {}))
    assert str(refused.value) == f"{name} = {value}: {right}"
    with pytest.raises(BadInput, match=re.escape(str(refused.value))):
        agent_settings(conf)


def test_a_file_with_looks_that_its_period_has_no_whole_number_of_is_refused(
    tmp_path: Path,
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text("look_seconds = 3\n")
    with pytest.raises(Refusal, match="look_seconds = 3: use a divisor of period_seconds = 20"):
        plan_of(settings_of(file, {}))


def test_one_range_needs_no_list_around_it(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('http_from = "203.0.113.0/24"\nssh_from = ["192.0.2.1/32", "192.0.2.2/32"]\n')
    settings = read_settings(file)
    assert settings == {
        "http_from": ("203.0.113.0/24",),
        "ssh_from": ("192.0.2.1/32", "192.0.2.2/32"),
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nodes 3", "not TOML"),
        ("nodes = true", "nodes = True: use a whole number"),
        ("look_seconds = 2.5", "look_seconds = 2.5: use a whole number"),
        ("scheduled_events = 0", "scheduled_events = 0: use true or false"),
        ('pause_seconds = "5"', "pause_seconds = '5': use a whole number"),
        ("region = 1", 'region = 1: use text in "quotes"'),
        ("ports = 443", 'ports = 443: use a list like \\["443", "udp/5060"\\]'),
        ("ports = [443]", "ports = \\[443\\]: use a list like"),
        ("setup = true", 'setup = True: use a list like \\["setup.sh", "service.tar"\\]'),
        ('idle_minutes = "4"', "idle_minutes = '4': use a whole number"),
        ("tcp_reset = 1", "tcp_reset = 1: use true or false"),
        ('stop_seconds = "10"', "stop_seconds = '10': use a whole number"),
        ("unhealthy = true", 'unhealthy = True: use text in "quotes"'),
        ("frontend = false", 'frontend = False: use text in "quotes"'),
        ("nodes = 1000000000", "nodes is too long a number: use one of 9 digits at most"),
        (f"pause_seconds = -1{'0' * 400}", "pause_seconds is too long a number: use one of 9"),
        (f"start_seconds = 1{'0' * 5000}", "too long( a number)?: use one of 9"),
        (f"stop_seconds = 0x1{'0' * 5000}", "stop_seconds is too long a number: use one of 9"),
        (f"ports = [0x1{'0' * 5000}]", "a number in it is too long: use one of 9 digits at most"),
        ("http_from = []", 'use a list like \\["203.0.113.0/24"\\]'),
        ('peer = "public"', "unknown setting 'peer'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    with pytest.raises(Refusal, match=sentence):
        read_settings(file)


SERVICES = {
    "ports that are none": ('ports = ["443", "ssl"]', "ports: 'ssl' is no port: use a number"),
    "a port of nothing": ('ports = "0"', "ports: '0' is no port: use a number from 1 to 65534"),
    "a port too many": ('ports = "65535"', "ports: '65535' is no port"),
    "ports of a protocol that is none": ('ports = "sctp/5060"', "'sctp/5060' is no port"),
    "a port twice": (
        'ports = ["443", "tcp/443"]',
        "443, tcp/443: use each port of a protocol once",
    ),
    "more ports than Azure has rules for": (
        f"ports = {[str(number) for number in range(10_000, 10_300)]}",
        "ports: 300 of them, and Azure forwards 299 at most: use fewer, or all with frontend",
    ),
    "every port of a public one": ('ports = "all"', "name the ports, or use all with frontend ="),
    "every port and one more": (
        'ports = ["all", "443"]\nfrontend = "internal"',
        "ports = all, 443: use all alone, or the ports without it",
    ),
    "a front end that is none": ('frontend = "both"', "frontend = both: use public or internal"),
    "an internal one for everybody": (
        'frontend = "internal"\nhttp_from = "Internet"',
        "http_from = Internet: nobody out there reaches an internal load balancer",
    ),
    "less idleness than Azure has": ("idle_minutes = 3", "idle_minutes = 3: use 4 to 100"),
    "more idleness than Azure has": ("idle_minutes = 101", "idle_minutes = 101: use 4 to 100"),
    "a cluster's port that is none": ("cluster_port = 65535", "cluster_port = 65535: use a number"),
    "a cluster's port that is sshd's": ("cluster_port = 22", "cluster_port = 22: use a number"),
    "a cluster's port that Azure never probes": ("cluster_port = 993", "none of 19, 21, 22, 25"),
    "a cluster's port that is the application's": (
        'cluster_port = 8080\nports = ["443", "8080"]',
        "cluster_port = 8080: it is among ports, for the application: use another one",
    ),
    "a subnet without an id": ('subnet = "web"', "subnet = web: use the resource id of a subnet"),
    "more nodes than an internal one leaves room for": (
        'frontend = "internal"\nnodes = 251',
        "251 nodes: the network 10.0.0.0/24 has no room for so many",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), SERVICES.values(), ids=SERVICES)
def test_what_does_not_fit_together_is_refused_in_one_sentence_with_code_2(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "plan", "--config", str(file)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("text", "ports", "url"),
    [
        ("", ["80"], "http://192.0.2.1"),
        ('ports = ["443", "80"]', ["443", "80"], "http://192.0.2.1"),
        ('ports = "443"', ["443"], "tcp://192.0.2.1:443"),
        ('ports = ["udp/53", "tcp/53"]', ["udp/53", "53"], "tcp://192.0.2.1:53"),
        ('ports = ["udp/53", "udp/54"]', ["udp/53", "udp/54"], "udp://192.0.2.1:53"),
        ("cluster_port = 8080", ["80"], "tcp://192.0.2.1:80"),
        ('ports = "all"\nfrontend = "internal"', ["all"], "http://192.0.2.1"),
        (
            'ports = "all"\nfrontend = "internal"\ncluster_port = 8080',
            ["all"],
            "http://192.0.2.1:8080",
        ),
    ],
)
def test_a_load_balancer_is_asked_where_a_nodes_own_server_is_behind_it_or_else_an_application(
    tmp_path: Path, text: str, ports: list[str], url: str
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text + "\n")
    plan = plan_of(settings_of(file, {}))
    assert [str(port) for port in plan.ports] == ports
    assert url_of("192.0.2.1", plan.ports, plan.probe.port) == url


def test_the_plan_says_what_is_forwarded_where_and_what_each_node_runs() -> None:
    said = plan_in_words("--ports", "443", "--ports", "udp/5060", "--frontend", "internal")
    assert "internal load balancer for 443, udp/5060, idle 4 min at most, probe" in said
    assert "Each node runs" not in said
    said = plan_in_words("--cluster-port", "8080", "--setup", "a/setup.sh", "--setup", "app.tar")
    assert "load balancer for 80, idle 4 min at most, probe /probe.html at port 8080" in said
    assert "Each node runs setup.sh once." in said


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="No such file or directory"):
        settings_of(tmp_path / "none.toml", {})


def test_the_plan_needs_no_credentials_and_has_a_smaller_witness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.toml").write_text('witness_size = "Standard_B2ats_v2"\n')
    sizes = [node["size"] for node in plan_json("--nodes", "5")["nodes"]]
    assert sizes == ["Standard_B2als_v2"] * 4 + ["Standard_B2ats_v2"]


def test_the_operators_own_address_is_asked_for_only_by_azure() -> None:
    ssh = [rule for rule in plan_of(Settings()).firewall if rule.port == 22]
    assert [rule.source for rule in ssh] == ["https://api.ipify.org"]


def a_key(kind: str, *numbers: bytes) -> str:
    parts = [kind.encode(), *numbers]
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return base64.b64encode(blob).decode()


RSA = a_key("ssh-rsa", b"\1\0\1", b"\0" + b"\xaa" * 256)


def test_the_first_key_of_the_home_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa.pub").write_text(f"ssh-rsa {RSA} me\n")
    assert ssh_public_key(Settings()) == f"ssh-rsa {RSA} me"


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("ssh-rsa AAAA me", "damaged, its second word is not the base64 of a key"),
        (f"ssh-rsa {RSA[:-30]} me", "damaged, its second word is not the base64 of a key"),
        (f"ssh-rsa {RSA[:40]}*{RSA[40:]}", "damaged, its second word is not the base64 of a key"),
        (f"ssh-ed25519 {RSA}", "it says ssh-ed25519, but holds 'ssh-rsa'"),
        (
            f"ssh-rsa {a_key('ecdsa-sha2-nistp256', b'nistp256', b'x')}",
            "holds 'ecdsa-sha2-nistp256",
        ),
        (f"ssh-rsa {a_key('ssh-rsa', b'3', b'x' * 128)}", "RSA of 1023 bits: use 2048 or more"),
        (f"ssh-ed25519 {a_key('ssh-ed25519', b'x' * 31)}", "a part of it is missing"),
        (f"ssh-rsa {a_key('ssh-rsa', b'3')}", "a part of it is missing"),
    ],
)
def test_a_key_that_azure_would_refuse_is_refused(tmp_path: Path, key: str, sentence: str) -> None:
    file = tmp_path / "id.pub"
    file.write_text(key + "\n")
    with pytest.raises(Refusal, match=sentence):
        ssh_public_key(Settings(ssh_key=str(file)))


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_keys_as_ssh_keygen_makes_them_are_taken(tmp_path: Path) -> None:
    for kind in ("ed25519", "rsa"):
        file = tmp_path / kind
        made = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)]
        subprocess.run(made, check=True, timeout=60)
        text = file.with_suffix(".pub").read_text().strip()
        assert ssh_public_key(Settings(ssh_key=f"{file}.pub")) == text
