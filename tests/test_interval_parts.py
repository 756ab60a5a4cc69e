"""Each source of uncertainty has to widen the interval that it belongs to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from transfer_bo import Scale
from transfer_bo.projection import Projection
from transfer_bo.run_table.suggest import fit_runs

SCALE = Scale(width=64)
MIDDLE = 2.0**-8
"""The learning rate in the middle of the tried ones."""


def bowl_with_a_wave(seed: int, noise: float, wave: float = 0.0) -> Projection:
    """A fit to 30 runs at one scale over eight octaves; `wave` is the size of what is no bowl, in ln loss."""
    rng = np.random.default_rng(seed)
    z = np.linspace(-4.0, 4.0, 30)
    ln_loss = 0.01 * z**2 + wave * np.sin(2 * np.pi * (z / 3 + rng.uniform())) + noise * rng.normal(size=30)
    runs = pd.DataFrame({"width": 64, "lr": MIDDLE * 2.0**z, "loss": np.exp(ln_loss)})
    return fit_runs(runs, ["width"], {"lr": "log"}, target=SCALE, seed=seed).projection


def test_the_noise_of_a_run_is_part_of_its_predicted_loss() -> None:
    """With noise of 5% a run and little else unknown, predicted losses spread by 3 to 7%."""
    fits = [bowl_with_a_wave(seed, noise=0.05) for seed in range(4)]

    spread = np.mean([np.log(fit.suggest().predicted_loss.draws).std() for fit in fits])

    assert spread == pytest.approx(0.05, abs=0.02)


def test_what_the_bowl_does_not_explain_is_part_of_the_interval_of_the_optimum() -> None:
    """A wave moves the optimum away from the bowl's, so the optimum is less certain than the bowl's."""
    fit = bowl_with_a_wave(0, noise=0.0005, wave=0.006)
    of_bowl = fit.samples.at(fit.surrogate.coordinates.s(SCALE)).optimum.std()

    spread = np.log2(fit.suggest().optimum["lr"]).std()

    assert spread > 1.2 * float(of_bowl)
