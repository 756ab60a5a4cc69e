"""Every other table, against the literature's values spelled out independently.

All at width 4, depth 3, batch 2, tokens 5, fan-out 7, parameters 11, which tells the axes apart.
"""

import dataclasses
import math

import pytest

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.rules import Power, Ratios, Role, RoleExponents
from transfer_bo.parametrization.tables import (
    COMPLETE_D_P,
    KFAC_DAMPING,
    PARAMETRIZATIONS,
    RULES,
    find_rule,
    optimizers_of,
)

M = Ratios(width=4, depth=3, batch=2, tokens=5, fan_out=7, parameters=11)

# (init std, lr, ε, weight decay, forward) per role; α = 1, and no batch or duration rule, unless said.
COMPLETEP = {
    "input_embedding": (1, 1, 1, 1, 1),
    "norm_gain": (1, 1, 1 / 12, 1, 1),
    "hidden_bias": (1, 1, 1 / 12, 1, 1),
    "qk_norm": (1, 1, 1 / 12, 1, 1),
    "hidden_weight": (1 / 2, 1 / 4, 1 / 12, 4, 1),
    "final_norm": (1, 1, 1, 1, 1),
    "unembedding": (1, 1, 1, 1, 1 / 4),
    "tied_embedding": (1, 1, 1, 1, 1 / 4),
    "output_bias": (1, 1, 1, 1, 1),
}
MUP = {
    "input_embedding": (1, 1, 1 / 4, 1, 1),
    "input_bias": (1, 1, 1 / 4, 1, 1),
    "hidden_weight": (1 / 2, 1 / 4, 1 / 4, 4, 1),
    "hidden_bias": (1, 1, 1 / 4, 1, 1),
    "norm_gain": (1, 1, 1 / 4, 1, 1),
    "qk_norm": (1, 1, 1, 1, 1),
    "final_norm": (1, 1, 1, 1, 1),
    "unembedding": (1 / 4, 1 / 4, 1, 4, 1),
    "tied_embedding": (1, 1, 1 / 4, 1, 1 / 4),
    "router": (1 / 4, 1 / 4, 1, 4, 1),
    "expert_down": (math.sqrt(7) / 4, 1 / 4, 1 / 7, 4, 1),
}
MUP_SGD = {
    "input_embedding": (1, 4, 1, 1 / 4, 1),
    "position_embedding": (1, 4, 1, 1 / 4, 1),
    "hidden_bias": (1, 4, 1, 1 / 4, 1),
    "norm_gain": (1, 4, 1, 1 / 4, 1),
    "hidden_weight": (1 / 2, 7 / 4, 1, 4 / 7, 1),
    "unembedding": (1 / 4, 1 / 4, 1, 4, 1),
    "router": (1 / 4, 1 / 4, 1, 4, 1),
    "wide_to_narrow": (1 / 2, 1 / 4, 1, 4, 1),
    "tied_embedding": (1, 4, 1, 1 / 4, 1 / 4),
    "output_bias": (1, 1, 1, 1, 1),
}
SP = {
    "input_embedding": (1, 1, 1, 1, 1),
    "hidden_weight": (1 / 2, 1, 1, 1, 1),
    "norm_gain": (1, 1, 1, 1, 1),
    "unembedding": (1 / 2, 1, 1, 1, 1),
    "expert_down": (1 / 2, 1, 1, 1, 1),
    "router": (1 / 2, 1, 1, 1, 1),
}
LITERATURE = {
    "completep": COMPLETEP,
    "mup": MUP,
    "mup_adam": MUP,
    "mup_table_8": {
        **MUP,
        "input_embedding": (1 / 2, 1 / 2, 1 / 2, 2, 2),
        "input_bias": (1 / 2, 1 / 2, 1 / 2, 2, 2),
        "unembedding": (1 / 2, 1 / 2, 1 / 2, 2, 1 / 2),
    },
    "mup_table_9": {**MUP, "unembedding": (1, 1, 1 / 4, 1, 1 / 4)},
    "mup_sgd": MUP_SGD,
    "completep_sgd": {
        **{role: row for role, row in MUP_SGD.items() if "embedding" in role or role == "output_bias"},
        "hidden_weight": (1 / 2, 7 / 4 * 3, 1, 4 / 7 / 3, 1),
        "norm_gain": (1, 4 * 3, 1, 1 / 4 / 3, 1),
    },
    "sp": SP,
    "sp_embedding_lr": {
        **SP,
        "input_embedding": (1, 4, 1, 1, 1),
        "position_embedding": (1, 4, 1, 1, 1),
    },
    # 2512.05620; everything times sqrt(2/5) for lr and λ, sqrt(5/2) for ε, as in Complete(d)P; Shampoo's ε
    # times that once more: it is in proportion to 1/batch
    "muon": {"hidden_weight": (1 / 2, math.sqrt(7 / 4), math.sqrt(4 / 7) / 3, math.sqrt(4 / 7) / 4, 1)},
    "soap": {"hidden_weight": (1 / 2, math.sqrt(7 / 4), math.sqrt(4 / 7) / 3, math.sqrt(4 / 7) / 4, 1)},
    "shampoo": {
        "hidden_weight": (1 / 2, math.sqrt(7 / 4), math.sqrt(5 / 2) * 4 / 7 / 9, math.sqrt(4 / 7) / 4, 1)
    },
    "shampoo_half": {"hidden_weight": (1 / 2, 1 / 3, math.sqrt(5 / 2) * 4 / 7 / 9, 3 / 4, 1)},
    # 2312.12226; ε is the damping, of K-FAC that of both factors
    "kfac": {
        "input_embedding": (1, 1, 1 / 4, 1, 1),
        "hidden_weight": (1 / 2, 1, 1, 1, 1),
        "unembedding": (1 / 4, 1, 4, 1, 1),
    },
    "shampoo_width": {
        "input_embedding": (1, 2, 1 / 4, 1 / 2, 1),
        "hidden_weight": (1 / 2, 1, 1, 1, 1),
        "unembedding": (1 / 4, 1 / 2, 4, 2, 1),
    },
}
# Hidden weights only, of optimizers that take nothing else; without a batch and duration rule.
SPECTRAL = (1 / 2, math.sqrt(7 / 4), math.sqrt(4 / 7), math.sqrt(4 / 7) / 4, 1)
LITERATURE |= {
    "u_mup": {
        "input_embedding": (1, 1 / 2, 1, 1, 1),
        "hidden_weight": (1, 1 / 2 / math.sqrt(3), 1, 1, 1),
        "norm_gain": (1, 1 / math.sqrt(3), 1, 1, 1),
        "final_norm": (1, 1, 1, 1, 1),
        "unembedding": (1, 1, 1, 1, 1),
    },
    "mup+muon": {**MUP, "hidden_weight": SPECTRAL},
    "mup+soap": {**MUP, "hidden_weight": SPECTRAL},
    "mup+shampoo": {**MUP, "hidden_weight": (*SPECTRAL[:2], 4 / 7, *SPECTRAL[3:])},
    "mup+adamh": {**MUP, "hidden_weight": (1 / 2, 1 / 2, 1 / 4, 1, 1)},
    "mup+muonh": {**MUP, "hidden_weight": (1 / 2, 1, math.sqrt(4 / 7), 1, 1)},
    "completep+muon": {**COMPLETEP, "hidden_weight": (*SPECTRAL[:2], SPECTRAL[2] / 3, *SPECTRAL[3:])},
    "completep+shampoo": {**COMPLETEP, "hidden_weight": (*SPECTRAL[:2], 4 / 7 / 9, *SPECTRAL[3:])},
    "completep+adamh": {**COMPLETEP, "hidden_weight": (1 / 2, 1 / 2, 1 / 12, 1, 1)},
    "completep+muonh": {**COMPLETEP, "hidden_weight": (1 / 2, 1, math.sqrt(4 / 7) / 3, 1, 1)},
    "sp+muon": SP,
    "sp+sgd": SP,
    "sp+adafactor": SP,
}
TIMED = ("muon", "soap", "shampoo", "shampoo_half")


