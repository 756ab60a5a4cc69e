"""Posterior of landscape and optimum at a scale: against dense linear algebra."""

from __future__ import annotations

import itertools

import pytest
import torch
from synthetic_fits import TARGET, fit_generated, fit_with_categories_and_a_source_study

from transfer_bo.surrogate.posterior import normal_draws


@pytest.mark.parametrize("with_row", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_it_is_bayes_rule_for_the_stacked_vector(seed: int, with_row: bool) -> None:
    """Conditioning the joint normal of losses and ξ, written out with the columns of ξ, gives the same.

    With δ for the jitter at the target, every loss is J θ + (∂f/∂u) k δ + the rest; jitter at other scales
    and all other parts are independent of θ and δ.
    """
    model = fit_with_categories_and_a_source_study(seed)
    kernel, landscape = model.kernel, model.landscape
    x = torch.cat([torch.zeros(5, dtype=torch.double), TARGET, torch.zeros(1, dtype=torch.double)])
    posterior = model.optimum_posterior(TARGET, x if with_row else None)

    p, d = landscape.p, landscape.d
    J = kernel.jacobian(model.X)
    _, _, s = landscape.split(model.X)
    tau = float(kernel.hyperparameters.jitter)
    correlation = kernel.jitter_correlation(s, TARGET[None])
    cross = torch.cat([J * landscape.sd**2, tau**2 * correlation * J[:, landscape.part("u")]], -1)
    prior = torch.cat([landscape.sd**2, torch.full((d,), tau**2, dtype=torch.double)])
    C = kernel.covariance(model.X, model.X) + torch.diag(model.run_noise)
    residual = model.y - landscape.values(model.theta, model.X) - J @ (landscape.mean - model.theta)

    mean = torch.cat([landscape.mean, torch.zeros(d).double()]) + cross.T @ torch.linalg.solve(C, residual)
    covariance = torch.diag(prior) - cross.T @ torch.linalg.solve(C, cross)

    assert torch.allclose(posterior.mean[: p + d], mean, atol=1e-7)
    assert torch.allclose(posterior.covariance[: p + d, : p + d], covariance, atol=1e-7)


def test_f_at_a_row_is_landscape_plus_the_error_there() -> None:
    """With a row in ξ, J θ + ∂f/∂u δ + ρ has the mean and the variance of f at that row."""
    model, _ = fit_generated(0)
    x = torch.cat([torch.tensor([0.4, -0.3], dtype=torch.double), TARGET])
    posterior = model.optimum_posterior(TARGET, x)
    J = model.kernel.jacobian(x[None])[0]
    row = torch.cat([J, J[model.landscape.part("u")], torch.ones(1, dtype=torch.double)])
    offset = model.kernel.linearised_mean(x[None])[0] - J @ model.landscape.mean

    mean, covariance = posterior.values(x[None])

    assert float(offset + row @ posterior.mean) == pytest.approx(float(mean), abs=1e-8)
    assert float(row @ posterior.covariance @ row) == pytest.approx(float(covariance), rel=1e-6)


def test_values_are_textbook_conditioning() -> None:
    """Mean and covariance of f at rows, and its covariance with the residual at others."""
    model = fit_with_categories_and_a_source_study(1)
    kernel, rows, at = model.kernel, model.X[:4] + 0.1, model.X[[4, 5, 7]]
    C = kernel.covariance(model.X, model.X) + torch.diag(model.run_noise)
    k, e = kernel.covariance(model.X, rows), kernel.residual_and_category_covariance(model.X, at)
    residual = model.y - kernel.linearised_mean(model.X)
    posterior = model.optimum_posterior(TARGET)

    mean, covariance = posterior.values(rows)
    joint = posterior.joint(rows, at)
    mean_e, sd_e = posterior.residual_and_category(at)

    assert torch.allclose(mean, kernel.linearised_mean(rows) + k.T @ torch.linalg.solve(C, residual))
    assert torch.allclose(covariance, kernel.covariance(rows, rows) - k.T @ torch.linalg.solve(C, k))
    assert torch.equal(joint.covariance, covariance)
    expected = kernel.residual_and_category_covariance(rows, at) - k.T @ torch.linalg.solve(C, e)
    assert torch.allclose(joint.with_residual, expected)
    expected = kernel.residual_and_category_covariance(at, at) - e.T @ torch.linalg.solve(C, e)
    assert torch.allclose(joint.residual, expected)
    assert torch.allclose(sd_e**2, expected.diagonal(), rtol=1e-6)
    assert torch.allclose(mean_e, e.T @ torch.linalg.solve(C, residual))


def test_the_residual_is_differentiable() -> None:
    """Its mean and sd have the slopes that differences tell."""
    model, _ = fit_generated(0)
    posterior = model.optimum_posterior(TARGET)

    def total(v: torch.Tensor) -> torch.Tensor:
        mean, sd = posterior.residual_and_category(torch.cat([v, TARGET])[None])
        return (mean + sd).sum()

    at = torch.tensor([0.5, -0.7], dtype=torch.double)
    steps = 1e-5 * torch.eye(2, dtype=torch.double)
    gradient = torch.func.grad(total)(at)

    slopes = [float(total(at + step) - total(at - step)) / 2e-5 for step in steps]

    assert slopes == pytest.approx(gradient.tolist(), rel=1e-4, abs=1e-9)


def test_pending_runs_do_not_move_the_optimum() -> None:
    """A running trial narrows the posterior and leaves its mean where it is."""
    model, _ = fit_generated(1)
    mean, covariance = model.optimum_posterior(TARGET).optimum()

    moved, narrowed = model.optimum_posterior(TARGET, pending=model.X[:3] + 0.5).optimum()

    assert torch.allclose(mean, moved, atol=1e-6)
    assert (narrowed.diagonal() < covariance.diagonal()).all()


def test_far_scales_are_less_certain() -> None:
    """The optimum's variance grows with the distance of the scale from the runs, never below the jitter."""
    model, _ = fit_generated(3)
    direction = torch.tensor([1.0, 1.0], dtype=torch.double)

    variances = [
        model.optimum_posterior(far * direction).optimum()[1].diagonal() for far in (1.0, 3.0, 6.0, 12.0)
    ]

    for closer, farther in itertools.pairwise(variances):
        assert (closer < farther).all()
    assert (variances[-1] > float(model.hyperparameters.jitter) ** 2).all()


def test_the_drift_is_what_the_optimum_moves_by() -> None:
    """Between two scales the mean optimum without jitter moves by the mean drift."""
    model, _ = fit_generated(2)
    B, sd = model.optimum_posterior(TARGET).drift()
    d, part = model.landscape.d, model.landscape.part
    posterior = model.optimum_posterior(TARGET)
    T = posterior.path_map()[:, : model.landscape.p]

    moved = (
        T @ posterior.mean[: model.landscape.p] - model.landscape.coordinates.mix @ posterior.mean[part("u")]
    )

    assert (d, 2) == B.shape == sd.shape
    assert torch.allclose(model.landscape.coordinates.unmix @ moved, B @ TARGET)


def test_draws_have_the_moments_asked_for() -> None:
    """Also for a singular covariance, along which nothing varies."""
    root = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.double)
    mean = torch.tensor([1.0, -1.0], dtype=torch.double)

    draws = normal_draws(mean, root @ root.T, 20_000, torch.Generator().manual_seed(0))

    assert torch.allclose(draws.mean(0), mean, atol=4 * 2 / 20_000**0.5)
    assert torch.allclose(draws.T.cov(), root @ root.T, rtol=4 * (2 / 20_000) ** 0.5)
    assert torch.allclose(draws[:, 1] - 2 * draws[:, 0], torch.tensor(-3.0).double(), atol=1e-6)
