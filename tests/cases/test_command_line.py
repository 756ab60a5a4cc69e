"""The command line as somebody meets it for the first time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import typer.main
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.cli import app

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
PLAN = ["plan", "--target", "n_params=1B", "--target", "tokens=20G", "--hp", "lr:log:1e-4:1e-2"]


def in_fresh_python(code: str) -> str:
    """What a Python process of its own prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command: str) -> None:
    """80 columns and 40 lines."""
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    lines = result.output.splitlines()

    assert 0 == result.exit_code
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_every_command_is_in_the_help() -> None:
    """With a whole sentence of its own."""
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output.splitlines()
    listed = {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in COMMANDS}

    assert COMMANDS == sorted(listed)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed.values())


@pytest.mark.parametrize("module", ["transfer_bo", "transfer_bo.cli"])
def test_the_version_is_printed(module: str) -> None:
    """By `python -m transfer_bo` as by the installed command."""
    result = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
    )

    assert f"transfer-bo {tb.__version__}\n" == result.stdout


def completions(*words: str) -> list[str]:
    """What bash is offered for the last word, by a process of its own, as the shell asks."""
    code = "import sys; sys.modules.update(torch=None, optuna=None); from transfer_bo.cli import main; main()"
    asked = {"COMP_WORDS": " ".join(("transfer-bo", *words)), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, "_TRANSFER_BO_COMPLETE": "complete_bash", **asked}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    return result.stdout.split()


def test_the_shell_completes_commands_and_options() -> None:
    """Without loading torch or Optuna."""
    assert COMMANDS == sorted(completions(""))
    assert ["suggest"] == completions("sug")
    assert ["--maximize", "--maximise"] == completions("suggest", "--maxi")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_told_how(shell: str) -> None:
    """`--show-completion` prints a script for it."""
    command = [sys.executable, "-m", "transfer_bo", "--show-completion", shell]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert "transfer-bo" in result.stdout
    assert "_TRANSFER_BO_COMPLETE" in result.stdout


