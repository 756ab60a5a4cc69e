"""E, κ and R(∞) of 2605.21486 on this folder's width sweep, beside the ranking of the published table.

    OMP_NUM_THREADS=1 python studies/transfer_curves/metrics.py [--published ../shared/data/kalra_metrics.csv]

Reads `runs.csv`, which `sweep.py` writes. A rule is compared once it has three widths of three rates.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.curves import read_sweep
from transfer_bo.diagnostics.metrics import compare_parametrizations, metric_draws, metrics_table
from transfer_bo.diagnostics.rates import transfer_rates

CSV = Path(__file__).parent / "runs.csv"
DRAWS = 100
"""Bootstrap draws of the orders."""
PUBLISHED = {"sp": "sp", "sp_embedding_lr": "sp_embd", "complete_d_p": "mup_sp"}
"""Our rule -> key of the published table. Where only the width grows Complete(d)P's multipliers are muP's."""


def width_sweep() -> pd.DataFrame:
    """The rows of the width series; the base is one and the same for every rule, and counts for each."""
    frame = pd.read_csv(CSV).query("series == 'width'")
    frame = frame.assign(lr=np.exp2(frame["octave"].astype(float)), width=frame["size"])
    rules = frame["rule"].unique()
    base = frame[frame["width"] == frame["width"].min()]
    common = [base.assign(rule=rule) for rule in rules if not (base["rule"] == rule).any()]
    return pd.concat([frame, *common], ignore_index=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path, default=Path("../shared/data/kalra_metrics.csv"))
    arguments = parser.parse_args()
    frame = width_sweep()
    enough = [
        rule
        for rule, rows in frame[np.isfinite(frame["loss"])].groupby("rule", sort=False)
        if (rows.groupby("width")["lr"].nunique() >= 3).sum() >= 3
    ]
    metrics = compare_parametrizations(frame[frame["rule"].isin(enough)], name="rule")
    print(metrics_table(metrics).to_string(index=False))
    for rule in enough:
        rates = transfer_rates(read_sweep(frame[frame["rule"] == rule], size="width", hp="lr"), "width")
        print(f"{rule}: {rates.verdict}; drift {rates.drift.text('+.2f')} octaves. {' '.join(rates.reasons)}")
    if arguments.published.exists():
        compare_orders(frame, enough, pd.read_csv(arguments.published))


def compare_orders(frame: pd.DataFrame, rules: list[str], published: pd.DataFrame) -> None:
    """For each metric and pair of rules: how surely one is below the other here, and how often there.

    Here: share of bootstrap draws. There: share of the weight decays, whose fits are as good as replicates.
    """
    draws = {
        rule: metric_draws(read_sweep(frame[frame["rule"] == rule], size="width", hp="lr"), DRAWS, i)
        for i, rule in enumerate(rules)
    }
    print("\nshare of draws (here) and of weight decays (published) in which the first is below the second:")
    for column, number in (("E", "fit_error"), ("kappa", "kappa"), ("irr_loss_gap", "limit")):
        table = published.pivot_table(index="weight_decay", columns="abc_key", values=column)
        for one, other in itertools.combinations([rule for rule in PUBLISHED if rule in draws], 2):
            ours = draws[one][number] < draws[other][number]
            theirs = (table[PUBLISHED[one]] < table[PUBLISHED[other]])[table[PUBLISHED[one]].notna()]
            print(f"  {column:12} {one} < {other}: here {ours.mean():.2f}, published {theirs.mean():.2f}")
        ends = table[list(PUBLISHED.values())].quantile([0.5, 0, 1]).T
        print(f"  {column:12} published, median and range over weight decays:")
        print(ends.to_string(header=False))


if __name__ == "__main__":
    main()
