"""A mixture of experts computes what its equations say, balances its load and is trained like any model."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import transfer_bo as tb
from transfer_bo import Scale
from transfer_bo.errors import Preempted, ScaleError, TrainingError
from transfer_bo.parametrization.coordcheck import coordinate_check
from transfer_bo.scale import default_cost
from transfer_bo.training import Corpus, Transformer, TransformerConfig, build_transformer, count_flops, train
from transfer_bo.training.experts import MixtureOfExperts, balance_load

BASE = Scale(width=16, depth=1, batch=4, tokens=1280, experts=4, top_k=1, expert_width=32)
build = partial(build_transformer, vocab_size=32, head_size=8)


def mixture(experts: int = 5, top_k: int = 2) -> MixtureOfExperts:
    """Always the same weights, biases that matter."""
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, 12, experts, top_k, balance_rate=0.1).double()
    layer.reset_parameters()
    layer.bias += torch.linspace(-0.3, 0.3, experts)
    return layer


def test_it_is_the_mean_of_the_gated_outputs_of_the_best_experts() -> None:
    """Token by token: gates weigh, gates and biases rank, and the sum is divided by their number."""
    layer, x = mixture(), torch.randn(2, 7, 8, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(2):
        for j in range(7):
            gates = torch.sigmoid(layer.router.weight @ x[i, j])
            for e in (gates + layer.bias).topk(2).indices.tolist():
                expected[i, j] += gates[e] * layer.down[e] @ F.gelu(layer.up[e] @ x[i, j]) / 2

    torch.testing.assert_close(expected, layer(x))


def test_the_bias_falls_with_the_load_and_has_no_gradient() -> None:
    """b <- b - η (load - k/E), with the load as a share of the tokens; evaluation counts nothing."""
    layer, x = mixture(), torch.randn(1, 20, 8, dtype=torch.float64)
    chosen = (layer.router(x).sigmoid() + layer.bias).topk(2).indices
    load = torch.bincount(chosen.flatten(), minlength=5) / 20
    expected = layer.bias - 0.1 * (load - 2 / 5)

    layer.eval()(x)
    layer.train()(x).sum().backward()
    balance_load(layer)

    torch.testing.assert_close(expected, layer.bias)
    assert 0 == layer.count.sum()
    assert ["router.weight", "up", "down"] == sorted(
        (name for name, _ in layer.named_parameters()), key=["router.weight", "up", "down"].index
    )


def test_load_gets_even() -> None:
    """With biases alone, at frozen weights, experts that were chosen by few tokens are chosen by more."""
    layer, x = mixture(8), torch.randn(1, 400, 8, dtype=torch.float64)

    def spread() -> float:
        layer(x)
        return float(layer.count.std() / layer.count.mean())

    before = spread()
    for _ in range(300):
        balance_load(layer)
        after = spread()

    assert after < before / 5


def run(path: Path | None = None, stop_at: int = -1, **more: Any) -> tuple[float, Transformer]:
    """Train for 20 steps with AdamW and weight decay, stopping after `stop_at` of them."""
    tokens = np.random.default_rng(0).integers(0, 12, 5_000).astype(np.uint8)
    corpus = Corpus(tokens[:4_000], tokens[4_000:], 32, "noise")
    seen = iter(range(1, 100))
    model, p = build(BASE), tb.parametrize(build, BASE)
    arguments = {"batch": 4, "tokens": 1280, "context": 16, "seed": 0, "device": "cpu", "checkpoint": path}
    result = train(
        model,
        p,
        {"lr": 2**-5, "weight_decay": 0.5},
        corpus,
        stop=lambda: next(seen) == stop_at,
        **{**arguments, **more},
    )
    return result.loss, model


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    """The biases are part of the state, and move."""
    loss, whole = run()
    with pytest.raises(Preempted):
        run(tmp_path / "trial.pt", 7)
    resumed, pieces = run(tmp_path / "trial.pt")

    assert loss == resumed
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, pieces.state_dict()[name]), name
    assert whole.blocks[0].mlp.bias.abs().max() > 0.01


def test_parts_of_a_batch_count_together() -> None:
    """Gradient accumulation gives the same biases, to rounding of the weights."""
    _, whole = run(tokens=64)
    _, parts = run(tokens=64, accumulate=4)

    torch.testing.assert_close(whole.blocks[0].mlp.bias, parts.blocks[0].mlp.bias)


def test_flops_are_those_of_the_active_experts() -> None:
    """Experts that no token uses cost their row of the router only."""
    one, more = (count_flops(build, BASE.replace(experts=e), 16) for e in (4, 12))
    two = count_flops(build, BASE.replace(top_k=2), 16)

    assert 3 * 2 * 16 * 8 * 1280 == more - one
    assert 3 * 2 * 2 * 16 * 32 * 1280 == two - one


def test_cost_counts_active_parameters() -> None:
    """4 width² of attention, 2 width expert_width of each active expert; a dense block has 12 width²."""
    scale = Scale(width=64, depth=2, tokens=1000, experts=8, top_k=2, expert_width=96)

    assert 6 * 1000 * 2 * (4 * 64**2 + 2 * 2 * 64 * 96) / 12 == pytest.approx(default_cost(scale))
    assert default_cost(scale) == default_cost(scale.replace(experts=64))
    assert default_cost(Scale(width=64, tokens=9)) == default_cost(Scale(width=64, tokens=9, experts=8))


# From the base to width 4 x, expert width 8 x, so that α is doubled, experts 3 x: 2601.20205, by hand.
FACTORS = {
    "router": (1 / 4, 1 / 4, 1, 4),
    "up": (1 / 2, 1 / 4, 1 / 8, 4),
    "down": (1 / 4, 1 / 8, 1 / 4, 8),
    "q": (1 / 2, 1 / 4, 1 / 4, 4),
    "embedding": (1, 1, 1 / 4, 1),
}
TARGET = BASE.replace(width=64, expert_width=256, experts=12, top_k=3)


def test_settings_of_a_wider_model_with_more_experts() -> None:
    """Initial size, learning rate, ε and decay of each tensor; the number of experts changes nothing."""
    p = tb.parametrize(build, BASE, TARGET)
    table = p.table().drop_duplicates("module_type").set_index("module_type")

    for name, expected in FACTORS.items():
        actual = table.loc[name, ["init_std", "lr", "eps", "weight_decay"]]
        assert pytest.approx(expected) == tuple(actual), name


def test_initial_values_are_those_of_the_rule() -> None:
    """Router n^-1, experts n^-1/2 and α^-1 n^-1/2, times the base's."""
    p = tb.parametrize(build, BASE, TARGET)
    model = build(TARGET)
    p.initialize(model, {}, seed=0)
    mlp = model.blocks[0].mlp

    assert pytest.approx(16**-0.5 / 4, rel=0.25) == mlp.router.weight.std().item()
    assert pytest.approx(16**-0.5 / 2, rel=0.1) == mlp.up.std().item()
    assert pytest.approx(32**-0.5 / 4, rel=0.1) == mlp.down.std().item()
    assert not mlp.bias.any()


