"""Search on real tables: excess loss at the target against cost, this package beside its rivals.

    python benchmarks/table_search.py steplaw --seeds 10        # or another of tables.FAMILIES
    python benchmarks/table_search.py steplaw --only transfer_bo "oracle drift" --budgets 0.3 0.5

Every result is appended to benchmarks/results/<family>.csv as soon as it is there; the same command goes on
where it stopped. At the end: mean over problems and seeds with a 90% bootstrap interval over seeds, 90th
percentile, and the paired gap to this package, at the same budget or at its largest, with such an interval. A
budget is in target runs; rows like "16 target runs" are searches at the target itself that few users could
afford.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from searches import SEARCHES
from tables import FAMILIES, problems

RESULTS = Path(__file__).parent / "results"
FIELDS = ["problem", "search", "budget", "seed", "excess", "seconds"]
DIRECT = ("random at target", "TPE at target", "GPSampler at target")
VARIANTS = ("prior ", "oracle ")
"""Other drift priors of this package; run on Step Law only."""

OF_LAWS = ("GPSampler + ", "Step Law's ")
"""Searches that need a published law, so n_params and tokens as axes."""


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", choices=list(SEARCHES))
    parser.add_argument("--budgets", type=float, nargs="*", help="only these, of searches on proxies")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    path = RESULTS / f"{args.family}.csv"
    done = set()
    if path.exists():
        done = {tuple(row) for row in pd.read_csv(path, dtype=str)[FIELDS[:4]].itertuples(index=False)}
    jobs = []
    for index, problem in enumerate(problems(args.family)):
        for name in args.only or SEARCHES:
            if name.startswith(VARIANTS) and args.family != "steplaw":
                continue
            if name.startswith(OF_LAWS) and "n_params" not in problem.target:
                continue
            counts = (1, 4, 16) if "n_params" in problem.target else (1, 16, 64)
            whole = [f"{n} target runs" for n in counts]
            on_proxies = [f"{b:g}" for b in problem.budgets if args.budgets is None or b in args.budgets]
            if name == "power law on two proxies":
                most = max(problem.costs[scale] for scale in problem.proxies)
                on_proxies = [budget for budget in on_proxies if float(budget) >= 2 * most]
            for budget in whole if name in DIRECT else on_proxies:
                for seed in range(args.seeds):
                    if (problem.name, name, budget, str(seed)) not in done:
                        jobs.append((args.family, index, name, budget, seed))
    RESULTS.mkdir(exist_ok=True)
    fresh = not path.exists()
    with (
        path.open("a", newline="") as file,
        ProcessPoolExecutor(args.processes, initializer=_quiet) as pool,
    ):
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(FIELDS)
        for future in as_completed([pool.submit(_run, job) for job in jobs]):
            writer.writerow(future.result())
            file.flush()
    summarise(pd.read_csv(path, dtype={"budget": str}))


def summarise(results: pd.DataFrame) -> None:
    """Print a line per search and budget."""
    ours = results[results["search"] == "transfer_bo"]
    head = f"{'search':32} {'budget':>14} {'mean':>7} {'(90% interval)':>16} {'90%':>7} {'n':>4}"
    print(f"{head}   gap to transfer_bo (90% interval)")
    for (search, budget), group in results.groupby(["search", "budget"], sort=False):
        low, high = bootstrap(group.groupby("seed").excess.mean().to_numpy())
        line = f"{search:32} {budget:>14} {group.excess.mean():7.3f} ({low:.3f} to {high:.3f}) "
        line += f"{group.excess.quantile(0.9):7.3f} {len(group):4}"
        beside = budget if budget in set(ours["budget"]) else ours["budget"].max()
        pair = group.merge(ours[ours["budget"] == beside], on=["problem", "seed"])
        if search != "transfer_bo" and len(pair):
            gap = (pair.excess_x - pair.excess_y).groupby(pair.seed).mean().to_numpy()
            low, high = bootstrap(gap)
            line += f"   {gap.mean():+.3f} ({low:+.3f} to {high:+.3f}) at {beside}"
        print(line)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """90% interval of the mean of some values (n)."""
    means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return float(low), float(high)


def _quiet() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _run(job: tuple[str, int, str, str, int]) -> list[object]:
    family, index, name, budget, seed = job
    problem = problems(family)[index]
    start = time.perf_counter()
    amount = float(budget.split()[0]) * (problem.costs[problem.target] if name in DIRECT else 1.0)
    params = SEARCHES[name](problem, amount, seed)
    seconds = time.perf_counter() - start
    return [problem.name, name, budget, seed, f"{problem.excess_loss(params):.5f}", f"{seconds:.1f}"]


if __name__ == "__main__":
    main()
