"""Predicted against actual errors of runs that are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic_fits import fit_generated, fit_with_categories_and_a_source_study, one_hp

from transfer_bo.surrogate.fitting import fit_gp
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.leave_one_out import MAX_FACTOR, error_factor, standardised_errors


@pytest.mark.parametrize("odd", [0.0, 0.2])
def test_errors_are_those_of_a_fit_without_the_run(odd: float) -> None:
    """Also of an odd run, which counts with the noise of any other; θ̂ and hyperparameters are kept."""
    model = fit_with_categories_and_a_source_study(seed=0)
    y = model.y.clone()
    y[5] += odd
    model = fit_gp(model.X, y, model.landscape)

    expected = []
    for i in range(len(y)):
        keep = torch.arange(len(y)) != i
        noise = model.run_noise[keep]
        without = LandscapeGP(
            model.X[keep], y[keep], model.landscape, model.theta, model.hyperparameters, noise
        )
        posterior = without.posterior(model.X[[i]])
        variance = posterior.variance + model.noise(model.X[[i]]) + model.failure[i] ** 2
        expected.append(float((y[i] - posterior.mean) / variance.sqrt()))

    assert standardised_errors(model).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_factor_is_about_1_where_the_model_is_right() -> None:
    """Over landscapes drawn from the prior: the median of 24 is 1.17, with a standard error of .04."""
    found = [error_factor(fit_generated(seed)[0]) for seed in range(8)]

    assert 1 == pytest.approx(np.median([one.factor for one in found]), abs=0.3)
    assert 4 <= sum(one.interval[0] < 1 < one.interval[1] for one in found)


def test_half_the_noise_gives_a_factor_below_1() -> None:
    """A surrogate that thinks its errors half as large as they are is overconfident by that factor."""
    model = fit_generated(0, noise=0.02)[0]
    scatter = 0.02 * torch.randn(len(model.y), dtype=torch.double, generator=torch.Generator().manual_seed(1))
    y = model.landscape.values(model.theta, model.X) + 2 * scatter
    sure = LandscapeGP(model.X, y, model.landscape, model.theta, model.hyperparameters)

    factor = error_factor(sure)

    assert factor.interval[1] < 1
    assert len(y) == factor.runs


def test_runs_as_predicted_have_a_finite_factor() -> None:
    """One run ends where its own level is expected."""
    X, y, shape = one_hp([0.0])

    assert 0 < error_factor(fit_gp(X, y, shape)).factor <= MAX_FACTOR
