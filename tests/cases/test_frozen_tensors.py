"""Frozen tensors are left alone: an adapter on a frozen base does not change the base's output."""

import pytest
import torch
from generated_models import BASE, TARGET, Shape, build_of, shapes, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale


class LowRank(nn.Module):
    """A frozen linear layer and a trainable addition of rank 4, zero at the start."""

    def __init__(self, frozen):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.a = nn.Linear(frozen.in_features, 4, bias=False)
        self.b = nn.Linear(4, frozen.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        """Same shape as the frozen layer's."""
        return self.frozen(x) + self.b(self.a(x))


class Single(nn.Module):
    """A residual block of one frozen layer with an adapter."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = LowRank(nn.Linear(width, width))
        self.norm.requires_grad_(False)

    def forward(self, x):
        """Same shape."""
        return x + self.mlp(self.norm(x))


class Adapted(nn.Module):
    """A frozen residual network with adapters; dropout-free, with a frozen batch norm at its end."""

    def __init__(self, scale, block=Single):
        super().__init__()
        width = scale.width
        self.stem = nn.Linear(8, width).requires_grad_(False)
        self.blocks = nn.ModuleList(block(width) for _ in range(scale.depth))
        self.norm = nn.BatchNorm1d(width).requires_grad_(False)
        self.head = nn.Linear(width, 3).requires_grad_(False)

    def forward(self, x):
        """B x 8 to B x 3."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("fold", [True, False])
@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["complete_d_p", "completep", "mup", "sp"]), st.integers(1, 9), st.integers(0, 99))
def test_the_base_keeps_its_output(fold, rule, depth, seed):
    """With adapters at zero, the network computes bit by bit what it did, in every rule and form."""
    target = Scale(width=32, depth=depth)
    p = parametrize(Adapted, Scale(width=16, depth=2), target, rule, fold=fold)
    torch.manual_seed(1000 + seed)
    model = Adapted(target).eval()
    model.norm.running_mean.normal_()
    x = torch.randn(5, 8)
    expected = model(x)

    p.initialize(model, seed=seed)
    groups = p.param_groups(model)

    assert torch.equal(expected, model(x))
    assert {id(q) for q in model.parameters() if q.requires_grad} == {
        id(q) for group in groups for q in group["params"]
    }


@pytest.mark.parametrize("fold", [True, False])
def test_what_an_adapter_learns_is_multiplied(fold):
    """The residual multiplier acts on the adapter alone, folded or not."""
    p = parametrize(Adapted, Scale(width=16, depth=2), Scale(width=16, depth=8), fold=fold)
    table = p.table().set_index("name")

    assert ("mlp",) == p.residual_branches
    assert 1 / 4 == table.loc["blocks.5.mlp.b.weight", "forward"]
    assert ("folded" if fold else "hook") == table.loc["blocks.5.mlp.b.weight", "applied"]
    assert "" == table.loc["blocks.5.mlp.a.weight", "applied"]


class TwoLayers(Single):
    """Adapters on both layers of a frozen branch: together they are linear in no layer's tensors."""

    def __init__(self, width):
        super().__init__(width)
        self.mlp = nn.Sequential(
            LowRank(nn.Linear(width, width)), nn.ReLU(), LowRank(nn.Linear(width, width))
        )


def test_adapters_that_cannot_be_multiplied_alone():
    """They are refused when depth grows, naming the branch; at the same depth they work."""
    base = Scale(width=16, depth=2)

    def build(scale):
        return Adapted(scale, TwoLayers)

    with pytest.raises(ParametrizationError) as error:
        parametrize(build, base, Scale(width=16, depth=4))
    p = parametrize(build, base, Scale(width=32, depth=2))

    assert "frozen" in str(error.value)
    assert "'mlp'" in str(error.value)
    assert 8 == len(p.tensors)


@settings(max_examples=15, deadline=None)
@given(shapes, st.sets(st.sampled_from(["embedding", "blocks.0", "heads"]), min_size=1))
def test_frozen_parts_of_generated_models(shape, frozen):
    """Parts that are frozen have no settings and are not written; all others are set up."""
    shape = Shape(**{**vars(shape), "tied": False})

    def build(scale):
        model = build_of(shape)(scale)
        for path in frozen:
            model.get_submodule(path).requires_grad_(False)
        return model

    target = TARGET.replace(depth=BASE.depth)
    p = parametrize(build, BASE, target)
    torch.manual_seed(5)
    model = build(target)
    before = {name: q.clone() for name, q in model.named_parameters()}
    p.initialize(model, seed=6)
    model(tokens())

    changed = {name for name, q in model.named_parameters() if not torch.equal(q, before[name])}
    assert {name for name, q in model.named_parameters() if q.requires_grad} == set(p.tensors)
    assert changed <= set(p.tensors)


class Probed(Adapted):
    """A new head on a frozen network, which may also hold a quantized tensor."""

    def __init__(self, scale, quantized=False):
        super().__init__(scale)
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        if quantized:
            weight = torch.zeros(scale.width, scale.width, dtype=torch.int8)
            self.quantized = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize("quantized", [True, False])
def test_a_head_on_a_frozen_network(quantized):
    """Depth grows what is not trained, so it changes nothing."""
    target = Scale(width=32, depth=6)
    p = parametrize(lambda scale: Probed(scale, quantized), Scale(width=16, depth=2), target)
    model = Probed(target, quantized)
    p.initialize(model)

    assert ["head.weight", "head.bias"] == p.table()["name"].tolist()
    assert 2 == sum(len(group["params"]) for group in p.param_groups(model))


def test_a_quantized_tensor_beside_trained_ones():
    """It has no noise added to it where residual branches are looked for."""

    def build(scale):
        model = Adapted(scale)
        weight = torch.zeros(scale.width, scale.width, dtype=torch.uint8)
        model.quantized = nn.Parameter(weight, requires_grad=False)
        return model

    p = parametrize(build, Scale(width=16, depth=2), Scale(width=32, depth=6))

    assert ("mlp",) == p.residual_branches


@pytest.mark.parametrize("axes", [{"width": 16}, {"width": 16, "depth": 2}])
def test_nothing_but_frozen_tensors(axes):
    """That is the reason, not that the width changes nothing."""
    base = Scale(axes)

    with pytest.raises(ParametrizationError, match="frozen"):
        parametrize(lambda scale: nn.Linear(8, scale.width).requires_grad_(False), base, base)


def test_blocks_that_share_their_tensors():
    """Where depth grows they are refused for that; at one depth they work."""

    def build(scale):
        block = nn.Sequential(nn.LayerNorm(scale.width), nn.Linear(scale.width, scale.width))
        blocks = nn.ModuleList([block] * int(scale.get("depth", 2)))
        return nn.Sequential(nn.Linear(8, scale.width), *blocks, nn.Linear(scale.width, 3))

    with pytest.raises(ParametrizationError, match="share"):
        parametrize(build, Scale(width=16, depth=2), Scale(width=32, depth=4))

    p = parametrize(build, Scale(width=16), Scale(width=32))
    model = build(Scale(width=32))

    assert len(list(model.parameters())) == sum(len(group["params"]) for group in p.param_groups(model))
