"""Measure a lab of three real nodes: failover, failback, handover, cold start, and what it costs.

    python -m tests.lab.measure --beside 2/2 20/20 --crashes 40 --gap-crashes 10 --boundaries 200

Needs root. Every figure comes from the sampler's answers, about twenty a second, from systemd's own
accounting in the nodes, or from what a node noted of its looks. The seed of the moments is printed.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.lab.cluster import BootedLab, busy_cores, lab
from tests.lab.sampler import Sample, ask, moments_with_two

WALL_SECONDS = 20
"""The CPU is told for so much wall clock, whatever the period."""
COST_SECONDS = 140  # and a period more: less than a command in a node may take
BASELINE = "baseline"
BASELINE_SERVICE = """\
[Unit]
StartLimitIntervalSec=0
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -c 'import requests'
CPUAccounting=yes
"""
AT = "at() { sleep $(date +%s.%N | awk '{ left = $1 - PHASE; print PERIOD - left % PERIOD }'); }"
"""A loop in the node waits by itself: this command's own weight stays away from it."""

Timings = tuple[int, int]  # seconds from run to run, and from look to look


def returned(cluster: BootedLab, since: float) -> float:
    """Seconds without an active node when node1 takes the role back from node2."""
    cluster.wait("node1 active again", lambda: cluster.active() == {"node1"})
    back = cluster.first_200("node1", since=since)
    assert back is not None
    return max(0.0, back - cluster.last_200("node2"))


def failover_and_failback(cluster: BootedLab, into_seconds: float) -> tuple[float, float]:
    """Seconds from a crash of node1 to the next node's first 200, and without one at its return."""
    cluster.settles_on("node1")
    cluster.wait_until(into_seconds)
    cluster.off("node1")
    crashed = cluster.last_200("node1")
    cluster.wait("node2 active", lambda: cluster.active() == {"node2"})
    first = cluster.first_200("node2", since=crashed)
    assert first is not None
    cluster.on("node1")
    return first - crashed, returned(cluster, since=first)


def handover_and_failback(cluster: BootedLab, into_seconds: float) -> tuple[float, float, float]:
    """Seconds from a planned stop to the successor, without one then, and without one at return."""
    cluster.settles_on("node1")
    cluster.wait_until(into_seconds)
    asked = time.time()
    cluster.shell("node1", "systemctl", "stop", "--no-block", "loader.timer")
    cluster.wait("node2 active", lambda: cluster.active() == {"node2"})
    first = cluster.first_200("node2", since=asked)
    assert first is not None
    nobody_seconds = max(0.0, first - cluster.last_200("node1"))
    cluster.shell("node1", "systemctl", "start", "loader.timer")
    return first - asked, nobody_seconds, returned(cluster, since=first)


def answers_after_thaw_seconds(cluster: BootedLab) -> float:
    """For how long a whole machine that was frozen past its lease answers 200 when it goes on.

    Asked without a pause, while its successor is active: the one known exception to "never two".
    """
    cluster.settles_on("node1")
    cluster.freeze("node1")
    cluster.wait("node2 active", lambda: cluster.active() == {"node2"})
    address, last = cluster.nodes["node1"], 0.0
    with ThreadPoolExecutor(1) as pool:
        thawing = pool.submit(cluster.thaw, "node1")
        began = time.time()
        while not thawing.done() or time.time() < began + 2:
            sample = ask("node1", address)
            if sample.status == 200:
                if ask("node2", cluster.nodes["node2"]).status != 200:
                    break  # it took the role back, as it should
                last = sample.ended - began
        thawing.result()
    return last


def cold_start(cluster: BootedLab, into_seconds: float) -> float:
    """Seconds from power on of all nodes to the first 200."""
    cluster.off(*cluster.nodes)
    cluster.wait_until(into_seconds)
    began = time.time()
    lab("up")
    cluster.wait("active", lambda: bool(cluster.active()))
    firsts = (cluster.first_200(name, since=began) for name in cluster.nodes)
    return min(first for first in firsts if first is not None) - began


# ---- What it costs


class Cost(NamedTuple):
    """CPU seconds in `WALL_SECONDS` of wall clock, as systemd counts them on one node."""

    unit: float
    apache: float
    manager: float  # systemd itself, and what this command asks of it


def waiting_loop(cluster: BootedLab, phase_seconds: float, times: int, look: str) -> str:
    """A shell script that does `look` so often, at that phase of the period."""
    at = AT.replace("PHASE", str(phase_seconds)).replace("PERIOD", str(cluster.period_seconds))
    return f"{at}; for i in $(seq {times}); do at; {look}; sleep 0.1; done"


def cpu_of(unit: str) -> str:
    return f"systemctl show --value -p CPUUsageNSec {unit}"


