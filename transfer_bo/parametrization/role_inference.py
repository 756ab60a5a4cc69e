"""From what is known about a tensor to its role.

What counts, in this order: what the user specified; what the tensor's dimensions are summed over when the model
runs (`trace.py`), or, where it was not seen running, which kind of layer holds it; which of them grow with
width; whether it stands inside a stack of blocks. Names decide only that a layer's "bias" goes with its
"weight".
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.builds import parameters_of
from transfer_bo.parametrization.rules import Role
from transfer_bo.parametrization.structure import Place
from transfer_bo.parametrization.trace import INPUT, Trace, Use

__all__ = ["MATRICES", "TensorObservations", "infer_roles"]

MATRICES = frozenset({Role.HIDDEN_WEIGHT, Role.EXPERT_UP, Role.EXPERT_DOWN, Role.CONV_KERNEL})
"""Hidden weights proper: they map the width to the width."""

_BIAS_OF = {
    Role.INPUT_EMBEDDING: Role.INPUT_BIAS,
    Role.HIDDEN_WEIGHT: Role.HIDDEN_BIAS,
    Role.CONV_KERNEL: Role.HIDDEN_BIAS,
    Role.NARROW_TO_WIDE: Role.HIDDEN_BIAS,
    Role.WIDE_TO_NARROW: Role.SHARED,
    Role.ROUTER: Role.SHARED,
    Role.SHARED: Role.SHARED,
    Role.UNEMBEDDING: Role.OUTPUT_BIAS,
    Role.TIED_EMBEDDING: Role.OUTPUT_BIAS,
    Role.FIXED: Role.FIXED,
}


@dataclass(frozen=True)
class TensorObservations:
    """What is known about the tensors of the target; everything by name."""

    modules: Mapping[str, nn.Module]
    shapes: Mapping[str, tuple[int, ...]]
    growth: Mapping[str, tuple[bool, ...]]
    """Per dimension: does it grow with width."""
    places: Mapping[str, Place]
    base_names: Mapping[str, str]
    trace: Trace
    """Of the base model, so by its names."""
    not_run: str
    """Why the base model could not be called; "" if it was."""

    def owner(self, name: str) -> nn.Module:
        """The module that holds the tensor."""
        return self.modules[name.rpartition(".")[0]]

    def uses(self, name: str) -> tuple[Use, ...]:
        """How the tensor was seen being used; () if it was not."""
        return self.trace.uses.get(self.base_names[name], ())

    def is_gate(self, name: str) -> bool:
        """Whether its product goes into a softmax, sigmoid or top-k."""
        return self.base_names[name] in self.trace.gates

    def weight_of(self, bias: str) -> str | None:
        """Name of the weight that a layer has beside a bias; the weight may be tied, and so another's too."""
        path, _, last = bias.rpartition(".")
        weight = getattr(self.modules[path], last.replace("bias", "weight"), None)
        if "bias" not in last or weight is None:
            return None
        return self._names.get(id(weight))

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in parameters_of(self.modules[""]).items()}

    def reader(self, name: str) -> str | None:
        """Path of the module that multiplies with the tensor."""
        return next((u.module for u in self.uses(name) if u.how == "matmul"), None)

    def axes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Dimensions that are fan-in and fan-out; None if the tensor is not multiplied with."""
        how = {use.how for use in self.uses(name)}
        if "composed" in how:
            return None
        seen = {(u.fan_in, u.fan_out) for u in self.uses(name) if u.how in ("matmul", "conv")}
        if len(seen) == 1:
            return seen.pop()
        if len(seen) > 1:  # used both ways: all dimensions are both
            every = tuple(range(len(self.shapes[name])))
            return every, every
        owner = self.owner(name)
        if (
            isinstance(owner, nn.RNNBase)
            and how <= {"other"}
            and name.rpartition(".")[2].startswith("weight_")
        ):
            return (1,), (0,)  # a recurrent layer may run as one operation
        if name.endswith("weight") and not how:
            kernel = tuple(range(2, len(self.shapes[name])))
            if isinstance(owner, nn.Linear):
                return (1,), (0,)
            if isinstance(owner, _ConvTransposeNd):
                return (0, *kernel), (1,)
            if isinstance(owner, _ConvNd):
                return (1, *kernel), (0,)
        return None

    def ratios(self, name: str, ratios: tuple[float, ...], otherwise: float) -> tuple[float, float]:
        """Width ratios of fan-in and fan-out, given the ratio of each dimension.

        Where only one of them grows, or there is but one, it counts for both; where nothing grows, the
        model's own ratio does.
        """
        growing = [r for r, grows in zip(ratios, self.growth[name], strict=True) if grows]
        if not growing:
            return otherwise, otherwise
        axes = self.axes(name)
        if axes is not None and axes[0] != axes[1]:
            fan_in, fan_out = ([d for d in dims if self.growth[name][d]] for dims in axes)
            if fan_in and fan_out:
                return math.prod(ratios[d] for d in fan_in), math.prod(ratios[d] for d in fan_out)
        if len(set(growing)) > 1:
            raise ParametrizationError(
                f"The fan-in of tensor {name!r} can't be told: its dimensions grow by different factors "
                f"{', '.join(f'{r:g}' for r in sorted(set(growing)))}; make it the weight of an nn.Linear."
            )
        return growing[0], growing[0]


def infer_roles(observations: TensorObservations, given: Mapping[str, str]) -> dict[str, Role]:
    """The role of every tensor.

    Args:
        observations: What is known.
        given: Role by name pattern, first match wins.

    Raises:
        ParametrizationError: for a tensor whose role is not clear, a role that does not exist, or a pattern that
            matches nothing.
    """
    roles = _given(observations, given)
    specified = frozenset(roles)
    vectors = []
    for name, grows in observations.growth.items():
        if name not in roles:
            role = _weight(observations, name, grows) if len(grows) >= 2 else None
            if role is not None:
                roles[name] = role
            else:
                vectors.append(name)
    _correct_ends(observations, roles, specified)
    _find_experts(observations, roles, specified)
    order = _Order(observations, roles)
    for name in vectors:
        role = _vector(observations, name, roles, order)
        if role is None:
            raise _unknown(observations, name)
        roles[name] = role
    return {name: roles[name] for name in observations.shapes}


def _given(observations: TensorObservations, given: Mapping[str, str]) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for pattern, role in given.items():
        if role not in list(Role):
            raise ParametrizationError(
                f"roles: {role!r} for pattern {pattern!r} is no role; use one of {', '.join(Role)}."
            )
        matched = [name for name in observations.shapes if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise ParametrizationError(f"roles: pattern {pattern!r} matches no tensor; mend it or leave it out.")
        for name in matched:
            roles.setdefault(name, Role(role))
    return roles


class _Order:
    """What comes before, and what after every hidden weight: as seen, or else as the model lists it."""

    def __init__(self, observations: TensorObservations, roles: Mapping[str, Role]) -> None:
        self._observations = observations
        hidden = [name for name, role in roles.items() if role in MATRICES]
        self._names = list(observations.shapes)
        self._places = [self._names.index(name) for name in hidden]
        self._hidden = {observations.base_names[name] for name in hidden}
        self._into = _upstream(observations, hidden)

    def is_before(self, name: str) -> bool:
        """Whether what it is used with does not depend on any hidden weight."""
        if self._observations.uses(name):
            return not _upstream(self._observations, [name]) & self._hidden
        return not self._places or self._names.index(name) < min(self._places)

    def is_after(self, name: str) -> bool:
        """Whether no hidden weight's input depends on it, though there are such weights."""
        if self._observations.uses(name):
            return bool(self._hidden) and self._observations.base_names[name] not in self._into
        return bool(self._places) and self._names.index(name) > max(self._places)


