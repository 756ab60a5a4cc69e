"""Numbers as people write them: `64`, `1.07e9`, `300k`, `7B`, `20G`, `2T`; `1 row`, `2 rows`."""

from __future__ import annotations

import math

from transfer_bo.errors import TransferError

__all__ = ["LEVEL_SD", "SUFFIXES", "counted", "is_positive", "loss_text", "parse_number"]

LEVEL_SD = 1.645
"""Half a 90% interval in standard deviations."""

SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}
"""Multipliers by suffix, in upper or lower case: `7B` and `7b` are parameters, `20G` and `20g` are tokens."""


def is_positive(value: object) -> bool:
    """Whether a value of any type is a number above 0, of which a ratio or a logarithm can be taken."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def parse_number(text: str, what: str = "The number") -> float:
    """Read a finite number that may end with a suffix.

    Args:
        text: The number, such as `"64"`, `"300_000"`, `"1.07e9"` or `"7B"`; spaces around it are ignored.
        what: What the number is, as the error names it: `"--target width"`.

    Returns:
        The value; a whole number of any suffix is exact.

    Raises:
        TransferError: If the text is no finite number.
    """
    digits = text.strip()
    factor = 1.0
    if digits[-1:].lower() in SUFFIXES and digits[:-1].strip():
        factor = SUFFIXES[digits[-1].lower()]
        digits = digits[:-1]

    try:
        value = float(digits) * factor
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TransferError(f"{what} is {text!r}, which is no number; write e.g. 64, 1.07e9, 300k or 7B.")
    return value


def counted(number: float, one: str, several: str = "") -> str:
    """A number with what it counts: "1 row" and "2 rows", or "1 row has" and "2 rows have".

    Args:
        number: How many.
        one: What stands after 1.
        several: What stands after any other number; by default `one` with an s.
    """
    return f"{number:g} {one}" if number == 1 else f"{number:.12g} {several or one + 's'}"


def loss_text(loss: float) -> str:
    """A loss with four decimals, or four digits where it is small: 1.6686, 0.003366, 3.821e-05."""
    return f"{loss:.4g}" if 0 < abs(loss) < 0.1 else f"{loss:.4f}"
