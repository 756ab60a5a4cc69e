"""The past studies of a study file: read before anything is written, stored before the first trial starts.

Only `run` does it, under the study's lock; workers that join find the runs there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfer_bo.errors import TransferError
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import Past, StudyFile

if TYPE_CHECKING:
    from transfer_bo.run_table.warm_start import SourceRuns
    from transfer_bo.runners.task import Task

__all__ = ["read_new_past", "refuse_missing_past"]


def read_new_past(task: Task) -> list[SourceRuns]:
    """The runs of past studies that are not in the study yet; nothing is written.

    Raises:
        TransferError: naming file and key, if they can't be read or speak of no HP that is searched.
    """
    missing = _missing(task.file)
    if not missing:
        return []
    from transfer_bo.run_table.warm_start import read_source_runs  # takes a second to import

    found = []
    for past in missing:
        key = f"{task.file.path}: past[{task.file.past.index(past)}]"
        try:
            runs = read_source_runs(
                past.place(task.file.path.parent),
                scales=[*task.ladder, task.file.target],
                name=past.label,
                axes=past.axes,
                hps=past.hps,
                loss=past.loss,
                scale=past.scale,
                study=past.study,
            )
        except TransferError as error:
            raise TransferError(f"{key}: {error}") from None
        told = {hp for run in runs.runs for hp in run.params}
        if not told & set(task.space.hps):
            raise TransferError(
                f"{key}: its HPs are {', '.join(sorted(told)[:8])}, none of which is in [space]; "
                "rename its columns."
            )
        found.append(runs)
    return found


def refuse_missing_past(study_file: StudyFile) -> None:
    """Keep a worker from a study whose past runs are not in it yet.

    Raises:
        TransferError: naming the past study.
    """
    for past in _missing(study_file):
        raise TransferError(
            f"{study_file.path}: past: the runs of {past.label!r} are not in the study yet; put them there "
            f"with: transfer-bo run {study_file.path}"
        )


def _missing(study_file: StudyFile) -> list[Past]:
    if not study_file.past:
        return []
    try:
        study = open_study(study_file)
    except TransferError:  # there is none yet; what else may be wrong is said when it is made
        return study_file.past
    from transfer_bo.run_table.warm_start import is_added

    return [past for past in study_file.past if not is_added(study, past.label)]
