"""The trainer is deterministic, learns, stops on request, and knows a run that blew up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from stand_in import StandIn
from torch import nn

from transfer_bo import Diverged, Scale
from transfer_bo.errors import ScaleError, TrainingError
from transfer_bo.training import Corpus, TrainResult, Transformer, build_transformer, count_flops, train
from transfer_bo.training.progress import Progress
from transfer_bo.training.settings import TrainSettings
from transfer_bo.training.trainer import evaluate

TINY = Scale(width=16, depth=1)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """A text that is easy to learn: 0 1 2 ... 9 over and over."""
    tokens = (np.arange(20_000) % 10).astype(np.uint8)
    return Corpus(tokens[:18_000], tokens[18_000:], 256, "digits")


def run(corpus: Corpus, lr: float = 2**-5, model: Transformer | None = None, **settings: Any) -> TrainResult:
    """Train a tiny model for 20 steps, unless asked otherwise."""
    arguments: dict[str, Any] = {"batch": 4, "tokens": 4 * 16 * 20, "context": 16, "seed": 0, "device": "cpu"}
    hps = {"lr": lr, **settings.pop("hps", {})}
    return train(model or build_transformer(TINY), StandIn(), hps, corpus, **{**arguments, **settings})


def test_same_arguments_give_the_same_bits(corpus: Corpus) -> None:
    """Loss, curve and every weight are bitwise equal, whatever random numbers were drawn in between."""
    first, second = build_transformer(TINY), build_transformer(TINY)
    a = run(corpus, model=first, threads=1)
    torch.manual_seed(99)
    np.random.seed(99)
    b = run(corpus, model=second, threads=1)

    assert (a.loss, a.curve, a.train_loss) == (b.loss, b.curve, b.train_loss)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert a.loss != run(corpus, seed=1, threads=1).loss


def test_training_equals_a_plain_loop(corpus: Corpus) -> None:
    """In double precision the weights are those of AdamW written out: schedule, clipping, decay and all."""
    model, plain = build_transformer(TINY).double(), build_transformer(TINY).double()
    run(corpus, model=model)
    StandIn().initialize(plain, {}, seed=0)
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in plain.parameters()}
    for step in range(1, 21):
        windows = corpus.batch(0, step, 4, 16)
        loss = nn.functional.cross_entropy(plain(windows[:, :-1]).mT, windows[:, 1:])
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        lr = 2**-5 * (1.0 if step == 1 else 0.5 + 0.5 * math.cos(math.pi * (step - 1) / 20))
        for p, g in zip(plain.parameters(), gradients, strict=True):
            g = g * min(1.0, 1.0 / (norm.item() + 1e-6))
            m, v = moments[p]
            m.lerp_(g, 0.1)
            v.lerp_(g.square(), 0.05)
            with torch.no_grad():
                p.mul_(1 - lr * 0.1)
                p.sub_(lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8))

    for (name, expected), actual in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(expected, actual, rtol=1e-8, atol=1e-10, msg=name)


def test_meta_model_trains_like_any_other(corpus: Corpus) -> None:
    """A model built without memory gets it, and the same weights."""
    with torch.device("meta"):
        model = build_transformer(TINY)

    assert run(corpus).loss == run(corpus, model=model).loss


def test_a_simple_text_is_learnt(corpus: Corpus) -> None:
    """The loss of a text with no surprises falls to nearly nothing."""
    result = run(corpus, lr=0.02, tokens=4 * 16 * 150)

    assert result.loss < 0.02
    assert result.train_loss < 0.05


def test_result_counts_whole_steps(corpus: Corpus) -> None:
    """Tokens are rounded to whole steps, at least one, and the result says how many were used."""
    for tokens, steps in ((1, 1), (64 * 7 + 10, 7), (64 * 7 + 40, 8)):
        result = run(corpus, tokens=tokens)

        assert (steps, 64 * steps) == (result.steps, result.tokens)


def test_reports_are_evenly_spaced(corpus: Corpus) -> None:
    """Progress rises to 1 in equal parts; the curve is what was reported."""
    seen: list[tuple[float, float]] = []
    result = run(corpus, reports=5, report=lambda progress, loss: seen.append((progress, loss)))

    assert [progress for progress, _ in seen] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert result.curve == dict(seen)


def test_report_can_stop_the_run(corpus: Corpus) -> None:
    """What the report raises ends training at once and reaches the caller; the thread count is put back."""

    class StopEarlyError(Exception):
        pass

    seen: list[float] = []

    def stop(progress: float, loss: float) -> None:
        seen.append(progress)
        if progress >= 0.4:
            raise StopEarlyError

    before = torch.get_num_threads()
    with pytest.raises(StopEarlyError):
        run(corpus, reports=5, report=stop, threads=before + 1)

    assert seen == [0.2, 0.4]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("seed", [0, 1])
def test_final_loss_is_the_mean_over_the_heldout_windows(corpus: Corpus, seed: int) -> None:
    """The result's loss equals a direct evaluation of the trained model, on windows that no seed changes."""
    model = build_transformer(TINY)
    result = run(corpus, model=model, seed=seed)
    windows = corpus.heldout_windows(256, 16)
    with torch.no_grad():
        logits = model(windows[:, :-1])
        losses = nn.functional.cross_entropy(logits.mT, windows[:, 1:], reduction="none")

        few = corpus.heldout_windows(16, 16)
        assert result.curve[1.0] == pytest.approx(evaluate(model, model, few, 16), rel=1e-6)

    assert result.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert evaluate(model, model, windows, 7) == pytest.approx(losses.mean().item(), rel=1e-5)


