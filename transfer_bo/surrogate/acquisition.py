"""Which run next: the (rung, HPs) that most lowers the expected excess loss at the target per unit of cost.

Symbols: as in `gp`; `regret_drop` there is the quantity that is divided by the cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["near_optimum", "propose"]

CANDIDATES = 192
"""Points tried per rung."""
EXCESS_RANGE = (0.002, 0.1)
"""Candidates lie where the bowl predicts so much excess ln loss: nearer teaches nothing, further misleads."""
OVERHEAD = 0.1
"""Fixed price of a run (start-up, proposing), as a share of the mean rung's cost."""
RISK = 0.3
"""Points likelier than this to diverge are not proposed."""


def propose(
    surrogate: Surrogate, costs: Mapping[Scale, float], generator: torch.Generator
) -> tuple[Scale, dict[str, Any]]:
    """The next run, given the running ones.

    Args:
        surrogate: fitted to all runs so far.
        costs: the rungs that may be used, each with the cost of one run.
        generator: source of randomness.

    Returns:
        The rung, and the value of every HP.
    """
    target = surrogate.latent(surrogate.settings.target, pending=True)
    mean_cost = sum(costs.values()) / len(costs)
    best: tuple[float, Scale, Tensor] | None = None
    for scale, cost in costs.items():
        X = _candidates(surrogate, scale, generator)
        worth = target.regret_drop(X) / (cost + OVERHEAD * mean_cost)
        if surrogate.stability.any_diverged:
            risk = surrogate.stability.probability(X)
            # Where everything is risky the least risky point is tried, not the most informative one.
            worth = torch.where(risk <= max(RISK, float(risk.min())), worth, -math.inf)
        top = int(worth.argmax())
        if best is None or float(worth[top]) > best[0]:
            best = float(worth[top]), scale, X[top]
    assert best is not None
    v, flags, _ = surrogate.landscape.split(best[2])
    return best[1], surrogate.coordinates.params(v, flags)


def near_optimum(surrogate: Surrogate, scale: Scale) -> dict[str, Any]:
    """HPs of one run close to the predicted optimum of a scale: tells the loss law about that scale."""
    mean, _ = surrogate.latent(scale).optimum()
    X = surrogate.rows(surrogate.coordinates.clip(mean)[None], scale)
    v, flags, _ = surrogate.landscape.split(X[0])
    return surrogate.coordinates.params(v, flags)


@torch.no_grad()
def _candidates(surrogate: Surrogate, scale: Scale, generator: torch.Generator) -> Tensor:
    """Rows at a rung, at chosen excess around the optimum there (CANDIDATES x (d+k+a))."""
    coordinates, landscape = surrogate.coordinates, surrogate.landscape
    d = coordinates.d
    centre, _ = surrogate.latent(scale).optimum()
    H = landscape.curvature(surrogate.theta, coordinates.s(scale))
    directions = torch.randn(CANDIDATES, d, dtype=torch.double, generator=generator) / H.diagonal().sqrt()
    # A random half of the candidates moves only a few HPs: information about one HP is best bought alone.
    few = torch.rand(CANDIDATES, d, dtype=torch.double, generator=generator) < min(1.0, 3 / max(d, 1))
    few[::2] = True
    directions = directions * few + 1e-9
    low, high = (math.log(e) for e in EXCESS_RANGE)
    excess = torch.exp(low + (high - low) * torch.rand(CANDIDATES, dtype=torch.double, generator=generator))
    length = torch.sqrt(excess / torch.einsum("ni,ij,nj->n", directions, H, directions))
    v = coordinates.clip(centre + directions * length[:, None])
    flags = surrogate.best_flags().expand(CANDIDATES, -1)
    if coordinates.k:
        flags = _some_other_categories(surrogate, generator)
    return torch.cat([v, flags, coordinates.s(scale).expand(CANDIDATES, -1)], -1)


def _some_other_categories(surrogate: Surrogate, generator: torch.Generator) -> Tensor:
    """Flags (CANDIDATES x k): for each categorical HP the best choice, or with chance 1/4 a random one."""
    columns, position = [], 0
    best = surrogate.best_flags()
    for dim in surrogate.coordinates.categorical:
        width = len(dim.choices)
        choice = best[position : position + width].argmax().expand(CANDIDATES).clone()
        other = torch.rand(CANDIDATES, generator=generator) < 0.25
        choice[other] = torch.randint(width, (int(other.sum()),), generator=generator)
        columns.append(torch.nn.functional.one_hot(choice, width).double())
        position += width
    return torch.cat(columns, -1)