def looked_at(cluster: BootedLab) -> tuple[dict[str, Cost], float]:
    """What each node spent, and the median of `import requests` on all of them, in CPU seconds.

    Looked at half a second before each tick: the run is over by then, and the baseline, too.
    """
    period = cluster.period_seconds
    runs = COST_SECONDS // period
    totals = f"{cpu_of('apache2.service')}; {cpu_of('init.scope')}"
    look = f"{cpu_of('loader.service')}; {cpu_of(f'{BASELINE}.service')}; {totals}"
    script = waiting_loop(cluster, period - 0.5, runs + 1, look)
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda name: cluster.shell(name, "sh", "-c", script), cluster.nodes))
    costs, bases = {}, list[float]()
    for name, text in zip(cluster.nodes, said, strict=True):
        numbers = [int(word) / 1e9 for word in text.split()]
        unit, base, apache, manager = (numbers[n::4] for n in range(4))
        share = WALL_SECONDS / (runs * period)
        costs[name] = Cost(
            statistics.fmean(unit[1:]) * WALL_SECONDS / period,
            (apache[-1] - apache[0]) * share,
            (manager[-1] - manager[0]) * share,
        )
        bases += base[1:]
    return costs, statistics.median(bases)


def cost(cluster: BootedLab) -> tuple[dict[str, Cost], float]:
    """`looked_at`, with `import requests` as a unit of every node, half a period after the agent.

    At one moment on all nodes, as the agent runs: they share this machine's caches and cores.
    """
    period = cluster.period_seconds
    timer = f"[Timer]\nOnCalendar=*:*:{period // 2}/{period}\nAccuracySec=10ms\n"
    for name in cluster.nodes:
        units = cluster.root(name) / "etc/systemd/system"
        (units / f"{BASELINE}.service").write_text(BASELINE_SERVICE)
        (units / f"{BASELINE}.timer").write_text(timer)
        cluster.shell(name, "systemctl", "daemon-reload")
        cluster.shell(name, "systemctl", "start", f"{BASELINE}.timer")
    cluster.wait_until(0)
    cluster.wait_until(period - 1)
    found = looked_at(cluster)
    for name in cluster.nodes:
        cluster.shell(name, "systemctl", "stop", f"{BASELINE}.timer")
    return found


def cost_table(costs: dict[Timings, tuple[dict[str, Cost], float]]) -> Table:
    """Multiples of one `import requests`, a column for each pair of period and look."""
    names = [f"{period}/{look}" for period, look in costs]
    table = Table(f"CPU in {WALL_SECONDS} s, in `import requests`", *names)

    def add(what: str, name: str, of: Callable[[Cost], float]) -> None:
        table.add_row(what, *(f"{of(nodes[name]) / base:.2f}" for nodes, base in costs.values()))

    for name, role in (("node1", "active"), ("node2", "passive"), ("node3", "passive")):
        add(f"{name}, {role}: loader.service", name, lambda spent: spent.unit)
        add("  its apache2.service", name, lambda spent: spent.apache)
        add("  both", name, lambda spent: spent.unit + spent.apache)
        add("  beside: systemd itself", name, lambda spent: spent.manager)
    table.add_row("`import requests`", *(f"{base * 1000:.0f} ms" for _, base in costs.values()))
    return table


# ---- From run to run


class Starts(NamedTuple):
    """How runs began, in seconds, and what node1 answered meanwhile."""

    from_exec: list[float]  # from the start of the process to the first look's stamp
    from_tick: list[float]  # from the tick to that stamp
    answers: list[Sample]


