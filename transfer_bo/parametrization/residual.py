"""Residual branches: which modules of a block compute them, and where a multiplier on them can live.

A branch multiplier a in x + a·F(x) is applied in one of two forms that train alike. *Folded*: into the last
layer of F, through the optimizer's scale symmetry (`rules.Symmetry`). *Hooked*: the output of F is multiplied
by a in the forward pass. Every property is tested on a small build of the model, in float64 (float32 where
the model has no float64), block by block:

- with all its tensors at zero, a block returns its input: it is residual;
- the output of a branch, multiplied by `PROBE_FACTOR`, multiplies what the block adds by the same factor
  while the branches behind it are multiplied by 0, and the input itself does not pass through it;
- with all branches multiplied by 0, the block returns its input;
- folding is exact where multiplying the tensors of a branch's last layer multiplies the branch.

So a branch may be a submodule, or loose layers of a block, and may end in a norm or in a dropout.

Symbols:
    x: Input of a block.
    F: A residual branch.
    a: Its multiplier.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transfer_bo.parametrization.builds import modules_of

__all__ = ["Branch", "Multiply", "MultiplyInput", "find_branches", "set_input_multiplier", "set_multiplier"]

PROBE_FACTOR = 1024.0
"""Factor on branches in tests: so large that only a linear map passes; a power of 2, so exact."""
RTOL = 1e-4
"""Relative tolerance of such a test."""
ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Rounding error relative to the input: some models sum in float32 whatever they are given."""


@dataclass(frozen=True)
class Branch:
    """A residual branch; paths are inside its block."""

    name: str
    """Name of the module that holds its weights, e.g. "attn"."""
    path: str
    """The module whose output it is; a hooked multiplier is registered on it."""
    layer: str
    """The layer that runs last in it, if that is known, else as `path`."""
    foldable: bool
    """Whether a multiplier can be folded into that layer exactly."""


class _NotResidual(Exception):
    """Why the branches of a block were not found."""


class _Factor:
    """A multiplier; an input to compiled programs, so that another value needs no other program."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        # The compiler takes a float as a constant of the program, and a tensor as an input.
        self._input = torch.tensor(factor, dtype=torch.float64, device="cpu")

    def times(self, x: Any) -> Any:
        """A tensor times the multiplier."""
        return x * (self._input if torch.compiler.is_compiling() else self.factor)


class Multiply(_Factor):
    """Forward hook: multiplies a module's output (the first tensor, if there are several)."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output times the factor."""
        if isinstance(output, tuple):
            return (self.times(output[0]), *output[1:])
        return self.times(output)


class MultiplyInput(_Factor):
    """Forward pre-hook: multiplies what a module is called with (its first argument)."""

    def __call__(self, module: nn.Module, args: Any) -> Any:
        """The arguments, the first one times the factor."""
        return (self.times(args[0]), *args[1:])


def set_multiplier(module: nn.Module, factor: float) -> None:
    """Multiply a module's output, in place of a multiplier set earlier; 1 removes it."""
    _remove_hooks(module._forward_hooks, Multiply)
    if factor != 1.0:
        module.register_forward_hook(Multiply(factor))


def set_input_multiplier(module: nn.Module, factor: float) -> None:
    """Multiply a module's input, in place of a multiplier set earlier; 1 removes it."""
    _remove_hooks(module._forward_pre_hooks, MultiplyInput)
    if factor != 1.0:
        module.register_forward_pre_hook(MultiplyInput(factor))


def _remove_hooks(hooks: dict[int, Any], kind: type) -> None:
    for key, hook in list(hooks.items()):
        if isinstance(hook, kind):
            del hooks[key]


def _first(output: Any) -> torch.Tensor:
    found = output[0] if isinstance(output, tuple) else output
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"a block or branch returned {type(found).__name__}, not a tensor")
    return found.detach()


