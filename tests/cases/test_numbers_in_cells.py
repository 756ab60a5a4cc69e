"""Numbers are read as people and programs write them; what is none is named, with its row."""

from __future__ import annotations

import decimal
import fractions
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from generated_tables import PLAIN, rows_of, tables, understood
from hypothesis import given, settings
from hypothesis import strategies as st

import transfer_bo as tb
from transfer_bo.errors import RunTableError, ScaleError
from transfer_bo.quantities import SUFFIXES
from transfer_bo.run_table.cells import MAX_CHOICES, read_choices, read_numbers
from transfer_bo.run_table.fit import read_scale

TYPES: list[Any] = [
    *(decimal.Decimal, fractions.Fraction, np.float64, torch.tensor, np.array, repr, str),
    *(lambda x: f"tensor({x!r}, device='cuda:0')", lambda x: f"np.float64({x!r})", lambda x: f" {x!r} "),
    lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from(TYPES))
def test_types_of_numbers(values: list[float], kind: Any) -> None:
    """Scalars of other libraries, and what a print of them leaves in a log, are the number."""
    bound = 1e38 if kind is torch.tensor else np.inf
    exact = [float(kind(value)) if kind is torch.tensor else value for value in values if abs(value) < bound]

    assert (
        exact
        == read_numbers(pd.Series([kind(value) for value in exact], dtype=object), "loss").values.tolist()
    )


def thousands(value: int, separator: str) -> str:
    """1234567 -> "1,234,567"."""
    return f"{value:,}".replace(",", separator)


@given(
    st.lists(st.integers(10**6, 10**12), min_size=1),
    st.sampled_from([",", ".", " ", "_", "'", "\u202f", "\u00a0"]),
)
def test_separators_of_thousands(values: list[int], separator: str) -> None:
    """Commas, points, spaces, also those that do not break, underscores, apostrophes."""
    read = read_numbers(pd.Series([thousands(value, separator) for value in values]), "tokens")

    assert values == read.values.tolist()
    assert read.whole


@given(st.lists(st.floats(1e-6, 999.0), min_size=1))
def test_decimal_commas(values: list[float]) -> None:
    """In a column with one cell that cannot be read otherwise."""
    cells = ["0,5", *(f"{value:.7f}".replace(".", ",") for value in values)]

    assert [0.5, *(float(f"{value:.7f}") for value in values)] == read_numbers(
        pd.Series(cells), "x"
    ).values.tolist()


@pytest.mark.parametrize(
    ("cells", "decimal", "expected"),
    [
        (["1.234,5", "2.000"], None, [1234.5, 2000.0]),
        (["1,234.5", "2,000"], None, [1234.5, 2000.0]),
        (["1,234", "5,678"], ",", [1.234, 5.678]),
        (["1,234", "5,678"], ".", [1234.0, 5678.0]),
        (["2.845", "3.012"], ",", [2.845, 3.012]),
        (["1,5B", "20G"], None, [1.5e9, 2e10]),
        (["-1,5", "+2,25"], None, [-1.5, 2.25]),
        (["1e-3", "1E+3"], ",", [1e-3, 1e3]),
    ],
)
def test_marks_of_a_column_and_of_its_file(
    cells: list[str], decimal: str | None, expected: list[float]
) -> None:
    """The cells decide where they can, the file where they cannot."""
    assert expected == read_numbers(pd.Series(cells), "x", decimal).values.tolist()


def test_a_comma_that_may_be_either_is_refused() -> None:
    """Both readings are shown."""
    with pytest.raises(RunTableError, match=r"1\.234.*1234"):
        read_numbers(pd.Series(["1,234"]), "x")


@given(st.integers(1, 999), st.sampled_from(sorted(SUFFIXES)), st.booleans(), st.sampled_from(["", " "]))
def test_suffixes(count: int, suffix: str, upper: bool, space: str) -> None:
    """In cells and in targets, as the output prints them."""
    text = f"{count}{space}{suffix.upper() if upper else suffix}"

    assert [count * SUFFIXES[suffix]] == read_numbers(pd.Series([text]), "tokens").values.tolist()
    assert count * SUFFIXES[suffix] == read_scale({"tokens": text}, "target")["tokens"]


@pytest.mark.parametrize("text", ["big", "", "1,000", "nan", "7Bn"])
def test_a_target_that_is_no_number(text: str) -> None:
    """It is named."""
    with pytest.raises(ScaleError, match=f"tokens is '{text}'"):
        read_scale({"tokens": text}, "target")


