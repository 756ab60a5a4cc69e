"""Checkpoints: whole or not there, never code, and resuming gives the same bits."""

from __future__ import annotations

import errno
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stand_in import StandIn
from torch import Tensor, nn

from transfer_bo import Scale
from transfer_bo.errors import Preempted
from transfer_bo.parametrization import parametrize
from transfer_bo.training import Corpus, TrainResult, build_transformer, train
from transfer_bo.training.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint

RUN = {"seed": 1, "hps": {"lr": 0.1}}
STATE = {"step": 3, "weights": torch.arange(4.0)}


class Dropping(nn.Module):
    """A transformer behind dropout, so that the numbers it draws as it runs matter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_transformer(Scale(width=16, depth=1))
        self.drop = nn.Dropout(0.1)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """The inner model's."""
        self.inner.reset_parameters(generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, a tenth of them dropped in training."""
        logits: Tensor = self.drop(self.inner(tokens))
        return logits


def run(
    path: Path | None = None, stop_at: int = -1, model: nn.Module | None = None, **more: Any
) -> TrainResult:
    """Train for 20 steps, stopping after `stop_at` of them."""
    tokens = (np.random.default_rng(0).integers(0, 12, 5_000)).astype(np.uint8)
    corpus = Corpus(tokens[:4_000], tokens[4_000:], 256, "noise")
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen == stop_at

    arguments: dict[str, Any] = {"batch": 4, "tokens": 4 * 16 * 20, "context": 16, "seed": 0, "device": "cpu"}
    arguments |= {"parametrization": StandIn(), "hps": {"lr": 0.01}}
    return train(
        model or Dropping(),
        corpus=corpus,
        checkpoint=path,
        stop=stop,
        threads=1,
        **{**arguments, **more},
    )


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    """Stopped twice on its way, a run ends with the loss, curve and weights of one that was not."""
    path = tmp_path / "trial-0.pt"
    whole, pieces = Dropping(), Dropping()
    expected = run(model=whole)
    for stop_at in (7, 6):
        with pytest.raises(Preempted):
            run(path, stop_at)
    actual = run(path, model=pieces)

    assert (expected.loss, expected.curve) == (actual.loss, actual.curve)
    assert expected.train_loss == actual.train_loss
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "optimizer", ["adam", "sgd", "adafactor", "muon", "soap", "shampoo", "adamh", "muonh"]
)
def test_resuming_gives_the_same_bits_for_every_optimizer(optimizer: str, tmp_path: Path) -> None:
    """One or two optimizers, with preconditioners or norms to keep: stopped and resumed, all is equal."""
    if optimizer == "soap":
        pytest.importorskip("pytorch_optimizer")

    def build(scale: Scale) -> nn.Module:
        return build_transformer(scale)

    scale = Scale(width=16, depth=1)
    p = parametrize(build, scale, rule="sp", optimizer=optimizer)
    hps = {"lr": 0.01, "weight_decay": 0.0 if optimizer == "adam" else 0.1}
    whole, pieces = build(scale), build(scale)
    expected = run(model=whole, parametrization=p, hps=hps)
    with pytest.raises(Preempted):
        run(tmp_path / "a.pt", 13, build(scale), parametrization=p, hps=hps)
    actual = run(tmp_path / "a.pt", model=pieces, parametrization=p, hps=hps)

    assert (expected.loss, expected.curve) == (actual.loss, actual.curve)
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_one_optimizer_as_it_was(tmp_path: Path) -> None:
    """Earlier versions stored the state of the only optimizer without a list."""
    path = tmp_path / "trial-0.pt"
    with pytest.raises(Preempted):
        run(path, 7)
    content = torch.load(path, weights_only=True)
    (content["state"]["optimizer"],) = content["state"]["optimizer"]
    torch.save(content, path)

    assert run().loss == run(path).loss


def test_a_run_goes_on_instead_of_starting_anew(tmp_path: Path) -> None:
    """What was reported before the checkpoint is not reported again."""
    path = tmp_path / "trial-0.pt"
    with pytest.raises(Preempted):
        run(path, 15)
    seen: list[float] = []
    run(path, report=lambda progress, loss: seen.append(progress))

    assert [0.8, 0.9, 1.0] == seen


def test_a_stop_in_the_middle_of_a_report_is_kept(tmp_path: Path) -> None:
    """A report that gives the trial back leaves a checkpoint behind."""

    def report(progress: float, loss: float) -> None:
        if progress == 0.5:
            raise Preempted

    with pytest.raises(Preempted):
        run(tmp_path / "a.pt", report=report)
    seen: list[float] = []
    run(tmp_path / "a.pt", report=lambda progress, loss: seen.append(progress))

    assert 0.6 == seen[0]


def test_another_run_does_not_resume_it(tmp_path: Path) -> None:
    """Other HPs, seed or length: the checkpoint counts as absent."""
    path = tmp_path / "trial-0.pt"
    with pytest.raises(Preempted):
        run(path, 15)

    assert run(seed=1).loss == run(path, seed=1).loss


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    """What was saved is loaded, for the same run only."""
    path = tmp_path / "deep" / "trial-0.pt"

    assert save_checkpoint(path, RUN, STATE)
    loaded = load_checkpoint(path, RUN)
    assert loaded is not None
    assert torch.equal(loaded["weights"], torch.arange(4.0))
    assert load_checkpoint(path, {**RUN, "seed": 2}) is None
    assert ["trial-0.pt"] == [file.name for file in path.parent.iterdir()]


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "noise"])
def test_a_damaged_checkpoint_counts_as_absent(damage: str, tmp_path: Path) -> None:
    """Starting anew is right, only slower."""
    path = tmp_path / "trial-0.pt"
    save_checkpoint(path, RUN, STATE)
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "noise": b"\x80\x04" * 99}[damage]
        )

    assert load_checkpoint(path, RUN) is None


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_checkpoint_cannot_run_code(form: str, tmp_path: Path) -> None:
    """A file made to run a command when it is read is not used, and the command not run."""
    trace, path = tmp_path / "trace", tmp_path / "trial-0.pt"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {trace}",)

    content = {"run": RUN, "state": Attack()}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)

    assert load_checkpoint(path, RUN) is None
    assert not trace.exists()
    with path.open("rb") as file:  # the file is a real attack
        torch.load(file, weights_only=False) if form == "torch" else pickle.load(file)
    assert trace.exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before stays, nothing half is left, and training goes on to its end."""
    path = tmp_path / "trial-0.pt"
    save_checkpoint(path, RUN, STATE)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    assert not save_checkpoint(path, RUN, {"step": 4})
    assert ["trial-0.pt"] == [file.name for file in tmp_path.iterdir()]
    loaded = load_checkpoint(path, RUN)
    assert loaded is not None
    assert 3 == loaded["step"]
    assert math.isfinite(run(tmp_path / "other.pt", checkpoint_seconds=0.0).loss)


def test_removal_takes_what_killed_processes_left(tmp_path: Path) -> None:
    """Half-written files of this checkpoint go with it, those of others stay."""
    path = tmp_path / "trial-1.pt"
    for name in ("trial-1.pt", "trial-1.pt.4711", "trial-11.pt"):
        (tmp_path / name).write_text("")
    remove_checkpoint(path)

    assert ["trial-11.pt"] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize("parts", [2, 3, 4, 9])
def test_a_batch_in_parts_gives_the_same_gradient(parts: int) -> None:
    """The same training to rounding in float64, more parts than rows are rows."""
    whole, pieces = (build_transformer(Scale(width=16, depth=1)).double() for _ in range(2))
    expected = run(model=whole)
    actual = run(model=pieces, accumulate=parts)

    assert expected.loss == pytest.approx(actual.loss, rel=1e-9)
    assert expected.curve == pytest.approx(actual.curve, rel=1e-9)
