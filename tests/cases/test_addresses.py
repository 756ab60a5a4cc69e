"""Every address of a storage that one command takes is taken by all of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from generated_tables import rows_of, understood
from postgres import Cluster, cluster, free_port, why_not
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.addresses import absolute_address, describe_mistake, file_of
from transfer_bo.cli import app
from transfer_bo.errors import StorageError, StudyError
from transfer_bo.run_table.read import read_table
from transfer_bo.runners.warm_start import read_missing_source_runs
from transfer_bo.store.backends import open_storage
from transfer_bo.store.existing_study import open_existing_study, stored_study_file
from transfer_bo.store.open_study import create_study, open_study
from transfer_bo.study_file import StudyFile, load_study_file

WriteStudy = Callable[..., Path]
SERVER = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
SECONDS = 60
KINDS = [
    "sqlite",
    "sqlite, relative",
    "sqlite with a timeout",
    "sqlite with a driver",
    "journal",
    "journal with three slashes",
    "grpc",
    pytest.param("postgresql", marks=SERVER),
    pytest.param("postgres", marks=SERVER),
]

pytestmark = pytest.mark.usefixtures("no_open_connections")


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """One PostgreSQL for all tests here."""
    with cluster() as server:
        yield server


@contextlib.contextmanager
def proxy(folder: Path) -> Iterator[str]:
    """Optuna's proxy in front of an SQLite file, in a process of its own."""
    port = free_port()
    code = (
        "import optuna; from transfer_bo.store.backends import connect_backend\n"
        f"optuna.storages.run_grpc_proxy_server(connect_backend('sqlite:///{folder}/proxy.db', create=True), "
        f"port={port})"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
                break
            time.sleep(0.1)
        yield f"grpc://localhost:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address of each kind; the current folder holds the study file."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.db"
    addresses = {
        "sqlite": f"sqlite:///{file}",
        "sqlite, relative": "sqlite:///study.db",
        "sqlite with a timeout": f"sqlite:///{file}?timeout=20",
        "sqlite with a driver": f"sqlite+pysqlite:///{file}",
        "journal": f"journal:///{file}",
        "journal with three slashes": f"journal://{file}",
    }
    if request.param == "grpc":
        with proxy(tmp_path) as address:
            yield address
    elif request.param in ("postgres", "postgresql"):
        server: Cluster = request.getfixturevalue("server")
        yield f"{request.param}://{server.url.partition('://')[2]}"
        storage = open_storage(server.url, create=True)
        for study in storage.get_all_studies():
            storage.delete_study(study._study_id)
    else:
        yield addresses[request.param]


def search(study_file: StudyFile) -> None:
    """Make the study, and two trials at each rung with a formula instead of training."""
    ladder = tb.Ladder(study_file.proxies)
    sampler = tb.TransferSampler(ladder=ladder, target=study_file.target, seed=0, defaults={"lr": 0.01})
    study = create_study(study_file, study_file.definition(), sampler=sampler)

    @tb.objective
    def train(trial: optuna.Trial) -> float:
        width = ladder.suggest(trial).width
        lr = trial.suggest_float("lr", 0.001, 0.1, log=True)
        return 8.0 / width + 0.05 * math.log2(lr / 0.02) ** 2

    for rung in (0, 1):
        for lr in (0.005, 0.05):
            study.enqueue_trial({"rung": rung, "lr": lr})
    study.optimize(train, n_trials=4)


def run(*arguments: str) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, arguments)
    assert 0 == result.exit_code, (arguments, result.output, result.exception)
    return result.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_one_address_for_everything(url: str, write_study: WriteStudy) -> None:
    """`run.storage`, `status --storage`, `--runs`, `[[past]]`, `add_past_runs` and `worker --storage`."""
    first = load_study_file(write_study(("trials = 4", f'trials = 4\n[run]\nstorage = "{url}"')))
    search(first)

    status = run("status", "--storage", url, "--study", "tiny")
    table = read_table(url, "tiny")
    later = load_study_file(
        write_study(
            ('name = "tiny"', 'name = "later"'),
            ("[budget]", f'[[past]]\nstorage = "{url}"\nstudy = "tiny"\n\n[budget]'),
        )
    )
    (past,) = read_missing_source_runs(FakeTask(later), None)  # type: ignore[arg-type]
    fresh = optuna.create_study(
        sampler=tb.TransferSampler(ladder=tb.Ladder(first.proxies), target=first.target, seed=0)
    )

    assert 4 == len(open_study(first).trials)
    assert 4 == len(open_existing_study(url).trials)
    assert "width 16" in status
    assert 4 == len(table)
    assert 4 == len(past.runs)
    assert 4 == tb.add_past_runs(fresh, url, name="tiny")
    assert "tiny" == stored_study_file(url, "tiny").name


@pytest.mark.parametrize("url", ["journal"], indirect=True)
def test_an_address_reaches_report_and_suggestion(url: str, write_study: WriteStudy, tmp_path: Path) -> None:
    """The commands that fit a surrogate, with the address of a kind that Optuna itself does not open."""
    search(load_study_file(write_study(("trials = 4", f'trials = 4\n[run]\nstorage = "{url}"'))))

    run("report", "--storage", url, "--out", "report.html")
    suggested = run(
        *("suggest", "--runs", url, "--axis", "width", "--hp", "lr:log", "--loss", "loss"),
        *("--target", "width=64", "--json", "--no-held-out"),
    )

    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert {"lr"} == set(json.loads(suggested)["params"])


