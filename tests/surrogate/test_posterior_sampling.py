"""Draws from the posterior of the landscape: against the prior, against a grid, and by their seed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, spearmanr

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.fitting import find_map, fit_gp, neg_log_posterior
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import KernelHyperparameters, hyperparameter_prior
from transfer_bo.surrogate.landscape import DriftPrior, Landscape
from transfer_bo.surrogate.posterior_sampling import (
    CHAINS,
    GROUPS,
    KEPT,
    MAX_SAMPLED_HPS,
    hyperparameter_root_covariance,
    sample_given_hyperparameters,
    sample_posterior,
)

BASE = Scale(width=32)
S = torch.tensor([3.0], dtype=torch.double)
SEEDS = 6
"""Samples that are pooled where moments are compared."""


def landscape() -> Landscape:
    """One learning rate, one axis; the prior of its drift has an sd of .2."""
    coordinates = Coordinates([Dimension("lr", "log", 1e-4, 1e-1)], BASE, ["width"])
    drift_prior = DriftPrior.from_tables(["lr"], ["width"], "base", {"lr": {"width": (0.0, 0.2)}})
    return Landscape(coordinates, drift_prior, level=math.log(2.0))


def runs(z: list[float], s: list[float], y: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """X and y of runs."""
    return torch.tensor([z, s], dtype=torch.double).T, torch.tensor(y, dtype=torch.double)


def noisy_runs(n: int, noise: float, seed: int, rungs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of a bowl, evenly over the HP, at so many rungs by turns."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.linspace(-2, 2, n, dtype=torch.double)
    y = 0.7 + 0.02 * z**2 + noise * torch.randn(n, dtype=torch.double, generator=generator)
    return runs(z.tolist(), [float(i % rungs) for i in range(n)], y.tolist())


def test_one_run_leaves_the_prior() -> None:
    """A run at the base determines the level; of the optimum's drift the draws know the prior."""
    shape = landscape()
    model = fit_gp(*runs([0.0], [0.0], [0.7]), shape)

    B = shape.drift(sample_posterior(model, 0).theta).flatten()

    # Draws of one chain are alike, so at least CHAINS of them count: 4 standard errors.
    assert CHAINS * KEPT == len(B)
    assert abs(float(B.mean())) < 4 * 0.2 / math.sqrt(CHAINS)
    assert abs(float(B.std()) / 0.2 - 1) < 4 / math.sqrt(2 * CHAINS)


def test_draws_follow_the_bent_posterior() -> None:
    """Of curvature and optimum, all else known, the draws have the moments that a fine grid gives.

    Three runs on one side of a bowl of unknown steepness: the flatter it is, the further its optimum.
    """
    shape = landscape()
    free = torch.cat([torch.arange(shape.p)[shape.part(name)] for name in ("g", "u")])
    known = torch.ones(shape.p, dtype=torch.bool)
    known[free] = False
    shape.sd[known] = 1e-6
    shape.sd[free] = torch.tensor([2.0, 3.0], dtype=torch.double)
    shape.mean[shape.part("l0")] = 0.0
    X, y = runs([0.5, 1.25, 2.0], [0.0] * 3, [0.03, 0.05, 0.07])
    logs, _ = hyperparameter_prior(shape.coordinates)
    logs[:4] = torch.tensor([-12.0, -12.0, -12.0, math.log(0.003)])
    hyperparameters = KernelHyperparameters.from_log_vector(logs, sources=0)
    start = LandscapeGP(X, y, shape, shape.mean.clone(), hyperparameters)
    theta_map, noise = find_map(start)
    model = start.with_fit(theta=theta_map, noise=noise)
    C = model.kernel.nuisance_covariance(X, X) + torch.diag(model.run_noise)

    samples = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        samples.append(sample_given_hyperparameters(model, [hyperparameters] * GROUPS, seed, generator))
    theta = torch.cat([sample.theta for sample in samples])[:, free]

    g, u = torch.meshgrid(
        torch.linspace(-10, 10, 401, dtype=torch.double),
        torch.linspace(-15, 15, 601, dtype=torch.double),
        indexing="ij",
    )
    grid = shape.mean.repeat(g.numel(), 1)
    grid[:, free] = shape.mean[free] + torch.stack([g.flatten(), u.flatten()], -1)
    v, _, s = shape.split(X)
    f = shape.law(grid[:, None], s) + shape.bowl(grid[:, None], v, s)
    squared = ((y - f) @ torch.linalg.inv(C) * (y - f)).sum(-1)
    prior = ((grid[:, free] - shape.mean[free]) / shape.sd[free]).square().sum(-1)
    weight = torch.softmax(-0.5 * (squared + prior), 0)
    mean = weight @ grid[:, free]
    second, fourth = (weight @ (grid[:, free] - mean) ** power for power in (2, 4))

    count = SEEDS * CHAINS * KEPT / 4  # draws of one chain are alike: measured, 4 of them count as one
    assert bool(((theta.mean(0) - mean).abs() < 3 * (second / count).sqrt()).all())
    assert bool(((theta.var(0) - second).abs() < 3 * ((fourth - second**2) / count).sqrt()).all())


