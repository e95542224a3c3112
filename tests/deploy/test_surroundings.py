"""However a run of the tests is started, its tests find the same surroundings."""

import locale
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

STARTED = {
    "as a batch job": "trap '' INT QUIT",
    "by nohup": "trap '' HUP",
    "by a job runner that ignores what it can": "trap '' INT HUP TERM QUIT USR1",
    "by a strict shell": "umask 077",
    "behind a proxy": "export http_proxy=http://127.0.0.1:9 no_proxy=example.org",
    "in a small terminal": "export COLUMNS=20 LINES=5 FORCE_COLOR=1 TERM=dumb",
    "without a locale": "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii",
    "without a home": "unset HOME",
    "by an operator of a cluster": "export AZURE_SUBSCRIPTION_ID=1 XDG_STATE_HOME=/nowhere",
    "with its standard input closed": "exec <&-",
    "from another folder": "cd /",
}


@pytest.mark.parametrize("how", STARTED)
def test_tests_find_the_same_surroundings_when_started(how: str) -> None:
    inner = f"{Path(__file__)}::test_what_a_test_starts_has_the_surroundings_of_any_other"
    command = f'{STARTED[how]}; exec "$0" -m pytest -q -p no:cacheprovider "{inner}"'
    ran = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_what_a_test_starts_has_the_surroundings_of_any_other() -> None:
    status = subprocess.run(
        ["cat", "/proc/self/status"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["SigIgn"], 16) == 0
    assert int(fields["SigBlk"], 16) == 0
    assert fields["Umask"] == "0022"
    assert locale.getpreferredencoding(do_setlocale=False) == "UTF-8"
    known = {"COLUMNS", "FORCE_COLOR", "LC_ALL", "AZURE_SUBSCRIPTION_ID", "XDG_STATE_HOME"}
    assert not known & set(os.environ)
    assert os.environ["no_proxy"].startswith("localhost,127.0.0.0/8")
    assert Path.cwd() == CHECKOUT
    assert Path.home().is_absolute()


@pytest.mark.parametrize("umask", ["022", "077"])
def test_the_set_up_makes_its_files_for_others_and_finds_the_tools_of_root(umask: str) -> None:
    script = f"umask {umask}; PATH=/usr/bin:/bin; . deploy/setup.sh; umask; command -v nologin"
    ran = subprocess.run(
        ["sh", "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=10, check=True
    )
    assert ran.stdout == "0022\n/usr/sbin/nologin\n"


@pytest.mark.parametrize("script", ["deploy/try.sh", "tests/run.sh", ".ci/run"])
def test_a_script_finds_its_checkout_from_any_folder(script: str, tmp_path: Path) -> None:
    for name in ("deploy/try.sh", "tests/run.sh", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    (tmp_path / "deploy" / "setup.sh").write_text("pwd; exit 7")
    (tmp_path / "elsewhere" / "deploy").mkdir(parents=True)
    ran = subprocess.run(
        ["sh", script],
        cwd=tmp_path,
        env={**os.environ, "CDPATH": str(tmp_path / "elsewhere")},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (7, f"{tmp_path}\n"), ran.stderr
