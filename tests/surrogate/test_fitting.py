"""Fits: the density of the hyperparameters, MAP estimates, and what is learned of known landscapes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from synthetic_fits import (
    TARGET,
    fit_generated,
    fit_with_categories_and_a_source_study,
    fit_with_shared_seeds,
    moved,
    one_hp,
)

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.fitting import (
    find_map,
    fit_gp,
    neg_log_posterior,
    noise_parts,
    student_t_weights,
)
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import hyperparameter_prior
from transfer_bo.surrogate.landscape import DriftPrior, Landscape

FITS = [fit_with_categories_and_a_source_study, fit_with_shared_seeds]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("seed", range(2))
def test_the_density_of_the_hyperparameters_is_the_models_own(
    seed: int, fit: Callable[[int], LandscapeGP]
) -> None:
    """Between two sets of them it differs as density of the runs under the kernel, times prior, does."""
    model = fit(seed)
    objective = neg_log_posterior(model)
    mean, sd = hyperparameter_prior(model.landscape.coordinates)
    weight, extra = noise_parts(model)
    residual = model.y - model.kernel.linearised_mean(model.X)
    generator = torch.Generator().manual_seed(seed)

    values = []
    for _ in range(3):
        steps = 0.3 * torch.randn(len(mean), dtype=torch.double, generator=generator)
        other = model.with_fit(hyperparameters=moved(model.hyperparameters, steps))
        own_seed = other.hyperparameters.seed_variance * model.landscape.has_own_seed(model.X)
        noise = torch.diag(weight * (other.hyperparameters.noise_sd**2 + own_seed + extra))
        C = other.kernel.covariance(model.X, model.X) + noise
        density = torch.distributions.MultivariateNormal(torch.zeros(len(C)).double(), C).log_prob(residual)
        logs = other.hyperparameters.to_log_vector()
        prior = torch.distributions.Normal(mean, sd).log_prob(logs).sum()
        values.append(objective(logs)[0] + float(density + prior))

    assert values == pytest.approx([values[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("seed", range(2))
def test_its_gradient_is_its_slope(seed: int, fit: Callable[[int], LandscapeGP]) -> None:
    """In the direction of every hyperparameter, as differences tell it, away from where the prior is flat.

    Values are about 1e2 and rounded at the 1e-11 that the condition of C leaves, so differences over 2e-4 are
    known to 1e-7; what they leave out is 2e-9 of the third derivative.
    """
    model = fit(seed)
    objective, at = neg_log_posterior(model), hyperparameter_prior(model.landscape.coordinates)[0] + 0.3
    _, gradient = objective(at)
    steps = 1e-4 * torch.eye(len(at), dtype=torch.double)

    slopes = [(objective(at + step)[0] - objective(at - step)[0]) / 2e-4 for step in steps]

    assert slopes == pytest.approx(gradient.tolist(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_map_estimate_is_stationary(seed: int) -> None:
    """At θ̂ the log posterior for the noise it rests on has no slope, and is higher than at the prior mean."""
    model, _ = fit_generated(seed)
    theta, noise = find_map(model)
    shape, X, y = model.landscape, model.X, model.y
    C = model.kernel.nuisance_covariance(X, X) + torch.diag(noise)

    def value(e: torch.Tensor) -> float:
        residual = y - shape.values(shape.mean + shape.sd * e, X)
        return float(0.5 * (residual @ torch.linalg.solve(C, residual) + e @ e))

    e = (theta - shape.mean) / shape.sd
    steps = 1e-3 * torch.eye(len(e), dtype=torch.double)
    slopes = torch.tensor([(value(e + step) - value(e - step)) / 2e-3 for step in steps])
    curvature = torch.tensor([(value(e + step) - 2 * value(e) + value(e - step)) / 1e-6 for step in steps])

    assert bool((slopes.abs() < 0.05 * curvature.sqrt()).all())  # in units of the posterior's sd
    assert value(e) < value((model.landscape.mean - shape.mean) / shape.sd)


def test_an_odd_run_gets_a_weight_and_the_others_none() -> None:
    """Student's weight of a leave-one-out error of 10 sd, (5 + 100) / 6, where others have the usual ones."""
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(50, dtype=torch.double, generator=generator).clamp(-0.6, 0.6)
    residual[7] = 10.0

    weights = student_t_weights(torch.eye(50, dtype=torch.double), residual)

    assert float(weights[7]) == pytest.approx(105 / 6)
    assert bool((weights[torch.arange(50) != 7] == 1.0).all())


