"""The loss along each HP at every scale, and the path of its optimum over scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from transfer_bo.display.figure_style import (
    COLUMNS,
    MAX_PANELS,
    TARGET_COLOUR,
    WIDTH_IN,
    TippedFigure,
    add_tips,
    colours_of,
    finished_runs,
    optimum_marker,
    plain,
    set_log2_axis,
    short_labels,
    shown_scales,
    tidy,
)
from transfer_bo.display.text import LOSS_DIGITS, interval_text, number_text, scale_text
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer_bo.projection import Projection

__all__ = ["draw_landscape"]


STRIP_IN = 0.17
"""Height of the strip below a panel, inches per scale."""
PANEL_IN = 2.1
"""Height of a panel, inches."""
GAP_IN = 0.55
"""Space below a strip for its labels, inches."""


def draw_landscape(
    fit: Projection,
    *,
    chosen: Mapping[str, Any] | None = None,
    maximize: bool = False,
    max_panels: int = MAX_PANELS,
) -> Figure:
    """A panel per HP: loss against its value per scale, and below it the optimum's path over scale.

    Dots are finished runs (their other HPs are where the search put them, so they lie off the curve); curves
    are the fitted loss with the other HPs at that scale's optimum, with a 90% band; the strip below shows the
    optimum's 90% interval at each scale, cheapest on top, the target at the bottom.

    Args:
        fit: The fitted study.
        chosen: The values set at the target, by HP, drawn as a dashed line.
        maximize: Whether larger losses are better.
        max_panels: HPs that are drawn, the most important ones.
    """
    chosen = chosen or {}
    scales = shown_scales(fit)
    colours = colours_of(scales, fit.target)
    share = fit.importance(fit.target)
    hps = sorted(fit.hps, key=lambda hp: -share.get(hp, 0.0))[:max_panels]
    optima = {scale: fit.optimum(scale) for scale in scales}
    curves = {(hp, scale): fit.curve(hp, scale) for hp in hps for scale in scales}
    limits = _loss_limits([[curves[hp, scale][1] for hp in hps] for scale in scales], maximize)
    short, meaning = short_labels(scales)

    figure, panels = _make_panels(len(hps), len(scales))
    for index, (hp, (upper, lower)) in enumerate(zip(hps, panels, strict=True)):
        for scale in scales:
            optimum = optima[scale][hp]
            _draw_curve(upper, fit, hp, scale, curves[hp, scale], optimum, colours[scale])
        labels = [_optimum_text(hp, scale, scales, optima[scale][hp]) for scale in scales]
        _draw_path(
            lower, [optima[scale][hp] for scale in scales], [colours[scale] for scale in scales], labels
        )

        is_first = index % COLUMNS == 0
        for axes in (upper, lower):
            if hp in chosen:
                axes.axvline(chosen[hp], color=TARGET_COLOUR, linewidth=1, linestyle="--", zorder=1.5)
            set_log2_axis(axes, curves[hp, fit.target][0])
            tidy(axes)
            axes.tick_params(labelleft=is_first)
        upper.tick_params(labelbottom=False)
        upper.set_ylim(*limits)
        lower.set_xlabel(plain(hp), fontsize=9, fontweight="bold")
        lower.set_yticks(range(len(scales)), short, fontsize=7)
        lower.set_ylim(len(scales) - 0.4, -0.6)
        if is_first:
            upper.set_ylabel("loss", fontsize=9)
            lower.set_ylabel(plain(meaning), fontsize=7)

    figure.legend(
        handles=_legend(scales, colours, fit.target, bool(chosen)),
        loc="upper center",
        ncols=3,
        fontsize=8,
        frameon=False,
        borderaxespad=0.0,
    )
    return figure


def _make_panels(n_hps: int, n_scales: int) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """The figure and, for each HP, a panel and the strip below it."""
    strip = 0.3 + STRIP_IN * n_scales
    head = 0.25 * math.ceil((n_scales + 1) / 3)
    rows = math.ceil(n_hps / COLUMNS)
    height = head + rows * (PANEL_IN + strip + GAP_IN)

    figure = TippedFigure(figsize=(WIDTH_IN, height))
    grid = figure.add_gridspec(
        rows,
        COLUMNS,
        left=0.1,
        right=0.985,
        top=1 - head / height,
        bottom=GAP_IN / height,
        wspace=0.1,
        hspace=GAP_IN / (PANEL_IN + strip),
    )

    panels = []
    for index in range(n_hps):
        cell = grid[index // COLUMNS, index % COLUMNS]
        parts = cell.subgridspec(2, 1, height_ratios=(PANEL_IN, strip), hspace=0.04)
        panels.append((figure.add_subplot(parts[0]), figure.add_subplot(parts[1])))
    return figure, panels


def _draw_curve(
    axes: Axes,
    fit: Projection,
    hp: str,
    scale: Scale,
    curve: Any,
    optimum: tuple[float, float, float],
    colour: Any,
) -> None:
    """The fitted loss along one HP at one scale, with its band, its optimum and the finished runs."""
    values, mean, low, high = curve
    is_target = scale == fit.target
    axes.fill_between(values, low, high, color=colour, alpha=0.15 if is_target else 0.05, linewidth=0)
    axes.plot(values, mean, color=colour, linewidth=2.0 if is_target else 1.3)

    runs = [(run, loss) for run, loss in finished_runs(fit.runs, scale) if hp in run.params]
    dots = axes.scatter(
        [run.params[hp] for run, _ in runs], [loss for _, loss in runs], s=9, color=colour, alpha=0.5
    )
    add_tips(
        dots,
        [
            f"trial {run.number}: {hp} = {number_text(run.params[hp])}, loss {number_text(loss, LOSS_DIGITS)}"
            for run, loss in runs
        ],
    )
    best = optimum[0]
    (mark,) = axes.plot(best, np.interp(best, values, mean), **optimum_marker(colour, is_target))
    add_tips(mark, [_optimum_text(hp, scale, (), optimum)])


def _optimum_text(hp: str, scale: Scale, among: Sequence[Scale], optimum: tuple[float, float, float]) -> str:
    best, low, high = optimum
    return f"best {hp} at {scale_text(scale, among)}: {number_text(best)} ({interval_text(low, high)})"


def _draw_path(
    axes: Axes,
    optima: Sequence[tuple[float, float, float]],
    colours: Sequence[Any],
    labels: Sequence[str],
) -> None:
    """Intervals from top to bottom, joined: where the optimum goes with scale."""
    axes.plot([best for best, _, _ in optima], range(len(optima)), color="#777777", linewidth=0.9, zorder=1)
    for row, ((best, low, high), colour) in enumerate(zip(optima, colours, strict=True)):
        axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt", zorder=2)
        (mark,) = axes.plot(best, row, **optimum_marker(colour, is_target=row == len(optima) - 1))
        add_tips(mark, [labels[row]])


def _legend(
    scales: Sequence[Scale], colours: Mapping[Scale, Any], target: Scale, with_chosen: bool
) -> list[Line2D]:
    handles = []
    for scale in scales:
        label = plain(("target: " if scale == target else "") + scale_text(scale, scales))
        marker = optimum_marker(colours[scale], scale == target)
        handles.append(Line2D([], [], linewidth=2, label=label, **marker))

    if with_chosen:
        handles.append(
            Line2D([], [], color=TARGET_COLOUR, linewidth=1, linestyle="--", label="set at the target")
        )
    return handles


def _loss_limits(means: Sequence[Sequence[np.ndarray[Any, Any]]], maximize: bool) -> tuple[float, float]:
    """One range for every panel, so that a flat HP looks flat; cliffs are cut off.

    Args:
        means: For each scale, the mean curve along each HP.
        maximize: Whether larger is better, so that the cliffs are below.
    """
    if maximize:
        top, bottom = _loss_limits([[-curve for curve in curves] for curves in means], maximize=False)
        return -bottom, -top

    lows = [min(float(np.min(curve)) for curve in curves) for curves in means]
    highs = [max(float(np.max(curve)) for curve in curves) for curves in means]
    span = max(max(lows) - min(lows), 0.05 * abs(min(lows)), 1e-12)
    top = min(max(highs), max(lows) + 0.8 * span)
    pad = 0.08 * (top - min(lows)) + 1e-12
    return min(lows) - pad, top + pad
