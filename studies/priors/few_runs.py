"""Where a suggestion from few runs misses on a table: in which HP, by how much, and what noise leaves anyway.

    OMP_NUM_THREADS=1 python studies/priors/few_runs.py scalebench --budgets 0.03 0.1 --seeds 3 [--oracle]

Appends a row per search to studies/priors/few_runs.csv: octaves by which the suggestion lies above the mean
of the target's five best grid points, and the number of runs. Prints for each target the excess loss at the
optimum of a quadratic fitted to its grid, which is what the grid's noise leaves.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import optuna
import pandas as pd

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from searches import _oracle_prior, transfer_study
from tables import FAMILIES, Problem, problems

import transfer_bo as tb

RESULTS = Path(__file__).parent / "few_runs.csv"
FIELDS = ["problem", "prior", "budget", "seed", "excess", "lr_off", "batch_off", "runs"]
NEAR_BEST = 0.02
"""ln loss: grid points within this of the best one are fitted by the quadratic."""


def main() -> None:
    """Run what is missing, then print means and floors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=[name for name in FAMILIES if name in ("steplaw", "scalebench")])
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.03])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--oracle", action="store_true", help="give the true drift")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    prior = "true" if args.oracle else "published"
    rows = csv.DictReader(RESULTS.open()) if RESULTS.exists() else []
    done = {(row["problem"], row["prior"], row["budget"], row["seed"]) for row in rows}
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(FIELDS)
        for problem in problems(args.family):
            for budget in args.budgets:
                for seed in range(args.seeds):
                    key = (problem.name, prior, f"{budget:g}", str(seed))
                    if key not in done:
                        writer.writerow([*key, *search(problem, budget, seed, args.oracle)])
                        file.flush()

    found = pd.read_csv(RESULTS)
    print(found.groupby(["prior", "budget", "problem"]).mean(numeric_only=True).round(2).to_string())
    for problem in problems(args.family):
        print(f"{problem.name}: {floor(problem):.3f}% at the optimum of a quadratic fitted to its grid")


def search(problem: Problem, budget: float, seed: int, oracle: bool) -> list[object]:
    """Excess loss, octaves off in lr and batch, number of runs."""
    options = {"drift_prior": _oracle_prior(problem)} if oracle else {}
    study = transfer_study(problem, budget, seed, **options)
    params = tb.suggest(study).params
    best = problem.runs[problem.target].nsmallest(5, "seed0")
    off = [math.log2(params[name]) - float(np.log2(best[name]).mean()) for name in problem.space]
    return [f"{problem.excess_loss(params):.5f}", *(f"{octaves:.3f}" for octaves in off), len(study.trials)]


def floor(problem: Problem) -> float:
    """Excess loss, percent, at the optimum of a quadratic fitted to the target's grid."""
    table = problem.runs[problem.target]
    y = np.log(table["seed0"].to_numpy())
    z = np.log2(table[list(problem.space)].to_numpy())[y < y.min() + NEAR_BEST]
    y, centre = y[y < y.min() + NEAR_BEST], z.mean(0)

    u, v = (z - centre).T
    beta = np.linalg.lstsq(np.stack([np.ones(len(u)), u, v, u**2, v**2, u * v], 1), y, rcond=None)[0]
    hessian = np.array([[2 * beta[3], beta[5]], [beta[5], 2 * beta[4]]])
    optimum = centre - np.linalg.solve(hessian, beta[1:3])
    return problem.excess_loss({name: 2**at for name, at in zip(problem.space, optimum, strict=True)})


if __name__ == "__main__":
    main()
