"""AdamH, MuonH and Shampoo against what defines them."""

import pytest
import torch

from transfer_bo.parametrization.hyperball import AdamH, MuonH, orthogonalize
from transfer_bo.parametrization.shampoo import BLOCK, Shampoo, count_blocks


def matrix(*shape, seed=0):
    """A random matrix in float64 with a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weight


@pytest.mark.parametrize("make", [AdamH, MuonH])
def test_a_hyperball_step_keeps_the_norm(make):
    """After any number of steps the norm is that of the start, and weight decay does nothing."""
    one, other = matrix(12, 5), matrix(12, 5)
    before = one.detach().clone()
    for weight, decay in ((one, 0.0), (other, 0.5)):
        optimizer = make([weight], lr=0.1, weight_decay=decay)
        for _ in range(4):
            optimizer.step()

    assert float(before.norm()) == pytest.approx(float(one.detach().norm()), rel=1e-12)
    assert float((one.detach() - before).norm()) > 0.1 * float(before.norm())
    assert torch.equal(one, other)


@pytest.mark.parametrize("make", [AdamH, MuonH])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_a_hyperball_step_is_relative_to_the_norm(make, size):
    """Before the norm is restored, a step has length lr times the norm, whatever the gradient's size."""
    weight = matrix(6, 8)
    weight.data *= size
    before = weight.detach().clone()
    optimizer = make([weight], lr=0.01)
    optimizer.step()
    direction = torch.sign(weight.grad) if make is AdamH else orthogonalize(weight.grad, 1e-8)
    turned = before - 0.01 * before.norm() * direction / direction.norm()

    torch.testing.assert_close(turned * before.norm() / turned.norm(), weight.detach(), rtol=1e-6, atol=0)


def test_adamh_follows_adams_direction():
    """Over several different gradients, it turns as a step of torch's Adam from the same weights would."""
    weight, plain = matrix(6, 8), matrix(6, 8)
    adamh = AdamH([weight], lr=0.01, betas=(0.9, 0.95), eps=1e-3)
    adam = torch.optim.Adam([plain], lr=1.0, betas=(0.9, 0.95), eps=1e-3)
    norm = float(weight.detach().norm())
    for seed in range(3):
        weight.grad = plain.grad = matrix(6, 8, seed=seed + 5).grad
        before, start = plain.detach().clone(), weight.detach().clone()
        adam.step()
        adamh.step()
        direction = plain.detach() - before
        turned = start + 0.01 * norm * direction / direction.norm()
        torch.testing.assert_close(turned * norm / turned.norm(), weight.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [(8, 8), (20, 6), (6, 20)])
def test_orthogonalized_matrices_have_equal_singular_values(shape):
    """Singular values are near 1, and singular vectors stay."""
    given = matrix(*shape).detach()
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    result = orthogonalize(given, 1e-8)
    values = torch.linalg.svdvals(result)

    assert 0.3 < float(values.min())
    assert float(values.max()) < 1.3
    core = u.T @ result @ v.T
    torch.testing.assert_close(core, torch.diag(torch.diagonal(core)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 8), (20, 6)])
def test_the_first_step_of_shampoo_is_orthogonal(shape):
    """With powers -1/4 on both sides of a single gradient, all of its singular values become 1."""
    weight = matrix(*shape)
    before = weight.detach().clone()
    u, _, v = torch.linalg.svd(weight.grad, full_matrices=False)
    Shampoo([weight], lr=0.5, eps=1e-30, weight_decay=0.2).step()

    torch.testing.assert_close(0.9 * before - 0.5 * u @ v, weight.detach(), rtol=1e-3, atol=1e-3)


def test_shampoo_splits_large_matrices():
    """Each block steps as a matrix of its own, whether or not blocks fill the matrix."""
    weight = matrix(BLOCK + 2, 3)
    top, bottom = (matrix(BLOCK // 2 + 1, 3) for _ in range(2))
    for part, rows in ((top, slice(0, BLOCK // 2 + 1)), (bottom, slice(BLOCK // 2 + 1, None))):
        part.data, part.grad = weight.data[rows].clone(), weight.grad[rows].clone()
    for each in (weight, top, bottom):
        optimizer = Shampoo([each], lr=0.1, eps=1e-6)
        for _ in range(3):
            optimizer.step()

    torch.testing.assert_close(torch.cat([top, bottom]).detach(), weight.detach(), rtol=1e-9, atol=1e-9)
    assert [1, 2, 6] == [count_blocks(shape) for shape in ((BLOCK, 3), (BLOCK + 1, 3), (300, 200))]


def test_a_step_of_split_shampoo_is_of_the_same_size():
    """The rule's lr takes out what more blocks add: the spectral norm of a step does not grow with them."""
    from transfer_bo.parametrization import parametrize
    from transfer_bo.scale import Scale

    def build(scale):
        layers = [torch.nn.Embedding(5, scale.width), torch.nn.Linear(scale.width, scale.width, bias=False)]
        return torch.nn.Sequential(*layers, torch.nn.Linear(scale.width, 5, bias=False))

    p = parametrize(build, Scale(width=BLOCK), Scale(width=2 * BLOCK), "mup", optimizer="shampoo")
    base, wide = p.at(p.base).settings()["1.weight"].options, p.settings()["1.weight"].options

    assert 0.5 == pytest.approx(wide["lr"] / base["lr"])
    assert 0.25 == pytest.approx(wide["eps"] / base["eps"])
