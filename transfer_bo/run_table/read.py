"""Where runs come from: a DataFrame, a CSV or Parquet file, or an Optuna study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from transfer_bo.errors import RunTableError

__all__ = ["STATUS", "read_table"]

STATUS = "transfer_bo:outcome"
"""Column in which the outcome of an Optuna trial is kept."""


def read_table(runs: Any, study: str | None = None, loss: str = "loss") -> pd.DataFrame:
    """Read runs as a table, a row per run.

    Args:
        runs: a DataFrame, the path of a CSV (.csv, .csv.gz, .tsv) or Parquet file, an Optuna study or the URL
            of its storage.
        study: name of the Optuna study, if the storage holds several.
        loss: the column that the value of an Optuna trial is put into.

    Raises:
        RunTableError: if there is no such file, or it holds no table or no row.
        StorageError: if there is no such storage or study.
    """
    if study is not None and not (isinstance(runs, str) and "://" in runs):
        raise RunTableError(f"{_named(runs)} is no storage, so it holds no study {study!r}; leave that out.")

    if isinstance(runs, pd.DataFrame):
        table = runs.reset_index(drop=True)
    elif hasattr(runs, "get_trials"):
        from transfer_bo.run_table.optuna_study import study_table  # takes a second to import

        table = study_table(runs, loss, STATUS)
    elif isinstance(runs, str) and "://" in runs:
        from transfer_bo.run_table.optuna_study import read_stored_study

        table = read_stored_study(runs, study, loss, STATUS)
    elif isinstance(runs, str | Path):
        table = _read_file(Path(runs), loss)
    else:
        raise RunTableError(
            f"runs is a {type(runs).__name__}; give a pandas DataFrame, the path of a CSV or Parquet file, "
            "an Optuna study or the URL of its storage."
        )

    if table.empty:
        raise RunTableError(f"{_named(runs)} holds no rows; give at least two finished runs.")
    twice = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
    if twice:
        raise RunTableError(f"{_named(runs)} has more than one column {twice[0]!r}; rename one of them.")
    return table.rename(columns=str)


def _named(runs: Any) -> str:
    if isinstance(runs, pd.DataFrame):
        return "The table of runs"
    if hasattr(runs, "get_trials"):
        return f"Study {runs.study_name!r}"
    return f"The study in {runs}" if "://" in str(runs) else str(runs)


def _read_file(path: Path, loss: str) -> pd.DataFrame:
    if not path.is_file():
        raise RunTableError(
            f"{path} is not a file; give a CSV or Parquet file, or a storage URL such as sqlite:///x.db."
        )
    try:
        if ".parquet" in path.suffixes or ".pq" in path.suffixes:
            return pd.read_parquet(path)
        # An empty cell (nothing is known) and the word nan (the loss was nan) differ.
        return pd.read_csv(
            path,
            sep="\t" if ".tsv" in path.suffixes else _separator(path),
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
            dtype={loss: str},
        )
    except ImportError:
        raise RunTableError(f"Reading {path} needs pyarrow; pip install pyarrow, or give a CSV.") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise RunTableError(
            f"{path} can't be read as a table ({reason}); give a CSV in UTF-8 with a header line, or Parquet."
        ) from None


def _separator(path: Path) -> str:
    """A semicolon or tab if the header has them and no comma, as spreadsheets write in some countries."""
    if path.suffix != ".csv":
        return ","  # compressed: as it should be
    with path.open(encoding="utf-8") as file:
        header = file.readline()
    return next((sep for sep in (",", ";", "\t") if sep in header), ",")
