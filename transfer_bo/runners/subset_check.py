"""Do subsets of the data rank settings as all of the data does? To be asked before a search relies on them.

Random settings are trained at the cheapest rung on each fraction and on all data, with equal seeds, and their
order is compared (`run_table.rank_correlation`). Trainings are kept in `subset_check.csv` in the study's
folder; those that are there are not made again.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transfer_bo.errors import Diverged, StudyFileError
from transfer_bo.records import Outcome
from transfer_bo.run_table.rank_correlation import rank_preservation
from transfer_bo.runners.task import Attempt, StudyTask
from transfer_bo.training.subset import DATA_FRACTION

__all__ = ["check_subsets", "read_checks", "subset_caveats"]

COLUMNS = ("method", "scale", DATA_FRACTION, "setting", "hps", "loss", "outcome", "cost")
MIN_SETTINGS = 5
"""Settings, at least, that have an order worth comparing."""


def check_subsets(
    task: StudyTask, settings: int, progress: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Train what is missing, and compare each fraction with all data.

    Args:
        task: The study file, ready to train.
        settings: How many settings are compared.
        progress: Called with a line per training.

    Returns:
        A dict per fraction: "fraction", "cost" (of a run, relative to one on all data) and what
        `rank_preservation` has.

    Raises:
        StudyFileError: If the study has no subsets, or for too few settings.
    """
    subset = task.file.data.subset
    if subset is None:
        raise task.file.error("data.subset", "there is none to check; add it, or train on all data.")
    if settings < MIN_SETTINGS:
        raise StudyFileError(f"--settings {settings}: give {MIN_SETTINGS} or more.")

    file = task.file.out / "subset_check.csv"
    known = _read(file)
    for i in range(settings):
        hps = _setting(task, i)
        for fraction in (*(f for f in subset.fraction if f < 1), 1.0):
            if _key(task, fraction, hps) not in known:
                row = _train(task, fraction, hps, i)
                _append(file, row)
                progress(f"setting {i}, fraction {fraction:g}: {row['outcome']}, loss {row['loss']:.4f}")
    return read_checks(task)


def read_checks(task: StudyTask) -> list[dict[str, Any]]:
    """The comparison from the trainings that are there; empty without any."""
    subset, file = task.file.data.subset, task.file.out / "subset_check.csv"
    if subset is None or not file.exists():
        return []
    table = pd.read_csv(file)
    table = table[(table["method"] == subset.method) & (table["scale"] == _scale(task))]

    found = []
    for fraction in (f for f in subset.fraction if f < 1):
        pair = table[table[DATA_FRACTION].isin([fraction, 1.0])]
        cost = task.cost(task.file.proxies[0].replace(data_fraction=fraction))
        full = task.cost(task.file.proxies[0].replace(data_fraction=1))
        for ranks in rank_preservation(pair, [DATA_FRACTION], ["hps"], maximize=False):
            found.append({"fraction": fraction, "cost": cost / full, **ranks})
    return found


def subset_caveats(task: StudyTask) -> list[str]:
    """Sentences on fractions that have not been checked, or do not keep the order of settings."""
    subset = task.file.data.subset
    if subset is None or all(f >= 1 for f in subset.fraction):
        return []
    verdicts = {check["fraction"]: check for check in read_checks(task)}
    sentences = []
    for fraction in (f for f in subset.fraction if f < 1):
        check = verdicts.get(fraction)
        if check is None or check["verdict"] == "untested":
            command = task.file.command_line("subset-check")
            sentences.append(
                f"Whether {fraction:g} of the data ranks settings as all of it does is unchecked; "
                f"run: {command}"
            )
        elif check["verdict"] != "kept":
            sentences.append(
                f"A fraction {fraction:g} of the data may not rank settings as all of it does (correlation "
                f"{check['spearman']:.2f}, in 90% {check['interval'][0]:.2f} to {check['interval'][1]:.2f})."
            )
    return sentences


def _setting(task: StudyTask, i: int) -> dict[str, float]:
    """Random HPs within their ranges, evenly in octaves."""
    rng = np.random.default_rng((task.file.seed, i))
    return {
        name: float(np.exp2(rng.uniform(math.log2(hp.low), math.log2(hp.high))))
        for name, hp in task.space.hps.items()
    }


def _scale(task: StudyTask) -> str:
    return json.dumps(dict(task.file.ladder.rungs[0].scale))


def _key(task: StudyTask, fraction: float, hps: dict[str, float]) -> tuple[str, str, float, str]:
    subset = task.file.data.subset
    assert subset is not None
    # On all data the method does not matter, but the row of each is its own, so that it can be read alone.
    return subset.method, _scale(task), fraction, json.dumps(hps)


def _read(file: Path) -> set[tuple[str, str, float, str]]:
    if not file.exists():
        return set()
    table = pd.read_csv(file)
    return set(zip(table["method"], table["scale"], table[DATA_FRACTION], table["hps"], strict=True))


def _train(task: StudyTask, fraction: float, hps: dict[str, float], number: int) -> dict[str, Any]:
    method, scale, _, text = _key(task, fraction, hps)
    rung = task.file.ladder.rungs[0].scale.replace(data_fraction=fraction)
    attempt = Attempt(
        number=number,
        scale=rung,
        hps=hps,
        seed=1000 * task.file.seed + number,
        accumulate=task.file.training.accumulate,
        owner_losses=0,
        report=lambda progress, loss: None,
        reports=1,
    )
    row = {"method": method, "scale": scale, DATA_FRACTION: fraction, "setting": number, "hps": text}
    try:
        loss, outcome = task.train_here(attempt, None), Outcome.FINISHED
    except Diverged:
        loss, outcome = math.inf, Outcome.DIVERGED
    return {**row, "loss": loss, "outcome": outcome.value, "cost": task.cost(rung)}


def _append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
