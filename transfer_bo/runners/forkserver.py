"""Worker processes that start at once: forks of one process that has loaded the libraries.

A fresh Python needs seconds of a core to load torch and the other libraries, each time a worker starts. Here
they are loaded once, while the parent loads its own, and memory that nobody writes to is shared. Where
processes can't be forked (Windows), or not with all libraries (macOS), workers are fresh processes.
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
from typing import TYPE_CHECKING, Any

from transfer_bo.runners import worker

if TYPE_CHECKING:
    from transfer_bo.runners.worker_spec import WorkerSpec

__all__ = ["ForkedWorker", "prepare"]

_CAN_FORK = sys.platform == "linux"

_CONTEXT: Any = multiprocessing.get_context("forkserver" if _CAN_FORK else "spawn")

_LOADED = [
    "transfer_bo.cli",
    "transfer_bo.runners.worker_loop",
    "transfer_bo.runners.worker_spec",
    "transfer_bo.runners.study_search",
    "transfer_bo.runners.task",
    "transfer_bo.store.open_study",
    "transfer_bo.search.policy",
    "transfer_bo.search.pruner",
    "transfer_bo.verification.running",
    "alembic.command",  # Optuna compares the version of its tables
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "psycopg",  # where it is installed
]
"""Modules that a worker imports; none of them touches a GPU or starts a thread."""


def prepare() -> None:
    """Start to load the libraries in a process of their own, unless that has started; returns at once."""
    if not _CAN_FORK:
        return
    _CONTEXT.set_forkserver_preload(_LOADED)
    resource_tracker.ensure_running()  # it would lift the signal mask
    with _one_thread(), _no_interrupts():
        forkserver.ensure_running()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the libraries from starting a pool of threads when they load, which would not survive the fork.

    The number of torch's own threads is set in each worker.
    """
    before = {name: os.environ.get(name) for name in worker.THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(worker.THREAD_VARIABLES, "1"))
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
    """Block Ctrl-C in the processes that start here, which inherit the mask: it is for their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ForkedWorker:
    """A worker process.

    Args:
        spec: What it is to do.
        lock: File descriptor that it keeps open, None for none.
    """

    def __init__(self, spec: WorkerSpec, lock: int | None) -> None:
        prepare()
        self._messages, sender = _CONTEXT.Pipe(duplex=False)
        with sender, contextlib.ExitStack() as stack:
            # A worker is no child of this process: what it is to keep open must be sent to it.
            sent_lock = None if lock is None else stack.enter_context(Connection(os.dup(lock)))
            arguments = (spec.to_json(), spec.environment, sender, sent_lock)
            self._process = _CONTEXT.Process(target=worker.main, args=arguments, daemon=True)
            self._process.start()

    @property
    def exitcode(self) -> int | None:
        """None while it runs; minus the number of the signal that killed it."""
        code: int | None = self._process.exitcode
        return code

    def message(self) -> str:
        """The sentence that it sent for the user, "" if none; to be called once, after its end."""
        with self._messages, contextlib.suppress(EOFError, OSError):
            return str(self._messages.recv())
        return ""

    def terminate(self) -> None:
        """Ask it to write a checkpoint, put its trial back into the queue, and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""
        self._process.join(timeout)
