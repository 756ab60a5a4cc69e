"""What to run at the target after the suggestion has diverged there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna

from transfer_bo.projection import Suggestion, fit_study
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.synonyms import hp_kind

__all__ = ["safer_suggestion"]

SAFE = 0.1
"""Largest probability to diverge with which a setting counts as safe."""

MAX_OCTAVES = 4
"""A learning rate is lowered at most so far below the one that diverged."""


def safer_suggestion(study: optuna.Study, target: Scale, diverged: Mapping[str, Any]) -> Suggestion:
    """The next safest setting: the new suggestion, with a learning rate that is unlikely to diverge.

    The fit knows of the run that diverged. The learning rate is at least an octave below the one of that run,
    and lowered in octaves until the probability to diverge is at most `SAFE`; other HPs are those of the
    suggestion.

    Args:
        study: The study, with the diverged run.
        target: Where the next run is to be made.
        diverged: HPs of the run that diverged there.

    Raises:
        TransferError: If the study cannot be fitted.
    """
    projection = fit_study(study, target)
    suggestion = projection.suggest()
    surrogate = projection.surrogate
    coordinates = surrogate.coordinates

    lowest = {
        dim.name: dim.low
        for dim in coordinates.numeric
        if hp_kind(dim.name) == "lr" and not is_multiplier(dim.name) and dim.name in diverged
    }
    if not lowest:
        return suggestion

    params = dict(suggestion.params)
    for octaves in range(1, MAX_OCTAVES + 1):
        for name, low in lowest.items():
            params[name] = max(low, min(suggestion.params[name], diverged[name] / 2**octaves))
        row = coordinates.row(params, target)[None]
        if float(surrogate.divergence.probability(row)) <= SAFE:
            break

    v, flags, _ = surrogate.landscape.split(row)
    return replace(suggestion, params=params, predicted_loss=projection.predict(target, v[0], flags))
