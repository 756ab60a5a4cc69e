"""Scales and ladders."""

import copy
import math
import pickle
import re
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.attributes import RUNG, SCALE_ATTR
from transfer_bo.errors import ScaleError
from transfer_bo.scale import Ladder, Scale, default_cost

AXES = st.dictionaries(
    st.sampled_from(["width", "depth", "batch", "tokens", "n_params"]),
    st.one_of(st.integers(1, 2**40), st.floats(1e-6, 1e12)),
    min_size=1,
)


@given(AXES)
def test_a_scale_is_its_axes_in_any_order(axes: dict[str, float]) -> None:
    """Equality and hash look at axes and values only; copies and pickles are equal."""
    scale = Scale(axes)
    turned = Scale(dict(reversed(axes.items())))

    assert scale == turned
    assert hash(scale) == hash(turned)
    assert scale == copy.deepcopy(scale) == pickle.loads(pickle.dumps(scale))
    assert axes == dict(scale)


def test_values_are_read_as_attributes_and_items() -> None:
    """Whole numbers stay integers, so that a width can size a tensor."""
    scale = Scale(width=64.0, tokens=2e6, ratio=0.5)

    assert (64, 2_000_000, 0.5) == (scale.width, scale["tokens"], scale.ratio)
    assert isinstance(scale.width, int)
    assert "Scale(width=64, tokens=2e+06, ratio=0.5)" == repr(scale)
    with pytest.raises(AttributeError, match="no axis 'depth'; it has width, tokens, ratio"):
        _ = scale.depth


def test_a_scale_is_immutable() -> None:
    """A changed scale is a new scale."""
    scale = Scale(width=64, depth=4)

    with pytest.raises(AttributeError, match="immutable"):
        scale.width = 128
    assert Scale(width=128, depth=4) == scale.replace(width=128)
    assert Scale(width=64, depth=4) == scale


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "sixty", None])
def test_only_positive_finite_numbers_are_scales(value: object) -> None:
    """The sentence names the axis and the value."""
    with pytest.raises(ScaleError, match=f"width.*{re.escape(repr(value))}"):
        Scale({"width": value})


def test_a_scale_needs_an_axis() -> None:
    """An empty scale says nothing."""
    with pytest.raises(ScaleError):
        Scale()


@given(AXES, st.integers(-8, 8))
def test_log2_ratio_counts_doublings(axes: dict[str, float], doublings: int) -> None:
    """A scale that is 2^k times its base has s = k on every axis."""
    scale = Scale(axes)
    larger = Scale({axis: value * 2.0**doublings for axis, value in axes.items()})

    assert larger.log2_ratio(scale) == pytest.approx(dict.fromkeys(axes, doublings))


def test_log2_ratio_asks_for_equal_axes() -> None:
    """A missing axis is not taken for 1."""
    with pytest.raises(ScaleError):
        Scale(width=2).log2_ratio(Scale(width=2, depth=1))


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Scale(width=64, depth=4, batch=32, tokens=1e6), 6 * 64**2 * 4 * 1e6),
        (Scale(n_params=1e9, tokens=2e10, width=64, depth=4), 6 * 1e9 * 2e10),
        (Scale(steps=10), 60.0),
        (Scale(steps=10, batch=4), 240.0),
        (Scale(train_iters=10, batch_size=4, tokens=7), 42.0),
        (Scale(d_model=3, hidden_size=3), 54.0),
    ],
)
def test_default_cost_is_six_n_d(scale: Scale, expected: float) -> None:
    """FLOPs are 6 N D; the batch alone costs nothing; `n_params` stands for the shape."""
    assert expected == default_cost(scale)


def _ladder() -> Ladder:
    return Ladder([Scale(width=64), Scale(width=128)])


def test_a_ladder_is_append_only() -> None:
    """A target is found again under the index it got, and is no proxy."""
    ladder = _ladder()
    target = Scale(width=1024)

    assert 2 == ladder.register(target) == ladder.register(target)
    assert 0 == ladder.register(Scale(width=64))
    assert [64, 128, 1024] == [scale.width for scale in ladder]
    assert (Scale(width=64), Scale(width=128)) == ladder.proxies
    assert Scale(width=64) == ladder.base


@pytest.mark.parametrize(
    ("rungs", "named"),
    [
        ([], "Ladder"),
        ([Scale(width=64), Scale(width=64)], "width=64"),
        ([Scale(width=64), Scale(depth=4)], "depth=4"),
    ],
)
def test_a_ladder_names_the_rung_that_is_wrong(rungs: list[Scale], named: str) -> None:
    """Empty, repeated and mixed rungs are refused."""
    with pytest.raises(ScaleError, match=named):
        Ladder(rungs)


def test_align_keeps_the_indices_of_the_study() -> None:
    """A new process that lists its rungs in another order still means the same rung by an index."""
    ladder = Ladder([Scale(width=256), Scale(width=64)])
    ladder.align([Scale(width=64), Scale(width=128)])

    assert [64, 128, 256] == [scale.width for scale in ladder]
    assert (Scale(width=256), Scale(width=64)) == ladder.proxies


def test_suggest_keeps_the_axes_with_the_trial() -> None:
    """The trial stores the rung's index, and its axes as an attribute."""
    study = optuna.create_study()
    trial = study.ask()
    scale = _ladder().suggest(trial)

    assert dict(scale) == study.trials[0].user_attrs[SCALE_ATTR]
    assert [64, 128][trial.params[RUNG]] == scale.width


def test_suggest_runs_an_enqueued_target() -> None:
    """A trial enqueued with a scale of its own gets it, though the ladder has not heard of it before."""
    ladder = _ladder()
    target = Scale(width=1024)
    study = optuna.create_study()
    study.enqueue_trial({RUNG: 2}, user_attrs={SCALE_ATTR: dict(target)})

    assert target == ladder.suggest(study.ask())
    assert target == ladder[2]


@pytest.mark.parametrize("proxies", [Scale(width=64), {"width": 64}, 64, [64, 128]])
def test_a_ladder_is_a_list_of_scales(proxies: Any) -> None:
    """A single scale is none."""
    with pytest.raises(ScaleError):
        Ladder(proxies)
