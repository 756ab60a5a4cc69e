"""Residual branches are found by what multiplying outputs does, however a block is written."""

import pytest
import torch
import torch.nn.functional as F
from small_models import VOCAB, train
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale

BASE = Scale(width=8, depth=2)
TARGET = Scale(width=16, depth=6)
HPS = {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.5}


class Loose(nn.Module):
    """Layers of the MLP lie in the block itself; one dropout serves both branches."""

    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        """Same shape."""
        x = x + self.dropout(self.mix(self.norm1(x)).cumsum(1))
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class NormedEnds(nn.Module):
    """A norm of the block's own, or a dropout, ends each branch."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 4, batch_first=True)
        self.post_attn_norm = nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.mlp_dropout = nn.Dropout(0.0)

    def forward(self, x):
        """Same shape."""
        x = x + self.post_attn_norm(self.attn(x, x, x, need_weights=False)[0])
        return x + self.mlp_dropout(self.mlp(x))


class Parallel(nn.Module):
    """Both branches read one norm; the first is gated by a layer that is called after it."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.attn = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        """Same shape."""
        h = self.norm(x)
        return x + self.attn(h).cumsum(1) * torch.sigmoid(self.gate(h)) + self.mlp(h)


class SubBlock(nn.Module):
    """A residual layer of its own."""

    def __init__(self, layer, width):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.layer = layer

    def forward(self, x, cache):
        """Same shape; the cache grows."""
        cache.append(x)
        return x + self.layer(self.norm(x)) * len(cache)


class Nested(nn.Module):
    """Residual layers in a list of the block's; what they do depends on a cache that calls change."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList(
            SubBlock(nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)), width)
            for _ in range(2)
        )

    def forward(self, x, cache=None):
        """Same shape."""
        for layer in self.layers:
            x = layer(x, [] if cache is None else cache)
        return x


class Modulated(nn.Module):
    """What the branches add is multiplied by outputs of a third layer, and by a tensor of the block."""

    def __init__(self, width):
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.attn = nn.Linear(width, width)
        self.mlp = nn.Linear(width, width)
        self.gain = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x):
        """Same shape."""
        first, second = self.modulation(F.silu(x)).chunk(2, -1)
        x = x + first * self.attn(F.layer_norm(x, x.shape[-1:])).cumsum(1)
        return x + self.gain * second * self.mlp(F.layer_norm(x, x.shape[-1:]))


class Rounded(Loose):
    """The residual stream is kept in float32, whatever the rest is."""

    def forward(self, x):
        """Same shape."""
        return x.float().to(x.dtype) + self.fc2(F.gelu(self.fc1(self.norm2(self.mix(self.norm1(x))))))


class Stack(nn.Module):
    """Blocks of one kind between an embedding and logits; a block that wants a cache gets one."""

    def __init__(self, block, scale):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.blocks = nn.ModuleList(block(scale.width) for _ in range(scale.depth))
        self.norm = nn.LayerNorm(scale.width)
        self.unembedding = nn.Linear(scale.width, VOCAB, bias=False)

    def forward(self, tokens):
        """Logits."""
        x = self.embedding(tokens)
        cache = {"cache": []} if isinstance(self.blocks[0], Nested) else {}
        for block in self.blocks:
            x = block(x, **cache)
        return self.unembedding(self.norm(x))


def build_of(block):
    """In float64."""
    return lambda scale: Stack(block, scale).double()


BRANCHES = {
    Loose: ("mix", "fc2"),
    NormedEnds: ("attn", "mlp"),
    Parallel: ("attn", "mlp"),
    Nested: ("layers.0.layer", "layers.1.layer"),
    Modulated: ("attn", "mlp"),
    Rounded: ("fc2",),
}


@pytest.mark.parametrize("block", BRANCHES)
def test_branches_are_found(block):
    """Every branch of a block is found and named after its weights."""
    p = parametrize(build_of(block), BASE, TARGET)

    assert BRANCHES[block] == p.residual_branches


@pytest.mark.parametrize("block", [block for block in BRANCHES if block is not Rounded])
def test_both_forms_train_alike(block):
    """What was found is right: folded and hooked multipliers train alike, clipping included."""
    hps = {**HPS, f"residual.{BRANCHES[block][0]}": 1.7}
    losses = []
    for fold in (True, False):
        p = parametrize(build_of(block), BASE, TARGET, fold=fold)
        model = build_of(block)(TARGET)
        p.initialize(model, hps, seed=1)
        optimizer = torch.optim.AdamW(p.param_groups(model, hps))
        losses.append(train(model, optimizer, 3, lambda m, p=p: p.clip_grad_norm_(m, 0.3)))

    assert losses[0] == pytest.approx(losses[1], rel=1e-11)
    assert losses[0][-1] < losses[0][0]


def test_the_multiplier_is_in_the_branch():
    """What each branch adds is multiplied by 1/m_L: a block adds as much as with all values multiplied."""
    build = build_of(NormedEnds)
    p = parametrize(build, BASE, TARGET)
    model, plain = build(TARGET), build(TARGET)
    p.initialize(model, {"residual.attn": 3.0, "residual.mlp": 3.0})  # times 1/3, the rule's own
    p.initialize(plain)
    with torch.no_grad():
        plain.blocks[0].post_attn_norm.weight.mul_(3)
        for name in ("weight", "bias"):
            getattr(plain.blocks[0].mlp[2], name).mul_(3)
    x = torch.randn(2, 5, 16, dtype=torch.float64)

    torch.testing.assert_close(plain.blocks[0](x), model.blocks[0](x), rtol=1e-12, atol=1e-12)


class SharedEnd(Stack):
    """The last layer's weight is one for all blocks."""

    def __init__(self, block, scale):
        super().__init__(block, scale)
        for each in self.blocks[1:]:
            each.fc2.weight = self.blocks[0].fc2.weight


def test_a_weight_that_others_use_is_not_folded_into():
    """A multiplier in a shared weight would multiply other branches too: it is hooked."""
    p = parametrize(lambda scale: SharedEnd(Loose, scale), BASE, TARGET.replace(depth=2), "mup")
    table = p.table({"residual.fc2": 2.0}).set_index("name").applied

    assert "hook" == table["blocks.0.fc2.weight"]
    assert "folded" == table["blocks.1.mix.weight"]


class AfterTheSum(Loose):
    """A nonlinearity behind the sum."""

    def forward(self, x):
        """Same shape."""
        return F.relu(super().forward(x))


class NoSkip(Loose):
    """Nothing goes past the layers."""

    def forward(self, x):
        """Same shape."""
        return super().forward(x) - x


class BareAddition(Loose):
    """A tensor that no module holds is added as well."""

    def __init__(self, width):
        super().__init__(width)
        self.shift = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """Same shape."""
        return super().forward(x) + self.shift


@pytest.mark.parametrize(
    ("block", "named"),
    [(AfterTheSum, "'blocks."), (NoSkip, "'blocks."), (BareAddition, "mix, fc2")],
)
def test_what_is_no_branch(block, named):
    """A block that is not its input plus outputs of its modules is refused, with what was found of it."""
    with pytest.raises(ParametrizationError) as error:
        parametrize(build_of(block), BASE, TARGET)

    assert named in str(error.value)
