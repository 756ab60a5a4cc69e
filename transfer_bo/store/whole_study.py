"""The whole of a study of which Optuna shows a sampler only a part."""

from __future__ import annotations

import optuna

__all__ = ["whole_study"]


def whole_study(study: optuna.Study) -> optuna.Study:
    """The study itself; under HyperbandPruner Optuna hands samplers one bracket of it, without attributes."""
    return getattr(study, "_study", study)
