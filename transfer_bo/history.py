"""What a study knows, as plain records: every trial as a `Run`, whatever its Optuna state.

Reads an Optuna study through its public attributes and needs no import of Optuna.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from transfer_bo.scale import RUNG, SCALE_ATTR, Scale

__all__ = [
    "COST_ATTR",
    "ERROR_ATTR",
    "OUTCOME_ATTR",
    "PROGRESS_STEPS",
    "PURPOSE_ATTR",
    "SECONDS_ATTR",
    "Outcome",
    "Run",
    "read_runs",
]

OUTCOME_ATTR = "transfer_bo:outcome"
"""Trial attribute: how it ended, a value of `Outcome`."""
ERROR_ATTR = "transfer_bo:error"
"""Trial attribute: type and text of the exception that ended it."""
SECONDS_ATTR = "transfer_bo:seconds"
"""Trial attribute: wall-clock seconds in the objective."""
COST_ATTR = "transfer_bo:cost"
"""Trial attribute: what a run to the end costs, in the unit of the study's cost function."""
PURPOSE_ATTR = "transfer_bo:purpose"
"""Trial attribute: "search" (when absent), "verify" or "control"."""
PROGRESS_STEPS = 1000
"""`trial.report(loss, step)` counts steps in thousandths of the run: rungs compare at equal progress."""


class Outcome(enum.StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    PREEMPTED = "preempted"
    ERROR = "error"
    RUNNING = "running"
    WAITING = "waiting"


_FROM_STATE = {  # for trials that no `objective` has typed; an untyped FAIL says nothing about its HPs
    "COMPLETE": Outcome.FINISHED,
    "PRUNED": Outcome.PRUNED,
    "FAIL": Outcome.ERROR,
    "RUNNING": Outcome.RUNNING,
    "WAITING": Outcome.WAITING,
}


@dataclass(frozen=True)
class Run:
    """One training run: HPs as searched, where it ran, how it ended."""

    number: int
    params: dict[str, Any]
    scale: Scale | None
    outcome: Outcome
    loss: float | None
    """Final loss in the study's own direction and unit; only for finished runs."""
    curve: dict[float, float] = field(default_factory=dict)
    """Loss at each reported progress in (0, 1]."""
    cost: float | None = None
    seconds: float | None = None
    purpose: str = "search"


def read_runs(study: Any) -> list[Run]:
    """All trials of an Optuna study, oldest first."""
    runs = []
    for trial in study.get_trials(deepcopy=False):
        attrs = trial.user_attrs
        typed = attrs.get(OUTCOME_ATTR) if trial.state.is_finished() else None
        outcome = Outcome(typed) if typed else _FROM_STATE[trial.state.name]
        finite = trial.value is not None and abs(trial.value) != float("inf")
        if outcome is Outcome.FINISHED and not finite:
            outcome = Outcome.DIVERGED  # inf reaches COMPLETE when the objective is not wrapped
        runs.append(
            Run(
                number=trial.number,
                params={name: value for name, value in trial.params.items() if name != RUNG},
                scale=Scale(attrs[SCALE_ATTR]) if SCALE_ATTR in attrs else None,
                outcome=outcome,
                loss=trial.value if outcome is Outcome.FINISHED else None,
                curve={step / PROGRESS_STEPS: v for step, v in sorted(trial.intermediate_values.items())},
                cost=attrs.get(COST_ATTR),
                seconds=attrs.get(SECONDS_ATTR),
                purpose=attrs.get(PURPOSE_ATTR, "search"),
            )
        )
    return runs
