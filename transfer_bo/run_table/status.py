"""How the run of each row ended, from its status and its loss.

status finished, or no status    loss finite: finished; nan or inf: diverged; empty: tells nothing
status diverged or pruned        diverged or stopped, whatever the loss
any other status (failed, ...)   tells nothing about HPs
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.errors import RunTableError
from transfer_bo.records import Outcome
from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.read import STATUS
from transfer_bo.synonyms import STATUSES

__all__ = ["STATUS_WORDS", "read_outcomes"]

STATUS_WORDS: dict[Outcome, tuple[str, ...]] = {
    Outcome.FINISHED: ("finished", "complete", "completed", "success", "succeeded", "done", "ok"),
    Outcome.DIVERGED: ("diverged", "nan", "inf", "unstable", "exploded", "loss_spike"),
    Outcome.PRUNED: ("pruned", "stopped", "stopped_early", "early_stopped"),
    Outcome.OUT_OF_MEMORY: ("oom", "out_of_memory"),
    Outcome.PREEMPTED: ("preempted", "killed", "cancelled", "canceled", "timeout"),
    Outcome.ERROR: ("error", "fail", "failed", "crashed", "crash", "running", "waiting", "pending", "queued"),
}
"""What a run with each status counts as."""

_OUTCOMES = {word: outcome for outcome, words in STATUS_WORDS.items() for word in words}


def read_outcomes(
    table: pd.DataFrame, columns: Columns, loss: np.ndarray[Any, np.dtype[np.float64]]
) -> pd.Series[Any]:
    """The outcome of each row.

    Args:
        table: of runs, as it was read.
        columns: what its columns mean.
        loss: the metric of each row as a number (rows); nan where there is none.

    Raises:
        RunTableError: for an unknown word in the status column that the user named.
    """
    # A file's loss is read as text, where an empty cell and nan differ; as a number, nan was the loss.
    cells = table[columns.loss]
    is_text = not pd.api.types.is_numeric_dtype(cells)
    is_empty = cells.isna().to_numpy(dtype=bool) if is_text else np.zeros(len(table), dtype=bool)
    by_loss = np.where(
        is_empty, Outcome.ERROR, np.where(np.isfinite(loss), Outcome.FINISHED, Outcome.DIVERGED)
    )

    words = _status_words(table, columns)
    if words is None:
        return pd.Series(by_loss, index=table.index)
    by_status = words.map(lambda word: _OUTCOMES.get(word) or Outcome(word)).to_numpy()
    return pd.Series(np.where(by_status == Outcome.FINISHED, by_loss, by_status), index=table.index)


def _status_words(table: pd.DataFrame, columns: Columns) -> pd.Series[Any] | None:
    """The status of each row in lower case, or None if the table does not tell."""
    status = columns.status or (STATUS if STATUS in table.columns else None)
    if status is not None:
        words = table[status].map(_normalized)
        unknown = words[~words.isin([*_OUTCOMES, *map(str, Outcome)])]
        if len(unknown):
            raise RunTableError(
                f"Status {table[status].loc[unknown.index[0]]!r} in row {unknown.index[0] + 1} is unknown; "
                f"use one of {', '.join(words[0] for words in STATUS_WORDS.values())}."
            )
        return words

    for name in STATUSES:
        if name in table.columns and name not in (*columns.axes, *columns.hps, columns.loss):
            words = table[name].map(_normalized)
            if words.isin(list(_OUTCOMES)).all():
                return words
    return None


def _normalized(cell: Any) -> str:
    return str(cell).strip().lower().replace(" ", "_")
