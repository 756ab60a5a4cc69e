"""Study files with subsets of the data: the ladder's axis, costs, trials, and the check of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from typer.testing import CliRunner

from transfer_bo.cli import app
from transfer_bo.errors import StudyFileError
from transfer_bo.runners import subset_check
from transfer_bo.runners.objective import objective
from transfer_bo.runners.subset_check import subset_caveats
from transfer_bo.runners.task import StudyTask
from transfer_bo.sampler import TransferSampler
from transfer_bo.scale import Scale
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]


def with_subset(method: str = "gradient", fractions: str = "[0.25, 1.0]") -> tuple[str, str]:
    """A replacement in the study file that adds subsets."""
    return ("context = 16", f'context = 16\nsubset = {{ method = "{method}", fraction = {fractions} }}')


def test_the_fraction_is_an_axis_of_the_ladder(write_study: WriteStudy) -> None:
    """Each rung at each fraction; base and target on all data; the rule sees the shorter run."""
    study_file = load_study_file(write_study(with_subset()))
    task = StudyTask(study_file)
    part, *_, full = task.ladder.proxies

    assert [0.25, 0.25, 1, 1] == [scale.data_fraction for scale in task.ladder.proxies]
    assert 1 == study_file.target.data_fraction == study_file.base.data_fraction
    assert Scale(width=16, depth=1, batch=2, tokens=128) == task.parametrization(part).target
    assert 512 == task.parametrization(full).target.tokens
    # A quarter of the steps, and a forward pass over the pool.
    assert task.cost(part) / task.cost(part.replace(data_fraction=1)) == pytest.approx(0.25 + 1 / 3)


def test_the_method_identifies_a_study_and_its_absence_changes_nothing(write_study: WriteStudy) -> None:
    """A study file without subsets has the keys that it had before there were any."""
    plain = load_study_file(write_study()).definition()
    subset = load_study_file(write_study(with_subset("random"))).definition()

    assert "data.subset" not in plain
    assert "random" == subset["data.subset"]


@pytest.mark.filterwarnings("ignore")
def test_trials_run_on_subsets(write_study: WriteStudy) -> None:
    """A search proposes rungs with fractions below 1, and its trials finish."""
    task = StudyTask(load_study_file(write_study(with_subset())))
    sampler = TransferSampler(
        ladder=task.ladder, target=task.file.target, cost=task.cost, budget=task.budget, seed=0
    )
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective(task), n_trials=3)

    assert {"finished"} == {trial.user_attrs["transfer_bo:outcome"] for trial in study.trials}
    assert study.trials[0].user_attrs["transfer_bo:scale"]["data_fraction"] <= 1


@pytest.mark.parametrize(
    ("replacements", "named"),
    [
        ([with_subset(fractions="[0.01]")], "0.01"),
        ([with_subset(fractions="[0.0]")], "fraction"),
        ([with_subset(fractions="[]")], "fraction"),
        ([with_subset("entropy")], "method"),
        ([with_subset(), ("trials = 4", "trials = 4\n[run]\nranks = 2")], "run.ranks"),
        (
            [with_subset(), ("[space]", '[training]\nschedule = "wsd"\ntrunk = true\n\n[space]')],
            "training.trunk",
        ),
    ],
)
def test_bad_subsets_are_named(
    write_study: WriteStudy, replacements: list[tuple[str, str]], named: str
) -> None:
    """A subset below one batch, no fraction, an unknown method, several processes: one sentence."""
    with pytest.raises(StudyFileError) as caught:
        load_study_file(write_study(*replacements))

    assert named in str(caught.value)
    assert 1 == len(str(caught.value).splitlines())


def test_ranks_are_checked_before_a_search_relies_on_them(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchecked is said; a fraction that turns the order round is not kept, and trained once."""
    losses = itertools.count(1.0, 0.1)
    path = write_study(with_subset(fractions="[0.25]"))
    task = StudyTask(load_study_file(path))
    assert "subset-check" in subset_caveats(task)[0]

    def train(task: StudyTask, fraction: float, hps: dict[str, float], number: int) -> dict[str, object]:
        next(losses)
        method, scale, _, text = subset_check._key(task, fraction, hps)
        loss = 2.0 + (number if fraction == 1 else -number)
        row = {"method": method, "scale": scale, "data_fraction": fraction, "setting": number}
        return {**row, "hps": text, "loss": loss, "outcome": "finished", "cost": 1.0}

    monkeypatch.setattr(subset_check, "_train", train)
    first = CliRunner().invoke(app, ["subset-check", str(path), "--settings", "6"])
    again = CliRunner().invoke(app, ["subset-check", str(path), "--settings", "6"])

    assert 1 == first.exit_code, first.output
    assert "not kept" in first.stdout
    assert first.stdout == again.stdout
    assert next(losses) == pytest.approx(1.0 + 0.1 * 12)
    assert "may not rank" in subset_caveats(task)[0]


def test_there_must_be_something_to_check(write_study: WriteStudy) -> None:
    """Without subsets, or with too few settings, the command says what is missing."""
    without = CliRunner().invoke(app, ["subset-check", str(write_study())])
    few = CliRunner().invoke(app, ["subset-check", str(write_study(with_subset())), "--settings", "2"])

    assert (2, 2) == (without.exit_code, few.exit_code)
    assert "data.subset" in without.output
    assert "--settings 2" in few.output
