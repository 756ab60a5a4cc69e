"""`suggest_from_runs`: what to set at the target, from runs that somebody has already made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transfer_bo.deprecation import renamed_argument
from transfer_bo.errors import ParametrizationError
from transfer_bo.notes import Note, to_json
from transfer_bo.projection import Projection, Suggestion
from transfer_bo.run_table.cleaning import RunTable, read_rows
from transfer_bo.run_table.columns import Columns, name_columns, refuse_other_types
from transfer_bo.run_table.evidence import (
    cliff_shift,
    largest_scale,
    prior_warnings,
    uncorrected,
    unknown_drifts,
)
from transfer_bo.run_table.fit import FitOptions, check_target, doublings_outside, project, read_scale
from transfer_bo.run_table.held_out import leave_largest_out
from transfer_bo.run_table.published_laws import compare
from transfer_bo.run_table.rank_correlation import rank_preservation, rank_warnings
from transfer_bo.run_table.read import read_table
from transfer_bo.run_table.schedules import read_schedule
from transfer_bo.run_table.tensor_settings import ModelSpec
from transfer_bo.scale import Scale
from transfer_bo.space import DEFAULT_RULE
from transfer_bo.surrogate.leave_one_out import error_factor
from transfer_bo.surrogate.threads import one_thread

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
        options: coordinates, drift prior, direction, seed.
        model_spec: the model whose tensors the suggestion is for, if any.
    """

    projection: Projection
    rows: RunTable
    columns: Columns
    options: FitOptions
    model_spec: ModelSpec | None = None

    @one_thread()
    def suggest(self, held_out: bool = True) -> RunsSuggestion:
        """What to set at the target, and what that rests on.

        Args:
            held_out: whether to leave the largest scales out in turn, which takes two more fits.
        """
        projection, rows = self.projection, self.rows
        plain = projection.suggest()
        known = {**plain.params, **rows.constants}
        params = {name: known[name] for name in self.columns.hps if name in known}
        ranks = rank_preservation(
            rows.table, self.columns.axes, list(self.columns.hps), self.options.maximize
        )

        tensors: list[dict[str, Any]] | None = None
        tensor_notes: list[Note] = []
        if self.model_spec is not None:
            tensors, tensor_notes = self.model_spec.tensors(params, projection.target)

        unchanged = {f.name: getattr(plain, f.name) for f in dataclasses.fields(Suggestion)}
        warnings = [
            *plain.warnings,
            *prior_warnings(projection),
            *unknown_drifts(projection),
            *self._outside(plain),
            *rank_warnings(ranks),
            *rows.notes,
            *tensor_notes,
        ]
        changed = {
            "params": params,
            "warnings": warnings,
            "evidence": self._evidence(plain, ranks, held_out) | {"notes": to_json(warnings)},
            "tensors": tensors,
        }
        return RunsSuggestion(**(unchanged | changed))

    def _evidence(self, plain: Suggestion, ranks: list[dict[str, Any]], held_out: bool) -> dict[str, Any]:
        """What the answer rests on, see `suggestion.schema.json`."""
        projection, rows = self.projection, self.rows
        largest = largest_scale(projection)
        medians = {name: median for name, (median, _, _) in projection.optimum(largest).items()}

        # The published laws are for raw values.
        is_raw = self.options.coordinates == "raw"
        laws = (
            compare(plain.params, projection.target, largest, medians, self.options.kinds) if is_raw else []
        )
        return {
            "rows": rows.counts,
            "base": dict(projection.settings.base),
            "largest": dict(largest),
            "beyond": doublings_outside(rows.scales, projection.target),
            "excess": uncorrected(projection, plain),
            "cliff_shift": cliff_shift(projection, plain),
            "held_out": leave_largest_out(rows, self.options) if held_out else [],
            "leave_one_out": error_factor(projection.surrogate.model).to_json(),
            "rank_preservation": ranks,
            "reference_laws": laws,
        }

    def _outside(self, plain: Suggestion) -> list[Note]:
        """Notes on suggested values outside all values in the runs, or outside the optimum's interval."""
        notes, params, interval = [], plain.params, plain.interval()
        for dim in self.rows.dimensions:
            if dim.transform == "categorical" or dim.name not in params:  # inactive at the target
                continue

            value, (low, high) = params[dim.name], interval[dim.name]
            if not dim.low <= value <= dim.high:
                notes.append(
                    Note(
                        f"{dim.name} = {value:.4g} lies {_side(value, dim.low)} all values in the runs "
                        f"({dim.low:.4g} to {dim.high:.4g}): extrapolated by the drift, tested by no run.",
                        "hp_outside_runs",
                        column=dim.name,
                        values=[value, dim.low, dim.high],
                    )
                )
            if not low <= value <= high:
                notes.append(
                    Note(
                        f"{dim.name} = {value:.4g} is set {_side(value, low)} the optimum's 90% interval "
                        f"({low:.4g} to {high:.4g}), to be safe from divergence or a steep side.",
                        "hp_outside_interval",
                        column=dim.name,
                        values=[value, low, high],
                    )
                )
        return notes


