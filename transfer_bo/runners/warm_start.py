"""The source studies of a study file: read before anything is written, stored before the first trial starts.

Only `run` does it, under the study's lock; workers that join find the runs in the study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from transfer_bo.errors import RunTableError, StudyError, TransferError
from transfer_bo.study_file import SourceStudySection, StudyFile

if TYPE_CHECKING:
    from transfer_bo.run_table.warm_start import SourceRuns
    from transfer_bo.runners.task import Task

__all__ = ["read_missing_source_runs", "refuse_missing_source_runs"]

MAX_NAMES = 8
"""So many names of HPs are listed in an error."""


def read_missing_source_runs(task: Task, study: optuna.Study | None) -> list[SourceRuns]:
    """Read the runs of source studies that are not in the study yet; nothing is written.

    Args:
        task: The task of the study file.
        study: Its study; None if there is none yet.

    Raises:
        TransferError: If they can't be read; it names file and key.
        RunTableError: If they have no HP that is searched.
    """
    missing = _missing(task.file, study)
    if not missing:
        return []
    from transfer_bo.run_table.warm_start import read_source_runs  # takes a second to import

    found = []
    for source in missing:
        key = f"{task.file.path}: past[{task.file.past.index(source)}]"
        try:
            runs = read_source_runs(
                source.location(task.file.path.parent),
                scales=[*task.ladder, task.file.target],
                searched=list(task.space.hps),
                name=source.label,
                axes=source.axes,
                hps=source.hps,
                loss=source.loss,
                scale=source.scale,
                study=source.study,
            )
        except TransferError as error:
            raise type(error)(f"{key}: {error}") from None

        hps = {hp for run in runs.runs for hp in run.params}
        if not hps & set(task.space.hps):
            raise RunTableError(
                f"{key}: its HPs are {', '.join(sorted(hps)[:MAX_NAMES])}, none of which is in [space]; "
                "rename its columns."
            )
        found.append(runs)
    return found


def refuse_missing_source_runs(study_file: StudyFile, study: optuna.Study | None) -> None:
    """Keep a worker from a study in which the runs of a source study are missing.

    Args:
        study_file: The checked study file.
        study: Its study; None if there is none yet.

    Raises:
        StudyError: Naming the source study.
    """
    for source in _missing(study_file, study):
        raise StudyError(
            f"{study_file.path}: past: the runs of {source.label!r} are not in the study yet; put them there "
            f"with: {study_file.command_line('run')}"
        )


def _missing(study_file: StudyFile, study: optuna.Study | None) -> list[SourceStudySection]:
    if not study_file.past or study is None:
        return study_file.past
    from transfer_bo.run_table.warm_start import is_added

    return [source for source in study_file.past if not is_added(study, source.label)]
