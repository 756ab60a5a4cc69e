"""A finished Optuna study as a table of runs, whoever made it; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution

from transfer_bo.attributes import ATTR_PREFIX, RUNG
from transfer_bo.errors import StudyError
from transfer_bo.records import read_run
from transfer_bo.run_table.read import CONSTRAINT_PREFIX

__all__ = ["study_table", "trial_table"]


def study_table(study: optuna.Study, loss: str, outcome: str) -> pd.DataFrame:
    """Make a table with a row per trial: parameters, plain user attributes, axes of its scale, loss, outcome.

    Runs that the study was given from source studies are left out: their losses have another level.

    Args:
        study: whoever made it.
        loss: column for the trial's value.
        outcome: column for the trial's outcome, a value of `records.Outcome`.

    Returns:
        The table. Its `attrs` hold "maximize", whether the study maximizes, and "hps", `{hp: transform}`.

    Raises:
        StudyError: if the study has several objectives.
    """
    if len(study.directions) > 1:
        raise StudyError(f"Study {study.study_name!r} has {len(study.directions)} objectives; one is needed.")

    table = trial_table(study.get_trials(deepcopy=False), loss, outcome)
    table.attrs["maximize"] = study.direction.name == "MAXIMIZE"
    return table


def trial_table(trials: Sequence[optuna.trial.FrozenTrial], loss: str, outcome: str) -> pd.DataFrame:
    """The same of trials without their study, whose direction is not known.

    Args:
        trials: of one study.
        loss: column for the trial's value.
        outcome: column for the trial's outcome, a value of `records.Outcome`.

    Returns:
        The table. Its `attrs` hold "hps", `{hp: transform}`.
    """
    rows: list[dict[str, Any]] = []
    hps: dict[str, str] = {}
    for trial in trials:
        run = read_run(trial)
        if run.source is not None:
            continue
        hps |= {name: _transform(of) for name, of in trial.distributions.items() if name != RUNG}
        plain = {k: v for k, v in trial.user_attrs.items() if isinstance(v, int | float | str)}
        rows.append(
            {k: v for k, v in plain.items() if not k.startswith(ATTR_PREFIX)}
            | dict(run.scale or {})
            | run.params
            | {f"{CONSTRAINT_PREFIX}{name}": value for name, value in run.constraints.items()}
            | {loss: run.loss, outcome: str(run.outcome)}
        )

    table = pd.DataFrame(rows)
    table.attrs["hps"] = hps
    return table


def _transform(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "categorical"
    return "log" if getattr(distribution, "log", False) else "linear"
