"""Where a study is kept: one address for each kind of storage, looked at before anything is written.

    sqlite:///study.db                          one machine
    postgresql://user:password@host/database    many machines (extra "postgres")
    journal:///shared/study.log                 a file that is only appended to, on a shared file system
    grpc://host:13000                           Optuna's proxy in front of one of the first two (extra "grpc")

A password may be left out of the address: PostgreSQL's client reads ~/.pgpass and PGPASSWORD.
"""

from __future__ import annotations

import contextlib
import errno
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
from optuna.storages.journal import JournalFileBackend

from transfer_bo.errors import TransferError
from transfer_bo.store.retrying_storage import is_transient

__all__ = ["check_address", "connect_backend", "holds_something"]

BUSY_SECONDS = 60
"""How long a process waits for another one's write to an SQLite file before it gives up."""
CONNECT_SECONDS = 10
"""How long to wait for a server when it is first looked at."""
CREATE_ATTEMPTS = 10
"""Two processes that make the tables at the same moment get in each other's way once or twice."""


def check_address(url: str) -> str | None:
    """Find out, writing nothing, what is wrong with a storage's address.

    Returns:
        What is wrong and what to do, or None.
    """
    if url == "sqlite://" or ":memory:" in url:
        return "worker processes can't share memory; give a file."
    if url.startswith("sqlite:///"):
        return _check_sqlite(Path(url.removeprefix("sqlite:///")))
    if url.startswith("journal:///"):
        return _check_journal(Path(url.removeprefix("journal:///")))
    try:
        if url.startswith("grpc://"):
            _proxy(url).wait_server_ready(timeout=CONNECT_SECONDS)
        else:
            engine = sqlalchemy.create_engine(_with_driver(url))
            with engine.connect():
                pass
            engine.dispose()
    except TransferError as error:
        return str(error)
    except Exception as error:  # whatever the driver raises
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        return f"this storage can't be opened ({reason}); give an address such as sqlite:///study.db."
    return None


def connect_backend(url: str, *, create: bool) -> BaseStorage:
    """Optuna's storage at an address.

    Args:
        url: The address, already checked.
        create: Whether to make what is missing: tables, or the journal's file.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: if tables are missing and not to be made, or can't be made.
        TransferError: for an address that names no storage.
    """
    if url.startswith("grpc://"):
        return _proxy(url)
    if url.startswith("journal:///"):
        return optuna.storages.JournalStorage(_Journal(Path(url.removeprefix("journal:///"))))
    engine: dict[str, Any] = {"pool_pre_ping": True}  # a connection that died while a trial ran is replaced
    if url.startswith("sqlite"):
        engine = {"connect_args": {"timeout": BUSY_SECONDS}}
    for attempt in range(CREATE_ATTEMPTS):
        try:
            storage = optuna.storages.RDBStorage(
                _with_driver(url).replace("{", "{{").replace("}", "}}"),  # Optuna formats the address
                engine_kwargs=engine,
                skip_table_creation=not create,
            )
            return optuna.storages.get_storage(storage)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt == CREATE_ATTEMPTS - 1 or not (create or is_transient(error)):
                raise
            time.sleep(random.uniform(0.1, 0.3) * (1 + attempt))
    raise AssertionError


def _with_driver(url: str) -> str:
    """A PostgreSQL address names the driver that we ask for, psycopg 3, unless it names another."""
    for short in ("postgresql://", "postgres://"):
        if url.startswith(short):
            return "postgresql+psycopg://" + url.removeprefix(short)
    return url


def _proxy(url: str) -> optuna.storages.GrpcStorageProxy:
    host, _, port = url.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not host or not port.isdigit():
        raise TransferError("a proxy's address has a host and a port; write grpc://host:13000.")
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
    return _check_writable(file)


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
    return _check_writable(file)


def _check_writable(file: Path) -> str | None:
    return None if os.access(file, os.W_OK) else f"{file} is read-only; make it writable."


def _open_sqlite(file: Path) -> contextlib.closing[sqlite3.Connection]:
    # "rw" never creates a file, as "ro" does not, but can undo what a killed process left half written.
    return contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS))


def holds_something(url: str) -> bool:
    """Whether there is a storage to read at an address; connecting to a missing file would make it."""
    if url.startswith("sqlite:///"):
        return _is_complete_sqlite(Path(url.removeprefix("sqlite:///")))
    return not url.startswith("journal:///") or Path(url.removeprefix("journal:///")).exists()


def _is_complete_sqlite(file: Path) -> bool:
    """Whether Optuna has finished making this SQLite file; until then a reader would get in its way."""
    if not file.exists():
        return False
    with _open_sqlite(file) as connection:
        try:
            return connection.execute("select * from alembic_version").fetchone() is not None
        except sqlite3.OperationalError:
            return False


class _Journal(JournalFileBackend):
    """Optuna's journal, with a lock that the kernel takes back when its holder is killed.

    Optuna's own lock stays for 30 s more. A record that was cut short, by a full disk, is taken out before
    the next one is written: with more text behind it nobody could read the journal any more.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        super().__init__(str(file))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records, all or none of them."""
        try:
            import fcntl
        except ImportError:  # Windows
            super().append_logs(logs)
            return
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._file.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or its process is gone
            end = _end_of_last_record(file)
            file.truncate(end)
            file.seek(end)
            try:
                if file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise


def _end_of_last_record(file: Any) -> int:
    """Where the last complete line ends, in bytes."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        newline: int = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
