"""Everything the project knows after some runs: `Surrogate`, made from plain run records.

Symbols: as in `coordinates`, `landscape` and `gp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate import gp
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.feasibility import FeasibilityModel
from transfer_bo.surrogate.landscape import Drift, Landscape
from transfer_bo.surrogate.outcome_transform import Output
from transfer_bo.surrogate.shrinkage import estimate_shrinkage

__all__ = ["Surrogate"]

MOST_RUNS = 600
"""A fit to more runs takes seconds and hardly knows more: the newer half of these is the newest runs, which a
search made near the optimum, and the older half stands for all the others, evenly over time."""

REFITS = 2
"""With conditional HPs the fit is repeated so often: a run without one says nothing of where it is best."""

LEAST_FALLBACK = 0.005
"""Octaves per doubling: if all multipliers fall back by less, that is not worth a second fit."""


class Surrogate:
    """The fitted surrogate of a study.

    Args:
        runs: all runs; those without a scale are ignored, and past ones with HPs or a loss that have no place
            on this study's scales.
        dimensions: the searched HPs.
        settings: ladder, target, coordinates, drift prior.
        maximize: whether larger metrics are better.

    Attributes:
        X, y: rows and transformed losses of the runs that count (finished; stopped ones by their estimate;
            at most MOST_RUNS).
        drift_prior: mean and sd of the drift, each d x a, octaves per doubling.
        fallback, fallback_drift: rate at which multipliers fall back to 1 per doubling of each axis (a), and
            what it adds to the prior mean of the drift (d x a), see `fallback`.
        stability, memory: how likely a run diverges, or runs out of memory.

    Raises:
        TransferError: if no run has finished.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        dimensions: Sequence[Dimension],
        settings: StudySettings,
        maximize: bool = False,
    ) -> None:
        self.runs = [run for run in runs if run.scale is not None and _fits(run, dimensions)]
        self.settings = settings
        finished = [run for run in self.runs if run.outcome is Outcome.FINISHED]
        if not finished:
            raise TransferError(
                "No run has finished with a scale, so there is nothing to fit; run some trials whose "
                "objective calls ladder.suggest(trial)."
            )
        scales = [*settings.scales, settings.target, *(run.scale for run in self.runs if run.scale)]
        axes = [axis for axis in settings.base if len({scale[axis] for scale in scales}) > 1]
        sources = sorted({run.source for run in self.runs if run.source is not None})
        self.coordinates = Coordinates(dimensions, settings.base, axes, sources)
        measured = [run for run in finished if run.source is None] or finished
        self.output = Output.of([run.loss for run in measured if run.loss is not None], maximize)
        told = [run for run in self.runs if run.outcome.is_informative]
        every = [self.row(run) for run in told]  # made once: with thousands of runs it takes a while
        rows, ys, fitted = [], [], []
        for run, row in zip(told, every, strict=True):
            y = self._estimate(run, finished)
            if y is not None:
                rows.append(row)
                ys.append(y)
                fitted.append(run)
        keep = _kept(len(rows))
        self.X, self.y = torch.stack(rows)[keep], torch.tensor(ys, dtype=torch.double)[keep]
        names = [dim.name for dim in self.coordinates.numeric]
        self._fit(Drift.believed(names, self.coordinates.axes, settings.coordinates, settings.drift_prior))
        lacking = self._lacking(fitted)[keep]
        for _ in range(REFITS if bool(lacking.any()) else 0):
            self._fill(lacking)
            self._fit(self.drift_prior, self.model)
        self.fallback_drift = torch.zeros_like(self.drift_prior.mean)
        self.fallback = self.fallback_drift.sum(0)
        if any(map(is_multiplier, names)):  # a posterior of every run: not for nothing
            self.fallback, self.fallback_drift = estimate_shrinkage(self.latent(settings.base))
        if bool((self.fallback_drift.abs() > LEAST_FALLBACK).any()):
            mean = self.drift_prior.mean + self.fallback_drift
            self._fit(replace(self.drift_prior, mean=mean), self.model)
        own = [(row, run.outcome) for row, run in zip(every, told, strict=True) if run.source is None]
        self.memory = self._risk(own, Outcome.OUT_OF_MEMORY)
        ran = [(row, outcome) for row, outcome in own if outcome is not Outcome.OUT_OF_MEMORY]
        self.stability = self._risk(ran, Outcome.DIVERGED)

    def _risk(self, told: Sequence[tuple[Tensor, Outcome]], bad: Outcome) -> FeasibilityModel:
        """How likely a run ends badly, from rows and outcomes of runs that tell."""
        return FeasibilityModel(
            self.coordinates,
            torch.stack([row for row, _ in told]) if told else self.X[:0],
            torch.tensor([outcome is bad for _, outcome in told]),
            memory=bad is Outcome.OUT_OF_MEMORY,
        )

    def _fit(self, drift: Drift, near: gp.LandscapeGP | None = None) -> None:
        """Fit to X and y with a prior of the drift, from a fit with another one if there is any."""
        self.drift_prior = drift
        self.landscape = Landscape(self.coordinates, drift, self._level(), self.settings.target)
        self.model: gp.LandscapeGP = gp.fit(self.X, self.y, self.landscape, near)
        self.theta = self.model.covar_module.theta

    def _lacking(self, runs: Sequence[Run]) -> Tensor:
        """Which conditional HPs each run did not have (n x d), bool.

        An HP is conditional if runs lack it after it first came up; one that only earlier runs lack joined
        late, and had some value in them: its default, as far as anybody knows.
        """
        z = torch.stack([self.coordinates.z(run.params) for run in runs])
        absent = torch.isnan(z)
        return absent & (absent & (~absent).cumsum(0).bool()).any(0)

    def _fill(self, lacking: Tensor) -> None:
        """Put HPs that a run did not have at the optimum of its scale, where they do not add to its loss."""
        _, _, s = self.landscape.split(self.X)
        d, coordinates = self.coordinates.d, self.coordinates
        best = coordinates.clip_z(self.landscape.path(self.theta, s) @ coordinates.unmix.T)
        z = torch.where(lacking, best, self.X[:, :d] @ coordinates.unmix.T)
        self.X = torch.cat([z @ coordinates.mix.T, self.X[:, d:]], -1)

    def row(self, run: Run) -> Tensor:
        """X of a run (d + k + a)."""
        assert run.scale is not None
        return self.coordinates.row(run.params, run.scale, run.source)

    def rows(self, v: Tensor, scale: Scale, flags: Tensor | None = None) -> Tensor:
        """Rows at one scale from v (n x d) and category flags (k or n x k; the best known ones if None)."""
        flags = self.best_flags() if flags is None else flags
        s = self.coordinates.s(scale)
        own = torch.zeros(len(v), len(self.coordinates.sources), dtype=torch.double)
        return torch.cat([v, flags.expand(len(v), -1), s.expand(len(v), -1), own], -1)

    def best_flags(self) -> Tensor:
        """One-hot of the category with the least effect for each categorical HP (k)."""
        effects = self.landscape.get(self.theta, "w")
        flags, position = torch.zeros_like(effects), 0
        for dim in self.coordinates.categorical:
            width = len(dim.choices)
            flags[position + int(effects[position : position + width].argmin())] = 1.0
            position += width
        return flags

    def pending(self) -> Tensor:
        """Rows of unfinished trials whose rung and HPs are known (m x (d+k+a))."""
        # A trial given back by a dead worker waits with its HPs.
        rows = [self.row(run) for run in self.runs if run.outcome.is_open and run.params]
        return torch.stack(rows) if rows else self.X[:0]

    def latent(self, scale: Scale, x: Tensor | None = None, pending: bool = False) -> gp.OptimumPosterior:
        """Posterior of the landscape and of the optimum at a scale."""
        return self.model.latent(self.coordinates.s(scale), x, self.pending() if pending else None)

    def _level(self) -> float:
        """Prior guess of y at the base scale's optimum: the best run of the scale nearest to the base."""
        first = self.coordinates.d + self.coordinates.k
        last = first + self.coordinates.a
        own = self.X[:, last:].sum(-1) == 0  # a past study's level says little
        distance = self.X[:, first:last].abs().sum(-1) + 1e6 * ~own
        return float(self.y[distance <= distance.min() + 1e-9].min())

    def _estimate(self, run: Run, finished: Sequence[Run]) -> float | None:
        """Y of a run: measured if it finished; if it was stopped, what its curve says beside finished ones.

        A stopped run ends as far above the best finished run of its scale as it was at its last report. Its
        excess is large, so the fit holds it to a wide tolerance.
        """
        if run.outcome is Outcome.FINISHED and run.loss is not None:
            return self.output.forward(run.loss) if self.output.takes(run.loss) else None
        if run.outcome is not Outcome.PRUNED or not run.curve:
            return None
        progress, last = max(run.curve.items())
        takes = self.output.takes
        peers = [p for p in finished if (p.scale, p.source) == (run.scale, run.source)]
        peers = [p for p in peers if takes(p.curve.get(progress, math.nan))]
        if not peers or not takes(last):
            return None
        best = min(self.output.forward(peer.curve[progress]) for peer in peers)
        end = min(self.output.forward(peer.loss) for peer in peers if peer.loss is not None)
        return end + max(0.0, self.output.forward(last) - best)


def _fits(run: Run, dimensions: Sequence[Dimension]) -> bool:
    """Whether the HPs of a run have coordinates; those of past runs were searched in other ranges."""
    if run.source is None:
        return True
    return all(dim.takes(run.params[dim.name]) for dim in dimensions if dim.name in run.params)


def _kept(n: int) -> Tensor:
    """Which of n runs, oldest first, are fitted."""
    if n <= MOST_RUNS:
        return torch.arange(n)
    newest = n - MOST_RUNS // 2
    return torch.cat(
        [torch.linspace(0, newest - 1, MOST_RUNS - MOST_RUNS // 2).long(), torch.arange(newest, n)]
    )
