"""Any program as a trial: what it is given, what it may say, how it ends, and that no shell comes between."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_bo import Diverged
from transfer_bo.errors import Preempted, StudyFileError, WorkerError
from transfer_bo.runners.external_program import OUTPUT, CommandError, Program, fill, tell
from transfer_bo.store.owner import is_alive
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
VALUES = {"lr": 0.1 + 0.2, "lr.embedding": 1.5, "width": 32, "trial": 7}


def python(code: str, *arguments: str, shell: bool = False, env: dict[str, str] | None = None) -> Program:
    """A program of one line of Python."""
    head = "import json, os, signal, subprocess, sys, time\n"
    head += "say = lambda **what: print(json.dumps(what), file=open(sys.argv[1], 'a'))"
    escaped = f"{head}\n{code}".replace("{", "{{").replace("}", "}}")
    return Program([sys.executable, "-c", escaped, "{output}", *arguments], shell, env or {}, Path("/tmp"))


def run(program: Program, tmp_path: Path, **more: Any) -> tuple[float, list[tuple[float, float]]]:
    """Run it; its loss and what it reported."""
    reported: list[tuple[float, float]] = []
    arguments: dict[str, Any] = {
        "report": lambda progress, loss: reported.append((progress, loss)),
        "should_stop": lambda: False,
        "checkpoint": tmp_path,
        **more,
    }
    return program(VALUES, {"hps": {"lr": VALUES["lr"]}, "trial": 7}, **arguments), reported


def test_a_program_gets_exact_values_in_three_ways(tmp_path: Path) -> None:
    """Arguments, environment and JSON file hold the same 64 bits."""
    code = (
        "given = json.load(open(sys.argv[3]))\n"
        "assert given == json.load(open(os.environ['TRANSFER_BO_INPUT']))\n"
        "assert float(sys.argv[2]) == given['hps']['lr'] == float(os.environ['MY_LR']), sys.argv\n"
        "assert given['checkpoint'] == os.environ['TRANSFER_BO_CHECKPOINT']\n"
        "say(loss=float(sys.argv[2]))"
    )

    loss, _ = run(python(code, "{lr}", "{input}", env={"MY_LR": "{lr}"}), tmp_path)

    assert 0.1 + 0.2 == loss


def test_reports_come_while_it_runs_and_can_end_it(tmp_path: Path) -> None:
    """A hopeless program is ended, with its children, and what the report raised gets through."""

    class Hopeless(Exception):
        pass

    def report(progress: float, loss: float) -> None:
        raise Hopeless

    code = (
        "child = subprocess.Popen(['sleep', '600'])\n"
        "open(sys.argv[2], 'w').write(str(child.pid))\n"
        "say(progress=0.1, loss=5.0); time.sleep(600)"
    )
    started = time.monotonic()
    with pytest.raises(Hopeless):
        run(python(code, str(tmp_path / "child")), tmp_path, report=report)
    child = int((tmp_path / "child").read_text())
    while is_alive(child) and time.monotonic() - started < 60:
        time.sleep(0.02)  # a signal has been sent when `kill` returns, and arrives a little later

    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("say(outcome='diverged', message='loss 1e9')", Diverged, "loss 1e9"),
        ("say(loss=float('nan'))", Diverged, "nan"),
        ("say(outcome='out_of_memory')", MemoryError, "memory"),
        ("say(outcome='preempted')", Preempted, "stopped"),
        ("say(outcome='error', message='my words')", CommandError, "my words"),
        ("os.kill(os.getpid(), 15)", Preempted, "stopped"),
        ("os.kill(os.getpid(), 9)", Preempted, "killed"),
        ("raise KeyError('my words')", CommandError, "my words"),
        ("say(loss=1.0); sys.exit(3)", CommandError, "exit code 3"),
        ("pass", CommandError, "no result"),
        ("open(sys.argv[1], 'a').write('hello\\n')", CommandError, "hello"),
        ("say(los=1.0)", CommandError, "KeyError"),
        (
            "say(outcome='lost'); say(outcome='diverged', message='first'); say(outcome='error')",
            Diverged,
            "first",
        ),
        ("say(outcome='lost'); sys.exit(1)", Preempted, "killed"),
    ],
)
def test_every_ending_has_its_type(code: str, error: type[BaseException], words: str, tmp_path: Path) -> None:
    """What a program reports, and how it dies, are distinguished."""
    with pytest.raises(error, match=words) as caught:
        run(python(code), tmp_path)
    died = getattr(caught.value, "died", None)

    assert died is (None if error is not Preempted else words == "killed")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One sentence, no traceback of the operating system's."""
    with pytest.raises(WorkerError, match="'/no/such/program'"):
        run(Program(["/no/such/program"], False, {}, tmp_path), tmp_path)


