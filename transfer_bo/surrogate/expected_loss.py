"""The expected loss of a setting at a scale, over all that is not known, and the setting where it is least.

    E[bowl] + E[e] + CAUTION sd(e) + C P(diverges) - D ln P(constraints hold)

Symbols: v, z, flags, d, k as in `coordinates`; bowl, θ as in `landscape`; ξ as in `posterior`; e = residual +
effects of categories; C = DIVERGENCE_COST, D = CONSTRAINT_COST; count = draws of the optimum; m points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.surrogate.landscape import FLATTEN
from transfer_bo.surrogate.posterior import OptimumPosterior
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = [
    "ExpectedLoss",
    "excess_loss",
    "linearised_expected_loss",
    "minimize_expected_loss",
    "optimum_candidates",
    "random_categories",
]

DRAWS = 256
"""Draws of the optimum that the expected loss is averaged over."""

DIVERGENCE_COST = 0.035
"""C, in y: a run that diverged is made again, and twice the compute is worth 3.5% of loss (its exponent in
compute is .05: Kaplan et al. 2001.08361, equation 1.3)."""

CONSTRAINT_COST = 1.0
"""D, in y: a setting whose constraints hold with chance 1 in e is worth no more than a loss e times as high,
which is nothing. Where every setting is all but sure to violate one, the most likely to hold it is taken."""

CAUTION = 1.0
"""Of what the bowl does not say, the upper end of so many sd is taken: among many settings that nobody ran,
the one that looks best is mostly the one that is known least."""

CANDIDATES = 64
"""Draws of the optimum among the candidates, and as many points of low predicted loss."""

SCREENED = 512
"""Points all over the box among which those of low predicted loss are found."""

OTHER_CATEGORY = 0.25
"""Chance that a candidate has another category than the one with the best main effect, for each such HP."""

MAX_ITERATIONS = 30
"""Steps of L-BFGS-B from the best candidate."""

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


@torch.no_grad()
def optimum_candidates(
    surrogate: Surrogate, posterior: OptimumPosterior, scale: Scale, generator: torch.Generator
) -> Float[Tensor, "m row"]:
    """2 CANDIDATES rows at a scale that may be the best there.

    Half are draws of the bowl's optimum, half the best by posterior mean among points all over the box.
    """
    coordinates = surrogate.coordinates
    draws = posterior.draw(CANDIDATES, generator) @ posterior.path_map().T

    # Points between a draw of the optimum and a uniform point of the box
    z = coordinates.z_low + (coordinates.z_high - coordinates.z_low) * torch.rand(
        SCREENED, coordinates.d, dtype=torch.double, generator=generator
    )
    share = torch.rand(SCREENED, 1, dtype=torch.double, generator=generator)
    centres = draws[torch.randint(CANDIDATES, (SCREENED,), generator=generator)]
    anywhere = (1 - share) * centres + share * (z @ coordinates.mix.T)

    v = coordinates.clip(torch.cat([draws, anywhere]))
    X = surrogate.rows(v, scale, random_categories(surrogate, len(v), generator))
    mean, _ = posterior.values(X[CANDIDATES:])
    return torch.cat([X[:CANDIDATES], X[CANDIDATES:][mean.argsort()[:CANDIDATES]]])


@torch.no_grad()
def feasible_candidates(
    surrogate: Surrogate, scale: Scale, generator: torch.Generator
) -> Float[Tensor, "m row"]:
    """CANDIDATES rows at a scale where constraints are most likely to hold, among points all over the box.

    Args:
        surrogate: a fit with runs that violated a constraint.
        scale: where.
        generator: source of randomness.
    """
    coordinates = surrogate.coordinates
    z = coordinates.z_low + (coordinates.z_high - coordinates.z_low) * torch.rand(
        SCREENED, coordinates.d, dtype=torch.double, generator=generator
    )
    flags = random_categories(surrogate, SCREENED, generator)
    X = surrogate.rows(coordinates.clip(z @ coordinates.mix.T), scale, flags)
    return X[surrogate.constraints.log_holding(X).argsort(descending=True)[:CANDIDATES]]


def excess_loss(
    surrogate: Surrogate, v: Float[Tensor, "*m 1 d"], scale: Scale, optima: Float[Tensor, "count d"]
) -> Float[Tensor, "*m count"]:
    """The bowl at each v for each draw of its optimum, in y.

    The bowl keeps its most probable curvature and is taken as symmetric. With its asymmetry, and the more
    with draws of its shape, the least expected loss lies well below the middle of what the optimum may be,
    and on every real table looked at the lower learning rates cost more than they saved.
    """
    root = surrogate.landscape.curvature_root(surrogate.theta, surrogate.coordinates.s(scale))
    v, optima = v @ root.T, optima @ root.T

    # |v - optimum|², without a tensor of all the differences
    squared = v.square().sum(-1) - 2 * (v @ optima.T).squeeze(-2) + optima.square().sum(-1)
    return FLATTEN * torch.log1p(squared.clamp(min=0) / FLATTEN)


@dataclass(frozen=True, eq=False)
class ExpectedLoss:
    """The expected loss of settings at a scale, but for a constant that is the same for all settings.

    Attributes:
        surrogate: a fit.
        scale: where.
        optima: draws of the optimum in v. They may lie outside the searched ranges: only settings may not.
        caution: sd of e by which the expected loss is raised.
    """

    surrogate: Surrogate
    scale: Scale
    optima: Float[Tensor, "count d"]
    caution: float = CAUTION

    @cached_property
    def posterior(self) -> OptimumPosterior:
        """Posterior of the linearised landscape at the scale."""
        return self.surrogate.optimum_posterior(self.scale)

    def __call__(self, v: Float[Tensor, "m d"], flags: Float[Tensor, "m k"]) -> Float[Tensor, " m"]:
        """The expected loss in y; differentiable."""
        rows = self.surrogate.rows(v, self.scale, flags)
        bowl = self.excess_losses(v).mean(-1)
        mean, sd = self.posterior.residual_and_category(self.residual_rows(v, flags))
        value = bowl + mean + self.caution * sd
        if self.surrogate.divergence.any_infeasible:
            value = value + DIVERGENCE_COST * self.surrogate.divergence.probability(rows)
        if self.surrogate.constraints.any_infeasible:
            value = value - CONSTRAINT_COST * self.surrogate.constraints.log_holding(rows)
        return value

    def residual_rows(self, v: Float[Tensor, "m d"], flags: Float[Tensor, "m k"]) -> Float[Tensor, "m row"]:
        """Rows at which e is taken: those of the settings; with many HPs all at the expected optimum.

        Among many HPs the residual of a run is mostly its noise. It would favour a copy of the luckiest run,
        with every value that this happened to have.
        """
        if self.surrogate.landscape.curvature_prior is not None:
            v = self.posterior.optimum()[0].expand_as(v)
        return self.surrogate.rows(v, self.scale, flags)

    def excess_losses(self, v: Float[Tensor, "m d"]) -> Float[Tensor, "m count"]:
        """The bowl at each v for each draw of its optimum, in y."""
        return excess_loss(self.surrogate, v.unsqueeze(-2), self.scale, self.optima)


def minimize_expected_loss(
    expected: ExpectedLoss,
    generator: torch.Generator,
    frozen: Float[Tensor, " d"] | None = None,
    frozen_flags: Float[Tensor, " k"] | None = None,
) -> tuple[Float[Tensor, " d"], Float[Tensor, " k"]]:
    """The v and category flags with the least expected loss within the searched ranges.

    The best of many candidates, then descent from there.

    Args:
        expected: the expected loss at a scale.
        generator: source of randomness.
        frozen: z of HPs that stay where they are; nan for the others.
        frozen_flags: one-hot choices that stay; nan for those of other HPs.
    """
    surrogate, coordinates = expected.surrogate, expected.surrogate.coordinates
    middle = surrogate.rows(coordinates.clip(expected.posterior.optimum()[0])[None], expected.scale)
    candidates = optimum_candidates(surrogate, expected.posterior, expected.scale, generator)
    if surrogate.constraints.any_infeasible:
        feasible = feasible_candidates(surrogate, expected.scale, generator)
        candidates = torch.cat([candidates, feasible])
    starts, flags, _ = surrogate.landscape.split(torch.cat([middle, candidates]))
    if frozen is not None:
        z = starts @ coordinates.unmix.T
        starts = torch.where(frozen.isnan(), z, frozen) @ coordinates.mix.T
    if frozen_flags is not None:
        flags = torch.where(frozen_flags.isnan(), flags, frozen_flags)

    with torch.no_grad():
        best = int(expected(starts, flags).argmin())
    start, chosen = coordinates.unmix @ starts[best], flags[[best]]
    if not coordinates.d:
        return starts[best], chosen[0]

    def value_and_gradient(at: Vector) -> tuple[float, Vector]:
        z = torch.tensor(at, dtype=torch.double, requires_grad=True)
        value = expected((coordinates.mix @ z)[None], chosen).sum()
        (gradient,) = torch.autograd.grad(value, z)
        return float(value.detach()), gradient.numpy()

    low, high = coordinates.z_low, coordinates.z_high
    if frozen is not None:
        low, high = (torch.where(frozen.isnan(), end, frozen) for end in (low, high))
    found = minimize(
        value_and_gradient,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
        options={"maxiter": MAX_ITERATIONS},
    )
    return coordinates.mix @ torch.tensor(found.x, dtype=torch.double), chosen[0]


def linearised_expected_loss(
    surrogate: Surrogate, scale: Scale, generator: torch.Generator, caution: float = CAUTION
) -> ExpectedLoss:
    """The expected loss over draws from the linearised landscape: what a search can afford at each trial."""
    posterior = surrogate.optimum_posterior(scale)
    optima = posterior.draw(DRAWS, generator) @ posterior.path_map().T
    return ExpectedLoss(surrogate, scale, optima, caution)


def random_categories(
    surrogate: Surrogate, count: int, generator: torch.Generator
) -> Float[Tensor, "count k"]:
    """Flags: for each categorical HP the choice of best main effect, at times a random one."""
    best = surrogate.best_flags()
    columns, position = [torch.zeros(count, 0, dtype=torch.double)], 0
    for dim in surrogate.coordinates.categorical:
        width = len(dim.choices)
        choice = best[position : position + width].argmax().expand(count).clone()
        other = torch.rand(count, generator=generator) < OTHER_CATEGORY
        choice[other] = torch.randint(width, (int(other.sum()),), generator=generator)
        columns.append(torch.nn.functional.one_hot(choice, width).double())
        position += width
    return torch.cat(columns, -1)
