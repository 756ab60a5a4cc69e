"""How the run of each row ended, from its status and its loss.

status finished, or none         loss finite: finished; nan or inf: diverged; empty: tells nothing
status diverged or pruned        diverged or stopped, whatever the loss
any other status (failed, ...)   tells nothing about HPs, and so does one that is not known
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.notes import Note
from transfer_bo.records import Outcome
from transfer_bo.run_table.cells import Numbers, is_empty, is_numeric
from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.read import STATUS
from transfer_bo.synonyms import STATUSES, short_names

__all__ = ["STATUS_WORDS", "read_outcomes", "status_column"]

STATUS_WORDS: dict[Outcome, tuple[str, ...]] = {
    Outcome.FINISHED: (
        *("finished", "finish", "complete", "completed", "success", "succeeded", "successful", "done", "ok"),
        *("terminated", "passed", "closed", "published", "true"),
    ),
    Outcome.DIVERGED: (*("diverged", "diverging", "nan", "inf", "unstable", "exploded", "loss spike"),),
    Outcome.PRUNED: ("pruned", "stopped", "stopping", "stopped early", "early stopped", "early stopping"),
    Outcome.OUT_OF_MEMORY: (
        "oom",
        "out of memory",
        "cuda oom",
        "cuda out of memory",
        "oom killed",
        "out of me",
    ),
    Outcome.PREEMPTED: (
        *("preempted", "preempting", "killed", "cancelled", "canceled", "cancelling", "timeout", "timed out"),
        *("interrupted", "aborted", "abandoned", "deadline", "revoked", "user canceled", "sys canceled"),
        *("cancel requested", "terminating", "evicted", "time limit"),
    ),
    Outcome.ERROR: (
        *("error", "errored", "fail", "failed", "failure", "crashed", "crash", "node fail", "boot fail"),
        *(
            "launch failed",
            "reconfig fail",
            "exit",
            "false",
            "lost",
            "zombie",
            "not responding",
            "infeasible",
        ),
    ),
    Outcome.RUNNING: (
        *("running", "run", "active", "in progress", "completing", "finishing", "resizing", "staging"),
        *("stage out", "signaling", "paused", "suspended", "dispatched", "starting", "finalizing"),
    ),
    Outcome.WAITING: (
        *("waiting", "pending", "pend", "queued", "scheduled", "created", "requested", "submitted"),
        *("runnable", "configuring", "requeued", "requeue hold", "special exit", "not started", "new"),
        *("preparing", "provisioning", "candidate", "staged", "draft", "initializing"),
    ),
}
"""What a run counts as by its status, in the words of Weights & Biases, MLflow, Optuna, Ray Tune, Syne Tune,
SageMaker, Slurm (which cuts words short), LSF, ClearML, Ax, NNI, Vizier, Azure ML and AWS Batch. Case and
separators make no difference."""

TELLING = (Outcome.FINISHED, Outcome.DIVERGED, Outcome.PRUNED)
"""Outcomes that tell something about HPs."""

MAX_WORDS = 5
"""Unknown words that a note lists."""

_FIRST_WORD = re.compile(r"[\w-]*")
_NO_LETTERS = re.compile(r"[^a-z0-9]+")


def _compact(text: str) -> str:
    return _NO_LETTERS.sub("", text.lower())


_OUTCOMES = {_compact(word): outcome for outcome, words in STATUS_WORDS.items() for word in words}
_OUTCOMES |= {_compact(outcome): outcome for outcome in Outcome}


def outcome_of(cell: Any) -> Outcome | None:
    """The outcome that a status names, or None for a word that is not known.

    Args:
        cell: of a status column: "COMPLETE", "TrialState.PRUNED", "CANCELLED by 1000", "out-of-memory", ...
    """
    text = str(cell).strip()
    for word in (text, text.rpartition(".")[2]):
        if (outcome := _OUTCOMES.get(_compact(word))) is not None:
            return outcome

    # "CANCELLED by 1000", "failed: disk full"; but "finished with errors" is no word that is known.
    first = _OUTCOMES.get(_compact(_FIRST_WORD.match(text).group()))  # type: ignore[union-attr]
    return None if first is Outcome.FINISHED else first


def status_column(table: pd.DataFrame, columns: Columns) -> str | None:
    """The column that tells how runs ended.

    Args:
        table: of runs.
        columns: what its columns mean; the status they name, if any.

    Returns:
        The column that the user named, else one with a usual name and at least one known word; None if there
        is none.
    """
    if columns.status is not None:
        return columns.status
    if STATUS in table.columns:
        return STATUS

    candidates = _named_like_a_status(table, columns)
    return next((name for name in candidates if any(map(outcome_of, _words(table[name])))), None)


def _named_like_a_status(table: pd.DataFrame, columns: Columns) -> list[str]:
    """Columns with a usual name of a status that hold words and are nothing else."""
    used = {*columns.axes, *columns.hps, columns.loss}
    names = [name for status in STATUSES for name in table.columns if status in short_names(name)]
    return [name for name in dict.fromkeys(names) if name not in used and not is_numeric(table[name])]


def _words(cells: pd.Series[Any]) -> list[str]:
    """The different cells of a column that are not empty."""
    return sorted({str(cell) for cell in cells.astype(object) if not is_empty(cell)})


def read_outcomes(table: pd.DataFrame, columns: Columns, loss: Numbers, notes: list[Note]) -> pd.Series[Any]:
    """The outcome of each row.

    Args:
        table: of runs, as it was read.
        columns: what its columns mean.
        loss: the metric of each row.
        notes: one is appended if there are words that are not known.
    """
    by_loss = np.where(np.isfinite(loss.values), Outcome.FINISHED, Outcome.DIVERGED)
    by_loss = np.where(loss.empty, Outcome.ERROR, by_loss)

    status = status_column(table, columns)
    if status is None:
        ignored = _named_like_a_status(table, columns)
        if ignored:
            notes.append(_ignored_column(ignored[0], _words(table[ignored[0]])))
        return pd.Series(by_loss, index=table.index, dtype=object)

    cells = table[status].astype(object)
    by_word = {word: outcome_of(word) for word in _words(cells)}
    unknown = [word for word, outcome in by_word.items() if outcome is None]
    if unknown:
        notes.append(_unknown_words(status, unknown, int(cells.map(str).isin(unknown).sum())))

    by_status = np.array(
        [Outcome.FINISHED if is_empty(cell) else by_word[str(cell)] or Outcome.ERROR for cell in cells],
        dtype=object,
    )
    outcomes = np.where(by_status == Outcome.FINISHED, by_loss, by_status)
    return pd.Series(outcomes, index=table.index, dtype=object)


def _unknown_words(status: str, words: list[str], rows: int) -> Note:
    return Note(
        f"{rows} rows have a status in {status} that is not known ({_listed(words)}): they do not count as "
        f"finished; use one of {', '.join(words[0] for words in STATUS_WORDS.values())}.",
        "status_unknown",
        column=status,
        words=words,
        rows=rows,
    )


def _ignored_column(status: str, words: list[str]) -> Note:
    return Note(
        f"{status} holds no word that is known as a status ({_listed(words)}) and was ignored; name it as "
        "the status if it tells how runs ended.",
        "status_ignored",
        column=status,
        words=words,
    )


def _listed(words: list[str]) -> str:
    return ", ".join(map(repr, words[:MAX_WORDS])) + (", ..." if len(words) > MAX_WORDS else "")
