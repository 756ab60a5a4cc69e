"""One trunk, many durations: the stable part of WSD runs that differ in their length only is trained once.

With the schedule "wsd" (2405.18392) the learning rate is constant between warm-up and decay. Two runs with
the same HPs, batches and seed are then the same run until the shorter one begins to decay. What is kept at
the end of each length's stable part is where a run of another length starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from transfer_bo.training.ranks import Ranks
from transfer_bo.training.resume import Optimizers, Resume

__all__ = ["Trunk"]


@dataclass(frozen=True)
class Trunk:
    """Where the stable part of runs with the same HPs is kept."""

    folder: Path
    """Of these HPs, at this scale without its duration."""

    ends: tuple[int, ...]
    """The steps at which it is kept, ascending: where each length's stable part ends."""

    def kept(self, last: int) -> int:
        """The largest step up to `last` that is there; 0 if none is."""
        return max((step for step in self.ends if step <= last and self._file(step).exists()), default=0)

    def load(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        last: int,
        run: Mapping[str, Any],
        ranks: Ranks,
    ) -> dict[str, Any] | None:
        """Restore the state at the largest step up to `last`; called by all ranks.

        Args:
            model: Before it was wrapped.
            optimizers: Its optimizers.
            last: Where the stable part of this run ends.
            run: Identifies the trunk.
            ranks: The processes that train together.

        Returns:
            The progress there, without the curve and the time of the run that trained it; None if nothing is
            kept.
        """
        for step in reversed([step for step in self.ends if step <= last]):
            progress = Resume(self._file(step), math.inf, run, ranks).load(model, optimizers)
            if progress is not None:
                return {**progress, "seconds": 0.0, "progress": [], "losses": []}
        return None

    def save(
        self,
        model: nn.Module,
        optimizers: Optimizers,
        progress: Mapping[str, Any],
        run: Mapping[str, Any],
        ranks: Ranks,
    ) -> None:
        """Keep the state at this step, unless that was done before; called by all ranks at the same step.

        Args:
            model: Before it was wrapped.
            optimizers: Its optimizers.
            progress: As stored in a checkpoint.
            run: Identifies the trunk.
            ranks: The processes that train together.
        """
        file = self._file(progress["step"])
        if not ranks.from_first(file.exists()):
            Resume(file, math.inf, run, ranks).save(model, optimizers, progress)

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.pt"
