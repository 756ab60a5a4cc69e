"""A run of a process of its own, for `test_faults.py`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
from stand_in import StandIn

from transfer_bo import Scale
from transfer_bo.training import Corpus, TrainResult, build_transformer, train
from transfer_bo.training.faults import Fault

_asked: list[int] = []


def run(fault: Fault | None, **more: Any) -> TrainResult:
    """Train a small model for 12 steps of 4 sequences; a checkpoint after every step."""
    tokens = (np.arange(5_000) % 10).astype(np.uint8)
    return train(
        build_transformer(Scale(width=16, depth=1)),
        StandIn(),
        {"lr": 0.01},
        Corpus(tokens[:4_000], tokens[4_000:], 256, "digits"),
        batch=4,
        tokens=4 * 16 * 12,
        context=16,
        seed=0,
        device="cpu",
        threads=1,
        reports=12,
        checkpoint_seconds=1e-9,
        after_step=fault,
        stop=lambda: bool(_asked),
        **more,
    )


def work(fault: Fault, checkpoint: Path) -> None:
    """The run; a request to end is obeyed."""
    signal.signal(signal.SIGTERM, lambda number, frame: _asked.append(number))
    run(fault, checkpoint=checkpoint)
