"""Where the multipliers of the forward pass live: folded into a tensor, or applied by a hook.

A rule has multipliers of two kinds: m_L^-α on each residual branch (`Rule.residual`), and those of single
tensors (`RoleExponents.forward`). Where that is exact they are folded into a tensor, so that the model runs
unchanged; everywhere else a hook multiplies the output of a branch or the input of a layer.

Multipliers at other places, such as the logits of attention, are the model's own (`HasMultipliers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.anatomy import Anatomy, Tensor
from transfer_bo.parametrization.base_model import BaseModel
from transfer_bo.parametrization.builds import modules_of, unwrap
from transfer_bo.parametrization.hp_values import HPs, value_of
from transfer_bo.parametrization.residual import Branch, set_input_multiplier, set_multiplier
from transfer_bo.parametrization.rules import Ratios, Role, Rule, ScalingFactors

__all__ = [
    "ForwardMultipliers",
    "HasMultipliers",
    "ResidualBranches",
    "find_residual_branches",
    "forward_values",
    "set_forward_values",
]


@runtime_checkable
class HasMultipliers(Protocol):
    """A model with multipliers at places of its forward pass, searched as HPs `forward.<name>`."""

    @property
    def multipliers(self) -> Mapping[str, float]:
        """The present values, by name."""

    def set_multipliers(self, values: Mapping[str, float]) -> None:
        """Set them; called before training, also on a model without memory."""


def forward_values(model: nn.Module) -> dict[str, float]:
    """Multipliers at places that a model names; {} for one that names none."""
    inner = unwrap(model)
    return dict(inner.multipliers) if isinstance(inner, HasMultipliers) else {}


def set_forward_values(model: nn.Module, values: Mapping[str, float]) -> None:
    """Set the multipliers that a model names, if it names any."""
    inner = unwrap(model)
    if isinstance(inner, HasMultipliers):
        inner.set_multipliers(values)


@dataclass(frozen=True)
class ResidualBranches:
    """The residual branches of the target."""

    by_path: Mapping[str, Branch]
    """Path of the branch -> the branch, whose own paths are inside its block."""
    missing: str
    """Why some branches were not found; "" if all were."""

    def block_of(self, path: str) -> str:
        """Path of the block that a branch lies in."""
        return path.removesuffix(f".{self.by_path[path].path}")

    def stack_of(self, path: str) -> str:
        """Path of the stack that a branch lies in."""
        return self.block_of(path).rpartition(".")[0]


def find_residual_branches(anatomy: Anatomy, base: BaseModel) -> ResidualBranches:
    """The branches of every block of the target: those of the base's block at the same relative depth."""
    if not anatomy.base_blocks:
        return ResidualBranches({}, "it has no stack of blocks")

    found, missing = base.branches(anatomy.base_blocks.values())
    by_path = {
        f"{block}.{branch.path}": branch
        for block, base_block in anatomy.base_blocks.items()
        for branch in found.get(base_block, ())
    }
    return ResidualBranches(by_path, missing)


