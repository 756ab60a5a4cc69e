"""Runs of a source study as prior data of a new study: `add_past_runs`.

They are stored as finished trials of the new study, so that the study alone holds everything. Such a trial
has no parameters, because the ranges it was searched in are not those of the new study; HPs, scale and origin
are attributes (see `attributes`). The surrogate gives each source study a level of its own and learns how far
its optimum is from the new study's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
import pandas as pd

from transfer_bo.attributes import (
    ADDED_SOURCE_PREFIX,
    OUTCOME_ATTR,
    PARAMS_ATTR,
    PURPOSE_ATTR,
    RUNG,
    SCALE_ATTR,
    SETTINGS_ATTR,
    SOURCE_ATTR,
)
from transfer_bo.deprecation import renamed_argument
from transfer_bo.errors import RunTableError, ScaleError, SearchSpaceError, StudyError
from transfer_bo.notes import Note
from transfer_bo.quantities import counted, parse_number
from transfer_bo.records import Outcome, Run, StudySettings, read_runs
from transfer_bo.run_table.cells import is_empty, is_numeric, read_choices
from transfer_bo.run_table.cleaning import UNIT_HINT, RunTable, read_rows
from transfer_bo.run_table.columns import name_columns, numbers, refuse_other_types
from transfer_bo.run_table.read import STATUS, read_table
from transfer_bo.run_table.schedules import read_schedule
from transfer_bo.run_table.status import is_status
from transfer_bo.sampler import TransferSampler
from transfer_bo.scale import Scale
from transfer_bo.secrets import hide_passwords
from transfer_bo.space import is_multiplier
from transfer_bo.synonyms import RUN_NAMES, STATUSES, STEPS, short_names, without_prefix

__all__ = ["MAX_SOURCE_RUNS", "SourceRuns", "add_past_runs", "is_added", "read_source_runs"]

logger = logging.getLogger(__name__)

MAX_SOURCE_RUNS = 200
"""Runs that are kept of a source study: the time of a fit grows with the cube of their number."""


NOTABLE = frozenset(
    {
        *("unit_of_source", "unit_gap", "schedules_of_source", "status_unknown", "status_ignored"),
        *("history", "history_of_hp"),
    }
)
"""Codes of notes that are repeated in the summary; the others are on rows that the summary counts already."""


@dataclass(frozen=True)
class SourceRuns:
    """What a new study takes over from a source study.

    Attributes:
        name: of the source study.
        runs: its finished runs, at most `MAX_SOURCE_RUNS`.
        left_out: how many of its runs are not among them.
        words: sentences on that.
        notes: sentences on what was done to its rows, or is odd about them.
    """

    name: str
    runs: list[Run]
    left_out: int
    words: str
    notes: list[Note] = field(default_factory=list)

    def store(self, study: optuna.Study) -> int:
        """Add the runs that a study does not hold yet, as finished trials.

        Args:
            study: the new study.

        Returns:
            How many runs were added.

        Raises:
            StudyError: if the study holds other runs under this name.
        """
        sources = {self.name, *(run.source for run in self.runs)}
        stored = [run for run in read_runs(study) if run.source in sources]
        missing = Counter(map(_key, self.runs))
        missing.subtract(map(_key, stored))
        if any(count < 0 for count in missing.values()):
            raise StudyError(
                f"The study holds other runs of a source study named {self.name!r}; give these another name."
            )

        added = 0
        for run in self.runs:
            if missing[_key(run)] > 0:
                missing[_key(run)] -= 1
                study.add_trial(_trial(run))
                added += 1

        study.set_user_attr(f"{ADDED_SOURCE_PREFIX}{self.name}", len(self.runs))
        return added


@renamed_argument("past", "source")
def add_past_runs(
    study: optuna.Study,
    source: Any,
    *,
    name: str | None = None,
    axes: Sequence[str] | None = None,
    hps: Mapping[str, str] | None = None,
    loss: str = "loss",
    scale: Mapping[str, float] | None = None,
) -> int:
    """Give a new study the runs of a source study as prior data.

    The new study's surrogate fits them with a level of their own, so another data set or tokenizer does no
    harm, and learns how many octaves their optimum is from the new one: that is their weight. In a table of
    several learning-rate schedules, the runs of each are a source study of their own. Runs that
    diverged, failed or were stopped are left out; of more than 200 (`MAX_SOURCE_RUNS`) the best and a
    spread of the others are kept, per scale, repeats averaged. Adding the same runs under the same name once
    more adds nothing, or, after an interruption, what was missing.

    Args:
        study: made with a `TransferSampler` that has a ladder. It may have trials.
        source: an Optuna study or the URL of a storage that holds one; a DataFrame, the path of a CSV or
            Parquet file. It must hold the same metric.
        name: of the source study; by default that of the Optuna study, the file's, or "past" for a DataFrame.
        axes: columns that are axes of scale; by default those of the new study's axes that are there.
        hps: column -> "log", "linear", "one_minus" or "categorical". Runs that lack one of them are left out.
            By default every HP of an Optuna study, and every column of numbers or a few words of a table,
            that no finished run lacks (a multiplier that is missing was 1), but for columns that tell the
            schedule, unless the new study has trials that search it. They count where the new study searches
            HPs of the same names.
        loss: column of the metric.
        scale: where all of the source runs ran, for axes that the table does not have, such as
            tb.Scale(width=64).

    Returns:
        How many runs were added.

    Raises:
        StudyError: for a study without a ladder, a source study that optimizes in the other direction, or
            other runs under the name of an earlier source study.
        RunTableError: for runs that cannot be read, or that lack an axis.
        StorageError: for an address that cannot be opened.
        SearchSpaceError: for runs without an HP that the study searches.
    """
    searched = {hp for trial in study.get_trials(deepcopy=False) for hp in trial.params if hp != RUNG}
    found = read_source_runs(
        source,
        scales=_known_scales(study),
        searched=searched,
        maximize=study.direction == optuna.study.StudyDirection.MAXIMIZE,
        name=name,
        axes=axes,
        hps=hps,
        loss=loss,
        scale=scale,
    )

    known = {hp for run in found.runs for hp in run.params}
    if searched and not searched & known:
        raise SearchSpaceError(
            f"Source study {found.name!r} has the HPs {', '.join(sorted(known)[:8])}, none of which this "
            f"study searches ({', '.join(sorted(searched)[:8])}); rename its columns."
        )

    notable = found.left_out > 0 or any(note.code in NOTABLE for note in found.notes)
    logger.log(logging.WARNING if notable else logging.INFO, found.words)
    added: int = found.store(study)
    return added


def is_added(study: optuna.Study, name: str) -> bool:
    """Whether all runs of a source study have been stored.

    Args:
        study: the new study.
        name: of the source study.
    """
    return f"{ADDED_SOURCE_PREFIX}{name}" in study.user_attrs


def read_source_runs(
    source: Any,
    *,
    scales: Sequence[Scale],
    searched: Collection[str] = (),
    maximize: bool = False,
    name: str | None = None,
    axes: Sequence[str] | None = None,
    hps: Mapping[str, str] | None = None,
    loss: str = "loss",
    scale: Mapping[str, float] | None = None,
    study: str | None = None,
) -> SourceRuns:
    """The runs that `add_past_runs` would store; nothing is written.

    Args:
        source: an Optuna study or the URL of a storage, a DataFrame, the path of a CSV or Parquet file.
        scales: scales of the new study, at least one.
        searched: HPs of the new study, as far as they are known.
        maximize: whether larger metrics are better in the new study.
        name: of the source study; by default that of the Optuna study, the file's, or "past" for a DataFrame.
        axes: columns that are axes of scale; by default those of the new study's axes that are there.
        hps: column -> "log", "linear", "one_minus" or "categorical"; by default every column that may be an
            HP and that no finished run lacks.
        loss: column of the metric.
        scale: where all of the source runs ran, for axes that the table does not have.
        study: name of the source study, if its storage holds several.

    Raises:
        StudyError: for a source study that optimizes in the other direction.
        RunTableError: for runs that cannot be read, or that lack an axis.
        StorageError: for an address that cannot be opened.
        ScaleError: for an axis that the new study does not have.
        SearchSpaceError: for an HP whose values cannot be used.
        NoRunsError: if no run has finished.
    """
    refuse_other_types(() if axes is None else axes, {} if hps is None else hps)
    name = name or study or _name_of(source)
    table = read_table(source, study, loss)
    if table.attrs.get("maximize", maximize) != maximize:
        way = ("minimizes", "maximizes")
        raise StudyError(
            f"Source study {name!r} {way[not maximize]} its metric and this study {way[maximize]}; "
            "give a source study of the same metric."
        )

    if "hps" not in table.attrs:
        table = _with_short_names(table, {loss, *(axes or []), *(hps or {})})
    if scale is not None:
        fixed = {
            axis: parse_number(value) if isinstance(value, str) else value for axis, value in scale.items()
        }
        table = table.assign(**{str(axis): float(value) for axis, value in Scale(fixed).items()})
    axes = _axes(table, name, list(scales[0]), axes, scale or {})
    taken = {*axes, loss, *searched, *(hps or table.attrs.get("hps", {}))}
    schedule = read_schedule(table, None, list(taken))
    columns = name_columns(table, axes, hps or _guessed_hps(table, [*axes, *schedule], loss), loss)
    columns = replace(columns, schedule=schedule)
    rows = read_rows(table, columns, maximize=maximize, seed=0, most=MAX_SOURCE_RUNS)

    runs = [
        Run(
            number=number,
            params={**rows.constants, **run.params},
            scale=run.scale,
            outcome=Outcome.FINISHED,
            loss=run.loss,
            purpose="past",
            source=name if run.source is None else f"{name}, {run.source}",
            constraints=run.constraints,
        )
        for number, run in enumerate(rows.runs)
        if run.outcome is Outcome.FINISHED
    ]

    for hp, value in (pair for run in runs for pair in run.params.items()):
        if not isinstance(value, str | int | float):
            raise SearchSpaceError(
                f"Source study {name!r}: HP {hp!r} is {value!r}; categories are words or numbers."
            )
    notes = [note for note in rows.notes if note.code != "schedules_mixed"]  # that is on the target's
    notes += [*_schedule_notes(runs, name, list(schedule)), *_unit_notes(runs, name, scales)]
    words = [_summary(name, len(table), len(runs), rows), *(note for note in notes if note.code in NOTABLE)]
    return SourceRuns(name, runs, len(table) - len(runs), " ".join(words), notes)


def _with_short_names(table: pd.DataFrame, named: set[str]) -> pd.DataFrame:
    """Columns without the prefixes of trackers, but for those that the user named or that would be two."""
    short = {name: without_prefix(name) for name in table.columns if name not in named}
    names = [*named, *short.values()]
    return table.rename(columns={name: new for name, new in short.items() if names.count(new) == 1})


def _trial(run: Run) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        value=run.loss,
        user_attrs={
            SCALE_ATTR: dict(run.scale or {}),
            PURPOSE_ATTR: run.purpose,
            SOURCE_ATTR: run.source,
            PARAMS_ATTR: run.params,
            OUTCOME_ATTR: str(run.outcome),
        },
        constraints=dict(run.constraints),
    )


def _key(run: Run) -> tuple[Any, ...]:
    """What tells a run from others: storages keep numbers exactly."""
    return run.scale, frozenset(run.params.items()), run.loss


def _known_scales(study: optuna.Study) -> list[Scale]:
    """The scales of a study or, before its first trial, of its sampler.

    Raises:
        StudyError: if there is no ladder.
    """
    if SETTINGS_ATTR in study.user_attrs:
        return list(StudySettings.from_json(study.user_attrs[SETTINGS_ATTR]).scales)
    ladder = study.sampler.ladder if isinstance(study.sampler, TransferSampler) else None
    if ladder is None:
        raise StudyError(
            f"Study {study.study_name!r} has no ladder, so source runs have no place in it; create it with "
            "sampler=TransferSampler(ladder=..., target=...)."
        )
    return list(ladder)


def _name_of(source: Any) -> str:
    if hasattr(source, "study_name"):
        return str(source.study_name)
    if isinstance(source, pd.DataFrame):
        return "past"
    return str(source).rstrip("/").rpartition("/")[2].partition("?")[0].partition(".")[0] or "past"


def _axes(
    table: pd.DataFrame,
    name: str,
    needed: Sequence[str],
    given: Sequence[str] | None,
    scale: Mapping[str, float],
) -> list[str]:
    """The new study's axes, each of which the source runs must have.

    Raises:
        ScaleError: naming an axis that the new study does not have.
        RunTableError: naming an axis that is missing.
    """
    for axis in [*(given or []), *scale]:
        if axis not in needed:
            raise ScaleError(
                f"Source study {name!r}: {axis!r} is no axis of this study; its axes are {', '.join(needed)}."
            )

    known = {*scale, *(table.columns if given is None else given)}
    lacking = [axis for axis in needed if axis not in known]
    if lacking:
        raise RunTableError(
            f"The runs of source study {name!r} lack {' and '.join(lacking)}; tell where they ran, as in "
            f"scale={{{', '.join(f'{axis!r}: ...' for axis in lacking)}}}."
        )
    return list(needed)


def _guessed_hps(table: pd.DataFrame, axes: Sequence[str], loss: str) -> dict[str, str]:
    """Column -> kind of everything that may be an HP and that no finished run lacks.

    The kind only determines how a column is read, so numbers are "linear". Missing multipliers are filled in.

    Raises:
        RunTableError: for a table without the metric.
        SearchSpaceError: if no column looks like an HP.
    """
    known: dict[str, str] | None = table.attrs.get("hps")
    if loss not in table.columns:
        listed = ", ".join(table.columns[:12])
        raise RunTableError(f"The source runs have no column {loss!r}; name that of the metric: {listed}.")

    finished = np.isfinite(numbers(table, loss).values)
    found = {}
    for column in table.columns if known is None else known:
        if column in (*axes, loss, STATUS) or (known is None and _is_about_the_run(column, table[column])):
            continue

        numeric = is_numeric(table[column])
        if numeric and is_multiplier(column):
            table[column] = table[column].astype(object).map(lambda cell: 1.0 if is_empty(cell) else cell)
        if numeric and np.isfinite(numbers(table, column).values[finished]).all():
            found[column] = "linear"
        elif not numeric and _is_categorical(table[column][finished], column):
            found[column] = "categorical"

    if not found:
        raise SearchSpaceError(
            "No column of the source runs looks like an HP that all finished runs have; name some, e.g. "
            "hps={'lr': 'log'}."
        )
    return found


def _is_about_the_run(column: str, cells: pd.Series[Any]) -> bool:
    """Whether a column tells which run it is or how it ended."""
    names = {*STATUSES, *RUN_NAMES, *STEPS}
    return bool(names & set(short_names(column))) or is_status(column, cells)


def _is_categorical(cells: pd.Series[Any], name: str) -> bool:
    """Whether all cells are categories, and few enough."""
    try:
        choices = read_choices(cells, name)
    except SearchSpaceError:
        return False
    return bool(choices.map(lambda choice: isinstance(choice, str | bool)).all())


def _schedule_notes(runs: Sequence[Run], name: str, columns: Sequence[str]) -> list[Note]:
    """A note if runs of several learning-rate schedules are source studies of their own."""
    counts = Counter(run.source for run in runs)
    if len(counts) < 2:
        return []
    listed = "; ".join(f"{source!r} ({count})" for source, count in counts.most_common())
    return [
        Note(
            f"The runs of source study {name!r} have several schedules by {', '.join(columns)}: {listed}; "
            "each has a level and an optimum of its own.",
            "schedules_of_source",
            columns=list(columns),
        )
    ]


def _unit_notes(runs: Sequence[Run], name: str, scales: Sequence[Scale]) -> list[Note]:
    """A note on each axis that source and new runs may count in different units."""
    notes = []
    for axis in scales[0]:
        new = [scale[axis] for scale in scales]
        old = [run.scale[axis] for run in runs if run.scale is not None]
        if max(min(new) / max(old), min(old) / max(new)) >= UNIT_HINT:
            notes.append(
                Note(
                    f"Source study {name!r} has {axis} from {min(old):g} to {max(old):g} and this study from "
                    f"{min(new):g} to {max(new):g}; if these are two units, write both in the same one.",
                    "unit_of_source",
                    column=axis,
                    values=[min(old), max(old), min(new), max(new)],
                )
            )
    return notes


def _summary(name: str, n_rows: int, n_kept: int, rows: RunTable) -> str:
    finished = rows.counts[Outcome.FINISHED]
    thinned = (
        "" if finished == n_kept else f" {finished - n_kept} of the finished ones are repeats or too many."
    )
    return hide_passwords(
        f"Source study {name!r}: {n_kept} of {counted(n_rows, 'run')} taken; {n_rows - finished} did "
        "not finish, "
        f"diverged, lack a value or are copies.{thinned}"
    )
