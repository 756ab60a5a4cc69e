"""What stands in the cells of a column: numbers and categories, as people and programs write them.

An empty cell carries no information, however it is written (`EMPTY`): a missing value of pandas, a null of
Parquet, "NaN" as pandas and JSON write a missing value. Only nan in lower case, as Python prints it, is a
number that was not a number, like inf.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.errors import RunTableError, SearchSpaceError
from transfer_bo.quantities import SUFFIXES

__all__ = ["EMPTY", "MAX_CHOICES", "Numbers", "is_empty", "is_numeric", "read_choices", "read_numbers"]

EMPTY = frozenset(
    [
        *("", "?", ".", "na", "n/a", "n.a.", "#na", "#n/a", "#n/a n/a", "<na>", "nat", "none", "null"),
        *("(null)", "<null>", "\\n", "undefined", "missing", "NaN"),
        *("#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"),
    ]
)
"""What an empty cell may hold, besides dashes; compared in lower case, but for NaN."""

EMPTY_CHOICES = frozenset({"", "#n/a", "<na>", "nat", "nan", "NaN", "null"})
"""The same for categories, where "none" is one."""

MAX_CHOICES = 50
"""Values of a categorical HP."""

TRUTH = {"true": True, "false": False}
"""Words that stand for truth values, in lower case."""

_NAN = frozenset({"nan", "-nan", "+nan", "nan(ind)", "-nan(ind)", "1.#qnan", "1.#ind", "-1.#ind"})
_INF = {"1.#inf": math.inf, "-1.#inf": -math.inf}
_DASHES = re.compile(r"[-–—]+")
_WRAPPED = re.compile(
    r"(?:tensor|[aA]rray|(?:np|numpy)\.\w+|Decimal)\(\s*['\"\[]?([^,'\")\[\]\s]+)['\"\]]?\s*(?:,.*)?\)|\[([^,\[\]\s]+)\]"
)
"""`tensor(2.31, device='cuda:0')`, `np.float64(2.31)`, `[2.31]`: what a print of a scalar leaves in a log."""
_POWER = re.compile(r"(\d+)\s*(?:\^|\*\*)\s*([+-]?\d{1,3})")
"""`2^-8`, `10**-3`."""
_MINUS = str.maketrans("\u2212\u2010\u2011\u2012\u2013", "-----")
"""Dashes that word processors make of a minus."""
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*")
"""A number that may hold separators of thousands, all the same."""
_SPACES = re.compile(r"(?<=\d)[\s'_](?=\d{3}(?!\d))")
"""Separators of thousands that mean nothing else."""
_SUFFIXED = re.compile(rf"(.*\d)\s*([{''.join(SUFFIXES)}])", re.IGNORECASE)


@dataclass(frozen=True)
class Numbers:
    """A column as numbers.

    Attributes:
        values: of each row; nan where the cell is empty or holds nan.
        empty: whether the cell of each row is empty.
        whole: whether all of them are written as whole numbers.
    """

    values: np.ndarray[Any, np.dtype[np.float64]]
    empty: np.ndarray[Any, np.dtype[np.bool_]]
    whole: bool


def is_empty(cell: Any, words: frozenset[str] = EMPTY) -> bool:
    """Whether a cell carries no information.

    Args:
        cell: of any type.
        words: what an empty cell may hold.
    """
    if isinstance(cell, str):
        text = cell.strip()
        return text == "NaN" or text.lower() in words or (words is EMPTY and bool(_DASHES.fullmatch(text)))
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return True
    return isinstance(cell, numbers.Number) and bool(cell != cell)  # nan


def is_numeric(column: pd.Series[Any]) -> bool:
    """Whether every cell of a column is a number or empty, and one is a number."""
    try:
        found = read_numbers(column, "")
    except RunTableError:
        return False
    return not bool(found.empty.all())


def read_numbers(column: pd.Series[Any], name: str, decimal: str | None = None) -> Numbers:
    """Read a column as numbers.

    Numbers may end with a suffix ("300M", "20G"), have separators of thousands or a decimal comma, or be
    scalars of numpy, PyTorch or the decimal module.

    Args:
        column: of a table, its index the numbers of the rows from 0.
        name: of the column, for errors.
        decimal: decimal mark of the file, which decides whether "1,234" is larger than 2.

    Raises:
        RunTableError: for a cell that is no number, naming the first one.
    """
    if pd.api.types.is_complex_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise RunTableError(f"Column {name!r} holds {column.dtype} values; numbers are needed.")
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=float, na_value=np.nan)
        return Numbers(values, np.isnan(values), pd.api.types.is_integer_dtype(column))

    cells = [_plain(cell) for cell in column.astype(object)]
    texts = {cell for cell in cells if isinstance(cell, str)}
    mark = _decimal_mark(texts, name, decimal)
    read = {text: _text_as_number(text, mark) for text in texts}

    values = np.full(len(cells), np.nan)
    empty = np.zeros(len(cells), dtype=bool)
    whole = True
    for i, cell in enumerate(cells):
        value, cell_is_whole = read[cell] if isinstance(cell, str) else _as_number(cell)
        if value is None:
            empty[i] = is_empty(cell)
            if not empty[i]:
                row = int(column.index[i]) + 1
                raise RunTableError(
                    f"Column {name!r} holds {str(cell)[:40]!r} in row {row}, which is no number; correct or "
                    "drop the row."
                )
        else:
            values[i] = value
            whole = whole and cell_is_whole
    return Numbers(values, empty, whole and not bool(empty.all()))


def _as_number(cell: Any) -> tuple[float | None, bool]:
    """A cell that is no text as a number, and whether it is whole; None if it is none."""
    is_number = isinstance(cell, numbers.Number) and not isinstance(cell, bool | complex)
    if not is_number or is_empty(cell):
        return None, False
    try:
        return float(cell), isinstance(cell, numbers.Integral)
    except OverflowError:
        return math.inf, False


def _text_as_number(text: str, mark: str) -> tuple[float | None, bool]:
    """A text as a number, and whether it is written as a whole one; None if it is none."""
    body = text.strip()
    wrapped = _WRAPPED.fullmatch(body)
    if wrapped:
        body = wrapped.group(1) or wrapped.group(2)
    if is_empty(body):
        return None, False
    body = body.translate(_MINUS)
    if body.lower() in _NAN:
        return math.nan, True
    if body.lower() in _INF:
        return _INF[body.lower()], False
    power = _POWER.fullmatch(body)
    if power:
        return float(power.group(1)) ** int(power.group(2)), not power.group(2).startswith("-")

    suffixed = _SUFFIXED.fullmatch(body)
    body, factor = (suffixed.group(1), SUFFIXES[suffixed.group(2).lower()]) if suffixed else (body, 1.0)
    digits = _SPACES.sub("", body)
    groups = _GROUPS.fullmatch(digits)
    if groups and (groups.group(1) != mark or digits.count(mark) > 1):
        digits = digits.replace(groups.group(1), "")
    elif mark == ",":
        digits = digits.replace(".", "").replace(",", ".") if "," in digits else digits
    else:
        digits = digits.replace(",", "")
    try:
        value = float(digits) * factor
    except ValueError:
        return None, False
    return value, value.is_integer() and not set(digits) & set(".eE")


def _decimal_mark(texts: Iterable[str], name: str, decimal: str | None) -> str:
    """Whether the point or the comma comes before the decimals in a column.

    Raises:
        RunTableError: if the cells may be read either way.
    """
    undecided = ""
    for text in sorted(text for text in texts if "," in text):
        body = _SPACES.sub("", text.strip())
        suffixed = _SUFFIXED.fullmatch(body)
        body = suffixed.group(1) if suffixed else body
        if not body.lstrip("+-")[:1].isdigit():
            continue
        if "." in body:
            return "," if body.rfind(",") > body.rfind(".") else "."
        if _GROUPS.fullmatch(body) is None:
            return ","
        if body.count(",") > 1:
            return "."
        undecided = text

    if undecided and decimal is None:
        raise RunTableError(
            f"Column {name!r} holds {undecided!r}, which is {undecided.replace(',', '.')} if the comma comes "
            f"before decimals and {undecided.replace(',', '')} if before thousands; write it without comma."
        )
    return decimal if undecided and decimal is not None else "."


def read_choices(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Read a column as the values of a categorical HP; None where a cell is empty.

    Truth values are truth values, numbers are numbers. Where a column holds several types, all are texts.

    Args:
        column: of a table.
        name: of the column, for errors.

    Raises:
        SearchSpaceError: for containers, or more than `MAX_CHOICES` different values.
    """
    cells = [_plain(cell) for cell in column.astype(object)]
    if not all(isinstance(cell, Hashable) for cell in cells):
        raise SearchSpaceError(
            f"HP {name!r} holds lists or other containers; categories are words or numbers."
        )

    choices = _one_type([None if is_empty(cell, EMPTY_CHOICES) else cell for cell in cells])
    n_choices = len({choice for choice in choices if choice is not None})
    if n_choices > MAX_CHOICES:
        raise SearchSpaceError(
            f"HP {name!r} has {n_choices} different values, too many for categories; "
            "if they are numbers, use the kind log or linear."
        )
    return pd.Series(choices, index=column.index, dtype=object)


def _plain(cell: Any) -> Any:
    """A scalar of numpy or a tensor as a Python value, a text without spaces around it."""
    if hasattr(cell, "item") and math.prod(getattr(cell, "shape", ())) == 1:
        cell = cell.item()
    return cell.strip() if isinstance(cell, str) else cell


def _one_type(cells: list[Any]) -> list[Any]:
    """Categories of one type."""
    known = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, bool) for cell in known):
        return cells
    if all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known):
        return cells

    texts = [None if cell is None else str(cell) for cell in cells]
    if all(text is None or text.lower() in TRUTH for text in texts):
        return [None if text is None else TRUTH[text.lower()] for text in texts]
    if all(isinstance(cell, str) for cell in known):
        numeric = [None if text is None else _python_number(text) for text in texts]
        if all((number is None) == (text is None) for number, text in zip(numeric, texts, strict=True)):
            return numeric
    return texts


def _python_number(text: str) -> int | float | None:
    """A number as Python writes it, or None."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
