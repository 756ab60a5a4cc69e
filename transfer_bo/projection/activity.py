"""Which HPs a setting has: a conditional HP is left out where the objective would not ask for it.

An objective may ask for an HP only under some condition on other HPs or on the scale ("momentum" for one of
two optimizers). The condition itself is code that nobody can read, so it is inferred from which finished runs
have the HP. Two kinds of evidence count:

- a choice, or the choices together, that were run, but never with the HP; - a number (an axis of scale, or a
numeric HP) that separates the runs with the HP from those without it, if so
  many runs would hardly be separated by chance.

Runs before the HP first occurred do not count: it joined the search later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transfer_bo.records import FinishedRun
from transfer_bo.scale import Scale

__all__ = ["active_params"]

MIN_SPLITS = 200
"""A number separates two groups of runs by its nature, and not by chance, if there are at least so many ways
to split the runs into groups of these sizes."""


def active_params(params: Mapping[str, Any], runs: Sequence[FinishedRun], scale: Scale) -> dict[str, Any]:
    """The HPs of a setting without those that its own values make inactive.

    Args:
        params: a value for every HP.
        runs: finished runs of the study, oldest first.
        scale: where the setting would be run.
    """
    return {hp: value for hp, value in params.items() if not _is_inactive(hp, params, runs, scale)}


def _is_inactive(hp: str, params: Mapping[str, Any], runs: Sequence[FinishedRun], scale: Scale) -> bool:
    """Whether the runs say that a setting does not have an HP."""
    first = next((i for i, run in enumerate(runs) if hp in run.params), len(runs))
    since = runs[first:]
    having = [run for run in since if hp in run.params]
    lacking = [run for run in since if hp not in run.params]
    if not lacking:
        return False

    choices = {name: v for name, v in params.items() if name != hp and not _is_number(v)}
    for name, choice in choices.items():
        if _has(lacking, {name: choice}) and not _has(having, {name: choice}):
            return True
    if choices and _has(lacking, choices) and not _has(having, choices):
        return True

    if math.comb(len(since), len(lacking)) < MIN_SPLITS:
        return False
    numbers = [name for name, v in params.items() if name != hp and _is_number(v)]
    return any(
        _is_on_lacking_side(
            params[name], [run.params.get(name) for run in having], [run.params.get(name) for run in lacking]
        )
        for name in numbers
    ) or any(
        _is_on_lacking_side(
            scale[axis], [run.scale[axis] for run in having], [run.scale[axis] for run in lacking]
        )
        for axis in scale
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has(runs: Sequence[FinishedRun], values: Mapping[str, Any]) -> bool:
    """Whether some run has all of these values."""
    return any(all(run.params.get(name) == value for name, value in values.items()) for run in runs)


def _is_on_lacking_side(value: float, having: Sequence[Any], lacking: Sequence[Any]) -> bool:
    """Whether a threshold separates two groups of numbers, and a value lies on the second one's side."""
    if not all(map(_is_number, [*having, *lacking])):
        return False
    if max(lacking) < min(having):
        return bool(value <= (max(lacking) + min(having)) / 2)
    if max(having) < min(lacking):
        return bool(value >= (max(having) + min(lacking)) / 2)
    return False
