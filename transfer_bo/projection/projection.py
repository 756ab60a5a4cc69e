"""A fitted study that answers questions about any scale.

The suggested setting is the one with the least expected loss at the target, plus the price of divergence
times its probability (`surrogate.recommendation`). Its interval is that of the best setting itself. Setting,
interval and predicted loss rest on the same draws from the posterior of the landscape
(`surrogate.posterior_sampling`).

Symbols:
    z        HPs in natural coordinates, octaves (`surrogate.coordinates`)
    v        HPs in the coordinates of the landscape, v = mix z
    s        scale, doublings of each axis from the base
    B        drift of the optimum, octaves of each HP per doubling of each axis (d x a)
    X        rows of the surrogate, see `surrogate.coordinates` (n x row)
    y        loss in the transformed unit in which the surrogate sees it, smaller is better
    θ        parameters of the landscape: loss law, bowl and drift
    d, k     number of numeric HPs, and of choices of categorical HPs
    a, q     number of axes of scale, and of source studies
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer_bo.errors import ScaleError
from transfer_bo.projection.activity import active_params
from transfer_bo.projection.caveats import caveats
from transfer_bo.projection.extrapolation import far_sd
from transfer_bo.projection.stability import divergence_probability, stability_edges
from transfer_bo.projection.suggestion import Baseline, Drift, PredictedLoss, Suggestion, central_interval
from transfer_bo.quantities import LEVEL_SD
from transfer_bo.records import Run, StudySettings, count_outcomes, finished_runs
from transfer_bo.scale import Ladder, Scale, as_scale
from transfer_bo.surrogate.gp import TOLERANCE
from transfer_bo.surrogate.posterior_sampling import PosteriorSamples, sample_posterior
from transfer_bo.surrogate.recommendation import (
    Recommendation,
    expected_optimum,
    optimum_draws,
    recommend,
)
from transfer_bo.surrogate.surrogate import Surrogate
from transfer_bo.surrogate.threads import one_thread

__all__ = ["Projection"]

IMPORTANCE_POINTS = 33
"""Points along an HP's range over which the spread of the loss is taken."""

AT_EDGE = 1e-9
"""Octaves; a draw that is as close to the end of a range, or outside of it, lies at its edge."""

Array = np.ndarray[Any, np.dtype[np.float64]]


