"""The times of the protocol as docs/ shows them, from the agent's own: a picture and the tables.

    python -m tests.docs.timeline

writes docs/timeline.svg, and the tables of times between their markers in docs/protocol.md. A test
holds both, so a time that is changed in the agent is changed there by this command, or not at all.
"""

import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

from agent.loader import (
    DRIFT,
    GAP_SECONDS,
    READY_LOOKS,
    SLEW,
    Timing,
    tick_spread_seconds,
    timing,
    worst_failover_seconds,
)

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = DOCS / "timeline.svg"
PROTOCOL = DOCS / "protocol.md"
SHOWN = ((20, 2, 5), (20, 2, 0), (20, 20, 0))
"""Period, look and pause, in seconds: the default, the same without pauses, and one look a run."""
OPEN, CLOSE = "<!-- {}: by `python -m tests.docs.timeline` -->", "<!-- end of {} -->"


# ---- The tables


class Row(NamedTuple):
    """One time of the protocol. `formula` is in the symbols of the rows before it."""

    symbol: str
    meaning: str
    formula: str
    value: Callable[[Timing], float]
    unit: str = " s"
    decimals: int = 2


def round_seconds(times: Timing) -> float:
    """R: one round of requests, and the wait after it."""
    return times.timeout_seconds + times.poll_seconds


ROWS = (
    Row("period", "from one run to the next", "", lambda t: t.period_seconds),
    Row("T", "from one look to the next", "", lambda t: t.look_seconds),
    Row(
        "G",
        "the first look of a run may begin so much later",
        f"{GAP_SECONDS:g} if T < period else 0",
        lambda t: t.gap_seconds,
    ),
    Row("P", "a host may pause a machine at no risk", "", lambda t: t.pause_seconds),
    Row("D", "a vote binds the voter", "T + G + max(2.5, 0.35 T) + P", lambda t: t.promise_seconds),
    Row("rho", "two raw clocks may drift", "", lambda _: 100 * DRIFT, " %"),
    Row(
        "L",
        "a grant lasts for the candidate, from its stamp",
        "D (1 - rho) / (1 + rho) - P",
        lambda t: t.lease_seconds,
    ),
    Row("slew", "the fence's clock may be made to go slower", "", lambda _: 100 * SLEW, " %"),
    Row("F", "fence to end of lease", "max(0.2, 0.05 T) + slew L", lambda t: t.margin_seconds),
    Row("timeout", "one request", "max(0.3, 0.05 T)", lambda t: t.timeout_seconds),
    Row(
        "connect",
        "the first request to a peer, for which nobody waits",
        "min(3, max(0.3, 0.075 T))",
        lambda t: t.connect_seconds,
    ),
    Row("wait", "between two polls", "max(0.1, T / 80)", lambda t: t.poll_seconds),
    Row("R", "a round: one request and a wait", "timeout + wait", round_seconds),
    Row("W", "looks may be apart at no cost", "L - F - T - G - R", tick_spread_seconds, " s", 1),
    Row(
        "fresh",
        "a marker that has not changed for so long is absent",
        "max(1.45 T, L - F)",
        lambda t: t.fresh_seconds,
    ),
    Row("stay", "least look that is not calm", "max(0.3 T, 3 R)", lambda t: t.stay_seconds),
    Row("rest", "who rests waits for others to ask", "0.2 T", lambda t: t.rest_seconds),
    Row(
        "end",
        "longest look that ends a run",
        "min(0.85 T, 0.95 T - R - 0.1)",
        lambda t: t.end_seconds,
    ),
    Row("K", "good looks before a failback", "", lambda _: READY_LOOKS, ""),
)


def number(value: float, decimals: int = 2) -> str:
    """A number for people: at most so many decimals, and no more than it has."""
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def table_of_times() -> str:
    """Every time of the protocol for each of `SHOWN`, with what it is made of."""
    lines = ["| | meaning | is | " + " | ".join(f"{p} / {t} / {q} s" for p, t, q in SHOWN) + " |"]
    lines.append("|---|---|---|" + "---|" * len(SHOWN))
    for row in ROWS:
        values = (number(row.value(timing(*shown)), row.decimals) + row.unit for shown in SHOWN)
        formula = f"`{row.formula}`" if row.formula else ""
        lines.append(f"| {row.symbol} | {row.meaning} | {formula} | {' | '.join(values)} |")
    return "\n".join(lines)


def looks_and_pauses(period: float, look: float, pause: float) -> str:
    """The other two settings in words."""
    looks = f"a look every {look} s" if look < period else "one look a run"
    return f"{looks}, pauses of {pause} s absorbed" if pause else f"{looks}, no pauses absorbed"


