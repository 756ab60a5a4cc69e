"""An empty cell carries no information, in every format and by every way of naming the column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from generated_tables import PLAIN, codes, rows_of, tables, understood
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.errors import NoRunsError
from transfer_bo.run_table.cleaning import read_rows
from transfer_bo.run_table.columns import guess_columns
from transfer_bo.run_table.read import read_table

EMPTY: list[Any] = [
    *(None, pd.NA, pd.NaT, np.nan, np.float32("nan"), float("nan")),
    *("", " ", "NaN", "null", "NULL", "None", "-", "--", "—", "n/a", "NA", "N/A", "#N/A", "<NA>", "NaT", "?"),
    *("n.a.", "(null)", "\\N", "undefined", "#DIV/0!", "#VALUE!", "<null>", "#NA"),
]
"""Cells that hold nothing."""

TEXTS = [cell for cell in EMPTY if isinstance(cell, str)]


@settings(max_examples=60, deadline=None)
@given(tables(least=6), st.sampled_from(EMPTY), st.sampled_from(["width", "lr", "loss"]), st.data())
def test_a_row_with_an_empty_cell_is_as_good_as_none(
    table: pd.DataFrame, cell: Any, column: str, data: st.DataObject
) -> None:
    """In any column, however it is empty; a note counts such rows."""
    blank = data.draw(st.sets(st.integers(0, len(table) - 1), min_size=1, max_size=len(table) - 4))
    kept = table.drop(index=sorted(blank))
    if kept["lr"].nunique() < 2:
        return
    table = table.astype(object)
    table.loc[sorted(blank), column] = cell

    rows = understood(table)

    code = "rows_without_loss" if column == "loss" else "rows_incomplete"
    assert rows_of(understood(kept)) == rows_of(rows)
    assert [len(blank)] == [note.details["rows"] for note in rows.notes if note.code == code]


def _csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


def _parquet(table: pd.DataFrame, path: Path) -> None:
    table.to_parquet(path)


def _json(table: pd.DataFrame, path: Path) -> None:
    table.to_json(path, orient="records")


def _json_lines(table: pd.DataFrame, path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in table.to_dict("records")))


@pytest.mark.parametrize("write", [_csv, _parquet, _json, _json_lines])
@pytest.mark.parametrize("loss", ["loss", "val_loss", "eval/loss"])
@pytest.mark.parametrize("named", [True, False])
def test_formats_and_ways_of_naming_agree(
    write: Callable[[pd.DataFrame, Path], None], loss: str, named: bool, tmp_path: Path
) -> None:
    """A missing loss in memory, in a CSV, as a null of Parquet and of JSON; the column named or guessed."""
    table = PLAIN.rename(columns={"loss": loss})
    table.loc[[2, 5], loss] = np.nan
    write(table, tmp_path / "runs")

    read = read_table(tmp_path / "runs", loss=loss if named else "loss")
    columns = guess_columns(read, ["width"], {"lr": "log"}, loss if named else "")
    rows = read_rows(read, columns, maximize=False, seed=0)

    assert rows_of(understood(table.drop(index=[2, 5]), loss=loss)) == rows_of(rows)
    assert ["rows_without_loss"] == codes(rows)


@pytest.mark.parametrize("text", TEXTS)
def test_words_for_nothing_in_a_file(text: str, tmp_path: Path) -> None:
    """As spreadsheets, R, databases and people write them."""
    path = tmp_path / "runs.csv"
    path.write_text(f"width,lr,loss\n64,1e-3,3\n64,4e-3,2.8\n128,1e-3,{text}\n128,4e-3,2.6\n")

    assert {"finished": 3} == understood(path).counts


@pytest.mark.parametrize("cell", ["nan", "-nan", " nan ", "inf", "-inf", "Infinity", np.inf, -np.inf])
def test_nan_as_a_word_and_infinity_diverged(cell: Any) -> None:
    """As programs print a loss that was none."""
    table = PLAIN.astype(object)
    table.loc[2, "loss"] = cell

    rows = understood(table)

    assert {"finished": 5, "diverged": 1} == rows.counts
    assert ["rows_not_finite"] == codes(rows)


def test_a_table_without_any_loss_is_refused() -> None:
    """And the sentence says that there is none."""
    with pytest.raises(NoRunsError, match="6 rows have no loss"):
        understood(PLAIN.assign(loss=None))


def test_an_empty_category_is_none_but_none_may_be_a_category() -> None:
    """A missing value leaves the row out; the word none is a choice like others."""
    table = PLAIN.assign(norm=pd.Series(["none", "layer", "none", None, "layer", "none"], dtype=object))

    rows = understood(table, hps={"lr": "log", "norm": "categorical"})

    assert {"none", "layer"} == {run.params["norm"] for run in rows.runs}
    assert 5 == len(rows.runs)
