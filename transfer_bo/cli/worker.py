"""The command that joins a study from any machine, at any time: worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transfer_bo.addresses import has_password
from transfer_bo.cli.common import (
    STORAGE,
    OptionalStudyArgument,
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
) -> None:
    """Work on a study together with others.

    Any number of workers, on any machine, may join and leave at any time.
    """
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


def _command(path: Path | None, storage: str | None, name: str | None, workers: int | None) -> str | None:
    """The command that was typed; None if it must not be printed, for a password in it."""
    arguments: list[object] = [] if path is None else [path]
    if storage is not None and storage != os.environ.get(STORAGE):
        if has_password(storage):
            return None
        arguments += ["--storage", storage]
    if name is not None:
        arguments += ["--study", name]
    if workers is not None:
        arguments += ["--workers", workers]
    return command_line("worker", *arguments)


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
