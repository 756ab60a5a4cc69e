"""A trial in several processes under torchrun: the result of one; a killed process ends them all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_bo import Scale
from transfer_bo.errors import Preempted
from transfer_bo.runners import torchrun_entry
from transfer_bo.runners.external_program import INPUT, CommandError
from transfer_bo.runners.task import Attempt, StudyTask
from transfer_bo.study_file import load_study_file
from transfer_bo.training.faults import FAULT

WriteStudy = Callable[..., Path]
HPS = {"lr": 0.01, "lr.embedding": 1.0}
SCALE = Scale(width=16, depth=1, batch=4, tokens=4 * 16 * 60)


def task(path: Path, ranks: int, parallel: str = "ddp") -> StudyTask:
    """The study with so many processes per trial."""
    study = load_study_file(path)
    more = {"ranks": ranks, "parallel": parallel, "checkpoint_seconds": 0.001}
    return StudyTask(study.model_copy(update={"run": study.run.model_copy(update=more)}))


def attempt(reports: list[tuple[float, float]], tokens: float = SCALE.tokens, **hps: float) -> Attempt:
    """A run of 60 steps."""
    scale = SCALE.replace(tokens=tokens)
    return Attempt(0, scale, {**HPS, **hps}, 1, 1, 0, lambda progress, loss: reports.append((progress, loss)))


def test_ranks_train_the_attempt_that_the_task_was_given(
    write_study: WriteStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the task writes for its ranks is all that a rank reads: no processes, the same attempt."""
    given = dataclasses.replace(attempt([]), reports=3, shares_trunk=True, accumulate=2, owner_losses=4)
    read: list[Attempt] = []

    def program(inputs: object, content: dict[str, object], **_: object) -> float:
        file = tmp_path / "input.json"
        file.write_text(json.dumps({**content, "checkpoint": str(tmp_path)}))
        monkeypatch.setenv(INPUT, str(file))
        return torchrun_entry._train()

    def train_here(self: StudyTask, attempt: Attempt, checkpoint: Path) -> float:
        read.append(attempt)
        return 1.5

    monkeypatch.setattr("transfer_bo.runners.task.torchrun", lambda study_file: program)
    monkeypatch.setattr(StudyTask, "train_here", train_here)

    assert 1.5 == task(write_study(), 2).run(given)
    for field in dataclasses.fields(Attempt):
        if field.name not in ("report", "speed"):
            assert getattr(given, field.name) == getattr(read[0], field.name)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_processes_equal_one_and_survive_a_kill(
    ranks: int, parallel: str, write_study: WriteStudy
) -> None:
    """The same curve to rounding; one killed in the middle, all end in seconds and it resumes bitwise."""
    path = write_study()
    alone: list[tuple[float, float]] = []
    task(path, 1).run(attempt(alone))
    whole: list[tuple[float, float]] = []
    several = task(path, ranks, parallel)
    expected = several.run(attempt(whole))
    several.clean_up(_ended())
    pieces: list[tuple[float, float]] = []
    running: list[int] = []
    killed: list[float] = []

    def kill() -> None:
        while len(pieces) < 3:
            time.sleep(0.01)
        running.extend(ranks_in(path.parent))
        os.kill(max(running), signal.SIGKILL)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Preempted) as caught:
        several.run(attempt(pieces))
    killer.join()
    seconds = time.monotonic() - killed[0]
    remaining = ranks_in(path.parent)
    before = len(pieces)
    actual = several.run(attempt(pieces))

    print(f"{ranks} ranks, {parallel}: all ended {seconds:.1f} s after the kill, at report {before}")
    assert caught.value.died
    assert ranks == len(running)
    assert [] == remaining
    assert seconds < 60
    assert pieces[before][0] > 0.1  # it went on, and did not begin anew
    assert dict(alone) == pytest.approx(dict(whole), rel=1e-4)  # float32
    assert dict(whole) == dict(pieces)
    assert expected == actual


def ranks_in(folder: Path) -> list[int]:
    """The process ids of the ranks that train below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            is_rank = (
                b"transfer_bo.runners.torchrun_entry" in arguments
                and b"torch.distributed.run" not in arguments
            )
            if is_rank and str(folder).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def _ended() -> object:
    class Ended:
        number = 0

    return Ended()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_on_any_rank_ends_the_trial_with_its_message(write_study: WriteStudy) -> None:
    """The study gets the message of the first rank that failed."""
    two = task(write_study(), 2)
    bad = Attempt(
        0, SCALE, {"lr": 0.01}, -1, 1, 0, lambda *_: None
    )  # a negative seed is refused by the trainer

    with pytest.raises(RuntimeError, match=r"Rank \d: \w+: .* -1"):
        two.run(bad)


@pytest.mark.slow  # starts two processes for each kind
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "raised", "died"),
    [
        ("kill", Preempted, True),
        ("term", Preempted, False),
        ("hang", Preempted, True),
        ("memory", MemoryError, None),
        ("exception", CommandError, None),
    ],
)
def test_a_fault_of_one_rank_is_typed_and_the_trial_resumes(
    kind: str,
    raised: type[BaseException],
    died: bool | None,
    write_study: WriteStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second rank fails after step 30; the next attempt goes on from there to the same bits."""
    two = task(write_study(), 2)
    two.file = two.file.model_copy(update={"run": two.file.run.model_copy(update={"rank_timeout": 20.0})})
    fault = {"kind": kind, "rank": 1, "step": 30, "once": str(tmp_path / "fired")}
    monkeypatch.setenv(FAULT, json.dumps(fault))
    pieces: list[tuple[float, float]] = []

    with pytest.raises(raised) as error:
        two.run(attempt(pieces))
    before = len(pieces)
    resumed = two.run(attempt(pieces))
    two.clean_up(_ended())
    whole: list[tuple[float, float]] = []

    assert died is None or died == getattr(error.value, "died", None)
    assert before in (4, 5)  # reports of the first half, one in six steps; the last may come too late
    assert resumed == two.run(attempt(whole))
    assert dict(whole) == dict(pieces)
    assert [] == ranks_in(tmp_path)
