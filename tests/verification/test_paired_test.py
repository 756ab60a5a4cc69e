"""Paired runs with new seeds: what is called better, and that the seeds are shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transfer_bo import Ladder, Scale, TransferSampler, objective, verify
from transfer_bo.attributes import PURPOSE_ATTR, REPLICA_ATTR, SCALE_ATTR
from transfer_bo.records import read_runs
from transfer_bo.runners.base_task import REPLICA_SEEDS
from transfer_bo.runners.task import Attempt, StudyTask
from transfer_bo.study_file import load_study_file
from transfer_bo.verification.jobs import plan, replicas
from transfer_bo.verification.paired_test import Comparison, compare_paired

WriteStudy = Callable[..., Path]
TARGET = Scale(width=64, tokens=1e6)
NOISE = (0.0, 0.02, -0.01, 0.03)
"""What each replica's seed does to the loss of every setting."""


class _Loss:
    mean = 2.0

    def interval(self, level: float) -> tuple[float, float]:
        return 1.5, 2.5


class _Suggestion:
    target, params, predicted_loss = TARGET, {"lr": 0.02}, _Loss()


def test_the_interval_is_students() -> None:
    """Against scipy's own paired t-test: the interval leaves out 0 just where p < 10%."""
    one, two = [2.01, 2.03, 1.99, 2.01], [2.05, 2.06, 2.06, 2.03]
    comparison = compare_paired("winner", "incumbent", list(zip(one, two, strict=True)))
    expected = stats.ttest_rel(one, two).confidence_interval(0.9)

    assert pytest.approx((expected.low, expected.high)) == comparison.interval
    assert "better" == comparison.verdict
    assert "worse" == compare_paired("a", "b", list(zip(two, one, strict=True))).verdict
    assert "worse" == compare_paired("a", "b", list(zip(one, two, strict=True)), maximize=True).verdict
    assert "the winner is better" in comparison.text


@given(st.lists(st.floats(0.001, 1.0), min_size=0, max_size=2))
def test_two_pairs_decide_nothing(gains: list[float]) -> None:
    """However large and alike the differences are."""
    assert "undecided" == compare_paired("a", "b", [(2.0 - gain, 2.0) for gain in gains]).verdict


def test_a_setting_that_diverges_once_is_not_called_better() -> None:
    """A lost run is no missing value: it is said, and nothing is decided."""
    comparison = compare_paired("winner", "incumbent", [(1.0, 2.0), (1.01, 2.0), (1.02, 2.0), (None, 2.0)])

    assert (3, 1) == (len(comparison.differences), comparison.lost)
    assert "undecided" == comparison.verdict
    assert "At 1 more a run gave no loss" in comparison.text
    assert "0 seed" in Comparison("a", "b", ()).text


def test_verify_runs_all_again_with_shared_seeds_and_nothing_twice() -> None:
    """Suggestion and control meet the same replicas, so their noise cancels in the differences."""
    ladder = Ladder([Scale(width=16, tokens=1e6)])
    study = optuna.create_study(
        sampler=TransferSampler(ladder=ladder, target=TARGET, seed=0, n_startup_trials=4)
    )
    seeds: list[tuple[float, int]] = []

    @objective
    def train(trial: optuna.Trial) -> float:
        ladder.suggest(trial)
        lr, replica = trial.suggest_float("lr", 1e-3, 1.0, log=True), trial.user_attrs.get(REPLICA_ATTR, 0)
        if PURPOSE_ATTR in trial.user_attrs:
            seeds.append((lr, replica))
        return 2.0 + lr + NOISE[replica]

    study.optimize(train, n_trials=1)
    controls = {"defaults": {"lr": 0.01}}
    first = verify(study, train, _Suggestion(), controls)
    again = verify(study, train, _Suggestion(), controls, replicate=3)
    same = verify(study, train, _Suggestion(), controls, replicate=3)

    assert () == first.comparisons
    assert [(lr, replica) for replica in range(4) for lr in (0.02, 0.01)] == seeds
    assert [pytest.approx(0.01)] * 4 == list(again.comparisons[0].differences)
    assert "worse" == again.comparisons[0].verdict
    assert again == same
    assert first.measured == again.measured
    assert "Over 4 seeds the suggestion's loss minus that of the defaults is +0.0100" in again.text
    assert 6 == sum(run.purpose == "replicate" for run in read_runs(study))


def test_a_study_files_replicas_share_seeds_that_no_search_uses(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two settings with the same replica number train with the same seed, another number with another."""
    task, seeds = StudyTask(load_study_file(write_study())), []
    monkeypatch.setattr(task, "run", lambda attempt: seeds.append(_seed_of(attempt)) or 2.0)
    study = optuna.create_study()
    jobs = replicas(plan(_Suggestion(), {"defaults": {"lr": 0.01}}), 2)
    for job in jobs:
        trial = study.ask({})
        attrs = {PURPOSE_ATTR: job.purpose, REPLICA_ATTR: job.replica, SCALE_ATTR: dict(task.file.target)}
        for key, value in attrs.items():
            trial.set_user_attr(key, value)
        task(trial)

    assert [1, 1, 2, 2] == [seed - REPLICA_SEEDS for seed in seeds]


def _seed_of(attempt: Attempt) -> int:
    return attempt.seed
