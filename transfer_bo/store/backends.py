"""Optuna's storage at an address, one kind of address for each kind of storage.

    sqlite:///study.db                          one machine
    postgresql://user:password@host/database    many machines (extra "postgres"); or postgres://
    journal:///shared/study.log                 a file that is only appended to, on a shared file system
    grpc://host:13000                           Optuna's proxy in front of one of the first two (extra "grpc")

Other addresses of SQLAlchemy's are passed on to Optuna. A password may be left out of an address:
PostgreSQL's client reads ~/.pgpass and PGPASSWORD.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage

from transfer_bo.addresses import describe_mistake, file_of
from transfer_bo.errors import StorageError
from transfer_bo.store.journal import LockedJournal
from transfer_bo.store.owner import Owner
from transfer_bo.store.retrying_storage import PATIENCE_SECONDS, RetryingStorage, is_transient

__all__ = ["check_address", "connect_backend", "holds_storage", "open_storage"]

BUSY_SECONDS = 60
"""How long a process waits for another's write to an SQLite file; `?timeout=` in an address overrides it."""

CONNECT_SECONDS = 10
"""How long to wait for a server when it is first contacted."""

CREATE_ATTEMPTS = 10
"""Two processes that create the tables at the same moment get in each other's way once or twice."""


def check_address(url: str, *, writable: bool = False) -> str | None:
    """Find out what is wrong with the address of a storage; nothing is written.

    Args:
        url: The address.
        writable: Whether the storage is to be written to.

    Returns:
        What is wrong and what to do, as the end of a sentence; None if the storage can be opened.
    """
    mistake = describe_mistake(url)
    if mistake is not None:
        return mistake

    file = file_of(url)
    if file is None:
        return _check_server(url)
    problem = _check_sqlite(file) if url.startswith("sqlite") else _check_journal(file)
    if problem is None and writable and file.exists() and not os.access(file, os.W_OK):
        return f"{file} is read-only; make it writable."
    return problem


def _check_server(url: str) -> str | None:
    extra = "grpc" if url.startswith("grpc://") else "postgres"

    try:
        if url.startswith("grpc://"):
            _connect_proxy(url).wait_server_ready(timeout=CONNECT_SECONDS)
        else:
            full = _with_driver(url)
            options = {"connect_timeout": CONNECT_SECONDS} if "+psycopg" in full.partition(":")[0] else {}
            engine = sqlalchemy.create_engine(full, connect_args=options)
            with engine.connect():
                pass
            engine.dispose()
    except StorageError as error:
        return str(error)
    except ImportError as error:
        known = url.startswith(("grpc://", "postgres"))
        what = f'pip install "transfer-bo[{extra}]"' if known else "install the driver of this data base"
        return f"a library is missing ({_first_line(error)}); {what}."
    except sqlalchemy.exc.NoSuchModuleError:
        return (
            f"{url.partition('://')[0]}:// is no kind of storage that is known; write sqlite:///FILE, "
            "journal:///FILE, postgresql://HOST/DATABASE or grpc://HOST:13000."
        )
    except Exception as error:  # whatever the driver raises
        reason = _first_line(_cause(error))
        return f"this storage can't be opened ({reason}); give an address such as sqlite:///study.db."
    return None


STORAGE_ERRORS = (
    sqlalchemy.exc.SQLAlchemyError,
    optuna.exceptions.StorageInternalError,
    RuntimeError,
    OSError,
)
"""What opening a storage raises: its tables are missing, or another version's, or the user lacks a right."""


def has_no_tables(error: BaseException) -> bool:
    """Whether a storage could not be opened because Optuna's tables are not there yet."""
    return any(words in str(_cause(error)) for words in ("no such table", "does not exist", "doesn't exist"))


def _is_race(error: BaseException) -> bool:
    """Whether another process was creating the tables at the same moment.

    Optuna writes down its version also where it is not to create tables.
    """
    return any(
        words in str(_cause(error)) for words in ("duplicate key", "already exists", "UNIQUE constraint")
    )


