"""Two problems on which learning-rate transfer is known to struggle, trained for real at small sizes.

    OMP_NUM_THREADS=1 python studies/fast_transfer/synthetic.py  # train what is missing, judge
    OMP_NUM_THREADS=1 python studies/fast_transfer/synthetic.py --judge  # only judge

The ball indicator, y = 1{|x|² > median of χ²_d} (slow under muP), and the multi-index norm,
y = sqrt(d/(4k) Σ_{i<=k} x_i²) with x ~ N(0, 4/d) (the optimum jumps; a smaller learning rate of the second
layer mends it): both from 2512.22768, there with d = 64, 2^14 Adam steps and widths to 2^15, here smaller.
Two-layer ReLU networks with biases under muP, Adam (.9, .999), batch 256, fresh samples, learning rate
falling linearly to 0. All learning rates of a width train side by side on the same samples. Rows go to
`synthetic.csv`.

Symbols: R learning rates, B samples, d inputs, n width.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_bo.diagnostics.curves import read_sweep
from transfer_bo.diagnostics.rates import judge_repair, transfer_rates

CSV = Path(__file__).parent / "synthetic.csv"
COLUMNS = ("case", "width", "seed", "lr", "loss", "steps")
BATCH = 256
TEST = 8192


def _ball(x: Tensor) -> Tensor:
    d = x.size(-1)
    median = d * (1 - 2 / (9 * d)) ** 3  # of χ²_d, to .1% at d >= 16 (Wilson and Hilferty)
    return (x.square().sum(-1) > median).float()


def _norm(x: Tensor, k: int) -> Tensor:
    return (x.size(-1) / (4 * k) * x[:, :k].square().sum(-1)).sqrt()


@dataclass(frozen=True)
class Case:
    """A target function and how it is trained."""

    d: int
    scale: float
    """Standard deviation of an input."""
    target: Callable[[Tensor], Tensor]
    loss: Callable[..., Tensor]
    steps: int
    widths: tuple[int, ...]
    octaves: tuple[float, ...]
    """log2 of the learning rates."""
    second_layer: float = 1.0
    """Factor on the second layer's learning rate."""


def _octaves(low: float, high: float, step: float) -> tuple[float, ...]:
    return tuple(low + step * i for i in range(round((high - low) / step) + 1))


_BCE, _MSE = F.binary_cross_entropy_with_logits, F.mse_loss
_WIDTHS = (32, 64, 128, 256, 512, 1024)
CASES = {
    "ball": Case(16, 1.0, _ball, _BCE, 1024, _WIDTHS, _octaves(-3, 3, 0.5)),
    "multi_index": Case(64, 2 / 8, lambda x: _norm(x, 15), _MSE, 1024, _WIDTHS, _octaves(-7, -1, 0.5)),
    "multi_index_per_layer": Case(
        64, 2 / 8, lambda x: _norm(x, 15), _MSE, 1024, _WIDTHS, _octaves(-5, 1, 0.5), 1 / 50
    ),
}


REPAIRS = (("multi_index", "multi_index_per_layer"),)
"""Cases with and without a learning rate of the second layer of its own."""


def train_widths(case: Case, width: int, seed: int) -> Tensor:
    """Test loss of every learning rate (R): inf where it is not finite."""
    generator = torch.Generator().manual_seed(seed)
    lrs = torch.exp2(torch.tensor(case.octaves))
    R, d = len(lrs), case.d

    def draw(count: int) -> Tensor:
        return case.scale * torch.randn(count, d, generator=generator)

    start = (
        torch.randn(d, width, generator=generator) / (d**0.5 * case.scale),  # pre-activations of order 1
        torch.zeros(width),
        torch.randn(width, 1, generator=generator) / width,
        torch.zeros(1),
    )
    W = [tensor.expand(R, *tensor.shape).clone().requires_grad_(True) for tensor in start]
    # muP with Adam: the second layer's rate is ∝ 1/n; everything else keeps its own.
    factors = (1 / case.scale, 1.0, case.second_layer / width, case.second_layer)
    rates = [lrs.view(R, *([1] * (w.dim() - 1))) * f for w, f in zip(W, factors, strict=True)]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in W]

    def output(x: Tensor) -> Tensor:  # B x d -> R x B
        hidden = torch.relu(x @ W[0] + W[1][:, None])
        return (hidden @ W[2]).squeeze(-1) + W[3]

    def per_run(x: Tensor) -> Tensor:
        y = case.target(x).expand(R, -1)
        return case.loss(output(x), y, reduction="none").mean(1)

    for step in range(1, case.steps + 1):
        gradients = torch.autograd.grad(per_run(draw(BATCH)).sum(), W)
        decay = 1 - (step - 1) / case.steps
        with torch.no_grad():
            for w, g, (m, v), rate in zip(W, gradients, moments, rates, strict=True):
                m.lerp_(g, 0.1)
                v.lerp_(g.square(), 0.001)
                direction = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-12)
                w.sub_(decay * rate * direction)
    test = torch.Generator().manual_seed(10_000)  # one test set for all widths and seeds
    x = case.scale * torch.randn(TEST, d, generator=test)
    with torch.no_grad():
        losses = torch.stack([per_run(part) for part in x.split(1024)]).mean(0)
    return torch.where(losses.isfinite(), losses, torch.tensor(math.inf))


def _done() -> set[tuple[str, int, int, float]]:
    if not CSV.exists():
        return set()
    frame = pd.read_csv(CSV)
    octaves = np.log2(frame["lr"]).round(2)
    return set(zip(frame["case"], frame["width"], frame["seed"], octaves, strict=True))


def judge() -> None:
    """Print the rates of every case that has enough widths."""
    frame = pd.read_csv(CSV)
    found = {}
    for name, rows in frame.groupby("case", sort=False):
        if rows["width"].nunique() < 3:
            continue
        rates = found[name] = transfer_rates(read_sweep(rows, size="width", hp="lr"), "width")
        print(
            f"\n{name}: {rates.verdict}; alpha {rates.alpha.text()}, beta {rates.beta.text()}, "
            f"gamma {rates.gamma.text()}, drift {rates.drift.text()} octaves"
        )
        for reason in rates.reasons:
            print(f"  {reason}")
        print(rates.table().to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    for one, other in REPAIRS:
        if {one, other} <= found.keys():
            print(
                "\n"
                + judge_repair(found[one], found[other], "the second layer's rate divided by 50").sentence
            )


def main() -> None:
    """Train what is missing, case by case, then judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--widest", type=int, default=1024)
    parser.add_argument("--judge", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = _done()
    for seed in [] if arguments.judge else arguments.seeds:
        for name in arguments.cases:
            case = CASES[name]
            for width in case.widths:
                octaves = tuple(o for o in case.octaves if (name, width, seed, o) not in done)
                if width > arguments.widest or not octaves:
                    continue
                started = time.perf_counter()
                losses = train_widths(replace(case, octaves=octaves), width, seed)
                is_new = not CSV.exists()
                with CSV.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if is_new:
                        writer.writerow(COLUMNS)
                    for octave, loss in zip(octaves, losses.tolist(), strict=True):
                        writer.writerow((name, width, seed, 2.0**octave, f"{loss:.6g}", case.steps))
                print(f"{name} width {width} seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    judge()


if __name__ == "__main__":
    main()
