"""What the search of a study file is: its sampler, its first trial, its budget, its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna

from transfer_bo.attributes import RUNG
from transfer_bo.records import Outcome, Run
from transfer_bo.sampler import TransferSampler
from transfer_bo.search.budget import spent_so_far

if TYPE_CHECKING:
    from transfer_bo.runners.task import Task

__all__ = ["first_params", "make_sampler", "search_is_over"]


def make_sampler(task: Task) -> TransferSampler:
    """The sampler of a study file, sharing the ladder with the task that trains."""
    return TransferSampler(
        ladder=task.ladder,
        target=task.file.target,
        seed=task.file.seed,
        cost=task.cost,
        budget=task.budget,
        coordinates=task.coordinates,
        defaults=task.space.defaults,
        global_share=None if task.file.per_module is None else task.file.per_module.global_share,
    )


def first_params(task: Task) -> dict[str, Any]:
    """What a new study's first trial runs: the documented defaults at the cheapest rung."""
    cheapest = min(task.ladder.proxies, key=task.cost)
    return {RUNG: task.ladder.index(cheapest), **task.space.defaults}


def search_is_over(task: Task, study: optuna.Study, runs: Sequence[Run]) -> bool:
    """Whether budget or number of trials is used up by all runs there are, counting those that are running.

    A study without any is not: its first trial is run whatever it costs.
    """
    runs = [run for run in runs if run.purpose == "search"]
    if not runs:
        return False
    if any(run.outcome is Outcome.WAITING for run in runs):
        return False
    limit = task.file.budget.trials
    if limit is not None and sum(run.outcome is not Outcome.PREEMPTED for run in runs) >= limit:
        return True
    left = task.budget - spent_so_far(study, runs)
    return all(task.cost(scale) > left for scale in task.ladder.proxies)
