"""Checks protocol.pml: the protocol holds, and with any one of its rules left out it does not.

    python tests/protocol/model/check.py           # D = 2, mutations, witnesses: under a minute
    python tests/protocol/model/check.py --full    # and all of it with D = 3

Exit status: 0 when all is as expected, 1 when anything is not, 2 without spin or gcc.
"""

import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

MODEL = Path(__file__).with_name("protocol.pml")
TOOLS = ("spin", "gcc")  # spin runs gcc as its preprocessor

HOLDS = "holds"
REFUTED = "refuted"
INCOMPLETE = "incomplete"

# Without any one of these rules Spin must find two nodes active.
MUTATIONS = {
    "no hold after boot": "NO_HOLD_AFTER_BOOT",
    "votes again before a promise ends": "VOTE_TWICE",
    "own vote not bound": "OWN_VOTE_NOT_BOUND",
    "lease counted from the read": "LEASE_FROM_READ",
    "lease longer than the promise": "LEASE_LONGER_THAN_PROMISE",
    "gives up before the probe is gone": "RELEASE_BEFORE_REMOVAL",
    "counts stamps it gave up": "RELEASED_STAMPS_COUNT",
    "fence spares the staged file": "FENCE_SPARES_STAGED",
}

# What must be able to happen in the model that holds, or that it holds would say nothing.
WITNESSES = {
    "another node becomes active": "ANOTHER_BECOMES_ACTIVE",
    "handover by giving up": "HANDOVER_BY_RELEASE",
    "a voter reboots and votes again": "VOTER_REBOOTS_AND_VOTES",
    "the fence fires, another follows": "FENCE_THEN_ANOTHER",
    "the fence takes a staged file": "FENCE_TAKES_STAGED_FILE",
    "renewed past its first lease": "RENEWED_PAST_FIRST_LEASE",
}


@dataclass(frozen=True)
class Variant:
    """One build of the model, and what Spin must say of it."""

    name: str
    macros: tuple[str, ...]
    expected: str
    depth: int = 3_000_000  # steps; the longest run without a repetition at D = 2 has 470,000
    memory_mb: int = 7_500
    limit_seconds: int = 300


@dataclass(frozen=True)
class Outcome:
    """What Spin said: HOLDS, REFUTED, or INCOMPLETE and why."""

    verdict: str
    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    memory_mb: float = 0.0


def family(base: Variant) -> list[Variant]:
    """`base`, and what must be refuted of the very model that it builds."""
    changes = [
        *((name, (macro,)) for name, macro in MUTATIONS.items()),
        *((f"never: {name}", ("WITNESS", macro)) for name, macro in WITNESSES.items()),
    ]
    length = base.macros[0]
    return [
        base,
        *(Variant(f"{length}, {name}", (*base.macros, *more), REFUTED) for name, more in changes),
    ]


SHORT = family(Variant("D=2, the protocol", ("D=2",), HOLDS))
FULL = SHORT + family(
    Variant(
        "D=3, the protocol",
        ("D=3", "SHORTEST_PROMISES"),
        HOLDS,
        depth=20_000_000,
        limit_seconds=900,
    ),
)


def judged(output: str) -> str:
    """The verifier's own words, weighed: only a violated assertion refutes, and only a search that
    left nothing out, for want of depth, memory or exactness, proves."""
    if "assertion violated" in output:
        return REFUTED
    for gap in ("max search depth too small", "-DMEMLIM bound", "out of memory", "not completed"):
        if gap in output:
            return f"{INCOMPLETE}: {gap}"
    if "Full statespace search" in output and "errors: 0" in output:
        return HOLDS
    return f"{INCOMPLETE}: no answer"


def number(pattern: str, output: str) -> float:
    found = re.search(pattern, output)
    return float(found.group(1)) if found else 0.0


def build(variant: Variant, directory: Path) -> None:
    """Spin writes the verifier as C, gcc compiles it. SAFETY and NOREDUCE: assertions, every
    order of steps."""
    shutil.copy(MODEL, directory)
    macros = [f"-D{macro}" for macro in variant.macros]
    effort = "-O2" if variant.expected == HOLDS else "-O1"  # a refutation runs shorter than gcc
    options = [effort, "-w", "-DSAFETY", "-DNOREDUCE", f"-DMEMLIM={variant.memory_mb}"]
    for command in (
        ["spin", "-a", *macros, MODEL.name],
        ["gcc", *options, "-o", "pan", "pan.c"],
    ):
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=120)


def search(variant: Variant, directory: Path) -> str:
    """What the verifier prints. -E: an invalid end state is not a violation; -n: no list of
    unreached lines."""
    command = ["./pan", "-E", "-n", "-w24", f"-m{variant.depth}"]
    run = subprocess.run(
        command,
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
        timeout=variant.limit_seconds,
    )
    return run.stdout + run.stderr


def check(variant: Variant) -> Outcome:
    """Builds and runs the verifier of one variant in a directory of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        build(variant, Path(directory))
        try:
            output = search(variant, Path(directory))
        except subprocess.TimeoutExpired:
            return Outcome(f"{INCOMPLETE}: over {variant.limit_seconds} s")
    return Outcome(
        judged(output),
        states=int(number(r"([\d.e+]+) states, stored", output)),
        depth=int(number(r"depth reached (\d+)", output)),
        seconds=time.monotonic() - began,
        memory_mb=number(r"([\d.]+)\s+total actual memory", output),
    )


def empty_table() -> Table:
    table = Table(box=SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("variant", "expected", "result"):
        table.add_column(heading, no_wrap=True)
    for heading in ("states", "depth", "seconds", "MB"):
        table.add_column(heading, justify="right")
    return table


def row(variant: Variant, outcome: Outcome) -> list[str]:
    verdict = outcome.verdict if outcome.verdict == variant.expected else f"[red]{outcome.verdict}"
    return [
        variant.name,
        variant.expected,
        verdict,
        f"{outcome.states:,}",
        f"{outcome.depth:,}",
        f"{outcome.seconds:.1f}",
        f"{outcome.memory_mb:.0f}",
    ]


@click.command(help=__doc__)
@click.option("--full/--short", default=False, help="D = 2 and 3, or D = 2 alone (the default).")
def main(*, full: bool) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise click.UsageError(f"needs {' and '.join(missing)}; install the packages of that name")
    table, surprises = empty_table(), 0
    with Live(table, console=Console(width=108), auto_refresh=False) as live:
        for variant in FULL if full else SHORT:
            outcome = check(variant)
            surprises += outcome.verdict != variant.expected
            table.add_row(*row(variant, outcome))
            live.refresh()
    raise SystemExit(1 if surprises else 0)


if __name__ == "__main__":
    main()
