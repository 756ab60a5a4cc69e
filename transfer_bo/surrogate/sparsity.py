"""Which of many HPs matter: automatic relevance determination (ARD) on slopes and curvatures.

A normal prior of the same width for all of many HPs spreads every effect over all of them. Here the width is
the HP's own and the runs decide it, so that an effect goes to the few HPs that have it. With t the distances
from a reference run, the bowl is regressed on

    b = A (e^(e/A) - 1) = level + Σ_i (slope_i t_i + curvature_i t_i²) + noise
    slope_i, curvature_i ~ N(0, 1/α_i)

where e is the excess ln loss over the best run of the same scale. This undoes the flattening of `landscape`:
with the best run δ above the optimum, b comes out divided by e^(δ/A), and less a constant. α and the variance
of the noise maximize the marginal likelihood by MacKay's fixed-point iteration (Tipping 2001, "Sparse
Bayesian learning and the relevance vector machine", equations 16 to 18, with one α for the two terms of an
HP). Then multipliers are left out (α = ∞) whose effect makes the runs hardly more likely: those without which
the runs are likelier all at once, the others one by one.

The result is a prior of each HP's curvature, and where the fit of the landscape starts. As it uses the runs
a second time (empirical Bayes), no prior is narrower than the error of the regression.

Symbols: A = FLATTEN, b, c, g as in `landscape`; n runs, d HPs, q scales (of source studies, too); k HPs with
a finite α.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.space import is_multiplier
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.fitting import STUDENT_T_DF
from transfer_bo.surrogate.landscape import FLATTEN, CurvaturePrior, optimum_sd, usual_curvature

__all__ = ["sparse_curvature"]

MAX_ITERATIONS = 100
"""Of the fixed point."""

CONVERGED = 1e-2
"""The fixed point has settled if no ln α moves by more."""

FIRST_PRECISION = 1e4
"""α at the start: an effect of .01 in ln loss per octave."""

LEAST_PRECISION = 1.0
"""The least α: an effect of 1 in ln loss per octave."""

MAX_PRECISION = 1e10
"""From this α on, an effect of 1e-5, an HP has none."""

LEVEL_PRECISION = 1e-4
"""Of the level of each scale: anything."""

NOISE_SD = priors.NOISE_SD[0]
"""Prior guess of the sd of the noise ..."""

NOISE_RUNS = 3.0
"""... worth so many runs: what a few runs leave unexplained says little of it."""

LARGEST_EXCESS = 1.0
"""Excess ln loss above which a run is taken to have this much."""

LEAST_CURVATURE = 1e-4
"""c e^g, ln loss per octave²: with less, an octave costs .01% of loss."""

FURTHEST = 1.0
"""Octaves. The optimum is taken to be so far away where the runs tell an HP's slope but not its curvature."""

DETERMINED = 2.0
"""A curvature of more than so many of its errors is determined by the runs."""

LOG_CURVATURE_SD = (0.1, 0.7)
"""Least and largest sd of the prior of ln(c e^g) of an HP with an effect; weak."""

MIN_LOG_ODDS = 2.3
"""A multiplier has an effect if with it the runs are e^2.3 = 10 times as likely: one in ten has, before any
run. Common HPs stay in the regression without evidence, too."""

MISSED_SHARE = 0.3
"""Of an HP without evidence of an effect, the prior's median is this share of the curvature that the runs
could have missed: the root mean square, if one in ten such HPs has it."""

MAX_DEPTH = 0.7
"""How far, as a share of A, the optimum may lie below the best run: further is not believable."""

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class _Runs:
    """What is regressed: levels (n x q), t (n x d), b (n), and its variance but for a common factor (n)."""

    levels: Array
    t: Array
    b: Array
    variance: Array

    def terms(self, kept: Indices) -> Array:
        """Columns of the regression: levels, slopes and curvatures of some HPs (n x (q + 2k))."""
        return np.column_stack([self.levels, self.t[:, kept], self.t[:, kept] ** 2])

    @cached_property
    def gram(self) -> Array:
        """Products of all columns, weighted by 1 / variance ((q + 2d) x (q + 2d))."""
        terms = self.terms(np.arange(self.t.shape[1]))
        gram: Array = terms.T @ (terms / self.variance[:, None])
        return gram

    @cached_property
    def moments(self) -> Array:
        """Products of all columns with b, weighted by 1 / variance (q + 2d)."""
        terms = self.terms(np.arange(self.t.shape[1]))
        moments: Array = terms.T @ (self.b / self.variance)
        return moments

    def columns(self, kept: Indices) -> Indices:
        """Where the columns of `terms(kept)` stand among those of all HPs."""
        q = self.levels.shape[1]
        return np.concatenate([np.arange(q), q + kept, q + self.t.shape[1] + kept])

    def precision(self, alpha: Array) -> Array:
        """Prior precision of each column of `terms`, given the α of its HPs."""
        return np.concatenate([np.full(self.levels.shape[1], LEVEL_PRECISION), alpha, alpha])


