"""Ways to choose HPs for the target: this package and its rivals, each given a problem, a budget and a seed.

Every rival sees one noisy seed per run, like the package does. A budget is in target runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from tables import Problem

import transfer_bo as tb
from transfer_bo.run_table.published_laws import LAWS, Law
from transfer_bo.synonyms import hp_kind

Params = dict[str, Any]
Search = Callable[[Problem, float, int], Params]


def transfer(problem: Problem, budget: float, seed: int, **options: Any) -> Params:
    """This package: `transfer_study`, then `tb.suggest`."""
    return tb.suggest(transfer_study(problem, budget, seed, **options)).params


def transfer_study(problem: Problem, budget: float, seed: int, **options: Any) -> optuna.Study:
    """A search with `TransferSampler` on the proxies, in raw coordinates, without defaults."""
    rng = np.random.default_rng([seed, 1])
    ladder = tb.Ladder(problem.proxies)
    sampler = tb.TransferSampler(
        ladder=ladder,
        target=problem.target,
        cost=lambda scale: problem.costs[scale],
        budget=budget,
        coordinates="raw",
        seed=seed,
        **options,
    )
    study = optuna.create_study(sampler=sampler)

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        return problem.observe(scale, _ask(trial, problem), rng)

    study.optimize(objective, n_trials=problem.max_runs)
    return study


def _scaled_prior(problem: Problem, mean: float, spread: float) -> dict[str, Any]:
    """The package's own drift prior with its spread multiplied and its means moved by so many spreads."""
    from transfer_bo.surrogate.priors import drift_prior

    free = any(hp_kind(name) == "batch" for name in problem.space)
    axes = [axis for axis in problem.target if len({scale[axis] for scale in problem.runs}) > 1]
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name in problem.space:
        for axis in axes:
            m, sd = drift_prior(name, axis, "raw", batch_free=free)
            table.setdefault(name, {})[axis] = (m + mean * sd, spread * sd)
    return {"drift_prior": table}


def _with_prior(mean: float, spread: float) -> Search:
    return lambda problem, budget, seed: transfer(
        problem, budget, seed, **_scaled_prior(problem, mean, spread)
    )


def random_target(problem: Problem, budget: float, seed: int) -> Params:
    """Random search at the target: the best of as many runs as the budget buys (at least one)."""
    return _at_target(lambda s: optuna.samplers.RandomSampler(seed=s), problem, budget, seed)


def tpe_target(problem: Problem, budget: float, seed: int) -> Params:
    """Optuna's TPE at the target."""
    return _at_target(_tpe, problem, budget, seed)


def gp_target(problem: Problem, budget: float, seed: int) -> Params:
    """Optuna's GPSampler at the target."""
    return _at_target(_gp, problem, budget, seed)


def middle(problem: Problem, budget: float, seed: int) -> Params:
    """No run at all: the middle of each range, the first of each choice."""
    return {
        name: dist.choices[0]
        if isinstance(dist, optuna.distributions.CategoricalDistribution)
        else math.sqrt(dist.low * dist.high)  # type: ignore[attr-defined]
        if dist.log  # type: ignore[attr-defined]
        else (dist.low + dist.high) / 2  # type: ignore[attr-defined]
        for name, dist in problem.space.items()
    }


def gp_copy(problem: Problem, budget: float, seed: int) -> Params:
    """GPSampler on the smallest proxy for the whole budget (at most 32 runs); its best run copied."""
    return _best_on_smallest(_gp, problem, budget, seed)


def tpe_copy(problem: Problem, budget: float, seed: int) -> Params:
    """TPE on the smallest proxy, likewise."""
    return _best_on_smallest(_tpe, problem, budget, seed)


def _gp_with_exponents(law: str) -> Search:
    """GPSampler on the smallest proxy; its best run moved to the target by a law's exponents."""

    def search(problem: Problem, budget: float, seed: int) -> Params:
        smallest = min(problem.proxies, key=lambda s: problem.costs[s])
        params = gp_copy(problem, budget, seed)
        for name, value in params.items():
            one = _law(law, name)
            params[name] = value * one.growth(problem.target) / one.growth(smallest)
        return params

    return search


def step_law(problem: Problem, budget: float, seed: int) -> Params:
    """No run: Step Law's own formula, which was fitted on these very tables."""
    laws = {name: _law("Step Law", name) for name in problem.space}
    return {name: (law.coefficient or 1.0) * law.growth(problem.target) for name, law in laws.items()}


def _law(law: str, hp: str) -> Law:
    return next(one for one in LAWS if (one.name, one.hp) == (law, hp_kind(hp)))


_FOUND: dict[tuple[object, ...], Params] = {}
"""Searches that do not depend on the target: problems that share their tables share them."""


