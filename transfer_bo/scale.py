"""How large a run is (`Scale`), and the scales that a study may train at (`Ladder`).

Symbols:
    s        log2(axis / base) for each axis, in doublings: the coordinate in which the surrogate sees a scale
    N, D     number of parameters and of training tokens
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from transfer_bo.attributes import RUNG, SCALE_ATTR
from transfer_bo.errors import ScaleError
from transfer_bo.synonyms import axis_kind

__all__ = ["Cost", "Ladder", "Scale", "default_cost"]


class _Trial(Protocol):
    """The part of an Optuna trial that a ladder needs."""

    @property
    def user_attrs(self) -> dict[str, Any]: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...
    def set_user_attr(self, key: str, value: Any) -> None: ...


class Scale(Mapping[str, float]):
    """A point in scale: named positive axes, e.g. `Scale(width=64, depth=4, batch=32, tokens=2e6)`.

    Axes are free names. `width`, `depth`, `batch` (sequences or tokens per step) and `tokens` (length of
    the training run) are the ones that the parametrization knows. Values are read as attributes or items;
    whole numbers stay integers.

    Raises:
        ScaleError: for no axis at all, or a value that is not a positive finite number.
    """

    __slots__ = ("_axes",)
    _axes: dict[str, float]

    def __init__(self, axes: Mapping[str, float] | None = None, /, **named: float) -> None:
        merged = {**(axes or {}), **named}
        if not merged:
            raise ScaleError("A scale needs at least one axis, e.g. Scale(width=64, tokens=2e6).")

        for axis, value in merged.items():
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value <= 0:
                raise ScaleError(f"Scale axis {axis!r} is {value!r}; set it to a positive finite number.")
        axes = {axis: int(v) if float(v).is_integer() else float(v) for axis, v in merged.items()}
        object.__setattr__(self, "_axes", axes)

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

    def replace(self, **axes: float) -> Scale:
        """A copy with some axes changed."""
        return Scale({**self._axes, **axes})

    def log2_ratio(self, base: Scale) -> dict[str, float]:
        """s: log2(axis / base) for each axis, in doublings.

        Raises:
            ScaleError: if the two scales do not have the same axes.
        """
        if set(self) != set(base):
            raise ScaleError(f"{self} and {base} have different axes; give both the same ones.")
        return {axis: math.log2(value / base[axis]) for axis, value in self._axes.items()}


Cost = Callable[[Scale], float]
"""What one run at a scale costs, in any unit (FLOPs, seconds, dollars); it must be positive."""


def default_cost(scale: Scale) -> float:
    """Training FLOPs up to a constant: 6 N D (arXiv:2001.08361), N from `n_params` or from width² x depth.

    Synonyms of these axes count alike. `batch` does not change the FLOPs of a run of given length; an unknown
    axis counts linearly.
    """
    kinds = {axis: axis_kind(axis) for axis in scale}
    power = {"width": 2.0}
    if "n_params" in kinds.values():
        power = {"width": 0.0, "depth": 0.0}

    def factor(axis: str, value: float) -> float:
        return math.pow(value, 0.0 if axis == "batch" else power.get(kinds[axis], 1.0))

    return 6.0 * math.prod(factor(axis, value) for axis, value in scale.items())


class Ladder(Sequence[Scale]):
    """The scales that a study may train at, each with an index that never changes.

    The index is what Optuna stores, so a ladder can only be appended to: `register` gives a new scale the
    next index and finds a known one again. The target is registered like any rung, so that the user's
    objective can also be run at full size. `proxies` are the rungs a sampler may propose.

    Raises:
        ScaleError: for an empty ladder, a repeated rung, or rungs with different axes.
    """

    def __init__(self, proxies: Iterable[Scale]) -> None:
        self._scales: list[Scale] = []
        for scale in proxies:
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

    def register(self, scale: Scale) -> int:
        """The index of a scale, appended if it is new."""
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

        index = trial.suggest_int(RUNG, 0, len(self._scales) - 1)
        if not 0 <= index < len(self._scales):  # Optuna returns an enqueued value even outside the range
            raise ScaleError(f"Rung {index} was enqueued; the ladder has rungs 0 to {len(self._scales) - 1}.")

        scale = self._scales[index] if enqueued is None else Scale(enqueued)
        trial.set_user_attr(SCALE_ATTR, dict(scale))
        return scale
