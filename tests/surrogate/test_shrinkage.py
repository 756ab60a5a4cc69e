"""Multipliers that lose their worth with scale: the algebra, and what it does to a suggestion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.projection import Projection
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.surrogate import priors, surrogate
from transfer_bo.surrogate.expected_loss import linearised_expected_loss, minimize_expected_loss
from transfer_bo.surrogate.shrinkage import estimate_shrinkage
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

BASE, LARGER, TARGET = Scale(width=32), Scale(width=128), Scale(width=512)
GROUPS = ("embedding", "q", "up", "down")
BEST = np.array([0.9, -0.7, 0.8, -0.9])
"""Octaves of the best multipliers at the base."""
DIMENSIONS = [
    Dimension("lr", "log", 2**-9, 2**-1, 2**-5),
    *(Dimension(f"lr.{group}", "log", 1 / 8, 8.0, 1.0) for group in GROUPS),
]
SETTINGS = StudySettings((BASE, LARGER, TARGET), (0, 1), TARGET, (1.0, 4.0, 64.0))


def loss(z: np.ndarray, scale: Scale, kept: float) -> float:
    """A law in width and a bowl; of the best multipliers' octaves `kept` are left per doubling of width."""
    doublings = math.log2(scale.width / BASE.width)
    off = z[0] + z[1:] - BEST * kept**doublings
    return (1 + 2 ** (-0.4 * doublings)) * math.exp(0.02 * float(z[0] ** 2 + (off**2).sum()))


def made_up_runs(kept: float, larger: int = 10) -> list[Run]:
    """40 runs at the base about the best; then at the larger rung the best of them, whole and in halves."""
    rng = np.random.default_rng(3)
    points = [(rng.normal(size=5) * 0.8 + np.r_[0, BEST * 0.7], BASE) for _ in range(40)]
    for number in range(larger):
        left_in = rng.random(4) < 0.5 if number else np.ones(4)
        points.append((np.r_[0, BEST * left_in], LARGER))
    return [
        Run(
            number,
            {dim.name: (dim.default or 1.0) * 2.0**at for dim, at in zip(DIMENSIONS, z, strict=True)},
            scale,
            Outcome.FINISHED,
            loss(z, scale, kept) * math.exp(0.002 * rng.normal()),
        )
        for number, (z, scale) in enumerate(points)
    ]


def excess(model: Surrogate, kept: float) -> float:
    """What the setting of least expected loss costs at the target, in ln loss."""
    generator = torch.Generator().manual_seed(0)
    v, _ = minimize_expected_loss(linearised_expected_loss(model, TARGET, generator), generator)
    z = (model.coordinates.unmix @ v).numpy()
    return math.log(loss(z, TARGET, kept) / loss(np.r_[0, BEST * kept**4], TARGET, kept))


def test_the_rate_is_that_of_the_linear_model_written_out() -> None:
    """Bayes' rule for one more parameter, whose column is what it does to each run, gives the rate."""
    model = fit_surrogate(made_up_runs(0.7), DIMENSIONS, SETTINGS)
    posterior = model.optimum_posterior(BASE)
    shrinkage = estimate_shrinkage(posterior)

    landscape, kernel = model.landscape, model.model.kernel
    u = posterior.mean[landscape.part("u")].clone()
    u[0] = 0.0  # the learning rate is no multiplier
    column = kernel.jacobian(model.X)[:, landscape.part("beta")] @ -u
    covariance = kernel.covariance(model.X, model.X) + torch.diag(model.model.run_noise)
    residual = model.y - kernel.linearised_mean(model.X)
    weighted = torch.linalg.solve(covariance, column)
    expected = weighted @ residual / (weighted @ column + priors.SHRINKAGE_RATE_SD**-2)

    assert float(expected) > 0
    assert torch.allclose(shrinkage.rate, expected[None], rtol=1e-6)
    assert torch.allclose(shrinkage.drift[:, 0], -u * expected, rtol=1e-6)


def test_one_rung_says_nothing_of_falling_back() -> None:
    """Without runs at a second rung the rate is zero."""
    model = fit_surrogate(made_up_runs(0.5, larger=0), DIMENSIONS, SETTINGS)

    assert float(model.shrinkage.rate.abs().max()) < 1e-9


@pytest.fixture(scope="module")
def falling() -> Surrogate:
    """The fit where four tenths of the worth of multipliers' octaves are lost per doubling."""
    return fit_surrogate(made_up_runs(0.6, larger=20), DIMENSIONS, SETTINGS)


def test_it_pays_where_multipliers_lose_their_worth(
    falling: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves at least a third of the excess."""
    monkeypatch.setattr(surrogate, "MIN_SHRINKAGE", math.inf)
    without = fit_surrogate(falling.runs, DIMENSIONS, SETTINGS)

    assert excess(falling, 0.6) < 2 / 3 * excess(without, 0.6)


def test_it_costs_little_where_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs less than a tenth of what leaving all multipliers at 1 would."""
    runs = made_up_runs(1.0)
    with_it = excess(fit_surrogate(runs, DIMENSIONS, SETTINGS), 1.0)
    monkeypatch.setattr(surrogate, "MIN_SHRINKAGE", math.inf)
    without = excess(fit_surrogate(runs, DIMENSIONS, SETTINGS), 1.0)
    at_one = math.log(loss(np.zeros(5), TARGET, 1.0) / loss(np.r_[0, BEST], TARGET, 1.0))

    assert with_it - without < at_one / 10


def test_the_suggestion_names_them(falling: Surrogate) -> None:
    """One sentence among the warnings, with each multiplier that is set closer to 1."""
    said = Projection(falling, falling.runs, SETTINGS).suggest().warnings
    named = [words for words in said if "bear out" in words]

    assert len(named) == 1
    assert all(f"lr.{group}" in named[0] for group in GROUPS)


def test_gains_at_scale_are_not_a_reason_to_go_further() -> None:
    """Best values that move away from 1 do not make other multipliers follow: the rate stays at zero."""
    model = fit_surrogate(made_up_runs(1.25), DIMENSIONS, SETTINGS)

    assert float(model.shrinkage.rate.max()) == 0.0
