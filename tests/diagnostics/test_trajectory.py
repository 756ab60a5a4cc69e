"""The decomposition adds up to the loss change: on one written out, and on trainings at two widths."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_bo import Scale
from transfer_bo.diagnostics.trajectory import Decomposition, TrajectoryRecorder, window_losses
from transfer_bo.diagnostics.truncation import select_truncation
from transfer_bo.display.diagnosis_figures import draw_truncation
from transfer_bo.errors import DiagnosticError
from transfer_bo.parametrization import parametrize
from transfer_bo.training import Corpus, build_transformer, train

STEPS = 60
BASE = Scale(width=16, depth=1)


@functools.cache
def corpus() -> Corpus:
    """A text that is easy to learn but not trivial: noisy counting."""
    rng = np.random.default_rng(0)
    tokens = ((np.arange(20_000) + (rng.random(20_000) < 0.1)) % 10).astype(np.uint8)
    return Corpus(tokens[:18_000], tokens[18_000:], 10, "digits")


@functools.cache
def recorded(width: int, octave: float = -5.0, by_sample: bool = False) -> Decomposition:
    """A small transformer trained for 60 steps under the rule, watched."""
    scale = BASE.replace(width=width)
    build = functools.partial(build_transformer, vocab_size=10)
    recorder = TrajectoryRecorder(
        window_losses(corpus().heldout_windows(16, 16)), STEPS, intervals=30, by_sample=by_sample
    )
    train(
        build(scale),
        parametrize(build, base=BASE, target=scale, rule="complete_d_p"),
        {"lr": 2.0**octave},
        corpus(),
        batch=8,
        tokens=8 * 16 * STEPS,
        context=16,
        seed=0,
        device="cpu",
        reports=1,
        after_step=recorder.after_step,
    )
    return recorder.result()


@pytest.mark.parametrize("width", [16, 32])
def test_parts_add_up_to_the_loss_change(width: int) -> None:
    """All directions together give the measured change of the averaged trajectory's loss, to 1%."""
    found = recorded(width)
    change = found.losses[-1] - found.losses[0]

    assert change < -0.3  # it has learned
    assert found.top()[-1] - found.losses[0] == pytest.approx(change, rel=0.01)


def test_watching_changes_nothing() -> None:
    """The recorder leaves the weights as they are: the trained model is the same to the bit."""
    losses = []
    for watched in (False, True):
        model = build_transformer(BASE, vocab_size=10)
        recorder = TrajectoryRecorder(window_losses(corpus().heldout_windows(4, 16)), 10, intervals=5)
        p = parametrize(functools.partial(build_transformer, vocab_size=10), base=BASE, target=BASE)
        losses.append(
            train(
                model, p, {"lr": 0.03}, corpus(), batch=4, tokens=640, context=16, seed=0, device="cpu",
                threads=1, reports=1, after_step=recorder.after_step if watched else None,
            ).loss
        )  # fmt: skip

    assert losses[0] == losses[1]


def test_eigenvalues_come_by_size_and_sum_to_the_trace() -> None:
    """One linear map, one interval of plain descent: λ as of the alignment matrix written out."""
    torch.manual_seed(0)
    model = nn.Linear(3, 5, bias=False).double()
    x = torch.randn(7, 3, dtype=torch.float64)

    def losses(m: nn.Module) -> Tensor:
        return m(x).square().sum(1)

    recorder = TrajectoryRecorder(losses, 1, intervals=1, by_sample=True)
    before = model.weight.detach().clone()
    recorder.after_step(0, model)
    with torch.no_grad():
        model.weight.sub_(0.01 * 2 * before @ (x.T @ x) / 7)
    recorder.after_step(1, model)
    found = recorder.result()
    moved = model.weight.detach() - before  # averaging time 1: the averaged weights are the weights
    gradient = (before + model.weight.detach()) @ (x.T @ x) / 7  # mean of both ends
    product = gradient.T @ moved
    expected = torch.linalg.eigvalsh((product + product.T) / 2)
    values = found.eigenvalues["weight"][0]

    assert (np.diff(np.abs(values)) <= 0).all()
    assert sorted(expected.tolist()) == pytest.approx(sorted(values))
    assert values.sum() == pytest.approx(found.losses[1] - found.losses[0], rel=1e-9)  # φ is a parabola
    assert ((found.mci >= 1) & (found.mci <= 3)).all()


