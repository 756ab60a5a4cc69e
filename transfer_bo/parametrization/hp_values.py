"""From HPs by name to the value that each tensor gets, before any rule.

    value = kind · Π kind.group (over the tensor's groups) · profile(x)

Symbols:
    x: Relative depth of the tensor's block, (i + 1/2) / L for block i = 0..L-1.
    L: Number of blocks.
    profile: Passes through the knots `kind.@x`; its logarithm is linear in x between them and constant beyond
        the first and the last (arXiv:2512.22382: type multiplier times depth multiplier, interpolated in
        relative depth). Tensors outside blocks have no x and no profile.

Names and defaults are those of `transfer_bo.space`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from transfer_bo.errors import ParametrizationError, SearchSpaceError
from transfer_bo.parametrization.rules import scale_one_minus_beta
from transfer_bo.space import DEPTH, KINDS, split_name

__all__ = ["HPs", "beta_of", "check_hps", "multiplier_of", "value_of"]

HPs = Mapping[str, float]
"""Hyperparameters by name."""

_MAY_BE_ZERO = frozenset({"lr", "weight_decay", "eps", "init_std"})
"""Kinds whose value may be 0."""


def check_hps(
    hps: HPs | None,
    labels: Sequence[str],
    branches: Sequence[str],
    places: Sequence[str],
    no_branches: str,
    has_blocks: bool,
) -> HPs:
    """The HPs, {} for None.

    Args:
        hps: By name.
        labels: Groups of the model's tensors.
        branches: Residual branches of the model, the groups of the kind `residual`.
        places: Places of the forward pass with a multiplier, the groups of the kind `forward`.
        no_branches: Why some branches were not found, for the message.
        has_blocks: Whether any tensor lies in a block, so that a relative depth is defined.

    Raises:
        SearchSpaceError: for an unknown kind or group, a knot outside [0, 1], or a value that is not positive
            and finite. lr, weight_decay, eps and init_std may also be 0, their knots may not.
    """
    for name, value in (hps or {}).items():
        kind, group = split_name(name)
        known = {"residual": branches, "forward": places}.get(kind, labels)
        is_knot = group is not None and group.startswith(DEPTH)

        if kind == "forward" and group not in places:
            raise SearchSpaceError(
                f"HP {name!r}: the model has no place {group or ''!r} with a multiplier; "
                f"use one of {', '.join(f'forward.{place}' for place in places) or 'none'}."
            )
        if is_knot:
            _check_knot(name, group or "", value, bool(branches) if kind == "residual" else has_blocks)
        elif group is not None and group not in known:
            why = f" ({no_branches})" if kind == "residual" and no_branches else ""
            raise SearchSpaceError(
                f"HP {name!r}: the model has no group {group!r}{why}; "
                f"use one of {', '.join(known) or 'none'}."
            )

        is_number = isinstance(value, Real) or hasattr(value, "item")
        if (
            not is_number
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and kind not in _MAY_BE_ZERO)
        ):
            raise SearchSpaceError(f"HP {name!r} is {value!r}; set it to a positive finite number.")
    return hps or {}


def _check_knot(name: str, group: str, value: float, has_depth: bool) -> None:
    try:
        x = float(group.removeprefix(DEPTH))
    except ValueError:
        x = math.nan
    if not 0 <= x <= 1:
        raise SearchSpaceError(
            f"HP {name!r}: {group.removeprefix(DEPTH)!r} is no relative depth; "
            f"give a number from 0 to 1, as in {name.partition('.')[0]}.{DEPTH}0.5."
        )
    if not has_depth:
        raise SearchSpaceError(f"HP {name!r}: the model has no blocks that have a depth; leave it out.")
    if value == 0:
        raise SearchSpaceError(
            f"HP {name!r} is 0, and a profile is interpolated in logarithms; give more than 0."
        )


def multiplier_of(kind: str, labels: Iterable[str], hps: HPs, position: float | None) -> float:
    """The product of the multipliers of a tensor's groups and of the profile at its relative depth."""
    groups = math.prod(hps.get(f"{kind}.{label}", 1.0) for label in labels)
    return groups if position is None else groups * _profile(kind, hps, position)


def _profile(kind: str, hps: HPs, x: float) -> float:
    """The depth profile at x; exact at a knot, outside the outer knots, and between equal knots."""
    prefix = f"{kind}.{DEPTH}"
    knots = sorted((float(n.removeprefix(prefix)), v) for n, v in hps.items() if n.startswith(prefix))
    if not knots:
        return 1.0
    before = [knot for knot in knots if knot[0] <= x] or knots[:1]
    after = [knot for knot in knots if knot[0] > x] or knots[-1:]
    (x0, low), (x1, high) = before[-1], after[0]
    return low if x <= x0 or x1 <= x0 else float(low * (high / low) ** ((x - x0) / (x1 - x0)))


def value_of(kind: str, labels: Iterable[str], hps: HPs, position: float | None) -> float:
    """The value of a kind for a tensor with these labels, at this relative depth (None outside blocks)."""
    return hps.get(kind, KINDS[kind].default) * multiplier_of(kind, labels, hps, position)


def beta_of(
    kind: str,
    labels: Iterable[str],
    factor: float,
    hps: HPs,
    position: float | None,
    betas: str = "linear",
) -> float:
    """β for a tensor; the multipliers of its groups are part of the HP, not of the rule.

    Args:
        kind: "one_minus_beta1" or "one_minus_beta2".
        labels: Groups of the tensor.
        factor: `ScalingFactors.one_minus_beta`.
        hps: By name.
        position: Relative depth of its block, None outside blocks.
        betas: `Rule.betas`.

    Raises:
        SearchSpaceError: if β would not be inside (0, 1); see `rules.scale_one_minus_beta`.
    """
    multiplier = multiplier_of(kind, labels, hps, position)
    one_minus_beta = hps.get(kind, KINDS[kind].default)
    try:
        if betas == "linear":
            return 1 - scale_one_minus_beta(one_minus_beta, factor * multiplier)
        return 1 - scale_one_minus_beta(scale_one_minus_beta(one_minus_beta, multiplier), factor, betas)
    except ParametrizationError as error:
        raise SearchSpaceError(f"HP {kind!r}: {error}") from None
