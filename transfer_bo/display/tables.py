"""Tables for a terminal: what all of them look like, and those that several commands show.

A table is made from plain values by `make_table`; on a terminal of 80 columns it needs no folding as long as
names are of usual length.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from transfer_bo.attributes import SETTINGS_ATTR, SPEED_ATTR
from transfer_bo.display.text import (
    LOSS_DIGITS,
    MISSING,
    UNDETERMINED,
    duration_text,
    interval_text,
    number_text,
    scale_text,
    speed_text,
)
from transfer_bo.records import Outcome, Run, read_settings
from transfer_bo.scale import Scale, default_cost
from transfer_bo.search.budget import spent

__all__ = [
    "Ranges",
    "RungSummary",
    "is_numeric",
    "make_table",
    "rung_table",
    "speed_lines",
    "spent_text",
    "suggestion_rows",
    "suggestion_table",
    "summarise",
]

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest searched value of each numeric HP."""
FAILED = (Outcome.OUT_OF_MEMORY, Outcome.PREEMPTED, Outcome.ERROR)
"""Outcomes that share a column."""


class _Table(Table):
    """A table without lines, below a heading that may be wider than the table."""

    def __init__(self, heading: str) -> None:
        super().__init__(box=None, pad_edge=False, header_style="bold")
        self.heading = heading

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            yield Text(self.heading, style="bold")
        yield from super().__rich_console__(console, options)


def make_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", digits: int = 4
) -> Table:
    """A table of plain values, in the one style of all commands.

    Numbers are written by `number_text`; a column of numbers is set to the right. A column that is empty in
    every row is left out. Values are text, never markup, so that a name may hold brackets.

    Args:
        head: Names of the columns.
        rows: A cell for each column.
        title: A line above the table.
        digits: Significant digits of a number.
    """
    cells = [[number_text(cell, digits) for cell in row] for row in rows]
    shown = [i for i in range(len(head)) if not cells or any(row[i] for row in cells)]
    table = _Table(title)
    for i in shown:
        numeric = i > 0 and all(is_numeric(row[i]) for row in cells)
        table.add_column(Text(head[i]), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[i]) for i in shown))
    return table


def is_numeric(cell: str) -> bool:
    """Whether a cell's text starts like a number, or is empty."""
    return cell in ("", MISSING) or cell[0] in "0123456789+-<∞"


@dataclass(frozen=True)
class RungSummary:
    """The trials of one scale, or all of one source study."""

    scale: Scale | None
    """None where it is not known yet, and for a source study."""
    purpose: str
    """As in `Run`; "source: NAME" for a source study."""
    outcomes: dict[Outcome, int]
    best: Run | None
    mean_seconds: float | None
    """Mean duration of finished runs."""

    @property
    def is_source(self) -> bool:
        """Whether these are the runs of a source study."""
        return self.purpose.startswith("source: ")


def summarise(runs: Sequence[Run], *, maximize: bool = False) -> list[RungSummary]:
    """A summary per scale and purpose, in the order of cost, and one per source study."""
    groups: dict[tuple[Scale | None, str], list[Run]] = collections.defaultdict(list)
    for run in runs:
        key = (run.scale, run.purpose) if run.source is None else (None, f"source: {run.source}")
        groups[key].append(run)

    summaries = []
    for (scale, purpose), group in groups.items():
        # Losses of another study cannot be compared with those of this one.
        finished = [run for run in group if run.loss is not None and run.source is None]
        seconds = [run.seconds for run in finished if run.seconds is not None]
        sign = -1.0 if maximize else 1.0
        summaries.append(
            RungSummary(
                scale=scale,
                purpose=purpose,
                outcomes=dict(collections.Counter(run.outcome for run in group)),
                best=min(finished, key=lambda run: sign * (run.loss or 0.0), default=None),
                mean_seconds=sum(seconds) / len(seconds) if seconds else None,
            )
        )

    def order(summary: RungSummary) -> tuple[bool, bool, float, str]:
        cost = 0.0 if summary.scale is None else default_cost(summary.scale)
        return summary.purpose != "search", summary.is_source, cost, summary.purpose

    return sorted(summaries, key=order)


