"""The operator's computer, as it may be: each verb does its work, or says in a sentence why not."""

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.azure.state import State, state_of_cluster
from deploy.checkout import part
from deploy.nodes_info import read_nodes_info
from deploy.signing import public_key, signers_text
from deploy.userdata import user_data

CHECKOUT = Path(__file__).parents[2]
WINDOWS = {
    "PYTHONPATH": f"{CHECKOUT / 'tests' / 'deploy' / 'without_linux'}{os.pathsep}{CHECKOUT}",
    "PYTHONWARNDEFAULTENCODING": "1",
}
KEY = "5e" * 32
NODES = read_nodes_info(CHECKOUT / "nodes_info.json")

Ran = subprocess.CompletedProcess[bytes]


@pytest.fixture(autouse=True)
def home(home_with_key: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whoever publishes has an SSH key."""
    monkeypatch.setenv("HOME", str(home_with_key))
    return home_with_key


def deploy(
    *words: str, prepare: str = "", then: str = "", env: Mapping[str, str | None] | None = None
) -> Ran:
    """`python -m deploy` in a shell that first does `prepare`; `then` are its redirections."""
    changed = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(env or {})}
    command = f'{prepare or ":"}; "$@" {then}'
    return subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "deploy", *words],
        cwd=CHECKOUT,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        timeout=60,
        check=False,
    )


def assert_one_sentence(ran: Ran, *words: str) -> None:
    said = ran.stderr.decode()
    assert ran.returncode == 2, said
    assert said.startswith("deploy: "), said
    assert said.count("\n") == 1, said
    for word in words:
        assert word in said


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """The state folder of a cluster whose nodes refuse connections."""
    nodes = {
        name: entry | {"public_ip": f"127.0.9.{i}"}
        for i, (name, entry) in enumerate(NODES.items(), 1)
    }
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "nodes_info.json").write_text(json.dumps(nodes))
    (folder / "endpoints.json").write_text(json.dumps({"load_balancer": "http://127.0.9.9:1"}))
    return folder


# ------------------------------------------------ a computer without Linux


def test_where_there_is_no_linux_the_lab_says_in_one_sentence_that_it_needs_it() -> None:
    for verb in ("up", "down", "logs"):
        assert_one_sentence(
            deploy("lab", verb, *["node1"] * (verb == "logs"), env=WINDOWS), "needs Linux"
        )


def test_where_there_is_no_linux_a_plan_is_printed() -> None:
    assert deploy("plan", "--json", env=WINDOWS).stdout == deploy("plan", "--json").stdout
    table = deploy("plan", env=WINDOWS)
    assert (table.returncode, table.stderr) == (0, b"")


def test_where_there_is_no_linux_a_node_gets_the_same_first_boot_document(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(KEY)
    mine = home / ".ssh" / "id_ed25519"  # named: a lab that is up here has one of its own
    words = ("--cluster-key", str(tmp_path / "key"), "--key", str(mine))
    ran = deploy("user-data", "node1", *words, env=WINDOWS)
    document = user_data(
        "node1",
        NODES,
        bootstrap_url="http://203.0.113.10/bootstrap",
        cluster_key=KEY,
        period_seconds=20,
        look_seconds=2,
        pause_seconds=5,
        peer_address="public",
        scheduled_events=True,
        cluster_port=80,
        cluster="lab",
        allowed_signers=signers_text([public_key(mine)]),
        setup={},
        service={},
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == document.encode()


def test_where_there_is_no_linux_the_same_release_is_published(tmp_path: Path) -> None:
    ran = deploy("publish", "--to", str(tmp_path / "there"), env=WINDOWS)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert_published(tmp_path / "there")


def test_where_there_is_no_linux_status_and_watch_look(silent: Path) -> None:
    ran = deploy("status", "--cluster", str(silent), env=WINDOWS)
    assert (ran.returncode, ran.stderr) == (3, b"")
    assert b"0 of 3 nodes report their role" in ran.stdout
    ran = deploy("watch", "--seconds", "1", "--cluster", str(silent), env=WINDOWS)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"node3: unknown: refuses connections" in ran.stdout


def test_where_there_is_no_linux_a_cluster_is_made_published_to_and_removed(operator: Any) -> None:
    operator.environment |= WINDOWS
    for verb, code in (("plan", 3), ("up", 0), ("plan", 0)):
        done = operator.execute(verb, *["--yes"] * (verb == "up"))
        assert done.code == code, done.output
    done = operator.deploy("publish", "--cluster", str(operator.state))
    assert done.code == 0, done.output
    done = operator.execute("down", "--yes")
    assert done.code == 0, done.output


def test_on_windows_the_state_folder_is_where_windows_keeps_such_things(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    folder = state_of_cluster("one").folder
    assert folder == tmp_path / "azure-active-passive-cluster" / "one"


def text_calls(tree: ast.AST) -> list[ast.Call]:
    """Every call that reads or writes a text file."""

    def is_binary(call: ast.Call) -> bool:
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
        return any("b" in str(mode) for mode in modes)

    return [
        call
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute | ast.Name)
        and getattr(call.func, "attr", getattr(call.func, "id", ""))
        in ("read_text", "write_text", "open", "fdopen")
        and not (isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "os.open")
        and not is_binary(call)
    ]


def test_no_text_is_read_or_written_in_the_encoding_of_this_computer() -> None:
    found = []
    for path in sorted(CHECKOUT.glob("deploy/**/*.py")):
        calls = text_calls(ast.parse(path.read_text(encoding="utf-8")))
        found += [
            f"{path.relative_to(CHECKOUT)}:{call.lineno}"
            for call in calls
            if "encoding" not in [keyword.arg for keyword in call.keywords]
        ]
    assert found == []


# ------------------------------------------------ a checkout with Windows line ends


def test_git_gives_every_file_the_line_ends_of_linux(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*words: str) -> None:
        config = ["-c", "core.autocrlf=true", "-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", *config, *words], cwd=tmp_path, check=True, capture_output=True, timeout=20
        )

    git("init", "--quiet")
    for name in (".gitattributes", "deploy/try.sh", "systemd/loader.timer", "agent/loader.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    git("add", "--all")
    git("commit", "--quiet", "--message=all")
    for folder in ("deploy", "systemd", "agent"):
        shutil.rmtree(tmp_path / folder)
    git("checkout", "--", ".")
    for name in ("deploy/try.sh", "systemd/loader.timer", "agent/loader.py"):
        assert b"\r" not in (tmp_path / name).read_bytes()


def test_a_checkout_with_windows_line_ends_gives_nodes_none(tmp_path: Path) -> None:
    there = tmp_path / "checkout"
    for folder in ("agent", "deploy", "systemd"):
        shutil.copytree(CHECKOUT / folder, there / folder, ignore=shutil.ignore_patterns("__py*"))
    shutil.copy(CHECKOUT / "nodes_info.json", there)
    for path in filter(Path.is_file, there.rglob("*")):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "key").write_text(KEY)
    words = ("user-data", "node2", "--cluster-key", str(tmp_path / "key"))
    env = {"PYTHONPATH": str(there), "PYTHONDONTWRITEBYTECODE": "1"}
    prepare = f"cd {there}"
    ran = deploy(*words, env=env, prepare=prepare)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == deploy(*words).stdout
    ran = deploy("publish", "--to", str(tmp_path / "site"), env=env, prepare=prepare)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert_published(tmp_path / "site")


def assert_published(folder: Path) -> None:
    """A whole first release with the agent and the nodes of this checkout is there."""
    site = folder / "bootstrap"
    told = json.loads((site / "release.json").read_bytes())
    digest = told["files"]["loader.py"]["sha256"]
    found = {str(path.relative_to(site)) for path in site.rglob("[!.]*") if path.is_file()}
    beside = {"release.json", "release.json.sig"}
    names = {f"releases/1/{name}" for name in beside} | {f"releases/{digest}/loader.py"}
    assert found == {*names, *beside, "loader.py", "nodes_info.json"}
    agent = part("agent/loader.py").encode()
    assert (site / f"releases/{digest}/loader.py").read_bytes() == agent
    assert (site / "loader.py").read_bytes() == agent
    assert list(told["nodes"]) == list(NODES)


# ------------------------------------------------ a strict umask


@pytest.mark.parametrize("umask", ["022", "027", "077", "777"])
def test_whatever_the_umask_a_web_server_can_read_what_is_published(
    umask: str, tmp_path: Path
) -> None:
    site = tmp_path / "srv" / "site"
    ran = deploy("publish", "--to", str(site), prepare=f"umask {umask}")
    assert ran.returncode == 0, ran.stderr
    for path in [tmp_path / "srv", site, *site.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path


# ------------------------------------------------ what the computer refuses

WITHOUT_RIGHTS = "setpriv --bounding-set=-all --inh-caps=-all"
"""Root has the rights of a user then: those of the file's owner."""


def in_its_own_mounts(mount: str) -> str:
    """Prepares a verb to run with something mounted at /mnt, for itself alone."""
    try:
        subprocess.run(
            ["unshare", "--map-root-user", "--mount", "true"],
            check=True, capture_output=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this user may not mount anything, not even for itself")
    inside = f'mount -t tmpfs {mount} none /mnt && exec "$@"'
    return f"set -- unshare --map-root-user --mount sh -c '{inside}' sh \"$@\""


@pytest.mark.parametrize(
    ("mount", "says"),
    [
        ("-o ro", "Read-only file system"),
        ("-o size=4k", "No space left on device"),
    ],
)
def test_a_disk_that_takes_nothing_is_named(mount: str, says: str) -> None:
    prepare = in_its_own_mounts(mount)
    ran = deploy("publish", "--to", "/mnt/site", prepare=prepare)
    assert_one_sentence(ran, "/mnt/site", says)
    assert b"Traceback" not in ran.stderr


def test_a_state_folder_without_permission_is_named(silent: Path) -> None:
    silent.chmod(0)
    prepare = f'set -- {WITHOUT_RIGHTS} "$@"'
    ran = deploy("status", "--cluster", str(silent), prepare=prepare)
    silent.chmod(0o700)
    assert_one_sentence(ran, str(silent), "Permission denied")


def test_a_folder_where_a_file_should_be_is_named(silent: Path, tmp_path: Path) -> None:
    (silent / "endpoints.json").unlink()
    (silent / "endpoints.json").mkdir()
    assert_one_sentence(
        deploy("status", "--cluster", str(silent)), "endpoints.json", "Is a directory"
    )
    (tmp_path / "site" / "bootstrap" / "loader.py").mkdir(parents=True)
    ran = deploy("publish", "--to", str(tmp_path / "site"))
    assert_one_sentence(ran, "loader.py", "Is a directory")


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("")
    ran = deploy("publish", "--to", str(tmp_path / "site"))
    assert_one_sentence(ran, str(tmp_path / "site"))
    assert_one_sentence(deploy("plan", "--config", str(tmp_path)), "Is a directory")


def test_without_a_home_a_verb_that_needs_one_says_so(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.argv[0] = 'deploy'\n"
        "import pwd\n"
        "def nobody(number):\n    raise KeyError(number)\n"
        "pwd.getpwuid = nobody\n"
        "from deploy.__main__ import main\nsys.exit(main())"
    )
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    for name in ("HOME", "XDG_STATE_HOME"):
        environment.pop(name, None)
    for words in (
        ["publish"],
        ["azure", "plan", "--subscription", "1", "--ssh-from", "1.2.3.4/32"],
    ):
        ran = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path, env=environment, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert_one_sentence(ran, "set HOME")


def test_without_the_packages_a_verb_names_the_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('gone', name='click')")
    ran = deploy("plan", env={"PYTHONPATH": f"{tmp_path}:{CHECKOUT}"})
    assert_one_sentence(ran, "click is not installed", "pip install")


# ------------------------------------------------ streams


def test_output_to_a_full_disk_is_one_sentence() -> None:
    for words in (["plan"], ["user-data", "node1"], ["--help"]):
        ran = deploy(*words, then=">/dev/full")
        assert ran.returncode == 2
        last = ran.stderr.decode().splitlines()[-1]
        assert last == "deploy: No space left on device: make room."
        assert b"Traceback" not in ran.stderr
        assert b"ignored" not in ran.stderr


@pytest.mark.parametrize("verb", ["plan", "user-data", "status", "watch", "--help"])
def test_a_reader_that_has_gone_ends_a_verb_without_a_word(verb: str, silent: Path) -> None:
    words = {
        "user-data": [verb, "node1"],
        "status": [verb, "--cluster", str(silent)],
        "watch": [verb, "--seconds", "1", "--cluster", str(silent)],
    }.get(verb, [verb])
    reads, writes = os.pipe()
    os.close(reads)
    ran = subprocess.run(
        [sys.executable, "-m", "deploy", *words],
        cwd=CHECKOUT, stdout=writes, stderr=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    os.close(writes)
    told = b"" if verb != "user-data" else b"user-data: made a new cluster key; all nodes"
    assert ran.stderr.startswith(told)
    assert ran.stderr.count(b"\n") == (verb == "user-data")
    assert ran.returncode == 141


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_changes_nothing_else(
    closed: str, silent: Path, tmp_path: Path
) -> None:
    assert deploy("plan", then=closed).returncode == 0
    assert deploy("status", "--cluster", str(silent), then=closed).returncode == 3
    assert deploy("publish", "--to", str(tmp_path / "site"), then=closed).returncode == 0
    assert_published(tmp_path / "site")
    assert deploy("lab", "up", "--nodes", "x", then=closed).returncode == 2


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize(
    "env", [ASCII, {"PYTHONIOENCODING": "cp1252"}, {"TERM": None}, {"TERM": "none", "COLUMNS": "1"}]
)
def test_a_table_is_printed_whatever_the_terminal_can_show(
    env: dict[str, str | None], silent: Path
) -> None:
    info = json.loads((silent / "nodes_info.json").read_text())
    assert deploy("plan", env=env).returncode == 0
    ran = deploy("status", "--cluster", str(silent), env=env)
    assert (ran.returncode, ran.stderr) == (3, b"")
    assert len(info) == 3


@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "cp1252"}], ids=["C", "cp1252"])
@pytest.mark.parametrize("name", [b"z\xc5\x82oty", b"caf\xe9"], ids=["UTF-8", "Latin 1"])
def test_a_folder_whose_name_can_not_be_printed_is_published_to(
    env: dict[str, str | None], name: bytes, tmp_path: Path
) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
    assert_one_sentence(deploy("status", "--cluster", folder, env=env), "no cluster at ")
    ran = deploy("publish", "--to", folder, env=env)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.count(b"\npublished ") == 7


