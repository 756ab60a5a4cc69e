"""Checkpoints that are complete or absent: written to another file, flushed to the disk, then renamed.

A checkpoint names the run it belongs to; one that cannot be read, or belongs to another run, is treated as
absent: starting again is correct and only slower. Files are read with `weights_only=True`, so that they
cannot run code.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_checkpoint", "remove_checkpoint", "save_checkpoint"]

logger = logging.getLogger(__name__)


def save_checkpoint(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Replace a run's checkpoint, if there is enough space.

    Args:
        path: The file; its folder is created.
        run: Identifies the run: seed, HPs, ...; plain numbers and strings.
        state: Tensors, numbers, strings, and lists and dictionaries of them.

    Returns:
        Whether it was written; a full disk does not end the run.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"run": dict(run), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for an incomplete write
        logger.warning("No checkpoint was written to %s: %s", path, error)
        with contextlib.suppress(OSError):
            temporary.unlink()
        return False
    return True


def _flush_folder(folder: Path) -> None:
    # A rename is on the disk only when its folder is. Windows cannot open folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of exactly this run, on the CPU; None if no file with it can be read.

    Args:
        path: The file.
        run: Identifies the run; the checkpoint of another run is not used.
    """
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        stored_run, state = content["run"], content["state"]
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can fail in any way
        logger.warning("The checkpoint %s cannot be read and is not used: %s", path, error)
        return None
    if {key: stored_run.get(key) for key in run} != dict(run):
        logger.warning("The checkpoint %s belongs to another run and is not used.", path)
        return None
    return dict(state)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and the temporary files of processes that were killed while writing one."""
    for file in [path, *path.parent.glob(f"{path.name}.*")]:
        with contextlib.suppress(OSError):
            file.unlink()
