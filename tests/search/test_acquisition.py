"""The acquisition function: what a run lowers exactly, what a plan spends, and what is not proposed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.search.acquisition import RISK, plan_runs, propose
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.fitting import fit_gp
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.landscape import DriftPrior, Landscape
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

BASE = Scale(width=32, tokens=1e5)
TARGET = torch.tensor([3.0, 4.0], dtype=torch.double)
RUNGS = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]


def fitted(seed: int, n: int = 40, noise: float = 0.004) -> LandscapeGP:
    """A fit to n runs near the optimum of a landscape drawn from the prior."""
    generator = torch.Generator().manual_seed(seed)
    dimensions = [Dimension("lr", "log", 1e-4, 1e-1), Dimension("weight_decay", "log", 1e-3, 1.0)]
    coordinates = Coordinates(dimensions, BASE, ["width", "tokens"])
    drift_prior = DriftPrior.from_tables(["a", "b"], ["x", "y"], "base")
    shape = Landscape(coordinates, drift_prior, level=math.log(2.0))
    theta = shape.mean + 0.5 * shape.sd * torch.randn(shape.p, dtype=torch.double, generator=generator)
    s = torch.tensor(RUNGS, dtype=torch.double)[torch.arange(n) % len(RUNGS)]
    v = shape.path(theta, s) + 1.5 * torch.randn(n, 2, dtype=torch.double, generator=generator)
    X = torch.cat([v, s], -1)
    y = shape.values(theta, X) + noise * torch.randn(n, dtype=torch.double, generator=generator)
    return fit_gp(X, y, shape)


def planned(
    model: LandscapeGP, X: torch.Tensor, costs: torch.Tensor, budget: float, optima: torch.Tensor
) -> list[int]:
    """A plan for the target."""
    posterior, generator = model.optimum_posterior(TARGET), torch.Generator().manual_seed(0)
    return plan_runs(posterior, X, model.noise(X), costs, budget, optima, generator)


def test_a_plan_of_one_run_is_the_run_that_narrows_the_optimum_most() -> None:
    """Where the bowl says all, the pick is the row that lowers tr(H Cov v*) most when added for real."""
    fit = fitted(0)
    negligible = replace(fit.hyperparameters, log_residual=torch.tensor(math.log(1e-9)).double())
    model = fit.with_fit(hyperparameters=negligible)
    X = model.X[:12] + 0.3
    H = model.landscape.curvature(model.theta, TARGET)
    _, before = model.optimum_posterior(TARGET).optimum()
    optima = torch.cat([X[:, :2], TARGET.expand(12, -1)], -1)

    picks = planned(model, X, torch.ones(12).double(), 1.0, optima)
    after = [model.optimum_posterior(TARGET, pending=row[None]).optimum()[1] for row in X]
    drops = [float((H * (before - covariance)).sum()) for covariance in after]

    assert [drops.index(max(drops))] == picks


def test_a_plan_spends_no_more_than_the_budget() -> None:
    """However many rows and rungs there are, the picks' costs fit; a lone pick is allowed to exceed."""
    model = fitted(1)
    costs = torch.tensor([1.0, 1.0, 3.0, 3.0, 9.0, 9.0], dtype=torch.double)
    X = model.X[:6] + 0.5
    optima = torch.cat([X[:, :2], TARGET.expand(6, -1)], -1)

    for budget in (0.5, 1.0, 2.5, 7.0, 30.0):
        picks = planned(model, X, costs, budget, optima)

        assert len(picks) == 1 or float(costs[picks].sum()) <= budget + 1e-9


def test_a_plan_repeats_runs_where_noise_asks_for_it() -> None:
    """Of the same 60 rows, 16 noisy runs go to fewer different ones than 16 runs without noise."""

    def different(noise: float, seed: int) -> int:
        model, generator = fitted(seed, n=16, noise=noise), torch.Generator().manual_seed(seed)
        X = model.X[torch.randint(16, (60,), generator=generator)]
        X[:, :2] += 0.7 * torch.randn(60, 2, dtype=torch.double, generator=generator)
        optima = torch.cat([X[:12, :2], TARGET.expand(12, -1)], -1)
        return len(set(planned(model, X, torch.ones(60).double(), 16.0, optima)))

    assert all(different(0.05, seed) < different(0.0005, seed) for seed in range(4))


SMALL, LARGE, FAR = Scale(width=32), Scale(width=64), Scale(width=256)
SETTINGS = StudySettings((SMALL, LARGE, FAR), (0, 1), FAR, (1.0, 4.0, 64.0))
LR = Dimension("lr", "log", 2.0**-12, 2.0**-2)


def surrogate_of(outcome: Outcome, is_bad_at: float = -5.0, scale: Scale | None = None) -> Surrogate:
    """A fit to 24 runs; those above a learning rate, at one scale if given, have another outcome."""
    rng, runs = np.random.default_rng(0), []
    for number in range(24):
        at, z = (SMALL, LARGE)[number % 2], rng.uniform(-11, -3)
        is_bad = z > is_bad_at and (scale is None or at == scale)
        loss = (1 + (at.width / 32) ** -0.4) * math.exp(0.02 * (z + 7) ** 2 + 0.002 * rng.normal())
        runs.append(
            Run(number, {"lr": 2.0**z}, at, outcome if is_bad else Outcome.FINISHED, None if is_bad else loss)
        )
    return fit_surrogate(runs, [LR], SETTINGS)


@pytest.mark.parametrize("seed", range(3))
def test_what_likely_diverges_is_not_proposed(seed: int) -> None:
    """Where all runs above a learning rate diverged, a proposal is no riskier than the limit."""
    surrogate = surrogate_of(Outcome.DIVERGED)
    generator = torch.Generator().manual_seed(seed)

    scale, params = propose(surrogate, {SMALL: 1.0, LARGE: 4.0}, 10.0, generator)

    row = surrogate.coordinates.row(params, scale)[None]
    assert float(surrogate.divergence.probability(row)) <= RISK


def test_a_rung_without_enough_memory_is_not_proposed() -> None:
    """Where every run at the larger scale ran out of memory, the smaller one is run."""
    surrogate = surrogate_of(Outcome.OUT_OF_MEMORY, is_bad_at=-99.0, scale=LARGE)

    chosen = {
        propose(surrogate, {SMALL: 1.0, LARGE: 1.0}, 10.0, torch.Generator().manual_seed(seed))[0]
        for seed in range(3)
    }

    assert {SMALL} == chosen


def test_a_rung_beyond_the_budget_is_not_proposed() -> None:
    """At a price above what remains the larger scale is left alone; as cheap as the other it is run."""
    surrogate = surrogate_of(Outcome.FINISHED, is_bad_at=99.0)

    def scales(costs: dict[Scale, float]) -> set[Scale]:
        return {propose(surrogate, costs, 60.0, torch.Generator().manual_seed(seed))[0] for seed in range(3)}

    assert {SMALL} == scales({SMALL: 1.0, LARGE: 1000.0})
    assert LARGE in scales({SMALL: 1.0, LARGE: 1.0})
