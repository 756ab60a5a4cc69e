"""A storage that goes away: calls wait, lost answers are looked up, lasting errors are not waited for."""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy.exc
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial

from transfer_bo.errors import StorageError
from transfer_bo.store import retrying_storage
from transfer_bo.store.backends import check_address, connect_backend
from transfer_bo.store.retrying_storage import RetryingStorage, is_transient

AWAY = sqlalchemy.exc.OperationalError("select", {}, Exception("server closed the connection unexpectedly"))


class Flaky(optuna.storages.InMemoryStorage):
    """Loses the answers to the next calls: the first `lost` are carried out, or not, and then fail."""

    lost = 0
    carries_out = True

    def __getattribute__(self, name: str) -> Any:
        """Every method of a storage that reads or writes."""
        found = super().__getattribute__(name)
        if not name.startswith(("get_", "set_", "create_")):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.lost == 0:
                return found(*args, **kwargs)
            self.lost -= 1
            if self.carries_out:
                lost, self.lost = self.lost, 0
                found(*args, **kwargs)
                self.lost = lost
            raise AWAY

        return call


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(retrying_storage, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retrying_storage, "LONGEST_WAIT", 0.002)


@pytest.fixture
def flaky() -> Flaky:
    """A storage that works until answers are lost."""
    return Flaky()


@pytest.fixture
def study(flaky: Flaky) -> optuna.Study:
    """A study on the flaky storage."""
    return optuna.create_study(storage=RetryingStorage(flaky, lambda: {"mine": 1}))


@pytest.mark.parametrize("carries_out", [True, False])
def test_nothing_is_done_twice(carries_out: bool, flaky: Flaky, study: optuna.Study) -> None:
    """Each call fails twice; there is one trial with one end, whether the lost calls took effect or not."""
    flaky.carries_out = carries_out

    def lose() -> None:
        flaky.lost = 2

    lose()
    trial = study.ask()
    lose()
    trial.suggest_float("lr", 0.0, 1.0)
    lose()
    trial.report(1.0, step=1)
    lose()
    trial.set_user_attr("a", 1)
    lose()
    study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [2.0])
    lose()
    study.add_trial(create_trial(state=TrialState.WAITING))

    flaky.lost = 0
    assert [TrialState.COMPLETE, TrialState.WAITING] == [trial.state for trial in study.trials]
    assert 2.0 == study.trials[0].value
    assert [1, None] == [trial.user_attrs.get("mine") for trial in study.trials]


def test_a_trial_that_another_one_ended_stays_so(flaky: Flaky, study: optuna.Study) -> None:
    """The first attempt fails; so does a second one whose values are not those stored."""
    trial = study.ask()
    study.tell(trial, 2.0)
    for lost in (0, 1):
        flaky.lost, flaky.carries_out = lost, False

        with pytest.raises(UpdateFinishedTrialError):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [3.0])


def test_patience_ends_with_a_sentence(flaky: Flaky) -> None:
    """It says how long and what the storage said, and no traceback is needed."""
    storage = RetryingStorage(flaky, patience=0.05)
    flaky.lost, flaky.carries_out = 10**9, False

    with pytest.raises(StorageError, match="server closed the connection"):
        storage.get_all_studies()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AWAY, True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (sqlalchemy.exc.OperationalError("", {}, Exception("database or disk is full")), True),
        (sqlalchemy.exc.TimeoutError(), True),
        (PermissionError(), False),
        (sqlalchemy.exc.OperationalError("", {}, Exception("no such table: trials")), False),
        (sqlalchemy.exc.OperationalError("", {}, Exception("password authentication failed")), False),
        (sqlalchemy.exc.DataError("", {}, Exception("value too long")), False),
        (KeyError("study"), False),
        (UpdateFinishedTrialError(), False),
        (ValueError(), False),
    ],
)
def test_only_what_may_pass_is_waited_for(error: Exception, expected: bool) -> None:
    """The same for an error as it is and as Optuna wraps it."""
    wrapped = StorageInternalError()
    wrapped.__cause__ = error

    assert expected == is_transient(error)
    if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        assert expected == is_transient(wrapped)


def test_a_journal_survives_a_record_cut_short(tmp_path: Path) -> None:
    """A full disk leaves half a line; it is taken out before the next one, and nothing before it is lost."""
    file = tmp_path / "study.log"
    study = optuna.create_study(storage=connect_backend(f"journal:///{file}", create=True), study_name="s")
    study.tell(study.ask(), 1.0)
    with file.open("a") as journal:
        journal.write('{"op_code": 4, "worker')
    study.tell(study.ask(), 2.0)

    again = optuna.load_study(storage=connect_backend(f"journal:///{file}", create=False), study_name="s")
    assert [1.0, 2.0] == [trial.value for trial in again.trials]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_journal_lets_many_write(tmp_path: Path) -> None:
    """No record is lost and none torn when eight write at once."""
    url = f"journal:///{tmp_path / 'study.log'}"
    optuna.create_study(storage=connect_backend(url, create=True), study_name="s")

    def write() -> None:
        study = optuna.load_study(storage=connect_backend(url, create=False), study_name="s")
        for _ in range(5):
            study.tell(study.ask(), 1.0)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    study = optuna.load_study(storage=connect_backend(url, create=False), study_name="s")
    assert list(range(40)) == [trial.number for trial in study.trials]
    assert {1.0} == {trial.value for trial in study.trials}


@pytest.mark.parametrize("create", [True, False])
def test_tables_that_another_process_creates_are_waited_for(
    create: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna writes its version in either case, so a worker that creates nothing may come too early, too."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=connect_backend(url, create=True), study_name="s")
    raised = Exception('duplicate key value violates unique constraint "pg_type_typname_nsp_index"')
    errors = [sqlalchemy.exc.IntegrityError("create", {}, raised)] * 2
    init = optuna.storages.RDBStorage.__init__

    def opened(*args: Any, **kwargs: Any) -> None:
        if errors:
            raise errors.pop()
        init(*args, **kwargs)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", opened)
    study = optuna.load_study(storage=connect_backend(url, create=create), study_name="s")

    assert [] == errors
    assert [] == study.trials


@pytest.mark.parametrize("url", ["grpc://host", "grpc://:13000", "journal:///{}/folder"])
def test_bad_addresses_are_named(url: str, tmp_path: Path) -> None:
    """What is wrong is said before anything is opened."""
    (tmp_path / "folder").mkdir()

    assert check_address(url.format(tmp_path)) is not None


def test_a_wait_takes_as_long_as_the_storage_is_away(flaky: Flaky, study: optuna.Study) -> None:
    """A minute away is a minute's wait, not an error."""
    flaky.lost, flaky.carries_out = 10**9, False

    def come_back() -> None:
        time.sleep(0.2)
        flaky.lost = 0

    started = time.monotonic()
    threading.Thread(target=come_back).start()
    trial = study.ask()

    assert time.monotonic() - started >= 0.2
    assert 0 == trial.number
