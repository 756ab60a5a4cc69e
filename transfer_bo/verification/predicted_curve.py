"""The learning curve that is predicted for a run at the target, from the curves of the proxies.

The loss above its asymptote, divided by what remains of it at the end, is nearly the same function of
progress for all well-tuned models of a family ("scaling collapse", arXiv:2507.02119). So the curves of the
best proxies give the form of the target's, and the predicted final loss gives its height.

Symbols (losses are minimized):
    p: Progress through the run, in (0, 1].
    L: Loss of a run at p, and L_end its final loss.
    E: Asymptote of the losses, common to all scales.
    r: Ratio of losses above the asymptote, r(p) = (L(p) - E) / (L_end - E).
    x: Size of a run compared with the target's, log2 of their costs' ratio; 0 at the target.

ln r(p) is a straight line in x at each p; its value at x = 0, with the spread of the proxies about the
line, is the prediction. E is the one with which the smaller proxies predict the curves of the largest ones
best.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_bo.records import FinishedRun, Run, finished_runs
from transfer_bo.scale import Scale, default_cost

__all__ = ["PredictedCurve", "predict_curve"]

Floats = npt.NDArray[np.float64]

BEST_SHARE = 1 / 3
"""Share of the runs of each rung whose curves are used, the best: those of poor settings have other forms."""

MIN_CURVES = 4
"""So many curves are needed; with fewer their spread is unknown."""

SLOPE_SD = 2.0
"""Prior standard deviation of the slope per doubling of the cost, in units of the prior guess of the spread.
Collapse is nearly exact in compute-optimal training, less so where tokens and parameters grow differently."""

SPREAD_PRIOR = 0.02, 2.0
"""Prior guess of the spread of losses about the line, as a share of the final loss; its weight in curves."""

ASYMPTOTES = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Asymptotes that are tried, as shares of the smallest loss."""

N_POINTS = 40
"""Points of the predicted curve."""

SD_OF_90 = 1.6448536269514722
"""Half width of a normal distribution's central 90% interval, in standard deviations."""


@dataclass(frozen=True)
class PredictedCurve:
    """The predicted loss of one run at each progress, with a central 90% band."""

    asymptote: float
    """E."""

    progress: tuple[float, ...]
    """Ascending; the first is the first report of all proxies, the last is 1."""

    log_ratio: tuple[float, ...] = field(repr=False)
    """Mean of ln r at each progress."""

    log_ratio_sd: tuple[float, ...] = field(repr=False)
    """Its predictive standard deviation for one new run at the target."""

    log_end: float
    """Mean of ln(L_end - E) at the target, as the surrogate predicts it."""

    log_end_sd: float
    """Its standard deviation."""

    n_curves: int
    """Number of proxies that it rests on."""

    def ratio_at(self, progress: float) -> tuple[float, float]:
        """Mean and standard deviation of ln r at a progress."""
        mean, sd = (np.interp(progress, self.progress, of) for of in (self.log_ratio, self.log_ratio_sd))
        return float(mean), float(sd)

    def band(self, progress: float) -> tuple[float, float, float]:
        """Median, lower and upper end of the loss's central 90% interval at a progress."""
        mean, sd = self.ratio_at(progress)
        middle = self.log_end + mean
        half = SD_OF_90 * math.hypot(sd, self.log_end_sd)
        low, median, high = (self.asymptote + math.exp(middle + d) for d in (-half, 0.0, half))
        return median, low, high

    def end_from(self, progress: float, loss: float) -> tuple[float, float, float]:
        """Where a run with this loss should end by the form of the curve alone: median, 90% interval."""
        mean, sd = self.ratio_at(progress)
        above = max(loss - self.asymptote, 1e-12)
        median, low, high = (self.asymptote + above * math.exp(-mean + d * SD_OF_90 * sd) for d in (0, -1, 1))
        return median, low, high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("progress", "log_ratio", "log_ratio_sd")}
        return {**vars(self), **lists}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> PredictedCurve:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {n: tuple(of) if isinstance(of, list) else of for n, of in plain.items()}
        return cls(**values)


