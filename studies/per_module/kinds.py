"""Which kinds of multipliers are worth it, at the proxy and at larger scales? Five searches of each.

    OMP_NUM_THREADS=1 python studies/per_module/kinds.py --seeds 0 1 2 3 4

Each search begins with the 20 runs of the global HPs in `search.csv` and makes 50 of its own at the proxy,
over the global HPs and the multipliers of its kinds ("lr by branch" has five: attention, MLP, norms,
embedding and unembedding; others have one for each module type); those of "global" are in `search.csv`. What
`transfer_bo.suggest` answers for all x4 is then trained at each scale with new seeds, carried by the default
rule. Rows go to `kinds.csv`; the same command goes on where it stopped. `--table` prints what is in it: the
gap in loss to the global setting of the same seed, and what that is worth in tokens, with 90% intervals over
searches. `--pooled` asks for one suggestion from the runs of all searches of an arm; intervals are then over
seeds of training.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from problem import BASE, CONTEXT, GLOBAL, KNOTS, Rows, parametrization
from search import FIRST, THEN, RunRow, _check, fresh_seed, run_seed, transfer_study
from transfer import SCALES

import transfer_bo as tb
from transfer_bo.space import DEFAULT_RULE, Space

sys.path.insert(0, str(Path(__file__).parents[1]))
from student import t_interval

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "global": ((), (), "types"),
    "lr": (("lr",), ("lr",), "types"),
    "lr by branch": (("lr",), (), "branches"),
    "betas": (("one_minus_beta1", "one_minus_beta2"), (), "types"),
    "init_std": (("init_std",), (), "types"),
    "residual": (("residual",), (), "types"),
    "weight decay": (("weight_decay",), (), "types"),
    "all": (
        ("lr", "one_minus_beta1", "one_minus_beta2", "init_std", "residual", "weight_decay"),
        ("lr",),
        "types",
    ),
}
"""Arms: kinds with a multiplier per group of tensors, kinds with a profile over depth, and the groups."""

REPLICAS = {"proxy": 5, "width x4": 2, "depth x4": 2, "tokens x4": 2, "all x2": 2, "all x4": 1}
LENGTHS = (0.7, 1.4)
"""The global setting is trained for these shares of the tokens, too: what a gap in loss is worth."""

POOLED = 99
"""Stands for the seed where the runs of all searches are pooled ..."""
POOLED_REPLICAS = {"proxy": 8, "width x4": 6, "depth x4": 4, "tokens x4": 6, "all x2": 6, "all x4": 3}
"""... and seeds of training of what is suggested from them."""

REPLICA = 70
"""Seeds of these runs begin here, beyond those of the searches and of `transfer.py`."""


@functools.cache
def space_of(arm: str) -> Space:
    """The HPs that an arm searches."""
    types, depth, groups = KINDS[arm]
    return GLOBAL.with_modules(parametrization(BASE), types, depth, KNOTS, groups=groups)


def study_of(arm: str, runs: Sequence[RunRow], seed: int) -> optuna.Study:
    """A study that holds the runs of a search."""
    share = None if arm == "global" else FIRST / (FIRST + THEN)
    return transfer_study(space_of(arm), runs, seed, global_share=share)


def propose(arm: str, runs: Sequence[RunRow], seed: int) -> dict[str, float]:
    """HPs of the next run of a search."""
    study = study_of(arm, runs, seed)
    trial = study.ask()
    study.sampler._ladder.suggest(trial)  # type: ignore[attr-defined]
    return space_of(arm).suggest(trial)


def search(rows: Rows, past: Rows, arm: str, seed: int, until: float) -> list[RunRow]:
    """All runs of a search; those that are missing are made."""
    first = past.of("search", "first", seed)[:FIRST]
    if arm == "global":
        return [*first, *past.of("search", "global", seed)[:THEN]]
    while len(own := rows.of("search", arm, seed)) < THEN:
        number = FIRST + len(own)
        params = propose(arm, [*first, *own], seed)
        rows.make("search", arm, seed, number, params, BASE, run_seed(seed, number))
        _check(until)
    return [*first, *own]


def suggested(arm: str, runs: Sequence[RunRow], seed: int) -> dict[str, float]:
    """What the package suggests for the largest scale."""
    study = study_of(arm, runs, seed)
    study.ask()  # the sampler keeps its settings with the study
    return dict(tb.suggest(study, target=SCALES["all x4"]).params)


def train_at(rows: Rows, name: str, arm: str, seed: int, params: dict[str, float], until: float) -> None:
    """The missing trainings of a suggestion at a scale; the global one also for other lengths."""
    scale = SCALES[name]
    lengths = (1.0, *LENGTHS) if arm == "global" else (1.0,)
    for length in lengths:
        part = name if length == 1.0 else f"{name}, tokens x{length}"
        steps = round(length * scale.tokens / (scale.batch * CONTEXT))
        longer = scale.replace(tokens=steps * scale.batch * CONTEXT) if length != 1.0 else scale
        replicas = (POOLED_REPLICAS if seed == POOLED else REPLICAS)[name]
        for replica in range(len(rows.of(part, arm, seed)), replicas):
            rows.make(
                part, arm, seed, replica, params, longer, fresh_seed(seed, REPLICA + replica), DEFAULT_RULE
            )
            _check(until)


def table(rows: Rows) -> str:
    """Gap to the global setting and its worth in tokens, for each arm and scale."""
    lines = ["| kinds | scale | searches | loss minus global | speed-up |", "|---|---|---|---|---|"]
    for arm in [arm for arm in KINDS if arm != "global"]:
        for name in SCALES:
            seeds = {row["seed"] for row in rows.rows if (row["part"], row["arm"]) == (name, arm)} - {POOLED}
            gaps = [_gap(rows, name, arm, seed) for seed in seeds]
            octaves = [-gap / _slope(rows, name, seed) for gap, seed in zip(gaps, seeds, strict=True)]
            if len(gaps) > 1:
                speed_up = [2**end for end in t_interval(octaves)]
                shown = _show(t_interval(gaps), "+.4f"), _show(speed_up, ".2f")
                lines.append(f"| {arm} | {name} | {len(gaps)} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def pooled_table(rows: Rows) -> str:
    """The same for suggestions from the runs of all searches; intervals over seeds of training."""
    lines = ["| kinds, pooled | scale | seeds | loss minus global | speed-up |", "|---|---|---|---|---|"]
    for arm in [arm for arm in KINDS if arm != "global"]:
        for name in SCALES:
            ours, theirs = (_losses(rows, name, which, POOLED) for which in (arm, "global"))
            gaps = [our - their for our, their in zip(ours, theirs, strict=False)]
            if len(gaps) > 1:
                slope = _slope(rows, name, POOLED)
                speed_up = [2**end for end in t_interval([-gap / slope for gap in gaps])]
                shown = _show(t_interval(gaps), "+.4f"), _show(speed_up, ".2f")
                lines.append(f"| {arm} | {name} | {len(gaps)} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def _gap(rows: Rows, name: str, arm: str, seed: int) -> float:
    """Mean loss of an arm minus that of the global setting, over the same seeds of training."""
    ours, theirs = (_losses(rows, name, which, seed) for which in (arm, "global"))
    both = min(len(ours), len(theirs))
    return float(np.mean(np.subtract(ours[:both], theirs[:both])))


def _slope(rows: Rows, name: str, seed: int) -> float:
    """By how much the global setting's loss falls per doubling of the tokens."""
    short, long = (np.mean(_losses(rows, f"{name}, tokens x{x}", "global", seed)) for x in LENGTHS)
    return float((short - long) / math.log2(LENGTHS[1] / LENGTHS[0]))


def _show(numbers: Sequence[float], form: str) -> str:
    mean, low, high = (format(number, form) for number in numbers)
    return f"{mean} ({low} to {high})"


def _losses(rows: Rows, part: str, arm: str, seed: int) -> list[float]:
    return [row["loss"] for row in rows.of(part, arm, seed)]


def main() -> None:
    """Make what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--scales", nargs="+", choices=SCALES, default=list(SCALES))
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--pooled", action="store_true", help="one suggestion from all searches of an arm")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    rows, past = Rows("kinds.csv"), Rows("search.csv")
    until = time.time() + 60 * options.minutes
    searches = [[seed] for seed in options.seeds]
    for seeds in [] if options.table else [options.seeds] if options.pooled else searches:
        for arm in options.arms:
            runs = [run for seed in seeds for run in search(rows, past, arm, seed, until)]
            seed = POOLED if options.pooled else seeds[0]
            params = suggested(arm, runs, seed)
            for name in options.scales:
                train_at(rows, name, arm, seed, params, until)
    print(f"{table(rows)}\n\n{pooled_table(rows)}")


if __name__ == "__main__":
    main()
