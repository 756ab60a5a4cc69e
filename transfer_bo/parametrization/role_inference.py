"""From what was observed of a tensor to its role.

Evidence in the order of precedence: what the user specified; which of the tensor's dimensions are summed over
when the model runs (`trace.py`), or, where the model could not be run, which kind of layer holds it; which
dimensions grow with the width; whether it is inside a stack of blocks. Names only decide that a layer's
"bias" belongs to its "weight".
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from transfer_bo.errors import ParametrizationError
from transfer_bo.parametrization.builds import parameters_of
from transfer_bo.parametrization.rules import Role
from transfer_bo.parametrization.structure import Place
from transfer_bo.parametrization.trace import INPUT, Trace, Use

__all__ = ["MATRICES", "TensorObservations", "infer_roles"]

MATRICES = frozenset({Role.HIDDEN_WEIGHT, Role.EXPERT_UP, Role.EXPERT_DOWN, Role.CONV_KERNEL})
"""Hidden weights: they map the width to the width."""

_NORM_HOOKS = ("WeightNorm", "SpectralNorm")
"""Hooks that compute a weight from other tensors of its module."""

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
"""Role of a layer's bias by the role of its weight."""


@dataclass(frozen=True)
class TensorObservations:
    """What was observed of the tensors of the target; everything by name."""

    modules: Mapping[str, nn.Module]
    """Of the target, by path."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the target's tensors."""
    growth: Mapping[str, tuple[bool, ...]]
    """Per dimension: whether it grows with the width."""
    places: Mapping[str, Place]
    """Stack and block of each tensor."""
    base_names: Mapping[str, str]
    """The tensor of the base model that each corresponds to."""
    trace: Trace
    """Of the base model, by the base model's names."""
    not_run: str
    """Why the base model could not be called; "" if it was."""

    def owner(self, name: str) -> nn.Module:
        """The module that holds the tensor."""
        return self.modules[name.rpartition(".")[0]]

    def uses(self, name: str) -> tuple[Use, ...]:
        """How the tensor was used when the base model ran; () if it was not."""
        return self.trace.uses.get(self.base_names[name], ())

    def is_gate(self, name: str) -> bool:
        """Whether its product is the input of a softmax, sigmoid or top-k."""
        return self.base_names[name] in self.trace.gates

    def weight_of(self, bias: str) -> str | None:
        """Name of the weight that a layer has beside a bias; a tied one has the name of its first layer."""
        path, _, last = bias.rpartition(".")
        weight = getattr(self.modules[path], last.replace("bias", "weight"), None)
        if "bias" not in last or weight is None:
            return None
        return self._names.get(id(weight))

    @cached_property
    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in parameters_of(self.modules[""]).items()}

    def matmuls(self, name: str) -> tuple[str, ...]:
        """Paths of the base's modules that multiply with the tensor."""
        return tuple(dict.fromkeys(use.module for use in self.uses(name) if use.how == "matmul"))

    def inside(self, name: str) -> bool:
        """Whether the tensor is in a block."""
        return self.places[name].stack is not None

    def is_head(self, name: str) -> bool:
        """Whether its product is an output of the model."""
        return self.base_names[name] in self.trace.heads

    def is_untrained(self, name: str) -> bool:
        """Whether it only changes a ranking, without gradient: a bias that balances the load of experts."""
        only_added = {use.how for use in self.uses(name)} <= {"add"}
        is_bare = len(self.shapes[name]) == 1 and self.weight_of(name) is None
        return self.base_names[name] in self.trace.untrained and only_added and is_bare

    def axes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Dimensions that are fan-in and fan-out; None if the tensor is in no matrix product."""
        how = {use.how for use in self.uses(name)}
        if "composed" in how:
            return None
        axes = {(u.fan_in, u.fan_out) for u in self.uses(name) if u.how in ("matmul", "conv")}
        if len(axes) == 1:
            return axes.pop()
        if len(axes) > 1:  # used both ways: all dimensions are both
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
        """Width ratios of fan-in and fan-out.

        Where only one of the two grows, or the tensor has only one dimension, that ratio is used for both.

        Args:
            name: Of the tensor.
            ratios: Ratio target/base of each of its dimensions.
            otherwise: Ratio of a tensor that does not grow: that of the scale's width.

        Raises:
            ParametrizationError: if its dimensions grow by different factors and fan-in is not known.
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
                f"The fan-in of tensor {name!r} is not known, and its dimensions grow by different factors "
                f"{', '.join(f'{r:g}' for r in sorted(set(growing)))}; make it the weight of an nn.Linear."
            )
        return growing[0], growing[0]


