"""The rules of the literature, as tables: a new rule is a new table, not new code.

Rows that a source does not print follow from its own reasoning and are named in `Rule.derived`:

- position embeddings scale as the input embedding, convolution kernels as hidden weights;
- the input layer's bias and norm as the input embedding, the output layer's bias as output biases;
- a tied embedding is the input embedding, with the unembedding's forward multiplier m_N^-1;
- what has a fixed size inside a block and reads the width (a router, keys shared by all heads), or is shared
  by heads, gets a gradient that sums over the width, so its ε has no m_N^-1 (the argument for QK-norms);
- what has a fixed size and writes the width (half of a low-rank map) scales as a hidden bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.errors import TransferError
from transfer_bo.parametrization.rules import ONE, SYMMETRIES, Power, Role, RoleExponents, Rule

__all__ = ["COMPLETE_D_P", "KFAC_DAMPING", "RULES", "find_rule"]


def _width(exponent: float) -> Power:
    return Power(width=exponent)


def _depth(exponent: float, alpha: float = 0.0) -> Power:
    return Power(depth=exponent, depth_alpha=alpha)


_DERIVED = frozenset(Role) - {
    Role.INPUT_EMBEDDING,
    Role.HIDDEN_WEIGHT,
    Role.HIDDEN_BIAS,
    Role.NORM_GAIN,
    Role.QK_NORM,
    Role.FINAL_NORM,
    Role.UNEMBEDDING,
}
_BLOCK_LR = _depth(-1, alpha=+1)
_BLOCK_EPS = _depth(0, alpha=-1)

# ---------------------------------------------------------------------------------------- Complete^(d)P
# 2512.22382, Table 1, column Complete(d)P, for AdamW.

_INPUT = RoleExponents(eps=_width(-1))
_HIDDEN = RoleExponents(
    init_var=_width(-1), lr=_width(-1) * _BLOCK_LR, eps=_width(-1) * _BLOCK_EPS, weight_decay=_width(+1)
)
_HIDDEN_VECTOR = RoleExponents(lr=_BLOCK_LR, eps=_width(-1) * _BLOCK_EPS)
# The gain's gradient sums over heads, whose number grows with width: the m_N^-1 of ε cancels.
_SHARED = RoleExponents(lr=_BLOCK_LR, eps=_BLOCK_EPS)

# 2601.20205: router std n^-γ with γ = 1; an expert's second layer std α_ffn^-1 n^-1/2 and learning rate
# α_ffn^-1 n^-1, with α_ffn = its fan-in / n and n = its fan-out. At a fixed share of active experts their
# number changes nothing. ε is derived: gradients are of the order of 1 / fan-out.
_MOE = {
    Role.ROUTER: RoleExponents(
        init_var=_width(-2), lr=_width(-1) * _BLOCK_LR, eps=_BLOCK_EPS, weight_decay=_width(+1)
    ),
    Role.EXPERT_UP: replace(_HIDDEN, eps=Power(fan_out=-1) * _BLOCK_EPS),
    Role.EXPERT_DOWN: replace(
        _HIDDEN, init_var=Power(width=-2, fan_out=+1), eps=Power(fan_out=-1) * _BLOCK_EPS
    ),
}

COMPLETE_D_P = Rule(
    name="complete_d_p",
    source="2512.22382, Table 1; mixtures of experts: 2601.20205",
    rows={
        Role.INPUT_EMBEDDING: _INPUT,
        Role.POSITION_EMBEDDING: _INPUT,
        Role.TIED_EMBEDDING: replace(_INPUT, forward=_width(-1)),
        Role.INPUT_BIAS: _INPUT,
        Role.HIDDEN_WEIGHT: _HIDDEN,
        Role.CONV_KERNEL: _HIDDEN,
        **_MOE,
        Role.WIDE_TO_NARROW: replace(_HIDDEN, eps=_BLOCK_EPS),
        Role.NARROW_TO_WIDE: _HIDDEN_VECTOR,
        Role.HIDDEN_BIAS: _HIDDEN_VECTOR,
        Role.NORM_GAIN: _HIDDEN_VECTOR,
        Role.QK_NORM: _SHARED,
        Role.SHARED: _SHARED,
        Role.FINAL_NORM: RoleExponents(),
        Role.UNEMBEDDING: RoleExponents(init_var=_width(-2), lr=_width(-1), weight_decay=_width(+1)),
        Role.OUTPUT_BIAS: RoleExponents(),
        Role.FIXED: RoleExponents(),
    },
    residual=_depth(0, alpha=-1),
    every=RoleExponents(
        lr=Power(batch=+0.5, tokens=-0.5),
        eps=Power(batch=-0.5, tokens=+0.5),
        weight_decay=Power(batch=+0.5, tokens=-0.5),
    ),
    one_minus_beta=Power(batch=+1, tokens=-1),
    derived=_DERIVED - {Role.ROUTER, Role.EXPERT_UP, Role.EXPERT_DOWN},
)


def _with_duration(name: str, exponent: float, source: str) -> Rule:
    """Complete(d)P with lr ∝ m_B^1/2 m_D^exponent; lr·λ stays in proportion to m_B/m_D, as it was."""
    every = replace(
        COMPLETE_D_P.every,
        lr=Power(batch=0.5, tokens=exponent),
        weight_decay=Power(batch=0.5, tokens=-1 - exponent),
    )
    return replace(COMPLETE_D_P, name=name, every=every, source=f"2512.22382, Table 1; duration: {source}")


def _changed(rule: Rule, rows: Mapping[Role, RoleExponents]) -> dict[Role, RoleExponents]:
    return {**rule.rows, **rows}


# Where sources disagree, the default is Complete(d)P's own choice and the others are rules of their own.
_SOFT = _with_duration("complete_d_p_soft", -0.3, "exponent -0.3, as in Marin's recipes; λ derived")
_FLAT = _with_duration("complete_d_p_flat", 0.0, "exponent 0, for batches near the critical one; λ derived")
_SQRT_DECAY = replace(
    COMPLETE_D_P,
    name="complete_d_p_sqrt_decay",
    source="2512.22382, Table 1; hidden weight decay with √width: 2510.15262",
    rows=_changed(
        COMPLETE_D_P,
        {
            role: replace(row, weight_decay=_width(0.5))
            for role, row in COMPLETE_D_P.rows.items()
            if row.weight_decay == _width(1) and role is not Role.UNEMBEDDING
        },
    ),
)
_LARGE_VOCABULARY = replace(
    COMPLETE_D_P,
    name="complete_d_p_large_vocabulary",
    source="2512.22382, Table 1; embedding lr over hidden lr with √width: 2506.15025",
    rows=_changed(COMPLETE_D_P, {Role.INPUT_EMBEDDING: replace(_INPUT, lr=_width(-0.5))}),
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
# in proportion to (tokens per parameter)^-0.527 (as recalled; the paper was not at hand).
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
# 2505.01618, Table 1: the unembedding's multiplier stands in the forward pass; one ε for all of a block, the
# QK-norms that it does not treat included, and the base's own outside.

_OUTSIDE = RoleExponents()
COMPLETEP = replace(
    COMPLETE_D_P,
    name="completep",
    source="2505.01618, Table 1; mixtures of experts: 2601.20205",
    rows=_changed(
        COMPLETE_D_P,
        {
            Role.INPUT_EMBEDDING: _OUTSIDE,
            Role.POSITION_EMBEDDING: _OUTSIDE,
            Role.INPUT_BIAS: _OUTSIDE,
            Role.TIED_EMBEDDING: RoleExponents(forward=_width(-1)),
            Role.UNEMBEDDING: RoleExponents(forward=_width(-1)),
            **{
                role: replace(COMPLETE_D_P.rows[role], eps=_width(-1) * _BLOCK_EPS)
                for role in (Role.QK_NORM, Role.SHARED, Role.ROUTER, Role.WIDE_TO_NARROW)
            },
        },
    ),
    every=RoleExponents(),
    one_minus_beta=ONE,
    alpha_range=(0.0, 1.0),
    derived=COMPLETE_D_P.derived | {Role.QK_NORM},
)

# ------------------------------------------------------------------------------------------------- muP
# 2203.03466, Table 3, in the form of 2512.22382's column muP. No rule for depth, batch and duration.


def _without_depth(row: RoleExponents) -> RoleExponents:
    def flat(power: Power) -> Power:
        return replace(power, depth=0.0, depth_alpha=0.0)

    return RoleExponents(row.init_var, flat(row.lr), flat(row.eps), row.weight_decay, row.forward)


MUP = Rule(
    name="mup",
    source="2203.03466, Table 3; ε and weight decay: 2512.22382, Table 1, column muP",
    rows={role: _without_depth(row) for role, row in COMPLETE_D_P.rows.items()},
    residual=ONE,
    derived=COMPLETE_D_P.derived | {Role.QK_NORM},
)


def _form(name: str, table: str, multipliers: Mapping[Role, Power]) -> Rule:
    """MuP in an equivalent form, which has multipliers in the forward pass."""
    symmetry = SYMMETRIES["adamw"]
    moved = {role: symmetry.move(MUP.rows[role], power) for role, power in multipliers.items()}
    return replace(MUP, name=name, source=f"2203.03466, {table}", rows=_changed(MUP, moved))


_MUP_TABLE_8 = _form(
    "mup_table_8",
    "Table 8",
    {
        Role.INPUT_EMBEDDING: _width(0.5),
        Role.POSITION_EMBEDDING: _width(0.5),
        Role.INPUT_BIAS: _width(0.5),
        Role.UNEMBEDDING: _width(-0.5),
    },
)
_MUP_TABLE_9 = _form("mup_table_9", "Table 9", {Role.UNEMBEDDING: _width(-1)})

# 2203.03466, Table 3, SGD; λ derived: lr·λ stays, as a step shrinks a weight by that.
_SGD_VECTOR = RoleExponents(lr=_width(+1), weight_decay=_width(-1))
_SGD_NARROW = RoleExponents(init_var=_width(-1), lr=_width(-1), weight_decay=_width(+1))
_SGD_HIDDEN = RoleExponents(
    init_var=_width(-1), lr=Power(width=-1, fan_out=+1), weight_decay=Power(width=+1, fan_out=-1)
)
MUP_SGD = replace(
    MUP,
    name="mup_sgd",
    optimizer="sgd",
    source="2203.03466, Table 3, SGD; weight decay derived",
    rows={
        **dict.fromkeys(
            (
                Role.INPUT_EMBEDDING,
                Role.POSITION_EMBEDDING,
                Role.INPUT_BIAS,
                Role.HIDDEN_BIAS,
                Role.NORM_GAIN,
                Role.NARROW_TO_WIDE,
                Role.FINAL_NORM,
            ),
            _SGD_VECTOR,
        ),
        **dict.fromkeys(
            (Role.HIDDEN_WEIGHT, Role.CONV_KERNEL, Role.EXPERT_UP, Role.EXPERT_DOWN), _SGD_HIDDEN
        ),
        Role.TIED_EMBEDDING: replace(_SGD_VECTOR, forward=_width(-1)),
        Role.UNEMBEDDING: replace(_SGD_NARROW, init_var=_width(-2)),
        Role.ROUTER: replace(_SGD_NARROW, init_var=_width(-2)),
        Role.WIDE_TO_NARROW: _SGD_NARROW,
        **dict.fromkeys((Role.QK_NORM, Role.SHARED, Role.OUTPUT_BIAS, Role.FIXED), RoleExponents()),
    },
)
_IN_BLOCK = frozenset(
    role for role, row in COMPLETE_D_P.rows.items() if row.lr.depth_alpha == 1
)  # every role of a tensor in a block
# 2505.01618 gives SGD's learning rate m_L^(2α-1) in blocks; λ derived as above.
_COMPLETEP_SGD = replace(
    MUP_SGD,
    name="completep_sgd",
    source="2203.03466, Table 3, SGD; depth: 2505.01618; weight decay derived",
    rows={
        role: replace(
            row, lr=row.lr * _depth(-1, alpha=+2), weight_decay=row.weight_decay * _depth(+1, alpha=-2)
        )
        if role in _IN_BLOCK
        else row
        for role, row in MUP_SGD.rows.items()
    },
    residual=_depth(0, alpha=-1),
)

# -------------------------------------------------------------------------- standard parametrization
# Initial variance 1/fan_in, everything else as at the base.

SP = Rule(
    name="sp",
    source="common practice: initial variance 1/fan_in, one learning rate",
    rows={
        role: RoleExponents(init_var=_width(-1) if row.init_var != ONE else ONE)
        for role, row in COMPLETE_D_P.rows.items()
    },
    residual=ONE,
)
_SP_EMBEDDING_LR = replace(
    SP,
    name="sp_embedding_lr",
    source="2605.21486: SP with the embedding's learning rate times width, relative to all others",
    rows=_changed(
        SP,
        dict.fromkeys(
            (Role.INPUT_EMBEDDING, Role.POSITION_EMBEDDING, Role.INPUT_BIAS), RoleExponents(lr=_width(+1))
        ),
    ),
)

# ---------------------------------------------------------------------------------- Everett's families
# 2407.05872, Table 1, re-derived: initial std n^-b, multiplier n^-a, gradient n^-g for (embedding, hidden,
# readout). Learning rate n^-c with c = (-a, 1-a, 1-a) for full alignment of weights and activations,
# (-a, 1/2-a, 1/2-a) for none; SGD: minus g; Adafactor: minus b. Derived: ε ∝ g; λ such that lr·λ stays
# (independent weight decay); vectors have no multiplier, and the gradient of an embedding without one.

_FAMILIES = {
    "sp": ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0.5, 0)),
    "ntk": ((0, 0.5, 0.5), (0, 0, 0), (0.5, 1, 0.5)),
    "mup": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0.5, 1, 0.5)),
    "mean_field": ((0, 0.5, 1), (0, 0, 0), (1, 1.5, 1)),
}
_ALIGNMENT = {"full": (0.0, 1.0, 1.0), "none": (0.0, 0.5, 0.5)}


def _everett(family: str, alignment: str, optimizer: str) -> Rule:
    a, b, g = _FAMILIES[family]
    less = {"adamw": (0, 0, 0), "sgd": g, "adafactor": b}[optimizer]
    c = [aligned - a_l - minus for aligned, a_l, minus in zip(_ALIGNMENT[alignment], a, less, strict=True)]
    layers = [
        RoleExponents(
            init_var=_width(-2 * b[i]),
            lr=_width(-c[i]),
            eps=_width(-g[i]),
            weight_decay=_width(c[i]),
            forward=_width(-a[i]),
        )
        for i in range(3)
    ]
    embedding, hidden, readout = layers
    g_vector = g[0] - a[0]
    c_vector = -g_vector if optimizer == "sgd" else 0.0
    vector = RoleExponents(lr=_width(-c_vector), eps=_width(-g_vector), weight_decay=_width(c_vector))
    suffix = alignment if optimizer == "adamw" else optimizer
    return Rule(
        name=f"{family}_{suffix}" if family != "mup" else f"mup_everett_{suffix}",
        source=f"2407.05872, Table 1 (re-derived): {family}, {alignment} alignment",
        optimizer=optimizer,
        rows={
            Role.INPUT_EMBEDDING: embedding,
            Role.POSITION_EMBEDDING: embedding,
            Role.HIDDEN_WEIGHT: hidden,
            Role.CONV_KERNEL: hidden,
            Role.UNEMBEDDING: readout,
            **dict.fromkeys((Role.INPUT_BIAS, Role.HIDDEN_BIAS, Role.NORM_GAIN, Role.FINAL_NORM), vector),
            **dict.fromkeys((Role.QK_NORM, Role.SHARED, Role.OUTPUT_BIAS, Role.FIXED), RoleExponents()),
        },
        residual=ONE,
        derived=frozenset(Role) - {Role.INPUT_EMBEDDING, Role.HIDDEN_WEIGHT, Role.UNEMBEDDING},
    )


_EVERETT = [
    _everett(family, alignment, optimizer)
    for family in _FAMILIES
    for alignment, optimizer in (
        ("full", "adamw"),
        ("none", "adamw"),
        ("full", "sgd"),
        ("full", "adafactor"),
    )
]

# ---------------------------------------------------------------------------- matrix preconditioners
# 2512.05620 (and its code): learning rate and ε by fan-in and fan-out, branch multiplier m_L^-1 (α = 1),
# for preconditioners that are not split into blocks. Where it says nothing, Complete(d)P's AdamW does.
# Depth at α < 1 is derived. lr·λ of matrices is in proportion to 1/width. Shampoo's ε is on squares of
# gradients, so with the batch it goes as the square of Adam's (with the tokens too: derived).

_RATIO = Power(width=-1, fan_out=+1)  # m_out / m_in
_SQUARED_EPS = _RATIO**-1 * _depth(-2) * COMPLETE_D_P.every.eps


def _preconditioned(name: str, optimizer: str, lr: Power, eps: Power, note: str) -> Rule:
    inverse_lr = lr**-1
    row = RoleExponents(init_var=_width(-1), lr=lr, eps=eps, weight_decay=inverse_lr * _width(-1))
    return replace(
        COMPLETE_D_P,
        name=name,
        matrices=optimizer,
        source=f"2512.05620: {note}; other tensors by AdamW as in 2512.22382, Table 1",
        rows=_changed(COMPLETE_D_P, {Role.HIDDEN_WEIGHT: row}),
        alpha_range=(1.0, 1.0),
    )


_PRECONDITIONED = [
    _preconditioned("muon", "muon", _RATIO**0.5, _RATIO**-0.5 * _depth(-1), "Muon"),
    # E, the total inverse power, is 1/2 for Shampoo with powers -1/4, and 1 with powers -1/2.
    _preconditioned("shampoo", "shampoo", _RATIO**0.5, _SQUARED_EPS, "Shampoo, powers -1/4"),
    _preconditioned("shampoo_half", "shampoo", _depth(-1), _SQUARED_EPS, "Shampoo, powers -1/2"),
    _preconditioned("soap", "soap", _RATIO**0.5, _RATIO**-0.5 * _depth(-1), "SOAP, both sides"),
]

# 2312.12226, as recalled and re-derived (its table was not at hand): initial std n^-b with b = (0, 1/2, 1)
# for (embedding, hidden, readout), learning rates and damping so that every layer learns alike. Derived: λ
# such that lr·λ stays. Nothing for vectors, depth, batch and duration. The paper starts the readout at zero.

KFAC_DAMPING: Mapping[Role, tuple[Power, Power]] = {
    Role.INPUT_EMBEDDING: (ONE, _width(-1)),
    Role.HIDDEN_WEIGHT: (_width(+1), _width(-1)),
    Role.UNEMBEDDING: (_width(+1), ONE),
}
"""K-FAC's damping of the inputs' factor A and of the output gradients' factor B. It is the choice that scales
with the mean eigenvalue (trace over size) of each."""


def _second_order(name: str, exponents: tuple[float, float, float], note: str) -> Rule:
    """Learning rates n^exponents; ε is the damping, of K-FAC the product of both factors'."""
    rows = {
        role: RoleExponents(
            init_var=_width(-2 * b),
            lr=_width(c),
            eps=KFAC_DAMPING[role][0] * KFAC_DAMPING[role][1],
            weight_decay=_width(-c),
        )
        for role, b, c in zip(KFAC_DAMPING, (0, 0.5, 1), exponents, strict=True)
    }
    rows[Role.POSITION_EMBEDDING] = rows[Role.INPUT_EMBEDDING]
    rows[Role.CONV_KERNEL] = rows[Role.HIDDEN_WEIGHT]
    return Rule(
        name=name,
        source=f"2312.12226 (re-derived): {note}",
        rows=rows,
        residual=ONE,
        optimizer=name.partition("_")[0],
        derived=frozenset(Role),
    )


