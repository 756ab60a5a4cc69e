"""What runs cost, what a search has spent, and which rungs it can still afford.

These are queries: they read runs and settings and change nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from transfer_bo.attributes import SETTINGS_ATTR
from transfer_bo.errors import BudgetError, ScaleError
from transfer_bo.records import Outcome, Run, StudySettings, finished_runs, read_settings
from transfer_bo.scale import Cost, Ladder, Scale

__all__ = [
    "CostModel",
    "affordable_rungs",
    "cheapest_rung",
    "check_budget",
    "check_costs",
    "measured_seconds",
    "reused_part",
    "spent",
    "spent_so_far",
    "trunk_runs",
]

UNMEASURED = 64
"""With a budget in seconds, and before any run has finished, the cheapest run is taken to cost the budget
divided by this."""

ROUNDING = 1e-9
"""A rung counts as affordable if it costs more than the remaining budget by at most this share of it."""


@dataclass(frozen=True)
class CostModel:
    """What one run costs at each scale, in the unit of the budget.

    Attributes:
        cost: cost of one run at a scale; where seconds are wanted, what they are taken to be proportional to.
        in_seconds: whether costs are the measured seconds of finished runs.
        budget: compute for tuning, or None for no limit.
    """

    cost: Cost
    in_seconds: bool = False
    budget: float | None = None

    def price(self, scale: Scale) -> float:
        """Cost of one run at a scale by the cost function.

        Raises:
            BudgetError: if it is not positive and finite.
        """
        price = float(self.cost(scale))
        if not (math.isfinite(price) and price > 0):
            raise BudgetError(f"cost({scale}) is {price!r}; make it a positive finite number.")
        return price

    def prices(self, scales: Sequence[Scale], runs: Iterable[Run]) -> tuple[float, ...]:
        """Cost of one run at each of the scales, given the runs so far."""
        prices = tuple(map(self.price, scales))
        if not self.in_seconds:
            return prices

        seconds = measured_seconds(scales, runs, self.price)
        if seconds is None and self.budget is not None:
            return tuple(price * self.budget / (UNMEASURED * min(prices)) for price in prices)
        return seconds or prices


def measured_seconds(
    scales: Iterable[Scale], runs: Iterable[Run], guess: Callable[[Scale], float]
) -> tuple[float, ...] | None:
    """Seconds of one run at each scale: the median of its finished runs; None before any has finished.

    A scale without a finished run costs in proportion to `guess`, starting from the measured scale that is
    closest to it by `guess`.

    Args:
        scales: the scales to price.
        runs: all runs; those of source studies do not count, because they ran on other machines.
        guess: cost of a run at a scale, in any unit.
    """
    seconds: dict[Scale, list[float]] = {}
    for run in finished_runs(runs):
        if run.seconds and run.source is None:
            seconds.setdefault(run.scale, []).append(run.seconds)
    if not seconds:
        return None

    def price(scale: Scale) -> float:
        closest = min(seconds, key=lambda other: (other != scale, abs(math.log(guess(other) / guess(scale)))))
        return statistics.median(seconds[closest]) * guess(scale) / guess(closest)

    return tuple(map(price, scales))


def spent(settings: StudySettings, runs: Iterable[Run], min_cost: float = 0.0) -> float:
    """Compute for tuning that is used or reserved.

    A stopped, diverged or preempted run counts as far as it got, a running one in full.

    Args:
        settings: settings of the study.
        runs: all runs; only those of the search count.
        min_cost: what a whole run is charged at least, in the unit of the costs.
    """
    total = 0.0
    for run in runs:
        if run.scale is None or run.purpose != "search" or run.outcome is Outcome.WAITING:
            continue

        cost = max(settings.cost(run.scale), min_cost)
        reached = max(run.curve, default=0.0)
        if run.outcome is Outcome.PREEMPTED or (
            run.outcome in (Outcome.PRUNED, Outcome.DIVERGED) and run.curve
        ):
            total += cost * max(0.0, min(1.0, reached) - run.reused)
        else:
            total += cost * (1.0 - run.reused)
    return total


def reused_part(
    settings: StudySettings, scale: Scale, params: Mapping[str, Any], runs: Iterable[Run]
) -> float:
    """Share of a run that finished runs with the same HPs have trained, see `training.trunk`.

    Args:
        settings: settings of the study.
        scale: where it would run.
        params: its HPs.
        runs: all runs.
    """
    if settings.trunk_decay is None or "tokens" not in scale:
        return 0.0
    lengths = [
        run.scale.tokens
        for run in finished_runs(runs)
        if run.source is None
        and run.purpose == "search"
        and run.params == params
        and run.scale.replace(tokens=scale.tokens) == scale
    ]
    stable = 1.0 - settings.trunk_decay
    return float(stable * min(1.0, max(lengths, default=0.0) / scale.tokens))


def trunk_runs(
    settings: StudySettings, runs: Sequence[Run], costs: Mapping[Scale, float]
) -> list[tuple[Scale, dict[str, Any], float]]:
    """Runs that would go on from where others were kept: rung, HPs, and cost of what remains.

    Args:
        settings: settings of the study.
        runs: all runs.
        costs: the rungs that may be used, each with the cost of one whole run.
    """
    if settings.trunk_decay is None:
        return []
    done = {(run.scale, *sorted(run.params.items())) for run in runs if run.purpose == "search"}
    found: dict[Any, tuple[Scale, dict[str, Any], float]] = {}
    for run in finished_runs(runs):
        for scale, cost in costs.items():
            key = (scale, *sorted(run.params.items()))
            reused = reused_part(settings, scale, run.params, [run])
            if reused and key not in done:
                cost = min(cost * (1.0 - reused), found[key][2] if key in found else math.inf)
                found[key] = (scale, run.params, cost)
    return list(found.values())


def spent_so_far(study: Any, runs: Iterable[Run]) -> float:
    """Compute used or reserved by a study's search, in the unit of its costs; 0 before its first trial."""
    if SETTINGS_ATTR not in study.user_attrs:
        return 0.0
    return spent(read_settings(study), runs)


