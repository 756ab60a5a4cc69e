"""The surrogate: a Gaussian process over (HPs, scale), the fidelity, as a BoTorch model.

Its mean is a loss law and a bowl whose optimum drifts with scale, its covariance is that of their parameters
and of what they leave over (`kernel`). The noise of a run has the variance

    σ² + (λ · excess loss)² + failure²          far from the optimum the bowl is only roughly right

and ς² more if its seed is its own, while other runs share seeds (`kernel`).

A run that ended far above the best of its scale has failed (`failure_excess`): "failure" is by how much more
than a run that has not, so that it says "bad" and no more than that, however bad it is.

Symbols: n runs, X (n x row), y (n) = transformed loss, smaller is better; λ = TOLERANCE; σ, θ and
others as in `kernel` and `landscape`. Double precision throughout.
"""

from __future__ import annotations

import math
from typing import Any, cast

import gpytorch
import torch
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.model import FantasizeMixin
from botorch.sampling.base import MCSampler
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from jaxtyping import Float
from torch import Tensor

from transfer_bo.surrogate.kernel import KernelHyperparameters, LandscapeKernel, LinearisedMean
from transfer_bo.surrogate.landscape import FLATTEN, Landscape
from transfer_bo.surrogate.posterior import OptimumPosterior

__all__ = ["TOLERANCE", "LandscapeGP", "failure_excess"]

TOLERANCE = 0.15
"""λ: the bowl's own relative error, so that a run 50% above the optimum is known to 7.5%; weak."""

FAILED_MEDIANS = 5.0
"""A run has failed from so many times the median of what runs end above the best of their scale, if the bowl
flattens there too: it cannot follow such a run, and the residual must not. In a metric that spans decades a
large value is nothing odd."""


class LandscapeGP(gpytorch.models.ExactGP, GPyTorchModel, FantasizeMixin):  # type: ignore[misc]
    """The surrogate as a BoTorch model: `posterior(X)` is of y, transformed loss, smaller is better.

    Any BoTorch acquisition function works on it, look-ahead ones included. `optimum_posterior` gives what a
    BoTorch posterior cannot: the optimum at any scale. `fitting.fit_gp` makes one from runs; a fit never
    changes.

    Args:
        X: rows of `Coordinates.row`, double.
        y: transformed losses.
        landscape: the shape and its priors.
        theta: θ̂, where the landscape is linearised.
        hyperparameters: of the kernel and the noise.
        noise: variance of each run; what `noise` and `failure` say if None.

    Attributes:
        failure: what `failure_excess` says of each run (n).
    """

    _num_outputs = 1

    def __init__(
        self,
        X: Float[Tensor, "n row"],
        y: Float[Tensor, " n"],
        landscape: Landscape,
        theta: Float[Tensor, " p"],
        hyperparameters: KernelHyperparameters,
        noise: Float[Tensor, " n"] | None = None,
    ) -> None:
        likelihood = FixedNoiseGaussianLikelihood(noise=torch.full_like(y, 1e-6))
        super().__init__(X, y, likelihood)
        self.X, self.y = X, y  # as gpytorch keeps them, but typed
        self.landscape = landscape
        self.failure = failure_excess(X, y, landscape)
        self.covar_module = LandscapeKernel(landscape, theta, hyperparameters)
        self.mean_module = LinearisedMean(self.covar_module)

        variance = self.noise(X) + self.failure**2 if noise is None else noise
        likelihood.noise_covar.initialize(noise=variance)  # its constructor would raise noise below 1e-6
        self.eval()

    @property
    def kernel(self) -> LandscapeKernel:
        """Covariance of f."""
        return self.covar_module

    @property
    def theta(self) -> Tensor:
        """θ̂, the most probable parameters of the landscape (p)."""
        return self.kernel.theta

    @property
    def hyperparameters(self) -> KernelHyperparameters:
        """Of the kernel and the noise."""
        return self.kernel.hyperparameters

    @property
    def run_noise(self) -> Tensor:
        """Variance of each run about f, weights of odd runs included (n)."""
        return cast(Tensor, self.likelihood.noise).detach()

    def with_fit(
        self,
        theta: Float[Tensor, " p"] | None = None,
        hyperparameters: KernelHyperparameters | None = None,
        noise: Float[Tensor, " n"] | None = None,
    ) -> LandscapeGP:
        """The same runs and landscape with another θ̂, other hyperparameters or other noise."""
        return LandscapeGP(
            self.X,
            self.y,
            self.landscape,
            self.theta if theta is None else theta,
            self.hyperparameters if hyperparameters is None else hyperparameters,
            self.run_noise if noise is None else noise,
        )

    def forward(self, x: Tensor) -> MultivariateNormal:
        """Prior of f at rows x (... x n x row)."""
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def noise(self, X: Float[Tensor, "*b row"]) -> Float[Tensor, "*b"]:
        """Variance of one run at each row about f, as far as the fitted bowl knows."""
        hyperparameters = self.hyperparameters
        own_seed = float(hyperparameters.seed_variance) * self.landscape.has_own_seed(X)
        noise = float(hyperparameters.noise_sd) ** 2 + own_seed
        return noise + (TOLERANCE * self.landscape.excess_loss(self.theta, X)) ** 2

    def condition_on_observations(
        self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any
    ) -> LandscapeGP:
        """The model after runs X (... x n x row) with y = Y (... x n x 1), all else as fitted.

        `optimum_posterior` of the result does not know of them.
        """
        noise = self.noise(X).unsqueeze(-1).expand(Y.shape) if noise is None else noise
        return cast("LandscapeGP", super().condition_on_observations(X, Y, noise=noise, **kwargs))

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any
    ) -> LandscapeGP:
        """The model after runs at X whose outcomes are drawn by the sampler: what look-ahead needs."""
        noise = self.noise(X).unsqueeze(-1) if observation_noise is None else observation_noise
        return super().fantasize(X, sampler, observation_noise=noise, **kwargs)

    @torch.no_grad()
    def optimum_posterior(
        self,
        s: Float[Tensor, " a"],
        x: Float[Tensor, " row"] | None = None,
        pending: Float[Tensor, "m row"] | None = None,
    ) -> OptimumPosterior:
        """Posterior of θ and of the jitter of the optimum at a scale, given all runs.

        Args:
            s: the scale.
            x: a row at that scale; its residual and level error join the latent vector.
            pending: rows of runs that have not ended: they narrow the posterior but do not move it.
        """
        pending_noise = None if pending is None else self.noise(pending)
        return OptimumPosterior(self.kernel, self.X, self.y, self.run_noise, s, x, pending, pending_noise)


def failure_excess(
    X: Float[Tensor, "n row"], y: Float[Tensor, " n"], landscape: Landscape
) -> Float[Tensor, " n"]:
    """By how much each run ended above the worst of its scale and study that is no failure yet, else 0."""
    _, _, s = landscape.split(X)
    scale_and_source = torch.cat([s, landscape.source_flags(X)], -1)
    same = (scale_and_source.unsqueeze(1) == scale_and_source.unsqueeze(0)).all(-1)
    above = y - torch.where(same, y, math.inf).amin(-1)

    beaten = above[above > 0]
    usual = float(beaten.median()) if len(beaten) else 0.0
    return (above - max(FLATTEN, FAILED_MEDIANS * usual)).clamp(min=0)
