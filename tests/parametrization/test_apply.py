"""A rule on real models: the base is plain AdamW, folded and hooked multipliers train alike."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from small_models import Model, tokens, train
from torch import nn

from transfer_bo.errors import ParametrizationError, SearchSpaceError, TransferError
from transfer_bo.parametrization import COMPLETE_D_P, Power, Role, parametrize
from transfer_bo.parametrization.residual import Multiply
from transfer_bo.scale import Scale
from transfer_bo.space import KINDS, Space
from transfer_bo.training.model import build_transformer

BASE = Scale(width=16, depth=1, batch=8, tokens=1000)
TARGET = Scale(width=64, depth=3, batch=16, tokens=5000)


def post_norm(scale):
    """A model whose MLP ends in a norm."""
    return Model(scale, post_norm=True)


def build_double(scale):
    """The stand-in in float64."""
    return Model(scale).double()


def weights(model):
    """All tensors of a model by name, copied."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def settings_of(p, model, hps=None):
    """Group of each tensor by name."""
    names = {id(q): name for name, q in model.named_parameters()}
    return {names[id(q)]: group for group in p.param_groups(model, hps) for q in group["params"]}


# ------------------------------------------------------------------------------------------ at the base


@pytest.mark.parametrize("build", [Model, build_transformer])
def test_base_is_plain_adamw_bit_by_bit(build):
    """At the base with default HPs, initial values and training are torch's own, clipping included."""
    p = parametrize(build, BASE, BASE)
    torch.manual_seed(5)
    plain = build(BASE)
    ours = build(BASE)
    p.initialize(ours, {}, seed=5)
    starts = weights(plain), weights(ours)
    plain_optimizer = torch.optim.AdamW(
        plain.parameters(), lr=2**-8, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    expected = train(plain, plain_optimizer, 5, lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.5))
    actual = train(ours, torch.optim.AdamW(p.param_groups(ours)), 5, lambda m: p.clip_grad_norm_(m, 0.5))

    assert all(torch.equal(starts[0][name], value) for name, value in starts[1].items())
    assert expected == actual
    assert all(torch.equal(weights(plain)[name], value) for name, value in weights(ours).items())


def test_base_is_one_group():
    """Tensors with equal settings share a group; at the base that is all of them."""
    p = parametrize(Model, BASE, BASE)

    assert 1 == len(p.param_groups(Model(BASE)))


# ------------------------------------------------------------------------------------------ initial values


def test_initial_spread_follows_the_rule():
    """A tensor's root mean square is the base's own, by relative depth, times the rule's factor and θ."""
    p = parametrize(build_transformer, BASE, TARGET)
    model = build_transformer(TARGET)
    p.initialize(model, {"init_std": 2.0, "init_std.q": 0.5, "residual.mlp": 3.0}, seed=7)
    torch.manual_seed(7)
    base = weights(build_transformer(BASE))
    actual = {name: w.double().square().mean().sqrt().item() for name, w in weights(model).items()}

    def from_base(name, factor):
        return pytest.approx(base[name].double().square().mean().sqrt().item() * factor, rel=1e-5)

    assert from_base("embedding.weight", 2) == actual["embedding.weight"]
    assert from_base("unembedding.weight", 2 / 4) == actual["unembedding.weight"]
    assert from_base("blocks.0.attn.q.weight", 2 * 0.5 / 2) == actual["blocks.2.attn.q.weight"]
    assert from_base("blocks.0.attn.o.weight", 2 / 2 / 3) == actual["blocks.1.attn.o.weight"]
    assert from_base("blocks.0.mlp.down.weight", 2 / 2 / 3 * 3) == actual["blocks.1.mlp.down.weight"]
    assert 1 == actual["final_norm.weight"]


def test_initialization_repeats():
    """The same seed gives the same values whatever the model held before; another seed gives others."""
    p = parametrize(Model, BASE, TARGET)
    first, second, third = Model(TARGET), Model(TARGET), Model(TARGET)
    p.initialize(first, seed=1)
    p.initialize(second, seed=1)
    p.initialize(second, seed=1)
    p.initialize(third, seed=2)

    assert all(torch.equal(weights(first)[name], value) for name, value in weights(second).items())
    assert not torch.equal(first.embedding.weight, third.embedding.weight)