def cheapest_rung(settings: StudySettings, rungs: Iterable[int]) -> int:
    """Index of the rung whose runs cost least."""
    return min(rungs, key=lambda index: settings.costs[index])


def affordable_rungs(settings: StudySettings, runs: Iterable[Run]) -> list[int]:
    """Indices of the rungs whose cost fits into the remaining budget; none if it is exhausted."""
    if settings.budget is None:
        return list(settings.proxies)

    remaining_budget = settings.budget - spent(settings, runs)
    return [index for index in settings.proxies if settings.costs[index] <= remaining_budget * (1 + ROUNDING)]


def check_budget(cost: Any, budget: Any, global_share: Any) -> None:
    """Refuse a user's cost, budget or share that is invalid by itself.

    Raises:
        BudgetError: if one is.
    """
    if isinstance(cost, str) and cost != "seconds":
        raise BudgetError(f'cost is {cost!r}; give a function of a scale, or "seconds".')
    if budget is not None and not (isinstance(budget, Real) and 0 < float(budget) < math.inf):
        raise BudgetError(f"budget is {budget!r}; set it to a positive number, or None for no limit.")
    if global_share is not None and not (0 <= global_share < 1 and budget is not None):
        raise BudgetError(
            f"global_share is {global_share!r} and budget {budget!r}; give a share from 0 to below 1, "
            "and a budget."
        )


def check_costs(ladder: Ladder, target: Scale, costs: CostModel) -> None:
    """Refuse a ladder without a rung that is cheaper than the target, and a budget that buys no run.

    Raises:
        ScaleError: for such a ladder.
        BudgetError: for such a budget.
    """
    cheapest = min(ladder.proxies, key=costs.price)
    if costs.price(cheapest) >= costs.price(target):
        raise ScaleError(
            f"No rung is cheaper than the target {target} (the cheapest, {cheapest}, costs as much); "
            "add a smaller rung."
        )
    if costs.budget is not None and not costs.in_seconds and costs.budget < costs.price(cheapest):
        raise BudgetError(
            f"budget is {costs.budget:g} and buys no run, because the cheapest costs "
            f"{costs.price(cheapest):g}; give it in the unit of cost (n target runs are n times "
            f"{costs.price(target):g})."
        )
