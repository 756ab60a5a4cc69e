"""Draws from the posterior of the landscape itself, where its linearised form is too sure of itself.

Near its most probable parameters θ̂ the landscape is taken as linear (`gp`), which makes proposals cheap.
But a flat bowl may lie further off than a steep one, and a loss law that falls fast may level out early: such
bent ridges matter for the answer about a scale far beyond the runs. So the answer rests on draws of θ from

    p(θ | y) ∝ N(y; f(X; θ), C) N(θ; θ0, Σ0)        C = jitter + residual + level + noise

by elliptical slice sampling (Murray, Adams & MacKay 2010) about the normal approximation at θ̂, widened
(Nishihara, Murray & Adams 2014, section 3). C has scales of its own, known from few runs only: each group of
chains gets a draw of them, normal about their most probable logarithms. Given θ and the scales, the jitter δ
of the optimum at a scale and the error ρ of f at a row are normal.

The residual moves the best setting a little off the bowl's optimum ψ. In a steep bowl of curvature H by its
gradient over 2H; in a flat one by no more than to where the bowl costs as much as the residual could gain:

    ω_i ~ N(0, 1 / (1 / V + 1 / W)),    V = 5/3 (r / ℓ_i)² / (2 H_ii)²,    W = r / H_ii

Symbols: as in `landscape` and `gp`; e = (θ - θ0) / sd, standard normal before any run; r, ℓ = size and reach
of the residual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from transfer_bo.surrogate.gp import (
    FLOOR,
    LandscapeGP,
    LandscapeKernel,
    noise_parts,
    normal_draws,
    scales_misfit,
)

__all__ = ["Draws", "PosteriorSamples"]

GROUPS, CHAINS, KEPT = 16, 64, 8
"""Draws of the kernel's scales, chains run side by side, and draws kept from each of these."""
SETTLING, THINNED = 60, 6
"""Steps of each chain before its first draw, and between two draws."""
WIDENED = 2.0
"""The normal approximation that steps are drawn from is wider than the posterior by this factor."""
DIFFERENCE = 1e-3
"""Step of the differences that give the curvature of the scales' misfit, in prior sd."""


@dataclass(frozen=True)
class Draws:
    """The landscape and what it does not say, at one scale.

    Attributes:
        theta: parameters (count x p).
        optimum: ψ of the scale, jitter included, in v (count x d).
        jitter: its part that is jitter, in v (count x d).
        off: from ψ to the best setting, because of the residual, in z (count x d).
        error: residual and level error of f at the row (count); zeros without one.
        floor: sd of the noise of one run near the optimum, ln loss (count).
    """

    theta: Tensor
    optimum: Tensor
    jitter: Tensor
    off: Tensor
    error: Tensor
    floor: Tensor


