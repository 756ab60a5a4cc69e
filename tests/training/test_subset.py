"""Subsets of the data: gradients and weights as written out, sizes, order, and a resumed run."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from transfer_bo.errors import TrainingError
from transfer_bo.scale import Scale
from transfer_bo.training import Corpus, build_transformer
from transfer_bo.training.subset import (
    SubsetBatches,
    last_layer_gradients,
    match_gradients,
    selection_share,
    subset_sizes,
    trained_scale,
)

SCALE = Scale(width=16, depth=1, batch=4, tokens=4 * 8 * 20, data_fraction=0.25)


@functools.cache
def corpus() -> Corpus:
    """A text of ten tokens."""
    tokens = np.random.default_rng(0).integers(0, 10, 4_000).astype(np.uint8)
    return Corpus(tokens[:3_000], tokens[3_000:], 10, "digits")


def test_the_duration_is_that_of_the_subset() -> None:
    """A scale without the axis stays; with it the tokens shrink and the axis goes."""
    plain = Scale(width=16, tokens=1000)

    assert plain == trained_scale(plain)
    assert Scale(width=16, tokens=250) == trained_scale(plain.replace(data_fraction=0.25))


def test_gradients_are_those_of_the_last_layer() -> None:
    """Inner products of the sketches are those of autograd's gradients, as small sides are not sketched."""
    torch.manual_seed(0)
    model = build_transformer(Scale(width=16, depth=1), vocab_size=10)
    windows = corpus().batch(0, 1, 12, 8).split(4)
    expected = []
    for part in windows:
        loss = nn.functional.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
        (gradient,) = torch.autograd.grad(loss, [model.unembedding.weight])
        expected.append(gradient.flatten())
    G = torch.stack(expected).double().numpy()
    found = last_layer_gradients(model, windows, 10)

    # The model may multiply its logits, which scales all gradients alike.
    ratio = np.linalg.norm(found[0]) / np.linalg.norm(G[0])
    assert found @ found.T / ratio**2 == pytest.approx(G @ G.T, rel=1e-4)
    assert model.training


def test_a_model_without_a_last_linear_layer_is_refused() -> None:
    """Logits that no linear layer gives have unknown gradients."""
    with pytest.raises(TrainingError) as caught:
        last_layer_gradients(nn.Embedding(10, 10), corpus().batch(0, 1, 4, 8).split(2), 10)

    assert "linear layer" in str(caught.value)


def test_matching_pursuit_finds_what_adds_up_to_the_mean() -> None:
    """Twelve rows, of which two point to where the mean lies; all others cancel in pairs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, 30))
    signal = np.zeros((2, 30))
    signal[0, 0], signal[1, 1] = 40.0, 20.0
    weights = match_gradients(np.vstack([noise, signal, -noise]), 2)

    assert {5, 6} == set(np.flatnonzero(weights))
    assert weights[5] == pytest.approx(weights[6], rel=0.05)


@pytest.mark.parametrize("count", [1, 5, 100, 200])
def test_matching_is_better_than_chance_and_never_negative(count: int) -> None:
    """So many rows are chosen; their weighted sum is closer to the mean than that of random rows."""
    rng = np.random.default_rng(1)
    G = rng.normal(size=(200, 40)) + rng.normal(size=40)
    weights = match_gradients(G, count)
    at_random = G[rng.choice(200, count, replace=False)].mean(0)
    error = np.linalg.norm(weights @ G - G.mean(0))

    assert count == (weights > 0).sum()
    assert (weights >= 0).all()
    assert error <= np.linalg.norm(at_random - G.mean(0)) + 1e-3


def test_sizes_count_each_window_once() -> None:
    """The pool is what a full run draws, at most the text; a subset below one batch is refused."""
    assert (20, 5) == subset_sizes(corpus(), SCALE, 8)
    assert (93, 23) == subset_sizes(corpus(), SCALE.replace(tokens=10**6), 8)
    with pytest.raises(TrainingError) as caught:
        subset_sizes(corpus(), SCALE.replace(data_fraction=0.04), 8)

    assert "0.04" in str(caught.value)
    assert selection_share(corpus(), SCALE, 8, "gradient") == pytest.approx(1 / 3)
    assert 0 == selection_share(corpus(), SCALE, 8, "random")
    assert 0 == selection_share(corpus(), SCALE.replace(data_fraction=1), 8, "gradient")


def numbers(batches: SubsetBatches, first: int = 1) -> list[int]:
    """Which batches of the pool the steps use."""
    return [batches._number(step) for step in range(first, batches.steps + 1)]


def test_a_random_subset_is_seen_in_epochs() -> None:
    """Of a text that is short for the run each epoch has every batch of the subset once, in a new order."""
    batches = SubsetBatches(corpus(), SCALE.replace(tokens=4 * 8 * 400), 8, "random", seed=0)
    drawn = numbers(batches)

    assert (93, 23, 100) == (batches.pool, batches.chosen, batches.steps)
    assert set(range(23)) == set(drawn[:23]) == set(drawn[23:46])
    assert drawn[:23] != drawn[23:46]
    assert (4, 9) == tuple(batches.batch(0, 1, 4, 8).shape)


def test_a_gradient_subset_is_chosen_once_and_kept(tmp_path: Path) -> None:
    """After a fifth of the steps; a run that is resumed later reads it, one without it is refused."""
    model = build_transformer(Scale(width=16, depth=1), vocab_size=10)
    make = functools.partial(
        SubsetBatches, corpus(), SCALE.replace(tokens=4 * 8 * 400), 8, "gradient", seed=3
    )
    batches = make(file=tmp_path / "trial" / "subset.npy")
    for step in range(batches.steps + 1):
        batches.after_step(step, model)
    later = numbers(batches, batches.random_steps + 1)
    resumed = make(file=tmp_path / "trial" / "subset.npy")

    assert 20 == batches.selects_at
    assert len(set(later)) <= batches.chosen
    assert later == numbers(resumed, batches.random_steps + 1)
    with pytest.raises(TrainingError):
        make().batch(0, batches.random_steps + 1, 4, 8)
