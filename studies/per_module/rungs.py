"""Runs of per-module HPs at more expensive rungs: do multipliers keep their worth, and does knowing it help?

    OMP_NUM_THREADS=1 python studies/per_module/rungs.py --seeds 0 1 2

The pooled per-module setting of `transfer.py` is run at twice the width, depth and tokens: whole, without its
multipliers, and with random halves of them, as the second stage of a search does
(`transfer_bo.search.trust_region`). With and without these runs the surrogate suggests a setting for each
of the larger scales of `transfer.py`, which is trained there with the same seeds as the others; so are the
pooled setting with the multipliers of one kind only, and with none. Rows go to `transfer.csv`; the same
command goes on where it stopped. Prints at what rates multipliers are found to fall back.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from problem import BASE, Rows, per_module
from search import THEN, _check, distributions, fresh_seed
from transfer import LENGTHS, REPLICA, RULES, SCALES, SEARCHES

from transfer_bo.records import Outcome, Run, StudySettings, read_dimensions
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier, split_name

RUNGS = {
    "width x2": BASE.replace(width=2 * BASE.width),
    "depth x2": BASE.replace(depth=2 * BASE.depth),
    "tokens x2": BASE.replace(tokens=2 * BASE.tokens),
}
HALVES = 8
KINDS = ("lr", "init_std", "residual")
ONE = LENGTHS.index(1.0)


def centre(rows: Rows) -> dict[str, float]:
    """The pooled per-module setting, as it was trained."""
    return dict(rows.of(f"pooled, proxy, {RULES[0]}", "per-module", 0)[0]["params"])


def left_in(params: Mapping[str, float], names: set[str]) -> dict[str, float]:
    """A setting with all multipliers at 1 but those named."""
    return {
        name: 1.0 if is_multiplier(name) and name not in names else value for name, value in params.items()
    }


def visit(rows: Rows, until: float) -> None:
    """The runs at the more expensive rungs."""
    whole = centre(rows)
    multipliers = sorted(name for name in whole if is_multiplier(name))
    for index, (where, scale) in enumerate(RUNGS.items()):
        rng = np.random.default_rng(index)
        for number in range(2 + HALVES):
            half = {name for name in multipliers if rng.random() < 0.5}
            names = set(multipliers) if number == 0 else set() if number == 1 else half
            seed = 90_000 + 100 * index + number
            rows.make("rungs", where, 0, number, left_in(whole, names), scale, seed)
            _check(until)


@functools.cache
def fit(*, with_rungs: bool) -> Any:
    """The surrogate of the pooled staged searches, with runs at more expensive rungs or without."""
    from transfer_bo.surrogate.surrogate import fit_surrogate

    found, rows = Rows("search.csv"), Rows("transfer.csv")
    at = [
        (BASE, row)
        for seed in SEARCHES
        for row in (*found.of("search", "first", seed), *found.of("search", "staged", seed)[:THEN])
    ]
    if with_rungs:
        at += [(scale, row) for where, scale in RUNGS.items() for row in rows.of("rungs", where, 0)]
    runs = [
        Run(number, row["params"], scale, Outcome.FINISHED, row["loss"])
        if math.isfinite(row["loss"])
        else Run(number, row["params"], scale, Outcome.DIVERGED)
        for number, (scale, row) in enumerate(at)
    ]
    target = SCALES["all x4"]
    settings = StudySettings(
        (BASE, *RUNGS.values(), target),
        tuple(range(1 + len(RUNGS))),
        target,
        (1.0, 2.0, 2.0, 2.0, 64.0),
        defaults=per_module().defaults,
    )
    return fit_surrogate(runs, read_dimensions([distributions(per_module())], settings.defaults), settings)


def suggested(target: Scale, *, with_rungs: bool) -> dict[str, float]:
    """What is suggested for a scale."""
    import torch

    from transfer_bo.surrogate.expected_loss import linearised_expected_loss, minimize_expected_loss

    surrogate = fit(with_rungs=with_rungs)
    generator = torch.Generator().manual_seed(0)
    v, flags = minimize_expected_loss(linearised_expected_loss(surrogate, target, generator), generator)
    return dict(surrogate.coordinates.params(v, flags))


def arms(rows: Rows, scale: Scale, *, kinds: bool) -> dict[str, dict[str, float]]:
    """What is compared at a scale besides the settings of `transfer.py`."""
    if not kinds:
        return {
            "per-module, fitted with rungs": suggested(scale, with_rungs=True),
            "per-module, fitted without rungs": suggested(scale, with_rungs=False),
        }
    whole = centre(rows)
    every = {"no multipliers": left_in(whole, set())}
    for kind in KINDS:
        every[f"only {kind}"] = left_in(whole, {name for name in whole if split_name(name)[0] == kind})
    every["all but residual.attn"] = left_in(whole, set(whole) - {"residual.attn"})
    return every


def main() -> None:
    """The rungs first, then seed by seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--scales", nargs="+", choices=list(SCALES), default=[where for where in SCALES if where != "all x4"]
    )
    parser.add_argument("--kinds", action="store_true", help="each kind of multiplier alone instead")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so long")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    until, rows = time.time() + 3600 * given.hours, Rows("transfer.csv")
    visit(rows, until)
    surrogate = fit(with_rungs=True)
    rates = zip(surrogate.coordinates.axes, surrogate.shrinkage.rate.tolist(), strict=True)
    print("multipliers fall back by", {axis: f"{rate:.0%} per doubling" for axis, rate in rates}, flush=True)
    for where in given.scales:
        compared = arms(rows, SCALES[where], kinds=given.kinds)
        for seed in given.seeds:
            for name, params in compared.items():
                part, new_seed = f"pooled, {where}, {RULES[0]}", fresh_seed(seed, REPLICA)
                rows.make(part, name, seed, ONE, params, SCALES[where], new_seed)
                _check(until)


if __name__ == "__main__":
    main()
