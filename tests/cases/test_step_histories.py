"""A table with a row for each step of a run is recognized, and the last row of each run counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from generated_tables import PLAIN, codes, rows_of, tables, understood
from hypothesis import given, settings
from hypothesis import strategies as st

STEPS = [
    "_step",
    "step",
    "Step",
    "global_step",
    "trainer/global_step",
    "iteration",
    "training_iteration",
    "epoch",
]
RUNS = ["Name", "run", "run_id", "ID", "trial_id", "config/run_name"]


def history(table: pd.DataFrame, step: str, run: str | None, n_steps: int, every: int = 1) -> pd.DataFrame:
    """The runs of a table step by step; the metric is there at each `every`-th step, and at the last."""
    rows = []
    for i in range(n_steps):
        has_loss = (n_steps - 1 - i) % every == 0
        loss = table["loss"] + 2.0**-i * (i < n_steps - 1)
        row = table.assign(**{step: 10 * i}, loss=loss if has_loss else np.nan)
        rows.append(row if run is None else row.assign(**{run: [f"run-{k}" for k in range(len(table))]}))
    return pd.concat(rows, ignore_index=True)


@settings(max_examples=40, deadline=None)
@given(
    tables(),
    st.sampled_from(STEPS),
    st.sampled_from([*RUNS, None]),
    st.integers(3, 6),
    st.integers(1, 3),
    st.randoms(),
)
def test_the_last_step_of_each_run_counts(
    table: pd.DataFrame, step: str, run: str | None, n_steps: int, every: int, random: object
) -> None:
    """In any order of rows, though the metric is missing at some steps, with or without names of runs."""
    rows = history(table, step, run, n_steps, every)
    shuffled = rows.sample(frac=1, random_state=0)

    found = understood(shuffled)

    assert sorted(rows_of(understood(table))) == sorted(rows_of(found))
    assert ["history"] == codes(found)


def test_a_note_names_the_column_and_counts_the_rows() -> None:
    """Of six runs with five steps, 24 rows are no last ones."""
    (note,) = understood(history(PLAIN, "_step", "Name", 5)).notes

    assert {"column": "_step", "rows": 24} == note.details


def test_an_axis_that_grows_with_the_steps() -> None:
    """The tokens seen so far are those of the run at its last step."""
    rows = history(PLAIN, "_step", "run", 4)
    rows["tokens"] = 1e6 * (1 + rows["_step"])

    found = understood(rows, axes=["width", "tokens"])

    assert ["history"] == codes(found)
    assert {31e6} == {scale["tokens"] for scale in found.scales}


@pytest.mark.parametrize("last", ["nan", np.inf])
def test_a_run_that_diverged_at_its_last_step_diverged(last: object) -> None:
    """Its earlier losses do not save it."""
    rows = history(PLAIN, "step", "run", 3).astype(object)
    rows.loc[(rows["step"] == 20) & (rows["run"] == "run-0"), "loss"] = last

    assert {"finished": 5, "diverged": 1} == understood(rows).counts


@settings(max_examples=30, deadline=None)
@given(tables(), st.integers(1, 4))
def test_repeats_are_no_history(table: pd.DataFrame, n: int) -> None:
    """Runs with one step each, the same for all, or seeds that have names of their own."""
    repeats = pd.concat(
        [
            table.assign(loss=table["loss"] + 0.001 * i, run_id=[f"{i}-{k}" for k in range(len(table))])
            for i in range(n)
        ]
    ).assign(step=1000)
    ended_early = repeats.assign(step=range(len(repeats)))

    for rows in (repeats, ended_early, repeats.drop(columns="run_id")):
        assert n * len(table) == len(understood(rows).runs)


def test_two_runs_that_ended_at_different_steps_are_two() -> None:
    """Two rows alone are no history."""
    rows = pd.concat([PLAIN.assign(step=100), PLAIN.assign(step=90, loss=PLAIN["loss"] + 0.01)])

    assert 12 == len(understood(rows).runs)


def test_steps_that_are_an_axis_are_kept() -> None:
    """Who names the steps as an axis wants to see them all."""
    rows = history(PLAIN, "step", "run", 4)
    rows["step"] += 10

    found = understood(rows, axes=["width", "step"])

    assert {10, 20, 30, 40} == {scale["step"] for scale in found.scales}
    assert [] == codes(found)


def test_a_name_that_all_rows_share_tells_no_run() -> None:
    """A project's name does not make one run of all rows."""
    rows = PLAIN.assign(name="my project", step=range(6))

    assert 6 == len(understood(rows).runs)


@pytest.mark.parametrize("step", ["num_steps", "tokens_seen", "checkpoint", "it", "progress", "n_step"])
def test_other_counters_of_steps(step: str) -> None:
    """Where a column names the run of each row."""
    assert rows_of(understood(PLAIN)) == rows_of(understood(history(PLAIN, step, "run", 4)))


@pytest.mark.parametrize("status", [None, "state"])
def test_runs_that_end_early_are_pointed_out(status: str | None) -> None:
    """Unless a column tells how they ended."""
    table = history(PLAIN, "step", "run", 6)
    table = table[(table["run"] != "run-0") | (table["step"] < 30)]
    table = table if status is None else table.assign(state="finished")

    assert ["history", *([] if status else ["history_short"])] == codes(understood(table))


def test_a_learning_rate_that_follows_a_schedule_is_pointed_out() -> None:
    """It makes each row look like a run of its own."""
    table = history(PLAIN, "step", "run", 4)

    rows = understood(table.assign(lr=table["lr"] / (1 + table["step"])))

    assert "history_of_hp" in codes(rows)
