"""What a source study is worth to a new one, and what a misleading one costs.

    OMP_NUM_THREADS=1 python benchmarks/past_studies.py --seeds 10

Synthetic problems with three HPs and two axes of scale; the optimum drifts with both. The new study is
searched alone, with 40 runs of a source study whose optimum is similar (.3 octaves off in each HP), and with
40 of one that misleads (3 octaves off in each); the source study's losses have a level of their own. Printed:
the excess loss, in %, of the setting suggested for the target after some own runs, as mean and median over
seeds.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
import torch

import transfer_bo as tb

RUNGS = [tb.Scale(width=64, tokens=1e8), tb.Scale(width=128, tokens=1e8), tb.Scale(width=64, tokens=4e8)]
TARGET = tb.Scale(width=512, tokens=1.6e9)
MIDDLE = {"lr": 2.0**-8, "batch": 2.0**17, "weight_decay": 2.0**-4}
"""Of each range, which spans `OCTAVES` to either side."""
OCTAVES = 4.0
AFTER = (3, 5, 8, 12, 16)
"""Own runs after which a setting is suggested."""
PAST_RUNS = 40
NOISE = 0.004
Shift = Callable[[np.random.Generator], np.ndarray]
KINDS: dict[str, Shift | None] = {
    "none": None,
    "near": lambda rng: rng.normal(0, 0.3, 3),
    "misleading": lambda rng: rng.choice([-3.0, 3.0], 3),
}
"""How far the optimum of the source study lies off, in octaves of each HP."""


@dataclass(frozen=True)
class Problem:
    """A bowl whose optimum drifts with scale, on a law of loss over scale.

    Attributes:
        optimum: at the first rung, octaves from the middle (3).
        drift: octaves per doubling of width and tokens (3 x 2).
        curvature: along each HP (3).
        level: of ln loss.
    """

    optimum: np.ndarray
    drift: np.ndarray
    curvature: np.ndarray
    level: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Problem:
        """One of them at random."""
        return cls(
            optimum=rng.normal(0, 1.2, 3),
            drift=rng.normal(0, 0.1, (3, 2)),
            curvature=np.array([0.012, 0.004, 0.003]) * np.exp(rng.normal(0, 0.3, 3)),
            level=rng.normal(1, 0.4),
        )

    def best(self, scale: tb.Scale) -> np.ndarray:
        """The optimum at a scale (3)."""
        return self.optimum + self.drift @ _doublings(scale)

    def loss(self, z: np.ndarray, scale: tb.Scale) -> float:
        """Of one run without noise, z in octaves from the middle (3)."""
        reducible = float(np.mean(2 ** (-0.4 * _doublings(scale))))
        bowl = float((self.curvature * (z - self.best(scale)) ** 2).sum())
        return math.exp(self.level + math.log(0.5 + 0.5 * reducible) + 0.3 * math.log1p(bowl / 0.3))

    def past_runs(self, off: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
        """Runs of a study whose optimum lies off by so many octaves (3), with a level of its own."""
        level, rows = rng.normal(0, 0.5), []
        for i in range(PAST_RUNS):
            scale = RUNGS[i % len(RUNGS)]
            z = np.clip(self.best(scale) + off + rng.normal(0, 1.5, 3), -OCTAVES, OCTAVES)
            loss = self.loss(z - off, scale) * math.exp(level + NOISE * rng.normal())
            rows.append({**scale, **_values(z), "loss": loss})
        return pd.DataFrame(rows)


def _doublings(scale: tb.Scale) -> np.ndarray:
    return np.log2([scale.width / RUNGS[0].width, scale.tokens / RUNGS[0].tokens])


def _values(z: np.ndarray) -> dict[str, float]:
    return {hp: float(middle * 2**at) for (hp, middle), at in zip(MIDDLE.items(), z, strict=True)}


def excess_losses(problem: Problem, past: pd.DataFrame | None, seed: int) -> list[float]:
    """Excess loss of the setting suggested for the target after `AFTER` own runs, in %."""
    rng = np.random.default_rng([seed, 1])
    ladder = tb.Ladder(RUNGS)
    sampler = tb.TransferSampler(ladder=ladder, target=TARGET, coordinates="raw", seed=seed)
    study = optuna.create_study(sampler=sampler)
    if past is not None:
        tb.add_past_runs(study, past)

    def measured(params: dict[str, float], scale: tb.Scale) -> float:
        return problem.loss(np.log2([params[hp] / middle for hp, middle in MIDDLE.items()]), scale)

    def train(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        ranges = {hp: (middle * 2**-OCTAVES, middle * 2**OCTAVES) for hp, middle in MIDDLE.items()}
        params = {hp: trial.suggest_float(hp, low, high, log=True) for hp, (low, high) in ranges.items()}
        return measured(params, scale) * math.exp(NOISE * rng.normal())

    least, found = problem.loss(problem.best(TARGET), TARGET), []
    for made in range(1, max(AFTER) + 1):
        study.optimize(train, n_trials=1)
        if made in AFTER:
            found.append(100 * math.log(measured(tb.suggest(study).params, TARGET) / least))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    print(f"excess loss in %, mean (median) of {seeds} seeds, after own runs:", *AFTER)
    for kind, off in KINDS.items():
        found = []
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            problem = Problem.draw(rng)
            past = None if off is None else problem.past_runs(off(rng), rng)
            found.append(excess_losses(problem, past, seed))
        of_all = zip(np.mean(found, 0), np.median(found, 0), strict=True)
        print(f"{kind:>12}", *[f"{mean:.2f} ({median:.2f})" for mean, median in of_all], flush=True)


if __name__ == "__main__":
    main()
