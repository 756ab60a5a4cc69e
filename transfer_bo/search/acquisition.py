"""Which run next: the first of those that most lower the expected excess loss at the target (`OptimumPosterior.plan`).

Symbols: as in `gp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.surrogate.recommendation import optimum_candidates, other_categories
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["propose"]

CANDIDATES = 64
"""Points tried per rung."""
NEAREST, FARTHEST, NOISE_SEEN = 0.002, 0.04, 5.0
"""Candidates lie where the bowl predicts so much excess ln loss: nearer teaches nothing, further misleads.
Noisy runs have to be further apart: up to so many times their noise."""
OVERHEAD = 0.1
"""Fixed price of a run (start-up, proposing), as a share of the mean rung's cost."""
RISK = 0.3
"""Points likelier than this to diverge, or to run out of memory, are not proposed."""


def propose(
    surrogate: Surrogate, costs: Mapping[Scale, float], left: float, generator: torch.Generator
) -> tuple[Scale, dict[str, Any]]:
    """The next run, given the running ones.

    What is left is spent in thought on the runs that together teach most about the optimum at the target; of
    these, the one that alone teaches most per cost comes first, for it may change the plan for the others.

    Args:
        surrogate: fitted to all runs so far.
        costs: the rungs that may be used, each with the cost of one run.
        left: what may still be spent, in the unit of `costs`.
        generator: source of randomness.

    Returns:
        The rung, and the value of every HP.
    """
    target = surrogate.settings.target
    latent = surrogate.latent(target, pending=True)
    rivals = optimum_candidates(surrogate, latent, target, generator)
    overhead = OVERHEAD * sum(costs.values()) / len(costs)
    scales = list(costs)
    per_rung = [_candidates(surrogate, scale, rivals, generator) for scale in scales]
    X = torch.cat(per_rung)
    price = torch.tensor([costs[scale] + overhead for scale in scales]).double()
    rung = torch.arange(len(scales)).repeat_interleave(torch.tensor([len(rows) for rows in per_rung]))
    if surrogate.stability.any_infeasible:
        risk = surrogate.stability.probability(X)
        # Where everything is risky the least risky points are tried, not the most informative ones.
        least = torch.stack([risk[rung == i].min() for i in range(len(scales))])
        safe = risk <= least[rung].clamp(min=RISK)
        X, rung = X[safe], rung[safe]
    if surrogate.memory.any_infeasible:
        risk = surrogate.memory.probability(X)
        fits = risk <= risk.min().clamp(min=RISK)
        X, rung = X[fits], rung[fits]
    first = latent.plan(X, price[rung], left, rivals, generator)[0]
    v, flags, _ = surrogate.landscape.split(X[first])
    return scales[int(rung[first])], surrogate.coordinates.params(v, flags)


@torch.no_grad()
def _candidates(surrogate: Surrogate, scale: Scale, rivals: Tensor, generator: torch.Generator) -> Tensor:
    """Rows at a rung: at chosen excess around the optimum there, and optimum_candidates moved there by the drift."""
    coordinates, landscape = surrogate.coordinates, surrogate.landscape
    d, theta = coordinates.d, surrogate.theta
    s = coordinates.s(scale)
    centre, _ = surrogate.latent(scale).optimum()
    H = landscape.curvature(theta, s)
    directions = torch.randn(CANDIDATES, d, dtype=torch.double, generator=generator) / H.diagonal().sqrt()
    # A random half of the candidates moves only a few HPs: information about one HP is best bought alone.
    few = torch.rand(CANDIDATES, d, dtype=torch.double, generator=generator) < min(1.0, 3 / max(d, 1))
    few[::2] = True
    directions = directions * few + 1e-9
    low, high = math.log(NEAREST), math.log(max(FARTHEST, NOISE_SEEN * surrogate.model.floor))
    excess = torch.exp(low + (high - low) * torch.rand(CANDIDATES, dtype=torch.double, generator=generator))
    length = torch.sqrt(excess / torch.einsum("ni,ij,nj->n", directions, H, directions))
    around = surrogate.rows(
        coordinates.clip(centre + directions * length[:, None]),
        scale,
        other_categories(surrogate, CANDIDATES, generator),
    )
    v, flags, at = landscape.split(rivals[:: max(1, 2 * len(rivals) // CANDIDATES)])
    moved = coordinates.clip(v - landscape.path(theta, at) + landscape.path(theta, s))
    return torch.cat([around, surrogate.rows(moved, scale, flags)])
