"""Processes that are forked for workers: what reaches them, what they keep, how their end is seen."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from transfer_bo.runners import forkserver, worker
from transfer_bo.store.heartbeat import _is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are not needed here."""
    monkeypatch.setattr(forkserver, "_LOADED", [])


def speak(spec: dict[str, Any], says: Connection, lock: Connection | None) -> None:
    """A worker's part: a sentence and an exit code, once the file `go` is there."""
    while not Path(spec["go"]).exists():
        time.sleep(0.01)
    says.send(f"slot {spec['slot']}, {os.environ.get('OMP_NUM_THREADS')}")
    sys.exit(2)


def wait_for(what: Any, seconds: float = 200.0) -> Any:
    """What a function returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_a_worker_keeps_the_lock_and_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study stays locked until the worker is gone, and what it said is heard after its end."""
    monkeypatch.setattr(worker, "main", speak)
    go, file = tmp_path / "go", tmp_path / "lock"
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = forkserver.ForkedWorker({"slot": 3, "go": str(go)}, lock.fileno())

    with file.open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert process.exitcode is None
    go.touch()
    process.join()
    with file.open("w") as lock:
        wait_for(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None)
    assert 2 == process.exitcode
    assert process.said.startswith("slot 3")


def test_a_killed_worker_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is the signal's."""
    monkeypatch.setattr(worker, "main", speak)
    process = forkserver.ForkedWorker({"slot": 0, "go": str(tmp_path / "never")}, None)
    process.kill()
    process.join()

    assert -signal.SIGKILL == process.exitcode
    assert "" == process.said


def test_a_worker_ends_with_its_parent() -> None:
    """However the parent is killed; and Ctrl-C at a terminal does not reach it."""
    code = (
        "import time; from transfer_bo.runners import forkserver, worker\n"
        "forkserver._LOADED.clear(); forkserver.prepare()\n"
        "p = forkserver._CONTEXT.Process(target=worker._end_with_parent); p.start(); print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        blocked = next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigBlk" in line
        )
        was_alive = _is_alive(pid)
        parent.kill()

    assert int(blocked.split()[1], 16) >> (signal.SIGINT - 1) & 1
    assert was_alive
    assert wait_for(lambda: not _is_alive(pid))
