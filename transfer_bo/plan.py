"""How to spend a tuning budget: which ladder of proxies, how many trials, or no proxies at all.

Two views, both simple. The theory of useful transfer (Ghosh, Wu, Bietti, arXiv:2512.22768, section 3) gives
rates: with a loss gap ~ n^-α and an HP gap ~ n^-β at width n,

    direct      gap ~ F^(-2α/(hα+2r))
    transfer    gap ~ F^(-α/r) + F^(-2β/(hβ+r))        useful if and only if β > α/2

The other is the surrogate's own expectation before any run: for a ladder and a number of trials, the excess
loss that would remain at the target, tr(H Cov v*), by the same priors of bowl, drift, jitter and noise that
a study starts from. It depends on no measured loss, so every plan can be compared without training anything.
Tuning directly is a plan whose only rung is the target; not tuning is a plan without trials. A search that
places its trials by what it has seen does better than these, which are placed blindly, most so with few.

Symbols:
    F        compute for tuning
    h        number of HPs
    n, r     width of a proxy, and the power of it that a run costs, n^r
    α, β     exponents of the loss gap and of the HP gap
    H        curvature of the bowl at the target (d x d)
    v*       optimum at the target (d)
    s        scale, doublings of each axis from the smallest proxy (a)
    θ        parameters of the landscape: loss law, bowl and drift
    t        place of a rung between the smallest proxy and the target, geometrically, in [0, 1)
    d, a     number of HPs and of axes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.errors import BudgetError, ScaleError, SearchSpaceError, TransferError
from transfer_bo.quantities import counted
from transfer_bo.records import read_drift_prior
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import KernelHyperparameters, hyperparameter_prior
from transfer_bo.surrogate.landscape import DriftPrior, Landscape
from transfer_bo.synonyms import axis_kind

__all__ = ["Plan", "Tuning", "make_plan", "useful_transfer"]

PLACES = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Where rungs may stand, t."""

SHRINK = 64.0
"""The smallest proxy, if none is given: each axis but the batch is so many times below the target's."""

MAX_TRIALS = 200
"""Plans with more trials are not considered: nobody waits for so many, one after the other."""

TRIAL_EXCESS = (0.002, 0.04)
"""Half of the trials lie at so much excess ln loss around the optimum, half are spread over its prior."""

WORTH = 0.9
"""Proxies are recommended if at most this share of the excess loss remains that tuning directly leaves."""

UNINFORMATIVE_NOISE = 1e6
"""Variance of the one run that the model needs to exist, so large that the run says nothing."""


@dataclass(frozen=True)
class Tuning:
    """One way to spend the budget.

    Attributes:
        ladder: the rungs.
        trials: number of trials at each rung.
        cost: cost of all trials, in the budget's unit.
        excess_loss: ln loss above the best setting, expected at the target.
    """

    ladder: tuple[Scale, ...]
    trials: tuple[int, ...]
    cost: float
    excess_loss: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ladder": [dict(scale) for scale in self.ladder],
            "trials": list(self.trials),
            "cost": self.cost,
            "excess": self.excess_loss,
        }


