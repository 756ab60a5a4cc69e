"""What per-module HPs found at the proxy are worth at larger scales, in tokens saved.

    OMP_NUM_THREADS=1 python studies/per_module/transfer.py --seeds 0 1 2

For each seed of `search.py`: the global setting (same budget) and the per-module one, carried by Complete(d)P
to 4 times the width, depth and tokens, and to twice all three; and again with no rule ("sp": nothing changes
with size). The global setting is trained for .5 to 2 times the tokens, each with its own schedule, so that
`figures.py` can say how many tokens it takes to the per-module loss. Rows go to `transfer.csv`; the same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import optuna
from problem import BASE, Rows
from search import FIRST, THEN, _check, fresh_seed, pick

SCALES = {
    "proxy": BASE,
    "width x4": BASE.replace(width=4 * BASE.width),
    "depth x4": BASE.replace(depth=4 * BASE.depth),
    "tokens x4": BASE.replace(tokens=4 * BASE.tokens),
    "all x2": BASE.replace(width=2 * BASE.width, depth=2 * BASE.depth, tokens=2 * BASE.tokens),
}
LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0)
RULES = ("complete_d_p", "sp")
REPLICA = 50
"""Seeds of these runs begin here, beyond those of the search's replicas."""


def one_seed(found: Rows, rows: Rows, seed: int, until: float) -> None:
    """All scales of a seed, the proxy first."""
    first = found.of("search", "first", seed)
    settings = {}
    for arm, name in (("global", "global"), ("staged", "per-module")):
        own = found.of("search", arm, seed)
        if len(own) < THEN or len(first) < FIRST:
            print(f"seed {seed}: {arm} has {len(own)} of {THEN} runs; run search.py first", flush=True)
            return
        settings[name] = pick(arm, [*first, *own], seed)
    for where, scale in SCALES.items():
        for rule in RULES if scale != BASE else RULES[:1]:
            for name, params in settings.items():
                for number, length in enumerate(LENGTHS):
                    if name == "per-module" and length != 1.0:
                        continue
                    at = scale.replace(tokens=round(length * scale.tokens))
                    rows.make(
                        f"{where} {rule}", name, seed, number, params, at, fresh_seed(seed, REPLICA), rule
                    )
                    _check(until)


def main() -> None:
    """Seed by seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so long")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found, rows = Rows("search.csv"), Rows("transfer.csv")
    for seed in given.seeds:
        one_seed(found, rows, seed, time.time() + 3600 * given.hours)


if __name__ == "__main__":
    main()