@dataclass(frozen=True, eq=False)
class _Regression:
    """The regression at the most likely α (d) and noise variance; all zero for HPs without an effect.

    `log_odds` is the logarithm of how much likelier the runs are with the effect of an HP than without it
    (d), by the Savage-Dickey ratio: the density of no effect, prior over posterior.
    """

    alpha: Array
    noise: float
    slope: Array
    curvature: Array
    curvature_sd: Array
    log_odds: Array
    residual: Array

    def is_weak(self) -> Flags:
        """Which HPs have an effect so far, of little evidence (d)."""
        weak: Flags = (self.alpha < MAX_PRECISION) & (self.log_odds < MIN_LOG_ODDS)
        return weak


def sparse_curvature(
    X: Float[Tensor, "n row"], y: Float[Tensor, " n"], coordinates: Coordinates
) -> tuple[CurvaturePrior, float]:
    """A prior for the curvature of each of many HPs from the runs themselves.

    Args:
        X: rows of the runs.
        y: their transformed losses, smaller is better.
        coordinates: of the rows.

    Returns:
        The prior, and the log marginal likelihood of the runs in these coordinates (but for a constant).
    """
    d = coordinates.d
    _, scales = torch.unique(X[:, d + coordinates.k :], dim=0, return_inverse=True)
    at_commonest = scales.eq(scales.bincount().argmax())
    reference = X[int(torch.where(at_commonest, y, torch.inf).argmin()), :d]
    runs = _runs((X[:, :d] - reference).numpy(), y.numpy(), scales.numpy())

    may_vanish = np.array([is_multiplier(dim.name) for dim in coordinates.numeric])
    fit = _maximize_evidence(runs, np.full(d, FIRST_PRECISION), may_vanish)
    squared = fit.residual**2 / (runs.variance * fit.noise)
    weights = np.maximum((STUDENT_T_DF + squared) / (STUDENT_T_DF + 1), 1.0)
    runs = _Runs(runs.levels, runs.t, runs.b, runs.variance * weights)
    fit = _maximize_evidence(runs, fit.alpha, may_vanish)
    while (weak := may_vanish & fit.is_weak()).any():
        weakest = np.where(weak, fit.log_odds, np.inf)
        alpha = np.where((weakest < 0) | (weakest == weakest.min()), np.inf, fit.alpha)
        fit = _maximize_evidence(runs, alpha, may_vanish)
    return _prior(runs, fit, may_vanish, reference, coordinates), _log_evidence(runs, fit)


def _runs(t: Array, y: Array, scales: Indices) -> _Runs:
    best = np.array([y[scales == scale].min() for scale in range(scales.max() + 1)])
    excess_loss = np.minimum(y - best[scales], LARGEST_EXCESS)
    return _Runs(
        levels=np.eye(len(best))[scales],
        t=t,
        b=FLATTEN * np.expm1(excess_loss / FLATTEN),
        variance=np.exp(2 * excess_loss / FLATTEN),
    )


def _maximize_evidence(runs: _Runs, alpha: Array, may_vanish: Flags) -> _Regression:
    """The fixed point from some α. That of an HP that may not vanish (d) stays at most FIRST_PRECISION."""
    n, d, q = len(runs.b), runs.t.shape[1], runs.levels.shape[1]
    noise = max(float(np.var(runs.b)), NOISE_SD**2)
    sum_of_squares = float(runs.b @ (runs.b / runs.variance))

    for _ in range(MAX_ITERATIONS):
        kept = np.flatnonzero(alpha < MAX_PRECISION)
        columns = runs.columns(kept)
        gram, moments = runs.gram[np.ix_(columns, columns)], runs.moments[columns]
        precision = runs.precision(alpha[kept])
        covariance = np.linalg.inv(gram / noise + np.diag(precision))
        mean = covariance @ moments / noise

        # How many terms of each HP the runs determine, over what these came out at
        determined = 1 - precision * covariance.diagonal()
        of_hp = determined[q:].reshape(2, -1).sum(0).clip(min=1e-12)
        squares = (mean[q:] ** 2).reshape(2, -1).sum(0).clip(min=1e-300)
        most = np.where(may_vanish[kept], MAX_PRECISION, FIRST_PRECISION)
        renewed = np.clip(of_hp / squares, LEAST_PRECISION, most)
        unexplained = max(sum_of_squares - float((2 * moments - gram @ mean) @ mean), 0.0)
        noise = (unexplained + NOISE_RUNS * NOISE_SD**2) / (
            max(n - float(determined.sum()), 0.0) + NOISE_RUNS
        )

        moved = np.abs(np.log(renewed / alpha[kept])).max(initial=0.0)
        alpha = alpha.copy()
        alpha[kept] = renewed
        if moved < CONVERGED:
            break

    pairs = np.arange(len(kept))[:, None] + np.array([0, len(kept)]) + q
    S, m = covariance[pairs[:, :, None], pairs[:, None, :]], mean[pairs]
    of_prior = np.log(precision[pairs]).sum(-1) / 2
    of_posterior = np.linalg.slogdet(S)[1] + (m * np.linalg.solve(S, m[:, :, None])[:, :, 0]).sum(-1)

    def of_all(values: Array, others: float = 0.0) -> Array:
        full = np.full(d, others)
        full[kept] = values
        return full

    return _Regression(
        alpha=alpha,
        noise=noise,
        slope=of_all(m[:, 0]),
        curvature=of_all(m[:, 1]),
        curvature_sd=of_all(np.sqrt(S[:, 1, 1])),
        log_odds=of_all(of_prior + of_posterior / 2, -np.inf),
        residual=runs.b - runs.terms(kept) @ mean,
    )


