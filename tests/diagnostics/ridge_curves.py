"""Random-feature ridge regression in the proportional limit: loss curves known without training (2512.22768).

Symbols: samples / dimension -> ψ1, features / dimension -> ψ2, λ the ridge penalty. The activation σ = tanh
and the target σ* = ReLU, both centred and scaled to unit variance under a standard normal z, have
μ1 = E[σ'(z)], μ2² = 1 - μ1² and likewise μ1*, μ2*; σ_ε² is the label noise. The risk is

    R(λ) = -(μ2*² + σ_ε²) m1'/m1² - μ1*² m2'/m1²,    ' = d/dλ,

with m1, m2 > 0 the solution of two equations in λ. Put m2 = r m1: both then are linear in what is left, so
that m1(r) and λ(r) are rational functions and every curve is exact to rounding:

    m1 = ψ2 (1 - r) / (ψ1 (ψ2 μ1² r - q)),   λ m1 = 1 - q / (ψ1 μ1² r),   q = (1 - r)(μ2² + μ1² r).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

Array = npt.NDArray[np.float64]

PSI1 = 4.0
NOISE = 0.25
_Z, _W = np.polynomial.hermite_e.hermegauss(200)
_W = _W / np.sqrt(2 * np.pi)
_TANH = np.tanh(_Z)
MU1_2 = float((_W @ (1 - _TANH**2)) ** 2 / (_W @ _TANH**2))
MU2_2 = 1 - MU1_2
MU1_STAR_2 = float(0.25 / (0.5 - 1 / (2 * np.pi)))  # ReLU: E[σ*'] = 1/2, variance 1/2 - 1/(2π)
MU2_STAR_2 = 1 - MU1_STAR_2
BEST_AT_INFINITY = MU1_2 * (NOISE + MU2_STAR_2) / MU1_STAR_2 - MU2_2
"""λ*(∞), in closed form."""


def _solution(r: complex, psi2: float) -> tuple[complex, complex, complex]:
    """(m1, m2, λ) at r = m2 / m1; psi2 may be infinite."""
    q = (1 - r) * (MU2_2 + MU1_2 * r)
    m1 = (1 - r) / (PSI1 * (MU1_2 * r - q / psi2))
    return m1, r * m1, (1 - q / (PSI1 * MU1_2 * r)) / m1


@functools.cache
def _lowest_r(psi2: float) -> float:
    """Where λ = 0 or m1 has its pole, whichever comes first from r = 1."""
    grid = np.linspace(1 - 1e-9, 1e-6, 20_001)
    for left, right in itertools.pairwise(grid):
        m1, _, penalty = _solution(complex(right), psi2)
        if m1.real <= 0 or penalty.real <= 0:
            return float(left)
    raise AssertionError("λ stays positive")


def risk(penalty: float, psi2: float) -> float:
    """The test risk at a ridge penalty and width ratio ψ2 (infinity allowed)."""
    r = brentq(
        lambda at: _solution(complex(at), psi2)[2].real - penalty, _lowest_r(psi2), 1 - 1e-9, xtol=1e-15
    )
    step = 1e-30  # complex-step derivatives have no cancellation
    m1, m2, at = _solution(complex(r, step), psi2)
    slope = at.imag
    dm1, dm2 = m1.imag / slope, m2.imag / slope
    return float(-((MU2_STAR_2 + NOISE) * dm1 + MU1_STAR_2 * dm2) / m1.real**2)


def risk_at_infinity(penalty: float) -> float:
    """R∞ by its own closed form, to hold `risk` to."""

    def excess(t: float) -> float:
        return MU1_2 * PSI1 / (t - 1) - MU1_2 / t - MU2_2 - penalty

    t = brentq(excess, 1 + 1e-9, 1e9, xtol=1e-14)
    return float(PSI1 * ((MU2_STAR_2 + NOISE) * t**2 + MU1_STAR_2) / (PSI1 * t**2 - (t - 1) ** 2))
