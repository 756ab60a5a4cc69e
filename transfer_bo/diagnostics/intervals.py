"""A number with its interval: what every diagnostic is reported as."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["LEVEL", "Interval"]

LEVEL = 0.9
"""Probability of every interval in the diagnostics: the central 90% of the bootstrap draws."""


class Interval(NamedTuple):
    """A value and the bounds it lies between with probability `LEVEL`."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: npt.NDArray[np.float64]) -> Interval:
        """From draws (B) whose first is the value itself; draws that are nan are dropped."""
        finite = draws[~np.isnan(draws)]
        if len(finite) == 0:
            return cls(np.nan, np.nan, np.nan)
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(draws[0]), float(low), float(high))

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low <= value <= self.high

    def text(self, form: str = ".2f") -> str:
        """As text: "0.52 (0.41 to 0.66)", or "undetermined" for nan."""
        if math.isnan(self.value):
            return "undetermined"
        low = f"{self.low:{form}}"
        high = "∞" if math.isinf(self.high) else f"{self.high:{form}}"
        return f"{self.value:{form}} ({low} to {high})"
