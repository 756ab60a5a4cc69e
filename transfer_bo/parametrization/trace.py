"""How each tensor is used when the model runs: what its dimensions mean, and what its product is input to.

Shapes do not show it: GPT-2 stores (in, out), nn.Linear (out, in), experts are fused into one tensor, a
router has the shape of an unembedding. So a small build of the model is run once (with values, as routing
depends on them) and observed below autograd, where every layer has become one of few operations. The
dimensions of a tensor are followed through views by their strides.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transfer_bo.parametrization.builds import modules_of, parameters_of

__all__ = ["Trace", "Use", "most_similar", "trace_uses"]

INPUT = "<input>"
"""Among the names of tensors: what the model was called with."""

# What an operation does with its arguments, by the name of the operation; numbers are positions of arguments.
_MATMUL = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2)}
_MATMUL |= {"_grouped_mm": (0, 1), "dot": (0, 1)}
_CONV = {"convolution", "_convolution"}
_LOOKUP = {"embedding", "_embedding_bag"}
_SELECT = {"topk", "sort", "argmax"}
_GATE = {"_softmax", "_safe_softmax", "softmax", "sigmoid", "_log_softmax", *_SELECT}
_COPY = {"clone", "_to_copy", "copy", "contiguous", "lift_fresh_copy"}
_BY_INDEX = {"index", "index_select"}
_MULTIPLY = {"mul", "mul_", "div"}
_ADD = {"add", "add_", "sub", "addmm", "convolution", "addmv"}
_NORM = re.compile("norm")
_ATTENTION = re.compile("scaled_dot_product")


@dataclass(frozen=True)
class Use:
    """One way in which a tensor is used."""

    how: str
    """matmul, conv, lookup, norm, multiply, add, join; data where a layer is applied to it; composed where
    its product with another tensor of the model is used as one weight; other."""
    module: str
    """Path of the innermost module that was running."""
    order: int
    """Position in the sequence of all operations."""
    fan_in: tuple[int, ...] = ()
    """Dimensions of the tensor that are summed over (matmul, conv)."""
    fan_out: tuple[int, ...] = ()
    """Dimensions that its product has; dimensions in neither are a batch of weights, such as experts."""
    upstream: frozenset[str] = frozenset()
    """Tensors that the operation's other arguments depend on; `INPUT` for the model's input."""


@dataclass(frozen=True)
class Trace:
    """What was observed in one run of a model."""

    uses: dict[str, tuple[Use, ...]]
    """By tensor; a layer that did not run (an expert that no token chose) takes the uses of a similar one."""
    gates: frozenset[str]
    """Tensors whose product is, element by element, input to a softmax, sigmoid or top-k: routers."""
    selects: frozenset[str] = frozenset()
    """Those of them whose product is ranked, such that only its largest elements are used."""
    heads: frozenset[str] = frozenset()
    """Tensors whose product is, element by element, an output of the model and input to no other weight."""
    untrained: frozenset[str] = frozenset()
    """Tensors that outputs depend on only through a ranking, so that they get no gradient."""
    attention: tuple[tuple[int, float], ...] = ()
    """(size of the heads, factor on the scores) of each fused attention, in the order of calls."""


@dataclass(frozen=True)
class _Alias:
    """A view of a parameter."""

    name: str
    """Of the parameter."""
    dims: tuple[int | None, ...]
    """The parameter's dimension for each dimension of the view."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Observes every operation while it is active.

    Args:
        names: Names of the parameters by id.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.gates: set[str] = set()
        self.selects: set[str] = set()
        self.ranked: set[str] = set()
        self.attention: list[tuple[int, float]] = []
        self.running: list[str] = [""]
        self._alive: list[Any] = []  # keeps tensors alive, so that no id is used twice
        self._aliases: dict[int, _Alias] = {}
        self._upstream: dict[int, frozenset[str]] = {}
        self._product: dict[int, frozenset[str]] = {}
        self._count = 0

    def start(self, inputs: Iterable[torch.Tensor]) -> None:
        for tensor in inputs:
            self._upstream[id(tensor)] = frozenset({INPUT})

    def _alias(self, value: Any) -> _Alias | None:
        if not isinstance(value, torch.Tensor):
            return None
        name = self.names.get(id(value))
        return self._aliases.get(id(value)) if name is None else _Alias(name, tuple(range(value.dim())))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        results = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self._alive += [*tensors, *results]
        self._count += 1

        if _ATTENTION.search(operation):
            size = args[0].shape[-1]
            scale = (kwargs or {}).get("scale")
            self.attention.append((size, size**-0.5 if scale is None else scale))
        if len(tensors) >= 1 and self._is_view(func, operation, tensors, results):
            return out
        products = self._note(operation, args, tensors)
        self._flow(operation, tensors, results, products)
        return out

    def _is_view(self, func: Any, operation: str, tensors: list[Any], results: list[Any]) -> bool:
        """Whether the results are views of the first tensor; then their dimensions are noted."""
        source = tensors[0]
        alias = self._alias(source)
        if alias is None:
            return False
        for result in results:
            if operation in _BY_INDEX and len(tensors) == 2 and self._alias(tensors[1]) is None:
                # Experts are picked along the first dimension.
                rank = result.dim() - source.dim() + 1
                dims = (*[alias.dims[0]] * rank, *alias.dims[1:])
            elif operation in _COPY and result.shape == source.shape:
                dims = alias.dims
            elif func.is_view or result.untyped_storage()._cdata == source.untyped_storage()._cdata:
                if operation.endswith("_"):
                    return False  # changed in place
                dims = tuple(_dim_of(stride, size, source, alias) for stride, size in _layout(result))
            else:
                return False
            self._aliases[id(result)] = _Alias(alias.name, dims)
        return True

    def _note(self, operation: str, args: tuple[Any, ...], tensors: list[Any]) -> frozenset[str]:
        """Note how parameters are used by an operation; returns those whose matrix product it computes."""
        products: set[str] = set()
        flat = [a for a in args if not isinstance(a, list | tuple)]
        aliases = {i: alias for i, value in enumerate(flat) if (alias := self._alias(value)) is not None}
        for position, alias in aliases.items():
            others = frozenset[str]().union(
                *(self._upstream.get(id(t), frozenset()) for t in tensors if t is not flat[position])
            )
            how = "other"
            fan_in: tuple[int | None, ...] = ()
            fan_out: tuple[int | None, ...] = ()
            if operation in _MATMUL and position in _MATMUL[operation]:
                how = self._side(alias, [aliases[i] for i in _MATMUL[operation] if i in aliases])
                if how == "matmul":
                    side = _MATMUL[operation].index(position)
                    first, last = alias.dims[-2:] if len(alias.dims) > 1 else (alias.dims[0], None)
                    fan_in, fan_out = ((first,), (last,)) if side else ((last,), (first,))
                    products.add(alias.name)
            elif operation in _CONV and position == 1:
                how = "conv"
                inner, outer = (0, 1) if bool(args[6]) else (1, 0)  # args[6]: transposed
                fan_in, fan_out = (alias.dims[inner], *alias.dims[2:]), (alias.dims[outer],)
                products.add(alias.name)
            elif operation in _LOOKUP and position == 0:
                how = "lookup"
            elif _NORM.search(operation):
                how = "norm" if position else "data"
            elif operation in _CONV and position == 0:
                how = "data"
            elif operation in _MULTIPLY:
                how = "multiply"
            elif operation in _ADD or operation == "cat":
                how = "add"
            self.uses[alias.name].append(
                Use(how, self.running[-1], self._count, _known(fan_in), _known(fan_out), others)
            )

        for value in args:
            if isinstance(value, list | tuple) and operation in {"cat", "stack"}:
                for item in value:
                    if (alias := self._alias(item)) is not None:
                        self.uses[alias.name].append(Use("join", self.running[-1], self._count))
        return frozenset(products)

    def _side(self, alias: _Alias, operands: list[_Alias]) -> str:
        """How a tensor is used in a product of the model's own tensors (`operands`, itself included).

        Of two, the one that belongs to the running layer is its weight, and the other is its input.
        """
        owned = [a for a in operands if a.name.rpartition(".")[0] == self.running[-1]]
        if len(operands) == 1 or owned == [alias]:
            return "matmul"
        return "data" if len(owned) == 1 else "composed"

    def _flow(self, operation: str, tensors: list[Any], results: list[Any], products: frozenset[str]) -> None:
        """Propagate what results depend on, and note gates."""
        upstream = frozenset[str]().union(*(self._upstream.get(id(t), frozenset()) for t in tensors))
        upstream |= {alias.name for t in tensors if (alias := self._alias(t)) is not None}
        product = frozenset[str]().union(*(self._product.get(id(t), frozenset()) for t in tensors))
        if operation in _GATE:
            self.gates |= product
            if operation in _SELECT:
                self.selects |= product
                self.ranked |= upstream
        if operation in _MATMUL or operation in _CONV or _ATTENTION.search(operation):
            product = products
        for result in results:
            self._upstream[id(result)] = upstream
            self._product[id(result)] = product

    def products_in(self, tensor: torch.Tensor) -> frozenset[str]:
        """Parameters whose matrix product is, element by element, in a tensor."""
        return self._product.get(id(tensor), frozenset())


