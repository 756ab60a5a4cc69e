"""Three numbers for how well a parametrization transfers: E, κ and R(∞) of arXiv:2605.21486, with intervals.

Symbols: n size, η the HP (a learning rate), z = log2 η, L(n, η) the loss, * the optimum.

The paper's idea and its code's κ are known, the printed formulas of E and R(∞) are not, so what is computed
here is stated in full:

    joint law   L(n, η) = L∞ + A n^-α + ½ h n^g (z - z*(n))²,    z*(n) = z₁ - β log2 n
    E           root mean square of ln L - ln(law) over the points within `LOSS_FILTER` of their size's best
                loss: how well one law describes all sizes. Relative, so that tasks compare
    κ           α - 2β + γ = α + g, as in the authors' code: with curvature ∝ n^γ in η itself, g = γ - 2β
                is its exponent in octaves. A fixed relative error of η costs a share ∝ n^κ of the
                reducible loss: κ < 0 means that errors matter less with size. α comes from the best losses,
                g and β from curvature and place of the bowls' lowest points
    R(∞)        L∞ of this parametrization minus the lowest L∞ among those compared, in the loss's unit: what
                the parametrization costs however large the model. Only differences have a meaning

The guide lines of the paper's figures are E = .01, κ = 0, R(∞) = .1. In its own data κ jumps from -3.4 to +.6
between neighbouring weight decays: it is the least certain of the three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.diagnostics.curves import Array, Sweep, read_sweep
from transfer_bo.diagnostics.intervals import Interval
from transfer_bo.diagnostics.laws import exponent_interval, fit_law, least_exponent
from transfer_bo.errors import DiagnosticError
from transfer_bo.quantities import counted

__all__ = [
    "TransferMetrics",
    "compare_parametrizations",
    "metric_draws",
    "metrics_table",
    "transfer_metrics",
]

MIN_SIZES = 3
"""Sizes that the joint law needs."""


@dataclass(frozen=True)
class TransferMetrics:
    """The metrics of one parametrization, with 90% intervals.

    Attributes:
        name: Name of the parametrization.
        fit_error: E.
        kappa: κ = α - 2β + γ.
        alpha: Exponent of the reducible loss, ∝ n^-α.
        beta: Exponent of the optimum, η* ∝ n^-β.
        gamma: Exponent of the curvature in η, ∝ n^γ.
        limit: L∞.
        penalty: R(∞) against the best of the parametrizations compared; zero when alone.
        sizes: Number of sizes that the fit rests on.
    """

    name: str
    fit_error: Interval
    kappa: Interval
    alpha: Interval
    beta: Interval
    gamma: Interval
    limit: Interval
    penalty: Interval
    sizes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; intervals as {"value", "low", "high"}."""
        numbers = ("fit_error", "kappa", "alpha", "beta", "gamma", "limit", "penalty")
        return {
            "name": self.name,
            "sizes": self.sizes,
            **{number: getattr(self, number)._asdict() for number in numbers},
        }


def transfer_metrics(
    sweeps: Mapping[str, Sweep], draws: int = 400, seed: int = 0
) -> dict[str, TransferMetrics]:
    """E, κ and R(∞) of each parametrization.

    Args:
        sweeps: Sweeps by the parametrization's name, each of the same HP over at least three finite sizes.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        DiagnosticError: If a sweep has fewer than three sizes.
    """
    for name, sweep in sweeps.items():
        if len(sweep.sizes) < MIN_SIZES:
            raise DiagnosticError(
                f"{name!r} has {counted(len(sweep.sizes), 'size')} with a usable curve, but its law has "
                "three unknowns; "
                f"sweep {sweep.hp!r} at {MIN_SIZES} or more sizes."
            )

    least = {name: least_exponent(s.sizes, s.optima(0).loss[0]) for name, s in sweeps.items()}
    parts = {name: metric_draws(sweep, draws, seed + i) for i, (name, sweep) in enumerate(sweeps.items())}
    # The lowest limit of each draw, so that R(∞) is never below zero.
    lowest = np.min([part["limit"] for part in parts.values()], axis=0)
    return {
        name: TransferMetrics(
            name=name,
            **_intervals(part, least[name]),
            penalty=Interval.of(part["limit"] - lowest),
            sizes=len(sweeps[name].sizes),
        )
        for name, part in parts.items()
    }


def _intervals(part: Mapping[str, Array], least: float) -> dict[str, Interval]:
    """Each number with its interval; κ is undetermined where α is, and as uncertain from finite sizes."""
    found = {key: Interval.of(values) for key, values in part.items()}
    found["alpha"] = exponent_interval(part["alpha"], least=least)
    # Draws have noise about the fitted curves, of which the measured losses may have less.
    error, low, high = found["fit_error"]
    found["fit_error"] = Interval(error, min(low, error), max(high, error))

    value, low, high = found["kappa"]
    found["kappa"] = Interval(value, min(low, value + least - found["alpha"].value), high)
    if np.isnan(found["alpha"].value):
        found["kappa"] = Interval(np.nan, np.nan, np.nan)
    return found


