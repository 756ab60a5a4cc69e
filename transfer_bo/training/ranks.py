"""The processes that train one model together: each takes its share of every batch.

A single process needs no process group.

Symbols:
    R: Number of ranks.
    B: Sequences in a global batch.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from transfer_bo.errors import TrainingError

__all__ = ["Parallel", "Ranks", "return_freed_memory"]

Parallel = Literal["ddp", "fsdp2"]


LARGE_BLOCK = 1 << 18
"""Bytes from which a tensor on a CPU gets memory of its own from the system, once `return_freed_memory` was
called."""

_M_MMAP_THRESHOLD = -3
"""The number of this option in glibc's malloc.h."""


def return_freed_memory() -> None:
    """Make glibc return the memory of large tensors to the system when they are freed.

    By default it keeps it, in pieces that tensors of other sizes do not fit into: a rank that gathers and
    frees block after block would soon hold several times what it uses. Does nothing elsewhere than with
    glibc.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


class Ranks:
    """The rank of this process among those that train together, and how the model is spread over them.

    Args:
        parallel: With "ddp" every rank holds the whole model, with "fsdp2" a shard of every tensor.
    """

    def __init__(self, parallel: Parallel = "ddp") -> None:
        is_group = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_group else 0
        self.size = dist.get_world_size() if is_group else 1
        self.is_sharded = parallel == "fsdp2" and self.size > 1

    def spread(self, model: nn.Module, *, in_bfloat16: bool = False) -> nn.Module:
        """The module to call in training; `model` itself keeps its tensors and their names.

        With fsdp2 each block of a `ModuleList` is gathered by itself, and all other tensors together.

        Args:
            model: May be on the meta device with fsdp2.
            in_bfloat16: With fsdp2, gather weights and compute in bfloat16; gradients are summed in float32.
        """
        if self.size == 1:
            return model
        if not self.is_sharded:
            # Without this option DDP regroups its gradients after the first step and sums them in another
            # order from then on, so that a resumed run, whose first step comes later, differs by rounding.
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # slow to load

        in_16_bits = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        policy = in_16_bits if in_bfloat16 else MixedPrecisionPolicy()
        for module in model.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        return model

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of a global batch (B x ...): B / R rows.

        Raises:
            TrainingError: if R does not divide B; the mean of the ranks' means would not be the mean.
        """
        if len(batch) % self.size:
            raise TrainingError(
                f"A batch of {len(batch)} cannot be divided over {self.size} processes; set it to a multiple."
            )
        rows = len(batch) // self.size
        return batch[self.rank * rows : (self.rank + 1) * rows]

    def micro_batches(self, run: nn.Module, share: Tensor, parts: int) -> Iterator[tuple[Tensor, float]]:
        """Parts of the share with their weights; gradients are exchanged at the last part only."""
        pieces = torch.tensor_split(share, min(parts, len(share)))
        for i, piece in enumerate(pieces):
            is_last = i == len(pieces) - 1
            if self.is_sharded:
                run.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            elif self.size > 1:
                run.require_backward_grad_sync = is_last  # type: ignore[assignment]
            yield piece, len(piece) / len(share)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks, the same bits on each of them."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
            values /= self.size
            dist.broadcast(values, src=0)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag), device=device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
