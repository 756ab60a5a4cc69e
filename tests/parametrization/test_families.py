"""Roles in models of many kinds, none of them with a hint: only how a tensor is used can tell them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_models import Block, Model, dissect_at
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale

BASE = Scale(width=8, depth=2)
TARGET = Scale(width=32, depth=6)


def tensors_of(build, base=BASE, target=TARGET, **options):
    """Tensor by name."""
    return dissect_at(build, base, target, **options).tensors


def roles_of(build, **options):
    """Role by name."""
    return {name: str(t.role) for name, t in tensors_of(build, **options).items()}


class Conv1D(nn.Module):
    """Keeps its weight as (in, out), with the bias of nn.Linear."""

    def __init__(self, inner, outer):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(inner, outer))
        self.bias = nn.Parameter(torch.zeros(outer))

    def forward(self, x):
        """Last dimension `inner` to `outer`."""
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


def with_mlp(make):
    """A build whose blocks have another MLP."""

    def build(scale):
        model = Model(scale)
        for block in model.blocks:
            block.mlp = make(scale.width)
        return model

    return build


class Narrow(nn.Module):
    """(in, out) weights, of which one has a fixed number of outputs and one of inputs."""

    def __init__(self, width):
        super().__init__()
        self.down = Conv1D(width, 3)
        self.up = Conv1D(3, width)

    def forward(self, x):
        """Same shape."""
        return self.up(F.gelu(self.down(x)))


def test_weights_kept_as_in_out():
    """What is summed over when the model runs is the fan-in, however a weight is stored."""
    roles = roles_of(with_mlp(Narrow))

    assert {
        "blocks.3.mlp.down.weight": "wide_to_narrow",
        "blocks.3.mlp.down.bias": "shared",
        "blocks.3.mlp.up.weight": "narrow_to_wide",
        "blocks.3.mlp.up.bias": "hidden_bias",
    }.items() <= roles.items()


class Uneven(nn.Module):
    """Its inner size grows by another factor than the width."""

    def __init__(self, width):
        super().__init__()
        self.up = Conv1D(width, width + 8)
        self.down = Conv1D(width + 8, width)

    def forward(self, x):
        """Same shape."""
        return self.down(F.gelu(self.up(x)))


def test_ratios_of_weights_kept_as_in_out():
    """Width and fan-out ratios follow the use, not the order of dimensions."""
    tensors = tensors_of(with_mlp(Uneven))

    assert (4, 40 / 16) == (
        tensors["blocks.0.mlp.up.weight"].width,
        tensors["blocks.0.mlp.up.weight"].fan_out,
    )
    assert (40 / 16, 4) == (
        tensors["blocks.0.mlp.down.weight"].width,
        tensors["blocks.0.mlp.down.weight"].fan_out,
    )


class Fused(nn.Module):
    """Four experts in one tensor each, all of them mixed; a router by softmax."""

    def __init__(self, width):
        super().__init__()
        self.select = nn.Linear(width, 4)
        self.first = nn.Parameter(0.1 * torch.randn(4, 2 * width, width))
        self.second = nn.Parameter(0.1 * torch.randn(4, width, 2 * width))

    def forward(self, x):
        """Same shape."""
        share = self.select(x).softmax(-1)
        h = F.silu(torch.einsum("efd,btd->btef", self.first, x))
        return torch.einsum("edf,btef->btd", self.second, h * share[..., None])


class Listed(nn.Module):
    """Four experts as modules, of which the best one by sigmoid is taken: some are never reached."""

    def __init__(self, width):
        super().__init__()
        self.select = nn.Linear(width, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(4)
        )

    def forward(self, x):
        """Same shape."""
        score, best = self.select(x).sigmoid().max(-1, keepdim=True)
        out = torch.zeros_like(x)
        for i in range(2):
            out = out + self.experts[i](x) * score * (best == i)
        return out


@pytest.mark.parametrize(
    ("make", "up", "down"),
    [
        (Fused, "first", "second"),
        (Listed, "experts.3.0.weight", "experts.3.2.weight"),
    ],
)
def test_experts(make, up, down):
    """Routers and an expert's first and second layer are distinguished, fused or not, reached or not."""
    roles = roles_of(with_mlp(make))

    assert "router" == roles["blocks.0.mlp.select.weight"]
    assert "expert_up" == roles[f"blocks.0.mlp.{up}"]
    assert "expert_down" == roles[f"blocks.0.mlp.{down}"]
    if make is Fused:
        assert "shared" == roles["blocks.0.mlp.select.bias"]


