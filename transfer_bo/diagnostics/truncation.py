"""Width-stable directions against width-sensitive ones: selection of κ and bound t_n of arXiv:2512.22768.

Symbols: ν_1 ... ν_g the HP's grid (octaves, ascending), φ_n(ν_i) the loss at width n, φ_n^k(ν_i) its part by
the top k directions (`Decomposition.top`), κ = (κ_1, ..., κ_g) the truncation, one k per grid value;
φ_n^κ(ν_i) = φ_n^{κ_i}(ν_i) the width-stable part, φ_n^-κ = φ_n - φ_n^κ the width-sensitive part. Lip is the
largest slope between neighbours on the grid, μ the least second difference (curvature), N the largest width,
which stands in for infinity.

If the top part is strongly convex and alike at both widths and the other part is flat, the optima are close:

    b_n <= t_n = min_κ 2 √ε_inv + ε_flat,
    ε_inv = ‖φ_n^κ - φ_N^κ‖_sup / max(μ(φ_n^κ), μ(φ_N^κ)),
    ε_flat = Lip(φ_n^-κ) / μ(φ_n) + Lip(φ_N^-κ) / μ(φ_N).

Selection: minimize (1/g) Σ_i |φ_n^{κ_i}(ν_i) - φ_N^{κ_i}(ν_i)| + τ1 Lip(φ_n^-κ) + τ2 Lip(φ_N^-κ) by
coordinate descent from κ = n/2 (one κ_i at a time to its best value in 1..n, until nothing changes), for
pairs (τ1, τ2) by rising sum; the first κ is taken whose top parts are convex up to a share ε_cvx of negative
second differences and whose least points lie within ε octaves of those of the whole loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transfer_bo.errors import DiagnosticError

__all__ = ["Attempt", "Truncation", "closest_attempt", "select_truncation", "tightest_truncation", "vertex"]

Array = npt.NDArray[np.float64]

PENALTIES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Values of τ1 and τ2 that are tried."""
CONVEX_TOLERANCE = 0.25
"""ε_cvx: share of second differences that may be negative."""
ARGMIN_TOLERANCE = 1.0
"""ε: octaves between the least point of the top part and of the whole loss."""
_SWEEPS = 50
"""Sweeps of the coordinate descent, at most; it converges within a few."""


@dataclass(frozen=True)
class Truncation:
    """The split at one width against the largest.

    Attributes:
        kappa: κ (g).
        top: φ_n^κ and φ_N^κ (2 x g).
        sensitive: φ_n^-κ and φ_N^-κ (2 x g).
        tau: The accepted (τ1, τ2).
        invariance: ε_inv; infinite where a top part is not convex.
        flatness: ε_flat; infinite where a loss is not convex.
        bound: t_n, octaves: 2 √ε_inv + ε_flat for this κ, an upper bound of the least over all κ.
        distance: Measured distance b_n of the two optima, octaves (see `vertex`).
    """

    kappa: tuple[int, ...]
    top: Array
    sensitive: Array
    tau: tuple[float, float]
    invariance: float
    flatness: float
    bound: float
    distance: float


@dataclass(frozen=True)
class Attempt:
    """What one pair (τ1, τ2) gives, whether or not it meets the tolerances.

    Attributes:
        tau: (τ1, τ2).
        kappa: κ (g).
        top: φ_n^κ and φ_N^κ (2 x g).
        concave: Share of the top parts' second differences that are negative.
        displacement: Largest distance of a top part's least grid point from that of its whole loss, octaves.
    """

    tau: tuple[float, float]
    kappa: tuple[int, ...]
    top: Array
    concave: float
    displacement: float

    def meets(self, convex_tolerance: float, argmin_tolerance: float) -> bool:
        """Whether it is accepted."""
        return self.concave <= convex_tolerance and self.displacement <= argmin_tolerance


def select_truncation(
    nu: Sequence[float],
    small: Array,
    large: Array,
    *,
    penalties: Sequence[float] = PENALTIES,
    convex_tolerance: float = CONVEX_TOLERANCE,
    argmin_tolerance: float = ARGMIN_TOLERANCE,
) -> Truncation | None:
    """κ at width n against the largest width, or None if no pair (τ1, τ2) meets the tolerances.

    Args:
        nu: Grid of the HP, octaves, ascending, evenly spaced (g >= 3).
        small: φ_n^k(ν_i), k = 1 ... n (g x n); the last column is the whole loss.
        large: φ_N^k(ν_i) (g x N), N >= n.
        penalties: Values of τ1 and τ2 that are tried.
        convex_tolerance: ε_cvx.
        argmin_tolerance: ε, octaves.

    Raises:
        DiagnosticError: If the grid has fewer than three values or is uneven, or shapes do not fit.
    """
    grid, step, whole = _checked(nu, small, large)
    for attempt in _attempts(grid, step, small, large, penalties):
        if attempt.meets(convex_tolerance, argmin_tolerance):
            return _judged(grid, step, attempt, whole)
    return None


def closest_attempt(
    nu: Sequence[float],
    small: Array,
    large: Array,
    *,
    penalties: Sequence[float] = PENALTIES,
    convex_tolerance: float = CONVEX_TOLERANCE,
    argmin_tolerance: float = ARGMIN_TOLERANCE,
) -> Attempt:
    """Of all pairs (τ1, τ2) the one that misses the tolerances least: what to show where none meets them.

    Arguments and errors are those of `select_truncation`.
    """
    grid, step, _ = _checked(nu, small, large)

    def miss(attempt: Attempt) -> float:
        over = (attempt.concave - convex_tolerance, attempt.displacement - argmin_tolerance)
        return sum(max(value, 0.0) for value in over)

    return min(_attempts(grid, step, small, large, penalties), key=miss)


