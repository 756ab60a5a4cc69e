"""Intervals at targets that are far from all runs."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.projection import Projection
from transfer_bo.projection.extrapolation import far_sd
from transfer_bo.run_table.suggest import fit_runs
from transfer_bo.surrogate import priors

sys.path.append(str(Path(__file__).parent / "run_table"))
from source_studies import ASK, past_runs

LARGEST = {"n_params": 4e8, "tokens": 4e9}
FARTHEST = 14.0
"""Doublings of each axis."""

GROWS = 0.97
"""A width counts as shrunk below this share of that before: intervals are quantiles of draws."""


@pytest.fixture(scope="module")
def projection() -> Projection:
    """Of a few runs at six scales, with draws, and with ranges that hold the optimum far out."""
    projection = fit_runs(past_runs(2), ASK["axes"], ASK["hps"], target=beyond(FARTHEST, FARTHEST)).projection
    assert projection.samples
    return projection


def beyond(n_params: float, tokens: float) -> Scale:
    """A scale so many doublings above the largest run."""
    return Scale(n_params=LARGEST["n_params"] * 2**n_params, tokens=LARGEST["tokens"] * 2**tokens)


def width(projection: Projection, scale: Scale) -> float:
    """Of the 90% interval of the best learning rate, octaves."""
    _, low, high = projection.optimum(scale)["lr"]
    return float(np.log2(high / low))


@settings(max_examples=12, deadline=None)
@given(
    direction=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: sum(pair) > 0.2),
    distances=st.lists(st.floats(0.5, FARTHEST), min_size=2, max_size=4).map(sorted),
)
def test_intervals_do_not_shrink_with_distance(
    projection: Projection, direction: tuple[float, float], distances: list[float]
) -> None:
    """Along any way up from the largest run, the interval is as wide further out as it was before."""
    widths = [width(projection, beyond(*(part * far for part in direction))) for far in distances]

    assert all(after > GROWS * before for before, after in itertools.pairwise(widths))


def test_a_far_target_is_doubted_as_much_as_laws_have_missed(projection: Projection) -> None:
    """At 540 times the cost the 90% interval reaches factors of 4 to 10 to either side."""
    _, low, high = projection.optimum(beyond(np.log2(5.4), np.log2(100)))["lr"]

    assert 4 < (high / low) ** 0.5 < 10


def test_only_laws_that_were_seen_to_miss_are_doubted(projection: Projection) -> None:
    """A learning rate in raw coordinates, beyond 100 times the largest run; not a beta."""
    names = projection.hps
    near, far = far_sd(projection.surrogate, beyond(0, 6.6)), far_sd(projection.surrogate, beyond(0, 8.6439))

    assert [0.0] * len(names) == near.tolist()
    assert {"beta2": 0.0, "lr": pytest.approx(2 * priors.FAR_SD, abs=0.01)} == dict(
        zip(names, far.tolist(), strict=True)
    )
