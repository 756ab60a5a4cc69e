"""Studies and a table that an earlier version made are read, answered and continued as by that version."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from data import make
from regression.record import environment

ANSWERS = json.loads((make.FOLDER / "answers.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the answers were recorded; Optuna's log and warnings of commands are not what is tested."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def by_file(tmp_path: Path) -> Path:
    """A copy of the study made with a study file."""
    return shutil.copytree(make.BY_FILE, tmp_path / "by_file")


@pytest.fixture
def by_api(tmp_path: Path) -> Path:
    """A copy of the study made with the Python API."""
    return shutil.copytree(make.BY_API, tmp_path / "by_api")


def as_recorded(answer: Any) -> Any:
    """The recorded answer to compare with: up to rounding, or nearly with other libraries or another CPU."""
    if isinstance(answer, dict):
        return {key: as_recorded(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [as_recorded(value) for value in answer]
    error = 1e-9 if ANSWERS["environment"] == environment() else 0.02
    return pytest.approx(answer, rel=error, abs=error) if isinstance(answer, float) else answer


def test_the_study_of_a_file_gives_the_same_suggestion(by_file: Path) -> None:
    """Its verification and control do not disturb."""
    assert as_recorded(ANSWERS["suggestions"]["by_file"]) == make.suggest_by_file(by_file)


def test_the_study_of_a_file_goes_on(by_file: Path) -> None:
    """With a higher limit `run` adds two trials, the ones that the earlier version would have added."""
    assert as_recorded(ANSWERS["next trials"]["by_file"]) == make.continue_by_file(by_file)


def test_the_study_of_the_api_gives_the_same_suggestion(by_api: Path) -> None:
    """Diverged and pruned trials are understood as before."""
    assert as_recorded(ANSWERS["suggestions"]["by_api"]) == make.suggest_by_api(by_api)


def test_the_study_of_the_api_goes_on(by_api: Path) -> None:
    """`study.optimize` adds two trials, the ones that the earlier version would have added."""
    assert as_recorded(ANSWERS["next trials"]["by_api"]) == make.continue_by_api(by_api)


def test_the_table_gives_the_same_suggestion() -> None:
    """A diverged row and a categorical HP are understood as before."""
    assert as_recorded(ANSWERS["suggestions"]["table"]) == make.suggest_from_table(make.RUNS)


def test_saved_studies_are_small_and_name_no_machine() -> None:
    """They are part of the repository."""
    for path in make.FOLDER.rglob("*.db"):
        content = path.read_bytes()

        assert len(content) < 100_000
        assert not any(word in content for word in (b"/tmp/", b"/home/", b"/root/", b"/work/"))
