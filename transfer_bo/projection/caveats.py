"""What a careful reader of a suggestion should know: a small function for each kind of sentence.

`CAVEATS` is the list of them, in the order in which they are printed. Each takes the projection and the
suggestion, and yields no sentence, one, or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_bo.dimension import Dimension
from transfer_bo.notes import Note
from transfer_bo.projection.extrapolation import far_sd, times_largest_run
from transfer_bo.projection.suggestion import Suggestion
from transfer_bo.records import SCHEDULE_SOURCE, finished_runs
from transfer_bo.space import is_multiplier, split_name
from transfer_bo.synonyms import axis_kind

if TYPE_CHECKING:
    from transfer_bo.projection.projection import Projection

__all__ = ["CAVEATS", "caveats"]

FAR = 3.0
"""Doublings above the largest run along some axis from which a warning is due."""

SHORT_LIVED = ("init_std", "residual")
"""Kinds whose group multipliers, found in short runs, cost more than they gained in longer ones, where those
of learning rates kept their worth (`studies/per_module`)."""

NOTABLE = 0.1
"""Octaves; multipliers that are set closer to their defaults by more are named."""

AT_END = 1e-6
"""A value is at the end of its range if it is closer to it than this share of the range, in its natural
coordinate."""


def caveats(projection: Projection, suggestion: Suggestion) -> list[Note]:
    """All sentences about a suggestion, each with the name of its function as a code."""
    return [
        Note(sentence, caveat.__name__) for caveat in CAVEATS for sentence in caveat(projection, suggestion)
    ]


def runs_without_scale(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """How many trials could not be fitted because the ladder was not asked for their scale."""
    count = sum(run.lacks_scale for run in projection.runs if run.source is None)
    if count:
        yield (
            f"{count} of the trials that have ended lack a scale, because their objective did not call "
            "ladder.suggest(trial); they are not part of the fit."
        )


def source_studies(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """How much the answer rests on runs of source studies."""
    for name, source in projection.sources().items():
        of = name if name.startswith(SCHEDULE_SOURCE) else f"source study {name!r}"
        yield (
            f"{source['runs']:.0f} runs of {of} are part of the fit; their optimum may "
            f"differ by {source['shift']:.2g} octaves (one standard deviation; near 0 they count like own "
            "runs, at several they hardly count)."
        )


def extrapolation(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """Along which axes the scale lies far from the runs, or where only one value was run."""
    scale = suggestion.target
    for axis in projection.surrogate.coordinates.axes:
        values = _values_run(projection, axis)
        if not values:
            continue

        if len(values) == 1 and values[0] != scale[axis]:
            yield (
                f"All finished runs have {axis} = {values[0]:g}; what {axis} = {scale[axis]:g} changes "
                "rests on the prior alone."
            )
        doublings = float(np.log2(scale[axis] / values[-1]))
        if doublings > FAR:
            yield f"The target lies {doublings:.1f} doublings of {axis} beyond the largest finished run."
        kind = projection.settings.kinds.get(axis, axis_kind(axis))
        if kind == "tokens" and doublings > 0 and len(values) == 1:
            yield from _short_lived_multipliers(projection, axis, values[0])


def far_target(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """By how much intervals are widened because the target costs over a hundred times the largest run."""
    sd = far_sd(projection.surrogate, suggestion.target)
    names = [name for name, octaves in zip(projection.hps, sd.tolist(), strict=True) if octaves > 0]
    if names:
        times = times_largest_run(projection.surrogate, suggestion.target)
        yield (
            f"A run at the target costs {times:.3g} times the largest finished one. Published laws missed by "
            f"factors of 4 to 10 at 540 times, so the interval of {', '.join(names)} is widened by "
            f"{float(sd.max()):.2g} octaves (one standard deviation); runs closer to the target narrow it."
        )


def _values_run(projection: Projection, axis: str) -> list[float]:
    """Values of an axis at which the study's own runs finished, in ascending order."""
    finished = finished_runs(projection.surrogate.runs)
    return sorted({run.scale[axis] for run in finished if run.source is None})


def _short_lived_multipliers(projection: Projection, axis: str, value: float) -> Iterator[str]:
    """Which multipliers may not keep their worth, where all runs were equally long."""
    names = [name for name in projection.hps if is_multiplier(name) and split_name(name)[0] in SHORT_LIVED]
    if names:
        yield (
            f"Group multipliers like {names[0]}, found in short runs, did harm in longer ones before; all "
            f"runs here have {axis} = {value:g}, so run some longer ones or set these to 1."
        )


def shrunk_multipliers(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """Which multipliers are set closer to their defaults because they lose their worth with scale."""
    surrogate = projection.surrogate
    s = surrogate.coordinates.s(suggestion.target)
    moved = (surrogate.shrinkage.drift * s).sum(-1)
    names = [name for name, octaves in zip(projection.hps, moved, strict=True) if abs(octaves) > NOTABLE]
    if names:
        share = float(surrogate.shrinkage.rate @ s)
        yield (
            f"Runs at larger scales do not bear out the group multipliers in full, so those of "
            f"{', '.join(names)} are set about {min(share, 1.0):.0%} closer to their defaults at the target."
        )


def violated_constraints(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """How many runs violated Optuna's constraints, and how likely the suggestion does."""
    runs = [run for run in projection.surrogate.runs if run.outcome.is_informative]
    violating = sum(not run.is_feasible for run in runs)
    if violating:
        risk = projection.violation_risk(suggestion)
        yield (
            f"{violating} of {len(runs)} runs violated a constraint, so the suggestion keeps to where "
            f"constraints held; it violates one with an estimated probability of {risk:.0%}."
        )


def undetermined_hps(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """Which HPs the runs say next to nothing about."""
    if suggestion.undetermined:
        yield (
            f"The runs do not determine {', '.join(suggestion.undetermined)}: they were not varied, or show "
            "no clear effect; they keep the value of the best run, or their default if they are among many "
            "multipliers."
        )


def edge_of_range(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """Which optima lie at the edge of the searched range, at the base or at the target."""
    at_base = projection.is_at_edge(projection.settings.base)
    at_target = projection.is_at_edge(suggestion.target)
    names = [
        dim.name
        for dim in projection.surrogate.coordinates.numeric
        if dim.name in suggestion.params
        and dim.name not in suggestion.undetermined
        and (at_base[dim.name] or at_target[dim.name] or _is_at_end(dim, suggestion.params[dim.name]))
    ]
    if names:
        yield (
            f"The optimum of {', '.join(names)} lies at the edge of the searched range, where intervals "
            "are too narrow; widen it."
        )


def _is_at_end(dim: Dimension, value: Any) -> bool:
    """Whether a value is the lowest or the highest of an HP's range."""
    low, high, z = (dim.forward(at) for at in (dim.low, dim.high, value))
    return min(abs(z - low), abs(z - high)) <= AT_END * abs(high - low)


def unknown_in_drift_prior(projection: Projection, suggestion: Suggestion) -> Iterator[str]:
    """Which entries of the drift prior name no HP."""
    unknown = sorted(set(projection.settings.drift_prior) - set(projection.hps))
    if unknown:
        yield f"drift_prior names {', '.join(unknown)}, but the HPs are {', '.join(projection.hps)}."


CAVEATS: tuple[Callable[[Projection, Suggestion], Iterator[str]], ...] = (
    runs_without_scale,
    source_studies,
    extrapolation,
    far_target,
    shrunk_multipliers,
    violated_constraints,
    undetermined_hps,
    edge_of_range,
    unknown_in_drift_prior,
)
