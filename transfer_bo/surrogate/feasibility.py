"""Will a run diverge, or run out of memory? A logistic model whose boundary moves with scale and every HP.

    P(infeasible | x) = logistic(b + a·v + c·flags + m·s)

The coefficients have independent normal priors, other ones for each question; the posterior is Laplace's
approximation. Only typed outcomes are used: a finished or stopped run is feasible, a diverged one is not, any
other outcome says nothing. Only runs that ran out of memory lacked it. Where every run so far was feasible
(`any_infeasible` is false) a caller should not be held back by the prior alone.

Symbols: Φ = (1, v, flags, s), n x (1+d+k+a); w = (b, a, c, m); v, flags, s as in `coordinates`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.synonyms import hp_kind

__all__ = ["FeasibilityModel"]

MAX_NEWTON_STEPS = 50
"""Newton's method ends at the latest after so many steps."""

CONVERGED = 1e-8
"""It ends when no coefficient moves by more than this."""


class FeasibilityModel:
    """P(infeasible) over rows of the surrogate's input.

    Args:
        coordinates: HPs and axes.
        X: rows of the runs that are known to be feasible or not.
        infeasible: which of them were not.
        prior: prior of the coefficients, `priors.DIVERGENCE` or `priors.MEMORY`.

    Attributes:
        w: posterior mode of the coefficients (1 + d + k + a).
        covariance: of Laplace's approximation.
        any_infeasible: whether a run was infeasible.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        X: Float[Tensor, "n row"],
        infeasible: Bool[Tensor, " n"],
        prior: priors.FeasibilityPrior = priors.DIVERGENCE,
    ) -> None:
        self._columns = coordinates.d + coordinates.k + coordinates.a
        mean, sd = _prior(coordinates, prior)
        self.w, self.covariance = _laplace(self.features(X), infeasible.double(), mean, sd)
        self.any_infeasible = bool(infeasible.any())

    def features(self, X: Float[Tensor, "*m row"]) -> Float[Tensor, "*m coefficients"]:
        """Φ: what the coefficients multiply."""
        return torch.cat([torch.ones_like(X[..., :1]), X[..., : self._columns]], -1)

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count coefficients"]:
        """Draws of the coefficients from their posterior."""
        standard = torch.randn(count, len(self.w), dtype=torch.double, generator=generator)
        draws: Tensor = self.w + standard @ torch.linalg.cholesky(self.covariance).T
        return draws

    def probability(self, X: Float[Tensor, "m row"]) -> Float[Tensor, " m"]:
        """P(infeasible) of each row, its uncertainty averaged out (MacKay's approximation)."""
        features = self.features(X)
        variance = ((features @ self.covariance) * features).sum(-1)
        return torch.sigmoid((features @ self.w) / torch.sqrt(1 + math.pi * variance / 8))


def _prior(coordinates: Coordinates, prior: priors.FeasibilityPrior) -> tuple[Tensor, Tensor]:
    """Mean and sd of w."""
    is_lr = torch.tensor([hp_kind(name) == "lr" for name in coordinates.hps_as_known], dtype=torch.bool)
    intercept_mean, intercept_sd = prior.intercept
    slope_mean, slope_sd = prior.slope_lr

    others = torch.zeros(coordinates.k + coordinates.a)
    mean = torch.cat([torch.tensor([intercept_mean]), slope_mean * is_lr.double(), others])
    sd = torch.cat(
        [
            torch.tensor([intercept_sd]),
            torch.where(is_lr, slope_sd, prior.slope_sd),
            torch.full((coordinates.k,), prior.category_sd),
            torch.full((coordinates.a,), prior.scale_sd),
        ]
    )
    return mean.double(), sd.double()


def _laplace(features: Tensor, target: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mode and covariance of the coefficients of a logistic regression, by Newton's method."""
    w = mean.clone()
    precision = torch.diag(1 / sd**2)
    information = precision

    for _ in range(MAX_NEWTON_STEPS):
        chance = torch.sigmoid(features @ w)
        gradient = features.T @ (target - chance) - precision @ (w - mean)
        information = (features.T * (chance * (1 - chance))) @ features + precision
        step = torch.linalg.solve(information, gradient)

        w = w + step / max(1.0, float(step.abs().max()))  # at most one unit at a time
        if step.abs().max() < CONVERGED:
            break
    return w, torch.linalg.inv(information)
