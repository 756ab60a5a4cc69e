"""Does more data make up for a smaller model? The loss law of public logs, for the prior of ζ.

    python studies/priors/loss_law.py        # writes studies/priors/loss_law.csv

The best loss of each cell (parameters, tokens) is fitted with `LossLaw` by least squares, with the package's
priors of all parameters but ζ, which is free. `rms` is what the fit leaves over, in ln loss; `rms, ζ = 1` is
what it leaves with a loss of its own for each axis. Intervals are those of a bootstrap over cells. The prior
rests on the first two logs; the others are there for comparison, as searches are judged on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fit_logs import RESAMPLES, find
from scipy.optimize import least_squares

from transfer_bo.surrogate import priors
from transfer_bo.surrogate.loss_law import LossLaw

CSV = Path(__file__).parent / "loss_law.csv"
AXES = ["n_params", "tokens"]
SIZES = {"130m": 1.3e8, "300m": 3e8}
"""Parameters of Marin's models by their names."""

NOISE = 0.005
"""ln loss: what the best of a few runs is off, about."""

LAW = LossLaw(AXES)
BLOCKS = {"l0": 1, "e": 1, "omega": 3, "alpha": 2, "lnzeta": 1}


def logs() -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and runs of each log."""
    yield "(Mis)Fitting", pd.read_csv(find("misfitting_lr.csv"))
    schaipp = pd.read_csv(find("schedule_lr_logs.csv")).rename(columns={"val_loss": "loss"})
    schaipp["n_params"] = 12 * schaipp["n_layers"] * schaipp["d_model"] ** 2
    yield "Schaipp, cosine", schaipp[schaipp["schedule"] == "cos"]

    yield "Step Law", pd.read_csv(find("steplaw_dense_small.csv"))
    yield "ScaleBench", pd.read_csv(find("scalebench_small.csv"))
    marin = pd.read_csv(find("marin_adamw_lion_small.csv"))
    marin["n_params"] = marin["size"].map(SIZES)
    marin["tokens"] = 20 * marin["n_params"] * marin["chinchilla"]
    for optimizer, runs in marin.groupby("optimizer"):
        yield f"Marin, {optimizer}", runs


def best_by_cell(runs: pd.DataFrame) -> pd.DataFrame:
    """The least loss of each cell."""
    return runs[np.isfinite(runs["loss"])].groupby(AXES, as_index=False)["loss"].min()


def fit(cells: pd.DataFrame, zeta: float | None = None) -> tuple[dict[str, np.ndarray], float]:
    """Parameters of the law, and root mean square of what it leaves over; ζ is free where None is given."""
    s = torch.tensor(np.log2(cells[AXES] / cells[AXES].min()).to_numpy())
    y = np.log(cells["loss"].to_numpy())
    alpha = np.full(2, priors.LAW_EXPONENT_OTHER[0])
    mean = np.concatenate([[y.max(), priors.IRREDUCIBLE_LOGIT[0]], np.zeros(3), alpha, [0.0]])
    open_ = [priors.LAW_LEVEL_SD, priors.IRREDUCIBLE_LOGIT[1]]
    sd = np.array([*open_, *[priors.LAW_AXIS_SHARE_SD] * 3, *[priors.LAW_EXPONENT_OTHER[1]] * 2, np.inf])

    def parameters(x: np.ndarray) -> dict[str, torch.Tensor]:
        parts = np.split(x, np.cumsum([*BLOCKS.values()])[:-1])
        named = {name: torch.tensor(part) for name, part in zip(BLOCKS, parts, strict=True)}
        return named if zeta is None else named | {"lnzeta": torch.tensor([math.log(zeta)])}

    def left_over(x: np.ndarray) -> np.ndarray:
        return LAW.values(parameters(x), s).numpy() - y

    found = least_squares(lambda x: np.concatenate([left_over(x) / NOISE, (x - mean) / sd]), mean)
    values = {name: value.numpy() for name, value in parameters(found.x).items()}
    return values, float(np.sqrt((left_over(found.x) ** 2).mean()))


def row(name: str, cells: pd.DataFrame) -> dict[str, object]:
    """What the fit of one log found."""
    values, rms = fit(cells)
    rng = np.random.default_rng(0)
    resampled = [cells.sample(frac=1, replace=True, random_state=rng) for _ in range(RESAMPLES)]
    zetas = [math.exp(fit(one)[0]["lnzeta"][0]) for one in resampled]
    low, high = np.quantile(zetas, [0.05, 0.95])
    return {
        "log": name,
        "cells": len(cells),
        "ζ": math.exp(values["lnzeta"][0]),
        "low": low,
        "high": high,
        "e": 1 / (1 + math.exp(-values["e"][0])),
        "α, n_params": values["alpha"][0],
        "α, tokens": values["alpha"][1],
        "rms": rms,
        "rms, ζ = 1": fit(cells, 1.0)[1],
    }


def main() -> None:
    """Fit all logs, write and print what was found."""
    rows = pd.DataFrame([row(name, best_by_cell(runs)) for name, runs in logs()])
    rows.to_csv(CSV, index=False, float_format="%.3g", lineterminator="\n")
    print(rows.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
