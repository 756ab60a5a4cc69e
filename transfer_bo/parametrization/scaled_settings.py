"""Every tensor's settings at one scale, by name: what a rule and HPs make of them, without a model.

Symbols as in `apply`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.anatomy import Tensor, dissect
from transfer_bo.parametrization.base_model import BaseModel, Draw
from transfer_bo.parametrization.builds import BuildModel
from transfer_bo.parametrization.forward_multipliers import (
    ForwardMultipliers,
    find_residual_branches,
    forward_values,
)
from transfer_bo.parametrization.hp_values import HPs, check_hps, multiplier_of, value_of
from transfer_bo.parametrization.optimizers import NORM_KEEPING, optimizer_of, options_of
from transfer_bo.parametrization.rules import Ratios, Role, RoleExponents, Rule, ScalingFactors
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Options", "ScaledSettings", "TensorSettings"]


@dataclass(frozen=True)
class Options:
    """What `parametrize` was called with, but for the target."""

    build_model: BuildModel
    base: Scale
    rule: Rule
    alpha: float
    roles: Mapping[str, str]
    inputs: tuple[torch.Tensor, ...] | None
    fold: bool


@dataclass(frozen=True)
class TensorSettings:
    """What one tensor is set to."""

    optimizer: str
    """Name in `optimizers.OPTIMIZERS`."""
    options: Mapping[str, Any]
    """The optimizer's options, as in a parameter group; for AdamW lr, weight_decay, betas, eps."""
    init: float
    """Factor on the root mean square that the base model draws the tensor with; of a constant tensor, factor
    on the constant."""
    forward: float
    """Multiplier in the forward pass that is not folded into the tensor; 1 if there is none."""


