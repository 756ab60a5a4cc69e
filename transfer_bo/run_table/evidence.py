"""What a suggestion from runs rests on: distance, prior, and the price of not correcting; as plain values.

The excess loss of a setting is what it is expected to cost above the best one at the target: the mean of the
bowl over draws of the optimum, without the outer tenth of them, because the far tail of a bowl is exponential
and rests on no run.

Symbols: s = doublings of the axes from the base, v = HPs in the coordinates of the bowl, y = transformed
loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer_bo.notes import Note
from transfer_bo.projection import Projection, Suggestion
from transfer_bo.records import Outcome, finished_runs
from transfer_bo.run_table.fit import doublings_outside
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.priors import RAW_DRIFT, RAW_DRIFT_OTHER
from transfer_bo.synonyms import axis_kind, hp_kind

__all__ = ["cliff_shift", "excess_loss", "largest_scale", "prior_warnings", "uncorrected", "unknown_drifts"]

RESTS_ON_PRIOR = 0.8
"""A drift rests on its prior if its sd is still more than this share of the prior's."""

NOTABLE_OCTAVES = 0.25
"""Uncertainty of the optimum at the target, by one drift, that is worth a warning."""


def excess_loss(projection: Projection, scale: Scale, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting is expected to cost above the best one.

    Args:
        projection: of the runs.
        scale: where.
        params: HP -> value.

    Returns:
        "mean" and "interval" (90%) in the metric's unit; "percent" too if the metric is a loss.
    """
    surrogate = projection.surrogate
    landscape = surrogate.landscape
    s = surrogate.coordinates.s(scale)
    v = surrogate.coordinates.row(params, scale)[: landscape.d]

    draws = projection.samples.at(s)
    bowl = np.sort(landscape.bowl(draws.theta, v - draws.jitter, s).numpy())
    low, high = np.quantile(bowl, [0.05, 0.95])
    mean = float(bowl[(bowl >= low) & (bowl <= high)].mean())

    level = float(landscape.law(surrogate.theta, s))
    backward = surrogate.outcome_transform.backward

    def price(y: float) -> float:
        return abs(backward(level + y) - backward(level))

    found: dict[str, Any] = {"mean": price(mean), "interval": [price(float(low)), price(float(high))]}
    if surrogate.outcome_transform.log:
        found["percent"] = 100 * math.expm1(min(surrogate.outcome_transform.ln * mean, 700.0))
    return found


def uncorrected(projection: Projection, suggestion: Suggestion) -> dict[str, Any]:
    """What copying settings from smaller scales would cost at the target, beside the suggestion's own price.

    Args:
        projection: of the runs.
        suggestion: at the projection's target.

    Returns:
        "suggestion", "copy_best" (the best run of the largest scale), "copy_largest" and "copy_base" (the
        fitted optimum of the largest and of the smallest scale); each {"params", "excess"}.
    """
    surrogate = projection.surrogate
    finished = [run for run in surrogate.runs if run.outcome is Outcome.FINISHED and run.loss is not None]
    finished = [run for run in finished if run.source is None] or finished
    largest = [run for run in finished if run.scale == largest_scale(projection)]
    largest = [run for run in largest if run.is_feasible] or largest
    best = min(largest, key=lambda run: surrogate.outcome_transform.forward(run.loss or math.nan))

    settings = {
        "suggestion": dict(suggestion.params),
        "copy_best": best.params,
        "copy_largest": _optimum(projection, largest_scale(projection)),
        "copy_base": _optimum(projection, projection.settings.base),
    }
    return {
        name: {"params": params, "excess": excess_loss(projection, projection.target, params)}
        for name, params in settings.items()
    }


def largest_scale(projection: Projection) -> Scale:
    """The most expensive scale with a finished run of the table's own schedule."""
    runs = finished_runs(projection.surrogate.runs)
    finished = {run.scale for run in runs if run.source is None} or {run.scale for run in runs}
    return [scale for scale in projection.settings.scales if scale in finished][-1]


def _optimum(projection: Projection, scale: Scale) -> dict[str, Any]:
    """The fitted optimum of a scale, best categories included."""
    surrogate = projection.surrogate
    centre, _ = surrogate.optimum_posterior(scale).optimum()
    return surrogate.coordinates.params(surrogate.coordinates.clip(centre), surrogate.best_flags())


def cliff_shift(projection: Projection, suggestion: Suggestion) -> dict[str, float]:
    """By how many octaves the suggestion lies above the median of the optimum, for each numeric HP.

    The setting with the least expected loss is not the most probable optimum: on the side of a cliff a miss
    costs more than on the other side.

    Args:
        projection: of the runs.
        suggestion: at the projection's target.
    """
    shifts = {}
    for dim in projection.surrogate.coordinates.numeric:
        if dim.name not in suggestion.params:  # inactive at the target
            continue
        median = float(np.median(suggestion.optimum[dim.name]))
        shifts[dim.name] = dim.forward(float(suggestion.params[dim.name])) - dim.forward(median)
    return shifts


def prior_warnings(projection: Projection) -> list[Note]:
    """A note for each drift that the runs hardly narrow, where the answer depends on it."""
    scales = [run.scale for run in projection.surrogate.runs if run.outcome is Outcome.FINISHED and run.scale]
    outside = doublings_outside(scales, projection.target)

    notes = []
    for hp, by_axis in projection.drift().items():
        for axis, drift in by_axis.items():
            rests_on_prior = drift["sd"] > RESTS_ON_PRIOR * drift["prior_sd"]
            if rests_on_prior and drift["sd"] * abs(outside[axis]) > NOTABLE_OCTAVES:
                notes.append(
                    Note(
                        f"How {hp} drifts along {axis} rests on the prior ({drift['prior_mean']:+.2f} ± "
                        f"{drift['prior_sd']:.2f} octaves per doubling; with the runs {drift['mean']:+.2f} ± "
                        f"{drift['sd']:.2f}), and the target is {abs(outside[axis]):.1f} doublings outside.",
                        "drift_rests_on_prior",
                        hp=hp,
                        axis=axis,
                    )
                )
    return notes


def unknown_drifts(projection: Projection) -> list[Note]:
    """A note for each HP and axis whose drift no source of the prior tells, because its name says nothing.

    In base coordinates the optimum is not expected to drift, whatever the names.
    """
    settings = projection.settings
    if settings.coordinates != "raw":
        return []

    notes = []
    axes = projection.surrogate.coordinates.axes
    sd = RAW_DRIFT_OTHER[1]
    expected = f"its optimum is expected to stay where it is, give or take {sd:g} octaves per doubling"
    for hp in projection.hps:
        is_given = all(axis in settings.drift_prior.get(hp, {}) for axis in axes)
        if settings.kinds.get(hp, hp_kind(hp)) == "other" and not is_multiplier(hp) and not is_given:
            notes.append(
                Note(
                    f"No published drift is known for an HP called {hp}: {expected}; if it is a learning "
                    f"rate or a batch size, declare it as {hp}=lr or {hp}=batch.",
                    "hp_kind_unknown",
                    column=hp,
                )
            )

    known = {axis for _, axis in RAW_DRIFT}
    for axis in axes:
        is_given = all(axis in settings.drift_prior.get(hp, {}) for hp in projection.hps)
        if settings.kinds.get(axis, axis_kind(axis)) not in known and not is_given:
            notes.append(
                Note(
                    f"No published drift is known along an axis called {axis}: of each HP {expected}; if it "
                    f"counts one of {', '.join(sorted(known))}, declare it, e.g. as {axis}=n_params.",
                    "axis_kind_unknown",
                    column=axis,
                )
            )
    return notes
