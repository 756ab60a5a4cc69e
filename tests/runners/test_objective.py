"""`objective`: every way a trial can end, typed."""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from transfer_bo.attributes import ERROR_ATTR, SECONDS_ATTR
from transfer_bo.errors import Diverged, WorkerError
from transfer_bo.records import Outcome, read_runs
from transfer_bo.runners.objective import MAX_ERRORS_IN_A_ROW, objective


class OutOfMemoryError(RuntimeError):
    """Stands for torch's error of that name."""


def _raises(error: BaseException) -> Callable[[optuna.Trial], float]:
    def function(trial: optuna.Trial) -> float:
        raise error

    return function


def _returns(value: Any) -> Callable[[optuna.Trial], float]:
    return lambda trial: value


@pytest.mark.parametrize(
    ("function", "outcome", "state"),
    [
        (_returns(1.0), Outcome.FINISHED, TrialState.COMPLETE),
        (_returns(math.nan), Outcome.DIVERGED, TrialState.FAIL),
        (_returns(math.inf), Outcome.DIVERGED, TrialState.FAIL),
        (_raises(Diverged("loss 1e9")), Outcome.DIVERGED, TrialState.FAIL),
        (_raises(optuna.TrialPruned()), Outcome.PRUNED, TrialState.PRUNED),
        (_raises(MemoryError()), Outcome.OUT_OF_MEMORY, TrialState.FAIL),
        (_raises(OutOfMemoryError("no")), Outcome.OUT_OF_MEMORY, TrialState.FAIL),
        (_raises(RuntimeError("MPS backend out of memory")), Outcome.OUT_OF_MEMORY, TrialState.FAIL),
        (
            _raises(RuntimeError("CPUAllocator: can't allocate memory")),
            Outcome.OUT_OF_MEMORY,
            TrialState.FAIL,
        ),
        (_raises(RuntimeError("shapes differ")), Outcome.ERROR, TrialState.FAIL),
    ],
)
def test_every_ending_is_typed_and_the_study_goes_on(
    function: Callable[[optuna.Trial], float], outcome: Outcome, state: TrialState
) -> None:
    """`optimize` runs its second trial whatever the first one did."""
    study = optuna.create_study()
    study.optimize(objective(function), n_trials=2)
    runs = read_runs(study)

    assert [outcome, outcome] == [run.outcome for run in runs]
    assert [state, state] == [trial.state for trial in study.trials]
    assert all(trial.user_attrs[SECONDS_ATTR] >= 0 for trial in study.trials)


def test_the_exception_is_kept_with_the_trial() -> None:
    """Type and text, so that a report can say why."""
    study = optuna.create_study()
    study.optimize(objective(_raises(Diverged("loss 1e9 at step 7"))), n_trials=1)

    assert "Diverged: loss 1e9 at step 7" == study.trials[0].user_attrs[ERROR_ATTR]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_ends_the_study_as_preempted(error: BaseException) -> None:
    """Ctrl-C gets through, and says nothing about the HPs."""
    study = optuna.create_study()
    with pytest.raises(type(error)):
        study.optimize(objective(_raises(error)), n_trials=2)
    outcomes = [run.outcome for run in read_runs(study)]

    assert 1 == len(outcomes)
    assert outcomes[0] in (Outcome.PREEMPTED, Outcome.RUNNING)  # RUNNING until a heartbeat fails it


def test_errors_in_a_row_end_the_study_with_the_cause() -> None:
    """A bug in the objective must not eat the budget."""
    study = optuna.create_study()
    with pytest.raises(WorkerError, match=r"5 times .* KeyError") as caught:
        study.optimize(objective(_raises(KeyError("lr"))), n_trials=100)

    assert isinstance(caught.value.__cause__, KeyError)
    assert MAX_ERRORS_IN_A_ROW == len(study.trials)
    assert {Outcome.ERROR} == {run.outcome for run in read_runs(study)}


def test_errors_with_other_outcomes_between_never_end_the_study() -> None:
    """Now and then an error is a bad machine."""

    @objective
    def sometimes(trial: optuna.Trial) -> float:
        if trial.number % MAX_ERRORS_IN_A_ROW:
            raise KeyError("lr")
        return 1.0

    study = optuna.create_study()
    study.optimize(sometimes, n_trials=20)

    assert 20 == len(study.trials)
    assert 4 == sum(run.outcome is Outcome.FINISHED for run in read_runs(study))


def test_the_wrapped_objective_keeps_its_name() -> None:
    """Logs and reports name the user's function."""

    @objective
    def my_training(trial: optuna.Trial) -> float:
        """Train."""
        return 0.0

    assert ("my_training", "Train.") == (my_training.__name__, my_training.__doc__)


@pytest.mark.parametrize(
    "loss", [np.array([[2.5]]), torch.tensor([2.5], requires_grad=True), Decimal("2.5"), np.float16(2.5)]
)
def test_one_number_in_another_form_is_the_loss(loss: Any) -> None:
    """Without a warning."""
    study = optuna.create_study()
    study.optimize(objective(_returns(loss)), n_trials=1)

    assert 2.5 == study.trials[0].value


@pytest.mark.parametrize("returned", [None, {"loss": 2.5}, (2.5, 0.1), "diverged", torch.zeros(2)])
def test_what_is_no_loss_is_named(returned: Any) -> None:
    """A forgotten `return` above all."""
    study = optuna.create_study()
    study.optimize(objective(_returns(returned)), n_trials=1)

    assert [Outcome.ERROR] == [run.outcome for run in read_runs(study)]
    assert f"the objective returned {returned!r}"[:60] in study.trials[0].user_attrs[ERROR_ATTR]