class Projection:
    """A fitted study, ready for questions about any scale.

    Args:
        surrogate: fitted to the study's runs.
        runs: all runs of the study.
        settings: settings of the study.
        constants: HPs that were the same in all runs, `{hp: value}`.

    Attributes:
        hps: names of the numeric HPs; categorical ones have a suggested value, but no interval and no drift.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        runs: Sequence[Run],
        settings: StudySettings,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        self.surrogate, self.runs, self.settings = surrogate, list(runs), settings
        self.constants = dict(constants or {})
        self.ladder = Ladder(settings.scales[index] for index in settings.proxies)
        self.ladder.align(settings.scales)
        self.target = settings.target
        self.hps = [dim.name for dim in surrogate.coordinates.numeric]
        self._samples: PosteriorSamples | None = None

    @property
    def samples(self) -> PosteriorSamples:
        """Posterior draws that all answers rest on, made when the first one is asked for."""
        if self._samples is None:
            self._samples = sample_posterior(self.surrogate.model, self.settings.seed)
        return self._samples

    @one_thread()
    def suggest(self, target: Scale | Mapping[str, float] | None = None) -> Suggestion:
        """The setting with the least expected loss at the target, and what is known about it.

        It holds the HPs that are active there (`projection.activity`), with those that never varied.

        Args:
            target: another scale than the study's target.

        Raises:
            ScaleError: for a scale that differs from the base along an axis that the fit does not have.
        """
        scale = self.target if target is None else as_scale(target, "target")
        surrogate = self.surrogate
        for axis, ratio in scale.log2_ratio(self.settings.base).items():
            if ratio and axis not in surrogate.coordinates.axes:
                raise ScaleError(
                    f"{axis} = {scale[axis]:g} is unknown to this fit, because all its scales have "
                    f"{axis} = {self.settings.base[axis]:g}; fit with fit_study(study, target)."
                )

        generator = torch.Generator().manual_seed(self.settings.seed)
        z = self._optima(scale)
        found = recommend(surrogate, scale, self.samples, generator)
        params = self._active(found.params, scale)
        suggestion = Suggestion(
            target=scale,
            params=params,
            optimum={name: draws for name, draws in self._values(z).items() if name in params},
            predicted_loss=self.predict(scale, found.v, found.flags),
            drift={name: drift for name, drift in self.drift().items() if name in params},
            undetermined=tuple(name for name in found.undetermined if name in params),
            baselines=self._baselines(found, scale),
            divergence_probability=divergence_probability(surrogate, params, scale),
            stability_edges=stability_edges(surrogate, params, scale, self.settings.seed),
            warnings=[],
            provenance=self._provenance(),
        )
        return replace(suggestion, warnings=[*caveats(self, suggestion)])

    def optimum(self, scale: Scale, level: float = 0.9) -> dict[str, tuple[float, float, float]]:
        """`{hp: (median, low, high)}` of the optimum at a scale."""
        z = self._optima(scale)
        return {
            name: (float(np.median(draws)), *central_interval(draws, level))
            for name, draws in self._values(z).items()
        }

    def curve(self, hp: str, scale: Scale, n: int = 81) -> tuple[Array, Array, Array, Array]:
        """Loss along one HP at a scale, the others at their optimum.

        Returns:
            HP values, mean, low and high end of the band, each of shape n. The band is the central 90% of
            the loss itself, without the noise of a run.
        """
        surrogate, coordinates = self.surrogate, self.surrogate.coordinates
        i = self.hps.index(hp)
        z = self._line(i, scale, n)
        posterior = surrogate.model.posterior(surrogate.rows(z @ coordinates.mix.T, scale))
        mean = posterior.mean.detach().squeeze(-1)
        band = LEVEL_SD * posterior.variance.detach().clamp(min=0).sqrt().squeeze(-1)

        losses = [
            [surrogate.outcome_transform.backward(float(y)) for y in line]
            for line in (mean, mean - band, mean + band)
        ]
        values = np.array([coordinates.value_of(i, float(at)) for at in z[:, i]], dtype=float)
        low, high = np.minimum(losses[1], losses[2]), np.maximum(losses[1], losses[2])
        return values, np.array(losses[0]), low, high

    def importance(self, scale: Scale) -> dict[str, float]:
        """Share of each numeric HP in the spread of the loss over the searched box at a scale.

        The shares sum to 1; they are all 0 if the fitted bowl is flat along every HP.
        The variance of the fitted bowl along the HP over its range, the others at their optimum.
        """
        surrogate, coordinates = self.surrogate, self.surrogate.coordinates
        s = coordinates.s(scale)
        spreads = []
        for i in range(coordinates.d):
            z = self._line(i, scale, IMPORTANCE_POINTS)
            spreads.append(float(surrogate.landscape.bowl(surrogate.theta, z @ coordinates.mix.T, s).var()))
        total = sum(spreads) or 1.0
        return {name: spread / total for name, spread in zip(self.hps, spreads, strict=True)}

    def drift(self) -> Drift:
        """Drift of each HP's optimum along each axis, octaves per doubling, beside its prior.

        For an HP on a linear scale an "octave" is a quarter of its range.
        """
        surrogate, coordinates = self.surrogate, self.surrogate.coordinates
        B, sd = surrogate.optimum_posterior(self.target).drift()
        prior = surrogate.drift_prior
        return {
            name: {
                axis: {
                    "mean": float(B[i, j]),
                    "sd": float(sd[i, j]),
                    "prior_mean": float(prior.mean[i, j]),
                    "prior_sd": float(prior.sd[i, j]),
                }
                for j, axis in enumerate(coordinates.axes)
            }
            for i, name in enumerate(self.hps)
        }

    def sources(self) -> dict[str, dict[str, float]]:
        """For each source study, how many of its runs were fitted, and by how much its optimum may differ.

        "shift" is the standard deviation of the displacement of its optimum from this study's, in octaves. It
        is learned, and the same for all HPs. It is the weight of a source study: near 0 its runs count like
        the study's own, at several octaves they hardly count.
        """
        surrogate = self.surrogate
        shift_sd = surrogate.model.hyperparameters.source_shift_sd
        return {
            name: {"runs": sum(run.source == name for run in surrogate.runs), "shift": float(shift_sd[i])}
            for i, name in enumerate(surrogate.coordinates.sources)
        }

    def predict(self, scale: Scale, v: Tensor, flags: Tensor | None = None) -> PredictedLoss:
        """The metric of one run at a scale.

        Args:
            scale: where it runs.
            v: its HPs (shape d).
            flags: its choices of categorical HPs, one-hot (shape k); the best known ones if None.
        """
        X = self.surrogate.rows(v[None], scale, flags)
        y = self.draw_losses(X, X[0])[:, 0]
        backward = self.surrogate.outcome_transform.backward
        return PredictedLoss(np.sort([backward(float(value)) for value in y]))

    def draw_losses(self, X: Tensor, at: Tensor) -> Tensor:
        """Joint draws of y of one run at each of some rows, smaller is better (shape draws x m).

        Args:
            X: rows at one scale (shape m x row).
            at: one row; what the bowl does not explain is drawn there and taken to be the same at all rows.
        """
        landscape = self.surrogate.landscape
        v, flags, s = landscape.split(X)
        draws = self.samples.at(s[0], at)
        theta = draws.theta.unsqueeze(-2)
        bowl = landscape.bowl(theta, v - draws.jitter.unsqueeze(-2), s)  # the jitter moves the bowl, not v
        effects = landscape.get(draws.theta, "w") @ flags.T
        y = landscape.law(theta, s) + bowl + effects + draws.error.unsqueeze(-1)

        noise_sd = (draws.noise_sd.unsqueeze(-1) ** 2 + (TOLERANCE * bowl) ** 2).sqrt()
        generator = torch.Generator().manual_seed(self.settings.seed)
        return y + noise_sd * torch.randn(y.shape, dtype=y.dtype, generator=generator)

    def is_at_edge(self, scale: Scale) -> dict[str, bool]:
        """Whether at least half of the draws of each HP's optimum lie at the edge of its range or outside."""
        coordinates = self.surrogate.coordinates
        z = self._optima(scale)
        at_edge = (z <= coordinates.z_low + AT_EDGE) | (z >= coordinates.z_high - AT_EDGE)
        shares = at_edge.double().mean(0).tolist()
        return {name: share >= 0.5 for name, share in zip(self.hps, shares, strict=True)}

    def violation_risk(self, suggestion: Suggestion) -> float:
        """Probability that a suggestion violates one of Optuna's constraints."""
        row = self.surrogate.coordinates.row(suggestion.params, suggestion.target)
        return float(self.surrogate.constraints.probability(row[None]))

    def _active(self, params: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
        """A setting with the HPs that were never searched, without those that are inactive in it."""
        own = finished_runs(run for run in self.surrogate.runs if run.source is None)
        return active_params({**params, **self.constants}, own, scale)

    def _baselines(self, found: Recommendation, scale: Scale) -> dict[str, Baseline]:
        """The settings that a recommendation was compared with, in the study's own unit."""
        surrogate = self.surrogate
        level = float(surrogate.landscape.law(surrogate.theta, surrogate.coordinates.s(scale)))
        backward = surrogate.outcome_transform.backward

        def in_loss(excess_loss: float) -> float:
            return abs(backward(level + excess_loss) - backward(level))

        noise_sd = float(surrogate.model.hyperparameters.run_sd)
        return {
            name: Baseline(
                params=self._active(candidate.params, scale),
                excess_loss=in_loss(found.excess_loss + candidate.difference),
                difference=in_loss(found.excess_loss + candidate.difference) - in_loss(found.excess_loss),
                probability=candidate.probability,
                is_within_noise=candidate.difference < noise_sd,
            )
            for name, candidate in found.baselines.items()
        }

    def _line(self, i: int, scale: Scale, n: int) -> Tensor:
        """Points in z (shape n x d): the i-th HP over its range, the others at their optimum."""
        coordinates = self.surrogate.coordinates
        z = expected_optimum(self.surrogate, scale).repeat(n, 1)
        z[:, i] = torch.linspace(float(coordinates.z_low[i]), float(coordinates.z_high[i]), n)
        return z

    def _optima(self, scale: Scale) -> Tensor:
        """Draws of the optimum in z (shape draws x d), the same ones at every call.

        Far from the runs they spread about the law by `far_sd`, which does not move the suggestion.
        """
        z = optimum_draws(self.surrogate, self.samples.at(self.surrogate.coordinates.s(scale)))
        generator = torch.Generator().manual_seed(self.settings.seed)
        spread = torch.randn(z.shape, dtype=z.dtype, generator=generator)
        return z + far_sd(self.surrogate, scale) * spread

    def _values(self, z: Tensor) -> dict[str, Array]:
        """Sorted values of each HP at points in z (shape draws x d)."""
        value_of = self.surrogate.coordinates.value_of
        return {
            name: np.sort([float(value_of(i, float(at))) for at in z[:, i]])
            for i, name in enumerate(self.hps)
        }

    def _provenance(self) -> dict[str, Any]:
        """Versions, seed and numbers of runs."""
        sources = self.sources()
        return {
            "transfer_bo": version("transfer-bo"),
            "torch": torch.__version__,
            "botorch": version("botorch"),
            "optuna": version("optuna"),
            "python": platform.python_version(),
            "seed": self.settings.seed,
            "coordinates": self.settings.coordinates,
            "runs": count_outcomes(self.runs),
            **({"past": sources} if sources else {}),
        }
