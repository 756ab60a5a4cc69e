"""`model.build` of a study file: a torch model of the user's own, trained by the reference trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from transfer_bo import Outcome
from transfer_bo.errors import StudyFileError
from transfer_bo.records import read_runs
from transfer_bo.runners.objective import objective
from transfer_bo.runners.study_search import make_sampler
from transfer_bo.runners.task import StudyTask
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
MODEL = """
from torch import nn

from neighbour import VOCABULARY


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.inner(self.norm(x))


def build_model(scale):
    blocks = [Block(scale.width) for _ in range(scale.depth)]
    names = {"embedding": nn.Embedding(VOCABULARY, scale.width), "blocks": nn.Sequential(*blocks)}
    return nn.Sequential(*names.values(), nn.LayerNorm(scale.width), nn.Linear(scale.width, VOCABULARY))
"""
"""A file with a model; what it imports stands beside it."""


@pytest.fixture
def write(write_study: WriteStudy, tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a study file whose model is built by a function of `my_model.py`, with the given code."""

    def write(function: str = "my_model.py:build_model", code: str = MODEL) -> Path:
        (tmp_path / "neighbour.py").write_text("VOCABULARY = 256\n")
        (tmp_path / "my_model.py").write_text(code)
        return write_study(
            ("[budget]", f'[model]\nbuild = "{function}"\n[budget]'),
            ('"lr.embedding" = {}', "weight_decay = {}"),
            ("width = 16", "width = 12"),  # no multiple of the reference transformer's head size
        )

    return write


def test_a_model_of_the_users_own_is_trained(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder; its loss falls below that of a uniform prediction, its cost grows with its size."""
    path = write()
    monkeypatch.chdir("/")
    task = StudyTask(load_study_file(path))
    study = optuna.create_study(sampler=make_sampler(task))
    study.optimize(objective(task), n_trials=2)
    runs = read_runs(study)

    assert [Outcome.FINISHED] * 2 == [run.outcome for run in runs]
    assert all(0 < study.trials[i].value < 5.5 for i in range(2))
    assert 12 == task.build(task.file.base)[0].embedding_dim
    assert task.cost(task.file.base) < task.cost(task.file.target)


@pytest.mark.parametrize(
    ("function", "code", "named"),
    [
        ("no_such.py:build_model", MODEL, "no_such.py"),
        ("my_model.py", MODEL, "my_model.py"),
        ("my_model.py:nothing", MODEL, "nothing"),
        ("no_such_module:build_model", MODEL, "no_such_module"),
        ("my_model.py:build_model", "1 / 0", "ZeroDivisionError"),
        ("my_model.py:build_model", "def build_model(scale): return 1", "int"),
        ("my_model.py:build_model", "def build_model(scale): return scale.heads", "heads"),
        ("my_model.py:build_model", MODEL.replace("scale.width, VOCABULARY)", "scale.width, 7)"), "16, 7"),
        ("my_model.py:build_model", MODEL.replace("nn.LayerNorm(scale.width),", "nn.LayerNorm(9),"), "9"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(
    function: str, code: str, named: str, write: Callable[..., Path]
) -> None:
    """Before any trial, in a sentence that names file, key, value and cause."""
    path = write(function, code)

    with pytest.raises(StudyFileError) as caught:
        StudyTask(load_study_file(path))
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: model.build = {function!r}: ")
    assert named in sentence


UNIT_SCALED = (
    ("[budget]", '[model]\nbuild = "transfer_bo.training.unit_scaled:unit_transformer"\n[budget]'),
    ("[budget]", '[parametrization]\nrule = "u_mup"\n[budget]'),
)


def test_multipliers_of_the_unit_scaled_model_are_searched(write_study: WriteStudy) -> None:
    """Each trial draws one, and trains with it."""
    hps = ('"lr.embedding" = {}', '"forward.attn_softmax" = {}\n"forward.loss_softmax" = {low = 0.5}')
    task = StudyTask(load_study_file(write_study(*UNIT_SCALED, hps)))
    study = optuna.create_study(sampler=make_sampler(task))
    study.optimize(objective(task), n_trials=1)
    (run,) = read_runs(study)

    assert Outcome.FINISHED == run.outcome
    assert {"forward.attn_softmax", "forward.loss_softmax"} <= set(run.params)


@pytest.mark.parametrize("name", ["forward.q", "lr.@2"])
def test_an_hp_that_the_model_does_not_have_is_refused(write_study: WriteStudy, name: str) -> None:
    """Before any trial, in a sentence that names file and HP."""
    path = write_study(*UNIT_SCALED, ('"lr.embedding" = {}', f'"{name}" = {{}}'))

    with pytest.raises(StudyFileError) as caught:
        StudyTask(load_study_file(path))
    assert str(caught.value).startswith(f'{path}: space."{name}": HP {name!r}')
