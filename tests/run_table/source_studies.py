"""Analytic past runs, for all tests of tables."""

import math
from typing import Any

import numpy as np
import pandas as pd

DRIFT = -0.4
"""Octaves of lr per doubling of n_params in the analytic loss."""
ASK: dict[str, Any] = {
    "axes": ["n_params", "tokens"],
    "hps": {"lr": "log", "beta2": "one_minus"},
    "target": {"n_params": 1.6e9, "tokens": 1.6e10},
}


def best_lr(n_params: float) -> float:
    """Where the analytic loss is least."""
    return float(2.0 ** (-8 + DRIFT * math.log2(n_params / 1e8)))


def loss_at(n_params: float, tokens: float, lr: float, beta2: float = 0.99) -> float:
    """A law in size and tokens, times a bowl around the drifting optimum."""
    law = 1.5 + (n_params / 1e8) ** -0.3 + 0.5 * (tokens / 1e9) ** -0.3
    z = math.log2(lr / best_lr(n_params))
    return law * math.exp(0.02 * z**2 + 0.004 * (math.log2(1 - beta2) - math.log2(0.02)) ** 2)


def past_runs(
    per_scale: int = 6, noise: float = 0.002, seed: int = 0, same_settings: bool = False
) -> pd.DataFrame:
    """Random runs at six scales; `same_settings`: the same settings at all of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for n_params in (1e8, 2e8, 4e8):
        for tokens in (1e9, 4e9):
            draws = np.random.default_rng(seed) if same_settings else rng
            for _ in range(per_scale):
                lr, beta2 = 2.0 ** draws.uniform(-11, -6), 1 - 2.0 ** draws.uniform(-9, -3)
                loss = loss_at(n_params, tokens, lr, beta2) * math.exp(noise * rng.normal())
                rows.append({"n_params": n_params, "tokens": tokens, "lr": lr, "beta2": beta2, "loss": loss})
    return pd.DataFrame(rows)
