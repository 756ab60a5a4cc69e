"""What all figures look like: size, colours, axes.

Figures are made through matplotlib's object interface, so that no global state is touched. Scales take
colours in the order of their cost, light to dark (viridis: distinct for the colour-blind and in grey);
the target is always vermilion. Positive HPs are drawn on log2 axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from transfer_bo.display.text import number_text, varying_axes
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from transfer_bo.projection import Projection
    from transfer_bo.records import Run

__all__ = [
    "COLUMNS",
    "CONTROL_COLOUR",
    "MAX_PANELS",
    "PRIOR_COLOUR",
    "TARGET_COLOUR",
    "WIDTH_IN",
    "TippedFigure",
    "add_tips",
    "colours_of",
    "finished_runs",
    "optimum_marker",
    "plain",
    "set_log2_axis",
    "shades",
    "short_labels",
    "shown_scales",
    "tidy",
]

MAX_PANELS = 12
"""HPs with a panel of their own; the least important of more are in the tables only."""
COLUMNS = 3
"""Panels side by side."""
WIDTH_IN = 11.0
"""Width of every figure in inches, so that text has one size in the report."""
TARGET_COLOUR = "#D55E00"
"""Okabe and Ito's vermilion."""
CONTROL_COLOUR = "#0072B2"
"""Okabe and Ito's blue."""
PRIOR_COLOUR = "#BBBBBB"
"""Light grey."""


class TippedFigure(Figure):
    """A figure whose marks have texts, which a report shows when the pointer is on them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tips: dict[str, list[str]] = {}
        """Group id in the SVG -> text of each mark."""


def add_tips(artist: Artist, texts: Sequence[str]) -> None:
    """Give each mark of an artist a text; nothing happens in a figure of another kind."""
    figure = artist.get_figure(root=True)
    if isinstance(figure, TippedFigure):
        name = f"tips-{len(figure.tips)}"
        artist.set_gid(name)
        figure.tips[name] = list(texts)


def short_labels(scales: Sequence[Scale]) -> tuple[list[str], str]:
    """("32 / 300k", ...) and what the parts mean: "width / tokens"."""
    axes = varying_axes(scales)
    return [" / ".join(number_text(s[a], 3) for a in axes) for s in scales], " / ".join(axes)


def shades(count: int) -> np.ndarray[Any, Any]:
    """Colours from light to dark (count x 4), at least two."""
    return np.asarray(matplotlib.colormaps["viridis"](np.linspace(0.85, 0.05, max(count, 2))))


def colours_of(scales: Sequence[Scale], target: Scale) -> dict[Scale, Any]:
    """A colour per scale; scales in the order of their cost."""
    rungs = [scale for scale in scales if scale != target]
    return {**dict(zip(rungs, shades(len(rungs)), strict=False)), target: TARGET_COLOUR}


def plain(text: object) -> str:
    """Text that matplotlib must not read as a formula."""
    return str(text).replace("$", r"\$")


def set_log2_axis(axes: Axes, values: np.ndarray[Any, Any]) -> None:
    """Ticks at powers of two, at most four; a linear axis where a logarithm makes no sense."""
    low, high = float(np.min(values)), float(np.max(values))
    axes.set_xlim(low, high)
    if low <= 0 or high / low < 2:
        return

    first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / 4))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2.0**k for k in range(first, last + 1, step)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, 3)))


def finished_runs(runs: Sequence[Run], scale: Scale) -> list[tuple[Run, float]]:
    """The study's own runs at a scale that have a final loss, each with it."""
    return [
        (run, run.loss) for run in runs if run.scale == scale and run.loss is not None and run.source is None
    ]


def shown_scales(fit: Projection) -> list[Scale]:
    """The rungs with a finished run, by cost, and the target last."""
    rungs = [s for s in fit.ladder if s != fit.target and finished_runs(fit.runs, s)]
    return [*sorted(rungs, key=fit.settings.cost), fit.target]


def tidy(axes: Axes) -> None:
    """Small tick labels, a light grid, no frame on top and on the right."""
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def optimum_marker(colour: Any, is_target: bool) -> dict[str, Any]:
    """How the optimum at a scale is marked: a dot, at the target a star."""
    size = 12 if is_target else 6
    return {
        "marker": "*" if is_target else "o",
        "markersize": size,
        "color": colour,
        "markeredgecolor": "black",
        "markeredgewidth": 0.7,
        "zorder": 5,
    }
