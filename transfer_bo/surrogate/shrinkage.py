"""Do multipliers of groups lose their worth with scale? The rate at which all of them fall back to 1.

    ψ_i(s) = u_i (1 - η·s) + (B s)_i      for each multiplier i,      η_a ~ N(0, RATE²)

A few runs at dearer rungs can hardly tell the drift of each of thirty multipliers, but they tell what all of
them have in common: whether leaving multipliers out costs as much there as it does at the cheapest rung. So
η is told from all of them (empirical Bayes, with the u of the fit), and becomes the prior mean of each drift,
-η_a u_i, which the runs may still contradict one by one. η below 0 counts as 0: at no scale are multipliers
set further from 1 than anybody tried because others seemed to gain. Where the multipliers have only been run
at one rung nothing is known of η, and nothing changes.

From a prior N(m0, P) of ξ the runs made N(m, C). With W = ∂ξ/∂η (-u_i at B_ia) and Q = P⁻¹W, exactly for the
linearised landscape,

    η | y ~ N(V Qᵀ(m - m0), V),      V⁻¹ = RATE⁻² I + Qᵀ(P - C)Q

Symbols: as in `landscape` and `gp`; multipliers are measured from their prior guess, mostly 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.gp import OptimumPosterior

__all__ = ["estimate_shrinkage"]

RATE = 0.2
"""Prior sd of η per doubling of an axis. The one published pair of speed-ups, 2.3 at the proxy and 1.32 some
ten doublings on (2512.22382), would be about .05 if gains go as the square of the distance from 1; where
nothing falls back a wider prior costs little (studies/per_module/shrinking.py)."""


@torch.no_grad()
def estimate_shrinkage(latent: OptimumPosterior) -> tuple[Tensor, Tensor]:
    """The rate η (a) that the runs make likely, at least 0, and the drift -η_a u_i that it means (d x a).

    Args:
        latent: posterior at the base scale.
    """
    landscape = latent.landscape
    coordinates = landscape.coordinates
    d, a = coordinates.d, coordinates.a
    of_group = torch.tensor([is_multiplier(dim.name) for dim in coordinates.numeric], dtype=torch.double)
    u = latent.mean[landscape.part("u")] * of_group
    W = torch.zeros(len(latent.mean), a, dtype=torch.double)
    apart = torch.linalg.inv(landscape.trade)  # β_i = C_i⁻¹ B_i
    W[landscape.part("beta")] = (-u[:, None, None] * apart).reshape(d * a, a)
    P = latent.prior_covariance()
    Q = torch.linalg.solve(P, W)
    precision = torch.eye(a, dtype=torch.double) / RATE**2 + Q.T @ (P - latent.covariance) @ Q
    rate = torch.linalg.solve(precision, Q.T @ (latent.mean - latent.prior_mean())).clamp(min=0.0)
    return rate, -torch.outer(u, rate)