def _numbers(rule, role, alpha=1.0):
    setting = rule.factors(Role(role), M, alpha)
    return (setting.init_std, setting.lr, setting.eps, setting.weight_decay, setting.forward)


def _expected(name, row):
    time = math.sqrt(2 / 5) if name in TIMED else 1
    return (row[0], row[1] * time, row[2] / time, row[3] * time, row[4])


@pytest.mark.parametrize("name", LITERATURE)
def test_tables(name):
    """Each table has the literature's numbers, role by role."""
    for role, row in LITERATURE[name].items():
        assert pytest.approx(_expected(name, row), rel=1e-12) == _numbers(find_rule(name), role)


def _agrees(name, rule):
    return all(
        pytest.approx(_expected(name, row), rel=1e-12) == _numbers(rule, role)
        for role, row in LITERATURE[name].items()
    )


@pytest.mark.parametrize("name", LITERATURE)
def test_every_exponent_of_width_and_depth_is_pinned(name):
    """Moving one exponent of a row that is spelled above disagrees with it."""
    rule = find_rule(name)
    for role in map(Role, LITERATURE[name]):
        for field in dataclasses.fields(RoleExponents):
            for axis in ("width", "fan_out", "depth"):
                power = getattr(rule.rows[role], field.name)
                moved = dataclasses.replace(power, **{axis: getattr(power, axis) + 0.25})
                row = dataclasses.replace(rule.rows[role], **{field.name: moved})
                assert not _agrees(name, dataclasses.replace(rule, rows={**rule.rows, role: row}))