def tightest_truncation(
    nu: Sequence[float], small: Array, large: Array, *, penalties: Sequence[float] = PENALTIES
) -> Truncation:
    """The κ of least bound t_n, whether or not it meets the tolerances.

    Of all κ only those are tried that a pair (τ1, τ2) leads to, and those with one k at all learning rates.
    Arguments and errors are those of `select_truncation`.
    """
    grid, step, whole = _checked(nu, small, large)
    tried = list(_attempts(grid, step, small, large, penalties))
    tried += [
        _attempt((math.nan, math.nan), np.full(len(grid), k), grid, whole, small, large)
        for k in range(1, small.shape[1] + 1)
    ]
    return min((_judged(grid, step, attempt, whole) for attempt in tried), key=lambda found: found.bound)


def _checked(nu: Sequence[float], small: Array, large: Array) -> tuple[Array, float, Array]:
    """The grid (g), its step, and the whole losses at both widths (2 x g)."""
    grid = np.asarray(nu, dtype=float)
    steps = np.diff(grid)
    if len(grid) < 3 or (steps <= 0).any() or np.ptp(steps) > 1e-6 * steps.max():
        raise DiagnosticError(
            f"The grid {list(nu)} has no second differences; give three or more ascending, even values."
        )
    g, n = small.shape
    if len(grid) != g or large.shape[0] != g or large.shape[1] < n:
        raise DiagnosticError(
            f"Losses of shapes {small.shape} and {large.shape} do not fit a grid of {len(grid)} values; give "
            "g x n for the smaller width and g x N for the larger, N at least n."
        )
    return grid, float(steps.mean()), np.stack([small[:, -1], large[:, -1]])


def _attempts(
    grid: Array, step: float, small: Array, large: Array, penalties: Sequence[float]
) -> Iterator[Attempt]:
    """One per pair (τ1, τ2), by rising sum."""
    whole = np.stack([small[:, -1], large[:, -1]])
    pairs = sorted(itertools.product(penalties, penalties), key=lambda pair: (sum(pair), pair))
    for tau in pairs:
        yield _attempt(tau, _descend(small, large, whole, tau, step), grid, whole, small, large)


def _attempt(
    tau: tuple[float, float],
    kappa: npt.NDArray[np.int64],
    grid: Array,
    whole: Array,
    small: Array,
    large: Array,
) -> Attempt:
    top = _top(small, large, kappa)
    concave = float((np.diff(top, n=2, axis=1) < 0).mean())
    displacement = float(np.abs(grid[top.argmin(1)] - grid[whole.argmin(1)]).max())
    return Attempt(tau, tuple(int(k) for k in kappa), top, concave, displacement)


def _top(small: Array, large: Array, kappa: npt.NDArray[np.int64]) -> Array:
    rows = np.arange(len(kappa))
    return np.stack([small[rows, kappa - 1], large[rows, kappa - 1]])


def _lip(values: Array, step: float) -> Array:
    """Largest slope between neighbours, of each row."""
    return np.asarray(np.abs(np.diff(values, axis=-1)).max(-1) / step)


def _descend(
    small: Array, large: Array, whole: Array, tau: tuple[float, float], step: float
) -> npt.NDArray[np.int64]:
    """Coordinate descent on κ from n/2."""
    g, n = small.shape
    kappa = np.full(g, max(1, n // 2), dtype=np.int64)

    def objectives(i: int) -> Array:
        """The objective for every value 1..n of κ_i (n)."""
        top = np.repeat(_top(small, large, kappa)[None], n, axis=0)  # n x 2 x g
        top[:, 0, i], top[:, 1, i] = small[i], large[i, :n]
        slopes = _lip(whole - top, step)  # n x 2
        difference = np.abs(top[:, 0] - top[:, 1]).mean(1)
        return np.asarray(difference + slopes @ np.array(tau))

    for _ in range(_SWEEPS):
        before = kappa.copy()
        for i in range(g):
            values = objectives(i)
            if values.min() < values[kappa[i] - 1]:  # ties keep what is there, so that it must end
                kappa[i] = 1 + int(values.argmin())
        if (before == kappa).all():
            break
    return kappa


def vertex(grid: Array, values: Array) -> float:
    """The least point of the parabola through the least value and its neighbours; an end as it is."""
    i = int(values.argmin())
    if i in (0, len(values) - 1):
        return float(grid[i])
    before, middle, after = values[i - 1 : i + 2]
    bend = before - 2 * middle + after
    offset = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return float(grid[i] + offset * (grid[1] - grid[0]))


def _judged(grid: Array, step: float, attempt: Attempt, whole: Array) -> Truncation:
    top = attempt.top

    def mu(values: Array) -> float:
        return float(np.diff(values, n=2).min() / step**2)

    sensitive = whole - top
    strongest = max(mu(top[0]), mu(top[1]))
    difference = float(np.abs(top[0] - top[1]).max())
    invariance = difference / strongest if strongest > 0 else math.inf
    flat = [
        slope / curvature if curvature > 0 else math.inf
        for slope, curvature in zip(_lip(sensitive, step), map(mu, whole), strict=True)
    ]
    flatness = float(sum(flat))

    return Truncation(
        kappa=attempt.kappa,
        top=top,
        sensitive=sensitive,
        tau=attempt.tau,
        invariance=invariance,
        flatness=flatness,
        bound=2 * math.sqrt(invariance) + flatness,
        distance=abs(vertex(grid, whole[0]) - vertex(grid, whole[1])),
    )
