"""Markov chain Monte Carlo (MCMC): draws of the landscape itself, where its linearised form is too sure.

Near its MAP estimate θ̂ the landscape is taken as linear (`kernel`), which makes proposals cheap. But a flat
bowl may lie further off than a steep one, and a loss law that falls fast may level out early: such bent
ridges matter for the answer about a scale far beyond the runs. So the answer rests on draws of θ from

    p(θ | y) ∝ N(y; f(X; θ), C) N(θ; θ0, Σ0)        C = jitter + residual + level + noise

by elliptical slice sampling (Murray, Adams & MacKay 2010) about the normal approximation at θ̂, widened
(Nishihara, Murray & Adams 2014, section 3). C has hyperparameters of its own, known from few runs only: each
group of chains gets a draw of them, normal about their MAP estimate. Given θ and the hyperparameters, the
jitter δ of the optimum at a scale and the error ρ of f at a row are normal.

The residual moves the best setting a little off the bowl's optimum ψ. In a steep bowl of curvature H by its
gradient over 2H; in a flat one by no more than to where the bowl costs as much as the residual could gain:

    ω_i ~ N(0, 1 / (1 / V + 1 / W)),    V = 5/3 (r / ℓ_i)² / (2 H_ii)²,    W = r / H_ii

With more than MAX_SAMPLED_HPS HPs, the draws are those of the normal approximation itself: θ then has
hundreds of elements, and chains as long as these have not settled.

Symbols: as in `landscape` and `kernel`; L Lᵀ = C; e = (θ - θ0) / sd, standard normal before any run; groups,
chains = GROUPS, CHAINS; count = CHAINS · KEPT draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.surrogate.fitting import neg_log_posterior, noise_parts
from transfer_bo.surrogate.fixed_rows import FixedRows
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import KernelHyperparameters, LandscapeKernel, hyperparameter_prior
from transfer_bo.surrogate.posterior import normal_draws

__all__ = [
    "CHAINS",
    "GROUPS",
    "KEPT",
    "Draws",
    "PosteriorSamples",
    "draw_hyperparameters",
    "hyperparameter_root_covariance",
    "sample_given_hyperparameters",
    "sample_posterior",
]

GROUPS = 16
"""Draws of the hyperparameters, each with its own group of chains."""

CHAINS = 64
"""Chains that run side by side."""

KEPT = 8
"""Draws kept from each chain."""

BURN_IN = 60
"""Steps of each chain before its first draw."""

THINNING = 6
"""Steps between two draws of a chain."""

WIDENING = 2.0
"""The normal approximation that steps are drawn from is wider than the posterior by this factor."""

MAX_SAMPLED_HPS = 12
"""More numeric HPs than these are drawn from the normal approximation. On searches with 40 to 85 HPs
(`benchmarks/sparse_multipliers.py`, three seeds) its mean is at least as good a setting as that of the chains
(excess 1.8, 3.7 and 1.0% against 2.6, 3.9 and 1.3%), its 90% intervals hold as many of the true optima (82
and 81%), and it takes 1 to 3 s instead of 30 to 110 s."""

DIFFERENCE = 1e-3
"""Step of the differences that give the curvature of the hyperparameters' density, in prior sd."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Draws:
    """The landscape and what it does not say, at one scale.

    Attributes:
        theta: parameters.
        optimum: ψ of the scale, jitter included, in v.
        jitter: its part that is jitter, in v.
        residual_offset: ω, from ψ to the best setting, because of the residual, in z.
        error: residual and level error of f at the row; zeros without one.
        noise_sd: of one run near the optimum with a seed of its own, ln loss.
    """

    theta: Float[Tensor, "count p"]
    optimum: Float[Tensor, "count d"]
    jitter: Float[Tensor, "count d"]
    residual_offset: Float[Tensor, "count d"]
    error: Float[Tensor, " count"]
    noise_sd: Float[Tensor, " count"]