@pytest.mark.parametrize(
    "cell", ["2.31 nats", "12%", "1 2", "0.9, 0.95", "(0.9, 0.95)", [3.0], {"a": 1}, True, 1j, "x"]
)
def test_what_is_no_number_is_named_with_its_row(cell: Any) -> None:
    """Units, two numbers in a cell, containers, truth values."""
    table = PLAIN.astype(object)
    table.at[3, "loss"] = cell

    with pytest.raises(RunTableError, match=r"'loss'.*row 4") as caught:
        understood(table)

    assert str(cell)[:10] in str(caught.value)


def test_the_row_is_that_of_the_table_though_copies_come_before() -> None:
    """As the user counts them."""
    table = pd.concat([PLAIN, PLAIN], ignore_index=True).astype(object)
    table.loc[8, "loss"] = "x"

    with pytest.raises(RunTableError, match="row 9"):
        understood(table)


@pytest.mark.parametrize(
    ("values", "is_whole"),
    [
        *(([1, 2, 4], True), ([1.0, 2.0, 4.0], False), (["1", "2", "4"], True), (["1.0", "2", "4"], False)),
        *((["1k", "2k", "4k"], True), (["1e3", "2e3", "4e3"], False), ([1, None, 4], False)),
        (pd.array([1, None, 4], dtype="Int64"), True),
    ],
)
def test_whole_numbers_are_those_written_as_such(values: Any, is_whole: bool) -> None:
    """Floats stay floats, though they happen to be whole."""
    table = PLAIN.assign(clip=[*values, *values])

    rows = understood(table, hps={"lr": "log", "clip": "log"})

    assert [is_whole] == [dim.integer for dim in rows.dimensions if dim.name == "clip"]


@settings(max_examples=20, deadline=None)
@given(tables())
def test_texts_and_numbers_are_the_same_table(table: pd.DataFrame) -> None:
    """Whether a table was read as texts or not."""
    assert rows_of(understood(table)) == rows_of(understood(table.map(repr)))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([True, False], [True, False]),
        (["True", "false"], [True, False]),
        ([np.bool_(True), None], [True, None]),
        ([1, 2.5], [1, 2.5]),
        (["4", "8"], [4, 8]),
        (["0.1", "2"], [0.1, 2]),
        (["a", 1, True], ["a", "1", "True"]),
        ([1, True], ["1", "True"]),
        (["none", " relu "], ["none", "relu"]),
        ([torch.float32, "x"], ["torch.float32", "x"]),
        ([np.str_("a"), np.int64(3)], ["a", "3"]),
    ],
)
def test_categories_have_one_type(cells: list[Any], expected: list[Any]) -> None:
    """Truth values, numbers or texts; mixed types are texts."""
    read = read_choices(pd.Series(cells, dtype=object), "act").tolist()

    assert expected == read
    assert [type(value) for value in expected] == [type(value) for value in read]


def test_a_category_that_is_a_truth_value_is_suggested_as_one() -> None:
    """And JSON can hold it."""
    table = PLAIN.assign(qk_norm=[True, False, True] * 2)

    suggestion = tb.suggest_from_runs(
        table, ["width"], {"lr": "log", "qk_norm": "categorical"}, target={"width": "1k"}, held_out=False
    )

    assert isinstance(suggestion.to_json()["params"]["qk_norm"], bool)
    assert {"width": 1000} == dict(suggestion.target)


def test_too_many_categories_are_counted() -> None:
    """They are numbers, or names of runs."""
    with pytest.raises(tb.TransferError, match=str(MAX_CHOICES + 1)):
        read_choices(pd.Series([f"c{i}" for i in range(MAX_CHOICES + 1)]), "act")


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("2^-8", 2**-8), ("10**-3", 1e-3), ("1e\u22123", 1e-3), ("\u22122.5", -2.5), ("1.#INF", np.inf)),
        *(("[2.5]", 2.5), ("array(2.5)", 2.5), ("Array(2.5, dtype=float32)", 2.5), ("tensor([2.5])", 2.5)),
        *((np.array([2.5]), 2.5), (torch.tensor([[2.5]]), 2.5), (10**400, np.inf)),
    ],
)
def test_other_ways_to_write_a_number(cell: Any, value: float) -> None:
    """Powers, the minus of a word processor, arrays with one element, what C calls infinite."""
    read = read_numbers(pd.Series([cell, 1.0], dtype=object), "x")

    assert [value, 1.0] == read.values.tolist()


@pytest.mark.parametrize("cell", ["-nan(ind)", "1.#QNAN", "nan"])
def test_what_was_no_number_is_no_empty_cell(cell: str) -> None:
    """As C and Python print it: the run diverged."""
    read = read_numbers(pd.Series([cell, "1"], dtype=object), "x")

    assert ([False, False], True) == (read.empty.tolist(), bool(np.isnan(read.values[0])))
