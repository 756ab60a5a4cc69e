"""Open the Optuna study of a study file, and make sure that it is the same study as last time.

Everything is looked at before anything is written: `check_storage` finds out whether the storage can be
opened without creating it, and `open_study` compares the study file with what the study was started with.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from pydantic import ValidationError

from transfer_bo.attributes import DEFINITION_ATTR, HASH_ATTR, STUDY_FILE_ATTR
from transfer_bo.errors import TransferError
from transfer_bo.search.pruner import RungPruner
from transfer_bo.store.backends import check_address, connect_backend, holds_something
from transfer_bo.store.heartbeat import Owner
from transfer_bo.store.retrying_storage import PATIENCE_SECONDS, RetryingStorage
from transfer_bo.study_file import StudyFile

__all__ = ["check_storage", "open_storage", "open_study", "stored_study_file"]


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
    for scheme in ("sqlite:///", "journal:///"):
        file = Path(url.removeprefix(scheme))
        if url.startswith(scheme) and study_file.run.storage is not None and not file.parent.is_dir():
            raise study_file.says("run.storage", f"the folder {file.parent} does not exist; make it first.")
    wrong = check_address(url)
    if wrong is not None:
        raise study_file.says("run.storage", wrong)


def open_storage(
    url: str, *, create: bool, owner: Owner | None = None, patience: float = PATIENCE_SECONDS
) -> RetryingStorage:
    """The storage at an address (see `transfer_bo.store.backends`), patient and marking what starts here.

    Args:
        url: The address, checked.
        create: Whether to make what is missing.
        owner: Whose mark new trials get; none when the study is only read.
        patience: Seconds to wait for an answer.
    """
    birth = dict if owner is None else owner.mark
    return RetryingStorage(connect_backend(url, create=create), birth, patience=patience)


def open_study(
    study_file: StudyFile,
    *,
    definition: dict[str, Any] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    owner: Owner | None = None,
) -> optuna.Study:
    """The Optuna study of a study file.

    Args:
        study_file: The checked study file.
        definition: What defines the study now; given, the study is created if there is none, and refused if
            it was started with another definition. Without it an existing study is opened as it is.
        sampler: Proposes trials; without one the study is only read.
        owner: Whose mark new trials get.

    Raises:
        TransferError: if the storage can't be opened, there is no study to read, or it is another study.
    """
    check_storage(study_file)
    sampler = sampler or optuna.samplers.RandomSampler()
    pruner = RungPruner()
    url = study_file.storage_url
    if definition is None and not holds_something(url):
        raise _nothing_yet(study_file)
    study_file.out.mkdir(parents=True, exist_ok=True)
    try:
        storage = open_storage(url, create=definition is not None, owner=owner)
        study = optuna.load_study(study_name=study_file.name, storage=storage, sampler=sampler, pruner=pruner)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
        if definition is not None:
            raise
        raise _nothing_yet(study_file) from None  # the tables are missing
    except KeyError:
        if definition is None:
            raise _nothing_yet(study_file) from None
        study = optuna.create_study(
            study_name=study_file.name, storage=storage, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    attrs = study.user_attrs
    now = definition or study_file.definition()
    if attrs.get(HASH_ATTR) != _hash(now):
        _compare(study_file, attrs.get(DEFINITION_ATTR, {}), now)
        if definition is not None:
            study.set_user_attr(DEFINITION_ATTR, definition)
            study.set_user_attr(HASH_ATTR, _hash(definition))
    if definition is not None and attrs.get(STUDY_FILE_ATTR) != (text := study_file.shared()):
        study.set_user_attr(STUDY_FILE_ATTR, text)
    return study


def _hash(definition: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]


def stored_study_file(url: str, name: str) -> StudyFile:
    """The study file that a study was started with, for a worker that has no copy.

    Relative paths in it are relative to the current folder. One that runs a program, or writes outside of
    that folder, is refused: who may write to the storage must not decide what is run on the machines that
    join, nor where files are made, replaced and removed.

    Raises:
        TransferError: if the storage can't be opened, holds no such study, or its study file is refused.
    """
    wrong = check_address(url)
    if wrong is not None:
        raise TransferError(f"--storage {url!r}: {wrong}")
    try:
        if not holds_something(url):
            raise KeyError(name)
        storage = open_storage(url, create=False)
        study = optuna.load_study(study_name=name, storage=storage)
        study_file = StudyFile.model_validate_json(study.user_attrs[STUDY_FILE_ATTR]).stored_in(url)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise TransferError(
            f"--study {name!r}: the study file kept with it can't be read ({key}: "
            f"{first['msg']}); it may be another version's: join with the study file."
        ) from None
    except (KeyError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
        raise TransferError(
            f"--study {name!r}: {url!r} holds no study of that name that a study file has started; "
            "start it with: transfer-bo run STUDY.toml"
        ) from None
    if study_file.command is not None:
        run = study_file.command.run
        shown = run if isinstance(run, str) else " ".join(run)
        raise TransferError(
            f"--study {name!r}: its trials run a program, {shown!r}, "
            "and a program is not run on the word of a storage; join with the study file: "
            "transfer-bo worker STUDY.toml"
        )
    for key in ("out", "checkpoints"):
        folder = Path(getattr(study_file.run, key) or "")
        if folder.anchor or ".." in folder.parts:
            raise TransferError(
                f"--study {name!r}: its run.{key} is {str(folder)!r}, not below the current folder, "
                "and files are not written elsewhere on the word of a storage; join with the study file: "
                "transfer-bo worker STUDY.toml"
            )
    return study_file


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
