"""What belongs to an answer: constant HPs do, HPs that the other values make inactive do not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_bo as tb
from transfer_bo.projection.activity import active_params
from transfer_bo.records import FinishedRun, Outcome

SMALL, LARGE = tb.Scale(width=64), tb.Scale(width=256)


def runs_of(settings: list[dict[str, Any]], scales: list[tb.Scale] | None = None) -> list[FinishedRun]:
    """Finished runs with these HPs."""
    return [
        FinishedRun(i, params, SMALL if scales is None else scales[i], Outcome.FINISHED, 1.0)
        for i, params in enumerate(settings)
    ]


def of_choice(a: str, b: bool) -> dict[str, Any]:
    """Both choices, with "x" for one of a, "y" for one of a and of b, "z" for either."""
    params: dict[str, Any] = {"a": a, "b": b, "lr": 0.1}
    params |= {"x": 1.0} if a == "p" else {}
    params |= {"y": 1.0} if a == "p" and b else {}
    return params | ({"z": 1.0} if a == "p" or b else {})


ALL = list(itertools.product("pqr", [False, True]))


@given(st.permutations(ALL * 2), st.sampled_from(ALL))
def test_conditions_on_choices_are_found(order: list[tuple[str, bool]], chosen: tuple[str, bool]) -> None:
    """On one choice, on two together, on either: once all have been run, in any order, all are found.

    Runs before an HP first occurred do not count, so the first run of each has to come early.
    """
    runs = runs_of([of_choice("p", True), *(of_choice(*choices) for choices in order)])
    everything = {"a": chosen[0], "b": chosen[1], "lr": 0.1, "x": 1.0, "y": 1.0, "z": 1.0}

    assert of_choice(*chosen).keys() == active_params(everything, runs, SMALL).keys()


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, {"layers"}), (2, {"layers", "second"}), (4, {"layers", "second"})]
)
def test_a_condition_on_a_number_is_found(layers: int, expected: set[str]) -> None:
    """An HP of the second layer, where there is one."""
    runs = runs_of(
        [{"layers": n} | ({"second": 0.1} if n > 1 else {}) for n in [2, 1, 3, 1, 4, 1, 2, 1, 3, 2, 4]]
    )

    assert expected == active_params({"layers": layers, "second": 0.1}, runs, SMALL).keys()


def test_a_condition_on_the_scale_is_found() -> None:
    """An HP that only large runs ask for belongs to a larger target, not to a small one."""
    scales = [LARGE, SMALL] * 6
    runs = runs_of([{"lr": 0.1} | ({"warmup": 0.1} if scale == LARGE else {}) for scale in scales], scales)
    params = {"lr": 0.1, "warmup": 0.1}

    assert {"lr", "warmup"} == active_params(params, runs, tb.Scale(width=1024)).keys()
    assert {"lr"} == active_params(params, runs, SMALL).keys()


@given(st.lists(st.floats(1e-4, 1e-1), min_size=3, max_size=12), st.data())
def test_a_few_runs_without_an_hp_are_no_condition(rates: list[float], data: st.DataObject) -> None:
    """A number that happens to separate one or two runs from the others says nothing, whichever they are."""
    without = data.draw(st.sets(st.sampled_from(range(len(rates))), max_size=2))
    runs = runs_of([{"lr": lr} | ({} if i in without else {"wd": 0.1}) for i, lr in enumerate(rates)])
    lr = data.draw(st.floats(1e-4, 1e-1))

    assert {"lr", "wd"} == active_params({"lr": lr, "wd": 0.1}, runs, SMALL).keys()


def test_an_hp_that_joined_late_is_active() -> None:
    """Runs before anybody asked for it do not speak against it."""
    runs = runs_of([{"opt": "adam"}] * 8 + [{"opt": "adam", "wd": 0.1}] * 2)

    assert {"opt", "wd"} == active_params({"opt": "adam", "wd": 0.1}, runs, SMALL).keys()


CONSTANTS: list[Callable[[optuna.Trial], Any]] = [
    lambda trial: trial.suggest_float("fixed", 0.5, 0.5),
    lambda trial: trial.suggest_int("fixed", 3, 3),
    lambda trial: trial.suggest_categorical("fixed", ["only"]),
]


@pytest.mark.parametrize("ask", CONSTANTS, ids=["float", "int", "choice"])
def test_constants_are_in_the_answer_and_inactive_hps_are_not(ask: Callable[[optuna.Trial], Any]) -> None:
    """Params, intervals and drift name the same HPs; verification runs the objective with exactly these."""
    ladder = tb.Ladder([SMALL, LARGE])
    study = optuna.create_study(
        sampler=tb.TransferSampler(ladder=ladder, target=tb.Scale(width=1024), seed=0, n_startup_trials=100)
    )
    fixed = []

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale, kind = ladder.suggest(trial), trial.suggest_categorical("opt", ["adam", "sgd"])
        fixed.append(ask(trial))
        if kind == "sgd":
            trial.suggest_float("momentum", 0.1, 0.99)
        z = math.log2(trial.suggest_float("lr", 1e-4, 0.1, log=True) / 1e-2)
        return (2.0 if kind == "adam" else 3.0) + 8 / scale.width + 0.01 * z**2

    study.optimize(objective, n_trials=12)
    suggestion = tb.suggest(study)
    tb.verify(study, objective, suggestion)

    assert {"opt", "lr", "fixed"} == suggestion.params.keys()
    assert "adam" == suggestion.params["opt"]
    assert fixed[0] == suggestion.params["fixed"]
    assert {"lr"} == suggestion.optimum.keys() == suggestion.drift.keys()
    assert suggestion.params == {k: v for k, v in study.trials[-1].params.items() if k != "rung"}