def metric_draws(sweep: Sweep, draws: int, seed: int) -> dict[str, Array]:
    """Each number, such as "fit_error", for the fit (first) and for bootstrap draws of the sweep (B + 1)."""
    optima = sweep.optima(draws, seed)
    n = sweep.sizes
    octaves = np.log2(n)
    law = fit_law(n, optima.loss)
    beta = -_slope(octaves, optima.z)
    # In octaves: H η² ∝ n^(γ - 2β). A flat or upward bent draw has no exponent.
    with np.errstate(divide="ignore", invalid="ignore"):
        g = _slope(octaves, np.log2(np.where(optima.curvature > 0, optima.curvature, np.nan)))
    return {
        "fit_error": np.array([_fit_error(sweep, y) for y in zip(*sweep.drawn(draws, seed), strict=True)]),
        "kappa": law.exponent + g,
        "alpha": law.exponent,
        "beta": beta,
        "gamma": g + 2 * beta,
        "limit": law.limit,
    }


def _slope(x: Array, y: Array) -> Array:
    """Least-squares slope of each row of y (B x S) over x (S)."""
    centred = x - x.mean()
    return np.asarray(y @ centred / (centred @ centred))


def _fit_error(sweep: Sweep, y: Sequence[Array]) -> float:
    """E: fit the joint law to losses y (one array per size) and return its relative root mean square error.

    Given α, z₁, β and g the law is linear in L∞, A and h. The four are found from the shape of the curves, by
    Nelder and Mead's method from the values that separate fits give.
    """
    from scipy.optimize import minimize

    n = np.concatenate([np.full(len(c.z), c.size) for c in sweep.curves])
    z = np.concatenate([c.z for c in sweep.curves])
    losses = np.concatenate(y)
    doublings = np.log2(n / n[0])

    def design(theta: Array) -> Array:
        alpha, at, beta, g = theta
        bowl = 0.5 * np.exp2(np.clip(g * doublings, -60, 60)) * (z - at + beta * doublings) ** 2
        return np.column_stack([np.ones(len(n)), np.exp2(-abs(alpha) * doublings), bowl])

    def error(theta: Array) -> float:
        # Least squares of law / loss - 1, which is ln law - ln loss to first order.
        columns = design(theta) / losses[:, None]
        coefficients, *_ = np.linalg.lstsq(columns, np.ones(len(n)), rcond=None)
        return float(np.sqrt(np.mean((columns @ coefficients - 1) ** 2)))

    best = [float(c.z[int(np.argmin(of_size))]) for c, of_size in zip(sweep.curves, y, strict=True)]
    octaves = np.log2(sweep.sizes / sweep.sizes[0])
    slope, at = np.polyfit(octaves, best, 1)
    start = np.array([0.5, at, -slope, 0.0])
    simplex = np.vstack([start, start + np.diag([0.5, 1.0, 0.3, 0.3])])
    found = minimize(
        error, start, method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-7, "maxiter": 800},
    )  # fmt: skip
    return float(found.fun)


def compare_parametrizations(
    frame: pd.DataFrame,
    *,
    name: str = "parametrization",
    size: str = "width",
    hp: str = "lr",
    loss: str = "loss",
    draws: int = 100,
    seed: int = 0,
) -> dict[str, TransferMetrics]:
    """The metrics of every parametrization in one table of runs.

    Args:
        frame: A row per run.
        name: Column of the parametrization.
        size: Column of the size that grows; it must be the only scale axis that does.
        hp: Column of the HP.
        loss: Column of the loss.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        DiagnosticError: For a missing column, or a parametrization with too few sizes or points.
    """
    if name not in frame:
        known = ", ".join(map(str, frame.columns))
        raise DiagnosticError(f"The table has no column {name!r}; it has {known}.")
    sweeps = {}
    for of, rows in frame.groupby(name, sort=False):
        try:
            sweeps[str(of)] = read_sweep(rows, size=size, hp=hp, loss=loss)
        except DiagnosticError as error:
            raise DiagnosticError(f"{name} {of!r}: {error}") from None
    if not sweeps:
        raise DiagnosticError("The table has no rows; there is nothing to compare.")
    return transfer_metrics(sweeps, draws, seed)


def metrics_table(metrics: Mapping[str, TransferMetrics]) -> pd.DataFrame:
    """A row per parametrization with E, κ and R(∞) as text, the smallest E first."""
    ordered = sorted(metrics.values(), key=lambda m: m.fit_error.value)
    return pd.DataFrame(
        {
            "parametrization": [m.name for m in ordered],
            "E": [m.fit_error.text(".4f") for m in ordered],
            "kappa": [m.kappa.text("+.2f") for m in ordered],
            "R(inf)": [m.penalty.text(".3f") for m in ordered],
            "beta": [m.beta.text("+.2f") for m in ordered],
        }
    )
