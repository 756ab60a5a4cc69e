"""From a table to runs that the surrogate can fit: typed outcomes, no copies, at most `MAX_ROWS` of them.

A finished loss far above the others counts as diverged too, see `_far_above`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.dimension import Dimension
from transfer_bo.errors import NoRunsError, RunTableError, SearchSpaceError
from transfer_bo.records import Outcome, Run
from transfer_bo.run_table.columns import Columns, numbers
from transfer_bo.run_table.status import read_outcomes
from transfer_bo.run_table.thinning import thin
from transfer_bo.scale import Scale, default_cost

__all__ = ["MAX_CHOICES", "MAX_ROWS", "UNIT_GAP", "UNIT_HINT", "RunTable", "read_rows"]

MAX_ROWS = 400
"""Finished runs that are fitted; the time of a fit grows with their cube (1.5 s at 400 on one core)."""

DIVERGED_RATIO = 1.5
"""A loss counts as diverged if it is more than so many times the best of its size ..."""

DIVERGED_MEDIANS = 5.0
"""... and its excess (in ln loss) more than so many times the median: a metric may span decades."""

UNIT_GAP = 1e4
"""Ratio of neighboring values of an axis, or of the target and the runs, from which it is refused."""

UNIT_HINT = 1e3
"""Ratio of the target and the runs from which a note asks for the units."""

AXIS_LIMIT = 1e30
"""No axis of scale is larger, and none is smaller than the inverse."""

MAX_CHOICES = 50
"""Values of a categorical HP."""

_TELLING = (Outcome.FINISHED, Outcome.DIVERGED, Outcome.PRUNED)
"""Outcomes that tell something about HPs."""

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
        table: the rows that count: axes, HPs, "loss" and "outcome".
    """

    runs: list[Run]
    dimensions: list[Dimension]
    constants: dict[str, Any]
    counts: dict[str, int]
    notes: list[str]
    table: pd.DataFrame

    @property
    def scales(self) -> list[Scale]:
        """Every scale with a finished run, cheapest first."""
        scales = {run.scale for run in self.runs if run.outcome is Outcome.FINISHED and run.scale}
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
        diverged_above: a loss above which a run counts as diverged, instead of the rule of `_far_above`.
        most: finished runs that are kept, and as many others.

    Raises:
        RunTableError: for a column or a cell that cannot be used.
        NoRunsError: if no usable row is left.
        SearchSpaceError: for an HP whose values do not suit its kind, or if no HP varies.
    """
    columns.check(table)
    if diverged_above is not None and not math.isfinite(diverged_above):
        raise RunTableError(f"diverged_above is {diverged_above}; give a finite loss, or leave it out.")

    notes: list[str] = []
    clean = _clean(_without_copies(table, notes), columns, notes)
    log = _check_losses(clean, columns, maximize, notes)
    if log or diverged_above is not None:
        _mark_diverged(clean, columns, diverged_above, notes)
    _check_units(clean, columns)

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
        f"{name} is {value} in all rows: it is repeated, not projected." for name, value in constants.items()
    ]

    kept = thin(
        clean,
        columns.axes,
        list(columns.hps),
        most=most,
        seed=seed,
        maximize=maximize,
        notes=notes,
    )
    return RunTable(
        runs=_runs(kept, columns, varying),
        dimensions=[_dimension(clean[name], name, kind) for name, kind in sorted(varying.items())],
        constants=constants,
        counts={str(outcome): int(n) for outcome, n in clean["outcome"].value_counts().items()},
        notes=notes,
        table=clean,
    )


def _without_copies(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Each row once."""
    try:
        copies = table.duplicated().to_numpy()
    except TypeError:  # cells that hold lists
        copies = table.astype(str).duplicated().to_numpy()
    if copies.any():
        notes.append(
            f"{copies.sum()} rows are exact copies of others and count once (repeats that differ are kept)."
        )
    return table[~copies].reset_index(drop=True)


