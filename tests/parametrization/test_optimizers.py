"""Rules for several optimizers on a real model: forms that train alike, a base that is torch's own."""

import dataclasses
import importlib.util

import pytest
import torch
from small_models import Model, tokens, train
from test_families import Tied

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization import optimizers, parametrize
from transfer_bo.parametrization.optimizers import check_optimizer
from transfer_bo.parametrization.residual import MultiplyInput
from transfer_bo.parametrization.rules import SYMMETRIES, Power, Ratios, Role
from transfer_bo.parametrization.tables import RULES, find_rule
from transfer_bo.scale import Scale

BASE = Scale(width=8, depth=2)
WIDE = Scale(width=32, depth=2)
HPS = {"lr": 0.02, "eps": 1e-3, "weight_decay": 0.5}
HAS_PACKAGE = importlib.util.find_spec("pytorch_optimizer") is not None
needs_package = pytest.mark.skipif(not HAS_PACKAGE, reason="pytorch-optimizer is not installed")


def build(scale):
    """Biases in hidden layers only; float64."""
    return Model(scale, bias=False).double()


def losses_of(rule, hps=HPS, build=build, steps=5, target=WIDE, **options):
    """Losses of a short training, clipped hard, and the model."""
    p = parametrize(build, BASE, target, rule, **options)
    model = build(target)
    p.initialize(model, hps, seed=1)
    optimizers = p.optimizers(model, hps)

    class All:
        def zero_grad(self):
            for optimizer in optimizers:
                optimizer.zero_grad()

        def step(self):
            for optimizer in optimizers:
                optimizer.step()

    return train(model, All(), steps, lambda m: p.clip_grad_norm_(m, 0.3)), model


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("form", ["mup_table_8", "mup_table_9"])
def test_forms_of_mup_train_alike(form, fold):
    """Every form of muP gives the same losses step by step, its multipliers folded or in the forward pass."""
    expected, _ = losses_of("mup")
    actual, model = losses_of(form, fold=fold)

    assert expected == pytest.approx(actual, rel=1e-11)
    assert expected[-1] < expected[0] - 0.1
    hooks = [
        h for m in model.modules() for h in m._forward_pre_hooks.values() if isinstance(h, MultiplyInput)
    ]
    assert (not fold) == bool(hooks)


def _moved(rule):
    """The rule with multipliers moved into the forward pass of every kind of weight."""
    powers = {Role.INPUT_EMBEDDING: 0.5, Role.HIDDEN_WEIGHT: -0.25, Role.UNEMBEDDING: -1.0}
    optimizer_of = {Role.HIDDEN_WEIGHT: rule.trained_by}
    rows = {
        role: SYMMETRIES[optimizer_of.get(role, rule.optimizer)].move(rule.rows[role], Power(width=x))
        for role, x in powers.items()
    }
    return dataclasses.replace(rule, rows={**rule.rows, **rows})


@pytest.mark.parametrize(
    ("name", "hps"),
    [
        ("mup", HPS),
        ("mup_adam", {"lr": 0.02, "eps": 1e-3}),
        ("mup_sgd", {"lr": 0.1, "weight_decay": 0.1}),
        ("sp_adafactor", {"lr": 0.05, "eps": 1e-12, "weight_decay": 0.1}),
        pytest.param("mup+soap", HPS, marks=needs_package),
        ("mup+shampoo", HPS),
        ("mup+adamh", HPS),
        ("mup+muonh", {"lr": 0.05, "weight_decay": 0.5}),
    ],
)
def test_symmetry_of_each_optimizer(name, hps):
    """A rule trains alike with its multipliers in the forward pass, under each optimizer's own symmetry."""
    rule = find_rule(name)
    expected, _ = losses_of(rule, hps)
    moved, _ = losses_of(_moved(rule), hps, fold=False)

    # SOAP rotates directions without a gradient at random, so that rounding matters in them.
    assert expected == pytest.approx(moved, rel=1e-3 if name == "mup+soap" else 1e-9)
    assert expected[-1] < expected[0] - 0.02


@pytest.mark.parametrize(
    "pair", [("ntk_full", "sp_full"), ("mean_field_full", "mup_everett_full"), ("ntk_none", "sp_none")]
)
def test_equivalent_families(pair):
    """2407.05872: NTK equals SP and mean-field equals muP, given the learning rates of each."""
    first, second = (losses_of(name)[0] for name in pair)

    assert first == pytest.approx(second, rel=1e-10)


def test_families_differ_from_each_other():
    """SP and muP with the same alignment are different training."""
    sp, mup = (losses_of(name)[0] for name in ("sp_full", "mup_everett_full"))

    assert abs(sp[-1] - mup[-1]) > 1e-3


