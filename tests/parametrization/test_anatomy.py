"""Roles, ratios and groups that are read off a model's builds."""

import pytest
import torch
from small_models import HEAD, VOCAB, Model, dissect_at
from torch import nn

from transfer_bo.errors import ParametrizationError, ScaleError
from transfer_bo.scale import Scale
from transfer_bo.training.model import build_transformer

BASE = Scale(width=8, depth=2)
TARGET = Scale(width=32, depth=6)


def roles_of(build, **options):
    """Role by name."""
    return {name: str(t.role) for name, t in dissect_at(build, BASE, TARGET, **options).tensors.items()}


def test_reference_transformer():
    """Every tensor of the reference transformer has the role its name says."""
    roles = {
        name: t.role
        for name, t in dissect_at(
            build_transformer, Scale(width=16, depth=1), Scale(width=32, depth=2)
        ).tensors.items()
    }
    block = {
        "attn_norm": "norm_gain",
        "attn.q": "hidden_weight",
        "attn.k": "hidden_weight",
        "attn.v": "hidden_weight",
        "attn.o": "hidden_weight",
        "attn.q_norm": "qk_norm",
        "attn.k_norm": "qk_norm",
        "mlp_norm": "norm_gain",
        "mlp.up": "hidden_weight",
        "mlp.down": "hidden_weight",
    }
    expected = {
        "embedding.weight": "input_embedding",
        **{f"blocks.{i}.{layer}.weight": role for i in range(2) for layer, role in block.items()},
        "final_norm.weight": "final_norm",
        "unembedding.weight": "unembedding",
    }

    assert expected == roles


def test_biases_and_norms():
    """Biases and norms take the role of their place: input, hidden, output, per head, final."""
    roles = roles_of(Model)

    assert {
        "embedding_norm.weight": "input_bias",
        "embedding_norm.bias": "input_bias",
        "blocks.5.attn.k.bias": "hidden_bias",
        "blocks.5.attn.k_norm.weight": "qk_norm",
        "blocks.5.mlp_norm.bias": "norm_gain",
        "final_norm.bias": "final_norm",
        "unembedding.bias": "output_bias",
    }.items() <= roles.items()


def test_ratios_are_measured():
    """A tensor's width ratio is that of its fan-in, its depth ratio that of its stack, 1 outside one."""

    class Rounded(Model):
        def __init__(self, scale):
            super().__init__(scale)
            for block in self.blocks:
                inner = 2 * scale.width + 8  # no fixed ratio to the width
                block.mlp.up = nn.Linear(scale.width, inner)
                block.mlp.gate = nn.Linear(scale.width, inner)
                block.mlp.down = nn.Linear(inner, scale.width)

    tensors = dissect_at(Rounded, BASE, TARGET).tensors

    assert 4 == tensors["blocks.0.mlp.up.weight"].width
    assert 72 / 24 == tensors["blocks.0.mlp.down.weight"].width
    assert 4 == tensors["unembedding.weight"].width
    assert 3 == tensors["blocks.0.mlp.up.weight"].depth
    assert 1 == tensors["unembedding.weight"].depth


def test_sizes_that_grow_late_grow():
    """An inner size that is the same up to twice the width of the base is seen growing at the target."""

    class Late(Model):
        def __init__(self, scale):
            super().__init__(scale)
            for block in self.blocks:
                inner = max(64, 4 * scale.width)
                block.mlp.up = nn.Linear(scale.width, inner)
                block.mlp.gate = nn.Linear(scale.width, inner)
                block.mlp.down = nn.Linear(inner, scale.width)

    tensors = dissect_at(Late, BASE, TARGET).tensors

    assert "hidden_weight" == tensors["blocks.0.mlp.up.weight"].role
    assert "hidden_weight" == tensors["blocks.0.mlp.down.weight"].role
    assert 2 == tensors["blocks.0.mlp.down.weight"].width


def test_groups_of_the_reference_transformer():
    """Labels are the layer's name and its families."""
    anatomy = dissect_at(build_transformer, Scale(width=16, depth=1), Scale(width=32, depth=2))
    labels = {name: t.labels for name, t in anatomy.tensors.items()}

    assert ("embedding",) == labels["embedding.weight"]
    assert ("q", "attn", "hidden") == labels["blocks.1.attn.q.weight"]
    assert ("down", "mlp", "hidden") == labels["blocks.1.mlp.down.weight"]
    assert ("attn_norm", "norm") == labels["blocks.0.attn_norm.weight"]
    assert ("q_norm", "norm", "qk_norm") == labels["blocks.0.attn.q_norm.weight"]
    assert ("final_norm", "norm") == labels["final_norm.weight"]


