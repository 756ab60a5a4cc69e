"""The covariance of the loss over (HPs, scale): a linearised landscape and what it leaves over.

The landscape f(x; θ) is linearised at θ̂. With a normal prior on θ that makes y a Gaussian process with the
tangent kernel J(x) Σ0 J(x')ᵀ. These are added:

    jitter     τ² (∂f/∂u · ∂f'/∂u) RBF(s, s')   each scale's optimum lies a little off the straight path
    residual   r² Matérn(z~, z~') RBF(s, s')    what the bowl cannot say; it drifts along with the optimum
    level      l² Σ_a min(|s_a|, |s'_a|)        the loss law's own error; 0 where s_a and s'_a differ in sign
    source     o² + φ² (∂f/∂u · ∂f'/∂u) + r² Matérn(...) RBF(...)      of two runs of the same source study
    seed       ς²                                                      of two runs that share a seed

z~ = (M⁻¹(v - ψ(s)), categories) are the HPs as seen from the optimum of their scale, in z, and the one-hot
categories; RBF is the squared exponential of the distance of two scales. The residual has the same variance
everywhere; the level's grows with the distance from the base along every axis.

A source study has losses of another level, an optimum about φ octaves away in each HP, and its own residual
beside the common one. φ is learned for each source study: the weight of what it says of where the optimum is.

Runs of one scale with the same initial weights and data order have part of their noise in common: an offset
of the loss for each shared seed, which does not average out over these runs. Its sd is ς = ρ σ; a run with a
seed of its own has such an offset for itself, as part of its noise.

Symbols: x, v, z, s, M, d, k, a, q as in `coordinates`; f, θ, u, ψ, p as in `landscape`; θ̂ = point of
linearisation, θ0 and Σ0 = prior mean and diagonal prior covariance of θ, J = ∂f/∂θ (p) at θ̂; τ, r, l, σ, φ,
ρ and the residual's lengthscales ℓ are `KernelHyperparameters`, o is `priors.SOURCE_LEVEL_SD`; h = number of
hyperparameters, column = column of z~; c = 1 if any runs share a seed, else 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import gpytorch
import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import Landscape

__all__ = [
    "FIRST_SOURCE",
    "JITTER_INDEX",
    "LEVEL_INDEX",
    "NOISE_SD_INDEX",
    "RESIDUAL_INDEX",
    "KernelHyperparameters",
    "LandscapeKernel",
    "LinearisedMean",
    "hyperparameter_prior",
    "matern",
    "matern_slope",
    "squared_distances",
]

JITTER_LENGTHSCALE = 0.7
"""Doublings over which two scales share the jitter of their optimum; weak."""

RESIDUAL_SCALE_LENGTHSCALE = 4.0
"""Doublings of an axis over which the residual keeps its shape; weak."""

JITTER_INDEX = 0
"""Where ln τ stands in the vector of all logarithms, see `KernelHyperparameters.to_log_vector`."""

RESIDUAL_INDEX = 1
"""Where ln r stands."""

LEVEL_INDEX = 2
"""Where ln l stands."""

NOISE_SD_INDEX = 3
"""Where ln σ stands."""

FIRST_SOURCE = 4
"""From here on ln φ of the source studies stand; ln ρ, if runs share seeds, and ln ℓ of the HPs follow."""


@dataclass(frozen=True, eq=False)
class KernelHyperparameters:
    """Positive hyperparameters of the kernel and of the noise, kept as natural logarithms.

    Attributes:
        log_jitter: ln τ; τ in octaves.
        log_residual: ln r; r in ln loss.
        log_level: ln l; l in ln loss per square root of a doubling.
        log_noise_sd: ln σ, the sd of the noise of one run near the optimum; σ in ln loss.
        log_source_shift_sd: ln φ of each source study (q); φ in octaves.
        log_seed_ratio: ln ρ, the sd of the noise that runs with the same seed have in common over that of the
            rest of their noise, σ (c).
        log_lengthscale: ln ℓ of the residual along each HP, numeric ones first (d + categorical HPs); ℓ in
            octaves, or in choices.
    """

    log_jitter: Float[Tensor, ""]
    log_residual: Float[Tensor, ""]
    log_level: Float[Tensor, ""]
    log_noise_sd: Float[Tensor, ""]
    log_source_shift_sd: Float[Tensor, " q"]
    log_seed_ratio: Float[Tensor, " c"]
    log_lengthscale: Float[Tensor, " hps"]

    @classmethod
    def from_log_vector(
        cls, logs: Float[Tensor, " h"], sources: int, shares_seeds: bool = False
    ) -> KernelHyperparameters:
        """The inverse of `to_log_vector`, for so many source studies, and runs that share seeds or do not."""
        own = (logs[JITTER_INDEX], logs[RESIDUAL_INDEX], logs[LEVEL_INDEX], logs[NOISE_SD_INDEX])
        seed = FIRST_SOURCE + sources
        lengthscale = seed + shares_seeds
        return cls(*own, logs[FIRST_SOURCE:seed], logs[seed:lengthscale], logs[lengthscale:])

    @classmethod
    def of(cls, logs: Float[Tensor, " h"], coordinates: Coordinates) -> KernelHyperparameters:
        """`from_log_vector` for the source studies and shared seeds of some coordinates."""
        return cls.from_log_vector(logs, len(coordinates.sources), bool(coordinates.seeds))

    def to_log_vector(self) -> Float[Tensor, " h"]:
        """All logarithms in the order of the fields: what optimizer and sampler work on."""
        return torch.cat([getattr(self, field.name).reshape(-1) for field in fields(self)])

    @property
    def jitter(self) -> Tensor:
        """τ, octaves."""
        return self.log_jitter.exp()

    @property
    def residual(self) -> Tensor:
        """r, ln loss."""
        return self.log_residual.exp()

    @property
    def level(self) -> Tensor:
        """l, ln loss per square root of a doubling."""
        return self.log_level.exp()

    @property
    def noise_sd(self) -> Tensor:
        """σ, ln loss."""
        return self.log_noise_sd.exp()

    @property
    def seed_ratio(self) -> Float[Tensor, " c"]:
        """ρ; none if no runs share a seed."""
        return self.log_seed_ratio.exp()

    @property
    def seed_variance(self) -> Float[Tensor, ""]:
        """ς², (ln loss)²; 0 if no runs share a seed."""
        return self.noise_sd**2 * self.seed_ratio.square().sum()

    @property
    def run_sd(self) -> Float[Tensor, ""]:
        """sd of the noise of one run near the optimum with a seed of its own, ln loss."""
        return (self.noise_sd**2 + self.seed_variance).sqrt()

    @property
    def source_shift_sd(self) -> Tensor:
        """φ of each source study, octaves (q)."""
        return self.log_source_shift_sd.exp()

    @property
    def lengthscale(self) -> Tensor:
        """ℓ along each HP, octaves or choices (d + categorical HPs)."""
        return self.log_lengthscale.exp()


def hyperparameter_prior(coordinates: Coordinates) -> tuple[Float[Tensor, " h"], Float[Tensor, " h"]]:
    """Mean and sd of the normal prior of the logarithms of the hyperparameters."""
    common = [priors.JITTER, priors.RESIDUAL, priors.LEVEL, priors.NOISE_SD]
    common += [priors.SOURCE_SHIFT_SD] * len(coordinates.sources)
    common += [priors.SEED_RATIO] * bool(coordinates.seeds)
    table = torch.tensor(common, dtype=torch.double)

    width = (coordinates.z_high - coordinates.z_low).clamp(min=1.0)
    category = torch.full((len(coordinates.categorical),), priors.LENGTHSCALE_CATEGORY, dtype=torch.double)
    lengthscale = torch.cat([width * priors.LENGTHSCALE_RANGE_SHARE, category])

    mean = torch.cat([table[:, 0].log(), lengthscale.log()])
    sd = torch.cat([table[:, 1], torch.full_like(lengthscale, priors.LENGTHSCALE_LOG_SD)])
    return mean, sd


class LandscapeKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]  # gpytorch has no types
    """Covariance of the landscape linearised at `theta`, of its jitter, residual and level error.

    Nothing is reassigned: another θ̂ or other hyperparameters are another kernel.

    Args:
        landscape: the shape and its priors.
        theta: point of linearisation θ̂ (p).
        hyperparameters: of jitter, residual, level error and source studies.
    """

    def __init__(
        self, landscape: Landscape, theta: Float[Tensor, " p"], hyperparameters: KernelHyperparameters
    ) -> None:
        super().__init__()
        self.landscape = landscape
        self.theta = theta
        self.hyperparameters = hyperparameters

        choices = [len(dim.choices) for dim in landscape.coordinates.categorical]
        widths = torch.tensor([1] * landscape.d + choices, dtype=torch.long)
        self._hp_of_column = torch.repeat_interleave(widths)

    def per_column(self, lengthscale: Float[Tensor, " hps"]) -> Float[Tensor, " column"]:
        """One length per HP -> one per column of `residual_inputs`."""
        return lengthscale[self._hp_of_column]

    def sum_by_hp(self, columns: Float[Tensor, " column"]) -> Float[Tensor, " hps"]:
        """Sum over the columns of `residual_inputs` of each HP."""
        count = self.landscape.d + len(self.landscape.coordinates.categorical)
        return torch.zeros(count, dtype=columns.dtype).index_add(0, self._hp_of_column, columns)

    def jacobian(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b p"]:
        """J at the point of linearisation."""
        return self.landscape.jacobian(self.theta, X)

    def linearised_mean(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b"]:
        """f(x; θ̂) + J(x) (θ0 - θ̂): the prior mean of the linearised landscape."""
        landscape = self.landscape
        return landscape.values(self.theta, X) + self.jacobian(X) @ (landscape.mean - self.theta)

    def jitter_correlation(
        self, s1: Float[Tensor, "*#b n a"], s2: Float[Tensor, "*#b m a"]
    ) -> Float[Tensor, "*b n m"]:
        """Correlation of the jitter of two sets of scales."""
        return torch.exp(-0.5 * torch.cdist(s1, s2) ** 2 / JITTER_LENGTHSCALE**2)

    def residual_scale_correlation(
        self, s1: Float[Tensor, "*#b n a"], s2: Float[Tensor, "*#b m a"]
    ) -> Float[Tensor, "*b n m"]:
        """Correlation of the residual of two sets of scales."""
        return torch.exp(-0.5 * torch.cdist(s1, s2) ** 2 / RESIDUAL_SCALE_LENGTHSCALE**2)

    def level_covariance(
        self, s1: Float[Tensor, "*#b n a"], s2: Float[Tensor, "*#b m a"]
    ) -> Float[Tensor, "*b n m"]:
        """Covariance of the level error of two sets of scales, in units of l².

        Of each axis min(|s|, |s'|) where both lie on the same side of the base, else nothing.
        """
        lengths = s1.abs().sum(-1).unsqueeze(-1) + s2.abs().sum(-1).unsqueeze(-2)
        return (lengths - torch.cdist(s1, s2, p=1.0)) / 2

    def residual_inputs(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b column"]:
        """What the residual is a function of: HPs from the optimum of their scale in z, and categories.

        Two different choices of an HP differ in two flags, so each flag is divided by √2.
        """
        landscape = self.landscape
        v, flags, s = landscape.split(X)
        z = (v - landscape.path(self.theta, s)) @ landscape.coordinates.unmix.T
        return torch.cat([z, flags / math.sqrt(2.0)], -1)

    def residual_covariance(
        self, X1: Float[Tensor, "*#b n row"], X2: Float[Tensor, "*#b m row"]
    ) -> Float[Tensor, "*b n m"]:
        """Covariance of the residual, which two runs of the same source study share twice."""
        _, _, s1 = self.landscape.split(X1)
        _, _, s2 = self.landscape.split(X2)
        lengthscale = self.per_column(self.hyperparameters.lengthscale)
        a, b = self.residual_inputs(X1) / lengthscale, self.residual_inputs(X2) / lengthscale

        twice = 1 + self.landscape.source_flags(X1) @ self.landscape.source_flags(X2).mT
        shape = self.hyperparameters.residual**2 * matern(squared_distances(a, b))
        return shape * self.residual_scale_correlation(s1, s2) * twice

    def residual_and_category_covariance(
        self, X1: Float[Tensor, "*#b n row"], X2: Float[Tensor, "*#b m row"]
    ) -> Float[Tensor, "*b n m"]:
        """Covariance of e = residual + effects of categories."""
        _, flags1, _ = self.landscape.split(X1)
        _, flags2, _ = self.landscape.split(X2)
        variance = self.landscape.sd[self.landscape.part("w")] ** 2
        return self.residual_covariance(X1, X2) + (flags1 * variance) @ flags2.mT

    def nuisance_covariance(
        self, X1: Float[Tensor, "*#b n row"], X2: Float[Tensor, "*#b m row"]
    ) -> Float[Tensor, "*b n m"]:
        """Everything but the tangent kernel: jitter + residual + level + source + seed."""
        J1 = self.jacobian(X1)
        return self.nuisance_given_jacobians(X1, X2, J1, J1 if X2 is X1 else self.jacobian(X2))

    def nuisance_given_jacobians(
        self,
        X1: Float[Tensor, "*#b n row"],
        X2: Float[Tensor, "*#b m row"],
        J1: Float[Tensor, "*#b n p"],
        J2: Float[Tensor, "*#b m p"],
    ) -> Float[Tensor, "*b n m"]:
        """`nuisance_covariance`, given the derivatives of f by θ."""
        landscape, hyperparameters = self.landscape, self.hyperparameters
        _, _, s1 = landscape.split(X1)
        _, _, s2 = landscape.split(X2)
        sources1, sources2 = landscape.source_flags(X1), landscape.source_flags(X2)

        u = landscape.part("u")
        slopes = J1[..., u] @ J2[..., u].mT
        shifts = (sources1 * hyperparameters.source_shift_sd**2) @ sources2.mT
        moved = hyperparameters.jitter**2 * self.jitter_correlation(s1, s2) + shifts

        source_level = priors.SOURCE_LEVEL_SD**2 * sources1 @ sources2.mT
        level = hyperparameters.level**2 * self.level_covariance(s1, s2) + source_level
        seed = hyperparameters.seed_variance * landscape.seed_flags(X1) @ landscape.seed_flags(X2).mT
        return moved * slopes + self.residual_covariance(X1, X2) + level + seed

    def covariance(
        self, X1: Float[Tensor, "*#b n row"], X2: Float[Tensor, "*#b m row"]
    ) -> Float[Tensor, "*b n m"]:
        """Covariance of f(x1) and f(x2)."""
        J1 = self.jacobian(X1)
        J2 = J1 if X2 is X1 else self.jacobian(X2)
        tangent = (J1 * self.landscape.sd) @ (J2 * self.landscape.sd).mT
        return tangent + self.nuisance_given_jacobians(X1, X2, J1, J2)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """`covariance`, or its diagonal: the interface of GPyTorch."""
        K = self.covariance(x1, x2)
        return torch.diagonal(K, dim1=-2, dim2=-1) if diag else K


class LinearisedMean(gpytorch.means.Mean):  # type: ignore[misc]
    """The prior mean of the linearised landscape, for GPyTorch."""

    def __init__(self, kernel: LandscapeKernel) -> None:
        super().__init__()
        self._kernel = [kernel]  # in a list, so that it is not registered as a module twice

    def forward(self, x: Tensor) -> Tensor:
        """See `LandscapeKernel.linearised_mean`."""
        return self._kernel[0].linearised_mean(x)


def squared_distances(a: Float[Tensor, "*b n c"], b: Float[Tensor, "*b m c"]) -> Float[Tensor, "*b n m"]:
    """Squared distances of rows; by the product, as n x m x c would not fit into memory for many runs."""
    lengths = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * a @ b.mT).clamp_(min=0)


def matern(squared: Tensor) -> Tensor:
    """Matérn-5/2 correlation at squared distances, elementwise."""
    r = (5.0 * squared).add_(1e-12).sqrt_()  # in place: of thousands of runs these are large
    return (r.square().div_(3).add_(r).add_(1)).mul_(torch.exp(-r))


def matern_slope(squared: Tensor) -> Tensor:
    """Derivative of `matern` by the squared distance, elementwise."""
    r = (5.0 * squared).add_(1e-12).sqrt_()
    return (r + 1).mul_(torch.exp(-r)).mul_(-5 / 6)