def test_a_model_built_without_memory():
    """A model from the meta device gets values and buffers; while it has no memory that is an error."""
    p = parametrize(Model, BASE, TARGET)
    with torch.device("meta"):
        model = Model(TARGET)
    with pytest.raises(ParametrizationError):
        p.initialize(model)
    model.to_empty(device="cpu")
    p.initialize(model, seed=1)
    usual = Model(TARGET)
    p.initialize(usual, seed=1)

    assert torch.equal(torch.arange(3.0), model.steps)
    assert torch.equal(usual(tokens()), model(tokens()))


def test_frozen_tensors_keep_their_values():
    """A tensor that is not trained has no settings and is not written."""

    def build(scale):
        model = Model(scale)
        model.frozen = nn.Parameter(torch.arange(5.0), requires_grad=False)
        return model

    p = parametrize(build, BASE, TARGET)
    model = build(TARGET)
    model.frozen.fill_(7.0)
    p.initialize(model)

    assert "frozen" not in p.groups
    assert torch.equal(torch.full((5,), 7.0), model.frozen)


# ------------------------------------------------------------------------------------------ groups


def test_settings_follow_the_rule():
    """Optimizer settings are HP values times the literature's factors, o and down with m_L^-α folded in."""
    p = parametrize(build_transformer, BASE, TARGET, "complete_d_p", alpha=0.5)
    group = settings_of(p, build_transformer(TARGET), {"lr": 0.01, "weight_decay": 0.2, "eps": 1e-9})
    steps, theta = 5 / 2, 3**-0.5
    expected = {
        "embedding.weight": (0.01, 1e-9 / 4, 0.2),
        "blocks.0.attn.q.weight": (0.01 / 4 * 3**-0.5, 1e-9 / 4 * 3**-0.5, 0.2 * 4),
        "blocks.0.attn.o.weight": (0.01 / 4 * 3**-0.5 * theta, 1e-9 / 4 * 3**-0.5 / theta, 0.2 * 4 / theta),
        "blocks.2.mlp.down.weight": (0.01 / 4 * 3**-0.5 * theta, 1e-9 / 4 * 3**-0.5 / theta, 0.2 * 4 / theta),
        "blocks.0.attn.q_norm.weight": (0.01 * 3**-0.5, 1e-9 * 3**-0.5, 0.2),
        "blocks.0.attn_norm.weight": (0.01 * 3**-0.5, 1e-9 / 4 * 3**-0.5, 0.2),
        "final_norm.weight": (0.01, 1e-9, 0.2),
        "unembedding.weight": (0.01 / 4, 1e-9, 0.2 * 4),
    }

    for name, (lr, eps, weight_decay) in expected.items():
        assert lr * steps**-0.5 == pytest.approx(group[name]["lr"], rel=1e-12)
        assert eps * steps**0.5 == pytest.approx(group[name]["eps"], rel=1e-12)
        assert weight_decay * steps**-0.5 == pytest.approx(group[name]["weight_decay"], rel=1e-12)
        assert (1 - 0.1 / steps, 1 - 0.05 / steps) == pytest.approx(group[name]["betas"], rel=1e-12)


@pytest.mark.parametrize("scale", [BASE, TARGET])
def test_groups_partition_the_parameters(scale):
    """Every trainable tensor is in exactly one group."""
    p = parametrize(Model, BASE, scale)
    model = Model(scale)
    grouped = [id(q) for group in p.param_groups(model, {"lr.q": 2.0}) for q in group["params"]]

    assert len(grouped) == len(set(grouped))
    assert {id(q) for q in model.parameters()} == set(grouped)


def test_hps_of_groups_multiply():
    """A tensor takes the product over every group that it belongs to."""
    p = parametrize(build_transformer, BASE, BASE)
    rates = {"lr": 0.5, "lr.q": 2.0, "lr.attn": 3.0, "lr.hidden": 5.0}
    others = {"weight_decay.norm": 0.0, "eps.qk_norm": 7.0, "one_minus_beta2.v": 4.0}
    group = settings_of(p, build_transformer(BASE), {**rates, **others})

    assert 0.5 * 2 * 3 * 5 == group["blocks.0.attn.q.weight"]["lr"]
    assert 0.5 * 5 == group["blocks.0.mlp.up.weight"]["lr"]
    assert 0.5 == group["embedding.weight"]["lr"]
    assert 0.0 == group["final_norm.weight"]["weight_decay"]
    assert 7e-8 == pytest.approx(group["blocks.0.attn.k_norm.weight"]["eps"])
    assert 1 - 4 * 0.05 == pytest.approx(group["blocks.0.attn.v.weight"]["betas"][1])


