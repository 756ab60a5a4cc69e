"""Run a study: start N workers, processes of this machine or Ray tasks, look after them, show how it goes.

The parent trains nothing: it beats for its workers' trials. A worker that dies is replaced, a bounded number
of times, and the trial it was running is given back, to go on from its last checkpoint. On Ctrl-C the workers
write checkpoints and give their trials back; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from transfer_bo.display.progress import Progress
from transfer_bo.errors import TransferError
from transfer_bo.records import Run, read_runs
from transfer_bo.runners import forkserver, ray_tasks
from transfer_bo.runners import worker as worker_process
from transfer_bo.runners.objective import MAX_ERRORS_IN_A_ROW
from transfer_bo.runners.study_search import search_is_over
from transfer_bo.runners.task import Task, make_task
from transfer_bo.runners.warm_start import read_new_past, refuse_missing_past
from transfer_bo.space import is_multiplier
from transfer_bo.store.heartbeat import Heartbeat, requeue_dead
from transfer_bo.store.open_study import check_storage, open_study
from transfer_bo.study_file import StudyFile
from transfer_bo.verification.jobs import Job, Verification, judge, known_suggestion, plan, replicas

__all__ = ["Pool", "devices_of", "join", "run_search", "run_verification"]

MAX_RESTARTS = 3
"""How often a worker that died is replaced: once is bad luck, more often is a fault to look into."""
POLL_SECONDS = 0.2
STOP_SECONDS = 15.0
"""How long workers may take to stop at Ctrl-C before they are killed: more than they allow themselves."""


@contextlib.contextmanager
def _only_one(study_file: StudyFile) -> Iterator[int | None]:
    """Hold the study's lock file; the workers inherit it, so it is free only when all of them are gone.

    Yields:
        The lock's file descriptor, None where there are no such locks (Windows).

    Raises:
        TransferError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    study_file.out.mkdir(parents=True, exist_ok=True)
    with (study_file.out / "run.lock").open("w") as lock:
        deadline = time.monotonic() + STOP_SECONDS  # workers of a killed run may need a moment to notice
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise study_file.says(
                        "name", "this study is running already; wait for it, or stop it."
                    ) from None
                time.sleep(POLL_SECONDS)
        yield lock.fileno()


@dataclasses.dataclass
class _Worker:
    slot: int
    spec: dict[str, Any]
    process: forkserver.ForkedWorker | ray_tasks.RayWorker

    @property
    def owner(self) -> str:
        """Its name on the trials it runs."""
        return str(self.spec["owner"])


def devices_of(slot: int, ranks: int, visible: str | None) -> str | None:
    """CUDA_VISIBLE_DEVICES for one worker: `ranks` devices of its own, as far as there are any.

    Args:
        slot: Which worker it is, from 0.
        ranks: Devices per trial.
        visible: The parent's CUDA_VISIBLE_DEVICES, comma separated; None for no GPU.

    Returns:
        The worker's devices; "" if there are none left for it, None where there is no GPU at all.
    """
    if visible is None:
        return None
    return ",".join(visible.split(",")[slot * ranks : (slot + 1) * ranks])


