"""Power laws with a limit, y(n) = y∞ + C n^-p, fitted to many draws at once.

Symbols: n sizes (S, may end with infinity), p the exponent, y∞ the limit, C the amplitude, B draws, P
exponents.

For every exponent of a fixed grid the limit and the amplitude follow by linear least squares, so the best
exponent is found without a starting point; the grid's step of 2% is refined by a parabola through the three
best points. An exponent at the grid's end means that the sizes do not determine it.

At finite sizes the next order of the law biases the exponent, without any noise: on the exact risk of
random-feature ridge regression, whose optimum settles as n^-1, sizes 8 to 256 give 1.6. So an exponent's
interval also holds every smaller p for which y∞ + C n^-p + D n^-2p, |D| <= `LARGEST_CORRECTION` |C| at the
smallest size, fits at least as well as the best law without D. Where a law passes exactly through its points
only its own p is left; with three sizes nearly all are. Larger p are no matter: in the limit the slowest term
rules.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transfer_bo.diagnostics.intervals import Interval

__all__ = ["EXPONENTS", "Law", "exponent_interval", "fit_gap", "fit_law", "least_exponent"]

Array = npt.NDArray[np.float64]

EXPONENTS = np.geomspace(0.05, 5.0, 233)
"""The grid of exponents (P)."""


LARGEST_CORRECTION = 30.0
"""Next order of a law over its first one, at the smallest size: with 10 the interval of the optimum of ridge
regression at sizes 8 to 256 misses its limit."""


class Law(NamedTuple):
    """y(n) = limit + amplitude n^-exponent, one per draw (B each)."""

    exponent: Array
    limit: Array
    amplitude: Array


def fit_law(n: Array, y: Array, weight: Array | None = None) -> Law:
    """Fit y∞ + C n^-p to each draw.

    Args:
        n: Sizes (S), S >= 3, the last may be infinite.
        y: Values (B x S).
        weight: Inverse variance of each size (S); equal weights when absent.
    """
    root = np.ones(len(n)) if weight is None else np.sqrt(weight / weight.max())
    # Sizes relative to the smallest keep n^-p in (0, 1], whatever their unit.
    powers = (n / n[0])[None, :] ** -EXPONENTS[:, None]  # P x S
    designs = np.stack([np.broadcast_to(1.0, powers.shape), powers], -1) * root[None, :, None]
    solve = np.linalg.pinv(designs)  # P x 2 x S
    residual_maps = np.eye(len(n)) - designs @ solve  # P x S x S

    # The mean carries no information on p and would only cost digits.
    centred = (y - y.mean(1, keepdims=True)) * root
    squares = np.empty((len(y), len(EXPONENTS)))
    for i, projector in enumerate(residual_maps):
        squares[:, i] = ((centred @ projector) ** 2).sum(1)
    p = _refined(squares)

    x = (n / n[0])[None, :] ** -p[:, None]
    share = root**2 / (root**2).sum()
    x_mean, y_mean = (x @ share)[:, None], (y @ share)[:, None]
    slope = ((x - x_mean) * (y - y_mean)) @ share / ((x - x_mean) ** 2 @ share)
    return Law(p, y_mean[:, 0] - slope * x_mean[:, 0], slope * n[0] ** p)


def least_exponent(n: Array, y: Array, weight: Array | None = None) -> float:
    """The least p whose law, with a term of the next order, fits as well as the best one without.

    Args:
        n: Sizes (S), S >= 3, the last may be infinite.
        y: Values (S).
        weight: Inverse variance of each size (S); equal weights when absent.
    """
    root = np.ones(len(n)) if weight is None else np.sqrt(weight / weight.max())
    powers = (n / n[0])[None, :] ** -EXPONENTS[:, None]  # P x S
    columns = np.stack([np.ones_like(powers), powers, powers**2], -1) * root[None, :, None]
    target = (y - y.mean()) * root

    def squares(designs: Array) -> tuple[Array, Array]:
        """Least sums of squares (P) and coefficients (P x columns)."""
        coefficients = np.linalg.pinv(designs) @ target
        return ((np.einsum("psk,pk->ps", designs, coefficients) - target) ** 2).sum(1), coefficients

    plain, _ = squares(columns[:, :, :2])
    corrected, coefficients = squares(columns)
    is_small = np.abs(coefficients[:, 2]) <= LARGEST_CORRECTION * np.abs(coefficients[:, 1])
    # Rounding leaves this much of an exact fit; the grid's step leaves more.
    allowed = max(float(plain.min()), 1e-18 * float(target @ target))
    possible = is_small & (corrected <= allowed)
    possible[int(plain.argmin())] = True
    return float(EXPONENTS[possible].min())


def fit_gap(n: Array, gap: Array) -> Array:
    """The exponent q of gaps to the largest size, gap(n) = K |n^-q - n_max^-q|, for each draw (B).

    Args:
        n: Sizes (S), the last may be infinite.
        gap: Values that are not negative, for all sizes but the last (B x (S - 1)).
    """
    relative = n / n[0]
    shapes = np.abs(relative[None, :-1] ** -EXPONENTS[:, None] - relative[-1] ** -EXPONENTS[:, None])
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    squares = (gap**2).sum(1, keepdims=True) - (gap @ shapes.T) ** 2
    return _refined(squares)


def exponent_interval(exponents: Array, factor: float = 1.0, least: float = math.inf) -> Interval:
    """A fitted exponent with its interval, as far as the sizes determine them.

    A bound at an end of the grid is 0 or infinite; the value is nan where both are. A value at one end of the
    grid is an estimate from one side: the exponent may be smaller, or larger, than any of the grid.

    Args:
        exponents: Exponents of the fit (first) and of its bootstrap draws (B).
        factor: What they are multiplied with.
        least: An exponent that the interval holds as well, as of `least_exponent`.
    """
    value, low, high = Interval.of(exponents)
    low = min(low, least)
    smallest, largest = EXPONENTS[0] * (1 + 1e-9), EXPONENTS[-1] * (1 - 1e-9)
    low = low if low > smallest else 0.0
    high = high if high < largest else np.inf
    return Interval(factor * value if low > 0 or high < np.inf else np.nan, factor * low, factor * high)


def _refined(squares: Array) -> Array:
    """The exponent with the least sum of squares (B x P) per draw, between grid points."""
    best = squares.argmin(1)
    inner = best.clip(1, len(EXPONENTS) - 2)
    rows = np.arange(len(squares))
    before, middle, after = (squares[rows, inner + k] for k in (-1, 0, 1))
    bend = before - 2 * middle + after
    steps = np.where(bend > 0, 0.5 * (before - after) / np.where(bend > 0, bend, 1.0), 0.0).clip(-1, 1)

    width = np.log(EXPONENTS[1] / EXPONENTS[0])
    refined: Array = np.where(best == inner, EXPONENTS[inner] * np.exp(width * steps), EXPONENTS[best])
    return refined
