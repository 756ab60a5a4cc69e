"""Labels of columns: repeated, in several levels, numbers, with spaces; all are read, or named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from generated_tables import PLAIN, codes, rows_of, tables, understood
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.errors import NoRunsError, RunTableError
from transfer_bo.run_table.read import column_name, read_table

EXPECTED = rows_of(understood(PLAIN))


def test_a_column_twice_with_the_same_cells_is_one() -> None:
    """With a note."""
    rows = understood(pd.concat([PLAIN, PLAIN[["lr"]]], axis=1))

    assert EXPECTED == rows_of(rows)
    assert ["column_repeated"] == codes(rows)


def test_a_column_twice_with_other_cells_is_refused_where_it_is_used() -> None:
    """And only there."""
    other = PLAIN[["lr"]] * 2

    with pytest.raises(RunTableError, match="'lr'"):
        understood(pd.concat([PLAIN, other], axis=1))
    unused = pd.concat([PLAIN.assign(x=1), other.rename(columns={"lr": "x"})], axis=1)
    assert EXPECTED == rows_of(understood(unused))


def test_a_header_that_names_a_column_twice(tmp_path: Any) -> None:
    """In a file it is the same."""
    path = tmp_path / "runs.csv"
    path.write_text("width,lr,lr,loss\n64,1e-3,2e-3,3\n64,4e-3,1e-3,2.8\n")

    with pytest.raises(RunTableError, match="'lr'"):
        understood(path)


def test_labels_in_several_levels() -> None:
    """They are joined with points, and may be named as tuples."""
    table = pd.concat({"config": PLAIN[["width", "lr"]], "metrics": PLAIN[["loss"]]}, axis=1)

    named = understood(table, ["config.width"], {"config.lr": "log"}, "metrics.loss")
    tuples = understood(table, [("config", "width")], {("config", "lr"): "log"}, ("metrics", "loss"))  # type: ignore[arg-type, dict-item]

    assert EXPECTED == rows_of(named) == rows_of(tuples)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (("lr", ""), "lr"),
        (("Unnamed: 0_level_0", "lr"), "lr"),
        (("a", "b", "c"), "a.b.c"),
        ((1, "x"), "1.x"),
        (3, "3"),
        (None, "None"),
        (" lr ", "lr"),
        (np.int64(3), "3"),
    ],
)
def test_names_of_labels(label: Any, expected: str) -> None:
    """Texts without spaces around them."""
    assert expected == column_name(label)


def test_labels_that_are_numbers_or_have_spaces() -> None:
    """Named as they are, or as texts."""
    numbered = PLAIN.set_axis([0, 1, 2], axis=1)
    spaced = PLAIN.set_axis([" width", "lr ", " loss "], axis=1)

    assert EXPECTED == rows_of(understood(numbered, [0], {1: "log"}, 2))  # type: ignore[dict-item, arg-type]
    assert EXPECTED == rows_of(understood(numbered, ["0"], {"1": "log"}, "2"))
    assert EXPECTED == rows_of(understood(spaced))


def test_an_index_with_names_is_read_as_columns() -> None:
    """As a group-by leaves it; one without a name is dropped."""
    grouped = PLAIN.groupby(["width", "lr"])[["loss"]].mean()

    assert EXPECTED == rows_of(understood(grouped))
    assert ["width", "lr", "loss"] == list(read_table(PLAIN.set_index(pd.Index(range(10, 16)))).columns)


@pytest.mark.parametrize("dtype", ["category", "string", "object", "Float64", "float32"])
def test_types_of_columns(dtype: Any) -> None:
    """Categories, texts, objects, nullable numbers."""
    table = PLAIN.assign(
        lr=PLAIN["lr"].astype(str).astype(dtype) if dtype == "category" else PLAIN["lr"].astype(dtype)
    )

    lrs = [run.params["lr"] for run in understood(table).runs]

    assert lrs == pytest.approx(PLAIN["lr"].tolist(), rel=1e-6)


@pytest.mark.parametrize(("loss", "code"), [(2.5, "loss_constant"), (-2.5, "loss_constant")])
def test_a_constant_loss_is_noted(loss: float, code: str) -> None:
    """It tells nothing about HPs."""
    assert code in codes(understood(PLAIN.assign(loss=loss)))


@pytest.mark.parametrize("loss", [np.inf, -np.inf, "nan", None])
def test_a_table_without_a_finite_loss_is_refused(loss: Any) -> None:
    """In one sentence."""
    with pytest.raises(NoRunsError) as caught:
        understood(PLAIN.assign(loss=loss))

    assert 1 == len(str(caught.value).splitlines())


@settings(max_examples=25, deadline=None)
@given(tables(), st.permutations(["width", "lr", "loss"]), st.text(max_size=5), st.randoms())
def test_order_of_columns_and_others_beside_them_do_not_matter(
    table: pd.DataFrame, order: list[str], other: str, random: Any
) -> None:
    """Nor does a column that nobody named, whatever it is called and holds."""
    mixed = table[order].assign(
        **{f"x{other}": [random.choice([1, "a", None, [2], {}]) for _ in range(len(table))]}
    )

    assert rows_of(understood(table)) == rows_of(understood(mixed))
