"""The project's claim on real text: is the projected setting better at the target than what people do now?

    .venv/bin/python studies/main_result.py --seeds 0 1 2 3 4 5 --budgets 1 3

For each seed and budget (in runs at the target) searches of the same compute: all HPs of `sotu_lm.toml`; the
global learning rate alone; and all HPs with TPE and with GPSampler at one proxy, the most expensive one that
the budget affords `RIVAL_RUNS` times. Then one run at the target for each of: the projection, the documented
defaults, the best trial of the most used rung copied as it is, the tuned global learning rate, and the best
trials of TPE and GPSampler copied. Results go to `main_result.csv`, in place of those of the same seed and
budget. Everything is resumable: the same command goes on where it stopped and repeats nothing that finished.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console
from student import t_interval

from transfer_bo.errors import Diverged
from transfer_bo.projection import suggest
from transfer_bo.records import Outcome, read_runs
from transfer_bo.runners.attempt import Attempt
from transfer_bo.runners.study_runner import run_search, run_verification
from transfer_bo.runners.task import StudyTask
from transfer_bo.scale import Scale
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import StudyFile, load_study_file

HERE = Path(__file__).parent
CSV = HERE / "main_result.csv"
RIVAL_RUNS = 20
"""Runs that a rival can make at its proxy, at least."""


def variant(study_file: StudyFile, seed: int, budget: float, only_lr: bool) -> StudyFile:
    """The study file with another seed and budget in a folder of its own, perhaps with lr alone."""
    name = f"main_result_{'lr' if only_lr else 'all'}_{seed}_{budget:g}"
    space = {"lr": study_file.space["lr"]} if only_lr else study_file.space
    run = study_file.run.model_copy(update={"out": f"../runs/{name}"})
    budgets = study_file.budget.model_copy(update={"target_runs": budget})
    return study_file.model_copy(
        update={"name": name, "seed": seed, "space": space, "run": run, "budget": budgets}
    )


def best_of_most_used_rung(study: optuna.Study) -> dict[str, float]:
    """HPs of the best finished search trial at the rung with the most finished trials."""
    finished = [
        run for run in read_runs(study) if run.outcome is Outcome.FINISHED and run.purpose == "search"
    ]
    rung, _ = Counter(run.scale for run in finished).most_common(1)[0]
    return min((run for run in finished if run.scale == rung), key=lambda run: run.loss or 0.0).params


def rival_proxy(task: StudyTask) -> Scale:
    """The most expensive proxy that the budget affords `RIVAL_RUNS` times."""
    affordable = [scale for scale in task.ladder.proxies if RIVAL_RUNS * task.cost(scale) <= task.budget]
    return max(affordable, key=task.cost)


def best_of_rival(study_file: StudyFile, sampler: optuna.samplers.BaseSampler) -> dict[str, float]:
    """HPs of the best trial of another sampler at one proxy, the documented defaults among its trials."""
    task, name = StudyTask(study_file), f"{study_file.name}_{type(sampler).__name__}"
    proxy = rival_proxy(task)

    def objective(trial: optuna.Trial) -> float:
        hps = task.space.suggest(trial)
        attempt = Attempt(
            number=trial.number,
            scale=proxy,
            hps=hps,
            seed=1000 * study_file.seed + trial.number,
            accumulate=1,
            owner_losses=0,
            report=lambda progress, loss: None,
        )
        try:
            return task.train_here(attempt, checkpoint=None)
        except Diverged:
            raise optuna.TrialPruned from None

    storage = f"sqlite:///{HERE.parent / 'runs' / name}.db"
    study = optuna.create_study(storage=storage, study_name=name, sampler=sampler, load_if_exists=True)
    study.enqueue_trial(task.space.defaults, skip_if_exists=True)
    ended = len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED]))
    study.optimize(objective, n_trials=max(int(task.budget / task.cost(proxy)) - ended, 0))
    return study.best_params


def one_seed(study_file: StudyFile, seed: int, budget: float, console: Console) -> list[dict[str, object]]:
    """All searches and the runs at the target; a row per arm."""
    every = variant(study_file, seed, budget, only_lr=False)
    only_lr = variant(study_file, seed, budget, only_lr=True)
    for each in (every, only_lr):
        run_search(each, console)

    defaults = every.hp_space.defaults
    tuned = suggest(open_study(only_lr), target=study_file.target)
    controls = {
        "documented defaults": defaults,
        "best proxy copied": best_of_most_used_rung(open_study(every)),
        "global lr tuned": {**defaults, **tuned.params},
        "TPE copied": best_of_rival(every, optuna.samplers.TPESampler(seed=seed)),
        "GPSampler copied": best_of_rival(every, optuna.samplers.GPSampler(seed=seed)),
    }
    verification = run_verification(every, console, controls)
    console.print(verification.text, soft_wrap=True, markup=False)

    trials = sum(run.purpose == "search" for run in read_runs(open_study(every)))
    common = {"budget": budget, "seed": seed, "trials": trials}
    low, high = verification.interval
    projection = {
        "arm": "projection",
        "loss": verification.measured,
        "predicted": verification.predicted_mean,
        "low": low,
        "high": high,
        "inside": verification.inside,
    }
    rivals = [{"arm": arm, "loss": loss} for arm, loss in verification.control.items()]
    return [common | row for row in [projection, *rivals]]


def table(rows: pd.DataFrame) -> str:
    """Losses, and the projection's gain over each other setting in percent, with 90% intervals over seeds."""
    lines = []
    for budget, of_budget in rows.groupby("budget"):
        losses = of_budget.pivot(index="seed", columns="arm", values="loss")
        lines += [f"Budget of {budget:g} runs at the target", losses.to_string(float_format="%.4f"), ""]
        for arm in losses.columns.drop("projection"):
            gain = 100 * (1 - losses["projection"] / losses[arm])
            mean, low, high = t_interval(gain)
            lines.append(f"gain over {arm}: {mean:+.2f}% ({low:+.2f} to {high:+.2f})")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run all seeds and budgets; write the table after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--study", type=Path, default=HERE / "sotu_lm.toml")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(highlight=False, width=160)
    study_file = load_study_file(arguments.study)

    rows = pd.read_csv(CSV)
    for budget in arguments.budgets:
        for seed in arguments.seeds:
            new = pd.DataFrame(one_seed(study_file, seed, budget, console))
            others = rows[(rows["budget"] != budget) | (rows["seed"] != seed)]
            rows = pd.concat([others, new]).sort_values(["budget", "seed"], kind="stable")
            rows.to_csv(CSV, index=False, float_format="%.5f", lineterminator="\n")
    console.print(table(rows), markup=False)


if __name__ == "__main__":
    main()
