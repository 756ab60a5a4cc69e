"""Trials in trackers: one that is down loses nothing, and exports of real ones are read as they are."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest

import transfer_bo as tb
from transfer_bo.errors import TransferError
from transfer_bo.integrations import dashboard, trackers
from transfer_bo.run_table.suggest import fit_runs

EXPORTS = Path(__file__).parents[1] / "data" / "exports"


@tb.objective
def objective(trial: optuna.Trial) -> float:
    """The first trial finishes, the second diverges, the third is pruned, then all finish."""
    scale = LADDER.suggest(trial)
    lr = trial.suggest_float("lr", 1e-4, 0.5, log=True)
    trial.report(3.0, 500)
    if trial.number == 1:
        raise tb.Diverged("the loss is nan")
    if trial.number == 2:
        raise optuna.TrialPruned
    return scale.width**-0.5 + 0.1 * abs(math.log2(lr) + 6)


LADDER = tb.Ladder([tb.Scale(width=32), tb.Scale(width=64)])


def run(n_trials: int, *loggers: Any) -> optuna.Study:
    """A study of a few trials with callbacks."""
    sampler = tb.TransferSampler(ladder=LADDER, target=tb.Scale(width=256), seed=0)
    study = optuna.create_study(study_name="s", sampler=sampler, pruner=optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=n_trials, callbacks=list(loggers))
    return study


class Library:
    """Stands for a tracker's library, which may be down."""

    def __init__(self) -> None:
        self.is_down = False
        self.runs: list[trackers.TrackedRun] = []

    def write(self, run: trackers.TrackedRun) -> None:
        """Keep it, or fail."""
        if self.is_down:
            raise ConnectionError("no route to https://user:secret@host\nand so on")
        self.runs.append(run)


def test_each_trial_is_logged_once() -> None:
    """HPs, scale, outcome, loss and curve, under a name that does not change."""
    library = Library()
    logger = trackers.TrialLogger(library.write, "Library")
    study = run(3, logger)
    remaining = logger.log(study)
    first, diverged, pruned = library.runs

    assert 0 == remaining
    assert ["s-0000", "s-0001", "s-0002"] == [logged.name for logged in library.runs]
    assert {"lr", "width", "outcome"} == set(first.settings)
    assert study.trials[0].value == first.metrics["loss"]
    assert {500: 3.0} == first.curve
    assert ("diverged", True) == (diverged.settings["outcome"], math.isnan(diverged.metrics["loss"]))
    assert ("pruned", False) == (pruned.settings["outcome"], "loss" in pruned.metrics)


def test_a_tracker_that_is_down_loses_nothing() -> None:
    """One warning, no password in it; the search ends as without a tracker, and all is logged later."""
    library = Library()
    library.is_down = True
    logger = trackers.TrialLogger(library.write, "Library")
    with pytest.warns(UserWarning, match="Library") as caught:
        study = run(3, logger)
    library.is_down = False
    logger.log(study)

    assert 1 == len(caught)
    assert "secret" not in str(caught[0].message)
    assert [trial.params for trial in run(3).trials] == [trial.params for trial in study.trials]
    assert [0, 1, 2] == [logged.number for logged in library.runs]


def test_it_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first trial that ends after the tracker is back."""
    library = Library()
    logger = trackers.TrialLogger(library.write, "Library")
    study = run(2)
    library.is_down = True
    with pytest.warns(UserWarning, match="Library"):
        logger(study, study.trials[0])
    library.is_down = False
    logger(study, study.trials[1])
    early = len(library.runs)
    monkeypatch.setattr(trackers.time, "monotonic", lambda: 1e12)
    logger(study, study.trials[1])

    assert (0, [0, 1]) == (early, [logged.number for logged in library.runs])


@pytest.mark.parametrize("make", [trackers.tensorboard, trackers.wandb, trackers.mlflow])
def test_a_missing_library(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named before the search starts."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)

    with pytest.raises(TransferError):
        make("x")


def quietly(logger: trackers.TrialLogger, study: optuna.Study) -> int:
    """Log all trials twice, as after a restart; warnings of the libraries themselves do not matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.log(study)
        logger._logged.clear()
        return logger.log(study)


