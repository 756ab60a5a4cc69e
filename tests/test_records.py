"""Trials as plain records."""

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from transfer_bo.errors import TransferError
from transfer_bo.records import (
    OUTCOME_ATTR,
    PURPOSE_ATTR,
    SECONDS_ATTR,
    Outcome,
    Run,
    measured_seconds,
    read_dimensions,
    read_runs,
)
from transfer_bo.scale import RUNG, SCALE_ATTR, Scale


def test_a_finished_trial_is_read_whole() -> None:
    """Everything a `Run` holds comes from the trial; the rung's index is no HP."""
    study = optuna.create_study()
    study.add_trial(
        optuna.create_trial(
            value=1.5,
            params={"lr": 0.01, RUNG: 1},
            distributions={"lr": FloatDistribution(1e-4, 1, log=True), RUNG: IntDistribution(0, 2)},
            intermediate_values={1000: 1.5, 500: 2.0},
            user_attrs={
                SCALE_ATTR: {"width": 64},
                SECONDS_ATTR: 3.0,
                PURPOSE_ATTR: "verify",
            },
        )
    )
    expected = Run(
        number=0,
        params={"lr": 0.01},
        scale=Scale(width=64),
        outcome=Outcome.FINISHED,
        loss=1.5,
        curve={0.5: 2.0, 1.0: 1.5},
        seconds=3.0,
        purpose="verify",
    )

    assert [expected] == read_runs(study)
    assert [0.5, 1.0] == list(read_runs(study)[0].curve)


@pytest.mark.parametrize(
    ("state", "typed", "expected"),
    [
        (TrialState.FAIL, None, Outcome.ERROR),
        (TrialState.FAIL, "diverged", Outcome.DIVERGED),
        (TrialState.FAIL, "preempted", Outcome.PREEMPTED),
        (TrialState.FAIL, "out_of_memory", Outcome.OUT_OF_MEMORY),
        (TrialState.PRUNED, None, Outcome.PRUNED),
        (TrialState.WAITING, "finished", Outcome.WAITING),
        (TrialState.RUNNING, "diverged", Outcome.RUNNING),
    ],
)
def test_the_typed_outcome_counts_once_the_trial_has_ended(
    state: TrialState, typed: str | None, expected: Outcome
) -> None:
    """An untyped FAIL is an error and no divergence; what still runs has no outcome, whatever is noted."""
    study = optuna.create_study()
    attrs = {} if typed is None else {OUTCOME_ATTR: typed}
    study.add_trial(optuna.create_trial(state=state, user_attrs=attrs))
    (run,) = read_runs(study)

    assert expected is run.outcome
    assert run.loss is None
    assert "search" == run.purpose


def test_inf_is_a_divergence_and_no_loss() -> None:
    """An unwrapped objective's inf reaches COMPLETE; it never becomes a number for the surrogate."""
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(value=math.inf))
    (run,) = read_runs(study)

    assert Outcome.DIVERGED is run.outcome
    assert run.loss is None


@pytest.mark.parametrize("default", ["big", math.nan, math.inf])
def test_a_default_is_a_number(default: object) -> None:
    """A prior guess that is none is refused by name, before it becomes a singular matrix."""
    searched = [{"lr": FloatDistribution(1e-4, 1, log=True)}]

    with pytest.raises(TransferError, match=f"default of HP 'lr' is {default!r}"):
        read_dimensions(searched, {"lr": default})


def test_seconds_are_those_measured_or_told_from_the_nearest_scale() -> None:
    """Medians where runs have finished; elsewhere by the guess; failed and past runs do not count."""
    small, middle, large = (Scale(width=width) for width in (32, 64, 256))
    runs = [
        *(Run(i, {}, small, Outcome.FINISHED, 1.0, seconds=s) for i, s in enumerate([2.0, 3.0, 70.0])),
        Run(3, {}, middle, Outcome.FINISHED, 1.0, seconds=5.0),
        Run(4, {}, middle, Outcome.OUT_OF_MEMORY, None, seconds=0.1),
        Run(5, {}, large, Outcome.FINISHED, 1.0, seconds=1.0, purpose="past", source="other"),
    ]

    def guess(scale: Scale) -> float:
        return scale.width**2

    assert (3.0, 5.0, 80.0) == measured_seconds([small, middle, large], runs, guess)
    assert measured_seconds([small], runs[4:], guess) is None
