"""The decomposition adds up to the loss change: on one written out, and on trainings at two widths."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_bo import Scale
from transfer_bo.diagnostics.trajectory import Decomposition, TrajectoryRecorder, window_losses
from transfer_bo.diagnostics.truncation import (
    closest_attempt,
    select_truncation,
    tightest_truncation,
    vertex,
)
from transfer_bo.diagnostics.widths import WatchedRun, compare_widths
from transfer_bo.display.diagnosis_figures import draw_truncation
from transfer_bo.display.trajectory import comparison_sentences, draw_comparison
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


def known_split(small_tilt: float, large_tilt: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Bowls of curvature .2: the top 4 of 8 and of 16 directions are alike, the next 4 make a tilted line."""
    nu = [float(v) for v in range(-4, 5)]
    z = np.array(nu)

    def losses(n: int, tilt: float) -> np.ndarray:
        k = np.arange(1, n + 1)
        top, others = np.minimum(k / 4, 1.0), np.clip(k / 4 - 1.0, 0.0, 1.0)
        return 3 + np.outer(0.1 * z**2, top) - np.outer(0.1 + tilt * z, others)

    return losses(8, small_tilt), losses(16, large_tilt), nu


@pytest.mark.parametrize(("small", "large"), [(0.0, 0.0), (0.25, 0.0), (0.0, 0.25), (0.25, -0.25)])
def test_bound_of_a_known_split(small: float, large: float) -> None:
    """The top halves are alike, so the bound is its flatness, the tilts over the curvature; it is tight."""
    of_small, of_large, nu = known_split(small, large)
    found = select_truncation(nu, of_small, of_large)

    assert found is not None
    assert (4,) * 9 == found.kappa
    assert found.invariance == pytest.approx(0.0, abs=1e-12)
    assert found.flatness == pytest.approx((abs(small) + abs(large)) / 0.2)
    assert found.distance == pytest.approx(found.bound, abs=1e-6)
    assert 2 == len(draw_truncation(nu, found, (8, 16)).axes)


def test_top_parts_that_bend_down_are_refused() -> None:
    """A third of the second differences is negative, a quarter is allowed; what is missing can be shown."""
    losses = np.array([[2.0], [1.0], [0.0], [1.0], [1.5]])  # second differences 0, 2, -.5
    nu = [0.0, 1.0, 2.0, 3.0, 4.0]

    assert select_truncation(nu, losses, losses) is None
    closest = closest_attempt(nu, losses, losses)
    assert 1 / 3 == pytest.approx(closest.concave)
    assert 0.0 == closest.displacement


def test_the_tightest_split_may_be_one_that_is_not_accepted() -> None:
    """Top parts with a kink are accepted and have no bound; one k for all learning rates has."""
    nu = [-2.0, -1.0, 0.0, 1.0, 2.0]
    kinked = np.array([4.0, 3.2, 3.6, 3.1, 4.1])
    losses = np.column_stack([kinked, 3 + 0.1 * np.square(nu)])
    other = np.column_stack([kinked, 3.3 + 0.1 * np.square(nu)])
    accepted = select_truncation(nu, losses, other, convex_tolerance=0.4)
    tightest = tightest_truncation(nu, losses, other)

    assert accepted is not None
    assert np.inf == accepted.bound
    assert (2,) * 5 == tightest.kappa
    assert tightest.bound == pytest.approx(2 * (0.3 / 0.2) ** 0.5)


def test_vertex_lies_between_grid_points() -> None:
    """Of a parabola it is exact, at an end of the grid it is the end."""
    grid = np.arange(5.0)

    assert vertex(grid, (grid - 1.7) ** 2) == pytest.approx(1.7)
    assert 4.0 == vertex(grid, -grid)


def watched(width: int, tilt: float, octaves: list[float]) -> list[WatchedRun]:
    """Runs whose optimum is shifted by the tilt; the top half of the directions is a bowl."""
    k = np.arange(1, width + 1) / (width // 2)
    tops = [
        3 + 0.1 * (z + 3) ** 2 * np.minimum(k, 1.0) - (1 + tilt * (z + 3)) * np.clip(k - 1, 0, 1)
        for z in octaves
    ]
    return [
        WatchedRun(width, z, seed, tuple(top), 4.0)
        for seed in (0, 1)
        for z, top in zip(octaves, tops, strict=True)
    ]


def test_widths_are_compared_with_the_largest() -> None:
    """Seeds are averaged, the optima's distance is found, and a learning rate that diverged is left out."""
    octaves = [-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0]
    runs = [*watched(4, 0.1, octaves), *watched(8, 0.0, octaves)]
    runs[6] = WatchedRun(4, 0.0, 0, None)
    found = compare_widths(runs)
    (split,) = found.splits

    assert (4, 8) == found.widths
    assert tuple(octaves[:-1]) == found.octaves
    assert 2 == found.seeds
    assert found.optima == pytest.approx((-2.5, -3.0))
    assert split.convex
    assert split.found is not None
    assert split.found.distance == pytest.approx(0.5)
    assert split.found.bound >= split.tightest.bound >= split.found.distance
    text = " ".join(comparison_sentences(found))
    assert "0.50 octaves" in text
    assert "learning rate 1." in text
    assert 4 == len(draw_comparison(found).axes)


def test_a_split_that_is_not_found_is_explained() -> None:
    """Losses that bend down everywhere: the sentence has the share of negative second differences."""
    runs = [
        WatchedRun(width, float(z), 0, tuple([3 - 0.1 * z**2] * width), 4.0)
        for width in (2, 4)
        for z in range(-3, 4)
    ]
    found = compare_widths(runs)
    (split,) = found.splits

    assert split.found is None
    assert not split.convex
    assert "100%" in split.reason
    assert split.reason in comparison_sentences(found)
    assert found.to_json()["splits"][0]["accepted"] is None
    assert "no split bounds this" in " ".join(comparison_sentences(found))
    draw_comparison(found).draw_without_rendering()


def test_one_width_or_few_learning_rates_are_refused() -> None:
    """Each is a sentence of its own."""
    octaves = [-4.0, -3.0, -2.0, -1.0]
    with pytest.raises(DiagnosticError) as one:
        compare_widths(watched(4, 0.0, octaves))
    with pytest.raises(DiagnosticError) as few:
        compare_widths([*watched(4, 0.0, octaves), *watched(8, 0.0, octaves)])

    assert "have 4" in str(one.value)
    assert "4 learning rates" in str(few.value)


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
