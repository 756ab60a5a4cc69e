"""Will a run diverge, or run out of memory? A logistic model whose boundary moves with scale and every HP.

    P(diverges | x) = logistic(b + a·v + c·flags + m·s)

Priors: b ~ N(-4, 2²): divergence is rare; a ~ N(1, .7²) per octave for learning rates, whose cliff lies
above, N(0, .5²) for other HPs; c ~ N(0, 2²): a choice may never work; m ~ N(0, .5²) per doubling. Only
typed outcomes are used: a finished or stopped run is stable, a diverged one is not, anything else says
nothing. The posterior is Laplace's. Where nothing has diverged yet (`any_infeasible`), a caller should not be
held back by the prior alone.

Memory is the same question without the cliff, a and m ~ N(0, 1²): only runs that ran out of it lacked it.

Symbols: Φ = (1, v, flags, s), n x q; w = (b, a, c, m).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.synonyms import hp_kind

__all__ = ["FeasibilityModel"]


class FeasibilityModel:
    """P(diverges) over rows of the surrogate's input.

    Args:
        coordinates: HPs and axes.
        X: rows of finished, stopped and diverged runs (n x (d+k+a)).
        diverged: which of them diverged (n), bool.
        memory: whether memory is asked after, and "diverged" reads "ran out of memory".
    """

    def __init__(
        self, coordinates: Coordinates, X: Tensor, diverged: Tensor, *, memory: bool = False
    ) -> None:
        self._columns = coordinates.d + coordinates.k + coordinates.a
        other = coordinates.k + coordinates.a
        steep = torch.tensor([hp_kind(dim.name) == "lr" for dim in coordinates.numeric], dtype=torch.bool)
        steep &= not memory
        self._mean = torch.cat([torch.tensor([-4.0]), steep.double(), torch.zeros(other)]).double()
        sd = [torch.tensor([2.0]), torch.where(steep, 0.7, 1.0 if memory else 0.5)]
        sd += [torch.full((coordinates.k,), 2.0), torch.full((coordinates.a,), 1.0 if memory else 0.5)]
        precision = torch.diag(1 / torch.cat(sd).double() ** 2)
        w = self._mean.clone()
        features, target = self._features(X), diverged.double()
        information = precision
        for _ in range(50):
            chance = torch.sigmoid(features @ w)
            gradient = features.T @ (target - chance) - precision @ (w - self._mean)
            information = (features.T * (chance * (1 - chance))) @ features + precision
            step = torch.linalg.solve(information, gradient)
            w = w + step / max(1.0, float(step.abs().max()))  # Newton, at most one unit at a time
            if step.abs().max() < 1e-8:
                break
        self.w, self.covariance = w, torch.linalg.inv(information)
        self.any_infeasible = bool(diverged.any())

    def _features(self, X: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(X[..., :1]), X[..., : self._columns]], -1)

    def probability(self, X: Tensor) -> Tensor:
        """P(diverges) of each row (n), its uncertainty averaged out (MacKay's approximation)."""
        features = self._features(X)
        spread = ((features @ self.covariance) * features).sum(-1)
        return torch.sigmoid((features @ self.w) / torch.sqrt(1 + math.pi * spread / 8))