@pytest.mark.parametrize(
    ("rule", "plain"),
    [
        ("complete_d_p_adam", lambda ps: [torch.optim.Adam(ps, lr=0.01, betas=(0.9, 0.95))]),
        ("mup_sgd", lambda ps: [torch.optim.SGD(ps, lr=0.01, momentum=0.9, weight_decay=0.1)]),
        ("sp_adafactor", lambda ps: [torch.optim.Adafactor(ps, lr=0.01, eps=(1e-8, 1e-3), weight_decay=0.1)]),
        (
            "muon",
            lambda ps: [
                torch.optim.Muon(
                    [p for p in ps if p.dim() == 2 and 11 not in p.shape], lr=0.01, momentum=0.9, eps=1e-8
                ),
                torch.optim.AdamW(
                    [p for p in ps if p.dim() != 2 or 11 in p.shape],
                    lr=0.01,
                    betas=(0.9, 0.95),
                    weight_decay=0.1,
                ),
            ],
        ),
    ],
)
def test_base_is_torchs_own(rule, plain):
    """At the base every optimizer is torch's own, bit by bit."""
    torch.manual_seed(1)
    reference = Model(BASE)
    optimizers = plain(list(reference.parameters()))

    class All:
        def zero_grad(self):
            for optimizer in optimizers:
                optimizer.zero_grad()

        def step(self):
            for optimizer in optimizers:
                optimizer.step()

    expected = train(reference, All(), 4, lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.3))
    actual, _ = losses_of(rule, {"lr": 0.01}, Model, 4, BASE)

    assert expected == actual


def test_muon_takes_hidden_matrices_only():
    """Embeddings, gains and biases stay with AdamW; torch's factor for tall matrices counts once."""

    def uneven(scale):
        model = Model(scale)
        for block in model.blocks:
            inner = 4 * scale.width + 32
            block.mlp.gate = torch.nn.Linear(scale.width, inner, bias=False)
            block.mlp.up = torch.nn.Linear(scale.width, inner, bias=False)
            block.mlp.down = torch.nn.Linear(inner, scale.width)
        return model

    p = parametrize(uneven, BASE, WIDE, "muon")
    model = uneven(WIDE)
    muon, adamw = sorted(p.optimizers(model, {"lr": 0.1}), key=lambda o: type(o).__name__, reverse=True)
    lr = {id(q): group["lr"] for group in muon.param_groups for q in group["params"]}
    block = model.blocks[0]
    inner_ratio, width_ratio = 160 / 64, 4

    assert {"Muon", "AdamW"} == {type(muon).__name__, type(adamw).__name__}
    assert 14 == len(lr)
    assert all(2 == q.dim() for group in muon.param_groups for q in group["params"])
    effective = lr[id(block.mlp.up.weight)] * (160 / 32) ** 0.5 / (64 / 8) ** 0.5
    assert 0.1 * (inner_ratio / width_ratio) ** 0.5 == pytest.approx(effective, rel=1e-12)
    assert 0.1 * (width_ratio / inner_ratio) ** 0.5 == pytest.approx(lr[id(block.mlp.down.weight)], rel=1e-12)
    with pytest.raises(ParametrizationError) as error:
        p.param_groups(model)
    assert "p.optimizers" in str(error.value)


@pytest.mark.parametrize(
    ("rule", "hps", "named"),
    [
        ("shampoo_half", {}, "'shampoo_half'"),
        ("mup_adam", {"weight_decay.q": 0.1}, "weight_decay"),
    ],
)
def test_what_an_optimizer_cannot_do(rule, hps, named):
    """An optimizer with a table only, and decay that has no rule, are refused; the table still exists."""
    p = parametrize(Model, BASE, WIDE, rule)
    with pytest.raises(ParametrizationError) as error:
        p.optimizers(Model(WIDE), hps)

    assert named in str(error.value)
    assert len(p.table()) == len(p.tensors)


@pytest.mark.parametrize("has_symmetry", [False, True])
def test_an_optimizer_that_is_added_by_half(monkeypatch, has_symmetry):
    """Without its powers of θ, or without its options, an optimizer is refused by name."""
    monkeypatch.setattr(optimizers, "OPTIMIZERS", {**optimizers.OPTIMIZERS, "nadam": torch.optim.NAdam})
    if has_symmetry:
        monkeypatch.setattr(optimizers, "SYMMETRIES", {**SYMMETRIES, "nadam": SYMMETRIES["adamw"]})
    p = parametrize(Model, BASE, WIDE, dataclasses.replace(RULES["mup"], optimizer="nadam"))

    with pytest.raises(ParametrizationError) as error:
        p.param_groups(Model(WIDE))
    assert "'nadam'" in str(error.value)


