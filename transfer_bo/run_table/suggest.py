"""`suggest_from_runs`: what to set at the target, from runs that somebody has already made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transfer_bo.errors import TransferError
from transfer_bo.projection import Projection, Suggestion
from transfer_bo.run_table.cleaning import RunTable, read_rows
from transfer_bo.run_table.columns import Columns
from transfer_bo.run_table.evidence import cliff_shift, largest_scale, prior_warnings, uncorrected
from transfer_bo.run_table.fit import FitOptions, check_target, doublings_beyond, project
from transfer_bo.run_table.held_out import leave_largest_out
from transfer_bo.run_table.published_laws import compare
from transfer_bo.run_table.rank_correlation import rank_preservation, rank_warnings
from transfer_bo.run_table.read import read_table
from transfer_bo.run_table.tensor_settings import ModelSpec
from transfer_bo.scale import Scale

__all__ = ["RunsFit", "RunsSuggestion", "fit_runs", "suggest_from_runs"]


@dataclass(frozen=True)
class RunsSuggestion(Suggestion):
    """What to set at the target, from a table of runs.

    Attributes:
        evidence: what the answer rests on, as plain JSON values (see `suggestion.schema.json`).
        tensors: what each tensor gets at the target, where a model was given (see `ModelSpec.tensors`).
    """

    evidence: dict[str, Any] = field(default_factory=dict, repr=False)
    tensors: list[dict[str, Any]] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the intervals are at 90%."""
        tensors = {} if self.tensors is None else {"tensors": self.tensors}
        return super().to_json() | {"evidence": self.evidence} | tensors


@dataclass(frozen=True)
class RunsFit:
    """A fitted table of runs.

    Attributes:
        projection: answers questions about any scale.
        rows: the runs as they were understood.
        columns: what the columns mean.
        beliefs: coordinates, drift prior, direction, seed.
        materials: the model whose tensors the suggestion is for, if any.
    """

    projection: Projection
    rows: RunTable
    columns: Columns
    beliefs: FitOptions
    materials: ModelSpec | None = None

    def suggest(self, held_out: bool = True) -> RunsSuggestion:
        """What to set at the target, and what that rests on.

        Args:
            held_out: whether to leave the largest scales out in turn, which takes two more fits.
        """
        projection, rows = self.projection, self.rows
        plain = projection.suggest()
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(Suggestion)}
        fields["params"] = {
            name: rows.constants.get(name, plain.params.get(name)) for name in self.columns.hps
        }
        ranks = rank_preservation(
            rows.table, self.columns.axes, list(self.columns.hps), self.beliefs.maximize
        )
        largest = largest_scale(projection)
        medians = {name: median for name, (median, _, _) in projection.optimum(largest).items()}
        fields["evidence"] = {
            "rows": rows.counts,
            "base": dict(projection.settings.base),
            "largest": dict(largest),
            "beyond": doublings_beyond(rows.scales, projection.target),
            "excess": uncorrected(projection, plain),
            "cliff_shift": cliff_shift(projection, plain),
            "held_out": leave_largest_out(rows, self.beliefs) if held_out else [],
            "rank_preservation": ranks,
            # The laws are for raw values.
            "reference_laws": compare(plain.params, projection.target, largest, medians)
            if self.beliefs.coordinates == "raw"
            else [],
        }
        unsaid: list[str] = []
        if self.materials is not None:
            fields["tensors"], unsaid = self.materials.tensors(fields["params"], projection.target)
        fields["warnings"] = [
            *plain.warnings,
            *prior_warnings(projection),
            *self._outside(plain),
            *rank_warnings(ranks),
            *rows.notes,
            *unsaid,
        ]
        return RunsSuggestion(**fields)

    def _outside(self, plain: Suggestion) -> list[str]:
        """Which suggested values no run has come near, or lie off the optimum's own interval."""
        said, params, interval = [], plain.params, plain.interval()
        for dim in self.rows.dimensions:
            if dim.transform == "categorical":
                continue
            value, (low, high) = params[dim.name], interval[dim.name]
            if not dim.low <= value <= dim.high:
                said.append(
                    f"{dim.name} = {value:.4g} lies {_side(value, dim.low)} all values in the runs "
                    f"({dim.low:.4g} to {dim.high:.4g}): drift carries the optimum there, no run tried it."
                )
            if not low <= value <= high:
                said.append(
                    f"{dim.name} = {value:.4g} is set {_side(value, low)} the optimum's 90% interval "
                    f"({low:.4g} to {high:.4g}), to be safe from divergence or a steep side."
                )
        return said


