"""A formula stands for training: its best learning rate falls with the width."""

from __future__ import annotations

import optuna
import optunahub

hub = optunahub.load_module(package="samplers/transfer_bo")

ladder = hub.Ladder(
    [hub.Scale(width=64, tokens=1e6), hub.Scale(width=128, tokens=1e6), hub.Scale(width=64, tokens=4e6)]
)
target = hub.Scale(width=1024, tokens=1e8)


def objective(trial: optuna.Trial) -> float:
    """Loss of a run at the scale that the sampler proposes."""
    scale = ladder.suggest(trial)
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return float(scale.width**-0.3 + scale.tokens**-0.2 + (lr * scale.width**0.5 - 0.1) ** 2)


if __name__ == "__main__":
    sampler = hub.TransferSampler(ladder=ladder, target=target, coordinates="raw", seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=20)
    print(hub.suggest(study))
