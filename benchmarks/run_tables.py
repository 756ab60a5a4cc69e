"""How good is `suggest_from_runs` from a few logged runs? Excess and intervals at larger real cells.

From 4 or 8 random runs in each of the six small Step Law cells (N <= 268M, D <= 25B; 24 or 48 runs, diverged
ones included) each method names a learning rate and a batch size for a larger cell; the excess is that cell's
loss at the nearest grid point above its best. Methods, all from the same runs:

    suggestion          `suggest_from_runs`; one fit serves all cells, its box opened for the farthest
    median              the same fit, but the median of its optimum instead of least expected loss
    power law           one quadratic in ln loss, its optimum linear in log N and log D, least squares;
                        intervals from 60 bootstrap samples of the runs
    BoTorch             `SingleTaskMultiFidelityGP` with log N and log D as fidelities; least posterior mean,
                        intervals from 256 posterior draws over the cell's grid
    copied              the best run of the largest of the six cells

Intervals (90%) are of the cell's best learning rate and batch size (mean of its five best grid points, in
octaves) and of the loss at the method's own suggestion (ln); their score is Winkler's. With `--held-out` also
what leaving out the largest of the small cells in turn says of the suggestion's excess there.

The tables are others' and no part of the package: TRANSFER_BO_DATA, else ../shared/data beside the checkout.

    python benchmarks/run_tables.py --seeds 10 --held-out --out studies/run_tables.csv
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskMultiFidelityGP
from botorch.models.transforms import Standardize
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.optimize import least_squares

from transfer_bo.run_table.cleaning import RunTable, read_rows
from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.fit import FitOptions, project
from transfer_bo.run_table.held_out import leave_largest_out
from transfer_bo.scale import Scale

HPS = ("lr_grid", "batch_tokens")
COLUMNS = Columns(("n_params", "tokens"), {"lr_grid": "log", "batch_tokens": "log"}, "loss")
PROXY_N, PROXY_D = 2.7e8, 2.5e10
LEVEL, BOOTSTRAPS, DRAWS = 0.9, 60, 256
OURS = ("suggestion", "median")

Array = np.ndarray[Any, np.dtype[np.float64]]


def load() -> pd.DataFrame:
    """The Step Law runs."""
    folder = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "steplaw_dense_small.csv"
    if not path.is_file():
        sys.exit(f"{path} is missing; set TRANSFER_BO_DATA to the folder that holds it.")
    return pd.read_csv(path)[[*COLUMNS.axes, *HPS, "loss"]]


def logs(table: pd.DataFrame, names: tuple[str, ...]) -> Array:
    """Columns in octaves (rows x names)."""
    return np.stack([np.log2(table[name].to_numpy(dtype=float)) for name in names], -1)


def nearest(cell: pd.DataFrame, params: dict[str, float]) -> int:
    """The grid point nearest to these HPs, in octaves."""
    return int(np.argmin(sum(np.log2(cell[name] / params[name]) ** 2 for name in HPS)))


class PowerLaw:
    """Least squares of ln loss = l (1, s) + (z - z0 - B s)' A (z - z0 - B s), and its bootstrap."""

    def __init__(self, done: pd.DataFrame, seed: int) -> None:
        self.s0, self.z0 = logs(done, COLUMNS.axes).mean(0), logs(done, HPS).mean(0)
        s, z = logs(done, COLUMNS.axes) - self.s0, logs(done, HPS) - self.z0
        y = np.log(done["loss"].to_numpy(dtype=float))
        start = np.array([y.mean(), -0.05, -0.05, 0.01, 0.01, 0.0, *np.zeros(6)])
        self.best = self._fit(start, s, z, y, 5000)
        self.residuals = y - self.value(self.best, s, z)
        rng = np.random.default_rng(seed)
        samples = [rng.integers(len(y), size=len(y)) for _ in range(BOOTSTRAPS)]
        self.fits = [self._fit(self.best, s[i], z[i], y[i], 50) for i in samples]
        self.noise = rng.choice(self.residuals, (BOOTSTRAPS,))

    def _fit(self, start: Array, s: Array, z: Array, y: Array, steps: int) -> Array:
        return np.asarray(least_squares(lambda p: self.value(p, s, z) - y, start, max_nfev=steps).x)

    def value(self, p: Array, s: Array, z: Array) -> Array:
        """Ln loss (n)."""
        moved = z - p[6:8] - s @ p[8:12].reshape(2, 2).T
        bowl = p[3] * moved[:, 0] ** 2 + p[4] * moved[:, 1] ** 2 + p[5] * moved[:, 0] * moved[:, 1]
        return np.asarray(p[0] + s @ p[1:3] + bowl)

    def at(self, cell: pd.DataFrame) -> tuple[int, Array, Array]:
        """Best grid point of a cell; optima (draws x 2, octaves); ln losses of a run there (draws)."""
        s, z = logs(cell, COLUMNS.axes) - self.s0, logs(cell, HPS) - self.z0
        best = int(self.value(self.best, s, z).argmin())
        drawn = np.stack([self.value(p, s, z) for p in self.fits])
        return best, logs(cell, HPS)[drawn.argmin(-1)], drawn[:, best] + self.noise


