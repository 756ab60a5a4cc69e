"""Tables of real training results as search problems: proxies, a target, an objective, its excess.

The tables are others' (see the README of the data folder) and are not part of the package: they are looked
for in the folder named by TRANSFER_BO_DATA, else in ../shared/data beside the checkout.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from transfer_bo import Scale

COST_UNIT = 6 * 1.07e9 * 2e10
"""What a target run costs on Step Law, FLOPs: the 1.07B / 20B cell's, whatever the target here."""

FAR_TARGETS = ("215M/100B", "268M/80B", "268M/100B", "429M/20B", "429M/23B")
"""Of ScaleBench; the third costs most, and a target run is one of it."""

STEP_OCTAVES = {"lr": 0.5, "batch_tokens": 1.0}
"""Widest step of ScaleBench's grids. A setting within half of it is answered with the row nearest to it."""

LEAST_CURVATURE = 0.005
"""Least rise of ln loss per octave² outside a grid; the cells' own quadratics have .002 to .017."""


@dataclass(frozen=True)
class Rise:
    """How ln loss goes on outside a grid: along a quadratic fitted to the grid, and never downwards.

    Attributes:
        names: HPs, all logarithmic.
        slope: gradient of the quadratic at 1, per octave.
        hessian: its second derivatives.
    """

    names: tuple[str, ...]
    slope: np.ndarray
    hessian: np.ndarray

    @classmethod
    def fit(cls, cell: pd.DataFrame, names: tuple[str, ...]) -> Rise:
        """Least squares of ln seed0 on a full quadratic in log2 of the HPs."""
        z = np.log2(cell[list(names)].to_numpy())
        pairs = [(i, j) for i in range(len(names)) for j in range(i + 1)]
        columns = [np.ones(len(z)), *z.T, *(z[:, i] * z[:, j] for i, j in pairs)]
        beta = np.linalg.lstsq(np.stack(columns, -1), np.log(cell["seed0"].to_numpy()), rcond=None)[0]
        hessian = np.zeros((len(names), len(names)))
        for (i, j), value in zip(pairs, beta[1 + len(names) :], strict=True):
            hessian[i, j] += value
            hessian[j, i] += value
        return cls(names, beta[1 : 1 + len(names)], hessian)

    def factor(self, row: pd.Series, params: Mapping[str, Any]) -> float:
        """Loss of some HPs over the loss of the row nearest to them, 1 within half a step of the grid.

        The quadratic is followed beyond that half step, but rises by LEAST_CURVATURE at least.
        """
        at = np.array([math.log2(row[name]) for name in self.names])
        half = np.array([STEP_OCTAVES[name] / 2 for name in self.names])
        away = np.array([math.log2(params[name]) for name in self.names]) - at
        beyond = away - away.clip(-half, half)
        fitted = (self.slope + self.hessian @ at) @ beyond + beyond @ self.hessian @ beyond / 2
        return math.exp(max(fitted, LEAST_CURVATURE * float(beyond @ beyond)))


