"""The command `suggest`: what to set at the target."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from transfer_bo.cli.common import StudyArgument, app, console, quiet, spoken
from transfer_bo.study_file import StudyFile, load_study_file

__all__: list[str] = []


@app.command()
@spoken
def suggest(
    study: StudyArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What to set at the target, with intervals, from the trials so far."""
    study_file = load_study_file(study)
    quiet()
    suggestion = _suggestion(study_file)
    if as_json:
        typer.echo(json.dumps(suggestion.to_json(), indent=2))
        return
    from transfer_bo.runners.progress import projection_table

    out = console()
    out.print(projection_table(suggestion))
    for warning in suggestion.warnings:
        out.print(f"Note: {warning}", soft_wrap=True, markup=False)


def _suggestion(study_file: StudyFile) -> Any:
    from transfer_bo.projection import suggest
    from transfer_bo.runners.storage import open_study

    return suggest(open_study(study_file), target=study_file.target)
