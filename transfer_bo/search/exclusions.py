"""What has failed is not tried again: rungs and choices that never worked, and points.

A failed run teaches the surrogate little (an error) or nothing (memory that ran out), so nothing else would
keep a search away from a rung that does not fit into memory or an optimizer whose code is broken: it has been
run least, and so looks most worth running. Only outcomes that `objective` stored count, because a lost worker
says nothing about HPs; and violated constraints, which the objective itself stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from transfer_bo.dimension import Dimension
from transfer_bo.records import Run

__all__ = ["drop_always_failing", "drop_failing_choices", "matches_failed_run"]

MIN_FAILURES = 4
"""A rung or choice is given up after so many broken runs and no other: fewer might be a batch too large."""

SAME = 1e-3
"""Points that differ by less than this share of each range are the same one."""

T = TypeVar("T")


def drop_always_failing(
    options: Sequence[T], option_of: Callable[[Run], Any], runs: Iterable[Run]
) -> list[T]:
    """The options without those that never worked; all of them if none would remain.

    An option never worked if at least `MIN_FAILURES` runs had it and all of them were broken.

    Args:
        options: rungs, or choices of an HP.
        option_of: the option that a run had.
        runs: runs with stored outcomes.
    """
    ended = [run for run in runs if run.outcome.has_ended]

    def works(option: T) -> bool:
        having = [run for run in ended if option_of(run) == option]
        is_unusable = (run.outcome.is_broken or not run.is_feasible for run in having)
        return len(having) < MIN_FAILURES or not all(is_unusable)

    return [option for option in options if works(option)] or list(options)


def drop_failing_choices(dimensions: Iterable[Dimension], runs: Sequence[Run]) -> list[Dimension]:
    """The HPs, categorical ones without the choices that never worked.

    Args:
        dimensions: the searched HPs.
        runs: runs with stored outcomes.
    """

    def without_failing(dim: Dimension) -> Dimension:
        choices = drop_always_failing(dim.choices, lambda run: run.params.get(dim.name), runs)
        return replace(dim, choices=tuple(choices))

    return [without_failing(dim) if dim.transform == "categorical" else dim for dim in dimensions]


def matches_failed_run(params: dict[str, Any], runs: Iterable[Run], dimensions: Sequence[Dimension]) -> bool:
    """Whether a run with these HPs failed before.

    An HP that a failed run never came to ask for cannot have been the reason, so it is not compared.

    Args:
        params: HPs of a proposal.
        runs: runs at the proposed rung, with stored outcomes.
        dimensions: the searched HPs.
    """
    return any(
        (run.outcome.is_failure or not run.is_feasible)
        and run.params
        and all(_same(dim, params, run.params) for dim in dimensions)
        for run in runs
    )


def _same(dim: Dimension, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two settings agree in an HP, or one of them does not have it."""
    if dim.name not in one or dim.name not in other:
        return True

    a, b = one[dim.name], other[dim.name]
    if dim.transform == "categorical" or dim.integer or not dim.takes(b):
        return bool(a == b)

    low, high = dim.forward(dim.low), dim.forward(dim.high)
    return abs(dim.forward(a) - dim.forward(b)) <= SAME * abs(high - low)