def _clean(table: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Axes, HPs, "loss" and "outcome" of the rows that tell something, as numbers where numbers are due."""
    clean = pd.DataFrame(index=table.index)
    for axis in columns.axes:
        clean[axis] = _axis(table, axis)
    for name, kind in columns.hps.items():
        clean[name] = _choices(table[name], name) if kind == "categorical" else _hp(table, name, kind)
    loss = numbers(table, columns.loss)
    clean["loss"] = loss
    clean["outcome"] = read_outcomes(table, columns, loss)

    names = [*columns.axes, *columns.hps]
    lacking = clean[names].isna().any(axis=1)
    if lacking.any():
        missing = [name for name in names if clean[name].isna().any()]
        notes.append(f"{lacking.sum()} rows lack {' or '.join(missing)} and were left out.")

    telling = clean["outcome"].isin(_TELLING)
    silent = int((~telling & ~lacking).sum())
    if silent:
        notes.append(f"{silent} rows failed or have no {columns.loss}: they say nothing about HPs.")
    nans = int(((clean["outcome"] == Outcome.DIVERGED) & ~np.isfinite(loss) & ~lacking).sum())
    if nans and columns.status is None:
        notes.append(f"{nans} rows with a loss of nan or inf count as diverged.")

    clean = clean[telling & ~lacking].reset_index(drop=True)
    if clean.empty:
        raise NoRunsError(
            f"None of {len(table)} rows has a value for each of {', '.join(names)} and {columns.loss}; "
            "fill them in or drop the column."
        )
    return clean


def _axis(table: pd.DataFrame, axis: str) -> _Array:
    """The values of an axis (rows), nan where there is none."""
    values = numbers(table, axis)
    outside = np.flatnonzero(~np.isnan(values) & ~((values >= 1 / AXIS_LIMIT) & (values <= AXIS_LIMIT)))
    if len(outside):
        raise RunTableError(
            f"Axis {axis!r} is {values[outside[0]]:g} in row {outside[0] + 1}; "
            f"an axis of scale lies between {1 / AXIS_LIMIT:g} and {AXIS_LIMIT:g}."
        )
    return values


def _choices(cells: pd.Series[Any], name: str) -> pd.Series[Any]:
    """The values of a categorical HP."""
    if not cells.map(lambda cell: isinstance(cell, Hashable)).all():
        raise SearchSpaceError(
            f"HP {name!r} holds lists or other containers; categories are words or numbers."
        )
    if cells.nunique() > MAX_CHOICES:
        raise SearchSpaceError(
            f"HP {name!r} has {cells.nunique()} different values, too many for categories; "
            "if they are numbers, use the kind log or linear."
        )
    return cells


def _hp(table: pd.DataFrame, name: str, kind: str) -> _Array:
    """The values of a numeric HP (rows), nan where there is none."""
    values = numbers(table, name)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise SearchSpaceError(f"HP {name!r} is infinite in row {infinite[0] + 1}; drop the row.")

    wrong = {"log": values <= 0, "one_minus": values >= 1}.get(kind)
    if wrong is not None and wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        what = "the logarithm of" if kind == "log" else "log(1 - value) of"
        raise SearchSpaceError(
            f"HP {name!r} is {values[row]:g} in row {row + 1}, and there is no {what} that; "
            f"use the kind linear, or drop the {int(wrong.sum())} rows."
        )
    return values


def _check_losses(clean: pd.DataFrame, columns: Columns, maximize: bool, notes: list[str]) -> bool:
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
            f"Some values of {columns.loss} are not positive: it is taken as a metric on a linear scale, "
            "for which no scaling law is known."
        )
    if losses.nunique() == 1 and len(losses) > 1:
        notes.append(
            f"All {len(losses)} finished rows have {columns.loss} = {losses.iloc[0]:g}, "
            "which says nothing about HPs."
        )
    return log


def _mark_diverged(clean: pd.DataFrame, columns: Columns, above: float | None, notes: list[str]) -> None:
    """Turn finished rows with too large a loss into diverged ones, in place.

    Raises:
        NoRunsError: if all finished rows are such.
    """
    n_finished = int((clean["outcome"] == Outcome.FINISHED).sum())
    diverged = _far_above(clean, columns.axes) if above is None else _above(clean, above)
    if not diverged.any():
        return
    if diverged.sum() == n_finished:
        raise NoRunsError(
            f"All {n_finished} finished rows have a loss above diverged_above = {above:g}; "
            "set it higher, or leave it out."
        )

    clean.loc[diverged, "outcome"] = Outcome.DIVERGED
    where = f"above {above:g}" if above is not None else "far above the others"
    notes.append(
        f"{diverged.sum()} finished rows count as diverged, for their loss is {where} "
        f"(from {clean['loss'][diverged].min():.4g}); set diverged_above=... if they did not diverge."
    )


def _above(clean: pd.DataFrame, above: float) -> _Array:
    """Which finished rows have a larger loss than `above`."""
    is_above: _Array = ((clean["outcome"] == Outcome.FINISHED) & (clean["loss"] > above)).to_numpy()
    return is_above


def _far_above(clean: pd.DataFrame, axes: Iterable[str]) -> _Array:
    """Which finished rows have a loss far above the others.

    The measure is ln(loss / best loss among the scales that cost at most as much): a larger model does no
    worse than a smaller one, so this also works where each scale has a single run.
    """
    axes = list(axes)
    finished = (clean["outcome"] == Outcome.FINISHED).to_numpy()
    loss = clean["loss"].to_numpy(dtype=float)

    scales = clean[axes].drop_duplicates()
    costs = [
        default_cost(Scale({str(a): float(v) for a, v in row.items()})) for row in scales.to_dict("records")
    ]
    cost = clean[axes].merge(scales.assign(cost=costs), how="left")["cost"].to_numpy(dtype=float)

    order = np.argsort(cost[finished], kind="stable")
    best = pd.Series(loss[finished][order]).groupby(cost[finished][order]).min().cummin()
    log_ratio = np.zeros(len(clean))
    log_ratio[finished] = np.log(loss[finished] / best.loc[cost[finished]].to_numpy())
    limit = max(np.log(DIVERGED_RATIO), DIVERGED_MEDIANS * float(np.median(log_ratio[finished])))
    far_above: _Array = finished & (log_ratio > limit)
    return far_above


def _check_units(clean: pd.DataFrame, columns: Columns) -> None:
    """Refuse an axis whose values fall into two groups, as when some rows count in billions."""
    for axis in columns.axes:
        values = np.unique(clean[axis].to_numpy(dtype=float))
        gaps = values[1:] / values[:-1]
        if len(gaps) and gaps.max() >= UNIT_GAP:
            i = int(gaps.argmax())
            raise RunTableError(
                f"Axis {axis!r} jumps from {values[i]:g} to {values[i + 1]:g} between rows, as if in two "
                "units; write all of them in the same one."
            )


def _dimension(values: pd.Series[Any], name: str, kind: str) -> Dimension:
    """An HP with the range of its values."""
    if kind == "categorical":
        return Dimension(name, kind, choices=tuple(_plain(v) for v in sorted(values.unique(), key=str)))
    is_whole = bool((values == values.round()).all())
    return Dimension(name, kind, float(values.min()), float(values.max()), integer=is_whole)


def _runs(kept: pd.DataFrame, columns: Columns, varying: Mapping[str, str]) -> list[Run]:
    """Rows as records, numbered from 0."""
    scales = kept[list(columns.axes)].to_dict("records")
    params = kept[list(varying)].to_dict("records")
    return [
        Run(
            number=number,
            params={str(name): _plain(value) for name, value in hps.items()},
            scale=Scale({str(axis): float(value) for axis, value in scale.items()}),
            outcome=Outcome(outcome),
            loss=float(loss) if outcome == Outcome.FINISHED else None,
        )
        for number, (scale, hps, outcome, loss) in enumerate(
            zip(scales, params, kept["outcome"], kept["loss"], strict=True)
        )
    ]


def _plain(value: Any) -> Any:
    """A numpy scalar as a Python value."""
    return value.item() if hasattr(value, "item") else value
