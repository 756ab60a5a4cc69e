"""The claim at full size on one GPU: tune on proxies, project, verify by a run that is watched. Nine minutes.

    python studies/gpu/full_size.py --text text --out results    # on a machine with a GPU, no network
    python studies/gpu/full_size.py --tiny --out results         # on a CPU: only that the script works

A study of 30 proxies or more (width 128 to 256, depth 4 to 8, 5 to 20M tokens), the projection to a target
of 100M parameters and 100M tokens, its run with the early verdict on, then, as far as time allows, the
documented defaults and the learning rate of the best proxy with all else at the defaults. `full_size.jsonl`
gets a line per run as it ends; `report.html` is the study's report. Not seen on a GPU yet: only the tiny
version has been run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from transfer_bo.projection import suggest
from transfer_bo.records import Outcome, Run, read_run, read_runs
from transfer_bo.report import report
from transfer_bo.runners.objective import objective
from transfer_bo.runners.study_search import first_params, make_sampler, search_is_over
from transfer_bo.runners.task import StudyTask
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.search.pruner import RungPruner
from transfer_bo.store.open_study import create_study, open_study
from transfer_bo.study_file import load_study_file
from transfer_bo.verification.jobs import plan
from transfer_bo.verification.running import curve_of_target, next_setting, run_job
from transfer_bo.verification.verdict import judge

STUDY = """
name = "full_size"

[data]
source = {text}
context = {context}

{rungs}
{target}

[model]
head_size = {head_size}

[training]
compile = {compiled}

[space]
lr = {{ low = 0.001, high = 0.25, default = 0.008 }}
{others}

[budget]
target_runs = 1.0
trials = {trials}

[run]
out = "study"
checkpoint_seconds = 1000.0
"""

RUNG = "[[ladder.rungs]]\nwidth = {}\ndepth = {}\nbatch = {}\ntokens = {}\n"

FULL: dict[str, Any] = {
    "context": 512,
    "head_size": 64,
    "trials": 36,
    "others": "weight_decay = {}\ninit_std = {}",
    "rungs": [
        (128, 4, 32, 5_000_000),
        (128, 8, 32, 5_000_000),
        (256, 4, 32, 10_000_000),
        (256, 8, 64, 20_000_000),
    ],
    "target": (768, 14, 128, 100_000_000),
}
TINY: dict[str, Any] = {
    "context": 16,
    "head_size": 16,
    "trials": 6,
    "others": "",
    "rungs": [(16, 1, 2, 640), (32, 1, 2, 640)],
    "target": (32, 2, 2, 1600),
}

SEARCH_SHARE = 0.5
"""Share of the time that the search may take."""


def write_study(folder: Path, sizes: dict[str, Any], text: str) -> Path:
    """The study file."""
    path = folder / "full_size.toml"
    target = RUNG.format(*sizes["target"]).replace("[[ladder.rungs]]", "[ladder.target]")
    rungs = "\n".join(RUNG.format(*rung) for rung in sizes["rungs"])
    more = {"rungs": rungs, "target": target, "text": json.dumps(text), "compiled": "false"}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(STUDY.format(**{**sizes, **more}))
    return path


def run_study(path: Path, seconds: float, note: Callable[[dict[str, Any]], None]) -> str:
    """Search, project and verify within the time; the verdict in words.

    Args:
        path: The study file.
        seconds: How long it may take.
        note: Takes a dictionary of plain values for each run, as it ends.
    """
    started = time.monotonic()
    task = StudyTask(load_study_file(path))
    create_study(task.file, task.definition())
    study = open_study(task.file, sampler=make_sampler(task), pruner=RungPruner())
    train = objective(task)

    def is_over(trials: list[optuna.trial.FrozenTrial]) -> bool:
        late = time.monotonic() - started > SEARCH_SHARE * seconds
        return late or search_is_over(task, study, [read_run(trial) for trial in trials])

    def end(trial: optuna.trial.FrozenTrial) -> None:
        task.clean_up(trial)
        note(_plain(read_run(trial)))

    options = WorkerOptions(on_end=end)
    work(study, train, is_over=is_over, first_params=first_params(task), options=options)
    note({"purpose": "search ended", "seconds": time.monotonic() - started})

    suggestion = suggest(study, target=task.file.target)
    note({"purpose": "suggestion", **suggestion.to_json()})
    jobs = plan(suggestion, _controls(task, study), curve=curve_of_target(study, suggestion))
    # The target's run is compiled: that pays for itself there.
    compiled = task.file.training.model_copy(update={"compile": None})
    target_task = StudyTask(task.file.model_copy(update={"training": compiled}))
    done, longest = [], 0.0
    for job in jobs:
        if done and time.monotonic() - started + longest > seconds:
            note({"purpose": job.purpose, "name": job.name, "skipped": "no time remains"})
            continue
        begun = time.monotonic()
        trial = run_job(study, objective(target_task), job)
        longest = max(longest, time.monotonic() - begun)
        done.append(job)
        if trial is not None:
            note({"name": job.name, **_plain(read_run(trial)), "attributes": _speed(trial)})

    verification = judge(study, done, next_params=next_setting(study, done[0]))
    report(study, path.parent / "report.html")
    return verification.text


def _controls(task: StudyTask, study: optuna.Study) -> dict[str, dict[str, Any]]:
    """The documented defaults, and the same with the learning rate of the best run at the largest proxy."""
    defaults = task.space.defaults
    finished = [run for run in read_runs(study) if run.outcome is Outcome.FINISHED and run.scale is not None]
    largest = max((run.scale for run in finished), key=task.cost)
    best = min((run for run in finished if run.scale == largest), key=lambda run: run.loss or 0.0)
    return {
        "documented defaults": defaults,
        "learning rate of the best proxy": {**defaults, "lr": best.params["lr"]},
    }


def _plain(run: Run) -> dict[str, Any]:
    return {
        "number": run.number,
        "purpose": run.purpose,
        "scale": dict(run.scale or {}),
        "params": run.params,
        "outcome": str(run.outcome),
        "loss": run.loss,
        "seconds": run.seconds,
        "curve": list(run.curve.items()),
    }


def _speed(trial: optuna.trial.FrozenTrial) -> Any:
    return trial.user_attrs.get("transfer_bo:speed")


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", default="sotu")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=530.0)
    options = parser.parse_args(arguments)

    text = options.text if options.text == "sotu" else str(Path(options.text).resolve())
    path = write_study(options.out, TINY if options.tiny else FULL, text)
    with (options.out / "full_size.jsonl").open("w") as file:

        def note(found: dict[str, Any]) -> None:
            file.write(json.dumps(found) + "\n")
            file.flush()

        print(run_study(path, options.seconds, note))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
