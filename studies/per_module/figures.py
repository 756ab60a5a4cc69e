"""Tables and pictures of what `search.csv` and `transfer.csv` hold, whatever has been run so far.

python studies/per_module/figures.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from problem import HERE, PARTS, Rows
from search import ARMS, FIRST, THEN
from transfer import FACTORS, LENGTHS, RULES, SCALES

from transfer_bo.verification.paired_test import Comparison, compare_paired

sys.path.insert(0, str(Path(__file__).parents[1]))
from student import t_interval


def speed_up(loss: float, lengths: Sequence[float], losses: Sequence[float]) -> float:
    """How many times the tokens the other setting takes to a loss: log-linear between its lengths.

    Never more than its longest length, never less than its shortest: then the figure is a bound.
    """
    x, y = np.log(lengths), np.minimum.accumulate(losses)
    return float(np.exp(np.interp(-loss, -y, x)))


def interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float, float]:
    """Geometric mean and Student's interval of its logarithm; infinite with one value."""
    mean, low, high = np.exp(t_interval(np.log(values), level))
    return float(mean), float(low), float(high)


def seeds_of(rows: Rows, part: str, arm: str) -> list[int]:
    """Seeds with a row of an arm."""
    return sorted({row["seed"] for row in rows.rows if (row["part"], row["arm"]) == (part, arm)})


def search_table(rows: Rows) -> None:
    """A line per arm, and the gaps between picks by the new seeds both have; a search counts once."""
    picks: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows.rows:
        if row["part"] == "replica":
            picks.setdefault(row["arm"], {}).setdefault(row["seed"], {})[row["number"]] = row["loss"]
    print("arm           seeds  runs  diverged  best run after 50  picks (new seeds)")
    for arm in ARMS:
        seeds = seeds_of(rows, "search", arm)
        if not seeds:
            continue
        runs = [row["loss"] for seed in seeds for row in rows.of("search", arm, seed)]
        diverged = sum(not math.isfinite(loss) for loss in runs)
        best = [_so_far(rows, arm, seed)[-1] for seed in seeds]
        of_arm = {"first": picks["first"], **{n: p for n, p in picks.items() if n.startswith(arm + "@")}}
        said = [f"{name} {np.mean([_mean(of[s]) for s in of]):.4f}" for name, of in of_arm.items()]
        print(f"{arm:13} {len(seeds):5} {len(runs):5} {diverged:9}  {np.mean(best):.4f}  {', '.join(said)}")
    last = f"@{THEN}"
    pairs = [
        *((mine, arm + last) for mine in picks if mine.startswith("staged@") for arm in ARMS),
        *((arm + last, other) for arm in ARMS for other in ("first", f"global{last}") if arm != "global"),
    ]
    for mine, other in dict.fromkeys(pairs):
        means = []
        for seed in sorted(picks.get(mine, {}).keys() & picks.get(other, {}).keys()):
            one, two = picks[mine][seed], picks[other][seed]
            both = one.keys() & two.keys()
            means.append((_finite(_mean(one, both)), _finite(_mean(two, both))))
        if mine != other and len(means) > 1:
            print(_said(compare_paired(mine, other, means)))


def _mean(losses: Mapping[int, float], which: Collection[int] | None = None) -> float:
    return float(np.mean([losses[number] for number in (losses if which is None else which)]))


def _so_far(rows: Rows, arm: str, seed: int) -> np.ndarray[Any, Any]:
    """Best loss after each run of a search, its global stage included."""
    losses = [row["loss"] for part in ("first", arm) for row in rows.of("search", part, seed)]
    return np.minimum.accumulate(losses)


def _said(gap: Comparison) -> str:
    low, high = gap.interval
    seeds = len(gap.differences)
    return f"{gap.name} - {gap.other}: {gap.mean:+.4f} [{low:+.4f}, {high:+.4f}] {gap.verdict}, {seeds} seeds"


def _finite(loss: float) -> float | None:
    return float(loss) if math.isfinite(loss) else None


def gains(rows: Rows, part: str) -> dict[str, tuple[Comparison, list[float]]]:
    """Of each setting of a comparison beside the global one: gap in loss, and speed-up in tokens by seed."""
    curves: dict[int, dict[float, float]] = {}
    losses: dict[str, dict[int, float]] = {}
    for row in rows.rows:
        if row["part"] == part and row["arm"] == "global":
            curves.setdefault(row["seed"], {})[LENGTHS[row["number"]]] = row["loss"]
        elif row["part"] == part:
            losses.setdefault(row["arm"], {})[row["seed"]] = row["loss"]
    found = {}
    for arm, of in losses.items():
        seeds = [seed for seed in of if 1.0 in curves.get(seed, {})]
        gap = compare_paired(arm, "global", [(_finite(of[s]), _finite(curves[s][1.0])) for s in seeds])
        saved = [
            speed_up(of[s], sorted(curves[s]), [curves[s][n] for n in sorted(curves[s])])
            for s in seeds
            if len(curves[s]) > 1
        ]
        if len(seeds) > 1:
            found[arm] = (gap, saved)
    return found


