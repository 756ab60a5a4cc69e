"""One full-size run with the suggestion, and what it says about the prediction.

A verification is a trial like any other, stored with the study and learnt from by the surrogate. It carries
what was predicted before it ran (`PREDICTION_ATTR`), so that predicted and measured stay side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import (
    CONTROL_ATTR,
    FIXED_PARAMS_ATTR,
    PREDICTION_ATTR,
    PURPOSE_ATTR,
    REPLICA_ATTR,
    RUNG,
    SCALE_ATTR,
)
from transfer_bo.errors import TransferError
from transfer_bo.records import Run, read_run, read_settings
from transfer_bo.runners.worker_loop import OwnedTrial, run_trial
from transfer_bo.scale import Scale
from transfer_bo.store.heartbeat import Owner
from transfer_bo.verification.paired_test import Comparison, paired

__all__ = [
    "REPLICA_ATTR",
    "Job",
    "Verification",
    "judge",
    "known_suggestion",
    "plan",
    "replicas",
    "run_job",
    "verify",
]

LEVEL = 0.9


class _Suggestion(Protocol):
    """The part of `transfer_bo.Suggestion` that a verification needs."""

    @property
    def target(self) -> Scale: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def predicted_loss(self) -> Any: ...


@dataclass(frozen=True)
class Job:
    """One run that is to be made at the target: HPs, where, and what for."""

    params: dict[str, Any]
    scale: Scale
    purpose: str
    control: str | None = None
    prediction: dict[str, Any] | None = None
    replica: int = 0

    def find(self, study: optuna.Study) -> Run | None:
        """The latest run of exactly this job that says something about its HPs, if there is one."""
        for trial in reversed(study.get_trials(deepcopy=False)):
            run = read_run(trial)
            if run.outcome.is_informative and self.matches(trial):
                return run
        return None

    def matches(self, trial: FrozenTrial) -> bool:
        """Whether a trial is this job's."""
        run = read_run(trial)
        # What was asked for counts: an objective may have HPs that are fixed, or that it did not ask for.
        asked = {k: v for k, v in trial.system_attrs.get(FIXED_PARAMS_ATTR, {}).items() if k != RUNG}
        replica = trial.user_attrs.get(REPLICA_ATTR, 0)
        same = run.purpose == self.purpose and run.scale == self.scale and replica == self.replica
        return bool(same and asked == self.params)


@dataclass(frozen=True)
class Verification:
    """Measured beside predicted. A loss that is None was not measured: the run diverged or failed."""

    target: Scale
    measured: float | None
    predicted_mean: float
    interval: tuple[float, float]
    control: dict[str, float | None]
    """Measured loss of each control run, by name."""
    level: float = LEVEL
    maximize: bool = False
    comparisons: tuple[Comparison, ...] = ()
    """Suggestion and each control over several seeds, if they were run again."""

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the predicted interval."""
        return self.measured is not None and self.interval[0] <= self.measured <= self.interval[1]

    @property
    def text(self) -> str:
        """The verdict in words."""
        low, high = self.interval
        predicted = f"predicted {self.predicted_mean:.4f}, {self.level:.0%} interval [{low:.4f}, {high:.4f}]"
        axes = ", ".join(f"{axis} {value:g}" for axis, value in self.target.items())
        if self.measured is None:
            return f"At {axes} the suggestion did not give a loss (the run diverged or failed); {predicted}."
        words = [f"At {axes} the suggestion gave {self.measured:.4f}; {predicted}."]
        if self.inside:
            words.append("The measured value lies inside the interval.")
        else:
            side, edge = ("above", high) if self.measured > high else ("below", low)
            words.append(
                f"The measured value lies outside the interval, {abs(self.measured - edge):.4f} {side} it."
            )
        for name, loss in self.control.items():
            if loss is None:
                words.append(f"The control run with the {name} gave no loss (it diverged or failed).")
                continue
            gain = (self.measured - loss if self.maximize else loss - self.measured) / abs(loss)
            compared = f"{abs(gain):.2%} {'better' if gain > 0 else 'worse'} than" if gain else "as good as"
            words.append(f"It is {compared} the control run with the {name}, {loss:.4f}.")
        return " ".join([*words, *(comparison.text for comparison in self.comparisons)])


def plan(
    suggestion: _Suggestion, controls: Mapping[str, Mapping[str, Any]] | None = None, *, n_search: int = 0
) -> list[Job]:
    """The runs that verify a suggestion: the suggestion itself first, then each control.

    Args:
        suggestion: What is to be verified.
        controls: Name -> HPs of runs to compare with, e.g. {"documented defaults": space.defaults}.
        n_search: How many finished trials the suggestion was made from (see `known_suggestion`).
    """
    low, high = suggestion.predicted_loss.interval(LEVEL)
    prediction = {
        "params": dict(suggestion.params),
        "loss": float(suggestion.predicted_loss.mean),
        "interval": [float(low), float(high)],
        "level": LEVEL,
        "n_search": n_search,
    }
    jobs = [Job(dict(suggestion.params), suggestion.target, "verify", prediction=prediction)]
    return jobs + [
        Job(dict(params), suggestion.target, "control", control=name)
        for name, params in (controls or {}).items()
    ]


def replicas(jobs: Sequence[Job], count: int) -> list[Job]:
    """Each job again with `count` new seeds, the same seeds for all jobs (see `REPLICA_ATTR`)."""
    return [
        replace(job, purpose="replicate", control=_name(job), prediction=None, replica=replica)
        for replica in range(1, count + 1)
        for job in jobs
    ]


def _name(job: Job) -> str:
    return job.control or "suggestion"


@dataclass(frozen=True)
class _KnownLoss:
    mean: float
    bounds: tuple[float, float]

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval as it was predicted, at the level of then."""
        return self.bounds


