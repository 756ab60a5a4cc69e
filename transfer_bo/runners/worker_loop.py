"""The loop of a process that works on a study: take a trial, run it, store its result, until all is done.

It replaces `study.optimize`, which loses a trial when the storage is away for a moment, and does not know
that a trial can return to the queue.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.store.heartbeat import BEAT_SECONDS, GRACE_SECONDS, Heartbeat
from transfer_bo.store.owned_trial import Objective, OwnedTrial, run_trial
from transfer_bo.store.owner import Owner
from transfer_bo.store.trial_queue import take_trial

__all__ = ["WorkerOptions", "work"]

IDLE_SECONDS = 1.0
"""How often a worker with nothing to do checks whether the last trials of others have ended."""


def _never() -> bool:
    return False


def _ignore(trial: FrozenTrial) -> None:
    pass


@dataclass(frozen=True)
class WorkerOptions:
    """How one process works on a study."""

    owner: Owner | None = None
    """The process that runs the trials, as the storage marks new ones; by default this one."""

    should_stop: Callable[[], bool] = _never
    """Whether this process was asked to end: its running trial then returns to the queue."""

    on_end: Callable[[FrozenTrial], Any] = _ignore
    """Called with each trial that ended here."""

    has_heartbeat: bool = True
    """Whether to beat for the own trial and observe the others; a parent may do both instead."""

    beat: float = BEAT_SECONDS
    """Seconds between two beats."""

    grace: float = GRACE_SECONDS
    """Seconds of observation after which an owner without a sign of life is dead."""

    max_trials: float = math.inf
    """Trials to run here; the rest is for other processes."""


def work(
    study: optuna.Study,
    objective: Objective,
    *,
    is_over: Callable[[list[FrozenTrial]], bool],
    first_params: Mapping[str, Any] | None = None,
    options: WorkerOptions | None = None,
) -> int:
    """Run trials until the study is over and no trial is running anywhere.

    A worker with nothing left to do waits for the others: if one of them dies, its trial is run here.

    Args:
        study: The study, on a storage of `transfer_bo.store.backends.open_storage`.
        objective: Wrapped in `transfer_bo.objective`.
        is_over: Whether, given all trials, no new one is to be started; called when none waits.
        first_params: HPs of the study's first trial, whichever process runs it.
        options: How this process works; by default on its own, until the study is over.

    Returns:
        Number of trials that were run here, whatever their outcome.

    Raises:
        StorageError: If the storage stays away.
        TransferError: Whatever the objective raises.
    """
    options = options or WorkerOptions()
    owner = options.owner or Owner.here()
    heartbeat = Heartbeat(study, lambda: {owner.id}, beat=options.beat, grace=options.grace)

    with heartbeat.beating() if options.has_heartbeat else contextlib.nullcontext():
        n_trials = 0
        while n_trials < options.max_trials and not options.should_stop():
            trials = study.get_trials(deepcopy=False)
            states = {trial.state for trial in trials}
            if TrialState.WAITING not in states and is_over(trials):
                if TrialState.RUNNING not in states:
                    break
                time.sleep(min(IDLE_SECONDS, options.beat))
                continue

            trial_id = take_trial(study, trials, owner, first_params)
            if trial_id is None:
                continue
            n_trials += 1
            ended = run_trial(study, OwnedTrial(study, trial_id, owner, options.should_stop), objective)
            if ended is not None:
                options.on_end(ended)
    return n_trials
