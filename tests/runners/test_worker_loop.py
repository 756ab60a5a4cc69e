"""The loop of a worker: how often it reads the study, and how old what it reads may be."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

import transfer_bo as tb
from transfer_bo import Outcome
from transfer_bo.attributes import OUTCOME_ATTR
from transfer_bo.errors import WorkerError
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.store.retrying_storage import RetryingStorage

LOOKS = 4
"""Per trial: what is left to do, the ladder of the others, the proposal, what is spent."""


class Counting(InMemoryStorage):
    """Counts how often all trials are read."""

    reads = 0

    def get_all_trials(self, *arguments: Any, **more: Any) -> Any:
        """As it is."""
        self.reads += 1
        return super().get_all_trials(*arguments, **more)


def study_of(storage: optuna.storages.BaseStorage) -> tuple[optuna.Study, tb.Ladder]:
    """A study with a sampler that makes start-up draws only."""
    ladder = tb.Ladder([tb.Scale(width=16), tb.Scale(width=32)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=64), seed=0, n_startup_trials=100)
    return optuna.create_study(storage=storage, sampler=sampler), ladder


def test_a_trial_takes_few_looks_at_the_study() -> None:
    """On a database each look at a large study takes long."""
    storage = Counting()
    study, ladder = study_of(RetryingStorage(storage))

    def train(trial: optuna.Trial) -> float:
        ladder.suggest(trial)
        return trial.suggest_float("lr", 0.001, 1.0, log=True)

    def run(trials: int) -> int:
        before = storage.reads
        options = WorkerOptions(has_heartbeat=False, max_trials=trials)
        work(study, train, is_over=lambda trials: False, options=options)
        return storage.reads - before

    run(2)

    assert LOOKS * 5 == run(5)


def test_a_proposal_knows_what_was_proposed_just_before() -> None:
    """Trials asked for at once are proposed one by one, each from a look of its own."""
    study, ladder = study_of(InMemoryStorage())
    first, second = study.ask(), study.ask()

    ladder.suggest(first)
    first.suggest_float("lr", 0.001, 1.0, log=True)
    ladder.suggest(second)

    assert {"lr", "rung"} == set(second.relative_params)


def test_a_machine_that_cannot_work_gives_its_trial_back() -> None:
    """The error ends the worker; the trial waits for another one, unless its outcome is known."""
    study, _ = study_of(RetryingStorage(InMemoryStorage()))
    options = WorkerOptions(has_heartbeat=False)

    def fail(trial: optuna.Trial) -> float:
        if trial.number == 1:
            trial.set_user_attr(OUTCOME_ATTR, str(Outcome.ERROR))
        raise WorkerError("There is no GPU.")

    with pytest.raises(WorkerError):
        work(study, fail, is_over=lambda trials: False, options=options)
    assert [TrialState.WAITING] == [trial.state for trial in study.trials]

    study.ask()  # the one that waits
    with pytest.raises(WorkerError):
        work(study, fail, is_over=lambda trials: False, options=options)
    assert [TrialState.RUNNING, TrialState.FAIL] == [trial.state for trial in study.trials]
