"""Draws from the posterior of the landscape: against the prior, against a grid, and by their seed."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate import posterior_sampling
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.gp import FLOOR, LandscapeGP, _settle, fit, scales_misfit
from transfer_bo.surrogate.landscape import Drift, Landscape
from transfer_bo.surrogate.posterior_sampling import CHAINS, GROUPS, KEPT, PosteriorSamples, _spread

BASE = Scale(width=32)
S = torch.tensor([3.0], dtype=torch.double)
SEEDS = 6
"""Ensembles that are pooled where moments are compared."""


def landscape() -> Landscape:
    """One learning rate, one axis; of its drift an sd of .2 is believed."""
    coordinates = Coordinates([Dimension("lr", "log", 1e-4, 1e-1)], BASE, ["width"])
    drift = Drift.believed(["lr"], ["width"], "base", {"lr": {"width": (0.0, 0.2)}})
    return Landscape(coordinates, drift, level=math.log(2.0))


def runs(z: list[float], s: list[float], y: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """X and y of runs."""
    return torch.tensor([z, s], dtype=torch.double).T, torch.tensor(y, dtype=torch.double)


def test_one_run_leaves_the_prior() -> None:
    """A run at the base tells the level; of the optimum's drift the draws know what was believed before."""
    shape = landscape()
    model = fit(*runs([0.0], [0.0], [0.7]), shape)

    B = shape.drift(PosteriorSamples(model, 0).theta).flatten()

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
    model = LandscapeGP(X, y, shape)
    kernel = model.covar_module
    kernel.scales = kernel.prior_mean.clone()
    kernel.scales[:4] = torch.tensor([-12.0, -12.0, -12.0, math.log(0.003)])
    kernel.prior_sd *= 1e-6  # the scales are known too
    kernel.theta = _settle(model, shape.mean.clone())
    model.eval()
    C = kernel.nuisance(X, X) + torch.diag(model.likelihood.noise)

    theta = torch.cat([PosteriorSamples(model, seed).theta for seed in range(SEEDS)])[:, free]

    g, u = torch.meshgrid(
        torch.linspace(-10, 10, 401, dtype=torch.double),
        torch.linspace(-15, 15, 601, dtype=torch.double),
        indexing="ij",
    )
    grid = shape.mean.repeat(g.numel(), 1)
    grid[:, free] = shape.mean[free] + torch.stack([g.flatten(), u.flatten()], -1)
    v, _, s = shape.split(X)
    f = shape.law(grid[:, None], s) + shape.bowl(grid[:, None], v, s)
    misfit = ((y - f) @ torch.linalg.inv(C) * (y - f)).sum(-1)
    prior = ((grid[:, free] - shape.mean[free]) / shape.sd[free]).square().sum(-1)
    weight = torch.softmax(-0.5 * (misfit + prior), 0)
    mean = weight @ grid[:, free]
    second, fourth = (weight @ (grid[:, free] - mean) ** power for power in (2, 4))

    count = SEEDS * CHAINS * KEPT / 4  # draws of one chain are alike: measured, 4 of them count as one
    assert bool(((theta.mean(0) - mean).abs() < 3 * (second / count).sqrt()).all())
    assert bool(((theta.var(0) - second).abs() < 3 * ((fourth - second**2) / count).sqrt()).all())


def test_the_scales_are_drawn_with_the_curvature_of_their_misfit() -> None:
    """Their covariance is the inverse of its second differences, where these say more than the prior does."""
    generator = torch.Generator().manual_seed(1)
    z = torch.linspace(-2, 2, 40, dtype=torch.double)
    y = 0.7 + 0.02 * z**2 + 0.02 * torch.randn(40, dtype=torch.double, generator=generator)
    model = fit(*runs(z.tolist(), [0.0, 1.0] * 20, y.tolist()), landscape())
    kernel, misfit = model.covar_module, scales_misfit(model)
    steps = 1e-3 * torch.eye(len(kernel.scales), dtype=torch.double)

    def value(step: torch.Tensor) -> float:
        return misfit(kernel.scales + step)[0]

    H = [[value(a + b) - value(a - b) - value(b - a) + value(-a - b) for b in steps] for a in steps]
    both = kernel.prior_sd * kernel.prior_sd[:, None]
    values, vectors = torch.linalg.eigh(torch.tensor(H, dtype=torch.double) / 4e-6 * both)
    root = _spread(model)
    told = vectors[:, values > 1]  # by the runs, where they say more than the prior

    assert float(values[-1]) > 2
    assert torch.allclose(
        told.T @ (root @ root.T / both) @ told, torch.diag(1 / values[values > 1]), atol=1e-4
    )


def test_the_same_seed_gives_the_same_draws_and_the_model_stays_as_it_was() -> None:
    """Draws at a scale depend on model, seed and scale alone, and the fitted scales are put back."""
    generator = torch.Generator().manual_seed(1)
    z = torch.linspace(-2, 2, 12, dtype=torch.double)
    y = 0.7 + 0.02 * z**2 + 0.002 * torch.randn(12, dtype=torch.double, generator=generator)
    model = fit(*runs(z.tolist(), [0.0, 1.0] * 6, y.tolist()), landscape())
    before = model.covar_module.scales.clone()

    first, second, other = (PosteriorSamples(model, seed).at(S, torch.cat([z[:1], S])) for seed in (0, 0, 1))

    assert torch.equal(before, model.covar_module.scales)
    assert torch.equal(first.optimum, second.optimum)
    assert torch.equal(first.error, second.error)
    assert not torch.equal(first.optimum, other.optimum)


def test_a_group_of_chains_with_more_noise_knows_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known of the noise is carried into the landscape: its level spreads as the noise does."""
    generator = torch.Generator().manual_seed(2)
    z = torch.linspace(-2, 2, 10, dtype=torch.double)
    y = 0.7 + 0.02 * z**2 + 0.02 * torch.randn(10, dtype=torch.double, generator=generator)
    shape = landscape()
    model = fit(*runs(z.tolist(), [0.0] * 10, y.tolist()), shape)
    spread = torch.zeros(len(model.covar_module.scales), dtype=torch.double)
    spread[FLOOR] = 1.0
    monkeypatch.setattr(posterior_sampling, "_spread", lambda _: torch.diag(spread))

    draws = PosteriorSamples(model, 0)
    levels = shape.law(draws.theta, torch.zeros(1, dtype=torch.double)).reshape(GROUPS, -1)

    assert spearmanr(draws.scales[:, FLOOR], levels.std(1)).statistic > 0.8
