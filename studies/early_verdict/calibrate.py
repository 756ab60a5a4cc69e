"""How often the early verdict is given, how early, and how often it is wrong.

    OMP_NUM_THREADS=1 python studies/early_verdict/calibrate.py

Reads `curves.csv` (made by `train.py`). For each seed the proxies are fitted and projected to the target, the
target's curve is predicted, and every run at the target is judged report by report. A row per run goes to
`verdicts.csv`.
"""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from transfer_bo import Scale
from transfer_bo.records import Outcome, Run
from transfer_bo.run_table import fit_runs
from transfer_bo.verification.early_verdict import Track, judge_early
from transfer_bo.verification.predicted_curve import PredictedCurve, predict_curve

HERE = Path(__file__).parent
NEAR = 1
"""Octaves between the suggested learning rate and one that counts as the same."""

AXES = ("width", "depth", "batch", "tokens")
COLUMNS = (
    *("seed", "octave", "fault", "octaves_away", "loss", "low", "high", "truth"),
    *("last", "first_below", "first_diverging", "reports_inside"),
)


def read(rows: pd.DataFrame) -> list[Run]:
    """The rows of one seed as runs."""
    return [
        Run(
            number=i,
            params={"lr": row.lr},
            scale=Scale({axis: int(row[axis]) for axis in AXES}),
            outcome=Outcome(row.outcome),
            loss=None if math.isnan(row.loss) else row.loss,
            curve={float(p): loss for p, loss in json.loads(row.curve).items()},
            purpose=row.purpose,
        )
        for i, row in rows.reset_index(drop=True).iterrows()
    ]


def suggested(proxies: pd.DataFrame, target: Scale) -> tuple[float, tuple[float, float]]:
    """The suggested learning rate, and the 90% interval of its loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = proxies[["width", "batch", "tokens", "lr", "loss"]].astype(float)
        axes = ["width", "batch", "tokens"]
        fit = fit_runs(
            table,
            axes=axes,
            hps={"lr": "log"},
            loss="loss",
            target={a: target[a] for a in axes},
            coordinates="base",
        )
        suggestion = fit.suggest(held_out=False)
    return suggestion.params["lr"], suggestion.predicted_loss.interval(0.9)


def verdicts(predicted: PredictedCurve, curve: dict[float, float]) -> dict[str, Any]:
    """The last verdict before the end, and the progress at which each was first given."""
    first: dict[Track, float] = {}
    inside: list[bool] = []
    points, track = list(curve.items()), Track.TOO_EARLY
    for i, (progress, _) in enumerate(points):
        if progress < 1:
            verdict = judge_early(predicted, dict(points[: i + 1]))
            track = verdict.track
            if verdict.band is not None and verdict.loss is not None:
                inside.append(verdict.band[0] <= verdict.loss <= verdict.band[1])
            first.setdefault(track, progress)
            if track is Track.DIVERGING:
                break
    return {
        "last": str(track),
        "first_below": first.get(Track.BELOW, ""),
        "first_diverging": first.get(Track.DIVERGING, ""),
        "reports_inside": round(sum(inside) / len(inside), 2) if inside else "",
    }


def one_seed(seed: int, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per run at the target."""
    runs = read(rows)
    target = next(run.scale for run in runs if run.purpose == "target")
    lr, (low, high) = suggested(rows[rows.purpose == "search"], target)
    predicted = predict_curve(runs, target, {"lr": lr}, (low, high))
    assert predicted is not None

    found = []
    for run, (_, row) in zip(runs, rows.iterrows(), strict=True):
        if run.purpose != "target":
            continue
        truth = "diverged" if run.loss is None else "worse" if run.loss > high else "inside"
        found.append(
            {
                "seed": seed,
                "octave": math.log2(run.params["lr"]),
                "fault": row.fault,
                "octaves_away": round(math.log2(run.params["lr"] / lr), 2),
                "loss": run.loss,
                "low": round(low, 4),
                "high": round(high, 4),
                "truth": "better" if run.loss is not None and run.loss < low else truth,
                **verdicts(predicted, run.curve),
            }
        )
    return found


def main() -> None:
    """Judge all runs, and count."""
    rows = pd.read_csv(HERE / "curves.csv", keep_default_na=False, na_values={"loss": [""]})
    found = [row for seed, of_seed in rows.groupby("seed") for row in one_seed(seed, of_seed)]
    with (HERE / "verdicts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)

    table = pd.DataFrame(found)
    print(table.to_string())
    print(pd.crosstab([table.truth, table.fault], table["last"]))
    near = table[(table.octaves_away.abs() <= NEAR) & (table.fault == "")]
    share = near.reports_inside.astype(float).mean()
    print(f"within {NEAR} octave of the suggestion {share:.0%} of the reports lie in the band")


if __name__ == "__main__":
    main()
