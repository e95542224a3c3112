"""Judges by the collector's file whether two nodes ever ran the demonstration at the same time.

Refused lines count like any others: that a storage refuses them is no excuse for who sent them.
"""

from collections import defaultdict
from collections.abc import Iterable

from deploy.lab.collector import Write
from tests.lab.sampler import longest_seconds


def overlaps(writes: Iterable[Write]) -> list[str]:
    """A sentence for each term of two nodes, or whose writes do not begin after all older ones'.

    By arrival and by the nodes' own clocks, which are one in the lab. So terms grow, too.
    """
    by_term, found = defaultdict(list), []
    last_arrival = last_time = 0.0
    for write in writes:
        by_term[write.term].append(write)
    for term, lines in sorted(by_term.items()):
        nodes = sorted({line.node for line in lines})
        if len(nodes) > 1 or term < 1:
            found.append(f"term {term} is written by {' and '.join(nodes)}")
        early = last_arrival - min(line.arrival for line in lines)
        sent_early = last_time - min(line.time for line in lines)
        if max(early, sent_early) >= 0:
            found.append(
                f"{nodes[0]} wrote with term {term} for {max(early, sent_early):.2f} s before the"
                f" last write of an older term, at {last_arrival:.2f}"
            )
        last_arrival = max(last_arrival, *(line.arrival for line in lines))
        last_time = max(last_time, *(line.time for line in lines))
    return found


def longest_silence_seconds(writes: Iterable[Write], since: float, until: float) -> float:
    """The longest time, in that span, in which no write was taken."""
    return longest_seconds((write.arrival for write in writes if write.taken), since, until)


def tenures(writes: Iterable[Write]) -> list[tuple[str, int]]:
    """Whose writes were taken with which term, one after the other."""
    return list(dict.fromkeys((write.node, write.term) for write in writes if write.taken))
