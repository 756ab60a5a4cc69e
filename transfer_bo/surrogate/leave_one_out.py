"""Does the surrogate know how well it predicts? Each run is predicted from all others.

With C the covariance of the runs' losses and b their deviations from the prior mean, the error of run i is
e_i = (C⁻¹ b)_i / (C⁻¹)_ii, and its predicted variance 1 / (C⁻¹)_ii (Rasmussen & Williams 2006, 5.4.2). In C a
run that looks odd has had its noise widened; here it counts with the noise of any other run, or no
prediction would ever fail. θ̂ and the hyperparameters stay as fitted to all runs, so the test is a mild one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

from transfer_bo.surrogate.gp import LandscapeGP

__all__ = ["ErrorFactor", "error_factor", "standardised_errors"]

MAX_FACTOR = 1000.0
"""The factor is at most this large, also where runs end exactly as predicted."""


@dataclass(frozen=True)
class ErrorFactor:
    """Predicted over actual error of runs that were left out, one after the other.

    Attributes:
        runs: how many.
        factor: root mean square of the predicted over that of the actual errors, each error in units of its
            prediction: 1 is right, below 1 the surrogate is overconfident.
        interval: 90% interval of the factor, errors taken as independent and normal.
    """

    runs: int
    factor: float
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"interval": list(self.interval)}


@torch.no_grad()
def standardised_errors(model: LandscapeGP) -> Float[Tensor, " n"]:
    """The error of each run, predicted from all others, over its predicted standard deviation."""
    kernel, X = model.kernel, model.X
    precision = torch.linalg.inv(kernel.covariance(X, X) + torch.diag(model.run_noise))
    variance = 1 / precision.diagonal()
    error = variance * (precision @ (model.y - kernel.linearised_mean(X)))

    noise = model.noise(X) + model.failure**2  # instead of what odd runs were given
    errors: Tensor = error / (variance - model.run_noise + noise).sqrt()
    return errors


def error_factor(model: LandscapeGP, level: float = 0.9) -> ErrorFactor:
    """The factor over all runs of a fit.

    Args:
        model: the fit.
        level: probability of the interval.
    """
    n = len(model.y)
    squared = max(float(standardised_errors(model).square().sum()), n / MAX_FACTOR**2)
    low, high = (math.sqrt(chdtri(n, (1 + side * level) / 2) / squared) for side in (1, -1))
    return ErrorFactor(n, math.sqrt(n / squared), (low, high))
