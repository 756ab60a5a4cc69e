"""Initial values that are drawn tensor by tensor are those of a build on the CPU, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from transfer_bo import Scale
from transfer_bo.parametrization.builds import build_real
from transfer_bo.parametrization.deferred_build import DeferredBuild, reproduces_builds
from transfer_bo.training import build_transformer

SCALE = Scale(width=32, depth=2)


def many_draws(scale: Scale) -> nn.Module:
    """Draws in place, with rejection, from other tensors, over a view; constants, tied weights, buffers."""
    model = nn.Sequential(
        nn.Embedding(50, scale.width, padding_idx=0),
        nn.Linear(scale.width, scale.width),
        nn.LayerNorm(scale.width),
        nn.Linear(scale.width, 50, bias=False),
    )
    nn.init.trunc_normal_(model[1].weight, std=0.02)
    nn.init.orthogonal_(model[3].weight)
    with torch.no_grad():
        model[1].bias.copy_(model[3].weight.sum(0))
        model[1].bias[3:5].fill_(2.0)
        model[2].weight.add_(torch.randn(scale.width))
    model[0].weight = model[3].weight
    model.register_buffer("table", torch.arange(5.0) / 3)
    model.register_buffer("data", torch.tensor([1.0, 2.0]))
    return model


def own_generator(scale: Scale) -> nn.Module:
    """Draws from a generator of its own."""
    model = build_transformer(scale)
    model.reset_parameters(torch.Generator().manual_seed(7))
    return model


@pytest.mark.parametrize("build", [build_transformer, many_draws, own_generator])
def test_values_are_those_of_a_real_build(build: Callable[[Scale], nn.Module]) -> None:
    """Tensors and buffers, asked for in any order, and twice; the caller's random state stays."""
    before = torch.get_rng_state()
    real = build_real(build, SCALE, seed=3).state_dict()
    deferred = DeferredBuild(build, SCALE, seed=3)
    fake = deferred.model.state_dict(keep_vars=True)

    assert list(real) == list(fake)
    for name in [*reversed(real), *real]:
        assert torch.equal(real[name], deferred.value(fake[name])), name
    assert torch.equal(before, torch.get_rng_state())


def test_a_build_with_a_source_of_its_own_is_recognised() -> None:
    """Then the whole model is built in each process instead."""
    calls = []

    def build(scale: Scale) -> nn.Module:
        calls.append(scale)
        model = nn.Linear(4, 4)
        nn.init.constant_(model.weight, len(calls))
        return model

    assert not reproduces_builds(build, SCALE, seed=0)
    assert reproduces_builds(many_draws, SCALE, seed=0)
