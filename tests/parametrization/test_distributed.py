"""DDP and FSDP2 over two gloo processes train as one process does.

Initial values are the same bits. With the same batch on both processes and no clipping so is all training:
the mean of two equal gradients is exact, and AdamW works element by element. With a batch split in two the
mean is taken in another order, and the norm to clip by is summed over shards: then they agree to rounding in
float64.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import BASE, TARGET, WORLD, build, run

from transfer_bo.parametrization import parametrize

WAYS = ("ddp", "ddp_of_compiled", "compiled_ddp", "fsdp", "fsdp_from_meta", "compiled_fsdp")
CASES = [(way, True) for way in WAYS] + [("ddp", False), ("fsdp", False)]


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    script = Path(__file__).parent / "two_processes.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [0] * WORLD == [process.returncode for process in processes], "\n".join(said)
    return torch.load(folder / "result.pt")


@pytest.fixture(scope="module")
def alone():
    """The same training in this process."""

    def one(fold, max_norm):
        p = parametrize(build, BASE, TARGET, fold=fold)
        return run(p, build(TARGET), max_norm, slice(None))

    return {(fold, way): one(fold, n) for fold in (True, False) for way, n in (("same", 1e9), ("split", 0.3))}


@pytest.mark.parametrize(("way", "fold"), CASES)
def test_equal_batches_train_bit_by_bit(distributed, alone, way, fold):
    """With the same batch on both processes, initial values, losses and final values are the same bits."""
    expected, actual = alone[fold, "same"], distributed[way, fold, "same"]

    assert expected["losses"] == actual["losses"]
    assert expected["losses"][-1] != expected["losses"][0]
    for when in ("start", "end"):
        assert list(expected[when]) == list(actual[when])
        assert all(torch.equal(value, actual[when][name]) for name, value in expected[when].items())
    assert expected["norms"] == pytest.approx(actual["norms"], rel=1e-14)


@pytest.mark.parametrize(("way", "fold"), CASES)
def test_split_batches_and_clipping_train_to_rounding(distributed, alone, way, fold):
    """With half of each batch on each process and hard clipping, norms and values agree to rounding."""
    expected, actual = alone[fold, "split"], distributed[way, fold, "split"]

    assert min(expected["norms"]) > 0.3
    assert expected["norms"] == pytest.approx(actual["norms"], rel=1e-11)
    for name, value in expected["end"].items():
        torch.testing.assert_close(value, actual["end"][name], rtol=1e-10, atol=1e-12)
