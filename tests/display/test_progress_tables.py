"""What is shown while a study runs: counts, best per rung, time left; nothing that can break the run."""

from __future__ import annotations

import io
import time
from typing import Any

import optuna
import pytest
from rich.console import Console

from transfer_bo import Ladder, Outcome, Scale, TransferSampler, objective
from transfer_bo.display import progress
from transfer_bo.display.progress import Progress
from transfer_bo.display.tables import make_table, rung_table, summarise
from transfer_bo.records import Run, read_runs

SMALL, LARGE, TARGET = Scale(width=16, tokens=1e6), Scale(width=32, tokens=1e6), Scale(width=64, tokens=1e6)


def run(number: int, scale: Scale | None, outcome: Outcome, loss: float | None = None, **more: Any) -> Run:
    """A run without HPs."""
    return Run(number, {}, scale, outcome, loss, **more)


RUNS = [
    run(0, LARGE, Outcome.FINISHED, 3.0, seconds=10.0),
    run(1, SMALL, Outcome.FINISHED, 5.0, seconds=100.0),
    run(2, SMALL, Outcome.FINISHED, 4.0, seconds=200.0),
    run(3, SMALL, Outcome.PRUNED),
    run(4, SMALL, Outcome.DIVERGED),
    run(5, SMALL, Outcome.PREEMPTED),
    run(6, SMALL, Outcome.RUNNING),
    run(7, TARGET, Outcome.FINISHED, 2.0, purpose="verify"),
    run(8, None, Outcome.WAITING),
]


def test_runs_are_summarised_per_rung() -> None:
    """Cheap rungs first, verification last, the best run and the mean time of finished ones."""
    summaries = [summary for summary in summarise(RUNS) if summary.scale is not None]

    assert [SMALL, LARGE, TARGET] == [summary.scale for summary in summaries]
    assert ["search", "search", "verify"] == [summary.purpose for summary in summaries]
    assert {
        Outcome.FINISHED: 2,
        Outcome.PRUNED: 1,
        Outcome.DIVERGED: 1,
        Outcome.PREEMPTED: 1,
        Outcome.RUNNING: 1,
    } == summaries[0].outcomes
    assert 150.0 == summaries[0].mean_seconds
    assert summaries[0].best is not None
    assert 2 == summaries[0].best.number


def test_the_best_of_a_maximised_metric_is_its_largest() -> None:
    """Direction matters for "best"."""
    best = summarise(RUNS, maximize=True)[1].best

    assert best is not None
    assert 1 == best.number


def printed(table: Any, width: int = 80) -> list[str]:
    """The lines that a table takes on a terminal."""
    shown = io.StringIO()
    Console(file=shown, width=width).print(table)
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def test_the_table_holds_a_row_per_rung() -> None:
    """What differs between the rungs is in the rows, what does not in the title; it fits 80 columns."""
    lines = printed(rung_table(summarise(RUNS)))

    assert 5 == len(lines)
    assert "At tokens 1M:" == lines[0]
    assert ["width", "16", "2", "1", "1", "1", "1", "4", "2", "2", "min"] == lines[2].split()
    assert "width 64 (verify)" == lines[4][:17]


def test_columns_without_a_value_are_left_out() -> None:
    """A study in which nothing failed has no columns for failures."""
    head = printed(rung_table(summarise(RUNS[:3])))[1].split()

    assert ["rung", "done", "best", "trial", "time"] == head


def test_a_table_shows_names_as_they_are() -> None:
    """Brackets in a name are no markup, numbers stand on the right, missing values are a dash."""
    lines = printed(
        make_table(["HP", "value", "what"], [["lr[red]", 0.00125, "a"], ["x", None, "b"]], title="A [b]")
    )

    assert ["A [b]", "HP         value  what", "lr[red]  0.00125  a", "x              –  b"] == lines


