"""The first study file: written by a command, accepted by the others, known to editors."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from transfer_bo.cli import app
from transfer_bo.runners.task import make_task
from transfer_bo.study_file import load_study_file

KINDS = ["text", "model", "command"]


def init(folder: Path, kind: str) -> Path:
    """A new study file."""
    path = folder / f"my {kind}.toml"
    result = CliRunner().invoke(app, ["init", str(path), "--kind", kind])

    assert 0 == result.exit_code, result.stderr
    assert f"transfer-bo run {shlex.quote(str(path))}" in result.stdout
    return path


def study_schema() -> dict[str, Any]:
    """The printed JSON schema."""
    schema: dict[str, Any] = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    return schema


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_study_file_is_accepted(tmp_path: Path, kind: str) -> None:
    """By the reader, by the editor's schema, and by what trains; its name is the file's."""
    path = init(tmp_path, kind)
    study_file = load_study_file(path)
    jsonschema.validate(tomllib.loads(path.read_text()), study_schema())

    assert f"my_{kind}" == study_file.name
    assert (kind == "text") == (study_file.command is None)
    if kind != "text":  # text needs the package that holds it
        assert study_file.proxies == list(make_task(study_file).ladder.proxies)


def test_every_key_is_explained(tmp_path: Path) -> None:
    """Whoever reads the file learns of each key there is."""
    keys = {
        key
        for name, section in study_schema()["$defs"].items()
        if name != "CommandSection"
        for key in section["properties"]
    }
    text = init(tmp_path, "text").read_text()

    assert set() == {key for key in keys if key not in text}


SECTIONS = ("adapter", "training")
"""A section that must be left out, and the next one."""


def test_comments_hold_the_defaults(tmp_path: Path) -> None:
    """A key behind a # that is no example ("e.g.") has the value that it has when it is left out."""
    path = init(tmp_path, "text")
    lines = path.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("name"))
    adapter, after = (next(i for i, x in enumerate(lines) if x.startswith(f"# [{n}]")) for n in SECTIONS)
    del lines[adapter:after]  # a section that cannot be empty
    is_key = re.compile(r"# (\w+ = |\[(model|training|parametrization|verify)\])")
    is_skipped = re.compile(r"# (types|depth|depth_knots|global_share|prior|loss) = ")  # of sections left out
    full = tmp_path / "full.toml"
    full.write_text(
        "\n".join(
            line[2:] if is_key.match(line) and not is_skipped.match(line) and "e.g." not in line else line
            for line in lines[start:]
        )
    )
    plain, complete = load_study_file(path), load_study_file(full)

    assert len(full.read_text()) < len(path.read_text()) - 20
    assert plain.model_dump(exclude={"path", "run"}) == complete.model_dump(exclude={"path", "run"})
    assert (plain.out, plain.checkpoints) == (complete.out, complete.checkpoints)
    assert plain.run == complete.run.model_copy(update={"out": None, "checkpoints": None})


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_replaced(tmp_path: Path, kind: str) -> None:
    """A second time it is refused, the file named, and both stay as they are."""
    path = init(tmp_path, kind)
    before = {file: file.read_text() for file in tmp_path.iterdir()}
    result = CliRunner().invoke(app, ["init", str(path), "--kind", "model"])

    assert 2 == result.exit_code
    assert str(path) in result.stderr
    assert before == {file: file.read_text() for file in tmp_path.iterdir()}


def test_the_schema_knows_mistakes(tmp_path: Path) -> None:
    """A misspelt key, a value of another type, a missing section."""
    good = tomllib.loads(init(tmp_path, "command").read_text())
    bad = [
        {**good, "buget": {}},
        {**good, "seed": "zero"},
        {key: value for key, value in good.items() if key != "ladder"},
        {key: value for key, value in good.items() if key != "command"},
    ]

    for content in bad:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, study_schema())


def test_the_model_of_the_template_trains(tmp_path: Path) -> None:
    """A trial at another scale than the base, a few steps long, ends with a finite loss."""
    init(tmp_path, "model")
    trial = {
        "seed": 1,
        "scale": {"width": 64, "depth": 4, "batch": 16, "tokens": 1024},
        "hps": {"lr": 0.01, "weight_decay": 0.1, "lr.embedding": 2.0},
    }
    (tmp_path / "input.json").write_text(json.dumps(trial))
    environment = os.environ | {"TRANSFER_BO_OUTPUT": str(tmp_path / "output")}
    subprocess.run([sys.executable, "train.py", "input.json"], cwd=tmp_path, check=True, env=environment)
    reports = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]

    assert "progress" not in reports[-1]
    assert 0 < reports[-1]["loss"] < 10
