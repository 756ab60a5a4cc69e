"""Initial values: draws of `build_model`, scaled tensor by tensor; frozen tensors are never written.

init = draw at the target · rms(draw at the base) / rms(draw at the target) · factor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from transfer_bo.parametrization.builds import modules_of
from transfer_bo.parametrization.sharding import write_values

__all__ = ["copy_buffers", "is_constant", "kurtosis", "rms"]


def is_constant(values: torch.Tensor) -> bool:
    """Whether all elements are equal, as in a gain of one or a bias of zero."""
    return bool((values == values.flatten()[0]).all())


def rms(values: torch.Tensor) -> float:
    """Root mean square."""
    return float(values.detach().double().square().mean().sqrt())


def kurtosis(values: torch.Tensor) -> float:
    """Mean fourth power over the squared mean square; 1 for zeros."""
    square = values.detach().double().square()
    mean = square.mean()
    return float(square.square().mean() / mean**2) if mean > 0 else 1.0


@torch.no_grad()
def copy_buffers(
    source: nn.Module, model: nn.Module, value: Callable[[torch.Tensor], torch.Tensor] = lambda buffer: buffer
) -> None:
    """Copy buffers, but for the stored ones of frozen modules, such as running means of a frozen norm.

    Args:
        source: A fresh build.
        model: Of the same scale; wrapped, sharded or on another device perhaps.
        value: Gives the value of one of the source's buffers.
    """
    modules = modules_of(model)
    for path, module in modules_of(source).items():
        is_frozen = _is_frozen(path, modules)
        for name, buffer in module.named_buffers(recurse=False):
            is_stored = name not in module._non_persistent_buffers_set
            if not (is_frozen and is_stored):
                write_values(modules[path].get_buffer(name), value(buffer))


def _is_frozen(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the innermost module around a path that has tensors has frozen ones only."""
    parameters = list(modules[path].parameters())
    while path and not parameters:
        path = path.rpartition(".")[0]
        parameters = list(modules[path].parameters()) if path in modules else []
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
