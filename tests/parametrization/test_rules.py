"""The rule tables, against the literature's values spelled out independently, and the guard on β."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.rules import (
    SYMMETRIES,
    Power,
    Ratios,
    Role,
    RoleExponents,
    ScalingFactors,
    scale_one_minus_beta,
)
from transfer_bo.parametrization.tables import COMPLETE_D_P, find_rule

M = Ratios(width=4, depth=3, batch=2, tokens=5, fan_out=7, parameters=11, rank=9)
ALPHAS = (0.5, 1.0)


def literature(role: str, alpha: float) -> dict[str, float]:
    """2512.22382, Table 1, column Complete(d)P, at m = (4, 3, 2, 5), fan-out 7, rank 9: numbers, row by row.

    Experts and router: 2601.20205; adapters: 2402.12354 over the width, their ranks derived. Position, tied,
    fixed and shared tensors and kernels follow from these.
    """
    lr = math.sqrt(2 / 5)
    eps = math.sqrt(5 / 2)
    wd = math.sqrt(2 / 5)
    block_lr, block_eps = lr * 3 ** (alpha - 1), eps / 3**alpha
    row = {
        "position_embedding": (1, lr, eps / 4, wd),
        "tied_embedding": (1, lr, eps / 4, wd),
        "conv_kernel": (1 / 2, block_lr / 4, block_eps / 4, wd * 4),
        "expert_up": (1 / 2, block_lr / 4, block_eps / 7, wd * 4),
        "expert_down": (7**0.5 / 4, block_lr / 4, block_eps / 7, wd * 4),
        "router": (1 / 4, block_lr / 4, block_eps, wd * 4),
        "wide_to_narrow": (1 / 2, block_lr / 4, block_eps, wd * 4),
        "narrow_to_wide": (1, block_lr, block_eps / 4, wd),
        "adapter_down": (1 / 2, block_lr / 4, block_eps / 9, wd * 4),
        "adapter_up": (1, block_lr / 3, block_eps / 4 / 3, wd * 3),
        "modulation": (1, block_lr, block_eps / 4 / 9, wd),
        "shared": (1, block_lr, block_eps, wd),
        "fixed": (1, lr, eps, wd),
        "input_embedding": (1, lr, eps / 4, wd),
        "input_bias": (1, lr, eps / 4, wd),
        "hidden_weight": (1 / 2, lr / 4 * 3 ** (alpha - 1), eps / 4 / 3**alpha, wd * 4),
        "hidden_bias": (1, lr * 3 ** (alpha - 1), eps / 4 / 3**alpha, wd),
        "norm_gain": (1, lr * 3 ** (alpha - 1), eps / 4 / 3**alpha, wd),
        "qk_norm": (1, lr * 3 ** (alpha - 1), eps / 3**alpha, wd),
        "final_norm": (1, lr, eps, wd),
        "unembedding": (1 / 4, lr / 4, eps, wd * 4),
        "output_bias": (1, lr, eps, wd),
    }[role]
    return {
        **dict(zip(("init_std", "lr", "eps", "weight_decay"), row, strict=True)),
        "one_minus_beta": 2 / 5,
        "forward": 1 / 4 if role == "tied_embedding" else 1,
    }


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("role", list(COMPLETE_D_P.rows))
def test_complete_d_p_is_the_published_table(role, alpha):
    """Every role and quantity has the literature's value at ratios that tell all four axes apart."""
    actual = dataclasses.asdict(COMPLETE_D_P.factors(role, M, alpha))

    assert literature(role, alpha) == pytest.approx(actual, rel=1e-14)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_residual_multiplier(alpha):
    """A residual branch is multiplied by m_L^-α and by nothing else."""
    assert 3**-alpha == pytest.approx(COMPLETE_D_P.residual.at(M, alpha), rel=1e-14)


def _mutants():
    """The table with one exponent moved, for each exponent there is."""
    quantities = [f.name for f in dataclasses.fields(RoleExponents)]
    axes = [f.name for f in dataclasses.fields(Power)]

    def moved(power, axis):
        return dataclasses.replace(power, **{axis: getattr(power, axis) + 0.25})

    for axis in axes:
        for role, row in COMPLETE_D_P.rows.items():
            for quantity in quantities:
                changed = dataclasses.replace(row, **{quantity: moved(getattr(row, quantity), axis)})
                yield dataclasses.replace(COMPLETE_D_P, rows={**COMPLETE_D_P.rows, role: changed})
        for quantity in quantities:
            every = dataclasses.replace(
                COMPLETE_D_P.every, **{quantity: moved(getattr(COMPLETE_D_P.every, quantity), axis)}
            )
            yield dataclasses.replace(COMPLETE_D_P, every=every)
        yield dataclasses.replace(COMPLETE_D_P, one_minus_beta=moved(COMPLETE_D_P.one_minus_beta, axis))


def test_every_exponent_is_pinned():
    """Moving any single exponent of the table disagrees with the literature's values used above."""

    def agrees(rule):
        return all(
            literature(role, alpha)
            == pytest.approx(dataclasses.asdict(rule.factors(role, M, alpha)), rel=1e-14)
            for role in COMPLETE_D_P.rows
            for alpha in ALPHAS
        )

    assert agrees(COMPLETE_D_P)
    assert not any(agrees(mutant) for mutant in _mutants())