def test_tensorboard(tmp_path: Path) -> None:
    """Its own reader finds a folder per trial, with the final loss and the curve."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    study = run(3)
    remaining = quietly(trackers.tensorboard(tmp_path), study)
    events = accumulator.EventAccumulator(str(tmp_path / "s-0000")).Reload()

    assert 0 == remaining
    assert ["s-0000", "s-0001", "s-0002"] == sorted(path.name for path in tmp_path.iterdir())
    assert [study.trials[0].value] == pytest.approx([event.value for event in events.Scalars("loss")])
    assert [(500, 3.0)] == [(event.step, event.value) for event in events.Scalars("curve")]


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it leaves a file per trial, to be sent later."""
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    remaining = quietly(trackers.wandb("p", mode="offline", dir=str(tmp_path)), run(2))

    assert 0 == remaining
    assert {"run-s-0000.wandb", "run-s-0001.wandb"} == {path.name for path in tmp_path.rglob("*.wandb")}


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run per trial in a file store, which `suggest_from_runs` reads as `search_runs` gives it."""
    client = pytest.importorskip("mlflow.tracking", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    study = run(6)
    uri = tmp_path.as_uri()
    remaining = quietly(trackers.mlflow("e", uri), study)
    found = client.MlflowClient(uri).get_experiment_by_name("e")
    runs = client.MlflowClient(uri).search_runs([found.experiment_id])

    assert 0 == remaining
    assert {f"s-{number:04d}" for number in range(6)} == {logged.info.run_name for logged in runs}
    assert {str(trial.params["lr"]) for trial in study.trials} == {
        logged.data.params["lr"] for logged in runs
    }


def test_a_tracker_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow without a server: the trials wait."""
    pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = run(2)
    with pytest.warns(UserWarning, match="MLflow"):
        remaining = trackers.mlflow("e", "http://127.0.0.1:9").log(study)

    assert 2 == remaining


@pytest.mark.parametrize(
    ("file", "prefix", "loss"),
    [
        ("mlflow.csv", "params.", "metrics.loss"),
        ("tensorboard.csv", "", "loss"),
        ("tensorboard.json", "", "loss"),
        ("wandb.csv", "", "loss"),
    ],
)
def test_exports_are_read_as_they_are(file: str, prefix: str, loss: str) -> None:
    """Whatever tracker wrote them, the same runs are found, the diverged and the pruned one included."""
    hps = {f"{prefix}lr": "log", f"{prefix}act": "categorical"}
    fit = fit_runs(
        str(EXPORTS / file),
        [f"{prefix}width", f"{prefix}tokens"],
        hps,
        loss,
        target={f"{prefix}width": 256, f"{prefix}tokens": 1e6},
    )
    outcomes = sorted(str(found.outcome) for found in fit.rows.runs)
    best = min((found for found in fit.rows.runs if found.loss is not None), key=lambda found: found.loss)

    assert ["diverged"] + 10 * ["finished"] + ["pruned"] == outcomes
    assert pytest.approx(0.01254, rel=1e-3) == best.params[f"{prefix}lr"]


def test_a_note_in_the_dashboard() -> None:
    """The dashboard's own reader finds the suggestion; a second note replaces the first."""
    notes = pytest.importorskip("optuna_dashboard._note", reason="needs optuna-dashboard")
    study = run(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few runs
        suggestion = tb.suggest(study)
    dashboard.save_note(study, "an earlier one")
    dashboard.save_note(study, suggestion)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    stored = notes.get_note_from_system_attrs(attrs, None)["body"]

    assert str(suggestion) in stored
    assert "an earlier one" not in stored


def test_a_missing_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named."""
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)

    with pytest.raises(TransferError):
        dashboard.save_note(None, None)
