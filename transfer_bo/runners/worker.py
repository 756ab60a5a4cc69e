"""One worker process of a study on this machine; `transfer_bo.runners.local` starts it and looks after it.

It reads one line of JSON from standard input: {"study": the study file, "slot": which worker it is, "jobs":
the runs it is to make, or null to search, "owner": its name on the trials it runs}. When standard input
closes, its parent wants it gone or is gone itself; then, as at SIGTERM, it writes a checkpoint, gives its
trial back and ends. The parent beats for its trial (see `transfer_bo.runners.liveness`): a long step here
can't look like death. A sentence for the user goes to standard output, everything else to standard error,
which is a log file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

__all__ = ["STOPPED", "STOP_SECONDS", "main"]

STOPPED = 130
"""Exit code when it was asked to end."""
STOP_SECONDS = 12.0
"""How long giving the trial back may take before the process ends wherever it is."""

_stop = threading.Event()


def main() -> int:
    """Work until there is nothing left to do.

    Returns:
        0 when done, 2 after a sentence for the user, 1 after a crash, `STOPPED` when asked to end.
    """
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        spec = json.loads(stdin.readline())
    signal.signal(signal.SIGTERM, lambda *_: _end_soon())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from transfer_bo.errors import TransferError, hide_passwords

    try:
        _work(spec)
    except TransferError as error:
        print(error, flush=True)
        return 2
    except Exception:
        print(hide_passwords(traceback.format_exc()), file=sys.stderr)
        return 1
    return STOPPED if _stop.is_set() else 0


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
    # A raw read: a thread waiting inside a buffered one would hold its lock when the interpreter shuts down.
    while os.read(0, 1024):
        pass
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


def _work(spec: dict[str, Any]) -> None:
    from transfer_bo.study_file import StudyFile

    study_file = StudyFile.model_validate_json(json.dumps(spec["study"]))
    _pin(spec["slot"], study_file.run.workers, study_file.run.threads)

    import optuna
    import torch

    from transfer_bo.runners.liveness import Owner, machine
    from transfer_bo.runners.loop import work
    from transfer_bo.runners.outcomes import objective
    from transfer_bo.runners.search import make_sampler, search_is_over
    from transfer_bo.runners.storage import open_study
    from transfer_bo.runners.trial import make_task
    from transfer_bo.runners.verify import Job, run_job
    from transfer_bo.scale import Scale

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(study_file.run.threads)
    task = make_task(study_file, stopping=_stop.is_set)
    owner = Owner(machine(), os.getpid(), spec["owner"])
    study = open_study(study_file, sampler=make_sampler(task), owner=owner)
    train = objective(task)

    if spec["jobs"] is None:
        work(
            study,
            train,
            is_over=lambda study: search_is_over(task, study),
            owner=owner,
            stopping=_stop.is_set,
            after=task.after,
            has_heart=False,
        )
        return
    for fields in spec["jobs"]:
        job = Job(**{**fields, "scale": Scale(fields["scale"])})
        if (
            not _stop.is_set() and job.find(study) is None
        ):  # a worker that replaces a dead one finds some done
            ended = run_job(study, train, job, owner=owner, stopping=_stop.is_set)
            if ended is not None:
                task.after(ended)


if __name__ == "__main__":
    sys.exit(main())
