"""The map between users' values and the surrogate's rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Scale, TransferError
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates

BASE = Scale(width=32, depth=2, tokens=1e5)
DIMENSIONS = [
    Dimension("lr", "log", 1e-4, 1e-1, default=1e-2),
    Dimension("lr.embedding", "log", 0.1, 10.0),
    Dimension("weight_decay", "log", 1e-3, 1.0),
    Dimension("weight_decay.norm", "log", 1e-3, 1.0),
    Dimension("dropout", "linear", 0.0, 0.5),
    Dimension("beta2", "one_minus", 0.9, 0.999),
    Dimension("heads", "log", 1, 64, integer=True),
    Dimension("activation", "categorical", choices=("relu", "tanh")),
]


@st.composite
def settings(draw: st.DrawFn) -> dict:
    """Values of all HPs within their ranges."""
    values: dict = {}
    for dim in DIMENSIONS:
        if dim.choices:
            values[dim.name] = draw(st.sampled_from(dim.choices))
        elif dim.integer:
            values[dim.name] = draw(st.integers(int(dim.low), int(dim.high)))
        else:
            values[dim.name] = draw(st.floats(dim.low, dim.high))
    return values


@given(settings())
def test_params_inverts_row(values: dict) -> None:
    """Every setting within the ranges comes back from its row."""
    coordinates = Coordinates(DIMENSIONS, BASE, ["width", "tokens"])

    row = coordinates.row(values, BASE)
    back = coordinates.params(row[: coordinates.d], row[coordinates.d : -coordinates.a])

    assert back == {
        name: value if isinstance(value, str | int) else pytest.approx(value, rel=1e-9, abs=1e-12)
        for name, value in values.items()
    }


def test_scale_is_seen_in_doublings_of_varying_axes() -> None:
    """The coordinate s holds log2 ratios to the base, for the axes that were asked for, in their order."""
    coordinates = Coordinates(DIMENSIONS, BASE, ["tokens", "width"])

    s = coordinates.s(Scale(width=128, depth=9, tokens=4e5))

    assert s.tolist() == [2.0, 2.0]


def test_multipliers_act_with_what_they_multiply() -> None:
    """A group multiplier's coordinate is its absolute value's; weight decay's is that of lr x decay."""
    coordinates = Coordinates(DIMENSIONS, BASE, [])
    names = [dim.name for dim in coordinates.numeric]

    rows = {name: coordinates.mix[i].tolist() for i, name in enumerate(names)}

    assert rows["lr"] == [1, 0, 0, 0, 0, 0, 0]
    assert rows["lr.embedding"] == [1, 1, 0, 0, 0, 0, 0]
    assert rows["weight_decay"] == [1, 0, 1, 0, 0, 0, 0]
    assert rows["weight_decay.norm"] == [1, 0, 1, 1, 0, 0, 0]
    assert rows["dropout"] == [0, 0, 0, 0, 1, 0, 0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7))
def test_clip_reaches_the_box_and_stays(raw: list[float]) -> None:
    """Clipping gives values within the ranges, and clipping again changes nothing."""
    coordinates = Coordinates(DIMENSIONS, BASE, [])

    once = coordinates.clip(torch.tensor(raw, dtype=torch.double))
    values = coordinates.params(once)

    assert torch.allclose(coordinates.clip(once), once, atol=1e-9)
    for dim in coordinates.numeric:
        assert dim.low <= values[dim.name] <= dim.high


def test_a_missing_hp_sits_at_its_prior_guess() -> None:
    """A conditional HP that a trial did not have counts as its default."""
    coordinates = Coordinates(DIMENSIONS[:1], BASE, [])

    assert coordinates.row({}, BASE).tolist() == [0.0]


@pytest.mark.parametrize(
    ("transform", "low", "high", "message"),
    [
        ("log", 0.0, 1.0, "low = 0.0"),
        ("one_minus", 0.5, 1.0, "high = 1.0"),
        ("cube", 1.0, 2.0, "'cube'"),
    ],
)
def test_bad_dimension_is_refused(transform: str, low: float, high: float, message: str) -> None:
    """A range that the transform cannot bear is refused with the value."""
    with pytest.raises(TransferError, match=message):
        Dimension("x", transform, low, high)


def test_one_minus_is_log_of_the_complement() -> None:
    """For β the coordinate counts halvings of 1-β."""
    dim = Dimension("beta2", "one_minus", 0.5, 0.999)

    assert dim.forward(0.9) - dim.forward(0.8) == pytest.approx(1.0, abs=1e-12)
    assert dim.backward(dim.forward(0.95)) == pytest.approx(0.95, abs=1e-12)
    assert math.isfinite(dim.forward(0.999))
