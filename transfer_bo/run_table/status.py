"""How the run of each row ended, from its status and its loss.

status finished, or none         loss finite: finished; nan or inf: diverged; empty: tells nothing
status diverged or pruned        diverged or stopped, whatever the loss
any other status (failed, ...)   tells nothing about HPs, and so does one that is not known

The status may be a word, an exit code, or the name of a column of truth values ("diverged"). If several
columns tell one, the run finished if all of them say so.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.notes import Note
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome
from transfer_bo.run_table.cells import Numbers, is_empty, is_numeric
from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.read import STATUS
from transfer_bo.synonyms import EXIT_CODES, STATUSES, short_names

__all__ = ["STATUS_WORDS", "TELLING", "is_status", "outcome_of", "read_outcomes", "status_readers"]

STATUS_WORDS: dict[Outcome, tuple[str, ...]] = {
    Outcome.FINISHED: (
        *("finished", "finish", "complete", "completed", "success", "succeeded", "successful", "done", "ok"),
        *("terminated", "passed", "closed", "published", "true", "inactive"),
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
            "invalid",
            "crash loop back off",
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

CODES: dict[str, Outcome] = {
    "CD": Outcome.FINISHED,
    **dict.fromkeys(("CA", "TO", "PR", "DL", "RV"), Outcome.PREEMPTED),
    **dict.fromkeys(("BF", "NF", "LF"), Outcome.ERROR),
    **dict.fromkeys(("R", "CG", "S"), Outcome.RUNNING),
    **dict.fromkeys(("PD", "CF", "RQ", "RD", "RH"), Outcome.WAITING),
}
"""Slurm's codes for states. F is left out: in PBS it is a finished job."""

FLAGS: dict[str, Outcome] = {
    **dict.fromkeys(("finished", "completed", "complete", "done", "success", "succeeded"), Outcome.FINISHED),
    **dict.fromkeys(("diverged", "exploded", "unstable"), Outcome.DIVERGED),
    **dict.fromkeys(("pruned", "early_stopped", "stopped_early"), Outcome.PRUNED),
    **dict.fromkeys(("oom", "out_of_memory"), Outcome.OUT_OF_MEMORY),
    **dict.fromkeys(("killed", "preempted", "timed_out", "interrupted", "aborted"), Outcome.PREEMPTED),
    **dict.fromkeys(("failed", "crashed"), Outcome.ERROR),
    "running": Outcome.RUNNING,
}
"""Names of columns of truth values that tell how runs ended."""

