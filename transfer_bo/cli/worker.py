"""The commands that join a study from another machine: worker, and node for trials on several nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfer_bo.addresses import has_password
from transfer_bo.cli.common import (
    STORAGE,
    OptionalStudyArgument,
    StudyArgument,
    app,
    command_line,
    interruptible,
    output_console,
    reports_errors,
    silence_libraries,
)
from transfer_bo.cli.opened import load_named
from transfer_bo.errors import TransferError
from transfer_bo.runners import forkserver

if TYPE_CHECKING:
    from transfer_bo.study_file import StudyFile

__all__: list[str] = []


@app.command()
@reports_errors
def worker(
    study_file: OptionalStudyArgument = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the study is kept: postgresql://, grpc://, journal:/// or sqlite:///.",
            envvar=STORAGE,
            metavar="URL",
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name.", metavar="NAME")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes to start here; default: run.workers.")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit a Slurm job that does so, and is queued again if stopped.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="With --slurm: number of such jobs; default: 1.")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="With --slurm: an option of sbatch, e.g. --sbatch=--gpus=4.", metavar="OPTION"),
    ] = None,
) -> None:
    """Work on a study together with others.

    Any number of workers, on any machine, may join and leave at any time.
    """
    if slurm:
        _submit(study_file, storage, study, workers, jobs or 1, sbatch or [])
        return
    for flag, value in {"--jobs": jobs, "--sbatch": sbatch}.items():
        if value is not None:
            raise TransferError(f"{flag} goes with --slurm.")

    again = _command(study_file, storage, study, workers)
    joined = _study_file(study_file, storage, study)
    os.environ.pop(STORAGE, None)  # programs that trials start have no use for its password
    if workers is not None:
        joined = joined.model_copy(update={"run": joined.run.model_copy(update={"workers": workers})})
    if joined.run.runner == "local":
        forkserver.prepare()
    silence_libraries()
    from transfer_bo.runners.study_runner import join_search

    console = output_console()
    with interruptible(again):
        if not join_search(joined, console):
            console.print("The budget is spent; there is nothing left to do.")


@app.command()
@reports_errors
def node(study: StudyArgument) -> None:
    """Lend this machine to trials that run on several nodes.

    Start it on each node but the one with run, worker or verify. It needs no access to the storage.
    """
    from transfer_bo.runners.torchrun import serve_node
    from transfer_bo.study_file import load_study_file

    study_file, console = load_study_file(study), output_console()
    with interruptible(command_line("node", study)):
        serve_node(study_file, lambda line: console.print(line, soft_wrap=True, markup=False))


def _submit(
    path: Path | None,
    storage: str | None,
    name: str | None,
    workers: int | None,
    jobs: int,
    options: list[str],
) -> None:
    """Submit jobs; sbatch passes the environment on to them, a storage's address there included."""
    joined = _study_file(path, storage, name)
    if workers is not None:
        joined = joined.model_copy(update={"run": joined.run.model_copy(update={"workers": workers})})
    if storage is not None and storage != os.environ.get(STORAGE) and has_password(storage):
        raise TransferError(
            f"The storage's address has a password, which would stand in the script; set {STORAGE} to it."
        )
    from transfer_bo.runners.slurm import submit

    typer.echo(submit(joined, _arguments(path, storage, name, workers), jobs, options))


def _command(path: Path | None, storage: str | None, name: str | None, workers: int | None) -> str | None:
    """The command that was typed; None if it must not be printed, for a password in it."""
    if storage is not None and storage != os.environ.get(STORAGE) and has_password(storage):
        return None
    return command_line("worker", *_arguments(path, storage, name, workers))


def _arguments(path: Path | None, storage: str | None, name: str | None, workers: int | None) -> list[str]:
    """What was typed after `worker`; a storage from the environment is left there."""
    arguments = [] if path is None else [str(path)]
    if storage is not None and storage != os.environ.get(STORAGE):
        arguments += ["--storage", storage]
    if name is not None:
        arguments += ["--study", name]
    if workers is not None:
        arguments += ["--workers", str(workers)]
    return arguments


def _study_file(path: Path | None, storage: str | None, name: str | None) -> StudyFile:
    """The study file given, or the copy that is kept with the study.

    Raises:
        TransferError: If neither is there.
    """
    if path is not None:
        return load_named(path, storage, name)
    if storage is None or name is None:
        raise TransferError("Which study? Give a study file, or both --storage and --study.")
    from transfer_bo.store.existing_study import stored_study_file

    return stored_study_file(storage, name)
