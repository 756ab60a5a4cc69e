"""The command `suggest`: what to set at the target, from a study or from a table of runs."""

from __future__ import annotations

import json
import shlex
import warnings
from pathlib import Path
from typing import Annotated, Any

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
from transfer_bo.cli.parsing import parse_drift, parse_hp_kinds, parse_scale
from transfer_bo.errors import ParametrizationError, ScaleError, TransferError
from transfer_bo.quantities import parse_number

__all__: list[str] = []


@app.command()
@reports_errors
def suggest(
    study_file: OptionalStudyArgument = None,
    storage: StorageOption = None,
    study: StudyOption = None,
    runs: RunsOption = None,
    axis: AxisOption = None,
    hp: HpOption = None,
    loss: LossOption = None,
    status: Annotated[
        str | None, typer.Option(help="Column of RUNS that says how a run ended.", metavar="COLUMN")
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of RUNS with the LR schedule.",
            metavar="COLUMN[=VALUE]",
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="One axis of the target, e.g. n_params=7B.", metavar="AXIS=VALUE")
    ] = None,
    coordinates: Annotated[
        str | None, typer.Option(help="Of the HPs in RUNS: raw, or base (default with --model).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Function that builds the model, for settings per tensor.", metavar="FILE.py:NAME"),
    ] = None,
    base: Annotated[
        list[str] | None, typer.Option(help="One axis of the model's base scale.", metavar="AXIS=VALUE")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Parametrization of --model, e.g. complete_d_p or mup+muon.")
    ] = None,
    drift: Annotated[
        list[str] | None,
        typer.Option(help="Drift prior, octaves per doubling.", metavar="HP:AXIS=MEAN,SD"),
    ] = None,
    maximize: MaximizeOption = False,
    diverged_above: Annotated[
        str | None, typer.Option(help="Loss from which a run counts as diverged.", metavar="LOSS")
    ] = None,
    held_out: Annotated[bool, typer.Option(help="Test on the largest scales: two more fits.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    picture: PictureOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what to set at the target, with intervals.

    From a study, or from a table of runs. Options that take COLUMN or AXIS=VALUE may be repeated.
    """
    check_picture(picture)
    source = find_study_or_runs(study_file, storage, study, runs, "suggest --runs runs.csv")
    if source is not None:
        _refuse_options_of_runs(
            {
                "--axis": axis,
                "--hp": hp,
                "--loss": loss,
                "--status": status,
                "--schedule": schedule,
                "--coordinates": coordinates,
                "--model": model,
                "--base": base,
                "--rule": rule,
                "--drift": drift,
                "--diverged-above": diverged_above,
                "--target": target if study_file is not None else None,
            }
        )
        _from_study(source, parse_scale(target or [], "--target"), picture, as_json)
        return

    hps = parse_hp_kinds(hp or [])
    options: dict[str, Any] = {
        "target": parse_scale(target or [], "--target"),
        "coordinates": coordinates,
        "drift_prior": parse_drift(drift or []),
        "maximize": maximize,
        "seed": seed,
        "status": status,
        "schedule": schedule,
    }
    if diverged_above is not None:
        options["diverged_above"] = parse_number(diverged_above, "--diverged-above")
    options |= _model_options(model, base, rule)
    named = (axis or [], hps, loss or "")
    _from_runs(str(runs), study, *named, options, held_out=held_out, picture=picture, as_json=as_json)


def _refuse_options_of_runs(given: dict[str, Any]) -> None:
    flag = next((flag for flag, value in given.items() if value is not None), None)
    if flag is not None:
        raise TransferError(f"{flag} goes with --runs; a study holds this itself.")


def _from_study(source: StudySource, target: dict[str, float], picture: Path | None, as_json: bool) -> None:
    silence_libraries()
    from transfer_bo.projection import suggest
    from transfer_bo.scale import Scale

    scale = source.file.target if source.file is not None else Scale(target) if target else None
    study = source.open()
    suggestion = suggest(study, target=scale)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        suggestion.plot().savefig(picture)
    if as_json:
        typer.echo(json.dumps(suggestion.to_json(), indent=2))
        return

    from transfer_bo.display.suggestion_text import searched_ranges, suggestion_parts

    console = output_console()
    for part in suggestion_parts(suggestion, ranges=searched_ranges(study)):
        console.print(part, soft_wrap=True, markup=False)


def _from_runs(
    runs: str,
    study: str | None,
    axes: list[str],
    hps: dict[str, str],
    loss: str,
    options: dict[str, Any],
    *,
    held_out: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    warnings.simplefilter("ignore")  # Optuna, whose import takes a while, is not needed for most tables
    from transfer_bo.run_table.columns import guess_columns
    from transfer_bo.run_table.read import read_table
    from transfer_bo.run_table.suggest import fit_runs

    table = read_table(runs, study, loss or "loss")
    columns = guess_columns(table, axes, hps, loss)
    if not (axes and hps and loss):
        flags = [word for name in columns.axes for word in ("--axis", name)]
        flags += [word for name, kind in columns.hps.items() for word in ("--hp", f"{name}:{kind}")]
        named = shlex.join([*flags, "--loss", columns.loss])
        typer.echo(f"Columns guessed; to name them yourself: {named}", err=True)
    if not options["target"]:
        raise ScaleError(f"Name the target: {' '.join(f'--target {name}=...' for name in columns.axes)}.")

    # As the user wrote them, kinds included.
    fit = fit_runs(table, axes or columns.axes, hps or columns.hps, columns.loss, **options)
    suggestion = fit.suggest(held_out)
    if picture is not None:
        picture.parent.mkdir(parents=True, exist_ok=True)
        suggestion.plot().savefig(picture)
    if as_json:
        typer.echo(json.dumps(suggestion.to_json(), indent=2))
        return
    from transfer_bo.display.runs_suggestion import show

    show(fit, suggestion, output_console())


def _model_options(model: str | None, base: list[str] | None, rule: str | None) -> dict[str, Any]:
    """The options of `fit_runs` about a model."""
    if model is None:
        for flag, value in {"--base": base, "--rule": rule}.items():
            if value is not None:
                raise ParametrizationError(f"{flag} goes with --model FILE.py:FUNCTION.")
        return {}
    if not base:
        raise ParametrizationError(
            "--model needs the scale its base HPs refer to, e.g. --base width=64 --base depth=4."
        )
    scale = parse_scale(base, "--base")

    from transfer_bo.parametrization.model_file import load_build_model

    try:
        build_model = load_build_model(model)
    except ParametrizationError as error:
        raise ParametrizationError(f"--model {model}: {error}") from None
    options: dict[str, Any] = {"build_model": build_model, "base": scale}
    return options | ({} if rule is None else {"rule": rule})
