"""Runs with other learning-rate schedules than the target's."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from source_studies import ASK, DRIFT, best_lr, past_runs
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.cli import app
from transfer_bo.errors import RunTableError
from transfer_bo.records import SCHEDULE_SOURCE
from transfer_bo.run_table.cleaning import read_rows
from transfer_bo.run_table.columns import name_columns
from transfer_bo.run_table.schedules import MOST, read_schedule
from transfer_bo.run_table.suggest import fit_runs

SHIFT = 1.5
"""Octaves by which the optimum of the other schedule lies lower."""


def mixed_runs(per_scale: int = 3) -> pd.DataFrame:
    """Cosine runs, and as many with another schedule: a lower optimum."""
    cosine, wsd = past_runs(per_scale), past_runs(per_scale)
    wsd["lr"] /= 2**SHIFT
    tables = [cosine.assign(lr_schedule="cosine"), wsd.assign(lr_schedule="wsd")]
    return pd.concat(tables, ignore_index=True)


def expected_optimum(table: pd.DataFrame, ask: dict[str, Any], schedule: object) -> float:
    """log2 of the fitted best learning rate at the target."""
    projection = fit_runs(table, **ask, schedule=schedule).projection
    centre, _ = projection.surrogate.optimum_posterior(projection.target).optimum()
    return math.log2(projection.surrogate.coordinates.params(centre, projection.surrogate.best_flags())["lr"])


def test_other_schedules_do_not_move_the_suggestion() -> None:
    """Kept apart, runs with an optimum elsewhere do little harm; mixed, they draw it to themselves."""
    ask = ASK | {"drift_prior": {"lr": {"n_params": (DRIFT, 0.05), "tokens": (0.0, 0.05)}}}
    best = math.log2(best_lr(ASK["target"]["n_params"]))
    apart, mixed = (
        expected_optimum(mixed_runs(), ask, schedule) - best for schedule in (["lr_schedule=cosine"], [])
    )

    assert abs(apart) < 0.2
    assert mixed < apart - 0.2


def test_a_column_with_a_usual_name_is_found_and_said() -> None:
    """The commonest schedule is the target's; the others are sources, named in a note."""
    table = mixed_runs(3).drop(index=0)
    fit = fit_runs(table, ASK["axes"], ASK["hps"], target=ASK["target"])
    notes = {note.code: note for note in fit.rows.notes}
    sources = {run.source for run in fit.rows.runs}

    assert {None, f"{SCHEDULE_SOURCE}cosine"} == sources
    assert "wsd" == notes["schedules_mixed"].details["value"]
    assert {"wsd": len(table) // 2 + 1, "cosine": len(table) // 2} == notes["schedules_mixed"].details["runs"]
    assert len(table) // 2 + 1 == len(fit.rows.table)


def test_a_table_with_one_schedule_is_fitted_as_without_the_column() -> None:
    """The same runs, no note, no source."""
    table = past_runs(2)
    plain = fit_runs(table, ASK["axes"], ASK["hps"], target=ASK["target"]).rows
    with_column = fit_runs(
        table.assign(scheduler="cosine"), ASK["axes"], ASK["hps"], target=ASK["target"]
    ).rows

    assert plain.runs == with_column.runs
    assert plain.notes == with_column.notes


def test_rare_schedules_are_left_out_with_a_note() -> None:
    """More than `MOST` of them: those with the fewest runs go."""
    table = past_runs(8)
    names = [f"s{i % (MOST + 3)}" for i in range(len(table))]
    table = table.assign(plan=names)
    columns = name_columns(table, ASK["axes"], ASK["hps"], "loss")
    columns = type(columns)(**{**vars(columns), "schedule": read_schedule(table, ["plan"], [])})
    rows = read_rows(table, columns, maximize=False, seed=0)
    kept = {run.source for run in rows.runs}

    assert MOST == len(kept)
    assert any(note.code == "schedules_left_out" for note in rows.notes)


@pytest.mark.parametrize("schedule", ["lr_schedule", ["nothing"], ["lr"], ["lr_schedule=linear"]])
def test_a_schedule_that_is_not_there_is_refused(schedule: object) -> None:
    """A string instead of a list, a column that does not exist or is an HP, a value without a run."""
    with pytest.raises(RunTableError):
        tb.suggest_from_runs(mixed_runs(2), **ASK, schedule=schedule)


def test_the_command_takes_the_targets_schedule(tmp_path: Path) -> None:
    """`suggest --runs` hands `--schedule COLUMN=VALUE` on: a value that no run has is refused."""
    mixed_runs(2).to_csv(tmp_path / "runs.csv", index=False)
    words = ["suggest", "--runs", str(tmp_path / "runs.csv"), "--target", "n_params=1.6e9"]
    words += ["--target", "tokens=1.6e10", "--schedule", "lr_schedule=linear"]
    result = CliRunner().invoke(app, words)

    assert 0 != result.exit_code
    assert "lr_schedule = linear" in result.stderr


def test_real_schedules_are_predicted_better_apart() -> None:
    """A tenth of cooldown wants a rate .8 octaves below what all schedules together want."""
    folder = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "schedule_lr_logs.csv").exists():
        pytest.skip(f"{folder} has no schedule_lr_logs.csv")
    runs = pd.read_csv(folder / "schedule_lr_logs.csv").query("d_model == 768 and n_layers == 12")
    runs = runs[(runs["decay_type"] == "linear") & (runs["schedule"] == "wsd") & (runs["lr"] > 2e-4)]
    short = runs[runs["steps"] < 50000]
    table = short[["steps", "lr", "val_loss", "cooldown_fraction"]]
    held_out = runs[(runs["steps"] == 50000) & (runs["cooldown_fraction"] == 0.1)]
    rates = held_out.nsmallest(3, "val_loss").sort_values("lr")
    coefficients = np.polyfit(np.log2(rates["lr"]), rates["val_loss"], 2)
    best = -coefficients[1] / (2 * coefficients[0])

    ask = {"axes": ["steps"], "hps": {"lr": "log"}, "loss": "val_loss", "target": {"steps": 50000}}
    apart = expected_optimum(table, ask, ["cooldown_fraction=0.1"])
    mixed = expected_optimum(table, ask, [])
    assert abs(apart - best) < abs(mixed - best) - 0.3
