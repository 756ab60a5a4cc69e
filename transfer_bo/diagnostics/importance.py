"""Which HPs matter at each scale, by several methods, and whether their order is the same at all scales.

The only module of the diagnostics that imports Optuna: its fANOVA and PED-ANOVA evaluators are well kept and
take a study, so one is made in memory from the runs of a scale. Scales are never mixed.

Runs of an adaptive search crowd around good values, so what is measured is importance *where the search
looked*; a sweep or random draws measure it over the whole range.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.curves import Array
from transfer_bo.diagnostics.intervals import Interval
from transfer_bo.diagnostics.relief import relief
from transfer_bo.dimension import Dimension
from transfer_bo.errors import DiagnosticError, NoRunsError
from transfer_bo.quantities import counted
from transfer_bo.records import Outcome, Run
from transfer_bo.scale import Scale

__all__ = ["METHODS", "Importance", "hp_importance", "unimportant_hps"]

Verdict = Literal["important", "minor", "undetermined", "unimportant"]
Order = Literal["stable", "changes", "undetermined"]

METHODS = ("N-RReliefF", "fANOVA", "PED-ANOVA")
"""Methods, in the order in which they are shown."""
MIN_RUNS = 10
"""Finished runs that a scale needs."""
DRAWS = {"N-RReliefF": 100, "fANOVA": 0, "PED-ANOVA": 30}
"""Bootstrap draws of the rank correlation: fANOVA grows a forest for each, which would take minutes."""
SHADOW_METHODS = ("N-RReliefF", "fANOVA")
"""Both have to find an HP unimportant: one compares neighbours, the other averages over all other HPs."""
RUNS_PER_HP = 2
"""Finished runs per HP below which none is called unimportant."""
SAME_ORDER = 0.5
"""Rank correlation between scales from which on their order of importance counts as the same."""
MIN_SHADOWS = 5
"""Shadow features, at least; for many HPs, a third as many."""


@dataclass(frozen=True)
class Importance:
    """Importance of every HP at every scale with enough runs, and how alike the scales are.

    Attributes:
        scales: The scales with enough runs, in the order in which they first occur.
        hps: The HPs that vary at all of them.
        shares: `{method: array (scales x HPs)}`, each row summing to 1.
        agreement: `{method: Spearman correlation between the scales' importances}`, mean over pairs of scales
            with a 90% bootstrap interval (fANOVA: no interval); empty with one scale.
        verdict: For each HP "important" (every method gives it more than an equal share), "minor" (none
            does), "undetermined" (the methods disagree) or "unimportant" (see `unimportant_hps`).
        left_out: Sentences about scales or HPs without a result.
    """

    scales: tuple[Scale, ...]
    hps: tuple[str, ...]
    shares: Mapping[str, Array]
    agreement: Mapping[str, Interval]
    verdict: Mapping[str, Verdict]
    left_out: tuple[str, ...]

    def table(self, method: str | None = None) -> pd.DataFrame:
        """A row per HP, a column per scale, the most important on top; without a method the mean of all."""
        shares = np.mean(list(self.shares.values()), axis=0) if method is None else self.shares[method]
        frame = pd.DataFrame(shares.T, index=list(self.hps), columns=[str(s) for s in self.scales])
        return frame.loc[frame.mean(axis=1).sort_values(ascending=False).index]

    def by_method(self) -> pd.DataFrame:
        """A row per HP, a column per method with its mean share over the scales; rows as in `table`."""
        shares = {method: of_method.mean(0) for method, of_method in self.shares.items()}
        return pd.DataFrame(shares, index=list(self.hps)).loc[self.table().index]

    @property
    def order(self) -> Order:
        """Whether all scales order HPs alike, by N-RReliefF's interval and fANOVA's value."""
        known = {method: self.agreement.get(method) for method in SHADOW_METHODS}
        relief, fanova = (known[method] for method in SHADOW_METHODS)
        if relief is None or fanova is None or math.isnan(relief.low) or math.isnan(fanova.value):
            return "undetermined"
        if relief.low > SAME_ORDER and fanova.value > SAME_ORDER:
            return "stable"
        return "changes" if relief.high < SAME_ORDER and fanova.value < SAME_ORDER else "undetermined"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a bound that is not known is null."""
        return {
            "scales": [dict(scale) for scale in self.scales],
            "shares": {
                method: [dict(zip(self.hps, map(float, row), strict=True)) for row in rows]
                for method, rows in self.shares.items()
            },
            "agreement": {
                method: {key: None if math.isnan(v) else v for key, v in interval._asdict().items()}
                for method, interval in self.agreement.items()
            },
            "order": self.order,
            "verdict": dict(self.verdict),
            "left_out": list(self.left_out),
        }


