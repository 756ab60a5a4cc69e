"""How a few steps of training change the outputs of a model's layers: the measure of the coordinate check.

For every layer that holds tensors, the root mean square over its outputs of

- *total*: F_after(x_after) - F_before(x_before), the change of the output;
- *own*: F_after(x_after) - F_before(x_after), its part due to the layer's own update. It shows which layer
  learns too fast or too slowly, while the total includes the changes of all layers before it.

In a block, own changes are multiplied by the number of blocks times the residual multiplier (relative to the
base): their sum over blocks if all blocks learn alike, which a rule for depth preserves (complete feature
learning, arXiv:2505.01618). For a stack, the change of what all its blocks add.

Symbols:
    F: A layer before and after the steps.
    x: Its input before and after the steps.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transfer_bo.parametrization.apply import Parametrization
from transfer_bo.parametrization.builds import build_real, modules_of
from transfer_bo.parametrization.hp_values import HPs
from transfer_bo.parametrization.rules import Ratios, Role

__all__ = ["OWN", "STACK", "TOTAL", "Key", "Loss", "measure_changes"]

TOTAL = "total"
"""Change of a layer's output."""
OWN = "own"
"""Its part due to the layer's own update."""
STACK = "stack"
"""Change of what all blocks of a stack add."""

Key = tuple[str, str]
"""Layer and measure."""
Inputs = tuple[torch.Tensor, ...]
Loss = Callable[[nn.Module, Inputs], torch.Tensor]
"""`loss(model, inputs)`."""


@dataclass(frozen=True)
class _Layer:
    """A layer that is measured."""

    label: str
    """Its module type."""
    factor: float
    """On its own change."""
    folded: float
    """The branch multiplier folded into it, by which its output is divided."""
    is_readout: bool
    """Whether it maps to outputs or gates: its total change is not measured then (see `measure_changes`)."""


def measure_changes(
    p: Parametrization, hps: HPs | None, seed: int, inputs: Inputs, steps: int, loss: Loss
) -> dict[Key, float]:
    """Initialize a model, train it for a few steps; rms change by layer and measure.

    For a readout or a router only the own change is given: its initial values are smaller than its updates
    under every rule like muP, so that the change of its output due to changed inputs vanishes as width^-1/2.

    Args:
        p: Of the model at its target.
        hps: In base coordinates.
        seed: Of the initial values.
        inputs: What the model is called with.
        steps: Optimizer steps.
        loss: Of the model on the inputs.
    """
    model = build_real(p.build_model, p.target, seed)
    p.initialize(model, hps, seed)
    model.eval()  # without dropout, whose changes are not due to learning

    layers = _layers(p)
    modules = modules_of(model)
    start = {path: copy.deepcopy(modules[path]) for path in layers}
    before, _ = _run(p, model, inputs, layers, start)

    optimizers = p.optimizers(model, hps)
    for _ in range(steps):
        model.zero_grad()
        loss(model, inputs).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()

    after, own = _run(p, model, inputs, layers, start)
    changes = {
        key: [end - begin for begin, end in zip(tensors, after[key], strict=True)]
        for key, tensors in before.items()
    }
    return {key: _rms(tensors) for key, tensors in {**changes, **own}.items()}


def _layers(p: Parametrization) -> dict[str, _Layer]:
    """Layers by path; in a stack those of its last block."""
    last = {path.rpartition(".")[0]: path for path in (t.block for t in p.tensors.values()) if path}
    theta = {name.rpartition(".")[0]: multiplier for name, multiplier in p.folded.items()}

    layers: dict[str, _Layer] = {}
    for tensor in p.tensors.values():
        if tensor.block is not None and tensor.block not in last.values():
            continue
        path, factor = tensor.name.rpartition(".")[0], 1.0
        if tensor.block is not None:
            factor = tensor.depth * p.rule.residual.at(Ratios(depth=tensor.depth), p.alpha)
        is_readout = tensor.role in (Role.UNEMBEDDING, Role.ROUTER)
        layers[path] = _Layer(tensor.module_type, factor, theta.get(path, 1.0), is_readout)
        for reader in tensor.readers:
            layers[reader] = _Layer(reader.rpartition(".")[2], 1.0, 1.0, True)
    return {path: layer for path, layer in layers.items() if path}


@torch.no_grad()
def _run(
    p: Parametrization,
    model: nn.Module,
    inputs: Inputs,
    layers: Mapping[str, _Layer],
    start: Mapping[str, nn.Module],
) -> tuple[dict[Key, list[torch.Tensor]], dict[Key, list[torch.Tensor]]]:
    """Outputs of the layers and stacks, and own changes of the layers, of every call in a forward pass."""
    outputs: dict[Key, list[torch.Tensor]] = defaultdict(list)
    own: dict[Key, list[torch.Tensor]] = defaultdict(list)
    modules = modules_of(model)

    def watch(path: str, layer: _Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            # The input has passed the layer's hooks already, so `forward` is called without them.
            after, before = (_tensor(each(*args, **kwargs)) for each in (module.forward, start[path].forward))
            if after is None or before is None:
                return
            own[layer.label, OWN].append((after - before) * (layer.factor / layer.folded))
            if not layer.is_readout:
                outputs[layer.label, TOTAL].append(after / layer.folded)

        return hook

    handles = [
        modules[path].register_forward_hook(watch(path, layer), with_kwargs=True)
        for path, layer in layers.items()
    ]
    with _stacks(p, modules, outputs):
        try:
            model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
    return dict(outputs), dict(own)


@contextmanager
def _stacks(
    p: Parametrization, modules: Mapping[str, nn.Module], outputs: dict[Key, list[torch.Tensor]]
) -> Iterator[None]:
    """Record what the blocks of each stack add."""
    blocks: dict[str, list[str]] = defaultdict(list)
    for tensor in p.tensors.values():
        if tensor.block is not None and tensor.block not in blocks[tensor.block.rpartition(".")[0]]:
            blocks[tensor.block.rpartition(".")[0]].append(tensor.block)

    entering: dict[str, torch.Tensor] = {}

    def enter(stack: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if (x := _tensor((*args, *kwargs.values()))) is not None:
                entering[stack] = x.clone()

        return hook

    def leave(stack: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            out = _tensor(output)
            if out is not None and stack in entering and out.shape == entering[stack].shape:
                outputs[stack or "blocks", STACK].append(out - entering[stack])

        return hook

    handles = []
    for stack, paths in blocks.items():
        handles.append(modules[paths[0]].register_forward_pre_hook(enter(stack), with_kwargs=True))
        handles.append(modules[paths[-1]].register_forward_hook(leave(stack)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> torch.Tensor | None:
    """An output, or the first of several; None if it is no tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first.detach() if isinstance(first, torch.Tensor) else None


def _rms(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([x.double().square().mean() for x in tensors]).mean().sqrt())
