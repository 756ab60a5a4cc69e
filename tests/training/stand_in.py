"""The least that the trainer accepts as a parametrization: one setting for every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class StandIn:
    """Base initialization and the same AdamW settings everywhere."""

    def initialize(self, model: nn.Module, hps: Mapping[str, float], seed: int) -> None:
        """Base initialization, times `init_std`."""
        model.reset_parameters(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(hps.get("init_std", 1.0))

    def optimizers(
        self, model: nn.Module, hps: Mapping[str, float], *, fused: bool
    ) -> list[torch.optim.Optimizer]:
        """AdamW with the learning rate for every tensor."""
        settings: dict[str, Any] = {"lr": hps["lr"], "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        return [torch.optim.AdamW([{"params": list(model.parameters()), **settings}], fused=fused)]

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        """Clip on the gradients as they are."""
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
