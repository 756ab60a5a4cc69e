"""Which column of a table is what: an axis of scale, an HP, the loss, the status. Checked, or guessed.

A column is named as in the table, or as NAME=KIND where its name does not tell what it is:
"budget=n_params" is an axis, "my_rate=lr" an HP. The kind decides which prior of the drift is used (see
`synonyms`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from transfer_bo.dimension import TRANSFORMS
from transfer_bo.errors import RunTableError, SearchSpaceError
from transfer_bo.run_table.cells import Numbers, is_numeric, read_numbers
from transfer_bo.run_table.read import REPEATED, column_name
from transfer_bo.synonyms import (
    AXES,
    HELD_OUT_WORDS,
    HPS,
    LOSS_WORDS,
    LOSSES,
    TOO_SHORT_TO_GUESS,
    axis_kind,
    hp_kind,
    plain_name,
    short_names,
)

__all__ = ["Columns", "guess_columns", "name_columns", "numbers", "refuse_other_types"]

MAX_LISTED = 12
"""Columns that an error lists."""

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
        status: the column that tells how a run ended, or None.
        kinds: column -> kind of axis or HP, where the user declared it.
        schedule: columns that tell the learning-rate schedule -> the target's value, None where it is open.
    """

    axes: tuple[str, ...]
    hps: Mapping[str, str]
    loss: str
    status: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    schedule: Mapping[str, str | None] = field(default_factory=dict)

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
            if name not in table.columns:
                raise RunTableError(f"The table has no column {name!r}; {_has(table, name)}")
            if name in table.attrs.get(REPEATED, ()):
                raise RunTableError(
                    f"The table has more than one column {name!r}, with different cells; rename one of them."
                )
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
    if isinstance(axes, str) or not isinstance(axes, Iterable):
        raise RunTableError(f"axes = {axes!r} is no list; give one, e.g. axes=['n_params'].")
    if not isinstance(hps, Mapping):
        raise SearchSpaceError(
            f"hps = {hps!r} is no dictionary; give each HP's kind, e.g. hps={{'lr': 'log'}}."
        )


def name_columns(
    table: pd.DataFrame,
    axes: Iterable[str] | Mapping[str, str],
    hps: Mapping[str, str],
    loss: str,
    status: str | None = None,
) -> Columns:
    """What the columns mean that the user named.

    Args:
        table: of runs.
        axes: names of axes, each as NAME or NAME=KIND; or name -> kind.
        hps: names of HPs, each as NAME or NAME=KIND -> "log", "linear", "one_minus" or "categorical".
        loss: name of the metric.
        status: name of the status, if there is one.

    Raises:
        RunTableError: for a kind of axis that does not exist.
        SearchSpaceError: for a kind of HP that does not exist.
    """
    kinds: dict[str, str] = {}
    named_axes = []
    for label in axes:
        name, kind = _declared(table, label)
        kind = axes[label] if isinstance(axes, Mapping) else kind
        if kind and kind not in AXES:
            raise RunTableError(f"Axis {name!r} is declared as {kind!r}; use one of {', '.join(AXES)}.")
        named_axes.append(name)
        kinds |= {name: kind} if kind else {}

    named_hps = {}
    for label, transform in hps.items():
        name, kind = _declared(table, label)
        if kind and kind not in HPS:
            raise SearchSpaceError(f"HP {name!r} is declared as {kind!r}; use one of {', '.join(HPS)}.")
        named_hps[name] = transform
        kinds |= {name: kind} if kind else {}
    return Columns(
        axes=tuple(named_axes),
        hps=named_hps,
        loss=column_name(loss),
        status=None if status is None else column_name(status),
        kinds=kinds,
    )


def _declared(table: pd.DataFrame, label: object) -> tuple[str, str]:
    """Name and kind in NAME=KIND; no kind if it is not given, or the whole is the name of a column."""
    name = column_name(label)
    if name in table.columns:
        return name, ""
    name, _, kind = name.partition("=")
    return name.strip(), kind.strip()


def numbers(table: pd.DataFrame, name: str) -> Numbers:
    """Read a column of a table as numbers, see `cells.read_numbers`."""
    return read_numbers(table[name], name, table.attrs.get("decimal"))


