"""Two units in one axis, or of the target and the runs, are asked about; the answer is given nevertheless."""

from __future__ import annotations

import logging
import math

import optuna
import pandas as pd
import pytest
from generated_tables import ASK, PLAIN, codes, understood
from hypothesis import given, settings
from hypothesis import strategies as st

import transfer_bo as tb
from transfer_bo.run_table.cleaning import UNIT_GAP, UNIT_HINT
from transfer_bo.run_table.fit import check_target


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 30), st.floats(0, 12))
def test_a_gap_between_rows(start: float, decades: float) -> None:
    """From a certain ratio on there is a note with both ends, and never an error."""
    table = PLAIN.assign(width=[start] * 3 + [start * 10**decades] * 3)

    rows = understood(table)

    assert (["unit_gap"] if 10**decades >= UNIT_GAP * (1 + 1e-9) else []) == codes(rows) or math.isclose(
        10**decades, UNIT_GAP
    )


@settings(max_examples=40, deadline=None)
@given(st.floats(-9, 12))
def test_a_far_target(decades: float) -> None:
    """Above and below; with the values."""
    rows = understood(PLAIN)
    target = tb.Scale(width=100 * 10**decades)
    ratio = max(target["width"] / 128, 64 / target["width"])

    check_target(target, rows, ("width",))

    assert (["unit_of_target"] if ratio >= UNIT_HINT else []) == codes(rows)


@pytest.mark.parametrize("target", [1e-4, 1e9])
def test_there_is_an_answer_all_the_same(target: float) -> None:
    """Finite and positive, with the question in the warnings."""
    suggestion = tb.suggest_from_runs(PLAIN, **ASK | {"target": {"width": target}})
    low, high = suggestion.interval()["lr"]

    assert 0 < low <= high < math.inf
    assert 0 < suggestion.params["lr"] < math.inf
    assert "unit_of_target" in {note["code"] for note in suggestion.evidence["notes"]}


def test_source_runs_in_another_unit(caplog: pytest.LogCaptureFixture) -> None:
    """They are added, and the question is logged."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=128)])
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=tb.Scale(width=512)))

    with caplog.at_level(logging.INFO):
        added = tb.add_past_runs(study, pd.DataFrame(PLAIN.assign(width=1e9)))

    assert 6 == added
    assert "width from 1e+09" in caplog.text
