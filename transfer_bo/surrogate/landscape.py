"""The shape of the loss over HPs and scale: a loss law, and a bowl whose optimum drifts.

    f(x; θ) = L(s) + A ln(1 + b / A) + w·onehot
    b       = e^{g + γ·s} Σ_i c_i q(t_i; κ_i)                      the bowl; far out the loss grows slowly
    L(s)                                                           the loss law, see `loss_law`
    ψ(s)    = M P (u + B s)                                        the optimum's path, octaves
    t       = D^(-1/2) (I + N) D^(1/2) (v - ψ(s)),  D = diag(c)    HPs as seen from the optimum
    q(t; κ) = 2 (e^{κt} - κt - 1) / κ²  ->  t² for small κt        steeper above the optimum for κ > 0;
                                                                   above κt = 3 on as a straight line

Symbols: v, z, s, x, M, d, k, a, q as in `coordinates`; c = curvature per octave², γ = its change per
doubling, κ = asymmetry, N = strictly upper triangular coupling of HPs; u, B = optimum at the base and its
drift, in z: the prior of a multiplier does not depend on what it multiplies, though the loss does (v = M z);
w = effect of each category.

P makes the multipliers of a kind average to 0 where they cover all tensors, see `Landscape.optimum_map`; with
any other HPs it is the identity. θ (p) stacks all parameters, each with an independent normal prior; for B
these are β, B_i = C_i β_i for HP i, with C_i unit lower triangular, so that the drifts of an HP along several
axes may be correlated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.space import complete_families
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.loss_law import LossLaw
from transfer_bo.synonyms import axis_kind

__all__ = [
    "FLATTEN",
    "MAX_COUPLED",
    "STEEPEST",
    "CurvaturePrior",
    "DriftPrior",
    "Landscape",
    "asymmetric",
    "optimum_sd",
    "usual_curvature",
]

MAX_COUPLED = 12
"""Up to so many HPs every pair may be coupled; beyond, the pairs outnumber any affordable study."""
FLATTEN = 0.3
"""A: excess ln loss from which the bowl flattens: of runs that learnt nothing it says little; weak."""
STEEPEST = 3.0
"""κt above which e^{κt}, and with it q, goes on along its tangent, so that a far point cannot overflow."""


@dataclass(frozen=True)
class _Block:
    """Where one kind of parameter stands in θ, and its own shape."""

    part: slice
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DriftPrior:
    """Normal prior of the drift B, octaves per doubling.

    Attributes:
        mean: of each HP along each axis (d x a).
        sd: likewise (d x a).
        correlation: of the drifts of one HP along the axes (d x a x a).
    """

    mean: Float[Tensor, "d a"]
    sd: Float[Tensor, "d a"]
    correlation: Float[Tensor, "d a a"]

    @classmethod
    def from_tables(
        cls,
        names: Sequence[str],
        axes: Sequence[str],
        coordinates: str,
        overrides: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> DriftPrior:
        """The prior from the tables of `priors`.

        Args:
            names: of the numeric HPs.
            axes: that vary.
            coordinates: "raw" or "base".
            overrides: `{hp: {axis: (mean, sd)}}`, which replaces mean and sd of the tables.
            kinds: HP or axis -> its kind, where its name does not tell it.
        """
        d, a = len(names), len(axes)
        table = priors.drift_priors(names, axes, coordinates, overrides, kinds)
        mean_and_sd = torch.tensor(table, dtype=torch.double).reshape(d, a, 2)

        kinds = kinds or {}
        called = [kinds.get(axis, axis) for axis in axes]
        by_hp = [priors.drift_correlation(kinds.get(name, name), called, coordinates) for name in names]
        correlation = torch.tensor(by_hp, dtype=torch.double).reshape(d, a, a)
        return cls(mean_and_sd[..., 0], mean_and_sd[..., 1], correlation)

    def base_optimum(self, coordinates: Coordinates, target: Scale) -> Float[Tensor, " d"]:
        """Prior mean of u, the optimum at the base, in z.

        A default is meant for the base. Of an HP without one only the range is known; it is chosen to hold
        the optima of all scales, so its middle is taken for the optimum halfway to the target.
        """
        ranged = torch.tensor([dim.default is None for dim in coordinates.numeric], dtype=torch.double)
        return -ranged * (self.mean @ coordinates.s(target)) / 2

    def independent(self) -> tuple[Float[Tensor, "d a a"], Float[Tensor, "d a"], Float[Tensor, "d a"]]:
        """C, and mean and sd of β: independent, with B_i = C_i β_i."""
        root = torch.linalg.cholesky(self.correlation)
        diagonal = root.diagonal(dim1=-2, dim2=-1)
        ratio = self.sd.unsqueeze(-1) / self.sd.unsqueeze(-2)
        C = torch.where(root == 0, 0.0, root / diagonal.unsqueeze(-2) * ratio)
        mean = torch.linalg.solve_triangular(C, self.mean.unsqueeze(-1), upper=False, unitriangular=True)
        return C, mean.squeeze(-1), self.sd * diagonal


@dataclass(frozen=True, eq=False)
class CurvaturePrior:
    """Normal prior of ln(c_i e^g) of each HP that stands in for the tables, see `sparsity`.

    Attributes:
        mean: its mean (d).
        sd: its sd (d).
        optimum: where the runs see the optimum, in z; nan of HPs without an effect (d).
    """

    mean: Float[Tensor, " d"]
    sd: Float[Tensor, " d"]
    optimum: Float[Tensor, " d"]


def usual_curvature(coordinates: Coordinates) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and sd of ln(c_i e^g) of each HP by the tables of `priors`."""
    kinds = [priors.bowl_kind(name) for name in coordinates.hps_as_known]
    mean, sd = _look_up(kinds, priors.CURVATURE, priors.CURVATURE_OTHER)
    return mean.double() + priors.CURVATURE_SCALE[0], sd.double()


