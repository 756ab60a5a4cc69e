"""What a report reads from a study: runs, fit, suggestion, and the runs at the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transfer_bo.attributes import CONTROL_ATTR, PREDICTION_ATTR
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome, Run, StudySettings, read_runs, read_settings
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    from transfer_bo.projection import Projection, Suggestion

__all__ = ["Check", "State", "read_state"]


@dataclass(frozen=True)
class Check:
    """A run at the target: its purpose and HPs, the loss predicted before it, and its outcome."""

    number: int
    name: str
    purpose: str
    scale: Scale
    params: dict[str, Any]
    outcome: Outcome
    loss: float | None
    predicted: tuple[float, float, float] | None
    """Mean, low and high of the loss, as predicted before the run."""


@dataclass(frozen=True)
class State:
    """All that the report reads from a study."""

    study: Any
    runs: list[Run]
    settings: StudySettings | None
    fit: Projection | None
    suggestion: Suggestion | None
    missing: str
    """Why there is no projection; empty if there is one."""
    checks: list[Check]
    importance: dict[str, float]
    """Share of each HP at the target; empty without a fit."""
    maximize: bool

    @property
    def own(self) -> list[Run]:
        """The runs that were made in this study, not in a source study."""
        return [run for run in self.runs if run.source is None]

    @property
    def verified(self) -> Check | None:
        """The latest finished run of a suggestion at the target."""
        suggested = [c for c in self.checks if c.purpose == "verify" and c.predicted]
        done = [c for c in suggested if c.outcome.is_informative]
        return done[-1] if done else None

    @property
    def chosen(self) -> dict[str, Any] | None:
        """What is set at the target: what was verified there, or else the suggestion."""
        if self.verified is not None:
            return self.verified.params
        return None if self.suggestion is None else self.suggestion.params

    @property
    def controls(self) -> list[Check]:
        """The latest control run of each name at the scale of the verified one."""
        if self.verified is None:
            return []
        done = [c for c in self.checks if c.purpose == "control" and c.outcome.is_informative]
        return list({c.name: c for c in done if c.scale == self.verified.scale}.values())


def read_state(study: Any, fit: Projection | None) -> State:
    """Read a study. Without a fit, one is made if there are enough runs for it."""
    missing, settings, suggestion, importance = "", None, None, {}
    try:
        settings = read_settings(study)
        if fit is None:
            from transfer_bo.projection import fit_study

            fit = fit_study(study)
        suggestion, importance = fit.suggest(), fit.importance(fit.target)
    except TransferError as error:
        missing = str(error)

    runs = read_runs(study)
    return State(
        study=study,
        runs=runs,
        settings=settings,
        fit=fit,
        suggestion=suggestion,
        missing=missing,
        checks=_read_checks(study, runs),
        importance=importance,
        maximize=study.direction.name == "MAXIMIZE",
    )


def _read_checks(study: Any, runs: Sequence[Run]) -> list[Check]:
    attrs = {trial.number: trial.user_attrs for trial in study.get_trials(deepcopy=False)}
    checks = []
    for run in runs:
        if run.purpose in ("search", "past") or run.scale is None:
            continue
        of_trial = attrs[run.number]
        predicted = of_trial.get(PREDICTION_ATTR)
        is_suggestion = run.purpose == "verify"
        checks.append(
            Check(
                number=run.number,
                name="suggestion" if is_suggestion else str(of_trial.get(CONTROL_ATTR, "control")),
                purpose=run.purpose,
                scale=run.scale,
                params=run.params,
                outcome=run.outcome,
                loss=run.loss,
                predicted=(predicted["loss"], *predicted["interval"]) if predicted else None,
            )
        )
    return checks
