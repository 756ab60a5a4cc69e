"""A trial that runs out of memory: tried once more with its batch in parts, then an outcome of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch

from transfer_bo import Outcome
from transfer_bo.attributes import ACCUMULATE_ATTR, SPEED_ATTR
from transfer_bo.display.tables import speed_lines
from transfer_bo.records import read_runs
from transfer_bo.runners.objective import objective
from transfer_bo.runners.study_search import first_params, make_sampler
from transfer_bo.runners.task import Attempt, StudyTask, make_task
from transfer_bo.study_file import load_study_file
from transfer_bo.verification.gpus import gpu_of_device

WriteStudy = Callable[..., Path]
TOO_MUCH = 2**50
"""Numbers that no machine has room for."""


@pytest.mark.parametrize(
    ("fits", "outcome"), [(1, Outcome.FINISHED), (2, Outcome.FINISHED), (3, Outcome.OUT_OF_MEMORY)]
)
def test_out_of_memory_is_tried_once_more_in_parts(
    fits: int, outcome: Outcome, write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own error on a CPU; scale, HPs and seed stay as they are."""
    task = make_task(load_study_file(write_study()))
    study = optuna.create_study(sampler=make_sampler(task))
    attempts: list[Attempt] = []

    def run(attempt: Attempt) -> float:
        attempts.append(attempt)
        torch.empty(TOO_MUCH if attempt.accumulate < fits else 1)
        return 1.0

    monkeypatch.setattr(task, "run", run)
    study.enqueue_trial(first_params(task))
    study.optimize(objective(task), n_trials=1)
    parts = [attempt.accumulate for attempt in attempts]

    assert [outcome] == [run.outcome for run in read_runs(study)]
    assert [1, 2][: min(fits, 2)] == parts
    assert 1 == len({(attempt.scale, attempt.seed, *attempt.hps.items()) for attempt in attempts})
    assert (parts[-1] if fits > 1 else None) == study.trials[0].user_attrs.get(ACCUMULATE_ATTR)


def test_settings_that_the_rule_moves_far_are_a_caveat(write_study: WriteStudy) -> None:
    """At twenty times the tokens only the paper's rule moves betas that far."""
    far = ("tokens = 1024", "tokens = 10240")
    paper = ("[space]", '[parametrization]\nrule = "complete_d_p"\n\n[space]')
    caveats = [
        make_task(load_study_file(write_study(*changes))).caveats() for changes in ([far], [far, paper])
    ]

    assert [0, 1] == [len(of_one) for of_one in caveats]
    assert "one_minus_beta1" in caveats[1][0]


def test_speed_and_settings_of_a_run(write_study: WriteStudy) -> None:
    """The study file's settings reach the trainer; the speed of training is stored with the trial."""
    losses = []
    for schedule in ("cosine", "linear"):
        path = write_study(("[budget]", f'[training]\nschedule = "{schedule}"\naccumulate = 2\n[budget]'))
        study = optuna.create_study()
        task = StudyTask(load_study_file(path))
        study.enqueue_trial({"rung": 0, "lr": 0.05, "lr.embedding": 1.0})
        study.optimize(objective(task), n_trials=1)
        losses.append(study.trials[0].value)

    speed = study.trials[0].user_attrs[SPEED_ATTR]
    assert losses[0] != losses[1]
    assert speed["tokens_per_second"] > 0
    assert speed["utilisation"] is None  # no GPU
    assert "tokens/s" in speed_lines(study, read_runs(study))[0]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("Tesla K80", None),
    ],
)
def test_a_gpu_is_known_by_its_device_name(device: str, name: str | None) -> None:
    """As CUDA calls it."""
    assert name == getattr(gpu_of_device(device), "name", None)