@dataclass(frozen=True)
class Problem:
    """A table with proxies and a target.

    Attributes:
        name: table and target.
        proxies: scales that may be run.
        target: the scale that is judged.
        space: HP name -> Optuna distribution: what a user who knows only names and ranges would write.
        costs: of one run at each scale, in target runs.
        runs: for each scale, HP columns and one column per seed ("seed0", ...).
        relative: whether the excess is a percentage of the best loss, or a difference in points (x 100).
        budgets: at which the search is judged, in target runs.
        max_runs: most proxy runs a search may use.
        rises: for each scale, how ln loss rises outside its grid, where grids differ in their ranges.
    """

    name: str
    proxies: tuple[Scale, ...]
    target: Scale
    space: Mapping[str, BaseDistribution]
    costs: Mapping[Scale, float]
    runs: Mapping[Scale, pd.DataFrame] = field(repr=False)
    relative: bool
    budgets: tuple[float, ...]
    max_runs: int = 1000
    rises: Mapping[Scale, Rise] = field(default_factory=dict, repr=False)

    def row(self, scale: Scale, params: Mapping[str, Any]) -> int:
        """The row of a scale's table nearest to these HPs (logarithmic HPs by their ratio)."""
        table = self.runs[scale]
        distance = np.zeros(len(table))
        for name, dist in self.space.items():
            column = table[name].to_numpy()
            if isinstance(dist, CategoricalDistribution):
                distance += 1e6 * (column != params[name])
            elif dist.log:  # type: ignore[attr-defined]
                distance += np.log2(column / params[name]) ** 2
            else:
                distance += ((column - params[name]) / (dist.high - dist.low)) ** 2  # type: ignore[attr-defined]
        return int(distance.argmin())

    def observe(self, scale: Scale, params: Mapping[str, Any], rng: np.random.Generator) -> float:
        """The loss of one run: one noisy seed."""
        seeds = [column for column in self.runs[scale] if column.startswith("seed")]
        row = self.row(scale, params)
        loss = float(self.runs[scale][seeds].to_numpy()[row, rng.integers(len(seeds))])
        return loss * self._rise(scale, row, params)

    def excess_loss(self, params: Mapping[str, Any]) -> float:
        """Loss of these HPs at the target above the best there, percent or points; mean over seeds."""
        table = self.runs[self.target]
        mean = table[[column for column in table if column.startswith("seed")]].mean(axis=1).to_numpy()
        row = self.row(self.target, params)
        best, here = mean.min(), mean[row] * self._rise(self.target, row, params)
        return float(100 * (here / best - 1 if self.relative else here - best))

    def _rise(self, scale: Scale, row: int, params: Mapping[str, Any]) -> float:
        """The factor by which the loss of these HPs exceeds that of the row nearest to them."""
        return self.rises[scale].factor(self.runs[scale].iloc[row], params) if scale in self.rises else 1.0

    def true_drift(self, name: str) -> dict[str, float]:
        """Drift of an HP's optimum along each axis, octaves per doubling: least squares over all scales."""
        axes = [axis for axis in self.target if len({scale[axis] for scale in self.runs}) > 1]
        log = self.space[name].log  # type: ignore[attr-defined]
        rows, optima = [], []
        for scale, table in self.runs.items():
            mean = table[[column for column in table if column.startswith("seed")]].mean(axis=1)
            best = table.loc[
                mean.nsmallest(5).index, name
            ]  # the best five: the optimum lies between grid points
            optima.append(float(np.log2(best).mean() if log else best.mean()))
            rows.append([1.0, *(np.log2(scale[axis]) for axis in axes)])
        slopes = np.linalg.lstsq(np.array(rows), np.array(optima), rcond=None)[0][1:]
        return dict(zip(axes, slopes.tolist(), strict=True))


