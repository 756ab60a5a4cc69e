"""Where a run at the target is heading, by the form of its curve: how often the 90% interval holds its end.

    OMP_NUM_THREADS=1 python studies/early_verdict/forms.py        # coverage with the constants as they are
    OMP_NUM_THREADS=1 python studies/early_verdict/forms.py --fit  # fit the constants on one half first
    python studies/early_verdict/forms.py --collect STUDY.db ...   # add the curves of a study to forms.csv

Curves are those of `curves.csv` (made by `train.py`) and `forms.csv` (of `studies/main_result.py` and
`studies/full_size/run.py`). Constants are fitted on the former and the first two studies of the main result,
and judged on the rest. A target's runs count that end at most 12% above the best of their study.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from calibrate import read
from scipy.optimize import minimize

from transfer_bo import Scale
from transfer_bo.records import FinishedRun, Outcome, Run, finished_runs, read_runs
from transfer_bo.verification.predicted_curve import FORM_PRIOR, SD_OF_90, FormPrior, predict_curve

HERE = Path(__file__).parent
CSV = HERE / "forms.csv"
PROGRESS = (0.12, 0.2, 0.3, 0.5, 0.7, 0.9)
FITTED = ("curves", "main_result_all_0", "main_result_all_1")
"""Beginnings of the names of the studies on which the constants are fitted."""

WELL_TUNED = 1.12
"""Largest ratio of a run's final loss to the best one's."""

Studies = dict[str, list[FinishedRun]]


def collect(paths: list[Path]) -> None:
    """Add the finished runs of studies to the table, with their curves."""
    tables = [pd.read_csv(CSV)] if CSV.exists() else []
    for path in paths:
        url = f"sqlite:///{path}"
        for name in optuna.get_all_study_names(url):
            runs = finished_runs(read_runs(optuna.load_study(study_name=name, storage=url)))
            rows = [
                {
                    "study": name,
                    "purpose": run.purpose,
                    "scale": json.dumps(dict(run.scale)),
                    "params": json.dumps({hp: float(f"{value:.5g}") for hp, value in run.params.items()}),
                    "loss": round(run.loss, 5),
                    "curve": json.dumps({f"{p:.3f}": round(loss, 4) for p, loss in run.curve.items()}),
                }
                for run in runs
            ]
            tables.append(pd.DataFrame(rows))
    pd.concat(tables).drop_duplicates().to_csv(CSV, index=False)


def studies() -> Studies:
    """Runs of each study."""
    rows = pd.read_csv(HERE / "curves.csv", keep_default_na=False, na_values={"loss": [""]})
    found = {
        f"curves_{seed}": finished_runs(read(of_seed[of_seed.fault == ""]))
        for seed, of_seed in rows.groupby("seed")
    }
    for name, of_study in pd.read_csv(CSV).groupby("study"):
        found[str(name)] = finished_runs(
            Run(
                number=i,
                params=json.loads(row.params),
                scale=Scale(json.loads(row.scale)),
                outcome=Outcome.FINISHED,
                loss=row.loss,
                curve={float(p): loss for p, loss in json.loads(row.curve).items()},
                purpose=row.purpose,
            )
            for i, row in enumerate(of_study.itertuples())
        )
    return found


def at_target(runs: list[FinishedRun]) -> list[FinishedRun]:
    """The well tuned runs at the target."""
    found = [run for run in runs if run.purpose != "search"]
    best = min((run.loss for run in found), default=math.inf)
    return [run for run in found if run.loss < WELL_TUNED * best]


def errors(named: Studies, prior: FormPrior) -> pd.DataFrame:
    """Standardised error and standard deviation of the logarithm of the final loss, by study and progress."""
    rows = []
    for name, runs in named.items():
        for run in at_target(runs):
            predicted = predict_curve(runs, run.scale, run.params, (run.loss, run.loss), prior)
            assert predicted is not None
            points = np.array(sorted(run.curve.items())).T
            for progress in PROGRESS:
                loss = float(np.interp(progress, *points))
                mean, sd = predicted.ratio_at(progress)
                rows.append((name, progress, (math.log(loss / run.loss) - mean) / sd, sd))
    return pd.DataFrame(rows, columns=["study", "progress", "error", "sd"])


def log_density(table: pd.DataFrame) -> float:
    """Of the final losses; the mean over studies."""
    density = -0.5 * table.error**2 - np.log(table.sd)
    return float(density.groupby(table.study).mean().mean())


def fit(named: Studies) -> FormPrior:
    """The constants with the greatest density, but for two that these runs do not determine.

    The weight; and the lengthscale: the targets are too close to their proxies to tell it from infinity.
    """
    names = [
        field.name for field in dataclasses.fields(FormPrior) if field.name not in ("weight", "lengthscale")
    ]

    def prior_at(logs: np.ndarray) -> FormPrior:
        return dataclasses.replace(FORM_PRIOR, **dict(zip(names, np.exp(logs).tolist(), strict=True)))

    start = np.log([getattr(FORM_PRIOR, name) for name in names])
    found = minimize(lambda logs: -log_density(errors(named, prior_at(logs))), start, method="Nelder-Mead")
    return prior_at(found.x)


def main() -> None:
    """Collect, or fit and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collect", type=Path, nargs="+", metavar="STUDY.db")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect)
        return

    every = studies()
    fitted = {name: runs for name, runs in every.items() if name.startswith(FITTED)}
    prior = fit(fitted) if options.fit else FORM_PRIOR
    print(prior)
    for half, named in (("fitted", fitted), ("judged", {n: r for n, r in every.items() if n not in fitted})):
        table = errors(named, prior)
        table["inside"] = table.error.abs() < SD_OF_90
        print(f"{half}: {', '.join(named)}; log density {log_density(table):.2f}")
        print(table.groupby("progress").agg({"inside": ["mean", "count"], "sd": "mean"}).round(3).to_string())
        print(table.groupby("study").agg({"inside": "mean", "sd": "mean"}).round(3).to_string())


if __name__ == "__main__":
    main()
