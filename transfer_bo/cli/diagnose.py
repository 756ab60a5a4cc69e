"""The command `diagnose`: how well the HPs of a study, or of past runs, transfer over scale."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from transfer_bo.cli.common import (
    AxisOption,
    HpOption,
    JsonOption,
    LossOption,
    MaximiseOption,
    RunsOption,
    StudyOption,
    StudyOrRuns,
    app,
    console,
    kind_of,
    once,
    quiet,
    spoken,
)
from transfer_bo.errors import TransferError
from transfer_bo.study_file import load_study_file

__all__: list[str] = []


@app.command()
@spoken
def diagnose(
    study_file: StudyOrRuns = None,
    runs: RunsOption = None,
    study: StudyOption = None,
    axis: AxisOption = None,
    hp: HpOption = None,
    loss: LossOption = None,
    along: Annotated[
        str | None, typer.Option(help="The axis that grows; default: that of most levels.")
    ] = None,
    maximize: MaximiseOption = False,
    picture: Annotated[
        Path | None, typer.Option(help="Write the picture to this file (.png, .svg, .pdf).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Does transfer work here? Rates (fast or slow), fit of the law, importance of HPs per scale."""
    if (runs is None) == (study_file is None):
        raise TransferError(
            "Give either a study file or --runs, as in: transfer-bo diagnose --runs runs.csv."
        )
    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise TransferError(f"--picture {picture} has no known ending; use .png, .svg or .pdf.")
    quiet()
    from transfer_bo.diagnostics.diagnose import diagnose as tell

    if study_file is not None:
        found, dimensions, settings = _from_study(study_file)
        picture = picture or load_study_file(study_file).out / "diagnosis.png"
    else:
        found, dimensions, settings = _from_table(
            str(runs), study, axis or [], hp or [], loss or "", maximize
        )
    diagnosis = tell(found, dimensions, axis=along, seed=seed, **settings)
    if picture is not None:
        from transfer_bo.display.diagnosis_figures import draw_diagnosis

        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_diagnosis(diagnosis).savefig(picture)
    if as_json:
        typer.echo(json.dumps(_plain(diagnosis.to_json()), indent=2))
        return
    _show(diagnosis)
    if picture is not None:
        console().print(f"Picture: {picture}", soft_wrap=True, markup=False)


def _from_study(path: Path) -> tuple[list[Any], list[Any], dict[str, Any]]:
    from transfer_bo.records import read_dimensions, read_runs, read_settings
    from transfer_bo.store.open_study import open_study

    study_file = load_study_file(path)
    opened = open_study(study_file)
    distributions = [trial.distributions for trial in opened.get_trials(deepcopy=False)]
    runs = read_runs(opened)
    if not runs:
        raise TransferError(f"The study has no trials yet; start it with: transfer-bo run {path}.")
    settings = read_settings(opened)
    maximize = opened.direction.name == "MAXIMIZE"
    dimensions = read_dimensions(distributions, settings.defaults)
    return runs, dimensions, {"cost": settings.cost, "maximize": maximize}


def _from_table(
    source: str, study: str | None, axes: list[str], hps: list[str], loss: str, maximize: bool
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    from transfer_bo.records import Outcome, Run
    from transfer_bo.run_table.cleaning import read_rows
    from transfer_bo.run_table.columns import guess_columns
    from transfer_bo.run_table.read import read_table
    from transfer_bo.scale import Scale

    table = read_table(source, study, loss or "loss")
    kinds = once([kind_of(text) for text in hps], "--hp")
    columns = guess_columns(table, axes, kinds, loss)
    rows = read_rows(table, columns, maximize=maximize, seed=0)
    # All rows, not only those that a surrogate could bear.
    runs = [
        Run(
            number=i,
            params={dim.name: row[dim.name] for dim in rows.dimensions},
            scale=Scale({name: row[name] for name in columns.axes}),
            outcome=Outcome(row["outcome"]),
            loss=float(row["loss"]) if row["outcome"] == Outcome.FINISHED else None,
        )
        for i, row in enumerate(rows.table.to_dict("records"))
    ]
    return runs, rows.dimensions, {"maximize": maximize}


def _show(diagnosis: Any) -> None:
    """Tables and sentences for people."""
    from rich.table import Table

    out = console()
    say: Callable[[str], None] = lambda text: out.print(text, soft_wrap=True, markup=False)  # noqa: E731
    for hp, rates in diagnosis.rates.items():
        metrics = diagnosis.metrics[hp]
        table = Table(diagnosis.axis, f"best {hp}", "90% interval", "best loss", "90% interval")
        for n, at, best in zip(rates.sizes, rates.optimum, rates.best_loss, strict=True):
            spans = (f"{at.low:.4g} to {at.high:.4g}", f"{best.low:.4f} to {best.high:.4f}")
            table.add_row(f"{n:g}", f"{at.value:.4g}", spans[0], f"{best.value:.4f}", spans[1])
        out.print(table)
        say(f"Transfer of {hp}: {rates.verdict}. {' '.join(rates.reasons)}")
        say(
            f"Rates over {diagnosis.axis}: loss gap α = {rates.alpha.text()}, "
            f"optimum β = {rates.beta.text()}, cost of transfer γ = {rates.gamma.text()}."
        )
        say(
            f"One law for all sizes: misses by E = {metrics.fit_error.text('.2%')} of the loss; "
            f"robustness κ = {metrics.kappa.text('+.2f')} (below 0: errors of {hp} matter less with size)."
        )
    if diagnosis.importance is not None:
        _show_importance(diagnosis.importance, out, say)
    for note in diagnosis.notes:
        say(f"Note: {note}")


def _show_importance(importance: Any, out: Any, say: Callable[[str], None]) -> None:
    from rich.table import Table

    for method in importance.shares:
        shares = importance.table(method)
        table = Table(method, *shares.columns, title="Share of each HP in the loss, per scale")
        for hp, row in shares.iterrows():
            table.add_row(str(hp), *(f"{share:.2f}" for share in row))
        out.print(table)
        if method in importance.agreement:
            value, low, high = importance.agreement[method]
            span = "" if math.isnan(low) else f" (90% interval {low:+.2f} to {high:+.2f})"
            say(f"Rank correlation between scales by {method}: {value:+.2f}{span}")
    for sentence in importance.left_out:
        say(f"Note: {sentence}")


def _plain(value: Any) -> Any:
    """JSON knows no nan and no infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_plain(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
