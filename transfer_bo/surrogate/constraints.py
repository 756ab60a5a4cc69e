"""Will a run violate one of Optuna's constraints? A small Gaussian process for each constraint.

A constraint c_j holds at 0 or below. Its values say more than whether it held, so they are what is
modelled, as in constrained Bayesian optimization (1403.5607):

    t_j             = asinh(c_j / median |c_j|)                  keeps the sign, tames the size
    cov(t, t')      = 1 + u·u' + A exp(-|z - z'|² / 2ℓ² - |s - s'|² / 2λ²) + σ² [same run]
    P(violated | x) = 1 - Π_j P(t_j(x) <= 0)

The linear part goes on where the runs end, because the target lies outside of them. Hyperparameters are
averaged over a grid, weighted by their marginal likelihood, so that no optimization can fail. Only
constraints that were violated at least once count, and what no run has varied is taken to have no effect.

Symbols:
    x, d, k, a   as in `coordinates`
    z            HPs and choices, the first d + k columns of x, each from -1 to 1 over the runs
    s            axes, the next a columns of x, in doublings
    u            z, and s from -1 to 1 over the runs
    A, ℓ, λ, σ   hyperparameters, in units of the root mean square of t where they have a unit
    g, n, m      points of the grid, runs, rows
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.surrogate.coordinates import Coordinates

__all__ = ["ConstraintModel"]

MAX_RUNS = 100
"""Only so many of the newest runs are fitted: a boundary needs few."""

MAX_VALUE = 8.0
"""|t| is limited to this, about 1500 times the median; an infinite value, or one that is no number, gets
it."""

LENGTHSCALES = (0.25, 0.5, 1.0, 2.0)
"""ℓ."""

SCALE_LENGTHSCALES = (2.0, 6.0, math.inf)
"""λ, in doublings; the last one for a constraint that does not depend on the scale but linearly."""

AMPLITUDES = (0.01, 0.1, 1.0)
"""A."""

NOISES = (1e-3, 1e-1)
"""σ: most constraints are exact, some are measured."""


class ConstraintModel:
    """P(violated) over rows of the surrogate's input.

    Args:
        coordinates: HPs and axes.
        X: rows of runs.
        values: their constraints, by name.

    Attributes:
        any_infeasible: whether a run violated a constraint.
    """

    def __init__(
        self, coordinates: Coordinates, X: Float[Tensor, "n row"], values: Sequence[Mapping[str, float]]
    ) -> None:
        self._columns = coordinates.d + coordinates.k, coordinates.a
        names = sorted({name for of_run in values for name, c in of_run.items() if not c <= 0})
        self.any_infeasible = bool(names)
        self._processes = []
        for name in names:
            having = [i for i, of_run in enumerate(values) if name in of_run][-MAX_RUNS:]
            c = torch.tensor([values[i][name] for i in having], dtype=torch.double)
            self._processes.append(_Process(*self._split(X[having]), _transform(c)))

    def probability(self, X: Float[Tensor, "m row"]) -> Float[Tensor, " m"]:
        """P(violated) of each row."""
        return 1 - self.log_holding(X).exp()

    def log_holding(self, X: Float[Tensor, "m row"]) -> Float[Tensor, " m"]:
        """ln P(all constraints hold) of each row, to compare settings that will hardly hold them."""
        log_holding = torch.zeros(len(X), dtype=torch.double)
        for process in self._processes:
            log_holding = log_holding + process.log_holding(*self._split(X))
        return log_holding

    def _split(self, X: Float[Tensor, "m row"]) -> tuple[Tensor, Tensor]:
        """The columns of HPs and choices, and those of axes."""
        n_hps, n_axes = self._columns
        return X[:, :n_hps], X[:, n_hps : n_hps + n_axes]


def _transform(c: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The t of a constraint's values."""
    size = float(c[c.isfinite()].abs().median()) if c.isfinite().any() else 1.0
    t = torch.asinh(torch.nan_to_num(c, nan=math.inf) / max(size, 1e-300))
    return t.clamp(-MAX_VALUE, MAX_VALUE)


