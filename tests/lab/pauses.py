"""Pause the active node, a virtual machine, again and again: does a second one answer beside it?

    python -m tests.lab.pauses --seconds 3 5 8 15 30 --phases 10 --step-clock-after 0 1 never

Needs root and QEMU. Node1 stands still at random moments of its own period (the seed is printed),
and its wall clock is set right so long after it goes on. Every node is asked all the time, as often
as an emulated one can be without being kept from its work.
"""

import argparse
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile

from rich.console import Console
from rich.table import Table

from tests.lab.cluster import BootedLab, lab
from tests.lab.host_clock import host_clock
from tests.lab.sampler import Sampler, answers_beside, longest_gap_seconds

NEVER = "never"


@dataclass(frozen=True)
class Pause:
    """What clients saw of one pause, in seconds."""

    into: float  # the period, by the paused node's wall clock, when it began
    beside: float  # after it went on, until the paused node's last answer beside a successor
    answered_on: float  # after it went on, until its last answer before the first without the role
    nobody: float  # the longest time without an active node
    others: int  # answers 200 of all other nodes


@contextmanager
def asked_closely(cluster: BootedLab) -> Iterator[Sampler]:
    """A sampler of the nodes that asks again a hundredth of a second after each answer."""
    sampler = Sampler(cluster.nodes, interval_seconds=0.01)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def paused(cluster: BootedLab, into_seconds: float, seconds: float, step: str) -> Pause:
    """Pause node1, active, a look later than so long after a tick of its clock, and watch.

    Until all has settled again. Nobody else is active when it begins.
    """
    options = [] if step == NEVER else ["--step-clock-after", step]
    cluster.settles_on("node1")
    its_time = float(cluster.shell("node1", "date", "+%s.%N"))  # near the end of what takes seconds
    behind_seconds = time.time() - its_time
    cluster.wait_until((into_seconds + behind_seconds) % cluster.period_seconds)
    cluster.settles_on("node1")  # which it may have lost meanwhile
    with asked_closely(cluster) as sampler:
        began, went_on = cluster.pause("node1", seconds, *options)
        settled_by = time.time() + 3 * cluster.look_seconds
        cluster.wait("three looks later", lambda: time.time() > settled_by)
        cluster.settles_on("node1")
    samples = sampler.of_nodes()
    late = [sample.ended - went_on for sample, *_ in answers_beside(samples)]
    answers = (s for s in sampler.samples["node1"] if s.ended > went_on and s.status is not None)
    at_first = list(takewhile(lambda sample: sample.status == 200, answers))
    return Pause(
        into=(began - behind_seconds) % cluster.period_seconds,
        beside=max(late, default=0.0),
        answered_on=max((sample.ended - went_on for sample in at_first), default=0.0),
        nobody=longest_gap_seconds(samples, began, time.time()),
        others=sum(s.target != "node1" and s.status == 200 for s in samples),
    )


def measure(cluster: BootedLab, asked: argparse.Namespace, table: Table) -> bool:
    """A row for each length and way of setting the clock; gives whether two were ever seen."""
    draw = random.Random(asked.seed)
    ever = False
    for seconds in asked.seconds:
        for step in asked.step_clock_after:
            phases = [draw.uniform(0, cluster.period_seconds) for _ in range(asked.phases)]
            found = [paused(cluster, phase, seconds, step) for phase in phases]
            two = [pause for pause in found if pause.beside]
            ever = ever or bool(two)
            look, period = cluster.look_seconds, cluster.period_seconds
            longest = [
                0.0,
                0.0,
            ]  # within a run; where one ends or begins
            for pause in two:
                between = not look < pause.into < period - look
                longest[between] = max(longest[between], pause.beside)
            nobody = max(pause.nobody for pause in found)
            row = (f"{seconds:g} s", step, str(len(found)), str(len(two)))
            table.add_row(*row, *(f"{each:.2f} s" for each in (*longest, nobody)))
            print(*row, *(f"{pause.into:.1f}: {pause.beside:.2f}" for pause in found), flush=True)
    return ever


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Pause the active node of a lab.")
    parser.add_argument("--period-seconds", type=int, default=20)
    parser.add_argument("--look-seconds", type=int, default=2)
    parser.add_argument("--pause-seconds", type=int, default=5, help="that the cluster absorbs")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3, 5, 8, 15, 30])
    parser.add_argument("--phases", type=int, default=10)
    parser.add_argument("--step-clock-after", nargs="+", default=["0", "1", NEVER])
    parser.add_argument("--host-clock", action="store_true", help="node1 reads a stand-in of it")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Bring a lab up, pause its active node, take it down; 1 where two nodes answered 200."""
    asked = arguments()
    cluster = BootedLab(
        3, asked.period_seconds, asked.look_seconds, asked.pause_seconds, ("node1",)
    )
    names = ("pause", "clock set after", "times", "two active in", "for at most")
    table = Table(*names, "between two runs", "nobody for")
    try:
        cluster.up()
        cluster.watch()
        with ExitStack() as until_the_end:
            if asked.host_clock:
                until_the_end.enter_context(host_clock(cluster, "node1"))
            ever = measure(cluster, asked, table)
        cluster.stop_watching()
    finally:
        lab("down")
    console = Console(width=110)
    console.print(
        f"{' '.join(sys.argv[1:])}\n{os.cpu_count()} cores, {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}, seed {asked.seed}."
    )
    console.print(table)
    return 1 if ever else 0


if __name__ == "__main__":
    sys.exit(main())
