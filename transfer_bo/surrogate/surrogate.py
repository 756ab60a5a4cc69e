"""Everything the project knows after some runs: `fit_surrogate` makes a `Surrogate` from records of runs.

Symbols: X, y, v, s, d, k, a, q as in `coordinates`; θ (p), B as in `landscape`; η as in `shrinkage`; m rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.errors import NoRunsError
from transfer_bo.records import Outcome, Run, StudySettings, finished_runs
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.constraints import ConstraintModel
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.feasibility import FeasibilityModel
from transfer_bo.surrogate.fitting import fit_gp
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.landscape import MAX_COUPLED, CurvaturePrior, DriftPrior, Landscape
from transfer_bo.surrogate.outcome_transform import OutcomeTransform
from transfer_bo.surrogate.posterior import OptimumPosterior
from transfer_bo.surrogate.shrinkage import Shrinkage, estimate_shrinkage
from transfer_bo.surrogate.sparsity import sparse_curvature
from transfer_bo.surrogate.training_data import TrainingData, has_coordinates, training_data

__all__ = ["Surrogate", "fit_surrogate"]

REFITS = 2
"""With conditional HPs the fit is repeated so often: a run without one says nothing of where it is best."""

MIN_SHRINKAGE = 0.005
"""Octaves per doubling: if all multipliers shrink by less, that is not worth another fit."""


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted surrogate: the posterior of loss, optimum and feasibility at every scale.

    Attributes:
        runs: those that the fit knows of, unfinished ones too.
        settings: of the study: ladder, target, coordinates, drift prior.
        coordinates: HPs and axes, with the ranges that a setting may have.
        outcome_transform: from the metric to y.
        drift_prior: of B, shrinkage included.
        shrinkage: how multipliers shrink towards 1 with scale.
        model: the Gaussian process.
        divergence: how likely a run diverges.
        memory: how likely a run lacks memory.
        constraints: how likely a run violates one of Optuna's constraints.
    """

    runs: Sequence[Run]
    settings: StudySettings
    coordinates: Coordinates
    outcome_transform: OutcomeTransform
    drift_prior: DriftPrior
    shrinkage: Shrinkage
    model: LandscapeGP
    divergence: FeasibilityModel
    memory: FeasibilityModel
    constraints: ConstraintModel

    @property
    def X(self) -> Tensor:  # noqa: N802 - the symbol of the maths
        """Rows of the runs that were fitted (n x row): finished ones, and stopped ones by their estimate."""
        return self.model.X

    @property
    def y(self) -> Tensor:
        """Their transformed losses (n)."""
        return self.model.y

    @property
    def landscape(self) -> Landscape:
        """Loss law and bowl with their priors."""
        return self.model.landscape

    @property
    def theta(self) -> Tensor:
        """The most probable parameters of the landscape (p)."""
        return self.model.theta

    def row(self, run: Run) -> Float[Tensor, " row"]:
        """The x of a run."""
        assert run.scale is not None
        return _row(run, self.coordinates)

    def rows(
        self,
        v: Float[Tensor, "m d"],
        scale: Scale,
        flags: Float[Tensor, "*m k"] | None = None,
        seed: int | None = None,
    ) -> Float[Tensor, "m row"]:
        """Rows at one scale.

        Args:
            v: their HPs.
            scale: where.
            flags: category flags, one set or one for each row; None: the best known.
            seed: that they share with other runs there; None if they have seeds of their own.
        """
        coordinates, count = self.coordinates, len(v)
        flags = self.best_flags() if flags is None else flags
        own = torch.zeros(count, len(coordinates.sources), dtype=torch.double)
        parts = (flags, coordinates.s(scale), own, coordinates.seed_flags(scale, seed))
        return torch.cat([v, *(part.expand(count, -1) for part in parts)], -1)

    def search_seed(self, scale: Scale) -> int | None:
        """The seed that runs of the search share at a scale; None if they do not."""
        seeds = (run.seed for run in reversed(self.runs) if run.scale == scale and run.purpose == "search")
        return next(seeds, None)

    def best_flags(self) -> Float[Tensor, " k"]:
        """One-hot of the category with the least effect for each categorical HP."""
        effects = self.landscape.get(self.theta, "w")
        flags, position = torch.zeros_like(effects), 0
        for dim in self.coordinates.categorical:
            width = len(dim.choices)
            flags[position + int(effects[position : position + width].argmin())] = 1.0
            position += width
        return flags

    def pending(self) -> Float[Tensor, "m row"]:
        """Rows of unfinished trials whose rung and HPs are known.

        A trial that a dead worker left waits with its HPs.
        """
        rows = [self.row(run) for run in self.runs if run.outcome.is_open and run.params]
        return torch.stack(rows) if rows else self.X[:0]

    def optimum_posterior(
        self, scale: Scale, x: Float[Tensor, " row"] | None = None, pending: bool = False
    ) -> OptimumPosterior:
        """Posterior of the landscape and of the optimum at a scale.

        Args:
            scale: where.
            x: a row at that scale; the error of f there joins the posterior.
            pending: whether unfinished trials count as if they had ended as predicted.
        """
        s = self.coordinates.s(scale)
        return self.model.optimum_posterior(s, x, self.pending() if pending else None)