@pytest.mark.parametrize("hps", [{"lr": 1e4}, {"lr": math.nan}, {"lr": 2**-5, "init_std": 1e30}])
def test_a_run_that_blows_up_is_typed(corpus: Corpus, hps: dict[str, float]) -> None:
    """A learning rate or initial spread beyond reason ends as Diverged, before the run's end."""
    seen: list[float] = []
    with pytest.raises(Diverged):
        run(corpus, hps=hps, tokens=4 * 16 * 400, report=lambda progress, loss: seen.append(progress))

    assert all(progress < 1 for progress in seen)


def first_divergence(losses: list[float]) -> int | None:
    """The step at which a run with these train losses is ended."""
    progress = Progress(256)
    for step, loss in enumerate(losses, 1):
        try:
            progress.see(loss)
        except Diverged:
            return step
    return None


@pytest.mark.parametrize(
    ("losses", "ended"),
    [
        ([40.0 - 0.3 * step for step in range(100)], range(0)),  # a bad start that mends
        ([40.0] * 20 + [46.0] * 40, range(21, 25)),  # a bad start that gets worse
        ([3.0] * 30 + [12.0] + [3.0] * 30, range(0)),  # one spike
        ([3.0] * 30 + [math.log(256) + 2] * 30, range(31, 51)),  # up, and staying there
        ([3.0] * 30 + [math.log(256) + 0.9] * 300, range(0)),  # bad, but within the tolerance
        ([3.0] * 30 + [math.nan], range(31, 32)),
        ([math.inf], range(1, 2)),
    ],
)
def test_divergence_is_staying_above_the_start_or_not_finite(losses: list[float], ended: range) -> None:
    """Runs are ended soon after they stay worse than both start and guessing, and only then."""
    step = first_divergence(losses)

    assert step in ended if ended else step is None


def test_learning_rate_rises_then_falls_to_nearly_zero() -> None:
    """Linear up to exactly 1 at 5% of the steps, then down along a cosine, never to a wasted step at 0."""
    factors = [TrainSettings().lr_factor(step, 200) for step in range(1, 201)]

    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factors[9] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[9:]))
    assert factors[9 + 95] == pytest.approx(0.5, abs=0.01)
    assert 0 < factors[-1] < 1e-3
    assert [TrainSettings().lr_factor(1, 1), TrainSettings().lr_factor(1, 2)] == [1.0, 1.0]


def test_schedule_scales_every_group(corpus: Corpus) -> None:
    """A group with learning rate 0 stays where it was; the others move."""

    class Frozen(StandIn):
        def optimizers(
            self, model: nn.Module, hps: Mapping[str, float], *, fused: bool
        ) -> list[torch.optim.Optimizer]:
            last = model.unembedding.weight
            others = [p for p in model.parameters() if p is not last]
            return [torch.optim.AdamW(others, lr=hps["lr"]), torch.optim.AdamW([last], lr=0.0)]

    start, model = build_transformer(TINY), build_transformer(TINY)
    StandIn().initialize(start, {}, seed=0)
    train(model, Frozen(), {"lr": 0.01}, corpus, batch=2, tokens=320, context=16, seed=0, device="cpu")

    for (name, before), after in zip(start.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after) == (name == "unembedding.weight"), name


def test_flops_are_six_per_weight_and_token_plus_attention() -> None:
    """6 N D for the matrices, and 3 x 4 T D per token and layer for attention (its mask saves nothing)."""
    width, depth, context, tokens = 64, 3, 32, 1_000_000
    scale = Scale(width=width, depth=depth, batch=4, tokens=tokens)
    matrices = depth * 12 * width**2 + width * 256
    attention = depth * 2 * 2 * context * width

    assert count_flops(build_transformer, scale, context) == (6 * matrices + 3 * attention) * tokens
    with pytest.raises(ScaleError):
        count_flops(build_transformer, TINY, context)


@pytest.mark.parametrize("name", ["batch", "tokens", "context", "reports"])
def test_impossible_settings_are_named(corpus: Corpus, name: str) -> None:
    """Zero of anything is refused with its name."""
    with pytest.raises(TrainingError) as error:
        run(corpus, **{name: 0})

    assert name in str(error.value)


def test_absent_device_and_negative_seed_are_named(corpus: Corpus) -> None:
    """A device that is not available, or a seed below 0, is refused with its value."""
    with pytest.raises(TrainingError) as device:
        run(corpus, device="xpu:1")
    with pytest.raises(TrainingError) as seed:
        run(corpus, seed=-1)

    assert "'xpu:1'" in str(device.value)
    assert "-1" in str(seed.value)


def test_dropout_is_off_in_evaluation_and_on_in_training(corpus: Corpus) -> None:
    """A model of the user's own is evaluated in eval mode and trained in train mode."""
    modes: list[tuple[bool, bool]] = []
    model = build_transformer(TINY)
    model.register_forward_hook(
        lambda module, _, __: modes.append((module.training, torch.is_grad_enabled()))
    )
    run(corpus, model=model, tokens=64 * 4, reports=2)

    assert [training for training, with_grad in modes if with_grad] == [True] * 4
    assert {training for training, with_grad in modes if not with_grad} == {False}
