"""Makes the saved studies in this folder (see README.md), with whichever version of the package is imported.

PYTHONPATH=<checkout> python tests/data/make.py                  # all anew; needs a good reason
python tests/data/make.py --answers                              # only what is suggested and tried next
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from typer.testing import CliRunner

import transfer_bo as tb
from transfer_bo.cli import app

sys.path.append(str(Path(__file__).parents[1] / "regression"))
from record import environment

FOLDER = Path(__file__).parent
BY_FILE = FOLDER / "by_file"
BY_API = FOLDER / "by_api"
RUNS = FOLDER / "runs.csv"

LADDER = [tb.Scale(width=32, tokens=1e5), tb.Scale(width=64, tokens=1e5), tb.Scale(width=64, tokens=4e5)]
TARGET = tb.Scale(width=256, tokens=1e6)


def loss_at(scale: tb.Scale, lr: float, decay: float, schedule: str) -> float:
    """A law in scale times a bowl; the best lr falls with width, and training breaks 3 octaves above it."""
    z = math.log2(lr) + 6 + 0.4 * math.log2(scale.width / 32)
    if z > 3:
        raise tb.Diverged("the loss is nan")

    law = 1 + (scale.width / 32) ** -0.5 + 0.5 * (scale.tokens / 1e5) ** -0.4
    noise = 0.002 * math.sin(1e4 * z)
    bowl = 0.02 * z**2 + 0.003 * math.log2(decay / 0.1) ** 2 + 0.02 * (schedule == "constant")
    return law * math.exp(bowl + noise)


def open_by_api(storage: str) -> tuple[optuna.Study, Any]:
    """The study made with the Python API, opened or begun, and its objective."""
    ladder = tb.Ladder(LADDER)
    study = optuna.create_study(
        sampler=tb.TransferSampler(ladder=ladder, target=TARGET, coordinates="raw", seed=1),
        storage=storage,
        study_name="by_api",
        pruner=optuna.pruners.NopPruner(),
        load_if_exists=True,
    )

    @tb.objective
    def objective(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        lr = trial.suggest_float("lr", 1e-4, 0.5, log=True)
        decay = trial.suggest_float("weight_decay", 1e-3, 1.0, log=True)
        loss = loss_at(scale, lr, decay, trial.suggest_categorical("schedule", ["cosine", "constant"]))

        trial.report(loss + 0.5, 500)
        if trial.number == 7:
            raise optuna.TrialPruned
        return loss

    return study, objective


def suggest_by_file(folder: Path) -> dict[str, Any]:
    """What `transfer-bo suggest --json` says of the study made with a study file."""
    result = CliRunner().invoke(
        app, ["suggest", str(folder / "study.toml"), "--json"], catch_exceptions=False
    )
    return without_versions(json.loads(result.stdout))


def suggest_by_api(folder: Path) -> dict[str, Any]:
    """What is suggested from the study made with the Python API."""
    study = optuna.load_study(study_name="by_api", storage=f"sqlite:///{folder / 'study.db'}")
    return without_versions(tb.suggest(study).to_json())


def suggest_from_table(path: Path) -> dict[str, Any]:
    """What is suggested from the table."""
    suggestion = tb.suggest_from_runs(
        str(path),
        axes=["width", "tokens"],
        hps={"lr": "log", "weight_decay": "log", "schedule": "categorical"},
        loss="loss",
        target={"width": 256, "tokens": 1e6},
        held_out=False,
    )
    return without_versions(suggestion.to_json())


def continue_by_file(folder: Path) -> list[dict[str, Any]]:
    """HPs of the next two trials of the study made with a study file, whose limit is raised by two."""
    path = folder / "study.toml"
    path.write_text(path.read_text().replace("trials = 8", "trials = 10"))
    database = f"sqlite:///{folder / 'out' / 'study.db'}"
    before = len(optuna.load_study(study_name=None, storage=database).get_trials())
    subprocess.run(
        [sys.executable, "-m", "transfer_bo.cli", "run", str(path)], check=True, capture_output=True
    )
    return [trial.params for trial in optuna.load_study(study_name=None, storage=database).trials[before:]]


def continue_by_api(folder: Path) -> list[dict[str, Any]]:
    """HPs of the next two trials of the study made with the Python API."""
    study, objective = open_by_api(f"sqlite:///{folder / 'study.db'}")
    before = len(study.get_trials())
    study.optimize(objective, n_trials=2)
    return [trial.params for trial in study.trials[before:]]


def without_versions(plain: dict[str, Any]) -> dict[str, Any]:
    """A suggestion without what differs between machines and versions: provenance, and how sentences read."""
    return {key: value for key, value in plain.items() if key not in ("provenance", "warnings")}


def make_by_file() -> None:
    """Train small transformers with the study file, and verify; nothing but its database is kept."""
    out = BY_FILE / "out"
    shutil.rmtree(out, ignore_errors=True)
    for command in ("run", "verify"):
        arguments = [sys.executable, "-m", "transfer_bo.cli", command, str(BY_FILE / "study.toml")]
        subprocess.run(arguments, check=True)
    for path in out.iterdir():
        if path.name != "study.db":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _anonymise(out / "study.db")


def make_by_api() -> None:
    """Fourteen trials, of which one is pruned and some diverge."""
    BY_API.mkdir(exist_ok=True)
    (BY_API / "study.db").unlink(missing_ok=True)
    study, objective = open_by_api(f"sqlite:///{BY_API / 'study.db'}")
    study.optimize(objective, n_trials=14)
    _anonymise(BY_API / "study.db")


def make_table() -> None:
    """Twenty-four runs at two widths and two durations; one diverged."""
    rows = []
    for i in range(24):
        scale = tb.Scale(width=32 * 2 ** (i % 2), tokens=1e5 * 4 ** (i // 2 % 2))
        lr, decay = 2.0 ** (-9 + (i * 7 % 24) / 5), 0.01 * 2.0 ** (i * 5 % 24 / 4)
        schedule = "constant" if i % 3 == 1 else "cosine"
        loss = math.nan if i == 11 else loss_at(scale, lr, decay, schedule)
        rows.append({**scale, "lr": lr, "weight_decay": decay, "schedule": schedule, "loss": loss})
    pd.DataFrame(rows).to_csv(RUNS, index=False)


def _anonymise(database: Path) -> None:
    """Take the name of this machine and its folders out of a database, and what is unused."""
    with sqlite3.connect(database) as connection:
        for table in ("trial_user_attributes", "study_user_attributes"):
            for word, by in ((socket.gethostname(), "host"), (str(FOLDER), "/data")):
                connection.execute(f"UPDATE {table} SET value_json = replace(value_json, ?, ?)", (word, by))
    connection.execute("PRAGMA page_size = 1024")
    connection.execute("VACUUM")
    connection.close()


def answers() -> dict[str, Any]:
    """Suggestions, and what comes next in a copy of each study."""
    suggestions = {
        "by_file": suggest_by_file(BY_FILE),
        "by_api": suggest_by_api(BY_API),
        "table": suggest_from_table(RUNS),
    }
    with tempfile.TemporaryDirectory() as copies:
        by_file = shutil.copytree(BY_FILE, Path(copies) / "by_file")
        by_api = shutil.copytree(BY_API, Path(copies) / "by_api")
        next_trials = {"by_file": continue_by_file(by_file), "by_api": continue_by_api(by_api)}
    return {"environment": environment(), "suggestions": suggestions, "next trials": next_trials}


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", action="store_true", help="keep studies and table as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"transfer_bo from {Path(tb.__file__).parent}")

    if not arguments.answers:
        make_by_file()
        make_by_api()
        make_table()
    (FOLDER / "answers.json").write_text(json.dumps(answers(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
