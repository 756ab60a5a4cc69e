"""The command `coord-check`."""

from __future__ import annotations

import typer

from transfer_bo.cli.common import StudyArgument, app, output_console, reports_errors
from transfer_bo.cli.opened import as_stored

__all__: list[str] = []

MIN_DEPTH = 4
"""Blocks of the smallest model: with one, nothing shows of how changes grow with depth."""
FACTORS = (1, 2, 4)
"""Multiples of the base's width and depth that are compared."""


@app.command("coord-check")
@reports_errors
def coord_check(study: StudyArgument) -> None:
    """Check that layer updates have the same size at all scales.

    Wider and deeper models are trained a few steps under the study's rule. Exit code 1 if they differ.
    """
    from transfer_bo.study_file import load_study_file

    study_file = as_stored(load_study_file(study))
    from transfer_bo.display.tables import make_table
    from transfer_bo.display.text import octaves_text
    from transfer_bo.parametrization.coordcheck import coordinate_check
    from transfer_bo.runners.task import StudyTask

    task, alpha = StudyTask(study_file), study_file.parametrization.alpha
    base = study_file.base.replace(depth=max(MIN_DEPTH, study_file.base.depth))
    check = coordinate_check(task.build, base, task.rule, alpha, hps=task.space.defaults, factors=FACTORS)
    study_file.out.mkdir(parents=True, exist_ok=True)
    picture = study_file.out / "coord_check.png"
    check.plot().savefig(picture)

    rows = []
    for growth in check.growths:
        interval = f"{octaves_text(growth.low)} to {octaves_text(growth.high)}"
        exponent = octaves_text(growth.exponent)
        rows.append([growth.axis, growth.module, growth.measure, exponent, interval, growth.verdict])
    head = ["axis", "layer", "change", "exponent", "95% interval", "verdict"]
    console = output_console()
    console.print(make_table(head, rows, title=f"Growth of changes with scale under {check.rule}"))
    verdict = "Passed" if check.passed else "Failed"
    console.print(f"{verdict}. Picture: {picture}", soft_wrap=True, markup=False)
    if not check.passed:
        raise typer.Exit(1)
