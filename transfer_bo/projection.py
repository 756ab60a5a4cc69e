"""The optimum at the target, with an error bar: from the fitted surrogate to a `Suggestion`.

The suggested setting is the one with the least expected loss at the target, plus the price of divergence
times its probability (`surrogate.optimum`). Its interval is that of the best setting itself. Setting,
interval and predicted loss rest on draws from the posterior of the landscape (`surrogate.chains`). Symbols:
as there.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer_bo.errors import TransferError
from transfer_bo.records import Outcome, Run, StudySettings, read_dimensions, read_runs, read_settings
from transfer_bo.scale import Ladder, Scale
from transfer_bo.space import is_multiplier, split_name
from transfer_bo.surrogate.gp import TOLERANCE
from transfer_bo.surrogate.posterior_sampling import PosteriorSamples
from transfer_bo.surrogate.recommendation import minimize_expected_loss
from transfer_bo.surrogate.surrogate import Surrogate
from transfer_bo.synonyms import axis_kind

__all__ = ["PredictedLoss", "Projection", "Suggestion", "fit_study", "suggest"]

_FAR = 3.0
"""Doublings beyond the largest run on some axis from which a warning is due."""
_SHORT_LIVED = ("init_std", "residual")
"""Kinds whose group multipliers, found in short runs, cost more than they gained in longer ones, where those
of learning rates kept their worth (`studies/per_module`)."""
_NOTABLE = 0.1
"""Octaves; multipliers that are set closer to 1 by more are named."""


@dataclass(frozen=True)
class PredictedLoss:
    """The loss of one run at the target with the suggested setting: its predictive distribution.

    Attributes:
        draws: of the metric, sorted, in the study's unit.
    """

    draws: np.ndarray[Any, np.dtype[np.float64]] = field(repr=False)

    @property
    def mean(self) -> float:
        """Expected metric over the central 90% of the draws.

        The far tail of an uncertain bowl is exponential and rests on no run; a few of its draws would
        otherwise be all of the mean.
        """
        low, high = _central(self.draws, 0.9)
        return float(self.draws[(self.draws >= low) & (self.draws <= high)].mean())

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Central interval that holds the metric of one new run with the given probability."""
        return _central(self.draws, level)


