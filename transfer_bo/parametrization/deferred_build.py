"""A build whose tensors get their values later, one at a time, bit by bit those of a build on the CPU.

The model is built on fake tensors, which have no memory. Every operation on them is recorded, and before
each draw the state of the random generator; a draw of the same size, made and thrown away, moves the
generator on. A tensor's value is found by running again the operations that it depends on, so that few
tensors have values at a time. Where the build itself looks at a value (a draw that is repeated until it lies
in an interval, say), that value is found at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from transfer_bo.parametrization.builds import BuildModel, build_real, parameters_of, within_build
from transfer_bo.scale import Scale

__all__ = ["DeferredBuild", "reproduces_builds"]


def _key(tensor: Tensor) -> int:
    """What tensors that share memory have in common; it stays taken while operations on them are kept."""
    return int(tensor.untyped_storage()._cdata)


def _keys(values: Any) -> frozenset[int]:
    return frozenset(_key(x) for x in tree_leaves(values) if isinstance(x, FakeTensor))


class _Values(dict[int, torch.UntypedStorage]):
    """Real memory by the key of the fake one."""

    def of(self, fake: Tensor) -> Tensor:
        """The real tensor for a fake one."""
        found = torch.empty(0, dtype=fake.dtype)
        place = (self[_key(fake)], fake.storage_offset(), fake.size(), fake.stride())
        return found.set_(*place)


def _empty(fake: Tensor) -> Tensor:
    return torch.empty_strided(fake.size(), fake.stride(), dtype=fake.dtype)


@dataclass(frozen=True)
class _Operation:
    """One recorded operation."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    read: frozenset[int]
    """Memory that it reads or changes."""
    written: frozenset[int]
    """Memory that it makes or changes."""
    generator: torch.Generator
    state: Tensor | None
    """Of the generator before it; None if it draws nothing."""

    def run(self, real: _Values) -> None:
        """Run it again, and keep the memory that it makes."""
        if self.state is not None:
            self.generator.set_state(self.state)
        result = _call(self.function, self.args, self.kwargs, real.of)
        for fake, value in zip(tree_leaves(self.result), tree_leaves(result), strict=True):
            if isinstance(fake, FakeTensor):
                real.setdefault(_key(fake), value.untyped_storage())


def _call(function: Any, args: Any, kwargs: Any, of: Any) -> Any:
    """Call a function with real tensors in the place of fake ones."""
    args, kwargs = tree_map(lambda x: of(x) if isinstance(x, FakeTensor) else x, (args, dict(kwargs)))
    return function(*args, **kwargs)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations on fake tensors; stands inside a `FakeTensorMode`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags:
            with _disable_current_modes():
                return _call(func, args, kwargs, self.value)

        given = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, torch.Generator)]
        generator = given[0] if given else torch.default_generator
        draws = torch.Tag.nondeterministic_seeded in func.tags
        state = generator.get_state() if draws else None
        result = func(*args, **kwargs)
        if state is not None:
            with _disable_current_modes():
                generator.set_state(state)
                _call(func, args, kwargs, _empty)

        read, made = _keys((args, dict(kwargs))), _keys(result)
        is_view = not func._schema.is_mutable and made <= read
        if made and not is_view:
            written = made | (read if func._schema.is_mutable else frozenset())
            self.operations.append(_Operation(func, args, kwargs, result, read, written, generator, state))
        return result

    @torch.no_grad()
    def value(self, tensor: Tensor) -> Tensor:
        """The value of a fake tensor as it stands now."""
        needed, chosen = {_key(tensor)}, []
        for operation in reversed(self.operations):
            if needed & operation.written:
                needed |= operation.read
                chosen.append(operation)

        real = _Values()
        states = {op.generator: op.generator.get_state() for op in chosen if op.state is not None}
        for operation in reversed(chosen):
            operation.run(real)
        for generator, state in states.items():
            generator.set_state(state)
        return real.of(tensor)


class DeferredBuild:
    """The model at a scale on fake tensors, and the values that a build under a seed would give them.

    Args:
        build_model: Gives the model at a scale.
        scale: Where.
        seed: Of its initial values.

    Raises:
        ParametrizationError: If the build fails on fake tensors.
    """

    def __init__(self, build_model: BuildModel, scale: Scale, seed: int) -> None:
        self._recorder = _Recorder()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            with FakeTensorMode(), self._recorder:
                self.model: nn.Module = within_build(build_model, scale, "cpu")

    def value(self, tensor: Tensor) -> Tensor:
        """The value of one of the model's tensors."""
        return self._recorder.value(tensor)


def reproduces_builds(build_model: BuildModel, scale: Scale, seed: int) -> bool:
    """Whether deferred values are those of a real build, bit by bit; tried at a scale cheap to build."""
    real = build_real(build_model, scale, seed)
    try:
        deferred = DeferredBuild(build_model, scale, seed)
        pairs = [
            *zip(parameters_of(real).values(), parameters_of(deferred.model).values(), strict=True),
            *zip(real.buffers(), deferred.model.buffers(), strict=True),
        ]
        return all(torch.equal(value, deferred.value(fake)) for value, fake in pairs)
    except Exception:  # a build that draws from a source of its own, say, can fail in any way
        return False
