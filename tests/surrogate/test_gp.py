"""The surrogate as a BoTorch model, its noise, and runs that failed."""

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
from synthetic_fits import TARGET, fit_generated, one_hp

from transfer_bo.surrogate.fitting import fit_gp
from transfer_bo.surrogate.gp import LandscapeGP, failure_excess

SMALLER = LinearMCObjective(torch.tensor([-1.0], dtype=torch.double))  # BoTorch maximizes


def test_posterior_is_botorchs() -> None:
    """The BoTorch posterior agrees with textbook conditioning on the same kernel and noise."""
    model, _ = fit_generated(2)
    test = model.X[:5] + 0.2
    K = model.kernel.covariance(model.X, model.X) + torch.diag(model.run_noise)
    k = model.kernel.covariance(test, model.X)
    weights = torch.linalg.solve(K, model.y - model.kernel.linearised_mean(model.X))

    posterior = model.posterior(test)

    mean = model.kernel.linearised_mean(test) + k @ weights
    assert torch.allclose(posterior.mean.squeeze(-1), mean, atol=1e-6)
    variance = model.kernel.covariance(test, test) - k @ torch.linalg.solve(K, k.T)
    assert torch.allclose(posterior.variance.squeeze(-1), variance.diagonal(), rtol=1e-3, atol=1e-9)


def test_batches_agree_with_single_points() -> None:
    """A batch of q = 1 points, as acquisition optimizers ask for, has the same posterior as a list."""
    model, _ = fit_generated(2)
    test = model.X[:4] + 0.2

    batched = model.posterior(test.unsqueeze(-2))

    assert torch.allclose(batched.mean.flatten(), model.posterior(test).mean.flatten(), atol=1e-8)
    assert torch.allclose(batched.variance.flatten(), model.posterior(test).variance.flatten(), rtol=1e-5)


def test_more_runs_are_conditioned_on() -> None:
    """`condition_on_observations` is textbook conditioning on all runs, each with its own noise."""
    model, _ = fit_generated(2)
    kernel = model.kernel
    X, Y = model.X[:3] + 0.3, model.y[:3, None] + 0.01
    test = model.X[5:9] - 0.2
    rows, ys = torch.cat([model.X, X]), torch.cat([model.y, Y[:, 0]])
    K = kernel.covariance(rows, rows) + torch.diag(torch.cat([model.run_noise, model.noise(X)]))
    k = kernel.covariance(test, rows)
    model.posterior(test)  # BoTorch wants its caches filled

    posterior = model.condition_on_observations(X, Y).posterior(test)

    expected = kernel.linearised_mean(test) + k @ torch.linalg.solve(K, ys - kernel.linearised_mean(rows))
    assert torch.allclose(posterior.mean.squeeze(-1), expected, atol=1e-6)
    variance = kernel.covariance(test, test) - k @ torch.linalg.solve(K, k.T)
    assert torch.allclose(posterior.variance.squeeze(-1), variance.diagonal(), rtol=1e-3, atol=1e-9)


ACQUISITIONS = {
    "analytic": lambda model: LogExpectedImprovement(model, float(model.y.min()), maximize=False),
    "Monte Carlo": lambda model: qLogNoisyExpectedImprovement(model, model.X, objective=SMALLER),
    "entropy": lambda model: qLowerBoundMaxValueEntropy(model, model.X, maximize=False),
    "knowledge gradient": lambda model: qKnowledgeGradient(model, 2, objective=SMALLER),
    "look-ahead variance": lambda model: qNegIntegratedPosteriorVariance(model, model.X),
}


@pytest.mark.filterwarnings("ignore:You have passed data through")  # BoTorch's entropy: of any fixed noise
@pytest.mark.parametrize("acquisition", ACQUISITIONS.values(), ids=ACQUISITIONS)
def test_any_acquisition_function_of_botorch_runs(acquisition: Callable[[LandscapeGP], Any]) -> None:
    """One of each kind is optimized by BoTorch over the HPs, at the target."""
    model, _ = fit_generated(2)
    d = model.X.shape[-1]
    ends = torch.stack([model.X.amin(0), model.X.amax(0)])
    at_target = {d - 2 + i: float(s) for i, s in enumerate(TARGET)}

    found, value = optimize_acqf(
        acquisition(model), ends, 1, 1, 4, fixed_features=at_target, options={"maxiter": 3}
    )

    assert (1, d) == found.shape
    assert torch.isfinite(value)
    assert torch.allclose(TARGET, found[0, d - 2 :])


def test_a_fit_with_other_parameters_leaves_the_first_as_it_was() -> None:
    """`with_fit` makes another model; θ, hyperparameters and noise of this one stay."""
    model, _ = fit_generated(0, n=8)
    before = model.theta.clone(), model.hyperparameters.to_log_vector(), model.run_noise.clone()

    other = model.with_fit(theta=model.theta + 1, noise=2 * model.run_noise)

    assert torch.equal(other.theta, before[0] + 1)
    assert torch.equal(other.run_noise, 2 * before[2])
    after = model.theta, model.hyperparameters.to_log_vector(), model.run_noise
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize(("loss", "failure"), [(0.05, 0.0), (0.28, 0.0), (0.8, 0.5)])
def test_among_runs_that_lie_close_a_far_one_has_failed(loss: float, failure: float) -> None:
    """By what it ends further above the best of its scale than the bowl can follow, .3 in ln loss."""
    usual = [0.0, 0.01, 0.02, 0.03, 0.05]

    assert failure_excess(*one_hp([*usual, loss])).tolist() == pytest.approx([0.0] * 5 + [failure])


def test_in_a_metric_that_spans_decades_no_run_has_failed() -> None:
    """Ln losses spread evenly over 1.5: the largest is no odder than the others."""
    assert failure_excess(*one_hp([0.0, 0.3, 0.6, 0.9, 1.2, 1.5])).tolist() == [0.0] * 6


def test_noise_grows_with_the_excess_loss() -> None:
    """At the optimum it is σ², far from it 15% of the excess loss besides."""
    model = fit_gp(*one_hp([0.09, 0.04, 0.01, 0.0, 0.01, 0.04, 0.09]))
    optimum, _ = model.optimum_posterior(torch.zeros(0, dtype=torch.double)).optimum()
    far = optimum + 3
    excess_loss = model.landscape.excess_loss(model.theta, far[None])

    at_optimum, at_far = model.noise(model.landscape.path(model.theta, far[:0])[None]), model.noise(far[None])

    variance = float(model.hyperparameters.noise_sd) ** 2
    assert float(at_optimum) == pytest.approx(variance)
    assert float(at_far) == pytest.approx(variance + (0.15 * float(excess_loss)) ** 2)