@pytest.mark.parametrize(("rule", "passes"), [("complete_d_p", True), ("sp", False)])
def test_coordinates_stay_with_width(rule: str, passes: bool) -> None:
    """Activations and their changes keep their size under the rule, and grow without it."""
    base = Scale(width=32, depth=2, batch=4, tokens=100)
    experts = partial(build, experts=4)

    check = coordinate_check(experts, base, rule, axes=("width",), factors=(1, 4), hps={"lr": 2**-8})

    assert passes is check.passed, check.table().to_string()


def test_a_changed_share_of_active_experts_is_remarked() -> None:
    """The rule holds at a fixed one."""
    with pytest.warns(UserWarning, match="share of experts"):
        tb.parametrize(build, BASE, BASE.replace(experts=8))
    tb.parametrize(build, BASE, BASE.replace(experts=8, top_k=2))


@pytest.mark.parametrize("sizes", [{"experts": 2, "top_k": 3}, {"top_k": 2}, {"experts": 0}])
def test_impossible_experts_are_refused(sizes: dict[str, int]) -> None:
    """More per token than there are, or none."""
    with pytest.raises(TrainingError):
        TransformerConfig(16, 1, **sizes)


def test_a_width_of_no_experts_is_refused() -> None:
    """The scale gives it to a dense model."""
    with pytest.raises(ScaleError):
        build(Scale(width=16, depth=1, expert_width=32))


def test_a_dense_block_of_the_same_sizes_has_the_initial_size_of_an_expert() -> None:
    """One expert with a gate of 1/2 at initialisation is half the dense MLP in size."""
    torch.manual_seed(0)
    dense, one = (build_transformer(Scale(width=64, depth=1), experts=e).blocks[0].mlp for e in (None, 1))
    x = torch.randn(1, 500, 64)

    with torch.no_grad():
        ratio = float(one(x).std() / dense(x).std())
    assert math.isclose(0.5, ratio, rel_tol=0.2)
