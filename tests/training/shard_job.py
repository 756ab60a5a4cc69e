"""One of several processes that train a sharded model from the meta device, for `test_shards.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from transfer_bo import Scale
from transfer_bo.errors import Preempted
from transfer_bo.parametrization import parametrize
from transfer_bo.training import Corpus, build_transformer, train
from transfer_bo.training.settings import TrainSettings

BASE = Scale(width=16, depth=2, batch=8, tokens=1e4)
SMALL = Scale(width=32, depth=2, batch=8, tokens=8 * 16 * 6)
LARGE = Scale(width=384, depth=16, batch=4, tokens=4 * 16 * 2)
NO_CLIPPING = TrainSettings(max_norm=float("inf"))


def whole(tensor: Tensor) -> Tensor:
    """A tensor of all ranks together."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def run(scale: Scale, *, meta: bool, keep: bool = True, **more: Any) -> dict[str, Any]:
    """Train for a few steps; weights before and after, curve, and how much memory grew at its peak."""
    weights: dict[int, dict[str, Tensor]] = {}
    steps = round(scale.tokens / (scale.batch * 16))

    def after_step(step: int, model: nn.Module) -> None:
        if keep and step in (0, steps):
            weights[step] = {name: whole(p) for name, p in model.named_parameters()}

    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with torch.device("meta" if meta else "cpu"):
        model = build_transformer(scale)
    tokens = (np.arange(5_000) % 10).astype(np.uint8)
    result = train(
        model,
        parametrize(build_transformer, base=BASE, target=scale),
        {"lr": 0.01},
        Corpus(tokens[:4_000], tokens[4_000:], 256, "digits"),
        **{
            "batch": scale.batch,
            "tokens": scale.tokens,
            "context": 16,
            "seed": 0,
            "device": "cpu",
            "threads": 1,
            "reports": 1,
            "after_step": after_step,
            "settings": NO_CLIPPING,
            **more,
        },
    )
    peak = _memory("VmHWM") - before
    return {"weights": weights, "curve": result.curve, "loss": result.loss, "peak": peak}


def _memory(name: str) -> int:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def work(rank: int, size: int, folder: Path, jobs: list[dict[str, Any]], results: Any) -> None:
    """Join the group and do the jobs; every rank hands over what came out."""
    os.environ.update(OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    if size > 1:
        group = f"file://{folder}/group-{size}"
        dist.init_process_group("gloo", init_method=group, rank=rank, world_size=size)
    found = []
    try:
        for job in jobs:
            stop_at = job.pop("stop_at", None)
            steps = iter(range(1, 1000))
            stop = lambda: next(steps) == stop_at  # noqa: B023, E731
            try:
                found.append(run(job.pop("scale"), stop=stop, parallel="fsdp2", **job))
            except Preempted:
                found.append({})
        torch.save(found, folder / f"found-{size}-{rank}.pt")
        results.put(rank)
    finally:
        if size > 1:
            dist.destroy_process_group()
