"""From records of runs to what the surrogate is fitted to: rows X and transformed losses y.

Symbols: n runs, X (n x row), z, v, d as in `coordinates`; y as in `outcome_transform`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.records import FinishedRun, Outcome, Run
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import Landscape
from transfer_bo.surrogate.outcome_transform import OutcomeTransform

__all__ = ["MAX_RUNS", "TrainingData", "has_coordinates", "training_data"]

MAX_RUNS = 600
"""A fit to more runs takes seconds and hardly knows more: the newer half of these is the newest runs, which a
search made close to the optimum, and the older half stands for all the others, evenly over time."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a fit sees.

    Attributes:
        X: rows.
        y: transformed losses, smaller is better.
        lacking: which conditional HPs each run did not have.
    """

    X: Float[Tensor, "n row"]
    y: Float[Tensor, " n"]
    lacking: Bool[Tensor, "n d"]

    def base_level(self, coordinates: Coordinates) -> float:
        """Prior guess of y at the base scale's optimum: the best run of the scale nearest to the base."""
        first = coordinates.d + coordinates.k
        last = first + coordinates.a
        own = (
            self.X[:, last : last + len(coordinates.sources)].sum(-1) == 0
        )  # a source study's level says little
        distance = self.X[:, first:last].abs().sum(-1) + 1e6 * ~own
        return float(self.y[distance <= distance.min() + 1e-9].min())

    def with_lacking_at_optimum(self, landscape: Landscape, theta: Float[Tensor, " p"]) -> TrainingData:
        """HPs that a run did not have at the optimum of its scale, where they do not add to its loss."""
        _, _, s = landscape.split(self.X)
        d, coordinates = landscape.d, landscape.coordinates
        best = coordinates.clip_z(landscape.path(theta, s) @ coordinates.unmix.T)
        z = torch.where(self.lacking, best, self.X[:, :d] @ coordinates.unmix.T)
        return replace(self, X=torch.cat([z @ coordinates.mix.T, self.X[:, d:]], -1))


def training_data(
    runs: Sequence[Run],
    rows: Sequence[Tensor],
    finished: Sequence[FinishedRun],
    coordinates: Coordinates,
    outcome_transform: OutcomeTransform,
) -> TrainingData:
    """The runs whose loss is known or can be estimated, MAX_RUNS of them at most.

    Args:
        runs: that depend on their HPs, oldest first.
        rows: of each.
        finished: those of them that finished.
        coordinates: HPs and axes.
        outcome_transform: from the metric to y.
    """
    losses = [_loss(run, finished, outcome_transform) for run in runs]
    fitted = [i for i, y in enumerate(losses) if y is not None]
    z = torch.stack([coordinates.z(runs[i].params) for i in fitted])
    keep = _newest_and_spread(len(fitted))
    return TrainingData(
        X=torch.stack([rows[i] for i in fitted])[keep],
        y=torch.tensor([losses[i] for i in fitted], dtype=torch.double)[keep],
        lacking=_lacking(z)[keep],
    )


def has_coordinates(run: Run, dimensions: Sequence[Dimension]) -> bool:
    """Whether the HPs of a run have coordinates; those of source studies were searched in other ranges."""
    if run.source is None:
        return True
    return all(dim.takes(run.params[dim.name]) for dim in dimensions if dim.name in run.params)


def _loss(run: Run, finished: Sequence[FinishedRun], transform: OutcomeTransform) -> float | None:
    """The y of a run: measured if it finished; if it was stopped, estimated from its curve; else None.

    A stopped run ends as far above the best finished run of its scale as it was at its last report. Its
    excess loss is large, so the fit holds it to a wide tolerance.
    """
    if run.outcome is Outcome.FINISHED and run.loss is not None:
        return transform.forward(run.loss) if transform.takes(run.loss) else None
    if run.outcome is not Outcome.PRUNED or not run.curve:
        return None

    progress, last = max(run.curve.items())
    peers = [peer for peer in finished if (peer.scale, peer.source) == (run.scale, run.source)]
    peers = [peer for peer in peers if transform.takes(peer.curve.get(progress, math.nan))]
    if not peers or not transform.takes(last):
        return None

    best = min(transform.forward(peer.curve[progress]) for peer in peers)
    end = min(transform.forward(peer.loss) for peer in peers)
    return end + max(0.0, transform.forward(last) - best)


def _lacking(z: Tensor) -> Tensor:
    """Which conditional HPs each run did not have (n x d), from z with nan where an HP is missing.

    An HP is conditional if runs lack it after it first came up; one that only earlier runs lack joined late,
    and had some value in them: its default, as far as anybody knows.
    """
    absent = torch.isnan(z)
    return absent & (absent & (~absent).cumsum(0).bool()).any(0)


def _newest_and_spread(n: int) -> Tensor:
    """Which of n runs, oldest first, are fitted."""
    if n <= MAX_RUNS:
        return torch.arange(n)
    newest = n - MAX_RUNS // 2
    return torch.cat(
        [torch.linspace(0, newest - 1, MAX_RUNS - MAX_RUNS // 2).long(), torch.arange(newest, n)]
    )