def transfer_table(rows: Rows) -> None:
    """What each setting gains on the global one, by comparison and scale."""
    for part in dict.fromkeys(row["part"] for row in rows.rows):
        for gap, saved in gains(rows, part).values():
            words = f"{part}: {_said(gap)}"
            if saved:
                mean, low, high = interval(saved)
                at_end = sum(min(abs(n - saving) for n in LENGTHS) < 1e-9 for saving in saved)
                words += f"; speed-up {mean:.2f} [{low:.2f}, {high:.2f}], {len(saved)} seeds, {at_end} bounds"
            print(words)


def draw_transfer(rows: Rows) -> Figure:
    """Speed-up of the pooled settings at each scale, with intervals."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    gained = [gains(rows, f"pooled, {where}, {RULES[0]}") for where in SCALES]
    for index, arm in enumerate(("per-module", "lr only", "lr only, at 1")):
        for at, found in enumerate(gained):
            saved = found.get(arm, (None, []))[1]
            if len(saved) > 1:
                mean, low, high = interval(saved)
                axes.errorbar(
                    at + 0.15 * (index - 1),
                    mean,
                    [[mean - low], [high - mean]],
                    fmt="o",
                    color=f"C{index}",
                    label=arm if at == 0 else None,
                )
    axes.axhline(1, color="#BBBBBB", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(SCALES)), list(SCALES))
    axes.set_ylabel("times fewer tokens than the global setting")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure


def pairs_table(rows: Rows) -> None:
    """What settings lose without the parametrization's rules, and lr multipliers beside other settings."""
    at = {(row["part"], row["arm"], row["seed"], row["number"]): row["loss"] for row in rows.rows}
    parts, arms = (list(dict.fromkeys(key[index] for key in at)) for index in (0, 1))
    with_rules, without = RULES
    pairs = [
        ((part, arm), (part.removesuffix(without) + with_rules, arm))
        for part in parts
        if part.endswith(without)
        for arm in arms
    ]
    others = ("lr only, at 1", "per-module", *FACTORS)
    pairs += [((part, "lr only"), (part, other)) for part in parts for other in others]
    one = LENGTHS.index(1.0)
    for mine, other in pairs:
        both = [s for p, a, s, n in at if (p, a, n) == (*mine, one) and (*other, s, one) in at]
        losses = [(_finite(at[*mine, s, one]), _finite(at[*other, s, one])) for s in both]
        if len(both) > 1:
            print(_said(compare_paired(" / ".join(mine), " / ".join(other), losses)))


def draw(rows: Rows) -> Figure:
    """Best loss so far against runs, a thin line per seed and a thick one for their mean."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = {
        "samplers, 35 HPs (global: 5)": [arm for arm in ARMS if arm not in PARTS or arm == "global"],
        "staged search, parts of the HPs": ["staged", *PARTS],
    }
    finite = [row["loss"] for row in rows.rows if row["part"] == "search" and math.isfinite(row["loss"])]
    colours = {arm: f"C{index}" for index, arm in enumerate(ARMS)}
    for axes, (title, arms) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for arm in arms:
            lines = []
            for seed in seeds_of(rows, "search", arm):
                best = _so_far(rows, arm, seed)
                axes.plot(range(1, len(best) + 1), best, color=colours[arm], linewidth=0.6, alpha=0.3)
                if len(best) == FIRST + THEN:
                    lines.append(best)
            if lines:
                mean, label = np.mean(lines, axis=0), f"{arm} ({len(lines)} seeds)"
                axes.plot(range(1, len(mean) + 1), mean, color=colours[arm], linewidth=2, label=label)
        axes.axvline(FIRST, color="#BBBBBB", linewidth=1, linestyle="--")
        axes.set(title=title, xlabel="runs (dashed: global HPs only, up to here the same for all)")
        if finite:
            axes.set_ylim(min(finite) - 0.01, min(finite) + 0.15)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize="small")
    figure.axes[0].set_ylabel("best loss of one run, nats per byte")
    return figure


def main() -> None:
    """Print the tables and write the pictures."""
    found = Rows("search.csv")
    search_table(found)
    transferred = Rows("transfer.csv")
    transfer_table(transferred)
    pairs_table(transferred)
    draw(found).savefig(HERE / "search.png", dpi=110)
    draw_transfer(transferred).savefig(HERE / "transfer.png", dpi=110)


if __name__ == "__main__":
    main()
