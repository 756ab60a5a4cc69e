"""The setting of least expected loss."""

from __future__ import annotations

import math

import numpy as np
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.surrogate.expected_loss import (
    excess_loss,
    linearised_expected_loss,
    minimize_expected_loss,
    optimum_candidates,
    random_categories,
)
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

BASE, LARGE, TARGET = Scale(width=32), Scale(width=64), Scale(width=256)
SETTINGS = StudySettings((BASE, LARGE, TARGET), (0, 1), TARGET, (1.0, 4.0, 64.0))
LR = Dimension("lr", "log", 2.0**-12, 2.0**-2)
KIND = Dimension("kind", "categorical", choices=("good", "bad", "worse"))


def fitted(cliff: float = math.inf) -> Surrogate:
    """40 runs around lr = 2^-7, a penalty on two categories, divergence above a learning rate."""
    rng, runs = np.random.default_rng(0), []
    for number in range(40):
        scale, z, kind = (BASE, LARGE)[number % 2], rng.uniform(-10, -4), int(rng.integers(3))
        loss = (1 + (scale.width / 32) ** -0.4) * math.exp(0.02 * (z + 7) ** 2 + 0.05 * kind)
        outcome = Outcome.DIVERGED if z > cliff else Outcome.FINISHED
        params = {"lr": 2.0**z, "kind": KIND.choices[kind]}
        runs.append(Run(number, params, scale, outcome, loss if outcome is Outcome.FINISHED else None))
    return fit_surrogate(runs, [LR, KIND], SETTINGS)


def setting(surrogate: Surrogate, seed: int = 0) -> dict[str, object]:
    """The recommendation at the target."""
    generator = torch.Generator().manual_seed(seed)
    found = minimize_expected_loss(linearised_expected_loss(surrogate, TARGET, generator), generator)
    return surrogate.coordinates.params(*found)


def test_the_best_category_and_the_optimum_are_found() -> None:
    """Whatever the seed: within a quarter of an octave, and the category that cost least."""
    surrogate = fitted()

    for seed in range(3):
        params = setting(surrogate, seed)

        assert params["kind"] == "good"
        assert abs(math.log2(params["lr"]) + 7) < 0.25


def test_divergence_has_a_price() -> None:
    """With a cliff just above the optimum the learning rate is lower than without."""
    assert setting(fitted(cliff=-6.8))["lr"] < setting(fitted())["lr"]


def test_with_known_optima_it_is_their_centre() -> None:
    """The bowl without asymmetry and with a residual that is far smaller: the mean of the draws."""
    surrogate = fitted()
    optima = torch.tensor([[-1.0], [0.0], [4.0]], dtype=torch.double) / 10
    v = torch.linspace(-1, 1, 2001, dtype=torch.double)

    expected = excess_loss(surrogate, v[:, None, None], TARGET, optima).mean(-1)

    assert abs(float(v[expected.argmin()]) - 0.1) < 0.002
    assert float(excess_loss(surrogate, optima[:1, None], TARGET, optima[:1])) == 0.0


def test_candidates_lie_in_the_box_at_the_scale() -> None:
    """Each row holds the target's doublings, HPs within the ranges and one choice."""
    surrogate = fitted()
    posterior, generator = surrogate.optimum_posterior(TARGET), torch.Generator().manual_seed(0)

    rows = optimum_candidates(surrogate, posterior, TARGET, generator)
    v, flags, s = surrogate.landscape.split(rows)

    assert torch.allclose(surrogate.coordinates.clip(v), v)
    assert bool((flags.sum(-1) == 1).all())
    assert bool((s == 3.0).all())


def test_some_candidates_have_another_category() -> None:
    """About a quarter of them, of which a third draws the best one again."""
    flags = random_categories(fitted(), 3000, torch.Generator().manual_seed(0))

    share = float(flags[:, 0].mean())

    assert abs(share - (1 - 0.25 * 2 / 3)) < 0.03
    assert bool((flags.sum(-1) == 1).all())


def test_without_numeric_hps_the_best_category_is_returned() -> None:
    """There is nothing to descend along."""
    runs = [
        Run(number, {"kind": KIND.choices[number % 3]}, BASE, Outcome.FINISHED, 2.0 + 0.1 * (number % 3))
        for number in range(9)
    ]
    surrogate = fit_surrogate(runs, [KIND], SETTINGS)

    assert {"kind": "good"} == setting(surrogate)
