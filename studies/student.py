"""Student's interval, for the tables of all studies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["t_interval"]


def t_interval(
    values: Sequence[float] | npt.NDArray[np.float64], level: float = 0.9
) -> tuple[float, float, float]:
    """Mean and the ends of its interval, which are infinite with one value."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half
