"""Any training program as a trial: Megatron, torchtitan, JAX, a shell script; it needs no code of ours.

The program gets everything in each of three ways:
    arguments     `{lr}`, `{width}`, `{trial}`, `{seed}`, ... in the study file's `command.run` are replaced
                  by values. An HP with a dot in its name is written as it is: `{lr.embedding}`. `{{` and `}}`
                  stand for braces.
    environment   TRANSFER_BO_INPUT, TRANSFER_BO_OUTPUT and TRANSFER_BO_CHECKPOINT: paths of the files below
    {input}       a JSON file: {"trial", "seed", "attempt", "scale": {axis: value}, "hps": {name: value},
                  "accumulate", "checkpoint", "output"}; floats with all digits, as they are stored

The program reports by appending lines of JSON to the file {output}:
    {"progress": 0.1, "loss": 3.2}      any number of times, progress in (0, 1]; the pruner uses them
    {"loss": 2.9}                       once, at the end: the result
    {"outcome": "diverged"}             instead of a result; or "out_of_memory", "preempted", and optionally a
                                        "message"

or, from Python, `from transfer_bo.runners.external_program import tell; tell(loss=2.9)`. A program that ends
with an exit code other than 0 and without a result is an error, with the end of what it wrote to standard
error. When a worker is asked to end, the program gets SIGTERM: it may write what it needs to go on to the
folder {checkpoint} and finds it there when the trial runs again. No shell is involved unless `shell = true`,
and then every value is quoted.
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
from typing import IO, Any

from transfer_bo.errors import Diverged, Preempted, StudyFileError, WorkerError
from transfer_bo.secrets import hide_secret_values

__all__ = ["CHECKPOINT", "INPUT", "LOST", "OUTPUT", "CommandError", "Program", "fill", "tell"]

POLL_SECONDS = 0.1
"""How often the program's output is read."""

STOP_SECONDS = 10.0
"""How long a program may take to end after SIGTERM; then it is killed, with all its children."""

TAIL_LENGTH = 1500
"""Characters from the end of standard error that are shown when a program fails."""

LINE_LENGTH = 200
"""Characters of an unreadable line of output that are shown."""

INPUT = "TRANSFER_BO_INPUT"
"""Environment variable: path of the JSON file with what is to be trained."""

OUTPUT = "TRANSFER_BO_OUTPUT"
"""Environment variable: path of the file to which the program reports."""

CHECKPOINT = "TRANSFER_BO_CHECKPOINT"
"""Environment variable: folder that is kept from one attempt to the next."""

LOST = "lost"
"""Outcome that a process reports if another process of the same trial has disappeared."""

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


class CommandError(RuntimeError):
    """A training program ended without a result."""


def tell(
    *,
    loss: float | None = None,
    progress: float | None = None,
    outcome: str | None = None,
    message: str | None = None,
    tokens_per_second: float | None = None,
) -> None:
    """Report to the study from inside a program that a study runs; without a study it does nothing.

    Args:
        loss: The result; with `progress`, the loss reached so far.
        progress: Share of the run that is done, in (0, 1].
        outcome: "diverged", "out_of_memory", "preempted" or "error", for an end without a result.
        message: What happened, beside `outcome`.
        tokens_per_second: Speed of training, beside `loss`.
    """
    path = os.environ.get(OUTPUT)
    if path is None:
        return

    numbers = {"loss": loss, "progress": progress, "tokens_per_second": tokens_per_second}
    line: dict[str, Any] = {key: float(value) for key, value in numbers.items() if value is not None}
    words = {"outcome": outcome, "message": message}
    line |= {key: str(value) for key, value in words.items() if value is not None}
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")


def fill(template: str, values: Mapping[str, Any], quote: Callable[[str], str] = str) -> str:
    """Replace each `{name}` in a template by the value of that name.

    This is no formatting language: names are looked up as they are, so a template can't reach into objects.

    Args:
        template: The text.
        values: By name; floats are written with all digits, so that reading them back gives the same bits.
        quote: Applied to each value.

    Raises:
        StudyFileError: If a name is not in `values`.
    """

    def replace(found: re.Match[str]) -> str:
        name = found.group(1)
        if name is None:
            return found.group()[0]
        if name not in values:
            raise StudyFileError(
                f"command.run: {found.group()!r} is no value of a trial; use one of "
                f"{', '.join(sorted(values))}, or double the braces."
            )
        value = values[name]
        return quote(repr(value) if isinstance(value, float) else str(value))

    return _FIELD.sub(replace, template)


