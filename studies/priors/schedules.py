"""Does keeping schedules apart predict the best learning rate of a schedule better than mixing them?

    OMP_NUM_THREADS=1 python studies/priors/schedules.py        # appends to studies/priors/schedules.csv

On Schaipp's logs (124M parameters): for each schedule with several durations the runs at its longest one are
left out, `suggest_from_runs` predicts the best learning rate there from all other runs that are no longer,
and the excess loss of that rate is read off a parabola through the three left-out runs next to their best
one. Schedules are kept apart, mixed, or the runs of all others are left out.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from fit_logs import find

import transfer_bo as tb

RESULTS = Path(__file__).parent / "schedules.csv"
FIELDS = ["schedule", "steps", "way", "lr", "octaves_off", "excess_percent", "inside"]
COLUMNS = ["schedule", "cooldown_fraction", "decay_type"]
WAYS = ("apart", "mixed", "own only")


def main() -> None:
    """Run what is missing, then print means."""
    runs = schedule_runs()
    done = set()
    if RESULTS.exists():
        done = {(row["schedule"], row["way"]) for row in csv.DictReader(RESULTS.open())}

    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(FIELDS)
        for name, own in runs.groupby("name"):
            counts = own.groupby("steps")["lr"].nunique()
            longest = max((steps for steps, rates in counts.items() if rates >= 3), default=0)
            if not (own["steps"] < longest).any():
                continue
            for way in WAYS:
                if (name, way) not in done:
                    writer.writerow([name, longest, way, *judge(runs, str(name), longest, way)])
                    file.flush()
    found = pd.read_csv(RESULTS)
    found["octaves_off"] = found["octaves_off"].abs()
    print(found.groupby("way")[["octaves_off", "excess_percent", "inside"]].mean().round(3).to_string())


def schedule_runs() -> pd.DataFrame:
    """Runs of the model that was run with several learning rates, with a name for each schedule."""
    runs = pd.read_csv(find("schedule_lr_logs.csv")).rename(columns={"val_loss": "loss"})
    runs = runs[(runs["n_layers"] == 12) & (runs["d_model"] == 768) & (runs["schedule"] != "wsd_twostage")]
    runs = runs[(runs["schedule"] == "cos") | runs["cooldown_fraction"].notna()]
    runs["decay_type"] = runs["decay_type"].where(runs["schedule"] == "wsd").fillna("-")
    fraction = runs["cooldown_fraction"].map(lambda share: "-" if math.isnan(share) else f"{share:g}")
    return runs.assign(name=runs["schedule"] + " " + fraction + " " + runs["decay_type"])


def judge(runs: pd.DataFrame, name: str, longest: int, way: str) -> list[object]:
    """Suggested rate, octaves above the best one, excess loss in percent, whether the interval holds it."""
    held_out = runs[(runs["name"] == name) & (runs["steps"] == longest)]
    known = runs.drop(held_out.index)
    known = known[known["steps"] <= longest]
    if way == "own only":
        known = known[known["name"] == name]
    cooldown = held_out["cooldown_fraction"].iloc[0]
    target = {
        "schedule": held_out["schedule"].iloc[0],
        "cooldown_fraction": None if math.isnan(cooldown) else cooldown,
        "decay_type": held_out["decay_type"].iloc[0],
    }

    suggestion = tb.suggest_from_runs(
        known[["steps", "lr", "loss", *COLUMNS]],
        ["steps"],
        {"lr": "log"},
        target={"steps": longest},
        schedule=target if way == "apart" else [],
        held_out=False,
    )
    lr = suggestion.params["lr"]
    best, curvature = parabola(held_out)
    off = math.log2(lr) - best
    low, high = suggestion.interval()["lr"]
    inside = low <= 2**best <= high
    return [f"{lr:.5f}", f"{off:.3f}", f"{100 * curvature * off**2:.3f}", int(inside)]


def parabola(held_out: pd.DataFrame) -> tuple[float, float]:
    """log2 of the best rate, and the curvature (ln loss per octave²), by three runs next to the best one."""
    mean = held_out.groupby("lr")["loss"].mean()
    z, y = np.log2(mean.index.to_numpy(float)), np.log(mean.to_numpy())
    middle = min(max(int(y.argmin()), 1), len(y) - 2)
    c, b, _ = np.polyfit(z[middle - 1 : middle + 2], y[middle - 1 : middle + 2], 2)
    return -b / (2 * c), float(c)


if __name__ == "__main__":
    sys.exit(main())
