"""The shape of the loss over HPs and scale: a loss law, and a bowl whose optimum drifts.

    f(x; θ) = L(s) + e^{g + γ·s} Σ_i c_i q(t_i; κ_i) + w·onehot
    L(s)    = l0 + ln( e + (1-e) Σ_a ω_a 2^(-α_a s_a) )            the loss law, in ln loss
    ψ(s)    = u + B s                                              the optimum's path, octaves
    t       = D^(-1/2) (I + N) D^(1/2) (v - ψ(s)),  D = diag(c)    HPs as seen from the optimum
    q(t; κ) = 2 (e^{κt} - κt - 1) / κ²  ->  t² for small κt        steeper above the optimum for κ > 0

Symbols: v, s, x as in `coordinates`; e = share of the loss that no scale removes, ω = share of each axis in
the rest, α = exponents; c = curvature per octave², γ = its change per doubling, κ = asymmetry, N = strictly
upper triangular coupling of HPs. θ stacks all of them, each with an independent normal prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates

__all__ = ["Landscape"]

MAX_COUPLED = 12
"""Up to so many HPs every pair may be coupled; beyond, the pairs outnumber any affordable study."""
_STEEPEST = 3.0
"""κt above which e^{κt} goes on as a straight line, so that a far point cannot overflow."""


@dataclass(frozen=True)
class _Block:
    start: int
    shape: tuple[int, ...]

    @property
    def part(self) -> slice:
        return slice(self.start, self.start + math.prod(self.shape))


class Landscape:
    """f(x; θ), its priors and its derivatives, for given coordinates.

    Args:
        coordinates: HPs and axes.
        drift: prior mean and sd of B, each d x a, in the HPs' own (unmixed) coordinates.
        level: prior mean of l0, the ln loss at the base scale's optimum.

    Attributes:
        mean, sd: of the prior of θ (p).
    """

    def __init__(self, coordinates: Coordinates, drift: tuple[Tensor, Tensor], level: float) -> None:
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
            names: list[str], known: dict[str, priors.Normal], other: priors.Normal
        ) -> tuple[Tensor, Tensor]:
            pairs = torch.tensor([known.get(name, other) for name in names], dtype=torch.double).reshape(
                -1, 2
            )
            return pairs[:, 0], pairs[:, 1]

        kinds = [priors.hp_kind(dim.name) for dim in coordinates.numeric]
        one = torch.ones(())
        add("l0", torch.tensor([level]), one)
        add("e", torch.zeros(1), one)  # logit of the irreducible share: 12% to 88% within 2 sd
        add("omega", torch.zeros(a), 0.7 * one)
        add("alpha", *table(coordinates.axes, priors.LAW_EXPONENT, priors.LAW_EXPONENT_OTHER))
        add("g", torch.tensor([math.log(0.01)]), 1.5 * one)
        add("gamma", torch.zeros(a), 0.25 * one)
        add("lnc", *table(kinds, priors.CURVATURE, priors.CURVATURE_OTHER))
        add("kappa", *table(kinds, priors.ASYMMETRY, priors.ASYMMETRY_OTHER))
        # The optimum may lie anywhere in the searched box: its sd is a quarter of the range.
        spread = (coordinates.z_high - coordinates.z_low) / 4
        add("u", torch.zeros(d), (coordinates.mix**2 @ spread**2).sqrt())
        mean_B, sd_B = drift
        add("B", coordinates.mix @ mean_B, (coordinates.mix**2 @ sd_B**2).sqrt())
        pairs = d * (d - 1) // 2 if d <= MAX_COUPLED else 0
        add("N", torch.zeros(pairs), 0.3 * one)
        add("w", torch.zeros(k), 0.1 * one)
        self.mean, self.sd = torch.cat(means), torch.cat(sds)
        self._upper = torch.triu_indices(d, d, 1) if pairs else None
        self._jacobian = torch.func.vmap(torch.func.grad(self._one), in_dims=(None, 0))
        self._values = torch.func.vmap(self._one, in_dims=(None, 0))

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
        """L(s): ln loss at the optimum; θ (... x p), s (a) -> (...)."""
        e = self.get(theta, "e").squeeze(-1)
        l0 = self.get(theta, "l0").squeeze(-1)
        if self.a == 0:
            return l0
        log_shares = (
            torch.log_softmax(self.get(theta, "omega"), -1) - math.log(2) * self.get(theta, "alpha") * s
        )
        reducible = torch.nn.functional.logsigmoid(-e) + torch.logsumexp(log_shares, -1)
        return l0 + torch.logaddexp(torch.nn.functional.logsigmoid(e), reducible)

    def path(self, theta: Tensor, s: Tensor) -> Tensor:
        """ψ(s): the optimum in v; θ (... x p), s (a) -> (... x d)."""
        return self.get(theta, "u") + self.get(theta, "B") @ s

    def curvature(self, theta: Tensor, s: Tensor) -> Tensor:
        """H(s) (d x d): the bowl near its optimum is (v - ψ)ᵀ H (v - ψ), ln loss per octave²; θ (p)."""
        root = torch.exp(self.get(theta, "lnc") / 2)
        half = self._coupling(theta) * root  # D^(1/2) t = (I + N) D^(1/2) (v - ψ)
        H: Tensor = torch.exp(self._log_scale(theta, s)) * half.T @ half
        return H

    def bowl(self, theta: Tensor, v: Tensor, s: Tensor) -> Tensor:
        """Excess ln loss over the optimum; θ (p), v (d), s (a) -> ()."""
        c = torch.exp(self.get(theta, "lnc"))
        root = c.sqrt()
        t = (self._coupling(theta) @ (root * (v - self.path(theta, s)))) / root
        excess = (c * _asymmetric(t, self.get(theta, "kappa"))).sum()
        return excess * torch.exp(self._log_scale(theta, s))

    def values(self, theta: Tensor, X: Tensor) -> Tensor:
        """The f of each row; θ (p), X (n x (d+k+a)) -> (n)."""
        f: Tensor = self._values(theta, X)
        return f

    def jacobian(self, theta: Tensor, X: Tensor) -> Tensor:
        """∂f/∂θ for each row (n x p)."""
        J: Tensor = self._jacobian(theta, X)
        return J

    def split(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its v (... x d), one-hot (... x k), s (... x a) of rows."""
        return X[..., : self.d], X[..., self.d : self.d + self.k], X[..., self.d + self.k :]

    def _one(self, theta: Tensor, x: Tensor) -> Tensor:
        v, flags, s = self.split(x)
        categories = (self.get(theta, "w") * flags).sum()
        return self.law(theta, s) + self.bowl(theta, v, s) + categories

    def _log_scale(self, theta: Tensor, s: Tensor) -> Tensor:
        return self.get(theta, "g").squeeze(-1) + (self.get(theta, "gamma") * s).sum(-1)

    def _coupling(self, theta: Tensor) -> Tensor:
        """I + N (d x d)."""
        identity = torch.eye(self.d, dtype=theta.dtype)
        if self._upper is None:
            return identity
        return identity.index_put((self._upper[0], self._upper[1]), self.get(theta, "N"))


def _asymmetric(t: Tensor, kappa: Tensor) -> Tensor:
    """q(t; κ) = 2 (e^{κt} - κt - 1) / κ², by its series where κt is small; elementwise."""
    x = kappa * t
    small = x.abs() < 1e-2
    safe = torch.where(small, torch.ones_like(x), x)
    growth = torch.exp(safe.clamp(max=_STEEPEST)) + (safe - _STEEPEST).clamp(min=0) * math.exp(_STEEPEST)
    exact = 2 * (growth - safe - 1) / safe**2
    series = 1 + x / 3 + x**2 / 12
    return t**2 * torch.where(small, series, exact)
