"""How well is the drift of the learning rate with duration known: one trunk, or a run for each duration?

    python studies/trunk/run.py            # 12 CPU minutes; rows that are in runs.csv are not run again
    python studies/trunk/run.py --seeds 0  # only print the table

Two designs of equal compute, each of settings of the learning rate at three durations: separate runs with a
cosine, and WSD runs that share their trunk, which buys half as many settings again. Both are fitted by
`suggest_from_runs` (raw coordinates, duration the only axis); the table compares the posterior of the drift.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import qmc

from transfer_bo import Scale, suggest_from_runs
from transfer_bo.parametrization import RULES, parametrize
from transfer_bo.runners.trunks import without_duration
from transfer_bo.training import Corpus, build_transformer, load_text, train
from transfer_bo.training.settings import TrainSettings
from transfer_bo.training.trunk import Trunk

sys.path.insert(0, str(Path(__file__).parents[1]))
from lr_drift import interval

FILE = Path(__file__).with_name("runs.csv")
COLUMNS = ["seed", "design", "setting", "lr", "tokens", "loss", "trained_tokens"]

BASE = Scale(width=32, depth=2, batch=8, tokens=40_000)
LENGTHS = (40_000, 80_000, 160_000)
CONTEXT = 64
LOW, HIGH = 0.002, 0.13
SETTINGS = {"cosine": 10, "trunk": 15}
"""Settings of the learning rate; by then both designs have trained on 2.8M tokens, see `main`."""


def train_once(
    corpus: Corpus, design: str, lr: float, tokens: int, seed: int, trunk: Path
) -> tuple[float, int]:
    """The loss, and the number of tokens that were trained for it."""
    scale = BASE.replace(tokens=tokens)
    steps = [round(length / (BASE.batch * CONTEXT)) for length in LENGTHS]
    settings = TrainSettings(
        schedule="wsd" if design == "trunk" else "cosine", warmup_steps=TrainSettings().warmup_of(steps[0])
    )
    kept = Trunk(trunk, tuple(map(settings.stable_end, steps)))
    made: list[int] = []
    result = train(
        build_transformer(scale),
        parametrize(build_transformer, base=BASE, target=scale, rule=without_duration(RULES["complete_d_p"])),
        {"lr": lr},
        corpus,
        batch=scale.batch,
        tokens=tokens,
        context=CONTEXT,
        seed=seed,
        device="cpu",
        threads=1,
        reports=1,
        settings=settings,
        after_step=lambda step, model: made.append(step),
        trunk=kept if design == "trunk" else None,
    )
    return result.loss, len([step for step in made if step]) * scale.batch * CONTEXT


def run_all(corpus: Corpus, seeds: int, file: Path) -> None:
    """Run what is missing, a row for each run as it ends."""
    is_new = not file.exists()
    done = set() if is_new else {tuple(row) for row in pd.read_csv(file)[[*COLUMNS[:3], "tokens"]].values}
    with file.open("a", newline="") as out:
        writer = csv.writer(out)
        if is_new:
            writer.writerow(COLUMNS)
        for seed in range(seeds):
            for design, count in SETTINGS.items():
                points = qmc.Sobol(1, rng=seed).random(16)[:count, 0]
                for setting, u in enumerate(points):
                    lr = float(LOW * (HIGH / LOW) ** u)
                    with tempfile.TemporaryDirectory() as trunk:
                        for i, tokens in enumerate(LENGTHS):
                            if (seed, design, setting, tokens) in done:
                                continue
                            own = 1000 * seed + 3 * setting + (0 if design == "trunk" else i)
                            loss, trained = train_once(corpus, design, lr, tokens, own, Path(trunk))
                            writer.writerow([seed, design, setting, lr, tokens, loss, trained])
                            out.flush()


def print_table(file: Path) -> None:
    """For each seed and design the posterior of the drift, in octaves per doubling of the duration.

    "by runs": the sd without the prior, (1/sd² - 1/prior sd²)^-1/2. "parabolas": the slope through the
    optima of the three durations, each the vertex of a parabola within two octaves of the best setting,
    without any model of ours. "octaves": width of the 90% interval of the optimum at 8 times the duration.
    """
    rows = []
    for (seed, design), runs in pd.read_csv(file).groupby(["seed", "design"]):
        complete = runs.groupby("setting").filter(lambda rows: len(rows) == len(LENGTHS))
        found = suggest_from_runs(
            complete, axes=["tokens"], hps={"lr": "log"}, loss="loss", target={"tokens": 8 * LENGTHS[-1]}
        ).to_json()
        drift, (low, high) = found["drift"]["lr"]["tokens"], found["intervals"]["lr"]
        rows.append(
            {
                "seed": seed,
                "design": design,
                "settings": complete.setting.nunique(),
                "tokens": complete.trained_tokens.sum(),
                "drift": drift["mean"],
                "sd": drift["sd"],
                "by runs": (drift["sd"] ** -2 - drift["prior_sd"] ** -2) ** -0.5,
                "parabolas": slope(complete),
                "octaves": np.log2(high / low),
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.3f"))
    print("\nmeans over seeds, 90% t intervals; last column trunk / cosine, of drifts trunk - cosine")
    by_design = table.pivot(index="seed", columns="design")
    for name in ("drift", "sd", "by runs", "parabolas", "octaves"):
        cosine, trunk = (by_design[name][design].to_numpy() for design in SETTINGS)
        change = trunk - cosine if name in ("drift", "parabolas") else trunk / cosine
        print(f"{name:10}", *(interval(values) for values in (cosine, trunk, change)), sep="   ")


def slope(runs: pd.DataFrame) -> float:
    """Octaves per doubling of the duration, of the vertices of parabolas."""
    vertices = []
    for _, rows in runs.groupby("tokens"):
        x, y = np.log2(rows.lr.to_numpy()), np.log(rows.loss.to_numpy())
        close = abs(x - x[y.argmin()]) < 2
        a, b, _ = np.polyfit(x[close], y[close], 2)
        vertices.append(-b / (2 * a))
    return float(np.polyfit(range(len(LENGTHS)), vertices, 1)[0])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    if options.seeds:
        run_all(load_text("sotu"), options.seeds, options.out)
    print_table(options.out)


if __name__ == "__main__":
    main()