class Selected(nn.Module):
    """Experts in one tensor each, as many as `count` says, the better half of them taken."""

    def __init__(self, width, count):
        super().__init__()
        self.select = nn.Linear(width, count, bias=False)
        self.first = nn.Parameter(0.1 * torch.randn(count, 2 * width, width))
        self.second = nn.Parameter(0.1 * torch.randn(count, width, 2 * width))

    def forward(self, x):
        """Same shape."""
        share, chosen = self.select(x).sigmoid().topk(self.select.out_features // 2, -1)
        h = F.silu(torch.einsum("efd,btd->btef", self.first, x))
        out = torch.einsum("edf,btef->bted", self.second, h)
        return (share[..., None] * out.gather(2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))).sum(2)


def test_experts_whose_number_grows():
    """With more experts in a wider model a router grows like a hidden weight, but its product is ranked."""
    tensors = tensors_of(with_mlp(lambda width: Selected(width, width // 2)))
    roles = [tensors[f"blocks.0.mlp.{name}"].role for name in ("select.weight", "first", "second")]

    assert ["router", "expert_up", "expert_down"] == roles
    assert 4 == tensors["blocks.0.mlp.select.weight"].width


class Numbered(Listed):
    """As `Listed`, with as many experts as the scale says."""

    def __init__(self, width, count):
        super().__init__(width)
        self.select = nn.Linear(width, count, bias=False)
        self.experts.extend(nn.Sequential(*map(copy.deepcopy, self.experts[0])) for _ in range(count - 4))


def test_experts_on_an_axis_of_their_own():
    """More experts than the base has: each corresponds to one of the base's."""

    def build(scale):
        model = Model(scale)
        for block in model.blocks:
            block.mlp = Numbered(scale.width, scale["experts"])
        return model

    tensors = tensors_of(build, BASE.replace(experts=4), TARGET.replace(experts=8))
    seventh = tensors["blocks.5.mlp.experts.7.2.weight"]

    assert "expert_down" == seventh.role
    assert "blocks.1.mlp.experts.0.2.weight" == seventh.base_name
    assert "router" == tensors["blocks.5.mlp.select.weight"].role


class SharedKeys(nn.Module):
    """One key and value head for all query heads; queries, keys and values in one matrix; bare scales."""

    def __init__(self, width):
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 8)
        self.o = nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(4))
        self.gain = nn.Parameter(torch.full((width,), 0.1))
        self.sinks = nn.Parameter(torch.zeros(width // 4))

    def forward(self, x):
        """Same shape."""
        k, v = self.kv(x).split(4, -1)
        q = self.q(x).unflatten(-1, (-1, 4)).transpose(1, 2) * self.temperature
        scores = q @ k[:, None].transpose(-1, -2)
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        return self.gain * self.o((weights @ v[:, None]).transpose(1, 2).flatten(2))


def test_multi_query_attention_and_bare_tensors():
    """Keys shared by heads are no router; bare vectors are recognised by their size and use."""
    roles = roles_of(with_mlp(SharedKeys))

    assert {
        "blocks.0.mlp.kv.weight": "wide_to_narrow",
        "blocks.0.mlp.kv.bias": "shared",
        "blocks.0.mlp.temperature": "shared",
        "blocks.0.mlp.gain": "norm_gain",
        "blocks.0.mlp.sinks": "hidden_bias",
    }.items() <= roles.items()


class FusedQKV(nn.Module):
    """torch's own attention, with its one matrix for queries, keys and values."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        """Same shape."""
        return self.inner(x, x, x, need_weights=False)[0]


def test_fused_qkv():
    """Torch's attention hides nothing: bare matrix and its bias, (3 width, width)."""
    roles = roles_of(with_mlp(FusedQKV))

    assert "hidden_weight" == roles["blocks.0.mlp.inner.in_proj_weight"]
    assert "hidden_bias" == roles["blocks.0.mlp.inner.in_proj_bias"]


class Positions(Model):
    """Positions from a table, and added as they are."""

    def __init__(self, scale):
        super().__init__(scale)
        self.table = nn.Embedding(16, scale.width)
        self.added = nn.Parameter(torch.zeros(1, 16, scale.width))

    def forward(self, tokens):
        """Logits."""
        length = tokens.shape[1]
        x = self.embedding(tokens) + self.table(torch.arange(length)) + self.added[:, :length]
        for block in self.blocks:
            x = block(self.embedding_norm(x))
        return self.unembedding(self.final_norm(x))


def test_position_embeddings():
    """What is looked up or added whatever the input says is a position embedding."""
    roles = roles_of(Positions)

    assert "input_embedding" == roles["embedding.weight"]
    assert "position_embedding" == roles["table.weight"]
    assert "position_embedding" == roles["added"]


class Tied(Model):
    """One tensor to read tokens and to write logits; a bias on the latter."""

    def __init__(self, scale):
        super().__init__(scale)
        self.unembedding.weight = self.embedding.weight


def test_tied_embedding():
    """A tensor that is looked up and multiplied with is tied, and gets a registered multiplier."""
    p = parametrize(Tied, BASE, TARGET)
    row = p.table().set_index("name").loc["embedding.weight"]

    assert ("tied_embedding", 1, 1, 1 / 4, "hook") == (
        row.role,
        row.init_std,
        row.lr,
        row.forward,
        row.applied,
    )
    assert "output_bias" == p.tensors["unembedding.bias"].role


class TiedByHand(Model):
    """The logits are computed without a layer."""

    def __init__(self, scale):
        super().__init__(scale)
        del self.unembedding

    def forward(self, tokens):
        """Logits."""
        x = self.embedding_norm(self.embedding(tokens))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.embedding.weight)


def test_a_tied_embedding_without_a_layer():
    """Where there is no layer whose input can get the multiplier, the error names the tensor."""
    with pytest.raises(ParametrizationError) as error:
        parametrize(TiedByHand, BASE, TARGET)

    assert "'embedding.weight'" in str(error.value)
    assert parametrize(TiedByHand, BASE, BASE)


def mlp(scale):
    """Numbers of all layers but the first shift with depth."""
    hidden = [
        layer
        for _ in range(scale.depth)
        for layer in (nn.Linear(scale.width, scale.width), nn.LayerNorm(scale.width), nn.ReLU())
    ]
    return nn.Sequential(nn.Linear(8, scale.width), *hidden, nn.Linear(scale.width, 3))


@pytest.mark.parametrize("target", [TARGET, Scale(width=8, depth=3)])
def test_sequential(target):
    """Layers of an nn.Sequential are found again in a deeper one, even if inputs are as many as the width."""
    tensors = tensors_of(mlp, target=target)
    last = 3 * target.depth + 1
    expected = {
        "0.weight": ("input_embedding", "0.weight", 1),
        "0.bias": ("input_bias", "0.bias", 1),
        "1.weight": ("hidden_weight", "1.weight", target.depth / 2),
        "2.bias": ("norm_gain", "2.bias", target.depth / 2),
        f"{last - 3}.weight": ("hidden_weight", "4.weight", target.depth / 2),
        f"{last}.weight": ("unembedding", "7.weight", 1),
        f"{last}.bias": ("output_bias", "7.bias", 1),
    }

    assert expected == {n: (str(t.role), t.base_name, t.depth) for n, t in tensors.items() if n in expected}


def test_sequential_has_the_same_groups_at_every_depth():
    """Module types are the base's, so that an HP means the same at every scale."""
    types = {
        depth: parametrize(mlp, BASE, Scale(width=32, depth=depth), "mup").module_types for depth in (2, 6)
    }

    assert ("0", "layers", "7") == types[2] == types[6]


class Residual(nn.Module):
    """Two convolutions and a depthwise one, with batch norms."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x):
        """Same shape."""
        return x + self.body(x)


class ConvNet(nn.Module):
    """Residual, with a stem and a classifier."""

    def __init__(self, scale):
        super().__init__()
        self.stem = nn.Conv2d(3, scale.width, 3)
        self.blocks = nn.Sequential(*(Residual(scale.width) for _ in range(scale.depth)))
        self.norm = nn.BatchNorm2d(scale.width)
        self.classifier = nn.Linear(scale.width, 10)

    def forward(self, images):
        """Logits."""
        return self.classifier(self.norm(self.blocks(self.stem(images))).mean((2, 3)))


def test_convolutions():
    """Kernels: the stem is an input layer, a depthwise one has a fixed fan-in, others are hidden."""
    p = parametrize(ConvNet, BASE, TARGET)
    roles = {name: str(t.role) for name, t in p.tensors.items()}

    assert {
        "stem.weight": "input_embedding",
        "stem.bias": "input_bias",
        "blocks.5.body.0.weight": "norm_gain",
        "blocks.5.body.1.weight": "narrow_to_wide",
        "blocks.5.body.3.weight": "conv_kernel",
        "blocks.5.body.3.bias": "hidden_bias",
        "norm.weight": "final_norm",
        "classifier.weight": "unembedding",
        "classifier.bias": "output_bias",
    }.items() <= roles.items()
    assert ("body",) == p.residual_branches


class Mixed(nn.Module):
    """The first block is of another kind than the rest."""

    def __init__(self, scale):
        super().__init__()
        self.embedding = nn.Embedding(11, scale.width)
        self.blocks = nn.ModuleList(
            Block(scale.width, qk_norm=i > 0, post_norm=False) for i in range(scale.depth)
        )
        self.head = nn.Linear(scale.width, 11)

    def forward(self, tokens):
        """Logits."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_blocks_of_two_kinds():
    """Blocks correspond to blocks of their own kind, and all of them count for the depth."""
    tensors = tensors_of(Mixed)

    assert "blocks.0.attn.q.weight" == tensors["blocks.0.attn.q.weight"].base_name
    assert "blocks.1.attn.q.weight" == tensors["blocks.1.attn.q.weight"].base_name
    assert 3 == tensors["blocks.0.attn.q.weight"].depth


class Middle(Model):
    """Outside the blocks: a gate, a bottleneck, tokens of its own, gains; probabilities out."""

    def __init__(self, scale):
        super().__init__(scale)
        width = scale.width
        self.gate = nn.Linear(width, 2)
        self.narrow = nn.Linear(width, 3)
        self.widen = nn.Linear(3, width)
        self.hidden = nn.Linear(width, width)
        self.latents = nn.Parameter(torch.randn(5, width))
        self.register = nn.Parameter(torch.randn(width))
        self.first_gain = nn.Parameter(torch.ones(width))
        self.middle_gain = nn.Parameter(torch.ones(width))
        self.last_gain = nn.Parameter(torch.ones(width))
        self.temperature = nn.Parameter(torch.ones(()))
        self.logit_bias = nn.Parameter(torch.zeros(11))

    def forward(self, tokens):
        """Probabilities."""
        x = self.first_gain * self.embedding(tokens)
        register = self.register.expand(len(x), 1, -1)
        x = torch.cat((register, self.hidden(self.latents).expand(len(x), -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        a, b = self.gate(x).softmax(-1).chunk(2, -1)
        x = a * x + b * self.widen(F.relu(self.narrow(x)))
        x = self.hidden(self.middle_gain * x)
        logits = self.unembedding(self.last_gain * self.final_norm(x)) / self.temperature
        return (logits + self.logit_bias).softmax(-1)


def test_between_inputs_and_outputs():
    """What a tensor outside the blocks is follows from what it reads and what it flows into."""
    roles = roles_of(Middle, roles={"embedding_norm.*": "input_bias"})

    assert {
        "gate.weight": "router",
        "gate.bias": "shared",
        "narrow.weight": "wide_to_narrow",
        "narrow.bias": "shared",
        "widen.weight": "narrow_to_wide",
        "widen.bias": "hidden_bias",
        "hidden.weight": "hidden_weight",
        "latents": "input_embedding",
        "register": "input_embedding",
        "first_gain": "input_bias",
        "middle_gain": "norm_gain",
        "last_gain": "final_norm",
        "final_norm.weight": "final_norm",
        "temperature": "fixed",
        "logit_bias": "output_bias",
        "unembedding.weight": "unembedding",
        "unembedding.bias": "output_bias",
    }.items() <= roles.items()


class Recurrent(nn.Module):
    """Recurrent layers of torch; the first one reads numbers."""

    def __init__(self, scale):
        super().__init__()
        self.first = nn.GRU(3, scale.width, batch_first=True)
        self.layers = nn.ModuleList(
            nn.LSTM(scale.width, scale.width, batch_first=True) for _ in range(scale.depth)
        )
        self.head = nn.Linear(scale.width, 5)

    def forward(self, x):
        """Class scores."""
        x, _ = self.first(x)
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)


def test_recurrent_layers():
    """Recurrent layers, which may run as one operation, are recognised by what torch keeps in them."""
    p = parametrize(Recurrent, BASE, TARGET, "mup", inputs=(torch.randn(2, 4, 3),))
    roles = {name: str(t.role) for name, t in p.tensors.items()}

    assert {
        "first.weight_ih_l0": "input_embedding",
        "first.weight_hh_l0": "hidden_weight",
        "first.bias_ih_l0": "input_bias",
        "first.bias_hh_l0": "hidden_bias",
        "layers.5.weight_ih_l0": "hidden_weight",
        "layers.5.bias_hh_l0": "hidden_bias",
        "head.weight": "unembedding",
    }.items() <= roles.items()


class Adapter(nn.Module):
    """A low-rank addition to a weight, multiplied out before it is used."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.a = nn.Parameter(torch.randn(2, width))
        self.b = nn.Parameter(torch.randn(width, 2))

    def forward(self, x):
        """Same shape."""
        return x @ (self.weight + self.b @ self.a)


def test_tensors_multiplied_with_each_other_are_an_error():
    """Fan-in and fan-out are not known where a tensor is multiplied into another one: it needs a role."""
    with pytest.raises(ParametrizationError) as error:
        roles_of(with_mlp(Adapter))
    given = {"*.mlp.a": "wide_to_narrow", "*.mlp.b": "narrow_to_wide"}

    assert "hidden_weight" == roles_of(with_mlp(Adapter), roles=given)["blocks.0.mlp.weight"]
    assert all(part in str(error.value) for part in ("'blocks.0.mlp.a'", "2 (fixed) x 32 (grows)"))


class TwoHeads(Model):
    """Two maps to a fixed size outside the blocks, and a second input that nobody guesses."""

    def __init__(self, scale):
        super().__init__(scale)
        self.value = nn.Linear(scale.width, 1)

    def forward(self, tokens, shift):
        """Logits and value."""
        x = self.embedding_norm(self.embedding(tokens)) + shift
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.final_norm(x)), self.value(x)


def test_a_model_that_is_not_called():
    """Which of two maps gives the outputs is not known without a call: the error asks for inputs."""
    with pytest.raises(ParametrizationError) as error:
        roles_of(TwoHeads)
    roles = roles_of(TwoHeads, inputs=(torch.arange(6)[None], torch.ones(1)))

    assert all(part in str(error.value) for part in ("'unembedding.weight'", "inputs="))
    assert "unembedding" == roles["value.weight"] == roles["unembedding.weight"]


def test_a_scalar_that_nobody_uses_is_an_error():
    """A tensor that the model does not use is named, with its size and place."""

    def build(scale):
        model = Model(scale)
        for block in model.blocks:
            block.unused = nn.Parameter(torch.ones(()))
        return model

    with pytest.raises(ParametrizationError) as error:
        roles_of(build)

    assert all(part in str(error.value) for part in ("'blocks.0.unused'", "scalar", "Block"))