def test_hyperparameters_are_drawn_with_the_curvature_of_their_density() -> None:
    """Their covariance is the inverse of its second differences, where these say more than the prior does."""
    model = fit_gp(*noisy_runs(40, 0.02, seed=1), landscape())
    objective, fitted = neg_log_posterior(model), model.hyperparameters.to_log_vector()
    _, prior_sd = hyperparameter_prior(model.landscape.coordinates)
    steps = 1e-3 * torch.eye(len(fitted), dtype=torch.double)

    def value(step: torch.Tensor) -> float:
        return objective(fitted + step)[0]

    H = [[value(a + b) - value(a - b) - value(b - a) + value(-a - b) for b in steps] for a in steps]
    both = prior_sd * prior_sd[:, None]
    values, vectors = torch.linalg.eigh(torch.tensor(H, dtype=torch.double) / 4e-6 * both)
    root = hyperparameter_root_covariance(model)
    informed = vectors[:, values > 1]  # by the runs, where they say more than the prior

    assert float(values[-1]) > 2
    covariance = informed.T @ (root @ root.T / both) @ informed
    assert torch.allclose(covariance, torch.diag(1 / values[values > 1]), atol=1e-4)


def test_the_same_seed_gives_the_same_draws_and_the_model_stays_as_it_was() -> None:
    """Draws at a scale depend on model, seed and scale alone."""
    model = fit_gp(*noisy_runs(12, 0.002, seed=1), landscape())
    before = model.hyperparameters.to_log_vector()
    x = torch.cat([torch.tensor([-2.0], dtype=torch.double), S])

    first, second, other = (sample_posterior(model, seed).at(S, x) for seed in (0, 0, 1))

    assert torch.equal(before, model.hyperparameters.to_log_vector())
    assert torch.equal(first.optimum, second.optimum)
    assert torch.equal(first.error, second.error)
    assert not torch.equal(first.optimum, other.optimum)


def test_a_group_of_chains_with_more_noise_knows_less() -> None:
    """What is not known of the noise is carried into the landscape: its level spreads as the noise does."""
    shape = landscape()
    model = fit_gp(*noisy_runs(10, 0.02, seed=2, rungs=1), shape)
    fitted = model.hyperparameters
    draws = [
        replace(fitted, log_noise_sd=fitted.log_noise_sd + step)
        for step in torch.linspace(-2, 2, GROUPS, dtype=torch.double)
    ]

    samples = sample_given_hyperparameters(model, draws, 0, torch.Generator().manual_seed(0))
    levels = shape.law(samples.theta, torch.zeros(1, dtype=torch.double)).reshape(GROUPS, -1)

    noise = [float(one.noise_sd) for one in samples.hyperparameters]
    assert spearmanr(noise, levels.std(1)).statistic > 0.8


def test_the_residual_moves_the_best_setting() -> None:
    """By an offset with the sd of its formula: gradient over curvature, but no further than it could gain."""
    model = fit_gp(*noisy_runs(12, 0.002, seed=1), landscape())
    hyperparameters, generator = model.hyperparameters, torch.Generator().manual_seed(0)
    H = float(model.landscape.curvature(model.theta, S))
    r, lengthscale = float(hyperparameters.residual), float(hyperparameters.lengthscale[0])
    by_slope = 5 / 3 * (r / lengthscale) ** 2 / (2 * H) ** 2
    expected = (1 / (1 / by_slope + H / r)) ** 0.5

    samples = sample_given_hyperparameters(model, [hyperparameters] * GROUPS, 0, generator)
    offset = samples.at(S).residual_offset

    count = CHAINS * KEPT
    assert float(offset.std()) == pytest.approx(expected, rel=4 / math.sqrt(2 * count))
    assert abs(float(offset.mean())) < 4 * expected / math.sqrt(count)


def test_of_many_hps_the_draws_have_the_moments_of_the_linearised_posterior() -> None:
    """Mean and sd of each element of θ are those of the posterior of the linearised landscape."""
    dimensions = [Dimension("lr", "log", 1e-4, 1e-1)]
    dimensions += [Dimension(f"lr.g{i}", "log", 1 / 8, 8.0, 1.0) for i in range(MAX_SAMPLED_HPS)]
    names = [dim.name for dim in dimensions]
    drift_prior = DriftPrior.from_tables(names, ["width"], "base", {})
    shape = Landscape(Coordinates(dimensions, BASE, ["width"]), drift_prior, level=0.7)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(40, shape.d, dtype=torch.double, generator=generator)
    s = torch.arange(40, dtype=torch.double)[:, None] % 2
    y = 0.7 + 0.01 * v.square().sum(-1) + 0.01 * torch.randn(40, dtype=torch.double, generator=generator)
    model = fit_gp(torch.cat([v, s], -1), y, shape)

    theta = sample_posterior(model, 0).theta

    posterior = model.optimum_posterior(S)
    covariance = posterior.covariance[: shape.p, : shape.p]
    off = theta.mean(0) - posterior.mean[: shape.p]
    assert float(len(theta) * off @ torch.linalg.solve(covariance, off)) < chi2.ppf(1 - 1e-4, shape.p)
    ratio = theta.var(0) / covariance.diagonal() * (len(theta) - 1)
    low, high = chi2.ppf([1e-6, 1 - 1e-6], len(theta) - 1)
    assert bool(((ratio > low) & (ratio < high)).all())