def test_a_question_that_nobody_answers_names_the_option_that_does(operator: Any) -> None:
    done = operator.execute("up", typed="")
    assert done.code == 2
    assert "deploy: nobody answers the question: give --yes" in done.output
    assert "Traceback" not in done.output


# ------------------------------------------------ what a verb leaves

KILLED = """
import os, signal, sys
from pathlib import Path
from deploy.files import staged
with staged(Path(sys.argv[1]), b"half", mode=0o600, folder_mode=0o700):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_with_the_cluster(tmp_path: Path) -> None:
    state = State(tmp_path / "clusters" / "one")
    command = [sys.executable, "-c", KILLED, str(state.key_file)]
    killed = subprocess.run(command, cwd=CHECKOUT, timeout=20, check=False)
    assert killed.returncode == -9
    [left] = state.folder.iterdir()
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    with state.locked():
        state.write_cluster(NODES, {})
        state.key_made_if_missing()
        state.remove()
    assert not state.folder.exists()


def test_whoever_makes_a_clusters_key_at_the_same_time_has_the_same_one(tmp_path: Path) -> None:
    """Also where the lock is none, as on some network file systems."""
    for attempt in range(5):
        state, all_there = State(tmp_path / str(attempt)), threading.Barrier(8, timeout=30)

        def key(_: int, state: State = state, all_there: threading.Barrier = all_there) -> str:
            all_there.wait()
            return state.key_made_if_missing()

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(key, range(8)))) == 1


def test_a_clusters_folder_and_key_are_for_its_operator_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = State(tmp_path / "clusters" / "one")
        state.write_cluster(NODES, {})
        state.key_made_if_missing()
    finally:
        os.umask(before)
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.key_file.stat().st_mode) == 0o600
    assert len(list(state.folder.iterdir())) == 3


# ------------------------------------------------ the network


def test_a_network_that_does_not_get_to_azure_is_not_called_a_refused_identity(
    operator: Any,
) -> None:
    gone = "https://127.0.0.1:1"
    where = ["--authority", gone, "--arm-endpoint", gone, "--ssh-from", "198.51.100.7/32"]
    done = operator.deploy("azure", "plan", *where)
    assert done.code == 2
    assert done.output.count("\n") == 1
    assert "network does not get there" in done.output
    assert "was refused" not in done.output


def test_a_load_balancer_whose_name_is_none_serves_nobody(silent: Path) -> None:
    (silent / "endpoints.json").write_text(json.dumps({"load_balancer": "http://a..b"}))
    ran = deploy("status", "--json", "--cluster", str(silent))
    assert (ran.returncode, ran.stderr) == (3, b"")
    assert json.loads(ran.stdout)["served"] is None
