"""The standard parametrization, and the four parametrizations of arXiv:2407.05872.

Symbols:
    n: The width.
    a: A weight's multiplier in the forward pass is n^-a.
    b: The standard deviation of its initial values is n^-b.
    c: Its learning rate is n^-c.
    g: The size of its gradient is n^-g.

Others as in `rules`.
"""

from __future__ import annotations

from dataclasses import replace

from transfer_bo.parametrization.rules import ONE, Power, Role, RoleExponents, Rule
from transfer_bo.parametrization.tables.complete_d_p import COMPLETE_D_P, with_rows
from transfer_bo.parametrization.tables.matrices import MATRIX_ROWS

__all__ = ["SP", "STANDARD_RULES"]

# ------------------------------------------------------------------------------ standard parametrization
# Initial variance 1/fan_in, everything else as at the base.

SP = Rule(
    name="sp",
    source="common practice: initial variance 1/fan_in, one learning rate",
    rows={
        role: RoleExponents(init_var=Power(width=-1) if exponents.init_var != ONE else ONE)
        for role, exponents in COMPLETE_D_P.rows.items()
    },
    residual=ONE,
    matrix_rows=dict.fromkeys(MATRIX_ROWS, RoleExponents(init_var=Power(width=-1))),
)
_SP_BY_OPTIMIZER = [
    replace(SP, name=f"sp+{optimizer}", optimizer=optimizer, parametrization="sp", matrix_rows={})
    for optimizer in ("sgd", "adafactor")
]
_SP_EMBEDDING_LR = replace(
    SP,
    name="sp_embedding_lr",
    source="2605.21486: SP with the embedding's learning rate times width, relative to all others",
    rows=with_rows(
        SP,
        dict.fromkeys(
            (Role.INPUT_EMBEDDING, Role.POSITION_EMBEDDING, Role.INPUT_BIAS), RoleExponents(lr=Power(width=1))
        ),
    ),
)

# --------------------------------------------------------------------- the parametrizations of 2407.05872
# Table 1, re-derived. For (embedding, hidden, readout), Adam's c = (-a, 1-a, 1-a) with full alignment of
# weights and activations, (-a, 1/2-a, 1/2-a) with none; SGD's is less by g, Adafactor's by b. Derived: ε in
# proportion to the gradient; λ such that lr·λ stays (independent weight decay); vectors have no multiplier,
# and the gradient that an embedding has without one.

_A_B_G = {
    "sp": ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0.5, 0)),
    "ntk": ((0, 0.5, 0.5), (0, 0, 0), (0.5, 1, 0.5)),
    "mup": ((-0.5, 0, 0.5), (0.5, 0.5, 0.5), (0.5, 1, 0.5)),
    "mean_field": ((0, 0.5, 1), (0, 0, 0), (1, 1.5, 1)),
}
"""a, b and g of (embedding, hidden, readout), by parametrization."""
_ALIGNMENT = {"full": (0.0, 1.0, 1.0), "none": (0.0, 0.5, 0.5)}
"""c + a of (embedding, hidden, readout), by alignment."""


def _everett(family: str, alignment: str, optimizer: str) -> Rule:
    a, b, g = _A_B_G[family]
    reduction = {"adamw": (0, 0, 0), "sgd": g, "adafactor": b}[optimizer]
    c = [c_a - a_l - less for c_a, a_l, less in zip(_ALIGNMENT[alignment], a, reduction, strict=True)]
    embedding, hidden, readout = (
        RoleExponents(
            init_var=Power(width=-2 * b[i]),
            lr=Power(width=-c[i]),
            eps=Power(width=-g[i]),
            weight_decay=Power(width=c[i]),
            forward=Power(width=-a[i]),
        )
        for i in range(3)
    )

    g_vector = g[0] - a[0]
    c_vector = -g_vector if optimizer == "sgd" else 0.0
    vector = RoleExponents(
        lr=Power(width=-c_vector), eps=Power(width=-g_vector), weight_decay=Power(width=c_vector)
    )
    parametrization = f"{'mup_everett' if family == 'mup' else family}_{alignment}"
    name = parametrization if optimizer == "adamw" else f"{parametrization}+{optimizer}"
    if alignment == "full" and optimizer != "adamw":
        name = f"{parametrization.removesuffix('_full')}_{optimizer}"
    return Rule(
        name=name,
        parametrization="" if optimizer == "adamw" else parametrization,
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
    for family in _A_B_G
    for alignment in _ALIGNMENT
    for optimizer in ("adamw", "sgd", "adafactor")
]

STANDARD_RULES = (SP, *_SP_BY_OPTIMIZER, _SP_EMBEDDING_LR, *_EVERETT)
