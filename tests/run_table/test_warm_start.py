"""Runs of source studies in a new one: what is stored, what is refused, and who takes them for own runs."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from fake_fit import FakeFit
from rich.console import Console

import transfer_bo as tb
from transfer_bo.attributes import PARAMS_ATTR, SOURCE_ATTR
from transfer_bo.display.tables import rung_table, summarise
from transfer_bo.errors import RunTableError, ScaleError, SearchSpaceError, StudyError, TransferError
from transfer_bo.projection import fit_study
from transfer_bo.records import Outcome, Run, read_runs, read_settings
from transfer_bo.report.compute import runs_and_compute
from transfer_bo.report.source_studies import source_studies
from transfer_bo.report.state import read_state
from transfer_bo.run_table.warm_start import MAX_SOURCE_RUNS, is_added, read_source_runs
from transfer_bo.runners.study_search import search_is_over
from transfer_bo.runners.task import make_task
from transfer_bo.runners.warm_start import read_missing_source_runs, refuse_missing_source_runs
from transfer_bo.runners.worker_loop import WorkerOptions, work
from transfer_bo.search.budget import spent
from transfer_bo.store.open_study import create_study, find_study
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
RUNGS = [tb.Scale(width=64, tokens=1e8), tb.Scale(width=128, tokens=1e8)]
TARGET = tb.Scale(width=512, tokens=1e9)
COSTS = {scale: float(scale.width) for scale in [*RUNGS, TARGET]}
BUDGET = '[[past]]\nruns = "old.csv"\n\n[budget]'


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Optuna tells of every trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def make(seed: int = 0, direction: str = "minimize", **options: Any) -> optuna.Study:
    """A new study with a ladder; a run elsewhere than on its scales has no cost."""
    sampler = tb.TransferSampler(
        ladder=tb.Ladder(RUNGS), target=TARGET, seed=seed, cost=COSTS.__getitem__, **options
    )
    return optuna.create_study(sampler=sampler, direction=direction)


def search(study: optuna.Study, n_trials: int) -> None:
    """Run trials with a formula in the place of training."""
    assert isinstance(study.sampler, tb.TransferSampler)
    ladder = study.sampler.ladder
    assert ladder is not None

    @tb.objective
    def loss(trial: optuna.Trial) -> float:
        scale = ladder.suggest(trial)
        z = math.log2(trial.suggest_float("lr", 1e-4, 1e-1, log=True)) + 7
        w = math.log2(trial.suggest_float("weight_decay", 1e-3, 1.0, log=True)) + 3
        return 2 + 10 / scale.width + 0.02 * z**2 + 0.002 * w**2

    study.optimize(loss, n_trials=n_trials)


def table(n: int = 12, seed: int = 0) -> pd.DataFrame:
    """Past runs at widths that are no rungs."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "width": rng.choice([48, 96], n),
            "tokens": 1e8,
            "lr": 2.0 ** rng.uniform(-10, -4, n),
            "weight_decay": 2.0 ** rng.uniform(-5, -1, n),
        }
    )
    return frame.assign(loss=3 + 10 / frame.width + 0.02 * (np.log2(frame.lr) + 7.3) ** 2)


def stored(study: optuna.Study) -> list[Run]:
    """The runs of source studies."""
    return [run for run in read_runs(study) if run.source is not None]


def test_a_table_is_stored_as_finished_runs_of_another_study() -> None:
    """HPs, scale and loss as they were, constants too; no parameters, so no ranges."""
    study, frame = make(), table().assign(optimizer="adam")

    added = tb.add_past_runs(study, frame, name="old")

    runs = stored(study)
    expected = [(row.pop("loss"), row) for row in frame.to_dict("records")]
    got = [(run.loss, {**(run.scale or {}), **run.params}) for run in runs]
    assert 12 == added == len(runs)
    assert expected == got
    assert {("old", "past", Outcome.FINISHED)} == {(r.source, r.purpose, r.outcome) for r in runs}
    assert all(not trial.params for trial in study.trials)
    assert is_added(study, "old")


def test_a_study_with_scales_is_stored_with_its_name() -> None:
    """Its own past runs stay behind: they are of another level still."""
    old, study = make(), make()
    tb.add_past_runs(old, table())
    search(old, 3)

    added = tb.add_past_runs(study, old)

    own = [(run.params, run.scale, run.loss) for run in read_runs(old) if run.source is None]
    assert 3 == added
    assert own == [(run.params, run.scale, run.loss) for run in stored(study)]
    assert {old.study_name} == {run.source for run in stored(study)}


