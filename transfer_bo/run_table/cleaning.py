"""From a table to runs that the surrogate can fit: typed outcomes, no copies, at most `MAX_ROWS` of them.

How a run ended follows from its status and its loss (`status`), and from how the loss stands among the others
(`divergence`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.dimension import Dimension
from transfer_bo.errors import NoRunsError, RunTableError, SearchSpaceError
from transfer_bo.notes import Note
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome, Run, finished_runs
from transfer_bo.run_table.cells import read_choices
from transfer_bo.run_table.columns import Columns, numbers
from transfer_bo.run_table.divergence import mark_diverged
from transfer_bo.run_table.history import last_steps
from transfer_bo.run_table.read import CONSTRAINT_PREFIX
from transfer_bo.run_table.schedules import SCHEDULE, Label, keep_apart, label_schedules
from transfer_bo.run_table.status import TELLING, read_outcomes
from transfer_bo.run_table.thinning import thin
from transfer_bo.scale import Scale, default_cost

__all__ = ["MAX_ROWS", "UNIT_GAP", "UNIT_HINT", "RunTable", "read_rows"]

MAX_ROWS = 400
"""Finished runs that are fitted; the time of a fit grows with their cube (1.5 s at 400 on one core)."""

UNIT_GAP = 1e4
"""Ratio of neighboring values of an axis from which a note asks for their units."""

UNIT_HINT = 1e3
"""Ratio of the target and the runs from which a note asks for their units."""

AXIS_LIMIT = 1e30
"""No axis of scale is larger, and none is smaller than the inverse."""

_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class RunTable:
    """Runs of a table, ready to be fitted.

    Attributes:
        runs: as the surrogate takes them.
        dimensions: the HPs that vary.
        constants: HPs with one value in all rows.
        counts: rows of the table, by outcome.
        notes: sentences on what was done to the rows.
        table: the rows that count, of the target's schedule: axes, HPs, "loss" and "outcome".
    """

    runs: list[Run]
    dimensions: list[Dimension]
    constants: dict[str, Any]
    counts: dict[str, int]
    notes: list[Note]
    table: pd.DataFrame

    @property
    def scales(self) -> list[Scale]:
        """Every scale with a finished run of the target's schedule, cheapest first."""
        scales = {run.scale for run in finished_runs(self.runs) if run.source is None}
        return sorted(scales, key=lambda scale: (default_cost(scale), *scale.values()))


def read_rows(
    table: pd.DataFrame,
    columns: Columns,
    *,
    maximize: bool,
    seed: int,
    diverged_above: float | None = None,
    most: int = MAX_ROWS,
) -> RunTable:
    """Type, clean and thin the rows of a table.

    Args:
        table: of runs, as `read_table` returns it.
        columns: what its columns mean.
        maximize: whether larger metrics are better.
        seed: of the random choice of diverged rows, where there are too many.
        diverged_above: a loss above which a run counts as diverged, instead of the rule of `divergence`.
        most: finished runs that are kept, and as many others.

    Raises:
        RunTableError: for a column or a cell that cannot be used.
        NoRunsError: if no usable row is left.
        SearchSpaceError: for an HP whose values do not suit its kind, or if no HP varies.
    """
    columns.check(table)
    if diverged_above is not None and not math.isfinite(diverged_above):
        raise RunTableError(f"diverged_above is {diverged_above}; give a finite loss, or leave it out.")

    notes: list[Note] = [*table.attrs.get("notes", [])]
    table = last_steps(_without_copies(table, notes), columns, notes)
    clean, whole = _clean(table, columns, notes)
    log = _check_losses(clean, columns, maximize, notes)
    if log or diverged_above is not None:
        mark_diverged(clean, columns, diverged_above, notes)
    _check_units(clean, columns, notes)
    clean, sources = keep_apart(clean, columns.schedule, notes) if columns.schedule else (clean, {})

    constants = {
        name: _plain(clean[name].iloc[0]) for name in columns.hps if clean[name].nunique(dropna=False) == 1
    }
    varying = {name: kind for name, kind in columns.hps.items() if name not in constants}
    if not varying:
        values = ", ".join(f"{name} = {value}" for name, value in constants.items())
        raise SearchSpaceError(
            f"No HP varies over the usable rows, {len(clean)} in number ({values}), so nothing is known of "
            "its best value; give runs with at least two values."
        )
    notes += [
        Note(
            f"{name} is {value} in all rows: it is repeated, not projected.",
            "hp_constant",
            column=name,
            value=value,
        )
        for name, value in constants.items()
    ]

    kept = thin(
        clean,
        columns.axes,
        list(columns.hps),
        most=most,
        seed=seed,
        maximize=maximize,
        notes=notes,
        groups=[SCHEDULE] if columns.schedule else [],
    )
    own = ~clean[SCHEDULE].isin(sources) if sources else slice(None)
    return RunTable(
        runs=_runs(kept, columns, varying, sources),
        dimensions=[
            _dimension(clean[name], name, kind, name in whole) for name, kind in sorted(varying.items())
        ],
        constants=constants,
        counts={str(outcome): int(n) for outcome, n in clean["outcome"].value_counts().items()},
        notes=notes,
        table=clean[own],
    )


