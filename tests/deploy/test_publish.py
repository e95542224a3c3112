"""Releases on a web site: signed by real keys, published by several operators, read back."""

import contextlib
import json
import os
import pty
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deploy import PROJECT, Refusal, signing
from deploy.__main__ import say
from deploy.azure.state import State
from deploy.checkout import NODES_FILE
from deploy.nodes_info import read_nodes_info
from deploy.publish import (
    HELD,
    RELEASE,
    Folder,
    Newest,
    Publication,
    found_on,
    hold,
    newest,
    publish,
)
from deploy.release import (
    Release,
    drained,
    files_of,
    first_release,
    release_text,
    renewed,
    signed_also_by,
    signed_no_more_by,
    with_cluster_key,
)
from deploy.settings import Settings
from deploy.signing import (
    SIGNATURE_BYTES,
    public_key,
    sign,
    signers_text,
    unwrapped,
    why_unverified,
    wrapped,
)
from tests.keys import make_key

CODE, NEWER = b"print('agent')\n", b"print('newer')\n"
NOW = 1_800_000_000.0
NODES = read_nodes_info(NODES_FILE)
CLUSTER_KEY = "5e" * 32


@dataclass(frozen=True)
class Operator:
    """Somebody with a key and a folder of what they know of the cluster."""

    key: Path
    state: Path
    site: Folder

    def found(self) -> Newest | None:
        return found_on(self.site, self.state, self.key)

    def asks(
        self, change: Callable[[Release], Release], before: Newest | None = None
    ) -> Publication:
        """What every verb does."""
        before = before or self.found()
        assert before
        wanted = change(renewed(before.release, NOW))
        published = publish(self.site, before, wanted, key=self.key, now=NOW)
        hold(self.state, published.after)
        return published


@pytest.fixture
def site(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "site")


@pytest.fixture
def me(site: Folder, tmp_path: Path) -> Operator:
    """An operator who has published the first release."""
    operator = an_operator("me", site, tmp_path)
    signers = signers_text([public_key(operator.key)])
    first = first_release(Settings(), NODES, CODE, signers, cluster="lab")
    published = publish(site, None, first, key=operator.key, now=NOW, code=CODE)
    hold(operator.state, published.after)
    return operator


@pytest.fixture
def her(me: Operator, tmp_path: Path) -> Operator:
    """Another operator, who knows what he knows; nobody has let her sign yet."""
    operator = an_operator("her", me.site, tmp_path)
    shutil.copy(me.state / HELD, operator.state)
    return operator


def an_operator(name: str, site: Folder, folder: Path) -> Operator:
    state = folder / name / "state"
    state.mkdir(parents=True)
    (state / "cluster.key").write_text(f"{CLUSTER_KEY}\n")
    return Operator(make_key(folder / name / "id_ed25519", name), state, site)


def listing(site: Folder) -> dict[str, bytes]:
    files = (path for path in site.path.rglob("[!.]*") if path.is_file())
    return {path.relative_to(site.path).as_posix(): path.read_bytes() for path in files}


def generation(site: Folder) -> int:
    found = site.read(RELEASE, 1 << 16)
    assert found
    return int(json.loads(found.data)["generation"])


# ---- One operator


def test_a_node_verifies_a_release_with_ssh_keygen_and_the_file_of_its_first_boot(
    me: Operator, tmp_path: Path
) -> None:
    signers = tmp_path / "allowed_signers"
    signers.write_text(signers_text([public_key(me.key)]))
    folder = me.site.path / "bootstrap" / "releases" / "1"
    words = ["-I", "operator", "-n", PROJECT, "-s", str(folder / "release.json.sig")]
    for name, code in (("release.json", 0), ("release.json.sig", 255)):
        ran = subprocess.run(
            ["ssh-keygen", "-Y", "verify", "-f", str(signers), *words],
            input=(folder / name).read_bytes(),
            capture_output=True,
            check=False,
            timeout=20,
        )
        assert ran.returncode == code, ran.stderr


