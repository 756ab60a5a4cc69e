"""What a run shows while it goes on: trials by outcome, best per rung, the projection, time left.

On a terminal a table that stays in place; anywhere else a line for each finished trial.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from transfer_bo.records import SETTINGS_ATTR, Outcome, Run, read_runs, read_settings, spent
from transfer_bo.runners.study_search import spent_so_far
from transfer_bo.scale import Scale, default_cost

__all__ = ["Progress", "RungSummary", "rung_table", "scale_text", "spent_text", "summarise"]

READ_SECONDS = 2.0
"""How often the study is read."""
PROJECT_SECONDS = 20.0
"""How often, at most, the projection is made anew."""
PROJECT_SHARE = 10.0
"""A projection that takes t seconds is not repeated before 10 t have passed: workers need the cores."""

ENDED = (Outcome.FINISHED, Outcome.PRUNED, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.ERROR)


def scale_text(scale: Scale | None) -> str:
    """`width 32, depth 2, batch 16, tokens 300k`."""
    if scale is None:
        return "no scale"
    return ", ".join(f"{axis} {_short(value)}" for axis, value in scale.items())


def _short(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= max(size, 1e4):
            return f"{value / size:.4g}{unit}"
    return f"{value:g}"


def duration_text(seconds: float) -> str:
    """`1 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class RungSummary:
    """The trials of one scale, or all of one past study."""

    scale: Scale | None
    """None where it is not known yet, and for a past study."""
    purpose: str
    """As in `Run`; "past: NAME" for a past study."""
    outcomes: dict[Outcome, int]
    best: Run | None
    mean_seconds: float | None
    """Mean duration of finished runs."""


def summarise(runs: Sequence[Run], *, maximize: bool = False) -> list[RungSummary]:
    """A summary per scale and purpose, in the order of cost, and one per past study."""
    groups: dict[tuple[Scale | None, str], list[Run]] = collections.defaultdict(list)
    for run in runs:
        key = (run.scale, run.purpose) if run.source is None else (None, f"past: {run.source}")
        groups[key].append(run)
    summaries = []
    for (scale, purpose), group in groups.items():
        # Losses of another study are no losses of this one.
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

    def by_cost(summary: RungSummary) -> tuple[bool, bool, float, str]:
        cost = 0.0 if summary.scale is None else default_cost(summary.scale)
        return summary.purpose != "search", _is_past(summary), cost, summary.purpose

    return sorted(summaries, key=by_cost)


def _is_past(summary: RungSummary) -> bool:
    return summary.purpose.startswith("past: ")


def rung_table(summaries: Sequence[RungSummary]) -> Table:
    """One row per rung, and one per past study."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("rung", "finished", "stopped", "diverged", "other", "running", "best loss", "time per run")
    for name in columns:
        table.add_column(name, justify="left" if name == "rung" else "right")
    other = (Outcome.OUT_OF_MEMORY, Outcome.PREEMPTED, Outcome.ERROR)
    for summary in summaries:
        if summary.scale is None and not _is_past(summary):  # waiting, or just asked: nothing is known yet
            continue
        count = collections.defaultdict(int, summary.outcomes)
        label = scale_text(summary.scale)
        if summary.purpose != "search":
            label = summary.purpose if _is_past(summary) else f"{label} ({summary.purpose})"
        table.add_row(
            label,
            str(count[Outcome.FINISHED]),
            str(count[Outcome.PRUNED]),
            str(count[Outcome.DIVERGED]),
            str(sum(count[outcome] for outcome in other)),
            str(count[Outcome.RUNNING]),
            "" if summary.best is None else f"{summary.best.loss:.4f} (trial {summary.best.number})",
            "" if summary.mean_seconds is None else duration_text(summary.mean_seconds),
        )
    return table


def spent_text(study: optuna.Study, runs: Sequence[Run]) -> str:
    """Compute used by the search, in runs at the target."""
    if SETTINGS_ATTR not in study.user_attrs:
        return "Nothing is spent yet."
    settings = read_settings(study)
    target = settings.cost(settings.target)
    budget = "" if settings.budget is None else f" of {settings.budget / target:.2f}"
    return f"{spent(settings, runs) / target:.2f}{budget} target runs spent."


class _Projector:
    """Makes the projection in a thread of its own, seldom enough to leave the cores to the workers."""

    def __init__(self, project: Callable[[], Any]) -> None:
        self._project = project
        self._thread: threading.Thread | None = None
        self._next = time.monotonic() + PROJECT_SECONDS
        self._seen = 0
        self.latest: Any = None

    def consider(self, n_finished: int) -> None:
        """Start a projection if one is due and there is something new to learn from."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or n_finished == self._seen or time.monotonic() < self._next:
            return
        self._seen = n_finished
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        # A projection that fails (too few trials, say) is one that is not shown; `suggest` says why.
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.latest = self._project()
        took = time.monotonic() - started
        self._next = time.monotonic() + max(PROJECT_SECONDS, PROJECT_SHARE * took)


class Progress:
    """Shows a study while it runs; a context manager. Call `update()` as often as you like.

    Args:
        study: The study to read.
        budget: What the search may spend, in the unit of the trials' cost; None when there is no search.
        target_cost: Cost of one run at the target: budgets are shown in units of it.
        project: Makes a `Suggestion`; None for no projection.
        console: Where to write.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        budget: float | None,
        target_cost: float,
        project: Callable[[], Any] | None = None,
        console: Console | None = None,
    ) -> None:
        self._study = study
        self._budget = budget
        self._target_cost = target_cost
        self._console = console or Console()
        # Nobody sees a projection where only finished trials are told, line by line.
        self._projector = _Projector(project) if project and self._console.is_terminal else None
        self._maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
        self._started = time.monotonic()
        runs = read_runs(study)
        self._spent_before = spent_so_far(study, runs)
        self._told = {run.number for run in runs if run.outcome not in (Outcome.RUNNING, Outcome.WAITING)}
        self._read_at = 0.0
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.update(now=True)
        if self._live is not None:
            self._live.stop()

    def note(self, message: str) -> None:
        """A line that stays, above the table."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def update(self, *, now: bool = False) -> None:
        """Read the study and show it, if the last time is long enough ago."""
        if not now and time.monotonic() - self._read_at < READ_SECONDS:
            return
        self._read_at = time.monotonic()
        runs = read_runs(self._study)
        if self._live is None:
            self._tell_new(runs)
            return
        if self._projector is not None:
            self._projector.consider(sum(run.outcome in ENDED for run in runs))
        self._live.update(self._table(runs), refresh=True)

    def _tell_new(self, runs: list[Run]) -> None:
        for run in runs:
            if run.number in self._told or run.outcome in (Outcome.RUNNING, Outcome.WAITING) or run.source:
                continue
            self._told.add(run.number)
            loss = "" if run.loss is None else f" loss {run.loss:.4f}"
            seconds = "" if run.seconds is None else f" in {duration_text(run.seconds)}"
            purpose = "" if run.purpose == "search" else f" ({run.purpose})"
            share = (
                ""
                if self._budget is None
                else f"; {spent_so_far(self._study, runs) / self._budget:.0%} of the budget"
            )
            self.note(
                f"trial {run.number}{purpose} at {scale_text(run.scale)}: {run.outcome}{loss}{seconds}{share}"
            )

    def _table(self, runs: list[Run]) -> Group:
        parts: list[Any] = [rung_table(summarise(runs, maximize=self._maximize)), Text(self.time_text(runs))]
        suggestion = self._projector.latest if self._projector is not None else None
        if suggestion is not None:
            with contextlib.suppress(Exception):  # the display must not break on a poor projection
                parts.append(projection_table(suggestion))
        return Group(*parts)

    def time_text(self, runs: list[Run]) -> str:
        """Compute used, time gone, time left."""
        elapsed = time.monotonic() - self._started
        if self._budget is None:
            return f"{duration_text(elapsed)} gone"
        # Running trials reserve their whole cost, which says nothing about the rate.
        done = spent_so_far(self._study, [run for run in runs if run.outcome is not Outcome.RUNNING])
        rate = max(0.0, done - self._spent_before) / max(elapsed, 1e-9)
        left = (
            f"about {duration_text(max(0.0, self._budget - done) / rate)} left"
            if rate > 0
            else "time left unknown"
        )
        return (
            f"{done / self._target_cost:.2f} of {self._budget / self._target_cost:.2f} target runs spent; "
            f"{duration_text(elapsed)} gone, {left}"
        )


def projection_table(suggestion: Any, level: float = 0.9) -> Table:
    """The projected HPs and loss at the target, each with its interval."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"projected to {scale_text(suggestion.target)}")
    table.add_column("value", justify="right")
    table.add_column(f"{level:.0%} interval", justify="right")
    intervals = suggestion.interval(level)
    for name, value in suggestion.params.items():
        if name not in intervals:  # a categorical HP
            table.add_row(name, str(value), "")
            continue
        low, high = intervals[name]
        table.add_row(name, f"{value:.4g}", f"{low:.3g} to {high:.3g}")
    low, high = suggestion.predicted_loss.interval(level)
    table.add_row("loss", f"{suggestion.predicted_loss.mean:.4f}", f"{low:.4f} to {high:.4f}")
    return table