@dataclass(frozen=True)
class _KnownSuggestion:
    target: Scale
    params: dict[str, Any]
    predicted_loss: _KnownLoss


def known_suggestion(study: optuna.Study, target: Scale, n_search: int) -> _Suggestion | None:
    """What was suggested for a target from the same `n_search` trials when it was verified, if it was.

    Once verified, the surrogate has learnt from the verification and would suggest something slightly
    different: without this a second `verify` would train all over again, and judge a prediction that knew.
    """
    for trial in reversed(study.get_trials(deepcopy=False)):
        known = trial.user_attrs.get(PREDICTION_ATTR)
        if known and known["n_search"] == n_search and Scale(trial.user_attrs[SCALE_ATTR]) == target:
            low, high = known["interval"]
            return _KnownSuggestion(target, known["params"], _KnownLoss(known["loss"], (low, high)))
    return None


def _rung_of(study: optuna.Study, scale: Scale) -> int:
    """The index of a scale on the study's ladder; `Ladder.suggest` appends a new one after those known."""
    known = read_settings(study).scales
    return known.index(scale) if scale in known else len(known)


def run_job(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    job: Job,
    *,
    owner: Owner | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> FrozenTrial | None:
    """Run exactly this job in this process, now, even if other trials are waiting in the study's queue.

    The trial is added as running, so no other worker can take it; one that was given back is taken up again.
    `study.stop()`, a spent budget and the pruner do not concern it.

    Returns:
        The ended trial; None if it was given back.
    """
    owner = owner or Owner.here()
    attrs: dict[str, Any] = {SCALE_ATTR: dict(job.scale), PURPOSE_ATTR: job.purpose, **owner.mark()}
    if job.control is not None:
        attrs[CONTROL_ATTR] = job.control
    if job.prediction is not None:
        attrs[PREDICTION_ATTR] = job.prediction
    if job.replica:
        attrs[REPLICA_ATTR] = job.replica
    trial_id = _take_up(study, job)
    if trial_id is None:
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            system_attrs={FIXED_PARAMS_ATTR: {RUNG: _rung_of(study, job.scale), **job.params}},
            user_attrs=attrs,
        )
        trial_id = study._storage.create_new_trial(study._study_id, template_trial=template)
    else:
        for key, value in attrs.items():
            study._storage.set_trial_user_attr(trial_id, key, value)
    return run_trial(study, OwnedTrial(study, trial_id, owner, stopping, prunable=False), objective)


def _take_up(study: optuna.Study, job: Job) -> int | None:
    """Take this job's trial out of the queue, if it waits there."""
    for trial in study.get_trials(deepcopy=False, states={TrialState.WAITING}):
        if job.matches(trial) and study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            return trial._trial_id
    return None


def judge(study: optuna.Study, jobs: Sequence[Job], replicate: int = 0) -> Verification:
    """The verdict on jobs that have been run, each once and `replicate` times more.

    Raises:
        TransferError: if one of them has not, or stopped with an error that says nothing about its HPs.
    """
    # The first runs were made after the search and nothing was chosen by them: a pair like any other.
    losses = [[_loss(study, each) for each in (job, *replicas([job], replicate))] for job in jobs]
    prediction = jobs[0].prediction
    assert prediction is not None
    low, high = prediction["interval"]
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    compared = [
        paired(_name(jobs[0]), _name(job), list(zip(losses[0], of_control, strict=True)), maximize)
        for job, of_control in zip(jobs[1:], losses[1:], strict=True)
        if replicate
    ]
    return Verification(
        target=jobs[0].scale,
        measured=losses[0][0],
        predicted_mean=prediction["loss"],
        interval=(low, high),
        control={str(job.control): of[0] for job, of in zip(jobs[1:], losses[1:], strict=True)},
        level=prediction["level"],
        maximize=maximize,
        comparisons=tuple(compared),
    )


def _loss(study: optuna.Study, job: Job) -> float | None:
    run = job.find(study)
    if run is None:
        again = f"Replica {job.replica} of the" if job.replica else "The"
        raise TransferError(
            f"{again} {_name(job)} has not been run at {job.scale} yet, or stopped with an error; "
            "run the verification again."
        )
    return run.loss


def verify(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], float],
    suggestion: _Suggestion,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    replicate: int = 0,
) -> Verification:
    """Run the suggestion once at its target with the user's own objective, and judge the prediction.

    The run is stored as a trial of the study, with purpose "verify", and the surrogate learns from it. A run
    that was already made with exactly these HPs at this scale is taken, not repeated.

    Args:
        study: The study that the suggestion was made from.
        objective: As given to `study.optimize`; wrapped in `transfer_bo.objective`, a diverged run is noted
            as such. It must ask for its scale with `ladder.suggest(trial)`.
        suggestion: From `transfer_bo.suggest`.
        controls: Name -> HPs of further runs at the target to compare with, e.g. the defaults.
        replicate: how often suggestion and controls are run again, for a paired test over seeds. The
            objective takes its seed from `trial.user_attrs.get(REPLICA_ATTR, 0)`.

    Raises:
        TransferError: if a run ended with an error that says nothing about its HPs.
    """
    jobs = plan(suggestion, controls)
    for job in [*jobs, *replicas(jobs, replicate)]:
        if job.find(study) is None:
            run_job(study, objective, job)
    return judge(study, jobs, replicate)
