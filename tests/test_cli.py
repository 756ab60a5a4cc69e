"""The command line: one sentence and exit code 2 for bad input, nothing written; commands that read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import typer
from typer.testing import CliRunner

from transfer_bo import Outcome, Scale
from transfer_bo.cli import app
from transfer_bo.cli.common import interruptible
from transfer_bo.runners.objective import objective
from transfer_bo.sampler import TransferSampler
from transfer_bo.scale import Ladder
from transfer_bo.store.open_study import create_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]

BAD: dict[str, tuple[tuple[str, str], str]] = {  # what is replaced by what; what the sentence must name
    "unknown key": (("trials = 4", "trails = 4"), "budget.trails = 4"),
    "missing target": (("[ladder.target]", "[[ladder.rungs]]"), "ladder.target is missing"),
    "no cheaper rung": (("depth = 2\nbatch = 2\ntokens = 1024", "depth = 1\nbatch = 2\ntokens = 32"),
                        "ladder.target = {'width': 32, 'depth': 1, 'batch': 2, 'tokens': 32}"),
    "low >= high": (("low = 0.001", "low = 0.2"), "HP 'lr': low = 0.2, high = 0.1"),
    "non-positive scale": (("width = 16", "width = 0"), "ladder.rungs[0].width = 0"),
    "missing text": (('"text"', '"nowhere"'), "data.source = 'nowhere'"),
    "short text": (('"text"', '"short"'), "data.source = 'short'"),
    "short for the context": (("context = 16", "context = 4000"), "ladder.rungs[0].tokens = 512"),
    "text that is no text": (('"text"', '"binary"'), "data.source = 'binary'"),
    "storage": (("trials = 4", 'trials = 4\n[run]\nstorage = "sqlite:///no/x.db"'), "run.storage = 'sqlite:///no"),
    "out": (("trials = 4", 'trials = 4\n[run]\nout = "tiny.toml/x"'), "run.out = 'tiny.toml/x'"),
    "unknown group": (('"lr.embedding"', '"lr.embeding"'), 'space."lr.embeding"'),
    "unknown branch": (('"lr.embedding"', '"residual.embedding"'), 'space."residual.embedding"'),
    "unknown rule": (("[space]", '[parametrization]\nrule = "nonsense"\n[space]'), "rule = 'nonsense'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["run", "verify"])
def test_bad_input_is_refused_in_one_sentence(
    command: str, case: str, write_study: WriteStudy, tmp_path: Path
) -> None:
    """Exit code 2; file, key and value named; no folder, no database."""
    replacement, named = BAD[case]
    path = write_study(replacement)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "a.txt").write_text("too short")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a.txt").write_bytes(b"\x00\xff")
    before = sorted(tmp_path.rglob("*"))

    result = CliRunner().invoke(app, [command, str(path)])

    assert 2 == result.exit_code, result.output
    assert "" == result.stdout
    assert result.stderr.startswith(f"{path}: ")
    assert named in result.stderr
    assert 1 == result.stderr.count("\n")
    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize("command", ["suggest", "verify", "report", "status"])
def test_a_study_that_never_ran_is_said_so(command: str, write_study: WriteStudy, tmp_path: Path) -> None:
    """The sentence names the command that starts it; nothing is written."""
    path = write_study()
    before = sorted(tmp_path.rglob("*"))

    result = CliRunner().invoke(app, [command, str(path)])

    assert 2 == result.exit_code
    assert f"transfer-bo run {path}" in result.stderr
    assert before == sorted(tmp_path.rglob("*"))


def test_the_installed_command_shows_no_traceback(write_study: WriteStudy, tmp_path: Path) -> None:
    """The same through a real process, from another folder."""
    path = write_study(("width = 16", "width = -16"))

    result = subprocess.run(
        [sys.executable, "-m", "transfer_bo.cli", "run", str(path)],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )

    assert (2, "") == (result.returncode, result.stdout)
    assert f"{path}: ladder.rungs[0].width = -16: it should be greater than 0.\n" == result.stderr
    assert not (tmp_path / "runs").exists()


def search(path: Path, losses: Callable[[Scale, float], float] = lambda scale, lr: 1 + lr) -> None:
    """Search in this process with a formula in the place of training."""
    study_file = load_study_file(path)
    ladder = Ladder(study_file.proxies)
    sampler = TransferSampler(ladder=ladder, target=study_file.target, seed=0, budget=1e9)
    study = create_study(study_file, study_file.definition(), sampler=sampler)

    @objective
    def train(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        return losses(scale, study_file.hp_space.suggest(trial)["lr"])

    study.optimize(train, n_trials=2)


def test_status_shows_every_rung(write_study: WriteStudy) -> None:
    """Outcomes and best loss per rung, and what is spent."""
    path = write_study()
    search(path, lambda scale, lr: float("nan") if scale.width == 32 else 2.5)

    result = CliRunner().invoke(app, ["status", str(path)])

    assert 0 == result.exit_code
    assert ["width", "16", "1", "2.5", "0"] == next(
        line for line in result.stdout.splitlines() if "16" in line
    ).split()[:5]
    assert "target runs spent" in result.stdout


def test_suggest_prints_a_table_or_json(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both say the same; JSON stands alone on standard output."""
    path = write_study()
    search(path)

    class Loss:
        mean = 2.0

        def interval(self, level: float) -> tuple[float, float]:
            return 1.5, 2.5

    class Suggestion:
        target = Scale(width=32)
        params = {"lr": 0.02}  # noqa: RUF012
        predicted_loss = Loss()
        undetermined = ()
        divergence_probability = None
        provenance = {}  # noqa: RUF012
        baselines = {}  # noqa: RUF012
        warnings = ["The target is far."]  # noqa: RUF012

        def interval(self, level: float) -> dict[str, tuple[float, float]]:
            return {"lr": (0.01, 0.04)}

        def to_json(self) -> dict[str, Any]:
            return {"params": self.params}

    monkeypatch.setattr("transfer_bo.projection.suggest", lambda study, target: Suggestion())

    table = CliRunner().invoke(app, ["suggest", str(path)])
    plain = CliRunner().invoke(app, ["suggest", str(path), "--json"])

    assert (0, 0) == (table.exit_code, plain.exit_code)
    assert "0.01 to 0.04" in table.stdout
    assert "1.5 to 2.5" in table.stdout
    assert "Note: The target is far." in table.stdout
    assert {"params": {"lr": 0.02}} == json.loads(plain.stdout)


