"""Write values into tensors and take norms of them, also where `fully_shard` has made them DTensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

__all__ = ["is_sharded", "total_norm", "write_values"]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # slow to import; not in every build of torch

    return isinstance(tensor, DTensor)


@torch.no_grad()
def write_values(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copy values of the full shape into a tensor, in place; a sharded one takes this process's part.

    Every process must hold the same values: nothing is sent.
    """
    if is_sharded(tensor):
        from torch.distributed.tensor import DTensor, distribute_tensor

        sharded = cast(DTensor, tensor)
        values = values.to(device=sharded.device_mesh.device_type, dtype=tensor.dtype)
        values = distribute_tensor(values, sharded.device_mesh, sharded.placements, src_data_rank=None)
    tensor.copy_(values)


def total_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """2-norm of all elements of all tensors, those on other processes included: the same on each process.

    Tensors that are not sharded must be equal on all processes, as DDP's gradients are.
    """
    parts = [[t for t in tensors if is_sharded(t) is sharded] for sharded in (False, True)]
    norms = [nn.utils.get_total_norm(part) for part in parts if part]

    full = [
        cast("torch.distributed.tensor.DTensor", norm).full_tensor() if is_sharded(norm) else norm
        for norm in norms
    ]
    if len(full) == 1:
        return full[0]
    return nn.utils.get_total_norm(full)  # of no tensors it is 0
