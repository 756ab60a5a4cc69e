"""How large a run is (`Scale`), and the scales that a study may train at (`Ladder`).

Symbols:
    s        log2(axis / base) for each axis, in doublings: the coordinate in which the surrogate sees a scale
    N, D     number of parameters and of training tokens
"""

from __future__ import annotations

import difflib
import functools
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from transfer_bo.attributes import RUNG, SCALE_ATTR, SETTINGS_ATTR
from transfer_bo.errors import ScaleError, TransferError
from transfer_bo.quantities import parse_number
from transfer_bo.secrets import hide_passwords
from transfer_bo.synonyms import AXES, axis_kind, plain_name

__all__ = ["Cost", "Ladder", "Scale", "as_scale", "default_cost"]

KNOWN_AXES = frozenset(name for names in AXES.values() for name in names)
"""Names of axes for which a misspelling is looked for."""

EXPERT_AXES = frozenset({"experts", "top_k", "expert_width"})
"""Axes of a mixture of experts."""

STEP_WORDS = frozenset({"steps", "iterations", "iters", "updates"})
"""Words of a duration that counts steps of the optimizer."""

LIKENESS = 0.8
"""A name is a likely misspelling of a known one from this ratio of `difflib.SequenceMatcher` on."""

MIN_LENGTH = 4
"""Shorter names differ from each other by too little to be misspellings."""


class _Trial(Protocol):
    """The part of an Optuna trial that a ladder needs."""

    @property
    def user_attrs(self) -> dict[str, Any]: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def set_user_attr(self, key: str, value: Any) -> None: ...


class Scale(Mapping[str, float]):
    """A point in scale: named positive axes, e.g. `Scale(width=64, depth=4, batch=32, tokens=2e6)`.

    Axes are free names. `width`, `depth`, `batch` (sequences or tokens per step) and `tokens` (length of
    the training run) are the ones that the parametrization knows; of a mixture of experts also `experts`
    (their number), `top_k` (those that a token uses) and `expert_width` (the hidden width of each), of
    adapters `rank`. A name that is almost one of those gets a warning. Values are numbers or texts such as
    "1B", "20G" or "1e9"; they are read as attributes or items, and whole numbers stay integers.

    Raises:
        ScaleError: for no axis at all, or a value that is not a positive finite number.
    """

    __slots__ = ("_axes",)
    _axes: dict[str, float]

    def __init__(self, axes: Mapping[str, float | str] | None = None, /, **named: float | str) -> None:
        if axes is not None and not isinstance(axes, Mapping):
            raise ScaleError(f"A scale cannot be made of {axes!r}; name its axes, e.g. Scale(width=64).")
        merged = {**(axes or {}), **named}
        if not merged:
            raise ScaleError("A scale needs at least one axis, e.g. Scale(width=64, tokens=2e6).")

        for axis in merged:
            intended = _misspelling_of(axis)
            if intended is not None:
                warnings.warn(f"Scale axis {axis!r} looks like a misspelling of {intended!r}.", stacklevel=2)
        object.__setattr__(self, "_axes", {axis: _axis_value(axis, v) for axis, v in merged.items()})

    def __getitem__(self, axis: str) -> float:
        return self._axes[axis]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def __getattr__(self, axis: str) -> Any:
        if axis.startswith("_"):
            raise AttributeError(axis)
        try:
            return self._axes[axis]
        except KeyError:
            raise AttributeError(f"this scale has no axis {axis!r}; it has {', '.join(self._axes)}") from None

    def __setattr__(self, axis: str, value: Any) -> None:
        raise AttributeError(f"a Scale is immutable; use scale.replace({axis}={value!r})")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale) and self._axes == other._axes

    def __hash__(self) -> int:
        return hash(frozenset(self._axes.items()))

    def __repr__(self) -> str:
        return f"Scale({', '.join(f'{a}={v:g}' for a, v in self._axes.items())})"

    def __reduce__(self) -> tuple[type[Scale], tuple[dict[str, float]]]:
        return Scale, (dict(self._axes),)

    def replace(self, **axes: float | str) -> Scale:
        """A copy with some axes changed."""
        return Scale({**self._axes, **axes})

    def log2_ratio(self, base: Scale | Mapping[str, float]) -> dict[str, float]:
        """s: log2(axis / base) for each axis, in doublings.

        Raises:
            ScaleError: if the two scales do not have the same axes.
        """
        base = as_scale(base, "base")
        if set(self) != set(base):
            raise ScaleError(f"{self} and {base} have different axes; give both the same ones.")
        return {axis: math.log2(value / base[axis]) for axis, value in self._axes.items()}


