"""Drift of the optimum and excess loss from the runs of `sweep.py`: a table and `curves.png`.

    python studies/transfer_curves/curves.py

For each size: losses at each octave, freed of the seeds' levels by least squares (loss = level of the
seed + curve); the optimum is the vertex of the parabola through the three lowest neighbouring points. Drift:
slope of the optimum (octaves) over log2 of size. Excess: loss at the largest size with the smallest size's
optimum, over the least loss there. Intervals are 90% percentiles over 1000 draws, in each of which all points
get fresh noise of the size seen between seeds (or, as long as no cell has two, ASSUMED). A seed counts in a
cell once its best octave has a neighbour on each side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
ASSUMED = 0.015
"""Noise of a point relative to its neighbours, nats (sd). Runs of other seeds differ by .03, but neighbours
of one seed share part of it."""
DRAWS = 1000
Curve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Octaves, losses, and the number of seeds at each."""


def curves(runs: pd.DataFrame) -> dict[tuple[str, str], dict[float, Curve]]:
    """(series, rule) -> size -> curve; the base stands under every rule of its series."""
    found: dict[tuple[str, str], dict[float, Curve]] = defaultdict(dict)
    finite = runs[np.isfinite(runs.loss)]
    for (series, size, rule), cell in finite.groupby(["series", "size", "rule"]):
        by_octave = complete(cell)
        if by_octave.empty:
            continue
        losses, _ = freed_of_levels(by_octave)
        curve = (by_octave.index.to_numpy(dtype=float), losses, by_octave.count(axis=1).to_numpy(dtype=float))
        rules = runs[(runs.series == series) & (runs.rule != "base")].rule.unique()
        for name in rules if rule == "base" else [rule]:
            found[series, name][size] = curve
    return {key: dict(sorted(sizes.items())) for key, sizes in found.items() if len(sizes) > 1}


def complete(cell: pd.DataFrame) -> pd.DataFrame:
    """Losses by octave and seed, of the seeds whose best octave has a neighbour on each side."""
    by_octave = cell.pivot_table(index="octave", columns="seed", values="loss")
    done = []
    for seed, losses in by_octave.items():
        octaves = list(losses.dropna().index)
        if losses.idxmin() not in (octaves[0], octaves[-1]):
            done.append(seed)
    return by_octave[done].dropna(how="all")


