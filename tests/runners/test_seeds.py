"""Which trials of a study file share initial weights and data order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from transfer_bo.attributes import RUNG
from transfer_bo.errors import StudyFileError
from transfer_bo.records import Run, read_runs
from transfer_bo.runners.objective import objective
from transfer_bo.runners.task import StudyTask
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
PER_MODULE = "[per_module]\n[budget]"
TRUNK = '[training]\nschedule = "wsd"\ntrunk = true\n'
RUNGS = (0, 1, 0, 1, 0)


def shared(is_on: bool) -> str:
    """The end of a study file that sets the switch."""
    return f"trials = 4\n\n[run]\nshared_seeds = {str(is_on).lower()}"


def seeds(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[Run]]:
    """The seeds of trials at RUNGS, and the trials as they were stored."""
    task, used = StudyTask(load_study_file(path)), []
    monkeypatch.setattr(task, "run", lambda attempt: used.append(attempt.seed) or 2.0 + 0.1 * len(used))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for rung in RUNGS:
        study.enqueue_trial({RUNG: rung})
        study.optimize(objective(task), n_trials=1)
    return used, read_runs(study)


@pytest.mark.parametrize("changes", [[("trials = 4", shared(True))], [("[budget]", PER_MODULE)]])
def test_runs_of_a_rung_share_their_seed(
    changes: list[tuple[str, str]], write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the key, or where multipliers per module are searched; the seed is stored for the surrogate."""
    used, runs = seeds(write_study(*changes), monkeypatch)

    assert used[0] == used[2] == used[4]
    assert used[1] == used[3]
    assert used[0] != used[1]
    assert used == [run.seed for run in runs]


@pytest.mark.parametrize(
    "changes",
    [[], [("[budget]", PER_MODULE), ("trials = 4", shared(False))]],
    ids=["default", "switched off"],
)
def test_otherwise_each_run_has_its_own(
    changes: list[tuple[str, str]], write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two are the same, and none is stored."""
    used, runs = seeds(write_study(*changes), monkeypatch)

    assert len(RUNGS) == len(set(used))
    assert {None} == {run.seed for run in runs}


def test_another_study_has_other_seeds(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed` of the study file moves them."""
    first, _ = seeds(write_study(("trials = 4", shared(True))), monkeypatch)
    other, _ = seeds(
        write_study(("trials = 4", shared(True)), ('name = "tiny"', 'name = "tiny"\nseed = 1')), monkeypatch
    )

    assert not set(first) & set(other)


def test_a_trunk_has_a_seed_already(write_study: WriteStudy) -> None:
    """Both keys are refused together; multipliers per module alone leave the trunk its seeds."""
    path = write_study(("[space]", TRUNK + "[space]"), ("trials = 4", shared(True)))
    with pytest.raises(StudyFileError):
        load_study_file(path)

    path = write_study(("[space]", TRUNK + "[space]"), ("[budget]", PER_MODULE))
    assert not load_study_file(path).shares_seeds
