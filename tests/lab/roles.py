"""Change the role of a lab with a service again and again: do two nodes ever run it at once?

    python -m tests.lab.roles --changes 12 --seed 1 --results FILE
    python -m tests.lab.roles --table FILE ...

Needs root. Each call boots a lab, goes on where FILE ends, and adds a line of JSON for each fault;
kinds come in rounds, in an order that the seed says. The service takes 3 s to start, and goes on
for 4 s when it is to stop; node2 has one more, which ignores SIGTERM. The collector's file tells.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agent.loader import worst_failover_seconds
from deploy.application import FOLDER
from deploy.lab import COLLECTOR, collector, demo, process
from deploy.lab.commands import stopped_by_terminate
from tests.lab.cluster import BootedLab, lab, verb
from tests.lab.measure import row
from tests.lab.sampler import moments_with_two
from tests.lab.writes import longest_silence_seconds, overlaps, tenures

START_SECONDS = 3
STOP_SECONDS = 4
SLOW = f"""\
[Service]
ExecStartPre=/bin/sleep {START_SECONDS}
ExecStop=/bin/sleep {STOP_SECONDS}
"""
STUBBORN = f"""\
[Unit]
PartOf=active.target
[Service]
Type=notify
ExecStartPre=/bin/sleep {START_SECONDS}
ExecStart=/bin/sh -c 'trap "" TERM; exec /usr/bin/python3 {FOLDER}/{demo.WRITER.name} \
    {COLLECTOR} {collector.PORT}'