def predict_curve(
    runs: Collection[Run], target: Scale, interval: tuple[float, float]
) -> PredictedCurve | None:
    """Predict the learning curve of a run at the target.

    Args:
        runs: Of the study; only finished runs of its search with a curve are used.
        target: Where the run is to be made.
        interval: Central 90% interval of its final loss.

    Returns:
        None if there are too few curves, or a loss that is not positive (a metric to maximize, say).
    """
    used = _best_with_curves([run for run in finished_runs(runs) if run.purpose == "search"])
    low, _ = interval
    if len(used) < MIN_CURVES or low <= 0 or any(run.loss <= 0 for run in used):
        return None

    first = max(min(run.curve) for run in used)
    progress = np.linspace(first, 1.0, N_POINTS)
    losses = np.array([_interpolated(run, progress) for run in used])
    ends = np.array([run.loss for run in used])
    x = np.log2([default_cost(run.scale) / default_cost(target) for run in used])

    smallest = min(float(losses.min()), float(ends.min()), low)
    asymptote = max(
        (share * smallest for share in ASYMPTOTES), key=lambda e: _held_out_density(losses, ends, x, e)
    )
    mean, sd = _fit(losses, ends, x, asymptote)
    end, end_sd = _log_normal(interval, asymptote)
    return PredictedCurve(
        asymptote=asymptote,
        progress=tuple(progress.tolist()),
        log_ratio=tuple(mean.tolist()),
        log_ratio_sd=tuple(sd.tolist()),
        log_end=end,
        log_end_sd=end_sd,
        n_curves=len(used),
    )


def _best_with_curves(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The best runs of each scale, of those that reported at least twice."""
    by_scale: dict[Scale, list[FinishedRun]] = {}
    for run in runs:
        if sum(math.isfinite(loss) for loss in run.curve.values()) >= 2:
            by_scale.setdefault(run.scale, []).append(run)
    return [
        run
        for of_scale in by_scale.values()
        for run in sorted(of_scale, key=lambda run: run.loss)[: math.ceil(BEST_SHARE * len(of_scale))]
    ]


def _interpolated(run: FinishedRun, progress: Floats) -> Floats:
    points = sorted((p, loss) for p, loss in run.curve.items() if math.isfinite(loss))
    at, losses = np.array(points).T
    return np.asarray(np.interp(progress, at, losses), dtype=np.float64)


def _fit(losses: Floats, ends: Floats, x: Floats, asymptote: float) -> tuple[Floats, Floats]:
    """Predictive mean and standard deviation of ln r at x = 0, at each progress.

    A Bayesian line with a normal prior on its slope and none on its level; the variance about it is shrunk
    towards its prior guess.
    """
    log_ratio = np.log(losses - asymptote) - np.log(ends - asymptote)[:, None]
    share, weight = SPREAD_PRIOR
    guess = share * float((ends / (ends - asymptote)).mean())  # the same in loss, whatever the asymptote

    design = np.stack([np.ones_like(x), x], axis=1)
    prior = np.diag([0.0, SLOPE_SD**-2])
    covariance = np.linalg.inv(design.T @ design + prior)
    line = covariance @ design.T @ log_ratio
    residuals = log_ratio - design @ line

    variance = (weight * guess**2 + (residuals**2).sum(0)) / (weight + len(x) - 1)
    return line[0], np.sqrt(variance * (1 + covariance[0, 0]))


def _held_out_density(losses: Floats, ends: Floats, x: Floats, asymptote: float) -> float:
    """Mean log density of the losses at the largest scale, predicted from the smaller ones.

    With a single scale nothing is held out, and the asymptote stays at 0.
    """
    largest = x == x.max()
    if largest.all():
        return -asymptote
    mean, sd = _fit(losses[~largest], ends[~largest], x[~largest] - x.max(), asymptote)

    above = np.log(losses[largest] - asymptote)
    z = (above - np.log(ends[largest] - asymptote)[:, None] - mean) / sd
    return float((-0.5 * z**2 - np.log(sd) - above).mean())


def _log_normal(interval: tuple[float, float], asymptote: float) -> tuple[float, float]:
    low, high = (math.log(end - asymptote) for end in interval)
    return (low + high) / 2, (high - low) / (2 * SD_OF_90)