def test_a_space_of_every_module_type():
    """Every HP that a per-module space holds for a model is one that the model has a group for."""
    p = parametrize(build_transformer, BASE, TARGET)
    hps = Space.per_module(p, kinds=list(KINDS)).defaults
    plain = p.param_groups(build_transformer(TARGET))
    ours = p.param_groups(build_transformer(TARGET), hps)

    assert 13 == len(p.module_types)
    assert ("attn", "mlp") == p.residual_branches
    assert [group["lr"] for group in plain] == [group["lr"] for group in ours]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr.nose", 1.0),
        ("residual.nose", 1.0),
        ("rate", 1.0),
        ("lr", math.nan),
        ("lr", -1.0),
        ("residual.attn", 0.0),
        ("one_minus_beta1", 1.5),
    ],
)
def test_bad_hps(name, value):
    """An HP that the model can't take is named."""
    p = parametrize(Model, BASE, TARGET)
    with pytest.raises(TransferError) as error:
        p.param_groups(Model(TARGET), {name: value})

    assert repr(name) in str(error.value)


def test_a_model_of_another_scale():
    """A model that was not built at the target is refused, by tensor names or shapes."""
    p = parametrize(Model, BASE, TARGET)
    with pytest.raises(ParametrizationError) as other_depth:
        p.param_groups(Model(BASE))
    with pytest.raises(ParametrizationError) as other_width:
        p.initialize(Model(TARGET.replace(width=16)))

    assert "'blocks.1" in str(other_depth.value)
    assert all(part in str(other_width.value) for part in ("'embedding.weight'", "(11, 16)", "(11, 64)"))


# ------------------------------------------------------------------------------------------ multipliers


def _both_forms(build, hps, steps, alpha=1.0, target=TARGET):
    """Losses, gradient norms, model and parametrization of both forms, folded first, clipped hard."""
    results = []
    for fold in (True, False):
        p = parametrize(build, BASE, target, alpha=alpha, fold=fold)
        model = build(target)
        p.initialize(model, hps, seed=3)
        norms = []

        def clip(model, p=p, norms=norms):
            norms.append(p.clip_grad_norm_(model, 0.3).item())

        losses = train(model, torch.optim.AdamW(p.param_groups(model, hps)), steps, clip)
        results.append((losses, norms, model, p))
    return results


def _hooks(model):
    return [hook for m in model.modules() for hook in m._forward_hooks.values() if isinstance(hook, Multiply)]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_folded_equals_forward_multiplier(alpha):
    """Multipliers train alike folded and in the forward pass, step by step, clipping included."""
    hps = {"residual.attn": 1.7, "residual.mlp": 0.6, "eps": 1e-3, "weight_decay": 0.5, "lr": 0.02}
    (folded, norms, model, p), (hooked, hooked_norms, hooked_model, _) = _both_forms(
        build_double, hps, 6, alpha
    )
    theta = 3**-alpha * 0.6

    assert hooked == pytest.approx(folded, rel=1e-11)
    assert hooked_norms == pytest.approx(norms, rel=1e-11)
    assert min(norms) > 0.3
    assert not _hooks(model)
    assert 6 == len(_hooks(hooked_model))
    torch.testing.assert_close(
        model.blocks[2].mlp.down.bias, theta * hooked_model.blocks[2].mlp.down.bias, rtol=1e-9, atol=1e-13
    )
    assert {"folded"} == set(p.table().query("forward != 1").applied)


def test_folded_equals_forward_multiplier_bit_by_bit():
    """With powers of two for all ratios, the two forms agree in the last bit, in float32."""
    target = TARGET.replace(depth=4, batch=8, tokens=4000)
    (folded, norms, _, _), (hooked, hooked_norms, _, _) = _both_forms(
        build_transformer, {"residual.mlp": 2.0}, 4, target=target
    )

    assert hooked == folded
    assert hooked_norms == pytest.approx(norms, rel=1e-6)  # norms are summed in another order


