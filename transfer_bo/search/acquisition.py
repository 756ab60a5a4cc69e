"""The acquisition function: which run next most lowers the expected excess loss at the target, per cost.

The fidelity (the rung) and the HPs are chosen together. The remaining budget is planned as a sequence of
runs, each given those before (`plan_runs`); the one that alone lowers most per cost is run.

Symbols: rows x, v, s, d as in `surrogate.coordinates`; f, H = curvature, θ as in `surrogate.landscape`; e =
residual + effects of categories; v* = optimum of the bowl at the scale that is judged; m rows that may be
run, j rows that may be the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.surrogate.constraints import ConstraintModel
from transfer_bo.surrogate.expected_loss import optimum_candidates, random_categories
from transfer_bo.surrogate.feasibility import FeasibilityModel
from transfer_bo.surrogate.posterior import OptimumPosterior, normal_draws
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["RISK", "plan_runs", "propose"]

CANDIDATES = 64
"""Points tried per rung."""

MIN_EXCESS = 0.002
"""Candidates lie where the bowl predicts at least so much excess ln loss: closer to the optimum nothing is
learned about where it is ..."""

MAX_EXCESS = 0.04
"""... and at most so much, further away the bowl misleads ..."""

NOISE_MULTIPLES = 5.0
"""... or up to so many times the noise of a run, if that is more: noisy runs have to be further apart."""

MOVED = 3
"""Half of the candidates around the optimum move about so many HPs: information about one HP is best bought
alone."""

OVERHEAD = 0.1
"""Fixed price of a run (start-up, proposing), as a share of the mean rung's cost."""

RISK = 0.3
"""Points likelier than this to diverge, or to run out of memory, are not proposed."""

PLANNED = 16
"""About how many runs, or bundles of them, a plan looks ahead."""

DRAWS = 256
"""Draws that tell each candidate's chance to be the best."""

ROUNDING = 1e-9
"""A plan may exceed the budget by this share of it."""


def propose(
    surrogate: Surrogate,
    costs: Mapping[Scale, float],
    remaining_budget: float,
    generator: torch.Generator,
    repeats: Sequence[tuple[Scale, dict[str, Any], float]] = (),
) -> tuple[Scale, dict[str, Any]]:
    """The next run, given the running ones.

    Args:
        surrogate: fitted to all runs so far.
        costs: the rungs that may be used, each with the cost of one run.
        remaining_budget: what may still be spent, in the unit of `costs`.
        generator: source of randomness.
        repeats: runs that cost less than others at their rung: rung, HPs and cost (`budget.trunk_runs`).

    Returns:
        The rung, and the value of every HP.
    """
    target = surrogate.settings.target
    posterior = surrogate.optimum_posterior(target, pending=True)
    optima = optimum_candidates(surrogate, posterior, target, generator)

    scales = list(costs)
    per_rung = [_candidates(surrogate, scale, optima, generator) for scale in scales]
    X = torch.cat(per_rung)
    rung = torch.arange(len(scales)).repeat_interleave(torch.tensor([len(rows) for rows in per_rung]))
    overhead = OVERHEAD * sum(costs.values()) / len(costs)
    price = torch.tensor([costs[scale] + overhead for scale in scales]).double()[rung]
    n_new = len(X)
    if repeats:
        X = torch.cat([X, *(surrogate.coordinates.row(hps, scale)[None] for scale, hps, _ in repeats)])
        rung = torch.cat([rung, torch.tensor([scales.index(scale) for scale, _, _ in repeats])])
        price = torch.cat([price, torch.tensor([cost + overhead for _, _, cost in repeats]).double()])
    index = torch.arange(len(X))

    safe = _safe(surrogate.divergence, X, rung)
    X, rung, price, index = X[safe], rung[safe], price[safe], index[safe]
    for feasibility in (surrogate.memory, surrogate.constraints):
        safe = _safe(feasibility, X, torch.zeros_like(rung))  # another rung may have enough memory
        X, rung, price, index = X[safe], rung[safe], price[safe], index[safe]

    noise = surrogate.model.noise(X)
    first = plan_runs(posterior, X, noise, price, remaining_budget, optima, generator)[0]
    if index[first] >= n_new:
        scale, hps, _ = repeats[int(index[first]) - n_new]
        return scale, dict(hps)
    v, flags, _ = surrogate.landscape.split(X[first])
    return scales[int(rung[first])], surrogate.coordinates.params(v, flags)


