"""A rule applied to a real model: initial values, optimizer groups, clipping.

    init = base init · r_init · v_init · θ      options of the optimizer: `optimizers.py`

θ is 1 except in the last layer of a residual branch, where θ = m_L^-α · v_residual (`residual.py`), and where
the rule has a forward multiplier of its own. At the base, with HPs at their defaults, every factor is
exactly 1.

Symbols:
    v: Value of an HP (`space.KINDS`), times the multipliers of the tensor's groups.
    r: Factor of the rule (`rules.ScalingFactors`).
    θ: Multiplier folded into the tensor (`forward_multipliers.py`).

α and m_L as in `rules`.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.anatomy import Tensor, dissect
from transfer_bo.parametrization.base_model import BaseModel
from transfer_bo.parametrization.builds import BuildModel, build_real, parameters_of, unwrap
from transfer_bo.parametrization.forward_multipliers import ForwardMultipliers, find_residual_branches
from transfer_bo.parametrization.hp_values import HPs, check_hps, multiplier_of, value_of
from transfer_bo.parametrization.initial_values import copy_buffers, is_constant, rms
from transfer_bo.parametrization.optimizers import OPTIMIZERS, optimizer_of, options_of
from transfer_bo.parametrization.rules import Ratios, Role, RoleExponents, Rule, ScalingFactors
from transfer_bo.parametrization.sharding import total_norm, write_values
from transfer_bo.parametrization.tables import find_rule
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Parametrization", "parametrize"]


def parametrize(
    build_model: BuildModel,
    base: Scale | Mapping[str, float],
    target: Scale | Mapping[str, float] | None = None,
    rule: str | Rule = "complete_d_p",
    alpha: float = 1.0,
    *,
    roles: Mapping[str, str] | None = None,
    inputs: tuple[torch.Tensor, ...] | None = None,
    fold: bool = True,
) -> Parametrization:
    """Work out every tensor's settings at any scale from HPs in base coordinates.

    Args:
        build_model: `build_model(scale)` gives the model at a scale, on whatever device torch's default is.
        base: The scale that HPs refer to. Needs the axis `width`; `depth`, `batch`, `tokens` where they vary.
        target: The scale to train at, with the same axes; the base if not given. `at(scale)` gives the
            settings at other scales.
        rule: Name of a table in `tables.RULES`, or a `Rule`.
        alpha: α of the residual multiplier m_L^-α, in [1/2, 1].
        roles: Role by name pattern, e.g. `{"*.router.weight": "hidden_weight"}`, for tensors whose role
            cannot be inferred or is to be overruled.
        inputs: What the base model is called with, to find how it uses its tensors and its residual branches;
            token numbers, images or numbers are guessed if not given.
        fold: Whether branch multipliers are folded into the branch's last layer where that is exact (the
            model then runs unchanged), or always applied in the forward pass. Both train alike.

    Raises:
        ParametrizationError: if builds fail or ignore an axis, a role or a residual branch is not found, or
            α is outside the rule's range.
        ScaleError: if the two scales have different axes, or no width.
    """
    rule = find_rule(rule)
    low, high = rule.alpha_range
    if not low <= alpha <= high:
        raise ParametrizationError(
            f"alpha = {alpha!r} lies outside [{low:g}, {high:g}], where rule {rule.name!r} holds; "
            "move it inside."
        )
    base = Scale(base)
    options = Options(build_model, base, rule, float(alpha), dict(roles or {}), inputs, fold)
    return Parametrization(options, base if target is None else Scale(target))


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


class Parametrization:
    """The roles and groups of a model's tensors, and their settings at one scale, the target.

    It refers to tensors by name only, so one object serves any number of models built at the target, wrapped
    (torch.compile, DDP, fully_shard) or not. Set a model up before its first forward pass: a program that
    torch.compile has compiled does not contain multipliers that are registered later.

    Args:
        options: What `parametrize` was called with.
        target: The scale to train at.
        family: Parametrizations of the same model at other scales, and its base model.
    """

    def __init__(self, options: Options, target: Scale, family: _Family | None = None) -> None:
        target.log2_ratio(options.base)  # checks that the two have the same axes
        self._options = options
        self._family = family or _Family(options)
        self.build_model, self.base, self.target = options.build_model, options.base, target
        self.rule, self.alpha = options.rule, options.alpha

        base = self._family.base
        anatomy = dissect(base, target, options.roles)
        self._warn_of_transfer(base.attention if target.width != options.base.width else "")

        self.tensors: dict[str, Tensor] = anatomy.tensors
        """Every trainable tensor by name."""
        self.module_types: tuple[str, ...] = _unique(t.module_type for t in self.tensors.values())
        """Names of the kinds of layers, in the model's order."""
        self.groups: dict[str, tuple[str, ...]] = {name: t.labels for name, t in self.tensors.items()}
        """The labels of each tensor; an HP `kind.label` multiplies the tensors that carry the label."""
        self._labels = _unique(label for labels in self.groups.values() for label in labels)

        run = Ratios(
            batch=target.get("batch", 1) / self.base.get("batch", 1),
            tokens=target.get("tokens", 1) / self.base.get("tokens", 1),
            parameters=sum(math.prod(t.shape) for t in self.tensors.values()) / base.size,
        )
        self._factors: dict[str, ScalingFactors] = {
            name: self.rule.factors(
                tensor.role,
                replace(run, width=tensor.width, depth=tensor.depth, fan_out=tensor.fan_out),
                self.alpha,
            )
            for name, tensor in self.tensors.items()
        }
        branches = find_residual_branches(anatomy, base)
        self.residual_branches: tuple[str, ...] = _unique(b.name for b in branches.by_path.values())
        """Names of the residual branches, as HPs `residual.<name>` call them."""
        self._no_branches = branches.missing
        self._multipliers = ForwardMultipliers(
            anatomy, branches, self.rule, self.alpha, self._factors, base, options.fold
        )
        if base.call.trace is None:
            warnings.warn(
                f"How tensors are used is not known ({base.call.reason}), so roles are inferred from the "
                "kinds of layers that hold them; give inputs=(tensor, ...) that the model accepts.",
                stacklevel=3,
            )
        self._norm_factors_of: WeakKeyDictionary[nn.Module, dict[str, float]] = WeakKeyDictionary()
        self._family.members[target] = self

    def at(self, scale: Scale | Mapping[str, float]) -> Parametrization:
        """The settings at another scale, for the same model, rule and options.

        Each scale is worked out once; what depends on the base alone is shared by all.

        Args:
            scale: With the axes of the base.

        Raises:
            ParametrizationError: if the model at this scale does not correspond to the base.
            ScaleError: if its axes are not those of the base.
        """
        scale = Scale(scale)
        members = self._family.members
        return members[scale] if scale in members else Parametrization(self._options, scale, self._family)

    def _warn_of_transfer(self, attention: str) -> None:
        """Warn of what may keep the rule from transferring."""
        if self.target.width < self.base.width:
            warnings.warn(
                f"The base is wider ({self.base.width:g}) than the target ({self.target.width:g}); "
                "rules are meant to go from small to large.",
                stacklevel=4,
            )
        if attention and self.rule.rows.get(Role.HIDDEN_WEIGHT, RoleExponents()).lr.width < 0:
            warnings.warn(
                f"Rule {self.rule.name!r} may not transfer over widths: {attention}; "
                "let their number grow instead, or give scale = constant / size to the attention.",
                stacklevel=4,
            )

    def __repr__(self) -> str:
        return f"Parametrization({self.rule.name!r}, alpha={self.alpha:g}, {self.base} -> {self.target})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_norm_factors_of": None, "_family": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        family = _Family(state["_options"])
        self.__dict__.update(state, _norm_factors_of=WeakKeyDictionary(), _family=family)
        family.members[self.target] = self

    # ------------------------------------------------------------------------------------ settings

    @property
    def folded(self) -> dict[str, float]:
        """The rule's branch multiplier that is folded into a tensor, for tensors that have one."""
        return self._multipliers.folded

    def _check(self, hps: HPs | None) -> HPs:
        return check_hps(
            hps,
            self._labels,
            self.residual_branches,
            self._no_branches,
            has_blocks=self._multipliers.has_blocks,
        )

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

        hps = self._check(hps)

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

    # ------------------------------------------------------------------------------------ on a model

    def _parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's trainable tensors.

        Raises:
            ParametrizationError: if they are not those of the target.
        """
        found = parameters_of(model)
        differing = sorted(set(found) ^ set(self.tensors))
        if differing:
            raise ParametrizationError(
                f"The model is not what build_model gives at {self.target}, the scale of this "
                f"parametrization: tensor {differing[0]!r} is in one of them only; use p.at(scale), with the "
                "scale that the model was built at."
            )
        for name, parameter in found.items():
            if tuple(parameter.shape) != self.tensors[name].shape:
                raise ParametrizationError(
                    f"Tensor {name!r} has shape {tuple(parameter.shape)}, but {self.tensors[name].shape} at "
                    f"{self.target}, the scale of this parametrization; use p.at(scale), with the scale that "
                    "the model was built at."
                )
        return found

    @torch.no_grad()
    def initialize(self, model: nn.Module, hps: HPs | None = None, seed: int = 0) -> None:
        """Give every tensor of the model its initial values, in place, whatever it held before.

        A tensor gets what `build_model` draws for it at the target under the seed, scaled so that its root
        mean square is that of the base model's own draw (deeper blocks: the block at the same relative depth)
        times the rule's and the HPs' factors. So the model's own way of initialising is kept, at the base bit
        by bit. Constants (gains of one, biases of zero) stay as they are; `init_std` does not move them.
        Frozen tensors keep their values, and so do the stored buffers of frozen modules, such as running
        means; other buffers are recomputed. Draws are made on the CPU, so that they are the same on every
        device; a model sharded by `fully_shard` gets its shards of the same values, without communication.

        Raises:
            ParametrizationError: for a model of another scale or on the meta device.
            SearchSpaceError: for an HP that the model has no group for.
        """
        hps = self._check(hps)
        parameters = self._parameters(model)
        if any(p.is_meta for p in model.parameters()):
            raise ParametrizationError(
                "The model is on the meta device and has no memory; call model.to_empty(device=...) first."
            )
        native = build_real(self.build_model, self.target, seed)
        base = parameters_of(build_real(self.build_model, self.base, seed))
        thetas = self._multipliers.thetas(hps)

        for name, drawn in parameters_of(native).items():
            tensor = self.tensors[name]
            if tensor.role is Role.UNTRAINED:
                factor = 1.0
            elif is_constant(drawn):  # a gain of one or a bias of zero keeps its effect in the forward pass
                factor = self._multipliers.of_constant(name, hps)
            else:
                factor = thetas[name] * self._factors[name].init_std
                factor *= value_of("init_std", tensor.labels, hps, tensor.position)
                factor *= rms(base[tensor.base_name]) / rms(drawn)
            write_values(parameters[name], drawn * factor)

        copy_buffers(native, model)
        self._multipliers.set_hooks(model, hps)

    def param_groups(self, model: nn.Module, hps: HPs | None = None) -> list[dict[str, Any]]:
        """Parameter groups for the rule's optimizer, `torch.optim.AdamW` for most rules.

        Each has params, the optimizer's own options (AdamW: lr, betas, eps, weight_decay) and a name. Tensors
        with equal settings share a group, so that the optimizer's fused and foreach paths stay fast. This
        object remembers what it folded into which model, for `clip_grad_norm_`.

        Raises:
            ParametrizationError: for a model of another scale, or a rule that needs two optimizers (see
                `optimizers`) or one that torch does not have.
            SearchSpaceError: for an HP that the model has no group for, or a β outside (0, 1).
        """
        groups = self._groups(model, hps)
        if len(groups) > 1:
            raise ParametrizationError(
                f"Rule {self.rule.name!r} trains with {' and '.join(groups)}; "
                "call p.optimizers(model, hps), which makes one of each."
            )
        return groups[self.rule.optimizer]

    def optimizers(self, model: nn.Module, hps: HPs | None = None) -> list[torch.optim.Optimizer]:
        """The rule's optimizers, ready to step: one, or Muon for matrices and AdamW for all other tensors.

        Raises:
            ParametrizationError: for a model of another scale, or an optimizer that torch does not have.
            SearchSpaceError: for an HP that the model has no group for, or a β outside (0, 1).
        """
        return [OPTIMIZERS[name](groups) for name, groups in self._groups(model, hps).items()]

    def _groups(self, model: nn.Module, hps: HPs | None) -> dict[str, list[dict[str, Any]]]:
        """Parameter groups by optimizer."""
        hps = self._check(hps)
        parameters = self._parameters(model)
        self._multipliers.set_hooks(model, hps)
        thetas = self._multipliers.thetas(hps)
        self._norm_factors_of[unwrap(model)] = self._multipliers.norm_factors(hps)
        members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name in parameters:
            tensor = self.tensors[name]
            optimizer = optimizer_of(self.rule, tensor)
            options = options_of(self.rule, optimizer, tensor, self._factors[name], thetas[name], hps)
            members[(optimizer, *options.items())].append(name)
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for (optimizer, *settings), names in members.items():
            groups[optimizer].append(
                {
                    "params": [parameters[name] for name in names],
                    **dict(settings),
                    "name": ", ".join(_unique(self.tensors[name].module_type for name in names)),
                }
            )
        _check_partition(groups, model)
        return dict(groups)

    @torch.no_grad()
    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> torch.Tensor:
        """Clip gradients in place to a total norm that does not depend on the form; returns that norm.

        Folding a multiplier θ into a tensor divides its gradient by θ. So that both forms train alike, the
        norm is always that of one form: branch multipliers in the forward pass (the gradient of a tensor into
        which one is folded is multiplied by θ), a rule's multipliers of single tensors folded. Without
        multipliers this is `torch.nn.utils.clip_grad_norm_`. Under `fully_shard` the norm is over all shards.

        Args:
            model: A model that `param_groups` was called with; the HPs of the last call are used.
            max_norm: Largest total norm, positive.

        Raises:
            ParametrizationError: if `param_groups` was not called with this model.
        """
        factors = self._norm_factors_of.get(unwrap(model))
        if factors is None:
            raise ParametrizationError(
                "clip_grad_norm_ does not know the HPs of this model; call param_groups(model, hps) first."
            )

        with_grad = {name: p for name, p in parameters_of(model).items() if p.grad is not None}
        gradients = [
            cast(torch.Tensor, p.grad) * factors[name]
            if factors.get(name, 1) != 1
            else cast(torch.Tensor, p.grad)
            for name, p in with_grad.items()
        ]
        total = total_norm(gradients)
        nn.utils.clip_grads_with_norm_(list(with_grad.values()), max_norm, total)
        return total


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _check_partition(groups: Mapping[str, list[dict[str, Any]]], model: nn.Module) -> None:
    """Raise `ParametrizationError` unless every trainable tensor of a model is in exactly one group."""
    grouped = Counter(id(p) for of_one in groups.values() for group in of_one for p in group["params"])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != (grouped[id(parameter)] == 1):
            raise ParametrizationError(
                f"Tensor {name!r} is in {grouped[id(parameter)]} parameter groups; this is a mistake of the "
                "parametrization, please report it with the model."
            )


class _Family:
    """Parametrizations of one model at several scales, and the base model that they share."""

    def __init__(self, options: Options) -> None:
        self.members: dict[Scale, Parametrization] = {}
        self._options = options

    @cached_property
    def base(self) -> BaseModel:
        """The base model; built when it is first needed, as a copied parametrization may not need it."""
        return BaseModel(self._options.build_model, self._options.base, self._options.inputs)
