"""AdamH and MuonH: optimizers that keep the norm of every matrix (arXiv:2606.16899, 2603.28743).

A step turns a matrix and leaves its Frobenius norm as it was at the first step:

    W ← r · V / ‖V‖,   V = W - lr · r · u / ‖u‖,   r = ‖W at the first step‖

The learning rate is the size of a step relative to the matrix, and weight decay would do nothing.

Symbols:
    W: A matrix.
    r: Its norm.
    u: Step of the optimizer that is wrapped: Adam's, or Muon's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdamH", "MuonH", "orthogonalize"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that brings singular values near 1 (Jordan et al. on Muon, 2024)."""
_ITERATIONS = 5
"""Of the same, as in torch's Muon."""


class _Hyperball(torch.optim.Optimizer, ABC):
    """An optimizer of matrices that keeps their norms."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Turn every matrix that has a gradient; the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                radius = state.setdefault("norm", torch.linalg.vector_norm(weight))
                update = self._update(weight.grad, state, group)
                scale = group["lr"] * radius / torch.linalg.vector_norm(update).clamp_min(group["eps"])
                weight.sub_(update * scale)
                weight.mul_(radius / torch.linalg.vector_norm(weight).clamp_min(group["eps"]))
        return loss

    @abstractmethod
    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The step's direction; its norm does not matter."""


class AdamH(_Hyperball):
    """Adam's direction, at a constant norm of every tensor.

    Args:
        params: Tensors or groups of them.
        lr: Size of a step relative to the tensor's norm.
        betas: Decay rates of the averages of gradients and of their squares.
        eps: Term in Adam's denominator.
        weight_decay: Has no effect; it is here so that groups have the same keys as AdamW's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        beta1, beta2 = group["betas"]
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(gradient)
            state["exp_avg_sq"] = torch.zeros_like(gradient)

        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

        # The first average's correction is a factor on the whole step, which is normalised.
        correction = math.sqrt(1 - beta2 ** state["step"])
        step: Tensor = state["exp_avg"] / (state["exp_avg_sq"].sqrt() / correction + group["eps"])
        return step


class MuonH(_Hyperball):
    """Muon's direction, at a constant norm of every matrix.

    Args:
        params: Matrices or groups of them.
        lr: Size of a step relative to the matrix's norm.
        momentum: Decay rate of the average of gradients, with Nesterov's look ahead.
        eps: Smallest norm that is divided by.
        weight_decay: Has no effect; it is here so that groups have the same keys as Muon's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay})

    def _update(self, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        average = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - group["momentum"])
        return orthogonalize(gradient.lerp(average, group["momentum"]), group["eps"])


def orthogonalize(matrix: Tensor, eps: float) -> Tensor:
    """A matrix (n x m) with the same singular vectors and singular values between about .7 and 1.2.

    Computed in bfloat16 on GPUs, as in Muon, and otherwise in the matrix's own precision.

    Args:
        matrix: The matrix.
        eps: Smallest norm that is divided by.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.mT if is_tall else matrix
    x = x.bfloat16() if x.is_cuda else x
    x = x / torch.linalg.vector_norm(x).clamp_min(eps)

    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if is_tall else x).to(matrix)
    return result
