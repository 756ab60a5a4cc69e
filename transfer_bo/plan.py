"""How to spend a tuning budget: which ladder of proxies, how many trials, or no proxies at all.

Two views, both simple. The theory of useful transfer (Ghosh, Wu, Bietti, 2512.22768, section 3) gives rates:
with F FLOPs, h HPs, a run of cost n^r at width n, a loss gap ~ n^-α and an HP gap ~ n^-β,

    direct      gap ~ F^(-2α/(hα+2r))
    transfer    gap ~ F^(-α/r) + F^(-2β/(hβ+r))        useful if and only if β > α/2

The other is the surrogate's own expectation before any run: for a ladder and a number of trials, the excess
loss that would be left at the target, tr(H Cov v*), by the same priors of bowl, drift, jitter and noise that
a study starts from. It depends on no measured loss, so every plan can be compared without training anything.
Tuning directly is a plan whose only rung is the target; not tuning is a plan without trials. A search that
places its trials by what it has seen does better than these, which are placed blindly, most so with few.

Symbols: H = curvature, v* = optimum at the target, t in [0, 1) = place of a rung between the smallest proxy
and the target, geometrically.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transfer_bo.dimension import Dimension
from transfer_bo.errors import TransferError
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.landscape import Drift, Landscape
from transfer_bo.synonyms import axis_kind

__all__ = ["Plan", "Tuning", "make_plan", "useful_transfer"]

PLACES = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Where rungs may stand, t."""
SHRINK = 64.0
"""The smallest proxy, if none is given: each axis but the batch is so many times below the target's."""
MOST_TRIALS = 200
"""Beyond so many trials a plan is not looked at: nobody waits for them one after the other."""
NEAR = (0.002, 0.04)
"""Half of the trials lie at so much excess ln loss around the optimum, half over its prior."""
WORTH = 0.9
"""Proxies are recommended if they leave at most this share of the excess that tuning directly leaves."""


@dataclass(frozen=True)
class Tuning:
    """One way to spend the budget.

    Attributes:
        ladder: the rungs.
        trials: at each rung.
        cost: of all trials, in the budget's unit.
        excess: ln loss above the best setting, expected at the target.
    """

    ladder: tuple[Scale, ...]
    trials: tuple[int, ...]
    cost: float
    excess: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ladder": [dict(scale) for scale in self.ladder],
            "trials": list(self.trials),
            "cost": self.cost,
            "excess": self.excess,
        }


@dataclass(frozen=True)
class Plan:
    """What to do with a budget.

    Attributes:
        target: the large model.
        budget: tuning compute, without the final run; in the unit of `run_cost`.
        run_cost: of one run at the target.
        transfer: the best plan on proxies, None if the budget pays for none.
        direct: the best number of trials at the target, None if the budget does not pay for one.
        untuned: expected excess of setting every HP to the middle of its range.
    """

    target: Scale
    budget: float
    run_cost: float
    transfer: Tuning | None
    direct: Tuning | None
    untuned: float

    @property
    def use_proxies(self) -> bool:
        """Whether transfer is worth it: clearly better than tuning directly, and than not tuning."""
        if self.transfer is None:
            return False
        other = min(self.untuned, self.direct.excess if self.direct else math.inf)
        return self.transfer.excess <= WORTH * other

    @property
    def advice(self) -> str:
        """One sentence."""
        runs = f"{self.budget / self.run_cost:.2g} target runs"
        if self.use_proxies and self.transfer:
            rungs = len(self.transfer.ladder)
            trials = f"{sum(self.transfer.trials)} trials on {rungs} {'proxy' if rungs == 1 else 'proxies'}"
            direct = (
                f"{self.direct.excess:.2%} when tuning directly"
                if self.direct
                else "no run of it is paid for"
            )
            return (
                f"For {runs}, {trials} should leave {self.transfer.excess:.2%} of excess loss at the target "
                f"({direct}, {self.untuned:.2%} untuned)."
            )
        if self.direct and self.direct.excess < WORTH * self.untuned:
            return (
                f"Proxies are not worth it: for {runs}, {self.direct.trials[0]} trials at the target itself "
                f"should leave {self.direct.excess:.2%} of excess loss"
                + (f", proxies {self.transfer.excess:.2%}." if self.transfer else ".")
            )
        return f"For {runs} no tuning pays: {self.untuned:.2%} of excess loss is expected either way."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "target": dict(self.target),
            "budget": self.budget,
            "run_cost": self.run_cost,
            "use_proxies": self.use_proxies,
            "advice": self.advice,
            "transfer": self.transfer.to_json() if self.transfer else None,
            "direct": self.direct.to_json() if self.direct else None,
            "untuned": self.untuned,
        }


