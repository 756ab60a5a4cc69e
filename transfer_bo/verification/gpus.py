"""Accelerators by name: what one of them computes and holds, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from transfer_bo.errors import TransferError

__all__ = ["GPUS", "Gpu", "find_gpu", "gpu_of_device"]


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
        Gpu("L4", 121e12, 24e9, "NVIDIA L4 data sheet: 242 with sparsity"),
        Gpu("L40S", 362e12, 48e9, "NVIDIA L40S data sheet: 362.05, 733 with sparsity"),
        Gpu("RTX-4090", 165.2e12, 24e9, "NVIDIA Ada GPU architecture, appendix A: accumulated in fp32"),
        Gpu("A100-40GB", 312e12, 40e9, "NVIDIA A100 data sheet: 624 with sparsity"),
        Gpu("A100-80GB", 312e12, 80e9, "NVIDIA A100 data sheet: 624 with sparsity"),
        Gpu("H100-PCIe", 756e12, 80e9, "NVIDIA H100 data sheet: 1513 with sparsity"),
        Gpu("H100", 989e12, 80e9, "NVIDIA H100 data sheet, SXM: 1979 with sparsity"),
        Gpu("H200", 989e12, 141e9, "NVIDIA H200 data sheet, SXM: 1979 with sparsity"),
        Gpu("B200", 2250e12, 180e9, "NVIDIA HGX B200 data sheet, an eighth: 4500 with sparsity"),
        Gpu("MI300X", 1307e12, 192e9, "AMD Instinct MI300X data sheet: 1307.4, 2614.9 with sparsity"),
    )
}
"""The table, by name."""


def gpu_of_device(device_name: str) -> Gpu | None:
    """The row for a device as CUDA calls it, e.g. "NVIDIA A100-SXM4-80GB"; None if there is none."""

    def words(name: str) -> set[str]:
        return set(name.lower().replace("-", " ").split())

    fitting = [gpu for gpu in GPUS.values() if words(gpu.name) <= words(device_name)]
    return max(fitting, key=lambda gpu: len(words(gpu.name)), default=None)


def find_gpu(name: str) -> Gpu:
    """A row of the table; upper and lower case do not matter.

    Raises:
        TransferError: If there is none of this name.
    """
    for gpu in GPUS.values():
        if gpu.name.lower() == name.lower():
            return gpu
    raise TransferError(f"There is no GPU {name!r} in the table; use one of {', '.join(GPUS)}.")