@contextlib.contextmanager
def _remembered() -> Iterator[Callable[[], bool]]:
    """Whether this process was asked to end: an exception raised in a destructor or a callback is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        asked.append(number)
        signal.default_int_handler(number, frame)

    ours = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.default_int_handler]
    for number in ours:
        signal.signal(number, remember)
    try:
        yield lambda: bool(asked)
    finally:
        for number in ours:
            signal.signal(number, signal.default_int_handler)


@functools.cache
def _visible_devices() -> str | None:
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return os.environ["CUDA_VISIBLE_DEVICES"] or None
    import torch

    return ",".join(map(str, range(torch.cuda.device_count()))) or None


class Pool:
    """The workers of one command.

    Args:
        study_file: What they work on.
        study: The same study as seen by the parent, to mark the trials of the dead.
        log: Where what they print goes.
        lock: File descriptor that processes keep open.
    """

    def __init__(
        self, study_file: StudyFile, study: optuna.Study, log: Path, lock: int | None = None
    ) -> None:
        self._file = study_file
        self._study = study
        self._log = log
        self._lock = lock
        self._restarts = 0
        self._errors = 0
        self._on_ray = study_file.run.runner == "ray"
        if self._on_ray:
            ray_tasks.connect()
        self.workers: list[_Worker] = []

    def start(self, slot: int, jobs: list[Job] | None) -> None:
        """Start a worker: `jobs` to run, or None to search."""
        spec = {
            "study": self._file.model_dump(mode="json"),
            "slot": slot,
            "jobs": None if jobs is None else [_job_to_json(job) for job in jobs],
        }
        self._spawn(slot, spec)

    def owners(self) -> set[str]:
        """The names of the workers that are alive, or were when they were last looked at."""
        return {worker.owner for worker in list(self.workers)}

    def _spawn(self, slot: int, spec: Mapping[str, Any]) -> None:
        spec = {
            **spec,
            "owner": uuid.uuid4().hex[:12],
            "log": str(self._log),
            # Ray gives out GPUs itself.
            "devices": None if self._on_ray else devices_of(slot, self._file.run.ranks, _visible_devices()),
        }
        process = ray_tasks.RayWorker(spec) if self._on_ray else forkserver.ForkedWorker(spec, self._lock)
        self.workers.append(_Worker(slot, spec, process))

    def wait(self, tick: Callable[[], None], note: Callable[[str], None]) -> None:
        """Until all workers are done, replacing those that die.

        Raises:
            TransferError: what a worker had to say, or that workers keep dying.
        """
        with _remembered() as was_asked:
            while self.workers:
                for worker in list(self.workers):
                    code = worker.process.exitcode
                    if code is not None:
                        self.workers.remove(worker)
                        self._ended(worker, code, note)
                tick()
                time.sleep(POLL_SECONDS)
                if was_asked():
                    raise KeyboardInterrupt

    def _ended(self, worker: _Worker, code: int, note: Callable[[str], None]) -> None:
        said = worker.process.said
        if code == 0:
            return
        if code == worker_process.MORE:
            self._restarts = 0  # somebody gets on
            self._errors = self._errors + 1 if said else 0
            if self._errors >= MAX_ERRORS_IN_A_ROW:
                raise TransferError(
                    f"{self._errors} trials in a row failed, the last with {said}. "
                    "Mend it and run again; finished trials are kept."
                )
            self._spawn(worker.slot, worker.spec)
            return
        was_asked = code in (worker_process.STOPPED, -signal.SIGTERM)
        requeue_dead(self._study, owner_id=worker.owner, died=not was_asked)
        if was_asked:  # somebody wants this core or GPU back
            note("A worker was asked to stop; its trial is given back.")
            return
        if code == 2:
            raise TransferError(said.strip() or f"A worker stopped without saying why; see {self._log}.")
        with self._log.open("a") as log:
            log.write(said)
        if self._restarts >= MAX_RESTARTS * self._file.run.workers:
            raise TransferError(
                f"Workers died {self._restarts + 1} times, last with exit code {code}; "
                f"look into {self._log}, then run again: finished trials are kept."
            )
        self._restarts += 1
        note(f"A worker died (exit code {code}); its trial is given back and a new worker starts.")
        self._spawn(worker.slot, worker.spec)

    def stop(self) -> None:
        """Stop all workers; after `STOP_SECONDS` the hard way. Their trials are given back."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join(STOP_SECONDS)
            requeue_dead(self._study, owner_id=worker.owner, died=False)
        self.workers = []


def _job_to_json(job: Job) -> dict[str, Any]:
    fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    return {**fields, "scale": dict(job.scale)}


def _project(study_file: StudyFile) -> Any:
    from transfer_bo.projection import suggest

    return suggest(open_study(study_file), target=study_file.target)


def _run_pool(pool: Pool, study: optuna.Study, start: Callable[[], None], progress: Progress) -> None:
    with Heartbeat(study, pool.owners).beating(), progress:
        try:
            start()
            pool.wait(progress.update, progress.note)
        finally:
            pool.stop()


