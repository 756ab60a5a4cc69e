"""Optuna's constraints: neither the sampler nor a suggestion proposes what violates them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

import transfer_bo as tb
from transfer_bo.records import read_runs
from transfer_bo.search.exclusions import MIN_FAILURES

LIMIT = 64
RUNGS, TARGET = [tb.Scale(width=64), tb.Scale(width=256)], tb.Scale(width=1024)


def make_study(**options: object) -> tuple[tb.Ladder, optuna.Study]:
    """A ladder of two rungs and an empty study."""
    ladder = tb.Ladder(RUNGS)
    return ladder, optuna.create_study(
        sampler=tb.TransferSampler(ladder=ladder, target=TARGET, **{"seed": 0, **options})
    )


def loss_of(trial: optuna.Trial, width: float) -> float:
    """The larger the batch the better, but only up to the limit."""
    batch = trial.suggest_int("batch", 8, 512, log=True)
    trial.set_constraint("memory", batch - LIMIT)
    return 3 - 0.05 * batch**0.3 + 8 / width


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_infeasible_is_suggested(seed: int) -> None:
    """Close to the limit, below it; after the start-up runs the search keeps below it as well, mostly."""
    ladder, study = make_study(seed=seed)
    study.optimize(lambda trial: loss_of(trial, ladder.suggest(trial).width), n_trials=12)
    suggestion = tb.suggest(study)
    runs = read_runs(study)

    assert LIMIT / 4 <= suggestion.params["batch"] <= LIMIT
    assert any("violated a constraint" in sentence for sentence in suggestion.warnings)
    assert any(not run.is_feasible for run in runs)
    assert sum(not run.is_feasible for run in runs[6:]) <= 1


def test_a_choice_that_is_never_feasible_is_given_up() -> None:
    """Though it has the better losses."""
    ladder, study = make_study()

    def objective(trial: optuna.Trial) -> float:
        width, kind = ladder.suggest(trial).width, trial.suggest_categorical("kind", ["a", "b"])
        trial.set_constraint("licence", 1.0 if kind == "b" else -1.0)
        return 8 / width + (0.1 if kind == "b" else 0.2) + trial.suggest_float("lr", 1e-4, 0.1, log=True)

    study.optimize(objective, n_trials=14)
    kinds = [trial.params["kind"] for trial in study.trials]

    assert "a" == tb.suggest(study).params["kind"]
    assert kinds.count("b") <= MIN_FAILURES + 1


def test_constraints_that_hold_change_nothing() -> None:
    """The same search, trial by trial, as without them."""
    params = []
    for constrained in (False, True):
        ladder, study = make_study()

        def objective(
            trial: optuna.Trial, ladder: tb.Ladder = ladder, constrained: bool = constrained
        ) -> float:
            if constrained:
                trial.set_constraint("time", -1.0)
            return 8 / ladder.suggest(trial).width + trial.suggest_float("lr", 1e-4, 0.1, log=True)

        study.optimize(objective, n_trials=7)
        params.append(([trial.params for trial in study.trials], tb.suggest(study).params))

    assert params[0] == params[1]


def set_individually(trial: optuna.Trial) -> float:
    """With `set_constraint`, as Optuna 5 does."""
    trial.set_user_attr("width", 64)
    return loss_of(trial, 64)


def of_function(trial: optuna.Trial) -> float:
    """For a sampler with `constraints_func`, as older versions of Optuna do."""
    trial.set_user_attr("width", 64)
    batch = trial.suggest_int("batch", 8, 512, log=True)
    return 3 - 0.05 * batch**0.3 + 8 / 64


@pytest.mark.parametrize("objective", [set_individually, of_function])
@pytest.mark.parametrize("use", ["suggest_from_runs", "add_past_runs"])
def test_constraints_of_a_source_study_count(
    objective: Callable[[optuna.Trial], float], use: str, tmp_path: Path
) -> None:
    """Whichever way they were set; a source study is read from a table or added to a new study."""
    url = f"sqlite:///{tmp_path}/source.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constraints_func is deprecated
        sampler = optuna.samplers.TPESampler(
            seed=0,
            constraints_func=None
            if objective is set_individually
            else lambda trial: [trial.params["batch"] - LIMIT],
        )
    source = optuna.create_study(study_name="source", storage=url, sampler=sampler)
    source.optimize(objective, n_trials=25)
    assert any(run.is_feasible for run in read_runs(source))

    if use == "suggest_from_runs":
        suggestion = tb.suggest_from_runs(
            source, axes=["width"], hps={"batch": "log"}, target={"width": 64}, held_out=False
        )
    else:
        ladder, study = make_study()
        tb.add_past_runs(study, source)
        study.optimize(
            lambda trial: (
                3
                - 0.05 * trial.suggest_int("batch", 8, 512, log=True) ** 0.3
                + 8 / ladder.suggest(trial).width
            ),
            n_trials=3,
        )
        suggestion = tb.suggest(study)

    assert suggestion.params["batch"] <= LIMIT


@pytest.mark.parametrize("broken", [math.inf, 1.0, 1e9])
def test_a_constraint_that_only_says_whether_it_held(broken: float) -> None:
    """The size of a violation is not known, and the losses are better where it is violated."""
    ladder, study = make_study()

    def objective(trial: optuna.Trial) -> float:
        width, batch = ladder.suggest(trial).width, trial.suggest_int("batch", 8, 512, log=True)
        trial.set_constraint("fits", broken if batch > LIMIT else -1.0)
        return 3 - 0.05 * batch**0.3 + 8 / width

    study.optimize(objective, n_trials=8)

    assert tb.suggest(study).params["batch"] <= LIMIT


def test_where_nothing_seems_feasible_the_most_likely_is_suggested() -> None:
    """Memory grows with batch and width, so that the smallest batch is the best guess at the target."""
    ladder, study = make_study()

    def objective(trial: optuna.Trial) -> float:
        width, batch = ladder.suggest(trial).width, trial.suggest_int("batch", 8, 512, log=True)
        trial.set_constraint("memory", batch * width - 64 * 128)
        return 3 - 0.05 * batch**0.3 + 8 / width

    study.optimize(objective, n_trials=8)

    assert tb.suggest(study).params["batch"] <= 2 * 8
