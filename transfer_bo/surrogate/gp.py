"""The surrogate: a Gaussian process over (HPs, scale) with a loss law, a bowl and a drifting optimum inside.

The landscape f(x; θ) is linearised at its most probable θ̂ (Gauss-Newton, repeated until it rests). With a
normal prior on θ that makes y a Gaussian process, with the tangent kernel J(x) Σ0 J(x')ᵀ. To it come

    jitter     τ² (∂f/∂u · ∂f'/∂u) k(s, s')     each scale's optimum lies a little off the straight path
    residual   r² Matérn(v - ψ(s)) RBF(s)       what the bowl cannot say; it drifts along with the optimum
    level      l² Σ_a min(|s_a|, |s'_a|)        the loss law's own error, growing away from the base
    past       o² + η² (∂f/∂u · ∂f'/∂u) + r² Matérn(...) RBF(...)      of two runs of the same past study
    noise      σ² + (λ · excess)² + failed²     far from the optimum the bowl is only roughly right

A run that ended far above the best of its scale has failed (`_failed`): `failed` is by how much more than a
run that has not, so that it says "bad" and no more than that, however bad it is.

A past study has losses of another level, an optimum about η octaves away in each HP, and its own residual
beside the common one. η is learned for each past study: the weight of what it says of where the optimum is.

so the optimum at a scale nobody has run has a posterior with an honest width: var(u + B s) and at least τ².

Symbols: n runs, X (n x (d+k+a+q)), y (n) = transformed loss, smaller is better; Σ0 = prior covariance of θ;
J = ∂f/∂θ (n x p); others as in `landscape`. Double precision throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import gpytorch
import numpy as np
import torch
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.model import FantasizeMixin
from botorch.sampling.base import MCSampler
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from scipy.optimize import minimize
from torch import Tensor

from transfer_bo.surrogate.landscape import FLATTEN, Landscape

__all__ = [
    "FLOOR",
    "RESIDUAL",
    "LandscapeGP",
    "LandscapeKernel",
    "OptimumPosterior",
    "fit",
    "noise_parts",
    "normal_draws",
    "scales_misfit",
]

JITTER_REACH = 0.7
"""Doublings over which two scales share the jitter of their optimum."""
RESIDUAL_REACH_S = 4.0
"""Doublings of an axis over which the residual keeps its shape."""
TOLERANCE = 0.15
"""λ: the bowl's own relative error, so that a run 50% above the optimum is known to 7.5%."""
FAILED_MEDIANS = 5.0
"""A run has failed from so many times the median of what runs end above the best of their scale, if the bowl
flattens there too: it cannot follow such a run, and the residual must not. In a metric that spans decades a
large value is nothing odd."""
STUDENT = 5.0
"""Degrees of freedom of the weights that keep one odd run from bending the bowl."""
PLANNED = 16
"""About how many runs, or bundles of them, a plan looks ahead."""
DRAWS = 256
"""Draws that tell each contender's chance to be the best."""
MEDIAN_CHI2 = 0.455
"""Median of the square of a standard normal."""
ROUNDS = 3
"""How often the bowl is re-linearised and the scales refitted."""
ITERATIONS = 15
"""Steps of a refit of the scales."""
FITTED = 256
"""The scales are fitted to at most so many runs; everything else uses all."""
SCALES = {"jitter": (0.2, 0.4), "residual": (0.004, 1.2), "level": (0.01, 0.7), "floor": (0.003, 1.5)}
"""Prior of each scale: centre, and sd of its logarithm. Jitter in octaves, the others in ln loss."""
JITTER, RESIDUAL, LEVEL, FLOOR = map(list(SCALES).index, ("jitter", "residual", "level", "floor"))
"""Where each stands among the scales."""
PAST_SHIFT = (0.5, 1.0)
"""Prior of η, octaves: centre, and sd of its logarithm."""
PAST_LEVEL = 1.0
"""o, ln loss: another data set may well have losses e times as large."""
REACH_SPREAD, REACH_CATEGORY = 0.5, 1.5
"""Prior of the residual's reach: centred on half the range of an HP, or on so many choices; sd of its log."""
WIDEST, REACH_WIDEST = 5.0, 2.0
"""How many prior sd the fitted scales, and the reach, may lie off. What changes within a fifth of a range is
noise: a surface that follows it would send the search after one lucky seed, again and again."""


class LandscapeKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]  # gpytorch has no types
    """Covariance of the linearised landscape at `theta`, its jitter, residual and level error.

    Positive scales, learned, kept as logarithms in `scales`: those of `SCALES` in their order, then η of each
    past study, then the residual's reach along each HP (octaves; for a categorical HP, choices).
    """

    def __init__(self, landscape: Landscape) -> None:
        super().__init__()
        self.landscape = landscape
        self.register_buffer("theta", landscape.mean.clone())
        coordinates = landscape.coordinates
        reach = torch.cat(
            [
                (coordinates.z_high - coordinates.z_low).clamp(min=1.0) / 2,
                torch.full((len(coordinates.categorical),), REACH_CATEGORY, dtype=torch.double),
            ]
        )
        table = torch.tensor([*SCALES.values(), *[PAST_SHIFT] * len(coordinates.sources)], dtype=torch.double)
        self.others = len(table)  # scales before the reach
        self.prior_mean = torch.cat([table[:, 0].log(), reach.log()])
        self.prior_sd = torch.cat([table[:, 1], torch.full_like(reach, REACH_SPREAD)])
        self.register_buffer("scales", self.prior_mean.clone())
        choices = [len(dim.choices) for dim in coordinates.categorical]
        self._columns = torch.repeat_interleave(torch.tensor([1] * coordinates.d + choices, dtype=torch.long))

    @property
    def jitter(self) -> Tensor:
        """τ, octaves."""
        return self.scales[JITTER].exp()  # type: ignore[no-any-return]

    @property
    def residual(self) -> Tensor:
        """r, ln loss."""
        return self.scales[RESIDUAL].exp()  # type: ignore[no-any-return]

    @property
    def level(self) -> Tensor:
        """l, ln loss per square root of a doubling."""
        return self.scales[LEVEL].exp()  # type: ignore[no-any-return]

    @property
    def floor(self) -> Tensor:
        """σ, sd of the noise of one run near the optimum, ln loss."""
        return self.scales[FLOOR].exp()  # type: ignore[no-any-return]

    @property
    def reach(self) -> Tensor:
        """Length scales of the residual for the columns of `seen` (d + k)."""
        return self.per_column(self.scales[self.others :].exp())

    @property
    def shift(self) -> Tensor:
        """η of each past study, octaves (q)."""
        return self.scales[len(SCALES) : self.others].exp()  # type: ignore[no-any-return]

    def per_column(self, reach: Tensor) -> Tensor:
        """One length per HP (d + categorical HPs) -> one per column of `seen` (d + k)."""
        return reach[self._columns]

    def per_hp(self, columns: Tensor) -> Tensor:
        """Sum over the columns of `seen` (d + k) of each HP (d + categorical HPs)."""
        sums = torch.zeros(len(self.scales) - self.others, dtype=columns.dtype)
        return sums.index_add(0, self._columns, columns)

    def jacobian(self, X: Tensor) -> Tensor:
        """J (... x n x p) at the point of linearisation."""
        J = self.landscape.jacobian(self.theta, X)
        return J if X.requires_grad else J.detach()

    def near(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Correlation of the jitter of two sets of scales; (... x n x a), (... x m x a) -> (... x n x m)."""
        return torch.exp(-0.5 * torch.cdist(s1, s2) ** 2 / JITTER_REACH**2)

    def shared(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Level error two scales share, in l²; (... x n x a), (... x m x a) -> (... x n x m)."""
        # of each axis min(|s|, |s'|) where both lie on the same side of the base, else nothing
        lengths = s1.abs().sum(-1).unsqueeze(-1) + s2.abs().sum(-1).unsqueeze(-2)
        return (lengths - torch.cdist(s1, s2, p=1.0)) / 2

    def apart(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Correlation of the residual of two scales; (... x n x a), (... x m x a) -> (... x n x m)."""
        return torch.exp(-0.5 * torch.cdist(s1, s2) ** 2 / RESIDUAL_REACH_S**2)

    def nuisance(self, X1: Tensor, X2: Tensor) -> Tensor:
        """Jitter + residual + level + past (... x n x m): everything but the tangent kernel."""
        _, _, s1 = self.landscape.split(X1)
        _, _, s2 = self.landscape.split(X2)
        part = self.landscape.part("u")
        J1 = self.jacobian(X1)[..., part]
        slopes = J1 @ (J1 if X2 is X1 else self.jacobian(X2)[..., part]).mT
        one, two = self.landscape.past(X1), self.landscape.past(X2)
        moved = self.jitter**2 * self.near(s1, s2) + (one * self.shift**2) @ two.mT
        level = self.level**2 * self.shared(s1, s2) + PAST_LEVEL**2 * one @ two.mT
        return moved * slopes + self.rest(X1, X2) + level

    def rest(self, X1: Tensor, X2: Tensor) -> Tensor:
        """Covariance of the residual (... x n x m), by the HPs as seen from their scale's optimum."""
        _, _, s1 = self.landscape.split(X1)
        _, _, s2 = self.landscape.split(X2)
        a, b = self.seen(X1) / self.reach, self.seen(X2) / self.reach
        twice = 1 + self.landscape.past(X1) @ self.landscape.past(X2).mT
        return self.residual**2 * _matern(_squared(a, b)) * self.apart(s1, s2) * twice

    def beyond(self, X1: Tensor, X2: Tensor) -> Tensor:
        """Covariance of e = residual + effects of categories (... x n x m)."""
        _, flags1, _ = self.landscape.split(X1)
        _, flags2, _ = self.landscape.split(X2)
        spread = self.landscape.sd[self.landscape.part("w")] ** 2
        return self.rest(X1, X2) + (flags1 * spread) @ flags2.mT

    def seen(self, X: Tensor) -> Tensor:
        """HPs from the optimum of their scale, in z, and one column per category (... x n x (d + choices)).

        `reach` is repeated for the choices of an HP, see `reach`. Two different choices differ in two flags,
        so each is divided by √2.
        """
        landscape = self.landscape
        v, flags, s = landscape.split(X)
        z = (v - landscape.path(self.theta, s)) @ landscape.coordinates.unmix.T
        return torch.cat([z, flags / math.sqrt(2.0)], -1)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariance of f(x1), f(x2) (... x n x m), or its diagonal."""
        scaled = self.jacobian(x1) * self.landscape.sd
        K = scaled @ (self.jacobian(x2) * self.landscape.sd).mT + self.nuisance(x1, x2)
        return torch.diagonal(K, dim1=-2, dim2=-1) if diag else K


class _LinearisedMean(gpytorch.means.Mean):  # type: ignore[misc]
    """f(x; θ̂) + J(x) (θ0 - θ̂): the prior mean of the linearised landscape."""

    def __init__(self, kernel: LandscapeKernel) -> None:
        super().__init__()
        self._kernel = [kernel]  # in a list, so that its parameters are not registered twice

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._kernel[0]
        landscape, theta = kernel.landscape, kernel.theta
        mean: Tensor = landscape.values(theta, x) + kernel.jacobian(x) @ (landscape.mean - theta)
        return mean


class LandscapeGP(gpytorch.models.ExactGP, GPyTorchModel, FantasizeMixin):  # type: ignore[misc]
    """The surrogate as a BoTorch model: `posterior(X)` is of y, transformed loss, smaller is better.

    Use `fit` to make one. `latent` gives what a BoTorch posterior cannot: the optimum at any scale.
    """

    _num_outputs = 1

    def __init__(self, X: Tensor, y: Tensor, landscape: Landscape) -> None:
        likelihood = FixedNoiseGaussianLikelihood(noise=torch.full_like(y, 1e-6))
        super().__init__(X, y, likelihood)
        self.rows, self.losses = X, y  # as gpytorch keeps them, but typed
        self.covar_module = LandscapeKernel(landscape)
        self.mean_module = _LinearisedMean(self.covar_module)
        self.landscape = landscape
        self.failed = _failed(X, y, landscape)
        self.double()

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Prior of f at rows x (... x n x (d+k+a))."""
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    @property
    def floor(self) -> float:
        """σ, the sd of the noise of one run near the optimum, ln loss."""
        return float(self.covar_module.floor)

    def noise(self, X: Tensor) -> Tensor:
        """Variance of one run about f (n), as far as it can be told from the fitted bowl."""
        return self.floor**2 + (TOLERANCE * _excess(self.landscape, self.covar_module.theta, X)) ** 2

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> LandscapeGP:
        """The model after runs X (... x n x (d+k+a)), y = Y (... x n x 1); `latent` does not see them."""
        noise = self.noise(X).unsqueeze(-1).expand(Y.shape) if noise is None else noise
        return cast("LandscapeGP", super().condition_on_observations(X, Y, noise=noise, **kwargs))

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any
    ) -> LandscapeGP:
        """The model after runs at X whose outcomes are drawn by the sampler: what look-ahead needs."""
        noise = self.noise(X).unsqueeze(-1) if observation_noise is None else observation_noise
        return super().fantasize(X, sampler, observation_noise=noise, **kwargs)

    @torch.no_grad()
    def latent(self, s: Tensor, x: Tensor | None = None, pending: Tensor | None = None) -> OptimumPosterior:
        """Posterior of θ and of the jitter of the optimum at a scale, given all runs.

        Args:
            s: the scale (a).
            x: a row at that scale; its residual and level error join the latent vector.
            pending: rows (m x (d+k+a)) that are running: they narrow the posterior but do not move it.
        """
        return OptimumPosterior(self, s, x, pending)


class OptimumPosterior:
    """ξ = (θ, δ, ρ): landscape parameters, jitter of the optimum at one scale, error of f at one row there.

    Attributes:
        mean: posterior mean of ξ (p + d, or p + d + 1 with a row).
        covariance: posterior covariance of ξ.
    """

    def __init__(self, model: LandscapeGP, s: Tensor, x: Tensor | None, pending: Tensor | None) -> None:
        self.model, self.kernel, self.landscape = model, model.covar_module, model.landscape
        self.s, self.x = s, x
        X, y = model.rows, model.losses
        noise = model.likelihood.noise.detach()
        if pending is not None and len(pending):
            X, noise = torch.cat([X, pending]), torch.cat([noise, model.noise(pending)])
        self.X = X
        C = self.kernel(X, X).to_dense() + torch.diag(noise)
        self._cholesky = torch.linalg.cholesky(C)
        cross = self.cross(X)
        solved = torch.cholesky_solve(cross, self._cholesky)  # n x latent
        self._half = torch.linalg.solve_triangular(self._cholesky, cross, upper=False)
        surprise = torch.zeros(len(X), dtype=y.dtype)
        surprise[: len(y)] = y - model.mean_module(X[: len(y)])
        if len(X) > len(y):  # a pending run is believed to end as predicted
            known = torch.linalg.cholesky(C[: len(y), : len(y)])
            weights = torch.cholesky_solve(surprise[: len(y), None], known)
            surprise[len(y) :] = (C[len(y) :, : len(y)] @ weights).squeeze(-1)
        self._whitened = torch.linalg.solve_triangular(self._cholesky, surprise[:, None], upper=False)[:, 0]
        self.mean = self.prior_mean() + solved.T @ surprise
        self.covariance = self.prior_covariance() - cross.T @ solved

    def prior_mean(self) -> Tensor:
        """E ξ before any run."""
        extra = self.landscape.d + (self.x is not None)
        return torch.cat([self.landscape.mean, torch.zeros(extra, dtype=torch.double)])

    def prior_covariance(self) -> Tensor:
        """Cov ξ before any run (diagonal)."""
        parts = [
            self.landscape.sd**2,
            self.kernel.jitter**2 * torch.ones(self.landscape.d, dtype=torch.double),
        ]
        if self.x is not None:
            x = self.x[None]
            parts.append(
                (self.kernel.residual**2 + self.kernel.level**2 * self.s.abs().sum())
                * torch.ones_like(x[0, :1])
            )
        return torch.diag(torch.cat(parts))

    def cross(self, X: Tensor) -> Tensor:
        """Cov(f(X), ξ) before any run (n x latent)."""
        J = self.kernel.jacobian(X)
        _, _, s = self.landscape.split(X)
        near = self.kernel.near(s, self.s[None])
        slopes = J[:, self.landscape.part("u")]
        parts = [J * self.landscape.sd**2, self.kernel.jitter**2 * near * slopes]
        if self.x is not None:
            x = self.x[None]
            slope = self.kernel.jacobian(x)[:, self.landscape.part("u")]
            jitter = self.kernel.jitter**2 * near * (slopes @ slope.T)
            parts.append(self.kernel.nuisance(X, x) - jitter)
        return torch.cat(parts, -1)

    def path_map(self) -> Tensor:
        """T (d x latent): the optimum at the scale is T ξ (plus nothing: ψ is linear in θ)."""
        d, p = self.landscape.d, self.landscape.p
        T = torch.zeros(d, self.mean.numel(), dtype=torch.double)
        T[:, self.landscape.part("u")] = torch.eye(d, dtype=torch.double)
        T[:, self.landscape.part("beta")] = _blocks(self.landscape.slopes(self.s).unsqueeze(-2))
        T[:, p : p + d] = torch.eye(d, dtype=torch.double)
        return self.landscape.coordinates.mix @ T

    def optimum(self) -> tuple[Tensor, Tensor]:
        """Posterior mean (d) and covariance (d x d) of the optimum v* at the scale."""
        T = self.path_map()
        return T @ self.mean, T @ self.covariance @ T.T

    def beyond(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd of e = residual + effects of categories at rows X (m); differentiable."""
        k = self.kernel.beyond(self.X, X)
        known = torch.linalg.solve_triangular(self._cholesky, k, upper=False)
        _, flags, _ = self.landscape.split(X)
        spread = self.landscape.sd[self.landscape.part("w")] ** 2
        prior = self.kernel.residual**2 + flags.square() @ spread
        return known.T @ self._whitened, (prior - known.square().sum(0)).clamp(min=1e-12).sqrt()

    def values(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior of f at rows X (m): mean (m), covariance (m x m), and what of K(runs, X) is explained."""
        k = self.kernel(self.X, X).to_dense()  # n x m
        explained = torch.linalg.solve_triangular(self._cholesky, k, upper=False)
        covariance = self.kernel(X, X).to_dense() - explained.T @ explained
        return self.model.mean_module(X) + explained.T @ self._whitened, covariance, explained

    def drift(self) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd of the optimum's drift along each axis, octaves per doubling (each d x a)."""
        part, d, a = self.landscape.part("beta"), self.landscape.d, self.landscape.a
        rows = _blocks(self.landscape.trade)
        variance = torch.einsum("ij,jk,ik->i", rows, self.covariance[part, part], rows).clamp(min=0)
        return (rows @ self.mean[part]).reshape(d, a), variance.sqrt().reshape(d, a)

    @torch.no_grad()
    def plan(
        self, X: Tensor, costs: Tensor, left: float, optimum_candidates: Tensor, generator: torch.Generator
    ) -> list[int]:
        """Runs that together most lower the expected excess loss at the scale, for what is left to spend.

        The excess has two parts. That of setting the HPs to the posterior mean of the bowl's optimum v* is
        tr(H Cov v*). That of what the bowl does not say, e = residual + categories, is for the best guess ĵ
        among optimum_candidates the sum over j of P(j is best) sd(e_j - e_ĵ). A run lowers both in closed form. Runs
        are added by what they lower per cost, each given those before. The first run at a new rung tells
        little but the level of the loss there, so for each rung there is also a plan that begins with a pair
        at it; the best plan wins.

        Args:
            X: rows to pick from (m x (d+k+a)).
            costs: of one run at each row (m); equal costs mean the same rung.
            left: what may be spent.
            optimum_candidates: rows at the scale that is judged (j x (d+k+a)).
            generator: source of randomness.

        Returns:
            Indices of the picked rows, at least one; the one that alone lowers most per cost comes first.
        """
        mean, joint, _ = self.values(optimum_candidates)
        draws = normal_draws(mean, joint, DRAWS, generator)
        chance = torch.bincount(draws.argmin(-1), minlength=len(mean)).double() / DRAWS
        _, V0, explained = self.values(X)
        # bowl: Cov(f(x), H^(1/2) v*)
        H = self.landscape.curvature(self.kernel.theta, self.s)
        towards = self.path_map().T @ torch.linalg.cholesky(H)
        b0 = (self.cross(X) - explained.T @ self._half) @ towards
        # beyond the bowl: Cov(f(x), e_j - e_guess) and var(e_j - e_guess)
        known = torch.linalg.solve_triangular(
            self._cholesky, self.kernel.beyond(self.X, optimum_candidates), upper=False
        )
        c = self.kernel.beyond(X, optimum_candidates) - explained.T @ known
        e = self.kernel.beyond(optimum_candidates, optimum_candidates) - known.T @ known
        guess = int(mean.argmin())
        c0 = c - c[:, guess, None]
        var0 = (e.diagonal() + e[guess, guess] - 2 * e[guess]).clamp(min=0)
        bulk = (left / (PLANNED * costs)).floor().clamp(min=1.0)  # cheap runs are planned in bundles
        price, noise = bulk * costs, self.model.noise(X) / bulk
        best: tuple[float, list[int]] = (-1.0, [])
        alone = torch.empty(0)
        for rung in [None, *sorted(set(costs.tolist()))]:
            V, b, c, var, budget, total, picks = V0, b0, c0, var0, left, 0.0, list[int]()
            while not picks or bool((price <= budget * (1 + 1e-9)).any()):
                forced = rung is not None and len(picks) < 2
                allowed = costs == rung if forced else price <= budget * (1 + 1e-9)
                if not picks and not bool(allowed.any()):
                    allowed = costs == costs.min()
                V_run = V.diagonal() + noise
                lower = (var - c**2 / V_run[:, None]).clamp(min=0)
                drop = (b**2).sum(-1) / V_run + (var.sqrt() - lower.sqrt()) @ chance
                alone = alone if len(alone) else drop / costs
                i = int(torch.where(allowed, drop / price, -1.0).argmax())
                if picks and forced and price[i] > budget * (1 + 1e-9):
                    break
                total, budget = total + float(drop[i]), budget - float(price[i])
                picks.append(i)
                weight = V[:, i] / (V[i, i] + noise[i])
                b, c, var = b - torch.outer(weight, b[i]), c - torch.outer(weight, c[i]), lower[i]
                V = V - torch.outer(weight, V[i])
            if total > best[0] and (budget >= -1e-9 * left or not best[1]):
                best = total, picks
        return sorted(best[1], key=lambda i: -float(alone[i]))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of ξ (count x latent)."""
        return normal_draws(self.mean, self.covariance, count, generator)


def normal_draws(mean: Tensor, covariance: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws of a normal vector (count x n); the covariance may be singular, the mean n or count x n."""
    values, vectors = torch.linalg.eigh(covariance)
    half = vectors * values.clamp(min=0).sqrt()
    standard = torch.randn(count, len(values), dtype=torch.double, generator=generator)
    draws: Tensor = mean + standard @ half.T
    return draws


def fit(X: Tensor, y: Tensor, landscape: Landscape, near: LandscapeGP | None = None) -> LandscapeGP:
    """Fit the surrogate to runs.

    Args:
        X: rows of `Coordinates.row` (n x (d+k+a)), double.
        y: transformed losses (n), smaller is better.
        landscape: the shape and its priors.
        near: a fit to the same runs with priors that hardly differ, to start from.
    """
    model = LandscapeGP(X, y, landscape)
    kernel = model.covar_module
    if near is None:
        theta = _settle(model, _first_guess(X, y, landscape))
        kernel.scales = _first_scales(model, theta)
    else:
        kernel.scales = near.covar_module.scales
        theta = _settle(model, near.covar_module.theta)
    for _ in range(ROUNDS if near is None else 1):
        kernel.theta = theta
        kernel.scales = _fit_scales(model)
        theta = _settle(model, theta)
    kernel.theta = theta
    model.eval()
    return model


@torch.no_grad()
def _first_scales(model: LandscapeGP, theta: Tensor) -> Tensor:
    """Logarithms of the scales to start from: noise and residual as large as what the bowl leaves over."""
    scales: Tensor = model.covar_module.prior_mean.clone()
    left = (model.losses - model.landscape.values(theta, model.rows)) ** 2 / MEDIAN_CHI2
    sd = left.median().sqrt().clamp(min=1e-6)
    scales[RESIDUAL] = torch.maximum(scales[RESIDUAL], sd.log())
    scales[FLOOR] = torch.maximum(scales[FLOOR], (sd / 2).log())
    return scales


def _fit_scales(model: LandscapeGP) -> Tensor:
    """The most probable logarithms of the scales for the current linearisation and weights of the runs."""
    kernel, misfit = model.covar_module, scales_misfit(model)

    def objective(
        at: np.ndarray[Any, np.dtype[np.float64]],
    ) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
        value, gradient = misfit(torch.from_numpy(at))
        return value, gradient.numpy()

    widest = torch.full_like(kernel.prior_sd, REACH_WIDEST)
    widest[: kernel.others] = WIDEST
    low, high = kernel.prior_mean - widest * kernel.prior_sd, kernel.prior_mean + widest * kernel.prior_sd
    found = minimize(
        objective,
        kernel.scales.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=torch.stack([low, high], -1).tolist(),
        options={"maxiter": ITERATIONS},
    )
    return torch.tensor(found.x, dtype=torch.double)


def scales_misfit(model: LandscapeGP) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Minus the log posterior density of the scales, and its gradient, as a function of their logarithms.

    Marginal likelihood, and a normal prior on each logarithm; but for a constant. Of many runs FITTED are
    used, evenly in time.
    The gradient is by hand for speed. With C the covariance of the runs, b their losses minus the prior mean
    and G = (C⁻¹ - C⁻¹b bᵀC⁻¹) / 2, that by any scale is the sum of the elements of G ∘ ∂C.
    """
    kernel, landscape = model.covar_module, model.landscape
    keep = torch.linspace(0, len(model.losses) - 1, min(len(model.losses), FITTED)).long()
    X, y = model.rows[keep], model.losses[keep]
    weight, extra = (part[keep] for part in noise_parts(model))  # the floor between them is fitted
    n, J, past = len(y), kernel.jacobian(X), landscape.past(X)
    slopes = J[:, landscape.part("u")]
    slopes = slopes @ slopes.T
    _, _, s = landscape.split(X)
    same = past @ past.T
    fixed = (J * landscape.sd**2) @ J.T + PAST_LEVEL**2 * same + torch.diag(weight * extra)
    # C is the sum of `fixed`, of `parts` times the square of a scale each, and of the residual
    squared_scales = [JITTER, LEVEL, FLOOR, *range(len(SCALES), kernel.others)]
    parts = torch.stack(
        [
            kernel.near(s, s) * slopes,
            kernel.shared(s, s),
            torch.diag(weight),
            *[torch.outer(one, one) * slopes for one in past.T],
        ]
    ).flatten(1)
    apart = kernel.apart(s, s) * (1 + same)
    seen = kernel.seen(X)
    b = y - model.mean_module(X)
    mean, sd = kernel.prior_mean, kernel.prior_sd

    def misfit(scales: Tensor) -> tuple[float, Tensor]:
        square = (2 * scales).exp()
        size, reach = square[squared_scales], scales[kernel.others :].exp()
        scaled = seen / kernel.per_column(reach)
        squared = _squared(scaled, scaled)
        rest = _matern(squared).mul_(apart).mul_(square[RESIDUAL])
        C = (size @ parts).reshape(n, n).add_(fixed).add_(rest)
        whiten = torch.linalg.cholesky(C)
        inverse = torch.cholesky_inverse(whiten)
        explained = inverse @ b
        off = (scales - mean) / sd
        value = whiten.diagonal().log().sum() + 0.5 * b @ explained + 0.5 * off @ off
        G = torch.addr(inverse, explained, explained, alpha=-1).mul_(0.5)
        # the sum over pairs (i, j) of W_ij (x_i - x_j)², for each column x of what is seen
        W = _matern_slope(squared).mul_(apart).mul_(G).mul_(square[RESIDUAL])
        pairs = 2 * (W.sum(0) @ scaled**2 - (scaled * (W @ scaled)).sum(0))
        gradient = off / sd
        gradient[squared_scales] += 2 * size * (parts @ G.flatten())
        gradient[RESIDUAL] += 2 * torch.dot(rest.flatten(), G.flatten())
        gradient[kernel.others :] -= 2 * kernel.per_hp(pairs)
        return float(value), gradient

    return misfit


def noise_parts(model: LandscapeGP) -> tuple[Tensor, Tensor]:
    """W, x (each n) of the fitted noise w (σ² + x) of each run: odd ones have a larger w, bad ones more x."""
    kernel = model.covar_module
    extra = (TOLERANCE * _excess(model.landscape, kernel.theta, model.rows)) ** 2 + model.failed**2
    return model.likelihood.noise.detach() / (kernel.floor**2 + extra), extra


def _blocks(blocks: Tensor) -> Tensor:
    """Blocks (d x m x n) along the diagonal of a matrix (dm x dn), also where there are none."""
    d, m, n = blocks.shape
    along = torch.zeros(d, m, d, n, dtype=blocks.dtype)
    i = torch.arange(d)
    along[i, :, i] = blocks
    return along.reshape(d * m, d * n)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (... x n x m) of rows; by the product, as n x m x d would not fit for many runs."""
    lengths = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * a @ b.mT).clamp_(min=0)


def _matern(squared: Tensor) -> Tensor:
    """Matérn-5/2 correlation at squared distances."""
    r = (5.0 * squared).add_(1e-12).sqrt_()  # in place: of thousands of runs these are large
    return (r.square().div_(3).add_(r).add_(1)).mul_(torch.exp(-r))


def _matern_slope(squared: Tensor) -> Tensor:
    """Its derivative by the squared distances."""
    r = (5.0 * squared).add_(1e-12).sqrt_()
    return (r + 1).mul_(torch.exp(-r)).mul_(-5 / 6)


def _excess(landscape: Landscape, theta: Tensor, X: Tensor) -> Tensor:
    """The fitted bowl at each row (n): ln loss above the optimum of its scale."""
    v, _, s = landscape.split(X)
    return landscape.bowl(theta, v, s)


def _failed(X: Tensor, y: Tensor, landscape: Landscape) -> Tensor:
    """By how much each run ended above the worst of its scale and study that is no failure yet (n)."""
    places = X[:, landscape.d + landscape.k :]
    same = (places.unsqueeze(1) == places.unsqueeze(0)).all(-1)
    above = y - torch.where(same, y, math.inf).amin(-1)
    beaten = above[above > 0]
    usual = float(beaten.median()) if len(beaten) else 0.0
    return (above - max(FLATTEN, FAILED_MEDIANS * usual)).clamp(min=0)


def _first_guess(X: Tensor, y: Tensor, landscape: Landscape) -> Tensor:
    """θ at its prior mean, with the optimum moved halfway to where the best quarter of the runs lies."""
    theta = landscape.mean.clone()
    best = X[y.argsort()[: max(1, len(y) // 4)], : landscape.d].mean(0)
    theta[landscape.part("u")] = landscape.coordinates.unmix @ best / 2
    return theta


def _weights(C: Tensor, surprise: Tensor) -> Tensor:
    """By how much to widen the noise of each run (n, at least 1), so that an odd one does not bend the bowl.

    Student's weights for the leave-one-out errors. Where most runs are off, the noise or the residual is too
    small and no run is odd: only what is odd beside the median run counts.
    """
    precision = torch.linalg.inv(C)
    misfit = (precision @ surprise) ** 2 / precision.diagonal()
    misfit = misfit / (misfit.median() / MEDIAN_CHI2).clamp(min=1.0)
    weights: Tensor = ((STUDENT + misfit) / (STUDENT + 1)).clamp(min=1.0)
    return weights


@torch.no_grad()
def _settle(model: LandscapeGP, theta: Tensor, steps: int = 15) -> Tensor:
    """The most probable θ for given kernel scales: Gauss-Newton with Levenberg damping.

    The noise of a run depends on its excess over the bowl, so it is frozen while the bowl moves: a bowl that
    could explain a misfit by calling it noise would do so.
    """
    landscape, kernel = model.landscape, model.covar_module
    X, y = model.rows, model.losses
    kernel.theta = theta
    noise, nuisance = model.noise(X) + model.failed**2, kernel.nuisance(X, X)
    if len(y) > landscape.d + 3:
        noise = noise * _weights(nuisance + torch.diag(noise), y - landscape.values(theta, X))
    model.likelihood.noise_covar.initialize(noise=noise)
    whiten = torch.linalg.cholesky(nuisance + torch.diag(noise))

    def score(at: Tensor) -> tuple[Tensor, Tensor, float]:
        b = torch.linalg.solve_triangular(whiten, (y - landscape.values(at, X))[:, None], upper=False)[:, 0]
        e = (at - landscape.mean) / landscape.sd
        return b, e, float(0.5 * (b @ b + e @ e))

    b, e, value = score(theta)
    damping = 1e-2
    identity = torch.eye(landscape.p, dtype=torch.double)
    for _ in range(steps):
        A = torch.linalg.solve_triangular(whiten, landscape.jacobian(theta, X) * landscape.sd, upper=False)
        gain = A.T @ b - e
        normal = A.T @ A + identity
        while damping < 1e6:
            trial = theta + landscape.sd * torch.linalg.solve(normal + damping * identity, gain)
            new_b, new_e, new_value = score(trial)
            if new_value < value:
                break
            damping *= 8
        else:
            break
        finished = value - new_value < 1e-4
        theta, b, e, value = trial, new_b, new_e, new_value
        damping = max(damping / 8, 1e-6)
        if finished:
            break
    return theta
