"""The kernel and its hyperparameters."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_fits import fit_with_categories_and_a_source_study

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.kernel import (
    KernelHyperparameters,
    hyperparameter_prior,
    matern,
    matern_slope,
    squared_distances,
)

LOGS = st.floats(-9.0, 3.0)


@given(st.lists(LOGS, min_size=6, max_size=12), st.integers(0, 2))
def test_the_vector_of_logarithms_comes_back(logs: list[float], sources: int) -> None:
    """To the last bit, in the order of the fields; the properties are its exponentials."""
    vector = torch.tensor(logs, dtype=torch.double)

    hyperparameters = KernelHyperparameters.from_log_vector(vector, sources)

    assert torch.equal(vector, hyperparameters.to_log_vector())
    assert sources == len(hyperparameters.source_shift_sd)
    named = [getattr(hyperparameters, field.name.removeprefix("log_")) for field in fields(hyperparameters)]
    assert torch.allclose(vector.exp(), torch.cat([part.reshape(-1) for part in named]))


def test_hyperparameters_are_frozen() -> None:
    """None of them can be reassigned."""
    hyperparameters = KernelHyperparameters.from_log_vector(torch.zeros(6).double(), 1)

    with pytest.raises(FrozenInstanceError):
        hyperparameters.log_jitter = torch.ones(()).double()


def test_lengthscales_are_expected_at_half_the_range() -> None:
    """Of a range of 8 octaves 4, of a narrow one at least half an octave; 1.5 choices."""
    dimensions = [
        Dimension("a", "log", 2**-4, 2**4),
        Dimension("b", "log", 1.0, 1.01),
        Dimension("c", "categorical", choices=("x", "y", "z")),
    ]

    mean, sd = hyperparameter_prior(Coordinates(dimensions, Scale(width=1), []))

    assert mean[4:].exp().tolist() == pytest.approx([4.0, 0.5, 1.5])
    assert len(mean) == len(sd) == 7
    assert mean[:4].exp().tolist() == pytest.approx([0.2, 0.004, 0.01, 0.003])


@given(st.floats(1e-3, 20.0))
def test_matern_is_its_formula_and_its_slope(r: float) -> None:
    """(1 + √5 r + 5/3 r²) e^{-√5 r}, and its derivative by r²."""
    squared = torch.tensor([r**2], dtype=torch.double)
    step = 1e-4 * squared

    expected = (1 + math.sqrt(5) * r + 5 / 3 * r**2) * math.exp(-math.sqrt(5) * r)
    slope = (matern(squared + step) - matern(squared - step)) / (2 * step)

    assert float(matern(squared)) == pytest.approx(expected, rel=1e-9)
    assert float(matern_slope(squared)) == pytest.approx(float(slope), rel=1e-4, abs=1e-12)


def test_distances_are_those_of_pairs() -> None:
    """Squared, as differences give them."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 3, dtype=torch.double, generator=generator) for n in (4, 5))

    assert torch.allclose(squared_distances(a, b), (a[:, None] - b).square().sum(-1))


@pytest.mark.parametrize("seed", range(2))
def test_the_covariance_is_one(seed: int) -> None:
    """Symmetric, without negative eigenvalues, and the sum of its parts."""
    model = fit_with_categories_and_a_source_study(seed)
    kernel, X = model.kernel, model.X

    K = kernel.covariance(X, X)

    assert torch.allclose(K, K.T)
    assert float(torch.linalg.eigvalsh(K).min()) > -1e-10
    J = kernel.jacobian(X) * model.landscape.sd
    assert torch.allclose(K, J @ J.T + kernel.nuisance_covariance(X, X))
    assert torch.allclose(kernel(X, X, diag=True), K.diagonal())


def test_runs_of_a_source_study_share_their_level() -> None:
    """Two rows that differ in nothing but the study covary less, by o², η² and the second residual."""
    model = fit_with_categories_and_a_source_study(0)
    own = model.X[1:2].clone()
    other = own.clone()
    other[:, -1] = 1.0

    together, apart = model.kernel.covariance(other, other), model.kernel.covariance(other, own)

    J = model.kernel.jacobian(own)[:, model.landscape.part("u")]
    hyperparameters = model.hyperparameters
    shared = 1.0 + hyperparameters.source_shift_sd**2 * J @ J.T + hyperparameters.residual**2
    assert torch.allclose(together - apart, shared, rtol=1e-5)