def guess_columns(
    table: pd.DataFrame,
    axes: Iterable[str] | Mapping[str, str] = (),
    hps: Mapping[str, str] | None = None,
    loss: str = "",
) -> Columns:
    """Guess from their names what columns mean, where the user did not name them.

    Args:
        table: of runs.
        axes: known axes, as for `name_columns`; guessed if empty.
        hps: known HPs, as for `name_columns`; guessed if empty. The HPs of an Optuna study are known; of a
            table one per kind is taken: of `lr` and `lr_grid` the first.
        loss: known loss; guessed if empty.

    Raises:
        RunTableError: if no column looks like a loss, an axis or an HP.
    """
    named = name_columns(table, axes, hps or {}, loss)
    loss = named.loss or _first(table, LOSSES) or _only_loss(table)

    guessed_axes = named.axes or tuple(_guess_axes(table))
    if not guessed_axes:
        _refuse_bad_cells(table, [name for names in AXES.values() for name in names])
        raise RunTableError(f"No column looks like an axis of scale; name one or more: {_has(table)}")

    guessed_hps = named.hps or _guess_hps(table, {loss, *guessed_axes})
    if not guessed_hps:
        _refuse_bad_cells(table, [name for names in HPS.values() for name in names])
        raise RunTableError(f"No column looks like an HP; name one or more: {_has(table)}")
    return Columns(guessed_axes, guessed_hps, loss, kinds=named.kinds)


def _first(table: pd.DataFrame, names: Sequence[str]) -> str | None:
    """The first column of numbers with one of these names, one that varies before others."""
    found = [
        column
        for name in names
        for column in sorted(table.columns, key=lambda column: len(short_names(column)))
        if name in short_names(column) and is_numeric(table[column])
    ]
    varying = [column for column in found if _varies(table[column])]
    return next(iter([*varying, *found]), None)


def _only_loss(table: pd.DataFrame) -> str:
    """The only column of numbers with a word for a loss in its name, or the only one on held-out data.

    Raises:
        RunTableError: if there is none, or several.
    """
    words = {name: {*plain_name(name).split("_")} for name in table.columns if is_numeric(table[name])}
    losses = [name for name in words if words[name] & LOSS_WORDS]
    held_out = [name for name in losses if words[name] & HELD_OUT_WORDS]
    for found in (losses, held_out):
        if len(found) == 1:
            return found[0]
    _refuse_bad_cells(table, LOSSES)
    if losses:
        raise RunTableError(f"Several columns look like a loss ({', '.join(losses[:MAX_LISTED])}); name one.")
    raise RunTableError(f"No column looks like a loss; name it: {_has(table)}")


def _refuse_bad_cells(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Tell why a column with one of these names was not taken.

    Raises:
        RunTableError: naming the first cell that is no number.
    """
    for column in (column for name in names for column in table.columns if name in short_names(column)):
        numbers(table, column)


def _first_of_kind(table: pd.DataFrame, kind: str) -> str | None:
    """The first column of numbers whose name tells a kind of axis in other words than the usual ones."""
    named = (name for name in table.columns if axis_kind(name) == kind)
    return next(
        (n for n in named if not TOO_SHORT_TO_GUESS & {*short_names(n)} and is_numeric(table[n])), None
    )


def _varies(cells: pd.Series[Any]) -> bool:
    return cells.astype(str).nunique() > 1


def _guess_axes(table: pd.DataFrame) -> list[str]:
    """One column for each kind of axis that the table has."""
    found: dict[str, str] = {}
    for kind, names in AXES.items():
        column = _first(table, [name for name in names if name not in TOO_SHORT_TO_GUESS])
        column = column or _first_of_kind(table, kind)
        found |= {} if column is None else {kind: column}
    size = next((kinds for kinds in _ALTERNATIVES if any(kind in found for kind in kinds)), ())
    return [found[kind] for kind in (*size, *_DURATIONS) if kind in found]


def _guess_hps(table: pd.DataFrame, taken: set[str]) -> dict[str, str]:
    """The HPs of an Optuna study; of a table one column for each kind of HP, of batches the one in tokens."""
    known: Mapping[str, str] = table.attrs.get("hps", {})
    if known:
        return {name: kind for name, kind in known.items() if name not in taken and _varies(table[name])}

    candidates = [str(name) for name in table.columns if name not in taken]
    candidates.sort(key=lambda name: hp_kind(name) == "batch" and "token" not in plain_name(name))
    found: dict[str, str] = {}
    for name in candidates:
        kind = hp_kind(name)
        key = name if kind == "beta" else kind
        if kind != "other" and key not in found and is_numeric(table[name]) and _varies(table[name]):
            found[key] = name

    order = {str(name): i for i, name in enumerate(table.columns)}
    return {
        name: "one_minus" if hp_kind(name) == "beta" and "one_minus" not in plain_name(name) else "log"
        for name in sorted(found.values(), key=order.__getitem__)
    }


def _has(table: pd.DataFrame, wanted: str = "") -> str:
    """The first columns of a table, and the one that was probably meant, for an error."""
    more = ", ..." if table.shape[1] > MAX_LISTED else ""
    meant = [name for name in table.columns if set(short_names(wanted)) & set(short_names(name))]
    hint = f"; did you mean {meant[0]!r}?" if meant else "."
    return f"it has {', '.join(table.columns[:MAX_LISTED])}{more}{hint}"