def _safe(feasibility: FeasibilityModel | ConstraintModel, X: Tensor, group: Tensor) -> Tensor:
    """Which rows are at most RISK likely to be infeasible, or the least likely ones of their group (m)."""
    if not feasibility.any_infeasible:
        return torch.ones(len(X), dtype=torch.bool)
    risk = feasibility.probability(X)
    least = torch.stack([risk[group == i].min() for i in range(int(group.max()) + 1)])
    return risk <= least[group].clamp(min=RISK)


@torch.no_grad()
def _candidates(surrogate: Surrogate, scale: Scale, optima: Tensor, generator: torch.Generator) -> Tensor:
    """Rows at a rung: some excess loss away from the optimum there, and `optima` moved there by the drift."""
    coordinates, landscape = surrogate.coordinates, surrogate.landscape
    d, theta = coordinates.d, surrogate.theta
    s = coordinates.s(scale)
    centre, _ = surrogate.optimum_posterior(scale).optimum()
    H = landscape.curvature(theta, s)

    directions = torch.randn(CANDIDATES, d, dtype=torch.double, generator=generator) / H.diagonal().sqrt()
    few = torch.rand(CANDIDATES, d, dtype=torch.double, generator=generator) < min(1.0, MOVED / max(d, 1))
    few[::2] = True
    directions = directions * few + 1e-9

    noise_sd = float(surrogate.model.hyperparameters.noise_sd)
    low, high = math.log(MIN_EXCESS), math.log(max(MAX_EXCESS, NOISE_MULTIPLES * noise_sd))
    excess_losses = torch.exp(
        low + (high - low) * torch.rand(CANDIDATES, dtype=torch.double, generator=generator)
    )
    length = torch.sqrt(excess_losses / torch.einsum("ni,ij,nj->n", directions, H, directions))
    seed = surrogate.search_seed(scale)
    around = surrogate.rows(
        coordinates.clip(centre + directions * length[:, None]),
        scale,
        random_categories(surrogate, CANDIDATES, generator),
        seed,
    )

    v, flags, at = landscape.split(optima[:: max(1, 2 * len(optima) // CANDIDATES)])
    moved = coordinates.clip(v - landscape.path(theta, at) + landscape.path(theta, s))
    return torch.cat([around, surrogate.rows(moved, scale, flags, seed)])


@dataclass(frozen=True, eq=False)
class _Plan:
    """A plan of some runs, and what is not known after them.

    Attributes:
        covariance: of f at the rows that may be run (m x m).
        with_bowl: Cov(f, H^(1/2) v*) (m x d).
        with_error: Cov(f, e_j - e_guess) (m x j).
        error_variance: of e_j - e_guess (j).
        budget: what remains of it.
        gain: by how much the runs lower the expected excess loss.
        runs: indices of the rows.
    """

    covariance: Float[Tensor, "m m"]
    with_bowl: Float[Tensor, "m d"]
    with_error: Float[Tensor, "m j"]
    error_variance: Float[Tensor, " j"]
    budget: float
    gain: float = 0.0
    runs: tuple[int, ...] = ()

    def gains(self, noise: Tensor, chance: Tensor) -> Tensor:
        """By how much one run at each row lowers the expected excess loss (m)."""
        variance = self.covariance.diagonal() + noise
        lowered = (self.error_variance - self.with_error**2 / variance[:, None]).clamp(min=0)
        of_error = (self.error_variance.sqrt() - lowered.sqrt()) @ chance
        return (self.with_bowl**2).sum(-1) / variance + of_error

    def after(self, i: int, noise: Tensor, price: Tensor, gain: Tensor) -> _Plan:
        """The plan with a run at row i."""
        variance = self.covariance[i, i] + noise[i]
        weight = self.covariance[:, i] / variance
        return replace(
            self,
            covariance=self.covariance - torch.outer(weight, self.covariance[i]),
            with_bowl=self.with_bowl - torch.outer(weight, self.with_bowl[i]),
            with_error=self.with_error - torch.outer(weight, self.with_error[i]),
            error_variance=(self.error_variance - self.with_error[i] ** 2 / variance).clamp(min=0),
            budget=self.budget - float(price[i]),
            gain=self.gain + float(gain[i]),
            runs=(*self.runs, i),
        )


@torch.no_grad()
def plan_runs(
    posterior: OptimumPosterior,
    X: Float[Tensor, "m row"],
    noise: Float[Tensor, " m"],
    costs: Float[Tensor, " m"],
    budget: float,
    optima: Float[Tensor, "j row"],
    generator: torch.Generator,
) -> list[int]:
    """Runs that together most lower the expected excess loss at a scale, for a budget.

    The excess has two parts. That of setting the HPs to the posterior mean of the bowl's optimum v* is
    tr(H Cov v*). That of what the bowl does not say, e, is for the best guess ĵ among the candidates the sum
    over j of P(j is best) sd(e_j - e_ĵ). A run lowers both in closed form. Runs are added by what they lower
    per cost, each given those before. The first run at a new rung determines little but the level of the loss
    there, so for each rung there is also a plan that begins with a pair at it; the best plan wins.

    Args:
        posterior: at the scale.
        X: rows to pick from.
        noise: variance of one run at each row.
        costs: of one run at each row; equal costs mean the same rung.
        budget: what may be spent.
        optima: rows at the scale that may be the optimum.
        generator: source of randomness.

    Returns:
        Indices of the picked rows, at least one; the one that alone lowers most per cost comes first.
    """
    start, chance = _start(posterior, X, optima, budget, generator)
    bundle = (budget / (PLANNED * costs)).floor().clamp(min=1.0)  # cheap runs are planned in bundles
    price, noise = bundle * costs, noise / bundle
    alone = start.gains(noise, chance) / costs

    best = start
    for rung in (None, *sorted(set(costs.tolist()))):
        plan = _greedy(start, noise, costs, price, chance, rung)
        is_affordable = plan.budget >= -ROUNDING * budget
        if not best.runs or (plan.gain > best.gain and is_affordable):
            best = plan
    return sorted(best.runs, key=lambda i: -float(alone[i]))


def _start(
    posterior: OptimumPosterior, X: Tensor, optima: Tensor, budget: float, generator: torch.Generator
) -> tuple[_Plan, Tensor]:
    """The plan without runs, and each candidate's chance to be the best (j)."""
    mean, covariance = posterior.values(optima)
    draws = normal_draws(mean, covariance, DRAWS, generator)
    chance = torch.bincount(draws.argmin(-1), minlength=len(mean)).double() / DRAWS
    guess = int(mean.argmin())

    joint = posterior.joint(X, optima)
    H = posterior.landscape.curvature(posterior.kernel.theta, posterior.s)
    towards = posterior.path_map().T @ torch.linalg.cholesky(H)
    e = joint.residual
    variance = e.diagonal() + e[guess, guess] - 2 * e[guess]
    plan = _Plan(
        covariance=joint.covariance,
        with_bowl=joint.with_latent @ towards,
        with_error=joint.with_residual - joint.with_residual[:, guess, None],
        error_variance=variance.clamp(min=0),
        budget=budget,
    )
    return plan, chance


def _greedy(
    start: _Plan, noise: Tensor, costs: Tensor, price: Tensor, chance: Tensor, rung: float | None
) -> _Plan:
    """The plan that adds what lowers most per price, beginning with a pair at a rung if its cost is given."""
    plan = start
    while not plan.runs or bool(_affordable(price, plan.budget).any()):
        in_pair = rung is not None and len(plan.runs) < 2
        allowed = costs.eq(rung or 0.0) if in_pair else _affordable(price, plan.budget)
        if not plan.runs and not bool(allowed.any()):
            allowed = costs.eq(costs.min())

        gain = plan.gains(noise, chance)
        i = int(torch.where(allowed, gain / price, -1.0).argmax())
        if plan.runs and in_pair and not bool(_affordable(price[i], plan.budget)):
            break
        plan = plan.after(i, noise, price, gain)
    return plan


def _affordable(price: Tensor, budget: float) -> Tensor:
    return price.le(budget * (1 + ROUNDING))
