"""The base model: its builds, one call of it, and what is found out about it once for all targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from transfer_bo.errors import ScaleError, TransferError
from transfer_bo.parametrization.builds import BuildModel, build_meta, build_real, modules_of, parameters_of
from transfer_bo.parametrization.example_inputs import ExampleCall, call_with_example_inputs
from transfer_bo.parametrization.initial_values import is_constant, kurtosis, rms
from transfer_bo.parametrization.residual import Branch, find_branches
from transfer_bo.parametrization.structure import PROBE
from transfer_bo.scale import Scale

__all__ = ["BaseModel", "Draw"]


@dataclass(frozen=True)
class Draw:
    """What is kept of a tensor's initial values."""

    rms: float
    """Root mean square."""
    is_constant: bool
    """Whether all elements are equal."""
    kurtosis: float
    """Mean fourth power over the squared mean square: 3 for normal values."""
    count: int
    """Number of elements."""


class BaseModel:
    """A model at the scale where base hyperparameters are defined, and its builds at other scales.

    Args:
        build_model: Gives the model at a scale.
        base: Has the axis `width`.
        inputs: What the base model is called with; guessed if not given.

    Raises:
        ScaleError: if the base has no axis `width`.
    """

    def __init__(
        self, build_model: BuildModel, base: Scale, inputs: tuple[torch.Tensor, ...] | None = None
    ) -> None:
        if "width" not in base:
            raise ScaleError(f"{base} has no axis 'width'; give it one, so that growing sizes can be found.")
        self.build_model = build_model
        self.scale = base
        self._inputs = inputs
        self._meta: dict[Scale, nn.Module] = {}
        self._draws: dict[int, dict[str, Draw]] = {}
        self._branches: dict[tuple[str, ...], tuple[dict[str, list[Branch]], str]] = {}

    def meta(self, scale: Scale) -> nn.Module:
        """The model at a scale on the meta device, built once."""
        if scale not in self._meta:
            self._meta[scale] = build_meta(self.build_model, scale)
        return self._meta[scale]

    def shapes(self, scale: Scale) -> dict[str, tuple[int, ...]]:
        """Shapes of the trainable tensors at a scale, by name."""
        return {name: tuple(p.shape) for name, p in parameters_of(self.meta(scale)).items()}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Modules of the base by path, on the meta device."""
        return modules_of(self.meta(self.scale))

    @cached_property
    def size(self) -> int:
        """Number of trainable parameters of the base."""
        return sum(parameter.numel() for parameter in parameters_of(self.meta(self.scale)).values())

    def draws(self, seed: int) -> dict[str, Draw]:
        """The initial values of the base under a seed, by tensor."""
        if seed not in self._draws:
            drawn = parameters_of(build_real(self.build_model, self.scale, seed))
            self._draws[seed] = {
                name: Draw(rms(q), is_constant(q), kurtosis(q), q.numel()) for name, q in drawn.items()
            }
        return self._draws[seed]

    @cached_property
    def is_deferrable(self) -> bool:
        """Whether initial values can be drawn tensor by tensor."""
        from transfer_bo.parametrization.deferred_build import reproduces_builds  # loads PyTorch's compiler

        return reproduces_builds(self.build_model, self.scale, seed=0)

    @cached_property
    def call(self) -> ExampleCall:
        """A call of the base model, traced."""
        model = build_real(self.build_model, self.scale, seed=0).eval()
        return call_with_example_inputs(model, self._inputs)

    @cached_property
    def attention(self) -> str:
        """Why attention does not transfer over widths; "" if no reason was found.

        The reason is that heads grow with the width and scores are not divided by their size: queries and
        keys align in training, so that their products grow in proportion to the size of the heads.
        """
        trace = self.call.trace
        if trace is None or not trace.attention:
            return ""

        wide = self.scale.replace(width=PROBE * self.scale.width)
        try:
            wide_model = build_real(self.build_model, wide, seed=0).eval()
        except TransferError:  # such as trained weights that exist at some widths only
            return ""
        wider = call_with_example_inputs(wide_model, self.call.arguments)
        for (size, factor), (wide_size, wide_factor) in zip(
            trace.attention, () if wider.trace is None else wider.trace.attention, strict=False
        ):
            if wide_size * wide_factor > 1.01 * size * factor:
                return (
                    f"attention heads grow with the width (size {size} at width {self.scale.width:g}, "
                    f"{wide_size} at {wide.width:g}) and scores are not divided by it"
                )
        return ""

    def branches(self, blocks: Iterable[str]) -> tuple[dict[str, list[Branch]], str]:
        """The residual branches of blocks by path, and why some are missing; see `find_branches`."""
        paths = tuple(dict.fromkeys(blocks))
        if self.call.arguments is None:
            return {}, self.call.reason
        if paths not in self._branches:
            model = build_real(self.build_model, self.scale, seed=0)
            self._branches[paths] = find_branches(model, paths, self.call.arguments)
        return self._branches[paths]