def _side(value: float, low: float) -> str:
    return "below" if value < low else "above"


@one_thread()
def fit_runs(
    runs: Any,
    axes: Sequence[str] | Mapping[str, str],
    hps: Mapping[str, str],
    loss: str = "loss",
    *,
    target: Scale | Mapping[str, float | str],
    coordinates: str | None = None,
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    maximize: bool = False,
    seed: int = 0,
    status: str | None = None,
    schedule: Sequence[str] | Mapping[str, Any] | None = None,
    study: str | None = None,
    diverged_above: float | None = None,
    build_model: Callable[[Scale], Any] | None = None,
    base: Scale | Mapping[str, float | str] | None = None,
    rule: str = DEFAULT_RULE,
    alpha: float = 1.0,
) -> RunsFit:
    """Fit the surrogate to a table of runs; arguments and errors are those of `suggest_from_runs`."""
    refuse_other_types(axes, hps)
    coordinates = coordinates or ("raw" if build_model is None else "base")
    model_spec = _model_spec(build_model, base, rule, alpha)
    at = read_scale(target, "target")
    if model_spec is not None:
        model_spec.check(coordinates, at)

    table = read_table(runs, study, loss)
    columns = name_columns(table, axes, hps, loss, status)
    taken = [*columns.axes, *columns.hps, columns.loss, *([columns.status] if columns.status else [])]
    columns = dataclasses.replace(columns, schedule=read_schedule(table, schedule, taken))
    options = FitOptions(
        coordinates=coordinates,
        drift_prior=drift_prior or {},
        maximize=bool(table.attrs.get("maximize", maximize)),
        seed=seed,
        kinds=columns.kinds,
    )
    options.check(list(columns.hps), columns.axes)

    rows = read_rows(table, columns, maximize=options.maximize, seed=seed, diverged_above=diverged_above)
    scale = check_target(at, rows, columns.axes)
    projection = project(rows.runs, rows.dimensions, scale, options)
    return RunsFit(projection, rows, columns, options, model_spec)


def _model_spec(
    build_model: Callable[[Scale], Any] | None,
    base: Scale | Mapping[str, float | str] | None,
    rule: str,
    alpha: float,
) -> ModelSpec | None:
    """The model that a suggestion is for, if one was given.

    Raises:
        ParametrizationError: for a model without a base, or a base without a model.
    """
    if build_model is None:
        if base is not None:
            raise ParametrizationError(
                "A base is given, but no model; give build_model too, or leave the base out."
            )
        return None
    if base is None:
        raise ParametrizationError("A model is given, but no base; give a Scale, e.g. tb.Scale(width=64).")
    return ModelSpec(build_model, read_scale(base, "base of the model"), rule, alpha)


