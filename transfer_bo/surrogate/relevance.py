"""Whether an HP has had any effect on the loss of the runs: an F-test, without the surrogate's priors.

The surrogate starts from priors of how much each kind of HP matters, so where the runs say nothing of an HP
its optimum may still look known. The test has no such prior: ln loss (the surrogate's y) is regressed on a
level for each scale and on t and t² of each HP, and the two terms of one HP are left out in turn.

Symbols:
    y        transformed loss, smaller is better (n)
    t        distance of each HP from the optimum of its scale, octaves (n x d)
    F        ((RSS without the HP - RSS) / 2) / (RSS / (n - number of terms)), RSS = sum of squared residuals
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import fdtrc

__all__ = ["effect_p_values"]

MIN_RESIDUALS = 3
"""Without so many more runs than terms there is no test; nor without as many as the HPs have terms, where an
effect is hardly ever found."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def effect_p_values(t: Array, y: Array, scales: Sequence[object]) -> Array | None:
    """P-value of each HP's effect (d): how often an HP without any effect would seem to have as much.

    Args:
        t: distance of each run's HPs from the optimum of its scale (n x d), nan where it lacks an HP.
        y: their losses (n).
        scales: their scales (n).

    Returns:
        The p-values, or None if there are too few runs for a test.
    """
    t = np.nan_to_num(t)  # an HP that a run lacks adds nothing to its loss
    levels = np.array([[scale == other for other in dict.fromkeys(scales)] for scale in scales], dtype=float)
    terms = [np.column_stack([column, column**2]) for column in t.T]
    n_residuals = len(y) - sum(part.shape[1] for part in (levels, *terms) if len(part))
    if n_residuals < max(MIN_RESIDUALS, sum(part.shape[1] for part in terms)):
        return None

    full = _sum_of_squares(y, [levels, *terms])
    p_values = []
    for i in range(len(terms)):
        gain = max(_sum_of_squares(y, [levels, *terms[:i], *terms[i + 1 :]]) - full, 0.0)
        p_values.append(fdtrc(2, n_residuals, gain / 2 / max(full / n_residuals, 1e-300)))
    return np.array(p_values)


def _sum_of_squares(y: Array, terms: Sequence[Array]) -> float:
    """Of what a linear regression on some terms leaves unexplained."""
    X = np.column_stack(terms)
    coefficients, *_ = np.linalg.lstsq(X, y, rcond=None)
    return float(((y - X @ coefficients) ** 2).sum())
