"""Tables with a row for each step of a run, as trackers export it: the last row of each run counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.notes import Note
from transfer_bo.run_table.cells import is_numeric
from transfer_bo.run_table.columns import Columns, numbers
from transfer_bo.run_table.status import status_readers
from transfer_bo.synonyms import DURATIONS, RUN_NAMES, STEPS, short_names

__all__ = ["last_steps"]

LEAST_STEPS = 2
"""Median number of steps per run from which a table is a history, where a column names the runs."""

LEAST_UNNAMED_STEPS = 3
"""The same where only HPs tell runs apart: two rows may be two runs that ended at different steps."""

ENDED_EARLY = 0.9
"""A run is short if it ends before this share of the steps of the longest run of its scale."""

_Array = np.ndarray[Any, np.dtype[Any]]


def last_steps(table: pd.DataFrame, columns: Columns, notes: list[Note]) -> pd.DataFrame:
    """Keep the last row of each run with a metric, if the table is a history.

    It is one if it has a column of steps that is nothing else, and if the rows that agree in their run, axes
    and HPs (or in their run and HPs, if the axes grow with the steps) have different steps.

    Args:
        table: of runs.
        columns: what its columns mean.
        notes: one is appended if rows were left out.
    """
    used = {*columns.axes, *columns.hps, columns.loss, columns.status}
    named = (name for name in _unused(table, RUN_NAMES, used) if table[name].astype(str).nunique() > 1)
    run = next(named, None)
    counters = STEPS if run is None else (*STEPS, *DURATIONS)
    step = next((name for name in _unused(table, counters, used) if is_numeric(table[name])), None)
    if step is None:
        return table

    steps = numbers(table, step).values
    runs = _runs(table, columns, run, steps)
    if runs is None:
        _note_hps_within_runs(table, columns, run, steps, notes)
        return table

    kept = table[_is_last(runs, steps, numbers(table, columns.loss).empty)]
    notes.append(
        Note(
            f"The table has a row for each {step} of a run: the last one of each run counts, {len(kept)} of "
            f"{len(table)} rows.",
            "history",
            column=step,
            rows=len(table) - len(kept),
        )
    )
    _note_short_runs(kept, columns, step, notes)
    return kept


def _runs(table: pd.DataFrame, columns: Columns, run: str | None, steps: _Array) -> _Array | None:
    """The run of each row, None if the table is no history."""
    hps, axes = list(columns.hps), list(columns.axes)
    if run is None:
        return _groups(table, [*hps, *axes], steps, LEAST_UNNAMED_STEPS)

    runs = _groups(table, [run, *hps, *axes], steps, LEAST_STEPS)
    if runs is not None:
        return runs
    grown = _groups(table, [run, *hps], steps, LEAST_UNNAMED_STEPS)
    return grown if grown is not None and _grow_with_steps(table, axes, grown, steps) else None


def _note_hps_within_runs(
    table: pd.DataFrame, columns: Columns, run: str | None, steps: _Array, notes: list[Note]
) -> None:
    """A note if HPs change within a run, as a learning rate does that follows a schedule."""
    if run is None:
        return
    runs = _groups(table, [run, *columns.axes], steps, LEAST_UNNAMED_STEPS)
    changing = (
        [] if runs is None else [hp for hp in columns.hps if table[hp].groupby(runs).nunique().max() > 1]
    )
    if changing:
        notes.append(
            Note(
                f"{' and '.join(changing)} changes between the rows of one {run}: each counts as a run of "
                "its own; if it follows a schedule, give the column with its peak and one row per run.",
                "history_of_hp",
                column=changing[0],
                run=run,
            )
        )


def _note_short_runs(kept: pd.DataFrame, columns: Columns, step: str, notes: list[Note]) -> None:
    """A note if runs end earlier than others of their scale, and nothing tells whether they finished."""
    last = pd.Series(numbers(kept, step).values, index=kept.index)
    longest = last.groupby([kept[axis].astype(str) for axis in columns.axes]).transform("max")
    short = int((last < ENDED_EARLY * longest).sum())
    if short and not status_readers(kept, columns):
        notes.append(
            Note(
                f"{short} runs end at an earlier {step} than others of their scale and count as finished; if "
                "they were stopped or crashed, give a column of statuses or leave them out.",
                "history_short",
                column=step,
                rows=short,
            )
        )


def _unused(table: pd.DataFrame, names: tuple[str, ...], used: set[str | None]) -> list[str]:
    """The columns with one of these names that mean nothing else."""
    found = [column for name in names for column in table.columns if name in short_names(column)]
    return [column for column in dict.fromkeys(found) if column not in used]


def _groups(table: pd.DataFrame, keys: list[str], steps: _Array, least: int) -> _Array | None:
    """The run of each row, by columns that it has in common with others; None if this is no history."""
    runs = table[keys].astype(str).groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    n_steps = pd.Series(steps).groupby(runs).nunique()
    return runs if n_steps.median() >= least else None


def _is_last(runs: _Array, steps: _Array, empty: _Array) -> _Array:
    """Which rows are the last of their run with a metric, or the last of all if none has one."""
    known = pd.Series(np.where(empty, -np.inf, np.nan_to_num(steps, nan=-np.inf)))
    last_known = known.groupby(runs).transform("max").to_numpy()
    last = pd.Series(steps).groupby(runs).transform("max").to_numpy()
    is_last: _Array = np.where(np.isfinite(last_known), known == last_known, steps == last)
    return is_last


def _grow_with_steps(table: pd.DataFrame, axes: list[str], runs: _Array, steps: _Array) -> bool:
    """Whether each axis is the same in all rows of a run, or grows with its steps."""
    order = np.lexsort((steps, runs))
    same_run = runs[order][1:] == runs[order][:-1]
    for axis in axes:
        change = np.diff(numbers(table, axis).values[order])[same_run]
        if (change < 0).any():
            return False
    return True
