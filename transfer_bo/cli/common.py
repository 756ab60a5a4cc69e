"""What all commands share: the application, its flags, how mistakes and interruptions are spoken of."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from transfer_bo.errors import TransferError

__all__ = [
    "AxisOption",
    "HpOption",
    "JsonOption",
    "LossOption",
    "MaximiseOption",
    "RunsOption",
    "StudyArgument",
    "StudyOption",
    "StudyOrRuns",
    "app",
    "console",
    "interruptible",
    "kind_of",
    "once",
    "quiet",
    "scale_of",
    "spoken",
]

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What to set on the large model, before its one expensive run.",
)
StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]

# Of the commands that take a study file or a table of past runs.
StudyOrRuns = Annotated[
    Path | None, typer.Argument(metavar="[STUDY.toml]", help="The study file; without it give --runs.")
]
RunsOption = Annotated[
    str | None, typer.Option(help="Past runs: CSV, Parquet, or an Optuna storage URL.", metavar="RUNS")
]
StudyOption = Annotated[str | None, typer.Option(help="Name of the Optuna study in that storage.")]
AxisOption = Annotated[list[str] | None, typer.Option(help="Column that is an axis of scale.")]
HpOption = Annotated[
    list[str] | None,
    typer.Option(help="Column that is an HP: NAME:log, :linear, :one_minus or :categorical."),
]
LossOption = Annotated[str | None, typer.Option(help="Column of the metric.")]
MaximiseOption = Annotated[bool, typer.Option("--maximize", help="Larger metrics are better.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


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


def kind_of(text: str) -> tuple[str, str]:
    """A flag's HP:KIND."""
    name, colon, kind = text.rpartition(":")
    if not colon or not name:
        raise TransferError(f"--hp {text} names no kind; write e.g. --hp {text.strip(':') or 'lr'}:log.")
    return name, kind


def once(pairs: Sequence[tuple[str, V]], flag: str) -> dict[str, V]:
    """What a flag said of each name; refused where it spoke of one name twice."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TransferError(f"{flag} is given twice for {twice!r}; give it once.")
    return dict(pairs)


def scale_of(texts: Sequence[str], flag: str) -> dict[str, float]:
    """A flag's AXIS=NUMBER, once for each axis."""
    return once([_pair(text, flag) for text in texts], flag)


def _pair(text: str, flag: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise TransferError(f"{flag} {text} is no AXIS=NUMBER; write e.g. {flag} n_params=1.07e9.") from None
