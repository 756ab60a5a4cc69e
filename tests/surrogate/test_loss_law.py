"""The loss law against its formula, and against the laws that it contains."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from transfer_bo.surrogate.loss_law import LossLaw

AXES = [(), ("width",), ("batch",), ("width", "depth"), ("tokens", "n_params"), ("width", "batch", "tokens")]


def tensor(*values: float) -> Tensor:
    """In double precision."""
    return torch.tensor(values, dtype=torch.double)


def parameters(
    omega: Tensor, alpha: Tensor, zeta: float, e: float = 0.25, l0: float = math.log(3.0)
) -> dict[str, Tensor]:
    """By their values; shares by their weights."""
    logit = math.log(e / (1 - e))
    return {
        "l0": tensor(l0),
        "e": tensor(logit),
        "omega": omega.log(),
        "alpha": alpha,
        "lnzeta": tensor(math.log(zeta)),
    }


def random_parameters(axes: int, seed: int) -> dict[str, Tensor]:
    """Any."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"l0": 1, "e": 1, "omega": axes + 1, "alpha": axes, "lnzeta": 1}
    return {name: torch.randn(size, dtype=torch.double, generator=generator) for name, size in sizes.items()}


def test_size_and_data_hold_each_other_back() -> None:
    """The sum over a size and the tokens, with numbers put in by hand."""
    p = parameters(omega=tensor(2.0, 1.0, 5.0), alpha=tensor(0.5, 0.3), zeta=0.5)

    law = LossLaw(["width", "tokens"]).values(p, tensor(2.0, 5.0))

    reducible = (2 / 3 * 2**-2.0 + 1 / 3 * 2**-3.0) ** 0.5
    assert math.exp(law) == pytest.approx(3.0 * (0.25 + 0.75 * reducible), rel=1e-12)


def test_what_does_not_vary_holds_back() -> None:
    """With sizes alone, the share of the data stays."""
    p = parameters(omega=tensor(2.0, 1.0, 1.0), alpha=tensor(0.5, 0.3), zeta=0.5)

    law = LossLaw(["width", "depth"]).values(p, tensor(2.0, 5.0))

    reducible = (1 / 2 * 2**-2.0 + 1 / 4 * 2**-3.0 + 1 / 4) ** 0.5
    assert math.exp(law) == pytest.approx(3.0 * (0.25 + 0.75 * reducible), rel=1e-12)


def test_the_batch_multiplies_what_is_reducible() -> None:
    """It has no share in the sum, and may raise the loss."""
    p = parameters(omega=tensor(1.0, 7.0, 1.0, 7.0), alpha=tensor(0.5, -0.1, 0.3), zeta=0.5)

    law = LossLaw(["width", "batch", "tokens"]).values(p, tensor(2.0, 3.0, 5.0))

    reducible = (1 / 2 * 2**-2.0 + 1 / 2 * 2**-3.0) ** 0.5 * 2**0.3
    assert math.exp(law) == pytest.approx(3.0 * (0.25 + 0.75 * reducible), rel=1e-12)


@given(st.floats(-4, 8), st.floats(-4, 8), st.floats(0.05, 0.95))
def test_at_one_each_axis_has_a_loss_of_its_own(n: float, d: float, share: float) -> None:
    """Chinchilla's law: growing the one changes nothing in what the other gains."""
    p = parameters(omega=tensor(share, 1 - share, 1.0), alpha=tensor(0.34, 0.28), zeta=1.0)
    law = LossLaw(["n_params", "tokens"])

    def loss(*s: float) -> float:
        return math.exp(law.values(p, tensor(*s)))

    assert loss(n, d) - loss(n, 0) == pytest.approx(loss(0, d) - loss(0, 0), abs=1e-9)


@given(st.floats(0.1, 0.9), st.floats(0.5, 6), st.floats(0.5, 6))
def test_below_one_growing_both_gains_more_than_each(zeta: float, n: float, d: float) -> None:
    """More data is worth more to a larger model."""
    p = parameters(omega=tensor(1.0, 1.0, 1.0), alpha=tensor(0.34, 0.28), zeta=zeta)
    law = LossLaw(["n_params", "tokens"])

    def loss(*s: float) -> float:
        return math.exp(law.values(p, tensor(*s)))

    assert loss(n, 0) - loss(n, d) > loss(0, 0) - loss(0, d)


@given(st.sampled_from(AXES), st.integers(0, 10_000))
def test_slopes_are_those_of_the_law(axes: tuple[str, ...], seed: int) -> None:
    """∂L/∂ each parameter agrees with automatic differentiation, whatever axes vary."""
    law, p = LossLaw(axes), random_parameters(len(axes), seed)
    s = 3 * torch.randn(len(axes), dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    names = list(p)

    def value(*blocks: Tensor) -> Tensor:
        return law.values(dict(zip(names, blocks, strict=True)), s)

    expected = torch.autograd.functional.jacobian(value, tuple(p.values()))
    for name, slope in zip(names, expected, strict=True):
        assert torch.allclose(law.slopes(p, s)[name], slope, rtol=1e-9, atol=1e-12), name


@given(st.sampled_from(AXES), st.integers(0, 10_000))
def test_at_the_base_the_law_is_its_level(axes: tuple[str, ...], seed: int) -> None:
    """L(0) = l0; without axes nothing but l0 acts."""
    law, p = LossLaw(axes), random_parameters(len(axes), seed)
    s = torch.zeros(len(axes), dtype=torch.double)

    assert float(law.values(p, s)) == pytest.approx(float(p["l0"]), abs=1e-12)
    if not axes:
        slopes = law.slopes(p, s)
        assert all(float(slopes[name].abs().max()) < 1e-15 for name in ("e", "omega", "lnzeta"))