def test_help_and_wrong_arguments_load_no_library() -> None:
    """Neither torch nor pandas nor Optuna is needed to say what a command takes."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from transfer_bo.cli import app\n"
        "asked = [['--version'], ['--help'], ['plan', '--help'], ['suggest'], ['suggest', 'no.toml'],\n"
        "    ['suggest', '--runs', 'r.csv', '--hp', 'lr'], ['suggest', '--runs', 'r.csv', '--target', 'x'],\n"
        "    ['diagnose', '--runs', 'r.csv', '--picture', 'p.xyz'], ['run', 'no.toml'],\n"
        "    ['plan', '--budget', 'much', '--target', 'n_params=1e9', '--hp', 'lr:log:1:2']]\n"
        "for arguments in asked:\n"
        "    CliRunner().invoke(app, arguments)\n"
        "print(sorted({'torch', 'pandas', 'optuna', 'gpytorch', 'matplotlib'} & set(sys.modules)))\n"
    )

    assert "[]\n" == in_fresh_python(code)


def test_a_small_budget_without_a_unit_is_one_of_target_runs() -> None:
    """`--budget 4` is read as 4 runs at the target, and that is said; with the unit nothing is."""
    guessed = CliRunner().invoke(app, [*PLAN, "--budget", "4", "--json"])
    named = CliRunner().invoke(app, [*PLAN, "--budget", "4", "--unit", "runs", "--json"])

    assert named.stdout == guessed.stdout
    assert "4 runs at the target" in guessed.stderr
    assert "" == named.stderr


def test_numbers_may_have_suffixes() -> None:
    """In targets, budgets and speeds."""
    plain = ["plan", "--target", "n_params=1e9", "--target", "tokens=2e10", "--hp", "lr:log:1e-4:1e-2"]
    short = CliRunner().invoke(app, [*PLAN, "--budget", "2000P", "--json"])
    long = CliRunner().invoke(app, [*plain, "--budget", "2e18", "--unit", "flop", "--json"])

    assert 0 == short.exit_code
    assert long.stdout == short.stdout


@pytest.fixture(scope="module")
def python_study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The storage of a study that was made in Python, without a study file."""
    url = f"sqlite:///{tmp_path_factory.mktemp('study') / 'study.db'}"
    ladder = tb.Ladder([tb.Scale(width=64, tokens=1e6), tb.Scale(width=128, tokens=1e6)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=512, tokens=4e6), seed=0)
    study = optuna.create_study(storage=url, study_name="mine", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr, decay = (trial.suggest_float(name, 1e-4, 1e-1, log=True) for name in ("lr", "decay"))
        return 2 + 8 / scale.width**0.5 + 10 * (lr - 0.01) ** 2 + decay

    study.optimize(tb.objective(objective), n_trials=6)
    return url


def test_a_study_made_in_python_needs_no_study_file(python_study: str, tmp_path: Path) -> None:
    """HPs, target and coordinates are in the study."""
    page = tmp_path / "r.html"
    report = CliRunner().invoke(app, ["report", "--storage", python_study, "--out", str(page)])
    diagnose = CliRunner().invoke(app, ["diagnose", "--storage", python_study])

    assert 0 == report.exit_code, report.stderr
    assert "<title>mine</title>" in page.read_text()
    assert 2 == diagnose.exit_code
    assert "3 are needed" in diagnose.stderr


@pytest.mark.parametrize("name", [[], ["--study", "mine"]])
def test_a_name_is_needed_only_where_there_are_several(python_study: str, name: list[str]) -> None:
    """The one study of a storage is found."""
    result = CliRunner().invoke(app, ["status", "--storage", python_study, *name])

    assert 0 == result.exit_code, result.stderr
    assert "width 64" in result.stdout
    assert "target runs spent" in result.stdout


def test_the_target_of_a_python_study_may_be_another(python_study: str) -> None:
    """What would be set at a scale that the study was not made for."""
    flags = ["suggest", "--storage", python_study, "--target", "width=2k", "--target", "tokens=4M", "--json"]
    result = CliRunner().invoke(app, flags)

    assert 0 == result.exit_code, result.stderr
    assert '"width": 2000' in result.stdout


@pytest.mark.parametrize("command", ["status", "report", "suggest", "diagnose"])
@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "transfer-bo "),
        (["--storage", "sqlite:///nowhere/x.db"], "nowhere"),
        (["--storage", "nonsense"], "nonsense"),
        (["--storage", "URL", "--study", "other"], "'mine'"),
    ],
)
def test_a_study_that_is_not_there(command: str, flags: list[str], word: str, python_study: str) -> None:
    """One sentence with the address or the names there are, exit code 2, nothing written."""
    result = CliRunner().invoke(app, [command, *(python_study if f == "URL" else f for f in flags)])

    assert 2 == result.exit_code
    assert word in result.stderr
    assert 1 == result.stderr.count("\n")


def test_a_picture_of_a_suggestion(tmp_path: Path) -> None:
    """Of a table of runs as of a study, in a folder made for it; another ending is refused at once."""
    runs = Path(__file__).parents[1] / "data" / "exports" / "tensorboard.csv"
    common = ["suggest", "--runs", str(runs), "--axis", "width", "--hp", "lr:log", "--loss", "loss"]
    common += ["--target", "width=256", "--no-held-out"]
    drawn = CliRunner().invoke(app, [*common, "--picture", str(tmp_path / "new" / "a.svg")])
    refused = CliRunner().invoke(app, [*common, "--picture", str(tmp_path / "a.gif")])

    assert 0 == drawn.exit_code, drawn.output
    assert "<svg" in (tmp_path / "new" / "a.svg").read_text()
    assert 2 == refused.exit_code
    assert 1 == len(list(tmp_path.iterdir()))
