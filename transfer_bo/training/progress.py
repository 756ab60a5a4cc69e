"""The progress of a training run: its loss curve, its time, and whether it has diverged.

Losses are in nats per token; V is the size of the vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from transfer_bo.errors import Diverged

__all__ = ["Progress"]

SMOOTHING = 0.9
"""Decay of the moving average of the train loss that is checked for divergence: about 10 steps."""

TOLERANCE = 1.0
"""Nats by which the smoothed train loss may exceed the larger of initial and uniform loss."""


class Progress:
    """What a run has produced so far; raises `Diverged` for a loss that has blown up.

    Args:
        vocab_size: V.
        started: `time.perf_counter()` at the start of the run.
    """

    def __init__(self, vocab_size: int, started: float = 0.0) -> None:
        self.curve: dict[float, float] = {}
        self.smoothed = math.nan
        self.step = 0
        self._limit = math.log(vocab_size) + TOLERANCE
        self._started = started
        self._seconds_before = 0.0

    def seconds(self) -> float:
        """Wall-clock time, that before a resumption included."""
        return self._seconds_before + time.perf_counter() - self._started

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint at a step stores, beside weights and optimizer."""
        return {
            "step": step,
            "seconds": self.seconds(),
            "limit": self._limit,
            "smoothed": self.smoothed,
            "progress": list(self.curve),
            "losses": list(self.curve.values()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.step, self._seconds_before = state["step"], state["seconds"]
        self._limit, self.smoothed = state["limit"], state["smoothed"]
        self.curve = dict(zip(state["progress"], state["losses"], strict=True))

    def see(self, loss: float) -> None:
        """Count the train loss of the next step.

        Raises:
            Diverged: if it has blown up.
        """
        self.step += 1
        if self.step == 1:  # before any update
            self.smoothed = loss
            self._limit = max(self._limit, loss + TOLERANCE)
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.check("train", self.smoothed)

    def check(self, name: str, loss: float) -> float:
        """The loss again.

        Raises:
            Diverged: if it is not finite or above the limit.
        """
        if not math.isfinite(loss):
            raise Diverged(f"The {name} loss is {loss} at step {self.step}.")
        if loss > self._limit:
            raise Diverged(
                f"The {name} loss is {loss:.3g} at step {self.step}, above the limit of {self._limit:.3g}."
            )
        return loss
