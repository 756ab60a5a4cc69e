"""Stop a training run and continue it later; on a CPU the result is bit-identical.

A model that every rank holds is written to one file, a sharded one to a folder by
`torch.distributed.checkpoint`, which the file then names, so that a checkpoint is complete or absent. It may
be continued on another number of ranks, then equal to rounding. The folder's index is a pickle: continue
only from folders that you trust.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfer_bo.errors import TrainingError
from transfer_bo.training.checkpoint import load_checkpoint, save_checkpoint
from transfer_bo.training.ranks import Ranks

__all__ = ["Resume"]

logger = logging.getLogger(__name__)

Optimizers = Sequence[torch.optim.Optimizer]
"""Those that step one model, in a fixed order."""

_SHARDS = "shards"
"""Key of the name of the folder that holds a sharded model's checkpoint."""

_PROGRESS = "rest"
"""Key of the stored progress, as in checkpoints of earlier versions."""


class Resume:
    """The checkpoint of one run: its content, and when to write the next.

    Args:
        path: The file; None for a run that is never resumed.
        every: Seconds between two checkpoints.
        run: Identifies the run: seed, HPs, ...; plain numbers and strings.
        ranks: The processes that train together; the first one writes.
    """

    def __init__(self, path: Path | None, every: float, run: Mapping[str, Any], ranks: Ranks) -> None:
        self._path = path
        self._every = every
        self._run = dict(run)
        self._ranks = ranks
        self._last = time.monotonic()

    def load(self, model: nn.Module, optimizers: Optimizers) -> dict[str, Any] | None:
        """Restore model, optimizer and random state; the stored progress, None without a checkpoint.

        Raises:
            TrainingError: If the checkpoint is that of a model with other tensors; it stays as it is.
        """
        if self._path is None:
            return None
        state = load_checkpoint(self._path, self._run) if self._ranks.rank == 0 else None
        state = self._ranks.from_first(state)
        if state is None:
            return None

        try:
            if _SHARDS in state:
                _load_shards(self._path.with_name(state[_SHARDS]), model, optimizers)
            elif self._ranks.is_sharded:
                _load_whole(state, model, optimizers)
            else:
                model.load_state_dict(state["model"])
                for optimizer, stored in zip(optimizers, _of_optimizers(state), strict=True):
                    optimizer.load_state_dict(stored)
        except (RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise TrainingError(
                f"The checkpoint {self._path} cannot be continued from: it is that of another model, or not "
                f"complete ({reason}); move it away to begin anew."
            ) from error

        if self._ranks.rank < len(state["random"]):  # a rank that is new keeps the state of its seed
            own = state["random"][self._ranks.rank]
            torch.set_rng_state(own["cpu"])
            if own["cuda"] is not None:
                torch.cuda.set_rng_state(own["cuda"])
        return dict(state[_PROGRESS])

    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint, on this rank's clock."""
        return self._path is not None and time.monotonic() - self._last > self._every

    def save(self, model: nn.Module, optimizers: Optimizers, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint; called by all ranks at the same step.

        Args:
            model: Before it was wrapped.
            optimizers: Its optimizers.
            progress: What else the run needs to continue: plain numbers, strings, lists and dictionaries.
        """
        if self._path is None:
            return
        own = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        state = {"random": self._ranks.gather(own), _PROGRESS: dict(progress)}
        if self._ranks.is_sharded:
            self._save_sharded(self._path, model, optimizers, state)
        elif self._ranks.rank == 0:
            state |= {"model": model.state_dict(), "optimizer": [o.state_dict() for o in optimizers]}
            save_checkpoint(self._path, self._run, state)
        self._last = time.monotonic()

    def _save_sharded(
        self, path: Path, model: nn.Module, optimizers: Optimizers, state: dict[str, Any]
    ) -> None:
        """Each rank writes its shards into a folder; then the file names the folder, and older ones go."""
        folder = path.with_name(f"{path.name}-{state[_PROGRESS]['step']}")
        if self._ranks.rank == 0:
            _remove_folders([folder])  # of a process that was killed while it wrote
        self._ranks.gather(None)

        is_written = _save_shards(folder, model, optimizers)
        if self._ranks.rank == 0:
            is_named = is_written and save_checkpoint(path, self._run, {**state, _SHARDS: folder.name})
            _remove_folders(set(path.parent.glob(f"{path.name}-*")) - {folder} if is_named else [folder])


def _of_optimizers(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stored state of each optimizer; checkpoints of earlier versions hold that of the only one."""
    stored = state["optimizer"]
    return stored if isinstance(stored, list) else [stored]


def _save_shards(folder: Path, model: nn.Module, optimizers: Optimizers) -> bool:
    """Write the shards of all ranks; whether that worked. A full disk does not end the run."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    weights, moments = get_state_dict(model, optimizers)
    try:
        save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
    except (CheckpointException, OSError, RuntimeError) as error:
        logger.warning("No checkpoint was written to %s: %s", folder, error)
        return False
    return True


def _load_shards(folder: Path, model: nn.Module, optimizers: Optimizers) -> None:
    """Read what any number of ranks wrote, sharded or not now."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    weights, moments = get_state_dict(model, optimizers)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    try:
        load(state, checkpoint_id=folder)
    except CheckpointException as error:  # derives from BaseException
        raise RuntimeError(str(next(iter(error.failures.values()), (error,))[0])) from error
    set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _load_whole(state: Mapping[str, Any], model: nn.Module, optimizers: Optimizers) -> None:
    """Spread the checkpoint of a model that was not sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    (stored,) = _of_optimizers(state)  # what can be sharded has one optimizer
    set_state_dict(
        model,
        optimizers,
        model_state_dict=state["model"],
        optim_state_dict=stored,
        options=StateDictOptions(full_state_dict=True),
    )


def _remove_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
