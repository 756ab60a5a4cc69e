"""A parametrized model through state_dict, deepcopy, pickle and torch.compile."""

import copy
import io

import pytest
import torch
from small_models import Model, tokens, train
from torch import nn

from transfer_bo.parametrization import parametrize
from transfer_bo.scale import Scale

BASE = Scale(width=16, depth=1)
TARGET = Scale(width=32, depth=2)
HPS = {"lr": 0.02, "residual.mlp": 3.0, "lr.@0": 2.0, "lr.@1": 0.5}


def _started(fold):
    p = parametrize(Model, BASE, TARGET, fold=fold)
    model = Model(TARGET)
    p.initialize(model, HPS, seed=1)
    return p, model, torch.optim.AdamW(p.param_groups(model, HPS))


def _train(p, model, optimizer, steps=3):
    return train(model, optimizer, steps, lambda m: p.clip_grad_norm_(m, 0.3))


def _through_memory(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("fold", [True, False])
def test_state_dict_round_trip(fold):
    """A run that was stopped and loaded into a new model goes on bit by bit as one that was not."""
    expected = _train(*_started(fold), steps=6)
    p, model, optimizer = _started(fold)
    _train(p, model, optimizer)
    saved = _through_memory({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    again = Model(TARGET)
    resumed = torch.optim.AdamW(p.param_groups(again, HPS))
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])

    assert expected[3:] == _train(p, again, resumed)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, _through_memory])
@pytest.mark.parametrize("fold", [True, False])
def test_copies_of_the_model(duplicate, fold):
    """A copied or pickled model computes and trains as the original, registered multipliers included."""
    p, model, optimizer = _started(fold)
    twin = duplicate(model)
    twin_optimizer = torch.optim.AdamW(p.param_groups(twin, HPS))

    assert torch.equal(model(tokens()), twin(tokens()))
    assert _train(p, model, optimizer) == _train(p, twin, twin_optimizer)


@pytest.mark.parametrize("when", ["before", "after", "in place"])
@pytest.mark.parametrize("fold", [True, False])
def test_compiled(when, fold):
    """Before or after torch.compile, with another backend's rounding left out, training is the same bits."""
    expected = _train(*_started(fold))
    p = parametrize(Model, BASE, TARGET, fold=fold)
    model: nn.Module = Model(TARGET)
    torch.compiler.reset()
    if when == "in place":
        model.compile(backend="eager")
    compiled = torch.compile(model, backend="eager") if when == "before" else model
    p.initialize(compiled, HPS, seed=1)
    optimizer = torch.optim.AdamW(p.param_groups(compiled, HPS))
    if when == "after":
        compiled = torch.compile(model, backend="eager")

    assert expected == _train(p, compiled, optimizer)
