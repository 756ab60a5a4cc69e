"""Start-up runs: where they lie before anything is known."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.records import StudySettings
from transfer_bo.search.startup import SPREAD, startup_point
from transfer_bo.surrogate import priors

BASE, TARGET = Scale(n_params=1e8, tokens=2e9), Scale(n_params=4e8, tokens=3.2e10)
LR, DECAY = Dimension("lr", "log", 2**-14, 2**-6), Dimension("weight_decay", "log", 0.01, 1.0, 0.1)


def plan(coordinates: str, seed: int = 0) -> StudySettings:
    """Proxy and target."""
    return StudySettings((BASE, TARGET), (0,), TARGET, (1.0, 64.0), coordinates=coordinates, seed=seed)


@given(st.sampled_from(["raw", "base"]), st.integers(0, 100))
def test_the_first_run_is_at_the_expected_optimum(coordinates: str, seed: int) -> None:
    """At a default where there is one, else as far from the middle of the range as the prior says."""
    first = startup_point([LR, DECAY], plan(coordinates, seed), 0)
    by_size, by_duration = (-priors.RAW_DRIFT["lr", axis][0] for axis in ("n_params", "tokens"))
    moved = {"base": 0.0, "raw": 2 * by_size + 4 * by_duration}[coordinates]  # by their doublings

    assert first["weight_decay"] == 0.1
    assert math.isclose(math.log2(first["lr"]), -10 + moved / 2, abs_tol=1e-9)


@given(st.integers(1, 200), st.integers(0, 100))
def test_later_runs_keep_off_the_ends_of_the_range(number: int, seed: int) -> None:
    """Those of an HP whose optimum nobody knows cover the middle of its range, and no more."""
    lr = math.log2(startup_point([LR, DECAY], plan("base", seed), number)["lr"])

    assert abs(lr + 10) <= SPREAD * 4


def test_later_runs_cover_the_middle_of_the_range() -> None:
    """Sixteen of them leave no gap of a quarter of it."""
    found = sorted(math.log2(startup_point([LR, DECAY], plan("base"), n)["lr"]) for n in range(1, 17))
    ends = [-10 - SPREAD * 4, *found, -10 + SPREAD * 4]

    assert max(b - a for a, b in itertools.pairwise(ends)) < 2 * SPREAD * 4 / 4
