"""What a careful reader of a suggestion should know: a small function for each kind of sentence.

`CAVEATS` is the list of them, in the order in which they are printed. Each takes the projection and the scale
that the suggestion is for, and yields no sentence, one, or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from transfer_bo.notes import Note
from transfer_bo.records import finished_runs
from transfer_bo.scale import Scale
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


def caveats(projection: Projection, scale: Scale) -> list[Note]:
    """All sentences about a suggestion for a scale, each with the name of its function as a code."""
    return [Note(sentence, caveat.__name__) for caveat in CAVEATS for sentence in caveat(projection, scale)]


def source_studies(projection: Projection, scale: Scale) -> Iterator[str]:
    """How much the answer rests on runs of source studies."""
    for name, source in projection.sources().items():
        yield (
            f"{source['runs']:.0f} runs of source study {name!r} are part of the fit; their optimum may "
            f"differ by {source['shift']:.2g} octaves (one standard deviation; near 0 they count like own "
            "runs, at several they hardly count)."
        )


def extrapolation(projection: Projection, scale: Scale) -> Iterator[str]:
    """Along which axes the scale lies far from the runs, or where only one value was run."""
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


def shrunk_multipliers(projection: Projection, scale: Scale) -> Iterator[str]:
    """Which multipliers are set closer to their defaults because they lose their worth with scale."""
    surrogate = projection.surrogate
    s = surrogate.coordinates.s(scale)
    moved = (surrogate.shrinkage.drift * s).sum(-1)
    names = [name for name, octaves in zip(projection.hps, moved, strict=True) if abs(octaves) > NOTABLE]
    if names:
        share = float(surrogate.shrinkage.rate @ s)
        yield (
            f"Runs at larger scales do not bear out the group multipliers in full, so those of "
            f"{', '.join(names)} are set about {min(share, 1.0):.0%} closer to their defaults at the target."
        )


def edge_of_range(projection: Projection, scale: Scale) -> Iterator[str]:
    """Which optima lie at the edge of the searched range, at the base or at the scale."""
    at_edge = zip(
        projection.hps,
        projection.is_at_edge(projection.settings.base),
        projection.is_at_edge(scale),
        strict=True,
    )
    names = [name for name, at_base, at_scale in at_edge if at_base or at_scale]
    if names:
        yield (
            f"The optimum of {', '.join(names)} lies at the edge of the searched range, where intervals "
            "are too narrow; widen it."
        )


def unknown_in_drift_prior(projection: Projection, scale: Scale) -> Iterator[str]:
    """Which entries of the drift prior name no HP."""
    unknown = sorted(set(projection.settings.drift_prior) - set(projection.hps))
    if unknown:
        yield f"drift_prior names {', '.join(unknown)}, but the HPs are {', '.join(projection.hps)}."


CAVEATS: tuple[Callable[[Projection, Scale], Iterator[str]], ...] = (
    source_studies,
    extrapolation,
    shrunk_multipliers,
    edge_of_range,
    unknown_in_drift_prior,
)
