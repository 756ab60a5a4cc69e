"""What a process does that works on a study: ask for a trial, run it, tell, until the study is over.

In the place of `study.optimize`, which loses a trial when the storage is away for a moment, and does not know
that a trial can be given back.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import SOURCE_ATTR
from transfer_bo.errors import Preempted
from transfer_bo.store.heartbeat import BEAT_SECONDS, GRACE_SECONDS, Heartbeat, Owner, is_held, requeue

__all__ = ["OwnedTrial", "run_trial", "work"]

logger = logging.getLogger(__name__)

Objective = Callable[[optuna.Trial], float]

_FIXED = "fixed_params"
"""Trial attribute of Optuna's: HPs that a trial is to run with, as `study.enqueue_trial` sets it."""
IDLE_SECONDS = 1.0
"""How often a worker looks whether the last trials of others have ended."""


class OwnedTrial(optuna.Trial):
    """A trial in the hands of one owner; reporting finds out when it is to be left.

    Args:
        study: The study.
        trial_id: Of a trial that runs under the owner's name.
        owner: This process.
        stopping: Whether this process has been asked to end.
        prunable: Whether the study's pruner has a say.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial_id: int,
        owner: Owner,
        stopping: Callable[[], bool] = lambda: False,
        *,
        prunable: bool = True,
    ) -> None:
        super().__init__(study, trial_id)
        self._owner = owner
        self._stopping = stopping
        self._prunable = prunable

    def report(self, value: float, step: int) -> None:
        """As in Optuna, but a trial that runs again may report what it has reported before.

        Raises:
            Preempted: if the trial is in other hands now, or this process is to end.
        """
        now = self.storage.get_trial(self._trial_id)
        if not is_held(now, self._owner):
            raise Preempted(f"Trial {self.number} is in other hands now.")
        if step not in now.intermediate_values:
            super().report(value, step)
        if self._stopping():
            raise Preempted(f"Trial {self.number} is given back.")

    def should_prune(self) -> bool:
        """As in Optuna; never for a trial that is to run to its end."""
        return self._prunable and super().should_prune()


def run_trial(study: optuna.Study, trial: OwnedTrial, objective: Objective) -> FrozenTrial | None:
    """Run a trial that is held, and tell how it ended.

    Args:
        study: The study.
        trial: Held by this process.
        objective: Wrapped in `transfer_bo.objective`, so that every ending has its outcome.

    Returns:
        The ended trial; None if it has been given back, or was lost to another process.

    Raises:
        Whatever `objective` raises, but not `TrialPruned` and `Preempted`; the trial has ended then.
    """
    state: TrialState | None = None
    value: float | None = None
    raised: BaseException | None = None
    try:
        value = float(objective(trial))
        state = TrialState.COMPLETE if value == value else TrialState.FAIL  # nan: see `transfer_bo.objective`
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (Preempted, KeyboardInterrupt, SystemExit) as error:
        raised = error
    except Exception as error:
        raised, state = error, TrialState.FAIL

    now = study._storage.get_trial(trial._trial_id)
    ended: FrozenTrial | None = None
    if not is_held(now, trial._owner):
        logger.warning("Trial %d is in other hands now; what it gave here is left out.", trial.number)
        if isinstance(raised, UpdateFinishedTrialError):
            return None  # it was ended elsewhere while the objective wrote to it
    elif state is None:
        requeue(study, now, died=isinstance(raised, Preempted) and raised.died)
    else:
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # lost at the very last moment
            ended = study.tell(trial.number, value if state is TrialState.COMPLETE else None, state=state)
    if raised is not None and not isinstance(raised, Preempted):
        raise raised
    return ended


def _take(study: optuna.Study, trials: Sequence[FrozenTrial], first: Mapping[str, Any] | None) -> int | None:
    """A trial from the queue if any waits, else a new one: as `study.ask`, from one look at the study.

    Args:
        study: The study.
        trials: All of it, as just read.
        first: HPs of the first trial, past runs aside.

    Returns:
        The id of a trial that runs now; None if others took what was waiting.
    """
    storage = study._storage
    study._thread_local.cached_all_trials = None  # what Optuna's samplers read for the trial before
    waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
    trial_id = None if waiting else storage.create_new_trial(study._study_id)
    for trial in waiting:
        with contextlib.suppress(UpdateFinishedTrialError):
            if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                trial_id = trial._trial_id
                break
    # Nobody queues the first trial, so nobody can queue it twice: on any storage one process gets number 0
    # (behind past runs, the next). Should that die before it has written this, whoever takes the trial next
    # does.
    own = [trial for trial in trials if SOURCE_ATTR not in trial.user_attrs]
    if first and trial_id is not None and (not own or own[0].state is TrialState.WAITING):
        taken = storage.get_trial(trial_id)
        if taken.number == (own[0].number if own else len(trials)) and _FIXED not in taken.system_attrs:
            storage.set_trial_system_attr(trial_id, _FIXED, dict(first))
    return trial_id


def work(
    study: optuna.Study,
    objective: Objective,
    *,
    is_over: Callable[[list[FrozenTrial]], bool],
    first: Mapping[str, Any] | None = None,
    owner: Owner | None = None,
    stopping: Callable[[], bool] = lambda: False,
    after: Callable[[FrozenTrial], Any] = lambda trial: None,
    has_heartbeat: bool = True,
    beat: float = BEAT_SECONDS,
    grace: float = GRACE_SECONDS,
    at_most: float = math.inf,
) -> int:
    """Run trials until the study is over and no trial is running anywhere.

    A worker with nothing left to do waits for the others: if one of them dies, its trial is run here.

    Args:
        study: The study, on a storage of `transfer_bo.store.open_study.open_storage`.
        objective: Wrapped in `transfer_bo.objective`.
        is_over: Whether, by all trials there are, no new one is to be started; asked when none waits.
        first: HPs of the study's first trial, whichever process runs it.
        owner: Who runs the trials: as the storage marks new ones; by default this process.
        stopping: Whether this process has been asked to end: the running trial is given back.
        after: Called with each trial that ended here.
        has_heartbeat: Whether to beat for the own trial and look after the others; a parent may do it instead.
        beat: Seconds between two beats.
        grace: Seconds without a sign of life after which a trial is dead.
        at_most: Trials to run here; then it is left to others.

    Returns:
        How many trials were run here, to whatever end.

    Raises:
        transfer_bo.TransferError: if the storage stays away, or for what the objective has to say.
    """
    owner = owner or Owner.here()
    heart = Heartbeat(study, lambda: {owner.id}, beat=beat, grace=grace)
    with heart.beating() if has_heartbeat else contextlib.nullcontext():
        count = 0
        while count < at_most and not stopping():
            trials = study.get_trials(deepcopy=False)
            states = {trial.state for trial in trials}
            if TrialState.WAITING not in states and is_over(trials):
                if TrialState.RUNNING not in states:
                    break
                time.sleep(min(IDLE_SECONDS, beat))
                continue
            trial_id = _take(study, trials, first)
            if trial_id is None:
                continue
            count += 1
            with contextlib.suppress(UpdateFinishedTrialError):  # `run_trial` finds that it is not held
                for key, value in owner.mark().items():
                    study._storage.set_trial_user_attr(trial_id, key, value)
            ended = run_trial(study, OwnedTrial(study, trial_id, owner, stopping), objective)
            if ended is not None:
                after(ended)
    return count
