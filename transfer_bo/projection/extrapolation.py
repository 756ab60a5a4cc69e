"""How far a law of the optimum may miss that is extrapolated over more than a factor of 100 in compute."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from transfer_bo.records import finished_runs
from transfer_bo.scale import Scale, default_cost
from transfer_bo.space import is_multiplier
from transfer_bo.surrogate.priors import FAR_COST_RATIO, FAR_SD
from transfer_bo.surrogate.surrogate import Surrogate
from transfer_bo.synonyms import hp_kind, without_prefix

__all__ = ["far_sd", "times_largest_run"]

LAWS_MISSED = ("lr", "batch")
"""Kinds of HPs whose published laws were seen to miss."""


def times_largest_run(surrogate: Surrogate, scale: Scale) -> float:
    """How many times as much a run at a scale costs as the most expensive finished one.

    Args:
        surrogate: fitted to runs.
        scale: any.
    """
    runs = finished_runs(surrogate.runs)
    own = [run for run in runs if run.source is None] or runs
    return default_cost(scale) / max(default_cost(run.scale) for run in own)


def far_sd(surrogate: Surrogate, scale: Scale) -> Float[Tensor, " d"]:
    """Standard deviation of each HP's optimum about the law that the fit extrapolates, in octaves.

    Args:
        surrogate: fitted to runs.
        scale: where the optimum is asked for.

    Returns:
        0 up to `FAR_COST_RATIO`, in base coordinates, and for HPs of other kinds than `LAWS_MISSED`.
    """
    coordinates = surrogate.coordinates
    names = [without_prefix(name) for name in coordinates.hps_as_known]
    missed = [hp_kind(name) in LAWS_MISSED and not is_multiplier(name) for name in names]

    doublings = math.log2(times_largest_run(surrogate, scale) / FAR_COST_RATIO)
    is_raw = surrogate.settings.coordinates == "raw"
    sd = FAR_SD * max(doublings, 0.0) if is_raw else 0.0
    return sd * torch.tensor(missed, dtype=torch.double)
