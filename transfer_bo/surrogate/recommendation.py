"""What to set at a scale, and how much better that is expected to be than what anybody would take.

The setting minimizes the expected loss over draws of the optimum (`expected_loss`), but for HPs about which
the runs say nothing:

1. An HP that no finished run varied keeps the value that it had.
2. An HP that the runs do not determine keeps the value of the incumbent, the best run, unless its optimum is
   known to move with scale; one of many multipliers without evidence of an effect (`sparsity`) is set to its
   default, 1. An HP is not determined if it has no clear effect (`relevance`), or, where there are too few
   runs for that test, if the posterior of its optimum is wide or hardly narrower than the prior.
3. A categorical HP keeps the choice of the best run, unless another is better with a high probability.

Where every tensor has a multiplier of its kind, these average to 1 (`Landscape.optimum_map`).

The result is compared, over the same draws, with the documented defaults, with the best setting without
multipliers and with a copy of the incumbent; the best of the four is what is recommended.

Symbols: v, z, flags, d, k as in `coordinates`; e as in `expected_loss`; count = draws; m settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.quantities import LEVEL_SD
from transfer_bo.records import FinishedRun, finished_runs
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.expected_loss import ExpectedLoss, excess_loss, minimize_expected_loss
from transfer_bo.surrogate.posterior_sampling import Draws, PosteriorSamples
from transfer_bo.surrogate.relevance import effect_p_values
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = [
    "BEST_RUN",
    "DEFAULTS",
    "GLOBAL",
    "Candidate",
    "Recommendation",
    "expected_optimum",
    "incumbent",
    "optimum_draws",
    "recommend",
]

DEFAULTS = "defaults"
"""The documented defaults; the middle of the range of an HP without one."""

GLOBAL = "best global setting"
"""The least expected loss with all multipliers at 1."""

BEST_RUN = "best run copied"
"""The HPs of the incumbent."""

MAX_P_VALUE = 0.2
"""An HP has no clear effect if one without any effect would seem to have as much at least this often."""

CLEAR_P_VALUE = 0.01
"""The effect is clear below this: the optimum may be known only to lie towards one end of the range."""

MAX_SHARE = 0.6
"""The runs do not determine an HP without a clear effect if the 90% interval of its optimum, at the scale
with most runs, spans at least this share of the searched range."""

MAX_DRIFT = 0.25
"""Octaves. An HP whose optimum is expected to move by more between the best run and the target is not kept:
how it moves is known from elsewhere, even where the runs do not say where it lies."""

HARDLY_NARROWER = 0.95
"""The runs hardly narrow the optimum of an HP if its posterior sd is at least this share of the prior's at
the scale with the most runs: they say less of it than a tenth of what the prior says."""


MAX_RISK = 0.5
"""A run that is likelier than this to violate a constraint is not the best run, if others are not."""

MIN_PROBABILITY = 0.9
"""Choices of categorical HPs are those of the best run, unless others are better at least this likely: what a
few runs say of a choice rests on where its other HPs are expected to be best."""

MIN_VARIANCE = 1e-12
"""Variances of differences of e are cut here; two settings that are the same have a difference of 0."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A setting that was compared, with the recommended one as the reference.

    Attributes:
        params: its HPs.
        difference: its expected loss minus that of the recommended setting, in y; at least 0.
        probability: that it is worse than the recommended setting.
    """

    params: dict[str, Any]
    difference: float
    probability: float


@dataclass(frozen=True, eq=False)
class Recommendation:
    """What to set at a scale.

    Attributes:
        params: HPs as searched.
        v, flags: the same in the coordinates of the landscape, and the categories.
        undetermined: HPs that keep the value of the runs, because these do not determine them.
        excess_loss: expected excess loss over the bowl's optimum, in y.
        baselines: what it was compared with, by name.
        incumbent: the best run.
    """

    params: dict[str, Any]
    v: Float[Tensor, " d"]
    flags: Float[Tensor, " k"]
    undetermined: tuple[str, ...]
    excess_loss: float
    baselines: dict[str, Candidate]
    incumbent: FinishedRun


@dataclass(frozen=True, eq=False)
class _Setting:
    """A setting in the coordinates of the landscape, with the values that it has exactly."""

    v: Tensor
    flags: Tensor
    exact: Mapping[str, Any]

    def params(self, coordinates: Coordinates) -> dict[str, Any]:
        return {**coordinates.params(self.v, self.flags), **self.exact}


def recommend(
    surrogate: Surrogate, scale: Scale, samples: PosteriorSamples, generator: torch.Generator
) -> Recommendation:
    """The setting with the least expected loss at a scale, and its baselines.

    Args:
        surrogate: a fit.
        scale: where.
        samples: posterior draws of the landscape.
        generator: source of randomness.
    """
    coordinates = surrogate.coordinates
    runs = _own_finished(surrogate)
    best_run = incumbent(surrogate)
    unvaried = _unvaried(coordinates, runs)
    frozen, frozen_flags = _frozen(coordinates, unvaried)

    # A multiplier without evidence of an effect is best at its default, where z = 0.
    without_effect = _without_effect(surrogate)
    z = optimum_draws(surrogate, samples.at(coordinates.s(scale)))
    z = torch.where(without_effect, 0.0, z)
    expected = ExpectedLoss(surrogate, scale, z @ coordinates.mix.T)

    v, flags = minimize_expected_loss(expected, generator, frozen, frozen_flags)
    undetermined = (_undetermined(surrogate, runs) | without_effect) & frozen.isnan()
    undetermined &= _expected_drift(surrogate, best_run.scale, scale).abs() <= MAX_DRIFT
    kept = [dim.name for dim, keep in zip(coordinates.numeric, undetermined.tolist(), strict=True) if keep]
    kept = [name for name in kept if _value(best_run, name) is not None]
    kept_values = {
        dim.name: _default(surrogate, dim) if is_without else _value(best_run, dim.name)
        for dim, is_without in zip(coordinates.numeric, without_effect.tolist(), strict=True)
        if dim.name in kept
    }
    exact = {**unvaried, **kept_values}
    if kept:
        frozen, frozen_flags = _frozen(coordinates, exact)
        v, flags = minimize_expected_loss(expected, generator, frozen, frozen_flags)
    own = _Setting(v, flags, exact)

    # Another choice than the best run's has to be better with some confidence.
    _, choices = _frozen(coordinates, best_run.params)
    if bool((own.flags != choices)[~choices.isnan()].any()):
        same = minimize_expected_loss(expected, generator, frozen, choices)
        _, probability = _compare(expected, [own, _Setting(*same, exact)], reference=0)
        own = own if float(probability[1]) >= MIN_PROBABILITY else _Setting(*same, exact)

    baselines = {BEST_RUN: _copy(surrogate, best_run.params, scale)}
    at_one = {dim.name: _clip(dim, 1.0) for dim in coordinates.numeric if is_multiplier(dim.name)}
    if at_one:
        z, _ = _frozen(coordinates, at_one)
        found = minimize_expected_loss(expected, generator, torch.where(z.isnan(), frozen, z), own.flags)
        baselines[GLOBAL] = _Setting(*found, {**unvaried, **at_one})
    baselines |= _defaults(surrogate, scale)
    return _choose(expected, own, baselines, (*unvaried, *kept), best_run)


def incumbent(surrogate: Surrogate) -> FinishedRun:
    """The best run: of the study's own finished ones that with the least posterior mean of its excess loss.

    Runs of different scales are compared by how far they lie above the optimum of their own scale. One that
    violates a constraint is the best only where all do.
    """
    runs = _allowed(surrogate, _own_finished(surrogate))
    scores: dict[int, float] = {}
    with torch.no_grad():
        for scale in {run.scale for run in runs}:
            posterior = surrogate.optimum_posterior(scale)
            optimum, _ = posterior.optimum()
            z_optimum = _z_inside(surrogate.coordinates, optimum)

            at_scale = [i for i, run in enumerate(runs) if run.scale == scale]
            v = torch.stack(
                [_v_of(surrogate.coordinates, runs[i].params, missing=z_optimum) for i in at_scale]
            )
            flags = torch.stack([surrogate.coordinates.one_hot(runs[i].params) for i in at_scale])
            X = surrogate.rows(v, scale, flags)

            bowl = excess_loss(surrogate, v[:, None], scale, optimum[None])[:, 0]
            error, _ = posterior.residual_and_category(X)
            scores |= dict(zip(at_scale, (bowl + error).tolist(), strict=True))
    return runs[min(scores, key=lambda i: (scores[i], i))]


def expected_optimum(surrogate: Surrogate, scale: Scale) -> Tensor:
    """The expected optimum at a scale in z (d), inside the ranges."""
    centre, _ = surrogate.optimum_posterior(scale).optimum()
    return _z_inside(surrogate.coordinates, centre)


def optimum_draws(surrogate: Surrogate, draws: Draws) -> Float[Tensor, "count d"]:
    """Draws of the best setting in z: the bowl's optimum, moved by the residual.

    They may lie outside the searched ranges. If they were cut there, those of an HP that the runs do not
    determine would pile up at both ends, more of them at the closer one, and move its mean.
    """
    z: Tensor = draws.optimum @ surrogate.coordinates.unmix.T + draws.residual_offset
    return z


def _z_inside(coordinates: Coordinates, v: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """A v in z, moved into the ranges."""
    z: Tensor = coordinates.clip(v) @ coordinates.unmix.T
    return z.detach()


def _v_of(
    coordinates: Coordinates, params: Mapping[str, Any], missing: Float[Tensor, " d"]
) -> Float[Tensor, " d"]:
    """The v of a setting; `missing` is the z of HPs that it does not have, conditional ones."""
    z = coordinates.z(params)
    return coordinates.mix @ torch.where(z.isnan(), missing, z)


def _own_finished(surrogate: Surrogate) -> list[FinishedRun]:
    """Finished runs of the study itself, or of source studies where it has none."""
    finished = finished_runs(surrogate.runs)
    return [run for run in finished if run.source is None] or finished


@torch.no_grad()
def _allowed(surrogate: Surrogate, runs: list[FinishedRun]) -> list[FinishedRun]:
    """Those that violate no constraint, nor are likely to by those of source studies, if there are any."""
    runs = [run for run in runs if run.is_feasible] or runs
    if not surrogate.constraints.any_infeasible:
        return runs
    risk = surrogate.constraints.probability(torch.stack([surrogate.row(run) for run in runs]))
    return [run for run, p in zip(runs, risk.tolist(), strict=True) if p <= MAX_RISK] or runs


def _value(run: FinishedRun, name: str) -> Any:
    """The value of an HP in a run, 1 of a multiplier that it did not have; None if there was none."""
    return run.params.get(name, 1.0 if is_multiplier(name) else None)


def _default(surrogate: Surrogate, dim: Dimension) -> float:
    """The default of a multiplier, or what is closest to it in its range."""
    return _clip(dim, surrogate.settings.defaults.get(dim.name, 1.0))


def _clip(dim: Dimension, value: float) -> float:
    """The value closest to one that the range of an HP may not hold."""
    return min(max(value, dim.low), dim.high)


def _unvaried(coordinates: Coordinates, runs: list[FinishedRun]) -> dict[str, Any]:
    """HPs that had one value in all runs that had them, with that value."""
    unvaried = {}
    for name in coordinates.names:
        values = [value for run in runs if (value := _value(run, name)) is not None]
        if values and all(value == values[0] for value in values):
            unvaried[name] = values[0]
    return unvaried


def _frozen(coordinates: Coordinates, exact: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Values of HPs as z (d) and flags (k), nan for HPs that are not among them."""
    is_frozen = torch.tensor([dim.name in exact for dim in coordinates.numeric], dtype=torch.bool)
    z = torch.where(is_frozen, coordinates.z(exact), torch.nan)
    has_choice = torch.tensor(
        [dim.name in exact for dim in coordinates.categorical for _ in dim.choices], dtype=torch.bool
    )
    return z, torch.where(has_choice, coordinates.one_hot(exact), torch.nan)


