"""The best setting at a scale: the one with the least expected loss over all that is not known.

    E[bowl] + E[e] + CAUTION sd(e) + C P(diverges)       e = residual + effects of categories

Symbols: as in `landscape` and `gp`; ξ = one draw of all of it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from transfer_bo.scale import Scale
from transfer_bo.surrogate.gp import OptimumPosterior
from transfer_bo.surrogate.surrogate import Surrogate

__all__ = ["excess", "minimize_expected_loss", "optimum_candidates", "other_categories"]

DRAWS = 256
"""Draws of the optimum that the expected loss is averaged over."""
DIVERGENCE_COST = 0.035
"""C, in y: a run that diverged is made again, and twice the compute is worth 3.5% of loss (its exponent in
compute is .05: Kaplan et al. 2001.08361, equation 1.3)."""
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
CAUTION = 1.0
"""Of what the bowl does not say, the upper end of so many sd is taken: among many settings that nobody ran,
the one that looks best is mostly the one that is known least."""
CONTENDERS = 64
"""Draws of the optimum, and as many points of low predicted loss."""
SCREENED = 512
"""Points all over the box among which those of low predicted loss are found."""
OTHER = 0.25
"""Chance that a contender has another category than the one with the best main effect, for each such HP."""


@torch.no_grad()
def optimum_candidates(
    surrogate: Surrogate, latent: OptimumPosterior, scale: Scale, generator: torch.Generator
) -> Tensor:
    """Rows at a scale that may be the best there (2 CONTENDERS x (d+k+a)).

    Half are draws of the bowl's optimum, half the best by posterior mean among points all over the box.
    """
    coordinates = surrogate.coordinates
    draws = latent.draw(CONTENDERS, generator) @ latent.path_map().T
    z = coordinates.z_low + (coordinates.z_high - coordinates.z_low) * torch.rand(
        SCREENED, coordinates.d, dtype=torch.double, generator=generator
    )
    share = torch.rand(SCREENED, 1, dtype=torch.double, generator=generator)
    centres = draws[torch.randint(CONTENDERS, (SCREENED,), generator=generator)]
    anywhere = (1 - share) * centres + share * (z @ coordinates.mix.T)
    v = coordinates.clip(torch.cat([draws, anywhere]))
    X = surrogate.rows(v, scale, other_categories(surrogate, len(v), generator))
    screened = latent.values(X[CONTENDERS:])[0].argsort()[:CONTENDERS]
    return torch.cat([X[:CONTENDERS], X[CONTENDERS:][screened]])


def excess(surrogate: Surrogate, v: Tensor, scale: Scale, optima: Tensor) -> Tensor:
    """The bowl at v (... x 1 x d) for each draw of its optimum (count x d), in y (... x count).

    The bowl keeps its most probable curvature and is taken as symmetric. With its asymmetry, and the more
    with draws of its shape, the least expected loss lies well below the middle of what the optimum may be,
    and on every real table looked at the lower learning rates cost more than they saved.
    """
    s = surrogate.coordinates.s(scale)
    landscape, theta = surrogate.landscape, surrogate.theta.clone()
    theta[landscape.part("kappa")] = 0.0
    return landscape.bowl(theta, v - optima + landscape.path(theta, s), s)


def minimize_expected_loss(
    surrogate: Surrogate,
    scale: Scale,
    generator: torch.Generator,
    caution: float = CAUTION,
    optima: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The v (d) and category flags (k) with the least expected loss, in the sense above, at a scale.

    The best of many optimum_candidates, then descent from there. Draws of the optimum in v (count x d) that know more
    than the linearised landscape does, as `chains` makes them, may be given.
    """
    coordinates, landscape = surrogate.coordinates, surrogate.landscape
    latent = surrogate.latent(scale)
    if optima is None:
        optima = latent.draw(DRAWS, generator) @ latent.path_map().T

    def expected(v: Tensor, flags: Tensor) -> Tensor:
        rows = surrogate.rows(v, scale, flags)
        bowl = excess(surrogate, v.unsqueeze(-2), scale, optima).mean(-1)
        mean, sd = latent.beyond(rows)
        value = bowl + mean + caution * sd
        if surrogate.stability.any_infeasible:
            value = value + DIVERGENCE_COST * surrogate.stability.probability(rows)
        return value

    middle = surrogate.rows(coordinates.clip(latent.optimum()[0])[None], scale)
    starts, flags, _ = landscape.split(
        torch.cat([middle, optimum_candidates(surrogate, latent, scale, generator)])
    )
    with torch.no_grad():
        best = int(expected(starts, flags).argmin())
    start, chosen = coordinates.unmix @ starts[best], flags[[best]]

    def objective(at: Vector) -> tuple[float, Vector]:
        z = torch.tensor(at, dtype=torch.double, requires_grad=True)
        value = expected((coordinates.mix @ z)[None], chosen).sum()
        (gradient,) = torch.autograd.grad(value, z)
        return float(value.detach()), gradient.numpy()

    if not coordinates.d:
        return starts[best], chosen[0]
    box = list(zip(coordinates.z_low.tolist(), coordinates.z_high.tolist(), strict=True))
    found = minimize(
        objective, start.numpy(), jac=True, method="L-BFGS-B", bounds=box, options={"maxiter": 30}
    )
    return coordinates.mix @ torch.tensor(found.x, dtype=torch.double), chosen[0]


def other_categories(surrogate: Surrogate, count: int, generator: torch.Generator) -> Tensor:
    """Flags (count x k): for each categorical HP the choice of best main effect, at times a random one."""
    best = surrogate.best_flags()
    columns, position = [torch.zeros(count, 0, dtype=torch.double)], 0
    for dim in surrogate.coordinates.categorical:
        width = len(dim.choices)
        choice = best[position : position + width].argmax().expand(count).clone()
        other = torch.rand(count, generator=generator) < OTHER
        choice[other] = torch.randint(width, (int(other.sum()),), generator=generator)
        columns.append(torch.nn.functional.one_hot(choice, width).double())
        position += width
    return torch.cat(columns, -1)
