"""What the first part of a run at the target says: on track, below the band, or diverging.

Losses are minimized. How often and how early each verdict is right: `studies/early_verdict`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer_bo.quantities import loss_text
from transfer_bo.verification.predicted_curve import PredictedCurve

__all__ = ["EarlyVerdict", "Track", "judge_early", "verdict_changes"]

N_ABOVE = 3
"""So many reports in a row above the band, or rising, are needed: one or two may be a spike."""

RISE = 0.1
"""Rise of the loss above its own minimum, as a share of the minimum, from which a loss that stays above the
band diverges."""


class Track(enum.StrEnum):
    """How a run at the target is doing."""

    TOO_EARLY = "too early to say"
    ON_TRACK = "on track"
    BELOW = "below the band"
    """It does worse than predicted: its loss is larger."""
    DIVERGING = "diverging"


@dataclass(frozen=True)
class EarlyVerdict:
    """The verdict on a run that has not ended."""

    track: Track
    """How it is doing."""

    progress: float
    """Of the last report, in (0, 1]; 0 if there is none."""

    loss: float | None
    """The last one reported."""

    band: tuple[float, float] | None
    """The central 90% interval of the loss that was predicted for this progress."""

    end: tuple[float, float] | None
    """Where the run should end by the form of the curve: 90% interval."""

    @property
    def text(self) -> str:
        """The verdict in words."""
        if self.loss is None:
            return f"{self.track}: no report yet"
        measured = f"{self.track}: loss {loss_text(self.loss)} at {self.progress:.0%} of the run"
        if self.band is None or self.end is None:
            return measured
        side = ", better than predicted" if self.loss < self.band[0] else ""
        return (
            f"{measured}{side}; predicted {loss_text(self.band[0])} to {loss_text(self.band[1])}; "
            f"heading for {loss_text(self.end[0])} to {loss_text(self.end[1])}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "track": str(self.track)}


def judge_early(predicted: PredictedCurve, curve: Mapping[float, float]) -> EarlyVerdict:
    """Compare what a run has reported with its predicted curve.

    Args:
        predicted: What was predicted before it ran.
        curve: Progress -> loss, as reported so far.
    """
    points = sorted(curve.items())
    if not points:
        return EarlyVerdict(Track.TOO_EARLY, 0.0, None, None, None)

    progress, loss = points[-1]
    if not math.isfinite(loss):
        return EarlyVerdict(Track.DIVERGING, progress, loss, None, None)
    if progress < predicted.progress[0]:
        return EarlyVerdict(Track.TOO_EARLY, progress, loss, None, None)

    last = [point for point in points if point[0] >= predicted.progress[0]][-N_ABOVE:]
    is_above = len(last) == N_ABOVE and all(value > predicted.band(p)[2] for p, value in last)
    track = Track.BELOW if is_above else Track.ON_TRACK
    if is_above and _is_rising(points):
        track = Track.DIVERGING

    _, *band = predicted.band(progress)
    _, *end = predicted.end_from(progress, loss)
    return EarlyVerdict(track, progress, loss, (band[0], band[1]), (end[0], end[1]))


def verdict_changes(predicted: PredictedCurve, curve: Mapping[float, float]) -> tuple[EarlyVerdict, ...]:
    """The verdicts that a run got as it went on, without repetitions.

    Args:
        predicted: What was predicted before it ran.
        curve: Progress -> loss, of the whole run.
    """
    points = sorted(curve.items())
    changes: list[EarlyVerdict] = []
    for i in range(len(points)):
        verdict = judge_early(predicted, dict(points[: i + 1]))
        if not changes or verdict.track != changes[-1].track:
            changes.append(verdict)
    return tuple(changes)


def _is_rising(points: list[tuple[float, float]]) -> bool:
    """Whether each of the last reports lies well above the smallest loss before it."""
    losses = [loss for _, loss in points]
    return len(losses) > N_ABOVE and all(losses[i] > (1 + RISE) * min(losses[:i]) for i in range(-N_ABOVE, 0))
