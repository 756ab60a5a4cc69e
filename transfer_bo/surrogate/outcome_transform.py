"""From the metric a study records to the y of the surrogate, and back.

Symbols: y = ln loss for a positive loss that is minimized, scaled down where losses span decades; else the
signed metric in units of its own spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["OutcomeTransform"]

_SPREAD_IN_Y = 0.1
"""The middle half of a metric that is no loss spans so much y: about what ln loss spans in a normal study."""

_WIDEST_IN_Y = 0.3
"""The middle half of ln losses spans no more than this; beyond, the bowl of the landscape flattens."""

_BAD = 1.0
"""From here on y of a metric that is no loss grows with its logarithm: ten times the middle spread above the
centre."""

_BAD_LOG = 3.0
"""From here on y of a loss grows with its logarithm: e³ times the best."""

_SAME = 1e-12
"""Metrics that differ by no more than this share count as all the same."""


def _compress(y: float, limit: float) -> float:
    return y if y < limit else limit + math.log1p(y - limit)


def _expand(y: float, limit: float) -> float:
    return y if y < limit else limit + math.expm1(min(y - limit, 700.0))


@dataclass(frozen=True)
class OutcomeTransform:
    """y = (ln(value) - centre) / scale + centre, or (sign · value - centre) / scale; smaller y is better.

    Far above the best value, or the centre, y grows with the logarithm only: all that is left to say there is
    "bad", and one loss of 1e300 must not bend the fit.
    """

    log: bool
    sign: float = 1.0
    centre: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, values: Sequence[float], maximize: bool = False) -> OutcomeTransform:
        """The transform for a set of finite metric values: ln if they are all positive and minimized."""
        if not maximize and all(value > 0 for value in values):
            logs = [math.log(value) for value in values] or [0.0]
            wide = float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / _WIDEST_IN_Y
            return cls(log=True, centre=min(logs), scale=max(1.0, wide))
        signed = [-value if maximize else value for value in values] or [0.0]
        low, middle, high = (float(q) for q in np.quantile(signed, [0.25, 0.5, 0.75]))
        size = max(abs(middle), 1.0)
        spread = high - low if high - low > _SAME * size else size
        return cls(log=False, sign=-1.0 if maximize else 1.0, centre=middle, scale=spread / _SPREAD_IN_Y)

    @property
    def ln(self) -> float:
        """Ln loss in one unit of y; 1 for a metric that is no loss."""
        return self.scale if self.log else 1.0

    def forward(self, value: float) -> float:
        """Metric -> y."""
        if self.log:
            return self.centre + _compress((math.log(value) - self.centre) / self.scale, _BAD_LOG)
        return _compress((self.sign * value - self.centre) / self.scale, _BAD)

    def takes(self, value: float) -> bool:
        """Whether a metric value can be transformed."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def backward(self, y: float) -> float:
        """Y -> metric."""
        if self.log:
            return math.exp(min(self.centre + self.scale * _expand(y - self.centre, _BAD_LOG), 700.0))
        return self.sign * (_expand(y, _BAD) * self.scale + self.centre)