def test_few_directions_do_most() -> None:
    """Half of the directions make nearly all of the change, at both widths, and samples have an index."""
    for width in (16, 32):
        found = recorded(width)
        share = (found.top()[width // 2 - 1] - found.losses[0]) / (found.top()[-1] - found.losses[0])
        assert 0.8 < share < 1.2
        assert width == found.width
    mci = recorded(16, by_sample=True).mci

    assert (16,) == mci.shape
    assert ((mci >= 1) & (mci <= 16)).all()


def test_truncation_of_real_trainings() -> None:
    """Two widths over five learning rates: whatever split is accepted keeps its promises."""
    octaves = [-8.0, -7.0, -6.0, -5.0, -4.0]
    small = np.array([recorded(16, octave).top() for octave in octaves])
    large = np.array([recorded(32, octave).top() for octave in octaves])
    found = select_truncation(octaves, small, large, argmin_tolerance=1.0, convex_tolerance=0.5)

    assert found is not None
    assert small[:, -1] == pytest.approx((found.top + found.sensitive)[0])
    assert all(1 <= k <= 16 for k in found.kappa)
    assert found.bound >= found.distance


def known_split(drift: float, n: int = 8) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Bowls whose top half is the same at both widths; the rest is flat but for a slope."""
    nu = [float(v) for v in range(-4, 5)]
    z = np.array(nu)
    share = np.minimum(np.arange(1, n + 1) / (n // 2), 1.0)
    beyond = np.maximum(np.arange(1, n + 1) / (n // 2) - 1.0, 0.0)
    small = 3 + np.outer(0.1 * z**2, share) - np.outer(0.1 + drift * z, beyond)
    beyond = np.maximum(np.minimum(np.arange(1, 2 * n + 1) / (n // 2), 2.0) - 1.0, 0.0)
    share = np.minimum(np.arange(1, 2 * n + 1) / (n // 2), 1.0)
    large = 3 + np.outer(0.1 * z**2, share) - np.outer(np.full(len(z), 0.4), beyond)
    return small, large, nu


def test_known_split_is_found() -> None:
    """A rest without slope: the top half is found alike at both widths, and the bound is near zero."""
    small, large, nu = known_split(0.0)
    found = select_truncation(nu, small, large)

    assert found is not None
    assert all(1 <= k <= 4 for k in found.kappa)
    assert found.bound == pytest.approx(0.0, abs=1e-6)
    assert 0.0 == found.distance


def test_bound_holds_when_the_rest_tilts() -> None:
    """A rest that tilts moves the optimum; t_n is above the shift."""
    small, large, nu = known_split(0.25)
    found = select_truncation(nu, small, large)

    assert found is not None
    assert 1.0 == found.distance
    assert found.bound >= found.distance
    assert 2 == len(draw_truncation(nu, found, (8, 16)).axes)


@pytest.mark.parametrize(
    ("nu", "shapes", "value"),
    [
        ([0, 1], ((2, 4), (2, 8)), "[0, 1]"),
        ([0, 1, 3], ((3, 4), (3, 8)), "[0, 1, 3]"),
        ([0, 1, 2], ((3, 8), (3, 4)), "(3, 8)"),
    ],
)
def test_bad_grids_are_named(nu: list[float], shapes: tuple, value: str) -> None:
    """Each mistake has an error that names the value at fault."""
    with pytest.raises(DiagnosticError) as caught:
        select_truncation(nu, np.ones(shapes[0]), np.ones(shapes[1]))

    assert value in str(caught.value)


def test_recorder_names_its_misuse() -> None:
    """Nothing recorded, a late start and a run without steps are refused."""
    recorder = TrajectoryRecorder(lambda model: torch.ones(1), 10)

    with pytest.raises(DiagnosticError):
        recorder.result()
    with pytest.raises(DiagnosticError) as late:
        recorder.after_step(3, nn.Linear(1, 1))
    with pytest.raises(DiagnosticError) as empty:
        TrajectoryRecorder(lambda model: torch.ones(1), 0)

    assert "step 3" in str(late.value)
    assert "steps = 0" in str(empty.value)
