"""Learning-rate schedules in a table: runs of one schedule are the target's, those of others are kept apart.

The schedule moves the best learning rate as far as the duration does: in public logs of one model it rises by
an octave from a tenth of cooldown to nearly all of it (`studies/priors`). So runs of another schedule have a
level of their own and an optimum that may lie elsewhere, as runs of a source study have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from transfer_bo.errors import RunTableError
from transfer_bo.notes import Note
from transfer_bo.quantities import counted
from transfer_bo.records import SCHEDULE_SOURCE, Outcome
from transfer_bo.run_table.cells import EMPTY_CHOICES, is_empty
from transfer_bo.run_table.read import column_name
from transfer_bo.synonyms import SCHEDULES, short_names

__all__ = ["SCHEDULE", "Label", "keep_apart", "label_schedules", "read_schedule"]

SCHEDULE = "transfer_bo:schedule"
"""Column in which the schedule of each row is kept."""

MOST = 12
"""Schedules that are fitted, each with a level and a displacement of its own."""

Label = tuple[str, ...]
"""A schedule: the cells of the columns that tell it."""

EMPTY_CELL = "-"
"""How an empty cell is written: cosine has no fraction of cooldown."""


def read_schedule(
    table: pd.DataFrame, schedule: Sequence[str] | Mapping[str, Any] | None, taken: Sequence[str]
) -> dict[str, str | None]:
    """The columns that tell the schedule, each with its value at the target; None where that is open.

    Args:
        table: of runs.
        schedule: as the user gave it: columns, each as COLUMN or COLUMN=VALUE; or column -> value. None:
            every column with a usual name that holds at most `MOST` different values.
        taken: columns that are something else.

    Raises:
        RunTableError: for columns that are one string, or a column that the table does not have.
    """
    if schedule is None:
        usual = [name for name in table.columns if set(SCHEDULES) & set(short_names(name))]
        return {
            name: None
            for name in usual
            if name not in taken and 1 < table[name].astype(str).nunique() <= MOST
        }
    if isinstance(schedule, str):
        raise RunTableError(f"schedule = {schedule!r} is no list; give one, e.g. schedule=['lr_schedule'].")
    if isinstance(schedule, Mapping):
        found = {
            column_name(name): None if value is None else _text(value) for name, value in schedule.items()
        }
    else:
        found = dict(_parse(table, label) for label in schedule)

    for name in found:
        if name not in table.columns:
            raise RunTableError(f"The table has no column {name!r}; name one that tells the schedule.")
        if name in taken:
            raise RunTableError(f"Column {name!r} tells the schedule and something else; name it once.")
    return found


def _parse(table: pd.DataFrame, label: str) -> tuple[str, str | None]:
    """Column and value in COLUMN or COLUMN=VALUE."""
    name = column_name(label)
    if name in table.columns or "=" not in name:
        return name, None
    name, _, value = name.partition("=")
    return name.strip(), _text(value.strip())


def label_schedules(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series[Any]:
    """The schedule of each row: the cells of these columns as texts (rows)."""
    texts = [table[name].map(_text) for name in columns]
    return pd.Series(list(zip(*texts, strict=True)), index=table.index, dtype=object)


def _text(cell: Any) -> str:
    """A cell as a word, or a number in its shortest form."""
    if is_empty(cell, EMPTY_CHOICES):
        return EMPTY_CELL
    try:
        return f"{float(cell):g}"
    except (TypeError, ValueError):
        return str(cell).strip()


def keep_apart(
    clean: pd.DataFrame, schedule: Mapping[str, str | None], notes: list[Note]
) -> tuple[pd.DataFrame, dict[Label, str]]:
    """Choose the target's schedule, and name the source that runs of each other one are.

    Args:
        clean: the rows that count, with `SCHEDULE` and "outcome".
        schedule: column -> its value at the target, None where that is open.
        notes: sentences are appended on what was found.

    Returns:
        The rows without those of schedules beyond `MOST`; schedule -> name of the source, for all but the
        target's.

    Raises:
        RunTableError: if no finished row has the target's values.
    """
    finished = clean[clean["outcome"] == Outcome.FINISHED]
    counts: dict[Label, int] = dict(Counter(finished[SCHEDULE]).most_common())
    if not counts:  # refused later, for want of losses
        return clean, {}

    own = _of_target(counts, schedule)
    kept = [own, *[label for label in counts if label != own][: MOST - 1]]
    dropped = ~clean[SCHEDULE].isin(kept)
    named = {label: ", ".join(label) for label in kept}
    if len(counts) > 1:
        chosen = "as asked" if any(value is not None for value in schedule.values()) else "the commonest"
        found = "; ".join(f"{name} ({counts[label]})" for label, name in named.items())
        notes.append(
            Note(
                f"The runs have several schedules by {', '.join(schedule)}: {found}. The suggestion is for "
                f"{named[own]}, {chosen}; runs of others count as far as their optimum proves to be alike.",
                "schedules_mixed",
                columns=list(schedule),
                value=named[own],
                runs={name: counts[label] for label, name in named.items()},
            )
        )
    if dropped.any():
        notes.append(
            Note(
                f"Left out: {counted(int(dropped.sum()), 'row')} of schedules with few finished runs; "
                f"{MOST} are fitted.",
                "schedules_left_out",
                rows=int(dropped.sum()),
            )
        )
    sources = {label: SCHEDULE_SOURCE + named[label] for label in kept[1:]}
    return clean[~dropped].reset_index(drop=True), sources


def _of_target(counts: Mapping[Label, int], schedule: Mapping[str, str | None]) -> Label:
    """The commonest schedule that has the target's values.

    Raises:
        RunTableError: if there is none.
    """
    wanted = tuple(schedule.values())
    for label in counts:
        if all(value in (None, cell) for value, cell in zip(wanted, label, strict=True)):
            return label
    asked = ", ".join(f"{name} = {value}" for name, value in schedule.items() if value is not None)
    found = "; ".join(", ".join(label) for label in counts)
    raise RunTableError(f"No finished run has {asked}; by {', '.join(schedule)} the runs have {found}.")
