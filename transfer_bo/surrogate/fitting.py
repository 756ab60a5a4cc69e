"""Fitting the surrogate: MAP of the landscape and of the kernel's hyperparameters, by turns.

Given the hyperparameters, θ̂ is the maximum a posteriori (MAP) estimate under the Gaussian process's own
covariance, by Gauss-Newton steps (`find_map`). Given θ̂, the hyperparameters maximize the marginal likelihood
of the linearised landscape times their prior (`neg_log_posterior`).

Symbols: X, y, n, σ as in `gp`; θ, θ̂, J and hyperparameters as in `kernel`; p, d, z, u as in `landscape`; C =
covariance of the runs' losses, noise included (in `find_map`, where θ is given, without the tangent kernel);
w (n) = Student weight by which the noise of a run is widened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from transfer_bo.surrogate import priors
from transfer_bo.surrogate.gp import TOLERANCE, LandscapeGP
from transfer_bo.surrogate.kernel import (
    FIRST_SOURCE,
    JITTER_INDEX,
    LEVEL_INDEX,
    NOISE_SD_INDEX,
    RESIDUAL_INDEX,
    KernelHyperparameters,
    hyperparameter_prior,
    matern,
    matern_slope,
    squared_distances,
)
from transfer_bo.surrogate.landscape import Landscape

__all__ = ["STUDENT_T_DF", "find_map", "fit_gp", "neg_log_posterior", "noise_parts", "student_t_weights"]

ROUNDS = 3
"""How often the landscape is linearised again and the hyperparameters are fitted again."""

MAX_ITERATIONS = 15
"""Steps of L-BFGS-B in one fit of the hyperparameters."""

MAX_RUNS = 256
"""The hyperparameters are fitted to at most so many runs, evenly in time; everything else uses all."""

WIDEST = 5.0
"""How many prior sd the logarithm of a fitted hyperparameter may lie off."""

WIDEST_LENGTHSCALE = 2.0
"""The same for lengthscales. What changes within a fifth of a range is noise: a surface that follows it would
send the search after one lucky seed, again and again."""

STUDENT_T_DF = 5.0
"""Degrees of freedom of the weights that keep one odd run from bending the bowl."""

MEDIAN_CHI2 = 0.455
"""Median of the square of a standard normal."""

MAX_STEPS = 15
"""Gauss-Newton steps of one MAP estimate."""

FIRST_DAMPING = 1e-2
"""Levenberg damping of the first step, in units of the prior precision; 8 times less after each success."""

LEAST_DAMPING = 1e-6
"""It falls no lower."""

MOST_DAMPING = 1e6
"""From here on no step helps."""

DAMPING_FACTOR = 8
"""By so much the damping falls after a step that helped, and grows after one that did not."""

CONVERGED = 1e-4
"""A step that gains less log posterior density than this is the last."""


def fit_gp(
    X: Float[Tensor, "n row"],
    y: Float[Tensor, " n"],
    landscape: Landscape,
    warm_start: LandscapeGP | None = None,
) -> LandscapeGP:
    """Fit the surrogate to runs.

    Args:
        X: rows of `Coordinates.row`, double.
        y: transformed losses, smaller is better.
        landscape: the shape and its priors.
        warm_start: a fit to the same runs with priors that hardly differ, to start from.
    """
    if warm_start is None:
        model = _first_fit(X, y, landscape)
    else:
        start = LandscapeGP(X, y, landscape, warm_start.theta, warm_start.hyperparameters)
        theta, noise = find_map(start)
        model = start.with_fit(theta=theta, noise=noise)

    for _ in range(ROUNDS if warm_start is None else 1):
        model = model.with_fit(hyperparameters=_find_hyperparameters(model))
        theta, noise = find_map(model)
        model = model.with_fit(theta=theta, noise=noise)
    return model


@torch.no_grad()
def _first_fit(X: Tensor, y: Tensor, landscape: Landscape) -> LandscapeGP:
    """MAP under the prior's hyperparameters; then noise and residual as large as the bowl's residuals."""
    coordinates = landscape.coordinates
    logs, _ = hyperparameter_prior(coordinates)
    prior = KernelHyperparameters.of(logs, coordinates)
    start = LandscapeGP(X, y, landscape, _first_theta(X, y, landscape), prior)
    theta, noise = find_map(start)

    squared = (y - landscape.values(theta, X)) ** 2 / MEDIAN_CHI2
    sd = squared.median().sqrt().clamp(min=1e-6)
    logs = logs.clone()
    logs[RESIDUAL_INDEX] = torch.maximum(logs[RESIDUAL_INDEX], sd.log())
    logs[NOISE_SD_INDEX] = torch.maximum(logs[NOISE_SD_INDEX], (sd / 2).log())
    return start.with_fit(theta, KernelHyperparameters.of(logs, coordinates), noise)


def _first_theta(X: Tensor, y: Tensor, landscape: Landscape) -> Tensor:
    """θ at its prior mean, but u where the curvature's prior says that the runs see the optimum.

    Without such a prior, halfway between the centre of z and the mean of the best quarter of runs.
    """
    theta, u = landscape.mean.clone(), landscape.part("u")
    if landscape.curvature_prior is not None:
        optimum = landscape.curvature_prior.optimum
        theta[u] = torch.where(optimum.isnan(), theta[u], optimum)
        return theta
    best = X[y.argsort()[: max(1, len(y) // 4)], : landscape.d].mean(0)
    theta[u] = landscape.coordinates.unmix @ best / 2
    return theta


def _find_hyperparameters(model: LandscapeGP) -> KernelHyperparameters:
    """The most probable hyperparameters for the model's linearisation and weights of the runs."""
    coordinates, objective = model.landscape.coordinates, neg_log_posterior(model)

    def value_and_gradient(logs: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, Any]:
        value, gradient = objective(torch.from_numpy(logs))
        return value, gradient.numpy()

    mean, sd = hyperparameter_prior(coordinates)
    widest = torch.full_like(sd, WIDEST_LENGTHSCALE)
    widest[: FIRST_SOURCE + len(coordinates.sources) + bool(coordinates.seeds)] = WIDEST
    low, high = mean - widest * sd, mean + widest * sd
    found = minimize(
        value_and_gradient,
        model.hyperparameters.to_log_vector().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=torch.stack([low, high], -1).tolist(),
        options={"maxiter": MAX_ITERATIONS},
    )
    logs = torch.tensor(found.x, dtype=torch.double)
    return KernelHyperparameters.of(logs, coordinates)