def _known(dims: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(d for d in dims if d is not None)


def _layout(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    return zip(tensor.stride(), tensor.shape, strict=True)


def _dim_of(stride: int, size: int, source: torch.Tensor, alias: _Alias) -> int | None:
    """The parameter's dimension that a dimension of a view runs along, by its stride."""
    if size == 1:
        return None
    for (step, length), dim in zip(_layout(source), alias.dims, strict=True):
        if length > 1 and step <= stride < step * length:
            return dim
    return None


def most_similar(name: str, names: Collection[str]) -> str | None:
    """The name most similar to another one; None if there is none.

    Similar names differ in numbers only: in as few as possible, and as late as possible. For an expert that
    no token chose it is another expert of its block.
    """
    parts = name.split(".")

    def distance(other: str) -> tuple[int, int] | None:
        pairs = list(zip(parts, other.split("."), strict=False))
        differing = [i for i, (part, other_part) in enumerate(pairs) if part != other_part]
        is_similar = len(parts) == len(other.split(".")) and all(
            parts[i].isdigit() and pairs[i][1].isdigit() for i in differing
        )
        return (len(differing), -differing[0]) if is_similar and differing else None

    ranked = [(d, other) for other in names if (d := distance(other)) is not None]
    return min(ranked)[1] if ranked else None


def trace_uses(model: nn.Module, arguments: tuple[torch.Tensor, ...]) -> Trace:
    """Run a model and observe how each of its trainable tensors is used.

    Args:
        model: On the CPU; it is not changed.
        arguments: What it is called with.

    Raises:
        Exception: whatever the model raises.
    """
    parameters = parameters_of(model)
    recorder = _Recorder({id(p): name for name, p in parameters.items()})

    def enter(path: str) -> Any:
        return lambda module, args: recorder.running.append(path)

    handles = []
    for path, module in modules_of(model).items():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(lambda *_: _leave(recorder.running), always_call=True))
    recorder.start(arguments)
    try:
        # With gradients on, attention layers do not run as one fused operation that hides their matrices.
        with torch.enable_grad(), recorder:
            out = model(*arguments)
    finally:
        for handle in handles:
            handle.remove()

    outputs = _tensors_in(out)
    heads = _heads(recorder, parameters, outputs)
    untrained = frozenset(recorder.ranked) & _without_gradient(parameters, outputs)

    observed = {n: n if n in recorder.uses else most_similar(n, list(recorder.uses)) for n in parameters}
    return Trace(
        uses={name: () if of is None else tuple(recorder.uses[of]) for name, of in observed.items()},
        gates=frozenset(name for name, of in observed.items() if of in recorder.gates),
        selects=frozenset(name for name, of in observed.items() if of in recorder.selects),
        heads=frozenset(name for name, of in observed.items() if of in heads),
        untrained=frozenset(name for name in untrained if name in recorder.uses),
        attention=tuple(recorder.attention),
    )


def _tensors_in(out: Any) -> list[torch.Tensor]:
    """The floating-point tensors that a model returned, in whatever container."""
    found: list[torch.Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, torch.Tensor):
            found += [leaf] if leaf.is_floating_point() else []
        elif isinstance(leaf, Mapping) or dataclasses.is_dataclass(leaf):
            values = leaf.values() if isinstance(leaf, Mapping) else vars(leaf).values()
            found += [tensor for value in values for tensor in _tensors_in(value)]
    return found


def _heads(
    recorder: _Recorder, parameters: Mapping[str, nn.Parameter], outputs: Sequence[torch.Tensor]
) -> frozenset[str]:
    """Tensors that map to the outputs, see `Trace.heads`.

    An output with as many channels as the fan-in is hidden: its products have only scaled it, as those of a
    router do.
    """
    products = [use for uses in recorder.uses.values() for use in uses if use.how in ("matmul", "conv")]
    read = frozenset[str]().union(*(use.upstream for use in products))

    def is_head(name: str, output: torch.Tensor) -> bool:
        shape = parameters[name].shape
        use = next(use for use in recorder.uses[name] if use.how in ("matmul", "conv"))
        fan_in, fan_out = ({shape[d] for d in dims} for dims in (use.fan_in, use.fan_out))
        channels = output.shape[1 if use.how == "conv" and output.dim() > 2 else -1] if output.dim() else 1
        return channels in fan_out or channels not in fan_in

    return frozenset(
        name
        for output in outputs
        for name in recorder.products_in(output)
        if name not in read and is_head(name, output)
    )


def _without_gradient(
    parameters: Mapping[str, nn.Parameter], outputs: Sequence[torch.Tensor]
) -> frozenset[str]:
    """Tensors that the outputs do not depend on as far as gradients go; none if that is not known."""
    total = sum((out.sum() for out in outputs if out.requires_grad), start=torch.zeros(()))
    if not total.requires_grad:
        return frozenset()
    try:
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except RuntimeError:  # an operation without a derivative
        return frozenset()
    return frozenset(name for name, g in zip(parameters, gradients, strict=True) if g is None)


def _leave(running: list[str]) -> None:
    if len(running) > 1:
        running.pop()
