"""Pruners that compare a small rung with a large one, and ours that does not."""

from __future__ import annotations

import warnings

import optuna
import pytest
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)

import transfer_bo as tb

COMPARING = [
    MedianPruner(),
    PercentilePruner(25.0),
    SuccessiveHalvingPruner(),
    HyperbandPruner(),
    WilcoxonPruner(),
    PatientPruner(MedianPruner(), patience=1),
]
INDIFFERENT = [NopPruner(), tb.RungPruner(), PatientPruner(None, patience=1), ThresholdPruner(upper=1e9)]


def name_of(pruner: BasePruner) -> str:
    """The name of a pruner's class."""
    return type(pruner).__name__


def search(pruner: BasePruner, *, rungs: int = 2, reports: bool = True) -> None:
    """Three trials that report their loss."""
    ladder = tb.Ladder([tb.Scale(width=64 * 2**i) for i in range(rungs)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=1024), seed=0)
    study = optuna.create_study(sampler=sampler, pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        loss = 8 / ladder.suggest(trial).width + trial.suggest_float("lr", 1e-4, 0.1, log=True)
        if reports:
            trial.report(loss, 500)
        return loss

    study.optimize(objective, n_trials=3)


@pytest.mark.parametrize("pruner", COMPARING, ids=name_of)
def test_a_pruner_that_compares_rungs_is_remarked_once(pruner: BasePruner) -> None:
    """The warning names the pruner and the one to use; MedianPruner is Optuna's default."""
    with pytest.warns(UserWarning, match=f"{name_of(pruner)}.*RungPruner") as caught:
        search(pruner)

    assert 1 == sum("RungPruner" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("pruner", INDIFFERENT, ids=name_of)
def test_other_pruners_are_not(pruner: BasePruner) -> None:
    """Warnings are errors in this suite."""
    search(pruner)


def test_a_default_pruner_that_has_nothing_to_prune_is_not_remarked() -> None:
    """Neither with one rung, nor without reports: nobody is asked to choose a pruner for nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(MedianPruner(), rungs=1)
        search(MedianPruner(), reports=False)
