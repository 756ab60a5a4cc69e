"""The transform of the metric."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.surrogate.outcome_transform import Output

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


@given(VALUES, st.floats(-1e6, 1e6), st.booleans())
def test_backward_inverts_forward(values: list[float], value: float, maximize: bool) -> None:
    """Every metric value comes back, whichever transform the study's values call for."""
    output = Output.of(values, maximize)
    if not output.takes(value):
        return

    assert output.backward(output.forward(value)) == pytest.approx(value, rel=1e-6, abs=1e-6 * output.scale)


@given(VALUES, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_better_metrics_have_smaller_y(values: list[float], a: float, b: float, maximize: bool) -> None:
    """The order of metric values is kept, turned around for a maximised one."""
    output = Output.of(values, maximize)
    if not (output.takes(a) and output.takes(b)):
        return
    better, worse = (max(a, b), min(a, b)) if maximize else (min(a, b), max(a, b))

    assert output.forward(better) <= output.forward(worse)


def test_positive_losses_are_seen_in_ln() -> None:
    """A positive loss that is minimized is seen in ln; a zero or a maximised metric is not."""
    assert Output.of([2.0, 2.5]).forward(math.e) == 1.0
    assert not Output.of([0.0, 2.0]).log
    assert not Output.of([1.0, 2.0], maximize=True).log


def test_one_extreme_value_stays_one_point() -> None:
    """A metric of 1e300 among values about 1 is only "bad"."""
    output = Output.of([-1.0, -0.5, 0.0, 0.5, 1e300])

    assert 1 < output.forward(1e300) < 1000


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5), st.floats(1e-250, 1e250))
def test_a_loss_comes_back_however_large(values: list[float], value: float) -> None:
    """Logarithms of losses are compressed far above the best one, in order and without loss."""
    output = Output.of(values)

    assert math.isclose(value, output.backward(output.forward(value)), rel_tol=1e-9)
    assert output.forward(value) < output.forward(2 * value)


def test_losses_over_decades_are_scaled_down_together() -> None:
    """The middle half of ln losses spans .3 of y at most; what lies closer together is left as it is."""
    wide, narrow = [10.0**k for k in range(9)], [2.0, 2.1, 2.2, 2.3]

    low, high = (Output.of(wide).forward(value) for value in (1e2, 1e6))
    assert math.isclose(high - low, 0.3)
    assert math.isclose(Output.of(wide).ln * 0.3, math.log(1e4))
    assert Output.of(narrow).forward(2.3) == math.log(2.3)
