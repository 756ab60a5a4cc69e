"""The pruner stops hopeless proxies and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from transfer_bo.attributes import PURPOSE_ATTR, SCALE_ATTR
from transfer_bo.search.pruner import RungPruner

SMALL, LARGE = {"width": 16}, {"width": 64}
HALF = 500
Curve = tuple[float, float]
"""Loss at half of the run, and at its end."""

losses = st.floats(-100, 100, allow_nan=False)
curves = st.tuples(losses, losses)


def study_of(
    curves: Sequence[Curve], scale: Mapping[str, float] = SMALL, *, maximize: bool = False
) -> optuna.Study:
    """A study with a finished trial for each curve."""
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    add(study, curves, scale)
    return study


def add(study: optuna.Study, curves: Sequence[Curve], scale: Mapping[str, float]) -> None:
    """More finished trials."""
    for half, final in curves:
        attrs: dict[str, Any] = {SCALE_ATTR: dict(scale)}
        study.add_trial(
            optuna.trial.create_trial(value=final, intermediate_values={HALF: half}, user_attrs=attrs)
        )


def running(loss: float, step: int = HALF, purpose: str | None = None) -> FrozenTrial:
    """A running trial of the small rung that has just reported."""
    attrs: dict[str, Any] = {SCALE_ATTR: SMALL}
    if purpose is not None:
        attrs[PURPOSE_ATTR] = purpose
    return optuna.trial.create_trial(
        state=TrialState.RUNNING, intermediate_values={step: loss}, user_attrs=attrs
    )


SPREAD = [(3.0, 2.0), (3.1, 2.1), (3.2, 2.2), (3.3, 2.3)]  # median excess 0.15, best recovery 1.0


def test_a_hopeless_trial_is_stopped() -> None:
    """Far behind, and too far for the best recovery ever seen on this rung."""
    study = study_of(SPREAD)

    assert RungPruner().prune(study, running(3.5))


def test_a_trial_that_can_catch_up_goes_on() -> None:
    """Far behind at half time is not hopeless where runs are known to recover by more."""
    study = study_of([*SPREAD, (5.0, 2.0)])

    assert not RungPruner().prune(study, running(3.9))


def test_a_trial_within_the_spread_goes_on() -> None:
    """Where curves lie far apart anyway, being behind says little."""
    study = study_of([(3.0, 2.9), (4.0, 3.9), (5.0, 4.9), (6.0, 5.9)])

    assert not RungPruner().prune(study, running(7.0))


def test_nothing_is_stopped_early_or_without_peers() -> None:
    """A quarter of the run and four finished trials of the same rung come first."""
    early = study_of([])
    for half, final in SPREAD:
        early.add_trial(
            optuna.trial.create_trial(
                value=final, intermediate_values={200: half}, user_attrs={SCALE_ATTR: SMALL}
            )
        )

    assert not RungPruner().prune(early, running(99.0, step=200))
    assert RungPruner(min_progress=0.1).prune(early, running(99.0, step=200))
    assert not RungPruner().prune(study_of(SPREAD[:3]), running(99.0))
    assert RungPruner().prune(study_of(SPREAD), running(99.0))


def test_small_proxies_are_not_measured_by_large_ones() -> None:
    """A larger rung's lower losses stop nobody here, and its higher ones save nobody."""
    better = study_of([(half - 2, final - 2) for half, final in SPREAD], LARGE)
    worse = study_of(SPREAD)
    add(worse, [(half + 9, final) for half, final in SPREAD * 3], LARGE)

    assert not RungPruner().prune(better, running(3.5))
    assert RungPruner().prune(worse, running(3.5))


def test_verification_and_broken_losses_are_left_alone() -> None:
    """Runs at the target go to their end, and divergence is the trainer's to call."""
    study = study_of(SPREAD)

    assert not RungPruner().prune(study, running(99.0, purpose="verify"))
    assert not RungPruner().prune(study, running(99.0, purpose="control"))
    assert not RungPruner().prune(study, running(float("nan")))
    assert not RungPruner().prune(study, running(float("inf")))


@given(st.lists(curves, min_size=4, max_size=9), losses)
def test_the_best_curve_is_never_stopped(finished: list[Curve], loss: float) -> None:
    """Whatever the curves, one that lies at or below all others goes on."""
    best = min(loss, *(half for half, _ in finished))

    assert not RungPruner().prune(study_of(finished), running(best))


@given(st.lists(curves, max_size=6), st.lists(curves, max_size=9), losses)
def test_other_rungs_change_nothing(here: list[Curve], there: list[Curve], loss: float) -> None:
    """The verdict on a trial depends on its own rung alone."""
    study = study_of(here)
    alone = RungPruner().prune(study, running(loss))
    add(study, there, LARGE)

    assert alone == RungPruner().prune(study, running(loss))


eighths = st.integers(-800, 800).map(lambda n: n / 8)  # sums and differences are exact


@given(st.lists(st.tuples(eighths, eighths), min_size=4, max_size=9), eighths, eighths)
def test_only_differences_of_losses_count(finished: list[Curve], loss: float, offset: float) -> None:
    """A constant added to every loss, or a maximized mirror image, gives the same verdict."""
    verdict = RungPruner().prune(study_of(finished), running(loss))
    shifted = [(half + offset, final + offset) for half, final in finished]
    mirrored = study_of([(-half, -final) for half, final in finished], maximize=True)

    assert verdict == RungPruner().prune(study_of(shifted), running(loss + offset))
    assert verdict == RungPruner().prune(mirrored, running(-loss))