class FakeTask:
    """What the source studies of a study file need of its task."""

    def __init__(self, study_file: StudyFile) -> None:
        self.file = study_file
        self.ladder = tb.Ladder(study_file.proxies)
        self.space = study_file.hp_space


@pytest.mark.parametrize(
    ("url", "error", "shown"),
    [
        ("sqlite:///none.db", StorageError, "none.db"),
        ("journal:///none.log", StorageError, "none.log"),
        ("sqlite:///{tmp}/none.db", StorageError, "none.db"),
        ("sqlite:///empty.db", StudyError, "empty.db"),
        ("sqlite:///two.db", StudyError, "'one', 'two'"),
        ("postgresql://me:s3cr@et@host/db", StorageError, "%40"),
        ("grpc://localhost", StorageError, "grpc://host:13000"),
    ],
)
def test_an_address_that_holds_no_study_is_refused(
    url: str, error: type[Exception], shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with what to change, nothing written, and no piece of a password shown."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.db").touch()
    storage = optuna.storages.RDBStorage("sqlite:///two.db")
    for name in ("one", "two"):
        optuna.create_study(study_name=name, storage=storage)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(error) as caught:
        open_existing_study(url.format(tmp=tmp_path))

    assert shown in str(caught.value)
    assert not any(piece in str(caught.value) for piece in ("s3cr", "et@host"))
    assert before == sorted(tmp_path.rglob("*"))


def test_a_forgotten_slash_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sqlite:///tmp/x.db` is relative; where the absolute file exists, the error says how to write it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")

    with pytest.raises(StorageError, match=f"write sqlite:///{tmp_path}/study.db"):
        open_existing_study(f"sqlite://{tmp_path}/study.db")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///a.db", "sqlite:///{folder}/a.db"),
        ("sqlite:////x/a.db", "sqlite:////x/a.db"),
        ("sqlite:///a.db?timeout=3", "sqlite:///{folder}/a.db?timeout=3"),
        ("sqlite:///file:a.db?mode=ro&uri=true", "sqlite:///file:{folder}/a.db?mode=ro&uri=true"),
        ("journal:///a.log", "journal:///{folder}/a.log"),
        ("journal:///sub/a.log", "journal:///{folder}/sub/a.log"),
        ("journal:///usr/a.log", "journal:////usr/a.log"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("grpc://host:1", "grpc://host:1"),
    ],
)
def test_relative_files_are_relative_to_a_folder(url: str, expected: str, tmp_path: Path) -> None:
    """Of the study file, whatever the current folder; made absolute once, they stay as they are."""
    (tmp_path / "sub").mkdir()

    absolute = absolute_address(url, tmp_path)

    assert expected.format(folder=tmp_path) == absolute
    assert absolute == absolute_address(absolute, Path("/elsewhere"))
    assert (file_of(url, tmp_path) is None) == (not url.startswith(("sqlite", "journal")))


@pytest.mark.parametrize("url", ["postgresql://h:5432/db?options=a@b", "postgresql://me:pa/ss@host/db"])
def test_other_addresses_are_not_mistaken(url: str) -> None:
    """An `@` among the options is none of the password's."""
    assert describe_mistake(url) is None


def test_a_read_only_storage_can_be_read(
    tmp_path: Path, write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's results are often read-only; only a run needs to write."""
    study_file = load_study_file(write_study())
    search(study_file)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)

    assert 4 == len(open_study(study_file).trials)
    with pytest.raises(tb.TransferError):
        create_study(study_file, study_file.definition())


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite://study.db", "journal://study.log", "sqlite+pysqlite://study.db", "journal+redis://host"),
        *("mysql://host/db", "SQLITE:///study.db", "mongodb://host/db"),
    ],
)
def test_an_address_that_no_storage_has(url: str) -> None:
    """It is refused in one sentence, without the name of a plug-in, or of an extra that does not help."""
    with pytest.raises(StorageError) as caught:
        read_table(url)

    assert not {"plugin", "postgres]"} & set(str(caught.value).replace('"', " ").split())


def test_trials_without_their_study(tmp_path: Path) -> None:
    """A list of them, and the table that Optuna makes of them, also in a file, are as good as the study."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=128)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=256), seed=0)
    study = optuna.create_study(sampler=sampler, pruner=tb.RungPruner())
    study.optimize(
        lambda trial: 8 / ladder.suggest(trial).width + trial.suggest_float("lr", 1e-4, 0.1, log=True),
        n_trials=4,
    )
    study.trials_dataframe().to_csv(tmp_path / "trials.csv")

    expected = understood(study, loss="value")
    trials = understood(study.trials, loss="value")
    in_memory = understood(study.trials_dataframe(), hps={"params_lr": "log"}, loss="value")
    from_file = understood(tmp_path / "trials.csv", hps={"params_lr": "log"}, loss="value")

    assert rows_of(expected) == rows_of(trials) == rows_of(in_memory) == rows_of(from_file)
