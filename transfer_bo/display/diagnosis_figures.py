"""Pictures of a diagnosis (bowls, the optimum's path, importance per scale) and of a decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from transfer_bo.display.figure_style import WIDTH_IN, shades
from transfer_bo.display.text import number_text, scale_text

if TYPE_CHECKING:
    from transfer_bo.diagnostics.curves import Sweep
    from transfer_bo.diagnostics.diagnose import Diagnosis
    from transfer_bo.diagnostics.importance import Importance
    from transfer_bo.diagnostics.rates import Rates
    from transfer_bo.diagnostics.truncation import Truncation

__all__ = ["draw_diagnosis", "draw_truncation"]

ROW_IN = 3.2


def draw_diagnosis(diagnosis: Diagnosis) -> Figure:
    """A row per HP (measured points, fitted bowls, optimum against size) and a last one for importance."""
    rows = len(diagnosis.rates) + (diagnosis.importance is not None)
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * rows), layout="constrained")
    for i, (hp, rates) in enumerate(diagnosis.rates.items()):
        _bowls(figure.add_subplot(rows, 2, 2 * i + 1), diagnosis.sweeps[hp], rates)
        _path(figure.add_subplot(rows, 2, 2 * i + 2), rates)
    if diagnosis.importance is not None:
        _bars(figure.add_subplot(rows, 1, rows), diagnosis.importance)
    return figure


def draw_truncation(
    nu: Sequence[float], found: Truncation, widths: tuple[int, int], hp: str = "lr"
) -> Figure:
    """Two panels over the HP (octaves): width-stable and width-sensitive part of the loss at two widths."""
    figure = Figure(figsize=(WIDTH_IN, ROW_IN), layout="constrained")
    panels = {
        "top directions (width-stable)": found.top,
        "others (width-sensitive)": found.sensitive,
    }
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, i + 1)
        for line, width, colour in zip(lines, widths, shades(2), strict=False):
            axes.plot(nu, line, "o-", color=colour, label=f"width {width}")
        axes.set(xlabel=f"log2 {hp}", ylabel="loss" if i == 0 else "change of loss", title=title)
        axes.legend(fontsize=7)
    figure.suptitle(f"optimum moves {found.distance:.1f} octaves, bound {found.bound:.1f}", fontsize=9)
    return figure


def _bowls(axes: Any, sweep: Sweep, rates: Rates) -> None:
    back = np.vectorize(sweep.dimension.backward, otypes=[float])
    for curve, colour in zip(sweep.curves, shades(len(sweep.curves)), strict=False):
        fine = np.linspace(curve.z[0], curve.z[-1], 101)
        axes.plot(back(curve.z), curve.y, ".", color=colour)
        label = f"{rates.axis} {number_text(curve.size, 3)}"
        axes.plot(back(fine), sweep.fitted(curve, fine), "-", color=colour, label=label)
    if sweep.dimension.transform == "log":
        axes.set_xscale("log", base=2)
    axes.set(xlabel=sweep.hp, ylabel="loss", title=f"{sweep.hp}: {rates.verdict}")
    axes.legend(fontsize=7)


def _path(axes: Any, rates: Rates) -> None:
    finite = [i for i, n in enumerate(rates.sizes) if np.isfinite(n)]
    value = np.array([rates.optimum[i].value for i in finite])
    # A draw's interval need not hold the fit itself where the optimum meets an edge.
    low = np.maximum(value - [rates.optimum[i].low for i in finite], 0)
    high = np.maximum([rates.optimum[i].high for i in finite] - value, 0)
    axes.errorbar([rates.sizes[i] for i in finite], value, yerr=[low, high], fmt="o-", capsize=3)
    axes.set_xscale("log", base=2)
    if (value - low > 0).all():
        axes.set_yscale("log", base=2)
    text = f"best {rates.hp} with 90% interval; 2β/α = {rates.ratio.text()}"
    axes.set(xlabel=rates.axis, ylabel=f"best {rates.hp}")
    axes.set_title(text, fontsize=9)


def _bars(axes: Any, importance: Importance, method: str = "N-RReliefF") -> None:
    table = importance.table(method)
    count = len(importance.scales)
    places = np.arange(len(table))
    for i, (scale, colour) in enumerate(zip(importance.scales, shades(count), strict=False)):
        label = scale_text(scale, importance.scales)
        axes.bar(
            places + (i - (count - 1) / 2) * 0.8 / count,
            table.iloc[:, i],
            0.8 / count,
            color=colour,
            label=label,
        )
    axes.set_xticks(places, table.index, fontsize=8)
    axes.set(ylabel="share", title=f"importance by {method}")
    axes.legend(fontsize=7)
