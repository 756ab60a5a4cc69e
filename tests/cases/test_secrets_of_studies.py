"""A password that a study is given appears nowhere: not in errors, logs, reports, nor in the storage."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.attributes import DEFINITION_ATTR, ERROR_ATTR
from transfer_bo.cli import app
from transfer_bo.errors import StorageError, StudyError
from transfer_bo.runners.external_program import CommandError, Program
from transfer_bo.runners.objective import objective
from transfer_bo.runners.study_search import make_sampler
from transfer_bo.runners.task import make_task
from transfer_bo.store.existing_study import open_existing_study, stored_study_file
from transfer_bo.store.heartbeat import Heartbeat
from transfer_bo.store.open_study import create_study, open_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
SECRET = "Sekret"
"""In every password here, so that one is a leak wherever it is found."""
PASSWORDS = [
    f"{SECRET}/x",
    f"{SECRET}@x",
    f"{SECRET}:x",
    f"{SECRET}%x",
    f"x/{SECRET}",
    f"x@{SECRET}",
    f"{SECRET}?x",
]
ADDRESSES = [
    "postgresql://me:{raw}@localhost:1/db",
    "postgresql://me:{encoded}@localhost:1/db",
    "postgresql://localhost:1/db?user=me&password={encoded}",
    "nosuchdialect://me:{raw}@host/db",
    "grpc://me:{raw}@host",
]


def command(run: list[str] | str, **env: str) -> tuple[str, str]:
    """The replacement that trains with a program."""
    pairs = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
    shell = f"shell = {str(isinstance(run, str)).lower()}"
    return "[budget]", f"[command]\nrun = {json.dumps(run)}\n{shell}\nenv = {{ {pairs} }}\n[budget]"


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_fails_is_named_without_its_password(
    address: str, password: str, write_study: WriteStudy
) -> None:
    """By whatever command it is used; the driver's own words are masked, too."""
    url = address.format(raw=password, encoded=quote(password, safe=""))
    study_file = load_study_file(write_study()).stored_in(url)

    for open_it in (
        lambda: open_study(study_file),
        lambda: open_existing_study(url, "tiny"),
        lambda: stored_study_file(url, "tiny"),
        lambda: tb.add_past_runs(optuna.create_study(), url, name="old"),
    ):
        with pytest.raises(tb.TransferError) as caught:
            open_it()
        assert SECRET not in str(caught.value)
    result = CliRunner().invoke(app, ["status", "--storage", url, "--study", "tiny"])
    assert 2 == result.exit_code
    assert SECRET not in result.output


def test_secrets_of_a_command_are_not_stored(write_study: WriteStudy) -> None:
    """Neither with the study nor in its definition; a new password does not make it another study."""
    study_file = load_study_file(
        write_study(command("PGPASSWORD=Sekret1 train {output}", PGPASSWORD="Sekret1", HF_TOKEN="Sekret2"))
    )
    changed = load_study_file(
        write_study(command("PGPASSWORD=Sekret3 train {output}", PGPASSWORD="Sekret3", HF_TOKEN="Sekret4"))
    )
    other = load_study_file(write_study(command("PGPASSWORD=Sekret3 test {output}", PGPASSWORD="Sekret3")))
    study = create_study(study_file, study_file.definition())

    assert SECRET not in str(study.user_attrs)
    assert study_file.definition() == changed.definition()
    with pytest.raises(StudyError, match=r"command\.run") as caught:
        create_study(other, other.definition())
    assert SECRET not in str(caught.value)


