"""A suggestion as a figure: where the optimum of each HP lies at the target, and the predicted loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from transfer_bo.display.figure_style import (
    COLUMNS,
    MAX_PANELS,
    PRIOR_COLOUR,
    TARGET_COLOUR,
    WIDTH_IN,
    plain,
    tidy,
)
from transfer_bo.display.text import LOSS_DIGITS, interval_text, number_text, scale_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer_bo.projection import Suggestion

__all__ = ["draw_suggestion"]

ROW_IN = 1.9
"""Height of a row of panels, inches."""
BINS = 31
"""Edges of the histogram's bars."""
LOG_FROM = 4.0
"""Ratio of largest to smallest value from which an HP is drawn on a log2 axis."""


def draw_suggestion(suggestion: Suggestion, level: float = 0.9) -> Figure:
    """A panel per numeric HP with the posterior of its optimum, and one with the predicted loss.

    Bars are posterior draws, the shaded band the central interval, the line the suggested value, which
    minimizes the expected loss and so need not be where most draws are. HPs with the widest intervals come
    first; at most 12 of them are drawn.

    Args:
        suggestion: The suggestion.
        level: Probability of the interval.

    Returns:
        A matplotlib figure of its own; nothing is shown or written.
    """
    intervals = suggestion.interval(level)

    def width(hp: str) -> float:
        low, high = intervals[hp]
        return math.log(high / low) if low > 0 else math.inf

    hps = sorted(suggestion.optimum, key=width, reverse=True)[:MAX_PANELS]
    rows = math.ceil((len(hps) + 1) / COLUMNS)
    figure = Figure(figsize=(WIDTH_IN, 0.4 + ROW_IN * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()

    for hp, axes in zip(hps, panels, strict=False):
        _draw_draws(axes, suggestion.optimum[hp], intervals[hp], float(suggestion.params[hp]))
        axes.set_title(plain(f"{hp} = {number_text(suggestion.params[hp])}"), fontsize=9)
    loss = suggestion.predicted_loss
    low, high = loss.interval(level)
    within = loss.draws[(loss.draws >= low) & (loss.draws <= high)]
    _draw_draws(panels[len(hps)], within, (low, high), loss.mean, may_be_log=False)
    title = f"loss: {number_text(loss.mean, LOSS_DIGITS)}, {interval_text(low, high, LOSS_DIGITS)}"
    panels[len(hps)].set_title(title, fontsize=9)

    for axes in panels[len(hps) + 1 :]:
        axes.set_axis_off()
    figure.suptitle(plain(f"Suggestion for {scale_text(suggestion.target)}"), fontsize=10)
    return figure


def _draw_draws(
    axes: Axes,
    draws: np.ndarray[Any, Any],
    interval: tuple[float, float],
    value: float,
    *,
    may_be_log: bool = True,
) -> None:
    low, high = min(draws.min(), value), max(draws.max(), value)
    is_log = may_be_log and low > 0 and high / low >= LOG_FROM
    bins = np.geomspace(low, high, BINS) if is_log else np.linspace(low, high, BINS)
    axes.hist(draws, bins=[*map(float, bins)] if high > low else 1, color=PRIOR_COLOUR)
    axes.axvspan(*interval, color=TARGET_COLOUR, alpha=0.12, linewidth=0)
    axes.axvline(value, color=TARGET_COLOUR, linewidth=1.5)

    if is_log:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: number_text(tick, 3)))
    axes.set_yticks([])
    tidy(axes)
