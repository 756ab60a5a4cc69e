"""Finished runs that diverged in fact: their loss is far above the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.errors import NoRunsError
from transfer_bo.notes import Note
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome
from transfer_bo.run_table.columns import Columns
from transfer_bo.scale import Scale, default_cost

__all__ = ["mark_diverged"]

DIVERGED_RATIO = 1.5
"""A loss counts as diverged if it is more than so many times the best of its size ..."""

DIVERGED_MEDIANS = 5.0
"""... and its excess (in ln loss) more than so many times the median: a metric may span decades."""

_Array = np.ndarray[Any, np.dtype[Any]]


def mark_diverged(clean: pd.DataFrame, columns: Columns, above: float | None, notes: list[Note]) -> None:
    """Turn finished rows with too large a loss into diverged ones, in place.

    Args:
        clean: axes, HPs, "loss" and "outcome" of the usable rows.
        columns: what the columns of the table mean.
        above: a loss above which a run counts as diverged; None for the rule of `_far_above`.
        notes: one is appended if there are such rows.

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
        Note(
            f"{counted(diverged.sum(), 'finished row counts', 'finished rows count')} as diverged, with "
            f"a loss {where} "
            f"(from {clean['loss'][diverged].min():.4g}); set diverged_above=... if they did not diverge.",
            "rows_far_above",
            column=columns.loss,
            rows=int(diverged.sum()),
            least=float(clean["loss"][diverged].min()),
        )
    )


def _above(clean: pd.DataFrame, above: float) -> _Array:
    """Which finished rows have a larger loss than `above`."""
    is_above: _Array = ((clean["outcome"] == Outcome.FINISHED) & (clean["loss"] > above)).to_numpy()
    return is_above


def _far_above(clean: pd.DataFrame, axes: Sequence[str]) -> _Array:
    """Which finished rows have a loss far above the others.

    The measure is ln(loss / best loss among the scales that cost at most as much): a larger model does no
    worse than a smaller one, so this also works where each scale has a single run.
    """
    finished = (clean["outcome"] == Outcome.FINISHED).to_numpy()
    loss = clean["loss"].to_numpy(dtype=float)

    scales = clean[list(axes)].drop_duplicates()
    costs = [
        default_cost(Scale({str(a): float(v) for a, v in row.items()})) for row in scales.to_dict("records")
    ]
    cost = clean[list(axes)].merge(scales.assign(cost=costs), how="left")["cost"].to_numpy(dtype=float)

    order = np.argsort(cost[finished], kind="stable")
    best = pd.Series(loss[finished][order]).groupby(cost[finished][order]).min().cummin()
    log_ratio = np.zeros(len(clean))
    log_ratio[finished] = np.log(loss[finished] / best.loc[cost[finished]].to_numpy())
    limit = max(np.log(DIVERGED_RATIO), DIVERGED_MEDIANS * float(np.median(log_ratio[finished])))
    far_above: _Array = finished & (log_ratio > limit)
    return far_above