def test_what_a_release_is_made_of_has_names_that_never_get_other_content(me: Operator) -> None:
    before = listing(me.site)
    found = me.found()
    assert found
    wanted = replace(found.release, files=files_of(NEWER))
    publish(me.site, found, wanted, key=me.key, now=NOW, code=NEWER)
    after = listing(me.site)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {
        *("bootstrap/release.json", "bootstrap/release.json.sig", "bootstrap/loader.py"),
    }
    assert after["bootstrap/release.json"] == after["bootstrap/releases/2/release.json"]
    assert after["bootstrap/release.json.sig"] == after["bootstrap/releases/2/release.json.sig"]
    digest = files_of(NEWER)["loader.py"].sha256
    assert after[f"bootstrap/releases/{digest}/loader.py"] == NEWER


def test_what_is_so_already_is_not_published_again(me: Operator) -> None:
    before = listing(me.site)
    published = me.asks(lambda release: release)
    assert published.after is published.before
    assert published.written == ()
    assert listing(me.site) == before


def test_what_the_web_site_has_lost_is_mended(me: Operator) -> None:
    before = listing(me.site)
    for name in ("loader.py", "nodes_info.json", "release.json.sig"):
        (me.site.path / "bootstrap" / name).unlink()
    found = me.found()
    assert found
    publish(me.site, found, found.release, key=me.key, now=NOW, code=CODE)
    assert listing(me.site) == before


def test_a_web_site_that_has_lost_everything_gets_the_next_number(me: Operator) -> None:
    shutil.rmtree(me.site.path)
    me.asks(lambda release: drained(release, "node2"))
    assert generation(me.site) == 2


FULL = """
import sys
from dataclasses import replace
from pathlib import Path
from deploy.publish import Folder, found_on, publish
from deploy.release import drained
site, state, key = Folder(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
found = found_on(site, state, key)
publish(site, found, drained(found.release, "node2"), key=key, now=1_800_000_000.0)
"""


def test_a_disk_that_is_full_leaves_the_release_that_is_there(me: Operator) -> None:
    before = listing(me.site)
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(me.site.path), str(me.state), str(me.key)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)),
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"File too large" in ran.stderr, ran.stderr
    assert {name: data for name, data in listing(me.site).items() if name in before} == before
    assert me.asks(lambda release: drained(release, "node3")).after.release.drained == ("node3",)


def test_a_publication_that_was_cut_short_costs_a_number(me: Operator) -> None:
    release = drained(me.asks(lambda r: r).after.release, "node2")
    me.site.create("bootstrap/releases/2/release.json.sig", b"half of it")
    assert generation(me.site) == 1
    me.asks(lambda _: release)
    assert generation(me.site) == 3
    assert me.asks(lambda r: drained(r, "node1")).after.release.generation == 4


# ---- Several operators


def test_of_two_who_made_theirs_from_the_same_release_the_second_is_refused(
    me: Operator, her: Operator
) -> None:
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    both = me.found(), her.found()
    me.asks(lambda release: drained(release, "node1"), both[0])
    mine = listing(me.site)
    with pytest.raises(Refusal, match="another operator publishes at this moment"):
        her.asks(lambda release: drained(release, "node3"), both[1])
    assert {name: listing(me.site)[name] for name in mine} == mine
    found = her.found()
    assert found
    assert found.release.drained == ("node1",)


def test_of_many_at_the_same_moment_one_publishes_and_the_release_is_whole(me: Operator) -> None:
    before, outcomes = me.found(), []
    start = threading.Barrier(6)

    def ask(number: int) -> None:
        start.wait(20)
        try:
            me.asks(lambda release: drained(release, f"node{number % 3 + 1}"), before)
            outcomes.append("published")
        except Refusal:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["published", *["refused"] * 5]
    found = newest(me.site, None, signers_text([public_key(me.key)]))  # verified as by a stranger
    assert found
    assert len(found.release.drained) == 1