@dataclass(frozen=True, eq=False)
class _Range:
    """What some columns cover.

    Attributes:
        middle: the middle of each column's range.
        half: half of its width; infinite for a column that does not vary, which so has no effect.
    """

    middle: Float[Tensor, " p"]
    half: Float[Tensor, " p"]

    @classmethod
    def of(cls, columns: Float[Tensor, "n p"]) -> _Range:
        """The range of some columns."""
        low, high = columns.amin(0), columns.amax(0)
        return cls((low + high) / 2, torch.where(high > low, (high - low) / 2, math.inf))

    def scaled(self, columns: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
        """From -1 to 1 over the range; 0 where a column did not vary."""
        return (columns - self.middle) / self.half


class _Process:
    """The process of one constraint.

    Args:
        hps: columns of HPs and choices of the runs.
        axes: columns of axes of the runs.
        t: transformed values.
    """

    def __init__(
        self, hps: Float[Tensor, "n hps"], axes: Float[Tensor, "n axes"], t: Float[Tensor, " n"]
    ) -> None:
        grid = list(itertools.product(LENGTHSCALES, SCALE_LENGTHSCALES, AMPLITUDES, NOISES))
        self._grid = torch.tensor(grid, dtype=torch.double)[:, :, None, None]
        self._of_hps, self._of_axes = _Range.of(hps), _Range.of(axes)
        self._hps, self._axes = hps, axes

        noise = self._grid[:, 3] ** 2 * torch.eye(len(t), dtype=torch.double)
        self._chol = torch.linalg.cholesky(self._covariance(hps, axes) + noise)
        t_units = t / (t**2).mean().sqrt().clamp(min=1e-6)
        self._residual = self._whiten(t_units[:, None].expand(len(grid), -1, 1))
        log_determinant = self._chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._weights = torch.softmax(-(self._residual**2).sum((1, 2)) / 2 - log_determinant, 0)

    def log_holding(self, hps: Float[Tensor, "m hps"], axes: Float[Tensor, "m axes"]) -> Float[Tensor, " m"]:
        """ln P(t <= 0) at each row."""
        cross = self._whiten(self._covariance(hps, axes))
        mean = (cross * self._residual).sum(1)
        u = torch.cat([self._of_hps.scaled(hps), self._of_axes.scaled(axes)], -1)
        prior_variance = 1 + (u**2).sum(-1) + self._grid[:, 2, 0]
        sd = (prior_variance - (cross**2).sum(1)).clamp(min=1e-10).sqrt()
        log_weights = self._weights.clamp(min=1e-300).log()[:, None]
        return torch.logsumexp(log_weights + torch.special.log_ndtr(-mean / sd), 0)

    def _whiten(self, columns: Float[Tensor, "g n m"]) -> Float[Tensor, "g n m"]:
        """Columns in units in which the runs' values are independent."""
        whitened: Tensor = torch.linalg.solve_triangular(self._chol, columns, upper=False)
        return whitened

    def _covariance(
        self, hps: Float[Tensor, "m hps"], axes: Float[Tensor, "m axes"]
    ) -> Float[Tensor, "g n m"]:
        """Covariance of the runs' values with those at some rows, without noise."""
        z, z_runs = self._of_hps.scaled(hps), self._of_hps.scaled(self._hps)
        s, s_runs = self._of_axes.scaled(axes), self._of_axes.scaled(self._axes)
        linear = 1 + z_runs @ z.T + s_runs @ s.T

        lengthscale, scale_lengthscale, amplitude, _ = self._grid.unbind(1)
        far_hps = ((z_runs[:, None] - z) ** 2).sum(-1)
        varied = self._of_axes.half.isfinite()
        far_axes = ((self._axes[:, None, varied] - axes[:, varied]) ** 2).sum(-1)
        exponent = far_hps / lengthscale**2 + far_axes / scale_lengthscale**2
        return linear + amplitude * torch.exp(-exponent / 2)
