"""The package answers as recorded (see record.py): searches, suggestions, tables and commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from record import SECTIONS, SKIPPED, differences

FOLDER = Path(__file__).parent
ANSWERS = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
SLOW = ("commands on a study", "coord-check")
"""Sections that train networks."""


def check(tmp_path: Path, *names: str) -> None:
    """Record sections in a process of their own, which has one thread, and compare."""
    out = tmp_path / "answers.json"
    only = [argument for name in names for argument in ("--only", name)]
    subprocess.run(
        [sys.executable, str(FOLDER / "record.py"), "--out", str(out), *only],
        check=True,
        capture_output=True,
    )
    actual = json.loads(out.read_text(encoding="utf-8"))

    if ANSWERS["environment"] != actual["environment"]:
        pytest.skip(f"recorded with other libraries or another CPU: {ANSWERS['environment']}")

    skipped = [text for text in actual.values() if isinstance(text, str) and text.startswith(SKIPPED)]
    assert [] == [
        f"{name}{line}"
        for name in names
        if actual[name] not in skipped and not str(ANSWERS[name]).startswith(SKIPPED)
        for line in differences(ANSWERS[name], actual[name])
    ]


def test_answers_are_as_recorded(tmp_path: Path) -> None:
    """Searches and suggestions are the same to the last bit, and so are the tables per tensor."""
    check(tmp_path, *(name for name in SECTIONS if name not in SLOW))


@pytest.mark.slow
def test_answers_after_training_are_as_recorded(tmp_path: Path) -> None:
    """A study of small transformers from `run` to `verify`, and `coord-check`."""
    check(tmp_path, *SLOW)


def test_a_difference_is_found() -> None:
    """A number in its last bit, a value that is gone, a number in a sentence; not words nor layout."""
    recorded = {
        "params": {"lr": 0.1},
        "trials": [1, 2],
        "warnings": ["of 3 runs 2 count", "the 4 others"],
        "printed": ["a", "b"],
    }
    now = {
        "params": {"lr": 0.1 + 2e-17},
        "trials": [1],
        "warnings": ["2 of the 3 runs count", "the 5 others"],
        "printed": ["a"],
    }

    paths = [line.partition(":")[0] for line in differences(recorded, now)]
    with_words = [line.partition(":")[0] for line in differences(recorded, now, words=True)]

    assert ["/params/lr", "/trials", "/trials/1", "/warnings/1"] == paths
    assert {"/warnings/0", "/printed"} <= set(with_words) - set(paths)