def _upstream(observations: TensorObservations, names: Iterable[str]) -> frozenset[str]:
    """Everything that what these tensors are used with depends on."""
    return frozenset[str]().union(*(use.upstream for name in names for use in observations.uses(name)))


def _correct_ends(observations: TensorObservations, roles: dict[str, Role], specified: frozenset[str]) -> None:
    """Outside the blocks, what seems to read the inputs or give the outputs may stand in between."""

    def names(*wanted: Role) -> list[str]:
        return [name for name, role in roles.items() if role in wanted and name not in specified]

    wide = {observations.base_names[name] for name in roles if any(observations.growth[name])}
    for name in names(Role.INPUT_EMBEDDING):
        read = [use.upstream for use in observations.uses(name) if use.how in ("matmul", "conv")]
        if read and all(upstream & wide for upstream in read):
            roles[name] = Role.NARROW_TO_WIDE  # a depthwise convolution, the way out of a bottleneck
    into = _upstream(observations, [n for n, r in roles.items() if r in {Role.NARROW_TO_WIDE, *MATRICES}])
    readouts = names(Role.UNEMBEDDING)
    for name in readouts:
        if observations.base_names[name] in into:
            roles[name] = Role.ROUTER if observations.is_gate(name) else Role.WIDE_TO_NARROW
        elif observations.not_run and len(readouts) > 1:
            raise _unknown(observations, name)  # the last of them or not: only a run can tell


def _weight(observations: TensorObservations, name: str, grows: tuple[bool, ...]) -> Role | None:
    """The role of a tensor with two or more dimensions; None if it may be a vector in disguise."""
    inside = observations.places[name].stack is not None
    how = {use.how for use in observations.uses(name)}
    axes = observations.axes(name)
    if "lookup" in how or (not how and isinstance(observations.owner(name), nn.Embedding)):
        if axes is not None:
            return Role.TIED_EMBEDDING if not inside and grows == (False, True) else None
        return _table(observations, name, grows, inside)
    if axes is not None:
        fan_in, fan_out = (any(grows[d] for d in dims) for dims in axes)
        if fan_in and fan_out:
            if inside and observations.base_names[name] in observations.trace.selects:
                return Role.ROUTER  # to experts whose number grows
            is_conv = isinstance(observations.owner(name), _ConvNd)
            return Role.CONV_KERNEL if is_conv else Role.HIDDEN_WEIGHT
        if fan_in:
            if not inside:
                return Role.UNEMBEDDING
            if not how:
                raise _unknown(observations, name)  # a router or not: only a run can tell
            return Role.ROUTER if observations.is_gate(name) else Role.WIDE_TO_NARROW
        if any(grows):
            return Role.NARROW_TO_WIDE if inside else Role.INPUT_EMBEDDING
        return Role.SHARED if inside else Role.FIXED
    if sum(grows) >= 2:
        if len(grows) == 2:
            return Role.HIDDEN_WEIGHT  # not seen as it is, but whatever is done to it, it maps width to width
        raise _unknown(observations, name)
    return None


