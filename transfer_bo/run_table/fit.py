"""From typed runs to a fitted `Projection`, with the room outside the values seen that drift needs.

Symbols: z = HPs in octaves, s = doublings of the axes from the base (the cheapest scale with a finished run).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from transfer_bo.dimension import Dimension
from transfer_bo.errors import TransferError
from transfer_bo.projection import Projection
from transfer_bo.records import Outcome, Run, StudySettings, check_drift_prior
from transfer_bo.run_table.cleaning import UNIT_GAP, UNIT_HINT, RunTable
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["FitOptions", "check_target", "doublings_beyond", "project"]

ROOM_SDS, ROOM_OCTAVES = 3.0, 1.0
"""The optimum at the target may lie outside the values seen: by the drift expected up to there and so many of
its standard deviations, and by so many octaves more."""


@dataclass(frozen=True)
class FitOptions:
    """What is known of a table besides its rows.

    Attributes:
        coordinates: "raw" or "base".
        drift_prior: the user's own, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        maximize: whether larger metrics are better.
        seed: of the draws.
    """

    coordinates: str = "raw"
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    maximize: bool = False
    seed: int = 0

    def check(self, hps: Sequence[str], axes: Sequence[str]) -> None:
        """Whether they speak of these HPs and axes.

        Raises:
            TransferError: naming what is unknown or no normal distribution.
        """
        if self.coordinates not in ("raw", "base"):
            raise TransferError(f"coordinates is {self.coordinates!r}; use 'raw' or 'base'.")
        for hp in self.drift_prior:
            if hp not in hps:
                raise TransferError(f"drift_prior speaks of {hp!r}, but the HPs are {', '.join(hps)}.")
        check_drift_prior(self.drift_prior, axes)


def project(
    runs: Sequence[Run], dimensions: Sequence[Dimension], target: Scale, beliefs: FitOptions
) -> Projection:
    """Fit the surrogate to runs and open the box of HPs at the target.

    Args:
        runs: at least one of them finished.
        dimensions: the HPs that vary, each with the range of the values seen.
        target: the scale to project to.
        beliefs: coordinates, drift prior, direction, seed.
    """
    finished = {run.scale for run in runs if run.outcome is Outcome.FINISHED and run.scale}
    others = {run.scale for run in runs if run.scale} - finished
    scales = (*sorted(finished, key=_order), *sorted(others, key=_order))
    settings = StudySettings(
        scales=scales,
        proxies=tuple(range(len(scales))),
        target=target,
        costs=tuple(default_cost(scale) for scale in scales),
        coordinates=beliefs.coordinates,
        drift_prior={hp: dict(by_axis) for hp, by_axis in beliefs.drift_prior.items()},
        seed=beliefs.seed,
    )
    surrogate = Surrogate(runs, list(dimensions), settings, maximize=beliefs.maximize)
    _open_box(surrogate, target)
    return Projection(surrogate, runs, settings)


def _order(scale: Scale) -> tuple[float, ...]:
    return (default_cost(scale), *scale.values())


def doublings_beyond(scales: Sequence[Scale], target: Scale) -> dict[str, float]:
    """How far the target lies outside the range of these scales, by axis: positive above, negative below."""
    beyond = {}
    for axis, value in target.items():
        seen = [scale[axis] for scale in scales]
        beyond[axis] = math.log2(value / min(max(value, min(seen)), max(seen)))
    return beyond


def _open_box(surrogate: Surrogate, target: Scale) -> None:
    """Widen the range of HPs by what drift may move the optimum between the runs and the target.

    The fit itself uses the range of the values seen, for the prior of the optimum is a share of it. HPs on a
    linear scale keep their range: its ends are often natural ones (no dropout below 0).
    """
    coordinates = surrogate.coordinates
    finished = [run.scale for run in surrogate.runs if run.outcome is Outcome.FINISHED and run.scale]
    by_axis = doublings_beyond(finished, target)
    beyond = torch.tensor([by_axis[axis] for axis in coordinates.axes], dtype=torch.double)
    prior = surrogate.drift_prior
    moves = prior.sd * beyond
    shift, spread = prior.mean @ beyond, torch.einsum("ia,iab,ib->i", moves, prior.correlation, moves).sqrt()
    for i, dim in enumerate(coordinates.numeric):
        if dim.transform == "linear":
            continue
        low = min(0.0, float(shift[i] - ROOM_SDS * spread[i])) - ROOM_OCTAVES
        high = max(0.0, float(shift[i] + ROOM_SDS * spread[i])) + ROOM_OCTAVES
        ends = sorted((dim.forward(dim.low), dim.forward(dim.high)))
        # A whole number stays at least 1, a beta at least 0, if all values seen are.
        natural = 0.0 if dim.transform == "one_minus" or dim.integer else -math.inf
        floor = min(ends[0], natural)
        widened = max(ends[0] + low, floor), ends[1] + high
        coordinates.z_low[i] += widened[0] - ends[0]
        coordinates.z_high[i] += high
        values = sorted(_value(dim, z) for z in widened)
        coordinates.numeric[i] = dataclasses.replace(dim, low=values[0], high=values[1])


def _value(dim: Dimension, z: float) -> float:
    return math.exp2(z) if dim.transform == "log" else 1.0 - math.exp2(-z)


def check_target(target: Scale | Mapping[str, float], rows: RunTable, axes: Sequence[str]) -> Scale:
    """The target as a scale with the table's axes; a remark is added where its unit looks wrong.

    Raises:
        TransferError: for other axes, or a value that can only be in another unit.
    """
    if not isinstance(target, Mapping):
        raise TransferError(f"The target is {target!r}; give a Scale, e.g. tb.Scale(n_params=1e9).")
    scale = Scale(target)
    for axis in axes:
        if axis not in scale:
            raise TransferError(f"The target {scale} has no {axis}; give each axis: {', '.join(axes)}.")
    for axis, value in scale.items():
        if axis not in axes:
            raise TransferError(f"The target has {axis}, which is no axis of the runs ({', '.join(axes)}).")
        seen = [s[axis] for s in rows.scales]
        outside = max(value / max(seen), min(seen) / value)
        sentence = (
            f"The target's {axis} = {value:g} is {outside:.3g} times outside the runs' "
            f"{min(seen):g} to {max(seen):g}"
        )
        if outside >= UNIT_GAP:
            raise TransferError(f"{sentence}; write both in the same unit.")
        if outside >= UNIT_HINT:
            rows.notes.append(f"{sentence}: are both in the same unit?")
    return Scale({axis: scale[axis] for axis in axes})
