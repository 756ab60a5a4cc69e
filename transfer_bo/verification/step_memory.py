"""Memory of a training step at its peak: the step is run on fake tensors, and live storages are added up.

Symbols:
    R: Number of ranks.
    W: Bytes of the trainable tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from transfer_bo.errors import TrainingError
from transfer_bo.parametrization import Parametrization
from transfer_bo.training.ranks import Parallel
from transfer_bo.training.settings import TrainSettings

__all__ = ["Loss", "Memory", "step_memory"]

Loss = Callable[[nn.Module, int], Tensor]
"""Gives the loss of a model on so many sequences of synthetic input, on torch's default device."""

BLOCKS_IN_FLIGHT = 3
"""Blocks that FSDP2 holds whole at a time: weights of the one that computes and of the next, and gradients.

Measured on a CPU with 4 ranks, 4 to 8 blocks: the estimate is 1% below to 7% above the peak.
"""


@dataclass(frozen=True)
class Memory:
    """What fills a GPU at the peak of a training step, in bytes."""

    weights: float
    """Parameters and buffers."""

    gradients: float
    """Those that exist at the peak; in a backward pass they grow while activations shrink."""

    optimizer_states: float
    """The averages of AdamW, or what another optimizer keeps."""

    activations: float
    """Tensors kept for the backward pass, and all temporary ones."""

    communication: float
    """DDP's buckets, as large as all gradients, or what FSDP2 gathers and reduces at a time."""

    @property
    def total(self) -> float:
        """The peak."""
        return float(sum(asdict(self).values()))

    @property
    def persistent(self) -> float:
        """What a smaller batch does not change."""
        return self.weights + self.optimizer_states + self.communication


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operators make, as long as they live.

    Gradients and temporary tensors have a share of their own that a rank holds, 1 or 1 / R.
    """

    def __init__(self, known: Iterable[Tensor], shards: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.gradients: dict[nn.Parameter, int] = {}
        self.gradient_share = 1 / shards
        self.temporary_share = 1.0
        self.peak = (0.0, 0.0)
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        self.live += storage.nbytes()
        weakref.finalize(storage, self._free, storage.nbytes())

        gradients = sum(self.gradients.values())
        now = (gradients * self.gradient_share, (self.live - gradients) * self.temporary_share)
        self.peak = max(self.peak, now, key=sum)

    def _free(self, n_bytes: int) -> None:
        self.live -= n_bytes

    def accumulated(self, parameter: nn.Parameter) -> None:
        """A gradient is complete: from now on it is no temporary tensor."""
        if parameter.grad is not None:
            self.gradients[parameter] = parameter.grad.untyped_storage().nbytes()


def step_memory(
    parametrization: Parametrization,
    model: nn.Module,
    hps: Mapping[str, float] | None,
    loss: Loss,
    rows: int,
    parts: int,
    ranks: int,
    parallel: Parallel,
    *,
    autocast: bool,
) -> Memory:
    """Run a step of the trainer on fake tensors, with the optimizer's states as after earlier steps.

    Call it inside a `FakeTensorMode`.

    Args:
        parametrization: Gives parameter groups and clipping.
        model: Its tensors are fake; they are changed in place.
        hps: In base coordinates.
        loss: Gives the model's loss.
        rows: Sequences in one part of a rank's share of the batch.
        parts: Parts that pass through the model one after the other.
        ranks: R.
        parallel: How ranks share the model.
        autocast: Whether matrix products run in bfloat16.

    Raises:
        TrainingError: for Adafactor, whose step reads values.
    """
    shards = ranks if parallel == "fsdp2" else 1
    optimizers = parametrization.optimizers(model, hps, fused=True)
    if any(isinstance(optimizer, torch.optim.Adafactor) for optimizer in optimizers):
        raise TrainingError(
            "The memory of a step with Adafactor is not known without values, which torch's reads; as an "
            "upper bound, take that of AdamW."
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    _step(optimizers)

    weights = [*model.parameters(), *model.buffers()]
    states = [
        x for x in tree_leaves([dict(optimizer.state) for optimizer in optimizers]) if isinstance(x, Tensor)
    ]
    with _LiveStorages([*weights, *states], shards) as storages:
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(storages.accumulated)  # type: ignore[no-untyped-call]
        for _ in range(min(parts, 2)):  # from the second on, all are alike
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value = loss(model, rows) / parts
            value.backward()  # type: ignore[no-untyped-call]
            del value
        storages.temporary_share = 1 / shards  # clipping and optimizer work on shards
        parametrization.clip_grad_norm_(model, TrainSettings().max_norm)
        _step(optimizers)

    gradients, activations = storages.peak
    return Memory(
        weights=_bytes(weights) / shards,
        gradients=gradients,
        optimizer_states=_bytes(states) / shards,
        activations=activations,
        communication=0.0 if ranks == 1 else _communication(model, parallel),
    )


def _step(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _bytes(tensors: Iterable[Tensor]) -> float:
    """Bytes of all storages, each counted once."""
    return float(sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values()))


def _communication(model: nn.Module, parallel: Parallel) -> float:
    """Bytes that the exchange between ranks holds beside each rank's own tensors.

    DDP copies gradients into buckets of W bytes in all. With FSDP2, `Ranks.spread` gathers each block of a
    `ModuleList` by itself and the other tensors together, which stay gathered for the whole step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if parallel == "ddp":
        return _bytes(trained)

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [list(block.parameters()) for blocks in lists for block in blocks]
    in_blocks = {id(parameter) for block in blocks for parameter in block}
    others = [parameter for parameter in model.parameters() if id(parameter) not in in_blocks]
    largest = max(map(_bytes, blocks), default=0.0)
    return _bytes(others) + BLOCKS_IN_FLIGHT * largest
