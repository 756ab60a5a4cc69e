"""One worker process of a study on this machine; `transfer_bo.runners.local` starts it and looks after it.

It reads one line of JSON from standard input: {"study": the study file, "slot": which worker it is, "jobs":
the runs it is to make, or null to search}. When standard input closes, its parent wants it gone or is gone
itself, and it ends. A sentence for the user goes to standard output, everything else to standard error, which
is a log file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from typing import Any

__all__ = ["main"]

STOPPED = 130
"""Exit code when the parent has hung up."""


def main() -> int:
    """Work until there is nothing left to do.

    Returns:
        0 when done, 2 after a sentence for the user, 1 after a crash.
    """
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        spec = json.loads(stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from transfer_bo.errors import TransferError

    try:
        _work(spec)
    except TransferError as error:
        print(error, flush=True)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _end_with_parent() -> None:
    # A raw read: a thread waiting inside a buffered one would hold its lock when the interpreter shuts down.
    while os.read(0, 1024):
        pass
    # At once and wherever the trial is: an exception out of the middle of a database call could leave a lock
    # behind, while SQLite undoes a write that was cut off. Whoever opens the study next marks the trial.
    os._exit(STOPPED)


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

    from transfer_bo.runners.outcomes import objective
    from transfer_bo.runners.search import make_sampler, search_is_over
    from transfer_bo.runners.storage import open_study
    from transfer_bo.runners.trial import StudyTask
    from transfer_bo.runners.verify import Job, run_job
    from transfer_bo.scale import Scale

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(study_file.run.threads)
    task = StudyTask(study_file)
    study = open_study(study_file, sampler=make_sampler(task))
    train = objective(task)

    if spec["jobs"] is not None:
        for fields in spec["jobs"]:
            job = Job(**{**fields, "scale": Scale(fields["scale"])})
            if job.find(study) is None:  # a worker that replaces a dead one finds some done
                run_job(study, train, job)
        return

    def stop_when_over(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
        if search_is_over(task, study):
            study.stop()

    if not search_is_over(task, study):
        study.optimize(train, callbacks=[stop_when_over])


if __name__ == "__main__":
    sys.exit(main())