def _without_copies(table: pd.DataFrame, notes: list[Note]) -> pd.DataFrame:
    """Each row once, with the number that it had."""
    try:
        copies = table.duplicated().to_numpy()
    except TypeError:  # cells that hold lists
        copies = table.astype(str).duplicated().to_numpy()
    if copies.any():
        notes.append(
            Note(
                f"Left out: {counted(copies.sum(), 'exact copy', 'exact copies')} of other rows; "
                "repeats that "
                "differ count.",
                "rows_copied",
                rows=int(copies.sum()),
            )
        )
    return table[~copies]


def _clean(table: pd.DataFrame, columns: Columns, notes: list[Note]) -> tuple[pd.DataFrame, set[str]]:
    """Axes, HPs, "loss" and "outcome" of the rows that tell something, and the HPs that are whole numbers.

    Raises:
        NoRunsError: if no row tells anything.
    """
    loss = numbers(table, columns.loss)
    outcomes = read_outcomes(table, columns, loss, notes)
    clean = pd.DataFrame({axis: _axis(table, axis) for axis in columns.axes}, index=table.index)
    whole, off_scale = set(), np.zeros(len(table), dtype=bool)
    for name, kind in columns.hps.items():
        if kind == "categorical":
            clean[name] = read_choices(table[name], name)
            continue
        values = numbers(table, name)
        wrong = _off_scale(values.values, name, kind, notes)
        clean[name] = np.where(wrong, np.nan, values.values)
        off_scale |= wrong
        whole |= {name} if values.whole else set()
    for name in _constraints(table):
        clean[name] = numbers(table, name).values
    clean["loss"] = loss.values
    clean["outcome"] = outcomes
    if columns.schedule:
        clean[SCHEDULE] = label_schedules(table, list(columns.schedule))

    names = [*columns.axes, *columns.hps]
    lacking = clean[names].isna().any(axis=1)
    telling = outcomes.isin(TELLING)
    _note_rows_left_out(clean[~off_scale], columns, loss.empty[~off_scale], notes)

    kept = clean[telling & ~lacking].reset_index(drop=True)
    if kept.empty:
        reasons = "".join(f" {note}" for note in notes)
        raise NoRunsError(
            f"None of {counted(len(table), 'row')} has a value for each of {', '.join(names)} and "
            f"{columns.loss}; "
            f"fill them in or drop the column.{reasons}"
        )
    return kept, whole


def _note_rows_left_out(clean: pd.DataFrame, columns: Columns, empty: _Array, notes: list[Note]) -> None:
    """Why rows do not count, or count as diverged, but for those that are off the scale of an HP."""
    names = [*columns.axes, *columns.hps]
    lacking = clean[names].isna().any(axis=1)
    telling = clean["outcome"].isin(TELLING)
    missing = [name for name in names if (clean[name].isna() & telling).any()]
    if missing:
        rows = int((lacking & telling).sum())
        notes.append(
            Note(
                f"Left out: {counted(rows, 'row that lacks', 'rows that lack')} {' or '.join(missing)}.",
                "rows_incomplete",
                columns=missing,
                rows=rows,
            )
        )

    silent = ~telling & ~lacking
    without_loss = int((silent & empty).sum())
    if without_loss:
        notes.append(
            Note(
                f"{counted(without_loss, 'row has', 'rows have')} no {columns.loss}, which tells "
                "nothing about HPs; if a run diverged, "
                "write inf, or nan as a word, or a status of diverged.",
                "rows_without_loss",
                column=columns.loss,
                rows=without_loss,
            )
        )
    failed = int((silent & ~empty).sum())
    if failed:
        notes.append(
            Note(
                f"{counted(failed, 'row')} did not finish, which tells nothing about HPs.",
                "rows_failed",
                rows=failed,
            )
        )

    diverged = clean["outcome"] == Outcome.DIVERGED
    not_finite = int((diverged & ~np.isfinite(clean["loss"]) & ~empty & ~lacking).sum())
    if not_finite:
        notes.append(
            Note(
                f"Counted as diverged: {counted(not_finite, 'row')} with a loss of nan or inf.",
                "rows_not_finite",
                column=columns.loss,
                rows=not_finite,
            )
        )


def _axis(table: pd.DataFrame, axis: str) -> _Array:
    """The values of an axis (rows), nan where there is none."""
    values = numbers(table, axis).values
    outside = np.flatnonzero(~np.isnan(values) & ~((values >= 1 / AXIS_LIMIT) & (values <= AXIS_LIMIT)))
    if len(outside):
        raise RunTableError(
            f"Axis {axis!r} is {values[outside[0]]:g} in row {table.index[outside[0]] + 1}; "
            f"an axis of scale lies between {1 / AXIS_LIMIT:g} and {AXIS_LIMIT:g}."
        )
    return values


