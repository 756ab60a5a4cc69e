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

import torch
from torch import nn

from transfer_bo.errors import ParametrizationError, ScaleError
from transfer_bo.parametrization.builds import (
    BuildModel,
    build_meta,
    build_real,
    modules_of,
    parameters_of,
)
from transfer_bo.parametrization.example_inputs import ExampleCall, call_with_example_inputs
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

GAINS = frozenset({Role.NORM_GAIN, Role.QK_NORM, Role.FINAL_NORM})
"""Roles of the group "norm"."""
_HIDDEN = MATRICES | {Role.NARROW_TO_WIDE, Role.WIDE_TO_NARROW, Role.ROUTER}
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
    reader: str | None = None
    """Of a tied embedding: path of the module that maps to the outputs with it."""


@dataclass(frozen=True)
class Anatomy:
    """The tensors of the target by name, and how its blocks correspond to those of the base."""

    tensors: dict[str, Tensor]
    """By name, in the model's order."""
    base_blocks: dict[str, str]
    """Block of the base model for each block of the target, by relative depth."""
    stacks: dict[str, float]
    """Ratio of blocks target/base for each stack, e.g. {"blocks": 4.0}."""
    call: ExampleCall
    """A call of the base model."""
    attention: str
    """Why its attention does not transfer over widths; "" if no reason was found."""


def dissect(
    build_model: BuildModel,
    base: Scale,
    target: Scale,
    roles: Mapping[str, str] | None = None,
    inputs: tuple[torch.Tensor, ...] | None = None,
) -> Anatomy:
    """Find the role, the ratios and the groups of every trainable tensor of the target model.

    Args:
        build_model: Gives the model at a scale.
        base: Where base hyperparameters are defined.
        target: Has the same axes.
        roles: Role by name pattern (as in a shell: `*`, `?`); the first match overrules what is inferred.
        inputs: What the base model is called with; guessed if not given. If no call works, roles are inferred
            from the kinds of layers.

    Raises:
        ParametrizationError: if builds fail or ignore an axis, a role cannot be inferred, or a pattern
            matches nothing.
        ScaleError: if the base has no axis `width`.
    """
    if "width" not in base:
        raise ScaleError(f"{base} has no axis 'width'; give it one, so that growing sizes can be found.")
    builds = _Builds(build_model)
    base_shapes, shapes = builds.shapes(base), builds.shapes(target)
    growth = _measure_width(builds, base, target)
    stacks = find_stacks(builds.shapes, base, target)
    call = call_with_example_inputs(build_real(build_model, base, seed=0).eval(), inputs)

    if call.trace is None:
        _refuse_tied(builds.model(target))
    if target.get("depth") != base.get("depth") and all(stack.depth == 1 for stack in stacks.values()):
        raise ParametrizationError(
            f"build_model ignores depth: it builds as many blocks at {target} as at {base}; "
            "use scale.depth in it."
        )

    places = {name: place_of(name, stacks) for name in shapes}
    base_names = {name: _base_name(name, stacks, base_shapes) for name in shapes}

    observations = TensorObservations(
        modules=modules_of(builds.model(target)),
        shapes=shapes,
        growth=growth,
        places=places,
        base_names=base_names,
        trace=call.trace or Trace({}, frozenset()),
        not_run=call.reason,
    )
    inferred = infer_roles(observations, roles or {})
    scale_ratio = target.width / base.width
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
            depth=1.0 if place.stack is None else stacks[place.stack].depth,
            module_type=types[name],
            labels=_labels(types[name], role, branches[name]),
            base_name=base_names[name],
            base_shape=base_shapes[base_names[name]],
            block=place.block_path,
            position=_position(place, stacks),
            branch=branches[name],
            reader=observations.reader(name) if role is Role.TIED_EMBEDDING else None,
        )
    base_blocks = {
        _join(path, number): _join(path, match)
        for path, stack in stacks.items()
        for number, match in stack.blocks.items()
        if match is not None
    }
    attention = _attention(build_model, base, call) if target.width != base.width else ""
    return Anatomy(tensors, base_blocks, {path: s.depth for path, s in stacks.items()}, call, attention)


def _position(place: Place, stacks: Mapping[str, Stack]) -> float | None:
    if place.stack is None or place.block is None:
        return None
    blocks = sorted(stacks[place.stack].blocks)
    return (blocks.index(place.block) + 0.5) / len(blocks)


def _join(path: str, number: int) -> str:
    return f"{path}.{number}".lstrip(".")


class _Builds:
    """Builds on the meta device, each scale once."""

    def __init__(self, build_model: BuildModel) -> None:
        self._build = build_model
        self._models: dict[Scale, nn.Module] = {}

    def model(self, scale: Scale) -> nn.Module:
        if scale not in self._models:
            self._models[scale] = build_meta(self._build, scale)
        return self._models[scale]

    def shapes(self, scale: Scale) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in parameters_of(self.model(scale)).items()}


def _base_name(name: str, stacks: Mapping[str, Stack], base_names: Collection[str]) -> str:
    found = base_name_of(name, stacks)
    if found is not None and found not in base_names:
        found = most_similar(
            found, base_names
        )  # the target has more experts than the base: another one of its block
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


def _measure_width(builds: _Builds, base: Scale, target: Scale) -> dict[str, tuple[bool, ...]]:
    """Per dimension of each tensor of the target: whether it grows with the width."""
    shapes = builds.shapes(target)

    def at_width(width: float) -> dict[str, tuple[int, ...]]:
        built = builds.shapes(target.replace(width=width))
        differing = set(built) ^ set(shapes)
        if differing:
            raise ParametrizationError(
                f"build_model gives other tensors at width {width:g} than at width {target.width:g} "
                f"({min(differing)!r} is in one only); make width change sizes alone."
            )
        return built

    narrow, wide = at_width(base.width), at_width(PROBE * base.width)
    # The target is compared too: sizes that are rounded up may be equal at the base and a little above it.
    growth = {
        name: tuple(len(set(sizes)) > 1 for sizes in zip(narrow[name], wide[name], shape, strict=True))
        for name, shape in shapes.items()
    }

    if not any(map(any, growth.values())):
        raise ParametrizationError(
            f"build_model ignores width: every tensor has the same shape at width {base.width:g} and "
            f"{PROBE * base.width:g}; use scale.width in it."
        )
    return growth


def _attention(build_model: BuildModel, base: Scale, call: ExampleCall) -> str:
    """Why attention does not transfer: heads grow with the width and scores are not divided by their size.

    Queries and keys align in training, so that their products grow in proportion to the size of the heads.
    """
    if call.trace is None or not call.trace.attention:
        return ""
    wide = base.replace(width=PROBE * base.width)
    wider = call_with_example_inputs(build_real(build_model, wide, seed=0).eval(), call.arguments)
    for (size, scale), (wide_size, wide_scale) in zip(
        call.trace.attention, () if wider.trace is None else wider.trace.attention, strict=False
    ):
        if wide_size * wide_scale > 1.01 * size * scale:
            return (
                f"attention heads grow with the width (size {size} at width {base.width:g}, {wide_size} at "
                f"{wide.width:g}) and scores are not divided by it"
            )
    return ""


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