[Install]
WantedBy=active.target
"""
CHECK = '#!/bin/sh\n[ ! -e /run/ails ] || { echo "it ails"; exit 1; }\n'
PATIENCE_SECONDS = 150
"""A node boots, holds its vote, is well again, and gets the role back."""


def make_slow(cluster: BootedLab, stubborn: str) -> None:
    """Give the nodes the service that is slow, and the check that can fail; one a stubborn one."""
    for name in cluster.nodes:
        root = cluster.root(name)
        units = root / "etc/systemd/system"
        (units / f"{demo.UNIT}.d").mkdir(exist_ok=True)
        (units / f"{demo.UNIT}.d/slow.conf").write_text(SLOW)
        check = root / "etc/bootstrap/health.d/well"
        check.parent.mkdir(exist_ok=True)
        check.write_text(CHECK)
        check.chmod(0o755)
        if name == stubborn:
            (units / "stubborn.service").write_text(STUBBORN)
            cluster.shell(name, "systemctl", "enable", "stubborn.service")
        cluster.shell(name, "systemctl", "daemon-reload")


# ---- Faults


Act = Callable[[BootedLab, str, random.Random], object]
"""Done to a node; what is left to chance comes from the seed."""


def shelled(*command: str) -> Act:
    return lambda cluster, name, _: cluster.shell(name, *command)


def kill_for_good(cluster: BootedLab, name: str, _: random.Random) -> None:
    """Kill the agent, and each run that systemd starts in its place."""
    loop = "while :; do systemctl kill --signal=KILL loader.service; sleep 0.05; done"
    bound = "--property=RuntimeMaxSec=120"
    cluster.shell(name, "systemd-run", "--quiet", "--unit=killing", bound, "sh", "-c", loop)


def freeze(cluster: BootedLab, name: str, draw: random.Random) -> None:
    """For less than a lease: the fence comes late, and kills what no time is left to stop."""
    most = cluster.times.lease_seconds
    thaw = time.time() + draw.uniform(1, most)
    process.freeze(name, frozen=True)
    try:
        cluster.wait("frozen for long enough", lambda: time.time() >= thaw, most + 5)
    finally:
        process.freeze(name, frozen=False)


def power_off(cluster: BootedLab, name: str, _: random.Random, how: str = "poweroff") -> None:
    """As an administrator does: what runs is stopped first."""
    with suppress(AssertionError):  # the shell may end with the node
        cluster.shell(name, "systemctl", how)
    cluster.wait("off", lambda: not process.is_running(name), PATIENCE_SECONDS)


def reboot(cluster: BootedLab, name: str, draw: random.Random) -> None:
    power_off(cluster, name, draw, "reboot")
    cluster.on(name)


def switch(cluster: BootedLab, name: str, draw: random.Random) -> None:
    verb("switchover", "--to", draw.choice([node for node in cluster.nodes if node != name]))


def nothing(_cluster: BootedLab, _name: str, _: random.Random) -> None:
    """It is well again by itself."""


def power_on(cluster: BootedLab, name: str, _: random.Random) -> None:
    cluster.on(name)


FAULTS: dict[str, tuple[Act, Act]] = {
    "crash": (lambda cluster, name, _: cluster.off(name), power_on),
    "cut": (lambda cluster, name, _: cluster.isolate(name), lambda *_: lab("heal")),
    "hang": (
        lambda cluster, name, _: cluster.hang(name),
        lambda cluster, name, _: cluster.thaw(name),
    ),
    "agent killed": (kill_for_good, shelled("systemctl", "stop", "killing.service")),
    "agent stopped": (shelled("systemctl", "kill", "--signal=STOP", "loader.service"), nothing),
    "freeze": (freeze, nothing),
    "power off": (power_off, power_on),
    "reboot": (reboot, nothing),
    "switch": (switch, nothing),
    "failed check": (shelled("touch", "/run/ails"), shelled("rm", "/run/ails")),
    "failed unit": (
        shelled("systemctl", "kill", "--signal=KILL", demo.UNIT),
        shelled("systemctl", "reset-failed", demo.UNIT),
    ),
}
"""Kind -> what causes it on the node that has the role, and what repairs it."""

STAYS = {"agent stopped", "freeze"}
"""With these the role may stay where it is: the next run, or a thaw, may come in time."""


def kind_of(seed: int, number: int) -> str:
    """The kind of the number-th fault: each comes once in a round, in an order that is drawn."""
    turn, place = divmod(number, len(FAULTS))
    return random.Random(f"{seed} {turn}").sample([*FAULTS], len(FAULTS))[place]


# ---- One after the other


def is_over(cluster: BootedLab, kind: str, victim: str, term: int, began: float) -> bool:
    """Whether another tenure has begun; or, where the role may stay, somebody writes again."""
    if kind not in STAYS:
        return tenures(cluster.writes())[-1][1] > term
    writes_now = any(write.taken for write in cluster.writes(time.time() - 1))
    return writes_now and cluster.has_looked_since(began + 1, [victim])


def settle(cluster: BootedLab) -> None:
    """Wait until the preferred node has the role, for four seconds, and its writes arrive."""
    told = [cluster.status(name).get("prefer") for name in cluster.nodes]
    preferred = next(filter(None, told), next(iter(cluster.nodes)))
    cluster.settles_on(preferred)
    settled = time.time()
    writes = lambda: {write.node for write in cluster.writes(settled)} == {preferred}  # noqa: E731
    cluster.wait(f"written by {preferred}", writes)


def fault(cluster: BootedLab, kind: str, draw: random.Random) -> dict[str, Any]:
    """One fault of the node that has the role, until all is settled again: what it brought."""
    victim, term = tenures(cluster.writes())[-1]
    cause, repair = FAULTS[kind]
    cluster.wait_until(draw.uniform(0, cluster.period_seconds))
    began = time.time()
    cause(cluster, victim, draw)
    over = lambda: is_over(cluster, kind, victim, term, began)  # noqa: E731
    cluster.wait("over", over, PATIENCE_SECONDS)
    repaired = time.time()
    repair(cluster, victim, draw)
    settle(cluster)
    writes, bound = cluster.writes(), bound_seconds(cluster)
    later = [write for write in writes if write.term >= term]
    gaps = {
        "gap_seconds": round(longest_silence_seconds(writes, began, repaired), 2),
        "return_gap_seconds": round(longest_silence_seconds(writes, repaired, time.time()), 2),
    }
    long = [f"{name} {gap:.2f} is over {bound:.2f}" for name, gap in gaps.items() if gap > bound]
    return {
        **{"kind": kind, "victim": victim, "began": began, **gaps, "bound_seconds": bound},
        "tenures": tenures(later),
        "refused": sum(not write.taken for write in later),
        "violations": overlaps(later) + long,
    }


def bound_seconds(cluster: BootedLab) -> float:
    """As `plan` prints it, and then the service starts."""
    return worst_failover_seconds(cluster.times) + START_SECONDS


def measure(cluster: BootedLab, changes: int, seed: int, results: Path) -> None:
    """So many changes of the role, and a line in `results` for each fault, also for the last."""
    while changes > 0:
        number = sum(found["seed"] == seed for found in read(results))
        kind, draw = kind_of(seed, number), random.Random(f"{seed} {number}")
        found: dict[str, Any] = {"kind": kind, "seed": seed, "number": number}
        try:
            found |= fault(cluster, kind, draw)
        except Exception as error:
            note(results, found | {"violations": [f"not judged: {str(error).splitlines()[0]}"]})
            raise
        note(results, found)
        changes -= len(found["tenures"]) - 1


def note(results: Path, found: dict[str, Any]) -> None:
    """Add a line to the file of results, and say it."""
    with results.open("a") as file:
        file.write(f"{json.dumps(found)}\n")
    print(json.dumps(found), flush=True)


# ---- What came of it


def read(results: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none where there is no file yet."""
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )


def print_table(found: list[dict[str, Any]]) -> list[str]:
    """How long nobody wrote, for each kind; gives all violations."""
    judged = [each for each in found if "gap_seconds" in each]
    table = Table("no writes", "times", "median", "95 %", "greatest")
    for kind in FAULTS:
        of_kind = [each for each in judged if each["kind"] == kind]
        changes = sum(len(each["tenures"]) - 1 for each in of_kind)
        row(table, f"{kind}, {changes} role changes", [each["gap_seconds"] for each in of_kind])
        row(table, "  and afterwards", [each["return_gap_seconds"] for each in of_kind])
    bounds = sorted({each["bound_seconds"] for each in judged})
    refused = sum(each["refused"] for each in judged)
    console = Console(width=110)
    console.print(
        f"{sum(len(each['tenures']) - 1 for each in judged)} role changes by {len(judged)} faults;"
        f" {refused} writes refused. By `plan`, and {START_SECONDS} s of start: within"
        f" {', '.join(f'{bound:.1f}' for bound in bounds)} s."
    )
    violations = [
        f"{e['kind']} {e['seed']}/{e['number']}: {w}" for e in found for w in e["violations"]
    ]
    console.print(table, *violations or ["No violation."], sep="\n")
    return violations


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Change the role of a lab with a service.")
    parser.add_argument("--changes", type=int, default=10, help="of the role, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("roles.jsonl"))
    parser.add_argument("--table", type=Path, nargs="+", help="of such files, no lab", default=[])
    return parser.parse_args()


def main() -> int:
    """Bring a lab up, change its role, take it down; or the table. 1 for any violation."""
    asked = arguments()
    if asked.table:
        return 1 if print_table([each for file in asked.table for each in read(file)]) else 0
    before, cluster = len(read(asked.results)), BootedLab(3, 20, 2, demo=True)
    try:
        with stopped_by_terminate():
            cluster.up()
            make_slow(cluster, stubborn="node2")
            cluster.watch()
            settle(cluster)
            measure(cluster, asked.changes, asked.seed, asked.results)
            cluster.stop_watching()
    finally:
        lab("down")
    two = moments_with_two(cluster.sampler.of_nodes())
    print(*two, sep="\n")
    return 1 if print_table(read(asked.results)[before:]) or two else 0


if __name__ == "__main__":
    sys.exit(main())
