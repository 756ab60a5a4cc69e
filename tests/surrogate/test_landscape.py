"""The loss law and the bowl, against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Scale
from transfer_bo.dimension import Dimension
from transfer_bo.surrogate import priors
from transfer_bo.surrogate.coordinates import Coordinates
from transfer_bo.surrogate.landscape import DriftPrior, Landscape, asymmetric

BASE = Scale(width=32, tokens=1e5)


def landscape(d: int = 3) -> Landscape:
    """A landscape over d HPs and two axes, one of them categorical with two choices."""
    dimensions = [Dimension(name, "log", 1e-3, 1e3) for name in ("lr", "lr.norm", "weight_decay")[:d]]
    dimensions.append(Dimension("kind", "categorical", choices=("a", "b")))
    coordinates = Coordinates(dimensions, BASE, ["width", "tokens"])
    return Landscape(coordinates, drift(d, 2, 0.2), level=1.0)


def drift(d: int, a: int, sd: float) -> DriftPrior:
    """None is expected, with this sd; no correlation."""
    zero = torch.zeros(d, a, dtype=torch.double)
    return DriftPrior(zero, zero + sd, torch.eye(a, dtype=torch.double).expand(d, a, a))


def random_theta(shape: Landscape, seed: int) -> torch.Tensor:
    """A draw from the prior."""
    generator = torch.Generator().manual_seed(seed)
    return shape.mean + shape.sd * torch.randn(shape.p, dtype=torch.double, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_curvature_is_half_the_hessian_at_the_optimum(seed: int) -> None:
    """H(s) is what second derivatives of the bowl say at ψ(s)."""
    shape = landscape()
    theta, s = random_theta(shape, seed), torch.tensor([1.0, 2.0], dtype=torch.double)
    optimum = shape.path(theta, s)

    hessian = torch.func.hessian(lambda v: shape.bowl(theta, v, s))(optimum + 1e-9)

    assert torch.allclose(hessian / 2, shape.curvature(theta, s), rtol=1e-5, atol=1e-12)


@given(st.integers(0, 10_000), st.lists(st.floats(-6, 6), min_size=3, max_size=3))
def test_the_path_is_the_minimum(seed: int, offset: list[float]) -> None:
    """The bowl is 0 on the path of the optimum and positive off it."""
    shape = landscape()
    theta, s = random_theta(shape, seed), torch.tensor([2.0, -1.0], dtype=torch.double)
    optimum = shape.path(theta, s)
    moved = torch.tensor(offset, dtype=torch.double)

    assert float(shape.bowl(theta, optimum, s)) == 0.0
    assert float(shape.bowl(theta, optimum + moved, s)) >= 0.0
    if moved.abs().max() > 0.1:
        assert float(shape.bowl(theta, optimum + moved, s)) > 0.0


def test_belief_about_a_multiplier_does_not_depend_on_the_common_value() -> None:
    """Moving the optimum of lr moves that of lr x group along, and leaves the multiplier where it is."""
    dimensions = [Dimension(name, "log", 1e-3, 1e3) for name in ("lr", "lr.embedding", "weight_decay")]
    coordinates = Coordinates(dimensions, BASE, ["width"])
    shape = Landscape(coordinates, drift(3, 1, 0.1), level=1.0)
    theta = shape.mean.clone()
    theta[shape.part("u")] = torch.tensor([3.0, 0.0, 0.0], dtype=torch.double)

    optimum = coordinates.unmix @ shape.path(theta, torch.zeros(1, dtype=torch.double))

    assert optimum.tolist() == [3.0, 0.0, 0.0]


@given(
    st.floats(-0.99, 0.99),
    st.lists(st.floats(-1, 1), min_size=2, max_size=2),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=2),
)
def test_the_prior_of_the_drift_is_what_was_asked_for(
    correlation: float, mean: list[float], sd: list[float]
) -> None:
    """B = C β has the mean, the sd and the correlation that were given, though β is independent."""
    both = torch.tensor([[[1.0, correlation], [correlation, 1.0]]], dtype=torch.double)
    spread = torch.tensor(sd, dtype=torch.double)
    prior = DriftPrior(torch.tensor([mean], dtype=torch.double), spread[None], both)

    C, beta, sd_beta = prior.independent()

    assert torch.allclose((C @ beta.unsqueeze(-1)).squeeze(-1), prior.mean, atol=1e-9)
    covariance = C @ torch.diag_embed(sd_beta**2) @ C.mT
    assert torch.allclose(covariance, spread[:, None] * both * spread, atol=1e-12)


def test_only_drifts_with_sources_are_correlated() -> None:
    """In raw coordinates those of lr and batch with N and with D, as their sources are; not of other HPs."""
    lr, batch, other = DriftPrior.from_tables(["lr", "batch", "eps"], ["N", "D"], "raw").correlation
    base = DriftPrior.from_tables(["lr"], ["N", "D"], "base").correlation

    both = frozenset({"n_params", "tokens"})
    assert float(lr[0, 1]) == float(lr[1, 0]) == priors.RAW_DRIFT_CORRELATION["lr", both]
    assert float(batch[0, 1]) == priors.RAW_DRIFT_CORRELATION["batch", both]
    assert float(other[0, 1]) == float(base[0, 0, 1]) == 0.0


@given(st.floats(0.5, 8.0), st.floats(0.5, 8.0), st.floats(-3, 3))
def test_the_middle_of_a_range_is_believed_halfway_to_the_target(n: float, tokens: float, at: float) -> None:
    """Of an HP without a default; a default is expected at the base."""
    base, target = Scale(n_params=1e8, tokens=1e9), Scale(n_params=1e8 * 2**n, tokens=1e9 * 2**tokens)
    dimensions = [Dimension("lr", "log", 2**-12, 2**-6), Dimension("eps", "log", 2**-40, 2**-20, 2**-30.0)]
    coordinates = Coordinates(dimensions, base, ["n_params", "tokens"])
    drift = DriftPrior.from_tables(
        ["lr", "eps"], ["n_params", "tokens"], "raw", {"lr": {"tokens": (at, 0.1)}}
    )
    shape = Landscape(coordinates, drift, 1.0, target)

    path = shape.path(shape.mean, coordinates.s(target) / 2)
    there = coordinates.params(path)

    assert math.isclose(there["lr"], 2**-9, rel_tol=1e-9)
    assert float(shape.get(shape.mean, "u")[1]) == 0.0


def test_the_best_learning_rate_is_believed_to_grow_with_the_batch() -> None:
    """By .4 octaves for each of the batch at one scale (less if named last), and with no other HP."""
    slopes = []
    for names in (["lr", "batch_tokens"], ["batch_tokens", "lr"], ["lr", "dropout"]):
        coordinates = Coordinates([Dimension(name, "log", 1e-3, 1e3) for name in names], BASE, [])
        shape = Landscape(coordinates, drift(2, 0, 0.0), level=1.0)
        theta = shape.mean.clone()
        theta[shape.part("lnc")] = 0.0  # as steep
        H = shape.curvature(theta, torch.zeros(0, dtype=torch.double))
        i = names.index("lr")
        slopes.append(float(-H[i, 1 - i] / H[i, i]))

    assert slopes == pytest.approx([0.4, 0.4 / (1 + 0.4**2), 0.0])


def test_path_moves_by_the_drift() -> None:
    """Two doublings of an axis move the optimum by twice its drift."""
    shape = landscape()
    theta = shape.mean.clone()
    theta[shape.part("beta")] = torch.tensor([0.5, 0, 0, -0.25, 0, 0], dtype=torch.double)
    origin = shape.path(theta, torch.zeros(2, dtype=torch.double))

    moved = shape.path(theta, torch.tensor([2.0, 4.0], dtype=torch.double)) - origin

    assert (shape.coordinates.unmix @ moved).tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("kappa", [None, 1e-4, 5.0])
def test_jacobian_matches_finite_differences(kappa: float | None) -> None:
    """∂f/∂θ agrees with central differences of f, for any, a tiny and a cliff-like asymmetry."""
    shape = landscape()
    theta = random_theta(shape, 1)
    if kappa is not None:
        theta[shape.part("kappa")] = kappa
    X = torch.tensor([[0.3, -0.2, 1.0, 1, 0, 1.0, 2.0], [1.0, 0.1, -0.5, 0, 1, 0.0, 1.0]], dtype=torch.double)
    steps = 1e-5 * torch.eye(shape.p, dtype=torch.double)

    numeric = torch.stack(
        [(shape.values(theta + h, X) - shape.values(theta - h, X)) / 2e-5 for h in steps], -1
    )

    assert torch.allclose(shape.jacobian(theta, X), numeric, rtol=1e-5, atol=1e-8)


def test_without_axes_the_law_is_a_constant() -> None:
    """A study at one scale has one level, and no parameter of the law but l0 acts."""
    coordinates = Coordinates([Dimension("lr", "log", 1e-3, 1e3)], BASE, [])
    shape = Landscape(coordinates, drift(1, 0, 0.0), level=1.5)
    theta, x = random_theta(shape, 0), torch.tensor([[0.4]], dtype=torch.double)

    J = shape.jacobian(theta, x)

    assert torch.allclose(shape.law(theta, x[:, 1:]), theta[shape.part("l0")])
    assert float(J[0, shape.part("l0")]) == 1.0
    assert float(J[0, shape.part("e")]) == pytest.approx(0.0, abs=1e-15)


def test_asymmetry_steepens_the_upper_side() -> None:
    """The bowl is t² without asymmetry, steeper above and flatter below with it, and finite far away."""
    t = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.double)
    kappa = torch.tensor(0.5, dtype=torch.double)

    bent = asymmetric(t, kappa)
    straight = asymmetric(t, torch.tensor(1e-9, dtype=torch.double))
    far = asymmetric(torch.tensor(1e4, dtype=torch.double), kappa)

    assert torch.allclose(straight, t**2)
    assert torch.allclose(bent, 2 * (torch.exp(kappa * t) - kappa * t - 1) / kappa**2)
    assert (bent[2:] > t[2:] ** 2).all()
    assert (bent[:2] < t[:2] ** 2).all()
    assert torch.isfinite(far)
