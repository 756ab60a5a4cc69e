"""Open the Optuna study of a study file, and make sure that it is the same study as last time.

Everything is looked at before anything is written: `check_storage` finds out whether the database can be
opened without creating it, and `open_study` compares the study file with what the study was started with.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from transfer_bo.errors import TransferError
from transfer_bo.history import OUTCOME_ATTR, PURPOSE_ATTR, Outcome, read_run
from transfer_bo.runners.pruner import RungPruner
from transfer_bo.study_file import StudyFile

__all__ = [
    "DEFINITION_ATTR",
    "WORKER_ATTR",
    "check_storage",
    "open_study",
    "reap",
    "requeue",
    "worker_identity",
]

DEFINITION_ATTR = "transfer_bo:definition"
"""Study attribute: `StudyFile.definition()` and the text's fingerprint when the first trial was stored."""
WORKER_ATTR = "transfer_bo:worker"
"""Trial attribute: {"host", "pid"} of the process it runs in."""

BUSY_SECONDS = 60
"""How long a process waits for another one's write to an SQLite file before it gives up."""
HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 180
"""A trial of a machine that fell silent for the grace period is marked FAIL by the others."""


def _nearest_folder(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def check_storage(study_file: StudyFile) -> None:
    """Find out, writing nothing, whether the results folder and the storage can be opened.

    Raises:
        TransferError: if not, saying which key of the study file to change.
    """
    folder = _nearest_folder(study_file.out)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise study_file.says("run.out", f"{folder} is no folder that can be written to; give another one.")
    url = study_file.storage_url
    if url == "sqlite://" or ":memory:" in url:
        raise study_file.says("run.storage", "worker processes can't share memory; give a file.")
    if url.startswith("sqlite:///"):
        _check_sqlite(study_file, Path(url.removeprefix("sqlite:///")))
        return
    try:
        sqlalchemy.create_engine(url).connect().close()
    except Exception as error:  # whatever the driver raises
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        # The address may hold a password, so it is not shown as it stands.
        shown = _without_password(url)
        raise TransferError(
            f"{study_file.path}: run.storage = {shown!r}: this storage can't be opened ({reason}); "
            "give an address such as sqlite:///study.db."
        ) from None


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def _check_sqlite(study_file: StudyFile, file: Path) -> None:
    if not file.exists():
        if study_file.run.storage is not None and not file.parent.is_dir():
            raise study_file.says("run.storage", f"the folder {file.parent} does not exist; make it first.")
        return
    try:
        with _open_sqlite(file) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master")}
    except sqlite3.Error as error:
        raise study_file.says(
            "run.storage", f"{file} can't be opened as an SQLite database ({error}); give another file."
        ) from None
    if tables and "studies" not in tables:
        raise study_file.says("run.storage", f"{file} is a database, but not Optuna's; give another file.")
    if not os.access(file, os.W_OK):
        raise study_file.says("run.storage", f"{file} is read-only; make it writable.")


def _open_sqlite(file: Path) -> contextlib.closing[sqlite3.Connection]:
    # "rw" never creates a file, as "ro" does not, but can undo what a killed process left half written.
    return contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS))


def _is_complete(file: Path) -> bool:
    """Whether Optuna has finished making this SQLite file; until then a reader would get in its way."""
    if not file.exists():
        return False
    with _open_sqlite(file) as connection:
        try:
            return connection.execute("select * from alembic_version").fetchone() is not None
        except sqlite3.OperationalError:
            return False


