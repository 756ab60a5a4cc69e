"""The command line: `transfer-bo run | suggest | verify | report | status | coord-check STUDY.toml`.

Bad input ends with one sentence on standard error and exit code 2; Ctrl-C with 130. Heavy imports wait until
a command needs them, so that help and mistakes in a study file are quick.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from transfer_bo.errors import TransferError
from transfer_bo.study_file import StudyFile, load_study_file

__all__ = ["app", "main"]

P = ParamSpec("P")
R = TypeVar("R")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What to set on the large model, before its one expensive run.",
)
StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]


def main() -> None:
    """Entry point of the `transfer-bo` command."""
    app()


def _spoken(command: Callable[P, R]) -> Callable[P, R]:
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
def _interruptible(command: str, study: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a command in order: what is finished is kept, and how to go on is said."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"Stopped. Finished trials are kept; go on with: transfer-bo {command} {study}", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _console() -> Console:
    # Where nobody looks at a window, lines must not be wrapped at its supposed width.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _quiet() -> None:
    """Warnings of libraries are not for the user of a command; what matters is in `Suggestion.warnings`."""
    import optuna

    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@app.command()
@_spoken
def run(study: StudyArgument) -> None:
    """Search on the proxies until the budget is spent. The same command again goes on where it stopped."""
    study_file = load_study_file(study)
    _quiet()
    from transfer_bo.runners.local import run_search

    console = _console()
    with _interruptible("run", study):
        if not run_search(study_file, console):
            console.print("The budget is spent; there is nothing left to search.")
    console.print(f"Results are in {study_file.out}\nNext: transfer-bo verify {study}", soft_wrap=True)


@app.command()
@_spoken
def suggest(
    study: StudyArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What to set at the target, with intervals, from the trials so far."""
    study_file = load_study_file(study)
    _quiet()
    suggestion = _suggestion(study_file)
    if as_json:
        typer.echo(json.dumps(suggestion.to_json(), indent=2))
        return
    from transfer_bo.runners.progress import projection_table

    console = _console()
    console.print(projection_table(suggestion))
    for warning in suggestion.warnings:
        console.print(f"Note: {warning}", soft_wrap=True, markup=False)


def _suggestion(study_file: StudyFile) -> Any:
    from transfer_bo.projection import suggest
    from transfer_bo.runners.storage import open_study

    return suggest(open_study(study_file), target=study_file.target)


@app.command()
@_spoken
def verify(study: StudyArgument) -> None:
    """Run the suggestion at full size, beside the defaults, and compare with what was predicted."""
    study_file = load_study_file(study)
    _quiet()
    from transfer_bo.runners.local import run_verification

    console = _console()
    with _interruptible("verify", study):
        verification = run_verification(study_file, console)
    console.print(verification.text, soft_wrap=True, markup=False)


@app.command()
@_spoken
def report(study: StudyArgument) -> None:
    """Write everything the study knows into one HTML file."""
    study_file = load_study_file(study)
    _quiet()
    from transfer_bo.report import tensor_settings, write_report
    from transfer_bo.runners.storage import open_study
    from transfer_bo.runners.trial import StudyTask

    opened, task, target = open_study(study_file), StudyTask(study_file), study_file.target
    path = write_report(
        opened,
        study_file.out / "report.html",
        title=study_file.name,
        provenance={
            "seed": study_file.seed,
            "storage": study_file.storage_url,
            "study file": study_file.path.read_text(encoding="utf-8"),
        },
        tensor_table=lambda hps: tensor_settings(task.parametrization(target), task.build(target), hps),
    )
    _console().print(f"Report: {path}", soft_wrap=True, markup=False)


@app.command()
@_spoken
def status(study: StudyArgument) -> None:
    """Trials by outcome and the best loss, per rung; compute spent."""
    study_file = load_study_file(study)
    _quiet()
    from transfer_bo.history import read_runs
    from transfer_bo.runners.progress import rung_table, spent_text, summarise
    from transfer_bo.runners.storage import open_study

    opened = open_study(study_file)
    runs = read_runs(opened)
    console = _console()
    console.print(rung_table(summarise(runs)))
    console.print(spent_text(opened, runs))


@app.command("coord-check")
@_spoken
def coord_check(study: StudyArgument) -> None:
    """Do layers change alike in wider and deeper models under the study's rule? Exit code 1 if not."""
    study_file = load_study_file(study)
    _quiet()
    from rich.table import Table

    from transfer_bo.parametrization.coordcheck import coordinate_check
    from transfer_bo.runners.trial import StudyTask

    task, rule = StudyTask(study_file), study_file.parametrization
    base = study_file.base.replace(depth=max(4, study_file.base.depth))  # one block shows nothing of depth
    check = coordinate_check(
        task.build, base, rule.rule, rule.alpha, hps=task.space.defaults, factors=(1, 2, 4)
    )
    study_file.out.mkdir(parents=True, exist_ok=True)
    picture = study_file.out / "coord_check.png"
    check.plot().savefig(picture)
    console = _console()
    table = Table("axis", "layer", "growth exponent", "95% interval", "verdict", title=f"Rule {check.rule}")
    for g in check.growths:
        table.add_row(g.axis, g.module, f"{g.exponent:+.2f}", f"{g.low:+.2f} to {g.high:+.2f}", g.verdict)
    console.print(table)
    console.print(
        f"{'Passed' if check.passed else 'Failed'}. Picture: {picture}", soft_wrap=True, markup=False
    )
    if not check.passed:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
