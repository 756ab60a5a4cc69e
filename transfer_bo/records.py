"""What a study knows, as plain records: every trial as a `Run`, whatever its Optuna state.

Reads an Optuna study through its public attributes and needs no import of Optuna.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transfer_bo.attributes import (
    OUTCOME_ATTR,
    PARAMS_ATTR,
    PROGRESS_STEPS,
    PURPOSE_ATTR,
    RUNG,
    SCALE_ATTR,
    SECONDS_ATTR,
    SETTINGS_ATTR,
    SOURCE_ATTR,
)
from transfer_bo.dimension import Dimension
from transfer_bo.errors import TransferError
from transfer_bo.scale import Scale

__all__ = [
    "FinishedRun",
    "Outcome",
    "Run",
    "StudySettings",
    "check_drift_prior",
    "finished_runs",
    "read_dimensions",
    "read_run",
    "read_runs",
    "read_settings",
]


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

    @property
    def is_open(self) -> bool:
        """Whether the trial has not ended yet."""
        return self in (Outcome.RUNNING, Outcome.WAITING)

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself; a preempted run may go on elsewhere."""
        return not self.is_open and self is not Outcome.PREEMPTED

    @property
    def is_informative(self) -> bool:
        """Whether it depends on the HPs or the scale, so that the surrogate can learn from it."""
        return self.has_ended and self is not Outcome.ERROR

    @property
    def has_trained(self) -> bool:
        """Whether the run fitted into memory and trained until it finished, was stopped or diverged."""
        return self.is_informative and self is not Outcome.OUT_OF_MEMORY

    @property
    def has_final_loss(self) -> bool:
        """Whether the final loss is known; it is infinite for a run that diverged."""
        return self in (Outcome.FINISHED, Outcome.DIVERGED)

    @property
    def is_failure(self) -> bool:
        """Whether the same HPs at the same scale would most likely fail again."""
        return self.is_broken or self is Outcome.DIVERGED

    @property
    def is_broken(self) -> bool:
        """Whether it ended before it trained."""
        return self in (Outcome.OUT_OF_MEMORY, Outcome.ERROR)


_BY_NAME: dict[str | None, Outcome] = {str(outcome): outcome for outcome in Outcome}
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
    seconds: float | None = None
    purpose: str = "search"
    source: str | None = None
    """The source study that it was made in; None for the study's own."""


@dataclass(frozen=True)
class FinishedRun(Run):
    """A run that finished at a known scale, so that scale and loss are there."""

    scale: Scale
    loss: float


def finished_runs(runs: Iterable[Run]) -> list[FinishedRun]:
    """Those of the runs that finished at a known scale, in their order."""
    return [
        FinishedRun(**vars(run))
        for run in runs
        if run.outcome is Outcome.FINISHED and run.scale is not None and run.loss is not None
    ]


def read_run(trial: Any, state: Any = None) -> Run:
    """One Optuna trial as a run; `state` overrules the trial's own (a trial that is just being told)."""
    state = trial.state if state is None else state
    attrs = trial.user_attrs
    typed = attrs.get(OUTCOME_ATTR) if state.is_finished() else None
    outcome = _BY_NAME.get(typed, _FROM_STATE[state.name])
    # In a frozen trial that is just being told the value is not there yet.
    value = trial.value if trial.state.is_finished() else None
    if (
        trial.state.is_finished()
        and outcome is Outcome.FINISHED
        and (value is None or not math.isfinite(value))
    ):
        outcome = Outcome.DIVERGED  # inf reaches COMPLETE when the objective is not wrapped
    return Run(
        number=trial.number,
        params={n: value for n, value in attrs.get(PARAMS_ATTR, trial.params).items() if n != RUNG},
        scale=Scale(attrs[SCALE_ATTR]) if SCALE_ATTR in attrs else None,
        outcome=outcome,
        loss=value if outcome is Outcome.FINISHED else None,
        curve={step / PROGRESS_STEPS: v for step, v in sorted(trial.intermediate_values.items())},
        seconds=attrs.get(SECONDS_ATTR),
        purpose=attrs.get(PURPOSE_ATTR, "search"),
        source=attrs.get(SOURCE_ATTR),
    )


def read_runs(study: Any) -> list[Run]:
    """All trials of an Optuna study, oldest first."""
    return [read_run(trial) for trial in study.get_trials(deepcopy=False)]


