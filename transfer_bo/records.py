"""What a study knows, as plain records: every trial as a `Run`, the sampler's settings as `StudySettings`.

Reads an Optuna study through its public attributes and needs no import of Optuna.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transfer_bo.attributes import (
    OUTCOME_ATTR,
    PARAMS_ATTR,
    PROGRESS_STEPS,
    PURPOSE_ATTR,
    REUSED_ATTR,
    RUNG,
    SCALE_ATTR,
    SECONDS_ATTR,
    SEED_ATTR,
    SETTINGS_ATTR,
    SOURCE_ATTR,
)
from transfer_bo.dimension import Dimension
from transfer_bo.errors import PriorError, SearchSpaceError, StudyError
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier

__all__ = [
    "SCHEDULE_SOURCE",
    "FinishedRun",
    "Outcome",
    "Run",
    "StudySettings",
    "count_outcomes",
    "finished_runs",
    "read_constants",
    "read_dimensions",
    "read_drift_prior",
    "read_run",
    "read_runs",
    "read_settings",
]


SCHEDULE_SOURCE = "schedule "
"""How the name of a source begins that holds runs with another learning-rate schedule."""


class Outcome(enum.StrEnum):
    """How a trial ended, or that it is running or waiting."""

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

# Of trials without a stored outcome; a FAIL among them says nothing about its HPs.
_BY_STATE = {
    "COMPLETE": Outcome.FINISHED,
    "PRUNED": Outcome.PRUNED,
    "FAIL": Outcome.ERROR,
    "RUNNING": Outcome.RUNNING,
    "WAITING": Outcome.WAITING,
}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        number: number of its trial.
        params: HPs as searched.
        scale: where it ran; None if the objective did not ask the ladder.
        outcome: how it ended.
        loss: final loss in the study's own direction and unit; only for finished runs.
        curve: loss at each reported progress in (0, 1].
        seconds: wall-clock time of the objective.
        purpose: "search", "verify", "control", "replicate" or "past".
        source: the source study that it was made in, or `SCHEDULE_SOURCE` and its schedule; None for the
            study's own.
        constraints: values of Optuna's constraints by name; one holds at 0 or below.
        reused: share of the run that another run had trained, in [0, 1), see `training.trunk`.
        seed: of initial weights and data order, if runs of its scale share them; None if it has its own.
    """

    number: int
    params: dict[str, Any]
    scale: Scale | None
    outcome: Outcome
    loss: float | None
    curve: dict[float, float] = field(default_factory=dict)
    seconds: float | None = None
    purpose: str = "search"
    source: str | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)
    reused: float = 0.0
    seed: int | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether all constraints hold."""
        return all(value <= 0 for value in self.constraints.values())

    @property
    def lacks_scale(self) -> bool:
        """Whether it says something about HPs, but at an unknown scale, so that it cannot be fitted."""
        return self.scale is None and self.outcome.is_informative


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


def count_outcomes(runs: Iterable[Run]) -> dict[str, int]:
    """Number of a study's own runs by outcome; those that lack a scale count as "without_scale" instead."""
    own = [run for run in runs if run.source is None]
    names = ["without_scale" if run.lacks_scale else str(run.outcome) for run in own]
    return {name: names.count(name) for name in sorted(set(names))}


def read_run(trial: Any, state: Any = None) -> Run:
    """One Optuna trial as a run.

    Args:
        trial: a frozen trial.
        state: the state it is about to get; by default its own.
    """
    state = trial.state if state is None else state
    attrs = trial.user_attrs
    stored = attrs.get(OUTCOME_ATTR) if state.is_finished() else None
    outcome = _BY_NAME.get(stored, _BY_STATE[state.name])

    # While Optuna ends a trial, its value is not there yet.
    value = trial.value if trial.state.is_finished() else None
    if trial.state.is_finished() and outcome is Outcome.FINISHED:
        # An infinite loss reaches COMPLETE when the objective is not wrapped.
        outcome = Outcome.FINISHED if value is not None and math.isfinite(value) else Outcome.DIVERGED

    return Run(
        number=trial.number,
        params={name: v for name, v in attrs.get(PARAMS_ATTR, trial.params).items() if name != RUNG},
        scale=Scale(attrs[SCALE_ATTR]) if SCALE_ATTR in attrs else None,
        outcome=outcome,
        loss=value if outcome is Outcome.FINISHED else None,
        curve={step / PROGRESS_STEPS: v for step, v in sorted(trial.intermediate_values.items())},
        seconds=attrs.get(SECONDS_ATTR),
        purpose=attrs.get(PURPOSE_ATTR, "search"),
        source=attrs.get(SOURCE_ATTR),
        constraints=trial.constraints,
        reused=attrs.get(REUSED_ATTR, 0.0),
        seed=attrs.get(SEED_ATTR),
    )


def read_runs(study: Any) -> list[Run]:
    """All trials of an Optuna study, oldest first."""
    return [read_run(trial) for trial in study.get_trials(deepcopy=False)]