class World:
    """A study that trains a formula."""

    def __init__(self) -> None:
        self.ladder = Ladder([SMALL, LARGE])
        cost = {SMALL: 1.0, LARGE: 2.0, TARGET: 10.0}
        sampler = TransferSampler(
            ladder=self.ladder, target=TARGET, cost=cost.__getitem__, budget=20.0, seed=0
        )
        self.study = optuna.create_study(sampler=sampler)

    def train(self, n_trials: int) -> None:
        """Make some trials."""

        @objective
        def loss(trial: optuna.Trial) -> float:
            return self.ladder.suggest(trial).width + trial.suggest_float("lr", 0.01, 1.0)

        self.study.optimize(loss, n_trials=n_trials)


def test_without_a_terminal_each_trial_is_one_line() -> None:
    """Only new ones, each once."""
    world, shown = World(), io.StringIO()
    world.train(1)
    with Progress(world.study, budget=20.0, target_cost=10.0, console=Console(file=shown)) as watched:
        world.train(2)
        watched.update(now=True)
        watched.update(now=True)
        world.train(1)

    lines = shown.getvalue().splitlines()
    assert ["trial 1", "trial 2", "trial 3"] == [line[:7] for line in lines]
    assert all("finished loss" in line and "% of the budget" in line for line in lines)


def test_a_failed_trial_says_why() -> None:
    """The last line of its error, so that a log says what to correct."""
    world, shown = World(), io.StringIO()

    def broken(trial: optuna.Trial) -> float:
        world.ladder.suggest(trial)
        raise RuntimeError("no such file: data.bin")

    with Progress(world.study, budget=20.0, target_cost=10.0, console=Console(file=shown)):
        world.study.optimize(objective(broken), n_trials=1)

    assert "error" in shown.getvalue()
    assert "RuntimeError: no such file: data.bin" in shown.getvalue()


def test_time_left_follows_from_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the budget spent in a minute leaves a minute."""
    world, now = World(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watched = Progress(world.study, budget=2.0, target_cost=10.0, console=Console(file=io.StringIO()))
    unknown = watched.time_text([])
    world.train(1)
    now[0] += 60

    runs = read_runs(world.study)

    assert "time left unknown" in unknown
    assert "0.10 of 0.20 target runs spent; 60 s elapsed, about 60 s left" == watched.time_text(runs)


def test_without_a_terminal_the_time_left_is_said_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log shows that the search goes on, and for how long; not more than a line a minute."""
    world, shown, now = World(), io.StringIO(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(world.study, budget=4.0, target_cost=10.0, console=Console(file=shown)) as watched:
        world.train(1)
        for _ in range(60):
            now[0] += 3
            watched.update()
    lines = [line for line in shown.getvalue().splitlines() if not line.startswith("trial 0")]

    assert 3 == len(lines)
    assert "0 trials running; 0.10 of 0.40 target runs spent; 60 s elapsed, about 3 min left" == lines[0]


@pytest.mark.parametrize("fails", [True, False])
def test_a_projection_never_breaks_the_display(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the projection is shown when there is one, and left out when it fails."""
    monkeypatch.setattr(progress, "PROJECT_SECONDS", 0.0)
    world, shown = World(), io.StringIO()
    asked: list[bool] = []

    class Loss:
        mean = 2.0

        def interval(self, level: float) -> tuple[float, float]:
            return 1.5, 2.5

    class Suggestion:
        target, params, predicted_loss, undetermined = TARGET, {"lr": 0.02}, Loss(), ()

        def interval(self, level: float) -> dict[str, tuple[float, float]]:
            return {"lr": (0.01, 0.04)}

    def project() -> Any:
        asked.append(True)
        if fails:
            raise RuntimeError("singular matrix")
        return Suggestion()

    console = Console(file=shown, force_terminal=True, width=120)
    world.train(1)
    with Progress(world.study, budget=20.0, target_cost=10.0, project=project, console=console) as watched:
        watched.update(now=True)
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        watched.update(now=True)

    assert asked
    assert "width 16" in shown.getvalue()
    assert fails == ("0.01 to 0.04" not in shown.getvalue())
    assert fails == ("Projected to width 64, tokens 1M, 0 s ago" not in shown.getvalue())