def starts(cluster: BootedLab, boundaries: int) -> Starts:
    """The next runs of all nodes, so many in all, each seen before its second look."""
    ticks = -(-boundaries // len(cluster.nodes))
    shown = "systemctl show --value -p ExecMainStartTimestampMonotonic loader.service"
    look = f"cat /run/bootstrap/state.json; echo; {shown}"
    script = waiting_loop(cluster, 0.8 * cluster.look_seconds, 1, look)
    began, from_exec, from_tick = time.time(), list[float](), list[float]()
    with ThreadPoolExecutor() as pool:
        for _ in range(ticks):
            for said in pool.map(lambda n: cluster.shell(n, "sh", "-c", script), cluster.nodes):
                noted, exec_microseconds = said.split("\n")[:2]
                state = json.loads(noted)
                stamp = state["began_seconds"]
                from_exec.append(stamp - int(exec_microseconds) / 1e6)
                from_tick.append((stamp + state["wall_offset_seconds"]) % cluster.period_seconds)
    answers = [s for s in cluster.sampler.samples["node1"] if s.began > began]
    return Starts(from_exec, from_tick, answers)


def boundaries(cluster: BootedLab, count: int, table: Table) -> None:
    """Rows of `starts`, on an idle machine (a fifth of them) and with every core busy."""
    for load in ("idle", "busy"):
        wanted = count if load == "busy" else max(3, count // 5)
        bound_seconds = (wanted + 9) * cluster.period_seconds
        with busy_cores(bound_seconds) if load == "busy" else nullcontext():
            found = starts(cluster, wanted)
        lost = [s for s in found.answers if s.status not in (200, None)]
        row(table, f"{load}: process started to its first look", found.from_exec)
        row(table, f"{load}: tick to the first look", found.from_tick)
        table.add_row(f"{load}: answers of node1", str(len(found.answers)), f"{len(lost)} passive")


# ---- All of it


def row(table: Table, what: str, values: Sequence[float]) -> None:
    """Median, the value that 95 % keep below, and the greatest of what was measured."""
    if values:
        ordered = sorted(values)
        most = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        figures = (statistics.median(values), most, ordered[-1])
        table.add_row(what, str(len(values)), *(f"{figure:.2f} s" for figure in figures))


def measure(cluster: BootedLab, asked: argparse.Namespace, table: Table) -> None:
    """All that has to do with roles, of a lab that is up and watched."""
    draw = random.Random(asked.seed)
    period, look = cluster.period_seconds, cluster.look_seconds
    cluster.settles_on("node1")
    if asked.boundaries:
        boundaries(cluster, asked.boundaries, table)
    # A crash takes the lab half a second.
    gaps = [draw.uniform(period - look, period - 0.7) for _ in range(asked.gap_crashes)]
    for what, phases in (
        ("crash", [draw.uniform(0, period) for _ in range(asked.crashes)]),
        ("crash between two runs", gaps),
    ):
        pairs = [failover_and_failback(cluster, phase) for phase in phases]
        row(table, f"{what}: to the next 200", [pair[0] for pair in pairs])
        row(table, f"{what}, return: nobody active", [pair[1] for pair in pairs])
    planned = [
        handover_and_failback(cluster, draw.uniform(0, period)) for _ in range(asked.handovers)
    ]
    row(table, "planned stop: to the next node's 200", [each[0] for each in planned])
    row(table, "planned stop: nobody active", [each[1] for each in planned])
    row(table, "planned stop, return: nobody active", [each[2] for each in planned])
    late = [answers_after_thaw_seconds(cluster) for _ in range(asked.freezes)]
    row(table, "frozen past its lease: answers beside its successor", late)
    colds = [cold_start(cluster, draw.uniform(0, period)) for _ in range(asked.cold_starts)]
    row(table, "cold start: power on of all to the first 200", colds)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""

    def timings(text: str) -> Timings:
        period, look = text.split("/")
        return int(period), int(look)

    parser = argparse.ArgumentParser(description="Measure a lab of three real nodes.")
    parser.add_argument("--period-seconds", type=int, default=20)
    parser.add_argument("--look-seconds", type=int, default=2)
    parser.add_argument("--pause-seconds", type=int, default=5, help="that the cluster absorbs")
    parser.add_argument("--crashes", type=int, default=0, help="at random moments")
    parser.add_argument("--gap-crashes", type=int, default=0, help="between two runs")
    parser.add_argument("--handovers", type=int, default=0, help="planned stops of the agent")
    parser.add_argument("--cold-starts", type=int, default=0)
    parser.add_argument("--freezes", type=int, default=0)
    parser.add_argument("--boundaries", type=int, default=0, help="from run to run, cores busy")
    parser.add_argument("--cost", action="store_true", help="CPU of undisturbed nodes")
    parser.add_argument("--beside", type=timings, nargs="*", default=[], help="and at PERIOD/LOOK")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Bring labs up, measure them, take them down."""
    asked, costs, samples = arguments(), {}, list[Sample]()
    table = Table("what", "times", "median", "95 %", "greatest")
    first = (asked.period_seconds, asked.look_seconds)
    for timings in (first, *asked.beside):
        period, look = timings
        cluster = BootedLab(3, period, look, asked.pause_seconds)
        try:
            cluster.up()
            if asked.cost or asked.beside:
                costs[timings] = cost(cluster)
            if timings == first:
                cluster.watch()
                measure(cluster, asked, table)
                cluster.stop_watching()
                samples = cluster.sampler.of_nodes()
        finally:
            lab("down")
    doubles = moments_with_two(samples)
    console = Console(width=110)
    console.print(
        f"{' '.join(sys.argv[1:])}\n{os.cpu_count()} cores, {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}. {len(samples)} samples, two"
        f" nodes answered 200 in {len(doubles)} of them."
    )
    console.print(table, cost_table(costs) if costs else "", *doubles, sep="\n")
    return 1 if doubles else 0


if __name__ == "__main__":
    sys.exit(main())
