"""Runs of source studies in the surrogate: how much they say depends on how far their optimum lies off."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale, default_cost
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

RUNGS = [Scale(width=64, tokens=1e8), Scale(width=128, tokens=1e8)]
TARGET = Scale(width=512, tokens=1e8)
SCALES = (*RUNGS, TARGET)
SETTINGS = StudySettings(SCALES, (0, 1), TARGET, tuple(map(default_cost, SCALES)))
DIMENSIONS = [Dimension("lr", "log", 2.0**-13, 2.0**-3)]


def make_runs(
    count: int, seed: int, off: float = 0.0, level: float = 1.0, source: str | None = None
) -> list[Run]:
    """Runs around an optimum at lr = 2^(-8 + off), with .3% of noise."""
    rng = np.random.default_rng([seed, count])
    runs = []
    for number in range(count):
        scale, z = RUNGS[number % 2], rng.normal(0, 1.5)
        loss = level * (1 + (scale.width / 64) ** -0.4) * math.exp(0.02 * z**2 + 0.003 * rng.normal())
        params = {"lr": 2.0 ** (-8 + off + z)}
        runs.append(Run(number, params, scale, Outcome.FINISHED, loss, source=source))
    return runs


def fitted(*runs: list[Run]) -> Surrogate:
    """The surrogate of all of them."""
    return fit_surrogate([run for some in runs for run in some], DIMENSIONS, SETTINGS)


def optimum(surrogate: Surrogate) -> tuple[float, float]:
    """Mean and sd of the best lr at the target, octaves from the middle of the range."""
    mean, covariance = surrogate.optimum_posterior(TARGET).optimum()
    return float(mean[0]), float(covariance[0, 0].sqrt())


def shift(surrogate: Surrogate) -> float:
    """How far the source study's optimum seems to lie off, octaves."""
    return float(surrogate.model.hyperparameters.source_shift_sd[0])


@pytest.mark.parametrize("seed", range(2))
def test_a_past_study_with_the_same_optimum_narrows_the_new_one(seed: int) -> None:
    """Few own runs leave the optimum at the target wide."""
    own = make_runs(4, seed)

    _, alone = optimum(fitted(own))
    _, both = optimum(fitted(own, make_runs(30, seed, source="old")))

    assert both < alone


def test_a_past_study_that_lies_far_off_is_found_out() -> None:
    """Its learned shift is the larger one for every seed, and the optimum stays the study's own."""
    for seed in range(3):
        own = make_runs(10, seed)
        near = fitted(own, make_runs(24, seed, off=0.1, source="old"))
        far = fitted(own, make_runs(24, seed, off=3.0, source="old"))
        mean, sd = optimum(far)

        assert shift(near) < shift(far)
        assert abs(mean) < 1.0 + sd


def test_without_past_runs_there_is_nothing_of_them() -> None:
    """No column, no shift."""
    surrogate = fitted(make_runs(4, 0))

    assert [] == surrogate.coordinates.sources
    assert (4, 2) == surrogate.X.shape  # lr and width
    assert 0 == surrogate.model.hyperparameters.source_shift_sd.numel()


def test_the_level_of_a_past_study_says_nothing() -> None:
    """With losses e times as large it says the same of where the optimum is."""
    own = make_runs(6, 0)
    same = fitted(own, make_runs(24, 0, source="old"))
    higher = fitted(own, make_runs(24, 0, level=math.e, source="old"))

    (mean, sd), (mean_higher, sd_higher) = optimum(same), optimum(higher)

    assert abs(mean - mean_higher) < 0.25 * sd
    assert 0.8 < sd_higher / sd < 1.25
