"""`parametrization.optimizer` of a study file: from the file to trials, dry run and the report's table."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from transfer_bo import Outcome
from transfer_bo.attributes import DEFINITION_ATTR
from transfer_bo.errors import StudyError, StudyFileError, TrainingError
from transfer_bo.records import read_runs
from transfer_bo.report import tensor_settings
from transfer_bo.runners.objective import objective
from transfer_bo.runners.study_search import first_params, make_sampler
from transfer_bo.runners.task import make_task
from transfer_bo.store.open_study import create_study, open_study
from transfer_bo.study_file import load_study_file
from transfer_bo.verification.dry_run import dry_run

WriteStudy = Callable[..., Path]


def chosen(rule: str, optimizer: str) -> tuple[str, str]:
    """The section with a rule and an optimizer."""
    section = f'[parametrization]\nrule = "{rule}"\noptimizer = "{optimizer}"\nalpha = 1.0\n\n[space]'
    return "[space]", section


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        ("mup", "sgd"),
        ("complete_d_p_token_half_life", "muon"),
        ("complete_d_p_token_half_life", "soap"),
        ("complete_d_p", "shampoo"),
        ("completep", "adamh"),
        ("complete_d_p_soft", "muonh"),
    ],
)
def test_a_study_trains_with_its_optimizer(rule: str, optimizer: str, write_study: WriteStudy) -> None:
    """A trial ends with a loss, and the dry run and the report's table know what trains each tensor."""
    if optimizer == "soap":
        pytest.importorskip("pytorch_optimizer")
    task = make_task(load_study_file(write_study(chosen(rule, optimizer))))
    study = optuna.create_study(sampler=make_sampler(task))
    study.enqueue_trial(first_params(task))
    study.optimize(objective(task), n_trials=1)
    p = task.parametrization(task.file.target)
    memory = dry_run(p, 16, autocast=False).memory
    table = tensor_settings(p, task.build(task.file.target), {"lr": 0.01}).set_index("name")

    assert [Outcome.FINISHED] == [run.outcome for run in read_runs(study)]
    assert (optimizer, rule) == (p.rule.trained_by, p.rule.parametrization or p.rule.name)
    assert memory.weights <= memory.optimizer_states
    assert optimizer == table.optimizer["blocks.1.attn.q.weight"]


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        ("complete_d_p_token_half_life", "sgd"),
        ("complete_d_p_token_half_life", "kfac"),
        ("kfac", "kfac"),
        ("hyperp", "adamw"),
        ("mup_sgd", "sgd"),
        ("mup", "lion"),
    ],
)
def test_what_has_no_table_or_no_optimizer(rule: str, optimizer: str, write_study: WriteStudy) -> None:
    """Refused in a sentence that names the key, before anything is trained."""
    with pytest.raises(StudyFileError) as error:
        make_task(load_study_file(write_study(chosen(rule, optimizer))))

    assert f"parametrization.{'rule' if rule == 'mup_sgd' else 'optimizer'}" in str(error.value)


def test_adafactor_has_no_dry_run(write_study: WriteStudy) -> None:
    """It trains, but torch's reads values: a sentence says what to look at instead."""
    task = make_task(load_study_file(write_study(chosen("sp_none", "adafactor"))))
    study = optuna.create_study(sampler=make_sampler(task))
    study.enqueue_trial(first_params(task))
    study.optimize(objective(task), n_trials=1)

    assert [Outcome.FINISHED] == [run.outcome for run in read_runs(study)]
    with pytest.raises(TrainingError):
        dry_run(task.parametrization(task.file.target), 16, autocast=False)


def test_a_missing_package(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the extra."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyFileError) as error:
        make_task(load_study_file(write_study(chosen("mup", "soap"))))

    assert "transfer-bo[optimizers]" in str(error.value)


def test_matrices_are_not_sharded(write_study: WriteStudy) -> None:
    """With fsdp2 an optimizer that needs whole matrices is refused when the file is read."""
    ranks = ("trials = 4", 'trials = 4\n[run]\nranks = 2\nparallel = "fsdp2"')
    assert load_study_file(write_study(ranks, chosen("mup", "sgd")))
    with pytest.raises(StudyFileError):
        load_study_file(write_study(ranks, chosen("mup", "muon")))


def test_stored_trials_keep_their_optimizer(write_study: WriteStudy) -> None:
    """Another optimizer is another study; one that names none was made with AdamW."""
    plain = load_study_file(write_study(chosen("mup", "adamw")))
    study = create_study(plain, make_task(plain).definition())
    definition = dict(study.user_attrs[DEFINITION_ATTR])
    assert "adamw" == definition.pop("parametrization.optimizer")
    study.set_user_attr(DEFINITION_ATTR, definition)

    assert open_study(plain)
    with pytest.raises(StudyError):
        open_study(load_study_file(write_study(chosen("mup", "muon"))))