@dataclass(frozen=True)
class StudySettings:
    """What a sampler knows and `suggest` needs; kept with the study.

    Attributes:
        scales: every registered scale, by rung index.
        proxies: indices of the rungs that may be proposed.
        target: the scale to project to.
        costs: cost of one run at each scale, by rung index.
        coordinates: "base" or "raw".
        drift_prior: the user's own prior, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        defaults: prior guess of the optimum, by HP.
        budget: tuning compute in the unit of `costs`, or None.
        seed: of the sampler.
        global_share: of the budget, for HPs of all tensors alone before multipliers of groups join; None to
            search everything at once.
    """

    scales: tuple[Scale, ...]
    proxies: tuple[int, ...]
    target: Scale
    costs: tuple[float, ...]
    coordinates: str = "base"
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None
    seed: int = 0
    global_share: float | None = None

    @property
    def base(self) -> Scale:
        """Where s = 0."""
        return self.scales[0]

    def cost(self, scale: Scale) -> float:
        """Cost of one run at a registered scale."""
        return self.costs[self.scales.index(scale)]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = asdict(self)
        return plain | {"scales": [dict(scale) for scale in self.scales], "target": dict(self.target)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> StudySettings:
        """The inverse of `to_json`; a key that a later release has added is ignored with a warning."""
        names = {item.name for item in fields(cls)}
        unknown = sorted(plain.keys() - names)
        if unknown:
            warnings.warn(
                f"The study's settings hold {', '.join(unknown)}, which this release of transfer_bo does not "
                "know and ignores; open the study with the release that wrote it.",
                stacklevel=2,
            )

        known = {name: value for name, value in plain.items() if name in names}
        return cls(
            **{
                **known,
                "scales": tuple(Scale(axes) for axes in plain["scales"]),
                "target": Scale(plain["target"]),
                "proxies": tuple(plain["proxies"]),
                "costs": tuple(plain["costs"]),
            }
        )


def check_drift_prior(prior: Mapping[str, Mapping[str, Sequence[float]]], axes: Iterable[str]) -> None:
    """Whether a user's own drift prior, `{hp: {axis: (mean, sd)}}`, speaks of these axes and is one.

    Raises:
        TransferError: naming an axis that is unknown, or what is no normal distribution.
    """
    axes = list(axes)
    for hp, by_axis in prior.items():
        for axis, pair in by_axis.items():
            if axis not in axes:
                raise TransferError(
                    f"drift_prior speaks of the axis {axis!r}, but the axes are {', '.join(axes)}."
                )
            try:
                mean, sd = map(float, pair)
            except (TypeError, ValueError):
                mean = sd = math.nan
            if not (math.isfinite(mean) and 0 < sd < math.inf):
                raise TransferError(
                    f"drift_prior of {hp} along {axis} is {pair!r}; give (mean, sd) with a positive sd."
                )


def read_settings(study: Any) -> StudySettings:
    """What the study's sampler left with it.

    Raises:
        TransferError: if no `TransferSampler` with a ladder has worked on this study.
    """
    plain = study.user_attrs.get(SETTINGS_ATTR)
    if plain is None:
        raise TransferError(
            f"Study {study.study_name!r} holds no ladder; create it with "
            "sampler=TransferSampler(ladder=..., target=...) and run at least one trial."
        )
    return StudySettings.from_json(plain)


def read_dimensions(
    distributions: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> list[Dimension]:
    """The searched HPs: the union over all trials, whatever their state, each with the hull of its ranges.

    Args:
        distributions: of each trial, `{hp: Optuna distribution}`.
        defaults: prior guess of the optimum, by HP.

    Raises:
        TransferError: for a default of a numeric HP that is no finite number.
    """
    seen: dict[str, Any] = {}
    hull: dict[str, tuple[float, float]] = {}
    for of_trial in distributions:
        for name, distribution in of_trial.items():
            if name == RUNG or distribution.single():
                continue
            seen[name] = distribution
            if not hasattr(distribution, "choices"):
                low, high = hull.get(name, (distribution.low, distribution.high))
                hull[name] = min(low, distribution.low), max(high, distribution.high)
    dimensions = []
    for name, distribution in sorted(seen.items()):
        if hasattr(distribution, "choices"):
            dimensions.append(Dimension(name, "categorical", choices=tuple(distribution.choices)))
            continue
        low, high = hull[name]
        dimensions.append(
            Dimension(
                name,
                "log" if distribution.log else "linear",
                low,
                high,
                None if defaults.get(name) is None else min(max(_default(name, defaults), low), high),
                step=distribution.step,
                integer=isinstance(low, int),
            )
        )
    return dimensions


def _default(name: str, defaults: Mapping[str, Any]) -> float:
    try:
        value = float(defaults[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise TransferError(f"The default of HP {name!r} is {defaults[name]!r}; give a finite number.")
    return value