@dataclass(frozen=True, eq=False)
class PosteriorSamples:
    """Draws from the posterior of a fitted surrogate.

    Attributes:
        model: the fit.
        seed: of all randomness.
        hyperparameters: a draw for each group of chains.
        theta: draws of the parameters, group by group.
        residual: losses minus the landscape of each draw.
        chol: L of each group.
    """

    model: LandscapeGP
    seed: int
    hyperparameters: Sequence[KernelHyperparameters]
    theta: Float[Tensor, "count p"]
    residual: Float[Tensor, "count n"]
    chol: Float[Tensor, "groups n n"]
    _at_scale: dict[tuple[float, ...], Draws] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def at(self, s: Float[Tensor, " a"], x: Float[Tensor, " row"] | None = None) -> Draws:
        """The draws at a scale, with the error of f at one row of it.

        The same scale and row give the same draws at every call.
        """
        if x is not None:
            return self._draw(s, x)
        key = tuple(s.tolist())
        if key not in self._at_scale:
            self._at_scale[key] = self._draw(s, None)
        return self._at_scale[key]

    def _draw(self, s: Tensor, x: Tensor | None) -> Draws:
        landscape, groups = self.model.landscape, len(self.chol)
        each = len(self.theta) // groups
        generator = torch.Generator().manual_seed(self.seed + 1)

        prior, cross = self._jitter_and_error_covariance(s, x)
        half = torch.linalg.solve_triangular(self.chol, cross, upper=False)  # groups x n x (d + 1)
        mean = self._whitened_residual.mT @ half
        covariance = torch.diag_embed(prior) - half.mT @ half
        sd = self._residual_offset_sd(s)

        draws, offset = [], []
        for group in range(groups):
            draws.append(normal_draws(mean[group], covariance[group], each, generator))
            standard = torch.randn(each, landscape.d, dtype=torch.double, generator=generator)
            offset.append(sd[group] * standard)

        jitter_and_error = torch.cat(draws)
        jitter = jitter_and_error[:, : landscape.d] @ landscape.optimum_map.T
        noise_sd = torch.stack([one.run_sd for one in self.hyperparameters])
        return Draws(
            theta=self.theta,
            optimum=landscape.path(self.theta, s) + jitter,
            jitter=jitter,
            residual_offset=torch.cat(offset),
            error=jitter_and_error[:, -1] if x is not None else torch.zeros(len(jitter), dtype=torch.double),
            noise_sd=noise_sd.repeat_interleave(each),
        )

    @cached_property
    def _kernels(self) -> list[LandscapeKernel]:
        """The kernel of each group."""
        return [LandscapeKernel(self.model.landscape, self.model.theta, one) for one in self.hyperparameters]

    @cached_property
    def _whitened_residual(self) -> Float[Tensor, "groups n each"]:
        """L⁻¹ (y - f(X; θ)) of each draw."""
        residual = self.residual.reshape(len(self.chol), -1, self.residual.shape[1])
        whitened: Tensor = torch.linalg.solve_triangular(self.chol, residual.mT, upper=False)
        return whitened

    def _jitter_and_error_covariance(self, s: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of δ, and of ρ if a row is given: prior variance, and covariance with the runs' losses.

        Returns:
            groups x (d + 1), and groups x n x (d + 1); without a row d columns.
        """
        model, landscape, kernel = self.model, self.model.landscape, self._kernels[0]
        _, _, of_runs = landscape.split(model.X)
        jacobian, u = kernel.jacobian(model.X), landscape.part("u")
        jitter = torch.stack([one.jitter for one in self.hyperparameters])[:, None].square()
        slopes = kernel.jitter_correlation(of_runs, s[None]) * jacobian[:, u]
        prior, cross = jitter.expand(-1, landscape.d), jitter[..., None] * slopes
        if x is None:
            return prior, cross

        row = x[None]
        at_row = kernel.jacobian(row)
        covariance = torch.stack(
            [one.nuisance_given_jacobians(model.X, row, jacobian, at_row) for one in self._kernels]
        )
        without_jitter = covariance - cross @ at_row[:, u].T
        residual, level = (
            torch.stack([getattr(one, name) for one in self.hyperparameters])
            for name in ("residual", "level")
        )
        variance = residual**2 + level**2 * s.abs().sum()
        return torch.cat([prior, variance[:, None]], -1), torch.cat([cross, without_jitter], -1)

    def _residual_offset_sd(self, s: Tensor) -> Float[Tensor, "groups d"]:
        """sd of ω."""
        landscape = self.model.landscape
        mix = landscape.coordinates.mix
        H = (mix.T @ landscape.curvature(self.model.theta, s) @ mix).diagonal()
        r = torch.stack([one.residual for one in self.hyperparameters])[:, None]
        lengthscale = torch.stack([one.lengthscale[: landscape.d] for one in self.hyperparameters])

        by_slope = 5 / 3 * (r / lengthscale) ** 2 / (2 * H) ** 2
        sd: Tensor = (1 / (1 / by_slope + H / r)).sqrt()
        return sd


def sample_posterior(model: LandscapeGP, seed: int) -> PosteriorSamples:
    """CHAINS · KEPT draws from the posterior of a fitted surrogate.

    Args:
        model: the fit.
        seed: of all randomness.
    """
    generator = torch.Generator().manual_seed(seed)
    return sample_given_hyperparameters(model, draw_hyperparameters(model, generator), seed, generator)


@torch.no_grad()
def draw_hyperparameters(model: LandscapeGP, generator: torch.Generator) -> list[KernelHyperparameters]:
    """GROUPS draws from Laplace's approximation about the fitted hyperparameters."""
    fitted = model.hyperparameters.to_log_vector()
    standard = torch.randn(GROUPS, len(fitted), dtype=torch.double, generator=generator)
    logs = fitted + standard @ hyperparameter_root_covariance(model).T
    return [KernelHyperparameters.of(draw, model.landscape.coordinates) for draw in logs]


@torch.no_grad()
def sample_given_hyperparameters(
    model: LandscapeGP,
    hyperparameters: Sequence[KernelHyperparameters],
    seed: int,
    generator: torch.Generator,
) -> PosteriorSamples:
    """Draws of θ by chains that share these hyperparameters in equal groups.

    Args:
        model: the fit.
        hyperparameters: as many as divide CHAINS.
        seed: of the draws at a scale.
        generator: source of randomness of the chains.
    """
    weight, extra = noise_parts(model)
    noise_sd = torch.stack([one.log_noise_sd for one in hyperparameters]).exp()
    seed_variance = torch.stack([one.seed_variance for one in hyperparameters])
    own_seed = seed_variance[:, None] * model.landscape.has_own_seed(model.X)
    noise = weight * (noise_sd[:, None] ** 2 + own_seed + extra)  # groups x n

    kernels = [LandscapeKernel(model.landscape, model.theta, one) for one in hyperparameters]
    nuisance = torch.stack([kernel.nuisance_covariance(model.X, model.X) for kernel in kernels])
    chol = torch.linalg.cholesky(nuisance + torch.diag_embed(noise))

    is_sampled = model.landscape.d <= MAX_SAMPLED_HPS
    theta = _sample_theta(model, chol, generator) if is_sampled else _draw_normal_theta(model, generator)
    residual = model.y - torch.from_numpy(FixedRows(model.landscape, model.X).values(theta.numpy()))
    return PosteriorSamples(model, seed, tuple(hyperparameters), theta, residual, chol)


def hyperparameter_root_covariance(model: LandscapeGP) -> Float[Tensor, "h h"]:
    """A square root of the posterior covariance of the logarithms of the hyperparameters (Laplace's)."""
    fitted, objective = model.hyperparameters.to_log_vector(), neg_log_posterior(model)
    _, prior_sd = hyperparameter_prior(model.landscape.coordinates)
    steps = torch.diag(DIFFERENCE * prior_sd)
    rises = [objective(fitted + step)[1] - objective(fitted - step)[1] for step in steps]
    H = torch.stack(rises) * prior_sd / (2 * DIFFERENCE)  # of logarithms in units of their prior sd

    # At a bound, or where rounding rules, the curvature may be off: never less sure than the prior.
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    root: Tensor = prior_sd[:, None] * vectors / values.clamp(min=1.0).sqrt()
    return root


def _normal_approximation(model: LandscapeGP) -> tuple[Tensor, Tensor]:
    """Centre (p) and Cholesky factor of the precision (p x p) of e, of the landscape linearised at θ̂."""
    landscape = model.landscape
    centre = (model.theta - landscape.mean) / landscape.sd
    J = landscape.jacobian(model.theta, model.X) * landscape.sd
    covariance = model.kernel.nuisance_covariance(model.X, model.X) + torch.diag(model.run_noise)
    A = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), J, upper=False)
    identity = torch.eye(landscape.p, dtype=torch.double)
    return centre, torch.linalg.cholesky(A.T @ A + identity)


