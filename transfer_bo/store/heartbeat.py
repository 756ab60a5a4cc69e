"""Signs of life of the owners of running trials, on any storage; trials of dead owners return to the queue.

Optuna has a heartbeat for SQL databases inside `study.optimize` only, and it compares clocks. Here a running
trial carries the name of its owner and a count that the owner's heartbeat raises every `BEAT_SECONDS`. Every
observer judges by its own clock: a trial whose owner and count have not changed during `GRACE_SECONDS` of
observation is dead. A gap between two observations counts as at most 1.5 beats; the storage or this process
was away.

A requeued trial keeps its number, HPs and curve, so that a result cannot be counted twice; taking it from the
queue is Optuna's own atomic step. If a trial is requeued while its owner still lives (on a machine that was
frozen), the owner finds another name on the trial at its next report, and drops it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import BEAT_ATTR, OUTCOME_ATTR, OWNER_LOSSES_ATTR, WORKER_ATTR
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome
from transfer_bo.secrets import hide_passwords
from transfer_bo.store.owner import has_died_here, owner_id

__all__ = [
    "BEAT_SECONDS",
    "GRACE_SECONDS",
    "MAX_OWNER_LOSSES",
    "Heartbeat",
    "dead_trials",
    "requeue",
    "requeue_dead",
]

logger = logging.getLogger(__name__)

MAX_OWNER_LOSSES = 3
"""A trial that loses more owners than this is closed as preempted: it may be the cause of their deaths."""

BEAT_SECONDS = 20.0
"""Seconds between two beats."""

GRACE_SECONDS = 120.0
"""Seconds of observation without a sign of life after which an owner is dead."""

MAX_COUNTED_BEATS = 1.5
"""A gap between two observations counts as at most this many beats; the storage or this process was away."""


def _sign_of_life(trial: FrozenTrial) -> tuple[Any, ...]:
    return (
        owner_id(trial),
        trial.user_attrs.get(BEAT_ATTR),
        trial.datetime_start,
        len(trial.intermediate_values),
    )


def requeue(study: optuna.Study, observed: FrozenTrial, *, owner_died: bool) -> bool:
    """Put a running trial back into the queue, unless it has changed since it was observed.

    Args:
        study: The study that the trial belongs to.
        observed: The trial as it was when it was judged.
        owner_died: Whether its owner died. A stop in order does not count against the trial; after more than
            `MAX_OWNER_LOSSES` deaths the trial is closed as preempted instead.

    Returns:
        Whether this call ended the trial's running state.
    """
    storage, trial_id = study._storage, observed._trial_id

    with contextlib.suppress(UpdateFinishedTrialError, KeyError):
        current = storage.get_trial(trial_id)
        if current.state is not TrialState.RUNNING or _sign_of_life(current) != _sign_of_life(observed):
            return False

        losses = current.user_attrs.get(OWNER_LOSSES_ATTR, 0) + owner_died
        if owner_died:
            storage.set_trial_user_attr(trial_id, OWNER_LOSSES_ATTR, losses)

        # The name goes before the state: the next owner must not be judged by the name of the dead one.
        storage.set_trial_user_attr(trial_id, WORKER_ATTR, None)

        is_closed = losses > MAX_OWNER_LOSSES
        if is_closed:
            storage.set_trial_user_attr(trial_id, OUTCOME_ATTR, str(Outcome.PREEMPTED))
        storage.set_trial_state_values(trial_id, TrialState.FAIL if is_closed else TrialState.WAITING)

        logger.warning("Trial %d is %s.", current.number, "closed" if is_closed else "requeued")
        return True
    return False


def dead_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The running trials whose owner was a process of this machine that is gone.

    Until they are requeued they reserve their whole cost.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if has_died_here(trial)]


def requeue_dead(study: optuna.Study, *, owner: str | None = None, owner_died: bool = True) -> int:
    """Put the running trials of dead owners back into the queue, at once.

    Args:
        study: The study to search for such trials.
        owner: The id of an owner that is known to be gone, on whatever machine it was; None for every process
            of this machine that is gone.
        owner_died: Whether the loss counts against the trials.

    Returns:
        Number of requeued trials.
    """
    if owner is None:
        trials = dead_trials(study)
    else:
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        trials = [trial for trial in running if owner_id(trial) == owner]
    return sum(requeue(study, trial, owner_died=owner_died) for trial in trials)


class Heartbeat:
    """Beats for the running trials of some owners and requeues those of dead ones, in a thread of its own.

    Args:
        study: The study whose trials are observed.
        owners: Returns the ids of the owners that are alive, whenever it is called.
        beat: Seconds between two beats.
        grace: Seconds of observation after which an owner without a sign of life is dead.
    """

    def __init__(
        self,
        study: optuna.Study,
        owners: Callable[[], set[str]],
        *,
        beat: float = BEAT_SECONDS,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._study = study
        self._owners = owners
        self._beat = beat
        self._grace = grace
        self._count = time.time_ns() // 1_000_000  # a new process does not repeat an old one's counts
        self._observed_at: float | None = None
        self._silent: dict[
            int, tuple[tuple[Any, ...], float]
        ] = {}  # trial id -> sign of life, silent seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    @contextlib.contextmanager
    def beating(self) -> Iterator[Heartbeat]:
        """Beat until the block ends."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(timeout=1.0)  # a daemon: it may be waiting for a storage that is away

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.observe()
            except TransferError as error:  # the storage stays away; the trials' own calls report it, too
                logger.warning("%s", error)
            except Exception:
                logger.error("The heartbeat missed a beat: %s", hide_passwords(traceback.format_exc()))
            self._stop.wait(self._beat)

    def observe(self, now: float | None = None) -> None:
        """Beat once, and requeue the trials that have been silent for too long.

        Args:
            now: Seconds on this process's clock; by default what it shows.
        """
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        now = time.monotonic() if now is None else now

        # A gap between two observations counts as at most 1.5 beats; the storage or this process was away.
        passed = 0.0
        if self._observed_at is not None:
            passed = min(now - self._observed_at, MAX_COUNTED_BEATS * self._beat)
        self._observed_at = now
        self._count += 1

        owners = self._owners()
        silent = {}
        for trial in trials:
            if owner_id(trial) in owners:
                with contextlib.suppress(UpdateFinishedTrialError, KeyError):
                    self._study._storage.set_trial_user_attr(trial._trial_id, BEAT_ATTR, self._count)
                continue

            sign = _sign_of_life(trial)
            previous_sign, seconds = self._silent.get(trial._trial_id, (None, 0.0))
            seconds = seconds + passed if previous_sign == sign else 0.0
            if seconds >= self._grace or has_died_here(trial):
                requeue(self._study, trial, owner_died=True)
            else:
                silent[trial._trial_id] = (sign, seconds)
        self._silent = silent
