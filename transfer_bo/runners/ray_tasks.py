"""Trials as Ray tasks: each asks for its CPUs and GPUs, and runs wherever the cluster has them free.

Ray itself finds the cluster: the one of RAY_ADDRESS, one that was started on this machine, or else a new one
here. Every node must reach the package, the data and the study's storage; also `run.checkpoints`, if a trial
is to go on where another node left it. A task runs one trial, so that a cluster that is shared or grows
hands out its resources trial by trial. When a node is lost its trial is requeued at once, to go on elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
from typing import TYPE_CHECKING, Any

from transfer_bo.errors import WorkerError
from transfer_bo.runners import worker

if TYPE_CHECKING:
    from transfer_bo.runners.worker_spec import WorkerSpec

__all__ = ["RayWorker", "connect"]


def _ray() -> Any:
    """Ray, which is installed with the extra "ray" only.

    Raises:
        WorkerError: If it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise WorkerError(
            'run.runner = "ray": Ray is not installed; pip install "transfer-bo[ray]", or set it to "local".'
        ) from None


def connect() -> None:
    """Connect this process to the cluster, once.

    Raises:
        WorkerError: If Ray is not installed, or the cluster does not answer.
    """
    ray = _ray()
    if ray.is_initialized():
        return

    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkerError(f'run.runner = "ray": no cluster can be reached ({reason}).') from error

    # Ray has replaced our handler, unless this is a thread, in which handlers can't be set.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, handler)


class RayWorker:
    """A worker that runs one trial as a Ray task, with the interface of a process.

    Args:
        spec: What it is to do.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self._ray = _ray()
        run = spec.study_file.run
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        remote = self._ray.remote(worker.run_task).options(
            num_cpus=run.threads * (1 if has_gpus else run.ranks),
            num_gpus=run.ranks if has_gpus else 0,
            max_retries=0,  # a trial is run again under its own number, not as a task
            name=f"{spec.study_file.name}-{spec.owner}",
        )
        self._result = remote.remote(spec.to_json())
        self._code: int | None = None
        self._message = ""

    @property
    def exitcode(self) -> int | None:
        """As of a process: None while it runs, or waits for resources."""
        if self._code is None and self._ray.wait([self._result], timeout=0)[0]:
            try:
                self._code, self._message = self._ray.get(self._result)
            except self._ray.exceptions.TaskCancelledError:
                self._code = worker.STOPPED
            except self._ray.exceptions.RayError as error:  # its process or node is gone
                self._code, self._message = worker.CRASHED, str(error)
        return self._code

    def message(self) -> str:
        """The sentence that it has for the user, "" if none; to be called after its end."""
        return self._message

    def terminate(self) -> None:
        """Ask it to write a checkpoint, put its trial back into the queue, and end."""
        self._ray.cancel(self._result, force=False)

    def kill(self) -> None:
        """End it at once."""
        self._ray.cancel(self._result, force=True)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""
        self._ray.wait([self._result], timeout=timeout)
