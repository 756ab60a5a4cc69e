"""Each tensor of the target model: its role, its ratios target/base, its groups.

Builds on the meta device that differ only in width show which dimensions grow with it; builds that differ
only in depth show which tensors repeat, in which stack and block; a run of the base model shows how each is
used (`trace.py`). What does not follow from these is an error that asks for the role, never a default.

Ratios are measured on the tensors themselves (a layer's own fan-in), so a model whose inner sizes are
rounded, or whose number of blocks is not the depth axis itself, gets the factors of what was really built.
Everything is kept by tensor name: FSDP, torch.compile and torch.save lose attributes of tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.base_model import BaseModel
from transfer_bo.parametrization.builds import modules_of
from transfer_bo.parametrization.role_inference import MATRICES, TensorObservations, infer_roles
from transfer_bo.parametrization.rules import Role
from transfer_bo.parametrization.structure import (
    PROBE,
    Place,
    Stack,
    base_name_of,
    find_stacks,
    module_types,
    place_of,
)
from transfer_bo.parametrization.trace import Trace, most_similar
from transfer_bo.scale import Scale

__all__ = ["Anatomy", "Tensor", "dissect"]

_WIDTHS = ("width", "expert_width")
"""Axes that sizes of the model grow with."""
_ADAPTERS = {Role.WIDE_TO_NARROW: Role.ADAPTER_DOWN, Role.NARROW_TO_WIDE: Role.ADAPTER_UP}
"""Roles of tensors whose fixed size is the rank."""
GAINS = frozenset({Role.NORM_GAIN, Role.QK_NORM, Role.FINAL_NORM})
"""Roles of the group "norm"."""
_HIDDEN = MATRICES | {Role.NARROW_TO_WIDE, Role.WIDE_TO_NARROW, Role.ROUTER, *_ADAPTERS.values()}
"""Roles of the group "hidden"."""


@dataclass(frozen=True)
class Tensor:
    """One trainable tensor of the target model."""

    name: str
    shape: tuple[int, ...]
    role: Role
    width: float
    """Width ratio target/base: of the fan-in of a weight if that grows, else of the dimension that grows, or
    else of the scale."""
    fan_out: float
    """Likewise of the fan-out."""
    depth: float
    """Its stack's ratio of blocks target/base; 1 outside a stack."""
    module_type: str
    """The layer's name within its block, e.g. "q"."""
    labels: tuple[str, ...]
    """Every group it belongs to: module type and families."""
    base_name: str
    """The tensor of the base model that it corresponds to, by relative depth."""
    base_shape: tuple[int, ...]
    block: str | None
    """Path of its block, e.g. "blocks.3"; None outside a stack."""
    position: float | None
    """Relative depth of its block's middle, (i + 1/2) / L in (0, 1); None outside a stack."""
    branch: str | None
    """Name of the block's submodule that holds it, if that may be a residual branch; e.g. "attn"."""
    rank: float = 1.0
    """Ratio of ranks target/base, for a tensor whose shape depends on the axis `rank`."""
    readers: tuple[str, ...] = ()
    """Of a tied embedding: paths of the linear layers that map to the outputs with it; () if others do."""


@dataclass(frozen=True)
class Anatomy:
    """The tensors of the target by name, and how its blocks correspond to those of the base."""

    tensors: dict[str, Tensor]
    """By name, in the model's order."""
    base_blocks: dict[str, str]
    """Block of the base model for each block of the target, by relative depth."""
    stacks: dict[str, float]
    """Ratio of blocks target/base for each stack, e.g. {"blocks": 4.0}."""


