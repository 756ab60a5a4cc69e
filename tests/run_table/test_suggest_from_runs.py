"""From a table of runs to what to set at the target."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from source_studies import ASK, best_lr, loss_at, past_runs

import transfer_bo as tb
from transfer_bo.errors import StudyError
from transfer_bo.run_table import fit_runs
from transfer_bo.run_table.cleaning import MAX_ROWS, read_rows
from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.read import read_table


def quick(runs: Any, **options: Any) -> tb.Suggestion:
    """A suggestion without the test on held-out scales, which takes two more fits."""
    return tb.suggest_from_runs(runs, **options, held_out=False)


def test_the_drifting_optimum_is_found_beyond_the_runs() -> None:
    """At 4x the size and tokens the suggestion costs under 1%, and the intervals hold the truth."""
    suggestion = quick(past_runs(), **ASK)
    low, high = suggestion.interval(0.95)["lr"]
    loss_low, loss_high = suggestion.predicted_loss.interval(0.95)
    best = loss_at(1.6e9, 1.6e10, best_lr(1.6e9), 0.98)

    assert loss_at(1.6e9, 1.6e10, **suggestion.params) / best < 1.01
    assert low < best_lr(1.6e9) < high
    assert loss_low < best < loss_high
    assert ["lr", "beta2"] == list(suggestion.params)


def test_the_old_spelling_of_the_direction_still_works() -> None:
    """The option has the same effect, with a warning."""
    old = "maxi" + "mise"
    table = past_runs(2).assign(loss=lambda rows: 1 / rows["loss"])
    expected = quick(table, **ASK, maximize=True).params

    with pytest.warns(DeprecationWarning, match=old):
        assert expected == quick(table, **ASK, **{old: True}).params


def test_json_is_plain() -> None:
    """`to_json` survives JSON and carries the keys of every suggestion."""
    plain = json.loads(json.dumps(quick(past_runs(2), **ASK).to_json()))

    assert {"params", "intervals", "predicted_loss", "drift"} <= plain.keys()
    assert plain["params"].keys() == plain["intervals"].keys() == plain["drift"].keys() == {"lr", "beta2"}


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_a_file_says_the_same_as_the_table(tmp_path: Path, suffix: str) -> None:
    """A table written to a file and read again has the same runs."""
    table = past_runs(2)
    path = tmp_path / f"runs{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")

    columns = Columns(tuple(ASK["axes"]), ASK["hps"], "loss")
    expected = read_rows(table, columns, maximize=False, seed=0)
    read = read_rows(read_table(str(path)), columns, maximize=False, seed=0)

    assert [run.params for run in expected.runs] == [pytest.approx(run.params) for run in read.runs]
    assert [run.loss for run in expected.runs] == pytest.approx([run.loss for run in read.runs])
    assert expected.scales == read.scales


def test_an_optuna_study_says_the_same_as_its_table(tmp_path: Path) -> None:
    """Axes from user attributes, HPs from parameters; a pruned and a failed trial are understood."""
    table = past_runs(2)
    url = f"sqlite:///{tmp_path / 'old.db'}"
    study = optuna.create_study(storage=url, study_name="old")
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "lr": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
        "beta2": optuna.distributions.FloatDistribution(0.5, 0.9999),
    }
    for row in table.to_dict("records"):
        study.add_trial(
            optuna.create_trial(
                params={"lr": row["lr"], "beta2": row["beta2"]},
                distributions=distributions,
                user_attrs={"n_params": row["n_params"], "tokens": row["tokens"]},
                value=row["loss"],
            )
        )
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))

    expected = quick(table, **ASK).params

    assert expected == pytest.approx(quick(url, **ASK).params, rel=1e-6)
    assert expected == pytest.approx(quick(url, study="old", **ASK).params, rel=1e-6)
    with pytest.raises(StudyError, match="'new'"):
        quick(url, study="new", **ASK)


def test_the_optimum_may_leave_the_values_seen() -> None:
    """Runs that all lie above the target's optimum are extrapolated from, and the reader is warned."""
    table = past_runs(10)
    table = table[table["lr"] > 4 * best_lr(3.2e10)]
    suggestion = quick(table, **ASK | {"target": {"n_params": 3.2e10, "tokens": 4e9}})

    assert suggestion.params["lr"] < table["lr"].min()
    assert any("lr = " in warning and "below" in warning for warning in suggestion.warnings)


