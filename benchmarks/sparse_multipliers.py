"""Are per-module suggestions worth it where few of many multipliers matter? Problems whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/sparse_multipliers.py --out benchmarks/results/sparse_multipliers.csv

Each seed is a problem with 4 global HPs and 36 to 96 multipliers of them, in base coordinates (no drift). The
loss is a law over width times a bowl in the logarithm of what each tensor gets (global value x multiplier):

    ln loss = L(s) + .3 ln(1 + b / .3) + .005 N(0, 1),    b = sum_i c_i (v_i - v*_i)²

A global HP has c ~ .01 to .04 per octave². A share of 10% of the multipliers matters: c ~ .01 to .04, optimum
± .7 to 1.6 octaves from 1; the others have c = 1e-4 and an optimum within .3 octaves of 1. A search of
`--trials` runs (`TransferSampler(global_share=.3)`) spends its budget at width 64 and 128; then the true
excess loss at width 1024, in percent, is compared between

    suggestion     of `transfer_bo.suggest`
    best run       the run with the lowest loss at its scale, relative to the others there, copied
    best global    the best run whose multipliers are all 1, copied
    defaults       the documented defaults

The table gives the mean over seeds and 95% intervals (bootstrap over seeds) of the ratio of mean excesses.
Rows in the file are not run again.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

import transfer_bo as tb

WIDTHS, TARGET = (64, 128), 1024
RUNG = "rung"
"""Name of the parameter that holds the rung in Optuna."""
GLOBAL = ("lr", "weight_decay", "one_minus_beta2", "init_std")
ARMS = ("suggestion", "best run", "best global", "defaults")
NOISE, FLATTEN = 0.005, 0.3

Array = np.ndarray[Any, np.dtype[np.float64]]


class Problem:
    """A bowl over global HPs and multipliers, of which few matter.

    Args:
        seed: of the problem; it also decides the number of multipliers.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 17])
        modules = int(rng.integers(12, 33))
        names = [f"{kind}.m{i}" for kind in ("lr", "init_std", "weight_decay") for i in range(modules)]

        self.multipliers = names
        matters = np.zeros(len(names), dtype=bool)
        matters[rng.choice(len(names), max(3, round(0.1 * len(names))), replace=False)] = True
        sign = rng.choice([-1.0, 1.0], len(names))
        self.curvature = np.where(matters, np.exp(rng.uniform(np.log(0.01), np.log(0.04), len(names))), 1e-4)
        self.optimum = np.where(
            matters, sign * rng.uniform(0.7, 1.6, len(names)), rng.uniform(-0.3, 0.3, len(names))
        )

        self.global_curvature = np.exp(rng.uniform(np.log(0.01), np.log(0.04), len(GLOBAL)))
        self.global_optimum = rng.uniform(-1.5, 1.5, len(GLOBAL))
        self.defaults = {name: tb.HP.of(name).default for name in GLOBAL}
        self.noise = np.random.default_rng([seed, 18])

    def excess(self, params: dict[str, float]) -> float:
        """True excess ln loss of a setting over the best one; the same at all scales."""
        offset = np.array([math.log2(params[n] / self.defaults[n]) for n in GLOBAL]) - self.global_optimum
        bowl = float(self.global_curvature @ offset**2)
        by_kind = dict(zip(GLOBAL, offset, strict=True))
        z = np.array([math.log2(params.get(name, 1.0)) for name in self.multipliers])
        v = z + np.array([by_kind[name.partition(".")[0]] for name in self.multipliers])
        bowl += float(self.curvature @ (v - self.optimum) ** 2)
        return FLATTEN * math.log1p(bowl / FLATTEN)

    def loss(self, params: dict[str, float], width: float) -> float:
        """Loss of one run."""
        law = math.log(1.5 + 2.0 * (width / 64) ** -0.4)
        return math.exp(law + self.excess(params) + NOISE * self.noise.standard_normal())


def search(problem: Problem, trials: int, seed: int) -> optuna.Study:
    """A per-module search: global HPs first, then multipliers in a trust region."""
    ladder = tb.Ladder([tb.Scale(width=width) for width in WIDTHS])
    sampler = tb.TransferSampler(
        ladder=ladder,
        target=tb.Scale(width=TARGET),
        coordinates="base",
        cost=lambda scale: scale.width / WIDTHS[0],
        budget=float(trials),
        global_share=0.3,
        seed=seed,
    )
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(problem.defaults | dict.fromkeys(problem.multipliers, 1.0))

    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        params = {}
        for name in GLOBAL:
            hp = tb.HP.of(name)
            params[name] = trial.suggest_float(name, hp.low, hp.high, log=True)
        for name in problem.multipliers:
            params[name] = trial.suggest_float(name, 2**-3, 2**3, log=True)
        return problem.loss(params, scale.width)

    study.optimize(objective, n_trials=trials)
    return study


def best_run(study: optuna.Study, only_global: bool = False) -> dict[str, float]:
    """The run with the lowest loss of the cheapest width, the one with most runs."""
    runs = [t for t in study.trials if t.value is not None]
    if only_global:
        runs = [t for t in runs if all(abs(math.log2(v)) < 1e-9 for n, v in t.params.items() if "." in n)]
    cheapest = min(t.params[RUNG] for t in runs)
    chosen = min((t for t in runs if t.params[RUNG] == cheapest), key=lambda t: t.value)
    return {name: value for name, value in chosen.params.items() if name != RUNG}


def one(seed: int, trials: int) -> dict[str, Any]:
    """A row: excess of each arm at the target, %."""
    problem = Problem(seed)
    began = time.process_time()
    study = search(problem, trials, seed)
    searched = time.process_time() - began

    began = time.process_time()
    suggestion = tb.suggest(study)
    answered = time.process_time() - began

    settings = {
        "suggestion": suggestion.params,
        "best run": best_run(study),
        "best global": best_run(study, only_global=True),
        "defaults": problem.defaults,
    }
    excess = {arm: round(100 * math.expm1(problem.excess(settings[arm])), 4) for arm in ARMS}
    common = {"seed": seed, "hps": len(GLOBAL) + len(problem.multipliers), "runs": len(study.trials)}
    return common | excess | {"search_s": round(searched, 1), "suggest_s": round(answered, 1)}


def summary(rows: pd.DataFrame) -> str:
    """Mean excess per arm, and the suggestion's share of each rival's."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(rows), size=(4000, len(rows)))
    lines = ["| arm | mean excess, % | suggestion / arm (95% interval over seeds) |", "|---|---|---|"]
    ours = rows["suggestion"].to_numpy()
    for arm in ARMS:
        other = rows[arm].to_numpy()
        ratios = ours[picks].mean(1) / other[picks].mean(1)
        low, high = np.quantile(ratios, [0.025, 0.975])
        lines.append(
            f"| {arm} | {other.mean():.2f} | {ours.mean() / other.mean():.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    done = set(pd.read_csv(options.out)["seed"]) if options.out.is_file() else set()
    for seed in range(options.seeds):
        if seed in done:
            continue
        row = one(seed, options.trials)
        is_new = not options.out.is_file()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
    print(summary(pd.read_csv(options.out)))


if __name__ == "__main__":
    main()