def test_a_norm_ending_a_branch_carries_the_multiplier():
    """Where a norm ends the branch, the multiplier sits in its gain and trains as in the forward pass."""

    def build(scale):
        return post_norm(scale).double()

    (folded, _, model, p), (hooked, *_) = _both_forms(build, {"lr": 0.02}, 4)

    assert hooked == pytest.approx(folded, rel=1e-11)
    assert p.table().set_index("name").loc["blocks.0.mlp.post.weight", "applied"] == "folded"
    assert 1 / 3 == pytest.approx(model.blocks[0].mlp.post.weight.mean().item(), rel=0.5)


class Bent(Model):
    """The MLP ends in a nonlinearity: no layer is linear in the branch."""

    def __init__(self, scale):
        super().__init__(scale)
        for block in self.blocks:
            block.mlp.post = nn.SiLU()


def test_where_folding_is_not_exact_a_hook_is_used():
    """A branch that does not end in a linear layer gets its multiplier in the forward pass, and says so."""
    p = parametrize(Bent, BASE, TARGET)
    model = Bent(TARGET)
    p.initialize(model)
    applied = p.table().set_index("name").applied

    assert "hook" == applied["blocks.1.mlp.down.weight"]
    assert "folded" == applied["blocks.1.attn.o.weight"]
    assert [1 / 3] * 3 == [hook.factor for hook in _hooks(model)]


def test_hooks_are_replaced_not_piled_up():
    """Setting up a model anew replaces its multipliers, and a multiplier of one leaves no hook."""
    p = parametrize(Bent, BASE, TARGET)
    model = Bent(TARGET)
    p.initialize(model)
    p.param_groups(model, {"residual.mlp": 2.0})
    after_two = [hook.factor for hook in _hooks(model)]
    p.param_groups(model, {"residual.mlp": 3.0})

    assert [2 / 3] * 3 == after_two
    assert [] == _hooks(model)


class PostNorm(nn.Module):
    """A block with a norm behind its sum."""

    def __init__(self, width):
        super().__init__()
        self.attn = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        """Same shape."""
        return self.norm(x + self.attn(x))


def _norm_after_the_sum(scale):
    model = Model(scale)
    model.blocks = nn.ModuleList(PostNorm(scale.width) for _ in range(scale.depth))
    return model


def test_blocks_that_are_not_residual_are_an_error_when_depth_grows():
    """Where branches are not found, growing depth is an error that names a block; growing width is not."""
    with pytest.raises(ParametrizationError) as growing:
        parametrize(_norm_after_the_sum, BASE, TARGET)
    target = TARGET.replace(depth=1)
    p = parametrize(_norm_after_the_sum, BASE, target)
    with pytest.raises(SearchSpaceError) as multiplied:
        p.param_groups(_norm_after_the_sum(target), {"residual.attn": 2.0})

    assert "'blocks.0'" in str(growing.value)
    assert "'attn'" in str(multiplied.value)


class Pair(Model):
    """Is called with two inputs."""

    def forward(self, tokens, shift):
        """Logits."""
        return super().forward(tokens) + shift


def test_inputs_can_be_given():
    """A model that is not called with token numbers alone needs inputs: the error and the warning say so."""
    with pytest.raises(ParametrizationError) as error:
        parametrize(Pair, BASE, TARGET)
    assert "inputs=" in str(error.value)
    with pytest.warns(UserWarning, match="inputs="):
        parametrize(Pair, BASE, BASE.replace(width=32))
    p = parametrize(Pair, BASE, TARGET, inputs=(tokens(), torch.ones(1)))

    assert ("attn", "mlp") == p.residual_branches