def freed_of_levels(by_octave: pd.DataFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The curve in loss = level of the seed + curve, at the seeds' mean level; and what is left over."""
    octaves, seeds = by_octave.shape
    at = np.argwhere(by_octave.notna().to_numpy())
    design = np.zeros((len(at) + 1, octaves + seeds))
    design[np.arange(len(at)), at[:, 0]] = 1
    design[np.arange(len(at)), octaves + at[:, 1]] = 1
    design[-1, octaves:] = 1  # the levels' sum is 0
    observed = np.append(by_octave.to_numpy()[at[:, 0], at[:, 1]], 0.0)
    solution = np.linalg.lstsq(design, observed, rcond=None)[0]
    return solution[:octaves], (observed - design @ solution)[:-1]


def noise(runs: pd.DataFrame) -> float:
    """Sd of a run about its seed's level and its octave's curve, from the cells that have several seeds."""
    squares, freedom = 0.0, 0
    for _, cell in runs[np.isfinite(runs.loss)].groupby(["series", "size", "rule"]):
        by_octave = complete(cell)
        if by_octave.shape[1] > 1:
            _, residuals = freed_of_levels(by_octave)
            squares += float((residuals**2).sum())
            freedom += len(residuals) - sum(by_octave.shape) + 1
    return math.sqrt(squares / freedom) if freedom > 3 else ASSUMED


def bowl(octaves: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Coefficients of the parabola through the lowest point and its neighbours (at an end: its two)."""
    at = min(max(int(losses.argmin()), 1), len(losses) - 2)
    (x, y, z), (u, v, w) = octaves[at - 1 : at + 2].tolist(), losses[at - 1 : at + 2].tolist()
    first, second = (v - u) / (y - x), (w - v) / (z - y)  # Newton's divided differences
    a = (second - first) / (z - x)
    b = first - a * (x + y)
    return a, b, u - a * x**2 - b * x


def optimum(octaves: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> float:
    """The parabola's vertex, kept within the points that it goes through; at an end, the end."""
    at = int(losses.argmin())
    if at in (0, len(losses) - 1):
        return float(octaves[at])
    a, b, _ = bowl(octaves, losses)
    return float(np.clip(-b / (2 * a), octaves[at - 1], octaves[at + 1]))


def loss_at(octave: float, octaves: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> float:
    """Interpolated: the bowl near its lowest point, straight lines elsewhere and beyond the ends."""
    a, b, c = bowl(octaves, losses)
    at = min(max(int(losses.argmin()), 1), len(losses) - 2)
    if octaves[at - 1] <= octave <= octaves[at + 1]:
        return float(a * octave**2 + b * octave + c)
    i = int(np.clip(np.searchsorted(octaves, octave) - 1, 0, len(octaves) - 2))
    slope = (losses[i + 1] - losses[i]) / (octaves[i + 1] - octaves[i])
    return float(losses[i] + slope * (octave - octaves[i]))


def drift_and_excess(sizes: dict[float, Curve]) -> tuple[float, float]:
    """Octaves per doubling of size; excess loss at the largest size with the smallest's optimum, in %."""
    best = {size: optimum(octaves, losses) for size, (octaves, losses, _) in sizes.items()}
    sizes_log2 = np.log2(list(best)) - np.log2(list(best)).mean()
    slope = float(sizes_log2 @ np.array(list(best.values())) / (sizes_log2 @ sizes_log2))
    octaves, losses, _ = sizes[max(sizes)]
    least = loss_at(best[max(sizes)], octaves, losses)
    return slope, 100 * (loss_at(best[min(sizes)], octaves, losses) / least - 1)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per series and rule."""
    sd = noise(runs)
    draw = np.random.default_rng(0)
    rows = []
    for (series, rule), sizes in curves(runs).items():
        drift, excess = drift_and_excess(sizes)
        draws = np.array(
            [
                drift_and_excess(
                    {
                        size: (octaves, losses + draw.normal(0, sd / np.sqrt(seeds)), seeds)
                        for size, (octaves, losses, seeds) in sizes.items()
                    }
                )
                for _ in range(DRAWS)
            ]
        )
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        rows.append(
            {
                "series": series,
                "rule": rule,
                "sizes": ", ".join(f"{size:g}" for size in sizes),
                "seeds": ", ".join(f"{seeds.max():.0f}" for *_, seeds in sizes.values()),
                "best octave": ", ".join(f"{optimum(o, y):.2f}" for o, y, _ in sizes.values()),
                "least loss": ", ".join(f"{loss_at(optimum(o, y), o, y):.3f}" for o, y, _ in sizes.values()),
                "drift": drift,
                "drift low": low[0],
                "drift high": high[0],
                "excess %": excess,
                "excess low": low[1],
                "excess high": high[1],
            }
        )
    return pd.DataFrame(rows)


def plot(runs: pd.DataFrame) -> Figure:
    """Loss against the swept HP, a row per series, a column per rule."""
    found = curves(runs)
    names = list(dict.fromkeys(series for series, _ in found))
    columns = max(sum(s == name for s, _ in found) for name in names)
    figure = Figure(figsize=(4 * columns, 3.2 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(names), columns, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)
    for row, name in zip(panels, names, strict=True):
        cells = [(rule, sizes) for (series, rule), sizes in found.items() if series == name]
        for panel, (rule, sizes) in zip(row, cells, strict=False):
            panel.set_visible(True)
            for size, (octaves, losses, _) in sizes.items():
                (line,) = panel.plot(octaves, losses, marker="o", markersize=3, label=f"{size:g}")
                best = optimum(octaves, losses)
                panel.plot([best], [loss_at(best, octaves, losses)], marker="x", color=line.get_color())
            panel.set_title(f"{name}: {rule}", fontsize=9)
            panel.set_xlabel(f"log2 of the {'weight decay' if name == 'weight_decay' else 'learning rate'}")
            panel.set_ylabel("held-out nats per byte")
            panel.legend(
                loc="upper right",
                fontsize=7,
                title="width" if name == "weight_decay" else name,
                title_fontsize=7,
            )
    return figure


def main() -> None:
    """Print the table, write the picture."""
    runs = pd.read_csv(HERE / "runs.csv")
    print(f"{len(runs)} runs; noise of a point {noise(runs):.4f} nats (sd)")
    print(table(runs).to_string(index=False, float_format="%.2f"))
    plot(runs).savefig(HERE / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
