"""The command that joins a study from any machine, at any time: worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from transfer_bo.cli.common import app, console, interruptible, quiet, spoken
from transfer_bo.errors import TransferError
from transfer_bo.runners import forkserver
from transfer_bo.study_file import StudyFile, load_study_file

__all__: list[str] = []

STORAGE = "TRANSFER_BO_STORAGE"
"""In the place of `--storage`, which other users of a machine can see."""


@app.command()
@spoken
def worker(
    study_file: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.toml]", help="The study file, if there is a copy here.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the study is kept: postgresql://, grpc://, journal:/// or sqlite:///.",
            envvar=STORAGE,
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes to start here.")] = None,
) -> None:
    """Work on a study together with others; as many as you like may join and leave, at any time."""
    joined = _study_file(study_file, storage, study)
    os.environ.pop(STORAGE, None)  # programs that trials start have no use for its password
    if workers is not None:
        joined = joined.model_copy(update={"run": joined.run.model_copy(update={"workers": workers})})
    if joined.run.runner == "local":
        forkserver.prepare()
    quiet()
    from transfer_bo.runners.worker_pool import join

    out = console()
    with interruptible("worker", study_file or Path()):
        if not join(joined, out):
            out.print("The budget is spent; there is nothing left to do.")


def _study_file(path: Path | None, storage: str | None, name: str | None) -> StudyFile:
    """The study file given, or the copy that is kept with the study.

    Raises:
        TransferError: if neither is there, or they are not of the same study.
    """
    if path is None:
        if storage is None or name is None:
            raise TransferError("Which study? Give a study file, or both --storage and --study.")
        from transfer_bo.store.open_study import stored_study_file

        return stored_study_file(storage, name)
    given = load_study_file(path)
    if name is not None and name != given.name:
        raise TransferError(
            f"--study {name!r}: {path} is the study {given.name!r}; leave one of the two out."
        )
    return given if storage is None else given.stored_in(storage)
