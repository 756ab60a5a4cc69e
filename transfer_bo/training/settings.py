"""How a run is trained, beside its HPs: schedule of the learning rate, clipping, precision, memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transfer_bo.errors import TrainingError

__all__ = ["TrainSettings", "checkpoint_activations", "compiled"]

MAX_PROGRAMS = 512
"""Programs that torch keeps of one model: several for each rung, as training and evaluation differ."""

_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "wsd": lambda x: 1 - math.sqrt(x),
}
"""Factor on the learning rate at a share x of the decay, in [0, 1], by schedule. All end at 0: that makes
the final loss less sensitive to the peak than decay to 10% (2502.15938). For WSD see 2405.18392, section
4."""


@dataclass(frozen=True)
class TrainSettings:
    """How a run is trained.

    Raises:
        TrainingError: For a value out of its range.
    """

    warmup: float = 0.05
    """Share of the steps in which the learning rate rises linearly, in [0, 1)."""

    warmup_steps: int | None = None
    """Number of steps of the warm-up, where it does not follow from `warmup`."""

    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """After warm-up: cosine or linear decay to 0, or constant with a decay at the end (WSD)."""

    decay: float = 0.2
    """Share of the steps in which WSD decays, in (0, 1]."""

    max_norm: float = 1.0
    """Gradients are clipped to this global norm, positive; infinity to leave them."""

    activation_checkpointing: bool = False
    """Keep only the inputs of blocks for the backward pass, and compute the rest again: a third more
    FLOPs."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products, and of the weights that FSDP2 gathers; auto: bfloat16 on cuda, else as they are."""

    compile: bool | None = None
    """Whether the model is compiled; None: on cuda."""

    cuda_graphs: bool = False
    """Whether a compiled model is replayed as CUDA graphs (mode "reduce-overhead" of torch.compile): faster
    where models are small. Not tested on a GPU yet."""

    def __post_init__(self) -> None:
        """Check the values."""
        ranges = {
            "warmup": (0 <= self.warmup < 1, "[0, 1)"),
            "decay": (0 < self.decay <= 1, "(0, 1]"),
            "max_norm": (self.max_norm > 0, "(0, inf]"),
            "schedule": (self.schedule in _DECAYS, ", ".join(_DECAYS)),
            "precision": (self.precision in ("auto", "float32", "bfloat16"), "auto, float32, bfloat16"),
        }
        for name, (is_good, known) in ranges.items():
            if not is_good:
                raise TrainingError(f"{name} = {getattr(self, name)!r}; set it within {known}.")

    def lr_factor(self, step: int, steps: int) -> float:
        """Factor on every learning rate at step 1..n: linear warm-up to 1, then 1 or falling, 0 at n + 1."""
        warmup = self.warmup_of(steps)
        if step <= warmup:
            return step / warmup
        start = self.stable_end(steps)
        if step <= start:
            return 1.0
        return _DECAYS[self.schedule]((step - start) / (steps + 1 - start))

    def warmup_of(self, steps: int) -> int:
        """Number of steps in which the learning rate rises, of a run of so many."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return max(1, round(self.warmup * steps)) if self.warmup else 0

    def stable_end(self, steps: int) -> int:
        """The last step before the learning rate falls, of a run of so many."""
        warmup = self.warmup_of(steps)
        return max(warmup, steps - round(self.decay * steps)) if self.schedule == "wsd" else warmup

    def in_bfloat16(self, device: torch.device) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")

    def is_compiled(self, device: torch.device) -> bool:
        """Whether the model is compiled."""
        return device.type == "cuda" if self.compile is None else self.compile


def compiled(model: nn.Module, settings: TrainSettings) -> nn.Module:
    """A model to be called in training, compiled for its shapes.

    A model of the same shapes that this process has compiled before is not compiled again, whatever its HPs:
    they are in its tensors, in the optimizer, or inputs of the program.
    """
    import torch._dynamo  # takes a second

    torch._dynamo.config.recompile_limit = MAX_PROGRAMS
    torch._dynamo.config.accumulated_recompile_limit = MAX_PROGRAMS
    mode = "reduce-overhead" if settings.cuda_graphs else None
    return torch.compile(model, dynamic=False, mode=mode)  # type: ignore[return-value]


def checkpoint_activations(model: nn.Module) -> None:
    """Make each block of a model's `ModuleList`s keep its inputs only, in place; names do not change."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
