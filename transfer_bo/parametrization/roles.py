"""The role of each tensor, found by building the model at several scales on the meta device.

Builds that differ only in width show which dimensions grow with it; builds that differ only in depth show
which tensors repeat, in which stack and block. Together with the kind of module that owns a tensor this gives
its role; where it does not, that is an error which says how to name the role, never a default.

Ratios are measured on the tensors themselves (a layer's own fan-in), so a model whose inner sizes are
rounded, or whose number of blocks is not the depth axis itself, gets the factors of what was really built.
Everything is kept by tensor name: attributes hung on tensors get lost in FSDP, torch.compile and torch.save.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from transfer_bo.errors import TransferError
from transfer_bo.parametrization.builds import BuildModel, build_meta, modules_of, parameters_of
from transfer_bo.parametrization.rules import Role
from transfer_bo.parametrization.structure import (
    PROBE,
    Place,
    find_stacks,
    match_blocks,
    module_types,
    place_of,
)
from transfer_bo.scale import Scale

__all__ = ["Anatomy", "Tensor", "dissect"]

GAINS = frozenset({Role.NORM_GAIN, Role.QK_NORM, Role.FINAL_NORM})


@dataclass(frozen=True)
class Tensor:
    """One trainable tensor of the target model."""

    name: str
    shape: tuple[int, ...]
    role: Role
    width: float
    """Its width ratio target/base: of the fan-in of a weight that has a growing one, else of its growing
    size."""
    depth: float
    """Its stack's ratio of blocks target/base; 1 outside a stack."""
    module_type: str
    """The layer's name within its block, e.g. "q"."""
    labels: tuple[str, ...]
    """Every group it belongs to: module type and families."""
    base_name: str
    """The tensor of the base model that it corresponds to, by relative depth."""
    block: str | None
    """Path of its block, e.g. "blocks.3"; None outside a stack."""
    branch: str | None
    """Name of the submodule of its block that it lies in, if that may be a residual branch; e.g. "attn"."""


@dataclass(frozen=True)
class Anatomy:
    """The tensors of the target by name, and how blocks correspond."""

    tensors: dict[str, Tensor]
    base_blocks: dict[str, str]
    """Block of the base model for each block of the target, by relative depth."""
    stacks: dict[str, float]
    """Ratio of blocks target/base for each stack, e.g. {"blocks": 4.0}."""


def dissect(
    build_model: BuildModel, base: Scale, target: Scale, roles: Mapping[str, str] | None = None
) -> Anatomy:
    """Find the role, the ratios and the groups of every trainable tensor of the target model.

    Args:
        build_model: The model at a scale.
        base: Where base hyperparameters are defined.
        target: Same axes as the base.
        roles: Role by name pattern (as in a shell: `*`, `?`), first match wins; overrules what is inferred.

    Raises:
        TransferError: if builds fail or ignore an axis, a tensor is tied, a role cannot be inferred, or a
            pattern matches nothing.
    """
    base_model = build_meta(build_model, base)
    target_model = build_meta(build_model, target)
    _refuse_tied(target_model)
    modules = modules_of(target_model)
    shapes = _shapes(target_model)
    names = list(shapes)

    growth, ratios = _measure_width(build_model, base, target, shapes)
    base_blocks_of, target_blocks_of = find_stacks(build_model, base, base_model, target_model)
    places = {name: place_of(name, target_blocks_of) for name in names}
    stacks = {s: len(target_blocks_of[s]) / len(base_blocks_of[s]) for s in base_blocks_of}
    if target.get("depth") != base.get("depth") and all(ratio == 1 for ratio in stacks.values()):
        raise TransferError(
            f"build_model ignores depth: it builds as many blocks at {target} as at {base}; "
            "use scale.depth in it."
        )

    inferred = _Inference(modules, shapes, growth, places, roles or {}).run()
    branches = _branches(places, inferred)
    types = module_types(places)
    base_names = set(parameters_of(base_model))
    base_blocks = match_blocks(base_blocks_of, target_blocks_of)
    tensors = {}
    for name in names:
        place, role = places[name], inferred[name]
        block = place.block_path
        base_name = name if block is None else f"{base_blocks[block]}.{place.inner}"
        if base_name not in base_names:
            raise TransferError(
                f"Tensor {name!r} of the target has no counterpart {base_name!r} in the base model; "
                "make build_model give every scale the same layers."
            )
        tensors[name] = Tensor(
            name=name,
            shape=shapes[name],
            role=role,
            width=_width_ratio(name, role, growth[name], ratios[name], modules),
            depth=1.0 if place.stack is None else stacks[place.stack],
            module_type=types[name],
            labels=_labels(types[name], role, branches[name]),
            base_name=base_name,
            block=block,
            branch=branches[name],
        )
    return Anatomy(tensors, base_blocks, stacks)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in parameters_of(model).items()}


