"""Worker processes are forks of one process that has loaded the libraries: they start at once.

A fresh Python needs seconds of a core to load torch and the rest, each time a worker starts. Here that is
paid once, beside what the parent itself loads, and memory that nobody writes to is shared. Where processes
can't be forked (Windows), or not with all libraries (macOS), they are fresh ones.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from transfer_bo.runners import worker

__all__ = ["ForkedWorker", "prepare"]

_CAN_FORK = sys.platform == "linux"
_CONTEXT: Any = multiprocessing.get_context("forkserver" if _CAN_FORK else "spawn")
_LOADED = [  # what a worker imports; nothing of it touches a GPU or starts a thread
    "transfer_bo.cli",
    "transfer_bo.runners.worker_loop",
    "transfer_bo.runners.study_search",
    "transfer_bo.store.open_study",
    "transfer_bo.runners.task",
    "transfer_bo.verification.jobs",
    "transfer_bo.search.policy",
    "alembic.command",  # Optuna compares the version of its tables
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "psycopg",  # where it is installed
]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def prepare() -> None:
    """Begin to load the libraries in a process of their own, if that has not begun; returns at once."""
    if _CAN_FORK:
        _CONTEXT.set_forkserver_preload(_LOADED)
        resource_tracker.ensure_running()  # it would lift the mask
        with _one_thread(), _no_interrupts():
            forkserver.ensure_running()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Libraries read these when they load; a pool of threads would not survive the fork.

    torch's own threads are set in each worker.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """What starts here never hears Ctrl-C, which is its parent's; a new process keeps the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkedWorker:
    """A worker process.

    Args:
        spec: What it is told, see `transfer_bo.runners.worker`.
        lock: File descriptor that it keeps open.
    """

    def __init__(self, spec: dict[str, Any], lock: int | None) -> None:
        prepare()
        self._heard, says = _CONTEXT.Pipe(duplex=False)
        with says, contextlib.ExitStack() as stack:
            # A worker is no child of ours: what it is to keep open must be sent to it.
            sent = None if lock is None else stack.enter_context(Connection(os.dup(lock)))
            self._process = _CONTEXT.Process(target=worker.main, args=(spec, says, sent), daemon=True)
            self._process.start()

    @property
    def exitcode(self) -> int | None:
        """None while it runs; minus the signal that killed it."""
        code: int | None = self._process.exitcode
        return code

    @property
    def said(self) -> str:
        """A sentence for the user, if it had one; to be asked once, after its end."""
        with self._heard, contextlib.suppress(EOFError, OSError):
            return str(self._heard.recv())
        return ""

    def terminate(self) -> None:
        """Ask it to write a checkpoint and give its trial back."""
        self._process.terminate()

    def kill(self) -> None:
        """End it the hard way."""
        self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, so many seconds at most."""
        self._process.join(timeout)
