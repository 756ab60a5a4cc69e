"""Does the best learning rate of adapters stay where it is when their rank and the model's width grow?

    python studies/adapters/run.py            # trains what is missing in runs.csv, then prints the table
    python studies/adapters/run.py --table    # the table only

Reference transformer, depth 2, widths 32 and 128, pre-trained here on the messages of the first 150 of the
234 years of the demo's text (300k tokens, learning rate 2^-5 in base coordinates); then adapters are trained
on the later ones (20k tokens, batches of 4 x 64). LoRA and SMoA at rank 2 and 16, with the rule
`complete_d_p` and with `sp`, which has one learning rate for all; ETHER, which has no rank, with `sp`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

import transfer_bo as tb
from transfer_bo.training import Corpus, build_transformer, load_text, train
from transfer_bo.training.adapters import ROLES, AdapterConfig, adapted

sys.path.insert(0, str(Path(__file__).parents[1]))
import lr_drift

HERE = Path(__file__).parent
WEIGHTS = HERE.parents[1] / "runs" / "adapters"
"""Folder of the pre-trained models; 2 MB for both."""
PRETRAINED = tb.Scale(width=32, depth=2, batch=8, tokens=300_000)
BASE = tb.Scale(width=32, depth=2, batch=4, tokens=20_000, rank=2)
RANK = BASE.replace(rank=16)
WIDTH = BASE.replace(width=128)
CELLS = {
    "lora": ("lora", BASE, "sp"),
    "lora rank x8, rule": ("lora", RANK, "complete_d_p"),
    "lora rank x8, sp": ("lora", RANK, "sp"),
    "lora width x4, rule": ("lora", WIDTH, "complete_d_p"),
    "lora width x4, sp": ("lora", WIDTH, "sp"),
    "smoa": ("smoa", BASE, "sp"),
    "smoa rank x8, rule": ("smoa", RANK, "complete_d_p"),
    "smoa width x4, rule": ("smoa", WIDTH, "complete_d_p"),
    "ether": ("ether", BASE, "sp"),
    "ether width x4, sp": ("ether", WIDTH, "sp"),
}
"""By name: method, scale, rule (both rules are the same at the base)."""
OCTAVES = {"lora": range(-8, -2), "smoa": range(-7, -1), "ether": range(-5, 5, 2)}
"""log2 of the learning rates, by method."""
SEEDS = 3


def domains() -> tuple[Corpus, Corpus]:
    """The text before and after the cut, in the order of the years."""
    text = load_text("sotu")
    parts = []
    for side in (0, 1):
        halves = []
        for tokens in (text.train, text.heldout):
            cut = round(0.7 * len(tokens))
            halves.append(tokens[cut:] if side else tokens[:cut])
        parts.append(Corpus(*halves, text.vocab_size, f"sotu, part {side}"))
    return parts[0], parts[1]


def pretrain(width: int, corpus: Corpus) -> None:
    """Train the model of a width and keep its weights, if they are not there."""
    path = WEIGHTS / f"base-{width}.pt"
    if path.exists():
        return
    scale = PRETRAINED.replace(width=width)
    model = build_transformer(scale)
    p = tb.parametrize(build_transformer, PRETRAINED, scale, "complete_d_p")
    arguments = {"batch": scale.batch, "tokens": scale.tokens, "context": 64, "reports": 1}
    result = train(model, p, {"lr": 2.0**-5}, corpus, seed=0, **arguments)
    print(f"pre-trained at width {width}: held-out loss {result.loss:.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        before, after = domains()
        builds = {m: adapted(build_transformer, AdapterConfig(m), WEIGHTS / "base-{width}.pt") for m in ROLES}
        settings = {}

        def run(cell: str, seed: int, octave: float) -> float:
            method, scale, rule = CELLS[cell]
            base = BASE
            if method == "ether":
                scale, base = (tb.Scale({k: v for k, v in s.items() if k != "rank"}) for s in (scale, BASE))
            if cell not in settings:
                settings[cell] = tb.parametrize(builds[method], base, scale, rule, roles=ROLES[method])
            arguments = {"batch": scale.batch, "tokens": scale.tokens, "context": 64, "reports": 1}
            hps = {"lr": 2.0**octave}
            model = builds[method](scale)
            return train(model, settings[cell], hps, after, seed=seed, **arguments).loss

        for width in (32, 128):
            pretrain(width, before)
            cells = [name for name, (_, scale, _) in CELLS.items() if scale.width == width]
            lr_drift.sweep(HERE / "runs.csv", cells, lambda cell: OCTAVES[CELLS[cell][0]], range(SEEDS), run)

    runs = pd.read_csv(HERE / "runs.csv")
    table = lr_drift.drift_table(runs, lambda cell: cell.partition(" ")[0])
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    main()
