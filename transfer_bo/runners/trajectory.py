"""Watched trainings of a study file at several widths and learning rates; what is there is not made again.

Each training is a line of `trajectory.jsonl` in the study's folder, with all settings that its result depends
on; with other settings it is made anew. A line with a grid says what was asked for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from transfer_bo.diagnostics.trajectory import TrajectoryRecorder, window_losses
from transfer_bo.diagnostics.widths import WatchedRun, WidthComparison, compare_widths
from transfer_bo.errors import DiagnosticError, Diverged, StudyFileError
from transfer_bo.runners.task import Attempt, StudyTask
from transfer_bo.scale import Scale
from transfer_bo.study_file import StudyFile

__all__ = ["TRAJECTORY_FILE", "learning_rates", "read_comparison", "read_watched", "watch", "widths_of"]

TRAJECTORY_FILE = "trajectory.jsonl"
"""In the study's folder."""
_Key = tuple[int, float, int]
"""Width, log2 of the learning rate, seed."""

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
    widths, folder, settings = widths_of(task.file), task.file.out, _settings(task)
    entries = _entries(folder)
    known = _known(entries, settings)
    grid = {"octaves": list(octaves), "seeds": seeds}
    if not any(entry.get("grid") == grid and entry["settings"] == settings for entry in entries[-1:]):
        _write(folder, {"grid": grid, "settings": settings})

    wanted = [(width, octave, seed) for seed in range(seeds) for width in widths for octave in octaves]
    for i, key in enumerate(wanted):
        if key in known:
            continue
        run = known[key] = _train(task, *key)
        _write(folder, {"run": asdict(run), "settings": settings})
        ended = "diverged" if run.top is None else f"loss {run.top[-1]:.4f}"
        progress(
            f"{i + 1}/{len(wanted)}: width {run.width}, lr {2**run.octave:.4g}, seed {run.seed}: {ended}"
        )
    return [known[key] for key in wanted]


def read_watched(folder: Path) -> list[WatchedRun]:
    """The trainings in a study's folder that the latest call of `watch` asked for; none if there are none."""
    entries = _entries(folder)
    grids = [entry for entry in entries if "grid" in entry]
    if not grids:
        return []
    known = _known(entries, grids[-1]["settings"])
    grid = grids[-1]["grid"]
    return [run for run in known.values() if run.octave in grid["octaves"] and run.seed < grid["seeds"]]


def read_comparison(study_file: StudyFile) -> WidthComparison | None:
    """What `transfer-bo trajectory` has trained; None where it never ran, or has not come far enough."""
    watched = read_watched(study_file.out)
    try:
        return compare_widths(watched) if watched else None
    except DiagnosticError:
        return None


def _entries(folder: Path) -> list[dict[str, Any]]:
    """Every line of a study's trainings; a last one that was cut off is not counted."""
    file = folder / TRAJECTORY_FILE
    entries = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def _write(folder: Path, entry: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TRAJECTORY_FILE
    was_cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if was_cut_off else "") + json.dumps(entry) + "\n")


def _same(kept: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a training still counts; settings that only one version of the package has are left out."""
    return all(kept[key] == now[key] for key in kept.keys() & now.keys())


def _known(entries: Sequence[dict[str, Any]], settings: dict[str, Any]) -> dict[_Key, WatchedRun]:
    """The trainings with these settings."""
    known = {}
    for entry in entries:
        if "run" in entry and _same(entry["settings"], settings):
            fields = entry["run"]
            top = None if fields["top"] is None else tuple(fields["top"])
            run = WatchedRun(**{**fields, "top": top})
            known[run.width, run.octave, run.seed] = run
    return known


def _scale(study_file: StudyFile, width: int) -> Scale:
    return study_file.base.replace(width=width)


def _settings(task: StudyTask) -> dict[str, Any]:
    """Everything but width, learning rate and seed that a training depends on, as JSON gives it back."""
    definition = {k: v for k, v in task.definition().items() if k != "ladder.rungs"}
    defaults = {f"hp {name}": value for name, value in task.space.defaults.items() if name != "lr"}
    settings = {**definition, **defaults, "windows": WINDOWS, "intervals": INTERVALS}
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


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
