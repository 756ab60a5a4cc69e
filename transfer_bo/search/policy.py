"""The order of a search: start-up points, then the acquisition function and checks of the optimum.

A search of multipliers of groups has two stages: first the HPs of all tensors, with the multipliers at their
defaults; then everything. A multiplier acts as its product with the HP that it multiplies, so a learning rate
that is still octaves off hides what its multipliers do. The second stage begins with start-up runs of its
own, in which all multipliers move at once about the optimum found so far. With `StudySettings.global_share`,
for many multipliers, it searches in a trust region around the best setting instead (arXiv:2512.22382).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.search import acquisition
from transfer_bo.search.budget import affordable_rungs, cheapest_rung, spent, trunk_runs
from transfer_bo.search.exclusions import drop_always_failing, matches_failed_run
from transfer_bo.search.startup import MAX_COUNT, startup_count, startup_point, startup_rung
from transfer_bo.search.state import SearchState
from transfer_bo.search.trust_region import (
    TrustRegion,
    moves_multipliers,
    multipliers,
    next_rung,
    propose_at_larger_rung,
    propose_inside,
    without_multipliers,
)
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.expected_loss import linearised_expected_loss, minimize_expected_loss
from transfer_bo.surrogate.priors import is_unknown
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

__all__ = ["choose_run", "propose", "usable_rungs"]

FIRST_STAGE_SHARE = 0.3
"""Share of the budget for the first stage, where none is given; the start-up runs of the second stage spend
at most as much."""

CHECK_EVERY = 3
"""Every third trial runs the predicted optimum itself. The acquisition function never proposes the optimum,
because under the model a run there says nothing about where the optimum lies. But such a run tests the loss
law, and shows where the model is wrong."""

CHECK_EVERY_IN_REGION = 6
"""In a trust region only every sixth trial does, the point of least posterior mean: with many HPs there is
more to learn elsewhere."""

CHECK_SHARE = 0.15
"""Rungs are checked if one run costs at most this share of the budget."""

MIN_COST_SHARE = 1 / 64
"""The acquisition function takes a run, also one that was made, to cost at least this share of the budget.
With the true costs of tiny rungs it would plan hundreds of runs there; what ends such a search is the number
of its trials, and it would end before larger rungs had been tried. The budget is counted at true cost."""

MAX_TRIES = 32
"""A point that failed before is replaced by a start-up point; so many of these are tried."""

TRY_STRIDE = 1009
"""Distance of these start-up points in the sequence, so that they are none of the search's own."""


def usable_rungs(state: SearchState) -> list[int]:
    """Indices of the rungs that a run may use: those that are affordable and work.

    If none is affordable, the cheapest one: what is asked for nevertheless should cost as little as possible.
    """
    settings = state.settings
    affordable = affordable_rungs(settings, state.runs) or [cheapest_rung(settings, settings.proxies)]
    scales = [settings.scales[index] for index in affordable]
    usable = drop_always_failing(scales, lambda run: run.scale, state.with_stored_outcome)
    return [settings.scales.index(scale) for scale in usable]


def propose(state: SearchState, rungs: Sequence[int]) -> tuple[int, dict[str, Any]]:
    """Rung index and HPs of the next run; a point that failed before at its rung is not proposed again.

    Args:
        state: the study as it stands.
        rungs: indices of the rungs that may be used.
    """
    settings = state.settings
    rung, params = choose_run(state, rungs)
    same_rung = [run for run in state.with_stored_outcome if run.scale == settings.scales[rung]]
    held = _multipliers_of_first_stage(state)
    movable = [
        dim
        for dim in state.dimensions
        if dim.name not in held and not (is_multiplier(dim.name) and settings.global_share is not None)
    ]

    for k in range(1, MAX_TRIES + 1):
        if not (movable and matches_failed_run(params, same_rung, state.dimensions)):
            break
        params = params | startup_point(movable, settings, state.number + k * TRY_STRIDE)
    return rung, params


def choose_run(state: SearchState, rungs: Sequence[int]) -> tuple[int, dict[str, Any]]:
    """Rung index and HPs of the next run, whatever failed before.

    Args:
        state: the study as it stands.
        rungs: indices of the rungs that may be used.
    """
    settings = state.settings
    held = _multipliers_of_first_stage(state)
    if held:
        rung, params = choose_run(_first_stage(state), rungs)
        return rung, {**held, **params}

    n_startup = startup_count(_first_stage(state) if _has_first_stage(state) else state, rungs)
    if len(_begun(state)) < n_startup or not state.finished:
        rung = startup_rung(state, rungs, n_startup)
        return rung, startup_point(state.dimensions, settings, state.number)

    if _needs_startup_of_multipliers(state, rungs):
        return _startup_of_multipliers(state, rungs)

    surrogate = fit_surrogate(state.runs, state.dimensions, settings, state.maximize)
    choose = _run_of_acquisition if settings.global_share is None else _run_in_trust_region
    scale, params = choose(state, surrogate, rungs)
    return settings.scales.index(scale), params


def _has_first_stage(state: SearchState) -> bool:
    """Whether multipliers join later: if an HP of all tensors of which little is known is searched too."""
    plain = without_multipliers(state.dimensions)
    is_open = any(dim.default is None or is_unknown(dim.name) for dim in plain)
    return is_open and len(plain) < len(state.dimensions) and state.settings.budget is not None


def _first_stage_budget(settings: StudySettings) -> float:
    """What the first stage may spend."""
    assert settings.budget is not None
    share = FIRST_STAGE_SHARE if settings.global_share is None else settings.global_share
    return share * settings.budget


