"""Settings of a training run: schedules, clipping, precision, activation checkpointing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in import StandIn

from transfer_bo import Scale
from transfer_bo.errors import Preempted, TrainingError
from transfer_bo.training import Corpus, TrainResult, build_transformer, train
from transfer_bo.training.settings import TrainSettings


def run(settings: TrainSettings, width: int = 16, **more: Any) -> TrainResult:
    """Twelve steps of a small model."""
    tokens = (np.arange(5_000) % 10).astype(np.uint8)
    corpus = Corpus(tokens[:4_000], tokens[4_000:], 256, "digits")
    arguments: dict[str, Any] = {"batch": 4, "tokens": 4 * 16 * 12, "context": 16, "seed": 0, "device": "cpu"}
    model = build_transformer(Scale(width=width, depth=2))
    return train(
        model, StandIn(), {"lr": 0.01}, corpus, threads=1, settings=settings, **{**arguments, **more}
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_schedules_rise_and_fall_to_zero(schedule: Any) -> None:
    """Warm-up to 1, never up again after it, nearly 0 at the last step."""
    settings = TrainSettings(schedule=schedule, warmup=0.1, decay=0.3)
    factors = [settings.lr_factor(step, 1000) for step in range(1, 1001)]

    assert [0.01, 1.0] == [factors[0], factors[99]]
    assert sorted(factors[99:], reverse=True) == factors[99:]
    assert 0 < factors[-1] < 0.05
    assert {"cosine": 0.5, "linear": 0.5, "wsd": 1.0}[schedule] == pytest.approx(factors[549], abs=0.01)


def test_wsd_shares_its_stable_part_over_durations() -> None:
    """Two durations with the same number of warm-up steps are equal up to the decay of the shorter one."""
    short, long = (
        [TrainSettings(schedule="wsd", warmup=10 / n).lr_factor(step, n) for step in range(1, 81)]
        for n in (100, 1000)
    )

    assert short == long
    assert TrainSettings(schedule="wsd", warmup=0.0).lr_factor(1, 100) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"warmup": 1.0}, {"decay": 0.0}, {"max_norm": 0.0}, {"schedule": "step"}, {"precision": "fp8"}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """Named with the value."""
    with pytest.raises(TrainingError) as error:
        TrainSettings(**wrong)

    assert all(str(part) in str(error.value) for part in next(iter(wrong.items())))


def test_activation_checkpointing_changes_nothing() -> None:
    """The same bits, from less memory."""
    assert run(TrainSettings()).curve == run(TrainSettings(activation_checkpointing=True)).curve


def test_settings_reach_the_training() -> None:
    """Schedule, warm-up, clipping and precision each give another loss."""
    curves = [
        run(TrainSettings(**more)).loss
        for more in (
            {},
            {"schedule": "linear"},
            {"warmup": 0.5},
            {"max_norm": 1e-3},
            {"precision": "bfloat16"},
        )
    ]

    assert len(curves) == len(set(curves))
    assert curves[-1] == pytest.approx(curves[0], abs=0.05)


def test_speed_is_reported() -> None:
    """Tokens per second at each report, and in the result."""
    speeds: list[float] = []

    result = run(TrainSettings(), speed=speeds.append, reports=3)

    assert 3 == len(speeds)
    assert result.tokens_per_second == speeds[-1] > 0
    assert math.isfinite(result.tokens_per_second)


def test_a_checkpoint_of_another_shape_is_refused_and_kept(tmp_path: Path) -> None:
    """In one sentence that names the file."""
    path = tmp_path / "trial-0.pt"
    with pytest.raises(Preempted):
        run(TrainSettings(), checkpoint=path, stop=lambda: True)
    before = path.read_bytes()

    with pytest.raises(TrainingError) as error:
        run(TrainSettings(), width=32, checkpoint=path)

    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert before == path.read_bytes()
