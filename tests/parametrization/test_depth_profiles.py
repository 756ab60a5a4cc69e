"""Depth profiles: a multiplier by relative depth, times the multipliers of module types."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Model, tokens

from transfer_bo.errors import SearchSpaceError
from transfer_bo.parametrization import parametrize
from transfer_bo.parametrization.hp_values import multiplier_of, value_of
from transfer_bo.scale import Scale
from transfer_bo.space import KINDS, Space

BASE = Scale(width=16, depth=2)
DEEP = Scale(width=16, depth=4)
SIZES = st.floats(0.1, 10)


def _settings(p, model, hps):
    names = {id(q): name for name, q in model.named_parameters()}
    return {names[id(q)]: group for group in p.param_groups(model, hps) for q in group["params"]}


@settings(deadline=None)  # on a busy machine time says nothing
@given(st.floats(0, 1), SIZES, SIZES, SIZES)
def test_interpolation(x, first, middle, last):
    """The profile is linear in relative depth in the logarithm, between the knots."""
    hps = {"lr.@0": first, "lr.@0.5": middle, "lr.@1": last}
    left, right, t = (first, middle, 2 * x) if x < 0.5 else (middle, last, 2 * x - 1)

    expected = math.exp((1 - t) * math.log(left) + t * math.log(right))
    assert expected == pytest.approx(multiplier_of("lr", [], hps, x), rel=1e-12)


@settings(deadline=None)
@given(st.floats(0, 1), SIZES)
def test_exact_where_nothing_is_interpolated(x, value):
    """On a knot, beyond the outer ones and between equal ones, the value is the knot's own, bit by bit."""
    hps = {"lr.@0.25": value, "lr.@0.75": value, "eps.@0.5": value}

    assert value == multiplier_of("lr", [], hps, x) == multiplier_of("eps", [], hps, x)
    assert 1.0 == multiplier_of("lr", [], hps, None) == multiplier_of("weight_decay", [], hps, x)


def test_types_and_profile_multiply():
    """A tensor gets kind x its groups' multipliers x the profile at the middle of its block."""
    p = parametrize(Model, BASE, DEEP)
    hps = {"lr": 0.5, "lr.q": 3.0, "lr.@0": 1.0, "lr.@1": 16.0, "weight_decay.@0.5": 2.0}
    group = _settings(p, Model(DEEP), hps)

    for block in range(4):
        profile = 16 ** ((block + 0.5) / 4)
        assert 0.5 * 3 * profile == pytest.approx(group[f"blocks.{block}.attn.q.weight"]["lr"], rel=1e-12)
        assert 0.5 * profile == pytest.approx(group[f"blocks.{block}.mlp_norm.weight"]["lr"], rel=1e-12)
        assert 0.2 == group[f"blocks.{block}.attn.q.weight"]["weight_decay"]
    assert 0.5 == group["embedding.weight"]["lr"] == group["unembedding.weight"]["lr"]
    assert 0.1 == group["final_norm.weight"]["weight_decay"]


def test_a_profile_carries_over_to_any_depth():
    """Two blocks stand where the four of a deeper model have their quarters: the profile is one curve."""
    hps = {"lr.@0": 1.0, "lr.@1": 16.0}
    rates = {}
    for scale in (BASE, DEEP):
        p = parametrize(Model, BASE, scale)
        rates[scale.depth] = [
            p.table(hps).set_index("name").lr[f"blocks.{i}.attn.q.weight"] for i in range(scale.depth)
        ]

    assert [2.0, 8.0] == pytest.approx(rates[2])
    assert math.sqrt(rates[4][0] * rates[4][1]) == pytest.approx(rates[2][0])


def test_the_table_shows_profiles():
    """`table(hps)` has the multipliers of groups and of relative depth; without HPs it is the rule alone."""
    p = parametrize(Model, BASE, DEEP)
    hps = {"lr": 0.5, "lr.q": 3.0, "init_std.@0": 4.0, "residual.@0": 1.0, "residual.@1": 16.0}
    with_hps, rule = (p.table(h).set_index("name") for h in (hps, None))

    assert [0.125, 0.375, 0.625, 0.875] == [rule.position[f"blocks.{i}.attn.q.weight"] for i in range(4)]
    assert math.isnan(rule.position["embedding.weight"])
    assert 3.0 == with_hps.lr["blocks.1.attn.q.weight"]
    assert 4.0 == with_hps.init_std["blocks.1.attn.q.weight"]
    assert 1.0 == with_hps.init_std["embedding.weight"] == rule.lr["blocks.1.attn.q.weight"]
    assert 0.5 * 16**0.625 == pytest.approx(with_hps.forward["blocks.2.mlp.down.weight"])


def test_initial_values_and_branches_follow_the_profile():
    """init_std and residual profiles reach the tensors; folded and hooked branches compute the same."""
    hps = {
        "init_std.@0": 1.0,
        "init_std.@1": 4.0,
        "residual.@0": 2.0,
        "residual.@1": 0.5,
        "residual.mlp": 3.0,
    }
    outputs = []
    for fold in (True, False):
        p = parametrize(Model, BASE, DEEP, fold=fold)
        plain, ours = Model(DEEP).double(), Model(DEEP).double()
        p.initialize(plain, {"residual.mlp": 3.0}, seed=1)
        p.initialize(ours, hps, seed=1)
        outputs.append(ours(tokens()))
        ratio = ours.blocks[3].attn.q.weight / plain.blocks[3].attn.q.weight
        assert 4**0.875 == pytest.approx(ratio.mean().item(), rel=1e-6)

    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


def test_a_space_with_profiles_is_plain_at_its_defaults():
    """All knots at one leave every setting as it is, bit by bit."""
    p = parametrize(Model, BASE, DEEP)
    hps = Space.per_module(p, list(KINDS), depth_knots=3).defaults
    plain, ours = _settings(p, Model(DEEP), {}), _settings(p, Model(DEEP), hps)

    assert 13 * 6 + 6 + 2 + 7 * 3 < len(hps)
    for name, group in plain.items():
        assert all(ours[name][key] == group[key] for key in ("lr", "betas", "eps", "weight_decay"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr.@2", 1.0), ("lr.@middle", 1.0), ("weight_decay.@0.5", 0.0), ("lr.@0", -1.0)],
)
def test_bad_knots(name, value):
    """A knot outside the model, or a value without a logarithm, is named."""
    p = parametrize(Model, BASE, DEEP)
    with pytest.raises(SearchSpaceError) as error:
        p.param_groups(Model(DEEP), {name: value})

    assert name in str(error.value)


def test_a_model_without_blocks_has_no_profile():
    """A knot is refused where no tensor has a relative depth."""

    def build(scale):
        width = scale.width
        return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))

    p = parametrize(build, Scale(width=16), Scale(width=32))
    with pytest.raises(SearchSpaceError) as error:
        p.param_groups(build(Scale(width=32)), {"lr.@0.5": 2.0})

    assert "lr.@0.5" in str(error.value)


def test_values_outside_blocks_ignore_the_profile():
    """A tensor outside blocks takes the kind's value and its groups' multipliers alone."""
    assert 6.0 == value_of("lr", ["q"], {"lr": 2.0, "lr.q": 3.0, "lr.@0.5": 100.0}, None)
