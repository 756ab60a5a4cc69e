"""Is the predicted loss right on real trainings? Sweeps of other studies, their largest scale held out.

    OMP_NUM_THREADS=1 python studies/predicted_loss/check.py

Each sweep of the learning rate over one axis or several (`transfer_curves/runs.csv`,
`early_verdict/curves.csv`) is fitted without its largest scale. There the run at the swept learning rate
closest to the suggestion is predicted, and compared with the loss that it had. So are the suggestions of the
main result, from the proxies of their search (`search_model/trainings.csv`). Rows go to `runs.csv`; the table
has means over sweeps, and means over the kinds of sweep, which are what differs: seeds of one kind share a
text, a model and an axis. Below it stand the other settings that the main result ran at its targets, near the
search's own runs and far from them.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch

from transfer_bo.errors import TransferError
from transfer_bo.projection.projection import Projection
from transfer_bo.run_table.suggest import fit_runs
from transfer_bo.space import is_multiplier

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "search_model"))
import trainings
from student import t_interval

HERE = Path(__file__).parent
CSV = HERE / "runs.csv"
AXES = ("width", "depth", "batch", "tokens")
OTHERS = ("documented defaults", "near the runs of the search", "a multiplier far from 1")
FAR = 2.0
"""Octaves from 1, which no multiplier moves in our searches."""


def sweeps() -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Kind, coordinates and runs of each sweep; its columns are axes that vary, lr and loss."""
    curves = pd.read_csv(HERE.parent / "transfer_curves" / "runs.csv")
    for axis, of_axis in curves[curves["series"] != "weight_decay"].groupby("series"):
        smallest = of_axis["size"].min()
        for (rule, seed), grown in of_axis.groupby(["rule", "seed"]):
            base = of_axis[(of_axis["size"] == smallest) & (of_axis["seed"] == seed)]  # one for all rules
            runs = pd.concat([base, grown]).drop_duplicates(["size", "octave"])
            runs = runs.rename(columns={"size": axis}).assign(lr=2.0 ** runs["octave"])
            yield f"{axis}, {rule}", "raw" if rule.startswith("sp") else "base", runs[[axis, "lr", "loss"]]

    early = pd.read_csv(HERE.parent / "early_verdict" / "curves.csv")
    for _, runs in early[early["fault"].isna()].groupby("seed"):
        axes = [axis for axis in AXES if runs[axis].nunique() > 1]
        yield "width, batch and tokens", "base", runs[[*axes, "lr", "loss"]]


def held_out(coordinates: str, runs: pd.DataFrame) -> dict[str, float] | None:
    """Prediction and loss of one run at the largest scale; None if there are too few scales."""
    axes = [name for name in runs.columns if name in AXES]
    largest = runs[axes].max()
    at_largest = (runs[axes] == largest).all(axis=1)
    below = runs[~at_largest].replace(math.inf, np.nan)
    finished = runs[at_largest & np.isfinite(runs["loss"])]
    if len(below[axes].drop_duplicates()) < 2 or finished.empty:
        return None

    target = {axis: float(largest[axis]) for axis in axes}
    fit = fit_runs(below, axes, {"lr": "log"}, target=target, coordinates=coordinates).projection
    suggested = fit.suggest().params["lr"]
    nearest = finished.loc[np.log2(finished["lr"] / suggested).abs().idxmin()]
    of_run = {"suggested_lr": suggested, "lr": nearest["lr"]}
    return {"runs": len(below)} | of_run | compare(fit, {"lr": float(nearest["lr"])}, nearest["loss"])


def compare(fit: Projection, hps: dict[str, float], loss: float) -> dict[str, float]:
    """Prediction and loss of a run at the target."""
    row = fit.surrogate.coordinates.row(hps, fit.target)
    draws = np.log(fit.predict(fit.target, fit.surrogate.landscape.split(row[None])[0][0]).draws)
    low, high = np.exp(np.quantile(draws, [0.05, 0.95]))
    return {
        "loss": loss,
        "predicted": float(np.exp(draws.mean())),
        "low": low,
        "high": high,
        "rank": float((draws < math.log(loss)).mean()),
    }


def at_targets() -> Iterator[dict[str, object]]:
    """Prediction and loss of the runs at the target of each search of the main result."""
    ours = pd.read_csv(trainings.CSV).query("search == 'transfer_bo'")
    for (budget, seed), of_search in ours.groupby(["budget", "seed"]):
        searched = of_search[of_search["purpose"] == "search"]
        at_target = of_search[of_search["purpose"] != "search"]
        if at_target.empty:  # not run yet
            continue
        task = trainings.task_of(int(seed), float(budget))
        fit = trainings.projection_of(task, searched)
        hps = list(task.space.defaults)
        for _, row in at_target.iterrows():
            kind = "main result"
            if row["purpose"] == "control":
                moved = np.log2(row[hps].astype(float) / pd.Series(task.space.defaults)).abs()
                multipliers = moved[[name for name in hps if is_multiplier(name)]]
                kind = OTHERS[0] if moved.max() == 0 else OTHERS[1 + int(multipliers.max() > FAR)]
            found = compare(fit, row[hps].to_dict(), row["loss"])
            yield {"kind": kind, "runs": len(searched)} | found


def collect() -> pd.DataFrame:
    """A row for each sweep, and for each projection of the main study."""
    rows = []
    for kind, coordinates, runs in sweeps():
        try:
            found = held_out(coordinates, runs)
        except TransferError as error:
            print(f"{kind}: {error}")
            continue
        if found is not None:
            rows.append({"kind": kind, **found})
    return pd.DataFrame([*rows, *at_targets()])


def table(rows: pd.DataFrame) -> str:
    """Mean error by kind, and over kinds with a 90% interval; how many runs lie in their 90% interval."""
    rows = rows.assign(
        error=100 * np.log(rows["predicted"] / rows["loss"]),
        inside=(rows["low"] <= rows["loss"]) & (rows["loss"] <= rows["high"]),
    )
    others = rows["kind"].isin(OTHERS)
    sweeps = rows[~others]
    mean, low, high = t_interval(sweeps.groupby("kind")["error"].mean())
    over_kinds = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return "\n".join(
        [
            "| kind | runs predicted | mean error, % | inside 90% |",
            "|---|---|---|---|",
            *_lines(sweeps),
            f"| mean over kinds | {len(sweeps)} | {over_kinds} | {sweeps['inside'].sum()} |",
            *_lines(rows[others]),
        ]
    )


def _lines(rows: pd.DataFrame) -> Iterator[str]:
    """A line for each kind."""
    for kind, of_kind in rows.groupby("kind"):
        yield f"| {kind} | {len(of_kind)} | {of_kind['error'].mean():+.1f} | {of_kind['inside'].sum()} |"


def main() -> None:
    """Fit all sweeps, write the rows, print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = collect()
    rows.to_csv(CSV, index=False, float_format="%.5g", lineterminator="\n")
    print(table(rows))


if __name__ == "__main__":
    main()
