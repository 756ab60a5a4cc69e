"""The Optuna study of a study file, refused if it was started with another study file.

Everything is checked before anything is written: `check_storage` finds out whether the storage can be opened
without creating it, and a study is compared with what it was started with.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import optuna

from transfer_bo.addresses import file_of
from transfer_bo.attributes import DEFINITION_ATTR, HASH_ATTR, STUDY_FILE_ATTR
from transfer_bo.errors import StorageError, StudyError
from transfer_bo.store.backends import (
    STORAGE_ERRORS,
    cannot_be_used,
    check_address,
    has_no_tables,
    holds_storage,
    open_storage,
)
from transfer_bo.store.owner import Owner
from transfer_bo.study_file import StudyFile
from transfer_bo.study_file.schema import (
    CommandSection,
    ModelSection,
    ParametrizationSection,
    TrainingSection,
)

__all__ = ["check_storage", "create_study", "find_study", "keep_definition", "open_study", "with_stored_rule"]


def check_storage(study_file: StudyFile) -> None:
    """Find out, writing nothing, whether the results folder and the storage can be written to.

    Raises:
        StudyFileError: If the results folder can't be written to.
        StorageError: If the storage can't be opened, or not for writing.
    """
    folder = _nearest_folder(study_file.out)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise study_file.error("run.out", f"{folder} is no folder that can be written to; give another one.")
    _check_address(study_file, writable=True)


def _check_address(study_file: StudyFile, *, writable: bool) -> None:
    url = study_file.storage_url
    file = file_of(url)
    if study_file.run.storage is not None and file is not None and not file.parent.is_dir():
        missing = f"the folder {file.parent} does not exist; make it first."
        raise study_file.error("run.storage", missing, StorageError)

    problem = check_address(url, writable=writable)
    if problem is not None:
        raise study_file.error("run.storage", problem, StorageError)


def _nearest_folder(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def find_study(
    study_file: StudyFile,
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    owner: Owner | None = None,
) -> optuna.Study | None:
    """Open the Optuna study of a study file if there is one; nothing is written.

    Args:
        study_file: The checked study file.
        sampler: Proposes trials; without one the study can only be read.
        pruner: Stops trials; without one none is stopped.
        owner: The process whose name new trials get; without one the study can only be read.

    Returns:
        The study; None if nothing has run under its name yet.

    Raises:
        StorageError: If the storage can't be opened.
        StudyError: If the study was started with another study file.
    """
    study = _load(study_file, sampler, pruner, owner)
    if study is not None:
        _compare(study_file, study, study_file.definition())
    return study


def _load(
    study_file: StudyFile,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    owner: Owner | None = None,
) -> optuna.Study | None:
    """The study under the name of a study file, whatever it was started with; None if there is none."""
    _check_address(study_file, writable=False)
    if not holds_storage(study_file.storage_url):
        return None

    try:
        storage = open_storage(study_file.storage_url, create=False, owner=owner)
        return optuna.load_study(
            study_name=study_file.name,
            storage=storage,
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=pruner or optuna.pruners.NopPruner(),
        )
    except KeyError:
        return None  # no such study
    except STORAGE_ERRORS as error:
        if has_no_tables(error):
            return None
        raise study_file.error("run.storage", cannot_be_used(error), StorageError) from error


def with_stored_rule(study_file: StudyFile) -> StudyFile:
    """The study file with the rule that its stored trials were made with, if it names none.

    The default may be another one in the version that made them.

    Raises:
        StorageError: If the storage can't be opened.
    """
    section = study_file.parametrization
    if "rule" in section.model_fields_set:
        return study_file

    study = _load(study_file)
    stored = {} if study is None else study.user_attrs.get(DEFINITION_ATTR, {})
    rule = stored.get("parametrization.rule", section.rule)
    return study_file.model_copy(update={"parametrization": section.model_copy(update={"rule": rule})})


def open_study(
    study_file: StudyFile,
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    owner: Owner | None = None,
) -> optuna.Study:
    """Open the Optuna study of a study file, which must exist; nothing is written.

    Args:
        study_file: The checked study file.
        sampler: Proposes trials; without one the study can only be read.
        pruner: Stops trials; without one none is stopped.
        owner: The process whose name new trials get; without one the study can only be read.

    Raises:
        StorageError: If the storage can't be opened.
        StudyError: If nothing has run yet, or the study was started with another study file.
    """
    study = find_study(study_file, sampler=sampler, pruner=pruner, owner=owner)
    if study is None:
        raise StudyError(
            f"{study_file.path}: nothing has run under the name {study_file.name!r} yet; "
            f"start with: {study_file.command_line('run')}"
        )
    return study


def create_study(
    study_file: StudyFile,
    definition: dict[str, Any],
    *,
    sampler: optuna.samplers.BaseSampler | None = None,
    owner: Owner | None = None,
) -> optuna.Study:
    """Open the Optuna study of a study file, and create it if there is none.

    Args:
        study_file: The checked study file.
        definition: What identifies the study: `StudyFile.definition()`, and what only its task knows.
        sampler: Proposes trials; without one the study can only be read.
        owner: The process whose name new trials get; without one the study can only be read.

    Raises:
        StudyFileError: If the results folder can't be written to.
        StorageError: If the storage can't be opened, or its tables can't be created.
        StudyError: If the study was started with another definition.
    """
    check_storage(study_file)
    study_file.out.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            study_name=study_file.name,
            storage=open_storage(study_file.storage_url, create=True, owner=owner),
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
    except STORAGE_ERRORS as error:
        raise study_file.error("run.storage", cannot_be_used(error), StorageError) from error
    keep_definition(study_file, study, definition)
    return study


def keep_definition(study_file: StudyFile, study: optuna.Study, definition: dict[str, Any]) -> None:
    """Store with a study what identifies it, and the study file, unless it was started with another one.

    Args:
        study_file: The checked study file.
        study: The study, opened.
        definition: What identifies the study: `StudyFile.definition()`, and what only its task knows.

    Raises:
        StudyError: If the study was started with another definition; nothing is written then.
    """
    attrs = study.user_attrs
    if attrs.get(HASH_ATTR) != _hash(definition):
        _compare(study_file, study, definition)
        study.set_user_attr(DEFINITION_ATTR, definition)
        study.set_user_attr(HASH_ATTR, _hash(definition))
    if attrs.get(STUDY_FILE_ATTR) != (text := study_file.without_storage()):
        study.set_user_attr(STUDY_FILE_ATTR, text)


def _hash(definition: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]


def _without_secrets(key: str, value: Any) -> Any:
    """A value of a definition without passwords, which earlier versions kept with the study."""
    if key == "command.env":
        return CommandSection(run=[], env=value).without_secrets().env
    if key == "command.run":
        return CommandSection(run=value).without_secrets().run
    return value


def _compare(study_file: StudyFile, study: optuna.Study, definition: dict[str, Any]) -> None:
    """Refuse a study file that is not the study's own.

    Raises:
        StudyError: Naming the first key that changed, its value in the study and its value now.
    """
    kept_definition = study.user_attrs.get(DEFINITION_ATTR, {})
    if kept_definition:  # a study without these keys was made when there was no choice
        kept_definition = {
            **{f"training.{key}": value for key, value in TrainingSection().definition().items()},
            "adapter.method": None,
            **{f"model.{key}": value for key, value in ModelSection().model_dump().items()},
            "parametrization.optimizer": ParametrizationSection().optimizer,
            **kept_definition,
        }
    for key, kept in kept_definition.items():
        stored = _without_secrets(key, kept)
        value = definition.get(key, stored)  # the text's fingerprint is not known without reading the text
        same = value[: len(stored)] == stored if key == "ladder.rungs" else value == stored
        if not same:
            raise StudyError(
                f"{study_file.path}: {key} = {value!r}, but the stored trials of study "
                f"{study_file.name!r} were run with {stored!r}; set it back, or give the study another name."
            )
