"""From a table to runs that the surrogate can bear: typed outcomes, no copies, at most `MAX_ROWS` of them.

What a row says follows from its status and its loss:

    status finished, or no status    loss finite -> finished; nan or inf -> diverged; empty -> says nothing
    status diverged / pruned         diverged / stopped, whatever the loss
    anything else (failed, oom, ...) says nothing about HPs

A finished loss far above the others is a diverged run too (`_blown_up`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.dimension import Dimension
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome, Run
from transfer_bo.run_table.columns import Columns, numbers
from transfer_bo.run_table.read import STATUS
from transfer_bo.scale import Scale, default_cost
from transfer_bo.synonyms import STATUSES

__all__ = ["MAX_ROWS", "RunTable", "read_rows"]

MAX_ROWS = 400
"""Finished runs that are fitted; the time of a fit grows with their cube (1.5 s at 400 on one core)."""
BLOWN_UP, BLOWN_UP_MEDIANS = 1.5, 5.0
"""A loss counts as diverged from so many times the best of its size, if that is also so many times the median
excess (in ln loss): in a metric that spans decades a large value is nothing odd."""
UNIT_GAP, UNIT_HINT = 1e4, 1e3
"""Ratios of neighbouring values of an axis, or of target and runs: refused from the first, remarked on from
the second."""
AXIS_LIMIT = 1e30
"""No axis of scale is larger, nor its inverse."""
MAX_CHOICES = 50
"""Values of a categorical HP."""

_Array = np.ndarray[Any, np.dtype[Any]]

_STATUS = {
    Outcome.FINISHED: ("finished", "complete", "completed", "success", "succeeded", "done", "ok"),
    Outcome.DIVERGED: ("diverged", "nan", "inf", "unstable", "exploded", "loss_spike"),
    Outcome.PRUNED: ("pruned", "stopped", "stopped_early", "early_stopped"),
    Outcome.OUT_OF_MEMORY: ("oom", "out_of_memory"),
    Outcome.PREEMPTED: ("preempted", "killed", "cancelled", "canceled", "timeout"),
    Outcome.ERROR: ("error", "fail", "failed", "crashed", "crash", "running", "waiting", "pending", "queued"),
}
_OUTCOMES = {word: outcome for outcome, words in _STATUS.items() for word in words}


@dataclass(frozen=True)
class RunTable:
    """Past runs, ready to be fitted.

    Attributes:
        runs: as the surrogate takes them.
        dimensions: the HPs that vary.
        constants: HPs with one value in all rows.
        counts: rows of the table, by what became of them.
        notes: plain sentences on what was done to the rows.
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
        seen = {run.scale for run in self.runs if run.outcome is Outcome.FINISHED and run.scale}
        return sorted(seen, key=lambda scale: (default_cost(scale), *scale.values()))


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
        table: of past runs.
        columns: what its columns mean.
        maximize: whether larger metrics are better.
        seed: of the random choice of diverged rows, where there are too many.
        diverged_above: a loss from which a run counts as diverged, instead of the rule of `_blown_up`.
        most: finished runs that are kept, and as many others.

    Raises:
        TransferError: if nothing usable is left, saying why.
    """
    columns.check(table)
    if diverged_above is not None and not math.isfinite(diverged_above):
        raise TransferError(f"diverged_above is {diverged_above}; give a finite loss, or leave it out.")
    notes: list[str] = []
    copies = _copies(table)
    if copies.any():
        notes.append(
            f"{copies.sum()} rows are exact copies of others and count once (repeats that differ are kept)."
        )
    table = table[~copies].reset_index(drop=True)
    clean = _clean(table, columns, notes)
    if not (clean["outcome"] == Outcome.FINISHED).any():
        raise TransferError(
            f"No row of {len(clean)} has a finite {columns.loss!r} and a finished status: nothing to fit; "
            "check the column and the status words."
        )
    losses = clean["loss"][clean["outcome"] == Outcome.FINISHED]
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
    if log or diverged_above is not None:
        blown = _blown_up(clean, columns, diverged_above)
        clean.loc[blown, "outcome"] = Outcome.DIVERGED
        if blown.any():
            above = f"above {diverged_above:g}" if diverged_above is not None else "far above the rest"
            notes.append(
                f"{blown.sum()} finished rows count as diverged, for their loss is {above} "
                f"(from {clean['loss'][blown].min():.4g}); say diverged_above=... if they are not."
            )
            if blown.sum() == len(losses):
                raise TransferError(
                    f"All {len(losses)} finished rows have a loss above diverged_above = {diverged_above:g}; "
                    "set it higher, or leave it out."
                )
    _check_units(clean, columns)
    constants = {
        name: _plain(clean[name].iloc[0]) for name in columns.hps if clean[name].nunique(dropna=False) == 1
    }
    varying = {name: kind for name, kind in columns.hps.items() if name not in constants}
    if not varying:
        values = ", ".join(f"{name} = {value}" for name, value in constants.items())
        raise TransferError(
            f"No HP varies over the usable rows, {len(clean)} in number ({values}), so nothing is known of "
            "its best value; give runs with at least two values."
        )
    for name, value in constants.items():
        notes.append(f"{name} is {value} in all rows: it is repeated, not projected.")
    counts = {str(outcome): int(n) for outcome, n in clean["outcome"].value_counts().items()}
    kept = _thin(clean, columns, most, seed, maximize, notes)
    dimensions = [_dimension(clean[name], name, kind) for name, kind in sorted(varying.items())]
    return RunTable(_runs(kept, columns, varying), dimensions, constants, counts, notes, clean)


def _copies(table: pd.DataFrame) -> _Array:
    try:
        return table.duplicated().to_numpy()
    except TypeError:  # cells that hold lists
        return table.astype(str).duplicated().to_numpy()


def _clean(table: pd.DataFrame, columns: Columns, notes: list[str]) -> pd.DataFrame:
    """Axes, HPs, "loss" and "outcome" of the rows that say something, as numbers where numbers are due."""
    clean = pd.DataFrame(index=table.index)
    for axis in columns.axes:
        clean[axis] = numbers(table, axis)
        bad = np.flatnonzero(~np.isnan(clean[axis]) & ~clean[axis].between(1 / AXIS_LIMIT, AXIS_LIMIT))
        if len(bad):
            raise TransferError(
                f"Axis {axis!r} is {clean[axis].iloc[bad[0]]:g} in row {bad[0] + 1}; "
                f"an axis of scale lies between {1 / AXIS_LIMIT:g} and {AXIS_LIMIT:g}."
            )
    for name, kind in columns.hps.items():
        if kind == "categorical":
            clean[name] = _choices(table[name], name)
        else:
            clean[name] = numbers(table, name)
            _check_range(clean[name], name, kind)
    loss = numbers(table, columns.loss)
    clean["loss"] = loss
    clean["outcome"] = _outcomes(table, columns, loss)
    names = [*columns.axes, *columns.hps]
    lacking = clean[names].isna().any(axis=1)
    if lacking.any():
        missing = [name for name in names if clean[name].isna().any()]
        notes.append(f"{lacking.sum()} rows lack {' or '.join(missing)} and were left out.")
    says = clean["outcome"].isin([Outcome.FINISHED, Outcome.DIVERGED, Outcome.PRUNED])
    silent = int((~says & ~lacking).sum())
    if silent:
        notes.append(f"{silent} rows failed or have no {columns.loss}: they say nothing about HPs.")
    nans = int(((clean["outcome"] == Outcome.DIVERGED) & ~np.isfinite(loss) & ~lacking).sum())
    if nans and columns.status is None:
        notes.append(f"{nans} rows with a loss of nan or inf count as diverged.")
    clean = clean[says & ~lacking].reset_index(drop=True)
    if clean.empty:
        raise TransferError(
            f"None of {len(table)} rows has a value for each of {', '.join(names)} and {columns.loss}; "
            "fill them in or drop the column."
        )
    return clean


def _choices(cells: pd.Series[Any], name: str) -> pd.Series[Any]:
    if not cells.map(lambda cell: isinstance(cell, Hashable)).all():
        raise TransferError(f"HP {name!r} holds lists or other containers; categories are words or numbers.")
    if cells.nunique() > MAX_CHOICES:
        raise TransferError(
            f"HP {name!r} has {cells.nunique()} different values, too many for categories; "
            "if they are numbers, use the kind log or linear."
        )
    return cells


def _check_range(values: pd.Series[float], name: str, kind: str) -> None:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise TransferError(f"HP {name!r} is infinite in row {infinite[0] + 1}; drop the row.")
    wrong = {"log": values <= 0, "one_minus": values >= 1}.get(kind)
    if wrong is not None and wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        what = "the logarithm of" if kind == "log" else "log(1 - value) of"
        raise TransferError(
            f"HP {name!r} is {values.iloc[row]:g} in row {row + 1}, and there is no {what} that; "
            f"use the kind linear, or drop the {int(wrong.sum())} rows."
        )


def _outcomes(table: pd.DataFrame, columns: Columns, loss: _Array) -> pd.Series[Any]:
    """The outcome of each row by its status and its loss."""
    # A file's loss is read as text, where an empty cell and nan differ; as a number, nan was the loss.
    cells = table[columns.loss]
    text = not pd.api.types.is_numeric_dtype(cells)
    empty = cells.isna().to_numpy(dtype=bool) if text else np.zeros(len(table), dtype=bool)
    by_loss = np.where(empty, Outcome.ERROR, np.where(np.isfinite(loss), Outcome.FINISHED, Outcome.DIVERGED))
    status = columns.status or (STATUS if STATUS in table.columns else None)
    words = None
    if status is not None:
        words = table[status].map(lambda cell: str(cell).strip().lower().replace(" ", "_"))
        unknown = words[~words.isin([*_OUTCOMES, *map(str, Outcome)])]
        if len(unknown):
            raise TransferError(
                f"Status {table[status].loc[unknown.index[0]]!r} in row {unknown.index[0] + 1} is unknown; "
                f"use one of {', '.join(words[0] for words in _STATUS.values())}."
            )
    else:
        for name in STATUSES:
            if name in table.columns and name not in (*columns.axes, *columns.hps, columns.loss):
                said = table[name].map(lambda cell: str(cell).strip().lower().replace(" ", "_"))
                if said.isin(list(_OUTCOMES)).all():
                    words = said
                    break
    if words is None:
        return pd.Series(by_loss, index=table.index)
    typed = words.map(lambda word: _OUTCOMES.get(word) or Outcome(word)).to_numpy()
    return pd.Series(np.where(typed == Outcome.FINISHED, by_loss, typed), index=table.index)


def _blown_up(clean: pd.DataFrame, columns: Columns, above: float | None) -> _Array:
    """Which finished rows diverged in fact.

    The measure is ln(loss / best loss among the scales that cost at most as much): a larger model does no
    worse than a smaller one, so this also works where each scale has a single run.
    """
    finished = (clean["outcome"] == Outcome.FINISHED).to_numpy()
    loss = clean["loss"].to_numpy(dtype=float)
    if above is not None:
        return finished & (loss > above)
    kinds = clean[list(columns.axes)].drop_duplicates()
    costs = [
        default_cost(Scale({str(a): float(v) for a, v in row.items()})) for row in kinds.to_dict("records")
    ]
    cost = clean[list(columns.axes)].merge(kinds.assign(cost=costs), how="left")["cost"].to_numpy(dtype=float)
    order = np.argsort(cost[finished], kind="stable")
    best = pd.Series(loss[finished][order]).groupby(cost[finished][order]).min().cummin()
    excess = np.zeros(len(clean))
    excess[finished] = np.log(loss[finished] / best.loc[cost[finished]].to_numpy())
    limit = max(np.log(BLOWN_UP), BLOWN_UP_MEDIANS * float(np.median(excess[finished])))
    blown: _Array = finished & (excess > limit)
    return blown


def _check_units(clean: pd.DataFrame, columns: Columns) -> None:
    """Refuse an axis whose values fall into two heaps, as when some rows count in billions."""
    for axis in columns.axes:
        values = np.unique(clean[axis].to_numpy(dtype=float))
        gaps = values[1:] / values[:-1]
        if len(gaps) and gaps.max() >= UNIT_GAP:
            i = int(gaps.argmax())
            raise TransferError(
                f"Axis {axis!r} jumps from {values[i]:g} to {values[i + 1]:g} between rows, as if in two "
                "units; write all of them in the same one."
            )


def _thin(
    clean: pd.DataFrame, columns: Columns, most: int, seed: int, maximize: bool, notes: list[str]
) -> pd.DataFrame:
    """At most `most` finished rows and as many others.

    Repeats of a setting are averaged first. If there are still too many, each heap of scales (half a doubling
    wide, so that a table in which every run has a scale of its own has few) fills half of its share with its
    best rows, which tell where the optimum is, and half evenly from the ranking of the rest, which tell the
    shape.
    """
    finished = clean[clean["outcome"] == Outcome.FINISHED]
    others = clean[clean["outcome"] != Outcome.FINISHED]
    before = len(finished)
    if before > most:
        names = [*columns.axes, *columns.hps]
        finished = finished.groupby(names, as_index=False, sort=False).agg(
            {"loss": "mean", "outcome": "first"}
        )
        if len(finished) < before:
            notes.append(f"{before} finished rows are {len(finished)} settings; repeats were averaged.")
    if len(finished) > most:
        settings = len(finished)
        places = [np.round(2 * np.log2(finished[axis])) for axis in columns.axes]
        heaps = [rows.sort_values("loss", ascending=not maximize) for _, rows in finished.groupby(places)]
        finished = pd.concat(
            rows.iloc[_best_and_spread(len(rows), n)]
            for rows, n in zip(heaps, _shares([len(rows) for rows in heaps], most), strict=True)
        )
        notes.append(
            f"Of {settings} settings {len(finished)} are fitted: per scale the best and a spread of others."
        )
    if len(others) > most:
        notes.append(f"Of {len(others)} diverged or stopped rows {most} are used, drawn at random.")
        others = others.sample(most, random_state=seed)
    return pd.concat([finished, others], ignore_index=True)


def _shares(sizes: list[int], left: int) -> list[int]:
    """`left` divided over heaps as evenly as their sizes allow."""
    shares = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for position, i in enumerate(order):
        shares[i] = min(sizes[i], left // (len(order) - position))
        left -= shares[i]
    return shares


def _best_and_spread(size: int, n: int) -> list[int]:
    """N of `size` ranks: the first half of them the best, the others evenly from the rest."""
    best = min(n, (n + 1) // 2)
    rest = np.linspace(best, size - 1, n - best).round().astype(int) if n > best else np.array([], dtype=int)
    return sorted({*range(best), *rest.tolist()})


def _dimension(values: pd.Series[Any], name: str, kind: str) -> Dimension:
    if kind == "categorical":
        return Dimension(name, kind, choices=tuple(_plain(v) for v in sorted(values.unique(), key=str)))
    whole = bool((values == values.round()).all())
    return Dimension(name, kind, float(values.min()), float(values.max()), integer=whole)


def _runs(kept: pd.DataFrame, columns: Columns, varying: Mapping[str, str]) -> list[Run]:
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
