"""The command `trajectory`: do narrow and wide models learn along the same directions?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from transfer_bo.cli.common import (
    JsonOption,
    PictureOption,
    StudyArgument,
    app,
    check_picture,
    command_line,
    interruptible,
    output_console,
    reports_errors,
)
from transfer_bo.cli.opened import as_stored
from transfer_bo.errors import StudyFileError

__all__: list[str] = []

VALUES = 9
"""Learning rates, as many as 2512.22768 has."""


@app.command()
@reports_errors
def trajectory(
    study: StudyArgument,
    values: Annotated[int, typer.Option(help="Number of learning rates, evenly spaced in octaves.")] = VALUES,
    low: Annotated[float | None, typer.Option(help="Lowest learning rate; default: of the range.")] = None,
    high: Annotated[float | None, typer.Option(help="Highest learning rate; default: of the range.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings per width and learning rate, averaged.")] = 1,
    picture: PictureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the directions of updates over widths.

    Trains the widths of the study's rungs at several learning rates, all else as at the base. The same
    command again goes on where it stopped.
    """
    from transfer_bo.study_file import load_study_file

    check_picture(picture)
    study_file = as_stored(load_study_file(study))
    if seeds < 1:
        raise StudyFileError(f"--seeds {seeds}: give 1 or more.")
    from transfer_bo.diagnostics.widths import compare_widths
    from transfer_bo.display.trajectory import comparison_sentences, draw_comparison
    from transfer_bo.runners.task import StudyTask
    from transfer_bo.runners.trajectory import learning_rates, watch, widths_of

    widths_of(study_file)
    octaves = learning_rates(study_file, low, high, values)
    with interruptible(command_line("trajectory", study)):
        runs = watch(StudyTask(study_file), octaves, seeds, lambda line: typer.echo(line, err=True))
    found = compare_widths(runs)

    picture = picture or study_file.out / "trajectory.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_comparison(found).savefig(picture)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return

    console = output_console()
    for sentence in comparison_sentences(found):
        console.print(sentence, soft_wrap=True, markup=False)
    console.print(f"Picture: {picture}", soft_wrap=True, markup=False)
