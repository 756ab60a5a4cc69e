"""Numbers, intervals, durations and scales as text: the one place that decides how they look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

from transfer_bo.scale import Scale

__all__ = [
    "LOSS_DIGITS",
    "MISSING",
    "UNDETERMINED",
    "duration_text",
    "interval_text",
    "number_text",
    "octaves_text",
    "scale_text",
    "share_text",
    "speed_text",
    "varying_axes",
]

LOSS_DIGITS = 5
"""Significant digits of a loss: the runs of a study often differ in the third decimal only."""
MISSING = "–"
"""In the place of a value that there is none of."""
UNDETERMINED = "undetermined"
"""In the place of a value that the runs do not determine."""

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_PREFIXED = (1e4, 1e18)
"""From the first to below the second: smaller numbers are written out, larger ones with an exponent."""
_EXACT_BELOW = 1e6
"""Whole numbers below are never rounded: a batch of 65536 tokens is known by its digits."""


def number_text(value: object, digits: int = 4) -> str:
    """A number as people read it; anything else as it is.

    Large numbers get a prefix (`300k`, `1.07G`), whole numbers below a million are never rounded. None is
    `–`, NaN is `undetermined`.

    Args:
        value: A number of any type, or another cell of a table.
        digits: Significant digits.
    """
    if value is None:
        return MISSING
    if isinstance(value, bool | str) or not isinstance(value, SupportsFloat):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return UNDETERMINED
    if math.isinf(number):
        return "∞" if number > 0 else "-∞"

    if _PREFIXED[0] <= abs(number) < _PREFIXED[1]:
        size, prefix = next(pair for pair in _PREFIXES if abs(number) >= pair[0])
        rounded = f"{number / size:.{digits}g}"
        exact = math.isclose(float(rounded) * size, number, rel_tol=1e-12)
        if exact or abs(number) >= _EXACT_BELOW or not number.is_integer():
            return rounded + prefix
    return f"{number:.0f}" if number.is_integer() and abs(number) < _EXACT_BELOW else f"{number:.{digits}g}"


def interval_text(low: float | None, high: float | None, digits: int = 3) -> str:
    """`0.01 to 0.04`; `–` for no interval."""
    if low is None or high is None:
        return MISSING
    return f"{number_text(low, digits)} to {number_text(high, digits)}"


def octaves_text(value: float) -> str:
    """A distance in octaves (log2), with its sign: `+0.25`."""
    return UNDETERMINED if math.isnan(value) else f"{value:+.2f}"


def share_text(share: float | None) -> str:
    """A share in percent: `12%`, `<1%`."""
    if share is None or math.isnan(share):
        return MISSING
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def duration_text(seconds: float) -> str:
    """A time span with at most two units: `40 s`, `12 min`, `1 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def varying_axes(scales: Sequence[Scale]) -> list[str]:
    """The axes in which some scales differ; all axes if they differ in none."""
    axes = [axis for axis in scales[0] if len({scale.get(axis) for scale in scales}) > 1]
    return axes or list(scales[0])


def scale_text(scale: Scale | None, among: Sequence[Scale] = ()) -> str:
    """A scale as text: `width 32, depth 2, batch 16, tokens 300k`.

    Args:
        scale: The scale; None where a trial holds none.
        among: Other scales; only the axes in which these and the scale differ are named.
    """
    if scale is None:
        return "no scale"
    axes = varying_axes([scale, *among]) if among else list(scale)
    return ", ".join(f"{axis} {number_text(scale[axis])}" for axis in axes)


def speed_text(speed: Mapping[str, float | None] | None) -> str:
    """Tokens per second, and the share of the GPUs' peak where it is known; "" for a run without."""
    if not speed or speed["tokens_per_second"] is None:
        return ""
    utilisation = speed.get("utilisation")
    share = "" if utilisation is None else f" ({utilisation:.0%} of the GPU's peak)"
    return f"{number_text(speed['tokens_per_second'], 3)} tokens/s{share}"
