"""One searched HP: its range and its natural coordinate.

Symbols:
    β        decay rate of a moving average, as of Adam's moments
    z        an HP in its natural coordinate, octaves
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transfer_bo.errors import SearchSpaceError

__all__ = ["Dimension"]

LINEAR_OCTAVES = 4.0
"""An HP on a linear scale spans so many "octaves": its range is about as wide as a common log range."""

TRANSFORMS = ("log", "linear", "one_minus", "categorical")
"""The kinds of HPs."""


@dataclass(frozen=True)
class Dimension:
    """One HP: its name, its transform and its range.

    Attributes:
        name: as searched.
        transform: "log" (log2 of the value), "linear", "one_minus" (log2 of 1 - value) or "categorical".
        low: smallest value searched (numeric HPs).
        high: largest value searched.
        default: prior guess of the optimum; the middle of the range in z if None.
        choices: the values of a categorical HP.
        step: values lie at `low` plus multiples of this, if given.
        integer: values are whole numbers.
    """

    name: str
    transform: str
    low: float = math.nan
    high: float = math.nan
    default: float | None = None
    choices: tuple[Any, ...] = ()
    step: float | None = None
    integer: bool = False

    def __post_init__(self) -> None:
        """Check the transform against the range.

        Raises:
            SearchSpaceError: for an unknown transform, or one that a value of the range has no image in.
        """
        if self.transform not in TRANSFORMS:
            raise SearchSpaceError(
                f"HP {self.name!r}: transform {self.transform!r} is unknown; "
                f"use one of {', '.join(TRANSFORMS)}."
            )
        if self.transform == "log" and not self.low > 0:
            raise SearchSpaceError(
                f"HP {self.name!r} has low = {self.low!r} on a log scale; make it positive."
            )
        if self.transform == "one_minus" and not self.high < 1:
            raise SearchSpaceError(
                f"HP {self.name!r} has high = {self.high!r} for log(1 - value); keep it below 1."
            )

    def forward(self, value: float) -> float:
        """Value -> natural coordinate, in octaves; not centred."""
        if self.transform == "log":
            return math.log2(value)
        if self.transform == "one_minus":
            return -math.log2(1.0 - value)
        return LINEAR_OCTAVES * value / max(self.high - self.low, 1e-300)

    def takes(self, value: Any) -> bool:
        """Whether a value that was not drawn from the range has a natural coordinate (0 has none in log2)."""
        if self.transform == "categorical":
            return value in self.choices
        if isinstance(value, str) or not math.isfinite(value):
            return False
        return bool(value > 0 if self.transform == "log" else self.transform != "one_minus" or value < 1)

    def backward(self, z: float) -> float | int:
        """Natural coordinate -> value, clipped to the range and moved onto the grid, if there is one."""
        if self.transform == "log":
            value = math.exp2(z)
        elif self.transform == "one_minus":
            value = 1.0 - math.exp2(-z)
        else:
            value = z * (self.high - self.low) / LINEAR_OCTAVES
        value = min(max(value, self.low), self.high)
        if self.step is not None:
            value = min(self.low + round((value - self.low) / self.step) * self.step, self.high)
        return round(value) if self.integer else value
