"""Residual branches: which submodules of a block they are, and where a multiplier on them can live.

A branch multiplier a in x + a·F(x) is applied in one of two forms that train alike. *Folded*: into the last
layer of F, through the optimizer's scale symmetry (`rules.Symmetry`). *Hooked*: the output of F is multiplied
by a in the forward pass. What is claimed about a model is tried out on a small build of it, in float64
(float32 where it has no float64):

- with all branches silenced, a block returns its input;
- with one branch alone, doubling it doubles what the block adds;
- doubling the tensors of the layer that runs last in the branch doubles the branch (then folding is exact).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transfer_bo.parametrization.builds import modules_of

__all__ = ["Branch", "Multiply", "MultiplyInput", "examine", "set_input_multiplier", "set_multiplier"]

_RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True)
class Branch:
    """A residual branch that passed."""

    name: str
    """Path inside its block, e.g. "attn"."""
    last: str | None
    """Path, inside the block, of the layer that runs last in it; None if no layer is called, or it is
    shared."""
    foldable: bool
    """Whether a multiplier can live in that layer; where not, only a hook is exact."""


class Multiply:
    """Forward hook: multiplies a module's output (the first tensor, if there are several)."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output times the factor."""
        if isinstance(output, tuple):
            return (output[0] * self.factor, *output[1:])
        return output * self.factor


class MultiplyInput:
    """Forward pre-hook: multiplies what a module is called with (its first argument)."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, args: Any) -> Any:
        """The arguments, the first one times the factor."""
        return (args[0] * self.factor, *args[1:])


def set_multiplier(module: nn.Module, factor: float) -> None:
    """Give a module's output a multiplier, in place of one set earlier; 1 takes it away."""
    _forget(module._forward_hooks, Multiply)
    if factor != 1.0:
        module.register_forward_hook(Multiply(factor))


def set_input_multiplier(module: nn.Module, factor: float) -> None:
    """Give a module's input a multiplier, in place of one set earlier; 1 takes it away."""
    _forget(module._forward_pre_hooks, MultiplyInput)
    if factor != 1.0:
        module.register_forward_pre_hook(MultiplyInput(factor))


def _forget(hooks: dict[int, Any], kind: type) -> None:
    for key, hook in list(hooks.items()):
        if isinstance(hook, kind):
            del hooks[key]


def _first(output: Any) -> torch.Tensor:
    found = output[0] if isinstance(output, tuple) else output
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"a block or branch returned {type(found).__name__}, not a tensor")
    return found.detach()


class _Calls:
    """Records, while the model runs, how chosen modules were called and which modules ran in which order."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self.order: list[str] = []
        self.arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._handles = []
        for path, module in modules_of(model).items():
            if path in paths:
                self._handles.append(module.register_forward_pre_hook(self._keep(path), with_kwargs=True))
            if any(True for _ in module.parameters(recurse=False)):
                self._handles.append(module.register_forward_hook(self._note(path)))

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.arguments[path] = (args, kwargs)

        return hook

    def _note(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.order.append(path)

        return hook

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def examine(
    model: nn.Module, branches: Mapping[str, Sequence[str]], arguments: tuple[torch.Tensor, ...]
) -> tuple[dict[str, Branch], str]:
    """Which of the possible branches are residual branches, and where their multiplier can be folded.

    Args:
        model: A small real build; it is changed (precision, eval, noise on its values).
        branches: Names of the possible branches of each block, by the block's path.
        arguments: What the model is called with.

    Returns:
        The branches by path ("blocks.0.attn"), and a reason if some are missing.
    """
    model.eval()
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # a layer that starts at zero would hide what depends on it
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    paths = [*branches, *(f"{block}.{child}" for block, children in branches.items() for child in children)]
    for dtype in _RTOL:
        model.to(dtype)
        try:
            with _Calls(model, paths) as calls:
                model(*(x.to(dtype) if x.is_floating_point() else x for x in arguments))
            break
        except Exception as error:  # some operations, such as fused experts', have no float64
            reason = f"calling the model failed with {type(error).__name__}: {error}"
    else:
        return {}, reason

    found: dict[str, Branch] = {}
    reason = ""
    for block, children in branches.items():
        missing = [
            path for path in (block, *(f"{block}.{c}" for c in children)) if path not in calls.arguments
        ]
        if missing:
            reason = f"{missing[0]!r} is not called as a module"
            continue
        try:
            reason = _examine_block(model, block, children, calls, found) or reason
        except Exception as error:
            reason = f"calling {block!r} failed with {type(error).__name__}: {error}"
    return found, reason


def _examine_block(
    model: nn.Module, path: str, children: Sequence[str], calls: _Calls, found: dict[str, Branch]
) -> str:
    """Adds a block's branches to `found`; returns a reason if it has none."""
    modules = modules_of(model)
    block = modules[path]
    args, kwargs = calls.arguments[path]
    x = _first(next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)))

    def added(factors: Mapping[str, float]) -> torch.Tensor:
        """What the block adds to its input, each branch multiplied; those not named are silenced."""
        for child in children:
            set_multiplier(modules[f"{path}.{child}"], factors.get(child, 0.0))
        try:
            return _first(block(*args, **kwargs)) - x
        finally:
            for child in children:
                set_multiplier(modules[f"{path}.{child}"], 1.0)

    if not children or added({}).abs().max() > 0:
        return f"{path!r} changes its input even when its branches {', '.join(children)} are silent"
    for child in children:
        once, twice = added({child: 1.0}), added({child: 2.0})
        if not _is_double(once, twice):
            return f"doubling {path}.{child} does not double what {path!r} adds"
        found[f"{path}.{child}"] = _last_layer(modules, path, child, calls)
    return ""


def _is_double(once: torch.Tensor, twice: torch.Tensor) -> bool:
    size = once.abs().max()
    return bool(size > 0) and bool((twice - 2 * once).abs().max() <= _RTOL[once.dtype] * size)


def _last_layer(modules: Mapping[str, nn.Module], block: str, child: str, calls: _Calls) -> Branch:
    """The branch with the layer that runs last in it; foldable if doubling its tensors doubles the branch."""
    path = f"{block}.{child}"
    inside = [ran for ran in calls.order if ran.startswith(f"{path}.")]
    if not inside or inside.count(inside[-1]) > 1:
        return Branch(child, None, False)
    args, kwargs = calls.arguments[path]
    tensors = list(modules[inside[-1]].parameters(recurse=False))
    once = _first(modules[path](*args, **kwargs))
    for tensor in tensors:
        tensor.mul_(2)
    twice = _first(modules[path](*args, **kwargs))
    for tensor in tensors:
        tensor.div_(2)
    return Branch(child, inside[-1].removeprefix(f"{block}."), _is_double(once, twice))
