"""Rows of hidden matrices for optimizers that take nothing else: Muon, SOAP, Shampoo, AdamH, MuonH.

arXiv:2512.05620 and its code, for Muon, SOAP and Shampoo: learning rate and ε by fan-in and fan-out, branch
multiplier m_L^-1 (α = 1); lr·λ is in proportion to 1/width. Shampoo adds ε to squares of gradients, so with
the batch it scales as the square of Adam's (with the tokens too: derived). Its factors for split
preconditioners are in `optimizers.options_of`.

AdamH and MuonH (2606.16899) keep the norm of a matrix and step by lr times that norm. An orthogonal step is
then of the right spectral norm at every width (2603.28743). Adam's step has its whole norm in few directions,
as muP assumes, so that its spectral norm is √width too large: width^-1/2, derived. Over depth they are as
Adam.

Symbols as in `rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transfer_bo.parametrization.rules import Power, RoleExponents

__all__ = ["MATRIX_ROWS", "without"]

_RATIO = Power(width=-1, fan_out=+1)
"""m_out / m_N."""
_SQUARED_EPS = _RATIO**-1 * Power(depth=-2, batch=-0.5, tokens=+0.5)
_INIT = Power(width=-1)


def _spectral(lr: Power, eps: Power) -> RoleExponents:
    return RoleExponents(init_var=_INIT, lr=lr, eps=eps, weight_decay=lr**-1 * Power(width=-1))


def _hyperball(lr: Power, eps: Power) -> RoleExponents:
    """There is no weight decay."""
    return RoleExponents(
        init_var=_INIT,
        lr=lr * Power(depth=-1, depth_alpha=1),
        eps=eps * Power(depth_alpha=-1),
    )


MATRIX_ROWS: Mapping[str, RoleExponents] = {
    "muon": _spectral(_RATIO**0.5, _RATIO**-0.5 * Power(depth=-1)),
    "soap": _spectral(_RATIO**0.5, _RATIO**-0.5 * Power(depth=-1)),
    # E, the total inverse power, is 1/2 for Shampoo with powers -1/4, and 1 with powers -1/2.
    "shampoo": _spectral(_RATIO**0.5, _SQUARED_EPS),
    "shampoo_half": _spectral(Power(depth=-1), _SQUARED_EPS),
    "adamh": _hyperball(Power(width=-0.5), Power(width=-1)),
    "muonh": _hyperball(Power(), _RATIO**-0.5),
}
"""Exponents of two-dimensional hidden weights by optimizer."""


def without(exponents: RoleExponents, *axes: str) -> RoleExponents:
    """The exponents with those of some axes set to 0."""
    zero = dict.fromkeys(axes, 0.0)
    powers = {name: replace(power, **zero) for name, power in vars(exponents).items()}
    return RoleExponents(**powers)
