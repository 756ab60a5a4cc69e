"""Pictures of a fitted study, each a matplotlib figure on its own; nothing here is shown or written.

Figures are made through matplotlib's object interface, so that no global state is touched. Scales take
colours in the order of their cost, light to dark (viridis: told apart by the colour-blind and in grey);
the target is always vermilion. Positive HPs are drawn on log2 axes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from transfer_bo.records import Outcome
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from transfer_bo.projection import Projection
    from transfer_bo.records import Run

__all__ = [
    "LEVEL_SD",
    "MAX_PANELS",
    "draw_divergence",
    "draw_drift",
    "draw_importance",
    "draw_landscape",
    "draw_prediction",
    "human",
    "scale_label",
]

MAX_PANELS = 12
"""HPs with a panel of their own; beyond that the least important are left to the tables."""

TARGET_COLOUR = "#D55E00"  # Okabe-Ito vermilion
CONTROL_COLOUR = "#0072B2"  # Okabe-Ito blue
PRIOR_COLOUR = "#BBBBBB"
COLUMNS = 3
WIDTH_IN = 11.0  # inches; every figure has it, so that text has one size in the report
LEVEL_SD = 1.645  # half a 90% interval in standard deviations


def human(value: float) -> str:
    """A number with a unit prefix, 3 digits: 300000 -> "300k", 64 -> "64", 0.00391 -> "0.00391"."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if prefix == 'k' else size):.3g}{prefix}"
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def _varying(scales: Sequence[Scale]) -> list[str]:
    axes = [axis for axis in scales[0] if len({scale.get(axis) for scale in scales}) > 1]
    return axes or list(scales[0])


def scale_label(scale: Scale, among: Sequence[Scale] = ()) -> str:
    """A scale in words; only the axes in which it differs from others, when they are given."""
    axes = _varying([scale, *among]) if among else list(scale)
    return ", ".join(f"{axis} {human(scale[axis])}" for axis in axes)


def _short_labels(scales: Sequence[Scale]) -> tuple[list[str], str]:
    """("32 / 300k", ...) and what the parts mean: "width / tokens"."""
    axes = _varying(scales)
    return [" / ".join(human(s[a]) for a in axes) for s in scales], " / ".join(axes)


def _colours(scales: Sequence[Scale], target: Scale) -> dict[Scale, Any]:
    """A colour per scale; scales in the order of their cost."""
    rungs = [scale for scale in scales if scale != target]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.05, max(len(rungs), 2)))
    return {**dict(zip(rungs, shades, strict=False)), target: TARGET_COLOUR}


def _plain(text: object) -> str:
    """Text that matplotlib must not read as a formula."""
    return str(text).replace("$", r"\$")


def _log2_axis(axes: Axes, values: np.ndarray[Any, Any]) -> None:
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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _finished(runs: Sequence[Run], scale: Scale) -> list[tuple[Run, float]]:
    """The study's own runs at a scale that have a final loss, each with it."""
    return [
        (run, run.loss) for run in runs if run.scale == scale and run.loss is not None and run.source is None
    ]


def _shown_scales(fit: Projection) -> list[Scale]:
    """The rungs that something finished at, by cost, and the target last."""
    rungs = [s for s in fit.ladder if s != fit.target and _finished(fit.runs, s)]
    return [*sorted(rungs, key=fit.settings.cost), fit.target]


