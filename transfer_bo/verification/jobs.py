"""The runs that verify a suggestion: planned, compared with those of the study, and sent to workers.

A verification run is a trial like any other, stored with the study and fitted by the surrogate. It carries
what was predicted before it ran (`PREDICTION_ATTR`), so that predicted and measured stay side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial

from transfer_bo.attributes import (
    CONTROL_ATTR,
    PREDICTION_ATTR,
    PURPOSE_ATTR,
    REPLICA_ATTR,
    RUNG,
    SCALE_ATTR,
)
from transfer_bo.errors import StudyError
from transfer_bo.records import Outcome, Run, read_run
from transfer_bo.scale import Scale
from transfer_bo.store.trial_queue import fixed_params

__all__ = [
    "LEVEL",
    "Job",
    "PredictedLoss",
    "SuggestionLike",
    "check_suggestion",
    "plan",
    "replicas",
    "verified_suggestion",
]

LEVEL = 0.9
"""Probability with which the predicted interval is to hold the measured loss."""


class PredictedLoss(Protocol):
    """The part of a suggestion's predicted loss that a verification needs."""

    @property
    def mean(self) -> float:
        """Expected loss."""

    def interval(self, level: float, /) -> tuple[float, float]:
        """Lower and upper end of the interval that holds the loss with probability `level`."""


class SuggestionLike(Protocol):
    """The part of `transfer_bo.Suggestion` that a verification needs."""

    @property
    def target(self) -> Scale:
        """Where it applies."""

    @property
    def params(self) -> dict[str, Any]:
        """Its HPs, as searched."""

    @property
    def predicted_loss(self) -> PredictedLoss:
        """Its loss at the target."""


@dataclass(frozen=True)
class Job:
    """One run that is to be made at the target."""

    params: dict[str, Any]
    """Its HPs, as searched."""

    scale: Scale
    """Where it runs."""

    purpose: str
    """Either "verify", "control" or "replicate"."""

    control: str | None = None
    """Name of the setting, e.g. "defaults"; None for the suggestion itself."""

    prediction: dict[str, Any] | None = None
    """What was predicted before it ran, see `plan`; only for the suggestion's first run."""

    replica: int = 0
    """Number of the repetition, whose seed all settings share; 0 for the first run."""

    @property
    def name(self) -> str:
        """What messages call the setting."""
        return self.control or "suggestion"

    def find(self, study: optuna.Study) -> Run | None:
        """The latest run of exactly this job that is informative about its HPs, if there is one."""
        for trial in reversed(study.get_trials(deepcopy=False)):
            run = read_run(trial)
            if run.outcome.is_informative and self.matches(trial):
                return run
        return None

    def matches(self, trial: FrozenTrial) -> bool:
        """Whether a trial was made for this job."""
        run = read_run(trial)
        replica = trial.user_attrs.get(REPLICA_ATTR, 0)
        same = run.purpose == self.purpose and run.scale == self.scale and replica == self.replica

        # The enqueued values count: an objective may have HPs that are fixed, or leave some of these out.
        params = {name: value for name, value in fixed_params(trial).items() if name != RUNG}
        return bool(same and params == self.params)

    def attributes(self) -> dict[str, Any]:
        """The user attributes of this job's trial."""
        attrs: dict[str, Any] = {SCALE_ATTR: dict(self.scale), PURPOSE_ATTR: self.purpose}
        if self.control is not None:
            attrs[CONTROL_ATTR] = self.control
        if self.prediction is not None:
            attrs[PREDICTION_ATTR] = self.prediction
        if self.replica:
            attrs[REPLICA_ATTR] = self.replica
        return attrs

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON values."""
        return {**vars(self), "scale": dict(self.scale)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Job:
        """The inverse of `to_json`."""
        return cls(**{**plain, "scale": Scale(plain["scale"])})


def check_suggestion(suggestion: object) -> None:
    """Raise `StudyError` if an object is not a suggestion."""
    if not hasattr(suggestion, "predicted_loss"):
        raise StudyError(
            f"{suggestion!r} is not a suggestion; pass what transfer_bo.suggest(study) returns to verify."
        )


def plan(
    suggestion: SuggestionLike,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    n_search: int = 0,
    curve: Mapping[str, Any] | None = None,
) -> list[Job]:
    """The jobs that verify a suggestion: the suggestion itself first, then each control.

    Args:
        suggestion: What is to be verified.
        controls: Name -> HPs of runs to compare with, e.g. {"documented defaults": space.defaults}.
        n_search: Number of ended search trials that the suggestion rests on, see `verified_suggestion`.
        curve: The predicted learning curve, as `PredictedCurve.to_json` gives it; None if there is none.

    Raises:
        StudyError: If `suggestion` is not a suggestion.
    """
    check_suggestion(suggestion)
    low, high = suggestion.predicted_loss.interval(LEVEL)
    prediction = {
        "params": dict(suggestion.params),
        "loss": float(suggestion.predicted_loss.mean),
        "interval": [float(low), float(high)],
        "level": LEVEL,
        "n_search": n_search,
        "curve": None if curve is None else dict(curve),
    }
    jobs = [Job(dict(suggestion.params), suggestion.target, "verify", prediction=prediction)]
    return jobs + [
        Job(dict(params), suggestion.target, "control", control=name)
        for name, params in (controls or {}).items()
    ]


def replicas(jobs: Sequence[Job], count: int) -> list[Job]:
    """Each job again with `count` new seeds, the same seeds for all jobs (see `REPLICA_ATTR`)."""
    return [
        replace(job, purpose="replicate", control=job.name, prediction=None, replica=replica)
        for replica in range(1, count + 1)
        for job in jobs
    ]


@dataclass(frozen=True)
class _StoredLoss:
    mean: float
    bounds: tuple[float, float]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval as it was predicted, at the level of that time."""
        return self.bounds


@dataclass(frozen=True)
class _StoredSuggestion:
    target: Scale
    params: dict[str, Any]
    predicted_loss: _StoredLoss


def verified_suggestion(study: optuna.Study, target: Scale, n_search: int) -> SuggestionLike | None:
    """The suggestion that was verified at a target, if it rests on the same `n_search` search trials.

    Once a suggestion is verified, the surrogate has fitted the verification run and would suggest something
    slightly different: without this a second `verify` would train again, and judge a prediction that had
    seen the result. A suggestion that diverged is not made again: `safer.safer_suggestion` says what is next.

    Args:
        study: The study that the suggestion was made from.
        target: Where it applies.
        n_search: Number of search trials that have ended.

    Returns:
        The suggestion with its prediction as of then; None if no such verification was started, or the last
        one diverged.
    """
    for trial in reversed(study.get_trials(deepcopy=False)):
        stored = trial.user_attrs.get(PREDICTION_ATTR)
        if stored and stored["n_search"] == n_search and Scale(trial.user_attrs[SCALE_ATTR]) == target:
            if read_run(trial).outcome is Outcome.DIVERGED:
                return None
            low, high = stored["interval"]
            return _StoredSuggestion(target, stored["params"], _StoredLoss(stored["loss"], (low, high)))
    return None
