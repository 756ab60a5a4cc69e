"""Do narrow and wide models learn along the same directions? Decomposed trainings compared over widths.

The same trainings, watched by a `TrajectoryRecorder` at several widths and learning rates, give φ_n^k(ν)
(seeds averaged). Each width n is split against the largest, N, by `select_truncation` on the learning rates
around both optima at which both losses are convex: the bound t_n asks for convexity, and away from its
optimum a loss over log lr has none. Where fewer than `MIN_POINTS` are left all are used, and the bound is
infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_bo.diagnostics.truncation import (
    ARGMIN_TOLERANCE,
    CONVEX_TOLERANCE,
    Truncation,
    closest_attempt,
    select_truncation,
    tightest_truncation,
    vertex,
)
from transfer_bo.errors import DiagnosticError
from transfer_bo.quantities import counted

__all__ = ["WatchedRun", "WidthComparison", "WidthSplit", "compare_widths"]

Array = npt.NDArray[np.float64]

MIN_POINTS = 5
"""Learning rates of a convex stretch, at least: three second differences."""


@dataclass(frozen=True)
class WatchedRun:
    """One training that was watched.

    Attributes:
        width: n.
        octave: log2 of the learning rate.
        seed: Seed of weights and batches.
        top: φ_n^k, k = 1 ... n, as of `Decomposition.top` (n); None where the training diverged.
        start: φ at the start.
        mci: Mean index of the directions that samples learn from, over the samples; nan where not recorded.
    """

    width: int
    octave: float
    seed: int
    top: tuple[float, ...] | None
    start: float = math.nan
    mci: float = math.nan


@dataclass(frozen=True)
class WidthSplit:
    """One width against the largest.

    Attributes:
        width: n.
        octaves: The learning rates compared, log2 (g).
        convex: Whether both losses are convex on them.
        found: The split that the selection accepts; None if no κ meets the tolerances.
        tightest: The split of least bound t_n, accepted or not.
        change: Share of the loss change at n's own optimum that κ's directions make; nan without a split.
        reason: Why no split was found, as a sentence; else empty.
    """

    width: int
    octaves: tuple[float, ...]
    convex: bool
    found: Truncation | None
    tightest: Truncation
    change: float
    reason: str

    @property
    def shown(self) -> Truncation:
        """The accepted split, or the tightest one where there is none or its bound is infinite."""
        if self.found is None or not math.isfinite(self.found.bound):
            return self.tightest
        return self.found

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is infinite or unknown is null."""
        return {
            "width": self.width,
            "octaves": list(self.octaves),
            "convex": self.convex,
            "accepted": None if self.found is None else _numbers(self.found),
            "tightest": _numbers(self.tightest),
            "distance": self.tightest.distance,
            "change": None if math.isnan(self.change) else self.change,
            "reason": self.reason,
        }


def _numbers(split: Truncation) -> dict[str, Any]:
    """κ and the parts of its bound; what is infinite is null."""
    numbers = {"bound": split.bound, "invariance": split.invariance, "flatness": split.flatness}
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return {"kappa": list(split.kappa), **finite}


@dataclass(frozen=True)
class WidthComparison:
    """All widths against the largest.

    Attributes:
        widths: Ascending (S).
        octaves: log2 of the learning rates at which every width and seed finished (g).
        seeds: Number of seeds that are averaged.
        losses: φ_n, of the averaged trajectory's end (S x g).
        optima: log2 of the best learning rate at each width (S).
        splits: One per width but the largest.
        notes: Sentences about learning rates that were left out.
    """

    widths: tuple[int, ...]
    octaves: tuple[float, ...]
    seeds: int
    losses: Array = field(repr=False)
    optima: tuple[float, ...]
    splits: tuple[WidthSplit, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "widths": list(self.widths),
            "octaves": list(self.octaves),
            "seeds": self.seeds,
            "losses": self.losses.tolist(),
            "optima": list(self.optima),
            "splits": [split.to_json() for split in self.splits],
            "notes": list(self.notes),
        }