def rung_table(summaries: Sequence[RungSummary]) -> Table:
    """One row per rung, and one per source study.

    Axes that are the same at all rungs stand in the title. "best" is the best loss and "trial" its number,
    "time" the mean duration of a finished run.
    """
    scales = [summary.scale for summary in summaries if summary.scale is not None]
    same = [axis for axis in scales[0] if len({scale.get(axis) for scale in scales}) == 1] if scales else []
    if len(set(scales)) < 2:
        same = []

    rows = []
    for summary in summaries:
        lacks_scale = summary.scale is None and not summary.is_source
        if lacks_scale and not any(outcome.is_informative for outcome in summary.outcomes):
            continue  # waiting, or just asked: no scale is known yet
        count = collections.Counter(summary.outcomes)
        label = "no scale, not fitted" if lacks_scale else summary.purpose
        if summary.scale is not None:
            label = scale_text(summary.scale, scales)
            label += "" if summary.purpose == "search" else f" ({summary.purpose})"
        rows.append(
            [
                label,
                count[Outcome.FINISHED],
                count[Outcome.PRUNED] or "",
                count[Outcome.DIVERGED] or "",
                sum(count[outcome] for outcome in FAILED) or "",
                count[Outcome.RUNNING] or "",
                "" if summary.best is None else summary.best.loss,
                "" if summary.best is None else summary.best.number,
                "" if summary.mean_seconds is None else duration_text(summary.mean_seconds),
            ]
        )

    fixed = ", ".join(f"{axis} {number_text(scales[0][axis])}" for axis in same)
    return make_table(
        ["rung", "done", "pruned", "diverged", "failed", "running", "best", "trial", "time"],
        rows,
        title=f"At {fixed}:" if fixed else "",
        digits=LOSS_DIGITS,
    )


def spent_text(study: Any, runs: Sequence[Run]) -> str:
    """Compute used by the search, in runs at the target."""
    if SETTINGS_ATTR not in study.user_attrs:
        return "Nothing is spent yet."
    settings = read_settings(study)
    target = settings.cost(settings.target)
    budget = "" if settings.budget is None else f" of {settings.budget / target:.2f}"
    return f"{spent(settings, runs) / target:.2f}{budget} target runs spent."


def speed_lines(study: Any, runs: Sequence[Run]) -> list[str]:
    """For each scale whose runs reported it, the median speed of training."""
    trials = study.get_trials(deepcopy=False)
    speeds: dict[Scale, list[Mapping[str, float | None]]] = {}
    for run in runs:
        speed = trials[run.number].user_attrs.get(SPEED_ATTR)
        if speed and run.scale is not None:
            speeds.setdefault(run.scale, []).append(speed)

    middles = {
        scale: sorted(found, key=lambda speed: speed["tokens_per_second"] or 0.0)[len(found) // 2]
        for scale, found in speeds.items()
    }
    return [f"{scale_text(scale)}: {speed_text(middle)}" for scale, middle in middles.items()]


def suggestion_table(
    suggestion: Any, *, level: float = 0.9, ranges: Ranges | None = None, title: str = "Suggestion for {}"
) -> Table:
    """The suggested HPs and the loss at the target, each with its interval.

    Args:
        suggestion: The suggestion.
        level: Probability of the intervals.
        ranges: Searched range of each HP, shown if given.
        title: The line above, with a place for the target.
    """
    head, rows = suggestion_rows(suggestion, level, ranges)
    return make_table(head, rows, title=title.format(scale_text(suggestion.target)))


def suggestion_rows(
    suggestion: Any, level: float = 0.9, ranges: Ranges | None = None
) -> tuple[list[str], list[list[object]]]:
    """Head and rows of the table of a suggestion; a categorical HP has no interval."""
    intervals = suggestion.interval(level)
    ranges = ranges or {}

    rows: list[list[object]] = []
    for name, value in suggestion.params.items():
        interval = interval_text(*intervals[name]) if name in intervals else ""
        shown = UNDETERMINED if name in suggestion.undetermined else interval
        rows.append([name, value, shown, interval_text(*ranges[name]) if name in ranges else ""])
    low, high = suggestion.predicted_loss.interval(level)
    mean = number_text(suggestion.predicted_loss.mean, LOSS_DIGITS)
    rows.append(["loss", mean, interval_text(low, high, LOSS_DIGITS), ""])

    head = ["HP", "value", f"{level:.0%} interval", "searched"]
    if not ranges:
        head, rows = head[:-1], [row[:-1] for row in rows]
    return head, rows
