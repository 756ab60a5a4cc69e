"""Shampoo with moving averages and block preconditioners (arXiv:1802.09568, 2002.09018, 2512.05620).

    W ← (1 - lr·λ) W - lr · (L + ε)^-1/4 m (R + ε)^-1/4

for each block of at most `BLOCK` rows and columns. The packages at hand lack this form: one mixes its
momentum with preconditioned gradients, another keeps its state in objects that no checkpoint without code can
hold.

Symbols:
    W: A matrix.
    G: A block of its gradient.
    m: Moving average of G, corrected for its start at 0.
    L, R: Moving averages of G Gᵀ and Gᵀ G, likewise.
    λ: Weight decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BLOCK", "Shampoo", "count_blocks"]

BLOCK = 128
"""Largest size of a preconditioner, as in 2512.05620."""
_FREQUENCY = 10
"""Steps from one computation of the inverse roots to the next, after as many steps that all compute them:
there new gradients have directions that earlier ones had not, and an old root would blow them up."""
_RELATIVE_RIDGE = 1e-6
"""Added to eigenvalues, in units of the largest: bounds how far directions without gradients are blown up."""


def count_blocks(shape: tuple[int, ...]) -> int:
    """Number of blocks that a matrix is split into."""
    return -(-shape[0] // BLOCK) * -(-shape[1] // BLOCK)


class Shampoo(torch.optim.Optimizer):
    """Shampoo for matrices, powers -1/4 on both sides.

    Args:
        params: Matrices or groups of them.
        lr: Learning rate.
        betas: Decay rates of the averages of gradients, and of L and R.
        eps: ε, added to the eigenvalues of L and R: of the size of squared gradients.
        weight_decay: λ.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every matrix that has a gradient; the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, self.state[weight], group)
        return loss

    def _step(self, weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One matrix's step."""
        beta1, beta2 = group["betas"]
        blocks = _split(weight.grad)  # type: ignore[arg-type]
        if not state:
            state["average"] = torch.zeros_like(blocks)
            for side, product in (("left", blocks @ blocks.mT), ("right", blocks.mT @ blocks)):
                state[side] = torch.zeros_like(product)

        state["average"].lerp_(blocks, 1 - beta1)
        state["left"].lerp_(blocks @ blocks.mT, 1 - beta2)
        state["right"].lerp_(blocks.mT @ blocks, 1 - beta2)
        if group["step"] <= _FREQUENCY or group["step"] % _FREQUENCY == 0:
            for side in ("left", "right"):
                corrected = state[side] / (1 - beta2 ** group["step"])
                state[f"{side}_root"] = _inverse_fourth_root(corrected, group["eps"])

        update = state["left_root"] @ state["average"] @ state["right_root"]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(_join(update, weight) * (group["lr"] / (1 - beta1 ** group["step"])))


def _inverse_fourth_root(matrices: Tensor, eps: float) -> Tensor:
    """(M + ε)^-1/4 of symmetric matrices (n x k x k), ε with a share of the largest eigenvalue."""
    values, vectors = torch.linalg.eigh(matrices)
    ridge = eps + _RELATIVE_RIDGE * values[..., -1:].clamp_min(0)
    root: Tensor = (vectors * (values.clamp_min(0) + ridge).pow(-0.25).unsqueeze(-2)) @ vectors.mT
    return root


def _sizes(matrix: Tensor) -> list[tuple[int, int]]:
    """Number and size of the blocks along rows and columns, for blocks as equal as possible."""
    counts = [-(-size // BLOCK) for size in matrix.shape]
    return [(count, -(-size // count)) for count, size in zip(counts, matrix.shape, strict=True)]


def _split(matrix: Tensor) -> Tensor:
    """A matrix as a batch of its blocks, padded with zeros."""
    (down, rows), (across, columns) = _sizes(matrix)
    padding = (0, across * columns - matrix.size(1), 0, down * rows - matrix.size(0))
    padded = F.pad(matrix, padding).view(down, rows, across, columns)
    return padded.transpose(1, 2).reshape(down * across, rows, columns)


def _join(blocks: Tensor, like: Tensor) -> Tensor:
    """The matrix that `_split` splits into these blocks."""
    (down, rows), (across, columns) = _sizes(like)
    whole = blocks.view(down, across, rows, columns).transpose(1, 2).reshape(down * rows, across * columns)
    return whole[: like.size(0), : like.size(1)]