# 2407.05872: name, (a, b, c) per layer (embedding, hidden, readout), g; c as printed.
EVERETT = {
    "sp_full": ((0, 0, 0), (0, 0.5, 0.5), (0, 1, 1), (0.5, 0.5, 0)),
    "sp_none": ((0, 0, 0), (0, 0.5, 0.5), (0, 0.5, 0.5), (0.5, 0.5, 0)),
    "sp_sgd": ((0, 0, 0), (0, 0.5, 0.5), (-0.5, 0.5, 1), (0.5, 0.5, 0)),
    "sp_adafactor": ((0, 0, 0), (0, 0.5, 0.5), (0, 0.5, 0.5), (0.5, 0.5, 0)),
    "ntk_full": ((0, 0.5, 0.5), (0, 0, 0), (0, 0.5, 0.5), (0.5, 1, 0.5)),
    "ntk_none": ((0, 0.5, 0.5), (0, 0, 0), (0, 0, 0), (0.5, 1, 0.5)),
    "ntk_sgd": ((0, 0.5, 0.5), (0, 0, 0), (-0.5, -0.5, 0), (0.5, 1, 0.5)),
    "ntk_adafactor": ((0, 0.5, 0.5), (0, 0, 0), (0, 0.5, 0.5), (0.5, 1, 0.5)),
    "mup_everett_full": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 1, 0.5)),
    "mup_everett_none": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 1, 0.5)),
    "mup_everett_sgd": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0, 0, 0), (0.5, 1, 0.5)),
    "mup_everett_adafactor": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0, 0.5, 0), (0.5, 1, 0.5)),
    "mean_field_full": ((0, 0.5, 1), (0, 0, 0), (0, 0.5, 0), (1, 1.5, 1)),
    "mean_field_none": ((0, 0.5, 1), (0, 0, 0), (0, 0, -0.5), (1, 1.5, 1)),
    "mean_field_sgd": ((0, 0.5, 1), (0, 0, 0), (-1, -1, -1), (1, 1.5, 1)),
    "mean_field_adafactor": ((0, 0.5, 1), (0, 0, 0), (0, 0.5, 0), (1, 1.5, 1)),
    "sp_none+sgd": ((0, 0, 0), (0, 0.5, 0.5), (-0.5, 0, 0.5), (0.5, 0.5, 0)),
    "sp_none+adafactor": ((0, 0, 0), (0, 0.5, 0.5), (0, 0, 0), (0.5, 0.5, 0)),
    "mup_everett_none+sgd": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0, -0.5, -0.5), (0.5, 1, 0.5)),
    "mean_field_none+adafactor": ((0, 0.5, 1), (0, 0, 0), (0, 0, -0.5), (1, 1.5, 1)),
    "ntk_full+adam": ((0, 0.5, 0.5), (0, 0, 0), (0, 0.5, 0.5), (0.5, 1, 0.5)),
}


