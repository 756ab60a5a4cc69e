"""A trust region around the best known setting that grows with success and shrinks with failure, after TuRBO.

Thirty to a hundred multipliers cannot be searched everywhere, and divergence lies behind a cliff that no
stationary model predicts from afar; close to a good setting the loss is tame (arXiv:2512.22382, search in a
trust region). The region's size follows the rule of TuRBO-1 (Eriksson et al., 1910.01739, section 3): side L,
doubled after τ_succ successes in a row, halved after τ_fail runs in a row without one; a success betters the
best loss by a thousandth.

What differs: the model is the study's own surrogate, fitted to all runs and not only to those in the region,
so nothing is forgotten when the region moves. Proposals lie around the optimum that it expects, half of them
draws of the optimum; of these the one is run that most lowers the expected excess loss at the target
(`_lowered_excess`), since what counts is the setting that is suggested in the end, not the runs on the way.
Half of the HPs move at once, so that each run tells of many. The region starts at half of each range
(multipliers: 3 of 6 octaves), not at .8; τ_fail is at most 10, because a study has a few hundred runs, not
thousands; a region that has become too small begins anew. The state is a function of the runs alone, so any
worker finds the same.

HPs found to be unimportant are frozen at the centre, so that the region has fewer sides.

A share of what the second stage spends goes to more expensive rungs (`next_rung`), else nothing would be
learnt of whether multipliers keep their worth: there the centre of the region is run first, then with half of
its multipliers, drawn at random, back at their defaults (`propose_at_larger_rung`). Close to the optimum the
loss is flat and says little about where it lies; the difference that leaving multipliers out makes says most.

Symbols:
    L        side of the region as a share of each searched range
    τ_succ   successes in a row after which L is doubled
    τ_fail   runs in a row without a success after which L is halved
    z        HPs in natural coordinates, octaves (`surrogate.coordinates`)
    v        HPs in the coordinates of the landscape, v = mix z
    s        scale, doublings of each axis from the base
    d        number of numeric HPs; n = number of points
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.records import Run, finished_runs
from transfer_bo.scale import Scale
from transfer_bo.search.acquisition import RISK
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = [
    "TrustRegion",
    "moves_multipliers",
    "multipliers",
    "next_rung",
    "propose_at_larger_rung",
    "propose_inside",
    "trust_region_side",
    "without_multipliers",
]

INITIAL_SIDE = 0.5
"""L at the start."""

MIN_SIDE = 0.5**7
"""L below which the region begins anew."""

MAX_SIDE = 1.6
"""The largest L."""

SUCCESSES = 3
"""τ_succ."""

MAX_FAILURES = 10
"""The largest τ_fail ..."""

MIN_FAILURES = 4
"""... and the smallest; in between it is the number of HPs."""

MIN_GAIN = 1e-3
"""A success betters the best loss by at least this share of it."""

MOVED_SHARE = 0.5
"""About this share of the HPs moves at once: a run then tells of all of them."""

CANDIDATES = 256
"""Points a proposal is picked from; half of them draws of the optimum."""

LARGER_SHARE = 0.25
"""More expensive rungs get at most this share of what the second stage spends."""

NOT_MOVED = 1e-6
"""A multiplier that differs from its default by less than this share is at it."""


def trust_region_side(
    losses: Iterable[float | None], best: float, dimensions: int, maximize: bool = False
) -> float:
    """L after some runs in the region.

    Args:
        losses: losses of the runs in the region in their order, None for one that diverged or was stopped.
        best: the best loss before them.
        dimensions: number of HPs.
        maximize: whether larger is better.
    """
    patience = min(max(dimensions, MIN_FAILURES), MAX_FAILURES)
    side, successes, failures = INITIAL_SIDE, 0, 0
    sign = -1.0 if maximize else 1.0
    best *= sign

    for loss in losses:
        if loss is not None and sign * loss < best - MIN_GAIN * abs(best):
            best, successes, failures = sign * loss, successes + 1, 0
        else:
            successes, failures = 0, failures + 1

        if successes == SUCCESSES:
            side, successes = min(2 * side, MAX_SIDE), 0
        elif failures == patience:
            side, failures = side / 2, 0
        if side < MIN_SIDE:
            side = INITIAL_SIDE
    return side


@dataclass(frozen=True)
class TrustRegion:
    """Where a search stands.

    Attributes:
        centre: the best setting so far, z (shape d).
        side: L, the side of the box around the expected optimum from which half of the candidates come.
    """

    centre: Float[Tensor, " d"]
    side: float

    @classmethod
    def of(cls, surrogate: Surrogate, scale: Scale, maximize: bool) -> TrustRegion:
        """After the study's own runs at a scale; the best is the one with the least posterior mean.

        Runs whose multipliers were all at their defaults belong to the first stage, before the region.
        """
        coordinates = surrogate.coordinates
        runs = [run for run in surrogate.runs if run.scale == scale and run.source is None]
        finished = finished_runs(runs)
        finished = [run for run in finished if run.is_feasible] or finished
        if not finished:
            return cls(torch.zeros(coordinates.d, dtype=torch.double), INITIAL_SIDE)

        X = torch.stack([surrogate.row(run) for run in finished])
        with torch.no_grad():
            mean, _ = surrogate.optimum_posterior(scale).values(X)
        centre = coordinates.unmix @ X[int(mean.argmin()), : coordinates.d]

        defaults = surrogate.settings.defaults
        inside = [run for run in runs if run.outcome.has_trained and moves_multipliers(run.params, defaults)]
        losses = [run.loss if run.is_feasible else None for run in inside]
        before = [run.loss for run in finished if not moves_multipliers(run.params, defaults)]
        known = before or [loss for loss in losses if loss is not None]
        best = (max if maximize else min)(known)
        return cls(centre, trust_region_side(losses, best, coordinates.d, maximize))

    def moves_multipliers(self, coordinates: Coordinates, defaults: Mapping[str, Any]) -> bool:
        """Whether some multiplier is not at its default at the centre."""
        return moves_multipliers(coordinates.params(coordinates.mix @ self.centre), defaults)


def moves_multipliers(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether some multiplier of a setting is not at its default. A choice is none, however it is named."""
    return any(
        is_multiplier(name)
        and isinstance(value, int | float)
        and abs(value / defaults.get(name, 1.0) - 1) > NOT_MOVED
        for name, value in params.items()
    )


