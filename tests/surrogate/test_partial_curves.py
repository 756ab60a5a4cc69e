"""Stopped runs: what their curve says beside finished ones."""

from __future__ import annotations

import math

import pytest

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.surrogate.surrogate import fit_surrogate

SMALL, LARGE, TARGET = Scale(width=32), Scale(width=64), Scale(width=256)
SETTINGS = StudySettings((SMALL, LARGE, TARGET), (0, 1), TARGET, (1.0, 4.0, 64.0))
FINISHED = [
    Run(0, {"lr": 0.01}, SMALL, Outcome.FINISHED, 2.0, curve={0.5: 3.0, 1.0: 2.0}),
    Run(1, {"lr": 0.02}, SMALL, Outcome.FINISHED, 2.2, curve={0.5: 3.3, 1.0: 2.2}),
    Run(2, {"lr": 0.01}, LARGE, Outcome.FINISHED, 1.8, curve={1.0: 1.8}),
]


@pytest.mark.parametrize(
    ("curve", "end"),
    [
        ({0.25: 9.0, 0.5: 3.6}, 2.0 * 3.6 / 3.0),
        ({0.5: 2.7}, 2.0),
        ({0.4: 3.6}, None),
        ({0.5: math.nan}, None),
        ({0.5: -1.0}, None),
        ({}, None),
    ],
    ids=["worse", "better", "no peer got there", "nan", "no loss", "no report"],
)
def test_a_stopped_run_ends_as_far_above_the_best_as_it_was(
    curve: dict[float, float], end: float | None
) -> None:
    """20% above the best at half-way is 20% above it at the end; where nothing compares, it says nothing."""
    stopped = Run(3, {"lr": 0.08}, SMALL, Outcome.PRUNED, None, curve=curve)

    y = fit_surrogate([*FINISHED, stopped], [Dimension("lr", "log", 1e-4, 1e-1)], SETTINGS).y.tolist()

    assert [math.log(2.0), math.log(2.2), math.log(1.8)] == pytest.approx(y[:3], rel=1e-12)
    assert y[3:] == ([] if end is None else [pytest.approx(math.log(end), rel=1e-12)])