def _axis_value(axis: str, value: Any) -> float:
    """The value of an axis as a plain number, whole ones as integers.

    Raises:
        ScaleError: if it is no positive finite number.
    """
    try:
        number = parse_number(value) if isinstance(value, str) else float(value)
    except (TransferError, TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0:
        raise ScaleError(f"Scale axis {axis!r} is {value!r}; set it to a positive finite number.")

    if isinstance(value, numbers.Integral):
        return int(value)
    return int(number) if number.is_integer() else number


@functools.lru_cache(maxsize=1024)
def _misspelling_of(axis: str) -> str | None:
    """The known name of an axis that a name is a likely misspelling of."""
    if axis_kind(axis) in AXES or len(axis) < MIN_LENGTH:
        return None
    close = difflib.get_close_matches(axis, KNOWN_AXES, n=1, cutoff=LIKENESS)
    is_plural = bool(close) and axis in (close[0] + "s", close[0].removesuffix("s"))
    return close[0] if close and not is_plural else None


def as_scale(scale: Any, what: str) -> Scale:
    """A scale from what a user gave for one: a `Scale`, or a mapping of axes to values.

    Args:
        scale: what the user gave.
        what: what it is, as the error names it: "target".

    Raises:
        ScaleError: if it is neither.
    """
    if isinstance(scale, Scale):
        return scale
    if isinstance(scale, Mapping):
        return Scale(scale)
    raise ScaleError(f"{what} is {scale!r}; give a Scale, e.g. Scale(width=64, tokens=2e6).")


Cost = Callable[[Scale], float]
"""What one run at a scale costs, in any unit (FLOPs, seconds, dollars); it must be positive."""


def default_cost(scale: Scale) -> float:
    """Training FLOPs up to a constant: 6 N D (arXiv:2001.08361), N from `n_params` or from width² x depth.

    Synonyms of these axes count alike, and of two names of the same thing the first counts, of durations one
    in tokens. `batch` does not change the FLOPs of a run of so many tokens, but of one of so many steps. Of a
    mixture of experts the active parameters count: those of `top_k` experts. An unknown axis counts linearly.
    """
    in_steps = [axis for axis in scale if STEP_WORDS & set(plain_name(axis).split("_"))]
    axes = {axis_kind(axis): axis for axis in reversed([*sorted(scale, key=in_steps.__contains__)])}
    power = {"width": 2.0, "batch": 1.0 if axes.get("tokens") in in_steps else 0.0}
    if "n_params" in axes:
        power |= {"width": 0.0, "depth": 0.0}
    counted = [axis for axis in scale if axis in axes.values() and axis not in EXPERT_AXES]
    factor = 6.0 if "n_params" in axes else 6.0 * _experts_factor(scale, axes.get("width"))
    return factor * math.prod(math.pow(scale[axis], power.get(axis_kind(axis), 1.0)) for axis in counted)


def _experts_factor(scale: Scale, width: str | None) -> float:
    """Active parameters of a block with experts over those of a dense one, 4 width² + 8 width².

    Attention has 4 width² of them, `top_k` experts have 2 width · expert_width each; routers are left out. An
    expert without a width of its own is as wide as a dense block's MLP, 4 width.
    """
    top_k = scale.get("top_k", 1)
    if width is None:
        return top_k * scale.get("expert_width", 1)
    return (1 + 2 * top_k * scale.get("expert_width", 4 * scale[width]) / (4 * scale[width])) / 3


class Ladder(Sequence[Scale]):
    """The scales that a study may train at, each with an index that never changes.

    The index is what Optuna stores, so a ladder can only be appended to: `register` gives a new scale the
    next index and finds a known one again. The target is registered like any rung, so that the user's
    objective can also be run at full size. `proxies` are the rungs a sampler may propose.

    Raises:
        ScaleError: for an empty ladder, a repeated rung, or rungs with different axes.
    """

    def __init__(self, proxies: Iterable[Scale | Mapping[str, float]]) -> None:
        self._scales: list[Scale] = []
        self._warned = False
        if isinstance(proxies, Mapping) or not isinstance(proxies, Iterable):
            raise ScaleError(f"A ladder cannot be made of {proxies!r}; give a list of scales.")
        for scale in (as_scale(proxy, "A rung") for proxy in proxies):
            if scale in self._scales:
                raise ScaleError(f"The ladder holds {scale} twice; give each rung once.")
            self.register(scale)
        if not self._scales:
            raise ScaleError("A ladder needs at least one rung, e.g. Ladder([Scale(width=64, depth=4)]).")
        self.proxies: tuple[Scale, ...] = tuple(self._scales)

    def __getitem__(self, index: Any) -> Any:
        return self._scales[index]

    def __len__(self) -> int:
        return len(self._scales)

    def __repr__(self) -> str:
        return f"Ladder({self._scales!r})"

    @property
    def base(self) -> Scale:
        """The first rung given: where, by default, base coordinates are defined."""
        return self.proxies[0]

    def register(self, scale: Scale | Mapping[str, float]) -> int:
        """The index of a scale, appended if it is new.

        Raises:
            ScaleError: for other axes than those of the rungs.
        """
        scale = as_scale(scale, "A rung")
        if self._scales and set(scale) != set(self._scales[0]):
            raise ScaleError(
                f"{scale} has other axes than the ladder's first rung {self._scales[0]}; "
                "give every rung and the target the same axes."
            )
        if scale not in self._scales:
            self._scales.append(scale)
        return self._scales.index(scale)

    def align(self, stored: Iterable[Scale]) -> None:
        """Take over the indices that a study already uses; own scales it does not know follow after."""
        known = list(stored)
        self._scales = known + [scale for scale in self._scales if scale not in known]

    def suggest(self, trial: _Trial) -> Scale:
        """The scale that a trial runs at; its axes are stored with the trial.

        A trial that was enqueued with a scale of its own (verification at a target) gets that scale.

        Args:
            trial: an Optuna trial.

        Raises:
            ScaleError: for an enqueued rung that the ladder does not have.
        """
        enqueued = trial.user_attrs.get(SCALE_ATTR)
        if enqueued is not None:
            self.register(Scale(enqueued))
        else:
            self._warn_of_other_sampler(trial)

        index = trial.suggest_int(RUNG, 0, len(self._scales) - 1)
        if not 0 <= index < len(self._scales):  # Optuna returns an enqueued value even outside the range
            raise ScaleError(f"Rung {index} was enqueued; the ladder has rungs 0 to {len(self._scales) - 1}.")

        scale = self._scales[index] if enqueued is None else Scale(enqueued)
        trial.set_user_attr(SCALE_ATTR, dict(scale))
        return scale

    def _warn_of_other_sampler(self, trial: Any) -> None:
        """Warn once if a study that was searched by a `TransferSampler` is continued without one."""
        study = getattr(trial, "study", None)
        sampler = getattr(study, "sampler", None)
        while sampler is not None and getattr(sampler, "ladder", None) is None:
            sampler = getattr(sampler, "_base_sampler", None)  # as Optuna's PartialFixedSampler keeps its own
        if study is None or sampler is not None or self._warned:
            return

        if SETTINGS_ATTR in study.user_attrs:
            self._warned = True
            warnings.warn(
                f"Study {hide_passwords(study.study_name)!r} was searched by a TransferSampler and goes on "
                f"with {type(study.sampler).__name__}, which does not know what a rung is; give load_study "
                "sampler=TransferSampler(ladder=..., target=...).",
                stacklevel=3,
            )