@torch.no_grad()
def propose_inside(
    surrogate: Surrogate,
    region: TrustRegion,
    scale: Scale,
    generator: torch.Generator,
    *,
    greedy: bool,
    frozen: Collection[str] = (),
) -> dict[str, Any]:
    """HPs of the next run at a scale.

    Args:
        surrogate: fitted to all runs so far.
        region: at the scale.
        scale: where it runs.
        generator: source of randomness.
        greedy: whether to take the least posterior mean, instead of what teaches most.
        frozen: HPs that stay where they are at the centre.
    """
    coordinates = surrogate.coordinates
    at_scale = surrogate.optimum_posterior(scale, pending=True)
    middle = coordinates.unmix @ at_scale.optimum()[0]

    # Half of the candidates are draws of the optimum, half uniform around its expectation.
    half = CANDIDATES // 2
    draws = at_scale.draw(half, generator) @ at_scale.path_map().T @ coordinates.unmix.T
    width = region.side * (coordinates.z_high - coordinates.z_low)
    steps = torch.rand(half, coordinates.d, dtype=torch.double, generator=generator) - 0.5
    z = torch.cat([draws, middle + steps * width])

    # Each moves about a share of the HPs, at least one; the last candidate is the expected optimum.
    moved = torch.rand(z.shape, dtype=torch.double, generator=generator) < MOVED_SHARE
    moved[torch.arange(len(z)), torch.randint(coordinates.d, (len(z),), generator=generator)] = True
    z = torch.cat([torch.where(moved, z, middle), middle[None]])
    is_frozen = torch.tensor([dim.name in frozen for dim in coordinates.numeric])
    z = torch.where(is_frozen, region.centre, z)
    seed = surrogate.search_seed(scale)
    X = surrogate.rows(coordinates.clip(z @ coordinates.mix.T), scale, seed=seed)

    # Close to a cliff everything looks risky; the centre has been run, and was feasible.
    centre = surrogate.rows((coordinates.mix @ region.centre)[None], scale)
    for feasibility in (surrogate.divergence, surrogate.constraints):
        if feasibility.any_infeasible:
            risk = feasibility.probability(torch.cat([centre, X]))
            X = X[risk[1:] <= max(RISK, float(risk[0]), float(risk[1:].min()))]

    if greedy:
        score, _ = at_scale.values(X)
    else:
        score = -_lowered_excess(surrogate, X)
    chosen, flags, _ = surrogate.landscape.split(X[int(score.argmin())])
    return coordinates.params(chosen, flags)


