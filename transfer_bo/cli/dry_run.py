"""What `verify --dry-run` shows: the needs of the runs at the target; nothing is started or written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from transfer_bo.errors import StudyFileError, TransferError

if TYPE_CHECKING:
    from rich.console import Console

    from transfer_bo.study_file import StudyFile

__all__ = ["print_dry_run"]

PARALLEL = ("ddp", "fsdp2")
"""Values of `--parallel`."""


def print_dry_run(
    study_file: StudyFile, options: Mapping[str, Any], replicate: int, console: Console, *, as_json: bool
) -> None:
    """Print what a verification needs, as tables and a sentence or as JSON.

    Args:
        study_file: The checked study file.
        options: Values of the options gpu, ranks, parallel, accumulate and utilisation that were given.
        replicate: Repetitions of each run with new seeds.
        console: Where tables go.
        as_json: Whether to print JSON to standard output instead.

    Raises:
        StudyFileError: If the study trains with a program of the user's own, whose model is not known.
        TransferError: For an option with an unusable value.
    """
    if study_file.command is not None:
        raise StudyFileError(
            f"{study_file.path}: command: --dry-run does not know the model of a program of your own; "
            "call transfer_bo.verification.dry_run.dry_run with the model's parametrization."
        )
    needs = {
        "parallel": study_file.run.parallel,
        "ranks": study_file.run.ranks,
        "accumulate": study_file.training.accumulate,
        "activation_checkpointing": study_file.training.activation_checkpointing,
        **options,
    }
    if needs["parallel"] not in PARALLEL:
        raise TransferError(f"--parallel {needs['parallel']}: use one of {', '.join(PARALLEL)}.")

    from transfer_bo.display.dry_run_tables import dry_run_tables
    from transfer_bo.runners.task import StudyTask
    from transfer_bo.verification.dry_run import dry_run
    from transfer_bo.verification.gpus import GPUS, find_gpu

    name = needs.pop("gpu", None)
    gpus = list(GPUS.values()) if name is None else [find_gpu(name)]
    task = StudyTask(study_file)
    controls = (1 + (study_file.per_module is not None)) if study_file.verify.control else 0
    found = dry_run(
        task.parametrization(study_file.target),
        study_file.data.context,
        hps=task.space.defaults,
        gpus=gpus,
        budget=task.budget,
        runs=(1 + controls) * (1 + replicate),
        **needs,
    )

    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    for table in dry_run_tables(found.to_json()):
        console.print(table)
        console.print()
    console.print(found.text, soft_wrap=True, markup=False)
