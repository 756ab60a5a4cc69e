"""The order of a search: start-up points, then the acquisition, with a check of the optimum now and then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import norm, qmc

from transfer_bo.history import Outcome, Run, Settings
from transfer_bo.surrogate import acquisition
from transfer_bo.surrogate.dimension import Dimension
from transfer_bo.surrogate.priors import optimum_spread
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["next_run"]

CHECK_EVERY = 4
"""Every so many runs the predicted optimum itself is run. The acquisition never does that, for by its model
nothing is learnt there about where the optimum is; but it tells the loss law, and where the model errs."""
CHECK_SHARE = 0.15
"""Rungs are checked if one run costs at most this share of the budget."""
CHEAP = 2.5
"""Start-up runs use the rungs that cost at most so many times the cheapest."""


def next_run(
    *,
    settings: Settings,
    runs: Sequence[Run],
    dimensions: Sequence[Dimension],
    maximise: bool,
    rungs: Sequence[int],
    n_startup: int | None,
    number: int,
    previous: Surrogate | None,
) -> tuple[int, dict[str, Any], Surrogate | None]:
    """Rung index, HPs and the surrogate they come from (None during start-up).

    Args:
        settings: of the study.
        runs: all other runs.
        dimensions: the searched HPs.
        maximise: whether larger metrics are better.
        rungs: indices of the rungs that may be used.
        n_startup: number of start-up runs, or None for one more than there are HPs (4 to 12).
        number: of the trial; with the settings' seed it determines all randomness.
        previous: surrogate of an earlier call, to start the fit from.
    """
    if n_startup is None:
        n_startup = min(max(len(dimensions) + 1, 4), 12)
    searched = [run for run in runs if run.purpose == "search" and run.outcome is not Outcome.WAITING]
    informative = [run for run in searched if run.outcome is not Outcome.ERROR]
    finished = [run for run in runs if run.outcome is Outcome.FINISHED and run.scale is not None]
    if len(informative) < n_startup or not finished:
        cheapest = min(settings.costs[index] for index in rungs)
        cheap = sorted(
            (index for index in rungs if settings.costs[index] <= CHEAP * cheapest),
            key=lambda index: settings.costs[index],
        )
        return cheap[number % len(cheap)], startup_point(dimensions, settings, number), None
    surrogate = Surrogate(runs, dimensions, settings, maximise, previous)

    def spent_at(index: int) -> float:
        scale, cost = settings.scales[index], settings.costs[index]
        return cost * sum(run.scale == scale for run in searched)

    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    )
    if number % CHECK_EVERY == 0:
        limit = math.inf if settings.budget is None else CHECK_SHARE * settings.budget
        index = min(rungs, key=lambda index: (settings.costs[index] > limit, spent_at(index)))
        return index, acquisition.near_optimum(surrogate, settings.scales[index]), surrogate
    scale, params = acquisition.propose(
        surrogate, {settings.scales[index]: settings.costs[index] for index in rungs}, generator
    )
    return settings.scales.index(scale), params, surrogate


def startup_point(dimensions: Sequence[Dimension], settings: Settings, number: int) -> dict[str, Any]:
    """HPs of one start-up run: the number-th Sobol point, drawn from the prior of the optimum.

    A numeric HP is normal about its default with the prior's spread, kept inside the range; without a default
    it is uniform over the range.
    """
    sobol = qmc.Sobol(
        len(dimensions), scramble=True, rng=np.random.default_rng([settings.seed, len(dimensions)])
    )
    uniform = sobol.fast_forward(number).random(1)[0] if number else sobol.random(1)[0]
    params: dict[str, Any] = {}
    for dim, u in zip(dimensions, uniform, strict=True):
        if dim.transform == "categorical":
            params[dim.name] = dim.choices[min(int(u * len(dim.choices)), len(dim.choices) - 1)]
            continue
        low, high = sorted((dim.forward(dim.low), dim.forward(dim.high)))
        z = low + u * (high - low)
        if dim.default is not None:
            centre, sd = dim.forward(dim.default), (high - low) * optimum_spread(dim.name)
            below, within = float(norm.cdf((low - centre) / sd)), float(norm.cdf((high - centre) / sd))
            z = centre + sd * float(norm.ppf(below + u * (within - below)))
        params[dim.name] = dim.backward(z if math.isfinite(z) else low)
    return params
