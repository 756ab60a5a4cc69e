"""The examples run as they are; commands, and the main path, in processes of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from postgres import cluster, why_not

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 240


def run(*command: str, **environment: str) -> str:
    """What a command prints; `python` and `transfer-bo` are those of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, "PATH": path, **environment},
    )
    assert 0 == process.returncode, process.stderr
    return process.stdout


def lines(example: str) -> int:
    """Lines of an example."""
    return len((EXAMPLES / example).read_text().splitlines())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the examples, to write results beside them."""
    return shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("runs", "ray.toml"))


@pytest.fixture
def optunas_log() -> Iterator[None]:
    """Sets Optuna's verbosity back, which examples change."""
    verbosity = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(verbosity)


def test_per_module_search() -> None:
    """The main path ends with a verified suggestion and the parameter groups of the large model."""
    printed = run(sys.executable, "-W", "error::UserWarning", str(EXAMPLES / "per_module_search.py"))

    assert "predicted" in printed
    assert 8 == len(re.findall('"weight_decay": [0-9.e-]+', printed))
    assert lines("per_module_search.py") < 60


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        ("own_model.py", r"loss \d"),
        ("own_objective.py", r"set at the target"),
        ("vision_mlp.py", r"predicted \d"),
        ("hugging_face.py", r"predicted \d"),
        ("runs_from_csv.py", r"lr: set [0-9.e-]+"),
        ("existing_study.py", r"'lr': 0\.00"),
    ],
)
@pytest.mark.usefixtures("optunas_log")
def test_programs(example: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ends with its answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", UserWarning)
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")

    assert re.search(shown, capsys.readouterr().out)


def test_new_examples_are_short() -> None:
    """What is to be read in a minute has fewer than 60 lines."""
    names = (
        "own_model.py",
        "vision_mlp.py",
        "hugging_face.py",
        "runs_from_csv.py",
        "existing_study.py",
        "command_line/train.py",
    )

    assert [] == [name for name in names if lines(name) >= 60]


def test_a_command_line_trainer(copied: Path) -> None:
    """The study ends with a suggestion; its report has no tensors, which only the program knows."""
    study = str(copied / "command_line" / "study.toml")
    run("transfer-bo", "run", study)
    run("transfer-bo", "report", study)

    assert re.search(r"lr +0\.00", run("transfer-bo", "suggest", study))
    report = (copied / "command_line" / "runs" / "command_line" / "report.html").read_text()
    assert "unembedding" not in report


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_postgresql(copied: Path) -> None:
    """Two workers bring the study in a database to its end."""
    with cluster() as server:
        printed = run("sh", str(copied / "postgresql.sh"), TRANSFER_BO_STORAGE=server.url)

    assert re.search(r"lr +0\.00", printed)
    assert not list(copied.rglob("study.db"))


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install "transfer-bo[ray]"')
def test_ray(copied: Path) -> None:
    """Trials run as tasks of a cluster of this machine."""
    printed = run("sh", str(copied / "ray.sh"), RAY_USAGE_STATS_ENABLED="0")

    assert re.search(r"lr +0\.00", printed)