TRUTH = {
    **dict.fromkeys(("true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}
"""Truth values in such a column, in lower case."""

PRECEDENCE = (
    *(Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.ERROR, Outcome.PREEMPTED, Outcome.RUNNING),
    *(Outcome.WAITING, Outcome.PRUNED, Outcome.FINISHED),
)
"""Which outcome counts if columns tell different ones: the first."""

MAX_WORDS = 5
"""Unknown words that a note lists."""

MAX_STATUSES = 10
"""A column with more different words or numbers tells something else, unless its name says otherwise."""

_FIRST_WORD = re.compile(r"[\w-]*")
_NO_LETTERS = re.compile(r"[^a-z0-9]+")
_SUCCESS = re.compile(r"0+(?:[:.]0+)?")
_SHOWN_ENUM = re.compile(r"<([\w.]+): .*>")
"""A member of an `enum` as Python shows it: `<TrialState.FAIL: 3>`."""

Reader = Callable[[Any], Outcome | None]
"""From a cell to the outcome that it tells, None if it is not known."""


def _compact(text: str) -> str:
    return _NO_LETTERS.sub("", text.lower())


_OUTCOMES = {_compact(word): outcome for outcome, words in STATUS_WORDS.items() for word in words}
_OUTCOMES |= {_compact(outcome): outcome for outcome in Outcome}


def outcome_of(cell: Any) -> Outcome | None:
    """The outcome that a status names, or None for a word that is not known.

    Args:
        cell: of a status column: "COMPLETE", "TrialState.PRUNED", "CANCELLED by 1000", "out-of-memory", ...
    """
    text = _text(cell)
    if text in CODES:
        return CODES[text]
    for word in (text, text.rpartition(".")[2]):
        if (outcome := _OUTCOMES.get(_compact(word))) is not None:
            return outcome

    # "CANCELLED by 1000", "failed: disk full"; but "finished with errors" is no word that is known.
    first = _OUTCOMES.get(_compact(_FIRST_WORD.match(text).group()))  # type: ignore[union-attr]
    return None if first is Outcome.FINISHED else first


def _text(cell: Any) -> str:
    """A status as a text, also where it is a member of an `enum`, or bytes."""
    if isinstance(cell, enum.Enum):
        return cell.name
    text = (cell.decode(errors="replace") if isinstance(cell, bytes) else str(cell)).strip()
    shown = _SHOWN_ENUM.fullmatch(text)
    return text if shown is None else shown.group(1)


def _of_exit_code(cell: Any) -> Outcome | None:
    return Outcome.FINISHED if _SUCCESS.fullmatch(_text(cell)) else Outcome.ERROR


def _of_flag(flag: Outcome, cell: Any) -> Outcome | None:
    true = TRUTH.get(_text(cell).lower())
    if true is None:
        return outcome_of(cell)
    return flag if true else Outcome.ERROR if flag is Outcome.FINISHED else Outcome.FINISHED


def status_readers(table: pd.DataFrame, columns: Columns) -> dict[str, Reader]:
    """The columns that tell how runs ended, and how each one is read.

    Args:
        table: of runs.
        columns: what its columns mean; the status they name, if any.

    Returns:
        The column that the user named; else one called outcome, which says more than a tracker's status; else
        all with a usual name and a cell that is understood; else the first with nothing but known words.
    """
    if columns.status is not None:
        flag = _flag(columns.status) if _holds_truth(table[columns.status]) else None
        return {columns.status: outcome_of if flag is None else functools.partial(_of_flag, flag)}
    if STATUS in table.columns:
        return {STATUS: outcome_of}

    free = [name for name in table.columns if name not in {*columns.axes, *columns.hps, columns.loss}]
    usual = {name: reader for name in free if (reader := _reader(name, table[name])) is not None}
    own = {name: reader for name, reader in usual.items() if "outcome" in short_names(name)}
    return own or usual or dict([(name, outcome_of) for name in free if _is_all_statuses(table[name])][:1])


def is_status(name: str, cells: pd.Series[Any]) -> bool:
    """Whether a column tells how runs ended, by its name and what it holds."""
    return _reader(name, cells) is not None or _is_all_statuses(cells)


def _reader(name: str, cells: pd.Series[Any]) -> Reader | None:
    """How a column with the name of a status is read; None if it is something else."""
    words = _words(cells)
    if any(code in short_names(name) for code in EXIT_CODES):
        return _of_exit_code if words else None
    if _holds_truth(cells) and (flag := _flag(name)) is not None:
        return functools.partial(_of_flag, flag)
    return outcome_of if _is_named_like_a_status(name, cells) and any(map(outcome_of, words)) else None


def _flag(name: str) -> Outcome | None:
    """The outcome that the name of a column of truth values tells: of "is_diverged"."""
    names = [short.removeprefix("is_").removeprefix("has_") for short in short_names(name)]
    return next((FLAGS[short] for short in names if short in FLAGS), None)


def _holds_truth(cells: pd.Series[Any]) -> bool:
    words = _words(cells)
    return bool(words) and all(word.lower() in TRUTH for word in words)


def _is_named_like_a_status(name: str, cells: pd.Series[Any]) -> bool:
    """Whether a column has a usual name of a status and holds words."""
    is_enum = any(isinstance(cell, enum.Enum) for cell in cells)
    return bool({*STATUSES} & {*short_names(name)}) and (is_enum or not is_numeric(cells))


def _is_all_statuses(cells: pd.Series[Any]) -> bool:
    """Whether a column holds nothing but several known words for statuses, "finished" among them."""
    if pd.api.types.is_numeric_dtype(cells) or len(words := _words(cells)) > MAX_STATUSES:
        return False
    outcomes = [_OUTCOMES.get(_compact(word)) for word in words]
    telling = {"finished", "complete", "completed", "success", "succeeded", "done", "terminated", "ok"}
    return len(words) > 1 and None not in outcomes and bool(telling & {_compact(word) for word in words})


def _words(cells: pd.Series[Any]) -> list[str]:
    """The different cells of a column that are not empty, as texts."""
    return sorted({_text(cell) for cell in cells.astype(object) if not is_empty(cell)})


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

    readers = status_readers(table, columns)
    if not readers:
        notes += [_ignored_column(name, _words(table[name])) for name in _ignored(table, columns)[:1]]
        return pd.Series(by_loss, index=table.index, dtype=object)

    read = [_read(table[name], name, reader, notes) for name, reader in readers.items()]
    by_status = [min(outcomes, key=PRECEDENCE.index) for outcomes in zip(*read, strict=True)]
    outcomes = [b if a is Outcome.FINISHED else a for a, b in zip(by_status, by_loss, strict=True)]
    return pd.Series(outcomes, index=table.index, dtype=object)


def _read(cells: pd.Series[Any], status: str, reader: Reader, notes: list[Note]) -> list[Outcome]:
    """The outcome that a column tells of each row; a note is appended if words are not known."""
    texts = [None if is_empty(cell) else _text(cell) for cell in cells.astype(object)]
    known = {text: reader(text) for text in texts if text is not None}
    unknown = sorted(text for text, outcome in known.items() if outcome is None)
    if unknown:
        notes.append(_unknown_words(status, unknown, sum(text in unknown for text in texts)))
    return [Outcome.FINISHED if text is None else known[text] or Outcome.ERROR for text in texts]


def _ignored(table: pd.DataFrame, columns: Columns) -> list[str]:
    """Columns with a usual name of a status in which no word is known, or only a few different numbers."""
    free = [name for name in table.columns if name not in {*columns.axes, *columns.hps, columns.loss}]
    named = [name for name in free if {*STATUSES} & {*short_names(name)} and _words(table[name])]
    return [
        name
        for name in named
        if not is_numeric(table[name]) or 1 < table[name].nunique() <= min(MAX_STATUSES, len(table) // 2)
    ]


def _unknown_words(status: str, words: list[str], rows: int) -> Note:
    return Note(
        f"{counted(rows, 'row has', 'rows have')} a status in {status} that is not known "
        f"({_listed(words)}), and so no finished run; "
        f"use one of {', '.join(words[0] for words in STATUS_WORDS.values())}.",
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
