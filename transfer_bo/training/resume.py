"""Stop a training run and continue it later; on a CPU the result is bit-identical."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transfer_bo.training.checkpoint import load_checkpoint, save_checkpoint
from transfer_bo.training.ranks import Ranks

__all__ = ["Resume"]

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
        # The checkpoint of a sharded model has other names than that of a whole one.
        self._run = {**run, "sharded": ranks.is_sharded, "ranks": ranks.size}
        self._ranks = ranks
        self._last = time.monotonic()

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Restore model, optimizer and random state; the stored progress, None without a checkpoint."""
        if self._path is None:
            return None
        state = load_checkpoint(self._path, self._run) if self._ranks.rank == 0 else None
        state = self._ranks.from_first(state)
        if state is None:
            return None

        if self._ranks.is_sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            options = StateDictOptions(full_state_dict=True)
            set_state_dict(
                model,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=options,
            )
        else:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])

        own = state["random"][self._ranks.rank]
        torch.set_rng_state(own["cpu"])
        if own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"])
        return dict(state[_PROGRESS])

    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint, on this rank's clock."""
        return self._path is not None and time.monotonic() - self._last > self._every

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
        """Write a checkpoint; called by all ranks at the same step.

        Args:
            model: Before it was wrapped.
            optimizer: Its optimizer.
            progress: What else the run needs to continue: plain numbers, strings, lists and dictionaries.
        """
        if self._path is None:
            return
        own = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        random = self._ranks.gather(own)
        if self._ranks.is_sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights, moments = get_state_dict(model, optimizer, options=options)
        else:
            weights, moments = model.state_dict(), optimizer.state_dict()

        if self._ranks.rank == 0:
            state = {"model": weights, "optimizer": moments, "random": random, _PROGRESS: dict(progress)}
            save_checkpoint(self._path, self._run, state)
        self._last = time.monotonic()