def fit_surrogate(
    runs: Sequence[Run],
    dimensions: Sequence[Dimension],
    settings: StudySettings,
    maximize: bool = False,
) -> Surrogate:
    """Fit the surrogate to runs.

    Args:
        runs: all runs; those without a scale are ignored, and those of source studies with HPs or a loss that
            have no place on this study's scales.
        dimensions: the searched HPs.
        settings: ladder, target, coordinates, drift prior.
        maximize: whether larger metrics are better.

    Raises:
        NoRunsError: if no run has finished.
    """
    all_runs = runs
    runs = [run for run in runs if run.scale is not None and has_coordinates(run, dimensions)]
    finished = finished_runs(runs)
    if not finished:
        raise NoRunsError(f"No run has finished, so there is nothing to fit; {_what_to_do(all_runs)}.")
    coordinates = _coordinates(runs, dimensions, settings)
    own_or_all = [run for run in finished if run.source is None] or finished
    outcome_transform = OutcomeTransform.of([run.loss for run in own_or_all], maximize)

    informative = [run for run in runs if run.outcome.is_informative]
    rows = [_row(run, coordinates) for run in informative]
    data = training_data(informative, rows, finished, coordinates, outcome_transform)
    curvature = None
    if coordinates.d > MAX_COUPLED:
        coordinates, data, curvature = _with_sparse_curvature(coordinates, data)
        rows = [_row(run, coordinates) for run in informative]

    names = [dim.name for dim in coordinates.numeric]
    drift_prior = DriftPrior.from_tables(
        names, coordinates.axes, settings.coordinates, settings.drift_prior, settings.kinds
    )
    model = _fit(data, coordinates, drift_prior, settings.target, curvature)
    data, model = _refit_with_conditional(data, model, drift_prior, settings.target)
    drift_prior, shrinkage, model = _refit_with_shrinkage(data, model, drift_prior, settings)

    own = [(row, run.outcome) for row, run in zip(rows, informative, strict=True) if run.source is None]
    diverged = [(row, outcome is Outcome.DIVERGED) for row, outcome in own if outcome.has_trained]
    lacked_memory = [(row, outcome is Outcome.OUT_OF_MEMORY) for row, outcome in own]
    return Surrogate(
        runs=runs,
        settings=settings,
        coordinates=coordinates,
        outcome_transform=outcome_transform,
        drift_prior=drift_prior,
        shrinkage=shrinkage,
        model=model,
        divergence=_feasibility(coordinates, diverged, priors.DIVERGENCE),
        memory=_feasibility(coordinates, lacked_memory, priors.MEMORY),
        constraints=ConstraintModel(coordinates, torch.stack(rows), [run.constraints for run in informative]),
    )


def _coordinates(
    runs: Sequence[Run], dimensions: Sequence[Dimension], settings: StudySettings
) -> Coordinates:
    """Coordinates over the axes that vary and the source studies that runs come from."""
    scales = [*settings.scales, settings.target, *(run.scale for run in runs if run.scale)]
    axes = [axis for axis in settings.base if len({scale[axis] for scale in scales}) > 1]
    sources = sorted({run.source for run in runs if run.source is not None})
    return Coordinates(dimensions, settings.base, axes, sources, settings.kinds, _shared_seeds(runs))


def _shared_seeds(runs: Sequence[Run]) -> list[tuple[Scale, int]]:
    """Scale and seed of the study's own runs, if some have both in common."""
    seeds = [
        (run.scale, run.seed)
        for run in runs
        if run.scale is not None and run.seed is not None and run.source is None
    ]
    distinct = list(dict.fromkeys(seeds))
    return distinct if len(distinct) < len(seeds) else []


