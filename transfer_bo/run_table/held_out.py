"""Leave one scale out, on the user's own runs: would the cheaper runs have said what the largest ones showed?

The runs of the largest scale (all within half a doubling of it) are kept from the fit, which then suggests
settings there and predicts the loss of each of them. Only runs that cost less are fitted: it is the step from
small to large that is tested. Symbols: v as in `surrogate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from transfer_bo.projection import Projection
from transfer_bo.records import Outcome, Run
from transfer_bo.run_table.cleaning import RunTable
from transfer_bo.run_table.fit import FitOptions, project
from transfer_bo.scale import Scale, default_cost

__all__ = ["leave_largest_out"]

FOLDS = 2
"""Scales that are left out, one after the other, the largest first."""
LEAST_RUNS = 4
"""Finished runs that must be left to fit, besides one for each HP."""


def leave_largest_out(rows: RunTable, beliefs: FitOptions, level: float = 0.9) -> list[dict[str, Any]]:
    """Fit without the largest scale, predict it, compare; then the same with the next largest.

    Returns:
        A dict per scale that was left out (keys: `suggestion.schema.json`); empty if too few runs are left.
    """
    found: list[dict[str, Any]] = []
    finished = [run for run in rows.runs if run.outcome is Outcome.FINISHED and run.scale]
    places: list[tuple[int, ...]] = []  # heaps of scales, the dearest first
    for scale in reversed(rows.scales):
        if _place(scale) not in places:
            places.append(_place(scale))
    for place in places[:FOLDS]:
        held = [run for run in finished if run.scale and _place(run.scale) == place]
        cheapest = min(default_cost(run.scale) for run in held if run.scale)
        rest = [
            run
            for run in rows.runs
            if run.scale and default_cost(run.scale) < cheapest and _place(run.scale) != place
        ]
        left = sum(run.outcome is Outcome.FINISHED for run in rest)
        if left < LEAST_RUNS + len(rows.dimensions):
            break
        found.append(_compare(rest, held, rows, beliefs, level))
    return found


def _place(scale: Scale) -> tuple[int, ...]:
    return tuple(int(np.round(2 * np.log2(value))) for value in scale.values())


def _compare(
    rest: Sequence[Run], held: Sequence[Run], rows: RunTable, beliefs: FitOptions, level: float
) -> dict[str, Any]:
    """What the fit to `rest` says of the held-out runs, beside what they were."""
    scales = [run.scale for run in held if run.scale]
    scale = max(set(scales), key=lambda s: (scales.count(s), default_cost(s), *s.values()))
    held = [run for run in held if run.scale == scale]
    projection = project(rest, rows.dimensions, scale, beliefs)
    suggestion = projection.suggest()
    losses = np.array([run.loss for run in held], dtype=float)
    best = int((-losses if beliefs.maximize else losses).argmin())
    y, drawn, distance = _drawn(projection, scale, held, suggestion.params)
    nearest = int(distance.argmin())
    unit = projection.surrogate.output.ln
    measured_excess = unit * float(y[nearest] - y.min())
    excess = unit * (drawn[:, nearest] - drawn.min(1))  # of the same run over the best of the same runs
    tails = (1 - level) / 2, (1 + level) / 2
    covered = [
        bool(low <= at <= high) for at, (low, high) in zip(y, np.quantile(drawn, tails, 0).T, strict=True)
    ]
    bounds = [float(q) for q in np.quantile(excess, tails)]
    interval = suggestion.interval(level)
    return {
        "scale": dict(scale),
        "fitted_runs": sum(run.outcome is Outcome.FINISHED for run in rest),
        "held_out_runs": len(held),
        "suggested": suggestion.params,
        "intervals": {name: list(pair) for name, pair in interval.items()},
        "predicted_loss": {
            "mean": suggestion.predicted_loss.mean,
            "interval": list(suggestion.predicted_loss.interval(level)),
        },
        "measured_best": {"params": held[best].params, "loss": float(losses[best])},
        "best_inside": {
            name: bool(low <= held[best].params[name] <= high) for name, (low, high) in interval.items()
        },
        "nearest": {
            "params": held[nearest].params,
            "loss": float(losses[nearest]),
            "octaves_away": float(distance[nearest]),
            "excess": measured_excess,
            "predicted_excess": float(np.median(excess)),
            "interval": bounds,
            "inside": bool(bounds[0] <= measured_excess <= bounds[1]),
        },
        "losses_inside": sum(covered) / len(covered),
    }


def _drawn(
    projection: Projection, scale: Scale, held: Sequence[Run], params: dict[str, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Held-out runs as they were (y: n), as the fit draws them (count x n), and how far away (n, octaves).

    The draws are joint: one landscape, one optimum, and noise of its own for each run, so that the best of n
    noisy runs is compared with the best of n noisy runs.
    """
    surrogate = projection.surrogate
    coordinates = surrogate.coordinates
    X = torch.stack([surrogate.row(run) for run in held])
    y = np.array([surrogate.output.forward(run.loss) for run in held if run.loss is not None])
    v, flags, _ = surrogate.landscape.split(X)
    at = coordinates.row(params, scale)
    step = (v - at[: coordinates.d]) @ coordinates.unmix.T
    distance = step.square().sum(-1).sqrt() + 100.0 * (
        flags - at[coordinates.d : coordinates.d + coordinates.k]
    ).abs().sum(-1)
    return y, projection.drawn(X, at).numpy(), distance.numpy()
