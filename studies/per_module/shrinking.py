"""Multipliers that keep their worth with scale, and some that lose it: what one rate of falling back saves.

    OMP_NUM_THREADS=1 python studies/per_module/shrinking.py --seeds 10

Synthetic losses: a learning rate, multipliers of 8 groups whose best values are drawn with half an octave's
sd, three axes. 60 runs at the base, then four runs at each of four more expensive rungs as the second stage
makes them (the centre whole, then with random halves of its multipliers); runs have .6% noise. The target is
four times as wide, deep and long. Printed: excess ln loss of the suggestion there, in %, with the common rate
(`transfer_bo.surrogate.shrinkage`) and without, their difference with a 90% interval over draws of the
problem, and what leaving all multipliers at 1 costs at the best learning rate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.surrogate import surrogate as surrogate_module
from transfer_bo.surrogate.expected_loss import linearised_expected_loss, minimize_expected_loss
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate
from transfer_bo.verification.paired_test import compare_paired

Array = np.ndarray[Any, np.dtype[np.float64]]

BASE, TARGET = Scale(width=32, depth=2, tokens=1e5), Scale(width=128, depth=8, tokens=4e5)
RUNGS = (
    BASE.replace(width=64),
    BASE.replace(depth=4),
    BASE.replace(tokens=2e5),
    Scale(width=64, depth=4, tokens=2e5),
)
GROUPS, NOISE = 8, 0.006
DIMENSIONS = [
    Dimension("lr", "log", 2**-9, 2**-1, 2**-5),
    *(Dimension(f"lr.m{i}", "log", 1 / 8, 8.0, 1.0) for i in range(GROUPS)),
]
SETTINGS = StudySettings((BASE, *RUNGS, TARGET), (0, 1, 2, 3, 4), TARGET, (1.0, 2.0, 2.0, 2.0, 8.0, 64.0))

KEPT: dict[str, Callable[[float, Array], Array]] = {
    "hold": lambda doublings, which: np.ones(GROUPS),
    "fade (by 2^(-1/3) a doubling)": lambda doublings, which: np.full(GROUPS, 2 ** (-doublings / 3)),
    "every second one fades": lambda doublings, which: np.where(which, 2 ** (-doublings / 3), 1.0),
    "turn (by a third a doubling)": lambda doublings, which: np.full(GROUPS, 1 - doublings / 3),
    "grow (by 2^(1/6) a doubling)": lambda doublings, which: np.full(GROUPS, 2 ** (doublings / 6)),
}
"""What is left of the best multipliers' octaves after so many doublings of all axes together."""


class Problem:
    """A synthetic loss.

    Args:
        kept: one of `KEPT`.
        seed: of all its randomness.
    """

    def __init__(self, kept: Callable[[float, Array], Array], seed: int) -> None:
        self.rng = np.random.default_rng([7, seed])
        self.kept, self.which = kept, np.arange(GROUPS) % 2 == 0
        self.u = 0.5 * self.rng.normal(size=GROUPS)
        self.curvature = 0.015 * np.exp(0.5 * self.rng.normal(size=GROUPS))
        self.lr = float(self.rng.normal())
        self.runs: list[Run] = []

    def best(self, scale: Scale) -> Array:
        """Octaves of the best multipliers."""
        return self.u * self.kept(sum(scale.log2_ratio(BASE).values()), self.which)

    def loss(self, z: Array, scale: Scale) -> float:
        """Loss of octaves z, the learning rate first."""
        s = scale.log2_ratio(BASE)
        law = (
            1
            + 0.5 * 2 ** (-0.4 * s["width"])
            + 0.5 * 2 ** (-0.3 * s["depth"])
            + 0.8 * 2 ** (-0.35 * s["tokens"])
        )
        lr = z[0] - self.lr
        excess_loss = 0.03 * lr**2 + float((lr + z[1:] - self.best(scale)) ** 2 @ self.curvature)
        return float(law * math.exp(0.3 * math.log1p(excess_loss / 0.3)))

    def run(self, z: Array, scale: Scale) -> None:
        """One noisy run."""
        params = {dim.name: (dim.default or 1.0) * 2.0**at for dim, at in zip(DIMENSIONS, z, strict=True)}
        loss = self.loss(z, scale) * math.exp(NOISE * self.rng.normal())
        self.runs.append(Run(len(self.runs), params, scale, Outcome.FINISHED, loss))

    def search(self) -> None:
        """12 global runs, 48 about the best of them, and four at each more expensive rung."""
        for _ in range(12):
            self.run(np.r_[self.rng.uniform(-4, 4), np.zeros(GROUPS)], BASE)
        start = min(self.runs, key=lambda run: run.loss or math.inf).params["lr"]
        for _ in range(48):
            moved = 0.8 * self.rng.normal(size=GROUPS) * (self.rng.random(GROUPS) < 0.7)
            self.run(np.r_[math.log2(start) + 5 + 0.5 * self.rng.normal(), moved], BASE)
        centre = setting(fit_surrogate(self.runs, DIMENSIONS, SETTINGS), BASE)
        for scale in RUNGS:
            for number in range(4):
                left_in = self.rng.random(GROUPS) < 0.5 if number else np.ones(GROUPS)
                self.run(np.r_[centre[0], centre[1:] * left_in], scale)

    def excess_loss(self, z: Array) -> float:
        """What a setting costs at the target, in % of the loss."""
        return 100 * math.log(self.loss(z, TARGET) / self.loss(np.r_[self.lr, self.best(TARGET)], TARGET))


def setting(surrogate: Surrogate, scale: Scale) -> Array:
    """The setting of least expected loss, in octaves."""
    generator = torch.Generator().manual_seed(0)
    v, _ = minimize_expected_loss(linearised_expected_loss(surrogate, scale, generator), generator)
    return np.asarray((surrogate.coordinates.unmix @ v).numpy())


def main() -> None:
    """A line per kind of problem."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    least = surrogate_module.MIN_SHRINKAGE
    for name, kept in KEPT.items():
        pairs, at_one = [], []
        for seed in range(given.seeds):
            problem = Problem(kept, seed)
            problem.search()
            costs = []
            for limit in (least, math.inf):
                surrogate_module.MIN_SHRINKAGE = limit
                costs.append(
                    problem.excess_loss(setting(fit_surrogate(problem.runs, DIMENSIONS, SETTINGS), TARGET))
                )
            surrogate_module.MIN_SHRINKAGE = least
            pairs.append((costs[0], costs[1]))
            at_one.append(
                min(problem.excess_loss(np.r_[lr, np.zeros(GROUPS)]) for lr in np.linspace(-4, 4, 401))
            )
        gap = compare_paired("with", "without", pairs)
        with_it, without = np.mean(pairs, axis=0)
        print(
            f"{name:30} with {with_it:.2f}  without {without:.2f}  difference {gap.mean:+.2f} "
            f"[{gap.interval[0]:+.2f}, {gap.interval[1]:+.2f}]  all at 1: {np.mean(at_one):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
