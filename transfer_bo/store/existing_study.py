"""Opening a study that somebody else has made, by the address of its storage and its name, to read it."""

from __future__ import annotations

import optuna
import sqlalchemy.exc

from transfer_bo.errors import StorageError, StudyError
from transfer_bo.store.backends import check_address, holds_something
from transfer_bo.store.open_study import open_storage

__all__ = ["open_existing_study"]

MOST_NAMES = 10
"""So many names of studies are listed in an error."""


def open_existing_study(url: str, name: str | None = None) -> optuna.Study:
    """The study in a storage; nothing is written.

    Args:
        url: Any address that a study file takes (see `transfer_bo.store.backends`).
        name: Name of the study; None where the storage holds just one.

    Raises:
        StorageError: If the storage cannot be opened.
        StudyError: If it holds no such study, or several and no name is given.
    """
    wrong = check_address(url)
    if wrong is not None:
        raise StorageError(f"Storage {url!r}: {wrong}")
    names: list[str] = []
    storage = None
    try:
        if holds_something(url):
            storage = open_storage(url, create=False)
            names = sorted(study.study_name for study in storage.get_all_studies())
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
        names = []  # there are no tables yet

    listed = ", ".join(map(repr, names[:MOST_NAMES])) + (", ..." if len(names) > MOST_NAMES else "")
    if storage is None or not names:
        raise StudyError(f"Storage {url!r} holds no study; check the address.")
    if name is None and len(names) > 1:
        raise StudyError(f"Storage {url!r} holds {len(names)} studies; name one of {listed}.")
    if name is not None and name not in names:
        raise StudyError(f"Storage {url!r} holds no study {name!r}; it holds {listed}.")
    return optuna.load_study(study_name=name or names[0], storage=storage)
