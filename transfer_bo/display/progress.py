"""What a command shows while it runs: trials by outcome, best loss per rung, the projection, time left.

On a terminal a table that stays in place; anywhere else a line for each finished trial and one each minute.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from transfer_bo.attributes import ERROR_ATTR, SPEED_ATTR
from transfer_bo.display.tables import rung_table, suggestion_table, summarise
from transfer_bo.display.text import LOSS_DIGITS, duration_text, number_text, scale_text, speed_text
from transfer_bo.records import Outcome, Run, read_runs
from transfer_bo.search.budget import spent_so_far

__all__ = ["Progress"]

ERROR_LENGTH = 300
"""Characters of an error that are shown."""
READ_SECONDS = 2.0
"""How often the study is read."""
STATUS_SECONDS = 60.0
"""How often a line with the time left is written where there is no terminal."""
PROJECT_SECONDS = 20.0
"""How often, at most, the projection is made anew."""
PROJECT_SHARE = 10.0
"""A projection that takes t seconds is not repeated before 10 t have passed: workers need the cores."""


class _Projector:
    """Makes the projection in a thread of its own, seldom enough to leave the cores to the workers."""

    def __init__(self, project: Callable[[], Any]) -> None:
        self._project = project
        self._thread: threading.Thread | None = None
        self._next = time.monotonic() + PROJECT_SECONDS
        self._n_projected = 0
        self.latest: Any = None
        self.made_at = 0.0

    def consider(self, n_finished: int) -> None:
        """Start a projection if one is due and more runs have finished."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or n_finished == self._n_projected or time.monotonic() < self._next:
            return
        self._n_projected = n_finished
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        # A projection that fails (too few trials, say) is one that is not shown; `suggest` says why.
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.latest = self._project()
            self.made_at = time.monotonic()
        seconds = time.monotonic() - started
        self._next = time.monotonic() + max(PROJECT_SECONDS, PROJECT_SHARE * seconds)


class Progress:
    """Shows a study while it runs; a context manager. Call `update()` as often as you like.

    Args:
        study: The study to read.
        budget: What the search may spend, in the unit of the trials' cost; None when there is no search.
        target_cost: Cost of one run at the target: budgets are shown in units of it.
        project: Makes a `Suggestion`; None for no projection.
        console: Where to write.
        watch: For runs at the target: number -> early verdict, the same in words, seconds left or None.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        budget: float | None,
        target_cost: float,
        project: Callable[[], Any] | None = None,
        console: Console | None = None,
        watch: Callable[[], Mapping[int, tuple[str, str, float | None]]] = dict,
    ) -> None:
        self._study = study
        self._watch = watch
        self._verdicts: dict[int, str] = {}
        self._budget = budget
        self._target_cost = target_cost
        self._console = console or Console()
        # Without a terminal there are lines only, and no projection.
        self._projector = _Projector(project) if project and self._console.is_terminal else None
        self._maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
        self._started = time.monotonic()

        runs = read_runs(study)
        self._spent_before = spent_so_far(study, runs)
        self._announced = {run.number for run in runs if not run.outcome.is_open}
        self._read_at = 0.0
        self._status_at = self._started
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
            self._announce(runs)
            self._announce_verdicts()
            if time.monotonic() - self._status_at >= STATUS_SECONDS:
                self._status_at = time.monotonic()
                self.note(self._status_text(runs))
            return
        if self._projector is not None:
            self._projector.consider(sum(run.outcome.has_ended for run in runs))
        self._live.update(self._table(runs), refresh=True)

    def _announce(self, runs: list[Run]) -> None:
        for run in runs:
            if run.number in self._announced or run.outcome.is_open or run.source:
                continue
            self._announced.add(run.number)

            purpose = "" if run.purpose == "search" else f" ({run.purpose})"
            loss = "" if run.loss is None else f" loss {number_text(run.loss, LOSS_DIGITS)}"
            seconds = "" if run.seconds is None else f" in {duration_text(run.seconds)}"
            spent = ""
            if self._budget is not None:
                spent = f"; {spent_so_far(self._study, runs) / self._budget:.0%} of the budget"
            error = self._error_text(run)
            speed = speed_text(self._study.get_trials(deepcopy=False)[run.number].user_attrs.get(SPEED_ATTR))
            self.note(
                f"trial {run.number}{purpose} at {scale_text(run.scale)}: "
                f"{run.outcome}{loss}{seconds}{f', {speed}' if speed else ''}{spent}{error}"
            )

    def _announce_verdicts(self) -> None:
        """A line for each early verdict that has changed."""
        for number, (verdict, text, seconds) in self._watch().items():
            if self._verdicts.get(number) != verdict:
                self._verdicts[number] = verdict
                self.note(_verdict_line(number, text, seconds))

    def _verdict_lines(self) -> list[str]:
        return [_verdict_line(number, text, seconds) for number, (_, text, seconds) in self._watch().items()]

    def _error_text(self, run: Run) -> str:
        """The last line of what ended a failed trial, so that a log says what to correct."""
        if run.outcome is not Outcome.ERROR:
            return ""
        text = str(self._study.get_trials(deepcopy=False)[run.number].user_attrs.get(ERROR_ATTR, ""))
        last = (text.strip().splitlines() or [""])[-1][:ERROR_LENGTH]
        return f"; {last}" if last else ""

    def _status_text(self, runs: list[Run]) -> str:
        running = sum(run.outcome is Outcome.RUNNING for run in runs)
        trials = f"{running} {'trial' if running == 1 else 'trials'} running; {self.time_text(runs)}"
        return "\n".join([trials, *self._verdict_lines()])

    def _table(self, runs: list[Run]) -> Group:
        parts: list[Any] = [rung_table(summarise(runs, maximize=self._maximize)), Text(self.time_text(runs))]
        parts += map(Text, self._verdict_lines())
        if self._projector is not None and self._projector.latest is not None:
            age = duration_text(time.monotonic() - self._projector.made_at)
            with contextlib.suppress(Exception):  # the display must not break on a poor projection
                table = suggestion_table(self._projector.latest, title=f"Projected to {{}}, {age} ago")
                parts.append(table)
        return Group(*parts)

    def time_text(self, runs: list[Run]) -> str:
        """Compute used, time elapsed, time left."""
        elapsed = time.monotonic() - self._started
        if self._budget is None:
            return f"{duration_text(elapsed)} elapsed"

        # Running trials reserve their whole cost, which says nothing about the rate.
        done = spent_so_far(self._study, [run for run in runs if run.outcome is not Outcome.RUNNING])
        rate = max(0.0, done - self._spent_before) / max(elapsed, 1e-9)
        remaining = "time left unknown"
        if rate > 0:
            remaining = f"about {duration_text(max(0.0, self._budget - done) / rate)} left"
        return (
            f"{done / self._target_cost:.2f} of {self._budget / self._target_cost:.2f} target runs spent; "
            f"{duration_text(elapsed)} elapsed, {remaining}"
        )


def _verdict_line(number: int, text: str, seconds_left: float | None) -> str:
    remaining = "time left unknown" if seconds_left is None else f"about {duration_text(seconds_left)} left"
    return f"trial {number}: {text}; {remaining}"
