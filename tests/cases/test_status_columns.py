"""A column that tells how runs ended is found under any usual name, and its words are understood."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from generated_tables import PLAIN, codes, rows_of, tables, understood
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.errors import NoRunsError, RunTableError
from transfer_bo.records import Outcome
from transfer_bo.run_table.status import STATUS_WORDS, outcome_of
from transfer_bo.run_table.warm_start import read_source_runs
from transfer_bo.scale import Scale

F, D, P, N = "finished", "diverged", "pruned", None
VOCABULARIES: dict[str, dict[str, str | None]] = {
    "Weights & Biases": {"finished": F, "crashed": N, "failed": N, "killed": N, "running": N, "pending": N},
    "MLflow": {"FINISHED": F, "FAILED": N, "KILLED": N, "RUNNING": N, "SCHEDULED": N},
    "Optuna": {"COMPLETE": F, "PRUNED": P, "FAIL": N, "RUNNING": N, "WAITING": N, "TrialState.COMPLETE": F},
    "Ray Tune": {"TERMINATED": F, "ERROR": N, "RUNNING": N, "PENDING": N, "PAUSED": N},
    "Syne Tune": {"Completed": F, "Stopped": P, "Failed": N, "InProgress": N, "Paused": N, "Stopping": P},
    "Slurm": {
        **{
            "COMPLETED": F,
            "CANCELLED by 1000": N,
            "CANCELLED+": N,
            "FAILED": N,
            "TIMEOUT": N,
            "NODE_FAIL": N,
        },
        **{"OUT_OF_MEMORY": N, "OUT_OF_ME+": N, "PREEMPTED": N, "PENDING": N, "RUNNING": N, "BOOT_FAIL": N},
        **{"DEADLINE": N, "SUSPENDED": N, "REQUEUED": N, "COMPLETING": N},
    },
    "ours": {"finished": F, "diverged": D, "pruned": P, "out_of_memory": N, "preempted": N, "error": N},
}
"""Tracker -> word -> what a run with a finite loss counts as; None if it tells nothing."""

COLUMNS = ["status", "State", "STATE", "run_state", "Run State", "trial-status", "st_status", "tags.status"]


@pytest.mark.parametrize(
    ("word", "expected"), [pair for words in VOCABULARIES.values() for pair in words.items()]
)
@pytest.mark.parametrize("column", COLUMNS)
def test_words_of_trackers(column: str, word: str, expected: str | None) -> None:
    """Each word of each tracker, under each name of the column."""
    rows = understood(PLAIN.assign(**{column: ["finished"] * 5 + [word]}))

    counts = pd.Series(["finished"] * 5 + ([] if expected is None else [expected])).value_counts()
    assert counts.to_dict() == rows.counts


STYLES: list[Callable[[str], str]] = [
    str,
    str.upper,
    str.title,
    lambda word: word.replace(" ", "_"),
    lambda word: word.replace(" ", "-").upper(),
    lambda word: word.title().replace(" ", ""),
    lambda word: f"  {word} ",
    lambda word: f"RunStatus.{word.replace(' ', '_').upper()}",
]


@given(
    st.sampled_from([(outcome, word) for outcome, words in STATUS_WORDS.items() for word in words]),
    st.sampled_from(STYLES),
)
def test_case_and_separators_make_no_difference(
    known: tuple[Outcome, str], style: Callable[[str], str]
) -> None:
    """However a word is written, it means the same."""
    outcome, word = known

    assert outcome is outcome_of(style(word))


@settings(max_examples=30, deadline=None)
@given(tables(), st.data())
def test_rows_that_did_not_finish_do_not_count(table: pd.DataFrame, data: st.DataObject) -> None:
    """A table with failed runs has the runs of the table without them."""
    words = data.draw(
        st.lists(st.sampled_from(["COMPLETED", "FAILED"]), min_size=len(table), max_size=len(table))
    )
    done = np.array(words) == "COMPLETED"
    if table[done]["lr"].nunique() < 2:
        return

    rows = understood(table.assign(State=words))

    assert rows_of(understood(table[done])) == rows_of(rows)


@pytest.mark.parametrize("named", [None, "status"])
def test_an_unknown_word_is_named_and_its_row_does_not_count(named: str | None) -> None:
    """Neither for the answer, nor silently."""
    rows = understood(PLAIN.assign(status=["FINISHED"] * 4 + ["melted", "frozen"]), status=named)
    (note,) = (note for note in rows.notes if note.code == "status_unknown")

    assert {"finished": 4} == rows.counts
    assert {"column": "status", "words": ["frozen", "melted"], "rows": 2} == note.details
    assert "'melted'" in note


def test_only_unknown_words_in_the_named_column_leave_nothing() -> None:
    """The error names the words."""
    with pytest.raises(NoRunsError, match="'melted'"):
        understood(PLAIN.assign(status="melted"), status="status")


@pytest.mark.parametrize("words", [["texas"] * 6, ["ca", "ny"] * 3])
def test_a_column_that_only_has_the_name_is_ignored_with_a_note(words: list[str]) -> None:
    """The state of a run may be one of the United States."""
    rows = understood(PLAIN.assign(state=words))

    assert {"finished": 6} == rows.counts
    assert ["status_ignored"] == codes(rows)


@pytest.mark.parametrize("cell", [None, np.nan, pd.NA, "", "-", "null"])
def test_without_a_status_the_loss_decides(cell: Any) -> None:
    """An empty status is no word, and above all not the word nan."""
    table = PLAIN.assign(status=pd.Series(["finished"] * 4 + [cell] * 2, dtype=object))

    rows = understood(table)

    assert {"finished": 6} == rows.counts
    assert [] == codes(rows)


def test_numbers_are_no_words() -> None:
    """A number under the name of a status is something else; the column of a study of ours comes first."""
    assert {"finished": 6} == understood(PLAIN.assign(state=range(6))).counts


def test_truth_values_are_words_where_the_column_is_named() -> None:
    """Of a column like `converged`."""
    rows = understood(PLAIN.assign(converged=[True] * 5 + [False]), status="converged")

    assert {"finished": 5} == rows.counts


def test_a_status_column_that_is_not_there() -> None:
    """It is named."""
    with pytest.raises(RunTableError, match="'phase'"):
        understood(PLAIN, status="phase")


class Ended(enum.Enum):
    """As a program of one's own may put it."""

    FINISHED = 1
    CRASHED = 2


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        *(
            ("exit_code", 0, 137),
            ("ExitCode", "0:0", "1:0"),
            ("returncode", 0.0, 1.0),
            ("exit status", "0", "9"),
        ),
        *(
            ("crashed", False, True),
            ("config.failed", 0, 1),
            ("done", True, False),
            ("is_finished", "yes", "no"),
        ),
        *(
            ("how it ended", "finished", "crashed"),
            ("result", "ok", "killed"),
            ("conclusion", "success", "failure"),
        ),
        *(("ST", "CD", "NF"), ("sys/state", "Inactive", "Active"), ("phase", "Succeeded", "Evicted")),
        *(("state", b"finished", b"failed"), ("outcome", Ended.FINISHED, Ended.CRASHED)),
        *(("status", "<TrialState.COMPLETE: 1>", "<TrialState.FAIL: 3>"),),
    ],
)
def test_other_ways_to_tell_how_runs_ended(column: str, good: Any, bad: Any) -> None:
    """Exit codes, truth values, codes of Slurm, members of an enum, and known words under an unusual name."""
    rows = understood(PLAIN.assign(**{column: pd.Series([good] * 4 + [bad] * 2, dtype=object)}))

    assert {"finished": 4} == rows.counts


