"""The runs before the surrogate is used: how many, at which rungs, and where.

Start-up points are a low-discrepancy (Sobol) sequence that is indexed by the trial's number, so that a
resumed search goes on with the next point.

Point 0, the optimum of the prior, is only run if the HPs are known before the first trial, for example from
runs of a source study. In a plain Optuna study trial 0 has an empty search space: `TransferSampler` draws its
HPs at random, at the cheapest affordable rung, and start-up points begin with trial 1. A study file sets the
HPs of trial 0 to their defaults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, qmc

from transfer_bo.dimension import Dimension
from transfer_bo.records import StudySettings
from transfer_bo.search.state import SearchState
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import DriftPrior
from transfer_bo.surrogate.priors import is_unknown, optimum_spread

__all__ = ["MAX_COUNT", "startup_count", "startup_point", "startup_rung"]

MIN_COUNT = 4
"""Without a given number there is one start-up run more than there are HPs, but at least so many ..."""

MAX_COUNT = 12
"""... and at most so many."""

MIN_AFFORDABLE = 2
"""A small budget lowers the number, but not below this."""

BUDGET_SHARE = 0.5
"""Start-up runs take at most this share of the budget, if more than MIN_AFFORDABLE of them fit."""

WITH_SOURCES = 2
"""Start-up runs where runs of source studies are known."""

RUNG_SHARE = 0.25
"""Start-up runs use the rungs at which all of them would take at most this share of the budget ..."""

RUNG_FACTOR = 2.5
"""... or that cost at most so many times as much as the cheapest one, if all of them would take at most
BUDGET_SHARE there."""

SPREAD = 0.7
"""Start-up points fill this share of each range, around the optimum expected a priori: the ends of a range
teach little about the optimum, and a learning rate there may fail."""


def startup_count(state: SearchState, rungs: Sequence[int]) -> int:
    """Number of start-up runs.

    Args:
        state: the study as it stands.
        rungs: indices of the rungs that may be used.
    """
    if state.n_startup is not None:
        return state.n_startup

    settings = state.settings
    count = min(max(len(state.dimensions) + 1, MIN_COUNT), MAX_COUNT)
    if settings.budget is not None:
        cheapest = min(settings.costs[index] for index in rungs)
        affordable = int(BUDGET_SHARE * settings.budget / cheapest)
        count = max(min(count, affordable), MIN_AFFORDABLE)
    if any(run.source is not None for run in state.runs):
        count = min(count, WITH_SOURCES)
    return count


def startup_rung(state: SearchState, rungs: Sequence[int], count: int) -> int:
    """Index of the rung of a start-up run: the cheap ones take turns.

    Args:
        state: the study as it stands.
        rungs: indices of the rungs that may be used.
        count: number of start-up runs.
    """
    settings = state.settings
    cheapest = min(settings.costs[index] for index in rungs)
    limit = RUNG_FACTOR * cheapest
    if settings.budget is not None:
        per_run = settings.budget / count
        limit = max(RUNG_SHARE * per_run, min(limit, BUDGET_SHARE * per_run), cheapest)

    cheap = [index for index in rungs if settings.costs[index] <= limit]
    cheap.sort(key=lambda index: settings.costs[index])
    return cheap[state.number % len(cheap)]


def startup_point(dimensions: Sequence[Dimension], settings: StudySettings, number: int) -> dict[str, Any]:
    """HPs of one start-up run.

    The first run is at the optimum expected a priori. Later ones are uniform over `SPREAD` of the range where
    little is known beforehand: a learning rate, a batch size, an HP without a default. The others are normal
    about their default with the prior's spread, kept inside the range; in every second pair of runs they stay
    at it, so that a few runs already separate the effects of the former. Pairs, because Sobol points of odd
    numbers alone fill only half of the range.

    Args:
        dimensions: the searched HPs.
        settings: settings of the study.
        number: index in the Sobol sequence.
    """
    expected = _prior_optimum(dimensions, settings)
    sobol = qmc.Sobol(
        len(dimensions), scramble=True, rng=np.random.default_rng([settings.seed, len(dimensions)])
    )
    uniform = sobol.fast_forward(number).random(1)[0] if number else sobol.random(1)[0]

    usual = [dim for dim in dimensions if dim.default is not None and not is_unknown(dim.name)]
    stay = number % 4 >= 2 and len(usual) < len(dimensions)
    params: dict[str, Any] = {}
    for dim, u in zip(dimensions, uniform, strict=True):
        if dim.transform == "categorical":
            params[dim.name] = dim.choices[min(int(u * len(dim.choices)), len(dim.choices) - 1)]
            continue

        low, high = sorted((dim.forward(dim.low), dim.forward(dim.high)))
        centre = dim.forward(expected[dim.name])
        if number == 0 or (dim in usual and stay):
            z = centre
        elif dim in usual:
            sd = (high - low) * optimum_spread(dim.name, has_default=True)
            below, within = float(norm.cdf((low - centre) / sd)), float(norm.cdf((high - centre) / sd))
            z = centre + sd * float(norm.ppf(below + u * (within - below)))
        else:
            z = centre + SPREAD * (low + u * (high - low) - centre)
        params[dim.name] = dim.backward(z if math.isfinite(z) else low)
    return params


def _prior_optimum(dimensions: Sequence[Dimension], settings: StudySettings) -> dict[str, Any]:
    """The optimum at the base scale expected before any run; of a categorical HP, the first choice."""
    axes = [axis for axis in settings.base if settings.base[axis] != settings.target[axis]]
    coordinates = Coordinates(dimensions, settings.base, axes)
    names = [dim.name for dim in coordinates.numeric]
    drift_prior = DriftPrior.from_tables(names, axes, settings.coordinates, settings.drift_prior)
    return coordinates.params(
        coordinates.mix @ coordinates.clip_z(drift_prior.base_optimum(coordinates, settings.target))
    )
