"""Builds of a user's model, and the names of its tensors and modules.

Models are built on the meta device to compare shapes, and on the CPU for initial values. No build changes the
random state of the caller. Names are canonical: those of the user's own module, whatever wraps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from transfer_bo.errors import ParametrizationError, TransferError
from transfer_bo.scale import Scale

__all__ = ["BuildModel", "build_meta", "build_real", "modules_of", "parameters_of", "unwrap", "within_build"]

BuildModel = Callable[[Scale], nn.Module]
"""Gives a model at a scale."""

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
}
"""Classes that wrap a module without changing what it computes, and their name for it."""


def within_build(build_model: BuildModel, scale: Scale, device: str) -> nn.Module:
    """The model at a scale on a device, under the random state of the caller, which moves on."""
    if isinstance(build_model, nn.Module) or not callable(build_model):
        raise ParametrizationError(
            f"build_model is a {type(build_model).__name__}; give a function that builds the model at a "
            "scale, e.g. lambda scale: Model(scale.width)."
        )
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

    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ParametrizationError(
                f"Tensor {name!r} belongs to a lazy module and has no shape before the model's first call; "
                "give its module the input size, e.g. nn.Linear in the place of nn.LazyLinear."
            )
    return model


class _WithoutNormalDraws(TorchFunctionMode):
    """`normal_` leaves a tensor of the meta device as it is, which has no values anyway.

    Otherwise it would load the compiler of PyTorch, which takes a second and is used for nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "normal_":  # of a tensor, or of torch.nn.init
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def build_meta(build_model: BuildModel, scale: Scale) -> nn.Module:
    """The model at a scale on the meta device: shapes without memory.

    Raises:
        ParametrizationError: if `build_model` fails, returns no module, or returns a lazy one.
    """
    with torch.random.fork_rng(devices=[]), _WithoutNormalDraws():
        return within_build(build_model, scale, "meta")


def build_real(build_model: BuildModel, scale: Scale, seed: int) -> nn.Module:
    """The model at a scale on the CPU, as `torch.manual_seed(seed); build_model(scale)` gives it.

    Raises:
        ParametrizationError: if `build_model` fails, returns no module, or returns a lazy one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return within_build(build_model, scale, "cpu")


def _wrapped_name(module: nn.Module) -> str | None:
    """The name that a wrapper has for the module inside it; None for any other module.

    Classes are compared by name, so that no optional package has to be imported.
    """
    for kind in type(module).__mro__:
        name = _WRAPPERS.get(kind.__name__)
        if name is not None and isinstance(getattr(module, name, None), nn.Module):
            return name
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside the wrappers of torch.compile, DDP and FSDP."""
    while (name := _wrapped_name(model)) is not None:
        model = getattr(model, name)
    return model


def _canonical_paths(model: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """(path, canonical path, module) of every module, each once, a wrapper before what it wraps."""
    modules = dict(model.named_modules())
    canonical: dict[str, str] = {}
    for path in modules:
        parent, _, name = path.rpartition(".")
        if not path:
            canonical[path] = ""
        elif _wrapped_name(modules[parent]) == name:
            canonical[path] = canonical[parent]
        else:
            canonical[path] = f"{canonical[parent]}.{name}".lstrip(".")
    return [(path, canonical[path], module) for path, module in modules.items()]


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by canonical path; of a wrapper and what it wraps, the inner one."""
    return {canonical: module for _, canonical, module in _canonical_paths(model)}


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable tensors by canonical name, in the model's order, each once.

    Raises:
        ParametrizationError: if two tensors have the same canonical name.
    """
    canonical = {path: name for path, name, _ in _canonical_paths(model)}
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, last = name.rpartition(".")
        key = f"{canonical[path]}.{last}".lstrip(".")
        if key in found:
            raise ParametrizationError(
                f"Two tensors of the model have the name {key!r} once wrappers are taken off; rename one."
            )
        found[key] = parameter
    return found
