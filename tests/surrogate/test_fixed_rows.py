"""The landscape at the same rows for many θ, against `Landscape.values`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.fixed_rows import FixedRows
from transfer_bo.surrogate.landscape import MAX_COUPLED, DriftPrior, Landscape

CATEGORY = Dimension("activation", "categorical", 0.0, 1.0, choices=("relu", "tanh", "gelu"))


def landscape(hps: int, axes: list[str], *, categorical: bool) -> Landscape:
    """A learning rate, weight decay (which multiplies it) and multipliers."""
    names = ["lr", "weight_decay", *(f"lr.g{i}" for i in range(hps))][:hps]
    dimensions = [Dimension(name, "log", 1e-4, 1e-1) for name in names]
    base = Scale(dict.fromkeys(axes or ["width"], 64.0))
    coordinates = Coordinates([*dimensions, CATEGORY] if categorical else dimensions, base, axes)
    return Landscape(coordinates, DriftPrior.from_tables(names, axes, "raw", {}), level=0.7)


@settings(max_examples=30, deadline=None)
@given(
    hps=st.integers(1, MAX_COUPLED + 1),
    axes=st.sampled_from([[], ["width"], ["n_params", "tokens"], ["width", "batch", "tokens"]]),
    categorical=st.booleans(),
    widening=st.sampled_from([0.0, 1.0, 4.0]),
    seed=st.integers(0, 2**31),
)
def test_values_are_those_of_the_landscape(
    hps: int, axes: list[str], categorical: bool, widening: float, seed: int
) -> None:
    """For HPs with and without coupling, any number of axes, symmetric and steep bowls, repeated scales."""
    shape = landscape(hps, axes, categorical=categorical)
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(9, shape.d))
    flags = np.eye(shape.k)[rng.integers(shape.k, size=9)] if shape.k else np.zeros((9, 0))
    X = torch.from_numpy(np.hstack([v, flags, rng.integers(0, 3, size=(9, shape.a)).astype(float)]))
    theta = shape.mean + widening * shape.sd * torch.from_numpy(rng.normal(size=(5, shape.p)))

    expected = torch.stack([shape.values(one, X) for one in theta]).numpy()

    assert FixedRows(shape, X).values(theta.numpy()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_bowl_too_steep_for_a_number_is_infinite() -> None:
    """Without a warning: a chain may look at such a θ, and leaves it again."""
    shape = landscape(1, ["width"], categorical=False)
    theta = shape.mean.clone()
    theta[shape.part("g")] = 1e4

    values = FixedRows(shape, torch.ones(1, 2, dtype=torch.double)).values(theta.numpy()[None])

    assert np.isinf(values).all()
