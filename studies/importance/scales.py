"""Is the order of importance of HPs the same at all sizes? Three methods on tables of runs.

    OMP_NUM_THREADS=1 python studies/importance/scales.py [--data ../shared/data]

FCNet's two-layer perceptrons (width 16 to 512, seven HPs) and HPOBench's (width 16 to 1024, four HPs). At
each width `ROWS` settings are drawn from the grid, as a random search would; the mean over seeds is the loss
(its logarithm for FCNet). Rows are appended to `scales.csv`, one per table, draw, method, width and HP; the
same command goes on where it stopped, and prints the summary.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.importance import METHODS, hp_importance
from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run
from transfer_bo.scale import Scale

CSV = Path(__file__).parent / "scales.csv"
COLUMNS = ("table", "draw", "method", "width", "hp", "share", "verdict")
ROWS = 100
"""Settings per width."""
TABLES = {
    "fcnet_square_protein_structure": (16, 64, 256, 512),
    "fcnet_square_parkinsons_telemonitoring": (16, 64, 256, 512),
    "hpobench_nn_phoneme": (16, 64, 256, 1024),
    "hpobench_nn_kc1": (16, 64, 256, 1024),
}
"""Table -> widths that are compared."""
LOG = {"init_lr", "batch_size", "learning_rate_init", "alpha"}
"""HPs on a logarithmic scale."""
CATEGORICAL = {"activation_fn_1", "activation_fn_2", "lr_schedule"}
"""HPs without an order."""
NO_HPS = {"width", "n_params", "train_time_s"}
"""Columns that are neither HPs nor losses."""


def read(path: Path, widths: tuple[int, ...]) -> tuple[pd.DataFrame, list[Dimension]]:
    """The rows at the widths nearest to those named, with a column `loss`, and the HPs."""
    frame = pd.read_csv(path)
    losses = [column for column in frame if column.startswith("val_")]
    frame["loss"] = frame[losses].mean(axis=1)
    if path.name.startswith("fcnet"):
        frame["loss"] = np.log(frame["loss"])

    known = np.array(sorted(frame["width"].unique()))
    nearest = {int(known[np.abs(np.log(known / width)).argmin()]) for width in widths}
    frame = frame[frame["width"].isin(nearest)]
    dimensions = []
    for column in frame.columns.difference([*losses, *NO_HPS, "loss"], sort=False):
        values = frame[column]
        if column in CATEGORICAL:
            dimensions.append(Dimension(column, "categorical", choices=tuple(sorted(values.unique()))))
        else:
            kind = "log" if column in LOG else "linear"
            dimensions.append(Dimension(column, kind, float(values.min()), float(values.max())))
    return frame, dimensions


def compute(
    name: str, frame: pd.DataFrame, dimensions: list[Dimension], draw: int
) -> list[tuple[object, ...]]:
    """The rows of one draw of settings."""
    drawn = frame.groupby("width", group_keys=False)[list(frame.columns)].sample(ROWS, random_state=draw)
    runs = [
        Run(
            i,
            {dim.name: row[dim.name] for dim in dimensions},
            Scale(width=row["width"]),
            Outcome.FINISHED,
            row["loss"],
        )
        for i, row in enumerate(drawn.to_dict("records"))
    ]
    found = hp_importance(runs, dimensions, seed=draw, draws={})
    return [
        (name, draw, method, scale.width, hp, f"{found.shares[method][i, j]:.4f}", found.verdict[hp])
        for method in METHODS
        for i, scale in enumerate(found.scales)
        for j, hp in enumerate(found.hps)
    ]


def summarise() -> None:
    """Correlation of the order between widths, between methods, and between draws at one width."""
    frame = pd.read_csv(CSV)
    for table, rows in frame.groupby("table", sort=False):
        shares = rows.pivot_table(index=["method", "draw", "width"], columns="hp", values="share")
        ranks = shares.rank(axis=1)
        print(f"\n{table}")
        for method in METHODS:
            of = ranks.loc[method]
            draws, widths = (of.index.unique(level) for level in ("draw", "width"))
            between = [
                _spearman(of.loc[d, a], of.loc[d, b])
                for d in draws
                for a, b in itertools.combinations(widths, 2)
            ]
            ends = [_spearman(of.loc[d, widths[0]], of.loc[d, widths[-1]]) for d in draws]
            same = [
                _spearman(of.loc[a, w], of.loc[b, w])
                for w in widths
                for a, b in itertools.combinations(draws, 2)
            ]
            first = [(of.loc[d].idxmax(axis=1).nunique() == 1) for d in draws]
            print(
                f"  {method:10}  between widths {np.mean(between):+.2f}, smallest to largest "
                f"{np.mean(ends):+.2f} ({min(ends):+.2f} to {max(ends):+.2f}), between draws at one width "
                f"{np.mean(same):+.2f}; "
                f"the same HP first at all widths in {sum(first)} of {len(first)} draws"
            )
        mean = shares.groupby(["method", "width"]).mean()
        print(mean.loc[["N-RReliefF", "fANOVA"]].round(2).to_string())
        verdicts = (
            rows.drop_duplicates(["draw", "hp"]).groupby("hp")["verdict"].value_counts().unstack(fill_value=0)
        )
        print(verdicts.to_string())


def _spearman(one: pd.Series, other: pd.Series) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def main() -> None:
    """Compute what is missing, then print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    done = set()
    if CSV.exists():
        known = pd.read_csv(CSV)
        done = set(zip(known["table"], known["draw"], strict=True))

    for name, widths in TABLES.items():
        frame, dimensions = read(arguments.data / f"{name}.csv.gz", widths)
        for draw in range(arguments.draws):
            if (name, draw) in done:
                continue
            rows = compute(name, frame, dimensions, draw)
            is_new = not CSV.exists()
            with CSV.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if is_new:
                    writer.writerow(COLUMNS)
                writer.writerows(rows)
            print(f"{name} draw {draw}", flush=True)
    summarise()


if __name__ == "__main__":
    main()
