"""Trials whose objective did not ask the ladder for a scale: remarked early, counted apart, never fitted."""

from __future__ import annotations

import math
import warnings

import optuna
import pytest

import transfer_bo as tb
from transfer_bo.display.tables import rung_table, summarise
from transfer_bo.errors import NoRunsError, TransferError
from transfer_bo.records import count_outcomes, read_runs


def make_study(**options: object) -> tuple[tb.Ladder, optuna.Study]:
    """A ladder of two rungs and an empty study."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=256)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=1024), seed=0)
    return ladder, optuna.create_study(sampler=sampler, **options)


def forgetful(ladder: tb.Ladder, trial: optuna.Trial, remembers: bool) -> float:
    """A loss whose objective may forget to ask for its scale."""
    lr = trial.suggest_float("lr", 1e-4, 0.1, log=True)
    return lr + (8 / ladder.suggest(trial).width if remembers else 0.1)


def test_the_first_finished_trial_without_a_scale_warns() -> None:
    """Once, after the first one, not after every one."""
    ladder, study = make_study()
    with pytest.warns(UserWarning, match=r"Trial 0 .*ladder\.suggest") as caught:
        study.optimize(lambda trial: forgetful(ladder, trial, remembers=False), n_trials=3)

    assert 1 == sum(
        issubclass(warning.category, UserWarning) and "transfer_bo" in warning.filename for warning in caught
    ), [str(w.message) + w.filename for w in caught]


def test_an_objective_that_asks_does_not_warn() -> None:
    """Warnings are errors here: failed and pruned trials without a scale are not remarked either."""
    ladder, study = make_study()

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            raise optuna.TrialPruned
        return forgetful(ladder, trial, remembers=True)

    study.optimize(objective, n_trials=4)

    assert 4 == len(study.trials)


def test_they_are_counted_apart_and_named() -> None:
    """Provenance, caveats and status never call a fit to two runs one to five."""
    ladder, study = make_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(lambda trial: forgetful(ladder, trial, remembers=trial.number < 2), n_trials=5)

    suggestion = tb.suggest(study)
    status = rung_table(summarise(read_runs(study)))

    assert {"finished": 2, "without_scale": 3} == suggestion.provenance["runs"]
    assert any("3 of" in sentence and "ladder.suggest" in sentence for sentence in suggestion.warnings)
    assert [3.0] == [
        float(done)
        for label, done in zip(*(column._cells for column in status.columns[:2]), strict=True)
        for label, done in [(str(label), str(done))]
        if "no scale" in label
    ]


def test_nothing_is_suggested_from_them_alone() -> None:
    """Ten finished trials without a scale are no run to fit."""
    ladder, study = make_study()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(lambda trial: forgetful(ladder, trial, remembers=False), n_trials=10)

    assert {"without_scale": 10} == count_outcomes(read_runs(study))
    with pytest.raises((NoRunsError, TransferError)):
        tb.suggest(study)


@pytest.mark.parametrize(("losses", "said"), [([math.nan] * 3, "3 diverged"), ([None, None], "2 error")])
def test_why_there_is_nothing_to_fit(losses: list[float | None], said: str) -> None:
    """Runs that all diverged or failed did call `ladder.suggest`."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=128)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=256), seed=0)
    study = optuna.create_study(sampler=sampler, pruner=tb.RungPruner())

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        ladder.suggest(trial)
        trial.suggest_float("lr", 1e-4, 0.1, log=True)
        return losses[trial.number]  # type: ignore[return-value]

    study.optimize(objective, n_trials=len(losses))

    with pytest.raises(NoRunsError) as caught:
        tb.suggest(study)

    assert "ladder.suggest" not in str(caught.value)
    assert said in str(caught.value)
