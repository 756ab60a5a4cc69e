"""Run any training program as a trial: Megatron, torchtitan, JAX, a shell script; it needs no code of ours.

What the program gets, all of it in each of three ways:
    arguments     `{lr}`, `{width}`, `{trial}`, `{seed}`, ... in the study file's `command.run` are filled in.
                  An HP with a dot in its name is written as it is: `{lr.embedding}`. `{{` and `}}` are
                  braces.
    environment   TRANSFER_BO_INPUT, TRANSFER_BO_OUTPUT and TRANSFER_BO_CHECKPOINT: paths of the files below
    {input}       a JSON file: {"trial", "seed", "attempt", "scale": {axis: value}, "hps": {name: value},
                  "accumulate", "checkpoint", "output"}; floats in full, as they are stored

What the program says, as lines of JSON appended to the file {output}:
    {"progress": 0.1, "loss": 3.2}      any number of times, progress in (0, 1]; the pruner looks at these
    {"loss": 2.9}                       once, at the end: the result
    {"outcome": "diverged"}             instead: or "out_of_memory", "preempted", with a "message" if it likes

or, from Python, `from transfer_bo.runners.external_program import tell; tell(loss=2.9)`. A program that ends with an
error and says nothing is an error, with the end of what it wrote to standard error. When a worker is asked to
end, the program gets SIGTERM: it may write what it needs to go on to the folder {checkpoint} and finds it
there when the trial runs again. Nothing goes through a shell unless `shell = true`, and then every value is
quoted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_bo.errors import Diverged, Preempted, TransferError

__all__ = ["CommandError", "Program", "fill", "tell"]

POLL_SECONDS = 0.1
STOP_SECONDS = 10.0
"""How long a program may take to end after SIGTERM; then it is killed, with all its children."""
INPUT, OUTPUT, CHECKPOINT = "TRANSFER_BO_INPUT", "TRANSFER_BO_OUTPUT", "TRANSFER_BO_CHECKPOINT"
LOST = "lost"
"""Outcome that a process reports when another one of the same trial is gone without a word."""
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class CommandError(RuntimeError):
    """A training program ended without a result."""


def tell(**what: Any) -> None:
    """Say something to the study from inside a program that a study runs; does nothing elsewhere.

    Args:
        what: `loss=` for the result, `progress=` and `loss=` on the way, `outcome=` and `message=` for an end
            without a result.
    """
    path = os.environ.get(OUTPUT)
    if path is None:
        return
    line = json.dumps({key: float(v) if hasattr(v, "__float__") else v for key, v in what.items()})
    with Path(path).open("a") as file:
        file.write(line + "\n")


def fill(template: str, values: Mapping[str, Any], quote: Callable[[str], str] = str) -> str:
    """A template with `{name}` replaced by the value of that name.

    No formatting language: a name is looked up as it stands, so that a template can't reach into objects.

    Args:
        template: The text.
        values: By name; floats are written in full, so that reading them back gives the same bits.
        quote: Applied to each value.

    Raises:
        TransferError: for a name that is not there.
    """

    def replace(found: re.Match[str]) -> str:
        name = found.group(1)
        if name is None:
            return found.group()[0]
        if name not in values:
            raise TransferError(
                f"command.run: {found.group()!r} is no value of a trial; use one of "
                f"{', '.join(sorted(values))}, or double the braces."
            )
        value = values[name]
        return quote(repr(value) if isinstance(value, float) else str(value))

    return _FIELD.sub(replace, template)


@dataclass
class _Said:
    """What a program has said so far."""

    loss: float | None = None
    outcome: str | None = None
    message: str = ""
    reports: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Program:
    """A training program as a study file describes it.

    Args:
        run: Arguments, or one string for the shell.
        shell: Whether a shell reads it.
        env: Added to the environment; values may hold `{names}`, too.
        folder: Where it runs.
    """

    run: Sequence[str] | str
    shell: bool
    env: Mapping[str, str]
    folder: Path

    def command(self, values: Mapping[str, Any]) -> list[str] | str:
        """What is executed.

        Raises:
            TransferError: for a `{name}` that is no value of a trial.
        """
        if isinstance(self.run, str):
            return fill(self.run, values, shlex.quote)
        return [fill(argument, values) for argument in self.run]

    def __call__(
        self,
        values: Mapping[str, Any],
        content: Mapping[str, Any],
        *,
        report: Callable[[float, float], None],
        stop: Callable[[], bool],
        checkpoint: Path,
    ) -> float:
        """Run it once.

        Args:
            values: What `{names}` stand for.
            content: Of the JSON file.
            report: Called with (progress, loss); what it raises ends the program.
            stop: Whether this process has been asked to end.
            checkpoint: Folder that the program may use, kept from one attempt to the next.

        Returns:
            Its loss.

        Raises:
            Diverged, MemoryError, Preempted: as the program says.
            CommandError: if it ends without a result.
            TransferError: if it can't be started.
        """
        with tempfile.TemporaryDirectory(prefix="transfer-bo-") as name:
            files = {"input": Path(name) / "input.json", "output": Path(name) / "output.jsonl"}
            places = {**{key: str(path) for key, path in files.items()}, "checkpoint": str(checkpoint)}
            files["input"].write_text(json.dumps({**content, **places}))
            files["output"].touch()
            values = {**values, **places}
            environment = {
                **os.environ,
                **{key: fill(text, values) for key, text in self.env.items()},
                INPUT: places["input"],
                OUTPUT: places["output"],
                CHECKPOINT: places["checkpoint"],
            }
            errors = Path(name) / "stderr"
            with errors.open("w") as stderr, self._started(values, environment, stderr) as process:
                said = self._follow(process, files["output"], report, stop)
                code = process.wait()
            return _result(said, code, errors)

    @contextlib.contextmanager
    def _started(
        self, values: Mapping[str, Any], environment: Mapping[str, str], stderr: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        command = self.command(values)
        try:
            process = subprocess.Popen(
                command,
                shell=self.shell,
                cwd=self.folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # so that its children can be ended with it
                preexec_fn=_end_with_worker if sys.platform == "linux" else None,
            )
        except OSError as error:
            shown = command if isinstance(command, str) else command[0]
            raise TransferError(
                f"command.run: {shown!r} can't be started ({error.strerror}); check the path."
            ) from error
        try:
            yield process
        finally:
            _end(process)

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        output: Path,
        report: Callable[[float, float], None],
        stop: Callable[[], bool],
    ) -> _Said:
        said = _Said()
        with output.open() as lines:
            while True:
                has_ended = process.poll() is not None  # asked first: what it said last is then there to read
                while line := lines.readline():
                    if not line.endswith("\n") and not has_ended:
                        lines.seek(lines.tell() - len(line.encode()))  # half a line: the rest comes later
                        break
                    _listen(said, line)
                for progress, loss in said.reports:
                    report(progress, loss)
                said.reports.clear()
                if has_ended:
                    return said
                if stop():
                    _end(process)
                    raise Preempted("The program was stopped.")
                time.sleep(POLL_SECONDS)


def _end_with_worker() -> None:
    """In the new process: ask the kernel for SIGTERM when the worker is gone, whatever kills it."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _listen(said: _Said, line: str) -> None:
    try:
        what = json.loads(line)
        if "outcome" in what:
            # Of several processes the first one to fail knows why; that another one is lost is no reason.
            if said.outcome in (None, LOST):
                said.outcome, said.message = str(what["outcome"]), str(what.get("message", ""))
        elif "progress" in what:
            said.reports.append((min(max(float(what["progress"]), 0.0), 1.0), float(what["loss"])))
        else:
            said.loss = float(what["loss"])
    except (ValueError, TypeError, KeyError) as error:
        raise CommandError(
            f"The program said {line.strip()[:200]!r}, which is no result ({error!r})."
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and its children: in order if it listens, else the hard way."""
    for sign, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it


def _result(said: _Said, code: int, errors: Path) -> float:
    tail = errors.read_text(errors="replace").strip()[-1500:]
    if said.outcome == "diverged":
        raise Diverged(said.message or "The program says that it diverged.")
    if said.outcome == "out_of_memory":
        raise MemoryError(said.message or "The program says that it ran out of memory.")
    if said.outcome == LOST or (said.outcome is None and code in (-signal.SIGKILL, 128 + signal.SIGKILL)):
        raise Preempted("A process of the program was killed.", died=True)
    if said.outcome == "preempted" or (
        said.outcome is None and code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    ):
        raise Preempted(said.message or "The program was stopped.")
    if said.outcome is not None and said.outcome != "finished":
        raise CommandError(said.message or f"The program ended with the outcome {said.outcome!r}.")
    if said.loss is None or code != 0:
        raise CommandError(f"The program ended with exit code {code} and no result. {tail}")
    if not math.isfinite(said.loss):
        raise Diverged(f"The program's loss is {said.loss}.")
    return said.loss
