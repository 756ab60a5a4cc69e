"""What has failed is not tried again: rungs and choices that never worked, and points.

A failed run teaches the surrogate little (an error) or nothing (memory that ran out), so nothing else would
keep a search from the rung that does not fit or from the optimizer whose code is broken: it is what has been
run least, and so what looks most worth running. Only typed outcomes count, for a lost worker says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from transfer_bo.dimension import Dimension
from transfer_bo.records import Run

__all__ = ["drop_always_failing", "matches_failed_run", "working_choices"]

MIN_FAILURES = 4
"""A rung or choice is given up after so many broken runs and no other: fewer might be a batch too large."""
SAME = 1e-3
"""Points that differ by less than this share of each range are the same one."""
T = TypeVar("T")


def drop_always_failing(options: Sequence[T], of: Callable[[Run], Any], runs: Iterable[Run]) -> list[T]:
    """The options without those that broke `MIN_FAILURES` times and never ended otherwise; all if none is left.

    Args:
        options: rungs, or choices of an HP.
        of: the option a run had.
        runs: with typed outcomes.
    """
    ended = [run for run in runs if run.outcome.has_ended]
    outcomes = {i: [run.outcome for run in ended if of(run) == option] for i, option in enumerate(options)}
    left = [
        option
        for i, option in enumerate(options)
        if len(outcomes[i]) < MIN_FAILURES or not all(outcome.is_broken for outcome in outcomes[i])
    ]
    return left or list(options)


def working_choices(dimensions: Iterable[Dimension], runs: Sequence[Run]) -> list[Dimension]:
    """The HPs, categorical ones without choices that never worked."""

    def left(dim: Dimension) -> tuple[Any, ...]:
        return tuple(drop_always_failing(dim.choices, lambda run: run.params.get(dim.name), runs))

    return [replace(dim, choices=left(dim)) if dim.transform == "categorical" else dim for dim in dimensions]


def matches_failed_run(params: dict[str, Any], at: Iterable[Run], dimensions: Sequence[Dimension]) -> bool:
    """Whether a run with these HPs failed before.

    HPs that a failed run never came to ask for can't have been the reason.

    Args:
        params: HPs of a proposal.
        at: runs of the proposed rung, with typed outcomes.
        dimensions: the searched HPs.
    """
    return any(
        run.outcome.has_failed and run.params and all(_same(dim, params, run.params) for dim in dimensions)
        for run in at
    )


def _same(dim: Dimension, one: dict[str, Any], other: dict[str, Any]) -> bool:
    if dim.name not in one or dim.name not in other:
        return True
    a, b = one[dim.name], other[dim.name]
    if dim.transform == "categorical" or dim.integer or not dim.takes(b):
        return bool(a == b)
    low, high = dim.forward(dim.low), dim.forward(dim.high)
    return abs(dim.forward(a) - dim.forward(b)) <= SAME * abs(high - low)
