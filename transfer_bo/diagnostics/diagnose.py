"""How well the HPs of a study, or of a table of runs, transfer: rates, bowl law and importance in one answer.

Symbols: n the size that grows, z natural coordinate of an HP, y the loss (its logarithm where all losses are
positive), b_n and c_n slope and curvature at size n.

Sizes. Rates are about one axis that grows: the one with the most levels, all other axes being equal. Where no
axis has three levels, the cost of a run is used (fast or slow does not depend on the unit of n, but a cost
that mixes axes mixes their rates; a note says so).

Several HPs. Rates are about one HP at a time. In a search over many, the other HPs' part is first
subtracted: y = level_n + b_n z + c_n z² for the HP in question, a level, slope and curvature per size, plus a
parabola (a constant per choice) for each other HP, common to all sizes, by least squares. That needs twice
as many runs as unknowns; where there are fewer, a note says so and only importance is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.curves import Sweep, read_sweep
from transfer_bo.diagnostics.importance import Importance, hp_importance
from transfer_bo.diagnostics.metrics import TransferMetrics, transfer_metrics
from transfer_bo.diagnostics.rates import MIN_SIZES, Rates, transfer_rates
from transfer_bo.dimension import Dimension
from transfer_bo.errors import DiagnosticError, NoRunsError
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome, Run
from transfer_bo.scale import Scale, default_cost

__all__ = ["Diagnosis", "diagnose"]

COST = "cost"
"""Name of the size when several axes grow together."""


@dataclass(frozen=True)
class Diagnosis:
    """What the runs show of transfer.

    Attributes:
        axis: The axis that grows, or "cost".
        rates: Fast, slow, jump or undecided, by HP.
        metrics: E and κ of the sweep, by HP; the penalty R(∞) is zero, for nothing is compared.
        sweeps: The sweep that rates and metrics rest on, by HP.
        importance: Importance of the HPs per scale, if there are enough runs.
        notes: Sentences about what could not be computed, and why.
    """

    axis: str
    rates: dict[str, Rates]
    metrics: dict[str, TransferMetrics]
    sweeps: dict[str, Sweep]
    importance: Importance | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "axis": self.axis,
            "rates": {hp: rates.to_json() for hp, rates in self.rates.items()},
            "metrics": {hp: metrics.to_json() for hp, metrics in self.metrics.items()},
            "importance": None if self.importance is None else self.importance.to_json(),
            "notes": list(self.notes),
        }


def diagnose(
    runs: Sequence[Run],
    dimensions: Sequence[Dimension],
    *,
    cost: Callable[[Scale], float] = default_cost,
    maximize: bool = False,
    axis: str | None = None,
    draws: int = 200,
    seed: int = 0,
) -> Diagnosis:
    """Rates, metrics and importance from runs.

    Args:
        runs: Runs at all scales, whatever their outcome.
        dimensions: The searched HPs.
        cost: Cost of a run at a scale, used where several axes grow together.
        maximize: Whether larger metrics are better; then their sign is changed.
        axis: The axis that grows; None for the one with the most levels.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        NoRunsError: If no run has finished.
        DiagnosticError: If there is no such axis, or neither rates nor importance can be computed.
    """
    runs = [
        run
        for run in runs
        if run.outcome.has_final_loss and run.scale is not None and run.purpose == "search"
    ]
    if not any(run.outcome is Outcome.FINISHED for run in runs):
        raise NoRunsError("No run has finished with a finite loss; there is nothing to diagnose.")
    if maximize:
        runs = [_with_sign_changed(run) for run in runs]

    notes: list[str] = []
    axis, sizes = _sizes(runs, axis, cost)
    if axis == COST:
        notes.append("Several axes grow together, so the size is the cost of a run.")
    kept = [run for run in runs if run.scale in sizes]
    if len(sizes) < MIN_SIZES:
        notes.append(
            f"No rates: the runs have {counted(len(sizes), 'size')} along {axis!r}, {MIN_SIZES} are needed; "
            "add scales."
        )
        kept = []

    rates: dict[str, Rates] = {}
    metrics: dict[str, TransferMetrics] = {}
    sweeps: dict[str, Sweep] = {}
    numeric = [dim for dim in dimensions if dim.transform != "categorical"] if kept else []
    for dim in numeric:
        try:
            frame, noise = _sweep_of(kept, sizes, axis, dim, dimensions)
            sweep = read_sweep(frame, size=axis, hp=dim.name, transform=dim.transform, noise=noise)
            rates[dim.name] = transfer_rates(sweep, axis, draws, seed)
        except (DiagnosticError, NoRunsError) as error:
            notes.append(f"No rates for {dim.name}: {error}")
            continue
        sweeps[dim.name] = sweep
        # The joint law is fitted anew to each draw, which is slow, so its interval rests on fewer draws.
        metrics |= transfer_metrics({dim.name: sweep}, draws // 4, seed)

    try:
        importance = hp_importance(runs, dimensions, seed)
    except (DiagnosticError, NoRunsError) as error:
        importance = None
        notes.append(f"No importance: {error}")
    if not rates and importance is None:
        raise DiagnosticError(" ".join(notes))
    return Diagnosis(axis, rates, metrics, sweeps, importance, tuple(notes))


def _with_sign_changed(run: Run) -> Run:
    loss = None if run.loss is None else -run.loss
    return Run(run.number, run.params, run.scale, run.outcome, loss, run.curve, run.seconds, run.purpose)


def _sizes(
    runs: Sequence[Run], axis: str | None, cost: Callable[[Scale], float]
) -> tuple[str, dict[Scale, float]]:
    """The axis that grows, and the size of each scale along it.

    Raises:
        DiagnosticError: If the scales have no such axis.
    """
    scales = list(dict.fromkeys(run.scale for run in runs if run.scale is not None))
    known = list(scales[0])
    if axis is not None and axis not in known:
        raise DiagnosticError(f"The runs have no axis {axis!r}; they have {', '.join(known)}.")

    families: list[tuple[str, list[Scale]]] = []
    for name in [axis] if axis else known:
        same: dict[tuple[tuple[str, float], ...], list[Scale]] = {}
        for scale in scales:
            same.setdefault(tuple((a, v) for a, v in scale.items() if a != name), []).append(scale)
        families.append((name, max(same.values(), key=len)))

    name, family = max(families, key=lambda pair: len(pair[1]))
    if axis is None and len(family) < MIN_SIZES <= len({cost(scale) for scale in scales}):
        return COST, {scale: cost(scale) for scale in scales}
    return name, {scale: scale[name] for scale in family}


def _sweep_of(
    runs: Sequence[Run],
    sizes: dict[Scale, float],
    axis: str,
    hp: Dimension,
    dimensions: Sequence[Dimension],
) -> tuple[pd.DataFrame, tuple[float, int] | None]:
    """The runs as a sweep of one HP, the other HPs' part subtracted, and the noise that remains.

    Returns:
        The table of the sweep; the residual standard deviation of a run and its degrees of freedom, None
        where no other HP varies.

    Raises:
        DiagnosticError: If there are fewer than twice as many runs as unknowns.
    """
    axis_values = np.array([sizes[run.scale] for run in runs if run.scale is not None])
    values = np.array([run.params.get(hp.name, np.nan) for run in runs], dtype=float)
    losses = np.array([np.nan if run.loss is None else run.loss for run in runs])
    frame = pd.DataFrame({axis: axis_values, hp.name: values, "loss": losses})

    others = [dim for dim in dimensions if dim.name != hp.name]
    used = np.isfinite(losses) & np.isfinite(values)
    used &= np.array([all(dim.name in run.params for dim in others) for run in runs])
    rows = [run for run, counts in zip(runs, used, strict=True) if counts]
    varying = [dim for dim in others if len({run.params[dim.name] for run in rows}) > 1]
    if not varying:
        return frame, None

    z = np.array([hp.forward(float(run.params[hp.name])) for run in rows])
    z -= z.mean()
    own = [
        np.where(axis_values[used] == n, z**power, 0.0)
        for n in sorted(set(sizes.values()))
        for power in (0, 1, 2)
    ]
    of_others = [column for dim in varying for column in _columns(dim, rows)]
    unknowns = len(own) + len(of_others)
    if len(rows) < 2 * unknowns:
        raise DiagnosticError(
            f"{counted(len(rows), 'finished run is', 'finished runs are')} too few for "
            f"{counted(len(varying) + 1, 'HP')} at {counted(len(set(sizes.values())), 'size')}; "
            f"{2 * unknowns} are needed, or a sweep of {hp.name!r} alone."
        )

    in_log = bool((losses[used] > 0).all())
    y = np.log(losses[used]) if in_log else losses[used]
    design = np.column_stack([*own, *of_others])
    coefficients, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)

    part = np.column_stack(of_others) @ coefficients[len(own) :]
    y_alone = y - (part - part.mean())
    freedom = max(len(y) - int(rank), 1)
    noise = float(np.sqrt(np.sum((y - design @ coefficients) ** 2) / freedom))
    frame.loc[used, "loss"] = np.exp(y_alone) if in_log else y_alone
    # Of runs that did not finish only their HPs are used; those that lack an HP are dropped.
    return frame[used | np.isnan(losses)], (noise, freedom)


def _columns(dim: Dimension, runs: Sequence[Run]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """The columns of one other HP in the design: a parabola, or a constant per choice but the first."""
    values = [run.params[dim.name] for run in runs]
    if dim.transform == "categorical":
        return [np.array([float(value == choice) for value in values]) for choice in dim.choices[1:]]
    z = np.array([dim.forward(float(value)) for value in values])
    z -= z.mean()
    return [z, z**2]
