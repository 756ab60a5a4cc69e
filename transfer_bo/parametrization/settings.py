"""HPs by name -> the value each tensor gets, before any rule: `kind` times every `kind.group` it belongs to.

Names and defaults are those of `transfer_bo.space`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from transfer_bo.errors import TransferError
from transfer_bo.parametrization.rules import scale_one_minus_beta
from transfer_bo.space import KINDS, split_name

__all__ = ["HPs", "beta_of", "check_hps", "value_of"]

HPs = Mapping[str, float]

_MAY_BE_ZERO = frozenset({"lr", "weight_decay", "eps", "init_std"})


def check_hps(hps: HPs | None, labels: Sequence[str], branches: Sequence[str], no_branches: str) -> HPs:
    """The HPs, {} for None.

    Args:
        hps: By name.
        labels: The groups of the model's tensors.
        branches: The model's residual branches, the groups of `residual`.
        no_branches: Why some branches are missing, for the message.

    Raises:
        TransferError: for an unknown kind or group, or a value that is not positive and finite. Learning
            rate, weight decay, ε and initial spread may also be 0.
    """
    for name, value in (hps or {}).items():
        kind, group = split_name(name)
        known = branches if kind == "residual" else labels
        if group is not None and group not in known:
            why = f" ({no_branches})" if kind == "residual" and no_branches else ""
            raise TransferError(
                f"HP {name!r}: the model has no group {group!r}{why}; "
                f"use one of {', '.join(known) or 'none'}."
            )
        if not math.isfinite(value) or value < 0 or (value == 0 and kind not in _MAY_BE_ZERO):
            raise TransferError(f"HP {name!r} is {value!r}; set it to a positive finite number.")
    return hps or {}


def _multiplier(kind: str, labels: Iterable[str], hps: HPs) -> float:
    return math.prod(hps.get(f"{kind}.{label}", 1.0) for label in labels)


def value_of(kind: str, labels: Iterable[str], hps: HPs) -> float:
    """The value of a kind for a tensor with these labels."""
    return hps.get(kind, KINDS[kind].default) * _multiplier(kind, labels, hps)


def beta_of(kind: str, labels: Iterable[str], factor: float, hps: HPs, betas: str = "linear") -> float:
    """β for a tensor with these labels; `kind` is "one_minus_beta1" or "one_minus_beta2", `factor` a rule's.

    `betas` is `Rule.betas`; multipliers of groups are part of the HP, not of the rule.

    Raises:
        TransferError: if no β inside (0, 1) comes out; see `rules.scale_one_minus_beta`.
    """
    multiplier = _multiplier(kind, labels, hps)
    one_minus_beta = hps.get(kind, KINDS[kind].default)
    try:
        if betas == "fixed":
            return 1 - scale_one_minus_beta(one_minus_beta, multiplier)
        return 1 - scale_one_minus_beta(one_minus_beta, factor * multiplier, betas)
    except TransferError as error:
        raise TransferError(f"HP {kind!r}: {error}") from None
