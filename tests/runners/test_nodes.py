"""Trials on two nodes, which are two agents on this machine: rendezvous, a lost node, and missing ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import commands

from transfer_bo import Scale
from transfer_bo.errors import Preempted, StudyFileError, WorkerError
from transfer_bo.runners.task import Attempt, StudyTask
from transfer_bo.runners.torchrun import RDZV_ENDPOINT, endpoint_of, serve_node
from transfer_bo.study_file import load_study_file
from transfer_bo.training.faults import FAULT

WriteStudy = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
SCALE = Scale(width=16, depth=1, batch=4, tokens=4 * 16 * 60)
SECONDS = 600


def on_two_nodes(
    write_study: WriteStudy, ranks: int = 2, seconds: float = 200.0, parallel: str = "ddp"
) -> Path:
    """The study with a rendezvous on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = (
        f'[run]\nranks = {ranks}\nnodes = 2\nrdzv_endpoint = "localhost:{port}"\nrank_timeout = {seconds}\n'
        f'parallel = "{parallel}"\ncheckpoint_seconds = 0.001'
    )
    return write_study(("trials = 4", f"trials = 4\n{run}"), *[("batch = 2", "batch = 4")] * 3)


def attempt(reports: list[tuple[float, float]]) -> Attempt:
    """A run of 60 steps."""
    hps = {"lr": 0.01, "lr.embedding": 1.0}
    return Attempt(0, SCALE, hps, 1, 1, 0, lambda progress, loss: reports.append((progress, loss)))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `transfer-bo ARGUMENTS`; it is ended after the test."""
    with commands(tmp_path) as run:
        yield run


def ranks_of(parent: int) -> list[int]:
    """Process ids of all that a process has started, and what these have started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found + [each for child in found for each in ranks_of(child)]


@pytest.mark.slow  # starts four groups of processes, one after the other
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
@pytest.mark.timeout(3 * SECONDS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_lost_node_ends_all_ranks_and_the_trial_resumes(
    parallel: str, write_study: WriteStudy, start: Start
) -> None:
    """Two ranks on each of two nodes; all processes of the other node are killed in the middle."""
    path = on_two_nodes(write_study, ranks=4, parallel=parallel)
    task = StudyTask(load_study_file(path))
    alone = StudyTask(
        task.file.model_copy(update={"run": task.file.run.model_copy(update={"nodes": 1, "ranks": 1})})
    )
    single: list[tuple[float, float]] = []
    alone.run(attempt(single))
    alone.clean_up(_Ended())  # type: ignore[arg-type]

    node = start("node", str(path))
    whole: list[tuple[float, float]] = []
    expected = task.run(attempt(whole))
    task.clean_up(_Ended())  # type: ignore[arg-type]

    pieces: list[tuple[float, float]] = []
    killed: list[float] = []

    def kill() -> None:
        while len(pieces) < 3:
            time.sleep(0.01)
        for process in [node.pid, *ranks_of(node.pid)]:
            os.kill(process, signal.SIGKILL)
        killed.append(time.monotonic())

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Preempted) as lost:
        task.run(attempt(pieces))
    seconds = time.monotonic() - killed[0]
    killer.join()
    remaining = [p for p in ranks_of(os.getpid()) if b"torchrun_entry" in _command(p)]
    before = len(pieces)

    start("node", str(path))
    actual = task.run(attempt(pieces))

    print(f"{parallel}: all ended {seconds:.1f} s after the kill, at report {before}")
    assert lost.value.died
    assert [] == remaining
    assert seconds < 60
    assert pieces[before][0] > 0.1  # it went on
    assert dict(single) == pytest.approx(dict(whole), rel=1e-4)  # float32
    assert dict(whole) == dict(pieces)
    assert expected == actual


def _command(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


class _Ended:
    number = 0


@pytest.mark.slow  # starts two agents
@pytest.mark.timeout(SECONDS)
def test_a_node_that_runs_out_of_memory_says_so(
    write_study: WriteStudy, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason reaches the worker, which runs on the other node."""
    path = on_two_nodes(write_study)
    task = StudyTask(load_study_file(path))
    fault = json.dumps({"kind": "memory", "rank": 1, "step": 3})
    start("node", str(path), **{FAULT: fault})

    with pytest.raises(MemoryError, match="Rank 1"):
        task.run(attempt([]))


@pytest.mark.slow  # starts torchrun, twice
@pytest.mark.timeout(SECONDS)
def test_a_rendezvous_that_never_completes_ends(write_study: WriteStudy) -> None:
    """On either side, after the stated time, in one sentence that says what to start."""
    study_file = load_study_file(on_two_nodes(write_study, seconds=5.0))

    with pytest.raises(WorkerError, match="transfer-bo node"):
        StudyTask(study_file).run(attempt([]))
    with pytest.raises(WorkerError, match="start the search"):
        serve_node(study_file, lambda line: None)


def test_the_place_to_meet_may_come_from_the_environment(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch job learns it; without any there is a sentence before the first trial."""
    nodes = ("trials = 4", "trials = 4\n[run]\nranks = 2\nnodes = 2")
    study_file = load_study_file(write_study(nodes))
    monkeypatch.delenv(RDZV_ENDPOINT, raising=False)
    with pytest.raises(StudyFileError, match=RDZV_ENDPOINT):
        StudyTask(study_file)

    monkeypatch.setenv(RDZV_ENDPOINT, "node7:29400")
    assert endpoint_of(study_file) == "node7:29400"


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ("ranks = 3\nnodes = 2", "run.ranks"),
        ("ranks = 2\nnodes = 2\nworkers = 2", "run.workers"),
        ('ranks = 2\nnodes = 2\nrunner = "ray"', "run.nodes"),
    ],
)
def test_what_nodes_do_not_go_with_is_refused(run: str, named: str, write_study: WriteStudy) -> None:
    """When the file is read."""
    batches = [("batch = 2", "batch = 6")] * 3
    with pytest.raises(StudyFileError, match=named):
        load_study_file(write_study(("trials = 4", f"trials = 4\n[run]\n{run}"), *batches))


def test_a_study_on_one_node_has_no_use_for_another(write_study: WriteStudy) -> None:
    """`transfer-bo node` says what to set."""
    with pytest.raises(StudyFileError, match=r"run\.nodes"):
        serve_node(load_study_file(write_study()), lambda line: None)
