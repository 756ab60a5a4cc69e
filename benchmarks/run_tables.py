"""How good is `suggest_from_runs` from a few logged runs? Excess loss at larger cells of real tables.

From 4 or 8 random runs in each of the six small Step Law cells (N <= 268M, D <= 25B; 24 or 48 runs, diverged
ones included) each method names a learning rate and a batch size for a larger cell; the excess is that cell's
loss at the nearest grid point above its best. Methods, all from the same runs:

    suggestion          `suggest_from_runs`
    median              the same fit, but the median of its optimum instead of least expected loss
    pooled quadratic    one quadratic in ln loss, its optimum linear in log N and log D, least squares
    copied              the best run of the largest of the six cells

The tables are others' and no part of the package: TRANSFER_BO_DATA, else ../shared/data beside the checkout.

    python benchmarks/run_tables.py --seeds 10 --out studies/run_tables.csv
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.fit import Beliefs, project
from transfer_bo.run_table.rows import RunTable, read_rows
from transfer_bo.scale import Scale

HPS = ("lr_grid", "batch_tokens")
COLUMNS = Columns(("n_params", "tokens"), {"lr_grid": "log", "batch_tokens": "log"}, "loss")
PROXY_N, PROXY_D = 2.7e8, 2.5e10

Array = np.ndarray[Any, np.dtype[np.float64]]


def load() -> pd.DataFrame:
    """The Step Law runs."""
    folder = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "steplaw_dense_small.csv"
    if not path.is_file():
        sys.exit(f"{path} is missing; set TRANSFER_BO_DATA to the folder that holds it.")
    return pd.read_csv(path)[[*COLUMNS.axes, *HPS, "loss"]]


def excess(cell: pd.DataFrame, params: dict[str, float]) -> tuple[float, float]:
    """Relative excess of the grid point nearest to these HPs (in octaves), and its loss."""
    away = sum(np.log2(cell[name] / params[name]) ** 2 for name in HPS)
    loss = float(cell["loss"].iloc[int(np.argmin(away))])
    return loss / float(cell["loss"].min()) - 1, loss


def pooled_quadratic(rows: RunTable, target: Scale, cell: pd.DataFrame) -> dict[str, float]:
    """Least squares of ln loss = l·(1, s) + (z - z0 - B s)ᵀ A (z - z0 - B s); its best grid point there."""
    done = rows.table[rows.table["outcome"] == "finished"]
    base = {name: float(np.log2(done[name]).mean()) for name in (*COLUMNS.axes, *HPS)}

    def logs(table: pd.DataFrame, names: tuple[str, ...]) -> Array:
        return np.stack([np.log2(table[name].to_numpy(dtype=float)) - base[name] for name in names], -1)

    def value(p: Array, s: Array, z: Array) -> Array:
        moved = z - p[6:8] - s @ p[8:12].reshape(2, 2).T
        bowl = p[3] * moved[:, 0] ** 2 + p[4] * moved[:, 1] ** 2 + p[5] * moved[:, 0] * moved[:, 1]
        return np.asarray(p[0] + s @ p[1:3] + bowl)

    s, z, y = logs(done, COLUMNS.axes), logs(done, HPS), np.log(done["loss"].to_numpy(dtype=float))
    start = np.array([y.mean(), -0.05, -0.05, 0.01, 0.01, 0.0, *np.zeros(6)])
    fitted = least_squares(lambda p: value(p, s, z) - y, start, max_nfev=5000).x
    there = cell.assign(**dict(target))
    best = cell.iloc[int(value(fitted, logs(there, COLUMNS.axes), logs(there, HPS)).argmin())]
    return {name: float(best[name]) for name in HPS}


def judge(table: pd.DataFrame, per_cell: int, seed: int) -> list[dict[str, Any]]:
    """Every method at every larger cell, from one draw of runs."""
    small = table[(table["n_params"] <= PROXY_N) & (table["tokens"] <= PROXY_D)]
    drawn = small.groupby(list(COLUMNS.axes)).sample(per_cell, random_state=seed)
    rows = read_rows(drawn.reset_index(drop=True), COLUMNS, maximise=False, seed=seed)
    largest = max(rows.scales, key=lambda scale: scale["n_params"] * scale["tokens"])
    at_largest = [run for run in rows.runs if run.scale == largest and run.loss is not None]
    copied = min(at_largest, key=lambda run: run.loss or np.inf).params
    found = []
    for (n_params, tokens), cell in table.groupby(list(COLUMNS.axes)):
        if n_params <= PROXY_N and tokens <= PROXY_D:
            continue
        target = Scale(n_params=float(n_params), tokens=float(tokens))
        began = time.perf_counter()
        projection = project(rows.runs, rows.dimensions, target, Beliefs(seed=seed))
        suggestion = projection.suggest()
        seconds = time.perf_counter() - began
        medians = {name: float(np.median(draws)) for name, draws in suggestion.optimum.items()}
        low, high = suggestion.predicted_loss.interval(0.9)
        best = cell.loc[cell["loss"].idxmin()]
        intervals = suggestion.interval(0.9)
        for method, params in {
            "suggestion": suggestion.params,
            "median": medians,
            "pooled quadratic": pooled_quadratic(rows, target, cell),
            "copied": copied,
        }.items():
            gap, loss = excess(cell, params)
            ours = method == "suggestion"
            found.append(
                {
                    "method": method,
                    "runs": len(drawn),
                    "seed": seed,
                    "n_params": int(n_params),
                    "tokens": int(tokens),
                    "excess_percent": 100 * gap,
                    "loss_inside_90": bool(low <= loss <= high) if ours else None,
                    "lr_inside_90": bool(
                        np.prod(np.sign(best["lr_grid"] / np.array(intervals["lr_grid"]) - 1)) <= 0
                    )
                    if ours
                    else None,
                    "seconds": round(seconds, 2) if ours else None,
                    **{name: params[name] for name in HPS},
                }
            )
    return found


def main() -> None:
    """Run all draws and print mean and median excess by method and number of runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = load()
    found = pd.DataFrame(
        [row for per_cell in (4, 8) for seed in range(options.seeds) for row in judge(table, per_cell, seed)]
    )
    if options.out:
        found.to_csv(options.out, index=False)
    for name, rows in (("429M cells", found[found["n_params"] > PROXY_N]), ("all six cells", found)):
        summary = rows.groupby(["runs", "method"])["excess_percent"].agg(["mean", "median", "max", "count"])
        print(f"\nExcess at the {name}, %\n{summary.round(3).to_string()}")
    ours = found[found["method"] == "suggestion"].groupby("runs")
    print(
        f"\nInside the 90% interval\n{ours[['loss_inside_90', 'lr_inside_90']].mean().round(2).to_string()}"
    )


if __name__ == "__main__":
    main()