def neg_log_posterior(model: LandscapeGP) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Negative log posterior density of the log hyperparameters, with its gradient, but for a constant.

    Marginal likelihood of the linearised landscape, and a normal prior on each logarithm. Of many runs
    MAX_RUNS are used, evenly in time. The result is a function of `KernelHyperparameters.to_log_vector`.

    The gradient is by hand for speed. With b the losses minus the prior mean and G = (C⁻¹ - C⁻¹b bᵀC⁻¹) / 2,
    that by any hyperparameter is the sum of the elements of G ∘ ∂C.
    """
    kernel, landscape = model.kernel, model.landscape
    keep = torch.linspace(0, len(model.y) - 1, min(len(model.y), MAX_RUNS)).long()
    X, y = model.X[keep], model.y[keep]
    weight, extra = (part[keep] for part in noise_parts(model))  # σ between them is fitted
    n, J, source_flags = len(y), kernel.jacobian(X), landscape.source_flags(X)
    shares_seeds = bool(landscape.coordinates.seeds)
    first_lengthscale = FIRST_SOURCE + source_flags.shape[-1] + shares_seeds

    slopes = J[:, landscape.part("u")]
    slopes = slopes @ slopes.T
    _, _, s = landscape.split(X)
    same_source = source_flags @ source_flags.T
    same_seed, own_seed = landscape.seed_flags(X), weight * landscape.has_own_seed(X)
    of_seeds = same_seed @ same_seed.T + torch.diag(own_seed)
    residual_inputs = kernel.residual_inputs(X)
    residual_correlation = kernel.residual_scale_correlation(s, s) * (1 + same_source)

    # C is the sum of `constant`, of `parts` times the square of a hyperparameter each, and of the residual.
    # It must equal `kernel.covariance(X, X)` plus the noise w (σ² + extra), or w (σ² + ς² + extra) of a run
    # that shares no seed: change both together.
    tangent = (J * landscape.sd**2) @ J.T
    constant = tangent + priors.SOURCE_LEVEL_SD**2 * same_source + torch.diag(weight * extra)
    of_parts = [JITTER_INDEX, LEVEL_INDEX, NOISE_SD_INDEX, *range(FIRST_SOURCE, first_lengthscale)]
    parts = torch.stack(
        [
            kernel.jitter_correlation(s, s) * slopes,
            kernel.level_covariance(s, s),
            torch.diag(weight),
            *[torch.outer(flags, flags) * slopes for flags in source_flags.T],
            *[of_seeds] * shares_seeds,
        ]
    ).flatten(1)
    b = y - kernel.linearised_mean(X)
    mean, sd = hyperparameter_prior(landscape.coordinates)

    def value_and_gradient(logs: Tensor) -> tuple[float, Tensor]:
        square = (2 * logs).exp()
        size, lengthscale = square[of_parts], logs[first_lengthscale:].exp()
        if shares_seeds:
            size[-1] *= square[NOISE_SD_INDEX]  # ς = ρ σ
        scaled = residual_inputs / kernel.per_column(lengthscale)
        squared = squared_distances(scaled, scaled)
        residual = matern(squared).mul_(residual_correlation).mul_(square[RESIDUAL_INDEX])

        C = (size @ parts).reshape(n, n).add_(constant).add_(residual)
        chol = torch.linalg.cholesky(C)
        inverse = torch.cholesky_inverse(chol)
        C_inv_b = inverse @ b
        off = (logs - mean) / sd
        value = chol.diagonal().log().sum() + 0.5 * b @ C_inv_b + 0.5 * off @ off

        # `pairs`: the sum over pairs (i, j) of W_ij (x_i - x_j)², for each column x of the residual's inputs
        G = torch.addr(inverse, C_inv_b, C_inv_b, alpha=-1).mul_(0.5)
        W = matern_slope(squared).mul_(residual_correlation).mul_(G).mul_(square[RESIDUAL_INDEX])
        pairs = 2 * (W.sum(0) @ scaled**2 - (scaled * (W @ scaled)).sum(0))

        gradient = off / sd
        by_part = 2 * size * (parts @ G.flatten())
        gradient[of_parts] += by_part
        if shares_seeds:
            gradient[NOISE_SD_INDEX] += by_part[-1]
        gradient[RESIDUAL_INDEX] += 2 * torch.dot(residual.flatten(), G.flatten())
        gradient[first_lengthscale:] -= 2 * kernel.sum_by_hp(pairs)
        return float(value), gradient

    return value_and_gradient


def noise_parts(model: LandscapeGP) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Split the variance of each run's noise into weight · (σ² + extra), ς² added where a run shares no seed.

    Returns:
        weight: at least 1, larger for odd runs (`student_t_weights`).
        extra: the squares of λ times the excess loss and of `failure`, see `gp`; larger for bad runs.
    """
    excess_loss = model.landscape.excess_loss(model.theta, model.X)
    extra = (TOLERANCE * excess_loss) ** 2 + model.failure**2
    own_seed = model.hyperparameters.seed_variance * model.landscape.has_own_seed(model.X)
    return model.run_noise / (model.hyperparameters.noise_sd**2 + own_seed + extra), extra


