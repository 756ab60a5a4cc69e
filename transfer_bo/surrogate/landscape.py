"""The shape of the loss over HPs and scale: a loss law, and a bowl whose optimum drifts.

    f(x; θ) = L(s) + A ln(1 + b / A) + w·onehot
    b       = e^{g + γ·s} Σ_i c_i q(t_i; κ_i)                      the bowl; far out the loss grows slowly
    L(s)    = l0 + ln( e + (1-e) Σ_a ω_a 2^(-α_a s_a) )            the loss law, in ln loss
    ψ(s)    = M (u + B s)                                          the optimum's path, octaves
    t       = D^(-1/2) (I + N) D^(1/2) (v - ψ(s)),  D = diag(c)    HPs as seen from the optimum
    q(t; κ) = 2 (e^{κt} - κt - 1) / κ²  ->  t² for small κt        steeper above the optimum for κ > 0

Symbols: v, s, x as in `coordinates`; e = share of the loss that no scale removes, ω = share of each axis in
the rest, α = exponents; c = curvature per octave², γ = its change per doubling, κ = asymmetry, N = strictly
upper triangular coupling of HPs; u, B = optimum at the base and its drift, in the HPs' own coordinates z:
what is believed of a multiplier does not depend on what it multiplies, though the loss does (v = M z).
θ stacks all of them, each with an independent normal prior; for B these are β, B_i = C_i β_i for HP i, with
C_i unit lower triangular, so that the drifts of an HP along several axes may be correlated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.synonyms import hp_kind

__all__ = ["FLATTEN", "Drift", "Landscape"]

MAX_COUPLED = 12
"""Up to so many HPs every pair may be coupled; beyond, the pairs outnumber any affordable study."""
FLATTEN = 0.3
"""A: excess ln loss from which the bowl flattens; of runs that learnt next to nothing it can say little."""
_STEEPEST = 3.0
"""κt above which e^{κt} goes on as a straight line, so that a far point cannot overflow."""


@dataclass(frozen=True)
class _Block:
    start: int
    shape: tuple[int, ...]

    @property
    def part(self) -> slice:
        return slice(self.start, self.start + math.prod(self.shape))


@dataclass(frozen=True)
class Drift:
    """What is believed of B: mean and sd (d x a), and the correlation of each HP's row (d x a x a)."""

    mean: Tensor
    sd: Tensor
    correlation: Tensor

    @classmethod
    def believed(
        cls,
        names: Sequence[str],
        axes: Sequence[str],
        coordinates: str,
        overrides: Mapping[str, Mapping[str, priors.Normal]] | None = None,
    ) -> Drift:
        """From the tables of `priors`; an HP's own prior replaces mean and sd."""
        d, a = len(names), len(axes)
        table = priors.drift_priors(names, axes, coordinates, overrides)
        both = torch.tensor(table, dtype=torch.double).reshape(d, a, 2)
        together = [priors.drift_correlation(name, axes, coordinates) for name in names]
        correlation = torch.tensor(together, dtype=torch.double).reshape(d, a, a)
        return cls(both[..., 0], both[..., 1], correlation)

    def origin(self, coordinates: Coordinates, target: Scale) -> Tensor:
        """Prior mean of u (d), the optimum at the base.

        A default is meant for the base. Of an HP without one only the range is known; it is chosen to hold
        the optima of all scales, so its middle is taken for the optimum halfway to the target.
        """
        ranged = torch.tensor([dim.default is None for dim in coordinates.numeric], dtype=torch.double)
        return -ranged * (self.mean @ coordinates.s(target)) / 2

    def unmixed(self) -> tuple[Tensor, Tensor, Tensor]:
        """C (d x a x a), and mean and sd of β (d x a): independent, with B_i = C_i β_i."""
        root = torch.linalg.cholesky(self.correlation)
        diagonal = root.diagonal(dim1=-2, dim2=-1)
        ratio = self.sd.unsqueeze(-1) / self.sd.unsqueeze(-2)
        C = torch.where(root == 0, 0.0, root / diagonal.unsqueeze(-2) * ratio)
        mean = torch.linalg.solve_triangular(C, self.mean.unsqueeze(-1), upper=False, unitriangular=True)
        return C, mean.squeeze(-1), self.sd * diagonal


