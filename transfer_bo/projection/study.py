"""The two calls for an Optuna study: fit everything it has run, and say what to set at the target.

Reads a study through its public attributes and needs no import of Optuna.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transfer_bo.projection.projection import Projection
from transfer_bo.projection.suggestion import Suggestion
from transfer_bo.records import read_constants, read_dimensions, read_runs, read_settings
from transfer_bo.scale import Scale, as_scale
from transfer_bo.surrogate.surrogate import fit_surrogate
from transfer_bo.surrogate.threads import one_thread

__all__ = ["fit_study", "suggest"]


@one_thread()
def fit_study(study: Any, target: Scale | Mapping[str, float] | None = None) -> Projection:
    """Fit the surrogate to all runs of an Optuna study.

    Args:
        study: an Optuna study that a `TransferSampler` with a ladder has worked on.
        target: another scale than the sampler's target.

    Raises:
        StudyError: if the study holds no ladder.
        NoRunsError: if no run has finished with a scale.
        ScaleError: if the target has other axes than the ladder.
    """
    settings = read_settings(study)
    if target is not None:
        target = as_scale(target, "target")
        target.log2_ratio(settings.base)  # refuses other axes
        settings = dataclasses.replace(settings, target=target)

    runs = read_runs(study)
    distributions = [trial.distributions for trial in study.get_trials(deepcopy=False)]
    dimensions = read_dimensions(distributions, settings.defaults)
    surrogate = fit_surrogate(runs, dimensions, settings, maximize=study.direction.name == "MAXIMIZE")
    return Projection(surrogate, runs, settings, read_constants(distributions))


def suggest(study: Any, target: Scale | Mapping[str, float] | None = None) -> Suggestion:
    """What to set at the target, from everything that a study has run.

    Args:
        study: an Optuna study that a `TransferSampler` with a ladder has worked on.
        target: another scale than the sampler's target.

    Raises:
        StudyError: if the study holds no ladder.
        NoRunsError: if no run has finished with a scale.
        ScaleError: if the target has other axes than the ladder.
    """
    return fit_study(study, target).suggest()
