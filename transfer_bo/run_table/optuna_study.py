"""A finished Optuna study as a table of runs, whoever made it; nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution

from transfer_bo.attributes import RUNG
from transfer_bo.errors import TransferError
from transfer_bo.records import read_run

__all__ = ["read_past_study", "study_table"]


def read_past_study(url: str, name: str | None, loss: str, outcome: str) -> pd.DataFrame:
    """The table of a study in a storage, see `study_table`.

    Args:
        url: Optuna storage URL.
        name: of the study; may be None if the storage holds one.
        loss: column for the trial's value.
        outcome: column for the trial's outcome (`history.Outcome`).

    Raises:
        TransferError: if there is no such storage or study, or the study has several objectives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = url.removeprefix("sqlite:///")
    if url.startswith("sqlite:///") and not Path(file).is_file():
        raise TransferError(f"{url}: {file} is no file; give the storage that holds the study.")
    try:
        names = optuna.get_all_study_names(url)
    except Exception as error:  # whatever the driver raises
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise TransferError(
            f"This storage can't be opened ({reason}); give an address such as sqlite:///study.db."
        ) from None
    if name is None and len(names) != 1:
        raise TransferError(
            f"The storage holds {len(names)} studies ({', '.join(sorted(names)[:5])}); say which one."
        )
    if name is not None and name not in names:
        raise TransferError(
            f"The storage holds no study {name!r}, only {', '.join(sorted(names)[:5]) or 'nothing'}."
        )
    return study_table(optuna.load_study(study_name=name or names[0], storage=url), loss, outcome)


def study_table(study: optuna.Study, loss: str, outcome: str) -> pd.DataFrame:
    """A row per trial: its parameters, its plain user attributes, the axes of its scale, loss and outcome.

    Runs that the study itself was given from other studies are left out: their losses have another level. The
    table's `attrs` say whether the study maximizes, and what its HPs are: `{hp: transform}`.

    Args:
        study: whoever made it.
        loss: column for the trial's value.
        outcome: column for the trial's outcome (`history.Outcome`).

    Raises:
        TransferError: if the study has several objectives.
    """
    if len(study.directions) > 1:
        raise TransferError(
            f"Study {study.study_name!r} has {len(study.directions)} objectives; one is needed."
        )
    rows: list[dict[str, Any]] = []
    hps: dict[str, str] = {}
    for trial in study.get_trials(deepcopy=False):
        run = read_run(trial)
        if run.source is not None:
            continue
        hps |= {name: _transform(of) for name, of in trial.distributions.items() if name != RUNG}
        plain = {k: v for k, v in trial.user_attrs.items() if isinstance(v, int | float | str)}
        rows.append(
            {k: v for k, v in plain.items() if not k.startswith("transfer_bo:")}
            | dict(run.scale or {})
            | run.params
            | {loss: run.loss, outcome: str(run.outcome)}
        )
    table = pd.DataFrame(rows)
    table.attrs |= {"maximize": study.direction.name == "MAXIMIZE", "hps": hps}
    return table


def _transform(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return "categorical"
    return "log" if getattr(distribution, "log", False) else "linear"
