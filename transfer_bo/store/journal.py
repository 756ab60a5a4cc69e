"""Optuna's journal file with a lock that the kernel releases when its holder is killed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

__all__ = ["LockedJournal"]

BLOCK = 65536
"""Bytes that are read at once in search of the last line's end."""


class LockedJournal(JournalFileBackend):
    """A journal whose lock is never left behind, and whose records are written whole.

    Optuna's own lock stays for 30 s after its holder was killed. A record that was cut short, by a full disk,
    is removed before the next one is written: with more text behind it nobody could read the journal.

    Args:
        file: The journal's path.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        super().__init__(str(file))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records, all or none of them.

        Raises:
            OSError: If the disk is full.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            super().append_logs(logs)
            return

        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._file.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or its process is gone
            end = _end_of_last_record(file)
            file.truncate(end)
            file.seek(end)
            try:
                if file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def _end_of_last_record(file: Any) -> int:
    """Where the last complete line ends, in bytes from the start."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        newline: int = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