@pytest.mark.parametrize("name", EVERETT)
def test_everett(name):
    """Multiplier n^-a, initial std n^-b, learning rate n^-c and ε n^-g, layer by layer."""
    a, b, c, g = EVERETT[name]
    for i, role in enumerate(("input_embedding", "hidden_weight", "unembedding")):
        expected = (4.0 ** -b[i], 4.0 ** -c[i], 4.0 ** -g[i], 4.0 ** c[i], 4.0 ** -a[i])
        assert pytest.approx(expected, rel=1e-12) == _numbers(find_rule(name), role)


def test_hyperball_over_depth_batch_and_tokens():
    """HyperP: lr of MuonH with depth^-1/2 (α = 1/2), √batch and tokens^-0.32; Marin's AdamH: tokens^-0.3."""
    hyperp = RULES["hyperp"].factors(Role.HIDDEN_WEIGHT, M, 0.5)
    marin = RULES["marin_adamh"].factors(Role.HIDDEN_WEIGHT, M, 1.0)

    assert 3**-0.5 * 2**0.5 * 5**-0.32 == pytest.approx(hyperp.lr, rel=1e-12)
    assert 3**-0.5 == pytest.approx(RULES["hyperp"].residual.at(M, 0.5))
    assert 2**0.5 * 5**-0.3 == pytest.approx(marin.lr, rel=1e-12)
    assert (2 / 5) ** 0.5 == pytest.approx(RULES["marin_adamh"].factors(Role.UNEMBEDDING, M, 1.0).lr)


def test_a_rule_is_found_by_parametrization_and_optimizer():
    """The table for an optimizer, whichever of the parametrization is asked; variants keep theirs."""
    assert RULES["mup_sgd"] == find_rule("mup", "sgd")
    assert "mup+muon" == find_rule("mup_sgd", "muon").name
    assert RULES["muon"] == find_rule("complete_d_p", "muon")
    assert RULES["complete_d_p"] == find_rule("complete_d_p", "adamw")
    soft, plain = (
        find_rule(name, "muon").factors(Role.HIDDEN_WEIGHT, Ratios(tokens=2), 1.0)
        for name in ("complete_d_p_soft", "complete_d_p")
    )
    assert (2**-0.3, 2**-0.5) == pytest.approx((soft.lr, plain.lr))


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_every_combination_that_is_listed_exists(name):
    """Each has a table that says so; every other optimizer is refused."""
    for optimizer in (
        "adamw",
        "adam",
        "sgd",
        "adafactor",
        "muon",
        "soap",
        "shampoo",
        "kfac",
        "adamh",
        "muonh",
    ):
        if optimizer in optimizers_of(name):
            rule = find_rule(name, optimizer)
            assert (optimizer, name) == (rule.trained_by, rule.parametrization or rule.name)
            assert find_rule(f"{name}+{optimizer}") == rule
        else:
            with pytest.raises(ParametrizationError):
                find_rule(name, optimizer)


def test_damping_of_each_factor():
    """K-FAC: ρ_A ∝ (1, M, M) of the inputs, ρ_B ∝ (1/M, 1/M, 1) of the output gradients."""
    layers = ("input_embedding", "hidden_weight", "unembedding")

    assert {"input_embedding": (1, 1 / 4), "hidden_weight": (4, 1 / 4), "unembedding": (4, 1)} == {
        role: tuple(power.at(M, 1.0) for power in KFAC_DAMPING[Role(role)]) for role in layers
    }


