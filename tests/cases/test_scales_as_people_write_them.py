"""Scales with misspelt axes, as dictionaries, with numbers as texts; results of unusual number types."""

from __future__ import annotations

import decimal
import fractions
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import transfer_bo as tb
from transfer_bo.errors import ScaleError
from transfer_bo.scale import KNOWN_AXES
from transfer_bo.synonyms import AXES, axis_kind

LONG = sorted(name for name in KNOWN_AXES if len(name) >= 5)


@given(st.sampled_from(LONG), st.data())
def test_a_swap_of_two_letters_is_remarked(name: str, data: st.DataObject) -> None:
    """Whichever two neighbours of a known name are swapped, it is named, unless the result is known too."""
    i = data.draw(st.integers(0, len(name) - 2))
    misspelt = name[:i] + name[i + 1] + name[i] + name[i + 2 :]
    if axis_kind(misspelt) in AXES:
        return

    with pytest.warns(UserWarning, match=misspelt):
        tb.Scale({misspelt: 2})


@pytest.mark.parametrize(
    "name", [*sorted(KNOWN_AXES), "experts", "resolution", "vocab", "heads", "x", "tokenss"[:-1]]
)
def test_other_names_are_not_remarked(name: str) -> None:
    """Axes are free names; warnings are errors in this suite."""
    assert 2 == tb.Scale({name: 2})[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64", 64),
        ("1B", 10**9),
        ("1.5b", 1.5e9),
        ("20G", 2 * 10**10),
        ("1e9", 10**9),
        ("300k", 300_000),
        (" 7M ", 7e6),
    ],
)
def test_numbers_may_be_texts(text: str, expected: float) -> None:
    """With the suffixes that people use for parameters and tokens; whole numbers stay integers."""
    scale = tb.Scale(tokens=text)

    assert expected == scale.tokens
    assert isinstance(scale.tokens, int)


@pytest.mark.parametrize("text", ["", "B", "many", "1e999", "-1B", "0", "nan", "1 2"])
def test_texts_that_are_no_positive_number_are_refused(text: str) -> None:
    """The sentence names axis and value."""
    with pytest.raises(ScaleError, match="tokens"):
        tb.Scale(tokens=text)


@pytest.mark.parametrize(
    "number",
    [
        np.float32(64),
        np.int64(64),
        torch.tensor(64),
        torch.tensor(64.0),
        decimal.Decimal(64),
        fractions.Fraction(64),
    ],
)
def test_numbers_of_other_libraries_are_numbers(number: Any) -> None:
    """What converts to a float exactly is the same scale."""
    assert tb.Scale(width=64) == tb.Scale(width=number)


def test_a_dictionary_is_a_scale() -> None:
    """For rungs, target, registered scales, and in what the study is asked afterwards."""
    plain, target = [{"width": 64}, {"width": "256"}], {"width": 1024}
    ladder = tb.Ladder(plain)
    study = optuna.create_study(sampler=tb.TransferSampler(ladder=ladder, target=target, seed=0))
    study.optimize(
        lambda trial: 8 / ladder.suggest(trial).width + trial.suggest_float("lr", 1e-4, 0.1, log=True),
        n_trials=6,
    )

    assert [tb.Scale(width=w) for w in (64, 256, 1024)] == list(ladder)
    assert tb.suggest(study).params == tb.suggest(study, target).params
    assert {"width": 4.0} == tb.Scale(width=1024).log2_ratio({"width": 64})


@pytest.mark.parametrize(
    "call",
    [
        lambda: tb.Ladder([64, 256]),
        lambda: tb.Scale(64),
        lambda: tb.TransferSampler(ladder=tb.Ladder([{"width": 64}]), target=1024),
        lambda: tb.Scale(width=1).log2_ratio(64),
    ],
)
def test_what_is_no_scale_is_named(call: Callable[[], Any]) -> None:
    """Not a TypeError of some line inside."""
    with pytest.raises(ScaleError, match=r"64|1024"):
        call()


@pytest.mark.parametrize(
    "convert",
    [
        torch.tensor,
        decimal.Decimal,
        np.float32,
        np.asarray,
        np.float64,
        fractions.Fraction,
    ],
    ids=["tensor", "Decimal", "float32", "0-d array", "float64", "Fraction"],
)
@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "plain"])
def test_losses_of_other_number_types(convert: Callable[[float], Any], wrapped: bool) -> None:
    """An objective may return and report what converts to a float."""
    ladder = tb.Ladder([tb.Scale(width=64)])
    sampler = tb.TransferSampler(ladder=ladder, target=tb.Scale(width=256), seed=0)
    study = optuna.create_study(sampler=sampler, pruner=tb.RungPruner())

    def objective(trial: optuna.Trial) -> Any:
        ladder.suggest(trial)
        trial.report(convert(2.0), 500)
        return convert(1.5)

    study.optimize(tb.objective(objective) if wrapped else objective, n_trials=1)

    assert 1.5 == study.trials[0].value
    assert {500: 2.0} == study.trials[0].intermediate_values


def test_a_study_continued_without_its_sampler_is_remarked() -> None:
    """Once, when the objective asks for a scale; not with the sampler, be it inside PartialFixedSampler."""
    ladder = tb.Ladder([tb.Scale(width=64), tb.Scale(width=256)])
    storage = optuna.storages.InMemoryStorage()

    def sampler() -> tb.TransferSampler:
        return tb.TransferSampler(ladder=ladder, target=tb.Scale(width=1024), seed=0)

    def objective(trial: optuna.Trial) -> float:
        return 8 / ladder.suggest(trial).width + trial.suggest_float("lr", 1e-4, 0.1, log=True)

    optuna.create_study(study_name="a", storage=storage, sampler=sampler()).optimize(objective, n_trials=2)
    optuna.load_study(study_name="a", storage=storage, sampler=sampler()).optimize(objective, n_trials=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        fixed = optuna.samplers.PartialFixedSampler({"lr": 0.01}, sampler())
    optuna.load_study(study_name="a", storage=storage, sampler=fixed).optimize(objective, n_trials=1)

    study = optuna.load_study(study_name="a", storage=storage)
    with pytest.warns(UserWarning, match=r"TPESampler.*TransferSampler\(") as caught:
        study.optimize(objective, n_trials=3)

    assert 1 == sum("TransferSampler(" in str(warning.message) for warning in caught)


def test_fixed_trials_and_studies_of_other_samplers_are_not_remarked() -> None:
    """An objective can be tried by hand, and a ladder used with any sampler."""
    ladder = tb.Ladder([tb.Scale(width=64)])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: ladder.suggest(trial).width, n_trials=1)

    assert tb.Scale(width=64) == ladder.suggest(optuna.trial.FixedTrial({"rung": 0}))
    assert math.isfinite(study.best_value)
    assert AXES
