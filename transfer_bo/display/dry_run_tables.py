"""What a run at the target needs, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from transfer_bo.display.tables import make_table
from transfer_bo.display.text import scale_text
from transfer_bo.scale import Scale

__all__ = ["dry_run_tables"]


def dry_run_tables(found: Mapping[str, Any]) -> list[Table]:
    """Parameters by role, memory per GPU, and hours on each GPU.

    Args:
        found: What `DryRun.to_json` gives.
    """
    target = scale_text(Scale(found["target"]))
    parameters = [(_words(role), number) for role, number in found["parameters"].items()]
    memory = [(_words(part), n_bytes) for part, n_bytes in found["memory_per_gpu"].items()]
    gpus = [
        (name, gpu["flops_per_second"] / 1e12, gpu["memory"] / 1e9, gpu["hours"], _fits(gpu["fits"]))
        for name, gpu in found["gpus"].items()
    ]

    return [
        make_table(("role", "parameters"), parameters, title=f"Target: {target}"),
        make_table(("memory per GPU at the peak", "bytes"), memory, digits=3),
        make_table(("GPU", "TFLOP/s", "GB", "hours per run", "fits"), gpus, digits=3),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _fits(fits: bool) -> str:
    return "yes" if fits else "no"
