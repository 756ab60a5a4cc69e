"""One answer from runs: the axis that grows is found, other HPs are subtracted; and the command."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from transfer_bo import Scale
from transfer_bo.attributes import SCALE_ATTR, SETTINGS_ATTR
from transfer_bo.cli import app
from transfer_bo.diagnostics.diagnose import COST, Diagnosis, diagnose
from transfer_bo.diagnostics.laws import EXPONENTS
from transfer_bo.dimension import Dimension
from transfer_bo.display.diagnosis_figures import draw_diagnosis
from transfer_bo.display.diagnosis_text import show_diagnosis
from transfer_bo.errors import DiagnosticError, NoRunsError, TransferError
from transfer_bo.records import Outcome, Run, StudySettings

LR = Dimension("lr", "log", 2.0**-9, 2.0**-1)
DECAY = Dimension("weight_decay", "log", 1e-3, 1.0)
KIND = Dimension("activation", "categorical", choices=("relu", "gelu"))
WIDTHS = (16, 32, 64, 128)


def searched(
    widths: tuple[int, ...] = WIDTHS, count: int = 60, other: float = 0.1, noise: float = 0.002, sign: int = 1
) -> list[Run]:
    """A random search: the best lr falls as n^-1/2 octaves do, the other HPs act alike at every width."""
    rng = np.random.default_rng(0)
    runs = []
    for n in widths:
        for _ in range(count):
            z = rng.uniform(-9, -1)
            decay = 10 ** rng.uniform(-3, 0)
            kind = str(rng.choice(["relu", "gelu"]))
            loss = 2 + 4 * n**-0.5 + 0.03 * (z + 6 - 8 * n**-0.5) ** 2
            loss += other * (np.log10(decay) + 1.5) ** 2 + other * (kind == "gelu")
            loss *= np.exp(noise * rng.standard_normal())
            params = {"lr": 2.0**z, "weight_decay": decay, "activation": kind}
            scale = Scale(width=n, tokens=1e6)
            runs.append(Run(len(runs), params, scale, Outcome.FINISHED, sign * float(loss)))
    return runs


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid over lr at four widths, as a CSV."""
    rows = [
        (n, 2.0**z, 2 + 4 * n**-0.5 + 0.03 * (z + 6 - 8 * n**-0.5) ** 2)
        for n in WIDTHS
        for z in np.arange(-9.0, -0.9, 0.5)
    ]
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    pd.DataFrame(rows, columns=["width", "lr", "loss"]).to_csv(path, index=False)
    return path


def test_other_hps_are_subtracted() -> None:
    """Of a search over three HPs the optimum of lr at each width comes back, and what matters comes first."""
    found = diagnose(searched(), [LR, DECAY, KIND], draws=40)
    rates = found.rates["lr"]

    assert "width" == found.axis
    for n, at in zip(rates.sizes, rates.optimum, strict=True):
        assert at.low / 1.1 <= 2 ** (-6 + 8 * n**-0.5) <= at.high * 1.1
    assert rates.drift.holds(8 * (128**-0.5 - 16**-0.5))
    assert found.importance is not None
    assert "lr" == found.importance.table("fANOVA").index[0]
    assert "important" == found.importance.verdict["lr"]


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    """Of a small search over three HPs."""
    return diagnose(searched(count=25), [LR, DECAY, KIND], draws=2)


def test_the_panels_of_the_figure_do_not_overlap(found: Diagnosis) -> None:
    """A row for each HP with rates and one for importance, each beside or above the others."""
    figure = draw_diagnosis(found)
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]

    assert 2 * len(found.rates) + 1 == len(boxes)
    for one, other in itertools.combinations(boxes, 2):
        assert not (
            min(one.x1, other.x1) > max(one.x0, other.x0) + 1
            and min(one.y1, other.y1) > max(one.y0, other.y0) + 1
        )


def test_what_the_runs_do_not_determine_is_called_so() -> None:
    """An HP without influence: no rate at an end of the fit's grid, and no nan in the text."""
    runs = searched(other=0.0, count=25)
    found = diagnose(runs, [LR, DECAY, KIND], draws=20)
    shown = io.StringIO()
    show_diagnosis(found, Console(file=shown, width=80))
    numbers = [value for of in found.rates.values() for value in (of.alpha.value, of.beta.value)]

    assert "undecided" == found.rates["weight_decay"].verdict
    assert not {EXPONENTS[0], EXPONENTS[-1]} & set(numbers)
    assert "undetermined" in shown.getvalue()
    assert "nan" not in shown.getvalue()
    assert "inf" not in shown.getvalue()


def test_importance_has_one_verdict_for_each_hp(found: Diagnosis) -> None:
    """The printed table has a row for each HP, the most important first, and fits 80 columns."""
    shown = io.StringIO()
    show_diagnosis(found, Console(file=shown, width=80))
    lines = shown.getvalue().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Importance"))
    rows = [line.split() for line in lines[start + 2 : start + 5]]

    assert found.importance is not None
    assert list(found.importance.table().index) == [row[0] for row in rows]
    assert [found.importance.verdict[row[0]] for row in rows] == [row[-1] for row in rows]
    assert {"lr": "important"}.items() <= dict(found.importance.verdict).items()


