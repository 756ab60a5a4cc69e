"""Runs of several lengths share their stable part: each is, bit by bit, the run from the beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from stand_in import StandIn

from transfer_bo import Scale
from transfer_bo.attributes import REUSED_ATTR
from transfer_bo.dimension import Dimension
from transfer_bo.errors import StudyFileError
from transfer_bo.parametrization import RULES, Rule
from transfer_bo.parametrization.rules import Ratios
from transfer_bo.records import Outcome, Run, StudySettings, read_runs, read_settings
from transfer_bo.runners.objective import objective
from transfer_bo.runners.study_search import make_sampler
from transfer_bo.runners.task import StudyTask
from transfer_bo.runners.trunks import without_duration
from transfer_bo.search.acquisition import propose
from transfer_bo.search.budget import reused_part, spent, trunk_runs
from transfer_bo.study_file import load_study_file
from transfer_bo.surrogate.surrogate import fit_surrogate
from transfer_bo.training import Corpus, TrainResult, build_transformer, train
from transfer_bo.training.settings import TrainSettings
from transfer_bo.training.trunk import Trunk

WSD = TrainSettings(schedule="wsd", warmup_steps=2)
LENGTHS = (10, 20, 40)
ENDS = tuple(WSD.stable_end(steps) for steps in LENGTHS)


class Dropout(torch.nn.Module):
    """A model that draws numbers as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_transformer(Scale(width=16, depth=1))
        self.dropout = torch.nn.Dropout(0.1)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """As the model."""
        self.model.reset_parameters(generator)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        out: torch.Tensor = self.dropout(self.model(tokens))
        return out


def run(steps: int, trunk: Trunk | None, lr: float = 0.01) -> tuple[TrainResult, list[float]]:
    """The result, and the learning rates of the steps that were made."""
    tokens = (np.arange(5_000) % 10).astype(np.uint8)
    made: list[float] = []
    result = train(
        Dropout(),
        StandIn(),
        {"lr": lr},
        Corpus(tokens[:4_000], tokens[4_000:], 256, "digits"),
        batch=4,
        tokens=4 * 16 * steps,
        context=16,
        seed=0,
        device="cpu",
        threads=1,
        reports=10,
        settings=WSD,
        after_step=lambda step, model: made.append(step),
        trunk=trunk,
    )
    return result, made


@pytest.mark.parametrize(
    ("order", "first_steps"),
    [((10, 20, 40), (1, 9, 17)), ((40, 10, 20), (1, 9, 17)), ((20, 40), (1, 17)), ((20, 20), (1, 17))],
)
def test_a_run_on_a_trunk_is_the_run_from_the_beginning(
    order: tuple[int, ...], first_steps: tuple[int, ...], tmp_path: Path
) -> None:
    """Whichever length comes first: the later ones train only what is new to them."""
    trunk = Trunk(tmp_path / "trunk", ENDS)
    for steps, first in zip(order, first_steps, strict=True):
        shared, made = run(steps, trunk)
        whole, _ = run(steps, None)

        assert list(range(first, steps + 1)) == [step for step in made if step]
        assert whole.loss == shared.loss
        assert whole.train_loss == shared.train_loss
        assert {p: v for p, v in whole.curve.items() if p in shared.curve} == shared.curve
        assert 1.0 in shared.curve


def test_the_trunk_of_other_hps_is_not_used(tmp_path: Path) -> None:
    """Even if it lies where this one is looked for."""
    trunk = Trunk(tmp_path / "trunk", ENDS)
    run(20, trunk)
    _, made = run(20, trunk, lr=0.02)

    assert 16 == trunk.kept(16)
    assert 8 == trunk.kept(15)
    assert 0 == trunk.kept(7)
    assert 0 == made[0]


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_a_rule_without_duration_sets_every_length_alike(rule: Rule) -> None:
    """As the rule does where the number of tokens is that of the base."""
    other = without_duration(rule)
    sizes = {"width": 4.0, "depth": 3.0, "batch": 2.0, "fan_out": 4.0, "parameters": 5.0}
    at_base, longer = Ratios(**sizes), Ratios(**sizes, tokens=8.0)
    alpha = rule.alpha_range[1]

    for role in rule.rows:
        expected = rule.factors(role, at_base, alpha)
        assert expected == other.factors(role, at_base, alpha) == other.factors(role, longer, alpha)
    assert other.run_factors(at_base) == other.run_factors(longer)


def test_the_study_file_asks_for_a_schedule_with_a_stable_part(write_study: Callable[..., Path]) -> None:
    """Others have none to share."""
    with pytest.raises(StudyFileError, match=r"training\.trunk"):
        load_study_file(write_study(("[budget]", "[training]\ntrunk = true\n[budget]")))


