"""A suggestion from an Optuna study that was made without this package (half a minute on one core).

Run it: .venv/bin/python examples/existing_study.py. The size of each run must be in the study, as a parameter
or as a user attribute. `transfer-bo suggest --runs sqlite:///study.db --axis width ...` does the same.
"""

import math

import optuna

import transfer_bo as tb


def objective(trial: optuna.Trial) -> float:
    """Stands for a training run; its best learning rate falls with the width."""
    width, tokens = trial.suggest_categorical("width", [32, 64, 128]), 100_000
    trial.set_user_attr("tokens", tokens)
    lr = trial.suggest_float("lr", 1e-4, 0.1, log=True)
    return 2 + 10 / width + 0.05 * math.log2(lr * width / 0.5) ** 2


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=30)

    suggestion = tb.suggest_from_runs(
        study, axes=["width", "tokens"], hps={"lr": "log"}, target=tb.Scale(width=512, tokens=100_000)
    )
    print("set at width 512:", suggestion.params)
    print("90% interval:    ", suggestion.interval(0.9))
    print("drift of lr:     ", suggestion.drift["lr"])
