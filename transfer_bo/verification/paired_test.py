"""Two settings run with the same new seeds, and whether one is better than the other beyond chance.

One run of each is weak evidence: seeds differ by as much as good settings do, and the best of many runs is
partly the luckiest. So both settings run with the same seeds, and their differences d_i, i = 1..n, seed by
seed, are tested: is the mean of d zero? (Student's paired t-test.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

__all__ = ["Comparison", "compare_paired"]

LEVEL = 0.9
"""Confidence level of the interval of the mean difference."""

MIN_PAIRS = 3
"""Pairs below which nothing is called better or worse: two differences of the same sign are no evidence."""


@dataclass(frozen=True)
class Comparison:
    """Differences in loss between two settings, seed by seed."""

    name: str
    """The first setting."""

    other: str
    """The setting that it is compared with."""

    differences: tuple[float, ...]
    """Loss of the first minus loss of the other, for each seed with both."""

    lost: int = 0
    """Number of seeds at which one of the two gave no loss (it diverged or failed)."""

    maximize: bool = False
    """Whether larger is better."""

    level: float = LEVEL
    """Confidence level of `interval`."""

    @property
    def mean(self) -> float:
        """Mean difference; nan without a pair."""
        return float(np.mean(self.differences)) if self.differences else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Student's confidence interval of the mean difference; infinite with fewer than two pairs."""
        n = len(self.differences)
        if n < 2:
            return -math.inf, math.inf
        quantile = float(stdtrit(n - 1, (1 + self.level) / 2))
        half_width = quantile * float(np.std(self.differences, ddof=1)) / math.sqrt(n)
        return self.mean - half_width, self.mean + half_width

    @property
    def verdict(self) -> str:
        """Either "better" or "worse" if the interval excludes 0 and no run was lost, else "undecided"."""
        low, high = self.interval
        if self.lost or len(self.differences) < MIN_PAIRS or low <= 0 <= high:
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
        conclusion = {
            "undecided": "this does not decide which is better",
            "better": f"the {self.name} is better",
            "worse": f"the {self.name} is worse",
        }[self.verdict]
        return (
            f"Over {n} seeds the {self.name}'s loss minus that of the {self.other} is {self.mean:+.4f}, "
            f"{self.level:.0%} interval [{low:+.4f}, {high:+.4f}]: {conclusion}.{lost}"
        )


def compare_paired(
    name: str,
    other: str,
    losses: Sequence[tuple[float | None, float | None]],
    maximize: bool = False,
    level: float = LEVEL,
) -> Comparison:
    """Compare two settings by their losses at the same seeds.

    Args:
        name: The first setting.
        other: The setting that it is compared with.
        losses: For each seed, the loss of the first and of the other; None where a run gave no loss.
        maximize: Whether larger is better.
        level: Confidence level of the interval.
    """
    both = [(one, two) for one, two in losses if one is not None and two is not None]
    differences = tuple(one - two for one, two in both)
    return Comparison(name, other, differences, len(losses) - len(both), maximize, level)