@dataclass(frozen=True)
class Plan:
    """What to do with a budget.

    Attributes:
        target: the large model.
        budget: compute for tuning, without the final run; in the unit of `run_cost`.
        run_cost: cost of one run at the target.
        transfer: the best plan on proxies, None if the budget pays for none.
        direct: the best number of trials at the target, None if the budget does not pay for one.
        untuned: expected excess loss of setting every HP to the middle of its range.
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
        other = min(self.untuned, self.direct.excess_loss if self.direct else math.inf)
        return self.transfer.excess_loss <= WORTH * other

    @property
    def advice(self) -> str:
        """One sentence."""
        runs = f"{self.budget / self.run_cost:.2g} target runs"
        if self.use_proxies and self.transfer:
            return self._advise_transfer(runs, self.transfer)
        if self.direct and self.direct.excess_loss < WORTH * self.untuned:
            return self._advise_direct(runs, self.direct)
        return f"For {runs} no tuning pays: {self.untuned:.2%} of excess loss is expected either way."

    def _advise_transfer(self, runs: str, transfer: Tuning) -> str:
        rungs = len(transfer.ladder)
        trials = f"{counted(sum(transfer.trials), 'trial')} on {counted(rungs, 'proxy', 'proxies')}"
        direct = "no run of it is paid for"
        if self.direct:
            direct = f"{self.direct.excess_loss:.2%} when tuning directly"
        return (
            f"For {runs}, {trials} should leave {transfer.excess_loss:.2%} of excess loss at the target "
            f"({direct}, {self.untuned:.2%} untuned)."
        )

    def _advise_direct(self, runs: str, direct: Tuning) -> str:
        proxies = f", proxies {self.transfer.excess_loss:.2%}" if self.transfer else ""
        return (
            f"Proxies are not worth it: for {runs}, {counted(direct.trials[0], 'trial')} at the target "
            "itself "
            f"should leave {direct.excess_loss:.2%} of excess loss{proxies}."
        )

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
        alpha: exponent of the loss gap, ~ n^-α.
        beta: exponent of the HP gap, ~ n^-β.
        hps: number of HPs searched on a grid.
        cost_power: r, a run at width n costs n^r.

    Returns:
        "direct" and "transfer" (the slower of its two terms), "width" of the proxies, n* ~ F^(1/(hβ+r)), and
        "useful" (β > α/2).

    Raises:
        TransferError: for an exponent or number that is not positive.
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
        budget: compute for tuning without the final run, FLOPs as `default_cost` counts them (6 N D).
        target: the large model.
        hps: `{name: (kind, low, high)}`, kind "log", "linear" or "one_minus".
        smallest: the smallest proxy that still trains like the target.
        coordinates: "raw" or "base".
        drift_prior: your own prior of the drift, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        seed: seed of the trials' places.

    Raises:
        BudgetError: for a budget that is not positive.
        SearchSpaceError: for no HP, or an invalid range.
        ScaleError: for a smallest proxy that is not smaller than the target.
        PriorError: for an invalid drift prior.
        TransferError: for invalid coordinates.
    """
    if not (math.isfinite(budget) and budget > 0):
        raise BudgetError(f"The budget is {budget!r}; give a positive number.")
    if not hps:
        raise SearchSpaceError("No HP is named; give at least one, with its range.")
    if coordinates not in ("raw", "base"):
        raise TransferError(f"coordinates is {coordinates!r}; use 'raw' or 'base'.")
    smallest = _smallest_proxy(target) if smallest is None else smallest
    if any(ratio > 0 for ratio in smallest.log2_ratio(target).values()) or smallest == target:
        raise ScaleError(f"The smallest proxy {smallest} is not smaller than the target {target}.")

    dimensions = [Dimension(name, kind, low, high) for name, (kind, low, high) in sorted(hps.items())]
    overrides = read_drift_prior(drift_prior or {}, target)
    prior_model = _PriorModel(dimensions, smallest, target, coordinates, overrides, seed)

    run_cost = default_cost(target)
    direct = _tuning((target,), (min(int(budget / run_cost), MAX_TRIALS),), prior_model)
    candidates = [
        _tuning(ladder, trials, prior_model)
        for ladder in _ladders(smallest, target)
        for trials in _allocations(ladder, budget)
        if min(trials) >= 1
    ]
    best = min(candidates, key=lambda tuning: (tuning.excess_loss, tuning.cost)) if candidates else None
    return Plan(
        target=target,
        budget=budget,
        run_cost=run_cost,
        transfer=best,
        direct=direct if direct.trials[0] else None,
        untuned=prior_model.expected_excess((), ()),
    )


