"""Study files and what is stored with a study are data: attacks that try to run something through them.

Attacks of other kinds stand with what they attack: values of trials and templates in `test_external_program`,
checkpoints in `test_checkpoint`, names in the report in `test_report`, passwords in `test_secrets`,
`test_worker` and `test_report`, a program that a storage names in `test_worker`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_bo.attributes import STUDY_FILE_ATTR
from transfer_bo.errors import StudyError, TransferError
from transfer_bo.runners.external_program import CommandError
from transfer_bo.runners.task import Attempt, make_task
from transfer_bo.store.existing_study import stored_study_file
from transfer_bo.store.open_study import create_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
PLACES = {  # what is replaced, so that the attack stands there
    "name": ('"tiny"', "{}"),
    "seed": ('name = "tiny"', 'name = "tiny"\nseed = {}'),
    "source": ('"text"', "{}"),
    "key": ("[budget]", "[budget]\n{} = 1"),
    "hp": ('"lr.embedding" = {}', "{} = {{}}"),
    "group": ('"lr.embedding"', '"lr.attack" = {{}}\n"residual.attack"'),
    "model": ("[budget]", "[model]\nbuild = {}\n[budget]"),
    "rule": ("[budget]", "[parametrization]\nrule = {}\n[budget]"),
    "storage": ("trials = 4", "trials = 4\n[run]\nstorage = {}"),
    "out": ("trials = 4", "trials = 4\n[run]\nout = {}"),
    "checkpoints": ("trials = 4", "trials = 4\n[run]\ncheckpoints = {}"),
    "argument": ("[budget]", '[command]\nrun = ["echo", {}]\n[budget]'),
    "program": ("[budget]", "[command]\nrun = [{}]\n[budget]"),
    "environment": ("[budget]", '[command]\nrun = ["echo"]\nenv = {{ ATTACK = {} }}\n[budget]'),
}


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch trace')",
        "$(touch trace)",
        "`touch trace`; touch trace",
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_study_file_runs_nothing(
    place: str, attack: str, write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stands the attack is a text: taken as it is, or refused in a sentence."""
    monkeypatch.chdir(tmp_path)
    old, new = PLACES[place]
    path = write_study((old, new.format(json.dumps(attack))))

    with contextlib.suppress(TransferError, CommandError):
        study_file = load_study_file(path)
        task = make_task(study_file)
        create_study(study_file, task.definition())
        if study_file.command is not None:
            task.run(Attempt(0, study_file.proxies[0], {"lr": 0.01}, 1, 1, 0, lambda *_: None))

    assert [] == list(tmp_path.rglob("trace"))


@pytest.mark.parametrize("folder", ["/elsewhere", "../elsewhere", "runs/../../elsewhere"])
@pytest.mark.parametrize("key", ["out", "checkpoints"])
def test_a_storage_does_not_decide_where_files_are_written(
    key: str, folder: str, write_study: WriteStudy, tmp_path: Path
) -> None:
    """A worker that joins by address alone writes below its own folder, or not at all."""
    study_file = load_study_file(write_study())
    study = create_study(study_file, study_file.definition())
    attack = study_file.run.model_copy(update={key: folder})
    study.set_user_attr(STUDY_FILE_ATTR, study_file.model_copy(update={"run": attack}).without_storage())
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StudyError, match=f"run.{key} .* '{folder}'"):
        stored_study_file(study_file.storage_url, "tiny")
    assert before == sorted(tmp_path.rglob("*"))


def test_a_storage_does_not_decide_whose_model_is_built(write_study: WriteStudy, tmp_path: Path) -> None:
    """A worker that joins by address alone refuses `model.build`, and does not import the file it names."""
    (tmp_path / "attack.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    study_file = load_study_file(write_study())
    study = create_study(study_file, study_file.definition())
    model = study_file.model.model_copy(update={"build": f"{tmp_path}/attack.py:build_model"})
    study.set_user_attr(STUDY_FILE_ATTR, study_file.model_copy(update={"model": model}).without_storage())

    with pytest.raises(StudyError, match=r"attack\.py:build_model"):
        stored_study_file(study_file.storage_url, "tiny")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"path": "x", "name": "../../x"}', '{"__reduce__": 1}', "\x80\x04."]
)
def test_what_is_stored_with_a_study_is_checked(text: str, write_study: WriteStudy) -> None:
    """A worker that joins by address alone reads it like a study file, and refuses it in a sentence."""
    study_file = load_study_file(write_study())
    study = create_study(study_file, study_file.definition())
    assert "tiny" == stored_study_file(study_file.storage_url, "tiny").name
    study.set_user_attr(STUDY_FILE_ATTR, text)

    with pytest.raises(StudyError, match="'tiny'"):
        stored_study_file(study_file.storage_url, "tiny")
