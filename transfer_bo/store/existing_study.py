"""A study that a storage holds, opened by address and name: to read it, or to join without a study file."""

from __future__ import annotations

from pathlib import Path

import optuna
from pydantic import ValidationError

from transfer_bo.addresses import file_of
from transfer_bo.attributes import STUDY_FILE_ATTR
from transfer_bo.errors import StorageError, StudyError
from transfer_bo.store.backends import (
    STORAGE_ERRORS,
    cannot_be_used,
    check_address,
    has_no_tables,
    holds_storage,
    open_storage,
)
from transfer_bo.study_file import StudyFile

__all__ = ["open_existing_study", "stored_study_file"]

MAX_NAMES = 10
"""So many names of studies are listed in an error."""


def open_existing_study(url: str, name: str | None = None) -> optuna.Study:
    """Open a study by the address of its storage, to read it; nothing is written.

    Args:
        url: Any address that a study file takes (see `transfer_bo.store.backends`).
        name: Name of the study; None if the storage holds just one.

    Raises:
        StorageError: If the storage can't be opened.
        StudyError: If it holds no such study, or several and no name is given.
    """
    problem = check_address(url)
    if problem is not None:
        raise StorageError(f"Storage {url!r}: {problem}")
    file = file_of(url)
    if file is not None and not file.is_file():
        raise StorageError(f"Storage {url!r}: {_no_file(url, file)}")

    try:
        storage = open_storage(url, create=False) if holds_storage(url) else None
        names = [] if storage is None else sorted(study.study_name for study in storage.get_all_studies())
    except STORAGE_ERRORS as error:
        if not has_no_tables(error):
            raise StorageError(f"Storage {url!r}: {cannot_be_used(error)}") from error
        storage, names = None, []

    listed = ", ".join(map(repr, names[:MAX_NAMES])) + (", ..." if len(names) > MAX_NAMES else "")
    if storage is None or not names:
        raise StudyError(f"Storage {url!r} holds no study; check the address.")
    if name is None and len(names) > 1:
        raise StudyError(f"Storage {url!r} holds {len(names)} studies; name one of {listed}.")
    if name is not None and name not in names:
        raise StudyError(f"Storage {url!r} holds no study {name!r}; it holds {listed}.")
    return optuna.load_study(study_name=name or names[0], storage=storage)


def _no_file(url: str, file: Path) -> str:
    absolute = Path("/") / file
    if not file.is_absolute() and absolute.is_file():
        scheme = url.partition("://")[0]
        return f"there is no file {file} here; for {absolute} write {scheme}:///{absolute}."
    return f"there is no file {file}; give the storage that holds the study."


def stored_study_file(url: str, name: str) -> StudyFile:
    """Read the study file that a study was started with, for a worker that has no copy.

    Relative paths in it are relative to the current folder. One that runs a program, builds a model of its
    own, or writes outside of that folder, is refused: write access to the storage must not decide what is
    run on the machines that join, nor where files are created, replaced and removed.

    Args:
        url: Address of the storage.
        name: Name of the study.

    Raises:
        StorageError: If the storage can't be opened.
        StudyError: If it holds no such study, or the study file is refused.
    """
    problem = check_address(url)
    if problem is not None:
        raise StorageError(f"--storage {url!r}: {problem}")

    try:
        if not holds_storage(url):
            raise KeyError(name)
        study = optuna.load_study(study_name=name, storage=open_storage(url, create=False))
        study_file = StudyFile.model_validate_json(study.user_attrs[STUDY_FILE_ATTR]).stored_in(url)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise StudyError(
            f"--study {name!r}: the study file kept with it can't be read ({key}: "
            f"{first['msg']}); it may be another version's: join with the study file."
        ) from None
    except (KeyError, *STORAGE_ERRORS) as error:
        if not isinstance(error, KeyError) and not has_no_tables(error):
            raise StorageError(f"--storage {url!r}: {cannot_be_used(error)}") from error
        raise StudyError(
            f"--study {name!r}: {url!r} holds no study of that name that a study file has started; "
            "start it with: transfer-bo run STUDY.toml"
        ) from None

    _refuse_unsafe(study_file, name)
    return study_file


def _refuse_unsafe(study_file: StudyFile, name: str) -> None:
    """Refuse a stored study file that decides what is run, or writes elsewhere.

    Raises:
        StudyError: Naming the program, or the folder.
    """
    if study_file.command is not None:
        run = study_file.command.run
        shown = run if isinstance(run, str) else " ".join(run)
        raise StudyError(
            f"--study {name!r}: its trials run a program, {shown!r}, and a program is not run because a "
            "storage names it; join with the study file: transfer-bo worker STUDY.toml"
        )

    if study_file.model.build is not None:
        raise StudyError(
            f"--study {name!r}: its model is built by {study_file.model.build!r}, and code is not run "
            "because a storage names it; join with the study file: transfer-bo worker STUDY.toml"
        )

    for key in ("out", "checkpoints"):
        folder = Path(getattr(study_file.run, key) or "")
        if folder.anchor or ".." in folder.parts:
            raise StudyError(
                f"--study {name!r}: its run.{key} is {str(folder)!r}, not below the current folder, and "
                "files are not written elsewhere because a storage says so; join with the study file: "
                "transfer-bo worker STUDY.toml"
            )