def test_a_study_that_holds_secrets_of_an_earlier_version_opens(write_study: WriteStudy) -> None:
    """What was stored with it is compared without them, and replaced."""
    study_file = load_study_file(
        write_study(command(["train", "{output}"], PGPASSWORD="Sekret1", MODE="fast"))
    )
    study = create_study(study_file, study_file.definition())
    stored = {**study_file.definition(), "command.env": {"PGPASSWORD": "Sekret2", "MODE": "fast"}}
    study.set_user_attr(DEFINITION_ATTR, stored)

    assert open_study(study_file).study_name == "tiny"
    stored["command.env"] = {"PGPASSWORD": "Sekret2", "MODE": "slow"}
    study.set_user_attr(DEFINITION_ATTR, stored)
    with pytest.raises(StudyError, match=r"command\.env") as caught:
        open_study(study_file)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "import os, sys; sys.exit('cannot log in with ' + os.environ['PGPASSWORD'])",
        "import os, sys; print('password authentication failed: ' + os.environ['PGPASSWORD']); sys.exit(1)",
        "import os, json; print(json.dumps({'outcome': 'error', 'message': os.environ['PGPASSWORD']}), "
        "file=open(os.environ['TRANSFER_BO_OUTPUT'], 'a'))",
    ],
)
@pytest.mark.parametrize("password", PASSWORDS)
def test_what_a_program_prints_is_masked(code: str, password: str, tmp_path: Path) -> None:
    """Even where nothing says that it is a password."""
    program = Program(
        [sys.executable, "-c", code.replace("{", "{{").replace("}", "}}")],
        False,
        {"PGPASSWORD": password},
        tmp_path,
    )

    with pytest.raises(CommandError) as caught:
        program({}, {}, report=lambda *_: None, should_stop=lambda: False, checkpoint=tmp_path)

    assert "***" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_what_a_trial_raises_is_masked(write_study: WriteStudy, caplog: pytest.LogCaptureFixture) -> None:
    """In the attribute of the trial and in the log, with its traceback."""
    task = make_task(load_study_file(write_study()))
    study = optuna.create_study(sampler=make_sampler(task))

    @objective
    def train(trial: optuna.Trial) -> float:
        task.ladder.suggest(trial)
        raise OSError("connection to postgresql://me:Sekret/1@host/db lost")

    with caplog.at_level(logging.INFO):
        study.optimize(train, n_trials=1)

    assert "***" in study.trials[0].user_attrs[ERROR_ATTR]
    assert SECRET not in study.trials[0].user_attrs[ERROR_ATTR] + caplog.text


def test_a_heartbeat_that_fails_logs_no_password(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread must not end, so it logs what happened."""
    study = optuna.create_study()
    heartbeat = Heartbeat(study, set, beat=0.01)

    def fail(*args: object, **options: object) -> None:
        heartbeat._stop.set()
        raise RuntimeError("lost postgresql://me:Sekret/1@host/db")

    monkeypatch.setattr(study, "get_trials", fail)
    with heartbeat.beating():
        heartbeat._thread.join(10)

    assert "***" in caplog.text
    assert SECRET not in caplog.text


def test_a_raw_at_sign_in_a_password_is_refused(write_study: WriteStudy) -> None:
    """Its rest would be taken for a host, and be shown by the driver."""
    study_file = load_study_file(write_study()).stored_in("postgresql://me:x@Sekret@host/db")

    with pytest.raises(StorageError, match="%40") as caught:
        open_study(study_file)
    assert SECRET not in str(caught.value)


def test_the_name_of_a_source_study_is_masked_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It may be the address of a data base."""
    name = f"postgresql://me:x/{SECRET}@host/db"
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=128)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=256), seed=0)
    runs = [{"width": 64, "lr": 10.0**-i, "loss": 3.0 + i} for i in range(2, 5)]

    with caplog.at_level(logging.INFO):
        tb.add_past_runs(optuna.create_study(sampler=sampler, pruner=tb.RungPruner()), runs, name=name)

    assert SECRET not in caplog.text
    assert "***" in caplog.text


def test_an_address_in_the_place_of_a_path_is_masked() -> None:
    """A path keeps one of its two slashes."""
    result = CliRunner().invoke(app, ["run", f"postgresql://me:{SECRET}@host/db"])

    assert (2, False) == (result.exit_code, SECRET in result.output)


def test_what_the_environment_keeps_secret_is_masked_in_the_error_of_a_trial(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library may print a key without saying that it is one."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)

    @objective
    def fail(_: optuna.Trial) -> float:
        raise RuntimeError(f"login with {SECRET} failed")

    study = optuna.create_study(pruner=tb.RungPruner())
    study.optimize(fail, n_trials=1)

    assert SECRET not in study.trials[0].user_attrs[ERROR_ATTR] + caplog.text