def _side(value: float, low: float) -> str:
    return "below" if value < low else "above"


def fit_runs(
    runs: Any,
    axes: Sequence[str],
    hps: Mapping[str, str],
    loss: str = "loss",
    *,
    target: Scale | Mapping[str, float],
    coordinates: str | None = None,
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    maximize: bool = False,
    seed: int = 0,
    status: str | None = None,
    study: str | None = None,
    diverged_above: float | None = None,
    build_model: Callable[[Scale], Any] | None = None,
    base: Scale | Mapping[str, float] | None = None,
    rule: str = "complete_d_p",
    alpha: float = 1.0,
) -> RunsFit:
    """The fit behind `suggest_from_runs`, with the same arguments."""
    coordinates = coordinates or ("raw" if build_model is None else "base")
    materials = None
    if build_model is not None:
        if not isinstance(base, Mapping):
            raise TransferError(f"The base of the model is {base!r}; give a Scale, e.g. tb.Scale(width=64).")
        materials = ModelSpec(build_model, Scale(base), rule, alpha)
        materials.check(coordinates, target)
    elif base is not None:
        raise TransferError("A base is given, but no model; give build_model too, or leave the base out.")
    table = read_table(runs, study, loss)
    columns = Columns(tuple(axes), dict(hps), loss, status)
    beliefs = FitOptions(coordinates, drift_prior or {}, bool(table.attrs.get("maximize", maximize)), seed)
    beliefs.check(list(columns.hps), columns.axes)
    rows = read_rows(table, columns, maximize=beliefs.maximize, seed=seed, diverged_above=diverged_above)
    scale = check_target(target, rows, columns.axes)
    projection = project(rows.runs, rows.dimensions, scale, beliefs)
    return RunsFit(projection, rows, columns, beliefs, materials)


def suggest_from_runs(
    runs: Any, axes: Sequence[str], hps: Mapping[str, str], loss: str = "loss", **options: Any
) -> RunsSuggestion:
    """What to set at the target, from runs that somebody has already made.

    Repeats of a setting are repeats; failed runs say nothing, diverged ones teach stability; from more than
    a few hundred runs a selection is fitted (a warning says which).

    Args:
        runs: a pandas DataFrame, the path of a CSV or Parquet file, an Optuna study or its storage URL.
        axes: columns that are axes of scale, e.g. ["n_params", "tokens"].
        hps: column -> "log", "linear", "one_minus" (log of 1 - value) or "categorical".
        loss: column of the metric.
        options: `target` (needed): the scale to project to, with the same axes.
            `coordinates`: "raw" (the default: the optimum drifts as the literature says, until the runs say
            more) or "base" (HPs in base coordinates of a parametrization that claims transfer; the default
            where a model is given).
            `drift_prior`: the user's own, `{hp: {axis: (mean, sd)}}`, octaves per doubling.
            `maximize`: whether larger metrics are better; an Optuna study says so itself.
            `seed`: of the draws.
            `status`: column that says how a run ended; "status", "state" or "outcome" is found by itself.
            `study`: name of the Optuna study.
            `diverged_above`: a loss from which a run counts as diverged, instead of a rule of thumb.
            `build_model`, `base`, `rule`, `alpha`: as for `parametrize`; the suggestion then says what each
            tensor gets at the target. HPs are named as in `space.KINDS` ("beta2" will do). Axes of the base
            that the runs do not have stay as they are.
            `held_out`: False leaves the test on the largest scales out, and with it two more fits.

    Raises:
        TransferError: for input that has no answer: one sentence.
    """
    held_out = bool(options.pop("held_out", True))
    return fit_runs(runs, axes, hps, loss, **options).suggest(held_out)