class ForwardMultipliers:
    """The forward multipliers of a rule at one target, and where each of them lives.

    Args:
        anatomy: Of the target.
        branches: Of the target.
        rule: The rule.
        alpha: α.
        factors: The rule's factors by tensor.
        base: The base model.
        fold: Whether to fold what can be folded exactly.

    Raises:
        ParametrizationError: if the rule multiplies residual branches that were not found, or a tied tensor
            whose use as an unembedding is in no linear layer.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        branches: ResidualBranches,
        rule: Rule,
        alpha: float,
        factors: Mapping[str, ScalingFactors],
        base: BaseModel,
        fold: bool,
    ) -> None:
        self._tensors: Mapping[str, Tensor] = anatomy.tensors
        self._factors = factors
        self._branches = branches
        self._positions = {t.block: t.position for t in anatomy.tensors.values() if t.block is not None}
        of_stack = {
            stack: rule.residual.at(Ratios(depth=ratio), alpha) for stack, ratio in anatomy.stacks.items()
        }
        if branches.missing and any(multiplier != 1 for multiplier in of_stack.values()):
            raise ParametrizationError(
                f"Rule {rule.name!r} multiplies residual branches when depth grows, but they were not found "
                f"({branches.missing}); let every block return its input plus outputs of its modules, give "
                "inputs=(tensor, ...) if the model needs more than token numbers, or use a rule without such "
                "multipliers, e.g. 'mup'."
            )

        self._of_branch = {path: of_stack[branches.stack_of(path)] for path in branches.by_path}
        self._folded, self._hooked = self._place_branch_multipliers(fold)
        self._readers = self._place_tensor_multipliers(fold, base.modules)

    # ----------------------------------------------------------------------------------------- placement

    def _place_branch_multipliers(self, fold: bool) -> tuple[dict[str, str], dict[str, str]]:
        """Tensors of each branch's last layer -> the branch's path: folded multipliers, and hooked ones."""
        folded: dict[str, str] = {}
        hooked: dict[str, str] = {}
        for path, branch in self._branches.by_path.items():
            layer = f"{self._branches.block_of(path)}.{branch.layer}"
            carriers = folded if fold and branch.foldable else hooked
            carriers.update({name: path for name in self._tensors if name.startswith(f"{layer}.")})
        return folded, hooked

    def _place_tensor_multipliers(
        self, fold: bool, base_modules: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        """Tensors whose own multiplier is applied by hooks -> paths of the layers whose input it is on."""
        readers: dict[str, tuple[str, ...]] = {}
        for name, tensor in self._tensors.items():
            forward = self._factors[name].forward
            owner = tensor.base_name.rpartition(".")[0]
            if tensor.role is Role.TIED_EMBEDDING and forward != 1:
                if not tensor.readers:
                    raise ParametrizationError(
                        f"The tied tensor {name!r} needs a multiplier where it maps to the outputs, but is "
                        "multiplied with outside an nn.Linear there; let one hold the tied tensor."
                    )
                readers[name] = tensor.readers
                continue

            is_linear = name.endswith("weight") and isinstance(base_modules[owner], nn.Linear)
            if not fold and forward != 1 and is_linear:
                readers[name] = (name.rpartition(".")[0],)
        return readers

    # -------------------------------------------------------------------------------------------- values

    @property
    def has_blocks(self) -> bool:
        """Whether any tensor lies in a block."""
        return bool(self._positions)

    @property
    def folded(self) -> dict[str, float]:
        """The rule's branch multiplier that is folded into a tensor, for tensors that have one."""
        return {name: self._of_branch[path] for name, path in self._folded.items()}

    def is_hooked(self, name: str) -> bool:
        """Whether a multiplier that belongs to a tensor is applied by a hook."""
        return name in self._hooked or name in self._readers

    def branch_of(self, name: str) -> str | None:
        """Path of the branch whose multiplier belongs to a tensor; None if there is none."""
        return self._folded.get(name) or self._hooked.get(name)

    def of_branch(self, path: str, hps: HPs) -> float:
        """The multiplier a in x + a·F(x), for the branch at a path of the target."""
        position = self._positions[self._branches.block_of(path)]
        name = self._branches.by_path[path].name
        return self._of_branch[path] * value_of("residual", [name], hps, position)

    def of_constant(self, name: str, hps: HPs) -> float:
        """The factor on a constant tensor (a gain of one, a bias of zero): its branch's multiplier."""
        path = self._folded.get(name)
        return 1.0 if path is None else self.of_branch(path, hps)

    def theta(self, name: str, hps: HPs) -> float:
        """The folded multiplier θ of a tensor."""
        own = 1.0 if name in self._readers else self._factors[name].forward
        path = self._folded.get(name)
        return own * (1.0 if path is None else self.of_branch(path, hps))

    def norm_factors(self, hps: HPs) -> dict[str, float]:
        """What each tensor's gradient is multiplied by in the total norm: see `clip_grad_norm_`."""
        factors = {name: self.of_branch(path, hps) for name, path in self._folded.items()}
        for name in self._readers:
            if self._tensors[name].role is not Role.TIED_EMBEDDING:
                factors[name] = factors.get(name, 1.0) / self._factors[name].forward
        return factors

    def hooked(self, name: str, hps: HPs) -> float:
        """The multiplier of a tensor that hooks apply; 1 if there is none."""
        factor = self.of_branch(self._hooked[name], hps) if name in self._hooked else 1.0
        return factor * (self._factors[name].forward if name in self._readers else 1.0)

    def of_outputs(self, hps: HPs) -> dict[str, float]:
        """Path of a module -> the multiplier that a hook applies to its output, 1 included."""
        paths = self._branches.by_path.keys() - self._folded.values()
        return {path: self.of_branch(path, hps) for path in paths}

    def of_inputs(self) -> dict[str, float]:
        """Path of a layer -> the multiplier that a hook applies to its input."""
        return {path: self._factors[name].forward for name, paths in self._readers.items() for path in paths}

    def set_hooks(self, model: nn.Module, hps: HPs) -> None:
        """Register the multipliers that are not folded, in place of those registered earlier."""
        modules = modules_of(model)
        for path, factor in self.of_outputs(hps).items():
            set_multiplier(modules[path], factor)
        for path, factor in self.of_inputs().items():
            set_input_multiplier(modules[path], factor)
