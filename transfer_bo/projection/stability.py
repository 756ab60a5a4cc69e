"""Where training becomes unstable at the target: the chance to diverge, and the edge along each HP.

The logit of P(diverge) is linear in the HPs (`surrogate.feasibility`): with the other HPs held, a run with HP
i at x octaves from the suggestion diverges with probability 1/2 where x = -logit / slope_i. The coefficients
are drawn from their posterior, which gives the interval of that place. As long as no run has diverged there
is only the prior, and no answer.

Symbols: count = DRAWS; v, z, d, mix as in `surrogate.coordinates`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from transfer_bo.scale import Scale
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["StabilityEdge", "divergence_probability", "stability_edges"]

DRAWS = 2000
"""Draws of the coefficients."""

LEVEL = 0.9
"""Probability of the intervals."""

MAX_WIDTH = 8.0
"""Octaves, more than the usual range of a learning rate; an edge whose interval is wider is not known."""

MAX_OCTAVES = 20.0
"""An edge further away than this is as good as one at this distance."""


@dataclass(frozen=True)
class StabilityEdge:
    """Where along an HP half of the runs diverge, the other HPs as suggested.

    Attributes:
        value: of the HP there.
        interval: where it lies with a probability of 90%.
        diverges: the side on which runs diverge, "above" or "below".
    """

    value: float
    interval: tuple[float, float]
    diverges: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"interval": list(self.interval)}


def divergence_probability(surrogate: Surrogate, params: Mapping[str, Any], scale: Scale) -> float | None:
    """Probability that a run with a setting diverges; None if no run has diverged so far."""
    if not surrogate.divergence.any_infeasible:
        return None
    return float(surrogate.divergence.probability(surrogate.coordinates.row(params, scale)[None]))


def stability_edges(
    surrogate: Surrogate, params: Mapping[str, Any], scale: Scale, seed: int
) -> dict[str, StabilityEdge]:
    """The edge along each HP on a log scale of which the runs tell on which side of it they diverge.

    Args:
        surrogate: a fit.
        params: the suggested setting.
        scale: where.
        seed: of the draws.

    Returns:
        HP -> edge, without those that the runs hardly determine (MAX_WIDTH).
    """
    coordinates = surrogate.coordinates
    if not surrogate.divergence.any_infeasible:
        return {}

    generator = torch.Generator().manual_seed(seed)
    draws = surrogate.divergence.draw(DRAWS, generator)
    logit = (draws @ surrogate.divergence.features(coordinates.row(params, scale))).numpy()
    slopes = (draws[:, 1 : 1 + coordinates.d] @ coordinates.mix).numpy()  # per octave of each HP

    edges = {}
    tails = [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]
    for dim, slope in zip(coordinates.numeric, slopes.T, strict=True):
        sign = np.sign(np.median(slope))
        has_this_sign = slope * sign > 0
        if dim.transform != "log" or dim.name not in params or has_this_sign.mean() < tails[-1]:
            continue

        octaves = (-logit / slope)[has_this_sign].clip(-MAX_OCTAVES, MAX_OCTAVES)
        low, middle, high = np.quantile(octaves, tails)
        if high - low <= MAX_WIDTH:
            value, *interval = (float(params[dim.name] * 2**at) for at in (middle, low, high))
            side = "above" if sign > 0 else "below"
            edges[dim.name] = StabilityEdge(value, (interval[0], interval[1]), side)
    return edges