def table_for_operators() -> str:
    """What follows from the times for whoever waits for a node."""
    wanted: tuple[tuple[str, Callable[[Timing], str]], ...] = (
        (
            "the active node dies: the next one serves after, at most",
            lambda t: f"{worst_failover_seconds(t):.1f} s",
        ),
        (
            "a node that booted votes for nobody for (D)",
            lambda t: f"{number(t.promise_seconds)} s",
        ),
        (
            "looks may be so far apart at no cost (W)",
            lambda t: f"{number(tick_spread_seconds(t), 1)} s",
        ),
        (
            "a node that says nothing new counts as absent after (fresh)",
            lambda t: f"{number(t.fresh_seconds)} s",
        ),
    )
    heads = (f"{p} s, {looks_and_pauses(p, t, q)}" for p, t, q in SHOWN)
    lines = ["| at a period of | " + " | ".join(heads) + " |", "|---|" + "---|" * len(SHOWN)]
    for what, value in wanted:
        lines.append(f"| {what} | {' | '.join(value(timing(*shown)) for shown in SHOWN)} |")
    return "\n".join(lines)


TABLES = {"times": table_of_times, "for operators": table_for_operators}


def with_tables(text: str) -> str:
    """The document with every table between its markers written anew.

    Raises `ValueError` where a marker is missing.
    """
    for name, table in TABLES.items():
        before, opened, rest = text.partition(OPEN.format(name))
        _, closed, after = rest.partition(CLOSE.format(name))
        if not opened or not closed:
            raise ValueError(f"no markers for the table {name!r}: put {OPEN.format(name)} there")
        text = f"{before}{opened}\n{table()}\n{closed}{after}"
    return text


# ---- The picture

LEFT, TOP, SCALE, WIDTH, HEIGHT = 162, 84, 62, 1040, 480

COLOURS = """
  rect.page { fill: #ffffff; stroke: #d0d7de; } text { fill: #1f2328; } text.pale { fill: #59636e; }
  circle { fill: #ffffff; stroke: #1f2328; stroke-width: 2; } line { stroke: #59636e; }
  rect.lease { fill: #0a5fcb; } rect.margin { fill: #b6d4fb; } rect.vote { fill: #1a7f37; }
  rect.late { fill: #f6cf9b; } rect.run { fill: #d6dae0; } text.on { fill: #ffffff; }
  text.fence { fill: #cf222e; } line.fence { stroke: #cf222e; stroke-width: 2; }
"""

DARK = """
    rect.page { fill: #0d1117; stroke: #3d444d; } text { fill: #f0f6fc; }
    text.pale { fill: #a3acb6; } circle { fill: #0d1117; stroke: #f0f6fc; }
    line { stroke: #a3acb6; } rect.lease { fill: #1f6feb; } rect.margin { fill: #14386e; }
    rect.vote { fill: #238636; } rect.late { fill: #7a5210; } rect.run { fill: #30363d; }
    text.fence { fill: #ff6a61; } line.fence { stroke: #ff6a61; }
"""

STYLE = f"""
  svg {{ font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }}
  text.name {{ font-weight: 600; }} line.tick {{ stroke-dasharray: 4 4; }}{COLOURS}
  @media (prefers-color-scheme: dark) {{{DARK}  }}
"""


def across(seconds: float) -> float:
    """Where a moment lies, in pixels from the left."""
    return round(LEFT + SCALE * seconds, 1)


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text that begins, has its middle or ends at (x, y)."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def bar(y: float, begin: float, end: float, fill: str, label: str = "") -> str:
    """A length of time, with words in it: white ones where it is dark."""
    kind = "on" if fill in ("lease", "vote") else ""
    x, width = across(begin), round(across(end) - across(begin), 1)
    box = f'<rect x="{x}" y="{y}" width="{width}" height="24" class="{fill}"/>'
    return box + (words(round(x + 9, 1), y + 17, label, kind) if label else "")


def dot(y: float, at: float) -> str:
    """A moment at which something is written or read."""
    return f'<circle cx="{across(at)}" cy="{y}" r="6"/>'


def upright(at: float, begin: float, end: float, kind: str = "") -> str:
    """A moment that several rows share."""
    return f'<line x1="{across(at)}" y1="{begin}" x2="{across(at)}" y2="{end}" class="{kind}"/>'


def named(y: float, name: str, more: str) -> str:
    """Whose row this is."""
    return words(16, y + 10, name, "name") + words(16, y + 27, more, "pale")