def test_any_study_will_do_if_it_is_said_where_it_ran() -> None:
    """Optuna's plain trials have no scale."""
    old, study = optuna.create_study(study_name="plain"), make()
    old.optimize(lambda trial: 1 + trial.suggest_float("lr", 1e-4, 1e-1, log=True), n_trials=4)

    with pytest.raises(RunTableError, match="width and tokens"):
        tb.add_past_runs(study, old)
    added = tb.add_past_runs(study, old, scale=RUNGS[0])

    assert 4 == added
    assert {RUNGS[0]} == {run.scale for run in stored(study)}


@pytest.mark.parametrize("kept", [0, 5])
def test_added_twice_is_added_once(kept: int) -> None:
    """The same runs again add nothing; after a kill half-way, what is missing; repeats are repeats."""
    frame = pd.concat([table(), table().assign(seed=1)], ignore_index=True)
    whole, study = make(), make()
    tb.add_past_runs(whole, frame)
    for trial in whole.trials[:kept]:
        study.add_trial(trial)

    added = [tb.add_past_runs(study, frame) for _ in range(2)]

    def values(of: optuna.Study) -> list[Any]:
        return sorted((run.loss, *run.params.values()) for run in stored(of))

    assert [24 - kept, 0] == added
    assert values(whole) == values(study)


def test_of_a_large_table_the_best_and_a_spread_are_kept() -> None:
    """At most 200, the best of each width among them."""
    study, frame = make(), table(500)

    added = tb.add_past_runs(study, frame)

    kept = {(run.scale.width, run.loss) for run in stored(study) if run.scale}
    best = {(width, rows.loss.min()) for width, rows in frame.groupby("width")}
    assert MAX_SOURCE_RUNS == added
    assert best <= kept
    assert added == tb.add_past_runs(make(), frame)


def test_only_finished_runs_are_stored_and_the_others_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Not nan, not inf, not a blown-up loss, not a failed run."""
    frame = table(12)
    frame.loc[0, "loss"], frame.loc[1, "loss"], frame.loc[2, "loss"] = math.nan, math.inf, 1e6
    study = make()

    added = tb.add_past_runs(study, frame.assign(status=["finished"] * 11 + ["failed"]))

    assert 8 == added == len(stored(study))
    assert "8 of 12 runs taken; 4 did not finish" in caplog.text


def test_an_hp_that_some_runs_lack_is_left_out_and_a_multiplier_was_one() -> None:
    """Unless it is named: then the runs that lack it are left out."""
    frame = table(12).assign(**{"momentum": 0.9, "lr.q": 2.0, "beta": [0.1, 0.2] * 6})
    frame.loc[:4, "momentum"], frame.loc[:4, "lr.q"] = math.nan, math.nan
    free, named = make(), make()

    tb.add_past_runs(free, frame)
    added = tb.add_past_runs(named, frame, hps={"lr": "log", "momentum": "linear"})

    assert [1.0] * 5 + [2.0] * 7 == [run.params["lr.q"] for run in stored(free)]
    assert {"lr", "weight_decay", "lr.q", "beta"} == {hp for run in stored(free) for hp in run.params}
    assert 7 == added


REFUSED: dict[str, tuple[Any, dict[str, Any], type[TransferError], str]] = {
    "axis that is not there": (table().drop(columns="tokens"), {}, RunTableError, "tokens"),
    "axis of no ladder": (table(), {"axes": ["width", "depth"]}, ScaleError, "'depth'"),
    "axis that is not named": (table(), {"axes": ["width"]}, RunTableError, "tokens"),
    "no such metric": (table(), {"loss": "val"}, RunTableError, "'val'"),
    "no HP": (table()[["width", "tokens", "loss"]], {}, SearchSpaceError, "hps="),
    "no file": ("nowhere.csv", {}, RunTableError, "nowhere.csv"),
    "no runs": (3, {}, RunTableError, "int"),
}


@pytest.mark.parametrize(("source", "options", "error", "named"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_used_is_refused(
    source: Any, options: dict[str, Any], error: type[TransferError], named: str
) -> None:
    """The error names the axis, column or value, and nothing is stored."""
    study = make()

    with pytest.raises(error) as caught:
        tb.add_past_runs(study, source, **options)

    assert named in str(caught.value)
    assert [] == study.trials


@pytest.mark.parametrize("searched", [False, True])
def test_schedules_are_source_studies_of_their_own(searched: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The commonest has the table's name; where the study searches the schedule, it is one of the HPs."""
    lrs = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    table = pd.DataFrame({"width": 64, "tokens": 1e8, "lr": lrs, "loss": [2.2, 2.1, 2.0, 2.1, 2.2]})
    table["lr_schedule"] = ["cosine", "cosine", "cosine", "wsd", "wsd"]
    study = make()
    if searched:
        space = {"lr_schedule": optuna.distributions.CategoricalDistribution(["cosine", "wsd"])}
        study.add_trial(optuna.create_trial(params={"lr_schedule": "wsd"}, distributions=space, value=2.0))

    assert 5 == tb.add_past_runs(study, table, name="old")
    assert 0 == tb.add_past_runs(study, table, name="old")

    runs = [run for run in read_runs(study) if run.source is not None]
    expected = ["old"] * 5 if searched else ["old"] * 3 + ["old, schedule wsd"] * 2
    assert expected == [run.source for run in runs]
    assert [searched] * 5 == ["lr_schedule" in run.params for run in runs]
    assert searched != ("several schedules by lr_schedule" in caplog.text)


