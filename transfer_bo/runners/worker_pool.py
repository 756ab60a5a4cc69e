"""The workers of one command: processes of this machine or Ray tasks, started, watched and replaced.

The parent trains nothing: it beats for its workers' trials. A worker that dies is replaced, a limited number
of times, and its trial returns to the queue, to go on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna

from transfer_bo.errors import WorkerError
from transfer_bo.runners import forkserver, ray_tasks, worker
from transfer_bo.runners.objective import MAX_ERRORS_IN_A_ROW
from transfer_bo.runners.torchrun import ranks_here
from transfer_bo.runners.worker_spec import WorkerSpec
from transfer_bo.store.heartbeat import requeue_dead
from transfer_bo.study_file import StudyFile
from transfer_bo.verification.jobs import Job

__all__ = ["Pool", "WorkerProcess", "devices_of", "gpu_groups", "remembered_interrupts", "visible_devices"]

MAX_RESTARTS = 3
"""How often each worker is replaced when it dies: once is bad luck, more often is a fault to look into."""

POLL_SECONDS = 0.2
"""How often the workers are looked at."""

STOP_SECONDS = 15.0
"""How long workers may take to stop at Ctrl-C before they are killed: more than they allow themselves."""


class WorkerProcess(Protocol):
    """A process of this machine, or a Ray task."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs."""

    def message(self) -> str:
        """A sentence for the user, after its end."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


@dataclass
class _Worker:
    spec: WorkerSpec
    process: WorkerProcess


def devices_of(slot: int, ranks: int, visible: str | None) -> str | None:
    """CUDA_VISIBLE_DEVICES for one worker: `ranks` devices, which several workers share if there are too few.

    Args:
        slot: Which worker it is, from 0.
        ranks: Devices per trial.
        visible: The parent's CUDA_VISIBLE_DEVICES, comma separated; None for no GPU.

    Returns:
        The worker's devices; None if there is no GPU at all.
    """
    if visible is None:
        return None
    group = slot % gpu_groups(ranks, visible)
    return ",".join(visible.split(",")[group * ranks : (group + 1) * ranks])


def gpu_groups(ranks: int, visible: str) -> int:
    """How many trials have GPUs of their own, at least one."""
    return max(1, len(visible.split(",")) // ranks)


@functools.cache
def visible_devices() -> str | None:
    """Indices or UUIDs of the GPUs that this process may use, comma separated; None if there are none."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return os.environ["CUDA_VISIBLE_DEVICES"] or None
    import torch

    return ",".join(map(str, range(torch.cuda.device_count()))) or None


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[Callable[[], bool]]:
    """Remember whether this process was asked to end.

    An exception that a signal raises in a destructor or a callback is lost.

    Yields:
        A function that returns whether SIGINT or SIGTERM has arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        signal.default_int_handler(number, frame)

    numbers = [
        n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.default_int_handler
    ]
    for number in numbers:
        signal.signal(number, remember)
    try:
        yield lambda: bool(received)
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)


class Pool:
    """The workers of one command.

    Args:
        study_file: The study that they work on.
        study: The same study, opened by the parent, to requeue the trials of dead workers.
        log: File for what they print.
        lock: File descriptor that worker processes keep open, None for none.
    """

    def __init__(
        self, study_file: StudyFile, study: optuna.Study, log: Path, lock: int | None = None
    ) -> None:
        self._file = study_file
        self._study = study
        self._log = log
        self._lock = lock
        self._restarts = 0
        self._errors_in_a_row = 0
        self._on_ray = study_file.run.runner == "ray"
        if self._on_ray:
            ray_tasks.connect()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.workers: list[_Worker] = []

    def start(self, slot: int, jobs: Sequence[Job] | None = None) -> None:
        """Start a worker.

        Args:
            slot: Which worker it is, from 0.
            jobs: Runs of a verification to make; None to search.
        """
        # Ray assigns GPUs itself.
        devices = None if self._on_ray else devices_of(slot, ranks_here(self._file), visible_devices())
        jobs = None if jobs is None else tuple(jobs)
        self._spawn(WorkerSpec(self._file, slot, "", self._log, devices, jobs))

    def owners(self) -> set[str]:
        """The names of the workers that were alive when they were last looked at."""
        return {worker.spec.owner for worker in list(self.workers)}

    def _spawn(self, spec: WorkerSpec) -> None:
        spec = replace(spec, owner=uuid.uuid4().hex[:12])
        process: WorkerProcess = (
            ray_tasks.RayWorker(spec) if self._on_ray else forkserver.ForkedWorker(spec, self._lock)
        )
        self.workers.append(_Worker(spec, process))

    def wait(self, tick: Callable[[], None], note: Callable[[str], None]) -> None:
        """Wait until all workers are done, replacing those that die.

        Args:
            tick: Called every `POLL_SECONDS`.
            note: Shows a line to the user.

        Raises:
            TransferError: The error that a worker sent.
            WorkerError: If trials keep failing, or workers keep dying.
            KeyboardInterrupt: If this process was asked to end.
        """
        with remembered_interrupts() as was_interrupted:
            while self.workers:
                for each in list(self.workers):
                    code = each.process.exitcode
                    if code is not None:
                        self.workers.remove(each)
                        self._end(each, code, note)
                tick()
                time.sleep(POLL_SECONDS)
                if was_interrupted():
                    raise KeyboardInterrupt

    def _end(self, ended: _Worker, code: int, note: Callable[[str], None]) -> None:
        message = ended.process.message()
        if code == 0:
            return
        if code == worker.MORE_TRIALS:
            self._continue(ended, error=message)
            return

        was_stopped = code in (worker.STOPPED, -signal.SIGTERM)
        requeue_dead(self._study, owner=ended.spec.owner, owner_died=not was_stopped)
        if was_stopped:  # somebody needs this core or GPU
            note("A worker was asked to stop; its trial returns to the queue.")
        elif code == worker.REFUSED:
            raise WorkerError(message.strip() or f"A worker stopped without an error; see {self._log}.")
        else:
            self._replace(ended, code, message, note)

    def _continue(self, ended: _Worker, error: str) -> None:
        """Start the next task of a worker that runs one trial at a time."""
        self._restarts = 0  # the study makes progress
        self._errors_in_a_row = self._errors_in_a_row + 1 if error else 0
        if self._errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
            raise WorkerError(
                f"{self._errors_in_a_row} trials in a row failed, the last with {error}. "
                "Fix it and run again; finished trials are kept."
            )
        self._spawn(ended.spec)

    def _replace(self, ended: _Worker, code: int, message: str, note: Callable[[str], None]) -> None:
        """Start a new worker for one that died."""
        with self._log.open("a") as log:
            log.write(message)
        if self._restarts >= MAX_RESTARTS * self._file.run.workers:
            raise WorkerError(
                f"Workers died {self._restarts + 1} times, last with exit code {code}; "
                f"look into {self._log}, then run again: finished trials are kept."
            )
        self._restarts += 1
        note(f"A worker died (exit code {code}); its trial returns to the queue and a new worker starts.")
        self._spawn(ended.spec)

    def stop(self) -> None:
        """Stop all workers, after `STOP_SECONDS` by killing them; their trials return to the queue."""
        for each in self.workers:
            each.process.terminate()

        deadline = time.monotonic() + STOP_SECONDS
        for each in self.workers:
            each.process.join(max(0.0, deadline - time.monotonic()))
            if each.process.exitcode is None:
                each.process.kill()
                each.process.join(STOP_SECONDS)
            requeue_dead(self._study, owner=each.spec.owner, owner_died=False)
        self.workers = []