def optimum_sd(coordinates: Coordinates) -> Float[Tensor, " d"]:
    """Prior sd of each HP's optimum at the base, octaves."""
    share = torch.tensor(
        [
            priors.optimum_spread(name, dim.default is not None)
            for name, dim in zip(coordinates.hps_as_known, coordinates.numeric, strict=True)
        ],
        dtype=torch.double,
    )
    spread: Tensor = (coordinates.z_high - coordinates.z_low) * share
    return spread


class Landscape:
    """f(x; θ), its priors and its derivatives, for given coordinates.

    Args:
        coordinates: HPs and axes.
        drift_prior: prior of B.
        level: prior mean of l0, the ln loss at the base scale's optimum.
        target: the scale that the study is for, see `DriftPrior.base_optimum`; None for the base.
        curvature: prior of the curvatures; None for that of the tables.

    Attributes:
        mean, sd: of the prior of θ (p).
        drift_mixing: C (d x a x a), so that B_i = C_i β_i.
        gauge: P (d x d).
        optimum_map: M P (d x d). Where every tensor has a multiplier of its kind, the kind's common value is
            not identifiable: twice as much of it is the same as twice as much of each multiplier. So such
            multipliers average to 0 (in log2, from their defaults) under the prior, at every scale.
    """

    def __init__(
        self,
        coordinates: Coordinates,
        drift_prior: DriftPrior,
        level: float,
        target: Scale | None = None,
        curvature: CurvaturePrior | None = None,
    ) -> None:
        self.coordinates, self.curvature_prior = coordinates, curvature
        d, k, a = coordinates.d, coordinates.k, coordinates.a
        self.d, self.k, self.a = d, k, a
        self.drift_mixing, beta_mean, beta_sd = drift_prior.independent()
        self.gauge = _gauge([dim.name for dim in coordinates.numeric])
        self.optimum_map = coordinates.mix @ self.gauge

        kinds = [priors.bowl_kind(name) for name in coordinates.hps_as_known]
        axis_kinds = [axis_kind(axis) for axis in coordinates.axes_as_known]
        self.loss_law = LossLaw(axis_kinds)
        pairs = list(combinations(kinds, 2)) if d <= MAX_COUPLED else []  # in the order of `_upper`
        self._upper = torch.triu_indices(d, d, 1) if pairs else None
        lnc, lnc_sd = usual_curvature(coordinates) if curvature is None else (curvature.mean, curvature.sd)
        u_sd = optimum_sd(coordinates)
        if curvature is not None:
            widened = priors.OPTIMUM_SPREAD_WITH_EFFECT * (coordinates.z_high - coordinates.z_low)
            u_sd = torch.where(curvature.optimum.isnan(), u_sd, torch.maximum(u_sd, widened))

        of_theta: dict[str, tuple[Tensor, Tensor]] = {
            "l0": _normal(torch.tensor([level]), priors.LAW_LEVEL_SD),
            "e": _normal(torch.tensor([priors.IRREDUCIBLE_LOGIT[0]]), priors.IRREDUCIBLE_LOGIT[1]),
            "omega": _normal(torch.zeros(a + 1), priors.LAW_AXIS_SHARE_SD),
            "alpha": _look_up(axis_kinds, priors.LAW_EXPONENT, priors.LAW_EXPONENT_OTHER),
            "lnzeta": _normal(torch.tensor([priors.LAW_MIXING[0]]), priors.LAW_MIXING[1]),
            "g": _normal(torch.tensor([priors.CURVATURE_SCALE[0]]), priors.CURVATURE_SCALE[1]),
            "gamma": _normal(torch.zeros(a), priors.CURVATURE_SCALE_DRIFT_SD),
            "lnc": (lnc - priors.CURVATURE_SCALE[0], lnc_sd),
            "kappa": _look_up(kinds, priors.ASYMMETRY, priors.ASYMMETRY_OTHER),
            "u": (drift_prior.base_optimum(coordinates, target or coordinates.base), u_sd),
            "beta": (beta_mean, beta_sd),
            "N": _look_up([frozenset(pair) for pair in pairs], priors.COUPLING, priors.COUPLING_OTHER),
            "w": _normal(torch.zeros(k), priors.CATEGORY_EFFECT_SD),
        }

        self._blocks: dict[str, _Block] = {}
        start = 0
        for name, (mean, _) in of_theta.items():
            self._blocks[name] = _Block(slice(start, start + mean.numel()), tuple(mean.shape))
            start += mean.numel()
        self.mean, self.sd = (
            torch.cat([part.reshape(-1).double() for part in parts])
            for parts in zip(*of_theta.values(), strict=True)
        )

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

    def law(self, theta: Float[Tensor, "*#b p"], s: Float[Tensor, "*#b a"]) -> Float[Tensor, "*b"]:
        """L(s): ln loss at the optimum."""
        return self.loss_law.values(self._law_parameters(theta), s)

    def drift(self, theta: Float[Tensor, "*b p"]) -> Float[Tensor, "*b d a"]:
        """P B: octaves per doubling."""
        B = (self.drift_mixing @ self.get(theta, "beta").unsqueeze(-1)).squeeze(-1)
        return self.gauge @ B

    def drift_slopes(self, s: Float[Tensor, "*b a"]) -> Float[Tensor, "*b d a"]:
        """∂(B s)_i/∂β_i = C_iᵀ s."""
        slopes: Tensor = torch.tensordot(s, self.drift_mixing, dims=([-1], [1]))
        return slopes

    def path(self, theta: Float[Tensor, "*#b p"], s: Float[Tensor, "*#b a"]) -> Float[Tensor, "*b d"]:
        """ψ(s): the optimum in v."""
        moved = torch.einsum("...da,...da->...d", self.get(theta, "beta"), self.drift_slopes(s))
        return (self.get(theta, "u") + moved) @ self.optimum_map.T

    def curvature(self, theta: Float[Tensor, " p"], s: Float[Tensor, " a"]) -> Float[Tensor, "d d"]:
        """H(s): the bowl near its optimum is (v - ψ)ᵀ H (v - ψ), ln loss per octave²."""
        root = self.curvature_root(theta, s)
        return root.T @ root

    def curvature_root(self, theta: Float[Tensor, " p"], s: Float[Tensor, " a"]) -> Float[Tensor, "d d"]:
        """R with H(s) = RᵀR: e^((g + γ·s) / 2) (I + N) D^(1/2)."""
        of_hp = torch.exp((self.get(theta, "lnc") + self._log_scale(theta, s)) / 2)
        root: Tensor = self._coupling(theta) * of_hp
        return root

    def bowl(
        self, theta: Float[Tensor, "*#b p"], v: Float[Tensor, "*#b d"], s: Float[Tensor, "*#b a"]
    ) -> Float[Tensor, "*b"]:
        """Excess loss: ln loss over that of the optimum of the scale."""
        root = torch.exp(self.get(theta, "lnc") / 2)
        a = root * (v - self.path(theta, s))
        coupled = a if self._upper is None else torch.einsum("...ij,...j->...i", self._coupling(theta), a)
        q = asymmetric(coupled / root, self.get(theta, "kappa"))
        bowl = (root**2 * q).sum(-1) * torch.exp(self._log_scale(theta, s))
        return FLATTEN * torch.log1p(bowl / FLATTEN)

    def excess_loss(self, theta: Float[Tensor, " p"], X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b"]:
        """The bowl at each row."""
        v, _, s = self.split(X)
        return self.bowl(theta, v, s)

    def values(self, theta: Float[Tensor, " p"], X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b"]:
        """The f of each row."""
        v, flags, s = self.split(X)
        return self.law(theta, s) + self.bowl(theta, v, s) + flags @ self.get(theta, "w")

    def jacobian(self, theta: Float[Tensor, " p"], X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b p"]:
        """∂f/∂θ for each row, by hand for speed."""
        v, flags, s = self.split(X)

        # The bowl
        scale = torch.exp(self._log_scale(theta, s)).unsqueeze(-1)
        c = torch.exp(self.get(theta, "lnc"))
        root = c.sqrt()
        coupling = self._coupling(theta)
        a = root * (v - self.path(theta, s))
        t = (a @ coupling.T) / root
        q = asymmetric(t, self.get(theta, "kappa"))
        q_t, q_kappa = _asymmetric_slopes(t, self.get(theta, "kappa"))

        # Chain rule: through the logarithm that flattens it, b = √c t and a = √c (v - ψ)
        scale = scale / (1 + (scale * c * q).sum(-1, keepdim=True) / FLATTEN)
        by_b = scale * root * q_t
        by_a = by_b @ coupling
        by_u = -(by_a * root) @ self.optimum_map

        parts = self.loss_law.slopes(self._law_parameters(theta), s) | {
            "g": scale * (c * q).sum(-1, keepdim=True),
            "gamma": scale * (c * q).sum(-1, keepdim=True) * s,
            "lnc": scale * c * (q - 0.5 * t * q_t) + 0.5 * by_a * a,
            "kappa": scale * c * q_kappa,
            "u": by_u,
            "beta": (by_u.unsqueeze(-1) * self.drift_slopes(s)).flatten(-2),
            "w": flags,
        }
        if self._upper is not None:
            parts["N"] = by_b[..., self._upper[0]] * a[..., self._upper[1]]
        return torch.cat([parts[name] for name in self._blocks if name in parts], -1)

    def split(
        self, X: Float[Tensor, "*b row"]
    ) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b k"], Float[Tensor, "*b a"]]:
        """The v, one-hot categories and s of rows."""
        scale = self.d + self.k
        return X[..., : self.d], X[..., self.d : scale], X[..., scale : scale + self.a]

    def source_flags(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b q"]:
        """Which source study each row comes from, one-hot; zeros for the study's own."""
        first = self.d + self.k + self.a
        return X[..., first : first + len(self.coordinates.sources)]

    def seed_flags(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b g"]:
        """Which shared seed each row has, one-hot; zeros if it has one of its own."""
        return X[..., self.d + self.k + self.a + len(self.coordinates.sources) :]

    def has_own_seed(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b"]:
        """1 for rows that share no seed, 0 for the others."""
        return 1 - self.seed_flags(X).sum(-1)

    def _law_parameters(self, theta: Tensor) -> dict[str, Tensor]:
        return {name: self.get(theta, name) for name in self.loss_law.names}

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


def _gauge(names: Sequence[str]) -> Tensor:
    """P (d x d): subtracts the mean of the multipliers of each kind that cover all tensors."""
    P = torch.eye(len(names), dtype=torch.double)
    for members in complete_families(names):
        index = torch.tensor([names.index(name) for name in members])
        P[index[:, None], index] -= 1 / len(members)
    return P


def _normal(mean: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    """Mean and sd of independent priors with a common sd."""
    return mean, torch.full_like(mean, sd)


def _look_up(
    names: Sequence[Any], known: Mapping[Any, priors.Normal], other: priors.Normal
) -> tuple[Tensor, Tensor]:
    """Mean and sd of the priors of names, from a table and one for all that it does not hold."""
    pairs = torch.tensor([known.get(name, other) for name in names], dtype=torch.double).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def asymmetric(t: Tensor, kappa: Tensor) -> Tensor:
    """q(t; κ) = 2 (e^{κt} - κt - 1) / κ², elementwise; a series for small κt, a straight line above 3."""
    x = kappa * t
    small = x.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(x), x)
    growth = torch.exp(safe.clamp(max=STEEPEST)) + (safe - STEEPEST).clamp(min=0) * math.exp(STEEPEST)
    return t**2 * torch.where(small, 1 + x / 3 + x**2 / 12, 2 * (growth - safe - 1) / safe**2)


def _asymmetric_slopes(t: Tensor, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """∂q/∂t and ∂q/∂κ, elementwise."""
    x = kappa * t
    small = x.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(x), x)
    slope = torch.exp(safe.clamp(max=STEEPEST))
    growth = slope + (safe - STEEPEST).clamp(min=0) * math.exp(STEEPEST)
    tilt = 2 * (slope - 1) / safe
    by_kappa = (tilt - 4 * (growth - safe - 1) / safe**2) / safe
    q_t = t * torch.where(small, 2 + x + x**2 / 3, tilt)
    return q_t, t**3 * torch.where(small, 1 / 3 + x / 6 + x**2 / 20, by_kappa)
