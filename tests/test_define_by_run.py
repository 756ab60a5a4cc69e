"""Spaces that are not known beforehand: conditional HPs, late ones, ranges that move, whole numbers."""

from __future__ import annotations

import math

import optuna

import transfer_bo as tb
from transfer_bo.projection import fit_study

RUNGS = [tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=1e5), tb.Scale(width=64, tokens=4e5)]
TARGET = tb.Scale(width=256, tokens=1e6)


def new_study() -> tuple[tb.Ladder, optuna.Study]:
    """A ladder, and a study on it."""
    ladder = tb.Ladder(RUNGS)
    return ladder, optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=TARGET, seed=0))


def bowl(scale: tb.Scale, value: float, best: float) -> float:
    """A loss with its optimum at `best` at every scale."""
    law = 1 + (scale.width / 32) ** -0.5 + 0.5 * (scale.tokens / 1e5) ** -0.4
    return law * math.exp(0.02 * math.log2(value / best) ** 2)


def test_conditional_hps() -> None:
    """Two optimizers with learning rates of their own; the better one is suggested with its best one."""
    ladder, study = new_study()

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "adam":
            return bowl(scale, trial.suggest_float("adam/lr", 1e-4, 1e-1, log=True), 2**-7)
        steps = trial.suggest_int("warm-up", 1, 64, log=True)
        return 1.1 * bowl(scale, trial.suggest_float("sgd/lr", 1e-2, 10, log=True) * steps, 2**2)

    study.optimize(objective, n_trials=16)
    params = tb.suggest(study).params

    assert {"adam", "sgd"} == {trial.params["optimizer"] for trial in study.trials}
    assert "adam" == params["optimizer"]
    assert abs(math.log2(params["adam/lr"]) + 7) < 0.5
    assert {"optimizer", "adam/lr"} == set(params)


def test_an_hp_joins_and_a_range_moves() -> None:
    """After eight trials a second HP joins and the first one's range moves; no earlier run is lost."""
    ladder, study = new_study()

    def objective(trial: optuna.Trial, low: float, high: float, late: bool) -> float:
        scale = ladder.suggest(trial)
        loss = bowl(scale, trial.suggest_float("lr", low, high, log=True), 2**-6)
        return loss * bowl(scale, trial.suggest_float("momentum", 0.01, 1, log=True) if late else 0.1, 0.1)

    study.optimize(lambda trial: objective(trial, 1e-4, 1e-2, False), n_trials=8)
    study.optimize(lambda trial: objective(trial, 1e-3, 1e-1, True), n_trials=8)
    projection = fit_study(study)
    params = projection.suggest().params

    assert all(1e-3 <= trial.params["lr"] <= 1e-1 for trial in study.trials[8:])
    assert 16 == len(projection.surrogate.y)
    assert abs(math.log2(params["lr"]) + 6) < 0.5
    assert abs(math.log2(params["momentum"] / 0.1)) < 1
