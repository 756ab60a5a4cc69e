"""The Gaussian process: its algebra exactly, its answers on landscapes that are known."""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from botorch.acquisition import (
    LinearMCObjective,
    LogExpectedImprovement,
    qKnowledgeGradient,
    qLogNoisyExpectedImprovement,
    qLowerBoundMaxValueEntropy,
    qNegIntegratedPosteriorVariance,
)
from botorch.optim import optimize_acqf

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.gp import LandscapeGP, fit, noise_parts, scales_misfit
from transfer_bo.surrogate.landscape import Drift, Landscape

BASE = Scale(width=32, tokens=1e5)
RUNGS = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]
TARGET = torch.tensor([3.0, 4.0], dtype=torch.double)
SMALLER = LinearMCObjective(torch.tensor([-1.0], dtype=torch.double))  # BoTorch maximizes


def generated(seed: int, n: int = 40, noise: float = 0.004) -> tuple[LandscapeGP, torch.Tensor]:
    """A fit to n runs near the optimum of a landscape drawn from the prior, and the drawn θ."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=generator)

    dimensions = [Dimension("lr", "log", 1e-4, 1e-1), Dimension("weight_decay", "log", 1e-3, 1.0)]
    coordinates = Coordinates(dimensions, BASE, ["width", "tokens"])
    shape = Landscape(coordinates, Drift.believed(["a", "b"], ["x", "y"], "base"), level=math.log(2.0))
    theta = shape.mean + shape.sd * normal(shape.p)
    theta[shape.part("g")] = math.log(0.01) + 0.3 * normal(1)
    s = torch.tensor(RUNGS, dtype=torch.double)[torch.arange(n) % len(RUNGS)]
    spread = 1.5 * normal(n, 2)
    v = torch.stack([shape.path(theta, row) for row in s]) + spread
    X = torch.cat([v, s], -1)
    y = shape.values(theta, X) + noise * normal(n)
    return fit(X, y, shape), theta


def with_categories_and_a_past_study(seed: int, n: int = 24) -> LandscapeGP:
    """A fit to n runs, a third of them of a past study, with one HP of three choices."""
    generator = torch.Generator().manual_seed(seed)
    dimensions = [
        Dimension("lr", "log", 1e-4, 1e-1),
        Dimension("weight_decay", "log", 1e-3, 1.0),
        Dimension("activation", "categorical", choices=("relu", "gelu", "silu")),
    ]
    coordinates = Coordinates(dimensions, BASE, ["width", "tokens"], ["old"])
    drift = Drift.believed(["lr", "weight_decay"], ["width", "tokens"], "base")
    shape = Landscape(coordinates, drift, level=math.log(2.0))
    s = torch.tensor(RUNGS, dtype=torch.double)[torch.arange(n) % len(RUNGS)]
    flags = torch.eye(3, dtype=torch.double)[torch.randint(3, (n,), generator=generator)]
    past = (torch.arange(n) % 3 == 0).double()[:, None]
    X = torch.cat([1.5 * torch.randn(n, 2, dtype=torch.double, generator=generator), flags, s, past], -1)
    y = shape.values(shape.mean, X) + 0.1 * past[:, 0]
    return fit(X, y + 0.01 * torch.randn(n, dtype=torch.double, generator=generator), shape)


def test_a_plan_of_one_run_is_the_run_that_narrows_the_optimum_most() -> None:
    """Where the bowl says all, the pick is the row that lowers tr(H Cov v*) most when added for real."""
    model, _ = generated(0)
    model.covar_module.scales[1] = math.log(1e-9)  # no residual
    X = model.rows[:12] + 0.3
    latent = model.latent(TARGET)
    H = model.landscape.curvature(model.covar_module.theta, TARGET)
    _, before = latent.optimum()
    optimum_candidates = torch.cat([X[:, :2], TARGET.expand(12, -1)], -1)

    picks = latent.plan(X, torch.ones(12).double(), 1.0, optimum_candidates, torch.Generator().manual_seed(0))
    drops = [float((H * (before - model.latent(TARGET, pending=row[None]).optimum()[1])).sum()) for row in X]

    assert [drops.index(max(drops))] == picks


def test_a_plan_spends_no_more_than_is_left() -> None:
    """However many rows and rungs there are, the picks' costs fit; a lone pick is allowed to exceed."""
    model, _ = generated(1)
    costs = torch.tensor([1.0, 1.0, 3.0, 3.0, 9.0, 9.0], dtype=torch.double)
    X = model.rows[:6] + 0.5
    optimum_candidates = torch.cat([X[:, :2], TARGET.expand(6, -1)], -1)

    for left in (0.5, 1.0, 2.5, 7.0, 30.0):
        latent = model.latent(TARGET)
        picks = latent.plan(X, costs, left, optimum_candidates, torch.Generator().manual_seed(0))

        assert len(picks) == 1 or float(costs[picks].sum()) <= left + 1e-9