def useful_transfer(alpha: float, beta: float, hps: int, cost_power: float = 2.0) -> dict[str, float | bool]:
    """The theory's rates: how the loss gap falls with compute, as exponents of F.

    Args:
        alpha: of the loss gap, ~ n^-α.
        beta: of the HP gap, ~ n^-β.
        hps: number of HPs searched on a grid.
        cost_power: r, a run at width n costs n^r.

    Returns:
        "direct" and "transfer" (the slower of its two terms), "width": of the proxies, n* ~ F^(1/(hβ+r)), and
        "useful" (β > α/2).
    """
    if min(alpha, beta, cost_power) <= 0 or hps < 1:
        raise TransferError(
            f"alpha = {alpha}, beta = {beta}, cost_power = {cost_power}, hps = {hps}: all must be positive."
        )
    direct = -2 * alpha / (hps * alpha + 2 * cost_power)
    transfer = max(-alpha / cost_power, -2 * beta / (hps * beta + cost_power))
    width = 1 / (hps * beta + cost_power)
    return {"direct": direct, "transfer": transfer, "width": width, "useful": beta > alpha / 2}


def make_plan(
    budget: float,
    target: Scale,
    hps: Mapping[str, tuple[str, float, float]],
    *,
    smallest: Scale | None = None,
    coordinates: str = "raw",
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    seed: int = 0,
) -> Plan:
    """The ladder and the number of trials that should leave the least excess loss at the target.

    Args:
        budget: tuning compute without the final run, FLOPs as `default_cost` counts them (6 N D).
        target: the large model.
        hps: name -> (kind, low, high), kind "log", "linear" or "one_minus".
        smallest: the smallest proxy that still trains like the target.
        coordinates: "raw" or "base".
        drift_prior: the user's own, `{hp: {axis: (mean, sd)}}`.
        seed: of the trials' places.

    Raises:
        TransferError: for a budget that is not positive, no HP, or a smallest proxy that is not smaller.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise TransferError(f"The budget is {budget!r}; give a positive number.")
    if not hps:
        raise TransferError("No HP is named; give at least one, with its range.")
    if coordinates not in ("raw", "base"):
        raise TransferError(f"coordinates is {coordinates!r}; use 'raw' or 'base'.")
    shrunk = {a: v / (1 if axis_kind(a) == "batch" else SHRINK) for a, v in target.items()}
    smallest = Scale(shrunk) if smallest is None else smallest
    if any(ratio > 0 for ratio in smallest.log2_ratio(target).values()) or smallest == target:
        raise TransferError(f"The smallest proxy {smallest} is not smaller than the target {target}.")
    dimensions = [Dimension(name, kind, low, high) for name, (kind, low, high) in sorted(hps.items())]
    beliefs = _PriorModel(dimensions, smallest, target, coordinates, drift_prior or {}, seed)
    run_cost = default_cost(target)
    direct = _tuning((target,), (min(int(budget / run_cost), MOST_TRIALS),), beliefs)
    found = []
    for ladder in _ladders(smallest, target):
        costs = [default_cost(scale) for scale in ladder]
        even = int(budget / sum(costs))
        for trials in (
            [even] * len(ladder),
            [int(budget / len(costs) / cost) for cost in costs],
        ):
            share = min(1.0, MOST_TRIALS / max(sum(trials), 1))
            counts = tuple(int(n * share) for n in trials)
            if min(counts) >= 1:
                found.append(_tuning(ladder, counts, beliefs))
    return Plan(
        target=target,
        budget=budget,
        run_cost=run_cost,
        transfer=min(found, key=lambda tuning: (tuning.excess, tuning.cost)) if found else None,
        direct=direct if direct.trials[0] else None,
        untuned=beliefs.excess((), ()),
    )


def _tuning(ladder: Sequence[Scale], trials: Sequence[int], beliefs: _PriorModel) -> Tuning:
    cost = sum(n * default_cost(scale) for n, scale in zip(trials, ladder, strict=True))
    return Tuning(tuple(ladder), tuple(trials), cost, beliefs.excess(ladder, trials))


def _ladders(smallest: Scale, target: Scale) -> Iterable[tuple[Scale, ...]]:
    """One rung, two on the straight path, or a corner with one axis raised at a time."""
    axes = [axis for axis in target if smallest[axis] != target[axis]]

    def rung(t: float, raised: str | None = None, to: float = 0.0) -> Scale:
        places = {axis: to if axis == raised else t for axis in axes}
        return smallest.replace(
            **{
                axis: smallest[axis] * (target[axis] / smallest[axis]) ** place
                for axis, place in places.items()
            }
        )

    for t in PLACES:
        yield (rung(t),)
    for low, high in itertools.combinations(PLACES, 2):
        yield rung(low), rung(high)
        if len(axes) > 1:
            yield rung(low), *(rung(low, axis, high) for axis in axes)


class _PriorModel:
    """The surrogate before any run, and what trials would teach it."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        base: Scale,
        target: Scale,
        coordinates: str,
        overrides: Mapping[str, Mapping[str, tuple[float, float]]],
        seed: int,
    ) -> None:
        axes = [axis for axis in target if base[axis] != target[axis]]
        self.coordinates = Coordinates(dimensions, base, axes)
        names = [dim.name for dim in self.coordinates.numeric]
        self.landscape = Landscape(self.coordinates, Drift.believed(names, axes, coordinates, overrides), 0.0)
        self.theta = self.landscape.mean
        self.target = self.coordinates.s(target)
        # The model needs a run to exist; this one is so noisy that it says nothing.
        mute = torch.cat([torch.zeros(self.landscape.d, dtype=torch.double), self.target * 0])[None]
        self.model = LandscapeGP(mute, torch.zeros(1, dtype=torch.double), self.landscape)
        self.model.covar_module.theta = self.theta
        self.model.likelihood.noise_covar.initialize(noise=torch.tensor([1e6], dtype=torch.double))
        self.model.eval()
        self.seed = seed

    @torch.no_grad()
    def excess(self, ladder: Sequence[Scale], trials: Sequence[int]) -> float:
        """tr(H Cov v*) at the target after trials at these rungs, ln loss."""
        rows = [self._rows(scale, n) for scale, n in zip(ladder, trials, strict=True) if n]
        latent = self.model.latent(self.target, pending=torch.cat(rows) if rows else None)
        _, covariance = latent.optimum()
        return float((self.landscape.curvature(self.theta, self.target) @ covariance).trace())

    def _rows(self, scale: Scale, n: int) -> torch.Tensor:
        """Trials at a rung (n x (d+a)): over the prior of its optimum, and near it, by turns."""
        landscape, s = self.landscape, self.coordinates.s(scale)
        generator = torch.Generator().manual_seed(self.seed)
        direction = torch.randn(n, landscape.d, dtype=torch.double, generator=generator)
        H = landscape.curvature(self.theta, s)
        low, high = (math.log(e) for e in NEAR)
        near = torch.exp(low + (high - low) * torch.rand(n, dtype=torch.double, generator=generator))
        length = torch.sqrt(near / torch.einsum("ni,ij,nj->n", direction, H, direction))
        wide = direction * landscape.sd[landscape.part("u")]
        offset = torch.where((torch.arange(n) % 2 == 0)[:, None], direction * length[:, None], wide)
        v = landscape.path(self.theta, s) + offset
        return torch.cat([v, s.expand(n, -1)], -1)