def test_unembedding_trains_as_the_forward_multiplier_form():
    """The table's unembedding trains as CompleteP's, with 1/m_N in the forward pass and ε/m_N."""
    rows = dict(COMPLETE_D_P.rows)
    rows[Role.UNEMBEDDING] = dataclasses.replace(
        rows[Role.UNEMBEDDING],
        init_var=Power(),
        lr=Power(),
        weight_decay=Power(),
        eps=Power(width=-1),
    )
    target = BASE.replace(width=64)
    hps = {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.5}

    def build(scale):
        return Model(scale, bias=False).double()

    losses = []
    for rule in (COMPLETE_D_P, dataclasses.replace(COMPLETE_D_P, rows=rows)):
        p = parametrize(build, BASE, target, rule)
        model = build(target)
        p.initialize(model, hps, seed=1)
        if rule is not COMPLETE_D_P:
            model.unembedding.register_forward_hook(Multiply(1 / 4))
        losses.append(train(model, torch.optim.AdamW(p.param_groups(model, hps)), 6, lambda m: None))

    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# ------------------------------------------------------------------------------------------ clipping


def test_clipping_needs_to_know_the_model():
    """Clipping a model that `param_groups` has not seen is an error, not a guess."""
    p = parametrize(Model, BASE, TARGET)
    with pytest.raises(ParametrizationError):
        p.clip_grad_norm_(Model(TARGET), 1.0)


def test_each_model_is_clipped_with_its_own_hps():
    """Two models that train side by side with different HPs are each measured with their own."""
    p = parametrize(Model, BASE, BASE)
    models = [Model(BASE), Model(BASE)]
    for model, residual in zip(models, (1.0, 4.0), strict=True):
        p.param_groups(model, {"residual.mlp": residual})
        for q in model.parameters():
            q.grad = torch.zeros_like(q)
        model.blocks[0].mlp.down.weight.grad[0, 0] = 3.0

    assert 3.0 == p.clip_grad_norm_(models[0], 1.0)
    assert 12.0 == p.clip_grad_norm_(models[1], 1.0)
    assert 3.0 / 12 == pytest.approx(models[1].blocks[0].mlp.down.weight.grad[0, 0].item(), rel=1e-6)


# ------------------------------------------------------------------------------------------ the object


def test_table_has_a_row_per_tensor():
    """The table lists every tensor once, with the columns that it promises, all 1 at the base."""
    p = parametrize(Model, BASE, BASE)
    table = p.table()
    numbers = ["init_std", "lr", "eps", "weight_decay", "one_minus_beta", "forward"]

    assert ["name", "role", "module_type", "shape", "position", *numbers, "applied"] == list(table.columns)
    assert [name for name, _ in Model(BASE).named_parameters()] == list(table.name)
    assert (table[numbers] == 1).all(axis=None)


def test_pickling_and_copying():
    """A parametrization that went through pickle or deepcopy gives the same settings."""
    p = parametrize(Model, BASE, TARGET)
    expected = [{**group, "params": len(group["params"])} for group in p.param_groups(Model(TARGET))]

    for other in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        actual = [{**group, "params": len(group["params"])} for group in other.param_groups(Model(TARGET))]
        assert expected == actual


def test_wrapped_models():
    """Names that torch.compile and data parallelism put in front do not matter."""
    p = parametrize(Model, BASE, TARGET)
    model = Model(TARGET)
    plain = p.param_groups(model)
    compiled = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(model)

    for wrapped in (compiled, parallel):
        assert [g["lr"] for g in plain] == [g["lr"] for g in p.param_groups(wrapped)]
        p.clip_grad_norm_(wrapped, 1.0)


def test_the_random_state_is_left_alone():
    """Neither comparing builds nor initialising changes what the caller draws next."""
    torch.manual_seed(0)
    model = Model(TARGET)
    before = torch.get_rng_state()
    parametrize(Model, BASE, TARGET).initialize(model, seed=3)

    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("alpha", [0.4, 1.1, math.nan])
def test_alpha_outside_its_range(alpha):
    """α outside [1/2, 1] is an error."""
    with pytest.raises(ParametrizationError) as error:
        parametrize(Model, BASE, TARGET, alpha=alpha)

    assert f"alpha = {alpha!r}" in str(error.value)


def test_scales_need_the_same_axes():
    """A base and a target with different axes can't be compared."""
    with pytest.raises(TransferError):
        parametrize(Model, BASE, Scale(width=64, depth=3))