def _undetermined(surrogate: Surrogate, runs: list[FinishedRun]) -> Bool[Tensor, " d"]:
    """Which HPs the runs say too little about: no clear effect, an optimum that may be almost anywhere."""
    transform = surrogate.outcome_transform
    tested = [run for run in runs if transform.takes(run.loss)]
    optima = {scale: expected_optimum(surrogate, scale) for scale in {run.scale for run in tested}}
    t = np.array([(surrogate.coordinates.z(run.params) - optima[run.scale]).tolist() for run in tested])
    y = np.array([transform.forward(run.loss) for run in tested])
    p_values = effect_p_values(t, y, [run.scale for run in tested])
    variance, prior = _variances_of_optimum(surrogate, runs)
    ranges = surrogate.coordinates.z_high - surrogate.coordinates.z_low
    is_wide = torch.ge(2 * LEVEL_SD * variance.sqrt(), MAX_SHARE * ranges)
    if p_values is None:
        return is_wide | torch.ge(variance, HARDLY_NARROWER**2 * prior)
    p = torch.tensor(p_values)
    return torch.ge(p, MAX_P_VALUE) | (is_wide & torch.ge(p, CLEAR_P_VALUE))


def _without_effect(surrogate: Surrogate) -> Bool[Tensor, " d"]:
    """Which of many multipliers show no evidence of an effect, see `sparsity`."""
    numeric = surrogate.coordinates.numeric
    prior = surrogate.landscape.curvature_prior
    if prior is None:
        return torch.zeros(len(numeric), dtype=torch.bool)
    return prior.optimum.isnan() & torch.tensor([is_multiplier(dim.name) for dim in numeric])


