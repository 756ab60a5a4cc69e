"""Inputs that a model can be called with, guessed where the user gives none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from transfer_bo.parametrization.trace import Trace, trace_uses

__all__ = ["ExampleCall", "call_with_example_inputs"]

Arguments = tuple[torch.Tensor, ...]

_IMAGE_SIZES = (32, 28, 64, 224)
"""Heights and widths of the images that are tried."""


@dataclass(frozen=True)
class ExampleCall:
    """A call of a model."""

    arguments: Arguments | None
    """What it was called with; None if no call worked."""
    trace: Trace | None
    """How the model used its tensors; None if no call worked."""
    reason: str
    """Why no call worked; "" if one did."""


def call_with_example_inputs(model: nn.Module, inputs: Arguments | None) -> ExampleCall:
    """Call a model with the given inputs, or with the first guess that works, and trace it.

    Args:
        model: On the CPU.
        inputs: None for guesses: token numbers if the first layer is an embedding, images if it is a
            convolution, real numbers if it is a linear layer.
    """
    reason = "no input could be guessed"
    precision = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for given in _guesses(model) if inputs is None else [inputs]:
        arguments = tuple(x.to(precision) if x.is_floating_point() else x for x in given)
        try:
            return ExampleCall(arguments, trace_uses(model, arguments), "")
        except Exception as error:
            reason = f"calling the model failed with {type(error).__name__}: {error}"

    return ExampleCall(None, None, reason)


def _guesses(model: nn.Module) -> list[Arguments]:
    """Inputs that the first layer of a known kind accepts."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return [((torch.arange(16).reshape(2, 8) * 3 + 1) % module.num_embeddings,)]
        if isinstance(module, nn.Linear):
            x = torch.linspace(-1, 1, 16 * module.in_features)
            return [(x.reshape(2, 8, -1),), (x.reshape(16, -1),)]
        if isinstance(module, _ConvNd):
            configured = getattr(getattr(model, "config", None), "image_size", None)
            sizes = [configured] if isinstance(configured, int) else _IMAGE_SIZES
            shapes = [(2, module.in_channels, *[size] * len(module.kernel_size)) for size in sizes]
            return [(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape),) for shape in shapes]
    return []
