"""Tables and a picture of what `search.csv` and `transfer.csv` hold, whatever has been run so far.

python studies/per_module/figures.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from problem import HERE, Rows
from scipy import stats
from search import ARMS, CHECKPOINTS, FIRST, THEN
from transfer import LENGTHS, RULES, SCALES

from transfer_bo.runners.replicate import paired

ONE = LENGTHS.index(1.0)


def speed_up(loss: float, lengths: Sequence[float], losses: Sequence[float]) -> float:
    """How many times the tokens the other setting takes to a loss: log-linear between its lengths.

    Never more than its longest length, never less than its shortest: then the figure is a bound.
    """
    x, y = np.log(lengths), np.minimum.accumulate(losses)
    return float(np.exp(np.interp(-loss, -y, x)))


def interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float, float]:
    """Geometric mean and Student's interval of its logarithm; infinite with one value."""
    logs = np.log(values)
    if len(logs) < 2:
        return float(np.exp(logs.mean())), 0.0, math.inf
    half = stats.t.ppf((1 + level) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return float(np.exp(logs.mean())), float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def seeds_of(rows: Rows, part: str, arm: str) -> list[int]:
    """Seeds with a row of an arm."""
    return sorted({row["seed"] for row in rows.rows if (row["part"], row["arm"]) == (part, arm)})


def search_table(rows: Rows) -> None:
    """A line per arm: runs, diverged, loss of the picks with new seeds, the paired gap to the first stage."""
    print("arm        seeds  runs  diverged  picks after 0, 25, 50 runs (new seeds)   gap to the start, nats")
    for arm in ARMS:
        seeds = seeds_of(rows, "search", arm)
        runs = [row for seed in seeds for row in rows.of("search", arm, seed)]
        diverged = sum(not math.isfinite(row["loss"]) for row in runs)
        means, gap = [], "-"
        for named in ("first", *(f"{arm}@{count}" for count in CHECKPOINTS)):
            losses = [row["loss"] for seed in seeds for row in rows.of("replica", named, seed)]
            means.append(f"{np.mean(losses):.4f}" if losses else "-")
        pairs = []
        for seed in seeds:
            before = {r["number"]: r["loss"] for r in rows.of("replica", "first", seed)}
            after = {r["number"]: r["loss"] for r in rows.of("replica", f"{arm}@{THEN}", seed)}
            pairs += [(after[n], before[n]) for n in after if n in before]
        if len(pairs) > 1:
            compared = paired(arm, "first", [tuple(map(_finite, pair)) for pair in pairs])  # type: ignore[misc]
            low, high = compared.interval
            gap = f"{compared.mean:+.4f} [{low:+.4f}, {high:+.4f}] {compared.verdict}, {len(pairs)} pairs"
        print(f"{arm:10} {len(seeds):5} {len(runs):5} {diverged:9}  {', '.join(means):40} {gap}")


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def transfer_table(rows: Rows) -> None:
    """Speed-up of the per-module setting over the global one, by scale and rule."""
    for where in SCALES:
        for rule in RULES:
            part, found = f"{where} {rule}", []
            for seed in seeds_of(rows, part, "per-module"):
                curve = {row["number"]: row["loss"] for row in rows.of(part, "global", seed)}
                loss = rows.of(part, "per-module", seed)[0]["loss"]
                if len(curve) == len(LENGTHS) and math.isfinite(loss):
                    found.append(speed_up(loss, LENGTHS, [curve[i] for i in range(len(LENGTHS))]))
            if found:
                mean, low, high = interval(found)
                print(f"{part:28} speed-up {mean:.2f} [{low:.2f}, {high:.2f}], {len(found)} seeds")


def draw(rows: Rows) -> Figure:
    """Best loss so far against runs, a thin line per seed and a thick one for their mean."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, arm in enumerate(ARMS):
        lines = []
        for seed in seeds_of(rows, "search", arm):
            losses = [r["loss"] for r in [*rows.of("search", "first", seed), *rows.of("search", arm, seed)]]
            best = np.minimum.accumulate(losses)
            axes.plot(range(1, len(best) + 1), best, color=f"C{index}", linewidth=0.6, alpha=0.5)
            if len(best) == FIRST + THEN:
                lines.append(best)
        if lines:
            mean = np.mean(lines, axis=0)
            label = f"{arm} ({len(lines)} seeds)"
            axes.plot(range(1, len(mean) + 1), mean, color=f"C{index}", linewidth=2, label=label)
    axes.axvline(FIRST, color="#BBBBBB", linewidth=1, linestyle="--")
    axes.set_xlabel("runs (dashed: global HPs only, up to here the same for all)")
    axes.set_ylabel("best loss of one run, nats per byte")
    finite = [row["loss"] for row in rows.rows if row["part"] == "search" and math.isfinite(row["loss"])]
    if finite:
        axes.set_ylim(min(finite) - 0.01, min(finite) + 0.15)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure


def main() -> None:
    """Print both tables and write the picture."""
    found = Rows("search.csv")
    search_table(found)
    transfer_table(Rows("transfer.csv"))
    draw(found).savefig(HERE / "search.png", dpi=110)


if __name__ == "__main__":
    main()
