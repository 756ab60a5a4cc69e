"""The project's own style checks find what they are for, and let the rest pass."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def check(script: str, file: Path, *options: str) -> tuple[int, str]:
    """Run a script on a file; return its exit status and what it prints."""
    command = [sys.executable, str(SCRIPTS / script), *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "" == done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("separator", "lines", "expected"),
    [("", 25, 1), ("\n", 25, 0), ("", 24, 0), ('    """\n\n    """\n', 22, 1)],
    ids=["no blank line", "blank line", "short", "blank line in a string"],
)
def test_long_functions_need_a_blank_line(tmp_path: Path, separator: str, lines: int, expected: int) -> None:
    """A body of 25 lines passes only with a blank line outside its strings."""
    file = tmp_path / "module.py"
    body = ["    x = 1\n"] * lines
    body.insert(lines // 2, separator)
    file.write_text('def f():\n    """Summary.\n\n    Details.\n    """\n' + "".join(body))

    status, output = check("check_blank_lines.py", file)

    assert expected == status
    assert bool(expected) == (f"{file}:1: f has" in output)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("told = 1\n", 1),
        ("x = 1\nx.reap\n", 2),
        ("f(still=1)\n", 1),
        ("class Process: ...\n", 1),
        ("# dearer runs\n", 1),
        ('"""One.\n\nPast\nstudies.\n"""\n', 3),
    ],
    ids=["variable", "attribute", "keyword", "class", "comment", "docstring"],
)
def test_private_vocabulary_is_listed(tmp_path: Path, code: str, line: int) -> None:
    """Each kind of name and prose is found on its line; with --report the status is 0 all the same."""
    file = tmp_path / "module.py"
    file.write_text(code)

    status, output = check("check_vocabulary.py", file)

    assert 1 == status
    assert output.startswith(f"{file}:{line}: ")
    assert (0, output) == check("check_vocabulary.py", file, "--report")


@pytest.mark.parametrize(("folder", "expected"), [("transfer_bo", 1), ("tests", 0)])
def test_vague_names_are_listed_in_the_package(tmp_path: Path, folder: str, expected: int) -> None:
    """What may be called `left` in a test has a telling name in the package."""
    file = tmp_path / folder / "module.py"
    file.parent.mkdir()
    file.write_text("left = 1\n")

    assert expected == check("check_vocabulary.py", file)[0]


def test_plain_english_passes(tmp_path: Path) -> None:
    """Names of other libraries and ordinary English are nobody's private vocabulary."""
    file = tmp_path / "module.py"
    file.write_text('import math\n\n"""Runs near the rest: as there are more."""\nx = math.floor(1.5)\n')

    assert 0 == check("check_vocabulary.py", file)[0]


def test_hooks_before_a_commit_run_what_make_lint_runs() -> None:
    """Each command of `make lint` is a hook of pre-commit; ruff's hooks get files instead of the folder."""
    root = SCRIPTS.parent
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (root / "Makefile").read_text(), re.M)
    assert recipe is not None
    commands = {line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()}
    hooks = set(re.findall(r"entry: (.*)", (root / ".pre-commit-config.yaml").read_text()))

    assert {command for command in commands if " ruff " not in command} == {
        hook for hook in hooks if " ruff " not in hook
    }
