"""Memory that is free on this machine: of each GPU that may be used, or of the main memory without GPUs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["USABLE", "Room", "free_of_gpus", "free_of_machine", "room"]

MEMINFO = Path("/proc/meminfo")
"""Where Linux tells how much memory can be used without swapping (`MemAvailable`)."""

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells the limits of a container or batch job (version 2 of control groups)."""

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits")
"""Asks the driver; a question to CUDA would take memory of the GPU."""

QUERY_SECONDS = 20.0
"""How long the driver may take; it is slow after a start of the machine."""

MEBIBYTE = 2**20

USABLE = 0.9
"""Share of the memory that tensors can fill; the CUDA context, workspaces and gaps take the rest."""


@dataclass(frozen=True)
class Room:
    """Memory for training."""

    free: float
    """Bytes: of the GPU that has least, or of the main memory."""

    on_gpu: bool
    """Whether each process has a GPU's memory, or all processes share the main memory."""

    @property
    def usable(self) -> float:
        """Bytes that tensors can fill."""
        return USABLE * self.free


def room(devices: str | None) -> Room | None:
    """The memory that is free now; None where it cannot be found out.

    Args:
        devices: Comma-separated indices or UUIDs of the GPUs that may be used; None if there is no GPU.
    """
    if devices is None:
        free = free_of_machine()
        return None if free is None else Room(free, on_gpu=False)

    by_name = free_of_gpus()
    free_of_each = [by_name.get(name.strip()) for name in devices.split(",")]
    known = [free for free in free_of_each if free is not None]
    return Room(min(known), on_gpu=True) if known and len(known) == len(free_of_each) else None


def free_of_gpus() -> dict[str, float]:
    """Free bytes of all GPUs by index and by UUID; empty where there is no `nvidia-smi`."""
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS)
        found: dict[str, float] = {}
        for line in answer.stdout.splitlines():
            index, uuid, mebibytes = (cell.strip() for cell in line.split(","))
            found |= dict.fromkeys((index, uuid), float(mebibytes) * MEBIBYTE)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return found


def free_of_machine() -> float | None:
    """Bytes of main memory that processes can use without swapping, within the limit of a container."""
    limits = [free for free in (_free_of_linux(), _free_of_container()) if free is not None]
    if limits:
        return min(limits)
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return None


def _free_of_linux() -> float | None:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def _free_of_container() -> float | None:
    """What the limit leaves; the cache of files, which is given back when needed, is no use of it."""
    try:
        limit = float((CGROUP / "memory.max").read_text())
        used = float((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + float(stat["inactive_file"])
    except (OSError, KeyError, ValueError):  # no limit is the word "max"
        return None
