"""What to suggest after a search, on tables where noise is as large as the bowl: four rules, the same runs.

    python studies/stacking/compare.py searches naval_levels segment --seeds 3   # runs, into cache/
    python studies/stacking/compare.py rules                                     # appends rows to rules.csv
    python studies/stacking/compare.py table

Rules, each applied to the first runs of a search:
    minimum           the setting with the least expected loss
    stable            a finished run, moved to the target, where it is as good within the noise (MAX_LOSS)
    stacked           the minimum of the expected loss averaged with that of a Matérn process without a bowl,
                      weighted by leave-one-out predictive densities (Yao et al. 1704.02030)
    stacked, stable   both

Where a row is missing, the same command goes on. Excess at the target in 100 ln (regression, losses over
decades), points (classifiers) or percent (Step Law).
"""

from __future__ import annotations

import argparse
import csv
import math
import pickle
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import pandas as pd
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from searches import transfer_study
from table_search import bootstrap
from tables import problems

from transfer_bo.projection.study import fit_study
from transfer_bo.surrogate import recommendation
from transfer_bo.surrogate.expected_loss import ExpectedLoss
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import matern, squared_distances
from transfer_bo.surrogate.posterior_sampling import sample_posterior
from transfer_bo.surrogate.surrogate import fit_surrogate

HERE = Path(__file__).parent
CACHE = HERE / "cache"
ROWS = HERE / "rules.csv"
FIELDS = ["problem", "seed", "runs", "rule", "excess", "weight"]
BUDGETS = {"steplaw": 0.5}
"""Target runs of a search; 1 where none is named."""

RULES = ("minimum", "stable", "stacked", "stacked, stable")
COUNTS = (75, 100)
"""After so many runs a suggestion is made, or after all if there are fewer."""

PRIOR = (10.0, 2.0)
"""Beta prior of the surrogate's weight: .9 without evidence."""

MIN_RUNS = 12
"""Fewer runs have no second model."""

MAX_LOSS = 0.25
"""A run may be expected to lose less than this share of the noise."""

CHOOSE = recommendation._choose


