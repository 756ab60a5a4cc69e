"""One worker of a study, a process of this machine or a Ray task; `transfer_bo.runners.worker_pool` looks after it.

It is told: {"study": the study file, "slot": which worker it is, "jobs": the runs it is to make, or null to
search, "owner": its name on the trials it runs, "log": the file for everything it prints, "devices":
CUDA_VISIBLE_DEVICES or null}. At SIGTERM, or when its parent is gone, it writes a checkpoint, gives its trial
back and ends. The parent beats for its trial (see `transfer_bo.store.heartbeat`): a long step here can't
look like death.
"""

from __future__ import annotations

import json
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
from typing import Any

__all__ = ["MORE", "STOPPED", "STOP_SECONDS", "main", "run_task"]

STOPPED = 130
"""Exit code when it was asked to end."""
MORE = 3
"""Exit code when it was to run one trial only, and did."""
STOP_SECONDS = 12.0
"""How long giving the trial back may take before the process ends wherever it is."""

_stop = threading.Event()


def main(spec: dict[str, Any], says: Connection, lock: Connection | None) -> None:
    """As a process: work until there is nothing left to do.

    Args:
        spec: What to do, see above.
        says: Takes a sentence for the user.
        lock: Kept open; the study is locked until all its workers are gone.

    Raises:
        SystemExit: 0 when done, 2 after a sentence, 1 after a crash, `STOPPED` when asked to end.
    """
    signal.signal(signal.SIGTERM, lambda *_: _end_soon())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # for programs that it starts
        os.environ[name] = str(spec["study"]["run"]["threads"])
    if spec["devices"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec["devices"]  # read when the first tensor is put on a GPU

    _pin(spec["slot"], spec["study"]["run"]["workers"], spec["study"]["run"]["threads"])

    from transfer_bo.errors import TransferError
    from transfer_bo.secrets import hide_passwords

    try:
        _work(spec)
    except TransferError as error:
        says.send(str(error))
        sys.exit(2)
    except Exception:
        print(hide_passwords(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)
    sys.exit(STOPPED if _stop.is_set() else 0)


def run_task(spec: dict[str, Any]) -> tuple[int, str]:
    """As a Ray task: run one trial, or the jobs.

    Returns:
        What would be the exit code of a process, and what it has to say: with `MORE`, the error of a trial
        that failed.
    """
    from transfer_bo.attributes import ERROR_ATTR, OUTCOME_ATTR
    from transfer_bo.errors import TransferError
    from transfer_bo.records import Outcome
    from transfer_bo.secrets import hide_passwords

    _stop.clear()  # a process of Ray's runs many tasks
    signal.signal(signal.SIGINT, lambda *_: _stop.set())  # that is how Ray ends a task in order
    failed: list[str] = []

    def after(trial: Any) -> None:
        if trial.user_attrs.get(OUTCOME_ATTR) == Outcome.ERROR:
            failed.append(trial.user_attrs[ERROR_ATTR])

    try:
        count = _work(spec, at_most=1, after=after)
    except TransferError as error:
        return 2, str(error)
    except Exception:
        return 1, hide_passwords(traceback.format_exc())
    return (STOPPED if _stop.is_set() else MORE if count else 0), "".join(failed)


def _end_soon() -> None:
    """Ask the training loop to end; should it not come round in time, end wherever it is.

    SQLite undoes a write that was cut off, and whoever looks after the study next gives the trial back.
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


def _pin(slot: int, workers: int, threads: int) -> None:
    """Keep several workers out of each other's way, a core of its own for each thread.

    Where there are not enough cores, or the system has no such call, they stay free to move.
    """
    if workers == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if workers * threads <= len(cores):
        os.sched_setaffinity(0, cores[slot * threads : (slot + 1) * threads])


def _work(
    spec: dict[str, Any], at_most: float = math.inf, after: Callable[[Any], None] = lambda trial: None
) -> int:
    """Search, or run the jobs.

    Returns:
        How many trials of the search were run here.
    """
    from transfer_bo.study_file import StudyFile

    study_file = StudyFile.model_validate_json(json.dumps(spec["study"]))
    import optuna
    import torch
    from optuna.trial import FrozenTrial

    from transfer_bo.records import read_run
    from transfer_bo.runners.objective import objective
    from transfer_bo.runners.study_search import first_params, make_sampler, search_is_over
    from transfer_bo.runners.task import make_task
    from transfer_bo.runners.worker_loop import work
    from transfer_bo.scale import Scale
    from transfer_bo.store.heartbeat import Owner, machine
    from transfer_bo.store.open_study import open_study
    from transfer_bo.verification.jobs import Job, run_job

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(study_file.run.threads)
    task = make_task(study_file, stopping=_stop.is_set)
    owner = Owner(machine(), os.getpid(), spec["owner"])
    study = open_study(study_file, sampler=make_sampler(task), owner=owner)
    train = objective(task)

    def ended(trial: FrozenTrial) -> None:
        task.after(trial)
        after(trial)

    if spec["jobs"] is None:
        return work(
            study,
            train,
            is_over=lambda trials: search_is_over(task, study, [read_run(trial) for trial in trials]),
            first=first_params(task),
            owner=owner,
            stopping=_stop.is_set,
            after=ended,
            has_heartbeat=False,
            at_most=at_most,
        )
    for fields in spec["jobs"]:
        job = Job(**{**fields, "scale": Scale(fields["scale"])})
        if (
            not _stop.is_set() and job.find(study) is None
        ):  # a worker that replaces a dead one finds some done
            trial = run_job(study, train, job, owner=owner, stopping=_stop.is_set)
            if trial is not None:
                ended(trial)
    return 0
