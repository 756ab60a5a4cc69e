"""From typed runs to a fitted `Projection`, with the room outside the tried values that drift needs.

Symbols: z = HPs in octaves, s = doublings of the axes from the base (the cheapest scale with a finished run).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from transfer_bo.dimension import Dimension
from transfer_bo.errors import PriorError, ScaleError, TransferError
from transfer_bo.notes import Note
from transfer_bo.projection import Projection
from transfer_bo.projection.extrapolation import far_sd
from transfer_bo.quantities import parse_number
from transfer_bo.records import Outcome, Run, StudySettings, read_drift_prior
from transfer_bo.run_table.cleaning import UNIT_HINT, RunTable
from transfer_bo.run_table.read import column_name
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

__all__ = ["FitOptions", "check_target", "doublings_outside", "project", "read_scale"]

ROOM_SDS = 3.0
"""The optimum at the target may lie outside the tried values: by the drift expected between runs and target,
so many of its standard deviations ..."""

ROOM_OCTAVES = 1.0
"""... and so many octaves more."""


@dataclass(frozen=True)
class FitOptions:
    """What is known of a table besides its rows.

    Attributes:
        coordinates: "raw" or "base".
        drift_prior: the user's own prior of the drift, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
        maximize: whether larger metrics are better.
        seed: of the draws.
        kinds: axis or HP -> its kind, where the user declared it.
    """

    coordinates: str = "raw"
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    maximize: bool = False
    seed: int = 0
    kinds: Mapping[str, str] = field(default_factory=dict)

    def check(self, hps: Sequence[str], axes: Sequence[str]) -> None:
        """Check the options against the columns of a table.

        Args:
            hps: columns that are HPs.
            axes: columns that are axes of scale.

        Raises:
            PriorError: for a drift prior of an unknown HP or axis, or one that is no normal distribution.
            ScaleError: for unknown coordinates.
        """
        if self.coordinates not in ("raw", "base"):
            raise ScaleError(f"coordinates is {self.coordinates!r}; use 'raw' or 'base'.")
        for hp in self.drift_prior:
            if hp not in hps:
                raise PriorError(f"drift_prior names the HP {hp!r}, but the HPs are {', '.join(hps)}.")
        read_drift_prior(self.drift_prior, axes)


def project(
    runs: Sequence[Run], dimensions: Sequence[Dimension], target: Scale, options: FitOptions
) -> Projection:
    """Fit the surrogate to runs and open the box of HPs at the target.

    Args:
        runs: at least one of them finished.
        dimensions: the HPs that vary, each with the range of its values.
        target: the scale to project to.
        options: coordinates, drift prior, direction, seed.
    """
    finished = {run.scale for run in runs if run.outcome is Outcome.FINISHED and run.scale}
    others = {run.scale for run in runs if run.scale} - finished
    scales = (*sorted(finished, key=_order), *sorted(others, key=_order))

    settings = StudySettings(
        scales=scales,
        proxies=tuple(range(len(scales))),
        target=target,
        costs=tuple(default_cost(scale) for scale in scales),
        coordinates=options.coordinates,
        drift_prior=read_drift_prior(options.drift_prior, target),
        seed=options.seed,
        kinds=options.kinds,
    )
    surrogate = fit_surrogate(runs, list(dimensions), settings, maximize=options.maximize)
    return Projection(_with_wider_ranges(surrogate, target), runs, settings)


def _order(scale: Scale) -> tuple[float, ...]:
    return (default_cost(scale), *scale.values())


def doublings_outside(scales: Sequence[Scale], target: Scale) -> dict[str, float]:
    """How far the target lies outside the range of some scales.

    Args:
        scales: at least one, with the axes of the target.
        target: any scale.

    Returns:
        Doublings by axis: positive above the range, negative below it, 0 inside.
    """
    outside = {}
    for axis, value in target.items():
        values = [scale[axis] for scale in scales]
        outside[axis] = math.log2(value / min(max(value, min(values)), max(values)))
    return outside


def _with_wider_ranges(surrogate: Surrogate, target: Scale) -> Surrogate:
    """Widen the range of HPs by what drift may move the optimum between the runs and the target.

    The fit itself uses the range of the tried values, because the prior of the optimum is a share of it. HPs
    on a linear scale keep their range: its ends are often natural ones (no dropout below 0).
    """
    coordinates = surrogate.coordinates
    finished = [run.scale for run in surrogate.runs if run.outcome is Outcome.FINISHED and run.scale]
    by_axis = doublings_outside(finished, target)
    outside = torch.tensor([by_axis[axis] for axis in coordinates.axes], dtype=torch.double)

    prior = surrogate.drift_prior
    moves = prior.sd * outside
    variance = torch.einsum("ia,iab,ib->i", moves, prior.correlation, moves)
    mean, sd = prior.mean @ outside, (variance + far_sd(surrogate, target) ** 2).sqrt()

    numeric, z_low, z_high = list(coordinates.numeric), coordinates.z_low.clone(), coordinates.z_high.clone()
    for i, dim in enumerate(coordinates.numeric):
        if dim.transform == "linear":
            continue
        low = min(0.0, float(mean[i] - ROOM_SDS * sd[i])) - ROOM_OCTAVES
        high = max(0.0, float(mean[i] + ROOM_SDS * sd[i])) + ROOM_OCTAVES

        # A whole number stays at least 1, a beta at least 0, if all tried values are.
        ends = sorted((dim.forward(dim.low), dim.forward(dim.high)))
        natural = 0.0 if dim.transform == "one_minus" or dim.integer else -math.inf
        widened = max(ends[0] + low, min(ends[0], natural)), ends[1] + high

        z_low[i] += widened[0] - ends[0]
        z_high[i] += high
        values = sorted(_value(dim, z) for z in widened)
        numeric[i] = dataclasses.replace(dim, low=values[0], high=values[1])
    return dataclasses.replace(surrogate, coordinates=coordinates.with_ranges(numeric, z_low, z_high))


def _value(dim: Dimension, z: float) -> float:
    return math.exp2(z) if dim.transform == "log" else 1.0 - math.exp2(-z)


def read_scale(axes: Any, what: str) -> Scale:
    """A scale, as users give it.

    Args:
        axes: a Scale, or axis -> number or text such as "7B".
        what: it is, for errors.

    Raises:
        ScaleError: if it is no scale.
    """
    if not isinstance(axes, Mapping):
        raise ScaleError(f"The {what} is {axes!r}; give a Scale, e.g. tb.Scale(n_params=1e9).")
    values = {}
    for axis, value in axes.items():
        try:
            is_text = isinstance(value, str)
            values[column_name(axis)] = parse_number(value, f"The {what}'s {axis}") if is_text else value
        except TransferError as error:
            raise ScaleError(str(error)) from None
    return Scale(values)


def check_target(scale: Scale, rows: RunTable, axes: Sequence[str]) -> Scale:
    """Check a target against the runs; a note is added to `rows` where its unit looks wrong.

    Args:
        scale: the target.
        rows: the runs.
        axes: columns that are axes of scale.

    Returns:
        The target as a scale, its axes in the order of the table's.

    Raises:
        ScaleError: for other axes.
    """
    for axis in axes:
        if axis not in scale:
            raise ScaleError(f"The target {scale} has no {axis}; give each axis: {', '.join(axes)}.")

    for axis, value in scale.items():
        if axis not in axes:
            raise ScaleError(f"The target has {axis}, which is no axis of the runs ({', '.join(axes)}).")
        values = [s[axis] for s in rows.scales]
        ratio = max(value / max(values), min(values) / value)
        sentence = (
            f"The target's {axis} = {value:g} is {ratio:.3g} times outside the runs' "
            f"{min(values):g} to {max(values):g}"
        )
        if ratio >= UNIT_HINT:
            rows.notes.append(
                Note(
                    f"{sentence}; if these are two units, write both in the same one.",
                    "unit_of_target",
                    column=axis,
                    values=[value, min(values), max(values)],
                )
            )
    return Scale({axis: scale[axis] for axis in axes})
