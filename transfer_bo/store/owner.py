"""The process that runs a trial, as the trial's attributes name it."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import WORKER_ATTR

__all__ = ["Owner", "has_died_here", "is_alive", "is_owned", "machine_id", "owner_id"]


def machine_id() -> str:
    """Name the set of processes whose ids can be compared: host name, boot, and namespace of process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return "/".join(parts)


@dataclass(frozen=True)
class Owner:
    """A process that runs trials."""

    host: str
    """Its machine, see `machine_id`."""

    pid: int
    """Its process id on that machine."""

    id: str
    """Its own name, never given to another process, whatever becomes of the process id."""

    @classmethod
    def here(cls) -> Owner:
        """This process, under a new name."""
        return cls(machine_id(), os.getpid(), uuid.uuid4().hex[:12])

    def attributes(self) -> dict[str, Any]:
        """The user attributes of a trial that this process runs."""
        return {WORKER_ATTR: {"host": self.host, "pid": self.pid, "id": self.id}}


def owner_id(trial: FrozenTrial) -> str | None:
    """The name of the trial's owner; None if it has none."""
    worker: dict[str, Any] | None = trial.user_attrs.get(WORKER_ATTR)
    return worker["id"] if worker else None


def is_owned(trial: FrozenTrial, owner: Owner) -> bool:
    """Whether a trial, freshly read, is running under this owner."""
    return trial.state is TrialState.RUNNING and owner_id(trial) == owner.id


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running; a zombie is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True

    # A zombie is dead, but its parent has not yet asked for its exit code.
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def has_died_here(trial: FrozenTrial) -> bool:
    """Whether the trial's owner was a process of this machine that is gone."""
    worker: dict[str, Any] = trial.user_attrs.get(WORKER_ATTR) or {}
    return bool(worker) and worker["host"] == machine_id() and not is_alive(worker["pid"])
