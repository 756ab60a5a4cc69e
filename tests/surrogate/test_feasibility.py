"""Will a run diverge, or run out of memory?"""

from __future__ import annotations

import pytest
import torch

from transfer_bo.dimension import Dimension
from transfer_bo.records import Outcome, Run, StudySettings
from transfer_bo.scale import Scale
from transfer_bo.search.acquisition import RISK
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.feasibility import FeasibilityModel
from transfer_bo.surrogate.surrogate import fit_surrogate

BASE, LARGE, TARGET = Scale(width=32), Scale(width=128), Scale(width=512)
LR = Dimension("lr", "log", 2**-12, 2**-2)
KIND = Dimension("kind", "categorical", choices=("a", "b"))
COORDINATES = Coordinates([LR, KIND], BASE, ["width"])


def row(lr: float, scale: Scale, kind: str = "a") -> torch.Tensor:
    """A row of the surrogate's input."""
    return COORDINATES.row({"lr": lr, "kind": kind}, scale)


def test_the_boundary_moves_with_the_scale() -> None:
    """Where the cliff falls from 2^-4 to 2^-6 between widths 32 and 128, it is lower still at 512."""
    cliffs = {BASE: -4.0, LARGE: -6.0}
    places = [(lr / 4, scale) for scale in cliffs for lr in range(-44, -4)]
    X = torch.stack([row(2.0**lr, scale) for lr, scale in places])
    model = FeasibilityModel(COORDINATES, X, torch.tensor([lr > cliffs[scale] for lr, scale in places]))

    def boundary(scale: Scale) -> float:
        lrs = torch.linspace(-14, -1, 261)
        risk = model.probability(torch.stack([row(float(2**lr), scale) for lr in lrs]))
        assert (risk.diff() > 0).all()
        return float(lrs[int((risk - 0.5).abs().argmin())])

    assert abs(boundary(BASE) - cliffs[BASE]) < 1
    assert abs(boundary(LARGE) - cliffs[LARGE]) < 1
    assert boundary(TARGET) < boundary(LARGE) < boundary(BASE)


def test_a_choice_may_be_unstable() -> None:
    """Where one choice diverged at every learning rate and the other nowhere, only that one is risky."""
    places = [(lr, kind) for kind in "ab" for lr in range(-10, -4)]
    X = torch.stack([row(2.0**lr, BASE, kind) for lr, kind in places])
    model = FeasibilityModel(COORDINATES, X, torch.tensor([kind == "b" for _, kind in places]))

    stable, unstable = model.probability(torch.stack([row(2**-7, BASE, kind) for kind in "ab"])).tolist()

    assert stable < RISK < unstable


@pytest.mark.parametrize(
    ("outcome", "diverged", "lacked"),
    [
        (Outcome.DIVERGED, True, False),
        (Outcome.OUT_OF_MEMORY, False, True),
        (Outcome.ERROR, False, False),
        (Outcome.PREEMPTED, False, False),
        (Outcome.RUNNING, False, False),
        (Outcome.PRUNED, False, False),
    ],
)
def test_only_typed_outcomes_tell(outcome: Outcome, diverged: bool, lacked: bool) -> None:
    """An error or preemption at high learning rates makes nothing risky; lack of memory is not divergence."""
    settings = StudySettings((BASE, LARGE, TARGET), (0, 1), TARGET, (1.0, 16.0, 256.0))
    runs = [Run(i, {"lr": 2.0 ** -(6 + i)}, BASE, Outcome.FINISHED, 3.0 + i / 10) for i in range(4)]
    runs += [Run(9, {"lr": 0.2}, BASE, outcome, None)]

    surrogate = fit_surrogate(runs, [LR], settings)

    assert diverged == surrogate.divergence.any_infeasible
    assert lacked == surrogate.memory.any_infeasible


def test_memory_has_no_cliff_in_the_learning_rate() -> None:
    """What ran out of memory at the larger scale does so there whatever the learning rate."""
    places = [(lr, scale) for scale in (BASE, LARGE) for lr in (-9, -7, -5)]
    X = torch.stack([row(2.0**lr, scale) for lr, scale in places])
    lacked = torch.tensor([scale == LARGE for _, scale in places])
    model = FeasibilityModel(COORDINATES, X, lacked, priors.MEMORY)

    low, high = model.probability(torch.stack([row(2.0**lr, LARGE) for lr in (-11, -3)])).tolist()

    assert abs(low - high) < 1e-6
    assert float(model.probability(row(2**-7, BASE)[None])) < RISK < low