class PosteriorSamples:
    """CHAINS x KEPT draws from the posterior of a fitted surrogate.

    Args:
        model: fitted.
        seed: of all its randomness.

    Attributes:
        theta: draws of the parameters (count x p), group by group.
        scales: logarithms of the kernel's scales (GROUPS x scales).
    """

    @torch.no_grad()
    def __init__(self, model: LandscapeGP, seed: int) -> None:
        self.model, self._seed = model, seed
        generator = torch.Generator().manual_seed(seed)
        kernel, X = model.covar_module, model.rows
        standard = torch.randn(GROUPS, len(kernel.scales), dtype=torch.double, generator=generator)
        self.scales = kernel.scales + standard @ _spread(model).T
        weight, extra = noise_parts(model)
        noise = weight * (self.scales[:, [FLOOR]].exp() ** 2 + extra)  # GROUPS x n
        nuisance = []
        for scales in self.scales:
            with _scaled(kernel, scales):
                nuisance.append(kernel.nuisance(X, X))
        self._whiten = torch.linalg.cholesky(torch.stack(nuisance) + torch.diag_embed(noise))
        self.theta = _chains(model, self._whiten, generator)
        self._surprise = model.losses - _values(model, self.theta)  # count x n

    @torch.no_grad()
    def at(self, s: Tensor, x: Tensor | None = None) -> Draws:
        """The draws at a scale s (a), with the error of f at one row x of it."""
        model, landscape, parts = self.model, self.model.landscape, []
        generator = torch.Generator().manual_seed(self._seed + 1)
        groups = zip(self.scales, self._surprise.chunk(GROUPS), self._whiten, strict=True)
        for scales, surprise, whiten in groups:
            with _scaled(model.covar_module, scales):
                parts.append(_conditional(model, s, x, surprise, whiten, generator))
        jitter, error, off = (torch.cat(part) for part in zip(*parts, strict=True))
        jitter = jitter @ landscape.coordinates.mix.T
        floor = self.scales[:, FLOOR].exp().repeat_interleave(len(self.theta) // GROUPS)
        return Draws(self.theta, landscape.path(self.theta, s) + jitter, jitter, off, error, floor)


@contextmanager
def _scaled(kernel: LandscapeKernel, scales: Tensor) -> Iterator[None]:
    """The kernel has other scales for a while."""
    fitted = kernel.scales
    kernel.scales = scales
    try:
        yield
    finally:
        kernel.scales = fitted


def _conditional(
    model: LandscapeGP,
    s: Tensor,
    x: Tensor | None,
    surprise: Tensor,
    whiten: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """δ (count x d), ρ (count) and ω (count x d), given y - f(X; θ) (count x n) and the kernel's scales."""
    kernel, landscape, X = model.covar_module, model.landscape, model.rows
    d = landscape.d
    _, _, at = landscape.split(X)
    near = kernel.jitter**2 * kernel.near(at, s[None])
    slopes = kernel.jacobian(X)[:, landscape.part("u")]
    prior, cross = kernel.jitter.square().repeat(d), near * slopes
    if x is not None:
        slope = kernel.jacobian(x[None])[:, landscape.part("u")]
        cross = torch.cat([cross, kernel.nuisance(X, x[None]) - near * (slopes @ slope.T)], -1)
        prior = torch.cat([prior, kernel.residual[None] ** 2 + kernel.level**2 * s.abs().sum()])
    half = torch.linalg.solve_triangular(whiten, cross, upper=False)  # n x (d + 1)
    mean = torch.linalg.solve_triangular(whiten, surprise.T, upper=False).T @ half
    both = normal_draws(mean, torch.diag(prior) - half.T @ half, len(surprise), generator)
    error = both[:, -1] if x is not None else torch.zeros(len(both), dtype=torch.double)

    mix = landscape.coordinates.mix
    H = (mix.T @ landscape.curvature(kernel.theta, s) @ mix).diagonal()
    reach = kernel.reach[:d]
    by_slope = 5 / 3 * (kernel.residual / reach) ** 2 / (2 * H) ** 2
    off = (1 / (1 / by_slope + H / kernel.residual)).sqrt()
    return (
        both[:, :d],
        error,
        off * torch.randn(len(both), d, dtype=torch.double, generator=generator),
    )


def _spread(model: LandscapeGP) -> Tensor:
    """A square root of the posterior covariance of the logarithms of the scales."""
    kernel, misfit = model.covar_module, scales_misfit(model)
    steps = torch.diag(DIFFERENCE * kernel.prior_sd)
    rises = [misfit(kernel.scales + step)[1] - misfit(kernel.scales - step)[1] for step in steps]
    H = torch.stack(rises) * kernel.prior_sd / (2 * DIFFERENCE)  # of scales in units of their prior sd
    # At a bound, or where rounding rules, the curvature may be off: never less sure than the prior.
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    root: Tensor = kernel.prior_sd[:, None] * vectors / values.clamp(min=1.0).sqrt()
    return root


def _values(model: LandscapeGP, theta: Tensor) -> Tensor:
    """F of all runs for many parameters (count x p) -> (count x n)."""
    landscape = model.landscape
    v, flags, s = landscape.split(model.rows)
    each = theta.unsqueeze(-2)
    effects = landscape.get(theta, "w") @ flags.T
    return landscape.law(each, s) + landscape.bowl(each, v, s) + effects


def _chains(model: LandscapeGP, whiten: Tensor, generator: torch.Generator) -> Tensor:
    """Draws of θ (CHAINS KEPT x p); `whiten` are the Cholesky factors of C of each group."""
    landscape = model.landscape
    centre = (model.covar_module.theta - landscape.mean) / landscape.sd
    J = landscape.jacobian(model.covar_module.theta, model.rows) * landscape.sd
    fitted = model.covar_module.nuisance(model.rows, model.rows) + torch.diag(model.likelihood.noise.detach())
    A = torch.linalg.solve_triangular(torch.linalg.cholesky(fitted), J, upper=False)
    lower = torch.linalg.cholesky(A.T @ A + torch.eye(landscape.p, dtype=torch.double))

    def normal() -> Tensor:
        standard = torch.randn(landscape.p, CHAINS, dtype=torch.double, generator=generator)
        step: Tensor = torch.linalg.solve_triangular(lower.T, standard, upper=True).T
        return step

    def log_ratio(e: Tensor) -> Tensor:
        """Logarithm of the posterior over the widened normal approximation, of each chain at its e."""
        surprise = model.losses - _values(model, landscape.mean + landscape.sd * e)
        by_group = surprise.reshape(GROUPS, CHAINS // GROUPS, -1).mT
        misfit = torch.linalg.solve_triangular(whiten, by_group, upper=False).square().sum(-2).flatten()
        from_centre = ((e - centre) @ lower).square().sum(-1) / WIDENED**2
        value: Tensor = 0.5 * (from_centre - misfit - e.square().sum(-1))
        return torch.nan_to_num(value, nan=-math.inf)

    def uniform() -> Tensor:
        return torch.rand(CHAINS, dtype=torch.double, generator=generator)

    # A step draws an arc through e and a level, and cuts the arc towards e until a point of it lies above the
    # level. Chains do not wait for each other: each begins its next step when it is done with the last.
    e = centre + normal()
    now = log_ratio(e)
    done, begins = torch.zeros(CHAINS, dtype=torch.long), torch.ones(CHAINS, dtype=torch.bool)
    other, level, angle, low, high = e, now, now, now, now
    kept = torch.empty(CHAINS, KEPT, landscape.p, dtype=torch.double)
    while bool((done < SETTLING + KEPT * THINNED).any()):
        whole = 2 * math.pi * uniform()
        other = torch.where(begins[:, None], WIDENED * normal(), other)
        level = torch.where(begins, now + uniform().log(), level)
        high = torch.where(begins, whole, high)
        low = torch.where(begins, whole - 2 * math.pi, low)
        angle = torch.where(begins, whole, low + (high - low) * uniform())
        trial = centre + (e - centre) * angle.cos()[:, None] + other * angle.sin()[:, None]
        value = log_ratio(trial)
        begins = value >= level  # also where both are -inf: such a chain is not stuck
        e, now = torch.where(begins[:, None], trial, e), torch.where(begins, value, now)
        low = torch.where(angle < 0, angle, low)
        high = torch.where(angle >= 0, angle, high)
        done += begins
        number = (done - SETTLING) // THINNED - 1
        due = begins & ((done - SETTLING) % THINNED == 0) & (number >= 0) & (number < KEPT)
        kept[due, number[due]] = e[due]
    theta: Tensor = landscape.mean + landscape.sd * kept.reshape(CHAINS * KEPT, -1)
    return theta