class ScaledSettings:
    """The roles and groups of a model's tensors, and their settings at one scale, the target.

    Args:
        options: What `parametrize` was called with.
        target: The scale.
        base: The base model.
    """

    def __init__(self, options: Options, target: Scale, base: BaseModel) -> None:
        target.log2_ratio(options.base)  # checks that the two have the same axes
        self._options, self._base_model = options, base
        self.build_model, self.base, self.target = options.build_model, options.base, target
        self.rule, self.alpha = options.rule, options.alpha

        anatomy = dissect(base, target, options.roles)
        self._warn_of_transfer(base.attention if target.width != options.base.width else "")
        self._warn_of_sparsity()
        self._warn_of_adapters()

        self.tensors: dict[str, Tensor] = anatomy.tensors
        """Every trainable tensor by name."""
        self.module_types: tuple[str, ...] = _unique(t.module_type for t in self.tensors.values())
        """Names of the kinds of layers, in the model's order."""
        self.branch_groups: tuple[str, ...] = _unique(_branch_group(t.labels) for t in self.tensors.values())
        """Coarser groups of tensors: residual branches without their norms, all norms, and layers outside."""
        self.groups: dict[str, tuple[str, ...]] = {name: t.labels for name, t in self.tensors.items()}
        """The labels of each tensor; an HP `kind.label` multiplies the tensors that carry the label."""
        self._labels = _unique(label for labels in self.groups.values() for label in labels)

        self.run_ratios: Ratios = Ratios(
            batch=target.get("batch", 1) / self.base.get("batch", 1),
            tokens=target.get("tokens", 1) / self.base.get("tokens", 1),
            parameters=sum(math.prod(t.shape) for t in self.tensors.values()) / base.size,
        )
        """Ratios target/base of the run: batch, tokens and the size of the whole model."""
        self._factors: dict[str, ScalingFactors] = {
            name: self.rule.factors(
                tensor.role,
                replace(
                    self.run_ratios,
                    width=tensor.width,
                    depth=tensor.depth,
                    fan_out=tensor.fan_out,
                    rank=tensor.rank,
                ),
                self.alpha,
            )
            for name, tensor in self.tensors.items()
        }
        branches = find_residual_branches(anatomy, base)
        self.residual_branches: tuple[str, ...] = _unique(b.name for b in branches.by_path.values())
        """Names of the residual branches, as HPs `residual.<name>` call them."""
        self.forward_places: tuple[str, ...] = tuple(forward_values(base.meta(target)))
        """Names of the places of the forward pass with a multiplier, as HPs `forward.<name>` call them."""
        self._no_branches = branches.missing
        self._multipliers = ForwardMultipliers(
            anatomy, branches, self.rule, self.alpha, self._factors, base, options.fold
        )
        if base.call.trace is None:
            warnings.warn(
                f"How tensors are used is not known ({base.call.reason}), so roles are inferred from the "
                "kinds of layers that hold them; give inputs=(tensor, ...) that the model accepts.",
                stacklevel=4,
            )

    def _warn_of_transfer(self, attention: str) -> None:
        """Warn of what may keep the rule from transferring."""
        if self.target.width < self.base.width:
            warnings.warn(
                f"The base is wider ({self.base.width:g}) than the target ({self.target.width:g}); "
                "rules are meant to go from small to large.",
                stacklevel=5,
            )
        if attention and self.rule.rows.get(Role.HIDDEN_WEIGHT, RoleExponents()).lr.width < 0:
            warnings.warn(
                f"Rule {self.rule.name!r} may not transfer over widths: {attention}; "
                "let their number grow instead, or give scale = constant / size to the attention.",
                stacklevel=5,
            )

    def _warn_of_sparsity(self) -> None:
        """Warn if the share of active experts changes, as rules hold where it does not (2601.20205)."""
        if not {"experts", "top_k"} <= set(self.base):
            return
        shares = [scale.top_k / scale.experts for scale in (self.base, self.target)]
        if not math.isclose(*shares):
            warnings.warn(
                f"The share of experts that a token uses is {shares[0]:.3g} at the base and {shares[1]:.3g} "
                "at the target, while rules hold at a fixed one; let top_k grow with experts.",
                stacklevel=5,
            )

    def _warn_of_adapters(self) -> None:
        """Warn if the low-rank updates of peft's layers are not scaled by rank^-1/2, as rules suppose."""
        found = [
            {factor for m in base.modules() for factor in _scaling(m)}
            for base in (self._base_model.meta(self.base), self._base_model.meta(self.target))
        ]
        if self.base.get("rank") == self.target.get("rank") or not all(found):
            return
        expected = (self.base.rank / self.target.rank) ** 0.5
        if not math.isclose(max(found[1]) / max(found[0]), expected):
            warnings.warn(
                f"Updates of adapters are multiplied by {max(found[0]):.3g} at the base and "
                f"{max(found[1]):.3g} at the target, while rules suppose one in proportion to rank^-1/2; "
                "give peft's LoraConfig use_rslora=True and the same lora_alpha at every rank.",
                stacklevel=5,
            )

    @property
    def folded(self) -> dict[str, float]:
        """The rule's branch multiplier that is folded into a tensor, for tensors that have one."""
        return self._multipliers.folded

    def check_hps(self, hps: HPs | None) -> HPs:
        """The HPs, {} for None.

        Raises:
            SearchSpaceError: for an HP that the model has no group for, or an unusable value.
        """
        return check_hps(
            hps,
            self._labels,
            self.residual_branches,
            self.forward_places,
            self._no_branches,
            has_blocks=self._multipliers.has_blocks,
        )

    def draws(self, seed: int) -> dict[str, Draw]:
        """Initial values of the base under a seed, by the base's names of tensors."""
        return self._base_model.draws(seed)

    def hooked_multipliers(self, hps: HPs | None = None) -> tuple[dict[str, float], dict[str, float]]:
        """Multipliers that hooks apply, by path: to a module's output, and to a layer's input.

        Raises:
            SearchSpaceError: for an HP that the model has no group for.
        """
        return self._multipliers.of_outputs(self.check_hps(hps)), self._multipliers.of_inputs()

    def forward_multipliers(self, hps: HPs | None = None) -> dict[str, float]:
        """Multipliers at places that the model names: what it is built with times the HP `forward.<name>`.

        Raises:
            SearchSpaceError: for an HP that the model has no group for.
        """
        checked, built = self.check_hps(hps), forward_values(self._base_model.meta(self.target))
        return {name: value * checked.get(f"forward.{name}", 1.0) for name, value in built.items()}

    def norm_factors(self, hps: HPs | None = None) -> dict[str, float]:
        """What the gradient of each tensor is multiplied by in the norm that gradients are clipped to.

        Raises:
            SearchSpaceError: for an HP that the model has no group for.
        """
        return self._multipliers.norm_factors(self.check_hps(hps))

    def settings(self, hps: HPs | None = None) -> dict[str, TensorSettings]:
        """What each tensor is set to, by name; tensors of the role "untrained" have no settings.

        Raises:
            ParametrizationError: if the rule is for an optimizer that cannot be made here, or one that keeps
                norms is to train a tensor of zeros.
            SearchSpaceError: for an HP that the model has no group for, or a β outside (0, 1).
        """
        hps = self.check_hps(hps)
        draws = self._base_model.draws(0)
        found = {}
        for name, tensor in self.tensors.items():
            if tensor.role is Role.UNTRAINED:
                continue
            optimizer, theta = optimizer_of(self.rule, tensor), self._multipliers.theta(name, hps)
            if optimizer in NORM_KEEPING and draws[tensor.base_name].rms == 0:
                raise ParametrizationError(
                    f"Tensor {name!r} starts at zero, and the optimizer {optimizer!r} would keep it there, "
                    "as it keeps norms; draw other initial values, or use another optimizer."
                )
            options = options_of(self.rule, optimizer, tensor, self._factors[name], theta, hps)
            found[name] = TensorSettings(
                optimizer,
                options,
                init=self.init_factor(name, hps, draws[tensor.base_name].is_constant),
                forward=self._multipliers.hooked(name, hps),
            )
        return found

    def init_factor(self, name: str, hps: HPs, is_constant: bool) -> float:
        """Factor on the initial values of the base.

        Args:
            name: Of the tensor.
            hps: By name, checked.
            is_constant: Whether the tensor is constant; a gain of one or a bias of zero keeps its effect in
                the forward pass, whatever `init_std` is.
        """
        tensor = self.tensors[name]
        if tensor.role is Role.UNTRAINED:
            return 1.0
        if is_constant:
            return self._multipliers.of_constant(name, hps)
        factor = self._multipliers.theta(name, hps) * self._factors[name].init_std
        return factor * value_of("init_std", tensor.labels, hps, tensor.position)

    def table(self, hps: HPs | None = None) -> pd.DataFrame:
        """A row per tensor: the factors on its settings, relative to the base.

        Columns: name, role, module_type, shape; position: relative depth of its block; init_std, lr, eps,
            weight_decay, one_minus_beta, forward: factors in the form of the literature, where multipliers
            stand in the forward pass; applied: how `forward` is put into effect, "folded" (into the tensor:
            init_std and lr times it, eps and weight_decay divided by it), "hook" (a multiplier registered on
            the branch) or "" (there is none).

        Args:
            hps: If given, factors include the HPs' multipliers of groups and their depth profiles.

        Raises:
            SearchSpaceError: for an HP that the model has no group for.
        """
        import pandas as pd  # slow to import, needed here only

        hps = self.check_hps(hps)

        def times(kind: str, factor: float, tensor: Tensor) -> float:
            return factor * multiplier_of(kind, tensor.labels, hps, tensor.position)

        rows = []
        for name, tensor in self.tensors.items():
            factors = self._factors[name]
            branch = self._multipliers.branch_of(name)
            forward = factors.forward * (self._multipliers.of_branch(branch, hps) if branch else 1.0)
            is_hooked = self._multipliers.is_hooked(name)
            applied = "hook" if is_hooked else "folded" if branch or forward != 1 else ""
            rows.append(
                {
                    "name": name,
                    "role": str(tensor.role),
                    "module_type": tensor.module_type,
                    "shape": tensor.shape,
                    "position": tensor.position,
                    "init_std": times("init_std", factors.init_std, tensor),
                    "lr": times("lr", factors.lr, tensor),
                    "eps": times("eps", factors.eps, tensor),
                    "weight_decay": times("weight_decay", factors.weight_decay, tensor),
                    "one_minus_beta": factors.one_minus_beta,
                    "forward": forward,
                    "applied": applied,
                }
            )
        return pd.DataFrame(rows)


def _scaling(module: nn.Module) -> Iterable[float]:
    """The factors by which a layer of peft multiplies the updates of its adapters."""
    scaling = getattr(module, "scaling", None)
    return scaling.values() if isinstance(scaling, dict) else ()


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _branch_group(labels: Sequence[str]) -> str:
    """The group of a tensor among the coarser ones: its residual branch, "norm", or its module type."""
    return next((label for label in labels[1:] if label != "hidden"), labels[0])
