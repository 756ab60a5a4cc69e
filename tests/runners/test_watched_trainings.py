"""The command `trajectory`: trains once, goes on where it stopped, and has a section of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transfer_bo.cli import app
from transfer_bo.report.directions import directions
from transfer_bo.runners import trajectory
from transfer_bo.runners.trajectory import TRAJECTORY_FILE, read_comparison, read_watched
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]


def run(*arguments: object) -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert 0 == result.exit_code, result.output
    return result.output


def test_command_trains_once_and_shows_in_the_report(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two widths at five learning rates; a lost line is trained again, the others are not."""
    monkeypatch.setattr(trajectory, "WINDOWS", 4)
    monkeypatch.setattr(trajectory, "INTERVALS", 4)
    study = write_study()
    first = run("trajectory", study, "--values", 5)
    out = study.parent / "runs" / "tiny"
    watched = read_watched(out)

    assert {(16, 5), (32, 5)} == {(w, sum(r.width == w for r in watched)) for w in (16, 32)}
    assert all(run.top is not None and len(run.top) == run.width for run in watched)
    assert "The best learning rate is" in first
    assert (out / "trajectory.png").exists()

    lines = (out / TRAJECTORY_FILE).read_text().splitlines()
    (out / TRAJECTORY_FILE).write_text("\n".join([lines[0], *lines[2:], lines[1][:40]]))
    trained = []
    original = trajectory._train
    monkeypatch.setattr(trajectory, "_train", lambda *args: trained.append(args[1:]) or original(*args))
    again = run("trajectory", study, "--values", 5)

    assert 1 == len(trained)
    assert first.splitlines()[-3:] == again.splitlines()[-3:]
    found = read_comparison(load_study_file(study))
    assert found is not None
    assert "<svg" in directions(found)[1]


def test_a_report_without_trajectories_has_no_section(write_study: WriteStudy) -> None:
    """Where the command never ran, or has not come far enough, nothing is shown."""
    assert read_comparison(load_study_file(write_study())) is None
    assert [] == directions(None)


@pytest.mark.parametrize(
    ("replacement", "flags", "named"),
    [
        (("width = 16", "width = 32"), (), "width 32"),
        (("lr = {", "init_std = {"), (), "no lr"),
        ((), ("--values", 4), "--values 4"),
        ((), ("--low", 0.2), "0.2"),
        ((), ("--seeds", 0), "--seeds 0"),
    ],
)
def test_bad_input_is_one_sentence(
    write_study: WriteStudy, replacement: tuple[str, str], flags: tuple[object, ...], named: str
) -> None:
    """One width only, no learning rate, too few values, an empty range, no seed: nothing is trained."""
    pieces = [replacement, ("depth = 1", "depth = 2")] if replacement and "width" in replacement[0] else []
    pieces = pieces or ([replacement] if replacement else [])
    study = write_study(*pieces)
    result = CliRunner().invoke(app, ["trajectory", str(study), *map(str, flags)])

    assert 2 == result.exit_code
    assert named in result.output
    assert 1 == len(result.output.strip().splitlines())
    assert not (study.parent / "runs").exists()