def _smallest_proxy(target: Scale) -> Scale:
    """A proxy that is `SHRINK` times smaller along each axis but the batch."""
    return Scale({axis: v / (1 if axis_kind(axis) == "batch" else SHRINK) for axis, v in target.items()})


def _allocations(ladder: Sequence[Scale], budget: float) -> Iterable[tuple[int, ...]]:
    """Numbers of trials at each rung: the same number at all, or the same compute."""
    costs = [default_cost(scale) for scale in ladder]
    same_number = [int(budget / sum(costs))] * len(ladder)
    same_compute = [int(budget / len(costs) / cost) for cost in costs]
    for trials in (same_number, same_compute):
        share = min(1.0, MAX_TRIALS / max(sum(trials), 1))
        yield tuple(int(n * share) for n in trials)


def _tuning(ladder: Sequence[Scale], trials: Sequence[int], prior_model: _PriorModel) -> Tuning:
    """Trials at the rungs of a ladder, with their cost and what they should leave."""
    cost = sum(n * default_cost(scale) for n, scale in zip(trials, ladder, strict=True))
    return Tuning(tuple(ladder), tuple(trials), cost, prior_model.expected_excess(ladder, trials))


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
    """The surrogate before any run, and what trials would teach it.

    Args:
        dimensions: the searched HPs.
        base: the smallest proxy.
        target: the large model.
        coordinates: "raw" or "base".
        overrides: your own prior of the drift.
        seed: seed of the trials' places.
    """

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
        drift_prior = DriftPrior.from_tables(names, axes, coordinates, overrides)
        self.landscape = Landscape(self.coordinates, drift_prior, 0.0)
        self.theta = self.landscape.mean
        self.target = self.coordinates.s(target)
        self.seed = seed
        self.model = self._fit_to_nothing()

    def _fit_to_nothing(self) -> LandscapeGP:
        """The model at its prior; it needs a run to exist, and gets one that says nothing."""
        row = torch.cat([torch.zeros(self.landscape.d, dtype=torch.double), self.target * 0])[None]
        logs, _ = hyperparameter_prior(self.coordinates)
        return LandscapeGP(
            row,
            torch.zeros(1, dtype=torch.double),
            self.landscape,
            self.theta,
            KernelHyperparameters.from_log_vector(logs, sources=0),
            noise=torch.tensor([UNINFORMATIVE_NOISE], dtype=torch.double),
        )

    @torch.no_grad()
    def expected_excess(self, ladder: Sequence[Scale], trials: Sequence[int]) -> float:
        """tr(H Cov v*) at the target after trials at these rungs, ln loss."""
        rows = [self._rows(scale, n) for scale, n in zip(ladder, trials, strict=True) if n]
        posterior = self.model.optimum_posterior(self.target, pending=torch.cat(rows) if rows else None)
        _, covariance = posterior.optimum()
        return float((self.landscape.curvature(self.theta, self.target) @ covariance).trace())

    def _rows(self, scale: Scale, n: int) -> Float[Tensor, "n d_plus_a"]:
        """Trials at a rung: by turns close to its optimum, and spread over the optimum's prior."""
        landscape, s = self.landscape, self.coordinates.s(scale)
        generator = torch.Generator().manual_seed(self.seed)
        direction = torch.randn(n, landscape.d, dtype=torch.double, generator=generator)
        H = landscape.curvature(self.theta, s)

        low, high = (math.log(excess_loss) for excess_loss in TRIAL_EXCESS)
        excess_loss = torch.exp(low + (high - low) * torch.rand(n, dtype=torch.double, generator=generator))
        length = torch.sqrt(excess_loss / torch.einsum("ni,ij,nj->n", direction, H, direction))
        wide = direction * landscape.sd[landscape.part("u")]
        offset = torch.where((torch.arange(n) % 2 == 0)[:, None], direction * length[:, None], wide)

        v = landscape.path(self.theta, s) + offset
        return torch.cat([v, s.expand(n, -1)], -1)
