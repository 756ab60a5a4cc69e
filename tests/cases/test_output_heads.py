"""Output heads are unembeddings wherever they stand: what counts is that their products are outputs."""

import pytest
import torch
from generated_models import BASE, TARGET, VOCAB, Block, build_of, shapes
from hypothesis import given, settings
from torch import nn

from transfer_bo.parametrization import parametrize
from transfer_bo.parametrization.residual import MultiplyInput
from transfer_bo.scale import Scale


def roles_of(p):
    """Role by name."""
    return {name: str(tensor.role) for name, tensor in p.tensors.items()}


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_heads_of_generated_models(shape):
    """Readouts, norms before them and hidden layers in heads have their roles; blocks keep theirs."""
    p = parametrize(build_of(shape), BASE, TARGET)
    roles = roles_of(p)
    model = build_of(shape)(TARGET)
    readouts = {id(head[-1].weight) for head in model.heads.children()}
    names = {id(tensor): name for name, tensor in model.named_parameters()}

    assert {"tied_embedding" if shape.tied else "unembedding"} == {roles[names[key]] for key in readouts}
    assert ("unembedding" in roles.values()) is not shape.tied
    head_norm = "norm_gain" if shape.hidden else "final_norm"
    assert {head_norm} >= {role for n, role in roles.items() if n.startswith("heads") and "norm" in role}
    assert all(p.tensors[name].block is None for name in roles if name.startswith("heads"))
    assert {f"blocks.{i}" for i in range(TARGET.depth)} == {t.block for t in p.tensors.values()} - {None}


def test_heads_without_a_depth_axis():
    """A list of heads is no stack of blocks where there is no depth to tell them by."""

    def build(scale):
        model = nn.Sequential(nn.Linear(5, scale.width), nn.ReLU(), nn.Linear(scale.width, scale.width))
        heads = [nn.Sequential(nn.LayerNorm(scale.width), nn.Linear(scale.width, 3)) for _ in range(2)]
        return Parallel(model, nn.ModuleList(heads))

    roles = roles_of(parametrize(build, Scale(width=16), Scale(width=64)))
    head = ["final_norm", "final_norm", "unembedding", "output_bias"]

    assert head * 2 == [roles[name] for name in roles if name.startswith("heads")]


class Parallel(nn.Module):
    """A trunk and heads beside each other."""

    def __init__(self, trunk, heads):
        super().__init__()
        self.trunk, self.heads = trunk, heads

    def forward(self, x):
        """The outputs in a dictionary."""
        x = self.trunk(x)
        return {str(i): head(x) for i, head in enumerate(self.heads)}


class EarlyExits(nn.Module):
    """As many heads as blocks, each on the output of one."""

    def __init__(self, scale):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.blocks = nn.ModuleList(Block(scale.width, "mlp") for _ in range(scale.depth))
        self.exits = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(scale.width), nn.Linear(scale.width, VOCAB))
            for _ in range(scale.depth)
        )

    def forward(self, tokens):
        """One output per block."""
        x = self.embedding(tokens)
        outputs = []
        for block, head in zip(self.blocks, self.exits, strict=True):
            x = block(x)
            outputs.append(head(x))
        return outputs


def test_heads_that_grow_in_number_with_depth():
    """Heads at every block are no blocks: they have no depth, and all are unembeddings."""
    p = parametrize(EarlyExits, BASE, TARGET)
    roles = roles_of(p)

    for i in range(TARGET.depth):
        assert "final_norm" == roles[f"exits.{i}.0.weight"]
        assert "unembedding" == roles[f"exits.{i}.1.weight"]
        assert 1 == p.tensors[f"exits.{i}.1.weight"].depth
    assert ("mlp",) == p.residual_branches


class InsideBlocks(nn.Module):
    """A head inside every block, beside the residual branch."""

    def __init__(self, scale):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.blocks = nn.ModuleList(Block(scale.width, "mlp") for _ in range(scale.depth))
        for block in self.blocks:
            block.exit = nn.Linear(scale.width, VOCAB, bias=False)

    def forward(self, tokens):
        """One output per block."""
        x = self.embedding(tokens)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(block.exit(x))
        return outputs


def test_a_head_inside_a_block():
    """A map to a fixed size in a block is an unembedding if its product is an output."""
    roles = roles_of(parametrize(InsideBlocks, BASE, TARGET))

    assert {"unembedding"} == {role for name, role in roles.items() if ".exit." in name}


class Gated(nn.Module):
    """Blocks with a router, and no head: the output is hidden."""

    def __init__(self, scale):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.blocks = nn.ModuleList(Block(scale.width, "mlp") for _ in range(scale.depth))
        for block in self.blocks:
            block.router = nn.Linear(scale.width, 1, bias=False)

    def forward(self, tokens):
        """Hidden states."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + (block(x) - x) * block.router(x).sigmoid()
        return x


def test_a_gate_on_the_output_is_no_head():
    """What only scales a hidden output is a router, in the last block too."""
    roles = roles_of(parametrize(Gated, Scale(width=16, depth=2), Scale(width=32, depth=2)))

    assert {"router"} == {role for name, role in roles.items() if ".router." in name}


@pytest.mark.parametrize("heads", [1, 3])
def test_every_tied_head_has_the_multiplier(heads):
    """All layers that map to the outputs with the tied tensor get its multiplier."""

    def build(scale):
        return TiedHeads(scale, heads)

    p = parametrize(build, BASE, TARGET)
    model = build(TARGET)
    p.initialize(model)
    hooked = [
        path
        for path, module in model.named_modules()
        if any(isinstance(hook, MultiplyInput) for hook in module._forward_pre_hooks.values())
    ]

    assert [f"heads.{i}" for i in range(heads)] == hooked
    assert torch.isfinite(torch.cat(model(torch.arange(4)[None]))).all()


class TiedHeads(nn.Module):
    """Several heads that share the embedding's tensor."""

    def __init__(self, scale, heads):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, scale.width)
        self.blocks = nn.ModuleList(Block(scale.width, "mlp") for _ in range(scale.depth))
        self.heads = nn.ModuleList(nn.Linear(scale.width, VOCAB, bias=False) for _ in range(heads))
        for head in self.heads:
            head.weight = self.embedding.weight

    def forward(self, tokens):
        """A list of outputs."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return [head(x) for head in self.heads]
