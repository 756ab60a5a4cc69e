"""Leave one scale out, on the user's own runs: would the cheaper runs have predicted the largest ones?

The runs of the largest scale (all within half a doubling of it) are kept from the fit, which then suggests
settings there and predicts the loss of each of them. Only runs that cost less are fitted: it is the step from
small to large that is tested.

Symbols: X, y = rows and transformed losses of runs, v = HPs in the coordinates of the bowl, both as in
`surrogate.coordinates`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from transfer_bo.projection import Projection
from transfer_bo.records import Outcome, Run, finished_runs
from transfer_bo.run_table.cleaning import RunTable
from transfer_bo.run_table.fit import FitOptions, project
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.leave_one_out import error_factor

__all__ = ["leave_largest_out", "prediction_errors"]

FOLDS = 2
"""Scales that are left out, one after the other, the largest first."""

LEAST_RUNS = 4
"""Finished runs that must remain to be fitted, besides one for each HP."""

BINS_PER_DOUBLING = 2
"""Scales whose axes all round to the same number of half doublings are left out together."""

OTHER_CATEGORY = 100.0
"""Octaves that a setting with another category counts as away."""


def leave_largest_out(rows: RunTable, options: FitOptions, level: float = 0.9) -> list[dict[str, Any]]:
    """Fit without the largest scale, predict it, compare; then the same with the next largest.

    Args:
        rows: the runs.
        options: coordinates, drift prior, direction, seed of the fits.
        level: of the intervals.

    Returns:
        A dict per scale that was left out (keys: `suggestion.schema.json`); empty if too few runs remain.
    """
    bins: list[tuple[int, ...]] = []  # of scales, the most expensive first
    for scale in reversed(rows.scales):
        if _bin(scale) not in bins:
            bins.append(_bin(scale))

    folds: list[dict[str, Any]] = []
    finished = [run for run in finished_runs(rows.runs) if run.source is None]
    for largest in bins[:FOLDS]:
        held_out = [run for run in finished if run.scale and _bin(run.scale) == largest]
        cheapest = min(default_cost(run.scale) for run in held_out if run.scale)
        fitted = [
            run
            for run in rows.runs
            if run.scale and default_cost(run.scale) < cheapest and _bin(run.scale) != largest
        ]

        n_finished = sum(run.outcome is Outcome.FINISHED for run in fitted)
        if n_finished < LEAST_RUNS + len(rows.dimensions):
            break
        folds.append(_compare(fitted, held_out, rows, options, level))
    return folds


def prediction_errors(rows: RunTable, options: FitOptions) -> dict[str, Any] | None:
    """How well the surrogate predicts runs that it does not know: single ones, and the largest scales.

    Args:
        rows: the runs.
        options: coordinates, drift prior, direction, seed of the fits.

    Returns:
        `{"leave_one_out": as of ErrorFactor, "held_out": as of leave_largest_out}`; None for too few runs.
    """
    complete = [run for run in rows.runs if all(dim.name in run.params for dim in rows.dimensions)]
    rows = dataclasses.replace(rows, runs=complete)
    finished = sum(run.outcome is Outcome.FINISHED for run in rows.runs)
    if finished < LEAST_RUNS + len(rows.dimensions):
        return None

    projection = project(rows.runs, rows.dimensions, rows.scales[-1], options)
    return {
        "leave_one_out": error_factor(projection.surrogate.model).to_json(),
        "held_out": leave_largest_out(rows, options),
    }


def _bin(scale: Scale) -> tuple[int, ...]:
    return tuple(int(np.round(BINS_PER_DOUBLING * np.log2(value))) for value in scale.values())


def _compare(
    fitted: Sequence[Run], held_out: Sequence[Run], rows: RunTable, options: FitOptions, level: float
) -> dict[str, Any]:
    """What a fit to `fitted` predicts of the held-out runs, beside what they were."""
    scales = [run.scale for run in held_out if run.scale]
    scale = max(set(scales), key=lambda s: (scales.count(s), default_cost(s), *s.values()))
    held_out = [run for run in held_out if run.scale == scale]
    losses = np.array([run.loss for run in held_out], dtype=float)
    best = held_out[int((-losses if options.maximize else losses).argmin())]

    projection = project(fitted, rows.dimensions, scale, options)
    suggestion = projection.suggest()
    interval = suggestion.interval(level)

    y, drawn, distance = _drawn(projection, scale, held_out, suggestion.params)
    tails = (1 - level) / 2, (1 + level) / 2
    inside = [
        bool(low <= at <= high) for at, (low, high) in zip(y, np.quantile(drawn, tails, 0).T, strict=True)
    ]

    return {
        "scale": dict(scale),
        "fitted_runs": sum(run.outcome is Outcome.FINISHED for run in fitted),
        "held_out_runs": len(held_out),
        "suggested": suggestion.params,
        "intervals": {name: list(pair) for name, pair in interval.items()},
        "predicted_loss": {
            "mean": suggestion.predicted_loss.mean,
            "interval": list(suggestion.predicted_loss.interval(level)),
        },
        "measured_best": {"params": best.params, "loss": best.loss},
        "best_inside": {
            name: bool(low <= best.params[name] <= high) for name, (low, high) in interval.items()
        },
        "nearest": _nearest(projection, held_out, y, drawn, distance, tails),
        "losses_inside": sum(inside) / len(inside),
    }


def _nearest(
    projection: Projection,
    held_out: Sequence[Run],
    y: np.ndarray[Any, Any],
    drawn: np.ndarray[Any, Any],
    distance: np.ndarray[Any, Any],
    tails: tuple[float, float],
) -> dict[str, Any]:
    """The held-out run nearest to the suggestion: its excess loss over the best of them, and as predicted."""
    nearest = int(distance.argmin())
    unit = projection.surrogate.outcome_transform.ln
    measured = unit * float(y[nearest] - y.min())
    predicted = unit * (drawn[:, nearest] - drawn.min(1))  # over the best of the same runs
    low, high = (float(q) for q in np.quantile(predicted, tails))
    loss = held_out[nearest].loss
    return {
        "params": held_out[nearest].params,
        "loss": loss,
        "octaves_away": float(distance[nearest]),
        "excess": measured,
        "predicted_excess": float(np.median(predicted)),
        "interval": [low, high],
        "inside": bool(low <= measured <= high),
    }


def _drawn(
    projection: Projection, scale: Scale, held_out: Sequence[Run], params: dict[str, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Held-out runs as they were, as the fit draws them, and how far they lie from a setting.

    The draws are joint: one landscape, one optimum, and noise of its own for each run, so that the best of n
    noisy runs is compared with the best of n noisy runs.

    Returns:
        Measured y (n), drawn y (count x n), distance to `params` (n, octaves).
    """
    surrogate = projection.surrogate
    coordinates = surrogate.coordinates
    X = torch.stack([surrogate.row(run) for run in held_out])
    y = np.array([surrogate.outcome_transform.forward(run.loss) for run in held_out if run.loss is not None])

    v, flags, _ = surrogate.landscape.split(X)
    at = coordinates.row(params, scale)
    step = (v - at[: coordinates.d]) @ coordinates.unmix.T
    other = (flags - at[coordinates.d : coordinates.d + coordinates.k]).abs().sum(-1)
    distance = step.square().sum(-1).sqrt() + OTHER_CATEGORY * other
    return y, projection.draw_losses(X, at).numpy(), distance.numpy()
