"""`transfer-bo worker` as a user starts it: processes that join a study on a real PostgreSQL."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from commands import commands
from postgres import PASSWORD, Cluster, cluster, why_not

from transfer_bo import Outcome
from transfer_bo.attributes import TOKEN_ATTR, WORKER_ATTR
from transfer_bo.records import read_runs
from transfer_bo.runners.task import make_task
from transfer_bo.store.open_study import create_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
SECONDS = 200
MEET = """
import os, pathlib, sys, time
folder, trial, output = sys.argv[1:]
pathlib.Path(folder, trial).write_text(str(os.environ))
while len(os.listdir(folder)) < 2: time.sleep(0.05)
open(output, "a").write('{{"loss": 1.0}}')
"""
"""A program that ends when it has been started twice at the same time."""

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(SECONDS),
    pytest.mark.usefixtures("no_open_connections"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """One PostgreSQL for all tests here; each has a study of its own name."""
    with cluster() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `transfer-bo worker ARGUMENTS` in the folder of the text; it is ended after the test."""
    with commands(tmp_path) as run:
        yield lambda *arguments, storage=None: run("worker", *arguments, TRANSFER_BO_STORAGE=storage or "")


def stored(path: Path, server: Cluster) -> optuna.Study:
    """The study file's study, made on the server."""
    study_file = load_study_file(path).stored_in(server.url)
    return create_study(study_file, make_task(study_file).definition())


def holds_the_password(text: str) -> bool:
    """As it is, or as it stands in an address."""
    return PASSWORD in text or PASSWORD.replace("/", "%2F").replace("@", "%40") in text


def test_two_join_by_address_alone(
    write_study: WriteStudy, server: Cluster, start: Start, tmp_path: Path
) -> None:
    """Without a copy of the study file they bring it to its end, nothing twice, and no password is shown."""
    study = stored(write_study(("tiny", "joined")), server)

    both = [
        start("--storage", server.url, "--study", "joined"),
        start("--study", "joined", storage=server.url),
    ]
    ended = [process.communicate(timeout=SECONDS) for process in both]

    runs, trials = read_runs(study), study.get_trials(deepcopy=False)
    shown = [text for texts in ended for text in texts]
    kept = [file.read_text() for file in tmp_path.rglob("*.log")] + [str(study.user_attrs)]
    assert [0, 0] == [process.returncode for process in both], ended
    assert len(runs) in (4, 5)  # both may start a last one at the same moment
    assert {Outcome.FINISHED} == {run.outcome for run in runs}
    assert len(trials) == len({trial.user_attrs[TOKEN_ATTR] for trial in trials})
    assert len(trials) == len({(run.scale, *run.params.values()) for run in runs})
    assert len(kept) >= 2
    assert not any(holds_the_password(text) for text in [*shown, *kept])


def test_two_work_at_the_same_time(
    write_study: WriteStudy, server: Cluster, start: Start, tmp_path: Path
) -> None:
    """Each runs a trial that ends only when the other one runs a trial, too; programs get no password."""
    (tmp_path / "met").mkdir()
    command = (
        f"run = {json.dumps([sys.executable, '-c', MEET, str(tmp_path / 'met'), '{trial}', '{output}'])}"
    )
    path = write_study(
        ("tiny", "shared"), ("trials = 4", "trials = 2"), ("[budget]", f"[command]\n{command}\n[budget]")
    )
    study = stored(path, server)

    both = [start(str(path), "--storage", server.url), start(str(path), storage=server.url)]
    ended = [process.communicate(timeout=SECONDS) for process in both]

    trials = study.get_trials(deepcopy=False)
    assert [0, 0] == [process.returncode for process in both], ended
    assert {Outcome.FINISHED} == {run.outcome for run in read_runs(study)}
    assert 2 == len({trial.user_attrs[WORKER_ATTR]["id"] for trial in trials})
    assert not any(holds_the_password(file.read_text()) for file in (tmp_path / "met").iterdir())


def test_a_program_that_only_the_storage_names_is_not_run(
    write_study: WriteStudy, server: Cluster, start: Start, tmp_path: Path
) -> None:
    """Who may write to the database may not run what they like on the machines that join."""
    command = f"run = {json.dumps(['touch', str(tmp_path / 'trace')])}"
    study = stored(write_study(("tiny", "attack"), ("[budget]", f"[command]\n{command}\n[budget]")), server)

    process = start("--study", "attack", storage=server.url)
    printed, error = process.communicate(timeout=SECONDS)

    assert 2 == process.returncode
    assert "" == printed
    assert error.startswith("--study 'attack': its trials run a program, 'touch")
    assert 1 == error.count("\n")
    assert [] == study.get_trials()
    assert not (tmp_path / "trace").exists()


def test_a_worker_with_another_study_file_is_refused(
    write_study: WriteStudy, server: Cluster, start: Start
) -> None:
    """It says which key differs, exits with 2, and has added nothing."""
    study = stored(write_study(("tiny", "refused")), server)
    other = write_study(("tiny", "refused"), ("context = 16", "context = 8"))

    process = start(str(other), "--storage", server.url)
    printed, error = process.communicate(timeout=SECONDS)

    assert 2 == process.returncode
    assert "" == printed
    assert (
        f"{other}: data.context = 8, but the stored trials of study 'refused' were run with 16; "
        "set it back, or give the study another name.\n" == error
    )
    assert [] == study.get_trials()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ((r"$^", ""), "holds no study of that name"),
        ((r"%40word", "word"), "password authentication failed"),
        ((r"/postgres$", "/nosuchdatabase"), '"nosuchdatabase" does not exist'),
        ((r":\d+/postgres", ":1/postgres"), "can't be opened"),
    ],
)
def test_no_password_in_what_goes_wrong(
    damage: tuple[str, str], words: str, server: Cluster, start: Start
) -> None:
    """One sentence that names the address without its secret, and exit code 2."""
    process = start("--study", "nosuch", storage=re.sub(*damage, server.url))
    printed, error = process.communicate(timeout=SECONDS)

    assert 2 == process.returncode
    assert words in error
    assert "postgresql://tester:***@" in error
    assert 1 == error.count("\n")
    assert not holds_the_password(printed + error)
