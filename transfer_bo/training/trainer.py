"""Train a model once and return its held-out loss: what a trial of a study does.

Symbols: n steps, p = step / n in (0, 1] the progress, V the vocabulary. Losses are in nats per token.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transfer_bo.errors import Diverged, Preempted, TrainingError
from transfer_bo.scale import Scale
from transfer_bo.training.data import Corpus
from transfer_bo.training.ranks import Parallel, Ranks
from transfer_bo.training.resume import Resume

__all__ = ["Parametrization", "TrainResult", "count_flops", "train"]

WARMUP = 0.05
"""Share of the steps in which the learning rate rises linearly."""
FINAL_LR = 0.0
"""Factor on the learning rate at the end of the cosine."""
MAX_NORM = 1.0
"""Gradients are clipped to this global norm."""
FINAL_WINDOWS = 256
"""Held-out windows of the final loss.

Measured on runs of 200k tokens (width 32, depth 2, context 128): the difference of two runs is off by
.002-.003 nats (sd) against the whole held-out text, while seeds differ by .03. Evaluation takes 9% of such a
run.
"""
REPORT_WINDOWS = 16
"""Held-out windows of each report on the way; likewise .01 nats (sd).

The level of so few windows may lie .05 nats (sd) off that of the final loss, alike for all runs.
"""
SMOOTHING = 0.9
"""Of the train loss that is watched for divergence: an average over about 10 steps."""
TOLERANCE = 1.0
"""Nats by which the smoothed train loss may exceed the larger of initial and uniform loss."""


class Parametrization(Protocol):
    """What the trainer needs from a parametrization: the settings of every tensor at this scale."""

    def initialize(self, model: nn.Module, hps: Mapping[str, float], seed: int) -> None:
        """Draw the initial weights in place."""

    def param_groups(self, model: nn.Module, hps: Mapping[str, float]) -> list[dict[str, Any]]:
        """Groups for `torch.optim.AdamW`: params, lr, betas, eps, weight_decay."""

    def clip_grad_norm_(self, model: nn.Module, max_norm: float) -> Tensor:
        """Clip the gradients in place; returns the norm before."""


@dataclass(frozen=True)
class TrainResult:
    """One finished training run."""

    loss: float
    """Held-out loss at the end, over `FINAL_WINDOWS` windows."""
    curve: dict[float, float] = field(repr=False)
    """Progress -> held-out loss over `REPORT_WINDOWS` windows, all along, so that it does not jump at 1."""
    train_loss: float
    """Train loss at the end, averaged over about 10 steps."""
    seconds: float
    """Wall-clock time, evaluation included."""
    steps: int
    tokens: int
    """steps x batch x context."""


def train(
    model: nn.Module,
    parametrization: Parametrization,
    hps: Mapping[str, float],
    corpus: Corpus,
    *,
    batch: int,
    tokens: float,
    context: int,
    seed: int,
    device: str | torch.device | None = None,
    threads: int | None = None,
    reports: int = 10,
    report: Callable[[float, float], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    accumulate: int = 1,
    parallel: Parallel = "ddp",
    after_step: Callable[[int, nn.Module], None] | None = None,
) -> TrainResult:
    """Initialize a model and train it with AdamW; on a CPU the same arguments give the same bits.

    In a `torch.distributed` process group every rank calls this with the same arguments and trains on its
    share of each batch; the loss is that of one process, to rounding.

    The learning rate rises linearly over the first 5% of the steps, then follows a cosine to 0: decay to zero
    makes the final loss less sensitive to the peak than decay to 10% (2502.15938).

    Args:
        model: Tokens (B x T) to logits (B x T x V); may be on the meta device. It is trained in place.
        parametrization: Gives initial weights, AdamW's groups and the clipping.
        hps: Handed to the parametrization.
        corpus: Where batches and held-out windows come from.
        batch: Sequences per step.
        tokens: To train on; rounded to whole steps of batch x context tokens, at least one.
        context: Length of a sequence.
        seed: Of initial weights and batches.
        device: Default: cuda, else mps, else cpu. On cuda the model is compiled and runs in bfloat16.
        threads: CPU threads while this runs; default: as torch has it.
        reports: Number of reports, evenly spaced over the run, the last at its end.
        report: Called with (progress, held-out loss of the report windows), on the first rank only; what it
            raises ends the run.
        checkpoint: File to resume from if it is there, and to write to; the caller removes it.
        checkpoint_seconds: Between two checkpoints.
        stop: Asked at every step (every tenth on cuda) whether to write a checkpoint and stop.
        accumulate: Parts in which a rank's share of the batch goes through the model; the gradient is the
        same
            to rounding, and memory for activations shrinks by as much.
        parallel: How ranks share the model: "ddp" or "fsdp2".
        after_step: Called with (0, model) before the first step and with (step, model) after each, for
            diagnostics; it must leave the weights as they are.

    Raises:
        Diverged: when the loss is not finite, or the train loss averaged over about 10 steps lies more than
            1 nat above both the initial loss and ln V: worse than knowing nothing and getting worse. A large
            initial loss that falls is no divergence, nor is a spike of a step or two.
        Preempted: when it was stopped; the checkpoint is written.
        TrainingError: for a count that is not positive, a negative seed, a device that is not there, text
        that
            is too short, or a batch that the ranks can't share evenly.
    """
    for name, value in {"batch": batch, "tokens": tokens, "context": context, "reports": reports}.items():
        if not 0 < value < math.inf or (name != "tokens" and value != int(value)):
            raise TrainingError(f"Training needs a positive number of {name} but got {value!r}; mend it.")
    if seed < 0:
        raise TrainingError(f"The seed is {seed!r}; set it to 0 or more.")
    device = _checked_device(device)
    ranks = Ranks(parallel)
    on_cuda = device.type == "cuda"
    steps = max(1, round(tokens / (batch * context)))
    report_at = {max(1, round(steps * (i + 1) / reports)) for i in range(reports)}
    final_windows = corpus.heldout_windows(FINAL_WINDOWS, context).to(device)
    report_windows = corpus.heldout_windows(REPORT_WINDOWS, context).to(device)

    with _threads(threads):
        started = time.perf_counter()
        # Only for models that draw numbers as they run, such as dropout: each rank has its own.
        torch.manual_seed(seed + 1_000_003 * ranks.rank)
        if any(parameter.is_meta for parameter in model.parameters()):
            model.to_empty(device="cpu")
        # Before the move to the device, so that every device starts from the same weights.
        parametrization.initialize(model, hps, seed)
        model.to(device)
        run = ranks.spread(model)
        optimizer = torch.optim.AdamW(merge_groups(parametrization.param_groups(model, hps)), fused=True)
        peaks = [group["lr"] for group in optimizer.param_groups]
        identity = {"seed": seed, "batch": batch, "context": context, "steps": steps, "hps": dict(hps)}
        resume = Resume(checkpoint, checkpoint_seconds, identity, ranks)
        forward: Callable[[Tensor], Tensor] = run
        if on_cuda:
            # Residual multipliers are constants to the compiler: each trial is a new program, kept apart.
            torch.compiler.reset()
            forward = torch.compile(run, dynamic=False)
        check_every = 10 if on_cuda else 1  # reading the loss waits for the device

        model.train()
        curve: dict[float, float] = {}
        losses: list[Tensor] = []
        watch = _DivergenceWatch(corpus.vocab_size)
        first, seconds_before = 1, 0.0
        known = resume.load(model, optimizer)
        if known is not None:
            first, seconds_before = known["step"] + 1, known["seconds"]
            curve = dict(zip(known["progress"], known["losses"], strict=True))
            watch.limit, watch.smoothed, watch.step = known["limit"], known["smoothed"], known["step"]

        def seconds() -> float:
            return seconds_before + time.perf_counter() - started

        def save(step: int) -> None:
            rest: dict[str, Any] = {
                "step": step,
                "seconds": seconds(),
                "limit": watch.limit,
                "smoothed": watch.smoothed,
            }
            rest = rest | {"progress": list(curve), "losses": list(curve.values())}
            resume.save(model, optimizer, rest)

        if after_step is not None and first == 1:
            after_step(0, model)
        for step in range(first, steps + 1):
            share = ranks.share(corpus.batch(seed, step, batch, context)).to(device, non_blocking=True)
            parts = []
            for windows, weight in ranks.micro_batches(run, share, accumulate):
                with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                    loss = _loss(forward, windows) * weight
                loss.backward()  # type: ignore[no-untyped-call]
                parts.append(loss.detach())
            losses.append(torch.stack(parts).sum())
            parametrization.clip_grad_norm_(model, MAX_NORM)
            factor = lr_factor(step, steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
            optimizer.step()
            optimizer.zero_grad()
            if after_step is not None:
                after_step(step, model)
            if step % check_every and step not in report_at:
                continue
            for value in ranks.mean(torch.stack(losses)).tolist():
                watch.see(value)
            losses.clear()
            try:
                if step in report_at:
                    curve[step / steps] = watch.check(
                        "held-out", evaluate(model, forward, report_windows, batch)
                    )
                    if report is not None and ranks.rank == 0:
                        report(step / steps, curve[step / steps])
            except Preempted:
                save(step)
                raise
            if ranks.any(stop(), device):
                save(step)
                raise Preempted(f"Stopped at step {step} of {steps}.")
            if ranks.any(resume.is_due(), device):
                save(step)
        if seconds() > checkpoint_seconds:  # should the result not reach the study, it is not trained again
            save(steps)
        return TrainResult(
            loss=watch.check("held-out", evaluate(model, forward, final_windows, batch)),
            curve=curve,
            train_loss=watch.smoothed,
            seconds=seconds(),
            steps=steps,
            tokens=steps * batch * context,
        )


def lr_factor(step: int, steps: int) -> float:
    """Factor on every learning rate at step 1..n: linear warm-up to 1, cosine to `FINAL_LR` at n + 1."""
    warmup = max(1, round(WARMUP * steps))
    if step <= warmup:
        return step / warmup
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps + 1 - warmup)))


@torch.no_grad()
def evaluate(model: nn.Module, run: Callable[[Tensor], Tensor], windows: Tensor, batch: int) -> float:
    """Mean loss over windows (n x (T + 1)), `batch` at a time; `run` is the model, compiled or as it is."""
    device_type = windows.device.type
    model.eval()
    with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
        losses = [_loss(run, part) * len(part) for part in torch.split(windows, batch)]
    model.train()
    return float(torch.stack(losses).sum()) / len(windows)


def merge_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join groups with equal settings: AdamW then makes one fused call for them instead of many."""
    merged: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key not in ("params", "name")}
        params = group["params"]
        same = merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})
        same["params"] += [params] if isinstance(params, Tensor) else list(params)
    return list(merged.values())


