"""Figures of a fitted study, each a matplotlib figure on its own; nothing here is shown or written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from transfer_bo.display.figure_style import (
    COLUMNS,
    CONTROL_COLOUR,
    MAX_PANELS,
    PRIOR_COLOUR,
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
from transfer_bo.display.landscape_figure import draw_landscape
from transfer_bo.display.text import LOSS_DIGITS, number_text, octaves_text, scale_text, share_text
from transfer_bo.quantities import LEVEL_SD
from transfer_bo.records import Outcome
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer_bo.projection import Projection
    from transfer_bo.records import Run

__all__ = ["draw_divergence", "draw_drift", "draw_importance", "draw_landscape", "draw_prediction"]

# How intervals, means, measured losses and their numbers are drawn in `draw_prediction`.
_INTERVAL: dict[str, Any] = {"color": TARGET_COLOUR, "linewidth": 2, "marker": "_", "markersize": 10}
_MEAN: dict[str, Any] = {"color": TARGET_COLOUR, "marker": "D", "markersize": 5}
_MEASURED: dict[str, dict[str, Any]] = {
    "verify": {
        "marker": "*",
        "color": TARGET_COLOUR,
        "markersize": 15,
        "markeredgecolor": "black",
        "zorder": 5,
    },
    "control": {
        "marker": "s",
        "color": CONTROL_COLOUR,
        "markersize": 8,
        "markeredgecolor": "black",
        "zorder": 5,
    },
}
_NOTE: dict[str, Any] = {"xytext": (11, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}


def draw_drift(drift: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """How far the optimum moves per doubling of each axis: posterior and prior, 90% intervals, in octaves.

    Args:
        drift: `Suggestion.drift`, `{hp: {axis: {"mean", "sd", "prior_mean", "prior_sd"}}}`, its HPs in the
            order in which they are drawn.
    """
    hps = list(drift)
    names = list(dict.fromkeys(axis for per_axis in drift.values() for axis in per_axis))
    figure = TippedFigure(figsize=(WIDTH_IN, 1.3 + 0.3 * len(hps)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]

    for axes, axis in zip(panels, names, strict=True):
        for row, hp in enumerate(hps):
            if axis not in drift[hp]:
                continue
            d = drift[hp][axis]
            prior, posterior = LEVEL_SD * d["prior_sd"], LEVEL_SD * d["sd"]
            axes.plot(
                [d["prior_mean"] - prior, d["prior_mean"] + prior],
                [row, row],
                color=PRIOR_COLOUR,
                linewidth=6,
                solid_capstyle="butt",
            )
            axes.plot(
                [d["mean"] - posterior, d["mean"] + posterior], [row, row], color="black", linewidth=1.5
            )
            (mark,) = axes.plot(d["mean"], row, "o", color="black", markersize=4.5)
            low, high = octaves_text(d["mean"] - posterior), octaves_text(d["mean"] + posterior)
            words = f"{hp} per doubling of {axis}: {octaves_text(d['mean'])} ({low} to {high}) octaves"
            add_tips(mark, [words])

        axes.axvline(0.0, color="#888888", linewidth=0.8, linestyle="--")
        axes.set_title(f"per doubling of {plain(axis)}", fontsize=9)
        axes.set_xlabel("octaves (log2)", fontsize=9)
        axes.set_yticks(range(len(hps)), [plain(hp) for hp in hps])
        axes.set_ylim(len(hps) - 0.4, -0.6)
        tidy(axes)

    figure.legend(
        handles=[
            Line2D([], [], color="black", marker="o", markersize=4.5, linewidth=1.5, label="fitted"),
            Line2D([], [], color=PRIOR_COLOUR, linewidth=6, label="prior"),
        ],
        loc="outside upper right",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    return figure


def draw_importance(fit: Projection) -> Figure:
    """Heat map of each HP's share of what tuning gains, per scale; rows by importance at the target."""
    scales = shown_scales(fit)
    shares = [fit.importance(scale) for scale in scales]
    hps = sorted(fit.hps, key=lambda hp: -shares[-1].get(hp, 0.0))
    table = np.array([[100 * share.get(hp, 0.0) for share in shares] for hp in hps])

    figure = TippedFigure(figsize=(WIDTH_IN, 1.2 + 0.28 * len(hps)), layout="constrained")
    axes = figure.subplots()
    top = max(float(table.max()), 1e-9)
    image = axes.imshow(table, cmap="Blues", aspect="auto", vmin=0, vmax=top)
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if value > 0.6 * top else "black"
        text = share_text(value / 100)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)

    short, meaning = short_labels(scales)
    short[-1] += "\n(target)"
    axes.set_xticks(range(len(scales)), short)
    axes.set_yticks(range(len(hps)), [plain(hp) for hp in hps])
    axes.set_xlabel(plain(meaning), fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    figure.colorbar(image, ax=axes, label="share of importance, %", pad=0.01)
    return figure


def draw_prediction(
    fit: Projection,
    predicted: tuple[float, float, float],
    measured: Sequence[tuple[str, str, float]],
    *,
    maximize: bool = False,
) -> Figure:
    """Loss over the cost of a run, and at the target the predicted interval beside what was measured.

    Args:
        fit: The fitted study: its finished runs and its fitted optimum at each scale are drawn.
        predicted: Mean, low and high (90%) of the loss at the target, as it was predicted.
        measured: Purpose ("verify" or "control"), name and loss of each run at the target.
        maximize: Whether larger losses are better.
    """
    scales = shown_scales(fit)
    colours = colours_of(scales, fit.target)
    figure = TippedFigure(figsize=(WIDTH_IN, 3.7), layout="constrained")
    over_cost, at_target = figure.subplots(1, 2, width_ratios=(1.4, 1))
    _draw_runs(over_cost, fit, scales, colours, maximize)

    mean, low, high = predicted
    for axes, at in ((over_cost, 1.0), (at_target, 0.0)):
        axes.plot([at, at], [low, high], **_INTERVAL)
        axes.plot(at, mean, **_MEAN)  # a skewed prediction may have its mean outside its interval
    at_target.axhspan(low, high, color=TARGET_COLOUR, alpha=0.12, linewidth=0)
    at_target.annotate(
        f"{number_text(mean)}\n[{number_text(low)}, {number_text(high)}]",
        (0, min(max(mean, low), high)),
        **_NOTE,
    )

    names = ["predicted"]
    for purpose, name, loss in measured:
        over_cost.plot(1.0, loss, **_MEASURED[purpose])
        (mark,) = at_target.plot(len(names), loss, **_MEASURED[purpose])
        add_tips(mark, [f"{name}: {number_text(loss, LOSS_DIGITS)}"])
        at_target.annotate(number_text(loss), (len(names), loss), **_NOTE)
        names.append(f"measured:\n{name}")
    at_target.set_xticks(range(len(names)), [plain(textwrap.fill(name, 16)) for name in names])
    at_target.set_xlim(-0.3, len(names) - 0.3)

    ends = [low, high, *[loss for _, _, loss in measured]]
    margin = 0.15 * (max(ends) - min(ends)) + 1e-12
    at_target.set_ylim(min(ends) - margin, max(ends) + margin)
    at_target.set_ylabel("final loss", fontsize=9)
    at_target.set_title(plain(f"At the target: {scale_text(fit.target, scales)}"), fontsize=9)

    for axes in (over_cost, at_target):
        tidy(axes)
    return figure


def _draw_runs(
    axes: Axes, fit: Projection, scales: Sequence[Scale], colours: Mapping[Scale, Any], maximize: bool
) -> None:
    """Finished runs of the search over their cost, the best of each rung, the fitted optimum per scale."""
    unit = fit.settings.cost(fit.target)
    important: list[float] = []
    for scale in scales:
        cost = fit.settings.cost(scale) / unit
        if fit.hps:
            _, mean, _, _ = fit.curve(fit.hps[0], scale)
            important.append(float(max(mean) if maximize else min(mean)))
            axes.plot(cost, important[-1], "_", color="black", markersize=16, markeredgewidth=1.5, zorder=4)
        runs = [(run, loss) for run, loss in finished_runs(fit.runs, scale) if run.purpose == "search"]
        losses = [loss for _, loss in runs]
        if losses:
            dots = axes.scatter([cost] * len(losses), losses, s=10, color=colours[scale], alpha=0.4)
            where = scale_text(scale)
            add_tips(
                dots,
                [f"trial {run.number} at {where}: {number_text(loss, LOSS_DIGITS)}" for run, loss in runs],
            )
            important.append(max(losses) if maximize else min(losses))
            axes.plot(cost, important[-1], **optimum_marker(colours[scale], is_target=False))

    span = max(important) - min(important)
    if span > 0:
        below, above = (0.8, 0.15) if maximize else (0.15, 0.8)
        axes.set_ylim(min(important) - below * span, max(important) + above * span)

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(
        FuncFormatter(
            lambda value, _: number_text(value, 3) if value >= 1 else f"1/{number_text(1 / value, 3)}"
        )
    )
    axes.set_xlabel("cost of one run, in runs at the target", fontsize=9)
    axes.set_ylabel("final loss", fontsize=9)
    axes.set_title("Finished runs over their cost, and the target", fontsize=9)


def draw_divergence(runs: Sequence[Run], hps: Sequence[str]) -> Figure:
    """Where runs diverge, along each HP: the share that diverged in each sixth of the runs, and every run.

    HPs come in the order of how far apart diverged and other runs lie, in pooled standard deviations; at most
    `MAX_PANELS` of them.

    Args:
        runs: Runs of a study; only those that finished, were stopped or diverged count.
        hps: Positive numeric HPs.
    """
    ended = [run for run in runs if run.outcome.has_trained]
    diverged = np.array([run.outcome is Outcome.DIVERGED for run in ended])
    columns = {hp: np.array([float(run.params.get(hp, math.nan)) for run in ended]) for hp in hps}
    shown = sorted(hps, key=lambda hp: -_separation(columns[hp], diverged))[:MAX_PANELS]

    rows = max(1, math.ceil(len(shown) / COLUMNS))
    figure = TippedFigure(figsize=(WIDTH_IN, 0.4 + 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)

    for index, axes in enumerate(grid.flat):
        if index >= len(shown):
            axes.set_axis_off()
            continue
        known = ~np.isnan(columns[shown[index]])
        values, bad = columns[shown[index]][known], diverged[known]

        order = np.argsort(values, kind="stable")
        for part in np.array_split(order, 6):
            if len(part):
                edges = values[part[0]], values[part[-1]]
                axes.fill_between(edges, 0, float(bad[part].mean()), color="#CCCCCC", linewidth=0)
        height = 0.1 + 0.8 * np.linspace(0, 1, len(values))  # in the order of the runs, to tell them apart
        dots = axes.scatter(values[~bad], height[~bad], s=7, color=CONTROL_COLOUR, alpha=0.5, linewidth=0)
        crosses = axes.scatter(values[bad], height[bad], s=22, color=TARGET_COLOUR, marker="x", linewidth=1.2)
        numbers = np.array([run.number for run in ended])[known]
        for marks, chosen in ((dots, ~bad), (crosses, bad)):
            pairs = zip(numbers[chosen], values[chosen], strict=True)
            add_tips(
                marks, [f"trial {number}: {shown[index]} = {number_text(value)}" for number, value in pairs]
            )

        if len(values) and values.min() < values.max():
            set_log2_axis(axes, values)
        axes.set_ylim(0, 1)
        axes.set_xlabel(plain(shown[index]), fontsize=9, fontweight="bold")
        tidy(axes)
        axes.tick_params(labelleft=index % COLUMNS == 0)
        if index % COLUMNS == 0:
            axes.set_ylabel("share diverged", fontsize=9)
    return figure


def _separation(values: np.ndarray[Any, Any], diverged: np.ndarray[Any, Any]) -> float:
    """How far apart the diverged and the other runs lie along an HP, in log2 and pooled sd."""
    known = values > 0
    z, bad = np.log2(values[known]), diverged[known]

    if not bad.any() or bad.all() or np.ptp(z) == 0:
        return 0.0
    return float(abs(z[bad].mean() - z[~bad].mean()) / z.std())
