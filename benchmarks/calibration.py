"""Do the intervals hold what they promise? Coverage on synthetic problems whose truth is known.

Each draw is a problem (`generators.py`: 1 to 4 HPs, 1 to 3 axes, raw or base coordinates, the target 1 to 4
doublings beyond the runs on each axis) with 24 to 60 logged runs at random HPs. The fit of
`suggest_from_runs` is asked for

    <hp>    the setting of least noiseless loss at the target; for comparison also the optimum of the bowl
            alone, without the small wiggles on it ("psi"); in octaves
    loss    one new run at the target with the suggested settings, as `predicted_loss` promises; in ln loss

and what is written down is where the truth lies among the draws of the answer (`rank`, 0 to 1), the width and
the interval score (Winkler) of the central 50, 80, 90 and 95% intervals. Draws in the file are skipped.

    OMP_NUM_THREADS=1 python benchmarks/calibration.py --draws 500 70 --out studies/calibration.csv
    python benchmarks/calibration.py --draws 0 0 --out studies/calibration.csv      # only print the table

`PYTHONPATH=/another/checkout` in front measures another version of the package.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from generators import KINDS, Array, draw
from scipy.stats import beta, kstest

import transfer_bo
from transfer_bo.errors import TransferError
from transfer_bo.run_table.suggest import fit_runs

LEVELS = (0.5, 0.8, 0.9, 0.95)
FIELDS = (
    *("kind", "seed", "quantity", "coordinates", "hps", "axes", "runs", "diverged", "doublings", "within"),
    *("rank", "rank_psi", "miss", *(f"width{100 * level:.0f}" for level in LEVELS)),
    *(f"score{100 * level:.0f}" for level in LEVELS),
    *("excess", "excess_median", "seconds"),
)


def one(kind: str, seed: int) -> list[dict[str, Any]]:
    """Rows of one draw: one per HP and one for the loss."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    problem, table = draw(kind, rng)
    best = problem.best(rng)
    psi = problem.optimum(problem.target)
    common: dict[str, Any] = {
        "kind": kind,
        "seed": seed,
        "coordinates": problem.coordinates,
        "hps": len(problem.hps),
        "axes": len(problem.axes),
        "runs": len(table),
        "diverged": int(table["loss"].isna().sum()),
        "doublings": round(float((problem.target - problem.cells.max(0)).max()), 2),
    }
    hps = {name: "one_minus" if name == "beta2" else "log" for name in problem.hps}
    began = time.perf_counter()
    try:
        fit = fit_runs(
            table,
            problem.axes,
            hps,
            target=problem.scale(problem.target),
            coordinates=problem.coordinates,
            seed=seed,
        )
        suggestion = fit.projection.suggest()
    except TransferError as refusal:
        return [common | {"quantity": f"refused: {refusal}"}]
    common["seconds"] = round(time.perf_counter() - began, 2)
    draws = {name: problem.octaves(name, suggestion.optimum[name]) for name in problem.hps}
    optima = np.stack([problem.optimum(s) for s in problem.cells])
    within = (np.abs(optima) <= problem.half).all(0)
    rows = [
        common
        | {"quantity": name, "within": bool(within[i]), "rank_psi": _rank(draws[name], psi[i])}
        | _judge(draws[name], best[i])
        for i, name in enumerate(problem.hps)
    ]
    suggested = np.array([problem.octaves(n, np.float64(suggestion.params[n])) for n in problem.hps])
    median = np.array([np.median(draws[name]) for name in problem.hps])
    new = np.log(problem.run(suggested[None], problem.target, rng)[0])
    least = float(problem.smooth(best[None], problem.target)[0])
    gaps = problem.smooth(np.stack([suggested, median]), problem.target) - least
    loss = {"quantity": "loss", "excess": _short(gaps[0]), "excess_median": _short(gaps[1])}
    rows.append(common | loss | _judge(np.log(suggestion.predicted_loss.draws), float(new)))
    return rows


def _judge(draws: Array, truth: float) -> dict[str, Any]:
    """Rank of the truth, and width and score of each interval; a truth of nan (diverged) lies above all."""
    if math.isnan(truth):
        return {"rank": 1.0}
    found: dict[str, Any] = {"rank": _rank(draws, truth), "miss": _short(np.median(draws) - truth)}
    for level in LEVELS:
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        outside = max(low - truth, truth - high, 0.0)
        found[f"width{100 * level:.0f}"] = _short(high - low)
        found[f"score{100 * level:.0f}"] = _short(high - low + 2 / (1 - level) * outside)
    return found