def test_room_is_natural() -> None:
    """Outside the values seen a whole number stays at least 1, a beta below 1 and at least 0."""
    table = past_runs(3)
    table["batch"] = 2 ** (np.arange(len(table)) % 3)
    fit = fit_runs(table, **ASK | {"hps": {"lr": "log", "beta2": "one_minus", "batch": "log"}})
    box = {dim.name: (dim.low, dim.high) for dim in fit.projection.surrogate.coordinates.numeric}

    assert 1 <= box["batch"][0]
    assert 0 <= box["beta2"][0] < box["beta2"][1] < 1
    assert box["lr"][0] < table["lr"].min() / 2
    assert table["lr"].max() * 2 <= box["lr"][1] * (1 + 1e-12)


def test_diverged_runs_do_not_wreck_the_fit() -> None:
    """Losses of 7 where 2.5 is normal stand out; they teach stability, not the bowl."""
    table = past_runs(8)
    wild = table.copy()
    worst = wild["lr"] > 2**-6.8
    wild.loc[worst, "loss"] = 7.0
    calm = quick(table[~worst], **ASK)
    suggestion = quick(wild, **ASK)
    by_hand = quick(wild, **ASK, diverged_above=6.0)

    assert worst.sum() > 3
    assert any(f"{worst.sum()} finished rows count as diverged" in w for w in suggestion.warnings)
    assert suggestion.predicted_loss.mean == pytest.approx(calm.predicted_loss.mean, rel=0.02)
    assert suggestion.params == by_hand.params


def test_a_metric_over_decades_has_no_blown_up_rows() -> None:
    """Where large values are normal none is taken for divergence."""
    table = past_runs(8)
    table["loss"] = table["loss"].map(lambda loss: (loss - 1.0) ** 8)
    fit = fit_runs(table, **ASK)

    assert {"finished": len(table)} == fit.rows.counts


def test_a_constant_hp_is_repeated() -> None:
    """An HP with one value can't be projected: it is repeated, without an interval, and a note says so."""
    table = past_runs(3)
    table["weight_decay"] = 0.1
    suggestion = quick(table, **ASK | {"hps": {"lr": "log", "weight_decay": "log"}})

    assert 0.1 == suggestion.params["weight_decay"]
    assert "weight_decay" not in suggestion.interval()
    assert any("weight_decay is 0.1 in all rows" in warning for warning in suggestion.warnings)


def test_copies_count_once_and_repeats_count() -> None:
    """Every row twice is the same table; other losses at the same settings narrow the answer."""
    table = past_runs(3)
    twice = pd.concat([table, table])
    repeats = pd.concat([table.assign(loss=table["loss"] * f) for f in (0.999, 1.0, 1.001)])
    once = quick(table, **ASK)
    doubled = quick(twice, **ASK)

    assert once.params == doubled.params
    assert any("copies" in warning for warning in doubled.warnings)
    assert 3 * len(table) == len(fit_runs(repeats, **ASK).rows.runs)


def test_many_rows_are_thinned_per_scale() -> None:
    """From thousands of rows the same optimum comes out, each scale with its best and a spread of others."""
    table = past_runs(600)
    fit = fit_runs(table, **ASK)
    surrogate = fit.projection.surrogate
    optimum, _ = surrogate.optimum_posterior(fit.projection.target).optimum()
    params = surrogate.coordinates.params(optimum)
    scales = [tuple(run.scale.values()) for run in fit.rows.runs if run.scale]

    assert MAX_ROWS - 12 <= len(fit.rows.runs) <= MAX_ROWS
    assert min(scales.count(scale) for scale in set(scales)) >= MAX_ROWS // 6 - 2
    assert loss_at(1.6e9, 1.6e10, **params) < 1.005 * loss_at(1.6e9, 1.6e10, best_lr(1.6e9), 0.98)


def test_status_words_are_understood() -> None:
    """Failed rows say nothing, whatever their loss; diverged ones teach stability; empty ones are silent."""
    table = past_runs(3)
    table["status"] = "finished"
    table.loc[0, ["status", "loss"]] = ["failed", 0.1]
    table.loc[1, ["status", "loss"]] = ["diverged", 2.0]
    table.loc[2, ["status", "loss"]] = ["oom", np.nan]
    table.loc[3, "loss"] = np.inf
    table.loc[4, "status"] = "pruned"

    assert {"finished": len(table) - 5, "diverged": 2, "pruned": 1} == fit_runs(table, **ASK).rows.counts


def test_an_empty_cell_and_nan_differ_in_a_file(tmp_path: Path) -> None:
    """In a CSV the word nan means that the loss was nan, an empty cell means that nothing is known."""
    table = past_runs(3)
    lines = table.to_csv(index=False).splitlines()
    lines[1] = lines[1].rsplit(",", 1)[0] + ",nan"
    lines[2] = lines[2].rsplit(",", 1)[0] + ",inf"
    lines[3] = lines[3].rsplit(",", 1)[0] + ","
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))

    assert {"finished": len(table) - 3, "diverged": 2} == fit_runs(path, **ASK).rows.counts