def find(name: str) -> Path:
    """A file of the data folder; ends the program with a sentence where there is none."""
    folder = Path(os.environ.get("TRANSFER_BO_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / name
    if not path.exists():
        sys.exit(f"{name} is not in {folder}; set TRANSFER_BO_DATA to the folder that holds the tables.")
    return path


@cache
def problems(family: str) -> tuple[Problem, ...]:
    """All problems of a family, one of FAMILIES; read once."""
    return tuple(FAMILIES[family]())


def _log(low: float, high: float) -> FloatDistribution:
    return FloatDistribution(low, high, log=True)


def _steplaw() -> Iterator[Problem]:
    """Six proxy cells (N <= 268M, D <= 25B); the larger cells in the folder are the targets.

    Learning rates that every cell was run with: elsewhere `Problem.row` would answer with a run of another
    rate, and a search would see a loss that does not change with it.
    """
    table = pd.read_csv(find("steplaw_dense_small.csv"))
    table["lr"], table["seed0"] = table["lr_grid"], table["loss"]
    cells = {
        Scale(n_params=n, tokens=d): cell.reset_index(drop=True)
        for (n, d), cell in table.groupby(["n_params", "tokens"])
    }
    low = max(cell["lr"].min() for cell in cells.values())
    high = min(cell["lr"].max() for cell in cells.values())
    proxies = tuple(s for s in cells if s.n_params < 3e8 and s.tokens <= 2.5e10)
    for target in cells:
        if target not in proxies:
            yield Problem(
                f"steplaw {target.n_params / 1e6:.0f}M/{target.tokens / 1e9:.0f}B",
                proxies,
                target,
                {"lr": _log(low, high), "batch_tokens": _log(2**16, 2**22)},
                {s: 6 * float(s.n_params) * s.tokens / COST_UNIT for s in cells},
                cells,
                relative=True,
                budgets=(0.15, 0.3, 0.5, 1.0),
            )


def _scalebench() -> Iterator[Problem]:
    """Far transfer: nine proxy cells (N <= 215M, D <= 8B), targets of up to 17 times the largest one's cost.

    The ranges are those of all cells together. Cells were run with different ones, so a setting outside a
    cell's grid gets the loss of the nearest row and a rise (`Rise`).
    """
    table = pd.read_csv(find("scalebench_small.csv"))
    table["seed0"] = table["loss"]
    cells = {
        Scale(n_params=n, tokens=d): cell.reset_index(drop=True)
        for (n, d), cell in table.groupby(["n_params", "tokens"])
    }
    names = ("lr", "batch_tokens")
    proxies = tuple(s for s in cells if s.n_params < 2.2e8 and s.tokens <= 8e9)
    flops = {s: 6 * float(s.n_params) * s.tokens for s in cells}
    targets = {f"{s.n_params / 1e6:.0f}M/{s.tokens / 1e9:.0f}B": s for s in cells}
    unit = max(flops[targets[name]] for name in FAR_TARGETS)
    rises = {s: Rise.fit(cell, names) for s, cell in cells.items()}
    for name in FAR_TARGETS:
        yield Problem(
            f"scalebench {name}",
            proxies,
            targets[name],
            {hp: _log(table[hp].min(), table[hp].max()) for hp in names},
            {s: cost / unit for s, cost in flops.items()},
            cells,
            relative=True,
            budgets=(0.01, 0.03, 0.1, 0.4),
            rises=rises,
        )


def _moe() -> Iterator[Problem]:
    """For each sparsity: the two shorter runs are proxies, the longest is the target."""
    table = pd.read_csv(find("steplaw_moe_sparse.csv"))
    table["lr"], table["seed0"] = table["lr_grid"], table["loss"]
    for name, group in table.groupby("moe_name"):
        cells = {Scale(tokens=d): cell.reset_index(drop=True) for d, cell in group.groupby("tokens")}
        *proxies, target = sorted(cells, key=lambda s: s.tokens)
        yield Problem(
            f"moe {name}",
            tuple(proxies),
            target,
            {
                "lr": _log(table["lr"].min(), table["lr"].max()),
                "batch_tokens": _log(table["batch_tokens"].min(), table["batch_tokens"].max()),
            },
            {s: s.tokens / target.tokens for s in cells},
            cells,
            relative=True,
            budgets=(0.5, 1.0),
        )


def _widths(name: str, metric: str) -> dict[Scale, pd.DataFrame]:
    """A table by width; the columns that begin with `metric` are seeds."""
    table = pd.read_csv(find(name)).rename(columns=lambda column: column.replace(metric, "seed"))
    return {Scale(width=w): cell.reset_index(drop=True) for w, cell in table.groupby("width")}


def _fcnet(names: Sequence[str], step: float | None = None) -> Iterator[Problem]:
    """Regression networks: widths up to 64 are proxies of width 512.

    Args:
        names: tables.
        step: between the levels of dropout, .3 in all tables; None if the user does not declare it.
    """
    for name in names:
        cells = _widths(f"fcnet_square_{name}.csv.gz", "val_mse_s")
        params = {s: float(cell["n_params"].iloc[0]) for s, cell in cells.items()}
        target = Scale(width=512)
        yield Problem(
            f"fcnet {name}" if step is None else f"fcnet {name}, levels declared",
            tuple(s for s in cells if s.width <= 64),
            target,
            {
                "init_lr": _log(5e-4, 0.1),
                "batch_size": IntDistribution(8, 64, log=True),
                "dropout_1": FloatDistribution(0.0, 0.6, step=step),
                "dropout_2": FloatDistribution(0.0, 0.6, step=step),
                "activation_fn_1": CategoricalDistribution(["tanh", "relu"]),
                "activation_fn_2": CategoricalDistribution(["tanh", "relu"]),
                "lr_schedule": CategoricalDistribution(["const", "cosine"]),
            },
            {s: count / params[target] for s, count in params.items()},
            cells,
            relative=True,
            budgets=(1.0,),
            max_runs=100,
        )


def _hpobench(names: Sequence[str]) -> Iterator[Problem]:
    """Classifiers: widths up to 101 are proxies of width 1024."""
    for name in names:
        cells = _widths(f"hpobench_nn_{name}.csv.gz", "val_err_s")
        target = Scale(width=1024)
        yield Problem(
            f"hpobench {name}",
            tuple(s for s in cells if s.width <= 101),
            target,
            {
                "learning_rate_init": _log(1e-5, 1.0),
                "batch_size": IntDistribution(4, 256, log=True),
                "alpha": _log(1e-8, 1.0),
                "depth": IntDistribution(1, 3),
            },
            {s: (s.width / target.width) ** 2 for s in cells},
            cells,
            relative=False,
            budgets=(1.0,),
            max_runs=100,
        )


FAMILIES = {
    "steplaw": _steplaw,
    "scalebench": _scalebench,
    "moe": _moe,
    "fcnet": partial(_fcnet, ("protein_structure", "parkinsons_telemonitoring")),
    "fcnet_levels": partial(_fcnet, ("protein_structure", "parkinsons_telemonitoring"), 0.3),
    "naval": partial(_fcnet, ("naval_propulsion",)),
    "naval_levels": partial(_fcnet, ("naval_propulsion",), 0.3),
    "hpobench": partial(_hpobench, ("phoneme", "kc1")),
    "segment": partial(_hpobench, ("segment",)),
}
