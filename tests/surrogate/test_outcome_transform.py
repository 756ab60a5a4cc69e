"""The transform of the metric."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.surrogate.outcome_transform import OutcomeTransform

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


@given(VALUES, st.floats(-1e6, 1e6), st.booleans())
def test_backward_inverts_forward(values: list[float], value: float, maximize: bool) -> None:
    """Every metric value comes back, whichever transform the study's values call for."""
    transform = OutcomeTransform.of(values, maximize)
    if not transform.takes(value):
        return

    assert transform.backward(transform.forward(value)) == pytest.approx(
        value, rel=1e-6, abs=1e-6 * transform.scale
    )


@given(VALUES, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_better_metrics_have_smaller_y(values: list[float], a: float, b: float, maximize: bool) -> None:
    """The order of metric values is kept, turned around for a maximised one."""
    transform = OutcomeTransform.of(values, maximize)
    if not (transform.takes(a) and transform.takes(b)):
        return
    better, worse = (max(a, b), min(a, b)) if maximize else (min(a, b), max(a, b))

    assert transform.forward(better) <= transform.forward(worse)


def test_positive_losses_are_seen_in_ln() -> None:
    """A positive loss that is minimized is seen in ln; a zero or a maximised metric is not."""
    assert OutcomeTransform.of([2.0, 2.5]).forward(math.e) == 1.0
    assert not OutcomeTransform.of([0.0, 2.0]).log
    assert not OutcomeTransform.of([1.0, 2.0], maximize=True).log


def test_one_extreme_value_stays_one_point() -> None:
    """A metric of 1e300 among values about 1 is only "bad"."""
    transform = OutcomeTransform.of([-1.0, -0.5, 0.0, 0.5, 1e300])

    assert 1 < transform.forward(1e300) < 1000


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5), st.floats(1e-250, 1e250))
def test_a_loss_comes_back_however_large(values: list[float], value: float) -> None:
    """Logarithms of losses are compressed far above the best one, in order and without loss."""
    transform = OutcomeTransform.of(values)

    assert math.isclose(value, transform.backward(transform.forward(value)), rel_tol=1e-9)
    assert transform.forward(value) < transform.forward(2 * value)


def test_losses_over_decades_are_scaled_down_together() -> None:
    """The middle half of ln losses spans .3 of y at most; what lies closer together is left as it is."""
    wide, narrow = [10.0**k for k in range(9)], [2.0, 2.1, 2.2, 2.3]

    low, high = (OutcomeTransform.of(wide).forward(value) for value in (1e2, 1e6))
    assert math.isclose(high - low, 0.3)
    assert math.isclose(OutcomeTransform.of(wide).ln * 0.3, math.log(1e4))
    assert OutcomeTransform.of(narrow).forward(2.3) == math.log(2.3)