def _checked_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or else the fastest kind there is.

    Raises:
        TrainingError: if it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = [kind for kind, is_there in there.items() if is_there]
    chosen = str(device or kinds[0])
    if chosen.partition(":")[0] not in kinds:
        raise TrainingError(f"Device {chosen!r} is not available here; use one of {', '.join(kinds)}.")
    return torch.device(chosen)


def count_flops(build_model: Callable[[Scale], nn.Module], scale: Scale, context: int) -> float:
    """FLOPs of the training run at a scale: 3 x the forward pass (2 for backward) x its tokens.

    Counted from the matrix products of one sequence through the model on the meta device, attention included:
    for a transformer 6 N D with N its matrix weights, plus attention. Small models on a CPU take longer than
    their FLOPs say.

    Raises:
        TrainingError: if the scale has no tokens.
    """
    if "tokens" not in scale:
        raise TrainingError(f"{scale} has no tokens; the cost of a training run needs its length.")
    with torch.device("meta"), torch.no_grad():
        model = build_model(scale)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, context, dtype=torch.long))
    return 3.0 * float(counter.get_total_flops()) / context * float(scale.tokens)


def _loss(run: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    return F.cross_entropy(run(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


class _DivergenceWatch:
    """Raises `Diverged` for a loss not finite or, smoothed, far above both the initial and uniform loss."""

    def __init__(self, vocab_size: int) -> None:
        self.limit = math.log(vocab_size) + TOLERANCE
        self.smoothed = math.nan
        self.step = 0

    def see(self, loss: float) -> None:
        """The train loss of the next step."""
        self.step += 1
        if self.step == 1:  # before any update
            self.smoothed = loss
            self.limit = max(self.limit, loss + TOLERANCE)
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.check("train", self.smoothed)

    def check(self, name: str, loss: float) -> float:
        """The loss again, if it is sound."""
        if not math.isfinite(loss):
            raise Diverged(f"The {name} loss is {loss} at step {self.step}.")
        if loss > self.limit:
            raise Diverged(
                f"The {name} loss is {loss:.3g} at step {self.step}, above the limit of {self.limit:.3g}."
            )
        return loss


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
