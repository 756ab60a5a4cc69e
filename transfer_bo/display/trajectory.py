"""A comparison of trajectories over widths, as a figure and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from transfer_bo.display.figure_style import WIDTH_IN, set_log2_axis, shades, tidy
from transfer_bo.display.text import number_text, share_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer_bo.diagnostics.widths import WidthComparison, WidthSplit

__all__ = ["comparison_sentences", "draw_comparison"]

ROW_IN = 2.9
"""Height of a row of panels, inches."""


def draw_comparison(found: WidthComparison) -> Figure:
    """A row per width (top part, the others), and one with the losses and t_n against b_n."""
    rows = len(found.splits) + 1
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)

    _draw_losses(figure.add_subplot(grid[0, 0]), found)
    _draw_bounds(figure.add_subplot(grid[0, 1]), found)
    for row, split in enumerate(found.splits, 1):
        _draw_split(figure.add_subplot(grid[row, 0]), found, split, 0)
        _draw_split(figure.add_subplot(grid[row, 1]), found, split, 1)
    return figure


def _draw_losses(axes: Axes, found: WidthComparison) -> None:
    """The whole loss over the learning rate, at each width."""
    values = np.exp2(found.octaves)
    for width, losses, colour in zip(found.widths, found.losses, shades(len(found.widths)), strict=False):
        axes.plot(values, losses, "o-", color=colour, markersize=3, label=f"width {width}")
    set_log2_axis(axes, values)
    axes.set_xlabel("lr", fontsize=9)
    axes.set_ylabel("loss", fontsize=9)
    axes.set_title("loss of the averaged trajectory", fontsize=9)
    _place_legend(axes)
    tidy(axes)


def _draw_bounds(axes: Axes, found: WidthComparison) -> None:
    """t_n against b_n; below the line the bound would be broken."""
    known = [split for split in found.splits if math.isfinite(split.shown.bound)]
    if not known:
        axes.text(0.5, 0.5, "no bound is finite", ha="center", va="center", fontsize=9)
        axes.set_axis_off()
        return

    colours = dict(zip(found.widths, shades(len(found.widths)), strict=False))
    for split in known:
        at = (split.shown.distance, split.shown.bound)
        axes.plot(*at, "o", color=colours[split.width], label=f"width {split.width}")
    highest = 1.1 * max(max(split.shown.bound, split.shown.distance) for split in known)
    axes.plot([0, highest], [0, highest], "--", color="#888888", linewidth=0.8, label="t = b")
    axes.set_xlim(left=-0.03 * highest)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("b: distance of the optima, octaves", fontsize=9)
    axes.set_ylabel("t: its bound, octaves", fontsize=9)
    axes.set_title(f"against width {found.widths[-1]}", fontsize=9)
    _place_legend(axes)
    tidy(axes)


def _draw_split(axes: Axes, found: WidthComparison, split: WidthSplit, part: int) -> None:
    """The top part (0) or the others (1) at one width and at the largest."""
    title = ("top directions (width-stable)", "the others (width-sensitive)")[part]
    axes.set_title(f"width {split.width} and {found.widths[-1]}: {title}", fontsize=9)
    values = np.exp2(split.octaves)
    lines = (split.shown.top, split.shown.sensitive)[part]
    colours: Any = dict(zip(found.widths, shades(len(found.widths)), strict=False))
    for width, line in zip((split.width, found.widths[-1]), lines, strict=True):
        axes.plot(values, line, "o-", color=colours[width], markersize=3, label=f"width {width}")
    if part == 0:
        for value, at, k in zip(values, lines[0], split.shown.kappa, strict=True):
            axes.annotate(str(k), (value, at), textcoords="offset points", xytext=(0, 4), fontsize=6)
    set_log2_axis(axes, values)
    axes.set_xlabel("lr", fontsize=9)
    axes.set_ylabel("loss" if part == 0 else "change of loss", fontsize=9)
    _place_legend(axes)
    tidy(axes)


def _place_legend(axes: Axes) -> None:
    """Beside the panel, where it covers no point."""
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def comparison_sentences(found: WidthComparison) -> list[str]:
    """What the comparison shows, a sentence or two per width."""
    best = ", ".join(
        f"{number_text(2**z, 3)} at width {w}" for w, z in zip(found.widths, found.optima, strict=True)
    )
    seeds = "one seed" if found.seeds == 1 else f"the mean of {found.seeds} seeds"
    sentences = [f"The best learning rate is {best} ({seeds})."]

    for split in found.splits:
        if split.found is None:
            sentences.append(split.reason)
        else:
            sentences.append(
                f"Between width {split.width} and {found.widths[-1]} the top {_range(split.found.kappa)} of "
                f"{split.width} directions are accepted as width-stable; they make "
                f"{share_text(split.change)} of the loss change at width {split.width}."
            )
        sentences.append(_bound_text(split))
    return [*sentences, *found.notes]


def _range(kappa: Sequence[int]) -> str:
    return f"{min(kappa)}" if min(kappa) == max(kappa) else f"{min(kappa)} to {max(kappa)}"


def _bound_text(split: WidthSplit) -> str:
    """How far the optimum moves, and how far it could, by which part."""
    shown = split.shown
    moves = f"The optimum moves {shown.distance:.2f} octaves"
    if not math.isfinite(shown.bound):
        return (
            f"{moves}; no split bounds this, as losses or top parts are not convex at these learning rates."
        )
    which = "" if shown is split.found else f" with the top {_range(shown.kappa)} directions"
    stable = 2 * math.sqrt(shown.invariance)
    return (
        f"{moves}, of {shown.bound:.2f} that a split{which} allows: {stable:.2f} for "
        f"how the top parts differ between the widths, {shown.flatness:.2f} for the slope of the others."
    )
