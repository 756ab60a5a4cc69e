"""The search of a study file: its sampler, its first trial, its budget, its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna

from transfer_bo.attributes import RUNG
from transfer_bo.records import Outcome, Run
from transfer_bo.sampler import TransferSampler
from transfer_bo.search.budget import spent_so_far
from transfer_bo.surrogate import priors

if TYPE_CHECKING:
    from transfer_bo.runners.task import Task

__all__ = ["first_params", "make_sampler", "search_is_over"]


def make_sampler(task: Task) -> TransferSampler:
    """The sampler of a study file, which shares the ladder with the task that trains."""
    drift_prior, trunk_decay = None, None
    if task.file.training.trunk:
        # The rule says nothing about duration then: what is known are the published exponents.
        drift_prior = {hp: {"tokens": priors.drift_prior(hp, "tokens", "raw")} for hp in task.space.defaults}
        trunk_decay = task.file.training.decay
    return TransferSampler(
        ladder=task.ladder,
        target=task.file.target,
        seed=task.file.seed,
        cost=task.cost,
        budget=task.budget,
        coordinates=task.coordinates,
        drift_prior=drift_prior,
        trunk_decay=trunk_decay,
        defaults=task.space.defaults,
        global_share=None if task.file.per_module is None else task.file.per_module.global_share,
    )


def first_params(task: Task) -> dict[str, Any]:
    """HPs of a new study's first trial: the documented defaults at the cheapest rung."""
    cheapest = min(task.ladder.proxies, key=task.cost)
    return {RUNG: task.ladder.index(cheapest), **task.space.defaults}


def search_is_over(task: Task, study: optuna.Study, runs: Sequence[Run]) -> bool:
    """Whether the budget or the number of trials is used up, counting trials that are running.

    A study without trials is never over: its first trial is run whatever it costs.

    Args:
        task: The task of the study file.
        study: The study, for the costs that its sampler stored.
        runs: All runs of the study.
    """
    runs = [run for run in runs if run.purpose == "search"]
    if not runs or any(run.outcome is Outcome.WAITING for run in runs):
        return False

    max_trials = task.file.budget.trials
    if max_trials is not None and sum(run.outcome is not Outcome.PREEMPTED for run in runs) >= max_trials:
        return True
    remaining = task.budget - spent_so_far(study, runs)
    return all(task.cost(scale) > remaining for scale in task.ladder.proxies)
