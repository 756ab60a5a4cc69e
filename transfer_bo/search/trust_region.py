"""A box around the best known setting that grows with success and shrinks with failure, after TuRBO.

Thirty to a hundred multipliers cannot be searched everywhere, and divergence lies behind a cliff that no
stationary model predicts from afar; near a good setting the loss is tame (2512.22382, search in a trust
region). The box and its rule are those of TuRBO-1 (Eriksson et al., 1910.01739, section 3): side L, doubled
after τ_succ successes in a row, halved after τ_fail runs in a row without one; a success betters the best
loss by a thousandth. Proposals are draws of Thompson sampling among points that move about 20 HPs at once.

What differs: the model is the study's own surrogate, fitted to all runs and not only to those in the box, so
nothing is forgotten when the box moves; the box starts at half of each range (multipliers: 3 of 6
octaves), not at .8; τ_fail is at most 10, for a study has a few hundred runs, not thousands; too small a box
begins anew at the same centre. The state is a function of the runs alone, so any worker finds the same.

HPs found unimportant (`diagnostics.importance.unimportant_hps`) stay where they are: the box has fewer sides.

A share of what the second stage spends goes to dearer rungs (`rung_of`), else nothing would be learnt of
whether multipliers keep their worth: there the centre of the box is run first, then with half of its
multipliers, drawn at random, back at their defaults (`propose_above`). Near the optimum the loss is flat and
tells nothing of where it lies; the difference that leaving multipliers out makes tells it best.

Symbols: L = side of the box as a share of each searched range; z, v as in `coordinates`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run
from transfer_bo.scale import Scale
from transfer_bo.search.acquisition import RISK
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.gp import normal_draws
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["Region", "propose_above", "propose_near", "rung_of", "side_of", "without_multipliers"]

FIRST, SMALLEST, LARGEST = 0.5, 0.5**7, 1.6
"""L at the start, L below which the box begins anew, and the largest L."""
SUCCESSES, FAILURES = 3, 10
"""τ_succ, and the largest τ_fail; fewer HPs than this: as many as there are HPs, at least 4."""
BETTER = 1e-3
"""A success is better than the best so far by this share of it."""
MOVED = 20
"""About so many HPs move at once."""
CANDIDATES = 256
"""Points a proposal is picked from; half of them draws of the optimum."""
ABOVE = 0.25
"""Dearer rungs get at most this share of what the second stage spends."""


def side_of(losses: Iterable[float | None], best: float, dimensions: int, maximize: bool = False) -> float:
    """L after runs in the box.

    Args:
        losses: of the runs in the box in their order, None for one that diverged or was stopped.
        best: the best loss before them.
        dimensions: number of HPs.
        maximize: whether larger is better.
    """
    patience = min(max(dimensions, 4), FAILURES)
    side, won, lost = FIRST, 0, 0
    sign = -1.0 if maximize else 1.0
    best *= sign
    for loss in losses:
        if loss is not None and sign * loss < best - BETTER * abs(best):
            best, won, lost = sign * loss, won + 1, 0
        else:
            won, lost = 0, lost + 1
        if won == SUCCESSES:
            side, won = min(2 * side, LARGEST), 0
        elif lost == patience:
            side, lost = side / 2, 0
        if side < SMALLEST:
            side = FIRST
    return side


@dataclass(frozen=True)
class Region:
    """The box: centre in z (d) and side L."""

    centre: Tensor
    side: float

    @classmethod
    def of(cls, surrogate: Surrogate, scale: Scale, maximize: bool) -> Region:
        """The box after the study's own runs at a scale: around that with the least posterior mean.

        Runs whose multipliers were all at their defaults came before the box.
        """
        at = [run for run in surrogate.runs if run.scale == scale and run.source is None]
        finished = [run for run in at if run.outcome is Outcome.FINISHED and run.loss is not None]
        coordinates = surrogate.coordinates
        if not finished:
            return cls(torch.zeros(coordinates.d, dtype=torch.double), FIRST)
        X = torch.stack([surrogate.row(run) for run in finished])
        with torch.no_grad():
            mean, _, _ = surrogate.latent(scale).values(X)
        centre = coordinates.unmix @ X[int(mean.argmin()), : coordinates.d]
        inside = [
            run for run in at if run.outcome.has_trained and _has_moved(run, surrogate.settings.defaults)
        ]
        before = [run.loss for run in finished if run not in inside and run.loss is not None]
        losses = [run.loss for run in inside]
        known = before or [loss for loss in losses if loss is not None]
        best = (max if maximize else min)(known)
        return cls(centre, side_of(losses, best, coordinates.d, maximize))

    def clip(self, v: Tensor, coordinates: Coordinates) -> Tensor:
        """V (... x d) moved into the box, and into the searched ranges."""
        half = self.side / 2 * (coordinates.z_high - coordinates.z_low)
        low = torch.maximum(self.centre - half, coordinates.z_low)
        high = torch.minimum(self.centre + half, coordinates.z_high)
        z = torch.minimum(torch.maximum(v @ coordinates.unmix.T, low), high)
        return z @ coordinates.mix.T


def _has_moved(run: Run, defaults: Mapping[str, Any]) -> bool:
    return any(
        is_multiplier(name) and abs(value / defaults.get(name, 1.0) - 1) > 1e-6
        for name, value in run.params.items()
    )


@torch.no_grad()
def propose_near(
    surrogate: Surrogate,
    scale: Scale,
    generator: torch.Generator,
    *,
    greedy: bool,
    maximize: bool = False,
    still: Collection[str] = (),
) -> dict[str, Any]:
    """HPs of the next run at a scale, in the box.

    Args:
        surrogate: fitted to all runs so far.
        scale: where it runs.
        generator: source of randomness.
        greedy: the least posterior mean, not the least of one draw.
        maximize: whether larger metrics are better.
        still: HPs that stay where they are at the centre.
    """
    coordinates = surrogate.coordinates
    region = Region.of(surrogate, scale, maximize)
    latent = surrogate.latent(scale, pending=True)
    half = CANDIDATES // 2
    draws = latent.draw(half, generator) @ latent.path_map().T @ coordinates.unmix.T
    width = region.side * (coordinates.z_high - coordinates.z_low)
    steps = torch.rand(half, coordinates.d, dtype=torch.double, generator=generator) - 0.5
    z = torch.cat([draws, region.centre + steps * width])
    moved = torch.rand(z.shape, dtype=torch.double, generator=generator) < MOVED / max(coordinates.d, 1)
    moved[torch.arange(len(z)), torch.randint(coordinates.d, (len(z),), generator=generator)] = True
    middle = coordinates.unmix @ latent.optimum()[0]
    z, moved = torch.cat([z, middle[None]]), torch.cat([moved, torch.ones_like(moved[:1])])
    moved &= torch.tensor([dim.name not in still for dim in coordinates.numeric])
    z = torch.where(moved, z, region.centre)
    X = surrogate.rows(region.clip(z @ coordinates.mix.T, coordinates), scale)
    if surrogate.stability.any_infeasible:
        centre = surrogate.rows((coordinates.mix @ region.centre)[None], scale)
        risk = surrogate.stability.probability(torch.cat([centre, X]))
        # Near a cliff everything looks risky; the centre has been run, and did not diverge.
        X = X[risk[1:] <= max(RISK, float(risk[0]), float(risk[1:].min()))]
    mean, covariance, _ = latent.values(X)
    if not greedy:
        mean = normal_draws(mean, covariance, 1, generator)[0]
    chosen, flags, _ = surrogate.landscape.split(X[int(mean.argmin())])
    return coordinates.params(chosen, flags)


def rung_of(costs: Mapping[Scale, float], runs: Sequence[Run], defaults: Mapping[str, Any]) -> Scale:
    """The rung of the next run of the second stage: mostly the cheapest, else the least spent at.

    Args:
        costs: of one run at each rung that may be used.
        runs: of the search so far.
        defaults: of the multipliers.
    """
    spent = dict.fromkeys(costs, 0.0)
    for run in runs:
        if run.scale in spent and _has_moved(run, defaults):
            spent[run.scale] += costs[run.scale]
    cheapest = min(costs, key=lambda scale: costs[scale])
    above = [scale for scale in costs if scale != cheapest]
    if not above:
        return cheapest
    least = min(above, key=lambda scale: spent[scale] + costs[scale])
    dear = sum(spent[scale] for scale in above) + costs[least]
    return least if dear <= ABOVE * (spent[cheapest] + dear) else cheapest


@torch.no_grad()
def propose_above(
    surrogate: Surrogate, scale: Scale, cheapest: Scale, generator: torch.Generator, maximize: bool = False
) -> dict[str, Any]:
    """HPs of the next run at a dearer rung: the box's centre, or that with half of its multipliers.

    Args:
        surrogate: fitted to all runs so far.
        scale: where it runs.
        cheapest: the rung that the box lies at.
        generator: source of randomness.
        maximize: whether larger metrics are better.
    """
    coordinates, defaults = surrogate.coordinates, surrogate.settings.defaults
    centre = Region.of(surrogate, cheapest, maximize).centre
    drift = coordinates.unmix @ (
        surrogate.latent(scale).optimum()[0] - surrogate.latent(cheapest).optimum()[0]
    )
    own = [run for run in surrogate.runs if run.scale == scale and run.source is None]
    is_known = any(_has_moved(run, defaults) for run in own)
    left_out = torch.rand(coordinates.d, generator=generator) < (0.5 if is_known else 0.0)
    of_group = torch.tensor([is_multiplier(dim.name) for dim in coordinates.numeric])
    z = torch.where(of_group, centre * ~left_out, centre + drift)
    X = surrogate.rows(coordinates.clip((coordinates.mix @ z)[None]), scale)
    chosen, flags, _ = surrogate.landscape.split(X[0])
    return coordinates.params(chosen, flags)


def without_multipliers(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The HPs of the first stage."""
    return [dim for dim in dimensions if not is_multiplier(dim.name)]
