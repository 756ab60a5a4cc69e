"""Where runs come from: a DataFrame, records, a file, or an Optuna study; all become one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from transfer_bo.attributes import ATTR_PREFIX, OUTCOME_ATTR, RUNG, SCALE_ATTR
from transfer_bo.errors import RunTableError
from transfer_bo.notes import Note
from transfer_bo.run_table.files import read_file, read_records, storage_in
from transfer_bo.run_table.nested import flatten
from transfer_bo.secrets import hide_passwords

__all__ = ["CONSTRAINT_PREFIX", "REPEATED", "STATUS", "column_name", "read_table"]

STATUS = "transfer_bo:outcome"
"""Column in which the outcome of an Optuna trial is kept."""

REPEATED = "repeated"
"""Key in a table's `attrs`: names of columns that it had more than once, with different cells."""

ELSEWHERE = frozenset({"http", "https", "ftp", "s3", "gs", "gcs", "az", "abfs", "hdfs", "hf"})
"""Schemes of addresses that are those of files, not of storages."""

CONSTRAINT_PREFIX = "transfer_bo:constraint:"
"""How the name of a column begins in which a constraint of Optuna trials is kept; its own name follows."""


def read_table(runs: Any, study: str | None = None, loss: str = "loss") -> pd.DataFrame:
    """Read runs as a table, a row per run.

    Args:
        runs: a DataFrame, a list of records, the path of a CSV, JSON or Parquet file (see `files`), an Optuna
            study, a list of its trials, or the address or the file of its storage.
        study: name of the Optuna study, if the storage holds several.
        loss: the column that the value of an Optuna trial is put into.

    Returns:
        The table, its columns named by texts, its rows numbered from 0. Its `attrs` hold "notes", sentences
        on what was done to it, `REPEATED`, and what is said in `files` and `optuna_study`.

    Raises:
        RunTableError: if there is no such file, or it holds no table or no row.
        StorageError: if the storage cannot be opened.
        StudyError: if it holds no such study, or several and none is named.
    """
    address = _address(runs)
    if study is not None and address is None:
        raise RunTableError(f"{_named(runs)} is no storage, so it holds no study {study!r}; leave that out.")

    trials = isinstance(runs, list) and bool(runs) and all(hasattr(run, "distributions") for run in runs)
    if address is not None or trials or hasattr(runs, "get_trials"):
        # These take a second to import.
        from transfer_bo.run_table.optuna_study import study_table, trial_table
        from transfer_bo.store.existing_study import open_existing_study

        if trials:
            table = trial_table(runs, loss, STATUS)
        else:
            opened = runs if address is None else open_existing_study(address, study)
            table = study_table(opened, loss, STATUS)
    elif isinstance(runs, str | Path):
        table = flatten(read_file(_path(runs)))
    else:
        table = flatten(_in_memory(runs))
    table = _with_axes(table)

    table = _with_plain_columns(table, _named(runs))
    if table.empty:
        raise RunTableError(f"{_named(runs)} holds no rows; give at least two finished runs.")
    return table


def column_name(label: Any) -> str:
    """The name of a column: the levels of a label of pandas with points between them.

    Args:
        label: text, number, or a tuple of them, the label of a column in a DataFrame.
    """
    if isinstance(label, tuple):
        levels = [str(level).strip() for level in label]
        return ".".join(level for level in levels if level and not level.startswith("Unnamed:"))
    return str(label).strip()


def _address(runs: Any) -> str | None:
    """The address of the storage that holds the runs, if it is one."""
    if isinstance(runs, str) and "://" in runs:
        runs = runs.strip()
        if runs.startswith("file://"):
            return storage_in(_path(runs))
        if runs.partition("://")[0].lower() in ELSEWHERE:
            raise RunTableError(
                f"{hide_passwords(runs)} is not read over a network; give a file on this machine."
            )
        return str(runs)
    return storage_in(_path(runs)) if isinstance(runs, str | Path) else None


def _with_axes(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of scales in what `study.trials_dataframe()` gives, named as axes where no other column is."""
    own = [name for name in table.columns if str(name).startswith(f"user_attrs_{ATTR_PREFIX}")]
    start = f"user_attrs_{SCALE_ATTR}."
    axes = {name: str(name).removeprefix(start) for name in own if str(name).startswith(start)}
    axes = {name: axis for name, axis in axes.items() if axis not in table.columns}
    if not axes:
        return table

    others = [name for name in own if name not in axes and name != f"user_attrs_{OUTCOME_ATTR}"]
    return table.drop(columns=[*others, f"params_{RUNG}"], errors="ignore").rename(columns=axes)


def _path(runs: str | Path) -> Path:
    """A path, also where it is written as `file:///home/me/runs.csv` or `~/runs.csv`."""
    return Path(str(runs).removeprefix("file://")).expanduser()


def _in_memory(runs: Any) -> pd.DataFrame:
    """A table that is no file."""
    if hasattr(runs, "to_pandas"):  # of polars, pyarrow, ...
        runs = runs.to_pandas()
    if isinstance(runs, pd.DataFrame):
        named = [name for name in runs.index.names if name is not None]
        kept = [name for name in named if name not in runs.columns]
        return runs.reset_index(level=kept).reset_index(drop=True) if kept else runs.reset_index(drop=True)

    table = read_records(runs)
    if table is None:
        raise RunTableError(
            f"runs is a {type(runs).__name__}; give a pandas DataFrame, a list of records, the path of a "
            "CSV, JSON or Parquet file, an Optuna study or the address of its storage."
        )
    return table


def _with_plain_columns(table: pd.DataFrame, named: str) -> pd.DataFrame:
    """Each column once and under a text; repeated ones with different cells are remembered in `attrs`."""
    attrs = dict(table.attrs)
    table = table.set_axis([column_name(label) for label in table.columns], axis=1)
    repeated: list[str] = []
    notes = [*attrs.get("notes", [])]
    for name in sorted(set(table.columns[table.columns.duplicated()])):
        copies = table.loc[:, table.columns == name].astype(str)
        if copies.eq(copies.iloc[:, 0], axis=0).all(axis=None):
            notes.append(
                Note(f"{named} has column {name!r} more than once, with the same cells.", "column_repeated")
            )
        else:
            repeated.append(name)

    table = table.loc[:, ~table.columns.duplicated()]
    table.attrs = attrs | {"notes": notes, REPEATED: repeated}
    return table


def _named(runs: Any) -> str:
    """What the runs are called in an error."""
    if hasattr(runs, "get_trials"):
        return f"Study {runs.study_name!r}"
    if isinstance(runs, str | Path):
        return f"The study in {runs}" if "://" in str(runs) else str(runs)
    return "The table of runs"
