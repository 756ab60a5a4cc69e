"""A study file's multipliers per module type reach trials and tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_bo.errors import StudyFileError
from transfer_bo.runners.task import StudyTask
from transfer_bo.study_file import load_study_file

WriteStudy = Callable[..., Path]
PER_MODULE = '[per_module]\ntypes = ["lr", "residual"]\ndepth = ["eps"]\ndepth_knots = 3\n[budget]'


def test_the_models_own_modules_are_searched(write_study: WriteStudy) -> None:
    """The 13 module types, two branches and the knots; an HP in [space] stays as it is."""
    task = StudyTask(load_study_file(write_study(("[budget]", PER_MODULE))))
    names = list(task.space.hps)

    assert ["lr", "lr.embedding"] == names[:2]
    assert 13 == sum(name.startswith("lr.") for name in names)
    assert ["residual.attn", "residual.mlp", "eps.@0", "eps.@0.5", "eps.@1"] == names[-5:]


@pytest.mark.parametrize(("depth", "knots"), [(3, []), (4, ["lr.@0", "lr.@1"])])
def test_an_empty_section_searches_learning_rates(
    write_study: WriteStudy, depth: int, knots: list[str]
) -> None:
    """The kinds whose multipliers kept their gain at larger scales; over depth from four blocks on."""
    deep = [("depth = 1", f"depth = {depth}"), ("[budget]", "[per_module]\n[budget]")]
    task = StudyTask(load_study_file(write_study(*deep)))
    multipliers = [name for name in task.space.hps if "." in name]

    assert {"lr"} == {name.split(".")[0] for name in multipliers}
    assert 13 == len(multipliers) - len(knots)
    assert knots == [name for name in multipliers if "@" in name]


def test_tensors_may_be_grouped_by_branch(write_study: WriteStudy) -> None:
    """Attention, MLP, norms and the two layers outside of the blocks cover all tensors."""
    coarse = '[per_module]\ngroups = "branches"\n[budget]'
    task = StudyTask(load_study_file(write_study(("[budget]", coarse))))
    multipliers = ["lr.embedding", "lr.norm", "lr.attn", "lr.mlp", "lr.unembedding"]

    assert multipliers == [name for name in task.space.hps if "." in name]
    for labels in task.parametrization(task.file.base).groups.values():
        assert 1 == sum(f"lr.{label}" in multipliers for label in labels)


def test_multipliers_may_be_added_to_a_study_with_trials(write_study: WriteStudy) -> None:
    """They do not make it another study, for a run without them had 1 in their place."""
    without = StudyTask(load_study_file(write_study()))
    with_them = StudyTask(load_study_file(write_study(("[budget]", PER_MODULE))))

    assert without.definition() == with_them.definition()


def test_betas_without_room_for_multipliers_are_refused(write_study: WriteStudy) -> None:
    """One sentence, with the file's name."""
    betas = '[per_module]\ntypes = ["one_minus_beta1"]\n[budget]'
    path = write_study(
        ('"lr.embedding" = {}', "one_minus_beta1 = { low = 0.1, high = 0.99 }"), ("[budget]", betas)
    )

    with pytest.raises(StudyFileError, match=r"tiny\.toml: per_module: HP 'one_minus_beta1': high = 0\.99"):
        StudyTask(load_study_file(path))


def test_multipliers_of_the_same_tensors_are_named(write_study: WriteStudy) -> None:
    """Of lr.q and lr.attn only the product moves q; a profile over depth overlaps by design."""
    path = write_study(('"lr.embedding" = {}', '"lr.q" = {}\n"lr.attn" = {}\n"lr.@0" = {}\n"lr.@1" = {}'))

    with pytest.warns(UserWarning, match=r"lr\.q and lr\.attn multiply the same tensors"):
        StudyTask(load_study_file(path))
