"""A value that the kind of an HP has no place for drops its row with a note; the table is used."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from generated_tables import PLAIN, codes, rows_of, tables, understood
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.errors import RunTableError, SearchSpaceError

OFF: list[tuple[str, float]] = [
    *(("log", 0.0), ("log", -1.0), ("log", -0.0), ("log", np.inf), ("log", -np.inf)),
    *(("one_minus", 1.0), ("one_minus", 1.5), ("one_minus", np.inf)),
    *(("linear", np.inf), ("linear", -np.inf)),
]
"""Kinds, and values that they have no place for."""


@settings(max_examples=60, deadline=None)
@given(tables(least=6), st.sampled_from(OFF), st.data())
def test_such_rows_are_left_out_with_a_note(
    table: pd.DataFrame, off: tuple[str, float], data: st.DataObject
) -> None:
    """The others are as they would be without them."""
    kind, value = off
    wrong = data.draw(st.sets(st.integers(0, len(table) - 1), min_size=1, max_size=len(table) - 4))
    table["decay"] = np.linspace(0.1, 0.5, len(table))
    kept = table.drop(index=sorted(wrong))
    table.loc[sorted(wrong), "decay"] = value

    hps = {"lr": "log", "decay": kind}
    rows = understood(table, hps=hps)
    (note,) = rows.notes

    assert rows_of(understood(kept, hps=hps)) == rows_of(rows)
    assert ("hp_off_scale", "decay", len(wrong)) == (note.code, note.details["column"], note.details["rows"])


@pytest.mark.parametrize(("kind", "value"), [("log", 0.0), ("log", -3.0), ("one_minus", 1.0)])
def test_a_column_without_any_usable_value_is_refused(kind: str, value: float) -> None:
    """Naming HP and value."""
    with pytest.raises(SearchSpaceError, match=f"'decay'.*{value:g}"):
        understood(PLAIN.assign(decay=value), hps={"lr": "log", "decay": kind})


def test_zero_is_a_value_on_a_linear_scale() -> None:
    """Where "off" is one setting among others."""
    rows = understood(PLAIN.assign(decay=[0, 0.1, 0.2] * 2), hps={"lr": "log", "decay": "linear"})

    assert 6 == len(rows.runs)
    assert [] == codes(rows)


@pytest.mark.parametrize("value", [0, -1, np.inf])
def test_an_axis_that_is_no_scale_is_refused(value: float) -> None:
    """No run is of size 0: such a table is wrong somewhere."""
    table = PLAIN.astype({"width": float})
    table.loc[4, "width"] = value

    with pytest.raises(RunTableError, match=r"'width' is .* in row 5"):
        understood(table)
