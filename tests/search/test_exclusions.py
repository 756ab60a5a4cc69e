"""What failed is not proposed again: rungs and choices that never worked, and points."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

import transfer_bo as tb
from transfer_bo.attributes import RUNG
from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, read_runs
from transfer_bo.search.exclusions import (
    MIN_FAILURES,
    drop_always_failing,
    drop_failing_choices,
    matches_failed_run,
)

RUNGS = [tb.Scale(width=32), tb.Scale(width=64), tb.Scale(width=128)]
TARGET = tb.Scale(width=512)
LR = Dimension("lr", "log", 1e-4, 1e-1)
KIND = Dimension("kind", "categorical", choices=("a", "b"))
HEADS = Dimension("heads", "linear", 1, 8, step=1, integer=True)


def runs(outcome: Outcome, count: int, scale: tb.Scale = RUNGS[0], **params: Any) -> list[Run]:
    """Some runs that ended the same way."""
    return [Run(i, params, scale, outcome, None) for i in range(count)]


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (runs(Outcome.OUT_OF_MEMORY, MIN_FAILURES, RUNGS[2]), RUNGS[:2]),
        (runs(Outcome.OUT_OF_MEMORY, MIN_FAILURES - 1, RUNGS[2]), RUNGS),
        (runs(Outcome.OUT_OF_MEMORY, MIN_FAILURES, RUNGS[2]) + runs(Outcome.FINISHED, 1, RUNGS[2]), RUNGS),
        (runs(Outcome.ERROR, MIN_FAILURES, RUNGS[2]) + runs(Outcome.DIVERGED, 1, RUNGS[2]), RUNGS),
        (runs(Outcome.DIVERGED, 2 * MIN_FAILURES, RUNGS[2]), RUNGS),
        (runs(Outcome.PREEMPTED, 2 * MIN_FAILURES, RUNGS[2]), RUNGS),
        ([run for scale in RUNGS for run in runs(Outcome.ERROR, MIN_FAILURES, scale)], RUNGS),
    ],
    ids=["memory", "not often", "worked once", "diverged once", "diverged", "preempted", "nothing works"],
)
def test_a_rung_is_given_up_where_nothing_ran(ended: list[Run], expected: list[tb.Scale]) -> None:
    """After `MIN_FAILURES` broken runs and no other; divergence and preemption say nothing against a rung."""
    assert expected == drop_always_failing(RUNGS, lambda run: run.scale, ended)


def test_only_the_choice_that_never_worked_goes() -> None:
    """Other HPs stay as they are, and a run without the HP says nothing of it."""
    ended = (
        runs(Outcome.ERROR, MIN_FAILURES, kind="b")
        + runs(Outcome.ERROR, MIN_FAILURES)
        + runs(Outcome.FINISHED, 1, kind="a")
    )

    lr, kind = drop_failing_choices([LR, KIND], ended)

    assert LR == lr
    assert ("a",) == kind.choices


@pytest.mark.parametrize(
    ("outcome", "params", "failed"),
    [
        (Outcome.ERROR, {"lr": 0.01, "kind": "a", "heads": 3}, True),
        (Outcome.DIVERGED, {"lr": 0.01 * (1 + 1e-6), "kind": "a", "heads": 3}, True),
        (Outcome.ERROR, {"lr": 0.01}, True),
        (Outcome.ERROR, {}, False),
        (Outcome.FINISHED, {"lr": 0.01, "kind": "a", "heads": 3}, False),
        (Outcome.ERROR, {"lr": 0.011, "kind": "a", "heads": 3}, False),
        (Outcome.ERROR, {"lr": 0.01, "kind": "b", "heads": 3}, False),
        (Outcome.ERROR, {"lr": 0.01, "kind": "a", "heads": 4}, False),
        (Outcome.ERROR, {"lr": 0.0, "kind": "a", "heads": 3}, False),
    ],
)
def test_a_point_is_told_from_its_neighbours(outcome: Outcome, params: dict[str, Any], failed: bool) -> None:
    """By what the failed run had come to ask for; values that have no logarithm are other points."""
    proposal = {"lr": 0.01, "kind": "a", "heads": 3}

    assert failed == matches_failed_run(proposal, runs(outcome, 1, **params), [LR, KIND, HEADS])


def search(objective: Any, n: int) -> optuna.Study:
    """A study over three rungs."""
    ladder = tb.Ladder(RUNGS)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))

    @tb.objective
    def wrapped(trial: optuna.Trial) -> float:
        return objective(ladder.suggest(trial), trial)

    study.optimize(wrapped, n_trials=n)
    return study


def test_a_rung_that_does_not_fit_is_left_alone() -> None:
    """Memory runs out at the largest rung, so it is tried a few times at most and the search goes on."""

    def objective(scale: tb.Scale, trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        if scale == RUNGS[2]:
            raise MemoryError
        return math.exp(0.02 * (math.log2(lr) + 6) ** 2) / scale.width**0.1

    rungs = [trial.params[RUNG] for trial in search(objective, 18).trials]

    assert 1 <= rungs.count(2) <= MIN_FAILURES
    assert {0, 1} == set(rungs[-3:])


def test_no_failing_point_is_run_twice() -> None:
    """Among twelve points, three of which raise an error, each of these is run at most once."""

    def objective(scale: tb.Scale, trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b", "c", "d"])
        if kind == "a":
            raise RuntimeError("no such optimizer")
        return 1.0 + 0.05 * "abcd".index(kind)

    failed = [
        (run.scale, run.params["kind"])
        for run in read_runs(search(objective, 16))
        if run.outcome is Outcome.ERROR
    ]

    assert failed
    assert len(set(failed)) == len(failed)
