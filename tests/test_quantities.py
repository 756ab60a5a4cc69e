"""Numbers with suffixes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.errors import TransferError
from transfer_bo.quantities import SUFFIXES, counted, loss_text, parse_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64", 64.0),
        ("-2.5", -2.5),
        ("1.07e9", 1.07e9),
        ("300k", 3e5),
        ("300_000", 3e5),
        ("160m", 1.6e8),
        ("7B", 7e9),
        ("20G", 2e10),
        (" 1.5 T ", 1.5e12),
    ],
)
def test_numbers_as_people_write_them(text: str, expected: float) -> None:
    """Plain, scientific, with underscores or with a suffix."""
    assert expected == parse_number(text)


@pytest.mark.parametrize("text", ["", "B", "k", "1,000", "7Bn", "1kk", "nan", "inf", "1e999", "0x10"])
def test_what_is_no_number_is_named(text: str) -> None:
    """The error says which option it was and what stood there."""
    with pytest.raises(TransferError) as caught:
        parse_number(text, "--target width")

    assert "--target width" in str(caught.value)
    assert repr(text) in str(caught.value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_plain_number_is_read_exactly(value: float) -> None:
    """Without a suffix the result is Python's own."""
    assert value == parse_number(repr(value))


@given(st.integers(0, 999), st.sampled_from(sorted(SUFFIXES)))
def test_suffixes_in_either_case(count: int, suffix: str) -> None:
    """Upper and lower case mean the same, and whole numbers stay exact."""
    assert (
        count * SUFFIXES[suffix]
        == parse_number(f"{count}{suffix}")
        == parse_number(f"{count}{suffix.upper()}")
    )


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (1.0, ("run has", "runs have"), "1 run has"),
        (123456789, ("run has", "runs have"), "123456789 runs have"),
        (0.5, ("run",), "0.5 runs"),
    ],
)
def test_what_is_counted(number: float, words: tuple[str, ...], expected: str) -> None:
    """One is singular, anything else plural."""
    assert expected == counted(number, *words)


@given(st.floats(-1e6, 1e6))
def test_a_loss_keeps_its_digits(loss: float) -> None:
    """However small it is, it reads back to within one unit in the fourth digit, or the fourth decimal."""
    assert float(loss_text(loss)) == pytest.approx(loss, rel=5e-4, abs=0.0)
