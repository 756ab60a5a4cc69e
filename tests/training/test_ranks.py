"""Several processes that train one model together get what one process gets, and resume to the same bits."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import rank_job
import torch

from transfer_bo.errors import TrainingError
from transfer_bo.training.ranks import Ranks

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rank_job"])
SECONDS = 120


def together(size: int, parallel: str, folder: Path, jobs: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Train with `size` gloo processes; loss and curve of each job."""
    results = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=rank_job.work, args=(rank, size, folder, parallel, jobs, results), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=SECONDS) for _ in jobs)
    for process in processes:
        process.join(SECONDS)
    return [(loss, curve) for _, loss, curve in found]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_loss_curve_is_that_of_one_process(size: int, parallel: str, tmp_path: Path) -> None:
    """To rounding in float64; whole, in two parts per step, and stopped by one rank and resumed bitwise."""
    alone = rank_job.run()
    path = tmp_path / "trial-0.pt"
    jobs: list[dict[str, Any]] = [
        {},
        {"accumulate": 2},
        {"checkpoint": path, "stop_at": 5},
        {"checkpoint": path},
    ]
    whole, parts, stopped, resumed = together(size, parallel, tmp_path, jobs)

    assert alone.loss == pytest.approx(whole[0], rel=1e-12)
    assert alone.curve == pytest.approx(whole[1], rel=1e-12)
    assert alone.curve == pytest.approx(parts[1], rel=1e-12)
    assert ("preempted", {}) == stopped
    assert whole == resumed


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    """The mean of unequal means would not be the mean."""
    ranks = Ranks()
    ranks.size = 4

    with pytest.raises(TrainingError) as error:
        ranks.share(torch.zeros(6, 2))

    assert all(part in str(error.value) for part in ("6", "4"))
    assert 2 == len(ranks.share(torch.zeros(8, 2)))