def _best_on_smallest(
    make: Callable[[int], optuna.samplers.BaseSampler], problem: Problem, budget: float, seed: int
) -> Params:
    smallest = min(problem.proxies, key=lambda s: problem.costs[s])
    runs = min(32, problem.max_runs, max(1, int(budget / problem.costs[smallest] + 1e-9)))
    key = (make, id(problem.runs), runs, seed)
    if key not in _FOUND:
        _FOUND[key] = dict(_direct(make, problem, smallest, runs, seed).best_params)
    return dict(_FOUND[key])


def gp_copy_slope(problem: Problem, budget: float, seed: int) -> Params:
    """GPSampler at the two most distant proxies, half the budget each; a line through both in log cost.

    The power law that people draw through the optima of two sizes (at most 32 runs at each); a categorical HP
    is copied. The budget must pay for a run at each.
    """
    ends = (
        min(problem.proxies, key=lambda s: problem.costs[s]),
        max(problem.proxies, key=lambda s: problem.costs[s]),
    )
    best = []
    for scale in ends:
        runs = min(32, problem.max_runs // 2, max(1, int(budget / 2 / problem.costs[scale] + 1e-9)))
        best.append(dict(_direct(_gp, problem, scale, runs, seed).best_params))
    low, high, at = (math.log(problem.costs[s]) for s in (*ends, problem.target))
    return _line(problem, best[0], best[1], (at - low) / (high - low))


def _line(problem: Problem, first: Params, second: Params, share: float) -> Params:
    params: Params = {}
    for name, dist in problem.space.items():
        if isinstance(dist, optuna.distributions.CategoricalDistribution):
            params[name] = second[name]
            continue
        to, back = (math.log, math.exp) if dist.log else (float, float)  # type: ignore[attr-defined]
        value = back(to(first[name]) + share * (to(second[name]) - to(first[name])))
        params[name] = min(max(value, dist.low), dist.high)  # type: ignore[attr-defined]
    return params


def pooled_quadratic(problem: Problem, budget: float, seed: int) -> Params:
    """Random proxy runs; one quadratic in all HPs whose optimum is linear in the log axes, least squares."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    rows, losses = _random_proxy_runs(
        study, problem, budget, np.random.default_rng([seed, 3]), problem.max_runs
    )
    names = [n for n, d in problem.space.items() if not hasattr(d, "choices")]
    to = {n: math.log2 if problem.space[n].log else float for n in names}  # type: ignore[attr-defined]
    axes = [a for a in problem.target if len({s[a] for s in problem.runs}) > 1]
    z = np.array([[to[n](p[n]) for n in names] for p, _ in rows])
    s = np.array([[math.log2(scale[a]) for a in axes] for _, scale in rows])
    centre_z, centre_s = z.mean(0), s.mean(0)
    z, s = z - centre_z, s - centre_s
    columns = [np.ones((len(z), 1)), s, z, z**2]
    columns += [z[:, [i]] * z[:, [j]] for i in range(len(names)) for j in range(i)]
    columns += [z[:, [i]] * s[:, [j]] for i in range(len(names)) for j in range(len(axes))]
    beta = np.linalg.lstsq(np.hstack(columns), np.array(losses), rcond=None)[0]
    at = np.array([math.log2(problem.target[a]) for a in axes]) - centre_s
    d, k = len(names), 1 + len(axes)
    gradient, H = beta[k : k + d].copy(), np.diag(2 * beta[k + d : k + 2 * d])
    k += 2 * d
    for i in range(d):
        for j in range(i):
            H[i, j] = H[j, i] = beta[k]
            k += 1
    gradient += beta[k:].reshape(d, len(axes)) @ at
    best = min(zip(losses, rows, strict=True), key=lambda pair: pair[0])[1][0]
    params = dict(best)
    optimum = np.linalg.lstsq(H, -gradient, rcond=None)[0] + centre_z
    for name, value in zip(names, optimum, strict=True):
        dist = problem.space[name]
        low, high = to[name](dist.low), to[name](dist.high)  # type: ignore[attr-defined]
        value = min(max(float(value), low), high)
        params[name] = 2**value if dist.log else value  # type: ignore[attr-defined]
    return params


def botorch_mf(problem: Problem, budget: float, seed: int) -> Params:
    """BoTorch's SingleTaskMultiFidelityGP on random proxy runs; where its mean at the target is least.

    Its knowledge-gradient and GIBBON acquisitions picked the cheapest proxy every time and take minutes per
    run, so the runs are random ones over the proxies, as many as the budget buys (at most 32).
    """
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskMultiFidelityGP
    from botorch.models.transforms import Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    axes = [a for a in problem.target if len({s[a] for s in problem.runs}) > 1]
    low, high = (
        {a: pick(math.log(s[a]) for s in [*problem.proxies, problem.target]) for a in axes}
        for pick in (min, max)
    )

    def row(params: Params, scale: tb.Scale) -> list[float]:
        unit = []
        for name, dist in problem.space.items():
            if isinstance(dist, optuna.distributions.CategoricalDistribution):
                unit.append(dist.choices.index(params[name]) / (len(dist.choices) - 1))
                continue
            to = math.log if dist.log else float  # type: ignore[attr-defined]
            ends = to(dist.low), to(dist.high)  # type: ignore[attr-defined]
            unit.append((to(params[name]) - ends[0]) / (ends[1] - ends[0]))
        return unit + [(math.log(scale[a]) - low[a]) / (high[a] - low[a]) for a in axes]

    rows, losses = _random_proxy_runs(
        study, problem, budget, np.random.default_rng([seed, 4]), min(32, problem.max_runs)
    )
    X, y = [row(params, scale) for params, scale in rows], [-loss for loss in losses]
    d = len(problem.space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SingleTaskMultiFidelityGP(
            torch.tensor(X, dtype=torch.double),
            torch.tensor(y, dtype=torch.double)[:, None],
            data_fidelities=list(range(d, d + len(axes))),
            outcome_transform=Standardize(1),
        )
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        grid = [_ask(study.ask(), problem) for _ in range(1000)]
        mean = model.posterior(
            torch.tensor([row(p, problem.target) for p in grid], dtype=torch.double)
        ).mean.squeeze(-1)
    return grid[int(mean.argmax())]


def _ask(trial: optuna.Trial, problem: Problem) -> Params:
    params: Params = {}
    for name, dist in problem.space.items():
        if isinstance(dist, optuna.distributions.CategoricalDistribution):
            params[name] = trial.suggest_categorical(name, dist.choices)
        elif isinstance(dist, optuna.distributions.IntDistribution):
            params[name] = trial.suggest_int(name, dist.low, dist.high, log=dist.log)
        else:
            params[name] = trial.suggest_float(name, dist.low, dist.high, step=dist.step, log=dist.log)  # type: ignore[attr-defined]
    return params


def _random_proxy_runs(
    study: optuna.Study, problem: Problem, budget: float, rng: np.random.Generator, most: int
) -> tuple[list[tuple[Params, tb.Scale]], list[float]]:
    """Random settings at random affordable proxies, until budget or number is used up; ln losses."""
    remaining, rows, losses = budget, [], []
    while len(rows) < most:
        affordable = [s for s in problem.proxies if problem.costs[s] <= remaining + 1e-9]
        if not affordable:
            break
        scale = affordable[rng.integers(len(affordable))]
        params = _ask(study.ask(), problem)
        remaining -= problem.costs[scale]
        rows.append((params, scale))
        losses.append(math.log(problem.observe(scale, params, rng)))
    return rows, losses


def _at_target(
    make: Callable[[int], optuna.samplers.BaseSampler], problem: Problem, budget: float, seed: int
) -> Params:
    runs = max(1, int(budget / problem.costs[problem.target] + 1e-9))
    return dict(_direct(make, problem, problem.target, runs, seed).best_params)


def _direct(
    make: Callable[[int], optuna.samplers.BaseSampler],
    problem: Problem,
    scale: tb.Scale,
    runs: int,
    seed: int,
) -> optuna.Study:
    rng = np.random.default_rng([seed, 2])
    study = optuna.create_study(sampler=make(seed))
    study.optimize(lambda trial: problem.observe(scale, _ask(trial, problem), rng), n_trials=runs)
    return study


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed)


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _oracle_prior(problem: Problem) -> dict[str, dict[str, tuple[float, float]]]:
    """The true drift of each numeric HP, from the full tables, almost exactly."""
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name, dist in problem.space.items():
        if isinstance(dist, optuna.distributions.CategoricalDistribution):
            continue
        for axis, slope in problem.true_drift(name).items():
            table.setdefault(name, {})[axis] = (slope, 0.02)
    return table


def _oracle(problem: Problem, budget: float, seed: int) -> Params:
    """This package, given the true drift."""
    return transfer(problem, budget, seed, drift_prior=_oracle_prior(problem))


SEARCHES: dict[str, Search] = {
    "transfer_bo": transfer,
    "prior spread x 1/2": _with_prior(0.0, 0.5),
    "prior spread x 2": _with_prior(0.0, 2.0),
    "prior mean + 1 sd": _with_prior(1.0, 1.0),
    "prior mean - 1 sd": _with_prior(-1.0, 1.0),
    "oracle drift": _oracle,
    "middle of the ranges": middle,
    "random at target": random_target,
    "TPE at target": tpe_target,
    "GPSampler at target": gp_target,
    "GPSampler on proxy, copied": gp_copy,
    "GPSampler + Step Law's exponents": _gp_with_exponents("Step Law"),
    "GPSampler + Lingle's exponents": _gp_with_exponents("Lingle"),
    "TPE on proxy, copied": tpe_copy,
    "Step Law's formula": step_law,
    "power law on two proxies": gp_copy_slope,
    "pooled quadratic": pooled_quadratic,
    "BoTorch multi-fidelity GP": botorch_mf,
}
