"""What a few steps of training change in a model, layer by layer: the measurements of the coordinate check.

Of every layer that holds tensors, rms over the outputs:

- *total*: output after the steps - output before;
- *own*: what the layer's own change makes of the input after the steps, F_after(x) - F_before(x). It tells
  which layer learns too fast or too slowly, where in the total each layer inherits what those before it do.

In a block, own changes are multiplied by blocks x residual multiplier (relative to the base): what they sum
up to if all blocks learn alike, which is what a rule for depth keeps (2505.01618: complete feature learning).
Of a stack, what all its blocks add up to.
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

TOTAL, OWN, STACK = "total", "own", "stack"
Key = tuple[str, str]
"""Layer and measure."""
Inputs = tuple[torch.Tensor, ...]
Loss = Callable[[nn.Module, Inputs], torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    """A layer that is measured."""

    label: str
    factor: float
    """On its own change."""
    folded: float
    """The branch multiplier folded into it, which its output is divided by."""
    reads_out: bool
    """Maps to the outputs: its total change says nothing (see `measure_changes`)."""


def measure_changes(
    p: Parametrization, hps: HPs | None, seed: int, inputs: Inputs, steps: int, loss: Loss
) -> dict[Key, float]:
    """Initialize a model, train it for a few steps; rms change by layer and measure.

    Of a readout only the own change is given: what its initial values make of changed inputs vanishes like
    width^-1/2 under every muP-like rule, as they are smaller than its updates.
    """
    model = build_real(p.build_model, p.target, seed)
    p.initialize(model, hps, seed)
    model.eval()  # dropout is no change
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
        key: [now - then for then, now in zip(tensors, after[key], strict=True)]
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
        is_readout = tensor.role is Role.UNEMBEDDING
        layers[path] = _Layer(tensor.module_type, factor, theta.get(path, 1.0), is_readout)
        if tensor.reader is not None:
            layers[tensor.reader] = _Layer(tensor.reader.rpartition(".")[2], 1.0, 1.0, True)
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
            # The input has passed the layer's own hooks already: only the layer itself is called.
            now, then = (_tensor(each(*args, **kwargs)) for each in (module.forward, start[path].forward))
            if now is None or then is None:
                return
            own[layer.label, OWN].append((now - then) * (layer.factor / layer.folded))
            if not layer.reads_out:
                outputs[layer.label, TOTAL].append(now / layer.folded)

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
    """Record what each stack's blocks add up to."""
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
    """The first of several outputs; None if it is no tensor."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first.detach() if isinstance(first, torch.Tensor) else None


def _rms(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([x.double().square().mean() for x in tensors]).mean().sqrt())