@dataclass(frozen=True)
class StudySettings:
    """What a sampler knows and `suggest` needs; stored with the study.

    Attributes:
        scales: every registered scale, by rung index.
        proxies: indices of the rungs that may be proposed.
        target: the scale to project to.
        costs: cost of one run at each scale, by rung index.
        coordinates: "base" if HPs are in base coordinates of a parametrization that claims transfer, else
            "raw".
        drift_prior: the user's own prior of the drift, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        defaults: prior guess of the optimum, `{hp: value}`.
        budget: compute for tuning in the unit of `costs`, or None for no limit.
        seed: seed of the sampler.
        global_share: share of the budget that is spent on the HPs of all tensors alone, before multipliers of
            groups join, in a trust region; None for the usual share, and no trust region.
        kinds: axis or HP -> its kind (see `synonyms`), where its name does not tell it.
        trunk_decay: share of a run after which runs with the same HPs that differ in tokens only have
            nothing in common any more, counted from the end; None if they share nothing.
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
    kinds: Mapping[str, str] = field(default_factory=dict)
    trunk_decay: float | None = None

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
        for name in ("kinds", "trunk_decay"):
            if not plain[name]:
                del plain[name]  # so that earlier releases read it
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
        target = Scale(plain["target"])
        return cls(
            **{
                **known,
                "scales": tuple(Scale(axes) for axes in plain["scales"]),
                "target": target,
                "proxies": tuple(plain["proxies"]),
                "costs": tuple(plain["costs"]),
                "drift_prior": read_drift_prior(plain.get("drift_prior", {}), target),
            }
        )


def read_drift_prior(
    prior: Mapping[str, Mapping[str, Sequence[float]]], axes: Collection[str]
) -> dict[str, dict[str, tuple[float, float]]]:
    """Check a user's own prior of the drift.

    Args:
        prior: `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        axes: axes of the scales.

    Returns:
        The same with pairs of floats.

    Raises:
        PriorError: naming an axis that is unknown, or a pair that is no normal distribution.
    """
    checked: dict[str, dict[str, tuple[float, float]]] = {}
    for hp, by_axis in prior.items():
        checked[hp] = {}
        for axis, pair in by_axis.items():
            if axis not in axes:
                raise PriorError(f"drift_prior names the axis {axis!r}, but the axes are {', '.join(axes)}.")

            try:
                mean, sd = map(float, pair)
            except (TypeError, ValueError):
                mean = sd = math.nan
            if not (math.isfinite(mean) and 0 < sd < math.inf):
                raise PriorError(
                    f"drift_prior of {hp} along {axis} is {pair!r}; give (mean, sd) with a positive sd."
                )
            checked[hp][axis] = mean, sd
    return checked


def read_settings(study: Any) -> StudySettings:
    """The settings that the study's sampler stored with it.

    Raises:
        StudyError: if no `TransferSampler` with a ladder has worked on this study.
    """
    plain = study.user_attrs.get(SETTINGS_ATTR)
    if plain is None:
        raise StudyError(
            f"Study {study.study_name!r} holds no ladder; create it with "
            "sampler=TransferSampler(ladder=..., target=...) and run at least one trial."
        )
    return StudySettings.from_json(plain)


def read_dimensions(
    distributions: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> list[Dimension]:
    """The searched HPs: the union over all trials, whatever their state, each with the hull of its ranges.

    Args:
        distributions: for each trial, `{hp: Optuna distribution}`.
        defaults: prior guess of the optimum, `{hp: value}`; that of a group multiplier is 1 unless given.

    Raises:
        SearchSpaceError: for a default of a numeric HP that is no finite number.
    """
    latest: dict[str, Any] = {}
    hull: dict[str, tuple[float, float]] = {}
    for of_trial in distributions:
        for name, distribution in of_trial.items():
            if name == RUNG or distribution.single():
                continue
            latest[name] = distribution
            if not hasattr(distribution, "choices"):
                low, high = hull.get(name, (distribution.low, distribution.high))
                hull[name] = min(low, distribution.low), max(high, distribution.high)

    return [
        _dimension(name, distribution, hull.get(name), defaults)
        for name, distribution in sorted(latest.items())
    ]


def read_constants(distributions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """HPs that every trial asked for with the same single value, `{hp: value}`.

    Args:
        distributions: for each trial, `{hp: Optuna distribution}`.
    """
    values: dict[str, list[Any]] = {}
    varied = {RUNG}
    for of_trial in distributions:
        for name, distribution in of_trial.items():
            if distribution.single():
                choices = getattr(distribution, "choices", None)
                values.setdefault(name, []).append(choices[0] if choices else distribution.low)
            else:
                varied.add(name)
    return {
        name: found[0]
        for name, found in sorted(values.items())
        if name not in varied and all(value == found[0] for value in found)
    }


def _dimension(
    name: str, distribution: Any, bounds: tuple[float, float] | None, defaults: Mapping[str, Any]
) -> Dimension:
    """One HP, from its Optuna distribution and the hull of its ranges (None for a categorical HP)."""
    if bounds is None:
        return Dimension(name, "categorical", choices=tuple(distribution.choices))

    low, high = bounds
    default = defaults.get(name, 1.0 if is_multiplier(name) else None)
    if default is not None:
        default = min(max(_default(name, default), low), high)
    return Dimension(
        name,
        "log" if distribution.log else "linear",
        low,
        high,
        default,
        step=distribution.step,
        integer=isinstance(low, int),
    )


def _default(name: str, value: Any) -> float:
    """A default as a number.

    Raises:
        SearchSpaceError: if it is none, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SearchSpaceError(f"The default of HP {name!r} is {value!r}; give a finite number.")
    return number
