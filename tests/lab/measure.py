"""Measure a lab of three real nodes: failover, failback, cold start, and what a run costs.

    python -m tests.lab.measure --period-seconds 20 --crashes 20

Needs root. Every figure comes from the sampler's answers, about twenty a second, or from systemd's
own accounting in the nodes. The seed of the crashes' moments is printed.
"""

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from tests.lab.cluster import BootedLab, lab
from tests.lab.sampler import ask, moments_with_two

RUNS = 12
LOOK_SECONDS = 120
BASELINE = "baseline"
BASELINE_SERVICE = """\
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -c 'import requests'
CPUAccounting=yes
"""


def failover_and_failback(cluster: BootedLab, draw: random.Random) -> tuple[float, float]:
    """Seconds from a crash of node1 to the next node's first 200, and without one at its return."""
    cluster.settles_on("node1")
    time.sleep(draw.uniform(0, cluster.period_seconds))  # a phase of the period, not a wait
    cluster.off("node1")
    crashed = cluster.last_200("node1")
    cluster.wait("node2 active", lambda: cluster.active() == {"node2"})
    first = cluster.first_200("node2", since=crashed)
    cluster.on("node1")
    cluster.wait("node1 active again", lambda: cluster.active() == {"node1"})
    back = cluster.first_200("node1", since=first or 0)
    assert first is not None
    assert back is not None
    return first - crashed, max(0.0, back - cluster.last_200("node2"))


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


def cold_start(cluster: BootedLab) -> float:
    """Seconds from power on of all nodes to the first 200."""
    cluster.off(*cluster.nodes)
    began = time.time()
    lab("up")
    cluster.wait("active", lambda: bool(cluster.active()))
    return (
        min(
            first
            for name in cluster.nodes
            if (first := cluster.first_200(name, since=began)) is not None
        )
        - began
    )


def runs_of(cluster: BootedLab, name: str, unit: str) -> tuple[list[float], list[float]]:
    """CPU seconds and wall seconds of a unit's next runs on a node, as systemd counts them.

    A loop in the node looks, four times a period: this command's own weight stays away from it.
    """
    period = cluster.period_seconds
    properties = "CPUUsageNSec,ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic"
    looks = 4 * min(RUNS, LOOK_SECONDS // period)
    look = f"systemctl show {unit} -p {properties}; echo; sleep {period / 4}"
    found: dict[int, tuple[float, float]] = {}
    for _ in range(-(-4 * RUNS // looks)):
        said = cluster.shell(name, "sh", "-c", f"for i in $(seq {looks}); do {look}; done")
        for block in said.strip().split("\n\n"):
            run = dict(line.split("=", 1) for line in block.splitlines())
            began, ended = (
                int(run[f"ExecMain{word}TimestampMonotonic"] or 0) for word in ("Start", "Exit")
            )
            if ended > began:
                found[ended] = int(run["CPUUsageNSec"]) / 1e9, (ended - began) / 1e6
    return [cpu for cpu, _ in found.values()], [wall for _, wall in found.values()]


def add_baseline(cluster: BootedLab) -> None:
    """`import requests` as a unit of every node, half a period after the agent.

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


def cost_of_runs(cluster: BootedLab, table: Table) -> None:
    """Rows with the CPU and the wall clock of a run, in an undisturbed cluster."""
    add_baseline(cluster)
    base = statistics.median(runs_of(cluster, "node2", f"{BASELINE}.service")[0])
    for name, role in (("node1", "active"), ("node2", "passive")):
        cpu, wall = runs_of(cluster, name, "loader.service")
        of_base = [seconds / base for seconds in cpu]
        row(table, f"a run on the {role} node: CPU, of `import requests`", of_base, "")
        row(table, f"a run on the {role} node: wall clock", wall)
    row(table, "`import requests` itself: CPU", [base])
    for name in cluster.nodes:
        cluster.shell(name, "systemctl", "stop", f"{BASELINE}.timer")


def row(table: Table, what: str, values: Sequence[float], unit: str = "s") -> None:
    """Median and greatest of what was measured."""
    table.add_row(
        what,
        str(len(values)),
        f"{statistics.median(values):.2f} {unit}",
        f"{max(values):.2f} {unit}",
    )


def measure(cluster: BootedLab, crashes: int, freezes: int, draw: random.Random) -> Table:
    """All figures of a lab that is up."""
    table = Table("what", "times", "median", "greatest")
    cluster.settles_on("node1")
    cost_of_runs(cluster, table)
    pairs = [failover_and_failback(cluster, draw) for _ in range(crashes)]
    if pairs:
        row(table, "failover: crash to the next 200", [pair[0] for pair in pairs])
        row(table, "failback: nobody active", [pair[1] for pair in pairs])
    if freezes:
        late = [answers_after_thaw_seconds(cluster) for _ in range(freezes)]
        row(table, "frozen past its lease: answers beside its successor", late)
    row(table, "cold start: power on of all to the first 200", [cold_start(cluster)])
    return table


def main() -> int:
    """Bring a lab up, measure it, take it down."""
    parser = argparse.ArgumentParser(description="Measure a lab of three real nodes.")
    parser.add_argument("--period-seconds", type=int, default=2)
    parser.add_argument("--crashes", type=int, default=20)
    parser.add_argument("--freezes", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    cluster = BootedLab(3, asked.period_seconds)
    try:
        cluster.up()
        cluster.watch()
        table = measure(cluster, asked.crashes, asked.freezes, random.Random(asked.seed))
        cluster.stop_watching()
    finally:
        lab("down")
    samples = cluster.sampler.of_nodes()
    doubles = moments_with_two(samples)
    console = Console()
    console.print(
        f"Period {asked.period_seconds} s, {asked.crashes} crashes, {asked.freezes} freezes,"
        f" seed {asked.seed}; {os.cpu_count()} cores, {platform.system()} {platform.release()},"
        f" Python {platform.python_version()}. `lab up` to the first 200:"
        f" {cluster.first_active_seconds:.1f} s. {len(samples)} samples, two nodes answered 200"
        f" in {len(doubles)} of them."
    )
    console.print(table, *doubles, sep="\n")
    return 1 if doubles else 0


if __name__ == "__main__":
    sys.exit(main())
