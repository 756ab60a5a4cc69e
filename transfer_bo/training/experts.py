"""A mixture of experts: a sigmoid router, the best experts of each token, load balanced by a bias.

The layer and its update rule are those of arXiv:2601.20205:

    y = 1/k · sum of g_i · E_i(x) over the k experts with the largest g_i + b_i,   g = sigmoid(router(x))
    b_i <- b_i - η_b · (load_i - k/E)                                              after each step

The bias b only ranks, so it has no gradient: it is a buffer, which no optimizer and no weight decay touches.

Symbols, as suffixes of names (shapes):
    N: Tokens.
    D: Width of the residual stream.
    E: Experts.
    F: Hidden width of an expert.
    k: Experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MixtureOfExperts", "balance_load"]


class MixtureOfExperts(nn.Module):
    """Each token is sent to `top_k` experts, MLPs with GELU; no token is dropped.

    Args:
        width: D.
        hidden: F.
        experts: E.
        top_k: k.
        balance_rate: η_b, the step by which the bias of an expert falls for a load that is too large by 1.
    """

    bias: Tensor
    """b: added to the gates where experts are ranked."""
    count: Tensor
    """Tokens that each expert got in training since the last `balance_load`; not stored."""

    def __init__(self, width: int, hidden: int, experts: int, top_k: int, balance_rate: float) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("count", torch.zeros(experts), persistent=False)
        self.top_k = top_k
        self.balance_rate = balance_rate

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Every matrix std fan_in^-1/2, biases 0; the router is an nn.Linear, which has its own."""
        self.up.normal_(0.0, self.up.size(2) ** -0.5, generator=generator)
        self.down.normal_(0.0, self.down.size(2) ** -0.5, generator=generator)
        self.bias.zero_()
        self.count.zero_()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Same shape."""
        x_ND = x_BTD.flatten(0, -2)
        gates_NE = self.router(x_ND).sigmoid()
        chosen_Nk = (gates_NE + self.bias).topk(self.top_k, dim=-1).indices
        # (token, place) pairs in the order of their experts, each expert's part in one piece
        order = chosen_Nk.flatten().argsort(stable=True)
        sizes = self._count(chosen_Nk)

        parts = torch.split(x_ND[order // self.top_k], sizes)
        outputs = [
            F.linear(F.gelu(F.linear(part, up_FD)), down_DF)
            for part, up_FD, down_DF in zip(parts, self.up, self.down, strict=True)
        ]
        y_NkD = torch.cat(outputs)[order.argsort()].view(*chosen_Nk.shape, -1)
        y_ND: Tensor = (y_NkD * gates_NE.gather(-1, chosen_Nk).unsqueeze(-1)).mean(1)
        return y_ND.view(x_BTD.shape)

    @torch.no_grad()
    def _count(self, chosen_Nk: Tensor) -> list[int]:
        """Tokens per expert, noted in training; on the meta device, where there are none, equally many."""
        flat, experts = chosen_Nk.flatten(), len(self.bias)
        ones = torch.ones_like(flat, dtype=self.bias.dtype)
        counts = torch.zeros_like(self.bias).scatter_add_(0, flat, ones)
        if flat.is_meta:
            return [(len(flat) + i) // experts for i in range(experts)]
        if self.training:
            self.count += counts
        return [int(count) for count in counts.tolist()]


@torch.no_grad()
def balance_load(model: nn.Module, mean: Callable[[Tensor], Tensor] = lambda counts: counts) -> None:
    """Move the biases of a model's experts after a step of the optimizer, and begin a new count.

    Args:
        model: Any; one without a `MixtureOfExperts` is left as it is.
        mean: Gives the mean of a tensor over the processes that train together.
    """
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            counts = mean(module.count)
            load = module.top_k * counts / counts.sum().clamp(min=1)  # share of the tokens; its mean is k/E
            module.bias -= module.balance_rate * (load - module.top_k / len(counts))
            module.count.zero_()
