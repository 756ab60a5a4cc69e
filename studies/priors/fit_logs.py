"""Exponents and shifts of the best learning rate in two sets of public logs, for the priors.

    python studies/priors/fit_logs.py        # writes studies/priors/fitted.csv

Both fits have the form

    ln loss = level of the cell + c (z - z*)²,    z = log2 of the learning rate

with a level for each cell (one scale and schedule, several learning rates), a common curvature c, and a path
z* of the optimum; three learning rates a cell do not tell more of its bowl. They are made by least squares
with a soft L1 loss; standard errors are those of a bootstrap over cells. The data are not part of the
repository: they are looked for as in `benchmarks/tables.py`.
"""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

FITTED = Path(__file__).parent / "fitted.csv"
FIELDS = ["log", "form", "parameter", "value", "sd", "cells", "runs", "cost"]

ROBUST = 0.002
"""Residuals beyond this (ln loss) count linearly: about the noise of one run."""

WITHIN = {"(Mis)Fitting": 0.05, "Schaipp": 0.02}
"""Runs with an excess loss of more than this are left out: the bowl is not quadratic there. Of Schaipp's logs
the rates next to 0.0001 are three octaves apart, and half of the cells lack it."""

RESAMPLES = 30
"""Of the bootstrap over cells."""

BATCH_DOUBLINGS = 20.0
"""log2 of the batch of (Mis)Fitting, 1.05M tokens."""

Path_ = Callable[[np.ndarray, pd.DataFrame], np.ndarray]


@dataclass(frozen=True)
class Form:
    """One form of the path of the optimum.

    Attributes:
        names: of its parameters.
        start: a value of each to start from.
        path: parameters and runs -> log2 of the best learning rate.
    """

    names: tuple[str, ...]
    start: tuple[float, ...]
    path: Path_


def surge_slope(doublings: np.ndarray, peak: float, q: float) -> np.ndarray:
    """Slope of log lr along log D at a fixed batch, -q/2 tanh(ln(B_n / B) / 2) with B_n ∝ D^q.

    Args:
        doublings: log2 of the tokens (n).
        peak: log2 of the tokens at which B_n equals the batch.
        q: exponent of B_n.
    """
    return -q / 2 * np.tanh(q * math.log(2) * (doublings - peak) / 2)


def _surge(p: np.ndarray, runs: pd.DataFrame) -> np.ndarray:
    x = p[3] * math.log(2) * (runs["d"].to_numpy() - p[2]) / 2
    return p[0] + p[1] * runs["n"].to_numpy() - np.log(np.cosh(x)) / math.log(2)


MISFITTING = {
    "linear": Form(
        ("constant", "n_params", "tokens"),
        (-9.0, -0.4, 0.0),
        lambda p, r: p[0] + p[1] * r["n"].to_numpy() + p[2] * r["d"].to_numpy(),
    ),
    "surge": Form(("constant", "n_params", "peak", "q"), (-8.5, -0.4, 4.0, 0.8), _surge),
}
"""n: doublings of the parameters from 100M, d: of the tokens from 100M."""

SCHEDULE_NAMES = ("constant", "tokens", "cooldown", "cosine", "sqrt")


def _schedule(p: np.ndarray, runs: pd.DataFrame) -> np.ndarray:
    wsd = runs["schedule"].to_numpy() != "cos"
    cooldown = np.where(wsd, np.log2(runs["cooldown"].to_numpy() / 0.2), 0.0)
    shifts = p[3] * ~wsd + p[4] * (wsd & (runs["decay_type"].to_numpy() == "sqrt"))
    return p[0] + p[1] * runs["d"].to_numpy() + p[2] * cooldown + shifts


SCHEDULES = {
    "log cooldown": Form(SCHEDULE_NAMES, (-10.0, -0.2, 0.2, 0.5, 0.0), _schedule),
    "linear cooldown": Form(
        SCHEDULE_NAMES,
        (-10.0, -0.2, 0.5, 0.5, 0.0),
        lambda p, r: _schedule(p, r.assign(cooldown=0.2 * np.exp2(r["cooldown"] - 0.2))),
    ),
}
"""d: doublings of the tokens from 25k steps. Shifts are in octaves, from 20% linear cooldown: "cooldown" per
octave of its fraction (or per unit), "cosine", and "sqrt" for a square-root decay."""


def misfitting() -> pd.DataFrame:
    """Runs of (Mis)Fitting in cells with at least three learning rates."""
    runs = pd.read_csv(find("misfitting_lr.csv"))
    runs["n"], runs["d"] = np.log2(runs["n_params"] / 1e8), np.log2(runs["tokens"] / 1e8)
    return _cells(runs, ["n_params", "tokens"], WITHIN["(Mis)Fitting"])


