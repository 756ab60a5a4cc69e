"""Trials as Ray tasks: each asks for its CPUs and GPUs, and runs wherever the cluster has them free.

Which cluster is Ray's own matter: RAY_ADDRESS, one that was started on this machine, or else a new one here.
The package, the data and the study's storage must be in reach of every node; so must `run.checkpoints`, if a
trial is to go on where another node left it. A task runs one trial, so that a cluster that is shared or grows
hands out its resources trial by trial. When its node is lost the trial is given back at once and goes on
elsewhere.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
from typing import Any

from transfer_bo.errors import TransferError
from transfer_bo.runners import worker

__all__ = ["RayWorker", "connect"]

KILLED = 1
"""Exit code of a task whose process or node is gone: a crash like any other."""


def _ray() -> Any:
    """Ray, which is not there unless asked for.

    Raises:
        TransferError: if it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise TransferError(
            'run.runner = "ray": Ray is not installed; pip install "transfer-bo[ray]", or set it to "local".'
        ) from None


def connect() -> None:
    """Connect this process to the cluster, once.

    Raises:
        TransferError: if Ray is not installed, or the cluster does not answer.
    """
    ray = _ray()
    if ray.is_initialized():
        return
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TransferError(f'run.runner = "ray": no cluster can be reached ({reason}).') from error
    with contextlib.suppress(ValueError):  # in a thread; Ray puts its own in the place of ours elsewhere
        signal.signal(signal.SIGTERM, ends)


class RayWorker:
    """A worker that runs one trial as a Ray task; looks like a process to who looks after it.

    Args:
        spec: What it is told, see `transfer_bo.runners.worker`.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._ray = _ray()
        run = spec["study"]["run"]
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        remote = self._ray.remote(worker.run_task).options(
            num_cpus=run["threads"] * (1 if has_gpus else run["ranks"]),
            num_gpus=run["ranks"] if has_gpus else 0,
            max_retries=0,  # a trial is run again under its own number, not as a task
            name=f"{spec['study']['name']}-{spec['owner']}",
        )
        self._result = remote.remote(spec)
        self._code: int | None = None
        self.said = ""

    @property
    def exitcode(self) -> int | None:
        """As of a process: None while it runs, or waits for resources."""
        if self._code is None and self._ray.wait([self._result], timeout=0)[0]:
            try:
                self._code, self.said = self._ray.get(self._result)
            except self._ray.exceptions.TaskCancelledError:
                self._code = worker.STOPPED
            except self._ray.exceptions.RayError as error:
                self._code, self.said = KILLED, str(error)
        return self._code

    def terminate(self) -> None:
        """Ask it to write a checkpoint and give its trial back."""
        self._ray.cancel(self._result, force=False)

    def kill(self) -> None:
        """End it the hard way."""
        self._ray.cancel(self._result, force=True)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, so many seconds at most."""
        self._ray.wait([self._result], timeout=timeout)
