"""What a task is asked to train: one attempt at a trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transfer_bo.scale import Scale

__all__ = ["PROXY_REPORTS", "Attempt"]

PROXY_REPORTS = 10
"""Reports of a run of the search, evenly spaced."""


@dataclass(frozen=True)
class Attempt:
    """One training run of a trial."""

    number: int
    """The trial's number."""

    scale: Scale
    """Where it runs."""

    hps: dict[str, float]
    """Its HPs, as searched."""

    seed: int
    """Of weights and data order."""

    accumulate: int
    """Parts in which a process's share of the batch goes through the model."""

    owner_losses: int
    """How many processes died while running this trial."""

    report: Callable[[float, float], None]
    """Called with (progress, loss)."""

    speed: Callable[[float], None] = lambda tokens_per_second: None
    """Called with tokens per second of training."""

    reports: int = PROXY_REPORTS
    """Number of reports over the run; a program of the user's own reports as often as it likes."""

    shares_trunk: bool = False
    """Whether it starts where a run of another length is kept, see `runners.trunks`."""