def test_layers_of_one_name_are_told_apart():
    """Where two kinds of layers have the same last name, the module type takes in the name before it."""

    class Twice(Model):
        def __init__(self, scale):
            super().__init__(scale)
            for block in self.blocks:
                block.attn.proj = nn.Linear(scale.width, scale.width)
                block.mlp.proj = nn.Linear(scale.width, scale.width)

    types = {t.module_type for t in dissect_at(Twice, BASE, TARGET).tensors.values()}

    assert {"attn.proj", "mlp.proj", "q"} <= types
    assert "proj" not in types


def test_blocks_correspond_by_relative_depth():
    """A deeper model's block takes its initial spread from the base block in the middle of which it lies."""

    def matched(depth):
        blocks = dissect_at(Model, BASE, TARGET.replace(depth=depth)).base_blocks
        return [blocks[f"blocks.{i}"].removeprefix("blocks.") for i in range(depth)]

    assert ["0", "0", "0", "1", "1", "1"] == matched(6)
    assert ["0", "1", "1"] == matched(3)


def test_without_a_depth_axis():
    """Blocks are also found when the scale says nothing about depth."""
    tensors = dissect_at(Model, Scale(width=8), Scale(width=16)).tensors

    assert "blocks.1" == tensors["blocks.1.attn.q.weight"].block
    assert "norm_gain" == tensors["blocks.1.attn_norm.weight"].role
    assert 1 == tensors["blocks.1.attn.q.weight"].depth


def test_roles_can_be_given():
    """A given role overrules; the first pattern that matches wins."""
    roles = roles_of(Model, roles={"blocks.0.attn.q.*": "unembedding", "*.attn.q.bias": "norm_gain"})

    assert "unembedding" == roles["blocks.0.attn.q.bias"]
    assert "norm_gain" == roles["blocks.1.attn.q.bias"]
    assert "hidden_weight" == roles["blocks.1.attn.q.weight"]


class Router(Model):
    """Has a tensor in each block that maps the width to a fixed size, which may mean several things."""

    def __init__(self, scale):
        super().__init__(scale)
        for block in self.blocks:
            block.router = nn.Linear(scale.width, 4, bias=False)


class Odd(Model):
    """Has a bare tensor with no layer around it."""

    def __init__(self, scale):
        super().__init__(scale)
        self.sinks = nn.Parameter(torch.zeros(scale.width))


@pytest.mark.parametrize(("build", "name"), [(Router, "blocks.0.router.weight"), (Odd, "sinks")])
def test_an_unclear_role_is_an_error(build, name):
    """A tensor whose role cannot be inferred is named, with the option that states it; then it passes."""
    with pytest.raises(ParametrizationError) as error:
        roles_of(build)

    assert f"roles={{'{name}': ...}}" in str(error.value)
    assert "hidden_bias" == roles_of(build, roles={name.replace("0", "*"): "hidden_bias"})[name]


class UncalledTied(Model):
    """Tied, and not called with token numbers alone."""

    def __init__(self, scale):
        super().__init__(scale, bias=False)
        self.unembedding.weight = self.embedding.weight

    def forward(self, tokens, shift):
        """Logits."""
        return super().forward(tokens) + shift


def _other_tensors(scale):
    model = Model(scale)
    if scale.width > 8:
        model.extra = nn.Linear(scale.width, scale.width)
    return model


def _no_width(scale):
    return Model(Scale(width=8, depth=scale.depth))


def _no_depth(scale):
    return Model(Scale(width=scale.width))


def _broken(scale):
    raise KeyError("heads")


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (_no_width, "width"),
        (_no_depth, "depth"),
        (_other_tensors, "'extra."),
        (UncalledTied, "'unembedding.weight'"),
        (_broken, "KeyError: 'heads'"),
        (lambda scale: 3, "int"),
    ],
)
def test_bad_builds(build, named):
    """A build function that cannot be used is refused, and the error names what is wrong."""
    with pytest.raises(ParametrizationError) as error:
        dissect_at(build, BASE, TARGET)

    assert named in str(error.value)


@pytest.mark.parametrize(
    ("roles", "named"),
    [({"*.nothing": "hidden_weight"}, "'*.nothing'"), ({"*": "hidden"}, "'hidden'")],
)
def test_bad_roles(roles, named):
    """A pattern without effect or a role that does not exist is an error."""
    with pytest.raises(ParametrizationError) as error:
        dissect_at(Model, BASE, TARGET, roles)

    assert named in str(error.value)


def test_no_width_axis():
    """Scales without a width are an error."""
    with pytest.raises(ScaleError):
        dissect_at(Model, Scale(depth=2), Scale(depth=4))


def test_head_size_and_vocabulary_do_not_grow():
    """The stand-in is what the other tests think it is."""
    tensors = dissect_at(Model, BASE, TARGET).tensors

    assert (HEAD,) == tensors["blocks.0.attn.q_norm.weight"].shape
    assert (VOCAB, 32) == tensors["embedding.weight"].shape
