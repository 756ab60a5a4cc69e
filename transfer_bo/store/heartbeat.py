"""Which running trials are alive, on any storage; those of the dead are given back to run again.

Optuna has a heartbeat for SQL databases inside `study.optimize` only, and it compares clocks. Here a running
trial carries the name of its owner and a count that its owner's heart raises every `BEAT_SECONDS`. Whoever
looks on judges by its own clock: a trial whose owner and count stay the same for `GRACE_SECONDS` of looking
is dead. Time in which nobody could look, because the storage was away, does not count.

A trial of the dead goes back into the study's queue under its own number, with its HPs and its curve, so a
result can't be counted twice; taking it from the queue is Optuna's own atomic step. Should a trial be given
back while its owner still lives (a machine that was frozen), the owner finds another name on it when it next
reports, and leaves it alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import BEAT_ATTR, OUTCOME_ATTR, OWNER_LOSSES_ATTR, WORKER_ATTR
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome

__all__ = ["Heartbeat", "Owner", "is_held", "machine", "requeue", "requeue_dead"]

logger = logging.getLogger(__name__)

MAX_OWNER_LOSSES = 3
"""A trial that loses more owners than this is closed as preempted: it may be what kills them."""
BEAT_SECONDS = 20.0
GRACE_SECONDS = 120.0


def machine() -> str:
    """Names a set of processes whose ids can be compared: host name, boot, and namespace of process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


@dataclass(frozen=True)
class Owner:
    """A process that runs trials."""

    host: str
    pid: int
    id: str

    @classmethod
    def here(cls) -> Owner:
        """This process, under a new name."""
        return cls(machine(), os.getpid(), uuid.uuid4().hex[:12])

    def mark(self) -> dict[str, Any]:
        """The attributes of a trial that this process runs."""
        return {WORKER_ATTR: {"host": self.host, "pid": self.pid, "id": self.id}}


def is_held(trial: FrozenTrial, owner: Owner) -> bool:
    """Whether a trial, freshly read, runs under this owner."""
    return trial.state is TrialState.RUNNING and _owner_id(trial) == owner.id


def _owner_id(trial: FrozenTrial) -> str | None:
    mark: dict[str, Any] | None = trial.user_attrs.get(WORKER_ATTR)
    return mark["id"] if mark else None


def _sign_of_life(trial: FrozenTrial) -> tuple[Any, ...]:
    return (
        _owner_id(trial),
        trial.user_attrs.get(BEAT_ATTR),
        trial.datetime_start,
        len(trial.intermediate_values),
    )


def requeue(study: optuna.Study, seen: FrozenTrial, *, died: bool) -> bool:
    """Put a running trial back into the queue, unless it has moved on since it was seen.

    Args:
        study: The study.
        seen: The trial as it was judged.
        died: Its owner died; else it was stopped in order, which does not count against it. After
            `MAX_OWNER_LOSSES` deaths it is closed as preempted instead.

    Returns:
        Whether it is no longer running now, by this call.
    """
    storage, trial_id = study._storage, seen._trial_id
    with contextlib.suppress(UpdateFinishedTrialError, KeyError):
        now = storage.get_trial(trial_id)
        if now.state is not TrialState.RUNNING or _sign_of_life(now) != _sign_of_life(seen):
            return False
        deaths = now.user_attrs.get(OWNER_LOSSES_ATTR, 0) + died
        if died:
            storage.set_trial_user_attr(trial_id, OWNER_LOSSES_ATTR, deaths)
        # In order: whoever takes the trial next must not be judged by the name of the dead.
        storage.set_trial_user_attr(trial_id, WORKER_ATTR, None)
        if deaths > MAX_OWNER_LOSSES:
            storage.set_trial_user_attr(trial_id, OUTCOME_ATTR, str(Outcome.PREEMPTED))
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
        else:
            storage.set_trial_state_values(trial_id, TrialState.WAITING)
        logger.warning("Trial %d is %s.", now.number, "closed" if deaths > MAX_OWNER_LOSSES else "given back")
        return True
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie: dead, but its parent has not asked for it yet.
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _died_here(trial: FrozenTrial) -> bool:
    worker: dict[str, Any] = trial.user_attrs.get(WORKER_ATTR) or {}
    return bool(worker) and worker["host"] == machine() and not _is_alive(worker["pid"])


def requeue_dead(study: optuna.Study, *, owner_id: str | None = None, died: bool = True) -> int:
    """Give back the running trials of dead processes of this machine, at once.

    Args:
        study: The study.
        owner_id: Of one that is known to be dead; None for all whose process is gone.
        died: Whether that counts against their trials.

    Returns:
        How many were given back.
    """
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _died_here(trial) if owner_id is None else _owner_id(trial) == owner_id:
            count += requeue(study, trial, died=died)
    return count


class Heartbeat:
    """Beats for the running trials of some owners and gives back those of the dead, in a thread of its own.

    Args:
        study: The study.
        owners: Gives the ids of the owners that are alive, each time it is asked.
        beat: Seconds between two beats.
        grace: Seconds of looking after which a trial that gives no sign of life is dead.
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
        self._beat, self._grace = beat, grace
        self._count = time.time_ns() // 1_000_000  # a new process does not repeat an old one's counts
        self._last_look: float | None = None
        self._silent: dict[int, tuple[tuple[Any, ...], float]] = {}  # trial id -> sign of life, seconds seen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heart")

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
                self.look()
            except TransferError as error:  # patience ended; the trials' own calls find out too
                logger.warning("%s", error)
            except Exception:
                logger.exception("The heart missed a beat.")
            self._stop.wait(self._beat)

    def look(self, now: float | None = None) -> None:
        """Beat once, and give back what has been silent for too long.

        Args:
            now: Seconds on this process's clock; by default what it shows.
        """
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        now = time.monotonic() if now is None else now
        # Of a long gap between two looks only a beat counts: the storage, or this process, was away.
        passed = 0.0 if self._last_look is None else min(now - self._last_look, 1.5 * self._beat)
        self._last_look = now
        owners = self._owners()
        self._count += 1
        silent = {}
        for trial in trials:
            if _owner_id(trial) in owners:
                with contextlib.suppress(UpdateFinishedTrialError, KeyError):
                    self._study._storage.set_trial_user_attr(trial._trial_id, BEAT_ATTR, self._count)
                continue
            sign = _sign_of_life(trial)
            before, seconds = self._silent.get(trial._trial_id, (None, 0.0))
            seconds = seconds + passed if before == sign else 0.0
            if seconds >= self._grace or _died_here(trial):
                requeue(self._study, trial, died=True)
            else:
                silent[trial._trial_id] = (sign, seconds)
        self._silent = silent
