"""Processes that are forked for workers: what reaches them, what they keep, how their end is seen."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from transfer_bo.runners import forkserver, worker
from transfer_bo.runners.worker_spec import WorkerSpec
from transfer_bo.store.owner import is_alive
from transfer_bo.study_file import load_study_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are not needed here."""
    monkeypatch.setattr(forkserver, "_LOADED", [])


def send_message(
    spec_json: str, environment: dict[str, str], messages: Connection, lock: Connection | None
) -> None:
    """In the place of a worker: a message and an exit code, once the file that is its log exists."""
    spec = json.loads(spec_json)
    while not Path(spec["log"]).exists():
        time.sleep(0.01)
    messages.send(f"slot {spec['slot']}, threads {environment['OMP_NUM_THREADS']}")
    sys.exit(2)


@pytest.fixture
def spec(write_study: Callable[..., Path], tmp_path: Path) -> WorkerSpec:
    """A worker's specification, whose log does not exist yet."""
    return WorkerSpec(load_study_file(write_study()), slot=3, owner="me", log=tmp_path / "log")


def wait_for(what: Any, seconds: float = 200.0) -> Any:
    """What a function returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_a_worker_keeps_the_lock_and_its_message_arrives(
    spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study stays locked until the worker is gone, and its message can be read after its end."""
    monkeypatch.setattr(worker, "main", send_message)
    file = tmp_path / "lock"
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = forkserver.ForkedWorker(spec, lock.fileno())

    with file.open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert process.exitcode is None
    spec.log.touch()
    process.join()
    with file.open("w") as lock:
        wait_for(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None)
    assert 2 == process.exitcode
    assert "slot 3, threads 1" == process.message()


def test_a_killed_worker_sends_no_message(spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is the signal's."""
    monkeypatch.setattr(worker, "main", send_message)
    process = forkserver.ForkedWorker(spec, None)
    process.kill()
    process.join()

    assert -signal.SIGKILL == process.exitcode
    assert "" == process.message()


def test_a_worker_ends_with_its_parent() -> None:
    """However the parent is killed; and Ctrl-C at a terminal does not reach it."""
    code = (
        "import time; from transfer_bo.runners import forkserver, worker\n"
        "forkserver._LOADED.clear(); forkserver.prepare()\n"
        "p = forkserver._CONTEXT.Process(target=worker._end_with_parent); p.start()\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        blocked = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigBlk" in line
        )
        was_alive = is_alive(pid)
        parent.kill()

    assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1
    assert was_alive
    assert wait_for(lambda: not is_alive(pid))
