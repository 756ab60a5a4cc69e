"""Annotations of the surrogate are checked while the tests run."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from synthetic_fits import TARGET, fit_generated

from transfer_bo.dimension import Dimension
from transfer_bo.scale import Scale
from transfer_bo.search.acquisition import plan_runs
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.kernel import squared_distances

LR = Dimension("lr", "log", 2.0**-12, 2.0**-2)


def test_an_argument_of_another_type_is_refused() -> None:
    """The import hook of `conftest.py` reaches the surrogate: an axis that is no string is an error."""
    with pytest.raises(jaxtyping.TypeCheckError):
        Coordinates([LR], Scale(width=32), [1])


def test_an_argument_of_another_shape_is_refused() -> None:
    """Points with another number of HPs, one row in the place of several, as many costs as rows."""
    model, _ = fit_generated(0, n=6)
    posterior = model.optimum_posterior(TARGET)
    X, optima = model.X[:3], torch.cat([model.X[:2, :2], TARGET.expand(2, -1)], -1)

    with pytest.raises(jaxtyping.TypeCheckError):
        squared_distances(torch.zeros(3, 2), torch.zeros(4, 3))
    with pytest.raises(jaxtyping.TypeCheckError):
        posterior.values(X[0])
    with pytest.raises(jaxtyping.TypeCheckError):
        plan_runs(posterior, X, model.noise(X), torch.ones(2).double(), 1.0, optima, torch.Generator())