def test_a_number_that_another_operator_takes_while_this_one_signs_is_not_overwritten(
    me: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hers = me.site.path / "bootstrap" / "releases" / "2"
    meanwhile = f'if [ "$2" = sign ]; then mkdir {hers}; echo hers >{hers}/release.json.sig; fi'
    real = f'exec {shutil.which("ssh-keygen")} "$@"'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "slow", f"{meanwhile}\n{real}"))
    with pytest.raises(Refusal, match="another operator publishes at this moment"):
        me.asks(lambda release: drained(release, "node2"))
    assert (hers / "release.json.sig").read_text() == "hers\n"
    assert generation(me.site) == 1


def test_a_lock_that_another_process_holds_refuses(me: Operator) -> None:
    lock = me.site.path / "bootstrap" / ".lock"
    code = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f,2); print(); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    with pytest.raises(Refusal, match="another operator publishes at this moment"):
        me.asks(lambda release: drained(release, "node2"))
    process.communicate(timeout=20)
    assert generation(me.site) == 1
    me.asks(lambda release: drained(release, "node2"))


class Interrupted(Folder):
    """The connection breaks before a release is put in the place of the one before."""

    def replace(self, name: str, data: bytes, tag: str | None) -> bool:
        """Break."""
        raise KeyboardInterrupt(name, data, tag)


def test_a_publication_that_did_not_come_to_be_changes_nobodys_signers(
    me: Operator, her: Operator
) -> None:
    """He removes her, and she is faster: whoever follows what was published believes her."""
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    hold_of_another(me, her)
    third = replace(me, state=me.state.parent / "another computer")
    shutil.copytree(me.state, third.state)
    with pytest.raises(KeyboardInterrupt):
        replace(me, site=Interrupted(me.site.path)).asks(
            lambda release: signed_no_more_by(release, public_key(her.key))
        )
    published = her.asks(lambda release: drained(release, "node3")).after.release
    found = third.found()
    assert found
    assert found.release == published


def hold_of_another(one: Operator, other: Operator) -> None:
    """Let the other one know what the first has seen."""
    shutil.copy(one.state / HELD, other.state)


def test_a_release_whose_publication_broke_off_at_once_is_followed_afterwards(
    me: Operator, her: Operator
) -> None:
    """It is the newest, and not there under its number: the next one puts it there."""
    away = replace(her, state=her.state.parent / "another computer")
    shutil.copytree(her.state, away.state)
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    (me.site.path / "bootstrap/releases/2/release.json").unlink()
    hold_of_another(me, her)
    her.asks(lambda release: drained(release, "node3"))
    found = away.found()
    assert found
    assert [release.generation for release in found.since] == [2, 3]


# ---- Whose signature counts


def forged(me: Operator, key: Path, change: Callable[[Release], Release] = lambda r: r) -> None:
    """Somebody who may write to the web site puts a release there, and signs it as they can."""
    found = me.found()
    assert found
    number = found.release.generation + 1
    release = replace(change(found.release), generation=number, drained=("node2",))
    data = release_text(release)
    me.site.write(f"bootstrap/releases/{number}/release.json", data)
    me.site.write(f"bootstrap/releases/{number}/release.json.sig", sign(key, data))
    me.site.write(RELEASE, data)


def test_a_release_that_a_stranger_signed_is_not_built_upon(me: Operator, her: Operator) -> None:
    forged(me, her.key)
    with pytest.raises(Refusal, match="generation 2: its signature is no operator's"):
        me.found()


def test_a_release_that_names_its_own_signer_is_not_believed(me: Operator, her: Operator) -> None:
    mine = signers_text([public_key(her.key)])
    forged(me, her.key, lambda release: replace(release, allowed_signers=mine))
    with pytest.raises(Refusal, match="its signature is no operator's"):
        me.found()


def test_a_release_without_a_signature_is_not_built_upon(me: Operator) -> None:
    forged(me, me.key)
    (me.site.path / "bootstrap/releases/2/release.json.sig").unlink()
    with pytest.raises(Refusal, match="generation 2: it has no signature"):
        me.found()


