"""Settings in dictionaries, as trackers hand them out, spread over columns: "config.lr" of "config"."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from transfer_bo.run_table.cells import is_empty

__all__ = ["flat_record", "flatten"]

_NOT_FINITE = re.compile(r"(?<=: )(nan|-?inf)(?=[,}])")
"""Numbers that Python prints, but does not read."""


def flat_record(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record without nesting: {"config": {"lr": 1}} becomes {"config.lr": 1}.

    Args:
        record: Names and values, which may be mappings, or lists of {"key": ..., "value": ...}.
        prefix: What all names begin with.
    """
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name, nested = f"{prefix}{key}", _as_mapping(value)
        flat |= {name: value} if nested is None else flat_record(nested, f"{name}.")
    return flat


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    """A value that holds others: a mapping, or {"key": ..., "value": ...} each, as MLflow answers."""
    if isinstance(value, Mapping):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, Mapping) and {"key", "value"} <= {*v} for v in value)
    ):
        return {str(pair["key"]): pair["value"] for pair in value}
    return None


def flatten(table: pd.DataFrame) -> pd.DataFrame:
    """Give each entry of cells that hold dictionaries a column of its own: "config" becomes "config.lr", ...

    Args:
        table: Its cells may be dictionaries, or texts of some, as `pandas.DataFrame.to_csv` writes them.

    Returns:
        The table, with its `attrs`.
    """
    read = {name: [_dictionary(cell) for cell in table[name]] for name in _with_dictionaries(table)}
    if not read:
        return table

    columns: dict[Any, Any] = {}
    for name in table.columns:
        if name not in read:
            columns[name] = table[name]
            continue
        records = [flat_record(cell or {}, f"{name}.") for cell in read[name]]
        for key in dict.fromkeys(key for record in records for key in record):
            columns[key] = pd.Series([record.get(key) for record in records], index=table.index, dtype=object)
    flat = pd.DataFrame(columns, index=table.index)
    flat.attrs = dict(table.attrs)
    return flat


def _with_dictionaries(table: pd.DataFrame) -> list[Any]:
    """The columns whose cells are dictionaries, or empty."""
    if not table.columns.is_unique:
        return []
    found = []
    for name in table.columns:
        cells = [cell for cell in table[name] if not is_empty(cell)]
        if cells and all(_dictionary(cell) is not None for cell in cells):
            found.append(name)
    return found


def _dictionary(cell: Any) -> Mapping[str, Any] | None:
    """A cell as a dictionary, if it is one or the text of one."""
    if isinstance(cell, Mapping):
        return cell
    if not isinstance(cell, str) or not cell.strip().startswith("{"):
        return None
    for read, text in ((json.loads, cell), (ast.literal_eval, _NOT_FINITE.sub(r"'\1'", cell))):
        try:
            value = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, Mapping) else None
    return None
