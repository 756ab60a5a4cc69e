"""E, κ and R(∞) of 2605.21486 on this folder's width sweep, beside the ranking of the published table.

    OMP_NUM_THREADS=1 python studies/transfer_curves/metrics.py [--published ../shared/data/kalra_metrics.csv]

Reads `runs.csv`, which `sweep.py` writes. A rule is compared once it has three widths of three rates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.curves import read_sweep
from transfer_bo.diagnostics.metrics import compare_parametrizations, metrics_table
from transfer_bo.diagnostics.rates import transfer_rates

CSV = Path(__file__).parent / "runs.csv"
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
        published = pd.read_csv(arguments.published).groupby("abc_key")[["E", "irr_loss_gap"]].median()
        print("\npublished, median over weight decays:")
        print(published.loc[list(PUBLISHED.values())].to_string())
        for column, number in (("E", "fit_error"), ("irr_loss_gap", "penalty")):
            ours = {
                key: getattr(metrics[rule], number).value
                for rule, key in PUBLISHED.items()
                if rule in metrics
            }
            theirs = published.loc[list(ours), column]
            print(
                f"{column}: ours {' < '.join(sorted(ours, key=lambda k: ours[k]))}; "
                f"published {' < '.join(theirs.sort_values().index)}"
            )


if __name__ == "__main__":
    main()