_SECOND_ORDER = [
    _second_order("kfac", (0, 0, 0), "K-FAC"),
    _second_order("shampoo_width", (0.5, 0, -0.5), "Shampoo, powers -1/4"),
]

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        COMPLETE_D_P,
        _SOFT,
        _FLAT,
        _SQRT_DECAY,
        _LARGE_VOCABULARY,
        _HALF_LIFE,
        _TOKEN_HALF_LIFE,
        _INDEPENDENT,
        _POWER_LINES,
        replace(COMPLETE_D_P, name="complete_d_p_adam", optimizer="adam"),
        COMPLETEP,
        _COMPLETEP_SGD,
        MUP,
        _MUP_TABLE_8,
        _MUP_TABLE_9,
        replace(MUP, name="mup_adam", optimizer="adam"),
        MUP_SGD,
        SP,
        _SP_EMBEDDING_LR,
        *_EVERETT,
        *_PRECONDITIONED,
        *_SECOND_ORDER,
    )
}


def find_rule(rule: str | Rule) -> Rule:
    """A rule by name; a `Rule` is returned as it is, so that a user's own table works everywhere.

    Raises:
        TransferError: for an unknown name.
    """
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise TransferError(f"Rule {rule!r} is unknown; use one of {', '.join(RULES)} or give a Rule.")
    return RULES[rule]
