"""Whatever command a message tells the user to run can be run as it is printed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from torch import nn
from typer.testing import CliRunner

import transfer_bo
import transfer_bo as tb
from transfer_bo.cli import app
from transfer_bo.cli.common import STORAGE
from transfer_bo.errors import ParametrizationError, SearchSpaceError, StudyError
from transfer_bo.runners.warm_start import refuse_missing_source_runs
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
PROGRAM: Any = typer.main.get_command(app)
VALUE = "\0"
"""Stands for a value in an f-string."""
HINT = re.compile(r"transfer-bo (?P<arguments>[^\n]*)")
MANUALS = ["README.md", "CONTRIBUTING.md", *(str(p) for p in Path("docs").rglob("*.md"))]


def check(hint: str) -> list[str]:
    """The arguments of a hint, after its program has parsed them without complaint."""
    found = HINT.search(hint)
    assert found is not None, hint
    arguments = shlex.split(found["arguments"])
    if arguments[0] in {option for param in PROGRAM.params for option in param.opts}:
        return arguments
    name, command, rest = PROGRAM.resolve_command(PROGRAM.context_class(PROGRAM), arguments)
    command.make_context(name, rest)
    return arguments


@pytest.fixture
def spaced(write_study: WriteStudy, tmp_path: Path) -> Path:
    """A study file whose path a shell would take apart."""
    folder = tmp_path / "a folder; with 'quotes'"
    folder.mkdir()
    path = write_study(("[budget]", '[[past]]\nruns = "old.csv"\n[budget]'))
    return path.rename(folder / "tiny.toml")


def test_a_study_that_was_not_started_says_how_to_start_it(spaced: Path) -> None:
    """By its file, wherever that is; so does a worker that comes before the source runs."""
    study_file = load_study_file(spaced)
    for refuse in (
        lambda: open_study(study_file),
        lambda: refuse_missing_source_runs(study_file, None),
    ):
        with pytest.raises(StudyError) as caught:
            refuse()

        assert ["run", str(spaced)] == check(str(caught.value))


@pytest.mark.parametrize(
    ("typed", "environment", "expected"),
    [
        (["run", "{path}"], {}, ["run", "{path}"]),
        (["verify", "{path}", "--replicate", "3"], {}, ["verify", "{path}", "--replicate", "3"]),
        (["worker", "{path}"], {}, ["worker", "{path}"]),
        (["worker", "{path}", "--workers", "2"], {}, ["worker", "{path}", "--workers", "2"]),
        (
            ["worker", "{path}", "--storage", "sqlite:////a b.db"],
            {},
            ["worker", "{path}", "--storage", "sqlite:////a b.db"],
        ),
        (["worker", "{path}"], {STORAGE: "postgresql://me:secret@host/db"}, ["worker", "{path}"]),
        (["worker", "{path}", "--storage", "postgresql://me:secret@host/db"], {}, None),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    typed: list[str],
    environment: dict[str, str],
    expected: list[str] | None,
    spaced: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the options that it had, but for a password."""

    def interrupt(*arguments: object, **options: object) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    for name in ("run_search", "join_search", "run_verification"):
        monkeypatch.setattr(f"transfer_bo.runners.study_runner.{name}", interrupt)
    monkeypatch.setattr("transfer_bo.runners.forkserver.prepare", lambda: None)
    monkeypatch.setattr("transfer_bo.cli.opened.as_stored", lambda study_file: study_file)  # no server here
    arguments = [word.replace("{path}", str(spaced)) for word in typed]

    result = CliRunner().invoke(app, arguments, env={"TRANSFER_BO_STORAGE": None, **environment})

    assert 130 == result.exit_code
    assert "secret" not in result.output
    if expected is None:
        assert HINT.search(result.output) is None
    else:
        assert [word.replace("{path}", str(spaced)) for word in expected] == check(result.output)


def literals() -> list[str]:
    """Hints in the package's messages that hold no value."""
    texts = []
    for path in Path(transfer_bo.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else VALUE for part in node.values]
                texts.append("".join(map(str, parts)))
    return [match.group() for text in texts for match in HINT.finditer(text) if VALUE not in match.group()]


def test_literal_hints_can_be_parsed() -> None:
    """Placeholders such as STUDY.toml stand for what the user has."""
    hints = literals()

    assert hints
    for hint in hints:
        check(re.sub(r"[.;)]+$", "", hint))


def commands_of(manual: str) -> list[str]:
    """The command lines in a manual's code blocks, lines that end with a backslash joined."""
    text = Path(manual).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0] for line in lines if re.match(r"\$? ?transfer-bo ", line)]


@pytest.mark.parametrize("manual", MANUALS)
def test_commands_in_the_manuals_can_be_parsed(manual: str) -> None:
    """No option that does not exist, none forgotten that is needed."""
    for line in commands_of(manual):
        if "..." not in line:
            check(line)


@pytest.mark.parametrize("build", [nn.Linear(8, 16), None, "model.py:build"])
def test_a_model_in_the_place_of_its_builder(build: Any) -> None:
    """It is not called with a scale."""
    with pytest.raises(ParametrizationError, match="give a function"):
        tb.parametrize(build, {"width": 16}, {"width": 32})


@pytest.mark.parametrize("value", ["1e-2", None, [1e-2]])
def test_a_value_of_an_hp_that_is_no_number(value: Any) -> None:
    """As a configuration file may hold it."""
    p = tb.parametrize(lambda scale: nn.Linear(8, scale.width), {"width": 16}, {"width": 32})

    with pytest.raises(SearchSpaceError, match="'lr'"):
        p.param_groups(nn.Linear(8, 32), {"lr": value})
