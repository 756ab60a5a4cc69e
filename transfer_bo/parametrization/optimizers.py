"""From a tensor's settings to the options of optimizers: torch's, ours, and those of a package.

For AdamW

    lr = v_lr · r_lr · θ     ε = v_ε · r_ε / θ     λ = v_λ · r_λ / θ     1-β = v_(1-β) · r_(1-β) (guarded)

and for others with the powers of θ in `rules.SYMMETRIES`. The momentum of SGD, Muon and MuonH is β1. torch's
Adafactor limits lr to 1/√step and bounds one of its averages below by ε instead of ε²: the rule is exact
where neither limit is active. AdamH and MuonH have no weight decay. Shampoo's preconditioners of k blocks
make a step √k larger than one would, which is undone relative to the base (2512.05620).

Symbols:
    v: Value of an HP (`space.KINDS`), times the multipliers of the tensor's groups.
    r: Factor of the rule (`rules.ScalingFactors`).
    θ: Multiplier folded into the tensor.

β, ε and λ as in `rules`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.anatomy import Tensor
from transfer_bo.parametrization.hp_values import HPs, beta_of, value_of
from transfer_bo.parametrization.hyperball import AdamH, MuonH
from transfer_bo.parametrization.rules import SYMMETRIES, Role, Rule, ScalingFactors
from transfer_bo.parametrization.shampoo import Shampoo, count_blocks

__all__ = ["OPTIMIZERS", "check_optimizer", "make_optimizer", "optimizer_of", "options_of"]


def _soap(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SOAP of the package pytorch-optimizer, with a preconditioner on both sides whatever the size."""
    from pytorch_optimizer import SOAP  # an extra

    made: torch.optim.Optimizer = SOAP(groups, max_precondition_dim=2**31)
    return made


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
    "muon": torch.optim.Muon,
    "soap": _soap,
    "shampoo": Shampoo,
    "adamh": AdamH,
    "muonh": MuonH,
}
"""Optimizers by the name that a rule gives them: what makes one from parameter groups."""

PACKAGES = {"soap": "pytorch_optimizer"}
"""Module that an optimizer needs, of the extra `optimizers`."""

FUSED = ("adamw", "adam")
"""Optimizers that the trainer steps with torch's fused kernels."""

NORM_KEEPING = ("adamh", "muonh")
"""Optimizers that never change the size of a tensor."""

ADAFACTOR_FLOOR = 1e-3
"""Lower bound on the size of a tensor in Adafactor, torch's default; scales as the initial values do."""


def check_optimizer(rule: Rule) -> None:
    """Refuse a rule whose optimizers cannot be made here.

    Raises:
        ParametrizationError: if there is a table only, or a package is missing.
    """
    for name in filter(None, (rule.optimizer, rule.matrices)):
        if name not in OPTIMIZERS:
            raise ParametrizationError(
                f"Rule {rule.name!r} is for the optimizer {name!r}, of which there is a table only; use the "
                f"factors of p.table() with your own, or one of {', '.join(OPTIMIZERS)}."
            )
        package = PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise ParametrizationError(
                f"The optimizer {name!r} needs the package {package.replace('_', '-')}; "
                'pip install "transfer-bo[optimizers]".'
            )


def make_optimizer(name: str, groups: list[dict[str, Any]], *, fused: bool = False) -> torch.optim.Optimizer:
    """An optimizer of parameter groups.

    Args:
        name: In `OPTIMIZERS`.
        groups: Parameter groups.
        fused: Whether to use torch's fused kernels where there are any; they differ by rounding.
    """
    return OPTIMIZERS[name](groups, fused=True) if fused and name in FUSED else OPTIMIZERS[name](groups)


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
        ParametrizationError: if the optimizer is missing here, in `SYMMETRIES` or in this function, or the
            HPs give Adam a weight decay.
        SearchSpaceError: if a β would not be inside (0, 1).
    """
    check_optimizer(rule)
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
    if optimizer == "shampoo":
        blocks = count_blocks(tensor.shape) / count_blocks(tensor.base_shape)
        options["lr"], eps = options["lr"] / math.sqrt(blocks), eps / blocks
    if optimizer in ("adamw", "adam", "soap", "shampoo", "adamh"):
        return {**options, "betas": (beta("one_minus_beta1"), beta("one_minus_beta2")), "eps": eps}
    if optimizer == "sgd":
        return {**options, "momentum": beta("one_minus_beta1")}
    if optimizer == "muonh":
        return {**options, "momentum": beta("one_minus_beta1"), "eps": eps}
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
    if optimizer in NORM_KEEPING:
        return 0.0
    value = value_of("weight_decay", tensor.labels, hps, tensor.position)
    return value if not rule.independent_weight_decay else value / lr if lr else 0.0


def _muon_factor(shape: tuple[int, ...]) -> float:
    """What torch.optim.Muon multiplies lr by, by default: sqrt(max(1, rows / columns))."""
    return math.sqrt(max(1.0, shape[0] / shape[1]))
