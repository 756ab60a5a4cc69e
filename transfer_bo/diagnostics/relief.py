"""N-RReliefF: which HPs a loss depends on, from nearest neighbours in the space of HPs (arXiv:2410.08920).

Symbols: X HPs scaled to [0, 1] (m x d), y losses (m); for a run i and its k nearest others j,
d_y = |y_i - y_j| over the range of y, d_h = |x_ih - x_jh| (0 or 1 for a categorical HP),
w_ij = exp(-(rank_j / σ)²) normalised over the neighbours. Then (standard RReliefF)

    N_dY += w d_y,   N_dH[h] += w d_h,   N_dYdH[h] += w d_y d_h
    W[h] = N_dYdH[h] / N_dY - (N_dH[h] - N_dYdH[h]) / (m - N_dY)

W is large for an HP that differs where the loss differs. N: weights below zero, which mean "no influence
seen", are set to zero and the rest is divided by its sum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["NEIGHBOURS", "relief"]

Array = npt.NDArray[np.float64]

NEIGHBOURS = 70
"""k, at most: RReliefF's own default, as σ is. With 10, neighbours hardly ever differ in a categorical HP,
which then seems not to matter."""
SIGMA = 20.0
"""σ, in ranks."""


def relief(
    X: Array,
    y: Array,
    categorical: npt.NDArray[np.bool_],
    origin: npt.NDArray[np.int64] | None = None,
) -> Array:
    """Importance of each HP (d), not negative, summing to 1; all zero if nothing is seen to matter.

    Args:
        X: HPs in [0, 1] (m x d); codes of a categorical HP may be any numbers.
        y: Losses (m).
        categorical: Which columns are categorical (d).
        origin: Number of the run behind each row (m); rows of one run, as a bootstrap draws them, are no
            neighbours of each other.
    """
    m, d = X.shape
    spread = float(np.ptp(y))
    if spread == 0 or m < 3:
        return np.zeros(d)
    origin = np.arange(m) if origin is None else origin

    by_hp = np.abs(X[:, None, :] - X[None, :, :])  # m x m x d
    by_hp = np.where(categorical, by_hp > 0, by_hp)
    distance = np.where(origin[:, None] == origin[None, :], np.inf, by_hp.sum(-1))
    k = min(NEIGHBOURS, m - 1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    weight = np.exp(-((np.arange(1, k + 1) / SIGMA) ** 2)) * np.isfinite(
        np.take_along_axis(distance, nearest, 1)
    )
    total = weight.sum(1, keepdims=True)
    weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)  # m x k

    d_y = np.abs(y[:, None] - y[nearest]) / spread
    d_h = np.take_along_axis(by_hp, nearest[:, :, None], 1)  # m x k x d
    N_dY = float((weight * d_y).sum())
    N_dH = (weight[:, :, None] * d_h).sum((0, 1))
    N_dYdH = ((weight * d_y)[:, :, None] * d_h).sum((0, 1))
    if N_dY == 0:
        return np.zeros(d)
    W = np.maximum(N_dYdH / N_dY - (N_dH - N_dYdH) / max(m - N_dY, 1e-12), 0.0)
    return np.asarray(W / W.sum() if W.sum() > 0 else W)
