"""Runs of a rung that share initial weights and data order: part of their noise does not average out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale, default_cost
from transfer_bo.search import acquisition
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import LandscapeKernel
from transfer_bo.surrogate.posterior_sampling import sample_posterior
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

RUNGS = [Scale(width=64 * 2**i, tokens=1e8) for i in range(4)]
TARGET = Scale(width=1024, tokens=1e8)
SCALES = (*RUNGS, TARGET)
SETTINGS = StudySettings(SCALES, tuple(range(4)), TARGET, tuple(map(default_cost, SCALES)))
DIMENSIONS = [Dimension("lr", "log", 2.0**-12, 2.0**-4)]
REPEATS = 8


def make_runs(rng: np.random.Generator, common_sd: float, noise_sd: float) -> list[Run]:
    """Six runs at each rung around an optimum at lr = 2^-8, all with the seed of their rung."""
    offsets = common_sd * rng.normal(size=len(RUNGS))
    runs = []
    for number in range(6 * len(RUNGS)):
        rung, z = number % len(RUNGS), rng.normal(0, 1.5)
        loss = math.exp(log_loss(rung) + 0.01 * z**2 + offsets[rung] + noise_sd * rng.normal())
        params = {"lr": 2.0 ** (z - 8)}
        runs.append(Run(number, params, RUNGS[rung], Outcome.FINISHED, loss, seed=100 + rung))
    return runs


def log_loss(rung: int) -> float:
    """That of the best setting, without noise."""
    return 1.0 - 0.05 * rung


def fitted(runs: list[Run]) -> Surrogate:
    """The surrogate of these runs."""
    return fit_surrogate(runs, DIMENSIONS, SETTINGS)


def with_noise(surrogate: Surrogate, common_sd: float, noise_sd: float) -> Surrogate:
    """The surrogate with these sds of the noise, and nothing else that could stand for them."""
    model = surrogate.model
    logs = {"noise_sd": noise_sd, "seed_ratio": common_sd / noise_sd, "residual": 1e-4, "level": 1e-4}
    changed = {
        f"log_{name}": torch.full_like(getattr(model.hyperparameters, f"log_{name}"), math.log(value))
        for name, value in logs.items()
    }
    hyperparameters = replace(model.hyperparameters, **changed)
    noisy = LandscapeGP(model.X, model.y, model.landscape, model.theta, hyperparameters)
    return replace(surrogate, model=noisy)


def standardised(surrogate: Surrogate, rung: int, loss: float) -> float:
    """Error of the prediction of a run with the best setting and a new seed, over its predicted sd."""
    x = surrogate.rows(torch.zeros(1, 1, dtype=torch.double), SCALES[rung])
    mean, variance = surrogate.optimum_posterior(SCALES[rung]).values(x)
    actual = surrogate.outcome_transform.forward(loss)
    return float((actual - mean) / (variance + surrogate.model.noise(x)).sqrt())


def test_predictions_of_a_new_seed_are_as_wide_as_the_offset_of_a_seed_demands() -> None:
    """The errors of predictions have variance 1; if nothing were shared, they would be twice as large."""
    common_sd, noise_sd = 0.009, 0.004
    errors: dict[float, list[float]] = {common_sd: [], 1e-9: []}
    for repeat in range(REPEATS):
        rng = np.random.default_rng(repeat)
        surrogate = fitted(make_runs(rng, common_sd, noise_sd))
        new = math.hypot(common_sd, noise_sd) * rng.normal(size=len(SCALES))
        for assumed, found in errors.items():
            changed = with_noise(surrogate, assumed, noise_sd)
            found += [standardised(changed, i, math.exp(log_loss(i) + new[i])) for i in range(len(SCALES))]

    known, unknown = (float(np.sqrt(np.mean(np.square(found)))) for found in errors.values())

    assert 0.8 < known < 1.25
    assert unknown > 2


def test_runs_that_share_no_seed_are_fitted_as_before() -> None:
    """Whether their seeds are unknown or all different, the model has no offsets."""
    runs = make_runs(np.random.default_rng(0), 0.009, 0.004)
    unknown = fitted([replace(run, seed=None) for run in runs]).model
    own = fitted([replace(run, seed=run.number) for run in runs]).model

    assert 0 == len(unknown.hyperparameters.seed_ratio)
    assert torch.equal(unknown.X, own.X)
    assert torch.equal(unknown.hyperparameters.to_log_vector(), own.hyperparameters.to_log_vector())
    assert float(unknown.hyperparameters.run_sd) == float(unknown.hyperparameters.noise_sd)


def test_a_run_with_a_seed_of_its_own_has_the_offset_in_its_noise() -> None:
    """It has the variance of the others, and shares the offset with none of them."""
    runs = make_runs(np.random.default_rng(0), 0.009, 0.004)
    model = fitted([replace(runs[0], seed=None), *runs[1:]]).model
    offset = float(model.hyperparameters.seed_variance)

    shared = torch.cat([model.X[:, :2], torch.eye(4, dtype=torch.double)[torch.arange(24) % 4]], -1)
    noise = (model.noise(model.X) - model.noise(shared)).tolist()
    covariance = model.kernel.covariance(shared, shared) - model.kernel.covariance(model.X, model.X)

    assert noise == pytest.approx([offset] + 23 * [0.0], abs=1e-12)
    assert covariance[0].tolist() == pytest.approx([offset, 0.0, 0.0, 0.0] * 6, abs=1e-12)


def test_draws_of_the_loss_have_the_noise_of_a_new_seed() -> None:
    """Their noise has both parts, and what the runs say is weighed with the offsets."""
    model = fitted(make_runs(np.random.default_rng(0), 0.009, 0.004)).model
    samples = sample_posterior(model, 0)
    draws = samples.at(torch.tensor([4.0], dtype=torch.double))

    by_group = [float((one.noise_sd**2 * (1 + one.seed_ratio**2)).sqrt()) for one in samples.hyperparameters]
    same_rung = model.landscape.seed_flags(model.X) @ model.landscape.seed_flags(model.X).T
    C = samples.chol @ samples.chol.mT
    first = samples.hyperparameters[0]
    without = replace(first, log_seed_ratio=first.log_seed_ratio - 20)

    assert by_group == pytest.approx(draws.noise_sd.unique_consecutive().tolist())
    assert len(C) == len(by_group)
    kernel = LandscapeKernel(model.landscape, model.theta, without)
    others = kernel.nuisance_covariance(model.X, model.X)
    off = (C[0] - others - float(first.seed_variance) * same_rung).fill_diagonal_(0)
    assert float(off.abs().max()) < 1e-8


def test_candidates_of_a_rung_have_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the search knows that the offset of a rung is partly known, and not new in every run."""
    surrogate, seen = fitted(make_runs(np.random.default_rng(0), 0.009, 0.004)), []

    def plan_runs(posterior: object, X: torch.Tensor, *_: object) -> list[int]:
        seen.append(X)
        return [0]

    monkeypatch.setattr(acquisition, "plan_runs", plan_runs)
    costs = {scale: default_cost(scale) for scale in RUNGS}
    acquisition.propose(surrogate, costs, 1e30, torch.Generator().manual_seed(0))
    _, _, s = surrogate.landscape.split(seen[0])

    assert torch.equal(
        torch.eye(4, dtype=torch.double)[s[:, 0].long()], surrogate.landscape.seed_flags(seen[0])
    )
    assert [100, 101, 102, 103, None] == [surrogate.search_seed(scale) for scale in SCALES]