def test_everett_vectors():
    """A gain's ε and, with SGD, its learning rate follow the gradient of what has no multiplier."""
    assert {"sp": 1 / 2, "ntk": 1 / 2, "mup_everett": 1 / 4, "mean_field": 1 / 4} == {
        family: RULES[f"{family}_full"].factors(Role.NORM_GAIN, M, 1).eps
        for family in ("sp", "ntk", "mup_everett", "mean_field")
    }
    assert 4 == RULES["mean_field_sgd"].factors(Role.NORM_GAIN, M, 1).lr


@pytest.mark.parametrize(
    ("name", "exponent"), [("complete_d_p", -0.5), ("complete_d_p_soft", -0.3), ("complete_d_p_flat", 0)]
)
def test_duration(name, exponent):
    """The learning rate's exponent of tokens is the rule's; lr·λ stays in proportion to batch over tokens."""
    setting = RULES[name].factors(Role.FINAL_NORM, M, 1.0)

    assert math.sqrt(2) * 5**exponent == pytest.approx(setting.lr, rel=1e-12)
    assert 2 / 5 == pytest.approx(setting.lr * setting.weight_decay, rel=1e-12)
    assert math.sqrt(5 / 2) == pytest.approx(setting.eps, rel=1e-12)
    assert 2 / 5 == setting.one_minus_beta


def test_averaging_time_by_tokens_per_parameter():
    """2505.13738: 1/(lr·λ), as a share of the run, goes as (tokens per parameter)^-0.527."""
    plain, other = (
        RULES[name].factors(Role.FINAL_NORM, M, 1.0) for name in ("complete_d_p", "complete_d_p_power_lines")
    )

    assert (5 / 11) ** 0.527 == pytest.approx(other.weight_decay / plain.weight_decay, rel=1e-12)
    assert dataclasses.replace(other, weight_decay=plain.weight_decay) == plain


@pytest.mark.parametrize(
    ("name", "role", "quantity", "value"),
    [
        ("complete_d_p_sqrt_decay", "hidden_weight", "weight_decay", 2),
        ("complete_d_p_sqrt_decay", "unembedding", "weight_decay", 4),
        ("complete_d_p_sqrt_decay", "norm_gain", "weight_decay", 1),
        ("complete_d_p_large_vocabulary", "input_embedding", "lr", 1 / 2),
        ("complete_d_p_large_vocabulary", "hidden_weight", "lr", 1 / 4),
    ],
)
def test_variants(name, role, quantity, value):
    """Variants differ from Complete(d)P where they say so, and nowhere else."""
    setting = RULES[name].factors(Role(role), dataclasses.replace(M, batch=1, tokens=1), 1.0)

    assert value == pytest.approx(getattr(setting, quantity), rel=1e-12)
    changed = [role for role in COMPLETE_D_P.rows if RULES[name].rows[role] != COMPLETE_D_P.rows[role]]
    assert changed
    assert Role.FINAL_NORM not in changed


@pytest.mark.parametrize("name", RULES)
def test_every_rule(name):
    """A rule is found by its name, names its source, and changes nothing at the base."""
    rule = RULES[name]

    assert name == rule.name
    assert "2" in rule.source or "practice" in rule.source
    for role in rule.rows:
        assert (1, 1, 1, 1, 1, 1) == dataclasses.astuple(rule.factors(role, Ratios(), 1.0))
    assert 1 == rule.residual.at(Ratios(), 1.0)


def test_only_rules_with_a_depth_rule_multiply_branches():
    """A rule multiplies branches if and only if some exponent of it depends on depth."""

    def has_depth(rule):
        powers = [getattr(row, f.name) for row in rule.rows.values() for f in dataclasses.fields(row)]
        return any(power.depth or power.depth_alpha for power in powers)

    # Models under u-muP multiply their branches themselves.
    with_depth = {name for name, rule in RULES.items() if has_depth(rule) and name != "u_mup"}

    assert with_depth == {name for name, rule in RULES.items() if rule.residual != Power()}
    assert "completep" in with_depth
    assert "mup" not in with_depth
