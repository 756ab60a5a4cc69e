"""Commands that work on a study file: run, verify, report, status."""

from __future__ import annotations

from typing import Annotated

import typer

from transfer_bo.cli.common import StudyArgument, app, console, interruptible, quiet, spoken
from transfer_bo.runners import forkserver
from transfer_bo.secrets import hide_passwords
from transfer_bo.study_file import load_study_file

__all__: list[str] = []


@app.command()
@spoken
def run(study: StudyArgument) -> None:
    """Search on the proxies until the budget is spent. The same command again goes on where it stopped."""
    study_file = load_study_file(study)
    if study_file.run.runner == "local":
        forkserver.prepare()
    quiet()
    from transfer_bo.runners.worker_pool import run_search

    out = console()
    with interruptible("run", study):
        if not run_search(study_file, out):
            out.print("The budget is spent; there is nothing left to search.")
    out.print(f"Results are in {study_file.out}\nNext: transfer-bo verify {study}", soft_wrap=True)


@app.command()
@spoken
def verify(
    study: StudyArgument,
    replicate: Annotated[
        int, typer.Option(min=0, help="Run suggestion and controls again, with so many new seeds, and test.")
    ] = 0,
) -> None:
    """Run the suggestion at full size, beside the defaults, and compare with what was predicted."""
    study_file = load_study_file(study)
    quiet()
    from transfer_bo.runners.worker_pool import run_verification

    out = console()
    with interruptible("verify", study):
        verification = run_verification(study_file, out, replicate=replicate)
    out.print(verification.text, soft_wrap=True, markup=False)


@app.command()
@spoken
def report(study: StudyArgument) -> None:
    """Write everything the study knows into one HTML file."""
    study_file = load_study_file(study)
    quiet()
    from transfer_bo.report import tensor_settings, write_report
    from transfer_bo.runners.task import StudyTask
    from transfer_bo.store.open_study import open_study

    opened, task, target = open_study(study_file), StudyTask(study_file), study_file.target
    path = write_report(
        opened,
        study_file.out / "report.html",
        title=study_file.name,
        provenance={
            "seed": study_file.seed,
            "storage": hide_passwords(study_file.storage_url),
            "study file": hide_passwords(study_file.path.read_text(encoding="utf-8")),
        },
        tensor_table=lambda hps: tensor_settings(task.parametrization(target), task.build(target), hps),
    )
    console().print(f"Report: {path}", soft_wrap=True, markup=False)


@app.command()
@spoken
def status(study: StudyArgument) -> None:
    """Trials by outcome and the best loss, per rung; compute spent."""
    study_file = load_study_file(study)
    quiet()
    from transfer_bo.display.tables import rung_table, spent_text, summarise
    from transfer_bo.records import read_runs
    from transfer_bo.store.open_study import open_study

    opened = open_study(study_file)
    runs = read_runs(opened)
    out = console()
    out.print(rung_table(summarise(runs)))
    out.print(spent_text(opened, runs))
