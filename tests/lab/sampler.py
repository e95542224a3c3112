"""Asks every node for its probe all the time, and says afterwards whether two ever answered 200.

A sample knows only that the answer was made between `began` and `ended`. So what counts is what is
certain: a node is active from its first to its last answer of a row of 200s, and a 200 of another
node that began and ended within such a row is a moment with two.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import groupby, pairwise

LOAD_BALANCER = "load balancer"
TIMEOUT_SECONDS = 0.5
ACTIVE_NODE = re.compile(r"([\w-]+) is active")


@dataclass(frozen=True)
class Sample:
    """One question for /probe.html. `status` is None where no answer came within the timeout."""

    target: str  # a node's name, or LOAD_BALANCER
    began: float  # wall clock, seconds
    ended: float
    status: int | None
    active: str = ""  # the node that the page names


@dataclass
class Sampler:
    """Samples of every target at its address, about twenty a second, from `start` to `stop`."""

    addresses: Mapping[str, str]
    interval_seconds: float = 0.05
    port: int = 80
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for target, address in self.addresses.items():
            thread = threading.Thread(target=self._watch, args=(target, address), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def latest(self, target: str) -> Sample:
        """The newest sample; waits for the first one."""
        deadline = time.time() + 5
        while not self.samples[target] and time.time() < deadline:
            time.sleep(self.interval_seconds)
        return self.samples[target][-1]

    def of_nodes(self, since: float = 0) -> list[Sample]:
        """The samples of all nodes that began at `since` or later."""
        return [
            sample
            for target, samples in self.samples.items()
            if target != LOAD_BALANCER
            for sample in list(samples)
            if sample.began >= since
        ]

    def _watch(self, target: str, address: str) -> None:
        while not self._stopping.wait(self.interval_seconds):
            self.samples[target].append(ask(target, address, self.port))


def ask(target: str, address: str, port: int = 80) -> Sample:
    """Ask once for the probe."""
    began = time.time()
    connection = HTTPConnection(address, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/probe.html")
        answer = connection.getresponse()
        named = ACTIVE_NODE.search(answer.read(1000).decode(errors="replace"))
    except (OSError, HTTPException):
        return Sample(target, began, time.time(), None)
    finally:
        connection.close()
    return Sample(target, began, time.time(), answer.status, named[1] if named else "")


def certainly_active(samples: Iterable[Sample]) -> Iterator[tuple[float, float]]:
    """From when to when one node certainly was active: its rows of answers 200."""
    for status, row in groupby(samples, key=lambda sample: sample.status):
        answers = list(row)
        if status == 200:
            yield answers[0].ended, answers[-1].began


def answers_beside(samples: Iterable[Sample]) -> Iterator[tuple[Sample, str, float, float]]:
    """Every answer 200 that fell into a time in which another node certainly was active.

    With it that other node, and from when to when it was.
    """
    by_node = defaultdict(list)
    for sample in samples:
        by_node[sample.target].append(sample)
    for node, own in by_node.items():
        for start, end in certainly_active(own):
            for other, others in by_node.items():
                for sample in others if other != node else ():
                    if sample.status == 200 and start < sample.began and sample.ended < end:
                        yield sample, node, start, end


def moments_with_two(samples: Iterable[Sample]) -> list[str]:
    """A sentence for each of them."""
    return [
        f"{late.target} answered 200 at {late.began:.2f}, {node} was active {start:.2f}-{end:.2f}"
        for late, node, start, end in answers_beside(samples)
    ]


def longest_gap_seconds(samples: Iterable[Sample], since: float, until: float) -> float:
    """The longest time, in that span, without an answer 200 of any node."""
    return longest_seconds(
        (sample.ended for sample in samples if sample.status == 200), since, until
    )


def longest_seconds(moments: Iterable[float], since: float, until: float) -> float:
    """The longest time, in that span, without any of these moments."""
    inside = sorted(moment for moment in moments if since < moment < until)
    return max(after - before for before, after in pairwise([since, *inside, until]))
