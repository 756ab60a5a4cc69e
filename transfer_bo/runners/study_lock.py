"""One command at a time works on a study on this machine, together with its workers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from transfer_bo.study_file import StudyFile

__all__ = ["study_lock"]

POLL_SECONDS = 0.2
"""How often a lock that is held is tried again."""

WAIT_SECONDS = 15.0
"""How long to wait for it: the workers of a killed command may need a moment to notice."""


@contextlib.contextmanager
def study_lock(study_file: StudyFile) -> Iterator[int | None]:
    """Hold the study's lock file until the block ends.

    The workers inherit it, so that it is released only when all of them are gone.

    Yields:
        The lock's file descriptor; None where the system has no such locks (Windows).

    Raises:
        StudyFileError: If another command holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return

    study_file.out.mkdir(parents=True, exist_ok=True)
    with (study_file.out / "run.lock").open("w") as lock:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    problem = "this study is running already; wait for it, or stop it."
                    raise study_file.error("name", problem) from None
                time.sleep(POLL_SECONDS)
        yield lock.fileno()