def _connect(url: str, *, create: bool) -> optuna.storages.RDBStorage:
    engine: dict[str, Any] = {}
    if url.startswith("sqlite"):
        engine = {"connect_args": {"timeout": BUSY_SECONDS}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat is declared experimental
        return optuna.storages.RDBStorage(
            url,
            engine_kwargs=engine,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            skip_table_creation=not create,
        )


def open_study(
    study_file: StudyFile,
    *,
    definition: dict[str, Any] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
) -> optuna.Study:
    """The Optuna study of a study file.

    Args:
        study_file: The checked study file.
        definition: What defines the study now; given, the study is created if there is none, and refused if
            it was started with another definition. Without it an existing study is opened as it is.
        sampler: Proposes trials; without one the study is only read.

    Raises:
        TransferError: if the storage can't be opened, there is no study to read, or it is another study.
    """
    check_storage(study_file)
    sampler = sampler or optuna.samplers.RandomSampler()
    pruner = RungPruner()
    if study_file.storage_url.startswith("sqlite:///"):
        file = Path(study_file.storage_url.removeprefix("sqlite:///"))
        if definition is None and not _is_complete(file):
            raise _nothing_yet(study_file)
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        storage = _connect(study_file.storage_url, create=definition is not None)
        study = optuna.load_study(study_name=study_file.name, storage=storage, sampler=sampler, pruner=pruner)
    except (sqlalchemy.exc.OperationalError, optuna.exceptions.StorageInternalError):
        if definition is not None:
            raise
        raise _nothing_yet(study_file) from None  # the tables are missing
    except KeyError:
        if definition is None:
            raise _nothing_yet(study_file) from None
        study = optuna.create_study(
            study_name=study_file.name, storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    _compare(study_file, study.user_attrs.get(DEFINITION_ATTR, {}), definition or study_file.definition())
    if definition is not None:
        study.set_user_attr(DEFINITION_ATTR, definition)
    return study


def _nothing_yet(study_file: StudyFile) -> TransferError:
    return TransferError(
        f"{study_file.path}: nothing has run under the name {study_file.name!r} yet; "
        f"start with: transfer-bo run {study_file.path}"
    )


def _compare(study_file: StudyFile, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a study file that is not the study's own.

    Raises:
        TransferError: naming the first key that changed, what it was and what it is.
    """
    for key, was in stored.items():
        value = now.get(key, was)  # not known without reading the text: its fingerprint
        same = value[: len(was)] == was if key == "ladder.rungs" else value == was
        if not same:
            raise TransferError(
                f"{study_file.path}: {key} = {value!r}, but the stored trials of study "
                f"{study_file.name!r} were run with {was!r}; set it back, or give the study another name."
            )


def worker_identity() -> dict[str, Any]:
    """Host and process id, as noted with each trial."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def reap(study: optuna.Study, *, pid: int | None = None) -> int:
    """Mark the running trials of dead workers of this machine as preempted.

    Args:
        study: The study.
        pid: The dead worker; None for all workers of this machine, when it is known that none is alive.

    Returns:
        How many trials were marked.
    """
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker: dict[str, Any] | None = trial.user_attrs.get(WORKER_ATTR)
        if worker is None:  # died between asking and its first line, or is just there
            assert trial.datetime_start is not None
            age = datetime.datetime.now() - trial.datetime_start
            is_dead = pid is None and age > datetime.timedelta(seconds=GRACE_SECONDS)
        else:
            is_dead = worker["host"] == socket.gethostname() and pid in (None, worker["pid"])
        if not is_dead:
            continue
        try:
            # The class takes the internal id only; the study's public methods can't set trial attributes.
            optuna.Trial(study, trial._trial_id).set_user_attr(OUTCOME_ATTR, str(Outcome.PREEMPTED))
            study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            continue  # another process marked it first
        count += 1
    return count


def requeue(study: optuna.Study) -> None:
    """Queue planned trials of the search (with fixed HPs) again whose only runs were preempted."""
    planned = [
        (trial.system_attrs["fixed_params"], read_run(trial).outcome)
        for trial in study.get_trials(deepcopy=False)
        if "fixed_params" in trial.system_attrs and PURPOSE_ATTR not in trial.user_attrs
    ]
    settled = [params for params, outcome in planned if outcome is not Outcome.PREEMPTED]
    for params, _ in planned:
        if params not in settled:
            study.enqueue_trial(params)
            settled.append(params)
