"""Steps that need each other, run as early as they can be, at the same time where they may."""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from azure.core.exceptions import AzureError

from deploy import Refusal


@dataclass(frozen=True)
class Step:
    """One thing to do, once everything it needs is done."""

    name: str
    run: Callable[[], Any]
    needs: frozenset[str] = frozenset()


class Watch:
    """Told what happens, always from the thread that called `run_steps`. This one keeps quiet."""

    def started(self, name: str) -> None:
        """A step began."""

    def ended(self, name: str, outcome: object, elapsed_seconds: float) -> None:
        """A step is done, or `outcome` is the exception that ended it."""


@dataclass
class Result:
    """What became of the steps, by name; a step that is nowhere never started."""

    done: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)  # since when, on the monotonic clock
    interrupted: bool = False


def run_steps(steps: Iterable[Step], watch: Watch) -> Result:
    """Run every step whose needs are met until none is left; a failure stops only what needs it.

    Ctrl-C returns at once, with what is under way still in `running`: threads are daemons, and
    Azure finishes by itself what it accepted. Every step's own waits are bounded.
    """
    waiting = {step.name: step for step in steps}
    result = Result()
    ended: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
    try:
        while True:
            for step in [s for s in waiting.values() if s.needs <= result.done.keys()]:
                del waiting[step.name]
                start(step, result, ended, watch)
            if not result.running:
                return result
            # The system may give Ctrl-C to another thread: this one learns of it once it wakes.
            with suppress(queue.Empty):
                settle(*ended.get(timeout=0.2), result, watch)
    except KeyboardInterrupt:
        result.interrupted = True
        return result


def start(
    step: Step, result: Result, ended: "queue.SimpleQueue[tuple[str, object]]", watch: Watch
) -> None:
    """Run a step in a thread of its own."""
    result.running[step.name] = time.monotonic()
    watch.started(step.name)
    threading.Thread(target=work, args=(step, ended), daemon=True, name=step.name).start()


def work(step: Step, ended: "queue.SimpleQueue[tuple[str, object]]") -> None:
    """The body of a step's thread: whatever happens, its end is told."""
    outcome: object = RuntimeError("a fault of this program, told above")
    try:
        outcome = step.run()
    except (AzureError, Refusal, OSError) as error:
        outcome = error
    finally:
        ended.put((step.name, outcome))


def settle(name: str, outcome: object, result: Result, watch: Watch) -> None:
    """File what a step came to."""
    elapsed_seconds = time.monotonic() - result.running.pop(name)
    if isinstance(outcome, Exception):
        result.failed[name] = outcome
    else:
        result.done[name] = outcome
    watch.ended(name, outcome, elapsed_seconds)