@torch.no_grad()
def find_branches(
    model: nn.Module, blocks: Sequence[str], arguments: tuple[torch.Tensor, ...]
) -> tuple[dict[str, list[Branch]], str]:
    """The residual branches of each block, and where their multiplier can be folded.

    Args:
        model: A small build on the CPU; it is changed (precision, eval, noise on its values).
        blocks: Paths of the blocks.
        arguments: What the model is called with.

    Returns:
        The branches by the path of their block, in the order in which they run, and the reason if some are
        missing.
    """
    model.eval()
    noise = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # a layer that is zero would hide what depends on it
        values = torch.randn(parameter.shape, generator=noise)
        if parameter.is_floating_point() or parameter.is_complex():  # frozen ones may be quantized
            parameter.add_(0.05 * values)
    for dtype in (torch.float64, torch.float32):
        model.to(dtype)
        try:
            calls = _record_calls(model, blocks, arguments, dtype)
            break
        except Exception as error:  # some operations, such as those of fused experts, have no float64
            reason = f"calling the model failed with {type(error).__name__}: {error}"
    else:
        return {}, reason

    occurrences = Counter(id(q) for _, q in model.named_parameters(remove_duplicate=False))
    tied = frozenset(key for key, count in occurrences.items() if count > 1)
    modules = modules_of(model)
    found: dict[str, list[Branch]] = {}
    reason = ""
    for path in blocks:
        if path not in calls:
            reason = f"{path!r} is not called as a module"
            continue
        try:
            found[path] = _BlockProbe(modules[path], calls[path]).branches(tied)
        except _NotResidual as error:
            reason = f"{path!r} {error}"
        except Exception as error:
            reason = f"calling {path!r} failed with {type(error).__name__}: {error}"
    return found, reason


