"""Do multipliers of groups lose their worth with scale? The rate at which all of them shrink towards 1.

    ψ_i(s) = u_i (1 - η·s) + (B s)_i      for each multiplier i,      η_a ~ N(0, SHRINKAGE_RATE_SD²)

A few runs at more expensive rungs can hardly determine the drift of each of thirty multipliers, but they
determine what all of them have in common: whether leaving multipliers out costs as much there as it does at
the cheapest rung. So η is estimated from all of them (empirical Bayes, with the u of the fit), and becomes
the prior mean of each drift, -η_a u_i, which the runs may still contradict one by one. η below 0 counts as 0:
at no scale are multipliers set further from 1 than anybody tried because others seemed to gain. Where the
multipliers have only been run at one rung nothing is known of η, and nothing changes.

From a prior N(m0, P) of ξ the runs made N(m, C). With W = ∂ξ/∂η (-u_i at B_ia) and Q = P⁻¹W, exactly for the
linearised landscape,

    η | y ~ N(V Qᵀ(m - m0), V),      V⁻¹ = SHRINKAGE_RATE_SD⁻² I + Qᵀ(P - C)Q

Symbols: ψ, u, B, C_i, β as in `landscape`; ξ as in `posterior`; a = axes; multipliers are measured from their
prior guess, mostly 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.space import is_multiplier
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.posterior import OptimumPosterior

__all__ = ["Shrinkage", "estimate_shrinkage"]


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """How multipliers shrink towards 1 with scale.

    Attributes:
        rate: η, per doubling of each axis.
        drift: -η_a u_i, what it adds to the prior mean of the drift; 0 for HPs that are no multipliers.
    """

    rate: Float[Tensor, " a"]
    drift: Float[Tensor, "d a"]


@torch.no_grad()
def estimate_shrinkage(posterior: OptimumPosterior) -> Shrinkage:
    """The rate that the runs make likely, at least 0.

    Args:
        posterior: at the base scale.
    """
    landscape = posterior.landscape
    coordinates = landscape.coordinates
    d, a = coordinates.d, coordinates.a
    of_group = torch.tensor([is_multiplier(dim.name) for dim in coordinates.numeric], dtype=torch.double)
    u = (landscape.gauge @ posterior.mean[landscape.part("u")]) * of_group

    W = torch.zeros(len(posterior.mean), a, dtype=torch.double)
    unmixing = torch.linalg.inv(landscape.drift_mixing)  # β_i = C_i⁻¹ B_i
    W[landscape.part("beta")] = (-u[:, None, None] * unmixing).reshape(d * a, a)

    P = posterior.prior_covariance()
    Q = torch.linalg.solve(P, W)
    identity = torch.eye(a, dtype=torch.double)
    precision = identity / priors.SHRINKAGE_RATE_SD**2 + Q.T @ (P - posterior.covariance) @ Q
    rate = torch.linalg.solve(precision, Q.T @ (posterior.mean - posterior.prior_mean())).clamp(min=0.0)
    return Shrinkage(rate, -torch.outer(u, rate))
