"""What to set at a scale, how sure that is, and what it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_bo.errors import TransferError
from transfer_bo.projection.stability import StabilityEdge
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transfer_bo.integrations.formats import Export
    from transfer_bo.parametrization import Parametrization

__all__ = ["Baseline", "PredictedLoss", "Suggestion", "central_interval"]

LEVEL = 0.9
"""Probability of the intervals in the JSON output."""

Drift = dict[str, dict[str, dict[str, float]]]
"""`{hp: {axis: {"mean", "sd", "prior_mean", "prior_sd"}}}`, octaves per doubling."""


def central_interval(draws: np.ndarray[Any, np.dtype[np.float64]], level: float) -> tuple[float, float]:
    """The interval that holds the central share `level` of some draws.

    Raises:
        TransferError: for a level that is no probability.
    """
    if not 0 < level < 1:
        raise TransferError(
            f"The level of an interval is {level!r}; give a number between 0 and 1, e.g. 0.9."
        )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PredictedLoss:
    """The loss of one run at the target with the suggested setting: its predictive distribution.

    Attributes:
        draws: draws of the metric, sorted, in the study's unit.
    """

    draws: np.ndarray[Any, np.dtype[np.float64]] = field(repr=False)

    @property
    def mean(self) -> float:
        """Expected metric over the central 90% of the draws.

        The far tail of an uncertain bowl is exponential and rests on no run; a few of its draws would
        otherwise dominate the mean.
        """
        low, high = central_interval(self.draws, 0.9)
        return float(self.draws[(self.draws >= low) & (self.draws <= high)].mean())

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Central interval that holds the metric of one new run with the given probability."""
        return central_interval(self.draws, level)

    def __str__(self) -> str:
        low, high = self.interval(LEVEL)
        return f"{self.mean:.5g} ({LEVEL:.0%} interval: {low:.5g} to {high:.5g})"


@dataclass(frozen=True)
class Baseline:
    """A setting that a suggestion was compared with, over the same posterior draws.

    Attributes:
        params: its HPs.
        excess_loss: its expected loss above the best one at the target, in the study's unit.
        difference: by how much that is more than the suggestion's, 0 at least.
        probability: probability that the suggestion is better.
        is_within_noise: whether the difference is smaller than the noise of one run.
    """

    params: dict[str, Any]
    excess_loss: float
    difference: float
    probability: float
    is_within_noise: bool


@dataclass(frozen=True)
class Suggestion:
    """What to set at the target.

    Attributes:
        target: the scale it is for.
        params: HPs as searched (base coordinates under a parametrization).
        optimum: draws of the best value of each HP at the target (numeric HPs only).
        predicted_loss: the loss of one run with `params`.
        drift: `{hp: {axis: {"mean", "sd", "prior_mean", "prior_sd"}}}`, octaves per doubling of the axis.
        warnings: plain sentences about what the answer rests on.
        provenance: versions, seed, numbers of runs.
        undetermined: HPs that the runs do not determine: they keep the value that all runs had, or that of
            the best run.
        baselines: settings that the suggestion was compared with: "best run copied", "best global setting"
            (all multipliers at 1, if there are any) and "defaults" (if any are documented). The suggestion is
            the best of them all.
        divergence_probability: probability that a run with `params` diverges; None if no run has so far.
        stability_edges: where along an HP half of the runs at the target diverge, the other HPs as suggested;
            only HPs on a log scale of which the runs tell on which side they diverge.
    """

    target: Scale
    params: dict[str, Any]
    optimum: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = field(repr=False)
    predicted_loss: PredictedLoss
    drift: Drift = field(repr=False)
    warnings: list[str]
    provenance: dict[str, Any] = field(repr=False)
    undetermined: tuple[str, ...] = ()
    divergence_probability: float | None = None
    stability_edges: dict[str, StabilityEdge] = field(default_factory=dict, repr=False)
    baselines: dict[str, Baseline] = field(default_factory=dict, repr=False)

    def interval(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """`{hp: (low, high)}`: where the optimum at the target lies with the given probability, HP by HP."""
        return {name: central_interval(draws, level) for name, draws in self.optimum.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the intervals are at 90%."""
        return {
            "target": dict(self.target),
            "params": self.params,
            "intervals": {name: list(bounds) for name, bounds in self.interval(LEVEL).items()},
            "predicted_loss": {
                "mean": self.predicted_loss.mean,
                "interval": list(self.predicted_loss.interval(LEVEL)),
            },
            "drift": self.drift,
            "level": LEVEL,
            "undetermined": list(self.undetermined),
            "divergence_probability": self.divergence_probability,
            "stability_edges": {name: edge.to_json() for name, edge in self.stability_edges.items()},
            "baselines": {name: asdict(baseline) for name, baseline in self.baselines.items()},
            "warnings": self.warnings,
            "provenance": self.provenance,
        }

    def __str__(self) -> str:
        from transfer_bo.display.suggestion_text import suggestion_text

        return suggestion_text(self)

    def _repr_html_(self) -> str:
        """The same as `print(suggestion)`, for notebooks."""
        from transfer_bo.display.suggestion_text import suggestion_html

        return suggestion_html(self)

    def export(
        self,
        p: Parametrization,
        format: str,  # noqa: A002 - the name that users write
        *,
        context: int | None = None,
        max_norm: float = 1.0,
    ) -> Export:
        """The settings of each tensor at the target, for "torch", "hf", "torchtitan", "megatron" or "json".

        See `transfer_bo.integrations.export` for formats and arguments.
        """
        from transfer_bo.integrations.formats import export

        return export(self, p, format, context=context, max_norm=max_norm)

    def plot(self, level: float = 0.9) -> Figure:
        """Draw the posterior of each HP's optimum at the target, and the predicted loss.

        Args:
            level: Probability of the intervals.
        """
        from transfer_bo.display.suggestion_figure import draw_suggestion

        return draw_suggestion(self, level)
