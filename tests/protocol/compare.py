"""Simulate the same seeds with two checkouts: do their clusters end in the same states?

A change that is to change no behaviour is shown to change none. Each checkout's agent runs on that
checkout's own simulator, in a process of its own, for each seed with three and with five nodes:

    git worktree add --detach ../before COMMIT
    python -m tests.protocol.compare ../before . --seeds 1-50 --hours 2

Compared are what each node saved, its markers, its probe, every election and loss with its time,
and the next number that chance would have drawn: one draw more, less or elsewhere shows as well.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SIMULATORS = ("tests/protocol/simulate.py", "tests/simulate.py")
NODES = (3, 5)
CALM_PERIODS, ROUGH_PERIODS, WELL_PERIODS = 3, 30, 6


def simulator_of(checkout: Path) -> Any:
    """The checkout's simulator as a module. Raises `LookupError` where there is none."""
    path = next((path for name in SIMULATORS if (path := checkout / name).exists()), None)
    spec = path and importlib.util.spec_from_file_location("simulator", path)
    if not spec or not spec.loader:
        raise LookupError(f"{checkout}: no simulator: use a checkout with {SIMULATORS[0]}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulator"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def plain(value: Any) -> Any:
    """Values alone, in their order: what a class or a field is called makes no difference."""
    if isinstance(value, Mapping):
        return [[key, plain(value[key])] for key in sorted(value)]
    if isinstance(value, (list, tuple, set, frozenset)):
        ordered = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(each) for each in ordered]
    if isinstance(value, bytes):  # a marker's page
        return value.decode()
    return value


def end_state(simulator: Any, seed: int, nodes: int, hours: float) -> dict[str, Any]:
    """What a cluster of that seed comes to; `hours` at a period of 20 s, else as many periods."""
    conditions_of = getattr(simulator, "conditions_of", None) or simulator.world_of
    conditions = dataclasses.replace(conditions_of(seed), nodes=nodes)
    period = conditions.period_seconds
    simulation = simulator.Simulation(conditions, seed, simulator.load_agent())
    faults = simulator.Faults(simulation, every_seconds=1.25 * period)
    trouble = ""
    try:
        simulation.run_for(CALM_PERIODS * period)
        while simulation.now < hours * 180 * period:
            faults.start()
            simulation.run_for(ROUGH_PERIODS * period)
            faults.stop()
            simulation.run_for(WELL_PERIODS * period)
    except simulator.TwoActive as error:
        trouble = str(error)
    return {
        "trouble": trouble,
        "ended": simulation.now,
        "elections": plain(simulation.elections),
        "losses": plain(simulation.losses),
        "next draw": simulation.random.random(),
        "nodes": {
            name: [plain(node.state), plain(node.markers), node.probe, node.lease_until]
            for name, node in simulation.nodes.items()
        },
    }


def end_states(checkout: Path, seed: int, hours: float) -> list[dict[str, Any]]:
    """The end states of a seed with each number of nodes, from a process of the checkout's own."""
    words = [str(checkout), str(checkout), "--seeds", str(seed), "--hours", str(hours), "--print"]
    command = [sys.executable, "-B", __file__, *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}, seed {seed}: {done.stderr.strip()[-2000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What is not the same, in words."""
    for what, value in one.items():
        if what == "nodes":
            yield from (name for name in value if value[name] != other[what][name])
        elif isinstance(value, list):
            pairs = itertools.zip_longest(value, other[what])
            number, pair = next(((i, p) for i, p in enumerate(pairs) if p[0] != p[1]), (0, None))
            if pair:
                yield f"{what}[{number}] {pair[0]} or {pair[1]}"
        elif value != other[what]:
            yield f"{what} {value!r} or {other[what]!r}"


def seeds_of(text: str) -> range:
    """`7` or `1-50`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    """Print one line for each cluster that ended otherwise; 1 where there is one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--seeds", type=seeds_of, default=range(1, 51), help="7 or 1-50")
    parser.add_argument("--hours", type=float, default=2.0, help="simulated, of each cluster")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--print", action="store_true", help="the first one's end states, as JSON")
    asked = parser.parse_args()
    one, other = (path.resolve() for path in asked.checkouts)
    if asked.print:
        simulator = simulator_of(one)
        states = [end_state(simulator, s, n, asked.hours) for s in asked.seeds for n in NODES]
        print(json.dumps(states))
        return 0
    wrong = elections = 0
    with concurrent.futures.ThreadPoolExecutor(asked.processes) as pool:
        work = [(path, seed, asked.hours) for seed in asked.seeds for path in (one, other)]
        found = pool.map(end_states, *zip(*work, strict=True))
        for seed, firsts, seconds in zip(asked.seeds, found, found, strict=False):  # in turns
            for nodes, first, second in zip(NODES, firsts, seconds, strict=True):
                elections += len(first["elections"])
                if sentence := "; ".join(differences(first, second)):
                    wrong += 1
                    print(f"seed {seed}, {nodes} nodes: {sentence}", flush=True)
    clusters = len(asked.seeds) * len(NODES)
    verdict = f"{wrong} end otherwise" if wrong else "all end in the same states"
    print(f"{clusters} clusters, {asked.hours:g} h each, {elections} elections: {verdict}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