def test_an_older_release_put_back_is_noticed(me: Operator) -> None:
    older = listing(me.site)["bootstrap/release.json"]
    me.asks(lambda release: drained(release, "node2"))
    me.site.write(RELEASE, older)
    with pytest.raises(Refusal, match=r"generation 1 of .* but generation 2 of .* was seen before"):
        me.found()


def test_other_content_with_the_same_number_is_noticed(me: Operator) -> None:
    found = me.found()
    assert found
    other = replace(found.release, drained=("node1",))
    elsewhere = Folder(me.site.path.parent / "elsewhere")
    first = publish(elsewhere, None, other, key=me.key, now=NOW)
    me.site.write(RELEASE, first.after.data)
    with pytest.raises(Refusal, match="somebody put another one there"):
        me.found()


def unsigned(me: Operator, before: bytes, after: bytes) -> None:
    """Somebody who has no key changes what is there."""
    path = me.site.path / RELEASE
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))


NO_SECONDS = [b"1" + b"0" * 400, b"NaN", b"Infinity", b"-1", b"1e999", b"true", b"[]"]


@pytest.mark.parametrize("value", NO_SECONDS)
def test_a_number_that_is_no_seconds_is_told_in_a_sentence(me: Operator, value: bytes) -> None:
    unsigned(me, b'"pause_seconds": 5', b'"pause_seconds": ' + value)
    with pytest.raises(Refusal):
        me.found()


def test_what_nobody_signed_can_not_move_the_terminals_cursor(
    me: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    older = listing(me.site)[RELEASE]
    me.asks(lambda release: drained(release, "node2"))
    told = json.loads(older) | {"published": "\x1b]0;owned\x07\x1b[2J"}
    (me.site.path / RELEASE).write_text(json.dumps(told))
    with pytest.raises(Refusal) as refused:
        me.found()
    assert "\x1b" not in str(refused.value)
    say("\x1b[2J of another sentence\nand its next line")
    assert capsys.readouterr().err == "deploy: ?[2J of another sentence\nand its next line\n"


def test_whoever_never_saw_a_release_believes_their_own_key_alone(
    me: Operator, her: Operator
) -> None:
    (her.state / HELD).unlink()
    with pytest.raises(Refusal, match=f"copy {HELD} from the state folder of an operator"):
        her.found()
    (me.state / HELD).unlink()
    assert me.found()


def test_a_signature_for_another_purpose_is_none(me: Operator, tmp_path: Path) -> None:
    signers, file = signers_text([public_key(me.key)]), tmp_path / "message"
    file.write_bytes(b"message")
    assert why_unverified(b"message", sign(me.key, b"message"), signers) == ""
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-q", "-f", str(me.key), "-n", "git", str(file)],
        check=True,
        timeout=20,
    )
    other = file.with_suffix(".sig").read_bytes()
    assert why_unverified(b"message", other, signers) == "its signature is no operator's"


# ---- Operators' keys, from one to the next


def test_who_is_no_operator_is_told_who_is_before_anything_is_published(
    me: Operator, her: Operator
) -> None:
    before = listing(me.site)
    with pytest.raises(Refusal, match=r"no operator's of this cluster, who are me: .* `keys add`"):
        her.asks(lambda release: drained(release, "node2"))
    assert listing(me.site) == before
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    her.asks(lambda release: drained(release, "node2"))
    her.asks(lambda release: signed_no_more_by(release, public_key(me.key)))
    with pytest.raises(Refusal, match="no operator's of this cluster, who are her"):
        me.asks(lambda release: drained(release, "node3"))


def test_who_was_away_follows_each_change_of_signers(me: Operator, her: Operator) -> None:
    away = replace(me, state=me.state.parent / "another computer")
    shutil.copytree(me.state, away.state)
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    her.asks(lambda release: signed_no_more_by(release, public_key(me.key)))
    her.asks(lambda release: drained(release, "node2"))
    found = away.found()
    assert found
    assert found.release.generation == 4
    assert [release.generation for release in found.since] == [2, 3, 4]
    hold(away.state, found)
    forged(away, me.key)  # he is no operator any more
    for operator in (away, her):
        with pytest.raises(Refusal, match="its signature is no operator's"):
            operator.found()


