"""From HPs and scales as users write them to the coordinates of the surrogate, and back.

Symbols:
    z   HPs in natural coordinates, octaves (see `Dimension`), centred on the prior guess of the optimum.
    v   the coordinates of the bowl: v = M z, where a multiplier is taken together with what it multiplies.
    s   log2(axis / base), doublings.
    x   one row of the surrogate's input: v (d), then one-hot categories (k), then s (a),
        then which source study it comes from, one-hot (q); zeros for the study's own runs;
        then which shared seed it has, one-hot (g); zeros for a run with a seed of its own.
    M   what multiplies what (d x d, unit diagonal), see `priors.MULTIPLIES`.
    d, k, a, q   numeric HPs, categories of all categorical HPs, axes that vary, source studies.
    g   seeds that runs of one scale share.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.dimension import Dimension
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.priors import MULTIPLIES
from transfer_bo.synonyms import hp_kind, without_prefix

__all__ = ["Coordinates"]


class Coordinates:
    """The map between user values and the surrogate's rows, for a fixed list of HPs and axes.

    Args:
        dimensions: the HPs.
        base: the scale at which s = 0.
        axes: the axes that vary; the others are ignored.
        sources: names of source studies whose runs are among the rows.
        kinds: HP or axis -> its kind (see `synonyms`), where its name does not tell it.
        seeds: scale and seed of runs that share initial weights and data order.

    Attributes:
        width: length of a row.
        numeric, categorical: the HPs, each in the order of its columns.
        hps_as_known, axes_as_known: names of the numeric HPs and of the axes as the priors know them: the
            kind if it was declared.
        z_low, z_high: ends of the searched ranges (d).
        mix, unmix: M and its inverse (d x d).
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        base: Scale,
        axes: Sequence[str],
        sources: Sequence[str] = (),
        kinds: Mapping[str, str] | None = None,
        seeds: Sequence[tuple[Scale, int]] = (),
    ) -> None:
        kinds = kinds or {}
        self.numeric = [dim for dim in dimensions if dim.transform != "categorical"]
        self.categorical = [dim for dim in dimensions if dim.transform == "categorical"]
        self.base = base
        self.axes = list(axes)
        self.sources = list(sources)
        self.seeds = list(seeds)
        self.hps_as_known = [kinds.get(dim.name, dim.name) for dim in self.numeric]
        self.axes_as_known = [kinds.get(axis, axis) for axis in self.axes]
        self.d = len(self.numeric)
        self.a = len(self.axes)
        self.k = sum(len(dim.choices) for dim in self.categorical)
        self.width = self.d + self.k + self.a + len(self.sources) + len(self.seeds)

        ends = [sorted((dim.forward(dim.low), dim.forward(dim.high))) for dim in self.numeric]
        raw_low, raw_high = torch.tensor(ends, dtype=torch.double).reshape(-1, 2).T
        middle = (raw_low + raw_high) / 2
        self._centre = torch.stack(
            [
                middle[i]
                if dim.default is None
                else torch.tensor(dim.forward(dim.default), dtype=torch.double)
                for i, dim in enumerate(self.numeric)
            ]
            or [torch.empty((), dtype=torch.double)]
        )[: self.d]
        self.z_low, self.z_high = raw_low - self._centre, raw_high - self._centre

        self.mix = self._mixing(MULTIPLIES)
        self.unmix = torch.linalg.inv(self.mix)

    def with_ranges(
        self, numeric: Sequence[Dimension], z_low: Float[Tensor, " d"], z_high: Float[Tensor, " d"]
    ) -> Coordinates:
        """The same coordinates with other searched ranges: z stays centred where it was.

        Args:
            numeric: the numeric HPs with their new ranges, in the order of the columns.
            z_low: lower ends of the ranges.
            z_high: upper ends.
        """
        other = copy.copy(self)
        other.numeric = list(numeric)
        other.z_low, other.z_high = z_low, z_high
        return other

    def without_couplings(self) -> Coordinates:
        """The same coordinates, but HPs of different kinds (`priors.MULTIPLIES`) each act alone."""
        other = copy.copy(self)
        other.mix = self._mixing({})
        other.unmix = torch.linalg.inv(other.mix)
        return other

    @property
    def names(self) -> list[str]:
        """The HPs, numeric ones first: the order of the columns."""
        return [dim.name for dim in (*self.numeric, *self.categorical)]

    def _mixing(self, multiplies: Mapping[str, str]) -> Tensor:
        """M (d x d), unit diagonal: row i adds the HP that HP i multiplies, if both are searched in log2.

        Args:
            multiplies: kinds that multiply another kind; group multipliers always multiply their own.
        """
        identity = torch.eye(self.d, dtype=torch.double)
        in_log2 = [i for i, dim in enumerate(self.numeric) if dim.transform == "log"]
        plain = {i: without_prefix(self.hps_as_known[i]) for i in in_log2}

        def common(i: int) -> int | None:
            """The HP that the i-th one multiplies, if it is searched."""
            if is_multiplier(plain[i]):
                wanted = plain[i].partition(".")[0]
                return next((j for j in in_log2 if plain[j] == wanted), None)
            kind = multiplies.get(hp_kind(plain[i]))
            others = [j for j in in_log2 if hp_kind(plain[j]) == kind and not is_multiplier(plain[j])]
            return min(others, key=lambda j: plain[j] != kind, default=None)

        def row(i: int) -> Tensor:
            other = common(i) if i in plain else None
            return identity[i] if other is None else identity[i] + row(other)

        rows = [row(i) for i in range(self.d)] or [identity[0:0]]
        return torch.stack(rows).reshape(self.d, self.d)

    def z(self, params: Mapping[str, Any]) -> Float[Tensor, " d"]:
        """Centred natural coordinates of the numeric HPs; nan where an HP is missing (conditional).

        A multiplier that a run did not have was 1 in it.
        """
        missing = [1.0 if is_multiplier(dim.name) else math.nan for dim in self.numeric]
        raw = [
            dim.forward(value) if (value := float(params.get(dim.name, none))) == value else math.nan
            for dim, none in zip(self.numeric, missing, strict=True)
        ]
        return torch.tensor(raw, dtype=torch.double) - self._centre

    def s(self, scale: Scale) -> Float[Tensor, " a"]:
        """Doublings along the axes that vary."""
        ratio = scale.log2_ratio(self.base)
        return torch.tensor([ratio[axis] for axis in self.axes], dtype=torch.double)

    def one_hot(self, params: Mapping[str, Any]) -> Float[Tensor, " k"]:
        """Categories: 1 where chosen; all zero where the HP is missing."""
        flags = [
            float(dim.name in params and params[dim.name] == choice)
            for dim in self.categorical
            for choice in dim.choices
        ]
        return torch.tensor(flags, dtype=torch.double)

    def row(
        self, params: Mapping[str, Any], scale: Scale, source: str | None = None, seed: int | None = None
    ) -> Float[Tensor, " row"]:
        """The x of one run. A missing HP sits at the prior guess of its optimum."""
        v = self.mix @ torch.nan_to_num(self.z(params), nan=0.0)
        from_source = torch.tensor([float(name == source) for name in self.sources], dtype=torch.double)
        return torch.cat([v, self.one_hot(params), self.s(scale), from_source, self.seed_flags(scale, seed)])

    def seed_flags(self, scale: Scale, seed: int | None) -> Float[Tensor, " g"]:
        """Which of the shared seeds a run has, one-hot; zeros if it has one of its own."""
        return torch.tensor([float(one == (scale, seed)) for one in self.seeds], dtype=torch.double)

    def clip(self, v: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Each v moved into the box of the searched ranges."""
        return self.clip_z(v @ self.unmix.T) @ self.mix.T

    def clip_z(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Natural coordinates moved into the box of the searched ranges."""
        return torch.minimum(torch.maximum(z, self.z_low), self.z_high)

    def params(self, v: Float[Tensor, " d"], flags: Float[Tensor, " k"] | None = None) -> dict[str, Any]:
        """User values of v and of scores of the categories (the largest wins), within the ranges."""
        z = self.unmix @ v + self._centre
        values: dict[str, Any] = {dim.name: dim.backward(float(z[i])) for i, dim in enumerate(self.numeric)}

        position = 0
        for dim in self.categorical:
            width = len(dim.choices)
            scores = torch.zeros(width) if flags is None else flags[position : position + width]
            values[dim.name] = dim.choices[int(scores.argmax())]
            position += width
        return values

    def value_of(self, i: int, z: float) -> float | int:
        """User value of one numeric HP at a centred natural coordinate."""
        return self.numeric[i].backward(z + float(self._centre[i]))