def test_a_study_that_goes_the_other_way_is_refused() -> None:
    """A minimized loss says nothing about a maximized metric."""
    old = make(direction="maximize")
    search(old, 2)

    with pytest.raises(StudyError):
        tb.add_past_runs(make(), old)


def test_other_runs_under_the_same_name_are_refused() -> None:
    """They would share a level and a shift that are not theirs."""
    study = make()
    tb.add_past_runs(study, table())

    with pytest.raises(StudyError, match="'past'"):
        tb.add_past_runs(study, table(seed=1))
    tb.add_past_runs(study, table(seed=1), name="older")

    assert {"past", "older"} == {run.source for run in stored(study)}


def test_the_old_name_of_the_argument_still_works() -> None:
    """`past=` warns and does what `source=` does."""
    with pytest.warns(DeprecationWarning, match="past="):
        added = tb.add_past_runs(make(), past=table())

    assert 12 == added


def test_a_study_without_a_ladder_or_a_common_hp_is_refused() -> None:
    """There is no scale to put them at, or nothing that they say."""
    study = make()
    search(study, 1)

    with pytest.raises(StudyError):
        tb.add_past_runs(optuna.create_study(), table())
    with pytest.raises(SearchSpaceError, match="rate"):
        tb.add_past_runs(study, table().rename(columns={"lr": "rate", "weight_decay": "decay"}))


def test_a_search_with_past_runs_starts_the_surrogate_early_and_is_repeatable() -> None:
    """The same seed proposes the same; past scales are no rungs and need no cost, past runs cost nothing."""
    proposed = []
    for _ in range(2):
        study = make(budget=1000.0)
        tb.add_past_runs(study, table().assign(width=1000, tokens=3e8), name="old")
        search(study, 3)
        proposed.append([trial.params for trial in study.trials])
    suggestion, settings = tb.suggest(study), read_settings(study)

    assert proposed[0] == proposed[1]
    assert {*RUNGS, TARGET} == set(settings.scales)
    assert sum(run.scale.width for run in read_runs(study) if run.scale and not run.source) == spent(
        settings, read_runs(study)
    )
    assert {"finished": 3} == suggestion.provenance["runs"]
    assert 12 == suggestion.provenance["past"]["old"]["runs"]
    assert any("12 runs" in warning and "'old'" in warning for warning in suggestion.warnings)


def test_past_values_without_a_place_in_the_new_ranges_are_not_fitted() -> None:
    """No weight decay at all, on a log scale; and an optimizer in the place of a number."""
    study, frame = make(), table()
    tb.add_past_runs(study, frame.assign(weight_decay=[0.0, 0.0] + [0.1] * 10), name="zeros")
    tb.add_past_runs(study, frame.assign(weight_decay=["adam", "sgd"] * 6), name="words")

    search(study, 1)
    past = fit_study(study).sources()

    assert {"zeros": 10} == {name: of["runs"] for name, of in past.items()}