def test_a_number_that_was_left_out_breaks_no_chain(me: Operator, her: Operator) -> None:
    away = replace(me, state=me.state.parent / "another computer")
    shutil.copytree(me.state, away.state)
    me.site.create("bootstrap/releases/2/release.json.sig", b"half of it")
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    her.asks(lambda release: drained(release, "node2"))
    found = away.found()
    assert found
    assert found.release.generation == 4


# ---- The cluster's key


def test_a_new_key_of_the_cluster_reaches_whoever_has_the_old_one(
    me: Operator, her: Operator
) -> None:
    new = "7a" * 32
    me.asks(lambda r: signed_also_by(r, public_key(her.key)))
    published = me.asks(lambda r: with_cluster_key(r, wrapped(new, me.state / "cluster.key")))
    assert new.encode() not in published.after.data
    assert State(me.state).key() == new
    assert (me.state / "cluster.key").stat().st_mode & 0o777 == 0o600
    me.asks(lambda release: drained(release, "node2"))
    assert her.asks(lambda r: drained(r, "node3")).after.release.cluster_key is None
    assert State(her.state).key() == new  # although the newest says nothing of it any more


def test_a_rotation_that_was_interrupted_and_run_again_leaves_every_operator_the_same_key(
    me: Operator, her: Operator
) -> None:
    me.asks(lambda release: signed_also_by(release, public_key(her.key)))
    hold_of_another(me, her)
    first, second = (wrapped(new * 32, me.state / "cluster.key") for new in ("7a", "8b"))
    with pytest.raises(KeyboardInterrupt):
        replace(me, site=Interrupted(me.site.path)).asks(lambda r: with_cluster_key(r, first))
    me.asks(lambda release: with_cluster_key(release, second))
    assert State(me.state).key() == "8b" * 32
    her.asks(lambda release: drained(release, "node3"))
    assert State(her.state).key() == State(me.state).key()