class MultiFidelity:
    """BoTorch's multi-fidelity GP over HPs and two fidelities, each between 0 and 1 at the largest cell."""

    def __init__(self, done: pd.DataFrame, table: pd.DataFrame, seed: int) -> None:
        inputs = logs(table, (*HPS, *COLUMNS.axes))
        self.low, self.span = inputs.min(0), np.ptp(inputs, axis=0)
        X, y = self._inputs(done), torch.tensor(np.log(done["loss"].to_numpy(dtype=float)))[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = SingleTaskMultiFidelityGP(
                X, y, data_fidelities=[2, 3], outcome_transform=Standardize(m=1)
            )
            fit_gpytorch_mll(ExactMarginalLogLikelihood(self.model.likelihood, self.model))
        self.seed = seed

    def _inputs(self, table: pd.DataFrame) -> torch.Tensor:
        return torch.tensor((logs(table, (*HPS, *COLUMNS.axes)) - self.low) / self.span)

    def at(self, cell: pd.DataFrame) -> tuple[int, Array, Array]:
        """As `PowerLaw.at`."""
        torch.manual_seed(self.seed)
        with torch.no_grad():
            X = self._inputs(cell)
            posterior = self.model.posterior(X)
            best = int(posterior.mean.argmin())
            drawn = posterior.rsample(torch.Size([DRAWS])).squeeze(-1).numpy()
            there = self.model.posterior(X[best : best + 1], observation_noise=True)
            losses = there.rsample(torch.Size([DRAWS])).reshape(-1).numpy()
        return best, logs(cell, HPS)[drawn.argmin(-1)], losses


def intervals(draws: dict[str, Array], truth: dict[str, float]) -> dict[str, float | bool]:
    """Whether each truth lies in the central 90% of its draws, the width of that interval and its score."""
    said: dict[str, float | bool] = {}
    for name, values in draws.items():
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        outside = max(low - truth[name], truth[name] - high, 0.0)
        said |= {f"{name}_inside": bool(outside == 0), f"{name}_width": round(high - low, 4)}
        said[f"{name}_score"] = round(high - low + 2 / (1 - LEVEL) * outside, 4)
    return said


def judge(table: pd.DataFrame, per_cell: int, seed: int, with_rivals: bool = True) -> list[dict[str, Any]]:
    """Every method at every larger cell, from one draw of runs."""
    rows, drawn = draw(table, per_cell, seed)
    done = rows.table[rows.table["outcome"] == "finished"]
    largest = max(rows.scales, key=lambda scale: scale["n_params"] * scale["tokens"])
    at_largest = [run for run in rows.runs if run.scale == largest and run.loss is not None]
    copied = min(at_largest, key=lambda run: run.loss or np.inf).params
    rivals: dict[str, PowerLaw | MultiFidelity] = {}
    if with_rivals:
        rivals = {"power law": PowerLaw(done, seed), "BoTorch": MultiFidelity(done, table, seed)}
    farthest = Scale({axis: float(table[axis].max()) for axis in COLUMNS.axes})
    began = time.perf_counter()
    projection = project(rows.runs, rows.dimensions, farthest, FitOptions(seed=seed))
    seconds = time.perf_counter() - began
    found = []
    for (n_params, tokens), cell in table.groupby(list(COLUMNS.axes)):
        if n_params <= PROXY_N and tokens <= PROXY_D:
            continue
        cell = cell.reset_index(drop=True)
        target = Scale(n_params=float(n_params), tokens=float(tokens))
        top = logs(cell, HPS)[cell["loss"].argsort()[:5]].mean(0)
        truth = dict(zip(("lr", "batch"), top.tolist(), strict=True))
        suggestion = projection.suggest(target)
        medians = {name: float(np.median(draws)) for name, draws in suggestion.optimum.items()}
        optima = np.log2(np.stack([suggestion.optimum[name] for name in HPS], -1))
        answers: dict[str, tuple[int, Array | None, Array | None]] = {
            "suggestion": (
                nearest(cell, suggestion.params),
                optima,
                np.log(suggestion.predicted_loss.draws),
            ),
            "median": (nearest(cell, medians), None, None),
            **{name: rival.at(cell) for name, rival in rivals.items()},
            "copied": (nearest(cell, copied), None, None),
        }
        for method, (best, at, losses) in answers.items():
            point = cell.iloc[best]
            row = {
                "method": method,
                "runs": len(drawn),
                "seed": seed,
                "n_params": int(n_params),
                "tokens": int(tokens),
                "excess_percent": round(100 * (float(point["loss"]) / float(cell["loss"].min()) - 1), 4),
                **{name: float(point[name]) for name in HPS},
                "seconds": round(seconds, 2) if method == "suggestion" else None,
            }
            if at is not None and losses is not None:
                draws = {"lr": at[:, 0], "batch": at[:, 1], "loss": losses}
                row |= intervals(draws, truth | {"loss": float(np.log(point["loss"]))})
            found.append(row)
    return found


def draw(table: pd.DataFrame, per_cell: int, seed: int) -> tuple[RunTable, pd.DataFrame]:
    """Random runs of the small cells, as they are read and as they are."""
    small = table[(table["n_params"] <= PROXY_N) & (table["tokens"] <= PROXY_D)]
    drawn = small.groupby(list(COLUMNS.axes)).sample(per_cell, random_state=seed).reset_index(drop=True)
    return read_rows(drawn, COLUMNS, maximize=False, seed=seed), drawn


def left_out(table: pd.DataFrame, per_cell: int, seed: int) -> list[dict[str, Any]]:
    """The two largest of the small cells left out in turn, from one draw of runs."""
    rows, drawn = draw(table, per_cell, seed)
    return [
        {
            "runs": len(drawn),
            "seed": seed,
            "fitted": fold["fitted_runs"],
            "excess_inside": fold["nearest"]["inside"],
            "excess": fold["nearest"]["excess"],
            "high": fold["nearest"]["interval"][1],
            "losses_inside": fold["losses_inside"],
        }
        for fold in leave_largest_out(rows, FitOptions(seed=seed), LEVEL)
    ]


def main() -> None:
    """Run all draws and print excess and intervals by method and number of runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--rivals", type=Path, help="take the rivals' rows from this file, an earlier --out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = load()
    todo = list(itertools.product((4, 8), range(options.seeds)))
    found = pd.DataFrame()
    if options.rivals:
        earlier = pd.read_csv(options.rivals)
        found = earlier[~earlier["method"].isin(OURS) & (earlier["seed"] < options.seeds)]
    for per_cell, seed in todo:
        rows = [
            row
            for row in judge(table, per_cell, seed, with_rivals=not options.rivals)
            if row["method"] in OURS or not options.rivals
        ]
        found = pd.concat([found, pd.DataFrame(rows)])
        if options.out:
            found.to_csv(options.out, index=False)
    for name, rows in (("429M cells", found[found["n_params"] > PROXY_N]), ("all six cells", found)):
        summary = rows.groupby(["runs", "method"])["excess_percent"].agg(["mean", "median", "max", "count"])
        print(f"\nExcess at the {name}, %\n{summary.round(3).to_string()}")
    for what in ("lr", "batch", "loss"):
        columns = [f"{what}_{kind}" for kind in ("inside", "width", "score")]
        judged = found[found[f"{what}_width"].notna()].astype(dict.fromkeys(columns, float))
        means = judged.groupby(["runs", "method"])[columns].mean()
        print(f"\n90% intervals, mean\n{means.round(3).to_string()}")
    if options.held_out:
        folds = pd.DataFrame([row for per_cell, seed in todo for row in left_out(table, per_cell, seed)])
        means = folds.astype({"excess_inside": float}).groupby(["runs", "fitted"])
        columns = ["excess_inside", "excess", "high", "losses_inside"]
        print(f"\nLargest small cells left out in turn\n{means[columns].mean().round(3).to_string()}")


if __name__ == "__main__":
    main()