def test_a_base_wider_than_the_target_is_a_warning():
    """Going from large to small works, with a warning."""
    with pytest.warns(UserWarning, match="base is wider"):
        parametrize(Model, TARGET.replace(depth=1), BASE.replace(batch=16, tokens=5000))


class Heads(nn.Module):
    """Two heads at every width; scores are divided by a power of their size."""

    power = 0.5

    def __init__(self, width):
        super().__init__()
        self.q = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x):
        """Same shape."""
        q = self.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        scale = 4 ** (self.power - 0.5) * q.shape[-1] ** -self.power
        return self.o(F.scaled_dot_product_attention(q, q, q, scale=scale).transpose(1, 2).flatten(2))


class HeadsAsMupWants(Heads):
    """Scores are divided by the size of the heads."""

    power = 1.0


def test_heads_that_grow_are_a_warning():
    """Growing heads whose scores are divided by a root do not transfer under muP: a warning, not under SP."""

    def build(heads):
        def of(scale):
            model = Model(scale)
            for block in model.blocks:
                block.attn = heads(scale.width)
            return model

        return of

    target = BASE.replace(width=32)
    with pytest.warns(UserWarning, match=r"heads grow with the width \(size 8 at width 16, 16 at 32\)"):
        parametrize(build(Heads), BASE, target)
    assert parametrize(build(Heads), BASE, target, "sp")
    assert parametrize(build(HeadsAsMupWants), BASE, target)


def test_missing_axes_do_not_scale():
    """Scales without batch and tokens leave the batch and duration factors at one."""
    p = parametrize(Model, Scale(width=16, depth=1), Scale(width=64, depth=1))
    group = settings_of(p, Model(Scale(width=64, depth=1)))

    assert 2**-8 == group["embedding.weight"]["lr"]
    assert 2**-8 / 4 == group["blocks.0.attn.q.weight"]["lr"]


# ------------------------------------------------------------------------------------------ other scales


def test_at_gives_any_scale():
    """Without a target the settings are the base's own; `at` gives those of any scale, each made once."""
    p = parametrize(Model, BASE)
    at_target = p.at(TARGET)

    assert p.at(BASE) is p
    assert BASE == p.target
    assert at_target is p.at(dict(TARGET)) is at_target.at(TARGET)
    assert at_target.table().equals(parametrize(Model, BASE, TARGET).table())
    assert (
        p.at(BASE.replace(width=32)).table().equals(parametrize(Model, BASE, BASE.replace(width=32)).table())
    )


def test_the_base_is_called_once_for_all_scales():
    """What depends on the base alone is worked out once, whatever the number of scales."""
    built = []

    def build(scale):
        model = Model(scale)
        if model.embedding.weight.device.type == "cpu":
            built.append(scale)
        return model

    p = parametrize(build, BASE)
    for width in (32, 48, 64):
        p.at(BASE.replace(width=width, depth=2))
    count = len(built)
    p.at(BASE.replace(width=96, depth=4))

    assert count == len(built)


def test_a_copied_parametrization_gives_other_scales():
    """Through pickle the family of scales is worked out anew."""
    p = pickle.loads(pickle.dumps(parametrize(Model, BASE, TARGET)))

    assert p.at(TARGET) is p
    assert p.at(BASE).table().equals(parametrize(Model, BASE).table())


@pytest.mark.parametrize("rule", ["complete_d_p", "complete_d_p_half_life"])
def test_a_setting_that_moves_far_is_a_warning(rule):
    """Far from the base's length a warning names rule, setting, factor and another rule, once per family."""
    p = parametrize(Model, BASE, rule=rule)
    p.at(BASE.replace(tokens=10_000, batch=10))
    with pytest.warns(UserWarning, match="one_minus_beta") as caught:
        p.at(BASE.replace(tokens=50_000))
    p.at(BASE.replace(tokens=60_000))

    (message,) = [str(warning.message) for warning in caught]
    assert all(part in message for part in (repr(rule), "0.02", "complete_d_p_token_half_life"))
    assert "lr by" not in message


def test_a_rule_without_a_duration_does_not_warn():
    """Where batch and tokens change nothing nothing is warned of; nor where β follows the batch alone."""
    for rule in ("mup", "completep", "complete_d_p_token_half_life"):
        parametrize(Model, BASE, BASE.replace(tokens=50_000), rule)
