"""Every parameter of a model is in exactly one optimizer group, whatever its modules are called."""

from collections import Counter

import pytest
import torch
from generated_models import BASE, TARGET, Generated, Shape, build_of, shapes, tokens
from hypothesis import given, settings
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import parametrize
from transfer_bo.parametrization.builds import modules_of, parameters_of
from transfer_bo.scale import Scale


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_groups_of_generated_models(shape):
    """Each trainable tensor is in one group, and the model initialized at the base is the model's own."""
    p = parametrize(build_of(shape), BASE, TARGET)
    model = build_of(shape)(TARGET)
    counts = Counter(id(q) for group in p.param_groups(model) for q in group["params"])

    assert counts == dict.fromkeys(map(id, model.parameters()), 1)

    torch.manual_seed(4)
    own, ours = build_of(shape)(BASE), build_of(shape)(BASE)
    p.at(BASE).initialize(ours, seed=4)
    assert torch.equal(
        torch.cat([q.flatten() for q in own.parameters()]),
        torch.cat([q.flatten() for q in ours.parameters()]),
    )


class Residual(nn.Module):
    """x + f(x), with f under the name that wrappers use."""

    def __init__(self, inner):
        super().__init__()
        self.module = inner

    def forward(self, x):
        """Same shape."""
        return x + self.module(x)


class Nested(nn.Module):
    """A tensor beside one of the same name inside a submodule called `module`."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.module = nn.Linear(width, width)

    def forward(self, x):
        """Same shape."""
        return self.module(x @ self.weight)


def residual(scale):
    """Blocks that hold their branch as `module`."""
    blocks = [Residual(Nested(scale.width)) for _ in range(scale.depth)]
    return nn.Sequential(nn.Linear(5, scale.width), nn.Sequential(*blocks), nn.Linear(scale.width, 3))


def test_a_submodule_called_module():
    """It loses no tensor, and blocks that hold their branch under that name are residual."""
    p = parametrize(residual, BASE, TARGET)
    model = residual(TARGET)

    assert set(dict(model.named_parameters())) == set(p.tensors)
    assert "1.0.module.weight" in p.tensors
    assert "1.0.module.module.weight" in p.tensors
    assert 1 == len(p.residual_branches)


def test_wrappers_are_taken_off():
    """torch.compile's and DataParallel's names are no part of a tensor's name; a user's `module` is."""
    model = residual(BASE)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))

    assert list(parameters_of(model)) == list(parameters_of(wrapped))
    assert list(modules_of(model).items()) == list(modules_of(wrapped).items())


def test_a_tensor_in_no_group_is_an_error(monkeypatch):
    """Should the parametrization ever lose a tensor, that is an error and no silent training without it."""
    shape = Shape()
    p = parametrize(build_of(shape), BASE, TARGET)
    monkeypatch.setattr(
        "transfer_bo.parametrization.apply.parameters_of",
        lambda model: {n: q for n, q in model.named_parameters() if n != "embedding.weight"},
    )
    del p.tensors["embedding.weight"]
    with pytest.raises(ParametrizationError) as error:
        p.param_groups(Generated(shape, TARGET))

    assert "'embedding.weight'" in str(error.value)


def test_a_module_that_is_registered_twice():
    """Its tensors are in one group, once."""

    def build(scale):
        model = Generated(Shape(), scale)
        model.alias = model.blocks[0]
        return model

    p = parametrize(build, BASE, BASE.replace(width=32))
    model = build(BASE.replace(width=32))
    model(tokens())

    assert len(list(model.parameters())) == sum(len(group["params"]) for group in p.param_groups(model))
    assert Scale(width=32, depth=2) == p.target
