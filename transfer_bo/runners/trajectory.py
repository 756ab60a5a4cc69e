"""Watched trainings of a study file at several widths and learning rates; what is there is not made again.

Each training leaves a JSON file in the folder `trajectory` of the study's folder, with all settings that its
result depends on. A file with other settings is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from transfer_bo.diagnostics.trajectory import TrajectoryRecorder, window_losses
from transfer_bo.diagnostics.widths import WatchedRun, WidthComparison, compare_widths
from transfer_bo.errors import DiagnosticError, Diverged, StudyFileError
from transfer_bo.runners.task import Attempt, StudyTask
from transfer_bo.scale import Scale
from transfer_bo.study_file import StudyFile

__all__ = ["TRAJECTORY_FOLDER", "learning_rates", "read_comparison", "read_watched", "watch", "widths_of"]

TRAJECTORY_FOLDER = "trajectory"
"""In the study's folder."""
WINDOWS = 32
"""Held-out windows on which the loss and its gradients are taken."""
INTERVALS = 50
"""Intervals of a trajectory: with the trapezoid rule the parts then add up to the change to about 1%."""
MIN_VALUES = 5
"""Learning rates, at least."""


def widths_of(study_file: StudyFile) -> list[int]:
    """The widths of the study's rungs, ascending.

    Raises:
        StudyFileError: If there is only one, the study has a program of the user's own, or no HP `lr`.
    """
    if study_file.command is not None:
        raise study_file.error(
            "command.run", "a program's steps cannot be watched; trajectories need the reference trainer."
        )
    if "lr" not in study_file.space:
        raise study_file.error("space", "it has no lr, over which trajectories are compared; add it.")
    widths = sorted({int(scale.width) for scale in study_file.proxies})
    if len(widths) < 2:
        raise study_file.error(
            "ladder.rungs", f"all have width {widths[0]}; trajectories compare widths, add a rung of another."
        )
    return widths


def learning_rates(study_file: StudyFile, low: float | None, high: float | None, count: int) -> list[float]:
    """log2 of the learning rates, evenly spaced; the ends are by default those of the study's range.

    Raises:
        StudyFileError: For too few, or ends that are no range.
    """
    hp = study_file.hp_space.hps["lr"]
    first, last = low or hp.low, high or hp.high
    if count < MIN_VALUES:
        raise StudyFileError(f"--values {count}: the split needs {MIN_VALUES} learning rates or more.")
    if not 0 < first < last:
        raise StudyFileError(
            f"--low {first:g} --high {last:g}: give two positive numbers, the smaller first."
        )
    return [float(z) for z in np.linspace(np.log2(first), np.log2(last), count)]


def watch(
    task: StudyTask,
    octaves: Sequence[float],
    seeds: int,
    progress: Callable[[str], None] = lambda text: None,
) -> list[WatchedRun]:
    """Train what is missing, and return all runs.

    Args:
        task: The study file, ready to train.
        octaves: log2 of the learning rates.
        seeds: Number of seeds.
        progress: Called with a line per training.
    """
    widths = widths_of(task.file)
    _write(_grid_file(task.file.out), {"octaves": list(octaves), "seeds": seeds, "settings": _settings(task)})
    wanted = [(width, octave, seed) for seed in range(seeds) for width in widths for octave in octaves]
    runs = []
    for i, (width, octave, seed) in enumerate(wanted):
        run = _read(task, width, octave, seed)
        if run is None:
            run = _train(task, width, octave, seed)
            _write(_file(task, width, octave, seed), asdict(run) | {"settings": _settings(task)})
            ended = "diverged" if run.top is None else f"loss {run.top[-1]:.4f}"
            progress(f"{i + 1}/{len(wanted)}: width {width}, lr {2**octave:.4g}, seed {seed}: {ended}")
        runs.append(run)
    return runs


def read_watched(folder: Path) -> list[WatchedRun]:
    """The trainings in a study's folder that the latest call of `watch` asked for; none if there are none."""
    if not _grid_file(folder).exists():
        return []
    grid = json.loads(_grid_file(folder).read_text(encoding="utf-8"))
    files = sorted((folder / TRAJECTORY_FOLDER).glob("width-*.json"))
    entries = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [
        _run_of(entry)
        for entry in entries
        if entry["settings"] == grid["settings"]
        and entry["octave"] in grid["octaves"]
        and entry["seed"] < grid["seeds"]
    ]


def read_comparison(study_file: StudyFile) -> WidthComparison | None:
    """What `transfer-bo trajectory` has trained; None where it never ran, or has not come far enough."""
    watched = read_watched(study_file.out)
    try:
        return compare_widths(watched) if watched else None
    except DiagnosticError:
        return None


def _run_of(entry: dict[str, object]) -> WatchedRun:
    run: dict[str, object] = {key: value for key, value in entry.items() if key != "settings"}
    if isinstance(run["top"], list):
        run["top"] = tuple(run["top"])
    return WatchedRun(**run)  # type: ignore[arg-type]


def _scale(study_file: StudyFile, width: int) -> Scale:
    return study_file.base.replace(width=width)


def _settings(task: StudyTask) -> str:
    """Digest of everything but width, learning rate and seed that a training depends on."""
    definition = {k: v for k, v in task.definition().items() if k != "ladder.rungs"}
    settings = [definition, dict(task.space.defaults) | {"lr": None}, WINDOWS, INTERVALS]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _file(task: StudyTask, width: int, octave: float, seed: int) -> Path:
    name = f"width-{width}_lr-{2**octave:.6g}_seed-{seed}.json"
    return task.file.out / TRAJECTORY_FOLDER / name


def _read(task: StudyTask, width: int, octave: float, seed: int) -> WatchedRun | None:
    file = _file(task, width, octave, seed)
    if not file.exists():
        return None
    entry = json.loads(file.read_text(encoding="utf-8"))
    return _run_of(entry) if entry["settings"] == _settings(task) else None


def _grid_file(folder: Path) -> Path:
    """What the latest call of `watch` asked for."""
    return folder / TRAJECTORY_FOLDER / "grid.json"


def _write(file: Path, entry: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(entry), encoding="utf-8")
    unfinished.replace(file)


def _train(task: StudyTask, width: int, octave: float, seed: int) -> WatchedRun:
    """One watched training; other HPs are at their defaults."""
    scale, context = _scale(task.file, width), task.file.data.context
    steps = max(1, round(scale.tokens / (scale.batch * context)))
    windows = task.corpus.heldout_windows(WINDOWS, context)
    recorder = TrajectoryRecorder(window_losses(windows), steps, intervals=min(INTERVALS, steps))
    attempt = Attempt(
        number=0,
        scale=scale,
        hps={**task.space.defaults, "lr": 2.0**octave},
        seed=seed,
        accumulate=task.file.training.accumulate,
        owner_losses=0,
        report=lambda progress, loss: None,
        reports=1,
    )
    try:
        task.train_here(attempt, None, after_step=recorder.after_step)
    except Diverged:
        return WatchedRun(width, octave, seed, None)
    found = recorder.result()
    return WatchedRun(width, octave, seed, tuple(map(float, found.top())), float(found.losses[0]))
