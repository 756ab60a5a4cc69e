"""Rules of papers on optimizers that precondition matrices or keep their norm.

Symbols as in `rules`; n is the width, and the initial standard deviation of a weight is n^-b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.parametrization.rules import ONE, Power, Role, RoleExponents, Rule
from transfer_bo.parametrization.tables.complete_d_p import COMPLETE_D_P, with_rows
from transfer_bo.parametrization.tables.standard import SP

__all__ = ["KFAC_DAMPING", "PRECONDITIONER_RULES"]

# --------------------------------------------------------------------- Complete(d)P by optimizer of matrices
_BY_OPTIMIZER = [
    replace(COMPLETE_D_P.with_matrices(name), name=name)
    for name in ("muon", "shampoo", "shampoo_half", "soap")
]

# ------------------------------------------------------------------------------------------------ hyperball
# 2603.28743 (and its code): MuonH with depth as in depth-muP (α = 1/2) and tokens^-0.32; betas stay. Where it
# has no entry for other tensors, that of Complete(d)P is used.
_HYPERP = replace(
    COMPLETE_D_P.with_matrices("muonh"),
    name="hyperp",
    parametrization="",
    source="2603.28743 and its code; other tensors by AdamW as in 2512.22382, Table 1",
    every=RoleExponents(
        lr=Power(batch=0.5, tokens=-0.32),
        eps=COMPLETE_D_P.every.eps,
        weight_decay=Power(batch=0.5, tokens=-0.68),
    ),
    betas="fixed",
    alpha_range=(0.5, 0.5),
)
# Marin's recipe ("completed AdamH"): AdamH's learning rate with √batch and tokens^-0.3 and no factor for
# width or depth; Adam's with √(batch / tokens); β1 stays, β2 keeps its half-life in tokens.
_MARIN = replace(
    SP,
    name="marin_adamh",
    source="Marin's recipe of 2026 (completed_adamh.py); other tensors as in practice",
    matrices="adamh",
    rows=with_rows(SP, {Role.HIDDEN_WEIGHT: RoleExponents(init_var=Power(width=-1), lr=Power(tokens=+0.2))}),
    every=RoleExponents(lr=COMPLETE_D_P.every.lr, eps=COMPLETE_D_P.every.eps),
    one_minus_beta=Power(batch=+1),
    betas="half_life",
    keeps_beta1=True,
    matrix_rows={},
)

# ------------------------------------------------------------------------------------ K-FAC and Shampoo
# 2312.12226, re-derived and not checked against its table: b = (0, 1/2, 1) for (embedding, hidden, readout),
# learning rates and damping such that every layer learns alike. Derived: λ such that lr·λ stays. There is no
# rule for vectors, depth, batch and duration. The paper starts the readout at zero.

KFAC_DAMPING: Mapping[Role, tuple[Power, Power]] = {
    Role.INPUT_EMBEDDING: (ONE, Power(width=-1)),
    Role.HIDDEN_WEIGHT: (Power(width=1), Power(width=-1)),
    Role.UNEMBEDDING: (Power(width=1), ONE),
}
"""K-FAC's damping of the factors A (of the inputs) and B (of the gradients of the outputs).

Of the equivalent choices it is the one where each scales with the mean eigenvalue (trace over size).
"""


def _second_order(name: str, lr_exponents: tuple[float, float, float], note: str) -> Rule:
    """Learning rates n^lr_exponents; ε is the damping, of K-FAC the product of both factors'."""
    rows = {
        role: RoleExponents(
            init_var=Power(width=-2 * b),
            lr=Power(width=c),
            eps=KFAC_DAMPING[role][0] * KFAC_DAMPING[role][1],
            weight_decay=Power(width=-c),
        )
        for role, b, c in zip(KFAC_DAMPING, (0, 0.5, 1), lr_exponents, strict=True)
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

PRECONDITIONER_RULES = (*_BY_OPTIMIZER, _HYPERP, _MARIN, *_SECOND_ORDER)
