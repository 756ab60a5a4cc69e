"""A storage whose calls are repeated until the database answers, without doing anything twice.

Optuna retries the creation of a trial only. Here every call is repeated until the database answers or
the patience ends. A call whose answer was lost may have been carried out: those that are not harmless to
repeat (a new trial, the end of a trial) are looked up before they are repeated. A trial is created with the
name of the process that asked for it, so that there is no moment at which a running trial belongs to nobody.
"""

from __future__ import annotations

import copy
import logging
import random
import time
import uuid
from collections.abc import Callable, Container, Sequence
from typing import Any

import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from transfer_bo.attributes import TOKEN_ATTR
from transfer_bo.errors import StorageError
from transfer_bo.secrets import hide_passwords

__all__ = ["PATIENCE_SECONDS", "RetryingStorage", "is_transient"]

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
"""How long a call waits for a storage that does not answer."""

FIRST_WAIT = 0.05
"""Seconds between the first two attempts; each wait is multiplied by a random number in [.5, 1]."""

LONGEST_WAIT = 5.0
"""Seconds to which the waits grow, doubling."""

_TRANSIENT_SQL = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.TimeoutError,
    sqlalchemy.exc.PendingRollbackError,
)
"""Errors of SQLAlchemy's behind which the database is away, busy or restarting."""

_PERMANENT_WORDS = ("no such table", "no such column", "password authentication failed", "does not exist")
"""Parts of the messages of such errors that stay whatever the database does."""

_TRANSIENT_GRPC = {
    "UNAVAILABLE",
    "UNKNOWN",  # the proxy lost its own database
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "ABORTED",
    "RESOURCE_EXHAUSTED",
    "CANCELLED",
}
"""Status codes of gRPC behind which the proxy, or its database, is away."""


def is_transient(error: BaseException) -> bool:
    """Whether the storage may answer later: its server is away, busy, restarting, or its disk is full."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, _TRANSIENT_SQL) or getattr(error, "connection_invalidated", False):
        return not any(word in str(error) for word in _PERMANENT_WORDS)
    if type(error).__module__.partition(".")[0] == "grpc" and hasattr(error, "code"):
        return error.code().name in _TRANSIENT_GRPC
    return isinstance(error, OSError) and not isinstance(error, PermissionError)


def _delegated(name: str) -> Any:
    def method(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self._until_answered(getattr(self._backend, name), *args, **kwargs)

    method.__name__ = name
    return method


class RetryingStorage(BaseStorage):
    """Another storage, called until it answers.

    It offers no heartbeat of Optuna's even if the other one does: see `transfer_bo.store.heartbeat`.

    Args:
        backend: The storage that keeps the study.
        new_trial_attrs: Returns the user attributes of each trial that is created as running.
        patience: Seconds to wait for an answer.
    """

    def __init__(
        self,
        backend: BaseStorage,
        new_trial_attrs: Callable[[], dict[str, Any]] = dict,
        *,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._backend = backend
        self._new_trial_attrs = new_trial_attrs
        self._patience = patience

    # Harmless to repeat: they read, or write what is stored already.
    delete_study = _delegated("delete_study")
    create_new_study = _delegated("create_new_study")  # a repeated one finds the name taken
    set_study_user_attr = _delegated("set_study_user_attr")
    set_study_system_attr = _delegated("set_study_system_attr")
    get_study_id_from_name = _delegated("get_study_id_from_name")
    get_study_name_from_id = _delegated("get_study_name_from_id")
    get_study_directions = _delegated("get_study_directions")
    get_study_user_attrs = _delegated("get_study_user_attrs")
    get_study_system_attrs = _delegated("get_study_system_attrs")
    get_all_studies = _delegated("get_all_studies")
    set_trial_param = _delegated("set_trial_param")
    get_trial_id_from_study_id_trial_number = _delegated("get_trial_id_from_study_id_trial_number")
    set_trial_intermediate_value = _delegated("set_trial_intermediate_value")
    set_trial_user_attr = _delegated("set_trial_user_attr")
    set_trial_system_attr = _delegated("set_trial_system_attr")
    get_trial = _delegated("get_trial")
    get_best_trial = _delegated("get_best_trial")

    def remove_session(self) -> None:
        """Close this thread's connection."""
        self._backend.remove_session()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials of a study, as in Optuna; requeued trials are always among the waiting ones.

        Asked for exactly `(WAITING,)`, Optuna's storage in memory looks only at trials behind the last one
        it found, so it is asked with a set instead.
        """
        wanted = set(states) if isinstance(states, tuple) else states
        found: list[FrozenTrial] = self._until_answered(
            self._backend.get_all_trials, study_id, deepcopy=deepcopy, states=wanted
        )
        return found

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial, once even if the answer to the first attempt is lost; its id."""
        template = create_trial(state=TrialState.RUNNING) if template_trial is None else template_trial
        template = copy.deepcopy(template)
        token = uuid.uuid4().hex
        added = self._new_trial_attrs() if template.state is TrialState.RUNNING else {}
        template.user_attrs = {**template.user_attrs, **added, TOKEN_ATTR: token}

        attempts = 0

        def create() -> int:
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                for trial in reversed(self._backend.get_all_trials(study_id, deepcopy=False)):
                    if trial.user_attrs.get(TOKEN_ATTR) == token:
                        return trial._trial_id
            return self._backend.create_new_trial(study_id, template_trial=template)

        return int(self._until_answered(create))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change a trial's state, as in Optuna; a repeated end of a trial finds that it was carried out."""
        attempts = 0

        def change() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return self._backend.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                stored = self._backend.get_trial(trial_id)
                wanted = None if values is None else list(values)
                if attempts > 1 and stored.state is state and stored.values == wanted:
                    return True
                raise

        return bool(self._until_answered(change))

    def _until_answered(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        wait = FIRST_WAIT
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not is_transient(error):
                    raise

                waited = time.monotonic() - started
                reason = hide_passwords(_first_line(error))
                if waited > self._patience:
                    raise StorageError(
                        f"The study's storage has not answered for {waited:.0f} s ({reason}); bring it back "
                        "and start again, finished trials are kept."
                    ) from error

                logger.warning("The storage does not answer (%s); next attempt in %.1f s.", reason, wait)
                time.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(2 * wait, LONGEST_WAIT)


def _first_line(error: BaseException) -> str:
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    details = getattr(error, "details", None)  # gRPC's own messages are long
    message = str(details()) if callable(details) else str(getattr(error, "orig", None) or error)
    return (message.strip() or type(error).__name__).splitlines()[0]
