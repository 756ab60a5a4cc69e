"""One process of several that train together, for `test_ranks.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from stand_in import StandIn

from transfer_bo import Scale
from transfer_bo.errors import Preempted
from transfer_bo.training import Corpus, TrainResult, build_transformer, train


def run(parallel: str = "ddp", **more: Any) -> TrainResult:
    """Train a small model in float64 for 12 steps of 8 sequences."""
    tokens = (np.arange(5_000) % 10).astype(np.uint8)
    corpus = Corpus(tokens[:4_000], tokens[4_000:], 256, "digits")
    return train(
        build_transformer(Scale(width=16, depth=2)).double(),
        StandIn(),
        {"lr": 0.01},
        corpus,
        batch=8,
        tokens=8 * 16 * 12,
        context=16,
        seed=0,
        device="cpu",
        threads=1,
        reports=12,
        parallel=parallel,  # type: ignore[arg-type]
        **more,
    )


def work(rank: int, size: int, folder: Path, parallel: str, jobs: list[dict[str, Any]], results: Any) -> None:
    """Join the group and do the jobs, one after the other; the first rank hands over what came out."""
    os.environ.update(OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=size)
    try:
        for number, job in enumerate(jobs):
            stop_at = job.pop("stop_at", None)
            steps = iter(range(1, 1000))
            # Only one rank is asked to stop: the others must follow.
            stop = lambda: rank == size - 1 and next(steps) == stop_at  # noqa: B023, E731
            try:
                result = run(parallel, stop=stop, **job)
                outcome: tuple[Any, ...] = (result.loss, result.curve)
            except Preempted:
                outcome = ("preempted", {})
            if rank == 0:
                results.put((number, *outcome))
    finally:
        dist.destroy_process_group()
