"""From a tensor's settings to the options of torch's optimizers.

For AdamW

    lr = v_lr · r_lr · θ     ε = v_ε · r_ε / θ     λ = v_λ · r_λ / θ     1-β = v_(1-β) · r_(1-β) (guarded)

and for others with the powers of θ in `rules.SYMMETRIES`. The momentum of SGD and Muon is β1. torch's
Adafactor limits lr to 1/√step and bounds one of its averages below by ε instead of ε²: the rule is exact
where neither limit is active.

Symbols:
    v: Value of an HP (`space.KINDS`), times the multipliers of the tensor's groups.
    r: Factor of the rule (`rules.ScalingFactors`).
    θ: Multiplier folded into the tensor.

β, ε and λ as in `rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.anatomy import Tensor
from transfer_bo.parametrization.hp_values import HPs, beta_of, value_of
from transfer_bo.parametrization.rules import SYMMETRIES, Role, Rule, ScalingFactors

__all__ = ["OPTIMIZERS", "optimizer_of", "options_of"]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
}
"""torch's optimizers by the name that a rule gives them."""

ADAFACTOR_FLOOR = 1e-3
"""Lower bound on the size of a tensor in Adafactor, torch's default; scales as the initial values do."""


def optimizer_of(rule: Rule, tensor: Tensor) -> str:
    """Name of a tensor's optimizer. `Rule.matrices` takes matrices between hidden layers only."""
    if rule.matrices is not None and tensor.role is Role.HIDDEN_WEIGHT and len(tensor.shape) == 2:
        return rule.matrices
    return rule.optimizer


def options_of(
    rule: Rule, optimizer: str, tensor: Tensor, factors: ScalingFactors, theta: float, hps: HPs
) -> dict[str, Any]:
    """A tensor's options in a parameter group of its optimizer.

    Args:
        rule: The rule.
        optimizer: Name in `OPTIMIZERS`.
        tensor: The tensor.
        factors: The rule's factors for it, multipliers in the forward pass.
        theta: The multiplier folded into it.
        hps: By name.

    Raises:
        ParametrizationError: if torch, `SYMMETRIES` or this function does not have the optimizer, or the
            HPs give Adam a weight decay.
        SearchSpaceError: if a β would not be inside (0, 1).
    """
    if optimizer not in OPTIMIZERS:
        raise ParametrizationError(
            f"Rule {rule.name!r} is for the optimizer {optimizer!r}, which torch does not have; "
            "use the factors of p.table() with your own, or another rule."
        )
    if optimizer not in SYMMETRIES:
        raise ParametrizationError(
            f"The optimizer {optimizer!r} of rule {rule.name!r} is missing in rules.SYMMETRIES; "
            "add its powers of θ."
        )
    folded = SYMMETRIES[optimizer].fold(factors, theta)
    lr = value_of("lr", tensor.labels, hps, tensor.position)
    weight_decay = _weight_decay(rule, optimizer, tensor, hps, lr) * folded.weight_decay
    options = {"lr": lr * folded.lr, "weight_decay": weight_decay}

    def beta(kind: str) -> float:
        betas = "fixed" if rule.keeps_beta1 and kind == "one_minus_beta1" else rule.betas
        return beta_of(kind, tensor.labels, folded.one_minus_beta, hps, tensor.position, betas)

    eps = value_of("eps", tensor.labels, hps, tensor.position) * folded.eps
    if optimizer in ("adamw", "adam"):
        return {**options, "betas": (beta("one_minus_beta1"), beta("one_minus_beta2")), "eps": eps}
    if optimizer == "sgd":
        return {**options, "momentum": beta("one_minus_beta1")}
    if optimizer == "muon":
        # torch's Muon multiplies lr by a factor of its own; only the rule's factor may change with scale.
        undone = _muon_factor(tensor.base_shape) / _muon_factor(tensor.shape)
        return {**options, "lr": options["lr"] * undone, "momentum": beta("one_minus_beta1"), "eps": eps}
    if optimizer == "adafactor":
        size = folded.init_std * value_of("init_std", tensor.labels, hps, tensor.position)
        return {**options, "eps": (eps, ADAFACTOR_FLOOR * size)}
    raise ParametrizationError(
        f"The optimizer {optimizer!r} of rule {rule.name!r} has no options in options_of; "
        "add a branch for it."
    )


def _weight_decay(rule: Rule, optimizer: str, tensor: Tensor, hps: HPs, lr: float) -> float:
    if optimizer == "adam":
        if any(name.partition(".")[0] == "weight_decay" and value != 0 for name, value in hps.items()):
            raise ParametrizationError(
                f"Rule {rule.name!r} is for Adam, whose weight decay is normalised with the gradient and has "
                "no rule; set weight_decay to 0 or use AdamW."
            )
        return 0.0
    value = value_of("weight_decay", tensor.labels, hps, tensor.position)
    return value if not rule.independent_weight_decay else value / lr if lr else 0.0


def _muon_factor(shape: tuple[int, ...]) -> float:
    """What torch.optim.Muon multiplies lr by, by default: sqrt(max(1, rows / columns))."""
    return math.sqrt(max(1.0, shape[0] / shape[1]))
