"""Running trials of a `study.optimize` whose process was killed.

`study.optimize` has no sign of life on most storages: the trials of a killed process stay RUNNING, and would
hold their share of the budget for ever. So each trial carries the process that runs it, and other processes
of the same machine close it when that process is gone. Trials of `study.ask` carry none, because another
process than the one that asked may end them; workers have a heartbeat of their own (`store.heartbeat`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import OPTIMIZER_ATTR, OUTCOME_ATTR, WORKER_ATTR
from transfer_bo.records import Outcome
from transfer_bo.store.owner import is_alive, machine_id

__all__ = ["close_abandoned", "is_in_optimize", "mark", "of_unknown_process"]


def is_in_optimize(study: optuna.Study) -> bool:
    """Whether this thread is inside `study.optimize`."""
    return bool(study._thread_local.in_optimize_loop)


def mark(study: optuna.Study, trial: FrozenTrial) -> None:
    """Store which process runs a trial, if it runs inside `study.optimize` and others can see it."""
    if not is_in_optimize(study) or isinstance(study._storage, InMemoryStorage):
        return
    process = {"host": machine_id(), "pid": os.getpid(), "started": _start_of(os.getpid())}
    study._storage.set_trial_user_attr(trial._trial_id, OPTIMIZER_ATTR, process)


def close_abandoned(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[int]:
    """End running trials whose process was one of this machine and is gone, as preempted.

    A storage with a heartbeat of Optuna's own is left alone: Optuna ends such trials, and calls the user's
    `failed_trial_callback` for them.

    Args:
        study: the study that they belong to.
        trials: its trials.

    Returns:
        The numbers of the closed trials.
    """
    if getattr(study._storage, "get_heartbeat_interval", lambda: None)() is not None:
        return []

    closed = []
    for trial in trials:
        if trial.state is not TrialState.RUNNING or not _is_gone(trial.user_attrs.get(OPTIMIZER_ATTR)):
            continue
        # Another process may close it at the same time, or remove it.
        with contextlib.suppress(UpdateFinishedTrialError, KeyError):
            study._storage.set_trial_user_attr(trial._trial_id, OUTCOME_ATTR, str(Outcome.PREEMPTED))
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            closed.append(trial.number)
    return closed


def of_unknown_process(study: optuna.Study, trials: Iterable[FrozenTrial]) -> list[int]:
    """Numbers of the running trials of which this machine cannot say whether their process lives."""
    if isinstance(study._storage, InMemoryStorage):  # no other process can see it
        return []
    here = machine_id()
    return [
        trial.number
        for trial in trials
        if trial.state is TrialState.RUNNING
        and WORKER_ATTR not in trial.user_attrs
        and (trial.user_attrs.get(OPTIMIZER_ATTR) or {}).get("host") != here
    ]


def _is_gone(process: dict[str, Any] | None) -> bool:
    """Whether a process was one of this machine and has ended."""
    if not process or process["host"] != machine_id():
        return False
    if not is_alive(process["pid"]):
        return True
    started = _start_of(process["pid"])
    return None not in (started, process["started"]) and started != process["started"]


def _start_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot, which tells it from a later one of the same id."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None