def dissect(base: BaseModel, target: Scale, roles: Mapping[str, str] | None = None) -> Anatomy:
    """Find the role, the ratios and the groups of every trainable tensor of the target model.

    Args:
        base: The base model. If no call of it works, roles are inferred from the kinds of layers.
        target: Has the same axes as the base.
        roles: Role by name pattern (as in a shell: `*`, `?`); the first match overrules what is inferred.

    Raises:
        ParametrizationError: if builds fail or ignore an axis, a role cannot be inferred, or a pattern
            matches nothing.
    """
    base_shapes, shapes = base.shapes(base.scale), base.shapes(target)
    if not shapes:
        raise ParametrizationError(
            "All tensors of the model are frozen, so there is nothing to set; leave requires_grad true for "
            "those that are trained."
        )
    growth = _measure_width(base, target)
    stacks = {} if _all_blocks_are_frozen(base) else find_stacks(base.shapes, base.scale, target)
    if base.call.trace is None:
        _refuse_tied(base.meta(target))
    other_depth = target.get("depth") != base.scale.get("depth")
    if other_depth and stacks and all(stack.depth == 1 for stack in stacks.values()):
        raise ParametrizationError(
            f"build_model ignores depth: it builds as many blocks at {target} as at {base.scale}; "
            "use scale.depth in it."
        )

    base_names = {name: _base_name(name, stacks, base_shapes) for name in shapes}
    trace = base.call.trace or Trace({}, frozenset())
    blocks = {path: stack for path, stack in stacks.items() if not _holds_heads(path, trace)}
    places = {name: place_of(name, blocks) for name in shapes}
    observations = TensorObservations(
        modules=modules_of(base.meta(target)),
        shapes=shapes,
        growth=growth,
        places=places,
        base_names=base_names,
        trace=trace,
        not_run=base.call.reason,
    )
    ranked = _depends_on_rank(base)
    inferred = {
        name: _ADAPTERS.get(role, role) if base_names[name] in ranked else role
        for name, role in infer_roles(observations, roles or {}).items()
    }
    rank_ratio = target.rank / base.scale.rank if ranked else 1.0
    scale_ratio = target.width / base.scale.width
    branches = _branches(places, inferred)
    types = module_types(shapes, stacks)

    tensors = {}
    for name, shape in shapes.items():
        place, role = places[name], inferred[name]
        ratios = tuple(t / b for t, b in zip(shape, base_shapes[base_names[name]], strict=True))
        width, fan_out = observations.ratios(name, ratios, scale_ratio)
        tensors[name] = Tensor(
            name=name,
            shape=shape,
            role=role,
            width=width,
            fan_out=fan_out,
            depth=1.0 if place.stack is None else blocks[place.stack].depth,
            module_type=types[name],
            labels=_labels(types[name], role, branches[name]),
            base_name=base_names[name],
            base_shape=base_shapes[base_names[name]],
            block=place.block_path,
            position=_position(place, blocks),
            branch=branches[name],
            rank=rank_ratio if base_names[name] in ranked else 1.0,
            readers=_readers(name, observations, base) if role is Role.TIED_EMBEDDING else (),
        )

    base_blocks = {
        _join(path, number): _join(path, match)
        for path, stack in blocks.items()
        for number, match in stack.blocks.items()
        if match is not None
    }
    return Anatomy(tensors, base_blocks, {path: stack.depth for path, stack in blocks.items()})


def _holds_heads(path: str, trace: Trace) -> bool:
    """Whether a container holds output heads instead of blocks: nothing outside a child depends on it."""
    prefix = f"{path}." if path else ""

    def child(name: str) -> str | None:
        number = name.removeprefix(prefix).partition(".")[0]
        return number if name.startswith(prefix) and number.isdigit() else None

    depends_on_other_child = any(
        child(name) is not None and child(name) != child(user)
        for user, uses in trace.uses.items()
        for use in uses
        for name in use.upstream
    )
    return any(child(name) is not None for name in trace.heads) and not depends_on_other_child


def _readers(name: str, observations: TensorObservations, base: BaseModel) -> tuple[str, ...]:
    """Paths of the target's linear layers that hold a tied embedding; none if it is multiplied elsewhere."""
    if not all(isinstance(base.modules.get(path), nn.Linear) for path in observations.matmuls(name)):
        return ()
    path, _, last = name.rpartition(".")
    tensor = getattr(observations.modules[path], last)
    return tuple(
        path
        for path, module in observations.modules.items()
        if isinstance(module, nn.Linear) and module.weight is tensor
    )


def _position(place: Place, stacks: Mapping[str, Stack]) -> float | None:
    if place.stack is None or place.block is None:
        return None
    blocks = sorted(stacks[place.stack].blocks)
    return (blocks.index(place.block) + 0.5) / len(blocks)


def _join(path: str, number: int) -> str:
    return f"{path}.{number}".lstrip(".")


def _base_name(name: str, stacks: Mapping[str, Stack], base_names: Collection[str]) -> str:
    found = base_name_of(name, stacks)
    if found is not None and found not in base_names:
        # The target has more experts than the base: it is another one of its block.
        found = most_similar(found, base_names)
    if found is None:
        raise ParametrizationError(
            f"Tensor {name!r} of the target has no counterpart in the base model; "
            "make build_model give every scale the same layers."
        )
    return found


