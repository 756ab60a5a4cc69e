"""Watching runs at the target while they run: stop one that diverges, tell how the others are doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from transfer_bo.attributes import PREDICTION_ATTR
from transfer_bo.errors import Diverged
from transfer_bo.records import read_run
from transfer_bo.verification.early_verdict import EarlyVerdict, Track, judge_early
from transfer_bo.verification.predicted_curve import PredictedCurve

__all__ = ["Watch", "diverging_check", "stored_curve"]


def stored_curve(prediction: Mapping[str, Any] | None) -> PredictedCurve | None:
    """The predicted curve in a stored prediction; None if it holds none, or one of an earlier release."""
    curve = (prediction or {}).get("curve")
    return None if curve is None or "asymptote" in curve else PredictedCurve.from_json(curve)


def diverging_check(
    study: optuna.Study, trial_id: int, prediction: Mapping[str, Any] | None
) -> Callable[[float, int], None]:
    """A function to be called after each report of a trial, which ends it when it diverges.

    It raises `Diverged`. Reports of earlier attempts of the same trial count, too.
    """
    predicted = stored_curve(prediction)

    def check(value: float, step: int) -> None:
        if predicted is None:
            return
        verdict = judge_early(predicted, read_run(study._storage.get_trial(trial_id)).curve)
        if verdict.track is Track.DIVERGING:
            raise Diverged(f"Stopped early: {verdict.text}.")

    return check


class Watch:
    """Early verdicts on the runs at the target that are running now, with the time left.

    Args:
        study: The study that they belong to.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._observed: dict[int, list[tuple[float, float]]] = {}

    def __call__(self) -> dict[int, tuple[str, str, float | None]]:
        """Number of each running trial with a predicted curve: verdict, the same in words, seconds left.

        Seconds are None until two reports were observed here.
        """
        found = {}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            predicted = stored_curve(trial.user_attrs.get(PREDICTION_ATTR))
            if predicted is not None:
                verdict = judge_early(predicted, read_run(trial).curve)
                remaining = self._seconds_remaining(trial.number, verdict)
                found[trial.number] = str(verdict.track), verdict.text, remaining
        return found

    def _seconds_remaining(self, number: int, verdict: EarlyVerdict) -> float | None:
        now = time.monotonic()
        observed = self._observed.setdefault(number, [])
        if verdict.progress > 0 and (not observed or verdict.progress > observed[-1][0]):
            observed.append((verdict.progress, now))
        if len(observed) < 2:
            return None

        (first, began), (last, reported) = observed[0], observed[-1]
        seconds = (1 - last) * (reported - began) / (last - first) - (now - reported)
        return max(0.0, seconds)
