"""A trial in the hands of one owner: it is run to its end, or returns to the queue.

`study.optimize` loses a trial when the storage is away for a moment, and does not know that a trial can
return to the queue.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import OUTCOME_ATTR
from transfer_bo.errors import Preempted, WorkerError
from transfer_bo.store.heartbeat import requeue
from transfer_bo.store.owner import Owner, is_owned

__all__ = ["Objective", "OwnedTrial", "run_trial"]

logger = logging.getLogger(__name__)

Objective = Callable[[optuna.Trial], float]
"""Trains with the HPs that it asks of the trial; returns the loss."""


class OwnedTrial(optuna.Trial):
    """A trial that one process runs; each report finds out whether the process is to drop it.

    Args:
        study: The study that the trial belongs to.
        trial_id: Optuna's id of a trial that is running under the owner's name.
        owner: This process.
        should_stop: Whether this process was asked to end.
        prunable: Whether the study's pruner may stop the trial.
        on_report: Called with each (value, step) when it is stored; an exception that it raises ends the run.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial_id: int,
        owner: Owner,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        prunable: bool = True,
        on_report: Callable[[float, int], None] = lambda value, step: None,
    ) -> None:
        super().__init__(study, trial_id)
        self._owner = owner
        self._should_stop = should_stop
        self._prunable = prunable
        self._on_report = on_report

    @property
    def is_owned(self) -> bool:
        """Whether the storage still names this process as the trial's owner."""
        return is_owned(self.stored(), self._owner)

    def stored(self) -> FrozenTrial:
        """The trial as it stands in the storage now."""
        return self.storage.get_trial(self._trial_id)

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value, as in Optuna; a trial that runs again may repeat its reports.

        Raises:
            Preempted: If another process owns the trial now, or this process is to end.
        """
        stored = self.stored()
        if not is_owned(stored, self._owner):
            raise Preempted(f"Trial {self.number} has another owner now.")

        if step not in stored.intermediate_values:
            super().report(value, step)
        if self._should_stop():
            raise Preempted(f"Trial {self.number} returns to the queue.")
        self._on_report(value, step)

    def should_prune(self) -> bool:
        """Whether the pruner stops the trial; never for a trial that is to run to its end."""
        return self._prunable and super().should_prune()


def run_trial(study: optuna.Study, trial: OwnedTrial, objective: Objective) -> FrozenTrial | None:
    """Run an owned trial and store how it ended.

    Args:
        study: The study that the trial belongs to.
        trial: A trial that this process owns.
        objective: Wrapped in `transfer_bo.objective`, so that every ending has its outcome.

    Returns:
        The ended trial; None if it returned to the queue, or was lost to another process.

    Raises:
        Exception: Whatever `objective` raises, but `TrialPruned` and `Preempted`; the trial has then ended,
            or, after a `WorkerError` that left it without an outcome, returned to the queue.
    """
    state: TrialState | None = None
    value: float | None = None
    raised: BaseException | None = None
    try:
        value = float(objective(trial))
        state = TrialState.FAIL if math.isnan(value) else TrialState.COMPLETE
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except (Preempted, KeyboardInterrupt, SystemExit) as error:
        raised = error
    except WorkerError as error:  # this machine's, not the trial's, unless it has an outcome
        raised, state = error, TrialState.FAIL if OUTCOME_ATTR in trial.stored().user_attrs else None
    except Exception as error:
        raised, state = error, TrialState.FAIL

    stored = trial.stored()
    ended: FrozenTrial | None = None
    if not is_owned(stored, trial._owner):
        logger.warning("Trial %d has another owner now; its result here is dropped.", trial.number)
        if isinstance(raised, UpdateFinishedTrialError):
            return None  # another process ended it while the objective wrote to it
    elif state is None:
        requeue(study, stored, owner_died=isinstance(raised, Preempted) and raised.died)
    else:
        with contextlib.suppress(UpdateFinishedTrialError, ValueError):  # lost at the very last moment
            ended = study.tell(trial.number, value if state is TrialState.COMPLETE else None, state=state)

    if raised is not None and not isinstance(raised, Preempted):
        raise raised
    return ended
