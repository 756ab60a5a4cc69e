"""The landscape at the same rows for many θ: what a Markov chain asks for, thousands of times.

The formulas are those of `Landscape.values` and `LossLaw.values`. They are written again in NumPy because a
chain's arrays are small: what costs time is the number of operations, and one of NumPy's takes half as long
as one of PyTorch's. What depends on the scale alone is computed once for each distinct scale.

Symbols: as in `landscape`; u = number of distinct scales of the rows; count = number of θ.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from transfer_bo.surrogate.landscape import FLATTEN, STEEPEST, Landscape

__all__ = ["FixedRows"]

MAX_ELEMENTS = 2**17
"""Differences between rows and optima that are computed at a time: as many as a processor's cache holds."""

Array = np.ndarray[Any, np.dtype[np.float64]]


class FixedRows:
    """f at some rows as a function of θ.

    Args:
        landscape: the shape.
        X: the rows (n x row).
    """

    def __init__(self, landscape: Landscape, X: Float[Tensor, "n row"]) -> None:
        v, flags, s = (part.numpy() for part in landscape.split(X))
        self._landscape = landscape
        self._vT, self._flagsT = np.ascontiguousarray(v.T), np.ascontiguousarray(flags.T)  # d x n, k x n
        self._s, scale_of_row = np.unique(s, axis=0, return_inverse=True)  # u x a
        self._scale_of_row = scale_of_row.reshape(-1)

        slopes = np.tensordot(
            self._s, landscape.drift_mixing.numpy(), ([-1], [1])
        )  # ∂(B s)_i/∂β_i, u x d x a
        self._slopes = slopes.transpose(1, 2, 0)  # d x a x u
        self._map = landscape.optimum_map.numpy()
        self._upper = np.triu_indices(landscape.d, 1)

    def values(self, theta: Float[Array, "count p"]) -> Float[Array, "count n"]:
        """The f of each row for each θ."""
        parts = math.ceil(len(theta) * self._vT.size / MAX_ELEMENTS)
        return np.concatenate([self._values(part) for part in np.array_split(theta, max(parts, 1))])

    def _values(self, theta: Array) -> Array:
        of_row, w = self._scale_of_row, self._get(theta, "w")
        with np.errstate(over="ignore", invalid="ignore"):  # far out a bowl may be infinite
            bowl = self._unscaled_bowl(theta) * np.exp(self._log_scale(theta))[:, of_row]
            values: Array = self._law(theta)[:, of_row] + FLATTEN * np.log1p(bowl / FLATTEN)
        return values + w @ self._flagsT if w.shape[1] else values

    def _get(self, theta: Array, name: str) -> Array:
        """One block of θ, flat (count x size)."""
        return theta[:, self._landscape.part(name)]

    def _law(self, theta: Array) -> Array:
        """L at each scale (count x u)."""
        loss_law = self._landscape.loss_law
        l0, e, omega, alpha, lnzeta = (self._get(theta, name) for name in loss_law.names)
        in_sum = loss_law.in_sum.numpy()
        omega, zeta = omega[:, in_sum], np.exp(lnzeta)
        falls = math.log(2) * alpha.T[..., None] * self._s.T[:, None]  # a x count x u

        # Logarithms of the terms of the sum (terms x count x u)
        terms = np.repeat((omega - np.logaddexp.reduce(omega, 1)[:, None]).T[..., None], len(self._s), -1)
        terms[: in_sum[:-1].sum()] -= falls[in_sum[:-1]] / zeta
        largest = terms.max(0)
        log_r = zeta * (largest + np.log(np.exp(terms - largest).sum(0))) - falls[~in_sum[:-1]].sum(0)
        law: Array = l0 + np.logaddexp(-np.logaddexp(0.0, -e), log_r - np.logaddexp(0.0, e))
        return law

    def _log_scale(self, theta: Array) -> Array:
        """g + γ·s at each scale (count x u)."""
        log_scale: Array = self._get(theta, "g") + self._get(theta, "gamma") @ self._s.T
        return log_scale

    def _unscaled_bowl(self, theta: Array) -> Array:
        """Σ_i c_i q(t_i; κ_i) of each row (count x n)."""
        d, count = self._landscape.d, len(theta)
        beta = self._get(theta, "beta").reshape(count, d, self._landscape.a)
        moved = (beta.transpose(1, 0, 2) @ self._slopes).transpose(1, 0, 2)  # B s, count x d x u
        z = self._get(theta, "u")[..., None] + moved
        off = self._vT - (self._map @ z)[..., self._scale_of_row]  # v - ψ(s), count x d x n

        lnc, kappa = self._get(theta, "lnc")[..., None], self._get(theta, "kappa")[..., None]
        t = self._coupling(theta, lnc) @ off if self._get(theta, "N").shape[1] else off
        q = t * t * _curving(kappa * t)
        bowl: Array = (np.exp(lnc) * q).sum(1)
        return bowl

    def _coupling(self, theta: Array, lnc: Array) -> Array:
        """D^(-1/2) (I + N) D^(1/2), count x d x d."""
        coupling = np.tile(np.eye(self._landscape.d), (len(theta), 1, 1))
        i, j = self._upper
        coupling[:, i, j] = self._get(theta, "N") * np.exp((lnc[:, j, 0] - lnc[:, i, 0]) / 2)
        return coupling


def _curving(x: Array) -> Array:
    """q(t; κ) / t² as a function of x = κ t, see `landscape.asymmetric`."""
    small, safe = np.abs(x) < 1e-2, x.copy()
    np.putmask(safe, small, 1.0)
    growth = np.exp(np.minimum(safe, STEEPEST)) + np.maximum(safe - STEEPEST, 0.0) * math.exp(STEEPEST)
    curving: Array = 2 * (growth - safe - 1) / (safe * safe)
    np.putmask(curving, small, 1 + x / 3 + x * x / 12)
    return curving