@given(
    st.sampled_from(list(COMPLETE_D_P.rows)),
    st.floats(0.5, 1),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
)
def test_only_tokens_per_batch_matters(role, alpha, batch, tokens, both):
    """Growing batch and tokens by one factor keeps the number of steps, and so every factor."""
    once = COMPLETE_D_P.factors(role, Ratios(batch=batch, tokens=tokens), alpha)
    more = COMPLETE_D_P.factors(role, Ratios(batch=batch * both, tokens=tokens * both), alpha)

    assert dataclasses.asdict(once) == pytest.approx(dataclasses.asdict(more), rel=1e-12)


MATRICES = ["input_embedding", "hidden_weight", "unembedding"]


@given(st.sampled_from(MATRICES), st.floats(1, 64), st.floats(1, 64))
def test_averaging_time_of_matrices(role, width, tokens):
    """At α = 1, lr·λ of matrices is inversely proportional to the steps, whatever the width and depth."""
    factors = COMPLETE_D_P.factors(Role(role), Ratios(width=width, depth=3, tokens=tokens), 1.0)

    assert 1 / tokens == pytest.approx(factors.lr * factors.weight_decay, rel=1e-12)


def test_unembedding_is_the_forward_multiplier_form():
    """CompleteP's unembedding (multiplier 1/m_N, ε/m_N), its multiplier folded in, is the table's row."""
    forward_form = ScalingFactors(eps=1 / 4, forward=1)
    folded = SYMMETRIES["adamw"].fold(forward_form, theta=1 / 4)

    assert COMPLETE_D_P.factors(Role.UNEMBEDDING, Ratios(width=4), 1.0) == folded


@pytest.mark.parametrize("role", list(COMPLETE_D_P.rows))
def test_nothing_changes_at_the_base(role):
    """At ratios of one every factor is exactly one."""
    assert ScalingFactors() == COMPLETE_D_P.factors(role, Ratios(), 0.7)


def test_beta_guard_is_linear_where_that_is_valid():
    """The table's form 1-β times m_B/m_D holds as long as it stays below one."""
    assert 0.1 * 9.9 == scale_one_minus_beta(0.1, 9.9)


def test_other_ways_of_betas():
    """Half-life keeps β^factor always, fixed keeps β."""
    assert 1 - 0.9**2 == scale_one_minus_beta(0.1, 2, "half_life")
    assert 0.1 == scale_one_minus_beta(0.1, 2, "fixed")
    assert 0.1 == scale_one_minus_beta(0.1, 1, "half_life")


def test_unknown_way_of_betas():
    """A misspelled value of `betas` is refused when the rule is made."""
    with pytest.raises(ParametrizationError) as error:
        dataclasses.replace(COMPLETE_D_P, betas="halflife")

    assert "'halflife'" in str(error.value)


def test_beta_guard_beyond():
    """Where the linear form leaves (0, 1), the half-life form takes over."""
    assert 1 - 0.9**10 == scale_one_minus_beta(0.1, 10)
    assert 1 - 0.9**64 == scale_one_minus_beta(0.1, 64)


@given(st.floats(1e-6, 0.999), st.floats(1e-3, 1e3))
def test_beta_stays_inside(one_minus_beta, factor):
    """β comes out inside (0, 1), or it is an error: never a useless value."""
    try:
        beta = 1 - scale_one_minus_beta(one_minus_beta, factor)
    except ParametrizationError:
        assert (1 - one_minus_beta) ** factor < 1e-15
    else:
        assert 0 < beta < 1


@pytest.mark.parametrize(
    ("one_minus_beta", "factor"), [(0.0, 1), (1.0, 1), (1.5, 0.1), (0.1, 0.0), (0.999, 1e9)]
)
def test_no_beta_is_an_error(one_minus_beta, factor):
    """Where no β inside (0, 1) exists, the error names 1-β."""
    with pytest.raises(ParametrizationError) as error:
        scale_one_minus_beta(one_minus_beta, factor)

    assert f"{one_minus_beta:g}" in str(error.value)


def test_unknown_rule():
    """An unknown rule is named beside the known ones."""
    with pytest.raises(ParametrizationError) as error:
        find_rule("mup2")

    assert "'mup2'" in str(error.value)
    assert "complete_d_p" in str(error.value)


def test_a_rule_of_ones_own():
    """A rule that is a table of the user's passes through; a role it lacks is an error."""
    own = dataclasses.replace(COMPLETE_D_P, name="own", rows={Role.HIDDEN_WEIGHT: RoleExponents()})

    assert find_rule(own) is own
    with pytest.raises(ParametrizationError) as error:
        own.factors(Role.QK_NORM, M, 1.0)
    assert "'qk_norm'" in str(error.value)


def test_the_former_name_of_factors():
    """`Rule.setting` still works, with a warning."""
    with pytest.warns(DeprecationWarning, match="factors"):
        factors = COMPLETE_D_P.setting(Role.HIDDEN_WEIGHT, M, 1.0)

    assert COMPLETE_D_P.factors(Role.HIDDEN_WEIGHT, M, 1.0) == factors
