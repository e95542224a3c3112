"""The command that shows that two checkouts behave alike, on a copy of this one."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.protocol.simulate import conditions_of

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES_SEED = next(seed for seed in itertools.count(1) if conditions_of(seed).pages)
"""The first one whose markers are written as pages."""


def copied(folder: Path, found: str, replaced: str) -> Path:
    """This checkout's agent and simulator, with one text of the agent replaced."""
    shutil.copytree(CHECKOUT / "agent", folder / "agent")
    (folder / "tests/protocol").mkdir(parents=True)
    shutil.copy(CHECKOUT / "tests/protocol/simulate.py", folder / "tests/protocol")
    agent = folder / "agent/loader.py"
    source = agent.read_text()
    assert source.count(found) > 0
    agent.write_text(source.replace(found, replaced))
    return folder


def compared(one: Path, other: Path, seed: int = 1) -> "subprocess.CompletedProcess[str]":
    words = [str(one), str(other), "--seeds", str(seed), "--hours", "0.05", "--processes", "1"]
    return subprocess.run(
        [sys.executable, "-m", "tests.protocol.compare", *words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("seed", [1, PAGES_SEED])
def test_another_name_in_the_agent_changes_no_end_state(tmp_path: Path, seed: int) -> None:
    ran = compared(CHECKOUT, copied(tmp_path, "hold_until_seconds", "held_until_seconds"), seed)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith(": all end in the same states\n")


def test_another_rule_in_the_agent_shows_with_seed_and_node(tmp_path: Path) -> None:
    ran = compared(CHECKOUT, copied(tmp_path, "READY_LOOKS = 2 ", "READY_LOOKS = 3 "))
    assert ran.returncode == 1
    assert ran.stdout.startswith(("seed 1, 3 nodes: ", "seed 1, 5 nodes: "))
    assert "node1" in ran.stdout
    assert ran.stdout.endswith(" end otherwise\n")
