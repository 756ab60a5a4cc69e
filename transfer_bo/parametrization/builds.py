"""Builds of a user's model: on the meta device to compare shapes, on the CPU for initial values.

None of them changes the random state of the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError, TransferError
from transfer_bo.scale import Scale

__all__ = ["BuildModel", "build_meta", "build_real", "canonical", "modules_of", "parameters_of", "unwrap"]

BuildModel = Callable[[Scale], nn.Module]
"""Gives a model at a scale."""

_WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Name parts that torch.compile, DDP, activation checkpointing and FSDP put in front of a module's own."""
_WRAPPER_CLASSES = ("DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel")
"""Names of the wrappers that `unwrap` takes off."""


def _build(build_model: BuildModel, scale: Scale, device: str) -> nn.Module:
    try:
        with torch.device(device):
            model = build_model(scale)
    except TransferError:
        raise
    except Exception as error:
        raise ParametrizationError(
            f"build_model({scale}) failed on the {device} device with {type(error).__name__}: {error}; "
            "make it build at this scale, without moving the model to a device."
        ) from error
    if not isinstance(model, nn.Module):
        raise ParametrizationError(
            f"build_model({scale}) returned {type(model).__name__}; make it return a torch.nn.Module."
        )

    return model


def build_meta(build_model: BuildModel, scale: Scale) -> nn.Module:
    """The model at a scale on the meta device: shapes without memory.

    Raises:
        ParametrizationError: if `build_model` fails or returns no module.
    """
    with torch.random.fork_rng(devices=[]):
        return _build(build_model, scale, "meta")


def build_real(build_model: BuildModel, scale: Scale, seed: int) -> nn.Module:
    """The model at a scale on the CPU, as `torch.manual_seed(seed); build_model(scale)` gives it.

    Raises:
        ParametrizationError: if `build_model` fails or returns no module.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _build(build_model, scale, "cpu")


@functools.cache
def canonical(name: str) -> str:
    """A tensor's or module's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of torch.compile, DDP and FSDP."""
    while type(model).__name__ in _WRAPPER_CLASSES:
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable tensors by canonical name, in the model's order, each once."""
    return {canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by canonical name; of a wrapper and what it wraps, the inner one."""
    return {canonical(name): module for name, module in model.named_modules()}