def _refuse_tied(model: nn.Module) -> None:
    first_names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(parameter), name)
        if first != name:
            raise ParametrizationError(
                f"Tensors {first!r} and {name!r} are one tied tensor whose use is not known, as "
                "the model could not be called; give inputs=(tensor, ...) or untie them."
            )


def _all_blocks_are_frozen(base: BaseModel) -> bool:
    """Whether what repeats with the depth is not trained: a new head on a frozen model.

    Raises:
        ParametrizationError: if more blocks have no more tensors, because they share them.
    """
    if "depth" not in base.scale:
        return False
    deeper = base.scale.replace(depth=PROBE * base.scale.depth)
    same_trained = base.shapes(base.scale).keys() == base.shapes(deeper).keys()

    def more(unique: bool) -> bool:
        before, after = (
            base.meta(scale).named_parameters("", True, unique) for scale in (base.scale, deeper)
        )
        return len(list(before)) < len(list(after))

    if more(unique=False) and not more(unique=True):
        raise ParametrizationError(
            "The blocks of the model share their tensors, so depth adds none, and no rule is stated for "
            "them; leave depth out of the scale, or give each block tensors of its own."
        )
    return same_trained and more(unique=True)


def _depends_on_rank(base: BaseModel) -> frozenset[str]:
    """Tensors of the base whose shapes depend on its rank.

    Raises:
        ParametrizationError: if there are none, though the scale has a rank.
    """
    if "rank" not in base.scale:
        return frozenset()
    # Smaller, if that is possible: the base's may be the largest.
    other = base.scale.replace(rank=base.scale.rank // 2 or PROBE)
    shapes, others = base.shapes(base.scale), base.shapes(other)
    found = frozenset(name for name, shape in shapes.items() if others.get(name) != shape)
    if not found:
        raise ParametrizationError(
            f"build_model ignores rank: every tensor has the same shape at rank {base.scale.rank:g} and "
            f"{other.rank:g}; use scale.rank in it, or leave it out of the scale."
        )
    return found


def _measure_width(base: BaseModel, target: Scale) -> dict[str, tuple[bool, ...]]:
    """Per dimension of each tensor of the target: whether it grows with the width, or that of experts."""
    # At one rank, as a larger one than the smallest width is no rank.
    target = target.replace(**{axis: base.scale[axis] for axis in ("rank",) if axis in target})
    shapes = base.shapes(target)

    def at_width(factor: float) -> dict[str, tuple[int, ...]]:
        widths = {axis: factor * base.scale[axis] for axis in _WIDTHS if axis in target}
        built = base.shapes(target.replace(**widths))
        differing = set(built) ^ set(shapes)
        if differing:
            raise ParametrizationError(
                f"build_model gives other tensors at width {widths['width']:g} than at width "
                f"{target.width:g} ({min(differing)!r} is in one only); make width change sizes alone."
            )
        return built

    narrow, wide = at_width(1), at_width(PROBE)
    # The target is compared too: sizes that are rounded up may be equal at the base and a little above it.
    growth = {
        name: tuple(len(set(sizes)) > 1 for sizes in zip(narrow[name], wide[name], shape, strict=True))
        for name, shape in shapes.items()
    }

    if not any(map(any, growth.values())):
        raise ParametrizationError(
            f"build_model ignores width: every tensor has the same shape at width {base.scale.width:g} and "
            f"{PROBE * base.scale.width:g}; use scale.width in it."
        )
    return growth


# ---------------------------------------------------------------------------------------------- groups


def _branches(places: Mapping[str, Place], roles: Mapping[str, Role]) -> dict[str, str | None]:
    """Per tensor, the child of its block that holds it, if that has layers and a hidden weight."""

    def child(name: str) -> tuple[str | None, str] | None:
        first, _, inner = places[name].inner.partition(".")
        return (places[name].block_path, first) if places[name].stack is not None and "." in inner else None

    found = {child(name) for name, role in roles.items() if role in MATRICES} - {None}
    return {name: at[1] if (at := child(name)) is not None and at in found else None for name in places}


def _labels(module_type: str, role: Role, branch: str | None) -> tuple[str, ...]:
    labels = [module_type]
    if branch is not None and role not in GAINS:
        labels.append(branch)
    if role in _HIDDEN:
        labels.append("hidden")
    if role in GAINS:
        labels.append("norm")
    if role is Role.QK_NORM:
        labels.append("qk_norm")
    return tuple(dict.fromkeys(labels))
