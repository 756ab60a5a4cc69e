"""Accelerators by name: what one of them computes and holds, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from transfer_bo.errors import TransferError

__all__ = ["GPUS", "Gpu", "find_gpu"]


@dataclass(frozen=True)
class Gpu:
    """One accelerator."""

    name: str
    """What `--gpu` takes."""

    flops_per_second: float
    """Peak of matrix products in bfloat16, without sparsity (data sheets often give twice that, with it)."""

    memory: float
    """In bytes; 1 GB is 1e9 bytes."""

    source: str
    """Where both numbers come from."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A10", 125e12, 24e9, "NVIDIA A10 data sheet"),
        Gpu("L4", 121e12, 24e9, "NVIDIA L4 data sheet"),
        Gpu("L40S", 362e12, 48e9, "NVIDIA L40S data sheet"),
        Gpu("A100-40GB", 312e12, 40e9, "NVIDIA A100 data sheet"),
        Gpu("A100-80GB", 312e12, 80e9, "NVIDIA A100 data sheet"),
        Gpu("H100-PCIe", 756e12, 80e9, "NVIDIA H100 data sheet"),
        Gpu("H100", 989e12, 80e9, "NVIDIA H100 data sheet, SXM"),
        Gpu("H200", 989e12, 141e9, "NVIDIA H200 data sheet, SXM"),
        Gpu("B200", 2250e12, 180e9, "NVIDIA DGX B200 data sheet, an eighth of the system"),
        Gpu("MI300X", 1307e12, 192e9, "AMD Instinct MI300X data sheet"),
    )
}
"""The table, by name."""


def find_gpu(name: str) -> Gpu:
    """A row of the table; upper and lower case do not matter.

    Raises:
        TransferError: If there is none of this name.
    """
    for gpu in GPUS.values():
        if gpu.name.lower() == name.lower():
            return gpu
    raise TransferError(f"There is no GPU {name!r} in the table; use one of {', '.join(GPUS)}.")
