"""Complete(d)P (arXiv:2512.22382) with its variants in batch and duration, and CompleteP (2505.01618).

Symbols as in `rules`. Where sources disagree, `complete_d_p` is Complete(d)P's own choice and each other one
is a rule of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.parametrization.rules import ONE, Power, Role, RoleExponents, Rule
from transfer_bo.parametrization.tables.matrices import MATRIX_ROWS, without

__all__ = ["COMPLETE_D_P", "COMPLETE_D_P_RULES", "with_rows"]


def with_rows(rule: Rule, rows: Mapping[Role, RoleExponents]) -> dict[Role, RoleExponents]:
    """The rows of a rule, some of them replaced."""
    return {**rule.rows, **rows}


# ---------------------------------------------------------------------------------------- Complete^(d)P
# 2512.22382, Table 1, column Complete(d)P, for AdamW.

_DERIVED = frozenset(Role) - {
    Role.INPUT_EMBEDDING,
    Role.HIDDEN_WEIGHT,
    Role.HIDDEN_BIAS,
    Role.NORM_GAIN,
    Role.QK_NORM,
    Role.FINAL_NORM,
    Role.UNEMBEDDING,
}

_BLOCK_LR = Power(depth=-1, depth_alpha=1)
_BLOCK_EPS = Power(depth_alpha=-1)


_INPUT = RoleExponents(eps=Power(width=-1))
_HIDDEN = RoleExponents(
    init_var=Power(width=-1),
    lr=Power(width=-1) * _BLOCK_LR,
    eps=Power(width=-1) * _BLOCK_EPS,
    weight_decay=Power(width=1),
)
_HIDDEN_VECTOR = RoleExponents(lr=_BLOCK_LR, eps=Power(width=-1) * _BLOCK_EPS)
# The gain's gradient sums over heads, whose number grows with width: the m_N^-1 of ε cancels.
_SHARED = RoleExponents(lr=_BLOCK_LR, eps=_BLOCK_EPS)

# 2601.20205: router std n^-γ with γ = 1; an expert's second layer std α_ffn^-1 n^-1/2 and learning rate
# α_ffn^-1 n^-1, with α_ffn = its fan-in / n and n = its fan-out. At a fixed share of active experts their
# number changes nothing. ε is derived: gradients are of the order of 1 / fan-out.
_MOE = {
    Role.ROUTER: RoleExponents(
        init_var=Power(width=-2), lr=Power(width=-1) * _BLOCK_LR, eps=_BLOCK_EPS, weight_decay=Power(width=1)
    ),
    Role.EXPERT_UP: replace(_HIDDEN, eps=Power(fan_out=-1) * _BLOCK_EPS),
    Role.EXPERT_DOWN: replace(
        _HIDDEN, init_var=Power(width=-2, fan_out=+1), eps=Power(fan_out=-1) * _BLOCK_EPS
    ),
}

# Adapters on frozen weights, x + s·B·A·x with s ∝ r^-1/2 (2312.03732), A random and B 0 at first. Widths as
# in 2402.12354: learning rates n^-1 for A and 1 for B, which are those of any matrix that reads or writes the
# width. Ranks are derived: the updates of B add up over the r columns, s·r·lr, so that B's rate falls with
# r^-1/2 (by the same argument 1/r for s = 1 and no change for s = 1/r, the two regimes of 2602.06204); those
# of A go through B, which is smaller by as much as they are more. What modulates a frozen weight changes it
# by a share, at every width.
_ADAPTERS = {
    Role.ADAPTER_DOWN: replace(_HIDDEN, eps=Power(rank=-1) * _BLOCK_EPS),
    Role.ADAPTER_UP: RoleExponents(
        lr=Power(rank=-0.5) * _BLOCK_LR,
        eps=Power(width=-1, rank=-0.5) * _BLOCK_EPS,
        weight_decay=Power(rank=+0.5),
    ),
    Role.MODULATION: RoleExponents(lr=_BLOCK_LR, eps=Power(width=-1, rank=-1) * _BLOCK_EPS),
}

COMPLETE_D_P = Rule(
    name="complete_d_p",
    source="2512.22382, Table 1; mixtures of experts: 2601.20205; adapters: 2402.12354, 2312.03732",
    rows={
        Role.INPUT_EMBEDDING: _INPUT,
        Role.POSITION_EMBEDDING: _INPUT,
        Role.TIED_EMBEDDING: replace(_INPUT, forward=Power(width=-1)),
        Role.INPUT_BIAS: _INPUT,
        Role.HIDDEN_WEIGHT: _HIDDEN,
        Role.CONV_KERNEL: _HIDDEN,
        **_MOE,
        **_ADAPTERS,
        Role.WIDE_TO_NARROW: replace(_HIDDEN, eps=_BLOCK_EPS),
        Role.NARROW_TO_WIDE: _HIDDEN_VECTOR,
        Role.HIDDEN_BIAS: _HIDDEN_VECTOR,
        Role.NORM_GAIN: _HIDDEN_VECTOR,
        Role.QK_NORM: _SHARED,
        Role.SHARED: _SHARED,
        Role.FINAL_NORM: RoleExponents(),
        Role.UNEMBEDDING: RoleExponents(
            init_var=Power(width=-2), lr=Power(width=-1), weight_decay=Power(width=1)
        ),
        Role.OUTPUT_BIAS: RoleExponents(),
        Role.FIXED: RoleExponents(),
    },
    residual=Power(depth_alpha=-1),
    every=RoleExponents(
        lr=Power(batch=+0.5, tokens=-0.5),
        eps=Power(batch=-0.5, tokens=+0.5),
        weight_decay=Power(batch=+0.5, tokens=-0.5),
    ),
    one_minus_beta=Power(batch=+1, tokens=-1),
    derived=_DERIVED - {Role.ROUTER, Role.EXPERT_UP, Role.EXPERT_DOWN},
    matrix_rows=MATRIX_ROWS,
)


def _with_duration(name: str, exponent: float, source: str) -> Rule:
    """Complete(d)P with lr ∝ m_B^1/2 m_D^exponent; lr·λ stays in proportion to m_B/m_D, as it was."""
    every = replace(
        COMPLETE_D_P.every,
        lr=Power(batch=0.5, tokens=exponent),
        weight_decay=Power(batch=0.5, tokens=-1 - exponent),
    )
    return replace(COMPLETE_D_P, name=name, every=every, source=f"2512.22382, Table 1; duration: {source}")


# ------------------------------------------------------------------------------- variants of Complete^(d)P
_SOFT = _with_duration("complete_d_p_soft", -0.3, "exponent -0.3, as in Marin's recipes; λ derived")
_FLAT = _with_duration("complete_d_p_flat", 0.0, "exponent 0, for batches near the critical one; λ derived")

_SQRT_DECAY = replace(
    COMPLETE_D_P,
    name="complete_d_p_sqrt_decay",
    source="2512.22382, Table 1; hidden weight decay with √width: 2510.15262",
    rows=with_rows(
        COMPLETE_D_P,
        {
            role: replace(exponents, weight_decay=Power(width=0.5))
            for role, exponents in COMPLETE_D_P.rows.items()
            if exponents.weight_decay == Power(width=1) and role is not Role.UNEMBEDDING
        },
    ),
    matrix_rows={},
)

_LARGE_VOCABULARY = replace(
    COMPLETE_D_P,
    name="complete_d_p_large_vocabulary",
    source="2512.22382, Table 1; embedding lr over hidden lr with √width: 2506.15025",
    rows=with_rows(COMPLETE_D_P, {Role.INPUT_EMBEDDING: replace(_INPUT, lr=Power(width=-0.5))}),
)

_HALF_LIFE = replace(COMPLETE_D_P, name="complete_d_p_half_life", betas="half_life")

_TOKEN_HALF_LIFE = replace(
    COMPLETE_D_P,
    name="complete_d_p_token_half_life",
    source="2512.22382, Table 1; β2 to the power of m_B, β1 kept: Marek et al. on small batches",
    one_minus_beta=Power(batch=+1),
    betas="half_life",
    keeps_beta1=True,
)
_INDEPENDENT = replace(COMPLETE_D_P, name="complete_d_p_independent_decay", independent_weight_decay=True)
# The time that AdamW averages over, 1/(lr·λ), is a fixed share of the run in Complete(d)P; here that share is
# in proportion to (tokens per parameter)^-0.527 (exponent recalled, not checked against the paper).
_POWER_LINES = replace(
    COMPLETE_D_P,
    name="complete_d_p_power_lines",
    source="2512.22382, Table 1; λ by tokens per parameter: 2505.13738 (as recalled)",
    every=replace(
        COMPLETE_D_P.every,
        weight_decay=COMPLETE_D_P.every.weight_decay * Power(tokens=+0.527, parameters=-0.527),
    ),
)

# ------------------------------------------------------------------------------------------- CompleteP
# 2505.01618, Table 1: the unembedding's multiplier stands in the forward pass. All tensors of a block have
# the same ε, QK-norms included, which the source does not treat; outside the blocks ε is that of the base.

_OUTSIDE = RoleExponents()
COMPLETEP = replace(
    COMPLETE_D_P,
    name="completep",
    source="2505.01618, Table 1; mixtures of experts: 2601.20205",
    rows=with_rows(
        COMPLETE_D_P,
        {
            Role.INPUT_EMBEDDING: _OUTSIDE,
            Role.POSITION_EMBEDDING: _OUTSIDE,
            Role.INPUT_BIAS: _OUTSIDE,
            Role.TIED_EMBEDDING: RoleExponents(forward=Power(width=-1)),
            Role.UNEMBEDDING: RoleExponents(forward=Power(width=-1)),
            **{
                role: replace(COMPLETE_D_P.rows[role], eps=Power(width=-1) * _BLOCK_EPS)
                for role in (Role.QK_NORM, Role.SHARED, Role.ROUTER, Role.WIDE_TO_NARROW)
            },
        },
    ),
    every=RoleExponents(),
    one_minus_beta=ONE,
    alpha_range=(0.0, 1.0),
    derived=COMPLETE_D_P.derived | {Role.QK_NORM},
    matrix_rows={name: without(row, "batch", "tokens") for name, row in MATRIX_ROWS.items()},
)

COMPLETE_D_P_RULES = (
    COMPLETE_D_P,
    _SOFT,
    _FLAT,
    _SQRT_DECAY,
    _LARGE_VOCABULARY,
    _HALF_LIFE,
    _TOKEN_HALF_LIFE,
    _INDEPENDENT,
    _POWER_LINES,
    replace(COMPLETE_D_P, name="complete_d_p_adam", optimizer="adam", parametrization="complete_d_p"),
    COMPLETEP,
)