def hp_importance(
    runs: Sequence[Run],
    dimensions: Sequence[Dimension],
    seed: int = 0,
    draws: Mapping[str, int] = DRAWS,
) -> Importance:
    """Importance of HPs per scale from the finished runs.

    Args:
        runs: Runs at any scales, with any outcomes.
        dimensions: The searched HPs.
        seed: Seed of the bootstrap and of fANOVA's forest.
        draws: Bootstrap draws of the rank correlation by method; 0 for a method that is left out.

    Raises:
        NoRunsError: If no run has finished.
        DiagnosticError: If only one HP varies, or no scale has enough finished runs.
    """
    by_scale = _finished_by_scale(runs)
    if not by_scale:
        raise NoRunsError("No run has finished with a finite loss; there is nothing to diagnose.")
    if len(dimensions) < 2:
        raise _alone(dimensions)
    left_out = []
    enough = {scale: of for scale, of in by_scale.items() if len(of) >= MIN_RUNS}
    for scale, of in by_scale.items():
        if scale not in enough:
            left_out.append(f"{scale} has {counted(len(of), 'finished run')}, importance needs {MIN_RUNS}.")
    if not enough:
        most = max(map(len, by_scale.values()))
        raise DiagnosticError(
            f"Importance needs {MIN_RUNS} finished runs at one scale, but no scale has more than {most}; "
            "run more trials."
        )

    dimensions = [dim for dim in dimensions if all(_varies(dim, of) for of in enough.values())]
    if len(dimensions) < 2:
        raise _alone(dimensions)

    tables = {
        scale: _table([r for r in of if _complete(r, dimensions)], dimensions) for scale, of in enough.items()
    }
    rng = np.random.default_rng(seed)
    shares = {
        method: np.array([_METHODS[method](t, dimensions, seed) for t in tables.values()])
        for method in METHODS
    }

    agreement = {}
    if len(tables) > 1:
        for method in METHODS:
            correlations = [_agreement(shares[method])]
            for _ in range(draws.get(method, 0)):
                drawn = [t.take(rng.integers(len(t.y), size=len(t.y))) for t in tables.values()]
                of_drawn = np.array([_METHODS[method](t, dimensions, seed) for t in drawn])
                correlations.append(_agreement(of_drawn))
            known = Interval.of(np.array(correlations))
            agreement[method] = known if draws.get(method) else Interval(known.value, math.nan, math.nan)
    hps = tuple(dim.name for dim in dimensions)
    verdict = _verdicts(hps, shares, set(unimportant_hps(runs, dimensions, seed)))
    return Importance(tuple(tables), hps, shares, agreement, verdict, tuple(left_out))


def _verdicts(hps: Sequence[str], shares: Mapping[str, Array], unimportant: set[str]) -> dict[str, Verdict]:
    """One verdict for each HP from the shares of all methods, each averaged over the scales."""
    above = np.array([of_method.mean(0) > 1 / len(hps) for of_method in shares.values()])  # methods x HPs
    verdicts: dict[str, Verdict] = {}
    for hp, votes in zip(hps, above.T, strict=True):
        if hp in unimportant:
            verdicts[hp] = "unimportant"
        else:
            verdicts[hp] = "important" if votes.all() else "undetermined" if votes.any() else "minor"
    return verdicts


