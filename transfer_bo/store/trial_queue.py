"""Trials that wait, and how a process takes one of them or adds one that runs at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import FIXED_PARAMS_ATTR, SOURCE_ATTR
from transfer_bo.store.owner import Owner

__all__ = ["add_running_trial", "fixed_params", "take_trial", "take_waiting_trial"]


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """The values with which a trial was enqueued, by parameter, as `study.enqueue_trial` stores them."""
    return dict(trial.system_attrs.get(FIXED_PARAMS_ATTR, {}))


def take_trial(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    owner: Owner,
    first_params: Mapping[str, Any] | None = None,
) -> int | None:
    """Take a trial from the queue if one waits, else create one, after a single read of the study.

    Args:
        study: The study to work on.
        trials: All trials of the study, as just read.
        owner: The process that runs the trial.
        first_params: HPs of the study's first trial, not counting runs of source studies.

    Returns:
        The id of a trial that is now running; None if other processes took all that were waiting.
    """
    storage = study._storage
    study._thread_local.cached_all_trials = None  # what Optuna's samplers read for the previous trial

    waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
    trial_id = None if waiting else storage.create_new_trial(study._study_id)
    for trial in waiting:
        with contextlib.suppress(UpdateFinishedTrialError):
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                trial_id = trial._trial_id
                break
    if trial_id is None:
        return None

    if first_params:
        _fix_first_trial(study, trials, trial_id, first_params)
    _set_user_attrs(study, trial_id, owner.attributes())
    return trial_id


def _fix_first_trial(
    study: optuna.Study, trials: Sequence[FrozenTrial], trial_id: int, first_params: Mapping[str, Any]
) -> None:
    """Fix the HPs of a trial that was just taken if it is the study's first.

    Nobody enqueues the first trial, so nobody can enqueue it twice: on every storage exactly one process gets
    number 0 (or the next number after the runs of source studies). If that process dies before it has written
    the HPs, the next owner of the trial writes them.
    """
    own = [trial for trial in trials if SOURCE_ATTR not in trial.user_attrs]
    if own and own[0].state is not TrialState.WAITING:
        return

    taken = study._storage.get_trial(trial_id)
    first_number = own[0].number if own else len(trials)
    if taken.number == first_number and FIXED_PARAMS_ATTR not in taken.system_attrs:
        study._storage.set_trial_system_attr(trial_id, FIXED_PARAMS_ATTR, dict(first_params))


def take_waiting_trial(
    study: optuna.Study, matches: Callable[[FrozenTrial], bool], user_attrs: Mapping[str, Any]
) -> int | None:
    """Take a certain trial out of the queue.

    Args:
        study: The study to search.
        matches: Whether a waiting trial is the wanted one.
        user_attrs: Attributes that the trial gets once it is running.

    Returns:
        The id of the trial, which is now running; None if no such trial waits.
    """
    for trial in study.get_trials(deepcopy=False, states={TrialState.WAITING}):
        if matches(trial) and study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
            _set_user_attrs(study, trial._trial_id, user_attrs)
            return trial._trial_id
    return None


def add_running_trial(study: optuna.Study, params: Mapping[str, Any], user_attrs: Mapping[str, Any]) -> int:
    """Add a trial that is running from the start, so that no other process can take it.

    Args:
        study: The study to add to.
        params: The values that the trial's `suggest_...` calls return.
        user_attrs: Attributes of the trial, its owner's among them.

    Returns:
        The id of the trial.
    """
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        system_attrs={FIXED_PARAMS_ATTR: dict(params)},
        user_attrs=dict(user_attrs),
    )
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def _set_user_attrs(study: optuna.Study, trial_id: int, user_attrs: Mapping[str, Any]) -> None:
    with contextlib.suppress(UpdateFinishedTrialError):  # `run_trial` finds that the trial is not owned
        for key, value in user_attrs.items():
            study._storage.set_trial_user_attr(trial_id, key, value)
