"""Figures of a diagnosis (bowls, the optimum's path, importance per scale) and of a decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from transfer_bo.display.figure_style import WIDTH_IN, plain, set_log2_axis, shades, tidy
from transfer_bo.display.text import number_text, scale_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer_bo.diagnostics.curves import Sweep
    from transfer_bo.diagnostics.diagnose import Diagnosis
    from transfer_bo.diagnostics.importance import Importance
    from transfer_bo.diagnostics.rates import Rates
    from transfer_bo.diagnostics.truncation import Truncation

__all__ = ["draw_diagnosis", "draw_truncation"]

ROW_IN = 3.2
"""Height of a row of panels, inches."""
LOG_FROM = 4.0
"""Ratio of largest to smallest value from which an axis is logarithmic."""


def draw_diagnosis(diagnosis: Diagnosis) -> Figure:
    """A row per HP (measured points and fitted bowls; optimum against size), and one for importance."""
    rows = len(diagnosis.rates) + (diagnosis.importance is not None)
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)

    for row, (hp, rates) in enumerate(diagnosis.rates.items()):
        _draw_bowls(figure.add_subplot(grid[row, 0]), diagnosis.sweeps[hp], rates)
        _draw_path(figure.add_subplot(grid[row, 1]), diagnosis.sweeps[hp], rates)
    if diagnosis.importance is not None:
        _draw_importance(figure.add_subplot(grid[rows - 1, :]), diagnosis.importance)
    return figure


def draw_truncation(
    nu: Sequence[float], found: Truncation, widths: tuple[int, int], hp: str = "lr"
) -> Figure:
    """Two panels over the HP (octaves): width-stable and width-sensitive part of the loss at two widths."""
    figure = Figure(figsize=(WIDTH_IN, ROW_IN), layout="constrained")
    panels = {"top directions (width-stable)": found.top, "others (width-sensitive)": found.sensitive}

    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, i + 1)
        for line, width, colour in zip(lines, widths, shades(2), strict=False):
            axes.plot(nu, line, "o-", color=colour, label=f"width {width}")
        axes.set_xlabel(plain(f"log2 {hp}"))
        axes.set_ylabel("loss" if i == 0 else "change of loss")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7, frameon=False)
        tidy(axes)
    figure.suptitle(f"optimum moves {found.distance:.1f} octaves, bound {found.bound:.1f}", fontsize=9)
    return figure


def _draw_bowls(axes: Axes, sweep: Sweep, rates: Rates) -> None:
    """Measured losses and the fitted curve at each size."""
    value_of = np.vectorize(sweep.dimension.backward, otypes=[float])
    for curve, colour in zip(sweep.curves, shades(len(sweep.curves)), strict=False):
        fine = np.linspace(curve.z[0], curve.z[-1], 101)
        axes.plot(value_of(curve.z), curve.y, ".", color=colour, alpha=0.6, clip_on=False)
        label = plain(f"{rates.axis} {number_text(curve.size, 3)}")
        axes.plot(value_of(fine), sweep.fitted(curve, fine), "-", color=colour, label=label)

    if sweep.dimension.transform == "log":
        set_log2_axis(axes, np.concatenate([value_of(curve.z) for curve in sweep.curves]))
    axes.set_xlabel(plain(sweep.hp), fontsize=9)
    axes.set_ylabel("loss", fontsize=9)
    axes.set_title(plain(f"{sweep.hp}: transfer is {rates.verdict}"), fontsize=9)
    # Beside the panel, where it covers no point.
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)


def _draw_path(axes: Axes, sweep: Sweep, rates: Rates) -> None:
    """The optimum at each size with its interval; hollow where it lies at an end of the values tried."""
    shown = [i for i, size in enumerate(rates.sizes) if np.isfinite(size)]
    sizes = np.array([rates.sizes[i] for i in shown])
    value = np.array([rates.optimum[i].value for i in shown])
    # The interval of the draws need not hold the fit itself where the optimum meets an edge.
    low = np.minimum(value, [rates.optimum[i].low for i in shown])
    high = np.maximum(value, [rates.optimum[i].high for i in shown])

    axes.errorbar(sizes, value, yerr=[value - low, high - value], fmt="-", color="black", capsize=3)
    is_inside = np.array([sweep.is_determined(rates.optimum[i].value, i) for i in shown])
    axes.plot(sizes[is_inside], value[is_inside], "o", color="black")
    axes.plot(sizes[~is_inside], value[~is_inside], "o", color="black", markerfacecolor="white")

    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [number_text(size, 3) for size in sizes])
    if low.min() > 0 and high.max() / low.min() >= LOG_FROM:
        axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: number_text(tick, 3)))
    axes.set_xlabel(plain(rates.axis), fontsize=9)
    axes.set_ylabel(plain(f"best {rates.hp}"), fontsize=9)
    axes.set_title(plain(f"best {rates.hp} with 90% interval; 2β/α: {rates.ratio.text()}"), fontsize=9)
    tidy(axes)


def _draw_importance(axes: Axes, importance: Importance) -> None:
    """Each HP's share of importance per scale, the mean of all methods, with the verdict."""
    table = importance.table()
    count = len(importance.scales)
    width = 0.8 / count
    places = np.arange(len(table))

    for i, (scale, colour) in enumerate(zip(importance.scales, shades(count), strict=False)):
        offsets: Any = places + (i - (count - 1) / 2) * width
        label = plain(scale_text(scale, importance.scales))
        axes.bar(offsets, table.iloc[:, i], width, color=colour, label=label)
    axes.axhline(1 / len(table), color="#888888", linewidth=0.8, linestyle="--", label="equal share")
    axes.set_xticks(places, [plain(f"{hp}\n{importance.verdict[hp]}") for hp in table.index], fontsize=8)
    axes.set_ylabel("share", fontsize=9)
    axes.set_title("importance, mean of N-RReliefF, fANOVA and PED-ANOVA", fontsize=9)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(axes)