@dataclass(frozen=True, eq=False)
class Matern:
    """BoTorch's SingleTaskGP with a Matérn-5/2 kernel, written out: the same priors, fitted in .1 s.

    Its inputs are the HPs from the fitted optimum of their scale and the scale, as shares of their ranges,
    and categories; its outputs losses above the fitted loss law.
    """

    gp: LandscapeGP
    inputs: Tensor
    lengthscale: Tensor
    variance: float
    weights: Tensor
    half_precision: Tensor
    log_densities: Tensor

    @classmethod
    def fit(cls, gp: LandscapeGP) -> Matern:
        """Fit to all runs of a surrogate without source studies."""
        _, _, s = gp.landscape.split(gp.X)
        y = gp.y - gp.failure - gp.landscape.law(gp.theta, s)
        spread = max(float(y.std()), 1e-9)
        inputs, y = matern_inputs(gp, gp.X).detach(), (y - y.mean()) / spread
        n, c = inputs.shape
        usual = math.sqrt(2.0) + math.log(c) / 2  # Hvarfner et al. 2402.02229

        def covariance(at: Tensor) -> Tensor:
            scaled = inputs / at[:c].exp()
            return at[c].exp() * matern(squared_distances(scaled, scaled)) + at[c + 1].exp() * torch.eye(n)

        def value_and_gradient(at: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.tensor(at, requires_grad=True)
            chol = torch.linalg.cholesky(covariance(point))
            whitened = torch.linalg.solve_triangular(chol, (y - point[-1])[:, None], upper=False)
            prior = (point[:c] - usual).square().sum() / 3 + (point[c + 1] + 4) ** 2
            value = 0.5 * (whitened.square().sum() + prior + point[c] ** 2 + point[-1] ** 2)
            value = value + chol.diagonal().log().sum()
            (gradient,) = torch.autograd.grad(value, point)
            return float(value.detach()), gradient.numpy()

        bounds = [(math.log(0.1), math.log(100.0))] * c + [(-4.0, 4.0), (-9.0, 1.4), (-3.0, 3.0)]
        start = np.array([0.0] * (c + 1) + [math.log(0.1), 0.0])
        found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds)
        at = torch.tensor(found.x)

        chol = torch.linalg.cholesky(covariance(at))
        half = torch.linalg.solve_triangular(chol, torch.eye(n, dtype=torch.double), upper=False).T
        weights = half @ (half.T @ (y - at[-1]))
        left_out = 1 / half.square().sum(-1)
        densities = -0.5 * (left_out * weights**2 + torch.log(2 * math.pi * left_out * spread**2))
        variance = float(at[c].exp()) * spread**2
        return cls(gp, inputs, at[:c].exp(), variance, weights / spread, half / spread, densities)

    def values(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, but for a constant, and sd at rows."""
        x = matern_inputs(self.gp, X) / self.lengthscale
        K = self.variance * matern(squared_distances(x, self.inputs / self.lengthscale))
        variance = self.variance - (K @ self.half_precision).square().sum(-1)
        return K @ self.weights, variance.clamp(min=1e-12).sqrt()


def matern_inputs(gp: LandscapeGP, X: Tensor) -> Tensor:
    """HPs from the optimum of their scale, categories and the scale."""
    coordinates = gp.landscape.coordinates
    ranges = torch.cat([coordinates.z_high - coordinates.z_low, torch.ones(coordinates.k)])
    doublings = gp.landscape.split(gp.X)[2].abs().amax(0).clamp(min=1.0)
    return torch.cat([gp.kernel.residual_inputs(X) / ranges, gp.landscape.split(X)[2] / doublings], -1)


def stacking_weight(first: Tensor, second: Tensor) -> float:
    """The weight of the first of two models: argmax Σ ln(w p1 + (1-w) p2) + ln prior(w), concave in w."""
    ratio = torch.exp((second - first).clamp(-30.0, 30.0))
    a, b = PRIOR

    def slope(w: float) -> float:
        return float(((1 - ratio) / (w + (1 - w) * ratio)).sum()) + (a - 1) / w - (b - 1) / (1 - w)

    return float(brentq(slope, 1e-9, 1 - 1e-9))


@dataclass(frozen=True, eq=False)
class StackedLoss(ExpectedLoss):
    """The expected loss under both models."""

    second: Matern | None = None
    weight: float = 1.0

    def __call__(self, v: Tensor, flags: Tensor) -> Tensor:
        """The expected loss in y."""
        first = super().__call__(v, flags)
        if self.second is None:
            return first
        mean, sd = self.second.values(self.surrogate.rows(v, self.scale, flags))
        return self.weight * first + (1 - self.weight) * (mean + self.caution * sd)


def log_densities(gp: LandscapeGP) -> Tensor:
    """Log density of each run's y under the surrogate, predicted from all others."""
    precision = torch.linalg.inv(gp.kernel.covariance(gp.X, gp.X) + torch.diag(gp.run_noise))
    left_out = 1 / precision.diagonal()
    error = left_out * (precision @ (gp.y - gp.kernel.linearised_mean(gp.X)))
    variance = left_out - gp.run_noise + gp.noise(gp.X) + gp.failure**2
    return -0.5 * (error**2 / variance + torch.log(2 * math.pi * variance))


def choose_run(expected: ExpectedLoss, own: Any, *others: Any) -> recommendation.Recommendation:
    """`recommendation._choose`, but a moved run takes the place of the minimum where it is as good."""
    surrogate, coordinates = expected.surrogate, expected.surrogate.coordinates
    landscape = surrogate.landscape
    with torch.no_grad():
        v, flags, s = landscape.split(torch.stack([surrogate.row(run) for run in surrogate.runs]))
        path = [landscape.path(surrogate.theta, at) for at in (s, coordinates.s(expected.scale))]
        frozen, frozen_flags = recommendation._frozen(coordinates, own.exact)
        z = coordinates.clip_z((v - path[0] + path[1]) @ coordinates.unmix.T)
        v = torch.where(frozen.isnan(), z, frozen) @ coordinates.mix.T
        flags = torch.where(frozen_flags.isnan(), flags, frozen_flags)
        losses = expected(torch.cat([own.v[None], v]), torch.cat([own.flags[None], flags]))

    best = int(losses[1:].argmin())
    if float(losses[1 + best] - losses[0]) < MAX_LOSS * float(surrogate.model.hyperparameters.noise_sd):
        own = replace(own, v=v[best], flags=flags[best])
    return CHOOSE(expected, own, *others)


def search(family: str, index: int, seed: int) -> None:
    """One search; its runs go into the cache."""
    path = CACHE / f"{family}-{index}-{seed}.pkl"
    if path.exists():
        return
    fitted = fit_study(transfer_study(problems(family)[index], BUDGETS.get(family, 1.0), seed))
    coordinates = fitted.surrogate.coordinates
    known = {
        "family": family,
        "index": index,
        "seed": seed,
        "runs": fitted.runs,
        "dims": [*coordinates.numeric, *coordinates.categorical],
        "settings": fitted.settings,
    }
    path.write_bytes(pickle.dumps(known))


def rules(path: Path, done: set[tuple[str, ...]]) -> list[list[object]]:
    """The rows of one search that are missing."""
    known = pickle.loads(path.read_bytes())
    problem, seed, settings = problems(known["family"])[known["index"]], known["seed"], known["settings"]
    rows: list[list[object]] = []
    for count in sorted({min(count, len(known["runs"])) for count in COUNTS}):
        missing = [r for r in RULES if (problem.name, str(seed), str(count), r) not in done]
        if not missing:
            continue
        surrogate = fit_surrogate(known["runs"][:count], known["dims"], settings)
        samples = sample_posterior(surrogate.model, settings.seed)
        second, weight = None, 1.0
        if count >= MIN_RUNS:
            second = Matern.fit(surrogate.model)
            first = log_densities(surrogate.model)
            learnt = surrogate.model.failure == 0
            weight = stacking_weight(first[learnt], second.log_densities[learnt])

        for rule in missing:
            stacked = {"second": second, "weight": weight} if "stacked" in rule else {}
            with (
                patch.object(recommendation, "_choose", choose_run if "stable" in rule else CHOOSE),
                patch.object(
                    recommendation, "ExpectedLoss", lambda *args, s=stacked: StackedLoss(*args, **s)
                ),
            ):
                generator = torch.Generator().manual_seed(settings.seed)
                found = recommendation.recommend(surrogate, settings.target, samples, generator)
            excess = problem.excess_loss(found.params)
            if problem.name.startswith("fcnet"):
                excess = 100 * math.log1p(excess / 100)
            rows.append([problem.name, seed, count, rule, f"{excess:.4f}", f"{weight:.3f}"])
    return rows


def table() -> None:
    """Mean excess of each rule, and its paired difference from the minimum with a 90% interval over seeds."""
    data = pd.read_csv(ROWS)
    data["problem"] = data["problem"].str.replace(r"^steplaw.*", "steplaw", regex=True)
    for problem, group in data.groupby("problem"):
        by_rule = group.pivot_table(index=["seed", "runs"], columns="rule", values="excess", aggfunc="mean")
        print(f"{problem}, {group.seed.nunique()} seeds, weight {group.weight.mean():.2f}")
        for rule in [rule for rule in RULES if rule in by_rule]:
            gap = (by_rule[rule] - by_rule["minimum"]).dropna().groupby("seed").mean().to_numpy()
            swing = by_rule[rule].unstack().diff(axis=1).abs().mean(axis=1).mean()
            low, high = bootstrap(gap)
            print(
                f"    {rule:16} {by_rule[rule].mean():8.3f}   {gap.mean():+8.3f} ({low:+.3f} to {high:+.3f})"
                f"   swing {swing:.3f}"
            )


def main() -> None:
    """Searches, rules or the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["searches", "rules", "table"])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.double)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if args.what == "table":
        return table()
    CACHE.mkdir(exist_ok=True)
    if args.what == "searches":
        for seed in range(args.seeds):
            for family in args.families:
                for index in range(len(problems(family))):
                    search(family, index, seed)
        return None

    done = set(map(tuple, pd.read_csv(ROWS, dtype=str)[FIELDS[:4]].to_numpy())) if ROWS.exists() else set()
    with ROWS.open("a", newline="", buffering=1) as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(FIELDS)
        for path in sorted(CACHE.glob("*.pkl")):
            writer.writerows(rules(path, done))
    return None


if __name__ == "__main__":
    main()
