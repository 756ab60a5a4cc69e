"""Adapters compute what their equations say, leave the frozen model alone and have the rule's settings."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import transfer_bo as tb
from transfer_bo import Scale
from transfer_bo.errors import ParametrizationError, Preempted, TrainingError
from transfer_bo.training import Corpus, build_transformer, train
from transfer_bo.training.adapters import (
    ROLES,
    AdapterConfig,
    Ether,
    Smoa,
    adapted,
    add_adapters,
    spectral_parts,
)

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
METHODS = [pytest.param("lora", marks=needs_peft), "ether", "smoa"]
SCALE = Scale(width=16, depth=2, batch=2, tokens=320)
RANKED = SCALE.replace(rank=2)
build = partial(build_transformer, vocab_size=16, head_size=8)


def linear(inputs: int = 8, outputs: int = 6) -> nn.Linear:
    """Always the same weights."""
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float64).requires_grad_(False)


def test_a_reflection_keeps_the_size_of_each_block() -> None:
    """The layer sees (I - 2 u uᵀ) x, block by block, and applying it twice gives x back."""
    layer, x = Ether(linear(), 2).double(), torch.randn(3, 8, dtype=torch.float64)
    u = layer.ether_u / layer.ether_u.norm(dim=1, keepdim=True)
    H = torch.block_diag(*(torch.eye(4) - 2 * torch.outer(v, v) for v in u))
    layer.layer.weight.copy_(torch.eye(8)[:6])

    torch.testing.assert_close((x @ H)[:, :6], layer(x))
    torch.testing.assert_close(torch.eye(8, dtype=torch.float64), H @ H)


@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e6])
def test_no_step_takes_a_reflected_weight_away(lr: float) -> None:
    """Its distance to the trained weight is at most 2 |W|, whatever the learning rate."""
    layer = Ether(linear(), 2).double()
    optimizer = torch.optim.SGD([layer.ether_u], lr)
    layer(torch.ones(1, 8, dtype=torch.float64)).sum().backward()
    optimizer.step()

    with torch.no_grad():
        effective = layer(torch.eye(8, dtype=torch.float64)).T
    assert (effective - layer.layer.weight).norm() <= 2.001 * layer.layer.weight.norm()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_spectral_parts(parts: int) -> None:
    """They sum to the weight, share no singular direction, and their spectra have about the same sum."""
    weight = linear(20, 30).weight
    found = spectral_parts(weight, parts)
    sums = torch.linalg.svdvals(found).sum(-1)

    torch.testing.assert_close(weight, found.sum(0))
    assert sums.max() < 2 * sums.min()
    assert parts == 1 or found[0].T.mul(found[1].T).sum().abs() < 1e-12


def test_smoa_modulates_the_parts_of_the_weight() -> None:
    """W + α/√r sum of W_k ∘ (B_k A_k); its update has a higher rank than each B_k A_k."""
    layer = Smoa(linear(), 2, 1, 0.5).double()
    with torch.no_grad():
        layer.smoa_b.normal_()
    W, x = layer.layer.weight, torch.randn(3, 8, dtype=torch.float64)
    change = sum(
        part * (b @ a) for part, b, a in zip(spectral_parts(W, 2), layer.smoa_b, layer.smoa_a, strict=True)
    )

    torch.testing.assert_close(x @ (W + 0.5 * change).T, layer(x))
    assert torch.linalg.matrix_rank(change) > 2


def weights(folder: Path, scale: Scale = SCALE) -> str:
    """A file of weights that no build draws."""
    model = build(scale)
    model.reset_parameters(torch.Generator().manual_seed(99))
    torch.save(model.state_dict(), folder / f"{scale.width}.pt")
    return str(folder / "{width}.pt")


def run(build_adapted: Any, p: Any, checkpoint: Path | None = None, stop_at: int = -1) -> nn.Module:
    """Train the adapted model for 10 steps with weight decay."""
    tokens = np.random.default_rng(0).integers(0, 12, 5_000).astype(np.uint8)
    corpus = Corpus(tokens[:4_000], tokens[4_000:], 16, "noise")
    seen = iter(range(1, 100))
    model: nn.Module = build_adapted(SCALE)
    arguments: dict[str, Any] = {"batch": 2, "tokens": 320, "context": 16, "seed": 0, "device": "cpu"}
    stop = lambda: next(seen) == stop_at  # noqa: E731
    hps = {"lr": 2**-5, "weight_decay": 0.5}
    train(model, p, hps, corpus, stop=stop, checkpoint=checkpoint, **arguments)
    return model


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that are not trained, by the names that they had before adapters."""
    return {
        name.replace("base_layer.", "").replace(".layer.", "."): p
        for name, p in model.named_parameters()
        if not p.requires_grad
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_trained_model_stays_as_it_is(method: str, tmp_path: Path) -> None:
    """Bit by bit: its weights are loaded, neither drawn again nor trained, and resuming changes no bit."""
    file = weights(tmp_path)
    build_adapted = adapted(build, AdapterConfig(method, rank=2), file)
    p = tb.parametrize(build_adapted, SCALE, roles=ROLES[method])
    expected = torch.load(tmp_path / "16.pt", weights_only=True)
    with pytest.raises(Preempted):
        run(build_adapted, p, tmp_path / "trial.pt", 4)
    model = run(build_adapted, p, tmp_path / "trial.pt")
    whole = run(build_adapted, p)

    assert expected.keys() == frozen(model).keys()
    for name, value in frozen(model).items():
        assert torch.equal(expected[name], value), name
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    trained = {id(q) for group in p.param_groups(model) for q in group["params"]}
    assert {id(q) for q in model.parameters() if q.requires_grad} == trained


@pytest.mark.parametrize("method", [METHODS[0], "smoa"])
def test_training_starts_at_the_trained_model(method: str, tmp_path: Path) -> None:
    """The new tensors add nothing at first."""
    build_adapted = adapted(build, AdapterConfig(method, rank=2), weights(tmp_path))
    model, plain = build_adapted(SCALE), build(SCALE)
    plain.load_state_dict(torch.load(tmp_path / "16.pt", weights_only=True))
    tb.parametrize(build_adapted, SCALE, roles=ROLES[method]).initialize(model, {}, seed=0)
    tokens = torch.arange(16).view(1, 16)

    torch.testing.assert_close(plain(tokens), model(tokens))


# From the base to width 4 x and rank 9 x: initial size, learning rate, ε, decay, by hand.
FACTORS = {
    "lora": {"lora_A": (1 / 2, 1 / 4, 1 / 9, 4), "lora_B": (1, 1 / 3, 1 / 12, 3)},
    "smoa": {"smoa_a": (1, 1, 1 / 36, 1), "smoa_b": (1, 1 / 3, 1 / 12, 3)},
}


@pytest.mark.parametrize("method", [METHODS[0], "smoa"])
def test_settings_follow_width_and_rank(method: str) -> None:
    """LoRA+ over the width, the derived exponents over the rank."""
    base, target = SCALE.replace(rank=1), SCALE.replace(width=64, rank=9)
    build_adapted = adapted(build, AdapterConfig(method), None)
    p = tb.parametrize(build_adapted, base, target, roles=ROLES[method])
    columns = ["init_std", "lr", "eps", "weight_decay"]

    for name, expected in FACTORS[method].items():
        table = p.table()[lambda rows, name=name: rows.name.str.contains(name)][columns].drop_duplicates()
        assert 1 == len(table), table
        assert pytest.approx(expected) == tuple(table.iloc[0]), name


@pytest.mark.slow  # imports and builds of transformers
@needs_peft
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_of_peft() -> None:
    """LoRA in a Llama: with a rank axis an adapter, without one a low-rank map with the same factors."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama(scale: Scale) -> nn.Module:
        sizes = {"hidden_size": scale.width, "intermediate_size": 2 * scale.width, "vocab_size": 16}
        heads = {"num_attention_heads": scale.width // 8, "num_hidden_layers": scale.depth}
        lora = LoraConfig(r=scale.get("rank", 2), target_modules=["q_proj", "v_proj"], use_rslora=True)
        return get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes, **heads)), lora)

    base, target = Scale(width=16, depth=2, rank=2), Scale(width=32, depth=2, rank=4)
    p = tb.parametrize(llama, base, target)
    without = tb.parametrize(llama, Scale(width=16, depth=2), Scale(width=32, depth=2))
    same = p.at(target.replace(rank=2)).table()

    assert {"adapter_down", "adapter_up"} == {str(tensor.role) for tensor in p.tensors.values()}
    assert {"wide_to_narrow", "narrow_to_wide"} == {str(tensor.role) for tensor in without.tensors.values()}
    assert np.allclose(same.init_std, without.table().init_std)
    assert np.allclose(same.lr, without.table().lr)


@needs_peft
def test_another_scale_of_updates_is_remarked() -> None:
    """The rule supposes rsLoRA's, α/√r; LoRA's own is α/r."""
    from peft import LoraConfig, inject_adapter_in_model

    def plain_lora(scale: Scale) -> nn.Module:
        model = build(scale).requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=scale.rank, target_modules=["q"]), model)
        return model

    with pytest.warns(UserWarning, match="use_rslora"):
        tb.parametrize(plain_lora, RANKED, RANKED.replace(rank=4))


def test_weights_are_needed_at_the_scales_in_use_only(tmp_path: Path) -> None:
    """Base and target have some; where there are none a build is refused."""
    target = SCALE.replace(width=64)
    weights(tmp_path)
    build_adapted = adapted(build, AdapterConfig("ether"), weights(tmp_path, target))

    p = tb.parametrize(build_adapted, SCALE, target, roles=ROLES["ether"])
    p.initialize(build_adapted(target), {}, seed=0)

    with pytest.raises(TrainingError):
        build_adapted(SCALE.replace(width=32))


def test_a_rank_that_the_model_ignores_is_refused() -> None:
    """An axis that changes nothing is a mistake."""
    with pytest.raises(ParametrizationError):
        tb.parametrize(build, RANKED, RANKED.replace(rank=4))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lorra"},
        {"rank": 0},
        {"layers": ()},
        {"layers": ("q", "w")},
        {"layers": ("attn",)},
        {"method": "smoa", "rank": 17},
        {"method": "ether", "parts": 3},
    ],
)
def test_impossible_adapters_are_refused(settings: dict[str, Any]) -> None:
    """Unknown methods and layers, ranks above the width, blocks that do not divide it."""
    with pytest.raises(TrainingError):
        add_adapters(build(SCALE), AdapterConfig(**settings))


def test_a_file_name_with_an_unknown_axis_is_refused() -> None:
    """Braces name axes."""
    with pytest.raises(TrainingError):
        adapted(build, AdapterConfig("ether"), "{size}.pt")(SCALE)
