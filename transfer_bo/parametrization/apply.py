"""A rule applied to a real model: initial values, optimizer groups, clipping.

For each tensor, with HP value v (`space.KINDS`, times the multipliers of its groups), rule factor r, and θ
the multiplier folded into it:

    init = base init · r_init · v_init · θ      settings of the optimizer: `optimizers.py`

θ is 1 except in the last layer of a residual branch, where θ = m_L^-α · v_residual (`residual.py`), and where
the rule has a forward multiplier of its own. At the base, with HPs at their defaults, every factor is
exactly 1.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.anatomy import Anatomy, Tensor, dissect
from transfer_bo.parametrization.builds import (
    BuildModel,
    build_meta,
    build_real,
    modules_of,
    parameters_of,
    unwrap,
)
from transfer_bo.parametrization.hp_values import HPs, check_hps, multiplier_of, value_of
from transfer_bo.parametrization.optimizers import OPTIMIZERS, optimizer_of, options_of
from transfer_bo.parametrization.residual import (
    Branch,
    examine,
    set_input_multiplier,
    set_multiplier,
)
from transfer_bo.parametrization.rules import Ratios, Role, RoleExponents, Rule, ScalingFactors
from transfer_bo.parametrization.sharding import total_norm, write_values
from transfer_bo.parametrization.tables import find_rule
from transfer_bo.scale import Scale

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Parametrization", "parametrize"]


def parametrize(
    build_model: BuildModel,
    base: Scale,
    target: Scale,
    rule: str | Rule = "complete_d_p",
    alpha: float = 1.0,
    *,
    roles: Mapping[str, str] | None = None,
    inputs: tuple[torch.Tensor, ...] | None = None,
    fold: bool = True,
) -> Parametrization:
    """Work out every tensor's settings at the target from HPs in base coordinates.

    Args:
        build_model: `build_model(scale)` gives the model at a scale, on whatever device torch's default is.
        base: The scale that HPs refer to. Needs the axis `width`; `depth`, `batch`, `tokens` where they vary.
        target: The scale to train at, with the same axes.
        rule: Name of a table in `tables.RULES`, or a `Rule`.
        alpha: α of the residual multiplier m_L^-α, in [1/2, 1].
        roles: Role by name pattern, e.g. `{"*.router.weight": "hidden_weight"}`, for tensors whose role
            cannot be inferred or is to be overruled.
        inputs: What the base model is called with, to find its residual branches; token numbers or numbers
            are guessed if it is not given.
        fold: Whether branch multipliers live in the branch's last layer where that is exact (the model then
            runs unchanged), or always in the forward pass. Both train alike.

    Raises:
        ParametrizationError: if something of this does not fit together; it says what.
    """
    return Parametrization(build_model, base, target, rule, alpha, roles=roles, inputs=inputs, fold=fold)


class Parametrization:
    """What `parametrize` found: roles, groups, and the settings of every tensor at the target.

    It refers to tensors by name only, so one object serves any number of models built at the target, wrapped
    (torch.compile, DDP, fully_shard) or not. Set a model up before its first forward pass: what torch.compile
    has compiled does not see multipliers that are registered later.
    """

    def __init__(
        self,
        build_model: BuildModel,
        base: Scale,
        target: Scale,
        rule: str | Rule = "complete_d_p",
        alpha: float = 1.0,
        *,
        roles: Mapping[str, str] | None = None,
        inputs: tuple[torch.Tensor, ...] | None = None,
        fold: bool = True,
    ) -> None:
        self.rule = find_rule(rule)
        low, high = self.rule.alpha_range
        if not low <= alpha <= high:
            raise ParametrizationError(
                f"alpha = {alpha!r} lies outside [{low:g}, {high:g}], where rule {self.rule.name!r} holds; "
                "move it inside."
            )
        target.log2_ratio(base)  # the two must have the same axes
        self.build_model, self.base, self.target, self.alpha = build_model, base, target, float(alpha)
        anatomy = dissect(build_model, base, target, roles, inputs)
        if target.width < base.width:
            warnings.warn(
                f"The base is wider ({base.width:g}) than the target ({target.width:g}); "
                "rules are meant to go from small to large.",
                stacklevel=3,
            )
        if anatomy.attention and self.rule.rows.get(Role.HIDDEN_WEIGHT, RoleExponents()).lr.width < 0:
            warnings.warn(
                f"Rule {self.rule.name!r} may not transfer over widths: {anatomy.attention}; "
                "let their number grow instead, or give scale = constant / size to the attention.",
                stacklevel=3,
            )
        self.tensors: dict[str, Tensor] = anatomy.tensors
        """Every trainable tensor by name."""
        self._of_the_run = Ratios(
            batch=target.get("batch", 1) / base.get("batch", 1),
            tokens=target.get("tokens", 1) / base.get("tokens", 1),
            parameters=sum(math.prod(t.shape) for t in self.tensors.values()) / _count(anatomy.run.model),
        )
        self.module_types: tuple[str, ...] = _unique(t.module_type for t in self.tensors.values())
        """Names of the kinds of layers, in the model's order."""
        self.groups: dict[str, tuple[str, ...]] = {name: t.labels for name, t in self.tensors.items()}
        """The labels of each tensor; an HP `kind.label` multiplies the tensors that carry the label."""
        self._labels = _unique(label for labels in self.groups.values() for label in labels)
        self._branches, self._no_branches = self._find_branches(anatomy)
        multipliers = {
            s: self.rule.residual.at(Ratios(depth=m), self.alpha) for s, m in anatomy.stacks.items()
        }
        if self._no_branches and any(a != 1 for a in multipliers.values()):
            raise ParametrizationError(
                f"Rule {self.rule.name!r} multiplies residual branches when depth grows, but they can't be "
                f"told ({self._no_branches}); let every block return its input plus outputs of its modules, "
                "and give inputs=(tensor, ...) if the model needs more than token numbers."
            )
        if anatomy.run.trace is None:
            warnings.warn(
                f"How tensors are used could not be seen ({anatomy.run.reason}), so roles rest on the kinds "
                "of layers that hold them; give inputs=(tensor, ...) that the model can be called with.",
                stacklevel=3,
            )
        self.residual_branches: tuple[str, ...] = _unique(b.name for b in self._branches.values())
        """Names of the residual branches, as HPs `residual.<name>` call them."""
        self._multipliers = {
            path: multipliers[self._block_of(path).rpartition(".")[0]] for path in self._branches
        }
        self._positions = {t.block: t.position for t in self.tensors.values() if t.block is not None}
        self._folded, self._hooked = self._carriers(fold)
        self._readers = self._find_readers(fold)
        self._norm_factors_of: WeakKeyDictionary[nn.Module, dict[str, float]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Parametrization({self.rule.name!r}, alpha={self.alpha:g}, {self.base} -> {self.target})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_norm_factors_of": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _norm_factors_of=WeakKeyDictionary())

    # ------------------------------------------------------------------------------------ construction

    def _find_branches(self, anatomy: Anatomy) -> tuple[dict[str, Branch], str]:
        """The residual branches of the target by path, and why some are missing."""
        base_blocks, run = anatomy.base_blocks, anatomy.run
        if not base_blocks:
            return {}, "it has no stack of blocks"
        if run.arguments is None:
            return {}, run.reason
        found, reason = examine(run.model, _unique(base_blocks.values()), run.arguments)
        return {
            f"{block}.{branch.path}": branch
            for block, of_base in base_blocks.items()
            for branch in found.get(of_base, ())
        }, reason

    def _block_of(self, path: str) -> str:
        """Path of the block that a branch lies in."""
        return path.removesuffix(f".{self._branches[path].path}")

    def _carriers(self, fold: bool) -> tuple[dict[str, str], dict[str, str]]:
        """Tensors of each branch's last layer -> the branch's path: folded multipliers, and hooked ones."""
        folded: dict[str, str] = {}
        hooked: dict[str, str] = {}
        for path, branch in self._branches.items():
            layer = f"{self._block_of(path)}.{branch.layer}"
            carriers = folded if fold and branch.foldable else hooked
            carriers.update({name: path for name in self.tensors if name.startswith(f"{layer}.")})
        return folded, hooked

    def _find_readers(self, fold: bool) -> dict[str, str]:
        """Tensors whose own forward multiplier is registered -> path of the layer whose input it is on."""
        modules = modules_of(build_meta(self.build_model, self.base))
        readers: dict[str, str] = {}
        for name, tensor in self.tensors.items():
            forward = self._rule_factors(tensor).forward
            owner = tensor.base_name.rpartition(".")[0]
            if tensor.role is Role.TIED_EMBEDDING and forward != 1:
                reader = modules.get(tensor.reader or "")
                if not isinstance(reader, nn.Linear):
                    raise ParametrizationError(
                        f"The tied tensor {name!r} needs a multiplier where it maps to the outputs, but "
                        f"{tensor.reader or 'the model'!r} is no nn.Linear; let one hold the tied tensor."
                    )
                readers[name] = cast(str, tensor.reader)
                continue
            is_linear = name.endswith("weight") and isinstance(modules[owner], nn.Linear)
            if not fold and forward != 1 and is_linear:
                readers[name] = name.rpartition(".")[0]
        return readers

    # ------------------------------------------------------------------------------------ settings

    def _rule_factors(self, tensor: Tensor) -> ScalingFactors:
        ratios = replace(self._of_the_run, width=tensor.width, depth=tensor.depth, fan_out=tensor.fan_out)
        return self.rule.factors(tensor.role, ratios, self.alpha)

    def _branch_multiplier(self, path: str, hps: HPs) -> float:
        """The multiplier a in x + a·F(x), for the branch at a path of the target."""
        position = self._positions[self._block_of(path)]
        return self._multipliers[path] * value_of("residual", [self._branches[path].name], hps, position)

    def _thetas(self, hps: HPs) -> dict[str, float]:
        """The folded multiplier θ of every tensor."""
        of_branch = {path: self._branch_multiplier(path, hps) for path in self._branches}
        return {
            name: (1.0 if name in self._readers else self._rule_factors(tensor).forward)
            * of_branch.get(self._folded.get(name, ""), 1.0)
            for name, tensor in self.tensors.items()
        }

    def _norm_factors(self, hps: HPs) -> dict[str, float]:
        """What each tensor's gradient is multiplied by before its norm counts: see `clip_grad_norm_`."""
        factors = {name: self._branch_multiplier(path, hps) for name, path in self._folded.items()}
        for name in self._readers:
            if self.tensors[name].role is not Role.TIED_EMBEDDING:
                factors[name] = factors.get(name, 1.0) / self._rule_factors(self.tensors[name]).forward
        return factors

    @property
    def folded(self) -> dict[str, float]:
        """The rule's branch multiplier that is folded into a tensor, for tensors that have one."""
        return {name: self._multipliers[path] for name, path in self._folded.items()}

    def _check(self, hps: HPs | None) -> HPs:
        return check_hps(
            hps, self._labels, self.residual_branches, self._no_branches, has_blocks=bool(self._positions)
        )

    def table(self, hps: HPs | None = None) -> pd.DataFrame:
        """A row per tensor: what the rule makes of it, relative to the base.

        Args:
            hps: If given, factors include the HPs' multipliers of groups and their depth profiles.

        Columns: name, role, module_type, shape; position: relative depth of its block; init_std, lr, eps,
            weight_decay, one_minus_beta, forward: factors in the form of the literature, where multipliers
            stand in the forward pass; applied: how `forward` is put into effect, "folded" (into the tensor:
            init_std and lr times it, eps and weight_decay divided by it), "hook" (a multiplier registered on
            the branch) or "" (there is none).
        """
        import pandas as pd  # slow to import, needed here only

        given = self._check(hps)

        def times(kind: str, factor: float, tensor: Tensor) -> float:
            return factor * multiplier_of(kind, tensor.labels, given, tensor.position)

        rows = []
        for name, tensor in self.tensors.items():
            factors = self._rule_factors(tensor)
            branch = self._folded.get(name) or self._hooked.get(name)
            forward = factors.forward * (self._branch_multiplier(branch, given) if branch else 1.0)
            is_hook = name in self._hooked or name in self._readers
            applied = "hook" if is_hook else "folded" if branch or forward != 1 else ""
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
        """The model's trainable tensors, which must be those of the target."""
        found = parameters_of(model)
        differing = sorted(set(found) ^ set(self.tensors))
        if differing:
            raise ParametrizationError(
                f"The model is not what build_model gives at {self.target}: tensor {differing[0]!r} is in "
                "one of them only; build it at the target scale."
            )
        for name, parameter in found.items():
            if tuple(parameter.shape) != self.tensors[name].shape:
                raise ParametrizationError(
                    f"Tensor {name!r} has shape {tuple(parameter.shape)}, but {self.tensors[name].shape} at "
                    f"{self.target}; build the model at the target scale."
                )
        return found

    def _set_hooks(self, model: nn.Module, hps: HPs) -> None:
        modules = modules_of(model)
        for path in self._branches.keys() - self._folded.values():
            set_multiplier(modules[path], self._branch_multiplier(path, hps))
        for name, path in self._readers.items():
            set_input_multiplier(modules[path], self._rule_factors(self.tensors[name]).forward)

    @torch.no_grad()
    def initialize(self, model: nn.Module, hps: HPs | None = None, seed: int = 0) -> None:
        """Give every tensor of the model its initial values, in place, whatever it held before.

        A tensor gets what `build_model` draws for it at the target under the seed, scaled so that its root
        mean square is that of the base model's own draw (deeper blocks: the block at the same relative depth)
        times the rule's and the HPs' factors. So the model's own way of initialising is kept, at the base bit
        by bit. Constants (gains of one, biases of zero) stay as they are; `init_std` does not move them.
        Buffers are recomputed. Draws are made on the CPU, so that they are the same on every device; a model
        sharded by `fully_shard` gets its shards of the same values, without communication.

        Raises:
            ParametrizationError: for a model of another scale or without memory, or an HP that it has no group for.
        """
        hps = self._check(hps)
        parameters = self._parameters(model)
        if any(p.is_meta for p in parameters.values()):
            raise ParametrizationError(
                "The model is on the meta device and has no memory; call model.to_empty(device=...) first."
            )
        native = build_real(self.build_model, self.target, seed)
        base = parameters_of(build_real(self.build_model, self.base, seed))
        thetas = self._thetas(hps)
        for name, drawn in parameters_of(native).items():
            tensor = self.tensors[name]
            if _is_constant(drawn):  # a gain of one or a bias of zero: what it is in the forward pass stays
                path = self._folded.get(name)
                factor = 1.0 if path is None else self._branch_multiplier(path, hps)
            else:
                factor = thetas[name] * self._rule_factors(tensor).init_std
                factor *= value_of("init_std", tensor.labels, hps, tensor.position)
                factor *= _rms(base[tensor.base_name]) / _rms(drawn)
            write_values(parameters[name], drawn * factor)
        self._copy_rest(native, model)
        self._set_hooks(model, hps)

    def _copy_rest(self, native: nn.Module, model: nn.Module) -> None:
        """Buffers and frozen tensors."""
        modules = modules_of(model)
        for path, source in modules_of(native).items():
            for name, buffer in source.named_buffers(recurse=False):
                write_values(modules[path].get_buffer(name), buffer)
            for name, parameter in source.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    write_values(modules[path].get_parameter(name), parameter)

    def param_groups(self, model: nn.Module, hps: HPs | None = None) -> list[dict[str, Any]]:
        """Parameter groups for the rule's optimizer, `torch.optim.AdamW` for most rules.

        Each has params, the optimizer's own options (AdamW: lr, betas, eps, weight_decay) and a name. Tensors
        with equal settings share a group, so that the optimizer's fused and foreach paths stay fast. This
        object remembers what it folded into which model, for `clip_grad_norm_`.

        Raises:
            ParametrizationError: for a model of another scale, an HP that it has no group for, a β outside (0, 1),
                or a rule that needs two optimizers (see `optimizers`) or one that torch does not have.
        """
        groups = self._groups(model, hps)
        if len(groups) > 1:
            raise ParametrizationError(
                f"Rule {self.rule.name!r} trains with {' and '.join(groups)}; "
                "call p.optimizers(model, hps), which makes one of each."
            )
        return groups[self.rule.optimizer]

    def optimizers(self, model: nn.Module, hps: HPs | None = None) -> list[torch.optim.Optimizer]:
        """The rule's optimizers, ready to step: one, or Muon for matrices and AdamW for the rest.

        Raises:
            ParametrizationError: as `param_groups`.
        """
        return [OPTIMIZERS[name](groups) for name, groups in self._groups(model, hps).items()]

    def _groups(self, model: nn.Module, hps: HPs | None) -> dict[str, list[dict[str, Any]]]:
        """Parameter groups by optimizer."""
        hps = self._check(hps)
        parameters = self._parameters(model)
        self._set_hooks(model, hps)
        thetas = self._thetas(hps)
        self._norm_factors_of[unwrap(model)] = self._norm_factors(hps)
        members: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name in parameters:
            tensor = self.tensors[name]
            optimizer = optimizer_of(self.rule, tensor)
            options = options_of(self.rule, optimizer, tensor, self._rule_factors(tensor), thetas[name], hps)
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
        grouped = [id(p) for of_one in groups.values() for group in of_one for p in group["params"]]
        assert len(grouped) == len(set(grouped)) == len(parameters), "groups must partition the parameters"
        return dict(groups)

    @torch.no_grad()
    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> torch.Tensor:
        """Clip gradients in place to a total norm that does not depend on the form; returns that norm.

        Folding a multiplier θ into a tensor divides its gradient by θ. So that both forms train alike, norms
        are those of one form: branch multipliers in the forward pass (a tensor into which one is folded
        counts θ times), a rule's multipliers of single tensors folded. Without any this is
        `torch.nn.utils.clip_grad_norm_`. Under `fully_shard` the norm is over all shards.

        Args:
            model: A model that `param_groups` was called with; its HPs at the last call are what counts.
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


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in parameters_of(model).values())


def _is_constant(values: torch.Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