@pytest.mark.parametrize("column", ["diverged", "Diverged", "is_diverged", "metrics/diverged"])
def test_a_column_that_says_which_runs_diverged(column: str) -> None:
    """Those runs have a finite loss, that of their last good step."""
    rows = understood(PLAIN.assign(**{column: [False] * 5 + [True]}))

    assert {"finished": 5, "diverged": 1} == rows.counts


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        *(("early_stopping", [True, False] * 3), ("mode", ["ok"] * 6), ("amp", ["true", "false"] * 3)),
        *(("note", ["finished", "looks fine"] * 3), ("stage", ["new", "active"] * 3)),
    ],
)
def test_other_columns_tell_nothing_of_how_runs_ended(column: str, cells: list[Any]) -> None:
    """Though single words in them are words of trackers."""
    assert {"finished": 6} == understood(PLAIN.assign(**{column: cells})).counts


@pytest.mark.parametrize("columns", [("status", "state"), ("state", "status")])
def test_a_run_finished_if_all_columns_say_so(columns: tuple[str, str]) -> None:
    """The tracker's word and one's own."""
    first, second = columns

    rows = understood(
        PLAIN.assign(
            **{first: ["FINISHED"] * 5 + ["FAILED"], second: ["finished"] * 4 + ["diverged", "finished"]}
        )
    )

    assert {"finished": 4, "diverged": 1} == rows.counts


def test_how_runs_ended_is_no_hp_of_a_source_study() -> None:
    """Under none of the names by which it is recognized."""
    table = PLAIN.assign(
        crashed=[False] * 5 + [True],
        **{"how it ended": ["finished"] * 5 + ["crashed"]},
        exit_code=[0] * 5 + [1],
    )

    source = read_source_runs(table, scales=[Scale(width=64)])

    assert [{"lr"}] * 5 == [{*run.params} for run in source.runs]
