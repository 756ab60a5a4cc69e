"""The learning curve that is predicted for a run at the target, from the curves of the proxies.

The loss divided by the final loss is nearly the same function of progress for all well-tuned models of a
family ("scaling collapse", arXiv:2507.02119). The curves of the best proxies give the form of the target's,
and the predicted final loss gives its height.

Symbols (losses are minimized):
    p: Progress through the run, in (0, 1].
    r: Form of a curve, r(p) = L(p) / L(1): loss at p over the final loss.
    x: Scale of a run compared with the target, log2 of the ratio along each axis; 0 at the target.
    h: HPs of a run compared with the suggested ones, log2 of the ratio of each.

ln r(p) at each p is a Gaussian process over x and h with an unknown mean: forms change smoothly with scale,
and linearly with h (a larger learning rate delays the fall of the loss). Far from the proxies it returns to
their mean, and its standard deviation grows to that of forms at unlike scales.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_bo.quantities import is_positive
from transfer_bo.records import FinishedRun, Run, finished_runs
from transfer_bo.scale import Scale

__all__ = ["FORM_PRIOR", "FormPrior", "PredictedCurve", "predict_curve"]

Floats = npt.NDArray[np.float64]

BEST_SHARE = 1 / 3
"""Share of the runs of each rung whose curves are used, the best: those of poor settings have other forms."""

MIN_CURVES = 4
"""So many curves are needed; with fewer their spread is unknown."""

N_POINTS = 40
"""Points of the predicted curve."""

SD_OF_90 = 1.6448536269514722
"""Half width of a normal distribution's central 90% interval, in standard deviations."""


@dataclass(frozen=True)
class FormPrior:
    """What is assumed of forms before any curve is seen.

    Standard deviations are multiples of the spread of ln r among runs of one scale and setting.
    """

    scale_sd: float
    """Standard deviation of forms at scales far from each other."""

    lengthscale: float
    """Of the Gaussian kernel over x, in doublings."""

    hp_sd: float
    """Standard deviation of the slope per octave of an HP."""

    share: float
    """Prior guess of the spread, as a share of the mean of ln r at the same progress; added to `noise`."""

    noise: float
    """Prior guess of the spread that does not vanish at the end of a run."""

    weight: float
    """Weight of the guessed spread beside that of the curves, in curves."""


FORM_PRIOR = FormPrior(scale_sd=9.0, lengthscale=4.5, hp_sd=0.6, share=0.16, noise=0.008, weight=4.0)
"""Fitted on one half of the curves in `studies/early_verdict`, judged on the other, by `forms.py` there."""


@dataclass(frozen=True)
class PredictedCurve:
    """The predicted loss of one run at each progress, with a central 90% band."""

    progress: tuple[float, ...]
    """Ascending; the first is the first report of all proxies, the last is 1."""

    log_ratio: tuple[float, ...] = field(repr=False)
    """Mean of ln r at each progress."""

    log_ratio_sd: tuple[float, ...] = field(repr=False)
    """Its predictive standard deviation for one new run at the target."""

    log_end: float
    """Mean of the logarithm of the final loss at the target, as the surrogate predicts it."""

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
        half = SD_OF_90 * math.hypot(sd, self.log_end_sd)
        low, median, high = (math.exp(self.log_end + mean + d) for d in (-half, 0.0, half))
        return median, low, high

    def end_from(self, progress: float, loss: float) -> tuple[float, float, float]:
        """Where a run with this loss should end by the form of the curve alone: median, 90% interval."""
        mean, sd = self.ratio_at(progress)
        median, low, high = (loss * math.exp(-mean + d * SD_OF_90 * sd) for d in (0, -1, 1))
        return median, low, high

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("progress", "log_ratio", "log_ratio_sd")}
        return {**vars(self), **lists}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> PredictedCurve:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {n: tuple(of) if isinstance(of, list) else of for n, of in plain.items()}
        return cls(**values)


def predict_curve(
    runs: Collection[Run],
    target: Scale,
    params: Mapping[str, Any],
    interval: tuple[float, float],
    prior: FormPrior = FORM_PRIOR,
) -> PredictedCurve | None:
    """Predict the learning curve of a run at the target.

    Args:
        runs: Of the study; only finished runs of its search with a curve are used.
        target: Where the run is to be made.
        params: Its HPs. Those that are not positive numbers in every run are left out of account.
        interval: Central 90% interval of its final loss.
        prior: What is assumed of the forms of curves.

    Returns:
        None if there are too few curves, or a loss that is not positive (a metric to maximize, say).
    """
    used = _best_with_curves([run for run in finished_runs(runs) if run.purpose == "search"])
    low, high = interval
    if len(used) < MIN_CURVES:
        return None

    first = max(min(run.curve) for run in used)
    progress = np.linspace(first, 1.0, N_POINTS)
    losses = np.array([_interpolated(run, progress) for run in used])
    ends = np.array([run.loss for run in used])
    if min(low, losses.min(), ends.min()) <= 0:
        return None
    log_ratios = np.log(losses / ends[:, None])
    x = np.array([[math.log2(run.scale.get(axis, of) / of) for axis, of in target.items()] for run in used])
    mean, sd = _fit(log_ratios, x, _octaves(used, params), prior)
    log_low, log_high = math.log(low), math.log(high)
    return PredictedCurve(
        progress=tuple(progress.tolist()),
        log_ratio=tuple(mean.tolist()),
        log_ratio_sd=tuple(sd.tolist()),
        log_end=(log_low + log_high) / 2,
        log_end_sd=(log_high - log_low) / (2 * SD_OF_90),
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


def _octaves(runs: Sequence[FinishedRun], params: Mapping[str, Any]) -> Floats:
    """h of each run, `runs x HPs`, for the HPs that are positive numbers in all runs."""
    columns = [
        [math.log2(run.params[hp] / value) for run in runs]
        for hp, value in params.items()
        if is_positive(value) and all(is_positive(run.params.get(hp)) for run in runs)
    ]
    return np.array(columns).reshape(len(columns), len(runs)).T


def _fit(log_ratios: Floats, x: Floats, h: Floats, prior: FormPrior) -> tuple[Floats, Floats]:
    """Predictive mean and standard deviation of ln r at x = 0 and h = 0, at each progress.

    The covariance of runs is the same at each progress up to the variance, which has an inverse-gamma prior;
    the mean has a flat one (Rasmussen and Williams 2006, section 2.7).

    Args:
        log_ratios: ln r of each run, `runs x points`.
        x: Scales, `runs x axes`.
        h: HPs, `runs x HPs`.
        prior: Of the covariance.
    """
    n_runs = len(x)
    between = ((x[:, None] - x[None]) ** 2).sum(-1)
    covariance = prior.scale_sd**2 * np.exp(-0.5 * between / prior.lengthscale**2)
    covariance += prior.hp_sd**2 * h @ h.T + np.eye(n_runs)
    with_target = prior.scale_sd**2 * np.exp(-0.5 * (x**2).sum(1) / prior.lengthscale**2)

    precision = np.linalg.inv(covariance)
    of_mean = precision.sum()
    mean = precision.sum(0) @ log_ratios / of_mean
    residuals = log_ratios - mean
    weights = precision @ with_target
    unexplained = 1 - weights.sum()
    variance = 1 + prior.scale_sd**2 - with_target @ weights + unexplained**2 / of_mean

    guess = prior.share * np.abs(mean) + prior.noise
    squares = (residuals * (precision @ residuals)).sum(0)
    spread = (prior.weight * guess**2 + squares) / (prior.weight + n_runs - 1)
    return mean + weights @ residuals, np.sqrt(variance * spread)
