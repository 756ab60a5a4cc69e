"""Commands that work on a study: run, verify, report, status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer_bo.cli.common import (
    OptionalStudyArgument,
    StorageOption,
    StudyArgument,
    StudyOption,
    app,
    command_line,
    interruptible,
    output_console,
    reports_errors,
    silence_libraries,
)
from transfer_bo.cli.opened import as_stored, find_study
from transfer_bo.errors import TransferError
from transfer_bo.runners import forkserver

if TYPE_CHECKING:
    from transfer_bo.study_file import StudyFile

__all__: list[str] = []


@app.command()
@reports_errors
def run(study: StudyArgument) -> None:
    """Search on the proxies until the budget is spent.

    The same command again goes on where it stopped. Exit code 1 if all runs ended with an error.
    """
    from transfer_bo.study_file import load_study_file

    study_file = load_study_file(study)
    if study_file.run.runner == "local":
        forkserver.prepare()
    study_file = as_stored(study_file)
    from transfer_bo.runners.study_runner import error_of_all_runs, run_search

    console = output_console()
    with interruptible(command_line("run", study)):
        if not run_search(study_file, console):
            console.print("The budget is spent; there is nothing left to search.")
    error = error_of_all_runs(study_file)
    if error is not None:
        typer.echo(f"No run finished, all ended with an error; the last one: {error}", err=True)
        raise typer.Exit(1)
    next_command = command_line("verify", study)
    console.print(f"Results are in {study_file.out}\nNext: {next_command}", soft_wrap=True, markup=False)


@app.command()
@reports_errors
def verify(
    study: StudyArgument,
    replicate: Annotated[
        int, typer.Option(min=0, help="Repeat suggestion and controls with so many new seeds, and test.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Start nothing; show parameters, memory, hours and cost.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(help="With --dry-run: the GPU, e.g. H100; default: all known.", metavar="NAME"),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="With --dry-run: number of GPUs; default: as in the study file.")
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(help="With --dry-run: ddp or fsdp2; default: as in the study file.", metavar="NAME"),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(help="With --dry-run: parts in which a batch passes the model."),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(help="With --dry-run: share of the peak FLOP/s that is achieved; default: 0.4."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print JSON instead of tables.")
    ] = False,
) -> None:
    """Run the suggestion at full size and compare.

    The defaults run beside it, unless the study file says otherwise; both are compared with the prediction.
    """
    needs = {
        "gpu": gpu,
        "ranks": ranks,
        "parallel": parallel,
        "accumulate": accumulate,
        "utilisation": utilisation,
    }
    given = {name: value for name, value in needs.items() if value is not None}
    if not dry_run and (given or as_json):
        name = next(iter(given), "json")
        raise TransferError(f"--{name} goes with --dry-run, which starts no run; give both or leave it out.")

    from transfer_bo.study_file import load_study_file

    study_file = as_stored(load_study_file(study))
    console = output_console()
    if dry_run:
        from transfer_bo.cli.dry_run import print_dry_run

        print_dry_run(study_file, given, replicate, console, as_json=as_json)
        return

    from transfer_bo.runners.study_runner import run_verification

    options = ["--replicate", replicate] if replicate else []
    with interruptible(command_line("verify", study, *options)):
        verification = run_verification(study_file, console, replicate=replicate)
    console.print(verification.text, soft_wrap=True, markup=False)


@app.command()
@reports_errors
def report(
    study_file: OptionalStudyArgument = None,
    storage: StorageOption = None,
    study: StudyOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: report.html in the study's folder, or here."),
    ] = None,
) -> None:
    """Write all that a study knows into one HTML file."""
    source = find_study(study_file, storage, study, "report --storage sqlite:///study.db")
    silence_libraries()
    from transfer_bo.report import report as write_report
    from transfer_bo.surrogate.threads import one_thread

    opened = source.open()
    folder = Path()
    options: dict[str, Any] = {"provenance": {"storage": source.storage}}
    with one_thread():
        if source.file is not None:
            folder, options = source.file.out, _known(source.file)
        path = write_report(opened, out or folder / "report.html", **options)
    output_console().print(f"Report: {path}", soft_wrap=True, markup=False)


def _known(study_file: StudyFile) -> dict[str, Any]:
    """What a study file adds to a report: where results come from, and the settings of every tensor."""
    from transfer_bo.report import tensor_settings
    from transfer_bo.runners.task import StudyTask
    from transfer_bo.runners.trajectory import read_comparison

    provenance = {
        "seed": study_file.seed,
        "storage": study_file.storage_url,
        "study file": study_file.path.read_text(encoding="utf-8"),
    }
    if study_file.command is not None:  # only the program knows its tensors
        return {"provenance": provenance}

    task, target = StudyTask(study_file), study_file.target
    return {
        "provenance": provenance,
        "trajectories": read_comparison(study_file),
        "tensor_table": lambda hps: tensor_settings(task.parametrization(target), task.build(target), hps),
    }


@app.command()
@reports_errors
def status(
    study_file: OptionalStudyArgument = None, storage: StorageOption = None, study: StudyOption = None
) -> None:
    """Show trials and best loss per rung, and compute spent."""
    source = find_study(study_file, storage, study, "status --storage sqlite:///study.db")
    silence_libraries()
    from transfer_bo.display.tables import rung_table, speed_lines, spent_text, summarise
    from transfer_bo.records import read_runs
    from transfer_bo.store.heartbeat import dead_trials

    opened = source.open()
    runs = read_runs(opened)
    console = output_console()
    console.print(rung_table(summarise(runs, maximize=opened.direction.name == "MAXIMIZE")))
    console.print(spent_text(opened, runs))
    for line in speed_lines(opened, runs):
        console.print(line, soft_wrap=True, markup=False)
    n_dead = len(dead_trials(opened))
    if n_dead:
        console.print(
            f"{n_dead} of the running trials lost their process; they reserve their cost until they are run "
            f"again, by the search or by transfer_bo.store.heartbeat.requeue_dead(study).",
            soft_wrap=True,
        )
