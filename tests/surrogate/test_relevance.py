"""Whether an HP has had any effect on the runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_bo.surrogate.relevance import effect_p_values

SCALES = ["small", "large"] * 12


def test_without_effect_p_values_are_uniform() -> None:
    """Over many draws of pure noise a tenth of them is below .1, and so on."""
    rng = np.random.default_rng(0)
    found = np.concatenate(
        [effect_p_values(rng.normal(size=(24, 3)), rng.normal(size=24), SCALES) for _ in range(300)]
    )

    assert np.quantile(found, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.01, 100))
def test_a_level_of_each_scale_and_the_unit_of_the_loss_do_not_count(
    seed: int, level: float, unit: float
) -> None:
    """The p-values are those of the losses within each scale, in any unit."""
    rng = np.random.default_rng(seed)
    t, y = rng.normal(size=(24, 2)), rng.normal(size=24)
    shifted = unit * (y + level * np.array([scale == "large" for scale in SCALES]))

    assert effect_p_values(t, shifted, SCALES) == pytest.approx(effect_p_values(t, y, SCALES), abs=1e-6)


def test_an_effect_is_found_whether_it_is_a_slope_or_a_bowl() -> None:
    """Beside an HP without one, and with another HP that some runs lack."""
    rng = np.random.default_rng(1)
    t = rng.normal(size=(24, 4))
    t[::3, 3] = np.nan
    slope, bowl, nothing, _ = effect_p_values(t, t[:, 0] + t[:, 1] ** 2 + 0.1 * rng.normal(size=24), SCALES)

    assert max(slope, bowl) < 1e-6 < 0.01 < nothing


def test_too_few_runs_give_no_test() -> None:
    """Two levels, and two terms for each HP: as many runs again as the HPs have terms are needed."""
    t = np.random.default_rng(0).normal(size=(24, 2))

    assert effect_p_values(t[:9], t[:9, 0], SCALES[:9]) is None
    assert effect_p_values(t[:10], t[:10, 0], SCALES[:10]) is not None
