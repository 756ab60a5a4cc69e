"""Running the jobs of a verification: all of them in this process, or one of them in a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from transfer_bo.attributes import RUNG
from transfer_bo.records import Outcome, read_runs, read_settings
from transfer_bo.scale import Scale
from transfer_bo.store.owned_trial import Objective, OwnedTrial, run_trial
from transfer_bo.store.owner import Owner
from transfer_bo.store.trial_queue import add_running_trial, take_waiting_trial
from transfer_bo.verification.jobs import LEVEL, Job, SuggestionLike, check_suggestion, plan, replicas
from transfer_bo.verification.monitor import diverging_check
from transfer_bo.verification.predicted_curve import predict_curve
from transfer_bo.verification.verdict import Verification, judge

__all__ = ["curve_of_target", "next_setting", "run_job", "verify"]


def _rung_of(study: optuna.Study, scale: Scale) -> int:
    """The index of a scale on the study's ladder; `Ladder.suggest` appends a new one at the end."""
    scales = read_settings(study).scales
    return scales.index(scale) if scale in scales else len(scales)


def run_job(
    study: optuna.Study,
    objective: Objective,
    job: Job,
    *,
    owner: Owner | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FrozenTrial | None:
    """Run exactly this job in this process, now, even if other trials are waiting in the study's queue.

    The trial is added as running, so that no other worker can take it; if it was requeued, it is taken up
    again. `study.stop()`, a spent budget and the pruner do not concern it. A run whose predicted curve is
    known ends as diverged when it is diverging (see `early_verdict`).

    Args:
        study: The study that the suggestion was made from.
        objective: Wrapped in `transfer_bo.objective`, so that every ending has its outcome.
        job: What to run.
        owner: The process that runs it; by default this one.
        should_stop: Whether this process was asked to end: the trial then returns to the queue.

    Returns:
        The ended trial; None if it returned to the queue.
    """
    owner = owner or Owner.here()
    attrs = {**job.attributes(), **owner.attributes()}

    trial_id = take_waiting_trial(study, job.matches, attrs)
    if trial_id is None:
        params = {RUNG: _rung_of(study, job.scale), **job.params}
        trial_id = add_running_trial(study, params, attrs)
    check = diverging_check(study, trial_id, job.prediction)
    trial = OwnedTrial(study, trial_id, owner, should_stop, prunable=False, on_report=check)
    return run_trial(study, trial, objective)


def curve_of_target(study: optuna.Study, suggestion: SuggestionLike) -> dict[str, Any] | None:
    """The predicted learning curve of a suggestion's run, as a `Job` takes it; None if there is none."""
    check_suggestion(suggestion)
    if study.direction != StudyDirection.MINIMIZE:
        return None
    low, high = suggestion.predicted_loss.interval(LEVEL)
    curve = predict_curve(read_runs(study), suggestion.target, suggestion.params, (low, high))
    return None if curve is None else curve.to_json()


def next_setting(study: optuna.Study, job: Job) -> dict[str, Any] | None:
    """HPs of the next safest setting, if the latest run of a job diverged; None otherwise."""
    run = job.find(study)
    if run is None or run.outcome is not Outcome.DIVERGED:
        return None
    from transfer_bo.verification.safer import safer_suggestion  # takes seconds to import

    return safer_suggestion(study, job.scale, job.params).params


def verify(
    study: optuna.Study,
    objective: Objective,
    suggestion: SuggestionLike,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    replicate: int = 0,
) -> Verification:
    """Run the suggestion once at its target with the user's own objective, and judge the prediction.

    The run is stored as a trial of the study, with purpose "verify", and the surrogate is fitted to it from
    then on. A run that was already made with exactly these HPs at this scale is used, not repeated.

    Args:
        study: The study that the suggestion was made from.
        objective: As passed to `study.optimize`; wrapped in `transfer_bo.objective`, so that a diverged run
            is recorded as such. It must ask for its scale with `ladder.suggest(trial)`.
        suggestion: From `transfer_bo.suggest`.
        controls: Name -> HPs of further runs at the target to compare with, e.g. the defaults.
        replicate: How often suggestion and controls are run again, for a paired test over seeds. The
            objective takes its seed from `trial.user_attrs.get(REPLICA_ATTR, 0)`.

    Returns:
        Measured losses beside the predicted one.

    Raises:
        StudyError: If a run ended with an error that says nothing about its HPs.
    """
    jobs = plan(suggestion, controls, curve=curve_of_target(study, suggestion))
    for job in [*jobs, *replicas(jobs, replicate)]:
        if job.find(study) is None:
            run_job(study, objective, job)
    return judge(study, jobs, replicate, next_setting(study, jobs[0]))