def _lowered_excess(surrogate: Surrogate, X: Float[Tensor, "m row"]) -> Float[Tensor, " m"]:
    """By how much one run at each row lowers tr(H Cov v*) at the target, as in `acquisition.plan_runs`."""
    posterior = surrogate.optimum_posterior(surrogate.settings.target, pending=True)
    joint = posterior.joint(X, X[:1])
    H = posterior.landscape.curvature(posterior.kernel.theta, posterior.s)
    with_bowl = joint.with_latent @ (posterior.path_map().T @ torch.linalg.cholesky(H))
    lowered: Tensor = with_bowl.square().sum(-1) / (joint.covariance.diagonal() + surrogate.model.noise(X))
    return lowered


def next_rung(costs: Mapping[Scale, float], runs: Sequence[Run], defaults: Mapping[str, Any]) -> Scale:
    """The rung of the next run of the second stage: mostly the cheapest, else the one with the least spent.

    Args:
        costs: cost of one run at each rung that may be used.
        runs: runs of the search so far.
        defaults: defaults of the multipliers.
    """
    spent = dict.fromkeys(costs, 0.0)
    for run in runs:
        if run.scale in spent and moves_multipliers(run.params, defaults):
            spent[run.scale] += costs[run.scale]

    cheapest = min(costs, key=lambda scale: costs[scale])
    larger = [scale for scale in costs if scale != cheapest]
    if not larger:
        return cheapest

    candidate = min(larger, key=lambda scale: spent[scale] + costs[scale])
    spent_larger = sum(spent[scale] for scale in larger) + costs[candidate]
    is_within_share = spent_larger <= LARGER_SHARE * (spent[cheapest] + spent_larger)
    return candidate if is_within_share else cheapest


@torch.no_grad()
def propose_at_larger_rung(
    surrogate: Surrogate, region: TrustRegion, scale: Scale, cheapest: Scale, generator: torch.Generator
) -> dict[str, Any]:
    """HPs of the next run at a larger rung: the region's centre, or that with half of its multipliers.

    Args:
        surrogate: fitted to all runs so far.
        region: at the cheapest rung.
        scale: where it runs.
        cheapest: the rung that the region lies at.
        generator: source of randomness.
    """
    coordinates, defaults = surrogate.coordinates, surrogate.settings.defaults
    centre = region.centre
    drift = coordinates.unmix @ (
        surrogate.optimum_posterior(scale).optimum()[0] - surrogate.optimum_posterior(cheapest).optimum()[0]
    )

    runs_here = [run for run in surrogate.runs if run.scale == scale and run.source is None]
    is_known = any(moves_multipliers(run.params, defaults) for run in runs_here)
    left_out = torch.rand(coordinates.d, generator=generator) < (0.5 if is_known else 0.0)
    of_group = torch.tensor([is_multiplier(dim.name) for dim in coordinates.numeric])
    z = torch.where(of_group, centre * ~left_out, centre + drift)

    X = surrogate.rows(coordinates.clip((coordinates.mix @ z)[None]), scale)
    chosen, flags, _ = surrogate.landscape.split(X[0])
    return coordinates.params(chosen, flags)


def multipliers(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The HPs that join in the second stage. A choice has no default to be held at."""
    return [dim for dim in dimensions if is_multiplier(dim.name) and dim.transform != "categorical"]


def without_multipliers(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The HPs of the first stage."""
    held = multipliers(dimensions)
    return [dim for dim in dimensions if dim not in held]