def test_larger_may_be_better() -> None:
    """Maximizing the negative loss gives the same optima."""
    least = diagnose(searched(other=0), [LR], draws=2).rates["lr"]
    most = diagnose(searched(other=0, sign=-1), [LR], maximize=True, draws=2).rates["lr"]

    for one, other in zip(least.optimum, most.optimum, strict=True):
        assert np.log2(one.value) == pytest.approx(np.log2(other.value), abs=0.3)


def test_axes_that_grow_together_become_a_cost() -> None:
    """Where no axis has three levels by itself, the cost of a run is the size, and that is said."""
    runs = [
        Run(
            i,
            {"lr": 2.0**z},
            Scale(width=n, depth=n // 8),
            Outcome.FINISHED,
            2 + n**-0.5 + 0.03 * (z + 4) ** 2,
        )
        for i, (n, z) in enumerate((n, z) for n in WIDTHS for z in range(-8, 0))
    ]
    found = diagnose(runs, [LR], draws=2)

    assert COST == found.axis
    assert "cost of a run" in found.notes[0]


def test_few_runs_leave_importance_alone() -> None:
    """Too few runs to tell HPs apart: a note says how many are needed."""
    runs = [*searched(widths=(16, 32, 64, 128, 256), count=5), *searched(widths=(512,), count=12)]
    found = diagnose(runs, [LR, DECAY, KIND], draws=2)

    assert {} == found.rates
    assert any("37 finished runs" in note and "3 HPs" in note for note in found.notes)


@pytest.mark.parametrize(
    ("runs", "axis", "error", "value"),
    [
        ([], None, NoRunsError, ""),
        (searched(count=3), "depth", DiagnosticError, "'depth'"),
        (searched(widths=(16, 32), count=3), None, DiagnosticError, "2 sizes along 'width'"),
    ],
)
def test_bad_input_is_named(
    runs: list[Run], axis: str | None, error: type[TransferError], value: str
) -> None:
    """Each lack has an error that names the value at fault."""
    with pytest.raises(error) as caught:
        diagnose(runs, [LR, DECAY, KIND], axis=axis)

    assert value in str(caught.value)


def test_command_on_a_table(table: Path, tmp_path: Path) -> None:
    """A table of runs gives a verdict, its numbers as JSON, and a picture."""
    picture = tmp_path / "d.svg"
    flags = ["diagnose", "--runs", str(table), "--axis", "width", "--hp", "lr:log", "--loss", "loss"]
    shown = CliRunner().invoke(app, [*flags, "--no-left-out", "--picture", str(picture)])
    plain = CliRunner().invoke(app, [*flags, "--no-left-out", "--json"])
    found = json.loads(plain.stdout)

    assert (0, 0) == (shown.exit_code, plain.exit_code), shown.output
    assert "Transfer of lr: " in shown.stdout
    assert picture.read_text().startswith("<?xml")
    assert found["rates"]["lr"]["beta"]["value"] == pytest.approx(0.5, rel=0.05)


def test_command_on_a_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stored study gives a verdict and leaves a picture in its folder."""
    study = optuna.create_study()
    scales = tuple(Scale(width=n) for n in WIDTHS)
    settings = StudySettings(scales, (0, 1, 2, 3), Scale(width=1024), tuple(float(n) for n in WIDTHS))
    study.set_user_attr(SETTINGS_ATTR, settings.to_json())
    for n in WIDTHS:
        for z in np.arange(-9.0, -0.9, 1.0):
            loss = 2 + 4 * n**-0.5 + 0.03 * (z + 6 - 8 * n**-0.5) ** 2
            trial = optuna.trial.create_trial(
                params={"lr": 2.0**z},
                distributions={"lr": optuna.distributions.FloatDistribution(2.0**-9, 0.5, log=True)},
                value=float(loss),
                user_attrs={SCALE_ATTR: {"width": n}},
            )
            study.add_trial(trial)
    monkeypatch.setattr("transfer_bo.study_file.load_study_file", lambda path: SimpleNamespace(out=tmp_path))
    monkeypatch.setattr("transfer_bo.cli.opened.as_stored", lambda study_file: study_file)
    monkeypatch.setattr("transfer_bo.store.open_study.open_study", lambda study_file: study)
    result = CliRunner().invoke(app, ["diagnose", "study.toml"])

    assert 0 == result.exit_code, result.output
    assert "Each of 36 runs predicted from all others" in result.stdout
    assert "Largest scales left out in turn" in result.stdout
    assert "Transfer of lr: " in result.stdout
    assert "No importance: Importance compares HPs" in result.stdout
    assert (tmp_path / "diagnosis.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "none is given"),
        (["--runs", "nowhere.csv"], "nowhere.csv"),
        (["--runs", "x.csv", "--picture", "p.xyz"], "no known ending"),
        (["nowhere.toml"], "nowhere.toml"),
    ],
)
def test_command_speaks_of_mistakes(flags: list[str], message: str) -> None:
    """One sentence, exit code 2."""
    result = CliRunner().invoke(app, ["diagnose", *flags])

    assert 2 == result.exit_code
    assert message in result.output
