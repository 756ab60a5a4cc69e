"""Drift of the best learning rate over width, by optimizer and table, from `runs.csv`.

    python studies/optimizers/drift.py

Prints a table and draws `drift.png`. The best learning rate of a sweep is the vertex of the parabola through
its best octave and both neighbours. Drift is in octaves per doubling of width; intervals are 90% t intervals
over seeds. The excess is the loss at the large width of the small width's best octave, above that of the best
octave there.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sweep import BASE, EVERETT, TABLES, WIDE, read_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from student import t_interval

PICTURE = Path(__file__).parent / "drift.png"
DOUBLINGS = math.log2(WIDE.width / BASE.width)

Sweep = dict[int, float]
"""Loss by octave."""


def vertex(losses: Sweep) -> float | None:
    """Octave of the least loss; None if the best has no neighbour on a side."""
    best = min(losses, key=lambda octave: losses[octave])
    left, middle, right = (losses.get(octave, math.nan) for octave in (best - 1, best, best + 1))
    if math.isnan(left) or math.isnan(right):
        return None
    left, right = min(left, middle + 1.0), min(right, middle + 1.0)  # a diverged neighbour is 1 nat above
    bend = left - 2 * middle + right
    return best + (0.5 * (left - right) / bend if bend > 0 else 0.0)


def main() -> None:
    """Print the table and draw the curves."""
    sweeps: dict[tuple[str, str, int], dict[int, Sweep]] = defaultdict(lambda: defaultdict(dict))
    for (optimizer, rule, width, seed, octave), loss in read_rows().items():
        sweeps[optimizer, rule, width][seed][octave] = loss

    cases = [(optimizer, rule) for optimizer, table in TABLES.items() for rule in (table, "sp")] + EVERETT
    print("| optimizer | rule | drift, octaves per doubling | excess of the copied rate, nats | seeds |")
    print("|---|---|---|---|---|")
    for optimizer, rule in cases:
        base, wide = sweeps[optimizer, "sp", BASE.width], sweeps[optimizer, rule, WIDE.width]
        drifts, excess = [], []
        for seed in sorted(set(base) & set(wide)):
            start, end = vertex(base[seed]), vertex(wide[seed])
            if start is None or end is None:
                continue
            drifts.append((end - start) / DOUBLINGS)
            copied = min(base[seed], key=lambda octave, of=base[seed]: of[octave])
            if copied in wide[seed]:
                excess.append(wide[seed][copied] - min(wide[seed].values()))
        if drifts:
            mean, low, high = t_interval(drifts)
            cost = f"{np.mean(excess):.3f}" if len(excess) == len(drifts) else "outside the sweep"
            print(
                f"| {optimizer} | {rule} | {mean:+.2f} ({low:+.2f} to {high:+.2f}) | {cost} | {len(drifts)} |"
            )
    draw(sweeps)


def draw(sweeps: dict[tuple[str, str, int], dict[int, Sweep]]) -> None:
    """A panel per optimizer: mean loss over seeds against the learning rate, both widths, both rules."""
    names = [optimizer for optimizer in TABLES if sweeps[optimizer, "sp", BASE.width]]
    figure = Figure(figsize=(3.2 * min(4, len(names)), 3 * math.ceil(len(names) / 4)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(math.ceil(len(names) / 4), min(4, len(names)), squeeze=False).flatten()

    for panel, optimizer in zip(panels, names, strict=False):
        styles = [
            ("sp", BASE.width, "k", "width 16"),
            (TABLES[optimizer], WIDE.width, "C0", "128, its table"),
        ]
        for rule, width, colour, label in [*styles, ("sp", WIDE.width, "C1", "128, none")]:
            for number, losses in enumerate(sweeps[optimizer, rule, width].values()):
                octaves = sorted(octave for octave in losses if math.isfinite(losses[octave]))
                values = [losses[octave] for octave in octaves]
                panel.plot(
                    octaves, values, colour, marker=".", linewidth=0.8, label=label if not number else None
                )
        panel.set_title(optimizer, fontsize=10)
        panel.set_xlabel("log2 learning rate")
    panels[0].set_ylabel("held-out loss, nats per byte")
    panels[0].legend(fontsize=7)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
