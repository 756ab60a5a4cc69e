"""All trainings of the main result, as a table and as records that the package can fit.

    python studies/search_model/trainings.py        # collects runs/main_result_* into trainings.csv

A row per training: of which search (transfer_bo, lr, TPE, GPSampler), its budget and seed, what it was for
(search, verify, control), HPs, scale, loss. Studies of which nothing is on this machine keep their rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from transfer_bo.projection.projection import Projection
from transfer_bo.records import Outcome, Run, read_dimensions, read_runs, read_settings
from transfer_bo.runners.study_search import first_params, make_sampler
from transfer_bo.runners.task import StudyTask
from transfer_bo.scale import Scale
from transfer_bo.study_file import load_study_file
from transfer_bo.surrogate.surrogate import fit_surrogate

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from main_result import rival_proxy, variant  # noqa: E402

CSV = HERE / "trainings.csv"
STUDY = HERE.parent / "sotu_lm.toml"
RUNS = HERE.parents[1] / "runs"
KEYS = ["search", "budget", "seed", "purpose"]
AXES = ["width", "depth", "batch", "tokens"]
RIVALS = ("TPESampler", "GPSampler")


def task_of(seed: int, budget: float) -> StudyTask:
    """The search of all HPs with this seed and budget."""
    return StudyTask(variant(load_study_file(STUDY), seed, budget, only_lr=False))


def projection_of(task: StudyTask, trainings: pd.DataFrame) -> Projection:
    """The package's fit to trainings, whoever chose them."""
    study = optuna.create_study(sampler=make_sampler(task))
    study.enqueue_trial(first_params(task))
    trial = study.ask()  # stores the settings
    task.ladder.suggest(trial)
    task.space.suggest(trial)
    settings = read_settings(study)
    dimensions = read_dimensions([study.trials[0].distributions], settings.defaults)
    runs = list(records(trainings, [dim.name for dim in dimensions]))
    return Projection(fit_surrogate(runs, dimensions, settings), runs, settings, {})


def records(trainings: pd.DataFrame, hps: list[str]) -> Iterator[Run]:
    """A record for each row."""
    for number, row in enumerate(trainings.to_dict("records")):
        scale = Scale({axis: row[axis] for axis in AXES})
        yield Run(number, {name: row[name] for name in hps}, scale, Outcome.FINISHED, row["loss"])


def collect() -> Iterator[dict[str, Any]]:
    """A row for each finished training of the studies on this machine."""
    for folder in sorted(RUNS.glob("main_result_*")):
        if not folder.is_dir():
            continue
        _, _, hps, seed, budget = folder.name.split("_")
        task = task_of(int(seed), float(budget))
        of_study = {"budget": float(budget), "seed": int(seed)}
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")
        for run in read_runs(study):
            if run.loss is not None and run.scale is not None:
                key = of_study | {"search": "lr" if hps == "lr" else "transfer_bo", "purpose": run.purpose}
                yield key | task.space.defaults | run.params | dict(run.scale) | {"loss": run.loss}

        for rival in RIVALS:
            store = RUNS / f"{folder.name}_{rival}.db"
            if not store.exists():
                continue
            study = optuna.load_study(study_name=None, storage=f"sqlite:///{store}")
            for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
                key = of_study | {"search": rival.removesuffix("Sampler"), "purpose": "search"}
                yield key | trial.params | dict(rival_proxy(task)) | {"loss": trial.value}


def main() -> None:
    """Collect, and write the table."""
    rows = pd.DataFrame(collect())
    if CSV.exists():
        known = pd.read_csv(CSV)
        studies = ["search", "budget", "seed"]
        kept = known.merge(rows[studies].drop_duplicates(), on=studies, how="left", indicator=True)
        rows = pd.concat([kept[kept["_merge"] == "left_only"].drop(columns="_merge"), rows])
    hps = [name for name in task_of(0, 1.0).space.defaults if name in rows]
    rows = rows[[*KEYS, *hps, *AXES, "loss"]].sort_values(["budget", "seed", "search"], kind="stable")
    rows.to_csv(CSV, index=False, float_format="%.6g", lineterminator="\n")
    print(rows.groupby(KEYS)["loss"].agg(["size", "min"]).to_string())


if __name__ == "__main__":
    main()