def _draw_normal_theta(model: LandscapeGP, generator: torch.Generator) -> Tensor:
    """Draws of θ (count x p) from the normal approximation."""
    landscape = model.landscape
    centre, lower = _normal_approximation(model)
    standard = torch.randn(landscape.p, CHAINS * KEPT, dtype=torch.double, generator=generator)
    e = centre + torch.linalg.solve_triangular(lower.T, standard, upper=True).T
    theta: Tensor = landscape.mean + landscape.sd * e
    return theta


def _sample_theta(model: LandscapeGP, chol: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of θ (count x p) by elliptical slice sampling; `chol` is L of each group of chains.

    A step draws an arc through e and a level, and cuts the arc towards e until a point of it lies above the
    level. Chains do not wait for each other: each begins its next step when it is done with the last.
    """
    landscape, groups = model.landscape, len(chol)
    mean, sd, y = landscape.mean.numpy(), landscape.sd.numpy(), model.y.numpy()
    rows = FixedRows(landscape, model.X)
    centre_and_lower = _normal_approximation(model)
    centre, lower = (part.numpy() for part in centre_and_lower)
    inverse = torch.linalg.solve_triangular(
        centre_and_lower[1], torch.eye(landscape.p, dtype=torch.double), upper=False
    ).numpy()

    def normal() -> Array:
        """A draw from the normal approximation about 0, for each chain."""
        standard = torch.randn(landscape.p, CHAINS, dtype=torch.double, generator=generator).numpy()
        step: Array = standard.T @ inverse
        return step

    def uniform() -> Array:
        return torch.rand(CHAINS, dtype=torch.double, generator=generator).numpy()

    def log_ratio(e: Array) -> Array:
        """Logarithm of the posterior over the widened normal approximation, of each chain at its e."""
        residual = torch.from_numpy(y - rows.values(mean + sd * e)).reshape(groups, CHAINS // groups, -1)
        whitened = torch.linalg.solve_triangular(chol, residual.mT, upper=False)
        squared = whitened.square_().sum(-2).flatten().numpy()
        from_centre = (((e - centre) @ lower) ** 2).sum(-1) / WIDENING**2
        value: Array = 0.5 * (from_centre - squared - (e**2).sum(-1))
        return np.where(np.isnan(value), -math.inf, value)

    e = centre + normal()
    now = log_ratio(e)
    done, begins = np.zeros(CHAINS, dtype=int), np.ones(CHAINS, dtype=bool)
    other, level, angle, low, high = e, now, now, now, now
    kept = np.empty((CHAINS, KEPT, landscape.p))
    while (done < BURN_IN + KEPT * THINNING).any():
        # Chains that begin a step draw an arc, a level and a first angle; the others cut their arc.
        whole = 2 * math.pi * uniform()
        other = np.where(begins[:, None], WIDENING * normal(), other)
        level = np.where(begins, now + np.log(uniform()), level)
        high = np.where(begins, whole, high)
        low = np.where(begins, whole - 2 * math.pi, low)
        angle = np.where(begins, whole, low + (high - low) * uniform())

        trial = centre + (e - centre) * np.cos(angle)[:, None] + other * np.sin(angle)[:, None]
        value = log_ratio(trial)
        begins = value >= level  # also where both are -inf: such a chain is not stuck
        e, now = np.where(begins[:, None], trial, e), np.where(begins, value, now)
        low = np.where(angle < 0, angle, low)
        high = np.where(angle >= 0, angle, high)

        done += begins
        number = (done - BURN_IN) // THINNING - 1
        due = begins & ((done - BURN_IN) % THINNING == 0) & (number >= 0) & (number < KEPT)
        kept[due, number[due]] = e[due]
    return torch.from_numpy(mean + sd * kept.reshape(CHAINS * KEPT, -1))