def schedule_logs() -> pd.DataFrame:
    """Runs of the largest model of Schaipp's logs that was run with several learning rates (12 x 768)."""
    runs = pd.read_csv(find("schedule_lr_logs.csv")).rename(columns={"val_loss": "loss"})
    runs = runs[(runs["n_layers"] == 12) & (runs["d_model"] == 768)]
    runs["cooldown"] = runs["cooldown_fraction"].astype(float)
    runs = runs[(runs["schedule"] == "cos") | ((runs["schedule"] == "wsd") & runs["cooldown"].notna())]
    runs["decay_type"] = runs["decay_type"].fillna("linear")
    runs["d"] = np.log2(runs["steps"] / 25000)
    return _cells(runs, ["schedule", "cooldown", "decay_type", "steps"], WITHIN["Schaipp"])


def _cells(runs: pd.DataFrame, keys: list[str], within: float) -> pd.DataFrame:
    """Runs of a loss within a share of the best of their cell, of cells with three learning rates left."""
    runs = runs[np.isfinite(runs["loss"])]
    best = runs.groupby(keys, dropna=False)["loss"].transform("min")
    runs = runs[runs["loss"] <= (1 + within) * best]
    rates = runs.groupby(keys, dropna=False)["lr"].transform("nunique")
    runs = runs[rates >= 3].copy()

    runs["cell"] = runs.groupby(keys, dropna=False).ngroup()
    runs["z"], runs["y"] = np.log2(runs["lr"]), np.log(runs["loss"])
    return runs.reset_index(drop=True)


def fit(runs: pd.DataFrame, form: Form) -> tuple[np.ndarray, float]:
    """Parameters of a form, with ln c last, and twice the robust cost."""
    levels = runs.groupby("cell")["y"].min().to_numpy()
    cell = runs["cell"].to_numpy()
    z, y = runs["z"].to_numpy(), runs["y"].to_numpy()

    def residuals(x: np.ndarray) -> np.ndarray:
        p, ln_c, level = x[: -len(levels) - 1], x[-len(levels) - 1], x[-len(levels) :]
        t = z - form.path(p, runs)
        return (level[cell] + math.exp(ln_c) * t**2 - y) / ROBUST

    start = np.concatenate([form.start, [math.log(0.01)], levels])
    found = least_squares(residuals, start, loss="soft_l1", x_scale="jac", max_nfev=200)
    return found.x[: -len(levels)], 2 * float(found.cost)


def bootstrap(runs: pd.DataFrame, form: Form) -> np.ndarray:
    """Standard errors of the parameters."""
    rng = np.random.default_rng(0)
    cells = [cell for _, cell in runs.groupby("cell")]
    draws = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(cells), size=len(cells))
        sample = pd.concat([cells[i].assign(cell=j) for j, i in enumerate(chosen)], ignore_index=True)
        draws.append(fit(sample, form)[0])
    low, high = np.quantile(draws, [0.16, 0.84], axis=0)
    return np.asarray((high - low) / 2)


def rows(log: str, runs: pd.DataFrame, forms: dict[str, Form]) -> list[list[object]]:
    """A row for each parameter of each form."""
    found: list[list[object]] = []
    for name, form in forms.items():
        values, cost = fit(runs, form)
        sds = bootstrap(runs, form)
        for label, value, sd in zip((*form.names, "ln c"), values, sds, strict=True):
            counts = [runs["cell"].nunique(), len(runs)]
            found.append([log, name, label, f"{value:.3f}", f"{sd:.3f}", *counts, f"{cost:.0f}"])
        if name == "surge":
            slopes = surge_slope(runs.groupby("cell")["d"].first().to_numpy(), values[2], values[3])
            counts = [runs["cell"].nunique(), len(runs)]
            found.append(
                [
                    log,
                    name,
                    "mean slope",
                    f"{slopes.mean():.3f}",
                    f"{slopes.std():.3f}",
                    *counts,
                    f"{cost:.0f}",
                ]
            )
    return found


def find(name: str) -> Path:
    """A file of the data folder; ends the program with a sentence where there is none."""
    folder = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / name).exists():
        sys.exit(f"{name} is not in {folder}; set TRANSFER_BO_DATA to the folder that holds the logs.")
    return folder / name


def main() -> None:
    """Fit both logs and write what was found."""
    found: Sequence[list[object]] = [
        *rows("(Mis)Fitting", misfitting(), MISFITTING),
        *rows("Schaipp", schedule_logs(), SCHEDULES),
    ]
    with FITTED.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([FIELDS, *found])
    print(pd.read_csv(FITTED).to_string(index=False))


if __name__ == "__main__":
    main()
