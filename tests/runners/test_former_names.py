"""The former loop of a worker keeps working, with its former arguments and a warning."""

from __future__ import annotations

import optuna
import pytest


def test_the_former_loop_takes_its_former_arguments() -> None:
    """`transfer_bo.runners.loop.work`: every argument that was renamed has its effect."""
    with pytest.warns(DeprecationWarning, match=r"transfer_bo\.runners\.worker_loop\.work"):
        from transfer_bo.runners.loop import work
    study = optuna.create_study()
    ended: list[int] = []

    count = work(
        study,
        lambda trial: trial.suggest_float("lr", 0.0, 1.0),
        is_over=lambda trials: False,
        first={"lr": 0.25},
        stopping=lambda: len(ended) >= 3,
        after=lambda trial: ended.append(trial.number),
        beat=0.1,
        at_most=5,
    )

    assert 3 == count
    assert [0, 1, 2] == ended
    assert 0.25 == study.trials[0].value


def test_other_names_are_unknown() -> None:
    """A typo is an ImportError, as in any module."""
    with pytest.raises(ImportError):
        exec("from transfer_bo.runners.loop import nothing")