def _off_scale(values: _Array, name: str, kind: str, notes: list[Note]) -> _Array:
    """Which values of a numeric HP its kind has no place for (rows).

    Raises:
        SearchSpaceError: if it has a place for none of them.
    """
    wrong = np.isinf(values)
    if kind == "log":
        wrong |= values <= 0
    elif kind == "one_minus":
        wrong |= values >= 1
    if not wrong.any():
        return wrong

    found = [float(value) for value in np.unique(values[wrong])]
    place = {"log": "has no logarithm", "one_minus": "has no log(1 - value)"}.get(kind, "is not finite")
    if not (~wrong & ~np.isnan(values)).any():
        raise SearchSpaceError(
            f"HP {name!r} has no usable value: {found[0]:g} {place}; use the kind linear, or leave it out."
        )
    notes.append(
        Note(
            f"Left out: {counted(wrong.sum(), 'row')} with {name} = {found[0]:g}, which {place}; use "
            "the kind "
            "linear to keep what has such values.",
            "hp_off_scale",
            column=name,
            values=[value if math.isfinite(value) else str(value) for value in found],
            rows=int(wrong.sum()),
        )
    )
    return wrong


def _check_losses(clean: pd.DataFrame, columns: Columns, maximize: bool, notes: list[Note]) -> bool:
    """Whether the metric is a loss, to be modelled on a log scale.

    Raises:
        NoRunsError: if no row has a finite metric.
    """
    losses = clean["loss"][clean["outcome"] == Outcome.FINISHED]
    if losses.empty:
        raise NoRunsError(
            f"No row of {len(clean)} has a finite {columns.loss!r} and a finished status: nothing to fit; "
            "check the column and the status words."
        )

    log = not maximize and bool((losses > 0).all())
    if not log and not maximize:
        notes.append(
            Note(
                f"Some values of {columns.loss} are not positive: it is taken as a metric on a linear scale, "
                "for which no scaling law is known.",
                "loss_not_positive",
                column=columns.loss,
            )
        )
    if losses.nunique() == 1 and len(losses) > 1:
        notes.append(
            Note(
                f"All {len(losses)} finished rows have {columns.loss} = {losses.iloc[0]:g}, "
                "which says nothing about HPs.",
                "loss_constant",
                column=columns.loss,
                value=float(losses.iloc[0]),
            )
        )
    return log


def _check_units(clean: pd.DataFrame, columns: Columns, notes: list[Note]) -> None:
    """A note on an axis whose values fall into two groups, as when some rows count in billions."""
    for axis in columns.axes:
        values = np.unique(clean[axis].to_numpy(dtype=float))
        gaps = values[1:] / values[:-1]
        if len(gaps) and gaps.max() >= UNIT_GAP:
            i = int(gaps.argmax())
            notes.append(
                Note(
                    f"{axis} jumps from {values[i]:g} to {values[i + 1]:g} between rows; if these are two "
                    "units, write all of them in the same one.",
                    "unit_gap",
                    column=axis,
                    values=[float(values[i]), float(values[i + 1])],
                )
            )


def _dimension(values: pd.Series[Any], name: str, kind: str, whole: bool) -> Dimension:
    """An HP with the range of its values."""
    if kind == "categorical":
        return Dimension(name, kind, choices=tuple(_plain(v) for v in sorted(values.unique(), key=str)))
    return Dimension(name, kind, float(values.min()), float(values.max()), integer=whole)


def _runs(
    kept: pd.DataFrame, columns: Columns, varying: Mapping[str, str], sources: Mapping[Label, str]
) -> list[Run]:
    """Rows as records, numbered from 0."""
    schedules = kept[SCHEDULE] if sources else [None] * len(kept)
    scales = kept[list(columns.axes)].to_dict("records")
    params = kept[list(varying)].to_dict("records")
    constraints = kept[_constraints(kept)].to_dict("records")
    return [
        Run(
            number=number,
            params={str(name): _plain(value) for name, value in hps.items()},
            scale=Scale({str(axis): float(value) for axis, value in scale.items()}),
            outcome=Outcome(outcome),
            loss=float(loss) if outcome == Outcome.FINISHED else None,
            constraints={
                str(name).removeprefix(CONSTRAINT_PREFIX): float(value)
                for name, value in values.items()
                if not math.isnan(value)
            },
            source=sources.get(schedule),
        )
        for number, (scale, hps, values, outcome, loss, schedule) in enumerate(
            zip(scales, params, constraints, kept["outcome"], kept["loss"], schedules, strict=True)
        )
    ]


def _constraints(table: pd.DataFrame) -> list[str]:
    """The columns that hold constraints of Optuna trials."""
    return [name for name in table.columns if str(name).startswith(CONSTRAINT_PREFIX)]


def _plain(value: Any) -> Any:
    """A numpy scalar as a Python value."""
    return value.item() if hasattr(value, "item") else value