def run_search(study_file: StudyFile, console: Console) -> bool:
    """Search until the budget is spent; goes on where an earlier run stopped.

    Returns:
        Whether there was anything left to do.

    Raises:
        TransferError: for bad input (nothing is written then), or workers that keep failing.
        KeyboardInterrupt: on Ctrl-C, when the workers have stopped, and if all of them were asked to.
    """
    check_storage(study_file)
    task = make_task(study_file)
    found = read_new_past(task)
    study = open_study(study_file, definition=task.definition())
    with _only_one(study_file) as lock:
        for past in found:
            console.print(past.words, highlight=False, markup=False, soft_wrap=True)
            past.store(study)
        return _search(study_file, task, study, console, lock)


def join(study_file: StudyFile, console: Console) -> bool:
    """Work on a study that others may be working on, from this or any other machine.

    Returns:
        Whether there was anything left to do.

    Raises:
        TransferError: for bad input, or if the study was started with another study file.
        KeyboardInterrupt: on Ctrl-C, when the workers have stopped.
    """
    check_storage(study_file)
    refuse_missing_past(study_file)
    task = make_task(study_file)
    study = open_study(study_file, definition=task.definition())
    return _search(study_file, task, study, console, None)


def _search(
    study_file: StudyFile, task: Any, study: optuna.Study, console: Console, lock: int | None
) -> bool:
    requeue_dead(study)
    if search_is_over(task, study, read_runs(study)):
        return False
    progress = Progress(
        study,
        budget=task.budget,
        target_cost=task.cost(study_file.target),
        project=functools.partial(_project, study_file),
        console=console,
    )
    pool = Pool(study_file, study, study_file.out / "workers.log", lock)

    def start() -> None:
        for slot in range(study_file.run.workers):
            pool.start(slot, None)

    _run_pool(pool, study, start, progress)
    if not search_is_over(task, study, read_runs(study)):
        raise KeyboardInterrupt  # every worker was asked to stop by somebody else
    return True


def run_verification(
    study_file: StudyFile,
    console: Console,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    replicate: int = 0,
) -> Verification:
    """Run the suggestion and, if the study file says so, the defaults at the target, side by side.

    What was run before is not repeated: the suggestion is made anew only when the search has gone on since
    the last one was verified.

    Args:
        study_file: The study.
        console: Where progress is shown.
        controls: Name -> HPs of the runs to compare with; by default the documented defaults, if the study
            file asks for a control, and the best setting without multipliers, if it has [per_module].
        replicate: How often suggestion and controls are run again with new seeds.

    Raises:
        TransferError: for bad input, or workers that keep failing.
        KeyboardInterrupt: on Ctrl-C, when the workers have stopped.
    """
    task = make_task(study_file)
    open_study(study_file)  # refuses if there is nothing to verify, before anything is written
    study = open_study(study_file, definition=task.definition())
    with _only_one(study_file) as lock:
        requeue_dead(study)
        if controls is None:
            controls = _controls(task, study) if study_file.verify.control else {}
        n_search = sum(run.outcome.has_ended and run.purpose == "search" for run in read_runs(study))
        suggestion = known_suggestion(study, study_file.target, n_search) or _project(study_file)
        jobs = plan(suggestion, controls, n_search=n_search)
        missing = [job for job in [*jobs, *replicas(jobs, replicate)] if job.find(study) is None]
        progress = Progress(study, budget=None, target_cost=task.cost(study_file.target), console=console)
        pool = Pool(study_file, study, study_file.out / "workers.log", lock)
        if missing:
            workers = min(study_file.run.workers, len(missing))

            def start() -> None:
                for slot in range(workers):
                    pool.start(slot, missing[slot::workers])

            _run_pool(pool, study, start, progress)
        return judge(study, jobs, replicate)


def _controls(task: Task, study: optuna.Study) -> dict[str, dict[str, float]]:
    """What a suggestion is compared with: name -> HPs."""
    defaults = task.space.defaults
    controls = {"documented defaults": defaults}
    if task.file.per_module is not None:

        def is_global(run: Run) -> bool:
            return all(run.params.get(n, v) == v for n, v in defaults.items() if is_multiplier(n))

        plain = [run for run in read_runs(study) if run.purpose == "search" and is_global(run)]
        finished = [run for run in plain if run.loss is not None and run.scale in task.ladder.proxies]
        if finished:
            dearest = max((run.scale for run in finished if run.scale), key=task.cost)
            best = min((run for run in finished if run.scale == dearest), key=lambda run: run.loss or 0.0)
            controls["best global setting"] = {**defaults, **best.params}
    return controls