def test_a_plan_repeats_runs_where_noise_asks_for_it() -> None:
    """Of the same 60 rows, 16 noisy runs go to fewer different ones than 16 runs without noise."""

    def different(noise: float, seed: int) -> int:
        model, _ = generated(seed, n=16, noise=noise)
        generator = torch.Generator().manual_seed(seed)
        X = model.rows[torch.randint(16, (60,), generator=generator)]
        X[:, :2] += 0.7 * torch.randn(60, 2, dtype=torch.double, generator=generator)
        optimum_candidates = torch.cat([X[:12, :2], TARGET.expand(12, -1)], -1)
        picks = model.latent(TARGET).plan(X, torch.ones(60).double(), 16.0, optimum_candidates, generator)
        return len(set(picks))

    assert all(different(0.05, seed) < different(0.0005, seed) for seed in range(4))


def test_repeats_tell_the_noise() -> None:
    """Of twelve settings three runs each: how they differ is told as noise, not as shape.

    The noise is the scale of Student's distribution with ν = 5: for normal noise of sd 1 that σ for which
    E[(ν + 1) x² / (ν σ² + x²)] = 1, which is .857.
    """
    logs = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        first, _ = generated(seed, n=12)
        X, theta = first.rows.repeat(3, 1), first.covar_module.theta
        off = 0.05 * torch.randn(len(X), dtype=torch.double, generator=generator)
        within = off.reshape(3, 12).var(0).mean().sqrt()
        floor = fit(X, first.landscape.values(theta, X) + off, first.landscape).floor
        logs.append(math.log(floor / float(within)))

    mean, error = sum(logs) / 6, statistics.stdev(logs) / math.sqrt(6)
    assert abs(mean - math.log(0.857)) < 3 * error
    assert error < 0.05  # else the line above says little


def test_pending_runs_do_not_move_the_optimum() -> None:
    """A running trial narrows the posterior and leaves its mean where it is."""
    model, _ = generated(1)
    pending = model.rows[:3] + 0.5
    mean, covariance = model.latent(TARGET).optimum()

    moved, narrowed = model.latent(TARGET, pending=pending).optimum()

    assert torch.allclose(mean, moved, atol=1e-6)
    assert (narrowed.diagonal() < covariance.diagonal()).all()


def test_posterior_is_botorchs() -> None:
    """The BoTorch posterior agrees with textbook conditioning on the same kernel and noise."""
    model, _ = generated(2)
    test = model.rows[:5] + 0.2
    K = model.covar_module(model.rows, model.rows).to_dense() + torch.diag(model.likelihood.noise)
    k = model.covar_module(test, model.rows).to_dense()
    weights = torch.linalg.solve(K, model.losses - model.mean_module(model.rows))

    posterior = model.posterior(test)

    assert torch.allclose(posterior.mean.squeeze(-1), model.mean_module(test) + k @ weights, atol=1e-6)
    expected = model.covar_module(test, test).to_dense() - k @ torch.linalg.solve(K, k.T)
    assert torch.allclose(posterior.variance.squeeze(-1), expected.diagonal(), rtol=1e-3, atol=1e-9)


def test_batches_agree_with_single_points() -> None:
    """A batch of q = 1 points, as acquisition optimisers ask for, has the same posterior as a list."""
    model, _ = generated(2)
    test = model.rows[:4] + 0.2

    batched = model.posterior(test.unsqueeze(-2))

    assert torch.allclose(batched.mean.flatten(), model.posterior(test).mean.flatten(), atol=1e-8)
    assert torch.allclose(batched.variance.flatten(), model.posterior(test).variance.flatten(), rtol=1e-5)


