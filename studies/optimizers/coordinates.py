"""The coordinate check over width for every optimizer, under its table and with the initial variance alone.

    OMP_NUM_THREADS=1 python studies/optimizers/coordinates.py

Exponents of width in the changes of layers' outputs after four steps (0 is right), at widths 16, 32 and 64 of
the transformer that `sweep.py` trains; a row per optimizer, rule, layer and measure in `coordinates.csv`.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from sweep import BASE, START, TABLES

from transfer_bo.parametrization.coordcheck import coordinate_check
from transfer_bo.training.model import build_transformer

CSV = Path(__file__).parent / "coordinates.csv"
COLUMNS = ("optimizer", "rule", "module", "measure", "exponent", "low", "high", "verdict")
RATES = {"sgd": 0.5, "adafactor": 0.02}
"""Learning rates where 2^-7 is far from what the optimizer needs."""


def main() -> None:
    """Check what is missing."""
    warnings.simplefilter("ignore")
    done = set()
    if CSV.exists():
        with CSV.open() as file:
            done = {(row["optimizer"], row["rule"]) for row in csv.DictReader(file)}

    for optimizer in START:
        for rule in (TABLES[optimizer], "sp"):
            if (optimizer, rule) in done:
                continue
            check = coordinate_check(
                build_transformer,
                BASE.replace(depth=4),
                rule,
                optimizer=optimizer,
                hps={"lr": RATES.get(optimizer, 2**-7)},
                axes=("width",),
                factors=(1, 2, 4),
                seeds=(0, 1, 2),
            )
            with CSV.open("a", newline="") as file:
                writer = csv.writer(file)
                if not done:
                    writer.writerow(COLUMNS)
                for g in check.growths:
                    numbers = [f"{value:.3f}" for value in (g.exponent, g.low, g.high)]
                    writer.writerow([optimizer, rule, g.module, g.measure, *numbers, g.verdict])
            done.add((optimizer, rule))


if __name__ == "__main__":
    main()