def _row(run: Run, coordinates: Coordinates) -> Tensor:
    assert run.scale is not None
    return coordinates.row(run.params, run.scale, run.source, run.seed if run.source is None else None)


def _with_sparse_curvature(
    coordinates: Coordinates, data: TrainingData
) -> tuple[Coordinates, TrainingData, CurvaturePrior]:
    """The coordinates of many HPs in which the runs are most likely, with the curvatures that they show."""
    uncoupled = coordinates.without_couplings()
    is_coupled = not torch.equal(coordinates.mix, uncoupled.mix)
    fits = []
    for mixed in (coordinates, uncoupled) if is_coupled else (coordinates,):
        z = data.X[:, : coordinates.d] @ coordinates.unmix.T
        X = torch.cat([z @ mixed.mix.T, data.X[:, coordinates.d :]], -1)
        curvature, log_evidence = sparse_curvature(X, data.y, mixed)
        fits.append((log_evidence, mixed, replace(data, X=X), curvature))

    _, coordinates, data, curvature = max(fits, key=lambda fit: fit[0])
    return coordinates, data, curvature


def _fit(
    data: TrainingData,
    coordinates: Coordinates,
    drift_prior: DriftPrior,
    target: Scale,
    curvature: CurvaturePrior | None = None,
    warm_start: LandscapeGP | None = None,
) -> LandscapeGP:
    """Fit with a prior of the drift, from a fit with another one if there is any."""
    landscape = Landscape(coordinates, drift_prior, data.base_level(coordinates), target, curvature)
    return fit_gp(data.X, data.y, landscape, warm_start)


def _refit_with_conditional(
    data: TrainingData, model: LandscapeGP, drift_prior: DriftPrior, target: Scale
) -> tuple[TrainingData, LandscapeGP]:
    """Runs that lack a conditional HP get its fitted optimum, by turns with the fit."""
    for _ in range(REFITS if bool(data.lacking.any()) else 0):
        data = data.with_lacking_at_optimum(model.landscape, model.theta)
        landscape = model.landscape
        model = _fit(data, landscape.coordinates, drift_prior, target, landscape.curvature_prior, model)
    return data, model


def _refit_with_shrinkage(
    data: TrainingData, model: LandscapeGP, drift_prior: DriftPrior, settings: StudySettings
) -> tuple[DriftPrior, Shrinkage, LandscapeGP]:
    """Shrink multipliers that lose their worth with scale in their drift's prior mean, and fit again."""
    coordinates = model.landscape.coordinates
    none = torch.zeros_like(drift_prior.mean)
    if not any(is_multiplier(dim.name) for dim in coordinates.numeric):
        return drift_prior, Shrinkage(none.sum(0), none), model

    shrinkage = estimate_shrinkage(model.optimum_posterior(coordinates.s(settings.base)))
    if bool((shrinkage.drift.abs() > MIN_SHRINKAGE).any()):
        drift_prior = replace(drift_prior, mean=drift_prior.mean + shrinkage.drift)
        curvature = model.landscape.curvature_prior
        model = _fit(data, coordinates, drift_prior, settings.target, curvature, model)
    return drift_prior, shrinkage, model


def _feasibility(
    coordinates: Coordinates, runs: Sequence[tuple[Tensor, bool]], prior: priors.FeasibilityPrior
) -> FeasibilityModel:
    """How likely a run is infeasible, from rows and whether they were."""
    none = torch.zeros(0, coordinates.width, dtype=torch.double)
    return FeasibilityModel(
        coordinates,
        torch.stack([row for row, _ in runs]) if runs else none,
        torch.tensor([infeasible for _, infeasible in runs], dtype=torch.bool),
        prior,
    )


def _what_to_do(runs: Sequence[Run]) -> str:
    """How to get finished runs with a scale, given how all runs ended."""
    if not runs:
        return "run some trials"
    if any(run.outcome is Outcome.FINISHED and run.scale is None for run in runs):
        return "the runs that did lack a scale: call ladder.suggest(trial) in the objective"

    counts = Counter(str(run.outcome).replace("_", " ") for run in runs)
    ended = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    return (
        f"the trials so far are {ended}: lower the range of learning rates if they diverge, mend errors first"
    )
