"""Importance: what matters comes first, what does not last, and scales that differ are seen to differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer_bo import Scale
from transfer_bo.diagnostics.importance import METHODS, Importance, hp_importance, unimportant_hps
from transfer_bo.diagnostics.intervals import Interval
from transfer_bo.diagnostics.relief import relief
from transfer_bo.dimension import Dimension
from transfer_bo.display.importance_text import ORDER_TEXT, agreement_sentences, method_rows
from transfer_bo.errors import DiagnosticError, NoRunsError, TransferError
from transfer_bo.records import Outcome, Run

DIMENSIONS = [
    Dimension("lr", "log", 1e-4, 1e-1),
    Dimension("weight_decay", "log", 1e-3, 1.0),
    Dimension("dropout", "linear", 0.0, 0.5),
    Dimension("activation", "categorical", choices=("relu", "gelu")),
]
SMALL, LARGE = Scale(width=32), Scale(width=64)


def runs_at(
    scale: Scale, weights: tuple[float, float, float, float], count: int = 60, seed: int = 0
) -> list[Run]:
    """Random HPs; the loss is linear in each, scaled to its range, with the given weights."""
    rng = np.random.default_rng(seed)
    runs: list[Run] = []
    for number in range(count):
        u = rng.random(4)
        activation = "gelu" if u[3] > 0.5 else "relu"
        params = {
            "lr": 10 ** (-4 + 3 * u[0]),
            "weight_decay": 10 ** (-3 + 3 * u[1]),
            "dropout": 0.5 * u[2],
            "activation": activation,
        }
        loss = 2.0 + float(np.dot(weights, [*u[:3], activation == "gelu"]))
        runs.append(Run(number, params, scale, Outcome.FINISHED, loss))
    return runs


def test_relief_by_hand() -> None:
    """Four corners of a square, loss = first coordinate: the written-out sums give W[1] < 0 < W[0]."""
    X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    weights = relief(X, X[:, 0], np.array([False, False]))

    assert [1.0, 0.0] == list(weights)


def test_relief_ignores_copies_of_a_run() -> None:
    """A bootstrap draw with every run twice weighs like the runs themselves."""
    rng = np.random.default_rng(0)
    X = rng.random((40, 3))
    y = X @ [1.0, 0.3, 0.0]
    numeric = np.zeros(3, dtype=bool)
    twice = np.repeat(np.arange(40), 2)
    once = relief(X, y, numeric)

    assert once == pytest.approx(relief(X[twice], y[twice], numeric, twice), abs=0.1)
    assert np.argsort(once).tolist() == [2, 1, 0]


def test_order_of_importance() -> None:
    """Every method puts the HP with the largest weight first; those without any share little."""
    found = hp_importance(runs_at(SMALL, (2.0, 0.0, 0.0, 1.5), 120), DIMENSIONS)

    for method in METHODS:
        table = found.table(method)[str(SMALL)]
        assert "lr" == table.index[0], method
        assert found.shares[method].sum() == pytest.approx(1.0)
    for method in ("N-RReliefF", "fANOVA"):  # PED-ANOVA looks at the best tenth only: 12 runs here
        assert "activation" == found.table(method).index[1], method


def test_alike_scales_agree() -> None:
    """The same landscape at two scales: the rank correlation is high, and its interval says so."""
    weights = (2.0, 0.7, 0.0, 0.25)
    found = hp_importance([*runs_at(SMALL, weights, 80), *runs_at(LARGE, weights, 80, 1)], DIMENSIONS)

    assert found.agreement["N-RReliefF"].value >= 0.8
    assert found.agreement["N-RReliefF"].low > 0.3
    assert math.isnan(found.agreement["fANOVA"].low)
    assert found.to_json()["agreement"]["fANOVA"]["low"] is None


def test_opposite_scales_disagree() -> None:
    """What matters at one scale does not at the other: the correlation is below zero."""
    found = hp_importance(
        [*runs_at(SMALL, (2.0, 0.7, 0.2, 0.0), 80), *runs_at(LARGE, (0.0, 0.2, 0.7, 2.0), 80, 1)],
        DIMENSIONS,
    )

    assert found.agreement["N-RReliefF"].value < 0
    assert found.agreement["fANOVA"].value < 0


@pytest.mark.parametrize(
    ("low", "high", "fanova", "expected"),
    [
        (0.6, 0.9, 0.8, "stable"),
        (0.6, 0.9, 0.2, "undetermined"),
        (-0.2, 0.4, 0.1, "changes"),
        (0.1, 0.9, 0.1, "undetermined"),
        (math.nan, math.nan, 0.9, "undetermined"),
    ],
)
def test_the_order_is_judged_by_both_methods(low: float, high: float, fanova: float, expected: str) -> None:
    """N-RReliefF's whole interval and fANOVA's value must lie on the same side of 1/2."""
    agreement = {
        "N-RReliefF": Interval(0.5, low, high),
        "fANOVA": Interval(fanova, math.nan, math.nan),
    }
    shares = {method: np.array([[0.7, 0.3], [0.6, 0.4]]) for method in METHODS}
    found = Importance((SMALL, LARGE), ("lr", "dropout"), shares, agreement, {}, ())

    assert expected == found.order
    assert expected == found.to_json()["order"]
    assert ORDER_TEXT[expected] in agreement_sentences(found)[0]


def test_methods_stand_side_by_side() -> None:
    """Means over the scales, the most important HP first, the verdict last; no draws, no interval."""
    runs = [*runs_at(SMALL, (2.0, 0.7, 0.0, 0.2), 40), *runs_at(LARGE, (2.0, 0.7, 0.0, 0.2), 40, 1)]
    found = hp_importance(runs, DIMENSIONS, draws={})
    head, rows = method_rows(found)

    assert ["HP", *METHODS, "verdict"] == head
    assert list(found.table().index) == [row[0] for row in rows]
    assert "lr" == rows[0][0]
    assert found.by_method().loc["lr", "fANOVA"] == pytest.approx(found.shares["fANOVA"][:, 0].mean())
    assert all(math.isnan(of.low) for of in found.agreement.values())


def test_scales_with_few_runs_are_named() -> None:
    """A scale that says nothing is left out aloud."""
    found = hp_importance([*runs_at(SMALL, (1, 0, 0, 0)), *runs_at(LARGE, (1, 0, 0, 0), 3)], DIMENSIONS)

    assert (SMALL,) == found.scales
    assert ("Scale(width=64) has 3 finished runs, importance needs 10.",) == found.left_out
    assert {} == found.agreement


@pytest.mark.parametrize(
    ("runs", "dimensions", "error", "value"),
    [
        ([], DIMENSIONS, NoRunsError, ""),
        (runs_at(SMALL, (1, 0, 0, 0), 5), DIMENSIONS, DiagnosticError, "more than 5"),
        (runs_at(SMALL, (1, 0, 0, 0)), DIMENSIONS[:1], DiagnosticError, "(lr)"),
    ],
)
def test_bad_input_is_named(
    runs: list[Run], dimensions: list[Dimension], error: type[TransferError], value: str
) -> None:
    """Each lack has an error that names the value at fault."""
    with pytest.raises(error) as caught:
        hp_importance(runs, dimensions)

    assert value in str(caught.value)


def test_what_matters_is_never_called_unimportant() -> None:
    """Two HPs of twelve act; neither is unimportant in any of five tables, most of the others are in some.

    Of few runs nothing is said.
    """
    dimensions = [Dimension(f"hp{i}", "linear", 0.0, 1.0) for i in range(12)]
    found: set[str] = set()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        runs = []
        for number in range(60):
            u = rng.random(12)
            params = {f"hp{i}": float(u[i]) for i in range(12)}
            loss = 2.0 + u[0] + 2 * (u[1] - 0.5) ** 2 + 0.05 * rng.normal()
            runs.append(Run(number, params, SMALL, Outcome.FINISHED, float(loss)))
        found |= set(unimportant_hps(runs, dimensions, seed))

        assert {} == unimportant_hps(runs[:23], dimensions, seed)

    assert not found & {"hp0", "hp1"}
    assert len(found) >= 5
