"""An optimum at the end of its range, and HPs that the runs say nothing about: two different sentences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest

import transfer_bo as tb

Term = Callable[[optuna.Trial], float]


def sentences(term: Term, n_trials: int = 14) -> tuple[tb.Suggestion, str]:
    """The suggestion after spread out runs of lr and what `term` asks for, and all its caveats."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=256)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=1024), seed=0, n_startup_trials=100)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        z = math.log2(trial.suggest_float("lr", 1e-4, 0.1, log=True) / 3e-3)
        return 2 + 8 / ladder.suggest(trial).width + 0.02 * z**2 + term(trial)

    study.optimize(objective, n_trials=n_trials)
    suggestion = tb.suggest(study)
    return suggestion, " ".join(suggestion.warnings)


@pytest.mark.parametrize(
    ("slope", "ask"),
    [
        (0.1, lambda trial: math.log2(trial.suggest_float("hp", 1.0, 16.0, log=True))),
        (-0.1, lambda trial: trial.suggest_float("hp", 0.0, 4.0)),
        (0.1, lambda trial: trial.suggest_int("hp", 0, 4)),
        (-0.1, lambda trial: trial.suggest_float("hp", 0.0, 4.0, step=0.5)),
    ],
    ids=["log, low", "linear, high", "integer, low", "steps, high"],
)
def test_a_suggestion_at_the_end_of_its_range_carries_a_warning(slope: float, ask: Term) -> None:
    """Whichever end, whatever kind of HP; and it is not said of the one whose optimum lies inside."""
    _, said = sentences(lambda trial: slope * ask(trial))

    assert "The optimum of hp lies at the edge" in said
    assert "widen it" in said


@pytest.mark.parametrize(
    "ask",
    [
        lambda trial: trial.suggest_float("hp", 1e-12, 1e-4, log=True),
        lambda trial: trial.suggest_float("hp", 0.0, 0.5),
        lambda trial: trial.suggest_int("hp", 1, 64, log=True),
    ],
    ids=["eps", "dropout", "integer"],
)
def test_an_hp_without_effect_is_called_undetermined(ask: Term) -> None:
    """Its range need not be widened, whatever the fitted optimum; lr is not called so."""
    rng = np.random.default_rng(0)
    _, said = sentences(lambda trial: 0 * ask(trial) + 0.01 * rng.normal())

    assert "do not determine hp:" in said
    assert "widen" not in said


def test_an_hp_with_effect_is_not_called_undetermined() -> None:
    """Two HPs with an optimum inside their ranges: neither sentence is due."""
    _, said = sentences(
        lambda trial: 0.02 * math.log2(trial.suggest_float("hp", 1e-3, 1.0, log=True) / 0.05) ** 2
    )

    assert "determine" not in said
    assert "edge" not in said
