"""What all commands share: the application, options, how errors and interruptions are reported."""

from __future__ import annotations

import contextlib
import functools
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from transfer_bo import __version__
from transfer_bo.errors import TransferError

__all__ = [
    "STORAGE",
    "AxisOption",
    "HpOption",
    "JsonOption",
    "LossOption",
    "MaximizeOption",
    "OptionalStudyArgument",
    "PictureOption",
    "RunsOption",
    "StorageOption",
    "StudyArgument",
    "StudyOption",
    "app",
    "check_picture",
    "command_line",
    "interruptible",
    "output_console",
    "reports_errors",
    "silence_libraries",
]

P = ParamSpec("P")
R = TypeVar("R")

PIPE_WIDTH = 160
"""Columns where the output is no terminal: nobody's window is too narrow, so rows are not folded."""
PICTURE_ENDINGS = (".png", ".svg", ".pdf")
"""Kinds of pictures that `--picture` writes."""
STORAGE = "TRANSFER_BO_STORAGE"
"""Environment variable in the place of `--storage`, which other users of a machine can see."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: the longest one fits a screen
    help="What to set on the large model, before its one expensive run.",
)

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]
OptionalStudyArgument = Annotated[
    Path | None, typer.Argument(metavar="STUDY.toml", help="The study file, if there is one.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="Storage of a study made in Python, e.g. sqlite:///study.db.", envvar=STORAGE, metavar="URL"
    ),
]
StudyOption = Annotated[
    str | None, typer.Option(help="Name of the study, if the storage holds several.", metavar="NAME")
]
RunsOption = Annotated[
    str | None,
    typer.Option(help="Runs of any origin: CSV, JSON, Parquet, or an Optuna storage.", metavar="RUNS"),
]
AxisOption = Annotated[
    list[str] | None, typer.Option(help="Column of RUNS that is an axis of scale.", metavar="COLUMN[=KIND]")
]
HpOption = Annotated[
    list[str] | None,
    typer.Option(help="HP in RUNS; kinds: log, linear, one_minus, categorical.", metavar="COLUMN:KIND"),
]
LossOption = Annotated[str | None, typer.Option(help="Column of RUNS with the metric.", metavar="COLUMN")]
MaximizeOption = Annotated[bool, typer.Option("--maximize", "--maximise", help="Larger metrics are better.")]
PictureOption = Annotated[
    Path | None, typer.Option(help="Write the picture to this file (.png, .svg, .pdf).", metavar="FILE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"transfer-bo {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """What to set on the large model, before its one expensive run."""


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a `TransferError` into its sentence on standard error and exit code 2, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TransferError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None

    return wrapped


def check_picture(picture: Path | None) -> None:
    """Refuse a kind of picture that cannot be written, before anything is computed.

    Raises:
        TransferError: For an unknown ending.
    """
    if picture is not None and picture.suffix not in PICTURE_ENDINGS:
        raise TransferError(
            f"--picture {picture} has no known ending; use one of {', '.join(PICTURE_ENDINGS)}."
        )


def command_line(*arguments: object) -> str:
    """A command of ours as a shell takes it, e.g. with a path that holds a space in quotes."""
    return shlex.join(["transfer-bo", *map(str, arguments)])


@contextlib.contextmanager
def interruptible(command: str | None) -> Iterator[None]:
    """End a command in order on Ctrl-C or SIGTERM, and print how to go on.

    Args:
        command: The command to go on with, as `command_line` makes it; None for the one that was typed.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        again = "the same command." if command is None else command
        typer.echo(f"Stopped. Finished trials are kept; go on with: {again}", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def output_console() -> Console:
    """The console for results, on standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def silence_libraries() -> None:
    """Hide the warnings of libraries; what matters to the user is in `Suggestion.warnings`."""
    import optuna

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