def test_a_node_unwraps_it_with_openssl_and_a_stranger_with_another_key_gets_nothing(
    tmp_path: Path,
) -> None:
    new, old = "7a" * 32, tmp_path / "old"
    old.write_text(f"{CLUSTER_KEY}\n")
    text = wrapped(new, old)
    words = ["-d", "-aes-256-cbc", "-pbkdf2", "-iter", "100000", "-a", "-A"]
    ran = subprocess.run(
        ["openssl", "enc", *words, "-pass", f"file:{old}"],
        input=text.encode(),
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert ran.stdout == f"{new}\n".encode()
    (tmp_path / "another").write_text("00" * 32 + "\n")
    assert unwrapped(text, tmp_path / "another") is None
    assert unwrapped("no base64", old) is None


# ---- What ssh-keygen may say


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_kind_of_key_signs_and_only_what_was_signed_is_good(
    kind: str, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "id", "me", kind=kind)
    signers = signers_text([public_key(key)])
    signature = sign(key, b"message")
    assert len(signature) < SIGNATURE_BYTES
    assert why_unverified(b"message", signature, signers) == ""
    assert why_unverified(b"massage", signature, signers) == "its signature is no operator's"
    other = signers_text([public_key(make_key(tmp_path / "other", "me", kind=kind))])
    assert why_unverified(b"message", signature, other) == "its signature is no operator's"


def test_a_passphrase_is_asked_for_on_the_terminal(tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "me", passphrase="secret")  # noqa: S106 - it opens nothing
    site = tmp_path / "site"
    command = [sys.executable, "-m", "deploy", "publish", "--key", str(key), "--to", str(site)]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("SSH_AUTH_SOCK", None)
        os.execv(sys.executable, command)  # noqa: S606 - there is no shell to fool
    said = b""
    with contextlib.suppress(OSError):  # Linux says so where the other end is closed
        while data := os.read(terminal, 4096):
            said += data
            if said.endswith(b"Enter passphrase: "):
                os.write(terminal, b"secret\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, said.decode()
    assert (site / RELEASE).exists()


def without_terminal(key: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`publish` by somebody at no terminal; `environment`: their agent, their PATH."""
    command = [sys.executable, "-m", "deploy", "publish", "--key", str(key), "--to"]
    return subprocess.run(
        [*command, str(key.parent / "site")],
        env={**os.environ, "DISPLAY": "", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )


def assert_refused(ran: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("deploy: "), ran.stderr
    assert ran.stderr.count("\n") == 1, ran.stderr
    for word in words:
        assert word in ran.stderr


def test_a_passphrase_that_nobody_can_type_is_told_with_what_to_do(tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "me", passphrase="secret")  # noqa: S106 - it opens nothing
    ran = without_terminal(key)
    assert_refused(ran, f"signing with {key}: ", "passphrase", f"`ssh-add {key}`")


def test_a_public_key_alone_needs_an_agent_that_has_the_other_half(tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "me").rename(tmp_path / "elsewhere")
    public = tmp_path / "id.pub"
    assert_refused(without_terminal(public), "neither beside it nor in an agent")
    with an_agent(tmp_path / "agent") as agent:
        subprocess.run(["ssh-add", "-q", str(key)], env=agent, check=True, timeout=20)
        ran = without_terminal(public, SSH_AUTH_SOCK=agent["SSH_AUTH_SOCK"])
    assert ran.returncode == 0, ran.stderr


class an_agent:  # noqa: N801 - it reads as what it is
    """A real ssh-agent, until the block ends."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def __enter__(self) -> dict[str, str]:
        command = ["ssh-agent", "-D", "-a", str(self.socket)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout
        self.process.stdout.readline()  # it says where it is once it listens
        return {**os.environ, "SSH_AUTH_SOCK": str(self.socket)}

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)


def stand_in(folder: Path, script: str) -> str:
    """A PATH whose ssh-keygen is this script."""
    folder.mkdir()
    (folder / "ssh-keygen").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ssh-keygen").chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_where_there_is_no_ssh_keygen_the_package_is_named(tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "me")
    assert_refused(without_terminal(key, PATH=str(tmp_path)), "apt-get install openssh-client")


def test_an_ssh_keygen_that_can_not_sign_is_told_which_one_can(tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "me")
    refusing = 'if [ "$1" = -Y ]; then echo "unknown option -- Y" >&2; exit 1; fi'
    old = f'{refusing}\nexec {shutil.which("ssh-keygen")} "$@"'
    path = stand_in(tmp_path / "old", old)
    assert_refused(without_terminal(key, PATH=path), "no -Y", "OpenSSH 8.1 or newer")


def test_an_ssh_keygen_that_waits_for_ever_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "id", "me")
    monkeypatch.setenv("PATH", stand_in(tmp_path / "slow", "exec sleep 1000"))
    monkeypatch.setattr(signing, "SIGNING_SECONDS", 0.5)
    with pytest.raises(Refusal, match=r"did not end within 0\.5 s: it waits for a passphrase"):
        sign(key, b"message")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "not a public SSH key"),
        ("ssh-ed25519 AAAA me@home\n", "not a public SSH key"),
        ("", "not a public SSH key"),
    ],
)
def test_what_is_no_public_key_is_not_made_an_operators(
    content: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "id.pub").write_text(content)
    with pytest.raises(Refusal, match=sentence):
        public_key(tmp_path / "id.pub")


def test_a_comment_can_not_let_anybody_else_sign(tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "x")
    kind, data, _ = (tmp_path / "id.pub").read_text().split()
    (tmp_path / "id.pub").write_text(f'{kind} {data} "\u2028* {kind} {data} ')
    assert signers_text([public_key(key)]).count("\n") == 1
    assert why_unverified(b"m", sign(key, b"m"), signers_text([public_key(key)])) == ""