@dataclass(frozen=True)
class Suggestion:
    """What to set at the target.

    Attributes:
        target: the scale it is for.
        params: HPs as searched (base coordinates under a parametrization).
        optimum: draws of the best value of each HP at the target (numeric HPs only).
        predicted_loss: of one run with `params`.
        drift: `{hp: {axis: {"mean", "sd", "prior_mean", "prior_sd"}}}`, octaves per doubling of the axis.
        warnings: plain sentences about what the answer rests on.
        provenance: versions, seed, numbers of runs.
    """

    target: Scale
    params: dict[str, Any]
    optimum: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = field(repr=False)
    predicted_loss: PredictedLoss
    drift: dict[str, dict[str, dict[str, float]]] = field(repr=False)
    warnings: list[str]
    provenance: dict[str, Any] = field(repr=False)

    def interval(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """`{hp: (low, high)}`: where the optimum at the target lies with the given probability, HP by HP."""
        return {name: _central(draws, level) for name, draws in self.optimum.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the intervals are at 90%."""
        return {
            "target": dict(self.target),
            "params": self.params,
            "intervals": {name: list(bounds) for name, bounds in self.interval().items()},
            "predicted_loss": {
                "mean": self.predicted_loss.mean,
                "interval": list(self.predicted_loss.interval()),
            },
            "drift": self.drift,
            "level": 0.9,
            "warnings": self.warnings,
            "provenance": self.provenance,
        }


class Projection:
    """A fitted study, ready for questions about any scale.

    Args:
        surrogate: fitted to the study's runs.
        runs: all runs of the study.
        settings: of the study.
    """

    def __init__(self, surrogate: Surrogate, runs: Sequence[Run], settings: StudySettings) -> None:
        self.surrogate, self.runs, self.settings = surrogate, list(runs), settings
        self.ladder = Ladder(settings.scales[index] for index in settings.proxies)
        self.ladder.align(settings.scales)
        self.target = settings.target
        self.hps = [dim.name for dim in surrogate.coordinates.numeric]
        self._draws: PosteriorSamples | None = None

    def optimum(self, scale: Scale, level: float = 0.9) -> dict[str, tuple[float, float, float]]:
        """`{hp: (median, low, high)}` of the optimum at a scale."""
        z = self._optima(scale)
        return {
            name: (float(np.median(draws)), *_central(draws, level))
            for name, draws in self._values(z).items()
        }

    def curve(
        self, hp: str, scale: Scale, n: int = 81
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Loss along one HP at a scale, the others at their optimum: (values, mean, low, high), each (n).

        The band is the central 90% of the loss itself, without the noise of a run.
        """
        surrogate, coordinates = self.surrogate, self.surrogate.coordinates
        i = self.hps.index(hp)
        z = self._line(i, scale, n)
        posterior = surrogate.model.posterior(surrogate.rows(z @ coordinates.mix.T, scale))
        mean = posterior.mean.detach().squeeze(-1)
        band = 1.645 * posterior.variance.detach().clamp(min=0).sqrt().squeeze(-1)
        losses = [
            [surrogate.output.backward(float(y)) for y in line] for line in (mean, mean - band, mean + band)
        ]
        values = np.array([coordinates.value_of(i, float(at)) for at in z[:, i]], dtype=float)
        low, high = np.minimum(losses[1], losses[2]), np.maximum(losses[1], losses[2])
        return values, np.array(losses[0]), low, high

    def importance(self, scale: Scale) -> dict[str, float]:
        """Share of each HP in the spread of the loss over the searched box at a scale; sums to 1.

        The variance of the fitted bowl along the HP over its range, the others at their optimum.
        """
        surrogate, coordinates = self.surrogate, self.surrogate.coordinates
        s = coordinates.s(scale)
        spreads = []
        for i in range(coordinates.d):
            z = self._line(i, scale, 33)
            spreads.append(float(surrogate.landscape.bowl(surrogate.theta, z @ coordinates.mix.T, s).var()))
        total = sum(spreads)
        return {name: spread / total for name, spread in zip(self.hps, spreads, strict=True)}

    def drift(self) -> dict[str, dict[str, dict[str, float]]]:
        """Drift of each HP's optimum along each axis, octaves per doubling, beside its prior.

        For an HP on a linear scale an "octave" is a quarter of its range.
        """
        surrogate, coordinates = self.surrogate, self.surrogate.coordinates
        B, sd = surrogate.latent(self.target).drift()
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

    def past(self) -> dict[str, dict[str, float]]:
        """Of each past study how many runs were fitted, and how many octaves off its optimum seems to lie.

        That shift, learned and the same for all HPs, is the weight of a past study: near 0 its runs count
        like the study's own, at several octaves they hardly count.
        """
        surrogate = self.surrogate
        shift = surrogate.model.covar_module.shift.detach()
        return {
            name: {"runs": sum(run.source == name for run in surrogate.runs), "shift": float(shift[i])}
            for i, name in enumerate(surrogate.coordinates.sources)
        }

    def suggest(self, target: Scale | None = None) -> Suggestion:
        """The setting with the least expected loss at the target, and what is known about it."""
        scale = self.target if target is None else target
        surrogate = self.surrogate
        for axis, ratio in scale.log2_ratio(self.settings.base).items():
            if ratio and axis not in surrogate.coordinates.axes:
                raise TransferError(
                    f"{axis} = {scale[axis]:g} is no value this fit knows of, for all its scales have "
                    f"{axis} = {self.settings.base[axis]:g}; fit with fit_study(study, target)."
                )
        generator = torch.Generator().manual_seed(self.settings.seed)
        z = self._optima(scale)
        v, flags = minimize_expected_loss(surrogate, scale, generator, optima=z @ surrogate.coordinates.mix.T)
        return Suggestion(
            target=scale,
            params=surrogate.coordinates.params(v, flags),
            optimum=self._values(z),
            predicted_loss=self.predict(scale, v, flags),
            drift=self.drift(),
            warnings=self._warnings(scale),
            provenance=self._provenance(),
        )

    def predict(self, scale: Scale, v: Tensor, flags: Tensor | None = None) -> PredictedLoss:
        """The metric of one run at a scale with HPs v (d) and categories (k; the best known ones if None)."""
        X = self.surrogate.rows(v[None], scale, flags)
        y = self.drawn(X, X[0])[:, 0]
        return PredictedLoss(np.sort([self.surrogate.output.backward(float(value)) for value in y]))

    def drawn(self, X: Tensor, at: Tensor) -> Tensor:
        """Joint draws of y of one run at each row of one scale, smaller is better (count x m).

        Args:
            X: rows (m x (d+k+a+q)).
            at: one row; what the bowl does not say is told for it, and taken to be the same for all.
        """
        landscape = self.surrogate.landscape
        v, flags, s = landscape.split(X)
        draws = self.ensemble.at(s[0], at)
        theta = draws.theta.unsqueeze(-2)
        bowl = landscape.bowl(theta, v - draws.jitter.unsqueeze(-2), s)  # the jitter moves the bowl, not v
        effects = landscape.get(draws.theta, "w") @ flags.T
        y = landscape.law(theta, s) + bowl + effects + draws.error.unsqueeze(-1)
        noise = (draws.floor.unsqueeze(-1) ** 2 + (TOLERANCE * bowl) ** 2).sqrt()
        generator = torch.Generator().manual_seed(self.settings.seed)
        return y + noise * torch.randn(y.shape, dtype=y.dtype, generator=generator)

    @property
    def ensemble(self) -> PosteriorSamples:
        """Draws that all answers rest on, made when the first one is asked for."""
        if self._draws is None:
            self._draws = PosteriorSamples(self.surrogate.model, self.settings.seed)
        return self._draws

    def _line(self, i: int, scale: Scale, n: int) -> Tensor:
        """HPs in natural coordinates (n x d): the i-th over its range, the others at their optimum."""
        coordinates = self.surrogate.coordinates
        centre, _ = self.surrogate.latent(scale).optimum()
        z: Tensor = (coordinates.clip(centre) @ coordinates.unmix.T).repeat(n, 1)
        z[:, i] = torch.linspace(float(coordinates.z_low[i]), float(coordinates.z_high[i]), n)
        return z

    def _optima(self, scale: Scale) -> Tensor:
        """Draws of the optimum in natural coordinates (count x d), the same ones at every call."""
        coordinates = self.surrogate.coordinates
        draws = self.ensemble.at(coordinates.s(scale))
        return coordinates.clip_z(draws.optimum @ coordinates.unmix.T + draws.off)

    def _values(self, z: Tensor) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        value = self.surrogate.coordinates.value_of
        return {
            name: np.sort([float(value(i, float(at))) for at in z[:, i]]) for i, name in enumerate(self.hps)
        }

    def _warnings(self, scale: Scale) -> list[str]:
        """What a careful reader of the suggestion should know."""
        surrogate, said = self.surrogate, []
        for name, of in self.past().items():
            said.append(
                f"{of['runs']:.0f} runs of past study {name!r} are part of the fit; their optimum seems to "
                f"lie {of['shift']:.2g} octaves off (near 0 they count like own runs, at several hardly)."
            )
        finished = [r for r in surrogate.runs if r.outcome is Outcome.FINISHED and r.source is None]
        for axis in surrogate.coordinates.axes:
            seen = sorted({run.scale[axis] for run in finished if run.scale})
            if not seen:
                continue
            if len(seen) == 1 and seen[0] != scale[axis]:
                said.append(
                    f"All finished runs have {axis} = {seen[0]:g}; what {axis} = {scale[axis]:g} changes "
                    "rests on the prior alone."
                )
            beyond = float(np.log2(scale[axis] / seen[-1]))
            if beyond > _FAR:
                said.append(
                    f"The target lies {beyond:.1f} doublings of {axis} beyond the largest finished run."
                )
            if axis_kind(axis) == "tokens" and beyond > 0 and len(seen) == 1:
                said += self._short_lived(axis, seen[0])
        said += self._fallen_back(scale)
        at_edge = zip(self.hps, self._at_edge(self.settings.base), self._at_edge(scale), strict=True)
        edges = [name for name, here, there in at_edge if here or there]
        if edges:
            said.append(
                f"The optimum of {', '.join(edges)} lies at the edge of the searched range, where intervals "
                "are too narrow; widen it."
            )
        unknown = sorted(set(self.settings.drift_prior) - set(self.hps))
        if unknown:
            said.append(f"drift_prior speaks of {', '.join(unknown)}, but the HPs are {', '.join(self.hps)}.")
        return said

    def _short_lived(self, axis: str, seen: float) -> list[str]:
        """Which multipliers may not outlive runs that were all equally long, if any."""
        names = [name for name in self.hps if is_multiplier(name) and split_name(name)[0] in _SHORT_LIVED]
        if not names:
            return []
        return [
            f"Group multipliers like {names[0]}, found in short runs, did harm in longer ones before; all "
            f"runs here have {axis} = {seen:g}, so run some longer ones or set these to 1."
        ]

    def _fallen_back(self, scale: Scale) -> list[str]:
        """Which multipliers are set closer to 1 because they lose their worth with scale, if any."""
        surrogate = self.surrogate
        moved = (surrogate.fallback_drift * surrogate.coordinates.s(scale)).sum(-1)
        names = [name for name, octaves in zip(self.hps, moved, strict=True) if abs(octaves) > _NOTABLE]
        if not names:
            return []
        share = float(surrogate.fallback @ surrogate.coordinates.s(scale))
        return [
            f"Runs at larger scales do not bear out the group multipliers in full, so those of "
            f"{', '.join(names)} are set about {min(share, 1.0):.0%} closer to their defaults at the target."
        ]

    def _at_edge(self, scale: Scale) -> list[bool]:
        """Whether at least half of the draws of each HP's optimum are cut by its range."""
        coordinates = self.surrogate.coordinates
        z = self._optima(scale)
        cut = (z <= coordinates.z_low + 1e-9) | (z >= coordinates.z_high - 1e-9)
        return [bool(share >= 0.5) for share in cut.double().mean(0)]

    def _provenance(self) -> dict[str, Any]:
        outcomes = [str(run.outcome) for run in self.runs if run.source is None]
        past = self.past()
        return {
            "transfer_bo": version("transfer-bo"),
            "torch": torch.__version__,
            "botorch": version("botorch"),
            "optuna": version("optuna"),
            "python": platform.python_version(),
            "seed": self.settings.seed,
            "runs": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
            **({"past": past} if past else {}),
        }


def _central(draws: np.ndarray[Any, np.dtype[np.float64]], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise TransferError(
            f"The level of an interval is {level!r}; give a number between 0 and 1, e.g. 0.9."
        )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fit_study(study: Any, target: Scale | None = None) -> Projection:
    """Fit the surrogate to all runs of an Optuna study.

    Args:
        study: an Optuna study that a `TransferSampler` with a ladder has worked on.
        target: another scale than the sampler's target.

    Raises:
        TransferError: if the study holds no ladder or no finished run, or the target has other axes.
    """
    settings = read_settings(study)
    if target is not None:
        target.log2_ratio(settings.base)  # refuses other axes
        settings = dataclasses.replace(settings, target=target)
    runs = read_runs(study)
    trials = study.get_trials(deepcopy=False)
    dimensions = read_dimensions((trial.distributions for trial in trials), settings.defaults)
    surrogate = Surrogate(runs, dimensions, settings, maximize=study.direction.name == "MAXIMIZE")
    return Projection(surrogate, runs, settings)


def suggest(study: Any, target: Scale | None = None) -> Suggestion:
    """What to set at the target, from everything that a study has run.

    Args:
        study: an Optuna study that a `TransferSampler` with a ladder has worked on.
        target: another scale than the sampler's target.

    Raises:
        TransferError: if the study holds no ladder or no finished run.
    """
    return fit_study(study, target).suggest()