def _tidy(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_landscape(
    fit: Projection, *, chosen: Mapping[str, Any] | None = None, maximize: bool = False
) -> Figure:
    """A panel per HP: loss against its value per scale, and below it the optimum's path over scale.

    Dots are finished runs (their other HPs are where the search put them, so they lie off the curve); curves
    are the fitted loss with the other HPs at that scale's optimum, with a 90% band; the strip below shows the
    optimum's 90% interval at each scale, cheapest on top, the target at the bottom.

    Args:
        fit: of the study.
        chosen: what is set at the target, by HP; a dashed line.
        maximize: whether larger losses are better.
    """
    chosen = chosen or {}
    scales = _shown_scales(fit)
    colours = _colours(scales, fit.target)
    share = fit.importance(fit.target)
    hps = sorted(fit.hps, key=lambda hp: -share.get(hp, 0.0))[:MAX_PANELS]
    optima = {scale: fit.optimum(scale) for scale in scales}
    curves = {(hp, scale): fit.curve(hp, scale) for hp in hps for scale in scales}
    limits = _loss_limits([[curves[hp, scale][1] for hp in hps] for scale in scales], maximize)
    short, meaning = _short_labels(scales)

    strip, upper_height, head, gap = (
        0.3 + 0.17 * len(scales),
        2.1,
        0.25 * math.ceil((len(scales) + 1) / 3),
        0.55,
    )
    rows = math.ceil(len(hps) / COLUMNS)
    height = head + rows * (upper_height + strip + gap)
    figure = Figure(figsize=(WIDTH_IN, height))
    grid = figure.add_gridspec(
        rows,
        COLUMNS,
        left=0.1,
        right=0.985,
        top=1 - head / height,
        bottom=gap / height,
        wspace=0.1,
        hspace=gap / (upper_height + strip),
    )
    for index, hp in enumerate(hps):
        cell = grid[index // COLUMNS, index % COLUMNS].subgridspec(
            2, 1, height_ratios=(upper_height, strip), hspace=0.04
        )
        upper = figure.add_subplot(cell[0])
        lower = figure.add_subplot(cell[1])
        for scale in scales:
            values, mean, low, high = curves[hp, scale]
            is_target = scale == fit.target
            upper.fill_between(
                values, low, high, color=colours[scale], alpha=0.15 if is_target else 0.05, linewidth=0
            )
            upper.plot(values, mean, color=colours[scale], linewidth=2.0 if is_target else 1.3)
            dots = [(r.params[hp], loss) for r, loss in _finished(fit.runs, scale) if hp in r.params]
            upper.scatter([v for v, _ in dots], [y for _, y in dots], s=9, color=colours[scale], alpha=0.5)
            best = optima[scale][hp][0]
            upper.plot(best, np.interp(best, values, mean), **_optimum_marker(colours[scale], is_target))
        _draw_path(lower, [optima[scale][hp] for scale in scales], [colours[scale] for scale in scales])
        for axes in (upper, lower):
            if hp in chosen:
                axes.axvline(chosen[hp], color=TARGET_COLOUR, linewidth=1, linestyle="--", zorder=1.5)
            _log2_axis(axes, curves[hp, fit.target][0])
            _tidy(axes)
            axes.tick_params(labelleft=index % COLUMNS == 0)
        lower.set_xlabel(_plain(hp), fontsize=9, fontweight="bold")
        upper.tick_params(labelbottom=False)
        upper.set_ylim(*limits)
        lower.set_yticks(range(len(scales)), short, fontsize=7)
        lower.set_ylim(len(scales) - 0.4, -0.6)
        if index % COLUMNS == 0:
            upper.set_ylabel("loss", fontsize=9)
            lower.set_ylabel(_plain(meaning), fontsize=7)
    figure.legend(
        handles=_landscape_legend(scales, colours, fit.target, bool(chosen)),
        loc="upper center",
        ncols=3,
        fontsize=8,
        frameon=False,
        borderaxespad=0.0,
    )
    return figure


def _optimum_marker(colour: Any, is_target: bool) -> dict[str, Any]:
    size = 12 if is_target else 6
    return {
        "marker": "*" if is_target else "o",
        "markersize": size,
        "color": colour,
        "markeredgecolor": "black",
        "markeredgewidth": 0.7,
        "zorder": 5,
    }


def _draw_path(axes: Axes, optima: Sequence[tuple[float, float, float]], colours: Sequence[Any]) -> None:
    """Intervals from top to bottom, joined: where the optimum goes with scale."""
    axes.plot([best for best, _, _ in optima], range(len(optima)), color="#777777", linewidth=0.9, zorder=1)
    for row, ((best, low, high), colour) in enumerate(zip(optima, colours, strict=True)):
        axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt", zorder=2)
        axes.plot(best, row, **_optimum_marker(colour, is_target=row == len(optima) - 1))


def _landscape_legend(
    scales: Sequence[Scale], colours: Mapping[Scale, Any], target: Scale, with_chosen: bool
) -> list[Line2D]:
    handles = []
    for scale in scales:
        label = _plain(("target: " if scale == target else "") + scale_label(scale, scales))
        marker = _optimum_marker(colours[scale], scale == target)
        handles.append(Line2D([], [], linewidth=2, label=label, **marker))
    if with_chosen:
        handles.append(
            Line2D([], [], color=TARGET_COLOUR, linewidth=1, linestyle="--", label="set at the target")
        )
    return handles


def _loss_limits(means: Sequence[Sequence[np.ndarray[Any, Any]]], maximize: bool) -> tuple[float, float]:
    """One range for every panel, so that a flat HP looks flat; cliffs are cut off.

    Args:
        means: for each scale, the mean curve along each HP.
        maximize: whether larger is better, so that the cliffs are below.
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


def draw_drift(drift: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """How far the optimum moves per doubling of each axis: posterior and prior, 90% intervals, in octaves.

    Args:
        drift: `Suggestion.drift`, its HPs in the order wanted.
    """
    hps = list(drift)
    names = list(dict.fromkeys(axis for per_axis in drift.values() for axis in per_axis))
    figure = Figure(figsize=(WIDTH_IN, 1.3 + 0.3 * len(hps)), layout="constrained")
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
            axes.plot(d["mean"], row, "o", color="black", markersize=4.5)
        axes.axvline(0.0, color="#888888", linewidth=0.8, linestyle="--")
        axes.set_title(f"per doubling of {_plain(axis)}", fontsize=9)
        axes.set_xlabel("octaves (log2)", fontsize=9)
        axes.set_yticks(range(len(hps)), [_plain(hp) for hp in hps])
        axes.set_ylim(len(hps) - 0.4, -0.6)
        _tidy(axes)
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
    scales = _shown_scales(fit)
    shares = [fit.importance(scale) for scale in scales]
    hps = sorted(fit.hps, key=lambda hp: -shares[-1].get(hp, 0.0))
    table = np.array([[100 * share.get(hp, 0.0) for share in shares] for hp in hps])
    figure = Figure(figsize=(WIDTH_IN, 1.2 + 0.28 * len(hps)), layout="constrained")
    axes = figure.subplots()
    top = max(float(table.max()), 1e-9)
    image = axes.imshow(table, cmap="Blues", aspect="auto", vmin=0, vmax=top)
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if value > 0.6 * top else "black"
        axes.text(
            column,
            row,
            "<1%" if 0 < value < 0.5 else f"{value:.0f}%",
            ha="center",
            va="center",
            fontsize=8,
            color=ink,
        )
    short, meaning = _short_labels(scales)
    short[-1] += "\n(target)"
    axes.set_xticks(range(len(scales)), short)
    axes.set_yticks(range(len(hps)), [_plain(hp) for hp in hps])
    axes.set_xlabel(_plain(meaning), fontsize=9)
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
        fit: for its finished runs and its fitted optimum at each scale.
        predicted: mean, low and high (90%) of the loss at the target, as it was predicted.
        measured: purpose ("verify" or "control"), name and loss of each run at the target.
        maximize: whether larger losses are better.
    """
    scales = _shown_scales(fit)
    colours = _colours(scales, fit.target)
    figure = Figure(figsize=(WIDTH_IN, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    _draw_runs(left, fit, scales, colours, maximize)

    mean, low, high = predicted
    for axes, at in ((left, 1.0), (right, 0.0)):
        axes.plot([at, at], [low, high], **_INTERVAL)
        axes.plot(at, mean, **_MEAN)  # a skewed prediction may have its mean outside its interval
    right.axhspan(low, high, color=TARGET_COLOUR, alpha=0.12, linewidth=0)
    right.annotate(f"{mean:.4g}\n[{low:.4g}, {high:.4g}]", (0, min(max(mean, low), high)), **_NOTE)
    names = ["predicted"]
    for purpose, name, loss in measured:
        left.plot(1.0, loss, **_MEASURED[purpose])
        right.plot(len(names), loss, **_MEASURED[purpose])
        right.annotate(f"{loss:.4g}", (len(names), loss), **_NOTE)
        names.append(f"measured:\n{name}")
    right.set_xticks(range(len(names)), [_plain(textwrap.fill(name, 16)) for name in names])
    right.set_xlim(-0.3, len(names) - 0.3)
    ends = [low, high, *[loss for _, _, loss in measured]]
    margin = 0.15 * (max(ends) - min(ends)) + 1e-12
    right.set_ylim(min(ends) - margin, max(ends) + margin)
    right.set_ylabel("final loss", fontsize=9)
    right.set_title(_plain(f"At the target: {scale_label(fit.target, scales)}"), fontsize=9)
    for axes in (left, right):
        _tidy(axes)
    return figure


def _draw_runs(
    axes: Axes, fit: Projection, scales: Sequence[Scale], colours: Mapping[Scale, Any], maximize: bool
) -> None:
    """Finished runs of the search over their cost, the best of each rung, the fitted optimum per scale."""
    unit = fit.settings.cost(fit.target)
    chosen: list[float] = []
    for scale in scales:
        cost = fit.settings.cost(scale) / unit
        if fit.hps:
            _, mean, _, _ = fit.curve(fit.hps[0], scale)
            chosen.append(float(max(mean) if maximize else min(mean)))
            axes.plot(cost, chosen[-1], "_", color="black", markersize=16, markeredgewidth=1.5, zorder=4)
        losses = [loss for r, loss in _finished(fit.runs, scale) if r.purpose == "search"]
        if losses:
            axes.scatter([cost] * len(losses), losses, s=10, color=colours[scale], alpha=0.4)
            chosen.append(max(losses) if maximize else min(losses))
            axes.plot(cost, chosen[-1], **_optimum_marker(colours[scale], is_target=False))
    span = max(chosen) - min(chosen)
    if span > 0:
        below, above = (0.8, 0.15) if maximize else (0.15, 0.8)
        axes.set_ylim(min(chosen) - below * span, max(chosen) + above * span)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.3g}" if value >= 1 else f"1/{1 / value:.3g}")
    )
    axes.set_xlabel("cost of one run, in runs at the target", fontsize=9)
    axes.set_ylabel("final loss", fontsize=9)
    axes.set_title("Finished runs over their cost, and the target", fontsize=9)


def draw_divergence(runs: Sequence[Run], hps: Sequence[str]) -> Figure:
    """Where runs diverge, along each HP: the share that diverged in each sixth of the runs, and every run.

    HPs come in the order of how far apart diverged and other runs lie, in pooled standard deviations; at most
    `MAX_PANELS` of them.

    Args:
        runs: of a study; only those that finished, were stopped or diverged count.
        hps: positive numeric HPs.
    """
    told = [run for run in runs if run.outcome in (Outcome.FINISHED, Outcome.PRUNED, Outcome.DIVERGED)]
    diverged = np.array([run.outcome is Outcome.DIVERGED for run in told])
    columns = {hp: np.array([float(run.params.get(hp, math.nan)) for run in told]) for hp in hps}
    shown = sorted(hps, key=lambda hp: -_apart(columns[hp], diverged))[:MAX_PANELS]
    rows = max(1, math.ceil(len(shown) / COLUMNS))
    figure = Figure(figsize=(WIDTH_IN, 0.4 + 1.9 * rows), layout="constrained")
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
        axes.scatter(values[~bad], height[~bad], s=7, color=CONTROL_COLOUR, alpha=0.5, linewidth=0)
        axes.scatter(values[bad], height[bad], s=22, color=TARGET_COLOUR, marker="x", linewidth=1.2)
        if len(values) and values.min() < values.max():
            _log2_axis(axes, values)
        axes.set_ylim(0, 1)
        axes.set_xlabel(_plain(shown[index]), fontsize=9, fontweight="bold")
        _tidy(axes)
        axes.tick_params(labelleft=index % COLUMNS == 0)
        if index % COLUMNS == 0:
            axes.set_ylabel("share diverged", fontsize=9)
    return figure


def _apart(values: np.ndarray[Any, Any], diverged: np.ndarray[Any, Any]) -> float:
    """How far apart the diverged and the other runs lie along an HP, in log2 and pooled sd."""
    known = values > 0
    z, bad = np.log2(values[known]), diverged[known]
    if not bad.any() or bad.all() or np.ptp(z) == 0:
        return 0.0
    return float(abs(z[bad].mean() - z[~bad].mean()) / z.std())


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