def _multipliers_of_first_stage(state: SearchState) -> dict[str, Any]:
    """Multipliers of groups and their defaults, if the search is in its first stage; else none."""
    settings = state.settings
    if not _has_first_stage(state) or spent(settings, state.runs) >= _first_stage_budget(settings):
        return {}
    return _multiplier_defaults(state)


def _multiplier_defaults(state: SearchState) -> dict[str, Any]:
    """The searched multipliers with their defaults, inside their ranges."""
    return {dim.name: dim.default for dim in multipliers(state.dimensions)}


def _begun(state: SearchState) -> list[Run]:
    """Runs of the search but those that raised an error, which say nothing about HPs or scale."""
    return [run for run in state.searched if run.outcome is not Outcome.ERROR]


def _first_stage(state: SearchState) -> SearchState:
    """The first stage as a search of its own: without multipliers, and with its share of the budget."""
    settings = replace(state.settings, global_share=None, budget=_first_stage_budget(state.settings))
    return replace(state, settings=settings, dimensions=without_multipliers(state.dimensions), frozen=())


def _needs_startup_of_multipliers(state: SearchState, rungs: Sequence[int]) -> bool:
    """Whether the second stage has yet to begin: with one start-up run more than there are multipliers."""
    settings = state.settings
    if not _has_first_stage(state) or settings.global_share is not None:
        return False
    defaults = _multiplier_defaults(state)
    cost = settings.costs[cheapest_rung(settings, rungs)]
    count = min(len(defaults) + 1, MAX_COUNT, int(_first_stage_budget(settings) / cost))
    values = [{name: run.params.get(name, defaults[name]) for name in defaults} for run in _begun(state)]
    return sum(moves_multipliers(each, defaults) for each in values) < count


def _startup_of_multipliers(state: SearchState, rungs: Sequence[int]) -> tuple[int, dict[str, Any]]:
    """A start-up run of the second stage, at the cheapest rung.

    All multipliers move at once, each as far as its prior says, so that a few noisy runs tell of all of them.
    The other HPs are at the optimum expected of the first stage.
    """
    settings = state.settings
    rung = cheapest_rung(settings, rungs)
    plain = without_multipliers(state.dimensions)
    surrogate = fit_surrogate(state.runs, plain, settings, state.maximize)
    v, flags = _expected_optimum(surrogate, settings.scales[rung], state.generator())
    moved = startup_point(multipliers(state.dimensions), settings, state.number)
    return rung, {**surrogate.coordinates.params(v, flags), **moved}


def _expected_optimum(
    surrogate: Surrogate, scale: Scale, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The setting of least expected loss at a scale: v and category flags."""
    expected = linearised_expected_loss(surrogate, scale, generator, caution=0.0)
    return minimize_expected_loss(expected, generator)


def _run_in_trust_region(
    state: SearchState, surrogate: Surrogate, rungs: Sequence[int]
) -> tuple[Scale, dict[str, Any]]:
    """Scale and HPs of the next run of the second stage."""
    settings, generator = state.settings, state.generator()
    costs = {settings.scales[index]: settings.costs[index] for index in rungs}
    cheapest = min(costs, key=lambda scale: costs[scale])
    region = TrustRegion.of(surrogate, cheapest, state.maximize)
    # Larger rungs show whether multipliers keep their worth: before one has moved they have nothing to show.
    has_moved = region.moves_multipliers(surrogate.coordinates, settings.defaults)
    scale = next_rung(costs, state.searched, settings.defaults) if has_moved else cheapest
    if scale != cheapest:
        return scale, propose_at_larger_rung(surrogate, region, scale, cheapest, generator)

    params = propose_inside(
        surrogate,
        region,
        scale,
        generator,
        greedy=state.number % CHECK_EVERY_IN_REGION == 0,
        frozen=state.frozen,
    )
    return scale, params


def _run_of_acquisition(
    state: SearchState, surrogate: Surrogate, rungs: Sequence[int]
) -> tuple[Scale, dict[str, Any]]:
    """Scale and HPs of the next run: a check of the predicted optimum, or what teaches most per cost."""
    settings, generator = state.settings, state.generator()
    min_cost = 0.0 if settings.budget is None else MIN_COST_SHARE * settings.budget
    costs = {settings.scales[index]: max(settings.costs[index], min_cost) for index in rungs}

    if state.number % CHECK_EVERY == 0:
        scale = _scale_to_check(state, costs)
        v, flags = _expected_optimum(surrogate, scale, generator)
        row = surrogate.rows(v[None], scale, flags)
        if all(
            not feasibility.any_infeasible or float(feasibility.probability(row)) <= acquisition.RISK
            for feasibility in (surrogate.memory, surrogate.constraints)
        ):
            return scale, surrogate.coordinates.params(v, flags)

    # The plan spends what remains of the budget, but at least one run at any usable rung. Without a budget it
    # spends as much again as was spent so far.
    used = spent(settings, state.runs, min_cost)
    remaining_budget = used if settings.budget is None else max(settings.budget - used, *costs.values())
    repeats = trunk_runs(settings, state.runs, costs)
    return acquisition.propose(surrogate, costs, remaining_budget, generator, repeats)


def _scale_to_check(state: SearchState, costs: Mapping[Scale, float]) -> Scale:
    """Where the predicted optimum is run: of the cheap rungs, the one on which least was spent."""
    budget = state.settings.budget
    limit = math.inf if budget is None else CHECK_SHARE * budget
    counts = Counter(run.scale for run in state.searched)
    return min(costs, key=lambda scale: (costs[scale] > limit, costs[scale] * counts[scale]))
