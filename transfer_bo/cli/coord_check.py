"""The command `coord-check`."""

from __future__ import annotations

import typer

from transfer_bo.cli.common import StudyArgument, app, console, quiet, spoken
from transfer_bo.study_file import load_study_file

__all__: list[str] = []


@app.command("coord-check")
@spoken
def coord_check(study: StudyArgument) -> None:
    """Do layers change alike in wider and deeper models under the study's rule? Exit code 1 if not."""
    study_file = load_study_file(study)
    quiet()
    from rich.table import Table

    from transfer_bo.parametrization.coordcheck import coordinate_check
    from transfer_bo.runners.task import StudyTask

    task, rule = StudyTask(study_file), study_file.parametrization
    base = study_file.base.replace(depth=max(4, study_file.base.depth))  # one block shows nothing of depth
    check = coordinate_check(
        task.build, base, rule.rule, rule.alpha, hps=task.space.defaults, factors=(1, 2, 4)
    )
    study_file.out.mkdir(parents=True, exist_ok=True)
    picture = study_file.out / "coord_check.png"
    check.plot().savefig(picture)
    out = console()
    table = Table(
        "axis", "layer", "change", "growth exponent", "95% interval", "verdict", title=f"Rule {check.rule}"
    )
    for g in check.growths:
        table.add_row(
            g.axis, g.module, g.measure, f"{g.exponent:+.2f}", f"{g.low:+.2f} to {g.high:+.2f}", g.verdict
        )
    out.print(table)
    out.print(f"{'Passed' if check.passed else 'Failed'}. Picture: {picture}", soft_wrap=True, markup=False)
    if not check.passed:
        raise typer.Exit(1)
