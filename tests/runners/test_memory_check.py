"""Runs that cannot fit into memory are refused before anything starts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from transfer_bo.errors import StudyFileError
from transfer_bo.runners import gpu_sharing, memory_check, study_runner
from transfer_bo.runners.gpu_sharing import usable_workers, workers_by_size
from transfer_bo.runners.memory_check import check_memory
from transfer_bo.runners.task import StudyTask, make_task
from transfer_bo.runners.worker_pool import devices_of
from transfer_bo.store.open_study import open_study
from transfer_bo.study_file import load_study_file
from transfer_bo.verification import room
from transfer_bo.verification.jobs import _StoredLoss, _StoredSuggestion
from transfer_bo.verification.room import USABLE, Room
from transfer_bo.verification.step_memory import Memory

WriteStudy = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:Rule .* multiplies:UserWarning")  # a batch 16 times as large


def task_with(path: Path, accumulate: int = 1, **run: int | str) -> StudyTask:
    """The study with other settings."""
    study = load_study_file(path)
    training = study.training.model_copy(update={"accumulate": accumulate})
    return StudyTask(study.model_copy(update={"run": study.run.model_copy(update=run), "training": training}))


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs need 100 bytes and 800 for activations, these divided by the number of parts."""
    monkeypatch.setattr(
        memory_check, "_memory", lambda task, scale, parts, at_hand: Memory(50, 0, 50, 800 / parts, 0)
    )


@pytest.fixture
def path(write_study: WriteStudy) -> Path:
    """A study whose target has 32 sequences per batch."""
    target = "[ladder.target]\nwidth = 32\ndepth = 2\nbatch = {}"
    return write_study((target.format(2), target.format(32)))


def free(monkeypatch: pytest.MonkeyPatch, n_bytes: float, *, on_gpu: bool = False) -> None:
    """Let so many bytes be usable, of each of four GPUs if on GPUs."""
    monkeypatch.setattr(memory_check, "visible_devices", lambda: "0,1,2,3" if on_gpu else None)
    monkeypatch.setattr(memory_check, "room", lambda devices: Room(n_bytes / USABLE, on_gpu))


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_is_advised_fits(path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    """A batch in parts: the number that is named is enough, and one without parts is refused."""
    task = task_with(path)
    free(monkeypatch, 301, on_gpu=on_gpu)

    with pytest.raises(StudyFileError) as error:
        check_memory(task, [task.file.target], 1)
    (parts,) = re.findall(r"training.accumulate = (\d+)", str(error.value))

    assert 4 == int(parts)
    check_memory(task_with(path, accumulate=int(parts)), [task.file.target], 1)


@pytest.mark.usefixtures("needs")
def test_a_trial_may_use_its_second_try(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts are tried by themselves."""
    task = task_with(path)
    free(monkeypatch, 501)

    check_memory(task, [task.file.target], 1)


@pytest.mark.usefixtures("needs")
def test_workers_share_main_memory_or_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice is a number of workers that fits."""
    task = task_with(path)
    free(monkeypatch, 1200)

    with pytest.raises(StudyFileError) as error:
        check_memory(task, [task.file.target], 4)

    assert "run.workers = 2" in str(error.value)
    free(monkeypatch, 1200, on_gpu=True)
    check_memory(task, [task.file.target], 8)  # two on each of four
    with pytest.raises(StudyFileError, match=r"run\.workers = 8"):
        check_memory(task, [task.file.target], 9)


@pytest.mark.usefixtures("needs")
def test_too_small_for_any_batch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and optimizer states alone are too many: more memory is needed."""
    task = task_with(path)
    free(monkeypatch, 99.0)

    with pytest.raises(StudyFileError) as error:
        check_memory(task, task.ladder.proxies, 1)

    assert all(part in str(error.value) for part in ("ladder.rungs[1]", "width", "GB", "more memory"))


def test_nothing_is_refused_where_nothing_is_known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the machine, or that of Ray's nodes."""
    monkeypatch.setattr(memory_check, "room", lambda devices: None)
    check_memory(task_with(path), [task_with(path).file.target], 1)

    free(monkeypatch, 1000.0)
    check_memory(task_with(path, runner="ray"), [task_with(path).file.target], 1)


def test_run_and_verify_refuse_before_any_trial(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real step without values, at the largest rung and at the target."""
    study_file = load_study_file(path)
    console = Console(file=io.StringIO())
    free(monkeypatch, 1000.0)
    with pytest.raises(StudyFileError, match=r"ladder\.rungs"):
        study_runner.run_search(study_file, console)

    verified = _StoredSuggestion(study_file.target, {"lr": 0.01}, _StoredLoss(1.0, (0.9, 1.1)))
    monkeypatch.setattr(study_runner, "_suggest", lambda *_: verified)
    monkeypatch.setattr(study_runner, "curve_of_target", lambda *_: None)
    with pytest.raises(StudyFileError, match=r"ladder\.target"):
        study_runner.run_verification(study_file, console)

    assert [] == open_study(study_file).trials


def test_a_program_is_not_looked_into(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the trainer's model is known."""
    free(monkeypatch, 1.0)
    path = write_study(("[budget]", '[command]\nrun = ["true"]\n[budget]'))
    task = make_task(load_study_file(path))

    check_memory(task, [task.file.target], 1)


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller of the machine's and the container's; cached files count as free."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    assert Room(4000 * 1024.0, on_gpu=False) == room.room(None)

    files = {"memory.max": "3000000", "memory.current": "2000000", "memory.stat": "anon 7\ninactive_file 500"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert 1_000_500.0 == room.free_of_machine()

    (tmp_path / "memory.max").write_text("max")
    assert 4000 * 1024.0 == room.free_of_machine()


def test_gpus_are_asked_by_index_or_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one with least free memory counts; an unknown one, or no driver, is no answer."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert room.room("0") is None

    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '0, GPU-a, 1000'\necho '1, GPU-b, 500'\n")
    driver.chmod(0o755)

    assert Room(500.0 * 2**20, on_gpu=True) == room.room("0,1")
    assert Room(1000.0 * 2**20, on_gpu=True) == room.room("GPU-a")
    assert room.room("0,MIG-c") is None


def test_workers_take_turns_over_gpus() -> None:
    """Each has as many as a trial needs; too few are shared."""
    assert ["0", "1", "0"] == [devices_of(slot, 1, "0,1") for slot in range(3)]
    assert ["0,1", "2,3", "0,1"] == [devices_of(slot, 2, "0,1,2,3") for slot in range(3)]
    assert "0" == devices_of(0, 4, "0")
    assert devices_of(5, 1, None) is None


@pytest.mark.parametrize(
    ("per_gpu", "visible", "ranks", "usable"),
    [
        ("auto", None, 1, 16),
        ("auto", "0", 1, 8),  # the target is tiny
        ("auto", "0,1", 1, 16),
        ("auto", "0,1", 2, 8),
        (3, "0,1", 1, 6),
        (1, "0,1", 4, 1),
    ],
)
def test_so_many_workers_are_of_use(
    per_gpu: int | str,
    visible: str | None,
    ranks: int,
    usable: int,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixteen are wanted."""
    monkeypatch.setattr(gpu_sharing, "visible_devices", lambda: visible)
    task = task_with(path, workers_per_gpu=per_gpu, ranks=ranks)

    assert usable == usable_workers(task, [task.file.target], 16)


def test_large_models_have_a_gpu_of_their_own() -> None:
    """By the number of parameters."""
    assert [8, 4, 2, 1] == [workers_by_size(n) for n in (1e5, 1e7, 9e7, 1e9)]
