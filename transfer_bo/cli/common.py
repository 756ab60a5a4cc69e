"""What all commands share: the application, how mistakes and interruptions are spoken of, the console."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from transfer_bo.errors import TransferError

__all__ = ["StudyArgument", "app", "console", "interruptible", "quiet", "spoken"]

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What to set on the large model, before its one expensive run.",
)
StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]


def spoken(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a `TransferError` into its sentence and exit code 2, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TransferError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None

    return wrapped


@contextlib.contextmanager
def interruptible(command: str, study: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command in order: what is finished is kept, and how to go on is said."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Stopped. Finished trials are kept; go on with: transfer-bo {command} {study}", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def console() -> Console:
    """Where results are printed."""
    # Where nobody looks at a window, lines must not be wrapped at its supposed width.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def quiet() -> None:
    """Warnings of libraries are not for the user of a command; what matters is in `Suggestion.warnings`."""
    import optuna

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