def student_t_weights(covariance: Float[Tensor, "n n"], residual: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """By how much to widen the noise of each run, at least 1, so that an odd one does not bend the bowl.

    Student's weights for the leave-one-out errors. Where most runs are off, the noise or the residual is too
    small and no run is odd: only what is odd beside the median run counts.

    Args:
        covariance: of the runs' losses.
        residual: losses minus the fitted landscape.
    """
    precision = torch.linalg.inv(covariance)
    squared = (precision @ residual) ** 2 / precision.diagonal()
    squared = squared / (squared.median() / MEDIAN_CHI2).clamp(min=1.0)
    weights: Tensor = ((STUDENT_T_DF + squared) / (STUDENT_T_DF + 1)).clamp(min=1.0)
    return weights


@torch.no_grad()
def find_map(model: LandscapeGP) -> tuple[Float[Tensor, " p"], Float[Tensor, " n"]]:
    """MAP estimate of θ for the model's hyperparameters, and the noise of each run that it rests on.

    Gauss-Newton with Levenberg damping, from the model's θ. The noise of a run depends on its excess loss, so
    it is frozen while the bowl moves: a bowl that could explain a residual by calling it noise would do so.
    """
    landscape, X, y = model.landscape, model.X, model.y
    theta = model.theta
    noise = model.noise(X) + model.failure**2
    nuisance = model.kernel.nuisance_covariance(X, X)
    if len(y) > landscape.d + 3:
        residual = y - landscape.values(theta, X)
        noise = noise * student_t_weights(nuisance + torch.diag(noise), residual)
    chol = torch.linalg.cholesky(nuisance + torch.diag(noise))

    def score(at: Tensor) -> tuple[Tensor, Tensor, float]:
        """Whitened residuals of runs and of the prior, and half of their sum of squares."""
        b = torch.linalg.solve_triangular(chol, (y - landscape.values(at, X))[:, None], upper=False)[:, 0]
        e = (at - landscape.mean) / landscape.sd
        return b, e, float(0.5 * (b @ b + e @ e))

    b, e, value = score(theta)
    damping = FIRST_DAMPING
    for _ in range(MAX_STEPS):
        A = torch.linalg.solve_triangular(chol, landscape.jacobian(theta, X) * landscape.sd, upper=False)
        damped_step = _damped_steps(A, A.T @ b - e)

        while damping < MOST_DAMPING:
            candidate = theta + landscape.sd * damped_step(1 + damping)
            new_b, new_e, new_value = score(candidate)
            if new_value < value:
                break
            damping *= DAMPING_FACTOR
        else:
            break

        finished = value - new_value < CONVERGED
        theta, b, e, value = candidate, new_b, new_e, new_value
        damping = max(damping / DAMPING_FACTOR, LEAST_DAMPING)
        if finished:
            break
    return theta, noise


def _damped_steps(A: Float[Tensor, "n p"], gradient: Float[Tensor, " p"]) -> Callable[[float], Tensor]:
    """The solution of (AᵀA + λ I) step = gradient as a function of λ, by the smaller of AᵀA and AAᵀ."""
    is_wide = A.shape[0] < A.shape[1]
    gram = A @ A.T if is_wide else A.T @ A
    identity = torch.eye(len(gram), dtype=torch.double)

    def step(damping: float) -> Tensor:
        factor = torch.linalg.cholesky(gram + damping * identity)
        if not is_wide:
            return torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        explained = A.T @ torch.cholesky_solve((A @ gradient)[:, None], factor)[:, 0]
        return (gradient - explained) / damping  # Woodbury's identity

    return step