def test_independent_weight_decay():
    """Then the HP is what a step takes off a weight at the base, whatever the learning rate."""
    p = parametrize(Model, BASE, WIDE, "complete_d_p_independent_decay")
    for lr in (0.01, 0.03):
        groups = p.param_groups(Model(WIDE), {"lr": lr, "lr.q": 2.0, "weight_decay": 1e-3})
        assert all(1e-3 == pytest.approx(g["lr"] * g["weight_decay"], rel=1e-12) for g in groups)


def test_ways_of_betas_reach_the_optimizer():
    """Half-life and fixed betas are settings of a rule; a group's multiplier is no part of them."""
    target = Scale(width=8, depth=2, tokens=500)
    base = target.replace(tokens=1000)
    betas = {}
    for way in ("linear", "half_life", "fixed"):
        rule = dataclasses.replace(RULES["complete_d_p"], betas=way)
        group = parametrize(Model, base, target, rule).param_groups(Model(target))[0]
        betas[way] = group["betas"]

    assert (0.8, 0.9) == pytest.approx(betas["linear"])
    assert (0.9**2, 0.95**2) == pytest.approx(betas["half_life"])
    assert (0.9, 0.95) == pytest.approx(betas["fixed"])


def test_a_groups_multiplier_multiplies():
    """At the base 1-β is the HP times the multiplier, in each way of betas; the rule comes on top."""
    base = Scale(width=8, depth=2, batch=8)
    for rule, power in (("complete_d_p", None), ("complete_d_p_token_half_life", 2)):
        p = parametrize(Model, base, rule=rule)
        hps = {"one_minus_beta2.embedding": 4.0}
        at_base, larger = (
            p.at(scale).settings(hps)["embedding.weight"].options["betas"][1]
            for scale in (base, base.replace(batch=16))
        )

        assert 0.8 == pytest.approx(at_base)
        assert (0.6 if power is None else 0.8**power) == pytest.approx(larger)


def test_beta1_may_stay():
    """With half-lives in tokens β2 follows the batch and nothing else, and β1 stays."""
    base = Scale(width=8, depth=2, batch=8, tokens=1000)
    target = base.replace(batch=32, tokens=9000)
    group = parametrize(Model, base, target, "complete_d_p_token_half_life").param_groups(Model(target))[0]

    assert (0.9, 0.95**4) == pytest.approx(group["betas"], rel=1e-12)


def test_decay_by_tokens_per_parameter_counts_the_parameters():
    """The ratio of parameters is that of the models as they are built."""
    decay = []
    for rule in ("complete_d_p", "complete_d_p_power_lines"):
        table = parametrize(Model, BASE, WIDE, rule).table()
        decay.append(table.set_index("name").weight_decay["final_norm.weight"])
    counts = [sum(q.numel() for q in Model(scale).parameters()) for scale in (WIDE, BASE)]

    assert (counts[0] / counts[1]) ** -0.527 == pytest.approx(decay[1] / decay[0], rel=1e-12)


def test_a_tied_embedding_has_its_multiplier_on_the_input():
    """Logits are those of weight times x/m_N, plus the bias as it is; at the base there is no hook."""
    p = parametrize(Tied, BASE, WIDE)
    model = Tied(WIDE)
    p.initialize(model, seed=1)
    with torch.no_grad():
        model.unembedding.bias.fill_(3.0)
    x = torch.randn(2, 32)
    p.param_groups(model)  # again: a hook is replaced
    base = Tied(BASE)
    parametrize(Tied, BASE, BASE).initialize(base)

    torch.testing.assert_close(x @ model.embedding.weight.T / 4 + 3, model.unembedding(x))
    assert 1 == len(model.unembedding._forward_pre_hooks)
    assert 0 == len(base.unembedding._forward_pre_hooks)
    assert model(tokens()).isfinite().all()


def test_a_missing_package_is_named(monkeypatch):
    """One sentence with the extra, before anything is trained."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParametrizationError) as error:
        parametrize(Model, BASE, WIDE, "mup", optimizer="soap").optimizers(Model(WIDE))

    assert "transfer-bo[optimizers]" in str(error.value)


def test_k_fac_has_a_table_only():
    """It is refused where an optimizer is made, and its rule gives factors."""
    with pytest.raises(ParametrizationError):
        check_optimizer(RULES["kfac"])
    assert 4 == RULES["kfac"].factors(Role.HIDDEN_WEIGHT, Ratios(width=4), 1.0).init_std ** -2


def test_a_matrix_of_zeros_has_no_norm_to_keep():
    """An optimizer that keeps norms would never train it."""

    def build(scale):
        model = Model(scale)
        torch.nn.init.zeros_(model.blocks[0].attn.o.weight)
        return model

    p = parametrize(build, BASE, WIDE, "mup", optimizer="muonh")
    with pytest.raises(ParametrizationError) as error:
        p.optimizers(build(WIDE))

    assert "blocks.0.attn.o.weight" in str(error.value)
    assert parametrize(build, BASE, WIDE, "mup", optimizer="muon").optimizers(build(WIDE))