@torch.no_grad()
def _variances_of_optimum(
    surrogate: Surrogate, runs: list[FinishedRun]
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Posterior and prior variance of the optimum in z, at the scale that has most of the runs."""
    counts = Counter(run.scale for run in runs)
    posterior = surrogate.optimum_posterior(max(counts, key=lambda scale: counts[scale]))
    T = surrogate.coordinates.unmix @ posterior.path_map()
    return (T @ posterior.covariance @ T.T).diagonal().clamp(min=0), (
        T @ posterior.prior_covariance() @ T.T
    ).diagonal()


def _expected_drift(surrogate: Surrogate, start: Scale, end: Scale) -> Float[Tensor, " d"]:
    """By how much the optimum is expected to move between two scales, in z."""
    return expected_optimum(surrogate, end) - expected_optimum(surrogate, start)


def _copy(surrogate: Surrogate, params: Mapping[str, Any], scale: Scale) -> _Setting:
    """A setting of given values; an HP that it does not have adds nothing to its loss."""
    coordinates = surrogate.coordinates
    v = _v_of(coordinates, params, missing=expected_optimum(surrogate, scale))
    flags = coordinates.one_hot(params)
    return _Setting(v, flags, {name: params[name] for name in coordinates.names if name in params})


def _defaults(surrogate: Surrogate, scale: Scale) -> dict[str, _Setting]:
    """The documented defaults, if there are any."""
    coordinates, defaults = surrogate.coordinates, surrogate.settings.defaults
    known = {name: defaults[name] for name in coordinates.names if defaults.get(name) is not None}
    if not known:
        return {}
    row = coordinates.row(known, scale)  # in the middle of its range where an HP has no default
    _, flags = _frozen(coordinates, known)
    flags = torch.where(flags.isnan(), surrogate.best_flags(), flags)
    return {DEFAULTS: _Setting(row[: coordinates.d], flags, known)}


@torch.no_grad()
def _compare(
    expected: ExpectedLoss, settings: Sequence[_Setting], reference: int | None = None
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """The expected loss of each setting, and its probability to be worse than the one named by `reference`.

    By default that is the one with the least expected loss.
    """
    v = torch.stack([setting.v for setting in settings])
    flags = torch.stack([setting.flags for setting in settings])
    losses = expected(v, flags)
    i = _least(losses) if reference is None else reference

    X = expected.residual_rows(v, flags)
    bowl = expected.excess_losses(v)
    error, _ = expected.posterior.residual_and_category(X)
    covariance = expected.posterior.joint(X, X).residual
    variance = covariance.diagonal() + covariance[i, i] - 2 * covariance[i]
    worse = bowl - bowl[i] + (error - error[i])[:, None]
    return losses, torch.special.ndtr(worse / variance.clamp(min=MIN_VARIANCE).sqrt()[:, None]).mean(-1)


def _least(losses: Tensor) -> int:
    """Index of the least, the first one of equal ones."""
    return min(range(len(losses)), key=lambda i: (float(losses[i]), i))


def _choose(
    expected: ExpectedLoss,
    own: _Setting,
    baselines: Mapping[str, _Setting],
    undetermined: tuple[str, ...],
    best_run: FinishedRun,
) -> Recommendation:
    """Of a setting and its baselines the one with the least expected loss."""
    settings, coordinates = [own, *baselines.values()], expected.surrogate.coordinates
    losses, probability = _compare(expected, settings)
    best = _least(losses)
    chosen = settings[best]

    with torch.no_grad():
        bowl = float(expected.excess_losses(chosen.v[None]).mean())
    return Recommendation(
        params=chosen.params(coordinates),
        v=chosen.v,
        flags=chosen.flags,
        undetermined=undetermined,
        excess_loss=bowl,
        baselines={
            name: Candidate(
                params=setting.params(coordinates),
                difference=float(losses[i] - losses[best]),
                probability=float(probability[i]),
            )
            for i, (name, setting) in enumerate(baselines.items(), start=1)
        },
        incumbent=best_run,
    )
