"""Rules for optimizers that precondition matrices: Muon, Shampoo, SOAP, K-FAC.

Symbols as in `rules`; n is the width, and the initial standard deviation of a weight is n^-b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.parametrization.rules import ONE, Power, Role, RoleExponents, Rule
from transfer_bo.parametrization.tables.complete_d_p import COMPLETE_D_P, with_rows

__all__ = ["KFAC_DAMPING", "PRECONDITIONER_RULES"]

# ---------------------------------------------------------------------------------------- Muon, Shampoo, SOAP
# arXiv:2512.05620 (and its code): learning rate and ε by fan-in and fan-out, branch multiplier m_L^-1 (α =
# 1), for preconditioners that are not split into blocks. Where it has no entry, that of Complete(d)P is used.
# lr·λ of matrices is in proportion to 1/width. Shampoo adds ε to squares of gradients, so with the batch it
# scales as the square of Adam's (with the tokens too: derived).

_RATIO = Power(width=-1, fan_out=+1)
"""m_out / m_N."""
_SQUARED_EPS = _RATIO**-1 * Power(depth=-2) * COMPLETE_D_P.every.eps


def _preconditioned(name: str, optimizer: str, lr: Power, eps: Power, note: str) -> Rule:
    weight_decay = lr**-1 * Power(width=-1)
    exponents = RoleExponents(init_var=Power(width=-1), lr=lr, eps=eps, weight_decay=weight_decay)
    return replace(
        COMPLETE_D_P,
        name=name,
        matrices=optimizer,
        source=f"2512.05620: {note}; other tensors by AdamW as in 2512.22382, Table 1",
        rows=with_rows(COMPLETE_D_P, {Role.HIDDEN_WEIGHT: exponents}),
        alpha_range=(1.0, 1.0),
    )


_PRECONDITIONED = [
    _preconditioned("muon", "muon", _RATIO**0.5, _RATIO**-0.5 * Power(depth=-1), "Muon"),
    # E, the total inverse power, is 1/2 for Shampoo with powers -1/4, and 1 with powers -1/2.
    _preconditioned("shampoo", "shampoo", _RATIO**0.5, _SQUARED_EPS, "Shampoo, powers -1/4"),
    _preconditioned("shampoo_half", "shampoo", Power(depth=-1), _SQUARED_EPS, "Shampoo, powers -1/2"),
    _preconditioned("soap", "soap", _RATIO**0.5, _RATIO**-0.5 * Power(depth=-1), "SOAP, both sides"),
]

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

PRECONDITIONER_RULES = (*_PRECONDITIONED, *_SECOND_ORDER)
