"""P(violated): a boundary from the values of constraints."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.constraints import ConstraintModel
from transfer_bo.surrogate.coordinates import Coordinates

BASE, LARGE, TARGET = (Scale(width=width) for width in (32, 128, 512))
BATCH = Dimension("batch", "log", 8.0, 512.0)
KIND = Dimension("kind", "categorical", choices=("a", "b"))
COORDINATES = Coordinates([BATCH, KIND], BASE, ["width"])
BATCHES = [10, 25, 60, 140, 300]


def row(batch: float, scale: Scale = BASE, kind: str = "a") -> torch.Tensor:
    """A row of the surrogate's input."""
    return COORDINATES.row({"batch": batch, "kind": kind}, scale)


def boundary(model: ConstraintModel, scale: Scale) -> float:
    """The log2 of the batch at which a violation becomes likelier than not."""
    z = torch.linspace(3, 9, 601)
    risk = model.probability(torch.stack([row(float(2**at), scale) for at in z]))
    assert risk[0] < 0.5 < risk[-1]
    return float(z[int((risk > 0.5).nonzero()[0])])


@settings(deadline=None)
@given(st.floats(20.0, 200.0), st.sampled_from([1.0, 1e-9, 1e9]))
def test_the_boundary_lies_between_the_runs_that_hold_and_those_that_do_not(
    limit: float, unit: float
) -> None:
    """Whatever the unit of the constraint; runs well inside are hardly at risk."""
    values = [{"memory": unit * (batch - limit)} for batch in BATCHES]
    model = ConstraintModel(COORDINATES, torch.stack([row(batch) for batch in BATCHES]), values)
    below = max(batch for batch in BATCHES if batch <= limit)
    above = min(batch for batch in BATCHES if batch > limit)

    assert math.log2(below) - 0.1 <= boundary(model, BASE) <= math.log2(above) + 0.1
    assert float(model.probability(row(BATCHES[-1])[None])) > 0.9


def test_the_boundary_moves_with_the_scale_if_the_values_do() -> None:
    """Where memory is batch x width, four times the width leaves a quarter of the batch, and so on."""
    places = [(batch, scale) for batch in BATCHES for scale in (BASE, LARGE)]
    values = [{"memory": math.log2(batch * scale.width / (128 * 32))} for batch, scale in places]
    model = ConstraintModel(COORDINATES, torch.stack([row(*place) for place in places]), values)

    assert pytest.approx(7, abs=0.5) == boundary(model, BASE)
    assert pytest.approx(5, abs=0.5) == boundary(model, LARGE)
    assert float(model.probability(row(60, TARGET)[None])) > 0.5


def test_an_axis_that_no_run_varied_has_no_effect() -> None:
    """Runs of one width say the same of every width."""
    values = [{"memory": batch - 64.0} for batch in BATCHES]
    model = ConstraintModel(COORDINATES, torch.stack([row(batch) for batch in BATCHES]), values)

    assert boundary(model, BASE) == boundary(model, TARGET)


def test_each_constraint_counts() -> None:
    """A choice that violates one constraint is risky, whatever the other constraint."""
    places = [(batch, BASE, kind) for batch in BATCHES for kind in "ab"]
    values = [{"memory": batch - 400.0, "kind": 1.0 if kind == "b" else -1.0} for batch, _, kind in places]
    model = ConstraintModel(COORDINATES, torch.stack([row(*place) for place in places]), values)

    good, bad = model.probability(torch.stack([row(60, kind="a"), row(60, kind="b")])).tolist()

    assert good < 0.1
    assert bad > 0.9


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e300, 1.0])
def test_any_violation_counts_whatever_its_size(bad: float) -> None:
    """An infinite value, or one that is no number, is a violation and no error."""
    values = [{"memory": bad if batch > 64 else -1.0} for batch in BATCHES]
    model = ConstraintModel(COORDINATES, torch.stack([row(batch) for batch in BATCHES]), values)

    assert model.any_infeasible
    assert 5.5 < boundary(model, BASE) < 7.5


def test_without_a_violation_nothing_is_at_risk() -> None:
    """No constraint, or one that always held."""
    X = torch.stack([row(batch) for batch in BATCHES])
    for values in ([{} for _ in BATCHES], [{"memory": -1.0} for _ in BATCHES]):
        model = ConstraintModel(COORDINATES, X, values)

        assert not model.any_infeasible
        assert [0.0] * len(BATCHES) == model.probability(X).tolist()
