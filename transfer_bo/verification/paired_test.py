"""The same settings again with new seeds, and whether one is better than the other beyond chance.

One run each tells little: seeds differ by as much as good settings do, and the best of many runs is partly
the luckiest. So suggestion and control run with the same new seeds, and their differences d_i, i = 1..n, seed
by seed, are tested: is the mean of d zero? (Student's paired t-test.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Comparison", "paired"]

LEVEL = 0.9
FEWEST = 3
"""Pairs below which nothing is called better or worse: two differences of the same sign are no evidence."""


@dataclass(frozen=True)
class Comparison:
    """Paired runs of one setting and another: differences in loss, seed by seed.

    Attributes:
        name: of the one; other: what it is compared with.
        differences: loss of the one minus that of the other, for each seed with both.
        lost: seeds at which one of the two gave no loss (it diverged or failed).
        maximize: whether larger is better.
    """

    name: str
    other: str
    differences: tuple[float, ...]
    lost: int = 0
    maximize: bool = False
    level: float = LEVEL

    @property
    def mean(self) -> float:
        """Mean difference; nan without a pair."""
        return float(np.mean(self.differences)) if self.differences else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Student's interval of the mean difference; infinite with fewer than two pairs."""
        n = len(self.differences)
        if n < 2:
            return -math.inf, math.inf
        half = (
            float(stats.t.ppf((1 + self.level) / 2, n - 1))
            * float(np.std(self.differences, ddof=1))
            / math.sqrt(n)
        )
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> str:
        """Decided ("better", "worse", not "undecided") if the interval leaves out 0 and no run was lost."""
        low, high = self.interval
        if self.lost or len(self.differences) < FEWEST or low <= 0 <= high:
            return "undecided"
        return "better" if (self.mean < 0) != self.maximize else "worse"

    @property
    def text(self) -> str:
        """One sentence."""
        n = len(self.differences)
        lost = f" At {self.lost} more a run gave no loss (it diverged or failed)." if self.lost else ""
        if n < 2:
            return f"{n} seed with both the {self.name} and the {self.other} says nothing of chance.{lost}"
        low, high = self.interval
        words = {
            "undecided": "this does not decide which is better",
            "better": f"the {self.name} is better",
            "worse": f"the {self.name} is worse",
        }[self.verdict]
        return (
            f"Over {n} seeds the {self.name}'s loss minus that of the {self.other} is {self.mean:+.4f}, "
            f"{self.level:.0%} interval [{low:+.4f}, {high:+.4f}]: {words}.{lost}"
        )


def paired(
    name: str,
    other: str,
    losses: Sequence[tuple[float | None, float | None]],
    maximize: bool = False,
    level: float = LEVEL,
) -> Comparison:
    """Compare two settings by their losses at the same seeds; None where a run gave no loss."""
    both = [(one, two) for one, two in losses if one is not None and two is not None]
    differences = tuple(one - two for one, two in both)
    return Comparison(name, other, differences, len(losses) - len(both), maximize, level)