def _refuse_tied(model: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            raise TransferError(
                f"Tensors {first!r} and {name!r} are one tied tensor, which no rule knows; untie them."
            )


# ---------------------------------------------------------------------------------------------- width


def _measure_width(
    build_model: BuildModel, base: Scale, target: Scale, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[bool, ...]], dict[str, tuple[float, ...]]]:
    """Per dimension of each tensor: does it grow with width, and by which factor from the base."""
    if "width" not in base:
        raise TransferError(f"{base} has no axis 'width'; give it one, so that growing sizes can be seen.")

    def at_width(width: float) -> dict[str, tuple[int, ...]]:
        scale = target.replace(width=width)
        built = _shapes(build_meta(build_model, scale))
        differing = set(built) ^ set(shapes)
        if differing:
            raise TransferError(
                f"build_model gives other tensors at width {width:g} than at width {target.width:g} "
                f"({min(differing)!r} is in one only); make width change sizes alone."
            )
        return built

    narrow, wide = at_width(base.width), at_width(PROBE * base.width)
    growth = {n: tuple(w != s for s, w in zip(narrow[n], wide[n], strict=True)) for n in shapes}
    ratios = {n: tuple(t / s for s, t in zip(narrow[n], shapes[n], strict=True)) for n in shapes}
    if not any(map(any, growth.values())):
        raise TransferError(
            f"build_model ignores width: every tensor has the same shape at width {base.width:g} and "
            f"{PROBE * base.width:g}; use scale.width in it."
        )
    return growth, ratios


def _width_ratio(
    name: str,
    role: Role,
    growth: tuple[bool, ...],
    ratios: tuple[float, ...],
    modules: Mapping[str, nn.Module],
) -> float:
    owner, is_weight = _owner(name, modules)
    if role in (Role.HIDDEN_WEIGHT, Role.UNEMBEDDING) and is_weight and isinstance(owner, nn.Linear):
        return ratios[1]  # nn.Linear keeps (out, in)
    growing = {ratio for ratio, grows in zip(ratios, growth, strict=True) if grows}
    if len(growing) > 1:
        raise TransferError(
            f"The fan-in of tensor {name!r} can't be told: its dimensions grow by different factors "
            f"{', '.join(f'{r:g}' for r in sorted(growing))}; make it the weight of an nn.Linear."
        )
    return growing.pop() if growing else 1.0


# ---------------------------------------------------------------------------------------------- roles


def _owner(name: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, bool]:
    """The module that holds a tensor, and whether the tensor is called its weight."""
    path, _, last = name.rpartition(".")
    return modules[path], last == "weight"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