@pytest.fixture
def path(write_study: Callable[..., Path]) -> Path:
    """Rungs of two lengths."""
    return write_study(
        ("width = 32\ndepth = 1\nbatch = 2\ntokens = 512", "width = 16\ndepth = 1\nbatch = 2\ntokens = 2048"),
        ("tokens = 1024", "tokens = 8192"),
        ("[budget]", '[training]\nschedule = "wsd"\ntrunk = true\n[budget]'),
    )


def test_a_study_pays_for_what_is_new(path: Path, tmp_path: Path) -> None:
    """The same HPs at a second length: its loss is that from the beginning, its cost only the rest."""
    hps = {"lr": 0.02, "lr.embedding": 1.0}
    task = StudyTask(load_study_file(path))
    study = optuna.create_study(sampler=make_sampler(task))
    for rung in (0, 1):
        study.enqueue_trial({"rung": rung, **hps})
    study.enqueue_trial({"rung": 1, **hps, "lr": 0.01})
    study.optimize(objective(task), n_trials=3)

    alone = StudyTask(task.file.model_copy(update={"run": task.file.run.model_copy(update={"out": "alone"})}))
    other = optuna.create_study(sampler=make_sampler(alone))
    other.enqueue_trial({"rung": 1, **hps})
    other.optimize(objective(alone), n_trials=1)

    settings, runs = read_settings(study), read_runs(study)
    short, long = settings.costs[:2]
    shared = study.trials[1].user_attrs[REUSED_ATTR]
    assert [Outcome.FINISHED] * 3 == [run.outcome for run in runs]
    assert study.trials[1].value == other.trials[0].value
    assert shared == pytest.approx(13 / 64)  # 16 steps, of which the last 3 decay
    assert [0.0, shared, 0.0] == [run.reused for run in runs]
    assert spent(settings, runs) == pytest.approx(short + long * (1 - shared) + long)
    assert settings.drift_prior["lr"]["tokens"] != (0.0, 0.0)


SHORT = Scale(width=16, tokens=1e5)
SCALES = (SHORT, SHORT.replace(tokens=4e5), SHORT.replace(width=32), SHORT.replace(tokens=8e5))
SETTINGS = StudySettings(SCALES, (0, 1, 2), SCALES[3], (1.0, 4.0, 4.0, 8.0), trunk_decay=0.2)


def finished(number: int, scale: Scale, lr: float, **more: float) -> Run:
    """A run of the search."""
    loss = 3.0 + 0.1 * (np.log2(lr) + 7) ** 2
    return Run(number, {"lr": lr}, scale, Outcome.FINISHED, float(loss), **more)  # type: ignore[arg-type]


def test_what_a_run_shares_is_the_stable_part_of_the_longest() -> None:
    """At the same HPs, at scales that differ in tokens only; nothing without a trunk."""
    runs = [finished(0, SCALES[0], 0.01), finished(1, SCALES[2], 0.02)]

    assert 0.8 / 4 == pytest.approx(reused_part(SETTINGS, SCALES[1], {"lr": 0.01}, runs))
    assert 0.8 == pytest.approx(
        reused_part(SETTINGS, SCALES[0], {"lr": 0.01}, [finished(0, SCALES[1], 0.01)])
    )
    assert 0.0 == reused_part(SETTINGS, SCALES[1], {"lr": 0.02}, runs)
    assert 0.0 == reused_part(replace(SETTINGS, trunk_decay=None), SCALES[1], {"lr": 0.01}, runs)

    costs = dict(zip(SCALES[:3], SETTINGS.costs[:3], strict=True))
    assert [(SCALES[1], {"lr": 0.01}, pytest.approx(3.2))] == trunk_runs(SETTINGS, runs, costs)
    assert [] == trunk_runs(SETTINGS, [*runs, finished(2, SCALES[1], 0.01)], costs)


def test_a_run_that_costs_less_is_proposed_with_exactly_its_hps() -> None:
    """Where it is next to free nothing else is worth its price."""
    lrs = (0.001, 0.003, 0.006, 0.012, 0.03, 0.06)
    runs = [finished(i, SCALES[0], lr) for i, lr in enumerate(lrs)]
    dimensions = [Dimension("lr", "log", 1e-4, 1e-1)]
    surrogate = fit_surrogate(runs, dimensions, SETTINGS, False)
    costs = dict(zip(SCALES[:3], (100.0, 400.0, 400.0), strict=True))
    repeats = [(SCALES[1], {"lr": 0.012}, 1e-3)]

    found = propose(surrogate, costs, 1e4, torch.Generator().manual_seed(0), repeats)
    without = propose(surrogate, costs, 1e4, torch.Generator().manual_seed(0))

    assert (SCALES[1], {"lr": 0.012}) == found
    assert {"lr": 0.012} != without[1]
