"""Which column of a table is what: an axis of scale, an HP, the loss, the status. Checked, or guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.dimension import TRANSFORMS
from transfer_bo.errors import RunTableError, SearchSpaceError
from transfer_bo.synonyms import AXES, LOSSES, TOO_SHORT_TO_GUESS, hp_kind

__all__ = ["Columns", "guess_columns", "numbers", "refuse_other_types"]

_ALTERNATIVES = (("n_params",), ("width", "depth"))
"""The number of parameters tells what width and depth tell, so these are axes only where it is absent."""
_DURATIONS = ("tokens", "data_fraction")


@dataclass(frozen=True)
class Columns:
    """What the columns of a table mean.

    Attributes:
        axes: columns that are axes of scale.
        hps: column -> "log", "linear", "one_minus" or "categorical".
        loss: the column of the metric.
        status: the column that says how a run ended, or None.
    """

    axes: tuple[str, ...]
    hps: Mapping[str, str]
    loss: str
    status: str | None = None

    def check(self, table: pd.DataFrame) -> None:
        """Check that the table has these columns, each with one meaning.

        Raises:
            RunTableError: naming the column at fault.
            SearchSpaceError: for no HP, or an HP of an unknown kind.
        """
        if not self.axes:
            raise RunTableError("No axis of scale is named; give at least one, e.g. axes=['n_params'].")
        if not self.hps:
            raise SearchSpaceError("No HP is named; give at least one, e.g. hps={'lr': 'log'}.")
        for name, kind in self.hps.items():
            if kind not in TRANSFORMS:
                raise SearchSpaceError(
                    f"HP {name!r} has the kind {kind!r}; use one of {', '.join(TRANSFORMS)}."
                )

        used = [*self.axes, *self.hps, self.loss, *([self.status] if self.status else [])]
        for name in used:
            if not isinstance(name, str) or name not in table.columns:
                raise RunTableError(f"The table has no column {name!r}; it has {_listed(table)}.")
            if used.count(name) > 1:
                raise RunTableError(
                    f"Column {name!r} is named for two things at once (axes, HPs, loss, status); "
                    "name it once."
                )


def refuse_other_types(axes: Any, hps: Any) -> None:
    """Refuse axes that are one string, and HPs without their kinds.

    Raises:
        RunTableError: for the axes.
        SearchSpaceError: for the HPs.
    """
    if isinstance(axes, str):
        raise RunTableError(f"axes = {axes!r} is a string; give a list, e.g. axes=[{axes!r}].")
    if not isinstance(hps, Mapping):
        raise SearchSpaceError(
            f"hps = {hps!r} is no dictionary; give each HP's kind, e.g. hps={{'lr': 'log'}}."
        )


def numbers(table: pd.DataFrame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Read a column as numbers.

    Args:
        table: of runs.
        name: the column.

    Returns:
        The values (rows); an empty cell or the word nan is nan.

    Raises:
        RunTableError: for cells that are no numbers, naming the first of them.
    """
    column = table[name]
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_complex_dtype(column):
        raise RunTableError(f"Column {name!r} holds {column.dtype} values; numbers are needed.")
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise RunTableError(f"Column {name!r} holds dates; numbers are needed.")

    values = pd.to_numeric(column.map(_stripped), errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    is_nan = column.map(lambda cell: _is_empty(cell) or str(cell).strip().lower() in ("nan", "-nan"))
    wrong = np.flatnonzero(np.isnan(values) & ~is_nan.to_numpy(dtype=bool))
    if len(wrong):
        raise RunTableError(
            f"Column {name!r} holds {str(column.iloc[wrong[0]])[:40]!r} in row {wrong[0] + 1}, which is no "
            "number; correct or drop the row."
        )
    return values


def _stripped(cell: Any) -> Any:
    return cell.strip() if isinstance(cell, str) else (None if isinstance(cell, bool | list | dict) else cell)


def _is_empty(cell: Any) -> bool:
    return cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell)) or cell == ""


def guess_columns(
    table: pd.DataFrame, axes: Sequence[str] = (), hps: Mapping[str, str] | None = None, loss: str = ""
) -> Columns:
    """Guess from their names what columns mean, where the user did not name them.

    Args:
        table: of runs.
        axes: known axes; guessed if empty.
        hps: known HPs; guessed if empty. One HP per kind: of `lr` and `lr_grid` the first is taken.
        loss: known loss; guessed if empty.

    Raises:
        RunTableError: if no column looks like a loss, an axis or an HP.
    """
    lowered = {str(name).lower(): str(name) for name in reversed(list(table.columns))}

    def first(names: Sequence[str]) -> str | None:
        found = [lowered[name] for name in names if name in lowered]
        varying = [name for name in found if table[name].astype(str).nunique() > 1]
        return next(iter([*varying, *found]), None)

    loss = loss or first(LOSSES) or ""
    if not loss:
        raise RunTableError(f"No column looks like a loss; name it. The columns are {_listed(table)}.")

    if not axes:
        axes = _guess_axes(first)
        if not axes:
            raise RunTableError(
                f"No column looks like an axis of scale; name one or more. The columns are {_listed(table)}."
            )

    if not hps:
        hps = _guess_hps(table, {loss, *axes})
        if not hps:
            raise RunTableError(
                f"No column looks like an HP; name one or more. The columns are {_listed(table)}."
            )
    return Columns(tuple(axes), dict(hps), loss)


def _guess_axes(first: Callable[[Sequence[str]], str | None]) -> list[str]:
    """One column for each kind of axis that the table has, as `first` finds it."""
    found = {
        kind: column
        for kind, names in AXES.items()
        if (column := first([name for name in names if name not in TOO_SHORT_TO_GUESS])) is not None
    }
    size = next((kinds for kinds in _ALTERNATIVES if any(kind in found for kind in kinds)), ())
    return [found[kind] for kind in (*size, *_DURATIONS) if kind in found]


def _guess_hps(table: pd.DataFrame, taken: set[str]) -> dict[str, str]:
    """One column for each kind of HP; of two batch columns the one in tokens."""
    candidates = [str(name) for name in table.columns if str(name) not in taken]
    candidates.sort(key=lambda name: hp_kind(name) == "batch" and "token" not in name.lower())
    found: dict[str, str] = {}
    for name in candidates:
        kind = hp_kind(name)
        key = name if kind == "beta" else kind
        if kind == "other" or key in found or not pd.api.types.is_numeric_dtype(table[name]):
            continue
        if table[name].nunique() > 1:
            found[key] = name

    order = {str(name): i for i, name in enumerate(table.columns)}
    return {
        name: "one_minus" if hp_kind(name) == "beta" else "log"
        for name in sorted(found.values(), key=order.__getitem__)
    }


def _listed(table: pd.DataFrame) -> str:
    """The first columns of a table, for an error."""
    return ", ".join(map(str, table.columns[:12])) + (", ..." if table.shape[1] > 12 else "")