def infer_roles(observations: TensorObservations, given: Mapping[str, str]) -> dict[str, Role]:
    """The role of every tensor.

    Args:
        observations: Of the tensors.
        given: Role by name pattern; the first match is used.

    Raises:
        ParametrizationError: for a tensor whose role is not clear, a role that does not exist, or a pattern
            that matches nothing.
    """
    roles = _given(observations, given)
    specified = frozenset(roles)
    _refuse_unsupported(observations, specified)

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
            raise ParametrizationError(
                f"roles: pattern {pattern!r} matches no tensor; correct it or leave it out."
            )
        for name in matched:
            roles.setdefault(name, Role(role))
    return roles


def _refuse_unsupported(observations: TensorObservations, specified: frozenset[str]) -> None:
    """Refuse complex tensors, and those that a weight is computed from (weight_norm) if no role is given."""
    for name in observations.shapes:
        path, _, last = name.rpartition(".")
        owner = observations.modules[path]
        dtype = getattr(owner, last).dtype
        if dtype.is_complex:
            raise ParametrizationError(
                f"Tensor {name!r} is complex ({dtype}), and rules are stated for real weights; keep its real "
                "and imaginary parts in real tensors, or freeze it."
            )
        if isinstance(owner, ParametrizationList):
            kind = ", ".join(type(step).__name__.lstrip("_") for step in owner)
            layer = path.rpartition(".parametrizations.")[0]
        elif hook := next((h for h in owner._forward_pre_hooks.values() if _computes(h, last)), None):
            kind, layer = type(hook).__name__, path
        else:
            continue
        if name not in specified:
            raise ParametrizationError(
                f"Tensor {name!r} is not a weight: {kind} computes the weight from it in {layer!r}, and "
                "rules are stated for weights; remove the reparametrization, freeze the tensor, or state its "
                f"role with roles={{{name!r}: ...}}."
            )


def _computes(hook: object, tensor: str) -> bool:
    """Whether a hook is that of torch.nn.utils.weight_norm or spectral_norm for a tensor of its module."""
    weight = getattr(hook, "name", None)
    return type(hook).__name__ in _NORM_HOOKS and isinstance(weight, str) and tensor.startswith(f"{weight}_")


class _Order:
    """What comes before and after the hidden weights: in the trace, or else in the order of the model."""

    def __init__(self, observations: TensorObservations, roles: Mapping[str, Role]) -> None:
        self._observations = observations
        hidden = [name for name, role in roles.items() if role in MATRICES]
        self._names = list(observations.shapes)
        self._places = [self._names.index(name) for name in hidden]
        self._hidden = {observations.base_names[name] for name in hidden}
        self._into = _upstream(observations, hidden)

    def is_before(self, name: str) -> bool:
        """Whether the inputs of the tensor's operations depend on no hidden weight."""
        if self._observations.uses(name):
            return not _upstream(self._observations, [name]) & self._hidden
        return not self._places or self._names.index(name) < min(self._places)

    def is_after(self, name: str) -> bool:
        """Whether no hidden weight's input depends on it, though there are such weights."""
        if self._observations.uses(name):
            return bool(self._hidden) and self._observations.base_names[name] not in self._into
        return bool(self._places) and self._names.index(name) > max(self._places)