def _table(observations: TensorObservations, name: str, grows: tuple[bool, ...], inside: bool) -> Role:
    """The role of a lookup table."""
    if not any(grows):
        return Role.SHARED if inside else Role.FIXED
    if grows[0]:
        raise _unknown(observations, name)
    if inside:
        return Role.NARROW_TO_WIDE
    lookups = [use for use in observations.uses(name) if use.how == "lookup"]
    by_position = bool(lookups) and not any(INPUT in use.upstream for use in lookups)
    return Role.POSITION_EMBEDDING if by_position else Role.INPUT_EMBEDDING


def _vector(observations: TensorObservations, name: str, roles: Mapping[str, Role], order: _Order) -> Role | None:
    """The role of a tensor that is added or multiplied element by element; None if it is not clear."""
    how = {use.how for use in observations.uses(name)}
    inside = observations.places[name].stack is not None
    grows = any(observations.growth[name])
    if "norm" in how or "norm" in type(observations.owner(name)).__name__.lower():
        if inside:
            return Role.NORM_GAIN if grows else Role.QK_NORM
        if not grows:
            return Role.FIXED if how else None
        return _gain(name, order)
    weight = observations.weight_of(name)
    if weight is not None and roles.get(weight) in _BIAS_OF:
        return _BIAS_OF[roles[weight]]
    if not how or "composed" in how or sum(observations.growth[name]) > 1:
        return None
    if inside:
        if not grows:
            return Role.SHARED
        return Role.NORM_GAIN if how == {"multiply"} else Role.HIDDEN_BIAS
    if not grows:
        return Role.OUTPUT_BIAS if how == {"add"} and order.is_after(name) else Role.FIXED
    if how <= {"add", "join", "data"} and how != {"add"}:
        return Role.INPUT_EMBEDDING  # tokens of the model's own, beside or instead of those it is called with
    if how == {"add"} and len(observations.shapes[name]) > 1 and order.is_before(name):
        return Role.POSITION_EMBEDDING
    return _gain(name, order) if how <= {"add", "multiply"} else None


def _gain(name: str, order: _Order) -> Role:
    """A gain or bias outside the blocks that is as wide as the model."""
    if order.is_after(name):
        return Role.FINAL_NORM
    return Role.INPUT_BIAS if order.is_before(name) else Role.NORM_GAIN


def _find_experts(observations: TensorObservations, roles: dict[str, Role], specified: frozenset[str]) -> None:
    """Hidden weights in a block with a router are experts if they are fused in one tensor, or numbered."""
    routed = {observations.places[name].block_path for name, role in roles.items() if role is Role.ROUTER}
    experts = {
        name
        for name, role in roles.items()
        if role is Role.HIDDEN_WEIGHT
        and name not in specified
        and observations.places[name].block_path in routed - {None}
        and (
            len(observations.shapes[name]) == 3
            or any(p.isdigit() for p in observations.places[name].inner.split("."))
        )
    }
    by_block: dict[str | None, set[str]] = {}
    for name in experts:
        by_block.setdefault(observations.places[name].block_path, set()).add(observations.base_names[name])
    for name in experts:
        others = by_block[observations.places[name].block_path] - {observations.base_names[name]}
        is_down = any(use.upstream & others for use in observations.uses(name) if use.how == "matmul")
        roles[name] = Role.EXPERT_DOWN if is_down else Role.EXPERT_UP


def _unknown(observations: TensorObservations, name: str) -> ParametrizationError:
    sizes = " x ".join(
        f"{size} ({'grows' if g else 'fixed'})"
        for size, g in zip(observations.shapes[name], observations.growth[name], strict=True)
    )
    where = "inside" if observations.places[name].stack is not None else "outside"
    seen = ", ".join(sorted({use.how for use in observations.uses(name)})) or "not seen when the model ran"
    ask = ""
    if observations.not_run:
        seen, ask = (
            f"not seen, as {observations.not_run}",
            "give inputs=(tensor, ...) that it can be called with, or ",
        )
    return ParametrizationError(
        f"The role of tensor {name!r} ({sizes or 'a scalar'}; in a {type(observations.owner(name)).__name__} "
        f"{where} the blocks; use: {seen}) can't be inferred; "
        f"{ask}say it with roles={{{name!r}: ...}}, one of {', '.join(Role)}."
    )