def cannot_be_used(error: BaseException) -> str:
    """Why a storage could not be opened and what to do, as the end of a sentence."""
    return f"this storage can't be used ({_first_line(_cause(error))}); give another one."


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "orig", None) or error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def open_storage(
    url: str, *, create: bool, owner: Owner | None = None, patience: float = PATIENCE_SECONDS
) -> RetryingStorage:
    """The storage at an address, whose calls wait until it answers.

    Args:
        url: The address, already checked.
        create: Whether to create what is missing: tables, or the journal's file.
        owner: The process whose name new trials get; None if the studies are only read.
        patience: Seconds to wait for an answer.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If tables are missing and not to be created, or can't be created.
        StorageError: If the address names no storage.
    """
    new_trial_attrs = dict if owner is None else owner.attributes
    return RetryingStorage(connect_backend(url, create=create), new_trial_attrs, patience=patience)


def connect_backend(url: str, *, create: bool) -> BaseStorage:
    """Optuna's storage at an address.

    Args:
        url: The address, already checked.
        create: Whether to create what is missing: tables, or the journal's file.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: If tables are missing and not to be created, or can't be created.
        StorageError: If the address names no storage.
    """
    if url.startswith("grpc://"):
        return _connect_proxy(url)
    file = file_of(url)
    if file is not None and url.startswith("journal"):
        return optuna.storages.JournalStorage(LockedJournal(file))

    options: dict[str, Any] = {"pool_pre_ping": True}  # a connection that died while a trial ran is replaced
    if url.startswith("sqlite"):
        has_timeout = "timeout" in sqlalchemy.make_url(url).query
        options = {} if has_timeout else {"connect_args": {"timeout": BUSY_SECONDS}}

    for attempt in range(CREATE_ATTEMPTS):
        try:
            storage = optuna.storages.RDBStorage(
                _with_driver(url).replace("{", "{{").replace("}", "}}"),  # Optuna formats the address
                engine_kwargs=options,
                skip_table_creation=not create,
            )
            return optuna.storages.get_storage(storage)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            is_worth_trying = create or is_transient(error) or _is_race(error)
            if attempt == CREATE_ATTEMPTS - 1 or not is_worth_trying:
                raise
            time.sleep(random.uniform(0.1, 0.3) * (1 + attempt))
    raise AssertionError


def _with_driver(url: str) -> str:
    """A PostgreSQL address with the driver of the extra "postgres", psycopg 3, unless it names another."""
    for short in ("postgresql://", "postgres://"):
        if url.startswith(short):
            return "postgresql+psycopg://" + url.removeprefix(short)
    return url


def _connect_proxy(url: str) -> optuna.storages.GrpcStorageProxy:
    host, _, port = url.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        raise StorageError("a proxy's address has a host and a port; write grpc://host:13000.")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.storages.GrpcStorageProxy(host=host, port=int(port))


def _check_sqlite(file: Path) -> str | None:
    if not file.exists():
        return None
    try:
        with _open_sqlite(file) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master")}
    except sqlite3.Error as error:
        return f"{file} can't be opened as an SQLite database ({error}); give another file."

    if tables and "studies" not in tables:
        return f"{file} is a database, but not Optuna's; give another file."
    return None


def _check_journal(file: Path) -> str | None:
    if not file.exists():
        return None
    try:
        with file.open("rb") as lines:
            first = lines.readline()
        if first and "op_code" not in json.loads(first):
            raise ValueError
    except (OSError, ValueError):
        return f"{file} is no journal of Optuna's; give another file."
    return None


def _open_sqlite(file: Path) -> contextlib.closing[sqlite3.Connection]:
    # As with "ro", no file is created; unlike "ro", "rw" can undo what a killed process left half written.
    url = f"{file.absolute().as_uri()}?mode=rw"
    return contextlib.closing(sqlite3.connect(url, uri=True, timeout=BUSY_SECONDS))


def holds_storage(url: str) -> bool:
    """Whether there is a storage to read at an address; connecting to a missing file would create it."""
    file = file_of(url)
    if file is None:
        return True
    return _is_complete_sqlite(file) if url.startswith("sqlite") else file.exists()


def _is_complete_sqlite(file: Path) -> bool:
    """Whether Optuna has finished creating an SQLite file; until then a reader would get in its way."""
    if not file.exists():
        return False
    with _open_sqlite(file) as connection:
        try:
            return connection.execute("select * from alembic_version").fetchone() is not None
        except sqlite3.OperationalError:
            return False
