"""Whatever an objective returns, the next proposal lies in its ranges, and answers are finite or say why."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import transfer_bo as tb
from transfer_bo.attributes import RUNG
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome, read_runs

SMALL, LARGE = tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=2e5)
MIDDLE = tb.Scale(width=128, tokens=4e5)
LOSSES = [1.0, 1.0 + 1e-15, 2.0, 1e300, 1e-300, 0.0, -3.0, math.nan, math.inf, -math.inf]
POINTS = st.tuples(
    st.sampled_from([0, 1]),
    st.sampled_from([1e-4, 1e-3, 1.1e-3, 1e-1]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(LOSSES),
)


def ask_after(points: list[tuple[Any, ...]], scales: list[tb.Scale], target: tb.Scale) -> optuna.Study:
    """A study with these results; the last trial is asked of the surrogate."""
    ladder = tb.Ladder(scales)
    sampler = tb.TransferSampler(ladder=ladder, target=target, seed=0, n_startup_trials=len(points))
    study = optuna.create_study(sampler=sampler)
    queue = list(points)

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        assert 1e-4 <= lr <= 1e-1
        assert kind in ("a", "b")
        return float(queue.pop(0)[3]) if queue else 1.5

    for rung, lr, kind, _ in points:
        study.enqueue_trial({RUNG: rung % len(scales), "lr": lr, "kind": kind})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says that it stores no nan
        study.optimize(objective, n_trials=len(points) + 1)
    return study


def judge(study: optuna.Study) -> None:
    """The last proposal ran, and the answer is finite or one sentence."""
    assert study.trials[-1].state.is_finished()
    if not any(run.outcome is Outcome.FINISHED for run in read_runs(study)):
        with pytest.raises(TransferError, match="No run has finished"):
            tb.suggest(study)
        return
    suggestion = tb.suggest(study)
    low, high = suggestion.interval(0.9)["lr"]
    assert 1e-4 <= low <= high <= 1e-1
    assert 1e-4 <= suggestion.params["lr"] <= 1e-1
    assert all(math.isfinite(at) for at in suggestion.predicted_loss.interval(0.9))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(POINTS, min_size=1, max_size=8))
def test_any_results(points: list[tuple[Any, ...]]) -> None:
    """Constant, huge, tiny, negative, infinite and undefined losses; points twice; two rungs."""
    judge(ask_after(points, [SMALL, LARGE], tb.Scale(width=256, tokens=1e6)))


@pytest.mark.parametrize(
    ("losses", "scales", "target"),
    [
        ([1.0] * 6, [SMALL, LARGE], tb.Scale(width=256, tokens=1e6)),
        ([2.0], [SMALL, LARGE], tb.Scale(width=256, tokens=1e6)),
        ([math.nan] * 6, [SMALL, LARGE], tb.Scale(width=256, tokens=1e6)),
        ([2.0, 2.1, 1e300, 2.2], [SMALL, LARGE], tb.Scale(width=256, tokens=1e6)),
        ([2.0, 2.1, 2.3, 2.2], [SMALL, LARGE], LARGE),
        ([2.0, 2.1, 2.3, 2.2], [SMALL], tb.Scale(width=256, tokens=1e6)),
        (
            [2.0, 2.1, 2.3, 2.2],
            [SMALL, LARGE, MIDDLE],
            tb.Scale(width=256, tokens=1e6),
        ),
    ],
    ids=["constant", "one", "all diverged", "1e300", "target is a rung", "one rung", "a rung never run"],
)
def test_named_cases(losses: list[float], scales: list[tb.Scale], target: tb.Scale) -> None:
    """Each case that users are known to run into."""
    points = [(i, 1e-3 * 2**i, "ab"[i % 2], loss) for i, loss in enumerate(losses)]

    judge(ask_after([(at[0] % 2, *at[1:]) for at in points], scales, target))


@pytest.mark.parametrize("choices", [0, 1, 2], ids=["no HP", "one choice", "two choices"])
def test_nothing_to_tune_but_categories(choices: int) -> None:
    """Without a numeric HP, or any, the search goes on and the loss at the target is predicted."""
    ladder = tb.Ladder([SMALL, LARGE])
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=MIDDLE, seed=0))

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        kinds = [trial.suggest_categorical(f"kind{i}", ["a", "b", "c"]) for i in range(choices)]
        return 1 + scale.width**-0.5 + 0.2 * kinds.count("a")

    study.optimize(objective, n_trials=6 if choices == 0 else 10)
    suggestion = tb.suggest(study)
    low, high = suggestion.predicted_loss.interval()

    assert {f"kind{i}" for i in range(choices)} == suggestion.params.keys()
    assert "a" not in suggestion.params.values()
    assert {} == suggestion.interval()
    assert low < high < 2 * low


def test_an_hp_that_starts_to_vary_late() -> None:
    """After six trials with one value of the only HP, the search takes up its range."""
    ladder = tb.Ladder([SMALL, LARGE])
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=MIDDLE, seed=0))

    def objective(trial: optuna.Trial, low: float, high: float) -> float:
        ladder.suggest(trial)
        return math.exp(0.02 * (math.log2(trial.suggest_float("lr", low, high, log=True)) + 6) ** 2)

    study.optimize(lambda trial: objective(trial, 0.01, 0.01), n_trials=6)
    study.optimize(lambda trial: objective(trial, 1e-4, 1e-1), n_trials=6)

    assert abs(math.log2(tb.suggest(study).params["lr"]) + 6) < 0.5
