"""A sharded model starts on the meta device, trains as one process does, and needs a share of its memory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import shard_job
import torch

from transfer_bo.training.settings import TrainSettings

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["shard_job"])
SECONDS = 240


def train(size: int, folder: Path, *jobs: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Run the jobs with `size` gloo processes; by rank, what came out of each."""
    results = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=shard_job.work, args=(rank, size, folder, list(jobs), results), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        results.get(timeout=SECONDS)
    for process in processes:
        process.join(SECONDS)
    return [torch.load(folder / f"found-{size}-{rank}.pt") for rank in range(size)]


def assert_equal(
    expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor], **tolerance: float
) -> None:
    """The same tensors, bit by bit or to a tolerance."""
    assert list(expected) == list(actual)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **(tolerance or {"rtol": 0.0, "atol": 0.0}), msg=name)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_from_the_meta_device_as_one_process(size: int, tmp_path: Path) -> None:
    """The same initial weights, bit by bit; after training equal to rounding, resumed bit by bit.

    One process that passes the batch in as many parts sums gradients in the same order as two ranks do, so
    that two ranks are equal to it bit by bit after training, too. Gloo sums those of four in another order.
    """
    scale, path = shard_job.SMALL, tmp_path / "trial-0.pt"
    alone = shard_job.run(scale, meta=False, accumulate=size)
    checkpointing = TrainSettings(max_norm=float("inf"), activation_checkpointing=True)
    whole, recomputed, stopped, resumed = train(
        size,
        tmp_path,
        {"scale": scale, "meta": True},
        {"scale": scale, "meta": True, "settings": checkpointing},
        {"scale": scale, "meta": True, "checkpoint": path, "stop_at": 3},
        {"scale": scale, "meta": True, "checkpoint": path},
    )[0]

    last = max(alone["weights"])
    tolerance = {} if size == 2 else {"rtol": 1e-4, "atol": 1e-5}
    assert_equal(alone["weights"][0], whole["weights"][0])
    assert_equal(alone["weights"][last], whole["weights"][last], **tolerance)
    assert_equal(whole["weights"][last], recomputed["weights"][last])
    assert {} == stopped
    assert_equal(whole["weights"][last], resumed["weights"][last])
    assert whole["loss"] == resumed["loss"]


@pytest.mark.slow  # three groups of processes
def test_a_sharded_checkpoint_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    """Stopped on four ranks, continued on two, and on one: equal to rounding."""
    scale = shard_job.SMALL
    alone = shard_job.run(scale, meta=False)
    for size in (2, 1):
        path = tmp_path / f"to-{size}" / "trial-0.pt"
        train(4, tmp_path, {"scale": scale, "meta": True, "checkpoint": path, "stop_at": 3})
        (tmp_path / "group-4").unlink(missing_ok=True)
        assert [path.name, f"{path.name}-3"] == sorted(entry.name for entry in path.parent.iterdir())

        ((resumed,), *_) = train(size, tmp_path, {"scale": scale, "meta": size > 1, "checkpoint": path})

        last = max(alone["weights"])
        assert [last] == list(resumed["weights"])  # it did not begin anew
        assert_equal(alone["weights"][last], resumed["weights"][last], rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # 28M parameters
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks in /proc")
def test_peak_memory_of_four_ranks_is_below_half(tmp_path: Path) -> None:
    """Of what one process needs, initialization included, on every rank."""
    small, large = ({"scale": s, "keep": False} for s in (shard_job.SMALL, shard_job.LARGE))
    # The small run first, as it loads libraries.
    alone = train(1, tmp_path, {**small, "meta": False}, {**large, "meta": False})[0][1]["peak"]
    sharded = [
        found[1]["peak"] for found in train(4, tmp_path, {**small, "meta": True}, {**large, "meta": True})
    ]

    print(f"peak of one process {alone / 1e6:.0f} MB, of four ranks {[round(p / 1e6) for p in sharded]} MB")
    assert all(peak < alone / 2 for peak in sharded)
