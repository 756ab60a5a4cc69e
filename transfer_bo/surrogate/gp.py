"""The surrogate: a Gaussian process over (HPs, scale) with a loss law, a bowl and a drifting optimum inside.

The landscape f(x; θ) is linearised at its most probable θ̂ (Gauss-Newton, repeated until it rests). With a
normal prior on θ that makes y a Gaussian process, with the tangent kernel J(x) Σ0 J(x')ᵀ. To it come

    jitter     τ² (∂f/∂u · ∂f'/∂u) k(s, s')     each scale's optimum lies a little off the straight path
    residual   r² RBF(v, s)                     what the bowl cannot say
    level      l² Σ_a min(|s_a|, |s'_a|)        the loss law's own error, growing away from the base
    noise      σ² + (λ · excess)²               far from the optimum the bowl is only roughly right

so the optimum at a scale nobody has run has a posterior with an honest width: var(u + B s) and at least τ².

Symbols: n runs, X (n x (d+k+a)), y (n) = transformed loss, smaller is better; Σ0 = prior covariance of θ;
J = ∂f/∂θ (n x p); others as in `landscape`. Double precision throughout.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import gpytorch
import torch
from botorch.exceptions.warnings import OptimizationWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models.gpytorch import GPyTorchModel
from gpytorch.constraints import GreaterThan
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from transfer_bo.surrogate.landscape import Landscape

__all__ = ["LandscapeGP", "LandscapeKernel", "Latent", "fit"]

JITTER_REACH = 0.7
"""Doublings over which two scales share the jitter of their optimum."""
RESIDUAL_REACH_V, RESIDUAL_REACH_S = 3.0, 3.0
"""Length scales of the residual: octaves of an HP, doublings of an axis."""
TOLERANCE = 0.1
"""λ: the bowl's own relative error, so that a run 50% above the optimum is known to 5%."""
STUDENT = 5.0
"""Degrees of freedom of the weights that keep one odd run from bending the bowl."""
ROUNDS = 3
"""How often the bowl is re-linearised and the kernel refitted."""


def _around(centre: float, spread: float) -> LogNormalPrior:
    """A prior that is normal in the logarithm *as the fit sees it*: with its mode at `centre`.

    The fit maximises a density over the value itself, so the mode counts; a log-normal with median `centre`
    has its mode at centre · e^(-spread²), which would call all noise zero.
    """
    return LogNormalPrior(math.log(centre) + spread**2, spread)


class LandscapeKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]  # gpytorch has no types
    """Covariance of the linearised landscape at `theta`, its jitter, residual and level error.

    Positive scales, learned: `jitter` τ (octaves), `residual` r and `level` l (ln loss).
    """

    def __init__(self, landscape: Landscape) -> None:
        super().__init__()
        self.landscape = landscape
        self.register_buffer("theta", landscape.mean.clone())
        for name, (centre, spread) in {
            "jitter": (0.2, 0.4),
            "residual": (0.005, 0.8),
            "level": (0.01, 0.7),
        }.items():
            self.register_parameter(f"raw_{name}", torch.nn.Parameter(torch.zeros((), dtype=torch.double)))
            self.register_constraint(f"raw_{name}", GreaterThan(1e-6))
            self.register_prior(
                f"{name}_prior",
                _around(centre, spread),
                lambda module, name=name: getattr(module, name),
                lambda module, value, name=name: module._set(name, value),
            )
            self._set(name, torch.tensor(centre, dtype=torch.double))
        self._memory: tuple[Tensor, Tensor] | None = None

    def _set(self, name: str, value: Tensor) -> None:
        self.initialize(**{f"raw_{name}": getattr(self, f"raw_{name}_constraint").inverse_transform(value)})

    @property
    def jitter(self) -> Tensor:
        """τ, octaves."""
        return self.raw_jitter_constraint.transform(self.raw_jitter)  # type: ignore[no-any-return]

    @property
    def residual(self) -> Tensor:
        """r, ln loss."""
        return self.raw_residual_constraint.transform(self.raw_residual)  # type: ignore[no-any-return]

    @property
    def level(self) -> Tensor:
        """l, ln loss per square root of a doubling."""
        return self.raw_level_constraint.transform(self.raw_level)  # type: ignore[no-any-return]

    def linearise(self, theta: Tensor) -> None:
        """Move the point of linearisation to θ (p)."""
        self.theta = theta
        self._memory = None

    def jacobian(self, X: Tensor) -> Tensor:
        """J (... x n x p) at the point of linearisation; the training inputs' is computed once."""
        if self._memory is not None and self._memory[0].shape == X.shape and torch.equal(self._memory[0], X):
            return self._memory[1]
        J = self.landscape.jacobian(self.theta, X)
        if not X.requires_grad:
            J = J.detach()
            if X.ndim == 2 and self.training:
                self._memory = (X, J)
        return J

    def near(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Correlation of the jitter of two sets of scales; (... x n x a), (... x m x a) -> (... x n x m)."""
        return torch.exp(-0.5 * torch.cdist(s1, s2) ** 2 / JITTER_REACH**2)

    def nuisance(self, X1: Tensor, X2: Tensor) -> Tensor:
        """Jitter + residual + level (... x n x m): everything but the tangent kernel."""
        _, _, s1 = self.landscape.split(X1)
        _, _, s2 = self.landscape.split(X2)
        part = self.landscape.part("u")
        slopes = self.jacobian(X1)[..., part] @ self.jacobian(X2)[..., part].mT
        free = self.landscape.d + self.landscape.k
        distance = torch.cdist(X1[..., :free], X2[..., :free]) ** 2 / RESIDUAL_REACH_V**2
        distance = distance + torch.cdist(s1, s2) ** 2 / RESIDUAL_REACH_S**2
        s1, s2 = s1.unsqueeze(-2), s2.unsqueeze(-3)
        shared = (torch.minimum(s1.abs(), s2.abs()) * (s1 * s2 > 0)).sum(-1)
        return (
            self.jitter**2 * self.near(X1[..., free:], X2[..., free:]) * slopes
            + self.residual**2 * torch.exp(-0.5 * distance)
            + self.level**2 * shared
        )

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariance of f(x1), f(x2) (... x n x m), or its diagonal."""
        scaled = self.jacobian(x1) * self.landscape.sd
        K = scaled @ (self.jacobian(x2) * self.landscape.sd).mT + self.nuisance(x1, x2)
        return torch.diagonal(K, dim1=-2, dim2=-1) if diag else K


class _LinearisedMean(gpytorch.means.Mean):  # type: ignore[misc]
    """f(x; θ̂) + J(x) (θ0 - θ̂): the prior mean of the linearised landscape."""

    def __init__(self, kernel: LandscapeKernel) -> None:
        super().__init__()
        self._kernel = [kernel]  # in a list, so that its parameters are not registered twice

    def forward(self, x: Tensor) -> Tensor:
        kernel = self._kernel[0]
        return kernel.landscape.values(kernel.theta, x) + kernel.jacobian(x) @ (
            kernel.landscape.mean - kernel.theta
        )


class LandscapeGP(gpytorch.models.ExactGP, GPyTorchModel):  # type: ignore[misc]
    """The surrogate as a BoTorch model: `posterior(X)` is of y, transformed loss, smaller is better.

    Use `fit` to make one. `latent` gives what a BoTorch posterior cannot: the optimum at any scale.
    """

    _num_outputs = 1

    def __init__(self, X: Tensor, y: Tensor, landscape: Landscape) -> None:
        likelihood = FixedNoiseGaussianLikelihood(noise=torch.full_like(y, 1e-6), learn_additional_noise=True)
        likelihood.second_noise_covar.register_prior(
            "floor_prior",
            _around(0.007**2, 1.8),  # σ = .7% of the loss, a factor of 2.5 either way
            lambda module: module.noise,
            lambda module, value: module.initialize(noise=value),
        )
        likelihood.second_noise_covar.register_constraint("raw_noise", GreaterThan(1e-9))
        likelihood.second_noise_covar.initialize(noise=torch.tensor(0.007**2, dtype=torch.double))
        super().__init__(X, y, likelihood)
        self.rows, self.losses = X, y  # as gpytorch keeps them, but typed
        self.covar_module = LandscapeKernel(landscape)
        self.mean_module = _LinearisedMean(self.covar_module)
        self.landscape = landscape
        self.double()

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Prior of f at rows x (... x n x (d+k+a))."""
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    @property
    def floor(self) -> float:
        """σ, the sd of the noise of one run near the optimum, ln loss."""
        return math.sqrt(float(self.likelihood.second_noise_covar.noise.detach()))

    def noise(self, X: Tensor) -> Tensor:
        """Variance of one run about f (n), as far as it can be told from the fitted bowl."""
        return self.floor**2 + (TOLERANCE * _excess(self.landscape, self.covar_module.theta, X)) ** 2

    @torch.no_grad()
    def latent(self, s: Tensor, x: Tensor | None = None, pending: Tensor | None = None) -> Latent:
        """Posterior of θ and of the jitter of the optimum at a scale, given all runs.

        Args:
            s: the scale (a).
            x: a row at that scale; its residual and level error join the latent vector.
            pending: rows (m x (d+k+a)) that are running: they narrow the posterior but do not move it.
        """
        return Latent(self, s, x, pending)


class Latent:
    """ξ = (θ, δ, ρ): landscape parameters, jitter of the optimum at one scale, error of f at one row there.

    Attributes:
        mean: posterior mean of ξ (p + d, or p + d + 1 with a row).
        covariance: posterior covariance of ξ.
    """

    def __init__(self, model: LandscapeGP, s: Tensor, x: Tensor | None, pending: Tensor | None) -> None:
        self.model, self.kernel, self.landscape = model, model.covar_module, model.landscape
        self.s, self.x = s, x
        X, y = model.rows, model.losses
        noise = model.likelihood.noise.detach()
        if pending is not None and len(pending):
            X, noise = torch.cat([X, pending]), torch.cat([noise, model.noise(pending)])
        self.X = X
        C = self.kernel(X, X).to_dense() + torch.diag(noise)
        self._cholesky = torch.linalg.cholesky(C)
        cross = self.cross(X)
        solved = torch.cholesky_solve(cross, self._cholesky)  # n x latent
        self._solved = solved
        surprise = torch.zeros(len(X), dtype=y.dtype)
        surprise[: len(y)] = y - model.mean_module(X[: len(y)])
        if len(X) > len(y):  # a pending run is believed to end as predicted
            known = torch.linalg.cholesky(C[: len(y), : len(y)])
            weights = torch.cholesky_solve(surprise[: len(y), None], known)
            surprise[len(y) :] = (C[len(y) :, : len(y)] @ weights).squeeze(-1)
        self.mean = self.prior_mean() + solved.T @ surprise
        self.covariance = self.prior_covariance() - cross.T @ solved

    def prior_mean(self) -> Tensor:
        """E ξ before any run."""
        extra = self.landscape.d + (self.x is not None)
        return torch.cat([self.landscape.mean, torch.zeros(extra, dtype=torch.double)])

    def prior_covariance(self) -> Tensor:
        """Cov ξ before any run (diagonal)."""
        parts = [
            self.landscape.sd**2,
            self.kernel.jitter**2 * torch.ones(self.landscape.d, dtype=torch.double),
        ]
        if self.x is not None:
            x = self.x[None]
            parts.append(
                (self.kernel.residual**2 + self.kernel.level**2 * self.s.abs().sum())
                * torch.ones_like(x[0, :1])
            )
        return torch.diag(torch.cat(parts))

    def cross(self, X: Tensor) -> Tensor:
        """Cov(f(X), ξ) before any run (n x latent)."""
        J = self.kernel.jacobian(X)
        _, _, s = self.landscape.split(X)
        near = self.kernel.near(s, self.s[None])
        slopes = J[:, self.landscape.part("u")]
        parts = [J * self.landscape.sd**2, self.kernel.jitter**2 * near * slopes]
        if self.x is not None:
            x = self.x[None]
            slope = self.kernel.jacobian(x)[:, self.landscape.part("u")]
            jitter = self.kernel.jitter**2 * near * (slopes @ slope.T)
            parts.append(self.kernel.nuisance(X, x) - jitter)
        return torch.cat(parts, -1)

    def path_map(self) -> Tensor:
        """T (d x latent): the optimum at the scale is T ξ (plus nothing: ψ is linear in θ)."""
        d, p = self.landscape.d, self.landscape.p
        T = torch.zeros(d, self.mean.numel(), dtype=torch.double)
        T[:, self.landscape.part("u")] = torch.eye(d, dtype=torch.double)
        B = self.landscape.part("B")
        T[:, B] = torch.kron(torch.eye(d, dtype=torch.double), self.s[None])
        T[:, p : p + d] = torch.eye(d, dtype=torch.double)
        return self.landscape.coordinates.mix @ T

    def optimum(self) -> tuple[Tensor, Tensor]:
        """Posterior mean (d) and covariance (d x d) of the optimum v* at the scale."""
        T = self.path_map()
        return T @ self.mean, T @ self.covariance @ T.T

    @torch.no_grad()
    def regret_drop(self, X: Tensor) -> Tensor:
        """How much one more run at each row should lower the excess loss at the scale (n), in ln loss.

        The excess of setting v* at its posterior mean is tr(H Cov v*); a run at x lowers it by
        cᵀ H c / (var f(x) + noise(x)) with c = Cov(v*, f(x) | runs).
        """
        k = self.kernel(self.X, X).to_dense()  # n x m
        explained = torch.linalg.solve_triangular(self._cholesky, k, upper=False)
        variance = self.kernel(X, diag=True) - (explained**2).sum(0) + self.model.noise(X)
        c = (self.cross(X) - k.T @ self._solved) @ self.path_map().T  # m x d
        H = self.landscape.curvature(self.kernel.theta, self.s)
        drop: Tensor = torch.einsum("mi,ij,mj->m", c, H, c) / variance
        return drop

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of ξ (count x latent)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        half = vectors * values.clamp(min=0).sqrt()
        standard = torch.randn(count, len(values), dtype=torch.double, generator=generator)
        draws: Tensor = self.mean + standard @ half.T
        return draws


def fit(X: Tensor, y: Tensor, landscape: Landscape, start: LandscapeGP | None = None) -> LandscapeGP:
    """Fit the surrogate to runs.

    Args:
        X: rows of `Coordinates.row` (n x (d+k+a)), double.
        y: transformed losses (n), smaller is better.
        landscape: the shape and its priors.
        start: an earlier fit of the same shape, to start from.
    """
    model = LandscapeGP(X, y, landscape)
    starts = [_first_guess(X, y, landscape)]
    if start is not None and start.landscape.p == landscape.p:
        model.covar_module.load_state_dict(start.covar_module.state_dict())
        model.likelihood.second_noise_covar.load_state_dict(start.likelihood.second_noise_covar.state_dict())
        starts.append(start.covar_module.theta)
    found = [_settle(model, theta) for theta in starts]
    theta = min(found, key=lambda pair: pair[1])[0]
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    for _ in range(ROUNDS):
        model.covar_module.linearise(theta)
        model.train()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizationWarning)  # the iteration limit is meant
            fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 12}}, max_attempts=1)
        theta, _ = _settle(model, theta)
    model.covar_module.linearise(theta)
    model.eval()
    return model


def _excess(landscape: Landscape, theta: Tensor, X: Tensor) -> Tensor:
    """The fitted bowl at each row (n): ln loss above the optimum of its scale."""
    v, _, s = landscape.split(X)
    return landscape.bowl(theta, v, s)


def _first_guess(X: Tensor, y: Tensor, landscape: Landscape) -> Tensor:
    """θ at its prior mean, with the optimum moved halfway to where the best quarter of the runs lies."""
    theta = landscape.mean.clone()
    best = X[y.argsort()[: max(1, len(y) // 4)], : landscape.d].mean(0)
    theta[landscape.part("u")] = landscape.coordinates.unmix @ best / 2
    return theta


@torch.no_grad()
def _settle(model: LandscapeGP, theta: Tensor, steps: int = 15) -> tuple[Tensor, float]:
    """The most probable θ for given kernel scales: Gauss-Newton with Levenberg damping, and -ln posterior.

    The noise of a run depends on its excess over the bowl, so it is frozen while the bowl moves: a bowl that
    could explain a misfit by calling it noise would do so.
    """
    landscape, kernel = model.landscape, model.covar_module
    X, y = model.rows, model.losses
    kernel.linearise(theta)
    floor = model.floor**2
    extra = (TOLERANCE * _excess(landscape, theta, X)) ** 2
    misfit = (y - landscape.values(theta, X)) ** 2 / (floor + extra)
    noise = (
        (floor + extra) * (STUDENT + misfit) / (STUDENT + 1) if len(y) > landscape.d + 3 else floor + extra
    )
    noise = noise.clamp(min=floor)
    model.likelihood.noise_covar.initialize(noise=(noise - floor).clamp(min=1e-8))
    C = kernel.nuisance(X, X) + torch.diag(noise)
    whiten = torch.linalg.cholesky(C)

    def score(at: Tensor) -> tuple[Tensor, Tensor, float]:
        b = torch.linalg.solve_triangular(whiten, (y - landscape.values(at, X))[:, None], upper=False)[:, 0]
        e = (at - landscape.mean) / landscape.sd
        return b, e, float(0.5 * (b @ b + e @ e))

    b, e, value = score(theta)
    damping = 1e-2
    identity = torch.eye(landscape.p, dtype=torch.double)
    for _ in range(steps):
        A = torch.linalg.solve_triangular(whiten, landscape.jacobian(theta, X) * landscape.sd, upper=False)
        gain = A.T @ b - e
        normal = A.T @ A + identity
        while damping < 1e6:
            trial = theta + landscape.sd * torch.linalg.solve(normal + damping * identity, gain)
            new_b, new_e, new_value = score(trial)
            if new_value < value:
                break
            damping *= 8
        else:
            break
        finished = value - new_value < 1e-4
        theta, b, e, value = trial, new_b, new_e, new_value
        damping = max(damping / 8, 1e-6)
        if finished:
            break
    return theta, value
