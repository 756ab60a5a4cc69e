"""The command `suggest`: what to set at the target, from a study or from a table of past runs."""

from __future__ import annotations

import json
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
    scale_of,
    spoken,
)
from transfer_bo.errors import TransferError
from transfer_bo.study_file import StudyFile, load_study_file

__all__: list[str] = []


@app.command()
@spoken
def suggest(
    study_file: StudyOrRuns = None,
    runs: RunsOption = None,
    study: StudyOption = None,
    axis: AxisOption = None,
    hp: HpOption = None,
    loss: LossOption = None,
    status: Annotated[str | None, typer.Option(help="Column that says how a run ended.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="AXIS=VALUE, once for each axis.")] = None,
    coordinates: Annotated[
        str | None, typer.Option(help="Of the HPs in --runs: raw (default), or base (default with --model).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="FILE.py:FUNCTION or MODULE:FUNCTION that builds it; say what each tensor gets."),
    ] = None,
    base: Annotated[
        list[str] | None, typer.Option(help="AXIS=VALUE of the model that base HPs refer to, once each.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="Parametrization of --model; complete_d_p.")] = None,
    drift: Annotated[
        list[str] | None, typer.Option(help="Own drift prior, HP:AXIS=MEAN,SD in octaves per doubling.")
    ] = None,
    maximize: MaximiseOption = False,
    diverged_above: Annotated[
        float | None, typer.Option(help="Loss from which a run counts as diverged.")
    ] = None,
    held_out: Annotated[bool, typer.Option(help="Test on the largest scales, which takes two fits.")] = True,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """What to set at the target, with intervals, from the trials of a study or from past runs."""
    if (runs is None) == (study_file is None):
        raise TransferError("Give either a study file or --runs, as in: transfer-bo suggest --runs runs.csv.")
    if study_file is not None:
        given: dict[str, Any] = {
            "--axis": axis,
            "--hp": hp,
            "--loss": loss,
            "--target": target,
            "--study": study,
        }
        given |= {"--status": status, "--drift": drift, "--diverged-above": diverged_above}
        given |= {"--coordinates": coordinates, "--model": model, "--base": base, "--rule": rule}
        for flag, value in given.items():
            if value is not None:
                raise TransferError(f"{flag} goes with --runs; a study file says these things itself.")
        _from_study(load_study_file(study_file), as_json)
        return
    quiet()
    from transfer_bo.run_table.columns import guess_columns
    from transfer_bo.run_table.read import read_table
    from transfer_bo.run_table.suggest import fit_runs

    table = read_table(runs, study, loss or "loss")
    hps = once([kind_of(text) for text in hp or []], "--hp")
    columns = guess_columns(table, axis or [], hps, loss or "")
    if not (axis and hps and loss):
        flags = [f"--axis {name}" for name in columns.axes]
        flags += [f"--hp {name}:{kind}" for name, kind in columns.hps.items()] + [f"--loss {columns.loss}"]
        typer.echo(f"Columns guessed; to say so yourself: {' '.join(flags)}", err=True)
    if not target:
        raise TransferError(f"Say where to: {' '.join(f'--target {name}=...' for name in columns.axes)}.")
    fit = fit_runs(
        table,
        columns.axes,
        columns.hps,
        columns.loss,
        target=scale_of(target, "--target"),
        coordinates=coordinates,
        drift_prior=_drift_prior(drift or []),
        maximize=maximize,
        seed=seed,
        status=status,
        diverged_above=diverged_above,
        **_model(model, base, rule),
    )
    suggestion = fit.suggest(held_out)
    if as_json:
        typer.echo(json.dumps(suggestion.to_json(), indent=2))
        return
    from transfer_bo.display.runs_suggestion import show

    show(fit, suggestion, console())


def _from_study(study_file: StudyFile, as_json: bool) -> None:
    quiet()
    suggestion = _suggestion(study_file)
    if as_json:
        typer.echo(json.dumps(suggestion.to_json(), indent=2))
        return
    from transfer_bo.display.tables import projection_table

    out = console()
    out.print(projection_table(suggestion))
    for warning in suggestion.warnings:
        out.print(f"Note: {warning}", soft_wrap=True, markup=False)


def _suggestion(study_file: StudyFile) -> Any:
    from transfer_bo.projection import suggest
    from transfer_bo.store.open_study import open_study

    return suggest(open_study(study_file), target=study_file.target)


def _model(model: str | None, base: list[str] | None, rule: str | None) -> dict[str, Any]:
    """The options of `fit_runs` that speak of a model."""
    if model is None:
        for flag, value in {"--base": base, "--rule": rule}.items():
            if value is not None:
                raise TransferError(f"{flag} goes with --model FILE.py:FUNCTION.")
        return {}
    if not base:
        raise TransferError(
            "--model needs the scale its base HPs refer to, e.g. --base width=64 --base depth=4."
        )
    from transfer_bo.run_table.tensor_settings import load_build_model

    options: dict[str, Any] = {
        "build_model": load_build_model(model),
        "base": scale_of(base, "--base"),
    }
    return options | ({} if rule is None else {"rule": rule})


def _drift_prior(texts: list[str]) -> dict[str, dict[str, tuple[float, float]]]:
    prior: dict[str, dict[str, tuple[float, float]]] = {}
    for text in texts:
        place, _, numbers = text.partition("=")
        hp, _, axis = place.rpartition(":")
        mean, _, sd = numbers.partition(",")
        try:
            prior.setdefault(hp, {})[axis] = float(mean), float(sd)
        except ValueError:
            raise TransferError(
                f"--drift {text} is no HP:AXIS=MEAN,SD; write e.g. --drift lr:n_params=-0.4,0.2."
            ) from None
    return prior
