"""Commands for a new study file: init, schema."""

from __future__ import annotations

import enum
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from transfer_bo.cli.common import app, command_line, reports_errors
from transfer_bo.errors import StudyFileError

__all__: list[str] = []


class _Kind(enum.StrEnum):
    TEXT = "text"
    MODEL = "model"
    COMMAND = "command"


_FILES = {_Kind.TEXT: (), _Kind.MODEL: ("train.py",), _Kind.COMMAND: ()}
"""Files that are written beside the study file."""


@app.command()
@reports_errors
def init(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file to write.")] = Path(
        "study.toml"
    ),
    kind: Annotated[
        _Kind,
        typer.Option(help="What is trained: the reference transformer on text, your model, your program."),
    ] = _Kind.TEXT,
) -> None:
    """Write a commented study file to start from.

    With --kind model a train.py for a torch model of your own is written beside it. No file is replaced.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", study.stem) or "study"
    written = {study: f"{kind}.toml", **{study.parent / file: file for file in _FILES[kind]}}
    existing = next((path for path in written if path.exists()), None)
    if existing is not None:
        raise StudyFileError(f"{existing} exists already; name another file: transfer-bo init OTHER.toml")

    templates = files("transfer_bo.cli") / "templates"
    try:
        study.parent.mkdir(parents=True, exist_ok=True)
        for path, template in written.items():
            text = (templates / template).read_text(encoding="utf-8")
            path.write_text(text.replace("NAME", name), encoding="utf-8")
    except OSError as error:
        raise StudyFileError(f"{study} cannot be written ({error.strerror}); name another file.") from None
    next_step = (
        command_line("run", study) if kind is _Kind.MODEL else f"edit it, then {command_line('run', study)}"
    )
    typer.echo(f"Written: {', '.join(map(str, written))}\nNext: {next_step}")


@app.command()
@reports_errors
def schema() -> None:
    """Print the JSON schema of a study file, for editors."""
    from transfer_bo.study_file.json_schema import study_file_schema

    typer.echo(json.dumps(study_file_schema(), indent=2))
