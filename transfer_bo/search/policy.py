"""The order of a search: start-up points, then the acquisition, with a check of the optimum now and then.

With `StudySettings.global_share` it has two stages: HPs of all tensors first, multipliers of groups at their
defaults; then everything, in a trust region around the best setting (2512.22382).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import norm, qmc

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings, spent
from transfer_bo.search import acquisition
from transfer_bo.search.trust_region import (
    propose_above,
    propose_near,
    rung_of,
    without_multipliers,
)
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import Drift
from transfer_bo.surrogate.priors import is_unknown, optimum_spread
from transfer_bo.surrogate.recommendation import minimize_expected_loss
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["next_run"]

CHECK_EVERY = 3
"""Every so many runs the predicted optimum itself is run. The acquisition never does that, for by its model
nothing is learnt there about where the optimum is; but it tells the loss law, and where the model errs."""
CHECK_SHARE = 0.15
"""Rungs are checked if one run costs at most this share of the budget."""
MOST_RUNS = 64
"""A run is priced at no less than this fraction of the budget: nobody wants hundreds of tiny runs, and a
search that is ended by their number should have seen the larger rungs by then."""
STARTUP_SHARE = 0.25
"""Start-up runs use the rungs at which they take at most so much of the budget ..."""
STARTUP_MOST = 0.5
"""Start-up runs are so few that they take at most this share of a small budget, but two at least."""
SPREAD_OUT = 0.7
"""Start-up runs stay so far within the range: what is at its ends teaches little about the optimum, and a
learning rate there may fail."""
STARTUP_PAST = 2
"""Start-up runs where runs of past studies are known."""
CHEAP = 2.5
"""... or, without a budget, that cost at most so many times the cheapest."""


def next_run(
    *,
    settings: StudySettings,
    runs: Sequence[Run],
    dimensions: Sequence[Dimension],
    maximize: bool,
    rungs: Sequence[int],
    n_startup: int | None,
    number: int,
    still: Collection[str] = (),
) -> tuple[int, dict[str, Any]]:
    """Rung index and HPs of the next run.

    Args:
        settings: of the study.
        runs: all other runs.
        dimensions: the searched HPs.
        maximize: whether larger metrics are better.
        rungs: indices of the rungs that may be used.
        n_startup: number of start-up runs, or None for one more than there are HPs (4 to 12; fewer where the
            budget is small).
        number: of the trial; with the settings' seed it determines all randomness.
        still: HPs that the second stage leaves where they are.
    """
    searched = [run for run in runs if run.purpose == "search" and run.outcome is not Outcome.WAITING]
    cheapest = min(settings.costs[index] for index in rungs)
    if settings.global_share is not None and settings.budget is not None:
        plain = without_multipliers(dimensions)
        at = {dim.name: settings.defaults.get(dim.name, 1.0) for dim in dimensions if dim not in plain}
        if plain and at and spent(settings, runs) < settings.global_share * settings.budget:
            first = replace(settings, global_share=None, budget=settings.global_share * settings.budget)
            rung, params = next_run(
                settings=first,
                runs=runs,
                dimensions=plain,
                maximize=maximize,
                rungs=rungs,
                n_startup=n_startup,
                number=number,
            )
            return rung, {**at, **params}
    if n_startup is None:
        n_startup = min(max(len(dimensions) + 1, 4), 12)
        if settings.budget is not None:
            affordable = int(STARTUP_MOST * settings.budget / cheapest)
            n_startup = max(min(n_startup, affordable), 2)
        if any(run.source is not None for run in runs):
            n_startup = min(n_startup, STARTUP_PAST)
    informative = [run for run in searched if run.outcome is not Outcome.ERROR]
    finished = [run for run in runs if run.outcome is Outcome.FINISHED and run.scale is not None]
    if len(informative) < n_startup or not finished:
        limit = CHEAP * cheapest
        if settings.budget is not None:
            limit = max(limit, STARTUP_SHARE * settings.budget / n_startup)
        cheap = sorted(
            (index for index in rungs if settings.costs[index] <= limit),
            key=lambda index: settings.costs[index],
        )
        return cheap[number % len(cheap)], startup_point(dimensions, settings, number)
    surrogate = Surrogate(runs, dimensions, settings, maximize)
    least = 0.0 if settings.budget is None else settings.budget / MOST_RUNS
    prices = {settings.scales[index]: max(settings.costs[index], least) for index in rungs}
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    )
    if settings.global_share is not None:
        costs = {settings.scales[index]: settings.costs[index] for index in rungs}
        near = min(costs, key=lambda scale: costs[scale])
        scale = rung_of(costs, searched, settings.defaults)
        if scale != near:
            params = propose_above(surrogate, scale, near, generator, maximize)
        else:
            greedy = number % CHECK_EVERY == 0
            params = propose_near(surrogate, near, generator, greedy=greedy, maximize=maximize, still=still)
        return settings.scales.index(scale), params
    if number % CHECK_EVERY == 0:
        limit = math.inf if settings.budget is None else CHECK_SHARE * settings.budget
        counts = Counter(run.scale for run in searched)
        scale = min(prices, key=lambda scale: (prices[scale] > limit, prices[scale] * counts[scale]))
        v, flags = minimize_expected_loss(surrogate, scale, generator, caution=0.0)
        memory, row = surrogate.memory, surrogate.rows(v[None], scale, flags)
        if not memory.any_infeasible or float(memory.probability(row)) <= acquisition.RISK:
            return settings.scales.index(scale), surrogate.coordinates.params(v, flags)
    used = spent(settings, runs, least)
    # Without a budget, as much again; at the end of one, at least one more run of any rung it still buys.
    left = used if settings.budget is None else max(settings.budget - used, *prices.values())
    scale, params = acquisition.propose(surrogate, prices, left, generator)
    return settings.scales.index(scale), params


def startup_point(dimensions: Sequence[Dimension], settings: StudySettings, number: int) -> dict[str, Any]:
    """HPs of one start-up run: the number-th Sobol point.

    The first run is at the believed optimum. Later ones are uniform over most of the range where little is
    known beforehand: a learning rate, a batch size, an HP without a default. The others are normal about
    their default with the prior's spread, kept inside the range; in every second pair of runs they stay at
    it, so that few runs already tell the first ones apart. In pairs, for Sobol points of odd numbers alone
    fill only half of the range.
    """
    believed = _believed_optimum(dimensions, settings)
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
        centre = dim.forward(believed[dim.name])
        if number == 0 or (dim in usual and stay):
            z = centre
        elif dim in usual:
            sd = (high - low) * optimum_spread(dim.name, has_default=True)
            below, within = float(norm.cdf((low - centre) / sd)), float(norm.cdf((high - centre) / sd))
            z = centre + sd * float(norm.ppf(below + u * (within - below)))
        else:
            z = centre + SPREAD_OUT * (low + u * (high - low) - centre)
        params[dim.name] = dim.backward(z if math.isfinite(z) else low)
    return params


def _believed_optimum(dimensions: Sequence[Dimension], settings: StudySettings) -> dict[str, Any]:
    """Where the optimum at the base is believed to be before any run; of a category, the first one."""
    axes = [axis for axis in settings.base if settings.base[axis] != settings.target[axis]]
    coordinates = Coordinates(dimensions, settings.base, axes)
    names = [dim.name for dim in coordinates.numeric]
    drift = Drift.believed(names, axes, settings.coordinates, settings.drift_prior)
    return coordinates.params(
        coordinates.mix @ coordinates.clip_z(drift.origin(coordinates, settings.target))
    )
