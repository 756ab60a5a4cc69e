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

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.base_model import BaseModel
from transfer_bo.parametrization.builds import BuildModel, build_real, parameters_of, unwrap
from transfer_bo.parametrization.check import CheckReport, check_set_up
from transfer_bo.parametrization.forward_multipliers import set_forward_values
from transfer_bo.parametrization.hp_values import HPs
from transfer_bo.parametrization.initial_values import copy_buffers, is_constant, rms
from transfer_bo.parametrization.optimizers import make_optimizer
from transfer_bo.parametrization.rules import Role, Rule
from transfer_bo.parametrization.scaled_settings import Options, ScaledSettings
from transfer_bo.parametrization.sharding import is_sharded, total_norm, write_values
from transfer_bo.parametrization.tables import find_rule
from transfer_bo.scale import Scale
from transfer_bo.space import DEFAULT_RULE

__all__ = ["Parametrization", "parametrize"]


LARGEST_RUN_FACTOR = 10.0
"""Factor on a setting for batch and tokens beyond which there is a warning: from there on β1 = .9 becomes .99
and more, an average over hundreds of steps, which few runs have tested."""


def parametrize(
    build_model: BuildModel,
    base: Scale | Mapping[str, float],
    target: Scale | Mapping[str, float] | None = None,
    rule: str | Rule = DEFAULT_RULE,
    alpha: float = 1.0,
    *,
    optimizer: str | None = None,
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
        optimizer: The optimizer to use the rule's table of, e.g. "muon"; the one that the rule names if not
            given, mostly AdamW.
        roles: Role by name pattern, e.g. `{"*.router.weight": "hidden_weight"}`, for tensors whose role
            cannot be inferred or is to be overruled.
        inputs: What the base model is called with, to find how it uses its tensors and its residual branches;
            token numbers, images or numbers are guessed if not given.
        fold: Whether branch multipliers are folded into the branch's last layer where that is exact (the
            model then runs unchanged), or always applied in the forward pass. Both train alike.

    Raises:
        ParametrizationError: if builds fail or ignore an axis, a role or a residual branch is not found, the
            rule has no table for the optimizer, or α is outside the rule's range.
        ScaleError: if the two scales have different axes, or no width.
    """
    rule = find_rule(rule, optimizer)
    low, high = rule.alpha_range
    if not low <= alpha <= high:
        raise ParametrizationError(
            f"alpha = {alpha!r} lies outside [{low:g}, {high:g}], where rule {rule.name!r} holds; "
            "move it inside."
        )
    base = Scale(base)
    options = Options(build_model, base, rule, float(alpha), dict(roles or {}), inputs, fold)
    return Parametrization(options, base if target is None else Scale(target), Family(options))


class Parametrization(ScaledSettings):
    """The roles and groups of a model's tensors, and their settings at one scale, the target.

    It refers to tensors by name only, so one object serves any number of models built at the target, wrapped
    (torch.compile, DDP, fully_shard) or not. Set a model up before its first forward pass: a program that
    torch.compile has compiled does not contain multipliers that are registered later.

    Args:
        options: What `parametrize` was called with.
        target: The scale to train at.
        family: Parametrizations of the same model at other scales, and its base model.
    """

    def __init__(self, options: Options, target: Scale, family: Family) -> None:
        super().__init__(options, target, family.base)
        self._family = family
        self._set_up: WeakKeyDictionary[nn.Module, _SetUp] = WeakKeyDictionary()
        family.members[target] = self
        if not family.has_warned and (message := self._extrapolation()):
            family.has_warned = True
            warnings.warn(message, stacklevel=3)

    def _extrapolation(self) -> str:
        """A sentence on settings that the rule moves far for batch and duration; "" if there are none."""
        far = {
            kind: factor
            for kind, factor in self.rule.run_factors(self.run_ratios).items()
            if not 1 / LARGEST_RUN_FACTOR <= factor <= LARGEST_RUN_FACTOR
        }
        if not far:
            return ""
        moved = ", ".join(f"{kind} by {factor:.3g}" for kind, factor in far.items())
        alternative = f", or use rule {DEFAULT_RULE!r}, where 1-β2 follows the batch alone and β1 stays"
        return (
            f"Rule {self.rule.name!r} multiplies {moved} for batch and tokens on the way from {self.base} to "
            f"{self.target}, more than {LARGEST_RUN_FACTOR:g}-fold; check these settings at that length"
            f"{alternative if self.rule.name != DEFAULT_RULE else ''}."
        )

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

    def __repr__(self) -> str:
        return f"Parametrization({self.rule.name!r}, alpha={self.alpha:g}, {self.base} -> {self.target})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_set_up": None, "_family": None, "_base_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        family = Family(state["_options"])
        self.__dict__.update(state, _set_up=WeakKeyDictionary(), _family=family, _base_model=family.base)
        family.members[self.target] = self

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
        mean square is that of the base model's own draw (deeper blocks: the block at the same relative
        depth) times the rule's and the HPs' factors. So the model's own way of initialising is kept, at the
        base bit by bit. Constants (gains of one, biases of zero) stay as they are; `init_std` does not move
        them. Frozen tensors keep their values, and so do the stored buffers of frozen modules, such as
        running means; other buffers are recomputed. Draws are made on the CPU, so that they are the same on
        every device. A model sharded by `fully_shard` gets its shards of the same values, without
        communication, and no process holds more than one whole tensor at a time (see `deferred_build`).

        Raises:
            ParametrizationError: for a model of another scale or on the meta device.
            SearchSpaceError: for an HP that the model has no group for.
        """
        hps = self.check_hps(hps)
        parameters = self._parameters(model)
        if any(p.is_meta for p in model.parameters()):
            raise ParametrizationError(
                "The model is on the meta device and has no memory; call model.to_empty(device=...) first."
            )
        native, value = self._native(seed, sharded=any(map(is_sharded, parameters.values())))
        draws = self._base_model.draws(seed)

        for name, tensor in parameters_of(native).items():
            drawn = value(tensor)
            factor = self.init_factor(name, hps, is_constant(drawn))
            if not is_constant(drawn):
                factor *= draws[self.tensors[name].base_name].rms / rms(drawn)
            write_values(parameters[name], drawn * factor)

        copy_buffers(native, model, value)
        self._multipliers.set_hooks(model, hps)
        set_forward_values(model, self.forward_multipliers(hps))
        self._set_up[unwrap(model)] = _SetUp(hps, seed)

    def _native(
        self, seed: int, *, sharded: bool
    ) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
        """The model as `build_model` draws it, and the value of each of its tensors.

        For a sharded model tensors have values one at a time, as no process may have room for all of them.
        """
        if sharded:
            from transfer_bo.parametrization.deferred_build import DeferredBuild  # loads PyTorch's compiler

            if self._base_model.is_deferrable:
                deferred = DeferredBuild(self.build_model, self.target, seed)
                return deferred.model, deferred.value
            warnings.warn(
                "The model's initial values cannot be drawn tensor by tensor, so that each process holds all "
                "of them for a moment; draw them with torch's random functions only.",
                stacklevel=3,
            )
        return build_real(self.build_model, self.target, seed), lambda tensor: tensor

    def param_groups(self, model: nn.Module, hps: HPs | None = None) -> list[dict[str, Any]]:
        """Parameter groups for the rule's optimizer, `torch.optim.AdamW` for most rules.

        Each has params, the optimizer's own options (AdamW: lr, betas, eps, weight_decay) and a name. Tensors
        with equal settings share a group, so that the optimizer's fused and foreach paths stay fast. This
        object remembers what it folded into which model, for `clip_grad_norm_`.

        Raises:
            ParametrizationError: for a model of another scale, or a rule that needs two optimizers (see
                `optimizers`) or one that cannot be made here.
            SearchSpaceError: for an HP that the model has no group for, or a β outside (0, 1).
        """
        groups = self._groups(model, hps)
        if len(groups) > 1:
            raise ParametrizationError(
                f"Rule {self.rule.name!r} trains with {' and '.join(groups)}; "
                "call p.optimizers(model, hps), which makes one of each."
            )
        return groups[self.rule.optimizer]

    def optimizers(
        self, model: nn.Module, hps: HPs | None = None, *, fused: bool = False
    ) -> list[torch.optim.Optimizer]:
        """The rule's optimizers, ready to step: one, or Muon for matrices and AdamW for all other tensors.

        Args:
            model: Wrapped or not.
            hps: In base coordinates.
            fused: Whether to use torch's fused kernels where there are any; they differ by rounding.

        Raises:
            ParametrizationError: for a model of another scale, or an optimizer that cannot be made here.
            SearchSpaceError: for an HP that the model has no group for, or a β outside (0, 1).
        """
        groups = self._groups(model, hps)
        return [make_optimizer(name, of_one, fused=fused) for name, of_one in groups.items()]

    def _groups(self, model: nn.Module, hps: HPs | None) -> dict[str, list[dict[str, Any]]]:
        """Parameter groups by optimizer."""
        hps = self.check_hps(hps)
        parameters = self._parameters(model)
        settings = self.settings(hps)
        self._multipliers.set_hooks(model, hps)
        set_forward_values(model, self.forward_multipliers(hps))
        before = self._set_up.get(unwrap(model))
        seed = None if before is None else before.seed
        self._set_up[unwrap(model)] = _SetUp(hps, seed, self.norm_factors(hps))

        members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name in settings:
            members[(settings[name].optimizer, *settings[name].options.items())].append(name)
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for (optimizer, *options), names in members.items():
            groups[optimizer].append(
                {
                    "params": [parameters[name] for name in names],
                    **dict(options),
                    "name": ", ".join(_unique(self.tensors[name].module_type for name in names)),
                }
            )
        untrained = {id(q) for name, q in parameters.items() if self.tensors[name].role is Role.UNTRAINED}
        _check_partition(groups, model, untrained)
        return dict(groups)

    @torch.no_grad()
    def check(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        hps: HPs | None = None,
    ) -> CheckReport:
        """Compare a live model and optimizer with the settings here, before training or during it.

        Compared are the membership of each tensor in groups, the optimizer's options, the multipliers in the
        forward pass and, before the first step, the size of initial values. Where `initialize` was called for
        this model, sizes are those of its seed; otherwise they may differ by sampling error. Between clipping
        and `zero_grad()`, gradients that were clipped to another norm than that of `clip_grad_norm_` are
        found too.

        Args:
            model: Wrapped or not.
            optimizer: One, or several that step different tensors.
            hps: In base coordinates; those of the last call of `param_groups` or `initialize` if not given.

        Returns:
            The differences, none if the parametrization is active; `raise_if_wrong()` makes them an error.

        Raises:
            ParametrizationError: if the rule is for an optimizer that cannot be made here.
            SearchSpaceError: for an HP that the model has no group for.
        """
        set_up = self._set_up.get(unwrap(model), _SetUp({}))
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        hps = self.check_hps(set_up.hps if hps is None else hps)
        return check_set_up(self, model, optimizers, hps, set_up.seed)

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
        set_up = self._set_up.get(unwrap(model))
        if set_up is None or set_up.norm_factors is None:
            raise ParametrizationError(
                "clip_grad_norm_ does not know the HPs of this model; call param_groups(model, hps) first."
            )

        factors = set_up.norm_factors
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


