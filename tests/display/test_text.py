"""Numbers, intervals, durations and scales as text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.display.text import (
    MISSING,
    UNDETERMINED,
    duration_text,
    interval_text,
    number_text,
    scale_text,
    share_text,
)
from transfer_bo.quantities import parse_number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (64, "64"),
        (4096.0, "4096"),
        (20_000, "20k"),
        (65_536, "65536"),
        (524_288, "524288"),
        (300_000, "300k"),
        (12_345.6, "12.35k"),
        (2.5e6, "2.5M"),
        (1.07e9, "1.07G"),
        (-3e12, "-3T"),
        (5e20, "5e+20"),
        (0.00390625, "0.003906"),
        (1e-5, "1e-05"),
        (0, "0"),
        (np.float64(2.5), "2.5"),
        (np.int64(128), "128"),
        (math.inf, "∞"),
        (math.nan, UNDETERMINED),
        (None, MISSING),
        (True, "True"),
        ("adam", "adam"),
        ("1e9", "1e9"),
    ],
)
def test_numbers_read_well(value: object, expected: str) -> None:
    """Sizes with a prefix, whole numbers whole, other cells of a table as they are."""
    assert expected == number_text(value)


@given(st.floats(min_value=1e-8, max_value=1e21), st.integers(2, 6))
def test_a_shown_number_is_read_back(value: float, digits: int) -> None:
    """What is shown can be typed again and means the same to the shown digits."""
    assert parse_number(number_text(value, digits)) == pytest.approx(value, rel=10.0 ** (1 - digits))


@given(st.integers(0, 10**6 - 1))
def test_whole_numbers_below_a_million_are_exact(value: int) -> None:
    """A batch size or a width is never rounded."""
    assert value == pytest.approx(parse_number(number_text(value)), rel=1e-12)


def test_intervals() -> None:
    """Two numbers, or that there is none."""
    assert "0.01 to 0.04" == interval_text(0.01, 0.04)
    assert "2 to 2.2346" == interval_text(2.0, 2.23456, 5)
    assert MISSING == interval_text(None, None)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, "0%"), (0.004, "<1%"), (0.12, "12%"), (1.0, "100%"), (None, MISSING)]
)
def test_shares(share: float | None, expected: str) -> None:
    """A small share is not shown as none."""
    assert expected == share_text(share)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_are_short(seconds: float, expected: str) -> None:
    """Two numbers at most."""
    assert expected == duration_text(seconds)


def test_scales_name_what_differs() -> None:
    """Among others only the axes that vary are named; alone all of them."""
    scale = Scale(width=128, depth=2, tokens=2_500_000)

    assert "width 128, depth 2, tokens 2.5M" == scale_text(scale)
    assert "width 128" == scale_text(scale, [scale.replace(width=32)])
    assert "width 128, depth 2, tokens 2.5M" == scale_text(scale, [scale])
    assert "no scale" == scale_text(None)
