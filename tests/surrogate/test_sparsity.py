"""Which of many HPs matter: found where they do, not found in noise, and what follows for a fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import FLATTEN, usual_curvature
from transfer_bo.surrogate.posterior_sampling import sample_posterior
from transfer_bo.surrogate.recommendation import recommend
from transfer_bo.surrogate.sparsity import sparse_curvature
from transfer_bo.surrogate.surrogate import fit_surrogate

BASE, TARGET = Scale(width=32), Scale(width=256)
MULTIPLIERS = [f"lr.m{i}" for i in range(40)]
DIMENSIONS = [
    Dimension("lr", "log", 2.0**-12, 2.0**-2, default=2.0**-7),
    *[Dimension(name, "log", 0.125, 8.0, default=1.0) for name in MULTIPLIERS],
]
OPTIMA = {"lr.m1": 1.2, "lr.m5": -0.9, "lr.m17": 1.0, "lr.m30": -1.3}
"""Multipliers that matter, and where they are best, octaves from 1."""

CURVATURE = 0.02


def excess(z: dict[str, float]) -> float:
    """True excess ln loss; a multiplier acts together with the learning rate."""
    bowl = CURVATURE * (z["lr"] - 0.5) ** 2
    bowl += sum(CURVATURE * (z["lr"] - 0.5 + z[name] - at) ** 2 for name, at in OPTIMA.items())
    return FLATTEN * math.log1p(bowl / FLATTEN)


def rows(n: int, seed: int, matters: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs with random HPs at one scale, and their ln losses."""
    rng, coordinates = np.random.default_rng(seed), Coordinates(DIMENSIONS, BASE, ["width"])
    X, y = [], []
    for _ in range(n):
        z = {dim.name: float(rng.uniform(-1, 1)) for dim in DIMENSIONS}
        params = {dim.name: (dim.default or 1.0) * 2 ** z[dim.name] for dim in DIMENSIONS}
        X.append(coordinates.row(params, BASE))
        y.append((excess(z) if matters else 0.0) + 0.004 * rng.normal())
    return torch.stack(X), torch.tensor(y, dtype=torch.double)


def test_effects_are_found_where_they_are_with_their_size() -> None:
    """The four multipliers and the learning rate, with curvature and optimum; at most one of 36 others."""
    coordinates = Coordinates(DIMENSIONS, BASE, ["width"])
    X, y = rows(90, seed=0)
    prior, _ = sparse_curvature(X, y, coordinates)
    index = {dim.name: i for i, dim in enumerate(DIMENSIONS)}
    found = {dim.name for i, dim in enumerate(DIMENSIONS) if not prior.optimum[i].isnan()}

    assert {"lr", *OPTIMA} <= found
    assert len(found) <= len(OPTIMA) + 2
    for name, at in OPTIMA.items():
        assert pytest.approx(at, abs=0.3) == float(prior.optimum[index[name]])
        assert pytest.approx(math.log(CURVATURE), abs=0.5) == float(prior.mean[index[name]])


def test_hardly_any_effect_is_found_in_noise() -> None:
    """Of 40 multipliers fewer than one on average, over ten draws; and their curvature is known to be low."""
    coordinates, found = Coordinates(DIMENSIONS, BASE, ["width"]), 0
    for seed in range(10):
        X, y = rows(90, seed, matters=False)
        prior, _ = sparse_curvature(X, y, coordinates)
        found += int((~prior.optimum[1:].isnan()).sum())
        usual, _ = usual_curvature(coordinates)

        assert float(prior.mean[1:].median()) < float(usual[1:].median())
    assert found < 10


def test_one_odd_run_changes_nothing() -> None:
    """The effects are the same with a run whose loss came out 30% too high."""
    coordinates = Coordinates(DIMENSIONS, BASE, ["width"])
    X, y = rows(90, seed=1)
    odd = y.clone()
    odd[40] += 0.3
    effects = [~sparse_curvature(X, losses, coordinates)[0].optimum.isnan() for losses in (y, odd)]

    assert effects[0].equal(effects[1])


def test_there_is_no_evidence_of_an_effect_that_no_run_could_show() -> None:
    """Of a multiplier that no run varied, and of any multiplier with two runs."""
    coordinates = Coordinates(DIMENSIONS, BASE, ["width"])
    X, y = rows(90, seed=2)
    X[:, 3] = X[:, 0]  # v of lr.m2 moves with lr alone: the multiplier stays at 1
    prior, _ = sparse_curvature(X, y, coordinates)
    of_two, _ = sparse_curvature(X[:2], y[:2], coordinates)

    assert bool(prior.optimum[3].isnan())
    assert bool(of_two.optimum[1:].isnan().all())


@pytest.mark.parametrize("acts_through_lr", [True, False])
def test_coordinates_are_those_in_which_the_runs_are_likelier(acts_through_lr: bool) -> None:
    """Weight decay through lr·λ, or alone: with many HPs the runs decide."""
    dimensions = [*DIMENSIONS, Dimension("weight_decay", "log", 2.0**-8, 1.0, default=2.0**-4)]
    rng, runs = np.random.default_rng(3), []
    for number in range(80):
        z = {dim.name: float(rng.uniform(-1, 1)) for dim in dimensions}
        decay = z["weight_decay"] + (z["lr"] if acts_through_lr else 0.0) - 1.0
        loss = 2 * math.exp(excess(z) + CURVATURE * decay**2 + 0.004 * rng.normal())
        params = {dim.name: (dim.default or 1.0) * 2 ** z[dim.name] for dim in dimensions}
        runs.append(Run(number, params, BASE, Outcome.FINISHED, loss))
    defaults = {dim.name: dim.default for dim in dimensions}
    study = StudySettings((BASE, TARGET), (0,), TARGET, (1.0, 8.0), defaults=defaults)
    surrogate = fit_surrogate(runs, dimensions, study)

    assert float(acts_through_lr) == float(surrogate.coordinates.mix[-1, 0])

    # What is recommended: multipliers without an effect stay exactly at 1, the others go to their optimum
    samples = sample_posterior(surrogate.model, seed=0)
    found = recommend(surrogate, TARGET, samples, torch.Generator().manual_seed(0))
    at_one = {name for name in MULTIPLIERS if found.params[name] == 1.0}

    assert not at_one & set(OPTIMA)
    assert len(at_one) >= 34
    assert at_one <= set(found.undetermined)
    for name, at in OPTIMA.items():
        assert pytest.approx(at, abs=0.4) == math.log2(found.params[name])


def test_more_hps_than_runs_give_an_answer_that_keeps_to_what_was_run() -> None:
    """With 12 runs of 41 HPs most multipliers are recommended at 1."""
    rng, runs = np.random.default_rng(4), []
    for number in range(12):
        z = {dim.name: float(rng.uniform(-1, 1)) for dim in DIMENSIONS}
        params = {dim.name: (dim.default or 1.0) * 2 ** z[dim.name] for dim in DIMENSIONS}
        runs.append(
            Run(number, params, BASE, Outcome.FINISHED, 2 * math.exp(excess(z) + 0.01 * rng.normal()))
        )
    defaults = {dim.name: dim.default for dim in DIMENSIONS}
    study = StudySettings((BASE, TARGET), (0,), TARGET, (1.0, 8.0), defaults=defaults)
    surrogate = fit_surrogate(runs, DIMENSIONS, study)
    samples = sample_posterior(surrogate.model, seed=0)
    found = recommend(surrogate, TARGET, samples, torch.Generator().manual_seed(0))

    assert sum(found.params[name] == 1.0 for name in MULTIPLIERS) >= 36