def _check_partition(
    groups: Mapping[str, list[dict[str, Any]]], model: nn.Module, untrained: Collection[int]
) -> None:
    """Raise `ParametrizationError` unless every tensor that the optimizer trains is in exactly one group.

    Args:
        groups: by optimizer.
        model: all of its tensors are looked at, not only those that the parametrization knows.
        untrained: identities of tensors that something else than the optimizer changes.
    """
    grouped = Counter(id(p) for of_one in groups.values() for group in of_one for p in group["params"])
    for name, parameter in model.named_parameters():
        is_trained = parameter.requires_grad and id(parameter) not in untrained
        if is_trained != (grouped[id(parameter)] == 1):
            raise ParametrizationError(
                f"Tensor {name!r} is in {grouped[id(parameter)]} parameter groups; this is a mistake of the "
                "parametrization, please report it with the model."
            )


@dataclass(frozen=True)
class _SetUp:
    """How a model was set up last."""

    hps: HPs
    seed: int | None = None
    """Of its initial values; None if `initialize` was not called."""
    norm_factors: Mapping[str, float] | None = None
    """What each tensor's gradient is multiplied by in the total norm; None if it has no groups yet."""


class Family:
    """Parametrizations of one model at several scales, and the base model that they share."""

    def __init__(self, options: Options) -> None:
        self.members: dict[Scale, Parametrization] = {}
        self.has_warned = False
        self.base = BaseModel(options.build_model, options.base, options.inputs)
