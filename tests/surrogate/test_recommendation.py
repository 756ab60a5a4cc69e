"""What is recommended where runs determine some HPs and not others, and what it is compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.surrogate.posterior_sampling import sample_posterior
from transfer_bo.surrogate.recommendation import (
    BEST_RUN,
    DEFAULTS,
    GLOBAL,
    Recommendation,
    incumbent,
    optimum_draws,
    recommend,
)
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

BASE, LARGE, TARGET = Scale(width=32), Scale(width=64), Scale(width=256)
LR = Dimension("lr", "log", 2.0**-12, 2.0**-2)
LOPSIDED = Dimension("eps", "log", 2.0**-4, 2.0, default=1.0)
MULTIPLIERS = [Dimension(f"lr.{name}", "log", 0.125, 8.0, default=1.0) for name in ("q", "k", "v", "o")]


def fitted(dimensions: list[Dimension], n_runs: int = 30, noise: float = 0.002, seed: int = 0) -> Surrogate:
    """Runs around lr = 2^-7; no other HP has any effect."""
    rng, runs = np.random.default_rng(seed), []
    for number in range(n_runs):
        scale = (BASE, LARGE)[number % 2]
        z = {dim.name: rng.uniform(math.log2(dim.low), math.log2(dim.high)) for dim in dimensions}
        loss = (1 + (scale.width / 32) ** -0.4) * math.exp(0.01 * (z["lr"] + 7) ** 2 + noise * rng.normal())
        runs.append(Run(number, {name: 2.0**at for name, at in z.items()}, scale, Outcome.FINISHED, loss))
    defaults = {dim.name: dim.default for dim in dimensions if dim.default is not None} | {"lr": 2.0**-9}
    study = StudySettings((BASE, LARGE, TARGET), (0, 1), TARGET, (1.0, 4.0, 64.0), defaults=defaults)
    return fit_surrogate(runs, dimensions, study)


def recommended(surrogate: Surrogate) -> Recommendation:
    """The recommendation at the target."""
    samples = sample_posterior(surrogate.model, seed=0)
    return recommend(surrogate, TARGET, samples, torch.Generator().manual_seed(0))


def test_an_hp_without_effect_keeps_the_value_of_the_best_run() -> None:
    """Exactly, and in four of five searches or so; the learning rate is set all the same."""
    kept = 0
    for seed in range(6):
        surrogate = fitted([LR, LOPSIDED], n_runs=16, seed=seed)
        found = recommended(surrogate)

        kept += ("eps",) == found.undetermined
        assert (incumbent(surrogate).params["eps"] == found.params["eps"]) == ("eps" in found.undetermined)
        assert abs(math.log2(found.params["lr"]) + 7) < 0.5
    assert kept >= 3


def test_draws_of_an_undetermined_optimum_are_not_cut_at_the_ends_of_its_range() -> None:
    """Cut, they would pile up at the closer end and move the mean."""
    surrogate = fitted([LR, LOPSIDED], n_runs=12)
    samples = sample_posterior(surrogate.model, seed=0)

    coordinates = surrogate.coordinates
    z = optimum_draws(surrogate, samples.at(coordinates.s(TARGET)))[:, 1]

    assert len(z) == len(z.unique())
    assert float(z.max()) > float(coordinates.z_high[1])


def test_multipliers_without_effect_have_been_run() -> None:
    """They are those of the best run, or all 1, in runs that hold only noise about them."""
    surrogate = fitted([LR, *MULTIPLIERS])
    found, best_run = recommended(surrogate), incumbent(surrogate)

    names = [dim.name for dim in MULTIPLIERS]
    assert [found.params[name] for name in names] in ([best_run.params[name] for name in names], [1.0] * 4)


def test_multipliers_that_may_not_be_one_stay_in_their_range() -> None:
    """Without effect or in the best setting without multipliers, they take the end closest to 1."""
    found = recommended(fitted([LR, *(Dimension(dim.name, "log", 2.0, 8.0) for dim in MULTIPLIERS)]))
    settings = [found.params, *(baseline.params for baseline in found.baselines.values())]

    assert all(2.0 <= setting[dim.name] <= 8.0 for setting in settings for dim in MULTIPLIERS)
    assert {2.0} == {found.baselines[GLOBAL].params[dim.name] for dim in MULTIPLIERS}


@pytest.mark.parametrize("seed", range(3))
def test_nothing_it_was_compared_with_is_expected_to_be_better(seed: int) -> None:
    """The defaults, the best setting without multipliers and the best run copied; the last as it was run."""
    surrogate = fitted([LR, *MULTIPLIERS], n_runs=16, noise=0.02, seed=seed)
    found = recommended(surrogate)

    assert [BEST_RUN, GLOBAL, DEFAULTS] == list(found.baselines)
    assert all(baseline.difference >= 0 for baseline in found.baselines.values())
    assert all(0 <= baseline.probability <= 1 for baseline in found.baselines.values())
    assert incumbent(surrogate).params == found.baselines[BEST_RUN].params
    assert {1.0} == {found.baselines[GLOBAL].params[dim.name] for dim in MULTIPLIERS}
    assert found.baselines[DEFAULTS].params["lr"] == 2.0**-9


def test_multipliers_of_all_tensors_average_to_one() -> None:
    """In the logarithm, at every scale: their common value is not distinct from the learning rate's."""
    surrogate = fitted([LR, *MULTIPLIERS], n_runs=16)
    coordinates = surrogate.coordinates

    for scale in (BASE, TARGET):
        centre, covariance = surrogate.optimum_posterior(scale).optimum()
        z = coordinates.unmix @ centre
        of_mean = coordinates.unmix[1:].mean(0)

        assert float(z[1:].mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(of_mean @ covariance @ of_mean) == pytest.approx(0.0, abs=1e-6)
