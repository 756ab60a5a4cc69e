"""Faults on demand, for tests: a chosen rank fails at a chosen step in a chosen way.

    TRANSFER_BO_FAULT='{"kind": "kill", "rank": 1, "step": 5, "once": "fired"}' transfer-bo run STUDY.toml

The variable is read once when a run starts; without it a run does nothing more than before.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from transfer_bo.errors import TrainingError

__all__ = ["FAULT", "Fault", "FaultError", "fault_from_environment"]

FAULT = "TRANSFER_BO_FAULT"
"""Environment variable: a `Fault` as JSON."""

TOO_MANY = 2**60
"""Bytes that no device has."""


class FaultError(RuntimeError):
    """The exception that a fault of the kind "exception" raises."""


def _raise(model: nn.Module) -> None:
    raise FaultError("This fault was asked for.")


def _run_out_of_memory(model: nn.Module) -> None:
    # The device's own error, not an imitation of it.
    torch.empty(TOO_MANY, dtype=torch.uint8, device=next(model.parameters()).device)


def _hang(model: nn.Module) -> None:
    while True:
        time.sleep(1.0)


_KINDS: Mapping[str, Callable[[nn.Module], None]] = {
    "exception": _raise,
    "kill": lambda model: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda model: os.kill(os.getpid(), signal.SIGTERM),
    "memory": _run_out_of_memory,
    "hang": _hang,
}
"""What happens, by kind; "term" is a request to end, which the run may obey."""


@dataclass(frozen=True)
class Fault:
    """A fault; called as `after_step` of `train`.

    Raises:
        TrainingError: For an unknown kind.
    """

    kind: str
    """One of exception, kill, term, memory, hang."""

    step: int
    """The step after which it happens, from 1; 0 for before the first."""

    rank: int = 0
    """The rank that it happens to."""

    once: str | None = None
    """A file that is made when it happens; while the file is there, it does not happen again."""

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in _KINDS:
            raise TrainingError(f"{FAULT}: kind = {self.kind!r}; use one of {', '.join(_KINDS)}.")

    def __call__(self, step: int, model: nn.Module) -> None:
        """Fail, if this is the step."""
        if step != self.step:
            return
        if self.once is not None:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        _KINDS[self.kind](model)


def fault_from_environment(rank: int) -> Fault | None:
    """The fault that the environment asks for on this rank; None for none.

    Raises:
        TrainingError: If the variable holds something else.
    """
    text = os.environ.get(FAULT)
    if text is None:
        return None
    try:
        fault = Fault(**json.loads(text))
    except (ValueError, TypeError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f'{FAULT} = {text!r}; set it to JSON such as {{"kind": "kill", "rank": 0, "step": 5}}.'
        ) from error
    return fault if fault.rank == rank else None
