"""From a tensor's settings to what torch's optimizers call them.

HP values v (`space.KINDS`), rule factors r, and θ the multiplier folded into the tensor; for AdamW:

    lr = v_lr · r_lr · θ     ε = v_ε · r_ε / θ     λ = v_λ · r_λ / θ     1-β = v_(1-β) · m_B/m_D (guarded)

and for others with the powers of θ in `rules.SYMMETRIES`. The momentum of SGD and Muon is β1. Adafactor in
torch clips lr at 1/√step and floors one of its averages at ε where it means ε²: the rule is exact where
neither acts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from transfer_bo.errors import TransferError
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
ADAFACTOR_FLOOR = 1e-3
"""Adafactor's least size of a tensor, torch's default; it scales as the tensor's initial values do."""


def optimizer_of(rule: Rule, tensor: Tensor) -> str:
    """The optimizer of a tensor. Muon and its like take matrices between hidden layers only."""
    if rule.matrices is not None and tensor.role is Role.HIDDEN_WEIGHT and len(tensor.shape) == 2:
        return rule.matrices
    return rule.optimizer


def options_of(
    rule: Rule, optimizer: str, tensor: Tensor, setting: ScalingFactors, theta: float, hps: HPs
) -> dict[str, Any]:
    """A tensor's options in a parameter group of its optimizer.

    Args:
        rule: The rule.
        optimizer: Name in `OPTIMIZERS`.
        tensor: The tensor.
        setting: The rule's factors for it, multipliers in the forward pass.
        theta: The multiplier folded into it.
        hps: By name.

    Raises:
        TransferError: if torch has no such optimizer, a β comes out useless, or Adam is to decay weights.
    """
    if optimizer not in OPTIMIZERS:
        raise TransferError(
            f"Rule {rule.name!r} is for the optimizer {optimizer!r}, which torch does not have; "
            "use the factors of p.table() with your own, or another rule."
        )
    folded = SYMMETRIES[optimizer].fold(setting, theta)
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
        # torch's Muon multiplies lr by this itself; the rule's factor is all that may change with scale.
        own = _muon_factor(tensor.base_shape) / _muon_factor(tensor.shape)
        return {**options, "lr": options["lr"] * own, "momentum": beta("one_minus_beta1"), "eps": eps}
    size = folded.init_std * value_of("init_std", tensor.labels, hps, tensor.position)
    return {**options, "eps": (eps, ADAFACTOR_FLOOR * size)}


def _weight_decay(rule: Rule, optimizer: str, tensor: Tensor, hps: HPs, lr: float) -> float:
    if optimizer == "adam":
        if any(name.partition(".")[0] == "weight_decay" and value != 0 for name, value in hps.items()):
            raise TransferError(
                f"Rule {rule.name!r} is for Adam, whose weight decay is normalised with the gradient and has "
                "no rule; set weight_decay to 0 or use AdamW."
            )
        return 0.0
    value = value_of("weight_decay", tensor.labels, hps, tensor.position)
    return value if not rule.independent_weight_decay else value / lr if lr else 0.0


def _muon_factor(shape: tuple[int, ...]) -> float:
    """What torch.optim.Muon multiplies lr by, as its default: sqrt(max(1, rows / columns))."""
    return math.sqrt(max(1.0, shape[0] / shape[1]))