def compare_widths(
    runs: Sequence[WatchedRun],
    *,
    convex_tolerance: float = CONVEX_TOLERANCE,
    argmin_tolerance: float = ARGMIN_TOLERANCE,
) -> WidthComparison:
    """Split every width against the largest.

    Args:
        runs: Every width at the same evenly spaced learning rates and seeds.
        convex_tolerance: ε_cvx.
        argmin_tolerance: ε, octaves.

    Raises:
        DiagnosticError: For one width only, or fewer than `MIN_POINTS` learning rates in a row at which all
            widths finished.
    """
    widths = sorted({run.width for run in runs})
    seeds = sorted({run.seed for run in runs})
    if len(widths) < 2:
        known = ", ".join(map(str, widths)) or "none"
        raise DiagnosticError(f"Directions are compared over widths, but the runs have {known}; add another.")

    octaves, notes = _finished_everywhere(runs, widths, seeds)
    by_key = {(run.width, run.octave, run.seed): run for run in runs}
    tops = {
        width: np.array(
            [[by_key[width, octave, seed].top or () for seed in seeds] for octave in octaves], dtype=float
        ).mean(1)
        for width in widths
    }  # width -> g x n
    start = {
        width: float(np.mean([by_key[width, octave, seed].start for octave in octaves for seed in seeds]))
        for width in widths
    }

    grid = np.array(octaves)
    losses = np.array([top[:, -1] for top in tops.values()])
    largest = tops[widths[-1]]
    splits = [
        _split(width, grid, tops[width], largest, start[width], convex_tolerance, argmin_tolerance)
        for width in widths[:-1]
    ]
    return WidthComparison(
        widths=tuple(widths),
        octaves=tuple(octaves),
        seeds=len(seeds),
        losses=losses,
        optima=tuple(vertex(grid, of_width) for of_width in losses),
        splits=tuple(splits),
        notes=tuple(notes),
    )


def _finished_everywhere(
    runs: Sequence[WatchedRun], widths: Sequence[int], seeds: Sequence[int]
) -> tuple[list[float], list[str]]:
    """The longest row of neighbouring learning rates that finished at all widths and seeds, and notes."""
    tried = sorted({run.octave for run in runs})
    finished = {(run.width, run.octave, run.seed) for run in runs if run.top is not None}
    complete = [all((w, octave, s) in finished for w in widths for s in seeds) for octave in tried]

    rows: list[list[float]] = [[]]
    for octave, is_complete in zip(tried, complete, strict=True):
        if is_complete:
            rows[-1].append(octave)
        else:
            rows.append([])
    longest = max(rows, key=len)
    if len(longest) < MIN_POINTS:
        raise DiagnosticError(
            f"Only {counted(len(longest), 'learning rate')} in a row finished at every width and seed, "
            f"{MIN_POINTS} are needed; take smaller or more learning rates."
        )

    left_out = [octave for octave in tried if octave not in longest]
    notes = []
    if left_out:
        listed = ", ".join(f"{2**octave:.3g}" for octave in left_out)
        notes.append(f"Left out, because a run diverged or is missing there: learning rate {listed}.")
    return longest, notes


def _split(
    width: int,
    grid: Array,
    small: Array,
    large: Array,
    start: float,
    convex_tolerance: float,
    argmin_tolerance: float,
) -> WidthSplit:
    """The split of one width against the largest."""
    at = _convex_stretch(small[:, -1], large[:, -1])
    convex = at is not None
    inside = at or slice(0, len(grid))
    nu, small, large = grid[inside], small[inside], large[inside]
    options: dict[str, Any] = {"convex_tolerance": convex_tolerance, "argmin_tolerance": argmin_tolerance}

    found = select_truncation(list(nu), small, large, **options)
    tightest = tightest_truncation(list(nu), small, large)
    reason, change = "", math.nan
    if found is None:
        closest = closest_attempt(list(nu), small, large, **options)
        reason = (
            f"At width {width} no κ meets both tolerances; the closest (τ = {closest.tau[0]:g}, "
            f"{closest.tau[1]:g}) leaves {closest.concave:.0%} of the second differences of the top part "
            f"negative ({convex_tolerance:.0%} allowed), and its least point {closest.displacement:.1f} "
            f"octaves from that of the whole loss ({argmin_tolerance:.1f} allowed)."
        )
    else:
        best = int(small[:, -1].argmin())
        change = float((found.top[0][best] - start) / (small[best, -1] - start))
    return WidthSplit(width, tuple(map(float, nu)), convex, found, tightest, change, reason)


def _convex_stretch(one: Array, other: Array) -> slice | None:
    """The widest stretch of the grid on which both losses are convex and have their least point inside."""
    g = len(one)
    for length in range(g, MIN_POINTS - 1, -1):
        for first in range(g - length + 1):
            parts = [values[first : first + length] for values in (one, other)]
            is_convex = all((np.diff(part, n=2) > 0).all() for part in parts)
            if is_convex and all(0 < part.argmin() < length - 1 for part in parts):
                return slice(first, first + length)
    return None