class Landscape:
    """f(x; θ), its priors and its derivatives, for given coordinates.

    Args:
        coordinates: HPs and axes.
        drift: prior of B.
        level: prior mean of l0, the ln loss at the base scale's optimum.
        target: the scale that the study is for, see `Drift.origin`; None for the base.

    Attributes:
        mean, sd: of the prior of θ (p).
        trade: C (d x a x a), so that B_i = C_i β_i.
    """

    def __init__(
        self, coordinates: Coordinates, drift: Drift, level: float, target: Scale | None = None
    ) -> None:
        self.coordinates = coordinates
        d, k, a = coordinates.d, coordinates.k, coordinates.a
        self.d, self.k, self.a = d, k, a
        self._blocks: dict[str, _Block] = {}
        means: list[Tensor] = []
        sds: list[Tensor] = []

        def add(name: str, mean: Tensor, sd: Tensor) -> None:
            self._blocks[name] = _Block(sum(m.numel() for m in means), tuple(mean.shape))
            means.append(mean.reshape(-1).double())
            sds.append(sd.expand(mean.shape).reshape(-1).double())

        def table(
            names: Sequence[Any], known: Mapping[Any, priors.Normal], other: priors.Normal
        ) -> tuple[Tensor, Tensor]:
            pairs = torch.tensor([known.get(name, other) for name in names], dtype=torch.double).reshape(
                -1, 2
            )
            return pairs[:, 0], pairs[:, 1]

        kinds = [hp_kind(dim.name) for dim in coordinates.numeric]
        one = torch.ones(())
        add("l0", torch.tensor([level]), one)
        add("e", torch.zeros(1), one)  # logit of the irreducible share: 12% to 88% within 2 sd
        add("omega", torch.zeros(a), 0.7 * one)
        add("alpha", *table(coordinates.axes, priors.LAW_EXPONENT, priors.LAW_EXPONENT_OTHER))
        add("g", torch.tensor([priors.BOWL[0]]), priors.BOWL[1] * one)
        add("gamma", torch.zeros(a), 0.25 * one)
        add("lnc", *table(kinds, priors.CURVATURE, priors.CURVATURE_OTHER))
        add("kappa", *table(kinds, priors.ASYMMETRY, priors.ASYMMETRY_OTHER))
        share = torch.tensor(
            [priors.optimum_spread(dim.name, dim.default is not None) for dim in coordinates.numeric]
        )
        spread = (coordinates.z_high - coordinates.z_low) * share.double()
        add("u", drift.origin(coordinates, target or coordinates.base), spread)
        self.trade, *independent = drift.unmixed()
        add("beta", *independent)
        pairs = list(combinations(kinds, 2)) if d <= MAX_COUPLED else []  # in the order of `_upper`
        add("N", *table([frozenset(pair) for pair in pairs], priors.COUPLING, priors.COUPLING_OTHER))
        add("w", torch.zeros(k), 0.3 * one)
        self.mean, self.sd = torch.cat(means), torch.cat(sds)
        self._upper = torch.triu_indices(d, d, 1) if pairs else None

    @property
    def p(self) -> int:
        """Number of parameters."""
        return self.mean.numel()

    def get(self, theta: Tensor, name: str) -> Tensor:
        """One block of θ (... x p), in its own shape (... x shape)."""
        block = self._blocks[name]
        return theta[..., block.part].reshape(*theta.shape[:-1], *block.shape)

    def part(self, name: str) -> slice:
        """Where a block stands in θ."""
        return self._blocks[name].part

    def law(self, theta: Tensor, s: Tensor) -> Tensor:
        """L(s): ln loss at the optimum; θ (... x p), s (... x a) -> (...)."""
        return self.get(theta, "l0").squeeze(-1) + torch.logsumexp(self._log_shares(theta, s), -1)

    def drift(self, theta: Tensor) -> Tensor:
        """B (... x d x a); θ (... x p)."""
        return (self.trade @ self.get(theta, "beta").unsqueeze(-1)).squeeze(-1)

    def slopes(self, s: Tensor) -> Tensor:
        """∂(B s)_i/∂β_i = C_iᵀ s; s (... x a) -> (... x d x a)."""
        slopes: Tensor = torch.tensordot(s, self.trade, dims=([-1], [1]))
        return slopes

    def path(self, theta: Tensor, s: Tensor) -> Tensor:
        """ψ(s): the optimum in v; θ (... x p), s (... x a) -> (... x d)."""
        moved = torch.einsum("...da,...da->...d", self.get(theta, "beta"), self.slopes(s))
        return (self.get(theta, "u") + moved) @ self.coordinates.mix.T

    def curvature(self, theta: Tensor, s: Tensor) -> Tensor:
        """H(s) (d x d): the bowl near its optimum is (v - ψ)ᵀ H (v - ψ), ln loss per octave²; θ (p)."""
        root = torch.exp(self.get(theta, "lnc") / 2)
        half = self._coupling(theta) * root  # D^(1/2) t = (I + N) D^(1/2) (v - ψ)
        H: Tensor = torch.exp(self._log_scale(theta, s)) * half.T @ half
        return H

    def bowl(self, theta: Tensor, v: Tensor, s: Tensor) -> Tensor:
        """Excess ln loss over the optimum; θ (... x p), v (... x d), s (... x a) -> (...)."""
        root = torch.exp(self.get(theta, "lnc") / 2)
        a = root * (v - self.path(theta, s))
        coupled = a if self._upper is None else torch.einsum("...ij,...j->...i", self._coupling(theta), a)
        q = _asymmetric(coupled / root, self.get(theta, "kappa"))
        bowl = (root**2 * q).sum(-1) * torch.exp(self._log_scale(theta, s))
        return FLATTEN * torch.log1p(bowl / FLATTEN)

    def values(self, theta: Tensor, X: Tensor) -> Tensor:
        """The f of each row; θ (p), X (... x (d+k+a)) -> (...)."""
        v, flags, s = self.split(X)
        return self.law(theta, s) + self.bowl(theta, v, s) + flags @ self.get(theta, "w")

    def jacobian(self, theta: Tensor, X: Tensor) -> Tensor:
        """∂f/∂θ for each row, by hand for speed; θ (p), X (... x (d+k+a)) -> (... x p)."""
        v, flags, s = self.split(X)
        shares = torch.softmax(self._log_shares(theta, s), -1)  # of e, then of each axis, in the law
        reducible = shares[..., 1:]
        e = torch.sigmoid(self.get(theta, "e"))
        omega = torch.softmax(self.get(theta, "omega"), -1)
        parts = {
            "l0": torch.ones_like(shares[..., :1]),
            # Without an axis nothing is reducible, whatever e is.
            "e": (shares[..., :1] * (1 - e) - reducible.sum(-1, keepdim=True) * e) * (self.a > 0),
            "omega": reducible - omega * reducible.sum(-1, keepdim=True),
            "alpha": -math.log(2) * s * reducible,
        }
        scale = torch.exp(self._log_scale(theta, s)).unsqueeze(-1)
        c = torch.exp(self.get(theta, "lnc"))
        root = c.sqrt()
        coupling = self._coupling(theta)
        a = root * (v - self.path(theta, s))
        t = (a @ coupling.T) / root
        q = _asymmetric(t, self.get(theta, "kappa"))
        q_t, q_kappa = _asymmetric_slopes(t, self.get(theta, "kappa"))
        scale = scale / (1 + (scale * c * q).sum(-1, keepdim=True) / FLATTEN)
        by_b = scale * root * q_t  # b = √c t
        by_a = by_b @ coupling
        by_u = -(by_a * root) @ self.coordinates.mix
        parts |= {
            "g": scale * (c * q).sum(-1, keepdim=True),
            "gamma": scale * (c * q).sum(-1, keepdim=True) * s,
            "lnc": scale * c * (q - 0.5 * t * q_t) + 0.5 * by_a * a,
            "kappa": scale * c * q_kappa,
            "u": by_u,
            "beta": (by_u.unsqueeze(-1) * self.slopes(s)).flatten(-2),
            "w": flags,
        }
        if self._upper is not None:
            parts["N"] = by_b[..., self._upper[0]] * a[..., self._upper[1]]
        return torch.cat([parts[name] for name in self._blocks if name in parts], -1)

    def split(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its v (... x d), one-hot (... x k), s (... x a) of rows."""
        scale = self.d + self.k
        return X[..., : self.d], X[..., self.d : scale], X[..., scale : scale + self.a]

    def past(self, X: Tensor) -> Tensor:
        """Which past study each row comes from, one-hot; zeros for the study's own (... x q)."""
        return X[..., self.d + self.k + self.a :]

    def _log_shares(self, theta: Tensor, s: Tensor) -> Tensor:
        """Logarithms of the law's terms, of e, then of the axes (... x (1 + a)); at s = 0 they sum to 1."""
        e = self.get(theta, "e")
        axes = torch.log_softmax(self.get(theta, "omega"), -1) - math.log(2) * self.get(theta, "alpha") * s
        floor = torch.nn.functional.logsigmoid(e if self.a else e + math.inf)  # no axis: all of it stays
        reducible = torch.nn.functional.logsigmoid(-e) + axes
        return torch.cat([floor.expand(*reducible.shape[:-1], 1), reducible], -1)

    def _log_scale(self, theta: Tensor, s: Tensor) -> Tensor:
        return self.get(theta, "g").squeeze(-1) + (self.get(theta, "gamma") * s).sum(-1)

    def _coupling(self, theta: Tensor) -> Tensor:
        """I + N; θ (... x p) -> (... x d x d)."""
        coupling = torch.eye(self.d, dtype=theta.dtype).expand(*theta.shape[:-1], -1, -1)
        if self._upper is None:
            return coupling
        coupling = coupling.clone()
        coupling[..., self._upper[0], self._upper[1]] = self.get(theta, "N")
        return coupling


def _asymmetric(t: Tensor, kappa: Tensor) -> Tensor:
    """q(t; κ) = 2 (e^{κt} - κt - 1) / κ², elementwise; by series where κt is small."""
    x = kappa * t
    small = x.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(x), x)
    growth = torch.exp(safe.clamp(max=_STEEPEST)) + (safe - _STEEPEST).clamp(min=0) * math.exp(_STEEPEST)
    return t**2 * torch.where(small, 1 + x / 3 + x**2 / 12, 2 * (growth - safe - 1) / safe**2)


def _asymmetric_slopes(t: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """∂q/∂t and ∂q/∂κ, elementwise."""
    x = kappa * t
    small = x.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(x), x)
    slope = torch.exp(safe.clamp(max=_STEEPEST))
    growth = slope + (safe - _STEEPEST).clamp(min=0) * math.exp(_STEEPEST)
    tilt = 2 * (slope - 1) / safe
    by_kappa = (tilt - 4 * (growth - safe - 1) / safe**2) / safe
    q_t = t * torch.where(small, 2 + x + x**2 / 3, tilt)
    return q_t, t**3 * torch.where(small, 1 / 3 + x / 6 + x**2 / 20, by_kappa)
