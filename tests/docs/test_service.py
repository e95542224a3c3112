"""What docs/service.md shows is right: units, scripts, settings and what a storage does."""

import compileall
import os
import shutil
import sqlite3
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from agent.loader import TARGET
from deploy.application import read_setup
from deploy.plan import plan_of
from deploy.settings import settings_of
from tests.docs.examples import examples, units

SYSTEMD = Path(__file__).parents[2] / "systemd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All examples as files."""
    for name, text in examples().items():
        (tmp_path / name).write_text(text)
    return tmp_path


def unit(text: str) -> ConfigParser:
    found = ConfigParser(interpolation=None, strict=False)
    found.read_string(text)
    return found


@pytest.mark.parametrize("name", units())
def test_systemd_finds_nothing_wrong_with_a_unit_of_the_document(name: str, folder: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    env = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:{SYSTEMD}:", "LC_ALL": "C"}
    command = ["systemd-analyze", "verify", "--man=no", str(folder / name)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, env=env)
    ours = [line for line in ran.stderr.splitlines() if name.partition(".")[0] in line]
    assert (ran.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", units())
def test_each_unit_of_the_document_runs_with_the_role(name: str) -> None:
    found = unit(units()[name])
    assert (found["Unit"]["PartOf"], found["Install"]["WantedBy"]) == (TARGET, TARGET)


def test_the_scripts_of_the_document_can_be_run_and_install_what_is_there(folder: Path) -> None:
    assert compileall.compile_file(folder / "billing.py", quiet=2)
    for script in folder.glob("*.sh"):
        subprocess.run(["sh", "-n", str(script)], check=True, timeout=10)
    installs = (folder / "setup.sh").read_text().split()
    assert {"billing.py", "billing.service"} <= set(installs)


@pytest.mark.parametrize(
    ("free", "said"), [(200_000, ""), (90_000, "only 90000 kB free in /var/lib\n")]
)
def test_the_health_check_of_the_document_fails_with_its_sentence_where_room_is_short(
    free: int, said: str, folder: Path
) -> None:
    (folder / "df").write_text(f"#!/bin/sh\necho Avail\necho {free}\n")
    (folder / "df").chmod(0o755)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["sh", str(folder / "space.sh")]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10, env=env)
    assert (ran.returncode, ran.stdout) == (bool(said), said)


def test_the_settings_of_the_document_are_those_of_a_cluster_with_its_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    plan = plan_of(settings_of(folder / "cluster.toml", {}))
    assert {*read_setup(plan.setup)} <= {*examples()}
    assert next(iter(read_setup(plan.setup))) == "setup.sh"
    assert [str(port) for port in plan.ports] == ["8080"]


def test_a_storage_that_does_as_the_document_says_refuses_a_term_from_before() -> None:
    storage = sqlite3.connect(":memory:")
    storage.executescript(examples()["fence.sql"])
    change = examples()["write.sql"]
    changed = [storage.execute(change, {"term": term}).rowcount for term in (5, 5, 9, 5, 8, 9, 10)]
    assert changed == [1, 1, 1, 0, 0, 1, 1]
