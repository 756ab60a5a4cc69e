"""The project's claim on real text: is the projected setting better at the target than what people do now?

    .venv/bin/python studies/main_result.py --seeds 0 1 2

For each seed two searches with the same compute: all HPs of `sotu_lm.toml`, and the global learning rate
alone. Then one run at the target for each of: the projection, the documented defaults, the best trial of the
most used rung copied as it is, and the tuned global learning rate. Results go to `main_result.csv`.
Everything is resumable: the same command goes on where it stopped and repeats nothing that finished.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console

from transfer_bo.projection import suggest
from transfer_bo.records import Outcome, read_runs
from transfer_bo.runners.study_runner import run_search, run_verification
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import StudyFile, load_study_file

HERE = Path(__file__).parent
CSV = HERE / "main_result.csv"


def variant(study_file: StudyFile, seed: int, only_lr: bool) -> StudyFile:
    """The study file with another seed in a folder of its own, perhaps with the learning rate alone."""
    name = f"main_result_{'lr' if only_lr else 'all'}_{seed}"
    space = {"lr": study_file.space["lr"]} if only_lr else study_file.space
    run = study_file.run.model_copy(update={"out": f"../runs/{name}"})
    return study_file.model_copy(update={"name": name, "seed": seed, "space": space, "run": run})


def best_of_most_used_rung(study: optuna.Study) -> dict[str, float]:
    """HPs of the best finished search trial at the rung with the most finished trials."""
    finished = [
        run for run in read_runs(study) if run.outcome is Outcome.FINISHED and run.purpose == "search"
    ]
    rung, _ = Counter(run.scale for run in finished).most_common(1)[0]
    return min((run for run in finished if run.scale == rung), key=lambda run: run.loss or 0.0).params


def one_seed(study_file: StudyFile, seed: int, console: Console) -> list[dict[str, object]]:
    """Both searches and the runs at the target; a row per arm."""
    every, only_lr = variant(study_file, seed, only_lr=False), variant(study_file, seed, only_lr=True)
    for each in (every, only_lr):
        run_search(each, console)
    defaults = every.hp_space.defaults
    tuned = suggest(open_study(only_lr), target=study_file.target)
    controls = {
        "documented defaults": defaults,
        "best proxy copied": best_of_most_used_rung(open_study(every)),
        "global lr tuned": {**defaults, **tuned.params},
    }
    verification = run_verification(every, console, controls)
    console.print(verification.text, soft_wrap=True, markup=False)
    common = {"seed": seed, "trials": sum(run.purpose == "search" for run in read_runs(open_study(every)))}
    low, high = verification.interval
    rows: list[dict[str, object]] = [
        common
        | {
            "arm": "projection",
            "loss": verification.measured,
            "predicted": verification.predicted_mean,
            "low": low,
            "high": high,
            "inside": verification.inside,
        }
    ]
    rows += [common | {"arm": arm, "loss": loss} for arm, loss in verification.control.items()]
    return rows


def main() -> None:
    """Run all seeds; write the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--study", type=Path, default=HERE / "sotu_lm.toml")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(highlight=False, width=160)
    study_file = load_study_file(arguments.study)
    rows: list[dict[str, object]] = []
    for seed in arguments.seeds:
        rows += one_seed(study_file, seed, console)
        pd.DataFrame(rows).to_csv(CSV, index=False, float_format="%.5f")
    table = pd.DataFrame(rows)
    losses = table.pivot(index="seed", columns="arm", values="loss")
    console.print(losses.to_string(float_format="%.4f"))
    gain = losses.rsub(losses["projection"], axis=0).mul(-1).drop(columns="projection")
    relative = gain.div(losses.drop(columns="projection")) * 100
    console.print("\nGain of the projection, % of loss: mean and standard error over seeds")
    console.print(relative.agg(["mean", "sem"]).T.to_string(float_format="%.2f"))


if __name__ == "__main__":
    main()