def _record_calls(
    model: nn.Module, paths: Iterable[str], arguments: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of the modules when the model runs; copies, as a call changes caches of keys and values."""
    calls: dict[str, Any] = {}
    modules = modules_of(model)

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[path] = copy.deepcopy((args, kwargs))

        return hook

    handles = [modules[p].register_forward_pre_hook(keep(p), with_kwargs=True) for p in paths if p in modules]
    try:
        model(*(x.to(dtype) if x.is_floating_point() else x for x in arguments))
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _BlockProbe:
    """Tests on one block."""

    def __init__(self, block: nn.Module, call: Any) -> None:
        self.block = block
        self.call = call
        args, kwargs = call
        self.x = _first(next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)))
        self.modules = modules_of(block)
        self.order = self._find_order()

    def _run(self, block: nn.Module) -> torch.Tensor:
        args, kwargs = copy.deepcopy(self.call)
        return _first(block(*args, **kwargs))

    def _find_order(self) -> list[str]:
        """Modules inside that are called once and give a tensor, in the order in which they finish."""
        finished: list[str] = []
        tensors: set[str] = set()

        def note(path: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                finished.append(path)
                first = output[0] if isinstance(output, tuple) and output else output
                if isinstance(first, torch.Tensor) and first.is_floating_point():
                    tensors.add(path)

            return hook

        handles = [m.register_forward_hook(note(path)) for path, m in self.modules.items() if path]
        try:
            self._run(self.block)
        finally:
            for handle in handles:
                handle.remove()
        times = Counter(finished)
        return [path for path in finished if times[path] == 1 and path in tensors]

    def branches(self, tied: frozenset[int]) -> list[Branch]:
        """The branches of the block.

        Args:
            tied: Ids of tensors that other layers use too.

        Raises:
            _NotResidual: if there are none, or something else changes the input.
        """
        bare = copy.deepcopy(self.block)
        for parameter in bare.parameters():
            parameter.zero_()
        zeroed = self._run(bare)
        if not zeroed.isfinite().all():
            raise _NotResidual("is not finite with all its tensors at zero, as with normalised weights")
        if not self._is_input(zeroed):
            raise _NotResidual("is not residual: with all its tensors at zero it does not return its input")

        bare_modules = modules_of(bare)
        ends: list[str] = []
        done: list[str] = []
        try:
            out = self._run(self.block)
            for path in reversed(self.order):
                if self._is_input(out):
                    break
                if any(path.startswith(f"{other}.") for other in done):
                    continue
                without = self._multiplied(self.block, self.modules[path], 0.0)
                if torch.equal(without, out):
                    done.append(path)
                    continue
                multiplied = self._multiplied(self.block, self.modules[path], PROBE_FACTOR)
                if self._is_multiplied(out - without, multiplied - without) and self._is_input(
                    self._multiplied(bare, bare_modules[path], 0.0)
                ):
                    ends.append(path)
                    done.append(path)
                    set_multiplier(self.modules[path], 0.0)
                    out = without
            if not ends or not self._is_input(out):
                outputs = f"those of {', '.join(reversed(ends))}" if ends else "none"
                raise _NotResidual(f"changes its input by more than outputs of its modules (found {outputs})")

            names = _short([self._weights_of(end, ends) for end in ends])
            branches = [self._branch(name, end, tied) for name, end in zip(names, ends, strict=True)]
            return [branch for branch in reversed(branches) if branch is not None]
        finally:
            for end in ends:
                set_multiplier(self.modules[end], 1.0)

    def _multiplied(self, block: nn.Module, module: nn.Module, factor: float) -> torch.Tensor:
        set_multiplier(module, factor)
        try:
            return self._run(block)
        finally:
            set_multiplier(module, 1.0)

    def _is_input(self, out: torch.Tensor) -> bool:
        return out.shape == self.x.shape and self._is_equal(out, self.x)

    def _is_equal(self, out: torch.Tensor, other: torch.Tensor) -> bool:
        return bool((out - other).abs().max() <= ROUNDING * self.x.abs().max())

    def _is_multiplied(self, once: torch.Tensor, multiplied: torch.Tensor) -> bool:
        size = once.abs().max()
        allowed = PROBE_FACTOR * (RTOL * size + ROUNDING * self.x.abs().max())
        return bool(size > 0) and bool((multiplied - PROBE_FACTOR * once).abs().max() <= allowed)

    def _holds_weights(self, path: str) -> bool:
        return any(parameter.dim() >= 2 for parameter in self.modules[path].parameters())

    def _weights_of(self, end: str, ends: Sequence[str]) -> str:
        """The module of a branch that has weights: the one whose output it is, or the last one before it."""
        if self._holds_weights(end):
            return end
        for path in reversed(self.order[: self.order.index(end)]):
            within = any(path == other or path.startswith(f"{other}.") for other in ends)
            if not within and self._holds_weights(path):
                return path
        return end

    def _branch(self, name: str, end: str, tied: frozenset[int]) -> Branch | None:
        """A branch with its last layer; foldable if multiplying the layer's tensors multiplies the branch.

        Of a branch that adds something with its trainable tensors at zero, which frozen tensors compute, only
        what the trainable ones add is a branch; None if that is nothing.

        Raises:
            _NotResidual: if what the trainable tensors add is not linear in the tensors of one layer.
        """
        before = self.order[: self.order.index(end) + 1]
        layer = next((path for path in reversed(before) if self._own_tensors(path)), None)
        tensors = [] if layer is None else self._own_tensors(layer)
        set_multiplier(self.modules[end], 1.0)
        try:
            once = self._run(self.block)
            multiplied = self._run_with(tensors, PROBE_FACTOR)
            frozen = self._run_with(self._trainable(), 0.0)
            without_layer = self._run_with(tensors, 0.0)
        finally:
            set_multiplier(self.modules[end], 0.0)

        is_untied = not tied & {id(tensor) for tensor in tensors}
        if self._is_input(frozen):
            if layer is None:
                return Branch(name, end, end, False)
            is_linear = self._is_multiplied(once - self.x, multiplied - self.x)
            return Branch(name, end, layer, is_untied and is_linear)

        if self._is_equal(once, frozen):
            return None
        is_all_in_layer = self._is_equal(without_layer, frozen)
        if (
            layer is None
            or not is_all_in_layer
            or not self._is_multiplied(once - frozen, multiplied - frozen)
        ):
            raise _NotResidual(
                f"adds outputs of frozen tensors in {end!r}, whose trainable part cannot be multiplied alone"
            )
        return Branch(name, layer, layer, is_untied)

    def _run_with(self, tensors: Iterable[torch.Tensor], factor: float) -> torch.Tensor:
        """Run the block with some of its tensors multiplied."""
        values = [(tensor, tensor.clone()) for tensor in tensors]
        for tensor, _ in values:
            tensor.mul_(factor)
        try:
            return self._run(self.block)
        finally:
            for tensor, value in values:
                tensor.copy_(value)

    def _trainable(self) -> list[nn.Parameter]:
        return [q for q in self.block.parameters() if q.requires_grad]

    def _own_tensors(self, path: str) -> list[nn.Parameter]:
        return [q for q in self.modules[path].parameters(recurse=False) if q.requires_grad]


def _short(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path that no other path has and that does not begin with a number."""

    def short(path: str) -> str:
        parts = path.split(".")
        for length in range(1, len(parts)):
            suffix = parts[-length:]
            if not suffix[0].isdigit() and sum(p.split(".")[-length:] == suffix for p in paths) == 1:
                return ".".join(suffix)
        return path

    return [short(path) for path in paths]
