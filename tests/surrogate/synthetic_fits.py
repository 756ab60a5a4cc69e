"""Fits to runs of landscapes that are known."""

from __future__ import annotations

import math

import torch

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.fitting import fit_gp
from transfer_bo.surrogate.gp import LandscapeGP
from transfer_bo.surrogate.kernel import KernelHyperparameters
from transfer_bo.surrogate.landscape import DriftPrior, Landscape

BASE = Scale(width=32, tokens=1e5)
RUNGS = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 2.0]]
TARGET = torch.tensor([3.0, 4.0], dtype=torch.double)


def two_hps() -> Landscape:
    """A learning rate and weight decay over width and tokens."""
    dimensions = [Dimension("lr", "log", 1e-4, 1e-1), Dimension("weight_decay", "log", 1e-3, 1.0)]
    coordinates = Coordinates(dimensions, BASE, ["width", "tokens"])
    drift_prior = DriftPrior.from_tables(["a", "b"], ["x", "y"], "base")
    return Landscape(coordinates, drift_prior, level=math.log(2.0))


def fit_generated(seed: int, n: int = 40, noise: float = 0.004) -> tuple[LandscapeGP, torch.Tensor]:
    """A fit to n runs near the optimum of a landscape drawn from the prior, and the drawn θ."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=generator)

    shape = two_hps()
    theta = shape.mean + shape.sd * normal(shape.p)
    theta[shape.part("g")] = math.log(0.01) + 0.3 * normal(1)
    s = torch.tensor(RUNGS, dtype=torch.double)[torch.arange(n) % len(RUNGS)]
    spread = 1.5 * normal(n, 2)
    v = torch.stack([shape.path(theta, row) for row in s]) + spread
    X = torch.cat([v, s], -1)
    return fit_gp(X, shape.values(theta, X) + noise * normal(n), shape), theta


def fit_with_categories_and_a_source_study(seed: int, n: int = 24) -> LandscapeGP:
    """A fit to n runs, a third of them of a source study, with one HP of three choices."""
    generator = torch.Generator().manual_seed(seed)
    dimensions = [
        Dimension("lr", "log", 1e-4, 1e-1),
        Dimension("weight_decay", "log", 1e-3, 1.0),
        Dimension("activation", "categorical", choices=("relu", "gelu", "silu")),
    ]
    coordinates = Coordinates(dimensions, BASE, ["width", "tokens"], ["old"])
    drift_prior = DriftPrior.from_tables(["lr", "weight_decay"], ["width", "tokens"], "base")
    shape = Landscape(coordinates, drift_prior, level=math.log(2.0))

    s = torch.tensor(RUNGS, dtype=torch.double)[torch.arange(n) % len(RUNGS)]
    flags = torch.eye(3, dtype=torch.double)[torch.randint(3, (n,), generator=generator)]
    source = (torch.arange(n) % 3 == 0).double()[:, None]
    v = 1.5 * torch.randn(n, 2, dtype=torch.double, generator=generator)
    X = torch.cat([v, flags, s, source], -1)
    y = shape.values(shape.mean, X) + 0.1 * source[:, 0]
    return fit_gp(X, y + 0.01 * torch.randn(n, dtype=torch.double, generator=generator), shape)


def fit_with_shared_seeds(seed: int, n: int = 24) -> LandscapeGP:
    """A fit to n runs, two thirds of which share the seed of their rung: an offset of about 2% each."""
    generator = torch.Generator().manual_seed(seed)
    dimensions = two_hps().coordinates.numeric
    scales = [BASE, BASE.replace(width=64)]
    coordinates = Coordinates(dimensions, BASE, ["width"], seeds=[(scale, 0) for scale in scales])
    drift_prior = DriftPrior.from_tables(["lr", "weight_decay"], ["width"], "base")
    shape = Landscape(coordinates, drift_prior, level=math.log(2.0))

    s = (torch.arange(n) % 2).double()[:, None]
    flags = torch.eye(2, dtype=torch.double)[torch.arange(n) % 2] * (torch.arange(n) % 3 > 0)[:, None]
    X = torch.cat([1.5 * torch.randn(n, 2, dtype=torch.double, generator=generator), s, flags], -1)
    offset = 0.02 * torch.randn(2, dtype=torch.double, generator=generator)
    noise = 0.003 * torch.randn(n, dtype=torch.double, generator=generator)
    return fit_gp(X, shape.values(shape.mean, X) + flags @ offset + noise, shape)


def one_hp(y: list[float]) -> tuple[torch.Tensor, torch.Tensor, Landscape]:
    """Runs at one scale, evenly over one HP, with these ln losses."""
    coordinates = Coordinates([Dimension("lr", "log", 2**-4, 2**4)], Scale(width=32), [])
    shape = Landscape(coordinates, DriftPrior.from_tables(["lr"], [], "base"), level=0.0)
    z = torch.linspace(-3, 3, len(y), dtype=torch.double)[:, None]
    return z, torch.tensor(y, dtype=torch.double), shape


def moved(hyperparameters: KernelHyperparameters, steps: torch.Tensor) -> KernelHyperparameters:
    """The hyperparameters with their logarithms moved."""
    sources, seeds = len(hyperparameters.log_source_shift_sd), len(hyperparameters.log_seed_ratio)
    logs = hyperparameters.to_log_vector() + steps
    return KernelHyperparameters.from_log_vector(logs, sources, shares_seeds=bool(seeds))
