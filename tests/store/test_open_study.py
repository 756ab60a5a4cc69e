"""Opening a study: nothing is written for a storage that can't be opened or a study that is another one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_bo.attributes import DEFINITION_ATTR
from transfer_bo.errors import StorageError, StudyError, StudyFileError
from transfer_bo.store.open_study import create_study, open_study, with_stored_rule
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]


def with_storage(url: str) -> tuple[str, str]:
    """The replacement that sets `run.storage`."""
    return "trials = 4", f'trials = 4\n[run]\nstorage = "{url}"'


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///nowhere/study.db",
        "sqlite:///text",
        "sqlite:///text/a.txt",
        "sqlite:///other.db",
        "sqlite://",
        "sqlite:///:memory:",
        "nosuchdialect://host/db",
        "rubbish",
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused(
    url: str, write_study: WriteStudy, tmp_path: Path
) -> None:
    """The sentence names file, key and value, and the disk stays as it was."""
    path = write_study(with_storage(url))
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("create table birds (name text)")
    study_file = load_study_file(path)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StorageError) as caught:
        create_study(study_file, study_file.definition())

    assert str(caught.value).startswith(f"{path}: run.storage = {url!r}: ")
    assert "\n" not in str(caught.value)
    assert before == sorted(tmp_path.rglob("*"))


def test_a_password_is_not_shown(write_study: WriteStudy) -> None:
    """An address that can't be opened is named without its secret."""
    study_file = load_study_file(write_study(with_storage("nosuchdialect://me:secret@host/db")))

    with pytest.raises(StorageError, match=r"nosuchdialect://me:\*\*\*@host/db") as caught:
        create_study(study_file, study_file.definition())

    assert "secret" not in str(caught.value)


def test_an_output_folder_that_is_a_file_is_refused(write_study: WriteStudy) -> None:
    """`out` below a file can never be made."""
    study_file = load_study_file(write_study(("trials = 4", 'trials = 4\n[run]\nout = "tiny.toml/out"')))

    with pytest.raises(StudyFileError, match=r"run\.out = 'tiny\.toml/out': "):
        create_study(study_file, study_file.definition())


def test_reading_a_study_that_was_never_run_writes_nothing(write_study: WriteStudy, tmp_path: Path) -> None:
    """Only a run makes the folder and the database."""
    study_file = load_study_file(write_study())
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StudyError, match=f"transfer-bo run {study_file.path}"):
        open_study(study_file)

    assert before == sorted(tmp_path.rglob("*"))


def test_a_database_that_is_just_being_made_holds_nothing_yet(write_study: WriteStudy) -> None:
    """Asking for the status in a run's first second is no error of the database's."""
    study_file = load_study_file(write_study())
    study_file.out.mkdir(parents=True)
    file = study_file.out / "study.db"

    for statement in ("", "create table studies (study_id integer)"):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute(statement)
        file.touch()
        with pytest.raises(StudyError, match="'tiny'"):
            open_study(study_file)


def test_a_changed_study_is_refused_by_key(write_study: WriteStudy) -> None:
    """What the stored trials were run with can't be changed under them."""
    first = load_study_file(write_study())
    create_study(first, {**first.definition(), "data.fingerprint": "a"})
    other = load_study_file(write_study(("context = 16", "context = 8")))

    with pytest.raises(StudyError, match=r"data\.context = 8, .* 16"):
        create_study(other, other.definition())
    with pytest.raises(StudyError, match=r"data\.context = 8"):
        open_study(other)
    with pytest.raises(StudyError, match=r"data\.fingerprint = 'b', .* 'a'"):
        create_study(first, {**first.definition(), "data.fingerprint": "b"})


def test_a_ladder_may_grow_at_its_end_only(write_study: WriteStudy) -> None:
    """Rungs are stored by index, so a known one can't move; budget and workers are free."""
    rung = "[[ladder.rungs]]\nwidth = {}\ndepth = 1\nbatch = 2\ntokens = 512\n\n"
    first = load_study_file(write_study())
    create_study(first, first.definition())
    grown = load_study_file(write_study(("[ladder.target]", rung.format(48) + "[ladder.target]")))
    shifted = load_study_file(write_study(("[[ladder.rungs]]", rung.format(48) + "[[ladder.rungs]]")))
    richer = load_study_file(write_study(("trials = 4", "trials = 9\n[run]\nworkers = 3")))

    assert "tiny" == create_study(grown, grown.definition()).study_name
    assert 3 == len(open_study(grown).user_attrs[DEFINITION_ATTR]["ladder.rungs"])
    with pytest.raises(StudyError, match=r"ladder\.(base|rungs) = "):
        create_study(shifted, shifted.definition())
    with pytest.raises(StudyError, match=r"ladder\.rungs = "):
        create_study(richer, richer.definition())  # a rung that was there is gone


def test_a_study_keeps_its_rule(write_study: WriteStudy) -> None:
    """A file that names no rule gets that of the trials; one that is named must be the same."""
    paper = ("[space]", '[parametrization]\nrule = "complete_d_p"\n\n[space]')
    named = load_study_file(write_study(paper))
    create_study(named, named.definition())
    default = load_study_file(write_study())
    other = load_study_file(write_study((paper[0], paper[1].replace("complete_d_p", "completep"))))

    assert "complete_d_p_token_half_life" == default.parametrization.rule
    assert "complete_d_p" == with_stored_rule(default).parametrization.rule
    assert isinstance(open_study(with_stored_rule(default)).user_attrs, dict)
    with pytest.raises(StudyError):
        open_study(with_stored_rule(other))


def test_without_a_study_the_rule_is_the_default(write_study: WriteStudy, tmp_path: Path) -> None:
    """Nothing is written to find that out."""
    study_file = load_study_file(write_study())
    before = sorted(tmp_path.rglob("*"))

    assert study_file == with_stored_rule(study_file)
    assert before == sorted(tmp_path.rglob("*"))
