"""How likely a run with the suggestion diverges, and where along an HP half of the runs do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from transfer_bo.dimension import Dimension
from transfer_bo.projection.stability import divergence_probability, stability_edges
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.surrogate.surrogate import Surrogate, fit_surrogate

SCALES = [Scale(width=32), Scale(width=64), Scale(width=128)]
TARGET = Scale(width=512)
DIMENSIONS = [
    Dimension("lr", "log", 2**-12, 2**-2),
    Dimension("weight_decay", "log", 2**-6, 1.0),
    Dimension("dropout", "linear", 0.0, 0.5),
]
SETTING = {"lr": 2**-8, "weight_decay": 0.1, "dropout": 0.1}


def fitted(seed: int = 0, count: int = 90, edge: float = -4.0) -> Surrogate:
    """Half of the runs diverge at 2^edge at width 32, a third of an octave lower per doubling of the width.

    An octave above the edge four in five diverge.
    """
    rng, runs = np.random.default_rng(seed), []
    for number in range(count):
        scale = SCALES[number % len(SCALES)]
        lr = rng.uniform(-11, -2)
        params = {"lr": 2.0**lr, "weight_decay": 2.0 ** rng.uniform(-6, 0), "dropout": rng.uniform(0, 0.5)}
        logit = 1.5 * (lr - edge) + 0.5 * math.log2(scale.width / 32)
        diverges = rng.random() < 1 / (1 + math.exp(-logit))
        loss = None if diverges else 2.0 + 0.01 * (lr + 7) ** 2 + rng.normal(0, 0.005)
        outcome = Outcome.DIVERGED if diverges else Outcome.FINISHED
        runs.append(Run(number, scale=scale, params=params, outcome=outcome, loss=loss))
    settings = StudySettings(
        scales=tuple(SCALES), proxies=(0, 1, 2), target=TARGET, costs=(1.0, 2.0, 4.0), coordinates="raw"
    )
    return fit_surrogate(runs, DIMENSIONS, settings)


def test_the_edge_is_found_at_the_target() -> None:
    """It is at 2^-5.33, four doublings of the width above the base; four of five intervals hold that."""
    edges = [stability_edges(fitted(seed), SETTING, TARGET, seed=0)["lr"] for seed in range(5)]

    assert 4 <= sum(edge.interval[0] < 2 ** (-4 - 4 / 3) < edge.interval[1] for edge in edges)
    assert all(edge.interval[0] < edge.value < edge.interval[1] for edge in edges)
    assert {"above"} == {edge.diverges for edge in edges}


def test_an_hp_without_an_edge_has_none() -> None:
    """Neither one without effect on divergence, nor one on a linear scale."""
    assert ["lr"] == list(stability_edges(fitted(), SETTING, TARGET, seed=0))


def test_half_of_the_runs_diverge_at_the_edge() -> None:
    """Less of them at the suggestion, more of them beyond the edge."""
    surrogate = fitted()
    edge = stability_edges(surrogate, SETTING, TARGET, seed=0)["lr"].value

    chances = [
        divergence_probability(surrogate, SETTING | {"lr": lr}, TARGET) for lr in (2**-8, edge, 2 * edge)
    ]

    assert 0.5 == pytest.approx(chances[1], abs=0.05)
    assert chances[0] < 0.4 < 0.6 < chances[2]


def test_the_edge_does_not_depend_on_the_suggested_value() -> None:
    """It is a place, not a distance."""
    surrogate = fitted()

    at, above = (
        stability_edges(surrogate, SETTING | {"lr": lr}, TARGET, seed=0)["lr"].value for lr in (2**-9, 2**-7)
    )

    assert at == pytest.approx(above, rel=0.02)


def test_without_a_diverged_run_nothing_is_claimed() -> None:
    """The prior alone gives neither a probability nor an edge."""
    surrogate = fitted(count=20, edge=30.0)

    assert divergence_probability(surrogate, SETTING, TARGET) is None
    assert {} == stability_edges(surrogate, SETTING, TARGET, seed=0)
