"""Searches on a model of real trainings: 26 runs and a suggestion take ten seconds instead of ten minutes.

    OMP_NUM_THREADS=1 python studies/search_model/simulate.py --seeds 10
    ... simulate.py --seeds 10 --change search.policy.FIRST_STAGE_SHARE=0

The model is this package's surrogate, fitted to all proxies of `trainings.csv`: nine HPs, six scales,
searches by this package, TPE and GPSampler. A search sees its mean and noise of 1.7% at width 32 and 1.2%
above. What is printed is the model's loss of the answer at the target: for this package, and for TPE and
GPSampler with the same compute at one proxy, copied. A change sets a constant of the package first; the model
stays as it is.

The model shares the package's assumptions, so it tells searches of the package apart rather than those of
others. Its losses at the target are 1 to 5% above measured ones (`studies/LOG.md`).
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch

import transfer_bo as tb
from transfer_bo.runners.study_search import first_params, make_sampler
from transfer_bo.runners.task import StudyTask
from transfer_bo.scale import Scale
from transfer_bo.study_file import load_study_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from main_result import rival_proxy
from student import t_interval
from trainings import CSV, STUDY, projection_of, task_of

NOISE = {32: 0.017, 64: 0.012}
"""sd of ln loss by width."""


class Model:
    """The loss of any setting at any scale, learned from `trainings.csv`.

    Args:
        noise: multiplies the noise of a run.
    """

    def __init__(self, noise: float) -> None:
        self.noise = noise
        trainings = pd.read_csv(CSV)
        self._surrogate = projection_of(
            task_of(0, 1.0), trainings[trainings["purpose"] == "search"]
        ).surrogate

    @torch.no_grad()
    def loss(self, hps: dict[str, float], scale: Scale) -> float:
        """The model's mean."""
        row = self._surrogate.coordinates.row(hps, scale)
        return math.exp(float(self._surrogate.model.posterior(row[None]).mean))

    def observe(self, hps: dict[str, float], scale: Scale, rng: np.random.Generator) -> float:
        """The loss of one run."""
        noise = self.noise * NOISE[min(max(NOISE), int(scale["width"]))]
        return self.loss(hps, scale) * math.exp(noise * rng.normal())


def package(model: Model, task: StudyTask, seed: int) -> dict[str, Any]:
    """This package's search and suggestion."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(sampler=make_sampler(task))
    study.enqueue_trial(first_params(task))

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = task.ladder.suggest(trial)
        return model.observe(task.space.suggest(trial), scale, rng)

    study.optimize(objective, n_trials=200)
    return tb.suggest(study).params


def rival(model: Model, task: StudyTask, sampler: optuna.samplers.BaseSampler, seed: int) -> dict[str, Any]:
    """The best run of another sampler at one proxy, as in the main result."""
    rng = np.random.default_rng([seed, 1])
    proxy = rival_proxy(task)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(task.space.defaults)
    study.optimize(
        lambda trial: model.observe(task.space.suggest(trial), proxy, rng),
        n_trials=int(task.budget / task.cost(proxy)),
    )
    return study.best_params


def change(setting: str) -> None:
    """Set a constant of the package: `search.policy.FIRST_STAGE_SHARE=0`."""
    name, _, value = setting.partition("=")
    module, _, constant = name.rpartition(".")
    found = importlib.import_module(f"transfer_bo.{module}")
    if not hasattr(found, constant):
        raise SystemExit(f"transfer_bo.{module} has no {constant}.")
    setattr(found, constant, float(value))


def main() -> None:
    """Search with each seed; print each answer's loss, then means with 90% intervals over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--change", nargs="*", default=[], metavar="CONSTANT=VALUE")
    parser.add_argument("--noise", type=float, default=1.0, help="multiplies the noise of a run")
    parser.add_argument("--budget", type=float, default=1.0, help="of a search, in runs at the target")
    parser.add_argument("--only", nargs="*", choices=["transfer_bo", "TPE", "GPSampler"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    model, study_file = Model(arguments.noise), load_study_file(STUDY)
    for setting in arguments.change:
        change(setting)

    budget = study_file.budget.model_copy(update={"target_runs": arguments.budget})
    study_file = study_file.model_copy(update={"budget": budget})
    arms: dict[str, Any] = {
        "transfer_bo": lambda task, seed: package(model, task, seed),
        "TPE": lambda task, seed: rival(model, task, optuna.samplers.TPESampler(seed=seed), seed),
        "GPSampler": lambda task, seed: rival(model, task, optuna.samplers.GPSampler(seed=seed), seed),
    }
    for name, search in arms.items():
        if name not in (arguments.only or arms):
            continue
        losses = []
        for seed in range(arguments.seeds):
            task = StudyTask(study_file.model_copy(update={"seed": seed}))
            losses.append(model.loss(search(task, seed), study_file.target))
        mean, low, high = t_interval(losses)
        each = " ".join(f"{loss:.3f}" for loss in losses)
        print(f"{name:12s} {mean:.3f} ({low:.3f} to {high:.3f}): {each}", flush=True)


if __name__ == "__main__":
    main()