def _rank(draws: Array, truth: float) -> float:
    """Share of draws below the truth, ties by half (draws at the end of a range are equal)."""
    return _short(float((draws < truth).mean() + (draws == truth).mean() / 2))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def summary(rows: pd.DataFrame) -> str:
    """Coverage by kind and quantity, with 95% intervals (Clopper-Pearson); then excess at the suggestion.

    "Within its range" is an HP whose optimum lies in the searched range at all scales with runs; of others
    the runs show one side of the bowl. A new run that diverges is counted in the second table and left out
    of the first. "factor" is what the 90% intervals would have to be multiplied with, about their median, to
    hold 90% of the truths. "uniform" is the p value of the Kolmogorov-Smirnov test that ranks are uniform,
    with one HP of each draw.
    """
    rows = rows[~rows["quantity"].str.startswith("refused")]
    rows = rows.assign(draw=rows["kind"] + rows["seed"].astype(str))
    lines = [
        "| kind | of | draws | 50% | 80% | 90% | 95% | below, above 90% | uniform "
        "| width, score at 90% | factor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = [(kind, rows[rows["kind"] == kind]) for kind in KINDS]
    groups.insert(1, ("all misspecified", rows[rows["kind"] != "right"]))
    groups = [(kind, group) for kind, group in groups if len(group)]
    for kind, group in groups:
        is_loss, is_lr = group["quantity"] == "loss", group["quantity"] == "lr"
        is_other, within = ~is_lr & ~is_loss, group["within"].eq(True)
        finished = group["width90"].notna()
        for name, part, column in (
            ("lr", group[is_lr], "rank"),
            ("lr within its range", group[is_lr & within], "rank"),
            ("lr, psi", group[is_lr], "rank_psi"),
            ("other HPs", group[is_other], "rank"),
            ("other HPs within their range", group[is_other & within], "rank"),
            ("other HPs, psi", group[is_other], "rank_psi"),
            ("loss", group[is_loss & finished], "rank"),
        ):
            if len(part):
                lines.append(f"| {kind} | {name} | {_line(part, part[column], column == 'rank')} |")
    lines += [
        "",
        "| kind | excess at the suggestion, mean / median, % | at the median optimum | diverged, % |",
    ]
    lines += ["|---|---|---|---|"]
    for kind, group in groups:
        loss = group[group["quantity"] == "loss"]
        cells = [
            f"{100 * loss[name].mean():.2f} / {100 * loss[name].median():.2f}"
            for name in ("excess", "excess_median")
        ]
        lines.append(f"| {kind} | {cells[0]} | {cells[1]} | {100 * loss['width90'].isna().mean():.0f} |")
    return "\n".join(lines)


def _line(part: pd.DataFrame, rank: pd.Series[float], own: bool) -> str:
    """The cells of a line; width, score and factor are of the truth itself (`own`), not of psi."""
    n = part["draw"].nunique()  # several HPs of a draw count as one trial
    cells = [str(n)]
    for level in LEVELS:
        inside = float(((rank >= (1 - level) / 2) & (rank <= (1 + level) / 2)).mean())
        low, high = _binomial(inside * n, n)
        cells.append(f"{100 * inside:.0f} ({100 * low:.0f}-{100 * high:.0f})")
    cells.append(f"{100 * (rank < 0.05).mean():.0f}, {100 * (rank > 0.95).mean():.0f}")
    one_of_each = rank[~part["draw"].duplicated()]
    cells.append(f"{kstest(one_of_each, 'uniform').pvalue:.2g}")
    factor = (part["miss"].abs() / (part["width90"] / 2)).quantile(0.9)
    said = [f"{part['width90'].median():.3g}, {part['score90'].median():.3g}", f"{factor:.2f}"]
    return " | ".join([*cells, *(said if own else ("", ""))])


def _binomial(hits: float, n: int) -> tuple[float, float]:
    """Clopper-Pearson, 95%. Several HPs of one draw count as one trial."""
    low = beta.ppf(0.025, hits, n - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return float(low), float(high)


def main() -> None:
    """Draw, fit, write down; then print the summary of the whole file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--draws", type=int, nargs=2, default=(500, 70), help="right, each misspecified kind")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", type=Path, help="write the summary here after every 20 draws")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"package: {Path(transfer_bo.__file__).parent}")
    done = set()
    if options.out.is_file():
        done = set(map(tuple, pd.read_csv(options.out, usecols=["kind", "seed"]).to_numpy().tolist()))
    counts = {kind: options.draws[0 if kind == "right" else 1] for kind in options.kinds}
    # All kinds at the same pace, so that a part of the work says something about each.
    todo = sorted(
        ((seed + 0.5) / counts[kind], kind, seed) for kind in counts for seed in range(counts[kind])
    )
    todo = [item for item in todo if item[1:] not in done]
    for number, (_, kind, seed) in enumerate(todo, 1):
        rows = one(kind, seed)
        new = not options.out.is_file()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        if options.summary and number % 20 == 0:
            options.summary.write_text(summary(pd.read_csv(options.out)) + "\n")
    print(summary(pd.read_csv(options.out)))


if __name__ == "__main__":
    main()
