"""Trials as plain records."""

import json
import math

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from transfer_bo.attributes import OUTCOME_ATTR, PURPOSE_ATTR, RUNG, SCALE_ATTR, SECONDS_ATTR
from transfer_bo.errors import SearchSpaceError
from transfer_bo.records import Outcome, Run, StudySettings, finished_runs, read_dimensions, read_runs
from transfer_bo.scale import Scale
from transfer_bo.search.budget import measured_seconds


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


def test_an_outcome_of_a_later_release_is_read_from_the_state() -> None:
    """A word that this release does not know says no more than Optuna's own state."""
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={OUTCOME_ATTR: "overheated"}))

    assert [Outcome.ERROR] == [run.outcome for run in read_runs(study)]


OUTCOME_PROPERTIES = ("is_open", "has_ended", "is_informative", "has_trained", "has_final_loss", "is_failure")


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome.FINISHED, {"has_ended", "is_informative", "has_trained", "has_final_loss"}),
        (Outcome.PRUNED, {"has_ended", "is_informative", "has_trained"}),
        (Outcome.DIVERGED, set(OUTCOME_PROPERTIES) - {"is_open"}),
        (Outcome.OUT_OF_MEMORY, {"has_ended", "is_informative", "is_failure"}),
        (Outcome.PREEMPTED, set()),
        (Outcome.ERROR, {"has_ended", "is_failure"}),
        (Outcome.RUNNING, {"is_open"}),
        (Outcome.WAITING, {"is_open"}),
    ],
)
def test_what_each_outcome_says(outcome: Outcome, expected: set[str]) -> None:
    """The table of outcomes and what they tell."""
    assert expected == {name for name in OUTCOME_PROPERTIES if getattr(outcome, name)}
    assert outcome.is_broken == (outcome in {Outcome.OUT_OF_MEMORY, Outcome.ERROR})


def test_finished_runs_have_scale_and_loss() -> None:
    """Runs that failed, have no scale or no loss are left out; the others keep every field."""
    small = Scale(width=32)
    runs = [
        Run(0, {"lr": 1.0}, small, Outcome.FINISHED, 1.5, {0.5: 2.0}, 3.0, "verify", "other"),
        Run(1, {}, None, Outcome.FINISHED, 1.5),
        Run(2, {}, small, Outcome.PRUNED, None),
    ]

    (found,) = finished_runs(runs)

    assert vars(runs[0]) == vars(found)


SETTINGS = StudySettings(
    scales=(Scale(width=32), Scale(width=64)),
    proxies=(0,),
    target=Scale(width=64),
    costs=(1.0, 4.0),
    drift_prior={"lr": {"width": (-0.5, 0.1)}},
    defaults={"lr": 0.01, "optimizer": "adam"},
    budget=3.0,
)


def test_settings_survive_their_storage() -> None:
    """What `to_json` writes, `from_json` reads, through JSON text."""
    assert SETTINGS == StudySettings.from_json(json.loads(json.dumps(SETTINGS.to_json())))


def test_settings_of_a_later_release_are_read() -> None:
    """An unknown key is ignored, and the warning names it."""
    with pytest.warns(UserWarning, match="colour"):
        found = StudySettings.from_json(SETTINGS.to_json() | {"colour": "blue"})

    assert SETTINGS == found


@pytest.mark.parametrize("default", ["big", math.nan, math.inf])
def test_a_default_is_a_number(default: object) -> None:
    """A prior guess that is no number is refused by name, before it becomes a singular matrix."""
    searched = [{"lr": FloatDistribution(1e-4, 1, log=True)}]

    with pytest.raises(SearchSpaceError, match=repr(default)):
        read_dimensions(searched, {"lr": default})


def test_seconds_are_measured_or_estimated() -> None:
    """Medians where runs have finished, else by the guess; failed and source runs do not count."""
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
