"""From records to a fitted surrogate."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.errors import NoRunsError
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.surrogate.surrogate import fit_surrogate
from transfer_bo.surrogate.training_data import MAX_RUNS

BASE, LARGE, TARGET = Scale(width=32), Scale(width=64), Scale(width=256)
SETTINGS = StudySettings((BASE, LARGE, TARGET), (0, 1), TARGET, (1.0, 4.0, 64.0))
LR = Dimension("lr", "log", 2.0**-12, 2.0**-2)
MOMENTUM = Dimension("momentum", "linear", 0.0, 1.0)


def runs_of(count: int, **options: object) -> list[Run]:
    """Runs around lr = 2^-7."""
    rng, runs = np.random.default_rng(0), []
    for number in range(count):
        scale, z = (BASE, LARGE)[number % 2], rng.uniform(-10, -4)
        loss = (1 + (scale.width / 32) ** -0.4) * math.exp(0.02 * (z + 7) ** 2 + 0.002 * rng.normal())
        runs.append(Run(number, {"lr": 2.0**z}, scale, Outcome.FINISHED, loss, **options))
    return runs


def test_without_a_finished_run_there_is_nothing_to_fit() -> None:
    """Running, failed and scale-less runs do not help."""
    runs = [
        replace(runs_of(1)[0], outcome=Outcome.RUNNING, loss=None),
        replace(runs_of(1)[0], outcome=Outcome.ERROR, loss=None),
        replace(runs_of(1)[0], scale=None),
    ]

    with pytest.raises(NoRunsError):
        fit_surrogate(runs, [LR], SETTINGS)


def test_a_fit_is_frozen() -> None:
    """No attribute can be reassigned."""
    surrogate = fit_surrogate(runs_of(4), [LR], SETTINGS)

    with pytest.raises(FrozenInstanceError):
        surrogate.model = surrogate.model


def test_the_order_of_the_same_runs_does_not_matter_for_what_is_fitted() -> None:
    """Rows and losses are those of the runs, whichever come first."""
    runs = runs_of(8)
    forward, backward = fit_surrogate(runs, [LR], SETTINGS), fit_surrogate(runs[::-1], [LR], SETTINGS)

    assert torch.equal(forward.X, backward.X.flip(0))
    assert torch.equal(forward.y, backward.y.flip(0))
    assert torch.equal(forward.X, torch.stack([forward.row(run) for run in runs]))
    assert forward.y.tolist() == pytest.approx([math.log(run.loss) for run in runs if run.loss])


def test_losses_that_are_larger_the_better_give_the_same_optimum() -> None:
    """A metric and its negative, maximized."""
    runs = [replace(run, loss=-(run.loss or 0.0)) for run in runs_of(16)]
    flipped = [replace(run, loss=-(run.loss or 0.0)) for run in runs]

    minimized = fit_surrogate(runs, [LR], SETTINGS)
    maximized = fit_surrogate(flipped, [LR], SETTINGS, maximize=True)

    assert torch.equal(minimized.y, maximized.y)
    assert torch.equal(minimized.theta, maximized.theta)


def test_of_many_runs_the_newest_half_is_kept_and_the_older_ones_evenly() -> None:
    """Of 1000 runs 600 are fitted: the last 300, and 300 of the first 700."""
    runs = runs_of(1000)
    X = fit_surrogate(runs, [LR], SETTINGS).X[:, 0].tolist()
    z = [math.log2(run.params["lr"]) + 7 for run in runs]

    numbers = [min(range(1000), key=lambda i: abs(z[i] - x)) for x in X]

    assert MAX_RUNS == len(X)
    assert list(range(700, 1000)) == numbers[300:]
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 3


def test_a_missing_conditional_hp_sits_at_the_optimum() -> None:
    """There it does not add to the loss of a run that did not have it; values of other runs stay."""
    momenta = [None, None, 0.5, 0.9, None, 0.7, None, 0.8]
    runs = [
        replace(run, params=run.params | ({} if momentum is None else {"momentum": momentum}))
        for run, momentum in zip(runs_of(8), momenta, strict=True)
    ]

    surrogate = fit_surrogate(runs, [LR, MOMENTUM], SETTINGS)

    z = surrogate.X[:, :2] @ surrogate.coordinates.unmix.T
    values = [round(float(surrogate.coordinates.value_of(1, float(at))), 9) for at in z[:, 1]]
    optimum, _ = surrogate.optimum_posterior(BASE).optimum()
    at_base = surrogate.coordinates.value_of(1, float((surrogate.coordinates.unmix @ optimum)[1]))
    assert [0.5, 0.9, 0.7, 0.8] == [values[i] for i in (2, 3, 5, 7)]
    assert [at_base] * 3 == pytest.approx([values[i] for i in (0, 4, 6)], abs=0.1)
    assert 0.5 != values[4]


def test_an_hp_that_joined_late_had_its_default_before() -> None:
    """Only earlier runs lack it, so they count as if they had had the middle of its range."""
    momenta = [None, None, 0.5, 0.9, 0.6, 0.7, 0.7, 0.8]
    runs = [
        replace(run, params=run.params | ({} if momentum is None else {"momentum": momentum}))
        for run, momentum in zip(runs_of(8), momenta, strict=True)
    ]

    surrogate = fit_surrogate(runs, [LR, MOMENTUM], SETTINGS)

    assert [0.0, 0.0] == surrogate.X[:2, 1].tolist()


def test_pending_runs_are_those_whose_hps_are_known() -> None:
    """A running trial and a waiting one with HPs; a finished one and one without HPs are not."""
    runs = runs_of(4)
    running = replace(runs[0], outcome=Outcome.RUNNING, loss=None)
    waiting = replace(runs[1], outcome=Outcome.WAITING, loss=None)
    unknown = replace(runs[2], outcome=Outcome.RUNNING, loss=None, params={})

    surrogate = fit_surrogate([*runs, running, waiting, unknown], [LR], SETTINGS)

    assert torch.equal(surrogate.X[:2], surrogate.pending())


def test_runs_of_a_source_study_with_values_out_of_place_are_ignored() -> None:
    """A learning rate of 0 has no logarithm; this study's own runs cannot have it."""
    alien = Run(99, {"lr": 0.0}, BASE, Outcome.FINISHED, 2.0, source="old")

    surrogate = fit_surrogate([*runs_of(6), alien], [LR], SETTINGS)

    assert [] == surrogate.coordinates.sources
    assert 6 == len(surrogate.runs)
