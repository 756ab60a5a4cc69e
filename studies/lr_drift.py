"""How far the best learning rate moves between models: sweeps that can be continued, and their tables.

A cell is a model with a rule. In each cell the same learning rates run with the same seeds; the optimum of a
seed is the vertex of the least-squares parabola through its best octave and two on each side. Differences to
the base cell are taken seed by seed; intervals are 90% t intervals over the seeds.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from student import t_interval

from transfer_bo import Diverged

COLUMNS = ("cell", "seed", "octave", "loss", "seconds")


def sweep(
    path: Path,
    cells: Sequence[str],
    octaves: Callable[[str], Iterable[float]],
    seeds: Iterable[int],
    train: Callable[[str, int, float], float],
) -> None:
    """Train what is not yet in the table: `train(cell, seed, octave)` gives the loss; it is appended at once.

    Args:
        path: A CSV file with `COLUMNS`.
        cells: Names of the cells.
        octaves: Gives log2 of the learning rates of a cell.
        seeds: Outermost, so that a sweep that is cut short has whole curves.
        train: May raise `Diverged`, which is a loss of infinity.
    """
    done = set()
    if path.exists():
        table = pd.read_csv(path)
        done = {*zip(table.cell, table.seed, table.octave, strict=True)}
    else:
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")

    for seed in seeds:
        for cell in cells:
            for octave in octaves(cell):
                if (cell, seed, octave) in done:
                    continue
                started = time.process_time()
                try:
                    loss = train(cell, seed, octave)
                except Diverged:
                    loss = math.inf
                with path.open("a", newline="", encoding="utf-8") as file:
                    seconds = time.process_time() - started
                    csv.writer(file).writerow([cell, seed, octave, f"{loss:.5f}", f"{seconds:.1f}"])


def optimum(octaves: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> float:
    """The vertex of the parabola about the least loss, within its points; the end, if that is the least."""
    finite = np.isfinite(losses)
    octaves, losses = octaves[finite], losses[finite]
    at = int(losses.argmin())
    if at in (0, len(losses) - 1):
        return float(octaves[at])
    near = slice(max(at - 2, 0), at + 3)
    a, b, _ = np.polyfit(octaves[near], losses[near], 2)
    return float(np.clip(-b / (2 * a), octaves[near][0], octaves[near][-1])) if a > 0 else float(octaves[at])


def interval(values: npt.NDArray[np.float64]) -> str:
    """Mean and 90% t interval."""
    mean, low, high = t_interval(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def drift_table(runs: pd.DataFrame, base_of: Callable[[str], str]) -> pd.DataFrame:
    """A row per cell: its optimum, its drift, and what the base's learning rate costs there.

    Columns: best (mean optimum, log2 of the learning rate), drift (octaves from the base cell), loss (the
    least mean one), excess % (loss at the base's best rate over the least), octave off % (mean cost of a
    rate that is an octave too low or too high), within 1% (octaves of the sweep with a loss at most 1%
    above the least, which end where the sweep ends).

    Args:
        runs: What `sweep` wrote.
        base_of: Name of the cell that a cell is compared with.
    """
    curves = {
        key: curve.set_index("octave").loss.sort_index() for key, curve in runs.groupby(["cell", "seed"])
    }
    best = {key: optimum(c.index.to_numpy(float), c.to_numpy(float)) for key, c in curves.items()}
    rows = []
    for cell in runs.cell.unique():
        base = base_of(cell)
        seeds = [s for c, s in curves if c == cell and (base, s) in curves]
        drifts = np.array([best[cell, seed] - best[base, seed] for seed in seeds])

        mean = pd.concat([curves[cell, seed] for seed in seeds], axis=1).mean(axis=1)
        octaves, losses = mean.index.to_numpy(float), mean.to_numpy(float)
        vertex = float(np.mean([best[cell, seed] for seed in seeds]))
        base_best = float(np.mean([best[base, seed] for seed in seeds]))
        at, off = np.interp([base_best, vertex - 1, vertex + 1], octaves, losses), min(losses)
        fine = np.linspace(octaves[0], octaves[-1], 1001)
        within = float(np.mean(np.interp(fine, octaves, losses) <= 1.01 * off) * (octaves[-1] - octaves[0]))
        rows.append(
            {
                "cell": cell,
                "seeds": len(seeds),
                "best": vertex,
                "drift": interval(drifts) if len(seeds) > 1 and cell != base else "",
                "loss": off,
                "excess %": 100 * (at[0] / off - 1),
                "octave off %": 100 * (at[1:].mean() / off - 1),
                "within 1%": within,
            }
        )
    return pd.DataFrame(rows)
