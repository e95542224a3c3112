"""The times that the documents show are the agent's: picture, tables and formulas."""

import re
from xml.etree import ElementTree

import pytest

from agent.loader import tick_spread_seconds, timing
from tests.docs.timeline import (
    PICTURE,
    PROTOCOL,
    ROWS,
    SHOWN,
    TABLES,
    picture,
    with_tables,
)

EVERY = [
    (period, look, pause)
    for period in range(2, 61)
    for look in range(2, period + 1)
    for pause in (0, 5, 60)
    if 60 % period == 0 and period % look == 0
]
REDRAW = "run `python -m tests.docs.timeline` and commit what it writes"


def test_the_picture_in_docs_is_what_the_command_draws() -> None:
    drawn = picture(timing(*SHOWN[0]))
    assert PICTURE.read_text(encoding="utf-8") == drawn, REDRAW
    assert ElementTree.fromstring(drawn).tag.endswith("svg")  # noqa: S314 - our own text


def test_the_tables_in_docs_are_what_the_command_writes() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    assert with_tables(text) == text, REDRAW


def test_a_time_that_somebody_wrote_by_hand_is_found() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    for seconds in ("5.23 s", "13.6 s"):
        assert with_tables(text.replace(seconds, "28 s")) != text.replace(seconds, "28 s")


@pytest.mark.parametrize("name", TABLES)
def test_a_document_without_a_place_for_a_table_is_refused(name: str) -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=f"no markers for the table '{name}'"):
        with_tables(text.replace(f"<!-- end of {name} -->", ""))


@pytest.mark.parametrize(("period", "look", "pause"), EVERY)
def test_each_formula_in_the_table_gives_the_agents_time(
    period: int, look: int, pause: int
) -> None:
    """A formula names the rows before it: `0.35 T` is a product, `D (1 - rho)` too."""
    known: dict[str, object] = {"__builtins__": {"min": min, "max": max}}
    for row in ROWS:
        value = row.value(timing(period, look, pause)) / (100 if row.unit == " %" else 1)
        if row.formula:
            product = re.sub(r"(?<=[\d.w]) (?=[A-Z])|(?<=D) (?=\()", " * ", row.formula)
            assert eval(product, known) == pytest.approx(value), row.symbol  # noqa: S307 - our own
        known[row.symbol] = value


@pytest.mark.parametrize(("period", "look", "pause"), EVERY)
def test_the_inequalities_that_docs_state_hold_for_every_period(
    period: int, look: int, pause: int
) -> None:
    times = timing(period, look, pause)
    known = {row.symbol: row.value(times) for row in ROWS}
    rho, longest, apart = known["rho"] / 100, known["D"], look + known["G"]
    assert known["L"] <= longest * (1 - rho) / (1 + rho) - known["P"]
    slowest = 1 - known["slew"] / 100  # the fence's clock: it still acts with a margin
    assert (known["L"] - known["F"]) / slowest <= known["L"] - 0.2
    assert tick_spread_seconds(times) >= 0.5
    assert known["L"] - known["F"] >= apart + known["W"] + known["R"] - 1e-9
    assert known["end"] + known["timeout"] < look
    assert apart + known["W"] < known["fresh"]
