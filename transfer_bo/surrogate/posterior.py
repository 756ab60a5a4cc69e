"""Posterior of the landscape and of the optimum at a scale, given all runs; normal, in closed form.

The optimum at a scale is linear in ξ = (θ, δ): ψ(s) + δ. So at a scale that nobody has run it has a posterior
with an honest width: that of u + B s, and at least the jitter.

Symbols: ξ = (θ, δ, ρ) with θ (p) as in `landscape`, δ (d) = jitter of the optimum at the scale, ρ (1) =
residual and level error of f at one row there, if a row is given; K, J, e as in `kernel`; C = K(X, X) + noise
= L Lᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.surrogate.kernel import LandscapeKernel

__all__ = ["JointPosterior", "OptimumPosterior", "normal_draws"]


@dataclass(frozen=True, eq=False)
class JointPosterior:
    """Posterior covariances of f at rows (m), of ξ, and of e = residual + categories at other rows (j).

    Attributes:
        covariance: Cov f.
        with_latent: Cov(f, ξ).
        with_residual: Cov(f, e).
        residual: Cov e.
    """

    covariance: Float[Tensor, "m m"]
    with_latent: Float[Tensor, "m latent"]
    with_residual: Float[Tensor, "m j"]
    residual: Float[Tensor, "j j"]


class OptimumPosterior:
    """Posterior of ξ = (θ, δ, ρ): landscape parameters, jitter at one scale, error of f at one row there.

    `LandscapeGP.optimum_posterior` makes one.

    Args:
        kernel: of the fit.
        X: rows of the runs.
        y: their transformed losses.
        noise: their variances.
        s: the scale.
        x: a row at that scale, whose residual and level error join ξ.
        pending: rows of runs that have not ended: they narrow the posterior but do not move it.
        pending_noise: their variances.

    Attributes:
        mean: posterior mean of ξ (p + d, or p + d + 1 with a row).
        covariance: posterior covariance of ξ.
    """

    def __init__(
        self,
        kernel: LandscapeKernel,
        X: Float[Tensor, "n row"],
        y: Float[Tensor, " n"],
        noise: Float[Tensor, " n"],
        s: Float[Tensor, " a"],
        x: Float[Tensor, " row"] | None = None,
        pending: Float[Tensor, "m row"] | None = None,
        pending_noise: Float[Tensor, " m"] | None = None,
    ) -> None:
        self.kernel, self.landscape = kernel, kernel.landscape
        self.s, self.x = s, x
        if pending is not None and pending_noise is not None and len(pending):
            X, noise = torch.cat([X, pending]), torch.cat([noise, pending_noise])
        self.X = X

        C = kernel.covariance(X, X) + torch.diag(noise)
        self._chol = torch.linalg.cholesky(C)
        cross = self.prior_cross_covariance(X)
        solved = torch.cholesky_solve(cross, self._chol)  # n x latent
        self._half = torch.linalg.solve_triangular(self._chol, cross, upper=False)

        residual = _residual(kernel, X, y, C)
        self._whitened = torch.linalg.solve_triangular(self._chol, residual[:, None], upper=False)[:, 0]
        self.mean = self.prior_mean() + solved.T @ residual
        self.covariance = self.prior_covariance() - cross.T @ solved

    def prior_mean(self) -> Float[Tensor, " latent"]:
        """E ξ before any run."""
        extra = self.landscape.d + (self.x is not None)
        return torch.cat([self.landscape.mean, torch.zeros(extra, dtype=torch.double)])

    def prior_covariance(self) -> Float[Tensor, "latent latent"]:
        """Cov ξ before any run (diagonal)."""
        hyperparameters = self.kernel.hyperparameters
        parts = [
            self.landscape.sd**2,
            hyperparameters.jitter**2 * torch.ones(self.landscape.d, dtype=torch.double),
        ]
        if self.x is not None:
            error = hyperparameters.residual**2 + hyperparameters.level**2 * self.s.abs().sum()
            parts.append(error[None])
        return torch.diag(torch.cat(parts))

    def prior_cross_covariance(self, X: Float[Tensor, "n row"]) -> Float[Tensor, "n latent"]:
        """Cov(f(X), ξ) before any run."""
        J = self.kernel.jacobian(X)
        _, _, s = self.landscape.split(X)
        correlation = self.kernel.jitter_correlation(s, self.s[None])
        slopes = J[:, self.landscape.part("u")]
        variance = self.kernel.hyperparameters.jitter**2
        parts = [J * self.landscape.sd**2, variance * correlation * slopes]

        if self.x is not None:
            x = self.x[None]
            slope = self.kernel.jacobian(x)[:, self.landscape.part("u")]
            jitter = variance * correlation * (slopes @ slope.T)
            parts.append(self.kernel.nuisance_covariance(X, x) - jitter)
        return torch.cat(parts, -1)

    def path_map(self) -> Float[Tensor, "d latent"]:
        """T: the optimum at the scale is T ξ (plus nothing: ψ is linear in θ)."""
        d, p = self.landscape.d, self.landscape.p
        identity = torch.eye(d, dtype=torch.double)
        T = torch.zeros(d, self.mean.numel(), dtype=torch.double)
        T[:, self.landscape.part("u")] = identity
        T[:, self.landscape.part("beta")] = _block_diagonal(self.landscape.drift_slopes(self.s).unsqueeze(-2))
        T[:, p : p + d] = identity
        return self.landscape.optimum_map @ T

    def optimum(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Posterior mean and covariance of the optimum v* at the scale."""
        T = self.path_map()
        return T @ self.mean, T @ self.covariance @ T.T

    def drift(self) -> tuple[Float[Tensor, "d a"], Float[Tensor, "d a"]]:
        """Posterior mean and sd of the optimum's drift along each axis, octaves per doubling."""
        part, d, a = self.landscape.part("beta"), self.landscape.d, self.landscape.a
        rows = torch.kron(self.landscape.gauge, torch.eye(a, dtype=torch.double)) @ _block_diagonal(
            self.landscape.drift_mixing
        )
        variance = torch.einsum("ij,jk,ik->i", rows, self.covariance[part, part], rows).clamp(min=0)
        return (rows @ self.mean[part]).reshape(d, a), variance.sqrt().reshape(d, a)

    def values(self, X: Float[Tensor, "m row"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
        """Posterior mean and covariance of f at rows."""
        explained = self._explained(self.kernel.covariance(self.X, X))
        covariance = self.kernel.covariance(X, X) - explained.T @ explained
        return self.kernel.linearised_mean(X) + explained.T @ self._whitened, covariance

    def residual_and_category(
        self, X: Float[Tensor, "m row"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Posterior mean and sd of e = residual + effects of categories; differentiable.

        Args:
            X: rows of the study itself, not of a source study.
        """
        explained = self._explained(self.kernel.residual_and_category_covariance(self.X, X))
        _, flags, _ = self.landscape.split(X)
        variance = self.landscape.sd[self.landscape.part("w")] ** 2
        prior = self.kernel.hyperparameters.residual**2 + flags.square() @ variance
        return explained.T @ self._whitened, (prior - explained.square().sum(0)).clamp(min=1e-12).sqrt()

    def joint(self, X: Float[Tensor, "m row"], at: Float[Tensor, "j row"]) -> JointPosterior:
        """Posterior covariance of f at rows X with ξ, and with e at other rows: what planning needs."""
        kernel = self.kernel
        explained = self._explained(kernel.covariance(self.X, X))
        known = self._explained(kernel.residual_and_category_covariance(self.X, at))
        return JointPosterior(
            covariance=kernel.covariance(X, X) - explained.T @ explained,
            with_latent=self.prior_cross_covariance(X) - explained.T @ self._half,
            with_residual=kernel.residual_and_category_covariance(X, at) - explained.T @ known,
            residual=kernel.residual_and_category_covariance(at, at) - known.T @ known,
        )

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "count latent"]:
        """Draws of ξ."""
        return normal_draws(self.mean, self.covariance, count, generator)

    def _explained(self, K: Tensor) -> Tensor:
        """L⁻¹ K for a covariance K of the runs (n x m) with anything."""
        explained: Tensor = torch.linalg.solve_triangular(self._chol, K, upper=False)
        return explained


def normal_draws(
    mean: Float[Tensor, "*count n"], covariance: Float[Tensor, "n n"], count: int, generator: torch.Generator
) -> Float[Tensor, "draws n"]:
    """Draws of a normal vector; the covariance may be singular, the mean one vector or one for each draw."""
    values, vectors = torch.linalg.eigh(covariance)
    half = vectors * values.clamp(min=0).sqrt()
    standard = torch.randn(count, len(values), dtype=torch.double, generator=generator)
    draws: Tensor = mean + standard @ half.T
    return draws


def _residual(kernel: LandscapeKernel, X: Tensor, y: Tensor, C: Tensor) -> Tensor:
    """Losses minus their prior mean; a pending run, one beyond the losses, ends as the others predict."""
    n = len(y)
    residual = torch.zeros(len(X), dtype=y.dtype)
    residual[:n] = y - kernel.linearised_mean(X[:n])
    if len(X) > n:
        weights = torch.cholesky_solve(residual[:n, None], torch.linalg.cholesky(C[:n, :n]))
        residual[n:] = (C[n:, :n] @ weights).squeeze(-1)
    return residual


def _block_diagonal(blocks: Tensor) -> Tensor:
    """Blocks (d x m x n) along the diagonal of a matrix (dm x dn), also where there are none."""
    d, m, n = blocks.shape
    along = torch.zeros(d, m, d, n, dtype=blocks.dtype)
    i = torch.arange(d)
    along[i, :, i] = blocks
    return along.reshape(d * m, d * n)
