"""The protocol, model-checked: it holds for three nodes, and each of its rules is needed."""

import shutil
from dataclasses import replace

import pytest

from tests.protocol.model.check import (
    HOLDS,
    INCOMPLETE,
    REFUTED,
    SHORT,
    TOOLS,
    Variant,
    check,
    judged,
)

MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
needs_spin = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

PROTOCOL, *BROKEN = SHORT


@needs_spin
def test_no_order_of_steps_makes_two_of_three_nodes_active() -> None:
    outcome = check(PROTOCOL)
    assert outcome.verdict == HOLDS
    assert outcome.states > 2_000_000  # far fewer: the model lost steps, not the protocol errors


@needs_spin
@pytest.mark.parametrize("variant", BROKEN, ids=lambda variant: variant.name)
def test_spin_refutes(variant: Variant) -> None:
    assert check(variant).verdict == REFUTED


@needs_spin
def test_a_search_that_lacks_depth_proves_nothing() -> None:
    assert check(replace(PROTOCOL, depth=12)).verdict.startswith(INCOMPLETE)


@needs_spin
def test_a_search_that_lacks_memory_proves_nothing() -> None:
    assert check(replace(PROTOCOL, memory_mb=300)).verdict.startswith(INCOMPLETE)


@needs_spin
def test_a_search_that_lacks_time_proves_nothing() -> None:
    assert check(replace(PROTOCOL, limit_seconds=1)).verdict.startswith(INCOMPLETE)


def test_an_invalid_end_state_refutes_nothing() -> None:
    output = "pan:1: invalid end state (at depth 7)\nFull statespace search for:\n errors: 1"
    assert judged(output).startswith(INCOMPLETE)