def test_where_all_runs_are_off_none_is_odd() -> None:
    """Ten times the residuals, as if the noise were too small, give the weights of a noise that fits."""
    generator = torch.Generator().manual_seed(0)
    residual = torch.randn(50, dtype=torch.double, generator=generator)
    residual = residual / residual.square().median().sqrt() * 0.455**0.5
    identity = torch.eye(50, dtype=torch.double)

    assert torch.allclose(student_t_weights(identity, residual), student_t_weights(identity, 10 * residual))


def test_a_fit_from_another_one_stays_where_it_was() -> None:
    """With the same prior a warm start changes the fitted optimum by less than a tenth of its sd."""
    model, _ = fit_generated(1)
    mean, covariance = model.optimum_posterior(TARGET).optimum()

    again, _ = fit_gp(model.X, model.y, model.landscape, warm_start=model).optimum_posterior(TARGET).optimum()

    assert bool(((again - mean).abs() < 0.1 * covariance.diagonal().sqrt()).all())


def test_repeats_determine_the_noise() -> None:
    """Of twelve settings three runs each: how they differ is fitted as noise, not as shape.

    The noise is the scale of Student's distribution with ν = 5: for normal noise of sd 1 that σ for which
    E[(ν + 1) x² / (ν σ² + x²)] = 1, which is .857.
    """
    logs = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        first, _ = fit_generated(seed, n=12)
        X, theta = first.X.repeat(3, 1), first.theta
        off = 0.05 * torch.randn(len(X), dtype=torch.double, generator=generator)
        within = off.reshape(3, 12).var(0).mean().sqrt()
        model = fit_gp(X, first.landscape.values(theta, X) + off, first.landscape)
        logs.append(math.log(float(model.hyperparameters.noise_sd) / float(within)))

    mean, error = sum(logs) / 6, statistics.stdev(logs) / math.sqrt(6)
    assert abs(mean - math.log(0.857)) < 3 * error
    assert error < 0.05  # else the line above says little


def test_one_run_is_enough_to_fit() -> None:
    """With a single run the fit is the prior, shifted to that run's level."""
    model, _ = fit_generated(4, n=1)

    mean, covariance = model.optimum_posterior(TARGET).optimum()

    assert torch.isfinite(mean).all()
    assert (torch.linalg.eigvalsh(covariance) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_known_optimum_is_found(seed: int) -> None:
    """The estimated optimum at the target costs under 2% of loss and lies within 4 sd of the truth."""
    model, theta = fit_generated(seed)
    mean, covariance = model.optimum_posterior(TARGET).optimum()
    truth = model.landscape.path(theta, TARGET)

    excess_loss = float(model.landscape.bowl(theta, mean, TARGET))
    distance = (mean - truth) / covariance.diagonal().sqrt()

    assert excess_loss < 0.02
    assert distance.abs().max() < 4


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_failed_outright_hardly_moves_the_optimum(seed: int) -> None:
    """One loss of 2.6 times the others', at the end of the range: less than half an sd, and no wiggles."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = Coordinates([Dimension("lr", "log", 2**-4, 2**4)], Scale(width=32), [])
    shape = Landscape(coordinates, DriftPrior.from_tables(["lr"], [], "base"), level=math.log(2.0))
    z = 5 * torch.rand(12, 1, dtype=torch.double, generator=generator) - 3
    y = math.log(2.0) + 0.01 * z[:, 0] ** 2 + 0.001 * torch.randn(12, dtype=torch.double, generator=generator)
    failed = torch.tensor([[3.5]], dtype=torch.double), torch.tensor([math.log(2.0 * 2.6)]).double()
    here = torch.zeros(0, dtype=torch.double)

    without = fit_gp(z, y, shape)
    both = fit_gp(torch.cat([z, failed[0]]), torch.cat([y, failed[1]]), shape)
    mean, variance = without.optimum_posterior(here).optimum()
    off = both.optimum_posterior(here).optimum()[0] - mean

    assert float(off.abs()) < 0.5 * float(variance.sqrt())
    assert float(both.hyperparameters.residual) < 3 * float(without.hyperparameters.residual)


def test_a_flat_line_is_no_reason_to_fail() -> None:
    """Ten equal losses give a fit with finite numbers."""
    model = fit_gp(*one_hp([0.1] * 10))

    assert bool(torch.isfinite(model.theta).all())
    assert bool(torch.isfinite(model.hyperparameters.to_log_vector()).all())