def _log_evidence(runs: _Runs, fit: _Regression) -> float:
    """Log marginal likelihood of b, but for a constant."""
    kept = np.flatnonzero(fit.alpha < MAX_PRECISION)
    terms = runs.terms(kept)
    C = np.diag(runs.variance * fit.noise) + (terms / runs.precision(fit.alpha[kept])) @ terms.T
    chol = np.linalg.cholesky(C)
    white = np.linalg.solve(chol, runs.b)
    return float(-0.5 * white @ white - np.log(chol.diagonal()).sum())


def _prior(
    runs: _Runs, fit: _Regression, may_vanish: Flags, reference: Tensor, coordinates: Coordinates
) -> CurvaturePrior:
    """The prior of ln(c e^g): from the regression where that shows an effect, else from the tables.

    For a multiplier without an effect it lies below what the runs could have missed.
    """
    has_effect = fit.log_odds >= MIN_LOG_ODDS
    is_determined = fit.curvature > DETERMINED * fit.curvature_sd
    from_slope = np.maximum(fit.curvature, np.abs(fit.slope) / (2 * FURTHEST))
    curvature = np.maximum(np.where(is_determined, fit.curvature, from_slope), LEAST_CURVATURE)
    step = np.where(has_effect, -fit.slope / (2 * curvature), 0.0)
    sd = np.clip(fit.curvature_sd / curvature, *LOG_CURVATURE_SD)

    # b was measured from the best run, δ above the optimum
    depth = np.where(has_effect, fit.slope**2 / (4 * curvature), 0.0).sum() / FLATTEN
    to_optimum = 1 / (1 - min(depth, MAX_DEPTH))

    usual, usual_sd = (part.numpy() for part in usual_curvature(coordinates))
    missed = MISSED_SHARE * _largest_missed(runs, fit, optimum_sd(coordinates).numpy())
    missed = np.log(np.maximum(missed, LEAST_CURVATURE))
    without = np.where(may_vanish, np.minimum(usual, missed), usual)
    z = coordinates.unmix @ (reference + torch.from_numpy(step))
    return CurvaturePrior(
        mean=torch.from_numpy(np.where(has_effect, np.log(curvature * to_optimum), without)),
        sd=torch.from_numpy(np.where(has_effect, sd, usual_sd)),
        optimum=torch.where(torch.from_numpy(has_effect), z, torch.nan),
    )


def _largest_missed(runs: _Runs, fit: _Regression, spread: Array) -> Array:
    """The curvature of an HP that the runs could have missed (d), given the HPs that have an effect.

    It is the error of its own curvature, or half of that of its slope over the distance at which its optimum
    is expected (`spread`), if that is less.
    """
    kept = np.flatnonzero(fit.alpha < MAX_PRECISION)
    columns, gram = runs.columns(kept), runs.gram / fit.noise
    covariance = np.linalg.inv(gram[np.ix_(columns, columns)] + np.diag(runs.precision(fit.alpha[kept])))

    common = gram[columns]
    unexplained = gram.diagonal() - (common * (covariance @ common)).sum(0)
    error = 1 / np.sqrt(np.maximum(unexplained[runs.levels.shape[1] :], 1e-12))
    of_slope, of_curvature = np.split(error, 2)
    missed: Array = np.minimum(of_curvature, of_slope / (2 * spread))
    return missed