def _upstream(observations: TensorObservations, names: Iterable[str]) -> frozenset[str]:
    """Names of the tensors that the inputs of these tensors' operations depend on."""
    return frozenset[str]().union(*(use.upstream for name in names for use in observations.uses(name)))


def _correct_ends(
    observations: TensorObservations, roles: dict[str, Role], specified: frozenset[str]
) -> None:
    """Correct input embeddings that read a hidden width, and unembeddings that other layers read."""

    def names(*wanted: Role) -> list[str]:
        return [name for name, role in roles.items() if role in wanted and name not in specified]

    wide = {observations.base_names[name] for name in roles if any(observations.growth[name])}
    for name in names(Role.INPUT_EMBEDDING):
        read = [use.upstream for use in observations.uses(name) if use.how in ("matmul", "conv")]
        if read and all(upstream & wide for upstream in read):
            roles[name] = Role.NARROW_TO_WIDE  # a depthwise convolution, the second half of a bottleneck

    into = _upstream(observations, [n for n, r in roles.items() if r in {Role.NARROW_TO_WIDE, *MATRICES}])
    readouts = names(Role.UNEMBEDDING)
    for name in readouts:
        if observations.base_names[name] in into:
            roles[name] = Role.ROUTER if observations.is_gate(name) else Role.WIDE_TO_NARROW
        elif observations.not_run and len(readouts) > 1:
            raise _unknown(observations, name)  # only a run shows which of them is the last


def _weight(observations: TensorObservations, name: str, grows: tuple[bool, ...]) -> Role | None:
    """The role of a tensor with two or more dimensions; None if it is used like a vector."""
    inside = observations.inside(name)
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
            if observations.is_head(name):
                return Role.UNEMBEDDING
            if not how:
                raise _unknown(observations, name)  # only a run shows whether it is a router
            return Role.ROUTER if observations.is_gate(name) else Role.WIDE_TO_NARROW
        if any(grows):
            return Role.NARROW_TO_WIDE if inside else Role.INPUT_EMBEDDING
        return Role.SHARED if inside else Role.FIXED

    if sum(grows) >= 2:
        if len(grows) == 2:
            return Role.HIDDEN_WEIGHT  # its own use was not observed, but it can only map width to width
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


def _vector(
    observations: TensorObservations, name: str, roles: Mapping[str, Role], order: _Order
) -> Role | None:
    """The role of a tensor that is added or multiplied element by element; None if it is not clear."""
    how = {use.how for use in observations.uses(name)}
    inside = observations.inside(name)
    grows = any(observations.growth[name])
    if observations.is_untrained(name):
        return Role.UNTRAINED
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
        return Role.INPUT_EMBEDDING  # tokens that the model itself learns, such as a class token
    if how == {"add"} and len(observations.shapes[name]) > 1 and order.is_before(name):
        return Role.POSITION_EMBEDDING
    return _gain(name, order) if how <= {"add", "multiply"} else None


def _gain(name: str, order: _Order) -> Role:
    """A gain or bias outside the blocks that is as wide as the model."""
    if order.is_after(name):
        return Role.FINAL_NORM
    return Role.INPUT_BIAS if order.is_before(name) else Role.NORM_GAIN


def _find_experts(
    observations: TensorObservations, roles: dict[str, Role], specified: frozenset[str]
) -> None:
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
    where = "inside" if observations.inside(name) else "outside"
    use = ", ".join(sorted({use.how for use in observations.uses(name)})) or "not used when the model ran"
    remedy = ""
    if observations.not_run:
        use = f"not known, as {observations.not_run}"
        remedy = "give inputs=(tensor, ...) that it can be called with, or "

    return ParametrizationError(
        f"The role of tensor {name!r} ({sizes or 'a scalar'}; in a {type(observations.owner(name)).__name__} "
        f"{where} the blocks; use: {use}) cannot be inferred; "
        f"{remedy}state it with roles={{{name!r}: ...}}, one of {', '.join(Role)}."
    )