def test_tables_show_a_past_study_in_one_row() -> None:
    """Status has a row for it, the report takes its runs for no checks and no runs of its own."""
    study, shown = make(), io.StringIO()
    tb.add_past_runs(study, table(), name="old")
    search(study, 2)
    Console(file=shown, width=160).print(rung_table(summarise(read_runs(study))))
    lines = [line for line in shown.getvalue().splitlines() if "source" in line]
    state = read_state(study, FakeFit([]))  # type: ignore[arg-type]
    page = "".join(source_studies(dataclasses.replace(state, fit=None)))

    assert [["source:", "old", "12"]] == [line.split() for line in lines]
    assert [] == state.checks
    assert 2 == len(state.own)
    assert "All 12 runs of old" in page
    assert "old" not in "".join(runs_and_compute(state))


def with_past(write: WriteStudy, content: str = BUDGET, columns: dict[str, Any] | None = None) -> Path:
    """A study file with [[past]], and the table it speaks of."""
    path = write(("[budget]", content))
    axes = {"width": 16, "depth": 1, "batch": 2, "tokens": 512}
    rows = [{**axes, "lr": 2.0**-i, "loss": 2 + i / 10} for i in range(4)]
    pd.DataFrame(rows).assign(**(columns or {})).to_csv(path.parent / "old.csv", index=False)
    return path


def test_a_study_file_brings_its_past_runs_once(write_study: WriteStudy) -> None:
    """Read before the study is made; then not read again, even if the table is gone; workers wait."""
    path = with_past(write_study)
    study_file = load_study_file(path)
    task = make_task(study_file)
    with pytest.raises(TransferError, match="'old' are not in the study yet"):
        refuse_missing_source_runs(study_file, find_study(study_file))
    found = read_missing_source_runs(task, find_study(study_file))
    was_written = study_file.out.exists()
    study = create_study(study_file, task.definition())

    added = [past.store(study) for past in found]
    (path.parent / "old.csv").unlink()
    refuse_missing_source_runs(study_file, study)

    assert not was_written
    assert [4] == added
    assert [] == read_missing_source_runs(task, study)
    assert "old.csv" not in str(study.user_attrs)
    assert not search_is_over(task, study, read_runs(study))


def test_a_source_study_that_knows_nothing_of_the_space_is_refused(write_study: WriteStudy) -> None:
    """Naming file and key; a bad table too."""
    path = with_past(write_study)
    frame = pd.read_csv(path.parent / "old.csv")

    frame.rename(columns={"lr": "rate"}).to_csv(path.parent / "old.csv", index=False)
    with pytest.raises(TransferError, match=r"tiny.toml: past\[0\]: its HPs are rate, none of which is in"):
        read_missing_source_runs(make_task(load_study_file(path)), None)
    frame.drop(columns="depth").to_csv(path.parent / "old.csv", index=False)
    with pytest.raises(TransferError, match=r"tiny.toml: past\[0\]: .* depth"):
        read_missing_source_runs(make_task(load_study_file(path)), None)


def test_the_first_own_trial_runs_the_defaults_behind_past_runs() -> None:
    """Past runs are no first trials."""
    study = optuna.create_study()
    for loss in (1.0, 2.0):
        attrs = {SOURCE_ATTR: "old", PARAMS_ATTR: {"lr": 0.5}}
        study.add_trial(optuna.trial.create_trial(value=loss, user_attrs=attrs))

    work(
        study,
        lambda trial: trial.suggest_float("lr", 0.0, 1.0),
        is_over=lambda trials: len(trials) > 4,
        first_params={"lr": 0.25},
        options=WorkerOptions(beat=0.1),
    )

    assert [2] == [trial.number for trial in study.trials if trial.params == {"lr": 0.25}]


@pytest.mark.parametrize(
    ("option", "error"), [({"hps": ["lr"]}, SearchSpaceError), ({"axes": "width"}, RunTableError)]
)
def test_options_of_another_type(option: dict[str, Any], error: type[Exception]) -> None:
    """A list of HPs has no kinds, a text is no list."""
    with pytest.raises(error):
        read_source_runs([{"width": 64, "lr": 1e-3, "loss": 3.0}], scales=[tb.Scale(width=64)], **option)
