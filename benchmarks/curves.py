"""Excess loss against cost, this package beside its rivals: a picture of a family's results.

    python benchmarks/curves.py steplaw        # what table_search.py wrote -> results/steplaw.png

A point is the mean over problems and seeds, its bar a 90% bootstrap interval over seeds. Cost is in target
runs, for Step Law those of the 1.07B / 20B cell, whatever the target (`tables.COST_UNIT`), for ScaleBench of
its largest target; searches at the target itself, dashed, lie at their mean cost.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from table_search import DIRECT, RESULTS, VARIANTS, bootstrap
from tables import problems


def draw(results: pd.DataFrame, family: str) -> Figure:
    """A line per search."""
    target_run = np.mean([problem.costs[problem.target] for problem in problems(family)])
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    searches = [name for name in dict.fromkeys(results["search"]) if not name.startswith(VARIANTS)]
    searches.sort(key=lambda name: (name != "transfer_bo", name in DIRECT))
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, name in enumerate(searches):
        found = results[results["search"] == name]
        unit = target_run if name in DIRECT else 1.0
        points = []
        for budget, group in found.groupby("budget"):
            excess = group.groupby("seed")["excess"].mean().to_numpy()
            points.append((unit * float(str(budget).split()[0]), excess.mean(), *bootstrap(excess)))
        cost, mean, low, high = np.array(sorted(points)).T
        axes.errorbar(
            cost,
            mean,
            (mean - low, high - mean),
            label=name,
            color="black" if name == "transfer_bo" else colours[i % len(colours)],
            linewidth=2.5 if name == "transfer_bo" else 1.2,
            linestyle="--" if name in DIRECT else "-",
            marker="o",
            markersize=4,
            capsize=2,
        )
    axes.set(
        xscale="log", yscale="log", xlabel="cost, runs at the target", ylabel=f"mean excess on {family}, %"
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("family")
    family = parser.parse_args().family
    path = RESULTS / f"{family}.png"
    draw(pd.read_csv(RESULTS / f"{family}.csv", dtype={"budget": str}), family).savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
