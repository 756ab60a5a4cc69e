"""The command `subset-check`: do subsets of the data rank settings as all of the data does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from transfer_bo.cli.common import (
    StudyArgument,
    app,
    command_line,
    interruptible,
    output_console,
    reports_errors,
)
from transfer_bo.cli.opened import as_stored

__all__: list[str] = []


def _ends(check: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Ends of the correlation's interval; none where there were too few settings."""
    low, high = check.get("interval", (None, None))
    return low, high


@app.command("subset-check")
@reports_errors
def subset_check(
    study: StudyArgument,
    settings: Annotated[int, typer.Option(help="Random settings whose order is compared.")] = 8,
) -> None:
    """Check that data subsets rank settings as all data does.

    Trains settings at the first rung on each fraction of [data] subset. Exit code 1 if an order is not kept.
    """
    from transfer_bo.study_file import load_study_file

    study_file = as_stored(load_study_file(study))
    from transfer_bo.display.tables import make_table
    from transfer_bo.display.text import interval_text, number_text
    from transfer_bo.runners.subset_check import check_subsets
    from transfer_bo.runners.task import StudyTask

    if study_file.data.subset is None:
        raise study_file.error("data.subset", "there is none to check; add it, or train on all data.")
    with interruptible(command_line("subset-check", study)):
        found = check_subsets(StudyTask(study_file), settings, lambda line: typer.echo(line, err=True))

    rows = [
        [
            number_text(check["fraction"]),
            f"{check['cost']:.2f}",
            number_text(check.get("spearman"), 2),
            interval_text(*_ends(check), digits=2),
            check["verdict"],
        ]
        for check in found
    ]
    head = ["fraction", "cost of a run", "rank correlation", "90% interval", "order of settings"]
    method = study_file.data.subset.method
    output_console().print(make_table(head, rows, title=f"Subsets ({method}) against all data"))
    if any(check["verdict"] == "not kept" for check in found):
        raise typer.Exit(1)
