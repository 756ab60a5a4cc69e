"""Checkpoints that are whole or not there: written aside, forced to the disk, then renamed.

A checkpoint says which run it belongs to; one that can't be read, or belongs to another run, counts as
absent, for starting anew is right and only slower. It is read with `weights_only=True`: a file can't run
code.
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
    """Write a checkpoint in the place of the one before, if there is room for it.

    Args:
        path: Where it goes; the folder is made.
        run: What the run is: seed, HPs, ...; plain numbers and strings.
        state: Tensors, numbers, strings, and lists and dictionaries of them.

    Returns:
        Whether it was written. A disk that is full costs the checkpoint, not the run.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            torch.save({"run": dict(run), "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _force_names(path.parent)
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when a write falls short
        logger.warning("No checkpoint was written to %s: %s", path, error)
        with contextlib.suppress(OSError):
            aside.unlink()
        return False
    return True


def _force_names(folder: Path) -> None:
    # A rename is only on the disk when its folder is; where folders can't be opened (Windows) there is no
    # way.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of exactly this run, on the CPU; None if there is none that can be read.

    Args:
        path: Where it is.
        run: What the run is; the checkpoint of another one is left alone.
    """
    try:
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        known, state = content["run"], content["state"]
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can fail in any way
        logger.warning("The checkpoint %s can't be read and is not used: %s", path, error)
        return None
    if known != dict(run):
        logger.warning("The checkpoint %s belongs to another run and is not used.", path)
        return None
    return dict(state)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what processes that were killed have left beside it."""
    for file in [path, *path.parent.glob(f"{path.name}.*")]:
        with contextlib.suppress(OSError):
            file.unlink()
