"""The rules of the literature, as tables: a new rule is a new table, not new code.

- `complete_d_p`: Complete(d)P, its variants in batch and duration, CompleteP.
- `mup`: muP for AdamW and SGD, in its equivalent forms.
- `standard`: the standard parametrization, and the families of arXiv:2407.05872.
- `matrices`: rows of hidden matrices for Muon, SOAP, Shampoo, AdamH and MuonH, which go with any of these.
- `preconditioners`: rules of papers on such optimizers, and of K-FAC.

Exponents that a source does not print follow from its own reasoning; their roles are in `Rule.derived`:

- position embeddings scale as the input embedding, convolution kernels as hidden weights;
- the bias and the norm of the input layer as the input embedding, the bias of the output layer as output
  biases;
- a tied embedding is the input embedding, with the unembedding's forward multiplier m_N^-1;
- what has a fixed size inside a block and reads the width (a router, keys shared by all heads), or is shared
  by heads, gets a gradient that sums over the width, so its ε has no m_N^-1 (the argument for QK-norms);
- what has a fixed size and writes the width (half of a low-rank map) scales as a hidden bias;
- adapters depend on their rank as explained in `complete_d_p`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.rules import Rule
from transfer_bo.parametrization.tables.complete_d_p import COMPLETE_D_P, COMPLETE_D_P_RULES
from transfer_bo.parametrization.tables.mup import MUP_RULES
from transfer_bo.parametrization.tables.preconditioners import KFAC_DAMPING, PRECONDITIONER_RULES
from transfer_bo.parametrization.tables.standard import STANDARD_RULES

__all__ = ["COMPLETE_D_P", "KFAC_DAMPING", "PARAMETRIZATIONS", "RULES", "find_rule", "optimizers_of"]

RULES: Mapping[str, Rule] = {
    rule.name: rule for rule in (*COMPLETE_D_P_RULES, *MUP_RULES, *STANDARD_RULES, *PRECONDITIONER_RULES)
}
"""Every rule by name."""


_BY_OPTIMIZER = {(rule.parametrization or rule.name, rule.trained_by): rule for rule in RULES.values()}
"""Every rule by parametrization and optimizer."""


def find_rule(rule: str | Rule, optimizer: str | None = None) -> Rule:
    """The table of a parametrization for an optimizer.

    Args:
        rule: A name in `RULES`, such as "complete_d_p", or such a name, "+" and an optimizer, or a `Rule`, so
            that a user's own table works everywhere.
        optimizer: Name of the optimizer; that of the rule if not given.

    Raises:
        ParametrizationError: for an unknown name, or an optimizer that the parametrization has no table for.
    """
    if isinstance(rule, str):
        name, plus, named = rule.partition("+")
        if name not in RULES:
            raise ParametrizationError(
                f"Rule {rule!r} is unknown; use one of {', '.join(RULES)} or give a Rule."
            )
        rule = _trained_by(RULES[name], named) if plus else RULES[name]
    return rule if optimizer is None else _trained_by(rule, optimizer)


def _trained_by(rule: Rule, optimizer: str) -> Rule:
    if optimizer == rule.trained_by:
        return rule
    root = RULES.get(rule.parametrization, rule)
    if (root.name, optimizer) in _BY_OPTIMIZER:
        return _BY_OPTIMIZER[root.name, optimizer]
    if optimizer in root.matrix_rows:
        return root.with_matrices(optimizer)
    if optimizer == "adam" and root.trained_by == "adamw":  # without weight decay both are the same
        return replace(root, name=f"{root.name}+adam", optimizer="adam", parametrization=root.name)

    others = [name for name in PARAMETRIZATIONS if optimizer in optimizers_of(name)]
    raise ParametrizationError(
        f"Rule {root.name!r} has no table for the optimizer {optimizer!r}; it has one for "
        f"{', '.join(optimizers_of(root))}"
        + (f", and the rules {', '.join(others)} have one for {optimizer!r}." if others else ".")
    )


def optimizers_of(rule: str | Rule) -> tuple[str, ...]:
    """The optimizers that a parametrization has a table for.

    Args:
        rule: A name in `PARAMETRIZATIONS`, or a `Rule`.
    """
    root = RULES[rule] if isinstance(rule, str) else rule
    tables = [optimizer for name, optimizer in _BY_OPTIMIZER if name == root.name]
    adam = ["adam"] if root.trained_by == "adamw" else []
    return tuple(dict.fromkeys([root.trained_by, *adam, *tables, *root.matrix_rows]))


PARAMETRIZATIONS: tuple[str, ...] = tuple(name for name, rule in RULES.items() if not rule.parametrization)
"""Names that a study file gives as its rule, beside an optimizer."""