@dataclass
class _Output:
    """What a program has reported so far."""

    loss: float | None = None
    outcome: str | None = None
    message: str = ""
    tokens_per_second: float | None = None
    reports: list[tuple[float, float]] = field(default_factory=list)
    """Progress and loss of the reports that were not passed on yet."""

    def read(self, line: str) -> None:
        """Add a line of JSON.

        Raises:
            CommandError: If it is no report.
        """
        try:
            content = json.loads(line)
            if "tokens_per_second" in content:
                self.tokens_per_second = float(content["tokens_per_second"])
                if len(content) == 1:
                    return
            if "outcome" in content:
                # Of several processes the first to fail knows the reason; that another is lost is no reason.
                if self.outcome in (None, LOST):
                    self.outcome, self.message = str(content["outcome"]), str(content.get("message", ""))
            elif "progress" in content:
                progress = min(max(float(content["progress"]), 0.0), 1.0)
                self.reports.append((progress, float(content["loss"])))
            else:
                self.loss = float(content["loss"])
        except (ValueError, TypeError, KeyError) as error:
            shown = line.strip()[:LINE_LENGTH]
            raise CommandError(f"The program reported {shown!r}, which is no result ({error!r}).") from error

    def result(self, code: int, errors: str) -> float:
        """The program's loss, after its end.

        Args:
            code: Its exit code.
            errors: The end of what it wrote to standard error.

        Raises:
            Diverged, MemoryError, Preempted: As the program reported.
            CommandError: If it ended without a result.
        """
        was_killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        was_stopped = code in (-signal.SIGTERM, 128 + signal.SIGTERM)

        if self.outcome == "diverged":
            raise Diverged(self.message or "The program reported that it diverged.")
        if self.outcome == "out_of_memory":
            raise MemoryError(self.message or "The program reported that it ran out of memory.")
        if self.outcome == LOST or (self.outcome is None and was_killed):
            raise Preempted("A process of the program was killed.", died=True)
        if self.outcome == "preempted" or (self.outcome is None and was_stopped):
            raise Preempted(self.message or "The program was stopped.")
        if self.outcome is not None and self.outcome != "finished":
            raise CommandError(self.message or f"The program ended with the outcome {self.outcome!r}.")

        if self.loss is None or code != 0:
            raise CommandError(f"The program ended with exit code {code} and no result. {errors}")
        if not math.isfinite(self.loss):
            raise Diverged(f"The program's loss is {self.loss}.")
        return self.loss


@dataclass(frozen=True)
class Program:
    """A training program as a study file describes it."""

    run: Sequence[str] | str
    """Arguments, or one string for the shell; both may hold `{names}`."""

    shell: bool
    """Whether a shell reads it."""

    env: Mapping[str, str]
    """Added to the environment; values may hold `{names}`, too."""

    folder: Path
    """Where it runs."""

    def command(self, values: Mapping[str, Any]) -> list[str] | str:
        """The command that is executed.

        Raises:
            StudyFileError: If a `{name}` is not in `values`.
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
        should_stop: Callable[[], bool],
        checkpoint: Path,
        speed: Callable[[float], None] = lambda tokens_per_second: None,
    ) -> float:
        """Run the program once.

        Args:
            values: Values of `{names}`.
            content: Content of the JSON file.
            report: Called with (progress, loss); an exception that it raises ends the program.
            should_stop: Whether this process was asked to end.
            checkpoint: Folder that the program may use, kept from one attempt to the next.
            speed: Called with the tokens per second that the program reports.

        Returns:
            The program's loss.

        Raises:
            Diverged, MemoryError, Preempted: As the program reported.
            CommandError: If it ended without a result.
            StudyFileError: If a `{name}` is not in `values`.
            WorkerError: If it can't be started.
        """
        with tempfile.TemporaryDirectory(prefix="transfer-bo-") as name:
            folder = Path(name)
            output, errors = folder / "output.jsonl", folder / "stderr"
            output.touch()

            paths = {
                "input": str(folder / "input.json"),
                "output": str(output),
                "checkpoint": str(checkpoint),
            }
            Path(paths["input"]).write_text(json.dumps({**content, **paths}))

            values = {**values, **paths}
            environment = {
                **os.environ,
                **{key: fill(text, values) for key, text in self.env.items()},
                INPUT: paths["input"],
                OUTPUT: paths["output"],
                CHECKPOINT: paths["checkpoint"],
            }
            with errors.open("w") as stderr, self.started(values, environment, stderr) as process:
                reported = _follow(process, output, report, should_stop, speed)
                code = process.wait()

            written = errors.read_text(errors="replace").strip()
            reported.message = hide_secret_values(reported.message, environment)
            return reported.result(code, hide_secret_values(written, environment)[-TAIL_LENGTH:])

    @contextlib.contextmanager
    def started(
        self, values: Mapping[str, Any], environment: Mapping[str, str], stderr: IO[str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The running program; it is ended, with its children, when the block ends."""
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
            raise WorkerError(
                f"command.run: {shown!r} can't be started ({error.strerror}); check the path."
            ) from error

        try:
            yield process
        finally:
            _end(process)


def _end_with_worker() -> None:
    """In the new process: ask the kernel for SIGTERM when the worker is gone, however it ended."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _follow(
    process: subprocess.Popen[bytes],
    output: Path,
    report: Callable[[float, float], None],
    should_stop: Callable[[], bool],
    speed: Callable[[float], None],
) -> _Output:
    """Read a program's output until it has ended, and pass its reports on."""
    reported = _Output()
    with output.open() as lines:
        while True:
            has_ended = process.poll() is not None  # asked first: then its last line is there to be read
            while line := lines.readline():
                if not line.endswith("\n") and not has_ended:
                    lines.seek(lines.tell() - len(line.encode()))  # half a line: the rest comes later
                    break
                reported.read(line)

            if reported.tokens_per_second is not None:
                speed(reported.tokens_per_second)
                reported.tokens_per_second = None
            for progress, loss in reported.reports:
                report(progress, loss)
            reported.reports.clear()

            if has_ended:
                return reported
            if should_stop():
                _end(process)
                raise Preempted("The program was stopped.")
            time.sleep(POLL_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and its children, by SIGTERM if it obeys, else by SIGKILL."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived it