def test_a_stopped_program_may_write_a_checkpoint(tmp_path: Path) -> None:
    """It gets SIGTERM, and finds what it wrote when it runs again."""
    code = (
        "file = os.environ['TRANSFER_BO_CHECKPOINT'] + '/state'\n"
        "if os.path.exists(file): say(loss=float(open(file).read())); sys.exit()\n"
        "def end(*_): open(file, 'w').write('2.5'); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end); say(progress=0.5, loss=3.0); time.sleep(600)"
    )
    asked = threading.Event()

    with pytest.raises(Preempted):
        run(python(code), tmp_path, report=lambda *_: asked.set(), should_stop=asked.is_set)
    loss, _ = run(python(code), tmp_path)

    assert 2.5 == loss


def test_half_a_line_is_waited_for(tmp_path: Path) -> None:
    """A program that writes slowly is read as well."""
    code = (
        "f = open(sys.argv[1], 'a'); f.write('{\"progress\": 0.5, \"lo'); f.flush(); time.sleep(0.5)\n"
        'f.write(\'ss": 3.0}\\n{"loss": 2.0}\\n\'); f.close()'
    )

    assert (2.0, [(0.5, 3.0)]) == run(python(code), tmp_path)


@given(value=st.text(min_size=1))
def test_values_stay_single_arguments(value: str) -> None:
    """Whatever a value holds, an argument stays one argument, and is not looked through again."""
    assert f"--x={value}" == fill("--x={a}", {"a": value})


@pytest.mark.parametrize(
    "attack", ["; touch {trace}", "$(touch {trace})", "`touch {trace}`", "| touch {trace}"]
)
@pytest.mark.parametrize("shell", [False, True])
def test_a_value_is_never_run(attack: str, shell: bool, tmp_path: Path) -> None:
    """Not by a shell that nobody asked for, nor by one that was: the program gets it as it is."""
    trace = tmp_path / "trace"
    value = attack.replace("{trace}", str(trace))
    line = f"{sys.executable} -c 'import sys; print(sys.argv[1])' {{name}} > {tmp_path}/out"
    code = f"import sys; open({str(tmp_path / 'out')!r}, 'w').write(sys.argv[1])"
    program = Program(line if shell else [sys.executable, "-c", code, "{name}"], shell, {}, tmp_path)

    with pytest.raises(CommandError, match="no result"):
        program({"name": value}, {}, report=lambda *_: None, should_stop=lambda: False, checkpoint=tmp_path)

    assert value == (tmp_path / "out").read_text().strip()
    assert not trace.exists()


@pytest.mark.parametrize("template", ["{lr.__class__}", "{lr!r}", "{0}", "{}", "{nope}", "{lr:>99}"])
def test_templates_only_know_names(template: str) -> None:
    """No formatting language: nothing of Python's objects can be reached."""
    with pytest.raises(StudyFileError) as caught:
        fill(template, VALUES)
    assert repr(template) in str(caught.value)
    assert "{lr} 32 {}" == fill("{{lr}} {width} {{}}", VALUES)


def test_tell_writes_a_line_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of any library become plain ones; outside of a study nothing happens."""
    np = pytest.importorskip("numpy")
    monkeypatch.delenv(OUTPUT, raising=False)
    tell(loss=1.0)
    monkeypatch.setenv(OUTPUT, str(tmp_path / "out"))
    tell(progress=0.5, loss=np.float32(2.5))
    tell(outcome="diverged")

    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [{"progress": 0.5, "loss": 2.5}, {"outcome": "diverged"}] == lines


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('run = "python train.py"', "give a list of arguments"),
        ('run = ["python"]\nshell = true', "give one string"),
        ("run = []", "it is empty"),
        ('run = ["python", "{learning_rate}"]', "{learning_rate}"),
        ("run = [1]", "should be a valid string"),
    ],
)
def test_a_bad_command_is_refused_in_one_sentence(section: str, words: str, write_study: WriteStudy) -> None:
    """Before anything runs, naming the file."""
    from transfer_bo.runners.task import make_task

    path = write_study(("[budget]", f"[command]\n{section}\n[budget]"))

    with pytest.raises(StudyFileError) as caught:
        make_task(load_study_file(path))

    assert str(caught.value).startswith(f"{path}: command.run")
    assert words in str(caught.value)
