"""What a model can be called with, when nobody says it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from transfer_bo.parametrization.trace import Trace, trace_uses

__all__ = ["Run", "run_somehow"]

Arguments = tuple[torch.Tensor, ...]

_IMAGE_SIZES = (32, 28, 64, 224)


def _guesses(model: nn.Module) -> list[Arguments]:
    """Token numbers if the first layer is an embedding, images if it is a convolution, else numbers."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return [((torch.arange(16).reshape(2, 8) * 3 + 1) % module.num_embeddings,)]
        if isinstance(module, nn.Linear):
            x = torch.linspace(-1, 1, 16 * module.in_features)
            return [(x.reshape(2, 8, -1),), (x.reshape(16, -1),)]
        if isinstance(module, _ConvNd):
            said = getattr(getattr(model, "config", None), "image_size", None)
            sizes = [said] if isinstance(said, int) else _IMAGE_SIZES
            shapes = [(2, module.in_channels, *[size] * len(module.kernel_size)) for size in sizes]
            return [(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape),) for shape in shapes]
    return []


@dataclass(frozen=True)
class Run:
    """A model that was called, and how."""

    model: nn.Module
    arguments: Arguments | None
    """What it was called with; None if no call worked."""
    trace: Trace | None
    reason: str
    """Why no call worked."""


def run_somehow(model: nn.Module, inputs: Arguments | None) -> Run:
    """Call a model with the given inputs, or with the first guess that works, and watch it."""
    reason = "no input could be guessed"
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for given in _guesses(model) if inputs is None else [inputs]:
        arguments = tuple(x.to(precision) if x.is_floating_point() else x for x in given)
        try:
            return Run(model, arguments, trace_uses(model, arguments), "")
        except Exception as error:
            reason = f"calling the model failed with {type(error).__name__}: {error}"
    return Run(model, None, None, reason)