def test_sigterm_ends_a_command_like_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that is taken away leaves a study that can go on."""
    with pytest.raises(typer.Exit) as caught, interruptible("transfer-bo run my.toml"):
        os.kill(os.getpid(), signal.SIGTERM)

    assert 130 == caught.value.exit_code
    assert "go on with: transfer-bo run my.toml" in capsys.readouterr().err
    assert signal.SIG_DFL == signal.getsignal(signal.SIGTERM)


def test_outcome_words_are_stable() -> None:
    """They are shown, stored and searched for; renaming one would orphan old studies."""
    assert [
        "finished", "pruned", "diverged", "out_of_memory", "preempted", "error", "running", "waiting"
    ] == list(Outcome)  # fmt: skip


def test_a_search_of_errors_only_ends_with_exit_code_1(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the last error and does not ask for a verification."""
    path = write_study()

    def fail(scale: Scale, lr: float) -> float:
        raise ValueError(f"no such layer at {lr}")

    search(path, fail)
    monkeypatch.setattr("transfer_bo.runners.study_runner.run_search", lambda study_file, console: True)
    monkeypatch.setattr("transfer_bo.runners.forkserver.prepare", lambda: None)

    result = CliRunner().invoke(app, ["run", str(path)])

    assert 1 == result.exit_code, result.output
    assert "ValueError: no such layer" in result.stderr
    assert "verify" not in result.output


def test_a_table_given_as_study_file_is_recognized(tmp_path: Path) -> None:
    """The sentence names the option that was meant."""
    result = CliRunner().invoke(app, ["suggest", str(tmp_path / "runs.csv")])

    assert 2 == result.exit_code
    assert f"--runs {tmp_path / 'runs.csv'}" in result.stderr


def test_h_is_help() -> None:
    """As in most commands."""
    assert 0 == CliRunner().invoke(app, ["run", "-h"]).exit_code