def unimportant_hps(
    runs: Sequence[Run], dimensions: Sequence[Dimension], seed: int = 0
) -> dict[str, dict[str, float]]:
    """HPs that matter no more than shadow features, by N-RReliefF and fANOVA alike.

    Shares of importance are never zero: noise gives every HP some. So shuffled copies of HPs are added, which
    have no influence (shadow features: Kursa & Rudnicki, J. Stat. Softw. 36(11), 2010), and an HP is
    unimportant if both methods give it no more than they give the shadow features on average. The runs are
    those of the scale with the most finished ones; scales are never mixed.

    Args:
        runs: Runs at any scales, with any outcomes.
        dimensions: The searched HPs.
        seed: Seed of the shuffles and of fANOVA's forest.

    Returns:
        `{hp: {method: its share relative to the mean of the shadow features}}` for the unimportant HPs; empty
        where the scale has less than `RUNS_PER_HP` finished runs per HP.
    """
    by_scale = _finished_by_scale(run for run in runs if _complete(run, dimensions))
    at = max(by_scale.values(), key=len, default=[])
    varying = [dim for dim in dimensions if len({run.params[dim.name] for run in at}) > 1]
    if len(varying) < 2 or len(at) < max(MIN_RUNS, RUNS_PER_HP * len(varying)):
        return {}

    table = _table(at, varying)
    rng = np.random.default_rng(seed)
    copied = rng.choice(len(varying), max(MIN_SHADOWS, len(varying) // 3))
    shadows = [replace(varying[i], name=f"shadow {n}") for n, i in enumerate(copied)]
    X = np.hstack([table.X, *[rng.permutation(table.X[:, [i]]) for i in copied]])

    relative = {}
    for method in SHADOW_METHODS:
        shares = _METHODS[method](_Table(X, table.y, table.origin), [*varying, *shadows], seed)
        relative[method] = shares[: len(varying)] / max(float(shares[len(varying) :].mean()), 1e-12)
    return {
        dim.name: {method: float(relative[method][i]) for method in SHADOW_METHODS}
        for i, dim in enumerate(varying)
        if all(relative[method][i] <= 1 for method in SHADOW_METHODS)
    }


def _varies(dim: Dimension, runs: Sequence[Run]) -> bool:
    return len({run.params[dim.name] for run in runs if dim.name in run.params}) > 1


def _alone(dimensions: Sequence[Dimension]) -> DiagnosticError:
    names = ", ".join(dim.name for dim in dimensions) or "none"
    return DiagnosticError(
        f"Importance compares HPs, but {len(dimensions)} of them varies ({names}); search two or more."
    )


@dataclass(frozen=True)
class _Table:
    """The runs of one scale: HPs in [0, 1] or as codes (m x d), losses (m), number of the run (m)."""

    X: Array
    y: Array
    origin: np.ndarray[Any, np.dtype[np.int64]]

    def take(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> _Table:
        return _Table(self.X[rows], self.y[rows], self.origin[rows])


def _finished_by_scale(runs: Iterable[Run]) -> dict[Scale, list[Run]]:
    by_scale: dict[Scale, list[Run]] = {}
    for run in runs:
        if run.outcome is Outcome.FINISHED and run.scale is not None and run.loss is not None:
            by_scale.setdefault(run.scale, []).append(run)
    return by_scale


def _complete(run: Run, dimensions: Sequence[Dimension]) -> bool:
    return all(dim.name in run.params for dim in dimensions)


def _table(runs: Sequence[Run], dimensions: Sequence[Dimension]) -> _Table:
    columns = []
    for dim in dimensions:
        values = [run.params[dim.name] for run in runs]
        if dim.transform == "categorical":
            columns.append([float(dim.choices.index(value)) for value in values])
        else:
            low, high = dim.forward(dim.low), dim.forward(dim.high)
            columns.append([(dim.forward(float(value)) - low) / (high - low) for value in values])
    losses = np.array([run.loss for run in runs], dtype=float)
    return _Table(np.array(columns).T, losses, np.arange(len(runs)))


def _agreement(shares: Array) -> float:
    """Mean Spearman correlation over pairs of scales; nan where a method sees no difference at a scale."""
    correlations = []
    for one, other in itertools.combinations(shares, 2):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            ranks = pd.DataFrame([one, other]).rank(axis=1).to_numpy()
            correlations.append(float(np.corrcoef(ranks)[0, 1]))
    return float(np.mean(correlations)) if correlations else math.nan


def _relief(table: _Table, dimensions: Sequence[Dimension], seed: int) -> Array:
    categorical = np.array([dim.transform == "categorical" for dim in dimensions])
    return relief(table.X, table.y, categorical, table.origin)


def _with_optuna(evaluator: str, table: _Table, dimensions: Sequence[Dimension], seed: int) -> Array:
    """An evaluator of Optuna on a study in memory that holds the rows of one scale."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        distributions: dict[str, Any] = {
            dim.name: optuna.distributions.CategoricalDistribution(dim.choices)
            if dim.transform == "categorical"
            else optuna.distributions.FloatDistribution(-0.5, 1.5)  # rounding may leave [0, 1]
            for dim in dimensions
        }
        for row, loss in zip(table.X, table.y, strict=True):
            params = {
                dim.name: dim.choices[int(value)] if dim.transform == "categorical" else float(value)
                for dim, value in zip(dimensions, row, strict=True)
            }
            study.add_trial(
                optuna.trial.create_trial(params=params, distributions=distributions, value=float(loss))
            )
        kinds: dict[str, Any] = {
            "fANOVA": lambda: optuna.importance.FanovaImportanceEvaluator(seed=seed),
            "PED-ANOVA": optuna.importance.PedAnovaImportanceEvaluator,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=kinds[evaluator]())
    finally:
        optuna.logging.set_verbosity(verbosity)
    return np.array([found.get(dim.name, 0.0) for dim in dimensions])


_METHODS: dict[str, Any] = {
    "N-RReliefF": _relief,
    "fANOVA": lambda *args: _with_optuna("fANOVA", *args),
    "PED-ANOVA": lambda *args: _with_optuna("PED-ANOVA", *args),
}