def grid(times: Timing) -> list[str]:
    """The title, the seconds, and the looks."""
    look = times.look_seconds
    end = int(worst_failover_seconds(times)) + 2
    title = f"Stamp, vote, lease, fence and promise, with a look every {number(look)} s"
    what = "Node c writes a stamp at 0 s, v votes for it, and no later one is granted."
    drawn = [words(16, 24, title, "name"), words(16, 42, what, "pale")]
    drawn += [words(across(at), TOP - 8, f"{at}", "pale", "middle") for at in range(end)]
    drawn += [words(across(0) - 14, TOP - 8, "seconds", "pale", "end")]
    tick = look * (worst_failover_seconds(times) // look)  # at worst
    for at in range(0, end, int(look)):
        drawn += [upright(at, TOP, HEIGHT - 22, "tick")]
        below = "look" if at != tick else "tick: a new run, up to G later"
        drawn += [words(across(at), HEIGHT - 8, below, "pale", "middle")]
    return drawn


def holder(times: Timing) -> list[str]:
    """The active node: its lease, a pause in it, its fence, and Apache's limit."""
    lease, fence = times.lease_seconds, times.lease_seconds - times.margin_seconds
    paused = lease + times.pause_seconds
    stands_still = f"P = {number(times.pause_seconds)} s: a pause, its clocks stand still"
    y, below = TOP + 10, TOP + 66
    return [
        named(y, "active node c", "its lease"),
        bar(y, 0, fence, "lease", f"lease: L = {number(lease)} s from the stamp on"),
        bar(y, fence, lease, "margin"),
        words(across(fence) + 4, y + 17, "F"),
        dot(y + 12, 0),
        bar(y, lease, paused, "late", stands_still),
        words(across(paused) + 10, y + 17, "its votes count no more"),
        named(below, "", "its probe.html"),
        bar(below, 0, fence - 1, "lease", "Apache answers 200 for it"),
        bar(below, fence - 1, fence, "margin"),
        upright(fence, y - 6, TOP + 262, "fence"),
        words(across(lease) + 10, below + 8, "fence at L - F: systemd removes the probe;", "fence"),
        words(across(lease) + 10, below + 25, "Apache refuses it, up to a second earlier", "fence"),
    ]


def voter(times: Timing) -> list[str]:
    """The voter: when it reads the stamp, and for how long it is bound."""
    y, read = TOP + 136, round_seconds(times)
    free, over = read + times.promise_seconds, times.lease_seconds + times.pause_seconds
    promise = f"promise: D = {number(times.promise_seconds)} s from when it read the stamp"
    used_up = "and c's use of the vote is over, paused or not"
    return [
        named(y, "its voter v", "its vote for c"),
        bar(y, read, free, "vote", promise),
        dot(y + 12, read),
        upright(over, TOP + 34, y + 24),
        upright(free, y, TOP + 336),
        words(across(free) - 8, y + 42, "only now v may vote for another,", "", "end"),
        words(across(free) - 8, y + 59, used_up, "", "end"),
    ]


def renewal(times: Timing) -> list[str]:
    """Where the next look of the active node renews the lease, at worst the first of a run."""
    y, begin = TOP + 216, times.look_seconds + times.gap_seconds
    spread, fence = tick_spread_seconds(times), times.lease_seconds - times.margin_seconds
    x = across(fence) + 10
    return [
        named(y, "a renewal", "c's next look"),
        bar(y, times.look_seconds, begin, "margin", "G"),
        bar(y, begin, begin + spread, "late", f"W = {number(spread, 1)} s"),
        bar(y, begin + spread, fence, "run", "R"),
        dot(y + 12, begin),
        words(x, y + 8, "c writes its next stamp up to G late, the voter looks"),
        words(x, y + 25, "W later, and a round R: still before the fence"),
    ]


def successor(times: Timing) -> list[str]:
    """The next candidate, where c died with that stamp."""
    y, worst = TOP + 312, worst_failover_seconds(times)
    begin = worst - 2 * round_seconds(times)
    freed = round_seconds(times) + times.promise_seconds
    return [
        named(y, "next candidate d", "where c died at 0 s"),
        bar(y, begin, worst, "run", "looks"),
        dot(y + 12, freed),
        upright(worst, y - 6, y + 46, "fence"),
        words(across(worst) - 8, y + 46, "v is free; then two rounds R:", "", "end"),
        words(across(worst) + 8, y + 46, f"d serves, {worst:.1f} s at most", "fence"),
    ]


def picture(times: Timing) -> str:
    """The timeline as an SVG that needs nothing else, on a page of its own, light or dark."""
    parts = (grid, holder, voter, renewal, successor)
    drawn = "\n".join(line for part in parts for line in part(times))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-label="Stamp, vote, lease, fence and promise on one line of time">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"'
        f' class="page"/>\n{drawn}\n</svg>\n'
    )


def main() -> int:
    """Write the picture and the tables."""
    PICTURE.write_text(picture(timing(*SHOWN[0])), encoding="utf-8")
    PROTOCOL.write_text(with_tables(PROTOCOL.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
