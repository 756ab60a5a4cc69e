"""One worker of a study, a process of this machine or a Ray task; a `worker_pool.Pool` watches it.

At SIGTERM, or when its parent is gone, it writes a checkpoint, puts its trial back into the queue and ends.
The parent beats for its trial (see `transfer_bo.store.heartbeat`), so that a long step is not mistaken for
death.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from transfer_bo.runners.worker_spec import WorkerSpec

__all__ = [
    "CRASHED",
    "MORE_TRIALS",
    "REFUSED",
    "STOPPED",
    "STOP_SECONDS",
    "THREAD_VARIABLES",
    "main",
    "run_task",
]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables from which libraries read, when they load, how many threads to start."""

STOPPED = 130
"""Exit code after a request to end."""

REFUSED = 2
"""Exit code after an error that the user is to read, which is sent to the parent."""

CRASHED = 1
"""Exit code after any other error; the traceback is in the log."""

MORE_TRIALS = 3
"""Exit code of a worker that was to run one trial only, and did."""

STOP_SECONDS = 12.0
"""How long putting the trial back may take before the process ends in the middle of whatever it does."""

_stop = threading.Event()
"""Set when this process was asked to end."""


def main(spec_json: str, environment: dict[str, str], messages: Connection, lock: Connection | None) -> None:
    """Work until there is nothing left to do, as a process of its own.

    Args:
        spec_json: A `WorkerSpec` as JSON.
        environment: Environment variables of the process.
        messages: Takes a sentence for the user.
        lock: Kept open; the study is locked until all its workers are gone.

    Raises:
        SystemExit: 0 when done, or `REFUSED`, `CRASHED` or `STOPPED`.
    """
    signal.signal(signal.SIGTERM, lambda *_: _end_soon())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)  # before any library is loaded

    from transfer_bo.errors import TransferError
    from transfer_bo.runners.worker_spec import WorkerSpec
    from transfer_bo.secrets import hide_passwords

    spec = WorkerSpec.from_json(spec_json)
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _pin_to_cores(spec.slot, spec.study_file.run.workers, spec.study_file.run.threads)
    try:
        _work(spec)
    except TransferError as error:
        messages.send(str(error))
        sys.exit(REFUSED)
    except Exception:
        print(hide_passwords(traceback.format_exc()), file=sys.stderr)
        sys.exit(CRASHED)
    sys.exit(STOPPED if _stop.is_set() else 0)


def run_task(spec_json: str) -> tuple[int, str]:
    """Run one trial, or the jobs, as a Ray task.

    Args:
        spec_json: A `WorkerSpec` as JSON.

    Returns:
        What would be the exit code of a process, and a message for the user: with `MORE_TRIALS`, the error of
        a trial that failed.
    """
    from transfer_bo.attributes import ERROR_ATTR, OUTCOME_ATTR
    from transfer_bo.errors import TransferError
    from transfer_bo.records import Outcome
    from transfer_bo.runners.worker_spec import WorkerSpec
    from transfer_bo.secrets import hide_passwords

    _stop.clear()  # one process of Ray's runs many tasks
    signal.signal(signal.SIGINT, lambda *_: _stop.set())  # how Ray asks a task to end
    errors: list[str] = []

    def note_error(trial: FrozenTrial) -> None:
        if trial.user_attrs.get(OUTCOME_ATTR) == Outcome.ERROR:
            errors.append(trial.user_attrs[ERROR_ATTR])

    try:
        n_trials = _work(WorkerSpec.from_json(spec_json), max_trials=1, on_end=note_error)
    except TransferError as error:
        return REFUSED, str(error)
    except Exception:
        return CRASHED, hide_passwords(traceback.format_exc())

    code = STOPPED if _stop.is_set() else MORE_TRIALS if n_trials else 0
    return code, "".join(errors)


def _end_soon() -> None:
    """Ask the training loop to end; if it does not do so in time, end the process.

    SQLite undoes a write that was cut off, and the next process that observes the study requeues the trial.
    """
    if _stop.is_set():
        return
    _stop.set()

    def end() -> None:
        time.sleep(STOP_SECONDS)
        os._exit(STOPPED)

    threading.Thread(target=end, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end_soon()


def _pin_to_cores(slot: int, workers: int, threads: int) -> None:
    """Give each worker cores of its own, one for each thread.

    Where there are not enough cores, or the system has no such call, workers may use all cores.
    """
    if workers == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if workers * threads <= len(cores):
        os.sched_setaffinity(0, cores[slot * threads : (slot + 1) * threads])


def _work(
    spec: WorkerSpec, max_trials: float = math.inf, on_end: Callable[[FrozenTrial], Any] = lambda trial: None
) -> int:
    """Search, or run the jobs.

    Returns:
        Number of search trials that were run here.
    """
    import optuna
    import torch

    from transfer_bo.records import read_run
    from transfer_bo.runners.objective import objective
    from transfer_bo.runners.study_search import first_params, make_sampler, search_is_over
    from transfer_bo.runners.task import make_task
    from transfer_bo.runners.worker_loop import WorkerOptions, work
    from transfer_bo.search.pruner import RungPruner
    from transfer_bo.store.open_study import open_study
    from transfer_bo.store.owner import Owner, machine_id
    from transfer_bo.verification.running import run_job

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(spec.study_file.run.threads)
    task = make_task(spec.study_file, should_stop=_stop.is_set)
    owner = Owner(machine_id(), os.getpid(), spec.owner)
    study = open_study(spec.study_file, sampler=make_sampler(task), pruner=RungPruner(), owner=owner)
    train = objective(task)

    def end(trial: FrozenTrial) -> None:
        task.clean_up(trial)
        on_end(trial)

    if spec.jobs is None:
        options = WorkerOptions(
            owner=owner, should_stop=_stop.is_set, on_end=end, has_heartbeat=False, max_trials=max_trials
        )
        return work(
            study,
            train,
            is_over=lambda trials: search_is_over(task, study, [read_run(trial) for trial in trials]),
            first_params=first_params(task),
            options=options,
        )

    for job in spec.jobs:
        # A worker that replaces a dead one finds some jobs done.
        if not _stop.is_set() and job.find(study) is None:
            trial = run_job(study, train, job, owner=owner, should_stop=_stop.is_set)
            if trial is not None:
                end(trial)
    return 0
