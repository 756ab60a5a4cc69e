"""Loss against one HP at several sizes as smooth curves with an error bar: what rates and metrics start from.

Symbols: n a size, z = log2 of the HP (its natural coordinate), y the loss, φ_n(z) the curve at size n,
z*_n its lowest point, G the linear map from measured losses to the curve. S sizes, m points, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from transfer_bo.dimension import Dimension
from transfer_bo.errors import DiagnosticError, NoRunsError

__all__ = ["Curve", "Optima", "Sweep", "read_sweep"]

Array = npt.NDArray[np.float64]

LOSS_FILTER = 1.35
"""Points above this many times the best loss of their size are not used: they lie off its bowl (code of
arXiv:2605.21486)."""
MAX_DEGREE = 10
"""Highest degree of the polynomial; the degree that predicts left-out points best is taken."""
MIN_POINTS = 3
"""Values of the HP that a size needs."""
GRID = 1001
"""Points of the fine grid on which curves are evaluated."""


@dataclass(frozen=True)
class Curve:
    """The measured points at one size.

    Attributes:
        size: n.
        z: natural coordinates, ascending (m).
        y: mean loss at each (m).
        count: runs behind each mean (m).
        tried: lowest and highest z at which anything was run, diverged or not.
    """

    size: float
    z: Array
    y: Array
    count: Array
    tried: tuple[float, float]


@dataclass(frozen=True)
class Optima:
    """The lowest points of B draws of the curves; row 0 is the fit itself, the rest are bootstrap draws.

    Attributes:
        z: z*_n (B x S).
        loss: φ_n(z*_n) (B x S).
        at_largest: φ_max(z*_n), the loss at the largest size with each size's optimum (B x S).
        curvature: second derivative of φ_n at z*_n, per octave² (B x S).
        modes: separate minima of each fitted curve deeper than the noise (S).
    """

    z: Array
    loss: Array
    at_largest: Array
    curvature: Array
    modes: npt.NDArray[np.int64]


class Sweep:
    """One HP swept at several sizes.

    The curve at each size is the polynomial in z (weighted least squares) whose degree, common to all sizes,
    leaves the smallest leave-one-out error. Where all losses are positive the polynomial is one of ln y:
    losses may fall by decades over the sizes, and their noise with them. Its noise is that of repeated runs
    where there are enough of them, otherwise that of the residuals, which counts lack of fit as noise too.
    Draws are a parametric bootstrap: the fitted curve plus noise, fitted again.

    Args:
        curves: One per size; they are sorted by size.
        hp: Name of the HP.
        dimension: The HP's transform, to turn z back into values.
        repeat_noise: Standard deviation of one run (of ln y where all y are positive) about its cell's mean,
            and its degrees of freedom.
    """

    def __init__(
        self,
        curves: Sequence[Curve],
        hp: str,
        dimension: Dimension,
        repeat_noise: tuple[float, int] = (math.nan, 0),
    ) -> None:
        self.curves = sorted(curves, key=lambda curve: curve.size)
        self.hp, self.dimension = hp, dimension
        self.in_log = all(bool((curve.y > 0).all()) for curve in self.curves)
        self.sizes = np.array([curve.size for curve in self.curves])
        self.centre = float(np.mean([curve.z.mean() for curve in self.curves]))
        half_width = max(float(np.abs(curve.z - self.centre).max()) for curve in self.curves)
        self.half_width = max(half_width, 1e-9)
        self.degree = self._choose_degree()
        repeated, freedom = repeat_noise
        self.noise = repeated if freedom >= len(self.curves) else self._residual_noise()
        """Standard deviation of one run, of ln y where the curves are in ln y."""

    def _work(self, y: Array) -> Array:
        """Losses as the polynomial is fitted to them: their logarithm, if all are positive."""
        return np.asarray(np.log(y)) if self.in_log else y

    def _back(self, work: Array) -> Array:
        return np.asarray(np.exp(work)) if self.in_log else work

    def _basis(self, z: Array, degree: int) -> Array:
        """Chebyshev polynomials of z up to a degree (m x (degree + 1))."""
        return np.asarray(np.polynomial.chebyshev.chebvander((z - self.centre) / self.half_width, degree))

    def _degree_at(self, curve: Curve, degree: int) -> int:
        """A curve of few points keeps a point free for its noise, but is never flatter than a parabola."""
        return max(2, min(degree, len(curve.z) - 2))

    def _map(self, curve: Curve, degree: int) -> Array:
        """From the losses of a curve to its coefficients ((degree + 1) x m)."""
        root = np.sqrt(curve.count)
        return np.asarray(np.linalg.pinv(root[:, None] * self._basis(curve.z, degree)) * root)

    def _choose_degree(self) -> int:
        highest = max(self._degree_at(curve, MAX_DEGREE) for curve in self.curves)
        errors = []
        for degree in range(2, highest + 1):
            total, points = 0.0, 0
            for curve in self.curves:
                at = self._degree_at(curve, degree)
                if len(curve.z) <= at + 1:
                    continue  # passes through every point, so leaving one out says nothing
                hat = self._basis(curve.z, at) @ self._map(curve, at)
                y = self._work(curve.y)
                left_out = (y - hat @ y) / (1 - np.diag(hat)).clip(1e-12)
                total += float(np.sum(curve.count * left_out**2))
                points += len(curve.z)
            errors.append(total / points if points else math.inf)
        return 2 + int(np.argmin(errors))

    def _residual_noise(self) -> float:
        total, freedom = 0.0, 0
        for curve in self.curves:
            at = self._degree_at(curve, self.degree)
            y = self._work(curve.y)
            residual = y - self._basis(curve.z, at) @ (self._map(curve, at) @ y)
            total += float(np.sum(curve.count * residual**2))
            freedom += len(curve.z) - at - 1
        return math.sqrt(total / freedom) if freedom > 0 else 0.0

    def fitted(self, curve: Curve, z: Array) -> Array:
        """The fitted loss at natural coordinates z (any number of them)."""
        at = self._degree_at(curve, self.degree)
        return self._back(self._basis(z, at) @ (self._map(curve, at) @ self._work(curve.y)))

    def drawn(self, draws: int, seed: int) -> list[Array]:
        """Losses per size ((B + 1) x m): those measured, then `draws` bootstrap draws of them."""
        rng = np.random.default_rng(seed)
        losses = []
        for curve in self.curves:
            mean = self._work(self.fitted(curve, curve.z))
            noise = self.noise / np.sqrt(curve.count) * rng.standard_normal((draws, len(curve.z)))
            losses.append(np.vstack([curve.y, self._back(mean + noise)]))
        return losses

    def optima(self, draws: int = 400, seed: int = 0) -> Optima:
        """The lowest point of each curve within its own points, for the fit and `draws` bootstrap draws."""
        coefficients = [
            self._work(losses) @ self._map(curve, self._degree_at(curve, self.degree)).T
            for curve, losses in zip(self.curves, self.drawn(draws, seed), strict=True)
        ]  # (B + 1) x (degree + 1) each
        located = [
            self._lowest(curve, of_curve) for curve, of_curve in zip(self.curves, coefficients, strict=True)
        ]
        z, loss, curvature = (np.column_stack([part[i] for part in located]) for i in range(3))

        largest = coefficients[-1]
        at_largest = np.einsum(
            "bsk,bk->bs", self._basis(z.ravel(), largest.shape[1] - 1).reshape(*z.shape, -1), largest
        )
        return Optima(
            z,
            self._back(loss),
            self._back(at_largest),
            curvature * (self._back(loss) if self.in_log else 1.0),  # (e^w)'' = e^w w'' where w' = 0
            np.array([self._modes(curve) for curve in self.curves]),
        )

    def _lowest(self, curve: Curve, coefficients: Array) -> tuple[Array, Array, Array]:
        """(z*, loss there, curvature) of each draw (B each)."""
        fine = np.linspace(curve.z[0], curve.z[-1], GRID)
        values = coefficients @ self._basis(fine, coefficients.shape[1] - 1).T  # B x GRID
        rows, inner = np.arange(len(values)), values.argmin(1).clip(1, GRID - 2)

        # The vertex of the parabola through the lowest point of the grid and its two neighbours.
        before, middle, after = (values[rows, inner + k] for k in (-1, 0, 1))
        step = float(fine[1] - fine[0])
        bend = before - 2 * middle + after
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = np.where(bend > 0, 0.5 * (before - after) / bend, np.sign(before - after))
        offset = offset.clip(-1, 1)
        lowest = middle + 0.5 * (after - before) * offset + 0.5 * bend * offset**2
        return fine[inner] + step * offset, lowest, bend / step**2

    def _modes(self, curve: Curve) -> int:
        """Minima of the measured points with a rise of more than three standard errors between them."""
        rise = 3 * math.sqrt(2) * self.noise / math.sqrt(float(np.median(curve.count)))

        count, low, high, falling = 0, math.inf, -math.inf, True
        for y in [*self._work(curve.y), math.inf]:
            if falling:
                low = min(low, y)
                if y > low + rise:
                    count, falling, high = count + 1, False, y
            else:
                high = max(high, y)
                if y < high - rise:
                    falling, low = True, y
        return count

    def is_determined(self, optimum: float, index: int) -> bool:
        """Whether an optimum lies inside the values of the HP that its size has a curve for.

        Args:
            optimum: A value of the HP.
            index: Which of the sizes.
        """
        ends = self.curves[index].z[[0, -1]]
        return bool(np.abs(ends - self.dimension.forward(optimum)).min() > 1e-6 * self.half_width)

    def at_edge(self) -> list[float]:
        """Sizes whose best value is the lowest or highest one tried."""
        found = []
        for curve in self.curves:
            best = float(curve.z[int(np.argmin(curve.y))])
            if best in curve.tried:
                found.append(curve.size)
        return found


def read_sweep(
    frame: pd.DataFrame,
    *,
    size: str,
    hp: str,
    loss: str = "loss",
    transform: str = "log",
    noise: tuple[float, int] | None = None,
) -> Sweep:
    """The sweep in a table of runs: a row per run, repeated rows (seeds) are averaged.

    Rows whose loss is missing or infinite count as diverged: tried, but no point of the curve. Points above
    `LOSS_FILTER` times the best of their size are dropped, and sizes with fewer than three points.

    Args:
        frame: The runs.
        size: Column of the size n; it may be infinite where theory gives the limit.
        hp: Column of the HP.
        loss: Column of the loss, smaller is better.
        transform: The HP's transform, as in `Dimension`.
        noise: Standard deviation of a run (of ln loss where all losses are positive) and its degrees of
            freedom, where they are known better than from repeated rows.

    Raises:
        DiagnosticError: For a missing column, values that are no numbers, an HP that never changes, or fewer
            than two sizes with three values.
        NoRunsError: If no run has finished with a finite loss.
    """
    sizes, values, losses = _columns(frame, size, hp, loss)
    known = ~np.isnan(sizes) & np.isfinite(values)
    sizes, values, losses = sizes[known], values[known], losses[known]
    if len(values) == 0 or not np.isfinite(losses).any():
        raise NoRunsError("No run has finished with a finite loss; there is nothing to diagnose.")
    if (sizes <= 0).any():
        raise DiagnosticError(f"Size {size!r} is {sizes.min():g} in one row; sizes are positive.")
    if values.min() == values.max():
        raise DiagnosticError(f"HP {hp!r} is {values[0]:g} in every run; sweep it over several values.")

    dimension = Dimension(hp, transform, float(values.min()), float(values.max()))
    z = np.array([dimension.forward(float(value)) for value in values])
    finished = losses[np.isfinite(losses)]
    work = np.log if (finished > 0).all() else np.asarray
    curves, squares, freedom = [], 0.0, 0
    for n in np.unique(sizes):
        here = sizes == n
        finite = here & np.isfinite(losses)
        if not finite.any():
            continue
        cells = pd.Series(losses[finite]).groupby(np.round(z[finite], 9))
        mean, count = cells.mean(), cells.count()
        ys = pd.Series(work(losses[finite]))
        squares += float(((ys - ys.groupby(np.round(z[finite], 9)).transform("mean")) ** 2).sum())
        freedom += int((count - 1).sum())

        best = float(mean.min())
        kept = mean <= (LOSS_FILTER * best if best > 0 else math.inf)
        if int(kept.sum()) < MIN_POINTS:
            continue
        tried = np.round(z[here], 9)
        curves.append(
            Curve(
                float(n),
                np.asarray(mean.index[kept], dtype=float),
                np.asarray(mean[kept], dtype=float),
                np.asarray(count[kept], dtype=float),
                (float(tried.min()), float(tried.max())),
            )
        )

    if len(curves) < 2:
        raise DiagnosticError(
            f"Only {len(curves)} value(s) of {size!r} have {MIN_POINTS} or more finished values of {hp!r} "
            "close to their best; run more values of it at two or more sizes."
        )
    repeated = (math.sqrt(squares / freedom) if freedom else math.nan, freedom)
    return Sweep(curves, hp, dimension, noise or repeated)


def _columns(frame: pd.DataFrame, *names: str) -> list[Array]:
    """Columns as numbers, nan where a cell is empty.

    Raises:
        DiagnosticError: For a missing column, or a cell that is no number.
    """
    for name in names:
        if name not in frame:
            known = ", ".join(map(str, frame.columns))
            raise DiagnosticError(f"The table has no column {name!r}; it has {known}.")

    columns = []
    for name in names:
        numbers: Any = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
        bad = np.flatnonzero(np.isnan(numbers) & frame[name].notna().to_numpy())
        if len(bad):
            raise DiagnosticError(
                f"Column {name!r} holds {frame[name].iloc[bad[0]]!r}, which is no number; correct that row."
            )
        columns.append(numbers)
    return columns
