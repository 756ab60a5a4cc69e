"""A compiled model is compiled once for each shape, whatever the HPs of the trials that use it."""

from __future__ import annotations

import functools
import time

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from transfer_bo import Scale
from transfer_bo.parametrization import parametrize
from transfer_bo.training import Corpus, build_transformer, train
from transfer_bo.training.settings import TrainSettings

BASE = Scale(width=16, depth=1, batch=4, tokens=4 * 16 * 3)
COMPILED = TrainSettings(compile=True)


def run(scale: Scale, *, fold: bool, settings: TrainSettings = COMPILED, **hps: float) -> float:
    """The loss of three steps; without folding, multipliers of branches are in the forward pass."""
    p = parametrize(build_transformer, base=BASE, target=scale, fold=fold)
    tokens = (np.arange(5_000) % 10).astype(np.uint8)
    return train(
        build_transformer(scale),
        p,
        hps,
        Corpus(tokens[:4_000], tokens[4_000:], 256, "digits"),
        batch=scale.batch,
        tokens=scale.tokens,
        context=16,
        seed=0,
        device="cpu",
        threads=1,
        reports=1,
        settings=settings,
    ).loss


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Nothing is compiled yet."""
    torch.compiler.reset()


@pytest.mark.parametrize("fold", [True, False])
def test_other_hps_need_no_other_program(fold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rates, initial scales, and multipliers of branches; another width needs another program."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    counts, losses = [], []
    for scale, hps in (
        (BASE, {"lr": 0.01, "residual": 0.5}),
        (BASE, {"lr": 0.02, "residual": 0.7, "init_std": 1.5}),
        (BASE.replace(width=32), {"lr": 0.01, "residual": 0.5}),
    ):
        losses.append(run(scale, fold=fold, **hps))
        counts.append(counter.frame_count)

    plain = run(BASE, fold=fold, settings=TrainSettings(compile=False), lr=0.02, residual=0.7, init_std=1.5)
    assert counts[0] == counts[1] < counts[2]
    assert plain == pytest.approx(losses[1], rel=1e-5)  # float32


@pytest.mark.slow  # compiles with a C++ compiler: 20 s
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_the_second_trial_of_a_rung_starts_at_once() -> None:
    """Measured with inductor, in seconds of processor time: of the first trial, and of the second."""
    seconds = []
    for lr, residual in ((0.01, 0.5), (0.02, 0.7)):
        started = time.process_time()
        run(BASE.replace(depth=2), fold=False, lr=lr, residual=residual)
        seconds.append(time.process_time() - started)

    print(f"first trial {seconds[0]:.1f} s, second {seconds[1]:.1f} s")
    assert seconds[1] < 3.0
    assert seconds[1] < seconds[0] / 3
