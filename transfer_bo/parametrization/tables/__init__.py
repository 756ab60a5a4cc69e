"""The rules of the literature, as tables: a new rule is a new table, not new code.

- `complete_d_p`: Complete(d)P, its variants in batch and duration, CompleteP.
- `mup`: muP for AdamW and SGD, in its equivalent forms.
- `standard`: the standard parametrization, and the families of arXiv:2407.05872.
- `preconditioners`: Muon, Shampoo, SOAP, K-FAC.

Exponents that a source does not print follow from its own reasoning; their roles are in `Rule.derived`:

- position embeddings scale as the input embedding, convolution kernels as hidden weights;
- the bias and the norm of the input layer as the input embedding, the bias of the output layer as output
  biases;
- a tied embedding is the input embedding, with the unembedding's forward multiplier m_N^-1;
- what has a fixed size inside a block and reads the width (a router, keys shared by all heads), or is shared
  by heads, gets a gradient that sums over the width, so its ε has no m_N^-1 (the argument for QK-norms);
- what has a fixed size and writes the width (half of a low-rank map) scales as a hidden bias.
"""

from __future__ import annotations

from collections.abc import Mapping

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.rules import Rule
from transfer_bo.parametrization.tables.complete_d_p import COMPLETE_D_P, COMPLETE_D_P_RULES
from transfer_bo.parametrization.tables.mup import MUP_RULES
from transfer_bo.parametrization.tables.preconditioners import KFAC_DAMPING, PRECONDITIONER_RULES
from transfer_bo.parametrization.tables.standard import STANDARD_RULES

__all__ = ["COMPLETE_D_P", "KFAC_DAMPING", "RULES", "find_rule"]

RULES: Mapping[str, Rule] = {
    rule.name: rule for rule in (*COMPLETE_D_P_RULES, *MUP_RULES, *STANDARD_RULES, *PRECONDITIONER_RULES)
}
"""Every rule by name."""


def find_rule(rule: str | Rule) -> Rule:
    """A rule by name; a `Rule` is returned as it is, so that a user's own table works everywhere.

    Raises:
        ParametrizationError: for an unknown name.
    """
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise ParametrizationError(f"Rule {rule!r} is unknown; use one of {', '.join(RULES)} or give a Rule.")
    return RULES[rule]
