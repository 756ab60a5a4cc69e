"""The study without a GPU at 10M parameters, in a tiny version."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from transfer_bo.study_file import load_study_file

SCRIPT = Path(__file__).parents[2] / "studies" / "full_size" / "run.py"


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("full_size_study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_study_files_are_good_and_nothing_is_collected_from_none(
    script: ModuleType, tmp_path: Path
) -> None:
    """One for each seed, with the sizes that the script states."""
    assert 0 == script.main(["--out", str(tmp_path), "--rows"])

    studies = [load_study_file(path) for path in sorted(tmp_path.glob("*.toml"))]
    assert [0, 1] == [study.seed for study in studies]
    assert {10_000_000} == {study.target.tokens for study in studies}
    assert [] == list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))


@pytest.mark.slow  # two commands with worker processes, 10 s
def test_a_tiny_version_runs_and_is_not_repeated(
    script: ModuleType, write_study: Callable[..., Path], tmp_path: Path
) -> None:
    """Search, suggestion and control; the same command again finds all done."""
    text = str(write_study().parent / "text")
    results = []
    for _ in range(2):
        assert 0 == script.main(["--out", str(tmp_path), "--seeds", "1", "--tiny", text])
        results.append((tmp_path / "runs.csv").read_text())

    rows = list(csv.DictReader(results[0].splitlines()))
    assert ["search", "search", "verify", "control"] == [row["purpose"] for row in rows]
    assert {"finished"} == {row["outcome"] for row in rows}
    assert results[0] == results[1]
    assert (tmp_path / "full_size.png").exists()
