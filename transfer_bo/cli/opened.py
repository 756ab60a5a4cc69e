"""Where a command reads from: the study of a study file, a study made in Python, or a table of runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_bo.cli.common import STORAGE, silence_libraries
from transfer_bo.errors import StudyError, TransferError

if TYPE_CHECKING:
    import optuna

    from transfer_bo.study_file import StudyFile

__all__ = ["StudySource", "as_stored", "find_study", "find_study_or_runs", "load_named"]


TABLES = (".csv", ".parquet", ".pq")
"""Endings of tables of runs; a study file ends in `.toml`."""


@dataclass(frozen=True)
class StudySource:
    """A study to read: that of a study file, or one made in Python, by its storage and name."""

    file: StudyFile | None
    storage: str | None = None
    name: str | None = None

    def open(self) -> optuna.Study:
        """The study, to be read.

        Raises:
            TransferError: If it cannot be opened, or a `TransferSampler` with a ladder never worked on it.
        """
        if self.file is not None:
            from transfer_bo.store.open_study import open_study

            return open_study(self.file)

        from transfer_bo.attributes import SETTINGS_ATTR
        from transfer_bo.store.existing_study import open_existing_study

        study = open_existing_study(self.storage or "", self.name)
        if SETTINGS_ATTR not in study.user_attrs:
            raise StudyError(
                f"Study {study.study_name!r} holds no ladder: no TransferSampler with a ladder and a target "
                "has worked on it; give the storage as --runs and name axes and HPs."
            )
        return study


def find_study(path: Path | None, storage: str | None, name: str | None, example: str) -> StudySource:
    """The study that a command's options name; a study file may be given with the storage it is kept in.

    Args:
        path: The study file.
        storage: Address of the storage.
        name: Name of the study in the storage.
        example: What to type after `transfer-bo`, for the error.

    Raises:
        TransferError: If none is named.
    """
    if path is not None:
        return StudySource(load_named(path, storage, name))
    if storage is None:
        raise TransferError(f"Which study? Give a study file or --storage, as in: transfer-bo {example}")
    return StudySource(None, storage, name)


def find_study_or_runs(
    path: Path | None, storage: str | None, name: str | None, runs: str | None, example: str
) -> StudySource | None:
    """The study that a command's options name, None if they name a table of runs.

    Args:
        path: The study file.
        storage: Address of the storage; one from the environment is ignored beside a table of runs.
        name: Name of the study in the storage.
        runs: The table of runs.
        example: What to type after `transfer-bo`, for the error.

    Raises:
        TransferError: If no source is named, or a table of runs and a study.
    """
    if runs is None and path is not None and path.suffix.lower() in TABLES:
        raise TransferError(f"{path} is a table of runs, not a study file; did you mean --runs {path}?")
    if runs is None and (path is not None or storage is not None):
        return find_study(path, storage, name, example)
    if runs is not None and path is None and storage in (None, os.environ.get(STORAGE)):
        return None
    found = "none is given" if runs is None else "--runs and a study are given"
    raise TransferError(
        f"Give either a study file, --storage or --runs ({found}), as in: transfer-bo {example}"
    )


def load_named(path: Path, storage: str | None, name: str | None) -> StudyFile:
    """A study file; its storage is replaced by the one given, its name must be the one given.

    Raises:
        StorageError: If its storage can't be opened.
        StudyError: If it has another name.
        StudyFileError: If it cannot be read.
    """
    from transfer_bo.study_file import load_study_file

    study_file = load_study_file(path)
    if name is not None and name != study_file.name:
        raise StudyError(
            f"--study {name!r}: {path} is the study {study_file.name!r}; leave one of the two out."
        )
    return as_stored(study_file if storage is None else study_file.stored_in(storage))


def as_stored(study_file: StudyFile) -> StudyFile:
    """The study file with the rule that its stored trials were made with, if it names none.

    Raises:
        StorageError: If its storage can't be opened.
    """
    silence_libraries()
    from transfer_bo.store.open_study import with_stored_rule

    return with_stored_rule(study_file)
