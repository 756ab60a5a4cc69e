"""What per-module HPs found at the proxy are worth there and at larger scales, in tokens saved.

    OMP_NUM_THREADS=1 python studies/per_module/transfer.py --seeds 0 1 2
    OMP_NUM_THREADS=1 python studies/per_module/transfer.py --seeds 5 6 7 8 9 --arms global "lr only"

Two comparisons of per-module settings with a global one from as many runs, each what the package suggests:

- "one search": of each seed's 70 runs in `search.csv`, at the proxy;
- "pooled": of the 350 runs of five seeds together, fitted as one study, at the proxy and at larger scales,
  carried by Complete(d)P, and with no rule ("sp": nothing changes with size). Here seeds are of training.

"per-module" comes from the searches of all HPs, "lr only" from those with multipliers of lr alone; "lr only,
at 1" is the latter with its multipliers left out, which tells what they do from what its global HPs do;
"global, lr x2" the global setting with twice its learning rate.

The global setting is trained for several lengths, each with its own schedule, so that `figures.py` can say
how many tokens it takes to the per-module loss. Rows go to `transfer.csv`; the same command goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
import warnings

import optuna
from problem import BASE, Rows
from search import FIRST, THEN, _check, fresh_seed, suggestion

from transfer_bo.space import is_multiplier

SCALES = {
    "proxy": BASE,
    "width x4": BASE.replace(width=4 * BASE.width),
    "depth x4": BASE.replace(depth=4 * BASE.depth),
    "tokens x4": BASE.replace(tokens=4 * BASE.tokens),
    "all x2": BASE.replace(width=2 * BASE.width, depth=2 * BASE.depth, tokens=2 * BASE.tokens),
    "all x4": BASE.replace(width=4 * BASE.width, depth=4 * BASE.depth, tokens=4 * BASE.tokens),
}
RULES = ("complete_d_p", "sp")
LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0)
REPLICA = 50
"""Seeds of these runs begin here, beyond those of the search's replicas."""
SEARCHES = (0, 1, 2, 3, 4)
"""Seeds of the searches that are pooled."""
ARMS = {"global": "global", "per-module": "staged", "lr only": "lr only", "lr only, at 1": "lr only"}
"""What is compared, and the arm of the search that it comes from."""
FACTORS = {f"global, lr x{factor}": factor for factor in (0.5, 0.7, 1.4, 2.0)}
"""The global setting with another learning rate: is that all that multipliers mend at a larger scale?"""


@functools.cache
def suggested(arm: str, searches: tuple[int, ...]) -> dict[str, float]:
    """What is suggested from the runs of one search, or of several pooled."""
    found, rows = Rows("search.csv"), []
    for seed in searches:
        first, own = found.of("search", "first", seed), found.of("search", arm, seed)
        if len(first) < FIRST or len(own) < THEN:
            raise SystemExit(f"Seed {seed} of {arm} has {len(own)} of {THEN} runs; run search.py first.")
        rows += [*first, *own[:THEN]]
    return suggestion(arm, rows, searches[0])


def setting(name: str, searches: tuple[int, ...]) -> dict[str, float]:
    """What is trained under a name."""
    if name in FACTORS:
        params = suggested("global", searches)
        return params | {"lr": FACTORS[name] * params["lr"]}
    params = suggested(ARMS[name], searches)
    if name.endswith("at 1"):
        params = {hp: 1.0 if is_multiplier(hp) else value for hp, value in params.items()}
    return params


def compare(
    rows: Rows,
    what: str,
    where: str,
    rule: str,
    seed: int,
    arms: list[str],
    lengths: list[float],
    until: float,
) -> None:
    """One seed of a comparison at one scale: the global setting for each length, the others once."""
    scale, searches = SCALES[where], SEARCHES if what == "pooled" else (seed,)
    runs = [
        (name, LENGTHS.index(length)) for name in arms for length in (lengths if name == "global" else [1.0])
    ]
    for name, number in runs:
        at = scale.replace(tokens=round(LENGTHS[number] * scale.tokens))
        part, params = f"{what}, {where}, {rule}", setting(name, searches)
        rows.make(part, name, seed, number, params, at, fresh_seed(seed, REPLICA), rule)
        _check(until)


def main() -> None:
    """Seed by seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *FACTORS], default=["per-module", "global"])
    parser.add_argument("--comparison", choices=["pooled", "one search"], default="pooled")
    parser.add_argument("--scales", nargs="+", choices=list(SCALES), default=list(SCALES))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--lengths", type=float, nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so long")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    until, rows = time.time() + 3600 * given.hours, Rows("transfer.csv")
    for seed in given.seeds:
        for where in given.scales:
            for rule in given.rules:
                if SCALES[where] != BASE or rule == RULES[0]:
                    compare(rows, given.comparison, where, rule, seed, given.arms, given.lengths, until)


if __name__ == "__main__":
    main()