@dataclass
class _Inference:
    modules: Mapping[str, nn.Module]
    shapes: Mapping[str, tuple[int, ...]]
    growth: Mapping[str, tuple[bool, ...]]
    places: Mapping[str, Place]
    given: Mapping[str, str]

    def run(self) -> dict[str, Role]:
        """The role of every tensor: weights first, then vectors, by the weights around them."""
        roles = self._given()
        for name, grows in self.growth.items():
            if name not in roles and len(grows) >= 2:
                roles[name] = self._weight(name, grows)
        order = list(self.growth)
        hidden = [i for i, name in enumerate(order) if roles.get(name) is Role.HIDDEN_WEIGHT]
        for i, name in enumerate(order):
            if name not in roles:
                before_hidden = not hidden or i < hidden[0]
                after_hidden = bool(hidden) and i > hidden[-1]
                roles[name] = self._vector(name, roles, before_hidden, after_hidden)
        return {name: roles[name] for name in order}

    def _given(self) -> dict[str, Role]:
        roles: dict[str, Role] = {}
        for pattern, role in self.given.items():
            if role not in list(Role):
                raise TransferError(
                    f"roles: {role!r} for pattern {pattern!r} is no role; use one of {', '.join(Role)}."
                )
            matched = [name for name in self.growth if fnmatch.fnmatchcase(name, pattern)]
            if not matched:
                raise TransferError(f"roles: pattern {pattern!r} matches no tensor; mend it or leave it out.")
            for name in matched:
                roles.setdefault(name, Role(role))
        return roles

    def _weight(self, name: str, grows: tuple[bool, ...]) -> Role:
        owner, is_weight = _owner(name, self.modules)
        inside = self.places[name].stack is not None
        if all(grows) and len(grows) == 2:
            return Role.HIDDEN_WEIGHT
        if isinstance(owner, nn.Embedding) and grows == (False, True) and not inside:
            return Role.INPUT_EMBEDDING
        if isinstance(owner, nn.Linear) and is_weight and not inside:
            if grows == (True, False):
                return Role.INPUT_EMBEDDING
            if grows == (False, True):
                return Role.UNEMBEDDING
        raise self._unknown(name)

    def _vector(self, name: str, roles: Mapping[str, Role], before_hidden: bool, after_hidden: bool) -> Role:
        owner, _ = _owner(name, self.modules)
        inside = self.places[name].stack is not None
        grows = any(self.growth[name])
        if len(self.growth[name]) != 1:
            raise self._unknown(name)
        if _is_norm(owner):
            if inside:
                return Role.NORM_GAIN if grows else Role.QK_NORM
            if not grows:
                raise self._unknown(name)
            if after_hidden:
                return Role.FINAL_NORM
            return Role.INPUT_BIAS if before_hidden else Role.NORM_GAIN
        weight = roles.get(name.rpartition(".")[0] + ".weight") if name.endswith(".bias") else None
        if weight is not None:
            bias_of = {
                Role.INPUT_EMBEDDING: Role.INPUT_BIAS,
                Role.HIDDEN_WEIGHT: Role.HIDDEN_BIAS,
                Role.UNEMBEDDING: Role.OUTPUT_BIAS,
            }
            if weight in bias_of:
                return bias_of[weight]
        raise self._unknown(name)

    def _unknown(self, name: str) -> TransferError:
        owner, _ = _owner(name, self.modules)
        sizes = " x ".join(
            f"{size} ({'grows' if g else 'fixed'})"
            for size, g in zip(self.shapes[name], self.growth[name], strict=True)
        )
        where = "inside" if self.places[name].stack is not None else "outside"
        return TransferError(
            f"The role of tensor {name!r} ({sizes or 'a scalar'}, in a {type(owner).__name__} {where} the "
            f"blocks) can't be inferred; say it with roles={{{name!r}: ...}}, one of {', '.join(Role)}."
        )


# ---------------------------------------------------------------------------------------------- groups


def _branches(places: Mapping[str, Place], roles: Mapping[str, Role]) -> dict[str, str | None]:
    """Per tensor, the child of its block that it lies in, if that has layers and a hidden weight."""

    def child(name: str) -> tuple[str | None, str] | None:
        first, _, rest = places[name].inner.partition(".")
        return (places[name].block_path, first) if places[name].stack is not None and "." in rest else None

    found = {child(name) for name, role in roles.items() if role is Role.HIDDEN_WEIGHT} - {None}
    return {name: at[1] if (at := child(name)) is not None and at in found else None for name in places}


def _labels(module_type: str, role: Role, branch: str | None) -> tuple[str, ...]:
    labels = [module_type]
    if branch is not None and role not in GAINS:
        labels.append(branch)
    if role is Role.HIDDEN_WEIGHT:
        labels.append("hidden")
    if role in GAINS:
        labels.append("norm")
    if role is Role.QK_NORM:
        labels.append("qk_norm")
    return tuple(dict.fromkeys(labels))
