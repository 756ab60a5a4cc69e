"""muP (arXiv:2203.03466) for AdamW and SGD, in its equivalent forms.

Symbols as in `rules`. There is no rule for depth, batch and duration, but for `completep_sgd`'s depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.parametrization.rules import ONE, SYMMETRIES, Power, Role, RoleExponents, Rule
from transfer_bo.parametrization.tables.complete_d_p import COMPLETE_D_P, with_rows
from transfer_bo.parametrization.tables.matrices import MATRIX_ROWS, without

__all__ = ["MUP_RULES"]

# ------------------------------------------------------------------------------------------------- AdamW
# 2203.03466, Table 3, in the form of 2512.22382's column muP.


MUP = Rule(
    name="mup",
    source="2203.03466, Table 3; ε and weight decay: 2512.22382, Table 1, column muP",
    rows={role: without(exponents, "depth", "depth_alpha") for role, exponents in COMPLETE_D_P.rows.items()},
    residual=ONE,
    derived=COMPLETE_D_P.derived | {Role.QK_NORM},
    matrix_rows={
        name: without(row, "depth", "depth_alpha", "batch", "tokens") for name, row in MATRIX_ROWS.items()
    },
)


def _equivalent_form(name: str, table: str, multipliers: Mapping[Role, Power]) -> Rule:
    """`mup` with some multipliers moved into the forward pass."""
    symmetry = SYMMETRIES["adamw"]
    moved = {role: symmetry.move(MUP.rows[role], power) for role, power in multipliers.items()}
    return replace(MUP, name=name, source=f"2203.03466, {table}", rows=with_rows(MUP, moved))


_MUP_TABLE_8 = _equivalent_form(
    "mup_table_8",
    "Table 8",
    {
        Role.INPUT_EMBEDDING: Power(width=0.5),
        Role.POSITION_EMBEDDING: Power(width=0.5),
        Role.INPUT_BIAS: Power(width=0.5),
        Role.UNEMBEDDING: Power(width=-0.5),
    },
)
_MUP_TABLE_9 = _equivalent_form("mup_table_9", "Table 9", {Role.UNEMBEDDING: Power(width=-1)})

# --------------------------------------------------------------------------------------------------- SGD
# 2203.03466, Table 3, SGD. λ is derived: lr·λ, the share by which a step shrinks a weight, stays.
_SGD_VECTOR = RoleExponents(lr=Power(width=1), weight_decay=Power(width=-1))
_SGD_NARROW = RoleExponents(init_var=Power(width=-1), lr=Power(width=-1), weight_decay=Power(width=1))
_SGD_HIDDEN = RoleExponents(
    init_var=Power(width=-1), lr=Power(width=-1, fan_out=+1), weight_decay=Power(width=+1, fan_out=-1)
)
MUP_SGD = replace(
    MUP,
    name="mup_sgd",
    parametrization="mup",
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
        Role.TIED_EMBEDDING: replace(_SGD_VECTOR, forward=Power(width=-1)),
        Role.UNEMBEDDING: replace(_SGD_NARROW, init_var=Power(width=-2)),
        Role.ROUTER: replace(_SGD_NARROW, init_var=Power(width=-2)),
        Role.WIDE_TO_NARROW: _SGD_NARROW,
        **dict.fromkeys((Role.QK_NORM, Role.SHARED, Role.OUTPUT_BIAS, Role.FIXED), RoleExponents()),
    },
)
_IN_BLOCK = frozenset(role for role, exponents in COMPLETE_D_P.rows.items() if exponents.lr.depth_alpha == 1)
"""Every role of a tensor in a block."""

# 2505.01618 gives SGD's learning rate m_L^(2α-1) in blocks; λ is derived as above.
_COMPLETEP_SGD = replace(
    MUP_SGD,
    name="completep_sgd",
    parametrization="completep",
    source="2203.03466, Table 3, SGD; depth: 2505.01618; weight decay derived",
    rows={
        role: replace(
            exponents,
            lr=exponents.lr * Power(depth=-1, depth_alpha=2),
            weight_decay=exponents.weight_decay * Power(depth=1, depth_alpha=-2),
        )
        if role in _IN_BLOCK
        else exponents
        for role, exponents in MUP_SGD.rows.items()
    },
    residual=Power(depth_alpha=-1),
)

# ----------------------------------------------------------------------------------------------- u-muP
# 2407.17465, Table 2, Adam: for models that scale themselves, with initial values of standard deviation 1 and
# constants in the forward pass that depend on width and depth, as `training.unit_scaled` or the library
# unit-scaling. The learning rate of the embedding falls with its fan-out, the width. Weight decay is lr·λ. ε
# has no
# factor: gradients have unit scale in the paper, and Adam does not see it while ε is small.
_UNIT_BLOCK = Power(depth=-0.5)
_UNIT_MATRIX = RoleExponents(lr=Power(width=-0.5) * _UNIT_BLOCK)
_UNIT_VECTOR = RoleExponents(lr=_UNIT_BLOCK)
U_MUP = Rule(
    name="u_mup",
    source="2407.17465, Table 2; for models that scale themselves",
    rows={
        **dict.fromkeys((Role.INPUT_EMBEDDING, Role.POSITION_EMBEDDING), RoleExponents(lr=Power(width=-0.5))),
        **dict.fromkeys((Role.HIDDEN_WEIGHT, Role.CONV_KERNEL), _UNIT_MATRIX),
        **dict.fromkeys((Role.HIDDEN_BIAS, Role.NORM_GAIN, Role.QK_NORM, Role.SHARED), _UNIT_VECTOR),
        **dict.fromkeys(
            (Role.INPUT_BIAS, Role.FINAL_NORM, Role.UNEMBEDDING, Role.OUTPUT_BIAS, Role.FIXED),
            RoleExponents(),
        ),
    },
    residual=ONE,
    independent_weight_decay=True,
    derived=frozenset(
        {Role.POSITION_EMBEDDING, Role.CONV_KERNEL, Role.QK_NORM, Role.SHARED, Role.INPUT_BIAS}
    ),
)

MUP_RULES = (
    _COMPLETEP_SGD,
    MUP,
    _MUP_TABLE_8,
    _MUP_TABLE_9,
    replace(MUP, name="mup_adam", optimizer="adam", parametrization="mup"),
    MUP_SGD,
    U_MUP,
)