def test_more_runs_are_conditioned_on() -> None:
    """`condition_on_observations` is textbook conditioning on all runs, each with its own noise."""
    model, _ = generated(2)
    X, Y = model.rows[:3] + 0.3, model.losses[:3, None] + 0.01
    test = model.rows[5:9] - 0.2
    rows, ys = torch.cat([model.rows, X]), torch.cat([model.losses, Y[:, 0]])
    noise = torch.cat([model.likelihood.noise, model.noise(X)])
    K = model.covar_module(rows, rows).to_dense() + torch.diag(noise)
    k = model.covar_module(test, rows).to_dense()
    model.posterior(test)  # BoTorch wants its caches filled

    posterior = model.condition_on_observations(X, Y).posterior(test)

    expected = model.mean_module(test) + k @ torch.linalg.solve(K, ys - model.mean_module(rows))
    assert torch.allclose(posterior.mean.squeeze(-1), expected, atol=1e-6)
    variance = model.covar_module(test, test).to_dense() - k @ torch.linalg.solve(K, k.T)
    assert torch.allclose(posterior.variance.squeeze(-1), variance.diagonal(), rtol=1e-3, atol=1e-9)


ACQUISITIONS = {
    "analytic": lambda model: LogExpectedImprovement(model, float(model.losses.min()), maximize=False),
    "Monte Carlo": lambda model: qLogNoisyExpectedImprovement(model, model.rows, objective=SMALLER),
    "entropy": lambda model: qLowerBoundMaxValueEntropy(model, model.rows, maximize=False),
    "knowledge gradient": lambda model: qKnowledgeGradient(model, 2, objective=SMALLER),
    "look-ahead variance": lambda model: qNegIntegratedPosteriorVariance(model, model.rows),
}


@pytest.mark.filterwarnings("ignore:You have passed data through")  # BoTorch's entropy: of any fixed noise
@pytest.mark.parametrize("acquisition", ACQUISITIONS.values(), ids=ACQUISITIONS)
def test_any_acquisition_of_botorch_runs(acquisition: Callable[[LandscapeGP], Any]) -> None:
    """One of each kind is optimised by BoTorch over the HPs, at the target."""
    model, _ = generated(2)
    d = model.rows.shape[-1]
    ends = torch.stack([model.rows.amin(0), model.rows.amax(0)])
    at_target = {d - 2 + i: float(s) for i, s in enumerate(TARGET)}

    found, value = optimize_acqf(
        acquisition(model), ends, 1, 1, 4, fixed_features=at_target, options={"maxiter": 3}
    )

    assert (1, d) == found.shape
    assert torch.isfinite(value)
    assert torch.allclose(TARGET, found[0, d - 2 :])


