"""The command `diagnose`: how well the HPs of a study, or of a table of runs, transfer over scale."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transfer_bo.cli.common import (
    AxisOption,
    HpOption,
    JsonOption,
    LossOption,
    MaximizeOption,
    OptionalStudyArgument,
    PictureOption,
    RunsOption,
    StorageOption,
    StudyOption,
    app,
    check_picture,
    output_console,
    reports_errors,
    silence_libraries,
)
from transfer_bo.cli.opened import StudySource, find_study_or_runs
from transfer_bo.cli.parsing import parse_hp_kinds
from transfer_bo.errors import StudyError

if TYPE_CHECKING:
    from transfer_bo.run_table.cleaning import RunTable
    from transfer_bo.run_table.fit import FitOptions

__all__: list[str] = []

"""Endings of files that a picture can be written to."""


@app.command()
@reports_errors
def diagnose(
    study_file: OptionalStudyArgument = None,
    storage: StorageOption = None,
    study: StudyOption = None,
    runs: RunsOption = None,
    axis: AxisOption = None,
    hp: HpOption = None,
    loss: LossOption = None,
    along: Annotated[
        str | None, typer.Option(help="The axis that grows; default: that of most levels.", metavar="AXIS")
    ] = None,
    maximize: MaximizeOption = False,
    picture: PictureOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    left_out: Annotated[
        bool, typer.Option("--left-out/--no-left-out", help="Whether to predict runs that are left out.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Tell how well HPs transfer over scale.

    Rates (fast or slow), fit of one law to all sizes, importance of the HPs per scale, and how well runs
    that are left out are predicted: single ones, and the largest scales.
    """
    source = find_study_or_runs(study_file, storage, study, runs, "diagnose --runs runs.csv")
    kinds = parse_hp_kinds(hp or [])
    check_picture(picture)
    silence_libraries()
    from transfer_bo.diagnostics.diagnose import diagnose as diagnose_runs

    if source is None:
        rows, options = _from_table(str(runs), study, axis or [], kinds, loss or "", maximize)
    else:
        rows, options = _from_study(source)
        if source.file is not None:
            picture = picture or source.file.out / "diagnosis.png"
    fit_options = options.pop("fit")
    diagnosis = diagnose_runs(rows.runs, rows.dimensions, axis=along, seed=seed, **options)
    errors = _prediction_errors(rows, fit_options) if left_out else None

    if picture is not None:
        from transfer_bo.display.diagnosis_figures import draw_diagnosis

        picture.parent.mkdir(parents=True, exist_ok=True)
        draw_diagnosis(diagnosis).savefig(picture)
    if as_json:
        typer.echo(json.dumps(_finite(diagnosis.to_json() | {"prediction": errors}), indent=2))
        return

    from transfer_bo.display.diagnosis_text import show_diagnosis
    from transfer_bo.display.prediction_errors import held_out_table, left_out_text

    console = output_console()
    show_diagnosis(diagnosis, console)
    if errors is not None:
        if errors["held_out"]:
            console.print(held_out_table(errors["held_out"]))
        console.print(left_out_text(errors["leave_one_out"]), soft_wrap=True, markup=False)
    if picture is not None:
        console.print(f"Picture: {picture}", soft_wrap=True, markup=False)


def _prediction_errors(rows: RunTable, options: FitOptions) -> dict[str, Any] | None:
    """How well runs that are left out are predicted; None for too few runs."""
    from transfer_bo.run_table.held_out import prediction_errors
    from transfer_bo.surrogate.threads import one_thread

    searched = [run for run in rows.runs if run.purpose == "search"]
    with one_thread():
        return prediction_errors(dataclasses.replace(rows, runs=searched), options)


def _from_study(source: StudySource) -> tuple[RunTable, dict[str, Any]]:
    """Runs and further arguments of `diagnose` from a study; "fit" is how the surrogate is fitted.

    Raises:
        StudyError: If the study has no trials.
    """
    import pandas as pd

    from transfer_bo.records import read_dimensions, read_runs, read_settings
    from transfer_bo.run_table.cleaning import RunTable
    from transfer_bo.run_table.fit import FitOptions

    study = source.open()
    runs = read_runs(study)
    if not runs:
        raise StudyError(f"Study {study.study_name!r} has no trials yet; run some first.")
    settings = read_settings(study)
    distributions = [trial.distributions for trial in study.get_trials(deepcopy=False)]
    maximize = study.direction.name == "MAXIMIZE"
    fit = FitOptions(settings.coordinates, settings.drift_prior, maximize, settings.seed, settings.kinds)
    return (
        RunTable(runs, read_dimensions(distributions, settings.defaults), {}, {}, [], pd.DataFrame()),
        {"cost": settings.cost, "maximize": maximize, "fit": fit},
    )


def _from_table(
    source: str, study: str | None, axes: list[str], kinds: Mapping[str, str], loss: str, maximize: bool
) -> tuple[RunTable, dict[str, Any]]:
    """The same from a table of runs."""
    from transfer_bo.records import Outcome, Run
    from transfer_bo.run_table.cleaning import read_rows
    from transfer_bo.run_table.columns import guess_columns
    from transfer_bo.run_table.fit import FitOptions
    from transfer_bo.run_table.read import read_table
    from transfer_bo.scale import Scale

    table = read_table(source, study, loss or "loss")
    columns = guess_columns(table, axes, kinds, loss)
    rows = read_rows(table, columns, maximize=maximize, seed=0)

    # All rows, not only those that a surrogate is fitted to.
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
    options = FitOptions(maximize=maximize, kinds=columns.kinds)
    return dataclasses.replace(rows, runs=runs), {"maximize": maximize, "fit": options}


def _finite(value: Any) -> Any:
    """The same value with null for nan and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