@renamed_argument("maximise", "maximize")
def suggest_from_runs(
    runs: Any,
    axes: Sequence[str] | Mapping[str, str],
    hps: Mapping[str, str],
    loss: str = "loss",
    *,
    target: Scale | Mapping[str, float | str],
    coordinates: str | None = None,
    drift_prior: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    maximize: bool = False,
    seed: int = 0,
    status: str | None = None,
    schedule: Sequence[str] | Mapping[str, Any] | None = None,
    study: str | None = None,
    diverged_above: float | None = None,
    build_model: Callable[[Scale], Any] | None = None,
    base: Scale | Mapping[str, float | str] | None = None,
    rule: str = DEFAULT_RULE,
    alpha: float = 1.0,
    held_out: bool = True,
) -> RunsSuggestion:
    """What to set at the target, from runs that somebody has already made.

    Repeats of a setting are repeats; failed runs tell nothing, diverged ones where training is unstable. Of
    more than a few hundred runs a selection is fitted (a warning tells which).

    Args:
        runs: a pandas DataFrame, a list of records, the path of a CSV, JSON or Parquet file, an Optuna study
            or the address of its storage. Of a table with a row for each step of a run the last rows count.
        axes: columns that are axes of scale, e.g. ["n_params", "tokens"]. One whose name does not tell what
            it is may be declared: ["budget=n_params"], or {"budget": "n_params"}.
        hps: column -> "log", "linear", "one_minus" (log of 1 - value) or "categorical". A name may be
            declared likewise: {"my_rate=lr": "log"}. Rows with a value that the kind has no place for, as 0
            on a log scale, are left out.
        loss: column of the metric. An empty cell carries no information; inf, or nan as a word, is a run that
            diverged.
        target: the scale to project to, with the same axes; numbers, or texts such as "7B".
        coordinates: "raw" (the optimum drifts as the literature says, until the runs tell more; the default)
            or "base" (HPs in base coordinates of a parametrization that claims transfer; the default where a
            model is given).
        drift_prior: a prior of the drift that replaces that of the literature, `{hp: {axis: (mean, sd)}}`, in
            octaves per doubling.
        maximize: whether larger metrics are better. An Optuna study knows that itself.
        seed: of the draws.
        status: column that tells how a run ended; by default one with a usual name, such as "State". Words of
            the common trackers and schedulers are known; a run with another word does not count as finished.
        schedule: columns that tell the learning-rate schedule, each as COLUMN, or COLUMN=VALUE for the
            target's; or {column: value}. By default columns with usual names, such as "lr_schedule". The
            suggestion is for the target's schedule, the commonest if none is named; runs of other schedules
            have a level of their own, and an optimum that may lie elsewhere. [] to mix them.
        study: name of the Optuna study, where a storage holds several.
        diverged_above: a loss above which a run counts as diverged; by default a loss far above the others.
        build_model: `build_model(scale)` gives a `torch.nn.Module`; the suggestion then has the settings of
            each tensor at the target. HPs are named as in `space.KINDS` ("beta2" will do).
        base: the scale that base HPs refer to, where a model is given. Axes that the runs do not have stay
            as they are here.
        rule: name of the parametrization, see `parametrize`.
        alpha: exponent of the residual multiplier, see `parametrize`.
        held_out: whether to test the prediction on the largest scales, which takes two more fits.

    Raises:
        TransferError: for input that has no answer: one sentence. `RunTableError` for the table,
            `StorageError` for an address, `NoRunsError` if no run can be used, `SearchSpaceError` for an HP,
            `ScaleError` for the target, `PriorError` for the drift prior, `ParametrizationError` for the
            model.
    """
    fit = fit_runs(
        runs,
        axes,
        hps,
        loss,
        target=target,
        coordinates=coordinates,
        drift_prior=drift_prior,
        maximize=maximize,
        seed=seed,
        status=status,
        schedule=schedule,
        study=study,
        diverged_above=diverged_above,
        build_model=build_model,
        base=base,
        rule=rule,
        alpha=alpha,
    )
    return fit.suggest(held_out)