@pytest.mark.parametrize("seed", range(3))
def test_the_misfit_of_the_scales_is_the_models_own_density(seed: int) -> None:
    """Between two sets of scales it differs as density of the runs under the kernel, times prior, does."""
    model = with_categories_and_a_past_study(seed)
    kernel, misfit = model.covar_module, scales_misfit(model)
    weight, extra = noise_parts(model)
    surprise = model.losses - model.mean_module(model.rows)
    fitted, values = kernel.scales.clone(), []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        scales = fitted + 0.3 * torch.randn(len(fitted), dtype=torch.double, generator=generator)
        kernel.scales = scales
        noise = torch.diag(weight * (kernel.floor**2 + extra))
        C = kernel(model.rows, model.rows).to_dense() + noise
        density = torch.distributions.MultivariateNormal(torch.zeros(len(C)).double(), C).log_prob(surprise)
        prior = torch.distributions.Normal(kernel.prior_mean, kernel.prior_sd).log_prob(scales).sum()
        values.append(misfit(scales)[0] + float(density + prior))
    kernel.scales = fitted

    assert values == pytest.approx([values[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_misfit_is_its_slope(seed: int) -> None:
    """In the direction of every scale, as differences tell it, away from where the prior has no slope.

    Values are about 1e2 and rounded at the 1e-11 that the condition of C leaves, so differences over 2e-4 are
    known to 1e-7; what they leave out is 2e-9 of the third derivative.
    """
    model = with_categories_and_a_past_study(seed)
    misfit, at = scales_misfit(model), model.covar_module.prior_mean + 0.3
    _, gradient = misfit(at)
    steps = 1e-4 * torch.eye(len(at), dtype=torch.double)

    slopes = [(misfit(at + step)[0] - misfit(at - step)[0]) / 2e-4 for step in steps]

    assert slopes == pytest.approx(gradient.tolist(), rel=1e-6, abs=1e-6)


def test_far_scales_are_less_certain() -> None:
    """The optimum's variance grows with the distance of the scale from the runs, never below the jitter."""
    model, _ = generated(3)

    variances = [
        model.latent(far * torch.tensor([1.0, 1.0], dtype=torch.double)).optimum()[1].diagonal()
        for far in (1.0, 3.0, 6.0, 12.0)
    ]

    for near, far in itertools.pairwise(variances):
        assert (near < far).all()
    assert (variances[-1] > float(model.covar_module.jitter.detach()) ** 2).all()


def test_one_run_is_enough_to_fit() -> None:
    """With a single run the fit is the prior, shifted to that run's level."""
    model, _ = generated(4, n=1)

    mean, covariance = model.latent(TARGET).optimum()

    assert torch.isfinite(mean).all()
    assert (torch.linalg.eigvalsh(covariance) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_known_optimum_is_found(seed: int) -> None:
    """The estimated optimum at the target costs under 2% of loss and lies within 4 sd of the truth."""
    model, theta = generated(seed)
    mean, covariance = model.latent(TARGET).optimum()
    truth = model.landscape.path(theta, TARGET)

    excess = float(model.landscape.bowl(theta, mean, TARGET))
    distance = (mean - truth) / covariance.diagonal().sqrt()

    assert excess < 0.02
    assert distance.abs().max() < 4


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_failed_outright_hardly_moves_the_optimum(seed: int) -> None:
    """One loss of 2.6 times the others', at the end of the range: less than half an sd, and no wiggles."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = Coordinates([Dimension("lr", "log", 2**-4, 2**4)], Scale(width=32), [])
    shape = Landscape(coordinates, Drift.believed(["lr"], [], "base"), level=math.log(2.0))
    z = 5 * torch.rand(12, 1, dtype=torch.double, generator=generator) - 3
    y = math.log(2.0) + 0.01 * z[:, 0] ** 2 + 0.001 * torch.randn(12, dtype=torch.double, generator=generator)
    failed = (
        torch.tensor([[3.5]], dtype=torch.double),
        torch.tensor([math.log(2.0 * 2.6)], dtype=torch.double),
    )
    here = torch.zeros(0, dtype=torch.double)

    without = fit(z, y, shape)
    both = fit(torch.cat([z, failed[0]]), torch.cat([y, failed[1]]), shape)
    mean, variance = without.latent(here).optimum()
    moved = both.latent(here).optimum()[0] - mean

    assert float(moved.abs()) < 0.5 * float(variance.sqrt())
    assert float(both.covar_module.residual) < 3 * float(without.covar_module.residual)


@pytest.mark.parametrize(("loss", "failed"), [(0.05, 0.0), (0.28, 0.0), (0.8, 0.5)])
def test_among_runs_that_lie_close_a_far_one_has_failed(loss: float, failed: float) -> None:
    """By what it ends further above the best of its scale than the bowl can follow, .3 in ln loss."""
    usual = [0.0, 0.01, 0.02, 0.03, 0.05]

    model = fit(*one_hp([*usual, loss]))

    assert model.failed.tolist() == pytest.approx([0.0] * 5 + [failed])


def test_in_a_metric_that_spans_decades_no_run_has_failed() -> None:
    """Ln losses spread evenly over 1.5: the largest is no odder than the others."""
    model = fit(*one_hp([0.0, 0.3, 0.6, 0.9, 1.2, 1.5]))

    assert model.failed.tolist() == [0.0] * 6


def one_hp(y: list[float]) -> tuple[torch.Tensor, torch.Tensor, Landscape]:
    """Runs at one scale, evenly over one HP, with these ln losses."""
    coordinates = Coordinates([Dimension("lr", "log", 2**-4, 2**4)], Scale(width=32), [])
    shape = Landscape(coordinates, Drift.believed(["lr"], [], "base"), level=0.0)
    z = torch.linspace(-3, 3, len(y), dtype=torch.double)[:, None]
    return z, torch.tensor(y, dtype=torch.double), shape
